//! Sending changes to the backing, committing them, and sending them again after a repair (promise P4).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Overlay;
use super::append::Place;
use super::asked::Asked;
use super::closer::Descriptor;
use super::files::{LOST_FILE, OpenFile};
use super::inodes::{Inode, Order, Writer};
use crate::backing::{File, FileKind, Generation, OpResult};
use crate::gate::policy::raises_doubt;
use crate::gate::{Class, Context, Op};
use crate::handover::Item;
use crate::log::{Attempt, Change, Changes, file};

/// What is written at once in a replay: progress is seen in steps of this.
const PIECE: usize = 128 << 10;
/// How long a file is not looked for while it is being renamed: as long as a call may take, by default.
const RENAMING: Duration = Duration::from_secs(5);

/// Why something could not be sent again.
enum Refusal {
    /// The file is not the one that was written to.
    Lost(String),
    /// The backing said so.
    Errno(Errno),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        if errno == LOST_FILE { Refusal::Lost("it is not there any more".into()) } else { Refusal::Errno(errno) }
    }
}

impl From<file::Mismatch> for Refusal {
    fn from(mismatch: file::Mismatch) -> Refusal {
        Refusal::Lost(mismatch.to_string())
    }
}

impl Overlay {
    /// Hands a write to the backing and keeps it until a commit. Returns how many bytes were written.
    pub(super) fn write_logged(
        self: &Arc<Self>,
        context: &Context<'_>,
        file: &OpenFile,
        place: &mut Place,
        data: &mut Vec<u8>,
    ) -> OpResult<usize> {
        self.make_room(context, &file.inode, data.len() as u64)?;
        let generation = context.generation.number();
        let order = file.inode.order(context)?;
        self.prepare(context, &file.inode, &order)?;
        let length = data.len();
        let offset = self.offset_of(context, &file.inode, place, data, &order)?;
        if !context.is_abandoned() && self.hold_back(file, generation, (offset, place.is_end()), data, &order) {
            context.keeps_its_payload();
            return Ok(length);
        }
        let attempt = Attempt::Write(offset, offset + length as u64);
        let written = self.changing(context, &file.inode, attempt, &order, |writer| {
            let written = write_all(writer, data, offset).or_else(|error| why_not(&**context.generation, error))?;
            let mut rest = data.split_off(written);
            let recorded = file.inode.record(&self.budget, generation, Change::Write(offset, data));
            file.inode.wrote(place.is_end());
            if recorded.is_err() {
                // It will be written again, whole.
                data.append(&mut rest);
            }
            recorded.map(|()| written)
        })?;
        drop(order);
        if file.is_synchronous() {
            self.commit(context, &file.inode, true)?;
        }
        Ok(written)
    }

    /// ftruncate(2) through the log.
    pub(super) fn set_size_logged(&self, context: &Context<'_>, inode: &Arc<Inode>, size: u64) -> OpResult<()> {
        let order = inode.order(context)?;
        self.prepare(context, inode, &order)?;
        self.changing(context, inode, Attempt::SetSize(size), &order, |writer| {
            writer.set_size(size)?;
            inode.record(&self.budget, context.generation.number(), Change::SetSize(size))
        })
    }

    /// Runs a change of a file that has no place in the log: everything before it is committed first, and it is committed
    /// itself before it is acknowledged.
    pub(super) fn change_unlogged<T>(
        &self,
        context: &Context<'_>,
        inode: &Arc<Inode>,
        change: impl FnOnce(&dyn File) -> OpResult<T>,
    ) -> OpResult<T> {
        let order = inode.order(context)?;
        self.prepare(context, inode, &order)?;
        self.commit_in_order(context, inode, false, &order)?;
        let writer = self.writer(&**context.generation, inode)?;
        self.attempt(context, inode, Attempt::Any, || Ok(writer.descriptor.stat()?.size))?;
        let result = change(&**writer.descriptor)?;
        writer.descriptor.sync(false)?;
        let size = writer.descriptor.stat()?.size;
        inode.with_log(&self.budget, |log| log.found_committed(size));
        Ok(result)
    }

    /// Runs a change in a generation that has seen everything before it.
    fn changing<T>(
        &self,
        context: &Context<'_>,
        inode: &Arc<Inode>,
        attempt: Attempt,
        _order: &Order<'_>,
        change: impl FnOnce(&dyn File) -> OpResult<T>,
    ) -> OpResult<T> {
        let writer = self.writer(&**context.generation, inode)?;
        self.attempt(context, inode, attempt, || Ok(writer.descriptor.stat()?.size))?;
        change(&**writer.descriptor)
    }

    /// Right before a change is handed to a generation that has seen everything before it, with the file's order held.
    pub(super) fn attempt(
        &self,
        context: &Context<'_>,
        inode: &Inode,
        attempt: Attempt,
        size: impl FnOnce() -> OpResult<u64>,
    ) -> OpResult<()> {
        if inode.with_log(&self.budget, |log| log.wants_size()) {
            let (generation, size) = (context.generation.number(), size()?);
            inode.with_log(&self.budget, |log| log.found(generation, size)).map_err(|_| Errno::ENOTCONN)?;
        }
        // Somebody may have been told that this failed and may have gone on: it must not be done now.
        if context.is_abandoned() {
            return Err(Errno::ENOTCONN);
        }
        inode.with_log(&self.budget, |log| log.attempt(attempt));
        Ok(())
    }

    /// Sees to it that a generation has seen everything that is unstable of a file.
    pub(super) fn prepare(&self, context: &Context<'_>, inode: &Arc<Inode>, order: &Order<'_>) -> OpResult<()> {
        if inode.is_lost() {
            return Err(LOST_FILE);
        }
        let generation = &**context.generation;
        if !inode.needs_replay(&self.budget, generation.number()) {
            return self.hand_over(context, inode, order);
        }
        match inode.refusal() {
            Some(error) => Err(error),
            None => self.replay(generation, inode, order),
        }
    }

    /// As [`Overlay::prepare`], for whoever reads. True if the backing, which is well, goes on refusing what the file's writers are
    /// told of by fsync and close: to him it is as the backing has it.
    pub(super) fn is_refused(&self, context: &Context<'_>, inode: &Arc<Inode>, order: &Order<'_>) -> OpResult<bool> {
        if inode.refusal().is_some() {
            return Ok(true);
        }
        match self.prepare(context, inode, order) {
            Err(error) if inode.was_refused() && is_refused(&**context.generation, error) => Ok(true),
            result => result.map(|()| false),
        }
    }

    /// Waits for room in the log. What frees room is started here if nobody has.
    fn make_room(self: &Arc<Self>, context: &Context<'_>, inode: &Inode, bytes: u64) -> OpResult<()> {
        while !self.budget.wait(bytes) {
            if let Some(error) = inode.refusal() {
                return Err(error);
            }
            self.relieve();
            if context.is_abandoned() {
                return Err(Errno::ENOTCONN);
            }
        }
        Ok(())
    }

    /// After a write: what is due is committed in the background.
    pub(super) fn after_write(self: &Arc<Self>, inode: &Arc<Inode>) {
        if self.budget.is_half_full() {
            self.relieve();
        } else if inode.is_due() {
            self.commit_soon(inode);
        }
    }

    /// Commits the file that keeps most of the log, in the background.
    fn relieve(self: &Arc<Self>) {
        if let Some(inode) = self.inodes.largest().filter(|inode| inode.cost() > 0) {
            self.commit_soon(&inode);
        }
    }

    /// Commits a file in the background, unless that is being done. Who wrote learns of a failure at fsync or close.
    pub(super) fn commit_soon(self: &Arc<Self>, inode: &Arc<Inode>) {
        if inode.committing.swap(true, Relaxed) {
            return;
        }
        let (inode, ended) = (Arc::clone(inode), Arc::clone(inode));
        self.submit(
            Asked::internal(),
            Op::Fsync,
            Class::Sync,
            move |overlay, context| overlay.commit(context, &inode, true),
            move |overlay, _| {
                ended.committing.store(false, Relaxed);
                overlay.let_go(&ended);
            },
        );
    }

    /// After the last handle or the last commit: forgets a file that nobody needs. What a live backing will not take of
    /// a file that nobody has open any more goes to the spool: whoever closed it was told.
    pub(super) fn let_go(&self, inode: &Arc<Inode>) {
        if inode.refusal().is_some() && !inode.is_open() {
            let error = inode.errors().1;
            // Saved before it is given up: whoever takes over in between must not find it in neither place.
            self.save(inode, inode.whole_log(), &format!("the backing did not take it: {}", error.desc()));
            inode.abandon(&self.budget);
        }
        if self.inodes.forget_if_idle(inode) {
            self.nodes.closed(inode.node);
        }
    }

    /// Commits what is unstable of a file; nothing to do is success.
    pub(super) fn commit(&self, context: &Context<'_>, inode: &Arc<Inode>, data_only: bool) -> OpResult<()> {
        if inode.needs_replay(&self.budget, context.generation.number()) {
            let order = inode.order(context)?;
            return self.commit_in_order(context, inode, data_only, &order);
        }
        match self.try_commit(context, inode, data_only, None)? {
            Ended::Well => Ok(()),
            // The server has refused something of it: everything is sent again, once, and the answer to that counts.
            Ended::Refused => {
                let order = inode.order(context)?;
                self.prepare(context, inode, &order)
            }
        }
    }

    fn commit_in_order(
        &self,
        context: &Context<'_>,
        inode: &Arc<Inode>,
        data_only: bool,
        order: &Order<'_>,
    ) -> OpResult<()> {
        self.prepare(context, inode, order)?;
        match self.try_commit(context, inode, data_only, Some(order))? {
            Ended::Well => Ok(()),
            Ended::Refused => self.prepare(context, inode, order),
        }
    }

    /// `order` is the file's, if it is held.
    fn try_commit(
        &self,
        context: &Context<'_>,
        inode: &Arc<Inode>,
        data_only: bool,
        order: Option<&Order<'_>>,
    ) -> OpResult<Ended> {
        let generation = &**context.generation;
        let ticket = loop {
            match self.begin(context, inode, order)? {
                file::Begin::Held => {}
                file::Begin::Clean => return if inode.is_lost() { Err(LOST_FILE) } else { Ok(Ended::Well) },
                file::Begin::Busy => inode.wait(context)?,
                file::Begin::Commit(ticket) => break ticket,
            }
        };
        let writer = self.writer(generation, inode);
        let synced = writer.and_then(|writer| self.sync_file(generation, &**writer.descriptor, data_only));
        match synced {
            Ok(()) => inode.committed(&self.budget, &ticket, generation.number()).map(|()| Ended::Well),
            Err(error) => {
                let refused = is_refused(generation, error);
                inode.failed(&self.budget, &ticket, refused);
                if refused { Ok(Ended::Refused) } else { Err(error) }
            }
        }
    }

    /// Begins a commit after what is held back was handed over. The order is not kept: writes go on during an fsync.
    fn begin(&self, context: &Context<'_>, inode: &Arc<Inode>, order: Option<&Order<'_>>) -> OpResult<file::Begin> {
        if inode.held_since().is_none() {
            return Ok(inode.begin(&self.budget));
        }
        let taken = if order.is_none() { Some(inode.order(context)?) } else { None };
        if let Some(order) = order.or(taken.as_ref()) {
            self.prepare(context, inode, order)?;
        }
        Ok(inode.begin(&self.budget))
    }

    /// Sends everything unstable of a file to a generation and commits it there.
    pub(super) fn replay(&self, generation: &dyn Generation, inode: &Arc<Inode>, _order: &Order<'_>) -> OpResult<()> {
        let settled = self.settle_truncation(generation, inode);
        let ticket = inode.with_log(&self.budget, |log| log.begin_replay());
        match settled.and_then(|()| self.send_again(generation, inode, &ticket.changes)) {
            Ok(size) => {
                self.replayed_bytes.fetch_add(ticket.changes.bytes(), Relaxed);
                inode.committed(&self.budget, &ticket, generation.number())?;
                inode.with_log(&self.budget, |log| log.found_committed(size));
                Ok(())
            }
            Err(Refusal::Lost(reason)) => {
                self.lose(inode, &reason);
                Err(LOST_FILE)
            }
            Err(Refusal::Errno(error)) => {
                let refused = is_refused(generation, error);
                inode.failed(&self.budget, &ticket, true);
                if !refused {
                    return Err(error);
                }
                let error = why_not::<()>(generation, error).err().unwrap_or(error);
                inode.refuse(error);
                Err(error)
            }
        }
    }

    /// Before anything is sent again: a truncation whose caller was told an error may have been done.
    fn settle_truncation(&self, generation: &dyn Generation, inode: &Arc<Inode>) -> Result<(), Refusal> {
        if inode.with_log(&self.budget, |log| log.is_truncation_in_doubt()) {
            let found = self.writer(generation, inode)?.descriptor.stat()?.size;
            inode.with_log(&self.budget, |log| log.settle_truncation(found));
        }
        Ok(())
    }

    /// Returns the size of the file in the end.
    fn send_again(&self, generation: &dyn Generation, inode: &Arc<Inode>, changes: &Changes) -> Result<u64, Refusal> {
        let writer = self.writer(generation, inode)?;
        let file = &**writer.descriptor;
        if let Some(cut) = changes.cut() {
            file.set_size(cut)?;
        }
        for (offset, data) in changes.extents() {
            for (number, piece) in data.chunks(PIECE).enumerate() {
                let at = offset + (number * PIECE) as u64;
                if write_all(file, piece, at)? != piece.len() {
                    return Err(Errno::EIO.into());
                }
            }
        }
        if let Some(size) = changes.size() {
            file.set_size(size)?;
        }
        file.sync(false)?;
        let found = file.stat()?.size;
        match inode.with_log(&self.budget, |log| (log.may_end_with(found), log.size())) {
            (false, Some(wanted)) => Err(Refusal::Lost(format!(
                "its size is {found} bytes after everything was written again, not {wanted}"
            ))),
            _ => Ok(found),
        }
    }

    /// The descriptor that changes of a file go through in a generation; opened, and looked at, if it is not yet.
    pub(super) fn writer(&self, generation: &dyn Generation, inode: &Arc<Inode>) -> OpResult<Writer> {
        let number = generation.number();
        if let Some(writer) = inode.writer(number)? {
            return Ok(writer);
        }
        let (opened, reads) = match self.reopen(generation, inode.node, libc::O_RDWR) {
            Err(Errno::EACCES) => (self.reopen(generation, inode.node, libc::O_WRONLY)?, false),
            result => (result?, true),
        };
        let descriptor = Arc::new(Descriptor::new(opened));
        let writer = Writer { generation: number, reads, descriptor };
        if let Err(refusal) = self.verify(generation, inode, &**writer.descriptor, reads) {
            return Err(self.refusal_errno(inode, refusal));
        }
        let writer = inode.offer_writer(writer);
        self.counts_as_open(inode.node, &writer);
        Ok(writer)
    }

    fn refusal_errno(&self, inode: &Arc<Inode>, refusal: Refusal) -> Errno {
        match refusal {
            Refusal::Lost(reason) => {
                self.lose(inode, &reason);
                LOST_FILE
            }
            Refusal::Errno(error) => error,
        }
    }

    /// Checks once a generation that a descriptor of a file is the file that was written to.
    pub(super) fn verify_or_lose(
        &self,
        generation: &dyn Generation,
        inode: &Arc<Inode>,
        file: &dyn File,
        reads: bool,
    ) -> OpResult<()> {
        self.verify(generation, inode, file, reads).map_err(|refusal| self.refusal_errno(inode, refusal))
    }

    fn verify(
        &self,
        generation: &dyn Generation,
        inode: &Arc<Inode>,
        file: &dyn File,
        reads: bool,
    ) -> Result<(), Refusal> {
        let number = generation.number();
        if inode.is_verified(number) {
            // It may have been closed since for want of descriptors; what others write to it meanwhile is none of our business.
            return match self.traits.stable_inodes && !self.nodes.may_be(inode.node, file.stat()?.identity) {
                true => Err(Refusal::Lost("another file has taken its name".into())),
                false => Ok(()),
            };
        }
        match self.compare(generation, inode, file, reads) {
            // Somebody else has compared meanwhile, and has changed it since.
            Err(Refusal::Lost(_)) if inode.is_verified(number) => Ok(()),
            Err(refusal) => Err(refusal),
            // Somebody else has found that it is another one, and an empty log fits any.
            Ok(()) if inode.is_lost() => Err(LOST_FILE.into()),
            Ok(()) => {
                inode.verified(number);
                Ok(())
            }
        }
    }

    /// Compares what is there with what is known of the file.
    fn compare(
        &self,
        generation: &dyn Generation,
        inode: &Arc<Inode>,
        file: &dyn File,
        reads: bool,
    ) -> Result<(), Refusal> {
        let attr = file.stat()?;
        if attr.kind != FileKind::Regular {
            return Err(Refusal::Lost("it is not a regular file any more".into()));
        }
        if !self.nodes.may_be(inode.node, attr.identity) {
            return Err(Refusal::Lost("another file has taken its name".into()));
        }
        inode.with_log(&self.budget, |log| log.check_size(attr.size))?;
        if let Some((offset, ours)) = inode.appended_before(attr.size).filter(|_| reads) {
            let mut there = vec![0; ours.len()];
            let read = file.read_at(&mut there, offset)?;
            if there[..read].iter().zip(&ours).any(|(there, ours)| there != ours && *there != 0) {
                return Err(Refusal::Lost("somebody else has appended to it".into()));
            }
        }
        if let Some(block) = inode.with_log(&self.budget, |log| log.certain_block()) {
            let mut data = vec![0; block.length];
            let read = match self.reader(generation, inode, reads)? {
                Some(reader) => Some(reader.read_at(&mut data, block.offset)?),
                None if reads => Some(file.read_at(&mut data, block.offset)?),
                None => None,
            };
            // A backing that dies says that a file ends where it does not.
            let there = attr.size.saturating_sub(block.offset).min(block.length as u64);
            if read.is_some_and(|read| (read as u64) < there) {
                return Err(Errno::EIO.into());
            }
            if read.is_some_and(|read| !block.matches(&data[..read])) {
                return Err(file::Mismatch::Block { offset: block.offset, length: block.length }.into());
            }
        }
        Ok(())
    }

    /// A descriptor to look at a file with, unless the one that there is has to do (`reads`) or none may be opened. Looking is
    /// not reading: where a backing can be told so, the time of access stays what it is.
    fn reader(&self, generation: &dyn Generation, inode: &Inode, reads: bool) -> OpResult<Option<Descriptor>> {
        if self.traits.stable_inodes
            && let Ok(reader) = self.reopen(generation, inode.node, libc::O_RDONLY | libc::O_NOATIME)
        {
            return Ok(Some(Descriptor::new(reader)));
        }
        if reads {
            return Ok(None);
        }
        match self.reopen(generation, inode.node, libc::O_RDONLY) {
            Ok(reader) => Ok(Some(Descriptor::new(reader))),
            Err(Errno::EACCES) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a file that has lost its name, where it lives as long as somebody has it open, by a descriptor of it: of an
    /// earlier generation, perhaps, of the same filesystem; or by what was left for a successor.
    pub(super) fn reopen_nameless(
        &self,
        generation: &dyn Generation,
        node: u64,
        flags: i32,
    ) -> OpResult<Box<dyn File>> {
        if !self.traits.keeps_unlinked {
            return Err(LOST_FILE);
        }
        let open = self.files.of_node(node).into_iter().find_map(|file| file.any_descriptor());
        let left = self.heirlooms.get(node);
        let by: &dyn File = match (&open, &left) {
            (Some(open), _) => &***open,
            (None, Some(left)) => &**left,
            (None, None) => return Err(LOST_FILE),
        };
        generation.tree().open_again(by, flags).map_err(|error| if error == Errno::ENOENT { LOST_FILE } else { error })
    }

    /// Opens the file of a node under its present name, as it is.
    pub(super) fn reopen(&self, generation: &dyn Generation, node: u64, flags: i32) -> OpResult<Box<dyn File>> {
        let (until, mut tried) = (Instant::now() + RENAMING, None);
        loop {
            // A file without a name is lost, and so is one that is not where its name leads, unless it was just renamed.
            let Ok((path, stamp)) = self.nodes.path(node) else { return self.reopen_nameless(generation, node, flags) };
            match open_whatever_its_mode(generation, &path, flags) {
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EISDIR | Errno::ELOOP | Errno::ENXIO) => {
                    if self.nodes.has_moved_since(stamp, &[node], until) {
                        continue;
                    }
                    // That rename is not over; nobody knows where the file is.
                    if Instant::now() >= until {
                        return Err(Errno::EIO);
                    }
                    if !self.nodes.not_found_at(node, &path, stamp) || tried.as_ref() == Some(&path) {
                        return Err(LOST_FILE);
                    }
                    tried = Some(path);
                }
                // Renamed away meanwhile, and another file took its place.
                Ok(_) if !self.nodes.was_at(node, &path, stamp, until) && Instant::now() < until => {}
                result => return result,
            }
        }
    }

    /// The file is not the one that its handles were opened on: they fail from now on, alone, and what the log holds is
    /// saved. Nothing is written to what is there.
    fn lose(&self, inode: &Arc<Inode>, reason: &str) {
        if !inode.lose() {
            return;
        }
        self.save(inode, inode.whole_log(), reason);
        for file in self.files.of_node(inode.node).into_iter().filter(|file| Arc::ptr_eq(&file.inode, inode)) {
            self.notes.note(&Item::Lost { handle: file.handle() });
        }
        inode.abandon(&self.budget);
        if self.inodes.forget_lost(inode) {
            self.nodes.closed(inode.node);
        }
    }

    /// Saves changes that will not reach the backing.
    fn save(&self, inode: &Inode, changes: Changes, reason: &str) {
        let path = self.nodes.path(inode.node).map_or_else(|_| PathBuf::from("?"), |(path, _)| path);
        // As it is called below the hot path, where it is restored.
        let path = path.strip_prefix(&self.base).unwrap_or(&path);
        self.tell(self.rescue.save(path, reason, changes));
    }

    /// The end: commits what can be committed and saves the rest.
    pub fn finish(self: &Arc<Self>, until: Instant) {
        for inode in self.inodes.dirty() {
            self.commit_soon(&inode);
        }
        while !self.inodes.dirty().is_empty() && !self.gate.in_outage() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        for inode in self.inodes.dirty() {
            self.save(&inode, inode.whole_log(), "the overlay ended before the backing was back");
            inode.abandon(&self.budget);
        }
        self.hidden_journal.close();
    }
}

enum Ended {
    Well,
    Refused,
}

/// An fsync or a write failed: true if it was a live backing that refused it.
pub(super) fn is_refused(generation: &dyn Generation, error: Errno) -> bool {
    error != LOST_FILE && (!raises_doubt(error) || generation.probe().is_ok())
}

/// A file that was opened may have lost, or never had, the permission to be (open(2) with O_CREAT and mode 0444): its owner
/// may lend it for a moment.
fn open_whatever_its_mode(generation: &dyn Generation, path: &Path, flags: i32) -> OpResult<Box<dyn File>> {
    let tree = generation.tree();
    match tree.open(path, flags) {
        Err(Errno::EACCES) => {
            let mode = u32::from(tree.stat(path)?.perm);
            let (wanted, lent) = match flags & libc::O_ACCMODE {
                libc::O_RDONLY => (libc::S_IRUSR, libc::S_IRUSR),
                _ => (libc::S_IWUSR, libc::S_IWUSR | libc::S_IRUSR),
            };
            if mode & wanted != 0 {
                return Err(Errno::EACCES);
            }
            tree.set_mode(path, mode | lent).map_err(|_| Errno::EACCES)?;
            let opened = tree.open(path, flags);
            tree.set_mode(path, mode)?;
            opened
        }
        result => result,
    }
}

pub(super) fn write_all(file: &dyn File, data: &[u8], offset: u64) -> OpResult<usize> {
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
pub(super) fn why_not<T>(generation: &dyn Generation, error: Errno) -> OpResult<T> {
    let full = error == Errno::EIO
        && generation.tree().stat_fs().is_ok_and(|figures| figures.blocks > 0 && figures.blocks_available == 0);
    Err(if full { Errno::ENOSPC } else { error })
}
