//! From a dead generation to the next: removing, reaching, starting, restoring, waiting.

use std::time::Duration;

use super::action::{Action, News};
use super::input::Sight;
use super::state::{Service, State};
use super::{Machine, backoff};
use crate::backing::StartError;

/// Time between two looks at a server that could not be reached; a healed link is noticed that late at most.
const UNREACHED_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two looks at a server that answers: OpenSSH 9.8 and later hold it against a client when it connects
/// without logging in (PerSourcePenalties in sshd_config(5): a second each).
const REACHED_INTERVAL: Duration = Duration::from_secs(3);
/// Deaths in a row, each before the generation was steady, that are followed by a start at once.
const EARLY_DEATHS: u32 = 2;
/// Starts in a row that may fall silent on a server that could be reached and be tried again at once.
const SILENT_STARTS: u32 = 5;

/// Time between two looks at a server.
pub(super) fn look_interval(unreached: bool) -> Duration {
    if unreached { UNREACHED_INTERVAL } else { REACHED_INTERVAL }
}

impl Machine {
    pub(super) fn look_if_due(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        self.review(sight, todo);
        // While nobody answers a look no start is tried: the server that comes back next ends the waiting at once.
        if let State::Waiting { until, lost: true, asking, last } = self.state
            && sight.now >= until
        {
            self.enter(State::Reaching { asking, last }, sight.now);
        }
        match &mut self.state {
            State::Waiting { until, .. } if sight.now >= *until => self.start(sight, todo),
            State::Reaching { asking, last } if !*asking && sight.now >= *last + UNREACHED_INTERVAL => {
                (*asking, *last) = (true, sight.now);
                todo.push(Action::Reach);
            }
            State::Waiting { asking, last, lost, .. } if !*asking && sight.now >= *last + look_interval(*lost) => {
                (*asking, *last) = (true, sight.now);
                todo.push(Action::Reach);
            }
            _ => {}
        }
    }

    pub(super) fn reach(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        todo.push(Action::Reach);
        self.enter(State::Reaching { asking: true, last: sight.now }, sight.now);
    }

    pub(super) fn reach_result(&mut self, reached: bool, sight: &Sight, todo: &mut Vec<Action>) {
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

    pub(super) fn started(&mut self, generation: u64, sight: &Sight, todo: &mut Vec<Action>) {
        match self.state {
            State::Starting { generation: present } if present == generation => {
                self.silent_starts = 0;
                self.restore(generation, sight, todo);
            }
            State::Stopping { generation: Some(present) } if present == generation => {
                todo.push(Action::Retire(generation))
            }
            _ => {}
        }
    }

    fn restore(&mut self, generation: u64, sight: &Sight, todo: &mut Vec<Action>) {
        todo.push(Action::Restore(generation));
        self.enter(State::Restoring(Service::new(generation, sight.now)), sight.now);
    }

    pub(super) fn adopted(&mut self, generation: u64, sight: &Sight, todo: &mut Vec<Action>) {
        match self.state {
            State::Adopting { generation: present } if present == generation => self.restore(generation, sight, todo),
            State::Stopping { generation: Some(present) } if present == generation => {
                todo.push(Action::Retire(generation))
            }
            _ => {}
        }
    }

    pub(super) fn not_adopted(&mut self, generation: u64, sight: &Sight, todo: &mut Vec<Action>) {
        match self.state {
            State::Adopting { generation: present } if present == generation => {
                self.tell_outage(todo);
                todo.push(Action::Tell(News::NotAdopted { generation }));
                self.reach(sight, todo);
            }
            State::Stopping { generation: Some(present) } if present == generation => self.finish(sight, todo),
            _ => {}
        }
    }

    pub(super) fn start_failed(&mut self, generation: u64, error: StartError, sight: &Sight, todo: &mut Vec<Action>) {
        match self.state {
            State::Starting { generation: present } if present == generation => {}
            State::Stopping { generation: Some(present) } if present == generation => return self.finish(sight, todo),
            _ => return,
        }
        self.tell_outage(todo);
        let hopeless = match error {
            StartError::Refused(_) => true,
            StartError::Local(_) => !self.ever_live,
            StartError::Unreachable(_) | StartError::Silent(_) => false,
        };
        // The link went in the middle: as if the last look had found nobody, so that the next one ends the waiting.
        let silent = matches!(error, StartError::Silent(_));
        self.silent_starts += u32::from(silent);
        let lost = silent && self.silent_starts <= SILENT_STARTS;
        let delay = self.back_off(sight);
        todo.push(Action::Tell(News::StartFailed { generation, error, retry_in: (!hopeless).then_some(delay) }));
        let state = if hopeless {
            State::Halted
        } else {
            // The first look comes soon: whatever failed the start may be gone by then, and come back later.
            let last = sight.now.checked_sub(look_interval(lost) - UNREACHED_INTERVAL).unwrap_or(sight.now);
            State::Waiting { until: sight.now + delay, asking: false, last, lost }
        };
        self.enter(state, sight.now);
    }

    pub(super) fn restored(&mut self, generation: u64, sight: &Sight, todo: &mut Vec<Action>) {
        let State::Restoring(service) = &self.state else { return };
        if service.generation != generation {
            return;
        }
        let service = Service { since: sight.now, ..*service };
        todo.push(Action::Open(generation));
        if let Some(outage) = self.outage.take() {
            let lasted = sight.now.saturating_duration_since(outage.since);
            todo.push(Action::Tell(News::Recovered { generation, outage: lasted, reason: outage.reason }));
        }
        self.ever_live = true;
        (self.first, self.ordered, self.begun) = (false, false, false);
        self.enter(State::Live(service), sight.now);
    }

    pub(super) fn restore_failed(&mut self, generation: u64, words: String, sight: &Sight, todo: &mut Vec<Action>) {
        if matches!(&self.state, State::Restoring(service) if service.generation == generation) {
            self.fail_restoring(generation, Some(words), true, sight, todo);
        }
    }

    pub(super) fn fail_restoring(
        &mut self,
        generation: u64,
        words: Option<String>,
        at_once: bool,
        sight: &Sight,
        todo: &mut Vec<Action>,
    ) {
        self.tell_outage(todo);
        let retry_in = self.condemn(at_once, sight, todo);
        todo.push(Action::Tell(News::RestoreFailed { generation, words, retry_in }));
    }

    /// Has the generation removed; returns the pause before the next. `at_once` says that it did not take long to die.
    pub(super) fn condemn(&mut self, at_once: bool, sight: &Sight, todo: &mut Vec<Action>) -> Duration {
        let Some(&Service { generation, announced, .. }) = self.state.service() else { return Duration::ZERO };
        self.early_deaths += u32::from(at_once && !announced);
        // A server that kills each session after the login must not be hammered.
        let hot = at_once && self.early_deaths > EARLY_DEATHS;
        let pause = if hot { self.back_off(sight) } else { Duration::ZERO };
        todo.push(Action::Retire(generation));
        self.enter(State::Retiring { generation, pause }, sight.now);
        pause
    }

    pub(super) fn retired(&mut self, generation: u64, sight: &Sight, todo: &mut Vec<Action>) {
        match self.state {
            State::Retiring { generation: present, pause } if present == generation => {
                if pause.is_zero() {
                    self.reach(sight, todo);
                } else {
                    let until = sight.now + pause;
                    self.enter(State::Waiting { until, asking: false, last: sight.now, lost: false }, sight.now);
                }
            }
            State::Stopping { generation: Some(present) } if present == generation => self.finish(sight, todo),
            _ => {}
        }
    }

    fn back_off(&mut self, sight: &Sight) -> Duration {
        let delay = backoff::delay(self.attempt, self.policy.backoff_min, self.policy.backoff_max, sight.dice);
        self.attempt += 1;
        delay
    }

    pub(super) fn retry_now(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        self.order(todo);
        match &mut self.state {
            State::Halted | State::Waiting { .. } | State::Held { .. } => {
                (self.attempt, self.early_deaths) = (0, 0);
                // A look that is under way answers to the new state just as well.
                let asking = matches!(self.state, State::Waiting { asking: true, .. });
                if asking {
                    self.enter(State::Reaching { asking: true, last: sight.now }, sight.now);
                } else {
                    self.reach(sight, todo);
                }
            }
            State::Retiring { pause, .. } => *pause = Duration::ZERO,
            State::Live(service) | State::Suspect(service, _) | State::Restoring(service) => {
                service.ask_again = true;
                self.probe_if_due(sight, todo);
            }
            _ => {}
        }
    }

    pub(super) fn stop(&mut self, sight: &Sight, todo: &mut Vec<Action>) {
        let generation = self.generation();
        match &self.state {
            State::Stopping { .. } | State::Stopped => return,
            State::Starting { .. } => todo.push(Action::CancelStart),
            // An attempt that does not take long; what comes of it is waited for.
            State::Adopting { .. } | State::Retiring { .. } => {}
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
}
