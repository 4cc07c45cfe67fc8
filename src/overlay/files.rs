//! Open files: a handle of the kernel's and the backing's descriptor of the present generation behind it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};

use super::Overlay;
use super::closer::Descriptor;
use super::inodes::{Inode, Writer};
use super::warm::{Counted, Warm};
use crate::backing::{File, Generation, OpResult};
use crate::gate::policy::raises_doubt;
use crate::handover::{Item, Notes};

/// What a call on a file that a repair did not find again fails with, inside; callers are told EIO. Any errno a backing
/// may give would be taken for evidence against it, or for an answer.
pub const LOST_FILE: Errno = Errno::EBADFD;

/// Flags that only make sense at the first open; reopening with them would destroy or refuse.
const FIRST_OPEN_ONLY: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;
/// Flags that never go to the backing: the kernel gives offsets to appenders, and O_DIRECT's alignment ends here.
const OURS: i32 = libc::O_APPEND | libc::O_DIRECT | libc::O_NOFOLLOW;

/// The flags for the first open of a handle.
pub fn first_flags(flags: i32) -> i32 {
    flags & !OURS
}

#[derive(Default)]
struct Slot {
    generation: u64,
    descriptor: Option<Arc<Descriptor>>,
    /// Held for as long as the descriptor is.
    _counted: Option<Counted>,
}

impl Slot {
    fn new(generation: u64, descriptor: Arc<Descriptor>) -> Slot {
        Slot { generation, descriptor: Some(descriptor), _counted: Some(Counted::new()) }
    }

    /// The descriptor of that generation, if there is one; an error for a straggler of an earlier one.
    fn of(&self, generation: u64) -> OpResult<Option<Arc<Descriptor>>> {
        match &self.descriptor {
            Some(descriptor) if self.generation == generation => Ok(Some(Arc::clone(descriptor))),
            // The gate runs it again in the live generation.
            Some(_) if self.generation > generation => Err(Errno::ENOTCONN),
            _ => Ok(None),
        }
    }
}

/// One open file.
pub struct OpenFile {
    /// Its node.
    pub node: u64,
    /// What it shares with the other handles of the file.
    pub inode: Arc<Inode>,
    flags: i32,
    /// Given by [`Files::insert`].
    handle: u64,
    slot: Mutex<Slot>,
    /// Somebody has used its descriptor since this was looked at.
    used: AtomicBool,
    /// Failed commits that its holder knows of.
    told: AtomicU64,
}

impl OpenFile {
    /// A handle whose descriptor was opened in that generation.
    pub fn new(inode: Arc<Inode>, flags: i32, generation: u64, file: Box<dyn File>) -> OpenFile {
        let descriptor = Arc::new(Descriptor::new(file));
        let file = OpenFile {
            node: inode.node,
            flags,
            handle: 0,
            slot: Mutex::new(Slot::new(generation, Arc::clone(&descriptor))),
            used: AtomicBool::new(true),
            told: AtomicU64::new(inode.errors().0),
            inode,
        };
        if file.writes() && file.shares() {
            file.inode.offer_writer(Writer { generation, reads: file.reads(), descriptor });
        }
        file
    }

    /// A handle of a predecessor's, which knew of so many failed commits.
    fn resumed(inode: Arc<Inode>, handle: u64, flags: i32, told: u64) -> OpenFile {
        let (slot, used) = (Mutex::default(), AtomicBool::new(false));
        OpenFile { node: inode.node, flags, handle, slot, used, told: AtomicU64::new(told), inode }
    }

    /// The handle.
    pub fn handle(&self) -> u64 {
        self.handle
    }

    fn reads(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    fn writes(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// It may use the descriptor that the file is written through: reading from that one moves the time of access.
    fn shares(&self) -> bool {
        !(self.reads() && self.flags & libc::O_NOATIME != 0)
    }

    /// Every write is to be committed before it is acknowledged (O_SYNC, O_DSYNC).
    pub fn is_synchronous(&self) -> bool {
        self.flags & (libc::O_SYNC | libc::O_DSYNC) != 0
    }

    /// The error of a failed commit that its holder has not been told of. `told` says that it is told now.
    pub fn untold_error(&self, told: bool) -> Option<Errno> {
        let (count, error) = self.inode.errors();
        let untold = self.writes() && count > self.told.load(Relaxed);
        if untold && told {
            self.told.store(count, Relaxed);
        }
        untold.then_some(error)
    }

    /// True if it has a descriptor, of whichever generation.
    pub fn is_warm(&self) -> bool {
        self.slot.lock().descriptor.is_some()
    }

    /// The generation that its descriptor is of, if it has one.
    pub fn generation(&self) -> Option<u64> {
        let slot = self.slot.lock();
        slot.descriptor.is_some().then_some(slot.generation)
    }

    /// True if somebody has used its descriptor since this was asked last.
    pub fn was_used(&self) -> bool {
        self.used.swap(false, Relaxed)
    }

    /// Lets its descriptor go; the next call opens the file again.
    pub fn cool(&self) {
        drop(std::mem::take(&mut *self.slot.lock()));
    }

    /// Its descriptor, of whichever generation.
    pub fn any_descriptor(&self) -> Option<Arc<Descriptor>> {
        self.slot.lock().descriptor.clone()
    }

    /// Closes the descriptor in this thread, so that the next call opens the file under its present name.
    pub fn reopen_later(&self) {
        self.inode.reopen_later();
        self.close_here();
    }

    /// Closes the descriptor in this thread, unless somebody still uses it: then that one's end does.
    pub fn close_here(&self) {
        let slot = std::mem::take(&mut *self.slot.lock());
        if let Some(descriptor) = slot.descriptor.and_then(Arc::into_inner) {
            descriptor.close_here();
        }
    }
}

impl Overlay {
    /// The descriptor of a file in that generation; opened now if it has not been yet. The same way serves the repair,
    /// which asks for all of them before the gate opens, and calls that come before their turn.
    pub(super) fn descriptor(&self, generation: &dyn Generation, file: &OpenFile) -> OpResult<Arc<Descriptor>> {
        let number = generation.number();
        file.used.store(true, Relaxed);
        if file.inode.is_lost() {
            return Err(LOST_FILE);
        }
        if let Some(descriptor) = file.slot.lock().of(number)? {
            return Ok(descriptor);
        }
        // No lock is held meanwhile: a thread that is stuck in a dead generation must not keep the others out.
        let opened = self.open_again(generation, file)?;
        let mut slot = file.slot.lock();
        if let Some(descriptor) = slot.of(number)? {
            return Ok(descriptor);
        }
        let had = std::mem::replace(&mut *slot, Slot::new(number, Arc::clone(&opened)));
        drop(slot);
        if had.descriptor.is_none() {
            self.files.warm.add(file.handle);
            self.cool();
        }
        Ok(opened)
    }

    /// The descriptor that a file is written through becomes that of a handle which has none, so that it counts.
    pub(super) fn counts_as_open(&self, node: u64, writer: &Writer) {
        let fits = |file: &OpenFile| file.shares() && (writer.reads || !file.reads());
        let may = |file: &Arc<OpenFile>| file.writes() && fits(file) && !file.is_warm();
        let Some(file) = self.files.of_node(node).into_iter().find(may) else { return };
        let mut slot = file.slot.lock();
        if slot.descriptor.is_none() {
            *slot = Slot::new(writer.generation, Arc::clone(&writer.descriptor));
            drop(slot);
            self.files.warm.add(file.handle);
            self.cool();
        }
    }

    fn open_again(&self, generation: &dyn Generation, file: &OpenFile) -> OpResult<Arc<Descriptor>> {
        let mut flags = first_flags(file.flags) & !FIRST_OPEN_ONLY;
        if file.writes() && file.shares() {
            match self.writer(generation, &file.inode) {
                Ok(writer) if writer.reads || !file.reads() => return Ok(writer.descriptor),
                Ok(_) => {}
                // A store that has become read-only can be read, where nothing would have to be written first.
                Err(error) if file.reads() && file.inode.is_clean() && !raises_doubt(error) && error != LOST_FILE => {
                    flags = flags & !libc::O_ACCMODE | libc::O_RDONLY;
                }
                Err(error) => return Err(error),
            }
        }
        let opened = self.reopen(generation, file.node, flags)?;
        let descriptor = Arc::new(Descriptor::new(opened));
        self.verify_or_lose(generation, &file.inode, &**descriptor, file.reads())?;
        Ok(descriptor)
    }
}

/// All open files by handle.
pub struct Files {
    open: RwLock<Open>,
    /// Those that have a descriptor.
    pub(super) warm: Warm,
    notes: Notes,
}

#[derive(Default)]
struct Open {
    by_handle: HashMap<u64, Arc<OpenFile>>,
    /// Handles by node.
    by_node: HashMap<u64, Vec<u64>>,
    /// The handle that was given out last.
    last: u64,
}

impl Open {
    fn insert(&mut self, file: Arc<OpenFile>) {
        self.by_node.entry(file.node).or_default().push(file.handle);
        self.by_handle.insert(file.handle, file);
    }
}

impl Files {
    /// None yet. What a successor has to know is noted.
    pub fn new(notes: Notes) -> Files {
        Files { open: RwLock::default(), warm: Warm::default(), notes }
    }

    /// Adds one, for the request `by`, and returns its handle.
    pub fn insert(&self, mut file: OpenFile, by: u64) -> u64 {
        let mut open = self.open.write();
        open.last += 1;
        let handle = open.last;
        file.handle = handle;
        let (node, flags, told) = (file.node, file.flags, file.told.load(Relaxed));
        self.notes.note(&Item::Opened { handle, node, flags, told, by });
        let file = Arc::new(file);
        self.warm.add(handle);
        open.insert(file);
        handle
    }

    /// Goes on with a handle of a predecessor's. Its descriptor is opened like any other in a new generation.
    pub fn resume(&self, handle: u64, flags: i32, told: u64, inode: Arc<Inode>) {
        let mut open = self.open.write();
        open.last = open.last.max(handle);
        open.insert(Arc::new(OpenFile::resumed(inode, handle, flags, told)));
    }

    /// No handle up to that one is given out again.
    pub fn resume_after(&self, handle: u64) {
        let mut open = self.open.write();
        open.last = open.last.max(handle);
    }

    /// To be called after the answer that told a holder of failed commits: told twice is better than never.
    pub fn has_been_told(&self, file: &OpenFile) {
        self.notes.note(&Item::Told { handle: file.handle, count: file.told.load(Relaxed) });
    }

    /// The file behind a handle. One that nobody knows was a predecessor's.
    pub fn get(&self, handle: u64) -> OpResult<Arc<OpenFile>> {
        self.open.read().by_handle.get(&handle).cloned().ok_or(LOST_FILE)
    }

    /// Takes one out.
    pub fn remove(&self, handle: u64) -> Option<Arc<OpenFile>> {
        let mut open = self.open.write();
        let removed = open.by_handle.remove(&handle);
        if let Some(file) = &removed {
            self.warm.remove(handle);
            if let Some(handles) = open.by_node.get_mut(&file.node) {
                handles.retain(|other| *other != handle);
                if handles.is_empty() {
                    open.by_node.remove(&file.node);
                }
            }
            self.notes.note(&Item::Closed { handle });
        }
        removed
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<OpenFile>> {
        self.open.read().by_handle.values().cloned().collect()
    }

    /// Those open on that node.
    pub fn of_node(&self, node: u64) -> Vec<Arc<OpenFile>> {
        let open = self.open.read();
        let handles = open.by_node.get(&node).into_iter().flatten();
        handles.filter_map(|handle| open.by_handle.get(handle)).cloned().collect()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.open.read().by_handle.len()
    }
}

/// What came of reopening files in a new generation.
#[derive(Debug, Default)]
pub struct RestoreReport {
    /// Files whose uncommitted changes were sent again and committed.
    pub replayed: usize,
    /// Files that are open again.
    pub reopened: usize,
    /// Files that could not be opened, with the reason.
    pub failed: Vec<(PathBuf, Errno)>,
    /// Files that time was too short for; they are opened when they are used.
    pub left: usize,
}
