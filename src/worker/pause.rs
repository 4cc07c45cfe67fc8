//! The note that somebody is paused, for whoever has to let go, and the flag file, for the worker itself.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backing::process::Process;
use crate::config::Means;

/// Names of files that are being written begin so.
const UNFINISHED: &str = ".steadfs";

/// Longest time that a note can ask for: no clock ends before that, so that whoever waits can reckon with it.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86400);

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
    /// It has been let go.
    Resumed,
}

/// What there is to let go of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Found {
    /// What its means name.
    Named,
    /// Processes that were signalled.
    Processes {
        /// Each of them, all members of the group if there is one.
        processes: Vec<Process>,
        /// Their process group, if it was signalled as a whole.
        #[serde(default)]
        group: Option<i32>,
    },
    /// A control group: another one may have its name later.
    Directory {
        /// Its inode.
        inode: u64,
    },
    /// Containers.
    Containers {
        /// Their ids.
        ids: Vec<String>,
    },
    /// Nobody knows: whatever its means name and is found paused.
    Unknown,
}

impl Found {
    /// Both, where each is a part of what was found.
    pub fn and(self, more: Found) -> Found {
        match (self, more) {
            (Found::Unknown, _) | (_, Found::Unknown) => Found::Unknown,
            (Found::Processes { processes: mut all, group }, Found::Processes { processes, group: newer }) => {
                all.extend(processes.into_iter().filter(|process| !all.contains(process)).collect::<Vec<_>>());
                Found::Processes { processes: all, group: newer.or(group) }
            }
            (Found::Containers { ids: mut all }, Found::Containers { ids }) => {
                all.extend(ids.into_iter().filter(|id| !all.contains(id)).collect::<Vec<_>>());
                Found::Containers { ids: all }
            }
            (_, newer) => newer,
        }
    }
}

/// One worker that is paused, or is being paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its name at that time.
    pub name: String,
    /// How it is let go: the configuration may say otherwise by then.
    pub means: Means,
    /// How long a step may take.
    #[serde(default)]
    pub timeout: Option<Duration>,
    /// How long the backing must have been steady.
    #[serde(default)]
    pub steady: Option<Duration>,
    /// How far it is: `pausing` or `paused`.
    #[serde(default)]
    pub stage: Stage,
    /// The boot in which it was paused (`/proc/sys/kernel/random/boot_id`).
    #[serde(default)]
    pub boot: String,
    /// When that was, RFC 3339.
    #[serde(default)]
    pub since: String,
    /// What there is to let go.
    pub found: Found,
}

/// What the note holds: that, and the means by which the worker is let go. A successor may be configured otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As in the flag file.
    #[serde(flatten)]
    pub paused: Paused,
    /// How far that is, all in all.
    #[serde(default)]
    pub stage: Stage,
    /// How far the pause file and the hooks are, where that is not as far as `stage`; `unknown`: it is.
    #[serde(default)]
    pub pair: Stage,
    /// The flag file, if there is one.
    #[serde(default)]
    pub pause_file: Option<PathBuf>,
    /// Words of the command that lets the worker go, if there is one.
    #[serde(default)]
    pub on_recovery: Option<Vec<String>>,
    /// How long it may take.
    #[serde(default)]
    pub hook_timeout: Option<Duration>,
    /// The workers that are paused, in the order in which they were.
    #[serde(default)]
    pub workers: Vec<Held>,
    /// What has been done of that which follows a recovery, by name.
    #[serde(default)]
    pub after: Vec<String>,
    /// There is a note, but nobody can tell what it says.
    #[serde(skip)]
    pub unreadable: bool,
}

impl Record {
    /// What is in such a note; `None` if nobody can tell.
    pub fn parse(text: &[u8]) -> Option<Record> {
        let mut record: Record = serde_json::from_slice(text).ok()?;
        let all = record.workers.iter_mut().flat_map(|held| [&mut held.timeout, &mut held.steady]);
        for time in all.chain([&mut record.hook_timeout]) {
            *time = time.map(|time| time.min(LONGEST));
        }
        Some(record)
    }

    /// How far the pause file and the hooks are.
    pub fn stage_of_pair(&self) -> Stage {
        if self.pair == Stage::Unknown { self.stage } else { self.pair }
    }
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
        let paused = Paused { reason: "unknown".into(), ..Paused::default() };
        let unknown = Record { paused, unreadable: true, ..Record::default() };
        match std::fs::symlink_metadata(&self.path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return None;
            }
            // It names a command to run.
            Ok(found) if found.is_file() && found.uid() == nix::unistd::geteuid().as_raw() => {}
            _ => return Some(unknown),
        }
        let record = std::fs::read(&self.path).ok().and_then(|text| Record::parse(&text));
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

/// Makes all of it but its name.
pub fn unfinished_flag(flag: &Path, paused: &Paused) -> io::Result<tempfile::NamedTempFile> {
    filled(flag, paused, 0o644)
}

/// True if it is there and somebody else made it: it is no file of this overlay's.
pub fn is_strange_flag(flag: &Path, overlay: &str) -> io::Result<bool> {
    match std::fs::read(flag) {
        Ok(text) => Ok(serde_json::from_slice::<Paused>(&text).map_or(true, |paused| paused.overlay != overlay)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes it.
pub fn lower_flag(flag: &Path) -> io::Result<()> {
    remove(flag)
}

fn unfinished(directory: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(directory)
}

fn replace(path: &Path, content: &impl Serialize, mode: u32) -> io::Result<()> {
    filled(path, content, mode)?.persist(path).map_err(|error| error.error)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn filled(path: &Path, content: &impl Serialize, mode: u32) -> io::Result<tempfile::NamedTempFile> {
    let file = unfinished(path.parent().unwrap_or(Path::new("/")))?;
    serde_json::to_writer(file.as_file(), content)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
