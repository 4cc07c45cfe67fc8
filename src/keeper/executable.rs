//! An executable that stays the same whatever becomes of its path: a descriptor of it, run through `/proc/self/fd`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// See the module.
#[derive(Debug)]
pub struct Executable {
    file: OwnedFd,
    words: String,
}

impl Executable {
    /// The program that this process runs, even if its file has been replaced since.
    pub fn current() -> io::Result<Executable> {
        let words = std::env::current_exe().unwrap_or_default().display().to_string();
        Ok(Executable { words, ..Executable::open(Path::new("/proc/self/exe"))? })
    }

    /// The program at that path now.
    pub fn open(path: &Path) -> io::Result<Executable> {
        let file = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Executable { file, words: path.display().to_string() })
    }

    /// One that was handed over; `words` is what people call it.
    pub fn received(file: OwnedFd, words: String) -> Executable {
        Executable { file, words }
    }

    /// A path under which this process, or a child of it before execve(2), can run it. Not for scripts: the descriptor is
    /// closed when their interpreter looks for it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// What people call it.
    pub fn words(&self) -> &str {
        &self.words
    }
}

impl AsFd for Executable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn it_runs_after_its_file_was_replaced() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("program");
        // By another process: no other test's child may hold it open for writing when it is run.
        let copy =
            |from: &str, to: &Path| assert!(Command::new("cp").arg(from).arg(to).status().expect("cp").success());
        copy("/bin/true", &path);
        let executable = Executable::open(&path).expect("opened");
        let other = dir.path().join("other");
        copy("/bin/false", &other);
        std::fs::rename(&other, &path).expect("replaced");
        let run = |path: PathBuf| Command::new(path).status().expect("it runs").success();
        assert!(run(executable.path()));
        assert!(!run(path));
    }
}
