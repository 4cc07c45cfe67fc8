//! What `steadfs status --json` says, as far as demo and drills go by it.

use std::io::{self, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde_json::Value;

/// How to ask the daemon.
#[derive(Debug, Clone)]
pub struct Question {
    /// This program.
    pub exe: PathBuf,
    /// Its `STEADFS_RUNTIME_DIR`.
    pub run: PathBuf,
    /// The mount.
    pub hot: PathBuf,
}

impl Question {
    /// Runs `steadfs status --json` once.
    pub fn ask(&self) -> Status {
        self.ask_all().and_then(|answer| Status::read(&answer)).unwrap_or_else(Status::silent)
    }

    /// The same with all that was answered; nothing if nobody did.
    pub fn ask_all(&self) -> Option<Value> {
        let mut command = Command::new(&self.exe);
        command.args(["status", "--json"]).arg(&self.hot).env("STEADFS_RUNTIME_DIR", &self.run);
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
        output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok())
    }
}

/// Time between two questions.
const PAUSE: Duration = Duration::from_millis(100);
/// An answer older than this says nothing of now.
const STALE: Duration = Duration::from_secs(1);

/// Asks again and again, through a shell that is started before the programs open their files: a process that holds
/// files of the mount flushes them in every child that it forks, and would wait for the mount there.
pub struct Poller {
    seen: Arc<Mutex<Seen>>,
    shell: Child,
    thread: Option<JoinHandle<()>>,
}

struct Seen {
    status: Status,
    answered: bool,
    at: Instant,
    slowest: Duration,
}

impl Poller {
    /// Begins to ask.
    pub fn begin(question: &Question) -> io::Result<Poller> {
        let pause = PAUSE.as_secs_f64();
        let mut shell = Command::new("sh")
            .args(["-c", &format!("while :; do \"$@\"; echo null; sleep {pause}; done"), "sh"])
            .arg(&question.exe)
            .args(["status", "--json"])
            .arg(&question.hot)
            .env("STEADFS_RUNTIME_DIR", &question.run)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C is for the demo; the shell is ended by it.
            .process_group(0)
            .spawn()?;
        let (status, slowest) = (Status::silent(), Duration::ZERO);
        let seen = Seen { status, answered: false, at: Instant::now(), slowest };
        let seen = Arc::new(Mutex::new(seen));
        let shared = seen.clone();
        let answers = shell.stdout.take();
        let listen = move || {
            let Some(answers) = answers else { return };
            for answer in serde_json::Deserializer::from_reader(BufReader::new(answers)).into_iter::<Value>() {
                let Ok(answer) = answer else { return };
                let mut seen = shared.lock();
                // The command's exit code tells of an outage too; only a null without an answer before it is silence.
                if answer.is_null() && std::mem::take(&mut seen.answered) {
                    continue;
                }
                seen.slowest = seen.slowest.max(seen.at.elapsed().saturating_sub(PAUSE));
                seen.answered = !answer.is_null();
                seen.status = Status::read(&answer).unwrap_or_else(Status::silent);
                seen.at = Instant::now();
            }
        };
        let thread = std::thread::Builder::new().name("poller".into()).spawn(listen)?;
        Ok(Poller { seen, shell, thread: Some(thread) })
    }

    /// The last answer.
    pub fn status(&self) -> Status {
        let seen = self.seen.lock();
        if seen.at.elapsed() > STALE { Status::silent() } else { seen.status.clone() }
    }

    /// Slowest answer so far, with the time that it takes to start the program.
    pub fn slowest(&self) -> Duration {
        self.seen.lock().slowest
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.shell.id() as i32), Signal::SIGKILL);
        let _ = self.shell.wait();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// State of the mount at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// `live`, `suspect`, `repairing` and their like; `silent` when the daemon gave no answer.
    pub state: String,
    /// Number of the newest generation.
    pub generation: u64,
    /// Process id of the daemon, 0 if it was not told.
    pub pid: u64,
    /// Why it is in that state.
    pub why: String,
    /// What it will do next.
    pub next: String,
}

impl Status {
    /// Used when there was no answer.
    pub fn silent() -> Status {
        Status { state: "silent".into(), ..Status::default() }
    }

    /// Reads the command's output.
    pub fn read(value: &Value) -> Option<Status> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
        let state = text("state");
        if state.is_empty() {
            return None;
        }
        let generation = value.get("generation").and_then(Value::as_u64)?;
        let pid = value.get("pid").and_then(Value::as_u64).unwrap_or(0);
        Some(Status { state, generation, pid, why: text("why"), next: text("next") })
    }

    /// Calls succeed as far as the supervisor knows.
    pub fn is_live(&self) -> bool {
        self.state == "live"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn absent_words_are_empty_and_an_absent_state_is_no_status() {
        let read = |text: &str| Status::read(&serde_json::from_str(text).unwrap());
        let status = read(r#"{"state":"live","generation":3,"why":null,"next":"probe"}"#);
        let wanted = Status { state: "live".into(), generation: 3, pid: 0, why: String::new(), next: "probe".into() };
        assert_eq!(status, Some(wanted));
        assert_eq!(read("{}"), None);
        assert_eq!(read("null"), None);
    }

    #[test]
    fn the_poller_follows_the_answers_and_ends_its_shell() {
        let dir = tempfile::tempdir().unwrap();
        let (exe, answer) = (dir.path().join("exe"), dir.path().join("answer"));
        std::fs::write(&exe, format!("#!/bin/sh\ncat '{}'\nexit 3\n", answer.display())).unwrap();
        std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o700)).unwrap();
        let question = Question { exe, run: dir.path().into(), hot: dir.path().into() };
        let poller = Poller::begin(&question).unwrap();
        let shell = poller.shell.id();
        let until = |state: &str| {
            let begun = Instant::now();
            while poller.status().state != state {
                assert!(begun.elapsed() < Duration::from_secs(10), "never {state}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        until("silent");
        std::fs::write(&answer, "{\n \"state\": \"live\",\n \"generation\": 2}\n").unwrap();
        until("live");
        std::fs::remove_file(&answer).unwrap();
        until("silent");
        drop(poller);
        assert!(!std::path::Path::new(&format!("/proc/{shell}")).exists());
    }
}
