//! When a silent generation is pronounced dead: a pure rule.
//!
//! A probe that is not answered is evidence, not a verdict: on a saturated link it waits behind megabytes, and a server
//! that syncs a slow disk answers nothing else meanwhile (sftp-server serves one request at a time). So silence counts
//! from the last byte that moved, and how much of it is too much depends on what could explain it:
//!
//! | what is seen | silence allowed |
//! | --- | --- |
//! | a process of ours is stopped (state T) | `STOPPED` |
//! | the peer's kernel does not acknowledge: the link is dead | `probe_deadline` |
//! | nothing else was inside before the probe | `probe_deadline` |
//! | a call was inside before the probe, the link acknowledges | `BUSY` |
//! | an fsync was inside before the probe, the link acknowledges | `SYNCING` |
//!
//! A server that answers probes may still have lost the answer to a call. That holds a thread of ours and its bytes
//! of the window, and with sshfs every other name of its directory, for ever: such a generation is of no use either
//! (`has_lost_an_answer`).

use std::time::{Duration, Instant};

use crate::backing::Vitals;
use crate::gate::Inside;

/// Silence allowed when one of our own processes is stopped: it will not answer.
pub const STOPPED: Duration = Duration::from_millis(800);
/// Silence allowed to a server that is busy with a call; less than the default deadline, so that callers of a server
/// that froze are still served by the next generation in time.
pub const BUSY: Duration = Duration::from_millis(3500);
/// Silence allowed to a server that is busy with an fsync.
pub const SYNCING: Duration = Duration::from_secs(6);

/// True if nothing will ever come of one of the calls inside: by the answer to a probe that was sent at `probe_sent`.
pub fn has_lost_an_answer(inside: &Inside, probe_sent: Instant) -> bool {
    inside.lost_at.is_some_and(|at| probe_sent >= at)
}

/// What the rule looks at.
#[derive(Debug, Clone, Copy)]
pub struct Signs {
    /// When the oldest unanswered probe was sent.
    pub probe_sent: Instant,
    /// Signs of life of the generation.
    pub vitals: Vitals,
    /// What is inside the generation.
    pub inside: Inside,
}

/// When the generation is dead if nothing changes.
pub fn dead_at(signs: &Signs, probe_deadline: Duration) -> Instant {
    let silent_since = signs.vitals.progress_at.map_or(signs.probe_sent, |at| at.max(signs.probe_sent));
    let before_probe = |since: Option<Instant>| since.is_some_and(|since| since <= signs.probe_sent);
    let allowed = if signs.vitals.stopped {
        STOPPED.min(probe_deadline)
    } else if !signs.vitals.link_acked {
        probe_deadline
    } else if before_probe(signs.inside.sync) {
        SYNCING.max(probe_deadline)
    } else if before_probe(signs.inside.any) {
        BUSY.max(probe_deadline)
    } else {
        probe_deadline
    };
    silent_since + allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    fn signs(at: Instant) -> Signs {
        Signs { probe_sent: at, vitals: Vitals::default(), inside: Inside::default() }
    }

    #[test]
    fn a_dead_link_is_dead_after_the_probe_deadline_whatever_is_inside() {
        let t = Instant::now();
        let inside = Inside { any: Some(t), sync: Some(t), lost_at: None };
        assert_eq!(dead_at(&Signs { inside, ..signs(t) }, LIMIT), t + LIMIT);
    }

    #[test]
    fn moving_bytes_postpone_the_verdict() {
        let t = Instant::now();
        let vitals = Vitals { progress_at: Some(t + Duration::from_secs(50)), ..Vitals::default() };
        assert_eq!(dead_at(&Signs { vitals, ..signs(t) }, LIMIT), t + Duration::from_secs(52));
    }

    #[test]
    fn a_server_that_syncs_gets_more_time_if_the_link_is_good_and_the_sync_came_first() {
        let t = Instant::now();
        let vitals = Vitals { link_acked: true, ..Vitals::default() };
        let inside = Inside { any: Some(t), sync: Some(t), lost_at: None };
        assert_eq!(dead_at(&Signs { vitals, inside, ..signs(t) }, LIMIT), t + SYNCING);
        let later = Inside { any: Some(t + LIMIT), sync: Some(t + LIMIT), lost_at: None };
        assert_eq!(dead_at(&Signs { vitals, inside: later, ..signs(t) }, LIMIT), t + LIMIT);
        let busy = Inside { any: Some(t), sync: None, lost_at: None };
        assert_eq!(dead_at(&Signs { vitals, inside: busy, ..signs(t) }, LIMIT), t + BUSY);
    }

    #[test]
    fn a_stopped_process_is_not_waited_for() {
        let t = Instant::now();
        let vitals = Vitals { stopped: true, link_acked: true, ..Vitals::default() };
        assert_eq!(dead_at(&Signs { vitals, ..signs(t) }, LIMIT), t + STOPPED);
    }
}
