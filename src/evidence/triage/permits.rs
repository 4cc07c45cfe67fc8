//! What holds a repair back, as the status says it.

use serde_json::Value;

use super::{Finding, Urgency};

/// One permit that is not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    permit: String,
    detail: String,
    until: Option<String>,
}

/// The permit that holds back, if one does: `permits.held`, or `held`, as a word, as an object that names it, or as a list of
/// either, of which the first is what comes first.
pub(super) fn held(status: &Value) -> Option<Held> {
    [&status["permits"]["held"], &status["permit"]["held"], &status["held"]].into_iter().find_map(one)
}

fn one(value: &Value) -> Option<Held> {
    let word = |names: &[&str]| names.iter().find_map(|name| value[*name].as_str()).map(str::to_owned);
    match value {
        Value::String(permit) if !permit.is_empty() => {
            Some(Held { permit: permit.clone(), detail: String::new(), until: None })
        }
        Value::Object(_) => Some(Held {
            permit: word(&["permit", "by", "gate", "name", "kind"])?,
            detail: word(&["detail", "why", "text", "reason"]).unwrap_or_default(),
            until: word(&["until", "until_at", "next_at"]),
        }),
        Value::Array(all) => all.iter().find_map(one),
        _ => None,
    }
}

impl Held {
    pub(super) fn finding(self, next_at: Option<&str>) -> Finding {
        let Held { permit, detail, until } = self;
        // Time alone brings these; of the others somebody has to think.
        let (urgency, next) = match permit.as_str() {
            "deploy_lock" => (
                Urgency::Wait,
                "finish the deploy: the repair begins when nobody holds the lock; steadfs recover tells who does",
            ),
            "enable_file" => {
                (Urgency::Act, "repairs are switched off: make the enable file, or steadfs recover --apply once")
            }
            "confirmations" | "min_age" => (Urgency::Wait, "wait: it is not old or certain enough to be repaired yet"),
            "cool_down" => (Urgency::Wait, "wait: the last repair was a moment ago"),
            "max_per_hour" | "max_per_day" | "hourly_limit" | "daily_limit" => (
                Urgency::Act,
                "find out why it dies so often (steadfs evidence, steadfs status); steadfs recover --apply repairs once more",
            ),
            _ => (Urgency::Wait, "see steadfs recover, which tells the plan and what holds it back"),
        };
        let detail = if detail.is_empty() { detail } else { format!(": {detail}") };
        let what = format!("in an outage; the repair is held back by {permit}{detail}");
        Finding::new("held", urgency, what, next).until(until.as_deref().or(next_at))
    }
}
