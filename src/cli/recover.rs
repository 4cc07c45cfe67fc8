//! `steadfs recover`: what a repair would do and what holds it back, or the repair itself.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::options::duration;
use super::{daemons, say, status};
use crate::mountpoint::claim;
use crate::rundir;
use crate::telemetry::control::{Reply, Request};
use crate::telemetry::recovery::Recovery;

/// The daemon answers within 100 ms in any state.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two looks at what becomes of an order.
const LOOK: Duration = Duration::from_millis(100);
/// There is nothing to be done, or it has been done.
const WELL: u8 = 0;
/// There is something to be done, or it could not be done.
const ILL: u8 = 1;
/// Nobody is there to tell.
const UNKNOWN: u8 = 2;

/// Arguments of `steadfs recover`.
#[derive(Debug, Clone, clap::Args)]
pub struct RecoverArgs {
    /// The hot path, or the name of a daemon, with or without `@`.
    #[arg(value_name = "HOT|@NAME")]
    pub target: PathBuf,
    /// Do it now, whatever the back-off or a permit says. A backing that is well is only probed.
    #[arg(long)]
    pub apply: bool,
    /// Replace a backing that is well, too.
    #[arg(long)]
    pub force: bool,
    /// How long to wait until calls succeed again.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse)]
    pub wait: Duration,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    recovery: &'a Recovery,
    /// It was ordered.
    applied: bool,
    /// `nothing_to_do`, `to_do`, `live` or `failed`.
    result: &'static str,
    /// From the order to its result.
    #[serde(skip_serializing_if = "Option::is_none")]
    took_secs: Option<f64>,
    /// The state by then, and why it is not live.
    #[serde(skip_serializing_if = "Option::is_none")]
    then: Option<Then<'a>>,
}

#[derive(Serialize)]
struct Then<'a> {
    state: &'a str,
    why: Option<&'a str>,
    generation: u64,
}

/// Exit code 0: calls succeed and nothing is to be done, or it was done; 1: something is to be done, or it was tried and
/// failed; 2: nobody can tell, as no daemon answers.
pub fn run(args: &RecoverArgs) -> ExitCode {
    let home = daemons::named(&args.target);
    if let Err(error) = claim::is_own(&home) {
        return unknown(&error.to_string());
    }
    let daemon = Daemon { socket: rundir::control_socket(&home), name: home.display().to_string(), force: args.force };
    let result = if args.apply { apply(&daemon, args) } else { dry_run(&daemon, args) };
    result.map_or_else(|text| unknown(&text), ExitCode::from)
}

fn unknown(text: &str) -> ExitCode {
    super::complain(text);
    ExitCode::from(UNKNOWN)
}

struct Daemon {
    socket: PathBuf,
    name: String,
    force: bool,
}

impl Daemon {
    /// Asks what would be done, or orders it; the error is for the user.
    fn ask(&self, apply: bool) -> Result<Recovery, String> {
        match status::ask(&self.socket, &Request::Recover { apply, force: self.force }, PATIENCE) {
            Ok(Reply::Recovery(recovery)) => Ok(*recovery),
            Ok(Reply::Failed { text }) => Err(format!("{}: {text}", self.name)),
            Ok(_) => Err(format!("{}: its daemon is of another version: see `steadfs upgrade`", self.name)),
            Err(error) if status::is_absent(&error) => Err(format!("no steadfs serves {}", self.name)),
            Err(error) => {
                Err(format!("{}: the daemon does not answer: {}", self.name, status::words(&error, PATIENCE)))
            }
        }
    }
}

fn dry_run(daemon: &Daemon, args: &RecoverArgs) -> Result<u8, String> {
    let recovery = daemon.ask(false)?;
    let well = recovery.healthy && !args.force;
    if args.json {
        let result = if well { "nothing_to_do" } else { "to_do" };
        print_json(&Report { recovery: &recovery, applied: false, result, took_secs: None, then: None })?;
    } else {
        let end = if well { "nothing to do: calls succeed" } else { "nothing was done; --apply does it now" };
        say(&format!("{}{end}\n", describe(&recovery)));
    }
    Ok(if well { WELL } else { ILL })
}

fn apply(daemon: &Daemon, args: &RecoverArgs) -> Result<u8, String> {
    let talks = !args.json && io::stdout().is_terminal();
    let before = daemon.ask(true)?;
    let (ordered, mut shown) = (Instant::now(), None);
    if talks {
        say(&describe(&before));
    }
    let (now, done) = loop {
        std::thread::sleep(LOOK);
        let now = daemon.ask(false)?;
        let seen = (now.state.clone(), now.generation, now.why.clone());
        if talks && shown.as_ref() != Some(&seen) {
            let why = now.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            let took = ordered.elapsed().as_secs_f64();
            say(&format!("  {took:6.1} s  {}, generation {}{why}\n", now.state, now.generation));
            shown = Some(seen);
        }
        if is_done(&before, &now, args.force) {
            break (now, true);
        }
        if has_failed(&before, &now) || ordered.elapsed() >= args.wait {
            break (now, false);
        }
    };
    let took_secs = Some(ordered.elapsed().as_secs_f64());
    if args.json {
        let then = Some(Then { state: &now.state, why: now.why.as_deref(), generation: now.generation });
        let result = if done { "live" } else { "failed" };
        print_json(&Report { recovery: &before, applied: true, result, took_secs, then })?;
    } else if done {
        let took = ordered.elapsed().as_secs_f64();
        let what = if now.generation == before.generation && before.healthy { "answered a probe" } else { "is live" };
        say(&format!("generation {} {what} after {took:.1} s\n", now.generation));
    } else {
        let why = now.why.map(|why| format!(": {why}")).unwrap_or_default();
        super::complain(&format!("{}: not live after {:.0?}, {}{why}", daemon.name, ordered.elapsed(), now.state));
    }
    Ok(if done { WELL } else { ILL })
}

/// The order has been carried out.
fn is_done(before: &Recovery, now: &Recovery, force: bool) -> bool {
    let another = now.generation > before.generation;
    now.state == "live"
        && match (before.healthy || before.state == "restoring", force) {
            (true, true) => another,
            // A probe was answered, or what was not well after all has been replaced.
            (true, false) => another || now.last_probe_at != before.last_probe_at,
            (false, _) => true,
        }
}

/// What was ordered has been tried, and steadfs waits for somebody.
fn has_failed(before: &Recovery, now: &Recovery) -> bool {
    now.generation > before.generation && matches!(now.state.as_str(), "halted" | "held")
}

fn describe(recovery: &Recovery) -> String {
    let lasted = humantime::format_duration(Duration::from_secs(recovery.for_secs.max(0.0) as u64));
    let mut lines = vec![
        format!("{} on {}", recovery.source, recovery.mountpoint),
        format!("  state  {} for {lasted}, generation {}", recovery.state, recovery.generation),
    ];
    lines.extend(recovery.why.as_ref().map(|why| format!("  why    {why}")));
    let others = recovery.held.iter().filter(|held| recovery.why.as_ref() != Some(&held.detail));
    lines.extend(others.map(|held| format!("  also   {}", held.detail)));
    let steps = recovery.steps.iter().enumerate();
    lines.extend(steps.map(|(index, step)| format!("  {:>4}.  {}", index + 1, step.words())));
    lines.join("\n") + "\n"
}

fn print_json(report: &Report<'_>) -> Result<(), String> {
    let text = serde_json::to_string(report).map_err(|error| error.to_string())?;
    say(&(text + "\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovery(state: &str, generation: u64, probe: &str) -> Recovery {
        Recovery {
            mountpoint: "/hot".into(),
            source: "h:d".into(),
            state: state.into(),
            for_secs: 61.5,
            why: None,
            healthy: matches!(state, "live" | "suspect"),
            generation,
            last_probe_at: Some(probe.into()),
            held: Vec::new(),
            steps: Vec::new(),
        }
    }

    #[test]
    fn an_order_is_done_when_a_probe_was_answered_or_another_generation_lives() {
        let live = recovery("live", 3, "a");
        let done = |before: &Recovery, now: Recovery, force| is_done(before, &now, force);
        assert!(!done(&live, recovery("live", 3, "a"), false), "nobody has asked it yet");
        assert!(done(&live, recovery("live", 3, "b"), false));
        assert!(!done(&live, recovery("suspect", 3, "b"), false));
        assert!(!done(&live, recovery("live", 3, "b"), true), "it was to be replaced");
        assert!(done(&live, recovery("live", 4, "b"), true));
        let held = recovery("held", 3, "a");
        assert!(!done(&held, recovery("starting", 4, "a"), false));
        assert!(done(&held, recovery("live", 4, "a"), false));
        assert!(!has_failed(&held, &recovery("held", 3, "a")), "it has not been tried yet");
        assert!(has_failed(&held, &recovery("halted", 4, "a")));
    }
}
