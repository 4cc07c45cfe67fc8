//! When the worker is paused and let go: a pure state machine.
//!
//! ```text
//!            OutageOverdue                 OutageOverdue: told again
//!   running ───────────────▶ paused ◀───────────────────────────────── left
//!      ▲                        │                                        │
//!      └────────────────────────┴────────────────────────────────────────┘
//!              Steady, or the end, or it could not be written down
//! ```
//!
//! If the worker could not be let go it is `left` as well, and the next try is due when its owner says so ([`Policy::again`]).
//! A daemon that finds a note of an earlier one begins in `left`: the worker counts as paused, but a reboot may have
//! started it again. The successor of one that died knows better: what that had paused is `paused`, once what it may not
//! have told the worker is told ([`Policy::succeed`]).

use std::time::SystemTime;

use super::pause::Stage;
use crate::supervisor::Event;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Nothing.
    Nothing,
    /// Tell the worker to pause.
    Pause {
        /// First evidence of the outage.
        since: SystemTime,
        /// What it was.
        reason: String,
    },
    /// Let it go.
    Resume,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Nobody has been told anything.
    Running,
    /// Told to pause.
    Paused,
    /// A predecessor wrote down that it would pause the worker.
    Left,
}

impl Policy {
    /// Begins; `left` if there is a note of a predecessor.
    pub fn begin(left: bool) -> Policy {
        if left { Policy::Left } else { Policy::Running }
    }

    /// As [`Policy::begin`] for a successor: what the note says, if there is one, and whether the pause is to be told to the
    /// worker at once because the predecessor may not have come to that.
    pub fn succeed(stage: Option<Stage>) -> (Policy, bool) {
        match stage {
            None => (Policy::Running, false),
            Some(Stage::Pausing) => (Policy::Paused, true),
            Some(Stage::Paused) => (Policy::Paused, false),
            // Whoever is half let go is told everything again.
            Some(Stage::Resuming | Stage::Unknown) => (Policy::Left, false),
        }
    }

    /// Something happened.
    pub fn event(&mut self, event: &Event) -> Order {
        match event {
            Event::OutageOverdue { since, reason } if *self != Policy::Paused => {
                *self = Policy::Paused;
                Order::Pause { since: *since, reason: reason.clone() }
            }
            Event::Steady { .. } => self.stop(),
            _ => Order::Nothing,
        }
    }

    /// A pause could not be written down and was not carried out.
    pub fn refused(&mut self) {
        *self = Policy::Running;
    }

    /// The worker could not be let go: somebody has to try again, or to tell it anew in the next outage.
    pub fn kept(&mut self) {
        *self = Policy::Left;
    }

    /// Time to try again.
    pub fn again(&mut self) -> Order {
        self.stop()
    }

    /// The daemon ends: nobody would let the worker go later.
    pub fn stop(&mut self) -> Order {
        match std::mem::replace(self, Policy::Running) {
            Policy::Running => Order::Nothing,
            Policy::Paused | Policy::Left => Order::Resume,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(pick: u8) -> Event {
        match pick {
            0 => Event::OutageOverdue { since: SystemTime::UNIX_EPOCH, reason: "probe_late".into() },
            1 => Event::Steady { generation: 1 },
            2 => Event::Recovered { generation: 1, outage_secs: 1.0 },
            _ => Event::Cleared { generation: 1 },
        }
    }

    #[test]
    fn a_worker_that_was_left_paused_is_told_again_in_the_next_outage() {
        let mut policy = Policy::begin(true);
        assert!(matches!(policy.event(&event(0)), Order::Pause { .. }));
        assert_eq!(policy.event(&event(0)), Order::Nothing);
        assert_eq!(policy.event(&event(1)), Order::Resume);
    }

    #[test]
    fn who_was_paused_before_a_succession_is_not_told_again() {
        for (stage, told) in [(Stage::Pausing, true), (Stage::Paused, false)] {
            let (mut policy, tell) = Policy::succeed(Some(stage));
            assert_eq!((policy.event(&event(0)), tell), (Order::Nothing, told));
            assert_eq!(policy.event(&event(1)), Order::Resume);
        }
        let (mut policy, tell) = Policy::succeed(Some(Stage::Resuming));
        assert!(!tell && matches!(policy.event(&event(0)), Order::Pause { .. }));
        assert_eq!(Policy::succeed(None), (Policy::Running, false));
    }

    #[test]
    fn nobody_is_resumed_who_could_not_be_paused() {
        let mut policy = Policy::begin(false);
        assert!(matches!(policy.event(&event(0)), Order::Pause { .. }));
        policy.refused();
        assert_eq!(policy.event(&event(1)), Order::Nothing);
        assert_eq!(policy.stop(), Order::Nothing);
    }

    #[test]
    fn who_could_not_be_let_go_is_tried_again_and_told_again() {
        let mut policy = Policy::begin(false);
        assert!(matches!(policy.event(&event(0)), Order::Pause { .. }));
        assert_eq!(policy.event(&event(1)), Order::Resume);
        policy.kept();
        assert_eq!(policy.again(), Order::Resume);
        policy.kept();
        assert!(matches!(policy.event(&event(0)), Order::Pause { .. }));
        assert_eq!(policy.stop(), Order::Resume);
    }

    proptest! {
        #[test]
        fn nobody_is_resumed_twice_and_the_end_leaves_nobody_paused(
            picks in proptest::collection::vec(0_u8..4, 0..50),
            left: bool,
        ) {
            let mut policy = Policy::begin(left);
            // What the worker has been told, and whether a note says so.
            let (mut told, mut noted) = (false, left);
            for pick in picks {
                match policy.event(&event(pick)) {
                    Order::Pause { .. } => {
                        prop_assert!(!told);
                        (told, noted) = (true, true);
                    }
                    Order::Resume => {
                        prop_assert!(noted);
                        (told, noted) = (false, false);
                    }
                    Order::Nothing => prop_assert!(pick != 1 || !noted, "a steady backing left the worker paused"),
                }
            }
            prop_assert_eq!(policy.stop() == Order::Resume, noted);
            prop_assert_eq!(policy.stop(), Order::Nothing);
        }
    }
}
