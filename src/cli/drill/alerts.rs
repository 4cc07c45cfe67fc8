//! Which alerts of a file of rules would fire: promtool evaluates them with samples that were recorded, as if each state had
//! lasted for long.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::cli::stage::tools;

/// Seconds between two samples of a series.
const INTERVAL: u64 = 30;
/// Samples of the healthy time, and of the outage: 20 minutes and two hours, longer than what alerts wait for.
const HEALTHY: u64 = 40;
const OUTAGE: u64 = 240;
/// The metric that tells how old all of them are.
const WRITTEN: &str = "steadfs_metrics_timestamp_seconds";

/// Rules that were read.
#[derive(Debug, Clone)]
pub struct Rules {
    path: PathBuf,
    names: Vec<String>,
    promtool: PathBuf,
}

/// Alerts that would fire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Fired {
    /// When all is well: there should be none.
    pub healthy: BTreeSet<String>,
    /// Two hours into the outage.
    pub outage: BTreeSet<String>,
}

/// Metrics at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    series: BTreeMap<String, f64>,
    at: f64,
}

impl Samples {
    /// From the text of `/metrics`.
    pub fn read(text: &str, at: SystemTime) -> Samples {
        let sample = |line: &str| {
            let (series, value) = line.trim().rsplit_once(' ')?;
            // Buckets are many and no alert of ours asks for them.
            let wanted = !line.starts_with('#') && !series.contains("_bucket{");
            wanted.then_some((series.to_owned(), value.parse::<f64>().ok()?))
        };
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Samples { series: text.lines().filter_map(sample).filter(|(_, value)| value.is_finite()).collect(), at }
    }
}

impl Rules {
    /// Reads them; the error, and whether it is that this machine lacks something.
    pub fn read(path: &Path) -> Result<Rules, (String, bool)> {
        let shown = path.display();
        let promtool = tools::in_path("promtool");
        let promtool = promtool.ok_or_else(|| ("promtool is not installed (package prometheus)".to_owned(), true))?;
        let found = std::fs::canonicalize(path).and_then(|path| Ok((std::fs::read_to_string(&path)?, path)));
        let (text, path) = found.map_err(|error| (format!("{shown}: {error}"), false))?;
        let names = names(&text);
        if names.is_empty() {
            return Err((format!("{shown}: there are no alerts in it"), false));
        }
        Ok(Rules { path, names, promtool })
    }

    /// Has them evaluated; `scratch` is a file that may be written.
    pub fn evaluate(&self, healthy: &Samples, outage: &Samples, scratch: &Path) -> Result<Fired, String> {
        let test = unit_test(&self.path, &self.names, healthy, outage);
        std::fs::write(scratch, test).map_err(|error| format!("{}: {error}", scratch.display()))?;
        let mut command = Command::new(&self.promtool);
        let output = command.args(["test", "rules"]).arg(scratch).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("promtool: {error}"))?;
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("\n");
        // Each alert that fires is a failed test, since none is expected.
        let fired = fired(&text);
        if !output.status.success() && fired == Fired::default() {
            return Err(format!("promtool: {}", text.trim()));
        }
        Ok(fired)
    }
}

/// Names of the alerts in a file of rules.
fn names(rules: &str) -> Vec<String> {
    let name = |line: &str| {
        let rest = line.trim().trim_start_matches("- ").trim_start().strip_prefix("alert:")?;
        let rest = rest.split(" #").next().unwrap_or_default();
        Some(rest.trim().trim_matches(['"', '\'']).to_owned()).filter(|name| !name.is_empty())
    };
    let mut names: Vec<String> = rules.lines().filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// The time of day in a test begins with 0.
fn unit_test(rules: &Path, names: &[String], healthy: &Samples, outage: &Samples) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let mut test = format!(
        "rule_files: [{}]\nevaluation_interval: {INTERVAL}s\ntests:\n- interval: {INTERVAL}s\n  input_series:\n",
        quoted(&rules.display().to_string())
    );
    let all: BTreeSet<&String> = healthy.series.keys().chain(outage.series.keys()).collect();
    for series in all {
        let first = values(series, healthy, HEALTHY, HEALTHY * INTERVAL);
        let then = values(series, outage, OUTAGE, HEALTHY * INTERVAL);
        test.push_str(&format!("  - series: {}\n    values: '{first} {then}'\n", quoted(series)));
    }
    test.push_str("  alert_rule_test:\n");
    for seconds in [HEALTHY_AT, OUTAGE_AT] {
        for name in names {
            let name = quoted(name);
            test.push_str(&format!("  - eval_time: {seconds}s\n    alertname: {name}\n    exp_alerts: []\n"));
        }
    }
    test
}

/// When is looked, in seconds.
const HEALTHY_AT: u64 = (HEALTHY - 1) * INTERVAL;
const OUTAGE_AT: u64 = (HEALTHY + OUTAGE - 1) * INTERVAL;

/// The same value again and again; what is a moment is moved to the test's own time, in which these samples were taken at
/// `taken`.
fn values(series: &str, samples: &Samples, count: u64, taken: u64) -> String {
    let Some(&value) = samples.series.get(series) else { return format!("_x{count}") };
    let name = series.split('{').next().unwrap_or_default();
    let more = count - 1;
    if name == WRITTEN {
        // Written again and again in either state: the first sample of the outage is the one after the healthy time.
        let first = if taken == HEALTHY * INTERVAL && count == OUTAGE { taken } else { 0 };
        return format!("{first}+{INTERVAL}x{more}");
    }
    let value =
        if name.ends_with("_timestamp_seconds") && value > 0.0 { value - samples.at + taken as f64 } else { value };
    format!("{value}+0x{more}")
}

/// What promtool found of alerts that were not expected.
fn fired(output: &str) -> Fired {
    let mut fired = Fired::default();
    for part in output.split("alertname:").skip(1) {
        let Some((name, rest)) = part.split_once(',') else { continue };
        let time = rest.trim_start().strip_prefix("time:").and_then(|rest| rest.split(',').next()).unwrap_or_default();
        if !rest.contains("Labels:{") {
            continue;
        }
        let healthy = humantime::parse_duration(time.trim()).is_ok_and(|time| time.as_secs() <= HEALTHY_AT);
        let side = if healthy { &mut fired.healthy } else { &mut fired.outage };
        side.insert(name.trim().to_owned());
    }
    fired
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RULES: &str = "groups:\n- name: g\n  rules:\n  - alert: Down # sic\n    expr: steadfs_up == 0\n    for: 10m\n  \
                         - alert: \"Stale\"\n    expr: time() - steadfs_metrics_timestamp_seconds > 120\n  \
                         - record: x\n    expr: 1\n  - alert: Old\n    expr: time() - steadfs_outage_start_timestamp_seconds \
                         > 3600 and steadfs_outage_start_timestamp_seconds > 0\n  - alert: Always\n    expr: vector(1)\n";

    fn samples(up: u8, start: u64) -> Samples {
        let at = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let text = format!(
            "# HELP steadfs_up x\nsteadfs_up{{a=\"it's\"}} {up}\nsteadfs_metrics_timestamp_seconds 1799999999\n\
             steadfs_outage_start_timestamp_seconds {start}\nsteadfs_x_bucket{{le=\"1\"}} 3\nsteadfs_nan NaN\n"
        );
        Samples::read(&text, at)
    }

    #[test]
    fn names_are_found() {
        assert_eq!(names(RULES), ["Always", "Down", "Old", "Stale"]);
    }

    #[test]
    fn moments_are_moved_to_the_time_of_the_test() {
        let samples = samples(0, 1_799_999_995);
        assert_eq!(samples.series.len(), 3);
        let series = "steadfs_outage_start_timestamp_seconds";
        assert_eq!(values(series, &samples, OUTAGE, 1200), "1195+0x239");
        assert_eq!(values("steadfs_up{a=\"it's\"}", &samples, OUTAGE, 1200), "0+0x239");
        assert_eq!(values(WRITTEN, &samples, OUTAGE, 1200), "1200+30x239");
        assert_eq!(values(WRITTEN, &samples, HEALTHY, 1200), "0+30x39");
        assert_eq!(values("other", &samples, HEALTHY, 1200), "_x40");
    }

    #[test]
    fn promtool_says_which_fire() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("rules.yml");
        std::fs::write(&path, RULES).expect("written");
        if tools::in_path("promtool").is_none() {
            // Said by the command itself as well.
            assert!(Rules::read(&path).is_err_and(|(_, missing)| missing));
            return;
        }
        let rules = Rules::read(&path).expect("read");
        let scratch = directory.path().join("test.yml");
        let found = rules.evaluate(&samples(1, 0), &samples(0, 1_799_999_995), &scratch).expect("evaluated");
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(found, Fired { healthy: set(&["Always"]), outage: set(&["Always", "Down", "Old"]) });
        std::fs::write(&path, "groups:\n- name: g\n  rules:\n  - alert: Bad\n    expr: sum(\n").expect("written");
        assert!(rules.evaluate(&samples(1, 0), &samples(0, 0), &scratch).is_err());
        assert!(Rules::read(Path::new("/nonexistent")).is_err_and(|(_, missing)| !missing));
    }
}
