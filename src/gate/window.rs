//! How many bytes may be inside the backing at once.
//!
//! What is handed to sshfs cannot be taken back and everything else queues behind it: on a slow link a megabyte is
//! eight seconds. The window follows the delay that data calls see, as delay-based congestion control does
//! (RFC 6817): it doubles while they are quick and it is full, and halves when they take too long.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

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

#[derive(Default)]
struct State {
    size: Size,
    in_flight: u64,
    next_ticket: u64,
    serving: u64,
    abandoned: std::collections::BTreeSet<u64>,
}

/// The window with its queue: first come, first served, so that a second writer gets its share.
#[derive(Default)]
pub struct Window {
    state: Mutex<State>,
    changed: Condvar,
}

/// Bytes admitted; gives them back when dropped.
pub struct Admission<'a> {
    window: &'a Window,
    bytes: u64,
    full: bool,
}

impl Window {
    /// Waits until `bytes` may be handed to the backing; `None` when `give_up` says so first (asked every 50 ms).
    pub fn admit(&self, bytes: u64, give_up: impl Fn() -> bool) -> Option<Admission<'_>> {
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        let mut full = false;
        loop {
            if state.serving == ticket && (state.in_flight == 0 || state.in_flight + bytes <= state.size.bytes()) {
                state.in_flight += bytes;
                full |= state.in_flight * 2 > state.size.bytes();
                state.advance();
                self.changed.notify_all();
                return Some(Admission { window: self, bytes, full });
            }
            full = true;
            if give_up() {
                if state.serving == ticket {
                    state.advance();
                    self.changed.notify_all();
                } else {
                    state.abandoned.insert(ticket);
                }
                return None;
            }
            self.changed.wait_for(&mut state, Duration::from_millis(50));
        }
    }

    /// Bytes in flight, and the size.
    pub fn load(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.in_flight, state.size.bytes())
    }

    /// Forgets what was measured, for a new generation.
    pub fn reset(&self) {
        self.state.lock().size = Size::default();
    }
}

impl State {
    fn advance(&mut self) {
        self.serving += 1;
        while self.abandoned.remove(&self.serving) {
            self.serving += 1;
        }
    }
}

impl Admission<'_> {
    /// The call succeeded after that time in the backing.
    pub fn took(&self, took: Duration) {
        self.window.state.lock().size.observe(took, self.full, Instant::now());
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.window.state.lock().in_flight -= self.bytes;
        self.window.changed.notify_all();
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
    fn one_oversized_call_goes_alone_and_those_who_give_up_do_not_block_the_queue() {
        let window = Window::default();
        let first = window.admit(MAX * 2, || false).expect("an empty window takes anything");
        assert!(window.admit(1, || true).is_none());
        drop(first);
        assert!(window.admit(1, || true).is_some());
        assert_eq!(window.load().0, 0);
    }
}
