//! `[[worker]]` and `[[after_recovery]]`.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;

use super::reader::{Reader, Scalar, Table};
use crate::cli::options::nearest;
use crate::config::{Means, RecoveryHook, UnitBy, WorkerEntry};

/// Each kind, what it must have and what it may have.
pub(super) const KINDS: [(&str, &[&str], &[&str]); 6] = [
    ("flag", &["file"], &[]),
    ("command", &["pause", "resume"], &[]),
    ("signal", &["pid_file"], &["pause", "resume", "group"]),
    ("unit", &["unit"], &["by"]),
    ("cgroup", &["path"], &[]),
    ("container", &[], &["engine", "names", "label"]),
];
/// What all kinds have.
const COMMON: [&str; 4] = ["name", "kind", "timeout", "steady"];

/// Names that were given.
pub(super) type Names = BTreeSet<String>;

/// One worker.
pub(super) fn worker(table: &Table<'_>, names: &mut Names, reader: &mut Reader<'_>) -> Option<WorkerEntry> {
    let name = name(table, names, reader);
    table.require("kind", reader);
    let timeout = table.duration("timeout", reader);
    let steady = table.duration("steady", reader);
    let kind = table.get("kind", Scalar::Text, reader, |text| {
        let kinds = || KINDS.iter().map(|(kind, ..)| *kind);
        KINDS.iter().find(|(kind, ..)| *kind == text).ok_or_else(|| {
            let near = nearest(text, kinds()).map(|near| format!("did you mean '{near}'? ")).unwrap_or_default();
            format!("is not a kind of worker: {near}allowed are {}", kinds().collect::<Vec<_>>().join(", "))
        })
    })?;
    let (kind, required, optional) = kind;
    for key in table.section.keys().map(|key| key.name).filter(|key| table.has(key)) {
        if !COMMON.contains(&key) && !required.contains(&key) && !optional.contains(&key) {
            let allowed = [&COMMON, *required, *optional].concat().join(", ");
            reader.complain(table.at(key), format!("{key} is not for kind '{kind}': allowed are {allowed}"));
        }
    }
    for key in *required {
        table.require(key, reader);
    }
    let means = means(kind, table, reader)?;
    Some(WorkerEntry { name: name?, means, timeout, steady })
}

fn means(kind: &str, table: &Table<'_>, reader: &mut Reader<'_>) -> Option<Means> {
    Some(match kind {
        "flag" => Means::Flag { file: table.path("file", reader)? },
        "command" => {
            let (pause, resume) = (table.command("pause", reader), table.command("resume", reader));
            Means::Command { pause: pause?, resume: resume? }
        }
        "signal" => {
            let mut signal_of = |key, default: Signal| {
                if table.has(key) { table.get(key, Scalar::Integer, reader, signal) } else { Some(default as i32) }
            };
            let (pause, resume) = (signal_of("pause", Signal::SIGSTOP), signal_of("resume", Signal::SIGCONT));
            let group = table.switch("group", reader).unwrap_or(false);
            Means::Signal { pid_file: table.path("pid_file", reader)?, pause: pause?, resume: resume?, group }
        }
        "unit" => {
            let by = table.get("by", Scalar::Text, reader, |text| match text {
                "stop" => Ok(UnitBy::Stop),
                "freeze" => Ok(UnitBy::Freeze),
                _ => Err("is neither stop nor freeze: write one of them".into()),
            });
            Means::Unit { unit: table.get("unit", Scalar::Text, reader, unit)?, by: by.unwrap_or(UnitBy::Stop) }
        }
        "cgroup" => Means::Cgroup { path: table.path("path", reader)? },
        _ => {
            let engine = match table.has("engine") {
                true => table.get("engine", Scalar::Text, reader, program)?,
                false => "docker".into(),
            };
            let names = table.strings("names", reader).unwrap_or_default();
            let label = table.get("label", Scalar::Text, reader, word);
            for name in &names {
                if let Err(words) = word(name) {
                    reader.complain(table.at("names"), format!("names has '{name}', which {words}"));
                }
            }
            match (names.is_empty(), table.has("label")) {
                (true, false) => reader.complain(table.at, "[[worker]] lacks names or label: add one of them"),
                (false, true) => {
                    reader.complain(table.at("label"), "label and names are two ways to choose: remove one")
                }
                _ => {}
            }
            Means::Container { engine, names, label }
        }
    })
}

/// One hook.
pub(super) fn after_recovery(table: &Table<'_>, names: &mut Names, reader: &mut Reader<'_>) -> Option<RecoveryHook> {
    let name = name(table, names, reader);
    table.require("command", reader);
    let timeout = table.duration("timeout", reader);
    let command = table.command("command", reader)?;
    Some(RecoveryHook { name: name?, command, timeout })
}

/// Its name, which nobody has had yet.
fn name(table: &Table<'_>, names: &mut Names, reader: &mut Reader<'_>) -> Option<String> {
    table.require("name", reader);
    let taken = |text: &str| names.contains(text);
    let name = table.get("name", Scalar::Text, reader, |text| {
        let good = !text.is_empty() && text.len() <= 64 && !text.chars().any(char::is_control);
        match good {
            false => Err("is not a name: give up to 64 bytes without control characters".into()),
            true if taken(text) => Err(format!("is the name of another {}: give another", table.section.title())),
            true => Ok(text.to_owned()),
        }
    })?;
    names.insert(name.clone());
    Some(name)
}

/// `STOP`, `SIGSTOP` or a number.
fn signal(text: &str) -> Result<i32, String> {
    let named = |name: &str| name.parse::<Signal>().ok().map(|signal| signal as i32);
    let upper = text.to_ascii_uppercase();
    // Real-time signals have numbers only.
    let number = text.parse::<i32>().ok().filter(|number| (1..=64).contains(number));
    number
        .or_else(|| named(&upper))
        .or_else(|| named(&format!("SIG{upper}")))
        .ok_or_else(|| "is not a signal: write a name such as STOP, or a number".into())
}

/// What becomes an argument of a program, and must not be an option.
fn word(text: &str) -> Result<String, String> {
    let good = !text.is_empty() && !text.starts_with('-') && !text.chars().any(|c| c.is_control() || c == ' ');
    if good { Ok(text.into()) } else { Err("is empty, starts with a dash or contains blanks: mend it".into()) }
}

fn unit(text: &str) -> Result<String, String> {
    let unit = word(text)?;
    let known = ["service", "scope", "slice", "target", "timer", "socket", "path"];
    let suffix = unit.rsplit_once('.').map_or("", |(_, suffix)| suffix);
    if known.contains(&suffix) { Ok(unit) } else { Err(format!("lacks the unit's kind: write {unit}.service")) }
}

/// Looked up in PATH, or an absolute path.
fn program(text: &str) -> Result<String, String> {
    let program = word(text)?;
    if program.contains('/') && !program.starts_with('/') {
        return Err("is a relative path: write it from / on, or the bare name".into());
    }
    Ok(program)
}
