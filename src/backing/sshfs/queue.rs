//! How many requests a FUSE connection has that are not answered, as the kernel counts them: `waiting` of fusectl
//! (Documentation/filesystems/fuse). Those that a reader has taken count as well as those that nobody has seen, and
//! asynchronous ones as well as those with somebody waiting; FORGET does not.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::backing::process::owned;

/// Where fusectl is mounted on machines that have it mounted.
const USUAL: &str = "/sys/fs/fuse/connections";
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// Constants of include/uapi/linux/mount.h.
const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;

/// The count of the connection with that minor number. `NotFound`: there is no such connection.
pub fn waiting(minor: u32) -> io::Result<u64> {
    let mut text = String::new();
    open(minor)?.read_to_string(&mut text)?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("waiting: {text:?}")))
}

/// Waits until the count is zero; what it was when time ran out.
pub fn wait_until_empty(minor: u32, until: Instant) -> io::Result<u64> {
    loop {
        match waiting(minor)? {
            0 => return Ok(0),
            left if Instant::now() >= until => return Ok(left),
            _ => std::thread::sleep(LOOK),
        }
    }
}

fn open(minor: u32) -> io::Result<File> {
    match File::open(format!("{USUAL}/{minor}/waiting")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    // Not mounted, as a rule. A mount of our own that no table has goes with its descriptor.
    let control = mount()?;
    let name = format!("{minor}/waiting");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(openat(&control, name.as_str(), flags, Mode::empty())?.into())
}

/// A detached mount of fusectl (fsopen(2), fsmount(2)); needs CAP_SYS_ADMIN.
fn mount() -> nix::Result<OwnedFd> {
    // SAFETY: a C string and plain numbers go in, and a descriptor comes out that nobody else has.
    let context = unsafe { owned(libc::syscall(libc::SYS_fsopen, c"fusectl".as_ptr(), FSOPEN_CLOEXEC))? };
    let nothing = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes no key and no value.
    let made =
        unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, nothing, nothing, 0) };
    Errno::result(made)?;
    // SAFETY: plain numbers go in, and a descriptor comes out that nobody else has.
    unsafe { owned(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_not_there_is_not_found() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        assert_eq!(waiting(u32::MAX).expect_err("no such connection").kind(), io::ErrorKind::NotFound);
    }
}
