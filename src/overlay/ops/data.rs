//! open, create, read, write, flush, fsync, release, lseek, fallocate, copy_file_range.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use fuser::{FopenFlags, ReplyCreate, ReplyData, ReplyEmpty, ReplyLseek, ReplyOpen, ReplyWrite};
use nix::errno::Errno;

use super::names::reply_empty;
use super::ownership::Asking;
use crate::backing::{Attr, File, FileKind, OpResult, Tree};
use crate::gate::{Class, Context, Op, Terms};
use crate::log::{Attempt, Change};
use crate::overlay::Overlay;
use crate::overlay::append::Place;
use crate::overlay::asked::{Asked, Caller};
use crate::overlay::convert::{errno, node_errno};
use crate::overlay::files::{LOST_FILE, OpenFile, first_flags};
use crate::overlay::inodes::Inode;

/// Most bytes of one copy_file_range; the kernel asks again for the rest. sshfs moves them over the link twice.
const COPY_AT_ONCE: u64 = 1 << 20;

type Opened = (u64, Box<dyn File>);

impl Overlay {
    /// FUSE_OPEN, with O_TRUNC if the caller gave it.
    pub fn open(self: &Arc<Self>, asked: Asked, node: u64, flags: i32, reply: ReplyOpen) {
        let by = asked.unique;
        self.submit(
            asked,
            Op::Open,
            Class::Meta,
            move |overlay, context| overlay.open_on_backing(context, node, flags),
            move |overlay, result| match result {
                Ok(opened) => {
                    reply.opened(fuser::FileHandle(overlay.keep(node, flags, opened, by)), FopenFlags::empty())
                }
                Err(error) => reply.error(node_errno(error)),
            },
        );
    }

    fn open_on_backing(&self, context: &Context<'_>, node: u64, flags: i32) -> OpResult<Opened> {
        let by_path = |tree: &dyn Tree, path: &Path| {
            let file = tree.open(path, first_flags(flags))?;
            // The kernel has checked the permissions of the node: if another file has its name by now, it is to look again.
            match self.traits.stable_inodes && !self.nodes.may_be(node, file.stat()?.identity) {
                true => Err(Errno::ENOENT),
                false => Ok(file),
            }
        };
        let open = || match self.on_path(context, node, by_path) {
            // By /proc/PID/fd, where the kernel finds files that have lost their names.
            Err(Errno::ENOENT) => self.open_nameless(context, node, first_flags(flags)),
            result => result,
        };
        if flags & libc::O_TRUNC == 0 {
            return Ok((context.generation.number(), open()?));
        }
        // Known from here on, so that the truncation has its place among the changes of whoever else opens the file.
        let inode = self.inodes.enter(node, || self.nodes.hold(node));
        let opened = self.open_truncating(context, &inode, open);
        self.inodes.leave(&inode);
        self.let_go(&inode);
        opened
    }

    /// What was written before is cut off, and stays so after a repair.
    fn open_truncating(
        &self,
        context: &Context<'_>,
        inode: &Arc<Inode>,
        open: impl FnOnce() -> OpResult<Box<dyn File>>,
    ) -> OpResult<Opened> {
        let generation = context.generation.number();
        let order = inode.order(context)?;
        self.prepare(context, inode, &order)?;
        let size = || Ok(self.stat_on_backing(context, inode.node, None)?.size);
        self.attempt(context, inode, Attempt::SetSize(0), size)?;
        let file = open()?;
        // sshfs goes on showing the size that it remembers if another file is written meanwhile (cache_add_attr in its
        // cache.c): a truncation makes it forget that. A descriptor that only reads cannot do it.
        if file.stat()?.size != 0 {
            match file.set_size(0) {
                Err(Errno::EINVAL | Errno::EBADF) => {}
                result => result?,
            }
        }
        if inode.is_clean() && !inode.is_shared() {
            // Nobody was promised anything that would have to be sent again.
            inode.with_log(&self.budget, |log| log.found_committed(0));
        } else {
            inode.record(&self.budget, generation, Change::SetSize(0))?;
        }
        Ok((generation, file))
    }

    fn keep(&self, node: u64, flags: i32, (generation, file): Opened, by: u64) -> u64 {
        self.nodes.opened(node);
        let inode = self.inodes.enter(node, || self.nodes.hold(node));
        if flags & (libc::O_TRUNC | libc::O_EXCL) != 0 {
            inode.with_log(&self.budget, |log| log.learn_size(0));
            inode.is_made();
        }
        let handle = self.files.insert(OpenFile::new(inode, flags, generation, file), by);
        // Opened while it lost its name, or after that.
        self.leave_if_nameless(node);
        self.cool();
        handle
    }

    /// FUSE_CREATE.
    pub fn create(
        self: &Arc<Self>,
        asked: Asked,
        parent: u64,
        name: &OsStr,
        mode: Asking,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (wanted, name) = (name.to_owned(), name.to_owned());
        if self.hides(&name) {
            return reply.error(fuser::Errno::EPERM);
        }
        let (by, caller) = (asked.unique, asked.caller);
        self.submit(
            asked,
            Op::Create,
            Class::Meta,
            move |overlay, context| overlay.create_on_backing(context, caller, parent, &wanted, mode, flags),
            move |overlay, result| match result {
                Ok((attr, opened)) => {
                    let node = overlay.nodes.remember(parent, &name, &attr, by);
                    let handle = overlay.keep(node, flags | libc::O_EXCL, opened, by);
                    let ttl = {
                        let seen = overlay.appearance();
                        seen.attr_timeout.min(seen.entry_timeout)
                    };
                    let (attr, generation) = (overlay.shown(node, &attr), overlay.life(node));
                    reply.created(&ttl, &attr, generation, fuser::FileHandle(handle), FopenFlags::empty());
                }
                // Somebody else made it since the kernel looked. Opening it here would pass the kernel's check of its
                // permissions by; with ESTALE the kernel looks again, and checks.
                Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => reply.error(fuser::Errno::ESTALE),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn create_on_backing(
        &self,
        context: &Context<'_>,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: Asking,
        flags: i32,
    ) -> OpResult<(Attr, Opened)> {
        self.on_name(context, parent, name, |tree, path| {
            // The kernel asks for a create when it found no such name, so what was not there is ours to give away.
            let mode = self.mode_of(mode, tree, path)?;
            let file = match tree.create(path, first_flags(flags) | libc::O_EXCL, mode) {
                // In doubt, an empty file is the one that an earlier generation made for this very call.
                Err(Errno::EEXIST) if context.in_doubt && is_empty_file(&tree.stat(path)?) => {
                    tree.open(path, first_flags(flags) & !(libc::O_EXCL | libc::O_CREAT))?
                }
                result => result?,
            };
            let attr = if self.traits.owners { self.give_to_caller(caller, tree, path)? } else { file.stat()? };
            self.nodes.made(parent, name, &attr);
            Ok((attr, (context.generation.number(), file)))
        })
    }

    /// FUSE_READ.
    pub fn read(self: &Arc<Self>, asked: Asked, handle: u64, offset: u64, size: u32, reply: ReplyData) {
        let Ok(file) = self.files.get(handle) else { return reply.error(fuser::Errno::EIO) };
        let worker = Arc::clone(self);
        self.submit_on(
            asked,
            Terms { bytes: u64::from(size), ..Terms::of(Op::Read, Class::Data) },
            move |context| {
                let mut data = vec![0; size as usize];
                let length = worker.read_whole(context, &file, offset, &mut data)?;
                data.truncate(length);
                worker.gate.stats().bytes_read.fetch_add(length as u64, Relaxed);
                Ok(data)
            },
            move |result| match result {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    /// A read that ends before the file does is an error of the server, which must not look like its end.
    fn read_whole(&self, context: &Context<'_>, file: &OpenFile, offset: u64, data: &mut [u8]) -> OpResult<usize> {
        let generation = &**context.generation;
        let mut refused = false;
        if file.inode.has_unsent(generation.number()) {
            let order = file.inode.order(context)?;
            refused = self.is_refused(context, &file.inode, &order)?;
        }
        let descriptor = self.descriptor(generation, file)?;
        let unstable_size = || if refused { None } else { file.inode.unstable_size() };
        let expected = unstable_size();
        let mut length = descriptor.read_at(data, offset)?;
        if length < data.len() {
            let size = match expected {
                // Somebody may have cut it since.
                Some(size) => size.min(unstable_size().unwrap_or(size)),
                None => descriptor.stat()?.size,
            };
            let wanted = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
            if length < wanted {
                length += descriptor.read_at(&mut data[length..wanted], offset + length as u64)?;
            }
            if length < wanted {
                // What was known of the size may be old: sshfs remembers attributes for a while.
                let size = match unstable_size() {
                    Some(size) => size,
                    None => self.reopen(generation, file.node, libc::O_RDONLY)?.stat()?.size,
                };
                if size >= offset + wanted as u64 {
                    return Err(Errno::EIO);
                }
            }
        }
        Ok(length)
    }

    /// FUSE_WRITE.
    pub fn write(self: &Arc<Self>, asked: Asked, handle: u64, mut place: Place, data: &[u8], reply: ReplyWrite) {
        let Ok(file) = self.files.get(handle) else { return reply.error(fuser::Errno::EIO) };
        let mut data = data.to_vec();
        // One that a predecessor may have taken in has to be looked for first.
        let at_once = if asked.again() { None } else { self.write_at_once(&file, place, &mut data) };
        if let Some(written) = at_once {
            self.gate.stats().bytes_written.fetch_add(written as u64, Relaxed);
            reply.written(u32::try_from(written).unwrap_or(u32::MAX));
            return self.after_write(&file.inode);
        }
        let worker = Arc::clone(self);
        let (committer, inode) = (Arc::clone(self), Arc::clone(&file.inode));
        self.submit_on(
            asked,
            Terms { bytes: data.len() as u64, ..Terms::of(Op::Write, Class::Data) },
            move |context| {
                let written = worker.write_logged(context, &file, &mut place, &mut data)?;
                worker.gate.stats().bytes_written.fetch_add(written as u64, Relaxed);
                Ok(written)
            },
            move |result| match result {
                Ok(written) => {
                    reply.written(u32::try_from(written).unwrap_or(u32::MAX));
                    committer.after_write(&inode);
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    /// FUSE_FLUSH (close) and FUSE_FSYNC: 0 only if everything written before is committed.
    pub fn sync(self: &Arc<Self>, asked: Asked, op: Op, handle: u64, data_only: bool, reply: ReplyEmpty) {
        let Ok(file) = self.files.get(handle) else { return reply.error(fuser::Errno::EIO) };
        // A close tells, but does not count as having told: it may be a child's, who never looks at the answer.
        let tells = op == Op::Fsync;
        if op == Op::Flush && file.inode.is_clean() && file.untold_error(false).is_none() && !file.inode.is_lost() {
            return reply.ok();
        }
        let (worker, teller, told) = (Arc::clone(self), Arc::clone(self), Arc::clone(&file));
        self.submit_on(
            asked,
            Terms::of(op, Class::Sync),
            move |context| {
                if file.inode.is_lost() {
                    return Err(LOST_FILE);
                }
                let clean = file.inode.is_clean();
                worker.commit(context, &file.inode, data_only)?;
                if clean && op == Op::Fsync {
                    // Nothing of ours, but perhaps the size or the times.
                    let generation = &**context.generation;
                    let descriptor = worker.descriptor(generation, &file)?;
                    worker.sync_file(generation, &**descriptor, data_only)?;
                }
                Ok(())
            },
            move |result| match told.untold_error(tells) {
                Some(error) => {
                    reply.error(errno(result.err().unwrap_or(error)));
                    if tells {
                        teller.files.has_been_told(&told);
                    }
                }
                None => reply_empty(result, reply),
            },
        );
    }

    /// FUSE_RELEASE: answered at once. Closing the backing's descriptor may block, so the pool does it.
    pub fn release(self: &Arc<Self>, asked: Asked, handle: u64, reply: ReplyEmpty) {
        let file = self.files.remove(handle);
        reply.ok();
        drop(asked);
        if let Some(file) = file {
            self.let_handle_go(file);
        }
    }

    /// What closing a handle takes, once nobody can use it any more.
    pub(in crate::overlay) fn let_handle_go(self: &Arc<Self>, file: Arc<OpenFile>) {
        let node = file.node;
        let last = self.nodes.closing(node);
        self.inodes.leave(&file.inode);
        let inode = Arc::clone(&file.inode);
        if last && self.is_seen_by_nobody(node) {
            inode.abandon(&self.budget);
        }
        self.submit(
            Asked::internal(),
            Op::Release,
            Class::Sync,
            move |overlay, context| {
                // Before the removal: sshfs would only hide what it knows to be open.
                file.close_here();
                if !last {
                    return Ok(());
                }
                overlay.commit(context, &file.inode, false)?;
                file.inode.close_here();
                overlay.remove_hidden(context, node)
            },
            move |overlay, result| {
                if last && result.is_err() {
                    overlay.doom_hidden(node);
                }
                overlay.let_go(&inode);
                if last {
                    overlay.heirlooms.release(node);
                }
                overlay.nodes.closed(node);
            },
        );
    }

    /// FUSE_LSEEK with SEEK_DATA or SEEK_HOLE.
    pub fn lseek(self: &Arc<Self>, asked: Asked, handle: u64, offset: i64, whence: i32, reply: ReplyLseek) {
        self.on_file(
            asked,
            Op::Lseek,
            handle,
            move |file| file.seek(offset, whence),
            |result| match result {
                Ok(offset) => reply.offset(offset),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    /// FUSE_FALLOCATE.
    pub fn fallocate(
        self: &Arc<Self>,
        asked: Asked,
        handle: u64,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let inode = match self.inode_of(handle) {
            Ok(inode) => inode,
            Err(error) => return reply.error(errno(error)),
        };
        self.submit(
            asked,
            Op::Fallocate,
            Class::Sync,
            move |overlay, context| {
                // Twice would move the data twice, and nobody can tell whether it was done.
                if context.in_doubt && mode & (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) != 0 {
                    return Err(LOST_FILE);
                }
                overlay.change_unlogged(context, &inode, |file| file.allocate(mode, offset, length))
            },
            |_, result| reply_empty(result, reply),
        );
    }

    /// FUSE_COPY_FILE_RANGE: (handle, offset) from and to.
    pub fn copy_file_range(
        self: &Arc<Self>,
        asked: Asked,
        from: (u64, u64),
        to: (u64, u64),
        length: u64,
        reply: ReplyWrite,
    ) {
        let (source, target) = match (self.files.get(from.0), self.inode_of(to.0)) {
            (Ok(source), Ok(target)) => (source, target),
            _ => return reply.error(fuser::Errno::EIO),
        };
        let (worker, length) = (Arc::clone(self), length.min(COPY_AT_ONCE));
        self.submit_on(
            asked,
            Terms { bytes: length, ..Terms::of(Op::CopyFileRange, Class::Data) },
            move |context| {
                worker.show(context, source.node)?;
                worker.change_unlogged(context, &target, |file| {
                    let source = worker.descriptor(&**context.generation, &source)?;
                    source.copy_to(from.1, file, to.1, length)
                })
            },
            |result| match result {
                Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn inode_of(&self, handle: u64) -> OpResult<Arc<Inode>> {
        self.files.get(handle).map(|file| Arc::clone(&file.inode))
    }

    fn on_file<T: Send + 'static>(
        self: &Arc<Self>,
        asked: Asked,
        op: Op,
        handle: u64,
        work: impl Fn(&dyn File) -> OpResult<T> + Send + 'static,
        reply: impl FnOnce(OpResult<T>) + Send + 'static,
    ) {
        let file = match self.files.get(handle) {
            Ok(file) => file,
            Err(error) => return reply(Err(error)),
        };
        self.submit(
            asked,
            op,
            Class::Meta,
            move |overlay, context| {
                overlay.show(context, file.node)?;
                work(&**overlay.descriptor(&**context.generation, &file)?)
            },
            |_, result| reply(result),
        );
    }
}

fn is_empty_file(attr: &Attr) -> bool {
    attr.kind == FileKind::Regular && attr.size == 0
}
