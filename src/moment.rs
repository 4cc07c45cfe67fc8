//! Times that come from elsewhere: a file's, a clock's that was wrong, a predecessor's.

use std::time::{Duration, SystemTime};

/// The last moment that RFC 3339 can write, in seconds since 1970.
const LAST: u64 = 253_402_300_799;

/// The nearest time that RFC 3339 can write, which has none before 1970 here.
pub fn writable(at: SystemTime) -> SystemTime {
    at.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_secs(LAST))
}

/// That many seconds after 1970, or the nearest time that can be written.
pub fn after_epoch(since: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH + since.min(Duration::from_secs(LAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_can_be_written() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 62);
        for at in [writable(far), after_epoch(Duration::MAX)] {
            assert_eq!(humantime::format_rfc3339_seconds(at).to_string(), "9999-12-31T23:59:59Z");
        }
        let early = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(humantime::format_rfc3339_seconds(writable(early)).to_string(), "1970-01-01T00:00:00Z");
    }
}
