//! Workers that are units of a real systemd, paused by the hardened unit of steadfs: stopped, frozen, or their control group
//! frozen; and let go again, whatever becomes of steadfs meanwhile (promise P7).

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::{NO_TIMEOUT, UNIT, is_mounted, make_install, write_drop_in, write_script};
use crate::lab::boot::Machine;

/// How long the store must have worked before anybody is let go.
const STEADY: Duration = Duration::from_secs(2);

/// `idle` does not run, and `foreign` has been frozen by somebody else.
const CONFIG: &str = r#"
name = "box"
source = "box.example.org:/srv/store"

[sshfs]
ssh_command = "/etc/steadfs/server"

[calls]
deadline = "2s"

[repair]
backoff_max = "1s"
steady = "2s"

[telemetry]
metrics = "127.0.0.1:9836"
journal = "/var/log/steadfs/box.jsonl"

[[overlay]]
mountpoint = "/srv/jobs/alpha"
path = "alpha"

[[worker]]
name = "plain"
kind = "unit"
unit = "plain.service"

[[worker]]
name = "dependent"
kind = "unit"
unit = "dependent.service"

[[worker]]
name = "idle"
kind = "unit"
unit = "idle.service"

[[worker]]
name = "frozen"
kind = "unit"
unit = "frozen.service"
by = "freeze"

[[worker]]
name = "foreign"
kind = "unit"
unit = "foreign.service"
by = "freeze"

[[worker]]
name = "stuck"
kind = "unit"
unit = "stuck.service"
by = "freeze"
timeout = "4s"

[[worker]]
name = "group"
kind = "cgroup"
path = "/sys/fs/cgroup/system.slice/group.service"

[[after_recovery]]
name = "replay"
command = "systemctl try-restart replay.service"

[[after_recovery]]
name = "broken"
command = "sh:echo broken >> /run/broken; exit 3"
"#;

/// A server that is refused while a file is there.
const SERVER: &str = "[ ! -e /run/refused ] || exit 1
echo $$ > /run/server.pid
exec /usr/lib/openssh/sftp-server";

/// Another store, of an sshfs that is not steadfs's.
const OTHER_SERVER: &str = "echo $$ > /run/other.pid
exec /usr/lib/openssh/sftp-server";

const OTHER: &str = "[Service]
ExecStart=/usr/bin/sshfs -f -o ssh_command=/etc/steadfs/other-server other.example.org:/srv/store /mnt
";

/// Runs until it is stopped, and says in files how often it was started and that it still runs.
const BEATING: &str = "echo >> /run/NAME.starts; while :; do echo >> /run/NAME.beats; sleep 0.05; done";

fn write_unit(machine: &Machine, name: &str, script: &str) {
    let script = script.replace("NAME", name);
    // Nobody but who stopped it may start it again.
    let unit = format!("[Service]\nRestart=always\nExecStart=/bin/sh -c '{script}'\n");
    machine.write(&format!("etc/systemd/system/{name}.service"), &unit);
}

fn install(machine: &Machine) {
    make_install(machine);
    machine.write("etc/steadfs/box.toml", CONFIG);
    write_script(machine, "etc/steadfs/server", SERVER);
    write_script(machine, "etc/steadfs/other-server", OTHER_SERVER);
    machine.write("etc/systemd/system/other.service", OTHER);
    for name in ["plain", "dependent", "idle", "frozen", "foreign", "group", "replay"] {
        write_unit(machine, name, BEATING);
    }
    write_unit(machine, "stuck", &format!("cat /mnt/file & {BEATING}"));
    // The drop-in must not restart for ever where there is no overlay.
    write_drop_in(machine, "dependent");
    machine.write("etc/systemd/system/dependent.service.d/once.conf", "[Service]\nRestart=no\n");
    fs::create_dir_all(machine.disk("srv/jobs/alpha")).unwrap();
    fs::create_dir(machine.store("alpha")).unwrap();
    fs::write(machine.store("file"), "text\n").unwrap();
}

fn shell(machine: &Machine, script: &str) -> String {
    machine.ok(&["sh", "-c", script])
}

/// Lines of a file; 0 if it is not there.
fn lines(machine: &Machine, file: &str) -> usize {
    String::from_utf8_lossy(&machine.ask(&["cat", file]).stdout).lines().count()
}

fn starts(machine: &Machine, name: &str) -> usize {
    lines(machine, &format!("/run/{name}.starts"))
}

fn beats(machine: &Machine, name: &str) -> usize {
    lines(machine, &format!("/run/{name}.beats"))
}

fn goes_on(machine: &Machine, name: &str) {
    let before = beats(machine, name);
    machine.wait(&format!("{name} goes on"), || beats(machine, name) > before);
}

fn state(machine: &Machine, name: &str) -> String {
    machine.property(&format!("{name}.service"), "ActiveState")
}

fn freezer(machine: &Machine, name: &str) -> String {
    machine.property(&format!("{name}.service"), "FreezerState")
}

/// What the kernel says of a unit's control group.
fn is_frozen(machine: &Machine, name: &str) -> bool {
    machine.ok(&["cat", &format!("/sys/fs/cgroup/system.slice/{name}.service/cgroup.events")]).contains("frozen 1")
}

fn status(machine: &Machine) -> Value {
    serde_json::from_slice(&machine.ask(&["steadfs", "status", "--json", "@box"]).stdout).unwrap_or_default()
}

/// How far the note says that everybody is.
fn noted(machine: &Machine) -> Option<String> {
    let note = machine.ask(&["sh", "-c", "cat /var/lib/steadfs/*/paused.json"]).stdout;
    let note: Value = serde_json::from_slice(&note).ok()?;
    note["stage"].as_str().map(str::to_owned)
}

/// The store goes, and the outage becomes old.
fn outage(machine: &Machine) {
    shell(machine, "touch /run/refused && kill -KILL $(cat /run/server.pid)");
    machine.wait("workers are paused", || noted(machine).as_deref() == Some("paused"));
}

/// The store is back, and everybody has been let go.
fn recover(machine: &Machine) {
    shell(machine, "rm /run/refused");
    machine.wait("everybody is let go", || noted(machine).is_none());
}

fn everybody_is_paused(machine: &Machine) {
    for name in ["plain", "dependent", "idle"] {
        assert_eq!(state(machine, name), "inactive", "{name}");
    }
    for name in ["frozen", "foreign"] {
        let states = (state(machine, name), freezer(machine, name), is_frozen(machine, name));
        assert_eq!(states, ("active".into(), "frozen".into(), true), "{name}");
    }
    // systemd does not know of it.
    let states = (state(machine, "group"), is_frozen(machine, "group"));
    assert_eq!(states, ("active".into(), true));
}

/// As often as each was started by then.
fn everybody_goes_on(machine: &Machine, started: usize) {
    for name in ["plain", "dependent"] {
        // It is active before it has done anything.
        machine.wait(name, || starts(machine, name) >= started);
        assert_eq!((state(machine, name).as_str(), starts(machine, name)), ("active", started), "{name}");
    }
    for name in ["frozen", "group"] {
        assert_eq!((starts(machine, name), is_frozen(machine, name)), (1, false), "{name}");
    }
    assert_eq!(freezer(machine, "frozen"), "running");
    for name in ["plain", "dependent", "frozen", "group"] {
        goes_on(machine, name);
    }
    assert_eq!((state(machine, "idle").as_str(), starts(machine, "idle")), ("inactive", 0));
    assert_eq!((freezer(machine, "foreign").as_str(), is_frozen(machine, "foreign")), ("frozen", true));
}

/// What a counter says that has these labels.
fn counted(machine: &Machine, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let page = machine.ok(&["wget", "-qO-", "http://127.0.0.1:9836/metrics"]);
    let has = |line: &str| labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")));
    let line = page.lines().find(|line| line.starts_with(&format!("{name}{{")) && has(line))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn hook_runs(machine: &Machine, hook: &str, result: &str) -> Option<f64> {
    counted(machine, "steadfs_hook_runs_total", &[("hook", &format!("after_recovery:{hook}")), ("result", result)])
}

/// The journal file's lines of one event.
fn journal(machine: &Machine, event: &str) -> Vec<Value> {
    let text = machine.ok(&["cat", "/var/log/steadfs/box.jsonl"]);
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == event).collect()
}

/// `WORKER ACTION RESULT` of each step, in order.
fn steps(machine: &Machine) -> Vec<String> {
    let word = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let steps = journal(machine, "worker_step");
    steps.iter().map(|line| ["worker", "action", "result"].map(|key| word(line, key)).join(" ")).collect()
}

fn at(line: &Value) -> SystemTime {
    humantime::parse_rfc3339(line["at"].as_str().unwrap()).unwrap()
}

/// Waits until both hooks have run so often in all, and says that they were not run more often.
fn hooks_have_run(machine: &Machine, times: usize) {
    let of = |word: &str| steps(machine).iter().filter(|step| step.contains(word)).count();
    machine.wait("the hooks run", || of("broken after_recovery") >= times);
    assert_eq!((of("replay after_recovery ok"), of("broken after_recovery failed")), (times, times));
    // It was started once before.
    machine.wait("replay is started again", || starts(machine, "replay") > times);
    assert_eq!((starts(machine, "replay"), lines(machine, "/run/broken")), (times + 1, times));
}

fn is_active(machine: &Machine) -> bool {
    machine.property(UNIT, "ActiveState") == "active"
}

#[test]
fn units_are_stopped_and_frozen_in_an_outage_and_let_go_whatever_becomes_of_steadfs() {
    let mut machine = Machine::new();
    install(&machine);
    machine.boot();
    machine.wait("the unit is active", || is_active(&machine));
    for name in ["plain", "dependent", "frozen", "foreign", "group", "replay"] {
        machine.ok(&["systemctl", "start", &format!("{name}.service")]);
        goes_on(&machine, name);
    }
    machine.ok(&["systemctl", "freeze", "foreign.service"]);
    let checked = machine.ask(&["steadfs", "check", "--offline", "/etc/steadfs/box.toml"]);
    println!("{}", String::from_utf8_lossy(&checked.stdout));

    an_outage_and_nothing_else(&machine);
    steadfs_is_killed(&machine);
    one_that_cannot_be_frozen_whole(&machine);
    steadfs_is_stopped(&machine);
    the_machine_is_rebooted(&mut machine);

    let took = machine.down("poweroff");
    assert!(took < NO_TIMEOUT, "{took:?}");
}

fn an_outage_and_nothing_else(machine: &Machine) {
    outage(machine);
    everybody_is_paused(machine);
    let wanted = [
        "plain pause ok",
        "dependent pause ok",
        "idle pause skipped",
        "frozen pause ok",
        "foreign pause skipped",
        "stuck pause skipped",
        "group pause ok",
    ];
    // They are noted before they are written to the journal file.
    machine.wait("all steps are told", || steps(machine).len() >= wanted.len());
    assert_eq!(steps(machine), wanted, "each of them under the unit's hardening");
    let frozen = ["frozen", "group"].map(|name| beats(machine, name));
    assert_eq!(counted(machine, "steadfs_worker_paused", &[("worker", "frozen")]), Some(1.0));
    assert_eq!(counted(machine, "steadfs_worker_paused", &[("worker", "idle")]), Some(0.0));
    assert_eq!(["frozen", "group"].map(|name| beats(machine, name)), frozen, "nothing of them runs");
    recover(machine);
    everybody_goes_on(machine, 2);
    hooks_have_run(machine, 1);
    let wanted = [
        "group resume ok",
        "frozen resume ok",
        "dependent resume ok",
        "plain resume ok",
        "replay after_recovery ok",
        "broken after_recovery failed",
    ];
    assert_eq!(steps(machine)[7..], wanted);
    let (recovered, let_go) = (journal(machine, "recovered"), journal(machine, "worker_step"));
    let waited = at(&let_go[7]).duration_since(at(recovered.last().unwrap())).unwrap_or_default();
    // The journal's times are whole milliseconds.
    assert!(waited + Duration::from_millis(2) >= STEADY, "let go after {waited:?}");
    for (hook, result) in [("replay", "ok"), ("broken", "failed")] {
        assert_eq!(hook_runs(machine, hook, result), Some(1.0), "{hook}");
    }
    let resumed = [("worker", "plain"), ("action", "resume"), ("result", "ok")];
    assert_eq!(counted(machine, "steadfs_worker_step_total", &resumed), Some(1.0));
}

fn steadfs_is_killed(machine: &Machine) {
    outage(machine);
    let daemon = || status(machine)["pid"].as_u64();
    // The daemon alone, whose keeper starts the next; and both, whose next one systemd starts.
    for whole in [false, true] {
        let before = daemon().unwrap();
        if whole {
            machine.wait("systemd keeps descriptors", || {
                machine.property(UNIT, "NFileDescriptorStore").parse::<u32>().is_ok_and(|kept| kept >= 4)
            });
            machine.ok(&["systemctl", "kill", "-s", "KILL", "--kill-whom=all", UNIT]);
        } else {
            machine.ok(&["kill", "-KILL", &before.to_string()]);
        }
        machine.wait("there is a successor", || daemon().is_some_and(|now| now != before));
        let is_old = || {
            let events = status(machine)["events"].as_array().cloned().unwrap_or_default();
            events.iter().any(|event| event["event"] == "outage_overdue")
        };
        machine.wait("the outage is old for it too", is_old);
        machine.wait("the unit is active", || is_active(machine));
        everybody_is_paused(machine);
        assert_eq!(noted(machine).as_deref(), Some("paused"));
    }
    recover(machine);
    everybody_goes_on(machine, 3);
    hooks_have_run(machine, 2);
    assert_eq!(hook_runs(machine, "replay", "ok"), Some(1.0), "counted by the last of them");
}

/// One of its processes is inside a call to a dead filesystem, not steadfs's, so systemd goes on freezing it; the others of it
/// are frozen, and have to be let go.
fn one_that_cannot_be_frozen_whole(machine: &Machine) {
    let group = "/sys/fs/cgroup/system.slice/stuck.service";
    machine.ok(&["systemctl", "start", "other.service"]);
    machine.wait("the other store is mounted", || is_mounted(machine, "/mnt"));
    shell(machine, "kill -STOP $(cat /run/other.pid)");
    machine.ok(&["systemctl", "start", "stuck.service"]);
    let waits = format!("for pid in $(cat {group}/cgroup.procs); do cat /proc/$pid/wchan; echo; done");
    machine.wait("it is inside a call", || shell(machine, &waits).contains("request_wait_answer"));
    goes_on(machine, "stuck");
    outage(machine);
    machine.wait("the timeout is told", || steps(machine).contains(&"stuck pause timeout".into()));
    assert_eq!((freezer(machine, "stuck").as_str(), is_frozen(machine, "stuck")), ("freezing", false));
    recover(machine);
    goes_on(machine, "stuck");
    everybody_goes_on(machine, 4);
    hooks_have_run(machine, 3);
    // As soon as it can be, it is frozen as any other.
    shell(machine, "kill -CONT $(cat /run/other.pid)");
    machine.wait("the call ends", || !shell(machine, &waits).contains("request_wait_answer"));
    outage(machine);
    assert!(is_frozen(machine, "stuck"));
    recover(machine);
    goes_on(machine, "stuck");
    everybody_goes_on(machine, 5);
    hooks_have_run(machine, 4);
}

fn steadfs_is_stopped(machine: &Machine) {
    outage(machine);
    let begun = SystemTime::now();
    machine.ok(&["systemctl", "stop", UNIT]);
    let took = begun.elapsed().unwrap();
    println!("stopped in {took:?}");
    let unit = |name: &str| machine.property(UNIT, name);
    assert_eq!((unit("ActiveState").as_str(), unit("Result").as_str()), ("inactive", "success"));
    let jobs = machine.ok(&["systemctl", "list-jobs", "--no-legend"]);
    assert!(!jobs.contains(UNIT), "it is not started again: {jobs}");
    assert!(!is_mounted(machine, "/srv/jobs/alpha"));
    assert_eq!(noted(machine), None, "nobody is left paused");
    for name in ["frozen", "group", "stuck"] {
        assert!(!is_frozen(machine, name), "{name}");
        goes_on(machine, name);
    }
    machine.wait("who needs no overlay is started", || starts(machine, "plain") == 6);
    // It was told to start, and its own condition says no; nobody starts steadfs for it.
    machine.wait("who needs one fails", || state(machine, "dependent") == "failed");
    assert_eq!(starts(machine, "dependent"), 5);
    assert_eq!((unit("ActiveState").as_str(), state(machine, "idle").as_str()), ("inactive", "inactive"));
    assert!(is_frozen(machine, "foreign"));
    assert_eq!(lines(machine, "/run/broken"), 4, "hooks are for a recovery");
}

/// Nothing can be started while the machine shuts down, so that is left to the next boot, which alone would start none of them.
fn the_machine_is_rebooted(machine: &mut Machine) {
    shell(machine, "rm /run/refused");
    machine.ok(&["systemctl", "start", UNIT, "dependent.service"]);
    outage(machine);
    assert_eq!(["plain", "dependent"].map(|name| state(machine, name)), ["inactive", "inactive"]);
    let took = machine.down("reboot");
    println!("shut down in {took:?}");
    assert!(took < NO_TIMEOUT, "{took:?}");
    machine.boot();
    for name in ["plain", "dependent"] {
        machine.wait(name, || state(machine, name) == "active");
        // It is active before it has done anything.
        machine.wait(name, || starts(machine, name) == 1);
    }
    machine.wait("nobody is left paused", || noted(machine).is_none());
    assert_eq!(state(machine, "idle"), "inactive");
}
