//! The laboratory itself: each fault bites. A plain sshfs in the place of steadfs leaves callers hanging beyond every
//! deadline, or their descriptor dead; else the other tests would prove nothing.

mod lab;

use lab::Lab;
use lab::agent::{Agent, Report};
use lab::scenario::CALL;
use nix::sys::signal::Signal;

lab::also_runs_as!(agent_process: lab::agents::main);

/// What becomes of a writer on a plain sshfs, with a fault that is taken back after 7 s if it can be.
fn suffer(name: &str, inject: impl FnOnce(&mut Lab), heal: impl FnOnce(&mut Lab)) -> Report {
    let mut lab = Lab::plain();
    let writer = Agent::start("writer", &lab.hot.join("records"), lab.directory()).at_work();
    inject(&mut lab);
    lab::sleep_secs(7.0);
    heal(&mut lab);
    let report = writer.finish();
    println!(
        "== plain sshfs, {name}: longest call {:.2} s, {} errors, {} records afterwards",
        report.longest(|_| true),
        report.errors().len(),
        report.afterwards
    );
    report
}

fn nothing(_: &mut Lab) {}

#[test]
fn a_plain_sshfs_is_dead_after_a_kill() {
    for (name, fault) in [
        ("sshfs killed", (|lab: &mut Lab| lab.signal("sshfs", Signal::SIGKILL)) as fn(&mut Lab)),
        ("ssh killed", |lab| lab.signal("ssh", Signal::SIGKILL)),
        ("session killed", |lab| lab.sshd.kill_sessions()),
    ] {
        let report = suffer(name, fault, nothing);
        assert!(!report.errors().is_empty(), "{name}");
        assert_eq!(report.afterwards, 0, "{name}");
    }
}

#[test]
fn a_plain_sshfs_hangs_when_anything_freezes_or_the_link_is_cut() {
    type Step = fn(&mut Lab);
    let faults: [(&str, Step, Step); 4] = [
        ("sshfs frozen", |l| l.signal("sshfs", Signal::SIGSTOP), |l| l.signal("sshfs", Signal::SIGCONT)),
        ("ssh frozen", |l| l.signal("ssh", Signal::SIGSTOP), |l| l.signal("ssh", Signal::SIGCONT)),
        ("sftp-server frozen", |l| l.sshd.freeze_sftp(), |l| l.sshd.thaw_sftp()),
        ("link cut", |l| l.net.cut(), |l| l.net.heal()),
    ];
    for (name, inject, heal) in faults {
        let report = suffer(name, inject, heal);
        assert!(report.longest(|_| true) > CALL, "{name}: {}", report.longest(|_| true));
        assert!(report.afterwards > 0, "{name}: it was thawed, and does not go on");
    }
}
