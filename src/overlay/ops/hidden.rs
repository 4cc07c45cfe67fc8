//! Hidden names: files that lose their last name while they are open, on a backing whose descriptors do not survive that.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::backing::{OpResult, Tree};
use crate::gate::Context;
use crate::gate::policy::raises_doubt;
use crate::overlay::files::LOST_FILE;
use crate::overlay::nodes::{Name, Stamp};
use crate::overlay::{LIBFUSE_HIDDEN, Overlay, settle};

/// How long a file that is being closed may take to be so before its name is taken away all the same.
const CLOSING: Duration = Duration::from_millis(250);
/// Between two attempts to empty a directory.
const LONGEST_PAUSE: Duration = Duration::from_millis(32);

/// What a directory held that was not empty for the backing.
#[derive(PartialEq, Eq)]
enum Inside {
    /// Something that stays.
    Others,
    /// What looks like a hidden file of another overlay, or was one of ours that has just been removed.
    Foreign(PathBuf),
    /// Nothing at all: what was hidden there has gone meanwhile, with a last close.
    Nothing,
    /// Hidden files, which are gone now or may be in a moment.
    Hidden,
}

impl Overlay {
    /// Waits for the end of a close that is under way: sshfs would take the file for open and hide it in its own way
    /// (`.fuse_hidden…`), and nobody would remove that if it died before the close.
    pub(super) fn let_close(&self, context: &Context<'_>, parent: u64, name: &OsStr) {
        let until = context.deadline.min(Instant::now() + CLOSING);
        while !self.traits.keeps_unlinked && self.nodes.is_closing(parent, name) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What sshfs says when it cannot hide a file in its own way, which is because it is dying: to be judged like any
    /// error of a lost link. No server can say EBUSY.
    pub(super) fn not_busy(&self, result: OpResult<()>) -> OpResult<()> {
        result.map_err(|error| if error == Errno::EBUSY && !self.traits.keeps_unlinked { Errno::EIO } else { error })
    }

    /// Does what needs an empty directory although there are hidden files in it. What is removed a moment after its last close
    /// sshfs may take for open still and hide in its own way, so for a moment this is tried again and again.
    pub(super) fn emptied(
        &self,
        tree: &dyn Tree,
        (parent, name): (u64, &OsStr),
        path: &Path,
        go: impl Fn() -> OpResult<()>,
    ) -> OpResult<()> {
        let until = Instant::now() + CLOSING;
        let mut pauses = [0, 0, 1, 2, 4, 8, 16].map(Duration::from_millis).into_iter();
        let mut was = None;
        loop {
            // Before the attempt: a look takes as long as the removal that it waits behind, and what it finds is tried once more.
            let is_last = Instant::now() > until;
            let result = go();
            // SFTP has no word for ENOTEMPTY: sshfs makes EPERM of the server's general failure.
            let Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EPERM | Errno::EACCES) = result else { return result };
            let inside = self.clear_hidden(tree, parent, name, path)?;
            // Hidden files go with last closes: what one look has seen may have gone since.
            let stays = match &inside {
                Inside::Others => true,
                Inside::Hidden => false,
                Inside::Nothing | Inside::Foreign(_) => was.as_ref() == Some(&inside),
            };
            if stays || is_last {
                if let Inside::Foreign(place) = inside {
                    let (path, place) = (path.display(), place.display());
                    self.tell(format!("{path} is not empty: {place} is a hidden file of another overlay"));
                }
                return result;
            }
            was = Some(inside);
            std::thread::sleep(pauses.next().unwrap_or(LONGEST_PAUSE));
        }
    }

    /// Makes a directory that only holds hidden files really empty: those that are open move up to its parent, others of
    /// ours and those that libfuse left behind are removed. A name that another overlay made is not touched: somebody may
    /// have that file open.
    fn clear_hidden(&self, tree: &dyn Tree, parent: u64, name: &OsStr, path: &Path) -> OpResult<Inside> {
        let entries = match tree.read_dir(path) {
            Err(error) if raises_doubt(error) => return Err(error),
            Err(_) => return Ok(Inside::Others),
            Ok(entries) => entries,
        };
        if entries.is_empty() {
            return Ok(Inside::Nothing);
        }
        if !entries.iter().all(|entry| self.hides(&entry.name)) {
            return Ok(Inside::Others);
        }
        // What is being hidden just now is not known yet, and may be open.
        let given = self.nodes.doubtful_renames();
        if entries.iter().any(|entry| given.iter().any(|(_, to)| to.1 == entry.name)) {
            return Ok(Inside::Hidden);
        }
        let ours = |name: &OsStr| is_left_by_libfuse(name) || self.hidden_journal.has(name);
        if let Some(foreign) = entries.iter().find(|entry| !ours(&entry.name)) {
            return Ok(Inside::Foreign(path.join(&foreign.name)));
        }
        let directory = self.nodes.node(parent, name);
        for entry in &entries {
            let from = path.join(&entry.name);
            let cleared = match directory.filter(|directory| self.nodes.node(*directory, &entry.name).is_some()) {
                Some(directory) => {
                    let renaming = self.nodes.rename((directory, entry.name.clone()), (parent, entry.name.clone()));
                    let to = path.with_file_name(&entry.name);
                    if !is_left_by_libfuse(&entry.name) {
                        self.hidden_journal.add(&to);
                    }
                    let moved = tree.rename(&from, &to, 0);
                    match moved {
                        Ok(()) => {
                            renaming.done(false);
                            self.hidden_journal.strike(&from);
                        }
                        Err(error) if raises_doubt(error) => renaming.in_doubt(),
                        Err(_) => {}
                    }
                    moved
                }
                None => {
                    let removed = tree.unlink(&from);
                    if removed.is_ok() {
                        self.hidden_journal.removed(&entry.name);
                    }
                    removed
                }
            };
            match cleared {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) if raises_doubt(error) => return Err(error),
                Err(_) => return Ok(Inside::Others),
            }
        }
        Ok(Inside::Hidden)
    }

    /// Where a descriptor survives its file's last name: one that is open, and whose descriptors were closed for want of such,
    /// gets them back and keeps them from now on.
    pub(super) fn keep_open(&self, context: &Context<'_>, parent: u64, name: &OsStr) -> OpResult<()> {
        let Some(node) = self.nodes.open_node(parent, name).filter(|_| self.traits.keeps_unlinked) else {
            return Ok(());
        };
        let Some(inode) = self.inodes.get(node) else { return Ok(()) };
        inode.pin();
        // Whoever was closing them is done.
        drop(inode.order(context)?);
        for file in self.files.of_node(node) {
            match self.descriptor(&**context.generation, &file) {
                // It is no use to anybody anyway.
                Ok(_) | Err(LOST_FILE) => {}
                Err(error) => return Err(error),
            }
        }
        self.leave(node);
        Ok(())
    }

    /// Where a descriptor does not survive its file's last name: gives a file that is open a hidden name instead of
    /// removing it. True if it did.
    pub(super) fn hide_if_open(
        &self,
        context: &Context<'_>,
        parent: u64,
        name: &OsStr,
        hidden: &OsStr,
    ) -> OpResult<bool> {
        let Some(node) = self.nodes.open_node(parent, name).filter(|_| !self.traits.keeps_unlinked) else {
            return Ok(false);
        };
        self.on_name(context, parent, name, |tree, from| {
            let renaming = self.nodes.rename((parent, name.to_owned()), (parent, hidden.to_owned()));
            let to = from.with_file_name(hidden);
            self.hidden_journal.add(&to);
            let hidden = settle::rename(tree.rename(from, &to, 0), context.in_doubt, tree, from, &to);
            match self.settled("unlink", from, hidden) {
                Ok(()) => renaming.done(false),
                Err(error) if raises_doubt(error) => {
                    renaming.in_doubt();
                    return Err(error);
                }
                Err(error) => {
                    if !context.in_doubt {
                        self.hidden_journal.strike(&to);
                    }
                    return Err(error);
                }
            }
            Ok(())
        })?;
        // Closed for the last time while it was being hidden: nobody else will remove it.
        if self.nodes.open_node(parent, hidden).is_none() {
            self.remove_hidden(context, node).inspect_err(|_| self.hidden_journal.doom(hidden))?;
        }
        Ok(true)
    }

    /// Path of the hidden name of a node; ENOENT if it has none.
    pub(super) fn hidden_path(&self, node: u64) -> OpResult<(PathBuf, Stamp)> {
        let (parent, name) = self.hidden_name_of(node).ok_or(Errno::ENOENT)?;
        self.nodes.path_of(parent, &name)
    }

    fn hidden_name_of(&self, node: u64) -> Option<Name> {
        self.nodes.names(node).into_iter().find(|(_, name)| self.hides(name))
    }

    /// Removes a node's hidden names, one for each name that it lost while open, wherever they have been moved to by now.
    pub(super) fn remove_hidden(&self, context: &Context<'_>, node: u64) -> OpResult<()> {
        while self.hidden_name_of(node).is_some() {
            let last = std::cell::Cell::new(None);
            let unlink = |tree: &dyn Tree, path: &PathBuf| {
                if let Some((parent, name)) = self.hidden_name_of(node) {
                    last.set(self.last_look(tree, (parent, &name), path));
                }
                self.unlink_hidden(tree, path)
            };
            let result = self.retried(context, &[node], || self.hidden_path(node), unlink);
            settle::removal(result, true)?;
            if let Some((parent, name)) = self.hidden_name_of(node) {
                // Where else it may be it is to be looked for.
                self.hidden_journal.doom(&name);
                self.nodes.removed(parent, &name);
                self.keep_last(last.take());
            }
        }
        Ok(())
    }

    fn unlink_hidden(&self, tree: &dyn Tree, path: &Path) -> OpResult<()> {
        let result = tree.unlink(path);
        match result {
            Ok(()) => self.hidden_journal.removed(path.file_name().unwrap_or_default()),
            Err(Errno::ENOENT) => self.hidden_journal.strike(path),
            Err(_) => {}
        }
        result
    }

    /// True of a file that has lost its last name: what was written to it and not committed is of no use to anybody once it
    /// is closed. Not as long as a rename is in doubt that would have taken a name from it.
    pub(super) fn is_seen_by_nobody(&self, node: u64) -> bool {
        let names = self.nodes.names(node);
        !names.is_empty() && names.iter().all(|(_, name)| self.hides(name)) && self.nodes.doubtful_renames().is_empty()
    }

    /// The last handle of a node is closed, and its hidden names could not be removed.
    pub(super) fn doom_hidden(&self, node: u64) {
        for (_, name) in self.nodes.names(node) {
            self.hidden_journal.doom(&name);
        }
    }

    /// A file that is open and about to be renamed over gets a second, hidden name first, so that the target name
    /// exists at every moment, and goes on under that. Returns its node.
    pub(super) fn save_open_target(
        &self,
        tree: &dyn Tree,
        in_doubt: bool,
        to: &Name,
        path: &Path,
        hidden: &OsStr,
    ) -> OpResult<Option<u64>> {
        // An earlier run of this very call has done it.
        if let Some(node) = self.nodes.node(to.0, hidden) {
            return Ok(Some(node));
        }
        let aside = path.with_file_name(hidden);
        let Some(node) = self.nodes.open_node(to.0, &to.1).filter(|_| !self.traits.keeps_unlinked) else {
            if in_doubt && !self.traits.keeps_unlinked {
                // It was open in an earlier run, which may have made the name.
                settle::removal(self.unlink_hidden(tree, &aside), true)?;
            }
            return Ok(None);
        };
        self.hidden_journal.add(&aside);
        match tree.link(path, &aside) {
            Ok(()) => {}
            // The name is of this very call, so an earlier run made it.
            Err(Errno::EEXIST) if in_doubt => {}
            Err(error) => {
                if !in_doubt && !raises_doubt(error) {
                    self.hidden_journal.strike(&aside);
                }
                // Without hard links the descriptor lives until the next repair; better than no rename at all. The same if
                // somebody else has removed the target.
                return match error {
                    Errno::EPERM | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EMLINK | Errno::ENOENT => Ok(None),
                    error => Err(error),
                };
            }
        }
        // Before the rename: what sshfs has open under a name that is replaced it would hide in its own way.
        self.move_open(node, to.clone(), (to.0, hidden.to_owned()));
        Ok(Some(node))
    }

    /// Undoes [`Overlay::save_open_target`], the rename having failed.
    pub(super) fn unsave_open_target(
        &self,
        tree: &dyn Tree,
        node: u64,
        to: &Name,
        path: &Path,
        hidden: &OsStr,
    ) -> OpResult<()> {
        if self.nodes.node(to.0, hidden) == Some(node) {
            self.move_open(node, (to.0, hidden.to_owned()), to.clone());
        }
        settle::removal(self.unlink_hidden(tree, &path.with_file_name(hidden)), true)
    }

    /// A call that may have made a hidden name is answered with an error and will not be run again: nobody else will find
    /// out whether the name is there.
    pub(super) fn give_up_hidden(&self, hidden: &OsStr, result: &OpResult<()>) {
        if result.is_err() && self.hidden_journal.has(hidden) {
            self.hidden_journal.doom(hidden);
        }
    }

    /// Removes the hidden name of a target that was closed for the last time while it was being saved.
    pub(super) fn drop_closed_target(&self, tree: &dyn Tree, to: &Name, path: &Path, hidden: &OsStr) {
        if self.nodes.open_node(to.0, hidden).is_none() && self.nodes.node(to.0, hidden).is_some() {
            let aside = path.with_file_name(hidden);
            match settle::removal(self.unlink_hidden(tree, &aside), true) {
                Ok(()) => self.nodes.removed(to.0, hidden),
                Err(_) => self.hidden_journal.doom(hidden),
            }
        }
    }

    /// The table and the descriptors of an open file follow it to another name.
    fn move_open(&self, node: u64, from: Name, to: Name) {
        self.nodes.rename(from, to).done(false);
        for file in self.files.of_node(node) {
            file.reopen_later();
        }
    }
}

/// Its owner cannot be told, and a dead sshfs never removes it.
fn is_left_by_libfuse(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(LIBFUSE_HIDDEN.as_bytes())
}
