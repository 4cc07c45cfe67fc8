//! The directory of a bundle.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::redact::redact;

/// How the names of all bundles begin.
pub const PREFIX: &str = "hotpath-staleness-";
/// How the tags of those begin that are taken by themselves; only these are ever removed.
pub const AUTOMATIC: &str = "auto-";
/// Longest tag in bytes.
const TAG: usize = 100;

/// A bundle that is being written. Mode 0700, files 0600.
pub struct Bundle {
    path: PathBuf,
    directory: OwnedFd,
}

impl Bundle {
    /// Makes `hotpath-staleness-<UTC stamp>-<tag>` below `root`, which is made too.
    pub fn create(root: &Path, at: SystemTime, tag: &str) -> io::Result<Bundle> {
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        let name = name(at, tag);
        let mut number = 1;
        let path = loop {
            let path = root.join(if number == 1 { name.clone() } else { format!("{name}-{number}") });
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 100 => number += 1,
                made => break made.map(|()| path)?,
            }
        };
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let directory = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
        if directory.metadata()?.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::other("somebody else put another directory in its place"));
        }
        Ok(Bundle { path, directory: directory.into() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one file, without secrets.
    pub fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.directory, name, flags, Mode::from_bits_truncate(0o600))?;
        File::from(file).write_all(redact(text).as_bytes())
    }
}

/// The name of a bundle.
pub fn name(at: SystemTime, tag: &str) -> String {
    let stamp: String = humantime::format_rfc3339_seconds(at).to_string();
    let stamp: String = stamp.chars().filter(|c| !"-:".contains(*c)).collect();
    format!("{PREFIX}{stamp}-{}", plain(tag))
}

/// A tag, or another part of a file's name, of harmless characters and no great length.
pub fn plain(tag: &str) -> String {
    let harmless = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let plain: String = tag.chars().map(harmless).take(TAG).collect();
    if plain.is_empty() { "manual".into() } else { plain }
}

/// True for the name of a bundle that was taken by itself.
fn is_automatic(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).and_then(|rest| rest.split_at_checked(17));
    let Some((stamp, tag)) = rest else { return false };
    let digits = |range: std::ops::Range<usize>| stamp.as_bytes()[range].iter().all(u8::is_ascii_digit);
    let dated = digits(0..8) && stamp.as_bytes()[8] == b'T' && digits(9..15) && stamp.ends_with("Z-");
    dated && tag.starts_with(AUTOMATIC)
}

/// Removes all but the newest `keep` bundles below `root` that were taken by themselves. What somebody asked for stays.
pub fn prune(root: &Path, keep: usize) -> io::Result<()> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        let about = entry.metadata()?;
        if is_automatic(&name) && about.is_dir() && about.uid() == nix::unistd::geteuid().as_raw() {
            found.push(name);
        }
    }
    // Stamps sort by time.
    found.sort();
    let surplus = found.len().saturating_sub(keep);
    found[..surplus].iter().try_for_each(|name| std::fs::remove_dir_all(root.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, UNIX_EPOCH};

    fn at(secs: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_764_241_401 + secs)
    }

    #[test]
    fn names_hold_a_stamp_and_a_harmless_tag() {
        assert_eq!(name(at(0), "a b/../c"), "hotpath-staleness-20251127T110321Z-a_b_.._c");
        assert_eq!(name(at(0), ""), "hotpath-staleness-20251127T110321Z-manual");
        assert!(name(at(0), &"x".repeat(500)).len() < 255);
    }

    #[test]
    fn a_bundle_is_for_its_owner_alone_and_never_one_of_before() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path().join("deeper");
        let first = Bundle::create(&root, at(0), "x").expect("made");
        let second = Bundle::create(&root, at(0), "x").expect("made");
        assert_ne!(first.path(), second.path());
        first.write("f", "password=HUNTER2\n").expect("written");
        assert!(first.write("f", "again").is_err());
        assert_eq!(std::fs::read_to_string(first.path().join("f")).expect("read"), "password=[redacted]\n");
        let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(first.path()), mode(&first.path().join("f")), mode(&root)), (0o700, 0o600, 0o700));
    }

    #[test]
    fn only_the_oldest_automatic_ones_are_removed() {
        let root = tempfile::tempdir().expect("a directory");
        for (n, tag) in ["auto-outage", "manual", "auto-recovery", "auto-outage", "incident"].into_iter().enumerate() {
            Bundle::create(root.path(), at(n as u64), tag).expect("made").write("f", "x").expect("written");
        }
        std::fs::create_dir(root.path().join("hotpath-staleness-2-auto-x")).expect("made");
        std::fs::create_dir(root.path().join("other")).expect("made");
        prune(root.path(), 1).expect("pruned");
        let entries = std::fs::read_dir(root.path()).expect("read").flatten();
        let mut left: Vec<String> = entries.map(|entry| entry.file_name().into_string().expect("text")).collect();
        left.sort();
        let stamped = |tag: &str, n| name(at(n), tag);
        let wanted = [
            "hotpath-staleness-2-auto-x".into(),
            stamped("manual", 1),
            stamped("auto-outage", 3),
            stamped("incident", 4),
            "other".into(),
        ];
        assert_eq!(left, wanted);
    }
}
