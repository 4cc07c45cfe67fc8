//! The events of a mount: in memory, in the log, and in a file if one is configured.

pub mod file;
pub mod history;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::plain::plain_json;
use crate::supervisor::{Event, Watch};
use history::{History, Outage};

/// What the lines of events are marked with in the log.
pub const TARGET: &str = "steadfs::event";
/// Events that are kept for `steadfs status --json`.
const KEPT: usize = 200;

/// See the module.
#[derive(Default)]
pub struct Journal {
    events: Mutex<VecDeque<(SystemTime, Event)>>,
    history: Mutex<History>,
    /// How many events there were.
    count: watch::Sender<u64>,
}

impl Journal {
    /// Follows a supervisor from now on, in a thread that ends with it.
    pub fn follow(watch: &Watch) -> std::io::Result<Arc<Journal>> {
        let journal = Arc::new(Journal::default());
        let (written, events) = (Arc::clone(&journal), watch.subscribe());
        std::thread::Builder::new().name("journal".into()).spawn(move || {
            for (at, event) in events {
                log(&event);
                written.history.lock().fold(at, &event);
                let mut kept = written.events.lock();
                if kept.len() == KEPT {
                    kept.pop_front();
                }
                let last = event == Event::Stopping;
                kept.push_back((at, event));
                drop(kept);
                written.count.send_modify(|count| *count += 1);
                if last {
                    break;
                }
            }
        })?;
        Ok(journal)
    }

    /// The events, oldest first.
    pub fn events(&self) -> Vec<(SystemTime, Event)> {
        self.events.lock().iter().cloned().collect()
    }

    /// The outages, oldest first, the present one last.
    pub fn outages(&self) -> Vec<Outage> {
        self.history.lock().outages()
    }

    /// Changes with each event, as long as the journal lives.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }
}

fn log(event: &Event) {
    // Names and a server's words are in it.
    let fields = plain_json(&serde_json::to_string(event).unwrap_or_default());
    match event {
        Event::OutageBegan { .. }
        | Event::OutageOverdue { .. }
        | Event::StartFailed { .. }
        | Event::Succession { .. }
        | Event::RepairHeld { .. }
        | Event::Notice { .. } => {
            tracing::warn!(target: TARGET, "{fields}");
        }
        Event::WorkerStep { result, .. } if !matches!(result.as_str(), "ok" | "skipped") => {
            tracing::warn!(target: TARGET, "{fields}");
        }
        _ => tracing::info!(target: TARGET, "{fields}"),
    }
}
