//! A program of file operations, run by a process of its own: this test binary, started again for one hidden test. Each
//! step is noted down with its result, so that two runs can be compared.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Longer than a run with one outage takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);

/// One call and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub call: String,
    pub result: String,
}

/// The directory that a program works in, and what it has done there.
pub struct Steps {
    root: PathBuf,
    done: Vec<Step>,
}

impl Steps {
    /// A path in that directory.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Does one step. What it returns is part of the result; a failure is one too, and the program goes on.
    pub fn step<T: Debug>(&mut self, call: impl Into<String>, action: impl FnOnce() -> io::Result<T>) -> Option<T> {
        let done = action();
        let result = match &done {
            Ok(value) => format!("{value:?}"),
            Err(error) => error.raw_os_error().map_or(error.to_string(), |raw| format!("{:?}", Errno::from_raw(raw))),
        };
        self.done.push(Step { call: call.into(), result });
        done.ok()
    }

    /// The same for something that has no value worth comparing.
    pub fn get<T>(&mut self, call: impl Into<String>, action: impl FnOnce() -> io::Result<T>) -> T {
        let mut value = None;
        let call = call.into();
        self.step(call.clone(), || action().map(|got| value = Some(got)));
        match value {
            Some(value) => value,
            // Nothing that follows would make sense.
            None => self.give_up(&call),
        }
    }

    fn give_up(&self, call: &str) -> ! {
        publish(&self.done);
        eprintln!("{call}: {:?}", self.done.last());
        std::process::exit(0);
    }
}

fn publish(steps: &[Step]) {
    std::fs::write(std::env::var_os("LAB_REPORT").unwrap(), serde_json::to_vec(steps).unwrap()).unwrap();
}

/// The hidden test calls this.
pub fn main() {
    let Ok(name) = std::env::var("LAB_PROGRAM") else { return };
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let mut steps = Steps { root: std::env::var_os("LAB_TARGET").unwrap().into(), done: Vec::new() };
    super::workloads::find(&name)(&mut steps);
    publish(&steps.done);
}

/// Runs a program in `target`; `directory` is outside the mount and takes its report.
pub fn run(name: &str, target: &Path, directory: &Path) -> Result<Vec<Step>, String> {
    let report = directory.join("steps.json");
    std::fs::write(&report, "").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["program_process".as_ref(), directory.as_os_str()])
        .args(["--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("LAB_PROGRAM", name)
        .env("LAB_TARGET", target)
        .env("LAB_REPORT", &report)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let text = std::fs::read(&report).unwrap();
            return serde_json::from_slice(&text).map_err(|_| format!("the program {name} ended with {status}"));
        }
        if Instant::now() >= until {
            // One that hangs in the mount may not even die, so nobody waits for it.
            let _ = child.kill();
            return Err(format!("the program {name} hangs"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One line for each step that did not end as it should have.
pub fn differences(wanted: &[Step], found: &[Step]) -> Vec<String> {
    let mut all: Vec<_> = wanted
        .iter()
        .zip(found)
        .filter(|(wanted, found)| wanted != found)
        .map(|(wanted, found)| {
            format!("{}: {} instead of {} ({})", found.call, found.result, wanted.result, wanted.call)
        })
        .collect();
    if wanted.len() != found.len() {
        all.push(format!("{} steps instead of {}", found.len(), wanted.len()));
    }
    all
}
