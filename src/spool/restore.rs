//! Writes an entry into a file: first what it would do, then doing it, then reading it back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, PosixFadviseAdvice, ResolveFlag, openat2, posix_fadvise};
use nix::sys::stat::Mode;

use super::entry::{Entry, split};
use super::list::{PART, RESTORED, SPOOL};
use super::{Header, SpoolError};
use crate::moment;

/// The file to write.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// The entry's path below this directory; it must exist.
    Below(&'a Path),
    /// This file; made if it is missing.
    File(&'a Path),
}

/// What is in the file now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present {
    /// Its size.
    pub size: u64,
    /// When it was changed, as near as RFC 3339 can say it.
    pub modified: Option<SystemTime>,
}

/// What becomes of one extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub offset: u64,
    /// Bytes that are written.
    pub len: u64,
    /// Those of them where the file has another byte now.
    pub differing: u64,
    /// Those of them that lie beyond its end now.
    pub beyond: u64,
}

/// What restoring does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The file.
    pub target: PathBuf,
    /// What is there; `None` if the file is made.
    pub present: Option<Present>,
    /// It is cut to this size first. Never more than it has.
    pub cut: Option<u64>,
    /// What is written then.
    pub changes: Vec<Change>,
    /// Its size in the end.
    pub size: u64,
}

/// What [`restore`] would do. Nothing is changed.
pub fn plan(path: &Path, target: Target<'_>) -> Result<Plan, SpoolError> {
    let entry = Entry::open(path)?;
    entry.verify()?;
    let (shown, file) = open(target, entry.header(), OFlag::O_RDONLY)?;
    compare(&entry, shown, file.as_ref())
}

/// Writes what was saved into the file, syncs it, reads it back, and marks the entry as restored. Returns what was done
/// and where the entry is now.
pub fn restore(path: &Path, target: Target<'_>) -> Result<(Plan, PathBuf), SpoolError> {
    let entry = Entry::open(path)?;
    // Before anything is written.
    entry.verify()?;
    let (shown, file) = open(target, entry.header(), OFlag::O_RDWR)?;
    let plan = compare(&entry, shown, file.as_ref())?;
    let file = file.map_or_else(|| make(&plan.target), Ok)?;
    write(&entry, &plan, &file).and_then(|()| check(&entry, &plan, &file))?;
    Ok((plan, mark(path)?))
}

/// Opens the file, in a way that nothing but a regular file can hold up; `None` if it may be made.
fn open(target: Target<'_>, header: &Header, flags: OFlag) -> Result<(PathBuf, Option<File>), SpoolError> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let path = match target {
        Target::Below(root) => root.join(&header.path),
        Target::File(path) => path.to_owned(),
    };
    let refused = |why: &str| SpoolError::Refused { target: path.clone(), why: why.into() };
    let elsewhere = "restore into another file with --to FILE";
    let opened = match target {
        Target::Below(root) => beneath(root, &header.path, flags),
        Target::File(path) => nix::fcntl::open(path, flags, Mode::empty()).map(File::from),
    };
    let file = match (opened, target) {
        (Ok(file), _) => file,
        (Err(Errno::ENOENT), Target::File(_)) => return Ok((path, None)),
        (Err(Errno::ENOENT | Errno::ENOTDIR), Target::Below(_)) => {
            return Err(refused(&format!("does not exist: {elsewhere}")));
        }
        (Err(Errno::ELOOP | Errno::EXDEV), Target::Below(_)) => {
            return Err(refused(&format!("leads out of the overlay, over a link or another mount: {elsewhere}")));
        }
        (Err(Errno::ELOOP), _) => return Err(refused("is a symbolic link: name the file it leads to")),
        (Err(Errno::EISDIR), _) => return Err(refused(&format!("is a directory: {elsewhere}"))),
        (Err(errno), _) => return Err(SpoolError::io("open", &path, errno)),
    };
    let found = file.metadata().map_err(|error| SpoolError::io("look at", &path, error))?;
    if !found.is_file() {
        let what = if found.is_dir() { "is a directory" } else { "is not a regular file" };
        return Err(refused(&format!("{what}: {elsewhere}")));
    }
    Ok((path, Some(file)))
}

/// Opens a file below a directory and nowhere else (promise P5).
fn beneath(root: &Path, path: &Path, flags: OFlag) -> Result<File, Errno> {
    let normal = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !normal || path.as_os_str().is_empty() {
        return Err(Errno::EXDEV);
    }
    let root = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let stay = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(&root, path, OpenHow::new().flags(flags).resolve(stay)).map(File::from)
}

fn make(path: &Path) -> Result<File, SpoolError> {
    let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|error| SpoolError::io("make", path, error))
}

/// Reads what is where the entry's data belongs.
fn compare(entry: &Entry, target: PathBuf, file: Option<&File>) -> Result<Plan, SpoolError> {
    let header = entry.header();
    let present = match file.map(File::metadata).transpose() {
        Ok(found) => {
            found.map(|found| Present { size: found.len(), modified: found.modified().ok().map(moment::writable) })
        }
        Err(error) => return Err(SpoolError::io("look at", &target, error)),
    };
    let before = present.map_or(0, |present| present.size);
    let mut changes: Vec<Change> =
        header.extents.iter().map(|e| Change { offset: e.offset, len: e.len, differing: 0, beyond: 0 }).collect();
    let mut old = Vec::new();
    entry.each_chunk(|index, offset, new| {
        old.resize(new.len(), 0);
        let there = file.map_or(Ok(0), |file| read_up_to(file, &mut old, offset));
        let there = there.map_err(|error| SpoolError::io("read", &target, error))?;
        if let Some(change) = changes.get_mut(index) {
            change.differing += old.iter().zip(new).take(there).filter(|(old, new)| old != new).count() as u64;
            change.beyond += (new.len() - there) as u64;
        }
        Ok(())
    })?;
    let cut = header.cut.filter(|cut| *cut < before);
    let written = header.extents.iter().rfind(|extent| extent.len > 0).map_or(0, super::Extent::end);
    let size = header.size.unwrap_or(cut.unwrap_or(before).max(written));
    Ok(Plan { target, present, cut, changes, size })
}

fn write(entry: &Entry, plan: &Plan, file: &File) -> Result<(), SpoolError> {
    let fail = |error: io::Error| SpoolError::io("write", &plan.target, error);
    if let Some(cut) = plan.cut {
        file.set_len(cut).map_err(fail)?;
    }
    entry.each_chunk(|_, offset, data| file.write_all_at(data, offset).map_err(fail))?;
    if entry.header().size.is_some() {
        file.set_len(plan.size).map_err(fail)?;
    }
    file.sync_all().map_err(|error| SpoolError::io("sync", &plan.target, error))
}

/// Reads it back, from the store rather than from memory where the kernel can be talked into it.
fn check(entry: &Entry, plan: &Plan, file: &File) -> Result<(), SpoolError> {
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    let fail = |error: io::Error| SpoolError::io("read", &plan.target, error);
    let differs = |offset| SpoolError::Differs { target: plan.target.clone(), offset };
    let size = file.metadata().map_err(fail)?.len();
    if size != plan.size {
        return Err(differs(size.min(plan.size)));
    }
    let mut there = Vec::new();
    entry.each_chunk(|_, offset, data| {
        // What lies beyond the size in the end was written and cut off again.
        let kept = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        let expected = &data[..kept];
        there.resize(kept, 0);
        let read = read_up_to(file, &mut there, offset).map_err(fail)?;
        match expected.iter().zip(&there[..read]).position(|(a, b)| a != b) {
            Some(at) => Err(differs(offset + at as u64)),
            None if read < kept => Err(differs(offset + read as u64)),
            None => Ok(()),
        }
    })
}

/// Fills the buffer as far as the file reaches.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Renames the entry; one that was restored before keeps its name.
fn mark(path: &Path) -> Result<PathBuf, SpoolError> {
    let (directory, name) = split(path)?;
    let text = name.to_string_lossy();
    let stem = text.strip_suffix(PART).unwrap_or(&text);
    let Some(stem) = stem.strip_suffix(SPOOL) else { return Ok(path.to_owned()) };
    let marked = format!("{stem}{RESTORED}");
    directory.rename(&name, marked.as_ref())?;
    Ok(directory.join(marked.as_ref()))
}
