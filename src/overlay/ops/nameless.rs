//! Calls on a node that may have lost its name while it is open: the kernel sends fchmod(2), fchown(2), futimens(3) and
//! fsetxattr(2) without the handle they were made on.

use std::path::Path;

use nix::errno::Errno;

use crate::backing::posix::Nameless;
use crate::backing::{File, OpResult, Tree};
use crate::gate::Context;
use crate::overlay::Overlay;
use crate::overlay::files::LOST_FILE;

impl Overlay {
    /// As [`Overlay::on_path`]; a file without a path is reached by any descriptor that is open on it.
    pub(super) fn on_node<T>(
        &self,
        context: &Context<'_>,
        node: u64,
        by_path: impl Fn(&dyn Tree, &Path) -> OpResult<T>,
        by_descriptor: impl Fn(&Nameless<'_>) -> OpResult<T>,
    ) -> OpResult<T> {
        let result = self.on_path(context, node, by_path);
        if !matches!(result, Err(Errno::ENOENT)) {
            return result;
        }
        if let Some(file) = self.files.of_node(node).into_iter().next() {
            let descriptor = self.descriptor(&**context.generation, &file)?;
            return Nameless::of(&**descriptor)?.map_or(result, |file| by_descriptor(&file));
        }
        match self.replaced_file(context, node) {
            Ok(kept) => Nameless::of(&*kept)?.map_or(result, |file| by_descriptor(&file)),
            Err(_) => result,
        }
    }

    /// Opens a file without a path, by any descriptor that is open on it. ENOENT if there is none.
    pub(super) fn open_nameless(&self, context: &Context<'_>, node: u64, flags: i32) -> OpResult<Box<dyn File>> {
        match self.reopen_nameless(&**context.generation, node, flags) {
            Err(LOST_FILE) => context.generation.tree().open_again(&*self.replaced_file(context, node)?, flags),
            result => result,
        }
    }
}
