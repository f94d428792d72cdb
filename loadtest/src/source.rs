//! The source topic as a device gateway uses it: made if it is missing, records placed by patient, each accounted for.
//!
//! A record is *sent* when the producer took it and *acknowledged* when the broker did; what is left between the two at
//! the end is a finding. The token of an append is the number of readings in the record, so readings are counted by the
//! very outcomes records are counted by; a record without any is poison.

use std::collections::{BTreeMap, HashMap};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use wardbell_connectors::log::{Appended, Appender, Log, LogError, Outgoing, StampedBy, TopicSpec};
use wardbell_connectors::partitioner::partition_of;

use crate::manifest::Offsets;

/// Of a topic that is made here and not told otherwise.
const PARTITIONS_DEFAULT: i32 = 4;
/// Live readings are of no use to anybody after a day.
const RETENTION_LIVE: Duration = Duration::from_secs(24 * 3_600);
/// Half of librdkafka's own queue: the wait for room happens here, where it is seen.
const IN_FLIGHT_MAX: u64 = 50_000;
/// An appender never gives a record up; we do, after this long without a single outcome.
const STALL_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(1);

/// A topic that readings can be sent to.
#[derive(Debug)]
pub struct SourceTopic {
    pub name: String,
    pub n_partitions: i32,
}

impl SourceTopic {
    /// Makes the topic if it is missing: with record times (`StampedBy::Producer`) records are kept for ever, else the
    /// broker stamps them and they stay for a day. A topic that is there is used as it is, if that works.
    ///
    /// # Errors
    /// If the broker cannot be reached, if the topic has another partition count than `partitions`, or if its broker
    /// would overwrite the record times.
    pub fn prepare(log: &dyn Log, name: &str, partitions: Option<i32>, stamped_by: StampedBy) -> Result<Self> {
        let spec = TopicSpec {
            name: name.to_owned(),
            partitions: partitions.unwrap_or(PARTITIONS_DEFAULT),
            stamped_by,
            retention: (stamped_by == StampedBy::Broker).then_some(RETENTION_LIVE),
            create: true,
            any_partitions: true,
        };
        let step = || format!("preparing source topic `{name}`");
        log.prepare(&[spec]).with_context(step)?;
        let (n_partitions, found) = log.describe(name).with_context(step)?;
        if let Some(wanted) = partitions
            && wanted != n_partitions
        {
            bail!(
                "topic `{name}` has {n_partitions} partitions, --partitions says {wanted}; leave that out, or name a \
                 new topic"
            );
        }
        match (stamped_by, found) {
            (StampedBy::Producer, StampedBy::Broker) => bail!(
                "topic `{name}` has message.timestamp.type=LogAppendTime, so the broker would replace the record \
                 times; name a new topic, or leave out --record-time"
            ),
            (StampedBy::Broker, StampedBy::Producer) => eprintln!(
                "note: topic `{name}` has message.timestamp.type=CreateTime: this machine's clock stands for the time \
                 of append"
            ),
            _ => {}
        }
        Ok(Self { name: name.to_owned(), n_partitions })
    }

    /// Where a patient's records go.
    pub fn partition(&self, patient: &str) -> i32 {
        partition_of(patient, self.n_partitions)
    }
}

/// What became of the records and of the readings in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SendCounts {
    pub records_sent: u64,
    pub readings_sent: u64,
    pub records_acknowledged: u64,
    pub readings_acknowledged: u64,
    /// The broker refused them, or the producer broke before they were out.
    pub records_failed: u64,
    pub readings_failed: u64,
}

impl SendCounts {
    /// Records whose outcome is not known.
    pub fn records_in_flight(&self) -> u64 {
        self.records_sent - self.records_acknowledged - self.records_failed
    }

    pub fn is_all_acknowledged(&self) -> bool {
        self.records_acknowledged == self.records_sent && self.readings_acknowledged == self.readings_sent
    }
}

/// Sends records with a bounded number in flight. After the first fault nothing more is sent.
pub struct Sender {
    appender: Box<dyn Appender>,
    outcomes: Vec<(u64, Result<Appended, LogError>)>,
    counts: SendCounts,
    /// The newest acknowledged offset of each partition.
    newest: HashMap<i32, i64>,
    /// Where acknowledged records with readings are, by partition.
    offsets: BTreeMap<i32, Offsets>,
    /// Where acknowledged records without any are.
    poison: Vec<(i32, i64)>,
    fault: Option<String>,
    /// When something was last heard, or the first of the records in flight was sent.
    waiting_since: Instant,
}

impl Sender {
    pub fn new(log: &dyn Log) -> Result<Self> {
        let appender = log.appender().context("making a producer")?;
        Ok(Self {
            appender,
            outcomes: Vec::new(),
            counts: SendCounts::default(),
            newest: HashMap::new(),
            offsets: BTreeMap::new(),
            poison: Vec::new(),
            fault: None,
            waiting_since: Instant::now(),
        })
    }

    pub fn counts(&self) -> SendCounts {
        self.counts
    }

    /// Where the acknowledged records are: those with readings by partition, and those without any.
    pub fn into_positions(self) -> (BTreeMap<i32, Offsets>, Vec<(i32, i64)>) {
        (self.offsets, self.poison)
    }

    /// Why sending ended before its time.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Sends a record with `n_readings` readings (none: poison), after waiting for room; `false`: nothing can be sent any
    /// more.
    #[must_use]
    pub fn send(&mut self, record: &Outgoing, n_readings: u64) -> bool {
        while self.fault.is_none() && self.counts.records_in_flight() >= IN_FLIGHT_MAX {
            thread::sleep(PAUSE);
            self.collect();
        }
        if self.fault.is_some() {
            return false;
        }
        if self.counts.records_in_flight() == 0 {
            self.waiting_since = Instant::now();
        }
        if let Err(error) = self.appender.append(record, n_readings) {
            self.fault = Some(error.to_string());
            return false;
        }
        self.counts.records_sent += 1;
        self.counts.readings_sent += n_readings;
        true
    }

    /// Counts the outcomes that have become known, without waiting.
    pub fn collect(&mut self) {
        loop {
            self.appender.outcomes(Duration::ZERO, &mut self.outcomes);
            if self.outcomes.is_empty() {
                break;
            }
            self.waiting_since = Instant::now();
            for (n_readings, outcome) in self.outcomes.drain(..) {
                match outcome {
                    Ok(appended) => {
                        self.counts.records_acknowledged += 1;
                        self.counts.readings_acknowledged += n_readings;
                        let offset = next_offset(&mut self.newest, &appended);
                        if n_readings > 0 {
                            self.offsets.entry(appended.partition).or_default().push(offset);
                        } else {
                            self.poison.push((appended.partition, offset));
                        }
                    }
                    Err(error) => {
                        self.counts.records_failed += 1;
                        self.counts.readings_failed += n_readings;
                        if self.fault.is_none() {
                            self.fault = Some(error.to_string());
                        }
                    }
                }
            }
        }
        let in_flight = self.counts.records_in_flight();
        if in_flight > 0 && self.fault.is_none() && self.waiting_since.elapsed() > STALL_MAX {
            let seconds = STALL_MAX.as_secs();
            let what =
                format!("{in_flight} records in flight and no answer for {seconds} s; check that the broker runs");
            self.fault = Some(what);
        }
    }

    /// Waits until every record is acknowledged, or until that cannot happen any more.
    pub fn finish(&mut self, mut meanwhile: impl FnMut(&SendCounts)) {
        self.collect();
        while self.counts.records_in_flight() > 0 && self.fault.is_none() {
            meanwhile(&self.counts);
            thread::sleep(PAUSE);
            self.collect();
        }
    }
}

/// A batch that was sent again after an outage although the broker had it is acknowledged without its offset; what stands
/// there instead lies below the one before. Records of a partition lie in the order they were sent, so it is the next.
fn next_offset(newest: &mut HashMap<i32, i64>, appended: &Appended) -> i64 {
    let newest = newest.entry(appended.partition).or_insert(-1);
    *newest = if appended.offset > *newest { appended.offset } else { *newest + 1 };
    *newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_was_not_told_is_the_next_one() {
        let mut newest = HashMap::new();
        let mut next = |partition, offset| next_offset(&mut newest, &Appended { partition, offset, append_us: None });
        assert_eq!([next(0, 70), next(0, 71), next(1, -1001), next(0, -1001), next(0, 3)], [70, 71, 0, 72, 73]);
        assert_eq!([next(0, 74), next(1, 1), next(0, 90)], [74, 1, 90]);
    }
}
