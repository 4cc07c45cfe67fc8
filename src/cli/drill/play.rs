//! One drill, from the first write to the last look at the store.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde_json::Value;

use super::Stopped;
use super::alerts::{Fired, Rules, Samples};
use super::fault::Drill;
use crate::cli::stage::Stage;
use crate::cli::stage::cast::{BUSY_ACTORS, Cast, WARC_ACTORS, longest_stall};
use crate::cli::stage::check::FileReport;
use crate::cli::stage::status::Poller;

/// Time between two looks.
const TICK: Duration = Duration::from_millis(20);
/// How long programs may take to begin, metrics to show an outage, and a repair to come about: far more than they need. What the
/// options of the canary let calls and starts wait comes on top.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long programs may take to finish.
const GRACE: Duration = Duration::from_secs(8);

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// Seconds from the fault to the first evidence of it that was told.
    pub detected_secs: Option<f64>,
    /// Seconds from the fault to calls that succeed again; absent if they never did. Of `alert`, from its end.
    pub repaired_secs: Option<f64>,
    /// Longest time in which one of the programs that always commit something did not.
    pub longest_stall_secs: f64,
    /// Longest single call, and its name.
    pub longest_call_secs: f64,
    /// See there.
    pub longest_call: String,
    /// Errors that programs were told, by name.
    pub errors: BTreeMap<String, u64>,
    /// Bytes that an fsync had promised to be on the store.
    pub acknowledged_bytes: u64,
    /// Those of them that are not.
    pub bytes_lost: u64,
    /// What is on the store.
    pub files: Vec<FileReport>,
    /// Of the drill `alert`.
    pub alert: Option<AlertOutcome>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// What came of the drill `alert`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AlertOutcome {
    /// Seconds until `/metrics` showed the outage.
    pub metrics_secs: Option<f64>,
    /// Seconds until the textfile did.
    pub textfile_secs: Option<f64>,
    /// Alerts of the rules that were given; absent without rules.
    pub rules: Option<Fired>,
}

/// Plays it on a stage that is set. `allowed` is how long the canary's options let calls and starts wait.
pub fn play(
    drill: Drill,
    stage: &mut Stage,
    rules: Option<&Rules>,
    allowed: Duration,
    interrupted: &AtomicBool,
) -> Result<Outcome, Stopped> {
    let problem = |error: std::io::Error| Stopped::Problem(error.to_string());
    let cast = Cast::new(&stage.hot());
    // Before files are open: see there.
    let poller = Poller::begin(&stage.question()).map_err(problem)?;
    let threads = cast.begin().map_err(problem)?;
    let mut outcome = Outcome::default();
    let scene = Scene { drill, stage, cast: &cast, poller: &poller, patience: PATIENCE + allowed, interrupted };
    let played = scene.act(rules, &mut outcome);
    let grace = if played.is_ok() { GRACE } else { Duration::ZERO };
    drop(poller);
    if !cast.end(threads, grace) && played.is_ok() {
        outcome.failures.push("a program did not end".into());
    }
    let left = stage.unmount();
    played?;
    outcome.failures.extend(left.into_iter().map(|what| format!("left over after unmounting: {what}")));
    outcome.files = cast.inspect(&stage.store());
    for (writer, file) in WARC_ACTORS.zip(&outcome.files) {
        let acknowledged = cast.promises.warc_bytes[writer].load(SeqCst);
        outcome.acknowledged_bytes += acknowledged;
        outcome.bytes_lost += acknowledged.saturating_sub(file.sound_bytes);
    }
    let problems =
        outcome.files.iter().flat_map(|file| file.problems.iter().map(|what| format!("{}: {what}", file.name)));
    outcome.failures.extend(problems);
    Ok(outcome)
}

struct Scene<'a> {
    drill: Drill,
    stage: &'a Stage,
    cast: &'a Cast,
    poller: &'a Poller,
    patience: Duration,
    interrupted: &'a AtomicBool,
}

impl Scene<'_> {
    fn act(&self, rules: Option<&Rules>, outcome: &mut Outcome) -> Result<(), Stopped> {
        let began = Instant::now();
        if !self.wait(self.patience, || self.is_well(began))? {
            return Err(Stopped::Problem("the canary did not get going".into()));
        }
        let before = self.poller.status();
        let healthy = self.drill.fails_calls().then(|| self.samples()).transpose()?;
        self.cast.meter.next_window();
        let (at, since) = (SystemTime::now(), Instant::now());
        self.drill.begin(self.stage, before.pid).map_err(Stopped::Problem)?;
        let mut lifted = since;
        if let Some(healthy) = healthy {
            let mut alert = AlertOutcome::default();
            let held = self.hold(since, &healthy, rules, &mut alert, outcome);
            outcome.alert = Some(alert);
            let lift = self.drill.lift(self.stage).map_err(Stopped::Problem);
            held.and(lift)?;
            lifted = Instant::now();
        }
        let mut live_since = None;
        let repaired = self.wait(self.patience, || {
            let status = self.poller.status();
            let is_next = status.generation > before.generation || status.pid != before.pid && status.pid != 0;
            if !(status.is_live() && is_next) {
                live_since = None;
                return false;
            }
            self.cast.meter.all_committed_since(BUSY_ACTORS, *live_since.get_or_insert_with(Instant::now))
        })?;
        let window = self.cast.meter.next_window();
        outcome.longest_stall_secs = longest_stall(&window).0.as_secs_f64();
        outcome.longest_call_secs = window.longest_call.0.as_secs_f64();
        outcome.longest_call = window.longest_call.1.into();
        outcome.errors = window.errors;
        if !repaired {
            outcome.failures.push(format!("not repaired within {} s", self.patience.as_secs()));
            return Ok(());
        }
        let answer = self.stage.question().ask_all().unwrap_or_default();
        let events = answer["events"].as_array().cloned().unwrap_or_default();
        let waited = lifted.duration_since(since).as_secs_f64();
        let told = Told::of(&events, at);
        outcome.detected_secs = told.detected;
        outcome.repaired_secs = told.repaired.map(|secs| (secs - waited).max(0.0));
        if self.drill == Drill::Daemon {
            // The next daemon's events begin with itself.
            outcome.repaired_secs = answer["keeper"]["last"]["pause_secs"].as_f64();
            outcome.detected_secs = None;
        }
        if outcome.repaired_secs.is_none() {
            outcome.failures.push("the repair is not among the events".into());
        }
        if !self.drill.fails_calls() && !outcome.errors.is_empty() {
            outcome.failures.push(format!("programs were told errors: {:?}", outcome.errors));
        }
        if outcome.alert.is_some() && !self.wait(self.patience, || self.shows_up("1"))? {
            outcome.failures.push("the metrics do not show that it is over".into());
        }
        Ok(())
    }

    /// Waits until the outage is old and seen from outside, and asks which alerts that would be.
    fn hold(
        &self,
        since: Instant,
        healthy: &Samples,
        rules: Option<&Rules>,
        alert: &mut AlertOutcome,
        outcome: &mut Outcome,
    ) -> Result<(), Stopped> {
        let mut errors = false;
        self.wait(self.patience, || {
            let now = || Some(since.elapsed().as_secs_f64());
            if alert.metrics_secs.is_none() && self.stage.metrics().is_ok_and(|text| says(&text, "0")) {
                alert.metrics_secs = now();
            }
            if alert.textfile_secs.is_none() && self.stage.textfile().is_some_and(|text| says(&text, "0")) {
                alert.textfile_secs = now();
            }
            errors = errors || self.cast.meter.totals().errors > 0;
            alert.metrics_secs.is_some() && alert.textfile_secs.is_some() && errors
        })?;
        for (shown, what) in [(alert.metrics_secs, "/metrics"), (alert.textfile_secs, "the textfile")] {
            if shown.is_none() {
                outcome.failures.push(format!("{what} did not show the outage"));
            }
        }
        if !errors {
            outcome.failures.push("programs were told no error in an outage that outlived its deadline".into());
        }
        if let Some(rules) = rules {
            let fired =
                rules.evaluate(healthy, &self.samples()?, &self.stage.path("alerts.yml")).map_err(Stopped::Problem)?;
            if fired.outage.is_empty() {
                outcome.failures.push("no alert would fire".into());
            }
            if !fired.healthy.is_empty() {
                outcome.failures.push(format!("alerts would fire though all is well: {:?}", fired.healthy));
            }
            alert.rules = Some(fired);
        }
        Ok(())
    }

    fn samples(&self) -> Result<Samples, Stopped> {
        let text = self.stage.metrics().map_err(|error| Stopped::Problem(format!("/metrics: {error}")))?;
        Ok(Samples::read(&text, SystemTime::now()))
    }

    fn shows_up(&self, value: &str) -> bool {
        self.stage.metrics().is_ok_and(|text| says(&text, value))
            && self.stage.textfile().is_some_and(|text| says(&text, value))
    }

    fn is_well(&self, since: Instant) -> bool {
        self.poller.status().is_live() && self.cast.meter.all_committed_since(BUSY_ACTORS, since)
    }

    fn wait(&self, limit: Duration, mut enough: impl FnMut() -> bool) -> Result<bool, Stopped> {
        let until = Instant::now() + limit;
        loop {
            if self.interrupted.load(SeqCst) {
                return Err(Stopped::Interrupted);
            }
            if enough() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            sleep(TICK);
        }
    }
}

/// Whether metrics say `steadfs_up VALUE`, whatever labels they carry.
fn says(metrics: &str, value: &str) -> bool {
    let samples = metrics.lines().filter(|line| line.starts_with("steadfs_up ") || line.starts_with("steadfs_up{"));
    samples.filter_map(|line| line.rsplit(' ').next()).any(|found| found == value)
}

/// What the events say, in seconds from the fault.
struct Told {
    detected: Option<f64>,
    repaired: Option<f64>,
}

impl Told {
    fn of(events: &[Value], fault: SystemTime) -> Told {
        let secs = |event: &Value| {
            let at = humantime::parse_rfc3339(event["at"].as_str()?).ok()?;
            // Events are told to the millisecond.
            let after = (at + Duration::from_millis(1)).duration_since(fault).ok()?;
            Some(after.saturating_sub(Duration::from_millis(1)).as_secs_f64())
        };
        let first = |names: &[&str]| {
            let is = |event: &&Value| event["event"].as_str().is_some_and(|name| names.contains(&name));
            events.iter().filter(is).find_map(secs)
        };
        Told { detected: first(&["evidence", "outage_began"]), repaired: first(&["recovered"]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_times_are_those_of_the_first_events_after_the_fault() {
        let fault = humantime::parse_rfc3339("2026-01-01T00:00:10.0004Z").expect("a time");
        let event = |name: &str, at: &str| json!({"event": name, "at": format!("2026-01-01T00:00:{at}Z")});
        let events = [
            event("recovered", "01.000"),
            event("evidence", "10.000"),
            event("outage_began", "10.500"),
            event("recovered", "11.250"),
            event("recovered", "20.000"),
        ];
        let told = Told::of(&events, fault);
        assert!(told.detected.is_some_and(|secs| secs < 0.001), "{:?}", told.detected);
        assert!(told.repaired.is_some_and(|secs| (secs - 1.25).abs() < 0.01), "{:?}", told.repaired);
        let told = Told::of(&[], fault);
        assert_eq!((told.detected, told.repaired), (None, None));
    }

    #[test]
    fn the_gauge_is_read_with_and_without_labels() {
        assert!(says("# HELP steadfs_up x\nsteadfs_up 0\n", "0") && !says("steadfs_up 1\n", "0"));
        assert!(says("steadfs_up{overlay=\"/a b\"} 0\n", "0") && !says("steadfs_uptime 0\n", "0"));
    }
}
