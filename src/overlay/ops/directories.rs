//! opendir, readdir, readdirplus, releasedir, fsyncdir.
//!
//! A directory handle holds the names as they were when it was read from the start, so that offsets stay good across
//! outages and while entries come and go.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use fuser::{FopenFlags, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyOpen};
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};

use super::names::reply_node;
use crate::backing::{Attr, DirEntry, FileKind, OpResult, Tree};
use crate::gate::{Class, Context, Op};
use crate::handover::{Item, Notes, Picture, item};
use crate::overlay::Overlay;
use crate::overlay::asked::Asked;
use crate::overlay::convert::{file_type, node_errno};
use crate::overlay::files::LOST_FILE;
use crate::overlay::nodes::{NO_IDENTITY, ROOT, Stamp};

/// Entries that one request looks at: a buffer of 32 KiB holds no more of ordinary names with attributes.
const BATCH: usize = 192;
/// After that long a request answers with the entries it has: on a link with delay each may be a round trip.
const BATCH_TIME: Duration = Duration::from_millis(500);
/// What readdir(3) shows as the number of an entry whose number is not known; libfuse says the same.
const UNKNOWN: u64 = 0xffff_ffff;

/// Most bytes of listings, of all open directories together, that are noted for a successor: some 600,000 names of 12 bytes,
/// a quarter of what there is for names in its memory. Of a directory whose listing does not fit the successor reads the
/// names again, and whoever reads it at that moment may miss a name that was made or removed meanwhile, or see it twice.
const MOST_NOTED: u64 = 16 << 20;
/// Most bytes that an entry takes there besides its name: its length, type and number.
const ENTRY: u64 = 16;

type Listing = Arc<Vec<DirEntry>>;

struct OpenDirectory {
    /// Reading it leaves no time of access (O_NOATIME). A successor does not know it.
    quiet: bool,
    listing: Mutex<Option<Listing>>,
    noted: Share,
}

/// What of [`MOST_NOTED`] one directory takes.
struct Share {
    total: Arc<AtomicU64>,
    own: AtomicU64,
}

impl Share {
    fn none(total: &Arc<AtomicU64>) -> Share {
        Share { total: Arc::clone(total), own: AtomicU64::new(0) }
    }

    /// Takes so many bytes instead of those that it took, or none if there are not as many left.
    fn take(&self, bytes: u64, limit: u64) -> bool {
        self.total.fetch_sub(self.own.swap(0, Relaxed), Relaxed);
        let more = |total: u64| total.checked_add(bytes).filter(|sum| *sum <= limit);
        let taken = self.total.fetch_update(Relaxed, Relaxed, more).is_ok();
        if taken {
            self.own.store(bytes, Relaxed);
        }
        taken
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.total.fetch_sub(*self.own.get_mut(), Relaxed);
    }
}

fn bytes_of(listing: &Listing) -> u64 {
    listing.iter().map(|entry| entry.name.len() as u64 + ENTRY).sum()
}

/// All open directories by handle.
pub struct Directories {
    open: RwLock<(HashMap<u64, Arc<OpenDirectory>>, u64)>,
    /// Bytes of listings that are noted.
    noted: Arc<AtomicU64>,
    notes: Notes,
}

impl Directories {
    /// None yet. What a successor has to know is noted.
    pub fn new(notes: Notes) -> Directories {
        Directories { open: RwLock::default(), noted: Arc::default(), notes }
    }

    fn insert(&self, node: u64, quiet: bool, by: u64) -> u64 {
        let mut open = self.open.write();
        open.1 += 1;
        let handle = open.1;
        self.notes.note(&Item::DirOpened { handle, node, by });
        let (listing, noted) = (Mutex::default(), Share::none(&self.noted));
        open.0.insert(handle, Arc::new(OpenDirectory { quiet, listing, noted }));
        handle
    }

    fn list(&self, handle: u64, directory: &OpenDirectory, listing: &Listing) {
        let mut held = directory.listing.lock();
        let note = |first, last, piece: &[DirEntry]| {
            self.notes.note_with(|| {
                let noted = |entry: &DirEntry| item::Entry {
                    name: entry.name.as_bytes().to_vec().into(),
                    kind: entry.kind,
                    ino: entry.ino,
                };
                Item::Listed { handle, first, last, entries: piece.iter().map(noted).collect() }
            });
            Ok::<_, Infallible>(())
        };
        let noted = if directory.noted.take(bytes_of(listing), MOST_NOTED) {
            item::pieces(listing, true, note)
        } else {
            // What was noted before is not what it shows any more.
            note(true, false, &[])
        };
        let Ok(()) = noted;
        *held = Some(Arc::clone(listing));
    }

    /// A directory is closed.
    pub fn remove(&self, handle: u64) {
        let mut open = self.open.write();
        if open.0.remove(&handle).is_some() {
            self.notes.note(&Item::DirClosed { handle });
        }
    }

    /// No handle up to that one is given out again.
    pub fn resume_after(&self, handle: u64) {
        let mut open = self.open.write();
        open.1 = open.1.max(handle);
    }

    /// Goes on with what a predecessor had open.
    pub fn resume(&self, picture: &Picture) {
        let mut open = self.open.write();
        open.1 = open.1.max(picture.counters.directory);
        for (&handle, found) in &picture.directories {
            let entry = |entry: &item::Entry<'_>| DirEntry {
                name: OsStr::from_bytes(entry.name.as_ref()).to_owned(),
                kind: entry.kind,
                ino: entry.ino,
            };
            let listing: Option<Listing> = found.is_whole.then(|| Arc::new(found.listing.iter().map(entry).collect()));
            let noted = Share::none(&self.noted);
            noted.take(listing.as_ref().map_or(0, bytes_of), u64::MAX);
            open.0.insert(handle, Arc::new(OpenDirectory { quiet: false, listing: Mutex::new(listing), noted }));
        }
    }

    fn get(&self, handle: u64) -> OpResult<Arc<OpenDirectory>> {
        self.open.read().0.get(&handle).cloned().ok_or(LOST_FILE)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.open.read().0.len()
    }
}

impl Overlay {
    /// FUSE_OPENDIR. The names are read with the first readdir: many open a directory for fsync(2) only. The root is
    /// always there, and df(1) opens what it is asked about before it asks; but in an old outage the error comes here,
    /// for the sake of programs that take a failing readdir(3) for an empty directory.
    pub fn opendir(self: &Arc<Self>, asked: Asked, node: u64, flags: i32, reply: ReplyOpen) {
        let quiet = flags & libc::O_NOATIME != 0;
        if node == ROOT && !self.gate.fails_fast() {
            return reply
                .opened(fuser::FileHandle(self.directories.insert(node, quiet, asked.unique)), FopenFlags::empty());
        }
        let by = asked.unique;
        self.submit(
            asked,
            Op::Opendir,
            Class::Meta,
            move |overlay, context| match overlay.on_path(context, node, |tree, path| tree.stat(path)) {
                Err(Errno::ENOENT) => overlay.removed.attr(node).ok_or(Errno::ENOENT),
                result => result,
            },
            move |overlay, result| match result {
                Ok(_) => {
                    reply.opened(fuser::FileHandle(overlay.directories.insert(node, quiet, by)), FopenFlags::empty())
                }
                Err(error) => reply.error(node_errno(error)),
            },
        );
    }

    fn list(&self, context: &Context<'_>, node: u64, quiet: bool) -> OpResult<Listing> {
        let read = |tree: &dyn Tree, path: &Path| if quiet { tree.read_dir_quietly(path) } else { tree.read_dir(path) };
        let mut entries = self.on_path(context, node, read)?;
        entries.retain(|entry| !self.hides(&entry.name));
        Ok(Arc::new(entries))
    }

    /// The listing of a handle; read anew when the kernel starts again from the top (rewinddir(3)).
    fn listing(&self, context: &Context<'_>, node: u64, handle: u64, offset: u64) -> OpResult<Listing> {
        let directory = self.directories.get(handle)?;
        if let Some(listing) = directory.listing.lock().as_ref().filter(|_| offset > 0) {
            return Ok(Arc::clone(listing));
        }
        let listing = self.list(context, node, directory.quiet)?;
        self.directories.list(handle, &directory, &listing);
        Ok(listing)
    }

    /// FUSE_READDIR.
    pub fn readdir(self: &Arc<Self>, asked: Asked, node: u64, handle: u64, offset: u64, mut reply: ReplyDirectory) {
        self.submit(
            asked,
            Op::Readdir,
            Class::Meta,
            move |overlay, context| {
                let listing = overlay.listing(context, node, handle, offset)?;
                let kinds = overlay.batch(context, node, &listing, offset, |entry| entry.kind)?;
                Ok((listing, kinds))
            },
            move |overlay, result| match result {
                Ok((listing, kinds)) => {
                    for ((index, entry), found) in numbered(&listing, offset).zip(kinds) {
                        let Some(kind) = found.kind() else { continue };
                        let number = match entry {
                            Entry::Dot => node,
                            Entry::DotDot => overlay.parent_of(node),
                            Entry::Name(entry) => overlay.nodes.number(node, &entry.name, entry.ino).unwrap_or(UNKNOWN),
                        };
                        if reply.add(INodeNo(number), index, file_type(kind), entry.name()) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(node_errno(error)),
            },
        );
    }

    /// FUSE_READDIRPLUS: names with attributes, each of which counts as a lookup.
    pub fn readdirplus(
        self: &Arc<Self>,
        asked: Asked,
        node: u64,
        handle: u64,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let by = asked.unique;
        self.submit(
            asked,
            Op::Readdir,
            Class::Meta,
            move |overlay, context| {
                let listing = overlay.listing(context, node, handle, offset)?;
                let attrs = overlay.batch(context, node, &listing, offset, |_| None)?;
                Ok((listing, attrs))
            },
            move |overlay, result| match result {
                Ok((listing, attrs)) => {
                    let ttl = {
                        let seen = overlay.appearance();
                        seen.attr_timeout.min(seen.entry_timeout)
                    };
                    for ((index, entry), found) in numbered(&listing, offset).zip(attrs) {
                        let (attr, ttl) = match found {
                            Found::Attr(attr) => (attr, ttl),
                            // The kernel is to ask for the attributes when it needs them, and gets the error then.
                            Found::Known(kind) => (unknown_attr(kind), Duration::ZERO),
                            Found::Gone => continue,
                        };
                        // The kernel does not count lookups of `.` and `..` (fs/fuse/readdir.c).
                        let child = match &entry {
                            Entry::Dot => node,
                            Entry::DotDot => overlay.parent_of(node),
                            Entry::Name(entry) => overlay.nodes.remember(node, &entry.name, &attr, by),
                        };
                        let shown = overlay.shown(child, &attr);
                        if reply.add(INodeNo(child), index, entry.name(), &ttl, &shown, overlay.life(child)) {
                            if let Entry::Name(_) = entry {
                                overlay.nodes.forget(child, 1);
                            }
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(node_errno(error)),
            },
        );
    }

    /// What is known of the next entries, of at least one that has not gone: an answer without entries is the end of the
    /// directory. `known` may say of an entry that its type is enough. All of it is of one place that was the directory's.
    fn batch(
        &self,
        context: &Context<'_>,
        node: u64,
        listing: &Listing,
        offset: u64,
        known: impl Fn(&DirEntry) -> Option<FileKind>,
    ) -> OpResult<Vec<Found>> {
        loop {
            let mut place = self.nodes.path(node)?;
            let batch = self.batch_at(context, node, &mut place, numbered(listing, offset), &known)?;
            if self.nodes.was_at(node, &place.0, place.1, context.deadline) || Instant::now() >= context.deadline {
                return Ok(batch);
            }
        }
    }

    fn batch_at<'a>(
        &self,
        context: &Context<'_>,
        node: u64,
        place: &mut (PathBuf, Stamp),
        entries: impl Iterator<Item = (u64, Entry<'a>)>,
        known: impl Fn(&DirEntry) -> Option<FileKind>,
    ) -> OpResult<Vec<Found>> {
        let until = Instant::now() + BATCH_TIME;
        let (mut batch, mut any) = (Vec::new(), false);
        for (_, entry) in entries {
            if any && (batch.len() >= BATCH || Instant::now() >= until) {
                break;
            }
            let found = match entry {
                Entry::Dot | Entry::DotDot => Found::Known(FileKind::Directory),
                Entry::Name(entry) => match known(entry) {
                    Some(kind) => Found::Known(kind),
                    None => self.look_at(context, node, place, entry)?,
                },
            };
            any |= !matches!(found, Found::Gone);
            batch.push(found);
        }
        if batch.iter().any(|found| matches!(found, Found::Gone)) {
            // Unless the directory itself has gone: that is no reason to call it empty.
            self.on_path(context, node, |tree, path| tree.stat(path))?;
        }
        Ok(batch)
    }

    /// An entry has gone only if it is missed where the directory is now.
    fn look_at(
        &self,
        context: &Context<'_>,
        node: u64,
        place: &mut (PathBuf, Stamp),
        entry: &DirEntry,
    ) -> OpResult<Found> {
        loop {
            let known = self.nodes.node(node, &entry.name);
            let path = place.0.join(&entry.name);
            let found = found(self.look(context, known, || self.stat_entry(context, node, &path, entry)), entry)?;
            let gone = matches!(found, Found::Gone);
            if !gone
                || !self.nodes.has_moved_since(place.1, &[node], context.deadline)
                || Instant::now() >= context.deadline
            {
                return Ok(found);
            }
            *place = self.nodes.path(node)?;
        }
    }

    fn stat_entry(&self, context: &Context<'_>, node: u64, path: &Path, entry: &DirEntry) -> OpResult<Attr> {
        let attr = context.generation.tree().stat(path)?;
        self.as_led(context, node, &entry.name, attr)
    }

    fn parent_of(&self, node: u64) -> u64 {
        self.nodes.parent(node).unwrap_or(ROOT)
    }

    /// FUSE_RELEASEDIR: needs nobody.
    pub fn releasedir(&self, asked: Asked, handle: u64, reply: ReplyEmpty) {
        self.directories.remove(handle);
        reply.ok();
        drop(asked);
    }

    /// FUSE_FSYNCDIR.
    pub fn fsyncdir(self: &Arc<Self>, asked: Asked, node: u64, reply: ReplyEmpty) {
        self.submit(
            asked,
            Op::Fsyncdir,
            Class::Sync,
            move |overlay, context| match overlay.on_path(context, node, |tree, path| tree.sync_dir(path)) {
                // Of one that was removed through the overlay nothing is left to commit.
                Err(Errno::ENOENT) if overlay.nodes.names(node).is_empty() => Ok(()),
                result => result,
            },
            |_, result| reply_node(result, reply),
        );
    }
}

/// What is known of one entry.
enum Found {
    Attr(Attr),
    /// Only its type.
    Known(FileKind),
    /// It has gone since the directory was listed.
    Gone,
}

impl Found {
    fn kind(&self) -> Option<FileKind> {
        match self {
            Found::Attr(attr) => Some(attr.kind),
            Found::Known(kind) => Some(*kind),
            Found::Gone => None,
        }
    }
}

fn found(attr: OpResult<Attr>, entry: &DirEntry) -> OpResult<Found> {
    match attr {
        Ok(attr) => Ok(Found::Attr(attr)),
        Err(Errno::ENOENT) => Ok(Found::Gone),
        // A directory that may be read but not searched: ls(1) shows the names.
        Err(Errno::EACCES | Errno::EPERM) => Ok(Found::Known(entry.kind.unwrap_or(FileKind::Regular))),
        Err(error) => Err(error),
    }
}

/// Stands for attributes that are not known; never believed for any time.
fn unknown_attr(kind: FileKind) -> Attr {
    let epoch = SystemTime::UNIX_EPOCH;
    Attr {
        identity: NO_IDENTITY,
        kind,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        block_size: 4096,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
    }
}

enum Entry<'a> {
    Dot,
    DotDot,
    Name(&'a DirEntry),
}

impl<'a> Entry<'a> {
    fn name(&self) -> &'a OsStr {
        match self {
            Entry::Dot => OsStr::new("."),
            Entry::DotDot => OsStr::new(".."),
            Entry::Name(entry) => &entry.name,
        }
    }
}

/// Entries from `offset` on, each with the offset of the one after it.
fn numbered(listing: &Listing, offset: u64) -> impl Iterator<Item = (u64, Entry<'_>)> {
    // By index: a request in the middle of a million entries must not walk up to it.
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let dots = [Entry::Dot, Entry::DotDot].into_iter().skip(from);
    let names = listing.get(from.saturating_sub(2)..).unwrap_or_default().iter().map(Entry::Name);
    (offset.saturating_add(1)..).zip(dots.chain(names))
}
