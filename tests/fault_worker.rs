//! The worker across a succession: whoever is paused in an outage stays so when the daemon is killed, and each hook runs
//! once (promise P7).
#![allow(clippy::unwrap_used)]

#[path = "fault_worker/killed.rs"]
mod killed;
mod lab;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;

use lab::{Lab, process, wait};

lab::also_runs_as!(agent_process: lab::agents::main);
lab::also_runs_as!(worker_process: killed::main);

/// Counts the looks at which a file was not there.
struct Guard {
    over: Arc<AtomicBool>,
    missing: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Guard {
    fn of(path: PathBuf) -> Guard {
        let (over, missing) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (told, counted) = (Arc::clone(&over), Arc::clone(&missing));
        let thread = std::thread::spawn(move || {
            while !told.load(SeqCst) {
                counted.fetch_add(usize::from(!path.exists()), SeqCst);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Guard { over, missing, thread }
    }

    fn end(self) -> usize {
        self.over.store(true, SeqCst);
        self.thread.join().unwrap();
        self.missing.load(SeqCst)
    }
}

fn mounted() -> Lab {
    let mut lab = Lab::unmounted();
    let (pause, trace) = (lab.path("pause"), lab.path("trace"));
    let hook = |word: &str| format!("sh:echo {word} >> {}", trace.display());
    let options = format!(
        "deadline=2s,steady=3s,backoff_max=1s,pause_file={},on_outage={},on_recovery={}",
        pause.display(),
        hook("outage"),
        hook("recovery")
    );
    let command = lab.mount_command("-f", &options);
    lab.serve(command);
    lab.wait_state("live");
    lab
}

fn trace(lab: &Lab) -> String {
    std::fs::read_to_string(lab.path("trace")).unwrap_or_default()
}

/// Kills the daemon and waits for its successor.
fn kill(lab: &Lab) {
    let before = lab.status()["pid"].clone();
    process::signal(i32::try_from(before.as_u64().unwrap()).unwrap(), Signal::SIGKILL);
    wait("there is a successor", || {
        let now = lab.status()["pid"].clone();
        now.is_u64() && now != before
    });
}

/// True if the present daemon has told that its outage is old.
fn is_overdue(lab: &Lab) -> bool {
    let status = lab.status();
    let events = status["events"].as_array().cloned().unwrap_or_default();
    events.iter().any(|event| event["event"] == "outage_overdue")
}

/// What the note says.
fn stage(lab: &Lab) -> Option<String> {
    let states = std::fs::read_dir(lab.path("state")).ok()?.flatten();
    let mut notes = states.filter_map(|state| std::fs::read(state.path().join("paused.json")).ok());
    let note: serde_json::Value = serde_json::from_slice(&notes.next()?).ok()?;
    note["stage"].as_str().map(str::to_owned)
}

#[test]
fn a_daemon_killed_before_and_after_the_hooks_pauses_once_and_lets_go_once() {
    let lab = mounted();
    lab.net.cut();
    wait("the outage is known", || !lab.status()["outage"].is_null());
    // Before anybody has been told.
    if trace(&lab).is_empty() {
        kill(&lab);
    }
    wait("the worker is paused", || stage(&lab).as_deref() == Some("paused"));
    assert_eq!(trace(&lab), "outage\n");
    let guard = Guard::of(lab.path("pause"));
    for _ in 0..2 {
        // After it has been told, and in the outage of each successor.
        kill(&lab);
        assert!(lab.status()["worker"]["paused_since"].is_string());
        wait("the successor's outage is old", || is_overdue(&lab));
        assert_eq!((trace(&lab).as_str(), stage(&lab).as_deref()), ("outage\n", Some("paused")));
    }
    lab.net.heal();
    lab.wait_state("live");
    // Recovered and not steady yet.
    kill(&lab);
    lab.wait_state("live");
    let missing = guard.end();
    // It is written down first when somebody is let go.
    if stage(&lab).as_deref() == Some("paused") {
        assert_eq!(missing, 0, "the pause file was gone for a moment");
    }
    wait("the worker is let go", || stage(&lab).is_none());
    assert_eq!(trace(&lab), "outage\nrecovery\n");
    assert!(!lab.path("pause").exists());
    // And nothing more, whoever dies now.
    kill(&lab);
    lab.wait_state("live");
    assert_eq!(trace(&lab), "outage\nrecovery\n");
    assert!(lab.status()["keeper"]["successions_total"].as_u64().unwrap() >= 4);
    lab.umount();
}
