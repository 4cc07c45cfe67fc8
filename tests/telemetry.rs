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
use steadfs::config::MetricsListen;
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
    let events: Vec<_> = status["events"].as_array().into_iter().flatten().map(|event| &event["event"]).collect();
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
