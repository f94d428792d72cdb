//! An offline run: a canonical topic read from its beginning through fresh partitions, as the live run should have been.
//!
//! The log is the truth, so the same transitions come out, byte for byte, whatever happened to instances and batches.

use std::time::{Duration, Instant};

use wardbell_connectors::canonical::{self, Canonical};
use wardbell_connectors::log::{Isolation, Log, LogError, Remedy, TopicPartition};
use wardbell_core::partition::{Partition, Settings};
use wardbell_rules::RuleSet;
use wardbell_schemas::alert::{Alert, Content};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::outcome::OutcomeCounts;

/// Nothing new for this long before the known end is an error, not an end.
const STALLED: Duration = Duration::from_secs(15);

/// What an offline run gives.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Transitions by canonical partition, in order.
    pub partitions: Vec<Vec<Content>>,
    pub outcomes: OutcomeCounts,
}

/// Runs a canonical topic from its beginning to its present end.
///
/// # Errors
/// As the log says; a record that cannot be read ends it, since what follows would not be the live run.
pub fn canonical_log(log: &dyn Log, topic: &str, decision: &Settings, rules: &RuleSet) -> Result<Replayed, LogError> {
    let catalogue = Catalogue::builtin();
    let mut replayed = Replayed::default();
    for partition in 0..log.describe(topic)?.0 {
        let mut state = Partition::new(decision.clone(), rules, catalogue);
        let mut failure = None;
        for_each(log, topic, partition, &mut |record| {
            let time = record.append_us.unwrap_or(record.time_us);
            let result = match canonical::read(record, &catalogue.hash) {
                Ok(Canonical::Readings(batch)) => state.apply(&batch, time).map_err(|error| error.to_string()),
                Ok(Canonical::Control(control)) => {
                    state.apply_control(&control);
                    Ok(())
                }
                Err(error) => Err(error.to_string()),
            };
            if let (Err(what), None) = (result, &failure) {
                failure = Some(format!("offset {}: {what}", record.offset));
            }
        })?;
        if let Some(what) = failure {
            return Err(LogError::new(Remedy::Refuse, format!("replaying {topic}/{partition}"), what));
        }
        replayed.outcomes.merge(state.outcomes());
        replayed.partitions.push(state.take_decided().into_iter().map(|decided| decided.content).collect());
    }
    Ok(replayed)
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
fn for_each(
    log: &dyn Log,
    topic: &str,
    partition: i32,
    each: &mut dyn FnMut(&wardbell_connectors::log::Record),
) -> Result<(), LogError> {
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
