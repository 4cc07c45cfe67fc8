//! `dir:` over somebody else's mount, here an sshfs that steadfs does not own: it cannot repair it, but it answers in time
//! and goes on by itself when the mount is well again.
#![allow(clippy::unwrap_used)]

mod lab;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use lab::agent::now;
use lab::scenario::{Fault, Outcome, survive_in};
use lab::{Lab, mount_of, run, wait};
use nix::sys::signal::Signal;

lab::also_runs_as!(agent_process: lab::agents::main);

/// Mounts the store by sshfs alone.
fn mount_below(lab: &Lab, below: &PathBuf) -> Child {
    let mut command = Command::new("sshfs");
    command.args(["-f", "-o", &format!("{},sshfs_sync", lab.sshd.client_options()), &lab.source()]).arg(below);
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    wait("the mount below is there", || mount_of(below).is_some());
    child
}

fn survive_below(name: &str, patience: f64, fault: impl FnOnce(&mut Lab, &PathBuf, &mut Child) -> Fault) -> Outcome {
    let mut lab = Lab::unmounted();
    let below = lab.path("below");
    std::fs::create_dir(&below).unwrap();
    let mut sshfs = mount_below(&lab, &below);
    let mut command = lab.steadfs(&["mount", "-f", &format!("dir:{}", below.display())]);
    command.arg(&lab.hot).args(["-o", "guard=no"]);
    lab.serve(command);
    lab.wait_state("live");
    let outcome = survive_in(&mut lab, name, patience, |lab| fault(lab, &below, &mut sshfs));
    assert!(run("umount", &[lab.hot.to_str().unwrap()]).status.success());
    wait("nobody uses the mount below", || run("umount", &[below.to_str().unwrap()]).status.success());
    sshfs.wait().unwrap();
    lab.assert_ended();
    outcome
}

#[test]
fn a_frozen_mount_below_is_answered_for_and_goes_on() {
    let outcome = survive_below("dir: frozen for 15 s", 2.0, |lab, _, _| {
        Fault::lasting(15.0, || lab.signal("sshfs", Signal::SIGSTOP), || lab.signal("sshfs", Signal::SIGCONT))
    });
    outcome.failed_fast();
}

#[test]
fn a_mount_below_that_dies_and_is_made_again_goes_on() {
    let outcome = survive_below("dir: gone for 15 s", 2.0, |lab, below, sshfs| {
        let began = now();
        sshfs.kill().unwrap();
        sshfs.wait().unwrap();
        lab::sleep_secs(1.0);
        // Now the empty local directory lies open, and nothing may be written there (promise P5).
        assert!(run("umount", &["-l", below.to_str().unwrap()]).status.success());
        lab::sleep_secs(14.0);
        assert_eq!(std::fs::read_dir(below).unwrap().count(), 0, "something was written below the mount");
        *sshfs = mount_below(lab, below);
        Fault { began, healed: now() }
    });
    outcome.failed_fast();
}
