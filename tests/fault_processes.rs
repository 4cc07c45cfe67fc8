//! The client's own processes die or freeze while the server is well: nobody above notices more than a pause.

mod lab;

use lab::Lab;
use lab::agent::Agent;
use lab::scenario::{CALL, Fault, SYNC, survive, wait_for_successor};
use nix::sys::signal::Signal;

lab::also_runs_as!(agent_process: lab::agents::main);

fn hit(name: &'static str, signal: Signal) -> impl FnOnce(&mut Lab) -> Fault {
    move |lab| {
        let fault = Fault::once(|| lab.signal(name, signal));
        wait_for_successor(lab, 1);
        fault
    }
}

#[test]
fn sshfs_killed() {
    survive("sshfs killed", 1.0, hit("sshfs", Signal::SIGKILL)).was_invisible();
}

#[test]
fn sshfs_frozen() {
    // 3 s to detect it, 1 s to repair it.
    survive("sshfs frozen", 4.0 / 1.5, hit("sshfs", Signal::SIGSTOP)).was_invisible();
}

#[test]
fn ssh_killed() {
    survive("ssh killed", 1.0, hit("ssh", Signal::SIGKILL)).was_invisible();
}

#[test]
fn ssh_frozen() {
    survive("ssh frozen", 4.0 / 1.5, hit("ssh", Signal::SIGSTOP)).was_invisible();
}

#[test]
fn two_hundred_callers_of_a_frozen_sshfs_are_all_answered() {
    let lab = Lab::new("");
    let crowd = Agent::start("crowd", &lab.hot, lab.directory()).at_work();
    lab::sleep_secs(1.0);
    lab.signal("sshfs", Signal::SIGSTOP);
    wait_for_successor(&lab, 1);
    lab::sleep_secs(2.0);
    let report = crowd.finish();
    let (longest, sync) = (report.longest(|call| !call.syncs()), report.longest(|call| call.syncs()));
    println!(
        "== 200 callers of a frozen sshfs: {} calls, longest {longest:.2} s, fsync or close {sync:.2} s, {} errors",
        report.calls.len(),
        report.errors().len()
    );
    assert_eq!(report.hanging, Vec::new());
    assert!(report.errors().is_empty(), "{:?}", report.errors().first());
    assert!(longest <= CALL && sync <= SYNC, "{longest} {sync}");
    assert_eq!(lab.status()["threads_stuck"], 0, "{}", lab.status());
    assert_eq!(lab::process::stuck(&lab.family()), Vec::<String>::new());
    lab.umount();
}

#[test]
fn a_caller_that_waits_for_a_frozen_sshfs_can_be_killed() {
    let lab = Lab::new("");
    let writer = Agent::start("writer", &lab.hot.join("records"), lab.directory()).at_work();
    lab.signal("sshfs", Signal::SIGSTOP);
    lab::sleep_secs(0.3);
    let begun = std::time::Instant::now();
    let pid = writer.pid();
    drop(writer);
    lab::wait("the killed writer ends", || lab::process::has_ended(pid));
    let took = begun.elapsed().as_secs_f64();
    println!("== a killed caller ends after {took:.3} s");
    assert!(took <= CALL, "a killed caller ended only after {took:.2} s");
    wait_for_successor(&lab, 1);
    lab.umount();
}

/// A regression: the supervisor read /proc files of a process that was inside execve(2), which waited for the mount.
#[test]
fn callers_that_start_programs_do_not_stop_the_repair() {
    let lab = Lab::new("");
    let start = |n| Agent::start("forker", &lab.hot.join(format!("dirty-{n}")), lab.directory()).at_work();
    let forkers: Vec<_> = (0..4).map(start).collect();
    lab.signal("sshfs", Signal::SIGSTOP);
    // The survey of processes that the link's watch makes comes every five seconds at the latest.
    wait_for_successor(&lab, 1);
    lab::sleep_secs(1.0);
    for forker in forkers {
        let report = forker.finish();
        assert_eq!(report.hanging, Vec::new());
        assert!(report.longest(|call| call.name == "write") <= CALL, "{}", report.longest(|_| true));
        // execve(2) closes: it has the limit of a close.
        assert!(report.longest(|_| true) <= SYNC, "{}", report.longest(|_| true));
    }
    lab.umount();
}
