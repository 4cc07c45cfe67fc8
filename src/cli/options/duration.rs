//! Durations as people write them: `5s`, `500ms`, `1h30m`; a bare number is seconds.

use std::time::Duration;

/// Units from long to short, in seconds.
const UNITS: [(&str, f64); 6] = [("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("min", 60.0), ("s", 1.0), ("ms", 0.001)];

/// Longest duration that can be given: no clock ends before that, so that whoever waits can reckon with it.
const LONGEST: Duration = Duration::from_secs(36500 * 86400);

/// Reads a duration; the error says what may be written.
pub fn parse(text: &str) -> Result<Duration, String> {
    let total = total(text.trim())
        .ok_or("is not a duration: write a number of seconds or a sum such as 5s, 500ms, 2m, 1h30m")?;
    if total > LONGEST { Err("is longer than 36500d".into()) } else { Ok(total) }
}

fn total(text: &str) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    let mut longer_than = f64::INFINITY;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let seconds = match unit {
            // Only alone: what 1h30 means is anybody's guess.
            "" if number.len() == text.len() => 1.0,
            unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
        };
        // Each unit once, long ones first: anything else is a slip of the pen.
        if seconds >= longer_than || !number.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('.') {
            return None;
        }
        longer_than = seconds;
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        sum = sum.checked_add(part)?;
        rest = tail;
    }
    Some(sum)
}

/// The shortest text that [`parse`] reads back, to the millisecond.
pub fn format(duration: Duration) -> String {
    let millis = duration.as_millis();
    let parts = [
        ("d", millis / 86_400_000),
        ("h", millis / 3_600_000 % 24),
        ("m", millis / 60_000 % 60),
        ("s", millis / 1000 % 60),
        ("ms", millis % 1000),
    ];
    let text: String = parts.iter().filter(|(_, n)| *n > 0).map(|(unit, n)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write() {
        let millis = |text: &str| parse(text).ok().map(|duration| duration.as_millis());
        for (text, expected) in [
            ("5s", 5000),
            ("500ms", 500),
            ("2m", 120_000),
            ("2min", 120_000),
            ("1h30m", 5_400_000),
            ("7", 7000),
            ("0.25", 250),
            ("1.5m", 90_000),
            ("1d", 86_400_000),
            ("0", 0),
        ] {
            assert_eq!(millis(text), Some(expected), "{text}");
        }
        for text in
            ["", " ", "s", "-5s", "5x", "1h30", "30m1h", "5s5s", "1.s", ".5", "1e9", "inf", "nan", "1.2.3s", "5 s"]
        {
            assert_eq!(millis(text), None, "{text}");
        }
        assert_eq!(millis(&"9".repeat(400)), None, "beyond the range");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,24}", near in "[0-9.]{0,30}[a-z]{0,3}[0-9.]{0,3}[a-z]{0,2}") {
            let _ = (parse(&text), parse(&near));
        }

        #[test]
        fn round_trip(millis in 0u64..1_000_000_000_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
