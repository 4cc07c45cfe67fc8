//! lookup, mknod, mkdir, symlink, link, unlink, rmdir, rename, readlink.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use fuser::{ReplyData, ReplyEmpty, ReplyEntry};
use nix::errno::Errno;

use super::ownership::Asking;
use crate::backing::{Attr, FileKind, OpResult, Tree};
use crate::gate::policy::raises_doubt;
use crate::gate::{Class, Op};
use crate::overlay::asked::Asked;
use crate::overlay::convert::{errno, kind_of_mode, node_errno};
use crate::overlay::hidden_journal::Outcome;
use crate::overlay::nodes::Name;
use crate::overlay::{Overlay, settle};

/// What is to be made.
pub enum Made {
    /// mkdir.
    Directory {
        /// Permission bits.
        mode: Asking,
    },
    /// mknod.
    Node {
        /// Type and permission bits.
        mode: Asking,
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
    pub fn lookup(self: &Arc<Self>, asked: Asked, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let (wanted, name) = (name.to_owned(), name.to_owned());
        if self.hides(&name) {
            return reply.error(fuser::Errno::ENOENT);
        }
        let by = asked.unique;
        self.submit(
            asked,
            Op::Lookup,
            Class::Meta,
            move |overlay, context| {
                let known = overlay.nodes.known(parent, &wanted);
                let result = overlay.look(context, overlay.nodes.node(parent, &wanted), || {
                    let attr = overlay.on_name(context, parent, &wanted, |tree, path| tree.stat(path))?;
                    overlay.as_led(context, parent, &wanted, attr)
                });
                if result == Err(Errno::ENOENT) {
                    overlay.expect_root(context)?;
                    overlay.nodes.missed(parent, &wanted, &known);
                }
                result
            },
            move |overlay, result| overlay.reply_entry(by, parent, &name, result, reply),
        );
    }

    fn reply_entry(&self, by: u64, parent: u64, name: &OsStr, result: OpResult<Attr>, reply: ReplyEntry) {
        match result {
            Ok(attr) => {
                let node = self.nodes.remember(parent, name, &attr, by);
                let (attr_ttl, entry_ttl) = (self.appearance().attr_timeout, self.appearance().entry_timeout);
                reply.entry_with_ttls(&attr_ttl, &entry_ttl, &self.shown(node, &attr), self.life(node));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    /// FUSE_MKDIR, FUSE_MKNOD, FUSE_SYMLINK.
    pub fn make(self: &Arc<Self>, asked: Asked, op: Op, parent: u64, name: &OsStr, what: Made, reply: ReplyEntry) {
        let (wanted, name) = (name.to_owned(), name.to_owned());
        if self.hides(&name) {
            return reply.error(fuser::Errno::EPERM);
        }
        let (by, caller) = (asked.unique, asked.caller);
        self.submit(
            asked,
            op,
            Class::Meta,
            move |overlay, context| {
                overlay.on_name(context, parent, &wanted, |tree, path| {
                    let in_doubt = context.in_doubt;
                    let made = match &what {
                        Made::Directory { mode } => {
                            let result = tree.mkdir(path, overlay.mode_of(*mode, tree, path)?);
                            settle::making(result, in_doubt, tree, path, FileKind::Directory)
                        }
                        Made::Node { mode, rdev } => {
                            let result = tree.mknod(path, overlay.mode_of(*mode, tree, path)?, *rdev);
                            settle::making(result, in_doubt, tree, path, kind_of_mode(mode.mode))
                        }
                        Made::Symlink { target } => {
                            settle::symlink(tree.symlink(target, path), in_doubt, tree, path, target)
                        }
                    };
                    overlay.settled(op.name(), path, made)?;
                    let attr = overlay.give_to_caller(caller, tree, path)?;
                    overlay.nodes.made(parent, &wanted, &attr);
                    Ok(attr)
                })
            },
            move |overlay, result| overlay.reply_entry(by, parent, &name, result, reply),
        );
    }

    /// FUSE_LINK.
    pub fn link(self: &Arc<Self>, asked: Asked, node: u64, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let (wanted, name) = (name.to_owned(), name.to_owned());
        if self.hides(&name) {
            return reply.error(fuser::Errno::EPERM);
        }
        let by = asked.unique;
        self.submit(
            asked,
            Op::Link,
            Class::Meta,
            move |overlay, context| {
                let places = || {
                    let (from, stamp) = overlay.nodes.path(node)?;
                    Ok(((from, overlay.nodes.path_of(parent, &wanted)?.0), stamp))
                };
                overlay.show(context, node)?;
                overlay.retried(context, &[node, parent], places, |tree, (from, to)| {
                    let made = settle::link(tree.link(from, to), context.in_doubt, tree, from, to);
                    overlay.settled("link", to, made)?;
                    overlay.look(context, Some(node), || tree.stat(to))
                })
            },
            move |overlay, result| match result {
                Ok(attr) => {
                    overlay.nodes.remember_link(node, parent, &name, by);
                    let (attr_ttl, entry_ttl) = (overlay.appearance().attr_timeout, overlay.appearance().entry_timeout);
                    reply.entry_with_ttls(&attr_ttl, &entry_ttl, &overlay.shown(node, &attr), overlay.life(node));
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    /// FUSE_UNLINK.
    pub fn unlink(self: &Arc<Self>, asked: Asked, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        if self.hides(name) {
            return reply.error(fuser::Errno::ENOENT);
        }
        // Chosen once: when the call is run again in doubt, it must find what it did before.
        let (place, hidden): (Name, _) = ((parent, name.to_owned()), self.hidden_name());
        let chosen = hidden.clone();
        self.submit(
            asked,
            Op::Unlink,
            Class::Meta,
            move |overlay, context| {
                let name = &place.1;
                overlay.let_close(context, parent, name);
                overlay.show_name(context, parent, name)?;
                if overlay.hide_if_open(context, parent, name, &hidden)? {
                    return Ok(());
                }
                overlay.keep_open(context, parent, name)?;
                let (last, lost) = overlay.on_name(context, parent, name, |tree, path| {
                    let last = overlay.last_look(tree, (parent, name), path);
                    let lost = overlay.about_to_lose(context, tree, &place, path);
                    settle::removal(overlay.not_busy(tree.unlink(path)), context.in_doubt)?;
                    Ok((last, lost))
                })?;
                overlay.nodes.removed(parent, name);
                overlay.keep_last(last);
                if let Some(lost) = lost {
                    overlay.has_lost(lost);
                }
                Ok(())
            },
            move |overlay, result| {
                overlay.give_up_hidden(&chosen, &result);
                reply_empty(result, reply);
            },
        );
    }

    /// FUSE_RMDIR.
    pub fn rmdir(self: &Arc<Self>, asked: Asked, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        if self.hides(name) {
            return reply.error(fuser::Errno::ENOENT);
        }
        let name = name.to_owned();
        self.submit(
            asked,
            Op::Rmdir,
            Class::Meta,
            move |overlay, context| {
                // Whoever is in it goes on to see its attributes, where a local filesystem would show them.
                let held = overlay.traits.keeps_unlinked.then(|| overlay.nodes.hold_named(parent, &name)).flatten();
                let stat = |node| overlay.on_path(context, node, |tree, path| tree.stat(path)).ok();
                let attr = held.as_ref().and_then(|held| stat(held.node));
                overlay.on_name(context, parent, &name, |tree, path| {
                    let result = overlay.emptied(tree, (parent, &name), path, || tree.rmdir(path));
                    settle::removal(result, context.in_doubt)
                })?;
                overlay.nodes.removed(parent, &name);
                if let (Some(held), Some(attr)) = (held, attr) {
                    overlay.has_removed(held.node, &attr);
                }
                Ok(())
            },
            |_, result| reply_empty(result, reply),
        );
    }

    /// FUSE_RENAME2.
    pub fn rename(self: &Arc<Self>, asked: Asked, from: Name, to: Name, flags: u32, reply: ReplyEmpty) {
        if self.hides(&from.1) || self.hides(&to.1) {
            return reply.error(fuser::Errno::EPERM);
        }
        // Chosen once, as for unlink.
        let hidden = self.hidden_name();
        let chosen = hidden.clone();
        self.submit(
            asked,
            Op::Rename,
            Class::Meta,
            move |overlay, context| {
                let places = || {
                    let (old, stamp) = overlay.nodes.path_of(from.0, &from.1)?;
                    Ok(((old, overlay.nodes.path_of(to.0, &to.1)?.0), stamp))
                };
                overlay.let_close(context, to.0, &to.1);
                overlay.show_name(context, from.0, &from.1)?;
                overlay.show_name(context, to.0, &to.1)?;
                overlay.keep_open(context, to.0, &to.1)?;
                let result = overlay.retried(context, &[from.0, to.0], places, |tree, (old, new)| {
                    let replaced = (flags == 0).then(|| overlay.about_to_lose(context, tree, &to, new)).flatten();
                    let place = (&to, new.as_path());
                    overlay.rename_on_backing(tree, context.in_doubt, (&from, old), place, flags, &hidden)?;
                    if let Some(replaced) = replaced {
                        overlay.has_lost(replaced);
                    }
                    Ok(())
                });
                // Not of a run whose generation died: the next one makes the name again and goes on under it.
                if context.is_answered() {
                    overlay.give_up_hidden(&hidden, &result);
                }
                result
            },
            move |overlay, result| {
                overlay.give_up_hidden(&chosen, &result);
                reply_empty(result, reply);
            },
        );
    }

    fn rename_on_backing(
        &self,
        tree: &dyn Tree,
        in_doubt: bool,
        (from, old): (&Name, &Path),
        (to, new): (&Name, &Path),
        flags: u32,
        hidden: &OsStr,
    ) -> OpResult<()> {
        // The kernel knows what it renames, so the table does: unless a repair has seen that it was done.
        if in_doubt && flags & libc::RENAME_EXCHANGE == 0 && self.nodes.node(from.0, &from.1).is_none() {
            self.drop_closed_target(tree, to, new, hidden);
            return Ok(());
        }
        let last = self.last_look(tree, (to.0, &to.1), new);
        let saved = if flags == 0 { self.save_open_target(tree, in_doubt, to, new, hidden)? } else { None };
        let renaming = self.nodes.rename(from.clone(), to.clone());
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        let moving = self.hidden_journal.begin_move(old, new, exchange);
        let result = if exchange {
            settle::exchange(|| tree.rename(old, new, flags), in_doubt)
        } else {
            let rename = || tree.rename(old, new, flags);
            // A directory that is empty for everybody but us may be replaced by another.
            let result = if flags == 0 { self.emptied(tree, (to.0, &to.1), new, rename) } else { rename() };
            settle::rename(self.not_busy(result), in_doubt, tree, old, new)
        };
        let result = self.settled("rename", old, result);
        self.hidden_journal.end_move(moving, outcome_of(&result, in_doubt));
        match result {
            Ok(()) => {
                renaming.done(exchange);
                self.keep_last(last);
                if saved.is_some() {
                    self.drop_closed_target(tree, to, new, hidden);
                }
            }
            // If the rename may have been done, the second name may be the target's only one.
            Err(error) if raises_doubt(error) => renaming.in_doubt(),
            Err(_) => {
                drop(renaming);
                if let Some(node) = saved {
                    self.unsave_open_target(tree, node, to, new, hidden)?;
                }
            }
        }
        result
    }

    /// FUSE_READLINK.
    pub fn readlink(self: &Arc<Self>, asked: Asked, node: u64, reply: ReplyData) {
        self.submit(
            asked,
            Op::Readlink,
            Class::Meta,
            move |overlay, context| overlay.on_path(context, node, |tree, path| tree.read_link(path)),
            |_, result| match result {
                Ok(target) => reply.data(target.as_encoded_bytes()),
                Err(error) => reply.error(node_errno(error)),
            },
        );
    }
}

/// What became of a rename. One that was in doubt and failed may have been done, and something else found in its way.
fn outcome_of(result: &OpResult<()>, in_doubt: bool) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) if in_doubt || raises_doubt(*error) => Outcome::Doubt,
        Err(_) => Outcome::Failed,
    }
}

/// Success or an errno.
pub fn reply_empty(result: OpResult<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

/// As [`reply_empty`], for a call on a node.
pub fn reply_node(result: OpResult<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(node_errno(error)),
    }
}
