//! The workers of `[[worker]]`, paused in the configured order and let go in the opposite one.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant, SystemTime};

use super::{HOOK_TIMEOUT, Hand};
use crate::config::{Means, WorkerEntry};
use crate::worker::means::{Failure, Job};
use crate::worker::pause::{Found, Held, Paused, Record, Stage};

impl Hand {
    /// Who is paused, so far as the note can be read: if it cannot, anybody may be.
    pub(super) fn held(&self, record: &Record) -> Vec<Held> {
        if !record.unreadable {
            return record.workers.clone();
        }
        let unknown = |entry: &WorkerEntry| self.holding(entry, Found::Unknown, Stage::Pausing);
        self.config.workers.iter().map(unknown).collect()
    }

    fn holding(&self, entry: &WorkerEntry, found: Found, stage: Stage) -> Held {
        Held {
            name: entry.name.clone(),
            means: entry.means.clone(),
            timeout: entry.timeout,
            steady: entry.steady,
            stage,
            boot: self.boot.clone(),
            since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            found,
        }
    }

    /// The note's word for that worker, as it is configured now.
    fn held_by(&self, entry: &WorkerEntry) -> Option<&Held> {
        let workers = self.record.as_ref().map_or(&[][..], |record| &record.workers);
        workers.iter().find(|held| held.name == entry.name && held.means == entry.means)
    }

    /// A reboot has let it go.
    fn is_void(&self, held: &Held) -> bool {
        !held.means.outlives_reboot() && !held.boot.is_empty() && held.boot != self.boot
    }

    /// Pauses one after the other who has not been paused yet.
    pub(super) fn pause_workers(&mut self) {
        for entry in self.config.workers.clone() {
            // Whoever is let go in a moment need not be paused.
            if self.ending.load(SeqCst) {
                break;
            }
            if self.held_by(&entry).is_none_or(|held| held.stage != Stage::Paused) {
                let (result, detail) = match self.pause_worker(&entry) {
                    Ok(true) => ("ok", String::new()),
                    Ok(false) => ("skipped", "it is not running, or somebody else has paused it".into()),
                    Err(failure) => (word(&failure), failure.words),
                };
                self.tell(&entry.name, "pause", result, &detail);
            }
        }
    }

    /// False if there was nothing to pause.
    fn pause_worker(&mut self, entry: &WorkerEntry) -> Result<bool, Failure> {
        let paused = self.record.as_ref().map(|record| record.paused.clone()).unwrap_or_default();
        let until = Instant::now() + entry.timeout.unwrap_or(HOOK_TIMEOUT);
        let looked = self.step(&entry.name, &entry.means, until, &paused, true, |hand, job| hand.ways.look(job));
        let before = self.held_by(entry).cloned();
        // What a reboot has undone was done to somebody else.
        let earlier = before.as_ref().filter(|held| !self.is_void(held)).map(|held| held.found.clone());
        let new = looked.as_ref().ok().cloned().flatten();
        let found = match (earlier, new.clone()) {
            (Some(earlier), Some(new)) => Some(earlier.and(new)),
            (earlier, new) => earlier.or(new),
        };
        let Some(found) = found else {
            self.keep(entry, None).map_err(|error| failure(&error))?;
            return looked.map(|_| false);
        };
        // From here on somebody will know whom to let go.
        let stage = if new.is_some() { Stage::Pausing } else { Stage::Paused };
        let mut held = self.holding(entry, found.clone(), stage);
        if let Some(before) = before.filter(|before| !self.is_void(before)) {
            held.since = before.since;
        }
        self.keep(entry, Some(held)).map_err(|error| failure(&error))?;
        let Some(new) = new else { return looked.map(|_| true) };
        let done = self.step(&entry.name, &entry.means, until, &paused, true, |hand, job| hand.ways.pause(job, &new));
        let found = found.and(done.clone().unwrap_or(new));
        self.note_that(|record| {
            if let Some(held) = record.workers.iter_mut().find(|held| is_of(held, entry)) {
                (held.found, held.stage) = (found, Stage::Paused);
            }
        });
        done.map(|_| true)
    }

    /// Writes down that it is held so, or not at all. Where it cannot be written nothing has changed.
    fn keep(&mut self, entry: &WorkerEntry, now: Option<Held>) -> std::io::Result<()> {
        let Some(record) = &self.record else { return Ok(()) };
        if now.is_none() && self.held_by(entry).is_none() {
            return Ok(());
        }
        let mut record = record.clone();
        record.workers.retain(|held| !is_of(held, entry));
        record.workers.extend(now);
        // In the order in which they are paused; whoever is not configured any more was so before.
        let order = |held: &Held| self.config.workers.iter().position(|entry| is_of(held, entry));
        record.workers.sort_by_key(order);
        self.note.write(&record)?;
        self.record = Some(record);
        self.told.workers(&self.config, self.record.as_ref());
        Ok(())
    }

    /// Lets go, in the opposite order, whose steady time is not longer than `lived`; without it everybody. Returns the
    /// shortest steady time of those who stay, and what failed.
    pub(super) fn resume_workers(&mut self, lived: Option<Duration>) -> (Option<Duration>, Vec<String>) {
        let (mut rest, mut failures) = (None::<Duration>, Vec::new());
        let workers = self.record.as_ref().map(|record| record.workers.clone()).unwrap_or_default();
        for held in workers.iter().rev() {
            match held.steady.filter(|steady| lived.is_some_and(|lived| lived < *steady)) {
                Some(steady) => rest = Some(rest.map_or(steady, |rest| rest.min(steady))),
                None => failures.extend(self.resume_worker(held)),
            }
        }
        (rest, failures)
    }

    /// What is returned says why that failed.
    fn resume_worker(&mut self, held: &Held) -> Option<String> {
        let paused = self.record.as_ref().map(|record| record.paused.clone()).unwrap_or_default();
        let until = Instant::now() + held.timeout.unwrap_or(HOOK_TIMEOUT);
        let void = self.is_void(held);
        let done = match void {
            true => Ok(()),
            false => self
                .step(&held.name, &held.means, until, &paused, false, |hand, job| hand.ways.resume(job, &held.found)),
        };
        match done {
            Ok(()) => {
                self.note_that(|record| record.workers.retain(|other| other != held));
                self.told.workers(&self.config, self.record.as_ref());
                let (result, detail) = if void { ("skipped", "a reboot has let it go") } else { ("ok", "") };
                self.tell(&held.name, "resume", result, detail);
                None
            }
            Err(failure) => {
                self.tell(&held.name, "resume", word(&failure), &failure.words);
                Some(format!("worker {}: {}", held.name, failure.words))
            }
        }
    }

    /// Lets go who is paused and not configured any more, or otherwise; false if that failed. Whoever has but another name
    /// is the same.
    pub(super) fn let_strays_go(&mut self) -> bool {
        let entries = self.config.workers.clone();
        self.note_that(|record| {
            for held in &mut record.workers {
                if !entries.iter().any(|entry| is_of(held, entry))
                    && let Some(entry) = entries.iter().find(|entry| entry.means == held.means)
                {
                    held.name = entry.name.clone();
                }
                if let Some(entry) = entries.iter().find(|entry| is_of(held, entry)) {
                    (held.timeout, held.steady) = (entry.timeout, entry.steady);
                }
            }
        });
        self.told.workers(&self.config, self.record.as_ref());
        let workers = self.record.as_ref().map(|record| record.workers.clone()).unwrap_or_default();
        let strays = workers.iter().rev().filter(|held| !entries.iter().any(|entry| is_of(held, entry)));
        strays.filter_map(|held| self.resume_worker(held)).count() == 0
    }

    fn step<T>(
        &self,
        name: &str,
        means: &Means,
        until: Instant,
        paused: &Paused,
        pausing: bool,
        act: impl FnOnce(&Hand, &Job) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut environment = self.environment(pausing, paused);
        environment.push(("STEADFS_WORKER", name.as_ref()));
        let cut = || pausing && self.ending.load(SeqCst);
        let ending = self.ending.load(SeqCst);
        act(self, &Job { name, means, until, paused, environment: &environment, cut: &cut, ending })
    }

    fn tell(&self, worker: &str, action: &str, result: &str, detail: &str) {
        match result {
            "ok" | "skipped" => tracing::info!(worker, action, result, detail, "worker"),
            _ => tracing::warn!(worker, action, result, detail, "worker"),
        }
        self.told.step(worker, action, result, detail);
    }
}

fn is_of(held: &Held, entry: &WorkerEntry) -> bool {
    held.name == entry.name && held.means == entry.means
}

fn word(failure: &Failure) -> &'static str {
    if failure.timeout { "timeout" } else { "failed" }
}

fn failure(error: &std::io::Error) -> Failure {
    let words = format!("it is not paused, since that cannot be written down: {error}");
    Failure { timeout: false, words }
}
