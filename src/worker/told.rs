//! What others may see of the workers: a report that is always there, and an event for each step.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::pause::{Paused, Record};
use crate::config::WorkerConfig;
use crate::supervisor::{Event, Watch};

/// How often a hook ended so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookRuns {
    /// `on_outage`, `on_recovery`, or `after_recovery:NAME`.
    pub hook: String,
    /// `ok`, `failed` or `timeout`.
    pub result: String,
    /// How often.
    pub count: u64,
}

/// How often a step of a worker ended so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRuns {
    /// Its name.
    pub worker: String,
    /// `pause` or `resume`.
    pub action: String,
    /// `ok`, `skipped` (there was nothing to do), `failed` or `timeout`.
    pub result: String,
    /// How often.
    pub count: u64,
}

/// The last step of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastStep {
    /// `pause` or `resume`.
    pub action: String,
    /// As in [`StepRuns`].
    pub result: String,
    /// In words; empty if there is nothing to say.
    pub detail: String,
    /// When it ended, RFC 3339.
    pub at: String,
}

/// One worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its name.
    pub name: String,
    /// Its means: `flag`, `command`, `signal`, `unit`, `cgroup` or `container`.
    pub kind: String,
    /// It has been paused, or that was tried, and it has not been let go.
    pub paused: bool,
    /// Since when, RFC 3339.
    pub since: Option<String>,
    /// What was done last.
    pub last: Option<LastStep>,
}

/// What can be said of the workers. Fields only ever grow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Since when they have been told to pause, RFC 3339.
    pub paused_since: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Runs of hooks.
    pub hooks: Vec<HookRuns>,
    /// Each `[[worker]]`, and after them those that are paused and not configured any more.
    #[serde(default)]
    pub workers: Vec<WorkerReport>,
    /// Their steps.
    #[serde(default)]
    pub steps: Vec<StepRuns>,
}

/// See the module.
pub(super) struct Told {
    report: Arc<Mutex<Report>>,
    watch: Watch,
}

impl Told {
    pub(super) fn new(report: Arc<Mutex<Report>>, watch: Watch) -> Told {
        Told { report, watch }
    }

    /// That they are paused, or that they are not.
    pub(super) fn paused(&self, paused: Option<&Paused>) {
        let mut report = self.report.lock();
        (report.paused_since, report.reason) =
            paused.map_or((None, None), |paused| (Some(paused.since.clone()), Some(paused.reason.clone())));
    }

    /// Who is.
    pub(super) fn workers(&self, config: &WorkerConfig, record: Option<&Record>) {
        let held = record.map_or(&[][..], |record| &record.workers);
        let mut report = self.report.lock();
        let before = std::mem::take(&mut report.workers);
        let configured = config.workers.iter().map(|entry| (&entry.name, &entry.means));
        for (name, means) in configured.chain(held.iter().map(|held| (&held.name, &held.means))) {
            if report.workers.iter().any(|worker| worker.name == *name) {
                continue;
            }
            let its = held.iter().find(|held| held.name == *name);
            report.workers.push(WorkerReport {
                name: name.clone(),
                kind: means.kind().into(),
                paused: its.is_some(),
                since: its.map(|held| held.since.clone()),
                last: before.iter().find(|worker| worker.name == *name).and_then(|worker| worker.last.clone()),
            });
        }
    }

    /// What came of a step of a worker.
    pub(super) fn step(&self, worker: &str, action: &str, result: &str, detail: &str) {
        let mut report = self.report.lock();
        if let Some(worker) = report.workers.iter_mut().find(|known| known.name == worker) {
            let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
            let (action, result, detail) = (action.into(), result.into(), detail.into());
            worker.last = Some(LastStep { action, result, detail, at });
        }
        let same = |runs: &&mut StepRuns| runs.worker == worker && runs.action == action && runs.result == result;
        match report.steps.iter_mut().find(same) {
            Some(runs) => runs.count += 1,
            None => report.steps.push(StepRuns {
                worker: worker.into(),
                action: action.into(),
                result: result.into(),
                count: 1,
            }),
        }
        drop(report);
        self.publish(worker, action, result, detail);
    }

    /// That a hook has run.
    pub(super) fn hook(&self, name: &str, result: &str) {
        let mut report = self.report.lock();
        match report.hooks.iter_mut().find(|runs| runs.hook == name && runs.result == result) {
            Some(runs) => runs.count += 1,
            None => report.hooks.push(HookRuns { hook: name.into(), result: result.into(), count: 1 }),
        }
    }

    /// An event for the journal.
    pub(super) fn publish(&self, worker: &str, action: &str, result: &str, detail: &str) {
        self.watch.publish(Event::WorkerStep {
            worker: worker.into(),
            action: action.into(),
            result: result.into(),
            detail: detail.into(),
        });
    }
}
