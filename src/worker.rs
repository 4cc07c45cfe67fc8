//! Tells the worker to pause and to go on (promise P7). Follows the supervisor's events in a thread of its own; nothing
//! in the data path knows of it.
//!
//! [`policy`] decides; `hand` does what it orders, one order after the other. To pause: the note that says so
//! ([`pause::Note`]), then the flag file, then `on_outage`. To resume: the flag file goes, `on_recovery` runs, and the note
//! goes last. If any of that fails it is tried again, and the note stays for whoever comes after: the next daemon, or
//! [`let_go`].
//!
//! The note says how far it is ([`pause::Stage`]), so that a successor runs no hook that has run. Only one that ran when the
//! daemon was killed is run once more: nobody knows how far it came.

mod hand;
pub mod hooks;
pub mod pause;
pub mod policy;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::config::WorkerConfig;
use crate::statedir;
use crate::supervisor::{Event, Watch};
use hand::Hand;
use pause::Note;
use policy::Policy;

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
        Worker::start_with(config, overlay, watch, note_of(overlay))
    }

    /// As [`Worker::start`], with the note that the worker is paused at `note`, in a directory of its own.
    pub fn start_with(config: &WorkerConfig, overlay: &Path, watch: &Watch, note: PathBuf) -> Result<Worker, String> {
        Worker::begin(config, overlay, watch, note, false)
    }

    /// As [`Worker::start`] for the successor of a daemon that died: a worker that is paused stays so, and is not told again
    /// what it has been told.
    pub fn succeed(config: &WorkerConfig, overlay: &Path, watch: &Watch) -> Result<Worker, String> {
        Worker::succeed_with(config, overlay, watch, note_of(overlay))
    }

    /// As [`Worker::succeed`], with the note at `note`.
    pub fn succeed_with(config: &WorkerConfig, overlay: &Path, watch: &Watch, note: PathBuf) -> Result<Worker, String> {
        Worker::begin(config, overlay, watch, note, true)
    }

    fn begin(
        config: &WorkerConfig,
        overlay: &Path,
        watch: &Watch,
        note: PathBuf,
        successor: bool,
    ) -> Result<Worker, String> {
        let note = Note::new(note);
        match check(config, &note) {
            // Callers wait, and whoever made the mount has been told of what was wrong then.
            Err(error) if successor => tracing::error!(error, "the worker may not be paused in an outage"),
            checked => checked?,
        }
        let left = note.read();
        let (policy, unfinished) = match successor {
            true => Policy::succeed(left.as_ref().map(|left| left.stage)),
            false => (Policy::begin(left.is_some()), false),
        };
        let unfinished = left.as_ref().filter(|_| unfinished).map(|left| left.paused.clone());
        let (report, ending) = (Arc::new(Mutex::new(Report::default())), Arc::new(AtomicBool::new(false)));
        let hand = Hand::new(config, overlay, note, Arc::clone(&report), Arc::clone(&ending));
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
        let thread = spawn("worker", move || {
            if let Some(paused) = unfinished {
                hand.finish(&paused);
            }
            hand.follow(policy, inbox);
        })?;
        Ok(Worker { report, ending, sender: Mutex::new(sender), thread: Mutex::new(Some(thread)) })
    }

    /// What can be said now.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// Lets a paused worker go and ends, within `hook_timeout` (twice that if an `on_recovery` is running and fails): an
    /// `on_outage` that runs is cut short, and events that have not been looked at are dropped.
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

/// Where it is written down that the worker is paused.
fn note_of(overlay: &Path) -> PathBuf {
    statedir::of(overlay).join("paused.json")
}

/// Lets go whom a steadfs that was killed left paused at `overlay`: for whoever cleans up after it. Nobody may serve the
/// overlay meanwhile. False if nobody was paused; the error says why the worker is still paused, and what to do.
pub fn let_go(overlay: &Path) -> Result<bool, String> {
    let_go_by(overlay, note_of(overlay))
}

fn let_go_by(overlay: &Path, path: PathBuf) -> Result<bool, String> {
    let note = Note::new(path.clone());
    if note.read().is_none() {
        return Ok(false);
    }
    let hand = Hand::new(&WorkerConfig::default(), overlay, note, Arc::default(), Arc::default());
    let shown = (overlay.display(), path.display());
    hand.resume().map(|()| true).map_err(|error| {
        format!(
            "the worker of {0} is still paused: {error}: mend that and run steadfs umount {0} again, \
             or let the worker go by hand and remove {1}",
            shown.0, shown.1
        )
    })
}

/// True if a note says that a worker is paused at `overlay`.
pub fn is_noted(overlay: &Path) -> bool {
    Note::new(note_of(overlay)).read().is_some()
}

#[cfg(test)]
mod tests;
