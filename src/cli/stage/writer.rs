//! The WARC writer: appends records at one descriptor, commits every few of them, and after a failed fsync writes again
//! from the last committed byte, as any program must that wants to know what is on the store.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::warc;

/// Records between two fsyncs.
pub const RECORDS_PER_COMMIT: usize = 8;

/// One WARC that grows.
#[derive(Debug)]
pub struct WarcWriter {
    file: File,
    writer: usize,
    next: u64,
    committed_bytes: u64,
    committed_records: u64,
    /// Bytes after the committed ones.
    pending: Vec<u8>,
    /// How many of the pending bytes a write has accepted.
    written: usize,
}

/// What a step did.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes were written; there is more to do before the next commit.
    Wrote,
    /// A commit succeeded: bytes and records that it made durable.
    Committed(u64, u64),
}

impl WarcWriter {
    /// Creates the file, or finds the one that an earlier try created although it was answered with an error.
    pub fn create(path: &Path, writer: usize) -> io::Result<WarcWriter> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        Ok(WarcWriter {
            file,
            writer,
            next: 0,
            committed_bytes: 0,
            committed_records: 0,
            pending: Vec::new(),
            written: 0,
        })
    }

    /// Makes one more record, to be written by the next [`WarcWriter::write`].
    pub fn make_record(&mut self) {
        self.pending.extend_from_slice(&warc::member(self.writer, self.next));
        self.next += 1;
    }

    /// Records that are not committed yet.
    pub fn uncommitted(&self) -> u64 {
        self.next - self.committed_records
    }

    /// Writes what has not been accepted yet. After an error call it again: it writes the same bytes to the same place.
    pub fn write(&mut self) -> io::Result<()> {
        while self.written < self.pending.len() {
            let offset = self.committed_bytes + self.written as u64;
            match self.file.write_at(&self.pending[self.written..], offset)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => self.written += n,
            }
        }
        Ok(())
    }

    /// Commits with `fsync`. When that fails, nothing since the last commit can be relied on, and the next
    /// [`WarcWriter::write`] writes all of it again.
    pub fn commit(&mut self, fsync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<Step> {
        if self.written < self.pending.len() {
            return Ok(Step::Wrote);
        }
        if let Err(error) = fsync(&self.file) {
            self.written = 0;
            return Err(error);
        }
        let (bytes, records) = (self.pending.len() as u64, self.uncommitted());
        self.committed_bytes += bytes;
        self.committed_records = self.next;
        self.pending.clear();
        self.written = 0;
        Ok(Step::Committed(bytes, records))
    }

    /// Bytes and records that are committed.
    pub fn committed(&self) -> (u64, u64) {
        (self.committed_bytes, self.committed_records)
    }

    /// Closes the descriptor and says what close said.
    pub fn close(self) -> io::Result<()> {
        Ok(nix::unistd::close(self.file)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::check;
    use super::*;

    fn append(writer: &mut WarcWriter, records: usize) {
        for _ in 0..records {
            writer.make_record();
            writer.write().unwrap();
        }
    }

    #[test]
    fn what_was_committed_passes_the_check() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let mut writer = WarcWriter::create(&path, 0).unwrap();
        append(&mut writer, 8);
        assert!(matches!(writer.commit(File::sync_data), Ok(Step::Committed(_, 8))));
        append(&mut writer, 3);
        writer.close().unwrap();
        let report = check::warc_file(&path, "w", 0, 8);
        assert_eq!((report.records, report.problems), (11, vec![]));
    }

    #[test]
    fn after_a_failed_commit_lost_bytes_are_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let mut writer = WarcWriter::create(&path, 0).unwrap();
        append(&mut writer, 8);
        writer.commit(File::sync_data).unwrap();
        let (bytes, _) = writer.committed();
        append(&mut writer, 8);
        // The store forgets what was not committed, as a server that restarts does.
        let failed = writer.commit(|file| {
            file.set_len(bytes)?;
            Err(io::Error::from_raw_os_error(libc::EIO))
        });
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(check::warc_file(&path, "w", 0, 8).records, 8);
        writer.write().unwrap();
        assert!(matches!(writer.commit(File::sync_data), Ok(Step::Committed(_, 8))));
        assert_eq!(writer.committed().1, 16);
        let report = check::warc_file(&path, "w", 0, 16);
        assert_eq!((report.records, report.problems), (16, vec![]));
    }

    #[test]
    fn nothing_is_committed_that_was_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = WarcWriter::create(&dir.path().join("w"), 0).unwrap();
        writer.make_record();
        assert_eq!(writer.commit(File::sync_data).unwrap(), Step::Wrote);
        assert_eq!(writer.committed(), (0, 0));
        assert_eq!(writer.uncommitted(), 1);
    }
}
