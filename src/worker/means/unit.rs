//! systemd units, stopped and started or frozen and thawed.

use std::collections::HashMap;

use super::{Failure, Job};
use crate::config::UnitBy;
use crate::worker::pause::Found;

/// What systemd says of a unit.
struct Shown(HashMap<String, String>);

impl Shown {
    fn of(systemctl: &str, job: &Job, unit: &str) -> Result<Shown, Failure> {
        let wanted = "--property=LoadState,ActiveState,FreezerState,ControlGroup";
        let answer = job.ask(&[systemctl, "show", wanted, "--", unit])?;
        let pairs = answer.lines().filter_map(|line| line.split_once('='));
        let shown: HashMap<_, _> = pairs.map(|(key, value)| (key.to_string(), value.trim().to_string())).collect();
        if !shown.contains_key("ActiveState") {
            return Err(Failure::of(format!("{systemctl} show {unit}: no state: {}", answer.trim())));
        }
        Ok(Shown(shown))
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn runs(&self) -> bool {
        matches!(self.get("ActiveState"), "active" | "activating" | "reloading" | "refreshing")
    }

    fn is_frozen(&self) -> bool {
        // Also "frozen-by-parent": that is not ours to thaw either.
        ["frozen", "freezing"].iter().any(|word| self.get("FreezerState").starts_with(word))
    }

    /// There is nothing to start: it runs, or has been removed.
    fn needs_no_start(&self) -> bool {
        self.runs() || self.get("LoadState") == "not-found"
    }

    /// steadfs runs in it, so it would stop itself and never start it again.
    fn is_ours(&self) -> bool {
        let group = self.get("ControlGroup").trim_end_matches('/');
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        // HIERARCHY:CONTROLLERS:PATH, of either version (cgroups(7)).
        !group.is_empty()
            && own
                .lines()
                .filter_map(|line| line.splitn(3, ':').nth(2))
                .any(|path| path.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }
}

/// Nothing unless it is active, and not frozen already if it is to be frozen.
pub(super) fn look(systemctl: &str, job: &Job, unit: &str, by: UnitBy) -> Result<Option<Found>, Failure> {
    let shown = Shown::of(systemctl, job, unit)?;
    if shown.is_ours() {
        return Err(Failure::of(format!("steadfs itself runs in {unit}")));
    }
    let wanted = shown.runs() && (by == UnitBy::Stop || !shown.is_frozen());
    Ok(wanted.then_some(Found::Named))
}

pub(super) fn stop(systemctl: &str, job: &Job, unit: &str) -> Result<(), Failure> {
    // If that takes too long systemd goes on with it; a start takes its place then.
    job.ask(&[systemctl, "--no-ask-password", "stop", "--", unit]).map(drop)
}

pub(super) fn start(systemctl: &str, job: &Job, unit: &str) -> Result<(), Failure> {
    if job.ending {
        return start_without_waiting(systemctl, job, unit);
    }
    let begun = Job { until: job.until - job.left() / 4, ..*job };
    let Err(failure) = begun.ask(&[systemctl, "--no-ask-password", "start", "--", unit]) else { return Ok(()) };
    match Shown::of(systemctl, job, unit) {
        // A unit of type oneshot counts as started when its work is done, which may take weeks.
        Ok(shown) if shown.needs_no_start() => Ok(()),
        _ => Err(failure),
    }
}

/// For a steadfs that ends, perhaps because systemd stops its unit. What is ordered after that unit is started when it has
/// stopped, so whoever waited here would wait for himself. And what wants that unit would have it started again: in the mode
/// `fail` systemd leaves the stop as it is.
fn start_without_waiting(systemctl: &str, job: &Job, unit: &str) -> Result<(), Failure> {
    let begin =
        |mode: &str| job.ask(&[systemctl, "--no-ask-password", "--no-block", mode, "start", "--", unit]).map(drop);
    let Err(failure) = begin("--job-mode=fail") else { return Ok(()) };
    match Shown::of(systemctl, job, unit) {
        Ok(shown) if shown.needs_no_start() => Ok(()),
        // It took too long to stop and is still at it. A stop that is a part of a shutdown cannot be replaced.
        Ok(shown) if shown.get("ActiveState") == "deactivating" => begin("--job-mode=ignore-dependencies"),
        _ => Err(failure),
    }
}

pub(super) fn freeze(systemctl: &str, job: &Job, unit: &str) -> Result<(), Failure> {
    job.ask(&[systemctl, "--no-ask-password", "freeze", "--", unit]).map(drop)
}

pub(super) fn thaw(systemctl: &str, job: &Job, unit: &str) -> Result<(), Failure> {
    let begun = Job { until: job.until - job.left() / 4, ..*job };
    let Err(failure) = begun.ask(&[systemctl, "--no-ask-password", "thaw", "--", unit]) else { return Ok(()) };
    match Shown::of(systemctl, job, unit) {
        Ok(shown) if !shown.runs() || !shown.is_frozen() => Ok(()),
        _ => Err(failure),
    }
}
