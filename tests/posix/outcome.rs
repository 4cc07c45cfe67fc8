//! What a suite says of each of its cases, and how that is read from its output.

use std::collections::BTreeMap;

use serde::Serialize;

/// What came of one case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "outcome", content = "words")]
pub enum Outcome {
    Pass,
    Fail(String),
    Skip(String),
    /// Neither good nor bad by itself: to be what it is on the plain directory.
    Said(String),
}

/// Cases by name.
pub type Cases = BTreeMap<String, Outcome>;

/// How many there are of each.
pub fn summary(cases: &Cases) -> String {
    let count = |is: fn(&Outcome) -> bool| cases.values().filter(|outcome| is(outcome)).count();
    let said = count(|outcome| matches!(outcome, Outcome::Said(_)));
    if said > 0 {
        return format!("{said} calls");
    }
    format!(
        "{} passed, {} failed, {} skipped",
        count(|outcome| *outcome == Outcome::Pass),
        count(|outcome| matches!(outcome, Outcome::Fail(_))),
        count(|outcome| matches!(outcome, Outcome::Skip(_)))
    )
}

/// Reads lines `ok NAME`, `not ok NAME: WORDS`, `skip NAME: WORDS` and `said NAME: WORDS`; others are not for us.
pub fn read_lines(output: &str) -> Cases {
    let mut cases = Cases::new();
    for line in output.lines() {
        let split = |rest: &str| {
            let (name, words) = rest.split_once(": ").unwrap_or((rest, ""));
            (name.trim().to_owned(), words.to_owned())
        };
        let (name, outcome) = if let Some(rest) = line.strip_prefix("ok ") {
            (rest.trim().to_owned(), Outcome::Pass)
        } else if let Some((name, words)) = line.strip_prefix("not ok ").map(split) {
            (name, Outcome::Fail(words))
        } else if let Some((name, words)) = line.strip_prefix("skip ").map(split) {
            (name, Outcome::Skip(words))
        } else if let Some((name, words)) = line.strip_prefix("said ").map(split) {
            (name, Outcome::Said(words))
        } else {
            continue;
        };
        cases.insert(name, outcome);
    }
    cases
}

/// Reads what pjdfstest prints: a line of a name and a verdict, then words that begin with a tab.
pub fn read_pjdfstest(output: &str) -> Cases {
    let mut cases = Cases::new();
    let mut last = None;
    for line in output.lines() {
        if let Some(words) = line.strip_prefix('\t') {
            if let Some(Outcome::Fail(said) | Outcome::Skip(said)) = last.as_ref().and_then(|name| cases.get_mut(name))
            {
                said.push_str(words.trim());
                said.push(' ');
            }
            continue;
        }
        let mut parts = line.split_whitespace();
        let outcome = match (parts.clone().next_back(), line.contains("::")) {
            (Some("ok"), true) => Outcome::Pass,
            (Some("FAILED"), true) => Outcome::Fail(String::new()),
            (Some("skipped"), true) => Outcome::Skip(String::new()),
            // The words of a failure may go on without a tab.
            _ => continue,
        };
        last = parts.next().map(str::to_owned);
        cases.extend(last.clone().map(|name| (name, outcome)));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_read() {
        let cases = read_lines("ok a b\nnoise\nnot ok c: why: so\nskip d: no\nsaid e: ENOENT\n");
        assert_eq!(cases["a b"], Outcome::Pass);
        assert_eq!(cases["c"], Outcome::Fail("why: so".into()));
        assert_eq!(cases["d"], Outcome::Skip("no".into()));
        assert_eq!(cases["e"], Outcome::Said("ENOENT".into()));
        assert_eq!(cases.len(), 4);
        let cases = read_pjdfstest("a::b   ok\na::c   FAILED\n\tleft\n  right: 1\na::d  skipped\n\tneeds x\n");
        assert_eq!(cases["a::b"], Outcome::Pass);
        assert_eq!(cases["a::c"], Outcome::Fail("left ".into()));
        assert_eq!(cases["a::d"], Outcome::Skip("needs x ".into()));
    }
}
