//! Promise P5: while nothing is mounted on a hot path, nobody writes into the directory below it, root neither.
//!
//! The directory gets the immutable attribute (chattr(1), `i`), which stays when the overlay is unmounted: that is when
//! it is needed. `chattr -i DIR` takes it away.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

mod ioctl {
    #![allow(missing_docs)]
    // include/uapi/linux/fs.h. The argument is declared as a long there and is an int in fact.
    nix::ioctl_read!(get_flags, b'f', 1, nix::libc::c_long);
    nix::ioctl_write_ptr!(set_flags, b'f', 2, nix::libc::c_long);
}

/// FS_IMMUTABLE_FL of include/uapi/linux/fs.h.
const IMMUTABLE: libc::c_long = 0x10;

/// Makes an empty directory immutable; where the filesystem cannot, nobody but root may enter it.
pub fn protect(directory: &Path) {
    if let Err(error) = set_immutable(directory) {
        tracing::warn!(
            directory = %directory.display(), %error,
            "the directory cannot be made immutable; it gets mode 0000 instead, which does not stop root"
        );
        if let Err(error) = std::fs::set_permissions(directory, PermissionsExt::from_mode(0)) {
            tracing::warn!(directory = %directory.display(), %error, "nor can its mode be changed");
        }
    }
}

fn set_immutable(directory: &Path) -> std::io::Result<()> {
    let directory = File::open(directory)?;
    let mut flags: libc::c_long = 0;
    // SAFETY: the descriptor is open and `flags` outlives the call, which writes at most a long.
    unsafe { ioctl::get_flags(directory.as_raw_fd(), &mut flags) }?;
    let wanted = flags | IMMUTABLE;
    // SAFETY: as above; the call only reads.
    unsafe { ioctl::set_flags(directory.as_raw_fd(), &wanted) }?;
    Ok(())
}
