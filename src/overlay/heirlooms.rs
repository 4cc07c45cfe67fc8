//! Files that lose their last name while they are open, where a descriptor outlives that: one of each is left with whoever
//! outlives this process, so that a successor can open them again (promise P6).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use parking_lot::Mutex;

use super::Overlay;
use crate::backing::OpResult;
use crate::backing::posix::PosixFile;
use crate::handover::Inherited;

/// Files of one overlay that are left so; those beyond end with the daemon. Programs have a few temporary files each.
const MOST: usize = 512;

/// Keeps descriptors for a successor, by node. Never blocks.
pub trait Trustee: Send + Sync {
    /// Keeps a descriptor of that node's file. It is good for nothing but being opened anew (O_PATH).
    fn keep(&self, node: u64, descriptor: BorrowedFd<'_>);
    /// Nobody has it open any more.
    fn release(&self, node: u64);
}

/// See the module.
#[derive(Default)]
pub(super) struct Heirlooms {
    trustee: OnceLock<Box<dyn Trustee>>,
    left: Mutex<HashMap<u64, Arc<PosixFile>>>,
}

impl Heirlooms {
    /// What is left of a node, to be opened anew.
    pub fn get(&self, node: u64) -> Option<Arc<PosixFile>> {
        self.left.lock().get(&node).cloned()
    }

    /// Nobody has it open any more.
    pub fn release(&self, node: u64) {
        if self.left.lock().remove(&node).is_some()
            && let Some(trustee) = self.trustee.get()
        {
            trustee.release(node);
        }
    }

    /// Goes on with what a predecessor left.
    pub fn resume(&self, inherited: &Inherited) {
        let is_open = |node: u64| inherited.picture.files.values().any(|file| file.node == node);
        for (node, descriptor) in &inherited.nameless {
            match descriptor.try_clone() {
                Ok(descriptor) if is_open(*node) => {
                    self.left.lock().insert(*node, Arc::new(PosixFile::inherited(descriptor)));
                }
                _ => self.trustee.get().into_iter().for_each(|trustee| trustee.release(*node)),
            }
        }
    }
}

impl Overlay {
    /// Has somebody keep what a successor needs of files without a name. To be called once, before [`Overlay::resume`].
    pub fn entrust(&self, trustee: Box<dyn Trustee>) {
        let _ = self.heirlooms.trustee.set(trustee);
    }

    /// To be called when a file has been opened, or has lost a name.
    pub(super) fn leave_if_nameless(&self, node: u64) {
        if self.traits.keeps_unlinked && self.nodes.parent(node).is_none() {
            self.leave(node);
        }
    }

    /// To be called before a file that is open loses a name, which may be its last.
    pub(super) fn leave(&self, node: u64) {
        let Some(trustee) = self.heirlooms.trustee.get() else { return };
        let mut left = self.heirlooms.left.lock();
        if self.nodes.names(node).len() > 1 || left.contains_key(&node) || left.len() >= MOST {
            return;
        }
        let open = self.files.of_node(node).into_iter().find_map(|file| file.any_descriptor());
        let Some(raw) = open.as_ref().and_then(|open| open.as_raw_fd()) else { return };
        match path_descriptor(raw) {
            Ok(descriptor) => {
                trustee.keep(node, descriptor.as_fd());
                left.insert(node, Arc::new(PosixFile::inherited(descriptor)));
            }
            Err(error) => tracing::warn!(error = error.desc(), "a file without a name ends with this daemon"),
        }
    }
}

/// Another descriptor of the same file, which reads and writes nothing.
fn path_descriptor(raw: i32) -> OpResult<OwnedFd> {
    open(format!("/proc/self/fd/{raw}").as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}
