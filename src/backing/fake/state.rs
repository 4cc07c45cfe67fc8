//! The one place that every call of every generation goes through.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::fault::{Call, Fault, FaultId, What};
use crate::backing::{ExitSink, OpResult, ProcessExit, StartError, Vitals};

/// State, and the bell that rings at each change that a waiting call may care about.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Default for Shared {
    fn default() -> Self {
        Shared { state: Mutex::new(State::default()), changed: Condvar::new() }
    }
}

/// How a generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Alive,
    /// Its "process" was killed.
    Killed,
    Aborted,
}

impl Fate {
    fn check(self) -> OpResult<()> {
        match self {
            Fate::Alive => Ok(()),
            Fate::Killed => Err(Errno::ENOTCONN),
            Fate::Aborted => Err(Errno::ECONNABORTED),
        }
    }
}

struct Life {
    number: u64,
    fate: Fate,
    frozen: bool,
    /// Calls that are at work in the real directory.
    working: usize,
    exits: ExitSink,
}

impl std::fmt::Debug for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Life({}, {:?}, frozen: {})", self.number, self.fate, self.frozen)
    }
}

/// Everything that is switched and counted.
#[derive(Debug)]
pub(super) struct State {
    lives: Vec<Life>,
    faults: Vec<(FaultId, Fault)>,
    next_fault: u64,
    dice: u64,
    pub server_frozen: bool,
    pub unreachable: bool,
    pub refusal: Option<String>,
    pub start_delay: Duration,
    pub vitals: Vitals,
    pub calls: BTreeMap<Call, u64>,
    pub inside: usize,
    pub starts: u64,
    pub started: u64,
    pub aborts: u64,
    pub retires: u64,
}

impl Default for State {
    fn default() -> Self {
        State {
            lives: Vec::new(),
            faults: Vec::new(),
            next_fault: 0,
            // Any odd number will do; a fixed one makes every run the same.
            dice: 0x9e37_79b9_7f4a_7c15,
            server_frozen: false,
            unreachable: false,
            refusal: None,
            start_delay: Duration::ZERO,
            vitals: Vitals::default(),
            calls: BTreeMap::new(),
            inside: 0,
            starts: 0,
            started: 0,
            aborts: 0,
            retires: 0,
        }
    }
}

impl State {
    pub fn reach(&self) -> Result<(), String> {
        if self.unreachable { Err("unreachable (fake)".into()) } else { Ok(()) }
    }

    pub fn inject(&mut self, fault: Fault) -> FaultId {
        let id = FaultId(self.next_fault);
        self.next_fault += 1;
        self.faults.push((id, fault));
        id
    }

    pub fn remove(&mut self, id: FaultId) {
        self.faults.retain(|(other, _)| *other != id);
    }

    pub fn clear(&mut self) {
        self.faults.clear();
    }

    /// Freezes or thaws the generations there are.
    pub fn freeze(&mut self, frozen: bool) {
        for life in &mut self.lives {
            life.frozen = frozen;
        }
    }

    /// The fault that strikes this call, if any.
    fn struck(&mut self, call: Call, path: &Path) -> Option<(FaultId, What)> {
        let State { faults, dice, .. } = self;
        faults.iter_mut().find_map(|(id, fault)| {
            (fault.matches(call, path) && fault.strikes(|| roll(dice))).then_some((*id, fault.what))
        })
    }

    fn has(&self, id: FaultId) -> bool {
        self.faults.iter().any(|(other, _)| *other == id)
    }
}

/// The next number from 0 to 1 (Marsaglia's xorshift).
fn roll(state: &mut u64) -> f64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as f64 / (1u64 << 53) as f64
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Changes something and wakes whoever waits for it.
    pub fn change<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        let done = what(&mut self.state.lock());
        self.changed.notify_all();
        done
    }

    /// The part of a start that depends on the switches.
    pub fn begin_start(&self, until: Instant) -> Result<(), StartError> {
        let began = Instant::now();
        let mut state = self.state.lock();
        state.starts += 1;
        loop {
            if let Some(words) = &state.refusal {
                return Err(StartError::Refused(words.clone()));
            }
            state.reach().map_err(StartError::Unreachable)?;
            let ready = began + state.start_delay;
            let now = Instant::now();
            if now >= until {
                return Err(StartError::Unreachable("no answer (fake)".into()));
            }
            if !state.server_frozen && now >= ready {
                return Ok(());
            }
            let wake = if state.server_frozen { until } else { until.min(ready) };
            self.changed.wait_until(&mut state, wake);
        }
    }

    pub fn add_generation(self: &Arc<Self>, number: u64, exits: ExitSink) -> Slot {
        let mut state = self.state.lock();
        state.started += 1;
        state.lives.push(Life { number, fate: Fate::Alive, frozen: false, working: 0, exits });
        Slot { shared: Arc::clone(self), index: state.lives.len() - 1 }
    }

    /// Kills the newest generation if it is alive.
    pub fn kill(&self) {
        let told = self.change(|state| {
            let life = state.lives.last_mut().filter(|life| life.fate == Fate::Alive)?;
            life.fate = Fate::Killed;
            Some((Arc::clone(&life.exits), life.number))
        });
        // Outside the lock: the sink may look at the counters.
        if let Some((exits, generation)) = told {
            exits(ProcessExit { generation, what: "fake process killed by signal 9".into() });
        }
    }
}

/// The place of one generation in the state.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    shared: Arc<Shared>,
    index: usize,
}

impl Slot {
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
