//! Tells workers to pause and to go on (promise P7). Follows the supervisor's events in a thread of its own; nothing
//! in the data path knows of it.
//!
//! [`policy`] decides; `hand` does what it orders, one order after the other; `means` has one file for each way in which a
//! worker can be paused. To pause: the note that says so ([`pause::Note`]), then the flag file, then `on_outage`, then each
//! `[[worker]]` in order: it is looked for, what was found is written down, it is paused. To resume: the workers in the
//! opposite order, each forgotten once it is let go; the flag file goes, `on_recovery` runs, what is to follow a recovery
//! runs, and the note goes last. What fails is tried again, and the note stays for whoever comes after: the next daemon,
//! or [`let_go`].
//!
//! The note says how far each of them is ([`pause::Stage`]), so that a successor runs no hook that has run. Only one that
//! ran when the daemon was killed is run once more: nobody knows how far it came.

mod hand;
pub mod hooks;
mod means;
pub mod pause;
pub mod policy;
mod told;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use crate::config::{Means, WorkerConfig};
use crate::statedir;
use crate::supervisor::{Event, Watch};
use hand::Hand;
use means::{Real, Ways};
use pause::Note;
use policy::Policy;
use told::Told;
pub use told::{HookRuns, LastStep, Report, StepRuns, WorkerReport};

enum Message {
    Event(Instant, Event),
    Configure(Box<WorkerConfig>),
    Stop,
}

/// Follows one supervisor on behalf of its workers.
pub struct Worker {
    note: Note,
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
        Worker::begin(config, overlay, watch, note, false, Box::new(Real::new()))
    }

    /// As [`Worker::start`] for the successor of a daemon that died: a worker that is paused stays so, and is not told again
    /// what it has been told.
    pub fn succeed(config: &WorkerConfig, overlay: &Path, watch: &Watch) -> Result<Worker, String> {
        Worker::succeed_with(config, overlay, watch, note_of(overlay))
    }

    /// As [`Worker::succeed`], with the note at `note`.
    pub fn succeed_with(config: &WorkerConfig, overlay: &Path, watch: &Watch, note: PathBuf) -> Result<Worker, String> {
        Worker::begin(config, overlay, watch, note, true, Box::new(Real::new()))
    }

    fn begin(
        config: &WorkerConfig,
        overlay: &Path,
        watch: &Watch,
        note: PathBuf,
        successor: bool,
        ways: Box<dyn Ways>,
    ) -> Result<Worker, String> {
        let note = Note::new(note);
        match check(config, &note) {
            // Callers wait, and whoever made the mount has been told of what was wrong then.
            Err(error) if successor => tracing::error!(error, "the worker may not be paused in an outage"),
            checked => checked?,
        }
        let (report, ending) = (Arc::new(Mutex::new(Report::default())), Arc::new(AtomicBool::new(false)));
        let told = Told::new(Arc::clone(&report), watch.clone());
        let mut hand = Hand::new(config, overlay, note.clone(), ways, told, Arc::clone(&ending));
        let left = hand.record();
        if let Some(left) = left {
            tracing::info!(reason = left.paused.reason, "an earlier steadfs left somebody paused");
        }
        let (policy, unfinished) = match successor {
            true => Policy::succeed(left.map(|left| left.stage)),
            false => (Policy::begin(left.is_some()), false),
        };
        let (sender, inbox) = channel();
        let (events, forward) = (watch.subscribe(), sender.clone());
        spawn("worker-events", move || {
            // Ends with the supervisor, or when nobody listens any more.
            for (_, event) in events {
                if forward.send(Message::Event(Instant::now(), event)).is_err() {
                    break;
                }
            }
        })?;
        let thread = spawn("worker", move || {
            if unfinished {
                hand.finish();
            }
            hand.follow(policy, inbox);
        })?;
        Ok(Worker { note, report, ending, sender: Mutex::new(sender), thread: Mutex::new(Some(thread)) })
    }

    /// What can be said now.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// From now on it is that. Whoever is paused and not in it any more is let go, and in an outage that is old enough
    /// whoever is new is paused; that is done in the background. The error says what is wrong with it: then nothing changes.
    pub fn reconfigure(&self, config: &WorkerConfig) -> Result<(), String> {
        check(config, &self.note)?;
        // The thread may have ended on its own account only by a panic.
        let _ = self.sender.lock().send(Message::Configure(Box::new(config.clone())));
        Ok(())
    }

    /// Lets everybody go and ends, within `hook_timeout` and the timeouts of all workers that are paused (twice that if they
    /// are being let go and it fails): what pauses somebody is cut short, and events that have not been looked at are dropped.
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

/// Finds out before anything is mounted what would keep workers from being paused.
fn check(config: &WorkerConfig, note: &Note) -> Result<(), String> {
    if !has_means(config) {
        return Ok(());
    }
    let flags = config.workers.iter().filter_map(|entry| match &entry.means {
        Means::Flag { file } => Some((format!("worker {}", entry.name), file)),
        _ => None,
    });
    for (whose, flag) in config.pause_file.iter().map(|flag| ("pause_file".to_string(), flag)).chain(flags) {
        if let Some(missing) = flag.parent().filter(|parent| !parent.is_dir()) {
            return Err(format!("{whose}: there is no directory {}; make it first", missing.display()));
        }
    }
    let mut names = HashSet::new();
    if let Some(twice) = config.workers.iter().find(|entry| !names.insert(&entry.name)) {
        return Err(format!("worker {}: there are two of that name", twice.name));
    }
    note.try_out()
}

/// A timeout alone tells nobody anything.
fn has_means(config: &WorkerConfig) -> bool {
    config.pause_file.is_some()
        || config.on_outage.is_some()
        || config.on_recovery.is_some()
        || !config.workers.is_empty()
        || !config.after_recovery.is_empty()
}

/// Where it is written down that the worker is paused.
fn note_of(overlay: &Path) -> PathBuf {
    statedir::of(overlay).join("paused.json")
}

/// Lets go whom a steadfs that was killed left paused at `overlay`: for whoever cleans up after it. Nobody may serve the
/// overlay meanwhile. False if nobody was paused; the error says why the worker is still paused, and what to do.
pub fn let_go(overlay: &Path) -> Result<bool, String> {
    let_go_by(overlay, note_of(overlay), Box::new(Real::new()))
}

fn let_go_by(overlay: &Path, path: PathBuf, ways: Box<dyn Ways>) -> Result<bool, String> {
    let note = Note::new(path.clone());
    if note.read().is_none() {
        return Ok(false);
    }
    let told = Told::new(Arc::default(), Watch::default());
    // Whoever cleans up may be a part of what systemd stops: nothing that waits for its end is waited for.
    let ending = Arc::new(AtomicBool::new(true));
    let mut hand = Hand::new(&WorkerConfig::default(), overlay, note, ways, told, ending);
    let shown = (overlay.display(), path.display());
    hand.resume(None).1.map_or(Ok(true), |error| {
        Err(format!(
            "the worker of {0} is still paused: {error}: mend that and run steadfs umount {0} again, \
             or let it go by hand and remove {1}",
            shown.0, shown.1
        ))
    })
}

/// True if a note says that a worker is paused at `overlay`.
pub fn is_noted(overlay: &Path) -> bool {
    Note::new(note_of(overlay)).read().is_some()
}

#[cfg(test)]
mod tests;
