//! Does what the policy orders, one order after the other.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::pause::{self, Note, Paused, Record, Stage};
use super::policy::{Order, Policy};
use super::{HookRuns, Message, Report, has_means, hooks};
use crate::config::{HookCommand, WorkerConfig};
use crate::supervisor::Event;

/// How long a hook may take when `hook_timeout` is not given.
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// First delay before a worker that could not be let go is let go again; doubled each time.
const AGAIN_MIN: Duration = Duration::from_secs(1);
/// Longest one.
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Hand {
    config: WorkerConfig,
    overlay: PathBuf,
    note: Note,
    report: Arc<Mutex<Report>>,
    ending: Arc<AtomicBool>,
    /// The worker has been let go and only the note is left: a hook is not run twice for that.
    let_go: Cell<bool>,
}

/// When the worker is let go again that could not be let go.
struct Again {
    at: Option<Instant>,
    delay: Duration,
}

impl Hand {
    pub(super) fn new(
        config: &WorkerConfig,
        overlay: &Path,
        note: Note,
        report: Arc<Mutex<Report>>,
        ending: Arc<AtomicBool>,
    ) -> Hand {
        let overlay = overlay.to_owned();
        Hand { config: config.clone(), overlay, note, report, ending, let_go: Cell::new(false) }
    }

    /// Carries out what events ask for, to the end.
    pub(super) fn follow(self, mut policy: Policy, inbox: Receiver<Message>) {
        let mut again = Again { at: None, delay: AGAIN_MIN };
        loop {
            let message = match again.at {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let order = match message {
                Ok(Message::Event(_)) if self.ending.load(SeqCst) => continue,
                Ok(Message::Event(event)) => {
                    if matches!(event, Event::OutageBegan { .. }) {
                        // Not into an outage: the next steady moment is soon enough.
                        again.at = None;
                    }
                    policy.event(&event)
                }
                Ok(Message::Stop) => {
                    let order = policy.stop();
                    return self.carry_out(order, &mut policy, &mut again);
                }
                Err(RecvTimeoutError::Timeout) => policy.again(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.carry_out(order, &mut policy, &mut again);
        }
    }

    fn carry_out(&self, order: Order, policy: &mut Policy, again: &mut Again) {
        match order {
            Order::Nothing => return,
            Order::Pause { since, reason } => {
                if !self.pause(since, reason) {
                    policy.refused();
                }
            }
            Order::Resume => {
                if let Err(error) = self.resume() {
                    policy.kept();
                    if self.ending.load(SeqCst) {
                        tracing::error!(error, "the worker cannot be let go; the note stays for a successor");
                    } else {
                        tracing::error!(error, again_in = ?again.delay, "the worker cannot be let go");
                    }
                    *again = Again { at: Some(Instant::now() + again.delay), delay: (again.delay * 2).min(AGAIN_MAX) };
                    return;
                }
            }
        }
        *again = Again { at: None, delay: AGAIN_MIN };
    }

    /// Makes it known that the worker is paused, or that it is not.
    pub(super) fn tell(&self, paused: Option<Paused>) {
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
        self.let_go.set(false);
        self.tell(Some(paused.clone()));
        self.finish(&paused);
        true
    }

    /// What there is to a pause once it is written down: the flag, the hook, and the word that both are done.
    pub(super) fn finish(&self, paused: &Paused) {
        if let Some(flag) = &self.config.pause_file
            && let Err(error) = pause::raise_flag(flag, paused)
        {
            tracing::error!(%error, flag = %flag.display(), "the pause file cannot be written");
        }
        self.hook("on_outage", self.config.on_outage.as_ref(), self.config.hook_timeout, paused);
        self.reach(Stage::Paused);
    }

    /// Writes down how far it is. A successor that does not know tells the worker once more.
    fn reach(&self, stage: Stage) {
        let Some(record) = self.note.read() else { return };
        if let Err(error) = self.note.write(&Record { stage, ..record }) {
            tracing::warn!(%error, ?stage, "it cannot be written down how far the worker has been told");
        }
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
            stage: Stage::Pausing,
            pause_file: self.config.pause_file.clone(),
            on_recovery: on_recovery.or(earlier.on_recovery),
            hook_timeout: self.config.hook_timeout.or(earlier.hook_timeout),
        })
    }

    /// Lets the worker go by all means and forgets that it was paused; unless one of them failed: then nothing is
    /// forgotten, and it can be done again. The error says what failed.
    pub(super) fn resume(&self) -> Result<(), String> {
        if !self.let_go.get() {
            self.release()?;
            self.let_go.set(true);
        }
        let erased = self.note.erase();
        // Whatever the note says, it has been told to go on.
        self.tell(None);
        erased.map_err(|error| format!("the note that the worker is paused cannot be removed: {error}"))
    }

    fn release(&self) -> Result<(), String> {
        self.reach(Stage::Resuming);
        let record = self.note.read().unwrap_or_default();
        let mut failures = Vec::new();
        let configured = self.config.pause_file.iter();
        for flag in configured.chain(record.pause_file.iter().filter(|f| Some(*f) != self.config.pause_file.as_ref())) {
            if let Err(error) = pause::lower_flag(flag) {
                failures.push(format!("the pause file {} cannot be removed: {error}", flag.display()));
            }
        }
        let written = record.on_recovery.map(|argv| HookCommand { argv });
        let command = self.config.on_recovery.as_ref().or(written.as_ref());
        let timeout = self.config.hook_timeout.or(record.hook_timeout);
        failures.extend(self.hook("on_recovery", command, timeout, &record.paused));
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    /// Runs it; what is returned says why that failed.
    fn hook(
        &self,
        name: &str,
        command: Option<&HookCommand>,
        timeout: Option<Duration>,
        paused: &Paused,
    ) -> Option<String> {
        let command = command?;
        let pausing = name == "on_outage";
        let environment = [
            ("STEADFS_OVERLAY", self.overlay.as_os_str()),
            ("STEADFS_STATE", if pausing { "paused" } else { "running" }.as_ref()),
            ("STEADFS_SINCE", paused.since.as_ref()),
            ("STEADFS_REASON", paused.reason.as_ref()),
        ];
        // A worker that is let go in a moment need not be paused to the end.
        let cut = || pausing && self.ending.load(SeqCst);
        let result = hooks::run(command, &environment, timeout.unwrap_or(HOOK_TIMEOUT), cut);
        match result {
            hooks::Ended::Ok(_) => tracing::info!(hook = name, result = "ok", output = result.output(), "hook"),
            _ => tracing::warn!(hook = name, result = result.word(), output = result.output(), "hook"),
        }
        self.count(name, result.word());
        match result {
            hooks::Ended::Ok(_) => None,
            hooks::Ended::Failed(words) => Some(format!("{name} failed: {}", words.trim())),
            hooks::Ended::Timeout(words) => Some(format!("{name} took too long: {}", words.trim())),
        }
    }

    fn count(&self, name: &str, result: &str) {
        let mut report = self.report.lock();
        match report.hooks.iter_mut().find(|runs| runs.hook == name && runs.result == result) {
            Some(runs) => runs.count += 1,
            None => report.hooks.push(HookRuns { hook: name.into(), result: result.into(), count: 1 }),
        }
    }
}
