//! Everything that writes down, pauses and lets go, over means that are only remembered; and a daemon that dies anywhere.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::config::{Means, RecoveryHook, UnitBy, WorkerEntry};
use crate::supervisor::{Event, Watch};
use crate::worker::means::{Failure, Job};
use crate::worker::pause::Found;
use crate::worker::told::Report;

/// Who has paused a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Nobody,
    Us,
    Somebody,
    /// It is down.
    Down,
}

/// How a daemon ends that is killed.
struct Killed;

/// Everything outside of the daemon.
#[derive(Default)]
struct World {
    workers: BTreeMap<String, By>,
    trace: Vec<String>,
    /// Moments until the daemon dies.
    moments: Option<usize>,
    /// What does not succeed, as `action name`; and whether because it hangs.
    broken: BTreeMap<String, bool>,
    wrong: Vec<String>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<World>>);

impl Fake {
    /// The daemon may die here.
    fn moment(&self) {
        let mut world = self.0.lock();
        match &mut world.moments {
            Some(0) => {
                drop(world);
                // Without a word: it is no panic of the test's.
                resume_unwind(Box::new(Killed));
            }
            Some(moments) => *moments -= 1,
            None => {}
        }
    }

    fn act(&self, action: &str, job: &Job, act: impl FnOnce(&mut By, &mut Vec<String>)) -> Result<(), Failure> {
        self.moment();
        {
            let mut world = self.0.lock();
            let world = &mut *world;
            let name = job.name.to_string();
            world.trace.push(format!("{action} {name}"));
            if let Some(hangs) = world.broken.get(&format!("{action} {name}")) {
                return Err(Failure { timeout: *hangs, words: "broken".into() });
            }
            // A worker that was renamed is the same one.
            let worker = world.workers.get_mut(base(&name)).expect("it is known");
            act(worker, &mut world.wrong);
        }
        self.moment();
        Ok(())
    }
}

fn base(name: &str) -> &str {
    name.trim_end_matches('\'')
}

impl Ways for Fake {
    fn look(&self, job: &Job) -> Result<Option<Found>, Failure> {
        let mut found = None;
        self.act("look", job, |worker, _| found = (*worker == By::Nobody).then_some(Found::Named))?;
        Ok(found)
    }

    fn pause(&self, job: &Job, found: &Found) -> Result<Found, Failure> {
        self.act("pause", job, |worker, wrong| match worker {
            By::Nobody => *worker = By::Us,
            _ => wrong.push(format!("{} was paused though it was {worker:?}", job.name)),
        })?;
        Ok(found.clone())
    }

    fn resume(&self, job: &Job, _: &Found) -> Result<(), Failure> {
        self.act("resume", job, |worker, wrong| match worker {
            By::Us => *worker = By::Nobody,
            By::Somebody => wrong.push(format!("{} was let go though somebody else had paused it", job.name)),
            // It died, or the daemon did before it had paused it.
            By::Nobody | By::Down => {}
        })
    }
}

fn entry(name: &str, means: Means) -> WorkerEntry {
    WorkerEntry { name: name.into(), means, timeout: None, steady: None }
}

/// One of each kind that matters: c, d and e do not outlive a reboot.
fn entries() -> Vec<WorkerEntry> {
    let container = Means::Container { engine: "docker".into(), names: vec!["d".into()], label: None };
    vec![
        entry("a", Means::Flag { file: "/a".into() }),
        entry("b", Means::Unit { unit: "b".into(), by: UnitBy::Stop }),
        entry("c", Means::Signal { pid_file: "/c".into(), pause: 19, resume: 18, group: false }),
        entry("d", container),
        entry("e", Means::Cgroup { path: "/e".into() }),
    ]
}

struct Rig {
    directory: tempfile::TempDir,
    fake: Fake,
    config: WorkerConfig,
    boot: String,
    report: Arc<Mutex<Report>>,
    ending: Arc<AtomicBool>,
}

impl Rig {
    fn new() -> Rig {
        // In memory where that can be: thousands of notes are written.
        let shm = Path::new("/dev/shm");
        let directory = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let rig = Rig {
            directory: directory.expect("a directory"),
            fake: Fake::default(),
            config: WorkerConfig { workers: entries(), ..WorkerConfig::default() },
            boot: "this boot".into(),
            report: Arc::default(),
            ending: Arc::default(),
        };
        for name in ["a", "b", "c", "d", "e"] {
            rig.set(name, By::Nobody);
        }
        rig
    }

    fn set(&self, name: &str, by: By) {
        self.fake.0.lock().workers.insert(name.into(), by);
    }

    fn is(&self, name: &str) -> By {
        self.fake.0.lock().workers[name]
    }

    fn moments(&self, moments: Option<usize>) {
        self.fake.0.lock().moments = moments;
    }

    fn note(&self) -> Note {
        Note::new(self.directory.path().join("state/hot/paused.json"))
    }

    fn hand_of(&self, config: &WorkerConfig) -> Hand {
        let told = Told::new(Arc::clone(&self.report), Watch::default());
        let fake = Box::new(self.fake.clone());
        let mut hand = Hand::new(config, Path::new("/hot"), self.note(), fake, told, Arc::clone(&self.ending));
        hand.boot = self.boot.clone();
        hand
    }

    fn hand(&self) -> Hand {
        self.hand_of(&self.config)
    }

    fn trace(&self) -> Vec<String> {
        std::mem::take(&mut self.fake.0.lock().trace)
    }

    fn only(&self, action: &str) -> String {
        let of = |line: String| line.strip_prefix(action).map(|name| name.trim().to_string());
        self.trace().into_iter().filter_map(of).collect()
    }

    /// Ends processes and what was done to them; units that were stopped and files stay as they are.
    fn reboot(&mut self) {
        self.boot.push_str(", then another");
        let mut world = self.fake.0.lock();
        for (name, by) in &mut world.workers {
            if ["c", "d", "e"].contains(&name.as_str()) {
                *by = By::Nobody;
            }
        }
    }

    fn nobody_is_left(&self, of: &str) {
        let world = self.fake.0.lock();
        assert_eq!(world.wrong, Vec::<String>::new(), "{of}");
        let paused: Vec<_> = world.workers.iter().filter(|(_, by)| **by == By::Us).collect();
        assert!(paused.is_empty(), "{of}: {paused:?} stay paused");
        assert!(self.note().read().is_none(), "{of}: the note is left");
    }
}

fn pause(hand: &mut Hand) -> bool {
    hand.pause(SystemTime::UNIX_EPOCH, "probe_late".into(), true)
}

const NOW: Option<Duration> = Some(Duration::ZERO);

#[test]
fn workers_are_paused_in_order_and_let_go_in_the_opposite_order() {
    let rig = Rig::new();
    let mut hand = rig.hand();
    assert!(pause(&mut hand));
    assert_eq!(rig.only("pause"), "abcde");
    assert!(rig.report.lock().workers.iter().all(|worker| worker.paused && worker.since.is_some()));
    assert_eq!(hand.resume(NOW), (Resumed::All, None));
    assert_eq!(rig.only("resume"), "edcba");
    rig.nobody_is_left("a pause");
    let report = rig.report.lock();
    assert!(report.workers.iter().all(|worker| !worker.paused && worker.since.is_none()));
    let last = report.workers[0].last.as_ref().expect("it was told");
    assert_eq!((last.action.as_str(), last.result.as_str()), ("resume", "ok"));
    assert_eq!(report.steps.len(), 10);
}

#[test]
fn who_is_down_or_paused_by_somebody_else_is_left_alone_and_that_is_no_error() {
    let rig = Rig::new();
    rig.set("b", By::Down);
    rig.set("d", By::Somebody);
    let mut hand = rig.hand();
    assert!(pause(&mut hand));
    assert_eq!(rig.only("pause"), "ace");
    // It comes up in the outage, and must not be taken for ours.
    assert_eq!(hand.resume(NOW), (Resumed::All, None));
    assert_eq!(rig.only("resume"), "eca");
    assert_eq!((rig.is("b"), rig.is("d")), (By::Down, By::Somebody));
    let steps = rig.report.lock().steps.clone();
    let skipped: Vec<_> = steps.iter().filter(|step| step.result == "skipped").map(|step| &step.worker).collect();
    assert_eq!(skipped, ["b", "d"]);
    rig.nobody_is_left("a pause");
}

#[test]
fn one_that_fails_or_hangs_keeps_nobody_from_being_paused_or_let_go() {
    let rig = Rig::new();
    let broken = [("look a", false), ("pause b", true), ("pause c", false), ("resume d", true), ("resume e", false)];
    rig.fake.0.lock().broken = broken.into_iter().map(|(what, hangs)| (what.into(), hangs)).collect();
    let mut hand = rig.hand();
    assert!(pause(&mut hand));
    assert_eq!((rig.is("d"), rig.is("e")), (By::Us, By::Us));
    let (came, error) = hand.resume(NOW);
    assert_eq!(came, Resumed::Failed(None));
    let error = error.expect("it says what failed");
    assert!(error.contains("worker d") && error.contains("worker e"), "{error}");
    // Nobody knows whether they had been paused after all.
    assert_eq!(rig.only("resume"), "edcb");
    let held = |hand: &Hand| hand.record().map(|r| r.workers.iter().map(|held| held.name.clone()).collect::<String>());
    assert_eq!(held(&hand).as_deref(), Some("de"));
    // A successor lets the rest go, and nobody twice.
    rig.fake.0.lock().broken.clear();
    assert_eq!(rig.hand().resume(NOW), (Resumed::All, None));
    assert_eq!(rig.only("resume"), "ed");
    rig.nobody_is_left("a failure");
    let results: Vec<_> = rig.report.lock().steps.iter().map(|step| step.result.clone()).collect();
    assert!(results.contains(&"timeout".into()) && results.contains(&"failed".into()), "{results:?}");
}

#[test]
fn who_has_a_longer_steady_time_is_let_go_later_and_not_told_again() {
    let mut rig = Rig::new();
    let seconds = Duration::from_secs;
    (rig.config.workers[1].steady, rig.config.workers[3].steady) = (Some(seconds(10)), Some(seconds(60)));
    let mut hand = rig.hand();
    pause(&mut hand);
    assert_eq!(hand.resume(Some(seconds(2))), (Resumed::Rest(seconds(10)), None));
    assert_eq!(rig.only("resume"), "eca");
    assert_eq!(hand.resume(Some(seconds(10))), (Resumed::Rest(seconds(60)), None));
    assert_eq!((rig.is("b"), rig.is("d")), (By::Nobody, By::Us));
    // Another outage: d is still paused.
    hand.pause(SystemTime::UNIX_EPOCH, "probe_late".into(), false);
    assert!(!rig.trace().contains(&"look d".to_string()));
    // The end waits for nobody's steady time.
    assert_eq!(hand.resume(None), (Resumed::All, None));
    rig.nobody_is_left("steady times");
}

#[test]
fn a_reboot_voids_what_it_has_undone_and_nothing_else() {
    let mut rig = Rig::new();
    pause(&mut rig.hand());
    rig.reboot();
    // Whoever has that number or name now, and is paused, was not paused by us.
    for name in ["c", "d", "e"] {
        rig.set(name, By::Somebody);
    }
    rig.trace();
    assert_eq!(rig.hand().resume(NOW), (Resumed::All, None));
    assert_eq!(rig.only("resume"), "ba");
    rig.nobody_is_left("a reboot");
}

#[test]
fn a_reboot_before_the_next_outage_makes_nobody_ours_who_was_paused_by_somebody_else() {
    let mut rig = Rig::new();
    pause(&mut rig.hand());
    rig.reboot();
    rig.set("c", By::Somebody);
    let mut hand = rig.hand();
    pause(&mut hand);
    assert_eq!((rig.is("c"), rig.is("d")), (By::Somebody, By::Us));
    assert_eq!(hand.resume(NOW), (Resumed::All, None));
    assert_eq!(rig.is("c"), By::Somebody);
    rig.nobody_is_left("a reboot");
}

#[test]
fn a_note_that_cannot_be_read_lets_everybody_go_who_is_configured() {
    for again in [false, true] {
        let rig = Rig::new();
        pause(&mut rig.hand());
        std::fs::write(rig.directory.path().join("state/hot/paused.json"), "{").expect("written");
        let mut hand = rig.hand();
        if again {
            // In the next outage it looks as if somebody else had paused them.
            pause(&mut hand);
        }
        assert_eq!(hand.resume(NOW), (Resumed::All, None));
        rig.nobody_is_left("an unreadable note");
    }
}

#[test]
fn nothing_is_done_to_a_worker_that_cannot_be_written_down() {
    let rig = Rig::new();
    let mut hand = rig.hand();
    std::fs::write(rig.directory.path().join("state"), "a file in the way").expect("written");
    assert!(!pause(&mut hand));
    assert_eq!((rig.trace(), hand.record()), (Vec::new(), None));
}

#[test]
fn a_changed_configuration_lets_go_who_is_gone_and_pauses_who_is_new() {
    let rig = Rig::new();
    let mut hand = rig.hand();
    pause(&mut hand);
    rig.trace();
    // b is gone, c has another name, e other means.
    hand.config.workers.remove(1);
    hand.config.workers[1].name = "c'".into();
    hand.config.workers[3].means = Means::Cgroup { path: "/other".into() };
    rig.set("f", By::Nobody);
    hand.config.workers.push(entry("f", Means::Flag { file: "/f".into() }));
    rig.fake.0.lock().broken.insert("resume b".into(), false);
    assert!(!hand.adapt(true), "b could not be let go");
    assert_eq!(rig.trace(), ["resume e", "resume b", "look e", "pause e", "look f", "pause f"]);
    rig.fake.0.lock().broken.clear();
    assert!(hand.adapt(true));
    assert_eq!((rig.trace(), rig.is("b")), (vec!["resume b".to_string()], By::Nobody));
    let names: Vec<_> = rig.report.lock().workers.iter().map(|worker| worker.name.clone()).collect();
    assert_eq!(names, ["a", "c'", "d", "e", "f"]);
    assert_eq!(hand.resume(NOW), (Resumed::All, None));
    rig.nobody_is_left("a changed configuration");
}

#[test]
fn a_daemon_with_another_file_lets_go_who_was_paused() {
    let mut rig = Rig::new();
    pause(&mut rig.hand());
    rig.config.workers = vec![entry("f", Means::Flag { file: "/f".into() })];
    rig.set("f", By::Nobody);
    let mut hand = rig.hand();
    // In an outage first, in which the new one is paused too.
    pause(&mut hand);
    assert_eq!(rig.is("f"), By::Us);
    assert_eq!(hand.resume(NOW), (Resumed::All, None));
    rig.nobody_is_left("another file");
}

#[test]
fn hooks_follow_a_recovery_once_and_in_order_and_not_the_end() {
    let mut rig = Rig::new();
    let trace = rig.directory.path().join("hooks");
    let hook = |name: &str, exit: u8| {
        let script = format!("echo {name} $STEADFS_STATE $STEADFS_REASON >> {}; exit {exit}", trace.display());
        let argv = vec!["sh".into(), "-c".into(), script];
        RecoveryHook { name: name.into(), command: HookCommand { argv }, timeout: None }
    };
    rig.config.after_recovery = vec![hook("first", 0), hook("second", 1), hook("third", 0)];
    let heard = || std::fs::read_to_string(&trace).unwrap_or_default();
    let mut hand = rig.hand();
    pause(&mut hand);
    assert_eq!(hand.resume(NOW), (Resumed::Hooks, None));
    assert_eq!(rig.report.lock().paused_since, None, "nobody is paused any more");
    assert_eq!(hand.next_after_recovery(), Ok(true));
    // It dies, and the next one goes on.
    let mut hand = rig.hand();
    assert_eq!(hand.resume(NOW), (Resumed::Hooks, None));
    assert_eq!((hand.next_after_recovery(), hand.next_after_recovery()), (Ok(true), Ok(false)));
    let all = "first running probe_late\nsecond running probe_late\nthird running probe_late\n";
    assert_eq!(heard(), all);
    rig.nobody_is_left("hooks");
    let runs: Vec<_> = rig.report.lock().hooks.iter().map(|run| (run.hook.clone(), run.result.clone())).collect();
    let run = |name: &str, result: &str| (format!("after_recovery:{name}"), result.to_string());
    assert_eq!(runs, [run("first", "ok"), run("second", "failed"), run("third", "ok")]);
    // Once a recovery.
    pause(&mut hand);
    assert_eq!(hand.resume(None), (Resumed::All, None), "the end is none");
    assert_eq!(heard(), all);
    rig.nobody_is_left("the end");
}

/// Ways for things to go on after a daemon has died.
const SEQUELS: [&str; 6] = ["successor", "next start", "next start in an outage", "umount", "reboot", "reboot, umount"];

fn go_on(rig: &mut Rig, sequel: &str) {
    if sequel.starts_with("reboot") {
        rig.reboot();
    }
    let mut hand = match sequel {
        "umount" | "reboot, umount" => rig.hand_of(&WorkerConfig::default()),
        _ => rig.hand(),
    };
    let Some(stage) = hand.record().map(|record| record.stage) else { return };
    match sequel {
        "successor" if stage == Stage::Pausing => hand.finish(),
        "next start in an outage" => assert!(pause(&mut hand)),
        _ => {}
    }
    let lived = if sequel.ends_with("umount") { None } else { NOW };
    assert_eq!(hand.resume(lived), (Resumed::All, None), "{sequel}");
}

/// Runs it until it is done or the daemon dies; true if it dies.
fn dies(rig: &mut Rig, moment: usize, act: impl FnOnce(&mut Rig)) -> bool {
    rig.moments(Some(moment));
    let ended = catch_unwind(AssertUnwindSafe(|| act(rig)));
    rig.moments(None);
    match ended {
        Ok(()) => false,
        Err(killed) if killed.is::<Killed>() => true,
        Err(panic) => resume_unwind(panic),
    }
}

#[test]
fn a_daemon_that_dies_at_any_moment_and_its_successor_too_leave_nobody_paused() {
    let outage = |rig: &mut Rig| {
        let mut hand = rig.hand();
        assert!(pause(&mut hand));
        assert_eq!(hand.resume(NOW), (Resumed::All, None));
    };
    let mut deaths = 0;
    for sequel in SEQUELS {
        for first in 0.. {
            let mut over = false;
            for second in 0.. {
                let of = format!("dead at {first}, {sequel}, dead at {second}");
                let mut rig = Rig::new();
                rig.set("b", By::Somebody);
                rig.set("d", By::Down);
                if !dies(&mut rig, first, outage) {
                    rig.nobody_is_left("no death at all");
                    over = true;
                    break;
                }
                let died = dies(&mut rig, second, |rig| go_on(rig, sequel));
                if died {
                    go_on(&mut rig, "successor");
                    deaths += 1;
                }
                rig.nobody_is_left(&of);
                assert_eq!(rig.is("b"), By::Somebody, "{of}");
                if !died {
                    break;
                }
            }
            if over {
                break;
            }
        }
    }
    assert!(deaths > 500, "only {deaths} times a successor died as well");
}

#[derive(Debug, Clone)]
enum Happens {
    Outage,
    Overdue,
    Recovers,
    Steady,
    TimePasses(u64),
    Breaks(usize, bool),
    Mends,
    IsPausedBySomebody(usize),
    IsLetGoBySomebody(usize),
    GoesFromTheFile(usize),
    ComesToTheFile(usize),
    Dies(usize, bool),
    Reboots,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        2 => Just(Happens::Outage),
        4 => Just(Happens::Overdue),
        2 => Just(Happens::Recovers),
        4 => Just(Happens::Steady),
        2 => (0_u64..100).prop_map(Happens::TimePasses),
        1 => (0_usize..5, any::<bool>()).prop_map(|(of, hangs)| Happens::Breaks(of, hangs)),
        1 => Just(Happens::Mends),
        1 => (0_usize..5).prop_map(Happens::IsPausedBySomebody),
        1 => (0_usize..5).prop_map(Happens::IsLetGoBySomebody),
        1 => (0_usize..5).prop_map(Happens::GoesFromTheFile),
        1 => (0_usize..5).prop_map(Happens::ComesToTheFile),
        3 => (0_usize..20, any::<bool>()).prop_map(|(moment, successor)| Happens::Dies(moment, successor)),
        1 => Just(Happens::Reboots),
    ]
}

/// A daemon with its policy.
struct Life {
    hand: Hand,
    policy: Policy,
}

impl Life {
    fn begin(rig: &Rig, successor: bool) -> Life {
        let mut hand = rig.hand();
        let stage = hand.record().map(|record| record.stage);
        let (policy, unfinished) =
            if successor { Policy::succeed(stage) } else { (Policy::begin(stage.is_some()), false) };
        if unfinished {
            hand.finish();
        }
        Life { hand, policy }
    }

    fn event(&mut self, event: &Event, now: Instant) {
        let order = self.policy.event(event, now);
        self.hand.carry_out(order, &mut self.policy);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn whatever_happens_nobody_stays_paused_and_nobody_else_is_let_go(
        story in proptest::collection::vec(happens(), 1..40),
        longer in 0_u64..20,
    ) {
        let mut rig = Rig::new();
        rig.config.workers[2].steady = Some(Duration::from_secs(longer));
        let mut life = Life::begin(&rig, false);
        let mut now = Instant::now();
        let name = |of: usize| ["a", "b", "c", "d", "e"][of];
        for happening in &story {
            match happening {
                Happens::Outage => life.event(&Event::OutageBegan {
                    since: SystemTime::UNIX_EPOCH, reason: "x".into(), detail: String::new() }, now),
                Happens::Overdue => {
                    life.event(&Event::OutageOverdue { since: SystemTime::UNIX_EPOCH, reason: "x".into() }, now);
                }
                Happens::Recovers => life.event(&Event::Recovered { generation: 1, outage_secs: 1.0 }, now),
                Happens::Steady => life.event(&Event::Steady { generation: 1 }, now),
                Happens::TimePasses(seconds) => {
                    now += Duration::from_secs(*seconds);
                    let order = life.policy.tick(now);
                    life.hand.carry_out(order, &mut life.policy);
                }
                Happens::Breaks(of, hangs) => {
                    for action in ["look", "pause", "resume"] {
                        rig.fake.0.lock().broken.insert(format!("{action} {}", name(*of)), *hangs);
                    }
                }
                Happens::Mends => rig.fake.0.lock().broken.clear(),
                // Of whom the note says nothing: otherwise nobody could know.
                Happens::IsPausedBySomebody(of) => {
                    let noted = rig.note().read().is_some_and(|record| !record.workers.is_empty());
                    if !noted && rig.is(name(*of)) == By::Nobody {
                        rig.set(name(*of), By::Somebody);
                    }
                }
                Happens::IsLetGoBySomebody(of) => rig.set(name(*of), By::Nobody),
                Happens::GoesFromTheFile(of) | Happens::ComesToTheFile(of) => {
                    rig.config.workers.retain(|entry| entry.name != name(*of));
                    if matches!(happening, Happens::ComesToTheFile(_)) {
                        rig.config.workers.push(entries()[*of].clone());
                    }
                    life.hand.config = rig.config.clone();
                    let order = life.policy.reconfigured();
                    life.hand.carry_out(order, &mut life.policy);
                }
                Happens::Dies(moment, successor) => {
                    let steady = Event::Steady { generation: 2 };
                    let overdue = Event::OutageOverdue { since: SystemTime::UNIX_EPOCH, reason: "x".into() };
                    dies(&mut rig, *moment, |_| {
                        life.event(&overdue, now);
                        life.event(&steady, now);
                        life.event(&overdue, now);
                    });
                    life = Life::begin(&rig, *successor);
                }
                Happens::Reboots => {
                    rig.reboot();
                    life = Life::begin(&rig, false);
                }
            }
            prop_assert_eq!(&rig.fake.0.lock().wrong, &Vec::<String>::new());
        }
        rig.fake.0.lock().broken.clear();
        let order = life.policy.stop();
        life.hand.carry_out(order, &mut life.policy);
        rig.nobody_is_left(&format!("{story:?}"));
    }
}
