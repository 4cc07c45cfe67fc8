//! fuser's trait, and nothing else: each method unpacks a request and hands it on. No request is answered here by policy,
//! and none is waited for.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::*;

use super::Overlay;
use super::append::Place;
use super::convert::set_time;
use super::nodes::ROOT;
use super::ops::attributes::Changes;
use super::ops::names::Made;
use super::ops::ownership::Asking;
use crate::gate::Op;

/// Largest write the kernel may send in one request. More would only make a slow link's queue longer.
pub const MAX_WRITE: u32 = 128 << 10;
/// Requests of read-ahead and direct I/O that may be under way at once; the kernel's default of 12 starves readers.
const MAX_BACKGROUND: u16 = 64;

/// The overlay as fuser sees it, and what has been agreed on with the kernel if the session is gone on with.
pub struct Adapter(pub Arc<Overlay>, pub Option<InitFlags>);

/// A panic costs its caller an EIO (fuser answers for a reply that is dropped), not the thread that reads requests: with
/// the last of these gone every caller would hang.
fn guarded(hand_on: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(hand_on)).is_err() {
        tracing::error!("a request panicked; it is answered with EIO");
    }
}

/// Hands a request on, unless it is the reason why steadfs dies.
macro_rules! hand_on {
    ($adapter:ident, $request:ident, $op:ident, $node:expr, $reply:ident, |$overlay:ident, $asked:ident| $call:expr) => {
        guarded(|| {
            let $overlay = &$adapter.0;
            let $asked = $overlay.asked($request, Op::$op, $node);
            if $asked.is_poison() {
                tracing::error!(
                    op = Op::$op.name(),
                    "steadfs has died over this request too often; it is answered with EIO"
                );
                return $reply.error(fuser::Errno::EIO);
            }
            $call;
            $overlay.resending.before_reading();
        });
    };
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // What a umask takes away depends on the directory's default ACL, which the kernel does not look at.
            InitFlags::FUSE_DONT_MASK,
        ];
        let acl = self.0.has_owners().then_some(InitFlags::FUSE_POSIX_ACL);
        // Where files have owners the kernel truncates by itself: of an open that truncates it looks only afterwards whether the file
        // is being executed (handle_truncate of its fs/namei.c), and leaves it to us to take setuid away.
        let truncating = (!self.0.has_owners()).then_some(InitFlags::FUSE_ATOMIC_O_TRUNC);
        let wanted = self.1.unwrap_or_else(|| wanted.into_iter().chain(acl).chain(truncating).collect());
        for flag in wanted.iter() {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel does not offer it");
            }
        }
        // Each returns the nearest value that is possible when it is not; the kernel's default then stays.
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        hand_on!(self, request, Lookup, parent.0, reply, |overlay, asked| overlay.lookup(asked, parent.0, name, reply));
    }

    fn forget(&self, request: &Request, node: INodeNo, lookups: u64) {
        guarded(|| {
            self.0.forgets(request);
            self.0.nodes.forget(node.0, lookups);
            self.0.forget_nameless(node.0);
            self.0.resending.before_reading();
        });
    }

    fn getattr(&self, request: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        hand_on!(self, request, Getattr, node.0, reply, |overlay, asked| overlay.getattr(
            asked,
            node.0,
            handle.map(|handle| handle.0),
            reply
        ));
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes { mode, uid, gid, size, atime: set_time(atime), mtime: set_time(mtime) };
        hand_on!(self, request, Setattr, node.0, reply, |overlay, asked| overlay.setattr(
            asked,
            node.0,
            handle.map(|handle| handle.0),
            changes,
            reply
        ));
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        hand_on!(self, request, Readlink, node.0, reply, |overlay, asked| overlay.readlink(asked, node.0, reply));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        hand_on!(self, request, Mknod, parent.0, reply, |overlay, asked| overlay.make(
            asked,
            Op::Mknod,
            parent.0,
            name,
            Made::Node { mode: Asking { mode, umask }, rdev },
            reply
        ));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        hand_on!(self, request, Mkdir, parent.0, reply, |overlay, asked| overlay.make(
            asked,
            Op::Mkdir,
            parent.0,
            name,
            Made::Directory { mode: Asking { mode, umask } },
            reply
        ));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let what = Made::Symlink { target: target.as_os_str().to_owned() };
        hand_on!(self, request, Symlink, parent.0, reply, |overlay, asked| overlay.make(
            asked,
            Op::Symlink,
            parent.0,
            name,
            what,
            reply
        ));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        hand_on!(self, request, Unlink, parent.0, reply, |overlay, asked| overlay.unlink(asked, parent.0, name, reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        hand_on!(self, request, Rmdir, parent.0, reply, |overlay, asked| overlay.rmdir(asked, parent.0, name, reply));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        hand_on!(self, request, Rename, parent.0, reply, |overlay, asked| overlay.rename(
            asked,
            (parent.0, name.to_owned()),
            (new_parent.0, new_name.to_owned()),
            flags.bits(),
            reply
        ));
    }

    fn link(&self, request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        hand_on!(self, request, Link, node.0, reply, |overlay, asked| overlay
            .link(asked, node.0, parent.0, name, reply));
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        hand_on!(self, request, Open, node.0, reply, |overlay, asked| overlay.open(asked, node.0, flags.0, reply));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mode = Asking { mode, umask };
        hand_on!(self, request, Create, parent.0, reply, |overlay, asked| overlay
            .create(asked, parent.0, name, mode, flags, reply));
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        hand_on!(self, request, Read, node.0, reply, |overlay, asked| overlay
            .read(asked, handle.0, offset, size, reply));
    }

    fn write(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // By the flags of the moment (fcntl(2) may have changed them), and not of pages that the kernel writes back.
        let appends = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        hand_on!(self, request, Write, node.0, reply, |overlay, asked| overlay.write(
            asked,
            handle.0,
            Place::of(offset, appends),
            data,
            reply
        ));
    }

    fn flush(&self, request: &Request, node: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        hand_on!(self, request, Flush, node.0, reply, |overlay, asked| overlay.sync(
            asked,
            Op::Flush,
            handle.0,
            false,
            reply
        ));
    }

    fn fsync(&self, request: &Request, node: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        hand_on!(self, request, Fsync, node.0, reply, |overlay, asked| overlay.sync(
            asked,
            Op::Fsync,
            handle.0,
            data_only,
            reply
        ));
    }

    fn release(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        hand_on!(self, request, Release, handle.0, reply, |overlay, asked| overlay.release(asked, handle.0, reply));
    }

    fn opendir(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        hand_on!(self, request, Opendir, node.0, reply, |overlay, asked| overlay
            .opendir(asked, node.0, flags.0, reply));
    }

    fn readdir(&self, request: &Request, node: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        hand_on!(self, request, Readdir, node.0, reply, |overlay, asked| overlay
            .readdir(asked, node.0, handle.0, offset, reply));
    }

    fn readdirplus(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        hand_on!(self, request, Readdir, node.0, reply, |overlay, asked| overlay
            .readdirplus(asked, node.0, handle.0, offset, reply));
    }

    fn releasedir(&self, request: &Request, _node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        hand_on!(self, request, Releasedir, handle.0, reply, |overlay, asked| overlay
            .releasedir(asked, handle.0, reply));
    }

    fn fsyncdir(&self, request: &Request, node: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        hand_on!(self, request, Fsyncdir, node.0, reply, |overlay, asked| overlay.fsyncdir(asked, node.0, reply));
    }

    fn statfs(&self, request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        hand_on!(self, request, Statfs, ROOT, reply, |overlay, asked| overlay.statfs(asked, reply));
    }

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        hand_on!(self, request, Setxattr, node.0, reply, |overlay, asked| overlay
            .setxattr(asked, node.0, name, value, flags, reply));
    }

    fn getxattr(&self, request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        hand_on!(self, request, Getxattr, node.0, reply, |overlay, asked| overlay
            .getxattr(asked, node.0, name, size, reply));
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        hand_on!(self, request, Listxattr, node.0, reply, |overlay, asked| overlay
            .listxattr(asked, node.0, size, reply));
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        hand_on!(self, request, Removexattr, node.0, reply, |overlay, asked| overlay
            .removexattr(asked, node.0, name, reply));
    }

    fn fallocate(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        hand_on!(self, request, Fallocate, node.0, reply, |overlay, asked| overlay
            .fallocate(asked, handle.0, offset, length, mode, reply));
    }

    fn lseek(&self, request: &Request, node: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        hand_on!(self, request, Lseek, node.0, reply, |overlay, asked| overlay
            .lseek(asked, handle.0, offset, whence, reply));
    }

    fn ioctl(
        &self,
        request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        hand_on!(self, request, Ioctl, node.0, reply, |overlay, asked| overlay
            .ioctl(asked, node.0, command, data, reply));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        node_in: INodeNo,
        handle_in: FileHandle,
        offset_in: u64,
        _node_out: INodeNo,
        handle_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        hand_on!(self, request, CopyFileRange, node_in.0, reply, |overlay, asked| overlay.copy_file_range(
            asked,
            (handle_in.0, offset_in),
            (handle_out.0, offset_out),
            len,
            reply
        ));
    }
}
