//! Counters of the gate, kept as plain atomics so that counting never waits; telemetry reads them when it is asked.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A FUSE operation, by its name in the protocol (include/uapi/linux/fuse.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum Op {
    Lookup,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Symlink,
    Link,
    Rename,
    Open,
    Create,
    Read,
    Write,
    Flush,
    Fsync,
    Release,
    Releasedir,
    Opendir,
    Readdir,
    Fsyncdir,
    Statfs,
    Getxattr,
    Listxattr,
    Setxattr,
    Removexattr,
    Lseek,
    Fallocate,
    CopyFileRange,
    Ioctl,
}

impl Op {
    /// Its number in the protocol (enum fuse_opcode of linux/fuse.h); that of one where several are the same here.
    pub fn opcode(self) -> u32 {
        match self {
            Op::Lookup => 1,
            Op::Getattr => 3,
            Op::Setattr => 4,
            Op::Readlink => 5,
            Op::Symlink => 6,
            Op::Mknod => 8,
            Op::Mkdir => 9,
            Op::Unlink => 10,
            Op::Rmdir => 11,
            Op::Rename => 12,
            Op::Link => 13,
            Op::Open => 14,
            Op::Read => 15,
            Op::Write => 16,
            Op::Statfs => 17,
            Op::Release => 18,
            Op::Releasedir => 29,
            Op::Fsync => 20,
            Op::Setxattr => 21,
            Op::Getxattr => 22,
            Op::Listxattr => 23,
            Op::Removexattr => 24,
            Op::Flush => 25,
            Op::Opendir => 27,
            Op::Readdir => 28,
            Op::Fsyncdir => 30,
            Op::Create => 35,
            Op::Fallocate => 43,
            Op::Lseek => 46,
            Op::CopyFileRange => 47,
            Op::Ioctl => 39,
        }
    }

    /// All of them, in order of their discriminants.
    pub const ALL: [Op; 31] = [
        Op::Lookup,
        Op::Getattr,
        Op::Setattr,
        Op::Readlink,
        Op::Mknod,
        Op::Mkdir,
        Op::Unlink,
        Op::Rmdir,
        Op::Symlink,
        Op::Link,
        Op::Rename,
        Op::Open,
        Op::Create,
        Op::Read,
        Op::Write,
        Op::Flush,
        Op::Fsync,
        Op::Release,
        Op::Releasedir,
        Op::Opendir,
        Op::Readdir,
        Op::Fsyncdir,
        Op::Statfs,
        Op::Getxattr,
        Op::Listxattr,
        Op::Setxattr,
        Op::Removexattr,
        Op::Lseek,
        Op::Fallocate,
        Op::CopyFileRange,
        Op::Ioctl,
    ];

    /// True if its payload goes to the server.
    pub fn writes(self) -> bool {
        matches!(self, Op::Write | Op::CopyFileRange)
    }

    /// Label value in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Op::Lookup => "lookup",
            Op::Getattr => "getattr",
            Op::Setattr => "setattr",
            Op::Readlink => "readlink",
            Op::Mknod => "mknod",
            Op::Mkdir => "mkdir",
            Op::Unlink => "unlink",
            Op::Rmdir => "rmdir",
            Op::Symlink => "symlink",
            Op::Link => "link",
            Op::Rename => "rename",
            Op::Open => "open",
            Op::Create => "create",
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Fsync => "fsync",
            Op::Release => "release",
            Op::Releasedir => "releasedir",
            Op::Opendir => "opendir",
            Op::Readdir => "readdir",
            Op::Fsyncdir => "fsyncdir",
            Op::Statfs => "statfs",
            Op::Getxattr => "getxattr",
            Op::Listxattr => "listxattr",
            Op::Setxattr => "setxattr",
            Op::Removexattr => "removexattr",
            Op::Lseek => "lseek",
            Op::Fallocate => "fallocate",
            Op::CopyFileRange => "copy_file_range",
            Op::Ioctl => "ioctl",
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Outcome {
    /// The backing did it.
    Ok,
    /// The backing said no; its errno was passed on.
    Error,
    /// Its deadline passed first.
    Deadline,
    /// It failed because of an outage.
    Outage,
}

impl Outcome {
    /// All of them, in order of their discriminants.
    pub const ALL: [Outcome; 4] = [Outcome::Ok, Outcome::Error, Outcome::Deadline, Outcome::Outage];

    /// Label value in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Error => "error",
            Outcome::Deadline => "deadline",
            Outcome::Outage => "outage",
        }
    }
}

/// Upper bounds of the latency buckets, in seconds; a last one without bound follows.
pub const LATENCY_BOUNDS: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 2.5, 5.5, 30.5];

/// Latencies of one operation.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = LATENCY_BOUNDS.iter().position(|&bound| seconds <= bound).unwrap_or(LATENCY_BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(took.as_micros().min(u64::MAX as u128) as u64, Relaxed);
    }

    /// Counts per bucket, not cumulative, the unbounded one last.
    pub fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(|b| b.load(Relaxed)).collect()
    }

    /// Sum of all latencies in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_micros.load(Relaxed) as f64 / 1e6
    }
}

/// Everything the gate counts.
#[derive(Debug)]
pub struct Stats {
    results: [[AtomicU64; Outcome::ALL.len()]; Op::ALL.len()],
    latency: [Histogram; Op::ALL.len()],
    /// Bytes read from the backing.
    pub bytes_read: AtomicU64,
    /// Bytes written to the backing.
    pub bytes_written: AtomicU64,
    /// Calls that were run again in a later generation.
    pub retries: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            results: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            latency: std::array::from_fn(|_| Histogram::default()),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        }
    }
}

impl Stats {
    /// Counts one answered call.
    pub fn count(&self, op: Op, outcome: Outcome, took: Duration) {
        self.results[op as usize][outcome as usize].fetch_add(1, Relaxed);
        self.latency[op as usize].observe(took);
    }

    /// How many calls of `op` ended so.
    pub fn result(&self, op: Op, outcome: Outcome) -> u64 {
        self.results[op as usize][outcome as usize].load(Relaxed)
    }

    /// How many calls ended so, all operations together.
    pub fn total(&self, outcome: Outcome) -> u64 {
        Op::ALL.iter().map(|&op| self.result(op, outcome)).sum()
    }

    /// Latencies of `op`.
    pub fn latency(&self, op: Op) -> &Histogram {
        &self.latency[op as usize]
    }
}
