//! What the supervisor lets others see: a snapshot of its state and a stream of events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;

use super::permit::HeldBy;

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
        /// Stable word, as in `Evidence`, `start` for the first start, or `succession` for that of
        /// a daemon that took the place of one that died.
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
    /// A repair could start and is held back. Told once for each permit that holds it back.
    RepairHeld {
        /// The permit; of several the one that holds it back longest.
        by: HeldBy,
        /// When it will be given if nothing else changes; absent if somebody has to act.
        #[serde(serialize_with = "rfc3339_or_null")]
        until: Option<SystemTime>,
        /// In words, with the remedy.
        detail: String,
    },
    /// What was held back may start.
    RepairReleased {
        /// Because somebody ordered it (`steadfs recover --apply`), whatever the permits say.
        ordered: bool,
    },
    /// A repair starts: its first start, after which only the back-off counts.
    RepairStarted {
        /// The generation that is to be started.
        generation: u64,
    },
    /// The backing has been live for `steady=`: the worker may go on.
    Steady {
        /// The generation.
        generation: u64,
    },
    /// Something was done to a worker, or a hook has run.
    WorkerStep {
        /// Name of the worker, or of the hook.
        worker: String,
        /// `pause` or `resume`; `hook` (`on_outage`, `on_recovery`) or `after_recovery`.
        action: String,
        /// `ok`, `skipped` (there was nothing to do), `failed` or `timeout`.
        result: String,
        /// Detail for people; empty if there is nothing to say.
        detail: String,
    },
    /// A daemon has taken the place of one that died, or that made room for it.
    Succession {
        /// How many have, of this mount.
        successions: u64,
        /// What became of the one before.
        reason: String,
        /// Seconds in which nobody served the mount.
        pause_secs: f64,
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

fn rfc3339_or_null<S: serde::Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => rfc3339(at, serializer),
        None => serializer.serialize_none(),
    }
}

/// Repairs and what holds them back, for those who report of them. A repair begins with its first start, which needs every
/// permit, and ends when calls succeed; the first start of a daemon is none. What is said to outlive the daemon does so
/// where a limit or `cool_down` is configured; else it begins anew with each daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RepairLog {
    /// Repairs that were started, ordered ones included. Outlives the daemon (a counter: `apply_total`).
    pub started_total: u64,
    /// When those started that began within the last 24 hours, oldest first; of very many the latest thousand. Outlives the
    /// daemon. See
    /// [`RepairLog::started_within`] (`apply_1h`, `apply_24h`).
    pub starts: Vec<SystemTime>,
    /// The last one, perhaps still under way. Outlives the daemon.
    pub last: Option<LastRepair>,
    /// The last time that one was held back: when it began to be, and by what.
    pub last_held: Option<(SystemTime, HeldBy)>,
    /// All that hold the present repair back, with words and remedy; empty if there is nothing to repair or nothing holds it
    /// back.
    pub held: Vec<HeldBack>,
    /// False while an enable file is configured and is not there; looked at every 10 s, in an outage every second.
    pub enabled: bool,
    /// True while the deploy lock counts as held, repair or not; looked at as often.
    pub deploy_lock_active: bool,
    /// Age of the lock's file by its mtime, as of the last look; absent if there is none, or none is configured.
    pub deploy_lock_age: Option<Duration>,
    /// First evidence of the present outage, from the verdict until calls succeed again.
    pub detected_since: Option<SystemTime>,
}

/// A repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastRepair {
    /// When its first start was.
    pub started: SystemTime,
    /// When calls succeeded again; absent before.
    pub ended: Option<SystemTime>,
    /// True once it has succeeded; false as long as the latest of its starts has failed; absent while nothing is known.
    pub ok: Option<bool>,
    /// Why starts failed, the latest last, ten at most.
    pub errors: Vec<String>,
}

/// A permit that is not given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldBack {
    /// Which one.
    pub by: HeldBy,
    /// When it will be if nothing else changes; absent if somebody has to act.
    pub until: Option<SystemTime>,
    /// In words, with the remedy.
    pub detail: String,
}

impl RepairLog {
    /// Repairs that were started within that time before `now`. One that seems to lie in the future counts.
    pub fn started_within(&self, window: Duration, now: SystemTime) -> usize {
        self.starts.iter().filter(|&&at| now.duration_since(at).unwrap_or_default() < window).count()
    }
}

/// The supervisor's state at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// `adopting`, `reaching`, `starting`, `restoring`, `live`, `suspect`, `retiring`, `waiting`, `held`, `halted`
    /// or `stopping`.
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
    /// Start of the present outage, if it has been told.
    pub outage_since: Option<SystemTime>,
    /// The same on the clock that nobody sets.
    #[serde(skip)]
    pub outage_from: Option<Instant>,
    /// Outages that began.
    pub outages: u64,
    /// Time in outages that were told: the present one is included in what [`Watch::snapshot`] returns.
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
    /// Repairs.
    pub repair_log: RepairLog,
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
            outage_from: None,
            outages: 0,
            outage_total: Duration::ZERO,
            repairs: BTreeMap::new(),
            probe_ok_at: None,
            probe_took: None,
            probes: 0,
            probes_failed: 0,
            repair_log: RepairLog { enabled: true, ..RepairLog::default() },
        }
    }
}

impl Snapshot {
    /// An outage has been told.
    pub fn begin_outage(&mut self, since: SystemTime, from: Instant) {
        self.outages += 1;
        (self.outage_since, self.outage_from) = (Some(since), Some(from));
    }

    /// It is over: from now on its time counts as past, in the same step.
    pub fn end_outage(&mut self) {
        self.outage_since = None;
        self.outage_total += self.outage_from.take().map(|from| from.elapsed()).unwrap_or_default();
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
    /// The state now. The time in outages never gets less from one look to the next.
    pub fn snapshot(&self) -> Snapshot {
        let shared = self.shared.lock();
        let mut snapshot = shared.snapshot.clone();
        // Under the lock: an outage that ends between two looks must not be shorter than it was at the first.
        snapshot.outage_total += snapshot.outage_from.map(|from| from.elapsed()).unwrap_or_default();
        snapshot
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_outages_never_gets_less() {
        let watch = Watch::default();
        let mut last = Duration::ZERO;
        let mut look = || {
            let total = watch.snapshot().outage_total;
            assert!(total >= last, "{total:?} after {last:?}");
            last = total;
            total
        };
        for _ in 0..3 {
            watch.update(|snapshot| {
                snapshot.begin_outage(SystemTime::now(), Instant::now() - Duration::from_secs(10));
            });
            look();
            watch.update(Snapshot::end_outage);
            look();
            // One that was never told does not count.
            watch.update(Snapshot::end_outage);
            look();
        }
        assert!((30..40).contains(&look().as_secs()));
        assert_eq!((watch.snapshot().outages, watch.snapshot().outage_since), (3, None));
    }
}
