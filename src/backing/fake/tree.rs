//! The calls of a generation, each through its slot.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::FakeGeneration;
use super::fault::Call;
use super::file::FakeFile;
use crate::backing::{Attr, DirEntry, File, FlagsRequest, OpResult, SetTime, StatFs, Tree};

impl FakeGeneration {
    fn file(&self, path: &Path, inner: Box<dyn File>) -> Box<dyn File> {
        Box::new(FakeFile::new(self.slot.clone(), path, inner))
    }
}

impl Tree for FakeGeneration {
    fn stat(&self, path: &Path) -> OpResult<Attr> {
        self.slot.call(Call::Stat, path, || self.tree.stat(path))
    }

    fn set_mode(&self, path: &Path, mode: u32) -> OpResult<()> {
        self.slot.call(Call::SetMode, path, || self.tree.set_mode(path, mode))
    }

    fn set_owner(&self, path: &Path, uid: Option<u32>, gid: Option<u32>) -> OpResult<()> {
        self.slot.call(Call::SetOwner, path, || self.tree.set_owner(path, uid, gid))
    }

    fn set_size(&self, path: &Path, size: u64) -> OpResult<()> {
        self.slot.call(Call::SetSize, path, || {
            self.tree.set_size(path, size)?;
            if let Ok(file) = self.tree.open(path, libc::O_RDONLY) {
                self.slot.disk().cut(file.as_raw_fd(), size);
            }
            Ok(())
        })
    }

    fn set_times(&self, path: &Path, atime: SetTime, mtime: SetTime) -> OpResult<()> {
        self.slot.call(Call::SetTimes, path, || self.tree.set_times(path, atime, mtime))
    }

    fn read_link(&self, path: &Path) -> OpResult<OsString> {
        self.slot.call(Call::ReadLink, path, || self.tree.read_link(path))
    }

    fn mknod(&self, path: &Path, mode: u32, rdev: u32) -> OpResult<()> {
        self.slot.call(Call::Mknod, path, || self.tree.mknod(path, mode, rdev))
    }

    fn mkdir(&self, path: &Path, mode: u32) -> OpResult<()> {
        self.slot.call(Call::Mkdir, path, || self.tree.mkdir(path, mode))
    }

    fn unlink(&self, path: &Path) -> OpResult<()> {
        self.slot.call(Call::Unlink, path, || self.tree.unlink(path))
    }

    fn rmdir(&self, path: &Path) -> OpResult<()> {
        self.slot.call(Call::Rmdir, path, || self.tree.rmdir(path))
    }

    fn symlink(&self, target: &OsStr, path: &Path) -> OpResult<()> {
        self.slot.call(Call::Symlink, path, || self.tree.symlink(target, path))
    }

    fn link(&self, from: &Path, to: &Path) -> OpResult<()> {
        self.slot.call(Call::Link, from, || self.tree.link(from, to))
    }

    fn rename(&self, from: &Path, to: &Path, flags: u32) -> OpResult<()> {
        self.slot.call(Call::Rename, from, || self.tree.rename(from, to, flags))
    }

    fn open(&self, path: &Path, flags: i32) -> OpResult<Box<dyn File>> {
        self.slot
            .call(Call::Open, path, || {
                let file = self.tree.open(path, flags)?;
                if flags & libc::O_TRUNC != 0 {
                    self.slot.disk().cut(file.as_raw_fd(), 0);
                }
                Ok(file)
            })
            .map(|file| self.file(path, file))
    }

    fn open_again(&self, file: &dyn File, flags: i32) -> OpResult<Box<dyn File>> {
        let inner = self.slot.call(Call::Open, Path::new(""), || self.tree.open_again(file, flags))?;
        Ok(self.file(Path::new(""), inner))
    }

    fn flags(&self, path: &Path, request: FlagsRequest, data: &mut [u8]) -> OpResult<()> {
        let call = if request.changes() { Call::SetFlags } else { Call::GetFlags };
        self.slot.call(call, path, || self.tree.flags(path, request, data))
    }

    fn create(&self, path: &Path, flags: i32, mode: u32) -> OpResult<Box<dyn File>> {
        self.slot.call(Call::Create, path, || self.tree.create(path, flags, mode)).map(|file| self.file(path, file))
    }

    fn read_dir(&self, path: &Path) -> OpResult<Vec<DirEntry>> {
        self.slot.call(Call::ReadDir, path, || self.tree.read_dir(path))
    }

    fn sync_dir(&self, path: &Path) -> OpResult<()> {
        self.slot.call(Call::SyncDir, path, || self.tree.sync_dir(path))
    }

    fn stat_fs(&self) -> OpResult<StatFs> {
        self.slot.call(Call::StatFs, Path::new(""), || self.tree.stat_fs())
    }

    fn get_xattr(&self, path: &Path, name: &OsStr) -> OpResult<Vec<u8>> {
        self.slot.call(Call::GetXattr, path, || self.tree.get_xattr(path, name))
    }

    fn list_xattr(&self, path: &Path) -> OpResult<Vec<u8>> {
        self.slot.call(Call::ListXattr, path, || self.tree.list_xattr(path))
    }

    fn set_xattr(&self, path: &Path, name: &OsStr, value: &[u8], flags: i32) -> OpResult<()> {
        self.slot.call(Call::SetXattr, path, || self.tree.set_xattr(path, name, value, flags))
    }

    fn remove_xattr(&self, path: &Path, name: &OsStr) -> OpResult<()> {
        self.slot.call(Call::RemoveXattr, path, || self.tree.remove_xattr(path, name))
    }
}
