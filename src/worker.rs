//! Tells the worker to pause and to go on (promise P7). Follows the supervisor's events in a thread of its own; nothing
//! in the data path knows of it.

pub mod hooks;
pub mod pause;
pub mod policy;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::config::WorkerConfig;
use crate::rundir;
use crate::supervisor::{Event, Watch};
use pause::Note;
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
    sender: Mutex<Sender<Message>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Starts following. A worker that a killed predecessor left paused is let go at the first steady moment.
    pub fn start(config: &WorkerConfig, overlay: &Path, watch: &Watch) -> Result<Worker, String> {
        let (sender, inbox) = channel();
        let events = watch.subscribe();
        let forward = sender.clone();
        let spawn = |name: &str, job: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(job).map_err(|error| error.to_string())
        };
        spawn(
            "worker-events",
            Box::new(move || {
                // Ends with the supervisor, or when nobody listens any more.
                for (_, event) in events {
                    if forward.send(Message::Event(event)).is_err() {
                        break;
                    }
                }
            }),
        )?;
        let note = Note::new(&state_file(overlay), config.pause_file.clone());
        let left = note.read();
        let report = Arc::new(Mutex::new(Report::default()));
        let mut hand = Hand { config: config.clone(), overlay: overlay.to_owned(), note, report: Arc::clone(&report) };
        let mut policy = Policy::begin(left.is_some());
        if let Some(left) = left {
            hand.tell(Some((left.since, left.reason)));
        }
        let thread = spawn(
            "worker",
            Box::new(move || {
                for message in inbox {
                    let stop = matches!(message, Message::Stop);
                    let order = match message {
                        Message::Event(event) => policy.event(&event),
                        Message::Stop => policy.stop(),
                    };
                    hand.carry_out(order);
                    if stop {
                        break;
                    }
                }
            }),
        )?;
        Ok(Worker { report, sender: Mutex::new(sender), thread: Mutex::new(Some(thread)) })
    }

    /// What can be said now.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// Lets a paused worker go and ends.
    pub fn stop(&self) {
        // The thread may have ended on its own account only by a panic.
        let _ = self.sender.lock().send(Message::Stop);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the worker's thread panicked");
        }
    }
}

/// Where it is written down that the worker is paused: a place that a reboot does not wipe.
fn state_file(overlay: &Path) -> PathBuf {
    let base = match std::env::var_os("STEADFS_STATE_DIR") {
        Some(dir) => PathBuf::from(dir),
        None if nix::unistd::geteuid().is_root() => "/var/lib/steadfs".into(),
        None => match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
            (Some(dir), _) => Path::new(&dir).join("steadfs"),
            (None, Some(home)) => Path::new(&home).join(".local/state/steadfs"),
            (None, None) => rundir::base(),
        },
    };
    let name = rundir::of(overlay).file_name().map(ToOwned::to_owned).unwrap_or_default();
    base.join(name).join("paused.json")
}

/// Does what the policy orders.
struct Hand {
    config: WorkerConfig,
    overlay: PathBuf,
    note: Note,
    report: Arc<Mutex<Report>>,
}

impl Hand {
    fn tell(&self, paused: Option<(String, String)>) {
        let mut report = self.report.lock();
        (report.paused_since, report.reason) =
            paused.map_or((None, None), |(since, reason)| (Some(since), Some(reason)));
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Nothing => {}
            Order::Pause { since, reason } => self.pause(since, reason),
            Order::Resume => self.resume(),
        }
    }

    fn pause(&mut self, since: SystemTime, reason: String) {
        if self.config == WorkerConfig::default() {
            return;
        }
        let since = humantime::format_rfc3339_seconds(since).to_string();
        let written =
            pause::Paused { since: since.clone(), reason: reason.clone(), overlay: self.overlay.display().to_string() };
        // Written down first: whatever happens from here on, somebody will know whom to let go.
        if let Err(error) = self.note.write(&written) {
            tracing::error!(%error, "it cannot be written down that the worker is to pause; it is not paused");
            return;
        }
        self.tell(Some((since.clone(), reason.clone())));
        if let Err(error) = self.note.raise_flag(&written) {
            tracing::error!(%error, "the pause file cannot be written");
        }
        self.hook("on_outage", self.config.on_outage.clone(), &since, &reason);
    }

    fn resume(&mut self) {
        if let Err(error) = self.note.lower_flag() {
            tracing::error!(%error, "the pause file cannot be removed");
        }
        let (since, reason) = {
            let report = self.report.lock();
            (report.paused_since.clone().unwrap_or_default(), report.reason.clone().unwrap_or_default())
        };
        self.hook("on_recovery", self.config.on_recovery.clone(), &since, &reason);
        // Erased last: a daemon that dies in between lets the worker go once more.
        if let Err(error) = self.note.erase() {
            tracing::error!(%error, "the note that the worker is paused cannot be removed");
        }
        self.tell(None);
    }

    fn hook(&self, name: &str, command: Option<crate::config::HookCommand>, since: &str, reason: &str) {
        let Some(command) = command else { return };
        let timeout = self.config.hook_timeout.unwrap_or(HOOK_TIMEOUT);
        let environment = [
            ("STEADFS_OVERLAY", self.overlay.as_os_str()),
            ("STEADFS_SINCE", since.as_ref()),
            ("STEADFS_REASON", reason.as_ref()),
        ];
        let result = hooks::run(&command, &environment, timeout);
        tracing::info!(hook = name, result = result.word(), output = result.output(), "hook");
        let mut report = self.report.lock();
        match report.hooks.iter_mut().find(|runs| runs.hook == name && runs.result == result.word()) {
            Some(runs) => runs.count += 1,
            None => report.hooks.push(HookRuns { hook: name.into(), result: result.word().into(), count: 1 }),
        }
    }
}

#[cfg(test)]
mod tests;
