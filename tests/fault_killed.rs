//! steadfs itself is killed: what it had hidden is removed by its successor, what others had hidden is not (promise P4).
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use lab::tree::named_below;
use lab::{Lab, run_ok, wait};

lab::also_runs_as!(agent_process: lab::agents::main);

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn unlinked(path: &Path) -> File {
    let file = open(path);
    file.write_all_at(b"kept", 0).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

#[test]
fn a_killed_steadfs_leaves_a_clean_store_once_it_is_started_again() {
    let mut lab = Lab::new("");
    // Somebody else: another mountpoint of the same store.
    let other = lab.path("other");
    std::fs::create_dir(&other).unwrap();
    let mut mount = lab.steadfs(&["mount"]);
    mount.arg(lab.source()).arg(&other).args(["-o", &format!("guard=no,{}", lab.sshd.client_options())]);
    assert!(mount.status().unwrap().success());
    let theirs = unlinked(&other.join("theirs"));
    let foreign = named_below(&lab.store, "hidden");
    assert_eq!(foreign.len(), 1);

    std::fs::create_dir_all(lab.hot.join("jobs/a")).unwrap();
    let files = [unlinked(&lab.hot.join("f")), unlinked(&lab.hot.join("jobs/a/f")), open(&lab.hot.join("jobs/state"))];
    std::fs::write(lab.hot.join("jobs/state.tmp"), "new").unwrap();
    std::fs::rename(lab.hot.join("jobs/state.tmp"), lab.hot.join("jobs/state")).unwrap();
    std::fs::rename(lab.hot.join("jobs"), lab.hot.join("done")).unwrap();
    assert_eq!(named_below(&lab.store, "hidden").len(), 4);
    lab.kill_daemon();
    drop(files);
    assert_eq!(named_below(&lab.store, "hidden").len(), 4, "nobody was left to remove them");

    let again = lab.mount_command("-f", "");
    lab.serve(again);
    lab.wait_state("live");
    // It is live before it is mounted, and what `serve` has found may be the dead mount, which is detached before that.
    wait("it is mounted", || std::fs::read_to_string(lab.hot.join("done/state")).is_ok());
    wait("the store is clean", || named_below(&lab.store, "hidden") == foreign);
    assert_eq!(std::fs::read_to_string(lab.hot.join("done/state")).unwrap(), "new");
    let mut text = [0; 4];
    theirs.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"kept");
    drop(theirs);
    wait("its owner removes it", || named_below(&lab.store, "hidden").is_empty());
    run_ok("umount", &[other.to_str().unwrap()]);
    lab.umount();
}
