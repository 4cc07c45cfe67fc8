use std::fmt::Write;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A machine with the time.
struct Rig {
    machine: Machine,
    now: Instant,
}

impl Rig {
    fn new() -> Rig {
        let now = Instant::now();
        Rig { machine: Machine::begin(Policy::default(), false, now).0, now }
    }

    fn tell(&mut self, input: Input) -> Vec<Action> {
        self.machine.handle(input, self.now)
    }

    fn after(&mut self, time: Duration, input: Input) -> Vec<Action> {
        self.now += time;
        self.tell(input)
    }

    fn fed(inputs: &[(u64, Input)]) -> Rig {
        let mut rig = Rig::new();
        for (millis, input) in inputs {
            rig.after(Duration::from_millis(*millis), *input);
        }
        rig
    }
}

const KILLED: Input = Input::Exited(Death::Signalled(9));
const HELD: Input = Input::Resumable(true);

/// The states of the table, and how one gets there.
fn states() -> Vec<(&'static str, Rig)> {
    use Input::{Ready, Tick, UpgradeAsked};
    let serving = [(0, HELD), (0, Ready)];
    let with = |more: &[(u64, Input)]| Rig::fed(&[&serving, more].concat());
    vec![
        ("starting, first", Rig::new()),
        ("starting, first, device held", Rig::fed(&[(0, HELD)])),
        ("starting, successor", with(&[(6000, KILLED)])),
        ("starting, end asked", with(&[(0, Input::Stop(15)), (6000, KILLED)])),
        ("starting, candidate", with(&[(0, UpgradeAsked), (0, Input::Exited(Death::Exited(0)))])),
        ("serving", with(&[])),
        ("serving, nothing held", Rig::fed(&[(0, Ready)])),
        ("serving, end said", with(&[(0, Input::Said(0))])),
        ("serving, candidate", with(&[(0, UpgradeAsked), (0, Input::Exited(Death::Exited(0))), (0, Ready)])),
        ("hung", with(&[(10_000, Tick)])),
        ("hung, candidate", with(&[(0, UpgradeAsked), (0, Input::Exited(Death::Exited(0))), (10_000, Tick)])),
        ("down", with(&[(0, KILLED), (0, Ready), (0, KILLED)])),
        ("upgrading", with(&[(0, UpgradeAsked)])),
    ]
}

fn inputs() -> Vec<(&'static str, Duration, Input)> {
    vec![
        ("Ready", Duration::ZERO, Input::Ready),
        ("Exited", Duration::ZERO, KILLED),
        ("Dying", Duration::ZERO, Input::Dying),
        ("Exited, not started", Duration::ZERO, Input::Exited(Death::NotStarted(2))),
        ("Stop: SIGTERM", Duration::ZERO, Input::Stop(15)),
        ("Stop: SIGHUP", Duration::ZERO, Input::Stop(1)),
        ("UpgradeAsked", Duration::ZERO, Input::UpgradeAsked),
        ("half a second passes", SECOND / 2, Input::Tick),
        ("ten seconds pass", 10 * SECOND, Input::Tick),
        ("the deadline passes", 30 * SECOND, Input::Tick),
    ]
}

fn word(action: &Action) -> String {
    match action {
        Action::Start { image: Image::Present, successor: false, .. } => "Start".into(),
        Action::Start { image: Image::Present, .. } => "Start successor".into(),
        Action::Start { image: Image::Candidate, .. } => "Start candidate".into(),
        Action::Exit(code) => format!("Exit {code}"),
        Action::Refuse { .. } => "Refuse".into(),
        Action::TellReady => "tell ready".into(),
        Action::TellDeath(_) => "tell death".into(),
        Action::TellFailed(_) => "tell failure".into(),
        other => format!("{other:?}").split('(').next().unwrap_or_default().to_owned(),
    }
}

#[test]
fn transitions_are_those_of_the_table() {
    let mut table = String::new();
    for index in 0..states().len() {
        for (input, time, what) in inputs() {
            let (state, mut rig) = states().swap_remove(index);
            let before = rig.machine.state();
            let actions = match what {
                // In small steps, with a daemon that does all it can to seem alive.
                Input::Tick if time == 30 * SECOND => {
                    let mut all = Vec::new();
                    for _ in 0..60 {
                        all.extend(rig.after(SECOND / 2, Input::Beat));
                        all.extend(rig.tell(Input::Tick));
                    }
                    all
                }
                what => rig.after(time, what),
            };
            let next = rig.machine.state();
            if actions.is_empty() && before.name() == next.name() {
                continue;
            }
            let does = actions.iter().map(word).collect::<Vec<_>>().join(", ");
            writeln!(table, "| {state} | {input} | {} | {does} |", next.name()).expect("a string");
        }
    }
    let written = include_str!("transitions.md");
    let written: String = written.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| -")).skip(1).fold(
        String::new(),
        |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        },
    );
    assert!(written.replace("|  |", "| |") == table.replace("|  |", "| |"), "the table should read:\n{table}");
}

fn starts(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Start { .. }))
}

#[test]
fn pauses_grow_between_early_deaths_and_end_with_a_long_life() {
    let mut rig = Rig::fed(&[(0, HELD), (0, Input::Ready)]);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let mut pause = 0;
        if !starts(&rig.tell(KILLED)) {
            let State::Down { until } = rig.machine.state() else { panic!("{:?}", rig.machine.state()) };
            pause = (until - rig.now).as_millis();
            rig.now = until;
            assert!(starts(&rig.tell(Input::Tick)));
        }
        pauses.push(pause);
        rig.tell(Input::Ready);
    }
    assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 2000, 2000]);
    rig.now += SECOND;
    rig.tell(Input::Beat);
    assert!(starts(&rig.tell(KILLED)), "it had served long enough");
}

/// A regression: the pidfd of a daemon that somebody had killed said nothing while a thread of it was inside a frozen sshfs,
/// and callers waited for the watchdog.
#[test]
fn a_daemon_that_was_killed_and_cannot_end_is_freed_at_once() {
    let mut rig = Rig::fed(&[(0, HELD), (0, Input::Ready)]);
    assert_eq!(rig.tell(Input::Dying), []);
    assert_eq!(rig.after(SECOND / 4, Input::Dying), [], "it may still end by itself");
    assert_eq!(rig.after(SECOND / 4, Input::Tick), [Action::Free]);
    assert_eq!(rig.tell(Input::Dying), []);
    assert!(starts(&rig.tell(KILLED)));
}

#[test]
fn it_is_abandoned_when_no_successor_serves_in_time() {
    let mut rig = Rig::fed(&[(0, HELD), (0, Input::Ready)]);
    let died = rig.now;
    assert!(starts(&rig.tell(KILLED)));
    let mut actions = Vec::new();
    while !matches!(rig.machine.state(), State::Ended { .. }) {
        if matches!(rig.machine.state(), State::Starting { .. }) {
            actions = rig.after(SECOND, Input::Exited(Death::Exited(2)));
        } else {
            rig.now = rig.machine.wakes_at().expect("something is due");
            actions = rig.tell(Input::Tick);
        }
        assert!(rig.now <= died + 31 * SECOND, "{:?}", rig.machine.state());
    }
    assert_eq!(actions[actions.len() - 2..], [Action::Abandon, Action::Exit(32)]);
    assert!(!starts(&actions));
    assert!(rig.now >= died + 30 * SECOND);
}

#[test]
fn a_daemon_that_cannot_die_is_freed_and_then_followed() {
    let mut rig = Rig::fed(&[(0, HELD), (0, Input::Ready)]);
    assert_eq!(rig.after(10 * SECOND, Input::Tick), [Action::DumpThreads, Action::Kill]);
    assert_eq!(rig.after(SECOND / 2, Input::Tick), [Action::Free]);
    assert_eq!(rig.after(SECOND, Input::Tick), []);
    let actions = rig.tell(KILLED);
    assert!(actions.contains(&Action::TellDeath(Death::Silent)), "{actions:?}");
    assert!(starts(&actions));
}

#[test]
fn without_a_watchdog_silence_means_nothing() {
    let now = Instant::now();
    let policy = Policy { watchdog: None, ..Policy::default() };
    let mut machine = Machine::begin(policy, false, now).0;
    machine.handle(HELD, now);
    machine.handle(Input::Ready, now);
    assert_eq!(machine.wakes_at(), None);
    assert_eq!(machine.handle(Input::Tick, now + 3600 * SECOND), []);
}

#[test]
fn a_candidate_is_kept_after_ten_seconds_of_service() {
    let mut rig = Rig::fed(&[(0, HELD), (0, Input::Ready), (0, Input::UpgradeAsked)]);
    assert!(rig.tell(Input::Exited(Death::Exited(0))).iter().any(|a| word(a) == "Start candidate"));
    rig.after(SECOND, Input::Ready);
    rig.after(9 * SECOND, Input::Beat);
    assert_eq!(rig.tell(Input::Tick), []);
    assert_eq!(rig.after(SECOND, Input::Tick), [], "it may hang");
    assert_eq!(rig.tell(Input::Beat), [Action::Accept]);
    assert!(rig.tell(KILLED).iter().any(|action| word(action) == "Start successor"));
}

#[test]
fn time_in_which_the_keeper_did_not_run_speaks_against_nobody() {
    let mut rig = Rig::fed(&[(0, HELD), (0, Input::Ready)]);
    assert_eq!(rig.after(3600 * SECOND, Input::Tick), []);
    assert_eq!(rig.after(9 * SECOND, Input::Tick), [], "it is given all its time again");
    assert_eq!(rig.after(SECOND, Input::Tick), [Action::DumpThreads, Action::Kill]);
    let mut rig = Rig::fed(&[(0, HELD), (0, Input::Ready), (0, KILLED)]);
    assert_eq!(rig.after(3600 * SECOND, Input::Beat), []);
    assert_eq!(rig.tell(Input::Ready), [Action::TellReady]);
}

#[test]
fn an_adopted_daemon_is_followed_like_any_other() {
    let now = Instant::now();
    let mut machine = Machine::adopt(Policy::default(), now);
    machine.handle(HELD, now);
    assert_eq!(machine.handle(Input::Ready, now), [Action::TellReady]);
    assert!(starts(&machine.handle(Input::Exited(Death::Unknown), now)));
}

#[test]
fn an_adopted_daemon_on_trial_may_still_be_taken_back() {
    let now = Instant::now();
    let mut machine = Machine::adopt(Policy::default(), now);
    machine.handle(Input::OnTrial, now);
    machine.handle(HELD, now);
    assert_eq!(machine.handle(Input::Ready, now), [Action::TellReady]);
    let mut kept = machine.clone();
    let todo = machine.handle(KILLED, now);
    assert!(todo.iter().any(|action| matches!(action, Action::Reject(_))), "{todo:?}");
    assert!(todo.iter().any(|action| matches!(action, Action::Start { image: Image::Present, .. })), "{todo:?}");
    assert_eq!(kept.handle(Input::Beat, now + Policy::default().trial), [Action::Accept]);
}

/// What may happen in the world, as far as the daemon lives to do it.
#[derive(Debug, Clone, Copy)]
enum Whim {
    Wait(u64),
    Beat,
    Ready,
    Held(bool),
    Say,
    Die,
    Stop(i32),
    Upgrade,
    RefuseStarts(bool),
    IgnoreKills(bool),
}

fn whim() -> impl Strategy<Value = Whim> {
    prop_oneof![
        4 => (0..12_000u64).prop_map(Whim::Wait),
        2 => Just(Whim::Beat),
        3 => Just(Whim::Ready),
        1 => any::<bool>().prop_map(Whim::Held),
        1 => Just(Whim::Say),
        4 => Just(Whim::Die),
        1 => prop_oneof![Just(1), Just(2), Just(15)].prop_map(Whim::Stop),
        1 => Just(Whim::Upgrade),
        1 => any::<bool>().prop_map(Whim::RefuseStarts),
        1 => any::<bool>().prop_map(Whim::IgnoreKills),
    ]
}

/// The world: at most one daemon, or the test fails.
struct World {
    rig: Rig,
    alive: bool,
    serving: bool,
    refuses: bool,
    immortal: bool,
    over: bool,
    abandoned: bool,
}

impl World {
    fn tell(&mut self, input: Input) {
        let mut queue = self.rig.tell(input);
        while !queue.is_empty() {
            let mut died = None;
            for action in std::mem::take(&mut queue) {
                assert!(!self.over, "{action:?} after the end");
                match action {
                    Action::Start { .. } => {
                        assert!(!self.alive, "two daemons");
                        self.alive = !self.refuses;
                        if self.refuses {
                            died = Some(Death::NotStarted(2));
                        }
                    }
                    Action::Kill if self.alive && !self.immortal => {
                        self.alive = false;
                        died = Some(Death::Signalled(9));
                    }
                    Action::Abandon => self.abandoned = true,
                    Action::Exit(_) => self.over = true,
                    _ => {}
                }
            }
            self.serving &= self.alive;
            if let Some(death) = died.filter(|_| !self.over) {
                queue = self.rig.tell(Input::Exited(death));
            }
        }
        let state = self.rig.machine.state();
        let due = self.rig.machine.wakes_at();
        assert!(self.over || self.alive || matches!(state, State::Down { .. }), "nobody will start one: {state:?}");
        assert!(self.over || self.serving || due.is_some() || self.rig.machine.first, "nothing is due: {state:?}");
    }
}

proptest! {
    #[test]
    fn there_are_never_two_daemons_and_never_none_without_hope(whims in prop::collection::vec(whim(), 1..80)) {
        let rig = Rig::new();
        let mut world = World {
            rig, alive: true, serving: false, refuses: false, immortal: false, over: false, abandoned: false,
        };
        for whim in whims {
            if world.over {
                break;
            }
            match whim {
                Whim::Wait(millis) => {
                    let until = world.rig.now + Duration::from_millis(millis);
                    while let Some(due) = world.rig.machine.wakes_at().filter(|due| *due <= until && !world.over) {
                        world.rig.now = due.max(world.rig.now);
                        world.tell(Input::Tick);
                    }
                    world.rig.now = until;
                }
                Whim::Beat if world.alive => world.tell(Input::Beat),
                Whim::Ready if world.alive => {
                    world.serving = true;
                    world.tell(Input::Ready);
                }
                Whim::Held(held) if world.alive => world.tell(Input::Resumable(held)),
                Whim::Say if world.alive => world.tell(Input::Said(0)),
                Whim::Die if world.alive => {
                    (world.alive, world.serving) = (false, false);
                    world.tell(KILLED);
                }
                Whim::Stop(signal) => world.tell(Input::Stop(signal)),
                Whim::Upgrade if world.alive => world.tell(Input::UpgradeAsked),
                Whim::RefuseStarts(yes) => world.refuses = yes,
                Whim::IgnoreKills(yes) => world.immortal = yes,
                _ => {}
            }
        }
        // From here on every daemon dies before it is ready: callers are cut off in time.
        let once_served = !world.rig.machine.first;
        let until = world.rig.now + Policy::default().deadline + SECOND;
        world.immortal = false;
        while !world.over && world.rig.now <= until {
            if world.alive {
                (world.alive, world.serving) = (false, false);
                world.rig.now += SECOND / 10;
                world.tell(KILLED);
            } else if let Some(due) = world.rig.machine.wakes_at() {
                world.rig.now = due.max(world.rig.now);
                world.tell(Input::Tick);
            }
        }
        prop_assert!(world.over, "{:?}", world.rig.machine);
        prop_assert!(world.abandoned || !once_served || world.rig.machine.last_death.is_some());
    }
}
