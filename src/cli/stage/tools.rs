//! What the demo needs on this machine, and which package brings it.

use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const SFTP_SERVERS: [&str; 5] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/sftp-server",
];

/// Finds the local `sftp-server`, or says in one line what is missing.
pub fn find() -> Result<PathBuf, String> {
    if in_path("sshfs").is_none() {
        return Err("sshfs is not installed (package sshfs; fuse-sshfs on Fedora)".into());
    }
    if !nix::unistd::geteuid().is_root() && in_path("fusermount3").is_none() {
        return Err("fusermount3 is not installed (package fuse3)".into());
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        let next = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "run it as root, or chmod 0666 /dev/fuse as distributions have it",
            _ => "package fuse3, modprobe fuse; in a container: --device /dev/fuse",
        };
        return Err(format!("/dev/fuse cannot be opened: {error} ({next})"));
    }
    let server = SFTP_SERVERS.iter().map(Path::new).find(|path| is_program(path));
    let server = server.map(Path::to_path_buf).or_else(|| in_path("sftp-server"));
    server.ok_or_else(|| {
        "sftp-server is not installed (package openssh-sftp-server; openssh-server on Fedora and Arch)".into()
    })
}

/// Where a program is found by its name.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_directories_are_not() {
        assert!(in_path("sh").is_some());
        assert!(in_path("no-such-program-here").is_none());
        assert!(!is_program(Path::new("/")));
        assert!(!is_program(Path::new("/etc/passwd")));
    }
}
