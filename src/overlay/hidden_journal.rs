//! The journal of hidden names (promise P4): a steadfs that is killed leaves files behind that it hid, and its successor
//! finds in this file which those are. What is not listed here is somebody else's and stays.
//!
//! A line is written before a name may come to exist and after it has gone. It survives the death of steadfs as soon as
//! write(2) has returned; it is not synced, so a power failure of this machine may cost the last lines, and the files that
//! they name stay. Whoever changes a name on the backing writes the line, in the same thread of the pool.

pub(crate) mod line;
mod names;

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use names::{Change, Names};
pub use names::{Outcome, Ticket};

/// A journal with that many lines more than it needs is written anew.
const SLACK: usize = 512;
/// A journal is read up to that many bytes: some hundred thousand names.
const MOST: u64 = 64 << 20;

/// See the module. Without a file it lists what this process hides, and no more.
#[derive(Debug, Default)]
pub struct HiddenJournal {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    names: Names,
    place: Option<Place>,
}

/// The file of a journal.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    backing: String,
    /// Made when there is something to write.
    file: Option<File>,
    lines: usize,
    /// The last write may have left half a line.
    torn: bool,
    complained: bool,
}

impl HiddenJournal {
    /// Keeps the journal in `directory`, which is one overlay's, from now on. What an earlier process listed there for this
    /// backing is to be removed unless it is open; returns how many places are listed.
    pub fn keep_in(&self, directory: &Path, backing: &str, is_open: impl Fn(&OsStr) -> bool) -> usize {
        let name = format!("hidden-{:08x}", crc32fast::hash(backing.as_bytes()));
        let mut place = Place {
            path: directory.join(name),
            backing: backing.to_owned(),
            file: None,
            lines: 0,
            torn: false,
            complained: false,
        };
        let mut state = self.state.lock();
        match place.read() {
            Ok(Some(journal)) => {
                let (mut names, bad) = line::fold(backing, &journal);
                if bad > 0 {
                    tracing::warn!(journal = %place.path.display(), lines = bad, "lines of hidden names cannot be read");
                }
                for change in state.names.summary() {
                    names.apply(&change);
                }
                names.doom_all(is_open);
                state.names = names;
                if state.names.count() == 0 {
                    place.remove();
                } else {
                    let rewritten = place.rewrite(&state.names);
                    place.complain(rewritten);
                }
            }
            Ok(None) => {}
            Err(error) => place.complain(Err(error)),
        }
        state.place = Some(place);
        state.names.count()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Names) -> (T, Vec<Change>)) -> T {
        let mut state = self.state.lock();
        let State { names, place } = &mut *state;
        let (value, changes) = change(names);
        if let Some(place) = place.as_mut().filter(|_| !changes.is_empty()) {
            let written = place.write(&changes, names);
            place.complain(written);
        }
        value
    }

    /// A name is about to be made at that path below the root.
    pub fn add(&self, path: &Path) {
        self.change(|names| ((), names.add(path)));
    }

    /// It is not there.
    pub fn strike(&self, path: &Path) {
        self.change(|names| ((), names.strike(path)));
    }

    /// It was removed.
    pub fn removed(&self, name: &OsStr) {
        self.change(|names| ((), names.removed(name)));
    }

    /// Nobody has it open any more, and it could not be removed yet.
    pub fn doom(&self, name: &OsStr) {
        self.state.lock().names.doom(name);
    }

    /// Where the names may be that are to be removed.
    pub fn doomed(&self) -> Vec<PathBuf> {
        self.state.lock().names.doomed()
    }

    /// True if this overlay made the name.
    pub fn has(&self, name: &OsStr) -> bool {
        self.state.lock().names.has(name)
    }

    /// A directory is about to be renamed, or exchanged with another.
    pub fn begin_move(&self, from: &Path, to: &Path, exchange: bool) -> Ticket {
        self.change(|names| names.begin_move(from, to, exchange))
    }

    /// That is over.
    pub fn end_move(&self, ticket: Ticket, outcome: Outcome) {
        self.change(|names| ((), names.end_move(ticket, outcome)));
    }

    /// The end: a journal that lists nothing leaves no file.
    pub fn close(&self) {
        let mut state = self.state.lock();
        let empty = state.names.count() == 0;
        if let Some(place) = state.place.as_mut().filter(|place| empty && place.file.is_some()) {
            place.remove();
        }
    }
}

impl Place {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        // A fifo must not block.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&self.path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let found = file.metadata()?;
        if !found.is_file() || found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it could be somebody else's"));
        }
        let mut journal = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MOST), &mut journal)?;
        Ok(Some(journal))
    }

    fn write(&mut self, changes: &[Change], names: &Names) -> io::Result<()> {
        if self.file.is_none() || self.lines + changes.len() > 2 * names.count() + SLACK {
            return self.rewrite(names);
        }
        let mut text = String::from(if self.torn { "\n" } else { "" });
        changes.iter().for_each(|change| text.push_str(&line::encode(&self.backing, change)));
        let Some(file) = &mut self.file else { return Ok(()) };
        self.torn = true;
        file.write_all(text.as_bytes())?;
        self.torn = false;
        self.lines += changes.len();
        Ok(())
    }

    /// Writes a journal of what is listed now and puts it in the place of the old one at once.
    fn rewrite(&mut self, names: &Names) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let (new, flags) = (self.unfinished(), libc::O_NOFOLLOW);
        // What was left unfinished.
        let _ = std::fs::remove_file(&new);
        let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).custom_flags(flags).open(&new)?;
        file.write_all(line::summary(&self.backing, names).as_bytes())?;
        std::fs::rename(&new, &self.path)?;
        (self.file, self.lines, self.torn) = (Some(file), names.count(), false);
        Ok(())
    }

    fn unfinished(&self) -> PathBuf {
        self.path.with_extension("new")
    }

    /// Removes the file, and its directories if nothing else is in them.
    fn remove(&mut self) {
        self.file = None;
        let _ = std::fs::remove_file(self.unfinished());
        let removed = std::fs::remove_file(&self.path);
        for directory in self.path.ancestors().skip(1).take(2) {
            if std::fs::remove_dir(directory).is_err() {
                break;
            }
        }
        self.complain(removed);
    }

    /// Calls go on without a journal: what it is for may never happen.
    fn complain(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && error.kind() != io::ErrorKind::NotFound
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!(
                journal = %self.path.display(), %error,
                "hidden names cannot be written down; a steadfs that is killed leaves them on the store"
            );
        }
    }
}

#[cfg(test)]
mod tests;
