//! Places at which a simulation can have something go wrong, and safeguards it can take away to see that they matter.
//!
//! Without the feature `simulation` nothing of this is compiled into anything.

use std::time::Duration;

use crate::log::{LogError, Remedy};

/// What happens at a fault point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The instance ends where it stands.
    Kill,
    /// The instance stands still, as by SIGSTOP.
    Freeze(Duration),
    /// Only this thread stands still.
    Delay(Duration),
    /// The step fails.
    Fail,
    /// The step is done twice.
    Repeat,
}

/// A fault that waits for its point to be reached, by whoever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub point: &'static str,
    pub action: Action,
}

/// A fault that has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Happened {
    pub point: &'static str,
    pub instance: u32,
    pub action: Action,
    /// Time since the simulation began.
    pub at: Duration,
}

/// All fault points: before and after each step.
pub const POINTS: [&str; 22] = [
    "decode.before",
    "decode.after",
    "append.before",
    "append.after",
    "apply.before",
    "apply.after",
    "produce.before",
    "produce.after",
    "offsets.before",
    "offsets.after",
    "commit.before",
    "commit.after",
    "slice.before",
    "slice.after",
    "restore.before",
    "restore.after",
    "deliver.before",
    "deliver.after",
    "record.before",
    "record.after",
    "tick.before",
    "tick.after",
];

/// This thread is at a fault point. Gives what the step itself has to do: fail or repeat.
#[inline]
pub fn reach(point: &'static str) -> Option<Action> {
    #[cfg(feature = "simulation")]
    return super::simulated::reach(point);
    #[cfg(not(feature = "simulation"))]
    {
        let _ = point;
        None
    }
}

/// As [`reach`], at a step that can fail.
///
/// # Errors
/// If it does.
#[inline]
pub fn check(point: &'static str) -> Result<(), LogError> {
    match reach(point) {
        Some(Action::Fail) => Err(LogError::new(Remedy::Restart, point, "it fails in this simulation")),
        _ => Ok(()),
    }
}

/// A safeguard was taken away.
#[inline]
pub fn is_removed(safeguard: &'static str) -> bool {
    #[cfg(feature = "simulation")]
    return super::simulated::is_removed(safeguard);
    #[cfg(not(feature = "simulation"))]
    {
        let _ = safeguard;
        false
    }
}
