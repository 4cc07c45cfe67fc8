//! How many bytes may be inside the backing at once.
//!
//! What is handed to sshfs cannot be taken back and everything else queues behind it: on a slow link a megabyte is
//! eight seconds. The window follows the delay that data calls see on top of the shortest one seen, as delay-based
//! congestion control does (RFC 6817): it doubles while it is full and they hardly queue, and halves when they queue long.
//!
//! An asynchronous backing answers a write before the server has seen it. Its bytes stay in flight until a *barrier* has
//! come back: a probe, which the server answers after all that was sent before it (one connection is served in order).
//! It is sent when half the window is in flight, so that the link never runs dry, and its delay is that of the bytes.

use std::time::{Duration, Instant};

/// Smallest window: one write of sshfs (its SFTP packets carry up to 64 KiB).
pub const MIN: u64 = 64 << 10;
/// Largest window: a gigabit link with 60 ms round trip holds no more.
pub const MAX: u64 = 8 << 20;
const START: u64 = 256 << 10;
/// Time in queues up to which the window may grow: what a stat waits behind data that fills a quick link.
const SHORT: Duration = Duration::from_millis(60);
/// Time in queues from which it shrinks: a stat should take less than a second or two.
const LONG: Duration = Duration::from_millis(400);
/// Longest round trip that is believed: the shortest delay of a slow link that was never idle is no round trip.
const ROUND_TRIP: Duration = Duration::from_millis(300);

/// The size, without the waiting: a pure state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    bytes: u64,
    shrunk_at: Option<Instant>,
    /// The shortest delay that was seen: the round trip, if nothing queued then.
    shortest: Duration,
}

impl Default for Size {
    fn default() -> Self {
        Size { bytes: START, shrunk_at: None, shortest: ROUND_TRIP }
    }
}

impl Size {
    /// Present size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A data call took so long; `full` says that the window was what limited it or others.
    pub fn observe(&mut self, took: Duration, full: bool, now: Instant) {
        self.shortest = self.shortest.min(took);
        let queued = took - self.shortest;
        if queued > LONG {
            // Once per delay: all calls of one congested moment are one sign.
            if self.shrunk_at.is_none_or(|at| now.duration_since(at) > took) {
                self.bytes = (self.bytes / 2).max(MIN);
                self.shrunk_at = Some(now);
            }
        } else if full && queued < SHORT {
            self.bytes = (self.bytes * 2).min(MAX);
        }
    }
}

/// The window of one generation: a pure state machine too. Whoever gets no room waits in the gate's queue.
#[derive(Debug, Default)]
pub struct Window {
    size: Size,
    in_flight: u64,
    /// Of these: answered, and no barrier was sent since.
    unseen: u64,
    /// Of these: those that the barrier under way covers.
    covered: Option<u64>,
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

    /// The backing has answered, but the server may not have seen the bytes: a barrier gives the room back.
    pub fn keep(&mut self, admission: Admission) {
        self.unseen += admission.bytes;
    }

    /// Begins a barrier if one is due: half the window is in flight, or what comes next has no room.
    pub fn begin_barrier(&mut self, next: Option<u64>) -> bool {
        let no_room = self.unseen > 0 && next.is_some_and(|bytes| !self.has_room(bytes));
        let due = self.unseen * 2 > self.size.bytes() || no_room;
        let begins = due && self.covered.is_none();
        if begins {
            self.covered = Some(std::mem::take(&mut self.unseen));
        }
        begins
    }

    /// The barrier came back after so long, or failed.
    pub fn end_barrier(&mut self, took: Option<Duration>, now: Instant) {
        let covered = self.covered.take().unwrap_or(0);
        match took {
            Some(took) => {
                self.in_flight -= covered;
                self.size.observe(took, true, now);
            }
            None => self.unseen += covered,
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
    fn a_long_way_is_no_queue() {
        let (mut size, now) = (Size::default(), Instant::now());
        for _ in 0..20 {
            size.observe(Duration::from_millis(200), true, now);
        }
        assert_eq!(size.bytes(), MAX);
        size.observe(Duration::from_millis(500), true, now);
        assert_eq!(size.bytes(), MAX, "some queue is no harm");
        size.observe(Duration::from_millis(700), true, now);
        assert_eq!(size.bytes(), MAX / 2);
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
    fn what_the_server_may_not_have_seen_stays_in_flight_until_a_barrier_comes_back() {
        let (mut window, now) = (Window::default(), Instant::now());
        let half = START / 2;
        for _ in 0..2 {
            let write = window.admit(half, false).expect("room");
            window.keep(write);
        }
        assert!(!window.has_room(1) && window.begin_barrier(None));
        assert!(!window.begin_barrier(Some(1)), "one at a time");
        window.end_barrier(None, now);
        assert_eq!(window.in_flight(), START, "a barrier that failed says nothing");
        assert!(window.begin_barrier(None));
        window.end_barrier(Some(Duration::from_millis(1)), now);
        assert_eq!((window.in_flight(), window.bytes()), (0, 2 * START));
        let write = window.admit(half, false).expect("room");
        window.keep(write);
        assert!(!window.begin_barrier(Some(1)), "little is left alone");
        assert!(window.begin_barrier(Some(2 * START)), "unless somebody waits for the room");
        let during = window.admit(half, false).expect("room");
        window.keep(during);
        window.end_barrier(Some(Duration::from_secs(2)), now);
        assert_eq!((window.in_flight(), window.bytes()), (half, START), "what came later is not covered");
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
