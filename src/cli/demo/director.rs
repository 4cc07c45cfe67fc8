//! Plays the faults one after the other, watches, and writes down what came of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::draw::{Screen, View};
use super::faults::Fault;
use super::report::{FaultReport, Sample, count_by_name};
use crate::cli::stage::Stage;
use crate::cli::stage::cast::{BUSY_ACTORS, Cast, longest_stall};
use crate::cli::stage::meter::Totals;
use crate::cli::stage::status::Poller;

/// Time between two looks.
const TICK: Duration = Duration::from_millis(250);
/// How long the programs may take to get going again once a fault is over.
const PATIENCE: Duration = Duration::from_secs(12);

/// The run was interrupted.
#[derive(Debug, PartialEq, Eq)]
pub struct Interrupted;

/// See the module.
pub struct Director<'a> {
    stage: &'a Stage,
    cast: Arc<Cast>,
    screen: &'a mut Screen,
    interrupted: &'a AtomicBool,
    poller: &'a Poller,
    fault: String,
    fault_began: Option<usize>,
    last: Totals,
    /// The course of the run.
    pub samples: Vec<Sample>,
    /// What came of each fault.
    pub faults: Vec<FaultReport>,
}

impl<'a> Director<'a> {
    /// A director for one run; the programs have begun.
    pub fn new(
        stage: &'a Stage,
        cast: Arc<Cast>,
        poller: &'a Poller,
        screen: &'a mut Screen,
        interrupted: &'a AtomicBool,
    ) -> Self {
        Director {
            stage,
            poller,
            cast,
            screen,
            interrupted,
            fault: String::new(),
            fault_began: None,
            last: Totals::default(),
            samples: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Plays `program` with so much calm before, between and after.
    pub fn play(&mut self, program: &[Fault], calm: Duration) -> Result<(), Interrupted> {
        self.watch(calm, |_| false)?;
        for (index, &fault) in program.iter().enumerate() {
            self.torment(index, fault)?;
            self.fault = String::new();
            self.watch(calm, |_| false)?;
        }
        Ok(())
    }

    fn torment(&mut self, index: usize, fault: Fault) -> Result<(), Interrupted> {
        let before = self.poller.status().generation;
        self.cast.meter.next_window();
        let at = self.cast.meter.elapsed();
        self.fault = format!("fault {}: {}", index + 1, fault.name());
        self.fault_began = Some(index);
        self.screen.note(&self.fault);
        let mut lifted = None;
        if let Err(problem) = fault.begin(self.stage) {
            self.fault = format!("{} could not be done: {problem}", fault.name());
            self.write_down(fault, at, lifted, false);
            return Ok(());
        }
        if let Some(lasts) = fault.lasts() {
            self.watch(lasts, |_| false)?;
            // Without this the fault never ends and the run says so.
            if let Err(problem) = fault.lift(self.stage) {
                self.fault = problem;
            }
            lifted = Some(self.cast.meter.elapsed());
        }
        let mut live_since = None;
        let back = self.watch(PATIENCE, |director| {
            let status = director.poller.status();
            if status.is_live() && status.generation > before {
                let since = *live_since.get_or_insert_with(Instant::now);
                return director.cast.meter.all_committed_since(BUSY_ACTORS, since);
            }
            false
        })?;
        self.write_down(fault, at, lifted, back);
        fault.clear_up(self.stage);
        Ok(())
    }

    fn write_down(&mut self, fault: Fault, at: Duration, lifted: Option<Duration>, back: bool) {
        let window = self.cast.meter.next_window();
        let (stall, end) = longest_stall(&window);
        let since = |moment: Duration| end.saturating_sub(moment).as_secs_f64();
        self.faults.push(FaultReport {
            name: fault.name(),
            at_seconds: at.as_secs_f64(),
            longest_stall_seconds: stall.as_secs_f64(),
            longest_call_seconds: window.longest_call.0.as_secs_f64(),
            longest_call: window.longest_call.1.to_string(),
            back_after_seconds: back.then(|| since(at)),
            back_after_lifted_seconds: lifted.filter(|_| back).map(since),
            errors: window.errors,
        });
        if let Some(report) = self.faults.last() {
            self.screen.note(&outcome(self.faults.len() - 1, report));
        }
    }

    /// Looks on until `enough` or for `limit`; true if it was enough.
    fn watch(&mut self, limit: Duration, mut enough: impl FnMut(&Self) -> bool) -> Result<bool, Interrupted> {
        let begun = Instant::now();
        loop {
            if self.interrupted.load(SeqCst) {
                return Err(Interrupted);
            }
            self.look();
            if enough(self) {
                return Ok(true);
            }
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            sleep(left.min(TICK));
        }
    }

    fn look(&mut self) {
        let meter = &self.cast.meter;
        let status = self.poller.status();
        let totals = meter.totals();
        self.samples.push(Sample {
            at_seconds: meter.elapsed().as_secs_f64(),
            state: status.state.clone(),
            bytes: totals.bytes - self.last.bytes,
            errors: totals.errors - self.last.errors,
            fault: self.fault_began.take(),
        });
        self.last = totals;
        let words = [status.why.as_str(), status.next.as_str()];
        let words = words.iter().filter(|w| !w.is_empty()).map(|w| format!("; {w}")).collect();
        let view = View {
            elapsed: meter.elapsed(),
            words,
            generation: status.generation,
            state: status.state,
            fault: self.fault.clone(),
            records: totals.records,
            rate: recent_rate(&self.samples),
            longest_call: meter.longest_call(),
            longest_stall: meter.longest_stall(BUSY_ACTORS),
            errors: count_by_name(&meter.window_errors()),
            results: self.faults.iter().enumerate().map(|(n, fault)| outcome(n, fault)).collect(),
        };
        self.screen.show(&view, &self.samples);
    }
}

/// One fault in one line.
fn outcome(index: usize, fault: &FaultReport) -> String {
    let (number, name, back) = (index + 1, &fault.name, fault.back());
    format!("{number} {name}: back {back}, errors {}", count_by_name(&fault.errors))
}

/// Bytes a second over the last second.
fn recent_rate(samples: &[Sample]) -> f64 {
    let Some(now) = samples.last().map(|s| s.at_seconds) else { return 0.0 };
    let bytes: u64 = samples.iter().rev().take_while(|s| now - s.at_seconds < 1.0).map(|s| s.bytes).sum();
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: f64, bytes: u64) -> Sample {
        Sample { at_seconds: at, state: "live".into(), bytes, errors: 0, fault: None }
    }

    #[test]
    fn the_rate_is_that_of_the_last_second() {
        assert_eq!(recent_rate(&[sample(0.0, 900), sample(1.5, 100), sample(2.0, 200)]), 300.0);
        assert_eq!(recent_rate(&[]), 0.0);
    }
}
