//! Walks the table of the documentation: each of its rows, and every pair of state and input that has none.

use super::*;
use crate::config::PermitConfig;

const TABLE: &str = include_str!("../transitions.md");

const STATES: [&str; 20] = [
    "reaching",
    "reaching, between looks",
    "adopting",
    "starting",
    "restoring",
    "restoring, probe sent",
    "live",
    "live, probe sent",
    "suspect, probe sent",
    "retiring",
    "retiring, third early death",
    "waiting",
    "waiting, looking",
    "waiting, server lost",
    "waiting, server lost, looking",
    "held, lock not seen",
    "held by the lock",
    "held by its age",
    "halted",
    "stopping",
];

const INPUTS: [&str; 27] = [
    "Reached",
    "Unreached",
    "Adopted",
    "NotAdopted",
    "Started",
    "StartFailed: unreachable",
    "StartFailed: silent",
    "StartFailed: refused",
    "StartFailed: local",
    "Restored",
    "RestoreFailed",
    "ProbeAnswered",
    "ProbeFailed",
    "ProbeUnsent",
    "Evidence: process exit",
    "Evidence: call error",
    "Evidence: call late",
    "Evidence: call late while bytes move",
    "Retired",
    "Seen: locked",
    "Seen: unlocked",
    "RetryNow",
    "Replace",
    "Stop",
    "half a second passes",
    "three seconds pass in silence",
    "an hour passes in silence",
];

/// A machine in that state.
fn rig(state: &str) -> Rig {
    let mut rig = match state.split(',').next() {
        Some("reaching") => Rig::new(),
        Some("adopting") => Rig::adopting(1),
        Some("starting" | "restoring" | "halted") => Rig::starting(),
        Some("live" | "suspect" | "stopping") => Rig::live(),
        Some("retiring") => Rig::live(),
        Some("held" | "held by the lock") => Rig::with_lock(),
        Some("held by its age") => Rig::permitted(PermitConfig { min_age: 120 * S, ..PermitConfig::default() }),
        Some("waiting") => Rig::waiting(StartError::Unreachable(String::new())),
        _ => panic!("no such state: {state}"),
    };
    match state {
        "reaching, between looks" => drop(rig.put(Input::Unreached)),
        "restoring" | "restoring, probe sent" => drop(rig.put(Input::Started(1))),
        "suspect, probe sent" => drop(rig.put(Input::Evidence(1, Reason::CallError))),
        "retiring" => drop(rig.put(Input::Evidence(1, Reason::ProcessExit))),
        "retiring, third early death" => {
            for generation in 1..=3 {
                rig.put(Input::Evidence(generation, Reason::ProcessExit));
                if generation < 3 {
                    rig.come_up_again();
                }
            }
        }
        "waiting, looking" => drop(rig.pass(3 * S)),
        "waiting, server lost" | "waiting, server lost, looking" => {
            rig.pass(3 * S);
            rig.put(Input::Unreached);
        }
        "held, lock not seen" | "held by its age" => drop(rig.die()),
        "held by the lock" => {
            rig.put(permitted::locked());
            rig.die();
        }
        "halted" => drop(rig.put(Input::StartFailed(1, StartError::Refused(String::new())))),
        "stopping" => drop(rig.put(Input::Stop)),
        _ => {}
    }
    match state {
        "waiting, server lost, looking" => drop(rig.pass(S / 2)),
        "restoring, probe sent" | "live, probe sent" => drop(rig.put(Input::Tick)),
        _ => {}
    }
    rig
}

fn put(rig: &mut Rig, input: &str) -> Vec<Action> {
    let newest = rig.machine.newest();
    let (generation, id) = rig.probe().unwrap_or((newest, 0));
    let failed = |error| Input::StartFailed(newest, error);
    let input = match input {
        "Reached" => Input::Reached,
        "Unreached" => Input::Unreached,
        "Adopted" => Input::Adopted(newest),
        "NotAdopted" => Input::NotAdopted(newest),
        "Started" => Input::Started(newest),
        "StartFailed: unreachable" => failed(StartError::Unreachable(String::new())),
        "StartFailed: silent" => failed(StartError::Silent(String::new())),
        "StartFailed: refused" => failed(StartError::Refused(String::new())),
        "StartFailed: local" => failed(StartError::Local(String::new())),
        "Restored" => Input::Restored(newest),
        "RestoreFailed" => Input::RestoreFailed(newest, String::new()),
        "ProbeAnswered" => Input::ProbeAnswered(generation, id),
        "ProbeFailed" => Input::ProbeFailed(generation, id, Errno::ENOTCONN),
        "ProbeUnsent" => Input::ProbeUnsent(generation, id),
        "Evidence: process exit" => Input::Evidence(newest, Reason::ProcessExit),
        "Evidence: call error" => Input::Evidence(newest, Reason::CallError),
        "Evidence: call late" => Input::Evidence(newest, Reason::CallLate),
        "Evidence: call late while bytes move" => {
            rig.vitals.progress_at = Some(rig.now);
            Input::Evidence(newest, Reason::CallLate)
        }
        "Retired" => Input::Retired(newest),
        "Seen: locked" => permitted::locked(),
        "Seen: unlocked" => permitted::unlocked(),
        "RetryNow" => Input::RetryNow,
        "Replace" => Input::Replace,
        "Stop" => Input::Stop,
        "half a second passes" => return rig.pass(S / 2),
        "three seconds pass in silence" => return rig.pass(3 * S),
        "an hour passes in silence" => return rig.pass(3600 * S),
        other => panic!("no such input: {other}"),
    };
    rig.put(input)
}

/// The word of the table for an action.
fn word(action: &Action) -> &'static str {
    match action {
        Action::Probe(..) => "Probe",
        Action::Reach => "Reach",
        Action::Adopt(_) => "Adopt",
        Action::Start(_) => "Start",
        Action::CancelStart => "CancelStart",
        Action::Restore(_) => "Restore",
        Action::Open(_) => "Open",
        Action::Doubt(Some(_)) => "Doubt",
        Action::Doubt(None) => "Trust",
        Action::Settle(..) => "Settle",
        Action::Close(_) => "Close",
        Action::Retire(_) => "Retire",
        Action::Finish => "Finish",
        Action::Tell(News::Evidence { .. }) => "tell evidence",
        Action::Tell(News::Cleared { .. }) => "tell cleared",
        Action::Tell(News::OutageBegan { .. }) => "tell outage",
        Action::Tell(News::OutageOverdue { .. }) => "tell overdue",
        Action::Tell(News::NotAdopted { .. }) => "tell not adopted",
        Action::Tell(News::StartFailed { .. }) => "tell failed start",
        Action::Tell(News::RestoreFailed { .. }) => "tell failed restoration",
        Action::Tell(News::Recovered { .. }) => "tell recovered",
        Action::Tell(News::Steady { .. }) => "tell steady",
        Action::Tell(News::RepairHeld { .. }) => "tell held",
        Action::Tell(News::RepairReleased { .. }) => "tell released",
        Action::Tell(News::RepairStarted { .. }) => "tell repair",
    }
}

/// The rows of the table: state, input, next state, actions.
fn rows() -> Vec<[String; 4]> {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()
    };
    let rows = TABLE.lines().filter(|line| line.starts_with('|')).skip(2).map(cells);
    rows.map(|row| row.try_into().expect("four cells a row")).collect()
}

#[test]
fn every_row_of_the_table_is_true_and_what_has_no_row_changes_nothing() {
    let rows = rows();
    let mut wrong = Vec::new();
    for state in STATES {
        for input in INPUTS {
            let mut rig = rig(state);
            let before = rig.machine.state().name();
            let todo = put(&mut rig, input);
            let after = rig.machine.state().name();
            let done = todo.iter().map(word).collect::<Vec<_>>().join(", ");
            let told = rows.iter().find(|row| row[0] == state && row[1] == input);
            let (next, does) = told.map_or((before, ""), |row| (row[2].as_str(), row[3].as_str()));
            if (next, does) != (after, done.as_str()) {
                wrong.push(format!("| {state} | {input} | {after} | {done} |"));
            }
        }
    }
    assert!(wrong.is_empty(), "these are true, and the table has it otherwise:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_speaks_of_nothing_else() {
    for [state, input, ..] in rows() {
        assert!(STATES.contains(&state.as_str()), "{state}");
        assert!(INPUTS.contains(&input.as_str()), "{input}");
    }
}
