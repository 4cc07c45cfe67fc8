//! Users of the mount, each a process of its own: this test binary, started again for one hidden test.
//!
//! A process that holds descriptors of a mount closes them in each child it starts, which waits for the mount: so the
//! test itself never holds any.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub const RECORD: usize = 4096;

/// One system call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    pub name: String,
    /// Seconds since the epoch.
    pub start: f64,
    pub took: f64,
    /// 0 for success.
    pub errno: i32,
}

impl Call {
    pub fn end(&self) -> f64 {
        self.start + self.took
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub calls: Vec<Call>,
    /// Records covered by an fsync that succeeded.
    pub synced: u64,
    /// Records written by the same descriptor after it was told to stop.
    pub afterwards: u64,
}

impl Report {
    pub fn longest(&self, which: impl Fn(&str) -> bool) -> f64 {
        self.calls.iter().filter(|call| which(&call.name)).map(|call| call.took).fold(0.0, f64::max)
    }

    pub fn errors(&self) -> Vec<&Call> {
        self.calls.iter().filter(|call| call.errno != 0).collect()
    }

    /// When the first call that needs the server succeeded after that moment.
    pub fn first_success_after(&self, at: f64) -> Option<f64> {
        let done =
            |call: &&Call| call.errno == 0 && call.end() > at && matches!(call.name.as_str(), "write" | "create");
        self.calls.iter().filter(done).map(Call::end).min_by(f64::total_cmp)
    }
}

pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A running agent. Closing its standard input tells it to finish.
pub struct Agent {
    child: Child,
    report: std::path::PathBuf,
}

impl Agent {
    /// Starts one of `writer`, `prober`, `crowd`, `bulk`, `forker` on `target`, which it uses until told to stop.
    pub fn start(kind: &str, target: &Path, report: &Path) -> Agent {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["agent_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env("LAB_AGENT", kind)
            .env("LAB_TARGET", target)
            .env("LAB_REPORT", report)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Agent { child, report: report.to_owned() }
    }

    /// Tells it to finish and reads what it saw. Fails if it hangs.
    pub fn finish(mut self) -> Report {
        drop(self.child.stdin.take());
        super::wait("an agent ends: it hangs in a call", || self.child.try_wait().unwrap().is_some());
        assert!(self.child.wait().unwrap().success(), "an agent failed");
        serde_json::from_slice(&std::fs::read(&self.report).unwrap()).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

/// The hidden test calls this.
pub fn main() {
    let Ok(kind) = std::env::var("LAB_AGENT") else { return };
    let target = std::path::PathBuf::from(std::env::var_os("LAB_TARGET").unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        flag.store(true, Ordering::SeqCst);
    });
    let report = match kind.as_str() {
        "writer" => writer(&target, &stop),
        "bulk" => bulk(&target, &stop),
        "prober" => prober(&target, &stop, Duration::from_millis(100)),
        "crowd" => crowd(&target, &stop),
        "forker" => forker(&target, &stop),
        other => panic!("no such agent: {other}"),
    };
    std::fs::write(std::env::var_os("LAB_REPORT").unwrap(), serde_json::to_vec(&report).unwrap()).unwrap();
}

fn timed<T>(calls: &mut Vec<Call>, name: &str, call: impl FnOnce() -> std::io::Result<T>) -> Option<T> {
    let start = now();
    let result = call();
    let errno = result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(-1));
    calls.push(Call { name: name.into(), start, took: now() - start, errno });
    result.ok()
}

/// What record `number` holds.
pub fn record(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = number.to_le_bytes().to_vec();
    while data.len() < RECORD {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    data
}

/// Numbered records of 4 KiB, an fsync every 8, one descriptor throughout. What an fsync did not confirm is written again.
fn writer(path: &Path, stop: &AtomicBool) -> Report {
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path).unwrap();
    let mut report = Report::default();
    let mut next = 0;
    let put = |report: &mut Report, next: &mut u64| {
        let (data, offset) = (record(*next), *next * RECORD as u64);
        if timed(&mut report.calls, "write", || file.write_all_at(&data, offset)).is_none() {
            return std::thread::sleep(Duration::from_millis(50));
        }
        *next += 1;
        if next.is_multiple_of(8) {
            match timed(&mut report.calls, "fsync", || file.sync_all()) {
                Some(()) => report.synced = *next,
                None => *next = report.synced,
            }
        }
    };
    while !stop.load(Ordering::SeqCst) {
        put(&mut report, &mut next);
    }
    let (goal, tries) = (report.synced + 16, report.calls.len() + 400);
    while report.synced < goal && report.calls.len() < tries {
        put(&mut report, &mut next);
    }
    report.afterwards = report.synced.saturating_sub(goal - 16);
    report
}

/// Writes as fast as it may, 1 MiB at a time.
fn bulk(path: &Path, stop: &AtomicBool) -> Report {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap();
    let mut report = Report::default();
    let data: Vec<u8> = (0..256).flat_map(record).collect();
    let mut offset = 0;
    while !stop.load(Ordering::SeqCst) {
        if timed(&mut report.calls, "write", || file.write_all_at(&data, offset)).is_some() {
            offset += data.len() as u64;
        }
    }
    report.synced = offset;
    report
}

fn prober(directory: &Path, stop: &AtomicBool, pause: Duration) -> Report {
    let mut report = Report::default();
    let known = directory.join("known");
    std::fs::write(&known, "here").unwrap();
    for number in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let path = directory.join(format!("probe-{}-{number}", std::process::id()));
        timed(&mut report.calls, "stat", || std::fs::metadata(&known));
        let create = || OpenOptions::new().create_new(true).write(true).custom_flags(libc::O_CLOEXEC).open(&path);
        if let Some(file) = timed(&mut report.calls, "create", create) {
            timed(&mut report.calls, "fsync", || file.sync_all());
            drop(file);
            timed(&mut report.calls, "unlink", || std::fs::remove_file(&path));
        }
        std::thread::sleep(pause);
    }
    report
}

/// 200 callers at once, each with its own file.
fn crowd(directory: &Path, stop: &AtomicBool) -> Report {
    let report = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for number in 0..200 {
            let (report, path) = (&report, directory.join(format!("caller-{number}")));
            scope.spawn(move || {
                let mut calls = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    timed(&mut calls, "create", || std::fs::write(&path, "x"));
                    timed(&mut calls, "stat", || std::fs::metadata(&path));
                    std::thread::sleep(Duration::from_millis(200));
                }
                report.lock().unwrap().calls.extend(calls);
            });
        }
    });
    report.into_inner().unwrap()
}

/// Runs programs while it holds files that it has written to: each child closes them in its execve(2), which flushes.
fn forker(path: &Path, stop: &AtomicBool) -> Report {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap();
    let mut report = Report::default();
    while !stop.load(Ordering::SeqCst) {
        timed(&mut report.calls, "write", || file.write_all_at(b"dirty", 0));
        timed(&mut report.calls, "spawn", || Command::new("true").status());
    }
    report
}
