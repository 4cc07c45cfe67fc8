//! Promise P5: while nothing is mounted on a hot path, nobody writes into the directory below it, root neither.
//!
//! The directory gets the immutable attribute (chattr(1), `i`), which stays when the overlay is unmounted: that is when
//! it is needed. `chattr -i DIR` takes it away.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;

/// FS_IMMUTABLE_FL of include/uapi/linux/fs.h.
const IMMUTABLE: libc::c_int = 0x10;

/// Makes an empty directory, called `shown`, immutable; where the filesystem cannot, nobody but root may enter it. A directory that holds
/// something is left alone: its files would be locked in, and it may be the root of somebody's filesystem.
pub fn protect(directory: &Path, shown: &Path) {
    let shown = shown.display();
    match std::fs::read_dir(directory).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!(directory = %shown, "the directory is not empty, so it is not guarded");
            return;
        }
        Err(error) => {
            tracing::warn!(directory = %shown, %error, "the directory cannot be read, so it is not guarded");
            return;
        }
    }
    if let Err(error) = set_immutable(directory) {
        tracing::warn!(
            directory = %shown, %error,
            "the directory cannot be made immutable; it gets mode 0000 instead, which does not stop root"
        );
        if let Err(error) = std::fs::set_permissions(directory, PermissionsExt::from_mode(0o000)) {
            tracing::warn!(directory = %shown, %error, "nor can its mode be changed");
        }
    }
}

fn set_immutable(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    let mut flags: libc::c_int = 0;
    // The argument is a long by its number and an int in fact (ioctl_iflags(2)).
    // SAFETY: the descriptor is open and the kernel writes one int, into `flags`.
    Errno::result(unsafe { libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) })?;
    let wanted = flags | IMMUTABLE;
    // SAFETY: the descriptor is open and the kernel reads one int, from `wanted`.
    Errno::result(unsafe { libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_SETFLAGS, &wanted) })?;
    Ok(())
}
