//! What this machine must have before a mount is tried.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::daemon::MountError;

/// sshfs, and ssh unless the options replace it.
pub fn sshfs(options: &[String]) -> Result<(), MountError> {
    if in_path("sshfs").is_none() {
        return Err(MountError::System("there is no sshfs in PATH: run apt install sshfs".into()));
    }
    let replaced = |option: &String| {
        option.starts_with("directport=")
            || option.strip_prefix("ssh_command=").is_some_and(|command| command.split(' ').next() != Some("ssh"))
    };
    if !options.iter().any(replaced) && in_path("ssh").is_none() {
        return Err(MountError::System("there is no ssh in PATH: run apt install openssh-client".into()));
    }
    Ok(())
}

/// /dev/fuse, and for others than root fusermount3 and its configuration.
pub fn fuse(allow_other: bool) -> Result<(), MountError> {
    // Opening it does nothing until it is mounted.
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        return Err(match error.kind() {
            io::ErrorKind::NotFound => MountError::System(
                "there is no /dev/fuse: run modprobe fuse (in a container: give it the device)".into(),
            ),
            io::ErrorKind::PermissionDenied => {
                MountError::Usage("/dev/fuse: permission denied: run as root, or let this user open it".into())
            }
            _ => MountError::System(format!("/dev/fuse: {error}: run modprobe fuse")),
        });
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    if in_path("fusermount3").is_none() {
        return Err(MountError::System("only root can mount without fusermount3: run apt install fuse3".into()));
    }
    // Without the file nothing is allowed, as for fusermount3.
    let conf = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if allow_other && !conf.lines().any(|line| line.trim() == "user_allow_other") {
        return Err(MountError::Usage(
            "option 'allow_other' needs root, or a line user_allow_other in /etc/fuse.conf".into(),
        ));
    }
    Ok(())
}

/// Where a shell would find a program.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_as_a_shell_does() {
        assert!(in_path("sh").is_some());
        assert_eq!(in_path("no-such-program"), None);
    }
}
