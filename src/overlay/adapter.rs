//! fuser's trait, and nothing else: each method unpacks a request and hands it on. No request is answered here by policy,
//! and none is waited for.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::*;

use super::Overlay;
use super::convert::set_time;
use super::ops::Caller;
use super::ops::attributes::Changes;
use super::ops::names::Made;
use crate::gate::Op;

/// Largest write the kernel may send in one request. More would only make a slow link's queue longer.
const MAX_WRITE: u32 = 128 << 10;
/// Requests of read-ahead and direct I/O that may be under way at once; the kernel's default of 12 starves readers.
const MAX_BACKGROUND: u16 = 64;

/// The overlay as fuser sees it.
pub struct Adapter(pub Arc<Overlay>);

/// A panic costs its caller an EIO (fuser answers for a reply that is dropped), not the thread that reads requests: with
/// the last of these gone every caller would hang.
fn guarded(hand_on: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(hand_on)).is_err() {
        tracing::error!("a request panicked; it is answered with EIO");
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ];
        for flag in wanted {
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

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded(|| self.0.lookup(parent.0, name, reply));
    }

    fn forget(&self, _request: &Request, node: INodeNo, lookups: u64) {
        guarded(|| self.0.nodes.forget(node.0, lookups));
    }

    fn getattr(&self, _request: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        guarded(|| self.0.getattr(node.0, handle.map(|handle| handle.0), reply));
    }

    fn setattr(
        &self,
        _request: &Request,
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
        guarded(|| self.0.setattr(node.0, handle.map(|handle| handle.0), changes, reply));
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        guarded(|| self.0.readlink(node.0, reply));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        guarded(|| self.0.make(Op::Mknod, caller(request), parent.0, name, Made::Node { mode, rdev }, reply));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        guarded(|| self.0.make(Op::Mkdir, caller(request), parent.0, name, Made::Directory { mode }, reply));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let what = Made::Symlink { target: target.as_os_str().to_owned() };
        guarded(|| self.0.make(Op::Symlink, caller(request), parent.0, name, what, reply));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(|| self.0.unlink(parent.0, name, reply));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(|| self.0.rmdir(parent.0, name, reply));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            self.0.rename((parent.0, name.to_owned()), (new_parent.0, new_name.to_owned()), flags.bits(), reply)
        });
    }

    fn link(&self, _request: &Request, node: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded(|| self.0.link(node.0, parent.0, name, reply));
    }

    fn open(&self, _request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded(|| self.0.open(node.0, flags.0, reply));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        guarded(|| self.0.create(caller(request), parent.0, name, mode, flags, reply));
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded(|| self.0.read(handle.0, offset, size, reply));
    }

    fn write(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        guarded(|| self.0.write(handle.0, offset, data, reply));
    }

    fn flush(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        guarded(|| self.0.sync(Op::Flush, handle.0, false, reply));
    }

    fn fsync(&self, _request: &Request, _node: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        guarded(|| self.0.sync(Op::Fsync, handle.0, data_only, reply));
    }

    fn release(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        guarded(|| self.0.release(handle.0, reply));
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        guarded(|| self.0.opendir(node.0, reply));
    }

    fn readdir(&self, _request: &Request, node: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        guarded(|| self.0.readdir(node.0, handle.0, offset, reply));
    }

    fn readdirplus(
        &self,
        _request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        guarded(|| self.0.readdirplus(node.0, handle.0, offset, reply));
    }

    fn releasedir(&self, _request: &Request, _node: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        guarded(|| self.0.releasedir(handle.0, reply));
    }

    fn fsyncdir(&self, _request: &Request, node: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        guarded(|| self.0.fsyncdir(node.0, reply));
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        guarded(|| self.0.statfs(reply));
    }

    fn setxattr(
        &self,
        _request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        guarded(|| self.0.setxattr(node.0, name, value, flags, reply));
    }

    fn getxattr(&self, _request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        guarded(|| self.0.getxattr(node.0, name, size, reply));
    }

    fn listxattr(&self, _request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        guarded(|| self.0.listxattr(node.0, size, reply));
    }

    fn removexattr(&self, _request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded(|| self.0.removexattr(node.0, name, reply));
    }

    fn fallocate(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        guarded(|| self.0.fallocate(handle.0, offset, length, mode, reply));
    }

    fn lseek(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        guarded(|| self.0.lseek(handle.0, offset, whence, reply));
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _node_in: INodeNo,
        handle_in: FileHandle,
        offset_in: u64,
        _node_out: INodeNo,
        handle_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        guarded(|| self.0.copy_file_range((handle_in.0, offset_in), (handle_out.0, offset_out), len, reply));
    }
}
