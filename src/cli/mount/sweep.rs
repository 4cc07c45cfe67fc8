//! Removes what a killed daemon left behind, without ever reaching into a mount.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::place;
use crate::backing::mountinfo;
use crate::backing::sshfs::orphans;
use crate::daemon::MountError;

/// Detaches a mount whether it is in use or not.
pub fn detach(path: &Path) -> Result<(), MountError> {
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    let Err(errno) = umount2(path, flags) else { return Ok(()) };
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
    contents(dir)?;
    std::fs::remove_dir(dir).map_err(|error| MountError::System(format!("{}: {error}", dir.display())))
}

/// As [`directory`], but it stays.
pub fn contents(dir: &Path) -> Result<(), MountError> {
    let table = mountinfo::entries().map_err(place::no_mountinfo)?;
    orphans::end_all(dir);
    for entry in table.iter().rev().filter(|entry| entry.mountpoint.starts_with(dir)) {
        detach(&entry.mountpoint)?;
    }
    let fail = |error: std::io::Error| MountError::System(format!("{}: {error}", dir.display()));
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let is_dir = entry.file_type().map_err(fail)?.is_dir();
        let path = entry.path();
        if is_dir { std::fs::remove_dir(&path) } else { std::fs::remove_file(&path) }
            .map_err(|error| MountError::System(format!("{}: {error}: remove it by hand", path.display())))?;
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
}
