//! For tests: a real directory that hangs, fails, answers late and lies on command.
//!
//! Every call goes through one place (`fake/slot.rs`), which counts it, keeps it in there while its generation is
//! frozen, and applies the first matching [`Fault`]. [`FakeControl`] is the hand on the switches, at run time and from
//! any thread. Faults are for calls; a start obeys the switches only, and makes no probe.

mod control;
mod disk;
mod fault;
mod file;
mod slot;
mod state;
mod tree;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::posix::PosixTree;
use super::record::{AdoptError, Life, Record};
use super::{Backing, ExitSink, Generation, OpResult, StartError, StatFs, Traits, Tree, Vitals};
pub use control::FakeControl;
pub use fault::{Call, Fault, FaultId, What};
use slot::Slot;
use state::Shared;

/// Longest wait for calls that are at work in the real directory when their generation is retired.
const RETIRE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct FakeBacking {
    path: PathBuf,
    /// Removed with the backing, if the directory is its own.
    _own: Option<tempfile::TempDir>,
    traits: Traits,
    shared: Arc<Shared>,
}

impl FakeBacking {
    /// Over a temporary directory of its own.
    pub fn new() -> io::Result<Self> {
        let own = tempfile::Builder::new().prefix("steadfs-fake-").tempdir()?;
        let mut backing = FakeBacking::over(own.path().to_owned());
        backing._own = Some(own);
        Ok(backing)
    }

    /// Over a directory that exists.
    pub fn over(path: PathBuf) -> Self {
        let traits = Traits {
            stable_inodes: true,
            keeps_unlinked: true,
            owners: true,
            asynchronous: false,
            remembers: Duration::ZERO,
        };
        FakeBacking { path, _own: None, traits, shared: Arc::new(Shared::default()) }
    }

    /// With other traits, such as those of sshfs. They are only said, not imitated.
    pub fn with_traits(mut self, traits: Traits) -> Self {
        self.traits = traits;
        self
    }

    /// The directory behind it, for looking at what has really been done.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its switches.
    pub fn control(&self) -> FakeControl {
        FakeControl::new(Arc::clone(&self.shared))
    }
}

impl FakeBacking {
    fn open(&self) -> Result<PosixTree, StartError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(&self.path, flags, Mode::empty())
            .map_err(|errno| StartError::Local(format!("{}: {}", self.path.display(), errno.desc())))?;
        Ok(PosixTree::new(root))
    }
}

impl Backing for FakeBacking {
    fn traits(&self) -> Traits {
        self.traits
    }

    fn reach(&self, _limit: Duration) -> Result<(), String> {
        self.shared.state().reach()
    }

    fn start(&self, number: u64, limit: Duration, exits: ExitSink) -> Result<Arc<dyn Generation>, StartError> {
        self.shared.begin_start(Instant::now() + limit)?;
        let tree = self.open()?;
        let slot = self.shared.add_generation(number, exits);
        Ok(Arc::new(FakeGeneration { number, slot, tree }))
    }

    /// The generation with that number, if it lives and answers; "daemons" are not told apart.
    fn adopt(
        &self,
        record: &Record,
        _root: Option<OwnedFd>,
        limit: Duration,
        exits: ExitSink,
    ) -> Result<Arc<dyn Generation>, AdoptError> {
        if record.life != Life::Fake {
            return Err(AdoptError::Other("it is of another kind (fake)".into()));
        }
        let slot = self.shared.take_over(record.number, Instant::now() + limit, exits)?;
        let tree = self.open().map_err(|error| AdoptError::Dead(error.to_string()))?;
        Ok(Arc::new(FakeGeneration { number: record.number, slot, tree }))
    }
}

/// One life of a [`FakeBacking`].
#[derive(Debug)]
struct FakeGeneration {
    number: u64,
    slot: Slot,
    tree: PosixTree,
}

impl Generation for FakeGeneration {
    fn number(&self) -> u64 {
        self.number
    }

    fn tree(&self) -> &dyn Tree {
        self
    }

    fn probe(&self) -> OpResult<StatFs> {
        self.slot.call(Call::Probe, Path::new(""), || self.tree.stat_fs())
    }

    fn vitals(&self) -> Vitals {
        self.slot.vitals()
    }

    fn abort(&self) {
        self.slot.abort();
    }

    fn record(&self) -> Option<Record> {
        Some(Record::new(self.number, SystemTime::now(), Life::Fake))
    }

    fn retire(&self) -> Result<(), String> {
        if self.slot.retire(RETIRE) { Ok(()) } else { Err("a call is still at work in the directory (fake)".into()) }
    }
}

#[cfg(test)]
mod tests;
