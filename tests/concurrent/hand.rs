//! Does calls in a directory and says what came of each, without what depends on where or when.

use std::fmt::Debug;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence};

use crate::call::{At, CROWD, Call, NOBODY, SLOTS};
use crate::sys::{self, Shared};

/// What came of a call.
pub type Answer = Result<String, Errno>;
/// Times before that were set by a call, later ones are the clock's.
const SET_BY_HAND: i64 = 1_500_000_000;
/// Alignment of O_DIRECT.
const BLOCK: u64 = 4096;

/// A directory and the descriptors of a process on it.
pub struct Hand {
    root: PathBuf,
    local: bool,
    slots: [Option<(File, i32)>; SLOTS],
}

fn errno(error: std::io::Error) -> Errno {
    // What has no number is an end of file or a write of nothing.
    error.raw_os_error().map_or(Errno::ENODATA, Errno::from_raw)
}

fn told(value: impl Debug) -> Answer {
    Ok(format!("{value:?}"))
}

fn bytes(tone: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| tone.wrapping_add((at % 251) as u8)).collect()
}

/// Attributes in words. `local`: all that a local filesystem has.
pub fn seen(found: &std::fs::Metadata, local: bool) -> String {
    let size = if found.is_dir() { 0 } else { found.len() };
    let kind = found.mode() & libc::S_IFMT;
    let mut words = format!("{:o} {size}", found.mode());
    if local {
        words += &format!(" {}:{} links {}", found.uid(), found.gid(), found.nlink());
    }
    // A fifo's are the kernel's own business, and a server makes hidden names in its directories.
    if kind == libc::S_IFREG || (local && (kind == libc::S_IFDIR || kind == libc::S_IFLNK)) {
        let set = found.mtime() < SET_BY_HAND;
        words += &if set { format!(" {}.{}", found.mtime(), found.mtime_nsec()) } else { " now".into() };
    }
    words
}

impl Hand {
    pub fn new(root: &Path, local: bool) -> Hand {
        Hand { root: root.to_owned(), local, slots: Default::default() }
    }

    /// True if that descriptor's file has no name.
    pub fn is_nameless(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_some_and(|(file, _)| file.metadata().is_ok_and(|found| found.nlink() == 0))
    }

    /// Descriptors that are open, a bit for each.
    pub fn open_slots(&self) -> u32 {
        (0..SLOTS).filter(|&slot| self.slots[slot].is_some()).map(|slot| 1 << slot).sum()
    }

    pub fn drop_slot(&mut self, slot: usize) {
        self.slots[slot] = None;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A path that leads to it.
    fn at(&self, at: At) -> Result<PathBuf, Errno> {
        match at {
            At::Name(name) => Ok(self.path(name)),
            At::Slot(slot) => Ok(PathBuf::from(format!("/proc/self/fd/{}", self.file(slot)?.as_raw_fd()))),
        }
    }

    fn file(&self, slot: usize) -> Result<&File, Errno> {
        self.slots[slot].as_ref().map(|(file, _)| file).ok_or(Errno::EBADF)
    }

    fn is_direct(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_some_and(|(_, flags)| flags & libc::O_DIRECT != 0)
    }

    /// True if the call says nothing: it moves data from or to a file without a name, which may have been lost on one side, or
    /// one open with O_DIRECT, which steadfs does not want aligned.
    pub fn says_nothing(&self, call: &Call) -> bool {
        match call {
            Call::AsNobody(inner) => match &**inner {
                // Whether trusted names may be seen is a matter of CAP_SYS_ADMIN, which this process keeps.
                Call::ListXattr { .. } => true,
                Call::GetXattr { key, .. } | Call::SetXattr { key, .. } | Call::RemoveXattr { key, .. } => {
                    key.starts_with("trusted")
                }
                inner => self.says_nothing(inner),
            },
            Call::Copy { from, to, .. } | Call::Splice { from, to, .. } => {
                [*from, *to].into_iter().any(|slot| self.is_nameless(slot) || self.is_direct(slot))
            }
            // A page of what is lost is a signal.
            Call::Map { slot, .. } => self.is_nameless(*slot),
            _ => false,
        }
    }

    pub fn apply(&mut self, call: &Call) -> Answer {
        match call {
            Call::AsNobody(inner) => sys::as_user(NOBODY, || self.apply(inner)),
            Call::Open { slot, name, flags, mode } => self.open(*slot, name, *flags, *mode),
            Call::Close { slot } => match self.slots[*slot].take() {
                Some((file, _)) => told(nix::unistd::close(file)?),
                None => Err(Errno::EBADF),
            },
            Call::Write { slot, at, length, tone } => self.write(*slot, *at, &bytes(*tone, *length)),
            Call::Read { slot, at, length } => self.read(*slot, *at, *length),
            Call::Seek { slot, whence, offset } => {
                let whence = match *whence {
                    libc::SEEK_CUR => Whence::SeekCur,
                    libc::SEEK_END => Whence::SeekEnd,
                    libc::SEEK_DATA => Whence::SeekData,
                    libc::SEEK_HOLE => Whence::SeekHole,
                    _ => Whence::SeekSet,
                };
                let file = self.file(*slot)?;
                // Offsets in a directory are the filesystem's own.
                if file.metadata().map_err(errno)?.is_dir() {
                    return told(());
                }
                told(nix::unistd::lseek(file, *offset, whence)?)
            }
            Call::Sync { slot, data_only: true } => told(nix::unistd::fdatasync(self.file(*slot)?)?),
            Call::Sync { slot, .. } => told(nix::unistd::fsync(self.file(*slot)?)?),
            Call::SetLength { at: At::Slot(slot), size } => {
                told(nix::unistd::ftruncate(self.file(*slot)?, *size as i64)?)
            }
            Call::SetLength { at: At::Name(name), size } => {
                told(nix::unistd::truncate(&self.path(name), *size as i64)?)
            }
            Call::Allocate { slot, how, offset, length } => {
                let how = FallocateFlags::from_bits_retain(*how);
                told(nix::fcntl::fallocate(self.file(*slot)?, how, *offset as i64, *length as i64)?)
            }
            Call::Copy { from, to, at, to_at, length } => self.copy(*from, *to, *at, *to_at, *length),
            Call::Splice { from, to, at, to_at, length } => self.splice(*from, *to, *at, *to_at, *length),
            Call::Map { slot, at, length, write } => self.map(*slot, *at, *length, *write),
            other => self.names(other),
        }
    }

    fn names(&self, call: &Call) -> Answer {
        match call {
            Call::Unlink { name } => told(nix::unistd::unlink(&self.path(name))?),
            Call::RemoveDirectory { name } => told(std::fs::remove_dir(self.path(name)).map_err(errno)?),
            Call::MakeDirectory { name, mode } => {
                told(nix::unistd::mkdir(&self.path(name), Mode::from_bits_truncate(*mode))?)
            }
            Call::Rename { from, to, flags } => {
                let flags = RenameFlags::from_bits_truncate(*flags);
                told(nix::fcntl::renameat2(AT_FDCWD, &self.path(from), AT_FDCWD, &self.path(to), flags)?)
            }
            Call::Link { from, to, follow } => {
                let flags = if *follow { AtFlags::AT_SYMLINK_FOLLOW } else { AtFlags::empty() };
                nix::unistd::linkat(AT_FDCWD, &self.path(from), AT_FDCWD, &self.path(to), flags)?;
                let number = |name: &str| std::fs::symlink_metadata(self.path(name)).map(|found| found.ino());
                // The other name may be that of a link that was followed.
                told(!follow && number(from).ok() != number(to).ok())
            }
            Call::Symlink { target, name } => told(std::os::unix::fs::symlink(target, self.path(name)).map_err(errno)?),
            Call::ReadLink { name } => told(std::fs::read_link(self.path(name)).map_err(errno)?),
            Call::MakeNode { name, mode } => {
                let mode = Mode::from_bits_truncate(mode & 0o777);
                told(nix::sys::stat::mknod(&self.path(name), SFlag::S_IFIFO, mode, 0)?)
            }
            Call::List { name } => told(list(&self.path(name))?),
            Call::Crowd { first, count } => {
                let _ = std::fs::create_dir(self.path("crowd"));
                for number in *first..(first + count).min(CROWD) {
                    File::create(self.path(&crowded(number))).map_err(errno)?;
                }
                told(list(&self.path("crowd"))?.len())
            }
            Call::Thin { rest } => {
                let mut seen = Vec::new();
                for entry in std::fs::read_dir(self.path("crowd")).map_err(errno)? {
                    let name = entry.map_err(errno)?.file_name().to_string_lossy().into_owned();
                    if name[2..].parse::<u64>().unwrap() % 3 == *rest {
                        std::fs::remove_file(self.path("crowd").join(&name)).map_err(errno)?;
                    }
                    seen.push(name);
                }
                // Each once, whatever their order.
                seen.sort();
                told((seen.len(), crc32fast::hash(seen.concat().as_bytes())))
            }
            other => self.attributes(other),
        }
    }

    fn attributes(&self, call: &Call) -> Answer {
        match call {
            Call::SetMode { at: At::Slot(slot), mode } => {
                told(nix::sys::stat::fchmod(self.file(*slot)?, Mode::from_bits_truncate(*mode))?)
            }
            Call::SetMode { at, mode } => {
                let (path, mode) = (self.at(*at)?, Mode::from_bits_truncate(*mode));
                told(nix::sys::stat::fchmodat(AT_FDCWD, &path, mode, FchmodatFlags::FollowSymlink)?)
            }
            Call::SetOwner { at, uid, gid, follow } => {
                let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                match at {
                    At::Slot(slot) => told(nix::unistd::fchown(self.file(*slot)?, uid, gid)?),
                    At::Name(name) => {
                        let flags = if *follow { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
                        told(nix::unistd::fchownat(AT_FDCWD, &self.path(name), uid, gid, flags)?)
                    }
                }
            }
            Call::SetTimes { at, follow, atime, mtime } => {
                let (atime, mtime) = (TimeSpec::new(atime.0, atime.1), TimeSpec::new(mtime.0, mtime.1));
                match at {
                    At::Slot(slot) => told(nix::sys::stat::futimens(self.file(*slot)?, &atime, &mtime)?),
                    At::Name(name) => {
                        let how = if *follow { UtimensatFlags::FollowSymlink } else { UtimensatFlags::NoFollowSymlink };
                        told(nix::sys::stat::utimensat(AT_FDCWD, &self.path(name), &atime, &mtime, how)?)
                    }
                }
            }
            Call::SetXattr { at, key, length, tone, flags } => {
                told(sys::set_xattr(&self.at(*at)?, key, &bytes(*tone, *length), *flags)?)
            }
            Call::GetXattr { at, key } => told(sys::get_xattr(&self.at(*at)?, key)?),
            Call::ListXattr { at } => told(sys::list_xattr(&self.at(*at)?, true)?),
            Call::RemoveXattr { at, key } => told(sys::remove_xattr(&self.at(*at)?, key)?),
            Call::SetList { name, default, bits } => {
                let key = if *default { "system.posix_acl_default" } else { "system.posix_acl_access" };
                told(sys::set_xattr(&self.path(name), key, &access_list(*bits), 0)?)
            }
            Call::Stat { at: At::Slot(slot), .. } => {
                Ok(seen(&self.file(*slot)?.metadata().map_err(errno)?, self.local))
            }
            Call::Stat { at, follow } => {
                let stat = |path: &Path| if *follow { path.metadata() } else { path.symlink_metadata() };
                Ok(seen(&stat(&self.at(*at)?).map_err(errno)?, self.local))
            }
            Call::Access { name, mode } => {
                let path = sys::c(&self.path(name));
                // SAFETY: the path ends with NUL and outlives the call.
                let result = unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), *mode, libc::AT_EACCESS) };
                told(sys::checked(result)?)
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn open(&mut self, slot: usize, name: &str, flags: i32, mode: u32) -> Answer {
        // Closed before, so that both sides have the same descriptors whatever comes of it.
        self.slots[slot] = None;
        // A fifo must not block.
        let all = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(nix::fcntl::open(&self.path(name), all, Mode::from_bits_truncate(mode))?);
        self.slots[slot] = Some((file, flags));
        told(())
    }

    fn write(&mut self, slot: usize, at: Option<u64>, data: &[u8]) -> Answer {
        let file = self.file(slot)?;
        if self.is_direct(slot) {
            let length = (data.len() as u64).next_multiple_of(BLOCK) as usize;
            let mut buffer = vec![data.first().copied().unwrap_or(0); length + BLOCK as usize];
            let aligned = aligned(&mut buffer, length);
            return told(file.write_at(aligned, at.unwrap_or(0) / BLOCK * BLOCK).map_err(errno)?);
        }
        match at {
            Some(at) => told(file.write_at(data, at).map_err(errno)?),
            None => told(nix::unistd::write(file, data)?),
        }
    }

    fn read(&self, slot: usize, at: Option<u64>, length: usize) -> Answer {
        let file = self.file(slot)?;
        let summed = |data: &[u8]| told((data.len(), crc32fast::hash(data)));
        if self.is_direct(slot) {
            let length = (length as u64).next_multiple_of(BLOCK) as usize;
            let mut buffer = vec![0; length + BLOCK as usize];
            let aligned = aligned(&mut buffer, length);
            let got = file.read_at(aligned, at.unwrap_or(0) / BLOCK * BLOCK).map_err(errno)?;
            return summed(&aligned[..got]);
        }
        let mut data = vec![0; length];
        let got = match at {
            Some(at) => file.read_at(&mut data, at).map_err(errno)?,
            None => nix::unistd::read(file, &mut data)?,
        };
        summed(&data[..got])
    }

    fn copy(&self, from: usize, to: usize, at: u64, to_at: u64, length: usize) -> Answer {
        let (from, to) = (self.file(from)?, self.file(to)?);
        let (mut at, mut to_at, mut done) = (at as i64, to_at as i64, 0);
        while done < length {
            match nix::fcntl::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), length - done)? {
                0 => break,
                more => done += more,
            }
        }
        told(done)
    }

    fn splice(&self, from: usize, to: usize, at: u64, to_at: u64, length: usize) -> Answer {
        let flags = nix::fcntl::SpliceFFlags::empty();
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK)?;
        let (mut at, mut to_at) = (at as i64, to_at as i64);
        let (from, to) = (self.file(from)?, self.file(to)?);
        let mut got = 0;
        // In pieces as the page cache has them.
        while got < length {
            match nix::fcntl::splice(from, Some(&mut at), &writer, None, length - got, flags) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if got == 0 => return Err(error),
                Err(_) => break,
            }
        }
        drop(writer);
        let mut put = 0;
        while put < got {
            put += nix::fcntl::splice(&reader, None, to, Some(&mut to_at), got - put, flags)?;
        }
        told((got, put))
    }

    fn map(&self, slot: usize, at: u64, length: u64, write: Option<u8>) -> Answer {
        let file = self.file(slot)?;
        let size = file.metadata().map_err(errno)?.len();
        let (start, end) = (at / BLOCK * BLOCK, (at + length).min(size));
        if end <= start {
            return told("beyond the end");
        }
        let length = (end - start) as usize;
        let mut map = Shared::new(file.as_raw_fd(), start, length, write.is_some())?;
        match write {
            Some(tone) => {
                (0..length).for_each(|at| map.put(at, tone.wrapping_mul(3).wrapping_add(at as u8)));
                told(map.sync()?)
            }
            None => {
                let data: Vec<u8> = (0..length).map(|at| map.get(at)).collect();
                told((length, crc32fast::hash(&data)))
            }
        }
    }

    /// Everything below the directory: path, attributes, extended attributes, content, and which other path is the same file.
    pub fn tree(&self) -> Result<Vec<String>, String> {
        tree(&self.root, self.local)
    }

    /// What a descriptor shows, and where it stands.
    pub fn descriptor(&self, slot: usize) -> Answer {
        let Some((file, flags)) = &self.slots[slot] else { return told("closed") };
        let found = file.metadata().map_err(errno)?;
        let path_alone = flags & libc::O_PATH != 0 || found.is_dir();
        let place = if path_alone { None } else { nix::unistd::lseek(file.as_fd(), 0, Whence::SeekCur).ok() };
        Ok(format!("{} at {place:?}", seen(&found, self.local)))
    }
}

/// A part of the buffer that begins at a block, of that length.
fn aligned(buffer: &mut [u8], length: usize) -> &mut [u8] {
    let skip = buffer.as_ptr().align_offset(BLOCK as usize);
    &mut buffer[skip..skip + length]
}

fn crowded(number: u64) -> String {
    format!("crowd/n-{number:03}")
}

fn list(path: &Path) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        let kind = entry.file_type().map_err(errno)?;
        names.push(format!("{} {}{}", entry.file_name().to_string_lossy(), kind.is_dir(), kind.is_symlink()));
    }
    names.sort();
    Ok(names)
}

/// posix_acl(5) as the kernel has it in an extended attribute: the owner, nobody with these bits, the group, a mask, all others.
fn access_list(bits: u16) -> Vec<u8> {
    let entries = [(1, 6, u32::MAX), (2, bits, NOBODY), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        let tag: u16 = tag;
        list.extend(tag.to_le_bytes().iter().chain(&bits.to_le_bytes()).chain(&id.to_le_bytes()));
    }
    list
}

/// See [`Hand::tree`].
pub fn tree(root: &Path, local: bool) -> Result<Vec<String>, String> {
    let (mut found, mut first) = (Vec::new(), std::collections::HashMap::new());
    walk(root, Path::new(""), local, &mut first, &mut found).map_err(|(path, error)| format!("{path:?}: {error}"))?;
    Ok(found)
}

type First = std::collections::HashMap<u64, PathBuf>;

fn walk(
    root: &Path,
    below: &Path,
    local: bool,
    first: &mut First,
    found: &mut Vec<String>,
) -> Result<(), (PathBuf, Errno)> {
    let at = root.join(below);
    let fail = |error: std::io::Error| (at.clone(), errno(error));
    let mut names: Vec<_> = std::fs::read_dir(&at).map_err(fail)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names {
        let (path, below) = (at.join(&name), below.join(&name));
        let fail = |error: std::io::Error| (path.clone(), errno(error));
        let meta = path.symlink_metadata().map_err(fail)?;
        let mut words = format!("{}: {}", below.display(), seen(&meta, local));
        if local {
            let twin = first.entry(meta.ino()).or_insert_with(|| below.clone());
            let keys = sys::list_xattr(&path, false).map_err(|error| (path.clone(), error))?;
            words += &format!(" is {}", twin.display());
            for key in keys.iter().filter(|_| !meta.is_symlink()) {
                words += &format!(" {key}={:?}", sys::get_xattr(&path, key).map_err(|error| (path.clone(), error))?);
            }
        }
        if meta.is_file() {
            words += &format!(" {:08x}", crc32fast::hash(&std::fs::read(&path).map_err(fail)?));
        } else if meta.is_symlink() {
            words += &format!(" -> {}", std::fs::read_link(&path).map_err(fail)?.display());
        }
        found.push(words);
        if meta.is_dir() {
            walk(root, &below, local, first, found)?;
        }
    }
    Ok(())
}

/// For the raw calls.
pub fn raw(file: &File) -> RawFd {
    file.as_raw_fd()
}
