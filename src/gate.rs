//! The gate between the overlay and the backing: deadlines, admission, outage policy (promises P1 and P2).
//!
//! The overlay submits a call; the gate sees to it that it is answered exactly once and in time, whatever the
//! backing does, and that it is run again in the next generation when the one it ran in has died.
//!
//! ```text
//!             submit                    success, or an error that means nothing
//!   overlay ─────────▶ ready ─▶ running ───────────────────────────────────────▶ answered
//!               │        ▲          │ error that may mean a dead backing            ▲  ▲
//!    gate closed│        │ open     ▼                                               │  │
//!               └─▶ parked ◀──── limbo ─────────────────────────────────────────────┘  │
//!                     │   dead         a probe answered: it was a real error           │
//!                     └────────────────────────────────────────────────────────────────┘
//!                                its deadline, or an outage older than `deadline`
//! ```
//!
//! A deadline answers in any of these places; a thread that is still inside the backing then finds its reply gone.

mod call;
pub mod policy;
pub mod stats;
pub mod window;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::backing::{Generation, OpResult};
use crate::config::CallPolicy;
use call::{Call, Run};
use policy::Weather;
pub use stats::{Op, Outcome, Stats};
use window::Window;

/// Most threads of the pool. Each can be stuck in the backing until its generation is aborted.
pub const MAX_THREADS: usize = 192;
/// Threads that stay when there is nothing to do.
const MIN_THREADS: usize = 4;
/// Stack of a thread of the pool in bytes; the deepest call chain is a path walk.
const STACK: usize = 512 << 10;
/// A thread that had nothing to do for that long ends, if others are left.
const IDLE: Duration = Duration::from_secs(10);
/// How often deadlines are looked at while calls wait; promise P1 allows 100 ms of lateness.
const TICK: Duration = Duration::from_millis(20);

/// Which deadline a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Names and attributes: `deadline`.
    Meta,
    /// Read and write: `deadline` of silence, `sync_deadline` while bytes move on the link.
    Data,
    /// fsync, flush, fsyncdir: `sync_deadline`.
    Sync,
}

/// What the work of a call is given each time it runs.
pub struct Context<'a> {
    /// The generation to run in.
    pub generation: &'a Arc<dyn Generation>,
    /// An earlier generation died while this call was inside it: it may have been done there.
    pub in_doubt: bool,
    /// Until when the call may take; for waiting on locks inside the work.
    pub deadline: Instant,
    over: &'a dyn Fn() -> bool,
}

impl Context<'_> {
    /// True when the call has been answered, or its generation is not the live one.
    pub fn is_abandoned(&self) -> bool {
        (self.over)()
    }
}

/// What a call has to say against a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Complaint {
    /// It is past its deadline.
    Late(Op),
    /// It failed with an error that may mean a dead backing.
    Failed(Op, Errno),
}

/// Told of complaints: the generation's number and what it is. Must not block.
pub type ComplaintSink = Box<dyn Fn(u64, Complaint) + Send + Sync>;

/// What telemetry may know of the gate at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Calls that have not been answered.
    pub waiting: usize,
    /// Threads of the pool.
    pub threads: usize,
    /// Threads that are inside the backing with a call that has been answered already, or in a dead generation.
    pub stuck: usize,
    /// Bytes handed to the backing and not yet answered.
    pub bytes_in_flight: u64,
    /// Most bytes that may be in flight at present.
    pub window: u64,
}

/// Since when the oldest calls are inside the live generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inside {
    /// Any call.
    pub any: Option<Instant>,
    /// A call of class Sync.
    pub sync: Option<Instant>,
}

enum Phase {
    Closed,
    Open(Arc<dyn Generation>),
}

struct Running {
    call: Arc<Call>,
    generation: u64,
    since: Instant,
}

struct Limbo {
    call: Arc<Call>,
    generation: u64,
    errno: Errno,
    at: Instant,
}

struct State {
    phase: Phase,
    outage_since: Option<Instant>,
    ready: VecDeque<Arc<Call>>,
    parked: Vec<Arc<Call>>,
    limbo: Vec<Limbo>,
    running: BTreeMap<u64, Running>,
    /// Unanswered calls by limit; each queue is in order of arrival, so only heads have to be looked at.
    waiting: BTreeMap<Duration, VecDeque<Arc<Call>>>,
    /// Calls past their limit that go on because bytes move.
    extended: Vec<Arc<Call>>,
    threads: usize,
    idle: usize,
    next_thread: u64,
    stopping: bool,
}

/// See the module.
pub struct Gate {
    policy: CallPolicy,
    complain: ComplaintSink,
    state: Mutex<State>,
    work_ready: Condvar,
    calls_waiting: Condvar,
    window: Window,
    stats: Stats,
    myself: Weak<Gate>,
}

impl Gate {
    /// A closed gate, in outage since now, with its clock running.
    pub fn new(
        policy: CallPolicy,
        complain: impl Fn(u64, Complaint) + Send + Sync + 'static,
    ) -> std::io::Result<Arc<Gate>> {
        let gate = Arc::new_cyclic(|myself| Gate {
            policy,
            complain: Box::new(complain),
            state: Mutex::new(State {
                phase: Phase::Closed,
                outage_since: Some(Instant::now()),
                ready: VecDeque::new(),
                parked: Vec::new(),
                limbo: Vec::new(),
                running: BTreeMap::new(),
                waiting: BTreeMap::new(),
                extended: Vec::new(),
                threads: 0,
                idle: 0,
                next_thread: 0,
                stopping: false,
            }),
            work_ready: Condvar::new(),
            calls_waiting: Condvar::new(),
            window: Window::default(),
            stats: Stats::default(),
            myself: myself.clone(),
        });
        let clock = Arc::downgrade(&gate);
        std::thread::Builder::new().name("deadlines".into()).spawn(move || {
            while let Some(gate) = clock.upgrade() {
                if !gate.tick() {
                    break;
                }
                drop(gate);
                std::thread::sleep(TICK);
            }
        })?;
        Ok(gate)
    }

    /// Submits a call. `work` runs in a thread of the pool, possibly several times (each time in a newer generation),
    /// and has its side effects on tables of the overlay itself when it succeeds, since it may end after its deadline.
    /// `reply` is called exactly once, from any thread, by the deadline at the latest, and must not block.
    /// `bytes` is the payload of reads and writes, 0 for others.
    pub fn submit<T: Send + 'static>(
        &self,
        op: Op,
        class: Class,
        bytes: u64,
        work: impl FnMut(&Context<'_>) -> OpResult<T> + Send + 'static,
        reply: impl FnOnce(OpResult<T>) + Send + 'static,
    ) {
        self.submit_within(policy::limit(&self.policy, class), op, class, bytes, work, reply);
    }

    /// As [`Gate::submit`], with a deadline of its own.
    pub fn submit_within<T: Send + 'static>(
        &self,
        limit: Duration,
        op: Op,
        class: Class,
        bytes: u64,
        work: impl FnMut(&Context<'_>) -> OpResult<T> + Send + 'static,
        reply: impl FnOnce(OpResult<T>) + Send + 'static,
    ) {
        let mut state = self.state.lock();
        if state.stopping || self.fails_at_once(&state, class, Instant::now()) {
            drop(state);
            reply(Err(self.policy.outage_errno));
            self.stats.count(op, Outcome::Outage, Duration::ZERO);
            return;
        }
        let call = Call::new(op, class, bytes, limit, work, reply);
        if state.waiting.is_empty() && state.extended.is_empty() {
            self.calls_waiting.notify_one();
        }
        state.waiting.entry(limit).or_default().push_back(Arc::clone(&call));
        match state.phase {
            Phase::Open(_) => self.make_ready(&mut state, call),
            Phase::Closed => state.parked.push(call),
        }
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Present load.
    pub fn load(&self) -> Load {
        let state = self.state.lock();
        let live = state.live();
        let (bytes_in_flight, window) = self.window.load();
        Load {
            waiting: state.waiting.values().flatten().chain(&state.extended).filter(|call| !call.is_answered()).count(),
            threads: state.threads,
            stuck: state
                .running
                .values()
                .filter(|running| running.call.is_answered() || Some(running.generation) != live)
                .count(),
            bytes_in_flight,
            window,
        }
    }

    /// Since when calls are inside the live generation.
    pub fn inside(&self) -> Inside {
        let state = self.state.lock();
        let live = state.live();
        let here = || state.running.values().filter(|running| Some(running.generation) == live);
        Inside {
            any: here().map(|running| running.since).min(),
            sync: here().filter(|running| running.call.class == Class::Sync).map(|running| running.since).min(),
        }
    }

    /// True when a call that needs the backing would fail at once.
    pub fn fails_fast(&self) -> bool {
        let state = self.state.lock();
        state.stopping || self.fails_at_once(&state, Class::Meta, Instant::now())
    }

    /// True when the live generation is under suspicion or there is none.
    pub fn in_outage(&self) -> bool {
        self.state.lock().outage_since.is_some()
    }

    /// Supervisor: calls may go to that generation from now on; what waited goes first.
    pub fn open(&self, generation: Arc<dyn Generation>) {
        let mut state = self.state.lock();
        if state.stopping {
            return;
        }
        self.window.reset();
        state.phase = Phase::Open(generation);
        state.outage_since = None;
        for call in std::mem::take(&mut state.parked) {
            self.make_ready(&mut state, call);
        }
    }

    /// Supervisor: there was first evidence at that time (`None`: it has been refuted).
    pub fn suspect(&self, since: Option<Instant>) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Open(_)) {
            state.outage_since = earliest(since, since.and(state.outage_since));
        }
    }

    /// Supervisor: the generation is dead. Nothing is handed to it any more; what failed in it waits for the next.
    pub fn close(&self, since: Instant) {
        let mut state = self.state.lock();
        state.phase = Phase::Closed;
        state.outage_since = earliest(Some(since), state.outage_since);
        let queued: Vec<_> = state.ready.drain(..).collect();
        state.parked.extend(queued);
        for limbo in std::mem::take(&mut state.limbo) {
            limbo.call.in_doubt.store(true, Relaxed);
            state.parked.push(limbo.call);
        }
        state.parked.retain(|call| !call.is_answered());
    }

    /// Supervisor: a probe that was sent at `asked_at` has answered, so errors from before it were real ones.
    pub fn settle(&self, generation: u64, asked_at: Instant) {
        let mut settled = Vec::new();
        self.state.lock().limbo.retain(|limbo| {
            let real = limbo.generation == generation && limbo.at <= asked_at;
            if real {
                settled.push((Arc::clone(&limbo.call), limbo.errno));
            }
            !real
        });
        for (call, errno) in settled {
            self.answer(&call, errno, Outcome::Error);
        }
    }

    /// Fails everything that waits and takes nothing more. Threads inside the backing end when they get out.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        state.phase = Phase::Closed;
        let calls: Vec<_> = state.waiting.values().flatten().chain(&state.extended).cloned().collect();
        drop(state);
        for call in calls {
            self.answer(&call, self.policy.outage_errno, Outcome::Outage);
        }
        self.work_ready.notify_all();
        self.calls_waiting.notify_all();
    }

    fn weather(&self, state: &State) -> Weather {
        let (closed, progress_at) = match &state.phase {
            Phase::Open(generation) => (false, generation.vitals().progress_at),
            Phase::Closed => (true, None),
        };
        Weather { outage_since: state.outage_since, closed, progress_at }
    }

    fn fails_at_once(&self, state: &State, class: Class, now: Instant) -> bool {
        let closed = matches!(state.phase, Phase::Closed);
        let weather = Weather { outage_since: state.outage_since, closed, progress_at: None };
        policy::is_failed_by_outage(&weather, class)
            && policy::overdue_at(&self.policy, &weather).is_some_and(|at| now >= at)
    }

    fn answer(&self, call: &Call, errno: Errno, outcome: Outcome) {
        if call.fail(errno) {
            self.stats.count(call.op, outcome, call.arrived.elapsed());
        }
    }

    /// Looks at all deadlines once; false when the gate has stopped. Waits while no call does.
    fn tick(&self) -> bool {
        let mut state = self.state.lock();
        while state.waiting.is_empty() && state.extended.is_empty() {
            if state.stopping {
                return false;
            }
            self.calls_waiting.wait_for(&mut state, IDLE);
        }
        let now = Instant::now();
        let mut late = Vec::new();
        let overdue = self.fails_at_once(&state, Class::Meta, now);
        // Vitals cost a system call or two: asked only when some limit has passed.
        let mut weather = None;
        let mut waiting = std::mem::take(&mut state.waiting);
        for (limit, calls) in &mut waiting {
            while let Some(head) = calls.front() {
                if !head.is_answered() {
                    if !overdue && now < head.arrived + *limit {
                        break;
                    }
                    late.push(Arc::clone(head));
                }
                calls.pop_front();
            }
        }
        waiting.retain(|_, calls| !calls.is_empty());
        state.waiting = waiting;
        late.extend(std::mem::take(&mut state.extended));
        let mut complaints = Vec::new();
        let mut failed = Vec::new();
        let mut first_evidence = None;
        for call in late.into_iter().filter(|call| !call.is_answered()) {
            let weather = weather.get_or_insert_with(|| self.weather(&state));
            if now < policy::due_at(&self.policy, weather, call.class, call.arrived, call.limit) {
                state.extended.push(call);
                continue;
            }
            let running = state.running.values().find(|running| Arc::ptr_eq(&running.call, &call));
            // A call with a shorter limit than the configured one (the root, statfs) is no evidence when it is late.
            let counts =
                |running: &&Running| Some(running.generation) == state.live() && call.limit >= self.policy.deadline;
            if let Some(running) = running.filter(counts) {
                complaints.push((running.generation, Complaint::Late(call.op)));
            }
            let outcome = if weather.outage_since.is_some() { Outcome::Outage } else { Outcome::Deadline };
            failed.push((Arc::clone(&call), policy::late_errno(&self.policy, weather), outcome));
            // A call that waited in vain is evidence from when it came. Without this the kernel's second try of the same
            // system call (a lookup is repeated when its revalidation fails) would wait anew.
            if let Some(since) =
                state.outage_since.filter(|since| call.arrived < *since && call.limit == self.policy.deadline)
            {
                first_evidence = Some(first_evidence.unwrap_or(since).min(call.arrived));
            }
        }
        state.outage_since = first_evidence.or(state.outage_since);
        let alive = !state.stopping;
        drop(state);
        for (call, errno, outcome) in failed {
            self.answer(&call, errno, outcome);
        }
        complaints.dedup();
        for (generation, complaint) in complaints {
            (self.complain)(generation, complaint);
        }
        alive
    }

    fn make_ready(&self, state: &mut State, call: Arc<Call>) {
        state.ready.push_back(call);
        if state.idle >= state.ready.len() {
            self.work_ready.notify_one();
        } else if state.threads < MAX_THREADS {
            self.add_thread(state);
        }
    }

    fn add_thread(&self, state: &mut State) {
        let Some(gate) = self.myself.upgrade() else { return };
        let id = state.next_thread;
        let thread = std::thread::Builder::new().name(format!("call-{id}")).stack_size(STACK);
        match thread.spawn(move || gate.work(id)) {
            Ok(_) => {
                state.next_thread += 1;
                state.threads += 1;
            }
            // The call stays in the queue: another thread or its deadline gets it.
            Err(error) => tracing::warn!(%error, threads = state.threads, "cannot start another thread"),
        }
    }

    /// The life of one thread of the pool.
    fn work(&self, id: u64) {
        let mut state = self.state.lock();
        loop {
            let Some((call, generation)) = self.next(&mut state) else { break };
            let number = generation.number();
            state.running.insert(id, Running { call: Arc::clone(&call), generation: number, since: Instant::now() });
            drop(state);
            let result = self.run(&call, &generation);
            drop(generation);
            state = self.state.lock();
            state.running.remove(&id);
            if let Some(errno) = result {
                state = self.failed(state, call, number, errno);
            }
        }
        state.threads -= 1;
    }

    /// The next call to run, or `None` when this thread should end.
    fn next(&self, state: &mut MutexGuard<'_, State>) -> Option<(Arc<Call>, Arc<dyn Generation>)> {
        loop {
            if state.stopping {
                return None;
            }
            if let Phase::Open(generation) = &state.phase {
                let generation = Arc::clone(generation);
                while let Some(call) = state.ready.pop_front() {
                    if !call.is_answered() {
                        return Some((call, generation));
                    }
                }
            }
            state.idle += 1;
            let idle_for_long = self.work_ready.wait_for(state, IDLE).timed_out();
            state.idle -= 1;
            if idle_for_long && state.ready.is_empty() && state.threads > MIN_THREADS {
                return None;
            }
        }
    }

    /// Runs a call once; the errno if it failed and nobody has been told.
    fn run(&self, call: &Arc<Call>, generation: &Arc<dyn Generation>) -> Option<Errno> {
        let admission = match call.bytes {
            0 => None,
            bytes => Some(self.window.admit(bytes, || call.is_answered() || !self.is_live(generation.number()))),
        };
        if let Some(None) = admission {
            // Nothing was sent. In a dead generation the call is treated like any other that has to wait.
            return (!call.is_answered()).then_some(Errno::ENOTCONN);
        }
        let in_doubt = call.in_doubt.load(Relaxed);
        let over = || call.is_answered() || !self.is_live(generation.number());
        let context = Context { generation, in_doubt, deadline: call.arrived + call.limit, over: &over };
        let started = Instant::now();
        let result = call.run(&context);
        if let (Some(Some(admission)), Run::Answered) = (&admission, &result) {
            admission.took(started.elapsed());
        }
        match result {
            Run::Answered => {
                self.stats.count(call.op, Outcome::Ok, call.arrived.elapsed());
                None
            }
            Run::TooLate => None,
            Run::Failed(errno) => Some(errno),
        }
    }

    fn is_live(&self, generation: u64) -> bool {
        self.state.lock().live() == Some(generation)
    }

    /// Decides what becomes of a call that failed in a generation: an answer, a wait for a verdict, or another run.
    fn failed<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        call: Arc<Call>,
        generation: u64,
        errno: Errno,
    ) -> MutexGuard<'a, State> {
        if call.is_answered() {
            return state;
        }
        if !policy::raises_doubt(errno) || state.stopping {
            drop(state);
            self.answer(&call, errno, Outcome::Error);
            return self.state.lock();
        }
        match state.live() {
            Some(live) if live == generation => {
                let complaint = Complaint::Failed(call.op, errno);
                state.limbo.push(Limbo { call, generation, errno, at: Instant::now() });
                drop(state);
                (self.complain)(generation, complaint);
                return self.state.lock();
            }
            live => {
                call.in_doubt.store(true, Relaxed);
                self.stats.retries.fetch_add(1, Relaxed);
                match live {
                    Some(_) => self.make_ready(&mut state, call),
                    None => state.parked.push(call),
                }
            }
        }
        state
    }
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

impl State {
    fn live(&self) -> Option<u64> {
        match &self.phase {
            Phase::Open(generation) => Some(generation.number()),
            Phase::Closed => None,
        }
    }
}

#[cfg(test)]
mod tests;
