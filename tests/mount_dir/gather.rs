//! Small appends are sent together, and nobody can tell.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, errno, until};

/// An append is held back until something else makes it be sent.
fn never_due(traits: steadfs::backing::Traits) -> Rig {
    Rig::with(traits, PATIENCE, |config| config.gather = Duration::from_secs(3600))
}

/// A file of a known size, so that an append may be held back.
fn fresh(rig: &Rig, name: &str) -> File {
    OpenOptions::new().read(true).append(true).create_new(true).open(rig.hot(name)).expect("created")
}

fn writes(rig: &Rig) -> u64 {
    rig.control().calls(Call::Write)
}

#[test]
fn many_small_appends_become_few_writes() {
    let rig = never_due(SSHFS);
    let mut file = fresh(&rig, "f");
    let lines: Vec<u8> = (0..5000_u32).flat_map(|number| format!("{number:099}\n").into_bytes()).collect();
    for line in lines.chunks(100) {
        file.write_all(line).unwrap();
    }
    assert!(writes(&rig) < 10, "{} writes of 500 kB", writes(&rig));
    file.sync_all().unwrap();
    assert!(writes(&rig) < 11, "{} writes of 500 kB", writes(&rig));
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), lines);
}

#[test]
fn without_gathering_each_write_is_sent_by_itself() {
    let rig = Rig::with(SSHFS, PATIENCE, |config| config.gather = Duration::ZERO);
    let mut file = fresh(&rig, "f");
    for number in 1..=20_u64 {
        file.write_all(&[7; 100]).unwrap();
        assert_eq!((writes(&rig), rig.cold("f").metadata().unwrap().len()), (number, number * 100));
    }
}

#[test]
fn what_is_held_back_is_sent_after_a_moment_without_any_other_call() {
    let rig = Rig::new(SSHFS);
    let mut file = fresh(&rig, "f");
    for round in 1..=3 {
        file.write_all(b"line\n").unwrap();
        until(|| std::fs::read(rig.cold("f")).unwrap().len() == round * 5);
    }
    assert_eq!(writes(&rig), 3);
    assert!(rig.overlay.counts().log_bytes > 0, "it is not committed by that");
}

#[test]
fn what_is_held_back_is_there_for_everybody_who_looks() {
    for traits in [LOCAL, SSHFS] {
        // The kernel asks about everything.
        let rig = Rig::with(traits, PATIENCE, |config| {
            config.gather = Duration::from_secs(3600);
            config.attr_timeout = Duration::ZERO;
            config.entry_timeout = Some(Duration::ZERO);
        });
        let mut file = fresh(&rig, "f");
        let mut sent = 0;
        let mut held = |file: &mut File| {
            file.write_all(b"0123456789").unwrap();
            assert_eq!(rig.cold("f").metadata().unwrap().len(), sent, "it is held back");
            sent += 10;
            sent
        };
        let there = || rig.cold("f").metadata().unwrap().len();
        let size = held(&mut file);
        assert_eq!((file.metadata().unwrap().len(), there()), (size, size), "fstat");
        let size = held(&mut file);
        assert_eq!((rig.hot("f").metadata().unwrap().len(), there()), (size, size), "stat");
        let size = held(&mut file);
        let listed = std::fs::read_dir(rig.mountpoint()).unwrap().next().unwrap().unwrap();
        assert_eq!((listed.metadata().unwrap().len(), there()), (size, size), "readdir");
        let size = held(&mut file);
        let mut byte = [0];
        file.read_exact_at(&mut byte, size - 1).unwrap();
        assert_eq!(byte, *b"9");
        let mut content = Vec::new();
        File::open(rig.hot("f")).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!((content.len() as u64, there()), (size, size), "read");
        let size = held(&mut file);
        std::fs::hard_link(rig.hot("f"), rig.hot("g")).unwrap();
        assert_eq!(there(), size, "link");
        let size = held(&mut file);
        assert_eq!((rig.hot("g").metadata().unwrap().len(), there()), (size, size), "the other name");
        let size = held(&mut file);
        std::fs::remove_file(rig.hot("g")).unwrap();
        assert_eq!(there(), size, "unlink");
        let size = held(&mut file);
        std::fs::rename(rig.hot("f"), rig.hot("h")).unwrap();
        std::fs::rename(rig.hot("h"), rig.hot("f")).unwrap();
        assert_eq!(there(), size, "rename");
        let size = held(&mut file);
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        file.set_modified(then).unwrap();
        assert_eq!((there(), rig.cold("f").metadata().unwrap().modified().unwrap()), (size, then), "utimens");
        let size = held(&mut file);
        let copy = File::create(rig.hot("copy")).unwrap();
        let copied = nix::fcntl::copy_file_range(&file, Some(&mut 0), &copy, None, size as usize).unwrap();
        assert_eq!((copied as u64, there()), (size, size), "copy_file_range");
        let size = held(&mut file);
        file.set_len(size - 5).unwrap();
        assert_eq!(there(), size - 5, "truncate");
    }
}

#[test]
fn fsync_and_close_commit_what_is_held_back() {
    let rig = never_due(SSHFS);
    let mut file = fresh(&rig, "f");
    file.write_all(b"one ").unwrap();
    file.sync_all().unwrap();
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"one ");
    assert_eq!(rig.overlay.counts().log_bytes, 0);
    file.write_all(b"two").unwrap();
    assert_eq!(nix::unistd::close(file), Ok(()));
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"one two");
    assert_eq!(rig.overlay.counts().log_bytes, 0);
}

#[test]
fn two_appenders_and_a_writer_in_the_middle_see_one_file() {
    let rig = never_due(SSHFS);
    let mut one = fresh(&rig, "f");
    let mut two = OpenOptions::new().append(true).open(rig.hot("f")).unwrap();
    let middle = OpenOptions::new().write(true).open(rig.hot("f")).unwrap();
    let mut wanted = Vec::new();
    for number in 0..50_u8 {
        one.write_all(&[number; 30]).unwrap();
        two.write_all(&[number ^ 0xff; 20]).unwrap();
        wanted.extend([[number; 30].as_slice(), &[number ^ 0xff; 20]].concat());
        if number % 10 == 9 {
            middle.write_all_at(b"middle", u64::from(number) * 4).unwrap();
            wanted[usize::from(number) * 4..][..6].copy_from_slice(b"middle");
        }
    }
    let large = vec![1; 200 << 10];
    one.write_all(&large).unwrap();
    wanted.extend(&large);
    two.write_all(b"end").unwrap();
    wanted.extend(b"end");
    assert_eq!(std::fs::read(rig.hot("f")).unwrap(), wanted);
    one.sync_all().unwrap();
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), wanted);
}

#[test]
fn a_synchronous_write_is_not_held_back() {
    let rig = never_due(SSHFS);
    let mut plain = fresh(&rig, "f");
    let mut file = OpenOptions::new().append(true).custom_flags(libc::O_DSYNC).open(rig.hot("f")).unwrap();
    plain.write_all(b"held ").unwrap();
    file.write_all(b"synchronous").unwrap();
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"held synchronous");
    assert_eq!(rig.overlay.counts().log_bytes, 0);
}

#[test]
fn a_generation_that_dies_with_something_held_back_loses_nothing() {
    for traits in [LOCAL, SSHFS] {
        let rig = never_due(traits);
        let mut file = fresh(&rig, "f");
        file.write_all(b"committed ").unwrap();
        file.sync_all().unwrap();
        file.write_all(b"held").unwrap();
        rig.outage();
        assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"committed ");
        assert_eq!(rig.repair().replayed, 1);
        assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"committed held");
        file.write_all(b" and on").unwrap();
        // In the hand-over, which was done or not.
        for what in [What::Die, What::DieAfter] {
            rig.hold_verdicts();
            rig.control().inject(Fault::new(what).on(&[Call::Write]).times(1));
            let complaints = rig.complaints.lock().len();
            std::thread::scope(|scope| {
                let looking = scope.spawn(|| file.metadata().unwrap().len());
                until(|| rig.complaints.lock().len() > complaints);
                rig.outage();
                assert_eq!(rig.repair().failed.len(), 0);
                let size = looking.join().unwrap();
                assert_eq!(std::fs::metadata(rig.cold("f")).unwrap().size(), size);
            });
            file.write_all(b"!").unwrap();
        }
        assert_eq!(nix::unistd::close(file), Ok(()));
        assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"committed held and on!!");
    }
}

#[test]
fn what_a_live_backing_refuses_when_it_is_handed_over_is_told_once() {
    let rig = Rig::new(SSHFS);
    let mut file = fresh(&rig, "f");
    let mut other = OpenOptions::new().append(true).open(rig.hot("f")).unwrap();
    file.write_all(b"before ").unwrap();
    other.write_all(b"too ").unwrap();
    file.sync_all().unwrap();
    let full = rig.control().inject(Fault::new(What::Errno(Errno::EDQUOT)).on(&[Call::Write]));
    let tried = writes(&rig);
    file.write_all(b"refused").unwrap();
    // Once by itself and once with everything else.
    until(|| writes(&rig) >= tried + 2);
    assert_eq!(file.metadata().unwrap().len(), 18, "what was acknowledged is shown");
    assert_eq!(errno(file.sync_all()), Some(libc::EDQUOT));
    rig.control().remove(full);
    until(|| file.sync_all().is_ok());
    assert_eq!(errno(other.sync_all()), Some(libc::EDQUOT), "it had written too");
    other.sync_all().unwrap();
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"before too refused");
    assert_eq!(rig.overlay.counts().log_bytes, 0);
}

#[test]
fn nothing_is_held_back_in_an_outage() {
    let rig = Rig::with(SSHFS, Duration::from_millis(300), |config| config.gather = Duration::from_secs(3600));
    let mut file = fresh(&rig, "f");
    file.write_all(b"held").unwrap();
    rig.outage();
    assert_eq!(errno(file.write_all(b" refused")), Some(libc::ENOTCONN));
    rig.repair();
    file.write_all(b" and on").unwrap();
    file.sync_all().unwrap();
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"held and on");
}

#[test]
fn what_is_held_back_waits_for_nobody_elses_hang() {
    let rig = Rig::with(SSHFS, Duration::from_millis(400), |config| config.gather = Duration::from_millis(1));
    let (mut stuck, mut other) = (fresh(&rig, "stuck"), fresh(&rig, "other"));
    let hang = rig.control().inject(Fault::new(What::Hang).on(&[Call::Write]).path("stuck"));
    stuck.write_all(b"held").unwrap();
    assert!(rig.control().wait_inside(1, PATIENCE), "it was due");
    assert_eq!(errno(stuck.write_all(b"more")), Some(libc::ETIMEDOUT), "in time, and not before the other");
    other.write_all(b"x").unwrap();
    assert_eq!(other.metadata().unwrap().len(), 1);
    until(|| std::fs::read(rig.cold("other")).unwrap() == b"x");
    rig.control().remove(hang);
    until(|| std::fs::read(rig.cold("stuck")).unwrap() == b"held");
    stuck.sync_all().unwrap();
}
