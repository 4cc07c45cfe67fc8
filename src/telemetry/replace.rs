//! Files whose readers see the old text or the new one, never a part of it.

use std::ffi::OsString;
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Puts `text` in the place of the file at `path`, with mode 0644. Nothing is left behind if that fails.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    // Always the same name, and not one that a collector reads: what a killed daemon left is replaced.
    let new = beside(path);
    remove(&new)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    })();
    written.inspect_err(|_| _ = remove(&new))
}

/// Removes a file that may have gone already.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}
