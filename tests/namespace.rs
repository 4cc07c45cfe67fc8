//! A container that was started before the outage goes on working after it: its mount namespace has private propagation,
//! so it sees no mount made later, and what it has must stay the same mount (promise P3).
#![allow(clippy::unwrap_used)]

mod lab;

use std::time::Duration;

use lab::container::Container;
use lab::scenario::wait_for_successor;
use lab::tools::LIMIT;
use lab::{Lab, mount_of, wait};
use nix::sys::signal::Signal;

lab::also_runs_as!(agent_process: lab::agents::main);

/// Everything that has to stay the same, and the programs that have to answer.
fn look(lab: &Lab, container: &Container, output: &str) -> [Option<(String, String)>; 3] {
    for arguments in [&["df", "-k", output][..], &["ls", "-d", output], &["findmnt", output], &["mountpoint", output]] {
        let answer = container.ask(arguments, LIMIT);
        assert_eq!(answer.code, Some(0), "{arguments:?}: {answer:?}");
    }
    let places = [container.mount_of(&lab.hot), container.mount_of(output.as_ref()), mount_of(&lab.hot)];
    assert!(places.iter().all(Option::is_some), "{places:?}");
    places
}

#[test]
fn a_container_from_before_the_faults_goes_on_working() {
    let lab = Lab::new("");
    let output = lab.path("output").display().to_string();
    std::fs::create_dir_all(&output).unwrap();
    std::fs::create_dir(lab.hot.join("job")).unwrap();
    let container = Container::new();
    // As `docker run -v HOT:/output` does it.
    let bind = container.ask(&["mount", "--bind", lab.hot.to_str().unwrap(), &output], LIMIT);
    assert_eq!(bind.code, Some(0), "{bind:?}");
    let before = look(&lab, &container, &output);
    let records = format!("{output}/job/records");
    let writer = container.agent("writer", records.as_ref(), lab.directory()).at_work();
    assert!(lab.store.join("job/records").exists());

    lab.signal("sshfs", Signal::SIGKILL);
    wait_for_successor(&lab, 1);
    assert_eq!(look(&lab, &container, &output), before, "after a kill");
    lab.signal("ssh", Signal::SIGSTOP);
    assert_eq!(look(&lab, &container, &output), before, "while ssh is frozen");
    wait_for_successor(&lab, 2);
    lab.net.cut();
    lab::sleep_secs(9.0);
    assert_eq!(look(&lab, &container, &output), before, "in an old outage");
    let refused = container.ask(&["ls", &records], Duration::from_secs(6));
    assert!(refused.stderr.contains("not connected"), "a missing backing is an error: {refused:?}");
    lab.net.heal();
    wait_for_successor(&lab, 3);
    assert_eq!(look(&lab, &container, &output), before, "after the cut");

    let report = writer.finish();
    assert_eq!(report.hanging, Vec::new());
    assert!(report.afterwards >= 32, "the descriptor does not write: {:?}", report.errors().last());
    lab::agents::verify(&lab.store.join("job/records"), report.synced);
    let made = container.ask(&["sh", "-c", &format!("echo made > {output}/new && cat {output}/new")], LIMIT);
    assert_eq!(made.stdout, "made\n", "{made:?}");
    assert_eq!(std::fs::read_to_string(lab.store.join("new")).unwrap(), "made\n");
    drop(container);
    lab.umount();
}

#[test]
fn a_container_that_holds_a_file_open_does_not_keep_a_daemon_that_was_told_to_end() {
    let mut lab = Lab::new("");
    std::fs::write(lab.hot.join("held"), "x").unwrap();
    let container = Container::new();
    let hold = format!("exec sleep 1000 < {}", lab.hot.join("held").display());
    let mut holder = container.command(&["sh", "-c", &hold]).spawn().unwrap();
    wait("it holds the file", || lab.status()["open_files"] == 1);
    let daemon = i32::try_from(lab.status()["pid"].as_u64().unwrap()).unwrap();
    lab::process::signal(daemon, Signal::SIGTERM);
    lab.assert_ended();
    holder.kill().unwrap();
    holder.wait().unwrap();
}
