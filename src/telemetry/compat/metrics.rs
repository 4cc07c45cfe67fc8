//! The other watchdog's metrics, under its names.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use super::fold::{DAY, HOUR};
use super::state::{State, epoch};
use super::targets::Target;

const PREFIX: &str = "healtharchive_storage_hotpath_auto_recover_";

/// What was seen at one look.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// When.
    pub now: SystemTime,
    /// The state could be written.
    pub ok: bool,
    /// Repairs are allowed at all.
    pub enabled: bool,
    /// The deploy lock is held.
    pub lock_active: bool,
    /// Age of its file; none without one.
    pub lock_age: Option<Duration>,
    /// The backing answers.
    pub backing_ok: bool,
    /// The hot paths.
    pub targets: Vec<Target>,
}

/// The exposition in Prometheus's text format.
pub fn render(look: &Look, state: &State) -> String {
    let mut text = String::new();
    let applies = &state.applies;
    let seconds = |at: Option<SystemTime>| at.map_or(0, epoch) as i64;
    let mut one = |name: &str, help: &str, value: i64| {
        family(&mut text, &format!("{PREFIX}{name}"), help, "gauge", &[(None, value)])
    };
    one("metrics_ok", "1 if the state file could be written.", look.ok.into());
    one("last_run_timestamp_seconds", "When the hot paths were last looked at.", seconds(Some(look.now)));
    one("last_healthy_timestamp_seconds", "When all of them were well last; 0 if never.", seconds(state.last_healthy));
    one("enabled", "1 if repairs are allowed.", look.enabled.into());
    one("deploy_lock_active", "1 if the deploy lock is held.", look.lock_active.into());
    let age = look.lock_age.map_or(-1, |age| age.as_secs() as i64);
    one("deploy_lock_age_seconds", "Age of the deploy lock's file; -1 if there is none.", age);
    let detected = look.targets.iter().filter(|target| target.errno.is_some()).count() as i64;
    one("detected_targets", "Hot paths that are not well.", detected);
    one(
        "last_apply_timestamp_seconds",
        "When the last repair ended or failed; 0 if none did.",
        seconds(applies.last.map(|last| last.at)),
    );
    one("last_apply_ok", "1 if the last repair ended well.", applies.last.is_some_and(|last| last.ok).into());
    one("apply_24h", "Repairs within 24 h.", applies.within(look.now, DAY) as i64);
    one("apply_1h", "Repairs within an hour.", applies.within(look.now, HOUR) as i64);
    let total = [(None, applies.total as i64)];
    family(&mut text, &format!("{PREFIX}apply_total"), "Repairs, over restarts.", "counter", &total);
    let mount = [(None, look.backing_ok.into())];
    family(&mut text, "healtharchive_storagebox_mount_ok", "1 if the backing answers.", "gauge", &mount);
    let by_path = |value: fn(&Target) -> i64| -> Vec<_> {
        look.targets.iter().map(|target| (Some(target.path.as_str()), value(target))).collect()
    };
    let ok = by_path(|target| target.errno.is_none().into());
    family(&mut text, "healtharchive_tiering_hot_path_ok", "1 if the hot path is well.", "gauge", &ok);
    let errno = by_path(|target| target.errno.map_or(-1, |errno| errno as i64));
    let help = "What users of the hot path get; -1 if it is well.";
    family(&mut text, "healtharchive_tiering_hot_path_errno", help, "gauge", &errno);
    text
}

fn family(text: &mut String, name: &str, help: &str, kind: &str, samples: &[(Option<&str>, i64)]) {
    // A family without a sample is not allowed in the format.
    if samples.is_empty() {
        return;
    }
    // Writing to a string does not fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    for (hot, value) in samples {
        let label = hot.map(|hot| format!("{{hot=\"{}\"}}", escape(hot))).unwrap_or_default();
        let _ = writeln!(text, "{name}{label} {value}");
    }
}

/// A label's value as the format wants it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
