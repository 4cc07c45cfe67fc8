use serde_json::json;

use super::*;

fn status(state: &str) -> Value {
    json!({
        "state": state, "for_secs": 600.0, "outages_total": 2, "worker": {"paused_since": null},
        "keeper": {"pid": 4, "can_succeed": true}, "log": {"lost_files_total": 0}
    })
}

fn with(state: &str, change: impl FnOnce(&mut Value)) -> Answer {
    let mut status = status(state);
    change(&mut status);
    Answer::Status(status)
}

fn seen(answer: Answer) -> Seen {
    let hot = vec![("/hot".into(), Mounted::Overlay)];
    Seen { name: "/hot".into(), answer, held: true, hot, paused: false, spooled: 0, metrics: None }
}

fn gone(mounted: Mounted) -> Seen {
    Seen { held: false, hot: vec![("/hot".into(), mounted)], ..seen(Answer::Absent) }
}

/// Each row: what was seen, and code, urgency and a part of the next action of the first finding.
fn rows() -> Vec<(Seen, &'static str, Urgency, &'static str)> {
    use Urgency::{Act, Healthy, Unknown, Wait};
    let outage = |secs: f64| {
        move |status: &mut Value| {
            status["outage"] = json!({"secs": secs});
            status["next_at"] = json!("2026-01-01T00:00:00Z");
        }
    };
    let halted = |why: &'static str| with("halted", move |status| status["why"] = json!(why));
    let held = |by: Value| with("waiting", move |status| status["permits"] = json!({"held": by}));
    let paused = |secs: f64| {
        with("live", move |status| {
            status["for_secs"] = json!(secs);
            status["worker"] = json!({"paused_since": "2026-01-01T00:00:00Z", "reason": "probe_late"});
        })
    };
    let live = || Answer::Status(status("live"));
    let nothing = |guarded| Mounted::Nothing { guarded };
    let mut rows = vec![
        (seen(live()), "healthy", Healthy, "nothing"),
        (seen(Answer::Status(status("suspect"))), "healthy", Healthy, "nothing"),
        (seen(with("waiting", outage(3.0))), "repairing", Wait, "wait"),
        (seen(with("waiting", outage(4000.0))), "repairing", Wait, "steadfs recover --apply /hot"),
        (seen(Answer::Status(status("stopping"))), "stopping", Wait, "wait"),
        (
            seen(halted("root@b: Permission denied (publickey).: give IdentityFile=")),
            "authentication_refused",
            Act,
            "steadfs recover --apply /hot",
        ),
        (
            seen(halted("Host key verification failed: connect once with ssh b")),
            "host_key_refused",
            Act,
            "steadfs recover --apply /hot",
        ),
        (seen(halted("unknown option x")), "halted", Act, "put that right"),
        (seen(held(json!("deploy_lock"))), "held", Wait, "finish the deploy"),
        (seen(held(json!("enable_file"))), "held", Act, "enable file"),
        (seen(held(json!({"permit": "max_per_day", "detail": "6 of 6"}))), "held", Act, "steadfs evidence"),
        (seen(held(json!([{"by": "cool_down", "until": "2026-01-02T00:00:00Z"}]))), "held", Wait, "wait"),
        (seen(held(json!("min_age"))), "held", Wait, "wait"),
        (seen(with("held", |status| status["why"] = json!("a deploy"))), "held", Wait, "steadfs recover"),
        (seen(with("held", |status| status["held"] = json!("daily_limit"))), "held", Act, "recover --apply"),
        (seen(held(json!("unheard_of"))), "held", Wait, "steadfs recover"),
        (seen(Answer::Silent), "silent", Act, "steadfs evidence /hot"),
        (seen(Answer::Absent), "no_daemon", Wait, "30 s"),
        (gone(Mounted::Overlay), "dead_overlay", Act, "steadfs umount /hot"),
        (gone(Mounted::Elsewhere), "elsewhere", Unknown, "as that user"),
        (gone(nothing(Some(true))), "not_mounted", Act, "mount it"),
        (gone(nothing(Some(false))), "not_mounted_unguarded", Act, "stop what writes"),
        (gone(nothing(None)), "not_mounted_unguarded", Act, "stop what writes"),
        (gone(Mounted::Other("fuse.sshfs".into())), "not_ours", Unknown, "ask"),
        (Seen { hot: vec![], ..gone(Mounted::Overlay) }, "not_running", Act, "systemctl start"),
        (seen(paused(10.0)), "worker_resuming", Wait, "wait"),
        (seen(paused(400.0)), "worker_left_paused", Act, "on_recovery"),
        (Seen { spooled: 2, ..seen(live()) }, "spool", Act, "steadfs spool list"),
        (Seen { metrics: Some(None), ..seen(live()) }, "metrics_missing", Act, "log"),
        (Seen { metrics: Some(Some(Duration::from_secs(500))), ..seen(live()) }, "metrics_stale", Act, "log"),
        (Seen { metrics: Some(Some(Duration::from_secs(5))), ..seen(live()) }, "healthy", Healthy, "nothing"),
        (Seen { hot: vec![("/hot".into(), nothing(None))], ..seen(live()) }, "unmounted_under_daemon", Act, "umount"),
        (
            Seen { hot: vec![("/hot".into(), Mounted::Other("tmpfs".into()))], ..seen(live()) },
            "covered",
            Act,
            "umount /hot",
        ),
        (
            Seen { hot: vec![("/hot".into(), Mounted::Other("fuse.sshfs".into()))], ..seen(live()) },
            "healthy",
            Healthy,
            "nothing",
        ),
        (seen(with("live", |status| status["keeper"]["can_succeed"] = json!(false))), "no_successor", Act, "log_size="),
        (seen(with("live", |status| status["log"]["lost_files_total"] = json!(1))), "lost", Act, "events"),
        (seen(Answer::Unknown("it belongs to somebody else".into())), "unknown", Unknown, "as root"),
        (seen(Answer::Status(json!({"state": "dancing"}))), "unknown", Unknown, "steadfs"),
        (seen(Answer::Status(json!({"state": "live"}))), "healthy", Healthy, "nothing"),
    ];
    for state in ["adopting", "retiring", "reaching", "starting", "restoring"] {
        rows.push((seen(with(state, outage(3.0))), "repairing", Wait, "wait: it repairs itself"));
    }
    rows
}

#[test]
fn each_row_has_its_verdict_and_its_next_action() {
    for (seen, code, urgency, next) in rows() {
        let verdict = judge(&seen);
        let first = verdict.findings.first().expect("never empty");
        assert_eq!((first.code, first.urgency, verdict.urgency), (code, urgency, urgency), "{seen:?}\n{verdict:?}");
        assert!(first.next.contains(next), "{code}: {}", first.next);
    }
}

#[test]
fn who_waits_is_told_until_when() {
    let until = |answer| judge(&seen(answer)).findings[0].until.clone();
    let waiting = |held: Value| {
        with("waiting", |status| {
            status["next_at"] = json!("A");
            status["permits"] = json!({"held": held});
        })
    };
    assert_eq!(until(waiting(Value::Null)).as_deref(), Some("A"));
    assert_eq!(until(waiting(json!("min_age"))).as_deref(), Some("A"));
    assert_eq!(until(waiting(json!({"permit": "min_age", "until": "B"}))).as_deref(), Some("B"));
}

#[test]
fn what_is_refused_is_told_in_the_words_of_ssh() {
    let why = "root@b: Permission denied (publickey).: b lets nobody in with this key: give IdentityFile=";
    let verdict = judge(&seen(with("halted", |status| status["why"] = json!(why))));
    assert!(verdict.findings[0].what.contains(why));
}

#[test]
fn a_paused_worker_in_an_outage_is_as_it_should_be() {
    let answer = with("waiting", |status| status["worker"] = json!({"paused_since": "x"}));
    assert_eq!(judge(&seen(answer)).findings.iter().map(|f| f.code).collect::<Vec<_>>(), ["repairing"]);
}

#[test]
fn of_several_findings_the_most_urgent_comes_first() {
    let mut dead = gone(Mounted::Overlay);
    (dead.paused, dead.spooled, dead.metrics) = (true, 1, Some(Some(Duration::from_secs(900))));
    let codes: Vec<_> = judge(&dead).findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["dead_overlay", "worker_left_paused", "spool", "metrics_stale"]);
    let repairing = Seen { spooled: 1, ..seen(with("starting", |_| {})) };
    let codes: Vec<_> = judge(&repairing).findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["spool", "repairing"]);
}

#[test]
fn a_permit_is_no_finding_while_calls_succeed() {
    let answer = with("live", |status| status["permits"] = json!({"held": "cool_down"}));
    assert_eq!(judge(&seen(answer)).urgency, Urgency::Healthy);
}

proptest::proptest! {
    #[test]
    fn no_status_is_too_strange(state in "[a-z]{0,8}", number in proptest::num::f64::ANY, word in ".{0,8}") {
        let strange = json!({"state": state, "for_secs": number, "outage": {"secs": number}, "why": word,
            "worker": {"paused_since": word}, "permits": {"held": [word]}, "keeper": word, "log": number});
        proptest::prop_assert!(!judge(&seen(Answer::Status(strange))).findings.is_empty());
    }
}
