//! The supervisor owns generations: it gathers evidence, reaches a verdict, repairs, and tells the gate (promise P3).
//!
//! [`machine`] decides; this file does what it says. Everything that can block (probes, starts, retirements) runs in
//! a thread of its own that may be lost, and reports back through the inbox.

pub mod backoff;
pub mod machine;
pub mod report;
pub mod verdict;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::backing::{Backing, ExitSink, Generation, StatFs, Vitals};
use crate::config::RepairPolicy;
use crate::gate::policy::raises_doubt;
use crate::gate::{Complaint, Gate};
use machine::{Action, Input, Machine, News, Reason, Sight};
pub use report::{Event, Snapshot, Watch};

/// Longest time one look at the server may take.
const REACH_LIMIT: Duration = Duration::from_secs(1);

/// Called with a new generation before the gate opens to it: descriptors are reopened there.
pub type Restore = Arc<dyn Fn(&Arc<dyn Generation>) + Send + Sync>;

enum Message {
    Input(Input),
    /// A complaint with its words.
    Complaint(u64, Reason, String),
    Up(Arc<dyn Generation>),
    Probed {
        generation: u64,
        id: u64,
        result: Result<StatFs, nix::errno::Errno>,
        took: Duration,
    },
    Left(u64, Result<(), String>),
    Unreached(String),
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

/// A running supervisor.
pub struct Supervisor {
    sender: Sender<Message>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Supervisor {
    /// Starts the first generation and looks after it and its successors until [`Supervisor::stop`].
    pub fn begin(
        inbox: Inbox,
        backing: Arc<dyn Backing>,
        gate: Arc<Gate>,
        restore: Restore,
        policy: RepairPolicy,
        deadline: Duration,
        watch: Watch,
    ) -> std::io::Result<Supervisor> {
        let sender = inbox.sender.clone();
        let runner = Runner {
            sender: sender.clone(),
            backing,
            gate,
            restore,
            policy,
            watch,
            present: None,
            words: String::new(),
            reason: Reason::Start,
        };
        let thread = std::thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || runner.run(&inbox.receiver, Machine::begin(policy, deadline, Instant::now())))?;
        Ok(Supervisor { sender, thread: Mutex::new(Some(thread)) })
    }

    /// Ends waiting: try again at once.
    pub fn retry_now(&self) {
        let _ = self.sender.send(Message::Input(Input::RetryNow));
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

struct Runner {
    sender: Sender<Message>,
    backing: Arc<dyn Backing>,
    gate: Arc<Gate>,
    restore: Restore,
    policy: RepairPolicy,
    watch: Watch,
    present: Option<Arc<dyn Generation>>,
    /// Words for the next piece of news, from whoever brought the input.
    words: String,
    /// What the present outage began with.
    reason: Reason,
}

impl Runner {
    fn run(mut self, inbox: &Receiver<Message>, (mut machine, todo): (Machine, Vec<Action>)) {
        self.publish(&machine);
        let mut done = self.carry_out(todo, &machine);
        while !done {
            let wait = machine.wakes_at(Instant::now()).saturating_duration_since(Instant::now());
            let message = match inbox.recv_timeout(wait) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => Message::Input(Input::Tick),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let input = self.understand(message);
            let sight = self.look();
            let before = machine.state().name();
            let todo = machine.handle(input, &sight);
            let quiet = todo.is_empty() && before == machine.state().name();
            done = self.carry_out(todo, &machine);
            if !quiet {
                self.publish(&machine);
            }
        }
        self.watch.update(|snapshot| snapshot.state = "stopping");
        self.watch.publish(Event::Stopping);
    }

    fn look(&self) -> Sight {
        Sight {
            now: Instant::now(),
            vitals: self.present.as_ref().map_or_else(Vitals::default, |generation| generation.vitals()),
            inside: self.gate.inside(),
            dice: dice(),
        }
    }

    /// Keeps what the machine need not know and returns what it must.
    fn understand(&mut self, message: Message) -> Input {
        match message {
            Message::Input(input) => {
                if let Input::StartFailed(_, error) = &input {
                    self.words = error.to_string();
                }
                input
            }
            Message::Complaint(generation, reason, words) => {
                self.words = words;
                Input::Evidence(generation, reason)
            }
            Message::Up(generation) => {
                let number = generation.number();
                self.present = Some(generation);
                Input::Started(number)
            }
            Message::Unreached(words) => {
                self.words = words;
                Input::Unreached
            }
            Message::Left(generation, result) => {
                if let Err(detail) = result {
                    self.watch.publish(Event::Notice { detail });
                }
                self.present = None;
                Input::Retired(generation)
            }
            Message::Probed { generation, id, result, took } => match result {
                Err(errno) if raises_doubt(errno) => {
                    self.words = format!("the probe failed: {}", errno.desc());
                    self.watch.update(|snapshot| snapshot.probes_failed += 1);
                    Input::ProbeFailed(generation, id, errno)
                }
                _ => {
                    self.watch.update(|snapshot| {
                        snapshot.probe_ok_at = Some(SystemTime::now());
                        snapshot.probe_took = Some(took);
                    });
                    Input::ProbeAnswered(generation, id)
                }
            },
        }
    }

    /// Does what the machine says; true at the end.
    fn carry_out(&mut self, todo: Vec<Action>, machine: &Machine) -> bool {
        for action in todo {
            match action {
                Action::Finish => return true,
                Action::Tell(news) => self.tell(news, machine),
                Action::Doubt(since) => self.gate.suspect(since),
                Action::Settle(generation, asked_at) => self.gate.settle(generation, asked_at),
                Action::Close(since) => self.gate.close(since),
                Action::CancelStart => self.backing.cancel_start(),
                Action::Open(_) => {
                    if let Some(generation) = &self.present {
                        self.gate.open(Arc::clone(generation));
                    }
                }
                Action::Probe(number, id) => self.probe(number, id),
                Action::Reach => {
                    let backing = Arc::clone(&self.backing);
                    self.apart("reach", move || match backing.reach(REACH_LIMIT) {
                        Ok(()) => Message::Input(Input::Reached),
                        Err(words) => Message::Unreached(words),
                    });
                }
                Action::Start(number) => self.start(number),
                Action::Restore(number) => {
                    let (restore, present) = (Arc::clone(&self.restore), self.present.clone());
                    self.apart("restore", move || {
                        if let Some(generation) = present {
                            restore(&generation);
                        }
                        Message::Input(Input::Restored(number))
                    });
                }
                Action::Retire(number) => {
                    let present = self.present.clone();
                    self.apart("retire", move || {
                        let result = present.map_or(Ok(()), |generation| {
                            generation.abort();
                            generation.retire()
                        });
                        Message::Left(number, result)
                    });
                }
            }
        }
        false
    }

    fn probe(&mut self, number: u64, id: u64) {
        let Some(generation) = self.present.clone() else { return };
        self.watch.update(|snapshot| snapshot.probes += 1);
        self.apart("probe", move || {
            let asked = Instant::now();
            let result = generation.probe();
            Message::Probed { generation: number, id, result, took: asked.elapsed() }
        });
    }

    fn start(&mut self, number: u64) {
        let (backing, limit) = (Arc::clone(&self.backing), self.policy.start_deadline);
        let sender = Mutex::new(self.sender.clone());
        let exits: ExitSink = Arc::new(move |exit| {
            let _ = sender.lock().send(Message::Complaint(exit.generation, Reason::ProcessExit, exit.what));
        });
        self.apart("start", move || match backing.start(number, limit, exits) {
            Ok(generation) => Message::Up(generation),
            Err(error) => Message::Input(Input::StartFailed(number, error)),
        });
    }

    /// Runs something that may block in a thread that may be lost.
    fn apart(&mut self, name: &str, job: impl FnOnce() -> Message + Send + 'static) {
        let sender = self.sender.clone();
        let spawned = std::thread::Builder::new().name(name.into()).stack_size(1 << 20).spawn(move || {
            let _ = sender.send(job());
        });
        if let Err(error) = spawned {
            tracing::error!(%error, name, "cannot start a thread of the supervisor");
        }
    }

    fn tell(&mut self, news: News, machine: &Machine) {
        let words = self.words.clone();
        let event = match news {
            News::Evidence { generation, reason } => {
                if matches!(reason, Reason::ProbeLate) {
                    self.watch.update(|snapshot| snapshot.probes_failed += 1);
                    self.words =
                        format!("no answer to a probe for {:?}, and no byte moved", self.policy.probe_deadline);
                } else if matches!(reason, Reason::Stopped) {
                    self.words = "a process of the sshfs is stopped".into();
                }
                Event::Evidence { generation, kind: reason.name().into(), detail: self.words.clone() }
            }
            News::Cleared { generation } => Event::Cleared { generation },
            News::OutageBegan { since, reason } => {
                self.reason = reason;
                self.watch.update(|snapshot| snapshot.begin_outage(wall(since), since));
                Event::OutageBegan { since: wall(since), reason: reason.name().into(), detail: words }
            }
            News::OutageOverdue { since, reason } => {
                Event::OutageOverdue { since: wall(since), reason: reason.name().into() }
            }
            News::StartFailed { generation, error, retry_in } => {
                self.count_repair(self.reason.name(), "failed");
                let halted = retry_in.is_none();
                let detail = error.to_string();
                Event::StartFailed {
                    generation,
                    detail,
                    halted,
                    retry_in_secs: retry_in.map(|delay| delay.as_secs_f64()),
                }
            }
            News::Recovered { generation, outage, reason } => {
                self.count_repair(reason.name(), "ok");
                self.watch.update(Snapshot::end_outage);
                self.words.clear();
                Event::Recovered { generation, outage_secs: outage.as_secs_f64() }
            }
            News::Steady { generation } => Event::Steady { generation },
        };
        // Who hears of it and looks finds it so.
        self.publish(machine);
        self.watch.publish(event);
    }

    fn count_repair(&self, reason: &str, result: &str) {
        self.watch.update(|snapshot| *snapshot.repairs.entry((reason.into(), result.into())).or_default() += 1);
    }

    fn publish(&self, machine: &Machine) {
        let state = machine.state();
        let (next, next_at) = describe_next(machine);
        let live = matches!(state, machine::State::Live(_));
        let why = (!live && !self.words.is_empty()).then(|| self.words.clone());
        self.watch.update(|snapshot| {
            snapshot.state = state.name();
            snapshot.since = wall(machine.entered());
            snapshot.why = why;
            snapshot.next = next;
            snapshot.next_at = next_at.map(wall);
            snapshot.generation = machine.newest();
        });
    }
}

fn describe_next(machine: &Machine) -> (String, Option<Instant>) {
    let next = machine.newest() + 1;
    match machine.state() {
        machine::State::Reaching { .. } => {
            (format!("start generation {next} as soon as the server can be reached"), None)
        }
        machine::State::Starting { generation } => (format!("wait for generation {generation} to answer"), None),
        machine::State::Restoring { generation } => {
            (format!("reopen descriptors in generation {generation}, then let calls in"), None)
        }
        machine::State::Live(_) => ("probe".into(), None),
        machine::State::Suspect(..) => ("wait for an answer or a verdict".into(), None),
        machine::State::Retiring { generation } => {
            (format!("remove generation {generation}, then start the next"), None)
        }
        machine::State::Waiting { until, .. } => {
            (format!("start generation {next} when the back-off is over or the server comes back"), Some(*until))
        }
        machine::State::Halted => ("nothing: mend the cause, then run `steadfs recover`".into(), None),
        machine::State::Stopping { .. } | machine::State::Stopped => ("end".into(), None),
    }
}

/// The wall-clock time of a monotonic one.
fn wall(at: Instant) -> SystemTime {
    let now = Instant::now();
    SystemTime::now() - now.saturating_duration_since(at) + at.saturating_duration_since(now)
}

/// A number in 0..1 that differs between processes and calls; good enough to spread retries.
fn dice() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
