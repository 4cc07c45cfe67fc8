//! The journal file: one JSON object a line, with `at`, `daemon` and the fields of the event; rotated by size.
//!
//! A thread of its own writes it, from a channel without bound, so that a slow or full disk keeps nobody. What could not be
//! written is counted, and a line `journal_gap` says so when something can be written again. journald has the same objects
//! as log lines already (`journalctl -o cat`, or `jq` over them): no second copy is sent there.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::config::TelemetryConfig;
use crate::supervisor::{Event, Watch};

/// Bytes after which the file is rotated, if nothing is said.
const SIZE: u64 = 1 << 20;
/// Rotated files that are kept, if nothing is said.
const KEEP: u32 = 5;
/// How long the end of the daemon waits for the last lines.
const FAREWELL: Duration = Duration::from_millis(500);

/// The thread that writes; waits a moment for its last line on drop.
pub struct Writing(Mutex<Receiver<()>>);

impl Drop for Writing {
    fn drop(&mut self) {
        if self.0.get_mut().recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the journal file is still being written");
        }
    }
}

/// Writes the events of a supervisor from now on, if the configuration asks for it. The error names the option and the
/// remedy.
pub fn follow(config: &TelemetryConfig, daemon: &Path, watch: &Watch) -> Result<Option<Writing>, String> {
    let Some(path) = &config.journal else { return Ok(None) };
    let size = if config.journal_size == 0 { SIZE } else { config.journal_size };
    let mut file = JournalFile::new(path.clone(), size, config.journal_keep.unwrap_or(KEEP));
    file.open().map_err(|error| format!("journal={}: {error}; give another path", path.display()))?;
    let (daemon, events) = (daemon.display().to_string(), watch.subscribe());
    let (alive, ended) = channel();
    let write = move || {
        for (at, event) in events {
            file.note(at, &daemon, &event);
            if event == Event::Stopping {
                break;
            }
        }
        drop(alive);
    };
    std::thread::Builder::new().name("journal-file".into()).spawn(write).map_err(|error| error.to_string())?;
    Ok(Some(Writing(Mutex::new(ended))))
}

/// A file that is appended to line by line.
pub struct JournalFile {
    path: PathBuf,
    /// Most bytes of it.
    size: u64,
    /// Older ones that stay.
    keep: u32,
    file: Option<File>,
    /// Lines that could not be written since the last that could.
    lost: u64,
}

impl JournalFile {
    /// Nothing is opened yet.
    pub fn new(path: PathBuf, size: u64, keep: u32) -> JournalFile {
        JournalFile { path, size, keep, file: None, lost: 0 }
    }

    /// Opens it, for the first time or anew.
    pub fn open(&mut self) -> io::Result<()> {
        self.file = None;
        // Not to wait for a reader if it is a pipe, which it must not be.
        let options = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().create(true).append(true).mode(0o640).custom_flags(options).open(&self.path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        self.file = Some(file);
        Ok(())
    }

    /// Appends an event, or counts it as lost.
    pub fn note(&mut self, at: SystemTime, daemon: &str, event: &Event) {
        let mut lines = Vec::new();
        if self.lost > 0 {
            lines.push(line(at, daemon, json!({"event": "journal_gap", "lost": self.lost})));
        }
        lines.push(line(at, daemon, serde_json::to_value(event).unwrap_or_default()));
        match self.append(&lines.concat()) {
            Ok(()) => self.lost = 0,
            Err(error) => {
                // Once for each gap: the log may lie on the same disk.
                if self.lost == 0 {
                    tracing::warn!(path = %self.path.display(), %error, "the journal file cannot be written");
                }
                self.lost += 1;
            }
        }
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        if !self.is_in_place() {
            self.open()?;
        }
        let length = self.length()?;
        if length > 0 && length + text.len() as u64 > self.size {
            self.rotate()?;
            self.open()?;
        }
        let length = self.length()?;
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        file.write_all(text.as_bytes()).inspect_err(|_| {
            // A part of a line would spoil the next one. If even that fails, the reader has to skip a line.
            let _ = file.set_len(length);
        })
    }

    /// False if somebody removed or rotated it: what is written would be seen by nobody.
    fn is_in_place(&self) -> bool {
        let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
        let ours = self.file.as_ref().and_then(|file| file.metadata().ok()).map(identity);
        ours.is_some() && ours == std::fs::metadata(&self.path).ok().map(identity)
    }

    fn length(&self) -> io::Result<u64> {
        self.file.as_ref().map_or(Ok(0), |file| file.metadata().map(|found| found.len()))
    }

    fn rotate(&self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.keep == 0 {
            return std::fs::remove_file(&self.path);
        }
        for number in (1..self.keep).rev() {
            match std::fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, numbered(1))
    }
}

fn line(at: SystemTime, daemon: &str, event: Value) -> String {
    let mut fields = event;
    if let Some(fields) = fields.as_object_mut() {
        fields.insert("at".into(), humantime::format_rfc3339_millis(at).to_string().into());
        fields.insert("daemon".into(), daemon.into());
    }
    format!("{fields}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(generation: u64) -> Event {
        Event::Cleared { generation }
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
    }

    fn generations(path: &Path) -> Vec<u64> {
        lines(path).iter().filter_map(|line| line["generation"].as_u64()).collect()
    }

    #[test]
    fn each_line_is_an_object_and_old_files_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("journal");
        let mut file = JournalFile::new(path.clone(), 300, 2);
        for generation in 0..20 {
            file.note(SystemTime::UNIX_EPOCH, "/hot \"x\"\n", &event(generation));
        }
        let first = &lines(&path)[0];
        assert_eq!((&first["at"], &first["daemon"]), (&json!("1970-01-01T00:00:00.000Z"), &json!("/hot \"x\"\n")));
        assert_eq!(first["event"], "cleared");
        let rotated = ["journal.2", "journal.1", "journal"].map(|name| generations(&directory.path().join(name)));
        let all = rotated.concat();
        assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 3);
        assert!(all.len() > 5 && all.is_sorted() && all.last() == Some(&19), "{rotated:?}");
        assert_eq!(all[0] + all.len() as u64, 20, "none is missing between them: {rotated:?}");
        for name in ["journal.2", "journal.1", "journal"] {
            assert!(directory.path().join(name).metadata().expect(name).len() <= 300);
        }
    }

    #[test]
    fn one_that_keeps_nothing_begins_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut file = JournalFile::new(directory.path().join("journal"), 150, 0);
        (0..9).for_each(|generation| file.note(SystemTime::now(), "/hot", &event(generation)));
        assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 1);
    }

    #[test]
    fn a_file_that_was_removed_or_moved_is_made_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, moved) = (directory.path().join("journal"), directory.path().join("moved"));
        let mut file = JournalFile::new(path.clone(), 10_000, 2);
        file.note(SystemTime::now(), "/hot", &event(1));
        std::fs::rename(&path, &moved).expect("moved");
        file.note(SystemTime::now(), "/hot", &event(2));
        std::fs::remove_file(&path).expect("removed");
        file.note(SystemTime::now(), "/hot", &event(3));
        assert_eq!((generations(&moved), generations(&path)), (vec![1], vec![3]));
    }

    #[test]
    fn a_full_disk_costs_lines_and_says_how_many() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("journal");
        let mut file = JournalFile::new(path.clone(), 10_000, 2);
        file.note(SystemTime::now(), "/hot", &event(1));
        // A device that is always full takes its place.
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink("/dev/full", &path).expect("linked");
        file.file = Some(OpenOptions::new().write(true).open("/dev/full").expect("/dev/full"));
        file.note(SystemTime::now(), "/hot", &event(2));
        file.note(SystemTime::now(), "/hot", &event(3));
        assert_eq!(file.lost, 2);
        std::fs::remove_file(&path).expect("removed");
        file.note(SystemTime::now(), "/hot", &event(4));
        assert_eq!(
            (lines(&path)[0]["event"].clone(), lines(&path)[0]["lost"].clone()),
            (json!("journal_gap"), json!(2))
        );
        assert_eq!((generations(&path), file.lost), (vec![4], 0));
    }
}
