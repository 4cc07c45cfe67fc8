//! Looks whether a file can be a new steadfs, before anything is changed.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::backing::mountinfo;
use crate::daemon::MountError;

/// How long it may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most of its words that are read.
const LONGEST: u64 = 4096;

/// The same path, absolute and without links. The error is for the user and names the remedy.
pub fn check(path: &Path) -> Result<PathBuf, MountError> {
    let shown = path.display().to_string();
    let bad = |text: String| MountError::Usage(format!("{shown}: {text}"));
    let real = path.canonicalize().map_err(|error| bad(error.to_string()))?;
    // Nobody would serve it while it is started.
    let table = mountinfo::entries().map_err(|error| bad(error.to_string()))?;
    if mountinfo::covering_in(&table, &real).is_some_and(|entry| entry.is_fuse()) {
        return Err(bad("it lies on a FUSE mount: copy it to a local disk".into()));
    }
    let found = std::fs::metadata(&real).map_err(|error| bad(error.to_string()))?;
    if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
        return Err(bad("it is not an executable file".into()));
    }
    let mut magic = [0; 4];
    let read = std::fs::File::open(&real).and_then(|mut file| file.read_exact(&mut magic));
    // A script could not be run by its descriptor.
    if read.is_err() || magic != *b"\x7fELF" {
        return Err(bad("it is not a program but something else, a script say: give steadfs itself".into()));
    }
    let words = version(&real).map_err(|error| bad(format!("it does not say its version: {error}")))?;
    match words.strip_prefix("steadfs ").and_then(|rest| rest.lines().next()) {
        Some(version) if version.starts_with(|first: char| first.is_ascii_digit()) => Ok(real),
        _ => Err(bad("it is not steadfs: its --version says something else".into())),
    }
}

/// What it says when asked for its version.
fn version(path: &Path) -> io::Result<String> {
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let until = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() >= until => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(io::Error::other(format!("it has not ended after {} s", PATIENCE.as_secs())));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    if !status.success() {
        return Err(io::Error::other(status.to_string()));
    }
    let mut words = String::new();
    // What it has left running may hold the pipe open; what is there is enough.
    if let Some(stdout) = child.stdout.take() {
        nix::fcntl::fcntl(&stdout, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        match stdout.take(LONGEST).read_to_string(&mut words) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_steadfs_is_told_apart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let says = |path: &Path| check(path).expect_err("it is refused").to_string();
        assert!(says(&dir.path().join("absent")).contains("No such file"));
        assert!(says(dir.path()).contains("not an executable file"));
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\necho steadfs 1.0.0\n").expect("written");
        assert!(says(&script).contains("not an executable file"));
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("chmod");
        assert!(says(&script).contains("a script"));
        assert!(says(Path::new("/bin/false")).contains("does not say its version"));
        assert!(says(Path::new("/bin/echo")).contains("not steadfs"));
    }
}
