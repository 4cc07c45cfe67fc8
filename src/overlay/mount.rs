//! The overlay's place in the tree: mounting, finding and unmounting it, without fuser's help.
//!
//! The mount is known by its st_dev, type and source, not by its path: what lies at the path may be a stranger's by now. Only
//! `/proc/self/mountinfo` is asked, never the mount itself.

mod guard;
mod helper;
mod spot;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount};
use nix::sys::stat::Mode;

use crate::backing::{mountinfo, unmount};
use crate::config::OverlayConfig;
use crate::daemon::MountError;
use crate::keeper::abandon::Place;
use spot::Spot;

/// Most bytes of one read request. Buffered reads arrive in pieces of the mount's read-ahead.
const MAX_READ: u32 = 128 << 10;
/// Read-ahead of the mount in KiB, where it may be set (sysfs-class-bdi).
const READ_AHEAD_KIB: u32 = 1024;
/// How often an unmount looks again where the mount is, while somebody renames directories above it.
const LOOKS: usize = 20;

/// A mounted overlay.
#[derive(Debug)]
pub struct Mount {
    dev: (u32, u32),
    /// Number of the mount itself, if it was seen where it belongs.
    id: Option<u64>,
    fstype: String,
    source: String,
    mountpoint: PathBuf,
    /// It is mounted nowhere any more: whoever has its numbers now is somebody else.
    gone: AtomicBool,
}

impl Mount {
    /// Mounts at `mountpoint`, a canonical path, and returns the device to serve.
    pub fn attach(config: &OverlayConfig, label: &str, mountpoint: &Path) -> Result<(OwnedFd, Mount), MountError> {
        let root = nix::unistd::geteuid().is_root();
        let spot = Spot::open(mountpoint, config.directory)?;
        if config.guard {
            guard::protect(&spot.name(), mountpoint);
        }
        let kind = format!("fuse.{}", config.subtype);
        let before = mounted(&kind).map_err(system)?;
        // By number and place: the kernel gives the number of a mount that goes meanwhile to this one.
        let new_at = |place: &Path| {
            let mut found = mounted(&kind).map_err(system)?.into_iter();
            Ok(found.rfind(|one| one.mountpoint == place && !before.iter().any(|other| is_same(one, other))))
        };
        let source = config.fsname.as_deref().unwrap_or(label);
        // fusermount3 has checks of its own against the same.
        let device = if root {
            mount_as_root(config, source, &spot.name(), mountpoint)?
        } else {
            helper::mount(config, source, mountpoint)?
        };
        let attached = |entry: mountinfo::Entry| Mount {
            dev: entry.dev,
            id: Some(entry.id),
            fstype: kind.clone(),
            source: source.to_owned(),
            mountpoint: mountpoint.to_owned(),
            gone: AtomicBool::new(false),
        };
        if let Some(entry) = new_at(mountpoint)? {
            return Ok((device, attached(entry)));
        }
        // On the right directory, but that has been renamed meanwhile.
        if let Some(entry) = spot.place().ok().map(|place| new_at(&place)).transpose()?.flatten() {
            drop(device);
            attached(entry).unmount(true).map_err(system)?;
            return Err(spot::swapped(mountpoint));
        }
        Err(MountError::System(format!("{} was unmounted again at once", mountpoint.display())))
    }

    /// One that a predecessor has attached, by its st_dev.
    pub fn resumed(config: &OverlayConfig, label: &str, mountpoint: &Path, dev: (u32, u32)) -> Mount {
        let fstype = format!("fuse.{}", config.subtype);
        let source = config.fsname.as_deref().unwrap_or(label).to_owned();
        let mountpoint = mountpoint.to_owned();
        let mut mount = Mount { dev, id: None, fstype, source, mountpoint, gone: AtomicBool::new(false) };
        let mut found = mountinfo::entries().unwrap_or_default().into_iter();
        mount.id = found.rfind(|one| mount.is(one) && one.mountpoint == mount.mountpoint).map(|one| one.id);
        mount
    }

    /// What a keeper has to know to end it.
    pub fn place(&self) -> Place {
        Place::new(self.dev, self.fstype.as_ref(), self.source.as_ref()).numbered(self.id)
    }

    /// To be called once the kernel has begun the session (which resets it): raises the read-ahead, where that is allowed.
    pub fn raise_read_ahead(&self) {
        let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", self.dev.0, self.dev.1);
        if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
            tracing::debug!(path, %error, "the kernel's read-ahead stays as it is");
        }
    }

    /// Major and minor number of st_dev of everything on it.
    pub fn dev(&self) -> (u32, u32) {
        self.dev
    }

    /// True while it is mounted in this mount namespace.
    pub fn is_mounted(&self) -> bool {
        !self.gone.load(Relaxed) && mountinfo::entries().is_ok_and(|entries| entries.iter().any(|entry| self.is(entry)))
    }

    /// True while it is mounted where it was mounted first.
    pub fn is_at_its_place(&self) -> bool {
        let here = |entry: &mountinfo::Entry| self.is(entry) && entry.mountpoint == self.mountpoint;
        !self.gone.load(Relaxed) && mountinfo::entries().is_ok_and(|entries| entries.iter().any(here))
    }

    /// The kernel gives a st_dev that has become free to the next filesystem, so type and source count too.
    fn is(&self, entry: &mountinfo::Entry) -> bool {
        entry.dev == self.dev && entry.fstype == *self.fstype && entry.source == *self.source
    }

    /// Its mounts, bind mounts too, last mounted first. When the first of them has gone, the others may be somebody else's of the
    /// same source, who has got the st_dev: then there are none.
    fn ours<'a>(&self, entries: &'a [mountinfo::Entry]) -> Vec<&'a mountinfo::Entry> {
        let all: Vec<_> = entries.iter().rev().filter(|entry| self.is(entry)).collect();
        let is_there = self.id.is_none_or(|id| all.iter().any(|entry| entry.id == id));
        if is_there { all } else { Vec::new() }
    }

    /// Makes its flags those of `config`, `ro` included, while it is mounted. EBUSY if it is to be read-only and somebody writes.
    pub fn change(&self, config: &OverlayConfig) -> io::Result<()> {
        // By its path, so nothing of somebody else's may lie on it.
        if !self.places()?.0.iter().any(|entry| entry.mountpoint == self.mountpoint) {
            return Err(Errno::EBUSY.into());
        }
        let flags = flags_of(config) | MsFlags::MS_REMOUNT;
        let none: Option<&str> = None;
        let kind = self.fstype.as_str();
        mount(Some(self.source.as_str()), &self.mountpoint, Some(kind), flags, none).map_err(io::Error::from)
    }

    /// Where it is mounted and can be reached, last mounted first; the flag says that there are others, over which
    /// somebody else has mounted: unmounting these by path would unmount the stranger's.
    fn places(&self) -> io::Result<(Vec<mountinfo::Entry>, bool)> {
        if self.gone.load(Relaxed) {
            return Ok((Vec::new(), false));
        }
        let entries = mountinfo::entries()?;
        let ours = self.ours(&entries);
        if self.gone.fetch_or(ours.is_empty(), Relaxed) {
            return Ok((Vec::new(), false));
        }
        let (reachable, covered): (Vec<_>, Vec<_>) = ours.into_iter().partition(|entry| is_reachable(entry, &entries));
        Ok((reachable.into_iter().cloned().collect(), !covered.is_empty()))
    }

    /// Unmounts it wherever this namespace has it (bind mounts too). EBUSY if it is in use, unless `lazy`, or if
    /// something else is mounted over it.
    pub fn unmount(&self, lazy: bool) -> io::Result<()> {
        let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
        if self.gone.load(Relaxed) {
            return Ok(());
        }
        let mut entries = mountinfo::entries()?;
        // Those of the first look alone: who comes later may have got the numbers of one that has gone.
        let mut left: HashSet<u64> = self.ours(&entries).iter().map(|entry| entry.id).collect();
        for _ in 0..LOOKS {
            let mut places: Vec<_> =
                entries.iter().rev().filter(|one| self.is(one) && left.contains(&one.id)).collect();
            left = places.iter().map(|entry| entry.id).collect();
            places.retain(|entry| is_reachable(entry, &entries));
            if places.is_empty() {
                break;
            }
            for entry in places {
                match unmount::exactly(entry, flags) {
                    Ok(()) => _ = left.remove(&entry.id),
                    // It is gone, or it is elsewhere: the next look says which.
                    Err(Errno::EINVAL) => {}
                    Err(Errno::EPERM) => {
                        helper::unmount(&entry.mountpoint, lazy)?;
                        left.remove(&entry.id);
                    }
                    Err(errno) => return Err(errno.into()),
                }
            }
            entries = mountinfo::entries()?;
        }
        if !left.is_empty() {
            return Err(Errno::EBUSY.into());
        }
        // The next mount of the same source may get the same st_dev within the millisecond.
        self.gone.store(true, Relaxed);
        Ok(())
    }

    /// Ends the FUSE connection: whoever still has the mount gets ENOTCONN from now on.
    pub fn abort(&self) {
        let (places, covered) = self.places().unwrap_or_default();
        if !places.is_empty() || covered {
            // The name there is the whole device number; the major of such filesystems is 0.
            let _ = std::fs::write(format!("/sys/fs/fuse/connections/{}/abort", self.dev.1), "1");
        }
        for entry in places {
            // EBUSY is the usual answer, and the connection is aborted all the same.
            let _ = unmount::exactly(&entry, MntFlags::MNT_FORCE);
        }
    }

    /// As [`Mount::abort`], for a session of this process that has no mount here any more: while its device is open, nobody
    /// else has the number.
    pub fn end_connection(&self) {
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

/// Every mount of that type, the last one mounted at the end.
fn mounted(kind: &str) -> io::Result<Vec<mountinfo::Entry>> {
    Ok(mountinfo::entries()?.into_iter().filter(|entry| entry.fstype == kind).collect())
}

fn is_same(one: &mountinfo::Entry, other: &mountinfo::Entry) -> bool {
    (one.id, one.dev, &one.mountpoint) == (other.id, other.dev, &other.mountpoint)
}

/// Nobody has mounted over it.
fn is_reachable(entry: &mountinfo::Entry, entries: &[mountinfo::Entry]) -> bool {
    mountinfo::covering_in(entries, &entry.mountpoint).is_some_and(|found| found.id == entry.id)
}

/// MS_NOSYMFOLLOW of include/uapi/linux/mount.h.
const NO_SYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

/// What mount(8)'s name of a flag sets and what it clears; `None` if it is not the name of one.
pub(crate) fn flag(name: &str) -> Option<(MsFlags, MsFlags)> {
    let (set, clear) = (|flag| (flag, MsFlags::empty()), |flag| (MsFlags::empty(), flag));
    Some(match name {
        "nosuid" => set(MsFlags::MS_NOSUID),
        "suid" => clear(MsFlags::MS_NOSUID),
        "nodev" => set(MsFlags::MS_NODEV),
        "dev" => clear(MsFlags::MS_NODEV),
        "noexec" => set(MsFlags::MS_NOEXEC),
        "exec" => clear(MsFlags::MS_NOEXEC),
        "noatime" => set(MsFlags::MS_NOATIME),
        "atime" => clear(MsFlags::MS_NOATIME),
        "nodiratime" => set(MsFlags::MS_NODIRATIME),
        "diratime" => clear(MsFlags::MS_NODIRATIME),
        "relatime" => set(MsFlags::MS_RELATIME),
        "norelatime" => clear(MsFlags::MS_RELATIME),
        "strictatime" => set(MsFlags::MS_STRICTATIME),
        "nostrictatime" => clear(MsFlags::MS_STRICTATIME),
        "lazytime" => set(MsFlags::MS_LAZYTIME),
        "nolazytime" => clear(MsFlags::MS_LAZYTIME),
        "sync" => set(MsFlags::MS_SYNCHRONOUS),
        "async" => clear(MsFlags::MS_SYNCHRONOUS),
        "dirsync" => set(MsFlags::MS_DIRSYNC),
        "nosymfollow" => set(NO_SYMFOLLOW),
        "symfollow" => clear(NO_SYMFOLLOW),
        _ => return None,
    })
}

/// The flags of mount(2). The last word on a flag counts.
fn flags_of(config: &OverlayConfig) -> MsFlags {
    let begin = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let given = config.mount_flags.iter().filter_map(|name| flag(name));
    let flags = given.fold(begin, |flags, (set, clear)| (flags - clear) | set);
    if config.read_only { flags | MsFlags::MS_RDONLY } else { flags }
}

/// Mounts on `place`, which is another name of `mountpoint`.
fn mount_as_root(config: &OverlayConfig, source: &str, place: &Path, mountpoint: &Path) -> Result<OwnedFd, MountError> {
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
    mount(Some(source), place, Some(kind.as_str()), flags_of(config), Some(data.as_str()))
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

    #[test]
    fn every_flag_that_is_taken_is_handled() {
        for name in crate::cli::options::known::FLAGS {
            assert!(flag(name).is_some(), "{name}");
        }
        let config = |names: &[&str]| OverlayConfig {
            mount_flags: names.iter().map(|name| (*name).to_owned()).collect(),
            ..OverlayConfig::default()
        };
        assert!(
            flags_of(&config(&["async", "sync", "lazytime", "nosymfollow"])).bits() & (16 | 1 << 25 | 256)
                == 16 | 1 << 25 | 256
        );
        assert!(!flags_of(&config(&["sync", "async"])).contains(MsFlags::MS_SYNCHRONOUS));
        assert!(!flags_of(&config(&["nosymfollow", "symfollow"])).contains(NO_SYMFOLLOW));
    }
}
