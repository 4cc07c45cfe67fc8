//! `steadfs upgrade`: has daemons replaced by another executable, and waits for what becomes of it.

mod candidate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{complain, daemons, say, status};
use crate::daemon::MountError;
use crate::mountpoint::claim::{self, Watching};
use crate::rundir;
use crate::telemetry::control::{Reply, Request};
use crate::telemetry::status::Status;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The new one has 10 s to be ready and is on trial for 10 s; then the old one may need some.
const OUTCOME: Duration = Duration::from_secs(60);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Exit code if there is no such mount, as that of `steadfs status`.
const ABSENT: u8 = 3;

/// Arguments of `steadfs upgrade`.
#[derive(Debug, Clone, clap::Args)]
pub struct UpgradeArgs {
    /// The hot path, or `@NAME` of a daemon.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    mountpoint: Option<PathBuf>,
    /// All mounts of this user, one after the other; ends at the first that cannot be upgraded.
    #[arg(long)]
    all: bool,
    /// The new steadfs; the one that runs this command if not given.
    #[arg(long, value_name = "PATH")]
    executable: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What became of one mount.
#[derive(Debug, Clone, Serialize)]
struct Outcome {
    mountpoint: String,
    accepted: bool,
    /// Why not.
    reason: Option<String>,
    /// Process id and version before and after; the latter absent if nobody answers any more.
    before: Daemon,
    after: Option<Daemon>,
    secs: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Daemon {
    pid: u32,
    steadfs_version: String,
}

impl Daemon {
    fn of(status: &Status) -> Daemon {
        Daemon { pid: status.pid, steadfs_version: status.steadfs_version.clone() }
    }
}

/// Why there is no outcome: nothing was changed.
enum Refused {
    Absent(String),
    Other(MountError),
}

impl From<MountError> for Refused {
    fn from(error: MountError) -> Refused {
        Refused::Other(error)
    }
}

/// Exit code 0: all are served by the new executable; 1: nothing was changed, for the reason given; 3: there is no such
/// mount; 32: the new executable was tried and taken back, or nobody knows.
pub fn run(args: &UpgradeArgs) -> ExitCode {
    let mut outcomes = Vec::new();
    let result = upgrade(args, &mut outcomes);
    let text = if args.json {
        serde_json::to_string_pretty(&outcomes).map(|text| text + "\n").unwrap_or_default()
    } else {
        outcomes.iter().filter(|outcome| outcome.accepted).map(describe).collect()
    };
    say(&text);
    let failed = outcomes.iter().find(|outcome| !outcome.accepted);
    match (result, failed) {
        (Err(Refused::Absent(text)), _) => {
            complain(&text);
            ExitCode::from(ABSENT)
        }
        (Err(Refused::Other(error)), _) => super::failed(&error),
        (Ok(()), Some(outcome)) => {
            complain(&format!("{}: {}", outcome.mountpoint, outcome.reason.as_deref().unwrap_or_default()));
            ExitCode::from(32)
        }
        (Ok(()), None) => ExitCode::SUCCESS,
    }
}

fn upgrade(args: &UpgradeArgs, outcomes: &mut Vec<Outcome>) -> Result<(), Refused> {
    let executable = match &args.executable {
        Some(path) => path.clone(),
        None => std::env::current_exe().map_err(|error| MountError::System(format!("this executable: {error}")))?,
    };
    let executable = candidate::check(&executable)?;
    let sockets = match &args.mountpoint {
        Some(mountpoint) => {
            let mountpoint = daemons::named(mountpoint);
            claim::is_own(&mountpoint)?;
            vec![rundir::control_socket(&mountpoint)]
        }
        None => status::all_sockets()?,
    };
    for socket in sockets {
        let before = match status::ask(&socket, &Request::Status, PATIENCE) {
            Ok(Reply::Status(status)) => *status,
            // What a daemon that was killed has left.
            Err(error) if status::is_absent(&error) && args.all => continue,
            Err(error) if status::is_absent(&error) => {
                let shown = args.mountpoint.as_deref().unwrap_or(&socket).display();
                return Err(Refused::Absent(format!("no steadfs serves {shown}")));
            }
            other => {
                return Err(
                    MountError::Usage(format!("{}: the daemon does not answer: {other:?}", socket.display())).into()
                );
            }
        };
        let outcome = one(&socket, &before, &executable)?;
        let accepted = outcome.accepted;
        outcomes.push(outcome);
        if !accepted {
            return Ok(());
        }
    }
    if outcomes.is_empty() { Err(Refused::Absent("nothing is mounted".into())) } else { Ok(()) }
}

fn one(socket: &Path, before: &Status, executable: &Path) -> Result<Outcome, MountError> {
    let (begun, shown) = (Instant::now(), &before.mountpoint);
    let watching = Watching::of(Path::new(shown));
    let request = Request::Upgrade { executable: executable.to_owned() };
    match status::ask(socket, &request, PATIENCE) {
        Ok(Reply::Done) => {}
        Ok(Reply::Failed { text }) if text.contains("not understood") => {
            let version = &before.steadfs_version;
            return Err(MountError::Usage(format!(
                "{shown}: its steadfs {version} is too old to be upgraded: unmount it and mount it again"
            )));
        }
        Ok(Reply::Failed { text } | Reply::Busy { text }) => return Err(MountError::Usage(format!("{shown}: {text}"))),
        // It may have yielded before the answer was out.
        Ok(_) | Err(_) => {}
    }
    let outcome = |accepted, reason, after| Outcome {
        mountpoint: shown.clone(),
        accepted,
        reason,
        before: Daemon::of(before),
        after,
        secs: begun.elapsed().as_secs_f64(),
    };
    while begun.elapsed() < OUTCOME {
        // In between nobody answers.
        if let Ok(Reply::Status(status)) = status::ask(socket, &Request::Status, PATIENCE)
            && let Some(upgraded) = &status.upgrade
        {
            let reason = Some(upgraded.reason.clone()).filter(|_| !upgraded.accepted);
            let reason = reason.map(|reason| format!("{reason}; steadfs {} serves it", status.steadfs_version));
            return Ok(outcome(upgraded.accepted, reason, Some(Daemon::of(&status))));
        }
        if !watching.is_alive() {
            return Ok(outcome(false, Some("it was unmounted, or given up, meanwhile: mount it again".into()), None));
        }
        std::thread::sleep(LOOK);
    }
    let words = format!("nothing is known of the upgrade after {} s: see steadfs status {shown}", OUTCOME.as_secs());
    Ok(outcome(false, Some(words), None))
}

fn describe(outcome: &Outcome) -> String {
    let Outcome { mountpoint, before, after, secs, .. } = outcome;
    let now = after.as_ref().unwrap_or(before);
    format!(
        "{mountpoint}: steadfs {} (pid {}) has taken over from steadfs {} (pid {}), and was on trial: {secs:.1} s\n",
        now.steadfs_version, now.pid, before.steadfs_version, before.pid
    )
}
