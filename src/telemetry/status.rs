//! What `steadfs status` says, as data. The JSON's fields only ever grow; `version` changes if one must go.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::journal::Journal;
use super::overlays::{self, Place};
use super::{Kept, Observed, held};
use crate::daemon::link::Upgraded;
use crate::gate::stats::LATENCY_BOUNDS;
use crate::gate::{Load, Op, Outcome};
use crate::overlay::Counts;
use crate::spool;

/// Version of the JSON.
pub const VERSION: u32 = 1;

/// One mount.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// The hot path.
    pub mountpoint: String,
    /// Where its files really are.
    pub source: String,
    /// The daemon.
    pub pid: u32,
    /// Version of steadfs that it is.
    #[serde(default)]
    pub steadfs_version: String,
    /// What became of the last upgrade.
    #[serde(default)]
    pub upgrade: Option<Upgraded>,
    /// Its age.
    pub uptime_secs: f64,
    /// As in [`crate::supervisor::Snapshot::state`].
    pub state: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// The same as a duration.
    pub for_secs: f64,
    /// Why it is in that state; absent when live.
    pub why: Option<String>,
    /// What it does next.
    pub next: String,
    /// When, if a time is set, RFC 3339.
    pub next_at: Option<String>,
    /// What holds a repair back, as in [`super::held::PERMITS`].
    #[serde(default)]
    pub held: Option<String>,
    /// The newest generation.
    pub generation: u64,
    /// The present outage.
    pub outage: Option<Outage>,
    /// Outages that began.
    pub outages_total: u64,
    /// Time in outages, the present one included.
    pub outage_secs_total: f64,
    /// Repairs.
    pub repairs: Vec<Repairs>,
    /// The last probe that was answered.
    pub last_probe: Option<Probe>,
    /// Probes sent, and those that failed or were late.
    pub probes: (u64, u64),
    /// Calls.
    pub calls: Calls,
    /// Threads of the pool.
    pub threads: usize,
    /// Those that are stuck in the backing.
    pub threads_stuck: usize,
    /// Bytes handed to the backing and not answered.
    pub bytes_in_flight: u64,
    /// Most that may be so.
    pub window_bytes: u64,
    /// Open files.
    pub open_files: usize,
    /// Open directories.
    pub open_dirs: usize,
    /// Nodes.
    pub nodes: usize,
    /// The overlays.
    #[serde(default)]
    pub overlays: Vec<Overlay>,
    /// The write log.
    pub log: Log,
    /// Entries of the spool.
    #[serde(default)]
    pub spool_entries: u64,
    /// Resident memory of the daemon in bytes.
    pub resident_bytes: u64,
    /// What it should stay under: what the log, the window and the calls that wait may take, and the rest.
    pub resident_limit_bytes: u64,
    /// The keeper.
    #[serde(default)]
    pub keeper: Keeper,
    /// The worker.
    pub worker: crate::worker::Report,
    /// The latest events, oldest first.
    pub events: Vec<serde_json::Value>,
}

/// What keeps the mount while its daemon dies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Keeper {
    /// Its process id; absent without one.
    pub pid: Option<u32>,
    /// If the daemon died now, another one could go on.
    pub can_succeed: bool,
    /// Daemons that came after the first one of the mount.
    pub successions_total: u64,
    /// When that one began, RFC 3339.
    pub mounted_at: String,
    /// The last of them.
    pub last: Option<Succession>,
    /// Bytes that are noted for a successor.
    pub memory_bytes: u64,
    /// Most that may be.
    pub memory_limit_bytes: u64,
    /// Memory that this takes.
    pub resident_bytes: u64,
    /// Most that it may take, while it is compacted.
    pub resident_limit_bytes: u64,
}

/// A daemon took the place of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Succession {
    /// When, RFC 3339.
    pub at: String,
    /// What became of the other.
    pub reason: String,
    /// How long nobody served.
    pub pause_secs: f64,
}

/// An outage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// First evidence, RFC 3339.
    pub since: String,
    /// Its age.
    pub secs: f64,
}

/// Repairs by reason and result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repairs {
    /// What the outage began with.
    pub reason: String,
    /// `ok` or `failed`.
    pub result: String,
    /// How many.
    pub count: u64,
}

/// A probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// When it was answered, RFC 3339.
    pub at: String,
    /// How long it took.
    pub took_secs: f64,
}

/// What is acknowledged and not committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Bytes that it keeps.
    pub bytes: u64,
    /// Most that it may keep.
    pub limit_bytes: u64,
    /// Files with something uncommitted.
    pub files: usize,
    /// Bytes that were written again after repairs.
    pub replayed_bytes_total: u64,
    /// Files whose changes were saved to the spool.
    pub spooled_files_total: u64,
    /// Files whose changes could not even be saved.
    pub lost_files_total: u64,
}

/// Calls by result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calls {
    /// Not answered yet.
    pub waiting: usize,
    /// Done.
    pub ok: u64,
    /// The backing said no.
    pub error: u64,
    /// Late.
    pub deadline: u64,
    /// Failed because of an outage.
    pub outage: u64,
    /// Run again in a later generation.
    pub retried: u64,
    /// Answered calls by how long they took: up to each of [`Calls::latency_bounds_secs`], and longer than all of them.
    #[serde(default)]
    pub latency_counts: Vec<u64>,
    /// See [`Calls::latency_counts`].
    #[serde(default)]
    pub latency_bounds_secs: Vec<f64>,
    /// All these latencies together.
    #[serde(default)]
    pub latency_secs_total: f64,
}

/// One overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The hot path.
    pub mountpoint: String,
    /// `yes`, `no`, or `other` if something else is mounted there.
    pub mounted: String,
    /// Open files.
    pub open_files: usize,
    /// Open directories.
    pub open_dirs: usize,
    /// Nodes.
    pub nodes: usize,
    /// Bytes that the write log keeps of it.
    pub log_bytes: u64,
    /// Files with something uncommitted.
    pub uncommitted_files: usize,
}

impl From<&overlays::Seen> for Overlay {
    fn from(seen: &overlays::Seen) -> Overlay {
        Overlay {
            mountpoint: seen.mountpoint.display().to_string(),
            mounted: match seen.place {
                Place::Overlay => "yes",
                Place::Other => "other",
                Place::Nothing => "no",
            }
            .into(),
            open_files: seen.counts.open_files,
            open_dirs: seen.counts.open_dirs,
            nodes: seen.counts.nodes,
            log_bytes: seen.counts.log_bytes,
            uncommitted_files: seen.counts.dirty_files,
        }
    }
}

impl Calls {
    fn of(observed: &Observed) -> Calls {
        let (load, stats) = (observed.gate.load(), observed.gate.stats());
        let mut counts = vec![0; LATENCY_BOUNDS.len() + 1];
        for op in Op::ALL {
            counts.iter_mut().zip(stats.latency(op).counts()).for_each(|(sum, count)| *sum += count);
        }
        Calls {
            waiting: load.waiting,
            ok: stats.total(Outcome::Ok),
            error: stats.total(Outcome::Error),
            deadline: stats.total(Outcome::Deadline),
            outage: stats.total(Outcome::Outage),
            retried: stats.retries.load(std::sync::atomic::Ordering::Relaxed),
            latency_counts: counts,
            latency_bounds_secs: LATENCY_BOUNDS.to_vec(),
            latency_secs_total: Op::ALL.iter().map(|&op| stats.latency(op).sum_seconds()).sum(),
        }
    }
}

/// The log's entries and the allocator add to its bytes; a call that waits holds a request of up to 128 KiB and a thread; a
/// node is its name and its place in three tables; the rest is code, stacks and tables.
fn resident_limit(log: u64, window: u64, waiting: usize, nodes: usize) -> u64 {
    log + log / 4 + window + waiting as u64 * (192 << 10) + nodes as u64 * 512 + (64 << 20)
}

/// What the daemon's resident memory should stay under. What is noted for a successor counts as the daemon's, since that
/// has it mapped.
pub(super) fn memory_limit(load: &Load, counts: &Counts, kept: &Kept) -> u64 {
    resident_limit(counts.log_limit, load.window, load.waiting, counts.nodes) + kept.resident
}

/// Entries that lie in the spool: files that somebody has to look at.
pub(super) fn spool_entries(observed: &Observed) -> u64 {
    let config = &observed.config;
    let directory = config.log.spool_dir.clone().unwrap_or_else(|| spool::default_dir(&config.home));
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.as_encoded_bytes().ends_with(b".spool")).count() as u64
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

fn age(at: SystemTime) -> Duration {
    SystemTime::now().duration_since(at).unwrap_or_default()
}

impl Status {
    /// Looks. Takes no lock that is ever held across a call into the backing.
    pub fn of(observed: &Observed, journal: &Journal) -> Status {
        let snapshot = observed.watch.snapshot();
        let kept = (observed.kept)();
        let (load, seen) = (observed.gate.load(), overlays::look(observed));
        let counts = overlays::total(&seen);
        let limit = memory_limit(&load, &counts, &kept);
        let held = held::held(&snapshot).map(String::from);
        let events = journal.events().into_iter().filter_map(|(at, event)| {
            let mut value = serde_json::to_value(event).ok()?;
            value.as_object_mut()?.insert("at".into(), rfc3339(at).into());
            Some(value)
        });
        Status {
            version: VERSION,
            mountpoint: observed.config.home.display().to_string(),
            source: observed.config.source.label(),
            pid: std::process::id(),
            steadfs_version: env!("CARGO_PKG_VERSION").into(),
            upgrade: (observed.upgraded)(),
            uptime_secs: age(observed.started).as_secs_f64(),
            state: snapshot.state.into(),
            since: rfc3339(snapshot.since),
            for_secs: age(snapshot.since).as_secs_f64(),
            why: snapshot.why,
            next: snapshot.next,
            next_at: snapshot.next_at.map(rfc3339),
            held,
            generation: snapshot.generation,
            outage: snapshot.outage_since.map(|at| Outage { since: rfc3339(at), secs: age(at).as_secs_f64() }),
            outages_total: snapshot.outages,
            outage_secs_total: snapshot.outage_total.as_secs_f64(),
            repairs: snapshot
                .repairs
                .into_iter()
                .map(|((reason, result), count)| Repairs { reason, result, count })
                .collect(),
            last_probe: snapshot
                .probe_ok_at
                .map(|at| Probe { at: rfc3339(at), took_secs: snapshot.probe_took.unwrap_or_default().as_secs_f64() }),
            probes: (snapshot.probes, snapshot.probes_failed),
            calls: Calls::of(observed),
            threads: load.threads,
            threads_stuck: load.stuck,
            bytes_in_flight: load.bytes_in_flight,
            window_bytes: load.window,
            open_files: counts.open_files,
            open_dirs: counts.open_dirs,
            nodes: counts.nodes,
            overlays: seen.iter().map(Overlay::from).collect(),
            spool_entries: spool_entries(observed),
            log: Log {
                bytes: counts.log_bytes,
                limit_bytes: counts.log_limit,
                files: counts.dirty_files,
                replayed_bytes_total: counts.replayed_bytes,
                spooled_files_total: counts.spooled_files,
                lost_files_total: counts.lost_files,
            },
            resident_bytes: super::metrics::resident_bytes() as u64,
            resident_limit_bytes: limit,
            keeper: Keeper {
                pid: kept.keeper,
                can_succeed: kept.possible,
                successions_total: kept.successions,
                mounted_at: rfc3339(kept.mounted),
                last: kept.last.map(|last| Succession {
                    at: rfc3339(last.at),
                    reason: last.reason,
                    pause_secs: last.pause.as_secs_f64(),
                }),
                memory_bytes: kept.used,
                memory_limit_bytes: kept.limit,
                resident_bytes: kept.resident,
                resident_limit_bytes: kept.most,
            },
            worker: observed.worker.report(),
            events: events.collect(),
        }
    }

    /// True while calls succeed.
    pub fn is_up(&self) -> bool {
        matches!(self.state.as_str(), "live" | "suspect")
    }
}
