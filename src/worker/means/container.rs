//! Containers, paused through the program of their engine.

use super::{Failure, Job};
use crate::worker::pause::Found;

/// Nothing if none of them runs unpaused.
pub(super) fn look(job: &Job, engine: &str, names: &[String], label: Option<&str>) -> Result<Option<Found>, Failure> {
    let ids = list(job, engine, names, label, "running")?;
    Ok((!ids.is_empty()).then_some(Found::Containers { ids }))
}

/// Those that have ended since are no failure.
pub(super) fn pause(
    job: &Job,
    engine: &str,
    names: &[String],
    label: Option<&str>,
    found: &Found,
) -> Result<(), Failure> {
    let Found::Containers { ids } = found else { return Ok(()) };
    let Err(failure) = tell(job, engine, "pause", ids) else { return Ok(()) };
    match list(job, engine, names, label, "running") {
        Ok(running) if !ids.iter().any(|id| running.contains(id)) => Ok(()),
        _ => Err(failure),
    }
}

/// Tried before it is asked who is paused: a pause that came too late for its time must not come after that answer.
pub(super) fn resume(
    job: &Job,
    engine: &str,
    names: &[String],
    label: Option<&str>,
    found: &Found,
) -> Result<(), Failure> {
    let ids = match found {
        Found::Containers { ids } => ids.clone(),
        _ => list(job, engine, names, label, "paused")?,
    };
    if ids.is_empty() {
        return Ok(());
    }
    let begun = Job { until: job.until - job.left() / 4, ..*job };
    let Err(failure) = tell(&begun, engine, "unpause", &ids) else { return Ok(()) };
    if failure.timeout {
        return Err(failure);
    }
    // Of any name: they may have been renamed.
    let answer = ask(job, engine, "paused", None)?;
    let paused = answer.iter().any(|(id, _)| ids.contains(id));
    if paused { Err(failure) } else { Ok(()) }
}

fn tell(job: &Job, engine: &str, what: &str, ids: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = [engine, what].into_iter().chain(ids.iter().map(String::as_str)).collect();
    job.ask(&words).map(drop)
}

/// Ids of those that have one of the names, or the label.
fn list(job: &Job, engine: &str, names: &[String], label: Option<&str>, status: &str) -> Result<Vec<String>, Failure> {
    let mut ids = Vec::new();
    if let Some(label) = label {
        ids.extend(ask(job, engine, status, Some(label))?.into_iter().map(|(id, _)| id));
    }
    if !names.is_empty() {
        // The engines' own filter takes patterns, and they differ in what a name begins with.
        let named = ask(job, engine, status, None)?;
        let wanted = named.into_iter().filter(|(_, its)| its.iter().any(|name| names.contains(name)));
        ids.extend(wanted.map(|(id, _)| id));
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// Ids and names of all that have the status, and the label if one is given.
fn ask(job: &Job, engine: &str, status: &str, label: Option<&str>) -> Result<Vec<(String, Vec<String>)>, Failure> {
    let status = format!("status={status}");
    let label = label.map(|label| format!("label={label}"));
    let mut words = vec![engine, "ps", "--no-trunc", "--filter", &status];
    if let Some(label) = &label {
        words.extend(["--filter", label]);
    }
    words.extend(["--format", "{{.ID}} {{.Names}}"]);
    let answer = job.ask(&words)?;
    // Warnings come with it.
    let lines = answer.lines().filter_map(|line| {
        let (id, names) = line.split_once(' ')?;
        let is_id = id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let names = names.split(',').map(|name| name.trim().trim_start_matches('/').to_string());
        is_id.then(|| (id.to_string(), names.collect()))
    });
    Ok(lines.collect())
}
