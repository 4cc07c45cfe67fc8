//! What the machine wants done.

use std::time::{Duration, Instant};

use super::input::Reason;
use crate::backing::StartError;
use crate::supervisor::permit::Hold;

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send probe `.1` to generation `.0`.
    Probe(u64, u64),
    /// Look whether the server can be reached.
    Reach,
    /// Take that generation over.
    Adopt(u64),
    /// Start that generation.
    Start(u64),
    /// Give up the start that is under way.
    CancelStart,
    /// Reopen descriptors in it.
    Restore(u64),
    /// Open the gate to it.
    Open(u64),
    /// Tell the gate since when there is evidence, or that it was refuted.
    Doubt(Option<Instant>),
    /// Tell the gate that errors from before that time were real ones.
    Settle(u64, Instant),
    /// Close the gate: an outage, with its first evidence.
    Close(Instant),
    /// Abort, kill, detach, remove.
    Retire(u64),
    /// Tell everybody.
    Tell(News),
    /// The end.
    Finish,
}

/// What is worth telling, without the words of the world outside.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum News {
    Evidence {
        generation: u64,
        reason: Reason,
    },
    Cleared {
        generation: u64,
    },
    OutageBegan {
        since: Instant,
        reason: Reason,
    },
    OutageOverdue {
        since: Instant,
        reason: Reason,
    },
    NotAdopted {
        generation: u64,
    },
    StartFailed {
        generation: u64,
        error: StartError,
        retry_in: Option<Duration>,
    },
    /// It came up and died, or had to be given up, before the gate opened; why, unless evidence has said so.
    RestoreFailed {
        generation: u64,
        words: Option<String>,
        retry_in: Duration,
    },
    Recovered {
        generation: u64,
        outage: Duration,
        reason: Reason,
    },
    Steady {
        generation: u64,
    },
    /// The next start is held back, by another permit than before.
    RepairHeld {
        hold: Hold,
    },
    /// It no longer is; somebody may have ordered it.
    RepairReleased {
        ordered: bool,
    },
    /// The first start of a repair.
    RepairStarted {
        generation: u64,
    },
}
