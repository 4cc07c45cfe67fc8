//! The configuration file of `steadfs run`: strict TOML. All mistakes are found at once, each with its place, what is
//! allowed there and what to do.

mod compose;
mod expand;
mod hand_on;
pub mod keys;
pub mod manifest;
mod mistake;
mod outside;
pub mod overlap;
pub(super) mod overlays;
mod reader;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::config::DaemonConfig;

pub use compose::parse;
pub use mistake::{Mistake, Place};
pub use outside::{Machine, Outside};

/// Longest file that is read; a longer one is another file by mistake.
const MAX_SIZE: u64 = 256 << 10;

/// What a file says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// For the daemon. Mountpoints are absolute and without `..`, and still have to be resolved. Its `home` is `@NAME`.
    pub config: DaemonConfig,
    /// Mountpoints that may be mounted over although they are not empty.
    pub nonempty: BTreeSet<PathBuf>,
    /// Where each overlay comes from, by its mountpoint.
    pub places: BTreeMap<PathBuf, Place>,
    /// What was dropped and why, for the log.
    pub notes: Vec<String>,
    /// Values that this machine has to bear out: place, name of the option, value. See [`Loaded::missing_here`].
    pub(super) here: Vec<(Place, &'static str, String)>,
}

impl Loaded {
    /// Directories that this machine lacks, as the `-o` options of the same names complain of them.
    pub fn missing_here(&self) -> Vec<Mistake> {
        let complaint = |(place, name, value): &(Place, &'static str, String)| {
            let (definition, _) = super::options::table::find(name)?;
            let refused = definition.apply(&mut super::options::Options::default(), Some(value)).err()?;
            Some(Mistake { place: place.clone(), text: refused })
        };
        self.here.iter().filter_map(complaint).collect()
    }
}

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read (EX_NOINPUT of sysexits.h).
    #[error("{0}")]
    Unreadable(String),
    /// It can, and these are all of its mistakes, in the order of the file (EX_CONFIG).
    #[error("{}", lines(.0))]
    Mistakes(Vec<Mistake>),
}

impl LoadError {
    /// The exit code for it.
    pub fn exit_code(&self) -> u8 {
        match self {
            LoadError::Unreadable(_) => 66,
            LoadError::Mistakes(_) => 78,
        }
    }
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Reads a file, and the manifest that it names, for a daemon that is to be started or to read it again.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let loaded = read(path, &Machine)?;
    let missing = loaded.missing_here();
    if missing.is_empty() { Ok(loaded) } else { Err(LoadError::Mistakes(missing)) }
}

/// As [`load`], but directories of this machine are not looked for.
pub fn read(path: &Path, outside: &dyn Outside) -> Result<Loaded, LoadError> {
    let unreadable = |words: String| LoadError::Unreadable(format!("{}: {words}", path.display()));
    let path = std::path::absolute(path).map_err(|error| unreadable(error.to_string()))?;
    let bytes = outside.read(&path, MAX_SIZE).map_err(|error| unreadable(outside::words(&error)))?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = error.utf8_error().valid_up_to();
            let good = String::from_utf8_lossy(&error.as_bytes()[..before]).into_owned();
            let place = mistake::Source::new(&path, &good).place(before);
            let text = "is not UTF-8 here: save the file as UTF-8".into();
            return Err(LoadError::Mistakes(vec![Mistake { place, text }]));
        }
    };
    parse(&path, &text, outside).map_err(LoadError::Mistakes)
}
