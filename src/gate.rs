//! The gate between the overlay and the backing: deadlines, admission, outage policy (promises P1 and P2).
//!
//! The overlay submits a call; the gate sees to it that it is answered exactly once and in time, whatever the
//! backing does, and that it is run again in the next generation when the one it ran in has died.

pub mod stats;

use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;

use crate::backing::{Generation, OpResult};
use crate::config::CallPolicy;
pub use stats::{Op, Outcome, Stats};

/// Which deadline a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Names and attributes: `deadline`.
    Meta,
    /// Read and write: `deadline` of silence, `sync_deadline` while bytes move on the link.
    Data,
    /// fsync, flush, fsyncdir: `sync_deadline`.
    Sync,
}

/// What the work of a call is given each time it runs.
pub struct Context<'a> {
    /// The generation to run in.
    pub generation: &'a Arc<dyn Generation>,
    /// An earlier generation died while this call was inside it: it may have been done there.
    pub in_doubt: bool,
    /// Until when the call may take; for waiting on locks inside the work.
    pub deadline: Instant,
}

/// See the module.
pub struct Gate {
    _policy: CallPolicy,
}

/// What telemetry may know of the gate at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Calls that have not been answered.
    pub waiting: usize,
    /// Threads of the pool.
    pub threads: usize,
    /// Threads that are inside the backing with a call that has been answered already, or in a dead generation.
    pub stuck: usize,
    /// Bytes handed to the backing and not yet answered.
    pub bytes_in_flight: u64,
    /// Most bytes that may be in flight at present.
    pub window: u64,
}

impl Gate {
    /// Submits a call. `work` runs in a thread of the pool, possibly several times (each time in a newer generation),
    /// and has its side effects on tables of the overlay itself when it succeeds, since it may end after its deadline.
    /// `reply` is called exactly once, from any thread, by the deadline at the latest, and must not block.
    /// `bytes` is the payload of reads and writes, 0 for others.
    pub fn submit<T: Send + 'static>(
        &self,
        _op: Op,
        _class: Class,
        _bytes: u64,
        _work: impl FnMut(&Context<'_>) -> OpResult<T> + Send + 'static,
        reply: impl FnOnce(OpResult<T>) + Send + 'static,
    ) {
        reply(Err(Errno::ENOSYS));
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        unimplemented!("replaced in the next commit")
    }

    /// Present load.
    pub fn load(&self) -> Load {
        Load::default()
    }

    /// True when a call that needs the backing would fail at once.
    pub fn fails_fast(&self) -> bool {
        false
    }
}
