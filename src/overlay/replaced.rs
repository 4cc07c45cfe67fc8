//! Files that lost their last name while the kernel knew them, by an unlink or because something was renamed over them. Somebody
//! may be about to open one: he has looked its name up, and on a local filesystem he gets that file, whatever has the name by
//! now. The kernel repeats such an open only once (do_filp_open of its fs/namei.c), which a name that is replaced again and
//! again defeats. Or he has a descriptor by O_PATH, of which we are not told. So a descriptor of each is kept until the
//! kernel forgets it, which it does at once if nobody wants it.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use lru::LruCache;
use nix::errno::Errno;
use parking_lot::Mutex;

use super::Overlay;
use super::asked::Asked;
use super::nodes::{Held, Name};
use super::warm::Counted;
use crate::backing::{Attr, File, FileKind, OpResult, Tree};
use crate::gate::{Class, Context, Op};

/// More are not on their way to being opened at once.
const MOST: NonZeroUsize = NonZeroUsize::new(256).expect("more than none");

/// A file, and the generation that it belongs to.
#[derive(Clone)]
pub(super) struct Kept {
    generation: u64,
    file: Arc<dyn File>,
    /// It is one more descriptor, for which others make room.
    _counted: Arc<Counted>,
}

/// What is kept of what loses its last name.
pub(super) enum Lost {
    /// A regular file: a descriptor.
    File(Kept),
    /// A fifo, socket, device or link: its attributes.
    Special(Attr),
}

/// By node. See the module.
pub(super) struct Replaced(Mutex<LruCache<u64, Kept>>);

impl Default for Replaced {
    fn default() -> Replaced {
        Replaced(Mutex::new(LruCache::new(MOST)))
    }
}

impl Replaced {
    fn take(&self, node: u64) -> Option<Kept> {
        self.0.lock().pop(&node)
    }

    /// Keeps one more; gives back what is not kept any longer.
    fn keep(&self, node: u64, kept: Kept) -> Option<Kept> {
        self.0.lock().push(node, kept).map(|(_, kept)| kept)
    }
}

impl Overlay {
    /// To be called before `to` is removed or something is renamed to it: opens what is there, where a descriptor outlives its
    /// name and nothing else keeps the file.
    pub(super) fn about_to_lose(
        &self,
        context: &Context<'_>,
        tree: &dyn Tree,
        to: &Name,
        path: &Path,
    ) -> Option<(Held<'_>, Lost)> {
        let held = self.traits.keeps_unlinked.then(|| self.nodes.hold_named(to.0, &to.1)).flatten()?;
        let node = held.node;
        let kind = self.nodes.kind(node)?;
        if kind == FileKind::Directory || self.nodes.names(node).len() > 1 {
            return None;
        }
        if kind != FileKind::Regular {
            // Opened, it is the kernel's matter and not ours: its attributes are all that we are asked for.
            return Some((held, Lost::Special(tree.stat(path).ok()?)));
        }
        self.cool();
        let file: Arc<dyn File> = match self.heirlooms.get(node) {
            // One that is open has another descriptor already.
            Some(left) => left,
            None => tree.open(path, libc::O_RDONLY).ok()?.into(),
        };
        if !self.nodes.may_be(node, file.stat().ok()?.identity) {
            return None;
        }
        let (generation, counted) = (context.generation.number(), Arc::new(Counted::new()));
        Some((held, Lost::File(Kept { generation, file, _counted: counted })))
    }

    /// To be called when it has lost the name.
    pub(super) fn has_lost(&self, (held, lost): (Held<'_>, Lost)) {
        let node = held.node;
        let kept = match lost {
            Lost::File(kept) => kept,
            Lost::Special(attr) => return self.has_removed(node, &attr),
        };
        // Somebody may have opened it meanwhile.
        self.leave_if_nameless(node);
        drop(self.replaced.keep(node, kept));
        // The kernel may have forgotten it meanwhile.
        if !self.nodes.is_looked_up(node) {
            drop(self.replaced.take(node));
        }
    }

    /// The kernel has forgotten a node.
    pub(super) fn forget_nameless(self: &Arc<Self>, node: u64) {
        if self.nodes.is_looked_up(node) {
            return;
        }
        self.removed.forget(node);
        if let Some(kept) = self.replaced.take(node) {
            // Closing may block.
            self.submit(Asked::internal(), Op::Release, Class::Sync, move |_, _| Ok(()), move |_, _| drop(kept));
        }
    }

    /// A file that has lost its last name. ENOENT if it is none.
    pub(super) fn replaced_file(&self, context: &Context<'_>, node: u64) -> OpResult<Arc<dyn File>> {
        let kept = self.replaced.0.lock().peek(&node).cloned();
        let kept = kept.filter(|kept| kept.generation == context.generation.number()).ok_or(Errno::ENOENT)?;
        Ok(kept.file)
    }
}
