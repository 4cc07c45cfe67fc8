//! The disk of a server that writes behind: what was not synced may be gone after a crash.
//!
//! Names, modes and sizes that were set by path are on the disk at once, as SFTP and NFS have it (SETATTR is stable);
//! data, and sizes that were set through a descriptor, are when a sync has returned.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use parking_lot::Mutex;

/// The server writes its disk in pieces of that many bytes, in any order.
const PIECE: usize = 1 << 10;

/// What the disk is known to have of one file.
#[derive(Debug)]
struct Kept {
    /// Open, so that nothing else gets its inode number.
    _file: File,
    content: Vec<u8>,
}

/// See the module. Files that it has never heard of are empty there.
#[derive(Debug, Default)]
pub(super) struct Disk {
    files: Mutex<Option<HashMap<(u64, u64), Kept>>>,
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|of| (of.dev(), of.ino()))
}

fn content(file: &File) -> io::Result<Vec<u8>> {
    let mut data = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
    let mut done = 0;
    while done < data.len() {
        match file.read_at(&mut data[done..], done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    data.truncate(done);
    Ok(data)
}

fn reopen(fd: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{fd}"))
}

impl Disk {
    /// From now on it is known what the disk has.
    pub fn watch(&self) {
        self.files.lock().get_or_insert_default();
    }

    /// An fsync of that descriptor has returned 0.
    pub fn synced(&self, fd: Option<i32>) {
        self.note(fd, |kept, file| {
            if let Ok(content) = content(file) {
                *kept = content;
            }
        });
    }

    /// A size was set by path.
    pub fn cut(&self, fd: Option<i32>, size: u64) {
        self.note(fd, |kept, _| kept.resize(usize::try_from(size).unwrap_or(0), 0));
    }

    fn note(&self, fd: Option<i32>, change: impl FnOnce(&mut Vec<u8>, &File)) {
        let mut files = self.files.lock();
        let (Some(files), Some(fd)) = (files.as_mut(), fd) else { return };
        let Ok(file) = reopen(fd) else { return };
        let Ok(identity) = identity(&file) else { return };
        match files.get_mut(&identity) {
            Some(kept) => change(&mut kept.content, &file),
            None => {
                let mut content = Vec::new();
                change(&mut content, &file);
                files.insert(identity, Kept { _file: file, content });
            }
        }
    }

    /// What the disk has of the file at that path.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let identity = identity(&File::open(path)?)?;
        Ok(self
            .files
            .lock()
            .iter()
            .flatten()
            .find(|(of, _)| **of == identity)
            .map_or_else(Vec::new, |(_, kept)| kept.content.clone()))
    }

    /// The server crashes: of every file below that directory the disk has, piece by piece, what was synced or what was
    /// written later. `dice` gives numbers below its argument.
    pub fn crash(&self, below: &Path, dice: &mut dyn FnMut(u64) -> u64) -> io::Result<()> {
        let mut entries = std::fs::read_dir(below)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.crash(&entry.path(), dice)?;
            } else if kind.is_file() {
                self.forget(&entry.path(), dice)?;
            }
        }
        Ok(())
    }

    fn forget(&self, path: &Path, dice: &mut dyn FnMut(u64) -> u64) -> io::Result<()> {
        let old = self.content(path)?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut new = content(&file)?;
        if old == new || dice(3) == 0 {
            return Ok(());
        }
        let (least, most) = (old.len().min(new.len()), old.len().max(new.len()));
        let size = match dice(3) {
            0 => old.len(),
            1 => new.len(),
            _ => least + dice((most - least) as u64 + 1) as usize,
        };
        let odds = 1 + dice(4);
        new.resize(size, 0);
        for (number, piece) in new.chunks_mut(PIECE).enumerate() {
            if dice(4) < odds {
                // Space that was given to a file without its data is zeros.
                let old = old.get(number * PIECE..).unwrap_or_default();
                let common = piece.len().min(old.len());
                piece[..common].copy_from_slice(&old[..common]);
                piece[common..].fill(0);
            }
        }
        file.set_len(new.len() as u64)?;
        file.write_all_at(&new, 0)?;
        // What a crash has left is on the disk.
        self.synced(Some(file.as_raw_fd()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_is_there_after_a_crash_and_nothing_that_was_never_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f");
        let disk = Disk::default();
        disk.watch();
        for seed in 0..200_u64 {
            std::fs::write(&path, vec![1; 5000]).expect("written");
            let file = OpenOptions::new().read(true).write(true).open(&path).expect("opened");
            disk.synced(Some(file.as_raw_fd()));
            assert_eq!(disk.content(&path).expect("known"), vec![1; 5000]);
            file.write_all_at(&[2; 4000], 3000).expect("written");
            let mut state = seed;
            let mut dice = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            disk.crash(directory.path(), &mut dice).expect("it crashes");
            let found = std::fs::read(&path).expect("read");
            assert!(found.len() >= 5000 && found.len() <= 7000);
            assert_eq!(found[..3000], [1; 3000]);
            assert!(found[3000..5000].iter().all(|byte| [1, 2].contains(byte)));
            assert!(found[5000..].iter().all(|byte| [0, 2].contains(byte)));
        }
    }
}
