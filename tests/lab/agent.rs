//! Users of the mount, each a process of its own: this test binary, started again for one hidden test.
//!
//! A process that holds descriptors of a mount closes them in each child it starts, which waits for the mount: so the
//! test itself never holds any. A process that hangs in the mount cannot be ended: so nobody waits for one for ever.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// How long an agent that was told to stop waits for the calls it is in, before it reports them as hanging.
pub const GRACE: Duration = Duration::from_secs(15);

/// One system call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// `write`, `fsync`, `create` …
    pub name: String,
    /// Seconds since the epoch.
    pub start: f64,
    /// Seconds.
    pub took: f64,
    /// 0 for success.
    pub errno: i32,
}

impl Call {
    /// Seconds since the epoch.
    pub fn end(&self) -> f64 {
        self.start + self.took
    }

    /// No cache can answer it.
    pub fn needs_the_server(&self) -> bool {
        matches!(self.name.as_str(), "write" | "create")
    }

    /// It has a limit of its own (promise P1).
    pub fn syncs(&self) -> bool {
        matches!(self.name.as_str(), "fsync" | "close")
    }
}

/// What an agent saw.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Report {
    /// In the order of their ends.
    pub calls: Vec<Call>,
    /// Calls that had not ended [`GRACE`] after the agent was told to stop.
    pub hanging: Vec<Call>,
    /// Records (writer) or bytes (bulk) covered by an fsync that succeeded.
    pub synced: u64,
    /// Records that the same descriptor wrote and synced after the agent was told to stop.
    pub afterwards: u64,
    /// Files that were never synced.
    pub streams: Vec<Stream>,
    /// Calls that were quick and are not listed.
    #[serde(default)]
    pub quick: u64,
    /// What succeeded and was wrong all the same.
    #[serde(default)]
    pub wrong: Vec<String>,
}

/// A file that was written by one descriptor and closed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stream {
    pub path: PathBuf,
    /// Records that were acknowledged.
    pub written: u64,
    /// close(2) returned 0.
    pub closed: bool,
    /// Records that were acknowledged after the agent was told to stop.
    pub afterwards: u64,
}

impl Report {
    /// The longest call of those selected, in seconds, 0 if there is none.
    pub fn longest(&self, which: impl Fn(&Call) -> bool) -> f64 {
        self.calls.iter().chain(&self.hanging).filter(|call| which(call)).map(|call| call.took).fold(0.0, f64::max)
    }

    /// Calls that failed.
    pub fn errors(&self) -> Vec<&Call> {
        self.calls.iter().filter(|call| call.errno != 0).collect()
    }

    /// When the first call of those selected that needs the server succeeded.
    pub fn first_success(&self, which: impl Fn(&Call) -> bool) -> Option<f64> {
        let good = self.calls.iter().filter(|call| call.errno == 0 && call.needs_the_server() && which(call));
        good.map(Call::end).min_by(f64::total_cmp)
    }
}

/// Seconds since the epoch.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A running agent. Closing its standard input tells it to finish.
pub struct Agent {
    child: Child,
    kind: String,
    report: PathBuf,
}

impl Agent {
    /// Starts one of the agents of `agents.rs` on `target`, which it uses until told to stop. `directory` is outside the
    /// mount and takes its report. One whose name ends in `-lean` does not list the calls that were quick.
    pub fn start(kind: &str, target: &Path, directory: &Path) -> Agent {
        Agent::start_in(&[], kind, target, directory)
    }

    /// The same, by way of a command that runs it elsewhere.
    pub fn start_in(prefix: &[&str], kind: &str, target: &Path, directory: &Path) -> Agent {
        let report = (0..).map(|n| directory.join(format!("{kind}-{n}.json"))).find(|path| !path.exists()).unwrap();
        std::fs::write(&report, "").unwrap();
        let exe = std::env::current_exe().unwrap();
        let mut line: Vec<&OsStr> = prefix.iter().map(OsStr::new).collect();
        // The directory selects no test; it marks the process as this laboratory's.
        line.extend([exe.as_os_str(), "agent_process".as_ref(), directory.as_os_str()]);
        line.extend(["--exact", "--ignored", "--nocapture", "--test-threads=1"].map(OsStr::new));
        let child = Command::new(line[0])
            .args(&line[1..])
            .env("LAB_AGENT", kind)
            .env("LAB_TARGET", target)
            .env("LAB_REPORT", &report)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Agent { child, kind: kind.into(), report }
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits until it is at work.
    pub fn at_work(self) -> Agent {
        let ready = self.report.with_extension("ready");
        super::wait(&format!("the {} is at work", self.kind), || ready.exists());
        self
    }

    /// Tells it to finish and reads what it saw, hanging calls included.
    pub fn finish(mut self) -> Report {
        drop(self.child.stdin.take());
        let until = Instant::now() + GRACE + Duration::from_secs(20);
        loop {
            let text = std::fs::read(&self.report).unwrap();
            if !text.is_empty() {
                return serde_json::from_slice(&text).unwrap();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none_or(|status| status.success()), "the {} failed", self.kind);
            assert!(Instant::now() < until, "the {} does not even report", self.kind);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Whoever hangs in the mount is not waited for; the laboratory ends the mount first and then looks again.
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
