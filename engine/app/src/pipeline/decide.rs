//! The decide stage: one thread, one state machine and one transactional producer per canonical partition.
//!
//! A new owner fences whoever worked before it, and only then reads the committed offset. Transitions and the offset
//! become visible in one transaction: at once when there is a transition, else every few seconds. The content of a
//! transaction is fixed before it is sent; what is not known to be committed is looked up and sent again or dropped, never
//! derived a second time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wardbell_connectors::canonical::{self, Canonical};
use wardbell_connectors::log::{
    GroupHandle, Isolation, LogError, Member, MemberEvent, Membership, Outgoing, PartitionReader, Progress, Record,
    Remedy, TopicPartition, Transactional,
};
use wardbell_core::partition::{Partition, Settings};
use wardbell_rules::RuleSet;
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Alert, CANARY_RULE, Measured};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::Control;

use super::control::{Numbered, Ownership};
use super::{BACKOFF_MAX, BACKOFF_MIN, Shared, says};
use crate::health::LoopHandle;
use crate::latency::{BUDGET, Stage};
use crate::sets::{Change, short};

/// Canonical records applied before transitions are committed; bounds the size of a transaction.
const RECORDS_MAX: usize = 500;
/// Longest wait for records; commits and stops are looked at in between.
const WAIT: Duration = Duration::from_millis(50);
/// A partition that fails this often in a row is reported as such; it goes on trying.
const FAILURES_REPORTED: u32 = 3;

pub(super) struct DecideSettings {
    pub commit_every: Duration,
}

/// The consumer group of this stage.
pub fn group(prefix: &str) -> String {
    prefix.to_owned()
}

/// The transactional id of a partition's owner.
pub fn transactional_id(prefix: &str, canonical: &str, partition: i32) -> String {
    format!("{prefix}-{canonical}-{partition}")
}

/// The loop of a partition's thread, as health names it.
fn loop_name(partition: i32) -> String {
    format!("partition {partition}")
}

/// Runs until the job stops.
pub(super) fn run(shared: &Shared, settings: &DecideSettings) {
    shared.supervise("decide", || {
        let membership = Membership {
            group: group(&shared.group),
            topics: vec![shared.topics.canonical.clone()],
            isolation: Isolation::ReadCommitted,
            instance: shared.instance.clone(),
        };
        let turning = shared.health.enter("decide");
        let waiting = turning.waiting("the broker, joining the group");
        let member = shared.log.join(&membership)?;
        drop(waiting);
        let (ended_tx, ended) = sync_channel(1_024);
        let mut owners = Owners { shared, settings, turning, member, running: HashMap::new(), ended_tx, ended };
        let result = owners.work();
        owners.end_all();
        result
    });
}

/// A partition in work.
struct Owner {
    finish: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// A partition's thread that ended with an error.
type Ended = (TopicPartition, LogError);

struct Owners<'a> {
    shared: &'a Shared,
    settings: &'a DecideSettings,
    turning: LoopHandle,
    member: Box<dyn Member>,
    running: HashMap<TopicPartition, Owner>,
    ended_tx: SyncSender<Ended>,
    ended: Receiver<Ended>,
}

impl Owners<'_> {
    fn work(&mut self) -> Result<(), LogError> {
        let mut failures: HashMap<TopicPartition, u32> = HashMap::new();
        while !self.shared.stopping() {
            self.turning.beat();
            for event in self.member.events(Duration::from_millis(50))? {
                match event {
                    MemberEvent::Assigned(partitions) => self.take_over(&partitions)?,
                    MemberEvent::Revoked(partitions) | MemberEvent::Lost(partitions) => {
                        // A lost partition's transaction is refused by the broker; its thread ends like the others.
                        self.end(&partitions);
                        self.member.stop(&partitions)?;
                    }
                }
            }
            while let Ok((partition, error)) = self.ended.try_recv() {
                self.start_again(&partition, &error, failures.entry(partition.clone()).or_default())?;
            }
            // A thread that ended without a word has panicked: its partition must not stay silent.
            let dead = |(_, owner): &(&TopicPartition, &Owner)| owner.thread.is_finished();
            let silent: Vec<TopicPartition> =
                self.running.iter().filter(dead).map(|(partition, _)| partition.clone()).collect();
            // At a stop they end because of it.
            if self.shared.stopping() {
                break;
            }
            for partition in silent {
                let step = format!("working on {}/{}", partition.topic, partition.partition);
                let error = LogError::new(Remedy::Restart, step, "its thread ended unexpectedly");
                self.start_again(&partition, &error, failures.entry(partition.clone()).or_default())?;
            }
        }
        Ok(())
    }

    /// A partition ended by itself: it begins again from what is committed, if it is still ours.
    fn start_again(
        &mut self,
        partition: &TopicPartition,
        error: &LogError,
        failures: &mut u32,
    ) -> Result<(), LogError> {
        let Some(owner) = self.running.remove(partition) else {
            return Ok(());
        };
        // A message of an earlier owner must not make us wait for a living one.
        owner.finish.store(true, Ordering::SeqCst);
        let _ = owner.thread.join();
        self.shared.statistics.partition_ended(partition.partition);
        self.shared.statistics.partition_failed(partition.partition);
        *failures += 1;
        self.shared.statistics.restarted("decide");
        tracing::warn!(partition = partition.partition, failures = *failures, error = %error, "partition starts again from what is committed");
        if failures.is_multiple_of(FAILURES_REPORTED) {
            tracing::error!(partition = partition.partition, failures = *failures, "partition keeps failing");
        }
        if error.remedy == Remedy::Refuse {
            return Err(LogError::new(Remedy::Refuse, error.step.clone(), error.what.clone()));
        }
        std::thread::sleep(BACKOFF_MIN);
        self.member.stop(std::slice::from_ref(partition))?;
        self.take_over(std::slice::from_ref(partition))
    }

    /// Fence first, all partitions at once; then read the committed offsets; then begin.
    fn take_over(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let _waiting = self.turning.waiting("the broker, taking partitions over");
        let (log, group_name, alerts) = (&self.shared.log, &self.shared.group, &self.shared.topics.alerts);
        let producers: Vec<Result<Box<dyn Transactional>, LogError>> = std::thread::scope(|scope| {
            let fence = |partition: &TopicPartition| {
                let id = transactional_id(group_name, &partition.topic, partition.partition);
                let target = TopicPartition::new(alerts, partition.partition);
                scope.spawn(move || {
                    let mut producer = log.transactional(&id)?;
                    producer.warm_up(&target)?;
                    Ok(producer)
                })
            };
            let waiting: Vec<_> = partitions.iter().map(fence).collect();
            let step = "taking over partitions";
            let broken = || LogError::new(Remedy::Restart, step, "a thread ended unexpectedly");
            waiting.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(broken()))).collect()
        });
        let committed = self.member.committed(partitions)?;
        let mut starts = Vec::new();
        for (partition, committed) in partitions.iter().zip(&committed) {
            let (first, _) = log.offsets(&partition.topic, partition.partition)?;
            if let Some(committed) = committed.filter(|committed| *committed < first) {
                let step = format!("taking over {}/{}", partition.topic, partition.partition);
                let what =
                    format!("committed is offset {committed}, but retention has deleted everything before {first}");
                return Err(LogError::new(Remedy::Refuse, step, what));
            }
            starts.push((partition.clone(), committed.unwrap_or(first)));
        }
        let readers = self.member.start_split(&starts)?;
        let handle = self.member.group();
        for (((partition, start), reader), producer) in starts.into_iter().zip(readers).zip(producers) {
            let stand = Stand::new(self.shared, self.settings, producer?, reader, handle.clone(), start);
            self.begin(partition, stand)?;
        }
        Ok(())
    }

    fn begin(&mut self, partition: TopicPartition, stand: Stand) -> Result<(), LogError> {
        let finish = Arc::new(AtomicBool::new(false));
        let (flag, ended, own) = (finish.clone(), self.ended_tx.clone(), partition.clone());
        let thread = std::thread::Builder::new()
            .name(loop_name(partition.partition))
            .spawn(move || {
                let mut stand = stand;
                if let Err(error) = stand.work(&flag) {
                    // The owner looks for this after joining as well; a full channel means it is stopping.
                    let _ = ended.try_send((own, error));
                }
            })
            .map_err(|error| LogError::new(Remedy::Refuse, "starting a partition's thread", error.to_string()))?;
        self.running.insert(partition, Owner { finish, thread });
        Ok(())
    }

    /// Lets partitions finish what they have in hand.
    fn end(&mut self, partitions: &[TopicPartition]) {
        let _waiting = self.turning.waiting("partitions that finish what they have in hand");
        for partition in partitions {
            if let Some(owner) = self.running.get(partition) {
                owner.finish.store(true, Ordering::SeqCst);
            }
        }
        for partition in partitions {
            if let Some(owner) = self.running.remove(partition) {
                let _ = owner.thread.join();
                self.shared.statistics.partition_ended(partition.partition);
            }
            // From here on it is another owner's, also if our thread panicked.
            self.shared.health.forget(&loop_name(partition.partition));
            let group = group(&self.shared.group);
            self.shared.statistics.released(&group, &partition.topic, partition.partition);
        }
    }

    fn end_all(&mut self) {
        let all: Vec<TopicPartition> = self.running.keys().cloned().collect();
        self.end(&all);
    }
}

/// What one partition works with.
struct Stand {
    shared: Shared,
    turning: LoopHandle,
    commit_every: Duration,
    catalogue: &'static Catalogue,
    producer: Box<dyn Transactional>,
    reader: Box<dyn PartitionReader>,
    group: GroupHandle,
    partition: Partition,
    /// The set in force; none before the first activation of the log.
    set: Option<Numbered>,
    ownership: Ownership,
    /// The partition begins somewhere inside its log.
    resumed: bool,
    /// Next canonical offset to apply.
    next_offset: i64,
    /// Append time of the newest record applied.
    newest_us: Option<Micros>,
    committed: i64,
    committed_at: Instant,
    /// Transitions decided and not committed.
    outbox: Outbox,
}

/// The fixed content of the next transaction.
#[derive(Debug, Default)]
struct Outbox {
    records: Vec<Outgoing>,
    /// When each was decided, for measuring.
    decided_us: Vec<Micros>,
}

impl Stand {
    fn new(
        shared: &Shared,
        settings: &DecideSettings,
        producer: Box<dyn Transactional>,
        reader: Box<dyn PartitionReader>,
        group: GroupHandle,
        start: i64,
    ) -> Self {
        let catalogue = Catalogue::builtin();
        let resumed = start > 0;
        if resumed {
            tracing::warn!(
                partition = reader.position().partition,
                offset = start,
                "windows start empty: no checkpoint is read in this version, windows reaching back before this offset are unknown"
            );
        }
        let number = reader.position().partition;
        // Site and clock are those of every published set; everything else comes into force with one.
        let decision = Settings { resumed, ..shared.sets.newest().set.settings.clone() };
        let mut stand = Self {
            shared: shared.clone(),
            turning: shared.health.enter(loop_name(number)),
            commit_every: settings.commit_every,
            catalogue,
            producer,
            reader,
            group,
            partition: Partition::new(decision, &RuleSet::new(Vec::new()), catalogue),
            set: None,
            ownership: shared.sets.own(number),
            resumed,
            next_offset: start,
            newest_us: None,
            committed: start,
            committed_at: Instant::now(),
            outbox: Outbox::default(),
        };
        if resumed {
            // Which activation came before is not known without a checkpoint.
            stand.put_in_force(shared.sets.newest(), false);
        }
        stand
    }

    fn work(&mut self, finish: &AtomicBool) -> Result<(), LogError> {
        let mut records = Vec::new();
        let stopping = |shared: &Shared| finish.load(Ordering::SeqCst) || shared.stopping();
        self.tell();
        // The group's coordinator is looked up here, for the offset alone, and not for the first alert.
        self.commit(finish)?;
        while !stopping(&self.shared) {
            self.turning.beat();
            records.clear();
            match self.reader.read(RECORDS_MAX, WAIT, &mut records) {
                Ok(()) => {}
                // The client reconnects by itself; what was read so far is applied.
                Err(error) if error.remedy == Remedy::Retry => {
                    self.shared.broker_away(&error);
                    tracing::warn!(partition = self.number(), error = %error, "reading the canonical log");
                    std::thread::sleep(WAIT);
                }
                Err(error) => return Err(error),
            }
            let mut latencies_us = Vec::new();
            let mut refused = None;
            for record in &records {
                self.turning.beat();
                match self.apply(record, finish) {
                    Ok(latency_us) => latencies_us.extend(latency_us),
                    Err(error) => {
                        refused = Some(error);
                        break;
                    }
                }
            }
            self.shared.statistics.latency.record_all(Stage::Decide, latencies_us);
            if let Some(error) = refused {
                // What was decided before that record is not lost with it.
                if self.next_offset > self.committed {
                    self.commit(finish)?;
                }
                self.tell();
                return Err(error);
            }
            self.ownership.settle();
            let due = self.next_offset > self.committed && self.committed_at.elapsed() >= self.commit_every;
            if !self.outbox.records.is_empty() || due {
                self.commit(finish)?;
            }
            if !records.is_empty() {
                self.tell();
            }
        }
        if self.next_offset > self.committed {
            self.commit(finish)?;
        }
        self.tell();
        Ok(())
    }

    fn number(&self) -> i32 {
        self.reader.position().partition
    }

    fn tell(&self) {
        let statistics = &self.shared.statistics;
        let position = self.reader.position();
        statistics.decided(position.partition, self.partition.outcomes());
        let group = group(&self.shared.group);
        statistics.finished(&group, &position.topic, position.partition, self.next_offset, self.newest_us);
    }

    /// Applies one canonical record; what it decides goes into the outbox. Gives how long readings took until here.
    ///
    /// # Errors
    /// An activation that cannot be followed here; nothing of the record was applied.
    fn apply(&mut self, record: &Record, finish: &AtomicBool) -> Result<Option<Micros>, LogError> {
        let canonical_us = record.append_us.unwrap_or(record.time_us);
        let mut latency_us = None;
        match canonical::read(record, &self.catalogue.hash) {
            Ok(Canonical::Readings(batch)) => {
                if self.set.is_none() {
                    tracing::warn!(
                        partition = self.number(),
                        offset = record.offset,
                        "readings stand before the first activation of the log; they are decided with the newest set"
                    );
                    self.put_in_force(self.shared.sets.newest(), false);
                }
                if let Err(error) = self.partition.apply(&batch, canonical_us) {
                    self.unreadable(record, &error);
                }
                latency_us = Some(self.shared.clock.now_us() - canonical_us);
            }
            Ok(Canonical::Control(control)) => {
                if let Control::Activate { number, hash } = &control.control {
                    self.activate(*number, hash, finish)?;
                }
                self.partition.apply_control(&control);
            }
            Err(error) => self.unreadable(record, &error),
        }
        self.next_offset = record.offset + 1;
        self.newest_us = record.append_us;
        let mut decided = self.partition.take_decided();
        decided.retain(|decided| says(&decided.content, self.number(), self.shared.topics.partitions));
        if decided.is_empty() {
            return Ok(latency_us);
        }
        let now = self.shared.clock.now_us();
        for decided in decided {
            let basis_us = decided.basis_us.unwrap_or(canonical_us);
            let delayed = now - basis_us > BUDGET;
            let content = decided.content;
            let statistics = &self.shared.statistics;
            let is_canary = content.rule.id == CANARY_RULE;
            if !is_canary {
                statistics.transition(&content.rule.id, content.transition, content.kind, content.priority, delayed);
            }
            let measured = Measured {
                basis_us,
                canonical_us,
                decided_us: now,
                source: decided.source,
                partition: self.number(),
                offset: record.offset,
                delayed,
            };
            let id = content.id.clone();
            let alert = Alert::new(content, measured);
            self.outbox.records.push(Outgoing {
                topic: self.shared.topics.alerts.clone(),
                partition: self.number(),
                key: Some(alert.data.content.patient.clone().into_bytes()),
                value: serde_json::to_vec(&alert).ok(),
                headers: vec![("wardbell".to_owned(), b"alert/1".to_vec()), ("id".to_owned(), id.into_bytes())],
                time_us: None,
            });
            self.outbox.decided_us.push(now);
        }
        Ok(latency_us)
    }

    /// Follows an activation that stands in the log; an older or equal number changes nothing.
    fn activate(&mut self, number: u64, hash: &str, finish: &AtomicBool) -> Result<(), LogError> {
        if self.partition.in_force().is_some_and(|(newest, _)| newest >= number) {
            self.ownership.is_in_force(number, true);
            return Ok(());
        }
        let waiting = self.turning.waiting("an activated rule set, from the control topic");
        let give_up = || finish.load(Ordering::SeqCst) || self.shared.stopping();
        let set = self.shared.sets.get(number, hash, &give_up)?;
        drop(waiting);
        self.put_in_force(Numbered { number, set }, true);
        Ok(())
    }

    fn put_in_force(&mut self, next: Numbered, from_log: bool) {
        let Numbered { number, set } = &next;
        let settings = Settings { resumed: self.resumed, ..set.settings.clone() };
        self.partition.activate(*number, &set.hash, &set.rules, settings);
        self.shared.statistics.active_set(self.number(), *number, &set.hash);
        self.ownership.is_in_force(*number, from_log);
        if self.shared.sets.is_first_to_tell(*number) {
            let change = match &self.set {
                Some(before) => Change::between(&before.set, set).in_one_line(),
                None => format!("{} rules", set.rules.rules.len()),
            };
            tracing::info!(number, set = short(&set.hash), change, "a rule set is in force");
        }
        self.set = Some(next);
    }

    fn unreadable(&self, record: &Record, error: &dyn std::error::Error) {
        self.shared.statistics.unreadable();
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        tracing::error!(
            partition = self.number(),
            offset = record.offset,
            error = %error,
            cause,
            "a canonical record cannot be read and is passed over"
        );
    }

    /// Commits the outbox and the offset together, again and again until it is known to be done or not ours any more.
    fn commit(&mut self, finish: &AtomicBool) -> Result<(), LogError> {
        let mut backoff = BACKOFF_MIN;
        let mut unknown = false;
        loop {
            let waiting = self.turning.waiting("the broker, committing a transaction");
            let attempt = if unknown { self.was_committed() } else { self.try_commit() };
            drop(waiting);
            let error = match attempt {
                Ok(true) => break,
                // It is known now that nothing of it is visible: the same content is sent again.
                Ok(false) => {
                    unknown = false;
                    continue;
                }
                Err(error) => error,
            };
            match error.remedy {
                Remedy::Retry => self.shared.broker_away(&error),
                Remedy::Restart => unknown = true,
                Remedy::Fenced | Remedy::Refuse => return Err(error),
            }
            let what = if unknown { "looking up whether it was committed" } else { "it is sent again" };
            tracing::warn!(partition = self.number(), error = %error, "the transaction failed: {what}");
            if finish.load(Ordering::SeqCst) {
                return Err(error);
            }
            let _waiting = self.turning.waiting("a pause before the next attempt to commit");
            std::thread::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        self.shared.broker_answers();
        let now = self.shared.clock.now_us();
        for decided_us in self.outbox.decided_us.drain(..) {
            self.shared.statistics.latency.record(Stage::Commit, None, now - decided_us);
        }
        self.outbox.records.clear();
        self.committed = self.next_offset;
        self.committed_at = Instant::now();
        Ok(())
    }

    fn try_commit(&mut self) -> Result<bool, LogError> {
        let progress =
            Progress { group: &self.group, position: self.reader.position().clone(), next_offset: self.next_offset };
        self.producer.commit(&self.outbox.records, Some(&progress)).map(|()| true)
    }

    /// A new producer ends whatever the old one left open; then the committed offset tells.
    fn was_committed(&mut self) -> Result<bool, LogError> {
        let position = self.reader.position().clone();
        let id = transactional_id(&self.shared.group, &position.topic, position.partition);
        self.producer = self.shared.log.transactional(&id)?;
        let committed = self.shared.log.committed(&group(&self.shared.group), std::slice::from_ref(&position))?;
        Ok(committed.first().copied().flatten().is_some_and(|committed| committed >= self.next_offset))
    }
}
