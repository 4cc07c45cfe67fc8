//! Acknowledged is kept: what the write log does when a generation dies, a commit fails, or the file is another one.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::errno::Errno;
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{LOCAL, LOG, PATIENCE, Rig, SSHFS, errno, until};

fn open(rig: &Rig, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(rig.hot(name)).expect("opened")
}

/// As a server that crashed before its disk had it.
fn forget(rig: &Rig, name: &str, content: &[u8]) {
    std::fs::write(rig.cold(name), content).unwrap();
}

#[test]
fn what_the_server_forgot_is_written_again_before_anybody_is_let_in() {
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::new(traits);
        let mut file = open(&rig, "f");
        file.write_all(b"committed ").unwrap();
        file.sync_all().unwrap();
        file.write_all(b"acknowledged").unwrap();
        rig.outage();
        forget(&rig, "f", b"committed ");
        let report = rig.repair();
        assert_eq!((report.replayed, report.failed.len()), (1, 0));
        assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"committed acknowledged");
        assert_eq!(rig.overlay.counts().log_bytes, 0, "the replay committed it");
        file.sync_all().unwrap();
        file.write_all(b" and more").unwrap();
        rig.outage();
        rig.repair();
        assert_eq!(nix::unistd::close(file), Ok(()));
        assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"committed acknowledged and more");
    }
}

#[test]
fn truncations_are_written_again_in_their_order() {
    let rig = Rig::new(SSHFS);
    let mut file = open(&rig, "f");
    file.write_all(b"0123456789").unwrap();
    file.sync_all().unwrap();
    file.set_len(4).unwrap();
    file.write_at(b"abc", 6).unwrap();
    file.set_len(8).unwrap();
    let mut by_path = open(&rig, "g");
    by_path.write_all(b"0123456789").unwrap();
    nix::unistd::truncate(&rig.hot("g"), 2).unwrap();
    let mut again = open(&rig, "h");
    again.write_all(b"old state").unwrap();
    let mut cut = File::create(rig.hot("h")).unwrap();
    cut.write_all(b"new").unwrap();
    rig.outage();
    for (name, size) in [("f", 10), ("g", 10), ("h", 9)] {
        forget(&rig, name, &b"0123456789"[..size]);
    }
    assert_eq!(rig.repair().replayed, 3);
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"0123\0\0ab");
    assert_eq!(std::fs::read(rig.cold("g")).unwrap(), b"01");
    assert_eq!(std::fs::read(rig.cold("h")).unwrap(), b"new");
}

#[test]
fn a_write_of_one_descriptor_is_committed_by_the_fsync_of_another() {
    let rig = Rig::new(SSHFS);
    let (writer, other) = (open(&rig, "f"), open(&rig, "f"));
    writer.write_at(b"x", 0).unwrap();
    assert!(rig.overlay.counts().log_bytes > 0);
    other.sync_all().unwrap();
    assert_eq!(rig.overlay.counts().log_bytes, 0);
}

#[test]
fn a_file_that_is_another_one_after_a_repair_is_not_written_to() {
    // The kernel gives appenders the size it believes in.
    let rig = Rig::with(SSHFS, PATIENCE, |config| {
        config.attr_timeout = Duration::ZERO;
        config.entry_timeout = Some(Duration::ZERO);
    });
    let (mut shorter, mut other, mut gone) = (open(&rig, "shorter"), open(&rig, "other"), open(&rig, "gone"));
    let bystander = open(&rig, "bystander");
    for file in [&mut shorter, &mut other, &mut gone] {
        file.write_all(b"committed ").unwrap();
        file.sync_all().unwrap();
        file.write_all(b"acknowledged").unwrap();
    }
    bystander.write_at(b"mine", 0).unwrap();
    rig.outage();
    forget(&rig, "shorter", b"commit");
    forget(&rig, "other", b"what somebody else wrote");
    std::fs::remove_file(rig.cold("gone")).unwrap();
    rig.repair();
    for file in [&mut shorter, &mut other, &mut gone] {
        assert_eq!(errno(file.sync_all()), Some(libc::EIO));
        assert_eq!(errno(file.write_all(b"more")), Some(libc::EIO), "for good");
        assert_eq!(errno(file.read(&mut [0])), Some(libc::EIO));
    }
    assert_eq!(nix::unistd::close(shorter), Err(Errno::EIO));
    assert_eq!(std::fs::read(rig.cold("shorter")).unwrap(), b"commit");
    assert_eq!(std::fs::read(rig.cold("other")).unwrap(), b"what somebody else wrote");
    assert!(!rig.cold("gone").exists());
    bystander.sync_all().unwrap();
    // Who opens what is there now has nothing to do with it.
    let mut fresh = OpenOptions::new().append(true).open(rig.hot("other")).unwrap();
    fresh.write_all(b"+").unwrap();
    fresh.sync_all().unwrap();
    assert_eq!(std::fs::read(rig.cold("other")).unwrap(), b"what somebody else wrote+");
    assert_eq!(rig.overlay.counts().log_bytes, 0);
}

#[test]
fn a_commit_that_failed_is_told_to_every_writer_once_and_tried_again() {
    let rig = Rig::new(SSHFS);
    let (one, two) = (open(&rig, "f"), open(&rig, "f"));
    one.write_at(b"one", 0).unwrap();
    two.write_at(b"two", 3).unwrap();
    let broken = rig.control().inject(Fault::new(What::Errno(Errno::EDQUOT)).on(&[Call::Sync]));
    assert_eq!(errno(one.sync_all()), Some(libc::EDQUOT));
    rig.control().remove(broken);
    // Not offered again at once; then all of it is.
    until(|| one.sync_all().is_ok());
    assert_eq!(errno(two.sync_all()), Some(libc::EDQUOT), "it wrote too");
    two.sync_all().unwrap();
    let late = open(&rig, "f");
    late.sync_all().unwrap();
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"onetwo");
    assert_eq!(rig.overlay.counts().log_bytes, 0);
}

#[test]
fn what_the_server_refuses_keeps_nobody_from_reading() {
    for refusal in [Errno::EDQUOT, Errno::EIO] {
        // The kernel has what was written for as long as it likes, so that is not read.
        let rig = Rig::new(SSHFS);
        std::fs::write(rig.cold("f"), vec![b'a'; 100_000]).unwrap();
        let file = open(&rig, "f");
        file.write_at(b"refused", 0).unwrap();
        rig.control().inject(Fault::new(What::Errno(refusal)).on(&[Call::Write, Call::Sync]));
        assert_eq!(errno(file.sync_all()), Some(refusal as i32));
        let mut data = [0; 1000];
        for pause in [Duration::ZERO, Duration::from_millis(1200)] {
            // Beyond that moment it is offered again.
            std::thread::sleep(pause);
            let reader = std::fs::File::open(rig.hot("f")).unwrap();
            reader.read_exact_at(&mut data, 60_000).unwrap();
            assert_eq!(data, [b'a'; 1000]);
            assert_eq!(reader.read_at(&mut data, 99_500).unwrap(), 500, "{refusal}: it ends where it ends");
            assert_eq!(reader.read_at(&mut data, 100_000).unwrap(), 0);
        }
        rig.control().clear_faults();
        until(|| file.sync_all().is_ok());
        assert_eq!(&std::fs::read(rig.cold("f")).unwrap()[..8], b"refuseda");
    }
}

#[test]
fn one_failed_fsync_of_the_server_is_made_good_by_sending_everything_again() {
    let rig = Rig::new(SSHFS);
    let file = open(&rig, "f");
    file.write_at(b"data", 0).unwrap();
    rig.control().inject(Fault::new(What::Errno(Errno::EIO)).on(&[Call::Sync]).times(1));
    let writes = rig.control().calls(Call::Write);
    file.sync_all().unwrap();
    assert!(rig.control().calls(Call::Write) > writes, "the fsync that failed said nothing of what it covered");
}

#[test]
fn what_was_written_before_a_late_close_is_committed_after_it() {
    let rig = Rig::new(SSHFS);
    let file = open(&rig, "f");
    file.write_at(b"data", 0).unwrap();
    rig.outage();
    forget(&rig, "f", b"");
    std::thread::scope(|scope| {
        let closing = scope.spawn(move || nix::unistd::close(file));
        until(|| rig.gate.load().waiting > 0);
        rig.repair();
        assert_eq!(closing.join().unwrap(), Ok(()));
    });
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"data");
    until(|| rig.overlay.counts().open_files == 0);
}

#[test]
fn the_log_is_bounded_and_commits_by_itself() {
    let rig = Rig::new(SSHFS);
    let file = open(&rig, "f");
    let block = vec![7; 128 << 10];
    for number in 0..(4 * LOG / block.len() as u64) {
        file.write_all_at(&block, number * block.len() as u64).unwrap();
        assert!(rig.overlay.counts().log_bytes <= LOG + 2 * block.len() as u64, "{:?}", rig.overlay.counts());
    }
    assert!(rig.control().calls(Call::Sync) >= 4);
    file.sync_all().unwrap();
    assert_eq!(rig.overlay.counts().log_bytes, 0);
}

#[test]
fn a_generation_that_dies_in_a_replay_makes_the_next_one_start_over() {
    let rig = Rig::new(SSHFS);
    let file = open(&rig, "f");
    for number in 0..64_u64 {
        // Not adjacent: each is written by itself.
        file.write_at(&number.to_le_bytes(), number * 16).unwrap();
    }
    rig.outage();
    forget(&rig, "f", b"");
    rig.control().inject(Fault::new(What::Hang).on(&[Call::Write]).after(20));
    let generation = rig.start();
    let restored = std::thread::scope(|scope| {
        let restoring = scope.spawn(|| rig.overlay.restore(&generation, PATIENCE));
        assert!(rig.control().wait_inside(1, PATIENCE));
        rig.control().kill_generation();
        restoring.join().unwrap()
    });
    assert!(restored.is_err(), "{restored:?}");
    rig.control().clear_faults();
    rig.outage();
    assert_eq!(rig.repair().replayed, 1);
    let content = std::fs::read(rig.cold("f")).unwrap();
    for number in 0..64_usize {
        assert_eq!(content[number * 16..number * 16 + 8], (number as u64).to_le_bytes());
    }
}

#[test]
fn a_read_that_ends_before_the_file_does_is_an_error() {
    let rig = Rig::new(SSHFS);
    std::fs::write(rig.cold("f"), vec![7; 1 << 20]).unwrap();
    rig.control().inject(Fault::new(What::Short(0)).on(&[Call::Read]));
    let mut content = Vec::new();
    assert_eq!(errno(File::open(rig.hot("f")).unwrap().read_to_end(&mut content)), Some(libc::EIO));
    rig.control().clear_faults();
    rig.control().inject(Fault::new(What::Short(1000)).on(&[Call::Read]).times(1));
    let mut content = Vec::new();
    File::open(rig.hot("f")).unwrap().read_to_end(&mut content).unwrap();
    assert_eq!(content.len(), 1 << 20, "one short answer is asked again");
}

#[test]
fn a_file_that_may_not_be_written_any_more_is_replayed_all_the_same() {
    let rig = Rig::new(SSHFS);
    let mut options = OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o444);
    let mut file = options.write(true).create_new(true).open(rig.hot("f")).unwrap();
    file.write_all(b"object").unwrap();
    rig.outage();
    forget(&rig, "f", b"");
    rig.repair();
    file.sync_all().unwrap();
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"object");
}

/// As pwritev2(2), at the end of the file.
fn append_with(file: &File, flags: i32, data: &[u8]) -> std::io::Result<usize> {
    let vector = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let end = file.metadata()?.len().try_into().unwrap();
    // SAFETY: one vector, of bytes that are borrowed for the whole call and only read.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &vector, 1, end, flags) };
    Ok(usize::try_from(Errno::result(written)?).unwrap())
}

#[test]
fn a_synchronous_write_is_committed_before_it_is_acknowledged() {
    // Small appends would be held back.
    let rig = Rig::with(SSHFS, PATIENCE, |config| config.gather = Duration::from_secs(3600));
    let mut length = 0;
    for open_flags in [0, libc::O_DSYNC, libc::O_SYNC, libc::O_DIRECT] {
        let mut options = OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, open_flags);
        let file = options.read(true).write(true).create(true).truncate(false).open(rig.hot("f")).unwrap();
        for flags in [0, libc::RWF_DSYNC, libc::RWF_SYNC] {
            let synced = rig.control().calls(Call::Sync);
            assert_eq!(append_with(&file, flags, b"data").unwrap(), 4);
            length += 4;
            let synchronous = flags != 0 || open_flags & libc::O_SYNC != 0;
            assert_eq!(rig.overlay.counts().log_bytes == 0, synchronous, "{open_flags:#o} {flags:#x}");
            assert_eq!(rig.control().calls(Call::Sync) > synced, synchronous, "{open_flags:#o} {flags:#x}");
            if synchronous {
                assert_eq!(std::fs::metadata(rig.cold("f")).unwrap().len(), length);
            }
        }
    }
}

/// The kernel does not hand syncfs(2) on: it writes pages back, and that is all.
#[test]
fn syncfs_says_nothing_of_what_is_uncommitted() {
    let rig = Rig::new(SSHFS);
    let file = open(&rig, "f");
    file.write_at(b"data", 0).unwrap();
    // SAFETY: only a number is passed.
    assert_eq!(Errno::result(unsafe { libc::syncfs(file.as_raw_fd()) }), Ok(0));
    assert!(rig.overlay.counts().log_bytes > 0);
    assert_eq!(rig.control().calls(Call::Sync), 0);
    file.sync_all().unwrap();
    assert_eq!(rig.overlay.counts().log_bytes, 0);
}

#[test]
fn nothing_is_sent_after_a_write_whose_fate_is_unknown() {
    let rig = Rig::prompt(SSHFS, Duration::from_millis(400));
    let (file, other) = (open(&rig, "f"), open(&rig, "g"));
    let hang = rig.control().inject(Fault::new(What::Hang).on(&[Call::Write]).path("f").times(1));
    assert_eq!(errno(file.write_at(b"old", 0)), Some(libc::ETIMEDOUT));
    // It is still inside, and may land at any time: what comes later waits, and other files do not.
    assert_eq!(errno(file.write_at(b"new", 0)), Some(libc::ETIMEDOUT));
    other.write_at(b"x", 0).unwrap();
    assert_eq!(rig.control().calls(Call::Write), 2, "the second write of that file was not sent");
    rig.control().remove(hang);
    until(|| file.write_at(b"new", 0).is_ok());
    file.sync_all().unwrap();
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"new");
}

#[test]
fn what_was_closed_in_an_outage_is_committed_after_it() {
    let rig = Rig::with(SSHFS, Duration::from_millis(400), |_| {});
    let file = open(&rig, "f");
    file.write_at(b"data", 0).unwrap();
    rig.outage();
    forget(&rig, "f", b"");
    assert_eq!(nix::unistd::close(file), Err(Errno::ENOTCONN), "nobody can say that it is there");
    until(|| rig.overlay.counts().open_files == 0);
    assert!(rig.overlay.counts().log_bytes > 0, "it is kept all the same");
    assert_eq!(rig.repair().replayed, 1);
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"data");
    assert_eq!(rig.overlay.counts().log_bytes, 0);
}

/// A rename whose reply is lost, of a file that has something uncommitted: the repair finds it under its new name, whether
/// the caller still waits or was told that it failed.
#[test]
fn a_repair_finds_what_was_renamed_when_nobody_knew() {
    for (deadline, waits) in [(PATIENCE, true), (Duration::from_millis(300), false)] {
        let rig = Rig::with(SSHFS, deadline, |_| {});
        // The kernel lets one call at a time change a directory.
        std::fs::create_dir(rig.hot("a")).unwrap();
        std::fs::create_dir(rig.hot("b")).unwrap();
        let (file, doomed) = (open(&rig, "a/f"), open(&rig, "b/doomed"));
        file.write_at(b"data", 0).unwrap();
        doomed.write_at(b"kept", 0).unwrap();
        rig.hold_verdicts();
        rig.control().inject(Fault::new(What::LostReply).on(&[Call::Rename]));
        std::thread::scope(|scope| {
            let renaming = scope.spawn(|| std::fs::rename(rig.hot("a/f"), rig.hot("a/g")));
            let removing = scope.spawn(|| std::fs::remove_file(rig.hot("b/doomed")));
            until(|| rig.control().calls(Call::Rename) == 2);
            std::thread::sleep(Duration::from_millis(30));
            if !waits {
                assert_eq!(errno(renaming.join().unwrap()), Some(libc::ETIMEDOUT));
                assert_eq!(errno(removing.join().unwrap()), Some(libc::ETIMEDOUT));
                rig.outage();
                rig.control().clear_faults();
                rig.repair();
            } else {
                rig.outage();
                rig.control().clear_faults();
                rig.repair();
                renaming.join().unwrap().unwrap();
                removing.join().unwrap().unwrap();
            }
        });
        for (file, content) in [(&file, b"data"), (&doomed, b"kept")] {
            file.sync_all().unwrap();
            let mut read = [0; 4];
            file.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(&read, content);
        }
        assert_eq!(std::fs::read(rig.cold("a/g")).unwrap(), b"data");
        drop((file, doomed));
        until(|| rig.cold_names("b").is_empty());
        assert_eq!(rig.cold_names("a"), ["g"]);
    }
}

/// Done by a generation that dies before it says so, in each of the ways that change a file.
#[test]
fn a_change_that_was_done_and_not_acknowledged_does_not_make_a_file_another_one() {
    let rig = Rig::new(SSHFS);
    rig.hold_verdicts();
    let (grown, rewritten, cut) = (open(&rig, "grown"), open(&rig, "rewritten"), open(&rig, "cut"));
    for file in [&grown, &rewritten, &cut] {
        file.write_at(b"committed", 0).unwrap();
        file.sync_all().unwrap();
    }
    grown.write_at(b"unstable", 9).unwrap();
    let in_doubt = |call: Call, act: &(dyn Fn() -> std::io::Result<()> + Sync)| {
        rig.control().inject(Fault::new(What::DieAfter).on(&[call]).times(1));
        let complaints = rig.complaints.lock().len();
        std::thread::scope(|scope| {
            let acting = scope.spawn(act);
            until(|| rig.complaints.lock().len() > complaints);
            rig.outage();
            assert_eq!(rig.repair().failed.len(), 0);
            acting.join().expect("no panic").unwrap_or_else(|error| panic!("{call:?}: {error}"));
        });
    };
    in_doubt(Call::Write, &|| grown.write_all_at(b"in doubt", 17));
    in_doubt(Call::Write, &|| rewritten.write_all_at(b"in doubt", 4));
    in_doubt(Call::FileSetSize, &|| cut.set_len(3));
    // Done before, and found done: but that is not committed yet.
    rig.outage();
    forget(&rig, "cut", b"committed");
    rig.repair();
    for file in [grown, rewritten, cut] {
        assert_eq!(nix::unistd::close(file), Ok(()));
    }
    assert_eq!(std::fs::read(rig.cold("grown")).unwrap(), b"committedunstablein doubt");
    assert_eq!(std::fs::read(rig.cold("rewritten")).unwrap(), b"commin doubt");
    assert_eq!(std::fs::read(rig.cold("cut")).unwrap(), b"com");
}
