//! `steadfs demo` from outside: a real mount over a real sshfs, four faults, a verdict; and its end by a signal.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn demo(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
    command.args(["demo", "--fast", "--json"]).env("TMPDIR", directory).stdin(Stdio::null());
    command
}

/// Mounts, processes and files that a demo in `directory` has left.
fn left_over(directory: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo is readable");
    let here = directory.to_str().expect("a plain path");
    let mut left: Vec<String> = table.lines().filter(|line| line.contains(here)).map(str::to_string).collect();
    let files = std::fs::read_dir(directory).expect("the directory is there");
    left.extend(files.flatten().map(|entry| entry.path().display().to_string()));
    left
}

fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return Some(status.code().unwrap_or(-1));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

#[test]
fn a_crawl_goes_through_four_faults_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = demo(directory.path()).output().expect("the demo starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert!(output.status.success(), "{:#} {said}", report["failures"]);
    assert_eq!(report["kept"], true);
    assert_eq!(report["mount_before"], report["mount_after"]);
    let faults = report["faults"].as_array().expect("a list");
    assert_eq!(faults.len(), 4);
    for fault in faults {
        let call = fault["longest_call_seconds"].as_f64().expect("a number");
        assert!(call < 8.5, "{fault:#}");
    }
    assert!(report["files"].as_array().is_some_and(|files| files.iter().all(|f| f["acknowledged"].as_u64() > Some(0))));
    assert!(report["reader_bytes"].as_u64() > Some(0));
    assert_eq!(left_over(directory.path()), Vec::<String>::new());
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    for after in [Duration::from_millis(300), Duration::from_secs(5)] {
        let mut child = demo(directory.path()).stdout(Stdio::null()).spawn().expect("the demo starts");
        std::thread::sleep(after);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
        let code = wait(&mut child, Duration::from_secs(20));
        if code.is_none() {
            child.kill().expect("it runs");
        }
        assert_eq!(code, Some(130), "after {after:?}");
        assert_eq!(left_over(directory.path()), Vec::<String>::new(), "after {after:?}");
    }
}
