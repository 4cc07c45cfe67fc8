//! What the supervisor will do next, in words, and times as others understand them.

use std::time::{Instant, SystemTime};

use super::machine::{Machine, State};

/// The next step, and when it is due if a time is set for it.
pub(super) fn next(machine: &Machine) -> (String, Option<Instant>) {
    let next = machine.newest() + 1;
    match machine.state() {
        State::Reaching { .. } => (format!("start generation {next} as soon as the server can be reached"), None),
        State::Adopting { generation } => (format!("take generation {generation} over"), None),
        State::Starting { generation } => (format!("wait for generation {generation} to answer"), None),
        State::Restoring(_) => {
            let generation = machine.newest();
            (format!("reopen descriptors in generation {generation}, then let calls in"), None)
        }
        State::Live(_) => ("probe".into(), None),
        State::Suspect(..) => ("wait for an answer or a verdict".into(), None),
        State::Retiring { generation, .. } => (format!("remove generation {generation}, then start the next"), None),
        State::Waiting { until, .. } => {
            (format!("start generation {next} when the back-off is over or the server comes back"), Some(*until))
        }
        State::Held { hold: None, .. } => (format!("look whether generation {next} may be started"), None),
        State::Held { hold: Some(hold), .. } => {
            let when = if hold.until.is_some() { "is over" } else { "is gone" };
            (format!("start generation {next} when what holds it back {when}, or somebody orders it"), hold.until)
        }
        State::Halted => ("nothing: mend the cause, then run `steadfs recover --apply`".into(), None),
        State::Stopping { .. } | State::Stopped => ("end".into(), None),
    }
}

/// The wall-clock time of a monotonic one.
pub(super) fn wall(at: Instant) -> SystemTime {
    let now = Instant::now();
    SystemTime::now() - now.saturating_duration_since(at) + at.saturating_duration_since(now)
}
