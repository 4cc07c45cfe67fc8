//! One steadfs a mountpoint: a lock on its runtime directory, held as long as the daemon lives.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::daemon::MountError;
use crate::rundir;

/// How long a daemon that has just been unmounted may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// The lock (flock(2)). It ends with the last copy of its descriptor; programs that are run do not inherit it.
pub struct Claim {
    lock: File,
    dir: PathBuf,
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Claim {
    /// Takes it, waiting a little for a predecessor to end.
    pub fn take(mountpoint: &Path) -> Result<Claim, MountError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let dir = rundir::create(mountpoint).map_err(|error| {
                MountError::System(format!("cannot make {}: {error}", rundir::of(mountpoint).display()))
            })?;
            own(&rundir::base())?;
            own(&dir)?;
            match try_lock(&dir) {
                Ok(Some(lock)) => {
                    // A predecessor that was killed could not clean up.
                    super::sweep::contents(&dir, None)?;
                    return Ok(Claim { lock, dir });
                }
                Ok(None) if Instant::now() >= until => {
                    let shown = mountpoint.display();
                    return Err(MountError::Mount(format!(
                        "another steadfs serves {shown}, or is still ending: see steadfs status {shown}"
                    )));
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(50)),
                // Removed between the two steps by the daemon that ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < until => {}
                Err(error) => return Err(MountError::System(format!("cannot lock {}: {error}", dir.display()))),
            }
        }
    }

    /// One that somebody took for this mountpoint and that has been handed over.
    pub fn of(lock: OwnedFd, mountpoint: &Path) -> Claim {
        Claim { lock: lock.into(), dir: rundir::of(mountpoint) }
    }

    /// Removes what a predecessor that was killed has left, and the directory with it.
    pub fn sweep(self) -> Result<(), MountError> {
        if self.is_gone() { Ok(()) } else { super::sweep::directory(&self.dir) }
    }

    /// True if the directory has been removed; another of its name is somebody else's.
    fn is_gone(&self) -> bool {
        let (held, now) = (self.lock.metadata(), std::fs::symlink_metadata(&self.dir));
        let identity = |found: io::Result<std::fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
        identity(held) != identity(now)
    }

    /// Where the log goes.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Gives it up whoever else has a copy of it.
    pub fn unlock(self) {
        unlock(&self.lock);
    }

    /// Removes what is left of the directory. Never what lies in it: a mount could be among that.
    pub fn release(self) {
        if !self.is_gone() {
            remove(&self.dir);
        }
    }
}

/// As [`Claim::release`], for a daemon, whose keeper has the claim.
pub fn remove(dir: &Path) {
    for name in ["log", "log.1"] {
        // Gone already, as a rule.
        let _ = std::fs::remove_file(dir.join(name));
    }
    let _ = std::fs::remove_dir(dir);
}

/// Whether those who have a mountpoint live, even after they have removed its runtime directory.
pub struct Watching(Option<File>);

impl Watching {
    /// Those of this moment.
    pub fn of(mountpoint: &Path) -> Watching {
        Watching(open(&rundir::of(mountpoint)).ok())
    }

    /// True while one of them lives.
    pub fn is_alive(&self) -> bool {
        self.0.as_ref().is_some_and(|dir| lock(dir) == Err(Errno::EWOULDBLOCK))
    }
}

/// Gives a lock up whoever else has a copy of its descriptor.
pub fn unlock(lock: &impl AsRawFd) {
    // SAFETY: a descriptor that lives, and a flag. It fails only for what is no lock.
    let _ = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_UN) };
}

/// Who has a mountpoint.
pub enum Holder {
    /// Nobody: it has no runtime directory.
    Nobody,
    /// A daemon that lives.
    Daemon,
    /// A daemon that was killed had it; now it is ours.
    Left(Claim),
}

/// Looks who has this mountpoint, and takes what a killed daemon left. An error if the runtime directory is not ours.
pub fn holder(mountpoint: &Path) -> Result<Holder, MountError> {
    if !is_own(mountpoint)? {
        return Ok(Holder::Nobody);
    }
    let dir = rundir::of(mountpoint);
    match try_lock(&dir) {
        Ok(Some(lock)) => Ok(Holder::Left(Claim { lock, dir })),
        Ok(None) => Ok(Holder::Daemon),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Holder::Nobody),
        Err(error) => Err(MountError::System(format!("cannot lock {}: {error}", dir.display()))),
    }
}

/// True while a daemon of this mountpoint lives.
pub fn is_alive(mountpoint: &Path) -> bool {
    // With no directory there is no daemon.
    matches!(try_lock(&rundir::of(mountpoint)), Ok(None))
}

/// All that lies where runtime directories do, in no order; nothing if there is no such place. An error if somebody else could
/// have made it.
pub fn directories() -> Result<Vec<PathBuf>, MountError> {
    let base = rundir::base();
    let Ok(entries) = std::fs::read_dir(&base) else { return Ok(Vec::new()) };
    own(&base)?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Whether the runtime directory of this mountpoint is there. An error if somebody else could have made it or what is in
/// it: nothing there is to be trusted, and nothing touched.
pub fn is_own(mountpoint: &Path) -> Result<bool, MountError> {
    for dir in [rundir::base(), rundir::of(mountpoint)] {
        match std::fs::symlink_metadata(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            _ => own(&dir)?,
        }
    }
    Ok(true)
}

fn open(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(dir)
}

fn lock(dir: &File) -> Result<(), Errno> {
    // SAFETY: a descriptor that lives, and flags. nix's type would unlock all copies when one is dropped.
    Errno::result(unsafe { libc::flock(dir.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(|_| ())
}

fn try_lock(dir: &Path) -> io::Result<Option<File>> {
    let opened = open(dir)?;
    match lock(&opened) {
        Ok(()) => {}
        Err(Errno::EWOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    // A lock on a directory that has been removed since keeps nobody out.
    let (held, now) = (opened.metadata()?, std::fs::symlink_metadata(dir)?);
    if (held.dev(), held.ino()) != (now.dev(), now.ino()) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(Some(opened))
}

/// In /tmp anybody could have made it first.
pub fn own(dir: &Path) -> Result<(), MountError> {
    let found = std::fs::symlink_metadata(dir)
        .map_err(|error| MountError::System(format!("cannot look at {}: {error}", dir.display())))?;
    if found.is_dir() && is_ours(found.uid(), found.mode()) { Ok(()) } else { Err(foreign(dir)) }
}

/// Whether nobody else has it or may write to it.
pub fn is_ours(uid: u32, mode: u32) -> bool {
    uid == nix::unistd::geteuid().as_raw() && mode & 0o022 == 0
}

/// What is said of a directory that is not ours.
pub fn foreign(dir: &Path) -> MountError {
    MountError::Usage(format!("{} belongs to somebody else or can be written by others: remove it", dir.display()))
}
