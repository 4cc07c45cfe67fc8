//! Where the machine is.

use std::time::{Duration, Instant};

use super::input::Reason;
use crate::supervisor::permit::Hold;

/// A probe that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pub(super) id: u64,
    /// When it was sent: errors from before are settled by its answer.
    pub(super) sent: Instant,
    /// From when its silence counts: later than `sent` if nobody was watching meanwhile.
    pub(super) clock: Instant,
}

/// Evidence that has neither been refuted nor led to a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    pub(super) at: Instant,
    pub(super) reason: Reason,
}

/// A generation that is up, and what is known of its health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    pub(super) generation: u64,
    /// Since when it is in its present state, restoring or serving.
    pub(super) since: Instant,
    /// It has been told to be steady.
    pub(super) announced: bool,
    pub(super) probe: Option<Probe>,
    pub(super) last_sent: Option<Instant>,
    /// A complaint came in after the probe under way was sent: ask again.
    pub(super) ask_again: bool,
}

impl Service {
    pub(super) fn new(generation: u64, now: Instant) -> Service {
        Service { generation, since: now, announced: false, probe: None, last_sent: None, ask_again: false }
    }
}

/// Where the supervisor is. Fields are what the name says; numbers are those of generations.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum State {
    /// Looking whether the server can be reached; `asking` is false between two looks.
    Reaching { asking: bool, last: Instant },
    /// The generation of a predecessor that died is looked over.
    Adopting { generation: u64 },
    /// A generation is coming up.
    Starting { generation: u64 },
    /// It is up; descriptors are being reopened in it. It may die here as well as later.
    Restoring(Service),
    /// Calls succeed.
    Live(Service),
    /// Calls may succeed; there is evidence.
    Suspect(Service, Evidence),
    /// A dead generation is being removed; `pause` is the back-off before the next.
    Retiring { generation: u64, pause: Duration },
    /// Back-off after a failed start. The server is looked for meanwhile: if it goes and comes back, waiting ends.
    Waiting { until: Instant, asking: bool, last: Instant, lost: bool },
    /// A start that no permit allows. `hold` is absent until every permit has been looked at; `reached` says when the server
    /// was last known to answer.
    Held { hold: Option<Hold>, reached: Instant },
    /// Nothing will change until somebody acts.
    Halted,
    /// Ending; `generation` is still to be retired.
    Stopping { generation: Option<u64> },
    /// Nothing is left.
    Stopped,
}

impl State {
    /// The stable word of [`crate::supervisor::Snapshot::state`].
    pub fn name(&self) -> &'static str {
        match self {
            State::Reaching { .. } => "reaching",
            State::Adopting { .. } => "adopting",
            State::Starting { .. } => "starting",
            State::Restoring(_) => "restoring",
            State::Live(_) => "live",
            State::Suspect(..) => "suspect",
            State::Retiring { .. } => "retiring",
            State::Waiting { .. } => "waiting",
            State::Held { .. } => "held",
            State::Halted => "halted",
            State::Stopping { .. } | State::Stopped => "stopping",
        }
    }

    /// The generation that is up, if there is one.
    pub(super) fn service(&self) -> Option<&Service> {
        match self {
            State::Restoring(service) | State::Live(service) | State::Suspect(service, _) => Some(service),
            _ => None,
        }
    }

    pub(super) fn service_mut(&mut self) -> Option<&mut Service> {
        match self {
            State::Restoring(service) | State::Live(service) | State::Suspect(service, _) => Some(service),
            _ => None,
        }
    }
}

/// An outage: from its first evidence until calls succeed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// First evidence.
    pub since: Instant,
    /// What it was.
    pub reason: Reason,
    pub(super) told: bool,
    pub(super) overdue: bool,
}
