//! The same metrics as a file for node_exporter's textfile collector.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use parking_lot::Mutex;

use super::journal::Journal;
use super::replace::{remove, replace};
use super::{Observed, metrics};
use crate::rundir;

/// Time between two writes; an event is written at once.
const EVERY: Duration = Duration::from_secs(5);
/// How long the end waits for a write that is under way.
const PATIENCE: Duration = Duration::from_secs(2);

/// The file of one mount; removed by [`Textfile::end`].
pub struct Textfile {
    path: PathBuf,
    /// True after the end: a write that comes late must not bring the file back.
    ended: Mutex<bool>,
}

impl Textfile {
    /// Looks whether it can be written; the error names the option and the remedy.
    pub fn bind(directory: &Path, mountpoint: &Path) -> Result<Textfile, String> {
        Textfile::at(directory, path(directory, mountpoint))
    }

    /// The same for a file of another name.
    pub fn named(directory: &Path, name: &str) -> Result<Textfile, String> {
        Textfile::at(directory, directory.join(name))
    }

    fn at(directory: &Path, path: PathBuf) -> Result<Textfile, String> {
        let shown = directory.display();
        if !directory.is_dir() {
            return Err(format!("textfile={shown}: there is no such directory; make it first"));
        }
        access(directory, AccessFlags::W_OK | AccessFlags::X_OK)
            .map_err(|errno| format!("textfile={shown}: {}; allow this user to write there", errno.desc()))?;
        Ok(Textfile { path, ended: Mutex::new(false) })
    }

    /// Readers see the old text or the new one, never a part of it.
    pub fn write(&self, text: &str) -> io::Result<()> {
        let ended = self.ended.lock();
        if *ended {
            return Ok(());
        }
        replace(&self.path, text)
    }

    /// Removes the file; nothing is written after that.
    pub fn end(&self) {
        let ended = self.ended.try_lock_for(PATIENCE);
        if ended.is_none() {
            tracing::warn!(path = %self.path.display(), "the textfile is still being written");
        }
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the textfile cannot be removed");
        }
        if let Some(mut ended) = ended {
            *ended = true;
        }
    }
}

/// Name of the file of a mount.
pub fn path(directory: &Path, mountpoint: &Path) -> PathBuf {
    let name = rundir::of(mountpoint).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    directory.join(format!("steadfs_{name}.prom"))
}

/// Writes it again and again.
pub async fn keep(textfile: Arc<Textfile>, observed: Observed, journal: Arc<Journal>) {
    let mut changes = journal.changes();
    loop {
        let (target, text) = (Arc::clone(&textfile), metrics::render(&observed));
        // The directory may lie on a slow disk.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || target.write(&text)).await {
            tracing::warn!(path = %textfile.path.display(), %error, "the textfile cannot be written");
        }
        // Neither outcome matters: both mean that it is time.
        let _ = tokio::time::timeout(EVERY, changes.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_late_write_does_not_bring_the_file_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let textfile = Textfile::bind(directory.path(), Path::new("/srv/hot-1")).expect("it can be written");
        // What a killed daemon left.
        std::fs::write(directory.path().join("steadfs_srv-hot\\x2d1.prom.new"), "half").expect("written");
        textfile.write("a 1\n").expect("it is written");
        let path = directory.path().join("steadfs_srv-hot\\x2d1.prom");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "a 1\n");
        assert_eq!(path.metadata().expect("it is there").permissions().mode() & 0o777, 0o644);
        textfile.end();
        textfile.write("a 2\n").expect("nothing is done");
        assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn a_directory_that_is_missing_is_named() {
        let error = Textfile::bind(Path::new("/no/such"), Path::new("/hot")).err();
        assert_eq!(error.as_deref(), Some("textfile=/no/such: there is no such directory; make it first"));
    }
}
