//! `steadfs status`, `steadfs recover`, and the client of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::mount::claim;
use crate::daemon::MountError;
use crate::plain::{plain, plain_json};
use crate::rundir;
use crate::telemetry::control::{Reply, Request};
use crate::telemetry::sockets;
use crate::telemetry::status::Status;

/// The daemon answers within 100 ms in any state; more than this means that it does not answer at all.
const PATIENCE: Duration = Duration::from_secs(2);
/// An unmount may have to wait for calls that are under way.
const UMOUNT_PATIENCE: Duration = Duration::from_secs(40);

/// Arguments of `steadfs status`.
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    /// The hot path; all of this user's when absent.
    pub mountpoint: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Prints it. Exit code 0: calls succeed; 1: at least one mount is in an outage, or its daemon is there and does not
/// answer; 3: there is no such mount.
pub fn run(args: StatusArgs) -> ExitCode {
    let sockets = match &args.mountpoint {
        Some(mountpoint) => {
            let mountpoint = resolve(mountpoint);
            claim::is_own(&mountpoint).map(|_| vec![rundir::control_socket(&mountpoint)])
        }
        None => all_sockets(),
    };
    let sockets = match sockets {
        Ok(sockets) => sockets,
        Err(error) => return failed(&error.to_string()),
    };
    let mut found = Vec::new();
    let mut silent = false;
    for socket in &sockets {
        match ask(socket, &Request::Status, PATIENCE) {
            Ok(Reply::Status(status)) => found.push(*status),
            Ok(other) => super::complain(&format!("{}: unexpected answer: {other:?}", socket.display())),
            Err(error) if is_absent(&error) => {
                // A socket without a daemon is what a killed one leaves behind.
                if let Some(mountpoint) = &args.mountpoint {
                    super::complain(&format!("no steadfs serves {}", mountpoint.display()));
                }
            }
            Err(error) => {
                silent = true;
                super::complain(&format!(
                    "{}: the daemon does not answer: {}",
                    socket.display(),
                    words(&error, PATIENCE)
                ));
            }
        }
    }
    let text = if args.json {
        let json = if args.mountpoint.is_some() {
            found.first().map(serde_json::to_string)
        } else {
            Some(serde_json::to_string(&found))
        };
        match json.transpose() {
            Ok(json) => json.map(|json| plain_json(&json) + "\n").unwrap_or_default(),
            Err(error) => return failed(&error.to_string()),
        }
    } else {
        found.iter().map(describe).collect::<Vec<_>>().join("\n")
    };
    // A reader that went away (a pager, `head`) is no error.
    let _ = io::stdout().write_all(text.as_bytes());
    if found.is_empty() && !silent {
        if args.mountpoint.is_none() && !args.json {
            super::complain("nothing is mounted");
        }
        return ExitCode::from(3);
    }
    ExitCode::from(u8::from(silent || !found.iter().all(Status::is_up)))
}

/// Asks the daemon of `mountpoint` to try again now.
pub fn recover(mountpoint: &Path) -> ExitCode {
    let mountpoint = resolve(mountpoint);
    if let Err(error) = claim::is_own(&mountpoint) {
        return failed(&error.to_string());
    }
    match ask(&rundir::control_socket(&mountpoint), &Request::Recover, PATIENCE) {
        Ok(Reply::Done) => ExitCode::SUCCESS,
        Ok(other) => failed(&format!("{}: {other:?}", mountpoint.display())),
        Err(error) if is_absent(&error) => {
            super::complain(&format!("no steadfs serves {}", mountpoint.display()));
            ExitCode::from(3)
        }
        Err(error) => {
            failed(&format!("{}: the daemon does not answer: {}", mountpoint.display(), words(&error, PATIENCE)))
        }
    }
}

/// The source that the daemon of `mountpoint` serves there.
pub fn source(mountpoint: &Path) -> Result<String, String> {
    match ask(&rundir::control_socket(mountpoint), &Request::Status, PATIENCE) {
        Ok(Reply::Status(status)) => Ok(status.source),
        Ok(_) => Err("it answered something else".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks the daemon of `mountpoint` to unmount and end.
pub fn umount_request(mountpoint: &Path) -> Result<(), String> {
    match ask(&rundir::control_socket(mountpoint), &Request::Umount { lazy: false }, UMOUNT_PATIENCE) {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Busy { text } | Reply::Failed { text }) => Err(text),
        Ok(Reply::Status(_)) => Err("the daemon answered something else".into()),
        Err(error) => Err(words(&error, UMOUNT_PATIENCE)),
    }
}

fn failed(text: &str) -> ExitCode {
    super::complain(text);
    ExitCode::FAILURE
}

/// The path as the daemon knows it, without touching what is mounted there: only its parents are resolved.
pub(super) fn resolve(mountpoint: &Path) -> PathBuf {
    super::mount::place::resolve(mountpoint).unwrap_or_else(|_| mountpoint.to_owned())
}

/// Those of all mounts of this user; an error if somebody else could have made them.
pub(super) fn all_sockets() -> Result<Vec<PathBuf>, MountError> {
    let base = rundir::base();
    let Ok(entries) = std::fs::read_dir(&base) else { return Ok(Vec::new()) };
    claim::own(&base)?;
    let mut sockets = Vec::new();
    for entry in entries.flatten() {
        let socket = entry.path().join("control.sock");
        if socket.exists() {
            claim::own(&entry.path())?;
            sockets.push(socket);
        }
    }
    sockets.sort();
    Ok(sockets)
}

/// True if there is no daemon, rather than one that does not answer.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// A socket's timeout is EAGAIN, whose own words say nothing of it (socket(7), SO_RCVTIMEO).
fn words(error: &io::Error, patience: Duration) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!("no answer within {} s", patience.as_secs()),
        _ => error.to_string(),
    }
}

pub(super) fn ask(socket: &Path, request: &Request, patience: Duration) -> io::Result<Reply> {
    let mut stream = sockets::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

fn describe(status: &Status) -> String {
    let round = |secs: f64| humantime::format_duration(Duration::from_secs(secs.max(0.0) as u64)).to_string();
    let mut lines = vec![
        format!("{} on {}", status.source, status.mountpoint),
        format!("  state       {} for {} (since {})", status.state, round(status.for_secs), status.since),
    ];
    lines.extend(status.why.as_ref().map(|why| format!("  why         {why}")));
    lines.push(format!(
        "  next        {}{}",
        status.next,
        status.next_at.as_ref().map(|at| format!(" at {at}")).unwrap_or_default()
    ));
    lines.extend(
        status
            .outage
            .as_ref()
            .map(|outage| format!("  outage      for {} (since {})", round(outage.secs), outage.since)),
    );
    let probe = status
        .last_probe
        .as_ref()
        .map_or("none yet".into(), |probe| format!("{:.1} ms, {}", probe.took_secs * 1e3, probe.at));
    lines.extend([
        format!("  generation  {}, last probe {probe}", status.generation),
        format!("  outages     {} ({} in total)", status.outages_total, round(status.outage_secs_total)),
        format!(
            "  calls       {} waiting, {} ok, {} errors, {} late, {} failed by outages, {} run again",
            status.calls.waiting,
            status.calls.ok,
            status.calls.error,
            status.calls.deadline,
            status.calls.outage,
            status.calls.retried
        ),
        format!(
            "  open        {} files, {} directories, {} inodes cached",
            status.open_files, status.open_dirs, status.nodes
        ),
        format!(
            "  write log   {} of {} bytes, {} files uncommitted; {} bytes written again; {} files spooled, {} lost",
            status.log.bytes,
            status.log.limit_bytes,
            status.log.files,
            status.log.replayed_bytes_total,
            status.log.spooled_files_total,
            status.log.lost_files_total
        ),
        format!("  memory      {} of at most {} bytes", status.resident_bytes, status.resident_limit_bytes),
        format!(
            "  threads     {}, {} stuck; {} of {} bytes in flight",
            status.threads, status.threads_stuck, status.bytes_in_flight, status.window_bytes
        ),
    ]);
    lines.extend(status.worker.paused_since.as_ref().map(|since| format!("  worker      paused since {since}")));
    let keeper = &status.keeper;
    lines.push(match keeper.pid {
        Some(pid) if keeper.can_succeed => format!(
            "  keeper      pid {pid}, {} of {} bytes noted for a successor in {} bytes of memory",
            keeper.memory_bytes, keeper.memory_limit_bytes, keeper.resident_bytes
        ),
        Some(pid) => format!("  keeper      pid {pid}; no successor can go on: mount again when nothing is open"),
        None => "  keeper      none: the mount ends with the daemon".into(),
    });
    lines.extend(keeper.last.as_ref().map(|last| {
        format!(
            "  replaced    {} times since {}, last at {} ({}; {:.2} s without)",
            keeper.successions_total, keeper.mounted_at, last.at, last.reason, last.pause_secs
        )
    }));
    lines.push(format!(
        "  daemon      steadfs {}, pid {}, up {}",
        status.steadfs_version,
        status.pid,
        round(status.uptime_secs)
    ));
    // Names and a server's words are among them.
    lines.iter().map(|line| plain(line) + "\n").collect()
}
