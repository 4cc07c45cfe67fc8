//! What the next daemon has to know of repairs: `repairs.json` in the state directory, so that neither a restart nor a reboot
//! resets the limits. Times in it are wall-clock time, in seconds since 1970.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::moment;
use crate::supervisor::report::LastRepair;

/// Name of the file in the state directory of a daemon.
pub const NAME: &str = "repairs.json";

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Repairs that were started, ever.
    pub started_total: u64,
    /// Those of the last 24 h, or as many as matter.
    pub starts: Vec<f64>,
    /// The last of them.
    pub last: Option<Last>,
}

/// A repair.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Last {
    /// When it started.
    pub started: f64,
    /// When it ended; absent while it goes on.
    pub ended: Option<f64>,
    /// What became of it; absent while nothing is known.
    pub ok: Option<bool>,
    /// What went wrong on the way.
    pub errors: Vec<String>,
}

fn secs(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn time(secs: f64) -> SystemTime {
    moment::after_epoch(Duration::try_from_secs_f64(secs).unwrap_or_default())
}

impl From<&LastRepair> for Last {
    fn from(last: &LastRepair) -> Last {
        let (started, ended) = (secs(last.started), last.ended.map(secs));
        Last { started, ended, ok: last.ok, errors: last.errors.clone() }
    }
}

impl From<&Last> for LastRepair {
    fn from(last: &Last) -> LastRepair {
        let (started, ended) = (time(last.started), last.ended.map(time));
        LastRepair { started, ended, ok: last.ok, errors: last.errors.clone() }
    }
}

impl Record {
    /// Starts on the clock that nobody sets, oldest first, as they look at `now`, when the wall clock shows `wall`. One in the
    /// future, from before the clock was set back, has just been.
    pub fn instants(&self, now: Instant, wall: SystemTime) -> Vec<Instant> {
        let mut starts: Vec<Instant> = self.starts.iter().filter_map(|&at| instant(at, now, wall)).collect();
        starts.sort();
        starts
    }

    /// When the last repair started, if it has not ended.
    pub fn unfinished(&self, now: Instant, wall: SystemTime) -> Option<Instant> {
        self.last.as_ref().filter(|last| last.ended.is_none()).and_then(|last| instant(last.started, now, wall))
    }

    /// The other way round: written by ages, so that it is right as soon as the clock is.
    pub fn of(
        starts: &[Instant],
        started_total: u64,
        last: Option<&LastRepair>,
        now: Instant,
        wall: SystemTime,
    ) -> Record {
        let starts = starts.iter().map(|&at| secs(wall) - now.saturating_duration_since(at).as_secs_f64()).collect();
        Record { started_total, starts, last: last.map(Last::from) }
    }

    /// What is in such a file.
    pub fn parse(text: &[u8]) -> io::Result<Record> {
        Ok(serde_json::from_slice(text)?)
    }

    /// Reads it. A file that is missing says that nothing has happened; one that cannot be understood is an error, and the
    /// caller starts over.
    pub fn load(path: &Path) -> io::Result<Record> {
        match std::fs::read(path) {
            Ok(text) => Record::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error),
        }
    }

    /// Writes it so that it survives a crash of the machine, whole or not at all. Its directory is made if it is missing.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let file = tempfile::Builder::new().prefix(".steadfs").tempfile_in(directory)?;
        serde_json::to_writer(file.as_file(), self)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(directory)?.sync_all()
    }
}

/// `None` for one that is older than the clock can say, which is older than every window.
fn instant(secs: f64, now: Instant, wall: SystemTime) -> Option<Instant> {
    now.checked_sub(wall.duration_since(time(secs)).unwrap_or_default())
}
