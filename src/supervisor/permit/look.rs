//! Looks at the files that hold a repair back. They may block, so they are made apart.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

/// What a look at one of the two files found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// The deploy lock.
    Lock(LockLook),
    /// The enable file.
    Enable(EnableLook),
}

/// What a look at the deploy lock found. Ages are those of the file, by its mtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockLook {
    /// There is no such file.
    Absent,
    /// It is lying there, and nobody holds a lock on it.
    Free {
        /// Its age.
        age: Duration,
    },
    /// Somebody holds a lock on it.
    Held {
        /// Its age.
        age: Duration,
    },
    /// It cannot be told.
    Unprobed {
        /// Its age; zero if that cannot be told either.
        age: Duration,
        /// Why, in words.
        why: String,
    },
}

impl LockLook {
    /// The file's age, if there is a file.
    pub fn age(&self) -> Option<Duration> {
        match self {
            LockLook::Absent => None,
            LockLook::Free { age } | LockLook::Held { age } | LockLook::Unprobed { age, .. } => Some(*age),
        }
    }
}

/// What a look at the enable file found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnableLook {
    /// It is there.
    There,
    /// It is not.
    Missing,
    /// It cannot be told; why, in words.
    Unknown(String),
}

/// Looks whether somebody holds the lock: by a shared lock of our own, never waited for, on a descriptor of its own, given
/// back at once. Nothing is made, no link is followed, and no device or pipe is opened.
pub fn lock(path: &Path) -> LockLook {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return LockLook::Absent;
        }
        Err(error) => return LockLook::Unprobed { age: Duration::ZERO, why: error.to_string() },
    };
    let age = found.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
    let unprobed = |why: String| LockLook::Unprobed { age, why };
    if !found.is_file() && !found.is_dir() {
        let what = if found.is_symlink() { "is a symbolic link" } else { "is no regular file" };
        return unprobed(format!("it {what}"));
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return LockLook::Absent,
        Err(error) => return unprobed(error.to_string()),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_given_back) => LockLook::Free { age },
        Err((_, Errno::EWOULDBLOCK)) => LockLook::Held { age },
        Err((_, errno)) => unprobed(errno.desc().into()),
    }
}

/// Looks whether the enable file is there.
pub fn enable(path: &Path) -> EnableLook {
    match std::fs::metadata(path) {
        Ok(_) => EnableLook::There,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => EnableLook::Missing,
        Err(error) => EnableLook::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_lock_that_somebody_holds_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deploy.lock");
        assert_eq!(lock(&path), LockLook::Absent);
        assert!(!path.exists(), "a look makes nothing");
        let file = File::create(&path).expect("made");
        assert!(matches!(lock(&path), LockLook::Free { .. }), "it is merely lying there");
        for kind in [FlockArg::LockExclusiveNonblock, FlockArg::LockSharedNonblock] {
            let ours = Flock::lock(file.try_clone().expect("a descriptor"), kind).expect("nobody else has it");
            let held = matches!(lock(&path), LockLook::Held { .. });
            assert_eq!(held, kind == FlockArg::LockExclusiveNonblock, "a shared lock lets others read");
            drop(ours);
        }
        let exclusive = Flock::lock(File::open(&path).expect("opened"), FlockArg::LockExclusiveNonblock);
        assert!(exclusive.is_ok(), "a look gives back what it took");
    }

    #[test]
    fn what_cannot_be_probed_is_said_to_be_so_and_nothing_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        File::create(path("file")).expect("made");
        symlink(path("file"), path("link")).expect("linked");
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        for (name, words) in [("link", "symbolic link"), ("pipe", "no regular file")] {
            let look = lock(&path(name));
            assert!(matches!(&look, LockLook::Unprobed { why, .. } if why.contains(words)), "{look:?}");
        }
        assert!(matches!(lock(directory.path()), LockLook::Free { .. }), "a directory can be locked as well");
        assert_eq!(lock(&path("file/below")), LockLook::Absent);
        File::options()
            .write(true)
            .open(path("file"))
            .and_then(|file| file.set_modified(SystemTime::now() - Duration::from_secs(500)))
            .expect("set");
        let age = lock(&path("file")).age().expect("it is there");
        assert!((500..520).contains(&age.as_secs()), "{age:?}");
    }

    #[test]
    fn an_enable_file_may_be_a_link_to_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        symlink(&file, &link).expect("linked");
        assert_eq!((enable(&file), enable(&link)), (EnableLook::Missing, EnableLook::Missing));
        File::create(&file).expect("made");
        assert_eq!((enable(&file), enable(&link)), (EnableLook::There, EnableLook::There));
    }
}
