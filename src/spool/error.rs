//! What can go wrong with the spool.

use std::io;
use std::path::{Path, PathBuf};

use super::directory::Unfit;

/// Each names what it is about and what can be done.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The system refused a step.
    #[error("cannot {action} {}: {error}{}", .path.display(), remedy(.error))]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// The directory is none that acknowledged data may be put into, or taken from.
    #[error("the spool directory {} {why}", .dir.display())]
    Unfit {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        why: Unfit,
    },
    /// The limit of the directory would be passed.
    #[error(
        "the spool directory {} holds {used} of {limit} bytes and {needed} more do not fit: restore and drop entries \
         (steadfs spool list), or give a larger spool_size",
        .dir.display()
    )]
    Full {
        /// The directory.
        dir: PathBuf,
        /// Bytes that are there.
        used: u64,
        /// Bytes that were to be added.
        needed: u64,
        /// Bytes that are allowed.
        limit: u64,
    },
    /// The extents to be saved overlap, are out of order, or end beyond the largest offset.
    #[error("{}: the extents to be saved are not in order: this is a bug, please report it", .path.display())]
    Extents {
        /// The file they were written to.
        path: PathBuf,
    },
    /// The file is torn, altered, or none of steadfs's.
    #[error("{} is damaged: {what}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// A later steadfs wrote it.
    #[error("{} has version {version} of the format: use the steadfs that wrote it, or a later one", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it has.
        version: u32,
    },
    /// It cannot be restored there; nothing was changed.
    #[error("{} {why}", .target.display())]
    Refused {
        /// The file that was to be written.
        target: PathBuf,
        /// Why, and the remedy.
        why: String,
    },
    /// What was read back is not what was written.
    #[error("{} does not hold what was written to it, at offset {offset}: the entry is kept, try again", .target.display())]
    Differs {
        /// The file that was written.
        target: PathBuf,
        /// Where; the size of the file if that is what differs.
        offset: u64,
    },
}

impl SpoolError {
    pub(super) fn io(action: &'static str, path: &Path, error: impl Into<io::Error>) -> SpoolError {
        SpoolError::Io { action, path: path.to_owned(), error: error.into() }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> SpoolError {
        SpoolError::Damaged { path: path.to_owned(), what: what.into() }
    }

    /// True if the system is the cause, rather than what was asked for or what is there.
    pub fn is_system(&self) -> bool {
        match self {
            SpoolError::Io { error, .. } => error.kind() != io::ErrorKind::NotFound,
            SpoolError::Differs { .. } => true,
            _ => false,
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ": make room there",
        io::ErrorKind::PermissionDenied => ": run as the user that mounted",
        io::ErrorKind::ReadOnlyFilesystem => ": it is mounted read-only",
        io::ErrorKind::NotConnected => ": its mount is in an outage, see steadfs status",
        _ => "",
    }
}
