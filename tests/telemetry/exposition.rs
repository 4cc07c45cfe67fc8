//! A reader of Prometheus's text format that knows the rules by which `promtool check metrics` complains.

use std::collections::{BTreeMap, BTreeSet};

/// One line with a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// One scrape.
#[derive(Debug, Default)]
pub struct Page {
    help: BTreeMap<String, String>,
    kind: BTreeMap<String, String>,
    samples: Vec<Sample>,
    broken: Vec<String>,
}

/// Units that must not be used because a base unit exists, and counters' and histograms' own suffixes.
const NOT_BASE_UNITS: [&str; 10] = [
    "milliseconds",
    "microseconds",
    "nanoseconds",
    "minutes",
    "hours",
    "kilobytes",
    "megabytes",
    "kibibytes",
    "ms",
    "kb",
];

impl Page {
    pub fn parse(text: &str) -> Page {
        let mut page = Page::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                page.note(name, help, "HELP");
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                page.note(name, kind, "TYPE");
            } else {
                match sample(line) {
                    Some(sample) => page.samples.push(sample),
                    None => page.broken.push(format!("not understood: {line}")),
                }
            }
        }
        page
    }

    fn note(&mut self, name: &str, text: &str, what: &str) {
        let notes = if what == "HELP" { &mut self.help } else { &mut self.kind };
        if notes.insert(name.into(), text.into()).is_some() {
            self.broken.push(format!("{name} has two lines of {what}"));
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter()
    }

    pub fn families(&self) -> impl Iterator<Item = &str> {
        self.kind.keys().map(String::as_str)
    }

    pub fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// The value of the first sample that has those labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits = |sample: &&Sample| labels.iter().all(|(k, v)| sample.labels.get(*k).is_some_and(|value| value == v));
        self.samples(name).find(fits).map(|sample| sample.value)
    }

    /// Everything that is against the rules.
    pub fn complaints(&self) -> Vec<String> {
        let mut found = self.broken.clone();
        if self.samples.is_empty() {
            found.push("there are no samples".into());
        }
        let mut seen = BTreeSet::new();
        for sample in &self.samples {
            let series = format!("{}{:?}", sample.name, sample.labels);
            if !seen.insert(series.clone()) {
                found.push(format!("{series} is there twice"));
            }
            if self.family_of(&sample.name).is_none() {
                found.push(format!("{} has no TYPE", sample.name));
            }
        }
        for (name, kind) in &self.kind {
            found.extend(self.family(name, kind));
        }
        found
    }

    fn family_of(&self, sample: &str) -> Option<&str> {
        let plain = self.kind.get_key_value(sample).filter(|(_, kind)| *kind != "histogram");
        let part = || {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.strip_suffix(suffix))?;
            self.kind.get_key_value(base).filter(|(_, kind)| *kind == "histogram")
        };
        plain.or_else(part).map(|(name, _)| name.as_str())
    }

    fn family(&self, name: &str, kind: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut must = |holds: bool, rule: &str| {
            if !holds {
                found.push(format!("{name}: {rule}"));
            }
        };
        must(self.help.get(name).is_some_and(|help| !help.is_empty()), "has no HELP");
        must(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "is not in snake case");
        must(name.ends_with("_total") == (kind == "counter"), "_total is for counters and only for them");
        must(!["_count", "_sum", "_bucket"].iter().any(|s| name.ends_with(s)), "has a suffix of histograms");
        let words: Vec<&str> = name.strip_suffix("_total").unwrap_or(name).split('_').collect();
        must(!words.iter().any(|word| NOT_BASE_UNITS.contains(word)), "is not in base units");
        let unit = words.iter().position(|word| ["seconds", "bytes"].contains(word));
        must(unit.is_none_or(|at| at + 1 == words.len()), "has its unit elsewhere than at the end");
        must(self.samples.iter().any(|sample| self.family_of(&sample.name) == Some(name)), "has no sample");
        if kind == "counter" {
            must(self.samples(name).all(|sample| sample.value >= 0.0), "is below 0");
        }
        if kind == "histogram" {
            must(self.histogram_adds_up(name), "has buckets that do not add up");
        }
        found
    }

    fn histogram_adds_up(&self, name: &str) -> bool {
        let mut series: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
        for bucket in self.samples(&format!("{name}_bucket")) {
            let mut labels = bucket.labels.clone();
            let le = labels.remove("le").unwrap_or_default();
            // Not every reader knows other spellings.
            let known = le.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            let bound = if le == "+Inf" { Some(f64::INFINITY) } else { le.parse().ok().filter(|_| known) };
            series.entry(labels).or_default().push((bound.unwrap_or(f64::NAN), bucket.value));
        }
        let name_of_count = format!("{name}_count");
        let counts = self.samples(&name_of_count).filter(|count| {
            let buckets = series.get(&count.labels);
            buckets.is_some_and(|buckets| {
                buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1)
                    && buckets.last() == Some(&(f64::INFINITY, count.value))
            })
        });
        !series.is_empty() && counts.count() == series.len()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, rest) = series.split_once('{').unwrap_or((series, "}"));
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    while let Some((label, after)) = rest.split_once("=\"") {
        let end = closing_quote(after)?;
        let value = after[..end].replace("\\n", "\n").replace("\\\"", "\"").replace("\\\\", "\\");
        labels.insert(label.trim_start_matches(',').to_owned(), value);
        rest = &after[end + 1..];
    }
    (rest == "}").then_some(())?;
    Some(Sample { name: name.into(), labels, value: value.parse().ok()? })
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

#[test]
fn the_checker_notices_what_it_is_for() {
    let complaints = |text: &str| Page::parse(text).complaints().len();
    assert_eq!(complaints("# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"1\\\"}\"} 2\n"), 0);
    for bad in [
        "",
        "# TYPE a_total counter\na_total 1\n",
        "# HELP a Help.\n# TYPE a counter\na 1\n",
        "# HELP a_total Help.\n# TYPE a_total gauge\na_total 1\n",
        "# HELP a Help.\n# TYPE a gauge\na 1\na 2\n",
        "# HELP a Help.\n# TYPE a gauge\n# HELP a Help.\na 2\n",
        "# HELP a_seconds_x Help.\n# TYPE a_seconds_x gauge\na_seconds_x 2\n",
        "# HELP a_ms Help.\n# TYPE a_ms gauge\na_ms 2\n",
        "# HELP a Help.\n# TYPE a gauge\nb 2\n",
        "# HELP a Help.\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
        "# HELP a Help.\n# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 1\na_count 1\n",
        "# HELP a Help.\n# TYPE a histogram\na_bucket{le=\"1\"} 1\na_bucket{le=\"inf\"} 1\na_sum 1\na_count 1\n",
    ] {
        assert_ne!(complaints(bad), 0, "{bad}");
    }
}
