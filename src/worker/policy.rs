//! When workers are paused and let go: a pure state machine.
//!
//! ```text
//!                    OutageOverdue                          OutageOverdue: all are told again
//!   running ─────────────────────────────▶ paused ◀─────────────────────────────────── left ◀─┐
//!    ▲ ▲ ▲                                 │    ▲                                       │     │
//!    │ │ │                    Steady, or   │    │ OutageOverdue: those are told   Steady, or  │
//!    │ │ │                    the end      │    │ who have been let go            time to try │
//!    │ │ │                                 ▼    │                                 again       │
//!    │ │ └─────────────────────── letting go ◀──┼───────────────────────────────────────┘     │
//!    │ │      nobody is left         │  │  ▲ │  │                                             │
//!    │ │                             │  │  │ └──┼─────────────────────────────────────────────┘
//!    │ │                 nobody is   │  │  │    │       somebody could not be let go
//!    │ │    left, but hooks are due  │  │  │ the shortest of their steady times has passed
//!    │ │ none is left                ▼  │  │    │
//!    │ └────────────────────────── after│ partly
//!    │    OutageOverdue: paused         └────▶ the rest have a longer steady time
//!    └── it could not be written down
//! ```
//!
//! `letting go` is no state of its own: the owner does what was ordered and says what came of it ([`Policy::resumed`]). The
//! end lets everybody go from every state, whatever their steady times; hooks are for a recovery and do not follow it.
//! A daemon that finds a note of an earlier one begins in `left`: the workers count as paused, but a reboot may have
//! started them again. The successor of one that died knows better: what that had paused is `paused`, once those are told
//! whom it may not have told ([`Policy::succeed`]).

use std::time::{Duration, Instant, SystemTime};

use super::pause::Stage;
use crate::supervisor::Event;

/// First delay before workers that could not be let go are let go again; doubled each time.
const AGAIN_MIN: Duration = Duration::from_secs(1);
/// Longest one.
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Nothing.
    Nothing,
    /// Tell the workers to pause.
    Pause {
        /// First evidence of the outage.
        since: SystemTime,
        /// What it was.
        reason: String,
        /// Those too who are paused already as far as is known.
        all: bool,
    },
    /// Let go whose own steady time has passed.
    Resume {
        /// How long the backing has been live; absent at the end, when everybody is let go.
        lived: Option<Duration>,
    },
    /// The configuration has changed: let go who is not in it any more.
    Adapt {
        /// And pause whoever is new.
        pause: bool,
    },
    /// Run the next hook of those that follow a recovery.
    Hook,
}

/// What came of letting go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    /// Nobody is paused any more.
    All,
    /// The same, and hooks are due.
    Hooks,
    /// Some have a longer steady time; the shortest of these.
    Rest(Duration),
    /// Somebody could not be let go; and as above.
    Failed(Option<Duration>),
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Left,
    Partly,
    After,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    state: State,
    /// Since when calls succeed, if they do and that is known.
    live: Option<Instant>,
    /// That long enough for a recovery to be announced.
    steady: bool,
    /// The outage that is to be told to workers, as long as it lasts.
    overdue: Option<(SystemTime, String)>,
    /// The shortest steady time of those who wait for it.
    rest: Option<Duration>,
    /// When it is tried again to let somebody go.
    again: Option<Instant>,
    delay: Duration,
}

impl Policy {
    /// Begins; `left` if there is a note of a predecessor.
    pub fn begin(left: bool) -> Policy {
        Policy::of(if left { State::Left } else { State::Running })
    }

    /// As [`Policy::begin`] for a successor: what the note says, if there is one, and whether the pause is to be told to the
    /// workers at once because the predecessor may not have come to that.
    pub fn succeed(stage: Option<Stage>) -> (Policy, bool) {
        match stage {
            None => (Policy::of(State::Running), false),
            Some(Stage::Pausing) => (Policy::of(State::Paused), true),
            Some(Stage::Paused) => (Policy::of(State::Paused), false),
            // Whoever is half let go is told everything again.
            Some(Stage::Resuming | Stage::Resumed | Stage::Unknown) => (Policy::of(State::Left), false),
        }
    }

    fn of(state: State) -> Policy {
        Policy { state, live: None, steady: false, overdue: None, rest: None, again: None, delay: AGAIN_MIN }
    }

    /// Something happened.
    pub fn event(&mut self, event: &Event, now: Instant) -> Order {
        match event {
            Event::OutageBegan { .. } => {
                (self.live, self.steady) = (None, false);
                // Nobody is let go into an outage: the next steady moment is soon enough.
                self.again = None;
                Order::Nothing
            }
            Event::OutageOverdue { since, reason } => {
                (self.live, self.steady) = (None, false);
                self.overdue = Some((*since, reason.clone()));
                if self.state == State::Paused { Order::Nothing } else { self.pause() }
            }
            Event::Recovered { .. } => {
                (self.live, self.overdue) = (Some(now), None);
                Order::Nothing
            }
            Event::Steady { .. } => {
                (self.steady, self.overdue) = (true, None);
                let live = *self.live.get_or_insert(now);
                match self.state {
                    State::Paused | State::Left => self.resume(now),
                    State::Partly if self.rest.is_none_or(|rest| live + rest <= now) => self.resume(now),
                    State::Partly | State::Running | State::After => Order::Nothing,
                }
            }
            _ => Order::Nothing,
        }
    }

    /// When [`Policy::tick`] has something to do, if nothing happens before.
    pub fn due(&self) -> Option<Instant> {
        let live = self.live.filter(|_| self.steady);
        if self.state == State::After {
            return live;
        }
        let rest = live.zip(self.rest).map(|(live, rest)| live + rest);
        [rest, self.again].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Order {
        if self.due().is_none_or(|due| due > now) {
            return Order::Nothing;
        }
        match self.state {
            State::After => Order::Hook,
            State::Left | State::Partly if self.steady => self.resume(now),
            // It failed to let go those who are not configured any more.
            State::Left | State::Partly => Order::Adapt { pause: false },
            State::Paused => Order::Adapt { pause: true },
            State::Running => Order::Nothing,
        }
    }

    /// The configuration has changed.
    pub fn reconfigured(&mut self) -> Order {
        match self.state {
            State::Running if self.overdue.is_some() => self.pause(),
            State::Running | State::After => Order::Nothing,
            State::Paused => Order::Adapt { pause: true },
            State::Left | State::Partly => Order::Adapt { pause: false },
        }
    }

    /// A pause could not be written down and was not carried out.
    pub fn refused(&mut self) {
        self.state = State::Running;
    }

    /// What was ordered with [`Order::Resume`] has been tried.
    pub fn resumed(&mut self, came: Resumed, now: Instant) {
        (self.again, self.rest) = (None, None);
        match came {
            Resumed::All => self.state = State::Running,
            Resumed::Hooks => self.state = State::After,
            Resumed::Rest(rest) => (self.state, self.rest) = (State::Partly, Some(rest)),
            Resumed::Failed(rest) => {
                (self.state, self.rest) = (State::Left, rest);
                return self.try_again(now);
            }
        }
        self.delay = AGAIN_MIN;
    }

    /// What was ordered with [`Order::Adapt`] has been tried; false if somebody could not be let go.
    pub fn adapted(&mut self, done: bool, now: Instant) {
        self.again = None;
        if done {
            self.delay = AGAIN_MIN;
        } else {
            self.try_again(now);
        }
    }

    /// A hook has run; true if there are more.
    pub fn hooked(&mut self, more: bool) {
        if !more {
            self.state = State::Running;
        }
    }

    /// The daemon ends: nobody would let workers go later.
    pub fn stop(&mut self) -> Order {
        match std::mem::replace(&mut self.state, State::Running) {
            State::Running => Order::Nothing,
            State::Paused | State::Left | State::Partly | State::After => Order::Resume { lived: None },
        }
    }

    fn pause(&mut self) -> Order {
        let Some((since, reason)) = self.overdue.clone() else { return Order::Nothing };
        let all = self.state != State::Partly;
        self.state = State::Paused;
        (self.rest, self.again, self.delay) = (None, None, AGAIN_MIN);
        Order::Pause { since, reason, all }
    }

    fn resume(&mut self, now: Instant) -> Order {
        self.state = State::Running;
        let live = self.live.unwrap_or(now);
        Order::Resume { lived: Some(now.saturating_duration_since(live)) }
    }

    fn try_again(&mut self, now: Instant) {
        self.again = Some(now + self.delay);
        self.delay = (self.delay * 2).min(AGAIN_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn event(pick: u8) -> Event {
        match pick {
            0 => Event::OutageOverdue { since: SystemTime::UNIX_EPOCH, reason: "probe_late".into() },
            1 => Event::Steady { generation: 1 },
            2 => Event::Recovered { generation: 1, outage_secs: 1.0 },
            3 => {
                Event::OutageBegan { since: SystemTime::UNIX_EPOCH, reason: "probe_late".into(), detail: String::new() }
            }
            _ => Event::Cleared { generation: 1 },
        }
    }

    fn is_pause(order: &Order) -> Option<bool> {
        if let Order::Pause { all, .. } = order { Some(*all) } else { None }
    }

    fn is_resume(order: &Order) -> bool {
        matches!(order, Order::Resume { .. })
    }

    #[test]
    fn a_worker_that_was_left_paused_is_told_again_in_the_next_outage() {
        let (mut policy, now) = (Policy::begin(true), Instant::now());
        assert_eq!(is_pause(&policy.event(&event(0), now)), Some(true));
        assert_eq!(policy.event(&event(0), now), Order::Nothing);
        assert!(is_resume(&policy.event(&event(1), now)));
    }

    #[test]
    fn who_was_paused_before_a_succession_is_not_told_again() {
        let now = Instant::now();
        for (stage, told) in [(Stage::Pausing, true), (Stage::Paused, false)] {
            let (mut policy, tell) = Policy::succeed(Some(stage));
            assert_eq!((policy.event(&event(0), now), tell), (Order::Nothing, told));
            assert!(is_resume(&policy.event(&event(1), now)));
        }
        let (mut policy, tell) = Policy::succeed(Some(Stage::Resuming));
        assert!(!tell && is_pause(&policy.event(&event(0), now)) == Some(true));
        assert_eq!(Policy::succeed(None), (Policy::begin(false), false));
    }

    #[test]
    fn nobody_is_resumed_who_could_not_be_paused() {
        let (mut policy, now) = (Policy::begin(false), Instant::now());
        assert!(is_pause(&policy.event(&event(0), now)).is_some());
        policy.refused();
        assert_eq!(policy.event(&event(1), now), Order::Nothing);
        assert_eq!(policy.stop(), Order::Nothing);
    }

    #[test]
    fn who_could_not_be_let_go_is_tried_again_and_told_again() {
        let (mut policy, mut now) = (Policy::begin(false), Instant::now());
        assert!(is_pause(&policy.event(&event(0), now)).is_some());
        assert!(is_resume(&policy.event(&event(1), now)));
        for delay in [1, 2, 4, 8, 16, 32, 60, 60] {
            policy.resumed(Resumed::Failed(None), now);
            assert_eq!(policy.due(), Some(now + SECOND * delay));
            assert_eq!(policy.tick(now), Order::Nothing, "too early");
            now += SECOND * delay;
            assert!(is_resume(&policy.tick(now)));
        }
        policy.resumed(Resumed::Failed(None), now);
        // Not into an outage.
        assert_eq!(policy.event(&event(3), now), Order::Nothing);
        assert_eq!(policy.due(), None);
        assert_eq!(is_pause(&policy.event(&event(0), now)), Some(true));
        assert!(is_resume(&policy.stop()));
    }

    #[test]
    fn who_wants_a_longer_steady_time_is_let_go_after_it_and_counted_from_the_recovery() {
        let (mut policy, begun) = (Policy::begin(false), Instant::now());
        policy.event(&event(0), begun);
        policy.event(&event(2), begun);
        let order = policy.event(&event(1), begun + SECOND * 2);
        assert_eq!(order, Order::Resume { lived: Some(SECOND * 2) });
        policy.resumed(Resumed::Rest(SECOND * 30), begun + SECOND * 2);
        assert_eq!(policy.due(), Some(begun + SECOND * 30));
        assert_eq!(policy.tick(begun + SECOND * 29), Order::Nothing);
        assert_eq!(policy.tick(begun + SECOND * 30), Order::Resume { lived: Some(SECOND * 30) });
        policy.resumed(Resumed::All, begun + SECOND * 30);
        assert_eq!((policy.due(), policy.stop()), (None, Order::Nothing));
    }

    #[test]
    fn a_short_outage_begins_the_longer_steady_time_anew_and_a_long_one_tells_only_who_was_let_go() {
        let (mut policy, begun) = (Policy::begin(false), Instant::now());
        let partly = |policy: &mut Policy, now: Instant| {
            policy.event(&event(2), now);
            policy.event(&event(1), now);
            policy.resumed(Resumed::Rest(SECOND * 30), now);
        };
        policy.event(&event(0), begun);
        partly(&mut policy, begun);
        let now = begun + SECOND * 29;
        policy.event(&event(3), now);
        assert_eq!(policy.due(), None, "not in an outage");
        policy.event(&event(2), now);
        assert_eq!(policy.due(), None, "nor before it is steady");
        assert_eq!(policy.event(&event(1), now + SECOND), Order::Nothing);
        assert_eq!(policy.due(), Some(now + SECOND * 30));
        policy.event(&event(3), now);
        assert_eq!(is_pause(&policy.event(&event(0), now)), Some(false));
    }

    #[test]
    fn hooks_follow_a_recovery_one_by_one_and_stop_for_an_outage() {
        let (mut policy, now) = (Policy::begin(false), Instant::now());
        let recovered = |policy: &mut Policy| {
            policy.event(&event(0), now);
            policy.event(&event(2), now);
            policy.event(&event(1), now);
            policy.resumed(Resumed::Hooks, now);
        };
        recovered(&mut policy);
        for more in [true, true, false] {
            assert_eq!(policy.tick(now), Order::Hook);
            policy.hooked(more);
        }
        assert_eq!((policy.due(), policy.tick(now)), (None, Order::Nothing));
        recovered(&mut policy);
        policy.event(&event(3), now);
        assert_eq!(policy.tick(now), Order::Nothing, "an outage");
        assert_eq!(is_pause(&policy.event(&event(0), now)), Some(true));
        recovered(&mut policy);
        assert_eq!(policy.stop(), Order::Resume { lived: None });
    }

    #[test]
    fn a_change_of_the_configuration_tells_whom_it_concerns() {
        let (mut policy, now) = (Policy::begin(false), Instant::now());
        assert_eq!(policy.reconfigured(), Order::Nothing);
        policy.event(&event(0), now);
        // Nobody was configured.
        policy.refused();
        assert_eq!(is_pause(&policy.reconfigured()), Some(true));
        assert_eq!(policy.reconfigured(), Order::Adapt { pause: true });
        policy.adapted(false, now);
        assert_eq!(policy.tick(now + SECOND), Order::Adapt { pause: true });
        policy.adapted(true, now + SECOND);
        assert_eq!(policy.due(), None);
        policy.event(&event(2), now);
        policy.event(&event(1), now);
        policy.resumed(Resumed::Rest(SECOND * 30), now);
        assert_eq!(policy.reconfigured(), Order::Adapt { pause: false });
        policy.event(&event(2), now);
        assert_eq!(Policy::begin(true).reconfigured(), Order::Adapt { pause: false });
    }

    proptest! {
        #[test]
        fn nobody_is_resumed_twice_and_the_end_leaves_nobody_paused(
            picks in proptest::collection::vec((0_u8..5, 0_u8..4), 0..50),
            left: bool,
        ) {
            let (mut policy, mut now) = (Policy::begin(left), Instant::now());
            // What workers have been told as far as the policy knows, and whether a note says that somebody is paused.
            let (mut told, mut noted) = (false, left);
            for (pick, came) in picks {
                now += SECOND;
                let mut order = policy.event(&event(pick), now);
                if order == Order::Nothing && policy.due().is_some_and(|due| due <= now) {
                    order = policy.tick(now);
                }
                match order {
                    Order::Pause { .. } => {
                        prop_assert!(!told);
                        (told, noted) = (true, true);
                    }
                    Order::Resume { lived } => {
                        prop_assert!(noted && lived.is_some());
                        let (came, now_noted) = match came {
                            0 => (Resumed::Hooks, true),
                            1 => (Resumed::Rest(SECOND * 3), true),
                            2 => (Resumed::Failed(None), true),
                            _ => (Resumed::All, false),
                        };
                        policy.resumed(came, now);
                        (told, noted) = (false, now_noted);
                    }
                    Order::Hook => {
                        policy.hooked(came > 1);
                        noted = came > 1;
                    }
                    Order::Adapt { .. } => prop_assert!(false, "nothing was changed"),
                    Order::Nothing => prop_assert!(pick != 1 || !told, "a steady backing left workers paused"),
                }
            }
            prop_assert_eq!(policy.stop() == Order::Resume { lived: None }, noted);
            prop_assert_eq!(policy.stop(), Order::Nothing);
        }
    }
}
