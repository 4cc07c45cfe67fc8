//! The programs that use the mount while it is tormented: WARC writers, a state file, a log, a prober, a reader.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use flate2::Crc;

use super::check::{self, FileReport};
use super::meter::{Actor, Meter, Window};
use super::writer::{RECORDS_PER_COMMIT, Step, WarcWriter};

/// WARCs that grow at once.
pub const WRITERS: usize = 3;
/// Actors that write WARCs.
pub const WARC_ACTORS: std::ops::Range<Actor> = 0..WRITERS;
/// Actors that commit something all the time and quickly: their gaps are what is called a stall.
pub const BUSY_ACTORS: std::ops::Range<Actor> = 0..WRITERS + 1;
const PROBER: Actor = WRITERS;
const STATE: Actor = WRITERS + 1;
const LOG: Actor = WRITERS + 2;
const READER: Actor = WRITERS + 3;
/// Number of actors.
pub const ACTORS: usize = WRITERS + 4;

/// Directory of the crawl below the hot path.
pub const JOB: &str = "crawl";
/// Log below it.
pub const LOG_NAME: &str = "crawl.log";
/// State below it.
pub const STATE_NAME: &str = ".archive_state.json";
/// Where the prober creates and unlinks.
pub const PROBE_DIR: &str = "probe";

/// How long a program pauses before it tries a failed call again.
const RETRY: Duration = Duration::from_millis(100);

/// Name of a writer's WARC.
pub fn warc_name(writer: usize) -> String {
    format!("crawl-{writer:05}.warc.gz")
}

/// Length and end of the longest stall of a busy program. The end is that of the last long one, so that a program that
/// came back later than the others counts.
pub fn longest_stall(window: &Window) -> (Duration, Duration) {
    let gaps = BUSY_ACTORS.filter_map(|actor| window.gaps.get(actor));
    gaps.fold(Default::default(), |(length, end), gap| (length.max(gap.0), end.max(gap.1)))
}

/// What fsync has promised.
#[derive(Debug, Default)]
pub struct Promises {
    /// Bytes of each WARC.
    pub warc_bytes: [AtomicU64; WRITERS],
    /// Records of each WARC.
    pub warc_records: [AtomicU64; WRITERS],
    /// Newest state.
    pub state: AtomicU64,
    /// Lines of the log.
    pub log_lines: AtomicU64,
    /// Bytes that the reader has read.
    pub read_bytes: AtomicU64,
    /// CRC-32 of them.
    pub read_crc: AtomicU64,
}

/// What the programs share.
#[derive(Debug)]
pub struct Cast {
    /// Their calls.
    pub meter: Meter,
    /// What they may rely on.
    pub promises: Promises,
    job: PathBuf,
    /// Set to let them finish what they are at.
    stop: AtomicBool,
    /// Set to make them leave at the next error.
    give_up: AtomicBool,
}

impl Cast {
    /// Programs that will work below `hot`.
    pub fn new(hot: &Path) -> Arc<Cast> {
        Arc::new(Cast {
            meter: Meter::new(ACTORS),
            promises: Promises::default(),
            job: hot.join(JOB),
            stop: AtomicBool::new(false),
            give_up: AtomicBool::new(false),
        })
    }

    /// Starts them all.
    pub fn begin(self: &Arc<Cast>) -> io::Result<Vec<JoinHandle<()>>> {
        std::fs::create_dir_all(self.job.join(PROBE_DIR))?;
        let mut threads = Vec::new();
        for writer in WARC_ACTORS {
            threads.push(self.thread(&format!("warc-{writer}"), move |cast| cast.write_warc(writer))?);
        }
        threads.push(self.thread("prober", Cast::probe)?);
        threads.push(self.thread("state", Cast::write_state)?);
        threads.push(self.thread("log", Cast::write_log)?);
        threads.push(self.thread("reader", Cast::read)?);
        Ok(threads)
    }

    fn thread(self: &Arc<Cast>, name: &str, run: impl Fn(&Cast) + Send + 'static) -> io::Result<JoinHandle<()>> {
        let cast = self.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || run(&cast))
    }

    /// Lets them finish; true when all have ended within `grace`. Those that have not are left behind.
    pub fn end(&self, threads: Vec<JoinHandle<()>>, grace: Duration) -> bool {
        self.stop.store(true, SeqCst);
        let begun = Instant::now();
        while threads.iter().any(|thread| !thread.is_finished()) {
            if begun.elapsed() > grace {
                self.give_up.store(true, SeqCst);
            }
            if begun.elapsed() > grace + Duration::from_secs(1) {
                return false;
            }
            sleep(Duration::from_millis(10));
        }
        // A program of the demo that panicked is a fault of the demo; its file will not pass the check.
        threads.into_iter().all(|thread| thread.join().is_ok())
    }

    /// Looks at what lies on the store itself, and holds it against what fsync promised: WARCs, log, state.
    pub fn inspect(&self, store: &Path) -> Vec<FileReport> {
        let (job, promises) = (store.join(JOB), &self.promises);
        let mut files = Vec::new();
        for writer in WARC_ACTORS {
            let name = warc_name(writer);
            let acknowledged = promises.warc_records[writer].load(SeqCst);
            files.push(check::warc_file(&job.join(&name), &name, writer, acknowledged));
        }
        files.push(check::log_file(&job.join(LOG_NAME), LOG_NAME, promises.log_lines.load(SeqCst)));
        files.push(check::state_file(&job.join(STATE_NAME), STATE_NAME, promises.state.load(SeqCst)));
        files
    }

    fn stopping(&self) -> bool {
        self.stop.load(SeqCst)
    }

    /// Repeats a call until it succeeds; `None` when it was time to give up.
    fn insist<T>(&self, actor: Actor, name: &'static str, mut call: impl FnMut() -> io::Result<T>) -> Option<T> {
        while !self.give_up.load(SeqCst) {
            match self.meter.call(actor, name, &mut call) {
                Ok(value) => return Some(value),
                Err(_) => sleep(RETRY),
            }
        }
        None
    }

    fn write_warc(&self, writer: usize) {
        let path = self.job.join(warc_name(writer));
        let Some(mut warc) = self.insist(writer, "open", || WarcWriter::create(&path, writer)) else { return };
        while !self.stopping() {
            warc.make_record();
            if self.insist(writer, "write", || warc.write()).is_none() {
                return;
            }
            if warc.uncommitted() >= RECORDS_PER_COMMIT as u64 && !self.commit(writer, &mut warc) {
                return;
            }
            sleep(Duration::from_millis(10));
        }
        if warc.uncommitted() == 0 || self.commit(writer, &mut warc) {
            // Everything is committed; close has nothing left to lose, and what it says is counted.
            let _ = self.meter.call(writer, "close", || warc.close());
        }
    }

    fn commit(&self, writer: usize, warc: &mut WarcWriter) -> bool {
        loop {
            if self.insist(writer, "write", || warc.write()).is_none() {
                return false;
            }
            match self.meter.call(writer, "fsync", || warc.commit(File::sync_data)) {
                Ok(Step::Committed(bytes, records)) => {
                    let (all_bytes, all_records) = warc.committed();
                    self.promises.warc_bytes[writer].store(all_bytes, SeqCst);
                    self.promises.warc_records[writer].store(all_records, SeqCst);
                    self.meter.committed(writer, bytes, records);
                    return true;
                }
                Ok(Step::Wrote) => {}
                Err(_) if self.give_up.load(SeqCst) => return false,
                Err(_) => sleep(RETRY),
            }
        }
    }

    /// Creates, syncs and unlinks a file again and again.
    fn probe(&self) {
        let mut number = 0_u64;
        while !self.stopping() {
            let path = self.job.join(PROBE_DIR).join(format!("p{number}"));
            number += 1;
            let create = || File::create(&path)?.sync_all();
            let unlink = || match std::fs::remove_file(&path) {
                // An unlink that was answered with an error may have been done all the same.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
            if self.insist(PROBER, "create", create).is_none() || self.insist(PROBER, "unlink", unlink).is_none() {
                return;
            }
            self.meter.committed(PROBER, 0, 0);
            sleep(RETRY);
        }
    }

    /// Truncates the state file in place, writes and syncs it.
    fn write_state(&self) {
        let path = self.job.join(STATE_NAME);
        let mut sequence = 0_u64;
        while !self.stopping() {
            sequence += 1;
            let text = format!("{{\"sequence\": {sequence}, \"queue\": \"{}\"}}\n", "x".repeat(2000));
            let save = || {
                let mut file = File::create(&path)?;
                file.write_all(text.as_bytes())?;
                file.sync_all()?;
                Ok(nix::unistd::close(file)?)
            };
            if self.insist(STATE, "state file", save).is_none() {
                return;
            }
            self.promises.state.store(sequence, SeqCst);
            self.meter.committed(STATE, 0, 0);
            sleep(Duration::from_millis(250));
        }
    }

    /// Appends lines to the log and syncs every ten; after a failed sync the ten are appended again.
    fn write_log(&self) {
        let path = self.job.join(LOG_NAME);
        let open = || OpenOptions::new().append(true).create(true).open(&path);
        let Some(mut file) = self.insist(LOG, "open", open) else { return };
        let mut done = 0_u64;
        while !self.stopping() {
            let lines = done..done + 10;
            loop {
                for number in lines.clone() {
                    let line = format!("{number} fetched {}\n", super::warc::uri(0, number));
                    if self.insist(LOG, "append", || file.write_all(line.as_bytes())).is_none() {
                        return;
                    }
                    sleep(Duration::from_millis(10));
                }
                match self.meter.call(LOG, "fsync", || file.sync_data()) {
                    Ok(()) => break,
                    Err(_) if self.give_up.load(SeqCst) => return,
                    Err(_) => sleep(RETRY),
                }
            }
            done = lines.end;
            self.promises.log_lines.store(done, SeqCst);
            self.meter.committed(LOG, 0, 0);
        }
    }

    /// Follows the first WARC at one descriptor, as far as it is committed.
    fn read(&self) {
        let path = self.job.join(warc_name(0));
        while self.promises.warc_bytes[0].load(SeqCst) == 0 {
            if self.stopping() {
                return;
            }
            sleep(RETRY);
        }
        let Some(file) = self.insist(READER, "open", || File::open(&path)) else { return };
        let (mut offset, mut crc, mut buffer) = (0_u64, Crc::new(), vec![0; 1 << 16]);
        loop {
            let committed = self.promises.warc_bytes[0].load(SeqCst);
            if offset >= committed {
                if self.stopping() {
                    return;
                }
                sleep(RETRY);
                continue;
            }
            let want = buffer.len().min((committed - offset) as usize);
            let Some(got) = self.insist(READER, "read", || file.read_at(&mut buffer[..want], offset)) else { return };
            if got == 0 {
                // The kernel may believe an old size for attr_timeout; the bytes are there, so they will be seen.
                if self.give_up.load(SeqCst) {
                    return;
                }
                sleep(RETRY);
                continue;
            }
            crc.update(&buffer[..got]);
            offset += got as u64;
            self.promises.read_crc.store(u64::from(crc.sum()), SeqCst);
            self.promises.read_bytes.store(offset, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn on_a_plain_directory_every_promise_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cast = Cast::new(dir.path());
        let threads = cast.begin().unwrap();
        // A busy disk takes its time over the first fsync of each.
        let promises = &cast.promises;
        let all_begun = || {
            let others = [&promises.log_lines, &promises.state, &promises.read_bytes];
            promises.warc_records.iter().chain(others).all(|counter| counter.load(SeqCst) > 0)
        };
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(800) || !all_begun() {
            assert!(begun.elapsed() < Duration::from_secs(60), "not everybody has begun");
            sleep(Duration::from_millis(10));
        }
        assert!(cast.end(threads, Duration::from_secs(30)));
        let job = dir.path().join(JOB);
        for writer in WARC_ACTORS {
            let promised = cast.promises.warc_records[writer].load(SeqCst);
            let report = check::warc_file(&job.join(warc_name(writer)), "w", writer, promised);
            assert!(promised > 0 && report.records == promised, "{report:?}");
            assert!(report.problems.is_empty(), "{report:?}");
        }
        let lines = cast.promises.log_lines.load(SeqCst);
        assert!(lines > 0 && check::log_file(&job.join(LOG_NAME), "log", lines).problems.is_empty());
        let state = cast.promises.state.load(SeqCst);
        assert!(state > 0 && check::state_file(&job.join(STATE_NAME), "state", state).problems.is_empty());
        assert_eq!(std::fs::read_dir(job.join(PROBE_DIR)).unwrap().count(), 0);
        let read = cast.promises.read_bytes.load(SeqCst);
        let crc = check::prefix_crc(&job.join(warc_name(0)), read).map(u64::from);
        assert!(read > 0 && crc == Some(cast.promises.read_crc.load(SeqCst)));
        assert_eq!(cast.meter.totals().errors, 0);
    }

    #[test]
    fn the_stall_is_the_longest_and_ends_with_the_last() {
        let seconds = Duration::from_secs;
        let mut window = Window { gaps: vec![Default::default(); ACTORS], ..Default::default() };
        window.gaps[0] = (seconds(3), seconds(10));
        window.gaps[1] = (seconds(2), seconds(11));
        assert_eq!(longest_stall(&window), (seconds(3), seconds(11)));
    }
}
