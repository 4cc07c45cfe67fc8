//! What a screen of `steadfs status --watch` says. Pure: time and size are passed in.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use crate::cli::status::Found;
use crate::plain::plain;
use crate::telemetry::page::details;
use crate::telemetry::page::words::{bytes, moment, seconds};
use crate::telemetry::status::{Calls, Status};

/// Shortest time that a rate is made of, in seconds.
const SHORTEST: f64 = 0.1;
/// Fewest rows for events, if there are any.
const EVENTS: usize = 4;

/// How a line is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As others.
    Plain,
    /// A heading.
    Title,
    /// All is well.
    Good,
    /// Somebody may want to look.
    Warn,
    /// Somebody should.
    Bad,
    /// Of less interest.
    Dim,
}

/// One line, without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its text, of any length.
    pub text: String,
    /// Its looks.
    pub tone: Tone,
}

fn line(tone: Tone, text: String) -> Line {
    Line { text: plain(&text), tone }
}

/// Calls of one mount between two looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Answered, a second.
    pub per_second: f64,
    /// How long they took, in seconds; none if there were none.
    pub mean: Option<f64>,
    /// 99 of 100 took at most so long, in seconds: the bound of a bucket, infinite for the last.
    pub most: Option<f64>,
}

/// What is made of two looks.
#[derive(Default)]
pub struct Rates {
    before: BTreeMap<String, (Instant, u32, Calls)>,
    rates: BTreeMap<String, Rate>,
}

impl Rates {
    /// Takes a look into account.
    pub fn look(&mut self, statuses: &[Status], now: Instant) {
        let before = std::mem::take(&mut self.before);
        self.rates.clear();
        for status in statuses {
            let key = &status.mountpoint;
            // Another daemon has begun to count anew.
            let known = before.get(key).filter(|(_, pid, _)| *pid == status.pid);
            if let Some((at, _, calls)) = known {
                let rate = rate(calls, &status.calls, now.saturating_duration_since(*at).as_secs_f64());
                self.rates.extend(rate.map(|rate| (key.clone(), rate)));
            }
            self.before.insert(key.clone(), (now, status.pid, status.calls.clone()));
        }
    }
}

fn rate(before: &Calls, now: &Calls, took: f64) -> Option<Rate> {
    let total = |calls: &Calls| calls.ok + calls.error + calls.deadline + calls.outage;
    let count = total(now).checked_sub(total(before))?;
    if took < SHORTEST {
        return None;
    }
    let buckets =
        now.latency_counts.iter().zip(&before.latency_counts).map(|(now, before)| now.saturating_sub(*before));
    let buckets: Vec<u64> = buckets.collect();
    let measured: u64 = buckets.iter().sum();
    let mean = (measured > 0).then(|| (now.latency_secs_total - before.latency_secs_total).max(0.0) / measured as f64);
    let mut sum = 0;
    let reached = buckets.iter().position(|bucket| {
        sum += bucket;
        // 99 of 100, rounded up.
        sum * 100 >= measured * 99
    });
    let most = reached.filter(|_| measured > 0);
    let most = most.map(|bucket| now.latency_bounds_secs.get(bucket).copied().unwrap_or(f64::INFINITY));
    Some(Rate { per_second: count as f64 / took, mean, most })
}

/// The lines for a screen of that many columns and rows: all there is of one mount, the essence of several.
pub fn frame(found: &Found, rates: &Rates, now: SystemTime, (columns, rows): (usize, usize)) -> Vec<Line> {
    let right = format!("{}   q quits", moment(now));
    let title = "steadfs status";
    let gap = columns.saturating_sub(title.len() + right.len()).max(2);
    let mut lines = vec![line(Tone::Dim, format!("{title}{}{right}", " ".repeat(gap)))];
    lines.extend(found.silent.iter().chain(&found.complaints).map(|words| line(Tone::Bad, words.clone())));
    let one = found.statuses.len() == 1;
    for status in &found.statuses {
        let rate = rates.rates.get(&status.mountpoint).copied();
        lines.push(line(Tone::Plain, String::new()));
        lines.extend(head(status));
        lines.extend(if one { all(status, rate) } else { essence(status, rate) });
    }
    if let ([status], false) = (found.statuses.as_slice(), found.statuses.iter().all(|status| status.events.is_empty()))
    {
        lines.truncate(rows.saturating_sub(EVENTS + 1).max(3));
        let room = rows.saturating_sub(lines.len() + 1);
        lines.push(line(Tone::Dim, "  latest events".into()));
        lines.extend(status.events.iter().rev().take(room).map(event));
    }
    let hidden = lines.len().saturating_sub(rows);
    if hidden > 0 && rows > 1 {
        lines.truncate(rows - 1);
        lines.push(line(Tone::Dim, format!("… and {} more lines", hidden + 1)));
    }
    lines.truncate(rows);
    lines
}

fn head(status: &Status) -> Vec<Line> {
    let (tone, word) = match status.state.as_str() {
        "live" => (Tone::Good, "live"),
        "suspect" => (Tone::Warn, "suspect"),
        other => (Tone::Bad, other),
    };
    let mut lines = vec![
        line(Tone::Title, format!("{} on {}", status.source, status.mountpoint)),
        line(tone, format!("  {word} for {}, generation {}", seconds(status.for_secs), status.generation)),
    ];
    let outage = status.outage.as_ref();
    lines.extend(
        outage.map(|outage| {
            line(Tone::Bad, format!("  outage     for {} (since {})", seconds(outage.secs), outage.since))
        }),
    );
    lines.extend(status.why.as_ref().map(|why| line(Tone::Plain, format!("  why        {why}"))));
    lines.extend(status.held.as_ref().map(|by| line(Tone::Warn, format!("  held back  by {by}"))));
    for overlay in status.overlays.iter().filter(|overlay| overlay.mounted != "yes") {
        lines.push(line(Tone::Bad, format!("  overlay    {} is not mounted", overlay.mountpoint)));
    }
    lines
}

fn calls(status: &Status, rate: Option<Rate>) -> Line {
    let calls = &status.calls;
    let late = calls.deadline + calls.outage;
    let rate = rate.map_or("…".into(), |rate| {
        let time = |seconds: f64| match seconds {
            s if s.is_infinite() => "more than 30 s".into(),
            s if s < 1.0 => format!("{:.2} ms", s * 1e3),
            s => format!("{s:.1} s"),
        };
        let latency = match (rate.mean, rate.most) {
            (Some(mean), Some(most)) => format!(", mean {}, 99 % in {}", time(mean), time(most)),
            _ => String::new(),
        };
        format!("{:.1}/s{latency}", rate.per_second)
    });
    let tone = if calls.waiting > 0 && !status.is_up() { Tone::Warn } else { Tone::Plain };
    line(tone, format!("  calls      {rate}; {} waiting, {late} late", calls.waiting))
}

fn essence(status: &Status, rate: Option<Rate>) -> Vec<Line> {
    let log = format!("  write log  {} of {}", bytes(status.log.bytes), bytes(status.log.limit_bytes));
    let mut lines = vec![calls(status, rate), line(Tone::Plain, log)];
    lines.extend(status.worker.paused_since.as_ref().map(|_| worker(status)));
    lines
}

fn worker(status: &Status) -> Line {
    match &status.worker.paused_since {
        Some(since) => line(Tone::Warn, format!("  worker     paused since {since}")),
        None => line(Tone::Plain, "  worker     not paused".into()),
    }
}

fn all(status: &Status, rate: Option<Rate>) -> Vec<Line> {
    let log = &status.log;
    let probe = status.last_probe.as_ref();
    let probe = probe.map_or("none yet".into(), |probe| format!("{:.1} ms", probe.took_secs * 1e3));
    let lost = if log.lost_files_total > 0 {
        Tone::Bad
    } else if status.spool_entries > 0 {
        Tone::Warn
    } else {
        Tone::Plain
    };
    let keeper = &status.keeper;
    let keeper = match keeper.pid {
        Some(pid) if keeper.can_succeed => {
            line(Tone::Plain, format!("  keeper     pid {pid}, {} successions", keeper.successions_total))
        }
        Some(pid) => line(Tone::Bad, format!("  keeper     pid {pid}, and no successor can go on")),
        None => line(Tone::Warn, "  keeper     none".into()),
    };
    vec![
        line(Tone::Plain, format!("  next       {}", status.next)),
        line(
            Tone::Plain,
            format!(
                "  outages    {}, {} together; last probe {probe}",
                status.outages_total,
                seconds(status.outage_secs_total)
            ),
        ),
        calls(status, rate),
        line(
            Tone::Plain,
            format!(
                "  in flight  {} of {}; {} threads, {} stuck",
                bytes(status.bytes_in_flight),
                bytes(status.window_bytes),
                status.threads,
                status.threads_stuck
            ),
        ),
        line(
            lost,
            format!(
                "  write log  {} of {}, {} files; {} in the spool, {} lost",
                bytes(log.bytes),
                bytes(log.limit_bytes),
                log.files,
                status.spool_entries,
                log.lost_files_total
            ),
        ),
        line(
            Tone::Plain,
            format!(
                "  open       {} files, {} directories, {} inodes",
                status.open_files, status.open_dirs, status.nodes
            ),
        ),
        line(
            Tone::Plain,
            format!("  memory     {} of at most {}", bytes(status.resident_bytes), bytes(status.resident_limit_bytes)),
        ),
        worker(status),
        keeper,
        line(
            Tone::Plain,
            format!(
                "  daemon     steadfs {}, pid {}, up {}",
                status.steadfs_version,
                status.pid,
                seconds(status.uptime_secs)
            ),
        ),
    ]
}

fn event(event: &serde_json::Value) -> Line {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    // The time of day.
    let at: String = text("at").chars().skip(11).take(8).collect();
    line(Tone::Plain, format!("  {at} {} {}", text("event"), details(event)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn status() -> Status {
        let events: Vec<_> = (0..30)
            .map(|n| serde_json::json!({"at": "2026-11-27T11:05:48.000Z", "event": "cleared", "generation": n}))
            .collect();
        serde_json::from_value(serde_json::json!({
            "version": 1, "mountpoint": "/hot\u{1b}[2J\n", "source": "box:/jobs", "pid": 7, "uptime_secs": 5.0,
            "state": "waiting", "since": "2026-11-27T11:05:48Z", "for_secs": 9.5, "why": "no route\nto host",
            "next": "start generation 4", "next_at": null, "generation": 3,
            "outage": {"since": "2026-11-27T11:05:48Z", "secs": 9.5}, "outages_total": 2, "outage_secs_total": 70.0,
            "repairs": [], "last_probe": null, "probes": [1, 1], "threads": 4, "threads_stuck": 0, "bytes_in_flight": 0,
            "window_bytes": 1024, "open_files": 1, "open_dirs": 2, "nodes": 3, "resident_bytes": 1, "resident_limit_bytes": 2,
            "calls": {"waiting": 2, "ok": 0, "error": 0, "deadline": 0, "outage": 0, "retried": 0},
            "log": {"bytes": 0, "limit_bytes": 9, "files": 0, "replayed_bytes_total": 0, "spooled_files_total": 0,
                    "lost_files_total": 0},
            "worker": {"paused_since": null, "reason": null, "hooks": []}, "events": events,
        }))
        .expect("a status of an older daemon is understood")
    }

    fn found(statuses: Vec<Status>) -> Found {
        Found { statuses, silent: Vec::new(), complaints: Vec::new() }
    }

    #[test]
    fn every_size_of_screen_is_kept_to() {
        for mounts in 0..4 {
            let found = found(vec![status(); mounts]);
            for rows in 1..60 {
                let lines = frame(&found, &Rates::default(), SystemTime::UNIX_EPOCH, (80, rows));
                assert!(lines.len() <= rows, "{mounts} mounts, {rows} rows: {}", lines.len());
                assert!(lines.iter().all(|line| !line.text.contains(char::is_control)));
            }
            let lines = frame(&found, &Rates::default(), SystemTime::UNIX_EPOCH, (80, 24));
            let text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
            assert!(text[0].starts_with("steadfs status ") && text[0].ends_with(" q quits") && text[0].len() == 80);
            if mounts == 1 {
                assert_eq!(text.len(), 24);
                assert!(
                    text.contains(&"  waiting for 9.5s, generation 3") && text.contains(&"  keeper     none"),
                    "{text:#?}"
                );
                assert!(
                    text[23].contains("cleared generation: 2"),
                    "events fill the rest, the latest first: {text:#?}"
                );
            }
        }
    }

    #[test]
    fn rates_are_those_between_two_looks() {
        let (mut rates, begun) = (Rates::default(), Instant::now());
        let mut status = status();
        let mut look = |status: &Status, seconds| {
            rates.look(std::slice::from_ref(status), begun + Duration::from_secs(seconds));
            rates.rates.get(&status.mountpoint).copied()
        };
        (status.calls.latency_counts, status.calls.latency_bounds_secs) = (vec![5, 0, 0], vec![0.1, 1.0]);
        assert_eq!(look(&status, 0), None);
        (status.calls.ok, status.calls.latency_counts, status.calls.latency_secs_total) = (100, vec![103, 1, 1], 10.0);
        let expected = Rate { per_second: 50.0, mean: Some(0.1), most: Some(1.0) };
        assert_eq!(look(&status, 2), Some(expected));
        assert_eq!(look(&status, 3), Some(Rate { per_second: 0.0, mean: None, most: None }));
        status.calls.latency_counts[2] += 1;
        status.calls.error += 1;
        assert_eq!(look(&status, 4).and_then(|rate| rate.most), Some(f64::INFINITY));
        status.pid += 1;
        assert_eq!(look(&status, 5), None, "another daemon counts anew");
    }
}
