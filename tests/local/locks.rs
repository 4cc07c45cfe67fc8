//! Locks are the kernel's, of this machine: whatever becomes of backing and daemon, they are held.

use nix::sys::signal::Signal;

use super::rig::{Actor, Local};
use crate::lab::parts::Part;
use crate::lab::{Lab, wait};

const BUSY: i64 = -(libc::EAGAIN as i64);
/// An exclusive lock that is not waited for, a lock for writing.
const EXCLUSIVE: i32 = libc::LOCK_EX | libc::LOCK_NB;

/// Takes a lock of each kind, or tries to.
fn take(actor: &mut Actor) -> [i64; 3] {
    [
        actor.ask(&format!("flock 0 {EXCLUSIVE}")),
        actor.ask(&format!("lock 1 {} {} 10 10", libc::F_SETLK, libc::F_WRLCK)),
        actor.ask(&format!("lock 2 {} {} 10 10", libc::F_OFD_SETLK, libc::F_WRLCK)),
    ]
}

fn open(lab: &Lab) -> Actor {
    let mut actor = Actor::start();
    for (number, name) in ["flock", "posix", "ofd"].iter().enumerate() {
        assert_eq!(actor.ask(&format!("open {}", lab.hot.join(name).display())), number as i64);
    }
    actor
}

/// One holds, another is kept out, in all that happens meanwhile.
fn held_through(lab: &Lab, events: &mut [(&str, &mut dyn FnMut())]) {
    let (mut one, mut two) = (open(lab), open(lab));
    assert_eq!(take(&mut one), [0; 3]);
    let mut kept_out = |one: &mut Actor, when: &str| {
        assert_eq!(take(&mut two), [BUSY; 3], "{when}");
        // Elsewhere in the file there is room, and whoever asks is told of the lock.
        for (file, set, get) in [(1, libc::F_SETLK, libc::F_GETLK), (2, libc::F_OFD_SETLK, libc::F_OFD_GETLK)] {
            assert_eq!(two.ask(&format!("lock {file} {set} {} 30 5", libc::F_WRLCK)), 0, "{when}");
            assert_eq!(
                two.ask(&format!("asks {file} {get} {} 15 1", libc::F_RDLCK)),
                i64::from(libc::F_WRLCK),
                "{when}"
            );
            assert_eq!(
                one.ask(&format!("asks {file} {get} {} 30 5", libc::F_RDLCK)),
                i64::from(libc::F_WRLCK),
                "{when}"
            );
        }
        for file in 0..3 {
            assert_eq!(one.ask(&format!("put {file} 15 locked")), 6, "{when}");
            assert_eq!(two.ask(&format!("get {file} 15")), i64::from(b'l'), "{when}");
        }
    };
    kept_out(&mut one, "before");
    for (when, event) in events {
        event();
        kept_out(&mut one, when);
    }
    // One that waits gets the lock when it is free.
    let mut third = open(lab);
    third.say(&format!("lock 1 {} {} 12 1", libc::F_SETLKW, libc::F_WRLCK));
    assert_eq!(one.ask("close"), 0);
    assert_eq!(third.answer(), 0);
    drop(third);
    assert_eq!(take(&mut two), [0; 3]);
    drop(two);
    // A process that is killed lets go too.
    let mut last = open(lab);
    wait("everything is free", || take(&mut last) == [0; 3]);
}

#[test]
fn locks_over_a_directory_are_held_through_a_repair_and_the_death_of_the_daemon() {
    let local = Local::new("");
    held_through(
        &local.lab,
        &mut [
            ("after a repair", &mut || local.outage()),
            ("after the daemon's death", &mut || local.succession()),
            ("after both", &mut || local.outage()),
        ],
    );
    local.end();
}

#[test]
fn locks_over_sshfs_are_held_through_its_death_and_that_of_the_daemon() {
    let mut lab = Lab::untimed();
    let command = lab.mount_command("-f", "");
    lab.serve(command);
    lab.wait_state("live");
    let repaired = || {
        let before = lab.generation();
        lab.signal("sshfs", Signal::SIGKILL);
        wait("the next generation", || lab.live().is_some_and(|number| number > before));
    };
    let succeeded = || {
        let before = lab.serving();
        lab.parts().kill(Part::Daemon).expect("there is one");
        wait("the successor", || lab.status()["pid"].as_i64().is_some_and(|pid| pid != i64::from(before)));
        lab.wait_state("live");
    };
    held_through(
        &lab,
        &mut [
            ("after the death of sshfs", &mut || repaired()),
            ("after the daemon's death", &mut || succeeded()),
            ("after both", &mut || repaired()),
        ],
    );
    lab.umount();
}
