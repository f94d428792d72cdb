//! A job as its surroundings see it: what it counted, what is wrong, whether it is ready. Changes nothing.

use std::time::Duration;

use wardbell_schemas::Micros;

use super::{BROKER, Shared, StageView, Statistics};
use crate::health::{Health, LoopState};

/// A stage that has no partitions after this time stands by: others have them all.
const STANDING_BY_AFTER: Duration = Duration::from_secs(10);

/// See the module. Stays valid after the job has stopped.
#[derive(Clone)]
pub struct Observer {
    pub(super) shared: Shared,
}

impl Observer {
    pub fn statistics(&self) -> &Statistics {
        &self.shared.statistics
    }

    pub fn health(&self) -> &Health {
        &self.shared.health
    }

    /// The job's clock, µs since 1970 UTC.
    pub fn now_us(&self) -> Micros {
        self.shared.clock.now_us()
    }

    /// The stages of the job, deliver stages among them.
    pub(crate) fn stages(&self) -> Vec<StageView> {
        self.shared.stages()
    }

    /// Why the job does not do its work, a reason each; empty if it is ready.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Some(failure) = self.shared.statistics.failure() {
            reasons.push(format!("the job cannot go on: {failure}"));
        } else if self.shared.stopping() {
            reasons.push("the job is stopping".to_owned());
        }
        let health = &self.shared.health;
        if health.stands(BROKER) {
            reasons.push("the broker does not answer".to_owned());
        }
        for report in health.loops() {
            if matches!(report.state, LoopState::Stalled | LoopState::Dead) {
                reasons.push(format!("loop `{}` does not turn", report.name));
            }
        }
        let counts = self.shared.statistics.counts();
        for stage in self.shared.stages() {
            let mut held = stage.topics.iter().flat_map(|topic| counts.held(&stage.group, topic));
            if held.next().is_none() && health.uptime() < STANDING_BY_AFTER {
                reasons.push(format!("stage `{}` has no partitions yet", stage.name));
            }
        }
        for partition in counts.assigned.iter().filter(|partition| !counts.active_sets.contains_key(partition)) {
            reasons
                .push(format!("partition {partition} is not decided yet: it is being taken over, or has no rule set"));
        }
        reasons
    }
}
