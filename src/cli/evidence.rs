//! `steadfs evidence`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::options::duration;
use super::{complain, homes, status};
use crate::evidence::look::{self, Kind};
use crate::evidence::{self, diff};
use crate::rundir;
use crate::telemetry::control::{Reply, Request};

/// The child that asks is killed after three seconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `steadfs evidence`.
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct EvidenceArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    take: TakeArgs,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Compare two bundles: how many lines tell of errno 107, how many FUSE mounts, and each file.
    Diff(DiffArgs),
    /// What a guarded child looks at.
    #[command(hide = true)]
    Look(LookArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct TakeArgs {
    /// The hot path, or the name of a configuration that runs; all of this user's when absent.
    #[arg(value_name = "HOT|NAME")]
    hot: Option<PathBuf>,
    /// Ends the name of the bundle's directory.
    #[arg(long, value_name = "TAG", default_value = "manual")]
    tag: String,
    /// How far back logs go.
    #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = duration::parse)]
    since: Duration,
    /// Where the bundle's directory is made; `evidence` in the state directory when absent.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A systemd unit whose state and journal go into it, besides those of the configuration; may be repeated.
    #[arg(long = "unit", value_name = "UNIT")]
    units: Vec<String>,
    /// A file that is copied into it.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Keep so many of those that were taken by themselves.
    #[arg(long, hide = true)]
    keep: Option<u32>,
}

#[derive(Debug, Clone, clap::Args)]
struct DiffArgs {
    /// The first bundle.
    a: PathBuf,
    /// The second.
    b: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, clap::Args)]
struct LookArgs {
    kind: Kind,
    #[arg(long)]
    without: Option<i32>,
    about: Vec<PathBuf>,
}

/// Takes a bundle, or compares two. 0: it is there and complete, or they were compared; 1: not.
pub fn run(args: EvidenceArgs) -> ExitCode {
    match args.command {
        None => take(args.take),
        Some(Command::Diff(args)) => compare(&args),
        Some(Command::Look(args)) => match look_at(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error.to_string()),
        },
    }
}

fn take(args: TakeArgs) -> ExitCode {
    // Whoever wants to know what is wrong stands in the middle of it.
    let homes = match homes::meant(args.hot.as_deref()) {
        Ok(homes) => homes,
        Err(error) => return failed(&error.to_string()),
    };
    let (tag, since, root) = (args.tag, args.since, args.out);
    let request =
        evidence::Request { homes, tag, since, root, units: args.units, manifest: args.manifest, keep: args.keep };
    match evidence::collect(&request) {
        Err(error) => failed(&error.to_string()),
        Ok(done) if args.json => match serde_json::to_string(&done) {
            Ok(text) => say(&format!("{text}\n")),
            Err(error) => failed(&error.to_string()),
        },
        Ok(done) => {
            let mut text = String::new();
            for file in &done.unfinished {
                text.push_str(&format!("did not end in time: {file}\n"));
            }
            say(&format!("{text}OK: evidence bundle complete: {}\n", done.directory.display()))
        }
    }
}

fn compare(args: &DiffArgs) -> ExitCode {
    let read = |directory: &Path| diff::read(directory).map_err(|error| format!("{}: {error}", directory.display()));
    let found = read(&args.a).and_then(|a| Ok((a, read(&args.b)?)));
    let comparison = match found {
        Ok((a, b)) => diff::compare(&a, &b),
        Err(text) => return failed(&text),
    };
    if !args.json {
        return say(&comparison.text(&args.a, &args.b));
    }
    match serde_json::to_string(&comparison) {
        Ok(text) => say(&format!("{text}\n")),
        Err(error) => failed(&error.to_string()),
    }
}

fn look_at(args: &LookArgs) -> io::Result<()> {
    if args.kind != Kind::Status {
        return look::look(args.kind, &args.about, args.without);
    }
    for home in &args.about {
        let reply = status::ask(&rundir::control_socket(home), &Request::Status, PATIENCE)?;
        let Reply::Status(status) = reply else { return Err(io::Error::other(format!("{reply:?}"))) };
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&status)?)?;
    }
    Ok(())
}

fn say(text: &str) -> ExitCode {
    super::say(text);
    ExitCode::SUCCESS
}

fn failed(text: &str) -> ExitCode {
    complain(text);
    ExitCode::FAILURE
}
