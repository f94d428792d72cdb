//! An offline run: a canonical topic read from its beginning through fresh partitions, as the live run should have been.
//!
//! The log is the truth, so the same transitions come out, byte for byte, whatever happened to instances and batches. Rule
//! sets come into force where the log says so; they are looked up by number and hash.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use wardbell_connectors::canonical::{self, Canonical};
use wardbell_connectors::log::{Isolation, Log, LogError, Record, Remedy, TopicPartition};
use wardbell_core::partition::Partition;
use wardbell_rules::RuleSet;
use wardbell_schemas::alert::{Alert, Content};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Control, ControlRecord};
use wardbell_schemas::outcome::OutcomeCounts;

use super::says;
use crate::sets::{ControlTopic, LoadedSet};

/// Nothing new for this long before the known end is an error, not an end.
const STALLED: Duration = Duration::from_secs(15);

/// What an offline run gives.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Transitions by canonical partition, in order.
    pub partitions: Vec<Vec<Content>>,
    pub outcomes: OutcomeCounts,
}

/// Runs a canonical topic from its beginning to its present end, with the sets of a control topic.
///
/// # Errors
/// As the log says; a record that cannot be read or followed ends it, since what comes after would not be the live run.
pub fn canonical_log(log: &dyn Log, topic: &str, sets: &ControlTopic) -> Result<Replayed, LogError> {
    let mut replayed = Replayed::default();
    let mut loaded = LoadedSets { topic: sets, sets: HashMap::new() };
    let n_partitions = log.describe(topic)?.0;
    for partition in 0..n_partitions {
        let step = || format!("replaying {topic}/{partition}");
        if log.offsets(topic, partition)?.0 > 0 {
            let what = "its first records are deleted: a replay needs the log from its beginning";
            return Err(LogError::new(Remedy::Refuse, step(), what));
        }
        let mut state = None;
        let mut failure = None;
        for_each(log, topic, partition, &mut |record| {
            if failure.is_none()
                && let Err(what) = apply(&mut state, record, &mut loaded)
            {
                failure = Some(format!("offset {}: {what}", record.offset));
            }
        })?;
        if let Some(what) = failure {
            return Err(LogError::new(Remedy::Refuse, step(), what));
        }
        let mut contents = Vec::new();
        if let Some(mut state) = state {
            replayed.outcomes.merge(state.outcomes());
            let decided = state.take_decided().into_iter().map(|decided| decided.content);
            contents.extend(decided.filter(|content| says(content, partition, n_partitions)));
        }
        replayed.partitions.push(contents);
    }
    Ok(replayed)
}

/// Sets that activations named, each read once.
struct LoadedSets<'a> {
    topic: &'a ControlTopic,
    sets: HashMap<String, LoadedSet>,
}

impl LoadedSets<'_> {
    fn get(&mut self, number: u64, hash: &str) -> Result<&LoadedSet, String> {
        match self.sets.entry(hash.to_owned()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let published = self.topic.at(number).map_err(|error| error.to_string())?;
                let published = published.filter(|published| published.hash == hash);
                let published = published.ok_or_else(|| format!("rule set {number} is not on the control topic"))?;
                let set = published.load().map_err(|why| format!("rule set {number} cannot be used: {why}"))?;
                Ok(place.insert(set))
            }
        }
    }
}

/// Applies one record; a partition begins with the first activation of its log.
fn apply(state: &mut Option<Partition>, record: &Record, sets: &mut LoadedSets<'_>) -> Result<(), String> {
    let catalogue = Catalogue::builtin();
    let time = record.append_us.unwrap_or(record.time_us);
    let read = canonical::read(record, &catalogue.hash).map_err(|error| error.to_string())?;
    if let Canonical::Control(ControlRecord { control: Control::Activate { number, hash }, .. }) = &read {
        let known = state.as_ref().and_then(Partition::in_force).is_some_and(|(newest, _)| newest >= *number);
        if !known {
            let set = sets.get(*number, hash)?;
            let fresh = || Partition::new(set.settings.clone(), &RuleSet::new(Vec::new()), catalogue);
            state.get_or_insert_with(fresh).activate(*number, hash, &set.rules, set.settings.clone());
        }
    }
    let state = state.as_mut().ok_or("it stands before the first activation of a rule set")?;
    match read {
        Canonical::Readings(batch) => state.apply(&batch, time).map_err(|error| error.to_string()),
        Canonical::Control(control) => {
            state.apply_control(&control);
            Ok(())
        }
    }
}

/// All alerts of an alerts topic that a read-committed reader sees, by partition.
///
/// # Errors
/// As the log says.
pub fn alerts(log: &dyn Log, topic: &str) -> Result<Vec<Vec<Alert>>, LogError> {
    let mut partitions = Vec::new();
    for partition in 0..log.describe(topic)?.0 {
        let mut found = Vec::new();
        let mut failure = None;
        for_each(log, topic, partition, &mut |record| match serde_json::from_slice(
            record.value.as_deref().unwrap_or_default(),
        ) {
            Ok(alert) => found.push(alert),
            Err(error) => failure = Some(format!("offset {}: {error}", record.offset)),
        })?;
        if let Some(what) = failure {
            return Err(LogError::new(Remedy::Refuse, format!("reading {topic}/{partition}"), what));
        }
        partitions.push(found);
    }
    Ok(partitions)
}

/// Hands every record of a partition, from the first held to the end of now, to `each`.
fn for_each(log: &dyn Log, topic: &str, partition: i32, each: &mut dyn FnMut(&Record)) -> Result<(), LogError> {
    let (first, end) = log.offsets(topic, partition)?;
    let mut reader = log.reader(&TopicPartition::new(topic, partition), first, Isolation::ReadCommitted)?;
    let mut next = first;
    let mut newest = Instant::now();
    let mut records = Vec::new();
    while next < end {
        records.clear();
        reader.read(1_000, Duration::from_millis(200), &mut records)?;
        if let Some(last) = records.last() {
            next = last.offset + 1;
            newest = Instant::now();
        }
        records.iter().for_each(&mut *each);
        if records.is_empty() {
            // What is left may be transaction markers, which no reader sees.
            if next > first && newest.elapsed() > Duration::from_secs(1) || newest.elapsed() > STALLED {
                return Ok(());
            }
        }
    }
    Ok(())
}
