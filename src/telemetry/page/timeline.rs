//! The outages of the last 24 hours as a picture, and in words for whoever does not see it.

use std::time::{Duration, SystemTime};

use maud::{Markup, html};

use super::words::{clock, length, moment};
use crate::plain::plain;
use crate::telemetry::journal::history::Outage;

/// What is shown.
const SPAN: Duration = Duration::from_secs(24 * 3600);
/// Narrowest outage in the picture, in minutes: a second has to be seen on a phone.
const NARROWEST: f64 = 4.0;
/// Outages that are listed; the picture has all.
const LISTED: usize = 12;

/// Minutes from the picture's left edge, which is `now` less [`SPAN`].
fn minute(at: SystemTime, now: SystemTime) -> f64 {
    let ago = now.duration_since(at).unwrap_or_default().min(SPAN);
    (SPAN - ago).as_secs_f64() / 60.0
}

/// Nothing is known of what was before `known`.
pub fn timeline(outages: &[Outage], known: SystemTime, now: SystemTime) -> Markup {
    let from = now.checked_sub(SPAN).unwrap_or(SystemTime::UNIX_EPOCH);
    let recent: Vec<&Outage> = outages.iter().filter(|outage| outage.until.unwrap_or(now) >= from).collect();
    let total: Duration = recent
        .iter()
        .map(|outage| outage.until.unwrap_or(now).duration_since(outage.since.max(from)).unwrap_or_default())
        .sum();
    // An outage may be older than the daemon that tells of it.
    let known = recent.iter().map(|outage| outage.since).fold(known, SystemTime::min);
    let words = match recent.len() {
        0 => "no outage".into(),
        1 => format!("1 outage, {}", length(total)),
        several => format!("{several} outages, {} together", length(total)),
    };
    let left = minute(known, now);
    html! {
        section {
            h2 { "Last 24 hours: " (words) }
            svg viewBox="0 0 1440 40" preserveAspectRatio="none" role="img" aria-label={ "Timeline of the last 24 hours: " (words) } {
                rect .unknown x="0" y="14" width=(round(left)) height="26" {}
                // Lower than an outage, for those to whom the colours look alike.
                rect .up x=(round(left)) y="14" width=(round(1440.0 - left)) height="26" {}
                @for outage in &recent {
                    @let (begin, end) = (minute(outage.since, now), minute(outage.until.unwrap_or(now), now));
                    @let width = (end - begin).max(NARROWEST);
                    rect .out x=(round(begin.min(1440.0 - width))) y="0" width=(round(width)) height="40" {
                        title { (moment(outage.since)) ", " (length(outage.until.unwrap_or(now).duration_since(outage.since).unwrap_or_default())) }
                    }
                }
                @for hour in 1..24 { line .hour x1=(hour * 60) x2=(hour * 60) y1="14" y2=(if hour % 6 == 0 { 40 } else { 20 }) {} }
            }
            div .scale aria-hidden="true" { span { "24 h ago" } span { "18 h" } span { "12 h" } span { "6 h" } span { "now" } }
            p .dim aria-hidden="true" {
                span .key .up {} "calls succeed" span .key .out {} "outage" span .key .unknown {} "before this daemon"
            }
            @if !recent.is_empty() {
                div .scroll { table {
                    thead { tr { th scope="col" { "Began" } th scope="col" { "Lasted" } th scope="col" { "Began with" } } }
                    tbody { @for outage in recent.iter().rev().take(LISTED) { tr {
                        td .time { (clock(outage.since)) }
                        td { @match outage.until {
                            Some(until) => { (length(until.duration_since(outage.since).unwrap_or_default())) }
                            None => { span .bad { "goes on" } ", " (length(now.duration_since(outage.since).unwrap_or_default())) }
                        } }
                        td { (plain(&outage.reason)) }
                    } } }
                } }
                @if recent.len() > LISTED { p .dim { "and " (recent.len() - LISTED) " earlier" } }
            }
        }
    }
}

/// A tenth of a minute is less than a pixel.
fn round(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn outages_lie_where_they_were() {
        let outage = |since, until: Option<u64>| Outage { since: at(since), until: until.map(at), reason: "x".into() };
        let now = at(86_400);
        let text = timeline(&[outage(3600, Some(7200)), outage(86_399, None)], at(0), now).into_string();
        assert!(text.contains("2 outages, 1h 1s together"), "{text}");
        assert!(text.contains(r#"class="out" x="60.0" y="0" width="60.0""#), "{text}");
        assert!(text.contains(r#"class="out" x="1436.0" y="0" width="4.0""#), "one of a second is seen: {text}");
        assert!(text.contains(r#"class="up" x="0.0""#), "{text}");
        let text = timeline(&[outage(0, Some(5))], at(90_000), at(90_000)).into_string();
        assert!(text.contains("no outage") && text.contains(r#"class="up" x="1440.0" y="14" width="0.0""#), "{text}");
        // Clocks are set now and then.
        let text = timeline(&[outage(50, Some(40)), outage(100_000, None)], at(200_000), at(100)).into_string();
        assert!(!text.contains("NaN") && !text.contains("=\"-"), "{text}");
    }
}
