//! The threads that run calls: more are started while others are stuck in the backing, idle ones end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::MutexGuard;

use super::call::{Call, Run};
use super::state::{Job, Limbo, State};
use super::{Complaint, Context, Gate, Outcome, Sent, policy};

/// Most threads of the pool. Each can be stuck in the backing until its generation is aborted.
pub const MAX_THREADS: usize = 192;
/// Threads that stay when there is nothing to do.
const MIN_THREADS: usize = 4;
/// Stack of a thread of the pool in bytes; the deepest call chain is a path walk.
const STACK: usize = 512 << 10;
/// A thread that had nothing to do for that long ends, if others are left.
const IDLE: Duration = Duration::from_secs(10);

impl Gate {
    /// Queues a call for the live generation.
    pub(super) fn make_ready(&self, state: &mut State, call: Arc<Call>) {
        state.ready.push(call);
        self.wake(state);
    }

    /// Sees to it that a thread comes for everything that may run now.
    pub(super) fn wake(&self, state: &mut State) {
        while state.coming < state.dispatchable() {
            let comes = self.work_ready.notify_one() || (state.threads < MAX_THREADS && self.add_thread(state));
            if !comes {
                // Whoever comes back from the backing looks for more work.
                break;
            }
            state.coming += 1;
        }
    }

    fn add_thread(&self, state: &mut State) -> bool {
        let Some(gate) = self.myself.upgrade() else { return false };
        let id = state.next_thread;
        let thread = std::thread::Builder::new().name(format!("call-{id}")).stack_size(STACK);
        match thread.spawn(move || gate.work(id)) {
            Ok(_) => {
                state.next_thread += 1;
                state.threads += 1;
                true
            }
            // The call stays in the queue: another thread or its deadline gets it.
            Err(error) => {
                tracing::warn!(%error, threads = state.threads, "cannot start another thread");
                false
            }
        }
    }

    /// The life of one thread of the pool.
    fn work(&self, id: u64) {
        let mut state = self.state.lock();
        state.coming = state.coming.saturating_sub(1);
        while let Some(Job { call, generation }) = self.next(id, &mut state) {
            drop(state);
            let number = generation.number();
            let sent = Sent::default();
            let run = self.run(&call, &generation, &sent);
            drop(generation);
            state = self.state.lock();
            state.put_back(id, &run, &sent);
            if let Run::Failed(errno) = run {
                state = self.failed(state, call, number, errno);
            }
        }
        state.threads -= 1;
    }

    /// The next call to run, or `None` when this thread should end.
    fn next(&self, id: u64, state: &mut MutexGuard<'_, State>) -> Option<Job> {
        loop {
            if state.stopping {
                return None;
            }
            if let Some(job) = state.take(id) {
                if job.call.internal {
                    // Nobody submitted it, so nobody has told the clock.
                    self.calls_waiting.notify_one();
                }
                // There may be more than whoever queued it has seen: room in the window, for one.
                self.wake(state);
                return Some(job);
            }
            if !self.work_ready.wait_for(state, IDLE).timed_out() {
                state.coming = state.coming.saturating_sub(1);
            } else if state.dispatchable() == 0 && state.threads > MIN_THREADS {
                return None;
            }
        }
    }

    /// Runs a call once.
    fn run(&self, call: &Arc<Call>, generation: &Arc<dyn super::Generation>, sent: &Sent) -> Run {
        if call.is_answered() && !call.internal {
            return Run::TooLate;
        }
        let in_doubt = call.in_doubt.load(Relaxed);
        let deadline = call.arrived + call.limit + self.policy().hold;
        let run = call.run(&Context { generation, in_doubt, deadline, call, live: &self.live, sent });
        if matches!(run, Run::Answered) && !call.internal {
            self.stats.count(call.op, Outcome::Ok, call.arrived.elapsed());
        }
        run
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
            // Its window is gone with its generation.
            _ if call.internal => drop(call.fail(errno)),
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
