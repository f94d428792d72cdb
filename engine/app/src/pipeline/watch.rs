//! The watch: looks every two seconds at how far the stages are behind and at what was counted, and says what is wrong.
//!
//! An overload is said before the first alert is late: from how long records wait already, and from how long one that is
//! appended now will take at the rate at which records are finished.
//!
//! It asks the broker for the ends of the partitions this instance works on, so it is also the first to notice that the
//! broker is away. What it finds stands in [`Health`](crate::health::Health) until a later look finds it no more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use wardbell_connectors::log::{LogError, Remedy};
use wardbell_connectors::runtime::Instant;
use wardbell_schemas::Micros;
use wardbell_schemas::reading::Reason;

use super::notices::{BUDGET_RULE, SINK_RULE};
use super::statistics::{Counts, Lag, Place, Position};
use super::{Shared, StageView};
use crate::health::{Finding, LoopHandle, Severity};
use crate::latency::BUDGET;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// A stage this far behind should be looked at.
const BEHIND: Duration = Duration::from_secs(5);
/// A stage this far behind breaks the budget by itself.
const FAR_BEHIND: Duration = Duration::from_micros(BUDGET as u64);
/// What happened longer ago is over.
const RECENT: Duration = Duration::from_secs(5 * 60);
/// The share of dead letters is taken over this time.
const MINUTE: Duration = Duration::from_secs(60);
/// The rate at which a stage works is taken over this many looks.
const RATE_LOOKS: usize = 5;
/// So many failures of the same thing in [`RECENT`] are no accident.
const FAILURES: u64 = 3;
/// Dead letters above one reading in this many.
const DEAD_LETTERS_ONE_IN: u64 = 100;

/// Runs until the job stops.
pub(super) fn run(shared: &Shared) {
    let turning = shared.health.enter("watch");
    let mut watch = Watch::default();
    // Everything counted so far has risen since the job started.
    watch.history.push_back(Mark::of(&Counts::default(), Instant::now()));
    while !shared.stopping() {
        turning.beat();
        watch.measure_lags(shared, &turning);
        watch.look(shared);
        shared.rest(EVERY);
    }
}

#[derive(Debug, Default)]
struct Watch {
    seen: BTreeMap<Place, Seen>,
    /// One entry per look, oldest first, for as long as it is recent.
    history: VecDeque<Mark>,
    /// What the last look reported.
    reported: BTreeMap<String, Severity>,
    /// When a stage was last seen to break the budget by its lag alone, by its name.
    far_behind: BTreeMap<String, Instant>,
}

/// What the watch itself saw of a place.
#[derive(Debug, Clone)]
struct Seen {
    first: Instant,
    /// When last everything was finished.
    caught_up: Option<Instant>,
    /// Next offsets at the last looks, as long as something waited at each; oldest first.
    waiting: VecDeque<(Instant, i64)>,
}

/// Counters at one look.
#[derive(Debug, Clone)]
struct Mark {
    at: Instant,
    readings: u64,
    dead_letters: u64,
    /// Readings whose label or unit nothing knows.
    unknown: u64,
    unreadable: u64,
    restarts: BTreeMap<String, u64>,
    partition_failures: BTreeMap<i32, u64>,
    /// By sink.
    overdue: BTreeMap<String, u64>,
}

impl Watch {
    /// Asks for the ends of what normalize and decide read. Offsets of the alerts topic include transaction markers, so
    /// its ends say nothing about alerts; the canary does.
    fn measure_lags(&mut self, shared: &Shared, turning: &LoopHandle) {
        let counts = shared.statistics.counts();
        let stages: Vec<StageView> = shared.stages().into_iter().filter(|stage| stage.sink.is_none()).collect();
        let mut places: BTreeSet<Place> = BTreeSet::new();
        for stage in &stages {
            for topic in &stage.topics {
                places.extend(counts.held(&stage.group, topic).map(|(place, ..)| place.clone()));
            }
        }
        self.seen.retain(|place, _| places.contains(place));
        for place in &places {
            let asked = Instant::now();
            let end = match end_of(shared, turning, &place.topic, place.partition) {
                Ok(end) => end,
                Err(error) if error.remedy == Remedy::Retry => return shared.broker_away(&error),
                Err(error) => {
                    tracing::warn!(error = %error, "the lag of a partition is not known");
                    continue;
                }
            };
            let Some(position) = shared.statistics.place(place) else {
                continue;
            };
            let seen = self.seen.entry(place.clone()).or_insert_with(|| Seen::new(asked));
            let records = (end - position.next_offset).max(0);
            let estimate = seen.estimate(records, position.next_offset, asked);
            let delay = if records == 0 {
                seen.caught_up = Some(asked);
                Duration::ZERO
            } else {
                delay(seen, &position, Instant::now(), shared.clock.now_us())
            };
            shared.statistics.set_lag(place, Lag { records, delay, estimate });
        }
        // An instance that stands by must notice an outage, and its end, all the same.
        if places.is_empty()
            && let Err(error) = end_of(shared, turning, &shared.topics.canonical, 0)
        {
            return shared.broker_away(&error);
        }
        shared.broker_answers();
    }

    /// Reports what is wrong now and clears what was and is not.
    fn look(&mut self, shared: &Shared) {
        let now = Instant::now();
        let counts = shared.statistics.counts();
        self.history.push_back(Mark::of(&counts, now));
        // The newest that is no longer recent stays: what rose since then rose recently.
        while self.history.get(1).is_some_and(|mark| now.duration_since(mark.at) >= RECENT) {
            self.history.pop_front();
        }
        let mut found = findings(&counts, &self.history, &shared.stages(), now);
        if shared.canary_every.is_some() && shared.health.uptime() > FAR_BEHIND {
            let now_us = shared.clock.now_us();
            found.extend(shared.stages().iter().filter_map(|stage| silent_canary(&counts, stage, now_us)));
        }
        self.notice(shared, &found, now);
        for key in self.reported.keys().filter(|key| !found.contains_key(*key)) {
            tracing::info!(finding = key, "over");
            shared.health.clear(key);
        }
        for (key, finding) in found.iter().filter(|(key, finding)| self.reported.get(*key) != Some(&finding.severity)) {
            match finding.severity {
                Severity::Failing => tracing::error!(finding = key, impact = finding.impact, "{}", finding.cause),
                _ => tracing::warn!(finding = key, impact = finding.impact, "{}", finding.cause),
            }
        }
        self.reported = found.iter().map(|(key, finding)| (key.clone(), finding.severity)).collect();
        for (key, finding) in found {
            shared.health.report(key, finding);
        }
    }
}

impl Watch {
    /// What is measured here becomes an alert by way of the log, like everything that decides.
    fn notice(&mut self, shared: &Shared, found: &BTreeMap<String, Finding>, now: Instant) {
        let now_us = shared.clock.now_us();
        let stages = shared.stages();
        // Where records carry their own time, nobody waits for what a recording says.
        if !shared.sets.newest().set.settings.record_clock {
            let is_failing = |stage: &&StageView| {
                found.get(&behind_key(&stage.name)).is_some_and(|finding| finding.severity == Severity::Failing)
            };
            self.far_behind.extend(stages.iter().filter(is_failing).map(|stage| (stage.name.clone(), now)));
        }
        self.far_behind.retain(|_, at| now.saturating_duration_since(*at) < RECENT);
        for sink in shared.sinks.iter() {
            // Each instance speaks for itself: one that is well must not end what another says.
            let key = shared.instance.as_ref().map_or(sink.clone(), |instance| format!("{sink}@{instance}"));
            let told_late = found.contains_key(&budget_key(sink));
            let on_its_way = stages.iter().filter(|stage| stage.sink.as_ref().is_none_or(|of| of == sink));
            let waits = on_its_way.map(|stage| &stage.name).find(|name| self.far_behind.contains_key(*name));
            let late = told_late || waits.is_some();
            shared.notices.follow(BUDGET_RULE, &key, late, now_us, || match waits {
                Some(stage) => {
                    format!("alerts to sink {sink} take longer than the budget of 30 s: stage {stage} is behind")
                }
                None if late => format!("alerts reach sink {sink} later than the budget of 30 s"),
                None => format!("alerts have reached sink {sink} within the budget for 5 minutes"),
            });
            let fails = shared.health.stands(&format!("sink/{sink}"));
            shared.notices.follow(SINK_RULE, &key, fails, now_us, || match fails {
                true => format!("sink {sink} does not take alerts: whoever relies on it is told nothing"),
                false => format!("sink {sink} takes alerts again"),
            });
        }
    }
}

fn behind_key(stage: &str) -> String {
    format!("behind {stage}")
}

fn budget_key(sink: &str) -> String {
    format!("budget {sink}")
}

/// A canary that should have reached a sink by now.
fn silent_canary(counts: &Counts, stage: &StageView, now_us: Micros) -> Option<(String, Finding)> {
    let sink = stage.sink.as_ref()?;
    let places = stage.topics.iter().flat_map(|topic| counts.held(&stage.group, topic));
    let overdue = places.filter_map(|(place, ..)| {
        let age_us = counts.canaries.get(&(sink.clone(), place.partition)).map(|canary| now_us - canary.basis_us);
        age_us.is_none_or(|age_us| age_us > BUDGET).then_some((place.partition, age_us))
    });
    let (partition, age_us) = overdue.max_by_key(|(_, age_us)| age_us.unwrap_or(Micros::MAX))?;
    let since = age_us.map_or("none has come yet".to_owned(), |age_us| {
        format!("the newest is {} s old", age_us / wardbell_schemas::SECOND)
    });
    let finding = Finding::new(
        Severity::Failing,
        format!("canaries of partition {partition} do not reach sink `{sink}`: {since}"),
        "an alert of this partition would not reach this sink within the budget of 30 s",
        "if the sink itself fails, it has a finding of its own; else compare the lags of normalize and decide in /metrics",
    );
    Some((format!("canary {sink}"), finding))
}

fn end_of(shared: &Shared, turning: &LoopHandle, topic: &str, partition: i32) -> Result<i64, LogError> {
    let _waiting = turning.waiting("the broker, asking for the end of a partition");
    shared.log.offsets(topic, partition).map(|(_, end)| end)
}

/// An upper bound for the age of the oldest record that is not finished: it came after the newest that is, and after the
/// last look at which all were. Where neither is known it has waited at least since the first look.
fn delay(seen: &Seen, position: &Position, now: Instant, now_us: Micros) -> Duration {
    let since_newest =
        position.append_us.map(|append_us| Duration::from_micros(u64::try_from(now_us - append_us).unwrap_or(0)));
    let since_caught_up = seen.caught_up.map(|caught_up| now.saturating_duration_since(caught_up));
    let known = since_newest.into_iter().chain(since_caught_up).min();
    known.unwrap_or_else(|| now.saturating_duration_since(seen.first))
}

impl Seen {
    fn new(first: Instant) -> Self {
        Self { first, caught_up: None, waiting: VecDeque::new() }
    }

    /// How long a record that is appended now will take: all that waits before it, at the rate at which records were
    /// finished while some waited. What is finished while none wait says how many come, not how many could be done.
    fn estimate(&mut self, records: i64, next_offset: i64, now: Instant) -> Option<Duration> {
        if records == 0 || self.waiting.back().is_some_and(|(_, before)| *before > next_offset) {
            self.waiting.clear();
        }
        if records == 0 {
            return Some(Duration::ZERO);
        }
        self.waiting.push_back((now, next_offset));
        if self.waiting.len() > RATE_LOOKS {
            self.waiting.pop_front();
        }
        let (since, from) = self.waiting.front()?;
        let finished = next_offset - from;
        let seconds = now.saturating_duration_since(*since).as_secs_f64() * records as f64 / finished as f64;
        if finished > 0 { Duration::try_from_secs_f64(seconds).ok() } else { None }
    }
}

impl Mark {
    fn of(counts: &Counts, at: Instant) -> Self {
        let reasons = [Reason::LabelUnknown, Reason::LabelAmbiguous, Reason::UnitUnknown];
        Self {
            at,
            readings: counts.readings,
            dead_letters: counts.reasons.values().sum(),
            unknown: reasons.iter().filter_map(|reason| counts.reasons.get(reason.name())).sum(),
            unreadable: counts.unreadable,
            restarts: counts.restarts.clone(),
            partition_failures: counts.partition_failures.clone(),
            overdue: counts.overdue_by_sink(),
        }
    }
}

/// Everything that is wrong, by key.
fn findings(
    counts: &Counts,
    history: &VecDeque<Mark>,
    stages: &[StageView],
    now: Instant,
) -> BTreeMap<String, Finding> {
    let mut found = BTreeMap::new();
    found.extend(stages.iter().filter_map(|stage| behind(counts, stage)));
    if let (Some(recent), Some(minute), Some(newest)) =
        (before(history, now, RECENT), before(history, now, MINUTE), history.back())
    {
        found.extend(failures(recent, newest));
        found.extend(unusable(recent, minute, newest));
    }
    if let (Some(recent), Some(newest)) = (before(history, now, RECENT), history.back()) {
        for (sink, count) in &newest.overdue {
            let rise = count - recent.overdue.get(sink).unwrap_or(&0);
            if rise > 0 {
                let finding = Finding::new(
                    Severity::Failing,
                    format!("sink `{sink}` had not taken {rise} alerts when the budget of 30 s was over"),
                    "whoever relies on this sink was told too late, or is not told yet",
                    "look at the finding of the sink itself; alerts wait in the log and are delivered once it takes them",
                );
                found.insert(budget_key(sink), finding);
            }
        }
    }
    for ((topic, partition), lost) in &counts.lost {
        if now.saturating_duration_since(lost.last) < RECENT {
            let finding = Finding::new(
                Severity::Failing,
                format!(
                    "records {} to {} of {topic}/{partition} were deleted before they were read ({} in all)",
                    lost.from,
                    lost.to - 1,
                    lost.count
                ),
                "readings in them were seen by no rule; everything after them is read",
                "look after the patients of this source; keep the topic's retention longer than the longest outage",
            );
            found.insert(format!("lost {topic}/{partition}"), finding);
        }
    }
    for (sink, breaches) in &counts.breaches {
        let ago = now.saturating_duration_since(breaches.last);
        if ago < RECENT {
            let finding = Finding::new(
                Severity::Degraded,
                format!(
                    "sink `{sink}` acknowledged an alert later than the budget of 30 s, {} s ago ({} in all)",
                    ago.as_secs(),
                    breaches.count
                ),
                "an alert came later than promised",
                "compare the stages in /metrics or /latency.hgrm: the slow one is the cause",
            );
            found.entry(budget_key(sink)).or_insert(finding);
        }
    }
    found
}

/// The oldest mark within `age`, or the newest before it.
fn before(history: &VecDeque<Mark>, now: Instant, age: Duration) -> Option<&Mark> {
    history.iter().rev().find(|mark| now.saturating_duration_since(mark.at) >= age).or_else(|| history.front())
}

/// A stage whose readings wait.
fn behind(counts: &Counts, stage: &StageView) -> Option<(String, Finding)> {
    let lags = stage.topics.iter().flat_map(|topic| counts.held(&stage.group, topic));
    let takes = |lag: &Lag| lag.delay.max(lag.estimate.unwrap_or_default());
    let (place, lag) = lags.filter_map(|(place, _, lag)| Some((place, lag?))).max_by_key(|(_, lag)| takes(lag))?;
    if takes(lag) <= BEHIND {
        return None;
    }
    let (severity, impact) = if takes(lag) > FAR_BEHIND {
        (Severity::Failing, "the declared budget of 30 s is broken: alerts come too late")
    } else {
        (Severity::Degraded, "alerts come later than usual, still within the budget of 30 s")
    };
    let estimate = match lag.estimate {
        Some(estimate) => format!("one that is appended now will take about {} s", estimate.as_secs()),
        None => "how long one that is appended now will take is not known".to_owned(),
    };
    let remedy = if stage.sink.is_some() {
        "if the sink fails, it has a finding of its own; else it takes alerts slower than they come: see why they are so many"
    } else {
        "if this instance's CPU is busy, start more instances (as many as partitions help); else look at the broker's answer times"
    };
    let finding = Finding::new(
        severity,
        format!(
            "stage `{}` is behind: {} records of {}/{} wait, for up to {} s; {estimate}",
            stage.name,
            lag.records,
            place.topic,
            place.partition,
            lag.delay.as_secs()
        ),
        impact,
        remedy,
    );
    Some((behind_key(&stage.name), finding))
}

/// Stages and partitions that fail again and again.
fn failures(recent: &Mark, newest: &Mark) -> Vec<(String, Finding)> {
    let mut found = Vec::new();
    let mut of_partitions = 0;
    for (partition, count) in &newest.partition_failures {
        let rise = count - recent.partition_failures.get(partition).unwrap_or(&0);
        of_partitions += rise;
        if rise >= FAILURES {
            let finding = Finding::new(
                Severity::Failing,
                format!("partition {partition} failed {rise} times in 5 minutes"),
                "rules are not evaluated for the patients of this partition while it starts again",
                "read the log's last lines of this partition; if another instance owns it too, check that instance names are unique",
            );
            found.push((format!("partition {partition}"), finding));
        }
    }
    for (stage, count) in &newest.restarts {
        let mut rise = count - recent.restarts.get(stage).unwrap_or(&0);
        // Restarts of partitions are counted as restarts of their stage too.
        if stage == "decide" {
            rise = rise.saturating_sub(of_partitions);
        }
        if rise >= FAILURES {
            let finding = Finding::new(
                Severity::Degraded,
                format!("stage `{stage}` started again {rise} times in 5 minutes"),
                "what this stage does comes in bursts, with a pause of up to 10 s after each failure",
                "read the log's last lines of this stage: they name step and cause",
            );
            found.push((format!("restarts {stage}"), finding));
        }
    }
    found
}

/// Readings and records that cannot be used.
fn unusable(recent: &Mark, minute: &Mark, newest: &Mark) -> Vec<(String, Finding)> {
    let mut found = Vec::new();
    let (dead, readings) = (newest.dead_letters - minute.dead_letters, newest.readings - minute.readings);
    if dead * DEAD_LETTERS_ONE_IN > readings {
        let finding = Finding::new(
            Severity::Degraded,
            format!("{dead} of {readings} readings of the last minute went to the dead-letter topic"),
            "rules do not see these readings",
            "read the dead-letter topic: each names reason, topic, partition and offset; most often a source changed its format",
        );
        found.push(("dead letters".to_owned(), finding));
    }
    let unknown = newest.unknown - recent.unknown;
    if unknown > 0 {
        let finding = Finding::new(
            Severity::Degraded,
            format!("{unknown} readings of the last 5 minutes have a label or a unit that nothing here knows"),
            "no rule sees these signals: their patients are watched less than it seems",
            "find them in the dead-letter topic by their reason, and map the label or unit, or have the source leave them out",
        );
        found.push(("unknown labels".to_owned(), finding));
    }
    let unreadable = newest.unreadable - recent.unreadable;
    if unreadable > 0 {
        let finding = Finding::new(
            Severity::Failing,
            format!("{unreadable} records of our own topics could not be read in the last 5 minutes"),
            "readings or alerts in them were passed over",
            "all instances must run the same version with the same catalogue; who else writes to these topics must stop",
        );
        found.push(("unreadable records".to_owned(), finding));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::statistics::LostRecords;

    fn mark(at: Instant) -> Mark {
        Mark::of(&Counts::default(), at)
    }

    fn keys(found: &[(String, Finding)]) -> Vec<(&str, Severity)> {
        found.iter().map(|(key, finding)| (key.as_str(), finding.severity)).collect()
    }

    #[test]
    fn the_delay_is_bounded_by_the_newest_finished_record_and_by_the_last_time_all_were() {
        let now = Instant::now() + Duration::from_secs(1_000);
        let ago = |seconds| now - Duration::from_secs(seconds);
        let seen = |caught_up| Seen { caught_up, ..Seen::new(ago(100)) };
        let position = |append_us| Position { next_offset: 7, append_us, held: true };
        let delay_s =
            |caught_up, append_us| delay(&seen(caught_up), &position(append_us), now, 1_000_000_000).as_secs();
        assert_eq!(delay_s(None, None), 100);
        assert_eq!(delay_s(Some(ago(2)), None), 2);
        assert_eq!(delay_s(None, Some(960_000_000)), 40);
        assert_eq!(delay_s(Some(ago(2)), Some(400_000_000)), 2, "idle for long, then one record");
        assert_eq!(delay_s(Some(ago(60)), Some(990_000_000)), 10);
    }

    #[test]
    fn the_estimate_is_what_waits_at_the_rate_of_what_was_finished_while_something_waited() {
        let start = Instant::now();
        let mut seen = Seen::new(start);
        let mut look = |second: u64, records, next_offset| {
            seen.estimate(records, next_offset, start + Duration::from_secs(second)).map(|estimate| estimate.as_secs())
        };
        assert_eq!(look(0, 0, 100), Some(0));
        assert_eq!(look(2, 1, 100), None, "one record of a quiet source says nothing of a rate");
        assert_eq!(look(4, 0, 101), Some(0));
        // Twice as many come as are finished.
        assert_eq!(look(6, 1_000, 1_000), None);
        assert_eq!(look(8, 2_000, 2_000), Some(4));
        assert_eq!(look(10, 3_000, 3_000), Some(6));
        // It stands still, and then begins again from what is committed.
        for second in [12, 14, 16] {
            look(second, 9_000, 3_000);
        }
        assert_eq!(look(18, 9_000, 3_000), None);
        assert_eq!(look(20, 9_500, 2_500), None);
        assert_eq!(look(22, 8_500, 3_500), Some(17));
        assert_eq!(look(24, 0, 12_000), Some(0));
    }

    #[test]
    fn a_stage_is_behind_by_what_waits_or_by_what_will_and_well_again_by_itself() {
        let stage = StageView {
            name: "decide".to_owned(),
            sink: None,
            group: "g".to_owned(),
            topics: vec!["readings".to_owned()],
        };
        let found = |delay_s, estimate_s: Option<u64>| {
            let mut counts = Counts::default();
            let place = Place { group: "g".to_owned(), topic: "readings".to_owned(), partition: 3 };
            counts.positions.insert(place.clone(), Position { next_offset: 7, append_us: None, held: true });
            let estimate = estimate_s.map(Duration::from_secs);
            counts.lags.insert(place, Lag { records: 9, delay: Duration::from_secs(delay_s), estimate });
            behind(&counts, &stage).map(|(key, finding)| (key, finding.severity, finding.cause))
        };
        assert_eq!(found(0, Some(0)), None);
        assert_eq!(found(5, Some(5)), None);
        let (key, severity, cause) = found(3, Some(8)).expect("it will take long");
        assert_eq!((key.as_str(), severity), ("behind decide", Severity::Degraded));
        assert!(cause.contains("about 8 s") && cause.contains("9 records of readings/3"), "{cause}");
        assert_eq!(found(16, Some(31)).map(|(_, severity, _)| severity), Some(Severity::Failing));
        let (_, severity, cause) = found(31, None).expect("it stands still");
        assert!(severity == Severity::Failing && cause.contains("not known"), "{cause}");
    }

    #[test]
    fn lost_source_records_are_told_with_their_range_for_a_while() {
        let now = Instant::now() + Duration::from_secs(1_000);
        let found = |ago| {
            let last = now - Duration::from_secs(ago);
            let lost = LostRecords { count: 40, from: 100, to: 140, last };
            let mut counts = Counts::default();
            counts.lost.insert(("devices".to_owned(), 2), lost);
            findings(&counts, &VecDeque::new(), &[], now)
        };
        let told = found(10);
        let finding = &told["lost devices/2"];
        assert!(finding.severity == Severity::Failing && finding.cause.contains("100 to 139"), "{finding:?}");
        assert!(found(301).is_empty());
    }

    #[test]
    fn repeated_failures_are_named_once_and_old_ones_are_forgotten() {
        let old = mark(Instant::now());
        let mut newest = old.clone();
        newest.partition_failures.insert(3, 3);
        newest.restarts.insert("decide".to_owned(), 4);
        newest.restarts.insert("normalize".to_owned(), 3);
        let found = failures(&old, &newest);
        assert_eq!(keys(&found), [("partition 3", Severity::Failing), ("restarts normalize", Severity::Degraded)]);
        assert_eq!(failures(&newest, &newest), []);
    }

    #[test]
    fn a_share_of_dead_letters_above_one_percent_is_told() {
        let old = mark(Instant::now());
        let found = |dead_letters, readings| {
            let newest = Mark { dead_letters, readings, ..old.clone() };
            unusable(&old, &old, &newest).len()
        };
        assert_eq!((found(0, 0), found(1, 100), found(2, 100)), (0, 0, 1));
        let newest = Mark { unknown: 1, unreadable: 1, ..old.clone() };
        assert_eq!(
            keys(&unusable(&old, &old, &newest)),
            [("unknown labels", Severity::Degraded), ("unreadable records", Severity::Failing)]
        );
    }

    #[test]
    fn a_rise_is_taken_against_the_mark_before_its_time() {
        let now = Instant::now() + Duration::from_secs(1_000);
        let marks = [400, 301, 299, 61, 59, 0].map(|seconds| {
            let at = now - Duration::from_secs(seconds);
            Mark { readings: seconds, ..mark(at) }
        });
        let history = VecDeque::from(marks);
        let readings = |age| before(&history, now, age).map(|mark| mark.readings);
        assert_eq!((readings(RECENT), readings(MINUTE)), (Some(301), Some(61)));
        assert_eq!(before(&VecDeque::from([mark(now)]), now, RECENT).map(|mark| mark.readings), Some(0));
    }
}
