//! How many bytes may be inside the backing at once.
//!
//! What is handed to sshfs cannot be taken back and everything else queues behind it: on a slow link a megabyte is
//! eight seconds. The window follows the delay that data calls see on top of the shortest one seen, as delay-based
//! congestion control does (RFC 6817): it doubles while it is full and they hardly queue, and halves when they queue long.
//!
//! Where a write returns before the server has seen its data, its own time says nothing. Its bytes stay in flight until a
//! barrier has come back, a question that the server answers after everything that was sent before it; and the time that
//! takes is what the window goes by.

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
    /// Those of them whose writes have returned.
    handed_over: u64,
    barrier: Option<Barrier>,
}

/// A question that is under way.
#[derive(Debug, Clone, Copy)]
struct Barrier {
    since: Instant,
    /// Bytes that had been handed over before it began.
    covers: u64,
}

/// Bytes admitted; they are in flight until they are given back to [`Window::release`], or for longer by way of
/// [`Window::hand_over`].
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
            Admission { bytes, full: waited || self.is_half_full() }
        })
    }

    /// Gives room back. `took` is the time in the backing, of calls that succeeded.
    pub fn release(&mut self, admission: Admission, took: Option<Duration>, now: Instant) {
        self.in_flight -= admission.bytes;
        if let Some(took) = took {
            self.size.observe(took, admission.full, now);
        }
    }

    /// The write has returned, whatever the server has seen of it: a barrier that begins later gives the room back.
    pub fn hand_over(&mut self, admission: Admission) {
        self.handed_over += admission.bytes;
    }

    /// So many bytes were handed over without having been admitted: a barrier gives the room back.
    pub fn overrun(&mut self, bytes: u64) {
        self.in_flight += bytes;
        self.handed_over += bytes;
    }

    /// True when it is time for a barrier: before the window is full, so that the pipeline does not run empty, or when
    /// `blocked` says that somebody gets no room.
    pub fn wants_barrier(&self, blocked: bool) -> bool {
        self.barrier.is_none() && self.handed_over > 0 && (blocked || self.is_half_full())
    }

    /// A barrier is sent now.
    pub fn begin_barrier(&mut self, now: Instant) {
        self.barrier = Some(Barrier { since: now, covers: self.handed_over });
    }

    /// It has come back.
    pub fn end_barrier(&mut self, now: Instant) {
        if let Some(barrier) = self.settle_barrier() {
            // It is only begun when there is not much room left.
            self.size.observe(now.saturating_duration_since(barrier.since), true, now);
        }
    }

    /// It has not, but something that was asked later has.
    pub fn pass_barrier(&mut self) {
        let _ = self.settle_barrier();
    }

    /// It never will; another may be begun.
    pub fn lose_barrier(&mut self) {
        self.barrier = None;
    }

    fn settle_barrier(&mut self) -> Option<Barrier> {
        let barrier = self.barrier.take()?;
        self.in_flight -= barrier.covers;
        self.handed_over -= barrier.covers;
        Some(barrier)
    }

    fn is_half_full(&self) -> bool {
        self.in_flight * 2 > self.size.bytes()
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
    fn whoever_had_to_wait_makes_it_grow() {
        let (mut window, now) = (Window::default(), Instant::now());
        let small = window.admit(1, false).expect("room");
        window.release(small, Some(Duration::from_millis(1)), now);
        assert_eq!(window.bytes(), START);
        let small = window.admit(1, true).expect("room");
        window.release(small, Some(Duration::from_millis(1)), now);
        assert_eq!(window.bytes(), 2 * START);
    }

    #[test]
    fn what_was_handed_over_stays_in_flight_until_a_barrier_that_began_later() {
        let (mut window, t) = (Window::default(), Instant::now());
        let half = START / 2;
        let first = window.admit(half, false).expect("room");
        window.hand_over(first);
        assert!(!window.wants_barrier(false), "half of it may stay");
        assert!(window.wants_barrier(true), "unless somebody is in want of it");
        let second = window.admit(half, false).expect("room");
        assert!(window.wants_barrier(false));
        window.begin_barrier(t);
        assert!(!window.wants_barrier(true), "one at a time");
        window.hand_over(second);
        window.end_barrier(t + 2 * LONG);
        assert_eq!((window.in_flight(), window.bytes()), (half, START / 2));
        window.begin_barrier(t);
        window.lose_barrier();
        assert_eq!(window.in_flight(), half);
        window.begin_barrier(t);
        window.pass_barrier();
        assert_eq!(window.in_flight(), 0);
    }

    #[test]
    fn what_was_handed_over_for_others_is_in_flight_too() {
        let mut window = Window::default();
        window.overrun(START);
        assert_eq!((window.in_flight(), window.has_room(1), window.wants_barrier(false)), (START, false, true));
        window.begin_barrier(Instant::now());
        window.pass_barrier();
        assert_eq!(window.in_flight(), 0);
    }

    #[test]
    fn the_time_of_a_barrier_is_what_the_window_goes_by() {
        let after = |took| {
            let (mut window, t) = (Window::default(), Instant::now());
            let admission = window.admit(START, false).expect("room");
            window.hand_over(admission);
            window.begin_barrier(t);
            window.end_barrier(t + took);
            window.bytes()
        };
        assert_eq!(after(SHORT), START * 2);
        assert_eq!(after(ROUND_TRIP + 2 * SHORT), START);
        assert_eq!(after(ROUND_TRIP + LONG * 2), START / 2);
    }
}
