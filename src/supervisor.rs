//! The supervisor owns generations: it gathers evidence, reaches a verdict, repairs, and tells the gate (promise P3).
//!
//! [`machine`] decides; the runner does what it says. Everything that can block (probes, starts, retirements) runs in
//! a thread of its own that may be lost, and reports back through the inbox.

mod apart;
pub mod backoff;
mod describe;
pub mod machine;
pub mod permit;
mod repairs;
pub mod report;
mod runner;
pub mod verdict;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::backing::{Backing, Generation, Record, StatFs};
use crate::config::{PermitConfig, RepairPolicy};
use crate::gate::{Complaint, Gate};
use machine::{Action, Input, Machine, Reason};
use permit::eyes::Eyes;
use repairs::Repairs;
pub use report::{Event, Snapshot, Watch};
use runner::Runner;

/// Called with a new generation before the gate opens to it: descriptors are reopened there. An error condemns the
/// generation, as a repair that failed. It may take as long as bytes move; a generation that falls silent meanwhile is
/// aborted, and what is inside it returns.
pub type Restore = Arc<dyn Fn(&Arc<dyn Generation>) -> Result<(), String> + Send + Sync>;

enum Message {
    Input(Input),
    /// A complaint with its words.
    Complaint(u64, Reason, String),
    Up(Arc<dyn Generation>),
    TakenOver(Arc<dyn Generation>),
    NotTakenOver(u64, String),
    Probed {
        generation: u64,
        id: u64,
        result: Result<StatFs, nix::errno::Errno>,
        took: Duration,
    },
    Left(u64, Result<(), String>),
    Unreached(String),
    /// A look at a file of the permits: of those of that configuration, begun then.
    Seen {
        epoch: u64,
        began: Instant,
        look: permit::Look,
    },
    SetPermit(PermitParts),
    SetPolicy(RepairPolicy),
}

/// Where complaints go; made before the gate, which needs it.
pub struct Inbox {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
}

impl Inbox {
    /// An empty inbox.
    pub fn new() -> Inbox {
        let (sender, receiver) = channel();
        Inbox { sender, receiver }
    }

    /// What the gate is to call.
    pub fn complaints(&self) -> impl Fn(u64, Complaint) + Send + Sync + 'static {
        let sender = Mutex::new(self.sender.clone());
        move |generation, complaint| {
            let (reason, words) = match complaint {
                Complaint::Late(op) => (Reason::CallLate, format!("{} is past its deadline", op.name())),
                Complaint::Failed(op, errno) => (Reason::CallError, format!("{} failed: {}", op.name(), errno.desc())),
            };
            // After the end nobody listens, and nothing is left to complain about.
            let _ = sender.lock().send(Message::Complaint(generation, reason, words));
        }
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Inbox::new()
    }
}

/// A generation that a daemon which died has left alive.
#[derive(Debug)]
pub struct Legacy {
    /// What is known of it.
    pub record: Record,
    /// Its root, if somebody has kept that.
    pub root: Option<OwnedFd>,
}

/// What a supervisor has to know of the one before it, whose daemon died.
#[derive(Debug, Default)]
pub struct Predecessor {
    /// Number of its newest generation.
    pub newest: u64,
    /// The one that was live, or may be.
    pub live: Option<Legacy>,
    /// Since when there has been an outage, if there was one when the daemon died.
    pub outage_since: Option<Instant>,
}

impl Predecessor {
    /// The generation that is to be taken over, and that no sweep may end before. One that has a newer one has been
    /// retired: there are never two.
    pub fn spared(&self) -> Option<u64> {
        self.live.as_ref().map(|legacy| legacy.record.number).filter(|&number| number >= self.newest)
    }
}

/// What holds repairs back.
#[derive(Debug, Clone, Default)]
pub struct PermitParts {
    /// When.
    pub config: PermitConfig,
    /// The file that keeps account of repairs across daemons ([`permit::record::NAME`] in the state directory); it is read and
    /// written only if `config` needs it.
    pub record: Option<PathBuf>,
}

/// What a supervisor is made of.
pub struct Parts {
    /// Where complaints go.
    pub inbox: Inbox,
    /// Where generations come from.
    pub backing: Arc<dyn Backing>,
    /// The gate to open and close.
    pub gate: Arc<Gate>,
    /// Called before the gate opens to a generation.
    pub restore: Restore,
    /// When to do what.
    pub policy: RepairPolicy,
    /// What holds repairs back.
    pub permit: PermitParts,
    /// The age at which an outage is overdue.
    pub deadline: Duration,
    /// Where to tell of it.
    pub watch: Watch,
}

/// A running supervisor.
pub struct Supervisor {
    sender: Sender<Message>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Supervisor {
    /// Starts the first generation and looks after it and its successors until [`Supervisor::stop`]. Nothing holds repairs
    /// back.
    pub fn begin(
        inbox: Inbox,
        backing: Arc<dyn Backing>,
        gate: Arc<Gate>,
        restore: Restore,
        policy: RepairPolicy,
        deadline: Duration,
        watch: Watch,
    ) -> std::io::Result<Supervisor> {
        let permit = PermitParts::default();
        Supervisor::start(Parts { inbox, backing, gate, restore, policy, permit, deadline, watch })
    }

    /// As [`Supervisor::begin`], with all that it is made of.
    pub fn start(parts: Parts) -> std::io::Result<Supervisor> {
        let begun = Machine::begin(parts.policy, parts.deadline, Instant::now());
        Supervisor::run(parts, begun, None)
    }

    /// As [`Supervisor::begin`], in the place of one whose daemon died: its generation is taken over if it is well, or
    /// ended; in either case numbers go on. The gate opens after `restore`, as after a repair.
    pub fn resume(parts: Parts, predecessor: Predecessor) -> std::io::Result<Supervisor> {
        let spared = predecessor.spared();
        let newest = spared.unwrap_or(predecessor.newest);
        let now = Instant::now();
        let since = predecessor.outage_since.map_or(now, |since| since.min(now));
        let begun = Machine::resume(parts.policy, parts.deadline, now, since, newest, spared.is_some());
        parts.gate.close(since);
        Supervisor::run(parts, begun, predecessor.live.filter(|_| spared.is_some()))
    }

    fn run(parts: Parts, begun: (Machine, Vec<Action>), legacy: Option<Legacy>) -> std::io::Result<Supervisor> {
        let Parts { inbox, backing, gate, restore, policy, permit, watch, .. } = parts;
        let (repairs, permit, unfinished) = Repairs::load(permit, &watch);
        let begun = (begun.0.with_permit(permit, unfinished), begun.1);
        gate.writes_are_asynchronous(backing.traits().asynchronous);
        let sender = inbox.sender.clone();
        let runner = Runner {
            sender: sender.clone(),
            backing,
            gate,
            restore,
            policy,
            watch,
            present: None,
            legacy,
            repairs,
            eyes: Eyes::open(&sender, begun.0.permit().config()),
            words: String::new(),
            reason: begun.0.outage().map_or(Reason::Start, |outage| outage.reason),
        };
        let thread =
            std::thread::Builder::new().name("supervisor".into()).spawn(move || runner.run(&inbox.receiver, begun))?;
        Ok(Supervisor { sender, thread: Mutex::new(Some(thread)) })
    }

    /// Ends waiting, for a back-off or a permit: try again at once. One that is live is only probed.
    pub fn retry_now(&self) {
        let _ = self.sender.send(Message::Input(Input::RetryNow));
    }

    /// The same, and one that is live is replaced, however well it is.
    pub fn replace(&self) {
        let _ = self.sender.send(Message::Input(Input::Replace));
    }

    /// Goes by other permits from now on, also for what is held back at present.
    pub fn set_permit(&self, permit: PermitParts) {
        let _ = self.sender.send(Message::SetPermit(permit));
    }

    /// Goes by another policy from now on. A delay that has begun lasts as long as it was to.
    pub fn set_policy(&self, policy: RepairPolicy) {
        let _ = self.sender.send(Message::SetPolicy(policy));
    }

    /// Retires the generation and returns when nothing of it is left.
    pub fn stop(&self) {
        let _ = self.sender.send(Message::Input(Input::Stop));
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the supervisor panicked");
        }
    }
}

#[cfg(test)]
mod tests;
