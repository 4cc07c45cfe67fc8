//! How one worker is paused and let go: by each of the means that can be configured.

mod cgroup;
mod container;
mod flag;
mod limit;
mod signal;
mod unit;

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use super::hooks::{self, Ended};
use super::pause::{Found, Paused};
use crate::config::{HookCommand, Means, UnitBy};
use limit::Limit;

/// Bytes of the answer of a program that is asked something: some thousand containers.
const ANSWER: usize = 1 << 20;

/// One step of one worker.
pub(super) struct Job<'a> {
    pub(super) name: &'a str,
    pub(super) means: &'a Means,
    /// When it has to be done.
    pub(super) until: Instant,
    /// The outage.
    pub(super) paused: &'a Paused,
    pub(super) environment: &'a [(&'a str, &'a OsStr)],
    /// True once it need not be done any more.
    pub(super) cut: &'a dyn Fn() -> bool,
    /// steadfs ends: what waits for that must not be waited for.
    pub(super) ending: bool,
}

impl Job<'_> {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Runs a program to its end.
    fn run(&self, argv: Vec<String>, environment: &[(&str, &OsStr)]) -> Result<String, Failure> {
        let words = argv.iter().take(2).cloned().collect::<Vec<_>>().join(" ");
        let ended = hooks::run_keeping(ANSWER, &HookCommand { argv }, environment, self.left(), self.cut);
        let timeout = matches!(ended, Ended::Timeout(_));
        match ended {
            Ended::Ok(output) => Ok(output),
            Ended::Failed(output) | Ended::Timeout(output) => {
                let words = format!("{words}: {}", output.trim()).chars().take(WORDS).collect();
                Err(Failure { timeout, words })
            }
        }
    }

    /// Runs it without more in its environment than the daemon has.
    fn ask(&self, argv: &[&str]) -> Result<String, Failure> {
        self.run(argv.iter().copied().map(String::from).collect(), &[])
    }
}

/// Characters of what a program said that failed.
const WORDS: usize = 500;

/// A step that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// Because it took too long.
    pub(super) timeout: bool,
    /// What happened, for people.
    pub(super) words: String,
}

impl Failure {
    fn of(words: impl std::fmt::Display) -> Failure {
        Failure { timeout: false, words: words.to_string() }
    }

    fn late(words: impl std::fmt::Display) -> Failure {
        Failure { timeout: true, words: words.to_string() }
    }
}

/// What can be done to a worker. Nothing of it is written down here: its caller does that before each step.
pub(super) trait Ways: Send {
    /// Finds whom there is to pause, and changes nothing. `None`: it is down already, or somebody else has paused it.
    fn look(&self, job: &Job) -> Result<Option<Found>, Failure>;
    /// Pauses what was found. What is returned is to be let go: it may be more, such as children that came meanwhile.
    fn pause(&self, job: &Job, found: &Found) -> Result<Found, Failure>;
    /// Lets it go. What has ended meanwhile, or was let go by somebody else, is no failure.
    fn resume(&self, job: &Job, found: &Found) -> Result<(), Failure>;
}

/// The real ones.
pub(super) struct Real {
    /// systemd's program.
    pub(super) systemctl: String,
    limit: Limit,
}

impl Real {
    pub(super) fn new() -> Real {
        Real::with_systemctl("systemctl")
    }

    pub(super) fn with_systemctl(systemctl: &str) -> Real {
        Real { systemctl: systemctl.into(), limit: Limit::default() }
    }
}

impl Ways for Real {
    fn look(&self, job: &Job) -> Result<Option<Found>, Failure> {
        match job.means {
            Means::Flag { file } => flag::look(&self.limit, job, file),
            Means::Command { .. } => Ok(Some(Found::Named)),
            Means::Signal { pid_file, pause, group, .. } => signal::look(&self.limit, job, pid_file, *pause, *group),
            Means::Unit { unit, by } => unit::look(&self.systemctl, job, unit, *by),
            Means::Cgroup { path } => cgroup::look(path),
            Means::Container { engine, names, label } => container::look(job, engine, names, label.as_deref()),
        }
    }

    fn pause(&self, job: &Job, found: &Found) -> Result<Found, Failure> {
        match job.means {
            Means::Flag { file } => flag::raise(&self.limit, job, file)?,
            Means::Command { pause, .. } => _ = job.run(pause.argv.clone(), job.environment)?,
            Means::Signal { pause, .. } => return signal::pause(found, *pause),
            Means::Unit { unit, by: UnitBy::Stop } => unit::stop(&self.systemctl, job, unit)?,
            Means::Unit { unit, by: UnitBy::Freeze } => unit::freeze(&self.systemctl, job, unit)?,
            Means::Cgroup { path } => cgroup::freeze(job, path)?,
            Means::Container { engine, names, label } => {
                container::pause(job, engine, names, label.as_deref(), found)?;
            }
        }
        Ok(found.clone())
    }

    fn resume(&self, job: &Job, found: &Found) -> Result<(), Failure> {
        match job.means {
            Means::Flag { file } => flag::lower(&self.limit, job, file),
            Means::Command { resume, .. } => job.run(resume.argv.clone(), job.environment).map(drop),
            Means::Signal { pid_file, resume, group, .. } => {
                signal::resume(&self.limit, job, pid_file, *resume, *group, found)
            }
            Means::Unit { unit, by: UnitBy::Stop } => unit::start(&self.systemctl, job, unit),
            Means::Unit { unit, by: UnitBy::Freeze } => unit::thaw(&self.systemctl, job, unit),
            Means::Cgroup { path } => cgroup::thaw(path, found),
            Means::Container { engine, names, label } => container::resume(job, engine, names, label.as_deref(), found),
        }
    }
}

#[cfg(test)]
mod tests;
