//! Files that are open or have something unstable: what all handles of a file share.

mod logged;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::append::LastLook;
use super::closer::Descriptor;
use super::files::LOST_FILE;
use crate::backing::OpResult;
use crate::gate::Context;
use crate::handover::{Item, Notes, picture};
use crate::log::{Budget, Change, Changes, FileLog, file};
use logged::Logged;

/// How often somebody who waits asks whether waiting still makes sense.
const ASK: Duration = Duration::from_millis(50);
/// Uncommitted changes that are older are committed in the background: what has to be sent again after a repair, and what
/// a power cut at the server costs, stays small. A few seconds, as with the journals of local filesystems.
const COMMIT_AGE: Duration = Duration::from_secs(5);
/// What the server refused is not offered again sooner.
const RETRY: Duration = Duration::from_secs(1);

/// The descriptor that all changes of a file go through, so that one fsync covers them: sshfs keeps what it has sent, and
/// the errors, by descriptor.
#[derive(Clone)]
pub struct Writer {
    /// The generation it is of.
    pub generation: u64,
    /// It can be read from too.
    pub reads: bool,
    /// Itself.
    pub descriptor: Arc<Descriptor>,
}

struct State {
    log: Logged,
    writer: Option<Writer>,
    handles: usize,
    lost: bool,
    pinned: bool,
    /// The generation in which it was last found to be the same file.
    verified: u64,
    /// Failed commits, and why the last one failed.
    errors: u64,
    error: Errno,
    refused_at: Option<Instant>,
    dirty_since: Option<Instant>,
    held_since: Option<Instant>,
    /// What is held is appends, which go to where the file ends when they are handed over.
    held_appends: bool,
    looked: LastLook,
    /// Everything in the log was appended, as far as this daemon knows.
    only_appends: bool,
}

/// One file.
pub struct Inode {
    /// Its node.
    pub node: u64,
    /// Held while a change is handed to the backing and recorded, so that both happen in one order; and by a replay. A
    /// change whose fate is unknown keeps it, so that nothing overlapping is sent after it.
    order: Mutex<()>,
    state: Mutex<State>,
    ended: Condvar,
    notes: Notes,
    /// A commit in the background is under way.
    pub committing: AtomicBool,
}

/// Proof that the order of a file is held.
pub struct Order<'a>(#[allow(dead_code)] MutexGuard<'a, ()>);

impl Inode {
    fn new(node: u64, log: FileLog, notes: Notes) -> Inode {
        let state = State {
            log: Logged::new(node, log, notes.clone()),
            writer: None,
            handles: 0,
            lost: false,
            pinned: false,
            verified: 0,
            errors: 0,
            error: Errno::EIO,
            refused_at: None,
            dirty_since: None,
            held_since: None,
            held_appends: false,
            looked: LastLook::default(),
            only_appends: false,
        };
        Inode {
            node,
            order: Mutex::new(()),
            state: Mutex::new(state),
            ended: Condvar::new(),
            notes,
            committing: AtomicBool::new(false),
        }
    }

    /// Takes the order as soon as it is free; gives up when the call is not wanted any more.
    pub fn order(&self, context: &Context<'_>) -> OpResult<Order<'_>> {
        loop {
            if let Some(order) = self.order.try_lock_for(ASK) {
                return Ok(Order(order));
            }
            if context.is_abandoned() {
                return Err(Errno::ENOTCONN);
            }
        }
    }

    /// Takes the order if it is free.
    pub fn order_now(&self) -> Option<Order<'_>> {
        self.order.try_lock().map(Order)
    }

    /// Takes the order, however long that takes.
    pub fn order_whenever(&self) -> Order<'_> {
        Order(self.order.lock())
    }

    /// True if everything is committed.
    pub fn is_clean(&self) -> bool {
        self.state.lock().log.is_clean()
    }

    /// True if a repair found another file in its place.
    pub fn is_lost(&self) -> bool {
        self.state.lock().lost
    }

    /// What keeping its log costs, in bytes.
    pub fn cost(&self) -> u64 {
        self.state.lock().log.cost()
    }

    /// Its size with everything in the log that was sent, if something is in there and the size is known.
    pub fn unstable_size(&self) -> Option<u64> {
        let state = self.state.lock();
        state.log.sent_size().filter(|_| !state.log.is_clean() && !state.log.wants_size())
    }

    /// True if uncommitted changes are old enough to be committed in the background.
    pub fn is_due(&self) -> bool {
        let state = self.state.lock();
        state.dirty_since.is_some_and(|since| since.elapsed() >= COMMIT_AGE) && !state.log.is_clean()
    }

    /// True if somebody has it open.
    pub fn is_open(&self) -> bool {
        self.state.lock().handles > 0
    }

    /// True if more than one has it open, or is opening it.
    pub fn is_shared(&self) -> bool {
        self.state.lock().handles > 1
    }

    /// Since when something of it is held back.
    pub fn held_since(&self) -> Option<Instant> {
        self.state.lock().held_since
    }

    /// Bytes that are held back.
    pub fn held_bytes(&self) -> u64 {
        self.state.lock().log.held().map_or(0, |held| held.to - held.from)
    }

    /// Takes a write in without its being sent; see [`FileLog::hold_back`]. True if it is the first that is held, `None` if
    /// it was not taken. It is where the file is known to be the one that is written to that it may be. With its offset comes
    /// whether it is an append; appends and other writes are not held together.
    pub fn hold_back(
        &self,
        budget: &Budget,
        generation: u64,
        (offset, appends): (u64, bool),
        data: &mut Vec<u8>,
        _order: &Order<'_>,
    ) -> Option<bool> {
        self.with_state(budget, |state| {
            let known = state.writer.as_ref().is_some_and(|writer| writer.generation == generation) && !state.lost;
            let first = state.log.held().is_none();
            let alike = first || state.held_appends == appends;
            let taken = known && alike && state.log.hold_back(generation, offset, data);
            state.held_appends = if taken { appends } else { state.held_appends };
            taken.then_some(first)
        })
        .inspect(|_| self.wrote(appends))
    }

    /// A write was taken into the log.
    pub fn wrote(&self, appends: bool) {
        if !appends {
            self.state.lock().only_appends = false;
        }
    }

    /// If everything in the log was appended: see [`FileLog::appended_before`].
    pub fn appended_before(&self, found: u64) -> Option<(u64, Vec<u8>)> {
        let state = self.state.lock();
        if state.only_appends { state.log.appended_before(found) } else { None }
    }

    /// Where an append goes that is held back at once: the end of the file, if that is known, if the kernel has not seen others
    /// write behind it, and if what is known is not too old (`oldest`) unless it is looked at again before it is handed over.
    pub fn end_to_append_at(&self, believed: u64, oldest: Option<Duration>) -> Option<u64> {
        let state = self.state.lock();
        let end = state.log.size().filter(|end| believed <= *end && !state.log.wants_size())?;
        let waits = state.log.held().is_some();
        let stale = || oldest.is_some_and(|oldest| state.looked.is_stale(Instant::now(), oldest));
        (waits || !stale()).then_some(end)
    }

    /// Its size with everything in it, if that is known.
    pub fn known_size(&self) -> Option<u64> {
        let state = self.state.lock();
        state.log.size().filter(|_| !state.log.wants_size())
    }

    /// Where the appends begin that are held back, if there are any and nothing of them has been sent.
    pub fn held_end(&self) -> Option<u64> {
        let state = self.state.lock();
        let held = state.log.held().filter(|held| state.held_appends && !held.under_way);
        held.map(|held| held.from)
    }

    /// When its end was last looked for.
    pub fn last_look(&self) -> LastLook {
        self.state.lock().looked
    }

    /// Its end was looked for.
    pub fn looked(&self, look: LastLook) {
        self.state.lock().looked = look;
    }

    /// It has just been made, or cut to nothing.
    pub fn is_made(&self) {
        self.looked(LastLook::at_new_file(Instant::now()));
    }

    /// Its size, if the backing may show another one because something has not been sent.
    pub fn unsent_size(&self) -> Option<u64> {
        self.state.lock().log.unsent_size()
    }

    /// True if a generation has not seen everything in its log.
    pub fn has_unsent(&self, generation: u64) -> bool {
        let state = self.state.lock();
        state.log.held().is_some() || state.log.needs_replay(generation)
    }

    /// True if everything in its log has to be sent to a generation before that may be used.
    pub fn needs_replay(&self, budget: &Budget, generation: u64) -> bool {
        self.with_log(budget, |log| log.needs_replay(generation))
    }

    /// The descriptor for changes in that generation, if it is open.
    pub fn writer(&self, generation: u64) -> OpResult<Option<Writer>> {
        let state = self.state.lock();
        match &state.writer {
            _ if state.lost => Err(LOST_FILE),
            Some(writer) if writer.generation == generation => Ok(Some(writer.clone())),
            // A straggler of an earlier generation: the gate runs it again in the live one.
            Some(writer) if writer.generation > generation => Err(Errno::ENOTCONN),
            _ => Ok(None),
        }
    }

    /// Offers a descriptor; the one that is used from now on comes back.
    pub fn offer_writer(&self, offered: Writer) -> Writer {
        let mut state = self.state.lock();
        match &state.writer {
            Some(writer) if writer.generation >= offered.generation => writer.clone(),
            _ => state.writer.insert(offered).clone(),
        }
    }

    /// Gives the descriptor up, so that the next change opens the file under its present name. What became of the writes
    /// that it was given is not known then, so they are sent again.
    pub fn reopen_later(&self) {
        let mut state = self.state.lock();
        state.writer = None;
        state.log.send_again();
    }

    /// Lets its descriptor go, to be opened again later.
    pub fn cool(&self) {
        drop(self.state.lock().writer.take());
    }

    /// True if its descriptors are to stay open: it is losing a name.
    pub fn is_pinned(&self) -> bool {
        self.state.lock().pinned
    }

    /// From now on its descriptors stay open.
    pub fn pin(&self) {
        self.state.lock().pinned = true;
    }

    /// Closes the descriptor in this thread, unless somebody still uses it.
    pub fn close_here(&self) {
        let writer = self.state.lock().writer.take();
        if let Some(descriptor) = writer.and_then(|writer| Arc::into_inner(writer.descriptor)) {
            descriptor.close_here();
        }
    }

    /// True if it has been found to be the same file in that generation.
    pub fn is_verified(&self, generation: u64) -> bool {
        self.state.lock().verified == generation
    }

    /// It is the same file in that generation.
    pub fn verified(&self, generation: u64) {
        self.state.lock().verified = generation;
    }

    /// Looks at its log, or changes it; what that costs is charged. Commits that end are announced.
    pub fn with_log<T>(&self, budget: &Budget, change: impl FnOnce(&mut Logged) -> T) -> T {
        self.with_state(budget, |state| change(&mut state.log))
    }

    fn with_state<T>(&self, budget: &Budget, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let (before, was_clean) = (state.log.cost(), state.log.is_clean());
        let result = change(&mut state);
        budget.charge(before, state.log.cost());
        match (was_clean, state.log.is_clean()) {
            (true, false) => (state.dirty_since, state.only_appends) = (Some(Instant::now()), true),
            (false, true) => state.dirty_since = None,
            _ => {}
        }
        state.held_since = state.log.held().and(state.held_since.or_else(|| Some(Instant::now())));
        result
    }

    /// A change was handed to that generation.
    pub fn record(&self, budget: &Budget, generation: u64, change: Change<'_>) -> OpResult<()> {
        self.with_log(budget, |log| log.record(generation, change)).map_err(|file::Superseded| Errno::ENOTCONN)
    }

    /// A commit begins.
    pub fn begin(&self, budget: &Budget) -> file::Begin {
        let begun = self.with_log(budget, Logged::begin);
        if matches!(begun, file::Begin::Commit(_)) {
            // What comes in from now on has an age of its own.
            self.state.lock().dirty_since = Some(Instant::now());
        }
        begun
    }

    /// Waits for the end of the commit that is under way.
    pub fn wait(&self, context: &Context<'_>) -> OpResult<()> {
        self.ended.wait_for(&mut self.state.lock(), ASK);
        if context.is_abandoned() { Err(Errno::ENOTCONN) } else { Ok(()) }
    }

    /// A commit ended well.
    pub fn committed(&self, budget: &Budget, ticket: &file::Ticket, generation: u64) -> OpResult<()> {
        let result = self.with_log(budget, |log| log.committed(ticket, generation));
        self.state.lock().refused_at = None;
        self.ended.notify_all();
        result.map_err(|file::Superseded| Errno::ENOTCONN)
    }

    /// A commit failed; see [`FileLog::failed`].
    pub fn failed(&self, budget: &Budget, ticket: &file::Ticket, again: bool) {
        self.with_log(budget, |log| log.failed(ticket, again));
        self.ended.notify_all();
    }

    /// A live backing has refused a commit: every handle is told once.
    pub fn refuse(&self, error: Errno) {
        let mut state = self.state.lock();
        state.errors += 1;
        state.error = error;
        self.notes.note(&Item::Refused { node: self.node, count: state.errors, errno: error as i32 });
        state.refused_at = Some(Instant::now());
    }

    /// Why a commit is not tried now: it was refused just before.
    pub fn refusal(&self) -> Option<Errno> {
        let state = self.state.lock();
        state.refused_at.filter(|at| at.elapsed() < RETRY).map(|_| state.error)
    }

    /// A live backing has refused a commit, and none has succeeded since.
    pub fn was_refused(&self) -> bool {
        self.state.lock().refused_at.is_some()
    }

    /// Number of failed commits so far, and why the last failed (the model is errseq_t of the kernel, lib/errseq.c).
    pub fn errors(&self) -> (u64, Errno) {
        let state = self.state.lock();
        (state.errors, state.error)
    }

    /// It is not the file that was written to: its handles are of no use any more. True if that was not known.
    pub fn lose(&self) -> bool {
        let mut state = self.state.lock();
        state.writer = None;
        !std::mem::replace(&mut state.lost, true)
    }

    /// Everything that is not committed.
    pub fn whole_log(&self) -> Changes {
        self.state.lock().log.whole()
    }

    /// Gives the log up; its handles, if they are good for anything, go on.
    pub fn abandon(&self, budget: &Budget) {
        drop(self.with_log(budget, Logged::abandon));
        self.ended.notify_all();
    }

    /// Goes on with what a predecessor had. What its descriptor did not live to hear is not known, so everything is sent
    /// again.
    fn resume(&self, budget: &Budget, inode: &picture::Inode) {
        self.with_state(budget, |state| {
            state.log.send_again();
            state.errors = inode.refused.0;
            state.error = if inode.refused.0 > 0 { Errno::from_raw(inode.refused.1) } else { Errno::EIO };
        });
    }
}

/// All of them by node.
pub struct Inodes {
    table: Mutex<HashMap<u64, Arc<Inode>>>,
    notes: Notes,
}

impl Inodes {
    /// None yet. What a successor has to know is noted.
    pub fn new(notes: Notes) -> Inodes {
        Inodes { table: Mutex::default(), notes }
    }

    /// Goes on with what a predecessor had written and not committed. `hold` is called for each of their nodes.
    pub fn resume(&self, budget: &Budget, picture: &picture::Picture, hold: impl Fn(u64)) {
        let mut table = self.table.lock();
        for (&node, found) in &picture.inodes {
            let inode = Inode::new(node, found.log.clone(), self.notes.clone());
            budget.charge(0, found.log.cost());
            inode.resume(budget, found);
            hold(node);
            table.insert(node, Arc::new(inode));
        }
    }

    /// An inode that nobody else has and that is lost: for handles that were lost before.
    pub fn lost(&self, node: u64) -> Arc<Inode> {
        let inode = Inode::new(node, FileLog::default(), Notes::nowhere());
        inode.lose();
        inode.state.lock().handles += 1;
        Arc::new(inode)
    }

    /// A handle is opened on a node. `first` is called if nothing was known of it.
    pub fn enter(&self, node: u64, first: impl FnOnce()) -> Arc<Inode> {
        let mut table = self.table.lock();
        let inode = table.entry(node).or_insert_with(|| {
            first();
            Arc::new(Inode::new(node, FileLog::default(), self.notes.clone()))
        });
        inode.state.lock().handles += 1;
        Arc::clone(inode)
    }

    /// A handle was closed; true if it was the last.
    pub fn leave(&self, inode: &Inode) -> bool {
        let mut state = inode.state.lock();
        state.handles = state.handles.saturating_sub(1);
        state.handles == 0
    }

    /// Takes an inode out if nobody has it open and nothing is unstable; true if it did.
    pub fn forget_if_idle(&self, inode: &Arc<Inode>) -> bool {
        let mut table = self.table.lock();
        let state = inode.state.lock();
        let idle = state.handles == 0 && state.log.is_clean() && !state.lost;
        idle && table.get(&inode.node).is_some_and(|known| Arc::ptr_eq(known, inode)) && {
            table.remove(&inode.node);
            self.notes.note(&Item::Settled { node: inode.node });
            true
        }
    }

    /// Takes a lost inode out, so that the next open has nothing to do with it; true if it was there.
    pub fn forget_lost(&self, inode: &Arc<Inode>) -> bool {
        let mut table = self.table.lock();
        let known = table.get(&inode.node).is_some_and(|known| Arc::ptr_eq(known, inode));
        if known {
            table.remove(&inode.node);
            self.notes.note(&Item::Settled { node: inode.node });
        }
        known
    }

    /// What is known of a node.
    pub fn get(&self, node: u64) -> Option<Arc<Inode>> {
        self.table.lock().get(&node).cloned()
    }

    /// Those with something unstable.
    pub fn dirty(&self) -> Vec<Arc<Inode>> {
        self.table.lock().values().filter(|inode| !inode.is_clean()).cloned().collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.table.lock().values().cloned().collect()
    }

    /// The one whose commit frees most.
    pub fn largest(&self) -> Option<Arc<Inode>> {
        let table = self.table.lock();
        table.values().filter(|inode| !inode.committing.load(Relaxed)).max_by_key(|inode| inode.cost()).cloned()
    }
}
