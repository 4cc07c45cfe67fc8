//! The supervisor's state machine: pure, with time passed in. Inputs happen, actions are to be done.
//!
//! ```text
//!                    Unreached (again in a second)
//!                       ┌───┐
//!                       ▼   │          StartFailed
//!   begin ──────────▶ Reaching ──▶ Starting ───────▶ Waiting ──▶ (back-off over, or the server was away and is back)
//!                       ▲    Reached │    ▲             │  │                  │
//!                       │            │    └─────────────┘  └──────────────────┘
//!                       │            │ Started
//!                       │            ▼                                StartFailed, but nothing can change by itself
//!                    Retiring     Restoring                           ──▶ Halted ──▶ (RetryNow) ──▶ Reaching
//!                       ▲ ▲          │ Restored: the gate opens
//!              verdict: │ │          ▼
//!              dead     │ └──────── Live ◀─────┐ a probe answered
//!                       │            │ evidence│
//!                       │            ▼         │
//!                       └───────── Suspect ────┘          any ── Stop ──▶ Stopping ──▶ Stopped
//!
//!                                Adopted
//!   resume ─────────▶ Adopting ───────────▶ Restoring
//!                       │ NotAdopted: nothing of it is left
//!                       └──────────────────▶ Reaching
//!
//!                                  no permit       every permit given,
//!   about to start ────────────────▶ Held ─────────────▶ Starting   or RetryNow: somebody orders it
//! ```
//!
//! A start of a repair needs a permit ([`super::permit`]); the first start of a daemon does not.
//! A successor that is handed a live generation begins with resume; without one, where begin does, with the numbers going on.
//!
//! At most one generation exists at any time: the next is started when the last has been retired, so there are never
//! two ssh connections.
//!
#![doc = include_str!("machine/transitions.md")]

mod action;
mod health;
mod input;
mod permitted;
mod repair;
mod state;

use std::time::{Duration, Instant};

use super::backoff;
use super::permit::Permit;
use super::verdict::{self, Signs};
use crate::config::RepairPolicy;
pub use action::{Action, News};
pub use input::{Input, Reason, Sight};
pub use state::{Evidence, Outage, Probe, Service, State};

/// Time between two looks at a suspect.
const SUSPECT_TICK: Duration = Duration::from_millis(100);
/// Longest time between two looks at anything.
const IDLE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Clone)]
pub struct Machine {
    policy: RepairPolicy,
    deadline: Duration,
    state: State,
    entered: Instant,
    outage: Option<Outage>,
    newest: u64,
    /// Failures in a row, for the back-off.
    attempt: u32,
    /// Generations in a row that ended by themselves before they were steady.
    early_deaths: u32,
    /// Starts in a row in which the link went silent.
    silent_starts: u32,
    next_probe: u64,
    ever_live: bool,
    permit: Permit,
    /// The start that is under way is the first one of all, which needs no permit.
    first: bool,
    /// Somebody has ordered the next start, so that it needs none.
    ordered: bool,
    /// The present repair has started before.
    begun: bool,
    /// Time of the last input.
    seen: Instant,
}

impl Machine {
    /// A machine that has not begun, and what it wants done first. `deadline` is the age at which an outage is overdue.
    pub fn begin(policy: RepairPolicy, deadline: Duration, now: Instant) -> (Machine, Vec<Action>) {
        let state = State::Reaching { asking: true, last: now };
        (Machine::new(policy, deadline, now, state, Reason::Start), vec![Action::Reach])
    }

    /// As [`Machine::begin`], for the successor of a daemon that died: `newest` is the number of its newest generation, and
    /// `adopt` says whether that is alive and to be taken over.
    pub fn resume(
        policy: RepairPolicy,
        deadline: Duration,
        now: Instant,
        since: Instant,
        newest: u64,
        adopt: bool,
    ) -> (Machine, Vec<Action>) {
        let (state, first) = match adopt {
            true => (State::Adopting { generation: newest }, Action::Adopt(newest)),
            false => (State::Reaching { asking: true, last: now }, Action::Reach),
        };
        let mut machine = Machine::new(policy, deadline, now, state, Reason::Succession);
        if let Some(outage) = &mut machine.outage {
            outage.since = since;
        }
        // What the machine lacks was there for the predecessor, so that it may come back.
        // One that has never started anything leaves its first start to its successor.
        machine.first = newest == 0;
        (Machine { newest, ever_live: true, ..machine }, vec![first])
    }

    fn new(policy: RepairPolicy, deadline: Duration, now: Instant, state: State, reason: Reason) -> Machine {
        Machine {
            policy,
            deadline,
            state,
            entered: now,
            outage: Some(Outage { since: now, reason, told: false, overdue: false }),
            newest: 0,
            attempt: 0,
            early_deaths: 0,
            silent_starts: 0,
            next_probe: 1,
            ever_live: false,
            permit: Permit::default(),
            first: true,
            ordered: false,
            begun: false,
            seen: now,
        }
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Since when it is in that state.
    pub fn entered(&self) -> Instant {
        self.entered
    }

    /// The present outage.
    pub fn outage(&self) -> Option<Outage> {
        self.outage
    }

    /// Number of the newest generation, 0 before the first.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// True once a generation has been live.
    pub fn ever_live(&self) -> bool {
        self.ever_live
    }

    /// The generation that exists or is being made.
    pub fn generation(&self) -> Option<u64> {
        match &self.state {
            State::Adopting { generation } | State::Starting { generation } | State::Retiring { generation, .. } => {
                Some(*generation)
            }
            State::Stopping { generation } => *generation,
            state => state.service().map(|service| service.generation),
        }
    }

    /// When a `Tick` is due at the latest.
    pub fn wakes_at(&self, now: Instant) -> Instant {
        let idle = now + IDLE;
        let own = match &self.state {
            State::Live(service) | State::Restoring(service) => match service.probe {
                // Past that moment bytes move, or something explains the silence: a look now and then will do.
                Some(probe) => match probe.clock + self.policy.probe_deadline {
                    late if late > now => late.min(now + SUSPECT_TICK * 2),
                    _ => now + SUSPECT_TICK,
                },
                None => service.last_sent.map_or(now, |sent| sent + self.policy.probe_interval),
            },
            State::Suspect(..) => now + SUSPECT_TICK,
            State::Reaching { asking: false, last } => *last + repair::look_interval(true),
            State::Held { hold, .. } => hold.and_then(|hold| hold.until).map_or(idle, |until| until.min(idle)),
            State::Waiting { until, asking: true, .. } => *until,
            State::Waiting { until, last, lost, .. } => (*until).min(*last + repair::look_interval(*lost)),
            // Nothing is overdue any more.
            State::Stopping { .. } | State::Stopped => return idle,
            _ => idle,
        };
        let overdue = self.outage.filter(|outage| !outage.overdue).map_or(idle, |outage| outage.since + self.deadline);
        own.min(overdue).min(idle)
    }

    /// Takes an input in and says what is to be done, in order.
    pub fn handle(&mut self, input: Input, sight: &Sight) -> Vec<Action> {
        let mut todo = Vec::new();
        self.forgive(sight.now);
        self.confirm(sight.now);
        match input {
            Input::Stop => self.stop(sight, &mut todo),
            Input::RetryNow => self.retry_now(sight, &mut todo),
            Input::Replace => self.replace(sight, &mut todo),
            Input::Seen(look) => {
                self.permit.see(sight.now, look);
                self.review(sight, &mut todo);
            }
            Input::Tick => match self.state.service() {
                Some(_) => self.watch(sight, &mut todo),
                None => self.look_if_due(sight, &mut todo),
            },
            Input::Evidence(generation, reason) => self.evidence(generation, reason, sight, &mut todo),
            Input::ProbeAnswered(generation, id) => self.probe_answered(generation, id, sight, &mut todo),
            Input::ProbeFailed(generation, id, _) => self.probe_failed(generation, id, sight, &mut todo),
            Input::ProbeUnsent(generation, id) => self.probe_unsent(generation, id),
            Input::Reached | Input::Unreached => self.reach_result(input == Input::Reached, sight, &mut todo),
            Input::Adopted(generation) => self.adopted(generation, sight, &mut todo),
            Input::Started(generation) => self.started(generation, sight, &mut todo),
            Input::NotAdopted(generation) => self.not_adopted(generation, sight, &mut todo),
            Input::StartFailed(generation, error) => self.start_failed(generation, error, sight, &mut todo),
            Input::Restored(generation) => self.restored(generation, sight, &mut todo),
            Input::RestoreFailed(generation, words) => self.restore_failed(generation, words, sight, &mut todo),
            Input::Retired(generation) => self.retired(generation, sight, &mut todo),
        }
        self.check_overdue(sight, &mut todo);
        todo
    }

    fn enter(&mut self, state: State, now: Instant) {
        if state.name() != self.state.name() {
            self.entered = now;
        }
        self.state = state;
    }

    fn tell_outage(&mut self, todo: &mut Vec<Action>) {
        if let Some(outage) = self.outage.as_mut().filter(|outage| !outage.told) {
            outage.told = true;
            todo.push(Action::Tell(News::OutageBegan { since: outage.since, reason: outage.reason }));
        }
    }

    fn check_overdue(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        if matches!(self.state, State::Stopping { .. } | State::Stopped) {
            return;
        }
        let due = |outage: &Outage| !outage.overdue && sight.now >= outage.since + self.deadline;
        if let Some(outage) = self.outage.filter(due) {
            self.tell_outage(todo);
            todo.push(Action::Tell(News::OutageOverdue { since: outage.since, reason: outage.reason }));
            self.outage = self.outage.map(|outage| Outage { overdue: true, ..outage });
        }
    }
}

#[cfg(test)]
mod tests;
