//! opendir, readdir, readdirplus, releasedir, fsyncdir.
//!
//! A directory handle holds the names as they were when it was read from the start, so that offsets stay good across
//! outages and while entries come and go.

use std::collections::HashMap;
use std::sync::Arc;

use fuser::{
    FopenFlags, Generation as NodeGeneration, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyOpen,
};
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};

use super::names::reply_empty;
use crate::backing::{Attr, DirEntry, FileKind, OpResult};
use crate::gate::{Class, Context, Op};
use crate::overlay::convert::{errno, file_attr, file_type};
use crate::overlay::nodes::ROOT;
use crate::overlay::{Overlay, is_hidden};

/// Entries that one FUSE_READDIRPLUS looks at: a buffer of 32 KiB holds no more of ordinary names.
const PLUS_BATCH: usize = 192;

type Listing = Arc<Vec<DirEntry>>;

#[derive(Default)]
struct OpenDirectory {
    /// The names, and whether they have been read from the start already.
    listing: Mutex<Option<(Listing, bool)>>,
}

/// All open directories by handle.
#[derive(Default)]
pub struct Directories {
    open: RwLock<(HashMap<u64, Arc<OpenDirectory>>, u64)>,
}

impl Directories {
    fn insert(&self) -> u64 {
        let mut open = self.open.write();
        open.1 += 1;
        let handle = open.1;
        open.0.insert(handle, Arc::default());
        handle
    }

    fn get(&self, handle: u64) -> OpResult<Arc<OpenDirectory>> {
        self.open.read().0.get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.open.read().0.len()
    }
}

impl Overlay {
    /// FUSE_OPENDIR. A directory that cannot be read fails here, as opendir(3) does, and never looks empty.
    pub fn opendir(self: &Arc<Self>, node: u64, reply: ReplyOpen) {
        self.submit(
            Op::Opendir,
            Class::Meta,
            move |overlay, context| overlay.list(context, node),
            |overlay, result| match result {
                Ok(listing) => {
                    let handle = overlay.directories.insert();
                    if let Ok(directory) = overlay.directories.get(handle) {
                        *directory.listing.lock() = Some((listing, false));
                    }
                    reply.opened(fuser::FileHandle(handle), FopenFlags::empty());
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn list(&self, context: &Context<'_>, node: u64) -> OpResult<Listing> {
        let mut entries = self.on_path(context, node, |tree, path| tree.read_dir(path))?;
        entries.retain(|entry| !is_hidden(&entry.name));
        Ok(Arc::new(entries))
    }

    /// The listing of a handle; read anew when the kernel starts again from the top (rewinddir(3)).
    fn listing(&self, context: &Context<'_>, node: u64, handle: u64, offset: u64) -> OpResult<Listing> {
        let directory = self.directories.get(handle)?;
        if let Some((listing, begun)) = directory.listing.lock().as_mut() {
            // The first read uses what opendir has read.
            if offset > 0 || !*begun {
                *begun = true;
                return Ok(Arc::clone(listing));
            }
        }
        let listing = self.list(context, node)?;
        *directory.listing.lock() = Some((Arc::clone(&listing), true));
        Ok(listing)
    }

    /// FUSE_READDIR.
    pub fn readdir(self: &Arc<Self>, node: u64, handle: u64, offset: u64, mut reply: ReplyDirectory) {
        self.submit(
            Op::Readdir,
            Class::Meta,
            move |overlay, context| overlay.listing(context, node, handle, offset),
            move |overlay, result| match result {
                Ok(listing) => {
                    for (index, entry) in numbered(&listing, offset) {
                        let (number, kind, name) = match entry {
                            Entry::Dot => (node, FileKind::Directory, ".".as_ref()),
                            Entry::DotDot => (overlay.parent_of(node), FileKind::Directory, "..".as_ref()),
                            // The kernel passes the number on to readdir(3) only; unknown nodes get a number none has.
                            Entry::Name(entry) => (
                                overlay.nodes.node(node, &entry.name).unwrap_or(u64::MAX),
                                entry.kind.unwrap_or(FileKind::Regular),
                                entry.name.as_os_str(),
                            ),
                        };
                        if reply.add(INodeNo(number), index, file_type(kind), name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    /// FUSE_READDIRPLUS: names with attributes, each of which counts as a lookup.
    pub fn readdirplus(self: &Arc<Self>, node: u64, handle: u64, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.submit(
            Op::Readdir,
            Class::Meta,
            move |overlay, context| {
                let listing = overlay.listing(context, node, handle, offset)?;
                let attrs = overlay.stat_batch(context, node, &listing, offset)?;
                Ok((listing, attrs))
            },
            move |overlay, result| match result {
                Ok((listing, attrs)) => {
                    let ttl = overlay.config.attr_timeout.min(overlay.config.entry_timeout);
                    for ((index, entry), attr) in numbered(&listing, offset).zip(attrs) {
                        let Some(attr) = attr else { continue };
                        let full = match entry {
                            // The kernel does not count lookups of these two (fs/fuse/readdir.c).
                            Entry::Dot => plus(&mut reply, node, index, ".", &ttl, &attr),
                            Entry::DotDot => plus(&mut reply, overlay.parent_of(node), index, "..", &ttl, &attr),
                            Entry::Name(entry) => {
                                let child = overlay.nodes.remember(node, &entry.name, &attr);
                                let full = plus(&mut reply, child, index, &entry.name, &ttl, &attr);
                                if full {
                                    overlay.nodes.forget(child, 1);
                                }
                                full
                            }
                        };
                        if full {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    /// Attributes of the next entries; `None` for a name that has gone since it was listed.
    fn stat_batch(
        &self,
        context: &Context<'_>,
        node: u64,
        listing: &Listing,
        offset: u64,
    ) -> OpResult<Vec<Option<Attr>>> {
        let (directory, _) = self.nodes.path(node)?;
        let tree = context.generation.tree();
        numbered(listing, offset)
            .take(PLUS_BATCH)
            .map(|(_, entry)| {
                let result = match entry {
                    Entry::Dot | Entry::DotDot => tree.stat(&directory),
                    Entry::Name(entry) => tree.stat(&directory.join(&entry.name)),
                };
                match result {
                    Ok(attr) => Ok(Some(attr)),
                    Err(Errno::ENOENT) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .collect()
    }

    fn parent_of(&self, node: u64) -> u64 {
        self.nodes.names(node).first().map_or(ROOT, |(parent, _)| *parent)
    }

    /// FUSE_RELEASEDIR: needs nobody.
    pub fn releasedir(&self, handle: u64, reply: ReplyEmpty) {
        self.directories.open.write().0.remove(&handle);
        reply.ok();
    }

    /// FUSE_FSYNCDIR.
    pub fn fsyncdir(self: &Arc<Self>, node: u64, reply: ReplyEmpty) {
        self.submit(
            Op::Fsyncdir,
            Class::Sync,
            move |overlay, context| overlay.on_path(context, node, |tree, path| tree.sync_dir(path)),
            |_, result| reply_empty(result, reply),
        );
    }
}

fn plus(
    reply: &mut ReplyDirectoryPlus,
    node: u64,
    index: u64,
    name: impl AsRef<std::ffi::OsStr>,
    ttl: &std::time::Duration,
    attr: &Attr,
) -> bool {
    reply.add(INodeNo(node), index, name, ttl, &file_attr(node, attr), NodeGeneration(0))
}

enum Entry<'a> {
    Dot,
    DotDot,
    Name(&'a DirEntry),
}

/// Entries from `offset` on, each with the offset of the one after it.
fn numbered(listing: &Listing, offset: u64) -> impl Iterator<Item = (u64, Entry<'_>)> {
    let names = listing.iter().map(Entry::Name);
    let all = [Entry::Dot, Entry::DotDot].into_iter().chain(names);
    (1_u64..).zip(all).skip(usize::try_from(offset).unwrap_or(usize::MAX))
}
