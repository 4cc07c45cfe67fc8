use super::*;
use crate::config::HookCommand;

/// A worker whose files lie in a directory of the test's.
struct Rig {
    directory: tempfile::TempDir,
    config: WorkerConfig,
    watch: Watch,
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().expect("a directory");
    let trace = directory.path().join("trace").display().to_string();
    let hook =
        |word: &str| Some(HookCommand { argv: vec!["sh".into(), "-c".into(), format!("echo {word} >> {trace}")] });
    let config = WorkerConfig {
        pause_file: Some(directory.path().join("pause")),
        on_outage: hook("outage"),
        on_recovery: hook("recovery"),
        hook_timeout: None,
    };
    Rig { directory, config, watch: Watch::default() }
}

impl Rig {
    fn hand(&self) -> Hand {
        Hand {
            config: self.config.clone(),
            overlay: "/hot".into(),
            note: Note::new(&self.directory.path().join("state/hot/paused.json"), self.config.pause_file.clone()),
            report: Arc::default(),
        }
    }

    fn trace(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("trace")).unwrap_or_default()
    }
}

#[test]
fn a_pause_is_written_down_and_a_resume_leaves_nothing() {
    let rig = rig();
    let mut hand = rig.hand();
    hand.carry_out(Order::Pause { since: SystemTime::UNIX_EPOCH, reason: "probe_late".into() });
    let flag = std::fs::read_to_string(rig.directory.path().join("pause")).expect("the pause file is there");
    let flag: serde_json::Value = serde_json::from_str(&flag).expect("it is JSON");
    assert_eq!(
        (&flag["since"], &flag["reason"], &flag["overlay"]),
        (&"1970-01-01T00:00:00Z".into(), &"probe_late".into(), &"/hot".into())
    );
    assert!(hand.note.read().is_some());
    assert_eq!(hand.report.lock().reason.as_deref(), Some("probe_late"));
    hand.carry_out(Order::Resume);
    assert_eq!(rig.trace(), "outage\nrecovery\n");
    assert!(!rig.directory.path().join("pause").exists() && !rig.directory.path().join("state").exists());
    assert_eq!(hand.report.lock().paused_since, None);
}

#[test]
fn nobody_is_paused_if_it_cannot_be_written_down() {
    let rig = rig();
    std::fs::write(rig.directory.path().join("state"), "a file in the way").expect("written");
    rig.hand().carry_out(Order::Pause { since: SystemTime::UNIX_EPOCH, reason: "x".into() });
    assert_eq!(rig.trace(), "");
    assert!(!rig.directory.path().join("pause").exists());
}

#[test]
fn a_worker_that_a_killed_daemon_left_paused_is_let_go() {
    let rig = rig();
    rig.hand().carry_out(Order::Pause { since: SystemTime::UNIX_EPOCH, reason: "x".into() });
    // The successor finds the note and resumes at its end at the latest.
    let mut hand = rig.hand();
    let mut policy = Policy::begin(hand.note.read().is_some());
    hand.carry_out(policy.stop());
    assert_eq!(rig.trace(), "outage\nrecovery\n");
    assert!(hand.note.read().is_none());
}

#[test]
fn a_worker_follows_the_events_and_ends() {
    let rig = rig();
    let config = WorkerConfig { pause_file: None, on_outage: None, on_recovery: None, hook_timeout: None };
    let worker = Worker::start(&config, rig.directory.path(), &rig.watch).expect("it starts");
    rig.watch.publish(Event::OutageOverdue { since: SystemTime::now(), reason: "x".into() });
    worker.stop();
    assert_eq!(worker.report(), Report::default(), "without any means nobody is paused");
}
