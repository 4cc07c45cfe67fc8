//! What somebody needs who finds out later what happened: bundles of evidence, their diff, and a verdict with the next action
//! ([`triage`]). Promise P8.
//!
//! A bundle is taken by a process of its own, never by the daemon: what may hang is looked at in children that can be left
//! behind (`guard`), several at a time, and the whole ends within [`LONGEST`] however dead the link is. Nothing is changed,
//! and secrets are left out of everything ([`redact`]). [`follow`] has bundles taken at each outage and recovery.

mod bundle;
pub mod diff;
mod follow;
mod guard;
pub mod look;
mod plan;
pub mod redact;
mod settings;
pub mod triage;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::backing::mountinfo;
use crate::statedir;
pub use follow::{Follower, follow, follow_by};
use guard::{End, Seen};
use plan::{Probe, Scope, Target};
pub use settings::Settings;

/// The longest that a bundle takes.
pub const LONGEST: Duration = Duration::from_secs(30);
/// When the last of its commands is killed: what is over then still has to be written.
const COMMANDS: Duration = Duration::from_secs(24);
/// When the first answers must be there, on which the rest depends.
const STATUSES: Duration = Duration::from_secs(4);
/// How long a dead mount may take to say so; it says so at once.
const ANSWER: Duration = Duration::from_secs(1);
/// Commands at a time.
const WIDTH: usize = 6;
/// Bundles that are kept where nobody says how many.
pub const KEEP: u32 = 20;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Writing there might hang.
    #[error("{0} is on a mount that may hang ({1}): give another directory with --out")]
    Remote(PathBuf, String),
    /// It cannot be written.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, std::io::Error),
}

/// What bundle is wanted.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The daemons it is about, by what their directories are named after.
    pub homes: Vec<PathBuf>,
    /// For the name of its directory.
    pub tag: String,
    /// How far back logs go.
    pub since: Duration,
    /// Where its directory is made; [`default_root`] when absent.
    pub root: Option<PathBuf>,
    /// systemd units besides those of the configuration.
    pub units: Vec<String>,
    /// A file to copy besides that of the configuration.
    pub manifest: Option<PathBuf>,
    /// Remove all but so many of those that were taken by themselves.
    pub keep: Option<u32>,
}

/// A bundle that is there.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Collected {
    /// Its directory.
    pub directory: PathBuf,
    /// Files in it.
    pub files: usize,
    /// Those whose command did not end in time, or not at all.
    pub unfinished: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Where bundles go by themselves.
pub fn default_root() -> PathBuf {
    statedir::base().join("evidence")
}

/// Takes a bundle. The caller's process may have nothing open on a mount, and serve none.
pub fn collect(request: &Request) -> Result<Collected, Error> {
    let (begun, now) = (Instant::now(), SystemTime::now());
    let root = request.root.clone().unwrap_or_else(default_root);
    let root = std::path::absolute(&root).map_err(|error| Error::Write(root, error))?;
    if let Some(entry) = mountinfo::covering(&root).ok().flatten().filter(mountinfo::Entry::may_hang) {
        return Err(Error::Remote(root, entry.fstype.to_string_lossy().into_owned()));
    }
    let failed = |error| Error::Write(root.clone(), error);
    let bundle = bundle::Bundle::create(&root, now, &request.tag).map_err(failed)?;
    let since = now.checked_sub(request.since).unwrap_or(UNIX_EPOCH);
    let mut scope = Scope {
        targets: request.homes.iter().map(|home| target(home)).collect(),
        units: request.units.clone(),
        manifest: request.manifest.clone(),
        since: since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        collector: std::process::id(),
    };
    let mut written = Written { bundle, files: 0, unfinished: Vec::new(), failed: None };
    let statuses = plan::statuses(&scope);
    let ask = statuses.into_iter().map(|(home, probe)| {
        let (argv, limit) = (probe.argv.clone(), probe.limit);
        ((home, probe), argv, limit)
    });
    guard::run_all(ask.collect(), WIDTH, begun + STATUSES, |(home, probe), seen| {
        if let Some(target) = scope.targets.iter_mut().find(|target| target.home == home) {
            learn(target, &seen.output);
        }
        written.take(&probe, &seen);
    });
    written.meta(&scope, request, now);
    let probes = plan::probes(&scope).into_iter().map(|probe| {
        let (argv, limit) = (probe.argv.clone(), probe.limit);
        (probe, argv, limit)
    });
    guard::run_all(probes.collect(), WIDTH, begun + COMMANDS, |probe, seen| written.take(&probe, &seen));
    if let Some(error) = written.failed {
        return Err(Error::Write(written.bundle.path().to_owned(), error));
    }
    if let Some(keep) = request.keep {
        // One that cannot be removed is no reason to have none; the next one tries again.
        _ = bundle::prune(&root, keep.max(1) as usize);
    }
    written.unfinished.sort();
    Ok(Collected {
        directory: written.bundle.path().to_owned(),
        files: written.files,
        unfinished: written.unfinished,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// True if a mount says that nobody serves it any more: asked by a child that can be left behind. One that is silent is alive.
pub fn is_dead(mountpoint: &Path) -> bool {
    let words = [guard::SELF, "evidence", "look", "path", "--"].map(OsString::from);
    let argv: Vec<OsString> = words.into_iter().chain([mountpoint.into()]).collect();
    let output = guard::run(&argv, ANSWER).output;
    let text = String::from_utf8_lossy(&output);
    [libc::ENOTCONN, libc::ECONNABORTED].iter().any(|errno| text.contains(&format!("[errno {errno}]")))
}

fn target(home: &Path) -> Target {
    let settings = Settings::read(home);
    let mut hot = settings.overlays.clone();
    if hot.is_empty() && home.is_absolute() {
        hot.push(home.to_owned());
    }
    Target { home: home.to_owned(), settings, hot, pids: Vec::new() }
}

/// Pids and hot paths are in the status.
fn learn(target: &mut Target, answer: &[u8]) {
    let Ok(status) = serde_json::from_slice::<serde_json::Value>(answer) else { return };
    let pids = [&status["pid"], &status["keeper"]["pid"]];
    target.pids = pids.into_iter().filter_map(|pid| i32::try_from(pid.as_i64()?).ok()).collect();
    let overlays = status["overlays"].as_array().into_iter().flatten();
    let told = overlays.filter_map(|overlay| overlay["mountpoint"].as_str()).map(PathBuf::from);
    let told: Vec<PathBuf> = told.filter(|path| path.is_absolute() && !target.hot.contains(path)).collect();
    target.hot.extend(told);
}

struct Written {
    bundle: bundle::Bundle,
    files: usize,
    unfinished: Vec<String>,
    failed: Option<std::io::Error>,
}

impl Written {
    fn take(&mut self, probe: &Probe, seen: &Seen) {
        if !matches!(seen.end, End::Exited(_)) {
            self.unfinished.push(probe.file.clone());
        }
        self.write(&probe.file, &told(probe, seen));
    }

    fn write(&mut self, name: &str, text: &str) {
        match self.bundle.write(name, text) {
            Ok(()) => self.files += 1,
            Err(error) => _ = self.failed.get_or_insert(error),
        }
    }

    fn meta(&mut self, scope: &Scope, request: &Request, now: SystemTime) {
        let mut text = format!(
            "$ steadfs evidence --tag {}\nsteadfs {}\nat {}\nlogs since {}\nuser {}\n",
            request.tag,
            env!("CARGO_PKG_VERSION"),
            humantime::format_rfc3339_seconds(now),
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(scope.since)),
            nix::unistd::geteuid(),
        );
        for Target { home, hot, pids, .. } in &scope.targets {
            text.push_str(&format!(
                "about {}: hot paths {hot:?}, pids {pids:?}, runtime directory {}, state directory {}\n",
                home.display(),
                crate::rundir::of(home).display(),
                statedir::of(home).display()
            ));
        }
        self.write("meta.txt", &text);
    }
}

/// The text of a command's file.
fn told(probe: &Probe, seen: &Seen) -> String {
    let mut text = format!("$ {}\n", probe.shown);
    if seen.left_out > 0 {
        text.push_str(&format!("[the first {} bytes are left out]\n", seen.left_out));
    }
    text.push_str(&String::from_utf8_lossy(&seen.output));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let limit = probe.limit.as_secs();
    match &seen.end {
        End::Exited(0) => {}
        End::Exited(code) => text.push_str(&format!("EXIT_CODE={code}\n")),
        End::Killed => text.push_str(&format!("TIMED OUT: killed, its limit is {limit} s\nEXIT_CODE=124\n")),
        End::LeftBehind(pid) => text.push_str(&format!(
            "TIMED OUT: its limit is {limit} s; process {pid} hangs in the kernel and could not be killed: left behind\n\
             EXIT_CODE=124\n"
        )),
        End::NotStarted(why) => text.push_str(&format!("NOT RUN: {why}\nEXIT_CODE=127\n")),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_begins_with_the_command_and_ends_with_what_went_wrong() {
        let probe =
            |shown: &str| Probe { file: "f".into(), shown: shown.into(), argv: vec![], limit: Duration::from_secs(3) };
        let text = |end| told(&probe("df -h"), &Seen { output: b"x".to_vec(), left_out: 0, end });
        assert_eq!(text(End::Exited(0)), "$ df -h\nx\n");
        assert_eq!(text(End::Exited(7)), "$ df -h\nx\nEXIT_CODE=7\n");
        for end in [End::Killed, End::LeftBehind(9)] {
            assert!(text(end).ends_with("\nEXIT_CODE=124\n"));
        }
        assert!(text(End::LeftBehind(9)).contains("process 9 hangs"));
        assert!(text(End::NotStarted("why".into())).ends_with("NOT RUN: why\nEXIT_CODE=127\n"));
    }

    #[test]
    fn pids_and_overlays_are_learnt_from_any_status() {
        let mut target = Target { hot: vec!["/a".into()], ..Target::default() };
        learn(&mut target, b"not json");
        assert_eq!(target.pids, Vec::<i32>::new());
        learn(&mut target, br#"{"pid":5,"keeper":{"pid":4},"overlays":[{"mountpoint":"/a"},{"mountpoint":"/b"},{}]}"#);
        assert_eq!((target.pids, target.hot), (vec![5, 4], vec![PathBuf::from("/a"), "/b".into()]));
    }
}
