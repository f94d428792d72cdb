//! Notices: what a job noticed about itself and tells everybody through the log, as technical alerts.
//!
//! A broken budget or a sink that fails is measured, and what is measured decides nothing by itself. So it becomes a
//! control record of the canonical log, and the alert follows from that record like every other: the same in every replay.
//! The normalize stage writes the records, since it appends to the canonical log anyway.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use wardbell_schemas::Micros;
use wardbell_schemas::alert::Priority;
use wardbell_schemas::control::Condition;

/// Rule id of "an alert was acknowledged by its sink later than the budget allows".
pub const BUDGET_RULE: &str = "technical/budget";
/// Rule id of "a sink does not take alerts".
pub const SINK_RULE: &str = "technical/sink";

/// See the module.
#[derive(Debug, Default)]
pub struct Notices {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What was told last, by rule and key.
    told: BTreeMap<(&'static str, String), bool>,
    waiting: VecDeque<Condition>,
}

impl Notices {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something is so now; told where that differs from what was told before. The first time it is told in any
    /// case: an alert that an earlier process began must end.
    pub fn follow(&self, rule: &'static str, key: &str, holds: bool, at_us: Micros, detail: impl FnOnce() -> String) {
        let mut inner = self.lock();
        if inner.told.insert((rule, key.to_owned()), holds) == Some(holds) {
            return;
        }
        let priority = Priority::High;
        let detail = detail();
        inner.waiting.push_back(Condition {
            rule: rule.to_owned(),
            key: key.to_owned(),
            priority,
            holds,
            at_us,
            detail,
        });
    }

    /// What was taken may not have been written: the next look tells everything anew.
    pub fn tell_again(&self) {
        self.lock().told.clear();
    }

    /// What has to be written, oldest first.
    pub fn take(&self) -> Vec<Condition> {
        self.lock().waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_the_first_look_always() {
        let notices = Notices::default();
        let look = |holds, at| notices.follow(BUDGET_RULE, "pager", holds, at, || format!("at {at}"));
        let told = || notices.take().into_iter().map(|told| (told.holds, told.at_us)).collect::<Vec<_>>();
        look(false, 1);
        look(false, 2);
        assert_eq!(told(), [(false, 1)]);
        look(true, 3);
        look(true, 4);
        look(false, 5);
        assert_eq!(told(), [(true, 3), (false, 5)]);
        notices.tell_again();
        look(false, 6);
        assert_eq!(told(), [(false, 6)]);
    }
}
