//! Where it is written down that a worker is paused: a place that a reboot does not wipe, if there is one.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::rundir;

/// Below the runtime directory. No overlay has it as its own there: names of overlays do not begin with a dot.
const APART: &str = ".state";

/// The note of the overlay at `overlay`, an absolute path.
pub fn file(overlay: &Path) -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = match set("STEADFS_STATE_DIR") {
        Some(dir) => dir,
        None if nix::unistd::geteuid().is_root() => "/var/lib/steadfs".into(),
        None => match (set("XDG_STATE_HOME"), set("HOME")) {
            (Some(dir), _) => dir.join("steadfs"),
            (None, Some(home)) => home.join(".local/state/steadfs"),
            (None, None) => rundir::base(),
        },
    };
    let name = rundir::of(overlay).file_name().map(ToOwned::to_owned).unwrap_or_default();
    directory(base, &rundir::base(), &name).join("paused.json")
}

/// A mount and an unmount sweep the runtime directory of an overlay: no note may lie there.
fn directory(base: PathBuf, runtime: &Path, name: &OsStr) -> PathBuf {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real(&base).starts_with(real(runtime)) { runtime.join(APART).join(name) } else { base.join(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_never_lies_where_a_claim_sweeps() {
        let place = |base: &str| directory(base.into(), Path::new("/run/x"), OsStr::new("hot"));
        assert_eq!(place("/var/lib/x"), Path::new("/var/lib/x/hot"));
        for base in ["/run/x", "/run/x/", "/run/x/hot", "/run/x/deeper/still"] {
            assert_eq!(place(base), Path::new("/run/x/.state/hot"), "{base}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).expect("linked");
        let linked = directory(dir.path().join("link"), dir.path(), OsStr::new("hot"));
        assert_eq!(linked, dir.path().join(".state/hot"));
    }
}
