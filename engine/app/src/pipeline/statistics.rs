//! What a job knows of itself: where every reading ended, where every stage stands, how long things took.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use wardbell_connectors::runtime::Instant;
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Kind, Priority, TransitionKind};
use wardbell_schemas::outcome::{Outcome, OutcomeCounts};
use wardbell_schemas::reading::Reason;

use crate::connector::unmapped::{Entry, Unmapped};
use crate::latency::{LatencyBook, Percentiles, Stage};

/// Rules that are counted one by one; a set that changes often must not let the counters grow for ever.
const RULES_MAX: usize = 2_000;
/// Labels and units that nothing explains, as many as a summary names.
const UNMAPPED_NAMED: usize = 20;
/// Under this name the others are counted together.
const OTHER_RULES: &str = "other";

/// Shared by all threads of a job.
#[derive(Debug, Default)]
pub struct Statistics {
    pub latency: LatencyBook,
    counts: Mutex<Counts>,
}

/// What was counted so far, as one thread found it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub records: u64,
    pub readings: u64,
    /// Outcomes of the normalize stage.
    normalized: OutcomeCounts,
    /// Outcomes of each canonical partition, as its state machine counts them.
    decided: BTreeMap<i32, OutcomeCounts>,
    /// Of partitions that were given away or started again.
    decided_before: OutcomeCounts,
    /// Dead letters by reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Labels and units that nothing explains.
    unmapped: Unmapped,
    /// Requests of source topics that became control records.
    pub requests: u64,
    /// Rules that are counted under their own name.
    rules: BTreeSet<String>,
    /// By rule and transition.
    pub transitions: BTreeMap<(String, &'static str), u64>,
    pub alerts_raised: BTreeMap<Priority, u64>,
    pub technical: u64,
    pub delivered: BTreeMap<String, u64>,
    pub delayed: u64,
    pub unreadable: u64,
    pub sink_failures: BTreeMap<String, u64>,
    /// Alerts that reached a sink later than the budget.
    pub breaches: BTreeMap<String, Breaches>,
    /// Alerts that a sink had not taken when the budget was over, by sink and priority.
    pub overdue: BTreeMap<(String, Priority), u64>,
    /// Alerts decided late that were over before a sink could tell anybody.
    pub withheld: BTreeMap<String, u64>,
    /// Alerts that nobody was notified of, since the job only records.
    pub withheld_record_only: BTreeMap<String, u64>,
    /// Alerts that a sink rejected for good: in the dead-letter topic.
    pub set_aside: BTreeMap<String, u64>,
    /// The newest canary that a sink acknowledged, by sink and partition of the alerts topic.
    pub canaries: BTreeMap<(String, i32), Canary>,
    pub restarts: BTreeMap<String, u64>,
    /// How often the thread of a canonical partition ended with an error.
    pub partition_failures: BTreeMap<i32, u64>,
    pub positions: BTreeMap<Place, Position>,
    /// As of the last look at the ends of the log.
    pub lags: BTreeMap<Place, Lag>,
    /// By topic and partition of a source.
    pub lost: BTreeMap<(String, i32), LostRecords>,
    pub active_sets: BTreeMap<i32, ActiveSet>,
    /// Canonical partitions that this instance decides, or is taking over to decide; without those that it refuses.
    pub assigned: BTreeSet<i32>,
    failure: Option<String>,
}

/// A partition of a topic, as the stage of this consumer group reads it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub group: String,
    pub topic: String,
    pub partition: i32,
}

impl Place {
    fn new(group: &str, topic: &str, partition: i32) -> Self {
        Self { group: group.to_owned(), topic: topic.to_owned(), partition }
    }
}

/// How far a stage has come in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Next offset it will finish.
    pub next_offset: i64,
    /// Append time of the newest record it has finished, where that is known.
    pub append_us: Option<Micros>,
    /// The partition is assigned to this instance.
    pub held: bool,
}

/// How far a stage is behind the end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lag {
    /// Records below the end that are not finished.
    pub records: i64,
    /// No unfinished record is older than this.
    pub delay: Duration,
    /// How long a record that is appended now will take, at the rate at which records are finished; `None`: not known.
    pub estimate: Option<Duration>,
}

/// Source records that retention deleted before they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LostRecords {
    /// How many, since the job started.
    pub count: u64,
    /// The newest range of them, first and first after.
    pub from: i64,
    pub to: i64,
    pub last: Instant,
}

/// The rule set that decides a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActiveSet {
    pub number: u64,
    pub hash: String,
}

/// Alerts of one sink that broke the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Breaches {
    pub count: u64,
    pub last: Instant,
}

/// A canary reading that came through to a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Canary {
    /// Append time of the reading, µs since 1970 UTC.
    pub basis_us: Micros,
    /// When everything before it was acknowledged.
    pub acknowledged_us: Micros,
}

/// What one turn of the normalize stage counted: added at its end, so that no reading takes a lock.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub records: u64,
    pub readings: u64,
    pub requests: u64,
    outcomes: OutcomeCounts,
    reasons: BTreeMap<&'static str, u64>,
    pub unmapped: Unmapped,
    /// Data age of each reading.
    pub ages_us: Vec<Micros>,
}

impl Tally {
    pub fn normalized(&mut self, outcome: Outcome, reason: Option<Reason>) {
        self.outcomes.add(outcome);
        if let Some(reason) = reason {
            *self.reasons.entry(reason.name()).or_default() += 1;
        }
    }
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
    /// The same, but normalized with other connector files than the rows that count (`E_RENORMALIZED`).
    pub renormalized: u64,
    /// Source records that retention deleted before they were read; they are not among `records`.
    pub lost_records: u64,
    /// Dead letters by reason.
    pub dead_letters: BTreeMap<&'static str, u64>,
    /// Labels and units that nothing explains, those met most often; for the log only, since they are texts of sources.
    #[serde(skip)]
    pub unmapped: Vec<Entry>,
    /// Requests of source topics that became control records; they are not readings.
    pub requests: u64,
    pub transitions: u64,
    pub transitions_by_rule: BTreeMap<String, BTreeMap<&'static str, u64>>,
    pub technical: u64,
    pub delivered: BTreeMap<String, u64>,
    /// Records of the canonical log that could not be read.
    pub unreadable: u64,
    pub sink_failures: BTreeMap<String, u64>,
    /// Alerts by sink that were decided late and over before anybody could be told.
    pub withheld: BTreeMap<String, u64>,
    /// Alerts by sink that nobody was notified of, since the job only records.
    pub withheld_record_only: BTreeMap<String, u64>,
    /// Alerts by sink that it rejected for good: in the dead-letter topic.
    pub set_aside: BTreeMap<String, u64>,
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

    pub(super) fn add(&self, tally: Tally) {
        self.latency.record_all(Stage::DataAge, tally.ages_us);
        let mut counts = self.lock();
        counts.records += tally.records;
        counts.readings += tally.readings;
        counts.requests += tally.requests;
        counts.unmapped.merge(tally.unmapped);
        counts.normalized.merge(&tally.outcomes);
        for (reason, count) in tally.reasons {
            *counts.reasons.entry(reason).or_default() += count;
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
        counts.active_sets.remove(&partition);
    }

    /// Canonical partitions are this instance's to decide from now on.
    pub(super) fn assigned(&self, partitions: impl IntoIterator<Item = i32>) {
        self.lock().assigned.extend(partitions);
    }

    /// A canonical partition is another instance's, or cannot be taken over here.
    pub(super) fn unassigned(&self, partition: i32) {
        self.lock().assigned.remove(&partition);
    }

    /// A partition's thread ended with an error.
    pub(super) fn partition_failed(&self, partition: i32) {
        *self.lock().partition_failures.entry(partition).or_default() += 1;
    }

    /// Which rule set decides a partition from now on; `number` is that under which it was published.
    pub(super) fn active_set(&self, partition: i32, number: u64, hash: &str) {
        self.lock().active_sets.insert(partition, ActiveSet { number, hash: hash.to_owned() });
    }

    pub(super) fn transition(&self, rule: &str, kind: TransitionKind, of: Kind, priority: Priority, delayed: bool) {
        let mut counts = self.lock();
        let rule = if counts.rules.contains(rule) || counts.rules.len() < RULES_MAX { rule } else { OTHER_RULES };
        counts.rules.insert(rule.to_owned());
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

    /// Holds the engine's latency of an alert that a sink acknowledged against the budget.
    pub(super) fn acknowledged(&self, sink: &str, priority: Priority, latency_us: Micros) {
        if self.latency.record_total(priority, latency_us) {
            let mut counts = self.lock();
            let now = Instant::now();
            let breaches = counts.breaches.entry(sink.to_owned()).or_insert(Breaches { count: 0, last: now });
            *breaches = Breaches { count: breaches.count + 1, last: now };
        }
    }

    pub(super) fn sink_failed(&self, sink: &str) {
        *self.lock().sink_failures.entry(sink.to_owned()).or_default() += 1;
    }

    /// A sink has not taken an alert of this priority within the budget.
    pub(super) fn breach(&self, sink: &str, priority: Priority) {
        *self.lock().overdue.entry((sink.to_owned(), priority)).or_default() += 1;
    }

    pub(super) fn withheld(&self, sink: &str, count: u64) {
        *self.lock().withheld.entry(sink.to_owned()).or_default() += count;
    }

    pub(super) fn withheld_record_only(&self, sink: &str) {
        *self.lock().withheld_record_only.entry(sink.to_owned()).or_default() += 1;
    }

    pub(super) fn set_aside(&self, sink: &str) {
        *self.lock().set_aside.entry(sink.to_owned()).or_default() += 1;
    }

    /// Everything before a canary of this partition, and so the canary, is acknowledged by a sink; the newest counts.
    pub(super) fn canary_acknowledged(&self, sink: &str, partition: i32, basis_us: Micros, now_us: Micros) {
        let mut counts = self.lock();
        let canary = Canary { basis_us, acknowledged_us: now_us };
        let newest = counts.canaries.entry((sink.to_owned(), partition)).or_insert(canary);
        if newest.basis_us < basis_us {
            *newest = canary;
        }
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

    pub(super) fn set_position(&self, group: &str, topic: &str, partition: i32, next_offset: i64) {
        self.finished(group, topic, partition, next_offset, None);
    }

    /// A stage has finished everything before `next_offset`, whose newest record was appended at `append_us`.
    pub(super) fn finished(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
        next_offset: i64,
        append_us: Option<Micros>,
    ) {
        let place = Place::new(group, topic, partition);
        self.lock().positions.insert(place, Position { next_offset, append_us, held: true });
    }

    /// A partition was given back: its position stays, but nobody here is behind in it any more.
    pub(super) fn released(&self, group: &str, topic: &str, partition: i32) {
        let place = Place::new(group, topic, partition);
        let mut counts = self.lock();
        counts.lags.remove(&place);
        if let Some(position) = counts.positions.get_mut(&place) {
            position.held = false;
        }
    }

    /// The stage of a group starts: it holds no partition until it is assigned one.
    pub(super) fn left(&self, group: &str) {
        let mut counts = self.lock();
        counts.lags.retain(|place, _| place.group != group);
        for (_, position) in counts.positions.iter_mut().filter(|(place, _)| place.group == group) {
            position.held = false;
        }
    }

    /// Retention deleted source records from offset `from` to before `to` unread.
    pub(super) fn lost_records(&self, topic: &str, partition: i32, from: i64, to: i64) {
        let mut counts = self.lock();
        let now = Instant::now();
        let lost = counts.lost.entry((topic.to_owned(), partition));
        let lost = lost.or_insert(LostRecords { count: 0, from, to: from, last: now });
        // After a failure the same is found once more, or a longer range.
        let counted_to = if lost.from == from { lost.to } else { from };
        let count = lost.count + u64::try_from(to - counted_to).unwrap_or(0);
        *lost = LostRecords { count, from, to, last: now };
    }

    /// How far a stage has come in a partition that is assigned to it.
    pub(super) fn place(&self, place: &Place) -> Option<Position> {
        self.lock().positions.get(place).copied().filter(|position| position.held)
    }

    /// Renews what is known of a place; nothing if it was given back meanwhile.
    pub(super) fn set_lag(&self, place: &Place, lag: Lag) {
        let mut counts = self.lock();
        if counts.positions.get(place).is_some_and(|position| position.held) {
            counts.lags.insert(place.clone(), lag);
        }
    }

    /// Next offset a stage will finish, as far as it has told; 0 before.
    pub fn position(&self, group: &str, topic: &str, partition: i32) -> i64 {
        let place = Place::new(group, topic, partition);
        self.lock().positions.get(&place).map_or(0, |position| position.next_offset)
    }

    /// Everything counted so far.
    pub(crate) fn counts(&self) -> Counts {
        self.lock().clone()
    }

    pub fn readings(&self) -> u64 {
        self.lock().readings
    }

    pub fn transitions(&self) -> u64 {
        self.lock().transitions.values().sum()
    }

    pub fn summary(&self) -> Summary {
        let counts = self.lock();
        let outcomes = counts.outcomes();
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
            renormalized: outcomes.renormalized,
            lost_records: counts.lost.values().map(|lost| lost.count).sum(),
            dead_letters: counts.reasons.clone(),
            unmapped: counts.unmapped.top(UNMAPPED_NAMED).0,
            requests: counts.requests,
            transitions: counts.transitions.values().sum(),
            transitions_by_rule: by_rule,
            technical: counts.technical,
            delivered: counts.delivered.clone(),
            unreadable: counts.unreadable,
            sink_failures: counts.sink_failures.clone(),
            withheld: counts.withheld.clone(),
            withheld_record_only: counts.withheld_record_only.clone(),
            set_aside: counts.set_aside.clone(),
            restarts: counts.restarts.clone(),
            latency_ms: self.latency.report(),
            delayed: counts.delayed,
            budget_breaches: breaches,
            budget_ok: breaches == 0 && counts.delayed == 0,
        }
    }
}

impl Counts {
    /// Readings by the place they ended in.
    pub fn outcomes(&self) -> OutcomeCounts {
        let mut outcomes = self.normalized;
        outcomes.merge(&self.decided_before);
        for of_partition in self.decided.values() {
            outcomes.merge(of_partition);
        }
        outcomes
    }

    /// Alerts that a sink had not taken when the budget was over.
    pub fn overdue_by_sink(&self) -> BTreeMap<String, u64> {
        let mut by_sink = BTreeMap::new();
        for ((sink, _), count) in &self.overdue {
            *by_sink.entry(sink.clone()).or_default() += count;
        }
        by_sink
    }

    /// Append time of the oldest of a sink's newest canaries, over the partitions it has had one of.
    pub fn oldest_canary_us(&self, sink: &str) -> Option<Micros> {
        self.canaries.iter().filter(|((of, _), _)| of == sink).map(|(_, canary)| canary.basis_us).min()
    }

    /// Partitions of a topic that are assigned to this instance for a stage, with its position and lag.
    pub fn held<'a>(
        &'a self,
        group: &'a str,
        topic: &'a str,
    ) -> impl Iterator<Item = (&'a Place, &'a Position, Option<&'a Lag>)> {
        self.positions
            .iter()
            .filter(move |(place, position)| position.held && place.group == group && place.topic == topic)
            .map(move |(place, position)| (place, position, self.lags.get(place)))
    }
}

impl Summary {
    /// Readings that reached one of the places.
    fn accounted(&self) -> u64 {
        self.outcomes.values().sum::<u64>() + self.repeated + self.renormalized
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
        for Entry { kind, text, count } in &self.unmapped {
            table.push_str(&format!("    unknown {} \"{text}\" {count}\n", kind.name()));
        }
        if self.repeated > 0 {
            table.push_str(&format!(
                "  {:<12} {:>12}  appended twice, dropped by position\n",
                "repeated", self.repeated
            ));
        }
        if self.renormalized > 0 {
            table.push_str(&format!(
                "  {:<12} {:>12}  E_RENORMALIZED: appended again with other connector files, dropped by position\n",
                "renormalized", self.renormalized
            ));
        }
        if self.lost_records > 0 {
            table.push_str(&format!(
                "  {:<12} {:>12}  source records that retention deleted unread, not in the sum\n",
                "lost", self.lost_records
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
