//! A tape of records in the arena: what was appended is there after a kill at any instruction, whole or not at all.
//!
//! A record is a header of 32 bytes (length, number, kind, checksum over all of it), its payload, and zeros up to a
//! multiple of 8. It is written behind the published end, which then moves past it with one store: a kill is not a power
//! cut, so what a process has stored before it died is there, in the order of the stores. Checksums are for bugs: a
//! damaged record is an error, unless it is the last, where the tape ends before it.
//!
//! [`Tape::compact`] writes a shorter tape to the other half of the arena while appending goes on, copies what came in
//! meanwhile, and switches with one store.
//!
//! To get a page from the system costs more than to fill it. So those of the half that has become free are kept for the
//! next compaction, up to [`KEPT`]; [`Tape::prepare`] gets others ahead, outside of the lock that appending takes, and
//! [`Tape::trim`] gives back what is kept when nothing happens.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use parking_lot::Mutex;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::arena::{Arena, ArenaError, at};
use super::crash::{self, Stage};

const HEADER: u64 = 32;
/// Pages are got in pieces of that many bytes: the zeroing of one takes some 100 µs.
const CHUNK: u64 = 1 << 20;
/// A tape that is shorter is not compacted, in bytes.
const WORTHWHILE: u64 = 8 << 20;
/// Most bytes of pages that are kept in the half that is not in use: what a compaction of a short tape, and what comes in
/// meanwhile, need.
pub const KEPT: u64 = 32 << 20;
/// Bytes of pages that are got ahead of the end.
const AHEAD: u64 = 4 << 20;
/// The last step of a compaction stops appending; it is taken when no more bytes than that are left to copy.
const LAST_STEP: u64 = 64 << 10;
/// Steps after which it is taken all the same: whoever appends faster than memory is copied has to wait.
const MOST_STEPS: usize = 8;
/// Number of the first record of a tape: the epoch, shifted by that.
const EPOCH_SHIFT: u32 = 40;

/// What can go wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TapeError {
    /// It does not fit. What is not on the tape a successor will not know.
    #[error(
        "the memory for a successor is full: {needed} bytes more than {used} do not fit into {limit}; until it is mounted \
         again steadfs cannot be replaced while it runs (give a larger log_size then)"
    )]
    Full {
        /// Bytes in use.
        used: u64,
        /// Bytes that were to be added.
        needed: u64,
        /// Bytes that there are.
        limit: u64,
    },
    /// The system has no memory to give.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// A record is damaged, and others follow it.
    #[error(
        "the memory of the predecessor is damaged at offset {at} of {end} ({why}): unmount and mount again, and please report it"
    )]
    Damaged {
        /// Where the record begins.
        at: u64,
        /// Where the tape ends.
        end: u64,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it begins, in bytes from the start of the tape.
    pub at: u64,
    /// What it is.
    pub kind: u16,
    /// What it says.
    pub payload: &'a [u8],
    /// XXH3 of that, 64 bits.
    sum: u64,
}

/// The end of a tape that is not as its writer left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torn {
    /// Where the record begins that is missing.
    pub at: u64,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Reads the records of a tape in order.
#[derive(Debug, Clone)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    last: u64,
    number: u64,
    at: u64,
    torn: Option<Torn>,
    failed: bool,
}

impl<'a> Scan<'a> {
    /// A tape of that epoch, whose last record begins at `last`.
    pub(crate) fn new(bytes: &'a [u8], last: u64, epoch: u64) -> Scan<'a> {
        Scan { bytes, last, number: epoch << EPOCH_SHIFT, at: 0, torn: None, failed: false }
    }

    /// What the last record was, if it was damaged; known when everything has been read.
    pub fn torn(&self) -> Option<Torn> {
        self.torn
    }

    fn read(&self) -> Result<(Record<'a>, u64), &'static str> {
        let rest = self.bytes.get(self.at as usize..).unwrap_or_default();
        let header: &[u8; HEADER as usize] = rest.first_chunk().ok_or("it is cut off in its header")?;
        let word = |number: usize| header[8 * number..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        let (length, number, kind, check) = (word(0), word(1), word(2), word(3));
        if number != self.number {
            return Err("its number is not the next one");
        }
        let end = length.checked_add(HEADER).filter(|end| *end <= rest.len() as u64).ok_or("it is cut off")?;
        let payload = &rest[HEADER as usize..end as usize];
        let sum = xxh3_64(payload);
        if check != checked(length, number, kind, sum) {
            return Err("its checksum is another one");
        }
        let kind = u16::try_from(kind).map_err(|_| "its kind is none")?;
        Ok((Record { at: self.at, kind, payload, sum }, end.next_multiple_of(8)))
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Result<Record<'a>, TapeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() as u64 || self.torn.is_some() || self.failed {
            return None;
        }
        match self.read() {
            Ok((record, length)) => {
                self.at += length;
                self.number += 1;
                Some(Ok(record))
            }
            Err(why) if self.at == self.last => {
                self.torn = Some(Torn { at: self.at, why });
                None
            }
            Err(why) => {
                self.failed = true;
                Some(Err(TapeError::Damaged { at: self.at, end: self.bytes.len() as u64, why }))
            }
        }
    }
}

/// A tape with these records, as they lie in memory, and where the last begins.
#[cfg(any(test, fuzzing))]
pub(crate) fn laid_out(records: &[(u16, &[u8])]) -> (Vec<u8>, u64) {
    let (mut bytes, mut last) = (Vec::new(), 0);
    for (number, (kind, payload)) in records.iter().enumerate() {
        last = bytes.len() as u64;
        let (length, number, kind) = (payload.len() as u64, number as u64, u64::from(*kind));
        for word in [length, number, kind, checked(length, number, kind, xxh3_64(payload))] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    (bytes, last)
}

fn checked(length: u64, number: u64, kind: u64, payload: u64) -> u64 {
    let mut words = [0; 32];
    for (place, word) in words.chunks_exact_mut(8).zip([length, number, kind, payload]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    xxh3_64(&words)
}

/// Where the next record goes.
#[derive(Debug, Clone, Copy)]
struct Tail {
    epoch: u64,
    /// Bytes published.
    end: u64,
    /// Records published.
    count: u64,
    /// Bytes whose pages are there.
    ready: u64,
}

impl Tail {
    fn half(&self) -> usize {
        (self.epoch % 2) as usize
    }

    /// Less than half of what is to be ready ahead of the end is.
    fn is_short(&self, limit: u64) -> bool {
        self.ready < limit && self.ready - self.end < AHEAD / 2
    }

    fn append(&mut self, arena: &Arena, kind: u16, parts: &[&[u8]], sum: u64) -> Result<(), TapeError> {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let limit = arena.sizes().tape;
        let needed = length.saturating_add(HEADER + 7) & !7;
        let end = self.end.saturating_add(needed);
        if end > limit {
            return Err(TapeError::Full { used: self.end, needed, limit });
        }
        crash::point(Stage::Before);
        if end > self.ready {
            let ready = end.next_multiple_of(CHUNK).min(limit);
            arena.populate(self.half(), self.ready, ready)?;
            self.ready = ready;
        }
        let number = (self.epoch << EPOCH_SHIFT) + self.count;
        let mut header = [0; HEADER as usize];
        let words = [length, number, u64::from(kind), checked(length, number, u64::from(kind), sum)];
        for (place, word) in header.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let half = self.half();
        let mut to = self.end;
        let mut write = |bytes: &[u8]| {
            // SAFETY: readers read what is published, which this lies behind; `self` is borrowed from the only one who
            // writes to this half.
            unsafe { arena.write(half, to, bytes) };
            to += bytes.len() as u64;
        };
        // First: if a kill comes before the end is moved, nothing begins there, which is as good.
        arena.word(at::LAST[half]).store(self.end, Release);
        write(&header);
        crash::point(Stage::Middle);
        parts.iter().for_each(|part| write(part));
        crash::point(Stage::Late);
        arena.word(at::END[half]).store(end, Release);
        crash::point(Stage::After);
        (self.end, self.count) = (end, self.count + 1);
        Ok(())
    }
}

fn sum_of(parts: &[&[u8]]) -> u64 {
    match parts {
        [one] => xxh3_64(one),
        parts => {
            let mut hasher = Xxh3Default::new();
            parts.iter().for_each(|part| hasher.update(part));
            hasher.digest()
        }
    }
}

/// What a compaction writes to.
#[derive(Debug)]
pub struct Copy<'a> {
    arena: &'a Arena,
    tail: Tail,
}

impl Copy<'_> {
    /// Appends a record.
    pub fn append(&mut self, kind: u16, parts: &[&[u8]]) -> Result<(), TapeError> {
        self.tail.append(self.arena, kind, parts, sum_of(parts))
    }
}

/// What came of a compaction, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Length of the tape before.
    pub before: u64,
    /// Length of the tape after.
    pub after: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Tape {
    arena: Arc<Arena>,
    tail: Mutex<Tail>,
    /// Held by whoever reads what is published, or makes it superfluous. Bytes of the half that is not in use whose pages
    /// are there.
    stable: Mutex<u64>,
    /// Length from which on a compaction pays.
    due: AtomicU64,
    /// Whoever compacts and prepares, to be woken when there is something to do.
    attendant: OnceLock<Thread>,
}

impl Tape {
    /// The one in an arena, which `read` sees every record of. Nothing has been appended to that of a new arena.
    pub(super) fn open<T, E: From<TapeError>>(
        arena: Arc<Arena>,
        read: impl FnOnce(&mut Scan<'_>) -> Result<T, E>,
    ) -> Result<(Tape, T, Option<Torn>), E> {
        let epoch = arena.word(at::EPOCH).load(Acquire);
        let half = (epoch % 2) as usize;
        let (end, last) = (arena.word(at::END[half]).load(Acquire), arena.word(at::LAST[half]).load(Acquire));
        if end > arena.sizes().tape || last > end {
            return Err(TapeError::Damaged { at: last, end, why: "its end lies outside" }.into());
        }
        // SAFETY: nobody else has the tape yet.
        let mut scan = Scan::new(unsafe { arena.bytes(half, end) }, last, epoch);
        let result = read(&mut scan)?;
        for rest in scan.by_ref() {
            rest?;
        }
        let (torn, end, count) = (scan.torn, scan.at, scan.number - (epoch << EPOCH_SHIFT));
        // What was torn is overwritten.
        arena.word(at::END[half]).store(end, Release);
        let tail = Tail { epoch, end, count, ready: end };
        let due = AtomicU64::new(WORTHWHILE);
        // A predecessor may have died in a compaction.
        // SAFETY: nobody else has the tape yet, and this is not the half that is in use.
        unsafe { arena.discard(1 - half, KEPT) }.map_err(TapeError::from)?;
        // How much of the rest is there is not known; to get it again costs little.
        let (tail, stable, attendant) = (Mutex::new(tail), Mutex::new(0), OnceLock::new());
        Ok((Tape { arena, tail, stable, due, attendant }, result, torn))
    }

    /// Appends a record whose payload is these parts, one after the other.
    pub fn append(&self, kind: u16, parts: &[&[u8]]) -> Result<(), TapeError> {
        let (sum, limit) = (sum_of(parts), self.arena.sizes().tape);
        let (before, now) = {
            let mut tail = self.tail.lock();
            let before = *tail;
            tail.append(&self.arena, kind, parts, sum)?;
            (before, *tail)
        };
        let due = self.due.load(Relaxed);
        if (before.end < due && now.end >= due) || (!before.is_short(limit) && now.is_short(limit)) {
            self.wake();
        }
        Ok(())
    }

    fn wake(&self) {
        if let Some(attendant) = self.attendant.get() {
            attendant.unpark();
        }
    }

    /// This thread is unparked from now on when a compaction is due or pages should be got. The first one is.
    pub fn attend(&self) {
        self.attendant.get_or_init(std::thread::current);
    }

    /// Gets pages ahead of the end, so that appending need not. Others may go on appending.
    pub fn prepare(&self) -> Result<(), TapeError> {
        // No compaction may change the half meanwhile.
        let _stable = self.stable.lock();
        let limit = self.arena.sizes().tape;
        let mut tail = *self.tail.lock();
        let goal = (tail.end + AHEAD).next_multiple_of(CHUNK).min(limit);
        while tail.ready < goal {
            let next = (tail.ready + CHUNK).min(goal);
            self.arena.populate(tail.half(), tail.ready, next)?;
            let mut shared = self.tail.lock();
            // Whoever appends may have been faster.
            shared.ready = shared.ready.max(next);
            tail = *shared;
        }
        Ok(())
    }

    /// Gives back what is kept and not used. Appending waits meanwhile: to be called when nobody does.
    pub fn trim(&self) -> Result<(), TapeError> {
        let mut spare = self.stable.lock();
        let mut tail = self.tail.lock();
        let kept = tail.end.next_multiple_of(CHUNK).min(tail.ready);
        if tail.ready > kept {
            tail.ready = kept;
            // SAFETY: what lies behind the end is written to under the lock of the tail only, which is held, and read by
            // nobody.
            unsafe { self.arena.discard(tail.half(), kept) }?;
        }
        if *spare > 0 {
            *spare = 0;
            // SAFETY: that half is written to by compactions only, which hold `stable`, and read by nobody.
            unsafe { self.arena.discard(1 - tail.half(), 0) }?;
        }
        Ok(())
    }

    /// Bytes in use.
    pub fn len(&self) -> u64 {
        self.tail.lock().end
    }

    /// True if nothing has been appended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if a compaction would probably free half of it.
    pub fn is_due(&self) -> bool {
        self.len() >= self.due.load(Relaxed)
    }

    /// Reads what is there now.
    pub fn read<T>(&self, read: impl FnOnce(&mut Scan<'_>) -> T) -> T {
        let _stable = self.stable.lock();
        let tail = *self.tail.lock();
        read(&mut self.scan(&tail))
    }

    /// The caller holds `stable` for as long as it reads.
    fn scan(&self, tail: &Tail) -> Scan<'_> {
        // SAFETY: what is published is not written again, and it is discarded by whoever holds `stable` only.
        let bytes = unsafe { self.arena.bytes(tail.half(), tail.end) };
        Scan::new(bytes, u64::MAX, tail.epoch)
    }

    /// Replaces what is there now by what `rewrite`, which is to mean the same, makes of it. Others may go on appending;
    /// what they append follows. `wanted` is asked first, when no other compaction is under way.
    pub fn compact<E: From<TapeError>>(
        &self,
        wanted: impl FnOnce(&Tape) -> bool,
        rewrite: impl FnOnce(&mut Scan<'_>, &mut Copy<'_>) -> Result<(), E>,
    ) -> Result<Option<Compacted>, E> {
        let mut spare = self.stable.lock();
        if !wanted(self) {
            return Ok(None);
        }
        let mark = *self.tail.lock();
        let fresh = Tail { epoch: mark.epoch + 1, end: 0, count: 0, ready: *spare };
        self.arena.word(at::LAST[fresh.half()]).store(0, Release);
        self.arena.word(at::END[fresh.half()]).store(0, Release);
        let mut copy = Copy { arena: &self.arena, tail: fresh };
        let result = self.rewrite(mark, &mut copy, rewrite);
        let (before, unused) = match &result {
            Ok(before) => (before.end, *before),
            Err(_) => (mark.end, copy.tail),
        };
        *spare = unused.ready.min(KEPT);
        // SAFETY: nobody else may read (`stable` is held), and nobody appends to a half that is not in use.
        let discarded = unsafe { self.arena.discard(unused.half(), KEPT) }.map_err(TapeError::from);
        if result.is_err() {
            // Not again at once.
            self.due.store(mark.end.saturating_add(WORTHWHILE), Relaxed);
        }
        result?;
        discarded?;
        Ok(Some(Compacted { before, after: copy.tail.end }))
    }

    fn rewrite<E: From<TapeError>>(
        &self,
        mark: Tail,
        copy: &mut Copy<'_>,
        rewrite: impl FnOnce(&mut Scan<'_>, &mut Copy<'_>) -> Result<(), E>,
    ) -> Result<Tail, E> {
        let mut scan = self.scan(&mark);
        rewrite(&mut scan, copy)?;
        for rest in scan.by_ref() {
            rest?;
        }
        let due = copy.tail.end.saturating_mul(2).max(WORTHWHILE);
        let mut done = mark;
        for _ in 0..MOST_STEPS {
            let now = *self.tail.lock();
            if now.end - done.end <= LAST_STEP {
                break;
            }
            self.copy(&done, &now, copy)?;
            done = now;
        }
        let mut tail = self.tail.lock();
        self.copy(&done, &tail, copy)?;
        self.arena.word(at::EPOCH).store(copy.tail.epoch, Release);
        let before = *tail;
        *tail = copy.tail;
        self.due.store(due, Relaxed);
        Ok(before)
    }

    /// Copies the records between two states of the tape.
    fn copy(&self, from: &Tail, to: &Tail, copy: &mut Copy<'_>) -> Result<(), TapeError> {
        let mut scan = self.scan(to);
        (scan.at, scan.number) = (from.end, (from.epoch << EPOCH_SHIFT) + from.count);
        scan.try_for_each(|record| {
            let Record { kind, payload, sum, .. } = record?;
            copy.tail.append(copy.arena, kind, &[payload], sum)
        })
    }
}

#[cfg(test)]
#[path = "tests/tape.rs"]
mod tests;
