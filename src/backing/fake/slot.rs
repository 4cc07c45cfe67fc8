//! The one way that every call of a generation takes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::disk::Disk;
use super::fault::{Call, What};
use super::state::{Fate, Shared, State};
use crate::backing::{OpResult, Vitals};

/// The place of one generation in the state.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    shared: Arc<Shared>,
    index: usize,
}

impl Slot {
    pub fn new(shared: Arc<Shared>, index: usize) -> Self {
        Slot { shared, index }
    }

    /// Runs a call, or what a fault makes of it.
    pub fn call<T>(&self, call: Call, path: &Path, work: impl FnOnce() -> OpResult<T>) -> OpResult<T> {
        self.call_short(call, path, |_| work())
    }

    /// As [`Slot::call`], for work that can be told to move only so many bytes.
    pub fn call_short<T>(
        &self,
        call: Call,
        path: &Path,
        work: impl FnOnce(Option<usize>) -> OpResult<T>,
    ) -> OpResult<T> {
        let struck = {
            let mut state = self.shared.state();
            *state.calls.entry(call).or_default() += 1;
            state.inside += 1;
            state.lives[self.index].fate.check().map(|()| state.struck(call, path))
        };
        let _inside = Inside(&self.shared);
        let struck = struck?;
        self.thawed()?;
        match struck {
            None => self.finish(self.work(|| work(None))),
            Some((_, What::Errno(errno))) => Err(errno),
            Some((id, What::Hang)) => {
                self.wait(None, |state| !state.has(id))?;
                self.finish(self.work(|| work(None)))
            }
            Some((id, What::HangAfter)) => {
                let done = self.work(|| work(None));
                self.wait(None, |state| !state.has(id))?;
                self.finish(done)
            }
            Some((_, What::Late(delay))) => {
                self.wait(Some(Instant::now() + delay), |_| false)?;
                self.finish(self.work(|| work(None)))
            }
            Some((_, What::LostReply)) => {
                // Its error is lost as well.
                let _ = self.work(|| work(None));
                Err(Errno::ENOTCONN)
            }
            Some((_, What::Die)) => {
                self.shared.kill();
                Err(Errno::ENOTCONN)
            }
            Some((_, What::DieAfter)) => {
                let _ = self.work(|| work(None));
                self.shared.kill();
                Err(Errno::ENOTCONN)
            }
            Some((_, What::Short(most))) => self.finish(self.work(|| work(Some(most)))),
        }
    }

    /// Does the real thing, if the generation is alive at this very moment.
    fn work<T>(&self, work: impl FnOnce() -> OpResult<T>) -> OpResult<T> {
        {
            let mut state = self.shared.state();
            let life = &mut state.lives[self.index];
            life.fate.check()?;
            life.working += 1;
        }
        let _working = Working(self);
        work()
    }

    /// A call that was inside when it froze does not get out either.
    fn finish<T>(&self, done: OpResult<T>) -> OpResult<T> {
        self.thawed()?;
        done
    }

    fn thawed(&self) -> OpResult<()> {
        self.wait(None, |state| !state.server_frozen && !state.lives[self.index].frozen)
    }

    /// Waits until `over` or the time, or until the generation is dead, which is the error.
    fn wait(&self, until: Option<Instant>, over: impl Fn(&State) -> bool) -> OpResult<()> {
        let mut state = self.shared.state();
        loop {
            state.lives[self.index].fate.check()?;
            if over(&state) {
                return Ok(());
            }
            match until {
                Some(until) if Instant::now() >= until => return Ok(()),
                Some(until) => drop(self.shared.changed.wait_until(&mut state, until)),
                None => self.shared.changed.wait(&mut state),
            }
        }
    }

    pub fn disk(&self) -> &Disk {
        &self.shared.disk
    }

    pub fn vitals(&self) -> Vitals {
        self.shared.state().vitals
    }

    pub fn abort(&self) {
        self.shared.change(|state| {
            state.aborts += 1;
            state.lives[self.index].fate = Fate::Aborted;
        });
    }

    /// Afterwards nothing of this generation changes the directory any more; false if something is still at it.
    pub fn retire(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.shared.state();
        state.retires += 1;
        state.lives[self.index].fate = Fate::Aborted;
        self.shared.changed.notify_all();
        while state.lives[self.index].working > 0 {
            if self.shared.changed.wait_until(&mut state, until).timed_out() {
                return false;
            }
        }
        true
    }
}

/// Counts a call out, however it ends.
struct Inside<'a>(&'a Shared);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.inside -= 1);
    }
}

/// Counts a call out of the real directory.
struct Working<'a>(&'a Slot);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.shared.change(|state| state.lives[self.0.index].working -= 1);
    }
}
