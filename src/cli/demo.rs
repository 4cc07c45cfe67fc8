//! `steadfs demo`: a crawl through a tormented mount, drawn as it happens, with a verdict on what is on the store.
//!
//! Everything is private and temporary: a store, a hot path, and sshfs over a local `sftp-server` in ssh's place. The
//! mount is a real one, made by this very program; the server is real, the network between the two is not.

mod director;
mod draw;
mod faults;
mod report;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::stage::cast::{self, Cast, warc_name};
use super::stage::status::Poller;
use super::stage::{Setup, Stage, check, tools};
use director::Director;
use draw::Screen;
use faults::Fault;
use report::Report;

/// Something this machine lacks: EX_UNAVAILABLE of sysexits(3).
const UNAVAILABLE: u8 = 69;
/// Ended by a signal: 128 + SIGINT, as shells report it.
const INTERRUPTED: u8 = 130;

/// Options of `steadfs demo`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DemoArgs {
    /// Print the report as JSON instead of drawing
    #[arg(long)]
    pub json: bool,
    /// Leave the directories where they are and say where
    #[arg(long)]
    pub keep: bool,
    /// Shorter pauses between the faults, and a refusal of 7 s instead of 15
    #[arg(long)]
    pub fast: bool,
}

/// Runs the demo. 0: nothing was lost; 1: something was; 69: this machine lacks something; 130: interrupted.
pub fn run(args: DemoArgs) -> ExitCode {
    let server = match tools::find() {
        Ok(server) => server,
        Err(missing) => return complain(&missing, UNAVAILABLE),
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if let Err(error) = signal_hook::flag::register(signal, interrupted.clone()) {
            return complain(&format!("cannot watch for signals: {error}"), 1);
        }
    }
    let mut screen = Screen::new(args.json);
    let mut stage = match Stage::set(&Setup::named("demo"), &server, &interrupted) {
        Ok(stage) => stage,
        Err(problem) if interrupted.load(SeqCst) => return complain(&problem, INTERRUPTED),
        Err(problem) => return complain(&problem, 1),
    };
    let result = perform(&args, &mut stage, &mut screen, &interrupted);
    if args.keep
        && let Some(path) = stage.keep()
    {
        eprintln!("steadfs demo: kept in {}", path.display());
    }
    drop(stage);
    match result {
        Ok(report) if args.json => match serde_json::to_string_pretty(&report) {
            Ok(text) => {
                println!("{text}");
                ExitCode::from(u8::from(!report.kept))
            }
            Err(error) => complain(&format!("cannot write the report: {error}"), 1),
        },
        Ok(report) => {
            screen.say(&format!("\n{}", report.text()));
            ExitCode::from(u8::from(!report.kept))
        }
        Err(Stopped::Interrupted) => complain("interrupted; everything is cleaned up", INTERRUPTED),
        Err(Stopped::Problem(problem)) => complain(&problem, 1),
    }
}

enum Stopped {
    Interrupted,
    Problem(String),
}

fn perform(
    args: &DemoArgs,
    stage: &mut Stage,
    screen: &mut Screen,
    interrupted: &AtomicBool,
) -> Result<Report, Stopped> {
    screen.say(&format!(
        "steadfs demo: {} on {}\nmetrics while it runs: http://{}/metrics\n\n",
        stage.source(),
        stage.hot().display(),
        stage.metrics_address()
    ));
    let mut report = Report { version: env!("CARGO_PKG_VERSION"), mount_before: stage.identity(), ..Report::default() };
    let cast = Cast::new(&stage.hot());
    let poller = Poller::begin(&stage.question()).map_err(|e| Stopped::Problem(format!("sh: {e}")))?;
    let threads = cast.begin().map_err(|e| Stopped::Problem(format!("{}: {e}", stage.hot().display())))?;
    let mut director = Director::new(stage, cast.clone(), &poller, screen, interrupted);
    let calm = Duration::from_millis(if args.fast { 1500 } else { 4000 });
    let played = director.play(&Fault::program(args.fast), calm);
    report.slowest_status_seconds = poller.slowest().as_secs_f64();
    report.samples = std::mem::take(&mut director.samples);
    report.faults = std::mem::take(&mut director.faults);
    drop(director);
    drop(poller);
    screen.leave();

    let grace = if played.is_ok() { Duration::from_secs(8) } else { Duration::ZERO };
    if !cast.end(threads, grace) && played.is_ok() {
        report.failures.push("a program of the demo did not end".into());
    }
    report.seconds = cast.meter.elapsed().as_secs_f64();
    report.mount_after = stage.identity();
    match stage.metrics() {
        Ok(text) => report.metrics = report::telling_lines(&text),
        Err(error) => report.failures.push(format!("/metrics did not answer: {error}")),
    }
    let left = stage.unmount();
    report.failures.extend(left.into_iter().map(|what| format!("left over after unmounting: {what}")));
    if played.is_err() {
        return Err(Stopped::Interrupted);
    }
    inspect(stage, &cast, &mut report);
    report.judge();
    Ok(report)
}

/// Looks at the store itself, now that nothing is mounted.
fn inspect(stage: &Stage, cast: &Cast, report: &mut Report) {
    let job = stage.store().join(cast::JOB);
    let promises = &cast.promises;
    report.files = cast.inspect(&stage.store());
    report.reader_bytes = promises.read_bytes.load(SeqCst);
    let crc = check::prefix_crc(&job.join(warc_name(0)), report.reader_bytes);
    report.reader_agrees = report.reader_bytes > 0 && crc.map(u64::from) == Some(promises.read_crc.load(SeqCst));
    let forgotten = std::fs::read_dir(job.join(cast::PROBE_DIR)).map(Iterator::count);
    match forgotten {
        Ok(0) => {}
        Ok(n) => report.failures.push(format!("{n} files are on the store that were unlinked")),
        Err(error) => report.failures.push(format!("{}: {error}", cast::PROBE_DIR)),
    }
}

fn complain(problem: &str, code: u8) -> ExitCode {
    eprintln!("steadfs demo: {problem}");
    ExitCode::from(code)
}
