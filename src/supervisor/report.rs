//! What the supervisor lets others see: a snapshot of its state and a stream of events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;

/// One thing that happened, in the order it happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Something spoke against a generation.
    Evidence {
        /// The generation.
        generation: u64,
        /// Stable word: `process_exit`, `probe_late`, `probe_failed`, `call_late`, `call_error`, `stopped`.
        kind: String,
        /// Detail for people.
        detail: String,
    },
    /// An active probe answered and the evidence was dropped.
    Cleared {
        /// The generation.
        generation: u64,
    },
    /// The gate closed.
    OutageBegan {
        /// First evidence.
        #[serde(serialize_with = "rfc3339")]
        since: SystemTime,
        /// Stable word, as in `Evidence`, or `start` for the first start.
        reason: String,
        /// Detail for people.
        detail: String,
    },
    /// The outage is older than `deadline`: calls fail now and the worker is to be paused.
    OutageOverdue {
        /// First evidence.
        #[serde(serialize_with = "rfc3339")]
        since: SystemTime,
        /// As in `OutageBegan`.
        reason: String,
    },
    /// A generation was started in vain.
    StartFailed {
        /// Its number.
        generation: u64,
        /// In words (ssh's own where there are some).
        detail: String,
        /// Nothing is tried again until somebody acts.
        halted: bool,
        /// Seconds until the next try, unless halted.
        retry_in_secs: Option<f64>,
    },
    /// The gate is open again.
    Recovered {
        /// The new generation.
        generation: u64,
        /// Seconds from the first evidence to the open gate.
        outage_secs: f64,
    },
    /// The backing has been live for `steady=`: the worker may go on.
    Steady {
        /// The generation.
        generation: u64,
    },
    /// A finding that concerns one file, or left-overs that could not be removed.
    Notice {
        /// In words.
        detail: String,
    },
    /// steadfs is ending.
    Stopping,
}

fn rfc3339<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*at))
}

/// The supervisor's state at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// `reaching`, `starting`, `restoring`, `live`, `suspect`, `retiring`, `waiting`, `halted` or `stopping`.
    pub state: &'static str,
    /// Since when it is in that state.
    pub since: SystemTime,
    /// Why, in words; absent when live.
    pub why: Option<String>,
    /// What it will do next, in words.
    pub next: String,
    /// When the next step is due, if a time is set for it.
    pub next_at: Option<SystemTime>,
    /// Number of the newest generation, 0 before the first.
    pub generation: u64,
    /// Start of the present outage.
    pub outage_since: Option<SystemTime>,
    /// Outages that began.
    pub outages: u64,
    /// Time in outages that have ended.
    pub outage_total: Duration,
    /// Ends of repairs by reason of the outage and result (`ok`, `failed`).
    pub repairs: BTreeMap<(String, String), u64>,
    /// Last probe that was answered.
    pub probe_ok_at: Option<SystemTime>,
    /// How long it took.
    pub probe_took: Option<Duration>,
    /// Probes that were sent.
    pub probes: u64,
    /// Probes that failed or were late.
    pub probes_failed: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot {
            state: "reaching",
            since: SystemTime::now(),
            why: None,
            next: "start the first generation".into(),
            next_at: None,
            generation: 0,
            outage_since: None,
            outages: 0,
            outage_total: Duration::ZERO,
            repairs: BTreeMap::new(),
            probe_ok_at: None,
            probe_took: None,
            probes: 0,
            probes_failed: 0,
        }
    }
}

#[derive(Default)]
struct Shared {
    snapshot: Snapshot,
    listeners: Vec<Sender<(SystemTime, Event)>>,
}

/// A handle to watch a supervisor; cheap to clone.
#[derive(Clone, Default)]
pub struct Watch {
    shared: Arc<Mutex<Shared>>,
}

impl Watch {
    /// The state now.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.lock().snapshot.clone()
    }

    /// All events from now on. The channel is unbounded; events are rare.
    pub fn subscribe(&self) -> Receiver<(SystemTime, Event)> {
        let (sender, receiver) = channel();
        self.shared.lock().listeners.push(sender);
        receiver
    }

    /// Publishes an event, for the supervisor and for tests.
    pub fn publish(&self, event: Event) {
        let now = SystemTime::now();
        self.shared.lock().listeners.retain(|listener| listener.send((now, event.clone())).is_ok());
    }

    /// Changes the snapshot, for the supervisor and for tests.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.shared.lock().snapshot);
    }
}
