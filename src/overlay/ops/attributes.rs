//! getattr, setattr, statfs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{ReplyAttr, ReplyIoctl, ReplyStatfs};
use nix::errno::Errno;

use crate::backing::{Attr, FileKind, FlagsRequest, OpResult, SetTime, StatFs};
use crate::gate::{Class, Context, Op, Terms};
use crate::log::{Attempt, Change};
use crate::overlay::Overlay;
use crate::overlay::asked::Asked;
use crate::overlay::convert::node_errno;
use crate::overlay::nodes::ROOT;

/// How long the root and statfs wait for a live answer before the last known one is given (promise P2).
const ALWAYS_WITHIN: Duration = Duration::from_millis(250);
/// How long the kernel may believe a last known answer.
const REMEMBERED: Duration = Duration::from_secs(1);

/// What a setattr is to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: SetTime,
    /// Time of last modification.
    pub mtime: SetTime,
}

impl Changes {
    /// True if a write that is sent again would change or take away what is set. "Now" is as well the moment of that write.
    fn last(&self) -> bool {
        let given = |time| matches!(time, SetTime::At(_));
        let special = |mode| mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        given(self.atime) || given(self.mtime) || self.mode.is_some_and(special)
    }
}

impl Overlay {
    /// FUSE_GETATTR.
    pub fn getattr(self: &Arc<Self>, asked: Asked, node: u64, handle: Option<u64>, reply: ReplyAttr) {
        if node == ROOT {
            return self.getattr_root(asked, reply);
        }
        self.submit(
            asked,
            Op::Getattr,
            Class::Meta,
            move |overlay, context| overlay.stat(context, node, handle),
            move |overlay, result| overlay.reply_attr(node, result, reply),
        );
    }

    fn stat(&self, context: &Context<'_>, node: u64, handle: Option<u64>) -> OpResult<Attr> {
        self.look(context, Some(node), || self.stat_on_backing(context, node, handle))
    }

    pub(super) fn stat_on_backing(&self, context: &Context<'_>, node: u64, handle: Option<u64>) -> OpResult<Attr> {
        // By handle where there is one: a file may have lost its name. One that nobody knows is of a predecessor whose
        // memory could not be read.
        if let Some(handle) = handle {
            let file = self.files.get(handle)?;
            let attr = self.descriptor(&**context.generation, &file)?.stat()?;
            return Ok(self.without_hidden(node, attr));
        }
        let kind = self.nodes.kind(node);
        let found = match self.on_path(context, node, |tree, path| tree.stat(path)) {
            // Another kind of file under the name is another file, and would break the kernel's inode.
            Ok(attr) if kind.is_none_or(|kind| kind == attr.kind) => Ok(self.as_kept(Some(node), attr)),
            Ok(_) | Err(Errno::ENOENT) => match self.files.of_node(node).first() {
                Some(file) => self.descriptor(&**context.generation, file)?.stat(),
                None => match self.removed.attr(node) {
                    Some(attr) => Ok(attr),
                    None => self.replaced_file(context, node)?.stat(),
                },
            },
            result => result,
        };
        found.map(|attr| self.without_hidden(node, attr))
    }

    /// Hidden names are no links for anybody else.
    fn without_hidden(&self, node: u64, attr: Attr) -> Attr {
        if self.traits.keeps_unlinked {
            return attr;
        }
        let hidden = self.nodes.names(node).iter().filter(|(_, name)| self.hides(name)).count();
        Attr { nlink: attr.nlink.saturating_sub(u32::try_from(hidden).unwrap_or(u32::MAX)), ..attr }
    }

    fn reply_attr(&self, node: u64, result: OpResult<Attr>, reply: ReplyAttr) {
        match result {
            Ok(attr) => reply.attr(&self.appearance().attr_timeout, &self.shown(node, &attr)),
            Err(error) => reply.error(node_errno(error)),
        }
    }

    /// The root always answers: a mountpoint whose stat fails is taken for none by scripts.
    fn getattr_root(self: &Arc<Self>, asked: Asked, reply: ReplyAttr) {
        if self.gate.in_outage() {
            return self.reply_known_root(reply);
        }
        let (worker, replier) = (Arc::clone(self), Arc::clone(self));
        self.submit_on(
            asked,
            Terms { limit: Some(ALWAYS_WITHIN), ..Terms::of(Op::Getattr, Class::Meta) },
            move |context| {
                let attr = context.generation.tree().stat(&worker.base)?;
                *worker.last_root.lock() = Some(attr);
                Ok(attr)
            },
            move |result| match result {
                Ok(attr) => reply.attr(&replier.appearance().attr_timeout, &replier.shown(ROOT, &attr)),
                Err(_) => replier.reply_known_root(reply),
            },
        );
    }

    /// What was never the backing's word is not to be remembered: permissions are checked by it. What was, for a moment, in which
    /// not each step of each path waits for another answer.
    fn reply_known_root(&self, reply: ReplyAttr) {
        let known = *self.last_root.lock();
        let ttl = known.map_or(Duration::ZERO, |_| REMEMBERED.min(self.appearance().attr_timeout));
        let attr = known.unwrap_or_else(made_up_root);
        reply.attr(&ttl, &self.shown(ROOT, &attr));
    }

    /// FUSE_STATFS: always answered, so that a `df` never hangs.
    pub fn statfs(self: &Arc<Self>, asked: Asked, reply: ReplyStatfs) {
        if self.local_space.lock().is_some() || self.gate.in_outage() {
            return reply_statfs(&self.known_space(), reply);
        }
        let (worker, replier) = (Arc::clone(self), Arc::clone(self));
        self.submit_on(
            asked,
            Terms { limit: Some(ALWAYS_WITHIN), ..Terms::of(Op::Statfs, Class::Meta) },
            move |context| {
                let figures = context.generation.tree().stat_fs()?;
                *worker.last_statfs.lock() = Some(figures);
                Ok(figures)
            },
            move |result| reply_statfs(&result.unwrap_or_else(|_| replier.known_space()), reply),
        );
    }

    /// After a repair, in the background: what is answered in an outage has to be known before there is one.
    pub(in crate::overlay) fn learn_what_is_always_answered(self: &Arc<Self>) {
        let figures = self.local_space.lock().is_none() && self.last_statfs.lock().is_none();
        if !figures && self.last_root.lock().is_some() {
            return;
        }
        self.submit(
            Asked::internal(),
            Op::Statfs,
            Class::Meta,
            move |overlay, context| {
                // What it cannot say is no evidence: whoever asks for it himself is told.
                let tree = context.generation.tree();
                if let Ok(attr) = tree.stat(&overlay.base) {
                    *overlay.last_root.lock() = Some(attr);
                }
                if let Some(found) = figures.then(|| tree.stat_fs().ok()).flatten() {
                    *overlay.last_statfs.lock() = Some(found);
                }
                Ok(())
            },
            |_, _| (),
        );
    }

    /// FUSE_SETATTR.
    pub fn setattr(self: &Arc<Self>, asked: Asked, node: u64, handle: Option<u64>, changes: Changes, reply: ReplyAttr) {
        let first = self.first(node, changes.last());
        self.submit(
            asked,
            Op::Setattr,
            first.class(),
            move |overlay, context| {
                overlay.commit_first(context, &first)?;
                let result = overlay.change(context, node, handle, &changes);
                overlay.nodes.changed(node);
                result?;
                overlay.stat(context, node, handle)
            },
            move |overlay, result| overlay.reply_attr(node, result, reply),
        );
    }

    fn change(&self, context: &Context<'_>, node: u64, handle: Option<u64>, changes: &Changes) -> OpResult<()> {
        if self.removed.change(node, changes) {
            return Ok(());
        }
        // Handed over later it would change the times again.
        self.show(context, node)?;
        // Owner before mode: chown(2) may take setuid away, which a mode given with it is to bring back.
        let (uid, gid) = self.owner_to_set(changes.uid, changes.gid)?;
        if uid.is_some() || gid.is_some() {
            self.on_node(context, node, |tree, path| tree.set_owner(path, uid, gid), |file| file.set_owner(uid, gid))?;
        }
        if let Some(mode) = changes.mode {
            self.on_node(context, node, |tree, path| tree.set_mode(path, mode), |file| file.set_mode(mode))?;
        }
        if let Some(size) = changes.size {
            match (handle.map(|handle| self.files.get(handle)), self.inodes.get(node)) {
                (Some(file), _) => self.set_size_logged(context, &file?.inode, size)?,
                (None, Some(inode)) if self.nodes.path(node).is_err() => self.set_size_logged(context, &inode, size)?,
                // By path, of a file that is open or has something unstable: both have one order.
                (None, Some(inode)) => {
                    let order = inode.order(context)?;
                    self.prepare(context, &inode, &order)?;
                    let found = || Ok(self.on_path(context, node, |tree, path| tree.stat(path))?.size);
                    self.attempt(context, &inode, Attempt::SetSize(size), found)?;
                    self.on_path(context, node, |tree, path| tree.set_size(path, size))?;
                    inode.record(&self.budget, context.generation.number(), Change::SetSize(size))?;
                }
                (None, None) => self.on_path(context, node, |tree, path| tree.set_size(path, size))?,
            }
        }
        if (changes.atime, changes.mtime) != (SetTime::Omit, SetTime::Omit) {
            let (at, mt) = (changes.atime, changes.mtime);
            self.on_node(context, node, |tree, path| tree.set_times(path, at, mt), |file| file.set_times(at, mt))?;
        }
        Ok(())
    }
}

impl Overlay {
    /// FUSE_IOCTL. The kernel has checked that the caller may do what it hands on; everything but the flags of files
    /// (chattr(1)) is of devices.
    pub fn ioctl(self: &Arc<Self>, asked: Asked, node: u64, command: u32, data: &[u8], reply: ReplyIoctl) {
        let Some(request) = FlagsRequest::of(command).filter(|_| self.traits.stable_inodes) else {
            return reply.error(fuser::Errno::ENOTTY);
        };
        let mut value = data.to_vec();
        value.resize(request.size(), 0);
        let is_root = asked.caller.uid == 0;
        // What is unstable of a file could not be written to it any more.
        let first = self.first(node, request.changes());
        self.submit(
            asked,
            Op::Ioctl,
            first.class(),
            move |overlay, context| {
                overlay.commit_first(context, &first)?;
                if request.changes() {
                    overlay.show(context, node)?;
                }
                overlay.on_path(context, node, |tree, path| {
                    let mut value = value.clone();
                    if request == FlagsRequest::Set && !is_root {
                        // ext4 leaves this one to whoever has CAP_SYS_RESOURCE, which steadfs may have.
                        let mut present = vec![0; request.size()];
                        tree.flags(path, FlagsRequest::Get, &mut present)?;
                        if (flags_of(&present) ^ flags_of(&value)) & JOURNAL_DATA != 0 {
                            return Err(Errno::EPERM);
                        }
                    }
                    tree.flags(path, request, &mut value)?;
                    Ok(if request.changes() { Vec::new() } else { value })
                })
            },
            |_, result| match result {
                Ok(value) => reply.ioctl(0, &value),
                Err(error) => reply.error(node_errno(error)),
            },
        );
    }
}

/// A root that nobody has seen yet.
fn made_up_root() -> Attr {
    let now = SystemTime::now();
    Attr {
        identity: (0, 0),
        kind: FileKind::Directory,
        perm: 0o755,
        nlink: 2,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        rdev: 0,
        size: 4096,
        blocks: 8,
        block_size: 4096,
        atime: now,
        mtime: now,
        ctime: now,
    }
}

/// FS_JOURNAL_DATA_FL of linux/fs.h.
const JOURNAL_DATA: u32 = 0x4000;

fn flags_of(value: &[u8]) -> u32 {
    value.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn reply_statfs(figures: &StatFs, reply: ReplyStatfs) {
    reply.statfs(
        figures.blocks,
        figures.blocks_free,
        figures.blocks_available,
        figures.files,
        figures.files_free,
        figures.block_size,
        figures.name_max,
        figures.fragment_size,
    );
}
