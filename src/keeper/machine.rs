//! The keeper's state machine: pure, with time passed in. Inputs happen, actions are to be done.
//!
//! ```text
//!              begin                                 Exited, or not to be started:
//!                │                                   back-off, none for the first death
//!                ▼            Ready                       ┌───────────┐
//!   ┌──────▶ Starting ─────────────────▶ Serving          │           ▼
//!   │         │  │                       │ │ │ ───────────┴───────▶ Down
//!   │         │  │ no beat     no beat   │ │ │                       │
//!   │         │  └──────▶ Hung ◀─────────┘ │ │ UpgradeAsked          │ Tick: the pause is over
//!   │         │            │ Exited        │ ▼                       │
//!   │         │            │             Upgrading: Yield, then Kill │
//!   │         │            │               │ Exited                  │
//!   └─────────┼────────────┴───────────────┴─────────────────────────┘
//!             │ the first one, with no device: as it exited
//!             ▼
//!           Ended ◀── any: Ended by its own word and Exited; no successor Ready in time: Abandon
//! ```
//!
//! At most one daemon exists at any time: the next is started when the last has been seen to have ended. Whenever nobody
//! serves, either a daemon has been started, or the time of the next start is set, or the overlay has been abandoned, so
//! that callers never hang for ever.
//!
//! An upgrade is a death that was asked for, with another executable for the successor. That one is on trial: if it is
//! not ready in [`Policy::trial`], or ends or hangs within that time of being ready, the old one is started again.
//!
#![doc = include_str!("machine/transitions.md")]

mod types;

use std::time::{Duration, Instant};

pub use types::{Action, Death, Image, Input, Policy, State};

/// See the module.
#[derive(Debug, Clone)]
pub struct Machine {
    policy: Policy,
    state: State,
    /// The last sign of life of the daemon that lives.
    beat: Instant,
    /// When the last daemon that served was last known to; `None` before that and while one serves.
    unserved: Option<Instant>,
    /// No daemon has been ready yet.
    first: bool,
    /// What is held suffices for a successor.
    resumable: bool,
    /// What the daemon said it would exit with.
    said: Option<u8>,
    /// Deaths in a row that came soon after the start.
    early: u32,
    last_death: Option<Death>,
    /// A signal that asks for the end and has not led to it yet.
    stop: Option<i32>,
    /// The executable under which a daemon was started last.
    image: Image,
}

impl Machine {
    /// Nothing has been started yet. `resumable`: a service manager kept what is needed to go on.
    pub fn begin(policy: Policy, resumable: bool, now: Instant) -> (Machine, Vec<Action>) {
        let mut machine = Machine::new(policy, resumable, now);
        machine.first = !resumable;
        machine.unserved = resumable.then_some(now);
        let mut todo = Vec::new();
        machine.start(Image::Present, now, &mut todo);
        (machine, todo)
    }

    /// A daemon lives whose keeper died.
    pub fn adopt(policy: Policy, now: Instant) -> Machine {
        Machine::new(policy, false, now)
    }

    fn new(policy: Policy, resumable: bool, now: Instant) -> Machine {
        Machine {
            policy,
            state: State::Starting { since: now },
            beat: now,
            unserved: None,
            first: true,
            resumable,
            said: None,
            early: 0,
            last_death: None,
            stop: None,
            image: Image::Present,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// How long a daemon may be silent. One on trial has no choice.
    fn patience(&self) -> Option<Duration> {
        let limit = self.policy.watchdog;
        if self.image == Image::Candidate { limit.or(Some(self.policy.trial)) } else { limit }
    }

    /// When a `Tick` is due at the latest; `None` if nothing can become due.
    pub fn wakes_at(&self) -> Option<Instant> {
        let silent = self.patience().map(|limit| self.beat + limit);
        let own = match self.state {
            State::Starting { since } => {
                earliest(silent, (self.image == Image::Candidate).then(|| since + self.policy.starting()))
            }
            State::Serving { .. } => silent,
            State::Hung { free_at, .. } => free_at,
            State::Down { until } => Some(until),
            State::Upgrading { kill_at, .. } => kill_at,
            State::Ended { .. } => return None,
        };
        earliest(own, self.unserved.map(|since| since + self.policy.deadline))
    }

    /// Takes an input in and says what is to be done, in order.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        let mut todo = Vec::new();
        if matches!(self.state, State::Ended { .. }) {
            return todo;
        }
        self.forgive(now);
        match input {
            Input::Resumable(resumable) => {
                self.resumable = resumable;
                // Callers wait for it from now on, whether it was adopted before it served or made the mount.
                if resumable && self.first && matches!(self.state, State::Starting { .. }) {
                    self.unserved.get_or_insert(now);
                }
            }
            Input::Beat => self.lives(now, &mut todo),
            Input::Ready => self.ready(now, &mut todo),
            Input::Said(code) => self.said = Some(code),
            Input::Dying => self.dying(now),
            Input::Exited(death) => self.exited(death, now, &mut todo),
            Input::Stop(signal) => self.stop(signal, &mut todo),
            Input::UpgradeAsked => self.upgrade(now, &mut todo),
            Input::OnTrial => self.image = Image::Candidate,
            Input::Tick => self.tick(now, &mut todo),
        }
        self.look_at_the_deadline(now, &mut todo);
        todo
    }

    /// Time in which this process did not run (a paused container, say) speaks against nobody: the daemon may not have run
    /// either.
    fn forgive(&mut self, now: Instant) {
        let late = self.wakes_at().map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
        if late > PUNCTUAL {
            self.beat = now;
            self.unserved = self.unserved.map(|since| since + late);
        }
    }

    /// A trial ends with a sign of life that comes after it: one that hangs must not pass.
    fn lives(&mut self, now: Instant, todo: &mut Vec<Action>) {
        self.beat = now;
        if let State::Serving { since } = self.state
            && self.image == Image::Candidate
            && now >= since + self.policy.trial
        {
            self.image = Image::Present;
            todo.push(Action::Accept);
        }
    }

    fn ready(&mut self, now: Instant, todo: &mut Vec<Action>) {
        let State::Starting { .. } = self.state else { return };
        self.state = State::Serving { since: now };
        self.beat = now;
        self.first = false;
        self.unserved = None;
        todo.push(Action::TellReady);
        if let Some(signal) = self.stop {
            todo.push(Action::Pass(signal));
        }
    }

    fn exited(&mut self, death: Death, now: Instant, todo: &mut Vec<Action>) {
        // A daemon that was killed for its silence died of that.
        let (was, death) = match self.state {
            State::Down { .. } => return,
            State::Hung { death: Death::Unknown, .. } => (self.state, death),
            State::Hung { death, .. } => (self.state, death),
            state => (state, death),
        };
        self.last_death = Some(death);
        if let Some(code) = self.said.take() {
            return self.end(code, todo);
        }
        if self.first && !self.resumable {
            let code = death.code();
            todo.push(Action::TellFailed(death));
            return self.end(code, todo);
        }
        self.unserved.get_or_insert(now);
        let asked = matches!(was, State::Upgrading { .. });
        if asked && self.resumable {
            return self.start(Image::Candidate, now, todo);
        }
        todo.push(Action::TellDeath(death));
        if !self.resumable {
            return self.abandon(todo);
        }
        if self.image == Image::Candidate {
            todo.push(Action::Reject(death));
            return self.start(Image::Present, now, todo);
        }
        let lasted = matches!(was, State::Serving { since } if now >= since + self.policy.served);
        self.early = if lasted { 1 } else { self.early + 1 };
        match self.policy.pause(self.early) {
            Duration::ZERO => self.start(Image::Present, now, todo),
            pause => self.state = State::Down { until: now + pause },
        }
    }

    fn start(&mut self, image: Image, now: Instant, todo: &mut Vec<Action>) {
        self.image = image;
        self.said = None;
        self.beat = now;
        self.state = State::Starting { since: now };
        todo.push(Action::Start { image, successor: self.resumable, deaths: self.early, reason: self.last_death });
    }

    fn stop(&mut self, signal: i32, todo: &mut Vec<Action>) {
        if signal != libc::SIGHUP {
            self.stop = Some(signal);
        }
        match self.state {
            State::Serving { .. } | State::Upgrading { .. } => todo.push(Action::Pass(signal)),
            // Nothing is lost if it dies of it, for it may not have a handler yet.
            State::Starting { .. } if self.first && signal != libc::SIGHUP => todo.push(Action::Pass(signal)),
            // A successor is told when it is ready.
            _ => {}
        }
    }

    fn upgrade(&mut self, now: Instant, todo: &mut Vec<Action>) {
        let serving = matches!(self.state, State::Serving { .. });
        let ending = self.stop.is_some() || self.said.is_some();
        if !serving || !self.resumable || self.image == Image::Candidate || ending {
            let keep = self.image == Image::Candidate || matches!(self.state, State::Upgrading { .. });
            todo.push(Action::Refuse { keep });
            return;
        }
        self.unserved = Some(now);
        self.state = State::Upgrading { killed: false, kill_at: Some(now + self.policy.yielding) };
        todo.push(Action::Yield);
    }

    fn tick(&mut self, now: Instant, todo: &mut Vec<Action>) {
        let silent = self.patience().is_some_and(|limit| now >= self.beat + limit);
        let tried = |since: Instant| self.image == Image::Candidate && now >= since + self.policy.starting();
        match self.state {
            State::Starting { .. } if silent => self.hung(Death::Silent, now, todo),
            State::Starting { since } if tried(since) => self.hung(Death::NotReady, now, todo),
            State::Serving { .. } if silent => self.hung(Death::Silent, now, todo),
            State::Hung { death, free_at: Some(at) } if now >= at => {
                self.state = State::Hung { death, free_at: None };
                todo.push(Action::Free);
            }
            State::Down { until } if now >= until => self.start(Image::Present, now, todo),
            State::Upgrading { killed, kill_at: Some(at) } if now >= at => {
                // What keeps it may keep it from dying, too.
                let free_at = (!killed).then_some(now + self.policy.dying);
                self.state = State::Upgrading { killed: true, kill_at: free_at };
                todo.push(if killed { Action::Free } else { Action::Kill });
            }
            _ => {}
        }
    }

    fn hung(&mut self, death: Death, now: Instant, todo: &mut Vec<Action>) {
        if matches!(self.state, State::Serving { .. }) {
            self.unserved = Some(self.beat);
        }
        self.state = State::Hung { death, free_at: Some(now + self.policy.dying) };
        todo.extend([Action::DumpThreads, Action::Kill]);
    }

    /// Somebody else has killed it. Until its last thread has ended there can be no successor.
    fn dying(&mut self, now: Instant) {
        match self.state {
            State::Serving { since } => {
                self.unserved = Some(now);
                if now >= since + self.policy.served {
                    self.early = 0;
                }
            }
            State::Starting { .. } => {}
            _ => return,
        }
        self.state = State::Hung { death: Death::Unknown, free_at: Some(now + self.policy.dying) };
    }

    fn look_at_the_deadline(&mut self, now: Instant, todo: &mut Vec<Action>) {
        if self.unserved.is_some_and(|since| now >= since + self.policy.deadline) {
            self.abandon(todo);
        }
    }

    fn abandon(&mut self, todo: &mut Vec<Action>) {
        if matches!(self.state, State::Ended { .. }) {
            return;
        }
        // Started a moment ago in the same breath, it need not be started at all.
        todo.retain(|action| !matches!(action, Action::Start { .. }));
        todo.push(Action::Abandon);
        self.end(FAILED, todo);
    }

    fn end(&mut self, code: u8, todo: &mut Vec<Action>) {
        self.state = State::Ended { code };
        todo.push(Action::Exit(code));
    }
}

/// A look that comes later than that was kept from coming.
const PUNCTUAL: Duration = Duration::from_secs(1);
/// mount(8)'s code for a mount that failed.
const FAILED: u8 = 32;

fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
