//! Which changes of a handle are on the backing but not committed by an fsync.
//!
//! As long as steadfs keeps no log of writes it cannot send them again in the next generation. But each was acknowledged by
//! the server, so as a rule all of it is there: their checksums are kept, and an fsync or close after a repair reads them
//! back, commits them and returns 0. It returns EIO only if something is missing or cannot be told.

use std::hash::{DefaultHasher, Hasher};

use crate::backing::{File, OpResult};

/// Uncommitted bytes and extents after which a commit is asked for: what is read back after a repair has to fit the
/// deadline of an fsync.
const MOST_BYTES: u64 = 8 << 20;
const MOST_EXTENTS: usize = 4096;

/// A change that the backing has acknowledged.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// That data was written there.
    Data(u64, &'a [u8]),
    /// The file got that size.
    Size(u64),
    /// Something that cannot be checked by reading.
    Opaque,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    offset: u64,
    length: u64,
    checksum: u64,
}

impl Extent {
    fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unsynced {
    /// Generation of the oldest uncommitted change.
    since: Option<u64>,
    changes: u64,
    extents: Vec<Extent>,
    bytes: u64,
    /// Furthest end of an extent.
    furthest: u64,
    /// Size that a truncation and what was written after it have given the file.
    size: Option<u64>,
    opaque: bool,
    commit_asked: bool,
}

/// What an fsync in some generation can promise. Tickets are for [`Unsynced::synced`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Nothing was changed since the last one.
    Nothing,
    /// It has to reach the backing.
    Sync(u64),
    /// Changes of an earlier generation have to be found again first.
    Verify(u64),
    /// Changes of an earlier generation are lost, or may be.
    Lost,
}

fn checksum(data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

impl Unsynced {
    /// A change was acknowledged in that generation.
    pub fn changed(&mut self, generation: u64, change: Change<'_>) {
        self.since.get_or_insert(generation);
        self.changes += 1;
        match change {
            Change::Data(offset, data) => {
                self.wrote(Extent { offset, length: data.len() as u64, checksum: checksum(data) })
            }
            Change::Size(size) => {
                // What is cut off need not be found again; what is cut in two cannot be.
                self.opaque |= self.extents.iter().any(|extent| extent.offset < size && size < extent.end());
                self.extents.retain(|extent| extent.end() <= size);
                self.size = Some(size);
            }
            Change::Opaque => self.opaque = true,
        }
    }

    fn wrote(&mut self, new: Extent) {
        // Records are mostly appended, and mostly rewritten whole.
        if new.offset < self.furthest {
            let covered = |old: &Extent| new.offset <= old.offset && old.end() <= new.end();
            let apart = |old: &Extent| old.end() <= new.offset || new.end() <= old.offset;
            self.opaque |= self.extents.iter().any(|old| !covered(old) && !apart(old));
            self.extents.retain(|old| !covered(old));
        }
        self.extents.push(new);
        self.bytes += new.length;
        self.furthest = self.furthest.max(new.end());
        self.size = self.size.map(|size| size.max(new.end()));
    }

    /// An fsync begins in that generation.
    pub fn begin(&self, generation: u64) -> Promise {
        match self.since {
            None => Promise::Nothing,
            Some(since) if since == generation => Promise::Sync(self.changes),
            Some(_) if self.opaque => Promise::Lost,
            Some(_) => Promise::Verify(self.changes),
        }
    }

    /// The fsync with that ticket succeeded in that generation; changes that came in meanwhile stay uncommitted.
    pub fn synced(&mut self, ticket: u64, generation: u64) {
        if self.changes == ticket {
            self.forget();
        } else {
            self.since = Some(generation);
            self.commit_asked = false;
        }
    }

    /// The loss has been reported, or there is nothing left to report.
    pub fn forget(&mut self) {
        *self = Unsynced { changes: self.changes, ..Unsynced::default() };
    }

    /// True if nothing is uncommitted.
    pub fn is_clean(&self) -> bool {
        self.since.is_none()
    }

    /// True, once, when so much is uncommitted that it should be committed in the background.
    pub fn wants_commit(&mut self) -> bool {
        let wants = !self.commit_asked && (self.bytes >= MOST_BYTES || self.extents.len() >= MOST_EXTENTS);
        self.commit_asked |= wants;
        wants
    }

    /// Reads everything back. `alone` says that nobody else may have changed the file's size.
    pub fn is_found_in(&self, file: &dyn File, alone: bool) -> OpResult<bool> {
        let size = file.stat()?.size;
        if self.size.is_some_and(|wanted| if alone { size != wanted } else { size < wanted }) {
            return Ok(false);
        }
        let mut data = Vec::new();
        for extent in &self.extents {
            data.resize(usize::try_from(extent.length).unwrap_or(usize::MAX), 0);
            let length = file.read_at(&mut data, extent.offset)?;
            if length != data.len() || checksum(&data) != extent.checksum {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::Tree;
    use crate::backing::posix::PosixTree;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    fn ticket(promise: Promise) -> u64 {
        match promise {
            Promise::Sync(ticket) | Promise::Verify(ticket) => ticket,
            other => panic!("no ticket: {other:?}"),
        }
    }

    #[test]
    fn changes_of_a_dead_generation_have_to_be_found_again() {
        let mut unsynced = Unsynced::default();
        assert_eq!(unsynced.begin(1), Promise::Nothing);
        unsynced.changed(1, Change::Data(0, b"one"));
        unsynced.changed(2, Change::Data(3, b"two"));
        assert_eq!(unsynced.begin(2), Promise::Verify(2));
        unsynced.synced(2, 2);
        assert_eq!(unsynced.begin(2), Promise::Nothing);
        unsynced.changed(2, Change::Opaque);
        assert_eq!(unsynced.begin(3), Promise::Lost);
        unsynced.forget();
        assert!(unsynced.is_clean());
    }

    #[test]
    fn changes_during_an_fsync_stay_uncommitted() {
        let mut unsynced = Unsynced::default();
        unsynced.changed(1, Change::Data(0, b"one"));
        let first = ticket(unsynced.begin(1));
        unsynced.changed(1, Change::Data(3, b"two"));
        unsynced.synced(first, 1);
        assert!(!unsynced.is_clean());
        let second = ticket(unsynced.begin(1));
        unsynced.synced(second, 1);
        assert!(unsynced.is_clean());
    }

    #[test]
    fn much_that_is_uncommitted_asks_for_a_commit_once() {
        let mut unsynced = Unsynced::default();
        let block = vec![1; 1 << 20];
        let asked: Vec<bool> = (0..12)
            .map(|n| {
                unsynced.changed(1, Change::Data(n << 20, &block));
                unsynced.wants_commit()
            })
            .collect();
        assert_eq!(asked.iter().filter(|&&asked| asked).count(), 1);
        assert!(asked[7]);
    }

    fn opened() -> (tempfile::TempDir, std::fs::File, Box<dyn File>) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f");
        let file = std::fs::File::options().create_new(true).read(true).write(true).open(path).expect("made");
        let tree = PosixTree::new(std::fs::File::open(directory.path()).expect("opens").into());
        let seen = tree.open("f".as_ref(), libc::O_RDONLY).expect("opens");
        (directory, file, seen)
    }

    #[test]
    fn a_byte_that_is_missing_or_wrong_is_noticed() {
        let (_directory, file, seen) = opened();
        let mut unsynced = Unsynced::default();
        unsynced.changed(1, Change::Data(0, b"hello"));
        assert_eq!(unsynced.is_found_in(&*seen, true), Ok(false));
        file.write_all_at(b"hellO", 0).expect("written");
        assert_eq!(unsynced.is_found_in(&*seen, true), Ok(false));
        file.write_all_at(b"hello", 0).expect("written");
        assert_eq!(unsynced.is_found_in(&*seen, true), Ok(true));
    }

    #[test]
    fn a_truncation_that_was_undone_is_noticed() {
        let (_directory, file, seen) = opened();
        let mut unsynced = Unsynced::default();
        unsynced.changed(1, Change::Size(0));
        unsynced.changed(1, Change::Data(0, b"new"));
        file.write_all_at(b"new and old", 0).expect("written");
        assert_eq!(unsynced.is_found_in(&*seen, true), Ok(false));
        assert_eq!(unsynced.is_found_in(&*seen, false), Ok(true), "another writer may have appended");
        file.set_len(3).expect("cut");
        assert_eq!(unsynced.is_found_in(&*seen, true), Ok(true));
    }

    proptest! {
        /// What was really done to a file is always found again, unless it is too tangled to tell.
        #[test]
        fn what_was_done_is_found(changes in proptest::collection::vec((0_u64..64, 1_usize..16, any::<u8>(), 0_u8..5), 0..30)) {
            let (_directory, file, seen) = opened();
            let mut unsynced = Unsynced::default();
            for (offset, length, byte, kind) in changes {
                if kind == 0 {
                    file.set_len(offset).expect("cut");
                    unsynced.changed(1, Change::Size(offset));
                } else {
                    let data = vec![byte; length];
                    file.write_all_at(&data, offset).expect("written");
                    unsynced.changed(1, Change::Data(offset, &data));
                }
            }
            if let Promise::Verify(_) = unsynced.begin(2) {
                prop_assert_eq!(unsynced.is_found_in(&*seen, true), Ok(true));
            }
        }
    }
}
