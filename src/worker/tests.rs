use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant, SystemTime};

use super::*;
use crate::config::{HookCommand, RecoveryHook, WorkerEntry};

/// A worker whose files lie in a directory of the test's.
struct Rig {
    directory: tempfile::TempDir,
    config: WorkerConfig,
    watch: Watch,
}

fn hook(script: &str) -> Option<HookCommand> {
    Some(HookCommand { argv: vec!["sh".into(), "-c".into(), script.into()] })
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().expect("a directory");
    let trace = directory.path().join("trace").display().to_string();
    let config = WorkerConfig {
        pause_file: Some(directory.path().join("pause")),
        on_outage: hook(&format!("echo outage $STEADFS_STATE $STEADFS_REASON >> {trace}")),
        on_recovery: hook(&format!("echo recovery $STEADFS_STATE $STEADFS_REASON >> {trace}")),
        hook_timeout: Some(Duration::from_secs(20)),
        ..WorkerConfig::default()
    };
    Rig { directory, config, watch: Watch::default() }
}

const BOTH: &str = "outage paused probe_late\nrecovery running probe_late\n";

impl Rig {
    fn note(&self) -> PathBuf {
        self.directory.path().join("state/hot/paused.json")
    }

    fn start(&self) -> Worker {
        Worker::start_with(&self.config, Path::new("/hot"), &self.watch, self.note()).expect("it starts")
    }

    fn overdue(&self) {
        self.watch.publish(Event::OutageOverdue { since: SystemTime::UNIX_EPOCH, reason: "probe_late".into() });
    }

    fn steady(&self) {
        self.watch.publish(Event::Steady { generation: 2 });
    }

    /// What a daemon leaves that is killed while the worker is paused.
    fn killed_while_paused(&self) {
        let watch = Watch::default();
        let worker = Worker::start_with(&self.config, Path::new("/hot"), &watch, self.note()).expect("it starts");
        watch.publish(Event::OutageOverdue { since: SystemTime::UNIX_EPOCH, reason: "probe_late".into() });
        self.wait(|| worker.report().hooks.len() == 1);
        // It is written down after that.
        self.wait(|| Note::new(self.note()).read().is_some_and(|note| note.stage == pause::Stage::Paused));
        // Its thread hears nothing more and does nothing more.
        std::mem::forget(worker);
    }

    fn trace(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("trace")).unwrap_or_default()
    }

    fn flag(&self) -> PathBuf {
        self.directory.path().join("pause")
    }

    fn nothing_is_left(&self) {
        assert!(!self.flag().exists(), "the pause file is left");
        assert!(!self.directory.path().join("state").exists(), "the note or its directory is left");
    }

    fn wait(&self, come: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !come() {
            assert!(Instant::now() < until, "it did not happen; trace: {:?}", self.trace());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_pause_is_written_down_and_a_steady_backing_lets_the_worker_go() {
    let rig = rig();
    let worker = rig.start();
    rig.nothing_is_left();
    rig.overdue();
    rig.wait(|| !rig.trace().is_empty());
    let flag: serde_json::Value =
        serde_json::from_slice(&std::fs::read(rig.flag()).expect("the pause file is there")).expect("it is JSON");
    assert_eq!(flag, serde_json::json!({"since": "1970-01-01T00:00:00Z", "reason": "probe_late", "overlay": "/hot"}));
    let record = Note::new(rig.note()).read().expect("it is written down");
    assert_eq!(record.pause_file, rig.config.pause_file);
    let mode = |path: &Path| path.metadata().expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&rig.note()), mode(&rig.directory.path().join("state"))), (0o600, 0o700));
    assert_eq!(worker.report().reason.as_deref(), Some("probe_late"));
    rig.steady();
    rig.wait(|| worker.report().paused_since.is_none());
    assert_eq!(rig.trace(), BOTH);
    rig.nothing_is_left();
    worker.stop();
    assert_eq!(rig.trace(), BOTH, "it is let go once");
}

#[test]
fn the_note_comes_before_the_flag_and_the_hook_and_goes_after_them() {
    let mut rig = rig();
    let (note, trace) = (rig.note().display().to_string(), rig.directory.path().join("trace").display().to_string());
    let flag = rig.flag().display().to_string();
    let look = format!("test -e {note} && echo noted >> {trace}; test -e {flag} && echo flagged >> {trace}; true");
    (rig.config.on_outage, rig.config.on_recovery) = (hook(&look), hook(&look));
    let worker = rig.start();
    rig.overdue();
    rig.steady();
    rig.wait(|| worker.report().hooks.len() == 2);
    assert_eq!(rig.trace(), "noted\nflagged\nnoted\n");
    worker.stop();
    rig.nothing_is_left();
}

/// A hook that fails until the test makes a file.
fn needs(rig: &Rig, file: &str) -> Option<HookCommand> {
    let path = |name: &str| rig.directory.path().join(name).display().to_string();
    hook(&format!("test -e {} && echo recovery $STEADFS_STATE $STEADFS_REASON >> {}", path(file), path("trace")))
}

#[test]
fn a_worker_that_could_not_be_let_go_stays_paused_and_is_tried_again() {
    let mut rig = rig();
    rig.config.on_recovery = needs(&rig, "mended");
    let worker = rig.start();
    rig.overdue();
    rig.steady();
    rig.wait(|| worker.report().hooks.iter().any(|runs| runs.hook == "on_recovery" && runs.result == "failed"));
    assert_eq!(worker.report().reason.as_deref(), Some("probe_late"), "it is still paused");
    assert!(rig.note().exists(), "a successor would have to let it go");
    std::fs::write(rig.directory.path().join("mended"), "").expect("written");
    rig.wait(|| worker.report().paused_since.is_none());
    assert_eq!(rig.trace(), BOTH);
    rig.nothing_is_left();
    worker.stop();
    assert_eq!(rig.trace(), BOTH, "it is let go once");
}

#[test]
fn a_pause_file_that_cannot_be_removed_keeps_the_note_too() {
    let rig = rig();
    let worker = rig.start();
    rig.overdue();
    rig.wait(|| !rig.trace().is_empty());
    // Not even root can remove it as a file.
    std::fs::remove_file(rig.flag()).expect("it is there");
    std::fs::create_dir(rig.flag()).expect("made");
    rig.steady();
    rig.wait(|| rig.trace() == BOTH);
    worker.stop();
    assert_eq!(worker.report().reason.as_deref(), Some("probe_late"), "it is still paused");
    assert!(rig.note().exists());
    std::fs::remove_dir(rig.flag()).expect("it is there");
    rig.start().stop();
    rig.nothing_is_left();
}

#[test]
fn the_end_tries_once_and_leaves_the_rest_to_a_successor() {
    let mut rig = rig();
    rig.config.on_recovery = needs(&rig, "mended");
    let worker = rig.start();
    rig.overdue();
    rig.wait(|| !rig.trace().is_empty());
    worker.stop();
    assert!(rig.note().exists());
    std::fs::write(rig.directory.path().join("mended"), "").expect("written");
    rig.config = WorkerConfig::default();
    rig.start().stop();
    assert_eq!(rig.trace(), BOTH);
    rig.nothing_is_left();
}

#[test]
fn the_end_lets_a_paused_worker_go() {
    let rig = rig();
    let worker = rig.start();
    rig.overdue();
    rig.wait(|| !rig.trace().is_empty());
    worker.stop();
    assert_eq!(rig.trace(), BOTH);
    rig.nothing_is_left();
}

#[test]
fn nobody_is_paused_or_resumed_if_it_cannot_be_written_down() {
    let rig = rig();
    let worker = rig.start();
    std::fs::write(rig.directory.path().join("state"), "a file in the way").expect("written");
    rig.overdue();
    rig.steady();
    worker.stop();
    assert_eq!(rig.trace(), "");
    assert!(!rig.flag().exists());
}

#[test]
fn a_start_tells_what_would_keep_the_worker_from_being_paused() {
    let mut rig = rig();
    std::fs::write(rig.directory.path().join("state"), "a file in the way").expect("written");
    let refused = |rig: &Rig| {
        let error = Worker::start_with(&rig.config, Path::new("/hot"), &rig.watch, rig.note()).err();
        error.expect("it is refused")
    };
    assert!(refused(&rig).contains("STEADFS_STATE_DIR"), "{}", refused(&rig));
    rig.config.pause_file = Some("/no/such/directory/pause".into());
    assert_eq!(refused(&rig), "pause_file: there is no directory /no/such/directory; make it first");
}

#[test]
fn a_worker_that_a_killed_daemon_left_paused_is_let_go_at_the_first_steady_moment() {
    let rig = rig();
    rig.killed_while_paused();
    let worker = rig.start();
    assert_eq!(worker.report().reason.as_deref(), Some("probe_late"));
    rig.steady();
    rig.wait(|| worker.report().paused_since.is_none());
    assert_eq!(rig.trace(), BOTH);
    rig.nothing_is_left();
    worker.stop();
}

#[test]
fn a_successor_in_the_same_outage_tells_the_worker_nothing_twice() {
    let rig = rig();
    rig.killed_while_paused();
    let worker = Worker::succeed_with(&rig.config, Path::new("/hot"), &rig.watch, rig.note()).expect("it starts");
    assert_eq!(worker.report().reason.as_deref(), Some("probe_late"));
    rig.overdue();
    assert!(rig.flag().exists());
    rig.steady();
    rig.wait(|| worker.report().paused_since.is_none());
    assert_eq!(rig.trace(), BOTH);
    rig.nothing_is_left();
    worker.stop();
}

#[test]
fn a_successor_tells_what_its_predecessor_only_wrote_down() {
    let rig = rig();
    let paused = pause::Paused { since: "then".into(), reason: "probe_late".into(), overlay: "/hot".into() };
    let record = pause::Record { paused, stage: pause::Stage::Pausing, ..pause::Record::default() };
    Note::new(rig.note()).write(&record).expect("written");
    let worker = Worker::succeed_with(&rig.config, Path::new("/hot"), &rig.watch, rig.note()).expect("it starts");
    rig.wait(|| rig.trace() == "outage paused probe_late\n");
    assert!(rig.flag().exists());
    rig.overdue();
    rig.steady();
    rig.wait(|| worker.report().paused_since.is_none());
    assert_eq!(rig.trace(), BOTH);
    rig.nothing_is_left();
    worker.stop();
}

#[test]
fn a_successor_tells_a_worker_that_was_being_let_go_everything_again() {
    let rig = rig();
    let paused = pause::Paused { reason: "probe_late".into(), ..pause::Paused::default() };
    let record = pause::Record { paused, stage: pause::Stage::Resuming, ..pause::Record::default() };
    Note::new(rig.note()).write(&record).expect("written");
    let worker = Worker::succeed_with(&rig.config, Path::new("/hot"), &rig.watch, rig.note()).expect("it starts");
    rig.overdue();
    rig.wait(|| rig.flag().exists() && !rig.trace().is_empty());
    rig.steady();
    rig.wait(|| worker.report().paused_since.is_none());
    assert_eq!(rig.trace(), BOTH);
    worker.stop();
    rig.nothing_is_left();
}

#[test]
fn a_successor_with_other_options_lets_go_what_its_predecessor_paused() {
    let mut rig = rig();
    rig.killed_while_paused();
    rig.config = WorkerConfig::default();
    rig.start().stop();
    assert_eq!(rig.trace(), BOTH);
    rig.nothing_is_left();
}

#[test]
fn who_cleans_up_after_a_killed_daemon_lets_its_worker_go() {
    let mut rig = rig();
    rig.config.on_recovery = needs(&rig, "mended");
    rig.killed_while_paused();
    let error = let_go_by(Path::new("/hot"), rig.note(), Box::new(Real::new())).expect_err("it fails");
    assert!(error.contains("on_recovery failed") && error.contains("steadfs umount /hot"), "{error}");
    assert!(rig.note().exists());
    std::fs::write(rig.directory.path().join("mended"), "").expect("written");
    assert_eq!(let_go_by(Path::new("/hot"), rig.note(), Box::new(Real::new())), Ok(true));
    assert_eq!(rig.trace(), BOTH);
    rig.nothing_is_left();
    assert_eq!(let_go_by(Path::new("/hot"), rig.note(), Box::new(Real::new())), Ok(false));
}

#[test]
fn a_note_that_others_could_have_written_names_no_command_to_run() {
    let rig = rig();
    std::fs::create_dir_all(rig.note().parent().expect("it has one")).expect("made");
    let forged = rig.directory.path().join("forged");
    let trace = rig.directory.path().join("trace");
    let record = serde_json::json!({"since": "", "reason": "", "overlay": "",
        "on_recovery": ["sh", "-c", format!("echo forged >> {}", trace.display())]});
    std::fs::write(&forged, record.to_string()).expect("written");
    std::os::unix::fs::symlink(&forged, rig.note()).expect("linked");
    let config = WorkerConfig::default();
    let worker = Worker::start_with(&config, Path::new("/hot"), &rig.watch, rig.note()).expect("it starts");
    assert_eq!(worker.report().reason.as_deref(), Some("unknown"));
    worker.stop();
    assert_eq!(rig.trace(), "");
    rig.nothing_is_left();
}

#[test]
fn a_hook_that_hangs_is_counted_and_keeps_nobody_from_being_let_go() {
    let mut rig = rig();
    rig.config.on_outage = hook("sleep 1000");
    rig.config.hook_timeout = Some(Duration::from_millis(300));
    let worker = rig.start();
    rig.overdue();
    rig.steady();
    rig.wait(|| worker.report().hooks.len() == 2 && worker.report().paused_since.is_none());
    let runs: Vec<_> = worker.report().hooks.into_iter().map(|run| (run.hook, run.result, run.count)).collect();
    assert_eq!(runs, [("on_outage".into(), "timeout".into(), 1), ("on_recovery".into(), "ok".into(), 1)]);
    assert_eq!(rig.trace(), "recovery running probe_late\n");
    worker.stop();
}

#[test]
fn the_end_does_not_wait_for_a_backlog() {
    let mut rig = rig();
    rig.config.on_outage = hook("sleep 1000");
    let worker = rig.start();
    for _ in 0..5 {
        rig.overdue();
        rig.steady();
    }
    rig.wait(|| rig.flag().exists());
    let begun = Instant::now();
    worker.stop();
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
    assert_eq!(rig.trace(), "recovery running probe_late\n");
    rig.nothing_is_left();
}

#[test]
fn outages_that_begin_while_a_hook_runs_are_told_in_order() {
    let mut rig = rig();
    let trace = rig.directory.path().join("trace").display().to_string();
    rig.config.on_recovery = hook(&format!("sleep 0.3; echo recovery >> {trace}"));
    rig.config.on_outage = hook(&format!("echo outage >> {trace}"));
    let worker = rig.start();
    for _ in 0..2 {
        rig.overdue();
        rig.steady();
    }
    rig.wait(|| rig.trace().lines().count() == 4);
    assert_eq!(rig.trace(), "outage\nrecovery\noutage\nrecovery\n");
    worker.stop();
    rig.nothing_is_left();
}

#[test]
fn without_any_means_nobody_is_paused_and_nothing_is_written() {
    let mut rig = rig();
    rig.config = WorkerConfig { hook_timeout: Some(Duration::from_secs(30)), ..WorkerConfig::default() };
    let worker = rig.start();
    rig.overdue();
    worker.stop();
    assert_eq!(worker.report(), Report::default());
    rig.nothing_is_left();
}

fn flagged(rig: &Rig, name: &str) -> WorkerEntry {
    let file = rig.directory.path().join(name);
    WorkerEntry { name: name.into(), means: Means::Flag { file }, timeout: None, steady: None }
}

fn flags(rig: &Rig) -> String {
    let exists = |name: &&&str| rig.directory.path().join(name).exists();
    ["f1", "f2", "f3"].iter().filter(exists).copied().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_reload_lets_go_who_is_gone_and_pauses_who_is_new_in_the_same_outage() {
    let mut rig = rig();
    rig.config = WorkerConfig { workers: vec![flagged(&rig, "f1"), flagged(&rig, "f2")], ..WorkerConfig::default() };
    let events = rig.watch.subscribe();
    let worker = rig.start();
    rig.overdue();
    rig.wait(|| flags(&rig) == "f1 f2");
    let mut wrong = rig.config.clone();
    wrong.workers.push(flagged(&rig, "f1"));
    assert_eq!(worker.reconfigure(&wrong), Err("worker f1: there are two of that name".into()));
    wrong.workers[2] = flagged(&rig, "no/such/directory/f4");
    assert!(worker.reconfigure(&wrong).is_err_and(|error| error.contains("make it first")));
    rig.config.workers = vec![flagged(&rig, "f2"), flagged(&rig, "f3")];
    assert_eq!(worker.reconfigure(&rig.config), Ok(()));
    rig.wait(|| flags(&rig) == "f2 f3" && worker.report().workers.iter().all(|one| one.paused));
    let names: Vec<_> = worker.report().workers.into_iter().map(|one| (one.name, one.kind)).collect();
    assert_eq!(names, [("f2".into(), "flag".into()), ("f3".into(), "flag".into())]);
    rig.steady();
    rig.wait(|| worker.report().paused_since.is_none());
    assert_eq!(flags(&rig), "");
    rig.nothing_is_left();
    worker.stop();
    let steps = events.try_iter().filter_map(|(_, event)| match event {
        Event::WorkerStep { worker, action, result, .. } => Some(format!("{action} {worker} {result}")),
        _ => None,
    });
    let told = ["pause f1", "pause f2", "resume f1", "pause f3", "resume f3", "resume f2"];
    assert_eq!(steps.collect::<Vec<_>>(), told.map(|step| format!("{step} ok")));
}

#[test]
fn workers_that_come_with_a_reload_are_paused_in_an_outage_in_which_nobody_was() {
    let mut rig = rig();
    rig.config = WorkerConfig::default();
    let worker = rig.start();
    rig.overdue();
    rig.config.workers = vec![flagged(&rig, "f1")];
    worker.reconfigure(&rig.config).expect("nothing is wrong with it");
    rig.wait(|| flags(&rig) == "f1");
    // And none are left when they go with one.
    worker.reconfigure(&WorkerConfig::default()).expect("nothing is wrong with it");
    rig.wait(|| flags(&rig).is_empty());
    worker.stop();
    rig.nothing_is_left();
}

#[test]
fn a_longer_steady_time_is_waited_for_and_hooks_follow_when_everybody_is_let_go() {
    let mut rig = rig();
    let command =
        |word: &str| hook(&format!("echo {word} $STEADFS_WORKER >> {}/trace", rig.directory.path().display()));
    let means = || Means::Command {
        pause: command("pause").expect("a command"),
        resume: command("resume").expect("a command"),
    };
    let long = Duration::from_millis(1500);
    let entry = |name: &str, steady| WorkerEntry { name: name.into(), means: means(), timeout: None, steady };
    let after = RecoveryHook { name: "replay".into(), command: command("after").expect("a command"), timeout: None };
    rig.config = WorkerConfig {
        workers: vec![entry("quick", None), entry("slow", Some(long))],
        after_recovery: vec![after],
        ..WorkerConfig::default()
    };
    let worker = rig.start();
    rig.overdue();
    rig.wait(|| rig.trace().lines().count() == 2);
    let recovered = Instant::now();
    rig.watch.publish(Event::Recovered { generation: 2, outage_secs: 1.0 });
    rig.steady();
    rig.wait(|| worker.report().hooks.len() == 1 && !rig.note().exists());
    assert!(recovered.elapsed() >= long);
    // By the order in which they were configured it would have been the other way round.
    assert_eq!(rig.trace(), "pause quick\npause slow\nresume quick\nresume slow\nafter\n");
    let report = worker.report();
    assert_eq!((report.hooks[0].hook.as_str(), report.hooks[0].result.as_str()), ("after_recovery:replay", "ok"));
    worker.stop();
    rig.nothing_is_left();
}

#[test]
fn a_note_of_an_earlier_version_is_understood() {
    let rig = rig();
    rig.killed_while_paused();
    let text = std::fs::read(rig.note()).expect("it is there");
    let mut note: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
    for newer in ["pair", "workers", "after"] {
        note.as_object_mut().expect("an object").remove(newer).expect("it was written");
    }
    std::fs::write(rig.note(), note.to_string()).expect("written");
    let worker = Worker::succeed_with(&rig.config, Path::new("/hot"), &rig.watch, rig.note()).expect("it starts");
    rig.overdue();
    rig.steady();
    rig.wait(|| worker.report().paused_since.is_none());
    assert_eq!(rig.trace(), BOTH);
    worker.stop();
    rig.nothing_is_left();
}
