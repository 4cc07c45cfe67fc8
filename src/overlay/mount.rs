//! The overlay's place in the tree: mounting, finding and unmounting it, without fuser's help.
//!
//! The mount is known by its st_dev, not by its path: what lies at the path may be a stranger's by now. Only
//! `/proc/self/mountinfo` is asked, never the mount itself.

mod guard;
mod helper;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::backing::mountinfo;
use crate::config::OverlayConfig;
use crate::daemon::MountError;

/// Most bytes of one read request. Buffered reads arrive in pieces of the mount's read-ahead.
const MAX_READ: u32 = 128 << 10;
/// Read-ahead of the mount in KiB, where it may be set (sysfs-class-bdi).
const READ_AHEAD_KIB: u32 = 1024;

/// A mounted overlay.
#[derive(Debug)]
pub struct Mount {
    dev: (u32, u32),
    mountpoint: PathBuf,
}

impl Mount {
    /// Mounts at `mountpoint`, a canonical path, and returns the device to serve.
    pub fn attach(config: &OverlayConfig, label: &str, mountpoint: &Path) -> Result<(OwnedFd, Mount), MountError> {
        let root = nix::unistd::geteuid().is_root();
        if config.guard {
            guard::protect(mountpoint);
        }
        let before = devices_at(mountpoint).map_err(system)?;
        let source = config.fsname.as_deref().unwrap_or(label);
        let device =
            if root { mount_as_root(config, source, mountpoint)? } else { helper::mount(config, source, mountpoint)? };
        let dev = devices_at(mountpoint).map_err(system)?.into_iter().rfind(|dev| !before.contains(dev));
        let Some(dev) = dev else {
            return Err(MountError::System(format!("{} was unmounted again at once", mountpoint.display())));
        };
        if root {
            let read_ahead = format!("/sys/class/bdi/{}:{}/read_ahead_kb", dev.0, dev.1);
            if let Err(error) = std::fs::write(&read_ahead, READ_AHEAD_KIB.to_string()) {
                tracing::debug!(path = read_ahead, %error, "the kernel's read-ahead stays as it is");
            }
        }
        Ok((device, Mount { dev, mountpoint: mountpoint.to_owned() }))
    }

    /// Major and minor number of st_dev of everything on it.
    pub fn dev(&self) -> (u32, u32) {
        self.dev
    }

    /// True while it is mounted in this mount namespace.
    pub fn is_mounted(&self) -> bool {
        self.places().is_ok_and(|places| !places.is_empty())
    }

    fn places(&self) -> io::Result<Vec<PathBuf>> {
        let entries = mountinfo::entries()?;
        Ok(entries.into_iter().filter(|entry| entry.dev == self.dev).map(|entry| entry.mountpoint).collect())
    }

    /// Unmounts it wherever this namespace has it (bind mounts too). EBUSY if it is in use, unless `lazy`.
    pub fn unmount(&self, lazy: bool) -> io::Result<()> {
        let flags = MntFlags::UMOUNT_NOFOLLOW | if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
        for place in self.places()?.iter().rev() {
            match umount2(place.as_path(), flags) {
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(Errno::EPERM) => helper::unmount(place, lazy)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Ends the FUSE connection: whoever still has the mount gets ENOTCONN from now on.
    pub fn abort(&self) {
        for place in self.places().unwrap_or_default() {
            let _ = umount2(place.as_path(), MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW);
        }
        let _ = std::fs::write(format!("/sys/fs/fuse/connections/{}/abort", self.dev.1), "1");
    }

    /// Where it was mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }
}

fn system(error: io::Error) -> MountError {
    MountError::System(format!("/proc/self/mountinfo: {error}"))
}

fn devices_at(mountpoint: &Path) -> io::Result<Vec<(u32, u32)>> {
    let entries = mountinfo::entries()?;
    Ok(entries.into_iter().filter(|entry| entry.mountpoint == mountpoint).map(|entry| entry.dev).collect())
}

/// mount(8)'s names of the flags of mount(2). The last word on a flag counts.
fn flags_of(config: &OverlayConfig) -> MsFlags {
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for name in &config.mount_flags {
        let (set, clear) = match name.as_str() {
            "nosuid" => (MsFlags::MS_NOSUID, MsFlags::empty()),
            "suid" => (MsFlags::empty(), MsFlags::MS_NOSUID),
            "nodev" => (MsFlags::MS_NODEV, MsFlags::empty()),
            "dev" => (MsFlags::empty(), MsFlags::MS_NODEV),
            "noexec" => (MsFlags::MS_NOEXEC, MsFlags::empty()),
            "exec" => (MsFlags::empty(), MsFlags::MS_NOEXEC),
            "noatime" => (MsFlags::MS_NOATIME, MsFlags::empty()),
            "atime" => (MsFlags::empty(), MsFlags::MS_NOATIME),
            "nodiratime" => (MsFlags::MS_NODIRATIME, MsFlags::empty()),
            "relatime" => (MsFlags::MS_RELATIME, MsFlags::empty()),
            "strictatime" => (MsFlags::MS_STRICTATIME, MsFlags::empty()),
            "sync" => (MsFlags::MS_SYNCHRONOUS, MsFlags::empty()),
            "dirsync" => (MsFlags::MS_DIRSYNC, MsFlags::empty()),
            _ => continue,
        };
        flags = (flags - clear) | set;
    }
    if config.read_only { flags | MsFlags::MS_RDONLY } else { flags }
}

fn mount_as_root(config: &OverlayConfig, source: &str, mountpoint: &Path) -> Result<OwnedFd, MountError> {
    let device = open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| {
        MountError::System(format!(
            "/dev/fuse cannot be opened: {}; is the fuse module loaded (`modprobe fuse`)?",
            errno.desc()
        ))
    })?;
    // Values are numbers only, so no name can bring an option in.
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read={MAX_READ}",
        device.as_raw_fd(),
        nix::unistd::geteuid(),
        nix::unistd::getegid()
    );
    if config.allow_other {
        data.push_str(",allow_other");
    }
    let kind = format!("fuse.{}", config.subtype);
    mount(Some(source), mountpoint, Some(kind.as_str()), flags_of(config), Some(data.as_str()))
        .map_err(|errno| MountError::Mount(format!("mounting on {}: {}", mountpoint.display(), errno.desc())))?;
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_a_flag_counts() {
        let config = |names: &[&str]| OverlayConfig {
            mount_flags: names.iter().map(|name| (*name).to_owned()).collect(),
            ..OverlayConfig::default()
        };
        assert!(flags_of(&config(&[])).contains(MsFlags::MS_NOSUID | MsFlags::MS_NODEV));
        assert!(!flags_of(&config(&["suid"])).contains(MsFlags::MS_NOSUID));
        assert!(flags_of(&config(&["suid", "nosuid", "noexec"])).contains(MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC));
    }
}
