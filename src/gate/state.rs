//! What the gate's lock protects: the phase, and where every call is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Op;
use super::call::Call;
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
    /// Threads that are inside it with data.
    data_threads: usize,
}

impl Service {
    pub fn new(generation: Arc<dyn Generation>) -> Service {
        Service { generation, window: Window::default(), data_threads: 0 }
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
    /// Closed, in outage since now.
    pub fn new() -> State {
        State {
            phase: Phase::Closed,
            outage_since: Some(Instant::now()),
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

    /// Unanswered calls.
    pub fn unanswered(&self) -> impl Iterator<Item = &Arc<Call>> {
        self.waiting.values().flatten().chain(&self.extended).filter(|call| !call.is_answered())
    }

    /// How many calls more threads could run now. Of the data only the head is counted: whoever takes it looks again.
    pub fn dispatchable(&mut self) -> usize {
        let Phase::Open(service) = &self.phase else { return 0 };
        let allowed = self.data_threads < MAX_DATA_THREADS_IN_ALL && service.data_threads < MAX_DATA_THREADS;
        self.ready.others() + usize::from(allowed && self.ready.next_data().is_some_and(|n| service.window.has_room(n)))
    }

    /// Takes the next call that may be run now and counts it in, as that thread's.
    pub fn take(&mut self, thread: u64) -> Option<Job> {
        let Phase::Open(service) = &mut self.phase else { return None };
        let allowed = self.data_threads < MAX_DATA_THREADS_IN_ALL && service.data_threads < MAX_DATA_THREADS;
        let (call, admission) = self.ready.take(allowed, &mut service.window)?;
        if admission.is_some() {
            self.data_threads += 1;
            service.data_threads += 1;
        }
        let generation = Arc::clone(&service.generation);
        let (number, since) = (generation.number(), Instant::now());
        self.running.insert(thread, Running { call: Arc::clone(&call), generation: number, since, admission });
        Some(Job { call, generation })
    }

    /// Begins a barrier if one is due, to be waited for by the calling thread; see [`super::window`].
    pub fn begin_barrier(&mut self) -> Option<Arc<dyn Generation>> {
        let next = self.ready.next_data();
        let Phase::Open(service) = &mut self.phase else { return None };
        service.window.begin_barrier(next).then(|| Arc::clone(&service.generation))
    }

    /// A barrier of that generation came back after so long, or failed.
    pub fn end_barrier(&mut self, generation: u64, took: Option<Duration>) {
        if let Phase::Open(service) = &mut self.phase
            && service.generation.number() == generation
        {
            service.window.end_barrier(took, Instant::now());
        }
    }

    /// Counts out what that thread ran; `done` says that the call succeeded and was in time.
    pub fn put_back(&mut self, thread: u64, done: bool) {
        let Some(running) = self.running.remove(&thread) else { return };
        let Some(admission) = running.admission else { return };
        self.data_threads -= 1;
        // What comes out of a dead generation had its room there.
        if let Phase::Open(service) = &mut self.phase
            && service.generation.number() == running.generation
        {
            service.data_threads -= 1;
            let now = Instant::now();
            if running.call.op == Op::Write && service.generation.is_asynchronous() {
                service.window.keep(admission);
            } else {
                service.window.release(admission, done.then(|| now - running.since), now);
            }
        }
    }

    /// Nothing that waits for a run or a verdict is left with a generation: it waits for the next.
    pub fn park_all(&mut self) {
        self.phase = Phase::Closed;
        self.parked.extend(self.ready.drain());
        for limbo in std::mem::take(&mut self.limbo) {
            limbo.call.in_doubt.store(true, Relaxed);
            self.parked.push(limbo.call);
        }
        self.parked.retain(|call| !call.is_answered());
    }
}
