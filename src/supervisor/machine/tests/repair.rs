//! Restoring, early deaths, and time in which nobody watched.

use super::*;

#[test]
fn a_slow_server_becomes_steady_although_a_probe_is_always_under_way() {
    let mut rig = Rig::live();
    let mut steady = 0;
    for _ in 0..6 {
        // Each answer comes when the next probe is due already.
        rig.pass(S);
        let (generation, id) = rig.probe().expect("a probe was sent");
        let todo = rig.put(Input::ProbeAnswered(generation, id));
        steady += todo.iter().filter(|action| matches!(action, Action::Tell(News::Steady { .. }))).count();
    }
    assert_eq!(steady, 1);
}

fn restoring() -> Rig {
    let mut rig = Rig::starting();
    rig.put(Input::Started(1));
    rig
}

#[test]
fn a_link_that_is_cut_while_restoring_is_pronounced_dead_and_the_gate_stays_shut() {
    let mut rig = restoring();
    let todo = rig.pass(3 * S);
    assert!(todo.contains(&Action::Retire(1)) && !opened(&todo), "{todo:?}");
    assert!(rig.put(Input::Restored(1)).is_empty(), "too late");
    rig.put(Input::Retired(1));
    assert_eq!(rig.put(Input::Reached), [Action::Start(2)]);
}

#[test]
fn a_server_that_freezes_while_restoring_is_pronounced_dead_as_one_that_syncs() {
    let mut rig = restoring();
    rig.vitals.link_acked = true;
    assert!(!rig.pass(verdict::SYNCING - S / 2).contains(&Action::Retire(1)));
    assert!(rig.pass(S).contains(&Action::Retire(1)));
}

#[test]
fn a_long_restoration_is_left_in_peace_while_bytes_move() {
    let mut rig = restoring();
    for _ in 0..1800 {
        rig.vitals.progress_at = Some(rig.now);
        assert!(rig.machine.wakes_at(rig.now) > rig.now || rig.probe().is_none(), "a busy loop");
        let todo = rig.pass(S / 10);
        assert!(!todo.contains(&Action::Retire(1)), "{todo:?}");
    }
    assert!(opened(&rig.put(Input::Restored(1))));
}

#[test]
fn a_restoration_that_failed_condemns_its_generation() {
    let mut rig = restoring();
    let todo = rig.put(Input::RestoreFailed(1, "no".into()));
    assert!(todo.contains(&Action::Retire(1)) && !opened(&todo));
    let told = |action: &Action| matches!(action, Action::Tell(News::RestoreFailed { words: Some(words), .. }) if words == "no");
    assert!(todo.iter().any(told), "{todo:?}");
}

/// Lets the present generation be removed; true if the next is started at once.
fn restarts_at_once(rig: &mut Rig) -> bool {
    rig.put(Input::Retired(rig.machine.newest())) == [Action::Reach]
}

#[test]
fn the_third_early_death_in_a_row_is_followed_by_a_pause_that_grows() {
    let exit = |rig: &mut Rig| rig.put(Input::Evidence(rig.machine.newest(), Reason::ProcessExit));
    let mut rig = Rig::live();
    // How often it died early before, and the pause that follows.
    let pauses = [(0, 0), (1, 0), (2, 500), (3, 1000), (4, 2000)];
    for (before, millis) in pauses {
        exit(&mut rig);
        let pause = Duration::from_millis(millis);
        assert_eq!(restarts_at_once(&mut rig), pause.is_zero(), "after {before}");
        if !pause.is_zero() {
            let State::Waiting { until, .. } = rig.machine.state() else { panic!("{:?}", rig.machine.state()) };
            assert_eq!(*until - rig.now, pause, "after {before}");
            rig.pass(pause);
        } else {
            rig.put(Input::Reached);
        }
        rig.put(Input::Started(rig.machine.newest()));
        rig.put(Input::Restored(rig.machine.newest()));
    }
    // One that was steady ends the row.
    for _ in 0..30 {
        rig.pass(S / 10);
        let (generation, id) = rig.probe().expect("a probe was sent");
        rig.put(Input::ProbeAnswered(generation, id));
    }
    exit(&mut rig);
    assert!(restarts_at_once(&mut rig));
}

#[test]
fn a_link_that_flaps_is_never_waited_for() {
    let mut rig = Rig::live();
    for _ in 0..10 {
        let todo = rig.pass(3 * S);
        assert!(todo.contains(&Action::Retire(rig.machine.newest())), "{todo:?}");
        rig.come_up_again();
    }
}

#[test]
fn a_start_that_fell_silent_is_tried_again_when_the_link_is_back() {
    let mut rig = Rig::waiting(StartError::Unreachable(String::new()));
    rig.pass(30 * S);
    rig.put(Input::StartFailed(rig.machine.newest(), StartError::Silent("silent".into())));
    assert_eq!(rig.pass(S / 2), [Action::Reach]);
    assert!(matches!(rig.put(Input::Reached)[..], [Action::Start(_)]));
}

/// A mount below that is gone when a start fails, and back two seconds later, is used then and not after the back-off.
#[test]
fn what_is_gone_after_a_failed_start_is_missed_at_once_and_noticed_when_it_is_back() {
    let mut rig = Rig::waiting(StartError::Unreachable(String::new()));
    rig.pass(30 * S);
    rig.put(Input::StartFailed(rig.machine.newest(), StartError::Unreachable("gone".into())));
    assert_eq!(rig.pass(S / 2), [Action::Reach]);
    rig.put(Input::Unreached);
    assert_eq!(rig.pass(S / 2), [Action::Reach]);
    assert!(matches!(rig.put(Input::Reached)[..], [Action::Start(_)]));
}

#[test]
fn a_server_on_which_every_start_falls_silent_is_not_hammered() {
    let mut rig = Rig::starting();
    for _ in 0..20 {
        rig.put(Input::StartFailed(rig.machine.newest(), StartError::Silent("silent".into())));
        rig.pass(S / 2);
        rig.put(Input::Reached);
    }
    assert_eq!(rig.machine.state().name(), "waiting");
}

#[test]
fn a_server_that_answers_is_not_asked_every_moment_during_a_back_off() {
    let mut rig = Rig::waiting(StartError::Unreachable(String::new()));
    let mut looks = 0;
    for _ in 0..24 {
        for action in rig.pass(S) {
            if action == Action::Reach {
                looks += 1;
                rig.put(Input::Reached);
            }
        }
    }
    assert!((4..=8).contains(&looks), "{looks}");
}

#[test]
fn a_pause_of_this_process_is_no_silence_of_the_server() {
    // How long everything stood still, at a moment when a probe was under way.
    for pause in [S / 2, 19 * S / 10, 2 * S, 10 * S, 3600 * S] {
        let mut rig = Rig::live();
        rig.pass(S / 10);
        rig.now += pause;
        let mut todo = rig.put(Input::Tick);
        todo.extend(rig.pass(S));
        assert!(!closed(&todo), "{pause:?}: {todo:?}");
        // What is silent for long after that is dead all the same.
        assert!(closed(&rig.pass(2 * S)), "{pause:?}");
    }
}

#[test]
fn a_probe_that_was_not_sent_is_no_evidence_and_is_sent_again_in_its_time() {
    let mut rig = Rig::live();
    rig.put(Input::Evidence(1, Reason::CallError));
    for _ in 0..20 {
        let (generation, id) = rig.probe().expect("a probe was to be sent");
        assert!(rig.put(Input::ProbeUnsent(generation, id)).is_empty(), "no busy loop");
        let todo = rig.pass(S);
        assert!(todo.iter().any(|action| matches!(action, Action::Probe(1, _))), "{todo:?}");
        assert!(!closed(&todo), "{todo:?}");
    }
}

#[test]
fn an_end_is_waited_for_without_spinning() {
    let mut rig = Rig::live();
    rig.put(Input::Evidence(1, Reason::ProcessExit));
    rig.put(Input::Stop);
    rig.now += 60 * S;
    rig.put(Input::Tick);
    assert!(rig.machine.wakes_at(rig.now) > rig.now);
}

#[test]
fn an_adopted_generation_is_restored_and_serves_under_its_number() {
    let mut rig = Rig::adopting(7);
    assert_eq!(rig.put(Input::Adopted(6)), [], "another one");
    assert_eq!(rig.put(Input::Adopted(7)), [Action::Restore(7)]);
    let todo = rig.put(Input::Restored(7));
    assert!(opened(&todo), "{todo:?}");
    assert!(
        todo.iter().any(|action| matches!(
            action,
            Action::Tell(News::Recovered { generation: 7, reason: Reason::Succession, .. })
        )),
        "{todo:?}"
    );
    assert!(rig.put(Input::Evidence(7, Reason::ProcessExit)).contains(&Action::Retire(7)));
    rig.put(Input::Retired(7));
    assert_eq!(rig.put(Input::Reached).last(), Some(&Action::Start(8)), "numbers go on");
}

#[test]
fn numbers_go_on_after_a_predecessor_whose_generation_cannot_be_taken_over() {
    let mut rig = Rig::adopting(7);
    rig.put(Input::NotAdopted(7));
    assert_eq!(rig.put(Input::Reached).last(), Some(&Action::Start(8)));
    // Nothing is hopeless for who has seen it work.
    rig.put(Input::StartFailed(8, StartError::Local(String::new())));
    assert_eq!(rig.machine.state().name(), "waiting");
    let (mut machine, done) = Machine::resume(RepairPolicy::default(), 5 * S, rig.now, rig.now - 60 * S, 9, false);
    assert_eq!(done, [Action::Reach]);
    let sight = Sight { now: rig.now, vitals: rig.vitals, inside: rig.inside, dice: 0.0 };
    // What is a minute old is overdue at once.
    assert!(machine.handle(Input::Reached, &sight).contains(&Action::Start(10)));
    assert_eq!(machine.outage().map(|outage| outage.since), Some(rig.now - 60 * S), "it goes on");
}
