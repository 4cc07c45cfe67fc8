//! A directory that exists already: a local disk, NFS, an rclone mount.
//!
//! Nothing here owns the mount, so nothing here can repair it. What can be done: see that the directory still lies on
//! the mount it lay on at the first start (else the local directory below an unmounted one would be written to, promise
//! P5), and never wait for it in the calling thread.

mod opener;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::posix::PosixTree;
use super::record::{AdoptError, Life, Place, Record, VERSION};
use super::{Backing, ExitSink, Generation, OpResult, StartError, StatFs, Traits, Tree, Vitals, mountinfo};
use opener::{Attempt, Opened, Opener};

/// Filesystems of this machine, whose inode numbers are those of the files and whose descriptors nobody else takes away.
/// NFS and CIFS descriptors go stale when the server removes a file, and FUSE numbers may be made up anew with each mount:
/// there, and where it is not known, hidden names and our own numbers are used, which is right everywhere.
const LOCAL: [&str; 13] =
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "jfs", "nilfs2", "tmpfs", "ramfs", "overlay"];
/// How long the last thread of a dead daemon may take to get out of the filesystem.
const SETTLE: Duration = Duration::from_millis(300);
/// How long the filesystem may take to say what it is before the first start.
const LOOK: Duration = Duration::from_secs(1);

/// `dir:/path`.
#[derive(Debug)]
pub struct DirBacking {
    path: PathBuf,
    opener: Opener,
    home: Mutex<Option<Home>>,
}

/// The mount that the directory lay on when it was first opened.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Home {
    mountpoint: PathBuf,
    fstype: String,
}

impl std::fmt::Display for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.mountpoint.display(), self.fstype)
    }
}

impl From<&mountinfo::Entry> for Home {
    fn from(entry: &mountinfo::Entry) -> Self {
        Home { mountpoint: entry.mountpoint.clone(), fstype: entry.fstype.to_string_lossy().into_owned() }
    }
}

impl DirBacking {
    /// A backing at an absolute path. Does not look at it: that may hang, and is left to [`Backing::start`].
    pub fn new(path: PathBuf) -> Result<Self, StartError> {
        if !path.is_absolute() {
            return Err(StartError::Local(format!("dir:{}: the path must be absolute", path.display())));
        }
        Ok(DirBacking { opener: Opener::new(path.clone()), path, home: Mutex::new(None) })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks the mount against that of the first start, or makes it the first.
    fn settle(&self, opened: &Opened) -> Result<(), StartError> {
        let now = Home::from(&opened.mount);
        let mut home = self.home.lock();
        match &*home {
            Some(first) if *first != now => {
                let path = self.path.display();
                Err(StartError::Unreachable(format!("{path} was on {first} and is now on {now}: mount gone?")))
            }
            Some(_) => Ok(()),
            None => {
                *home = Some(now);
                Ok(())
            }
        }
    }
}

impl Backing for DirBacking {
    /// By the filesystem that the directory is on, as at the first start; looks there if there was none. If it does not
    /// answer soon, nothing is relied on.
    fn traits(&self) -> Traits {
        if self.home.lock().is_none()
            && let Attempt::Opened(opened) = self.opener.open(LOOK)
            && let Err(error) = self.settle(&opened)
        {
            tracing::debug!(%error, "the mount changes while it is looked at");
        }
        let local = self.home.lock().as_ref().is_some_and(|home| LOCAL.contains(&home.fstype.as_str()));
        Traits {
            stable_inodes: local,
            keeps_unlinked: local,
            owners: true,
            asynchronous: false,
            remembers: Duration::ZERO,
        }
    }

    /// Reads the mount table only, which cannot hang.
    fn reach(&self, _limit: Duration) -> Result<(), String> {
        let Some(home) = self.home.lock().clone() else {
            return Ok(());
        };
        match mountinfo::at(&home.mountpoint) {
            Ok(Some(entry)) if Home::from(&entry) == home => Ok(()),
            Ok(_) => Err(format!("{home} is not mounted")),
            Err(error) => Err(format!("/proc/self/mountinfo: {error}")),
        }
    }

    fn start(&self, number: u64, limit: Duration, _exits: ExitSink) -> Result<Arc<dyn Generation>, StartError> {
        let path = self.path.display();
        match self.opener.open(limit) {
            Attempt::Opened(opened) => {
                self.settle(&opened)?;
                let home = Home::from(&opened.mount);
                let place = Place::new(&self.path, &home.mountpoint, &home.fstype);
                Ok(Arc::new(DirGeneration {
                    number,
                    began: SystemTime::now(),
                    place,
                    tree: PosixTree::new(opened.root),
                }))
            }
            Attempt::Failed(error) => {
                let text = format!("{path}: {error}");
                // What was there once may come back; what never was is a mistake in the path.
                let never_was = self.home.lock().is_none() && error.is_wrong_path();
                Err(if never_was { StartError::Local(text) } else { StartError::Unreachable(text) })
            }
            Attempt::NoAnswer => Err(StartError::Unreachable(format!(
                "{path}: no answer within {}",
                humantime::format_duration(Duration::from_millis(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)))
            ))),
        }
    }

    /// There is nothing to take over but the number, and the mount that the directory has to be on, now and in every later
    /// start.
    fn adopt(
        &self,
        record: &Record,
        _root: Option<OwnedFd>,
        limit: Duration,
        exits: ExitSink,
    ) -> Result<Arc<dyn Generation>, AdoptError> {
        let Life::Dir(place) = &record.life else {
            return Err(AdoptError::Other("what the dead daemon has left is no directory".into()));
        };
        if record.version != VERSION || self.path != Path::new(&place.path) {
            return Err(AdoptError::Other("it was another directory, or another version of its record".into()));
        }
        *self.home.lock() = Some(Home { mountpoint: place.mountpoint(), fstype: place.fstype.clone() });
        match record.daemon.wait_gone(Instant::now() + SETTLE) {
            Ok(true) => {}
            Ok(false) => return Err(AdoptError::Unsettled("its daemon has not ended yet".into())),
            Err(errno) => return Err(AdoptError::Unknown(format!("pidfd: {}", errno.desc()))),
        }
        self.start(record.number, limit, exits).map_err(|error| AdoptError::Dead(error.to_string()))
    }
}

/// One life of a directory: an open root.
#[derive(Debug)]
struct DirGeneration {
    number: u64,
    began: SystemTime,
    place: Place,
    tree: PosixTree,
}

impl Generation for DirGeneration {
    fn number(&self) -> u64 {
        self.number
    }

    fn tree(&self) -> &dyn Tree {
        &self.tree
    }

    fn probe(&self) -> OpResult<StatFs> {
        self.tree.stat_fs()
    }

    /// Nothing can be seen from outside.
    fn vitals(&self) -> Vitals {
        Vitals::default()
    }

    /// Calls that begin later fail. Those that are inside the kernel cannot be got out by anybody but whoever mounted
    /// the directory: their threads stay there for as long as the filesystem keeps them.
    fn abort(&self) {
        self.tree.stop();
    }

    fn record(&self) -> Option<Record> {
        Some(Record::new(self.number, self.began, Life::Dir(self.place.clone())))
    }

    /// The root is closed when the last user of the generation lets go of it; nothing else is held.
    fn retire(&self) -> Result<(), String> {
        self.tree.stop();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
