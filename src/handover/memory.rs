//! The memory of a mount as its owner uses it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::arena::{Arena, ArenaError, Sizes, at};
use super::item::{Item, ItemError};
use super::picture::Picture;
use super::pulse::Pulse;
use super::slots::{InFlight, Slots};
use super::tape::{Compacted, Copy, Record, Scan, Tape, TapeError, Torn};

/// Why nothing is remembered, or a successor cannot start from it. Each says what can be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    /// See there.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// See there. Of [`TapeError::Full`]: whoever notes goes on without; the mount is served as ever, but no successor can
    /// take it over any more.
    #[error(transparent)]
    Tape(#[from] TapeError),
    /// See there.
    #[error(transparent)]
    Item(#[from] ItemError),
    /// See [`Memory::give_up`].
    #[error(
        "the predecessor had more open files, names and uncommitted changes than its memory could hold, and noted nothing \
         from then on: mount again"
    )]
    GivenUp,
}

/// What a successor finds.
#[derive(Debug)]
pub struct Inherited {
    /// The state that the predecessor had noted.
    pub picture: Picture,
    /// Requests that it had read and may not have answered.
    pub requests: Vec<InFlight>,
    /// The highest unique of those that it had recorded, answered ones included.
    pub newest: u64,
    /// Requests, besides these, that did not fit into its table: they are answered only if the kernel sends them again.
    pub unrecorded: u64,
    /// The last record, if it was damaged: a bug, since a kill does not do that.
    pub torn: Option<Torn>,
    /// Daemons that have served the mount before.
    pub successions: u64,
    /// Descriptors of files without a name that were open, by node: not of the memory, whoever kept it adds them.
    pub nameless: Vec<(u64, OwnedFd)>,
}

/// See the module. Everything may be called from any thread.
#[derive(Debug)]
pub struct Memory {
    arena: Arc<Arena>,
    tape: Tape,
    slots: Slots,
    pulse: Pulse,
}

impl Memory {
    /// A new one; the first item must be the session's.
    pub fn create(sizes: Sizes) -> Result<Memory, HandoverError> {
        Memory::with(Arc::new(Arena::create(sizes)?)).map(|(memory, ..)| memory)
    }

    /// Takes over what a predecessor, which must be dead, left behind this descriptor.
    pub fn take_over(fd: OwnedFd) -> Result<(Memory, Inherited), HandoverError> {
        let arena = Arc::new(Arena::open(fd)?);
        if arena.word(at::GIVEN_UP).load(Relaxed) != 0 {
            return Err(HandoverError::GivenUp);
        }
        let (memory, picture, torn) = Memory::with(Arc::clone(&arena))?;
        if picture.session.is_none() {
            return Err(ItemError::NoSession.into());
        }
        // Only now: a successor that cannot read it has not died of it.
        let successions = arena.word(at::SUCCESSIONS).fetch_add(1, Relaxed).saturating_add(1);
        let unrecorded = memory.slots.unrecorded().0;
        let (newest, requests) = (memory.slots.newest(), memory.slots.succeed());
        let nameless = Vec::new();
        Ok((memory, Inherited { picture, requests, newest, unrecorded, torn, successions, nameless }))
    }

    fn with(arena: Arc<Arena>) -> Result<(Memory, Picture, Option<Torn>), HandoverError> {
        let (tape, picture, torn) = Tape::open(Arc::clone(&arena), fold)?;
        let (slots, pulse) = (Slots::new(Arc::clone(&arena)), Pulse(Arc::clone(&arena)));
        Ok((Memory { arena, tape, slots, pulse }, picture, torn))
    }

    /// The descriptor, for the one who keeps it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.arena.fd()
    }

    /// Notes that something happened; it is remembered when this returns. To be called under the lock that orders such
    /// things, before anybody is told of them. It asks for no lock of its caller's.
    pub fn note(&self, item: &Item<'_>) -> Result<(), HandoverError> {
        item.encode(|kind, parts| match self.tape.append(kind, parts) {
            Err(TapeError::Full { used, .. }) => {
                // Unless somebody else has made room meanwhile.
                self.compact_if(|tape| tape.len() >= used)?;
                Ok(self.tape.append(kind, parts)?)
            }
            result => Ok(result?),
        })?
    }

    /// What is noted is not complete any more, and no successor may start from it.
    pub fn give_up(&self) {
        self.arena.word(at::GIVEN_UP).store(1, Relaxed);
    }

    /// What has to be done now and then, by a thread that nobody waits for: [`Memory::compact_if_due`], and pages are got
    /// before they are needed. To be called every second or so, and whenever the thread that did so first is unparked.
    pub fn attend(&self) -> Result<Option<Compacted>, HandoverError> {
        self.tape.attend();
        let done = self.compact_if_due();
        self.tape.prepare()?;
        done
    }

    /// Nothing has been noted for a while: pages that are kept are given back.
    pub fn rest(&self) -> Result<(), HandoverError> {
        Ok(self.tape.trim()?)
    }

    /// Frees what is superseded, if that is half of it or more. It takes time and, for a while, as much memory again.
    pub fn compact_if_due(&self) -> Result<Option<Compacted>, HandoverError> {
        if self.tape.is_due() { self.compact_if(Tape::is_due) } else { Ok(None) }
    }

    /// Frees what is superseded.
    pub fn compact(&self) -> Result<Option<Compacted>, HandoverError> {
        self.compact_if(|_| true)
    }

    fn compact_if(&self, wanted: impl FnOnce(&Tape) -> bool) -> Result<Option<Compacted>, HandoverError> {
        self.tape.compact(wanted, |scan, copy: &mut Copy<'_>| {
            fold(scan)?.items(|item| item.encode(|kind, parts| copy.append(kind, parts))?.map_err(HandoverError::from))
        })
    }

    /// What has been noted so far comes to this.
    pub fn picture(&self) -> Result<Picture, HandoverError> {
        self.tape.read(fold)
    }

    /// Bytes in use of the tape, and the most it may have.
    pub fn used(&self) -> (u64, u64) {
        (self.tape.len(), self.arena.sizes().tape)
    }

    /// Bytes of memory that all of it takes at present, and the most that it may take. Each process that has it mapped counts
    /// them as its own.
    pub fn resident(&self) -> (u64, u64) {
        (self.arena.resident(), self.arena.most())
    }

    /// Requests in flight.
    pub fn requests(&self) -> &Slots {
        &self.slots
    }

    /// The sign of life.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

fn fold(scan: &mut Scan<'_>) -> Result<Picture, HandoverError> {
    Picture::fold(
        scan.map(|record| record.map(|Record { kind, payload, .. }| (kind, payload)).map_err(HandoverError::from)),
    )
}

#[cfg(test)]
#[path = "tests/memory.rs"]
mod tests;
