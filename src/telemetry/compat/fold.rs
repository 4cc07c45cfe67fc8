//! What another watchdog would have called its applies, made of the supervisor's events. Pure: time comes with the events.
//!
//! An apply is the repair of one outage. It counts at the first start that fails, or when the outage is over, once an
//! outage. Later failures of the same outage change its words and not its time, so that "the last apply failed, a day ago"
//! comes true while a server stays away. The first start of a daemon repairs nothing; nor does one that takes the place of
//! another, unless it has to start a generation and cannot.

use std::time::{Duration, SystemTime};

use crate::supervisor::Event;

/// An hour, of `apply_1h`.
pub const HOUR: Duration = Duration::from_secs(3600);
/// A day, of `apply_24h`.
pub const DAY: Duration = Duration::from_secs(24 * 3600);
/// For how long single applies are remembered: reports look a week back as a rule.
pub const REMEMBERED: Duration = Duration::from_secs(31 * 24 * 3600);
/// Most of them that are: one each five minutes for a week, and more. Others are told by `total` alone.
const MOST: usize = 3000;

/// How the last apply went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Last {
    /// When.
    pub at: SystemTime,
    /// The outage ended.
    pub ok: bool,
}

/// The present outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// A daemon starts for the first time.
    First,
    /// A daemon takes the place of another.
    Succession,
    /// A backing died.
    Repair,
    /// The same, and it has been counted.
    Counted,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applies {
    /// All that ever were.
    pub total: u64,
    /// When, oldest first, as far back as [`REMEMBERED`].
    pub times: Vec<SystemTime>,
    /// The last one.
    pub last: Option<Last>,
    /// What was wrong with it, in words.
    pub errors: Vec<String>,
    outage: Option<Outage>,
}

impl Applies {
    /// What was known before, of a daemon that has ended.
    pub fn known(total: u64, times: Vec<SystemTime>, last: Option<Last>, errors: Vec<String>) -> Applies {
        Applies { total: total.max(times.len() as u64), times, last, errors, outage: None }
    }

    /// Takes an event that happened at `at` into account.
    pub fn fold(&mut self, at: SystemTime, event: &Event) {
        match event {
            Event::OutageBegan { reason, .. } => {
                self.outage = Some(match reason.as_str() {
                    "start" => Outage::First,
                    "succession" => Outage::Succession,
                    _ => Outage::Repair,
                });
            }
            Event::StartFailed { detail, .. } => {
                match self.outage {
                    None | Some(Outage::First) => return,
                    Some(Outage::Succession | Outage::Repair) => self.count(at, false),
                    Some(Outage::Counted) => {}
                }
                self.outage = Some(Outage::Counted);
                self.errors = vec![detail.clone()];
            }
            Event::Recovered { .. } => {
                match self.outage.take() {
                    Some(Outage::Repair) => self.count(at, true),
                    Some(Outage::Counted) => self.last = Some(Last { at, ok: true }),
                    None | Some(Outage::First | Outage::Succession) => return,
                }
                self.errors.clear();
            }
            _ => {}
        }
    }

    /// Applies within `window` before `now`.
    pub fn within(&self, now: SystemTime, window: Duration) -> usize {
        let since = now.checked_sub(window).unwrap_or(SystemTime::UNIX_EPOCH);
        self.times.iter().filter(|&&at| at >= since).count()
    }

    fn count(&mut self, at: SystemTime, ok: bool) {
        self.total = self.total.saturating_add(1);
        self.times.push(at);
        let since = at.checked_sub(REMEMBERED).unwrap_or(SystemTime::UNIX_EPOCH);
        self.times.retain(|&time| time >= since);
        let surplus = self.times.len().saturating_sub(MOST);
        self.times.drain(..surplus);
        self.last = Some(Last { at, ok });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + seconds)
    }

    fn began(reason: &str) -> Event {
        Event::OutageBegan { since: at(0), reason: reason.into(), detail: String::new() }
    }

    fn failed(detail: &str) -> Event {
        Event::StartFailed { generation: 1, detail: detail.into(), halted: false, retry_in_secs: Some(1.0) }
    }

    fn recovered() -> Event {
        Event::Recovered { generation: 2, outage_secs: 1.0 }
    }

    fn folded(events: &[(u64, Event)]) -> Applies {
        let mut applies = Applies::default();
        events.iter().for_each(|(seconds, event)| applies.fold(at(*seconds), event));
        applies
    }

    #[test]
    fn a_repair_counts_once_however_often_it_failed() {
        let failing = [(1, began("process_exit")), (2, failed("no route")), (9, failed("refused"))];
        let applies = folded(&failing);
        assert_eq!(
            (applies.total, applies.last, applies.errors.as_slice()),
            (1, Some(Last { at: at(2), ok: false }), &["refused".into()][..])
        );
        let applies = folded(&[&failing[..], &[(20, recovered())]].concat());
        assert_eq!((applies.total, applies.last, applies.errors.len()), (1, Some(Last { at: at(20), ok: true }), 0));
        let applies = folded(&[(1, began("probe_late")), (3, recovered())]);
        assert_eq!((applies.total, applies.last), (1, Some(Last { at: at(3), ok: true })));
    }

    #[test]
    fn a_start_is_no_repair_and_a_succession_only_if_its_start_fails() {
        for reason in ["start", "succession"] {
            assert_eq!(folded(&[(1, began(reason)), (2, recovered())]).total, 0, "{reason}");
        }
        assert_eq!(folded(&[(1, began("start")), (2, failed("x")), (3, recovered())]), Applies::default());
        assert_eq!(folded(&[(1, began("succession")), (2, failed("x"))]).total, 1);
        assert_eq!(folded(&[(2, failed("x")), (3, recovered())]), Applies::default(), "nothing is known of the outage");
    }

    proptest! {
        /// Outages at any times, of which some fail first: the windows hold what a plain count of their times says.
        #[test]
        fn windows_hold_what_was_within_them(
            mut gaps in proptest::collection::vec((1u64..40_000, any::<bool>(), 0u64..4), 0..60), later in 0u64..200_000,
        ) {
            let (mut now, mut applies, mut expected) = (0, Applies::default(), Vec::new());
            for (gap, ends, failures) in gaps.drain(..) {
                now += gap;
                applies.fold(at(now), &began("call_late"));
                let mut counted = None;
                for _ in 0..failures {
                    now += 1;
                    applies.fold(at(now), &failed("x"));
                    counted.get_or_insert(now);
                }
                if ends {
                    now += 1;
                    applies.fold(at(now), &recovered());
                    counted.get_or_insert(now);
                    prop_assert_eq!(applies.last, Some(Last { at: at(now), ok: true }));
                }
                expected.extend(counted);
            }
            now += later;
            prop_assert_eq!(applies.total, expected.len() as u64);
            for window in [HOUR, DAY] {
                let plain = expected.iter().filter(|&&time| time + window.as_secs() >= now).count();
                prop_assert_eq!(applies.within(at(now), window), plain);
            }
            prop_assert!(applies.times.iter().all(|&time| time + REMEMBERED >= *applies.times.last().unwrap_or(&time)));
            // Written down and known again, it is the same.
            let known = Applies::known(applies.total, applies.times.clone(), applies.last, applies.errors.clone());
            prop_assert_eq!(known.within(at(now), DAY), applies.within(at(now), DAY));
            prop_assert_eq!(known.total, applies.total);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_counted_is_not_lost() {
        let (mut applies, count) = (Applies::default(), MOST as u64 + 100);
        for number in 0..count {
            applies.fold(at(number), &began("x"));
            applies.fold(at(number), &recovered());
        }
        assert_eq!((applies.total, applies.times.len()), (count, MOST));
        assert_eq!(applies.times.first(), Some(&at(100)), "the oldest go");
    }
}
