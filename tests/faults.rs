//! Promises P1 to P5 under every fault, with a real sshfs and a real sshd: nobody waits longer than the deadlines allow,
//! the same descriptor goes on, what was fsynced is there, and the mount stays the mount.
#![allow(clippy::unwrap_used)]

mod lab;

use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::agent::{self, Agent, RECORD, Report, now, record};
use lab::{Lab, mount_of, run, wait};
use nix::sys::signal::Signal;

/// The deadlines of promise P1, with what a noisy machine adds.
const CALL: f64 = 5.5;
const SYNC: f64 = 8.5;

#[test]
#[ignore = "a process of other tests, not a test"]
fn agent_process() {
    agent::main();
}

/// What a fault did: when it began, and when the link was good again (the same for kills).
struct Fault {
    began: f64,
    healed: f64,
}

/// What is asked of the mount while the fault lasts.
fn ask_everything(lab: &Lab) {
    let hot = lab.hot.to_str().unwrap();
    let status = env!("CARGO_BIN_EXE_steadfs");
    let run_dir = lab.path("run");
    for (program, arguments, limit) in [
        ("df", vec![hot], 2.0),
        ("ls", vec!["-d", hot], 2.0),
        ("findmnt", vec![hot], 2.0),
        ("mountpoint", vec!["-q", hot], 2.0),
        (status, vec!["status", "--json", hot], 0.5),
    ] {
        let started = Instant::now();
        let output = Command::new(program).args(&arguments).env("STEADFS_RUNTIME_DIR", &run_dir).output().unwrap();
        let took = started.elapsed().as_secs_f64();
        assert!(took < limit, "{program} took {took:.2} s");
        assert!(output.status.success() || program == status, "{program}: {output:?}");
    }
}

/// A mount namespace as of a container without propagation.
struct Container(Child);

impl Container {
    fn new() -> Container {
        let mut command = Command::new("unshare");
        let child =
            command.args(["-m", "--propagation", "private", "sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
        wait("the namespace is there", || lab::command_name(child.id().cast_signed()) == "sleep");
        Container(child)
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = run("nsenter", &[&["-t", &self.0.id().to_string(), "-m"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a writer and a prober through a fault and checks everything that holds for all of them.
fn survive(name: &str, fault: impl FnOnce(&mut Lab) -> Fault) -> (Report, Report, Fault) {
    let mut lab = Lab::new("");
    lab.wait_state("live");
    let container = Container::new();
    let mount = mount_of(&lab.hot);
    let seen_inside = container.run(&["stat", "-c", "%d:%i", lab.hot.to_str().unwrap()]);
    let writer = Agent::start("writer", &lab.hot.join("records"), &lab.path("writer.json"));
    let prober = Agent::start("prober", &lab.hot, &lab.path("prober.json"));
    wait("both are at work", || {
        std::fs::metadata(lab.store.join("records")).is_ok_and(|meta| meta.len() > 64 * RECORD as u64)
            && std::fs::metadata(lab.store.join("known")).is_ok()
    });
    let fault = fault(&mut lab);
    lab.wait_state("live");
    std::thread::sleep(Duration::from_secs(1));
    let (writer, prober) = (writer.finish(), prober.finish());

    let (longest, sync) = (writer.longest(|name| name != "fsync").max(prober.longest(|name| name != "fsync")), {
        writer.longest(|name| name == "fsync").max(prober.longest(|name| name == "fsync"))
    });
    let recovered =
        [&writer, &prober].iter().filter_map(|report| report.first_success_after(fault.healed)).min_by(f64::total_cmp);
    let recovered = recovered.unwrap_or_else(|| panic!("{name}: nothing succeeded afterwards")) - fault.healed;
    println!(
        "{name}: longest call {longest:.2} s, longest fsync {sync:.2} s, back {recovered:.2} s after the link was good, \
         {} errors, {} records synced",
        writer.errors().len() + prober.errors().len(),
        writer.synced
    );
    assert!(longest < CALL, "{name}: a call took {longest:.2} s");
    assert!(sync < SYNC, "{name}: an fsync took {sync:.2} s");
    assert!(writer.afterwards >= 16, "{name}: the descriptor does not write any more: {:?}", writer.errors().last());
    let file = std::fs::File::open(lab.store.join("records")).unwrap();
    let mut data = vec![0; RECORD];
    for number in 0..writer.synced {
        file.read_exact_at(&mut data, number * RECORD as u64).unwrap();
        assert!(data == record(number), "{name}: record {number} of {} is lost or wrong", writer.synced);
    }
    assert!(!lab.thread_states().contains(&'D'), "{name}: a thread of steadfs is stuck");
    assert_eq!(mount_of(&lab.hot), mount, "{name}: another mount");
    assert_eq!(container.run(&["stat", "-c", "%d:%i", lab.hot.to_str().unwrap()]), seen_inside);
    container.run(&["cat", lab.hot.join("known").to_str().unwrap()]);
    drop(container);
    lab.umount();
    (writer, prober, fault)
}

/// A fault after which the server is there: nobody sees an error, and nobody waits long.
fn survive_kill(name: &str, limit: f64, fault: impl FnOnce(&mut Lab)) {
    let (writer, prober, fault) = survive(name, |lab| {
        let began = now();
        fault(lab);
        wait("the next generation", || lab.status()["generation"].as_u64() > Some(1));
        Fault { began, healed: began }
    });
    let stall = writer.longest(|_| true).max(prober.longest(|_| true));
    assert!(stall < limit, "{name}: calls stalled for {stall:.2} s");
    assert!(prober.errors().is_empty(), "{name}: {:?}", prober.errors());
    // Until there is a log of writes, the fsync after an outage says once that it cannot promise anything.
    let unexpected: Vec<_> = writer.errors().into_iter().filter(|call| call.name != "fsync").collect();
    assert!(unexpected.is_empty() && writer.errors().len() <= 1, "{name}: {:?}", writer.errors());
    assert!(writer.first_success_after(fault.began).unwrap() - fault.began < limit);
}

/// A fault that outlives the deadlines: past them everything fails at once, with one errno.
fn survive_outage(name: &str, fault: impl FnOnce(&mut Lab)) {
    let (writer, prober, fault) = survive(name, |lab| {
        let began = now();
        fault(lab);
        Fault { began, healed: now() }
    });
    let overdue = |call: &&agent::Call| call.start > fault.began + CALL + 3.0 && call.end() < fault.healed - 0.2;
    let mut quick: Vec<f64> = writer.calls.iter().chain(&prober.calls).filter(overdue).map(|call| call.took).collect();
    quick.sort_by(f64::total_cmp);
    if let Some(median) = quick.get(quick.len() / 2) {
        println!("{name}: median of {} calls in the old outage {:.3} ms", quick.len(), median * 1e3);
        assert!(*median < 0.002, "{name}: the median call in an old outage takes {median} s");
    }
    let strange: Vec<_> = prober.errors().into_iter().filter(|call| call.errno != libc::ENOTCONN).collect();
    assert!(strange.is_empty(), "{name}: {strange:?}");
    let back =
        [&writer, &prober].iter().filter_map(|r| r.first_success_after(fault.healed)).min_by(f64::total_cmp).unwrap();
    assert!(back - fault.healed < 3.0, "{name}: back only {:.2} s after the link was healed", back - fault.healed);
}

#[test]
fn sshfs_killed() {
    survive_kill("sshfs killed", 1.5, |lab| lab.signal("sshfs", Signal::SIGKILL));
}

#[test]
fn ssh_killed() {
    survive_kill("ssh killed", 1.5, |lab| lab.signal("ssh", Signal::SIGKILL));
}

#[test]
fn server_session_killed() {
    survive_kill("server session killed", 1.5, |lab| lab.sshd.kill_sessions());
}

#[test]
fn sshfs_frozen() {
    survive_kill("sshfs frozen", 4.0, |lab| lab.signal("sshfs", Signal::SIGSTOP));
}

#[test]
fn ssh_frozen() {
    survive_kill("ssh frozen", 4.0, |lab| lab.signal("ssh", Signal::SIGSTOP));
}

#[test]
fn sftp_server_frozen() {
    // The link is good and the server might be busy with an fsync, so it is given the time of one.
    let (writer, prober, _) = survive("sftp-server frozen", |lab| {
        let began = now();
        lab.sshd.freeze_sftp();
        wait("the next generation", || lab.status()["generation"].as_u64() > Some(1));
        Fault { began, healed: now() }
    });
    let strange: Vec<_> = prober.errors().into_iter().filter(|call| call.errno != libc::ENOTCONN).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(writer.errors().iter().filter(|call| call.name == "fsync").count() <= 2, "{:?}", writer.errors());
}

#[test]
fn server_restarted_after_ten_seconds() {
    survive_outage("server away for 10 s", |lab| {
        lab.sshd.stop();
        std::thread::sleep(Duration::from_secs(10));
        lab.sshd.begin();
    });
}

#[test]
fn link_cut_for_twenty_seconds() {
    survive_outage("link cut for 20 s", |lab| {
        lab.net.cut();
        for _ in 0..4 {
            std::thread::sleep(Duration::from_secs(4));
            ask_everything(lab);
        }
        std::thread::sleep(Duration::from_secs(3));
        lab.net.heal();
    });
}

#[test]
fn link_cut_for_seventy_five_seconds() {
    survive_outage("link cut for 75 s", |lab| {
        lab.net.cut();
        std::thread::sleep(Duration::from_secs(75));
        lab.net.heal();
    });
}

#[test]
fn link_flapping() {
    survive("link flapping 3 s on, 3 s off, ten times", |lab| {
        let began = now();
        for _ in 0..10 {
            lab.net.cut();
            std::thread::sleep(Duration::from_secs(3));
            lab.net.heal();
            std::thread::sleep(Duration::from_secs(3));
        }
        Fault { began, healed: now() - 3.0 }
    });
}

#[test]
fn two_hundred_callers_of_a_frozen_sshfs_are_all_answered() {
    let lab = Lab::new("");
    lab.wait_state("live");
    let crowd = Agent::start("crowd", &lab.hot, &lab.path("crowd.json"));
    wait("all are at work", || std::fs::read_dir(&lab.store).unwrap().count() >= 200);
    lab.signal("sshfs", Signal::SIGSTOP);
    wait("the next generation", || lab.status()["generation"].as_u64() > Some(1));
    lab.wait_state("live");
    std::thread::sleep(Duration::from_secs(2));
    let report = crowd.finish();
    let longest = report.longest(|_| true);
    println!("200 callers: {} calls, longest {longest:.2} s, {} errors", report.calls.len(), report.errors().len());
    assert!(longest < CALL && report.errors().is_empty(), "{longest} {:?}", report.errors().first());
    assert_eq!(lab.status()["threads_stuck"], 0);
    lab.umount();
}

/// A regression: the supervisor read /proc files of a process that was inside execve(2), which waited for the mount.
#[test]
fn callers_that_start_programs_do_not_stop_the_repair() {
    let lab = Lab::new("");
    lab.wait_state("live");
    let forkers: Vec<_> = (0..4)
        .map(|n| Agent::start("forker", &lab.hot.join(format!("dirty-{n}")), &lab.path(&format!("forker-{n}.json"))))
        .collect();
    wait("all are at work", || std::fs::read_dir(&lab.store).unwrap().count() == 4);
    lab.signal("sshfs", Signal::SIGSTOP);
    // The survey of processes that the link's watch makes comes every five seconds at the latest.
    wait("the next generation", || lab.status()["generation"].as_u64() > Some(1));
    lab.wait_state("live");
    for forker in forkers {
        let report = forker.finish();
        assert!(report.longest(|name| name == "write") < CALL, "{}", report.longest(|_| true));
        assert!(report.longest(|name| name == "spawn") < SYNC, "{}", report.longest(|_| true));
    }
    lab.umount();
}

#[test]
fn a_slow_link_that_is_saturated_is_no_outage() {
    let lab = Lab::new("");
    lab.wait_state("live");
    lab.net.shape("1mbit");
    let bulk = Agent::start("bulk", &lab.hot.join("bulk"), &lab.path("bulk.json"));
    let prober = Agent::start("prober", &lab.hot, &lab.path("prober.json"));
    std::thread::sleep(Duration::from_secs(60));
    let (bulk, prober) = (bulk.finish(), prober.finish());
    println!(
        "1 Mbit/s: {} KiB written, longest write of 1 MiB {:.2} s, longest call beside it {:.2} s, {} probes",
        bulk.synced >> 10,
        bulk.longest(|_| true),
        prober.longest(|_| true),
        prober.calls.len()
    );
    assert!(bulk.errors().is_empty() && prober.errors().is_empty(), "{:?} {:?}", bulk.errors(), prober.errors());
    let status = lab.status();
    assert_eq!((&status["outages_total"], &status["generation"]), (&0.into(), &1.into()), "{status}");
    lab.umount();
}
