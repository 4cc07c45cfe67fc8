//! What is said of a drill.

use serde::Serialize;

use super::fault::Drill;
use super::play::Outcome;
use super::production::{Overlay, Production};

/// The report; its JSON only ever grows.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which drill.
    pub drill: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Options that the canary gets from an overlay, as with `-o`.
    pub options: Vec<String>,
    /// False for a dry run.
    pub applied: bool,
    /// Mended, nothing lost, nothing left over; absent in a dry run.
    pub ok: Option<bool>,
    /// What came of it; absent in a dry run.
    #[serde(flatten)]
    pub outcome: Option<Outcome>,
    /// The daemons that are not the canary.
    pub production: Vec<Overlay>,
}

impl Report {
    /// Of a drill that would be done.
    pub fn of_plan(drill: Drill, options: Vec<String>, production: Production) -> Report {
        let (drill, about, production) = (drill.name(), drill.about(), production.overlays());
        Report { drill, about, options, applied: false, ok: None, outcome: None, production }
    }

    /// Of one that was.
    pub fn of(drill: Drill, options: Vec<String>, outcome: Outcome, production: Production) -> Report {
        let ok = outcome.failures.is_empty() && outcome.bytes_lost == 0 && outcome.repaired_secs.is_some();
        let mut report = Report::of_plan(drill, options, production);
        (report.applied, report.ok, report.outcome) = (true, Some(ok), Some(outcome));
        report
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("drill {}: {}", self.drill, self.about)];
        match &self.outcome {
            None => lines.extend([
                "  dry run: nothing is done. With --apply:".to_owned(),
                format!("  1. a canary is mounted in a private directory below {}, over a local sftp-server", temp()),
                "  2. programs write WARCs, a log and a state file there, and commit them".into(),
                "  3. what is said above is done to it, to its own processes by their ids".into(),
                "  4. it has to be mended; what is on its store is compared with what fsync had promised".into(),
                "  5. it is unmounted, and everything of it is removed, also when interrupted".into(),
            ]),
            Some(outcome) => lines.extend(told(outcome)),
        }
        if !self.options.is_empty() {
            lines.push(format!("  options     {}", self.options.join(",")));
        }
        for overlay in &self.production {
            let says = match (overlay.unchanged, &overlay.after) {
                (None, _) => format!("{}, stays as it is", overlay.before.state),
                (Some(true), _) => format!("{}, unchanged", overlay.before.state),
                (Some(false), Some(after)) => {
                    format!("changed by itself meanwhile: {} to {}", overlay.before.state, after.state)
                }
                (Some(false), None) => "changed by itself meanwhile".into(),
            };
            lines.push(format!("  production  {}: {says}", overlay.name));
        }
        match self.ok {
            None => {}
            Some(true) => lines.push("OK: mended, nothing lost".into()),
            Some(false) => lines.push("FAILED".into()),
        }
        lines.join("\n") + "\n"
    }
}

fn temp() -> String {
    std::env::temp_dir().display().to_string()
}

fn told(outcome: &Outcome) -> Vec<String> {
    let secs = |secs: Option<f64>| secs.map_or("-".into(), |secs| format!("{secs:.2} s"));
    let mut lines = vec![
        format!("  detected    {}", secs(outcome.detected_secs)),
        format!("  repaired    {}", secs(outcome.repaired_secs)),
        format!("  stall       {:.2} s at most without a commit", outcome.longest_stall_secs),
        format!("  call        {:.2} s at most ({})", outcome.longest_call_secs, outcome.longest_call),
        format!("  errors      {}", errors(outcome)),
        format!("  lost        {} of {} acknowledged bytes", outcome.bytes_lost, outcome.acknowledged_bytes),
    ];
    if let Some(alert) = &outcome.alert {
        lines.push(format!(
            "  metrics     /metrics after {}, textfile after {}",
            secs(alert.metrics_secs),
            secs(alert.textfile_secs)
        ));
        lines.push(match &alert.rules {
            Some(fired) => {
                format!("  alerts      would fire: {}", fired.outage.iter().cloned().collect::<Vec<_>>().join(", "))
            }
            None => "  alerts      steadfs_up is 0: what asks for that (docs/operations.md) fires; --alerts FILE tells"
                .into(),
        });
    }
    lines.extend(outcome.failures.iter().map(|what| format!("  failed      {what}")));
    lines
}

fn errors(outcome: &Outcome) -> String {
    if outcome.errors.is_empty() {
        return "none".into();
    }
    outcome.errors.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_mended_and_lost_nothing_is_well() {
        let good = Outcome { repaired_secs: Some(0.5), ..Outcome::default() };
        let ok = |outcome| Report::of(Drill::Killed, Vec::new(), outcome, Production::default()).ok;
        assert_eq!(ok(good.clone()), Some(true));
        assert_eq!(ok(Outcome { repaired_secs: None, ..good.clone() }), Some(false));
        assert_eq!(ok(Outcome { bytes_lost: 1, ..good.clone() }), Some(false));
        assert_eq!(ok(Outcome { failures: vec!["x".into()], ..good }), Some(false));
        assert_eq!(Report::of_plan(Drill::Killed, Vec::new(), Production::default()).ok, None);
    }
}
