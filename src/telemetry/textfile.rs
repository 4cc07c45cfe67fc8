//! The same metrics as a file for node_exporter's textfile collector.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::journal::Journal;
use super::{Observed, metrics};
use crate::rundir;

/// Time between two writes; an event is written at once.
const EVERY: Duration = Duration::from_secs(5);

/// Name of the file of a mount.
pub fn path(directory: &Path, mountpoint: &Path) -> PathBuf {
    let name =
        rundir::of(mountpoint).file_name().map(|name| name.to_string_lossy().replace('\\', "_")).unwrap_or_default();
    directory.join(format!("steadfs_{name}.prom"))
}

/// Writes it again and again.
pub async fn keep(path: PathBuf, observed: Observed, journal: Arc<Journal>) {
    loop {
        let (target, text) = (path.clone(), metrics::render(&observed));
        // The directory may lie on a slow disk.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || write(&target, &text)).await {
            tracing::warn!(path = %path.display(), %error, "the textfile cannot be written");
        }
        // Neither outcome matters: both mean that it is time.
        let _ = tokio::time::timeout(EVERY, journal.changed.notified()).await;
    }
}

/// Readers see the old file or the new one, never a part of it.
pub fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".steadfs").tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(PermissionsExt::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
