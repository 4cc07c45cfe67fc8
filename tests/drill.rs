//! `steadfs drill` from outside: each fault is mended and loses nothing, production stays as it is, and nothing is left.

mod lab;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use lab::Lab;

/// A place of its own for canaries, and directories in which there is no production.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().expect("a directory"));
        std::fs::create_dir(place.temp()).expect("made");
        place
    }

    fn temp(&self) -> std::path::PathBuf {
        self.0.path().join("temp")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
        let own = |name: &str| self.0.path().join(name);
        command.arg("drill").args(arguments).env("TMPDIR", self.temp()).stdin(Stdio::null());
        command.env("STEADFS_RUNTIME_DIR", own("run")).env("STEADFS_STATE_DIR", own("state"));
        command
    }

    fn drill(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("it runs")
    }

    /// Mounts and files of canaries that are left.
    fn left(&self) -> Vec<String> {
        left(&self.temp())
    }
}

fn left(temp: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let here = temp.to_str().expect("plain");
    let mut left: Vec<String> = table.lines().filter(|line| line.contains(here)).map(str::to_owned).collect();
    let files = std::fs::read_dir(temp).expect("there").flatten();
    left.extend(files.map(|entry| entry.path().display().to_string()));
    let processes = lab::process::mentioning(here);
    left.extend(processes.iter().map(|pid| format!("process {pid}")));
    left
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn each_fault_is_mended_and_loses_nothing() {
    let place = Place::new();
    for drill in ["killed", "frozen", "link", "daemon"] {
        let output = place.drill(&[drill, "--apply", "--json"]);
        let report = report(&output);
        assert_eq!((output.status.code(), &report["ok"]), (Some(0), &true.into()), "{report:#}");
        assert_eq!(
            (&report["drill"], &report["applied"], &report["bytes_lost"]),
            (&drill.into(), &true.into(), &0.into())
        );
        assert!(report["acknowledged_bytes"].as_u64() > Some(0), "{report:#}");
        assert_eq!(report["errors"], serde_json::json!({}), "{report:#}");
        let secs = |name: &str| report[name].as_f64().unwrap_or(-1.0);
        // Far more than it takes, on a machine that does other things as well.
        assert!((0.0..20.0).contains(&secs("repaired_secs")), "{report:#}");
        assert!(drill == "daemon" || (0.0..15.0).contains(&secs("detected_secs")), "{report:#}");
        assert_eq!(place.left(), Vec::<String>::new(), "{drill}");
        eprintln!(
            "{drill}: detected {:.2} s, repaired {:.2} s, stall {:.2} s",
            secs("detected_secs"),
            secs("repaired_secs"),
            secs("longest_stall_secs")
        );
    }
}

const RULES: &str = "groups:\n- name: g\n  rules:\n  - alert: Down\n    expr: steadfs_up == 0\n    for: 10m\n  - alert: Stale\n    \
                     expr: time() - steadfs_metrics_timestamp_seconds > 120 or absent(steadfs_up)\n";

#[test]
fn the_alert_path_is_tested_end_to_end() {
    let place = Place::new();
    let rules = place.0.path().join("rules.yml");
    std::fs::write(&rules, RULES).expect("written");
    let output = place.drill(&["alert", "--apply", "--json", "--alerts", rules.to_str().expect("plain")]);
    let report = report(&output);
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &true.into()), "{report:#}");
    let alert = &report["alert"];
    assert!(alert["metrics_secs"].as_f64().is_some() && alert["textfile_secs"].as_f64().is_some(), "{report:#}");
    assert_eq!(alert["rules"], serde_json::json!({"healthy": [], "outage": ["Down"]}), "{report:#}");
    assert!(report["errors"].as_object().is_some_and(|errors| !errors.is_empty()), "{report:#}");
    assert_eq!(place.left(), Vec::<String>::new());
}

#[test]
fn a_drill_that_fails_says_so_and_leaves_nothing() {
    let place = Place::new();
    let rules = place.0.path().join("rules.yml");
    std::fs::write(&rules, RULES.replace("steadfs_up == 0", "steadfs_up == 7")).expect("written");
    let output = place.drill(&["alert", "--apply", "--json", "--alerts", rules.to_str().expect("plain")]);
    let report = report(&output);
    assert_eq!((output.status.code(), &report["ok"]), (Some(1), &false.into()), "{report:#}");
    assert!(report["failures"].to_string().contains("no alert would fire"), "{report:#}");
    assert_eq!(place.left(), Vec::<String>::new());
}

#[test]
fn a_dry_run_does_nothing_and_a_wrong_name_is_refused() {
    let place = Place::new();
    for drill in ["killed", "frozen", "link", "daemon", "alert"] {
        let output = place.drill(&[drill]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("dry run") && said.contains("--apply"), "{output:?}");
        assert_eq!(report(&place.drill(&[drill, "--json"]))["applied"], false);
    }
    let list = place.drill(&["list"]);
    assert_eq!(String::from_utf8_lossy(&list.stdout).lines().count(), 5, "{list:?}");
    assert_eq!(place.drill(&["no-such-drill", "--apply"]).status.code(), Some(1));
    assert_eq!(place.left(), Vec::<String>::new());
    assert!(!place.0.path().join("run").exists() && !place.0.path().join("state").exists());
}

/// All but doubts: on a busy machine a slow answer raises one, and the next one settles it.
fn events(status: &Value) -> Vec<Value> {
    let mut events = status["events"].as_array().cloned().unwrap_or_default();
    events.retain(|event| event["event"] != "evidence" && event["event"] != "cleared");
    events
}

#[test]
fn production_has_the_same_status_and_journal_before_and_after() {
    let lab = Lab::new("");
    std::fs::write(lab.hot.join("file"), "x").expect("written");
    let temp = lab.path("temp");
    std::fs::create_dir(&temp).expect("made");
    // The last event of a start.
    lab::wait("it is steady", || events(&lab.status()).iter().any(|event| event["event"] == "steady"));
    let mark = |status: &Value| {
        let fields = ["pid", "generation", "outages_total", "repairs", "worker", "upgrade", "keeper"];
        let mut marks = fields.map(|field| status[field].clone());
        // What it takes of memory changes with nobody's doing.
        for bytes in ["memory_bytes", "resident_bytes"] {
            marks[6][bytes] = Value::Null;
        }
        (marks, events(status))
    };
    let (before, mount) = (lab.status(), lab::mount_of(&lab.hot));
    for arguments in [vec!["killed"], vec!["killed", "--apply"], vec!["daemon", "--apply"]] {
        let mut command = lab.steadfs(&["drill", "--json"]);
        let output = command.args(&arguments).arg(&lab.hot).env("TMPDIR", &temp).output().expect("it runs");
        let report = report(&output);
        assert!(output.status.success(), "{report:#}");
        let production = &report["production"][0];
        assert_eq!(production["name"], lab.hot.to_str().expect("plain"), "{report:#}");
        if arguments.len() > 1 {
            assert_eq!(production["unchanged"], true, "{report:#}");
        }
        assert_eq!((mark(&lab.status()), lab::mount_of(&lab.hot)), (mark(&before), mount.clone()), "{arguments:?}");
        assert_eq!(left(&temp), Vec::<String>::new());
    }
    assert_eq!(std::fs::read(lab.hot.join("file")).expect("read"), b"x");
    lab.umount();
}

#[test]
fn an_interrupted_drill_leaves_nothing() {
    let place = Place::new();
    let here = place.temp().to_str().expect("plain").to_owned();
    let canary = || place.temp().read_dir().ok()?.flatten().next().map(|entry| entry.path());
    let mounted = || std::fs::read_to_string("/proc/self/mountinfo").expect("readable").contains(&here);
    let held = || canary().is_some_and(|canary| canary.join("refuse").exists());
    let moments: [(&str, &dyn Fn() -> bool); 3] =
        [("begun", &|| canary().is_some()), ("mounted", &mounted), ("held in an outage", &held)];
    for (moment, reached) in moments {
        let mut child =
            place.command(&["alert", "--apply"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        lab::wait(moment, reached);
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("it runs");
        let until = Instant::now() + Duration::from_secs(40);
        let code = loop {
            if let Some(status) = child.try_wait().expect("ours") {
                break status.code();
            }
            if Instant::now() >= until {
                child.kill().expect("it runs");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(code, Some(130), "{moment}");
        assert_eq!(place.left(), Vec::<String>::new(), "{moment}");
    }
}
