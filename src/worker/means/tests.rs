//! The real means against real processes, a real control group, and programs that play systemctl and docker.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::backing::process::{self, Process};

const LONG: Duration = Duration::from_secs(30);

struct Rig {
    directory: tempfile::TempDir,
    paused: Paused,
    ending: bool,
}

impl Rig {
    fn new() -> Rig {
        let directory = tempfile::tempdir().expect("a directory");
        Rig { directory, paused: Paused { overlay: "/hot".into(), ..Paused::default() }, ending: false }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn real(&self) -> Real {
        Real::with_systemctl(&self.path("systemctl").display().to_string())
    }

    fn step<T>(&self, means: &Means, timeout: Duration, act: impl FnOnce(&Job) -> T) -> T {
        let until = Instant::now() + timeout;
        let environment = [("STEADFS_WORKER", OsStr::new("w"))];
        let (paused, environment) = (&self.paused, &environment);
        act(&Job { name: "w", means, until, paused, environment, cut: &|| false, ending: self.ending })
    }

    fn look(&self, real: &Real, means: &Means) -> Result<Option<Found>, Failure> {
        self.step(means, LONG, |job| real.look(job))
    }

    /// Pauses what there is, which must be something.
    fn pause(&self, real: &Real, means: &Means) -> Found {
        let found = self.look(real, means).expect("it is looked for").expect("it runs");
        self.step(means, LONG, |job| real.pause(job, &found)).expect("it is paused")
    }

    fn resume(&self, real: &Real, means: &Means, found: &Found) {
        self.step(means, LONG, |job| real.resume(job, found)).expect("it is let go");
    }

    /// A program that is a shell script; its words go to the file `calls` first.
    fn program(&self, name: &str, script: &str) -> String {
        let path = self.path(name);
        let (calls, state) = (self.path("calls"), self.path("state"));
        let text = format!(
            "#!/bin/sh\nCALLS={}\nSTATE={}\necho \"$*\" >> $CALLS\n{script}\n",
            calls.display(),
            state.display()
        );
        // Renamed into place: no other test's child may hold it open for writing when it is run.
        let new = path.with_extension("new");
        let written = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\" && mv \"$0\" \"$1\""])
            .args([&new, &path])
            .stdin(Stdio::piped())
            .spawn()
            .and_then(|mut child| {
                std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), text.as_bytes())?;
                child.wait()
            });
        assert!(written.expect("it ran").success());
        assert_eq!(path.metadata().expect("it is there").permissions().mode() & 0o777, 0o755);
        path.display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// What programs were called with since the last time.
    fn calls(&self) -> Vec<String> {
        let calls = self.read("calls").lines().map(String::from).collect();
        self.write("calls", "");
        calls
    }
}

fn wait(what: &str, come: impl Fn() -> bool) {
    let until = Instant::now() + LONG;
    while !come() {
        assert!(Instant::now() < until, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process of the test's own that is killed with its group at the end.
struct Worker(Child);

impl Worker {
    fn start(script: &str) -> Worker {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        Worker(command.spawn().expect("it starts"))
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: plain numbers; it has not been waited for, so its group is nobody else's.
        unsafe { libc::kill(-self.pid(), libc::SIGKILL) };
        let _ = self.0.wait();
    }
}

fn letter(pid: i32) -> Option<char> {
    process::stat(pid).map(|(letter, _)| letter)
}

fn is_stopped(pid: i32) -> bool {
    letter(pid) == Some('T')
}

fn signal(rig: &Rig, group: bool) -> Means {
    Means::Signal { pid_file: rig.path("pid"), pause: libc::SIGSTOP, resume: libc::SIGCONT, group }
}

#[test]
fn a_process_is_stopped_by_its_pid_file_and_goes_on() {
    let (rig, worker) = (Rig::new(), Worker::start("exec sleep 1000"));
    let (real, means) = (rig.real(), signal(&rig, false));
    assert_eq!(rig.look(&real, &means), Ok(None), "there is no pid file");
    rig.write("pid", "\n");
    assert_eq!(rig.look(&real, &means), Ok(None), "there is nothing in it");
    rig.write("pid", &format!("{}\n", worker.pid()));
    let found = rig.pause(&real, &means);
    wait("it is stopped", || is_stopped(worker.pid()));
    assert_eq!(rig.look(&real, &means), Ok(None), "it is stopped already");
    rig.resume(&real, &means, &found);
    wait("it goes on", || !is_stopped(worker.pid()));
}

#[test]
fn a_process_that_has_the_number_of_one_that_was_stopped_is_left_alone() {
    let (rig, worker) = (Rig::new(), Worker::start("exec sleep 1000"));
    let real = rig.real();
    rig.write("pid", &worker.pid().to_string());
    for group in [false, true] {
        let means = signal(&rig, group);
        let found = rig.pause(&real, &means);
        wait("it is stopped", || is_stopped(worker.pid()));
        let Found::Processes { processes, group } = found.clone() else { panic!("{found:?}") };
        // As a note would say that was written of an earlier process.
        let earlier = processes.iter().map(|one| Process { started: one.started - 1, ..*one }).collect();
        rig.resume(&real, &means, &Found::Processes { processes: earlier, group });
        assert!(is_stopped(worker.pid()), "a stranger was let go");
        rig.resume(&real, &means, &found);
        wait("it goes on", || !is_stopped(worker.pid()));
    }
}

#[test]
fn a_whole_group_is_stopped_and_let_go_though_its_leader_has_died() {
    let rig = Rig::new();
    let child_file = rig.path("child");
    let worker = Worker::start(&format!("sleep 1000 & echo $! > {}; wait", child_file.display()));
    wait("it has a child", || rig.read("child").ends_with('\n'));
    let child: i32 = rig.read("child").trim().parse().expect("a pid");
    rig.write("pid", &worker.pid().to_string());
    let (real, means) = (rig.real(), signal(&rig, true));
    let found = rig.pause(&real, &means);
    let Found::Processes { processes, .. } = &found else { panic!("{found:?}") };
    assert_eq!(processes.len(), 2, "{processes:?}");
    wait("both are stopped", || is_stopped(worker.pid()) && is_stopped(child));
    let leader = Process::of(worker.pid()).expect("it lives").pin().expect("pidfds").expect("it lives");
    leader.signal(nix::sys::signal::Signal::SIGKILL);
    wait("the leader dies", || leader.has_ended());
    rig.resume(&real, &means, &found);
    wait("the child goes on", || !is_stopped(child));
}

#[test]
fn steadfs_does_not_stop_itself_nor_everybody() {
    let rig = Rig::new();
    let real = rig.real();
    for pid in [std::process::id().to_string(), "1".into(), "0".into(), "-5".into(), "x".into()] {
        rig.write("pid", &pid);
        assert!(rig.look(&real, &signal(&rig, false)).is_err(), "{pid}");
    }
    // A child in the test's own process group.
    let mut child = Command::new("sleep").arg("1000").spawn().expect("it starts");
    rig.write("pid", &child.id().to_string());
    let looked = rig.look(&real, &signal(&rig, true));
    child.kill().expect("it is killed");
    child.wait().expect("it is reaped");
    assert!(looked.is_err_and(|failure| failure.words.contains("steadfs itself")));
    assert_eq!(rig.look(&real, &signal(&rig, false)), Ok(None), "it has ended, which is no error");
}

#[test]
fn whoever_the_pid_file_names_is_let_go_when_nothing_else_is_known() {
    let (rig, worker) = (Rig::new(), Worker::start("exec sleep 1000"));
    let (real, means) = (rig.real(), signal(&rig, false));
    rig.write("pid", &worker.pid().to_string());
    rig.pause(&real, &means);
    wait("it is stopped", || is_stopped(worker.pid()));
    rig.resume(&real, &means, &Found::Unknown);
    wait("it goes on", || !is_stopped(worker.pid()));
}

#[test]
fn a_flag_of_somebody_elses_is_not_taken_away() {
    let rig = Rig::new();
    let (real, means) = (rig.real(), Means::Flag { file: rig.path("flag") });
    rig.write("flag", "maintenance until Monday");
    assert_eq!(rig.look(&real, &means), Ok(None));
    std::fs::remove_file(rig.path("flag")).expect("removed");
    let found = rig.pause(&real, &means);
    assert!(rig.read("flag").contains("\"overlay\":\"/hot\""));
    // One that a daemon left without a note.
    assert_eq!(rig.look(&real, &means), Ok(Some(Found::Named)));
    rig.resume(&real, &means, &found);
    rig.resume(&real, &means, &found);
    assert!(!rig.path("flag").exists());
    let nowhere = Means::Flag { file: rig.path("no/flag") };
    assert!(rig.step(&nowhere, LONG, |job| real.pause(job, &Found::Named)).is_err());
}

#[test]
fn a_step_that_hangs_is_given_up_and_the_next_one_waits_for_its_end() {
    let rig = Rig::new();
    let real = rig.real();
    // Reading it hangs until somebody opens the other end.
    nix::unistd::mkfifo(&rig.path("flag"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    let means = Means::Flag { file: rig.path("flag") };
    let short = Duration::from_millis(100);
    let looked = rig.step(&means, short, |job| real.look(job));
    assert!(looked.is_err_and(|failure| failure.timeout && failure.words == "it hangs"));
    let resumed = rig.step(&means, short, |job| real.resume(job, &Found::Named));
    assert!(resumed.is_err_and(|failure| failure.timeout && failure.words.contains("earlier")));
    assert!(rig.path("flag").exists());
    let mended = std::fs::OpenOptions::new().write(true).open(rig.path("flag"));
    drop(mended.expect("somebody reads"));
    rig.resume(&real, &means, &Found::Named);
    assert!(!rig.path("flag").exists());
}

#[test]
fn commands_are_told_who_they_are_for() {
    let rig = Rig::new();
    let (real, heard) = (rig.real(), rig.path("heard"));
    let shell = |word: &str| HookCommand {
        argv: vec!["sh".into(), "-c".into(), format!("echo {word} $STEADFS_WORKER >> {}", heard.display())],
    };
    let means = Means::Command { pause: shell("pause"), resume: shell("resume") };
    let found = rig.pause(&real, &means);
    rig.resume(&real, &means, &found);
    assert_eq!(rig.read("heard"), "pause w\nresume w\n");
    let hangs = HookCommand { argv: vec!["sleep".into(), "1000".into()] };
    let means = Means::Command { pause: hangs, resume: shell("resume") };
    let paused = rig.step(&means, Duration::from_millis(100), |job| real.pause(job, &Found::Named));
    assert!(paused.is_err_and(|failure| failure.timeout));
}

/// Where a version 2 hierarchy is mounted, also beside version 1.
fn hierarchy() -> Option<&'static Path> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new).into_iter().find(|path| {
        path.join("cgroup.controllers").exists() && tempfile::Builder::new().prefix("try").tempdir_in(path).is_ok()
    })
}

/// A control group that is thawed, emptied and removed at the end.
struct Group(PathBuf);

impl Group {
    fn new(hierarchy: &Path) -> Group {
        let path = hierarchy.join(format!("steadfs-test-{}-{:?}", std::process::id(), std::thread::current().id()));
        std::fs::create_dir(&path).expect("made");
        Group(path)
    }

    fn put(&self, file: &str, text: &str) {
        std::fs::write(self.0.join(file), text).expect("written");
    }

    fn is_frozen(&self) -> bool {
        std::fs::read_to_string(self.0.join("cgroup.events")).is_ok_and(|events| events.contains("frozen 1"))
    }

    fn remove(&self) {
        wait("the group can be removed", || std::fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.freeze"), "0");
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..400 {
            if std::fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_control_group_is_frozen_whole_and_thawed() {
    let Some(hierarchy) = hierarchy() else {
        eprintln!(
            "no control groups of version 2 that can be written here: see the test with a directory that plays one"
        );
        return;
    };
    let rig = Rig::new();
    // Counts as long as it runs.
    let worker = Worker::start(&format!("while :; do echo >> {}; sleep 0.01; done", rig.path("count").display()));
    let group = Group::new(hierarchy);
    let (real, means) = (rig.real(), Means::Cgroup { path: group.0.clone() });
    group.put("cgroup.procs", &worker.pid().to_string());
    let found = rig.pause(&real, &means);
    assert!(group.is_frozen());
    let count = rig.read("count").len();
    assert_eq!(rig.look(&real, &means), Ok(None), "it is frozen already");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(rig.read("count").len(), count);
    rig.resume(&real, &means, &found);
    wait("it runs", || rig.read("count").len() > count && !group.is_frozen());
    // Another one of that name, frozen by somebody else.
    let found = rig.pause(&real, &means);
    drop(worker);
    group.remove();
    rig.resume(&real, &means, &found);
    assert_eq!(rig.look(&real, &means), Ok(None), "it is not there, which is no error");
    std::fs::create_dir(&group.0).expect("made");
    group.put("cgroup.freeze", "1");
    rig.resume(&real, &means, &found);
    assert_eq!(std::fs::read_to_string(group.0.join("cgroup.freeze")).expect("read").trim(), "1");
    rig.resume(&real, &means, &Found::Unknown);
    assert_eq!(std::fs::read_to_string(group.0.join("cgroup.freeze")).expect("read").trim(), "0");
    let all = Means::Cgroup { path: hierarchy.into() };
    assert!(rig.look(&real, &all).is_err(), "the root cannot be frozen");
}

#[test]
fn a_control_group_that_does_not_freeze_in_time_or_holds_steadfs_says_so() {
    // A directory that plays one.
    let rig = Rig::new();
    let (real, means) = (rig.real(), Means::Cgroup { path: rig.path("group") });
    std::fs::create_dir_all(rig.path("group/below")).expect("made");
    assert!(rig.look(&real, &means).is_err(), "it is no control group");
    rig.write("group/cgroup.freeze", "0\n");
    rig.write("group/cgroup.events", "populated 1\nfrozen 0\n");
    let found = rig.look(&real, &means).expect("it is looked for").expect("it runs");
    let paused = rig.step(&means, Duration::from_millis(100), |job| real.pause(job, &found));
    assert!(paused.is_err_and(|failure| failure.timeout));
    assert_eq!(rig.read("group/cgroup.freeze"), "1", "it freezes when it can");
    rig.resume(&real, &means, &found);
    assert_eq!(rig.read("group/cgroup.freeze"), "0");
    rig.write("group/below/cgroup.procs", &format!("1\n{}\n", std::process::id()));
    assert!(rig.look(&real, &means).is_err_and(|failure| failure.words.contains("steadfs itself")));
}

/// Plays systemctl for one unit, whose states are in the file `state`.
const SYSTEMCTL: &str = r#"
. $STATE
for word in "$@"; do case "$word" in
  show) echo "LoadState=$load"; echo "ActiveState=$active"; echo "FreezerState=$frozen"; echo "ControlGroup=$group";;
  stop) active=inactive;;
  start) [ "$load" = loaded ] || { echo "Unit not found."; exit 5; }; [ "$hangs" = 1 ] && { active=activating; save=1; }
    [ "$hangs" = 1 ] || active=active;;
  freeze) frozen=frozen;;
  thaw) [ "$active" = active ] || { echo "not active"; exit 1; }; frozen=running;;
esac; done
echo "load=$load active=$active frozen=$frozen group=$group hangs=$hangs" > $STATE
[ "$save" = 1 ] && exec sleep 1000
exit 0
"#;

#[test]
fn a_unit_is_stopped_and_started_only_if_it_was_active() {
    let rig = Rig::new();
    rig.program("systemctl", SYSTEMCTL);
    let (real, means) = (rig.real(), Means::Unit { unit: "crawler.service".into(), by: UnitBy::Stop });
    for active in ["inactive", "failed", "deactivating"] {
        rig.write("state", &format!("load=loaded active={active} frozen=running"));
        assert_eq!(rig.look(&real, &means), Ok(None), "{active}");
    }
    rig.write("state", "load=loaded active=active frozen=running group=/system.slice/crawler.service");
    rig.calls();
    let found = rig.pause(&real, &means);
    assert!(rig.read("state").contains("active=inactive"));
    rig.resume(&real, &means, &found);
    assert!(rig.read("state").contains("active=active"));
    let calls = rig.calls();
    assert_eq!(calls[1..], ["--no-ask-password stop -- crawler.service", "--no-ask-password start -- crawler.service"]);
    // One that has been removed meanwhile keeps nobody waiting.
    rig.write("state", "load=not-found active=inactive frozen=running");
    rig.resume(&real, &means, &found);
    rig.write("state", "load=masked active=inactive frozen=running");
    assert!(rig.step(&means, LONG, |job| real.resume(job, &found)).is_err());
}

#[test]
fn a_unit_that_takes_its_time_to_start_counts_as_let_go() {
    let rig = Rig::new();
    rig.program("systemctl", SYSTEMCTL);
    let (real, means) = (rig.real(), Means::Unit { unit: "crawler.service".into(), by: UnitBy::Stop });
    rig.write("state", "load=loaded active=inactive frozen=running hangs=1");
    let resumed = rig.step(&means, Duration::from_secs(6), |job| real.resume(job, &Found::Named));
    assert_eq!(resumed, Ok(()));
}

#[test]
fn a_steadfs_that_ends_does_not_wait_for_a_unit_that_waits_for_its_end() {
    let mut rig = Rig::new();
    rig.program("systemctl", SYSTEMCTL);
    let (real, means) = (rig.real(), Means::Unit { unit: "crawler.service".into(), by: UnitBy::Stop });
    rig.ending = true;
    rig.write("state", "load=loaded active=inactive frozen=running");
    rig.resume(&real, &means, &Found::Named);
    assert_eq!(rig.calls(), ["--no-ask-password --no-block --job-mode=fail start -- crawler.service"]);
    assert!(rig.read("state").contains("active=active"));
    // Its stop was ordered in the same outage, and is not done.
    rig.program("systemctl", &SYSTEMCTL.replace("start) ", "--job-mode=fail) echo destructive; exit 4;; start) "));
    rig.write("state", "load=loaded active=deactivating frozen=running");
    rig.resume(&real, &means, &Found::Named);
    let last = "--no-ask-password --no-block --job-mode=ignore-dependencies start -- crawler.service";
    assert_eq!(rig.calls().last().map(String::as_str), Some(last));
    // The machine shuts down: it is started after the next boot.
    rig.write("state", "load=loaded active=inactive frozen=running");
    assert!(rig.step(&means, LONG, |job| real.resume(job, &Found::Named)).is_err());
    rig.write("state", "load=not-found active=inactive frozen=running");
    rig.resume(&real, &means, &Found::Named);
}

#[test]
fn a_unit_is_frozen_and_thawed() {
    let rig = Rig::new();
    rig.program("systemctl", SYSTEMCTL);
    let (real, means) = (rig.real(), Means::Unit { unit: "crawler.service".into(), by: UnitBy::Freeze });
    rig.write("state", "load=loaded active=active frozen=frozen");
    assert_eq!(rig.look(&real, &means), Ok(None), "somebody else has frozen it");
    rig.write("state", "load=loaded active=active frozen=running");
    let found = rig.pause(&real, &means);
    assert!(rig.read("state").contains("frozen=frozen"));
    rig.resume(&real, &means, &found);
    assert!(rig.read("state").contains("frozen=running"));
    // It ended meanwhile.
    rig.write("state", "load=loaded active=inactive frozen=running");
    rig.resume(&real, &means, &found);
}

#[test]
fn the_unit_that_steadfs_runs_in_is_not_stopped_and_no_answer_is_no_state() {
    let rig = Rig::new();
    rig.program("systemctl", SYSTEMCTL);
    let (real, means) = (rig.real(), Means::Unit { unit: "steadfs.service".into(), by: UnitBy::Stop });
    let own = std::fs::read_to_string("/proc/self/cgroup").expect("it is there");
    let own = own.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find(|path| path.len() > 1);
    if let Some(own) = own {
        rig.write("state", &format!("load=loaded active=active frozen=running group={own}"));
        assert!(rig.look(&real, &means).is_err_and(|failure| failure.words.contains("steadfs itself")));
        rig.write("state", &format!("load=loaded active=active frozen=running group={own}x"));
        assert_eq!(rig.look(&real, &means), Ok(Some(Found::Named)));
    }
    rig.program("systemctl", "echo Failed to connect to bus");
    assert!(rig.look(&real, &means).is_err());
    rig.program("systemctl", "echo Failed to connect to bus; exit 1");
    assert!(rig.look(&real, &means).is_err_and(|failure| failure.words.contains("connect to bus")));
}

/// Plays docker: a file `state` with a line `ID NAME LABEL STATUS` for each container.
const DOCKER: &str = r#"
case $1 in
  ps) echo "WARNING: nothing to see here" >&2
    for word in "$@"; do case "$word" in status=*) status=${word#*=};; label=*) label=${word#label=};; esac; done
    while read -r id name its now; do
      [ "$now" = "$status" ] && { [ -z "$label" ] || [ "$its" = "$label" ]; } && echo "$id $name,other/$name"
    done < $STATE; exit 0;;
  pause|unpause) what=$1; shift
    [ $what = pause ] && { from=running to=paused; } || { from=paused to=running; }
    bad=0
    for id in "$@"; do
      grep -q "^$id .* $from\$" $STATE && sed -i "s/^\($id .*\) $from\$/\1 $to/" $STATE || { echo "$id is not $from"; bad=1; }
    done; exit $bad;;
esac
"#;

fn id(digit: char) -> String {
    std::iter::repeat_n(digit, 64).collect()
}

fn containers(rig: &Rig) -> String {
    let (a, b, c, d) = (id('a'), id('b'), id('c'), id('d'));
    rig.write(
        "state",
        &format!("{a} crawl-1 job=crawl running\n{b} crawl-2 job=crawl paused\n{c} replay - running\n{d} crawl-3 job=crawl exited\n"),
    );
    rig.program("docker", DOCKER)
}

fn status(rig: &Rig) -> String {
    rig.read("state").lines().filter_map(|line| line.rsplit(' ').next()).collect::<Vec<_>>().join(" ")
}

#[test]
fn containers_are_paused_by_label_or_name_and_only_those_are_unpaused() {
    let rig = Rig::new();
    let engine = containers(&rig);
    let real = rig.real();
    let by = |names: &[&str], label: Option<&str>| Means::Container {
        engine: engine.clone(),
        names: names.iter().copied().map(String::from).collect(),
        label: label.map(String::from),
    };
    let labelled = by(&[], Some("job=crawl"));
    let found = rig.pause(&real, &labelled);
    assert_eq!(found, Found::Containers { ids: vec![id('a')] });
    assert_eq!(status(&rig), "paused paused running exited");
    assert_eq!(rig.look(&real, &labelled), Ok(None));
    rig.resume(&real, &labelled, &found);
    assert_eq!(status(&rig), "running paused running exited", "somebody else's stays paused");
    let named = by(&["replay", "crawl-2", "crawl"], None);
    let found = rig.pause(&real, &named);
    assert_eq!(found, Found::Containers { ids: vec![id('c')] });
    rig.resume(&real, &named, &found);
    assert_eq!(status(&rig), "running paused running exited");
    let both = by(&["replay", "crawl-1"], Some("job=crawl"));
    assert_eq!(rig.look(&real, &both), Ok(Some(Found::Containers { ids: vec![id('a'), id('c')] })));
    // Whoever is paused, when nothing else is known.
    rig.resume(&real, &labelled, &Found::Unknown);
    assert_eq!(status(&rig), "running running running exited");
}

#[test]
fn containers_that_end_or_are_unpaused_meanwhile_are_no_failure() {
    let rig = Rig::new();
    let engine = containers(&rig);
    let real = rig.real();
    let means = Means::Container { engine, names: Vec::new(), label: Some("job=crawl".into()) };
    let found = rig.look(&real, &means).expect("asked").expect("one runs");
    let ended = rig.read("state").replace("crawl-1 job=crawl running", "crawl-1 job=crawl exited");
    rig.write("state", &ended);
    assert_eq!(rig.step(&means, LONG, |job| real.pause(job, &found)), Ok(found.clone()));
    rig.resume(&real, &means, &found);
    // One that is paused and cannot be unpaused is.
    rig.write("state", &ended.replace("crawl-1 job=crawl exited", "crawl-1 job=crawl paused"));
    rig.program("docker", &DOCKER.replace("from=paused to=running", "from=never to=running"));
    assert!(rig.step(&means, LONG, |job| real.resume(job, &found)).is_err());
    // And whoever hangs is given up.
    rig.program("docker", "sleep 1000");
    assert!(rig.step(&means, Duration::from_millis(200), |job| real.look(job)).is_err_and(|f| f.timeout));
}
