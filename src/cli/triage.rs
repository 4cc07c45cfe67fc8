//! `steadfs triage`: looks, without touching what may hang, and has [`crate::evidence::triage`] judge.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use super::{complain, homes, say, status};
use crate::backing::mountinfo::{self, Entry};
use crate::evidence::triage::{Answer, Mounted, Seen, Urgency, Verdict, judge};
use crate::evidence::{self, Settings};
use crate::mountpoint::{claim, place};
use crate::telemetry::control::{Reply, Request};
use crate::{rundir, spool, worker};

/// The daemon answers within 100 ms in any state.
const PATIENCE: Duration = Duration::from_secs(2);
/// What connecting may take on top of it: a socket whose queue is full makes one wait.
const GRACE: Duration = Duration::from_millis(500);
/// FS_IMMUTABLE_FL of include/uapi/linux/fs.h.
const IMMUTABLE: libc::c_int = 0x10;

/// Arguments of `steadfs triage`.
#[derive(Debug, Clone, clap::Args)]
pub struct TriageArgs {
    /// The hot path, or the name of a configuration; all of this user's when absent.
    #[arg(value_name = "HOT|NAME")]
    hot: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints verdicts. 0: all is healthy; 1: somebody has to act or to wait; 2: it cannot be told.
pub fn run(args: &TriageArgs) -> ExitCode {
    let seen = homes::meant(args.hot.as_deref()).and_then(|homes| {
        let table = mountinfo::entries().map_err(place::no_mountinfo)?;
        Ok(homes.iter().map(|home| look(home, &table)).collect::<Vec<_>>())
    });
    let verdicts: Vec<Verdict> = match seen {
        Ok(mut seen) => {
            // Who asks for all means one's own.
            let stranger = |seen: &Seen| seen.hot.iter().all(|(_, mounted)| *mounted == Mounted::Elsewhere);
            seen.retain(|seen| args.hot.is_some() || seen.hot.is_empty() || !stranger(seen));
            seen.iter().map(judge).collect()
        }
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(2);
        }
    };
    if verdicts.is_empty() && !args.json {
        complain("nothing is mounted");
    }
    let text = if args.json {
        serde_json::to_string(&verdicts).unwrap_or_default() + "\n"
    } else {
        verdicts.iter().map(describe).collect::<Vec<_>>().join("\n")
    };
    say(&text);
    ExitCode::from(exit_code(&verdicts))
}

/// Where nothing is mounted, nothing can be said.
fn exit_code(verdicts: &[Verdict]) -> u8 {
    match verdicts.iter().map(|verdict| verdict.urgency).max() {
        Some(Urgency::Healthy) => 0,
        Some(Urgency::Wait | Urgency::Act) => 1,
        Some(Urgency::Unknown) | None => 2,
    }
}

fn look(home: &Path, table: &[Entry]) -> Seen {
    let settings = Settings::read(home);
    let answer = match claim::is_own(home) {
        Err(error) => Answer::Unknown(error.to_string()),
        Ok(false) => Answer::Absent,
        Ok(true) => ask(&rundir::control_socket(home)),
    };
    let mut hot = settings.overlays.clone();
    if let Answer::Status(status) = &answer {
        let told = status["overlays"].as_array().into_iter().flatten();
        let told = told.filter_map(|overlay| overlay["mountpoint"].as_str()).map(PathBuf::from);
        hot.extend(told.filter(|path| path.is_absolute()).collect::<Vec<_>>());
    }
    if hot.is_empty() && home.is_absolute() {
        hot.push(home.to_owned());
    }
    hot.sort();
    hot.dedup();
    let spool = settings.spool_dir.clone().unwrap_or_else(|| spool::default_dir(home));
    let kept = |entry: &spool::Listed| entry.state == spool::State::Kept;
    let held = claim::is_alive(home);
    let unserved = answer == Answer::Absent && !held;
    let hot = hot.into_iter().map(|path| {
        let mounted = match mounted(&path, table) {
            Mounted::Overlay if unserved && !evidence::is_dead(&path) => Mounted::Elsewhere,
            mounted => mounted,
        };
        (path, mounted)
    });
    let hot = hot.collect();
    Seen {
        name: home.display().to_string(),
        answer,
        held,
        hot,
        paused: worker::is_noted(home),
        spooled: spool::list(&spool).map_or(0, |entries| entries.iter().filter(|entry| kept(entry)).count()),
        metrics: settings.textfile.as_deref().map(age),
    }
}

/// A thread asks: even connecting may wait, for a daemon that is stopped while many ask.
pub(super) fn ask(socket: &Path) -> Answer {
    let (sender, answer) = channel();
    let asked = socket.to_owned();
    let ask = move || _ = sender.send(status::ask(&asked, &Request::Status, PATIENCE));
    if let Err(error) = std::thread::Builder::new().name("ask".into()).spawn(ask) {
        return Answer::Unknown(error.to_string());
    }
    match answer.recv_timeout(PATIENCE + GRACE) {
        Ok(Ok(Reply::Status(status))) => match serde_json::to_value(status) {
            Ok(status) => Answer::Status(status),
            Err(error) => Answer::Unknown(error.to_string()),
        },
        Ok(Ok(other)) => Answer::Unknown(format!("the daemon answered {other:?}")),
        Ok(Err(error)) if status::is_absent(&error) => Answer::Absent,
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Answer::Unknown(error.to_string()),
        Ok(Err(_)) | Err(_) => Answer::Silent,
    }
}

/// By the mount table alone, except for a directory on which nothing is mounted.
fn mounted(hot: &Path, table: &[Entry]) -> Mounted {
    match mountinfo::at_in(table, hot) {
        Some(entry) if entry.fstype == "fuse.steadfs" => Mounted::Overlay,
        Some(entry) => Mounted::Other(entry.fstype.to_string_lossy().into_owned()),
        None => {
            // A look at what is on a mount that hangs would never end, and a path may lead there.
            let real = place::resolve_from_afar(hot).ok().flatten();
            let local = real.is_some_and(|real| !place::may_hang(table, &real));
            Mounted::Nothing { guarded: local.then(|| guarded(hot)).flatten() }
        }
    }
}

/// Whether nobody can write there; nothing if that cannot be told.
fn guarded(directory: &Path) -> Option<bool> {
    let found = std::fs::symlink_metadata(directory).ok()?;
    // Where there are no attributes the guard takes the mode away.
    if std::os::unix::fs::MetadataExt::mode(&found) & 0o7777 == 0 {
        return Some(true);
    }
    let directory = File::open(directory).ok()?;
    let mut flags: libc::c_int = 0;
    // SAFETY: the descriptor is open and the kernel writes one int, into `flags` (ioctl_iflags(2)).
    let asked = Errno::result(unsafe { libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) });
    Some(asked.is_ok_and(|_| flags & IMMUTABLE != 0))
}

/// How old a file is; nothing if it is missing.
fn age(path: &Path) -> Option<Duration> {
    let changed = std::fs::symlink_metadata(path).ok()?.modified().ok()?;
    Some(SystemTime::now().duration_since(changed).unwrap_or_default())
}

fn describe(verdict: &Verdict) -> String {
    let mut text = format!("{}\n", verdict.name);
    for finding in &verdict.findings {
        let until = finding.until.as_ref().map(|until| format!(" (until {until})")).unwrap_or_default();
        text.push_str(&format!(
            "  {:<22} {}\n  {:<22} next: {}{until}\n",
            finding.code, finding.what, "", finding.next
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(urgency: Urgency) -> Verdict {
        Verdict { name: "x".into(), urgency, findings: Vec::new() }
    }

    #[test]
    fn the_worst_decides_the_exit_code() {
        use Urgency::{Act, Healthy, Unknown, Wait};
        for (urgencies, code) in [
            (vec![], 2),
            (vec![Healthy], 0),
            (vec![Healthy, Wait], 1),
            (vec![Act, Healthy], 1),
            (vec![Unknown, Act], 2),
        ] {
            let verdicts: Vec<_> = urgencies.into_iter().map(verdict).collect();
            assert_eq!(exit_code(&verdicts), code, "{verdicts:?}");
        }
    }

    #[test]
    fn a_directory_that_anybody_can_write_to_is_not_guarded() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(guarded(directory.path()), Some(false));
        assert_eq!(guarded(&directory.path().join("missing")), None);
        let table = mountinfo::entries().expect("a table");
        assert_eq!(mounted(directory.path(), &table), Mounted::Nothing { guarded: Some(false) });
        assert!(matches!(mounted(Path::new("/proc"), &table), Mounted::Other(kind) if kind == "proc"));
    }

    #[test]
    fn nobody_is_asked_where_there_is_no_socket() {
        assert_eq!(ask(Path::new("/nonexistent/socket")), Answer::Absent);
    }
}
