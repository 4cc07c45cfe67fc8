//! Descriptors of the backing are fewer than open files may be: those that nobody has used for a while are closed, and opened
//! again when they are used. The limit of descriptors (RLIMIT_NOFILE) is the daemon's, that of open files the callers'.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use lru::LruCache;
use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;

use super::Overlay;
use super::files::OpenFile;

/// Descriptors of open files in this process, of all overlays; one that is shared by several handles counts for each.
static WARM: AtomicUsize = AtomicUsize::new(0);
/// Of the process's descriptors, one in so many may be an open file's. The rest is for paths that are being walked, for what
/// is closed a moment later than its successor is opened, and for everybody else in the daemon.
const SHARE: usize = 2;
/// An overlay keeps so many, whatever the others have.
const FEW: usize = 32;
/// Files that are looked at before one more than there should be is put up with.
const LOOKS: usize = 64;

/// One more descriptor of an open file, until it is dropped.
#[derive(Debug)]
pub struct Counted(());

impl Counted {
    pub fn new() -> Counted {
        WARM.fetch_add(1, Relaxed);
        Counted(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        WARM.fetch_sub(1, Relaxed);
    }
}

/// Handles of open files that have a descriptor, those first that have had it for longest.
#[derive(Debug)]
pub struct Warm(Mutex<LruCache<u64, ()>>);

impl Default for Warm {
    fn default() -> Warm {
        Warm(Mutex::new(LruCache::unbounded()))
    }
}

impl Warm {
    /// A file has got a descriptor.
    pub fn add(&self, handle: u64) {
        self.0.lock().put(handle, ());
    }

    /// A file has none any more.
    pub fn remove(&self, handle: u64) {
        self.0.lock().pop(&handle);
    }

    /// True if there are as many descriptors as there should be.
    pub fn is_full(&self) -> bool {
        WARM.load(Relaxed) >= most() && self.0.lock().len() > FEW
    }
}

/// Most descriptors of open files.
fn most() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        usize::try_from(limit).unwrap_or(usize::MAX) / SHARE
    })
}

impl Overlay {
    /// Closes descriptors that nobody needs at the moment, if there are too many. Never waits for a server.
    pub(super) fn cool(&self) {
        for _ in 0..LOOKS {
            if !self.files.warm.is_full() {
                return;
            }
            let Some((handle, ())) = self.files.warm.0.lock().pop_lru() else { return };
            let Some(file) = self.files.get(handle).ok().filter(|file| file.is_warm()) else { continue };
            if !self.cools(&file) {
                self.files.warm.add(handle);
            }
        }
    }

    /// Closes a file's descriptor, if it can be opened again and nothing depends on its being this one.
    fn cools(&self, file: &OpenFile) -> bool {
        // Whoever changes the file holds the order until the change is in the log.
        let Some(_order) = file.inode.order_now() else { return false };
        if file.was_used() || file.inode.is_pinned() || self.nodes.parent(file.node).is_none() {
            return false;
        }
        // Here an fsync by any descriptor commits what was written by another; and numbers tell whether it is the same file.
        if self.traits.stable_inodes {
            file.generation().into_iter().for_each(|generation| file.inode.verified(generation));
        } else if !file.inode.is_clean() {
            return false;
        } else {
            // Only its content tells whether what is opened next is this file.
            file.inode.verified(0);
        }
        if self.traits.stable_inodes {
            // Done when the next is opened: closers may be behind.
            file.inode.close_here();
            file.close_here();
        } else {
            file.inode.cool();
            file.cool();
        }
        true
    }
}
