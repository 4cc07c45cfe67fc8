//! Open files: a handle of the kernel's and the backing's descriptor of the present generation behind it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};

use super::closer::Descriptor;
use super::nodes::Nodes;
use super::unsynced::Unsynced;
use crate::backing::{File, Generation, OpResult};

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
}

impl Slot {
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
    flags: i32,
    slot: Mutex<Slot>,
    /// What is not committed.
    pub unsynced: Mutex<Unsynced>,
}

impl OpenFile {
    /// A handle whose descriptor was opened in that generation.
    pub fn new(node: u64, flags: i32, generation: u64, file: Box<dyn File>) -> OpenFile {
        let slot = Slot { generation, descriptor: Some(Arc::new(Descriptor::new(file))) };
        OpenFile { node, flags, slot: Mutex::new(slot), unsynced: Mutex::default() }
    }

    /// The descriptor in that generation; opened now if it has not been yet. The same way serves the repair, which asks
    /// for all of them before the gate opens, and calls that come before their turn.
    pub fn in_generation(&self, nodes: &Nodes, generation: &dyn Generation) -> OpResult<Arc<Descriptor>> {
        let number = generation.number();
        if let Some(descriptor) = self.slot.lock().of(number)? {
            return Ok(descriptor);
        }
        // No lock is held meanwhile: a thread that is stuck in a dead generation must not keep the others out.
        let opened = Arc::new(Descriptor::new(self.reopen(nodes, generation)?));
        let mut slot = self.slot.lock();
        if let Some(descriptor) = slot.of(number)? {
            return Ok(descriptor);
        }
        *slot = Slot { generation: number, descriptor: Some(Arc::clone(&opened)) };
        Ok(opened)
    }

    fn reopen(&self, nodes: &Nodes, generation: &dyn Generation) -> OpResult<Box<dyn File>> {
        let flags = first_flags(self.flags) & !FIRST_OPEN_ONLY;
        let mut tried = None;
        loop {
            // A file without a name is lost, and so is one that is not where its name leads, unless it was just renamed.
            let (path, stamp) = nodes.path(self.node).map_err(|_| LOST_FILE)?;
            if tried.as_ref() == Some(&path) {
                return Err(LOST_FILE);
            }
            match generation.tree().open(&path, flags) {
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EISDIR | Errno::ELOOP | Errno::ENXIO) => {
                    nodes.not_found_at(self.node, &path, stamp);
                    tried = Some(path);
                }
                result => return result,
            }
        }
    }

    /// Gives the descriptor up, so that the next call opens the file under its present name.
    pub fn reopen_later(&self) {
        *self.slot.lock() = Slot::default();
    }

    /// Closes the descriptor in this thread, unless a call still uses it: then that call's end does.
    pub fn close_here(&self) {
        let slot = std::mem::take(&mut *self.slot.lock());
        if let Some(descriptor) = slot.descriptor.and_then(Arc::into_inner) {
            descriptor.close_here();
        }
    }
}

/// All open files by handle.
#[derive(Default)]
pub struct Files {
    open: RwLock<(HashMap<u64, Arc<OpenFile>>, u64)>,
}

impl Files {
    /// Adds one and returns its handle.
    pub fn insert(&self, file: OpenFile) -> u64 {
        let mut open = self.open.write();
        open.1 += 1;
        let handle = open.1;
        open.0.insert(handle, Arc::new(file));
        handle
    }

    /// The file behind a handle.
    pub fn get(&self, handle: u64) -> OpResult<Arc<OpenFile>> {
        self.open.read().0.get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// Takes one out.
    pub fn remove(&self, handle: u64) -> Option<Arc<OpenFile>> {
        self.open.write().0.remove(&handle)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<OpenFile>> {
        self.open.read().0.values().cloned().collect()
    }

    /// Those open on that node.
    pub fn of_node(&self, node: u64) -> Vec<Arc<OpenFile>> {
        self.open.read().0.values().filter(|file| file.node == node).cloned().collect()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.open.read().0.len()
    }
}

/// What came of reopening files in a new generation.
#[derive(Debug, Default)]
pub struct RestoreReport {
    /// Files that are open again.
    pub reopened: usize,
    /// Files that could not be opened, with the reason.
    pub failed: Vec<(PathBuf, Errno)>,
    /// Files that time was too short for; they are opened when they are used.
    pub left: usize,
}
