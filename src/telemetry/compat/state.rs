//! The other watchdog's state file: JSON with the fields that its readers know.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};

use super::fold::{Applies, Last};
use super::targets::Target;

/// Longest file that is read, in bytes: of thousands of hot paths and repairs it has a tenth of that.
const LONGEST: u64 = 16 << 20;
/// What `kind` says of every hot path.
const KIND: &str = "tiering_hot_path";

/// A hot path that is not well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Observation {
    /// When it was first found so, in one unbroken row.
    pub first_seen_utc: String,
    /// When it was last.
    pub last_seen_utc: String,
    /// Looks in a row.
    pub consecutive: u64,
    /// What its users get.
    pub errno: i32,
    /// The hot path.
    pub path: String,
    /// `tiering_hot_path`.
    pub kind: String,
}

/// Everything in the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// By `hot:` and the path.
    pub observations: BTreeMap<String, Observation>,
    /// Repairs.
    pub applies: Applies,
    /// When all was well last.
    pub last_healthy: Option<SystemTime>,
    /// When a repair was last held back, and by what.
    pub last_skip: Option<(SystemTime, String)>,
    /// Fields that somebody else wrote: they stay.
    others: Map<String, Value>,
}

/// Fields that are written here.
const OURS: [&str; 12] = [
    "observations",
    "recoveries",
    "apply_total",
    "last_healthy_utc",
    "last_healthy_epoch",
    "last_skip_utc",
    "last_skip_reason",
    "last_apply_utc",
    "last_apply_epoch",
    "last_apply_ok",
    "last_apply_errors",
    "last_apply_warnings",
];

/// As the other watchdog writes times, which its readers parse with Python's `fromisoformat`: no `Z` before Python 3.11.
pub fn utc(at: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(at).to_string();
    format!("{}+00:00", text.trim_end_matches('Z'))
}

/// Undoes [`utc`].
pub fn from_utc(text: &str) -> Option<SystemTime> {
    let plain = text.strip_suffix("+00:00").or_else(|| text.strip_suffix('Z')).unwrap_or(text);
    humantime::parse_rfc3339_weak(plain).ok()
}

/// Whole seconds since 1970.
pub fn epoch(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl State {
    /// What is in the file at `path`, also if the other watchdog wrote it. Each field that is missing or not understood is as
    /// at the beginning.
    pub fn read(path: &Path) -> State {
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text));
        read.map(|_| State::parse(&text)).unwrap_or_default()
    }

    /// What is in such a file.
    pub fn parse(text: &[u8]) -> State {
        match serde_json::from_slice(text) {
            Ok(Value::Object(fields)) => State::of(fields),
            _ => State::default(),
        }
    }

    fn of(mut fields: Map<String, Value>) -> State {
        let time = |value: Option<&Value>| value.and_then(Value::as_str).and_then(from_utc);
        let texts = |value: Option<&Value>| -> Vec<String> {
            value.and_then(Value::as_array).into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect()
        };
        let times = texts(fields.get("recoveries").and_then(|known| known.get("global")));
        let times = times.iter().filter_map(|text| from_utc(text)).collect();
        let total = fields.get("apply_total").and_then(Value::as_u64).unwrap_or(0);
        let ok = fields.get("last_apply_ok").and_then(Value::as_u64) == Some(1);
        let last = time(fields.get("last_apply_utc")).map(|at| Last { at, ok });
        let applies = Applies::known(total, times, last, texts(fields.get("last_apply_errors")));
        let reason = fields.get("last_skip_reason").and_then(Value::as_str).map(String::from);
        let last_skip = time(fields.get("last_skip_utc")).zip(reason);
        let last_healthy = time(fields.get("last_healthy_utc"));
        let observations = fields.get("observations").and_then(Value::as_object);
        let observations = observations.into_iter().flatten().filter_map(|(key, value)| {
            let text = |name: &str| value.get(name).and_then(Value::as_str).map(String::from);
            let observation = Observation {
                first_seen_utc: text("first_seen_utc")?,
                last_seen_utc: text("last_seen_utc")?,
                consecutive: value.get("consecutive").and_then(Value::as_u64)?,
                errno: value.get("errno").and_then(Value::as_i64).and_then(|errno| i32::try_from(errno).ok())?,
                path: text("path")?,
                kind: text("kind")?,
            };
            Some((key.clone(), observation))
        });
        let observations = observations.collect();
        fields.retain(|name, _| !OURS.contains(&name.as_str()));
        State { observations, applies, last_healthy, last_skip, others: fields }
    }

    /// Takes a look at the hot paths into account.
    pub fn observe(&mut self, targets: &[Target], now: SystemTime) {
        let before = std::mem::take(&mut self.observations);
        for target in targets {
            let Some(errno) = target.errno else { continue };
            let key = format!("hot:{}", target.path);
            let known = before.get(&key);
            let observation = Observation {
                first_seen_utc: known.map_or_else(|| utc(now), |known| known.first_seen_utc.clone()),
                last_seen_utc: utc(now),
                consecutive: known.map_or(0, |known| known.consecutive).saturating_add(1),
                errno: errno as i32,
                path: target.path.clone(),
                kind: KIND.into(),
            };
            self.observations.insert(key, observation);
        }
        if self.observations.is_empty() {
            self.last_healthy = Some(now);
        }
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut fields = self.others.clone();
        let applies = &self.applies;
        let mut set = |name: &str, value: Value| _ = fields.insert(name.into(), value);
        let recoveries: Vec<_> = applies.times.iter().map(|&at| utc(at)).collect();
        // Which job writes to which hot path is not known here.
        set("recoveries", serde_json::json!({"global": recoveries, "jobs": {}}));
        set("observations", serde_json::to_value(&self.observations).unwrap_or_default());
        set("apply_total", applies.total.into());
        if let Some(at) = self.last_healthy {
            set("last_healthy_utc", utc(at).into());
            set("last_healthy_epoch", epoch(at).into());
        }
        if let Some((at, reason)) = &self.last_skip {
            set("last_skip_utc", utc(*at).into());
            set("last_skip_reason", reason.as_str().into());
        }
        if let Some(last) = applies.last {
            set("last_apply_utc", utc(last.at).into());
            set("last_apply_epoch", epoch(last.at).into());
            set("last_apply_ok", u64::from(last.ok).into());
            set("last_apply_errors", applies.errors.clone().into());
            set("last_apply_warnings", Value::Array(Vec::new()));
        }
        format!("{:#}\n", Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::errno::Errno;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_770_000_000 + seconds)
    }

    #[test]
    fn what_is_written_is_read_again_and_strange_fields_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.json");
        std::fs::write(
            &path,
            r#"{"recoveries": {"global": ["2026-02-01T00:00:00+00:00", "2026-02-03T00:00:00+00:00", 7], "jobs": {"5": []}},
                "last_apply_utc": "2026-02-03T00:00:00+00:00", "last_apply_ok": 0, "last_apply_errors": ["x"],
                "observations": {"hot:/a": {"errno": 107}}, "last_skip_deploy_lock_file": "/tmp/lock"}"#,
        )
        .expect("written");
        let mut state = State::read(&path);
        assert_eq!((state.applies.total, state.applies.times.len(), state.observations.len()), (2, 2, 0));
        assert_eq!(
            state.applies.last.map(|last| (utc(last.at), last.ok)),
            Some(("2026-02-03T00:00:00+00:00".into(), false))
        );
        state.observe(&[Target { path: "/a".into(), errno: Some(Errno::EIO) }], at(1));
        state.observe(&[Target { path: "/a".into(), errno: Some(Errno::ENOTCONN) }], at(61));
        state.last_skip = Some((at(61), "deploy_lock".into()));
        std::fs::write(&path, state.text()).expect("written");
        assert_eq!(State::read(&path), state);
        let value: Value = serde_json::from_str(&state.text()).expect("JSON");
        assert_eq!(value["last_skip_deploy_lock_file"], "/tmp/lock");
        let observation = &value["observations"]["hot:/a"];
        assert_eq!((&observation["consecutive"], &observation["errno"]), (&2.into(), &107.into()));
        assert_eq!(
            (observation["first_seen_utc"].as_str(), value["last_healthy_utc"].as_str()),
            (Some(utc(at(1)).as_str()), None)
        );
        state.observe(&[Target { path: "/a".into(), errno: None }], at(99));
        assert_eq!((state.observations.len(), state.last_healthy), (0, Some(at(99))));
    }

    #[test]
    fn nonsense_is_as_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.json");
        assert_eq!(State::read(&path), State::default());
        for text in ["", "[]", "{\"recoveries\": 7, \"last_apply_utc\": true}", "{\"a", "\u{0}"] {
            std::fs::write(&path, text).expect("written");
            assert_eq!(State::read(&path), State::default(), "{text}");
        }
    }
}
