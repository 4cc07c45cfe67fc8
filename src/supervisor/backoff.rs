//! Delays between failed starts: exponential with jitter, between two bounds.

use std::time::Duration;

/// Delay before try number `attempt` (0 for the first retry). `dice` lies in 0..1 and takes up to half of it away, so
/// that many clients of one server do not come back in step.
pub fn delay(attempt: u32, min: Duration, max: Duration, dice: f64) -> Duration {
    let full = min.saturating_mul(2_u32.saturating_pow(attempt.min(20))).min(max);
    full.mul_f64(1.0 - dice.clamp(0.0, 1.0) / 2.0).max(min.min(max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn doubles_up_to_the_maximum() {
        let (min, max) = (Duration::from_millis(500), Duration::from_secs(30));
        let delays: Vec<_> = (0..8).map(|attempt| delay(attempt, min, max, 0.0).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(attempt: u32, dice in 0.0..1.0f64) {
            let (min, max) = (Duration::from_millis(500), Duration::from_secs(30));
            let delay = delay(attempt, min, max, dice);
            prop_assert!(delay >= min && delay <= max);
        }
    }
}
