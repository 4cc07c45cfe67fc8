//! Does what the policy orders, one order after the other.

mod workers;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use super::means::Ways;
use super::pause::{self, Note, Paused, Record, Stage};
use super::policy::{Order, Policy, Resumed};
use super::told::Told;
use super::{Message, has_means, hooks};
use crate::config::{HookCommand, WorkerConfig};

/// How long a hook or a step may take when nothing is said.
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Hand {
    config: WorkerConfig,
    overlay: PathBuf,
    note: Note,
    /// What the note says, or would say if it could be written.
    record: Option<Record>,
    ways: Box<dyn Ways>,
    told: Told,
    ending: Arc<AtomicBool>,
    boot: String,
}

impl Hand {
    /// With whatever a predecessor has left.
    pub(super) fn new(
        config: &WorkerConfig,
        overlay: &Path,
        note: Note,
        ways: Box<dyn Ways>,
        told: Told,
        ending: Arc<AtomicBool>,
    ) -> Hand {
        let (config, overlay, record) = (config.clone(), overlay.to_owned(), note.read());
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().into();
        told.paused(record.as_ref().map(|record| &record.paused));
        told.workers(&config, record.as_ref());
        Hand { config, overlay, note, record, ways, told, ending, boot }
    }

    /// What the note says.
    pub(super) fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Carries out what events ask for, to the end.
    pub(super) fn follow(mut self, mut policy: Policy, inbox: Receiver<Message>) {
        loop {
            let message = match policy.due() {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let order = match message {
                Ok(Message::Event(..) | Message::Configure(_)) if self.ending.load(SeqCst) => continue,
                Ok(Message::Event(at, event)) => policy.event(&event, at),
                Ok(Message::Configure(config)) => {
                    self.config = *config;
                    self.told.workers(&self.config, self.record.as_ref());
                    policy.reconfigured()
                }
                Ok(Message::Stop) => {
                    let order = policy.stop();
                    return self.carry_out(order, &mut policy);
                }
                Err(RecvTimeoutError::Timeout) => policy.tick(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.carry_out(order, &mut policy);
        }
    }

    fn carry_out(&mut self, order: Order, policy: &mut Policy) {
        match order {
            Order::Nothing => {}
            Order::Pause { since, reason, all } => {
                if !self.pause(since, reason, all) {
                    policy.refused();
                }
            }
            Order::Resume { lived } => {
                let (came, error) = self.resume(lived);
                let now = Instant::now();
                policy.resumed(came, now);
                if let Some(error) = error {
                    if self.ending.load(SeqCst) {
                        tracing::error!(error, "not everybody can be let go; the note stays for a successor");
                    } else {
                        let again_in = policy.due().map(|due| due.saturating_duration_since(now));
                        tracing::error!(error, ?again_in, "not everybody can be let go");
                    }
                }
            }
            Order::Adapt { pause } => {
                let done = self.adapt(pause);
                policy.adapted(done, Instant::now());
            }
            Order::Hook => match self.next_after_recovery() {
                Ok(more) => policy.hooked(more),
                Err(error) => {
                    tracing::error!(error, "the note that somebody is paused stays");
                    policy.resumed(Resumed::Failed(None), Instant::now());
                }
            },
        }
    }

    /// False if nobody was paused.
    pub(super) fn pause(&mut self, since: SystemTime, reason: String, all: bool) -> bool {
        if !has_means(&self.config) && self.record.is_none() {
            return false;
        }
        let paused = Paused {
            since: humantime::format_rfc3339_seconds(since).to_string(),
            reason,
            overlay: self.overlay.display().to_string(),
        };
        let before = self.record.clone();
        if let Err(error) = self.write_down(&paused, all) {
            tracing::error!(%error, "it cannot be written down who is to pause; nobody is paused");
            self.record = before;
            // A predecessor's note still says that somebody is to be let go.
            return self.record.is_some();
        }
        self.told.paused(Some(&paused));
        self.finish();
        true
    }

    /// What there is to a pause once it is written down: the flag, the hook, the workers, and the word that all are done.
    pub(super) fn finish(&mut self) {
        let Some(record) = &self.record else { return };
        if matches!(record.stage_of_pair(), Stage::Pausing | Stage::Unknown) {
            let paused = record.paused.clone();
            self.raise_flag(&paused);
            self.hook("on_outage", self.config.on_outage.as_ref(), self.config.hook_timeout, &paused);
            if !self.config.workers.is_empty() {
                self.note_that(|record| record.pair = Stage::Paused);
            }
        }
        self.pause_workers();
        self.note_that(|record| (record.stage, record.pair) = (Stage::Paused, Stage::Unknown));
    }

    fn raise_flag(&self, paused: &Paused) {
        if let Some(flag) = &self.config.pause_file
            && let Err(error) = pause::raise_flag(flag, paused)
        {
            tracing::error!(%error, flag = %flag.display(), "the pause file cannot be written");
        }
    }

    /// Whatever happens from here on, somebody will know whom to let go, and how. What a predecessor wrote down is kept
    /// where this daemon has no means of its own.
    fn write_down(&mut self, paused: &Paused, all: bool) -> std::io::Result<()> {
        let earlier = self.record.take().unwrap_or_default();
        if let Some(flag) = earlier.pause_file.as_ref().filter(|flag| Some(*flag) != self.config.pause_file.as_ref()) {
            // Nobody looks at the old one any more.
            pause::lower_flag(flag)?;
        }
        let on_recovery = self.config.on_recovery.as_ref().map(|hook| hook.argv.clone());
        let mut workers = self.held(&earlier);
        for held in workers.iter_mut().filter(|_| all) {
            held.stage = Stage::Pausing;
        }
        let record = Record {
            paused: paused.clone(),
            stage: Stage::Pausing,
            pause_file: self.config.pause_file.clone(),
            on_recovery: on_recovery.or(earlier.on_recovery),
            hook_timeout: self.config.hook_timeout.or(earlier.hook_timeout),
            workers,
            ..Record::default()
        };
        self.note.write(&record)?;
        self.record = Some(record);
        Ok(())
    }

    /// Changes what is written down. Where that fails this daemon knows it all the same, and a successor that does not does
    /// something once more.
    fn note_that(&mut self, change: impl FnOnce(&mut Record)) {
        let Some(record) = &mut self.record else { return };
        change(record);
        if let Err(error) = self.note.write(record) {
            tracing::warn!(%error, "it cannot be written down how far the workers have been told");
        }
    }

    /// Lets go whose steady time has passed, or everybody, and forgets them; of those where that failed nothing is forgotten,
    /// and it can be done again. The words say what failed.
    pub(super) fn resume(&mut self, lived: Option<Duration>) -> (Resumed, Option<String>) {
        let unreadable = self.record.as_ref().is_some_and(|record| record.unreadable);
        if unreadable {
            let workers = self.record.as_ref().map(|record| self.held(record)).unwrap_or_default();
            self.note_that(|record| (record.workers, record.unreadable) = (workers, false));
        }
        let pair = self.record.as_ref().map_or(Stage::Resumed, Record::stage_of_pair);
        // What is to be done is written down before it is done, unless that has been.
        if self.record.as_ref().is_some_and(|record| record.stage != Stage::Resuming) {
            self.note_that(|record| (record.stage, record.pair) = (Stage::Resuming, Stage::Unknown));
        }
        let (rest, mut failures) = self.resume_workers(lived);
        if pair != Stage::Resumed {
            let failed = self.resume_pair();
            if failed.is_empty() {
                self.note_that(|record| record.pair = Stage::Resumed);
            }
            failures.extend(failed);
        }
        if !failures.is_empty() {
            return (Resumed::Failed(rest), Some(failures.join("; ")));
        }
        if let Some(rest) = rest {
            return (Resumed::Rest(rest), None);
        }
        let hooks = lived.is_some() && self.record.is_some() && self.after_recovery().is_some();
        let forgotten = if hooks { Ok(()) } else { self.forget() };
        // Whatever the note says, they have been told to go on.
        self.told.paused(None);
        match forgotten {
            Ok(()) if hooks => (Resumed::Hooks, None),
            Ok(()) => (Resumed::All, None),
            Err(error) => (Resumed::Failed(None), Some(error)),
        }
    }

    fn forget(&mut self) -> Result<(), String> {
        self.note.erase().map_err(|error| format!("the note that somebody is paused cannot be removed: {error}"))?;
        self.record = None;
        Ok(())
    }

    fn resume_pair(&self) -> Vec<String> {
        let record = self.record.clone().unwrap_or_default();
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
        failures
    }

    /// What changed with the configuration; false if somebody could not be let go.
    fn adapt(&mut self, pause: bool) -> bool {
        let done = self.let_strays_go();
        if !pause {
            return done;
        }
        let Some(record) = self.record.clone() else { return done };
        if record.pause_file != self.config.pause_file {
            match self.write_down(&record.paused, false) {
                Ok(()) => {
                    self.note_that(|written| (written.stage, written.pair) = (record.stage, record.pair));
                    self.raise_flag(&record.paused);
                }
                Err(error) => {
                    tracing::error!(%error, "the new pause file is not used in this outage");
                    self.record = Some(record);
                }
            }
        } else if let Some(hook) = self.config.on_recovery.clone() {
            self.note_that(|record| record.on_recovery = Some(hook.argv));
        }
        self.pause_workers();
        done
    }

    /// The next hook that follows a recovery and has not run.
    fn after_recovery(&self) -> Option<usize> {
        let done = self.record.as_ref().map_or(&[][..], |record| &record.after);
        self.config.after_recovery.iter().position(|hook| !done.contains(&hook.name))
    }

    /// Runs it; true if there are more.
    pub(super) fn next_after_recovery(&mut self) -> Result<bool, String> {
        if let Some(index) = self.after_recovery() {
            let hook = self.config.after_recovery[index].clone();
            let paused = self.record.as_ref().map(|record| record.paused.clone()).unwrap_or_default();
            let name = format!("after_recovery:{}", hook.name);
            let timeout = Some(hook.timeout.unwrap_or(HOOK_TIMEOUT));
            // What fails is told and not tried again: nobody is paused by it.
            self.hook(&name, Some(&hook.command), timeout, &paused);
            self.note_that(|record| record.after.push(hook.name));
        }
        if self.after_recovery().is_some() {
            return Ok(true);
        }
        self.forget().map(|()| false)
    }

    fn environment<'a>(&'a self, pausing: bool, paused: &'a Paused) -> Vec<(&'a str, &'a OsStr)> {
        vec![
            ("STEADFS_OVERLAY", self.overlay.as_os_str()),
            ("STEADFS_STATE", if pausing { "paused" } else { "running" }.as_ref()),
            ("STEADFS_SINCE", paused.since.as_ref()),
            ("STEADFS_REASON", paused.reason.as_ref()),
        ]
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
        let environment = self.environment(pausing, paused);
        // Whoever is let go in a moment need not be paused to the end, nor does anything more follow a recovery then.
        let cut = || name != "on_recovery" && self.ending.load(SeqCst);
        let result = hooks::run(command, &environment, timeout.unwrap_or(HOOK_TIMEOUT), cut);
        match result {
            hooks::Ended::Ok(_) => tracing::info!(hook = name, result = "ok", output = result.output(), "hook"),
            _ => tracing::warn!(hook = name, result = result.word(), output = result.output(), "hook"),
        }
        self.told.hook(name, result.word());
        let after = name.strip_prefix("after_recovery:");
        let (name_alone, action) = after.map_or((name, "hook"), |name| (name, "after_recovery"));
        self.told.publish(name_alone, action, result.word(), result.output().trim());
        match result {
            hooks::Ended::Ok(_) => None,
            hooks::Ended::Failed(words) => Some(format!("{name} failed: {}", words.trim())),
            hooks::Ended::Timeout(words) => Some(format!("{name} took too long: {}", words.trim())),
        }
    }
}

#[cfg(test)]
mod tests;
