//! Does what the machine says, and tells it what came of it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::describe::{self, wall};
use super::machine::{Action, Input, Machine, News, Reason, Sight};
use super::permit::eyes::Eyes;
use super::repairs::Repairs;
use super::{Event, Legacy, Message, Restore, Snapshot, Watch, apart, machine};
use crate::backing::{Backing, ExitSink, Generation, StartError, Vitals};
use crate::config::RepairPolicy;
use crate::gate::Gate;
use crate::gate::policy::raises_doubt;

/// Longest time one look at the server may take.
const REACH_LIMIT: Duration = Duration::from_secs(1);

pub(super) struct Runner {
    pub sender: Sender<Message>,
    pub backing: Arc<dyn Backing>,
    pub gate: Arc<Gate>,
    pub restore: Restore,
    pub policy: RepairPolicy,
    pub watch: Watch,
    pub present: Option<Arc<dyn Generation>>,
    /// What a predecessor has left, until it is taken over.
    pub legacy: Option<Legacy>,
    /// Account of repairs.
    pub repairs: Repairs,
    /// Looks at what holds them back.
    pub eyes: Eyes,
    /// Words for the next piece of news, from whoever brought the input.
    pub words: String,
    /// What the present outage began with.
    pub reason: Reason,
}

impl Runner {
    pub fn run(mut self, inbox: &Receiver<Message>, (mut machine, todo): (Machine, Vec<Action>)) {
        self.publish(&machine);
        let mut done = self.carry_out(todo, &machine);
        while !done {
            let wait = machine.wakes_at(Instant::now()).saturating_duration_since(Instant::now());
            let message = match inbox.recv_timeout(wait) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => Message::Input(Input::Tick),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let input = self.understand(message, &mut machine);
            done = self.advance(input, &mut machine);
            for look in self.eyes.overdue(Instant::now()) {
                done = done || self.advance(Input::Seen(look), &mut machine);
            }
            self.eyes.hurry(machine.outage().is_some());
        }
        self.watch.update(|snapshot| snapshot.state = "stopping");
        self.watch.publish(Event::Stopping);
    }

    /// One step; true at the end.
    fn advance(&mut self, input: Input, machine: &mut Machine) -> bool {
        let seen = matches!(input, Input::Seen(_));
        let sight = self.look();
        let before = machine.state().name();
        let todo = machine.handle(input, &sight);
        let quiet = todo.is_empty() && before == machine.state().name() && !seen;
        let done = self.carry_out(todo, machine);
        // What is held back has ages in its words.
        if !quiet || matches!(machine.state(), machine::State::Held { .. }) {
            self.publish(machine);
        }
        done
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
    fn understand(&mut self, message: Message, machine: &mut Machine) -> Input {
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
            Message::TakenOver(generation) => {
                let number = generation.number();
                self.present = Some(generation);
                Input::Adopted(number)
            }
            Message::NotTakenOver(number, words) => {
                self.words = words;
                Input::NotAdopted(number)
            }
            Message::Seen { epoch, began, look } => self.eyes.seen(epoch, began, look).map_or(Input::Tick, Input::Seen),
            Message::SetPermit(permit) => {
                self.eyes.turn_to(&permit.config);
                self.repairs.keep_at(permit.record.filter(|_| permit.config.counts_repairs()));
                machine.set_permit(permit.config);
                self.publish(machine);
                Input::Tick
            }
            Message::SetPolicy(policy) => {
                self.policy = policy;
                machine.set_policy(policy);
                Input::Tick
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
                    let lost = Message::Unreached("the look at the server was lost".into());
                    self.apart("reach", lost, move || match backing.reach(REACH_LIMIT) {
                        Ok(()) => Message::Input(Input::Reached),
                        Err(words) => Message::Unreached(words),
                    });
                }
                Action::Adopt(number) => self.adopt(number),
                Action::Start(number) => self.start(number),
                Action::Restore(number) => self.restore(number),
                Action::Retire(number) => self.retire(number),
            }
        }
        false
    }

    fn probe(&mut self, number: u64, id: u64) {
        let unsent = Message::Input(Input::ProbeUnsent(number, id));
        let Some(generation) = self.present.clone() else { return self.send(unsent) };
        self.watch.update(|snapshot| snapshot.probes += 1);
        self.apart("probe", unsent, move || {
            let asked = Instant::now();
            let result = generation.probe();
            Message::Probed { generation: number, id, result, took: asked.elapsed() }
        });
    }

    fn adopt(&mut self, number: u64) {
        let lost = |words: &str| Message::NotTakenOver(number, words.into());
        let Some(Legacy { record, root }) = self.legacy.take() else { return self.send(lost("it is not known")) };
        let (backing, limit, exits) = (Arc::clone(&self.backing), self.policy.probe_deadline, self.exits());
        let adopt = move || match backing.adopt(&record, root, limit, exits) {
            Ok(generation) => Message::TakenOver(generation),
            Err(error) => Message::NotTakenOver(number, error.to_string()),
        };
        self.apart("adopt", lost("the attempt was lost"), adopt);
    }

    /// Where a generation reports the ends of its processes.
    fn exits(&self) -> ExitSink {
        let sender = Mutex::new(self.sender.clone());
        Arc::new(move |exit| {
            let _ = sender.lock().send(Message::Complaint(exit.generation, Reason::ProcessExit, exit.what));
        })
    }

    fn start(&mut self, number: u64) {
        let (backing, limit, exits) = (Arc::clone(&self.backing), self.policy.start_deadline, self.exits());
        let lost = StartError::Unreachable("the start was lost".into());
        let lost = Message::Input(Input::StartFailed(number, lost));
        self.apart("start", lost, move || match backing.start(number, limit, exits) {
            Ok(generation) => Message::Up(generation),
            Err(error) => Message::Input(Input::StartFailed(number, error)),
        });
    }

    fn restore(&mut self, number: u64) {
        let failed = move |words: String| Message::Input(Input::RestoreFailed(number, words));
        let Some(generation) = self.present.clone() else { return self.send(failed("it has gone".into())) };
        let restore = Arc::clone(&self.restore);
        self.apart("restore", failed("the restoration was lost".into()), move || match restore(&generation) {
            Ok(()) => Message::Input(Input::Restored(number)),
            Err(words) => failed(words),
        });
    }

    fn retire(&mut self, number: u64) {
        let Some(generation) = self.present.clone() else { return self.send(Message::Left(number, Ok(()))) };
        let lost = Message::Left(number, Err(format!("generation {number}: its removal was lost")));
        let spare = Arc::clone(&generation);
        if apart::run("retire", &self.sender, lost, move || Message::Left(number, remove(&*generation))).is_err() {
            // A generation must not outlive the start of the next; better that this thread waits a few seconds.
            self.send(Message::Left(number, remove(&*spare)));
        }
    }

    /// Runs something that may block in a thread that may be lost; `failure` is what is told if it cannot be run.
    fn apart(&self, name: &str, failure: Message, job: impl FnOnce() -> Message + Send + 'static) {
        if let Err(failure) = apart::run(name, &self.sender, failure, job) {
            self.send(failure);
        }
    }

    fn send(&self, message: Message) {
        // The receiver is this very thread's.
        let _ = self.sender.send(message);
    }

    fn tell(&mut self, news: News, machine: &Machine) {
        let words_of_evidence = self.words.clone();
        let event = match news {
            News::Evidence { generation, reason } => {
                if matches!(reason, Reason::ProbeLate) {
                    self.watch.update(|snapshot| snapshot.probes_failed += 1);
                    self.words =
                        format!("no answer to a probe for {:?}, and no byte moved", self.policy.probe_deadline);
                } else if matches!(reason, Reason::Stopped) {
                    self.words = "a process of the sshfs is stopped".into();
                } else if matches!(reason, Reason::Asked) {
                    self.words = "somebody asked for another generation".into();
                }
                Event::Evidence { generation, kind: reason.name().into(), detail: self.words.clone() }
            }
            News::Cleared { generation } => Event::Cleared { generation },
            News::OutageBegan { since, reason } => {
                self.reason = reason;
                self.watch.update(|snapshot| snapshot.begin_outage(wall(since), since));
                Event::OutageBegan { since: wall(since), reason: reason.name().into(), detail: words_of_evidence }
            }
            News::OutageOverdue { since, reason } => {
                Event::OutageOverdue { since: wall(since), reason: reason.name().into() }
            }
            News::NotAdopted { generation } => {
                let detail =
                    format!("generation {generation} of the daemon that died is not taken over: {words_of_evidence}");
                Event::Notice { detail }
            }
            News::StartFailed { generation, error, retry_in } => {
                self.count_repair(self.reason.name(), "failed");
                let halted = retry_in.is_none();
                let detail = error.to_string();
                self.repairs.failed(&detail, machine.permit());
                Event::StartFailed {
                    generation,
                    detail,
                    halted,
                    retry_in_secs: retry_in.map(|delay| delay.as_secs_f64()),
                }
            }
            News::RestoreFailed { generation, words, retry_in } => {
                self.count_repair(self.reason.name(), "failed");
                self.words = words.unwrap_or(words_of_evidence);
                let detail = self.words.clone();
                self.repairs.failed(&detail, machine.permit());
                Event::StartFailed { generation, detail, halted: false, retry_in_secs: Some(retry_in.as_secs_f64()) }
            }
            News::Recovered { generation, outage, reason } => {
                self.count_repair(reason.name(), "ok");
                self.repairs.recovered(machine.permit());
                self.watch.update(Snapshot::end_outage);
                self.words.clear();
                Event::Recovered { generation, outage_secs: outage.as_secs_f64() }
            }
            News::Steady { generation } => Event::Steady { generation },
            News::RepairHeld { hold } => {
                self.repairs.held(hold.by);
                let sight = machine.awaited();
                let detail = sight.map(|sight| machine.permit().describe(hold, Instant::now(), &sight));
                Event::RepairHeld { by: hold.by, until: hold.until.map(wall), detail: detail.unwrap_or_default() }
            }
            News::RepairReleased { ordered } => Event::RepairReleased { ordered },
            News::RepairStarted { generation } => {
                self.repairs.started(machine.permit());
                Event::RepairStarted { generation }
            }
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
        let (next, next_at) = describe::next(machine);
        let live = matches!(state, machine::State::Live(_));
        let held = match (state, machine.awaited()) {
            (machine::State::Held { hold: Some(hold), .. }, Some(sight)) => {
                Some(machine.permit().describe(*hold, Instant::now(), &sight))
            }
            _ => None,
        };
        let why = held.or_else(|| (!live && !self.words.is_empty()).then(|| self.words.clone()));
        self.repairs.publish(machine);
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

fn remove(generation: &dyn Generation) -> Result<(), String> {
    generation.abort();
    generation.retire()
}

/// A number in 0..1 that differs between processes and calls; good enough to spread retries.
fn dice() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}
