//! Everything that is switched and counted, behind one lock.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::disk::Disk;
use super::fault::{Call, Fault, FaultId, What};
use super::slot::Slot;
use crate::backing::{AdoptError, ExitSink, OpResult, ProcessExit, StartError, Vitals};

/// State, and the bell that rings at each change that a waiting call may care about.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    pub disk: Disk,
    pub changed: Condvar,
}

impl Default for Shared {
    fn default() -> Self {
        Shared { state: Mutex::new(State::default()), disk: Disk::default(), changed: Condvar::new() }
    }
}

/// How a generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Alive,
    /// Its "process" was killed.
    Killed,
    Aborted,
}

impl Fate {
    pub fn check(self) -> OpResult<()> {
        match self {
            Fate::Alive => Ok(()),
            Fate::Killed => Err(Errno::ENOTCONN),
            Fate::Aborted => Err(Errno::ECONNABORTED),
        }
    }
}

pub(super) struct Life {
    number: u64,
    pub fate: Fate,
    pub frozen: bool,
    /// Calls that are at work in the real directory.
    pub working: usize,
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
    pub lives: Vec<Life>,
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
    pub fn struck(&mut self, call: Call, path: &Path) -> Option<(FaultId, What)> {
        let State { faults, dice, .. } = self;
        faults.iter_mut().find_map(|(id, fault)| {
            (fault.matches(call, path) && fault.strikes(|| roll(dice))).then_some((*id, fault.what))
        })
    }

    pub fn has(&self, id: FaultId) -> bool {
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
        Slot::new(Arc::clone(self), state.lives.len() - 1)
    }

    /// The generation with that number, for another user, when nothing of the one before is at work in it any more.
    pub fn take_over(self: &Arc<Self>, number: u64, until: Instant, exits: ExitSink) -> Result<Slot, AdoptError> {
        let mut state = self.state.lock();
        let found = state.lives.iter().rposition(|life| life.number == number && life.fate == Fate::Alive);
        let index = found.ok_or_else(|| AdoptError::Dead("it has ended (fake)".into()))?;
        while state.server_frozen || state.lives[index].frozen || state.lives[index].working > 0 {
            if self.changed.wait_until(&mut state, until).timed_out() {
                state.lives[index].fate = Fate::Aborted;
                self.changed.notify_all();
                return Err(AdoptError::Silent("no answer (fake)".into()));
            }
        }
        state.lives[index].exits = exits;
        Ok(Slot::new(Arc::clone(self), index))
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
