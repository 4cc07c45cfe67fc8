//! Directories, fifos and the like that were removed while the kernel knew them: somebody may have one open, or be in it. On a
//! local filesystem they have attributes all the same, which are kept here until the kernel forgets them. There is nothing in a
//! directory to be listed, and the kernel lets nobody make anything there.

use std::num::NonZeroUsize;
use std::time::SystemTime;

use lru::LruCache;
use parking_lot::Mutex;

use super::Overlay;
use super::ops::attributes::Changes;
use crate::backing::Attr;

/// More are hardly in use at once.
const MOST: NonZeroUsize = NonZeroUsize::new(1024).expect("more than none");

/// By node. See the module.
pub(super) struct Removed(Mutex<LruCache<u64, Attr>>);

impl Default for Removed {
    fn default() -> Removed {
        Removed(Mutex::new(LruCache::new(MOST)))
    }
}

impl Removed {
    /// The attributes of what was removed.
    pub fn attr(&self, node: u64) -> Option<Attr> {
        self.0.lock().peek(&node).copied()
    }

    /// Changes them; false if it is none.
    pub fn change(&self, node: u64, changes: &Changes) -> bool {
        let mut all = self.0.lock();
        let Some(attr) = all.peek_mut(&node) else { return false };
        if let Some(mode) = changes.mode {
            attr.perm = (mode & 0o7777) as u16;
        }
        (attr.uid, attr.gid) = (changes.uid.unwrap_or(attr.uid), changes.gid.unwrap_or(attr.gid));
        true
    }

    /// The kernel has forgotten a node.
    pub fn forget(&self, node: u64) {
        self.0.lock().pop(&node);
    }
}

impl Overlay {
    /// To be called when something with these attributes was removed.
    pub(super) fn has_removed(&self, node: u64, attr: &Attr) {
        self.removed.0.lock().put(node, Attr { nlink: 0, size: 0, ctime: SystemTime::now(), ..*attr });
        // The kernel may have forgotten it meanwhile.
        if !self.nodes.is_looked_up(node) {
            self.removed.forget(node);
        }
    }
}
