//! Starts, and what holds them back.

use std::time::{Duration, Instant};

use super::action::{Action, News};
use super::input::{Reason, Sight};
use super::state::State;
use super::{Machine, RepairPolicy};
use crate::config::PermitConfig;
use crate::supervisor::permit::{self, Answer, Hold, Permit};

/// A server that answered so lately is not looked at again before a start.
const LATELY: Duration = Duration::from_secs(3);

impl Machine {
    /// With those permits. `begun` says when a repair started that a predecessor has not finished.
    pub fn with_permit(mut self, permit: Permit, begun: Option<Instant>) -> Machine {
        self.permit = permit;
        self.begun = begun.is_some_and(|at| self.outage.is_some_and(|outage| at >= outage.since));
        self
    }

    /// The permits.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Goes by other permits from now on; they are asked at the next tick.
    pub fn set_permit(&mut self, config: PermitConfig) {
        self.permit.set_config(config);
    }

    /// Goes by another policy from now on. Delays that have begun last as long as they were to.
    pub fn set_policy(&mut self, policy: RepairPolicy) {
        self.policy = policy;
    }

    /// What the permits are asked about; absent if nothing is to be started, or no permit is needed for it.
    pub fn awaited(&self) -> Option<permit::Sight> {
        let waits = matches!(
            self.state,
            State::Retiring { .. } | State::Reaching { .. } | State::Waiting { .. } | State::Held { .. }
        );
        let outage = self.outage.filter(|_| waits && !self.first && !self.ordered)?;
        Some(permit::Sight { outage_since: outage.since, begun: self.begun })
    }

    /// Counts this moment as a look that finds the backing dead, if it is, and the last look is old enough.
    pub(super) fn confirm(&mut self, now: Instant) {
        if self.outage.is_some() && self.state.service().is_none() {
            self.permit.confirm(now);
        }
    }

    fn ask(&self, now: Instant) -> Answer {
        self.awaited().map_or(Answer::Granted, |sight| self.permit.ask(now, &sight))
    }

    /// Starts the next generation, or holds that back. The server has just been found, or is not looked at.
    pub(super) fn start(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        match self.ask(sight.now) {
            Answer::Granted => self.start_now(sight, todo),
            answer => self.hold(answer, sight.now, sight, todo),
        }
    }

    fn start_now(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        self.newest += 1;
        if !self.first && !self.begun {
            self.begun = true;
            self.permit.started(sight.now);
            todo.push(Action::Tell(News::RepairStarted { generation: self.newest }));
        }
        self.ordered = false;
        todo.push(Action::Start(self.newest));
        self.enter(State::Starting { generation: self.newest }, sight.now);
    }

    fn hold(&mut self, answer: Answer, reached: Instant, sight: &Sight, todo: &mut Vec<Action>) {
        let before = self.held();
        let hold = match answer {
            Answer::Held(hold) => Some(hold),
            Answer::Granted | Answer::Unseen => before,
        };
        if let Some(hold) = hold
            && before.is_none_or(|before| before.by != hold.by)
        {
            self.tell_outage(todo);
            todo.push(Action::Tell(News::RepairHeld { hold }));
        }
        self.enter(State::Held { hold, reached }, sight.now);
    }

    fn held(&self) -> Option<Hold> {
        match self.state {
            State::Held { hold, .. } => hold,
            _ => None,
        }
    }

    /// Looks whether what is held back may start.
    pub(super) fn review(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        let State::Held { reached, .. } = self.state else { return };
        match self.ask(sight.now) {
            Answer::Granted => {
                self.release(false, todo);
                if sight.now < reached + LATELY {
                    self.start_now(sight, todo);
                } else {
                    self.reach(sight, todo);
                }
            }
            answer => self.hold(answer, reached, sight, todo),
        }
    }

    fn release(&mut self, ordered: bool, todo: &mut Vec<Action>) {
        if self.held().is_some() {
            todo.push(Action::Tell(News::RepairReleased { ordered }));
        }
    }

    /// Somebody orders the next start.
    pub(super) fn order(&mut self, todo: &mut Vec<Action>) {
        if self.awaited().is_some() || matches!(self.state, State::Halted) {
            self.ordered = true;
            self.release(true, todo);
        }
    }

    /// Somebody wants another generation, however well this one is.
    pub(super) fn replace(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        if self.state.service().is_some() {
            self.pronounce_dead(Reason::Asked, sight, todo);
        }
        self.retry_now(sight, todo);
    }
}
