//! Which entries a directory holds.

use std::path::{Path, PathBuf};

use super::directory::Directory;
use super::entry::{Entry, split};
use super::{Header, SpoolError};

/// How an entry's name ends.
pub(super) const SPOOL: &str = ".spool";
/// What is added while it is being written.
pub(super) const PART: &str = ".part";
/// How it ends after it was restored.
pub(super) const RESTORED: &str = ".restored";

/// What has become of an entry, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits to be looked at.
    Kept,
    /// It was restored, and can be dropped.
    Restored,
    /// It is being written, or that was interrupted.
    Unfinished,
}

impl State {
    /// The state that a name stands for; `None` if it is not that of an entry.
    pub fn of(name: &str) -> Option<State> {
        let ends = |end: &str| name.len() > end.len() && name.ends_with(end);
        match () {
            () if ends(SPOOL) => Some(State::Kept),
            () if ends(RESTORED) => Some(State::Restored),
            () if name.strip_suffix(PART).is_some_and(|name| name.ends_with(SPOOL)) => Some(State::Unfinished),
            () => None,
        }
    }

    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            State::Kept => "kept",
            State::Restored => "restored",
            State::Unfinished => "unfinished",
        }
    }
}

/// One entry of a directory.
pub struct Listed {
    /// The file.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// What has become of it.
    pub state: State,
    /// Its size.
    pub bytes: u64,
    /// What it says, or what is wrong with it. Data is not checked.
    pub header: Result<Header, SpoolError>,
}

/// The entries of a directory by name, which is by age. Other files are left out.
pub fn list(dir: &Path) -> Result<Vec<Listed>, SpoolError> {
    let directory = Directory::open(dir)?;
    let fail = |error| SpoolError::io("read", dir, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        // Names of entries are ASCII.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(state) = State::of(&name) else { continue };
        let header = Entry::open_in(&directory, name.as_ref()).map(|entry| entry.header().clone());
        let bytes = entry.metadata().map_or(0, |found| found.len());
        found.push(Listed { path: entry.path(), name, state, bytes, header });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Removes an entry, whatever its state.
pub fn drop_entry(path: &Path) -> Result<(), SpoolError> {
    let (directory, name) = split(path)?;
    if name.to_str().and_then(State::of).is_none() {
        return Err(SpoolError::Refused { target: path.to_owned(), why: "is not an entry of a spool".into() });
    }
    directory.remove(&name)
}
