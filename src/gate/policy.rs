//! The rules of the gate as pure functions: when a call is due, which error it gets, which errors raise a doubt.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Class;
use crate::config::CallPolicy;

/// What the gate knows of the backing at the moment a rule is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// First evidence of the present outage or suspicion.
    pub outage_since: Option<Instant>,
    /// The gate is closed.
    pub closed: bool,
    /// When it opened last.
    pub opened_at: Option<Instant>,
    /// Last time bytes moved on the link.
    pub progress_at: Option<Instant>,
}

/// The limit of a call of that class, from its arrival, on a healthy and quick backing.
pub fn limit(policy: &CallPolicy, class: Class) -> Duration {
    match class {
        Class::Meta | Class::Data => policy.deadline,
        Class::Sync => policy.sync_deadline,
    }
}

/// When the outage, or the suspicion, is old enough to fail calls at once.
pub fn overdue_at(policy: &CallPolicy, weather: &Weather) -> Option<Instant> {
    weather.outage_since.map(|since| since + policy.deadline + policy.hold)
}

/// True if an old outage fails calls of that class. As long as the gate is open there is only a suspicion, and a server
/// that is busy with an fsync looks like that: those are let finish.
pub fn is_failed_by_outage(weather: &Weather, class: Class) -> bool {
    weather.closed || class != Class::Sync
}

/// True of calls with a shorter limit than the configured one (the root, statfs): when they are late their callers are told what
/// is known, and no error.
pub fn is_answered_from_memory(policy: &CallPolicy, limit: Duration) -> bool {
    limit < policy.deadline
}

/// When a call that arrived then and has that limit must be answered.
pub fn due_at(policy: &CallPolicy, weather: &Weather, class: Class, arrived: Instant, limit: Duration) -> Instant {
    // What was held in an outage has not been tried yet: its time begins anew, for as long as it may be held.
    let held_until =
        weather.opened_at.filter(|opened| *opened > arrived).map(|opened| opened.min(arrived + policy.hold));
    let begins = held_until.unwrap_or(arrived);
    let mut due = begins + limit;
    if weather.closed {
        due = arrived + limit + policy.hold;
    } else if class == Class::Data {
        // A deadline counts silence, not slowness.
        if let Some(progress) = weather.progress_at {
            due = due.max(progress + limit).min(begins + policy.sync_deadline.max(limit));
        }
    }
    match overdue_at(policy, weather).filter(|_| is_failed_by_outage(weather, class)) {
        Some(overdue) => due.min(overdue.max(arrived)),
        None => due,
    }
}

/// The error of a call that was not done in time.
pub fn late_errno(policy: &CallPolicy, weather: &Weather) -> Errno {
    if weather.outage_since.is_some() { policy.outage_errno } else { Errno::ETIMEDOUT }
}

/// Errors that may mean a dead backing rather than an answer of a live one: those of a FUSE connection that has gone
/// (ENOTCONN, ECONNABORTED), sshfs's EIO for a lost link, and those of a network filesystem under `dir:`.
pub fn raises_doubt(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOTCONN
            | Errno::ECONNABORTED
            | Errno::EIO
            | Errno::ESHUTDOWN
            | Errno::ECONNRESET
            | Errno::EPIPE
            | Errno::ENODEV
            | Errno::ETIMEDOUT
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::ENETDOWN
            | Errno::ESTALE
    )
}

/// A call on a name that is inside for so many deadlines, while questions that were asked later are answered, has lost its
/// answer. Servers serve in order, as a rule; the rest is for those that do not and have a slow disk.
const LOST: u32 = 6;

/// How long a call may be inside before an answer to a later question shows that its own has been lost; `None` if that shows
/// nothing. What is in flight is kept so small that data of twice the sync deadline would be a link of a kilobyte a second. A
/// server's disk may take any time to sync.
pub fn lost_after(class: Class, policy: &CallPolicy) -> Option<Duration> {
    match class {
        Class::Meta => Some(policy.deadline * LOST),
        Class::Data => Some(policy.sync_deadline.max(policy.deadline * LOST) * 2),
        Class::Sync => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_lost_when_much_later_questions_are_answered() {
        let policy = CallPolicy::default();
        let after = |class| lost_after(class, &policy).map(|limit| limit.as_secs());
        assert_eq!([Class::Meta, Class::Data, Class::Sync].map(after), [Some(30), Some(60), None]);
        let patient = CallPolicy { sync_deadline: Duration::from_secs(300), ..policy };
        assert_eq!(lost_after(Class::Data, &patient), Some(Duration::from_secs(600)), "whoever waits longer means it");
    }

    const S: Duration = Duration::from_secs(1);

    fn fair() -> Weather {
        Weather { outage_since: None, closed: false, opened_at: None, progress_at: None }
    }

    #[test]
    fn an_ordinary_call_is_due_at_its_deadline() {
        let (policy, t) = (CallPolicy::default(), Instant::now());
        assert_eq!(due_at(&policy, &fair(), Class::Meta, t, 5 * S), t + 5 * S);
        assert_eq!(due_at(&policy, &fair(), Class::Sync, t, 30 * S), t + 30 * S);
    }

    #[test]
    fn moving_bytes_extend_data_calls_only_and_only_to_the_sync_deadline() {
        let (policy, t) = (CallPolicy::default(), Instant::now());
        let moving = Weather { progress_at: Some(t + 4 * S), ..fair() };
        assert_eq!(due_at(&policy, &moving, Class::Data, t, 5 * S), t + 9 * S);
        assert_eq!(due_at(&policy, &moving, Class::Meta, t, 5 * S), t + 5 * S);
        let long = Weather { progress_at: Some(t + 28 * S), ..fair() };
        assert_eq!(due_at(&policy, &long, Class::Data, t, 5 * S), t + 30 * S);
    }

    #[test]
    fn an_old_outage_fails_even_an_fsync() {
        let (policy, t) = (CallPolicy::default(), Instant::now());
        let outage = Weather { outage_since: Some(t + 3 * S), closed: true, ..fair() };
        assert_eq!(due_at(&policy, &outage, Class::Sync, t, 30 * S), t + 8 * S);
        assert_eq!(due_at(&policy, &outage, Class::Meta, t + 4 * S, 5 * S), t + 8 * S);
        assert_eq!(due_at(&policy, &outage, Class::Meta, t + 20 * S, 5 * S), t + 20 * S);
    }

    #[test]
    fn an_old_suspicion_fails_what_does_not_sync() {
        let (policy, t) = (CallPolicy::default(), Instant::now());
        let suspicion = Weather { outage_since: Some(t), ..fair() };
        assert_eq!(due_at(&policy, &suspicion, Class::Meta, t + 3 * S, 5 * S), t + 5 * S);
        assert_eq!(due_at(&policy, &suspicion, Class::Sync, t + 3 * S, 30 * S), t + 33 * S);
    }

    #[test]
    fn hold_lets_calls_wait_longer_in_an_outage() {
        let t = Instant::now();
        let policy = CallPolicy { hold: 60 * S, ..CallPolicy::default() };
        let outage = Weather { outage_since: Some(t), closed: true, ..fair() };
        assert_eq!(due_at(&policy, &outage, Class::Meta, t, 5 * S), t + 65 * S);
    }

    #[test]
    fn what_was_held_has_its_whole_deadline_when_the_outage_is_over() {
        let t = Instant::now();
        let policy = CallPolicy { hold: 60 * S, ..CallPolicy::default() };
        let open = Weather { opened_at: Some(t + 40 * S), ..fair() };
        assert_eq!(due_at(&policy, &open, Class::Meta, t, 5 * S), t + 45 * S);
        assert_eq!(due_at(&policy, &open, Class::Meta, t + 41 * S, 5 * S), t + 46 * S);
        let moving = Weather { progress_at: Some(t + 50 * S), ..open };
        assert_eq!(due_at(&policy, &moving, Class::Data, t, 5 * S), t + 55 * S);
        // Never longer than it may be held, and not held at all by default.
        let late = Weather { opened_at: Some(t + 63 * S), ..fair() };
        assert_eq!(due_at(&policy, &late, Class::Meta, t, 5 * S), t + 65 * S);
        assert_eq!(due_at(&CallPolicy::default(), &open, Class::Meta, t, 5 * S), t + 5 * S);
    }

    #[test]
    fn a_late_call_gets_the_outage_errno_only_in_an_outage() {
        let policy = CallPolicy { outage_errno: Errno::EHOSTDOWN, ..CallPolicy::default() };
        assert_eq!(late_errno(&policy, &fair()), Errno::ETIMEDOUT);
        let doubted = Weather { outage_since: Some(Instant::now()), ..fair() };
        assert_eq!(late_errno(&policy, &doubted), Errno::EHOSTDOWN);
    }
}
