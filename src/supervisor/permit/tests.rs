//! The policy, with a clock that the tests move.

use std::time::SystemTime;

use proptest::prelude::*;

use super::record::Record;
use super::*;
use crate::supervisor::report::LastRepair;

const S: Duration = Duration::from_secs(1);

fn config() -> PermitConfig {
    PermitConfig {
        deploy_lock: Some("/tmp/deploy.lock".into()),
        enable_file: Some("/etc/enabled".into()),
        confirmations: 2,
        min_age: 120 * S,
        cool_down: 900 * S,
        max_per_hour: 2,
        max_per_day: 6,
        ..PermitConfig::default()
    }
}

/// Limits and nothing else.
fn limits(cool_down: u64, max_per_hour: u32, max_per_day: u32) -> PermitConfig {
    PermitConfig { cool_down: S * cool_down as u32, max_per_hour, max_per_day, ..PermitConfig::default() }
}

fn outage(at: Instant) -> Sight {
    Sight { outage_since: at, begun: false }
}

fn held_by(answer: Answer) -> Option<HeldBy> {
    match answer {
        Answer::Held(hold) => Some(hold.by),
        _ => None,
    }
}

/// Both files as they are when nothing is wrong.
fn all_well(permit: &mut Permit, now: Instant) {
    permit.see(now, Look::Lock(LockLook::Absent));
    permit.see(now, Look::Enable(EnableLook::There));
}

#[test]
fn nothing_is_held_back_by_default() {
    let now = Instant::now();
    let mut permit = Permit::default();
    permit.started(now);
    assert_eq!(permit.ask(now, &outage(now)), Answer::Granted);
}

#[test]
fn each_permit_holds_back_in_its_turn_and_the_longest_is_named() {
    let start = Instant::now();
    let mut permit = Permit::new(config(), vec![start]);
    let sight = outage(start);
    permit.verdict(start);
    assert_eq!(permit.ask(start, &sight), Answer::Unseen);
    permit.see(start, Look::Lock(LockLook::Held { age: 9 * S }));
    assert_eq!(permit.ask(start, &sight), Answer::Unseen, "the other file has not been looked at");
    permit.see(start, Look::Enable(EnableLook::Missing));
    let all = |permit: &Permit, now| permit.holds(now, &sight).iter().map(|hold| hold.by).collect::<Vec<_>>();
    use HeldBy::*;
    assert_eq!(all(&permit, start), [DeployLock, EnableFile, Confirmations, MinAge, CoolDown]);
    assert_eq!(held_by(permit.ask(start, &sight)), Some(DeployLock));
    permit.see(start, Look::Lock(LockLook::Free { age: 9 * S }));
    assert_eq!(permit.ask(start, &sight), Answer::Held(Hold { by: EnableFile, until: None }));
    all_well(&mut permit, start);
    assert_eq!(permit.ask(start, &sight), Answer::Held(Hold { by: CoolDown, until: Some(start + 900 * S) }));
    let later = start + 61 * S;
    permit.confirm(later);
    assert_eq!(all(&permit, later), [MinAge, CoolDown]);
    assert_eq!(all(&permit, start + 120 * S), [CoolDown]);
    assert_eq!(permit.ask(start + 4 * S, &sight), Answer::Unseen, "what was seen four seconds ago is not believed");
    let end = start + 900 * S;
    all_well(&mut permit, end);
    assert_eq!(permit.ask(end, &sight), Answer::Granted);
    // The second within the hour, after which the limit and not the cool-down is what holds it back.
    permit.started(end);
    let third = end + 900 * S;
    all_well(&mut permit, third);
    assert_eq!(permit.ask(third, &sight), Answer::Held(Hold { by: HourlyLimit, until: Some(start + HOUR) }));
}

#[test]
fn a_further_start_of_the_same_repair_needs_only_the_files() {
    let now = Instant::now();
    let mut permit = Permit::new(config(), vec![now, now, now, now, now, now]);
    all_well(&mut permit, now);
    let sight = Sight { outage_since: now, begun: true };
    assert_eq!(permit.ask(now, &sight), Answer::Granted);
    permit.see(now, Look::Lock(LockLook::Held { age: S }));
    assert_eq!(held_by(permit.ask(now, &sight)), Some(HeldBy::DeployLock));
}

#[test]
fn a_lock_that_cannot_be_probed_counts_until_it_is_old_enough_whatever_its_age_says() {
    let start = Instant::now();
    let config = PermitConfig { deploy_lock: Some("/x".into()), ..PermitConfig::default() };
    let unprobed = |age| Look::Lock(LockLook::Unprobed { age, why: "Permission denied".into() });
    let mut permit = Permit::new(config, Vec::new());
    permit.see(start, unprobed(7000 * S));
    let sight = outage(start);
    let until = Some(start + 200 * S);
    assert_eq!(permit.ask(start, &sight), Answer::Held(Hold { by: HeldBy::DeployLock, until }));
    permit.see(start + 200 * S, unprobed(7200 * S));
    assert_eq!(permit.ask(start + 200 * S, &sight), Answer::Granted);
    // Its mtime lies in the future, or its filesystem does not answer: its age never grows.
    permit.see(start, Look::Lock(LockLook::Absent));
    for step in 0..=7200 {
        let now = start + S * step;
        permit.see(now, unprobed(Duration::ZERO));
        let held = held_by(permit.ask(now, &sight)) == Some(HeldBy::DeployLock);
        assert_eq!(held, step < 7200, "{step}");
        assert_eq!(permit.lock_active(now), held);
    }
}

#[test]
fn looks_count_when_they_happen_and_not_for_time_in_which_nobody_looked() {
    let start = Instant::now();
    let config = PermitConfig { confirmations: 3, confirm_interval: 60 * S, ..PermitConfig::default() };
    let mut permit = Permit::new(config, Vec::new());
    permit.verdict(start);
    let ask = |permit: &Permit, now| permit.ask(now, &outage(start));
    assert_eq!(ask(&permit, start), Answer::Held(Hold { by: HeldBy::Confirmations, until: Some(start + 120 * S) }));
    permit.confirm(start + 59 * S);
    // The process was stopped for an hour: one look.
    let late = start + 3600 * S;
    permit.confirm(late);
    permit.confirm(late + S);
    assert_eq!(ask(&permit, late + S), Answer::Held(Hold { by: HeldBy::Confirmations, until: Some(late + 60 * S) }));
    permit.confirm(late + 60 * S);
    assert_eq!(ask(&permit, late + 60 * S), Answer::Granted);
    permit.verdict(late + 70 * S);
    assert_eq!(held_by(ask(&permit, late + 70 * S)), Some(HeldBy::Confirmations), "another outage is another row");
}

#[test]
fn words_name_the_permit_the_file_and_the_remedy() {
    let start = Instant::now();
    let mut permit = Permit::new(config(), vec![start]);
    permit.see(start, Look::Lock(LockLook::Held { age: S }));
    permit.see(start, Look::Enable(EnableLook::Missing));
    let now = start + 312 * S;
    permit.see(now, Look::Lock(LockLook::Held { age: S }));
    let sight = outage(now - 12 * S);
    let words: Vec<String> =
        permit.holds(now, &sight).into_iter().map(|hold| permit.describe(hold, now, &sight)).collect();
    assert_eq!(
        words,
        [
            "held back by deploy_lock /tmp/deploy.lock (held for 312 s): finish the deploy, or `steadfs recover --apply`",
            "held back by enable_file /etc/enabled, which is not there: make it, or `steadfs recover --apply`",
            "held back by confirmations (1 of 2 looks have found the backing dead): wait, or `steadfs recover --apply`",
            "held back by min_age (the outage is 12 s old and has to be 120 s): wait, or `steadfs recover --apply`",
            "held back by cool_down (the last repair started 312 s ago, the next may after 900 s): wait, or \
             `steadfs recover --apply`",
        ]
    );
    let mut permit = Permit::new(limits(0, 1, 1), vec![start]);
    let words = |permit: &Permit| permit.describe(permit.holds(now, &sight)[0], now, &sight);
    assert!(words(&permit).starts_with("held back by max_per_hour (1 within an hour): find out"), "{}", words(&permit));
    permit.set_config(limits(0, 0, 1));
    assert!(words(&permit).starts_with("held back by max_per_day (1 within 24 hours): find out"), "{}", words(&permit));
    permit.set_config(config());
    permit.see(now, Look::Lock(LockLook::Unprobed { age: S, why: "Permission denied".into() }));
    assert!(words(&permit).contains("(it cannot be probed: Permission denied; it counts for another 7199 s)"));
}

#[test]
fn what_no_limit_asks_for_is_not_kept_for_ever() {
    let start = Instant::now();
    for (config, most) in [(limits(0, 0, 0), 1000), (limits(0, 1200, 0), 1200), (limits(0, 0, 1500), 1500)] {
        let mut permit = Permit::new(config, Vec::new());
        for step in 0..2000 {
            permit.started(start + S * step);
        }
        assert_eq!(permit.starts().len(), most);
        assert_eq!(permit.starts().last(), Some(&(start + S * 1999)));
    }
}

#[test]
fn what_was_seen_before_the_verdict_is_not_believed() {
    let start = Instant::now();
    let mut permit = Permit::new(config(), Vec::new());
    all_well(&mut permit, start);
    permit.verdict(start + S / 2);
    assert_eq!(permit.ask(start + S / 2, &Sight { outage_since: start, begun: true }), Answer::Unseen);
    all_well(&mut permit, start + S / 2);
    assert_eq!(permit.ask(start + S / 2, &Sight { outage_since: start, begun: true }), Answer::Granted);
}

#[test]
fn the_last_repair_is_read_as_it_was_written() {
    let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + 20_000 * DAY);
    let errors = vec!["reset".to_owned()];
    let mut last = LastRepair { started: wall - 60 * S, ended: None, ok: Some(false), errors };
    for ended in [None, Some(wall - 50 * S)] {
        last.ended = ended;
        let record = Record::of(&[], 1, Some(&last), now, wall);
        let text = serde_json::to_string(&record).expect("text");
        let read: Record = serde_json::from_str(&text).expect("read");
        assert_eq!(read.last.as_ref().map(LastRepair::from), Some(last.clone()));
        assert_eq!(read.unfinished(now, wall), ended.is_none().then_some(now - 60 * S));
    }
}

#[test]
fn another_file_is_not_judged_by_what_was_seen_of_the_first() {
    let now = Instant::now();
    let mut permit = Permit::new(config(), Vec::new());
    all_well(&mut permit, now);
    permit.set_config(PermitConfig { deploy_lock: Some("/other".into()), ..config() });
    assert_eq!(permit.ask(now, &outage(now)), Answer::Unseen);
}

/// As the next daemon has it, written and read, with the clock showing something else by then.
fn restarted(permit: &Permit, now: Instant, wall: SystemTime, then: SystemTime) -> Permit {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state/repairs.json");
    Record::of(permit.starts(), 3, None, now, wall).save(&path).expect("written");
    let record = Record::load(&path).expect("read");
    assert_eq!(record.started_total, 3);
    Permit::new(permit.config().clone(), record.instants(now, then))
}

#[test]
fn limits_survive_a_restart_and_a_clock_that_is_set_back_wedges_nothing() {
    let (start, wall) = (Instant::now(), SystemTime::now());
    let mut permit = Permit::new(limits(0, 2, 3), Vec::new());
    for minutes in [0, 10] {
        permit.started(start + 60 * S * minutes);
    }
    let now = start + 1200 * S;
    let answer = permit.ask(now, &outage(start));
    assert_eq!(held_by(answer), Some(HeldBy::HourlyLimit));
    let again = restarted(&permit, now, wall, wall);
    let (Answer::Held(a), Answer::Held(b)) = (answer, again.ask(now, &outage(start))) else { panic!("it is held") };
    let (a, b) = (a.until.expect("a time"), b.until.expect("a time"));
    assert!(a.max(b) - a.min(b) < S / 100, "the same, but for what a fraction can hold");
    // Ten years back: both have just been, and in an hour it is over.
    let back = restarted(&permit, now, wall, wall - 3650 * DAY);
    assert_eq!(held_by(back.ask(now, &outage(start))), Some(HeldBy::HourlyLimit));
    assert_eq!(back.ask(now + HOUR, &outage(start)), Answer::Granted);
    // Ten years on: nothing is known that could still matter.
    let on = restarted(&permit, now, wall, wall + 3650 * DAY);
    assert_eq!(on.ask(now, &outage(start)), Answer::Granted);
}

#[test]
fn a_file_that_is_no_record_is_an_error_and_one_that_is_missing_is_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("repairs.json");
    assert_eq!(Record::load(&path).expect("nothing has happened"), Record::default());
    for text in ["", "{\"starts\": 7}", "\u{0}\u{0}\u{0}"] {
        std::fs::write(&path, text).expect("written");
        assert!(Record::load(&path).is_err(), "{text:?}");
    }
    // Another version's, with nonsense for times.
    std::fs::write(&path, "{\"starts\": [1e300, -4, 0], \"more\": 1}").expect("written");
    let record = Record::load(&path).expect("read");
    let now = Instant::now();
    assert!(record.instants(now, SystemTime::now()).iter().all(|&at| at <= now));
}

proptest! {
    /// Whatever asks when, with restarts and clocks that are set back in between: no window ever sees more than its limit, and
    /// a cool-down is kept.
    #[test]
    fn no_sliding_window_sees_more_repairs_than_its_limit(
        cool_down in 0_u64..2000, per_hour in 0_u32..4, per_day in 0_u32..8,
        script in proptest::collection::vec((0_u64..4000, 0_u8..12, 0_u64..200_000), 1..300),
    ) {
        let mut permit = Permit::new(limits(cool_down, per_hour, per_day), Vec::new());
        let (mut now, mut wall) = (Instant::now(), SystemTime::UNIX_EPOCH + 20_000 * DAY);
        let mut started: Vec<Instant> = Vec::new();
        for (pass, pick, back) in script {
            let pass = S * pass as u32;
            (now, wall) = (now + pass, wall + pass);
            if pick < 2 {
                let then = if pick == 1 { wall - S * back as u32 } else { wall };
                let starts = Record::of(permit.starts(), 0, None, now, wall).instants(now, then);
                // A fraction holds microseconds: what is tested is no matter of those.
                permit = Permit::new(permit.config().clone(), starts.into_iter().map(|at| (at + S / 1000).min(now)).collect());
                wall = then;
            }
            if permit.ask(now, &outage(now)) == Answer::Granted {
                permit.started(now);
                started.push(now);
            }
            for (limit, window) in [(per_hour, HOUR), (per_day, DAY)] {
                let within = started.iter().filter(|&&at| now - at < window).count();
                prop_assert!(limit == 0 || within <= limit as usize, "{within} within {window:?}");
            }
        }
        for pair in started.windows(2) {
            prop_assert!(pair[1] - pair[0] >= S * cool_down as u32);
        }
        // Nothing is held back for good.
        prop_assert_eq!(permit.ask(now + DAY + S, &outage(now)), Answer::Granted);
    }
}
