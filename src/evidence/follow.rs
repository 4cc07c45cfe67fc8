//! Has a bundle taken at each outage that outlives its deadline, and at each recovery. Follows the supervisor's events in a
//! thread of its own; the bundle is taken by a child process of this executable, so that nothing stuck stays in the daemon.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::guard::{self, End, Seen};
use super::settings::Settings;
use super::{KEEP, LONGEST, bundle};
use crate::config::DaemonConfig;
use crate::supervisor::{Event, Watch};

/// What the child may take beyond a bundle's own limit before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// Time between two bundles of outages that were over before their deadline: a link that flaps must not fill a disk.
const QUIET: Duration = Duration::from_secs(60);

/// When a bundle is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occasion {
    Outage,
    Recovery,
}

impl Occasion {
    fn tag(self) -> String {
        let word = match self {
            Occasion::Outage => "outage",
            Occasion::Recovery => "recovery",
        };
        format!("{}{word}", bundle::AUTOMATIC)
    }
}

/// Decides. Pure: time is passed in.
#[derive(Debug, Clone, Default)]
struct Policy {
    /// An outage that is no first start has begun.
    began: bool,
    /// It has outlived its deadline.
    overdue: bool,
    last: Option<Instant>,
}

impl Policy {
    fn event(&mut self, event: &Event, now: Instant) -> Option<Occasion> {
        match event {
            Event::OutageBegan { reason, .. } => {
                self.began = reason != "start";
                None
            }
            Event::OutageOverdue { .. } if !self.overdue => {
                self.overdue = true;
                self.last = Some(now);
                Some(Occasion::Outage)
            }
            Event::Recovered { .. } => {
                let (began, overdue) = (std::mem::take(&mut self.began), std::mem::take(&mut self.overdue));
                let rested = self.last.is_none_or(|last| now.saturating_duration_since(last) >= QUIET);
                if overdue || (began && rested) {
                    self.last = Some(now);
                    return Some(Occasion::Recovery);
                }
                None
            }
            _ => None,
        }
    }
}

enum Message {
    Event(Event),
    Taken(Seen),
    Stop,
}

/// Follows until it is dropped; a bundle that is being taken then is given up.
pub struct Follower {
    home: PathBuf,
    ending: Arc<AtomicBool>,
    sender: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

/// Follows a daemon's supervisor from now on, and writes down for those who look from outside what they need ([`Settings`]).
/// Without `evidence.dir` nothing is ever taken. It never fails for its daemon: what cannot be done is logged.
pub fn follow(config: &DaemonConfig, watch: &Watch) -> Follower {
    follow_by(Path::new(guard::SELF), config, watch)
}

/// As [`follow`], with bundles taken by another executable.
pub fn follow_by(executable: &Path, config: &DaemonConfig, watch: &Watch) -> Follower {
    if let Err(error) = Settings::of(config).write(&config.home) {
        tracing::warn!(%error, "steadfs evidence will not know of units and manifest");
    }
    let (sender, inbox) = channel();
    let ending = Arc::new(AtomicBool::new(false));
    let mut follower =
        Follower { home: config.home.clone(), ending: Arc::clone(&ending), sender: sender.clone(), thread: None };
    let Some(command) = command(executable, config) else { return follower };
    let (events, forward) = (watch.subscribe(), sender.clone());
    let forward = move || {
        for (_, event) in events {
            if forward.send(Message::Event(event)).is_err() {
                break;
            }
        }
    };
    let collector = Collector { command, ending, sender };
    let spawn = |name: &str, job: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name.into()).spawn(job);
    let started = spawn("evidence-events", Box::new(forward))
        .and_then(|_| spawn("evidence", Box::new(move || collector.serve(&inbox))));
    match started {
        Ok(thread) => follower.thread = Some(thread),
        Err(error) => tracing::error!(%error, "no evidence is taken by itself"),
    }
    follower
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.ending.store(true, SeqCst);
        // It may have ended on its own account only by a panic.
        _ = self.sender.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
        Settings::remove(&self.home);
    }
}

/// The command without its tag; nothing if none are to be taken.
fn command(executable: &Path, config: &DaemonConfig) -> Option<Vec<OsString>> {
    let root = config.evidence.dir.as_ref()?;
    let keep = if config.evidence.keep == 0 { KEEP } else { config.evidence.keep };
    let mut command: Vec<OsString> = vec![executable.into(), "evidence".into(), "--json".into()];
    command.extend(["--out".into(), root.into(), "--keep".into(), keep.to_string().into()]);
    // An absolute path or a name that begins with @: never an option.
    command.push(config.home.clone().into());
    Some(command)
}

struct Collector {
    command: Vec<OsString>,
    ending: Arc<AtomicBool>,
    sender: Sender<Message>,
}

impl Collector {
    fn serve(&self, inbox: &Receiver<Message>) {
        let (mut policy, mut busy, mut waiting) = (Policy::default(), None::<JoinHandle<()>>, None);
        for message in inbox {
            match message {
                Message::Event(event) => waiting = policy.event(&event, Instant::now()).or(waiting),
                Message::Taken(seen) => {
                    tell(&seen);
                    _ = busy.take().map(JoinHandle::join);
                }
                Message::Stop => break,
            }
            // Never two at once; of several occasions that come meanwhile the last is worth one.
            if busy.is_none()
                && let Some(occasion) = waiting.take()
            {
                busy = self.take(occasion);
            }
        }
        _ = busy.map(JoinHandle::join);
    }

    fn take(&self, occasion: Occasion) -> Option<JoinHandle<()>> {
        let mut command = self.command.clone();
        command.extend(["--tag".into(), occasion.tag().into()]);
        let (sender, ending) = (self.sender.clone(), Arc::clone(&self.ending));
        let take = move || {
            let seen = guard::run_unless(&command, LONGEST + GRACE, || ending.load(SeqCst));
            _ = sender.send(Message::Taken(seen));
        };
        let taken = std::thread::Builder::new().name("evidence-run".into()).spawn(take);
        taken.inspect_err(|error| tracing::error!(%error, "no evidence is taken")).ok()
    }
}

fn tell(seen: &Seen) {
    let text = String::from_utf8_lossy(&seen.output);
    let last = text.lines().last().unwrap_or_default();
    match seen.end {
        End::Exited(0) => tracing::info!(bundle = last, "evidence taken"),
        ref end => tracing::warn!(?end, said = last, "evidence could not be taken"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn began(reason: &str) -> Event {
        Event::OutageBegan { since: SystemTime::UNIX_EPOCH, reason: reason.into(), detail: String::new() }
    }

    fn overdue() -> Event {
        Event::OutageOverdue { since: SystemTime::UNIX_EPOCH, reason: "probe_late".into() }
    }

    const RECOVERED: Event = Event::Recovered { generation: 2, outage_secs: 1.0 };

    #[test]
    fn an_outage_and_its_recovery_are_worth_one_bundle_each() {
        let (mut policy, now) = (Policy::default(), Instant::now());
        let events = [began("probe_late"), overdue(), overdue(), RECOVERED, RECOVERED];
        let due: Vec<_> = events.iter().map(|event| policy.event(event, now)).collect();
        assert_eq!(due, [None, Some(Occasion::Outage), None, Some(Occasion::Recovery), None]);
    }

    #[test]
    fn a_first_start_is_worth_none_unless_it_is_late() {
        let (mut policy, now) = (Policy::default(), Instant::now());
        assert_eq!(policy.event(&RECOVERED, now), None);
        assert_eq!((policy.event(&began("start"), now), policy.event(&RECOVERED, now)), (None, None));
        policy.event(&began("start"), now);
        assert_eq!(policy.event(&overdue(), now), Some(Occasion::Outage));
        assert_eq!(policy.event(&RECOVERED, now), Some(Occasion::Recovery));
    }

    #[test]
    fn a_link_that_flaps_is_worth_one_a_minute() {
        let (mut policy, now) = (Policy::default(), Instant::now());
        let mut taken = 0;
        for second in 0..600 {
            let now = now + Duration::from_secs(second);
            assert_eq!(policy.event(&began("process_exit"), now), None);
            taken += policy.event(&RECOVERED, now).map_or(0, |_| 1);
        }
        assert_eq!(taken, 10);
    }
}
