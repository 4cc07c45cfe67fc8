//! The pure part: which hidden names may exist on the backing, and where.
//!
//! A hidden name is chosen once and never again, so it tells files apart wherever it is. A directory above may be renamed,
//! and nobody may know whether it was: then a name is listed at both places, and only one of them is true.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// One step of the journal. Paths are below the backing's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A hidden name may exist there from now on.
    Add(PathBuf),
    /// It does not exist there any more.
    Strike(PathBuf),
}

/// What became of the rename of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The backing did it.
    Done,
    /// The backing did not do it.
    Failed,
    /// Nobody knows.
    Doubt,
}

#[derive(Debug, Default)]
struct Entry {
    places: Vec<PathBuf>,
    /// Nobody has it open: it is to be removed.
    doomed: bool,
}

/// The rename of a directory that is under way.
#[derive(Debug)]
struct Move {
    from: PathBuf,
    to: PathBuf,
    exchange: bool,
    /// Places that it takes away if it is done.
    left: Vec<PathBuf>,
    /// Places that were listed for it alone.
    added: Vec<PathBuf>,
}

impl Move {
    fn map(&self, path: &Path) -> Option<PathBuf> {
        let below = |from: &Path, to: &Path| path.strip_prefix(from).ok().map(|rest| to.join(rest));
        below(&self.from, &self.to).or_else(|| below(&self.to, &self.from).filter(|_| self.exchange))
    }
}

/// Names a rename that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// See the module. What changes it returns what has to be written down.
#[derive(Debug, Default)]
pub struct Names {
    entries: BTreeMap<OsString, Entry>,
    moves: BTreeMap<u64, Move>,
    last: u64,
}

impl Names {
    /// Does one step; false if it changes nothing.
    pub fn apply(&mut self, change: &Change) -> bool {
        let (Change::Add(path) | Change::Strike(path)) = change;
        let Some(name) = path.file_name() else { return false };
        match change {
            Change::Add(_) => {
                let entry = self.entries.entry(name.to_owned()).or_default();
                let new = !entry.places.contains(path);
                if new {
                    entry.places.push(path.clone());
                }
                new
            }
            Change::Strike(_) => {
                let Some(entry) = self.entries.get_mut(name) else { return false };
                let before = entry.places.len();
                entry.places.retain(|place| place != path);
                let changed = entry.places.len() < before;
                if entry.places.is_empty() {
                    self.entries.remove(name);
                }
                changed
            }
        }
    }

    fn apply_all(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Change> {
        changes.into_iter().filter(|change| self.apply(change)).collect()
    }

    /// A name is about to be made there; by a rename of a directory that is under way it may come to be elsewhere.
    pub fn add(&mut self, path: &Path) -> Vec<Change> {
        let mut places = vec![path.to_owned()];
        let mut next = 0;
        while let Some(place) = places.get(next) {
            let moved: Vec<_> = self.moves.values().filter_map(|rename| rename.map(place)).collect();
            places.extend(moved.into_iter().filter(|to| !places.contains(to)).collect::<Vec<_>>());
            next += 1;
        }
        self.claim(&places);
        self.apply_all(places.into_iter().map(Change::Add))
    }

    /// These are true whatever becomes of the renames that are under way.
    fn claim(&mut self, places: &[PathBuf]) {
        for rename in self.moves.values_mut() {
            rename.left.retain(|place| !places.contains(place));
            rename.added.retain(|place| !places.contains(place));
        }
    }

    /// It is not there.
    pub fn strike(&mut self, path: &Path) -> Vec<Change> {
        self.apply_all([Change::Strike(path.to_owned())])
    }

    /// It was removed, so it is nowhere.
    pub fn removed(&mut self, name: &OsStr) -> Vec<Change> {
        let places = self.entries.get(name).map(|entry| entry.places.clone()).unwrap_or_default();
        self.apply_all(places.into_iter().map(Change::Strike))
    }

    /// Nobody has it open any more: it is to be removed.
    pub fn doom(&mut self, name: &OsStr) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.doomed = true;
        }
    }

    /// The same of all but those that are open.
    pub fn doom_all(&mut self, is_open: impl Fn(&OsStr) -> bool) {
        self.entries.iter_mut().for_each(|(name, entry)| entry.doomed = !is_open(name));
    }

    /// Where the names may be that are to be removed.
    pub fn doomed(&self) -> Vec<PathBuf> {
        self.entries.values().filter(|entry| entry.doomed).flat_map(|entry| entry.places.clone()).collect()
    }

    /// True if it is one of these.
    pub fn has(&self, name: &OsStr) -> bool {
        self.entries.contains_key(name)
    }

    /// A rename begins. What is listed below the directory may be at its new place from now on.
    pub fn begin_move(&mut self, from: &Path, to: &Path, exchange: bool) -> (Ticket, Vec<Change>) {
        self.last += 1;
        let mut rename = Move { from: from.into(), to: to.into(), exchange, left: Vec::new(), added: Vec::new() };
        let places = || self.entries.values().flat_map(|entry| &entry.places);
        let moved: Vec<_> = places().filter_map(|path| Some((path.clone(), rename.map(path)?))).collect();
        let (left, reached): (Vec<_>, Vec<_>) = moved.into_iter().unzip();
        self.claim(&reached);
        let changes = self.apply_all(reached.iter().cloned().map(Change::Add));
        rename.added = changes.iter().map(|(Change::Add(path) | Change::Strike(path))| path.clone()).collect();
        // With an exchange a name may be listed at both ends.
        rename.left = left.into_iter().filter(|path| !reached.contains(path)).collect();
        self.moves.insert(self.last, rename);
        (Ticket(self.last), changes)
    }

    /// The rename is over.
    pub fn end_move(&mut self, ticket: Ticket, outcome: Outcome) -> Vec<Change> {
        let Some(rename) = self.moves.remove(&ticket.0) else { return Vec::new() };
        let gone = match outcome {
            Outcome::Done => rename.left,
            Outcome::Failed => rename.added,
            Outcome::Doubt => Vec::new(),
        };
        self.apply_all(gone.into_iter().map(Change::Strike))
    }

    /// The shortest journal that says the same.
    pub fn summary(&self) -> Vec<Change> {
        self.entries.values().flat_map(|entry| &entry.places).cloned().map(Change::Add).collect()
    }

    /// Places that are listed.
    pub fn count(&self) -> usize {
        self.entries.values().map(|entry| entry.places.len()).sum()
    }
}

#[cfg(test)]
mod tests;
