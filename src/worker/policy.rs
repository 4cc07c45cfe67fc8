//! When the worker is paused and let go: a pure state machine.
//!
//! ```text
//!            OutageOverdue                 Steady, or the end
//!   running ───────────────▶ paused ─────────────────────────▶ running
//! ```
//!
//! A daemon that finds a note of a predecessor begins in `paused`.

use std::time::SystemTime;

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
pub struct Policy {
    paused: bool,
}

impl Policy {
    /// Begins; `paused` if a predecessor left the worker so.
    pub fn begin(paused: bool) -> Policy {
        Policy { paused }
    }

    /// Something happened.
    pub fn event(&mut self, event: &Event) -> Order {
        match event {
            Event::OutageOverdue { since, reason } if !self.paused => {
                self.paused = true;
                Order::Pause { since: *since, reason: reason.clone() }
            }
            Event::Steady { .. } => self.stop(),
            _ => Order::Nothing,
        }
    }

    /// The daemon ends: nobody would let the worker go later.
    pub fn stop(&mut self) -> Order {
        if std::mem::take(&mut self.paused) { Order::Resume } else { Order::Nothing }
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

    proptest! {
        #[test]
        fn pauses_and_resumes_alternate_and_the_end_leaves_nobody_paused(picks in proptest::collection::vec(0_u8..4, 0..50), left: bool) {
            let mut policy = Policy::begin(left);
            let mut paused = left;
            for pick in picks {
                match policy.event(&event(pick)) {
                    Order::Pause { .. } => { prop_assert!(!paused); paused = true; }
                    Order::Resume => { prop_assert!(paused); paused = false; }
                    Order::Nothing => {}
                }
            }
            prop_assert_eq!(policy.stop() == Order::Resume, paused);
            prop_assert_eq!(policy.stop(), Order::Nothing);
        }
    }
}
