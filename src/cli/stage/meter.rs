//! What the demo's programs lived through: calls, errors, commits and the gaps between commits.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A program of the demo. Its index in the meter.
pub type Actor = usize;

/// What happened from one moment to the next, usually from one fault to the next.
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// Longest single call and what it was.
    pub longest_call: (Duration, &'static str),
    /// Errors that calls returned, by name.
    pub errors: BTreeMap<String, u64>,
    /// Longest time without a commit, by actor: length and end since the run began.
    pub gaps: Vec<(Duration, Duration)>,
}

#[derive(Debug)]
struct Inner {
    window: Window,
    last_commit: Vec<Instant>,
    in_call: Vec<Option<(Instant, &'static str)>>,
    bytes: u64,
    records: u64,
    errors: u64,
}

/// Shared by all programs of the demo.
#[derive(Debug)]
pub struct Meter {
    start: Instant,
    inner: Mutex<Inner>,
}

/// Totals at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Bytes that a successful fsync has committed.
    pub bytes: u64,
    /// Records that a successful fsync has committed.
    pub records: u64,
    /// Calls that failed.
    pub errors: u64,
}

impl Meter {
    /// A meter for that many actors; time runs from here.
    pub fn new(actors: usize) -> Meter {
        let start = Instant::now();
        let inner = Inner {
            window: Window { gaps: vec![Default::default(); actors], ..Default::default() },
            last_commit: vec![start; actors],
            in_call: vec![None; actors],
            bytes: 0,
            records: 0,
            errors: 0,
        };
        Meter { start, inner: Mutex::new(inner) }
    }

    /// Time since the run began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Runs one call and takes its time; an error is counted and handed on.
    pub fn call<T>(&self, actor: Actor, name: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let begun = Instant::now();
        self.inner.lock().in_call[actor] = Some((begun, name));
        let result = call();
        let took = begun.elapsed();
        let mut inner = self.inner.lock();
        inner.in_call[actor] = None;
        if took > inner.window.longest_call.0 {
            inner.window.longest_call = (took, name);
        }
        if let Err(error) = &result {
            inner.errors += 1;
            *inner.window.errors.entry(error_name(error)).or_default() += 1;
        }
        result
    }

    /// An fsync came back with success and made that much durable.
    pub fn committed(&self, actor: Actor, bytes: u64, records: u64) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let gap = now - inner.last_commit[actor];
        inner.last_commit[actor] = now;
        inner.bytes += bytes;
        inner.records += records;
        if gap > inner.window.gaps[actor].0 {
            inner.window.gaps[actor] = (gap, now - self.start);
        }
    }

    /// Closes the window and opens the next one.
    pub fn next_window(&self) -> Window {
        let mut inner = self.inner.lock();
        let actors = inner.last_commit.len();
        let fresh = Window { gaps: vec![Default::default(); actors], ..Default::default() };
        std::mem::replace(&mut inner.window, fresh)
    }

    /// True when each of `actors` has committed after `moment`.
    pub fn all_committed_since(&self, actors: impl IntoIterator<Item = Actor>, moment: Instant) -> bool {
        let inner = self.inner.lock();
        actors.into_iter().all(|actor| inner.last_commit[actor] > moment)
    }

    /// Totals so far.
    pub fn totals(&self) -> Totals {
        let inner = self.inner.lock();
        Totals { bytes: inner.bytes, records: inner.records, errors: inner.errors }
    }

    /// Longest call of the window so far, including those that have not come back.
    pub fn longest_call(&self) -> (Duration, &'static str) {
        let inner = self.inner.lock();
        let waiting = inner.in_call.iter().flatten().map(|(begun, name)| (begun.elapsed(), *name));
        waiting.chain([inner.window.longest_call]).max_by_key(|(took, _)| *took).unwrap_or_default()
    }

    /// Longest time that one of `actors` has been without a commit in this window, including now.
    pub fn longest_stall(&self, actors: impl IntoIterator<Item = Actor>) -> Duration {
        let inner = self.inner.lock();
        let of = |actor: Actor| inner.window.gaps[actor].0.max(inner.last_commit[actor].elapsed());
        actors.into_iter().map(of).max().unwrap_or_default()
    }

    /// Errors of the window so far.
    pub fn window_errors(&self) -> BTreeMap<String, u64> {
        self.inner.lock().window.errors.clone()
    }
}

/// `ENOTCONN` and its like where the error has a number.
pub fn error_name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{:?}", nix::errno::Errno::from_raw(number)),
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_errors_go_to_the_window_in_which_they_end() {
        let meter = Meter::new(1);
        let refused = meter.call(0, "pwrite", || {
            std::thread::sleep(Duration::from_millis(20));
            Err::<(), _>(io::Error::from_raw_os_error(libc::ENOTCONN))
        });
        assert!(refused.is_err());
        let window = meter.next_window();
        assert!(window.longest_call.0 >= Duration::from_millis(20));
        assert_eq!(window.longest_call.1, "pwrite");
        assert_eq!(window.errors, BTreeMap::from([("ENOTCONN".to_string(), 1)]));
        assert!(meter.next_window().errors.is_empty());
        assert_eq!(meter.totals().errors, 1);
    }

    #[test]
    fn a_gap_that_began_before_the_window_counts_whole() {
        let meter = Meter::new(2);
        std::thread::sleep(Duration::from_millis(15));
        meter.next_window();
        std::thread::sleep(Duration::from_millis(15));
        let before = Instant::now();
        meter.committed(1, 10, 2);
        let window = meter.next_window();
        assert!(window.gaps[1].0 >= Duration::from_millis(30));
        assert_eq!(window.gaps[0].0, Duration::ZERO);
        assert!(meter.all_committed_since([1], before) && !meter.all_committed_since([0, 1], before));
        assert_eq!((meter.totals().bytes, meter.totals().records), (10, 2));
    }
}
