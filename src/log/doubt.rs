//! Changes that were handed to the backing and never acknowledged: each may have been done, in part or not at all.
//!
//! They are in no log, since nobody was promised anything; but what a file must look like after a repair depends on them.

use serde::{Deserialize, Serialize};

/// A change that is about to be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attempt {
    /// Data from one offset to another.
    Write(u64, u64),
    /// ftruncate(2) to that size.
    SetSize(u64),
    /// Anything.
    Any,
}

impl Attempt {
    fn touches(self, offset: u64, end: u64) -> bool {
        match self {
            Attempt::Write(from, to) => from < end && offset < to,
            Attempt::SetSize(size) => size < end,
            Attempt::Any => true,
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Doubt {
    attempts: Vec<Attempt>,
}

impl Doubt {
    /// True if there is none.
    pub fn is_none(&self) -> bool {
        self.attempts.is_empty()
    }

    /// A change is about to be handed over.
    pub fn begin(&mut self, attempt: Attempt) {
        self.attempts.push(attempt);
    }

    /// That change was done, all of it.
    pub fn done(&mut self, attempt: Attempt) {
        if self.attempts.last() == Some(&attempt) {
            self.attempts.pop();
        }
    }

    /// Nothing is in doubt any more.
    pub fn end(&mut self) {
        self.attempts.clear();
    }

    /// The size that the last of them sets.
    pub fn truncation(&self) -> Option<u64> {
        match self.attempts.last() {
            Some(&Attempt::SetSize(size)) => Some(size),
            _ => None,
        }
    }

    /// True if a range may hold other data than without them.
    pub fn touches(&self, offset: u64, length: u64) -> bool {
        self.attempts.iter().any(|attempt| attempt.touches(offset, offset + length))
    }

    /// Smallest and largest size of a file whose size was between these without them.
    pub fn sizes(&self, least: u64, most: u64) -> (u64, u64) {
        self.attempts.iter().fold((least, most), |(least, most), attempt| match *attempt {
            Attempt::Write(_, end) => (least, most.max(end)),
            Attempt::SetSize(size) => (least.min(size), most.max(size)),
            Attempt::Any => (0, u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_acknowledged_widens_what_a_file_may_be() {
        let mut doubt = Doubt::default();
        assert_eq!((doubt.sizes(5, 7), doubt.touches(0, 100)), ((5, 7), false));
        doubt.begin(Attempt::Write(10, 20));
        assert_eq!((doubt.sizes(5, 7), doubt.touches(0, 10), doubt.touches(19, 1)), ((5, 20), false, true));
        doubt.begin(Attempt::SetSize(3));
        assert_eq!((doubt.sizes(5, 7), doubt.touches(0, 3), doubt.touches(0, 4)), ((3, 20), false, true));
        doubt.done(Attempt::SetSize(4));
        assert_eq!(doubt.sizes(5, 7), (3, 20), "that was another one");
        doubt.done(Attempt::SetSize(3));
        assert_eq!(doubt.sizes(5, 7), (5, 20));
        doubt.end();
        assert!(doubt.is_none());
    }
}
