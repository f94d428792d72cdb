//! The normalize stage: source records in, canonical batches, dead letters and ticks out.
//!
//! Without transactions and their stalls: appends are idempotent and gapless per partition, and a source offset is
//! committed only when everything before it is acknowledged in all partitions. A crash repeats work; the decide stage
//! drops what it has seen by its source position. Any failed append ends this producer and starts again from the
//! committed offset, so a series is never continued behind a gap.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;
use wardbell_connectors::canonical::{control_record, readings_record};
use wardbell_connectors::decode::json::JsonDecoder;
use wardbell_connectors::decode::{Decoder, Undecodable};
use wardbell_connectors::log::{
    Appender, Isolation, LogError, Member, MemberEvent, Membership, Outgoing, Record, Remedy, TopicPartition,
};
use wardbell_connectors::partitioner::partition_of;
use wardbell_core::normalize::{self, Source};
use wardbell_schemas::Micros;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Control, ControlRecord, TickClaim};
use wardbell_schemas::outcome::Outcome;
use wardbell_schemas::reading::ReadingBatchBuilder;

use super::Shared;
use crate::latency::Stage;

/// What has arrived is gathered for at most this long: a batch is small, an alert does not wait.
const GATHER: Duration = Duration::from_millis(5);
/// Longest wait for the first record of a turn; events, outcomes and ticks are looked at in between.
const IDLE_WAIT: Duration = Duration::from_millis(20);
/// Records of one turn.
const RECORDS_MAX: usize = 5_000;
/// Rows of one canonical batch; keeps a record far below the broker's limit of 1 MB.
const ROWS_MAX: usize = 2_000;
/// Canonical records in flight before reading pauses: this stage waits, and so do its sources.
const IN_FLIGHT_MAX: usize = 1_000;
/// Offsets are committed this often at most.
const COMMIT_EVERY: Duration = Duration::from_millis(500);
/// A stop waits this long for what is in flight.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);

pub(super) struct NormalizeSettings {
    pub record_clock: bool,
    pub tick_every: Duration,
}

/// The consumer group of this stage.
pub fn group(prefix: &str) -> String {
    format!("{prefix}-normalize")
}

/// Runs until the job stops.
pub(super) fn run(shared: &Shared, settings: &NormalizeSettings) {
    shared.supervise("normalize", || Stand::new(shared, settings)?.work());
}

/// A dead letter's value. It names place and reason, never content.
#[derive(Debug, Serialize)]
struct DeadLetter<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    index: u32,
    reason: &'static str,
    field: &'a str,
    detail: &'a str,
}

/// One gathering of records, until everything it caused is acknowledged.
#[derive(Debug, Default)]
struct Turn {
    outstanding: usize,
    /// Next offset of each source partition once this turn is done.
    next_offsets: Vec<(TopicPartition, i64)>,
    /// Source append times of its records, for measuring: (time, records).
    measured: Vec<(Micros, u64)>,
}

/// What the stage holds between a start and the next failure.
struct Stand<'a> {
    shared: &'a Shared,
    settings: &'a NormalizeSettings,
    catalogue: &'static Catalogue,
    decoder: JsonDecoder,
    n_partitions: i32,
    /// There is one source partition in all: its order is the order of record times.
    single_source: bool,
    member: Box<dyn Member>,
    appender: Box<dyn Appender>,
    /// Next offset to read, per assigned source partition.
    reading: BTreeMap<TopicPartition, i64>,
    turns: VecDeque<Turn>,
    /// Number of the first turn in `turns`.
    first_turn: u64,
    /// Records in flight by token.
    tokens: HashMap<u64, u64>,
    next_token: u64,
    acknowledged: BTreeMap<TopicPartition, i64>,
    committed_at: Instant,
    ticks: Ticks,
}

/// The state of ticks: a claim holds once everything below its end offset was appended.
#[derive(Debug, Default)]
struct Ticks {
    due: Option<Instant>,
    /// Tokens of the tick under way, and the smallest append time of those acknowledged.
    under_way: Vec<u64>,
    acknowledged_us: Option<Micros>,
    /// Append time of the newest tick that is acknowledged everywhere.
    newest_us: Option<Micros>,
    /// End offsets asked after `newest_us`, not reached yet.
    claims: BTreeMap<TopicPartition, (i64, Micros)>,
    /// Largest record time read, where records carry their own.
    record_time_us: Option<Micros>,
    record_time_ticked: Option<Micros>,
}

impl<'a> Stand<'a> {
    fn new(shared: &'a Shared, settings: &'a NormalizeSettings) -> Result<Self, LogError> {
        let membership = Membership {
            group: group(&shared.group),
            topics: shared.topics.source.clone(),
            isolation: Isolation::ReadCommitted,
            instance: shared.instance.clone(),
        };
        let mut n_sources = 0;
        for topic in &shared.topics.source {
            n_sources += shared.log.describe(topic)?.0;
        }
        Ok(Self {
            shared,
            settings,
            single_source: n_sources == 1,
            catalogue: Catalogue::builtin(),
            decoder: JsonDecoder,
            n_partitions: shared.topics.partitions,
            member: shared.log.join(&membership)?,
            appender: shared.log.appender()?,
            reading: BTreeMap::new(),
            turns: VecDeque::new(),
            first_turn: 0,
            tokens: HashMap::new(),
            next_token: 0,
            acknowledged: BTreeMap::new(),
            committed_at: Instant::now(),
            ticks: Ticks::default(),
        })
    }

    fn work(&mut self) -> Result<(), LogError> {
        let mut records = Vec::new();
        while !self.shared.stopping() {
            for event in self.member.events(Duration::ZERO)? {
                self.follow(event)?;
            }
            self.take_outcomes(Duration::ZERO)?;
            if self.appender.in_flight() > IN_FLIGHT_MAX {
                self.take_outcomes(Duration::from_millis(10))?;
                continue;
            }
            self.gather(&mut records)?;
            if !records.is_empty() {
                self.turn(&records)?;
                records.clear();
            }
            self.tick()?;
            self.commit(false)?;
        }
        self.flush()?;
        self.commit(true)
    }

    fn follow(&mut self, event: MemberEvent) -> Result<(), LogError> {
        match event {
            MemberEvent::Assigned(partitions) => {
                let committed = self.member.committed(&partitions)?;
                let mut starts = Vec::new();
                for (partition, committed) in partitions.into_iter().zip(committed) {
                    let (first, _) = self.shared.log.offsets(&partition.topic, partition.partition)?;
                    // Without a committed offset: first start, at the earliest.
                    let start = committed.unwrap_or(first);
                    if start < first {
                        tracing::error!(
                            topic = partition.topic,
                            partition = partition.partition,
                            from = start,
                            to = first,
                            "source records were deleted before they were read: retention is shorter than the outage"
                        );
                    }
                    let start = start.max(first);
                    self.shared.statistics.set_position(
                        &group(&self.shared.group),
                        &partition.topic,
                        partition.partition,
                        start,
                    );
                    starts.push((partition, start));
                }
                self.reading.extend(starts.iter().cloned());
                self.member.start(&starts)
            }
            MemberEvent::Revoked(partitions) => {
                self.flush()?;
                self.commit(true)?;
                self.give_back(&partitions)
            }
            MemberEvent::Lost(partitions) => {
                self.flush()?;
                self.give_back(&partitions)
            }
        }
    }

    fn give_back(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        for partition in partitions {
            self.reading.remove(partition);
            self.acknowledged.remove(partition);
            self.ticks.claims.remove(partition);
        }
        self.member.stop(partitions)
    }

    fn gather(&mut self, records: &mut Vec<(TopicPartition, Record)>) -> Result<(), LogError> {
        let wait = IDLE_WAIT.min(self.until_tick());
        self.member.read(RECORDS_MAX, wait, records)?;
        if records.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + GATHER;
        while records.len() < RECORDS_MAX {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.member.read(RECORDS_MAX - records.len(), left, records)?;
        }
        // Events that came meanwhile may have taken partitions away.
        records.retain(|(partition, _)| self.reading.contains_key(partition));
        Ok(())
    }

    /// Decodes and normalizes what was gathered and appends it; rows of one source record stay in one batch.
    fn turn(&mut self, records: &[(TopicPartition, Record)]) -> Result<(), LogError> {
        let mut builders: BTreeMap<i32, ReadingBatchBuilder> = BTreeMap::new();
        let mut turn = Turn::default();
        let turn_number = self.first_turn + self.turns.len() as u64;
        for (partition, record) in records {
            self.record(partition, record, &mut builders, turn_number, &mut turn)?;
            let full = builders.iter().find(|(_, builder)| builder.len() >= ROWS_MAX).map(|(partition, _)| *partition);
            if let Some(full) = full
                && let Some(mut builder) = builders.remove(&full)
            {
                self.append_batch(full, &mut builder, turn_number, &mut turn)?;
            }
            let next = record.offset + 1;
            match turn.next_offsets.iter_mut().find(|(known, _)| known == partition) {
                Some((_, known)) => *known = next,
                None => turn.next_offsets.push((partition.clone(), next)),
            }
            self.reading.insert(partition.clone(), next);
            // Without the broker's append time there is nothing to measure from.
            if let Some(time) = record.append_us {
                match turn.measured.last_mut() {
                    Some((known, count)) if *known == time => *count += 1,
                    _ => turn.measured.push((time, 1)),
                }
            }
            if self.settings.record_clock {
                self.ticks.record_time_us = self.ticks.record_time_us.max(Some(record.time_us));
            }
        }
        for (partition, mut builder) in builders {
            self.append_batch(partition, &mut builder, turn_number, &mut turn)?;
        }
        if self.settings.record_clock {
            self.tick_record_time(turn_number, &mut turn)?;
        }
        self.turns.push_back(turn);
        Ok(())
    }

    fn record(
        &mut self,
        from: &TopicPartition,
        record: &Record,
        builders: &mut BTreeMap<i32, ReadingBatchBuilder>,
        turn_number: u64,
        turn: &mut Turn,
    ) -> Result<(), LogError> {
        let Some(value) = &record.value else {
            self.shared.statistics.read_record(1);
            self.shared.statistics.normalized(Outcome::Ignored, None);
            return Ok(());
        };
        let source = Source {
            topic: &from.topic,
            partition: from.partition,
            offset: record.offset,
            time_us: record.time_us,
            append_us: record.append_us,
        };
        let decoder = self.decoder;
        let decoded = decoder.decode(value);
        self.shared.statistics.read_record(decoded.len() as u64);
        for part in &decoded {
            let refused = match part {
                Ok(reading) => match normalize::normalize(reading, &source, self.catalogue) {
                    Ok(row) => {
                        if !self.settings.record_clock {
                            let age = source.time_us - row.event_time_us;
                            self.shared.statistics.latency.record(Stage::DataAge, None, age);
                        }
                        let partition = partition_of(row.patient, self.n_partitions);
                        builders.entry(partition).or_default().push(&row);
                        continue;
                    }
                    Err(refused) => Undecodable {
                        reason: refused.reason,
                        field: if reading.path.is_empty() {
                            refused.field.to_owned()
                        } else {
                            format!("{}.{}", reading.path, refused.field)
                        },
                        detail: refused.detail,
                        index: reading.index,
                    },
                },
                Err(undecodable) => undecodable.clone(),
            };
            self.dead_letter(&source, &refused, turn_number, turn)?;
        }
        Ok(())
    }

    fn dead_letter(
        &mut self,
        source: &Source<'_>,
        refused: &Undecodable,
        turn_number: u64,
        turn: &mut Turn,
    ) -> Result<(), LogError> {
        self.shared.statistics.normalized(Outcome::Quarantined, Some(refused.reason));
        let letter = DeadLetter {
            topic: source.topic,
            partition: source.partition,
            offset: source.offset,
            index: refused.index,
            reason: refused.reason.name(),
            field: &refused.field,
            detail: &refused.detail,
        };
        let record = Outgoing {
            topic: self.shared.topics.dead_letters.clone(),
            partition: 0,
            key: Some(format!("{}/{}", source.topic, source.partition).into_bytes()),
            value: Some(serde_json::to_vec(&letter).unwrap_or_default()),
            headers: vec![("reason".to_owned(), refused.reason.name().as_bytes().to_vec())],
            time_us: None,
        };
        self.append(&record, turn_number, turn)
    }

    fn append_batch(
        &mut self,
        partition: i32,
        builder: &mut ReadingBatchBuilder,
        turn_number: u64,
        turn: &mut Turn,
    ) -> Result<(), LogError> {
        if builder.is_empty() {
            return Ok(());
        }
        let topic = &self.shared.topics.canonical;
        let record = readings_record(topic, partition, &builder.finish(), &self.catalogue.hash)
            .map_err(|error| LogError::new(Remedy::Refuse, "writing a canonical batch", error.to_string()))?;
        self.append(&record, turn_number, turn)
    }

    fn append(&mut self, record: &Outgoing, turn_number: u64, turn: &mut Turn) -> Result<(), LogError> {
        let token = self.token();
        self.appender.append(record, token)?;
        self.tokens.insert(token, turn_number);
        turn.outstanding += 1;
        Ok(())
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn take_outcomes(&mut self, wait: Duration) -> Result<(), LogError> {
        let mut outcomes = Vec::new();
        self.appender.outcomes(wait, &mut outcomes);
        for (token, outcome) in outcomes {
            let appended = outcome?;
            if let Some(turn) = self.tokens.remove(&token) {
                let turn = usize::try_from(turn - self.first_turn).unwrap_or(usize::MAX);
                if let Some(turn) = self.turns.get_mut(turn) {
                    turn.outstanding -= 1;
                    if let Some(append_us) = appended.append_us {
                        for (time, count) in turn.measured.drain(..) {
                            let latency = append_us - time;
                            self.shared.statistics.latency.record_n(Stage::Normalize, None, latency, count);
                        }
                    }
                }
            } else {
                self.ticks.acknowledge(token, appended.append_us);
            }
        }
        while self.turns.front().is_some_and(|turn| turn.outstanding == 0) {
            self.first_turn += 1;
            if let Some(turn) = self.turns.pop_front() {
                for (partition, next) in turn.next_offsets {
                    let stage = group(&self.shared.group);
                    self.shared.statistics.set_position(&stage, &partition.topic, partition.partition, next);
                    self.acknowledged.insert(partition, next);
                }
            }
        }
        Ok(())
    }

    /// Waits until everything in flight is acknowledged.
    fn flush(&mut self) -> Result<(), LogError> {
        let deadline = Instant::now() + FLUSH_DEADLINE;
        while !self.turns.is_empty() {
            self.take_outcomes(Duration::from_millis(5))?;
            if Instant::now() > deadline {
                let step = "flushing the canonical log";
                return Err(LogError::new(Remedy::Restart, step, "appends are not acknowledged in time"));
            }
        }
        Ok(())
    }

    fn commit(&mut self, now: bool) -> Result<(), LogError> {
        if self.acknowledged.is_empty() || (!now && self.committed_at.elapsed() < COMMIT_EVERY) {
            return Ok(());
        }
        let positions: Vec<(TopicPartition, i64)> =
            self.acknowledged.iter().map(|(partition, next)| (partition.clone(), *next)).collect();
        self.committed_at = Instant::now();
        match self.member.commit(&positions) {
            Ok(()) => self.acknowledged.clear(),
            // What is not committed is committed with the next; at worst it is read again.
            Err(error) if error.remedy == Remedy::Retry && !now => {
                tracing::warn!(error = %error, "source offsets are not committed yet");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn until_tick(&self) -> Duration {
        self.ticks.due.map_or(IDLE_WAIT, |due| due.saturating_duration_since(Instant::now()))
    }

    /// Ends of the source partitions are asked after the tick before was acknowledged; what they claim holds once we have
    /// appended everything below them, however long we were paused.
    fn tick(&mut self) -> Result<(), LogError> {
        if self.settings.record_clock || self.ticks.due.is_some_and(|due| Instant::now() < due) {
            return Ok(());
        }
        self.ticks.due = Some(Instant::now() + self.settings.tick_every);
        if !self.ticks.under_way.is_empty() {
            return Ok(());
        }
        if let Some(asked_after) = self.ticks.newest_us {
            for partition in self.reading.keys() {
                if self.ticks.claims.contains_key(partition) {
                    continue;
                }
                match self.shared.log.offsets(&partition.topic, partition.partition) {
                    Ok((_, end)) => {
                        self.ticks.claims.insert(partition.clone(), (end, asked_after));
                    }
                    // Without an answer there is no claim: source clocks stand still, and nobody is called silent.
                    Err(error) if error.remedy == Remedy::Retry => break,
                    Err(error) => return Err(error),
                }
            }
        }
        let reached: Vec<TopicPartition> = self
            .ticks
            .claims
            .iter()
            .filter(|(partition, (end, _))| self.reading.get(*partition).is_some_and(|next| next >= end))
            .map(|(partition, _)| partition.clone())
            .collect();
        let mut claims = Vec::new();
        for partition in reached {
            if let Some((end_offset, time_us)) = self.ticks.claims.remove(&partition) {
                claims.push(TickClaim { topic: partition.topic, partition: partition.partition, end_offset, time_us });
            }
        }
        let control = ControlRecord { id: String::new(), control: Control::Tick { claims } };
        for partition in 0..self.n_partitions {
            let token = self.token();
            self.appender.append(&control_record(&self.shared.topics.canonical, partition, &control), token)?;
            self.ticks.under_way.push(token);
        }
        Ok(())
    }

    /// Where records carry their own time, the record clock moves in every canonical partition, also in those whose
    /// patients are silent. Only one source partition has an order that makes this the same in every run.
    fn tick_record_time(&mut self, turn_number: u64, turn: &mut Turn) -> Result<(), LogError> {
        let Some(time_us) = self.ticks.record_time_us.filter(|time| self.ticks.record_time_ticked < Some(*time)) else {
            return Ok(());
        };
        let Some((source, next)) = self.reading.iter().next().filter(|_| self.single_source) else {
            return Ok(());
        };
        let claim = TickClaim { topic: source.topic.clone(), partition: source.partition, end_offset: *next, time_us };
        let control = ControlRecord { id: String::new(), control: Control::Tick { claims: vec![claim] } };
        for partition in 0..self.n_partitions {
            self.append(&control_record(&self.shared.topics.canonical, partition, &control), turn_number, turn)?;
        }
        self.ticks.record_time_ticked = Some(time_us);
        Ok(())
    }
}

impl Ticks {
    fn acknowledge(&mut self, token: u64, append_us: Option<Micros>) {
        let Some(place) = self.under_way.iter().position(|known| *known == token) else {
            return;
        };
        self.under_way.swap_remove(place);
        self.acknowledged_us = match (self.acknowledged_us, append_us) {
            (Some(known), Some(append)) => Some(known.min(append)),
            (known, append) => known.or(append),
        };
        if self.under_way.is_empty() {
            self.newest_us = self.newest_us.max(self.acknowledged_us.take());
        }
    }
}
