//! steadfs is killed when a write has reached one of its threads and has not been read yet (promise P6): the thread is kept from
//! running until then, by somebody on its processor who goes before it. Needs root, /dev/fuse, sshfs, sftp-server, two
//! processors and Linux 6.9.
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab::relayed::Relayed;
use lab::{process, wait};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// As much as the kernel sends in one request.
const WRITE: usize = 128 << 10;
/// Successors that are killed in the same way.
const ROUNDS: usize = 4;
/// As long as one may go before everybody else without being stopped (sched_rt_runtime_us is 0.95 s), and some reserve.
const FIRST: Duration = Duration::from_millis(600);
/// A machine with much to do may not get anything done in that time.
const TRIES: usize = 10;

lab::also_runs_as!(relay_process: lab::relay::main);

/// Two processors that this thread may use.
fn processors() -> (usize, usize) {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut all = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap());
    (all.next().unwrap(), all.next().expect("these tests need two processors"))
}

/// Lets a thread (0: this one) run there only.
fn pin(thread: i32, processor: usize) {
    let mut one = CpuSet::new();
    one.set(processor).unwrap();
    sched_setaffinity(Pid::from_raw(thread), &one).unwrap();
}

/// Keeps everybody else from running on a processor, until it is dropped or its time is over.
struct Hog {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hog {
    fn begin(processor: usize) -> Hog {
        let (over, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stop, running) = (Arc::clone(&over), Arc::clone(&begun));
        let thread = std::thread::spawn(move || {
            pin(0, processor);
            let priority = libc::sched_param { sched_priority: 1 };
            // SAFETY: changes how this thread is scheduled, and nothing else.
            Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) }).unwrap();
            let until = Instant::now() + FIRST;
            running.store(true, SeqCst);
            while !stop.load(SeqCst) && Instant::now() < until {
                std::hint::spin_loop();
            }
            stop.store(true, SeqCst);
        });
        let hog = Hog { over, thread: Some(thread) };
        wait("nobody else runs there", || begun.load(SeqCst));
        hog
    }

    /// False if it let others run before.
    fn end(mut self) -> bool {
        let held = !self.over.swap(true, SeqCst);
        self.thread.take().unwrap().join().unwrap();
        held
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
    }
}

/// The threads that read requests, as soon as there are both.
fn readers(daemon: i32) -> Vec<i32> {
    let mut found = Vec::new();
    wait("it reads requests", || {
        found = process::threads(daemon);
        found.retain(|(_, name)| name.starts_with("fuser-"));
        found.len() == 2
    });
    found.into_iter().map(|(thread, _)| thread).collect()
}

/// Kills the daemon when it has got a write to read. How that write ended, or nothing if it may have been read before.
/// `there`: a processor that this thread does not use.
fn kill_at_write(mount: &Relayed, there: usize, mut file: File, bytes: Vec<u8>) -> Option<std::io::Result<()>> {
    let daemon = i32::try_from(mount.status()["pid"].as_i64().unwrap()).unwrap();
    let readers = readers(daemon);
    readers.iter().for_each(|&thread| pin(thread, there));
    let hog = Hog::begin(there);
    let writer = std::thread::spawn(move || {
        file.write_all(&bytes)?;
        file.sync_all()
    });
    wait("one has got it", || {
        hog.over.load(SeqCst) || readers.iter().any(|&thread| process::is_runnable(daemon, thread))
    });
    process::signal(daemon, Signal::SIGKILL);
    let held = hog.end();
    let result = writer.join().unwrap();
    wait("the next one serves", || {
        let status = mount.status();
        status["state"] == "live" && status["pid"] != daemon
    });
    held.then_some(result)
}

/// As sshfs is started: by a child of the daemon's, which shares its memory for a moment.
fn another_generation(mount: &Relayed) {
    let before = mount.status()["generation"].as_u64();
    mount
        .family()
        .into_iter()
        .filter(|&pid| process::name(pid) == "sshfs")
        .for_each(|pid| process::signal(pid, Signal::SIGKILL));
    wait("the next generation is live", || {
        let status = mount.status();
        status["state"] == "live" && status["generation"].as_u64() > before
    });
}

#[test]
fn a_write_that_a_killed_daemon_was_about_to_read_is_done_by_its_successor() {
    let mut mount = Relayed::new("backoff_min=100ms,backoff_max=100ms");
    let fresh = mount.fresh();
    let (here, there) = processors();
    pin(0, here);
    let (mut rounds, mut failed) = ([0, 0], Vec::new());
    for number in 0..TRIES * ROUNDS {
        if rounds == [ROUNDS; 2] {
            break;
        }
        let forked = number % 2;
        let path = fresh.hot.join(number.to_string());
        let mut file = OpenOptions::new().append(true).create_new(true).open(path).unwrap();
        // What the kernel asks with a first write only (security.capability) it need not ask again.
        file.write_all(b"first").unwrap();
        if forked == 1 {
            another_generation(&mount);
        }
        let bytes = vec![u8::try_from(number).unwrap(); WRITE];
        let Some(result) = kill_at_write(&mount, there, file, bytes.clone()) else { continue };
        rounds[forked] += 1;
        match result {
            Ok(()) => {
                let whole = [&b"first"[..], &bytes].concat();
                assert!(std::fs::read(fresh.store.join(number.to_string())).unwrap() == whole, "{number}");
            }
            Err(error) => failed.push((["young", "after a fork"][forked], error.to_string())),
        }
    }
    assert!(failed.is_empty(), "{failed:?} of {rounds:?}");
    assert!(rounds.iter().all(|&done| done >= ROUNDS), "only {rounds:?} were killed in time");
    mount.umount();
}
