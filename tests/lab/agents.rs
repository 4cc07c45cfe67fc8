//! What agents do, inside their own processes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::agent::{Call, GRACE, Report, Stream, now};
use super::tidy;

/// Bytes of a record.
pub const RECORD: usize = 4096;
/// Records between two fsyncs.
const BATCH: u64 = 8;
/// Files that are written to at once.
const STREAMS: usize = 16;
/// Most bytes that one of them is given before the end: what is there is read back.
const STREAM_BYTES: u64 = 96 << 20;
/// Callers of a crowd.
const CROWD: usize = 200;

/// Most records that are written without a pause: what is there is read back.
const HASTE: u64 = (256 << 20) / RECORD as u64;
/// What a quick call takes at most, in seconds.
pub const QUICK: f64 = 0.02;

/// What all threads of an agent share.
pub(super) struct Desk {
    /// Quick calls are only counted.
    lean: bool,
    stop: AtomicBool,
    report: Mutex<Report>,
    /// Calls that have begun, by an arbitrary key.
    open: Mutex<Vec<(u64, Call)>>,
    path: PathBuf,
}

impl Desk {
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap());
    }

    /// Something succeeded and was wrong all the same.
    pub(super) fn wrong(&self, words: String) {
        self.change(|report| report.wrong.push(words));
    }

    pub(super) fn ready(&self) {
        std::fs::write(self.path.with_extension("ready"), "").unwrap();
    }

    /// Runs a call under the clock.
    pub(super) fn timed<T>(&self, name: &str, call: impl FnOnce() -> io::Result<T>) -> Option<T> {
        let mut entry = Call { name: name.into(), start: now(), took: 0.0, errno: 0 };
        let key = {
            let mut open = self.open.lock().unwrap();
            let key = open.last().map_or(0, |(key, _)| key + 1);
            open.push((key, entry.clone()));
            key
        };
        let begun = Instant::now();
        let result = call();
        entry.took = begun.elapsed().as_secs_f64();
        entry.errno = result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(-1));
        self.open.lock().unwrap().retain(|(other, _)| *other != key);
        let quick = self.lean && entry.took < QUICK && entry.errno == 0;
        self.change(|report| if quick { report.quick += 1 } else { report.calls.push(entry) });
        result.ok()
    }

    /// Closes under the clock: what close(2) says is lost when a `File` is dropped.
    pub(super) fn close(&self, file: File) -> bool {
        self.timed("close", || nix::unistd::close(file.into_raw_fd()).map_err(io::Error::from)).is_some()
    }

    /// A file that was written by one descriptor and closed.
    pub(super) fn stream(&self, path: &Path, written: u64, closed: bool) {
        let stream = Stream { path: path.to_owned(), written, closed, afterwards: 0 };
        self.change(|report| report.streams.push(stream));
    }

    fn publish(&self) {
        let report = serde_json::to_vec(&*self.report.lock().unwrap()).unwrap();
        let part = self.path.with_extension("part");
        std::fs::write(&part, report).unwrap();
        std::fs::rename(part, &self.path).unwrap();
    }

    /// Waits until told to stop; if the agent does not manage to, reports for it.
    fn watch(&self) {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        self.stop.store(true, Ordering::SeqCst);
        sleep(GRACE);
        let hanging = self.open.lock().unwrap().iter().map(|(_, call)| call.clone()).collect::<Vec<_>>();
        self.change(|report| {
            report.hanging = hanging.into_iter().map(|c| Call { took: now() - c.start, ..c }).collect()
        });
        self.publish();
        std::process::exit(0);
    }
}

/// The hidden test calls this.
pub fn main() {
    let Ok(kind) = std::env::var("LAB_AGENT") else { return };
    let variable = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let (target, path) = (variable("LAB_TARGET"), variable("LAB_REPORT"));
    let (kind, lean) = kind.strip_suffix("-lean").map_or((kind.as_str(), false), |kind| (kind, true));
    let desk = Desk { lean, stop: false.into(), report: Mutex::default(), open: Mutex::default(), path };
    let desk = Arc::new(desk);
    let watcher = Arc::clone(&desk);
    std::thread::spawn(move || watcher.watch());
    match kind {
        "writer" => writer(&target, &desk),
        "bulk" => bulk(&target, &desk),
        "stream" => streams(&target, 1, &desk),
        "streams" => streams(&target, STREAMS, &desk),
        "unpaced" => unpaced(&target, &desk),
        "sparse" => sparse(&target, &desk),
        "prober" => prober(&target, &desk),
        "stat" => stats(&target, &desk),
        "crowd" => crowd(&target, &desk),
        "tail" => tidy::tail(&target, &desk),
        "names" => tidy::names(&target, &desk),
        "forker" => forker(&target, &desk),
        other => panic!("no such agent: {other}"),
    }
    desk.publish();
}

/// What record `number` holds: its number and bytes that follow from it.
pub fn record(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = number.to_le_bytes().to_vec();
    while data.len() < RECORD {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    data
}

/// Checks a file of the store: all `synced` records are there, and whatever follows is a record or a hole.
pub fn verify(path: &Path, synced: u64) {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let blocks = file.metadata().unwrap().len().div_ceil(RECORD as u64);
    assert!(blocks >= synced, "{synced} records were synced, the store has {blocks}");
    let mut data = vec![0; RECORD];
    for number in 0..blocks {
        data.fill(0);
        let read = (0..RECORD).try_fold(0, |done, _| {
            match file.read_at(&mut data[done..], number * RECORD as u64 + done as u64) {
                Ok(0) => Err(done),
                Ok(more) => Ok(done + more),
                Err(error) => panic!("{}: {error}", path.display()),
            }
        });
        let read = read.unwrap_or_else(|done| done);
        let right = data == record(number);
        assert!(right || number >= synced, "record {number} of {synced} synced ones is lost or wrong ({read} bytes)");
        let harmless = data[..read] == record(number)[..read] || data.iter().all(|&byte| byte == 0);
        assert!(right || harmless, "block {number}, not synced, holds what was never written there");
    }
}

/// Numbered records, an fsync after every eighth, one descriptor throughout. What failed is written again, and so is
/// what an fsync did not confirm.
fn writer(path: &Path, desk: &Desk) {
    records(path, Duration::from_millis(1), desk);
}

/// The same without a pause.
fn unpaced(path: &Path, desk: &Desk) {
    records(path, Duration::ZERO, desk);
}

fn records(path: &Path, pause: Duration, desk: &Desk) {
    let open = || OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path);
    let Some(file) = desk.timed("open", open) else { return };
    let (mut next, mut synced) = (0, 0);
    let mut put = || {
        let (data, offset) = (record(next), next * RECORD as u64);
        if desk.timed("write", || file.write_all_at(&data, offset)).is_none() {
            sleep(Duration::from_millis(50));
            return synced;
        }
        next += 1;
        if next % BATCH == 0 {
            match desk.timed("fsync", || file.sync_all()) {
                Some(()) => synced = next,
                None => next = synced,
            }
            desk.change(|report| report.synced = synced);
        }
        sleep(if next > HASTE { pause.max(Duration::from_millis(5)) } else { pause });
        synced
    };
    while !desk.stopped() {
        if put() == 4 * BATCH {
            desk.ready();
        }
    }
    // The moment a descriptor is told to stop is of no account: what it still writes shows that it lives.
    let before = put();
    let mut after = before;
    for _ in 0..300 {
        after = put();
        if after >= before + 4 * BATCH {
            break;
        }
    }
    desk.change(|report| report.afterwards = after - before);
    desk.close(file);
}

/// Numbered records as fast as they are taken, each through one descriptor that is never synced, only closed in the end.
/// What failed is written again.
fn streams(path: &Path, count: usize, desk: &Desk) {
    let most = STREAM_BYTES / count as u64 / RECORD as u64;
    // Before any of them writes: a fault must find them all at work.
    let paths = (0..count).map(|number| path.with_extension(number.to_string()));
    let files = paths.filter_map(|path| Some((desk.timed("open", || File::create(&path))?, path)));
    let files: Vec<_> = files.collect();
    std::thread::scope(|scope| {
        for (number, (file, path)) in files.into_iter().enumerate() {
            scope.spawn(move || {
                let mut next = 0;
                let mut put = |pause: bool| {
                    let done = desk.timed("write", || file.write_all_at(&record(next), next * RECORD as u64)).is_some();
                    next += u64::from(done);
                    if pause || !done {
                        sleep(Duration::from_millis(50));
                    }
                    if next == 8 && number == 0 {
                        desk.ready();
                    }
                    next
                };
                let mut before = 0;
                while !desk.stopped() {
                    before = put(before > most);
                }
                for _ in 0..300 {
                    if put(false) >= before + 32 {
                        break;
                    }
                }
                let written = put(false);
                let closed = desk.close(file);
                desk.change(|report| {
                    report.streams.push(Stream { path, written, closed, afterwards: written - before })
                });
            });
        }
    });
}

/// Writes as much as it may for as long as it may, 128 KiB at a time.
fn bulk(path: &Path, desk: &Desk) {
    let Some(file) = desk.timed("open", || File::create(path)) else { return };
    desk.ready();
    let data: Vec<u8> = (0..32).flat_map(record).collect();
    let mut offset = 0;
    while !desk.stopped() {
        if desk.timed("write", || file.write_all_at(&data, offset)).is_some() {
            offset += data.len() as u64;
        }
    }
    if desk.timed("fsync", || file.sync_all()).is_some() {
        desk.change(|report| report.synced = offset);
    }
    desk.close(file);
}

/// Single bytes with holes between them, so that nothing can be merged.
fn sparse(path: &Path, desk: &Desk) {
    let Some(file) = desk.timed("open", || File::create(path)) else { return };
    desk.ready();
    let mut done = 0;
    while !desk.stopped() {
        if desk.timed("write", || file.write_all_at(&[1], done * 100)).is_some() {
            done += 1;
        }
    }
    if desk.timed("fsync", || file.sync_all()).is_some() {
        desk.change(|report| report.synced = done);
    }
    desk.close(file);
}

fn probe(known: &Path, path: &Path, desk: &Desk) {
    desk.timed("stat", || std::fs::metadata(known));
    let create = || OpenOptions::new().create_new(true).write(true).open(path);
    if let Some(file) = desk.timed("create", create) {
        desk.timed("fsync", || file.sync_all());
        desk.close(file);
        desk.timed("unlink", || std::fs::remove_file(path));
    }
}

/// Looks at one file that nobody else uses, with no cache to answer it.
fn stats(path: &Path, desk: &Desk) {
    desk.timed("create", || std::fs::write(path, "here"));
    desk.ready();
    while !desk.stopped() {
        // Attributes are believed for a second.
        sleep(Duration::from_millis(1500));
        desk.timed("stat", || std::fs::metadata(path));
    }
}

/// stat, create, fsync, unlink every 100 ms.
fn prober(directory: &Path, desk: &Desk) {
    let known = directory.join("known");
    std::fs::write(&known, "here").unwrap();
    for number in 0_u64.. {
        if desk.stopped() {
            break;
        }
        probe(&known, &directory.join(format!("probe-{}-{number}", std::process::id())), desk);
        if number == 5 {
            desk.ready();
        }
        sleep(Duration::from_millis(100));
    }
}

/// Runs programs while it holds a file that it has written to: each child closes it in its execve(2), which flushes.
fn forker(path: &Path, desk: &Desk) {
    let Some(file) = desk.timed("open", || File::create(path)) else { return };
    let mut number = 0_u32;
    while !desk.stopped() {
        desk.timed("write", || file.write_all_at(b"dirty", 0));
        desk.timed("spawn", || std::process::Command::new("true").status());
        number += 1;
        if number == 5 {
            desk.ready();
        }
    }
    desk.close(file);
}

/// Many callers at once, each with files of its own.
fn crowd(directory: &Path, desk: &Desk) {
    let known = directory.join("crowd-known");
    std::fs::write(&known, "here").unwrap();
    let begun = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for caller in 0..CROWD {
            let (known, begun) = (&known, &begun);
            scope.spawn(move || {
                for number in 0_u64.. {
                    if desk.stopped() {
                        break;
                    }
                    probe(known, &directory.join(format!("caller-{caller}-{number}")), desk);
                    if caller == CROWD - 1 && !begun.swap(true, Ordering::SeqCst) {
                        desk.ready();
                    }
                    sleep(Duration::from_millis(500));
                }
            });
        }
    });
}
