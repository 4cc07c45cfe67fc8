//! getattr, setattr, statfs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{ReplyAttr, ReplyIoctl, ReplyStatfs};
use nix::errno::Errno;

use crate::backing::{Attr, FileKind, FlagsRequest, OpResult, SetTime, StatFs};
use crate::gate::policy::raises_doubt;
use crate::gate::{Class, Context, Op, Terms};
use crate::log::{Attempt, Change};
use crate::overlay::asked::Asked;
use crate::overlay::convert::node_errno;
use crate::overlay::nodes::ROOT;
use crate::overlay::{Overlay, is_hidden};

/// How long the root and statfs wait for a live answer before the last known one is given (promise P2).
const ALWAYS_WITHIN: Duration = Duration::from_millis(250);

/// setuid and setgid.
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

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
            Ok(attr) if kind.is_none_or(|kind| kind == attr.kind) => Ok(attr),
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
        let hidden = self.nodes.names(node).iter().filter(|(_, name)| is_hidden(name)).count();
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
            return reply.attr(&self.appearance().attr_timeout, &self.shown(ROOT, &self.known_root()));
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
            move |result| {
                let attr = result.unwrap_or_else(|_| replier.known_root());
                reply.attr(&replier.appearance().attr_timeout, &replier.shown(ROOT, &attr));
            },
        );
    }

    fn known_root(&self) -> Attr {
        let now = SystemTime::now();
        self.last_root.lock().unwrap_or_else(|| Attr {
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
        })
    }

    /// FUSE_STATFS: always answered, so that a `df` never hangs.
    pub fn statfs(self: &Arc<Self>, asked: Asked, reply: ReplyStatfs) {
        if self.local_space.lock().is_some() || self.gate.in_outage() {
            return reply_statfs(&self.last_statfs.lock(), reply);
        }
        let (worker, replier) = (Arc::clone(self), Arc::clone(self));
        self.submit_on(
            asked,
            Terms { limit: Some(ALWAYS_WITHIN), ..Terms::of(Op::Statfs, Class::Meta) },
            move |context| {
                let figures = context.generation.tree().stat_fs()?;
                *worker.last_statfs.lock() = figures;
                Ok(figures)
            },
            move |result| reply_statfs(&result.unwrap_or_else(|_| *replier.last_statfs.lock()), reply),
        );
    }

    /// FUSE_SETATTR.
    pub fn setattr(self: &Arc<Self>, asked: Asked, node: u64, handle: Option<u64>, changes: Changes, reply: ReplyAttr) {
        let class = if self.is_undone_by_a_replay(node, &changes) { Class::Sync } else { Class::Meta };
        self.submit(
            asked,
            Op::Setattr,
            class,
            move |overlay, context| {
                overlay.change(context, node, handle, &changes)?;
                overlay.stat(context, node, handle)
            },
            move |overlay, result| overlay.reply_attr(node, result, reply),
        );
    }

    /// What is uncommitted is written again after a repair: that would change a time of modification that is set now, and take
    /// setuid and setgid away. So it is committed first, which the close that follows has not to do any more.
    fn is_undone_by_a_replay(&self, node: u64, changes: &Changes) -> bool {
        let sets = matches!(changes.mtime, SetTime::At(_)) || changes.mode.is_some_and(|mode| mode & SET_ID != 0);
        sets && self.inodes.get(node).is_some_and(|inode| !inode.is_clean())
    }

    /// Commits a file before something is done that does not bear its being written again. What the backing refuses of its data
    /// is no matter of that call: whoever wrote learns of it.
    pub(super) fn commit_before(&self, context: &Context<'_>, node: u64) -> OpResult<()> {
        let Some(inode) = self.inodes.get(node) else { return Ok(()) };
        match self.commit(context, &inode, true) {
            Err(error) if raises_doubt(error) => Err(error),
            _ => Ok(()),
        }
    }

    fn change(&self, context: &Context<'_>, node: u64, handle: Option<u64>, changes: &Changes) -> OpResult<()> {
        if self.removed.change(node, changes) {
            return Ok(());
        }
        // Handed over later it would change the times again.
        self.show(context, node)?;
        if self.is_undone_by_a_replay(node, changes) {
            self.commit_before(context, node)?;
        }
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
        self.submit(
            asked,
            Op::Ioctl,
            Class::Meta,
            move |overlay, context| {
                if request.changes() {
                    // What is held back of a file could not be written to it any more.
                    overlay.show(context, node)?;
                }
                overlay.on_path(context, node, |tree, path| {
                    let mut value = value.clone();
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
