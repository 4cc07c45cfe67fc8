//! Draws the run: a panel that is redrawn in place on a terminal, a line a second elsewhere.

use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use super::report::Sample;

/// Columns used, whatever the terminal's width: longer lines would wrap and spoil the redrawing.
const WIDTH: usize = 78;
const LABEL: usize = 12;
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What is shown at one moment.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Time since the programs began.
    pub elapsed: Duration,
    /// State of the mount.
    pub state: String,
    /// Why, and what comes next.
    pub words: String,
    /// Newest generation.
    pub generation: u64,
    /// What is being done to the mount.
    pub fault: String,
    /// Records committed.
    pub records: u64,
    /// Bytes committed a second, of late.
    pub rate: f64,
    /// Longest call since the last fault.
    pub longest_call: (Duration, &'static str),
    /// Longest stall since the last fault.
    pub longest_stall: Duration,
    /// Errors since the last fault, in words.
    pub errors: String,
    /// What came of the faults so far, a line each.
    pub results: Vec<String>,
}

/// Where it is drawn.
pub struct Screen {
    terminal: bool,
    colour: bool,
    quiet: bool,
    lines: usize,
    last_line: Option<u64>,
}

impl Screen {
    /// `quiet` draws nothing.
    pub fn new(quiet: bool) -> Screen {
        let terminal = stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Screen { terminal, colour, quiet, lines: 0, last_line: None }
    }

    /// Draws the present moment.
    pub fn show(&mut self, view: &View, samples: &[Sample]) {
        if self.quiet {
            return;
        }
        let mut out = stdout().lock();
        // A reader of our output that has gone is no reason to stop the run: it must be cleaned up after.
        let _ = if self.terminal {
            let lines = panel(view, samples, self.colour);
            let text: String = lines.iter().map(|line| format!("\x1b[2K{line}\n")).collect();
            let up = if self.lines > 0 { format!("\x1b[{}A", self.lines) } else { String::new() };
            self.lines = lines.len();
            write!(out, "\x1b[?7l{up}{text}\x1b[?7h")
        } else if self.last_line != Some(view.elapsed.as_secs()) {
            self.last_line = Some(view.elapsed.as_secs());
            writeln!(out, "{}", plain(view))
        } else {
            Ok(())
        };
        let _ = out.flush();
    }

    /// Something began or ended. On a terminal the panel shows it.
    pub fn note(&mut self, text: &str) {
        if !self.terminal && !self.quiet {
            let _ = writeln!(stdout(), "      {text}");
        }
    }

    /// Says something that stays on the screen above what is drawn next.
    pub fn say(&mut self, text: &str) {
        if self.quiet {
            return;
        }
        let mut out = stdout().lock();
        let up = if self.lines > 0 { format!("\x1b[{}A\x1b[J", self.lines) } else { String::new() };
        self.lines = 0;
        let _ = write!(out, "{up}{text}");
        let _ = out.flush();
    }

    /// Leaves the last picture on the screen; what is said next stands below it.
    pub fn leave(&mut self) {
        self.lines = 0;
    }
}

/// The panel, line by line.
fn panel(view: &View, samples: &[Sample], colour: bool) -> Vec<String> {
    let cells = WIDTH - LABEL;
    let columns = columns(samples, cells);
    let line = |label: &str, text: &str| fit(&format!("{label:<LABEL$}{text}"));
    let paint = |state: &str, text: &str| match colour {
        true => format!("\x1b[{}m{text}\x1b[0m", colour_of(state)),
        false => text.to_string(),
    };
    let states: String = columns.iter().map(|c| paint(&c.state, &mark_of(&c.state).to_string())).collect();
    let mut lines = vec![
        line("state", &format!("{}, generation {}{}", view.state, view.generation, view.words)),
        line("doing", &view.fault),
        format!("{:<LABEL$}{}", "committed", sparkline(&columns)),
        format!("{:<LABEL$}{states}", "mount"),
        format!("{:<LABEL$}{}", "", faults_row(&columns)),
        line("records", &format!("{} committed, {:.1} MB/s", view.records, view.rate / 1e6)),
        line(
            "longest",
            &format!(
                "stall {:.1} s, call {:.1} s ({})",
                view.longest_stall.as_secs_f64(),
                view.longest_call.0.as_secs_f64(),
                view.longest_call.1
            ),
        ),
        line("errors", &view.errors),
    ];
    lines.extend(view.results.iter().map(|result| line("", result)));
    lines
}

fn fit(line: &str) -> String {
    line.chars().take(WIDTH).collect()
}

/// One line for logs.
fn plain(view: &View) -> String {
    format!(
        "{:>3} s  {:<9} gen {:<2} {:>5.1} MB/s  {:>6} records  stall {:>4.1} s  errors {}{}",
        view.elapsed.as_secs(),
        view.state,
        view.generation,
        view.rate / 1e6,
        view.records,
        view.longest_stall.as_secs_f64(),
        view.errors,
        if view.fault.is_empty() { String::new() } else { format!("  [{}]", view.fault) }
    )
}

/// Puts the newest samples into at most `cells` columns of half a second: sums, and the worst state of each.
fn columns(samples: &[Sample], cells: usize) -> Vec<Sample> {
    let mut columns: Vec<Sample> = Vec::new();
    let mut slot = None;
    for sample in samples {
        let now = (sample.at_seconds * 2.0) as u64;
        match columns.last_mut().filter(|_| slot == Some(now)) {
            Some(column) => {
                column.bytes += sample.bytes;
                column.errors += sample.errors;
                column.fault = column.fault.or(sample.fault);
                if badness(&sample.state) > badness(&column.state) {
                    column.state.clone_from(&sample.state);
                }
            }
            None => columns.push(sample.clone()),
        }
        slot = Some(now);
    }
    columns.split_off(columns.len().saturating_sub(cells))
}

fn sparkline(columns: &[Sample]) -> String {
    let most = columns.iter().map(|c| c.bytes).max().unwrap_or(0).max(1);
    // A column with anything in it is not drawn empty.
    let height = |bytes: u64| if bytes == 0 { 0 } else { (bytes * 8 / most).max(1) as usize };
    columns.iter().map(|c| BARS[height(c.bytes)]).collect()
}

fn faults_row(columns: &[Sample]) -> String {
    columns.iter().map(|c| c.fault.and_then(|n| char::from_digit(n as u32 + 1, 10)).unwrap_or(' ')).collect()
}

fn badness(state: &str) -> u8 {
    match state {
        "live" => 0,
        "suspect" => 1,
        _ => 2,
    }
}

fn mark_of(state: &str) -> char {
    match badness(state) {
        0 => '━',
        1 => '╌',
        _ => '×',
    }
}

fn colour_of(state: &str) -> u8 {
    match badness(state) {
        0 => 32,
        1 => 33,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: f64, state: &str, bytes: u64, fault: Option<usize>) -> Sample {
        Sample { at_seconds: at, state: state.into(), bytes, errors: 0, fault }
    }

    #[test]
    fn samples_of_one_half_second_share_a_column_and_the_worst_state_shows() {
        let samples = [
            sample(0.0, "live", 100, None),
            sample(0.25, "live", 100, Some(0)),
            sample(0.5, "suspect", 0, None),
            sample(0.75, "repairing", 0, None),
            sample(1.0, "live", 25, None),
        ];
        let columns = columns(&samples, 10);
        assert_eq!(sparkline(&columns), "█ ▁");
        assert_eq!(columns.iter().map(|c| mark_of(&c.state)).collect::<String>(), "━×━");
        assert_eq!(faults_row(&columns), "1  ");
    }

    #[test]
    fn only_the_newest_columns_are_shown() {
        let samples: Vec<Sample> = (0..200).map(|n| sample(f64::from(n) * 0.5, "live", 1, None)).collect();
        let columns = columns(&samples, 66);
        assert_eq!((columns.len(), columns[65].at_seconds), (66, 99.5));
    }

    #[test]
    fn no_line_of_the_panel_is_too_wide() {
        let view = View {
            words: "x".repeat(300),
            fault: "y".repeat(300),
            errors: "z".repeat(300),
            results: vec!["r".repeat(300)],
            ..View::default()
        };
        let samples: Vec<Sample> = (0..200).map(|n| sample(f64::from(n) * 0.5, "live", 1, None)).collect();
        let lines = panel(&view, &samples, false);
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:#?}");
        assert_eq!(lines.len(), panel(&View::default(), &[], true).len() + 1);
    }

    #[test]
    fn a_plain_line_names_state_and_fault() {
        let view = View { state: "waiting".into(), fault: "sshfs killed".into(), ..View::default() };
        let line = plain(&view);
        assert!(line.contains("waiting") && line.contains("[sshfs killed]"), "{line}");
    }
}
