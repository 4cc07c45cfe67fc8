//! What the demo found, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::cli::stage::Identity;
use crate::cli::stage::check::FileReport;

/// One fault and what it did to the programs.
#[derive(Debug, Clone, Serialize)]
pub struct FaultReport {
    /// What was done.
    pub name: String,
    /// When, in seconds since the programs began.
    pub at_seconds: f64,
    /// Longest time in which one of the busy programs committed nothing.
    pub longest_stall_seconds: f64,
    /// Longest single call.
    pub longest_call_seconds: f64,
    /// Which call that was.
    pub longest_call: String,
    /// From the fault to the moment when all busy programs had committed again; absent if that never came.
    pub back_after_seconds: Option<f64>,
    /// The same, from the moment at which the fault was lifted, for a fault that lasts.
    pub back_after_lifted_seconds: Option<f64>,
    /// Errors that calls returned, by name.
    pub errors: BTreeMap<String, u64>,
}

impl FaultReport {
    /// When the programs got going again, in words.
    pub fn back(&self) -> String {
        match (self.back_after_lifted_seconds, self.back_after_seconds) {
            (Some(lifted), _) => format!("{lifted:.1} s after it was lifted"),
            (None, Some(back)) => format!("after {back:.1} s"),
            (None, None) => "never".into(),
        }
    }

    /// The same for a table.
    fn back_after(&self) -> String {
        match (self.back_after_lifted_seconds, self.back_after_seconds) {
            (Some(lifted), _) => format!("{lifted:.1} s (lifted)"),
            (None, Some(back)) => format!("{back:.1} s"),
            (None, None) => "never".into(),
        }
    }
}

/// `3 EIO, 20 ENOTCONN`, or `none`.
pub fn count_by_name(errors: &BTreeMap<String, u64>) -> String {
    let words: Vec<String> = errors.iter().map(|(name, count)| format!("{count} {name}")).collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

/// What the mount was doing at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Seconds since the programs began.
    pub at_seconds: f64,
    /// State of the mount.
    pub state: String,
    /// Bytes committed since the sample before.
    pub bytes: u64,
    /// Errors returned since the sample before.
    pub errors: u64,
    /// Number of the fault that began since the sample before.
    pub fault: Option<usize>,
}

/// All of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Version of steadfs.
    pub version: &'static str,
    /// True when nothing was lost, everything came back and nothing was left over.
    pub kept: bool,
    /// What speaks against that, in words.
    pub failures: Vec<String>,
    /// Length of the run.
    pub seconds: f64,
    /// The faults.
    pub faults: Vec<FaultReport>,
    /// The files on the store.
    pub files: Vec<FileReport>,
    /// Bytes that the reader followed through its one descriptor.
    pub reader_bytes: u64,
    /// They are the bytes on the store.
    pub reader_agrees: bool,
    /// The overlay's mount before the first fault.
    pub mount_before: Option<Identity>,
    /// And after the last.
    pub mount_after: Option<Identity>,
    /// Slowest answer of `steadfs status`, start of the program included.
    pub slowest_status_seconds: f64,
    /// Some lines of `/metrics` after the last fault.
    pub metrics: Vec<String>,
    /// The course of the run.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Weighs what was found; `failures` holds what was noted on the way.
    pub fn judge(&mut self) {
        for file in &self.files {
            self.failures.extend(file.problems.iter().map(|problem| format!("{}: {problem}", file.name)));
        }
        for fault in self.faults.iter().filter(|fault| fault.back_after_seconds.is_none()) {
            self.failures.push(format!("{}: the programs did not get going again", fault.name));
        }
        if !self.reader_agrees {
            self.failures.push("the reader read other bytes than are on the store".into());
        }
        if self.mount_before.is_none() || self.mount_before != self.mount_after {
            self.failures.push("the overlay's mount is not the one from before the faults".into());
        }
        self.kept = self.failures.is_empty();
    }

    /// The text that ends a run.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        // Not wider than 80 columns.
        writeln!(out, "{:<30} {:>7} {:>7}  {:<14}  errors", "fault", "stall", "call", "back after")?;
        for (index, fault) in self.faults.iter().enumerate() {
            let (back, errors) = (fault.back_after(), count_by_name(&fault.errors));
            let name = format!("{} {}", index + 1, fault.name);
            let (stall, call) = (fault.longest_stall_seconds, fault.longest_call_seconds);
            writeln!(out, "{name:<30} {stall:>5.1} s {call:>5.1} s  {back:<14}  {errors}")?;
        }
        writeln!(out, "\n{:<24} {:>9} {:>9} {:>13}", "on the store", "bytes", "records", "acknowledged")?;
        for file in &self.files {
            let verdict = if file.problems.is_empty() { "sound" } else { "NOT SOUND" };
            let (name, bytes, records, wanted) = (&file.name, file.bytes, file.records, file.acknowledged);
            writeln!(out, "{name:<24} {bytes:>9} {records:>9} {wanted:>13}  {verdict}")?;
        }
        let agrees = if self.reader_agrees { "the same" } else { "NOT the same" };
        writeln!(out, "reader: {} bytes through one descriptor, {agrees} as on the store", self.reader_bytes)?;
        if let (Some(before), Some(after)) = (&self.mount_before, &self.mount_after) {
            writeln!(
                out,
                "mount id {} before, {} after; device {:#x} before, {:#x} after",
                before.mount_id, after.mount_id, before.device, after.device
            )?;
        }
        writeln!(out, "slowest answer of `steadfs status`: {:.0} ms", self.slowest_status_seconds * 1000.0)?;
        if !self.metrics.is_empty() {
            writeln!(out, "\nfrom /metrics")?;
            self.metrics.iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        }
        writeln!(out)?;
        if self.kept {
            writeln!(out, "verdict: nothing that was acknowledged is lost ({:.0} s)", self.seconds)
        } else {
            writeln!(out, "verdict: FAILED")?;
            self.failures.iter().try_for_each(|failure| writeln!(out, "  {failure}"))
        }
    }
}

/// The lines of `/metrics` that tell what the run did.
pub fn telling_lines(metrics: &str) -> Vec<String> {
    const TELLING: [&str; 7] = ["_state", "_generation", "outage", "repairs", "deadline", "open_files", "stuck"];
    let value_is_zero = |line: &str| line.rsplit(' ').next().is_some_and(|value| value == "0");
    metrics
        .lines()
        .filter(|line| !line.starts_with('#') && TELLING.iter().any(|word| line.contains(word)))
        .filter(|line| !value_is_zero(line) && !line.contains("_bucket") && !line.contains("operation="))
        .map(without_overlay)
        .collect()
}

/// There is only one overlay in the demo; its name makes the lines too wide.
fn without_overlay(line: &str) -> String {
    let Some((before, rest)) = line.split_once("overlay=\"") else { return line.to_string() };
    let Some((_, after)) = rest.split_once('"') else { return line.to_string() };
    format!("{before}{}", after.trim_start_matches(',')).replace("{}", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        let identity = Some(Identity { mount_id: 4, device: 57 });
        let fault = FaultReport {
            name: "sshfs killed".into(),
            at_seconds: 4.0,
            longest_stall_seconds: 0.4,
            longest_call_seconds: 0.3,
            longest_call: "fsync".into(),
            back_after_seconds: Some(0.4),
            back_after_lifted_seconds: None,
            errors: BTreeMap::from([("EIO".into(), 2)]),
        };
        let file = FileReport {
            name: "a.warc.gz".into(),
            bytes: 10,
            records: 3,
            sound_bytes: 10,
            acknowledged: 2,
            problems: Vec::new(),
        };
        Report {
            faults: vec![fault],
            files: vec![file],
            reader_agrees: true,
            mount_before: identity.clone(),
            mount_after: identity,
            ..Report::default()
        }
    }

    #[test]
    fn a_good_run_is_kept_and_says_so() {
        let mut report = good();
        report.judge();
        assert!(report.kept);
        let text = report.text();
        assert!(text.contains("nothing that was acknowledged is lost") && text.contains("2 EIO"), "{text}");
    }

    #[test]
    fn every_kind_of_failure_counts() {
        let spoil: [fn(&mut Report); 5] = [
            |r| r.files[0].problems.push("1 acknowledged records are lost".into()),
            |r| r.faults[0].back_after_seconds = None,
            |r| r.reader_agrees = false,
            |r| r.mount_after = None,
            |r| r.failures.push("left over: mount /x".into()),
        ];
        for change in spoil {
            let mut report = good();
            change(&mut report);
            report.judge();
            assert!(!report.kept && report.text().contains("FAILED"), "{report:?}");
        }
    }

    #[test]
    fn metrics_are_cut_to_what_the_run_changed() {
        let text =
            "# HELP steadfs_outages_total x\nsteadfs_outages_total 4\nsteadfs_stuck_threads 0\nsteadfs_other 5\n";
        assert_eq!(telling_lines(text), ["steadfs_outages_total 4"]);
        let text = "steadfs_state{overlay=\"/x\",state=\"live\"} 1\nsteadfs_generation{overlay=\"/x\"} 2\n";
        assert_eq!(telling_lines(text), ["steadfs_state{state=\"live\"} 1", "steadfs_generation 2"]);
    }
}
