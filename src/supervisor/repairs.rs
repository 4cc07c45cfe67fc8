//! Keeps account of repairs: for reports, and for the next daemon. What it writes is written by a thread that may be lost.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use super::describe::wall;
use super::machine::Machine;
use super::permit::Permit;
use super::permit::record::Record;
use super::report::{HeldBack, LastRepair, RepairLog};
use super::{Event, PermitParts, Watch};

/// Causes that are kept of one repair.
const ERRORS: usize = 10;
/// How long the end waits for what is being written.
const FAREWELL: Duration = Duration::from_secs(1);
/// Starts older than that are not reported.
const DAY: Duration = Duration::from_secs(86400);

pub(super) struct Repairs {
    watch: Watch,
    path: Option<PathBuf>,
    writer: Option<Writer>,
    started_total: u64,
    last: Option<LastRepair>,
    /// The last one is under way.
    open: bool,
}

impl Repairs {
    /// Reads what an earlier daemon has left. Returns the permits as well, and when a repair started that has not ended.
    pub fn load(parts: PermitParts, watch: &Watch) -> (Repairs, Permit, Option<Instant>) {
        let PermitParts { config, record: path } = parts;
        let (now, clock) = (Instant::now(), SystemTime::now());
        let path = path.filter(|_| config.counts_repairs());
        let record = path.as_deref().map_or_else(|| Ok(Record::default()), Record::load).unwrap_or_else(|error| {
            let shown = path.as_deref().unwrap_or(std::path::Path::new("?")).display();
            let detail = format!("{shown} cannot be read ({error}): repairs are counted from now on");
            watch.publish(Event::Notice { detail });
            Record::default()
        });
        let (starts, unfinished) = (record.instants(now, clock), record.unfinished(now, clock));
        let last = record.last.as_ref().map(LastRepair::from);
        let repairs = Repairs {
            watch: watch.clone(),
            path,
            writer: None,
            started_total: record.started_total,
            last,
            open: unfinished.is_some(),
        };
        (repairs, Permit::new(config, starts), unfinished)
    }

    /// Where to write from now on, if at all.
    pub fn keep_at(&mut self, path: Option<PathBuf>) {
        self.path = path;
    }

    /// A repair has started.
    pub fn started(&mut self, permit: &Permit) {
        self.started_total = self.started_total.saturating_add(1);
        self.open = true;
        self.last = Some(LastRepair { started: SystemTime::now(), ended: None, ok: None, errors: Vec::new() });
        self.save(permit);
    }

    /// A start has failed, of a repair or not.
    pub fn failed(&mut self, detail: &str, permit: &Permit) {
        let Some(last) = self.last.as_mut().filter(|_| self.open) else { return };
        last.ok = Some(false);
        if last.errors.len() == ERRORS {
            last.errors.remove(0);
        }
        last.errors.push(detail.to_owned());
        self.save(permit);
    }

    /// Calls succeed again, after a repair or not.
    pub fn recovered(&mut self, permit: &Permit) {
        if let Some(last) = self.last.as_mut().filter(|_| std::mem::take(&mut self.open)) {
            (last.ok, last.ended) = (Some(true), Some(SystemTime::now()));
            self.save(permit);
        }
    }

    /// A repair is held back.
    pub fn held(&self, by: super::permit::HeldBy) {
        self.watch.update(|snapshot| snapshot.repair_log.last_held = Some((SystemTime::now(), by)));
    }

    /// Publishes what is known now.
    pub fn publish(&self, machine: &Machine) {
        let (now, permit) = (Instant::now(), machine.permit());
        let held = machine.awaited().map_or_else(Vec::new, |sight| {
            let holds = permit.holds(now, &sight).into_iter();
            let told = holds.map(|hold| HeldBack {
                by: hold.by,
                until: hold.until.map(wall),
                detail: permit.describe(hold, now, &sight),
            });
            told.collect()
        });
        let recent = permit.starts().iter().filter(|&&at| now.saturating_duration_since(at) < DAY);
        let starts = recent.map(|&at| wall(at)).collect();
        self.watch.update(|snapshot| {
            let detected_since = snapshot.outage_since;
            snapshot.repair_log = RepairLog {
                started_total: self.started_total,
                starts,
                last: self.last.clone(),
                last_held: snapshot.repair_log.last_held,
                held,
                enabled: permit.enabled(),
                deploy_lock_active: permit.lock_active(now),
                deploy_lock_age: permit.lock_age(now),
                detected_since,
            };
        });
    }

    fn save(&mut self, permit: &Permit) {
        let Some(path) = &self.path else { return };
        let record =
            Record::of(permit.starts(), self.started_total, self.last.as_ref(), Instant::now(), SystemTime::now());
        if self.writer.as_ref().is_none_or(|writer| writer.path != *path) {
            self.writer = Writer::start(path.clone(), self.watch.clone());
        }
        if let Some(writer) = &self.writer {
            // One that has been lost writes nothing any more; there is nobody to wait for it.
            let _ = writer.records.send(record);
        }
    }
}

impl Drop for Repairs {
    fn drop(&mut self) {
        if let Some(Writer { records, ended, .. }) = self.writer.take() {
            drop(records);
            // Nothing is ever sent: it ends with the thread.
            let _ = ended.recv_timeout(FAREWELL);
        }
    }
}

struct Writer {
    path: PathBuf,
    records: Sender<Record>,
    ended: Receiver<()>,
}

impl Writer {
    fn start(path: PathBuf, watch: Watch) -> Option<Writer> {
        let (records, inbox) = channel::<Record>();
        let (done, ended) = channel();
        let place = path.clone();
        let write = move || {
            let _done: Sender<()> = done;
            let mut well = true;
            while let Ok(first) = inbox.recv() {
                let newest = inbox.try_iter().last().unwrap_or(first);
                let written = newest.save(&place);
                if let Err(error) = &written
                    && well
                {
                    let detail = format!("{}: {error}: a restart resets the limits of repairs", place.display());
                    watch.publish(Event::Notice { detail });
                }
                well = written.is_ok();
            }
        };
        match std::thread::Builder::new().name("repairs".into()).spawn(write) {
            Ok(_) => Some(Writer { path, records, ended }),
            Err(error) => {
                tracing::error!(%error, "repairs are not written down");
                None
            }
        }
    }
}
