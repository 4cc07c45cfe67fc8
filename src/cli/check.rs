//! `steadfs check`: reads a configuration file, and then tries for real all that it needs, without changing anything.

mod login;
mod machine;
mod means;
mod outputs;
mod places;
mod report;
mod server;
mod session;
mod tool;
mod trust;

use std::path::PathBuf;
use std::process::ExitCode;

use super::file::{self, LoadError, Loaded, Machine, Mistake};
use super::say;
use crate::mountpoint::claim;
use report::{Report, Verdict};

/// Arguments of `steadfs check`.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// The configuration file.
    pub config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Leave the server out.
    #[arg(long)]
    pub offline: bool,
}

/// Runs it. Exit code 0: nothing is in the way, though there may be warnings; 1: something is; 66: the file cannot be read;
/// 78: it has mistakes.
pub fn run(args: &CheckArgs) -> ExitCode {
    let loaded = match file::read(&args.config, &Machine) {
        Ok(loaded) => loaded,
        Err(error) => {
            let mistakes = if let LoadError::Mistakes(mistakes) = &error { mistakes.as_slice() } else { &[] };
            if args.json && !mistakes.is_empty() {
                say(&json(args, Verdict::Error, mistakes, &Report::default()));
            } else {
                for line in error.to_string().lines() {
                    super::complain(&report::harmless(line));
                }
            }
            return ExitCode::from(error.exit_code());
        }
    };
    let report = all(&loaded, args.offline);
    let worst = report.worst();
    say(&if args.json { json(args, worst, &[], &report) } else { report.text() });
    ExitCode::from(u8::from(worst == Verdict::Error))
}

/// Tries everything.
fn all(loaded: &Loaded, offline: bool) -> Report {
    let mut report = Report::default();
    for note in &loaded.notes {
        report.warn("options", note.clone());
    }
    let serving = claim::is_alive(&loaded.config.home);
    if serving {
        let name = loaded.config.home.display();
        report.ok("daemon", format!("{name} runs: what it has mounted is left alone"));
    }
    trust::files(loaded, &mut report);
    machine::check(&loaded.config, &mut report);
    places::check(loaded, serving, &mut report);
    outputs::check(&loaded.config, serving, &mut report);
    means::check(&loaded.config.worker, &mut report);
    server::check(&loaded.config, offline, &mut report);
    report
}

fn json(args: &CheckArgs, verdict: Verdict, mistakes: &[Mistake], report: &Report) -> String {
    let value = serde_json::json!({
        "file": args.config,
        "verdict": verdict,
        "mistakes": mistakes,
        "items": report.items(),
    });
    format!("{value}\n")
}
