//! An open file of a fake generation.

use std::path::{Path, PathBuf};

use super::fault::Call;
use super::slot::Slot;
use crate::backing::{Attr, File, OpResult};

/// A real file behind the slot of its generation.
pub(super) struct FakeFile {
    slot: Slot,
    path: PathBuf,
    inner: Box<dyn File>,
}

impl FakeFile {
    pub fn new(slot: Slot, path: &Path, inner: Box<dyn File>) -> Self {
        FakeFile { slot, path: path.to_owned(), inner }
    }
}

/// So many bytes, or fewer if a fault says so.
fn at_most(len: usize, most: Option<usize>) -> usize {
    most.map_or(len, |most| len.min(most))
}

impl File for FakeFile {
    fn stat(&self) -> OpResult<Attr> {
        self.slot.call(Call::FileStat, &self.path, || self.inner.stat())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> OpResult<usize> {
        let len = buf.len();
        self.slot.call_short(Call::Read, &self.path, |most| self.inner.read_at(&mut buf[..at_most(len, most)], offset))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> OpResult<usize> {
        self.slot
            .call_short(Call::Write, &self.path, |most| self.inner.write_at(&data[..at_most(data.len(), most)], offset))
    }

    fn sync(&self, data_only: bool) -> OpResult<()> {
        self.slot.call(Call::Sync, &self.path, || {
            self.inner.sync(data_only)?;
            self.slot.disk().synced(self.inner.as_raw_fd());
            Ok(())
        })
    }

    fn set_size(&self, size: u64) -> OpResult<()> {
        self.slot.call(Call::FileSetSize, &self.path, || self.inner.set_size(size))
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> OpResult<()> {
        self.slot.call(Call::Allocate, &self.path, || self.inner.allocate(mode, offset, len))
    }

    fn seek(&self, offset: i64, whence: i32) -> OpResult<i64> {
        self.slot.call(Call::Seek, &self.path, || self.inner.seek(offset, whence))
    }

    fn copy_to(&self, offset: u64, to: &dyn File, to_offset: u64, len: u64) -> OpResult<usize> {
        self.slot.call_short(Call::Copy, &self.path, |most| {
            self.inner.copy_to(offset, to, to_offset, most.map_or(len, |most| len.min(most as u64)))
        })
    }

    fn open_again(&self, flags: i32) -> OpResult<Box<dyn File>> {
        let opened = self.slot.call(Call::Open, &self.path, || self.inner.open_again(flags))?;
        Ok(Box::new(FakeFile::new(self.slot.clone(), &self.path, opened)))
    }

    fn as_raw_fd(&self) -> Option<i32> {
        self.inner.as_raw_fd()
    }
}

impl Drop for FakeFile {
    fn drop(&mut self) {
        // close(2) may hang like any other call, but its error goes nowhere.
        let _ = self.slot.call(Call::Close, &self.path, || Ok(()));
    }
}
