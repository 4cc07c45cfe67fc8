//! Where steadfs keeps what a reboot must not wipe: one directory a hot path, mode 0700, there only if it is needed.

use std::path::{Path, PathBuf};

use crate::rundir;

/// Below the runtime directory, which a mount and an unmount sweep. No overlay has it as its own there: names of overlays
/// do not begin with a dot.
const APART: &str = ".state";

/// `/var/lib/steadfs` for root; `$XDG_STATE_HOME/steadfs`, or `~/.local/state/steadfs`, for others.
/// `$STEADFS_STATE_DIR` wins.
pub fn base() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let wanted = match set("STEADFS_STATE_DIR") {
        Some(dir) => dir,
        None if nix::unistd::geteuid().is_root() => "/var/lib/steadfs".into(),
        None => match (set("XDG_STATE_HOME"), set("HOME")) {
            (Some(dir), _) => dir.join("steadfs"),
            (None, Some(home)) => home.join(".local/state/steadfs"),
            (None, None) => rundir::base(),
        },
    };
    unswept(wanted, &rundir::base())
}

/// The directory of the overlay at `mountpoint`, an absolute path.
pub fn of(mountpoint: &Path) -> PathBuf {
    base().join(rundir::name(mountpoint))
}

/// What lies in the runtime directory of an overlay is swept.
fn unswept(base: PathBuf, runtime: &Path) -> PathBuf {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real(&base).starts_with(real(runtime)) { runtime.join(APART) } else { base }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_state_lies_where_a_claim_sweeps() {
        let place = |base: &str| unswept(base.into(), Path::new("/run/x"));
        assert_eq!(place("/var/lib/x"), Path::new("/var/lib/x"));
        for base in ["/run/x", "/run/x/", "/run/x/hot", "/run/x/deeper/still"] {
            assert_eq!(place(base), Path::new("/run/x/.state"), "{base}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).expect("linked");
        assert_eq!(unswept(dir.path().join("link"), dir.path()), dir.path().join(".state"));
    }
}
