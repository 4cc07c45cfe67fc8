//! `steadfs keeper`, which only steadfs itself starts: see [`crate::keeper`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::complain;
use super::options::duration;
use super::umount;
use crate::config::KeeperConfig;
use crate::daemon::link;
use crate::keeper::executable::Executable;
use crate::keeper::machine::Policy;
use crate::keeper::notify;
use crate::keeper::run::{self, Setup};
use crate::mountpoint::claim::{self, Claim, Holder};

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
    #[arg(long, value_parser = duration::parse)]
    trial: Option<Duration>,
    /// Whose runtime directory to remove at the end.
    #[arg(long)]
    mountpoint: Option<PathBuf>,
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

/// How patient a keeper is.
pub fn policy(config: &KeeperConfig) -> Policy {
    let usual = Policy::default();
    Policy {
        deadline: config.deadline,
        // One that hangs must be noticed in time for a successor.
        watchdog: Some(config.watchdog.min(config.deadline / 2)).filter(|limit| !limit.is_zero()),
        trial: trial().unwrap_or(usual.trial),
        ..usual
    }
}

/// Shorter in tests.
fn trial() -> Option<Duration> {
    duration::parse(std::env::var("STEADFS_TRIAL").ok()?.as_str()).ok()
}

fn keep(args: KeeperArgs, held: Vec<(String, std::os::fd::OwnedFd)>) -> std::io::Result<u8> {
    crate::daemon::limits::raise_descriptors();
    let config = KeeperConfig { wanted: true, watchdog: args.watchdog, deadline: args.deadline };
    let executable = match &args.executable {
        Some(path) => Executable::open(path)?,
        None => Executable::current()?,
    };
    let mut keeper = again(&config, args.mountpoint.as_deref().unwrap_or(Path::new("")), &args.arguments);
    if let (false, Some(at), Some(path)) =
        (keeper.is_empty(), keeper.iter().position(|word| word == "--"), &args.executable)
    {
        keeper.insert(at, format!("--executable={}", path.display()));
    }
    let policy = policy(&config);
    let policy = Policy { trial: args.trial.unwrap_or(policy.trial), ..policy };
    let channel = if args.adopt { link::inherited()? } else { None };
    let setup = Setup { executable, arguments: args.arguments, policy, keeper, held, ready: None };
    let code = match channel {
        Some(channel) => run::adopt(setup, channel),
        None => run::run(setup),
    };
    // Unless another steadfs has it by now.
    if let Some(path) = args.mountpoint.as_deref()
        && let Ok(Holder::Left(claim)) = claim::holder(path)
    {
        clean_up(path, claim);
    }
    code
}

/// What a daemon that was killed has left, its sshfs and a worker that is paused included. Nothing as a rule.
pub fn clean_up(mountpoint: &Path, claim: Claim) {
    if let Err(error) = umount::clean_up_as(mountpoint, claim) {
        tracing::error!(%error, "something is left behind");
    }
}

/// The arguments of a keeper that takes over from this one; none if they cannot be written down.
pub fn again(config: &KeeperConfig, mountpoint: &Path, arguments: &[OsString]) -> Vec<String> {
    let mut words = vec!["keeper".into(), "--adopt".into()];
    words.push(format!("--deadline={}ms", config.deadline.as_millis()));
    words.push(format!("--watchdog={}ms", config.watchdog.as_millis()));
    if mountpoint != Path::new("") {
        match mountpoint.to_str() {
            Some(text) => words.push(format!("--mountpoint={text}")),
            None => return Vec::new(),
        }
    }
    words.push("--".into());
    for argument in arguments {
        match argument.to_str() {
            Some(text) => words.push(text.into()),
            None => return Vec::new(),
        }
    }
    words
}
