//! What the gate's lock protects: the phase, and where every call is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Sent;
use super::call::{Call, Run};
use super::policy::Weather;
use super::queue::Queue;
use super::window::{Admission, Window};
use crate::backing::Generation;

/// Most threads that may be inside one generation with data: the others are for names, attributes and syncs.
pub(super) const MAX_DATA_THREADS: usize = 96;
/// Most threads that may be inside any generation with data, dead ones included.
const MAX_DATA_THREADS_IN_ALL: usize = 144;

/// The live generation and what is inside it.
pub(super) struct Service {
    pub generation: Arc<dyn Generation>,
    /// Its own, so that what is stuck in a dead generation takes no room in the next.
    pub window: Window,
    /// Limit of a barrier, if writes return before the server has seen their data.
    barriers: Option<Duration>,
    /// Threads that are inside it with data.
    data_threads: usize,
}

impl Service {
    pub fn new(generation: Arc<dyn Generation>, barriers: Option<Duration>) -> Service {
        Service { generation, window: Window::default(), barriers, data_threads: 0 }
    }

    /// Limit of a barrier that should be begun now; `next` is the payload of the data call whose turn it is.
    fn barrier_due(&self, next: Option<u64>) -> Option<Duration> {
        let blocked = next.is_some_and(|bytes| !self.window.has_room(bytes));
        self.barriers.filter(|_| self.window.wants_barrier(blocked))
    }
}

pub(super) enum Phase {
    Closed,
    Open(Service),
}

/// A call that a thread is inside the backing with.
pub(super) struct Running {
    pub call: Arc<Call>,
    pub generation: u64,
    pub since: Instant,
    pub admission: Option<Admission>,
}

/// A call that failed and waits for the verdict on its generation.
pub(super) struct Limbo {
    pub call: Arc<Call>,
    pub generation: u64,
    pub errno: Errno,
    pub at: Instant,
}

/// One run of a call that a thread is about to do.
pub(super) struct Job {
    pub call: Arc<Call>,
    pub generation: Arc<dyn Generation>,
}

pub(super) struct State {
    pub phase: Phase,
    pub outage_since: Option<Instant>,
    /// When it was opened last.
    pub opened_at: Option<Instant>,
    pub ready: Queue,
    pub parked: Vec<Arc<Call>>,
    pub limbo: Vec<Limbo>,
    pub running: BTreeMap<u64, Running>,
    /// Unanswered calls by limit; each queue is in order of arrival, so only heads have to be looked at.
    pub waiting: BTreeMap<Duration, VecDeque<Arc<Call>>>,
    /// Calls past their limit that go on because bytes move.
    pub extended: Vec<Arc<Call>>,
    pub threads: usize,
    /// Threads that were started or woken and have not looked for work yet.
    pub coming: usize,
    pub next_thread: u64,
    pub stopping: bool,
    /// Threads that are inside any generation with data.
    data_threads: usize,
}

impl State {
    /// What a call's time depends on; bytes were last seen to move at `progress_at`.
    pub fn weather(&self, progress_at: Option<Instant>) -> Weather {
        let closed = matches!(self.phase, Phase::Closed);
        Weather { outage_since: self.outage_since, closed, opened_at: self.opened_at, progress_at }
    }

    /// Closed, in outage since now.
    pub fn new() -> State {
        State {
            phase: Phase::Closed,
            outage_since: Some(Instant::now()),
            opened_at: None,
            ready: Queue::default(),
            parked: Vec::new(),
            limbo: Vec::new(),
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            extended: Vec::new(),
            threads: 0,
            coming: 0,
            next_thread: 0,
            stopping: false,
            data_threads: 0,
        }
    }

    /// Number of the live generation.
    pub fn live(&self) -> Option<u64> {
        match &self.phase {
            Phase::Open(service) => Some(service.generation.number()),
            Phase::Closed => None,
        }
    }

    /// True when no call waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.extended.is_empty()
    }

    /// Unanswered calls, barriers included.
    pub fn unanswered(&self) -> impl Iterator<Item = &Arc<Call>> {
        self.waiting.values().flatten().chain(&self.extended).filter(|call| !call.is_answered())
    }

    /// How many calls more threads could run now. Of the data only the head is counted: whoever takes it looks again.
    pub fn dispatchable(&mut self) -> usize {
        let Phase::Open(service) = &self.phase else { return 0 };
        let allowed = self.data_threads < MAX_DATA_THREADS_IN_ALL && service.data_threads < MAX_DATA_THREADS;
        let next = self.ready.next_data();
        self.ready.others()
            + usize::from(service.barrier_due(next).is_some())
            + usize::from(allowed && next.is_some_and(|bytes| service.window.has_room(bytes)))
    }

    /// Takes the next call that may be run now and counts it in, as that thread's.
    pub fn take(&mut self, thread: u64) -> Option<Job> {
        let Phase::Open(service) = &mut self.phase else { return None };
        let generation = Arc::clone(&service.generation);
        let (number, since) = (generation.number(), Instant::now());
        let (call, admission) = if let Some(limit) = service.barrier_due(self.ready.next_data()) {
            service.window.begin_barrier(since);
            let barrier = Call::barrier(limit);
            self.waiting.entry(limit).or_default().push_back(Arc::clone(&barrier));
            (barrier, None)
        } else {
            let allowed = self.data_threads < MAX_DATA_THREADS_IN_ALL && service.data_threads < MAX_DATA_THREADS;
            self.ready.take(allowed, &mut service.window)?
        };
        if admission.is_some() {
            self.data_threads += 1;
            service.data_threads += 1;
        }
        self.running.insert(thread, Running { call: Arc::clone(&call), generation: number, since, admission });
        Some(Job { call, generation })
    }

    /// Counts out what that thread ran.
    pub fn put_back(&mut self, thread: u64, run: &Run, sent: &Sent) {
        let Some(Running { call, generation, since, admission }) = self.running.remove(&thread) else { return };
        self.data_threads -= usize::from(admission.is_some());
        let Phase::Open(service) = &mut self.phase else { return };
        if service.generation.number() != generation {
            // What comes out of a dead generation had its room there.
            return;
        }
        let now = Instant::now();
        if service.barriers.is_some() {
            service.window.overrun(sent.others.get());
        }
        match admission {
            Some(admission) => {
                service.data_threads -= 1;
                if sent.kept.get() {
                    service.window.release(admission, None, now);
                } else if service.barriers.is_some() && call.op.writes() {
                    service.window.hand_over(admission);
                } else {
                    let took = matches!(run, Run::Answered).then(|| now - since);
                    service.window.release(admission, took, now);
                }
            }
            None if call.internal => match run {
                Run::Answered | Run::TooLate => service.window.end_barrier(now),
                Run::Failed(_) if call.is_answered() => service.window.lose_barrier(),
                // It waits for the verdict like any other call.
                Run::Failed(_) => {}
            },
            None => {}
        }
    }

    /// Nothing that waits for a run or a verdict is left with a generation: it waits for the next.
    pub fn park_all(&mut self) {
        self.phase = Phase::Closed;
        self.parked.extend(self.ready.drain());
        for limbo in std::mem::take(&mut self.limbo) {
            if limbo.call.internal {
                limbo.call.fail(limbo.errno);
            }
            limbo.call.in_doubt.store(true, Relaxed);
            self.parked.push(limbo.call);
        }
        self.parked.retain(|call| !call.is_answered());
    }
}
