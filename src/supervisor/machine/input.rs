//! What happens to the machine.

use std::time::Instant;

use nix::errno::Errno;

use crate::backing::{StartError, Vitals};
use crate::gate::Inside;
use crate::supervisor::permit::Look;

/// What speaks against a generation, or why there is none. The names are part of metrics and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The first start.
    Start,
    /// The first generation of a daemon that took the place of one that died.
    Succession,
    /// A process of the generation ended.
    ProcessExit,
    /// A probe was not answered in time.
    ProbeLate,
    /// A probe failed.
    ProbeFailed,
    /// A call passed its deadline.
    CallLate,
    /// A call failed in a way that may mean a dead backing.
    CallError,
    /// A process of the generation is stopped.
    Stopped,
    /// Somebody asked for a repair.
    Asked,
}

impl Reason {
    /// The stable word.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Start => "start",
            Reason::Succession => "succession",
            Reason::ProcessExit => "process_exit",
            Reason::ProbeLate => "probe_late",
            Reason::ProbeFailed => "probe_failed",
            Reason::CallLate => "call_late",
            Reason::CallError => "call_error",
            Reason::Stopped => "stopped",
            Reason::Asked => "asked",
        }
    }
}

/// Something that happened. Numbers are those of generations; what concerns another than the present one is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time passed.
    Tick,
    /// A call complained ([`Reason::CallLate`], [`Reason::CallError`]) or a process ended ([`Reason::ProcessExit`]).
    Evidence(u64, Reason),
    /// That probe was answered, by whatever the server said.
    ProbeAnswered(u64, u64),
    /// That probe failed in a way that only a dead generation fails.
    ProbeFailed(u64, u64, Errno),
    /// That probe was never sent, for a reason of our own: no evidence of anything.
    ProbeUnsent(u64, u64),
    /// The server can be reached.
    Reached,
    /// It cannot.
    Unreached,
    /// That generation of the predecessor has been taken over.
    Adopted(u64),
    /// It has not; nothing of it is left.
    NotAdopted(u64),
    /// That generation is up.
    Started(u64),
    /// That generation did not come up; nothing of it is left.
    StartFailed(u64, StartError),
    /// Descriptors have been reopened in it.
    Restored(u64),
    /// They could not be, and it is of no use without; why, in words.
    RestoreFailed(u64, String),
    /// Nothing of it is left.
    Retired(u64),
    /// A file that a permit goes by has been looked at.
    Seen(Look),
    /// Do not wait, neither for a back-off nor for a permit: try now.
    RetryNow,
    /// The same, and replace a generation that is up however well it is.
    Replace,
    /// End.
    Stop,
}

/// What the supervisor sees when an input comes in.
#[derive(Debug, Clone, Copy)]
pub struct Sight {
    /// Now.
    pub now: Instant,
    /// Signs of life of the present generation.
    pub vitals: Vitals,
    /// What is inside it.
    pub inside: Inside,
    /// A random number in 0..1.
    pub dice: f64,
}
