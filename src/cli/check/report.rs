//! What was tried, and how it went.

use serde::Serialize;

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It may be meant.
    Warning,
    /// It will not work.
    Error,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// How it went.
    pub verdict: Verdict,
    /// What was tried.
    pub what: String,
    /// What was found; for all but `ok` with the remedy at its end.
    pub text: String,
}

/// All of it, in order.
#[derive(Debug, Default)]
pub struct Report {
    items: Vec<Item>,
}

impl Report {
    fn add(&mut self, verdict: Verdict, what: impl Into<String>, text: impl Into<String>) {
        self.items.push(Item { verdict, what: what.into(), text: text.into() });
    }

    pub fn ok(&mut self, what: impl Into<String>, text: impl Into<String>) {
        self.add(Verdict::Ok, what, text);
    }

    pub fn warn(&mut self, what: impl Into<String>, text: impl Into<String>) {
        self.add(Verdict::Warning, what, text);
    }

    pub fn error(&mut self, what: impl Into<String>, text: impl Into<String>) {
        self.add(Verdict::Error, what, text);
    }

    /// `Ok` with its words, or an error.
    pub fn take(&mut self, what: impl Into<String>, result: Result<String, String>) {
        match result {
            Ok(text) => self.ok(what, text),
            Err(text) => self.error(what, text),
        }
    }

    pub fn items(&self) -> &[Item] {
        &self.items
    }

    pub fn worst(&self) -> Verdict {
        self.items.iter().map(|item| item.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// A line each, and one that sums up.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for item in &self.items {
            let word = match item.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Error => "error",
            };
            let what = harmless(&item.what);
            let words = harmless(&item.text);
            text.push_str(&format!("{word:<8} {what}{}{words}\n", if words.is_empty() { "" } else { ": " }));
        }
        let count = |verdict| self.items.iter().filter(|item| item.verdict == verdict).count();
        let (errors, warnings) = (count(Verdict::Error), count(Verdict::Warning));
        let s = |count: usize| if count == 1 { "" } else { "s" };
        text.push_str(&format!("{errors} error{}, {warnings} warning{}\n", s(errors), s(warnings)));
        text
    }
}

/// What a server or a file says must not steer a terminal.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_decides() {
        let mut report = Report::default();
        assert_eq!(report.worst(), Verdict::Ok);
        report.ok("a", "");
        report.warn("b", "odd\u{1b}[2J");
        assert_eq!(report.worst(), Verdict::Warning);
        report.take("c", Err("bad".into()));
        assert_eq!(report.worst(), Verdict::Error);
        assert_eq!(report.text(), "ok       a\nwarning  b: odd?[2J\nerror    c: bad\n1 error, 1 warning\n");
    }
}
