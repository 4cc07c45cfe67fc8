//! Where steadfs keeps what a reboot must not wipe: one directory a hot path, mode 0700, there only if it is needed.

use std::path::{Path, PathBuf};

use crate::rundir;

/// `/var/lib/steadfs` for root; `$XDG_STATE_HOME/steadfs`, or `~/.local/state/steadfs`, for others.
/// `$STEADFS_STATE_DIR` wins.
pub fn base() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match set("STEADFS_STATE_DIR") {
        Some(dir) => dir,
        None if nix::unistd::geteuid().is_root() => "/var/lib/steadfs".into(),
        None => match (set("XDG_STATE_HOME"), set("HOME")) {
            (Some(dir), _) => dir.join("steadfs"),
            (None, Some(home)) => home.join(".local/state/steadfs"),
            (None, None) => rundir::base(),
        },
    }
}

/// The directory of the overlay at `mountpoint`, an absolute path.
pub fn of(mountpoint: &Path) -> PathBuf {
    base().join(rundir::name(mountpoint))
}
