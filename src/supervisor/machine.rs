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
//! ```
//!
//! At most one generation exists at any time: the next is started when the last has been retired, so there are never
//! two ssh connections.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::backoff;
use super::verdict::{self, Signs};
use crate::backing::{StartError, Vitals};
use crate::config::RepairPolicy;
use crate::gate::Inside;

/// Time between two looks whether the server can be reached; a healed link is noticed that late at most.
const REACH_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two looks at a suspect.
const SUSPECT_TICK: Duration = Duration::from_millis(100);

/// What speaks against a generation, or why there is none. The names are part of metrics and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The first start.
    Start,
    /// A process of the generation ended.
    ProcessExit,
    /// A probe was not answered in time.
    ProbeLate,
    /// A probe failed.
    ProbeFailed,
    /// A call passed its deadline.
    CallLate,
    /// A call failed in a way that may mean a dead backing.
    CallError,
    /// A process of the generation is stopped.
    Stopped,
    /// Somebody asked for a repair.
    Asked,
}

impl Reason {
    /// The stable word.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Start => "start",
            Reason::ProcessExit => "process_exit",
            Reason::ProbeLate => "probe_late",
            Reason::ProbeFailed => "probe_failed",
            Reason::CallLate => "call_late",
            Reason::CallError => "call_error",
            Reason::Stopped => "stopped",
            Reason::Asked => "asked",
        }
    }
}

/// A probe that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    id: u64,
    sent: Instant,
}

/// Evidence that has neither been refuted nor led to a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    at: Instant,
    reason: Reason,
}

/// A generation that calls go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    generation: u64,
    since: Instant,
    announced: bool,
    probe: Option<Probe>,
    last_sent: Option<Instant>,
    /// A complaint came in after the probe under way was sent: ask again.
    ask_again: bool,
}

/// Where the supervisor is. Fields are what the name says; numbers are those of generations.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum State {
    /// Looking whether the server can be reached; `asking` is false between two looks.
    Reaching { asking: bool, last: Instant },
    /// A generation is coming up.
    Starting { generation: u64 },
    /// It is up; descriptors are being reopened in it.
    Restoring { generation: u64 },
    /// Calls succeed.
    Live(Service),
    /// Calls may succeed; there is evidence.
    Suspect(Service, Evidence),
    /// A dead generation is being removed.
    Retiring { generation: u64 },
    /// Back-off after a failed start. The server is looked for meanwhile: if it goes and comes back, waiting ends.
    Waiting { until: Instant, asking: bool, last: Instant, lost: bool },
    /// Nothing will change until somebody acts.
    Halted,
    /// Ending; `generation` is still to be retired.
    Stopping { generation: Option<u64> },
    /// Nothing is left.
    Stopped,
}

impl State {
    /// The stable word of [`super::Snapshot::state`].
    pub fn name(&self) -> &'static str {
        match self {
            State::Reaching { .. } => "reaching",
            State::Starting { .. } => "starting",
            State::Restoring { .. } => "restoring",
            State::Live(_) => "live",
            State::Suspect(..) => "suspect",
            State::Retiring { .. } => "retiring",
            State::Waiting { .. } => "waiting",
            State::Halted => "halted",
            State::Stopping { .. } | State::Stopped => "stopping",
        }
    }
}

/// Something that happened. Numbers are those of generations; what concerns another than the present one is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time passed.
    Tick,
    /// A call complained ([`Reason::CallLate`], [`Reason::CallError`]) or a process ended ([`Reason::ProcessExit`]).
    Evidence(u64, Reason),
    /// That probe was answered, by whatever the server said.
    ProbeAnswered(u64, u64),
    /// That probe failed in a way that only a dead generation fails.
    ProbeFailed(u64, u64, Errno),
    /// The server can be reached.
    Reached,
    /// It cannot.
    Unreached,
    /// That generation is up.
    Started(u64),
    /// That generation did not come up; nothing of it is left.
    StartFailed(u64, StartError),
    /// Descriptors have been reopened in it.
    Restored(u64),
    /// Nothing of it is left.
    Retired(u64),
    /// Do not wait: try now.
    RetryNow,
    /// End.
    Stop,
}

/// What the supervisor sees when an input comes in.
#[derive(Debug, Clone, Copy)]
pub struct Sight {
    /// Now.
    pub now: Instant,
    /// Signs of life of the present generation.
    pub vitals: Vitals,
    /// What is inside it.
    pub inside: Inside,
    /// A random number in 0..1.
    pub dice: f64,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send probe `.1` to generation `.0`.
    Probe(u64, u64),
    /// Look whether the server can be reached.
    Reach,
    /// Start that generation.
    Start(u64),
    /// Give up the start that is under way.
    CancelStart,
    /// Reopen descriptors in it.
    Restore(u64),
    /// Open the gate to it.
    Open(u64),
    /// Tell the gate since when there is evidence, or that it was refuted.
    Doubt(Option<Instant>),
    /// Tell the gate that errors from before that time were real ones.
    Settle(u64, Instant),
    /// Close the gate: an outage, with its first evidence.
    Close(Instant),
    /// Abort, kill, detach, remove.
    Retire(u64),
    /// Tell everybody.
    Tell(News),
    /// The end.
    Finish,
}

/// What is worth telling, without the words of the world outside.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum News {
    Evidence { generation: u64, reason: Reason },
    Cleared { generation: u64 },
    OutageBegan { since: Instant, reason: Reason },
    OutageOverdue { since: Instant, reason: Reason },
    StartFailed { generation: u64, error: StartError, retry_in: Option<Duration> },
    Recovered { generation: u64, outage: Duration, reason: Reason },
    Steady { generation: u64 },
}

/// An outage: from its first evidence until calls succeed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// First evidence.
    pub since: Instant,
    /// What it was.
    pub reason: Reason,
    told: bool,
    overdue: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Machine {
    policy: RepairPolicy,
    deadline: Duration,
    state: State,
    entered: Instant,
    outage: Option<Outage>,
    newest: u64,
    attempt: u32,
    next_probe: u64,
    ever_live: bool,
}

impl Machine {
    /// A machine that has not begun, and what it wants done first. `deadline` is the age at which an outage is overdue.
    pub fn begin(policy: RepairPolicy, deadline: Duration, now: Instant) -> (Machine, Vec<Action>) {
        let machine = Machine {
            policy,
            deadline,
            state: State::Reaching { asking: true, last: now },
            entered: now,
            outage: Some(Outage { since: now, reason: Reason::Start, told: false, overdue: false }),
            newest: 0,
            attempt: 0,
            next_probe: 1,
            ever_live: false,
        };
        (machine, vec![Action::Reach])
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
            State::Starting { generation } | State::Restoring { generation } | State::Retiring { generation } => {
                Some(*generation)
            }
            State::Live(service) | State::Suspect(service, _) => Some(service.generation),
            State::Stopping { generation } => *generation,
            _ => None,
        }
    }

    /// When a `Tick` is due at the latest.
    pub fn wakes_at(&self, now: Instant) -> Instant {
        let idle = now + Duration::from_secs(1);
        let own = match &self.state {
            State::Live(service) => match service.probe {
                Some(probe) => (probe.sent + self.policy.probe_deadline).min(now + SUSPECT_TICK * 2),
                None => service.last_sent.map_or(now, |sent| sent + self.policy.probe_interval),
            },
            State::Suspect(..) => now + SUSPECT_TICK,
            State::Reaching { asking: false, last } => *last + REACH_INTERVAL,
            State::Waiting { until, asking, last, .. } => {
                if *asking {
                    *until
                } else {
                    (*until).min(*last + REACH_INTERVAL)
                }
            }
            _ => idle,
        };
        let overdue = self.outage.filter(|outage| !outage.overdue).map_or(idle, |outage| outage.since + self.deadline);
        own.min(overdue).min(idle)
    }

    /// Takes an input in and says what is to be done, in order.
    pub fn handle(&mut self, input: Input, sight: &Sight) -> Vec<Action> {
        let mut todo = Vec::new();
        match input {
            Input::Stop => self.stop(sight, &mut todo),
            Input::RetryNow => self.retry_now(sight, &mut todo),
            Input::Tick => self.tick(sight, &mut todo),
            Input::Evidence(generation, reason) => self.evidence(generation, reason, sight, &mut todo),
            Input::ProbeAnswered(generation, id) => self.probe_answered(generation, id, sight, &mut todo),
            Input::ProbeFailed(generation, id, _) => {
                if self.service().is_some_and(|s| s.generation == generation && s.probe.is_some_and(|p| p.id == id)) {
                    self.doubt(Reason::ProbeFailed, sight, &mut todo);
                    self.pronounce_dead(sight, &mut todo);
                }
            }
            Input::Reached | Input::Unreached => self.reach_result(input == Input::Reached, sight, &mut todo),
            Input::Started(generation) => self.started(generation, sight, &mut todo),
            Input::StartFailed(generation, error) => self.start_failed(generation, error, sight, &mut todo),
            Input::Restored(generation) => self.restored(generation, sight, &mut todo),
            Input::Retired(generation) => match self.state {
                State::Retiring { generation: present } if present == generation => self.reach(sight, &mut todo),
                State::Stopping { generation: Some(present) } if present == generation => self.finish(sight, &mut todo),
                _ => {}
            },
        }
        self.check_overdue(sight, &mut todo);
        todo
    }

    fn service(&self) -> Option<&Service> {
        match &self.state {
            State::Live(service) | State::Suspect(service, _) => Some(service),
            _ => None,
        }
    }

    fn service_mut(&mut self) -> Option<&mut Service> {
        match &mut self.state {
            State::Live(service) | State::Suspect(service, _) => Some(service),
            _ => None,
        }
    }

    fn enter(&mut self, state: State, now: Instant) {
        if state.name() != self.state.name() {
            self.entered = now;
        }
        self.state = state;
    }

    fn tick(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        match &mut self.state {
            State::Reaching { asking, last } if !*asking && sight.now >= *last + REACH_INTERVAL => {
                (*asking, *last) = (true, sight.now);
                todo.push(Action::Reach);
            }
            State::Waiting { until, .. } if sight.now >= *until => self.start(sight, todo),
            State::Waiting { asking, last, .. } if !*asking && sight.now >= *last + REACH_INTERVAL => {
                (*asking, *last) = (true, sight.now);
                todo.push(Action::Reach);
            }
            State::Live(_) | State::Suspect(..) => self.watch(sight, todo),
            _ => {}
        }
    }

    /// Looks after a generation that serves.
    fn watch(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        let policy = self.policy;
        let Some(service) = self.service_mut() else { return };
        if !service.announced && sight.now >= service.since + policy.steady && service.probe.is_none() {
            service.announced = true;
            let generation = service.generation;
            todo.push(Action::Tell(News::Steady { generation }));
            self.attempt = 0;
        }
        if sight.vitals.stopped {
            if let Some(service) = self.service_mut() {
                service.ask_again |= service.probe.is_none();
            }
            self.doubt(Reason::Stopped, sight, todo);
        }
        self.probe_if_due(sight, todo);
        let Some(probe) = self.service().and_then(|service| service.probe) else { return };
        if sight.now >= probe.sent + policy.probe_deadline {
            // Moving bytes are life: a probe that waits behind them is not even evidence.
            let quiet = sight.vitals.progress_at.is_none_or(|at| sight.now >= at + policy.probe_deadline);
            if quiet {
                self.doubt(Reason::ProbeLate, sight, todo);
            } else {
                self.relent(sight, todo);
            }
        }
        let signs = Signs { probe_sent: probe.sent, vitals: sight.vitals, inside: sight.inside };
        if matches!(self.state, State::Suspect(..)) && sight.now >= verdict::dead_at(&signs, policy.probe_deadline) {
            self.pronounce_dead(sight, todo);
        }
    }

    fn probe_if_due(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        let (interval, id) = (self.policy.probe_interval, self.next_probe);
        let Some(service) = self.service_mut() else { return };
        let due = service.ask_again || service.last_sent.is_none_or(|sent| sight.now >= sent + interval);
        if service.probe.is_none() && due {
            service.probe = Some(Probe { id, sent: sight.now });
            service.last_sent = Some(sight.now);
            service.ask_again = false;
            todo.push(Action::Probe(service.generation, id));
            self.next_probe += 1;
        }
    }

    fn evidence(&mut self, generation: u64, reason: Reason, sight: &Sight, todo: &mut Vec<Action>) {
        if self.service().is_none_or(|service| service.generation != generation) {
            // A process may end while descriptors are being reopened; then there is nothing to open the gate to.
            if reason == Reason::ProcessExit && self.state == (State::Restoring { generation }) {
                self.condemn(generation, sight, todo);
            }
            return;
        }
        if reason == Reason::ProcessExit {
            self.doubt(reason, sight, todo);
            self.pronounce_dead(sight, todo);
            return;
        }
        // One slow call while bytes move is no evidence; an error always wants a fresh probe.
        let moving = sight.vitals.progress_at.is_some_and(|at| sight.now < at + self.policy.probe_deadline);
        if !(reason == Reason::CallLate && moving) {
            self.doubt(reason, sight, todo);
        }
        if let Some(service) = self.service_mut() {
            service.ask_again = true;
        }
        self.probe_if_due(sight, todo);
    }

    fn probe_answered(&mut self, generation: u64, id: u64, sight: &Sight, todo: &mut Vec<Action>) {
        let Some(service) = self.service_mut() else { return };
        let Some(probe) = service.probe.filter(|probe| service.generation == generation && probe.id == id) else {
            return;
        };
        service.probe = None;
        todo.push(Action::Settle(generation, probe.sent));
        // Evidence that came in after the probe was sent is not refuted by it.
        if !service.ask_again {
            self.relent(sight, todo);
        }
        self.probe_if_due(sight, todo);
    }

    /// Drops the evidence.
    fn relent(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        if let State::Suspect(service, _) = &self.state {
            let service = *service;
            todo.push(Action::Doubt(None));
            todo.push(Action::Tell(News::Cleared { generation: service.generation }));
            self.outage = None;
            self.enter(State::Live(service), sight.now);
        }
    }

    /// Takes evidence down.
    fn doubt(&mut self, reason: Reason, sight: &Sight, todo: &mut Vec<Action>) {
        if let State::Live(service) = &self.state {
            let service = *service;
            todo.push(Action::Doubt(Some(sight.now)));
            todo.push(Action::Tell(News::Evidence { generation: service.generation, reason }));
            self.enter(State::Suspect(service, Evidence { at: sight.now, reason }), sight.now);
        }
    }

    fn pronounce_dead(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        let State::Suspect(service, evidence) = &self.state else { return };
        let (generation, evidence) = (service.generation, *evidence);
        self.outage = Some(Outage { since: evidence.at, reason: evidence.reason, told: true, overdue: false });
        todo.push(Action::Close(evidence.at));
        todo.push(Action::Tell(News::OutageBegan { since: evidence.at, reason: evidence.reason }));
        self.condemn(generation, sight, todo);
    }

    fn condemn(&mut self, generation: u64, sight: &Sight, todo: &mut Vec<Action>) {
        todo.push(Action::Retire(generation));
        self.enter(State::Retiring { generation }, sight.now);
    }

    fn reach(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        todo.push(Action::Reach);
        self.enter(State::Reaching { asking: true, last: sight.now }, sight.now);
    }

    fn reach_result(&mut self, reached: bool, sight: &Sight, todo: &mut Vec<Action>) {
        match &mut self.state {
            State::Reaching { asking, .. } if *asking => {
                *asking = false;
                if reached {
                    self.start(sight, todo);
                } else {
                    self.tell_outage(todo);
                }
            }
            State::Waiting { asking, lost, .. } if *asking => {
                *asking = false;
                let back = reached && *lost;
                *lost = !reached;
                if back {
                    self.start(sight, todo);
                }
            }
            _ => {}
        }
    }

    fn tell_outage(&mut self, todo: &mut Vec<Action>) {
        if let Some(outage) = self.outage.as_mut().filter(|outage| !outage.told) {
            outage.told = true;
            todo.push(Action::Tell(News::OutageBegan { since: outage.since, reason: outage.reason }));
        }
    }

    fn start(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        self.newest += 1;
        todo.push(Action::Start(self.newest));
        self.enter(State::Starting { generation: self.newest }, sight.now);
    }

    fn started(&mut self, generation: u64, sight: &Sight, todo: &mut Vec<Action>) {
        match self.state {
            State::Starting { generation: present } if present == generation => {
                todo.push(Action::Restore(generation));
                self.enter(State::Restoring { generation }, sight.now);
            }
            State::Stopping { generation: Some(present) } if present == generation => {
                todo.push(Action::Retire(generation))
            }
            _ => {}
        }
    }

    fn start_failed(&mut self, generation: u64, error: StartError, sight: &Sight, todo: &mut Vec<Action>) {
        match self.state {
            State::Starting { generation: present } if present == generation => {}
            State::Stopping { generation: Some(present) } if present == generation => return self.finish(sight, todo),
            _ => return,
        }
        self.tell_outage(todo);
        let hopeless = match error {
            StartError::Refused(_) => true,
            StartError::Local(_) => !self.ever_live,
            StartError::Unreachable(_) => false,
        };
        let delay = backoff::delay(self.attempt, self.policy.backoff_min, self.policy.backoff_max, sight.dice);
        self.attempt += 1;
        let retry_in = (!hopeless).then_some(delay);
        todo.push(Action::Tell(News::StartFailed { generation, error, retry_in }));
        let state = if hopeless {
            State::Halted
        } else {
            State::Waiting { until: sight.now + delay, asking: false, last: sight.now, lost: false }
        };
        self.enter(state, sight.now);
    }

    fn restored(&mut self, generation: u64, sight: &Sight, todo: &mut Vec<Action>) {
        if self.state != (State::Restoring { generation }) {
            return;
        }
        let service =
            Service { generation, since: sight.now, announced: false, probe: None, last_sent: None, ask_again: false };
        todo.push(Action::Open(generation));
        if let Some(outage) = self.outage.take() {
            let lasted = sight.now.saturating_duration_since(outage.since);
            todo.push(Action::Tell(News::Recovered { generation, outage: lasted, reason: outage.reason }));
        }
        self.ever_live = true;
        self.enter(State::Live(service), sight.now);
    }

    fn retry_now(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        match &self.state {
            State::Halted | State::Waiting { .. } => {
                self.attempt = 0;
                // A look that is under way answers to the new state just as well.
                let asking = matches!(self.state, State::Waiting { asking: true, .. });
                if asking {
                    self.enter(State::Reaching { asking: true, last: sight.now }, sight.now);
                } else {
                    self.reach(sight, todo);
                }
            }
            State::Live(_) | State::Suspect(..) => {
                if let Some(service) = self.service_mut() {
                    service.ask_again = true;
                }
                self.probe_if_due(sight, todo);
            }
            _ => {}
        }
    }

    fn stop(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        let generation = self.generation();
        match &self.state {
            State::Stopping { .. } | State::Stopped => return,
            State::Starting { .. } => todo.push(Action::CancelStart),
            State::Retiring { .. } => {}
            _ => {
                if let Some(generation) = generation {
                    todo.push(Action::Close(sight.now));
                    todo.push(Action::Retire(generation));
                }
            }
        }
        match generation {
            Some(_) => self.enter(State::Stopping { generation }, sight.now),
            None => self.finish(sight, todo),
        }
    }

    fn finish(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        todo.push(Action::Finish);
        self.enter(State::Stopped, sight.now);
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
