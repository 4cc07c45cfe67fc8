//! open, create, read, write, flush, fsync, release, lseek, fallocate, copy_file_range.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use fuser::{
    FopenFlags, Generation as NodeGeneration, ReplyCreate, ReplyData, ReplyEmpty, ReplyLseek, ReplyOpen, ReplyWrite,
};
use nix::errno::Errno;

use super::Caller;
use super::names::reply_empty;
use crate::backing::{Attr, File, FileKind, OpResult};
use crate::gate::{Class, Context, Op};
use crate::overlay::closer::Descriptor;
use crate::overlay::convert::{errno, file_attr, node_errno};
use crate::overlay::files::{OpenFile, first_flags};
use crate::overlay::unsynced::{Change, Promise};
use crate::overlay::{Overlay, is_hidden};

/// Most bytes of one copy_file_range; the kernel asks again for the rest. sshfs moves them over the link twice.
const COPY_AT_ONCE: u64 = 1 << 20;

type Opened = (u64, Box<dyn File>);

impl Overlay {
    /// FUSE_OPEN, with O_TRUNC if the caller gave it.
    pub fn open(self: &Arc<Self>, node: u64, flags: i32, reply: ReplyOpen) {
        self.submit(
            Op::Open,
            Class::Meta,
            move |overlay, context| {
                let file = overlay.on_path(context, node, |tree, path| tree.open(path, first_flags(flags)))?;
                Ok((context.generation.number(), file))
            },
            move |overlay, result| match result {
                Ok(opened) => reply.opened(fuser::FileHandle(overlay.keep(node, flags, opened)), FopenFlags::empty()),
                Err(error) => reply.error(node_errno(error)),
            },
        );
    }

    fn keep(&self, node: u64, flags: i32, (generation, file): Opened) -> u64 {
        self.nodes.opened(node);
        let file = OpenFile::new(node, flags, generation, file);
        if flags & libc::O_TRUNC != 0 {
            file.unsynced.lock().changed(generation, Change::Size(0));
        }
        self.files.insert(file)
    }

    /// FUSE_CREATE.
    pub fn create(
        self: &Arc<Self>,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (asked, name) = (name.to_owned(), name.to_owned());
        if is_hidden(&name) {
            return reply.error(fuser::Errno::EPERM);
        }
        self.submit(
            Op::Create,
            Class::Meta,
            move |overlay, context| overlay.create_on_backing(context, caller, parent, &asked, mode, flags),
            move |overlay, result| match result {
                Ok((attr, opened)) => {
                    let node = overlay.nodes.remember(parent, &name, &attr);
                    let handle = overlay.keep(node, flags, opened);
                    let ttl = overlay.config.attr_timeout.min(overlay.config.entry_timeout);
                    let (attr, generation) = (file_attr(node, &attr), NodeGeneration(0));
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
        mode: u32,
        flags: i32,
    ) -> OpResult<(Attr, Opened)> {
        self.on_name(context, parent, name, |tree, path| {
            // The kernel asks for a create when it found no such name, so what was not there is ours to give away.
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
    pub fn read(self: &Arc<Self>, handle: u64, offset: u64, size: u32, reply: ReplyData) {
        let Ok(file) = self.files.get(handle) else { return reply.error(fuser::Errno::EBADF) };
        let worker = Arc::clone(self);
        self.gate.submit(
            Op::Read,
            Class::Data,
            u64::from(size),
            move |context| {
                let mut data = vec![0; size as usize];
                let length = file.in_generation(&worker.nodes, &**context.generation)?.read_at(&mut data, offset)?;
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

    /// FUSE_WRITE. The kernel gives appenders their offset too.
    pub fn write(self: &Arc<Self>, handle: u64, offset: u64, data: &[u8], reply: ReplyWrite) {
        let Ok(file) = self.files.get(handle) else { return reply.error(fuser::Errno::EBADF) };
        let (worker, data) = (Arc::clone(self), data.to_vec());
        let (committer, written_to) = (Arc::clone(self), Arc::clone(&file));
        self.gate.submit(
            Op::Write,
            Class::Data,
            data.len() as u64,
            move |context| {
                let descriptor = file.in_generation(&worker.nodes, &**context.generation)?;
                let written = write_all(&**descriptor, &data, offset).or_else(|error| why_not(context, error))?;
                let change = Change::Data(offset, &data[..written]);
                file.unsynced.lock().changed(context.generation.number(), change);
                worker.gate.stats().bytes_written.fetch_add(written as u64, Relaxed);
                Ok(written)
            },
            move |result| match result {
                Ok(written) => {
                    reply.written(u32::try_from(written).unwrap_or(u32::MAX));
                    if written_to.unsynced.lock().wants_commit() {
                        committer.commit(written_to);
                    }
                }
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    /// Commits in the background what a handle has written. Whatever comes of it, the next fsync finds out itself.
    fn commit(self: Arc<Self>, file: Arc<OpenFile>) {
        let gate = Arc::clone(&self.gate);
        gate.submit(Op::Fsync, Class::Sync, 0, move |context| self.sync_on_backing(context, &file, true), |_| {});
    }

    /// FUSE_FLUSH (close) and FUSE_FSYNC: 0 only if everything written before is committed.
    pub fn sync(self: &Arc<Self>, op: Op, handle: u64, data_only: bool, reply: ReplyEmpty) {
        let Ok(file) = self.files.get(handle) else { return reply.error(fuser::Errno::EBADF) };
        if op == Op::Flush && file.unsynced.lock().is_clean() {
            return reply.ok();
        }
        let (worker, reported) = (Arc::clone(self), Arc::clone(&file));
        self.gate.submit(
            op,
            Class::Sync,
            0,
            move |context| worker.sync_on_backing(context, &file, data_only),
            move |result| match result {
                // Forgotten only now that the caller is really told.
                Ok(Promise::Lost) => {
                    reported.unsynced.lock().forget();
                    reply.error(fuser::Errno::EIO);
                }
                result => reply_empty(result.map(|_| ()), reply),
            },
        );
    }

    fn sync_on_backing(&self, context: &Context<'_>, file: &OpenFile, data_only: bool) -> OpResult<Promise> {
        let generation = context.generation.number();
        let promise = file.unsynced.lock().begin(generation);
        if promise == Promise::Lost || matches!(promise, Promise::Verify(_)) && !self.is_found(context, file)? {
            return Ok(Promise::Lost);
        }
        let descriptor = file.in_generation(&self.nodes, &**context.generation)?;
        descriptor.sync(data_only).or_else(|error| why_not(context, error))?;
        if let Promise::Sync(ticket) | Promise::Verify(ticket) = promise {
            file.unsynced.lock().synced(ticket, generation);
        }
        Ok(promise)
    }

    /// True if everything that earlier generations acknowledged for this handle is there.
    fn is_found(&self, context: &Context<'_>, file: &OpenFile) -> OpResult<bool> {
        // The handle itself may be open for writing only.
        let seen = match self.on_path(context, file.node, |tree, path| tree.open(path, libc::O_RDONLY)) {
            Ok(seen) => Descriptor::new(seen),
            Err(Errno::EACCES | Errno::ENOENT | Errno::ESTALE) => return Ok(false),
            Err(error) => return Err(error),
        };
        let alone = self.files.of_node(file.node).len() <= 1;
        let unsynced = file.unsynced.lock().clone();
        unsynced.is_found_in(&*seen, alone)
    }

    /// FUSE_RELEASE: answered at once. Closing the backing's descriptor may block, so the pool does it.
    pub fn release(self: &Arc<Self>, handle: u64, reply: ReplyEmpty) {
        reply.ok();
        let Some(file) = self.files.remove(handle) else { return };
        let node = file.node;
        let last = self.nodes.closing(node);
        let leftover = self.hidden_path(node).ok().filter(|_| last).map(|(path, _)| path);
        self.submit(
            Op::Release,
            Class::Sync,
            move |overlay, context| {
                // Before the removal: sshfs would only hide what it knows to be open.
                file.close_here();
                if last { overlay.remove_hidden(context, node) } else { Ok(()) }
            },
            move |overlay, result| {
                if result.is_err() {
                    overlay.leftovers.lock().extend(leftover);
                }
                overlay.nodes.closed(node);
            },
        );
    }

    /// FUSE_LSEEK with SEEK_DATA or SEEK_HOLE.
    pub fn lseek(self: &Arc<Self>, handle: u64, offset: i64, whence: i32, reply: ReplyLseek) {
        self.on_file(
            Op::Lseek,
            handle,
            move |_, file| file.seek(offset, whence),
            |result| match result {
                Ok(offset) => reply.offset(offset),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    /// FUSE_FALLOCATE.
    pub fn fallocate(self: &Arc<Self>, handle: u64, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        let written = self.files.get(handle);
        self.on_file(
            Op::Fallocate,
            handle,
            move |context, file| {
                file.allocate(mode, offset, length)?;
                if let Ok(written) = &written {
                    written.unsynced.lock().changed(context.generation.number(), Change::Opaque);
                }
                Ok(())
            },
            |result| reply_empty(result, reply),
        );
    }

    /// FUSE_COPY_FILE_RANGE: (handle, offset) from and to.
    pub fn copy_file_range(self: &Arc<Self>, from: (u64, u64), to: (u64, u64), length: u64, reply: ReplyWrite) {
        let (source, target) = match (self.files.get(from.0), self.files.get(to.0)) {
            (Ok(source), Ok(target)) => (source, target),
            _ => return reply.error(fuser::Errno::EBADF),
        };
        let (worker, length) = (Arc::clone(self), length.min(COPY_AT_ONCE));
        self.gate.submit(
            Op::CopyFileRange,
            Class::Data,
            length,
            move |context| {
                let source = source.in_generation(&worker.nodes, &**context.generation)?;
                let descriptor = target.in_generation(&worker.nodes, &**context.generation)?;
                let copied = source.copy_to(from.1, &**descriptor, to.1, length)?;
                target.unsynced.lock().changed(context.generation.number(), Change::Opaque);
                Ok(copied)
            },
            |result| match result {
                Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
                Err(error) => reply.error(errno(error)),
            },
        );
    }

    fn on_file<T: Send + 'static>(
        self: &Arc<Self>,
        op: Op,
        handle: u64,
        work: impl Fn(&Context<'_>, &dyn File) -> OpResult<T> + Send + 'static,
        reply: impl FnOnce(OpResult<T>) + Send + 'static,
    ) {
        let file = match self.files.get(handle) {
            Ok(file) => file,
            Err(error) => return reply(Err(error)),
        };
        self.submit(
            op,
            Class::Meta,
            move |overlay, context| work(context, &**file.in_generation(&overlay.nodes, &**context.generation)?),
            |_, result| reply(result),
        );
    }
}

fn is_empty_file(attr: &Attr) -> bool {
    attr.kind == FileKind::Regular && attr.size == 0
}

fn write_all(file: &dyn File, data: &[u8], offset: u64) -> OpResult<usize> {
    let mut done = 0;
    while done < data.len() {
        match file.write_at(&data[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(written) => done += written,
            // What was written is written; the kernel asks again for the rest and is told then.
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// sshfs says EIO whatever the server said. If the store is full, that is what it was.
fn why_not<T>(context: &Context<'_>, error: Errno) -> OpResult<T> {
    let full = error == Errno::EIO
        && context.generation.tree().stat_fs().is_ok_and(|figures| figures.blocks > 0 && figures.blocks_available == 0);
    Err(if full { Errno::ENOSPC } else { error })
}
