//! The metrics of a simulated day, a sample a minute, and what Prometheus's rules make of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::lab::agent::now;

/// Seconds of a minute of the simulated day.
const MINUTE: f64 = 60.0;
/// What was seen that long ago at most is as fresh as can be: metrics are written every 20 s.
const FRESH: f64 = 45.0;

/// See the module.
#[derive(Default)]
pub struct Recorder {
    /// Each sample's real time, and its values by series.
    samples: Vec<(f64, BTreeMap<String, f64>)>,
}

impl Recorder {
    /// The next minute is as these pages of metrics say.
    pub fn minute(&mut self, pages: &[String]) {
        let mut values = BTreeMap::new();
        for line in pages.iter().flat_map(|page| page.lines()).filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            values.insert(series.to_owned(), value.parse().unwrap_or(f64::NAN));
        }
        assert!(!values.is_empty(), "there are no metrics");
        self.samples.push((now(), values));
    }

    /// So many minutes go on as the last one.
    pub fn quiet(&mut self, minutes: usize) {
        let last = self.samples.last().unwrap().clone();
        self.samples.extend(std::iter::repeat_n(last, minutes));
    }

    /// Minutes so far.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// A moment of the test in seconds of the simulated day.
    fn simulated(&self, at: f64, seen_at: usize) -> f64 {
        let (real, _) = self.samples[seen_at];
        if real - at < FRESH && self.is_running(at) {
            // Time runs as fast as samples come; what happened between two of them happened with the later one.
            let index = self.samples.iter().position(|(real, _)| *real >= at).unwrap_or(seen_at);
            return index.min(seen_at) as f64 * MINUTE;
        }
        match self.samples.iter().position(|(real, _)| *real >= at) {
            Some(0) | None => 1.0,
            Some(index) => index as f64 * MINUTE,
        }
    }

    fn is_running(&self, at: f64) -> bool {
        self.samples.first().is_some_and(|(real, _)| at >= *real)
    }

    /// The series that promtool is given: of those that some rule looks at.
    fn series(&self, rules: &str) -> BTreeMap<String, Vec<Option<f64>>> {
        let mut all: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
        for (index, (real, values)) in self.samples.iter().enumerate() {
            for (series, value) in values {
                let name = series.split('{').next().unwrap_or_default();
                if !rules.contains(name) {
                    continue;
                }
                let stamped = name.ends_with("timestamp_seconds") && *value > 0.0;
                let value = match stamped {
                    // A daemon that writes every 20 s is as fresh in a minute that is simulated in a second.
                    true if name.contains("metrics_timestamp")
                        || name.contains("last_run")
                        || name.contains("healthy") =>
                    {
                        if real - value < FRESH {
                            index as f64 * MINUTE
                        } else {
                            self.simulated(*value, index)
                        }
                    }
                    true => self.simulated(*value, index),
                    false => *value,
                };
                let values = all.entry(series.clone()).or_default();
                values.resize(index, None);
                values.push(Some(value));
            }
        }
        all
    }

    /// The minutes at which each alert of these rules fires.
    pub fn alerts(&self, rules: &[PathBuf], directory: &Path) -> BTreeMap<String, BTreeSet<usize>> {
        let texts: String = rules.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let names: Vec<&str> =
            texts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::trim).collect();
        assert!(!names.is_empty());
        let mut input = String::new();
        for (series, values) in self.series(&texts) {
            let text: Vec<String> =
                values.iter().map(|value| value.map_or("_".into(), |value| format!("{value}"))).collect();
            writeln!(input, "      - {{series: '{}', values: '{}'}}", series.replace('\'', "''"), text.join(" "))
                .unwrap();
        }
        // Nothing is expected, so that it says of each minute what fires.
        let mut tests = String::new();
        for minute in 0..self.len() {
            let expression = "sum by (alertname) (ALERTS{alertstate=\"firing\"})";
            writeln!(tests, "      - {{expr: '{expression}', eval_time: {minute}m, exp_samples: []}}").unwrap();
        }
        let files: Vec<String> = rules.iter().map(|path| format!("{:?}", path.display().to_string())).collect();
        let text = format!(
            "rule_files: [{}]\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n{input}    promql_expr_test:\n{tests}",
            files.join(", ")
        );
        let file = directory.join("day.yml");
        std::fs::write(&file, text).unwrap();
        let output = Command::new("promtool").args(["test", "rules"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        fired(&said, &names).unwrap_or_else(|| {
            assert!(output.status.success(), "promtool: {said}");
            BTreeMap::new()
        })
    }
}

/// What promtool says of each minute in which something fires.
fn fired(said: &str, names: &[&str]) -> Option<BTreeMap<String, BTreeSet<usize>>> {
    let mut all: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    let mut minute = None;
    for line in said.lines() {
        if let Some(at) = line.split("time: ").nth(1) {
            minute = Some(minutes(at.trim_end_matches(',')));
        }
        for rest in line.split("{alertname=\"").skip(1) {
            let name = rest.split('"').next()?;
            assert!(names.contains(&name), "{line}");
            all.entry(name.into()).or_default().insert(minute?);
        }
    }
    (!all.is_empty()).then_some(all)
}

/// Prometheus's way of writing a duration, such as `1h5m` or `45m`.
fn minutes(text: &str) -> usize {
    let (mut total, mut number) = (0, 0);
    for char in text.chars() {
        match char {
            '0'..='9' => number = number * 10 + char.to_digit(10).unwrap() as usize,
            'd' => (total, number) = (total + number * 1440, 0),
            'h' => (total, number) = (total + number * 60, 0),
            'm' => (total, number) = (total + number, 0),
            _ => number = 0,
        }
    }
    total
}
