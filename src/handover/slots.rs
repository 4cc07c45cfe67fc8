//! Requests in flight, in a table that a successor can read after a kill: which the kernel waits for, and how many daemons
//! each has seen die.
//!
//! From Linux 6.9 on a successor has the kernel send them again (FUSE_NOTIFY_RESEND); they come with bit 63 of their unique
//! set. Before that it has to answer each with an error, by its unique. A request that kills every daemon it meets is
//! found by its count of deaths, and answered with an error.
//!
//! Entering is one compare-and-swap and two stores, in an order in which a kill between any two leaves at worst a request
//! without opcode and node, or one that has been answered already: the kernel refuses a second answer (ENOENT), which is
//! harmless.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::arena::{Arena, at};

/// FUSE_UNIQUE_RESEND of linux/fuse.h: the request was sent before.
pub const RESENT: u64 = 1 << 63;
/// A request that was in flight when that many daemons died is answered with an error: each of the others in flight with
/// it has then had as many tries to be answered.
pub const POISON: u32 = 8;

const UNIQUE: u64 = 0;
/// Opcode (32 bits), deaths (31 bits), and whether it is left over (1 bit).
const WHAT: u64 = 8;
const NODE: u64 = 16;
const LEFT_OVER: u64 = 1 << 63;
const NO_SLOT: u64 = u64::MAX;

fn what(opcode: u32, deaths: u32, left_over: bool) -> u64 {
    u64::from(opcode) | u64::from(deaths & 0x7fff_ffff) << 32 | if left_over { LEFT_OVER } else { 0 }
}

fn deaths(what: u64) -> u32 {
    (what >> 32) as u32 & 0x7fff_ffff
}

/// A request that was in flight when its daemon died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlight {
    /// As it was delivered, [`RESENT`] included: an answer has to name it so.
    pub unique: u64,
    /// Its opcode (linux/fuse.h); 0 if the daemon died right then.
    pub opcode: u32,
    /// Its node, or the handle of a release; 0 likewise.
    pub node: u64,
    /// Daemons that died while it was in flight.
    pub deaths: u32,
}

/// A request that has been entered. It must be given to [`Slots::leave`] right after the answer.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a request that does not leave counts as in flight"]
pub struct Entered {
    slot: u64,
    deaths: u32,
}

impl Entered {
    /// Daemons that died while it was in flight.
    pub fn deaths(&self) -> u32 {
        self.deaths
    }

    /// True if it is to be answered with an error, at once.
    pub fn is_poison(&self) -> bool {
        self.deaths >= POISON
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Slots {
    arena: Arc<Arena>,
    count: u64,
}

impl Slots {
    pub(super) fn new(arena: Arc<Arena>) -> Slots {
        Slots { count: arena.sizes().slots, arena }
    }

    /// A request was read. If no slot is free it goes unrecorded ([`Slots::unrecorded`]): it is served as any other, but a
    /// successor on a kernel before 6.9 does not know of it, and its caller would wait until the overlay is unmounted.
    pub fn enter(&self, unique: u64, opcode: u32, node: u64) -> Entered {
        self.saw(unique);
        if unique & RESENT != 0
            && self.arena.word(at::LEFTOVERS).load(Relaxed) > 0
            && let Some(entered) = self.enter_again(unique, opcode, node)
        {
            return entered;
        }
        // Uniques are even (FUSE_REQ_ID_STEP) and in order, so the first try nearly always succeeds.
        let first = (unique & !RESENT) >> 1;
        let free = (0..self.count).map(|step| first.wrapping_add(step) % self.count).find(|&slot| {
            let place = self.arena.word(self.arena.slot_at(slot) + UNIQUE);
            place.load(Relaxed) == 0 && place.compare_exchange(0, unique, AcqRel, Relaxed).is_ok()
        });
        match free.or_else(|| self.evict(unique)) {
            Some(slot) => {
                let base = self.arena.slot_at(slot);
                self.arena.word(base + NODE).store(node, Relaxed);
                self.arena.word(base + WHAT).store(what(opcode, 0, false), Release);
                Entered { slot, deaths: 0 }
            }
            None => {
                self.arena.word(at::UNRECORDED).fetch_add(1, Relaxed);
                self.arena.word(at::UNRECORDED_EVER).fetch_add(1, Relaxed);
                Entered { slot: NO_SLOT, deaths: 0 }
            }
        }
    }

    /// A request that an earlier daemon had entered.
    fn enter_again(&self, unique: u64, opcode: u32, node: u64) -> Option<Entered> {
        (0..self.count).find_map(|slot| {
            let base = self.arena.slot_at(slot);
            let (name, state) = (self.arena.word(base + UNIQUE), self.arena.word(base + WHAT));
            let before = state.load(Acquire);
            if before & LEFT_OVER == 0 || name.load(Relaxed) & !RESENT != unique & !RESENT {
                return None;
            }
            let now = what(opcode, deaths(before), false);
            state.compare_exchange(before, now, AcqRel, Relaxed).ok()?;
            name.store(unique, Relaxed);
            self.arena.word(base + NODE).store(node, Relaxed);
            self.arena.word(at::LEFTOVERS).fetch_sub(1, Relaxed);
            Some(Entered { slot, deaths: deaths(before) })
        })
    }

    /// The slot of a leftover, which is of less use than a request that is in flight now.
    fn evict(&self, unique: u64) -> Option<u64> {
        if self.arena.word(at::LEFTOVERS).load(Relaxed) == 0 {
            return None;
        }
        (0..self.count).find(|&slot| {
            let base = self.arena.slot_at(slot);
            let state = self.arena.word(base + WHAT);
            let before = state.load(Acquire);
            let taken = before & LEFT_OVER != 0 && state.compare_exchange(before, 0, AcqRel, Relaxed).is_ok();
            if taken {
                self.arena.word(base + UNIQUE).store(unique, Relaxed);
                self.arena.word(at::LEFTOVERS).fetch_sub(1, Relaxed);
            }
            taken
        })
    }

    /// It has been answered.
    pub fn leave(&self, entered: Entered) {
        match entered.slot {
            NO_SLOT => _ = self.arena.word(at::UNRECORDED).fetch_sub(1, Relaxed),
            slot => self.clear(slot),
        }
    }

    fn clear(&self, slot: u64) {
        let base = self.arena.slot_at(slot);
        self.arena.word(base + WHAT).store(0, Relaxed);
        self.arena.word(base + NODE).store(0, Relaxed);
        self.arena.word(base + UNIQUE).store(0, Release);
    }

    /// A request that needs no answer was read.
    pub fn saw(&self, unique: u64) {
        self.arena.word(at::NEWEST).fetch_max(unique & !RESENT, Relaxed);
    }

    /// The highest unique that was ever read.
    pub fn newest(&self) -> u64 {
        self.arena.word(at::NEWEST).load(Relaxed)
    }

    /// True if nothing is in flight at this moment.
    pub fn is_idle(&self) -> bool {
        self.unrecorded().0 == 0
            && (0..self.count).all(|slot| self.arena.word(self.arena.slot_at(slot) + UNIQUE).load(Relaxed) == 0)
    }

    /// Requests in flight now that did not fit into the table, and how many there have ever been.
    pub fn unrecorded(&self) -> (u64, u64) {
        (self.arena.word(at::UNRECORDED).load(Relaxed), self.arena.word(at::UNRECORDED_EVER).load(Relaxed))
    }

    /// A daemon has died: whatever was in flight has seen it. Returns all that may be unanswered, those included that an
    /// earlier daemon left and this one never got to see.
    pub(super) fn succeed(&self) -> Vec<InFlight> {
        let mut all = Vec::new();
        for slot in 0..self.count {
            let base = self.arena.slot_at(slot);
            let unique = self.arena.word(base + UNIQUE).load(Acquire);
            if unique == 0 {
                continue;
            }
            let (state, node) = (self.arena.word(base + WHAT), self.arena.word(base + NODE).load(Relaxed));
            let before = state.load(Relaxed);
            let deaths = deaths(before) + u32::from(before & LEFT_OVER == 0);
            let opcode = before as u32;
            state.store(what(opcode, deaths, true), Relaxed);
            all.push(InFlight { unique, opcode, node, deaths });
        }
        self.arena.word(at::LEFTOVERS).store(all.len() as u64, Relaxed);
        self.arena.word(at::UNRECORDED).store(0, Relaxed);
        all
    }

    /// What an earlier daemon left is answered, or will not be sent again.
    pub fn forget_leftovers(&self) {
        for slot in 0..self.count {
            let state = self.arena.word(self.arena.slot_at(slot) + WHAT);
            let before = state.load(Acquire);
            if before & LEFT_OVER != 0 && state.compare_exchange(before, 0, AcqRel, Relaxed).is_ok() {
                self.clear(slot);
                self.arena.word(at::LEFTOVERS).fetch_sub(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::arena::Sizes;

    fn slots(count: u64) -> Slots {
        Slots::new(Arc::new(Arena::create(Sizes { slots: count, tape: 4096 }).expect("memory")))
    }

    #[test]
    fn a_successor_finds_what_was_not_answered() {
        let slots = slots(8);
        let first = slots.enter(2, 15, 7);
        let _second = slots.enter(4, 16, 8);
        slots.leave(first);
        assert_eq!(slots.succeed(), [InFlight { unique: 4, opcode: 16, node: 8, deaths: 1 }]);
    }

    #[test]
    fn a_request_that_kills_every_daemon_is_found_out() {
        let slots = slots(8);
        let mut entered = slots.enter(2, 15, 7);
        for deaths in 1..=POISON {
            assert!(!entered.is_poison());
            assert_eq!(slots.succeed().len(), 1);
            entered = slots.enter(2 | RESENT, 15, 7);
            assert_eq!(entered.deaths(), deaths);
        }
        assert!(entered.is_poison());
        slots.leave(entered);
        assert_eq!(slots.succeed(), []);
        assert_eq!(slots.enter(2 | RESENT, 15, 7).deaths(), 0);
    }

    #[test]
    fn what_was_not_delivered_again_saw_nobody_die() {
        let slots = slots(8);
        let _lost = slots.enter(2, 15, 7);
        slots.succeed();
        let again = slots.succeed();
        assert_eq!(again, [InFlight { unique: 2, opcode: 15, node: 7, deaths: 1 }]);
        slots.forget_leftovers();
        assert_eq!(slots.succeed(), []);
    }

    #[test]
    fn a_full_table_counts_what_it_cannot_take() {
        let slots = slots(2);
        let (a, b) = (slots.enter(2, 1, 1), slots.enter(4, 1, 1));
        let c = slots.enter(6, 1, 1);
        assert_eq!(slots.unrecorded(), (1, 1));
        slots.leave(c);
        slots.leave(a);
        let d = slots.enter(8, 1, 1);
        assert_eq!(slots.unrecorded(), (0, 1));
        slots.leave(b);
        slots.leave(d);
        assert_eq!(slots.succeed(), []);
    }

    #[test]
    fn leftovers_make_room() {
        let slots = slots(2);
        let _dead = (slots.enter(2, 1, 1), slots.enter(4, 1, 1));
        slots.succeed();
        let (a, b) = (slots.enter(6, 1, 1), slots.enter(8, 1, 1));
        assert_eq!(slots.unrecorded(), (0, 0));
        slots.leave(a);
        slots.leave(b);
        assert_eq!(slots.succeed(), []);
    }

    #[test]
    fn threads_do_not_take_each_others_slots() {
        let slots = slots(16);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let slots = &slots;
                scope.spawn(move || {
                    for round in 1..2000_u64 {
                        let unique = (round * 4 + thread) * 2;
                        let entered = slots.enter(unique, 1, unique);
                        let base = slots.arena.slot_at(entered.slot);
                        assert_eq!(slots.arena.word(base + UNIQUE).load(Relaxed), unique);
                        assert_eq!(slots.arena.word(base + NODE).load(Relaxed), unique);
                        slots.leave(entered);
                    }
                });
            }
        });
        assert_eq!((slots.succeed(), slots.unrecorded()), (vec![], (0, 0)));
    }
}
