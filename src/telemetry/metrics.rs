//! All metrics, with their names, help and units, made from what is counted elsewhere at the moment of the scrape.

mod repairs;

use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::overlays::{self, Place, Seen};
use super::{Observed, status};
use crate::gate::stats::LATENCY_BOUNDS;
use crate::gate::{Op, Outcome};
use crate::overlay::Counts;

/// States in `steadfs_state`, as in [`crate::supervisor::Snapshot::state`].
const STATES: [&str; 11] = [
    "adopting",
    "reaching",
    "starting",
    "restoring",
    "live",
    "suspect",
    "retiring",
    "waiting",
    "held",
    "halted",
    "stopping",
];

/// The exposition in Prometheus's text format.
pub fn render(observed: &Observed) -> String {
    let mut page = Page { overlay: observed.config.home.display().to_string(), families: Vec::new() };
    supervisor(&mut page, observed);
    repairs::families(&mut page, observed);
    calls(&mut page, observed);
    let overlays = overlays::look(observed);
    by_overlay(&mut page, &overlays);
    rest(&mut page, observed, &overlays::total(&overlays));
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&page.families, &mut text) {
        tracing::error!(%error, "metrics cannot be encoded");
    }
    String::from_utf8(text).unwrap_or_default()
}

struct Page {
    overlay: String,
    families: Vec<MetricFamily>,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    fn family(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        let mut family = MetricFamily::default();
        family.set_name(name.into());
        family.set_help(help.into());
        family.set_field_type(kind);
        family.set_metric(metrics);
        // A family without a sample is not allowed in the format.
        if !family.get_metric().is_empty() {
            self.families.push(family);
        }
    }

    fn labelled(&self, labels: Labels<'_>) -> Metric {
        labelled(&self.overlay, labels)
    }

    fn gauge_of(&self, labels: Labels<'_>, value: f64) -> Metric {
        let mut metric = self.labelled(labels);
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
        metric
    }

    fn counter_of(&self, labels: Labels<'_>, value: f64) -> Metric {
        let mut metric = self.labelled(labels);
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
        metric
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let metric = self.gauge_of(&[], value);
        self.family(name, help, MetricType::GAUGE, vec![metric]);
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) {
        let metric = self.counter_of(&[], value);
        self.family(name, help, MetricType::COUNTER, vec![metric]);
    }
}

fn labelled(overlay: &str, labels: Labels<'_>) -> Metric {
    let pair = |(name, value): (&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.into());
        pair.set_value(value.into());
        pair
    };
    let overlay = std::iter::once(("overlay", overlay));
    Metric::from_label(overlay.chain(labels.iter().copied()).map(pair).collect())
}

fn epoch(at: Option<SystemTime>) -> f64 {
    at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0.0, |since| since.as_secs_f64())
}

fn supervisor(page: &mut Page, observed: &Observed) {
    let snapshot = observed.watch.snapshot();
    let up = matches!(snapshot.state, "live" | "suspect");
    page.gauge("steadfs_up", "1 while calls succeed, 0 in an outage.", f64::from(u8::from(up)));
    let states = STATES
        .iter()
        .map(|state| page.gauge_of(&[("state", state)], f64::from(u8::from(*state == snapshot.state))))
        .collect();
    page.family("steadfs_state", "1 for the state that the supervisor is in.", MetricType::GAUGE, states);
    page.gauge("steadfs_generation", "Number of the newest generation of the backing.", snapshot.generation as f64);
    page.counter("steadfs_outages_total", "Outages that began.", snapshot.outages as f64);
    let seconds = snapshot.outage_total.as_secs_f64();
    page.counter("steadfs_outage_seconds_total", "Time in outages, the present one included.", seconds);
    let since = epoch(snapshot.outage_since);
    page.gauge(
        "steadfs_outage_start_timestamp_seconds",
        "First evidence of the present outage; 0 if there is none.",
        since,
    );
    let repairs = snapshot
        .repairs
        .iter()
        .map(|((reason, result), count)| page.counter_of(&[("reason", reason), ("result", result)], *count as f64))
        .collect();
    page.family(
        "steadfs_repairs_total",
        "Ends of repairs, by what the outage began with.",
        MetricType::COUNTER,
        repairs,
    );
    page.counter("steadfs_probes_total", "Probes sent to the server.", snapshot.probes as f64);
    page.counter("steadfs_probe_failures_total", "Probes that failed or were late.", snapshot.probes_failed as f64);
    let at = epoch(snapshot.probe_ok_at);
    page.gauge("steadfs_last_probe_timestamp_seconds", "When the last probe was answered; 0 if none was.", at);
    let took = snapshot.probe_took.unwrap_or_default().as_secs_f64();
    page.gauge("steadfs_last_probe_duration_seconds", "How long the last answered probe took.", took);
}

fn calls(page: &mut Page, observed: &Observed) {
    let (stats, load) = (observed.gate.stats(), observed.gate.load());
    let mut results = Vec::new();
    let mut latencies = Vec::new();
    for op in Op::ALL {
        for outcome in Outcome::ALL {
            let labels = [("operation", op.name()), ("result", outcome.name())];
            results.push(page.counter_of(&labels, stats.result(op, outcome) as f64));
        }
        let (counts, mut total) = (stats.latency(op).counts(), 0);
        let buckets = LATENCY_BOUNDS.iter().zip(&counts).map(|(bound, count)| {
            total += count;
            let mut bucket = Bucket::default();
            bucket.set_cumulative_count(total);
            bucket.set_upper_bound(*bound);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        // The encoder adds the bucket without bound, which it would call `inf` if it were given.
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(stats.latency(op).sum_seconds());
        let mut metric = page.labelled(&[("operation", op.name())]);
        metric.set_histogram(histogram);
        latencies.push(metric);
    }
    page.family("steadfs_calls_total", "FUSE calls answered.", MetricType::COUNTER, results);
    let help = "Time from the arrival of a FUSE call to its answer.";
    page.family("steadfs_call_duration_seconds", help, MetricType::HISTOGRAM, latencies);
    page.gauge("steadfs_calls_waiting", "Calls that have not been answered.", load.waiting as f64);
    let late = stats.total(Outcome::Deadline) + stats.total(Outcome::Outage);
    page.counter(
        "steadfs_deadline_hits_total",
        "Calls answered by a deadline or an outage in place of the backing.",
        late as f64,
    );
    let retries = stats.retries.load(Relaxed);
    page.counter("steadfs_call_retries_total", "Calls that were run again in a later generation.", retries as f64);
    page.gauge("steadfs_threads", "Threads that call into the backing.", load.threads as f64);
    page.gauge("steadfs_threads_stuck", "Those that are inside with nobody waiting for them.", load.stuck as f64);
    page.counter("steadfs_read_bytes_total", "Bytes read from the backing.", stats.bytes_read.load(Relaxed) as f64);
    page.counter(
        "steadfs_written_bytes_total",
        "Bytes written to the backing.",
        stats.bytes_written.load(Relaxed) as f64,
    );
    page.gauge("steadfs_in_flight_bytes", "Bytes handed to the backing and not answered.", load.bytes_in_flight as f64);
    page.gauge("steadfs_window_bytes", "Most bytes that may be in flight at present.", load.window as f64);
}

/// What is told of each overlay, with its hot path as the label; everything else has the name of the daemon.
fn by_overlay(page: &mut Page, overlays: &[Seen]) {
    let mut family = |name: &str, help: &str, kind: MetricType, value: fn(&Seen) -> f64| {
        let metrics = overlays.iter().map(|seen| {
            let mut metric = labelled(&seen.mountpoint.display().to_string(), &[]);
            if kind == MetricType::COUNTER {
                let mut counter = Counter::default();
                counter.set_value(value(seen));
                metric.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(value(seen));
                metric.set_gauge(gauge);
            }
            metric
        });
        page.family(name, help, kind, metrics.collect());
    };
    let (gauge, counter) = (MetricType::GAUGE, MetricType::COUNTER);
    let help = "1 if the overlay is what is mounted, uppermost, on the hot path.";
    family("steadfs_overlay_mounted", help, gauge, |seen| flag(seen.place == Place::Overlay));
    family("steadfs_open_files", "Open files.", gauge, |seen| seen.counts.open_files as f64);
    family("steadfs_open_directories", "Open directories.", gauge, |seen| seen.counts.open_dirs as f64);
    family("steadfs_cached_inodes", "Inodes that the kernel holds.", gauge, |seen| seen.counts.nodes as f64);
    let help = "Bytes that the write log keeps until a commit.";
    family("steadfs_log_bytes", help, gauge, |seen| seen.counts.log_bytes as f64);
    let help = "Files with changes that are not committed.";
    family("steadfs_uncommitted_files", help, gauge, |seen| seen.counts.dirty_files as f64);
    let help = "Bytes that were written again after repairs.";
    family("steadfs_replayed_bytes_total", help, counter, |seen| seen.counts.replayed_bytes as f64);
    let help = "Files whose uncommitted changes were saved to the spool because they could not be written.";
    family("steadfs_spooled_files_total", help, counter, |seen| seen.counts.spooled_files as f64);
    let help = "Files whose uncommitted changes could not even be saved to the spool.";
    family("steadfs_lost_files_total", help, counter, |seen| seen.counts.lost_files as f64);
}

fn rest(page: &mut Page, observed: &Observed, counts: &Counts) {
    page.gauge(
        "steadfs_log_limit_bytes",
        "Most bytes that the write log may keep (log_size).",
        counts.log_limit as f64,
    );
    let entries = status::spool_entries(observed);
    page.gauge("steadfs_spool_entries", "Entries of the spool, for somebody to look at.", entries as f64);
    keeper(page, observed);
    let worker = observed.worker.report();
    let is = |paused: bool| f64::from(u8::from(paused));
    let all = page.gauge_of(&[], is(worker.paused_since.is_some()));
    let each = worker.workers.iter().map(|one| page.gauge_of(&[("worker", &one.name)], is(one.paused)));
    let paused = std::iter::once(all).chain(each).collect();
    let help = "1 while workers have been told to pause; with a label, while that one is paused.";
    page.family("steadfs_worker_paused", help, MetricType::GAUGE, paused);
    let steps = worker
        .steps
        .iter()
        .map(|run| {
            let labels = [("worker", &*run.worker), ("action", &run.action), ("result", &run.result)];
            page.counter_of(&labels, run.count as f64)
        })
        .collect();
    page.family("steadfs_worker_step_total", "Steps of pausing and letting go.", MetricType::COUNTER, steps);
    let hooks = worker
        .hooks
        .iter()
        .map(|run| page.counter_of(&[("hook", &run.hook), ("result", &run.result)], run.count as f64))
        .collect();
    page.family("steadfs_hook_runs_total", "Runs of hooks.", MetricType::COUNTER, hooks);
    let info = page.gauge_of(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.family("steadfs_build_info", "The version that runs.", MetricType::GAUGE, vec![info]);
    page.gauge("steadfs_start_timestamp_seconds", "When the daemon started.", epoch(Some(observed.started)));
    let now = epoch(Some(SystemTime::now()));
    page.gauge(
        "steadfs_metrics_timestamp_seconds",
        "When these figures were made; an old one means a dead watcher.",
        now,
    );
    // Not process_*: in a textfile those names are node_exporter's own.
    page.gauge("steadfs_resident_memory_bytes", "Resident memory of the daemon (proc_pid_statm(5)).", resident_bytes());
    let limit = status::memory_limit(&observed.gate.load(), counts, &(observed.kept)());
    let help = "What that should stay under: write log, window, calls that wait, what is noted, and the rest.";
    page.gauge("steadfs_resident_memory_limit_bytes", help, limit as f64);
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    page.gauge(
        "steadfs_open_descriptors",
        "Descriptors that the daemon has open (proc_pid_fd(5)).",
        descriptors as f64,
    );
}

fn keeper(page: &mut Page, observed: &Observed) {
    let kept = (observed.kept)();
    page.gauge(
        "steadfs_keeper",
        "1 if a keeper holds what a successor of the daemon needs.",
        flag(kept.keeper.is_some()),
    );
    let help = "1 if another daemon could go on if this one died now.";
    page.gauge("steadfs_succession_possible", help, flag(kept.possible));
    let help = "Daemons of this mount that took the place of one before.";
    page.counter("steadfs_successions_total", help, kept.successions as f64);
    let at = epoch(kept.last.as_ref().map(|last| last.at));
    page.gauge("steadfs_last_succession_timestamp_seconds", "When the last of them began; 0 if none did.", at);
    let pause = kept.last.map_or(0.0, |last| last.pause.as_secs_f64());
    page.gauge("steadfs_last_succession_pause_seconds", "How long nobody served the mount then.", pause);
    page.gauge("steadfs_handover_bytes", "Bytes that are noted for a successor.", kept.used as f64);
    page.gauge("steadfs_handover_limit_bytes", "Most that may be; 0 if nothing is noted.", kept.limit as f64);
    page.gauge(
        "steadfs_handover_resident_memory_bytes",
        "Memory that this takes; the daemon's includes it.",
        kept.resident as f64,
    );
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

pub(super) fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    pages * size as f64
}
