//! Starts that are held back.

use super::*;
use crate::config::PermitConfig;
use crate::supervisor::permit::{EnableLook, HeldBy, LockLook, Look, Permit};

pub(super) fn locked() -> Input {
    Input::Seen(Look::Lock(LockLook::Held { age: S }))
}

pub(super) fn unlocked() -> Input {
    Input::Seen(Look::Lock(LockLook::Absent))
}

impl Rig {
    /// Live, with those permits.
    pub(super) fn permitted(config: PermitConfig) -> Rig {
        let mut rig = Rig::live();
        rig.machine = rig.machine.with_permit(Permit::new(config, Vec::new()), None);
        rig
    }

    pub(super) fn with_lock() -> Rig {
        Rig::permitted(PermitConfig { deploy_lock: Some("/lock".into()), ..PermitConfig::default() })
    }

    /// Its generation dies and is removed, and the server answers; what is done then.
    pub(super) fn die(&mut self) -> Vec<Action> {
        let newest = self.machine.newest();
        self.put(Input::Evidence(newest, Reason::ProcessExit));
        assert_eq!(self.put(Input::Retired(newest)), [Action::Reach]);
        self.put(Input::Reached)
    }

    fn held_by(&self) -> Option<HeldBy> {
        match self.machine.state() {
            State::Held { hold, .. } => hold.map(|hold| hold.by),
            _ => None,
        }
    }
}

/// What the start of a repair does.
fn starts(generation: u64) -> [Action; 2] {
    [Action::Tell(News::RepairStarted { generation }), Action::Start(generation)]
}

#[test]
fn a_repair_waits_for_the_deploy_to_end_and_starts_then() {
    let mut rig = Rig::with_lock();
    assert_eq!(rig.die(), [], "nobody has looked at the lock lately");
    assert_eq!((rig.machine.state().name(), rig.held_by()), ("held", None));
    let todo = rig.put(locked());
    assert!(matches!(todo[..], [Action::Tell(News::RepairHeld { .. })]), "{todo:?}");
    assert_eq!(rig.held_by(), Some(HeldBy::DeployLock));
    // Told once.
    for _ in 0..100 {
        rig.now += S;
        let todo = rig.put(locked());
        assert!(todo.iter().all(|action| matches!(action, Action::Tell(News::OutageOverdue { .. }))), "{todo:?}");
    }
    // Long ago that the server answered: it is looked for first.
    assert_eq!(rig.put(unlocked()), [Action::Tell(News::RepairReleased { ordered: false }), Action::Reach]);
    assert_eq!(rig.put(Input::Reached), starts(2));
    assert_eq!(rig.put(Input::Started(2)), [Action::Restore(2)]);
    assert!(opened(&rig.put(Input::Restored(2))));
}

#[test]
fn a_server_that_has_just_answered_is_not_asked_again() {
    let mut rig = Rig::with_lock();
    rig.die();
    assert_eq!(rig.put(unlocked()), starts(2), "and nothing was told, as nothing was held back");
}

#[test]
fn each_start_of_a_repair_needs_the_lock_but_only_the_first_is_counted() {
    let mut rig = Rig::permitted(PermitConfig {
        deploy_lock: Some("/lock".into()),
        cool_down: 900 * S,
        max_per_hour: 1,
        ..PermitConfig::default()
    });
    rig.put(unlocked());
    assert_eq!(rig.die(), starts(2));
    rig.put(Input::StartFailed(2, StartError::Unreachable("reset".into())));
    rig.pass(S / 10);
    rig.put(locked());
    rig.pass(S);
    assert_eq!(rig.held_by(), Some(HeldBy::DeployLock));
    let todo = rig.put(unlocked());
    assert_eq!(todo, [Action::Tell(News::RepairReleased { ordered: false }), Action::Start(3)]);
    assert_eq!(rig.machine.permit().starts().len(), 1);
    rig.put(Input::Started(3));
    rig.put(Input::Restored(3));
    // The next outage is another repair.
    rig.put(unlocked());
    rig.die();
    assert_eq!(rig.held_by(), Some(HeldBy::HourlyLimit));
}

#[test]
fn what_is_held_until_a_time_starts_at_that_time() {
    let mut rig = Rig::permitted(PermitConfig { min_age: 120 * S, ..PermitConfig::default() });
    let died = rig.now;
    rig.die();
    assert_eq!(rig.held_by(), Some(HeldBy::MinAge));
    rig.pass(120 * S);
    // It is looked for again, as that was two minutes ago.
    assert_eq!(rig.machine.state().name(), "reaching");
    assert_eq!(rig.machine.entered(), died + 120 * S);
    assert_eq!(rig.put(Input::Reached), starts(2));
}

#[test]
fn an_order_overrides_every_permit_once_and_is_counted() {
    let config = PermitConfig {
        deploy_lock: Some("/lock".into()),
        enable_file: Some("/enable".into()),
        confirmations: 9,
        min_age: 9000 * S,
        cool_down: 900 * S,
        max_per_hour: 1,
        max_per_day: 1,
        ..PermitConfig::default()
    };
    let mut rig = Rig::permitted(config);
    rig.machine.permit.started(rig.now);
    rig.put(locked());
    rig.put(Input::Seen(Look::Enable(EnableLook::Missing)));
    rig.die();
    assert_eq!(rig.machine.state().name(), "held");
    assert_eq!(rig.put(Input::RetryNow), [Action::Tell(News::RepairReleased { ordered: true }), Action::Reach]);
    assert_eq!(rig.put(Input::Reached), starts(2));
    assert_eq!(rig.machine.permit().starts().len(), 2);
    // One start: another that the deploy would be in the way of has to be ordered again.
    rig.put(Input::StartFailed(2, StartError::Unreachable("reset".into())));
    rig.pass(S);
    assert_eq!(rig.machine.state().name(), "held");
}

#[test]
fn an_order_that_comes_before_the_permit_is_asked_counts_too() {
    for state in ["retiring", "reaching", "waiting", "halted"] {
        let mut rig = Rig::with_lock();
        rig.put(locked());
        let newest = rig.machine.newest();
        rig.put(Input::Evidence(newest, Reason::ProcessExit));
        if state != "retiring" {
            rig.put(Input::Retired(newest));
        }
        if state == "waiting" || state == "halted" {
            rig.put(unlocked());
            rig.put(Input::Reached);
            let error = if state == "waiting" {
                StartError::Unreachable(String::new())
            } else {
                StartError::Refused(String::new())
            };
            rig.put(Input::StartFailed(2, error));
            rig.put(locked());
        }
        assert_eq!(rig.machine.state().name(), state);
        rig.put(Input::RetryNow);
        rig.put(locked());
        if state == "retiring" {
            rig.put(Input::Retired(newest));
        }
        let todo = rig.put(Input::Reached);
        assert!(matches!(todo.last(), Some(Action::Start(_))), "{state}: {todo:?}");
    }
}

#[test]
fn a_first_start_and_a_generation_that_is_taken_over_need_no_permit() {
    let lock =
        || Permit::new(PermitConfig { deploy_lock: Some("/lock".into()), ..PermitConfig::default() }, Vec::new());
    let mut rig = Rig::new();
    rig.machine = rig.machine.with_permit(lock(), None);
    rig.put(locked());
    assert_eq!(rig.put(Input::Reached), [Action::Start(1)]);
    rig.put(Input::StartFailed(1, StartError::Unreachable(String::new())));
    rig.pass(S);
    assert_eq!(rig.machine.state().name(), "starting", "nor does another try");
    assert!(rig.machine.permit().starts().is_empty());

    let mut rig = Rig::adopting(7);
    rig.machine = rig.machine.with_permit(lock(), None);
    rig.put(locked());
    rig.put(Input::Adopted(7));
    assert!(opened(&rig.put(Input::Restored(7))));
    // But the next start of a successor that found it dead is a repair, or a daemon that is killed would be a way around.
    let mut rig = Rig::adopting(7);
    rig.machine = rig.machine.with_permit(lock(), None);
    rig.put(locked());
    rig.put(Input::NotAdopted(7));
    rig.put(Input::Reached);
    assert_eq!(rig.held_by(), Some(HeldBy::DeployLock));
}

#[test]
fn a_successor_goes_on_with_the_repair_that_its_predecessor_had_begun() {
    for (begun, held) in [(Some(Instant::now()), false), (None, true)] {
        let now = Instant::now();
        let (machine, _) = Machine::resume(RepairPolicy::default(), 5 * S, now, now - 60 * S, 7, false);
        let config = PermitConfig { cool_down: 900 * S, ..PermitConfig::default() };
        let permit = Permit::new(config, vec![now - S]);
        let machine = machine.with_permit(permit, begun);
        let mut rig = Rig { machine, now, vitals: Vitals::default(), inside: Inside::default(), done: Vec::new() };
        rig.put(Input::Reached);
        assert_eq!(rig.machine.state().name(), if held { "held" } else { "starting" });
        assert_eq!(rig.machine.permit().starts().len(), 1, "it is not counted again");
    }
}

#[test]
fn a_replacement_ends_what_is_well_and_needs_no_permit() {
    let mut rig = Rig::with_lock();
    rig.put(locked());
    let todo = rig.put(Input::Replace);
    assert!(closed(&todo) && todo.contains(&Action::Retire(1)), "{todo:?}");
    rig.put(Input::Retired(1));
    assert_eq!(rig.put(Input::Reached), starts(2));
    assert_eq!(rig.machine.outage().map(|outage| outage.reason), Some(Reason::Asked));
}

#[test]
fn permits_can_be_changed_while_they_hold_something_back() {
    let mut rig = Rig::with_lock();
    rig.put(locked());
    rig.die();
    assert_eq!(rig.held_by(), Some(HeldBy::DeployLock));
    rig.machine.set_permit(PermitConfig { min_age: 60 * S, ..PermitConfig::default() });
    rig.put(Input::Tick);
    assert_eq!(rig.held_by(), Some(HeldBy::MinAge));
    rig.machine.set_permit(PermitConfig::default());
    assert_eq!(rig.put(Input::Tick)[1..], starts(2));
}
