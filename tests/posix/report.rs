//! Results side by side, and which of them have no explanation.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::outcome::{Cases, Outcome, summary};
use crate::site::BACKINGS;

/// One suite on one target.
#[derive(Debug, Serialize)]
struct Run {
    suite: &'static str,
    target: &'static str,
    seconds: f64,
    cases: Cases,
}

/// Everything that was run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    runs: Vec<Run>,
}

/// A case that fails on steadfs and passes on its backing, or is refused here and done there.
struct Difference<'a> {
    suite: &'a str,
    target: &'a str,
    case: &'a str,
    backing: String,
    found: String,
}

/// Cases whose difference has a reason, read from a table: suite, target, case, reason. `*` in a case stands for anything.
pub struct Explained(Vec<[String; 3]>);

impl Explained {
    pub fn read(text: &str) -> Explained {
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        let cells = |row: &str| -> Option<[String; 3]> {
            let cells: Vec<_> =
                row.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
            (cells.len() == 4 && !cells[3].is_empty()).then(|| [cells[0].clone(), cells[1].clone(), cells[2].clone()])
        };
        Explained(rows.map(|row| cells(row).unwrap_or_else(|| panic!("no four cells: {row}"))).collect())
    }

    fn covers(&self, difference: &Difference) -> bool {
        self.0.iter().any(|[suite, target, case]| {
            let same_place = suite == difference.suite && (target == difference.target || target == "any");
            same_place && is_like(difference.case, case)
        })
    }
}

/// True if the pattern, in which `*` stands for anything, is all of the text.
fn is_like(text: &str, pattern: &str) -> bool {
    let Some((beginning, rest)) = pattern.split_once('*') else { return text == pattern };
    let Some(left) = text.strip_prefix(beginning) else { return false };
    (0..=left.len()).filter(|&at| left.is_char_boundary(at)).any(|at| is_like(&left[at..], rest))
}

/// The words of a call that failed: an errno is the last of them.
fn ends_in_errno(words: &str) -> bool {
    let last = words.rsplit(' ').next().unwrap_or_default();
    last.len() > 2
        && last.starts_with('E')
        && last.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
}

fn told(outcome: Option<&Outcome>) -> String {
    match outcome {
        None => "was not run".into(),
        Some(Outcome::Pass) => "passed".into(),
        Some(Outcome::Fail(words)) => format!("failed: {words}"),
        Some(Outcome::Skip(words)) => format!("skipped: {words}"),
        Some(Outcome::Said(words)) => words.clone(),
    }
}

impl Report {
    pub fn add(&mut self, suite: &'static str, target: &'static str, cases: Cases, took: Duration) {
        self.runs.push(Run { suite, target, seconds: took.as_secs_f64(), cases });
    }

    fn cases(&self, suite: &str, target: &str) -> Option<&Cases> {
        self.runs.iter().find(|run| run.suite == suite && run.target == target).map(|run| &run.cases)
    }

    fn of(&self, suite: &str, target: &str, case: &str) -> Option<&Outcome> {
        self.cases(suite, target)?.get(case)
    }

    fn passes(&self, suite: &str, target: &str, case: &str) -> bool {
        match self.of(suite, target, case) {
            Some(Outcome::Pass) => true,
            Some(said @ Outcome::Said(_)) => self.of(suite, "plain", case) == Some(said),
            _ => false,
        }
    }

    /// It was done, be it otherwise than on the plain directory.
    fn is_done(&self, suite: &str, target: &str, case: &str) -> bool {
        matches!(self.of(suite, target, case), Some(Outcome::Said(words)) if !ends_in_errno(words))
    }

    fn differences(&self) -> Vec<Difference<'_>> {
        let mut all = Vec::new();
        for run in &self.runs {
            let Some((_, backing)) = BACKINGS.iter().find(|(target, _)| *target == run.target) else { continue };
            let there = self.cases(run.suite, backing);
            for (case, outcome) in there.into_iter().flatten() {
                let passes = |target| self.passes(run.suite, target, case);
                let is_done = |target| self.is_done(run.suite, target, case);
                let fails = passes(backing) || (is_done(backing) && !is_done(run.target));
                if fails && !passes(run.target) {
                    let (backing, found) = (told(Some(outcome)), told(run.cases.get(case)));
                    all.push(Difference { suite: run.suite, target: run.target, case, backing, found });
                }
            }
        }
        all
    }

    /// How many cases steadfs passes and its backing does not.
    fn better(&self, run: &Run) -> usize {
        let Some((_, backing)) = BACKINGS.iter().find(|(target, _)| *target == run.target) else { return 0 };
        let better =
            |case: &&String| self.passes(run.suite, run.target, case) && !self.passes(run.suite, backing, case);
        run.cases.keys().filter(better).count()
    }

    /// A line for each difference without an explanation.
    pub fn unexplained(&self, explained: &Explained) -> Vec<String> {
        let differences = self.differences();
        let open = differences.iter().filter(|difference| !explained.covers(difference));
        open.map(|d| format!("{} on {}: {}: {} instead of {}", d.suite, d.target, d.case, d.found, d.backing)).collect()
    }

    /// Writes report.md and report.json.
    pub fn write(&self, directory: &Path, explained: &Explained) {
        let mut text = String::from(
            "# Suites side by side\n\n| suite | target | cases | better than its backing | seconds |\n| --- | --- | --- | --- | --- |\n",
        );
        for run in &self.runs {
            let (found, better) = (summary(&run.cases), self.better(run));
            writeln!(text, "| {} | {} | {found} | {better} | {:.0} |", run.suite, run.target, run.seconds).unwrap();
        }
        text.push_str("\n## What steadfs fails and its backing passes\n\n| suite | target | case | backing | steadfs | explained |\n| --- | --- | --- | --- | --- | --- |\n");
        let mut counts = BTreeMap::new();
        for d in self.differences() {
            let known = if explained.covers(&d) { "yes" } else { "no" };
            *counts.entry(known).or_insert(0) += 1;
            let cell = |words: &str| words.replace('|', "\\|").chars().take(300).collect::<String>();
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {known} |",
                d.suite,
                d.target,
                cell(d.case),
                cell(&d.backing),
                cell(&d.found)
            )
            .unwrap();
        }
        writeln!(text, "\nExplained or not: {counts:?}").unwrap();
        std::fs::write(directory.join("report.md"), text).unwrap();
        std::fs::write(directory.join("report.json"), serde_json::to_vec_pretty(&self.runs).unwrap()).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases(list: &[(&str, Outcome)]) -> Cases {
        list.iter().map(|(name, outcome)| ((*name).to_owned(), outcome.clone())).collect()
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (text, pattern) in [("ab", "ab"), ("ab", "a*"), ("abc", "a*c"), ("a, b of c", "a, * of *"), ("", "*")] {
            assert!(is_like(text, pattern), "{text} {pattern}");
        }
        for (text, pattern) in [("ab", "a"), ("ab", "b*"), ("abc", "a*b"), ("a of c", "a, * of *")] {
            assert!(!is_like(text, pattern), "{text} {pattern}");
        }
    }

    #[test]
    fn only_what_the_backing_passes_counts_and_a_reason_covers_it() {
        let mut report = Report::default();
        let said = |words: &str| Outcome::Said(words.into());
        let fail = || Outcome::Fail("so".into());
        let mut add = |target, a, b, c, d: &str, e: &str| {
            let list = [("a", a), ("b", b), ("c", c), ("d", said(d)), ("e", said(e))];
            report.add("s", target, cases(&list), Duration::ZERO);
        };
        add("plain", Outcome::Pass, fail(), said("0"), "7", "EACCES");
        add("steadfs-dir", fail(), fail(), said("EIO"), "7", "EACCES");
        // Another value is done all the same, and what is done by mistake may be refused.
        add("sshfs", fail(), Outcome::Pass, said("EPERM"), "['mtime'] ", "0");
        add("steadfs-sshfs", fail(), Outcome::Pass, said("EIO"), "['mtime'] EIO", "EACCES");
        add("sshfs-field", fail(), fail(), said("EPERM"), "8", "0");
        add("steadfs-sshfs-field", fail(), fail(), said("EPERM"), "9", "8");
        let none = Explained::read("");
        assert_eq!(
            report.unexplained(&none),
            [
                "s on steadfs-dir: a: failed: so instead of passed",
                "s on steadfs-dir: c: EIO instead of 0",
                "s on steadfs-sshfs: d: ['mtime'] EIO instead of ['mtime'] "
            ]
        );
        let some = Explained::read("| `s` | `any` | `a*` | why |\n| `s` | `steadfs-sshfs` | `d` | why |\n");
        assert_eq!(report.unexplained(&some), ["s on steadfs-dir: c: EIO instead of 0"]);
    }
}
