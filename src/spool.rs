//! What was acknowledged and can no longer be written to its file (promise P4), kept in local files: one for each file of
//! an overlay, for a human to look at, to restore or to drop.
//!
//! # Format
//!
//! One line of JSON, then the bytes of all extents one after the other, without anything between or behind them.
//!
//! ```text
//! {"steadfs_spool":1,"overlay":"/srv/jobs","backing":"box:/jobs","path":"crawl/a.warc",
//!  "reason":"it is not the file that was open","at":"2026-11-24T06:59:12.000000000Z","cut":4096,"size":5000,
//!  "extents":[{"offset":4096,"len":904,"crc32":"89abcdef"}],"crc32":"01234567"}
//! ```
//!
//! (Shown in three lines.) The members:
//!
//! | Member | Is |
//! | --- | --- |
//! | `steadfs_spool` | the version of the format |
//! | `overlay`, `backing` | the mountpoint, and what it showed: the source with the overlay's own directory, as in a mount table |
//! | `path` | the file, below the root of both |
//! | `reason` | why it was saved |
//! | `at` | when, RFC 3339 in UTC |
//! | `cut` | the size that the file was truncated to before anything of this was written, or null |
//! | `size` | its size after all of it, or null if unknown |
//! | `extents` | what was written: ascending, without overlaps; `crc32` is that of the data |
//! | `crc32` | always last: that of the line up to the comma in front of it |
//!
//! Checksums are CRC-32 (as in gzip) in eight lower-case hexadecimal digits. Paths may have any bytes: control characters,
//! those that turn the direction of writing round, `%` and what is not UTF-8 are written as `%` and two hexadecimal digits. Readers ignore members that they do not know.
//! A file of another length than the line says, or with a checksum that does not hold, is damaged and is not restored.
//!
//! The name is the time, a hash and `.spool`; `.spool.part` while it is written, or after that was interrupted; `.restored`
//! after it was restored.

mod directory;
mod entry;
mod error;
pub(crate) mod header;
mod list;
mod restore;
mod save;
#[cfg(test)]
mod tests;
pub(crate) mod text;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use directory::{Unfit, check as check_directory};
pub use entry::{Entry, read};
pub use error::SpoolError;
pub use header::{Extent, Header};
pub use list::{Listed, State, drop_entry, list};
pub use restore::{Change, Plan, Present, Target, plan, restore};
pub use save::save;
pub use text::encode as printable_path;

/// What is saved of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The mountpoint.
    pub overlay: PathBuf,
    /// What it showed: the backing's label with the overlay's own directory, as mount tables show it.
    pub backing: String,
    /// The file, below the root.
    pub path: PathBuf,
    /// Why it is saved.
    pub reason: String,
    /// When.
    pub at: SystemTime,
    /// The file was cut to this size first.
    pub cut: Option<u64>,
    /// Its size in the end, if known.
    pub size: Option<u64>,
    /// Offset and data of what was written: ascending, without overlaps.
    pub extents: Vec<(u64, Vec<u8>)>,
}

/// Where the overlay at `mountpoint`, an absolute path, saves when `spool_dir=` is not given.
pub fn default_dir(mountpoint: &Path) -> PathBuf {
    crate::statedir::of(mountpoint).join(NAME)
}

/// The default directories of all overlays that saved something, ordered by name.
pub fn default_dirs() -> Result<Vec<PathBuf>, SpoolError> {
    let base = crate::statedir::base();
    let entries = match std::fs::read_dir(&base) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| SpoolError::io("read", &base, error))?,
    };
    let mut dirs: Vec<_> = entries.flatten().map(|entry| entry.path().join(NAME)).filter(|dir| dir.exists()).collect();
    dirs.sort();
    Ok(dirs)
}

/// Of an overlay's spool within its state directory.
const NAME: &str = "spool";
