//! Times, lengths and sizes as people read them.

use std::time::{Duration, SystemTime};

use maud::{Markup, html};

/// A moment, in UTC to the second.
pub fn clock(at: SystemTime) -> Markup {
    html! { time datetime=(humantime::format_rfc3339_seconds(at)) { (moment(at)) } }
}

/// The same without markup.
pub fn moment(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").replace('Z', " UTC")
}

/// The same of RFC 3339 text; what is no such text is shown as it is.
pub fn clock_of(text: &str) -> Markup {
    match humantime::parse_rfc3339_weak(text.trim_end_matches('Z')) {
        Ok(at) => clock(at),
        Err(_) => html! { (text) },
    }
}

/// A length of time, to the second, or finer if it is short.
pub fn length(length: Duration) -> String {
    match length.as_millis() {
        0 => "0s".into(),
        millis @ 1..=9999 => format!("{:.1}s", millis as f64 / 1e3),
        _ => humantime::format_duration(Duration::from_secs(length.as_secs())).to_string(),
    }
}

/// The same of seconds that may come from elsewhere.
pub fn seconds(seconds: f64) -> String {
    length(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default())
}

/// Bytes.
pub fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, "B");
    for larger in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(64 << 20)], ["0 B", "1023 B", "1.5 KiB", "64.0 MiB"]);
        assert_eq!(
            [seconds(0.0), seconds(1.25), seconds(3671.9), seconds(f64::NAN), seconds(-1.0)],
            ["0s", "1.2s", "1h 1m 11s", "0s", "0s"]
        );
        assert_eq!(clock_of("<x>").into_string(), "&lt;x&gt;");
        assert!(clock_of("2026-11-27T11:05:48.123Z").into_string().ends_with(">2026-11-27 11:05:48 UTC</time>"));
    }
}
