//! A name for ssh that can be used once.
//!
//! sshfs connects again by itself, `reconnect` or not: between the end of its link and its own end, the first request
//! starts another ssh. Through that a probe is answered as if nothing had happened; worse, a server that has just begun
//! may have given an old handle's number to another file. So sshfs is given a name for ssh that is taken away as soon as
//! the generation is up.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// See the module; dropping it takes the name away.
#[derive(Debug)]
pub struct Once {
    name: PathBuf,
    command: String,
}

impl Once {
    /// A name below `directory` for the program of an `ssh_command=`. `None` if there is no such program, about which sshfs
    /// finds better words, or if the name cannot be made or written in such an option.
    pub fn new(directory: &Path, command: &str) -> Option<Once> {
        let (program, arguments) = command.split_once(' ').unwrap_or((command, ""));
        // The last component stays: there are programs that go by it.
        let (target, name) = (find(program)?, directory.join(Path::new(program).file_name()?));
        let text = name.to_str().filter(|text| !text.contains(' '))?;
        if std::fs::symlink_metadata(&name).is_ok_and(|old| old.is_symlink()) {
            std::fs::remove_file(&name).ok()?;
        }
        std::os::unix::fs::symlink(target, &name).ok()?;
        let command = format!("{text} {arguments}").trim_end().to_owned();
        Some(Once { name, command })
    }

    /// The `ssh_command=` to give to sshfs.
    pub fn command(&self) -> &str {
        &self.command
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.name);
    }
}

/// The program that execvp(3) would start.
fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return std::path::absolute(program).ok().filter(|path| is_program(path));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|place| place.join(OsStr::new(program))).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.is_absolute() && path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_good_until_it_is_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let once = Once::new(directory.path(), "sh -c true").expect("there is a shell");
        let (name, rest) = once.command().split_once(' ').expect("arguments stay");
        assert_eq!((Path::new(name).file_name(), rest), (Some("sh".as_ref()), "-c true"));
        let name = PathBuf::from(name);
        let start = || std::process::Command::new(&name).args(["-c", "exit 7"]).status();
        assert_eq!(start().expect("it starts").code(), Some(7));
        // As a predecessor that was killed leaves it.
        std::mem::forget(once);
        drop(Once::new(directory.path(), "sh").expect("made again"));
        assert_eq!(start().expect_err("it is gone").kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn what_cannot_be_found_is_left_to_sshfs() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(Once::new(directory.path(), "no-such-program-anywhere").is_none());
        assert!(Once::new(directory.path(), "/etc/passwd").is_none());
        // Nothing that is there already is replaced.
        std::fs::write(directory.path().join("sh"), "precious").expect("written");
        assert!(Once::new(directory.path(), "sh").is_none());
    }
}
