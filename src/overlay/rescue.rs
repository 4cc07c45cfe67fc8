//! What becomes of acknowledged changes that cannot be sent again: they are saved.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use crate::log::Changes;
use crate::spool::{self, Saved};

/// Where such changes are saved.
#[derive(Debug, Clone)]
pub struct Spool {
    /// The directory.
    pub directory: PathBuf,
    /// Most bytes that it may hold.
    pub limit: u64,
    /// The mountpoint.
    pub overlay: PathBuf,
    /// What it shows: the source with its own directory.
    pub backing: String,
}

/// See the module.
#[derive(Default)]
pub struct Rescue {
    spool: Option<Spool>,
    saved: AtomicU64,
    lost: AtomicU64,
}

impl Rescue {
    /// Saves to `spool`.
    pub fn new(spool: Spool) -> Rescue {
        Rescue { spool: Some(spool), ..Rescue::default() }
    }

    /// Files whose changes were saved, and files whose changes are lost because they could not be.
    pub fn counts(&self) -> (u64, u64) {
        (self.saved.load(Relaxed), self.lost.load(Relaxed))
    }

    /// Saves changes of the file at that path below the root, which cannot be sent to it for that reason, and says so in
    /// words. May take as long as an fsync of the local disk.
    pub fn save(&self, path: &Path, reason: &str, changes: Changes) -> String {
        let shown = path.display();
        if changes.is_empty() {
            return format!("{shown}: {reason}");
        }
        let bytes = changes.bytes();
        match self.write(path, reason, changes) {
            Ok(place) => {
                self.saved.fetch_add(1, Relaxed);
                format!("{shown}: {reason}; {bytes} uncommitted bytes of it are in {}", place.display())
            }
            Err(error) => {
                self.lost.fetch_add(1, Relaxed);
                format!("{shown}: {reason}; {bytes} uncommitted bytes of it are lost: {error}")
            }
        }
    }

    fn write(&self, path: &Path, reason: &str, changes: Changes) -> Result<PathBuf, String> {
        let Some(spool) = &self.spool else { return Err("there is no spool".into()) };
        let saved = Saved {
            overlay: spool.overlay.clone(),
            backing: spool.backing.clone(),
            path: path.to_owned(),
            reason: reason.to_owned(),
            at: SystemTime::now(),
            cut: changes.cut(),
            size: changes.size(),
            extents: changes.into_extents().collect(),
        };
        spool::save(&spool.directory, &saved, Some(spool.limit)).map_err(|error| error.to_string())
    }
}
