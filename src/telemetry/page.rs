//! The status page: plain HTML from the daemon itself. No script, nothing from elsewhere, everything escaped.

pub mod timeline;
pub mod words;

use std::time::SystemTime;

use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use super::journal::history::Outage;
use super::status::Status;
use crate::plain::plain;
use words::{bytes, clock, clock_of, seconds};

/// The style sheet, a file of its own so that the policy below needs no exception.
pub const STYLE: &str = include_str!("page/style.css");
/// What a browser may do with the page: show it, with its own style sheet. Names in it are not to be trusted.
pub const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Seconds after which a browser asks again.
const REFRESH: u32 = 5;
/// Events that are shown.
const EVENTS: usize = 40;

/// What the page shows.
pub struct View<'a> {
    /// All but the outages that have ended.
    pub status: &'a Status,
    /// The outages.
    pub outages: &'a [Outage],
    /// Nothing is known of what was before.
    pub known: SystemTime,
    /// When it is shown.
    pub now: SystemTime,
    /// The browser is to ask again by itself.
    pub live: bool,
}

/// The page.
pub fn render(view: &View<'_>) -> String {
    let status = view.status;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                @if view.live { meta http-equiv="refresh" content=(REFRESH); }
                title { (plain(&status.state)) ": " (plain(&status.mountpoint)) }
                link rel="stylesheet" href="style.css";
            }
            body {
                (head(status))
                main {
                    (timeline::timeline(view.outages, view.known, view.now))
                    (overlays(status))
                    div .columns { (calls(status)) (log(status)) (worker(status)) (keeper(status)) }
                    (events(&status.events))
                }
                footer {
                    p {
                        "steadfs " (plain(&status.steadfs_version)) ", pid " (status.pid) ", up " (seconds(status.uptime_secs))
                        "; as of " (clock(view.now)) ". "
                        @if view.live { a href="?live=no" { "Stop refreshing" } } @else { a href="?" { "Refresh by itself" } }
                        " · " a href="metrics" { "metrics" }
                    }
                }
            }
        }
    };
    page.into_string()
}

fn head(status: &Status) -> Markup {
    let class = match status.state.as_str() {
        "live" => "state",
        "suspect" => "state suspect",
        _ => "state down",
    };
    html! {
        header {
            h1 { span class=(class) { (plain(&status.state)) } bdi { (plain(&status.mountpoint)) } }
            p { "shows " bdi { (plain(&status.source)) } ", " (plain(&status.state)) " for " (seconds(status.for_secs)) ", generation " (status.generation) }
            @if let Some(outage) = &status.outage {
                p .bad { "Outage for " (seconds(outage.secs)) ", since " (clock_of(&outage.since)) }
            }
            @for overlay in status.overlays.iter().filter(|overlay| overlay.mounted != "yes") {
                p .bad { "Not mounted: " bdi { (plain(&overlay.mountpoint)) } }
            }
            @if let Some(why) = &status.why { p { "Why: " bdi { (plain(why)) } } }
            @if let Some(by) = &status.held { p .warn { "The repair is held back by " (plain(by)) } }
            p { "Next: " (plain(&status.next)) @if let Some(at) = &status.next_at { ", at " (clock_of(at)) } }
        }
    }
}

fn overlays(status: &Status) -> Markup {
    html! {
        section {
            h2 { "Overlays" }
            div .scroll { table {
                thead { tr {
                    th scope="col" { "Hot path" } th scope="col" { "Mounted" } th .n scope="col" { "Open files" }
                    th .n scope="col" { "Uncommitted" } th .n scope="col" { "Write log" } th .n scope="col" { "Inodes" }
                } }
                tbody { @for overlay in &status.overlays { tr {
                    th scope="row" { bdi { (plain(&overlay.mountpoint)) } }
                    td { @match overlay.mounted.as_str() {
                        "yes" => { span .good { "yes" } }
                        "other" => { span .bad { "something else is there" } }
                        _ => { span .bad { "no" } }
                    } }
                    td .n { (overlay.open_files) }
                    td .n { (overlay.uncommitted_files) }
                    td .n { (bytes(overlay.log_bytes)) }
                    td .n { (overlay.nodes) }
                } } }
            } }
        }
    }
}

/// A box of names and figures.
fn figures(title: &str, rows: &[(&str, Markup)]) -> Markup {
    html! { section { h2 { (title) } dl { @for (name, value) in rows { dt { (name) } dd { (value) } } } } }
}

/// In the colour of what somebody should look at, unless it is zero.
fn alarming(count: u64) -> Markup {
    html! { @if count > 0 { span .bad { (count) } } @else { (count) } }
}

fn calls(status: &Status) -> Markup {
    let calls = &status.calls;
    let probe = status.last_probe.as_ref();
    let probe = probe.map_or("none yet".into(), |probe| format!("{:.1} ms", probe.took_secs * 1e3));
    let mean = match calls.latency_counts.iter().sum::<u64>() {
        0 => "none yet".into(),
        count => format!("{:.2} ms", calls.latency_secs_total * 1e3 / count as f64),
    };
    figures(
        "Calls",
        &[
            ("Waiting", html! { (calls.waiting) }),
            ("Done", html! { (calls.ok) }),
            ("Errors of the store", html! { (calls.error) }),
            ("Past their deadline", alarming(calls.deadline)),
            ("Failed by outages", alarming(calls.outage)),
            ("Run again", html! { (calls.retried) }),
            ("Mean latency", html! { (mean) }),
            ("Last probe", html! { (probe) }),
            ("Threads", html! { (status.threads) ", " (status.threads_stuck) " stuck" }),
            ("In flight", html! { (bytes(status.bytes_in_flight)) " of " (bytes(status.window_bytes)) }),
        ],
    )
}

fn log(status: &Status) -> Markup {
    let log = &status.log;
    figures(
        "Write log and memory",
        &[
            ("Uncommitted", html! { (bytes(log.bytes)) " of " (bytes(log.limit_bytes)) ", " (log.files) " files" }),
            ("Written again", html! { (bytes(log.replayed_bytes_total)) }),
            ("Spooled files", alarming(log.spooled_files_total)),
            ("Lost files", alarming(log.lost_files_total)),
            ("Entries in the spool", alarming(status.spool_entries)),
            ("Memory", html! { (bytes(status.resident_bytes)) " of at most " (bytes(status.resident_limit_bytes)) }),
            ("Outages", html! { (status.outages_total) ", " (seconds(status.outage_secs_total)) " together" }),
        ],
    )
}

fn worker(status: &Status) -> Markup {
    let worker = &status.worker;
    let state = match &worker.paused_since {
        Some(since) => html! { span .warn { "paused" } " since " (clock_of(since)) },
        None => html! { "not paused" },
    };
    let mut rows = vec![("State", state)];
    rows.extend(worker.reason.as_ref().map(|reason| ("Because of", html! { (plain(reason)) })));
    let runs: Vec<_> =
        worker.hooks.iter().map(|run| (format!("{}, {}", plain(&run.hook), plain(&run.result)), run.count)).collect();
    rows.extend(runs.iter().map(|(name, count)| (name.as_str(), html! { (count) " times" })));
    figures("Worker", &rows)
}

fn keeper(status: &Status) -> Markup {
    let keeper = &status.keeper;
    let mut rows = vec![(
        "Keeper",
        match keeper.pid {
            Some(pid) if keeper.can_succeed => html! { "pid " (pid) },
            Some(pid) => html! { "pid " (pid) ", " span .bad { "no successor can go on" } },
            None => html! { span .warn { "none: the mount ends with the daemon" } },
        },
    )];
    rows.push(("Successions", html! { (keeper.successions_total) }));
    rows.push(("Noted", html! { (bytes(keeper.memory_bytes)) " of " (bytes(keeper.memory_limit_bytes)) }));
    if let Some(last) = &keeper.last {
        rows.push((
            "The last",
            html! { (clock_of(&last.at)) ", " (seconds(last.pause_secs)) " without: " (plain(&last.reason)) },
        ));
    }
    rows.push(("Mounted since", clock_of(&keeper.mounted_at)));
    figures("Keeper", &rows)
}

fn events(events: &[Value]) -> Markup {
    html! {
        section {
            h2 { "Latest events" }
            @if events.is_empty() { p .dim { "none yet" } } @else { div .scroll { table .events {
                thead { tr { th scope="col" { "When" } th scope="col" { "Event" } th scope="col" { "Details" } } }
                tbody { @for event in events.iter().rev().take(EVENTS) { tr {
                    td .time { (clock_of(event["at"].as_str().unwrap_or_default())) }
                    td { (plain(event["event"].as_str().unwrap_or_default())) }
                    td .text { (plain(&details(event))) }
                } } }
            } } }
        }
    }
}

/// The fields of an event in one line, without those that have a column.
pub fn details(event: &Value) -> String {
    let fields = event.as_object().into_iter().flatten().filter(|(name, _)| !matches!(name.as_str(), "at" | "event"));
    let shown = fields.filter_map(|(name, value)| match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(format!("{}: {text}", name.replace('_', " "))),
        Value::Number(number) if name.ends_with("_secs") => Some(format!(
            "{}: {}",
            name.trim_end_matches("_secs").replace('_', " "),
            seconds(number.as_f64().unwrap_or(0.0))
        )),
        other => Some(format!("{}: {other}", name.replace('_', " "))),
    });
    shown.collect::<Vec<_>>().join("; ")
}
