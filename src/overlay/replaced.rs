//! Files that lost their last name while the kernel knew them, by an unlink or because something was renamed over them. Somebody
//! may be about to open one: he has looked its name up, and on a local filesystem he gets that file, whatever has the name by
//! now. The kernel repeats such an open only once (do_filp_open of its fs/namei.c), which a name that is replaced again and
//! again defeats. Or he has a descriptor by O_PATH, of which we are not told. So a descriptor of each is kept until the
//! kernel forgets it, which it does at once if nobody wants it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use parking_lot::Mutex;

use super::Overlay;
use super::asked::Asked;
use super::nodes::Name;
use crate::backing::{File, FileKind, OpResult, Tree};
use crate::gate::{Class, Context, Op};

/// More are not on their way to being opened at once.
const MOST: usize = 256;

/// A file, and the generation that it belongs to.
#[derive(Clone)]
pub(super) struct Kept {
    generation: u64,
    file: Arc<dyn File>,
}

/// By node. See the module.
#[derive(Default)]
pub(super) struct Replaced(Mutex<BTreeMap<u64, Kept>>);

impl Replaced {
    fn take(&self, node: u64) -> Option<Kept> {
        self.0.lock().remove(&node)
    }

    /// Keeps one more; gives back what is not kept any longer.
    fn keep(&self, node: u64, kept: Kept) -> Option<Kept> {
        let mut all = self.0.lock();
        let former = all.insert(node, kept);
        // Node ids only grow: the lowest is the oldest.
        let oldest = if all.len() > MOST { all.pop_first() } else { None };
        former.or(oldest.map(|(_, kept)| kept))
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
    ) -> Option<(u64, Kept)> {
        let node = self.nodes.node(to.0, &to.1).filter(|_| self.traits.keeps_unlinked)?;
        if self.nodes.kind(node) != Some(FileKind::Regular) || self.nodes.names(node).len() > 1 {
            return None;
        }
        let file = tree.open(path, libc::O_RDONLY).ok()?;
        Some((node, Kept { generation: context.generation.number(), file: file.into() }))
    }

    /// To be called when it has lost the name.
    pub(super) fn has_lost(&self, (node, kept): (u64, Kept)) {
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
        let kept = self.replaced.0.lock().get(&node).cloned();
        let kept = kept.filter(|kept| kept.generation == context.generation.number()).ok_or(Errno::ENOENT)?;
        Ok(kept.file)
    }
}
