//! Removes what a killed daemon left behind, without ever reaching into a mount.

use std::ffi::{CStr, OsStr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MntFlags;
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{claim, place};
use crate::backing::sshfs::{self, orphans};
use crate::backing::{mountinfo, unmount};
use crate::daemon::MountError;

/// Detaches a mount whether it is in use or not.
pub fn detach(entry: &mountinfo::Entry) -> Result<(), MountError> {
    let path = entry.mountpoint.as_path();
    let Err(errno) = unmount::exactly(entry, MntFlags::MNT_DETACH) else { return Ok(()) };
    if errno != Errno::EPERM {
        return Err(MountError::Mount(format!("{}: {}", path.display(), errno.desc())));
    }
    // Others than root go through the helper that mounted.
    let output = std::process::Command::new("fusermount3").args(["-u", "-z", "--"]).arg(path).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(MountError::Mount(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(error) => Err(MountError::System(format!("fusermount3: {error}: run apt install fuse3"))),
    }
}

/// Empties a runtime directory and removes it: its private mounts are detached first, and then only plain files and
/// empty directories go, so that no file on a server can be touched.
pub fn directory(dir: &Path) -> Result<(), MountError> {
    contents(dir, None)?;
    std::fs::remove_dir(dir).map_err(|error| MountError::System(format!("{}: {error}", dir.display())))
}

/// As [`directory`], but it stays, and so does the generation with that number, which is to be taken over. A link in its place is an error, and so is a directory that is not ours.
pub fn contents(dir: &Path, spared: Option<u64>) -> Result<(), MountError> {
    let fail = |errno: Errno| match errno {
        Errno::ELOOP | Errno::ENOTDIR => claim::foreign(dir),
        _ => MountError::System(format!("{}: {}", dir.display(), errno.desc())),
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut opened = Dir::open(dir, flags, Mode::empty()).map_err(fail)?;
    let found = fstat(&opened).map_err(fail)?;
    if !claim::is_ours(found.st_uid, found.st_mode) {
        return Err(claim::foreign(dir));
    }
    // Mount tables have no links in their paths.
    let real = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).unwrap_or_else(|_| dir.to_owned());
    let table = mountinfo::entries().map_err(place::no_mountinfo)?;
    orphans::end_all(dir, spared);
    let spared: Vec<_> = spared.map(sshfs::names).into_iter().flatten().collect();
    let stays = |path: &Path| spared.iter().any(|name| path == real.join(name));
    let below = |entry: &&mountinfo::Entry| entry.mountpoint.starts_with(&real) && !stays(&entry.mountpoint);
    for entry in table.iter().rev().filter(below) {
        detach(entry)?;
    }
    let names: Result<Vec<_>, Errno> = opened.iter().map(|entry| Ok(entry?.file_name().to_owned())).collect();
    let is_spared = |name: &CStr| {
        matches!(name.to_bytes(), b"." | b"..") || spared.iter().any(|spared| spared.as_bytes() == name.to_bytes())
    };
    for name in names.map_err(fail)?.iter().filter(|name| !is_spared(name)) {
        let removed = match unlinkat(&opened, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            // Linux says EISDIR, POSIX EPERM.
            Err(Errno::EISDIR | Errno::EPERM) => unlinkat(&opened, name.as_c_str(), UnlinkatFlags::RemoveDir),
            other => other,
        };
        removed.map_err(|errno| {
            let path = dir.join(OsStr::from_bytes(name.to_bytes()));
            MountError::System(format!("{}: {}: remove it by hand", path.display(), errno.desc()))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_and_empty_directories_go() {
        let dir = tempfile::tempdir().expect("tempdir");
        let run = dir.path().join("run");
        std::fs::create_dir_all(run.join("empty")).expect("mkdir");
        std::fs::write(run.join("log"), "x").expect("write");
        assert_eq!(directory(&run), Ok(()));
        assert!(!run.exists());
        std::fs::create_dir_all(run.join("full/precious")).expect("mkdir");
        assert!(directory(&run).is_err());
        assert!(run.join("full/precious").exists());
    }

    #[test]
    fn what_is_to_be_taken_over_stays() {
        let dir = tempfile::tempdir().expect("tempdir");
        for name in ["gen-7", "gen-77"] {
            std::fs::create_dir(dir.path().join(name)).expect("mkdir");
        }
        for name in ["group-7", "group-77", "ssh"] {
            std::fs::write(dir.path().join(name), "nonsense").expect("write");
        }
        assert_eq!(contents(dir.path(), Some(7)), Ok(()));
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).expect("there").flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, ["gen-7", "group-7"]);
    }

    #[test]
    fn a_link_in_its_place_leads_nowhere() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (precious, link) = (dir.path().join("precious"), dir.path().join("run"));
        std::fs::create_dir(&precious).expect("mkdir");
        std::fs::write(precious.join("file"), "x").expect("write");
        std::os::unix::fs::symlink(&precious, &link).expect("symlink");
        assert!(matches!(contents(&link, None), Err(MountError::Usage(text)) if text.ends_with("remove it")));
        std::fs::set_permissions(&precious, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
        assert!(matches!(contents(&precious, None), Err(MountError::Usage(_))), "others may write there");
        assert!(precious.join("file").exists());
    }
}
