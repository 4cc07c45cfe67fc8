//! The note that the worker is paused, for whoever has to let it go, and the flag file, for the worker itself.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Names of files that are being written begin so.
const UNFINISHED: &str = ".steadfs";

/// What the flag file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// First evidence of the outage, RFC 3339.
    pub since: String,
    /// What it was.
    pub reason: String,
    /// The hot path.
    pub overlay: String,
}

/// How far it has been told, so that a successor neither tells it twice nor forgets to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nobody wrote it down.
    #[default]
    Unknown,
    /// It is being told to pause: the flag or the hook may be missing.
    Pausing,
    /// It has been told.
    Paused,
    /// It is being let go.
    Resuming,
}

/// What the note holds: that, and the means by which the worker is let go. A successor may be configured otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As in the flag file.
    #[serde(flatten)]
    pub paused: Paused,
    /// How far that is.
    #[serde(default)]
    pub stage: Stage,
    /// The flag file, if there is one.
    #[serde(default)]
    pub pause_file: Option<PathBuf>,
    /// Words of the command that lets the worker go, if there is one.
    #[serde(default)]
    pub on_recovery: Option<Vec<String>>,
    /// How long it may take.
    #[serde(default)]
    pub hook_timeout: Option<Duration>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Note {
    path: PathBuf,
}

impl Note {
    /// A note at that path; its directory is the note's own.
    pub fn new(path: PathBuf) -> Note {
        Note { path }
    }

    /// Finds out whether a note can be written, and leaves nothing behind.
    pub fn try_out(&self) -> Result<(), String> {
        let directory = self.directory();
        let tried = self.make_directory().and_then(|()| unfinished(directory).map(drop));
        self.tidy();
        tried.map_err(|error| {
            let shown = directory.display();
            format!("cannot write down in {shown} who is paused: {error}: set STEADFS_STATE_DIR to another directory")
        })
    }

    /// The note, if there is one. One that cannot be read, or that somebody else could have written, counts too:
    /// somebody may be paused.
    pub fn read(&self) -> Option<Record> {
        let unknown = Record { paused: Paused { reason: "unknown".into(), ..Paused::default() }, ..Record::default() };
        match std::fs::symlink_metadata(&self.path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return None;
            }
            // It names a command to run.
            Ok(found) if found.is_file() && found.uid() == nix::unistd::geteuid().as_raw() => {}
            _ => return Some(unknown),
        }
        let record = std::fs::read(&self.path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Some(record.unwrap_or(unknown))
    }

    /// Writes the note so that it survives a crash of the machine.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        self.make_directory()?;
        replace(&self.path, record, 0o600)?;
        // A new directory is lost with its name, and so on upwards, as far as it may be read.
        for directory in self.directory().ancestors().skip(1).take(2) {
            File::open(directory).map_or(Ok(()), |directory| directory.sync_all())?;
        }
        Ok(())
    }

    /// Removes the note, and its directory if nothing else is in it.
    pub fn erase(&self) -> io::Result<()> {
        remove(&self.path)?;
        self.tidy();
        Ok(())
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Neither it nor what has to be made above it is for others: the daemon's umask is 0.
    fn make_directory(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.directory())
    }

    fn tidy(&self) {
        if self.path.exists() {
            return;
        }
        // What a daemon left that was killed while it wrote.
        for entry in std::fs::read_dir(self.directory()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        for directory in self.directory().ancestors().take(2) {
            // Others' notes may lie there.
            if std::fs::remove_dir(directory).is_err() {
                break;
            }
        }
    }
}

/// Makes the flag file.
pub fn raise_flag(flag: &Path, paused: &Paused) -> io::Result<()> {
    replace(flag, paused, 0o644)
}

/// Removes it.
pub fn lower_flag(flag: &Path) -> io::Result<()> {
    remove(flag)
}

fn unfinished(directory: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(directory)
}

fn replace(path: &Path, content: &impl Serialize, mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let file = unfinished(directory)?;
    serde_json::to_writer(file.as_file(), content)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
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
