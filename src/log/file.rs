//! The log of one file: what is unstable, what a commit is under way for, and what the file must look like.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::changes::{Change, Changes};
use super::doubt::{Attempt, Doubt};

/// What is held back fits into one request of sshfs: 64 KiB, which its kernel side cuts at pages.
const HELD: u64 = 64 << 10;
const PAGE: u64 = 4096;

/// Most bytes of the last committed block that are remembered by their checksum.
const BLOCK: usize = 4096;

/// In the place of a generation's number: everything has to be sent again, whichever it is.
const AGAIN: u64 = 0;

/// A change, or the end of a commit, of a generation that something newer has taken the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superseded;

/// The last block that a commit covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Where it is.
    pub offset: u64,
    /// Its length in bytes.
    pub length: usize,
    /// XXH3, 64 bits: the same in every version, since a successor compares it.
    checksum: u64,
}

impl Block {
    fn last_of(changes: &Changes) -> Option<Block> {
        let (offset, data) = changes.extents().next_back()?;
        let tail = &data[data.len().saturating_sub(BLOCK)..];
        Some(Block { offset: offset + (data.len() - tail.len()) as u64, length: tail.len(), checksum: xxh3_64(tail) })
    }

    /// True if this is what it held.
    pub fn matches(&self, data: &[u8]) -> bool {
        data.len() == self.length && xxh3_64(data) == self.checksum
    }
}

/// A commit, or a replay, that is under way.
#[derive(Debug, Clone)]
pub struct Ticket {
    serial: u64,
    /// What it is for.
    pub changes: Arc<Changes>,
}

impl Ticket {
    /// Its number; see [`FileLog::ticket`].
    pub fn serial(&self) -> u64 {
        self.serial
    }
}

/// What was acknowledged and has not been sent: from one offset to the end of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Where it begins.
    pub from: u64,
    /// Where it ends.
    pub to: u64,
    /// It was being handed over when that was last heard of: any part of it may have been done.
    pub under_way: bool,
}

/// What a commit finds when it begins.
#[derive(Debug, Clone)]
pub enum Begin {
    /// Everything is committed.
    Clean,
    /// Another one is under way.
    Busy,
    /// Something is held back, and has to be handed over first.
    Held,
    /// It covers this, which has been sent to the live generation.
    Commit(Ticket),
}

/// Why a file is not the one that was written to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Its size was never that of the file.
    #[error("its size is {found}, and was {least} to {most} bytes")]
    Size {
        /// What it is.
        found: u64,
        /// What it was at least.
        least: u64,
        /// What it was at most.
        most: u64,
    },
    /// The last committed block holds something else.
    #[error("its {length} bytes at {offset} are not those that were committed")]
    Block {
        /// Where.
        offset: u64,
        /// How many.
        length: usize,
    },
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileLog {
    unstable: Changes,
    /// Part of `unstable`, at its end.
    held: Option<Held>,
    #[serde(with = "shared")]
    committing: Option<Arc<Changes>>,
    /// Numbers commits and replays, so that the end of one that was overtaken does not count.
    serial: u64,
    /// The generation that everything in here but what is held was sent to, or [`AGAIN`].
    sent_to: u64,
    /// The size that the last commit covered.
    size: Option<u64>,
    block: Option<Block>,
    doubt: Doubt,
}

/// For `#[serde(with)]`: what is shared is written out, and shared by nobody when it is read.
mod shared {
    use serde::{Deserializer, Serializer};

    use super::{Arc, Changes, Deserialize, Serialize};

    pub fn serialize<S: Serializer>(changes: &Option<Arc<Changes>>, serializer: S) -> Result<S::Ok, S::Error> {
        changes.as_deref().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<Changes>>, D::Error> {
        Ok(Option::<Changes>::deserialize(deserializer)?.map(Arc::new))
    }
}

impl FileLog {
    /// True if everything is committed.
    pub fn is_clean(&self) -> bool {
        self.unstable.is_empty() && self.committing.is_none()
    }

    /// What keeping it costs, in bytes.
    pub fn cost(&self) -> u64 {
        self.unstable.cost() + self.committing.as_ref().map_or(0, |changes| changes.cost())
    }

    /// True if everything in it has to be sent before that generation may be used.
    pub fn needs_replay(&self, generation: u64) -> bool {
        !self.is_clean() && self.sent_to != generation
    }

    /// True if the file's size has to be looked at before the next change, for [`FileLog::found`].
    pub fn wants_size(&self) -> bool {
        (self.size.is_none() && self.is_clean()) || !self.doubt.is_none()
    }

    /// The file has that size in that generation, and nothing is under way: what was in doubt is done or not done. What is
    /// done is not committed, so it is kept as if it had been acknowledged.
    pub fn found(&mut self, generation: u64, size: u64) -> Result<(), Superseded> {
        match self.size() {
            Some(known) if known != size => self.record(generation, Change::SetSize(size))?,
            _ => self.learn_size(size),
        }
        self.end_doubt();
        Ok(())
    }

    /// As [`FileLog::found`], after an fsync that covers it.
    pub fn found_committed(&mut self, size: u64) {
        if self.is_clean() {
            self.size = Some(size);
        }
        self.end_doubt();
    }

    fn end_doubt(&mut self) {
        self.block = self.block.filter(|block| !self.doubt.touches(block.offset, block.length as u64));
        self.doubt.end();
    }

    /// A change is about to be handed to the live generation; see [`super::doubt`]. [`FileLog::record`] says that it was
    /// done.
    pub fn attempt(&mut self, attempt: Attempt) {
        self.doubt.begin(attempt);
    }

    /// True if a file of that size may be what a replay of everything leaves.
    pub fn may_end_with(&self, found: u64) -> bool {
        self.size().is_none_or(|size| {
            let (least, most) = self.doubt.sizes(size, size);
            (least..=most).contains(&found)
        })
    }

    /// The file had that size when nothing was unstable. What is known already is newer.
    pub fn learn_size(&mut self, size: u64) {
        if self.is_clean() && self.size.is_none() {
            self.size = Some(size);
        }
    }

    /// The size of the file with everything in it, if that is known.
    pub fn size(&self) -> Option<u64> {
        let committed = match &self.committing {
            Some(changes) => changes.size().or(self.size.map(|size| changes.size_after(size))),
            None => self.size,
        };
        self.unstable.size().or(committed.map(|size| self.unstable.size_after(size)))
    }

    /// The size of the file with everything in it that was sent, if that is known.
    pub fn sent_size(&self) -> Option<u64> {
        self.held.map(|held| held.from).or(self.size())
    }

    /// The size of the file with everything in it, if that is known and the backing may show another one.
    pub fn unsent_size(&self) -> Option<u64> {
        let unsent = self.held.is_some() || (!self.is_clean() && self.sent_to == AGAIN);
        self.size().filter(|_| unsent && self.doubt.is_none())
    }

    /// Takes a write in without its being sent, if it may be: it begins where the file ends, the file is in no doubt, the
    /// generation has seen everything else, and it makes one request with what is held already. It is unstable from then
    /// on like any other change. Any other change has to be handed over after what is held.
    pub fn hold_back(&mut self, generation: u64, offset: u64, data: &mut Vec<u8>) -> bool {
        if !self.takes(generation, offset, data.len()) {
            return false;
        }
        let (from, to) = (self.held.map_or(offset, |held| held.from), offset + data.len() as u64);
        self.sent_to = generation;
        self.unstable.push(Change::Write(offset, data));
        self.held = Some(Held { from, to, under_way: false });
        true
    }

    /// True if [`FileLog::hold_back`] would take a write of that length in.
    pub fn takes(&self, generation: u64, offset: u64, length: usize) -> bool {
        let seen = if self.is_clean() { generation >= self.sent_to } else { generation == self.sent_to };
        if !seen || self.size() != Some(offset) || self.wants_size() || self.held.is_some_and(|held| held.under_way) {
            return false;
        }
        // What is held ends where the file does, so it begins no later than this.
        let (length, from) = (length as u64, self.held.map_or(offset, |held| held.from));
        let fits = offset.checked_add(length).is_some_and(|end| end - from / PAGE * PAGE <= HELD);
        fits && length > 0 && length < HELD
    }

    /// What is held back.
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// What is held back is about to be handed over: its offset and its data.
    pub fn hand_over(&mut self) -> Option<(u64, Vec<u8>)> {
        let held = self.held.as_mut()?;
        held.under_way = true;
        Some((held.from, self.unstable.copy(held.from, held.to)))
    }

    /// What is held back goes to that offset instead, where the file ends by now: somebody else has written behind what is
    /// known, or has cut it. Nothing of it may have been sent.
    pub fn displace(&mut self, to: u64) {
        let Some(held) = self.held.filter(|held| !held.under_way) else { return };
        let mut data = self.unstable.copy(held.from, held.to);
        let length = data.len() as u64;
        if to < held.from {
            self.unstable.push(Change::SetSize(to));
        } else {
            self.unstable.forget_from(held.from);
        }
        self.unstable.push(Change::Write(to, &mut data));
        self.held = Some(Held { from: to, to: to + length, under_way: false });
    }

    /// True if that generation was sent everything in here but what is held, and no commit of it is under way: then what it
    /// refuses of that is not told to somebody else.
    pub fn is_sent(&self, generation: u64) -> bool {
        !self.needs_replay(generation) && self.committing.is_none()
    }

    /// That generation has seen it up to `end`.
    pub fn handed_over(&mut self, generation: u64, end: u64) -> Result<(), Superseded> {
        let Some(held) = self.held.filter(|_| self.sent_to == generation) else { return Err(Superseded) };
        self.held = (end < held.to).then_some(Held { from: end.max(held.from), to: held.to, under_way: false });
        Ok(())
    }

    /// A change was handed to that generation.
    pub fn record(&mut self, generation: u64, change: Change<'_>) -> Result<(), Superseded> {
        if self.is_clean() {
            if generation < self.sent_to {
                return Err(Superseded);
            }
            self.sent_to = generation;
        } else if self.sent_to != generation && self.sent_to != AGAIN {
            return Err(Superseded);
        }
        self.doubt.done(match &change {
            Change::Write(offset, data) => Attempt::Write(*offset, *offset + data.len() as u64),
            Change::SetSize(size) => Attempt::SetSize(*size),
        });
        self.unstable.push(change);
        Ok(())
    }

    /// A commit begins in that generation.
    pub fn begin(&mut self) -> Begin {
        if self.committing.is_some() {
            return Begin::Busy;
        }
        if self.held.is_some() {
            return Begin::Held;
        }
        if self.unstable.is_empty() {
            return Begin::Clean;
        }
        Begin::Commit(self.take())
    }

    /// True if [`FileLog::settle_truncation`] wants to know the size before a replay.
    pub fn is_truncation_in_doubt(&self) -> bool {
        self.doubt.truncation().is_some()
    }

    /// The file has that size in a new generation and nothing has been sent again yet. A truncation in doubt that alone
    /// explains the size was done, after everything that is kept: sending that again without it would fill with zeros
    /// what it cut off.
    pub fn settle_truncation(&mut self, found: u64) {
        let done = self.doubt.truncation() == Some(found)
            && self.sizes_without_doubt().is_some_and(|(least, _)| found < least);
        if done {
            self.put_back();
            self.unstable.push(Change::SetSize(found));
            self.end_doubt();
        }
    }

    /// A replay begins: whatever was under way does not count any more.
    pub fn begin_replay(&mut self) -> Ticket {
        self.put_back();
        self.take()
    }

    fn take(&mut self) -> Ticket {
        // A commit begins when nothing is; a replay sends everything.
        self.held = None;
        self.serial += 1;
        let changes = Arc::new(std::mem::take(&mut self.unstable));
        self.committing = Some(Arc::clone(&changes));
        Ticket { serial: self.serial, changes }
    }

    /// The ticket of that number as it was given out, for whoever has only the number. If another one is under way by now,
    /// or none, it is as good as one that was overtaken.
    pub fn ticket(&self, serial: u64) -> Ticket {
        Ticket { serial, changes: self.committing.clone().unwrap_or_default() }
    }

    /// An fsync that covers the ticket has returned 0, in a generation that all of it had been sent to.
    pub fn committed(&mut self, ticket: &Ticket, generation: u64) -> Result<(), Superseded> {
        if ticket.serial != self.serial || self.committing.take().is_none() {
            return Err(Superseded);
        }
        let changes = &ticket.changes;
        self.size = changes.size().or(self.size.map(|size| changes.size_after(size)));
        let kept = self.block.filter(|block| !changes.touch(block.offset, block.length as u64));
        self.block = Block::last_of(changes).or(kept);
        self.sent_to = generation;
        Ok(())
    }

    /// It has not. `again` says that everything has to be sent again before the next commit.
    pub fn failed(&mut self, ticket: &Ticket, again: bool) {
        if ticket.serial == self.serial && self.committing.is_some() {
            self.put_back();
            if again {
                self.send_again();
            }
        }
    }

    /// Everything has to be sent again before the next commit.
    pub fn send_again(&mut self) {
        if !self.is_clean() {
            self.sent_to = AGAIN;
        }
    }

    fn put_back(&mut self) {
        if let Some(changes) = self.committing.take() {
            let later = std::mem::replace(&mut self.unstable, Arc::unwrap_or_clone(changes));
            self.unstable.extend(later);
        }
    }

    /// Everything that is not committed.
    pub fn whole(&self) -> Changes {
        let mut whole = self.committing.as_deref().cloned().unwrap_or_default();
        whole.extend(self.unstable.clone());
        whole
    }

    /// Gives everything up, and returns it.
    pub fn abandon(&mut self) -> Changes {
        self.put_back();
        self.serial += 1;
        self.held = None;
        std::mem::take(&mut self.unstable)
    }

    /// The committed block whose content is certain, whatever of the log has reached the file.
    pub fn certain_block(&self) -> Option<Block> {
        let all = self.committing.iter().map(Arc::as_ref).chain([&self.unstable]);
        let untouched = |block: &Block| all.clone().all(|changes| !changes.touch(block.offset, block.length as u64));
        let certain = |block: &Block| !self.doubt.touches(block.offset, block.length as u64);
        self.block.filter(untouched).filter(certain)
    }

    /// Of a log of appends: what has to lie right before the end of a file of that size, and where, if it is certain. Zeros may
    /// lie there instead, where a server has crashed.
    pub fn appended_before(&self, found: u64) -> Option<(u64, Vec<u8>)> {
        let committed = self.size.filter(|_| self.doubt.is_none())?;
        let all = self.committing.iter().map(Arc::as_ref).chain([&self.unstable]);
        if all.clone().any(|changes| changes.cut().is_some()) {
            return None;
        }
        let holds = |(start, data): &(u64, &[u8])| *start < found && found - start <= data.len() as u64;
        let (start, data) = all.filter_map(|changes| changes.extents().find(holds)).next_back()?;
        let from = start.max(found.saturating_sub(BLOCK as u64)).max(committed);
        // Lengths of vectors fit.
        let part = |at: u64| (at - start) as usize;
        (from < found).then(|| (from, data[part(from)..part(found)].to_vec()))
    }

    /// Smallest and largest size that the file had on the way from its last commit, by what was acknowledged.
    fn sizes_without_doubt(&self) -> Option<(u64, u64)> {
        let before = self.size?;
        let (mut least, mut most, mut size) = (before, before, before);
        for changes in self.committing.iter().map(Arc::as_ref).chain([&self.unstable]) {
            let (low, high) = changes.sizes_on_the_way(size);
            (least, most) = (least.min(low), most.max(high));
            size = changes.size_after(size);
        }
        Some((least, most))
    }

    /// Fails if a file of that size cannot be the one that was written to. Of a file that nothing is unstable of, somebody
    /// else may have made more.
    pub fn check_size(&self, found: u64) -> Result<(), Mismatch> {
        let Some((least, most)) = self.sizes_without_doubt() else { return Ok(()) };
        let (least, mut most) = self.doubt.sizes(least, most);
        if self.is_clean() {
            most = u64::MAX;
        }
        if found < least || found > most { Err(Mismatch::Size { found, least, most }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(log: &mut FileLog, generation: u64, offset: u64, data: &[u8]) -> Result<(), Superseded> {
        log.record(generation, Change::Write(offset, &mut data.to_vec()))
    }

    fn ticket(begin: Begin) -> Ticket {
        match begin {
            Begin::Commit(ticket) => ticket,
            other => panic!("no commit: {other:?}"),
        }
    }

    #[test]
    fn what_comes_in_during_a_commit_stays_unstable() {
        let mut log = FileLog::default();
        write(&mut log, 1, 0, b"one").expect("live");
        let first = ticket(log.begin());
        write(&mut log, 1, 3, b"two").expect("live");
        assert!(matches!(log.begin(), Begin::Busy));
        log.committed(&first, 1).expect("live");
        let second = ticket(log.begin());
        assert_eq!(second.changes.extents().collect::<Vec<_>>(), [(3, &b"two"[..])]);
        log.committed(&second, 1).expect("live");
        assert!(log.is_clean() && matches!(log.begin(), Begin::Clean));
    }

    #[test]
    fn a_commit_that_failed_leaves_everything_as_it_was() {
        let mut log = FileLog::default();
        write(&mut log, 1, 0, b"one").expect("live");
        let first = ticket(log.begin());
        write(&mut log, 1, 2, b"two").expect("live");
        log.failed(&first, true);
        assert!(log.needs_replay(1), "an fsync that failed says nothing of what it covered");
        let all = log.begin_replay();
        assert_eq!(all.changes.extents().collect::<Vec<_>>(), [(0, &b"ontwo"[..])]);
        log.committed(&all, 1).expect("live");
        assert!(log.is_clean());
    }

    #[test]
    fn a_straggler_of_a_dead_generation_neither_records_nor_commits() {
        let mut log = FileLog::default();
        write(&mut log, 1, 0, b"one").expect("live");
        let old = ticket(log.begin());
        assert!(log.needs_replay(2));
        let replay = log.begin_replay();
        assert_eq!(log.committed(&old, 1), Err(Superseded));
        log.failed(&old, true);
        log.committed(&replay, 2).expect("live");
        assert_eq!(write(&mut log, 1, 0, b"old"), Err(Superseded));
        assert!(log.is_clean());
        write(&mut log, 2, 0, b"new").expect("live");
        assert_eq!(write(&mut log, 3, 0, b"not yet"), Err(Superseded), "it has to be replayed first");
    }

    #[test]
    fn the_size_lies_within_what_was_written() {
        let mut log = FileLog::default();
        assert_eq!(log.check_size(7), Ok(()), "nothing is known");
        log.learn_size(100);
        write(&mut log, 1, 100, b"more").expect("live");
        assert_eq!(log.size(), Some(104));
        for (found, good) in [(99, false), (100, true), (104, true), (105, false)] {
            assert_eq!(log.check_size(found).is_ok(), good, "{found}");
        }
        let commit = ticket(log.begin());
        log.record(1, Change::SetSize(10)).expect("live");
        assert_eq!((log.check_size(9).is_ok(), log.check_size(10).is_ok()), (false, true));
        log.committed(&commit, 1).expect("live");
        let commit = ticket(log.begin());
        log.committed(&commit, 1).expect("live");
        assert_eq!((log.size(), log.check_size(9).is_ok(), log.check_size(11).is_ok()), (Some(10), false, true));
    }

    #[test]
    fn the_last_committed_block_is_known_as_long_as_nothing_unstable_touches_it() {
        let mut log = FileLog::default();
        log.learn_size(0);
        write(&mut log, 1, 0, &[7; 5000]).expect("live");
        assert_eq!(log.certain_block(), None);
        let commit = ticket(log.begin());
        log.committed(&commit, 1).expect("live");
        let block = log.certain_block().expect("committed");
        assert_eq!((block.offset, block.length), (904, 4096));
        assert!(block.matches(&[7; 4096]) && !block.matches(&[8; 4096]) && !block.matches(&[7; 4095]));
        write(&mut log, 1, 5000, b"x").expect("live");
        assert!(log.certain_block().is_some());
        log.record(1, Change::SetSize(4999)).expect("live");
        assert_eq!(log.certain_block(), None);
    }

    #[test]
    fn what_is_given_up_is_returned_whole() {
        let mut log = FileLog::default();
        write(&mut log, 1, 0, b"one").expect("live");
        let commit = ticket(log.begin());
        write(&mut log, 1, 3, b"two").expect("live");
        let all = log.abandon();
        assert_eq!(all.extents().map(|(_, data)| data.to_vec()).collect::<Vec<_>>().concat(), b"onetwo");
        assert_eq!(log.committed(&commit, 1), Err(Superseded));
        assert!(log.is_clean() && log.cost() == 0);
    }

    #[test]
    fn a_change_that_was_never_acknowledged_may_be_there_or_not() {
        let mut log = FileLog::default();
        log.learn_size(0);
        write(&mut log, 1, 0, &[7; 100]).expect("live");
        let commit = ticket(log.begin());
        log.committed(&commit, 1).expect("live");
        log.attempt(Attempt::Write(50, 150));
        assert_eq!(log.certain_block(), None);
        assert_eq!((log.check_size(99).is_ok(), log.check_size(150).is_ok()), (false, true));
        log.attempt(Attempt::SetSize(10));
        assert!(log.wants_size() && log.check_size(10).is_ok() && log.check_size(9).is_err());
        log.found(2, 10).expect("live");
        assert_eq!((log.size(), log.is_clean()), (Some(10), false), "it is done and not committed");
        assert!(!log.wants_size() && log.check_size(100).is_ok(), "so a server that crashes may forget it");
        let replay = log.begin_replay();
        assert!(log.may_end_with(10) && !log.may_end_with(11));
        log.committed(&replay, 3).expect("live");
        log.found_committed(10);
        assert_eq!((log.size(), log.is_clean(), log.check_size(9).is_err()), (Some(10), true, true));
    }

    #[test]
    fn what_was_acknowledged_is_not_in_doubt() {
        let mut log = FileLog::default();
        log.learn_size(0);
        log.attempt(Attempt::Write(0, 4));
        write(&mut log, 1, 0, b"four").expect("live");
        assert!(!log.wants_size());
        log.attempt(Attempt::Write(4, 8));
        write(&mut log, 1, 4, b"tw").expect("live");
        assert!(log.wants_size(), "nobody knows of the rest");
    }

    #[test]
    fn a_truncation_in_doubt_that_was_done_is_part_of_the_replay() {
        let before = || {
            let mut log = FileLog::default();
            log.learn_size(1000);
            write(&mut log, 1, 1000, &[7; 1000]).expect("live");
            log.attempt(Attempt::SetSize(500));
            log
        };
        let mut done = before();
        done.settle_truncation(500);
        let changes = done.begin_replay().changes;
        assert_eq!((changes.cut(), changes.size(), changes.bytes()), (Some(500), Some(500), 0));
        assert!(done.may_end_with(500) && !done.may_end_with(2000));
        for found in [1000, 1500, 2000] {
            let mut not_done = before();
            not_done.settle_truncation(found);
            let changes = not_done.begin_replay().changes;
            assert_eq!((changes.cut(), changes.bytes()), (None, 1000), "{found}");
        }
    }

    #[test]
    fn a_truncation_that_a_size_does_not_prove_is_left_in_doubt() {
        let mut log = FileLog::default();
        log.learn_size(1000);
        log.record(1, Change::SetSize(0)).expect("live");
        write(&mut log, 1, 0, &[7; 100]).expect("live");
        log.attempt(Attempt::SetSize(0));
        log.settle_truncation(0);
        assert_eq!(log.begin_replay().changes.bytes(), 100, "everything is in the log: it is complete without it");
    }

    fn hold(log: &mut FileLog, generation: u64, offset: u64, data: &[u8]) -> bool {
        log.hold_back(generation, offset, &mut data.to_vec())
    }

    /// A log of a file of that size, of which nothing is unstable.
    fn known(size: u64) -> FileLog {
        let mut log = FileLog::default();
        log.learn_size(size);
        log
    }

    #[test]
    fn appends_are_held_back_until_they_make_one_request() {
        let mut log = known(100);
        assert!(hold(&mut log, 1, 100, b"one") && hold(&mut log, 1, 103, b"two"));
        assert_eq!(log.held(), Some(Held { from: 100, to: 106, under_way: false }));
        assert_eq!((log.size(), log.sent_size(), log.unsent_size()), (Some(106), Some(100), Some(106)));
        assert!(log.check_size(100).is_ok() && log.check_size(106).is_ok() && log.check_size(107).is_err());
        assert!(matches!(log.begin(), Begin::Held), "an fsync would not cover it");
        assert!(!hold(&mut log, 1, 106, &[7; HELD as usize]), "large ones are sent at once");
        let most = HELD - 106;
        assert!(
            !hold(&mut log, 1, 106, &vec![7; most as usize + 1]) && hold(&mut log, 1, 106, &vec![7; most as usize])
        );
        let (from, data) = log.hand_over().expect("it is held");
        assert_eq!((from, data.len() as u64, &data[..6]), (100, HELD - 100, &b"onetwo"[..]));
        assert!(log.held().is_some_and(|held| held.under_way));
        assert_eq!(log.handed_over(1, 104), Ok(()), "a short write");
        assert_eq!(log.held(), Some(Held { from: 104, to: HELD, under_way: false }));
        assert_eq!(log.hand_over().map(|(from, data)| (from, data[0])), Some((104, b'w')));
        assert_eq!(log.handed_over(1, HELD), Ok(()));
        assert_eq!((log.held(), log.unsent_size(), log.is_clean()), (None, None, false));
        let commit = ticket(log.begin());
        assert_eq!(log.committed(&commit, 1), Ok(()));
        assert!(log.is_clean());
    }

    #[test]
    fn only_what_is_certain_to_be_an_append_is_held_back() {
        assert!(!hold(&mut FileLog::default(), 1, 0, b"x"), "of an unknown size");
        assert!(!hold(&mut known(10), 1, 9, b"x") && !hold(&mut known(10), 1, 11, b"x"));
        assert!(!hold(&mut known(10), 1, 10, b""));
        let mut long = known(10_000);
        assert!(hold(&mut long, 1, 10_000, b"x") && !hold(&mut long, 1, 22, b"far before what is held"));
        let mut doubtful = known(10);
        doubtful.attempt(Attempt::Write(10, 20));
        assert!(!hold(&mut doubtful, 1, 10, b"x"));
        let mut refused = known(10);
        write(&mut refused, 1, 10, b"x").expect("live");
        refused.send_again();
        assert!(!hold(&mut refused, 1, 11, b"y"), "the backing has not seen what was before it");
        let mut dead = known(10);
        assert!(hold(&mut dead, 1, 10, b"x") && !hold(&mut dead, 2, 11, b"y"));
        assert!(!hold(&mut known(u64::MAX), 1, u64::MAX, b"x"));
    }

    #[test]
    fn what_is_held_back_goes_where_the_file_ends_by_then() {
        let mut log = known(4);
        write(&mut log, 1, 4, b"sent").expect("live");
        assert!(hold(&mut log, 1, 8, b"held"));
        log.displace(20);
        assert_eq!(log.held(), Some(Held { from: 20, to: 24, under_way: false }));
        assert_eq!((log.size(), log.sent_size()), (Some(24), Some(20)));
        assert!(hold(&mut log, 1, 24, b"on"));
        assert_eq!(log.whole().extents().collect::<Vec<_>>(), [(4, &b"sent"[..]), (20, b"heldon")]);
        assert_eq!((log.whole().cut(), log.is_sent(1), log.is_sent(2)), (None, true, false));
        assert!(log.check_size(4).is_ok() && log.check_size(26).is_ok() && log.check_size(27).is_err());
        // Somebody has cut it.
        log.displace(2);
        assert_eq!(log.whole().extents().collect::<Vec<_>>(), [(2, &b"heldon"[..])]);
        assert_eq!((log.whole().cut(), log.size(), log.held().map(|held| held.from)), (Some(2), Some(8), Some(2)));
        assert_eq!(log.hand_over(), Some((2, b"heldon".to_vec())));
        let under_way = log.clone();
        log.displace(50);
        assert_eq!(log, under_way, "it may be there already");
        assert_eq!(log.handed_over(1, 8), Ok(()));
        let commit = ticket(log.begin());
        assert!(!log.is_sent(1));
        log.committed(&commit, 1).expect("live");
        assert_eq!((log.size(), log.is_sent(1)), (Some(8), true));
    }

    #[test]
    fn what_lies_before_the_end_is_known_of_appends() {
        let mut log = known(3);
        assert_eq!(log.appended_before(3), None, "nothing is uncommitted");
        write(&mut log, 1, 3, b"two").expect("live");
        let commit = ticket(log.begin());
        write(&mut log, 1, 10, b"three").expect("live");
        for (found, expected) in
            [(3, None), (4, Some((3, "t"))), (6, Some((3, "two"))), (8, None), (12, Some((10, "th"))), (16, None)]
        {
            let expected = expected.map(|(from, text)| (from, text.as_bytes().to_vec()));
            assert_eq!(log.appended_before(found), expected, "{found}");
        }
        log.attempt(Attempt::Write(15, 16));
        assert_eq!(log.appended_before(6), None, "who knows");
        log.record(1, Change::Write(15, &mut b"!".to_vec())).expect("live");
        log.committed(&commit, 1).expect("live");
        assert_eq!(log.appended_before(6), None, "it is committed");
        log.record(1, Change::SetSize(12)).expect("live");
        assert_eq!(log.appended_before(12), None);
    }

    #[test]
    fn a_replay_sends_what_was_held_back() {
        let mut log = known(0);
        write(&mut log, 1, 0, b"sent").expect("live");
        assert!(hold(&mut log, 1, 4, b"held"));
        assert!(log.needs_replay(2) && log.hand_over().is_some(), "and that generation dies in it");
        let all = log.begin_replay();
        assert_eq!(all.changes.extents().collect::<Vec<_>>(), [(0, &b"sentheld"[..])]);
        assert_eq!((log.held(), log.handed_over(1, 8)), (None, Err(Superseded)));
        log.failed(&all, true);
        assert_eq!((log.held(), log.unsent_size()), (None, Some(8)), "everything is sent again");
        let all = log.begin_replay();
        assert_eq!(log.committed(&all, 2), Ok(()));
        assert!(log.is_clean() && hold(&mut log, 2, 8, b"on"));
        assert_eq!(log.abandon().bytes(), 2);
        assert_eq!(log.held(), None);
    }

    #[test]
    fn a_commit_that_fails_meanwhile_has_what_is_held_sent_again_too() {
        let mut log = known(0);
        write(&mut log, 1, 0, b"sent").expect("live");
        let commit = ticket(log.begin());
        assert!(hold(&mut log, 1, 4, b"held") && log.hand_over().is_some());
        log.failed(&commit, true);
        assert_eq!(log.handed_over(1, 8), Err(Superseded));
        assert!(log.needs_replay(1));
        assert_eq!(log.begin_replay().changes.extents().collect::<Vec<_>>(), [(0, &b"sentheld"[..])]);
    }

    /// A step of a history: an append, a write anywhere, a truncation, a hand-over, a commit, the death of a generation.
    #[derive(Debug, Clone)]
    enum Step {
        Append(Vec<u8>),
        Write(u64, Vec<u8>),
        SetSize(u64),
        HandOver,
        Commit,
        Die(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let data = || proptest::collection::vec(any::<u8>(), 1..300);
        prop_oneof![
            8 => data().prop_map(Step::Append),
            1 => (0_u64..9000, data()).prop_map(|(offset, data)| Step::Write(offset, data)),
            1 => (0_u64..9000).prop_map(Step::SetSize),
            1 => Just(Step::HandOver),
            2 => Just(Step::Commit),
            1 => any::<u8>().prop_map(Step::Die),
        ]
    }

    /// A backing that forgets what was not committed, and whoever uses a log as the overlay does.
    #[derive(Default)]
    struct User {
        log: FileLog,
        generation: u64,
        file: Vec<u8>,
        disk: Vec<u8>,
        writes: usize,
    }

    impl User {
        fn put(&mut self, offset: u64, data: &[u8]) {
            let (start, end) = (offset as usize, offset as usize + data.len());
            self.file.resize(self.file.len().max(end), 0);
            self.file[start..end].copy_from_slice(data);
            self.writes += 1;
        }

        fn hand_over(&mut self) {
            if let Some((from, data)) = self.log.hand_over() {
                self.put(from, &data);
                self.log.handed_over(self.generation, from + data.len() as u64).expect("live");
            }
        }

        fn write(&mut self, gather: bool, offset: u64, data: &[u8]) {
            if gather && hold(&mut self.log, self.generation, offset, data) {
                return;
            }
            self.hand_over();
            self.put(offset, data);
            write(&mut self.log, self.generation, offset, data).expect("live");
        }

        fn commit(&mut self) {
            self.hand_over();
            if let Begin::Commit(ticket) = self.log.begin() {
                self.disk = self.file.clone();
                self.log.committed(&ticket, self.generation).expect("live");
            }
        }

        /// It dies, having been handed some part of what is held, and the server forgets or not.
        fn die(&mut self, dice: u8) {
            if dice & 1 > 0
                && let Some((from, data)) = self.log.hand_over()
            {
                self.put(from, &data[..data.len() * usize::from(dice) / 255]);
            }
            if dice & 2 > 0 {
                self.file = self.disk.clone();
            }
            self.generation += 1;
            self.log.check_size(self.file.len() as u64).expect("it is the same file");
            if self.log.needs_replay(self.generation) {
                let ticket = self.log.begin_replay();
                self.file.resize(ticket.changes.cut().map_or(self.file.len(), |cut| cut as usize), 0);
                for (offset, data) in ticket.changes.extents() {
                    self.put(offset, data);
                }
                self.file.resize(ticket.changes.size().map_or(self.file.len(), |size| size as usize), 0);
                self.disk = self.file.clone();
                self.log.committed(&ticket, self.generation).expect("live");
            }
        }

        fn step(&mut self, gather: bool, step: &Step) {
            match step {
                Step::Append(data) => {
                    let size = self.log.size().expect("known");
                    self.write(gather, size, data);
                }
                Step::Write(offset, data) => self.write(gather, *offset, data),
                Step::SetSize(size) => {
                    self.hand_over();
                    self.file.resize(*size as usize, 0);
                    self.log.record(self.generation, Change::SetSize(*size)).expect("live");
                }
                Step::HandOver => self.hand_over(),
                Step::Commit => self.commit(),
                Step::Die(dice) => self.die(*dice),
            }
        }
    }

    proptest! {
        #[test]
        fn a_gathered_history_ends_in_the_same_file(steps in proptest::collection::vec(step(), 0..60)) {
            let new = || User { log: known(0), generation: 1, ..User::default() };
            let (mut gathered, mut plain) = (new(), new());
            for step in &steps {
                gathered.step(true, step);
                plain.step(false, step);
                prop_assert_eq!(gathered.log.size(), plain.log.size());
                prop_assert_eq!(gathered.log.sent_size(), Some(gathered.file.len() as u64));
            }
            for user in [&mut gathered, &mut plain] {
                user.commit();
                prop_assert!(user.log.is_clean());
                prop_assert_eq!(&user.file, &user.disk);
            }
            prop_assert_eq!(gathered.file, plain.file);
        }
    }
}
