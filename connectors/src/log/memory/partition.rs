//! Topics and their partitions: records in order, what readers see of them, and appends that are still on their way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use wardbell_schemas::Micros;

use super::super::{
    Appended, Isolation, LogError, Outgoing, PartitionReader, Record, Remedy, StampedBy, TopicPartition,
};
use super::{Look, MemoryLog, SLACK, State, gone};
use crate::runtime::{Instant, Signal};

/// What became of something that took an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Readers see it.
    Committed,
    /// Its transaction has not ended.
    Open,
    Aborted,
    /// The end of a transaction; nobody reads it.
    Marker,
}

#[derive(Debug)]
pub(super) struct Topic {
    pub stamped_by: StampedBy,
    pub partitions: Vec<Partition>,
}

impl Topic {
    pub fn new(stamped_by: StampedBy, n_partitions: usize) -> Self {
        Self { stamped_by, partitions: (0..n_partitions).map(|_| Partition::default()).collect() }
    }
}

#[derive(Debug, Default)]
pub(super) struct Partition {
    /// Offset of the first entry; what stood before is deleted.
    first: i64,
    entries: VecDeque<(Record, Kind)>,
    /// First offset of each open transaction, by its number.
    open: BTreeMap<u64, i64>,
    /// Appends on their way, by arrival and order of handing over.
    pub in_flight: BTreeMap<(Instant, u64), Flight>,
    waiting: Vec<Waiter>,
}

/// An append on its way to the broker.
#[derive(Debug)]
pub(super) struct Flight {
    pub record: Outgoing,
    /// Who is told of its outcome, if anybody still is.
    pub appender: Option<u64>,
    pub token: u64,
}

/// A reader that waits for records.
#[derive(Debug)]
struct Waiter {
    signal: Arc<Signal>,
    until: Instant,
    isolation: Isolation,
}

/// A topic's stamping and one of its partitions.
pub(super) fn find<'a>(
    topics: &'a mut BTreeMap<String, Topic>,
    topic: &str,
    partition: i32,
) -> Result<(StampedBy, &'a mut Partition), LogError> {
    let missing = || LogError::new(Remedy::Refuse, format!("topic `{topic}`, partition {partition}"), "does not exist");
    let topic = topics.get_mut(topic).ok_or_else(missing)?;
    let found = usize::try_from(partition).ok().and_then(|index| topic.partitions.get_mut(index));
    Ok((topic.stamped_by, found.ok_or_else(missing)?))
}

impl Partition {
    pub fn first(&self) -> i64 {
        self.first
    }

    pub fn end(&self) -> i64 {
        self.first + self.entries.len() as i64
    }

    /// Read-committed readers come no further while a transaction is open.
    pub fn stable_end(&self) -> i64 {
        self.open.values().min().copied().unwrap_or_else(|| self.end())
    }

    fn readable_end(&self, isolation: Isolation) -> i64 {
        match isolation {
            Isolation::ReadCommitted => self.stable_end(),
            Isolation::ReadUncommitted => self.end(),
        }
    }

    pub fn add(&mut self, kind: Kind, stamped_by: StampedBy, now_us: Micros, record: Outgoing) -> Appended {
        let offset = self.end();
        let time_us = match stamped_by {
            StampedBy::Broker => now_us,
            StampedBy::Producer => record.time_us.unwrap_or(now_us),
        };
        let Outgoing { partition, key, value, headers, .. } = record;
        let append_us = Some(now_us);
        self.entries.push_back((Record { partition, offset, time_us, append_us, key, value, headers }, kind));
        let append_us = append_us.filter(|_| stamped_by == StampedBy::Broker);
        Appended { partition, offset, append_us }
    }

    /// A record of a transaction that has not ended.
    pub fn add_open(&mut self, transaction: u64, stamped_by: StampedBy, now_us: Micros, record: Outgoing) -> Appended {
        let appended = self.add(Kind::Open, stamped_by, now_us, record);
        self.open.entry(transaction).or_insert(appended.offset);
        self.wake(|waiter| waiter.isolation == Isolation::ReadUncommitted);
        appended
    }

    /// The end of a transaction, with the offsets of its records here.
    pub fn end_transaction(&mut self, transaction: u64, offsets: &[i64], kind: Kind, marker: Outgoing, now_us: Micros) {
        for offset in offsets {
            let index = usize::try_from(offset - self.first).ok();
            if let Some((_, known)) = index.and_then(|index| self.entries.get_mut(index)) {
                *known = kind;
            }
        }
        self.open.remove(&transaction);
        self.add(Kind::Marker, StampedBy::Broker, now_us, marker);
        self.wake(|_| true);
    }

    pub fn delete_before(&mut self, offset: i64) {
        while self.first < offset && self.entries.pop_front().is_some() {
            self.first += 1;
        }
    }

    pub fn entries(&self) -> impl Iterator<Item = &(Record, Kind)> {
        self.entries.iter()
    }

    fn read(&self, next: &mut i64, max: usize, isolation: Isolation, records: &mut Vec<Record>) -> Result<(), String> {
        if *next < self.first {
            return Err(format!("the log begins at offset {}: what stood before is deleted", self.first));
        }
        if *next > self.end() {
            return Err(format!("the log ends at offset {}: it was made anew", self.end()));
        }
        let end = self.readable_end(isolation);
        let room = records.len().saturating_add(max);
        while *next < end && records.len() < room {
            let (record, kind) = &self.entries[(*next - self.first) as usize];
            *next += 1;
            let is_seen = match kind {
                Kind::Committed => true,
                Kind::Open | Kind::Aborted => isolation == Isolation::ReadUncommitted,
                Kind::Marker => false,
            };
            if is_seen {
                records.push(record.clone());
            }
        }
        Ok(())
    }

    fn listen(&mut self, signal: &Arc<Signal>, until: Instant, isolation: Isolation) {
        // Those of readers that are gone are held by nobody else.
        self.waiting.retain(|known| !Arc::ptr_eq(&known.signal, signal) && Arc::strong_count(&known.signal) > 1);
        self.waiting.push(Waiter { signal: signal.clone(), until, isolation });
    }

    fn wake(&mut self, whom: impl Fn(&Waiter) -> bool) {
        self.waiting.retain(|waiter| {
            let woken = whom(waiter);
            if woken {
                waiter.signal.notify_all();
            }
            !woken
        });
    }

    pub fn wake_all(&mut self) {
        self.wake(|_| true);
    }

    /// Something arrives at `due`: who would wait much longer looks when that will be.
    pub fn expect(&mut self, due: Instant) {
        self.wake(|waiter| waiter.until > due + SLACK);
    }
}

impl State {
    pub(super) fn partition(&mut self, topic: &str, partition: i32) -> Result<&mut Partition, LogError> {
        find(&mut self.topics, topic, partition).map(|(_, partition)| partition)
    }

    /// Takes in the appends that have arrived at a partition by now, and tells their appenders.
    pub(super) fn take_in(&mut self, topic: &str, number: i32) {
        if !self.is_available {
            return;
        }
        let Ok((stamped_by, partition)) = find(&mut self.topics, topic, number) else {
            return;
        };
        if partition.in_flight.is_empty() {
            return;
        }
        let (now, now_us) = (Instant::now(), self.clock.now_us());
        let mut place = None;
        while let Some(first) = partition.in_flight.first_entry().filter(|first| first.key().0 <= now) {
            let Flight { record, appender, token } = first.remove();
            let appended = partition.add(Kind::Committed, stamped_by, now_us, record);
            let place = place.get_or_insert_with(|| TopicPartition::new(topic, number));
            if let Some(appender) = appender.and_then(|id| self.appenders.get_mut(&id)) {
                appender.arrived(place, token, appended);
            }
        }
        if place.is_some() {
            partition.wake_all();
        }
    }

    /// Reads on from `next`.
    pub(super) fn read(
        &mut self,
        from: &TopicPartition,
        next: &mut i64,
        max: usize,
        isolation: Isolation,
        records: &mut Vec<Record>,
    ) -> Result<(), LogError> {
        self.take_in(&from.topic, from.partition);
        let Ok(partition) = self.partition(&from.topic, from.partition) else {
            return Ok(());
        };
        partition
            .read(next, max, isolation, records)
            .map_err(|what| LogError::new(Remedy::Restart, format!("reading {}/{}", from.topic, from.partition), what))
    }

    /// Has `signal` tell of news in a partition; gives when there may be some without a word.
    pub(super) fn listen(
        &mut self,
        from: &TopicPartition,
        signal: &Arc<Signal>,
        until: Instant,
        isolation: Isolation,
    ) -> Option<Instant> {
        let (is_available, next_end) = (self.is_available, self.next_end);
        let partition = self.partition(&from.topic, from.partition).ok()?;
        partition.listen(signal, until, isolation);
        let arrival = partition.in_flight.keys().next().map(|(due, _)| *due);
        let end = next_end.filter(|_| !partition.open.is_empty());
        [arrival, end].into_iter().flatten().min().filter(|_| is_available)
    }
}

pub(super) struct MemoryReader {
    pub log: MemoryLog,
    pub from: TopicPartition,
    pub next: i64,
    pub isolation: Isolation,
    pub signal: Arc<Signal>,
    pub is_at_end: bool,
}

impl PartitionReader for MemoryReader {
    fn position(&self) -> &TopicPartition {
        &self.from
    }

    fn read(&mut self, max: usize, wait: std::time::Duration, records: &mut Vec<Record>) -> Result<(), LogError> {
        let Self { log, from, next, isolation, signal, is_at_end } = self;
        let done = log.wait_for(signal, wait, |state, until| {
            if log.is_gone(state) {
                return Look::Found(Err(gone("reading")));
            }
            let before = records.len();
            if state.is_available {
                let read = state.read(from, next, max, *isolation, records);
                *is_at_end = state
                    .partition(&from.topic, from.partition)
                    .is_ok_and(|known| *next >= known.readable_end(*isolation));
                if read.is_err() || records.len() > before {
                    return Look::Found(read);
                }
            }
            Look::Again(state.listen(from, signal, until, *isolation))
        });
        done.unwrap_or(Ok(()))
    }

    fn is_at_end(&self) -> bool {
        self.is_at_end
    }
}
