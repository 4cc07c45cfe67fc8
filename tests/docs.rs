//! Keeps the documentation true where a machine can.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_below(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of all functions that are marked as tests, in proptest! blocks too.
fn tests_in_source() -> BTreeSet<String> {
    let mut files = Vec::new();
    files_below(&root().join("src"), "rs", &mut files);
    files_below(&root().join("tests"), "rs", &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let text = read(&file);
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            match line.strip_prefix("fn ") {
                Some(rest) if marked => {
                    names.extend(rest.split('(').next().map(str::to_string));
                    marked = false;
                }
                _ => marked = line == "#[test]" || (marked && (line.starts_with("#[") || line.starts_with("//"))),
            }
        }
    }
    names
}

/// Cells of the rows of all tables, without heads and rulers.
fn table_rows(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = text.lines().collect();
    let is_ruler = |line: &str| line.starts_with("| ---");
    let rows = lines.iter().enumerate().filter(|(n, line)| {
        line.starts_with('|') && !is_ruler(line) && !lines.get(n + 1).is_some_and(|next| is_ruler(next))
    });
    rows.map(|(_, line)| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn every_line_of_the_semantics_names_tests_that_exist() {
    names_tests_that_exist("docs/semantics.md", 20);
}

#[test]
fn every_line_of_the_triage_names_tests_that_exist() {
    names_tests_that_exist("docs/triage.md", 20);
}

#[test]
fn every_threat_names_tests_that_exist() {
    let text = read(&root().join("docs/threat-model.md"));
    let threats = text.split("## What could be tried").nth(1).and_then(|rest| rest.split("\n## ").next());
    name_tests("docs/threat-model.md", table_rows(threats.expect("there is that heading")));
}

fn names_tests_that_exist(file: &str, rows_at_least: usize) {
    let text = read(&root().join(file));
    let rows = table_rows(&text);
    assert!(rows.len() > rows_at_least, "only {} rows were found", rows.len());
    name_tests(file, rows);
}

fn name_tests(file: &str, rows: Vec<Vec<&str>>) {
    let known = tests_in_source();
    let mut wrong = Vec::new();
    for row in rows {
        let named: Vec<&str> = row.last().map_or("", |cell| cell).split('`').skip(1).step_by(2).collect();
        // A gap that is admitted is no lie.
        if named.is_empty() && row.last() != Some(&"*none yet*") {
            wrong.push(format!("{}: names no test", row[0]));
        }
        wrong.extend(
            named.iter().filter(|name| !known.contains(**name)).map(|name| format!("{}: no test {name}", row[0])),
        );
    }
    assert!(wrong.is_empty(), "{file}:\n{}", wrong.join("\n"));
}

#[test]
fn relative_links_lead_somewhere() {
    let mut files = vec![root().join("README.md")];
    files_below(&root().join("docs"), "md", &mut files);
    let mut broken = Vec::new();
    for file in files {
        let text = read(&file);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            if target.contains("://") || path.is_empty() {
                continue;
            }
            if !file.parent().is_some_and(|directory| directory.join(path).exists()) {
                broken.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
