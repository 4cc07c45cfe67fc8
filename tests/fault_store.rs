//! The server's disk is in trouble, not the link: it is full, read-only, or forbids. What was acknowledged stays, errors are
//! told and are no outage, and when the trouble is over the same descriptors go on. And while there is no server at all,
//! memory stays bounded (promise P4).
#![allow(clippy::unwrap_used)]

mod lab;
#[path = "soak/shared/mod.rs"]
mod shared;
#[path = "soak_real/user.rs"]
mod user;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lab::agent::Agent;
use lab::agents::{record, verify};
use lab::scenario::wait_for_successor;
use lab::{Lab, run_ok, wait};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use shared::outcome::{Outcome, Value};
use shared::play::User;
use shared::program::{How, Op, bytes};
use user::Remote;

lab::also_runs_as!(user_process: user::main);

lab::also_runs_as!(agent_process: lab::agents::main);

/// A file, opened or made.
const HOW: How =
    How { read: true, write: true, create: true, exclusive: false, truncate: false, append: false, mode: 0o644 };

const DONE: Outcome = Ok(Value::Nothing);

/// What a program does, in few words.
struct Hands(Remote);

impl Hands {
    fn on(lab: &Lab) -> Hands {
        Hands(Remote::start(&lab.hot, lab.directory()))
    }

    fn open(&mut self, slot: usize, name: &'static str) -> Outcome {
        self.0.apply(&Op::Open { slot, name, how: HOW })
    }

    fn put(&mut self, slot: usize, offset: usize, length: usize, tone: u8) -> Outcome {
        self.0.apply(&Op::WriteAt { slot, offset, length, tone })
    }

    fn sync(&mut self, slot: usize) -> Outcome {
        self.0.apply(&Op::Sync { slot, data_only: false })
    }

    fn close(&mut self, slot: usize) -> Outcome {
        self.0.apply(&Op::Close { slot })
    }

    /// A commit that is refused is not tried again for a moment.
    fn sync_at_last(&mut self, slot: usize) {
        let mut last = DONE;
        wait("an fsync succeeds again", || {
            last = self.sync(slot);
            last == DONE
        });
    }
}

/// A disk of the server's own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(lab: &mut Lab, size: &str) -> Disk {
        let directory = tempfile::Builder::new().prefix("steadfs-disk-").tempdir().unwrap();
        let path = directory.path().to_str().unwrap().to_owned();
        // It has a mount namespace of its own, which shows what was mounted before it began.
        lab.sshd.stop();
        run_ok("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs", &path]);
        lab.sshd.begin();
        lab.store = PathBuf::from(path);
        Disk(directory)
    }

    fn remount(&self, how: &str) {
        run_ok("mount", &["-o", &format!("remount,{how}"), self.0.path().to_str().unwrap()]);
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let block = vec![1; 4096];
        let mut ballast = std::fs::File::create(self.ballast()).unwrap();
        while std::io::Write::write_all(&mut ballast, &block).is_ok() {}
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Mounts a laboratory whose store has been put in place.
fn mount(lab: &mut Lab, options: &str) {
    let command = lab.mount_command("-f", options);
    lab.serve(command);
    lab.wait_state("live");
}

/// No repair was needed for that.
fn assert_no_outage(lab: &Lab) {
    let status = lab.status();
    assert_eq!((&status["outages_total"], &status["generation"]), (&0.into(), &1.into()), "{status}");
}

fn assert_committed(lab: &Lab) {
    wait("the log is committed", || lab.status()["log"]["bytes"] == 0);
    let status = lab.status();
    let given_up = (&status["log"]["spooled_files_total"], &status["log"]["lost_files_total"]);
    assert_eq!(given_up, (&0.into(), &0.into()), "{status}");
}

fn content(lab: &Lab, name: &str) -> Vec<u8> {
    std::fs::read(lab.store.join(name)).unwrap()
}

#[test]
fn a_full_disk_is_told_as_such_and_is_no_outage() {
    let mut lab = Lab::unmounted();
    let disk = Disk::new(&mut lab, "4m");
    mount(&mut lab, "");
    let mut hands = Hands::on(&lab);
    // Two descriptors of each of two files.
    for (slot, name) in [(0, "a"), (1, "a"), (2, "b"), (3, "b")] {
        assert_eq!(hands.open(slot, name), DONE);
    }
    assert_eq!(hands.put(0, 0, 100_000, 1), DONE);
    assert_eq!(hands.put(2, 0, 50_000, 2), DONE);
    assert_eq!((hands.sync(0), hands.sync(2)), (DONE, DONE));
    disk.fill();
    // Acknowledged, or refused: both are an answer. What was acknowledged is kept.
    let full = Err(Errno::ENOSPC);
    let mut kept = Vec::new();
    for (slot, tone) in [(0, 3), (1, 4), (2, 5)] {
        let offset = 200_000 * (1 + slot);
        let answer = hands.put(slot, offset, 150_000, tone);
        assert!(answer == DONE || answer == full, "{answer:?}");
        kept.extend((answer == DONE).then_some((slot, offset, tone)));
    }
    println!("== full disk: {} of 3 writes of 150,000 bytes were acknowledged", kept.len());
    let told = [hands.sync(0), hands.sync(1), hands.close(2)];
    for (slot, told) in told.iter().enumerate() {
        let wrote = kept.iter().any(|(other, ..)| *other == slot);
        assert!(*told == full || !wrote && *told == DONE, "{slot}: {told:?}");
    }
    assert_no_outage(&lab);
    assert_eq!(&content(&lab, "a")[..100_000], bytes(1, 100_000), "what was committed before");
    std::fs::remove_file(disk.ballast()).unwrap();
    hands.sync_at_last(0);
    // The other one has been told of that already, unless one more commit failed while room was being made.
    hands.sync_at_last(1);
    assert_eq!(hands.sync(1), DONE);
    hands.sync_at_last(3);
    assert_eq!(hands.put(0, 1_000_000, 5000, 6), DONE);
    assert_eq!((hands.sync(0), hands.close(0), hands.close(1), hands.close(3)), (DONE, DONE, DONE, DONE));
    for (slot, offset, tone) in kept {
        let found = content(&lab, if slot < 2 { "a" } else { "b" });
        assert!(found[offset..offset + 150_000] == bytes(tone, 150_000), "of descriptor {slot}");
    }
    assert_eq!(content(&lab, "a")[1_000_000..], bytes(6, 5000));
    assert_no_outage(&lab);
    assert_committed(&lab);
    println!("   {}", lab.status()["log"]);
    drop(hands);
    lab.umount();
}

#[test]
fn a_disk_that_comes_back_read_only_keeps_the_log_until_it_can_be_written() {
    let mut lab = Lab::unmounted();
    let disk = Disk::new(&mut lab, "16m");
    mount(&mut lab, "deadline=20s");
    let mut hands = Hands::on(&lab);
    assert_eq!((hands.open(0, "a"), hands.open(1, "b")), (DONE, DONE));
    assert_eq!((hands.put(1, 0, 10_000, 1), hands.sync(1)), (DONE, DONE));
    assert_eq!(hands.put(0, 0, 300_000, 2), DONE);
    // The server restarts; its disk is read-only afterwards. Before that a mount with open files cannot become so.
    lab.net.cut();
    assert_eq!(hands.put(0, 300_000, 1000, 3), DONE);
    // Without its parent it is nobody's session, and has its files open for another moment.
    let servers = lab.sshd.servers();
    lab.sshd.kill_sessions();
    wait("the server has let go of its disk", || servers.iter().all(|&pid| lab::process::has_ended(pid)));
    disk.remount("ro");
    lab.net.heal();
    wait_for_successor(&lab, 1);
    let told = hands.sync(0);
    println!("== read-only: fsync of what cannot be written again says {told:?}; {}", lab.status()["log"]);
    assert!(matches!(told, Err(errno) if errno != Errno::ENOTCONN && errno != Errno::ETIMEDOUT), "{told:?}");
    assert!(hands.open(2, "new").is_err());
    assert_eq!(hands.0.apply(&Op::ReadAt { slot: 1, offset: 0, length: 10_000 }), Ok(Value::Bytes(bytes(1, 10_000))));
    assert_eq!(lab.status()["generation"], 2, "a refusal is no reason for a repair");
    disk.remount("rw");
    hands.sync_at_last(0);
    assert_eq!(hands.put(0, 301_000, 1000, 4), DONE);
    assert_eq!((hands.sync(0), hands.put(1, 10_000, 10, 5), hands.close(1)), (DONE, DONE, DONE));
    assert_eq!(content(&lab, "a"), [bytes(2, 300_000), bytes(3, 1000), bytes(4, 1000)].concat());
    assert_eq!(content(&lab, "b"), [bytes(1, 10_000), bytes(5, 10)].concat());
    assert_eq!(hands.close(0), DONE);
    assert_committed(&lab);
    drop(hands);
    lab.umount();
}

/// Nobody may change it, root included, through descriptors that are open either.
struct Immutable(PathBuf);

impl Immutable {
    fn new(path: PathBuf) -> Immutable {
        run_ok("chattr", &["+i", path.to_str().unwrap()]);
        Immutable(path)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        lab::run("chattr", &["-i", self.0.to_str().unwrap()]);
    }
}

/// Taken away while a file is open, and in the second part while sshfs dies too.
#[test]
fn a_permission_taken_away_is_an_error_and_not_an_outage() {
    let lab = Lab::new("deadline=20s");
    let mut hands = Hands::on(&lab);
    assert_eq!(hands.0.apply(&Op::MakeDirectory { name: "d", mode: 0o755 }), DONE);
    assert_eq!((hands.open(0, "a"), hands.open(1, "d/a")), (DONE, DONE));
    assert_eq!((hands.put(0, 0, 50_000, 1), hands.sync(0)), (DONE, DONE));
    let taken = Immutable::new(lab.store.join("a"));
    let answer = hands.put(0, 50_000, 5000, 2);
    let told = hands.sync(0);
    println!("== permission taken: write {answer:?}, fsync {told:?}");
    let refused = |outcome: &Outcome| matches!(outcome, Err(Errno::EACCES | Errno::EPERM | Errno::EIO));
    assert!(refused(&told) || refused(&answer), "{answer:?} {told:?}");
    assert_no_outage(&lab);
    drop(taken);
    hands.sync_at_last(0);
    let kept = if answer == DONE { 55_000 } else { 50_000 };
    let wanted = [bytes(1, 50_000), bytes(2, 5000)].concat();
    assert_eq!(content(&lab, "a"), wanted[..kept]);

    let taken = Immutable::new(lab.store.join("d"));
    assert!(matches!(hands.open(2, "d/b"), Err(Errno::EACCES | Errno::EPERM)));
    // Files in it go on.
    assert_eq!((hands.put(1, 0, 3000, 3), hands.sync(1)), (DONE, DONE));
    assert_no_outage(&lab);
    drop(taken);
    assert_eq!((hands.open(2, "d/b"), hands.put(2, 0, 10, 4), hands.close(2)), (DONE, DONE, DONE));

    // What is uncommitted meets the prohibition in the replay.
    assert_eq!((hands.put(1, 3000, 3000, 5), hands.put(0, kept, 10, 6), hands.sync(0)), (DONE, DONE, DONE));
    lab.net.cut();
    let taken = Immutable::new(lab.store.join("d/a"));
    assert_eq!(hands.put(1, 6000, 3000, 7), DONE);
    lab.signal("sshfs", nix::sys::signal::Signal::SIGKILL);
    lab.net.heal();
    wait_for_successor(&lab, 1);
    let told = hands.sync(1);
    println!("   after a repair: fsync {told:?}; {}", lab.status()["log"]);
    assert!(refused(&told), "{told:?}");
    drop(taken);
    hands.sync_at_last(1);
    assert_eq!(content(&lab, "d/a"), [bytes(3, 3000), bytes(5, 3000), bytes(7, 3000)].concat());
    assert_eq!((hands.close(0), hands.close(1)), (DONE, DONE));
    assert_committed(&lab);
    assert_eq!(lab.status()["generation"], 2);
    drop(hands);
    lab.umount();
}

/// How long the writers have no server.
fn famine() -> Duration {
    let seconds = std::env::var("STEADFS_FAMINE_SECONDS").map_or(50, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

#[test]
fn memory_stays_bounded_while_writers_have_no_server() {
    let lab = Lab::new("hold=1h,log_size=16m");
    let start = |kind: &str, name: &str| Agent::start(kind, &lab.hot.join(name), lab.directory());
    let agents = [start("streams", "streams"), start("bulk", "bulk"), start("sparse", "sparse")].map(Agent::at_work);
    lab::sleep_secs(0.5);
    let before = lab.status()["resident_bytes"].as_u64().unwrap();
    lab.net.cut();
    let (begun, mut most, mut log) = (Instant::now(), (0, 0), 0);
    while begun.elapsed() < famine() {
        let status = lab.status();
        let number = |field: &str| status.pointer(field).and_then(serde_json::Value::as_u64).unwrap();
        let (resident, limit) = (number("/resident_bytes"), number("/resident_limit_bytes"));
        assert!(resident < limit, "{resident} bytes of memory, the limit is {limit}: {status}");
        most = most.max((resident, limit));
        log = log.max(number("/log/bytes"));
        lab::sleep_secs(0.1);
    }
    let status = lab.status();
    lab.net.heal();
    let healed = Instant::now();
    lab.wait_state("live");
    let back = healed.elapsed().as_secs_f64();
    lab::sleep_secs(1.0);
    let [streams, bulk, sparse] = agents.map(Agent::finish);
    println!(
        "== no server for {:.0} s: {} MiB resident before, {} MiB at most, limit then {} MiB, log {} KiB at most, {} calls \
         waiting; live {back:.1} s after",
        famine().as_secs_f64(),
        before >> 20,
        most.0 >> 20,
        most.1 >> 20,
        log >> 10,
        status["calls"]["waiting"],
    );
    for agent in [&streams, &bulk, &sparse] {
        assert_eq!((&agent.hanging, agent.errors()), (&vec![], vec![]));
    }
    assert_eq!(streams.streams.len(), 16);
    for file in &streams.streams {
        assert!(file.closed && file.afterwards >= 32, "{file:?}");
        verify(&lab.store.join(file.path.file_name().map(Path::new).unwrap()), file.written);
    }
    let (wanted, found) = ((0..32).flat_map(record).collect::<Vec<_>>(), content(&lab, "bulk"));
    assert!(bulk.synced > 0 && found.len() as u64 == bulk.synced, "{} bytes of {}", found.len(), bulk.synced);
    assert!(found.chunks(wanted.len()).all(|chunk| chunk == &wanted[..chunk.len()]), "bulk holds something else");
    let found = content(&lab, "sparse");
    let bytes = found.iter().filter(|&&byte| byte == 1).count() as u64;
    assert_eq!(bytes, sparse.synced, "single bytes");
    println!(
        "   acknowledged and there: {} KiB of streams, {} KiB of bulk, {bytes} single bytes",
        streams.streams.iter().map(|file| file.written * 4).sum::<u64>(),
        bulk.synced >> 10,
    );
    assert_committed(&lab);
    lab.umount();
}
