//! Looking after a generation that is up: probes, evidence, verdict.

use std::time::{Duration, Instant};

use super::action::{Action, News};
use super::input::{Reason, Sight};
use super::state::{Evidence, Probe, State};
use super::{Machine, Signs, verdict};
use crate::gate::Inside;

/// Lateness of a look that is no noise: time in which nobody watched says nothing of a generation.
const NOTICEABLE: Duration = Duration::from_millis(100);
/// A look that is so late finds a process or a whole machine that was stopped, and as a rule the sshfs with it.
const STOPPED: Duration = Duration::from_secs(2);

impl Machine {
    /// Takes time out of the account in which this process did not run.
    pub(super) fn forgive(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.wakes_at(self.seen).max(self.seen));
        self.seen = now;
        if let Some(probe) = self.state.service_mut().and_then(|service| service.probe.as_mut())
            && late >= NOTICEABLE
        {
            probe.clock = if late >= STOPPED { now } else { probe.clock + late };
        }
    }

    /// One look.
    pub(super) fn watch(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        self.announce_if_steady(sight, todo);
        if sight.vitals.stopped {
            if let Some(service) = self.state.service_mut() {
                service.ask_again |= service.probe.is_none();
            }
            self.doubt(Reason::Stopped, sight, todo);
        }
        self.probe_if_due(sight, todo);
        let Some(probe) = self.state.service().and_then(|service| service.probe) else { return };
        if sight.now >= probe.clock + self.policy.probe_deadline {
            // Moving bytes are life: a probe that waits behind them is not even evidence.
            let quiet = sight.vitals.progress_at.is_none_or(|at| sight.now >= at + self.policy.probe_deadline);
            if quiet {
                self.doubt(Reason::ProbeLate, sight, todo);
            } else {
                self.relent(sight, todo);
            }
        }
        let inside = match &self.state {
            // What restores is not known to the gate; it commits what it has written again.
            State::Restoring(service) => Inside { any: Some(service.since), sync: Some(service.since), lost_at: None },
            State::Suspect(..) => sight.inside,
            _ => return,
        };
        let signs = Signs { probe_sent: probe.clock, vitals: sight.vitals, inside };
        if sight.now >= verdict::dead_at(&signs, self.policy.probe_deadline) {
            self.pronounce_dead(Reason::ProbeLate, sight, todo);
        }
    }

    /// Says so when the generation has lived for `steady` and nothing speaks against it.
    fn announce_if_steady(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        if let State::Live(service) = &mut self.state
            && !service.announced
            && service.probe.is_none()
            && sight.now >= service.since + self.policy.steady
        {
            service.announced = true;
            todo.push(Action::Tell(News::Steady { generation: service.generation }));
            (self.attempt, self.early_deaths) = (0, 0);
        }
    }

    pub(super) fn probe_if_due(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        let (interval, id) = (self.policy.probe_interval, self.next_probe);
        let Some(service) = self.state.service_mut() else { return };
        let due = service.ask_again || service.last_sent.is_none_or(|sent| sight.now >= sent + interval);
        if service.probe.is_none() && due {
            service.probe = Some(Probe { id, sent: sight.now, clock: sight.now });
            service.last_sent = Some(sight.now);
            service.ask_again = false;
            todo.push(Action::Probe(service.generation, id));
            self.next_probe += 1;
        }
    }

    pub(super) fn evidence(&mut self, generation: u64, reason: Reason, sight: &Sight, todo: &mut Vec<Action>) {
        if self.state.service().is_none_or(|service| service.generation != generation) {
            return;
        }
        if reason == Reason::ProcessExit {
            self.pronounce_dead(reason, sight, todo);
            return;
        }
        // One slow call while bytes move is no evidence; an error always wants a fresh probe.
        let moving = sight.vitals.progress_at.is_some_and(|at| sight.now < at + self.policy.probe_deadline);
        if !(reason == Reason::CallLate && moving) {
            self.doubt(reason, sight, todo);
        }
        if let Some(service) = self.state.service_mut() {
            service.ask_again = true;
        }
        self.probe_if_due(sight, todo);
    }

    /// Takes the probe under way out, if it is that one.
    fn take_probe(&mut self, generation: u64, id: u64) -> Option<Probe> {
        let service = self.state.service_mut().filter(|service| service.generation == generation)?;
        service.probe.take_if(|probe| probe.id == id)
    }

    pub(super) fn probe_answered(&mut self, generation: u64, id: u64, sight: &Sight, todo: &mut Vec<Action>) {
        let Some(probe) = self.take_probe(generation, id) else { return };
        todo.push(Action::Settle(generation, probe.sent));
        let serves = matches!(self.state, State::Live(_) | State::Suspect(..));
        if serves && verdict::has_lost_an_answer(&sight.inside, probe.sent) {
            return self.pronounce_dead(Reason::CallLate, sight, todo);
        }
        // Evidence that came in after the probe was sent is not refuted by it.
        if self.state.service().is_some_and(|service| !service.ask_again) {
            self.relent(sight, todo);
        }
        // Here and not only at the next tick: a server that answers slowly always has the next probe under way by then.
        self.announce_if_steady(sight, todo);
        self.probe_if_due(sight, todo);
    }

    pub(super) fn probe_failed(&mut self, generation: u64, id: u64, sight: &Sight, todo: &mut Vec<Action>) {
        if self.take_probe(generation, id).is_some() {
            self.pronounce_dead(Reason::ProbeFailed, sight, todo);
        }
    }

    /// The next one goes out when it is due: whatever kept this one from being sent may do so again.
    pub(super) fn probe_unsent(&mut self, generation: u64, id: u64) {
        if self.take_probe(generation, id).is_some()
            && let Some(service) = self.state.service_mut()
        {
            service.ask_again = false;
        }
    }

    /// Drops the evidence.
    fn relent(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        if let State::Suspect(service, _) = &self.state {
            let service = *service;
            todo.push(Action::Doubt(None));
            todo.push(Action::Tell(News::Cleared { generation: service.generation }));
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

    /// The verdict. Whoever had spoken against it before `reason` did is named as what the outage began with.
    pub(super) fn pronounce_dead(&mut self, reason: Reason, sight: &Sight, todo: &mut Vec<Action>) {
        self.doubt(reason, sight, todo);
        // A silent one has taken its time to die; one that ends by itself might do so again and again at once.
        let at_once = !matches!(reason, Reason::ProbeLate | Reason::Asked);
        match &self.state {
            State::Restoring(service) => {
                let generation = service.generation;
                todo.push(Action::Tell(News::Evidence { generation, reason }));
                self.fail_restoring(generation, None, at_once, sight, todo);
            }
            State::Suspect(_, evidence) => {
                let evidence = *evidence;
                self.outage =
                    Some(super::Outage { since: evidence.at, reason: evidence.reason, told: true, overdue: false });
                self.permit.verdict(sight.now);
                todo.push(Action::Close(evidence.at));
                todo.push(Action::Tell(News::OutageBegan { since: evidence.at, reason: evidence.reason }));
                self.condemn(at_once, sight, todo);
            }
            _ => {}
        }
    }
}
