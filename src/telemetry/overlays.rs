//! The overlays of a daemon as telemetry sees them: their figures, and what is mounted in their places.

use std::path::{Path, PathBuf};

use super::Observed;
use crate::backing::mountinfo::{self, Entry};
use crate::overlay::Counts;

/// What is mounted, uppermost, on a hot path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The overlay.
    Overlay,
    /// Something else: whoever uses the path uses that.
    Other,
    /// Nothing: whoever uses the path uses the local directory.
    Nothing,
}

/// One overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The hot path.
    pub mountpoint: PathBuf,
    /// Its figures.
    pub counts: Counts,
    /// What is there.
    pub place: Place,
}

/// All overlays of a daemon. The table of mounts is read, no mount is touched.
pub fn look(observed: &Observed) -> Vec<Seen> {
    let table = mountinfo::entries().inspect_err(|error| tracing::warn!(%error, "mountinfo cannot be read"));
    let table = table.unwrap_or_default();
    let seen = (observed.overlays)().into_iter().map(|view| Seen {
        place: place(&table, &view.mountpoint, &view.subtype),
        mountpoint: view.mountpoint,
        counts: view.counts,
    });
    seen.collect()
}

fn place(table: &[Entry], mountpoint: &Path, subtype: &str) -> Place {
    match mountinfo::at_in(table, mountpoint) {
        None => Place::Nothing,
        Some(entry) if entry.fstype.to_string_lossy() == format!("fuse.{subtype}") => Place::Overlay,
        Some(_) => Place::Other,
    }
}

/// All figures of `overlays` together; the log's limit is the daemon's.
pub fn total(overlays: &[Seen]) -> Counts {
    let mut all = Counts::default();
    for Seen { counts, .. } in overlays {
        all.open_files += counts.open_files;
        all.open_dirs += counts.open_dirs;
        all.nodes += counts.nodes;
        all.log_bytes += counts.log_bytes;
        all.log_limit = all.log_limit.max(counts.log_limit);
        all.dirty_files += counts.dirty_files;
        all.replayed_bytes += counts.replayed_bytes;
        all.spooled_files += counts.spooled_files;
        all.lost_files += counts.lost_files;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hot_path_is_the_overlays_only_if_that_is_uppermost() {
        let table = "1 1 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / /a rw - fuse.steadfs s rw\n\
                     3 1 0:3 / /b rw - fuse.sshfs s rw\n4 1 0:4 / /c rw - fuse.steadfs s rw\n5 4 0:5 / /c rw - tmpfs t rw\n";
        let table = mountinfo::parse(table.as_bytes());
        let at = |path: &str, subtype: &str| place(&table, Path::new(path), subtype);
        assert_eq!(at("/a", "steadfs"), Place::Overlay);
        assert_eq!((at("/b", "steadfs"), at("/b", "sshfs")), (Place::Other, Place::Overlay));
        assert_eq!((at("/c", "steadfs"), at("/d", "steadfs")), (Place::Other, Place::Nothing));
    }
}
