//! Directory entries by getdents64(2) itself: readdir(3) stops at names of 255 bytes, a remote server may not.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;

use super::retry;
use crate::backing::{DirEntry, FileKind, OpResult};

/// Room for the entries of one call, in bytes; larger means fewer round trips to a slow backing.
const BUFFER: usize = 64 * 1024;
/// Most bytes of names, and most entries, that one listing has: a server may send one without an end.
const LARGEST: (usize, usize) = (256 << 20, 4 << 20);

/// Bytes before d_name in `struct linux_dirent64`: d_ino, d_off, d_reclen, d_type.
const HEADER: usize = 8 + 8 + 2 + 1;

/// All entries of an open directory but `.` and `..`, in its own order.
pub(super) fn read_all(fd: &OwnedFd) -> OpResult<Vec<DirEntry>> {
    let mut entries = Vec::new();
    let mut read = 0_usize;
    let mut buffer = vec![0u8; BUFFER];
    loop {
        let filled = retry(|| getdents(fd, &mut buffer))?;
        if filled == 0 {
            return Ok(entries);
        }
        read = read.saturating_add(filled);
        if read > LARGEST.0 || entries.len() > LARGEST.1 {
            return Err(Errno::EOVERFLOW);
        }
        // A directory that answers nonsense is an error, not a shorter directory.
        parse(buffer.get(..filled).ok_or(Errno::EIO)?, &mut entries).ok_or(Errno::EIO)?;
    }
}

fn getdents(fd: &OwnedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to the buffer, which is borrowed for the call.
    let filled = unsafe { libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    Errno::result(filled).map(|n| usize::try_from(n).unwrap_or(0))
}

/// Adds the records in `bytes`; `None` if they do not add up.
pub(crate) fn parse(mut bytes: &[u8], entries: &mut Vec<DirEntry>) -> Option<()> {
    while !bytes.is_empty() {
        let length = usize::from(u16::from_ne_bytes([*bytes.get(16)?, *bytes.get(17)?]));
        let record = bytes.get(..length)?;
        let name = record.get(HEADER..)?.split(|&b| b == 0).next()?;
        if name.is_empty() || name.contains(&b'/') {
            return None;
        }
        if name != b"." && name != b".." {
            let ino = u64::from_ne_bytes(*record.first_chunk()?);
            entries.push(DirEntry { name: OsString::from_vec(name.to_vec()), kind: kind(record[HEADER - 1]), ino });
        }
        bytes = &bytes[length..];
    }
    Some(())
}

fn kind(d_type: u8) -> Option<FileKind> {
    Some(match d_type {
        libc::DT_REG => FileKind::Regular,
        libc::DT_DIR => FileKind::Directory,
        libc::DT_LNK => FileKind::Symlink,
        libc::DT_FIFO => FileKind::Fifo,
        libc::DT_SOCK => FileKind::Socket,
        libc::DT_CHR => FileKind::CharDevice,
        libc::DT_BLK => FileKind::BlockDevice,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(name: &[u8], d_type: u8) -> Vec<u8> {
        let length = (HEADER + name.len() + 1).next_multiple_of(8);
        let mut out = vec![0u8; length];
        out[..8].copy_from_slice(&77_u64.to_ne_bytes());
        out[16..18].copy_from_slice(&(length as u16).to_ne_bytes());
        out[18] = d_type;
        out[HEADER..HEADER + name.len()].copy_from_slice(name);
        out
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut entries = Vec::new();
            let _ = parse(&bytes, &mut entries);
        }
    }

    #[test]
    fn long_names_and_all_types() {
        let long = vec![0xffu8; 700];
        let bytes: Vec<u8> =
            [record(b".", 4), record(b"..", 4), record(&long, 8), record(b"x", 10), record(b"y", 0)].concat();
        let mut entries = Vec::new();
        assert_eq!(parse(&bytes, &mut entries), Some(()));
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[0], DirEntry { name: OsString::from_vec(long), kind: Some(FileKind::Regular), ino: 77 });
        assert_eq!(entries[1].kind, Some(FileKind::Symlink));
        assert_eq!(entries[2].kind, None);
    }

    #[test]
    fn nonsense_is_told() {
        let mut entries = Vec::new();
        assert_eq!(parse(&[0; 24], &mut entries), None, "a record of no length");
        assert_eq!(parse(&record(b"a/b", 8), &mut entries), None, "a name with a slash");
        let cut = record(b"name", 8);
        assert_eq!(parse(&cut[..cut.len() - 1], &mut entries), None, "a record cut short");
        assert!(entries.is_empty());
    }
}
