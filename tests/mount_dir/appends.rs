//! Appends beside somebody who writes to the same file on the store.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use steadfs::backing::Traits;
use steadfs::backing::fake::{Call, Fault, What};
use steadfs::config::OverlayConfig;

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, until};

/// What is held back is sent when something makes it be sent; nothing may be believed that can be asked.
fn rig(traits: Traits, gather: Duration) -> Rig {
    Rig::with(traits, PATIENCE, |config| (config.gather, config.attr_timeout) = (gather, Duration::ZERO))
}

/// Both kinds of backing, with and without gathering.
fn rigs() -> impl Iterator<Item = Rig> {
    let kinds = [LOCAL, SSHFS].into_iter();
    kinds.flat_map(|traits| [Duration::ZERO, Duration::from_secs(3600)].map(|gather| rig(traits, gather)))
}

fn appending(path: std::path::PathBuf) -> File {
    OpenOptions::new().read(true).append(true).create(true).open(path).unwrap()
}

fn text(path: std::path::PathBuf) -> String {
    String::from_utf8(std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_append_goes_behind_what_others_have_written() {
    for rig in rigs() {
        let (mut ours, mut theirs) = (appending(rig.hot("f")), appending(rig.cold("f")));
        ours.write_all(b"one").unwrap();
        ours.sync_all().unwrap();
        theirs.write_all(b"THEIRS").unwrap();
        ours.write_all(b"two").unwrap();
        ours.write_all(b"three").unwrap();
        ours.sync_all().unwrap();
        assert_eq!(text(rig.cold("f")), "oneTHEIRStwothree");
        assert_eq!(text(rig.hot("f")), "oneTHEIRStwothree");
        let mut there = [0; 17];
        ours.read_exact_at(&mut there, 0).unwrap();
        assert_eq!(&there, b"oneTHEIRStwothree", "by the same descriptor too");
        // Larger than what is held back or sent at once.
        theirs.write_all(b"MORE").unwrap();
        let long = vec![b'x'; 300 << 10];
        ours.write_all(&long).unwrap();
        drop(ours);
        let found = std::fs::read(rig.cold("f")).unwrap();
        assert_eq!((found.len(), &found[17..21], found[21..] == long), (21 + long.len(), &b"MORE"[..], true));
    }
}

#[test]
fn what_is_held_back_goes_behind_what_others_write_meanwhile() {
    for traits in [LOCAL, SSHFS] {
        let rig = rig(traits, Duration::from_secs(3600));
        let (mut ours, mut theirs) = (appending(rig.hot("f")), appending(rig.cold("f")));
        ours.write_all(b"one").unwrap();
        ours.write_all(b"two").unwrap();
        assert_eq!(text(rig.cold("f")), "", "it is held back");
        theirs.write_all(b"THEIRS").unwrap();
        assert_eq!(rig.hot("f").metadata().unwrap().len(), 12, "the kernel learns of it");
        assert_eq!(text(rig.cold("f")), "THEIRSonetwo");
        assert_eq!(text(rig.hot("f")), "THEIRSonetwo");
    }
}

#[test]
fn an_append_goes_to_the_end_of_what_others_have_cut() {
    for rig in rigs() {
        let mut ours = appending(rig.hot("f"));
        ours.write_all(b"before").unwrap();
        ours.sync_all().unwrap();
        ours.write_all(b"sent").unwrap();
        assert_eq!(rig.hot("f").metadata().unwrap().len(), 10);
        OpenOptions::new().write(true).open(rig.cold("f")).unwrap().set_len(2).unwrap();
        ours.write_all(b"after").unwrap();
        ours.sync_all().unwrap();
        assert_eq!(text(rig.cold("f")), "beafter");
        // And what is held back when it is cut.
        ours.write_all(b"last").unwrap();
        OpenOptions::new().write(true).open(rig.cold("f")).unwrap().set_len(0).unwrap();
        ours.sync_all().unwrap();
        let found = text(rig.cold("f"));
        assert!(["last", ""].contains(&found.as_str()), "{found:?}");
        ours.write_all(b"on").unwrap();
        ours.sync_all().unwrap();
        assert_eq!(text(rig.cold("f")), found + "on");
        rig.outage();
        rig.repair();
        ours.write_all(b"!").unwrap();
        ours.sync_all().unwrap();
    }
}

#[test]
fn an_append_behind_others_is_written_again_at_its_place() {
    for rig in rigs() {
        rig.control().write_behind();
        let (mut ours, mut theirs) = (appending(rig.hot("f")), appending(rig.cold("f")));
        ours.write_all(b"one").unwrap();
        ours.sync_all().unwrap();
        theirs.write_all(b"THEIRS").unwrap();
        ours.write_all(b"two").unwrap();
        // It is handed over, and nothing has committed it.
        assert_eq!(rig.hot("f").metadata().unwrap().len(), 12);
        rig.outage();
        // The server has forgotten ours and kept theirs.
        OpenOptions::new().write(true).open(rig.cold("f")).unwrap().set_len(9).unwrap();
        let report = rig.repair();
        assert!(report.failed.is_empty(), "{report:?}");
        assert_eq!(text(rig.cold("f")), "oneTHEIRStwo");
        theirs.write_all(b"MORE").unwrap();
        ours.write_all(b"three").unwrap();
        ours.sync_all().unwrap();
        assert_eq!(text(rig.cold("f")), "oneTHEIRStwoMOREthree");
    }
}

#[test]
fn what_others_append_in_an_outage_is_not_overwritten() {
    for rig in rigs() {
        let mut ours = appending(rig.hot("f"));
        ours.write_all(b"one").unwrap();
        ours.sync_all().unwrap();
        ours.write_all(b"two").unwrap();
        assert_eq!(rig.hot("f").metadata().unwrap().len(), 6);
        ours.write_all(b"three").unwrap();
        rig.outage();
        // The server has never seen it, or has forgotten it.
        OpenOptions::new().write(true).open(rig.cold("f")).unwrap().set_len(3).unwrap();
        appending(rig.cold("f")).write_all(b"THEIRS").unwrap();
        rig.repair();
        assert_eq!(text(rig.cold("f")), "oneTHEIRS", "nothing says where ours belongs");
        assert_eq!(crate::rig::errno(ours.write_all(b"four")), Some(libc::EIO));
        assert_eq!(text(rig.hot("f")), "oneTHEIRS");
    }
}

#[test]
fn an_append_whose_generation_dies_in_it_is_there_once() {
    for traits in [LOCAL, SSHFS] {
        for lost in [What::Errno(Errno::ENOTCONN), What::LostReply, What::Short(1)] {
            for others in [false, true] {
                let rig = rig(traits, Duration::ZERO);
                rig.hold_verdicts();
                let mut ours = appending(rig.hot("f"));
                ours.write_all(b"one").unwrap();
                ours.sync_all().unwrap();
                if others {
                    appending(rig.cold("f")).write_all(b"THEIRS").unwrap();
                }
                let first = Fault::new(lost).on(&[Call::Write]).times(1);
                rig.control().inject(first);
                if lost == What::Short(1) {
                    // A byte of it is there when the rest of it fails.
                    rig.control().inject(Fault::new(What::Errno(Errno::ENOTCONN)).on(&[Call::Write]).times(1));
                }
                let complaints = rig.complaints.lock().len();
                std::thread::scope(|scope| {
                    let acting = scope.spawn(|| ours.write_all(b"two"));
                    until(|| rig.complaints.lock().len() > complaints || acting.is_finished());
                    rig.outage();
                    rig.repair();
                    acting.join().expect("no panic").unwrap();
                });
                ours.write_all(b"three").unwrap();
                ours.sync_all().unwrap();
                let before = if others { "oneTHEIRS" } else { "one" };
                assert_eq!(text(rig.cold("f")), format!("{before}twothree"), "{lost:?}");
            }
        }
    }
}

#[test]
fn what_the_server_refused_is_not_taken_for_cut_by_others() {
    let rig = rig(SSHFS, Duration::ZERO);
    let mut ours = appending(rig.hot("f"));
    ours.write_all(b"one").unwrap();
    ours.sync_all().unwrap();
    ours.write_all(b"two").unwrap();
    // As after a write that sshfs acknowledged and the server refused: it is not there, and an fsync says so.
    OpenOptions::new().write(true).open(rig.cold("f")).unwrap().set_len(3).unwrap();
    rig.control().inject(Fault::new(What::Errno(Errno::EIO)).on(&[Call::Sync]).times(1));
    ours.write_all(b"three").unwrap();
    ours.sync_all().unwrap();
    assert_eq!(text(rig.cold("f")), "onetwothree", "nothing that was acknowledged is given up");
}

#[test]
fn what_is_no_append_stays_where_it_was_put() {
    for rig in rigs() {
        std::fs::write(rig.cold("f"), "one").unwrap();
        let ours = OpenOptions::new().read(true).write(true).open(rig.hot("f")).unwrap();
        let mut theirs = appending(rig.cold("f"));
        theirs.write_all(b"THEIRS").unwrap();
        ours.write_all_at(b"two", 3).unwrap();
        ours.sync_all().unwrap();
        assert_eq!(text(rig.cold("f")), "onetwoIRS");
        // One descriptor, now one and then the other.
        let mut both = ours.try_clone().unwrap();
        fcntl(&both, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
        theirs.write_all(b"MORE").unwrap();
        both.write_all(b"end").unwrap();
        fcntl(&both, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        both.write_all_at(b"1", 0).unwrap();
        both.sync_all().unwrap();
        assert_eq!(text(rig.cold("f")), "1netwoIRSMOREend");
    }
}

#[test]
fn appends_and_other_writes_that_are_held_back_are_each_what_they_are() {
    for traits in [LOCAL, SSHFS] {
        let rig = rig(traits, Duration::from_secs(3600));
        let mut appends = appending(rig.hot("f"));
        let writes = OpenOptions::new().write(true).open(rig.hot("f")).unwrap();
        appends.write_all(b"one").unwrap();
        appends.sync_all().unwrap();
        writes.write_all_at(b"two", 3).unwrap();
        appends.write_all(b"three").unwrap();
        writes.write_all_at(b"four", 11).unwrap();
        appends.write_all(b"five").unwrap();
        appends.sync_all().unwrap();
        assert_eq!(text(rig.cold("f")), "onetwothreefourfive");
    }
}

#[test]
fn who_is_alone_asks_for_no_end() {
    let alone = |config: &mut OverlayConfig| {
        config.attr_timeout = OverlayConfig::EXCLUSIVE;
        config.gather = Duration::ZERO;
    };
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::with(traits, PATIENCE, alone);
        let mut ours = appending(rig.hot("f"));
        let before = rig.control().calls(Call::FileStat);
        for _ in 0..20 {
            ours.write_all(b"line\n").unwrap();
        }
        assert_eq!(rig.control().calls(Call::FileStat), before);
        assert_eq!(text(rig.cold("f")), "line\n".repeat(20));
    }
}

#[test]
fn the_end_is_not_asked_for_with_each_append_where_that_costs_a_round_trip() {
    let rig = Rig::with(SSHFS, PATIENCE, |config| config.gather = Duration::ZERO);
    let mut ours = appending(rig.hot("f"));
    let asked = Fault::new(What::Late(Duration::from_millis(20))).on(&[Call::FileStat]);
    rig.control().inject(asked);
    ours.write_all(b"line\n").unwrap();
    let before = rig.control().calls(Call::FileStat);
    let start = std::time::Instant::now();
    for _ in 0..200 {
        ours.write_all(b"line\n").unwrap();
    }
    let asked = rig.control().calls(Call::FileStat) - before;
    let most = start.elapsed().as_secs() + 1;
    assert!(asked <= most, "{asked} times in {:?}", start.elapsed());
}
