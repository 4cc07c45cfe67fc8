//! `steadfs keeper`, which only steadfs itself starts: see [`crate::keeper`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::complain;
use super::options::duration;
use crate::daemon::link;
use crate::keeper::executable::Executable;
use crate::keeper::machine::Policy;
use crate::keeper::notify;
use crate::keeper::run::{self, Setup};

/// Arguments of `steadfs keeper`.
#[derive(Debug, Clone, clap::Args)]
pub struct KeeperArgs {
    /// keeper_deadline=.
    #[arg(long, value_parser = duration::parse)]
    deadline: Duration,
    /// watchdog=; 0 for none.
    #[arg(long, value_parser = duration::parse)]
    watchdog: Duration,
    /// How long a new executable is on trial.
    #[arg(long, value_parser = duration::parse, default_value = "10s")]
    trial: Duration,
    /// Keep the daemon at the other end of the link, whose keeper died.
    #[arg(long)]
    adopt: bool,
    /// What the daemon is started from; this executable if not given.
    #[arg(long)]
    executable: Option<PathBuf>,
    /// Arguments of the daemon.
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Keeps a daemon.
pub fn run(args: KeeperArgs) -> ExitCode {
    let kept = notify::kept();
    super::mount::logging::to_stderr(false);
    match keep(args, kept) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&format!("keeper: {error}"));
            ExitCode::from(2)
        }
    }
}

fn keep(args: KeeperArgs, held: Vec<(String, std::os::fd::OwnedFd)>) -> std::io::Result<u8> {
    let policy = Policy {
        deadline: args.deadline,
        watchdog: Some(args.watchdog).filter(|limit| !limit.is_zero()),
        trial: args.trial,
        ..Policy::default()
    };
    let executable = match &args.executable {
        Some(path) => Executable::open(path)?,
        None => Executable::current()?,
    };
    let keeper = again(&args);
    let channel = if args.adopt { link::inherited()? } else { None };
    let setup = Setup { executable, arguments: args.arguments, policy, keeper, held, ready: None };
    match channel {
        Some(channel) => run::adopt(setup, channel),
        None => run::run(setup),
    }
}

/// The arguments of a keeper that takes over from this one; none if they cannot be written down.
fn again(args: &KeeperArgs) -> Vec<String> {
    let mut words = vec!["keeper".into(), "--adopt".into()];
    words.push(format!("--deadline={}ms", args.deadline.as_millis()));
    words.push(format!("--watchdog={}ms", args.watchdog.as_millis()));
    words.push(format!("--trial={}ms", args.trial.as_millis()));
    if let Some(path) = &args.executable {
        words.push(format!("--executable={}", path.display()));
    }
    words.push("--".into());
    for argument in &args.arguments {
        match argument.to_str() {
            Some(text) => words.push(text.into()),
            None => return Vec::new(),
        }
    }
    words
}
