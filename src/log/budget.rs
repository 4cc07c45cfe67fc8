//! How much all logs of an overlay may keep.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How often somebody who waits asks whether waiting still makes sense.
const ASK: Duration = Duration::from_millis(50);

/// A bound on memory. What is kept is charged when it is known; room is asked for before.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: Mutex<u64>,
    freed: Condvar,
}

impl Budget {
    /// A bound of that many bytes.
    pub fn new(limit: u64) -> Budget {
        Budget { limit, used: Mutex::new(0), freed: Condvar::new() }
    }

    /// The bound in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        *self.used.lock()
    }

    /// True when something should be committed before writers have to wait.
    pub fn is_half_full(&self) -> bool {
        self.used() > self.limit / 2
    }

    /// Waits a moment for room for `bytes`; true if there is some.
    pub fn wait(&self, bytes: u64) -> bool {
        let mut used = self.used.lock();
        if !self.fits(*used, bytes) {
            self.freed.wait_for(&mut used, ASK);
        }
        self.fits(*used, bytes)
    }

    /// True if there is room for `bytes` now.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.fits(*self.used.lock(), bytes)
    }

    /// One write larger than the bound goes alone.
    fn fits(&self, used: u64, bytes: u64) -> bool {
        used == 0 || used + bytes <= self.limit
    }

    /// What a log keeps has changed from one cost to another.
    pub fn charge(&self, from: u64, to: u64) {
        let mut used = self.used.lock();
        *used = (*used + to).saturating_sub(from);
        if to < from {
            self.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_until_the_bound_and_again_when_something_was_committed() {
        let budget = Budget::new(100);
        assert!(budget.wait(1000), "an empty log takes anything");
        budget.charge(0, 60);
        assert!(budget.is_half_full() && budget.wait(40) && !budget.wait(41));
        assert!(budget.has_room(40) && !budget.has_room(41));
        budget.charge(60, 10);
        assert_eq!((budget.wait(41), budget.used()), (true, 10));
    }
}
