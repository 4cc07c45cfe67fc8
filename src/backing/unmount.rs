//! Unmounting exactly what a mount table named. Whoever may rename a directory above a mountpoint can lead its path to
//! another mount between a look and umount2(2); so the path is walked without following a link, and what it ends at is
//! compared with the table before the call.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, umount2};

use super::mountinfo::Entry;

/// A directory that is held, reached by a path without any link.
pub fn hold(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how =
        OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, path, how)
}

/// umount2(2) of that very mount; `flags` get UMOUNT_NOFOLLOW. EINVAL if something else, or nothing, is there now. No call
/// is made into the mount, which may hang.
pub fn exactly(entry: &Entry, flags: MntFlags) -> nix::Result<()> {
    let flags = flags | MntFlags::UMOUNT_NOFOLLOW;
    let (Some(parent), Some(name)) = (entry.mountpoint.parent(), entry.mountpoint.file_name()) else {
        return umount2(&entry.mountpoint, flags);
    };
    let parent = match hold(parent) {
        Err(Errno::ELOOP | Errno::ENOENT | Errno::ENOTDIR) => return Err(Errno::EINVAL),
        held => held?,
    };
    // A mountpoint cannot be renamed or removed, so from its parent on the name is certain.
    let place = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    // Closed before the call: it would keep the mount busy.
    let found = openat2(&parent, Path::new(name), how).and_then(|root| mount_id(&root));
    match found {
        Ok(id) if id == entry.id => umount2(&place, flags),
        Ok(_) | Err(Errno::ENOENT) => Err(Errno::EINVAL),
        Err(errno) => Err(errno),
    }
}

/// The mount that a descriptor is on; only the kernel is asked (proc_pid_fdinfo(5)).
fn mount_id(descriptor: &OwnedFd) -> nix::Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd()));
    let info = info.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    mount_id_in(&info).ok_or(Errno::EIO)
}

pub(crate) fn mount_id_in(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use nix::mount::{MsFlags, mount};

    use super::*;
    use crate::backing::mountinfo;

    /// A tmpfs on a directory, gone when it is dropped.
    struct Tmpfs(PathBuf);

    impl Tmpfs {
        fn on(path: PathBuf) -> Tmpfs {
            std::fs::create_dir_all(&path).expect("made");
            mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=4k")).expect("root may mount");
            Tmpfs(path)
        }

        fn entry(&self) -> Entry {
            mountinfo::at(&self.0).expect("a table").expect("it is mounted")
        }
    }

    impl Drop for Tmpfs {
        fn drop(&mut self) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_unmounts_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = dir.path().canonicalize().expect("real");
        let (ours, mut strangers) = (Tmpfs::on(base.join("ours/hot")), Tmpfs::on(base.join("strangers/hot")));
        let entry = ours.entry();
        // Another directory in the place of the parent, then a link.
        std::fs::rename(base.join("ours"), base.join("moved")).expect("renamed");
        std::fs::rename(base.join("strangers"), base.join("ours")).expect("renamed");
        strangers.0 = base.join("ours/hot");
        assert_eq!(exactly(&entry, MntFlags::empty()), Err(Errno::EINVAL));
        std::fs::rename(base.join("ours"), base.join("strangers")).expect("renamed");
        strangers.0 = base.join("strangers/hot");
        std::os::unix::fs::symlink("strangers", base.join("ours")).expect("linked");
        assert_eq!(exactly(&entry, MntFlags::empty()), Err(Errno::EINVAL));
        strangers.entry();
        std::fs::remove_file(base.join("ours")).expect("removed");
        std::fs::rename(base.join("moved"), base.join("ours")).expect("renamed");
        assert_eq!(exactly(&entry, MntFlags::empty()), Ok(()));
        assert_eq!(mountinfo::at(&base.join("ours/hot")).expect("a table"), None);
    }

    #[test]
    fn of_two_on_one_place_only_the_one_that_is_meant_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().canonicalize().expect("real").join("hot");
        let below = Tmpfs::on(place.clone());
        let entry = below.entry();
        let above = Tmpfs::on(place);
        assert_eq!(exactly(&entry, MntFlags::empty()), Err(Errno::EINVAL));
        assert_eq!(exactly(&above.entry(), MntFlags::empty()), Ok(()));
        assert_eq!(exactly(&entry, MntFlags::empty()), Ok(()));
    }
}
