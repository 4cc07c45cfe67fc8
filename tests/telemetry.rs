//! Telemetry as its clients see it: over HTTP, in a textfile, on the control socket. The supervisor is played by the
//! test; gate and backing are real, the latter a fake that hangs on command.

#[path = "telemetry/exposition.rs"]
mod exposition;
#[path = "telemetry/rig.rs"]
mod rig;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant, SystemTime};

use exposition::Page;
use rig::Rig;
use serde_json::json;
use steadfs::config::{CompatConfig, HotPath, MetricsListen};
use steadfs::supervisor::Event;
use steadfs::supervisor::permit::HeldBy;
use steadfs::supervisor::report::{HeldBack, RepairLog};
use steadfs::telemetry::UmountRefused;

/// What contract and issue allow.
const AT_ONCE: Duration = Duration::from_millis(100);

fn page(rig: &Rig) -> Page {
    let (status, body) = rig.get("/metrics");
    assert_eq!(status, 200);
    Page::parse(&body)
}

#[test]
fn metrics_keep_the_rules_of_the_format_in_every_state() {
    let rig = Rig::served();
    rig.read_ok();
    rig.read_error();
    rig.overdue();
    rig.wait(|| page(&rig).value("steadfs_hook_runs_total", &[("hook", "on_outage")]).is_some());
    let early = ["adopting", "reaching", "starting", "restoring"];
    for state in early.iter().chain(&["live", "suspect", "retiring", "waiting", "held", "halted", "stopping"]).copied()
    {
        rig.observed.watch.update(|snapshot| {
            snapshot.state = state;
            snapshot.repairs.insert(("probe_late".into(), "ok".into()), 1);
        });
        let page = page(&rig);
        assert_eq!(page.complaints(), Vec::<String>::new());
        let states: Vec<_> = page.samples("steadfs_state").filter(|sample| sample.value == 1.0).collect();
        assert_eq!(states.len(), 1, "in {state} there must be one state");
        assert_eq!(states[0].labels["state"], state);
        assert!(page.all().all(|sample| sample.labels["overlay"] == rig.mountpoint()), "each series names its overlay");
    }
}

#[test]
fn promtool_has_no_complaints() {
    let promtool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn();
    let mut promtool = promtool.expect("promtool is needed: run scripts/deps, or install Debian's package prometheus");
    let rig = Rig::served();
    rig.read_ok();
    let (_, body) = rig.get("/metrics");
    std::io::Write::write_all(&mut promtool.stdin.take().expect("it is piped"), body.as_bytes()).expect("written");
    assert!(promtool.wait().expect("it ends").success());
}

#[test]
fn metrics_say_what_happened() {
    let rig = Rig::served();
    rig.read_ok();
    rig.read_ok();
    rig.read_error();
    let began = SystemTime::now() - Duration::from_secs(7);
    rig.observed.watch.update(|snapshot| {
        snapshot.state = "waiting";
        snapshot.generation = 4;
        snapshot.outages = 3;
        snapshot.outage_since = Some(began);
        snapshot.outage_from = Some(Instant::now() - Duration::from_secs(7));
        snapshot.outage_total = Duration::from_secs(100);
        snapshot.repairs.insert(("process_exit".into(), "ok".into()), 2);
        snapshot.probes = 50;
        snapshot.probes_failed = 5;
        snapshot.probe_took = Some(Duration::from_millis(20));
    });
    let page = page(&rig);
    let one = |name, labels: &[(&str, &str)]| page.value(name, labels).unwrap_or_else(|| panic!("no {name}"));
    let read = |result| one("steadfs_calls_total", &[("operation", "read"), ("result", result)]);
    assert_eq!((read("ok"), read("error"), read("deadline")), (2.0, 1.0, 0.0));
    assert_eq!(one("steadfs_call_duration_seconds_count", &[("operation", "read")]), 3.0);
    assert_eq!(one("steadfs_call_duration_seconds_bucket", &[("operation", "read"), ("le", "+Inf")]), 3.0);
    assert_eq!(
        (one("steadfs_up", &[]), one("steadfs_generation", &[]), one("steadfs_outages_total", &[])),
        (0., 4., 3.)
    );
    let seconds = one("steadfs_outage_seconds_total", &[]);
    assert!((107.0..130.0).contains(&seconds), "the present outage counts: {seconds}");
    let start = began.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((one("steadfs_outage_start_timestamp_seconds", &[]) - start).abs() < 0.01);
    assert_eq!(one("steadfs_repairs_total", &[("reason", "process_exit"), ("result", "ok")]), 2.0);
    assert_eq!((one("steadfs_probes_total", &[]), one("steadfs_probe_failures_total", &[])), (50.0, 5.0));
    assert_eq!(one("steadfs_last_probe_duration_seconds", &[]), 0.02);
    assert_eq!((one("steadfs_open_files", &[]), one("steadfs_open_directories", &[])), (11.0, 12.0));
    assert_eq!((one("steadfs_log_bytes", &[]), one("steadfs_lost_files_total", &[])), (14.0, 0.0));
    assert_eq!((one("steadfs_cached_inodes", &[]), one("steadfs_worker_paused", &[])), (13.0, 0.0));
    let kept = ["keeper", "succession_possible", "successions_total", "last_succession_timestamp_seconds"];
    let figures = ["last_succession_pause_seconds", "handover_bytes", "handover_limit_bytes"];
    let expected = [1.0, 1.0, 3.0, 9.0, 0.25, 1000.0, 2000.0];
    for (name, expected) in kept.iter().chain(&figures).zip(expected) {
        assert_eq!(page.value(&format!("steadfs_{name}"), &[]), Some(expected), "{name}");
    }
    assert_eq!(one("steadfs_handover_resident_memory_bytes", &[]), 3000.0);
    assert_eq!(one("steadfs_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert!(one("steadfs_resident_memory_bytes", &[]) > 1e6 && one("steadfs_open_descriptors", &[]) > 3.0);
}

#[test]
fn what_holds_a_repair_back_is_a_series_each() {
    let rig = Rig::served();
    let one = |name: &str, labels: &[(&str, &str)]| page(&rig).value(name, labels);
    assert_eq!(one("steadfs_deploy_lock_age_seconds", &[]), Some(-1.0));
    let held = |by| HeldBack { by, until: None, detail: "x".into() };
    rig.observed.watch.update(|snapshot| {
        snapshot.repair_log = RepairLog {
            started_total: 7,
            held: vec![held(HeldBy::DeployLock), held(HeldBy::MinAge)],
            deploy_lock_active: true,
            deploy_lock_age: Some(Duration::from_secs(312)),
            ..RepairLog::default()
        }
    });
    for by in HeldBy::ALL {
        let expected = matches!(by, HeldBy::DeployLock | HeldBy::MinAge);
        let value = one("steadfs_repair_held", &[("by", by.name())]);
        assert_eq!(value, Some(f64::from(u8::from(expected))), "{}", by.name());
    }
    assert_eq!(one("steadfs_repairs_started_total", &[]), Some(7.0));
    assert_eq!(one("steadfs_deploy_lock_active", &[]), Some(1.0));
    assert_eq!(one("steadfs_deploy_lock_age_seconds", &[]), Some(312.0));
    let recovery = rig.ask(&json!({"request": "recover"}));
    let plan = |request| {
        let steps = rig.ask(&request)["steps"].as_array().cloned().unwrap_or_default();
        steps.iter().map(|step| step["step"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    rig.observed.watch.update(|snapshot| snapshot.state = "live");
    assert_eq!(plan(json!({"request": "recover"})), ["probe"]);
    let removal = ["close_gate", "abort", "kill_process_group", "detach"];
    let start = ["override", "look_at_server", "start", "replay", "reopen", "open_gate"];
    assert_eq!(plan(json!({"request": "recover", "force": true})), [&removal[..], &start[..]].concat());
    rig.observed.watch.update(|snapshot| snapshot.state = "held");
    assert_eq!(plan(json!({"request": "recover"})), start);
    assert_eq!((&recovery["held"][1]["by"], &recovery["held"][1]["detail"]), (&json!("min_age"), &json!("x")));
}

#[test]
fn the_manual_names_every_metric_and_no_other() {
    let rig = Rig::served();
    rig.observed.watch.update(|snapshot| _ = snapshot.repairs.insert(("x".into(), "ok".into()), 1));
    rig.overdue();
    let step = [("worker", "crawler"), ("action", "pause"), ("result", "ok")];
    rig.wait(|| page(&rig).value("steadfs_worker_step_total", &step) == Some(1.0));
    assert_eq!(page(&rig).value("steadfs_worker_paused", &[("worker", "crawler")]), Some(1.0));
    let exported: BTreeSet<String> = page(&rig).families().map(String::from).collect();
    let manual = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md"));
    let manual = manual.expect("it is there");
    let words = manual.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: BTreeSet<String> = words.filter(|word| word.starts_with("steadfs_")).map(String::from).collect();
    assert_eq!(exported, named);
}

#[test]
fn each_overlay_of_a_daemon_has_series_of_its_own() {
    let hot = |rig: &Rig, number: usize| rig.observed.config.overlays[number].mountpoint.display().to_string();
    let rig = Rig::new(|config| {
        let second = HotPath { mountpoint: config.home.with_file_name("second"), ..config.overlays[0].clone() };
        config.overlays.push(second);
        config.home = format!("@several-{}", std::process::id()).into();
    });
    let page = page(&rig);
    assert_eq!(page.complaints(), Vec::<String>::new());
    let of = |name: &str| -> Vec<String> {
        // What is told of each worker has a label more.
        let plain = page.samples(name).filter(|sample| !sample.labels.contains_key("worker"));
        plain.map(|sample| sample.labels["overlay"].clone()).collect()
    };
    let both = vec![hot(&rig, 0), hot(&rig, 1)];
    for name in ["overlay_mounted", "open_files", "log_bytes", "lost_files_total"] {
        assert_eq!(of(&format!("steadfs_{name}")), both, "{name}");
    }
    for name in ["up", "generation", "worker_paused", "spool_entries", "log_limit_bytes"] {
        assert_eq!(of(&format!("steadfs_{name}")), [rig.mountpoint()], "{name}");
    }
    let overlays = rig.ask(&json!({"request": "status"}))["overlays"].clone();
    let shown: Vec<_> = overlays
        .as_array()
        .into_iter()
        .flatten()
        .map(|overlay| (&overlay["mountpoint"], &overlay["mounted"]))
        .collect();
    assert_eq!(shown, [(&json!(both[0]), &json!("no")), (&json!(both[1]), &json!("no"))]);
    let (_, html) = rig.get("/");
    assert!(html.contains(&format!("<bdi>{}</bdi>", both[1])) && html.contains("Not mounted: "), "{html}");
}

#[test]
fn health_is_ok_while_calls_succeed_and_names_the_state_otherwise() {
    let rig = Rig::served();
    for (state, expected) in [("live", (200, "ok\n")), ("suspect", (200, "ok\n")), ("waiting", (503, "waiting\n"))] {
        rig.observed.watch.update(|snapshot| snapshot.state = state);
        let (status, body) = rig.get("/healthz");
        assert_eq!((status, body.as_str()), expected);
    }
    assert_eq!(rig.get("/other").0, 404);
}

#[test]
fn http_over_tcp_says_the_same() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let rig = Rig::new(|config| config.telemetry.listen = Some(MetricsListen::Tcp(free)));
    let refused = rig.bind_error(|config| config.telemetry.listen = Some(MetricsListen::Tcp(free)));
    assert!(refused.starts_with(&format!("metrics={free}: ")), "{refused}");
    assert_eq!(rig.get("/metrics").0, 200);
}

#[test]
fn what_cannot_be_bound_is_told_before_anything_is_served_and_leaves_nothing() {
    let rig = Rig::served();
    let (precious, socket) = (rig.path("precious"), rig.path("metrics2.sock"));
    std::fs::write(&precious, "data").expect("written");
    let refused = rig.bind_error(|config| config.telemetry.listen = Some(MetricsListen::Unix(precious.clone())));
    assert!(refused.starts_with(&format!("metrics=unix:{}: ", precious.display())), "{refused}");
    assert_eq!(std::fs::read_to_string(&precious).expect("it is there"), "data", "a file is never taken for a socket");
    let refused = rig.bind_error(|config| config.telemetry.textfile = Some("/no/such".into()));
    assert_eq!(refused, "textfile=/no/such: there is no such directory; make it first");
    // The control socket is in use by the first one: what was bound before it must go again.
    rig.bind_error(|config| config.telemetry.listen = Some(MetricsListen::Unix(socket.clone())));
    assert!(!socket.exists());
    assert_eq!(rig.ask(&json!({"request": "status"}))["reply"], "status", "and the first one goes on");
}

#[test]
fn the_textfile_follows_events_and_goes_at_the_end() {
    let mut rig = Rig::served();
    let textfiles = rig.path("textfiles");
    let names = || -> Vec<_> {
        let entries = std::fs::read_dir(&textfiles).expect("it is there").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let read = |rig: &Rig| {
        let text = std::fs::read_to_string(rig.textfile()).unwrap_or_default();
        Page::parse(&text)
    };
    rig.wait(|| read(&rig).value("steadfs_up", &[]).is_some());
    assert_eq!(rig.textfile().metadata().expect("it is there").permissions().mode() & 0o777, 0o644);
    rig.observed.watch.update(|snapshot| snapshot.state = "live");
    let told = Instant::now();
    rig.observed.watch.publish(Event::Recovered { generation: 1, outage_secs: 1.0 });
    rig.wait(|| read(&rig).value("steadfs_up", &[]) == Some(1.0));
    assert!(told.elapsed() < Duration::from_secs(3), "an event is not kept for the next round");
    assert_eq!(read(&rig).complaints(), Vec::<String>::new());
    rig.end();
    assert_eq!(names(), Vec::<String>::new());
}

/// What is in the field case's state file and metrics now.
fn compat(rig: &Rig) -> (serde_json::Value, Page) {
    let state = std::fs::read_to_string(rig.path("watchdog.json")).unwrap_or_default();
    let metrics = rig.path("textfiles").join("healtharchive_storage_hotpath_auto_recover.prom");
    let metrics = std::fs::read_to_string(metrics).unwrap_or_default();
    (serde_json::from_str(&state).unwrap_or_default(), Page::parse(&metrics))
}

fn with_compat(known: &str) -> Rig {
    Rig::new(|config| {
        let directory = config.home.parent().map(Path::to_owned).expect("it has one");
        let state = directory.join("watchdog.json");
        if !known.is_empty() {
            std::fs::write(&state, known).expect("written");
        }
        config.permit.deploy_lock = Some(directory.join("deploy.lock"));
        config.permit.enable_file = Some(directory.join("enabled"));
        config.telemetry.compat = Some(CompatConfig::Healtharchive { state });
    })
}

#[test]
fn the_field_cases_watchdog_is_played_from_events_and_survives_a_restart() {
    const PREFIX: &str = "healtharchive_storage_hotpath_auto_recover_";
    let mut rig = with_compat("");
    let value = |rig: &Rig, name: &str| compat(rig).1.value(&format!("{PREFIX}{name}"), &[]);
    rig.wait(|| value(&rig, "metrics_ok") == Some(1.0));
    let (state, page) = compat(&rig);
    assert_eq!(page.complaints(), Vec::<String>::new());
    let names: BTreeSet<String> = page.families().map(String::from).collect();
    let expected = [
        "metrics_ok",
        "last_run_timestamp_seconds",
        "last_healthy_timestamp_seconds",
        "enabled",
        "deploy_lock_active",
        "deploy_lock_age_seconds",
        "detected_targets",
        "last_apply_timestamp_seconds",
        "last_apply_ok",
        "apply_total",
        "apply_24h",
        "apply_1h",
    ];
    let mut expected: BTreeSet<String> = expected.iter().map(|name| format!("{PREFIX}{name}")).collect();
    expected.extend(
        ["storagebox_mount_ok", "tiering_hot_path_ok", "tiering_hot_path_errno"]
            .map(|name| format!("healtharchive_{name}")),
    );
    assert_eq!(names, expected);
    let is_plain = |sample: &&exposition::Sample| !sample.name.starts_with(PREFIX) || sample.labels.is_empty();
    assert!(page.all().all(|sample| is_plain(&sample)), "they have no labels");
    // Nothing is mounted in this test: although the directory could be read, its path counts.
    let hot = rig.mountpoint();
    assert_eq!((value(&rig, "detected_targets"), value(&rig, "enabled")), (Some(1.0), Some(1.0)));
    assert_eq!(page.value("healtharchive_tiering_hot_path_ok", &[("hot", &hot)]), Some(0.0));
    assert_eq!(page.value("healtharchive_tiering_hot_path_errno", &[("hot", &hot)]), Some(107.0));
    let observation = &state["observations"][format!("hot:{hot}")];
    assert_eq!((&observation["errno"], &observation["kind"]), (&json!(107), &json!("tiering_hot_path")));
    assert_eq!((value(&rig, "deploy_lock_age_seconds"), value(&rig, "apply_total")), (Some(-1.0), Some(0.0)));
    // An outage that is repaired, and one whose repair fails, while somebody deploys.
    let watch = &rig.observed.watch;
    watch.update(|snapshot| {
        let log = &mut snapshot.repair_log;
        (log.enabled, log.deploy_lock_active, log.deploy_lock_age) = (false, true, Some(Duration::from_secs(5)));
    });
    let began = || Event::OutageBegan { since: SystemTime::now(), reason: "call_error".into(), detail: "EIO".into() };
    for event in [began(), Event::Recovered { generation: 2, outage_secs: 1.0 }, began()] {
        watch.publish(event);
    }
    watch.publish(Event::StartFailed { generation: 3, detail: "refused".into(), halted: true, retry_in_secs: None });
    rig.wait(|| value(&rig, "apply_total") == Some(2.0));
    let figures =
        ["apply_1h", "apply_24h", "last_apply_ok", "deploy_lock_active", "enabled"].map(|name| value(&rig, name));
    assert_eq!(figures, [Some(2.0), Some(2.0), Some(0.0), Some(1.0), Some(0.0)]);
    assert_eq!(value(&rig, "deploy_lock_age_seconds"), Some(5.0));
    let state = compat(&rig).0;
    assert_eq!(
        (&state["last_apply_ok"], &state["last_apply_errors"], &state["last_skip_reason"]),
        (&json!(0), &json!(["refused"]), &json!("deploy_lock"))
    );
    assert!(state["last_apply_utc"].as_str().is_some_and(|text| text.ends_with("+00:00")), "{state}");
    // The next daemon knows what this one knew; only the metrics go with it.
    rig.end();
    assert_eq!(compat(&rig).1.all().count(), 0);
    let known = std::fs::read_to_string(rig.path("watchdog.json")).expect("it stays");
    drop(rig);
    let next = with_compat(&known);
    next.wait(|| value(&next, "apply_total") == Some(2.0));
    assert_eq!(value(&next, "apply_24h"), Some(2.0));
    next.observed.watch.publish(began());
    next.observed.watch.publish(Event::Recovered { generation: 2, outage_secs: 1.0 });
    next.wait(|| value(&next, "apply_total") == Some(3.0) && value(&next, "last_apply_ok") == Some(1.0));
}

#[test]
fn the_field_cases_metrics_go_on_in_an_outage_and_say_if_the_state_cannot_be_written() {
    let rig = with_compat("");
    let run = || compat(&rig).1.value("healtharchive_storage_hotpath_auto_recover_last_run_timestamp_seconds", &[]);
    rig.wait(|| run().is_some());
    rig.freeze();
    rig.submit_read();
    rig.observed.watch.update(|snapshot| snapshot.state = "waiting");
    // Its place is taken by a directory.
    std::fs::remove_file(rig.path("watchdog.json")).expect("removed");
    std::fs::create_dir(rig.path("watchdog.json")).expect("made");
    let before = run();
    rig.wait(|| {
        rig.observed.watch.publish(Event::Notice { detail: "x".into() });
        run() > before
    });
    let page = compat(&rig).1;
    let ok = page.value("healtharchive_storage_hotpath_auto_recover_metrics_ok", &[]);
    assert_eq!((ok, page.value("healtharchive_storagebox_mount_ok", &[])), (Some(0.0), Some(0.0)));
    rig.thaw();
    let refused = rig.bind_error(|config| {
        config.telemetry.compat = Some(CompatConfig::Healtharchive { state: "/no/such/state.json".into() });
    });
    assert_eq!(refused, "compat_state: /no/such: there is no such directory; make it first");
}

#[test]
fn events_are_appended_to_the_journal_file() {
    let rig = Rig::new(|config| config.telemetry.journal = config.home.parent().map(|parent| parent.join("journal")));
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(rig.path("journal")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
    };
    rig.observed.watch.publish(Event::Recovered { generation: 1, outage_secs: 1.5 });
    rig.wait(|| lines().len() == 2);
    assert_eq!((&lines()[0]["event"], &lines()[1]["event"]), (&json!("outage_began"), &json!("recovered")));
    assert_eq!((&lines()[1]["daemon"], &lines()[1]["outage_secs"]), (&json!(rig.mountpoint()), &json!(1.5)));
    assert!(lines()[1]["at"].as_str().is_some_and(|at| humantime::parse_rfc3339(at).is_ok()));
    let refused = rig.bind_error(|config| config.telemetry.journal = Some("/dev".into()));
    assert!(refused.starts_with("journal=/dev: ") && refused.ends_with("; give another path"), "{refused}");
    let refused = rig.bind_error(|config| config.telemetry.journal = Some("/dev/null".into()));
    assert_eq!(refused, "journal=/dev/null: it is no regular file; give another path");
}

#[test]
fn a_disk_that_fills_up_leaves_whole_lines() {
    use steadfs::telemetry::journal::file::JournalFile;
    // Gone with the test's last descriptor on it, however the test ends.
    struct Small(tempfile::TempDir);
    impl Drop for Small {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
    let small = Small(tempfile::tempdir().expect("a directory"));
    let none = None::<&str>;
    nix::mount::mount(none, small.0.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=8k"))
        .expect("mounted");
    let (path, ballast) = (small.0.path().join("journal"), small.0.path().join("ballast"));
    std::fs::write(&ballast, [0; 4096]).expect("one page of two");
    let mut file = JournalFile::new(path.clone(), 1 << 20, 2);
    let long = "x".repeat(1000);
    (0..10).for_each(|_| file.note(SystemTime::now(), "/hot", &Event::Notice { detail: long.clone() }));
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&path).expect("it is there");
        text.lines().map(|line| serde_json::from_str(line).expect("no line is torn")).collect()
    };
    assert_eq!(lines().len(), 3, "what fits into a page");
    std::fs::remove_file(&ballast).expect("removed");
    file.note(SystemTime::now(), "/hot", &Event::Cleared { generation: 9 });
    let kinds: Vec<_> = lines().iter().map(|line| line["event"].clone()).collect();
    assert_eq!(kinds[3..], ["journal_gap", "cleared"]);
    assert_eq!(lines()[3]["lost"], 7);
}

#[test]
fn the_status_answers_at_once_while_everything_is_stuck() {
    let rig = Rig::served();
    rig.freeze();
    for _ in 0..20 {
        rig.submit_read();
    }
    rig.wait(|| rig.observed.gate.load().waiting == 20);
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(|| (0..10).map(|_| ask_status(&rig)).collect())).collect();
        clients
            .into_iter()
            .flat_map(|client: std::thread::ScopedJoinHandle<'_, Vec<_>>| client.join())
            .flatten()
            .collect()
    });
    times.sort();
    // The machine that tests may be busy with something else now and then.
    assert!(times.len() == 160 && times[140] < AT_ONCE && times[159] < Duration::from_secs(2), "{times:?}");
    rig.thaw();
}

fn ask_status(rig: &Rig) -> Duration {
    let begun = Instant::now();
    let reply = rig.ask(&json!({"request": "status"}));
    assert_eq!(reply["calls"]["waiting"], 20);
    begun.elapsed()
}

#[test]
fn the_status_says_what_happened() {
    let rig = Rig::served();
    rig.read_ok();
    let since = SystemTime::now() - Duration::from_secs(9);
    rig.observed.watch.update(|snapshot| {
        (snapshot.state, snapshot.generation, snapshot.outages) = ("waiting", 3, 2);
        (snapshot.why, snapshot.next) = (Some("no route to host".into()), "start generation 4".into());
        (snapshot.outage_since, snapshot.next_at) = (Some(since), Some(since + Duration::from_secs(20)));
        snapshot.repairs.insert(("probe_late".into(), "failed".into()), 2);
    });
    rig.overdue();
    rig.wait(|| rig.ask(&json!({"request": "status"}))["worker"]["hooks"].as_array().is_some_and(|h| !h.is_empty()));
    let status = rig.ask(&json!({"request": "status"}));
    let rfc = |at| humantime::format_rfc3339_millis(at).to_string();
    let expected = json!({
        "reply": "status", "version": 1, "mountpoint": rig.mountpoint(), "source": "box:/jobs", "state": "waiting",
        "why": "no route to host", "next": "start generation 4", "next_at": rfc(since + Duration::from_secs(20)),
        "generation": 3, "outages_total": 2, "pid": std::process::id(), "open_files": 11, "open_dirs": 12, "nodes": 13,
        "repairs": [{"reason": "probe_late", "result": "failed", "count": 2}],
    });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&status[name], value, "{name}");
    }
    assert_eq!(status["outage"]["since"], rfc(since));
    assert!(status["outage"]["secs"].as_f64().is_some_and(|secs| (9.0..40.0).contains(&secs)), "{}", status["outage"]);
    assert_eq!(status["calls"]["ok"], 1);
    assert_eq!(status["worker"]["reason"], "probe_late");
    let events = status["events"].as_array().into_iter().flatten().map(|event| &event["event"]);
    // Those of the worker come when they come.
    let events: Vec<_> = events.filter(|event| **event != "worker_step").collect();
    assert_eq!(events, ["outage_began", "outage_overdue"], "from the first event on, before anything was served");
    assert!(status["events"][0]["at"].as_str().is_some_and(|at| humantime::parse_rfc3339(at).is_ok()));
}

#[test]
fn the_last_two_hundred_events_are_kept() {
    let rig = Rig::served();
    for generation in 0..250 {
        rig.observed.watch.publish(Event::Cleared { generation });
    }
    let last = || rig.ask(&json!({"request": "status"}))["events"].as_array().cloned().unwrap_or_default();
    rig.wait(|| last().last().is_some_and(|event| event["generation"] == 249));
    assert_eq!((last().len(), &last()[0]["generation"]), (200, &json!(50)));
}

#[test]
fn requests_are_carried_out_and_nonsense_is_refused() {
    let rig = Rig::served();
    let counted = || (rig.retries.load(SeqCst), rig.replacements.load(SeqCst));
    assert_eq!(rig.ask(&json!({"request": "recover", "force": true}))["reply"], "recovery");
    assert_eq!(counted(), (0, 0), "a dry run does nothing");
    assert_eq!(rig.ask(&json!({"request": "recover", "apply": true}))["reply"], "recovery");
    assert_eq!(counted(), (1, 0));
    assert_eq!(rig.ask(&json!({"request": "recover", "apply": true, "force": true}))["reply"], "recovery");
    assert_eq!(counted(), (1, 1));
    *rig.stopping.lock().expect("nobody panicked") = Err(UmountRefused::Busy("target is busy".into()));
    assert_eq!(rig.ask(&json!({"request": "umount"})), json!({"reply": "busy", "text": "target is busy"}));
    *rig.stopping.lock().expect("nobody panicked") = Ok(());
    assert_eq!(rig.ask(&json!({"request": "umount", "lazy": true}))["reply"], "done");
    assert_eq!(*rig.lazy.lock().expect("nobody panicked"), [false, true]);
    for nonsense in [json!({"request": "format"}), json!("status"), json!("x".repeat(5000))] {
        assert_eq!(rig.ask(&nonsense)["reply"], "failed", "{nonsense}");
    }
    assert_eq!(rig.ask(&json!({"request": "status"}))["reply"], "status");
}

#[test]
fn an_unmount_is_answered_although_the_daemon_ends_with_it() {
    let mut rig = Rig::served();
    let (begun, go) = rig.hold_umount();
    let socket = rig.control_socket();
    let client = std::thread::spawn(move || rig::ask(&socket, &json!({"request": "umount"})));
    begun.recv_timeout(Duration::from_secs(20)).expect("it is asked for");
    let holder = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        go.send(()).expect("it waits");
    });
    rig.end();
    assert_eq!(client.join().expect("it ends")["reply"], "done");
    holder.join().expect("it ends");
}

#[test]
fn sockets_are_the_owners_and_gone_at_the_end() {
    let mut rig = Rig::served();
    let sockets = [rig.control_socket(), rig.path("metrics.sock")];
    for socket in &sockets {
        assert_eq!(socket.metadata().expect("it is there").permissions().mode() & 0o777, 0o600, "{}", socket.display());
    }
    rig.end();
    for socket in &sockets {
        assert!(!socket.exists(), "{} is left", socket.display());
        assert!(UnixStream::connect(socket).is_err());
    }
}
