//! Directories that were removed while the kernel knew them: somebody may have one open, or be in it. On a local filesystem they
//! have attributes all the same, which are kept here until the kernel forgets them. There is nothing in them to be listed,
//! and the kernel lets nobody make anything there.

use std::time::SystemTime;

use parking_lot::Mutex;

use super::Overlay;
use super::ops::attributes::Changes;
use super::recent::Recent;
use crate::backing::Attr;

/// More are hardly in use at once.
const MOST: usize = 1024;

/// By node. See the module.
pub(super) struct Removed(Mutex<Recent<Attr>>);

impl Default for Removed {
    fn default() -> Removed {
        Removed(Mutex::new(Recent::new(MOST)))
    }
}

impl Removed {
    /// The attributes of a directory that was removed.
    pub fn attr(&self, node: u64) -> Option<Attr> {
        self.0.lock().get(node).copied()
    }

    /// Changes them; false if it is none.
    pub fn change(&self, node: u64, changes: &Changes) -> bool {
        let mut all = self.0.lock();
        let Some(attr) = all.get_mut(node) else { return false };
        if let Some(mode) = changes.mode {
            attr.perm = (mode & 0o7777) as u16;
        }
        (attr.uid, attr.gid) = (changes.uid.unwrap_or(attr.uid), changes.gid.unwrap_or(attr.gid));
        true
    }

    /// The kernel has forgotten a node.
    pub fn forget(&self, node: u64) {
        self.0.lock().take(node);
    }
}

impl Overlay {
    /// To be called when a directory with these attributes was removed.
    pub(super) fn has_removed(&self, node: u64, attr: &Attr) {
        self.removed.0.lock().keep(node, Attr { nlink: 0, size: 0, ctime: SystemTime::now(), ..*attr });
        // The kernel may have forgotten it meanwhile.
        if !self.nodes.is_looked_up(node) {
            self.removed.forget(node);
        }
    }
}
