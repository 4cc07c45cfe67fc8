//! lookup, mknod, mkdir, symlink, link, unlink, rmdir, rename, readlink.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use fuser::{Generation as NodeGeneration, ReplyData, ReplyEmpty, ReplyEntry};
use nix::errno::Errno;

use super::Caller;
use crate::backing::{Attr, FileKind, OpResult, Tree};
use crate::gate::{Class, Context, Op};
use crate::overlay::convert::{errno, file_attr, kind_of_mode};
use crate::overlay::{Overlay, is_hidden, settle};

/// What is to be made.
pub enum Made {
    /// mkdir.
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// mknod.
    Node {
        /// Type and permission bits.
        mode: u32,
        /// Device number.
        rdev: u32,
    },
    /// symlink.
    Symlink {
        /// What it says.
        target: OsString,
    },
}

impl Overlay {
    /// FUSE_LOOKUP.
    pub fn lookup(self: &Arc<Self>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let (asked, name) = (name.to_owned(), name.to_owned());
        if is_hidden(&name) {
            return reply.error(fuser::Errno::ENOENT);
        }
        self.submit(
            Op::Lookup,
            Class::Meta,
            move |overlay, context| overlay.on_name(context, parent, &asked, |tree, path| tree.stat(path)),
            move |overlay, result| overlay.reply_entry(parent, &name, result, reply),
        );
    }

    fn reply_entry(&self, parent: u64, name: &OsStr, result: OpResult<Attr>, reply: ReplyEntry) {
        match result {
            Ok(attr) => {
                let node = self.nodes.remember(parent, name, &attr);
                let (attr_ttl, entry_ttl) = (self.config.attr_timeout, self.config.entry_timeout);
                reply.entry_with_ttls(&attr_ttl, &entry_ttl, &file_attr(node, &attr), NodeGeneration(0));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    /// FUSE_MKDIR, FUSE_MKNOD, FUSE_SYMLINK.
    pub fn make(self: &Arc<Self>, op: Op, caller: Caller, parent: u64, name: &OsStr, what: Made, reply: ReplyEntry) {
        let (asked, name) = (name.to_owned(), name.to_owned());
        if is_hidden(&name) {
            return reply.error(fuser::Errno::EPERM);
        }
        self.submit(
            op,
            Class::Meta,
            move |overlay, context| {
                overlay.on_name(context, parent, &asked, |tree, path| {
                    let in_doubt = context.in_doubt;
                    match &what {
                        Made::Directory { mode } => {
                            let result = tree.mkdir(path, *mode);
                            settle::making(result, in_doubt, tree, path, FileKind::Directory)?;
                        }
                        Made::Node { mode, rdev } => {
                            let result = tree.mknod(path, *mode, *rdev);
                            settle::making(result, in_doubt, tree, path, kind_of_mode(*mode))?;
                        }
                        Made::Symlink { target } => {
                            settle::symlink(tree.symlink(target, path), in_doubt, tree, path, target)?;
                        }
                    }
                    overlay.give_to_caller(caller, tree, path)
                })
            },
            move |overlay, result| overlay.reply_entry(parent, &name, result, reply),
        );
    }

    /// Gives what was made to the caller, where the backing has owners, and returns its attributes. The group stays if
    /// the directory passes its own on (setgid, inode(7)).
    pub(super) fn give_to_caller(&self, caller: Caller, tree: &dyn Tree, path: &Path) -> OpResult<Attr> {
        let attr = tree.stat(path)?;
        if !self.traits.owners
            || (attr.uid == caller.uid && attr.gid == caller.gid)
            || !nix::unistd::geteuid().is_root()
        {
            return Ok(attr);
        }
        let parent = tree.stat(path.parent().unwrap_or(Path::new("")))?;
        let gid = if u32::from(parent.perm) & libc::S_ISGID != 0 { attr.gid } else { caller.gid };
        if (attr.uid, attr.gid) == (caller.uid, gid) {
            return Ok(attr);
        }
        tree.set_owner(path, Some(caller.uid), Some(gid))?;
        // chown(2) takes setuid and setgid away.
        let special = u32::from(attr.perm) & (libc::S_ISUID | libc::S_ISGID);
        if special != 0 && attr.kind != FileKind::Symlink {
            tree.set_mode(path, u32::from(attr.perm))?;
        }
        tree.stat(path)
    }

    /// FUSE_LINK.
    pub fn link(self: &Arc<Self>, node: u64, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let (asked, name) = (name.to_owned(), name.to_owned());
        if is_hidden(&name) {
            return reply.error(fuser::Errno::EPERM);
        }
        self.submit(
            Op::Link,
            Class::Meta,
            move |overlay, context| {
                overlay.on_name(context, parent, &asked, |tree, to| {
                    let (from, _) = overlay.nodes.path(node)?;
                    settle::link(tree.link(&from, to), context.in_doubt, tree, &from, to)?;
                    tree.stat(to)
                })
            },
            move |overlay, result| match result {
                Ok(attr) => {
                    overlay.nodes.remember_link(node, parent, &name);
                    let (attr_ttl, entry_ttl) = (overlay.config.attr_timeout, overlay.config.entry_timeout);
                    reply.entry_with_ttls(&attr_ttl, &entry_ttl, &file_attr(node, &attr), NodeGeneration(0));
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    /// FUSE_UNLINK, FUSE_RMDIR.
    pub fn remove(self: &Arc<Self>, op: Op, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        if is_hidden(&name) {
            return reply.error(fuser::Errno::ENOENT);
        }
        self.submit(
            op,
            Class::Meta,
            move |overlay, context| {
                if op == Op::Rmdir {
                    overlay.on_name(context, parent, &name, |tree, path| {
                        settle::removal(tree.rmdir(path), context.in_doubt)
                    })?;
                } else if !overlay.hide_if_open(context, parent, &name)? {
                    overlay.on_name(context, parent, &name, |tree, path| {
                        settle::removal(tree.unlink(path), context.in_doubt)
                    })?;
                }
                overlay.nodes.removed(parent, &name);
                Ok(())
            },
            |_, result| reply_empty(result, reply),
        );
    }

    /// Where a descriptor does not survive its file's last name: gives a file that is open a hidden name instead of
    /// removing it. True if it did.
    fn hide_if_open(&self, context: &Context<'_>, parent: u64, name: &OsStr) -> OpResult<bool> {
        if self.traits.keeps_unlinked || self.nodes.open_node(parent, name).is_none() {
            return Ok(false);
        }
        let hidden = self.hidden_name();
        let renaming = self.nodes.rename((parent, name.to_owned()), (parent, hidden.clone()));
        let (directory, _) = self.nodes.path(parent)?;
        let (from, to) = (directory.join(name), directory.join(&hidden));
        let tree = context.generation.tree();
        match settle::rename(tree.rename(&from, &to, 0), context.in_doubt, tree, &from, &to) {
            Ok(()) => renaming.done(false),
            // An earlier generation hid it under another name before it died; that name is found at the last close.
            Err(Errno::ENOENT) if context.in_doubt => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// FUSE_RENAME2.
    pub fn rename(self: &Arc<Self>, from: (u64, OsString), to: (u64, OsString), flags: u32, reply: ReplyEmpty) {
        if is_hidden(&from.1) || is_hidden(&to.1) {
            return reply.error(fuser::Errno::EPERM);
        }
        self.submit(
            Op::Rename,
            Class::Meta,
            move |overlay, context| overlay.rename_on_backing(context, &from, &to, flags),
            |_, result| reply_empty(result, reply),
        );
    }

    fn rename_on_backing(
        &self,
        context: &Context<'_>,
        from: &(u64, OsString),
        to: &(u64, OsString),
        flags: u32,
    ) -> OpResult<()> {
        let tree = context.generation.tree();
        let ((old, _), (new, _)) = (self.nodes.path_of(from.0, &from.1)?, self.nodes.path_of(to.0, &to.1)?);
        let saved = if flags == 0 { self.save_open_target(tree, to, &new)? } else { None };
        let renaming = self.nodes.rename(from.clone(), to.clone());
        let result = settle::rename(tree.rename(&old, &new, flags), context.in_doubt, tree, &old, &new);
        match (result, saved) {
            (Ok(()), None) => renaming.done(flags & libc::RENAME_EXCHANGE != 0),
            (Ok(()), Some((node, hidden))) => {
                // The target goes on under its hidden name, then the rename happens in the table.
                self.nodes.rename(to.clone(), (to.0, hidden)).done(false);
                renaming.done(false);
                for file in self.files.of_node(node) {
                    file.reopen_later();
                }
            }
            (Err(error), saved) => {
                if let Some((_, hidden)) = saved {
                    let _ = tree.unlink(&new.with_file_name(hidden));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// A file that is open and about to be renamed over gets a second, hidden name first, so that the target name
    /// exists at every moment.
    fn save_open_target(
        &self,
        tree: &dyn Tree,
        to: &(u64, OsString),
        path: &Path,
    ) -> OpResult<Option<(u64, OsString)>> {
        let Some(node) = self.nodes.open_node(to.0, &to.1).filter(|_| !self.traits.keeps_unlinked) else {
            return Ok(None);
        };
        let hidden = self.hidden_name();
        match tree.link(path, &path.with_file_name(&hidden)) {
            Ok(()) => Ok(Some((node, hidden))),
            // Without hard links the descriptor lives until the next repair; better than no rename at all.
            Err(Errno::EPERM | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EMLINK) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// FUSE_READLINK.
    pub fn readlink(self: &Arc<Self>, node: u64, reply: ReplyData) {
        self.submit(
            Op::Readlink,
            Class::Meta,
            move |overlay, context| overlay.on_path(context, node, |tree, path| tree.read_link(path)),
            |_, result| match result {
                Ok(target) => reply.data(target.as_encoded_bytes()),
                Err(error) => reply.error(errno(error)),
            },
        );
    }
}

/// Success or an errno.
pub fn reply_empty(result: OpResult<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}
