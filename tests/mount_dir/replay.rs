//! Through a replay: large and sparse files, what was preallocated, appenders, files that nobody may open any more.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, errno, until};

const GIB: u64 = 1 << 30;

fn open(rig: &Rig, name: &str) -> File {
    open_at(&rig.hot(name))
}

fn open_at(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("opened")
}

fn bytes(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// cp -p and rsync set times while the file is open; its close comes later.
#[test]
fn a_time_and_a_mode_that_were_set_after_a_write_survive_a_replay() {
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::new(traits);
        let mut file = open(&rig, "f");
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        file.write_all(&bytes(1, 100_000)).unwrap();
        file.set_modified(time).unwrap();
        file.set_permissions(Permissions::from_mode(0o4755)).unwrap();
        rig.outage();
        rig.repair();
        for path in [rig.hot("f"), rig.cold("f")] {
            let found = std::fs::metadata(path).unwrap();
            assert_eq!((found.modified().unwrap(), found.mode() & 0o7777), (time, 0o4755));
        }
        assert_eq!(file.metadata().unwrap().len(), 100_000);
    }
}

#[test]
fn writes_beyond_four_gib_survive_a_replay() {
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::new(traits);
        let file = open(&rig, "f");
        let (head, across, far) = (bytes(1, 5000), bytes(2, 300_000), bytes(3, 200_001));
        file.write_all_at(&head, 0).unwrap();
        file.sync_all().unwrap();
        file.write_all_at(&across, 4 * GIB - 100_000).unwrap();
        file.write_all_at(&far, 5 * GIB + 7).unwrap();
        rig.outage();
        // The server had only what was synced.
        open_at(&rig.cold("f")).set_len(5000).unwrap();
        assert_eq!(rig.repair().replayed, 1);
        file.sync_all().unwrap();
        let store = File::open(rig.cold("f")).unwrap();
        assert_eq!(store.metadata().unwrap().len(), 5 * GIB + 7 + far.len() as u64);
        assert!(store.metadata().unwrap().blocks() * 512 < GIB, "holes stay holes");
        for reader in [&store, &file] {
            for (data, offset) in [(&head, 0), (&across, 4 * GIB - 100_000), (&far, 5 * GIB + 7)] {
                let mut found = vec![0; data.len()];
                reader.read_exact_at(&mut found, offset).unwrap();
                assert!(found == *data, "at {offset}");
            }
            let mut hole = vec![1; 100_000];
            reader.read_exact_at(&mut hole, 4 * GIB + 500_000).unwrap();
            assert!(hole.iter().all(|&byte| byte == 0));
        }
        // A committed block out there is looked at, a cut through it is obeyed.
        file.set_len(5 * GIB + 10).unwrap();
        rig.outage();
        open_at(&rig.cold("f")).set_len(5 * GIB + 7 + far.len() as u64).unwrap();
        rig.repair();
        file.write_all_at(b"end", 5 * GIB + 20).unwrap();
        assert_eq!(nix::unistd::close(file), Ok(()));
        let mut tail = [1; 16];
        store.read_exact_at(&mut tail, 5 * GIB + 7).unwrap();
        assert_eq!(tail[..], [&far[..3], &[0; 10], b"end"].concat());
        assert_eq!(store.metadata().unwrap().len(), 5 * GIB + 23);
    }
}

/// The same on the overlay and on a local file, with an outage after each step: the server forgets what was not committed.
#[test]
fn preallocated_and_sparse_files_are_those_of_a_local_filesystem_after_a_replay() {
    type Step = (&'static str, fn(&File) -> std::io::Result<()>);
    fn allocate(file: &File, how: FallocateFlags, offset: i64, length: i64) -> std::io::Result<()> {
        Ok(fallocate(file, how, offset, length)?)
    }
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert_eq!(hole.bits(), libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
    let steps: [Step; 10] = [
        ("written", |file| file.write_all_at(&bytes(1, 20_000), 0)),
        ("sparse", |file| file.write_all_at(&bytes(2, 10_000), 1_000_000)),
        ("allocated beyond", |file| allocate(file, FallocateFlags::empty(), 1_500_000, 4096)),
        ("allocated and invisible", |file| allocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 2_000_000, 65_536)),
        ("written into it", |file| file.write_all_at(&bytes(3, 100), 2_000_000)),
        ("punched", |file| {
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            allocate(file, hole, 4096, 8192)
        }),
        ("written into the hole", |file| file.write_all_at(&bytes(4, 1000), 6000)),
        ("cut", |file| file.set_len(1_005_000)),
        ("grown by a cut", |file| file.set_len(3_000_000)),
        ("appended", |file| file.write_all_at(&bytes(5, 5000), 3_000_000)),
    ];
    let rig = Rig::new(SSHFS);
    let local = tempfile::tempfile().unwrap();
    let file = open(&rig, "f");
    for (what, step) in steps {
        step(&local).unwrap();
        let before = std::fs::read(rig.cold("f")).unwrap();
        step(&file).unwrap();
        let committed = rig.overlay.counts().log_bytes == 0;
        rig.outage();
        if !committed {
            std::fs::write(rig.cold("f"), &before).unwrap();
        }
        assert_eq!(rig.repair().failed.len(), 0, "{what}");
        let mut wanted = vec![0; usize::try_from(local.metadata().unwrap().len()).unwrap()];
        local.read_exact_at(&mut wanted, 0).unwrap();
        assert!(std::fs::read(rig.cold("f")).unwrap() == wanted, "{what}");
        assert_eq!(file.metadata().unwrap().len(), wanted.len() as u64, "{what}");
        let mut found = Vec::new();
        File::open(rig.hot("f")).unwrap().read_to_end(&mut found).unwrap();
        assert!(found == wanted, "{what}");
    }
}

#[test]
fn an_allocation_in_doubt_is_made_once_more() {
    for lost in [What::Errno(Errno::ENOTCONN), What::LostReply] {
        let rig = Rig::new(SSHFS);
        rig.hold_verdicts();
        let file = open(&rig, "f");
        file.write_all_at(b"data", 0).unwrap();
        rig.control().inject(Fault::new(lost).on(&[Call::Allocate]).times(1));
        std::thread::scope(|scope| {
            let acting = scope.spawn(|| fallocate(&file, FallocateFlags::empty(), 0, 10_000));
            until(|| !rig.complaints.lock().is_empty());
            rig.outage();
            rig.repair();
            assert_eq!(acting.join().unwrap(), Ok(()));
        });
        assert_eq!(std::fs::read(rig.cold("f")).unwrap(), [&b"data"[..], &[0; 9996]].concat(), "{lost:?}");
    }
}

/// Descriptors, threads and processes that all append to one file, through outages in which the server forgets.
#[test]
fn appenders_of_several_processes_lose_nothing_in_a_replay() {
    const WRITERS: usize = 3;
    let rig = Rig::new(SSHFS);
    rig.control().write_behind();
    let mut seed = 7_u64;
    let mut dice = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    File::create(rig.hot("log")).unwrap().sync_all().unwrap();
    let over = AtomicBool::new(false);
    let script = "i=0; while [ $i -lt 150 ]; do echo \"$1 $i end\" >&3 || exit 1; i=$((i+1)); done";
    let mut children: Vec<_> = (0..WRITERS)
        .map(|number| {
            // A descriptor of its own for each, with O_APPEND.
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("exec 3>>\"$2\"; {script}")).arg("sh").arg(format!("process{number}"));
            command.arg(rig.hot("log")).spawn().expect("sh runs")
        })
        .collect();
    let lines: Vec<String> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let (over, path) = (&over, rig.hot("log"));
                scope.spawn(move || {
                    let mut file = OpenOptions::new().append(true).open(path).expect("opened");
                    let mut written = Vec::new();
                    for i in 0.. {
                        if over.load(SeqCst) {
                            break;
                        }
                        let line = format!("thread{number} {i} end");
                        // One write, as echo does it.
                        assert_eq!(file.write(format!("{line}\n").as_bytes()).expect("in time"), line.len() + 1);
                        written.push(line);
                    }
                    written
                })
            })
            .collect();
        for _ in 0..5 {
            let size = || std::fs::metadata(rig.cold("log")).unwrap().len();
            let before = size();
            until(|| size() > before + 400);
            rig.outage();
            rig.control().crash(&rig.cold(""), &mut dice).unwrap();
            assert_eq!(rig.repair().failed.len(), 0);
        }
        for child in &mut children {
            assert!(child.wait().expect("it ends").success());
        }
        over.store(true, SeqCst);
        writers.into_iter().flat_map(|writer| writer.join().expect("no panic")).collect()
    });
    let wanted = (0..WRITERS).flat_map(|number| (0..150).map(move |i| format!("process{number} {i} end")));
    let mut wanted: Vec<_> = wanted.chain(lines).collect();
    File::open(rig.hot("log")).unwrap().sync_all().unwrap();
    let mut found: Vec<_> = std::fs::read_to_string(rig.cold("log")).unwrap().lines().map(str::to_owned).collect();
    wanted.sort();
    found.sort();
    assert_eq!(found, wanted);
}

#[test]
fn permission_that_was_taken_away_from_an_open_file_does_not_end_its_descriptors() {
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        let rig = Rig::new(SSHFS);
        std::fs::write(rig.hot("f"), "before").unwrap();
        std::fs::set_permissions(rig.hot("f"), Permissions::from_mode(0o640)).unwrap();
        let (reads, writes) = (flags != libc::O_WRONLY, flags != libc::O_RDONLY);
        let file = OpenOptions::new().read(reads).write(writes).open(rig.hot("f")).unwrap();
        if writes {
            file.write_all_at(b"BEFORE", 0).unwrap();
        }
        rig.outage();
        std::fs::write(rig.cold("f"), "before").unwrap();
        std::fs::set_permissions(rig.cold("f"), Permissions::from_mode(0o000)).unwrap();
        // root may do anything here; a server's user may not.
        rig.control().inject(Fault::new(What::Errno(Errno::EACCES)).on(&[Call::Open]).times(1));
        let report = rig.repair();
        assert_eq!((report.failed.len(), report.reopened), (0, 1), "{flags}");
        assert_eq!(std::fs::metadata(rig.cold("f")).unwrap().mode() & 0o7777, 0, "as it was found");
        if writes {
            file.sync_all().unwrap();
            assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"BEFORE");
        }
        if reads {
            let mut text = [0; 6];
            file.read_exact_at(&mut text, 0).unwrap();
            assert_eq!(&text, if writes { b"BEFORE" } else { b"before" });
        }
    }
}

#[test]
fn a_file_that_may_not_be_opened_any_more_keeps_what_it_has_until_it_may() {
    let rig = Rig::new(SSHFS);
    let (file, bystander) = (open(&rig, "secret"), open(&rig, "bystander"));
    file.write_all_at(b"acknowledged", 0).unwrap();
    bystander.write_all_at(b"mine", 0).unwrap();
    rig.outage();
    std::fs::write(rig.cold("secret"), "").unwrap();
    std::fs::set_permissions(rig.cold("secret"), Permissions::from_mode(0o000)).unwrap();
    let shut = [Call::Open, Call::SetMode]
        .map(|call| rig.control().inject(Fault::new(What::Errno(Errno::EACCES)).on(&[call]).path("secret")));
    rig.repair();
    bystander.sync_all().unwrap();
    assert_eq!(errno(file.sync_all()), Some(libc::EACCES));
    assert!(rig.overlay.counts().log_bytes > 0, "it is kept");
    assert!(rig.complaints.lock().is_empty(), "nobody holds it against the backing");
    for fault in shut {
        rig.control().remove(fault);
    }
    until(|| file.sync_all().is_ok());
    assert_eq!(std::fs::read(rig.cold("secret")).unwrap(), b"acknowledged");
    assert_eq!(rig.overlay.counts().log_bytes, 0);
}

#[test]
fn an_error_in_the_middle_of_a_read_is_no_end_of_file() {
    let rig = Rig::new(SSHFS);
    let data = bytes(9, 3 << 20);
    for unstable in [false, true] {
        let file = open(&rig, if unstable { "unstable" } else { "f" });
        file.write_all_at(&data, 0).unwrap();
        if !unstable {
            file.sync_all().unwrap();
        }
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        for what in [What::Errno(Errno::EIO), What::Short(0), What::Short(1000)] {
            // Asked again once: it must be an error twice.
            rig.control().inject(Fault::new(what).on(&[Call::Read]).after(3));
            let mut found = Vec::new();
            let mut reader = OpenOptions::new().read(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            let result = reader.read_to_end(&mut found);
            match what {
                What::Short(1000) if result.is_ok() => assert_eq!(found.len(), data.len()),
                _ => assert_eq!(errno(result), Some(libc::EIO), "{what:?} {unstable}"),
            }
            assert!(found == data[..found.len()], "{what:?} {unstable}");
            rig.control().clear_faults();
            nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        }
        let mut found = vec![0; data.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == data);
    }
}

#[test]
fn a_file_whose_last_block_cannot_be_read_whole_is_not_another_one() {
    let rig = Rig::new(SSHFS);
    let file = File::create_new(rig.hot("f")).unwrap();
    file.write_all_at(b"committed", 0).unwrap();
    file.sync_all().unwrap();
    rig.outage();
    // A generation that dies just then says that the file ends.
    let dying = rig.control().inject(Fault::new(What::Short(0)).on(&[Call::Read]));
    let generation = rig.start();
    let _ = rig.overlay.restore(&generation, PATIENCE);
    rig.outage();
    rig.control().remove(dying);
    rig.repair();
    file.write_all_at(b" and more", 9).unwrap();
    file.sync_all().unwrap();
    assert_eq!(std::fs::read_to_string(rig.cold("f")).unwrap(), "committed and more");
}
