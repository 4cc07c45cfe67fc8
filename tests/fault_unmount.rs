//! Whatever dies around an unmount, in whatever order: nothing is left (promises P6 and P7).
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;

use lab::{Lab, mount_of, process, run, sleep_secs, sweep, wait};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

lab::also_runs_as!(agent_process: lab::agents::main);

/// A mount in the background, with something uncommitted; the pids of keeper and daemon.
fn mounted(lab: &Lab) -> (i32, i32) {
    let output = lab.mount_command("", "").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    lab.wait_state("live");
    std::fs::write(lab.hot.join("file"), "acknowledged").unwrap();
    let daemon = lab.serving();
    (process::parent(daemon).unwrap(), daemon)
}

fn umount(lab: &Lab, flag: &[&str]) -> Output {
    run("umount", &[flag, &[lab.hot.to_str().unwrap()]].concat())
}

fn left(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// No mount, process, or file of a runtime directory; and what was acknowledged is on the server.
fn assert_nothing_left(lab: &Lab, pids: &[i32], name: &str) {
    wait(&format!("{name}: no process is left"), || {
        let ended = pids.iter().all(|&pid| !process::exists(pid) || process::is_zombie(pid));
        ended && ["steadfs", "steadfs-keeper", "sshfs", "ssh"].iter().all(|which| lab.clients(which).is_empty())
    });
    wait(&format!("{name}: the server sees the client go"), || lab.sshd.sessions() == 0);
    assert_eq!(mount_of(&lab.hot), None, "{name}");
    assert_eq!(sweep::mounts_below(lab.directory()), Vec::<String>::new(), "{name}");
    for place in ["run", "state"] {
        let left = left(&lab.path(place));
        assert_eq!(left, Vec::<PathBuf>::new(), "{name}: {place}: {:?}", left.first().map(|path| self::left(path)));
    }
    assert_eq!(std::fs::read_to_string(lab.store.join("file")).unwrap(), "acknowledged", "{name}");
}

#[test]
fn an_unmount_while_nobody_serves_ends_everything() {
    let lab = Lab::unmounted();
    for flags in [MntFlags::empty(), MntFlags::MNT_DETACH] {
        let (keeper, daemon) = mounted(&lab);
        // So that there is no next one yet.
        process::signal(keeper, Signal::SIGSTOP);
        process::signal(daemon, Signal::SIGKILL);
        wait("the daemon has ended", || process::is_zombie(daemon) || !process::exists(daemon));
        // umount(8) would look at the mountpoint first, and wait for the next one.
        let unmounted = umount2(&lab.hot, flags);
        process::signal(keeper, Signal::SIGCONT);
        assert_eq!(unmounted, Ok(()), "{flags:?}");
        assert_nothing_left(&lab, &[keeper, daemon], &format!("{flags:?}"));
    }
}

#[test]
fn deaths_soon_after_an_unmount_leave_nothing() {
    let lab = Lab::unmounted();
    for (round, delay) in [0.0, 0.005, 0.02, 0.05, 0.1, 0.2].into_iter().enumerate() {
        for victim in ["daemon", "keeper"] {
            let (keeper, daemon) = mounted(&lab);
            let name = format!("{victim} killed {delay} s after umount");
            assert!(umount(&lab, &[]).status.success(), "{name}");
            sleep_secs(delay);
            process::signal(if victim == "daemon" { daemon } else { keeper }, Signal::SIGKILL);
            assert_nothing_left(&lab, &[keeper, daemon], &name);
        }
        // Nobody is left to clean up, but whoever is asked to.
        let (keeper, daemon) = mounted(&lab);
        assert!(umount(&lab, &[]).status.success());
        sleep_secs(delay);
        process::signal(keeper, Signal::SIGSTOP);
        process::signal(daemon, Signal::SIGKILL);
        process::signal(keeper, Signal::SIGKILL);
        // Each thread: whoever still holds the claim counts as a daemon that lives.
        wait("both end", || [keeper, daemon].iter().all(|&pid| process::has_ended(pid)));
        let _ = lab.steadfs(&["umount", lab.hot.to_str().unwrap()]).output().unwrap();
        assert_nothing_left(&lab, &[keeper, daemon], &format!("both killed after umount, round {round}"));
    }
}

#[test]
fn both_killed_and_then_unmounted_leaves_nothing() {
    let lab = Lab::unmounted();
    let (keeper, daemon) = mounted(&lab);
    run("sync", &["-f", lab.hot.to_str().unwrap()]);
    process::kill_both(daemon);
    let output = lab.steadfs(&["umount", lab.hot.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_nothing_left(&lab, &[keeper, daemon], "both killed");
}

#[test]
fn deaths_after_a_lazy_unmount_with_open_files_leave_nothing() {
    let lab = Lab::unmounted();
    for victim in ["daemon", "keeper"] {
        let (keeper, daemon) = mounted(&lab);
        let mut open = File::create(lab.hot.join("open")).unwrap();
        assert!(umount(&lab, &["-l"]).status.success());
        process::signal(if victim == "daemon" { daemon } else { keeper }, Signal::SIGKILL);
        open.write_all(b"still there").unwrap_or_else(|error| panic!("{victim}: {error}"));
        open.sync_all().unwrap_or_else(|error| panic!("{victim}: {error}"));
        drop(open);
        assert_nothing_left(&lab, &[keeper, daemon], &format!("lazy, {victim} killed"));
        assert_eq!(std::fs::read_to_string(lab.store.join("open")).unwrap(), "still there");
    }
}

#[test]
fn a_signal_to_either_ends_both() {
    let lab = Lab::unmounted();
    for victim in ["daemon", "keeper", "both"] {
        let (keeper, daemon) = mounted(&lab);
        if victim != "daemon" {
            process::signal(keeper, Signal::SIGTERM);
        }
        if victim != "keeper" {
            process::signal(daemon, Signal::SIGTERM);
        }
        assert_nothing_left(&lab, &[keeper, daemon], &format!("SIGTERM to {victim}"));
    }
}

#[test]
fn a_keeper_that_gives_up_ends_the_sshfs_too() {
    let lab = Lab::unmounted();
    let mut command = lab.mount_command("", "keeper_deadline=5s");
    assert!(command.status().unwrap().success());
    lab.wait_state("live");
    std::fs::write(lab.hot.join("file"), "acknowledged").unwrap();
    run("sync", &["-f", lab.hot.to_str().unwrap()]);
    let daemon = lab.serving();
    let keeper = process::parent(daemon).unwrap();
    // No successor can be ready, since each is killed.
    let mut last = daemon;
    wait("it is given up", || {
        let children = process::children(keeper);
        for pid in children.into_iter().filter(|&pid| process::name(pid) != "sshfs" && process::name(pid) != "ssh") {
            process::signal(pid, Signal::SIGKILL);
            last = pid;
        }
        process::name(keeper).is_empty()
    });
    assert_nothing_left(&lab, &[keeper, last], "given up");
}
