//! `steadfs drill`: what may happen to a mount is done to a canary of its own, which has to be mended.
//!
//! The canary is a mount like any other, made by this very program over a local `sftp-server`, with directories of its own for
//! everything, as that of `steadfs demo`. Nothing of production is touched; its status is looked at before and after, to show it.

mod alerts;
mod fault;
mod like;
mod play;
mod production;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::stage::{Setup, Stage, tools};
use super::{complain, homes};
use fault::Drill;
use production::Production;
use report::Report;

/// Something this machine lacks: EX_UNAVAILABLE of sysexits(3).
const UNAVAILABLE: u8 = 69;
/// Ended by a signal: 128 + SIGINT, as shells report it.
const INTERRUPTED: u8 = 130;

/// Arguments of `steadfs drill`.
#[derive(Debug, Clone, clap::Args)]
pub struct DrillArgs {
    /// Which drill; `list` says which there are.
    #[arg(value_name = "NAME")]
    drill: Drill,
    /// The hot path, or the name of a configuration, whose state is looked at before and after; all of this user's when absent.
    #[arg(value_name = "HOT|NAME")]
    hot: Option<PathBuf>,
    /// An overlay whose times and sizes, and its daemon's, the canary gets: deadlines, probing, back-off, caching, write log. Those
    /// of a mount without options when absent.
    #[arg(long, value_name = "HOT")]
    like: Option<PathBuf>,
    /// Do it, rather than say what would be done.
    #[arg(long)]
    apply: bool,
    /// (alert) A file of Prometheus alert rules, which promtool evaluates with what was recorded.
    #[arg(long, value_name = "FILE")]
    alerts: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Why there is no report.
enum Stopped {
    Interrupted,
    Problem(String),
}

/// Drills, or says what it would do. 0: mended, nothing lost; 1: not so; 69: this machine lacks something; 130: interrupted.
pub fn run(args: &DrillArgs) -> ExitCode {
    if args.drill == Drill::List {
        let list = Drill::ALL.iter().map(|drill| format!("{:<8} {}\n", drill.name(), drill.about()));
        return say(&if args.json { fault::list_as_json() + "\n" } else { list.collect() });
    }
    let homes = match homes::meant(args.hot.as_deref()) {
        Ok(homes) => homes,
        Err(error) => return failed(&error.to_string(), 1),
    };
    let options = match args.like.as_deref().map(|hot| like::options(&homes, hot)).transpose() {
        Ok(options) => options.unwrap_or_default(),
        Err(problem) => return failed(&problem, 1),
    };
    let production = Production::look(&homes);
    let server = match tools::find() {
        Ok(server) => server,
        Err(missing) => return failed(&missing, UNAVAILABLE),
    };
    let alerts = match args.alerts.as_ref().map(|rules| alerts::Rules::read(rules)).transpose() {
        Ok(alerts) => alerts,
        Err((problem, missing)) => return failed(&problem, if missing { UNAVAILABLE } else { 1 }),
    };
    if !args.apply {
        let report = Report::of_plan(args.drill, options, production);
        return if args.json { json(&report) } else { say(&report.text()) };
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if let Err(error) = signal_hook::flag::register(signal, interrupted.clone()) {
            return failed(&format!("cannot watch for signals: {error}"), 1);
        }
    }
    let setup = Setup { textfile: true, options: options.clone(), ..Setup::named("drill") };
    let mut stage = match Stage::set(&setup, &server, &interrupted) {
        Ok(stage) => stage,
        Err(problem) => return failed(&problem, if interrupted.load(SeqCst) { INTERRUPTED } else { 1 }),
    };
    let played = play::play(args.drill, &mut stage, alerts.as_ref(), like::allowed(&options), &interrupted);
    drop(stage);
    match played {
        Ok(outcome) => {
            let report = Report::of(args.drill, options, outcome, production.again());
            if args.json {
                json(&report)
            } else {
                say(&report.text())
            };
            ExitCode::from(u8::from(report.ok != Some(true)))
        }
        Err(Stopped::Interrupted) => failed("interrupted; everything is cleaned up", INTERRUPTED),
        Err(Stopped::Problem(problem)) => failed(&problem, 1),
    }
}

fn json(report: &Report) -> ExitCode {
    match serde_json::to_string_pretty(report) {
        Ok(text) => say(&format!("{text}\n")),
        Err(error) => failed(&error.to_string(), 1),
    }
}

fn say(text: &str) -> ExitCode {
    super::say(text);
    ExitCode::SUCCESS
}

fn failed(problem: &str, code: u8) -> ExitCode {
    complain(&format!("drill: {problem}"));
    ExitCode::from(code)
}
