//! `steadfs status`, and the client of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::daemons;
use crate::config::DaemonConfig;
use crate::daemon::MountError;
use crate::mountpoint::claim;
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
    /// Show it again each second, until q is typed. Without a terminal it is printed again and again.
    #[arg(long)]
    pub watch: bool,
}

/// What the daemons said at one look.
pub(super) struct Found {
    /// Those that answered.
    pub statuses: Vec<Status>,
    /// Those that are there and do not answer, in words.
    pub silent: Vec<String>,
    /// What else is to be said.
    pub complaints: Vec<String>,
}

impl Found {
    /// 0: calls succeed; 1: at least one mount is in an outage, or its daemon is there and does not answer; 3: there is no
    /// such mount.
    pub fn code(&self) -> u8 {
        match (self.statuses.is_empty(), self.silent.is_empty()) {
            (true, true) => 3,
            (_, false) => 1,
            (false, true) => u8::from(!self.statuses.iter().all(Status::is_up)),
        }
    }
}

/// Prints it. Exit code 0: calls succeed; 1: at least one mount is in an outage, or its daemon is there and does not
/// answer; 3: there is no such mount.
pub fn run(args: StatusArgs) -> ExitCode {
    let (json, one) = (args.json, args.mountpoint.is_some());
    if args.watch {
        return super::watch::run(|| look(args.mountpoint.as_deref()), |found| text(found, json, one), json);
    }
    let found = match look(args.mountpoint.as_deref()) {
        Ok(found) => found,
        Err(error) => return failed(&error.to_string()),
    };
    found.silent.iter().chain(&found.complaints).for_each(|complaint| super::complain(complaint));
    let text = match text(&found, json, one) {
        Ok(text) => text,
        Err(error) => return failed(&error),
    };
    super::say(&text);
    if found.code() == 3 && !one && !json {
        super::complain("nothing is mounted");
    }
    ExitCode::from(found.code())
}

/// Asks the daemon of `mountpoint`, or all of this user.
fn look(mountpoint: Option<&Path>) -> Result<Found, MountError> {
    let sockets = match mountpoint {
        Some(mountpoint) => {
            let home = daemons::named(mountpoint);
            claim::is_own(&home).map(|_| vec![rundir::control_socket(&home)])
        }
        None => all_sockets(),
    };
    let mut found = Found { statuses: Vec::new(), silent: Vec::new(), complaints: Vec::new() };
    for socket in &sockets? {
        match ask(socket, &Request::Status, PATIENCE) {
            Ok(Reply::Status(status)) => found.statuses.push(*status),
            Ok(other) => found.complaints.push(format!("{}: unexpected answer: {other:?}", socket.display())),
            Err(error) if is_absent(&error) => {
                // A socket without a daemon is what a killed one leaves behind.
                found.complaints.extend(mountpoint.map(|path| match nix::unistd::geteuid().is_root() {
                    true => format!("no steadfs serves {}", path.display()),
                    // Nobody else may ask.
                    false => {
                        format!("no steadfs of this user serves {}: if root mounted it, ask as root", path.display())
                    }
                }));
            }
            Err(error) => found.silent.push(format!(
                "{}: the daemon does not answer: {}",
                socket.display(),
                words(&error, PATIENCE)
            )),
        }
    }
    Ok(found)
}

/// For people, or as JSON: an object if one mount was asked for, else an array.
fn text(found: &Found, json: bool, one: bool) -> Result<String, String> {
    if !json {
        return Ok(found.statuses.iter().map(describe).collect::<Vec<_>>().join("\n"));
    }
    let json = if one {
        found.statuses.first().map(serde_json::to_string)
    } else {
        Some(serde_json::to_string(&found.statuses))
    };
    let json = json.transpose().map_err(|error| error.to_string())?;
    Ok(json.map(|json| plain_json(&json) + "\n").unwrap_or_default())
}

/// What the daemon of `mountpoint` is configured to do at present.
pub fn config(mountpoint: &Path) -> Result<DaemonConfig, String> {
    match ask(&rundir::control_socket(mountpoint), &Request::Config, PATIENCE) {
        Ok(Reply::Config(config)) => Ok(*config),
        Ok(_) => Err("it answered something else".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks the daemon of `mountpoint` to unmount and end.
pub fn umount_request(mountpoint: &Path, lazy: bool) -> Result<(), String> {
    match ask(&rundir::control_socket(mountpoint), &Request::Umount { lazy }, UMOUNT_PATIENCE) {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Busy { text } | Reply::Failed { text }) => Err(text),
        Ok(_) => Err("the daemon answered something else".into()),
        Err(error) => Err(words(&error, UMOUNT_PATIENCE)),
    }
}

fn failed(text: &str) -> ExitCode {
    super::complain(text);
    ExitCode::FAILURE
}

/// Those of all mounts of this user; an error if somebody else could have made them.
pub(super) fn all_sockets() -> Result<Vec<PathBuf>, MountError> {
    let mut sockets = Vec::new();
    for dir in claim::directories()? {
        let socket = dir.join("control.sock");
        // That of one of several overlays leads to its daemon's, which is there too.
        if socket.exists() && !socket.is_symlink() {
            claim::own(&dir)?;
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
pub(super) fn words(error: &io::Error, patience: Duration) -> String {
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
    let several = status.overlays.len() > 1;
    let overlays: Vec<_> = status
        .overlays
        .iter()
        .filter_map(|overlay| match overlay.mounted.as_str() {
            "yes" => several.then(|| {
                let (path, open, bytes) = (&overlay.mountpoint, overlay.open_files, overlay.log_bytes);
                format!("  overlay     {path}: {open} files open, {bytes} bytes in its write log")
            }),
            "other" => Some(format!("  overlay     something else is mounted on {}", overlay.mountpoint)),
            _ => Some(format!("  overlay     nothing is mounted on {}", overlay.mountpoint)),
        })
        .collect();
    let round = |secs: f64| humantime::format_duration(Duration::from_secs(secs.max(0.0) as u64)).to_string();
    let mut lines = vec![
        format!("{} on {}", status.source, status.mountpoint),
        format!("  state       {} for {} (since {})", status.state, round(status.for_secs), status.since),
    ];
    lines.extend(status.why.as_ref().map(|why| format!("  why         {why}")));
    lines.extend(status.held.as_ref().map(|by| format!("  held back   by {by}")));
    lines.extend(overlays);
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
    lines.extend(status.worker.workers.iter().map(|worker| {
        let state = worker.since.as_ref().map_or("running".into(), |since| format!("paused since {since}"));
        format!("  worker      {} ({}): {state}", worker.name, worker.kind)
    }));
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
