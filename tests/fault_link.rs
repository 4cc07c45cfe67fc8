//! The link is cut: no packet passes, and nobody says so.

mod lab;

use lab::agent::now;
use lab::scenario::{Fault, Outcome, survive};
use lab::{Lab, wait};
use nix::sys::signal::Signal;

lab::also_runs_as!(agent_process: lab::agents::main);

fn cut_for(seconds: f64) -> Outcome {
    survive(&format!("link cut for {seconds} s"), 2.0, |lab| {
        Fault::lasting(seconds, || lab.net.cut(), || lab.net.heal())
    })
}

#[test]
fn link_cut_for_twenty_seconds() {
    cut_for(20.0).failed_fast();
}

#[test]
fn link_cut_for_seventy_five_seconds() {
    cut_for(75.0).failed_fast();
}

#[test]
fn link_flapping() {
    let mut healed = Vec::new();
    let outcome = survive("link flapping, 3 s off and 3 s on, ten times", 2.0, |lab| {
        let began = now();
        for _ in 0..10 {
            lab.net.cut();
            lab::sleep_secs(3.0);
            lab.net.heal();
            healed.push(now());
            lab::sleep_secs(3.0);
        }
        Fault { began, healed: *healed.last().unwrap_or(&began) }
    });
    let back = |at: &f64| outcome.writer.first_success(|call| call.end() > *at).map_or(f64::NAN, |end| end - at);
    let back: Vec<f64> = healed.iter().map(back).collect();
    println!("   back after each healing: {back:.2?} s");
    let late = back.iter().filter(|&&seconds| seconds > 3.0).count();
    assert_eq!(late, 0, "the writer came back later than the next cut: {back:.2?}");
    let (errors, _) = outcome.errors();
    let strange: Vec<_> = errors.iter().filter(|call| call.errno != libc::ENOTCONN).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn a_session_whose_end_the_server_has_not_heard_of_is_ended_when_the_link_is_back() {
    let lab = Lab::new("");
    let before = lab.generation();
    assert_eq!(lab.sshd.sessions(), 1);
    lab.net.cut();
    lab.signal("ssh", Signal::SIGKILL);
    // The last packet of the old connection is lost, and so are the first ones of the next.
    lab.wait_state("reaching");
    lab.net.heal();
    wait("it is repaired", || lab.live().is_some_and(|number| number > before));
    wait("the old session has ended, and the new one has not", || lab.sshd.sessions() == 1);
    lab.umount();
}
