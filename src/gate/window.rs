//! How many bytes may be inside the backing at once.
//!
//! What is handed to sshfs cannot be taken back and everything else queues behind it: on a slow link a megabyte is
//! eight seconds. The window follows the delay that data calls see, as delay-based congestion control does
//! (RFC 6817): it doubles while they are quick and it is full, and halves when they take too long.

use std::time::{Duration, Instant};

/// Smallest window: one write of sshfs (its SFTP packets carry up to 64 KiB).
pub const MIN: u64 = 64 << 10;
/// Largest window: a gigabit link with 60 ms round trip holds no more.
pub const MAX: u64 = 8 << 20;
const START: u64 = 256 << 10;
/// Delay of a data call that is found acceptable; a stat behind it should take less than a second or two.
const TARGET: Duration = Duration::from_millis(400);

/// The size, without the waiting: a pure state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    bytes: u64,
    shrunk_at: Option<Instant>,
}

impl Default for Size {
    fn default() -> Self {
        Size { bytes: START, shrunk_at: None }
    }
}

impl Size {
    /// Present size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A data call took so long; `full` says that the window was what limited it or others.
    pub fn observe(&mut self, took: Duration, full: bool, now: Instant) {
        if took > 2 * TARGET {
            // Once per delay: all calls of one congested moment are one sign.
            if self.shrunk_at.is_none_or(|at| now.duration_since(at) > took) {
                self.bytes = (self.bytes / 2).max(MIN);
                self.shrunk_at = Some(now);
            }
        } else if full && took < TARGET / 2 {
            self.bytes = (self.bytes * 2).min(MAX);
        }
    }
}

/// The window of one generation: a pure state machine too. Whoever gets no room waits in the gate's queue.
#[derive(Debug, Default)]
pub struct Window {
    size: Size,
    in_flight: u64,
}

/// Bytes admitted; they are in flight until they are given back to [`Window::release`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Admission {
    bytes: u64,
    full: bool,
}

impl Window {
    /// True if that many bytes may be handed to the backing now. An empty window takes anything.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.in_flight == 0 || self.in_flight + bytes <= self.size.bytes()
    }

    /// Takes so many bytes in; `None` if there is no room. `waited` says that there was none a moment ago.
    pub fn admit(&mut self, bytes: u64, waited: bool) -> Option<Admission> {
        self.has_room(bytes).then(|| {
            self.in_flight += bytes;
            Admission { bytes, full: waited || self.in_flight * 2 > self.size.bytes() }
        })
    }

    /// Gives room back. `took` is the time in the backing, of calls that succeeded.
    pub fn release(&mut self, admission: Admission, took: Option<Duration>, now: Instant) {
        self.in_flight -= admission.bytes;
        if let Some(took) = took {
            self.size.observe(took, admission.full, now);
        }
    }

    /// Bytes in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Present size in bytes.
    pub fn bytes(&self) -> u64 {
        self.size.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_when_quick_and_full_only() {
        let (mut size, now) = (Size::default(), Instant::now());
        size.observe(Duration::from_millis(1), false, now);
        assert_eq!(size.bytes(), START);
        for _ in 0..20 {
            size.observe(Duration::from_millis(1), true, now);
        }
        assert_eq!(size.bytes(), MAX);
    }

    #[test]
    fn shrinks_once_per_congested_moment_and_never_below_the_minimum() {
        let (mut size, now) = (Size::default(), Instant::now());
        let slow = Duration::from_secs(2);
        size.observe(slow, true, now);
        size.observe(slow, true, now + Duration::from_millis(10));
        assert_eq!(size.bytes(), START / 2);
        for i in 1..20 {
            size.observe(slow, true, now + slow * 2 * i);
        }
        assert_eq!(size.bytes(), MIN);
    }

    #[test]
    fn one_oversized_call_goes_alone() {
        let mut window = Window::default();
        let first = window.admit(MAX * 2, false).expect("an empty window takes anything");
        assert_eq!(window.admit(1, false), None);
        window.release(first, None, Instant::now());
        assert_eq!(window.in_flight(), 0);
        assert!(window.has_room(1));
    }

    #[test]
    fn whoever_had_to_wait_makes_it_grow() {
        let (mut window, now) = (Window::default(), Instant::now());
        let small = window.admit(1, false).expect("room");
        window.release(small, Some(Duration::from_millis(1)), now);
        assert_eq!(window.bytes(), START);
        let small = window.admit(1, true).expect("room");
        window.release(small, Some(Duration::from_millis(1)), now);
        assert_eq!(window.bytes(), 2 * START);
    }
}
