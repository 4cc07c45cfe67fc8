//! Closing descriptors of the backing where it may take for ever.
//!
//! close(2) of a file on a frozen sshfs blocks until that sshfs is aborted. A descriptor may be let go of anywhere: with a
//! call that was answered by its deadline, under the gate's lock, in a thread that reads requests. None of these may
//! wait, so a dropped descriptor is closed by a thread kept for that.

use std::collections::VecDeque;
use std::ops::Deref;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::backing::File;

/// Most threads that close; more descriptors than that wait until the generation that holds them is aborted.
const MAX_THREADS: usize = 16;
/// A thread that had nothing to close for that long ends.
const IDLE: Duration = Duration::from_secs(5);
/// Stack of such a thread in bytes; it only makes one system call.
const STACK: usize = 128 << 10;

/// An open file of the backing. Dropping it never blocks.
pub struct Descriptor(Option<Box<dyn File>>);

impl Descriptor {
    /// Takes a file in.
    pub fn new(file: Box<dyn File>) -> Descriptor {
        Descriptor(Some(file))
    }

    /// Closes it in this thread, which may be lost.
    pub fn close_here(mut self) {
        drop(self.0.take());
    }
}

impl Deref for Descriptor {
    type Target = dyn File;

    fn deref(&self) -> &Self::Target {
        // Only `close_here` and `drop` take the file out, and both are the last to have it.
        match &self.0 {
            Some(file) => &**file,
            None => unreachable!("a descriptor that was closed is used"),
        }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Some(file) = self.0.take() {
            CLOSER.take(file);
        }
    }
}

static CLOSER: Closer = Closer { state: Mutex::new(State::new()), arrived: Condvar::new() };

struct State {
    queue: VecDeque<Box<dyn File>>,
    threads: usize,
    idle: usize,
}

impl State {
    const fn new() -> State {
        State { queue: VecDeque::new(), threads: 0, idle: 0 }
    }
}

struct Closer {
    state: Mutex<State>,
    arrived: Condvar,
}

impl Closer {
    fn take(&'static self, file: Box<dyn File>) {
        let mut state = self.state.lock();
        state.queue.push_back(file);
        if state.idle >= state.queue.len() {
            self.arrived.notify_one();
        } else if state.threads < MAX_THREADS {
            let thread = std::thread::Builder::new().name("close".into()).stack_size(STACK);
            match thread.spawn(|| self.work()) {
                Ok(_) => state.threads += 1,
                Err(error) => tracing::warn!(%error, "no thread to close a descriptor; it stays open for now"),
            }
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(file) = state.queue.pop_front() {
                drop(state);
                drop(file);
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let idle_for_long = self.arrived.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if idle_for_long && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use super::*;
    use crate::backing::Backing;
    use crate::backing::fake::{Call, FakeBacking, Fault, What};

    #[test]
    fn dropping_a_descriptor_whose_close_hangs_does_not_wait() {
        let backing = FakeBacking::new().expect("a directory");
        std::fs::write(backing.path().join("f"), "x").expect("written");
        let generation = backing.start(1, Duration::from_secs(5), std::sync::Arc::new(|_| {})).expect("started");
        backing.control().inject(Fault::new(What::Hang).on(&[Call::Close]));
        let started = Instant::now();
        for _ in 0..3 * MAX_THREADS {
            drop(Descriptor::new(generation.tree().open(Path::new("f"), libc::O_RDONLY).expect("opened")));
        }
        assert!(started.elapsed() < Duration::from_secs(2));
        assert!(backing.control().wait_inside(MAX_THREADS, Duration::from_secs(5)), "each thread hangs in one");
        generation.abort();
        let end = Instant::now() + Duration::from_secs(5);
        while backing.control().calls(Call::Close) < 3 * MAX_THREADS as u64 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(backing.control().wait_inside(0, Duration::from_secs(5)), "the abort frees them all");
        assert_eq!(backing.control().calls(Call::Close), 3 * MAX_THREADS as u64);
    }
}
