//! Writes a spool file so that it is there whole, or not there, after any crash.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

use super::directory::Directory;
use super::header::Header;
use super::list::{PART, SPOOL};
use super::{Saved, SpoolError};

/// Saves it as a new file in `dir`, which is made if it is missing, and returns the file's path. It is refused if the
/// files of the directory would have more than `limit` bytes together.
pub fn save(dir: &Path, saved: &Saved, limit: Option<u64>) -> Result<PathBuf, SpoolError> {
    let header = Header::of(saved)?;
    let line = header.encode().map_err(|error| SpoolError::io("describe", &saved.path, error))?;
    let directory = Directory::make(dir)?;
    // One after the other, so that two cannot pass the limit together; where there are no locks, that is the lesser evil.
    let _alone = directory.file().try_clone().ok().and_then(|fd| Flock::lock(fd, FlockArg::LockExclusive).ok());
    if let Some(limit) = limit {
        let (used, needed) = (directory.used()?, header.data_len().saturating_add(line.len() as u64));
        if used.saturating_add(needed) > limit {
            return Err(SpoolError::Full { dir: dir.to_owned(), used, needed, limit });
        }
    }
    let mut names = names(header.at, &line);
    let (name, part, file) = loop {
        // Taken names end long before the numbers do.
        let Some(name) = names.next() else {
            return Err(SpoolError::io("name a file in", dir, io::Error::from(io::ErrorKind::AlreadyExists)));
        };
        let part = suffixed(&name, PART);
        // Whoever holds the unfinished name may look for the finished one and take it.
        match directory.create(&part)? {
            Some(_) if directory.has(&name) => directory.remove(&part)?,
            Some(file) => break (name, part, file),
            None => {}
        }
    };
    let path = directory.join(&name);
    let written = write(file, &line, &saved.extents).map_err(|error| SpoolError::io("write", &path, error));
    if let Err(error) = written.and_then(|()| directory.rename(&part, &name)) {
        // What failed is the news; a remainder is listed as unfinished.
        let _ = directory.remove(&part);
        return Err(error);
    }
    Ok(path)
}

fn write(mut file: File, line: &[u8], extents: &[(u64, Vec<u8>)]) -> io::Result<()> {
    file.write_all(line)?;
    for (_, data) in extents {
        file.write_all(data)?;
    }
    file.sync_all()
}

/// Names to try: the time, and a hash that differs from one to the next.
fn names(at: SystemTime, line: &[u8]) -> impl Iterator<Item = OsString> {
    let stamp: String = humantime::format_rfc3339_seconds(at).to_string().replace(['-', ':'], "");
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(line);
    (0..10_000u32).map(move |salt| {
        let mut hasher = hasher.clone();
        hasher.update(&salt.to_le_bytes());
        format!("{stamp}-{:08x}{SPOOL}", hasher.finalize()).into()
    })
}

fn suffixed(name: &OsString, suffix: &str) -> OsString {
    let mut longer = name.clone();
    longer.push(suffix);
    longer
}
