//! Public suites of filesystem tests on a directory, on steadfs over it, on an sshfs and on steadfs over that, side by side.
//! What steadfs fails and its backing passes has to be in docs/posix-differences.md, with the reason.
//!
//! `make posix` runs all of it and writes target/posix/report.md and report.json. STEADFS_POSIX_SUITES and
//! STEADFS_POSIX_TARGETS name the ones to run, apart by commas.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../lab/mod.rs"]
mod lab;

mod outcome;
mod report;
mod site;
mod suites;

use std::path::{Path, PathBuf};
use std::time::Instant;

use report::{Explained, Report};
use site::Site;
use suites::Suite;

lab::also_runs_as!(agent_process: lab::agents::main);

/// Where reports and outputs go.
fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/posix")
}

fn chosen(variable: &str, name: &str) -> bool {
    std::env::var(variable).map_or(true, |list| list.split(',').any(|chosen| chosen == name))
}

fn compare(suites: &[Suite], results: &Path, is_wanted: impl Fn(&str) -> bool) -> Report {
    let site = Site::new(is_wanted);
    let mut report = Report::default();
    for suite in suites {
        for target in &site.targets {
            let begun = Instant::now();
            let cases = suite.run(&site, target, results);
            println!(
                "== {} on {}: {} in {:.1} s",
                suite.name,
                target.name,
                outcome::summary(&cases),
                begun.elapsed().as_secs_f64()
            );
            report.add(suite.name, target.name, cases, begun.elapsed());
        }
    }
    site.end();
    report
}

fn judge(report: &Report) {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/posix-differences.md")).unwrap();
    let unexplained = report.unexplained(&Explained::read(&text));
    assert!(unexplained.is_empty(), "steadfs fails what its backing passes:\n{}", unexplained.join("\n"));
}

/// What needs no program that is not there anyway, without SFTP, which takes its time.
#[test]
fn every_call_does_what_it_does_on_the_backing() {
    let outputs = tempfile::tempdir().unwrap();
    let own: Vec<_> = suites::all().into_iter().filter(|suite| suite.is_quick).collect();
    judge(&compare(&own, outputs.path(), |target| target == "plain" || target == "steadfs-dir"));
}

#[test]
#[ignore = "takes long and needs what `make posix` installs"]
fn steadfs_fails_nothing_that_its_backing_passes() {
    let results = results();
    std::fs::create_dir_all(&results).unwrap();
    let wanted: Vec<_> = suites::all().into_iter().filter(|suite| chosen("STEADFS_POSIX_SUITES", suite.name)).collect();
    let report = compare(&wanted, &results, |target| chosen("STEADFS_POSIX_TARGETS", target));
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/posix-differences.md")).unwrap();
    report.write(&results, &Explained::read(&text));
    judge(&report);
}
