//! The operator's proof: transitions derived again from the canonical log, held against what stands on the alerts topic.
//!
//! A partition is worked through from its first record, or from a checkpoint, to the committed offset of the decide stage,
//! with the sets that the log itself puts in force. Each transition derived must stand next on the alerts topic, with all
//! bytes of its record; only what the run measured (when it was decided, whether that was late) is taken as it stands.
//! At the end the committed count of transitions and their running hash must be the replay's. The first difference of a
//! partition is named, without anything that says who the patient is.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wardbell_connectors::log::{Committed, Log, LogError, Record, Remedy, TopicPartition};
use wardbell_connectors::runtime::{self, Instant};
use wardbell_schemas::alert::{Measured, print_time};

use crate::checkpoints::{Mark, StateTopic};
use crate::pipeline::replay::{Derivation, Derived, PATIENCE, PublishedSets, Records};
use crate::pipeline::{Topics, decide_group};
use crate::sets::ControlTopic;

/// What is committed can be read within this.
const MARKED_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is compared, and where it stands.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The decide stage's consumer group.
    pub group: String,
    pub canonical: String,
    pub alerts: String,
    pub control: String,
    pub state: String,
    /// These partitions alone; none: all of them.
    pub partitions: Vec<i32>,
    pub begin: Begin,
    /// To the end of the canonical log as it is now, whatever is committed; transitions that are not on the alerts topic
    /// yet count as missing.
    pub to_now: bool,
}

impl Scope {
    /// Everything of a job, as far back as it is held and as far as it is committed.
    pub fn of(group: &str, topics: &Topics) -> Self {
        Self {
            group: decide_group(group),
            canonical: topics.canonical.clone(),
            alerts: topics.alerts.clone(),
            control: topics.control.clone(),
            state: topics.state.clone(),
            partitions: Vec::new(),
            begin: Begin::AsEarlyAsHeld,
            to_now: false,
        }
    }
}

/// Where a partition's replay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// At its first record, if that is still held, else at the oldest checkpoint.
    AsEarlyAsHeld,
    Start,
    Checkpoint,
}

/// How far the work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    pub partition: i32,
    /// The last canonical offset, and the end of the work.
    pub offset: i64,
    pub end: i64,
}

/// What came of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    pub partition: i32,
    /// Canonical offsets, the end exclusive.
    pub from_offset: i64,
    pub to_offset: i64,
    pub from_checkpoint: bool,
    /// Transitions that were found equal.
    pub transitions: u64,
    /// Readings applied.
    pub readings: u64,
    /// Canonical records that cannot be read; the live job passes them over, too.
    pub passed_over: u64,
    /// Transitions from before the first alert that is still held: derived, compared with nothing.
    pub before_first_alert: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// Why it was not compared, or not to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_compared: Option<String>,
}

/// The first thing that is not as the canonical log says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub kind: DifferenceKind,
    /// Id of the transition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transition: Option<String>,
    /// The transition's `T`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Where the record stands that decided it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_offset: Option<i64>,
    /// Where the alert stands, or for a missing one: where another stands in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alerts_offset: Option<i64>,
    /// In words; values are shown where they say nothing about a patient.
    pub what: String,
}

impl Difference {
    fn new(kind: DifferenceKind, what: String) -> Self {
        let (id, rule, transition, at) = (None, None, None, None);
        Self { kind, id, rule, transition, at, canonical_offset: None, alerts_offset: None, what }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// Derived, and not on the alerts topic.
    Missing,
    /// On the alerts topic, and not derived.
    Extra,
    /// On the alerts topic a second time.
    Repeated,
    /// On both sides, with other bytes.
    Changed,
    /// The committed count of transitions or their hash.
    History,
}

impl DifferenceKind {
    pub fn name(self) -> &'static str {
        match self {
            DifferenceKind::Missing => "missing",
            DifferenceKind::Extra => "extra",
            DifferenceKind::Repeated => "repeated",
            DifferenceKind::Changed => "changed",
            DifferenceKind::History => "history",
        }
    }
}

/// Compares partition by partition, in the memory of one. `told` hears how far it is.
///
/// # Errors
/// As the log says. What concerns one partition alone stands in its [`Compared::not_compared`].
pub fn verify(log: &Arc<dyn Log>, scope: &Scope, told: &mut dyn FnMut(Told)) -> Result<Vec<Compared>, LogError> {
    let n_partitions = log.describe(&scope.canonical)?.0;
    let n_alerts = log.describe(&scope.alerts)?.0;
    let refuse = |what: String| LogError::new(Remedy::Refuse, "comparing with the alerts topic", what);
    if n_partitions != n_alerts {
        let what = format!("`{}` has {n_partitions} partitions and `{}` {n_alerts}", scope.canonical, scope.alerts);
        return Err(refuse(what));
    }
    if let Some(unknown) = scope.partitions.iter().find(|partition| !(0..n_partitions).contains(*partition)) {
        return Err(refuse(format!("there is no partition {unknown}: `{}` has {n_partitions}", scope.canonical)));
    }
    let wanted = |partition: &i32| scope.partitions.is_empty() || scope.partitions.contains(partition);
    let mut sets = PublishedSets::new(ControlTopic::new(log.clone(), &scope.control));
    let mut compared = Vec::new();
    for partition in (0..n_partitions).filter(wanted) {
        let at = TopicPartition::new(&scope.canonical, partition);
        let committed = log.committed_with_metadata(&scope.group, &[at])?.into_iter().next().flatten();
        let mut work = Work { log, scope, sets: &mut sets, told, n_partitions, compared: Compared::default() };
        work.compared.partition = partition;
        work.compared.not_compared = work.run(partition, committed)?.err();
        compared.push(work.compared);
    }
    Ok(compared)
}

/// One partition being compared.
struct Work<'a> {
    log: &'a Arc<dyn Log>,
    scope: &'a Scope,
    sets: &'a mut PublishedSets,
    told: &'a mut dyn FnMut(Told),
    n_partitions: i32,
    compared: Compared,
}

impl Work<'_> {
    /// Compares it. The inner error says why that cannot be done.
    fn run(&mut self, partition: i32, committed: Option<Committed>) -> Result<Result<(), String>, LogError> {
        let (first, end) = self.log.offsets(&self.scope.canonical, partition)?;
        let to = match (&committed, self.scope.to_now) {
            (_, true) => end,
            (Some(committed), false) => committed.next_offset,
            (None, false) => return Ok(Err(format!("group `{}` has committed nothing of it", self.scope.group))),
        };
        if to > end {
            return Ok(Err(format!("offset {to} is committed, but the canonical log ends at {end}: it was made anew")));
        }
        let mark = match Mark::parse(committed.as_ref().map_or("", |committed| committed.metadata.as_str())) {
            Ok(mark) => mark.filter(|_| !self.scope.to_now),
            Err(what) => return Ok(Err(what)),
        };
        let (from, mut derivation) = match self.begin(partition, first, to)? {
            Ok(begun) => begun,
            Err(why) => return Ok(Err(why)),
        };
        (self.compared.from_offset, self.compared.to_offset) = (from, to);
        let mut alerts = HeldAlerts::open(&**self.log, self.scope, partition, from)?;
        let mut records = Records::open(&**self.log, &self.scope.canonical, partition, from, to)?;
        let (compared, told) = (&mut self.compared, &mut *self.told);
        let followed = derivation.follow(&mut records, self.sets, |derivation, offset, derived| {
            told(Told { partition, offset, end: to });
            compared.readings = derivation.outcomes().total();
            compared.passed_over = derivation.passed_over();
            compared.difference = alerts.compare(&derived, compared)?;
            Ok(if compared.difference.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if followed.is_err() || self.compared.difference.is_some() {
            return Ok(followed);
        }
        self.compared.difference = match alerts.rest(to)? {
            None => mark.and_then(|mark| other_history(&mark, derivation.history())),
            extra => extra,
        };
        Ok(Ok(()))
    }

    /// Where the replay begins, and the partition as it was there.
    fn begin(&mut self, partition: i32, first: i64, to: i64) -> Result<Result<(i64, Derivation), String>, LogError> {
        let from_start = match self.scope.begin {
            Begin::AsEarlyAsHeld => first == 0,
            Begin::Start if first > 0 => {
                let what = "the first records of the canonical log are deleted: begin at a checkpoint";
                return Ok(Err(what.to_owned()));
            }
            Begin::Start => true,
            Begin::Checkpoint => false,
        };
        if from_start {
            return Ok(Ok((0, Derivation::new(partition, self.n_partitions))));
        }
        let topic = StateTopic::new(self.log.clone(), &self.scope.state);
        let usable = |(_, next_offset): &(i64, i64)| (first..=to).contains(next_offset);
        let Some((at, next_offset)) = topic.complete(partition)?.into_iter().find(usable) else {
            let what = format!("no whole checkpoint on `{}` from which the canonical log is held", self.scope.state);
            return Ok(Err(what));
        };
        let stored = topic.read(partition, at, &mut |_| {}, &|| false)?;
        self.compared.from_checkpoint = true;
        let derivation = Derivation::from_checkpoint(partition, self.n_partitions, &stored.slices, self.sets);
        Ok(derivation.map(|derivation| (next_offset, derivation)))
    }
}

fn other_history(mark: &Mark, (transitions, digest): (u64, [u8; 16])) -> Option<Difference> {
    if (mark.transitions, mark.digest) == (transitions, digest) {
        return None;
    }
    let what = match mark.transitions == transitions {
        true => format!("the hash over all {transitions} transitions is not the one beside the committed offset"),
        false => format!(
            "{} transitions are counted beside the committed offset, the replay counts {transitions}",
            mark.transitions
        ),
    };
    Some(Difference::new(DifferenceKind::History, what))
}

/// The alerts of a partition as they stand on their topic, one after the other.
struct HeldAlerts<'a> {
    log: &'a dyn Log,
    scope: &'a Scope,
    topic: &'a str,
    partition: i32,
    records: Records,
    next: Option<Held>,
    /// Nothing more comes.
    is_over: bool,
    /// First canonical offset of the comparison.
    from: i64,
    /// An alert from there on was met; before it stand those from before the range.
    has_begun: bool,
    /// Whether what is derived has to be here: from the first alert that is held on.
    is_aligned: bool,
}

/// An alert as it stands, with as much of it as can be read.
pub(crate) struct Held {
    record: Record,
    read: Result<StoredAlert, serde_json::Error>,
}

/// What is needed of an alert to find it; the rest is compared as bytes.
#[derive(Debug, Deserialize)]
struct StoredAlert {
    id: String,
    data: StoredData,
}

#[derive(Debug, Deserialize)]
struct StoredData {
    id: String,
    transition: String,
    at: String,
    rule: StoredRule,
    measured: Measured,
}

#[derive(Debug, Deserialize)]
struct StoredRule {
    id: String,
}

impl<'a> HeldAlerts<'a> {
    fn open(log: &'a dyn Log, scope: &'a Scope, partition: i32, from: i64) -> Result<Self, LogError> {
        let topic = &scope.alerts;
        let (first, end) = log.offsets(topic, partition)?;
        let records = Records::open(log, topic, partition, first, end)?;
        let (next, is_over, has_begun, is_aligned) = (None, false, false, first == 0);
        Ok(Self { log, scope, topic, partition, records, next, is_over, from, has_begun, is_aligned })
    }

    /// Holds what one canonical record decided against what stands next.
    fn compare(&mut self, derived: &[Derived], compared: &mut Compared) -> Result<Option<Difference>, LogError> {
        for (i, expected) in derived.iter().enumerate() {
            // What is committed comes; only what is missing is waited for in vain.
            let is_aligned = self.is_aligned;
            let next_of = |records: &mut Records| match is_aligned {
                true => records.read(PATIENCE),
                false => records.read_past_markers(),
            };
            let mut held = self.take(next_of)?;
            if held.is_none() && self.is_aligned && !self.scope.to_now {
                held = self.take_late()?;
            }
            let Some(held) = held else {
                if !self.is_aligned {
                    compared.before_first_alert += 1;
                    continue;
                }
                return Ok(Some(expected.missing(None, "it is not on the alerts topic")));
            };
            if held.is_of(&expected.content.id) {
                self.is_aligned = true;
                if let Some(what) = held.differs(expected, self.topic) {
                    return Ok(Some(expected.difference(DifferenceKind::Changed, Some(held.record.offset), what)));
                }
                compared.transitions += 1;
                continue;
            }
            let follows = derived[i + 1..].iter().any(|later| held.is_of(&later.content.id));
            let is_later = follows || held.decided_at().is_some_and(|offset| offset > expected.offset);
            if is_later && !self.is_aligned {
                compared.before_first_alert += 1;
                self.next = Some(held);
                continue;
            }
            if is_later {
                return Ok(Some(expected.missing(Some(held.record.offset), "another alert stands in its place")));
            }
            if held.read.is_err() {
                let what = format!("what stands in its place {}", held.unreadable());
                return Ok(Some(expected.difference(DifferenceKind::Changed, Some(held.record.offset), what)));
            }
            return self.not_derived(held).map(Some);
        }
        Ok(None)
    }

    /// What is left when everything up to a canonical offset was derived: nothing, or what was decided after it.
    fn rest(&mut self, to: i64) -> Result<Option<Difference>, LogError> {
        let mut end = to;
        while let Some(held) = self.take(Records::read_past_markers)? {
            let decided_at = held.decided_at();
            if decided_at.is_some_and(|offset| offset >= end) {
                end = self.log.offsets(&self.scope.canonical, self.partition)?.1;
            }
            if !decided_at.is_some_and(|offset| (to..end).contains(&offset)) {
                return self.not_derived(held).map(Some);
            }
        }
        Ok(None)
    }

    /// The next alert, if it can only be read now: each partition is told of a commit for itself, and that of the offset may
    /// be the first.
    fn take_late(&mut self) -> Result<Option<Held>, LogError> {
        let began = Instant::now();
        while began.elapsed() < MARKED_WITHIN {
            runtime::sleep(LOOK_EVERY);
            let (_, end) = self.log.offsets(self.topic, self.partition)?;
            self.records = Records::open(self.log, self.topic, self.partition, self.records.position(), end)?;
            self.is_over = false;
            if let Some(held) = self.take(Records::read_past_markers)? {
                return Ok(Some(held));
            }
        }
        Ok(None)
    }

    /// The next alert, from the first on that was decided in the range compared.
    fn take(
        &mut self,
        next_of: impl Fn(&mut Records) -> Result<Option<Record>, LogError>,
    ) -> Result<Option<Held>, LogError> {
        if let Some(held) = self.next.take() {
            return Ok(Some(held));
        }
        while !self.is_over {
            let Some(record) = next_of(&mut self.records)? else {
                self.is_over = true;
                break;
            };
            let held = Held::new(record);
            self.has_begun |= held.decided_at().is_none_or(|offset| offset >= self.from);
            if self.has_begun {
                return Ok(Some(held));
            }
            // Alerts from before the range are held, so all of the range are.
            self.is_aligned = true;
        }
        Ok(None)
    }

    /// Names an alert that the log does not give: one of its own, or one that stands there already.
    fn not_derived(&self, held: Held) -> Result<Difference, LogError> {
        let alerts_offset = held.record.offset;
        let (first, _) = self.log.offsets(self.topic, self.partition)?;
        let mut before = Records::open(self.log, self.topic, self.partition, first, alerts_offset)?;
        let mut repeats = None;
        while let Some(record) = before.read_past_markers()? {
            if repeats.is_none() && record.header("id").is_some() && record.header("id") == held.record.header("id") {
                repeats = Some(record.offset);
            }
        }
        let (kind, what) = match repeats {
            Some(offset) => (DifferenceKind::Repeated, format!("it stands at alerts offset {offset} already")),
            None => (DifferenceKind::Extra, "the canonical log does not give it".to_owned()),
        };
        let unreadable = held.unreadable();
        Ok(match held.read {
            Ok(StoredAlert { data, .. }) => Difference {
                kind,
                id: Some(data.id),
                rule: Some(data.rule.id),
                transition: Some(data.transition),
                at: Some(data.at),
                canonical_offset: Some(data.measured.offset),
                alerts_offset: Some(alerts_offset),
                what,
            },
            Err(_) => Difference {
                alerts_offset: Some(alerts_offset),
                ..Difference::new(kind, format!("{what}; it {unreadable}"))
            },
        })
    }
}

impl Held {
    pub fn new(record: Record) -> Self {
        let read = serde_json::from_slice(record.value.as_deref().unwrap_or_default());
        Self { record, read }
    }

    /// Any of the places where the id stands says so: at most one of them is damaged.
    fn is_of(&self, id: &str) -> bool {
        let in_value = self.read.as_ref().is_ok_and(|alert| alert.id == id || alert.data.id == id);
        in_value || self.record.header("id") == Some(id.as_bytes())
    }

    /// Offset of the canonical record that decided it.
    fn decided_at(&self) -> Option<i64> {
        self.read.as_ref().ok().map(|alert| alert.data.measured.offset)
    }

    fn unreadable(&self) -> String {
        // Not the error itself: it quotes what it found.
        self.read.as_ref().err().map_or_else(String::new, |error| {
            format!("cannot be read as an alert, line {}, column {}", error.line(), error.column())
        })
    }

    /// Where the record is another than the one derived, in words.
    pub fn differs(&self, expected: &Derived, topic: &str) -> Option<String> {
        let Ok(alert) = &self.read else {
            return Some(format!("it {}", self.unreadable()));
        };
        let Measured { decided_us, delayed, .. } = alert.data.measured;
        let expected = expected.record(topic, decided_us, delayed);
        let found = self.record.value.as_deref().unwrap_or_default();
        let value = expected.value.unwrap_or_default();
        if value != found {
            return Some(where_they_differ(&value, found));
        }
        if self.record.key != expected.key {
            return Some("the record's key is not the patient".to_owned());
        }
        if self.record.headers != expected.headers {
            return Some("the record's headers differ".to_owned());
        }
        None
    }
}

impl Derived {
    fn missing(&self, alerts_offset: Option<i64>, what: &str) -> Difference {
        self.difference(DifferenceKind::Missing, alerts_offset, what.to_owned())
    }

    fn difference(&self, kind: DifferenceKind, alerts_offset: Option<i64>, what: String) -> Difference {
        Difference {
            kind,
            id: Some(self.content.id.clone()),
            rule: Some(self.content.rule.id.clone()),
            transition: Some(self.content.transition.name().to_owned()),
            at: Some(print_time(self.content.at)),
            canonical_offset: Some(self.offset),
            alerts_offset,
            what,
        }
    }
}

/// Fields whose values say nothing about a patient.
const SHOWN: [&str; 15] = [
    "data.number",
    "data.transition",
    "data.state",
    "data.kind",
    "data.priority",
    "data.rule.version",
    "data.raised_by_version",
    "data.at",
    "data.condition_start",
    "data.episode_start",
    "data.by_timer",
    "data.measured.basis_us",
    "data.measured.canonical_us",
    "data.measured.partition",
    "data.measured.offset",
];

/// The first field in which two alerts differ, whose bytes do.
fn where_they_differ(expected: &[u8], found: &[u8]) -> String {
    let byte = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
    let values = serde_json::from_slice::<Value>(expected).ok().zip(serde_json::from_slice::<Value>(found).ok());
    let Some((expected, found)) = values else {
        return format!("its bytes differ from byte {byte} on, and it is no JSON any more");
    };
    let Some((path, expected, found)) = first_field(&expected, &found, "") else {
        return format!("its fields are equal and its bytes differ from byte {byte} on");
    };
    match (expected, found) {
        (Some(expected), Some(found)) if SHOWN.contains(&path.as_str()) => {
            format!("`{path}` is {found} and has to be {expected}")
        }
        (Some(_), Some(_)) => format!("`{path}` differs"),
        (Some(_), None) => format!("`{path}` is not there"),
        (None, _) => format!("there is more in it than belongs there, from byte {byte} on"),
    }
}

type Field<'a> = (String, Option<&'a Value>, Option<&'a Value>);

fn first_field<'a>(expected: &'a Value, found: &'a Value, path: &str) -> Option<Field<'a>> {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            let known = expected.iter().find_map(|(name, value)| match found.get(name) {
                Some(other) => first_field(value, other, &below(name)),
                None => Some((below(name), Some(value), None)),
            });
            let unknown = || found.iter().find(|(name, _)| !expected.contains_key(*name));
            known.or_else(|| unknown().map(|(_, value)| (path.to_owned(), None, Some(value))))
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            let mut pairs = expected.iter().zip(found).enumerate();
            pairs.find_map(|(i, (expected, found))| first_field(expected, found, &below(&i.to_string())))
        }
        _ => (expected != found).then(|| (path.to_owned(), Some(expected), Some(found))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_field_that_differs_is_named_and_no_value_about_a_patient() {
        let good = r#"{"subject":"p7/-","data":{"number":1,"evidence":[{"value":86.0}]}}"#;
        let differing = |bad: String| where_they_differ(good.as_bytes(), bad.as_bytes());
        assert_eq!(differing(good.replace("\"number\":1", "\"number\":2")), "`data.number` is 2 and has to be 1");
        assert_eq!(differing(good.replace("86.0", "87.0")), "`data.evidence.0.value` differs");
        assert_eq!(differing(good.replace("p7", "p8")), "`subject` differs");
        assert_eq!(differing(good.replace("subject", "object")), "`subject` is not there");
        assert!(differing(good.replace("\"number\":1", "\"number\":1,\"p7\":1")).contains("more in it"));
        assert!(differing(good.replace("86.0", "86.00")).contains("bytes differ"));
        assert!(differing(good.replace("[", "(")).contains("no JSON"));
    }
}
