//! Mounting without privileges: fusermount3 mounts and hands the device over a socket (util/fusermount.c of libfuse).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair};

use super::MAX_READ;
use crate::config::OverlayConfig;
use crate::daemon::MountError;

/// Mounts through fusermount3.
pub fn mount(config: &OverlayConfig, source: &str, mountpoint: &Path) -> Result<OwnedFd, MountError> {
    let failed =
        |error: io::Error| MountError::System(format!("fusermount3: {error}; is the package fuse3 installed?"));
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| failed(errno.into()))?;
    let mut command = Command::new("fusermount3");
    command
        .arg("-o")
        .arg(options(config, source))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string());
    let descriptor = theirs.as_raw_fd();
    // SAFETY: fcntl is async-signal-safe, and the descriptor stays open until the command has ended.
    unsafe {
        command.pre_exec(move || {
            let borrowed = std::os::fd::BorrowedFd::borrow_raw(descriptor);
            fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(())
        });
    }
    let output = command.output().map_err(failed)?;
    drop(theirs);
    if !output.status.success() {
        return Err(MountError::Mount(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    receive(&ours).map_err(failed)
}

fn receive(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0_u8; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([std::os::fd::RawFd; 1]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(&descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
    Err(io::Error::other("it sent no device"))
}

fn options(config: &OverlayConfig, source: &str) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = format!(
        "fsname={},subtype={},default_permissions,max_read={MAX_READ}",
        escape(source),
        escape(&config.subtype)
    );
    if config.allow_other {
        options.push_str(",allow_other");
    }
    if config.read_only {
        options.push_str(",ro");
    }
    // fusermount3 refuses the first two to others than root and does not know the third, which is the default.
    for flag in config.mount_flags.iter().filter(|flag| !matches!(flag.as_str(), "suid" | "dev" | "symfollow")) {
        options.push(',');
        options.push_str(flag);
    }
    options
}

/// Unmounts through fusermount3.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if words.contains("busy") { io::Error::from_raw_os_error(libc::EBUSY) } else { io::Error::other(words) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_name_brings_no_option_in() {
        let config = OverlayConfig { allow_other: false, ..OverlayConfig::default() };
        assert!(options(&config, "a,allow_other").starts_with("fsname=a\\,allow_other,"));
    }
}
