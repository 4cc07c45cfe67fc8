//! Calls of the kernel that the C library or nix have no safe words for.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

/// Of a call that gives -1 on failure.
pub fn checked(result: impl Into<i64>) -> Result<i64, Errno> {
    let result = result.into();
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

/// A path for the kernel.
pub fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// setxattr(2) of whatever `path` leads to.
pub fn set_xattr(path: &Path, key: &str, value: &[u8], flags: i32) -> Result<i64, Errno> {
    let (path, key) = (c(path), CString::new(key).unwrap());
    // SAFETY: both names end with NUL, the value has as many bytes as are given; all outlive the call.
    checked(unsafe { libc::setxattr(path.as_ptr(), key.as_ptr(), value.as_ptr().cast(), value.len(), flags) })
}

/// getxattr(2).
pub fn get_xattr(path: &Path, key: &str) -> Result<Vec<u8>, Errno> {
    let (path, key, mut value) = (c(path), CString::new(key).unwrap(), vec![0_u8; 4096]);
    // SAFETY: as above; no more is written than the buffer has.
    let got = unsafe { libc::getxattr(path.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(checked(got as i64)? as usize);
    Ok(value)
}

/// listxattr(2), sorted; of a symbolic link itself if not `follow`.
pub fn list_xattr(path: &Path, follow: bool) -> Result<Vec<String>, Errno> {
    let (path, mut names) = (c(path), vec![0_u8; 4096]);
    let list = if follow { libc::listxattr } else { libc::llistxattr };
    // SAFETY: as above.
    let got = checked(unsafe { list(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) } as i64)?;
    let names = names[..got as usize].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<_> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}

/// removexattr(2).
pub fn remove_xattr(path: &Path, key: &str) -> Result<i64, Errno> {
    let (path, key) = (c(path), CString::new(key).unwrap());
    // SAFETY: both end with NUL and outlive the call.
    checked(unsafe { libc::removexattr(path.as_ptr(), key.as_ptr()) })
}

/// flock(2), waited for.
pub fn flock(fd: BorrowedFd<'_>, operation: i32) -> Result<i64, Errno> {
    // SAFETY: only numbers are passed.
    checked(unsafe { libc::flock(fd.as_raw_fd(), operation) })
}

/// Locks or unlocks the first 100 bytes, by F_SETLKW or F_OFD_SETLKW.
pub fn lock(fd: BorrowedFd<'_>, command: i32, kind: i32) -> Result<i64, Errno> {
    let lock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 100, l_pid: 0 };
    // SAFETY: both commands take a `struct flock`, which outlives the call.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw const lock) })
}

/// Runs something as another user, in this thread alone (setfsuid(2)).
pub fn as_user<T>(id: u32, work: impl FnOnce() -> T) -> T {
    let become_user = |id: u32| {
        // SAFETY: the list outlives the call; the others take numbers. The calls themselves, not the C library's, which
        // speak for all threads.
        unsafe {
            libc::syscall(libc::SYS_setgroups, 1, [id].as_ptr());
            libc::setfsgid(id);
            libc::setfsuid(id);
        }
    };
    let back = |_: &mut ()| {
        // SAFETY: only a number is passed.
        unsafe { libc::setfsuid(0) };
        become_user(0);
    };
    become_user(id);
    let result = work();
    back(&mut ());
    result
}

/// A shared map of part of a file, from the beginning of the page.
pub struct Shared {
    at: *mut u8,
    length: usize,
}

impl Shared {
    /// mmap(2). `offset` is a multiple of the page.
    pub fn new(fd: RawFd, offset: u64, length: usize, write: bool) -> Result<Shared, Errno> {
        let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        // SAFETY: the kernel chooses the place; nothing else is there.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, offset as libc::off_t)
        };
        if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Shared { at: at.cast(), length }) }
    }

    /// A byte of it. The file is at least that long.
    pub fn get(&self, at: usize) -> u8 {
        assert!(at < self.length);
        // SAFETY: it lies within the map; others may write there, so it is volatile.
        unsafe { self.at.add(at).read_volatile() }
    }

    /// Writes one. The map was made to write.
    pub fn put(&mut self, at: usize, byte: u8) {
        assert!(at < self.length);
        // SAFETY: as above.
        unsafe { self.at.add(at).write_volatile(byte) }
    }

    /// The number of that index; nobody else writes it.
    pub fn number(&self, index: usize) -> u64 {
        assert!(index * 8 + 8 <= self.length);
        // SAFETY: it lies within the map, which begins with a page.
        unsafe { self.at.cast::<u64>().add(index).read_volatile() }
    }

    pub fn set_number(&mut self, index: usize, number: u64) {
        assert!(index * 8 + 8 <= self.length);
        // SAFETY: as above.
        unsafe { self.at.cast::<u64>().add(index).write_volatile(number) }
    }

    /// msync(2).
    pub fn sync(&self) -> Result<i64, Errno> {
        // SAFETY: it is the whole map.
        checked(unsafe { libc::msync(self.at.cast(), self.length, libc::MS_SYNC) })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: it is the whole map, and nobody looks at it any more.
        unsafe { libc::munmap(self.at.cast(), self.length) };
    }
}

/// Watches a directory.
pub struct Watch(std::fs::File);

impl Watch {
    pub fn new(path: &Path, mask: u32) -> Result<Watch, Errno> {
        use std::os::fd::FromRawFd;
        let path = c(path);
        // SAFETY: a new descriptor belongs to nobody else; the path ends with NUL and outlives the call.
        unsafe {
            let fd = checked(libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC))? as RawFd;
            let file = std::fs::File::from_raw_fd(fd);
            checked(libc::inotify_add_watch(fd, path.as_ptr(), mask))?;
            Ok(Watch(file))
        }
    }

    /// What has been told by now: mask and name.
    pub fn events(&mut self) -> Vec<(u32, String)> {
        use std::io::Read;
        let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(got) = self.0.read(&mut buffer) {
            let mut left = &buffer[..got];
            while left.len() >= 16 {
                let number = |at: usize| u32::from_ne_bytes(left[at..at + 4].try_into().unwrap());
                let (mask, length) = (number(4), number(12) as usize);
                let name = left[16..16 + length].split(|&byte| byte == 0).next().unwrap_or_default();
                all.push((mask, String::from_utf8_lossy(name).into_owned()));
                left = &left[16 + length..];
            }
        }
        all
    }
}
