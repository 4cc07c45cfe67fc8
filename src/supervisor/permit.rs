//! Permits: what a repair needs before it may start (promise P3). Pure policy, with time and sightings passed in.
//!
//! ```text
//!   an outage, the server answers          every permit allows it
//!        ─────────▶ ask ──────────────────────────────────────────▶ start, noted for the limits
//!                    │ ▲
//!         held by …  │ │ time passes, the lock is released, the enable file appears
//!                    ▼ │
//!                   held ───────────────────────────────────────▶ start, noted for the limits as well
//!                          somebody orders it (`recover --apply`)
//! ```
//!
//! | Permit | Holds a repair back | Until | A further start of the same repair |
//! | --- | --- | --- | --- |
//! | `deploy_lock` | somebody holds the lock, or it cannot be probed and is younger than `deploy_lock_max_age` | it is released; the age is reached | held back too |
//! | `enable_file` | it is not there, or that cannot be told | it is there | held back too |
//! | `confirmations` | fewer looks than that, `confirm_interval` apart, found the backing dead | the last look | free |
//! | `min_age` | the outage is younger | it is as old | free |
//! | `cool_down` | another repair started within that time | it is over | free |
//! | `hourly_limit` | `max_per_hour` repairs started within an hour | the oldest of them is an hour old | free |
//! | `daily_limit` | the same for 24 hours | the same | free |
//!
//! A repair begins with its first start and ends when calls succeed: starts that fail are the back-off's business. The first
//! start of a daemon is no repair, nor is it one to take over what a predecessor left alive.
//!
//! Ages are kept on the clock that nobody sets. What is written down for the next daemon is wall-clock time, and read as
//! an age once: a start that seems to lie in the future counts as one that has just been, so that a clock that was set
//! back holds nothing back for longer than a window.

pub(super) mod eyes;
pub mod look;
pub mod record;
mod words;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::PermitConfig;
pub use look::{EnableLook, LockLook, Look};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86400);
/// Starts that are kept at least; a link that flaps for a day has more, and no limit that asks for them.
const KEPT: usize = 1000;
/// What was seen of a file is believed for so long; in an outage it is looked at more often.
const FRESH: Duration = Duration::from_secs(3);

/// What can hold a repair back, by the stable words of metrics and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// A deploy is under way.
    DeployLock,
    /// The enable file is not there.
    EnableFile,
    /// Too few looks have found the backing dead.
    Confirmations,
    /// The outage is too young.
    MinAge,
    /// The last repair started too short a time ago.
    CoolDown,
    /// Too many repairs within an hour.
    HourlyLimit,
    /// Too many repairs within 24 hours.
    DailyLimit,
}

impl HeldBy {
    /// All of them.
    pub const ALL: [HeldBy; 7] = [
        HeldBy::DeployLock,
        HeldBy::EnableFile,
        HeldBy::Confirmations,
        HeldBy::MinAge,
        HeldBy::CoolDown,
        HeldBy::HourlyLimit,
        HeldBy::DailyLimit,
    ];

    /// The stable word.
    pub fn name(self) -> &'static str {
        match self {
            HeldBy::DeployLock => "deploy_lock",
            HeldBy::EnableFile => "enable_file",
            HeldBy::Confirmations => "confirmations",
            HeldBy::MinAge => "min_age",
            HeldBy::CoolDown => "cool_down",
            HeldBy::HourlyLimit => "hourly_limit",
            HeldBy::DailyLimit => "daily_limit",
        }
    }
}

/// One permit that is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Which one.
    pub by: HeldBy,
    /// When it will be if nothing else changes; absent if somebody has to act.
    pub until: Option<Instant>,
}

/// What is known of the outage that a repair is to end.
#[derive(Debug, Clone, Copy)]
pub struct Sight {
    /// Its first evidence.
    pub outage_since: Instant,
    /// The repair has started before, in vain.
    pub begun: bool,
}

/// The answer to the question whether a repair may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It may.
    Granted,
    /// It may not; of several permits the one that holds it back longest.
    Held(Hold),
    /// A file has not been looked at lately.
    Unseen,
}

/// The newest look at a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen<T> {
    at: Instant,
    /// Since when every look has found the same.
    since: Instant,
    what: T,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Permit {
    config: PermitConfig,
    /// Starts of repairs, oldest first, as far as they may still matter.
    starts: Vec<Instant>,
    lock: Option<Seen<LockLook>>,
    enable: Option<Seen<EnableLook>>,
    /// Looks in a row that found the backing dead, and the last of them.
    confirmed: Option<(u32, Instant)>,
    /// When the backing was pronounced dead. What was seen before may be the cause: a deploy takes its lock first.
    verdict: Option<Instant>,
}

impl Permit {
    /// With the starts of earlier repairs, oldest first.
    pub fn new(config: PermitConfig, starts: Vec<Instant>) -> Permit {
        Permit { config, starts, ..Permit::default() }
    }

    /// What it goes by.
    pub fn config(&self) -> &PermitConfig {
        &self.config
    }

    /// Goes by that from now on. What is known of a file that is another one now is forgotten.
    pub fn set_config(&mut self, config: PermitConfig) {
        self.lock.take_if(|_| config.deploy_lock != self.config.deploy_lock);
        self.enable.take_if(|_| config.enable_file != self.config.enable_file);
        self.config = config;
    }

    /// Takes a look at a file in.
    pub fn see(&mut self, now: Instant, look: Look) {
        fn seen<T>(old: Option<Seen<T>>, now: Instant, what: T, same: fn(&T, &T) -> bool) -> Option<Seen<T>> {
            let since = old.filter(|old| same(&old.what, &what)).map_or(now, |old| old.since);
            Some(Seen { at: now, since, what })
        }
        fn same<T>(a: &T, b: &T) -> bool {
            std::mem::discriminant(a) == std::mem::discriminant(b)
        }
        match look {
            Look::Lock(what) if self.config.deploy_lock.is_some() => {
                self.lock = seen(self.lock.take(), now, what, same);
            }
            Look::Enable(what) if self.config.enable_file.is_some() => {
                self.enable = seen(self.enable.take(), now, what, same);
            }
            // At what a former configuration named.
            Look::Lock(_) | Look::Enable(_) => {}
        }
    }

    /// The backing has been pronounced dead: the first look that found it so.
    pub fn verdict(&mut self, now: Instant) {
        self.verdict = Some(now);
        self.confirmed = Some((1, now));
    }

    /// The backing is still dead.
    pub fn confirm(&mut self, now: Instant) {
        match &mut self.confirmed {
            Some((looks, last)) if now >= *last + self.config.confirm_interval => {
                (*looks, *last) = (looks.saturating_add(1), now);
            }
            Some(_) => {}
            None => self.verdict(now),
        }
    }

    /// A repair starts.
    pub fn started(&mut self, now: Instant) {
        let kept = DAY.max(self.config.cool_down);
        self.starts.retain(|&start| now.saturating_duration_since(start) < kept);
        self.starts.push(now);
        let most = KEPT.max(self.config.max_per_hour as usize).max(self.config.max_per_day as usize);
        self.starts.drain(..self.starts.len().saturating_sub(most));
    }

    /// Starts of repairs that may still matter, oldest first.
    pub fn starts(&self) -> &[Instant] {
        &self.starts
    }

    /// May a repair start?
    pub fn ask(&self, now: Instant, sight: &Sight) -> Answer {
        let since = self.verdict;
        let fresh =
            |at: Option<Instant>| at.is_some_and(|at| now < at + FRESH && since.is_none_or(|since| at >= since));
        let unseen = (self.config.deploy_lock.is_some() && !fresh(self.lock.as_ref().map(|seen| seen.at)))
            || (self.config.enable_file.is_some() && !fresh(self.enable.as_ref().map(|seen| seen.at)));
        if unseen {
            return Answer::Unseen;
        }
        let longer = |a: &Hold, b: &Hold| match (a.until, b.until) {
            (_, None) => a.until.is_some(),
            (None, _) => false,
            (Some(a), Some(b)) => b > a,
        };
        let longest = self.holds(now, sight).into_iter().reduce(|a, b| if longer(&a, &b) { b } else { a });
        longest.map_or(Answer::Granted, Answer::Held)
    }

    /// All that hold a repair back, in the order of the table, by what was seen last.
    pub fn holds(&self, now: Instant, sight: &Sight) -> Vec<Hold> {
        let config = &self.config;
        let mut holds = Vec::new();
        let mut hold = |by, until| holds.push(Hold { by, until });
        if self.lock_active(now) {
            hold(HeldBy::DeployLock, self.lock_until());
        }
        if !self.enabled() {
            hold(HeldBy::EnableFile, None);
        }
        if sight.begun {
            return holds;
        }
        let (looks, last) = self.confirmed.unwrap_or((1, now));
        if looks < config.confirmations {
            hold(HeldBy::Confirmations, Some(last + config.confirm_interval * (config.confirmations - looks)));
        }
        let mut wait = |by, until: Instant| {
            if now < until {
                hold(by, Some(until));
            }
        };
        wait(HeldBy::MinAge, sight.outage_since + config.min_age);
        if let Some(&last) = self.starts.last() {
            wait(HeldBy::CoolDown, last + config.cool_down);
        }
        for (by, limit, window) in
            [(HeldBy::HourlyLimit, config.max_per_hour, HOUR), (HeldBy::DailyLimit, config.max_per_day, DAY)]
        {
            // The one that has to leave the window before another may enter it.
            if limit > 0
                && let Some(index) = self.starts.len().checked_sub(limit as usize)
            {
                wait(by, self.starts[index] + window);
            }
        }
        holds
    }

    /// True while the deploy lock counts as held.
    pub fn lock_active(&self, now: Instant) -> bool {
        match self.lock.as_ref().map(|seen| &seen.what) {
            Some(LockLook::Held { .. }) => true,
            Some(LockLook::Unprobed { .. }) => self.lock_until().is_some_and(|until| now < until),
            Some(LockLook::Absent | LockLook::Free { .. }) | None => false,
        }
    }

    /// When one that cannot be probed no longer counts: by its own age, or by the time that it has been found so.
    fn lock_until(&self) -> Option<Instant> {
        let seen = self.lock.as_ref()?;
        let LockLook::Unprobed { age, .. } = seen.what else { return None };
        let limit = self.config.lock_max_age();
        Some((seen.since + limit).min(seen.at + limit.saturating_sub(age)))
    }

    /// Age of the deploy lock's file; absent if there is none.
    pub fn lock_age(&self, now: Instant) -> Option<Duration> {
        let seen = self.lock.as_ref()?;
        Some(seen.what.age()? + now.saturating_duration_since(seen.at))
    }

    /// Since when the deploy lock has been seen to be held.
    pub fn lock_held_since(&self) -> Option<Instant> {
        self.lock.as_ref().filter(|seen| matches!(seen.what, LockLook::Held { .. })).map(|seen| seen.since)
    }

    /// False while the enable file is missing. One that has not been looked at yet is not known to be.
    pub fn enabled(&self) -> bool {
        self.enable.as_ref().is_none_or(|seen| seen.what == EnableLook::There)
    }
}

#[cfg(test)]
mod tests;
