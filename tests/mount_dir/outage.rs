//! What callers see of a backing that dies, hangs or answers late.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use steadfs::backing::fake::{Call, Fault, What};
use steadfs::gate::{Op, Outcome};

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, errno, until};

const DEADLINE: Duration = Duration::from_millis(400);
/// A test's own limit for what must be answered by a deadline, on a loaded machine.
const SOON: Duration = Duration::from_secs(12);

fn open(rig: &Rig, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(rig.hot(name)).expect("opened")
}

#[test]
fn a_descriptor_works_after_a_repair_at_its_inode_and_offset() {
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::new(traits);
        let mut file = open(&rig, "f");
        file.write_all(b"before ").unwrap();
        file.sync_all().unwrap();
        let ino = file.metadata().unwrap().ino();
        let reader = File::open(rig.hot("f")).unwrap();
        std::fs::create_dir(rig.hot("d")).unwrap();
        let directory = std::fs::read_dir(rig.hot("d")).unwrap();
        rig.outage();
        let report = rig.repair();
        assert_eq!((report.reopened, report.failed.len(), report.left), (2, 0, 0));
        file.write_all(b"after").unwrap();
        file.sync_all().unwrap();
        assert_eq!(std::fs::read_to_string(rig.cold("f")).unwrap(), "before after");
        assert_eq!(file.metadata().unwrap().ino(), ino);
        let mut buf = [0; 12];
        reader.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"before after");
        assert_eq!(directory.count(), 0);
    }
}

#[test]
fn a_repair_never_truncates_or_refuses_what_was_opened_so() {
    let rig = Rig::prompt(SSHFS, PATIENCE);
    let mut options = OpenOptions::new();
    let mut made = options.write(true).create_new(true).open(rig.hot("made")).unwrap();
    let mut cut = File::create(rig.hot("cut")).unwrap();
    for file in [&mut made, &mut cut] {
        file.write_all(b"data").unwrap();
        file.sync_all().unwrap();
    }
    rig.outage();
    assert_eq!(rig.repair().reopened, 2);
    made.write_all(b"+").unwrap();
    cut.write_all(b"+").unwrap();
    assert_eq!(std::fs::read_to_string(rig.cold("made")).unwrap(), "data+");
    assert_eq!(std::fs::read_to_string(rig.cold("cut")).unwrap(), "data+");
}

#[test]
fn a_file_that_a_repair_does_not_find_fails_and_harms_nobody() {
    let rig = Rig::with(SSHFS, DEADLINE, |_| {});
    let (lost, mut kept) = (open(&rig, "lost"), open(&rig, "kept"));
    rig.outage();
    std::fs::remove_file(rig.cold("lost")).unwrap();
    let report = rig.repair();
    assert_eq!((report.reopened, report.failed.len()), (1, 1));
    assert_eq!(report.failed[0].0, std::path::Path::new("lost"));
    let started = Instant::now();
    assert_eq!(errno(lost.write_at(b"x", 0)), Some(libc::EIO));
    assert_eq!(errno(lost.read_at(&mut [0], 0)), Some(libc::EIO));
    assert!(started.elapsed() < DEADLINE, "it waits for no verdict");
    kept.write_all(b"x").unwrap();
    assert!(rig.complaints.lock().is_empty());
}

#[test]
fn a_blip_is_only_a_pause() {
    let rig = Rig::new(SSHFS);
    let mut file = open(&rig, "f");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            rig.outage();
            std::thread::sleep(Duration::from_millis(100));
            rig.repair();
        });
        let end = Instant::now() + Duration::from_millis(500);
        let mut written = 0;
        while Instant::now() < end {
            file.write_all(b"12345678").expect("nobody notices");
            std::fs::metadata(rig.hot("f")).expect("nobody notices");
            written += 8;
        }
        assert_eq!(std::fs::metadata(rig.cold("f")).unwrap().len(), written);
    });
}

#[test]
fn root_and_statfs_are_answered_while_everything_else_hangs() {
    let rig = Rig::with(SSHFS, DEADLINE, |config| {
        config.attr_timeout = Duration::ZERO;
        config.entry_timeout = Some(Duration::ZERO);
    });
    let file = open(&rig, "f");
    file.write_at(b"x", 0).unwrap();
    let known = nix::sys::statvfs::statvfs(rig.mountpoint()).unwrap().blocks();
    assert!(known > 0);
    let mode = std::fs::metadata(rig.mountpoint()).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
    rig.control().freeze();
    let started = Instant::now();
    assert_eq!(std::fs::metadata(rig.mountpoint()).unwrap().mode(), mode);
    assert_eq!(nix::sys::statvfs::statvfs(rig.mountpoint()).unwrap().blocks(), known);
    // As df(1) does before it asks for the figures.
    std::fs::File::open(rig.mountpoint()).unwrap();
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    for op in [Op::Getattr, Op::Statfs, Op::Opendir] {
        assert_eq!(rig.gate.stats().result(op, Outcome::Deadline), 0, "{op:?}: nobody was told of an error");
    }
    let started = Instant::now();
    assert_eq!(errno(std::fs::metadata(rig.hot("f"))), Some(libc::ETIMEDOUT));
    assert_eq!(
        errno(std::fs::read_dir(rig.mountpoint()).and_then(|mut all| all.next().unwrap())),
        Some(libc::ETIMEDOUT)
    );
    assert_eq!(errno(file.sync_all()), Some(libc::ETIMEDOUT));
    drop(file);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    // A close that hangs has taken no thread along that others need.
    rig.gate.close(Instant::now());
    until(|| rig.gate.fails_fast());
    let started = Instant::now();
    for _ in 0..100 {
        assert_eq!(errno(std::fs::metadata(rig.hot("f"))), Some(libc::ENOTCONN));
        std::fs::metadata(rig.mountpoint()).unwrap();
        nix::sys::statvfs::statvfs(rig.mountpoint()).unwrap();
        assert_eq!(errno(std::fs::read_dir(rig.mountpoint())), Some(libc::ENOTCONN));
    }
    assert!(started.elapsed() < SOON);
    rig.outage();
    rig.repair();
    assert_eq!(std::fs::read_to_string(rig.hot("f")).unwrap(), "x");
    until(|| rig.gate.load().stuck == 0);
}

#[test]
fn descriptors_closed_while_close_hangs_block_neither_gate_nor_readers() {
    let rig = Rig::with(SSHFS, DEADLINE, |_| {});
    let files: Vec<_> = (0..300).map(|i| open(&rig, &format!("{i}"))).collect();
    rig.control().inject(Fault::new(What::Hang).on(&[Call::Close]));
    drop(files);
    until(|| rig.overlay.counts().open_files == 0);
    let started = Instant::now();
    std::thread::sleep(DEADLINE * 3);
    rig.gate.close(Instant::now());
    until(|| rig.gate.fails_fast());
    std::fs::metadata(rig.mountpoint()).unwrap();
    rig.outage();
    rig.repair();
    rig.control().clear_faults();
    std::fs::write(rig.hot("after"), "x").unwrap();
    assert!(started.elapsed() < PATIENCE / 2);
}

#[test]
fn a_restoration_that_gets_stuck_is_left_behind() {
    let rig = Rig::new(SSHFS);
    let files: Vec<_> = (0..20).map(|i| open(&rig, &format!("{i}"))).collect();
    rig.outage();
    let hang = rig.control().inject(Fault::new(What::Hang).on(&[Call::Open]).path("7"));
    let generation = rig.start();
    let started = Instant::now();
    let report = rig.overlay.restore(&generation, Duration::from_secs(2)).unwrap();
    assert!(started.elapsed() < SOON);
    assert_eq!((report.reopened, report.left, report.failed.len()), (18, 2, 0));
    rig.gate.open(generation);
    files[3].write_at(b"x", 0).unwrap();
    rig.control().remove(hang);
    files[7].write_at(b"x", 0).unwrap();
    files[17].write_at(b"x", 0).unwrap();
}

/// Each of these is done by a generation that dies before it says so.
#[test]
fn what_was_done_by_a_generation_that_died_is_not_done_twice() {
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::new(traits);
        for name in ["unlinked", "renamed", "over", "linked", "held", "state"] {
            std::fs::write(rig.hot(name), name).unwrap();
        }
        std::fs::create_dir(rig.hot("removed")).unwrap();
        let held = (traits == SSHFS).then(|| (open(&rig, "held"), open(&rig, "over")));
        let in_doubt = |call: Call, act: &(dyn Fn() -> std::io::Result<()> + Sync)| {
            rig.control().inject(Fault::new(What::LostReply).on(&[call]).times(1));
            let done = rig.control().calls(call);
            std::thread::scope(|scope| {
                let acting = scope.spawn(act);
                until(|| rig.control().calls(call) > done);
                // The complaint comes when the call is back; only then is the generation given up.
                std::thread::sleep(Duration::from_millis(30));
                rig.outage();
                rig.repair();
                acting.join().expect("no panic").unwrap_or_else(|error| panic!("{call:?}: {error}"));
            });
        };
        rig.hold_verdicts();
        in_doubt(Call::Mkdir, &|| std::fs::create_dir(rig.hot("made")));
        in_doubt(Call::Rmdir, &|| std::fs::remove_dir(rig.hot("removed")));
        in_doubt(Call::Unlink, &|| std::fs::remove_file(rig.hot("unlinked")));
        in_doubt(Call::Symlink, &|| std::os::unix::fs::symlink("to", rig.hot("symlink")));
        in_doubt(Call::Mknod, &|| Ok(nix::unistd::mkfifo(&rig.hot("fifo"), nix::sys::stat::Mode::S_IRWXU)?));
        in_doubt(Call::Link, &|| std::fs::hard_link(rig.hot("linked"), rig.hot("link")));
        in_doubt(Call::Create, &|| File::create_new(rig.hot("exclusive"))?.write_all(b"x"));
        in_doubt(Call::Rename, &|| std::fs::rename(rig.hot("renamed"), rig.hot("new name")));
        if let Some((held, over)) = &held {
            in_doubt(Call::Rename, &|| std::fs::remove_file(rig.hot("held")));
            in_doubt(Call::Link, &|| std::fs::rename(rig.hot("state"), rig.hot("over")));
            std::fs::write(rig.hot("state"), "second").unwrap();
            in_doubt(Call::Rename, &|| std::fs::rename(rig.hot("state"), rig.hot("over")));
            let mut buf = [0; 4];
            held.read_exact_at(&mut buf, 0).unwrap();
            assert_eq!(&buf, b"held");
            over.read_exact_at(&mut buf, 0).unwrap();
            assert_eq!(&buf, b"over", "the file that was replaced, not the one that replaced it");
            assert_eq!(std::fs::read_to_string(rig.hot("over")).unwrap(), "second");
        }
        drop(held);
        let mut expected = vec!["exclusive", "fifo", "link", "linked", "made", "new name", "over", "symlink"];
        if traits == LOCAL {
            expected.extend(["held", "state"]);
        }
        expected.sort_unstable();
        until(|| rig.cold_names("") == expected);
    }
}

#[test]
fn what_is_not_known_of_the_root_is_not_remembered_by_the_kernel() {
    let rig = Rig::silent(LOCAL);
    let made_up = std::fs::metadata(rig.mountpoint()).unwrap();
    assert!(made_up.is_dir());
    std::fs::set_permissions(rig.cold(""), PermissionsExt::from_mode(0o751)).unwrap();
    rig.repair();
    assert_eq!(std::fs::metadata(rig.mountpoint()).unwrap().mode() & 0o7777, 0o751);
}

#[test]
fn figures_that_nobody_has_asked_for_are_known_in_an_outage() {
    let rig = Rig::new(SSHFS);
    assert!(rig.control().calls(Call::StatFs) > 0, "before there is one");
    rig.outage();
    let (there, shown) = (rig.cold(""), nix::sys::statvfs::statvfs(rig.mountpoint()).unwrap());
    assert_eq!(shown.blocks(), nix::sys::statvfs::statvfs(&there).unwrap().blocks());
}

#[test]
fn figures_before_the_first_answer_make_sense() {
    let rig = Rig::silent(SSHFS);
    let started = Instant::now();
    let figures = nix::sys::statvfs::statvfs(rig.mountpoint()).unwrap();
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    // Nothing to divide by zero, and nothing to be deleted or given up because all is full.
    assert!(figures.blocks() > 0 && figures.files() > 0 && figures.block_size() > 0 && figures.fragment_size() > 0);
    assert!(figures.blocks_available() > 0 && figures.files_available() > 0);
    assert!(figures.blocks_available() <= figures.blocks() && figures.blocks_free() <= figures.blocks());
    let df = std::process::Command::new("df").args(["--output=pcent"]).arg(rig.mountpoint()).output().unwrap();
    assert!(df.status.success() && String::from_utf8_lossy(&df.stdout).contains("0%"), "{df:?}");
    rig.repair();
    let (there, shown) = (rig.cold(""), nix::sys::statvfs::statvfs(rig.mountpoint()).unwrap());
    assert_eq!(
        shown.blocks(),
        nix::sys::statvfs::statvfs(&there).unwrap().blocks(),
        "from then on what the backing says"
    );
}
