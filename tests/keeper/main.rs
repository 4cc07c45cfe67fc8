//! The keeper with daemons that serve nothing (promise P6).

mod fake;
mod manager;
mod rig;

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rig::{Plan, Rig, Started, signal};

#[test]
fn a_daemon_that_is_killed_has_a_successor_with_the_same_descriptor_each_time() {
    let rig = Rig::begin(Plan::default());
    let first = rig.started();
    assert!(!first.successor && first.held == 0);
    let (device, mut last) = (rig.ready(), first.pid);
    for _ in 0..6 {
        signal(last, Signal::SIGKILL);
        let next = rig.started();
        assert!(next.successor && next.pid != last, "{next:?}");
        assert_eq!((next.held, next.reason.as_str()), (device, "SIGKILL"));
        assert_eq!(rig.ready(), device);
        last = next.pid;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", rig.keeper.id())).expect("it lives");
    let kib = |name: &str| -> u64 {
        let found = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok());
        found.expect("a number")
    };
    let (all, own) = (kib("VmRSS:"), kib("RssAnon:"));
    println!("the keeper: {all} KiB resident, {own} KiB of them its own");
    // The rest is the executable, which the daemon has mapped too; most of it in a build for tests.
    assert!(own < 4 << 10, "{own} KiB");
    assert!(status.contains("Threads:\t1\n"), "{status}");
}

#[test]
fn the_pause_between_a_death_and_its_successor_is_short() {
    let rig = Rig::begin(Plan::default());
    let first = rig.started();
    rig.ready();
    let died = Instant::now();
    signal(first.pid, Signal::SIGKILL);
    rig.started();
    rig.ready();
    let pause = died.elapsed();
    println!("a successor was ready after {pause:?}");
    assert!(pause < Duration::from_secs(5), "{pause:?}");
}

#[test]
fn a_daemon_that_hangs_is_described_killed_and_followed() {
    let rig = Rig::begin(Plan { switches: &["--watchdog=1s"], ..Plan::default() });
    let first = rig.started();
    let device = rig.ready();
    // Frozen from outside.
    signal(first.pid, Signal::SIGSTOP);
    let second = rig.started();
    assert_eq!((second.held, second.reason.as_str()), (device, "no sign of life"));
    rig.ready();
    // Stuck by itself: its threads run, but what proves its life says no.
    rig.order("silence");
    let third = rig.started();
    assert_eq!((third.held, third.reason.as_str()), (device, "no sign of life"));
    let log = rig.log();
    assert!(log.contains(&format!("thread {} ", first.pid)) && log.contains("(stopped)"), "{log}");
    assert!(log.contains("wchan"), "{log}");
}

#[test]
fn the_end_of_the_daemon_is_the_end_of_the_keeper() {
    for code in [0, 7] {
        let mut rig = Rig::begin(Plan::default());
        rig.started();
        rig.ready();
        rig.order(&format!("end {code}"));
        assert_eq!(rig.keeper_exit().code(), Some(code), "{}", rig.log());
    }
}

#[test]
fn a_first_daemon_that_fails_is_not_started_again() {
    let mut rig = Rig::begin(Plan { files: &[("fails", "1")], ..Plan::default() });
    rig.started();
    assert_eq!(rig.keeper_exit().code(), Some(1));
    assert!(!rig.log().contains("abandoned"), "{}", rig.log());
}

#[test]
fn without_the_device_a_death_is_the_end() {
    let mut rig = Rig::begin(Plan { files: &[("holds-nothing", "")], ..Plan::default() });
    let first = rig.started();
    rig.ready();
    signal(first.pid, Signal::SIGKILL);
    assert_eq!(rig.keeper_exit().code(), Some(32));
    assert!(rig.log().contains("abandoned"), "{}", rig.log());
}

#[test]
fn when_no_successor_can_serve_callers_are_let_go_and_the_overlay_is_detached() {
    let mountpoint = tempfile::tempdir().expect("tempdir");
    let path = mountpoint.path().to_str().expect("plain").to_owned();
    let mounted = || std::fs::read_to_string("/proc/self/mountinfo").expect("a table").contains(&path);
    let mut rig = Rig::begin(Plan { switches: &["--deadline=2s"], files: &[("mount", &path)], ..Plan::default() });
    let first = rig.started();
    rig.ready();
    assert!(mounted());
    // Nobody will ever answer it.
    let mut caller = Command::new("stat").arg("-f").arg(&path).stderr(Stdio::null()).spawn().expect("started");
    rig.want("fails", "3");
    signal(first.pid, Signal::SIGKILL);
    let exit = rig.keeper_exit();
    assert_eq!(exit.code(), Some(32), "{}", rig.log());
    assert!(!caller.wait().expect("it ends").success());
    assert!(!mounted());
}

#[test]
fn a_keeper_that_is_killed_is_replaced_and_the_next_one_holds_the_same() {
    let mut rig = Rig::begin(Plan::default());
    let first = rig.started();
    let device = rig.ready();
    rig.keeper.kill().expect("killed");
    rig.keeper.wait().expect("reaped");
    let mut keepers = Vec::new();
    for round in 0..2 {
        let new = wait_for(|| rig.keepers().into_iter().find(|pid| !keepers.contains(pid) && holds(*pid, device)));
        assert!(std::fs::exists(format!("/proc/{}", first.pid)).expect("proc"), "the daemon lives on");
        keepers.push(new);
        if round == 0 {
            signal(new, Signal::SIGKILL);
        }
    }
    // It watches a daemon that is not its child.
    signal(first.pid, Signal::SIGKILL);
    let next = rig.started();
    assert!(next.successor && next.held == device, "{next:?}");
    rig.ready();
    rig.order("end 0");
    wait_for(|| rig.keepers().is_empty().then_some(()));
}

/// Children of a process that run another program than it does by now.
fn daemons_of(keeper: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default();
    let own = std::fs::read_link(format!("/proc/{keeper}/exe")).ok();
    let runs_another = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| Some(exe) != own);
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(runs_another).collect()
}

#[test]
fn a_successor_goes_on_if_the_keeper_is_killed_as_soon_as_it_exists() {
    let mut rig = Rig::begin(Plan::default());
    let (mut daemon, device) = (rig.started().pid, rig.ready());
    let mut keepers = vec![rig.keeper.id().cast_signed()];
    for _ in 0..20 {
        let keeper = keepers.last().copied().expect("one at least");
        signal(daemon, Signal::SIGKILL);
        let until = Instant::now() + Duration::from_secs(60);
        // Without a pause: it is the first moment that counts.
        while !daemons_of(keeper).iter().any(|pid| *pid != daemon) {
            assert!(Instant::now() < until, "there is no successor; log:\n{}", rig.log());
        }
        signal(keeper, Signal::SIGKILL);
        let next = rig.started();
        assert!(next.successor && next.held == device, "{next:?}");
        assert_eq!(rig.ready(), device);
        daemon = next.pid;
        keepers.push(wait_for(|| rig.keepers().into_iter().find(|pid| !keepers.contains(pid) && holds(*pid, device))));
    }
    rig.order("end 0");
    wait_for(|| rig.keepers().is_empty().then_some(()));
    rig.keeper.wait().expect("reaped");
}

/// A candidate that serves and is on trial: the daemon before it, the inode of the device, and the candidate.
fn on_trial() -> (Rig, Started, u64, Started) {
    let rig = Rig::begin(Plan { switches: &["--trial=60s"], ..Plan::default() });
    let first = rig.started();
    let device = rig.ready();
    rig.order(&format!("upgrade {}", rig.candidate().display()));
    let next = rig.started();
    assert_eq!(next.executable, "candidate");
    rig.ready();
    (rig, first, device, next)
}

#[test]
fn a_keeper_that_is_killed_during_a_trial_has_a_successor_that_knows_the_old_executable() {
    let (mut rig, first, device, next) = on_trial();
    rig.keeper.kill().expect("killed");
    rig.keeper.wait().expect("reaped");
    wait_for(|| rig.keepers().into_iter().find(|pid| holds(*pid, device)));
    signal(next.pid, Signal::SIGABRT);
    let back = rig.started();
    assert_eq!((back.executable.as_str(), back.held), (first.executable.as_str(), device));
    rig.ready();
    let told = rig.event();
    assert!(told.starts_with("upgraded false") && told.contains("candidate failed"), "{told}");
    rig.order("end 0");
    wait_for(|| rig.keepers().is_empty().then_some(()));
}

fn holds(pid: i32, inode: u64) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|entry| std::fs::metadata(entry.path()).ok()).any(|metadata| metadata.ino() == inode)
}

fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < until, "it does not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn signals_to_the_keeper_reach_the_daemon() {
    let rig = Rig::begin(Plan::default());
    rig.started();
    rig.ready();
    signal(rig.keeper.id().cast_signed(), Signal::SIGTERM);
    // The fake has no handler and dies of it; a real one unmounts.
    assert_eq!(rig.started().reason, "SIGTERM");
}

#[test]
fn an_upgrade_brings_the_new_executable_and_keeps_the_descriptor() {
    let rig = Rig::begin(Plan { switches: &["--trial=1s"], ..Plan::default() });
    let first = rig.started();
    let device = rig.ready();
    let candidate = rig.candidate();
    rig.order(&format!("upgrade {}", candidate.display()));
    let next = rig.started();
    assert_eq!((next.executable.as_str(), next.held), ("candidate", device), "after {first:?}");
    assert_eq!(rig.ready(), device);
    assert_eq!(rig.event(), "upgraded true ");
    // It is what successors are started from, even if its file is gone.
    std::fs::remove_file(candidate).expect("removed");
    signal(next.pid, Signal::SIGKILL);
    assert!(rig.started().executable.starts_with("candidate"));
    rig.ready();
}

#[test]
fn a_daemon_that_does_not_yield_is_killed() {
    let rig = Rig::begin(Plan { files: &[("stays", "")], ..Plan::default() });
    rig.started();
    let device = rig.ready();
    rig.order(&format!("upgrade {}", rig.candidate().display()));
    assert_eq!(rig.event(), "stays");
    let next = rig.started();
    assert_eq!((next.executable.as_str(), next.held), ("candidate", device));
}

#[test]
fn an_upgrade_that_does_not_start_is_taken_back() {
    for (path, reason) in [("/etc/passwd", "cannot be started"), ("/bin/false", "exit code 1")] {
        let rig = Rig::begin(Plan::default());
        let first = rig.started();
        let device = rig.ready();
        rig.order(&format!("upgrade {path}"));
        let next = rig.started();
        assert_eq!((next.executable, next.held), (first.executable, device));
        assert!(next.reason.contains(reason), "{}", next.reason);
        rig.ready();
        let told = rig.event();
        assert!(told.starts_with(&format!("upgraded false {path} failed: ")) && told.contains(reason), "{told}");
    }
}

#[test]
fn an_upgrade_that_dies_on_trial_is_taken_back() {
    let (rig, first, device, next) = on_trial();
    // Not SIGSEGV: the Rust runtime passes over one that no fault caused.
    signal(next.pid, Signal::SIGABRT);
    let back = rig.started();
    assert_eq!((back.executable.as_str(), back.held), (first.executable.as_str(), device));
    rig.ready();
    let told = rig.event();
    assert!(told.starts_with("upgraded false") && told.ends_with("candidate failed: SIGABRT"), "{told}");
    // And a second one may be tried.
    rig.want("candidate-fails", "4");
    rig.order(&format!("upgrade {}", rig.path("candidate").display()));
    assert_eq!(rig.started().executable, "candidate");
    assert_eq!(rig.started().reason, "exit code 4");
    rig.want_no_more("candidate-fails");
}
