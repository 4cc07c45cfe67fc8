//! When there were outages, as the events tell. Pure: time comes with the events.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use crate::supervisor::Event;

/// Most outages that are remembered: more than one every three minutes of a day look like a bar anyway.
const KEPT: usize = 500;

/// One outage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// First evidence.
    pub since: SystemTime,
    /// When calls succeeded again; none if they do not yet.
    pub until: Option<SystemTime>,
    /// What it began with, as in [`Event::OutageBegan`].
    pub reason: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct History(VecDeque<Outage>);

impl History {
    /// Takes an event that happened at `at` into account.
    pub fn fold(&mut self, at: SystemTime, event: &Event) {
        match event {
            Event::OutageBegan { since, reason, .. } => {
                // One that nobody ended has ended when the next begins.
                self.end(*since);
                if self.0.len() == KEPT {
                    self.0.pop_front();
                }
                self.0.push_back(Outage { since: *since, until: None, reason: reason.clone() });
            }
            // As long as it says, whatever became of the clock meanwhile.
            Event::Recovered { outage_secs, .. } => {
                let since = self.0.back().map_or(at, |last| last.since);
                let lasted = Duration::try_from_secs_f64(*outage_secs).unwrap_or_default();
                self.end(since.checked_add(lasted).unwrap_or(at));
            }
            _ => {}
        }
    }

    /// Oldest first, the present one last.
    pub fn outages(&self) -> Vec<Outage> {
        self.0.iter().cloned().collect()
    }

    fn end(&mut self, at: SystemTime) {
        if let Some(last) = self.0.back_mut() {
            last.until.get_or_insert(at.max(last.since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_begin_and_end() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let began = |seconds| Event::OutageBegan { since: at(seconds), reason: "asked".into(), detail: String::new() };
        let recovered = Event::Recovered { generation: 1, outage_secs: 5.0 };
        let mut history = History::default();
        history.fold(at(5), &recovered);
        history.fold(at(11), &began(10));
        history.fold(at(15), &recovered);
        history.fold(at(16), &recovered);
        history.fold(at(21), &began(20));
        history.fold(at(31), &began(30));
        let spans: Vec<_> = history.outages().into_iter().map(|outage| (outage.since, outage.until)).collect();
        assert_eq!(spans, [(at(10), Some(at(15))), (at(20), Some(at(30))), (at(30), None)]);
        for number in 0..600 {
            history.fold(at(number), &began(number));
        }
        assert_eq!(history.outages().len(), KEPT);
    }
}
