//! Nothing that was acknowledged is lost, whoever writes and however fast: one writer that syncs without a pause, one that
//! never syncs and only closes, and sixteen of those, all at once through every fault (promise P4).
#![allow(clippy::unwrap_used)]

mod lab;

use std::path::Path;

use lab::agent::{Agent, Call, Report, now};
use lab::agents::verify;
use lab::scenario::{Fault, wait_for_successor};
use lab::{Lab, process};
use nix::sys::signal::Signal;

lab::also_runs_as!(agent_process: lab::agents::main);

/// Plays a fault under all writers; `blip` says that it is shorter than the deadline, so that nobody may see an error.
fn survive(name: &str, blip: bool, fault: impl FnOnce(&mut Lab) -> Fault) {
    let mut lab = Lab::new("");
    let start = |kind: &str, path: &str| Agent::start(kind, &lab.hot.join(path), lab.directory());
    let agents = [start("unpaced", "records"), start("stream", "stream"), start("streams", "streams")];
    let agents = agents.map(Agent::at_work);
    lab::sleep_secs(0.5);
    let fault = fault(&mut lab);
    lab.wait_state("live");
    let back = now() - fault.healed;
    lab::sleep_secs(1.0);
    let status = lab.status();
    let [unpaced, stream, streams] = agents.map(Agent::finish);
    report(name, back, &status, [&unpaced, &stream, &streams]);
    verify(&lab.store.join("records"), unpaced.synced);
    assert!(unpaced.afterwards >= 32, "{name}: the unpaced writer's descriptor does not write");
    for agent in [&unpaced, &stream, &streams] {
        assert_eq!(agent.hanging, Vec::new(), "{name}");
        check_errors(name, blip, agent);
    }
    let all: Vec<_> = stream.streams.iter().chain(&streams.streams).collect();
    assert_eq!(all.len(), 17, "{name}");
    for file in all {
        assert!(file.closed, "{name}: {file:?}");
        assert!(file.afterwards >= 32, "{name}: {file:?}");
        verify(&lab.store.join(file.path.file_name().map(Path::new).unwrap()), file.written);
    }
    let (resident, limit) = (&status["resident_bytes"], &status["resident_limit_bytes"]);
    assert!(resident.as_u64() < limit.as_u64(), "{name}: {resident} bytes of memory, the limit is {limit}");
    assert!(
        status["log"]["bytes"].as_u64() <= status["log"]["limit_bytes"].as_u64().map(|l| l + (4 << 20)),
        "{status}"
    );
    assert_eq!((&lab.status()["log"]["bytes"], &status["log"]["lost_files_total"]), (&0.into(), &0.into()));
    assert_eq!(process::stuck(&lab.family()), Vec::<String>::new(), "{name}");
    lab.umount();
}

fn report(name: &str, back: f64, status: &serde_json::Value, agents: [&Report; 3]) {
    let written: u64 = agents.iter().flat_map(|agent| &agent.streams).map(|file| file.written).sum();
    let longest = |which: fn(&Call) -> bool| agents.iter().map(|agent| agent.longest(which)).fold(0.0, f64::max);
    let errors: usize = agents.iter().map(|agent| agent.errors().len()).sum();
    println!(
        "== {name}: live {back:.2} s after it was over; {} records synced, {written} closed, {errors} errors, longest write \
         {:.2} s, fsync or close {:.2} s; {} bytes written again, {} MiB resident",
        agents[0].synced,
        longest(|call| call.name == "write"),
        longest(Call::syncs),
        status["log"]["replayed_bytes_total"],
        status["resident_bytes"].as_u64().unwrap_or(0) >> 20,
    );
}

/// What failed was told so in time and with the outage's errno.
fn check_errors(name: &str, blip: bool, agent: &Report) {
    let strange: Vec<_> =
        agent.errors().into_iter().filter(|call| blip || call.errno != libc::ENOTCONN).take(5).collect();
    assert!(strange.is_empty(), "{name}: {strange:?}");
    let longest = agent.longest(|call| call.name == "write");
    // Eighteen writers without a pause leave nobody the machine: the deadline to the tenth is for the other tests of faults.
    assert!(longest <= lab::scenario::CALL + 1.0, "{name}: a write took {longest:.2} s");
}

fn killed(name: &'static str, signal: Signal) -> impl FnOnce(&mut Lab) -> Fault {
    move |lab| {
        let fault = Fault::once(|| lab.signal(name, signal));
        wait_for_successor(lab, 1);
        fault
    }
}

#[test]
fn killed_sshfs_and_ssh() {
    survive("sshfs killed", true, killed("sshfs", Signal::SIGKILL));
    survive("ssh killed", true, killed("ssh", Signal::SIGKILL));
    survive("server session killed", true, |lab| {
        let fault = Fault::once(|| lab.sshd.kill_sessions());
        wait_for_successor(lab, 1);
        fault
    });
}

#[test]
fn frozen_sshfs_and_ssh() {
    survive("sshfs frozen", true, killed("sshfs", Signal::SIGSTOP));
    survive("ssh frozen", true, killed("ssh", Signal::SIGSTOP));
}

#[test]
fn frozen_server() {
    // Found after 6 s if an fsync is inside: longer than the deadline.
    survive("sftp-server frozen", false, |lab| {
        let fault = Fault::once(|| lab.sshd.freeze_sftp());
        wait_for_successor(lab, 1);
        fault
    });
}

#[test]
fn server_away_for_ten_seconds() {
    survive("server away for 10 s", false, |lab| {
        let began = now();
        lab.sshd.stop();
        lab::sleep_secs(10.0);
        lab.sshd.begin();
        Fault { began, healed: now() }
    });
}

#[test]
fn link_cut_for_three_and_for_twenty_seconds() {
    for (seconds, blip) in [(3.0, true), (20.0, false)] {
        survive(&format!("link cut for {seconds} s"), blip, |lab| {
            Fault::lasting(seconds, || lab.net.cut(), || lab.net.heal())
        });
    }
}
