//! What a job knows of itself: where every reading ended, where every stage stands, how long things took.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use wardbell_schemas::alert::{Kind, Priority, TransitionKind};
use wardbell_schemas::outcome::{Outcome, OutcomeCounts};
use wardbell_schemas::reading::Reason;

use crate::latency::{LatencyBook, Percentiles, Stage};

/// Shared by all threads of a job.
#[derive(Debug, Default)]
pub struct Statistics {
    pub latency: LatencyBook,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    records: u64,
    readings: u64,
    /// Outcomes of the normalize stage.
    normalized: OutcomeCounts,
    /// Outcomes of each canonical partition, as its state machine counts them.
    decided: BTreeMap<i32, OutcomeCounts>,
    /// Of partitions that were given away or started again.
    decided_before: OutcomeCounts,
    reasons: BTreeMap<&'static str, u64>,
    transitions: BTreeMap<(String, &'static str), u64>,
    alerts_raised: BTreeMap<Priority, u64>,
    technical: u64,
    delivered: BTreeMap<String, u64>,
    delayed: u64,
    unreadable: u64,
    sink_failures: BTreeMap<String, u64>,
    restarts: BTreeMap<String, u64>,
    positions: HashMap<(String, String, i32), i64>,
    failure: Option<String>,
}

/// The end of a run in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub records: u64,
    pub readings: u64,
    /// Readings by the place they ended in; adds up to `readings`.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Rows appended twice after a restart and dropped by their position; not readings of their own.
    pub repeated: u64,
    /// Dead letters by reason.
    pub dead_letters: BTreeMap<&'static str, u64>,
    pub transitions: u64,
    pub transitions_by_rule: BTreeMap<String, BTreeMap<&'static str, u64>>,
    pub technical: u64,
    pub delivered: BTreeMap<String, u64>,
    /// Records of the canonical log that could not be read.
    pub unreadable: u64,
    pub sink_failures: BTreeMap<String, u64>,
    pub restarts: BTreeMap<String, u64>,
    /// Percentiles per stage in milliseconds.
    pub latency_ms: BTreeMap<Stage, Percentiles>,
    pub delayed: u64,
    pub budget_breaches: u64,
    pub budget_ok: bool,
}

impl Statistics {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read_record(&self, readings: u64) {
        let mut counts = self.lock();
        counts.records += 1;
        counts.readings += readings;
    }

    pub(super) fn normalized(&self, outcome: Outcome, reason: Option<Reason>) {
        let mut counts = self.lock();
        counts.normalized.add(outcome);
        if let Some(reason) = reason {
            *counts.reasons.entry(reason.name()).or_default() += 1;
        }
    }

    pub(super) fn decided(&self, partition: i32, outcomes: &OutcomeCounts) {
        self.lock().decided.insert(partition, *outcomes);
    }

    /// A partition's state machine is gone; its counts stay.
    pub(super) fn partition_ended(&self, partition: i32) {
        let mut counts = self.lock();
        if let Some(outcomes) = counts.decided.remove(&partition) {
            counts.decided_before.merge(&outcomes);
        }
    }

    pub(super) fn transition(&self, rule: &str, kind: TransitionKind, of: Kind, priority: Priority, delayed: bool) {
        let mut counts = self.lock();
        *counts.transitions.entry((rule.to_owned(), kind.name())).or_default() += 1;
        counts.technical += u64::from(of == Kind::Technical);
        counts.delayed += u64::from(delayed);
        if kind == TransitionKind::Raised {
            *counts.alerts_raised.entry(priority).or_default() += 1;
        }
    }

    pub(super) fn delivered(&self, sink: &str, count: u64) {
        *self.lock().delivered.entry(sink.to_owned()).or_default() += count;
    }

    pub(super) fn sink_failed(&self, sink: &str) {
        *self.lock().sink_failures.entry(sink.to_owned()).or_default() += 1;
    }

    pub(super) fn unreadable(&self) {
        self.lock().unreadable += 1;
    }

    pub(super) fn restarted(&self, stage: &str) {
        *self.lock().restarts.entry(stage.to_owned()).or_default() += 1;
    }

    pub(super) fn fail(&self, why: String) {
        self.lock().failure.get_or_insert(why);
    }

    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    pub(super) fn set_position(&self, stage: &str, topic: &str, partition: i32, next_offset: i64) {
        self.lock().positions.insert((stage.to_owned(), topic.to_owned(), partition), next_offset);
    }

    /// Next offset a stage will finish, as far as it has told; 0 before.
    pub fn position(&self, stage: &str, topic: &str, partition: i32) -> i64 {
        let key = (stage.to_owned(), topic.to_owned(), partition);
        self.lock().positions.get(&key).copied().unwrap_or(0)
    }

    pub fn readings(&self) -> u64 {
        self.lock().readings
    }

    pub fn transitions(&self) -> u64 {
        self.lock().transitions.values().sum()
    }

    pub fn summary(&self) -> Summary {
        let counts = self.lock();
        let mut outcomes = counts.normalized;
        outcomes.merge(&counts.decided_before);
        for of_partition in counts.decided.values() {
            outcomes.merge(of_partition);
        }
        let mut by_rule: BTreeMap<String, BTreeMap<&'static str, u64>> = BTreeMap::new();
        for ((rule, kind), count) in &counts.transitions {
            by_rule.entry(rule.clone()).or_default().insert(kind, *count);
        }
        let breaches = self.latency.breaches();
        Summary {
            kind: "summary",
            records: counts.records,
            readings: counts.readings,
            outcomes: outcomes.iter().map(|(outcome, count)| (outcome.name(), count)).collect(),
            repeated: outcomes.repeated,
            dead_letters: counts.reasons.clone(),
            transitions: counts.transitions.values().sum(),
            transitions_by_rule: by_rule,
            technical: counts.technical,
            delivered: counts.delivered.clone(),
            unreadable: counts.unreadable,
            sink_failures: counts.sink_failures.clone(),
            restarts: counts.restarts.clone(),
            latency_ms: self.latency.report(),
            delayed: counts.delayed,
            budget_breaches: breaches,
            budget_ok: breaches == 0 && counts.delayed == 0,
        }
    }
}

impl Summary {
    /// Readings that reached one of the places.
    fn accounted(&self) -> u64 {
        self.outcomes.values().sum::<u64>() + self.repeated
    }

    /// Whether every reading is accounted for: once, as long as no stage had to do work twice after a failure.
    pub fn adds_up(&self) -> bool {
        self.accounted() == self.readings
    }

    /// The outcomes as people read them.
    pub fn outcomes_table(&self) -> String {
        let mut table = format!("{:<14} {:>12}\n", "readings", self.readings);
        for (outcome, count) in self.outcomes.iter().filter(|(_, count)| **count > 0) {
            table.push_str(&format!("  {outcome:<12} {count:>12}\n"));
        }
        for (reason, count) in &self.dead_letters {
            table.push_str(&format!("    dead letter {reason:<18} {count:>8}\n"));
        }
        if self.repeated > 0 {
            table.push_str(&format!(
                "  {:<12} {:>12}  appended twice, dropped by position\n",
                "repeated", self.repeated
            ));
        }
        let sum = self.accounted();
        let verdict = match (self.readings.checked_sub(sum), self.restarts.is_empty()) {
            (Some(0), _) => "every reading is accounted for".to_owned(),
            (Some(missing), true) => format!("{missing} more are in the log, for the next start or another instance"),
            (None, true) => "more than this instance read: others normalize for it".to_owned(),
            (_, false) => "stages were restarted: what they did twice is counted twice".to_owned(),
        };
        table.push_str(&format!("  {:<12} {sum:>12}  {verdict}\n", "sum"));
        table
    }
}
