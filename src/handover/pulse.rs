//! A sign of life for a watchdog that holds the memory too.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::arena::{Arena, at};

/// What a watchdog reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Beats so far, over all daemons.
    pub count: u64,
    /// When the last one was, in milliseconds of CLOCK_MONOTONIC; 0 if there was none.
    pub at_ms: u64,
}

impl Beat {
    /// How long ago it was, at that time of the same clock.
    pub fn age(&self, now_ms: u64) -> Duration {
        Duration::from_millis(now_ms.saturating_sub(self.at_ms))
    }
}

/// Milliseconds of CLOCK_MONOTONIC, which is one and the same for all processes.
pub fn monotonic_ms() -> u64 {
    // It cannot fail for this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| u64::try_from(Duration::from(now).as_millis()).unwrap_or(u64::MAX))
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Pulse(pub(super) Arc<Arena>);

impl Pulse {
    /// Alive, at that time of [`monotonic_ms`].
    pub fn beat(&self, now_ms: u64) {
        self.0.word(at::PULSE_MS).store(now_ms, Relaxed);
        self.0.word(at::PULSES).fetch_add(1, Relaxed);
    }

    /// The last sign of life.
    pub fn last(&self) -> Beat {
        Beat { count: self.0.word(at::PULSES).load(Relaxed), at_ms: self.0.word(at::PULSE_MS).load(Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::arena::Sizes;

    #[test]
    fn a_watchdog_sees_the_last_beat() {
        let arena = Arc::new(Arena::create(Sizes { slots: 1, tape: 4096 }).expect("memory"));
        let pulse = Pulse(arena);
        assert_eq!(pulse.last(), Beat { count: 0, at_ms: 0 });
        let now = monotonic_ms();
        pulse.beat(now);
        assert_eq!(pulse.last(), Beat { count: 1, at_ms: now });
        assert_eq!(pulse.last().age(now + 1500), Duration::from_millis(1500));
        assert!(monotonic_ms() >= now);
    }
}
