//! The normalize stage: source records in, canonical batches, dead letters and ticks out.
//!
//! Without transactions and their stalls: appends are idempotent and gapless per partition, and a source offset is
//! committed only when everything before it is acknowledged in all partitions. A crash repeats work; the decide stage
//! drops what it has seen by its source position. Any failed append ends this producer and starts again from the
//! committed offset, so a series is never continued behind a gap.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use serde::Serialize;
use wardbell_connectors::canonical::{control_record, normalized_with, readings_record};
use wardbell_connectors::decode::{Decoder, Part, Undecodable};
use wardbell_connectors::log::{
    Appender, Isolation, LogError, Member, MemberEvent, Membership, Outgoing, Record, Remedy, TopicPartition,
};
use wardbell_connectors::partitioner::partition_of;
use wardbell_connectors::runtime::{self, Instant, fault};
use wardbell_core::normalize::{self, Normalized, Source};
use wardbell_core::partition::CANARY;
use wardbell_schemas::Micros;
use wardbell_schemas::alert::Priority;
use wardbell_schemas::catalogue::{Catalogue, SignalIndex};
use wardbell_schemas::control::{Condition, Control, ControlRecord, TickClaim};
use wardbell_schemas::decoded::{DecodedControl, DecodedReading};
use wardbell_schemas::outcome::Outcome;
use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};

use super::statistics::Tally;
use super::{BROKER, FEED_RULE, Shared};
use crate::connector::unmapped::Unmapped;
use crate::connector::{Connector, normalizer_hash, undecodable};
use crate::health::LoopHandle;
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
/// A broker that answers acknowledges an append within this, or the producer has lost it.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(20);
/// Offsets are committed this often at most.
const COMMIT_EVERY: Duration = Duration::from_millis(500);
/// Who stood still for so long after a tick claims nothing before the next one: somebody else may have gone on meanwhile,
/// and an old claim would set source clocks back.
const CLAIM_MAX: Duration = Duration::from_secs(5);
/// A stop waits this long for what is in flight.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);
/// Labels and units that nothing explains are logged this often at most.
const UNMAPPED_EVERY: Duration = Duration::from_secs(60);
/// And so many of them, those met most often.
const UNMAPPED_TOLD: usize = 20;

pub(super) struct NormalizeSettings {
    pub record_clock: bool,
    pub tick_every: Duration,
    /// Time between two canaries; `None`: none are sent.
    pub canary_every: Option<Duration>,
    pub connectors: Vec<Connector>,
    /// For topics that no connector names.
    pub canonical: Connector,
}

impl NormalizeSettings {
    fn connector(&self, topic: &str) -> &Connector {
        let of_topic = |connector: &&Connector| connector.topics.iter().any(|known| known == topic);
        self.connectors.iter().find(of_topic).unwrap_or(&self.canonical)
    }
}

/// The consumer group of this stage.
pub fn group(prefix: &str) -> String {
    format!("{prefix}-normalize")
}

/// Runs until the job stops.
pub(super) fn run(shared: &Shared, settings: &NormalizeSettings) {
    shared.supervise("normalize", || {
        let mut stand = Stand::new(shared, settings)?;
        let ended = stand.work();
        if shared.leave_on_exit && shared.stopping() {
            stand.member.leave();
        }
        ended
    });
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
    /// Next offset of each source partition once this turn is done, and the append time of its newest record.
    next_offsets: Vec<(TopicPartition, i64, Option<Micros>)>,
    tally: Tally,
    /// Source append times of its records, for measuring: (time, records).
    measured: Vec<(Micros, u64)>,
}

/// What the stage holds between a start and the next failure.
struct Stand<'a> {
    shared: &'a Shared,
    settings: &'a NormalizeSettings,
    turning: LoopHandle,
    catalogue: &'static Catalogue,
    /// Names the connectors' files, in every batch.
    normalizer: String,
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
    /// When each token that is not acknowledged was handed over; and when the broker was last known to be away.
    sent: BTreeMap<u64, Instant>,
    away_at: Instant,
    acknowledged: BTreeMap<TopicPartition, i64>,
    committed_at: Instant,
    ticks: Ticks,
    canaries_due: Instant,
    /// Labels and units that nothing explains, since they were last told.
    unmapped: Unmapped,
    unmapped_told: Option<Instant>,
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
    /// When that became known.
    newest_at: Option<Instant>,
    /// End offsets asked after `newest_us`, not reached yet.
    claims: BTreeMap<TopicPartition, (i64, Micros)>,
    /// Append time of the newest record read of each source partition: its clock stands there already.
    read_us: BTreeMap<TopicPartition, Micros>,
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
        let turning = shared.health.enter("normalize");
        let waiting = turning.waiting("the broker, joining the group");
        let mut n_sources = 0;
        for topic in &shared.topics.source {
            n_sources += shared.log.describe(topic)?.0;
        }
        let member = shared.log.join(&membership)?;
        shared.notices.tell_again();
        let appender = shared.log.appender()?;
        drop(waiting);
        Ok(Self {
            shared,
            settings,
            turning,
            single_source: n_sources == 1,
            catalogue: Catalogue::builtin(),
            normalizer: normalizer_hash(&settings.connectors),
            n_partitions: shared.topics.partitions,
            member,
            appender,
            reading: BTreeMap::new(),
            turns: VecDeque::new(),
            first_turn: 0,
            tokens: HashMap::new(),
            next_token: 0,
            sent: BTreeMap::new(),
            away_at: Instant::now(),
            acknowledged: BTreeMap::new(),
            committed_at: Instant::now(),
            ticks: Ticks::default(),
            canaries_due: Instant::now(),
            unmapped: Unmapped::default(),
            unmapped_told: None,
        })
    }

    fn work(&mut self) -> Result<(), LogError> {
        let mut records = Vec::new();
        while !self.shared.stopping() {
            self.turning.beat();
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
            self.send_canaries()?;
            self.write_notices()?;
            self.commit(false)?;
        }
        self.flush()?;
        self.commit(true)
    }

    fn follow(&mut self, event: MemberEvent) -> Result<(), LogError> {
        let _waiting = self.turning.waiting("the broker, following an assignment");
        match event {
            MemberEvent::Assigned(partitions) => {
                let committed = self.member.committed(&partitions)?;
                let mut starts = Vec::new();
                for (partition, committed) in partitions.into_iter().zip(committed) {
                    let (first, end) = self.shared.log.offsets(&partition.topic, partition.partition)?;
                    let stage = group(&self.shared.group);
                    let before = self.shared.statistics.position(&stage, &partition.topic, partition.partition);
                    // Without a committed offset: first start, at the earliest. With a topic its offsets go, too: then only
                    // we know how far it was read.
                    let mut start = committed.unwrap_or(if before > end { before } else { first });
                    if start > end {
                        tracing::error!(
                            topic = partition.topic,
                            partition = partition.partition,
                            read_to = start,
                            end,
                            "the source ends before what was read of it: it was made anew; it is read from its beginning"
                        );
                        let detail = format!("was made anew: it ends at {end}, and was read up to {start}");
                        self.goes_on_from(&partition, first, &detail)?;
                        start = first;
                    }
                    if start < first {
                        self.tell_lost(&partition, start, first)?;
                        start = first;
                    }
                    self.shared.statistics.set_position(&stage, &partition.topic, partition.partition, start);
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

    /// The source is read from another offset than what is committed. Everybody is told why through the log, in the
    /// partition that speaks for the feed; the offset is committed once that stands there.
    fn goes_on_from(&mut self, partition: &TopicPartition, start: i64, detail: &str) -> Result<(), LogError> {
        let key = format!("{}/{}", partition.topic, partition.partition);
        let canonical = partition_of(&key, self.n_partitions);
        // Told again after a failure, it is the same record.
        let id = format!("{FEED_RULE}/{key}/{detail}");
        let condition = Condition {
            rule: FEED_RULE.to_owned(),
            priority: Priority::High,
            holds: true,
            at_us: self.shared.clock.now_us(),
            detail: format!("source {key} {detail}"),
            key,
        };
        let record = ControlRecord { id, control: Control::Condition(condition) };
        let mut turn = Turn { next_offsets: vec![(partition.clone(), start, None)], ..Turn::default() };
        let turn_number = self.first_turn + self.turns.len() as u64;
        self.append(&control_record(&self.shared.topics.canonical, canonical, &record), turn_number, &mut turn)?;
        self.turns.push_back(turn);
        Ok(())
    }

    /// Retention deleted records that were not read; what comes after them is.
    fn tell_lost(&mut self, partition: &TopicPartition, from: i64, to: i64) -> Result<(), LogError> {
        let TopicPartition { topic, partition: number } = partition;
        tracing::error!(
            topic,
            partition = number,
            from,
            to,
            "source records were deleted before they were read: retention is shorter than the outage"
        );
        self.shared.statistics.lost_records(topic, *number, from, to);
        self.goes_on_from(partition, to, &format!("lost records {from} to {}: deleted before they were read", to - 1))
    }

    fn give_back(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        for partition in partitions {
            self.shared.statistics.released(&group(&self.shared.group), &partition.topic, partition.partition);
            self.reading.remove(partition);
            self.acknowledged.remove(partition);
            self.ticks.claims.remove(partition);
            self.ticks.read_us.remove(partition);
        }
        self.member.stop(partitions)
    }

    fn gather(&mut self, records: &mut Vec<(TopicPartition, Record)>) -> Result<(), LogError> {
        let wait = IDLE_WAIT.min(self.until_tick());
        self.member.read(RECORDS_MAX, wait, records)?;
        if records.is_empty() {
            return Ok(());
        }
        if records.len() < RECORDS_MAX {
            // One sleep and one look, not a wake-up for each record that comes meanwhile.
            runtime::sleep(GATHER);
            self.member.read(RECORDS_MAX - records.len(), Duration::ZERO, records)?;
        }
        // Events that came meanwhile may have taken partitions away.
        records.retain(|(partition, _)| self.reading.contains_key(partition));
        Ok(())
    }

    /// Decodes and normalizes what was gathered and appends it; rows of one source record stay in one batch.
    fn turn(&mut self, records: &[(TopicPartition, Record)]) -> Result<(), LogError> {
        let mut turn = Turn::default();
        let result = self.fill(records, &mut turn);
        self.tell_unmapped(&turn.tally.unmapped);
        self.shared.statistics.add(std::mem::take(&mut turn.tally));
        result?;
        if fault::is_removed("source offsets wait for acknowledgment") {
            let next = |(partition, next, _): &(TopicPartition, i64, Option<Micros>)| (partition.clone(), *next);
            self.acknowledged.extend(turn.next_offsets.iter().map(next));
            self.commit(true)?;
        }
        self.turns.push_back(turn);
        Ok(())
    }

    fn fill(&mut self, records: &[(TopicPartition, Record)], turn: &mut Turn) -> Result<(), LogError> {
        let mut builders: BTreeMap<i32, ReadingBatchBuilder> = BTreeMap::new();
        let turn_number = self.first_turn + self.turns.len() as u64;
        for (partition, record) in records {
            fault::check("decode.before")?;
            self.record(partition, record, &mut builders, turn_number, turn)?;
            fault::check("decode.after")?;
            let full = builders.iter().find(|(_, builder)| builder.len() >= ROWS_MAX).map(|(partition, _)| *partition);
            if let Some(full) = full
                && let Some(mut builder) = builders.remove(&full)
            {
                self.append_batch(full, &mut builder, turn_number, turn)?;
            }
            let next = record.offset + 1;
            match turn.next_offsets.iter_mut().find(|(known, ..)| known == partition) {
                Some((_, known, append_us)) => (*known, *append_us) = (next, record.append_us),
                None => turn.next_offsets.push((partition.clone(), next, record.append_us)),
            }
            self.reading.insert(partition.clone(), next);
            if let Some(time) = record.append_us {
                self.ticks.read_us.insert(partition.clone(), time);
            }
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
            self.append_batch(partition, &mut builder, turn_number, turn)?;
        }
        if self.settings.record_clock {
            self.tick_record_time(turn_number, turn)?;
        }
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
        turn.tally.records += 1;
        let Some(value) = &record.value else {
            turn.tally.readings += 1;
            turn.tally.normalized(Outcome::Ignored, None);
            return Ok(());
        };
        let source = Source {
            topic: &from.topic,
            partition: from.partition,
            offset: record.offset,
            time_us: record.time_us,
            append_us: record.append_us,
        };
        let settings = self.settings;
        let connector = settings.connector(source.topic);
        for part in connector.decode(value) {
            match part {
                Ok(Part::Reading(reading)) => {
                    self.reading(&reading, connector, &source, builders, turn_number, turn)?;
                }
                Ok(Part::Control(control)) => {
                    self.request(&control, connector, &source, builders, turn_number, turn)?;
                }
                Err(undecodable) => self.dead_letter(&source, &undecodable, turn_number, turn)?,
            }
        }
        Ok(())
    }

    fn reading(
        &mut self,
        reading: &DecodedReading<'_>,
        connector: &Connector,
        source: &Source<'_>,
        builders: &mut BTreeMap<i32, ReadingBatchBuilder>,
        turn_number: u64,
        turn: &mut Turn,
    ) -> Result<(), LogError> {
        let rows = match normalize::normalize(reading, source, self.catalogue, &connector.profile) {
            Ok(Normalized::Reading(row)) => {
                self.accept(&row, builders, turn);
                return Ok(());
            }
            Ok(Normalized::Parts(parts)) => parts,
            Ok(Normalized::Ignored) => {
                turn.tally.readings += 1;
                turn.tally.normalized(Outcome::Ignored, None);
                return Ok(());
            }
            Err(refused) => vec![Err(refused)],
        };
        for row in rows {
            match row {
                Ok(row) => self.accept(&row, builders, turn),
                Err(refused) => {
                    turn.tally.unmapped.note(reading, &refused);
                    self.dead_letter(source, &undecodable(reading, refused), turn_number, turn)?;
                }
            }
        }
        Ok(())
    }

    fn accept(&self, row: &ReadingRow<'_>, builders: &mut BTreeMap<i32, ReadingBatchBuilder>, turn: &mut Turn) {
        turn.tally.readings += 1;
        if !self.settings.record_clock {
            turn.tally.ages_us.push(row.source_time_us - row.event_time_us);
        }
        builders.entry(partition_of(row.patient, self.n_partitions)).or_default().push(row);
    }

    /// Appends a request as a control record, behind everything of its partition that was read before it.
    fn request(
        &mut self,
        control: &DecodedControl<'_>,
        connector: &Connector,
        source: &Source<'_>,
        builders: &mut BTreeMap<i32, ReadingBatchBuilder>,
        turn_number: u64,
        turn: &mut Turn,
    ) -> Result<(), LogError> {
        match normalize::control(control, source, &connector.profile) {
            Ok(Some(requested)) => {
                let partition = partition_of(requested.patient, self.n_partitions);
                if let Some(mut builder) = builders.remove(&partition) {
                    self.append_batch(partition, &mut builder, turn_number, turn)?;
                }
                let record = control_record(&self.shared.topics.canonical, partition, &requested.record);
                turn.tally.requests += 1;
                self.append(&record, turn_number, turn)
            }
            Ok(None) => {
                turn.tally.readings += 1;
                turn.tally.normalized(Outcome::Ignored, None);
                Ok(())
            }
            Err(refused) => {
                let (reason, field) = (refused.reason, refused.field.to_owned());
                let fault = Undecodable { reason, field, detail: refused.detail, index: control.index };
                self.dead_letter(source, &fault, turn_number, turn)
            }
        }
    }

    /// Labels and units that nothing explains: told when the first comes, then once a minute, with their counts.
    fn tell_unmapped(&mut self, met: &Unmapped) {
        if !met.is_empty() {
            self.unmapped.merge(met.clone());
        }
        if self.unmapped.is_empty() || self.unmapped_told.is_some_and(|told| told.elapsed() < UNMAPPED_EVERY) {
            return;
        }
        let (entries, further) = std::mem::take(&mut self.unmapped).top(UNMAPPED_TOLD);
        for entry in entries {
            tracing::warn!(
                kind = entry.kind.name(),
                text = entry.text,
                count = entry.count,
                "nothing explains it: readings with it are dead letters; the connector's file can say what it is"
            );
        }
        if further > 0 {
            tracing::warn!(count = further, "further labels and units that nothing explains");
        }
        self.unmapped_told = Some(Instant::now());
    }

    fn dead_letter(
        &mut self,
        source: &Source<'_>,
        refused: &Undecodable,
        turn_number: u64,
        turn: &mut Turn,
    ) -> Result<(), LogError> {
        turn.tally.readings += 1;
        turn.tally.normalized(Outcome::Quarantined, Some(refused.reason));
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
        let record = self.batch_record(partition, builder)?;
        self.append(&record, turn_number, turn)
    }

    fn batch_record(&self, partition: i32, builder: &mut ReadingBatchBuilder) -> Result<Outgoing, LogError> {
        let topic = &self.shared.topics.canonical;
        readings_record(topic, partition, &builder.finish(), &self.catalogue.hash)
            .map(|record| normalized_with(record, &self.normalizer))
            .map_err(|error| LogError::new(Remedy::Refuse, "writing a canonical batch", error.to_string()))
    }

    fn append(&mut self, record: &Outgoing, turn_number: u64, turn: &mut Turn) -> Result<(), LogError> {
        let token = self.token();
        {
            let _waiting = self.turning.waiting("a place in the producer's queue");
            self.appender.append(record, token)?;
        }
        self.tokens.insert(token, turn_number);
        turn.outstanding += 1;
        Ok(())
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.sent.insert(self.next_token, Instant::now());
        self.next_token
    }

    fn take_outcomes(&mut self, wait: Duration) -> Result<(), LogError> {
        let mut outcomes = Vec::new();
        self.appender.outcomes(wait, &mut outcomes);
        for (token, outcome) in outcomes {
            let appended = outcome?;
            self.sent.remove(&token);
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
                for (partition, next, append_us) in turn.next_offsets {
                    let stage = group(&self.shared.group);
                    let statistics = &self.shared.statistics;
                    statistics.finished(&stage, &partition.topic, partition.partition, next, append_us);
                    self.acknowledged.insert(partition, next);
                }
            }
        }
        self.look_for_silence()
    }

    /// A producer may wait for ever for what the broker has long forgotten, as after a crash of the broker.
    fn look_for_silence(&mut self) -> Result<(), LogError> {
        if self.shared.health.stands(BROKER) {
            self.away_at = Instant::now();
        }
        let oldest = self.sent.first_key_value().map(|(_, sent)| sent.elapsed().min(self.away_at.elapsed()));
        if oldest.is_none_or(|silent| silent < ACKNOWLEDGED_WITHIN) {
            return Ok(());
        }
        let what = "nothing comes back although the broker answers; a new producer appends it again";
        Err(LogError::new(Remedy::Restart, "appending to the canonical log", what))
    }

    /// Waits until everything in flight is acknowledged.
    fn flush(&mut self) -> Result<(), LogError> {
        let _waiting = self.turning.waiting("acknowledgments of the canonical log");
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
        let waiting = self.turning.waiting("the broker, committing source offsets");
        let committed = self.member.commit(&positions);
        drop(waiting);
        match committed {
            Ok(()) => {
                self.acknowledged.clear();
                self.shared.broker_answers();
            }
            // What is not committed is committed with the next; at worst it is read again.
            Err(error) if error.remedy == Remedy::Retry && !now => {
                self.shared.broker_away(&error);
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
            let _waiting = self.turning.waiting("the broker, asking for the ends of source partitions");
            for partition in self.reading.keys() {
                if self.ticks.claims.contains_key(partition) {
                    continue;
                }
                match self.shared.log.offsets(&partition.topic, partition.partition) {
                    Ok((_, end)) => {
                        self.ticks.claims.insert(partition.clone(), (end, asked_after));
                    }
                    // Without an answer there is no claim: source clocks stand still, and nobody is called silent.
                    Err(error) if error.remedy == Remedy::Retry => {
                        self.shared.broker_away(&error);
                        break;
                    }
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
        let stood_still = self.ticks.newest_at.is_some_and(|at| at.elapsed() > CLAIM_MAX);
        for partition in reached {
            if let Some((end_offset, asked_us)) = self.ticks.claims.remove(&partition) {
                if stood_still {
                    continue;
                }
                // Older than the records that were read meanwhile, it would set the clock back.
                let read = self.ticks.read_us.get(&partition).filter(|read_us| **read_us > asked_us);
                let (end_offset, time_us) = match (read, self.reading.get(&partition)) {
                    (Some(read_us), Some(next)) => (*next, *read_us),
                    _ => (end_offset, asked_us),
                };
                // As if the clock of this machine decided, which is ahead: only to show what that would cost.
                let ahead_us = self.shared.clock.now_us() + 2_000_000;
                let time_us = if fault::is_removed("truthful ticks") { ahead_us } else { time_us };
                claims.push(TickClaim { topic: partition.topic, partition: partition.partition, end_offset, time_us });
            }
        }
        let control = ControlRecord { id: String::new(), control: Control::Tick { claims } };
        fault::check("tick.before")?;
        for partition in 0..self.n_partitions {
            let token = self.token();
            self.appender.append(&control_record(&self.shared.topics.canonical, partition, &control), token)?;
            self.ticks.under_way.push(token);
        }
        fault::check("tick.after")?;
        Ok(())
    }

    /// One canary reading into every canonical partition, from the one instance that reads the first source partition:
    /// it has to come out of every sink's queue as an alert nobody sees. Its number rises with time, so that one written
    /// again is dropped like any other reading.
    fn send_canaries(&mut self) -> Result<(), LogError> {
        let Some(every) = self.settings.canary_every.filter(|_| Instant::now() >= self.canaries_due) else {
            return Ok(());
        };
        self.canaries_due = Instant::now() + every;
        let Some(first) = self.shared.topics.source.first() else {
            return Ok(());
        };
        if !self.reading.contains_key(&TopicPartition::new(first, 0)) {
            return Ok(());
        }
        let now_us = self.shared.clock.now_us();
        for partition in 0..self.n_partitions {
            let name = format!("canary-{partition}");
            let mut builder = ReadingBatchBuilder::default();
            builder.push(&ReadingRow {
                patient: &name,
                device: CANARY,
                signal: SignalIndex(0),
                method: "-",
                value: None,
                quality: Quality::Test,
                reason: Reason::None,
                event_time_us: now_us,
                source_time_us: now_us,
                append_time_us: None,
                source_topic: CANARY,
                source_partition: partition,
                source_offset: now_us,
                source_index: 0,
                comparator: Comparator::None,
                change: Change::None,
                policies: Policies::NONE,
            });
            let record = self.batch_record(partition, &mut builder)?;
            let token = self.token();
            self.appender.append(&record, token)?;
        }
        Ok(())
    }

    /// What this job noticed about itself becomes part of the log, in the partition of its key.
    fn write_notices(&mut self) -> Result<(), LogError> {
        for condition in self.shared.notices.take() {
            let partition = partition_of(&condition.key, self.n_partitions);
            let id = format!("{}/{}/{}/{}", condition.rule, condition.key, condition.at_us, condition.holds);
            let control = ControlRecord { id, control: Control::Condition(condition) };
            let token = self.token();
            self.appender.append(&control_record(&self.shared.topics.canonical, partition, &control), token)?;
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
            // Not the largest: a broker's clock can be set back.
            (self.newest_us, self.newest_at) = (self.acknowledged_us.take(), Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_is_written_as_the_frozen_one() {
        let letter = DeadLetter {
            topic: "devices",
            partition: 2,
            offset: 4,
            index: 3,
            reason: "E_NUM_LOCALE",
            field: "readings[3].value",
            detail: "a comma in a number",
        };
        let frozen = include_str!("../../../../schemas/samples/dead-letter-source.json").trim_end();
        assert_eq!(serde_json::to_string(&letter).expect("plain data"), frozen);
    }
}
