//! Removing hidden files that nobody has open: what an outage kept from being removed at the last close, and what a
//! steadfs that was killed left behind (promise P4). A thread of its own does it, so that no call waits for it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

use super::commit::is_refused;
use super::nodes::Name;
use super::{Overlay, is_hidden};
use crate::backing::{Generation, OpResult};
use crate::gate::policy::raises_doubt;

/// Stack of that thread in bytes; the deepest call chain is a path walk.
const STACK: usize = 512 << 10;

impl Overlay {
    /// Keeps the journal of hidden names in `directory`, which is this overlay's alone, and removes from the backing of
    /// that label what an earlier process left behind there, in the next generation, unless it is open. To be called before
    /// that starts.
    pub fn keep_hidden_journal(&self, directory: &Path, backing: &str) {
        let mut open = self.names_of_open_files();
        // One that a predecessor died over giving to an open file may be there: the first repair looks, see `settle_renames`.
        let given = self.nodes.doubtful_renames().into_iter().map(|(_, to)| to).filter(|to| is_hidden(&to.1));
        let given: Vec<Name> = given.collect();
        open.extend(given.iter().map(|(_, name)| name.clone()));
        *self.given.lock() = given;
        let left = self.hidden_journal.keep_in(directory, backing, |name| open.contains(name));
        if left > 0 {
            tracing::info!(places = left, "hidden files of an earlier steadfs are to be removed");
        }
    }

    /// It is known by now which hidden names a predecessor gave to open files. The others are of nobody: whoever asked for
    /// them asks this daemon, which chooses names of its own.
    pub(super) fn doom_ungiven(&self) {
        for (parent, name) in self.given.lock().drain(..) {
            if self.nodes.open_node(parent, &name).is_none() {
                self.hidden_journal.doom(&name);
            }
        }
    }

    /// Removes in the background what is to be removed, as long as that generation lives. What cannot be is tried again
    /// after the next repair.
    pub(super) fn sweep_hidden(self: &Arc<Self>, generation: &Arc<dyn Generation>) {
        let doomed = self.hidden_journal.doomed();
        if doomed.is_empty() {
            return;
        }
        let (overlay, generation) = (Arc::clone(self), Arc::clone(generation));
        let sweep = move || _ = doomed.iter().try_for_each(|path| overlay.remove_doomed(&*generation, path));
        // One that gets stuck is freed when the generation is aborted.
        let thread = std::thread::Builder::new().name("sweep".into()).stack_size(STACK);
        if let Err(error) = thread.spawn(sweep) {
            tracing::warn!(%error, "cannot start a thread to remove hidden files");
        }
    }

    fn names_of_open_files(&self) -> HashSet<OsString> {
        let names = self.files.all().into_iter().flat_map(|file| self.nodes.names(file.node));
        names.map(|(_, name)| name).collect()
    }

    /// An error says that the generation is of no use any more.
    fn remove_doomed(&self, generation: &dyn Generation, path: &Path) -> OpResult<()> {
        // Of a call that failed it may be what an open file goes on under: its last close removes it.
        if self.nodes.is_open_at(path) {
            return Ok(());
        }
        match generation.tree().unlink(path) {
            Ok(()) => self.hidden_journal.removed(path.file_name().unwrap_or_default()),
            // It is not there, or something else is: no name of ours is a directory.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EISDIR | Errno::ELOOP) => self.hidden_journal.strike(path),
            Err(error) if raises_doubt(error) && !is_refused(generation, error) => return Err(error),
            Err(error) => tracing::warn!(path = %path.display(), %error, "a hidden file is left on the backing"),
        }
        Ok(())
    }
}
