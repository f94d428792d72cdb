//! When a failed delivery is tried again: exponential pauses with full jitter, so that what failed together does not come
//! back together.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

use super::SinkError;

/// Upper end of the first pause.
const FIRST: Duration = Duration::from_millis(200);
/// Longest pause while the other side is away: well within the budget of 30 s once it is back.
const UNAVAILABLE_MAX: Duration = Duration::from_secs(10);
/// Longest pause while a person has to act.
const REFUSED_MAX: Duration = Duration::from_secs(60);
/// Longest pause before an alert that was rejected is offered again.
const REJECTED_MAX: Duration = Duration::from_secs(8);
/// No wish of the other side holds alerts back for longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Rejections of one alert after which it is set aside.
pub const REJECTIONS_MAX: u32 = 5;

/// The pause after the `failures`-th failure in a row, which was `error`.
pub fn pause(error: &SinkError, failures: u32) -> Duration {
    let drawn = ceiling(error, failures).mul_f32(fastrand::f32());
    match error {
        SinkError::Unavailable { retry_after: Some(wished), .. } => drawn.max(*wished).min(RETRY_AFTER_MAX),
        _ => drawn,
    }
}

/// The pause is drawn evenly from zero to this.
fn ceiling(error: &SinkError, failures: u32) -> Duration {
    let max = match error {
        SinkError::Io { .. } | SinkError::Unavailable { .. } => UNAVAILABLE_MAX,
        SinkError::Refused { .. } => REFUSED_MAX,
        SinkError::Rejected { .. } => REJECTED_MAX,
    };
    let mut ceilings = ExponentialBuilder::new().with_min_delay(FIRST).with_max_delay(max).without_max_times().build();
    // All have reached their largest long before the twentieth.
    ceilings.nth(failures.saturating_sub(1).min(20) as usize).unwrap_or(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable(retry_after: Option<u64>) -> SinkError {
        let retry_after = retry_after.map(Duration::from_secs);
        SinkError::Unavailable { step: String::new(), what: String::new(), retry_after }
    }

    #[test]
    fn pauses_grow_to_the_largest_of_their_kind() {
        let refused = SinkError::Refused { step: String::new(), what: String::new(), remedy: String::new() };
        let rejected = SinkError::Rejected { step: String::new(), what: String::new() };
        for (error, max) in [(unavailable(None), 10), (refused, 60), (rejected, 8)] {
            let ceilings: Vec<Duration> = (1..40).map(|failures| ceiling(&error, failures)).collect();
            assert_eq!(ceilings[0], FIRST, "{error:?}");
            assert!(ceilings.is_sorted(), "{error:?}: {ceilings:?}");
            assert_eq!(ceilings[38], Duration::from_secs(max), "{error:?}");
            assert!((1..40).all(|failures| pause(&error, failures) <= ceiling(&error, failures)), "{error:?}");
        }
    }

    #[test]
    fn what_the_other_side_asks_for_is_waited_for_up_to_a_minute() {
        assert_eq!(pause(&unavailable(Some(30)), 1), Duration::from_secs(30));
        assert_eq!(pause(&unavailable(Some(86_400)), 1), RETRY_AFTER_MAX);
        assert!(pause(&unavailable(Some(0)), 1) <= FIRST);
    }
}
