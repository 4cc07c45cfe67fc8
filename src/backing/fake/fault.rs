//! What can go wrong, and for which calls.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

/// A call into a generation: one for each method of [`crate::backing::Tree`] and [`crate::backing::File`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Call {
    Probe,
    Stat,
    SetMode,
    SetOwner,
    SetSize,
    SetTimes,
    ReadLink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Symlink,
    Link,
    Rename,
    Open,
    Create,
    ReadDir,
    SyncDir,
    StatFs,
    GetXattr,
    ListXattr,
    SetXattr,
    RemoveXattr,
    GetFlags,
    SetFlags,
    FileStat,
    Read,
    Write,
    Sync,
    FileSetSize,
    Allocate,
    Seek,
    Copy,
    /// close(2), when a file is dropped. It can hang; errors go nowhere.
    Close,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Does not come back, and is not done, until the generation dies or the fault is taken away (it is done then).
    Hang,
    /// Is done, and does not come back until the generation dies or the fault is taken away.
    HangAfter,
    /// Is not done and gives this error.
    Errno(Errno),
    /// Waits so long, then is done.
    Late(Duration),
    /// Is done, then says ENOTCONN.
    LostReply,
    /// Is not done: the generation dies of it, as with [`super::FakeControl::kill_generation`].
    Die,
    /// Is done, then the generation dies of it.
    DieAfter,
    /// Moves at most so many bytes: 0 for a read is an end of file that is none. Only for reads, writes and copies.
    Short(usize),
}

/// A fault: what happens, to which calls, how often. See [`super::FakeControl::inject`].
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub(super) what: What,
    pub(super) calls: Vec<Call>,
    pub(super) path: Option<Vec<u8>>,
    pub(super) skip: u64,
    pub(super) left: Option<u64>,
    pub(super) chance: f64,
}

impl Fault {
    /// For every call, always.
    pub fn new(what: What) -> Self {
        Fault { what, calls: Vec::new(), path: None, skip: 0, left: None, chance: 1.0 }
    }

    /// Only for these calls.
    pub fn on(mut self, calls: &[Call]) -> Self {
        self.calls = calls.to_vec();
        self
    }

    /// Only where the path (of a file: that it was opened by; of a rename or link: the first) contains this.
    pub fn path(mut self, part: &str) -> Self {
        self.path = Some(part.as_bytes().to_vec());
        self
    }

    /// Lets so many matching calls pass first.
    pub fn after(mut self, calls: u64) -> Self {
        self.skip = calls;
        self
    }

    /// Only so often, then never again.
    pub fn times(mut self, count: u64) -> Self {
        self.left = Some(count);
        self
    }

    /// Only with this probability, from 0 to 1; the dice are the same in every run.
    pub fn chance(mut self, probability: f64) -> Self {
        self.chance = probability;
        self
    }

    pub(super) fn matches(&self, call: Call, path: &Path) -> bool {
        let named = |part: &Vec<u8>| {
            part.is_empty() || path.as_os_str().as_bytes().windows(part.len()).any(|window| window == part)
        };
        (self.calls.is_empty() || self.calls.contains(&call)) && self.path.as_ref().is_none_or(named)
    }

    /// Takes one of its times; false if it lets this call pass. `dice` is from 0 to 1.
    pub(super) fn strikes(&mut self, dice: impl FnOnce() -> f64) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.left == Some(0) || (self.chance < 1.0 && dice() >= self.chance) {
            return false;
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        true
    }
}

/// Names an injected fault, to take it away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(pub(super) u64);
