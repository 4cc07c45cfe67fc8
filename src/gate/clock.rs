//! The clock: answers calls whose deadline has passed, in place of whoever is stuck with them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::Running;
use super::{Class, Complaint, Gate, Outcome, policy};

/// How often deadlines are looked at while calls wait; promise P1 allows 100 ms of lateness.
const TICK: Duration = Duration::from_millis(20);
/// Longest sleep while no call waits.
const IDLE: Duration = Duration::from_secs(10);

/// Starts the clock of a gate; it ends with the gate.
pub(super) fn start(gate: &Arc<Gate>) -> std::io::Result<()> {
    let gate = Arc::downgrade(gate);
    std::thread::Builder::new().name("deadlines".into()).spawn(move || {
        while let Some(gate) = gate.upgrade() {
            if !gate.tick() {
                break;
            }
            drop(gate);
            std::thread::sleep(TICK);
        }
    })?;
    Ok(())
}

impl Gate {
    /// Looks at all deadlines once; false when the gate has stopped. Waits while no call does.
    fn tick(&self) -> bool {
        let mut state = self.state.lock();
        while state.is_idle() {
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
            if now < policy::due_at(&self.policy(), weather, call.class, call.arrived, call.limit) {
                state.extended.push(call);
                continue;
            }
            let running = state.running.values().find(|running| Arc::ptr_eq(&running.call, &call));
            let from_memory = policy::is_answered_from_memory(&self.policy(), call.limit);
            // That one is late is no evidence.
            let counts = |running: &&Running| Some(running.generation) == state.live() && !from_memory;
            if let Some(running) = running.filter(counts) {
                complaints.push((running.generation, Complaint::Late(call.op)));
            }
            let outcome = match weather.outage_since {
                _ if from_memory => Outcome::Ok,
                Some(_) => Outcome::Outage,
                None => Outcome::Deadline,
            };
            failed.push((Arc::clone(&call), policy::late_errno(&self.policy(), weather), outcome));
            // A call that waited in vain is evidence from when it came. Without this the kernel's second try of the same
            // system call (a lookup is repeated when its revalidation fails) would wait anew.
            if let Some(since) =
                state.outage_since.filter(|since| call.arrived < *since && call.limit == self.policy().deadline)
            {
                first_evidence = Some(first_evidence.unwrap_or(since).min(call.arrived));
            }
        }
        state.outage_since = first_evidence.or(state.outage_since);
        let alive = !state.stopping;
        drop(state);
        let any = !failed.is_empty();
        for (call, errno, outcome) in failed {
            self.answer(&call, errno, outcome);
        }
        complaints.dedup();
        for (generation, complaint) in complaints {
            (self.complain)(generation, complaint);
        }
        if any {
            // Data that was first in the queue may just have been answered, and what is behind it may have room.
            self.wake(&mut self.state.lock());
        }
        alive
    }
}
