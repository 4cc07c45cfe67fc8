//! Calls whose generation dies while they are inside, through the kernel: before the backing saw them, and after it had
//! done them but before it said so.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use parking_lot::Mutex;
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{LOCAL, Rig, SSHFS, errno, until};

const MOMENTS: [What; 2] = [What::Errno(Errno::ENOTCONN), What::LostReply];

fn rig(traits: steadfs::backing::Traits) -> Rig {
    let rig = Rig::new(traits);
    rig.hold_verdicts();
    rig
}

/// Runs a call in a generation that dies in it; it goes on in the next, which finds what `meanwhile` did.
fn in_doubt<T: Send>(
    rig: &Rig,
    call: Call,
    lost: What,
    meanwhile: impl FnOnce(),
    act: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    rig.control().inject(Fault::new(lost).on(&[call]).times(1));
    let (done, complaints) = (rig.control().calls(call), rig.complaints.lock().len());
    std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        // The complaint comes when the call is back; only then is the generation given up.
        until(|| rig.control().calls(call) > done && rig.complaints.lock().len() > complaints);
        rig.outage();
        meanwhile();
        rig.repair();
        acting.join().expect("no panic")
    })
}

#[test]
fn a_file_is_created_once() {
    for traits in [LOCAL, SSHFS] {
        for lost in MOMENTS {
            let rig = rig(traits);
            let exclusive = || File::create_new(rig.hot("exclusive"))?.write_all(b"x");
            in_doubt(&rig, Call::Create, lost, || {}, exclusive).unwrap();
            in_doubt(&rig, Call::Create, lost, || {}, || std::fs::write(rig.hot("plain"), "y")).unwrap();
            assert_eq!(std::fs::read_to_string(rig.cold("exclusive")).unwrap(), "x", "{lost:?}");
            assert_eq!(std::fs::read_to_string(rig.cold("plain")).unwrap(), "y", "{lost:?}");
        }
    }
}

#[test]
fn a_file_that_somebody_else_has_made_is_not_taken_for_ours() {
    let rig = rig(SSHFS);
    let lost = What::Errno(Errno::ENOTCONN);
    let other = |name| std::fs::write(rig.cold(name), "somebody else's").unwrap();
    let made = in_doubt(&rig, Call::Create, lost, || other("f"), || File::create_new(rig.hot("f")));
    assert_eq!(errno(made), Some(libc::EEXIST));
    // Without O_EXCL the kernel looks again and opens it.
    let append = || OpenOptions::new().append(true).create(true).open(rig.hot("g"))?.write_all(b"!");
    in_doubt(&rig, Call::Create, lost, || other("g"), append).unwrap();
    assert_eq!(std::fs::read_to_string(rig.cold("g")).unwrap(), "somebody else's!");
}

#[test]
fn attributes_and_sizes_are_simply_set_again() {
    for lost in MOMENTS {
        let rig = rig(SSHFS);
        let path = rig.hot("f");
        std::fs::write(&path, "0123456789").unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        in_doubt(&rig, Call::SetMode, lost, || {}, || std::fs::set_permissions(&path, Permissions::from_mode(0o600)))
            .unwrap();
        in_doubt(&rig, Call::SetSize, lost, || {}, || Ok(nix::unistd::truncate(&path, 4)?)).unwrap();
        in_doubt(&rig, Call::FileSetSize, lost, || {}, || file.set_len(6)).unwrap();
        file.write_all_at(b"ab", 6).unwrap();
        in_doubt(&rig, Call::SetTimes, lost, || {}, || file.set_modified(then)).unwrap();
        let found = std::fs::metadata(rig.cold("f")).unwrap();
        assert_eq!((found.permissions().mode() & 0o7777, found.modified().unwrap()), (0o600, then), "{lost:?}");
        assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"0123\0\0ab", "{lost:?}");
    }
}

#[test]
fn flags_copies_and_syncs_of_directories_are_simply_done_again() {
    const NODUMP: u32 = 0x40;
    for lost in MOMENTS {
        let rig = rig(LOCAL);
        let (from, to) = (rig.hot("from"), rig.hot("to"));
        std::fs::write(&from, "0123456789").unwrap();
        std::fs::write(&to, "before").unwrap();
        let flags = |path: &Path| {
            let (file, mut flags) = (File::open(path).unwrap(), 0_u32);
            // SAFETY: FS_IOC_GETFLAGS writes an int.
            let done = unsafe { libc::ioctl(file.as_raw_fd(), 0x8008_6601, &mut flags) };
            Errno::result(done).map(|_| flags)
        };
        let before = flags(&from).unwrap();
        let set = || {
            let (file, flags) = (File::open(&from)?, before | NODUMP);
            // SAFETY: FS_IOC_SETFLAGS reads an int.
            Ok(Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), 0x4008_6602, &flags) })?)
        };
        assert_eq!(in_doubt(&rig, Call::SetFlags, lost, || {}, set).unwrap(), 0, "{lost:?}");
        assert_eq!(flags(&rig.cold("from")), Ok(before | NODUMP), "{lost:?}");
        let source = File::open(&from).unwrap();
        let target = OpenOptions::new().write(true).open(&to).unwrap();
        target.write_all_at(b"BEFORE and uncommitted", 0).unwrap();
        let copy = || Ok(nix::fcntl::copy_file_range(&source, Some(&mut 2), &target, Some(&mut 6), 6)?);
        assert_eq!(in_doubt(&rig, Call::Copy, lost, || {}, copy).unwrap(), 6, "{lost:?}");
        assert_eq!(std::fs::read_to_string(rig.cold("to")).unwrap(), "BEFORE234567ncommitted", "{lost:?}");
        let beyond = || Ok(nix::fcntl::copy_file_range(&source, Some(&mut 0), &target, Some(&mut 30), 10)?);
        assert_eq!(in_doubt(&rig, Call::Copy, lost, || {}, beyond).unwrap(), 10, "{lost:?}");
        assert_eq!(std::fs::metadata(&to).unwrap().len(), 40, "{lost:?}");
        assert_eq!(std::fs::read(rig.cold("to")).unwrap()[30..], *b"0123456789", "{lost:?}");
        std::fs::create_dir(rig.hot("d")).unwrap();
        let directory = File::open(rig.hot("d")).unwrap();
        let synced = rig.control().calls(Call::SyncDir);
        in_doubt(&rig, Call::SyncDir, lost, || {}, || directory.sync_all()).unwrap();
        assert_eq!(rig.control().calls(Call::SyncDir), synced + 2, "the first may have come to nothing");
    }
}

#[test]
fn what_cannot_be_settled_fails_with_eio_and_somebody_is_told() {
    for lost in MOMENTS {
        let rig = rig(LOCAL);
        let notices: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = Arc::clone(&notices);
        rig.overlay.on_notice(Box::new(move |words| told.lock().push(words)));
        for name in ["one", "two", "three"] {
            std::fs::write(rig.hot(name), name).unwrap();
        }
        let (one, two) = (rig.hot("one"), rig.hot("two"));
        let swap = || Ok(renameat2(AT_FDCWD, &one, AT_FDCWD, &two, RenameFlags::RENAME_EXCHANGE)?);
        assert_eq!(errno(in_doubt(&rig, Call::Rename, lost, || {}, swap)), Some(libc::EIO), "{lost:?}");
        let gone = || std::fs::remove_file(rig.cold(if lost == What::LostReply { "new" } else { "three" })).unwrap();
        let rename = || std::fs::rename(rig.hot("three"), rig.hot("new"));
        assert_eq!(errno(in_doubt(&rig, Call::Rename, lost, gone, rename)), Some(libc::EIO), "{lost:?}");
        let notices = notices.lock();
        assert!(notices[0].starts_with("rename one: ") && notices[1].starts_with("rename three: "), "{notices:?}");
        assert_eq!(notices.len(), 2);
    }
}

#[test]
fn a_target_that_is_open_survives_a_rename_that_fails() {
    let rig = Rig::new(SSHFS);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(rig.hot("target")).unwrap();
    file.write_all_at(b"kept", 0).unwrap();
    std::fs::write(rig.hot("source"), "new").unwrap();
    rig.control().inject(Fault::new(What::Errno(Errno::EACCES)).on(&[Call::Rename]).times(1));
    assert_eq!(errno(std::fs::rename(rig.hot("source"), rig.hot("target"))), Some(libc::EACCES));
    assert_eq!(rig.cold_names(""), ["source", "target"]);
    rig.outage();
    rig.repair();
    file.write_all_at(b"KEPT", 0).unwrap();
    assert_eq!(std::fs::read_to_string(rig.hot("target")).unwrap(), "KEPT");
    drop(file);
    until(|| rig.overlay.counts().open_files == 0);
    assert_eq!(rig.cold_names(""), ["source", "target"]);
}

#[test]
fn a_file_that_loses_one_of_its_names_while_open_keeps_no_hidden_one() {
    let rig = Rig::new(SSHFS);
    let file = File::create_new(rig.hot("one")).unwrap();
    std::fs::hard_link(rig.hot("one"), rig.hot("two")).unwrap();
    std::fs::remove_file(rig.hot("one")).unwrap();
    rig.outage();
    rig.repair();
    file.write_all_at(b"text", 0).unwrap();
    std::fs::remove_file(rig.hot("two")).unwrap();
    file.write_all_at(b"TEXT", 0).unwrap();
    assert_eq!(rig.cold_names("").len(), 2);
    drop(file);
    until(|| rig.cold_names("").is_empty());
}

#[test]
fn a_call_that_fails_in_an_outage_leaves_no_hidden_name_for_good() {
    let patience = Duration::from_millis(300);
    for lost in MOMENTS {
        for (call, rename) in [(Call::Link, true), (Call::Rename, true), (Call::Rename, false)] {
            let rig = Rig::with(SSHFS, patience, |_| {});
            rig.hold_verdicts();
            let open = File::create_new(rig.hot("open")).unwrap();
            open.write_all_at(b"open", 0).unwrap();
            open.sync_all().unwrap();
            std::fs::write(rig.hot("other"), "other").unwrap();
            rig.control().inject(Fault::new(lost).on(&[call]).times(1));
            let act = || match rename {
                true => std::fs::rename(rig.hot("other"), rig.hot("open")),
                false => std::fs::remove_file(rig.hot("open")),
            };
            let complaints = rig.complaints.lock().len();
            std::thread::scope(|scope| {
                let acting = scope.spawn(act);
                until(|| rig.complaints.lock().len() > complaints);
                rig.outage();
                // Past its deadline: nobody will run it again.
                assert_eq!(errno(acting.join().expect("no panic")), Some(libc::ENOTCONN), "{lost:?} {call:?}");
            });
            rig.repair();
            let mut text = [0; 4];
            open.read_exact_at(&mut text, 0).unwrap();
            assert_eq!(&text, b"open", "{lost:?} {call:?}");
            drop(open);
            let hidden = |name: &String| name.starts_with(".steadfs-hidden-");
            until(|| rig.overlay.counts().open_files == 0);
            rig.outage();
            rig.repair();
            until(|| !rig.cold_names("").iter().any(hidden));
        }
    }
}

#[test]
fn a_rename_in_doubt_is_settled_though_the_first_repair_dies_over_it() {
    let rig = Rig::with(SSHFS, Duration::from_millis(300), |_| {});
    rig.hold_verdicts();
    let file = File::create_new(rig.hot("old")).unwrap();
    file.write_all_at(b"text", 0).unwrap();
    file.sync_all().unwrap();
    rig.control().inject(Fault::new(What::LostReply).on(&[Call::Rename]).times(1));
    let complaints = rig.complaints.lock().len();
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| std::fs::rename(rig.hot("old"), rig.hot("new")));
        until(|| rig.complaints.lock().len() > complaints);
        rig.outage();
        assert_eq!(errno(acting.join().expect("no panic")), Some(libc::ENOTCONN));
    });
    rig.control().inject(Fault::new(What::Errno(Errno::ENOTCONN)).on(&[Call::Stat]).times(1));
    let generation = rig.start();
    assert!(rig.overlay.restore(&generation, Duration::from_secs(20)).is_err());
    rig.outage();
    rig.repair();
    let mut text = [0; 4];
    file.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"text");
}

#[test]
fn what_a_call_hid_in_a_generation_that_died_is_not_swept_under_its_next_run() {
    let rig = rig(SSHFS);
    let open = File::create_new(rig.hot("open")).unwrap();
    open.write_all_at(b"open", 0).unwrap();
    open.sync_all().unwrap();
    std::fs::write(rig.hot("other"), "other").unwrap();
    rig.control().inject(Fault::new(What::HangAfter).on(&[Call::Link]).times(1));
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| std::fs::rename(rig.hot("other"), rig.hot("open")));
        until(|| rig.control().inside() == 1);
        rig.outage();
        until(|| rig.control().inside() == 0);
        // A sweep would come after the second run.
        let slow = rig.control().inject(Fault::new(What::Hang).on(&[Call::Unlink]));
        rig.repair();
        acting.join().expect("no panic").unwrap();
        rig.control().remove(slow);
        until(|| rig.control().inside() == 0);
    });
    rig.outage();
    rig.repair();
    let mut text = [0; 4];
    open.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"open");
}
