//! A deploy lock: a file that may lie there for ever, and counts while somebody holds a lock on it (flock(2)).

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How old a file may be that cannot be probed and still counts, if nothing is said.
pub const MAX_AGE: Duration = Duration::from_secs(7200);

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeployLock {
    /// Somebody deploys.
    pub active: bool,
    /// Age of the file by its modification time; none without a file.
    pub age: Option<Duration>,
}

/// Looks at the lock. Takes it shared for a moment if it can be had, so that somebody who looks at the same time is not told
/// that it is held.
pub fn look(path: &Path, max_age: Duration, now: SystemTime) -> DeployLock {
    let Ok(found) = path.metadata() else { return DeployLock::default() };
    let age = found.modified().ok().and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
    let probed = File::open(path).map_err(|_| Errno::EACCES).and_then(|file| {
        // Unlocked on drop.
        Flock::lock(file, FlockArg::LockSharedNonblock).map(drop).map_err(|(_, errno)| errno)
    });
    let active = match probed {
        Ok(()) => false,
        Err(Errno::EWOULDBLOCK) => true,
        Err(_) => age <= max_age,
    };
    DeployLock { active, age: Some(age) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_merely_lies_there_does_not_count() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, now) = (directory.path().join("lock"), SystemTime::now() + Duration::from_secs(100));
        assert_eq!(look(&path, MAX_AGE, now), DeployLock::default());
        std::fs::write(&path, "").expect("written");
        let lying = look(&path, MAX_AGE, now);
        assert!(!lying.active && lying.age.is_some_and(|age| (100..200).contains(&age.as_secs())), "{lying:?}");
        let held = Flock::lock(File::open(&path).expect("open"), FlockArg::LockExclusiveNonblock);
        let held = held.map_err(|(_, errno)| errno).expect("it is free");
        assert!(look(&path, MAX_AGE, now).active);
        drop(held);
        assert!(!look(&path, MAX_AGE, now).active);
    }
}
