//! What is wrong with one daemon and its hot paths, and what to do next. Pure: what was seen goes in, findings come out.
//!
//! The status is read field by field, with defaults: one of another version, or one that has learnt more, is understood too.

mod permits;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

/// A worker that is still paused so long after the recovery has been forgotten: far more than `steady=` and a hook take.
const LEFT_PAUSED: Duration = Duration::from_secs(300);
/// Metrics are written every few seconds; those that are older than this are stale.
const STALE: Duration = Duration::from_secs(120);
/// A repair that takes longer than this, `start_deadline=` included, is worth a look.
const LONG_REPAIR: Duration = Duration::from_secs(120);

/// The daemon's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Its status.
    Status(Value),
    /// It is there and says nothing.
    Silent,
    /// There is none.
    Absent,
    /// Nobody may ask, or what answered is no daemon of ours; why, in words.
    Unknown(String),
}

/// What the mount table has at a hot path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mounted {
    /// Nothing.
    Nothing {
        /// The directory cannot be written to meanwhile ([`crate::overlay::mount`]'s guard); absent if nobody could tell.
        guarded: Option<bool>,
    },
    /// An overlay of steadfs: that daemon's, or one that nobody serves.
    Overlay,
    /// An overlay that somebody serves, and not that daemon.
    Elsewhere,
    /// Something else, by its type.
    Other(String),
}

/// All that was seen of one daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// What people call it: its hot path, or `@NAME`.
    pub name: String,
    /// Its answer.
    pub answer: Answer,
    /// Somebody, daemon or keeper, holds its runtime directory.
    pub held: bool,
    /// Its hot paths and what is mounted there.
    pub hot: Vec<(PathBuf, Mounted)>,
    /// It is written down that a worker is paused.
    pub paused: bool,
    /// Entries that wait in its spool.
    pub spooled: usize,
    /// Age of the metrics that it writes for node_exporter: absent if it writes none; `None` within if the file is missing.
    pub metrics: Option<Option<Duration>>,
}

/// How urgent a finding is. Later ones outweigh earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// Nothing is wrong.
    Healthy,
    /// It mends itself, or waits for something that comes.
    Wait,
    /// Somebody has to do something.
    Act,
    /// It cannot be told.
    Unknown,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable word.
    pub code: &'static str,
    /// How urgent it is.
    pub urgency: Urgency,
    /// What is wrong, in words.
    pub what: String,
    /// What to do next, in words.
    pub next: String,
    /// Until when to wait, RFC 3339, if that is known.
    pub until: Option<String>,
}

impl Finding {
    fn new(code: &'static str, urgency: Urgency, what: impl Into<String>, next: impl Into<String>) -> Finding {
        Finding { code, urgency, what: what.into(), next: next.into(), until: None }
    }

    fn until(mut self, until: Option<&str>) -> Finding {
        self.until = until.map(str::to_owned);
        self
    }
}

/// What was found out about one daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What people call it.
    pub name: String,
    /// The most urgent of the findings.
    pub urgency: Urgency,
    /// What was found, most urgent first; never empty.
    pub findings: Vec<Finding>,
}

/// Judges.
pub fn judge(seen: &Seen) -> Verdict {
    let mut findings = match &seen.answer {
        Answer::Status(status) => answered(seen, status),
        Answer::Silent => vec![silent(seen)],
        Answer::Unknown(why) => {
            let next = "ask as root or as the user that mounted it; take evidence with steadfs evidence";
            vec![Finding::new("unknown", Urgency::Unknown, why, next)]
        }
        Answer::Absent => absent(seen),
    };
    findings.extend(aside(seen));
    // Of equals the first found stays first.
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.urgency));
    let urgency = findings.first().map_or(Urgency::Unknown, |finding| finding.urgency);
    Verdict { name: seen.name.clone(), urgency, findings }
}

fn text<'a>(status: &'a Value, name: &str) -> &'a str {
    status[name].as_str().unwrap_or_default()
}

fn secs(value: &Value) -> Duration {
    Duration::try_from_secs_f64(value.as_f64().unwrap_or_default()).unwrap_or_default()
}

fn round(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}

/// The daemon is there and answers.
fn answered(seen: &Seen, status: &Value) -> Vec<Finding> {
    let mut findings = vec![state(&seen.name, status)];
    let name = &seen.name;
    for (hot, mounted) in &seen.hot {
        let shown = hot.display();
        match mounted {
            Mounted::Overlay | Mounted::Elsewhere => {}
            Mounted::Nothing { .. } => findings.push(Finding::new(
                "unmounted_under_daemon",
                Urgency::Act,
                format!("the daemon serves, and nothing is mounted at {shown}: somebody has detached it"),
                format!("steadfs umount {name}, then mount it again"),
            )),
            // A subtype of one's choice is an overlay as well.
            Mounted::Other(kind) if kind.starts_with("fuse.") => {}
            Mounted::Other(kind) => findings.push(Finding::new(
                "covered",
                Urgency::Act,
                format!("something else ({kind}) is mounted over {shown}"),
                format!("umount {shown}"),
            )),
        }
    }
    let up = matches!(text(status, "state"), "live" | "suspect");
    if up && let Some(paused) = worker(name, status) {
        findings.push(paused);
    }
    if status["keeper"]["pid"].is_number() && status["keeper"]["can_succeed"] == Value::Bool(false) {
        findings.push(Finding::new(
            "no_successor",
            Urgency::Act,
            "the overlay would end with its daemon: what a successor needs could not be noted",
            "mount it again when nothing is open, with a larger log_size=",
        ));
    }
    if let lost @ 1.. = status["log"]["lost_files_total"].as_u64().unwrap_or(0) {
        findings.push(Finding::new(
            "lost",
            Urgency::Act,
            format!("what was acknowledged of {lost} files could neither be written nor saved"),
            "see the events (steadfs status --json) for their names; programs were told EIO; mend the spool's disk",
        ));
    }
    findings
}

/// What the supervisor is at.
fn state(name: &str, status: &Value) -> Finding {
    let (state, why, next_at) = (text(status, "state"), text(status, "why"), status["next_at"].as_str());
    let because = if why.is_empty() { String::new() } else { format!(": {why}") };
    if let Some(held) = permits::held(status).filter(|_| !matches!(state, "live" | "suspect")) {
        return held.finding(next_at);
    }
    match state {
        "live" | "suspect" => {
            let outages = status["outages_total"].as_u64().unwrap_or(0);
            Finding::new("healthy", Urgency::Healthy, format!("calls succeed; {outages} outages so far"), "nothing")
        }
        "adopting" | "retiring" | "reaching" | "starting" | "restoring" | "waiting" => {
            let outage = secs(&status["outage"]["secs"]);
            let what = format!("in an outage for {}, {state}{because}", round(outage));
            let recover = format!("steadfs recover --apply {name}");
            let next = match outage {
                age if age < LONG_REPAIR => "wait: it repairs itself".to_owned(),
                _ => {
                    format!("wait: it goes on trying; if the server is known to be back, {recover}; if not, look there")
                }
            };
            Finding::new("repairing", Urgency::Wait, what, next).until(next_at)
        }
        "held" => {
            let next = "see steadfs recover, which tells the plan and what holds it back";
            Finding::new("held", Urgency::Wait, format!("in an outage; the repair is held back{because}"), next)
                .until(next_at)
        }
        "halted" => halted(name, why),
        "stopping" => Finding::new("stopping", Urgency::Wait, "it is being unmounted", "wait"),
        _ => Finding::new(
            "unknown",
            Urgency::Unknown,
            format!("the daemon is in the state '{state}', which this steadfs does not know"),
            "ask with the steadfs that it runs",
        ),
    }
}

/// ssh's words are in `why`, and what to do about them.
fn halted(name: &str, why: &str) -> Finding {
    let has = |words: &[&str]| words.iter().any(|word| why.contains(word));
    let host_key = ["Host key verification failed", "HOST IDENTIFICATION", "host key is known", "host key of"];
    let refused = ["Permission denied", "Too many authentication failures", "no mutual signature"];
    let code = match () {
        () if has(&host_key) => "host_key_refused",
        () if has(&refused) => "authentication_refused",
        () => "halted",
    };
    let what = format!("it has stopped trying, for nothing changes by itself: {why}");
    Finding::new(code, Urgency::Act, what, format!("put that right, then steadfs recover --apply {name}"))
}

/// Somebody who should have been let go.
fn worker(name: &str, status: &Value) -> Option<Finding> {
    let since = status["worker"]["paused_since"].as_str()?;
    let live = secs(&status["for_secs"]);
    let reason = text(&status["worker"], "reason");
    Some(if live < LEFT_PAUSED {
        let what =
            format!("the worker has been paused since {since} ({reason}) and is let go when the backing is steady");
        Finding::new("worker_resuming", Urgency::Wait, what, "wait")
    } else {
        let what = format!(
            "the worker is still paused since {since} ({reason}), though calls have succeeded for {}",
            round(live)
        );
        let next = format!("see on_recovery in the log; let it go by hand, or steadfs umount {name} and mount again");
        Finding::new("worker_left_paused", Urgency::Act, what, next)
    })
}

fn silent(seen: &Seen) -> Finding {
    Finding::new(
        "silent",
        Urgency::Act,
        "the daemon is there and does not answer within 2 s",
        format!(
            "wait 15 s: its keeper replaces one that hangs; still silent: steadfs evidence {0}, then kill -9 the daemon, \
             not the keeper: the overlay lives on",
            seen.name
        ),
    )
}

/// There is no daemon.
fn absent(seen: &Seen) -> Vec<Finding> {
    let name = &seen.name;
    if seen.held {
        let what = "there is a keeper and no daemon: a successor is being started, and callers wait";
        let next = "wait 30 s (keeper_deadline=); then its callers are let go and it has to be mounted again";
        return vec![Finding::new("no_daemon", Urgency::Wait, what, next)];
    }
    let mut findings = Vec::new();
    for (hot, mounted) in &seen.hot {
        let shown = hot.display();
        findings.push(match mounted {
            Mounted::Overlay => Finding::new(
                "dead_overlay",
                Urgency::Act,
                format!("{shown} holds an overlay that nobody serves: every call on it fails (ENOTCONN)"),
                format!("steadfs umount {shown}, then mount it again"),
            ),
            Mounted::Elsewhere => Finding::new(
                "elsewhere",
                Urgency::Unknown,
                format!("{shown} is served by a steadfs of another user, or with another STEADFS_RUNTIME_DIR"),
                "ask as that user, or with that directory",
            ),
            Mounted::Other(kind) => Finding::new(
                "not_ours",
                Urgency::Unknown,
                format!("{shown} is a mount of another kind ({kind}), which steadfs knows nothing of"),
                "ask whoever made it",
            ),
            Mounted::Nothing { guarded: Some(true) } => Finding::new(
                "not_mounted",
                Urgency::Act,
                format!(
                    "nothing is mounted at {shown}; it is guarded, so that programs fail there and write nowhere else"
                ),
                "mount it (mount, systemctl start, or steadfs mount)",
            ),
            Mounted::Nothing { guarded } => Finding::new(
                "not_mounted_unguarded",
                Urgency::Act,
                match guarded {
                    Some(_) => {
                        format!("nothing is mounted at {shown} and it is not guarded: what is written there goes to the local disk")
                    }
                    None => format!("nothing is mounted at {shown}, and whether it is guarded cannot be told"),
                },
                "stop what writes there, see what it has left in the directory, then mount it with guard",
            ),
        });
    }
    if findings.is_empty() {
        let next = "steadfs run it, or systemctl start its unit";
        findings.push(Finding::new("not_running", Urgency::Act, format!("no steadfs serves {name}"), next));
    }
    findings
}

/// What does not depend on the daemon.
fn aside(seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = &seen.name;
    if seen.paused && !seen.held && seen.answer == Answer::Absent {
        let next = format!("steadfs umount {name} lets it go, and so does mounting it again");
        let what = "a steadfs that was killed has left a worker paused";
        findings.push(Finding::new("worker_left_paused", Urgency::Act, what, next));
    }
    if seen.spooled > 0 {
        let what = format!("{} files have something in the spool that could not be written to the store", seen.spooled);
        let next = "steadfs spool list, then restore or drop each";
        findings.push(Finding::new("spool", Urgency::Act, what, next));
    }
    match seen.metrics {
        Some(None) if matches!(seen.answer, Answer::Status(_)) => findings.push(Finding::new(
            "metrics_missing",
            Urgency::Act,
            "its metrics file is missing: alerts that need it are blind",
            "see in the log why it cannot be written (textfile=)",
        )),
        Some(Some(age)) if age > STALE => findings.push(Finding::new(
            "metrics_stale",
            Urgency::Act,
            format!("its metrics file was written {} ago: alerts see the past", round(age)),
            match seen.answer {
                Answer::Status(_) => "see in the log why it cannot be written (textfile=, a full disk)",
                _ => "mend the daemon first; a file that a killed one left goes when it is mounted again",
            },
        )),
        _ => {}
    }
    findings
}
