//! docs/monitoring/ against what is exported: rules and dashboard ask for nothing that is not there, each rule fires when it
//! should and not otherwise, and so do the field case's own rules over the metrics that are written for it.

#[allow(dead_code)]
#[path = "telemetry/exposition.rs"]
mod exposition;
#[path = "monitoring/recorded.rs"]
mod recorded;
#[allow(dead_code)]
#[path = "telemetry/rig.rs"]
mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use exposition::Page;
use recorded::{Minute, record};
use rig::Rig;
use serde_json::Value;
use steadfs::supervisor::Event;

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().expect("promtool is needed: run scripts/deps, or install Debian's package prometheus");
    std::io::Write::write_all(&mut child.stdin.take().expect("it is piped"), input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), said)
}

/// A page on which every family has something to say.
fn full_page() -> String {
    let rig = Rig::served();
    rig.read_ok();
    rig.observed.watch.update(|snapshot| _ = snapshot.repairs.insert(("probe_late".into(), "ok".into()), 1));
    rig.overdue();
    rig.wait(|| rig.get("/metrics").1.contains("steadfs_hook_runs_total"));
    rig.get("/metrics").1
}

/// Every word in `text` that begins as names of metrics do.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("steadfs_")).map(String::from).collect()
}

/// The rules' names, in order, with the text of each.
fn rules() -> Vec<(String, String)> {
    let text = read(&docs("alerts.yml"));
    let mut parts = text.split("- alert: ");
    parts.next();
    parts.map(|part| (part.lines().next().unwrap_or_default().trim().to_owned(), part.to_owned())).collect()
}

#[test]
fn promtool_has_no_complaints() {
    let rules = docs("alerts.yml");
    let (good, said) = promtool(&["check", "rules", &rules.display().to_string()], "");
    assert!(good && said.contains("SUCCESS"), "{said}");
    let (good, said) = promtool(&["check", "metrics"], &full_page());
    assert!(good && said.is_empty(), "{said}");
}

#[test]
fn every_family_has_help_and_type_and_what_is_asked_for_is_exported() {
    let text = full_page();
    let page = Page::parse(&text);
    assert_eq!(page.complaints(), Vec::<String>::new());
    let samples: BTreeSet<String> = page.all().map(|sample| sample.name.clone()).collect();
    let families: BTreeSet<String> = page.families().map(String::from).collect();
    for name in ["alerts.yml", "alerts_test.yml", "dashboard.json"] {
        let asked = names(&read(&docs(name)));
        assert!(asked.len() > 10, "{name}: {asked:?}");
        let missing: Vec<_> =
            asked.iter().filter(|name| !samples.contains(*name) && !families.contains(*name)).collect();
        assert!(missing.is_empty(), "{name} asks for {missing:?}");
    }
}

#[test]
fn every_rule_tells_what_to_do() {
    let rules = rules();
    assert!(rules.len() > 15, "{}", rules.len());
    for (name, text) in rules {
        for field in ["expr: ", "severity: ", "summary: ", "description: ", "action: "] {
            assert!(text.contains(field), "{name} has no {field}");
        }
    }
}

#[test]
fn every_rule_fires_when_it_should_and_not_for_a_mount_that_is_well() {
    let tests = docs("alerts_test.yml");
    let (good, said) = promtool(&["test", "rules", &tests.display().to_string()], "");
    assert!(good && said.contains("SUCCESS"), "{said}");
    let text = read(&tests);
    let mut cases = text.split("\n  - name: ");
    cases.next();
    let healthy = cases.next().expect("the first case is that of a mount that is well");
    let troubles: Vec<&str> = cases.collect();
    assert!(!healthy.contains("exp_alerts"));
    for (name, _) in rules() {
        assert!(healthy.contains(&format!("alertname: {name}}}")), "{name} is not tried with a mount that is well");
        let fires = |case: &&&str| {
            case.contains(&format!("alertname: {name}\n        exp_alerts:\n"))
                && case.contains(&format!("alertname: {name}}}"))
        };
        assert!(troubles.iter().any(|case| fires(&case)), "{name}: no case in which it fires late enough");
    }
}

#[test]
fn a_rule_that_is_broken_is_noticed() {
    let directory = tempfile::tempdir().expect("a directory");
    let rules = read(&docs("alerts.yml")).replace("expr: steadfs_up == 0\n", "expr: steadfs_up == 1\n");
    std::fs::write(directory.path().join("alerts.yml"), rules).expect("written");
    let tests = directory.path().join("alerts_test.yml");
    std::fs::copy(docs("alerts_test.yml"), &tests).expect("copied");
    let (good, said) = promtool(&["test", "rules", &tests.display().to_string()], "");
    assert!(!good && said.contains("SteadfsOutage"), "{said}");
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(&read(&docs("dashboard.json"))).expect("JSON");
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
    let variables: Vec<_> = dashboard["templating"]["list"].as_array().into_iter().flatten().collect();
    assert_eq!(variables.iter().map(|variable| &variable["name"]).collect::<Vec<_>>(), ["datasource", "overlay"]);
    let panels: Vec<_> = dashboard["panels"].as_array().into_iter().flatten().collect();
    let mut ids = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    let mut asked = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in &panels {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
        kinds.insert(panel["type"].as_str().unwrap_or_default());
        let place = ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().expect("a place"));
        assert!(place[0] + place[2] <= 24, "{panel}");
        for cell in (place[0]..place[0] + place[2]).flat_map(|x| (place[1]..place[1] + place[3]).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{} lies on another one", panel["title"]);
        }
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty() && panel["datasource"]["uid"] == "${datasource}", "{panel}");
        for target in targets {
            let expression = target["expr"].as_str().expect("an expression");
            assert!(expression.contains(r#"{overlay=~"$overlay""#), "{expression} is of all overlays");
            asked.extend(names(expression));
        }
    }
    for kind in ["state-timeline", "heatmap", "timeseries", "stat"] {
        assert!(kinds.contains(kind), "there is no {kind}");
    }
    for name in [
        "state",
        "outages_total",
        "call_duration_seconds_bucket",
        "calls_total",
        "deadline_hits_total",
        "in_flight_bytes",
        "log_bytes",
        "worker_paused",
        "keeper",
        "repair_held",
    ] {
        assert!(asked.contains(&format!("steadfs_{name}")), "nothing shows {name}");
    }
}

#[test]
fn promtool_understands_what_the_dashboard_asks() {
    let dashboard: Value = serde_json::from_str(&read(&docs("dashboard.json"))).expect("JSON");
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (number, target) in targets.enumerate() {
        let expression = target["expr"].as_str().unwrap_or_default();
        let expression = expression.replace("$__rate_interval", "5m").replace("$overlay", ".*");
        rules += &format!("      - {{record: 'dashboard:{number}', expr: '{expression}'}}\n");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rules.yml");
    std::fs::write(&path, rules).expect("written");
    let (good, said) = promtool(&["check", "rules", &path.display().to_string()], "");
    assert!(good, "{said}");
}

/// Runs the field case's rules over recorded series; a case is an alert, a minute, and whether it fires then.
fn field_case(series: &BTreeMap<String, String>, cases: &[(&str, u64, bool)]) {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/monitoring/healtharchive_alerts.yml");
    let mut text = format!("rule_files: ['{}']\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n", rules.display());
    text += "    input_series:\n";
    for (name, values) in series {
        text += &format!("      - {{series: '{name}', values: '{values}'}}\n");
    }
    text += "    alert_rule_test:\n";
    for (name, minute, fires) in cases {
        let severity = if name.ends_with("Persistent") { "warning" } else { "critical" };
        let alerts = if *fires { format!("[{{exp_labels: {{severity: {severity}}}}}]") } else { "[]".into() };
        text += &format!("      - {{eval_time: {minute}m, alertname: {name}, exp_alerts: {alerts}}}\n");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("test.yml");
    std::fs::write(&path, &text).expect("written");
    let (good, said) = promtool(&["test", "rules", &path.display().to_string()], "");
    assert!(good && said.contains("SUCCESS"), "{said}");
}

const STALE: &str = "HealthArchiveStorageHotpathStaleUnrecovered";
const FAILED: &str = "HealthArchiveStorageHotpathApplyFailedPersistent";

fn began() -> Event {
    Event::OutageBegan { since: SystemTime::UNIX_EPOCH, reason: "probe_late".into(), detail: String::new() }
}

fn failed() -> Event {
    Event::StartFailed { generation: 2, detail: "no route to host".into(), halted: false, retry_in_secs: Some(30.0) }
}

fn recovered() -> Event {
    Event::Recovered { generation: 3, outage_secs: 60.0 }
}

#[test]
fn the_field_cases_alerts_are_silent_while_all_is_well() {
    // A short outage each half hour: repaired, and nobody is to be woken.
    let series = record(180, |minute| match minute % 30 {
        10 => Minute { state: Some("starting"), events: vec![began()], ..Minute::default() },
        11 => Minute { events: vec![recovered()], ..Minute::default() },
        _ => Minute::default(),
    });
    let hour = "healtharchive_storage_hotpath_auto_recover_apply_1h{}";
    assert!(series[hour].ends_with(" 2 2 2"), "{}", series[hour]);
    let cases: Vec<_> =
        (5..180).step_by(12).flat_map(|minute| [(STALE, minute, false), (FAILED, minute, false)]).collect();
    field_case(&series, &cases);
}

#[test]
fn the_field_cases_alert_fires_in_an_outage_of_twenty_minutes() {
    let series = record(60, |minute| match minute {
        10 => Minute { state: Some("starting"), events: vec![began(), failed()], ..Minute::default() },
        11..30 => Minute { state: Some("waiting"), events: vec![failed()], ..Minute::default() },
        30 => Minute { events: vec![recovered()], ..Minute::default() },
        _ => Minute::default(),
    });
    let of = |name: &str| series[name].split(' ').map(String::from).collect::<Vec<_>>();
    let run = of("healtharchive_storage_hotpath_auto_recover_last_run_timestamp_seconds{}");
    assert!(run.iter().enumerate().all(|(minute, at)| *at == (minute * 60).to_string()), "refreshed in the outage too");
    assert_eq!(
        of("healtharchive_storage_hotpath_auto_recover_last_healthy_timestamp_seconds{}")[25],
        (9 * 60).to_string()
    );
    assert_eq!(of("healtharchive_tiering_hot_path_errno{hot=\"/srv/jobs/hc\"}")[9..12], ["-1", "110", "107"]);
    assert_eq!(of("healtharchive_storagebox_mount_ok{}")[9..11], ["1", "0"]);
    field_case(
        &series,
        &[
            (STALE, 9, false),
            (STALE, 19, false),
            (STALE, 21, true),
            (STALE, 29, true),
            (STALE, 31, false),
            (FAILED, 59, false),
        ],
    );
}

#[test]
fn the_field_cases_alert_fires_when_a_mount_has_gone() {
    let series = record(40, |minute| Minute { unmounted: minute >= 10, ..Minute::default() });
    field_case(&series, &[(STALE, 9, false), (STALE, 19, false), (STALE, 21, true), (STALE, 39, true)]);
}

#[test]
fn the_field_cases_alert_fires_a_day_after_a_repair_that_failed() {
    let day = 24 * 60;
    let series = record(day + 120, |minute| match minute {
        5 => Minute { state: Some("starting"), events: vec![began(), failed()], ..Minute::default() },
        // However often it is tried meanwhile.
        6.. => Minute { state: Some("waiting"), events: vec![failed()], ..Minute::default() },
        _ => Minute::default(),
    });
    let cases = [
        (FAILED, 60, false),
        (FAILED, day + 5, false),
        (FAILED, day + 34, false),
        (FAILED, day + 37, true),
        (STALE, day, true),
    ];
    field_case(&series, &cases);
    // One that succeeds on the last day ends it.
    let series = record(day + 120, |minute| match minute {
        5 => Minute { state: Some("starting"), events: vec![began(), failed()], ..Minute::default() },
        6..1000 => Minute { state: Some("waiting"), events: vec![failed()], ..Minute::default() },
        1000 => Minute { events: vec![recovered()], ..Minute::default() },
        _ => Minute::default(),
    });
    field_case(&series, &[(FAILED, 999, false), (FAILED, day + 100, false), (STALE, day, false)]);
}
