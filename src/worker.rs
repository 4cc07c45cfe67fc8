//! Tells the worker to pause and to go on (promise P7). Follows the supervisor's events in a thread of its own; nothing
//! in the data path knows of it.
//!
//! [`policy`] decides; this file does what it orders, one order after the other. To pause: the note that says so
//! ([`pause::Note`]), then the flag file, then `on_outage`. To resume: the flag file goes, `on_recovery` runs, and the note
//! goes last, so that a daemon that dies in between lets the worker go once more.

pub mod hooks;
pub mod pause;
pub mod policy;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::config::{HookCommand, WorkerConfig};
use crate::statedir;
use crate::supervisor::{Event, Watch};
use pause::{Note, Paused, Record};
use policy::{Order, Policy};

/// How long a hook may take when `hook_timeout` is not given.
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a hook ended so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookRuns {
    /// `on_outage` or `on_recovery`.
    pub hook: String,
    /// `ok`, `failed` or `timeout`.
    pub result: String,
    /// How often.
    pub count: u64,
}

/// What can be said of the worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Since when it has been told to pause, RFC 3339.
    pub paused_since: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Runs of hooks.
    pub hooks: Vec<HookRuns>,
}

enum Message {
    Event(Event),
    Stop,
}

/// Follows one mount's supervisor on behalf of its worker.
pub struct Worker {
    report: Arc<Mutex<Report>>,
    ending: Arc<AtomicBool>,
    sender: Mutex<Sender<Message>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Starts following; to be called before the supervisor starts, so that no event is missed. A worker that a killed
    /// predecessor left paused is let go at the first steady moment. The error says what cannot be written, and where.
    pub fn start(config: &WorkerConfig, overlay: &Path, watch: &Watch) -> Result<Worker, String> {
        Worker::start_with(config, overlay, watch, state_file(overlay))
    }

    /// As [`Worker::start`], with the note that the worker is paused at `note`, in a directory of its own.
    pub fn start_with(config: &WorkerConfig, overlay: &Path, watch: &Watch, note: PathBuf) -> Result<Worker, String> {
        let note = Note::new(note);
        check(config, &note)?;
        let left = note.read();
        let policy = Policy::begin(left.is_some());
        let (report, ending) = (Arc::new(Mutex::new(Report::default())), Arc::new(AtomicBool::new(false)));
        let hand = Hand {
            config: config.clone(),
            overlay: overlay.to_owned(),
            note,
            report: Arc::clone(&report),
            ending: Arc::clone(&ending),
        };
        if let Some(left) = left {
            tracing::info!(reason = left.paused.reason, "an earlier steadfs left the worker paused");
            hand.tell(Some(left.paused));
        }
        let (sender, inbox) = channel();
        let (events, forward) = (watch.subscribe(), sender.clone());
        spawn("worker-events", move || {
            // Ends with the supervisor, or when nobody listens any more.
            for (_, event) in events {
                if forward.send(Message::Event(event)).is_err() {
                    break;
                }
            }
        })?;
        let thread = spawn("worker", move || hand.follow(policy, inbox))?;
        Ok(Worker { report, ending, sender: Mutex::new(sender), thread: Mutex::new(Some(thread)) })
    }

    /// What can be said now.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// Lets a paused worker go and ends, within `hook_timeout`: an `on_outage` that runs is cut short, and events that
    /// have not been looked at are dropped.
    pub fn stop(&self) {
        self.ending.store(true, SeqCst);
        // The thread may have ended on its own account only by a panic.
        let _ = self.sender.lock().send(Message::Stop);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the worker's thread panicked");
        }
    }
}

fn spawn(name: &str, job: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    std::thread::Builder::new().name(name.into()).spawn(job).map_err(|error| error.to_string())
}

/// Finds out before anything is mounted what would keep the worker from being paused.
fn check(config: &WorkerConfig, note: &Note) -> Result<(), String> {
    if !has_means(config) {
        return Ok(());
    }
    let parent = config.pause_file.as_deref().and_then(Path::parent);
    if let Some(missing) = parent.filter(|parent| !parent.is_dir()) {
        return Err(format!("pause_file: there is no directory {}; make it first", missing.display()));
    }
    note.try_out()
}

/// A timeout alone tells nobody anything.
fn has_means(config: &WorkerConfig) -> bool {
    config.pause_file.is_some() || config.on_outage.is_some() || config.on_recovery.is_some()
}

/// Where it is written down that the worker is paused: a place that a reboot does not wipe.
fn state_file(overlay: &Path) -> PathBuf {
    statedir::of(overlay).join("paused.json")
}

/// Does what the policy orders.
struct Hand {
    config: WorkerConfig,
    overlay: PathBuf,
    note: Note,
    report: Arc<Mutex<Report>>,
    ending: Arc<AtomicBool>,
}

impl Hand {
    fn follow(self, mut policy: Policy, inbox: Receiver<Message>) {
        for message in inbox {
            let order = match message {
                Message::Event(_) if self.ending.load(SeqCst) => continue,
                Message::Event(event) => policy.event(&event),
                Message::Stop => return self.carry_out(policy.stop(), &mut policy),
            };
            self.carry_out(order, &mut policy);
        }
    }

    fn carry_out(&self, order: Order, policy: &mut Policy) {
        match order {
            Order::Nothing => {}
            Order::Pause { since, reason } => {
                if !self.pause(since, reason) {
                    policy.refused();
                }
            }
            Order::Resume => self.resume(),
        }
    }

    fn tell(&self, paused: Option<Paused>) {
        let mut report = self.report.lock();
        (report.paused_since, report.reason) =
            paused.map_or((None, None), |paused| (Some(paused.since), Some(paused.reason)));
    }

    /// False if nobody was paused.
    fn pause(&self, since: SystemTime, reason: String) -> bool {
        if !has_means(&self.config) && self.note.read().is_none() {
            return false;
        }
        let paused = Paused {
            since: humantime::format_rfc3339_seconds(since).to_string(),
            reason,
            overlay: self.overlay.display().to_string(),
        };
        if let Err(error) = self.write_down(&paused) {
            tracing::error!(%error, "it cannot be written down that the worker is to pause; it is not paused");
            // A predecessor's note still says that somebody is to be let go.
            return self.note.read().is_some();
        }
        self.tell(Some(paused.clone()));
        if let Some(flag) = &self.config.pause_file
            && let Err(error) = pause::raise_flag(flag, &paused)
        {
            tracing::error!(%error, flag = %flag.display(), "the pause file cannot be written");
        }
        self.hook("on_outage", self.config.on_outage.as_ref(), &paused);
        true
    }

    /// Whatever happens from here on, somebody will know whom to let go, and how. What a predecessor wrote down is kept
    /// where this daemon has no means of its own.
    fn write_down(&self, paused: &Paused) -> std::io::Result<()> {
        let earlier = self.note.read().unwrap_or_default();
        if let Some(flag) = earlier.pause_file.as_ref().filter(|flag| Some(*flag) != self.config.pause_file.as_ref()) {
            // Nobody looks at the old one any more.
            pause::lower_flag(flag)?;
        }
        let on_recovery = self.config.on_recovery.as_ref().map(|hook| hook.argv.clone());
        self.note.write(&Record {
            paused: paused.clone(),
            pause_file: self.config.pause_file.clone(),
            on_recovery: on_recovery.or(earlier.on_recovery),
        })
    }

    fn resume(&self) {
        let record = self.note.read().unwrap_or_default();
        let configured = self.config.pause_file.iter();
        for flag in configured.chain(record.pause_file.iter().filter(|f| Some(*f) != self.config.pause_file.as_ref())) {
            if let Err(error) = pause::lower_flag(flag) {
                tracing::error!(%error, flag = %flag.display(), "the pause file cannot be removed");
            }
        }
        let written = record.on_recovery.map(|argv| HookCommand { argv });
        self.hook("on_recovery", self.config.on_recovery.as_ref().or(written.as_ref()), &record.paused);
        if let Err(error) = self.note.erase() {
            tracing::error!(%error, "the note that the worker is paused cannot be removed");
        }
        self.tell(None);
    }

    fn hook(&self, name: &str, command: Option<&HookCommand>, paused: &Paused) {
        let Some(command) = command else { return };
        let pausing = name == "on_outage";
        let environment = [
            ("STEADFS_OVERLAY", self.overlay.as_os_str()),
            ("STEADFS_STATE", if pausing { "paused" } else { "running" }.as_ref()),
            ("STEADFS_SINCE", paused.since.as_ref()),
            ("STEADFS_REASON", paused.reason.as_ref()),
        ];
        let timeout = self.config.hook_timeout.unwrap_or(HOOK_TIMEOUT);
        // A worker that is let go in a moment need not be paused to the end.
        let result = hooks::run(command, &environment, timeout, || pausing && self.ending.load(SeqCst));
        match result {
            hooks::Ended::Ok(_) => tracing::info!(hook = name, result = "ok", output = result.output(), "hook"),
            _ => tracing::warn!(hook = name, result = result.word(), output = result.output(), "hook"),
        }
        let mut report = self.report.lock();
        match report.hooks.iter_mut().find(|runs| runs.hook == name && runs.result == result.word()) {
            Some(runs) => runs.count += 1,
            None => report.hooks.push(HookRuns { hook: name.into(), result: result.word().into(), count: 1 }),
        }
    }
}

#[cfg(test)]
mod tests;
