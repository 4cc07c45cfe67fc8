//! The note that the worker is paused, for whoever has to let it go, and the flag file, for the worker itself.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What both files hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// First evidence of the outage, RFC 3339.
    pub since: String,
    /// What it was.
    pub reason: String,
    /// The hot path.
    pub overlay: String,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Note {
    note: PathBuf,
    flag: Option<PathBuf>,
}

impl Note {
    /// A note at that path, and the flag file if one is configured.
    pub fn new(note: &Path, flag: Option<PathBuf>) -> Note {
        Note { note: note.to_owned(), flag }
    }

    /// The note, if there is one. One that cannot be read counts too: somebody was paused.
    pub fn read(&self) -> Option<Paused> {
        let text = match std::fs::read(&self.note) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(_) => Vec::new(),
        };
        let unknown = || Paused { since: String::new(), reason: "unknown".into(), overlay: String::new() };
        Some(serde_json::from_slice(&text).unwrap_or_else(|_| unknown()))
    }

    /// Writes the note so that it survives a crash of the machine.
    pub fn write(&self, paused: &Paused) -> io::Result<()> {
        if let Some(directory) = self.note.parent() {
            std::fs::create_dir_all(directory)?;
            // The daemon's umask is 0.
            std::fs::set_permissions(directory, Permissions::from_mode(0o700))?;
        }
        replace(&self.note, paused)
    }

    /// Removes the note, and its directory if nothing else is in it.
    pub fn erase(&self) -> io::Result<()> {
        remove(&self.note)?;
        for directory in self.note.ancestors().skip(1).take(2) {
            // Others' notes may lie there.
            if std::fs::remove_dir(directory).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Makes the flag file.
    pub fn raise_flag(&self, paused: &Paused) -> io::Result<()> {
        self.flag.as_ref().map_or(Ok(()), |flag| replace(flag, paused))
    }

    /// Removes it.
    pub fn lower_flag(&self) -> io::Result<()> {
        self.flag.as_ref().map_or(Ok(()), |flag| remove(flag))
    }
}

fn replace(path: &Path, paused: &Paused) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let file = tempfile::Builder::new().prefix(".steadfs").tempfile_in(directory)?;
    serde_json::to_writer(file.as_file(), paused)?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
