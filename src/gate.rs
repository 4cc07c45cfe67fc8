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
mod clock;
pub mod policy;
mod pool;
mod queue;
mod state;
pub mod stats;
pub mod window;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::backing::{Generation, OpResult};
use crate::config::CallPolicy;
use call::Call;
use policy::Weather;
pub use pool::MAX_THREADS;
use state::{Phase, Service, State};
pub use stats::{Op, Outcome, Stats};

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
    /// An earlier generation, or a steadfs before this one, died while this call was inside: it may have been done.
    pub in_doubt: bool,
    /// Until when the call may take; for waiting on locks inside the work.
    pub deadline: Instant,
    call: &'a Call,
    live: &'a AtomicU64,
    sent: &'a Sent,
}

/// What a run of a call's work has handed to the backing besides, or instead of, the payload it was admitted with.
#[derive(Debug, Default)]
struct Sent {
    kept: Cell<bool>,
    others: Cell<u64>,
}

impl Context<'_> {
    /// True when the call has been answered by somebody else, or its generation is no longer the live one: what the work
    /// would still do then comes too late, and may come after what was sent since. Cheap: two loads.
    pub fn is_abandoned(&self) -> bool {
        self.call.is_answered() || self.live.load(SeqCst) != self.generation.number()
    }

    /// True when the call has been answered by somebody else: it will not be run again, and it is known what its caller was
    /// told.
    pub fn is_answered(&self) -> bool {
        self.call.is_answered()
    }

    /// Its payload is not handed to the backing by this run.
    pub fn keeps_its_payload(&self) {
        self.sent.kept.set(true);
    }

    /// So many bytes that other calls brought are handed to the backing by this run.
    pub fn sends_for_others(&self, bytes: u64) {
        self.sent.others.set(self.sent.others.get() + bytes);
    }
}

/// What a call asks of the gate.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// What it is.
    pub op: Op,
    /// How long it may take, and what it waits behind.
    pub class: Class,
    /// Payload of reads and writes in bytes, 0 for others.
    pub bytes: u64,
    /// A deadline of its own; that of its class if there is none.
    pub limit: Option<Duration>,
    /// It may have been done before, by a steadfs that died over it; see [`Context::in_doubt`].
    pub in_doubt: bool,
}

impl Terms {
    /// Those of an ordinary call.
    pub fn of(op: Op, class: Class) -> Terms {
        Terms { op, class, bytes: 0, limit: None, in_doubt: false }
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
    /// From when on an answer to a later question shows that the answer to one of them has been lost
    /// ([`policy::lost_after`]).
    pub lost_at: Option<Instant>,
}

/// See the module.
pub struct Gate {
    policy: RwLock<CallPolicy>,
    complain: ComplaintSink,
    state: Mutex<State>,
    work_ready: Condvar,
    calls_waiting: Condvar,
    /// Number of the live generation, 0 if there is none; written under the lock of `state`, read without.
    live: AtomicU64,
    /// See [`Gate::writes_are_asynchronous`].
    asynchronous: AtomicBool,
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
            policy: RwLock::new(policy),
            complain: Box::new(complain),
            state: Mutex::new(State::new()),
            work_ready: Condvar::new(),
            calls_waiting: Condvar::new(),
            live: AtomicU64::new(0),
            asynchronous: AtomicBool::new(false),
            stats: Stats::default(),
            myself: myself.clone(),
        });
        clock::start(&gate)?;
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
        self.submit_on(Terms { bytes, ..Terms::of(op, class) }, work, reply);
    }

    /// As [`Gate::submit`], on terms of its own.
    pub fn submit_on<T: Send + 'static>(
        &self,
        terms: Terms,
        work: impl FnMut(&Context<'_>) -> OpResult<T> + Send + 'static,
        reply: impl FnOnce(OpResult<T>) + Send + 'static,
    ) {
        let limit = terms.limit.unwrap_or_else(|| policy::limit(&self.policy(), terms.class));
        let mut state = self.state.lock();
        if state.stopping || self.fails_at_once(&state, terms.class, Instant::now()) {
            drop(state);
            reply(Err(self.policy().outage_errno));
            let from_memory = policy::is_answered_from_memory(&self.policy(), limit);
            let outcome = if from_memory { Outcome::Ok } else { Outcome::Outage };
            self.stats.count(terms.op, outcome, Duration::ZERO);
            return;
        }
        let call = Call::new(terms, limit, work, reply);
        if state.is_idle() {
            self.calls_waiting.notify_one();
        }
        state.waiting.entry(limit).or_default().push_back(Arc::clone(&call));
        match state.phase {
            Phase::Open(_) => self.make_ready(&mut state, call),
            Phase::Closed => state.parked.push(call),
        }
    }

    /// Answers a call that needs no backing in this thread, if it would be let through at once: the gate is open, and nothing
    /// speaks against the generation, whose number `work` is given. `None`, from here or from `work`, says that the call
    /// has to be submitted. `work` must not block.
    pub fn at_once<T>(&self, op: Op, work: impl FnOnce(u64) -> Option<T>) -> Option<T> {
        let started = Instant::now();
        let state = self.state.lock();
        let live = state.live().filter(|_| state.outage_since.is_none() && !state.stopping)?;
        drop(state);
        let value = work(live)?;
        self.stats.count(op, Outcome::Ok, started.elapsed());
        Some(value)
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Present load.
    pub fn load(&self) -> Load {
        let state = self.state.lock();
        let live = state.live();
        let (bytes_in_flight, window) = match &state.phase {
            Phase::Open(service) => (service.window.in_flight(), service.window.bytes()),
            Phase::Closed => (0, 0),
        };
        Load {
            waiting: state.unanswered().filter(|call| !call.internal).count(),
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

    /// The deadlines as they are.
    pub fn policy(&self) -> CallPolicy {
        *self.policy.read()
    }

    /// Other deadlines, for calls that come from now on and for outages.
    pub fn set_policy(&self, policy: CallPolicy) {
        *self.policy.write() = policy;
    }

    /// Since when calls are inside the live generation.
    pub fn inside(&self) -> Inside {
        let state = self.state.lock();
        let live = state.live();
        let here = || state.running.values().filter(|running| Some(running.generation) == live);
        Inside {
            any: here().map(|running| running.since).min(),
            sync: here().filter(|running| running.call.class == Class::Sync).map(|running| running.since).min(),
            lost_at: here()
                .filter_map(|running| Some(running.since + policy::lost_after(running.call.class, &self.policy())?))
                .min(),
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

    /// Supervisor, before the first generation: whether a write returns before the server has seen its data
    /// ([`crate::backing::Traits::asynchronous`]). If so its bytes stay in flight until the server has answered a question
    /// that was asked later.
    pub fn writes_are_asynchronous(&self, asynchronous: bool) {
        self.asynchronous.store(asynchronous, SeqCst);
    }

    /// Supervisor: calls may go to that generation from now on; what waited goes first.
    pub fn open(&self, generation: Arc<dyn Generation>) {
        let mut state = self.state.lock();
        if state.stopping {
            return;
        }
        self.live.store(generation.number(), SeqCst);
        let barriers = self.asynchronous.load(SeqCst).then_some(self.policy().deadline);
        state.phase = Phase::Open(Service::new(generation, barriers));
        state.outage_since = None;
        state.opened_at = Some(Instant::now());
        let mut parked = std::mem::take(&mut state.parked);
        parked.sort_by_key(|call| call.arrived);
        for call in parked {
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
        self.live.store(0, SeqCst);
        state.outage_since = earliest(Some(since), state.outage_since);
        state.park_all();
    }

    /// Supervisor: a probe that was sent at `asked_at` has answered, so errors from before it were real ones.
    pub fn settle(&self, generation: u64, asked_at: Instant) {
        let mut settled = Vec::new();
        let mut state = self.state.lock();
        state.limbo.retain(|limbo| {
            let real = limbo.generation == generation && limbo.at <= asked_at;
            if real {
                settled.push((Arc::clone(&limbo.call), limbo.errno));
            }
            !real
        });
        if settled.iter().any(|(call, _)| call.internal)
            && let Phase::Open(service) = &mut state.phase
        {
            // What was answered was asked after the barrier, so it has been one.
            service.window.pass_barrier();
            self.wake(&mut state);
        }
        drop(state);
        for (call, errno) in settled {
            self.answer(&call, errno, Outcome::Error);
        }
    }

    /// Fails everything that waits and takes nothing more. Threads inside the backing end when they get out.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        self.live.store(0, SeqCst);
        state.phase = Phase::Closed;
        let calls: Vec<_> = state.unanswered().cloned().collect();
        drop(state);
        for call in calls {
            self.answer(&call, self.policy().outage_errno, Outcome::Outage);
        }
        self.work_ready.notify_all();
        self.calls_waiting.notify_all();
    }

    fn weather(&self, state: &State) -> Weather {
        state.weather(match &state.phase {
            Phase::Open(service) => service.generation.vitals().progress_at,
            Phase::Closed => None,
        })
    }

    /// Asked for each new call, so without a look at the backing.
    fn fails_at_once(&self, state: &State, class: Class, now: Instant) -> bool {
        let weather = state.weather(None);
        policy::is_failed_by_outage(&weather, class)
            && policy::overdue_at(&self.policy(), &weather).is_some_and(|at| now >= at)
    }

    fn answer(&self, call: &Call, errno: Errno, outcome: Outcome) {
        if call.fail(errno) && !call.internal {
            self.stats.count(call.op, outcome, call.arrived.elapsed());
        }
    }
}

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests;
