//! Opens a directory that may hang, in a thread that can be lost.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use parking_lot::Mutex;

use crate::backing::mountinfo::{self, Entry};

/// An open root that has answered, and the mount that it is on.
#[derive(Debug)]
pub(super) struct Opened {
    pub root: OwnedFd,
    pub mount: Entry,
}

/// Why a directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The path itself, or the first question to it.
    #[error("{}", .0.desc())]
    Call(Errno),
    /// Something of this machine's.
    #[error("{0}")]
    Machine(String),
}

impl OpenError {
    /// True if the path leads to no directory, as opposed to one that does not answer.
    pub fn is_wrong_path(&self) -> bool {
        matches!(self, OpenError::Call(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ELOOP))
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Attempt {
    Opened(Opened),
    Failed(OpenError),
    NoAnswer,
}

type Outcome = Result<Opened, OpenError>;

/// See the module. However often it is asked, at most one thread of it hangs.
#[derive(Debug)]
pub(super) struct Opener {
    path: PathBuf,
    pending: Mutex<Option<Receiver<Outcome>>>,
}

impl Opener {
    pub fn new(path: PathBuf) -> Self {
        Opener { path, pending: Mutex::new(None) }
    }

    /// Opens the directory and asks it for its figures. Returns within `limit`.
    pub fn open(&self, limit: Duration) -> Attempt {
        let path = self.path.clone();
        self.run(limit, move || open(&path))
    }

    fn run(&self, limit: Duration, work: impl FnOnce() -> Outcome + Send + 'static) -> Attempt {
        let until = Instant::now() + limit;
        let left = || until.saturating_duration_since(Instant::now());
        let Some(mut pending) = self.pending.try_lock_for(limit) else {
            return Attempt::NoAnswer;
        };
        if let Some(earlier) = pending.take() {
            // What an old attempt found may be out of date; all that counts is that its thread is free.
            if let Err(RecvTimeoutError::Timeout) = earlier.recv_timeout(left()) {
                *pending = Some(earlier);
                return Attempt::NoAnswer;
            }
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("open-dir".into()).spawn(move || {
            // Nobody listens any more if the time ran out and the backing was dropped.
            let _ = sender.send(work());
        });
        if let Err(error) = thread {
            return Attempt::Failed(OpenError::Machine(format!("no thread: {error}")));
        }
        match receiver.recv_timeout(left()) {
            Ok(Ok(opened)) => Attempt::Opened(opened),
            Ok(Err(error)) => Attempt::Failed(error),
            Err(RecvTimeoutError::Timeout) => {
                *pending = Some(receiver);
                Attempt::NoAnswer
            }
            Err(RecvTimeoutError::Disconnected) => {
                Attempt::Failed(OpenError::Machine("the thread that opens it died".into()))
            }
        }
    }
}

fn open(path: &Path) -> Outcome {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(path, flags, Mode::empty()).map_err(OpenError::Call)?;
    let mount = mount_of(&root).map_err(OpenError::Machine)?;
    nix::sys::statvfs::fstatvfs(&root).map_err(OpenError::Call)?;
    Ok(Opened { root, mount })
}

/// The mount a descriptor is on: by its id, so that links in the path and stacked mounts cannot mislead.
fn mount_of(fd: &OwnedFd) -> Result<Entry, String> {
    let name = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = std::fs::read_to_string(&name).map_err(|error| format!("{name}: {error}"))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    let id = id.ok_or_else(|| format!("{name}: no mnt_id"))?;
    let table = mountinfo::entries().map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
    // A mount that is gone from the table was detached between the open and here.
    table.into_iter().find(|entry| entry.id == id).ok_or_else(|| "its mount was detached".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_hangs_at_most_and_a_stale_result_is_not_used() {
        let opener = Opener::new("/".into());
        let (free, gate) = mpsc::channel::<()>();
        let hang = move || {
            let _ = gate.recv();
            Err(OpenError::Call(Errno::EIO))
        };
        let limit = Duration::from_millis(50);
        let began = Instant::now();
        assert!(matches!(opener.run(limit, hang), Attempt::NoAnswer));
        // While that one hangs no other is begun.
        let second = opener.run(limit, || panic!("must not run"));
        assert!(matches!(second, Attempt::NoAnswer));
        assert!(began.elapsed() < Duration::from_secs(2));
        drop(free);
        assert!(matches!(opener.open(Duration::from_secs(10)), Attempt::Opened(_)), "the EIO was of the old attempt");
    }

    #[test]
    fn finds_the_mount_of_a_descriptor() {
        let opened = open(Path::new("/proc/self")).expect("proc is there");
        assert_eq!(opened.mount.fstype, "proc");
        assert_eq!(opened.mount.mountpoint, Path::new("/proc"));
    }

    #[test]
    fn tells_wrong_paths() {
        for path in ["/nonexistent/x", "/etc/passwd"] {
            let error = open(Path::new(path)).expect_err(path);
            assert!(error.is_wrong_path(), "{path}: {error}");
        }
    }
}
