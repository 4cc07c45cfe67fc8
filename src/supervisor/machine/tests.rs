mod permitted;
mod repair;
mod table;

use nix::errno::Errno;
use proptest::prelude::*;

use super::*;
use crate::backing::{StartError, Vitals};
use crate::config::PermitConfig;
use crate::gate::Inside;
use crate::supervisor::permit::{LockLook, Look};

const S: Duration = Duration::from_secs(1);

/// A machine with a clock that the test moves.
struct Rig {
    machine: Machine,
    now: Instant,
    vitals: Vitals,
    inside: Inside,
    done: Vec<Action>,
}

impl Rig {
    fn new() -> Rig {
        let now = Instant::now();
        let (machine, done) = Machine::begin(RepairPolicy::default(), 5 * S, now);
        Rig { machine, now, vitals: Vitals::default(), inside: Inside::default(), done }
    }

    /// A successor that is to take generation `newest` over.
    fn adopting(newest: u64) -> Rig {
        let now = Instant::now();
        let (machine, done) = Machine::resume(RepairPolicy::default(), 5 * S, now, now, newest, true);
        assert_eq!(done, [Action::Adopt(newest)]);
        Rig { machine, now, vitals: Vitals::default(), inside: Inside::default(), done }
    }

    fn starting() -> Rig {
        let mut rig = Rig::new();
        rig.put(Input::Reached);
        rig
    }

    /// In a long back-off, after starts that failed so.
    fn waiting(error: StartError) -> Rig {
        let mut rig = Rig::starting();
        for generation in 1..8 {
            rig.put(Input::StartFailed(generation, error.clone()));
            if generation < 7 {
                rig.pass(30 * S);
            }
        }
        assert_eq!(rig.machine.state().name(), "waiting");
        rig
    }

    /// The next generation comes up and serves.
    fn come_up_again(&mut self) {
        self.put(Input::Retired(self.machine.newest()));
        self.put(Input::Reached);
        self.put(Input::Started(self.machine.newest()));
        self.put(Input::Restored(self.machine.newest()));
        assert_eq!(self.machine.state().name(), "live");
    }

    fn live() -> Rig {
        let mut rig = Rig::starting();
        rig.put(Input::Started(1));
        rig.put(Input::Restored(1));
        assert_eq!(rig.machine.state().name(), "live");
        rig
    }

    fn put(&mut self, input: Input) -> Vec<Action> {
        let sight = Sight { now: self.now, vitals: self.vitals, inside: self.inside, dice: 0.0 };
        let todo = self.machine.handle(input, &sight);
        self.done.extend(todo.clone());
        todo
    }

    /// Lets time pass in steps as the runner does; what was to be done on the way is returned.
    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let (end, from) = (self.now + time, self.done.len());
        while self.now < end {
            self.now = self.machine.wakes_at(self.now).clamp(self.now + Duration::from_millis(1), end);
            self.put(Input::Tick);
        }
        self.done[from..].to_vec()
    }

    fn probe(&self) -> Option<(u64, u64)> {
        self.done.iter().rev().find_map(|action| match action {
            Action::Probe(generation, id) => Some((*generation, *id)),
            _ => None,
        })
    }
}

fn opened(todo: &[Action]) -> bool {
    todo.iter().any(|action| matches!(action, Action::Open(_)))
}

fn closed(todo: &[Action]) -> bool {
    todo.iter().any(|action| matches!(action, Action::Close(_)))
}

#[test]
fn the_gate_opens_only_when_descriptors_are_back() {
    let mut rig = Rig::new();
    assert_eq!(rig.done, [Action::Reach]);
    assert_eq!(rig.put(Input::Reached), [Action::Start(1)]);
    assert_eq!(rig.put(Input::Started(1)), [Action::Restore(1)]);
    assert!(opened(&rig.put(Input::Restored(1))));
}

#[test]
fn a_call_that_is_never_answered_ends_a_generation_that_answers_probes() {
    let mut rig = Rig::live();
    rig.inside = Inside { any: Some(rig.now), lost_at: Some(rig.now + 30 * S), sync: None };
    rig.put(Input::Evidence(1, Reason::CallLate));
    let mut waited = Duration::ZERO;
    while rig.machine.state().name() != "retiring" {
        let (generation, id) = rig.probe().expect("a probe");
        rig.put(Input::ProbeAnswered(generation, id));
        rig.pass(S);
        waited += S;
        assert!(waited < 40 * S, "it hangs for ever");
    }
    assert!(waited >= 30 * S, "after {waited:?}");
    assert_eq!(rig.machine.outage().map(|outage| outage.reason), Some(Reason::CallLate));
}

#[test]
fn a_silent_link_is_pronounced_dead_within_three_seconds() {
    let mut rig = Rig::live();
    let todo = rig.pass(3 * S);
    assert!(closed(&todo), "{todo:?}");
    assert!(todo.contains(&Action::Retire(1)));
    assert!(!opened(&todo));
}

#[test]
fn a_process_exit_is_a_verdict() {
    let mut rig = Rig::live();
    let todo = rig.put(Input::Evidence(1, Reason::ProcessExit));
    assert!(closed(&todo) && todo.contains(&Action::Retire(1)));
    assert_eq!(rig.put(Input::Retired(1)), [Action::Reach]);
    assert_eq!(rig.put(Input::Reached), [Action::Tell(News::RepairStarted { generation: 2 }), Action::Start(2)]);
}

#[test]
fn moving_bytes_keep_a_saturated_link_alive() {
    let mut rig = Rig::live();
    for _ in 0..600 {
        rig.vitals.progress_at = Some(rig.now);
        assert!(rig.machine.wakes_at(rig.now) > rig.now || rig.probe().is_none(), "a busy loop");
        let todo = rig.pass(S / 10);
        assert!(!closed(&todo), "{todo:?}");
    }
    assert!(rig.machine.outage().is_none());
}

#[test]
fn an_answered_probe_refutes_a_call_error() {
    let mut rig = Rig::live();
    let todo = rig.put(Input::Evidence(1, Reason::CallError));
    assert!(todo.iter().any(|action| matches!(action, Action::Probe(1, _))), "asks at once: {todo:?}");
    let (generation, id) = rig.probe().expect("a probe was sent");
    let sent = rig.now;
    let todo = rig.put(Input::ProbeAnswered(generation, id));
    assert!(todo.contains(&Action::Settle(1, sent)));
    assert!(todo.contains(&Action::Doubt(None)));
    assert_eq!(rig.machine.state().name(), "live");
}

#[test]
fn evidence_after_a_probe_was_sent_wants_another_probe() {
    let mut rig = Rig::live();
    rig.pass(S);
    let (generation, id) = rig.probe().expect("a probe was sent");
    rig.put(Input::Evidence(1, Reason::CallError));
    let todo = rig.put(Input::ProbeAnswered(generation, id));
    assert_eq!(rig.machine.state().name(), "suspect");
    assert!(todo.contains(&Action::Probe(1, id + 1)), "{todo:?}");
}

#[test]
fn a_link_that_heals_is_used_within_a_second_whatever_the_back_off_is() {
    let mut rig = Rig::waiting(StartError::Unreachable("reset".into()));
    rig.pass(3 * S);
    rig.put(Input::Unreached);
    rig.pass(S / 2);
    let todo = rig.put(Input::Reached);
    assert!(matches!(todo[..], [Action::Start(_)]), "{todo:?}");
}

#[test]
fn nothing_is_started_while_nobody_answers_so_that_a_late_return_does_not_wait_for_a_back_off() {
    let mut rig = Rig::waiting(StartError::Unreachable("mount gone?".into()));
    rig.pass(S);
    rig.put(Input::Unreached);
    for _ in 0..600 {
        let todo = rig.pass(S / 2);
        assert!(!todo.iter().any(|action| matches!(action, Action::Start(_))), "{todo:?}");
        if todo.contains(&Action::Reach) {
            rig.put(Input::Unreached);
        }
    }
    rig.pass(S / 2);
    let todo = rig.put(Input::Reached);
    assert!(matches!(todo[..], [Action::Start(_)]), "{todo:?}");
}

#[test]
fn a_refused_key_is_not_retried_until_asked() {
    let mut rig = Rig::new();
    rig.put(Input::Reached);
    rig.put(Input::StartFailed(1, StartError::Refused("Permission denied (publickey).".into())));
    let todo = rig.pass(3600 * S);
    assert!(!todo.iter().any(|action| matches!(action, Action::Start(_) | Action::Reach)), "{todo:?}");
    assert_eq!(rig.put(Input::RetryNow), [Action::Reach]);
}

#[test]
fn an_outage_is_overdue_once_and_only_after_the_deadline() {
    let mut rig = Rig::live();
    rig.put(Input::Evidence(1, Reason::ProcessExit));
    rig.put(Input::Retired(1));
    let overdue = |todo: &[Action]| {
        todo.iter().filter(|action| matches!(action, Action::Tell(News::OutageOverdue { .. }))).count()
    };
    assert_eq!(overdue(&rig.pass(S * 49 / 10)), 0);
    assert_eq!(overdue(&rig.pass(60 * S)), 1);
}

#[test]
fn stopping_retires_what_exists_and_then_finishes() {
    let mut rig = Rig::live();
    let todo = rig.put(Input::Stop);
    assert!(closed(&todo) && todo.contains(&Action::Retire(1)));
    assert_eq!(rig.put(Input::Retired(1)), [Action::Finish]);
    let mut rig = Rig::new();
    rig.put(Input::Reached);
    assert_eq!(rig.put(Input::Stop), [Action::CancelStart]);
    assert_eq!(rig.put(Input::Started(1)), [Action::Retire(1)]);
    assert_eq!(rig.put(Input::Retired(1)), [Action::Finish]);
}

fn any_input() -> impl Strategy<Value = u8> {
    0_u8..22
}

proptest! {
    /// Whatever happens in whatever order: one generation at a time, an open gate only to the one that exists,
    /// numbers that only grow, no repair under a lock unless ordered, no more repairs than allowed, and nothing after the end.
    #[test]
    fn never_two_generations(
        with_lock: bool, script in proptest::collection::vec((any_input(), 0_u64..4000), 1..200),
    ) {
        let mut rig = Rig::new();
        if with_lock {
            let config = PermitConfig { deploy_lock: Some("/lock".into()), max_per_hour: 3, ..PermitConfig::default() };
            rig.machine = rig.machine.with_permit(Permit::new(config, Vec::new()), None);
        }
        // Set by what was seen, and by an order that no start has answered yet.
        let (mut locked, mut ordered) = (true, false);
        let (mut alive, mut open, mut newest, mut finished): (Option<u64>, Option<u64>, u64, bool) = (None, None, 0, false);
        for (pick, millis) in script {
            rig.now += Duration::from_millis(millis);
            let newest_seen = rig.machine.newest();
            let (generation, id) = rig.probe().unwrap_or((newest_seen, 0));
            let starting = matches!(rig.machine.state(), State::Starting { .. } | State::Stopping { .. });
            let input = match pick {
                0 => Input::Evidence(newest_seen, Reason::CallError),
                1 => Input::Evidence(newest_seen, Reason::ProcessExit),
                2 => Input::Evidence(newest_seen, Reason::CallLate),
                3 => Input::ProbeAnswered(generation, id),
                4 => Input::ProbeFailed(generation, id, Errno::ENOTCONN),
                5 => Input::Reached,
                6 => Input::Unreached,
                // The world outside only reports what was asked of it.
                7 if starting && alive == Some(newest_seen) => Input::Started(newest_seen),
                8 if starting && alive == Some(newest_seen) => Input::StartFailed(newest_seen, StartError::Unreachable(String::new())),
                9 => Input::Restored(newest_seen),
                10 if alive.is_some() && rig.done.contains(&Action::Retire(newest_seen)) => Input::Retired(newest_seen),
                11 => Input::RetryNow,
                12 if millis > 3900 => Input::Stop,
                13 => Input::RestoreFailed(newest_seen, String::new()),
                14 => Input::ProbeUnsent(generation, id),
                15 => permitted::locked(),
                16..=18 => permitted::unlocked(),
                19 if millis > 3500 => Input::Replace,
                _ => Input::Tick,
            };
            if matches!(input, Input::StartFailed(..) | Input::Retired(_)) {
                alive = None;
            }
            match input {
                Input::Seen(Look::Lock(LockLook::Held { .. })) => locked = true,
                Input::Seen(_) => locked = false,
                Input::Replace => ordered = true,
                // What is up is only probed.
                Input::RetryNow => ordered |= rig.machine.state().service().is_none(),
                _ => {}
            }
            let first = !rig.machine.ever_live();
            let todo = rig.put(input);
            let later = rig.put(Input::Tick);
            prop_assert!(rig.machine.wakes_at(rig.now) > rig.now, "a busy loop: {:?}", rig.machine.state());
            for action in todo.into_iter().chain(later) {
                prop_assert!(!finished, "after the end: {action:?}");
                match action {
                    Action::Start(generation) => {
                        prop_assert_eq!(alive, None, "two generations");
                        prop_assert!(generation > newest);
                        prop_assert!(!with_lock || !locked || first || ordered, "a start during a deploy");
                        ordered = false;
                        (alive, newest) = (Some(generation), generation);
                    }
                    Action::Tell(News::RepairStarted { .. }) if with_lock && !ordered => {
                        let hour = |at: &&Instant| rig.now.saturating_duration_since(**at) < 3600 * S;
                        prop_assert!(rig.machine.permit().starts().iter().filter(hour).count() <= 3);
                    }
                    Action::Open(generation) => {
                        prop_assert_eq!((alive, open), (Some(generation), None));
                        open = Some(generation);
                    }
                    Action::Close(_) => open = None,
                    Action::Retire(generation) => prop_assert!(alive == Some(generation) && open.is_none()),
                    Action::Probe(generation, _) => prop_assert_eq!(alive, Some(generation)),
                    Action::Finish => finished = true,
                    _ => {}
                }
            }
        }
    }
}
