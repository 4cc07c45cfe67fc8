//! The runner with a backing that misbehaves.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::RecvTimeoutError;
use std::time::SystemTime;

use super::*;
use crate::backing::fake::FakeBacking;
use crate::backing::{ExitSink, OpResult, StartError, Traits, Tree, Vitals};
use crate::config::CallPolicy;

/// Longer than anything takes on a loaded machine; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Panics in as many starts, probes and removals as it is told to.
#[derive(Default)]
struct Clumsy {
    reaches: AtomicU64,
    starts: AtomicU64,
    probes: Arc<AtomicU64>,
    retires: Arc<AtomicU64>,
}

/// Takes one of so many panics.
fn stumble(panics: &AtomicU64) {
    if panics.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
        panic!("on purpose");
    }
}

impl Backing for Clumsy {
    fn traits(&self) -> Traits {
        Traits {
            stable_inodes: true,
            keeps_unlinked: true,
            owners: true,
            asynchronous: false,
            remembers: Duration::ZERO,
        }
    }
    fn reach(&self, _limit: Duration) -> Result<(), String> {
        stumble(&self.reaches);
        Ok(())
    }
    fn start(&self, number: u64, _limit: Duration, _exits: ExitSink) -> Result<Arc<dyn Generation>, StartError> {
        stumble(&self.starts);
        Ok(Arc::new(Life { number, probes: Arc::clone(&self.probes), retires: Arc::clone(&self.retires) }))
    }
}

struct Life {
    number: u64,
    probes: Arc<AtomicU64>,
    retires: Arc<AtomicU64>,
}

impl Generation for Life {
    fn number(&self) -> u64 {
        self.number
    }
    fn tree(&self) -> &dyn Tree {
        unreachable!("nobody calls in")
    }
    fn probe(&self) -> OpResult<StatFs> {
        stumble(&self.probes);
        Ok(StatFs::default())
    }
    fn vitals(&self) -> Vitals {
        Vitals::default()
    }
    fn abort(&self) {}
    fn retire(&self) -> Result<(), String> {
        stumble(&self.retires);
        Ok(())
    }
}

struct Rig {
    supervisor: Supervisor,
    events: Receiver<(SystemTime, Event)>,
    gate: Arc<Gate>,
}

fn begin(backing: Clumsy, restore: Restore) -> Rig {
    let inbox = Inbox::new();
    let gate = Gate::new(CallPolicy::default(), inbox.complaints()).expect("a thread");
    let watch = Watch::default();
    let events = watch.subscribe();
    let policy = RepairPolicy {
        probe_interval: Duration::from_millis(20),
        probe_deadline: Duration::from_millis(500),
        backoff_min: Duration::from_millis(10),
        steady: Duration::from_millis(100),
        ..RepairPolicy::default()
    };
    let deadline = Duration::from_secs(5);
    let supervisor =
        Supervisor::begin(inbox, Arc::new(backing), Arc::clone(&gate), restore, policy, deadline, watch).expect("runs");
    Rig { supervisor, events, gate }
}

impl Rig {
    fn wait_for(&self, what: impl Fn(&Event) -> bool) -> Event {
        loop {
            let (_, event) = self.events.recv_timeout(PATIENCE).expect("it comes about");
            if what(&event) {
                return event;
            }
        }
    }

    /// Ends it all; a supervisor that waits for ever fails the test.
    fn stop(self) {
        let (sender, done) = channel();
        std::thread::spawn(move || {
            self.supervisor.stop();
            self.gate.stop();
            _ = sender.send(());
        });
        assert_eq!(done.recv_timeout(PATIENCE), Ok(()), "stop() does not return");
    }
}

fn panics(count: u64) -> AtomicU64 {
    AtomicU64::new(count)
}

#[test]
fn work_that_panics_is_work_that_failed_and_stops_nothing() {
    let backing =
        Clumsy { reaches: panics(1), starts: panics(1), probes: Arc::new(panics(5)), retires: Arc::new(panics(1)) };
    let left = Arc::new(AtomicU64::new(1));
    let restore = move |_: &Arc<dyn Generation>| {
        stumble(&left);
        Ok(())
    };
    let rig = begin(backing, Arc::new(restore));
    rig.wait_for(|event| matches!(event, Event::StartFailed { detail, .. } if detail.contains("start was lost")));
    rig.wait_for(|event| matches!(event, Event::StartFailed { detail, .. } if detail.contains("restoration was lost")));
    rig.wait_for(|event| matches!(event, Event::Notice { detail } if detail.contains("removal was lost")));
    // Probes that panic are not evidence: the generation lives on, becomes steady, and no outage begins.
    let end = rig.wait_for(|event| matches!(event, Event::Steady { .. } | Event::OutageBegan { .. }));
    assert_eq!(end, Event::Steady { generation: 3 });
    rig.stop();
}

#[test]
fn a_restoration_that_says_no_is_a_failed_repair_and_the_next_generation_serves() {
    let restore = |generation: &Arc<dyn Generation>| match generation.number() {
        1 => Err("the log does not fit".to_owned()),
        _ => Ok(()),
    };
    let rig = begin(Clumsy::default(), Arc::new(restore));
    let failed = rig.wait_for(|event| matches!(event, Event::StartFailed { .. } | Event::Recovered { .. }));
    assert!(
        matches!(&failed, Event::StartFailed { generation: 1, detail, halted: false, .. } if detail == "the log does not fit"),
        "{failed:?}"
    );
    rig.wait_for(|event| matches!(event, Event::Recovered { generation: 2, .. }));
    assert!(!rig.gate.in_outage());
    rig.stop();
}

#[test]
fn who_hears_of_an_outage_finds_it_in_the_snapshot_and_its_time_never_gets_less() {
    let (watch, inbox) = (Watch::default(), Inbox::new());
    let events = watch.subscribe();
    let gate = Gate::new(CallPolicy::default(), inbox.complaints()).expect("a gate");
    let backing = Arc::new(FakeBacking::new().expect("a directory"));
    let control = backing.control();
    control.set_start_delay(Duration::from_millis(500));
    let policy = RepairPolicy { backoff_min: Duration::from_millis(10), ..RepairPolicy::default() };
    let deadline = CallPolicy::default().deadline;
    let supervisor =
        Supervisor::begin(inbox, backing, Arc::clone(&gate), Arc::new(|_| Ok(())), policy, deadline, watch.clone())
            .expect("it begins");
    let (mut began, mut recovered, mut last) = (0, 0, Duration::ZERO);
    while recovered < 4 {
        let event = events.recv_timeout(Duration::from_millis(1));
        let snapshot = watch.snapshot();
        assert!(snapshot.outage_total >= last, "{:?} after {last:?}", snapshot.outage_total);
        last = snapshot.outage_total;
        match event {
            Ok((_, Event::OutageBegan { .. })) => {
                began += 1;
                assert_eq!((snapshot.outages, snapshot.outage_since.is_some()), (began, true));
            }
            Ok((_, Event::Recovered { .. })) => {
                recovered += 1;
                assert_eq!((snapshot.state, snapshot.outage_since), ("live", None));
                // The first start was quick enough not to be told of as an outage.
                assert_eq!(began, recovered - 1);
                control.kill_generation();
            }
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                assert!(began > 0 || last.is_zero(), "what was not told does not count: {last:?}");
            }
            Err(RecvTimeoutError::Disconnected) => panic!("the supervisor ended"),
        }
    }
    assert!(last >= Duration::from_millis(3 * 500), "{last:?}");
    supervisor.stop();
    gate.stop();
}

#[test]
fn permits_that_change_are_gone_by_at_once_and_a_damaged_record_is_told_and_begun_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let record = directory.path().join("state/repairs.json");
    std::fs::create_dir(directory.path().join("state")).expect("made");
    std::fs::write(&record, "{ half").expect("written");
    let (watch, inbox) = (Watch::default(), Inbox::new());
    let events = watch.subscribe();
    let gate = Gate::new(CallPolicy::default(), inbox.complaints()).expect("a gate");
    let backing = FakeBacking::new().expect("a directory");
    let control = backing.control();
    let permit = |enable_file: Option<&str>| PermitParts {
        config: PermitConfig {
            enable_file: enable_file.map(|name| directory.path().join(name)),
            max_per_day: 9,
            ..PermitConfig::default()
        },
        record: Some(record.clone()),
    };
    let parts = Parts {
        inbox,
        backing: Arc::new(backing),
        gate: Arc::clone(&gate),
        restore: Arc::new(|_| Ok(())),
        policy: RepairPolicy::default(),
        permit: permit(Some("first")),
        deadline: CallPolicy::default().deadline,
        watch: watch.clone(),
    };
    let supervisor = Supervisor::start(parts).expect("it begins");
    let wait_for = |what: &dyn Fn(&Event) -> bool| loop {
        let (_, event) = events.recv_timeout(PATIENCE).expect("it comes about");
        if what(&event) {
            break event;
        }
    };
    wait_for(&|event| matches!(event, Event::Notice { detail } if detail.contains("repairs.json cannot be read")));
    wait_for(&|event| matches!(event, Event::Recovered { generation: 1, .. }));
    assert!(watch.snapshot().repair_log.starts.is_empty(), "a first start is no repair");
    control.kill_generation();
    let held = wait_for(&|event| matches!(event, Event::RepairHeld { .. } | Event::Recovered { .. }));
    assert!(
        matches!(&held, Event::RepairHeld { by: permit::HeldBy::EnableFile, until: None, detail } if detail.contains("first")),
        "{held:?}"
    );
    let log = watch.snapshot().repair_log;
    assert_eq!(
        (log.enabled, log.held.len(), log.last_held.map(|held| held.1)),
        (false, 1, Some(permit::HeldBy::EnableFile))
    );
    assert!(log.detected_since.is_some() && log.last.is_none());
    // Another file that is not there either, and then none.
    supervisor.set_permit(permit(Some("second")));
    control.set_start_delay(Duration::from_millis(300));
    let until = Instant::now() + PATIENCE;
    while !watch.snapshot().why.is_some_and(|why| why.contains("second")) {
        assert!(Instant::now() < until, "{:?}", watch.snapshot());
        std::thread::sleep(Duration::from_millis(5));
    }
    supervisor.set_permit(permit(None));
    wait_for(&|event| matches!(event, Event::RepairReleased { ordered: false }));
    wait_for(&|event| matches!(event, Event::RepairStarted { generation: 2 }));
    wait_for(&|event| matches!(event, Event::Recovered { generation: 2, .. }));
    let log = watch.snapshot().repair_log;
    assert_eq!((log.started_total, log.starts.len(), log.held.len(), log.enabled), (1, 1, 0, true));
    let last = log.last.as_ref().expect("there was one");
    assert!(last.ok == Some(true) && last.ended.is_some_and(|end| end > last.started), "{last:?}");
    assert_eq!(log.started_within(Duration::from_secs(3600), SystemTime::now()), 1);
    assert_eq!(log.started_within(Duration::from_secs(3600), SystemTime::now() + Duration::from_secs(3700)), 0);
    supervisor.stop();
    gate.stop();
    // Its end waits for what is being written.
    let written = permit::record::Record::load(&record).expect("it is whole again");
    assert_eq!((written.started_total, written.last.and_then(|last| last.ok)), (1, Some(true)));
}

/// A supervisor after a predecessor with that generation, and what it does until it serves.
fn succeed(backing: FakeBacking, predecessor: Predecessor) -> (Supervisor, Arc<Gate>, Vec<Event>) {
    let (watch, inbox) = (Watch::default(), Inbox::new());
    let events = watch.subscribe();
    let gate = Gate::new(CallPolicy::default(), inbox.complaints()).expect("a gate");
    let parts = Parts {
        inbox,
        backing: Arc::new(backing),
        gate: Arc::clone(&gate),
        restore: Arc::new(|_| Ok(())),
        policy: RepairPolicy { probe_deadline: Duration::from_millis(300), ..RepairPolicy::default() },
        permit: PermitParts::default(),
        deadline: CallPolicy::default().deadline,
        watch,
    };
    let supervisor = Supervisor::resume(parts, predecessor).expect("it begins");
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(Event::Recovered { .. })) {
        seen.push(events.recv_timeout(PATIENCE).expect("an event").1);
    }
    (supervisor, gate, seen)
}

#[test]
fn a_successor_takes_the_generation_over_or_says_why_not_and_starts_the_next() {
    for healthy in [true, false] {
        let backing = FakeBacking::new().expect("a directory");
        let control = backing.control();
        let left = backing.start(4, PATIENCE, Arc::new(|_| {})).expect("starts");
        if !healthy {
            control.freeze();
        }
        let live = Some(Legacy { record: left.record().expect("it has one"), root: None });
        let (supervisor, gate, seen) = succeed(backing, Predecessor { newest: 4, live, ..Predecessor::default() });
        let last = seen.last();
        if healthy {
            assert!(matches!(last, Some(Event::Recovered { generation: 4, .. })) && seen.len() == 1, "{seen:?}");
        } else {
            assert!(matches!(last, Some(Event::Recovered { generation: 5, .. })), "{seen:?}");
            let why = |event: &Event| matches!(event, Event::Notice { detail } if detail.contains("no answer (fake)"));
            assert!(seen.iter().any(why), "{seen:?}");
            let began = |event: &Event| matches!(event, Event::OutageBegan { reason, .. } if reason == "succession");
            assert!(seen.iter().any(began), "{seen:?}");
        }
        assert!(!gate.in_outage());
        supervisor.stop();
        gate.stop();
    }
}

#[test]
fn what_was_followed_by_a_newer_one_is_not_looked_at() {
    let backing = FakeBacking::new().expect("a directory");
    let left = backing.start(4, PATIENCE, Arc::new(|_| {})).expect("starts");
    let live = Some(Legacy { record: left.record().expect("it has one"), root: None });
    let predecessor = Predecessor { newest: 6, live, ..Predecessor::default() };
    assert_eq!(predecessor.spared(), None);
    let (supervisor, gate, seen) = succeed(backing, predecessor);
    assert!(matches!(seen.last(), Some(Event::Recovered { generation: 7, .. })), "{seen:?}");
    supervisor.stop();
    gate.stop();
}

#[test]
fn an_outage_does_not_grow_young_again_when_the_daemon_dies_in_it() {
    let inbox = Inbox::new();
    let gate = Gate::new(CallPolicy::default(), inbox.complaints()).expect("a gate");
    let backing = FakeBacking::new().expect("a directory");
    backing.control().unreachable(true);
    let parts = Parts {
        inbox,
        backing: Arc::new(backing),
        gate: Arc::clone(&gate),
        restore: Arc::new(|_| Ok(())),
        policy: RepairPolicy::default(),
        permit: PermitParts::default(),
        deadline: CallPolicy::default().deadline,
        watch: Watch::default(),
    };
    let outage_since = Instant::now().checked_sub(Duration::from_secs(60));
    let supervisor =
        Supervisor::resume(parts, Predecessor { outage_since, ..Predecessor::default() }).expect("it begins");
    assert!(gate.fails_fast(), "it is a minute old");
    supervisor.stop();
    gate.stop();
}
