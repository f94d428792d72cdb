//! One partition at work: replay in silence, then apply, commit, and keep checkpoints.
//!
//! Transitions and the offset become visible in one transaction: at once when there is a transition, else every few
//! seconds. The content of a transaction is fixed before it is sent; what is not known to be committed is looked up and sent
//! again or dropped, never derived a second time.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wardbell_connectors::canonical::{self, Canonical};
use wardbell_connectors::log::{
    GroupHandle, LogError, Outgoing, PartitionReader, Progress, Record, Remedy, Transactional,
};
use wardbell_connectors::runtime::{self, Instant, fault};
use wardbell_core::partition::{Partition, Settings};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::CANARY_RULE;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::Control;

use super::super::control::{Numbered, Ownership};
use super::super::replay::{self, Derived};
use super::super::{BACKOFF_MAX, BACKOFF_MIN, Shared, says};
use super::take_over::Prepared;
use super::{Attempt, Common, PROGRESS_EVERY, checkpoint_key, group, loop_name, transactional_id};
use crate::checkpoints::{Mark, Ticket};
use crate::health::{Finding, LoopHandle, Severity};
use crate::latency::{BUDGET, Stage};
use crate::sets::{Change, short};

/// Canonical records applied before transitions are committed; bounds the size of a transaction.
const RECORDS_MAX: usize = 500;
/// Longest wait for records; commits and stops are looked at in between.
const WAIT: Duration = Duration::from_millis(50);
/// A checkpoint is due at the latest after so many readings: a replay of them takes about a second.
const READINGS_MAX: u64 = 500_000;
/// Of a checkpoint this much is encoded in one turn.
const SLICE_BUDGET: usize = 256 * 1024;
/// A stop waits this long for its checkpoint; without it the next start replays.
const LAST_CHECKPOINT: Duration = Duration::from_secs(5);
/// So many checkpoints in a row that are not written are no accident.
const MISSED_REPORTED: usize = 2;
/// Rule id of "a replay gave another history than the committed one".
const REPLAY_RULE: &str = "technical/replay";

/// What one partition works with.
pub(super) struct Stand {
    shared: Shared,
    common: Common,
    turning: LoopHandle,
    catalogue: &'static Catalogue,
    producer: Box<dyn Transactional>,
    reader: Box<dyn PartitionReader>,
    group: GroupHandle,
    attempt: Attempt,
    partition: Partition,
    /// The set in force; none before the first activation of the log.
    set: Option<Numbered>,
    ownership: Ownership,
    /// What was committed when the partition was taken over; what is before it is replayed in silence.
    mark: Option<Mark>,
    is_replaying: bool,
    /// Next canonical offset to apply.
    next_offset: i64,
    /// Append time of the newest record applied.
    newest_us: Option<Micros>,
    committed: i64,
    committed_at: Instant,
    /// Transitions decided and not committed.
    outbox: Outbox,
    checkpoints: Checkpoints,
    /// What ended it must end this whole job.
    pub ends_job: bool,
}

/// The fixed content of the next transaction.
#[derive(Debug, Default)]
struct Outbox {
    records: Vec<Outgoing>,
    /// When each was decided, for measuring.
    decided_us: Vec<Micros>,
}

/// The checkpoints of one partition.
struct Checkpoints {
    /// Where the newest complete one begins on the state topic, and the one before it.
    newest: Option<i64>,
    before: Option<i64>,
    /// The newest is named by a committed offset, and what it replaces is deleted.
    is_named: bool,
    under_way: Option<UnderWay>,
    begun_at: Instant,
    /// Canonical offset of the newest begun, and readings applied since.
    begun_offset: i64,
    readings: u64,
    /// Those that were not written, one after the other.
    failures: usize,
}

/// A checkpoint that is being written.
struct UnderWay {
    ticket: Ticket,
    /// There was no room for it yet.
    waiting: Option<Vec<u8>>,
    /// Everything was handed over.
    is_finished: bool,
}

impl Stand {
    pub fn new(
        shared: &Shared,
        common: &Common,
        prepared: Prepared,
        reader: Box<dyn PartitionReader>,
        group: GroupHandle,
        attempt: Attempt,
    ) -> Self {
        let Prepared { producer, partition, set, begin, committed, mark } = prepared;
        let number = reader.position().partition;
        let ownership = shared.sets.own(number);
        if let Some((in_force, _)) = partition.in_force() {
            ownership.is_in_force(in_force, true);
        }
        let newest = mark.and_then(|mark| mark.checkpoint);
        Self {
            shared: shared.clone(),
            common: common.clone(),
            turning: shared.health.enter(loop_name(number)),
            catalogue: Catalogue::builtin(),
            producer,
            reader,
            group,
            attempt,
            partition,
            set,
            ownership,
            mark,
            is_replaying: begin < committed || mark.is_some(),
            next_offset: begin,
            newest_us: None,
            committed,
            committed_at: Instant::now(),
            outbox: Outbox::default(),
            checkpoints: Checkpoints {
                newest,
                before: None,
                is_named: true,
                under_way: None,
                begun_at: Instant::now(),
                begun_offset: begin,
                readings: 0,
                failures: 0,
            },
            ends_job: false,
        }
    }

    /// Works until the partition is given back or the job stops.
    ///
    /// # Errors
    /// What ended it; everything that is committed stays so.
    pub fn work(&mut self, finish: &AtomicBool) -> Result<(), LogError> {
        if let Err(error) = self.replay(finish) {
            return Err(self.end_with(error, finish));
        }
        if self.is_over(finish) {
            return Ok(());
        }
        self.tell_set();
        self.tell();
        // The group's coordinator is looked up here, for the offset alone, and not for the first alert.
        self.commit(finish)?;
        let mut records = Vec::new();
        while !self.is_over(finish) {
            self.turning.beat();
            self.read(&mut records)?;
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
                return Err(self.end_with(error, finish));
            }
            self.ownership.settle();
            let due =
                self.next_offset > self.committed && self.committed_at.elapsed() >= self.common.settings.commit_every;
            if !self.outbox.records.is_empty() || due || !self.checkpoints.is_named {
                self.commit(finish)?;
            }
            self.checkpoint();
            if !records.is_empty() {
                self.tell();
            }
        }
        if self.next_offset > self.committed {
            self.commit(finish)?;
        }
        if self.shared.stopping() {
            self.checkpoint_at_the_end(finish)?;
        }
        self.tell();
        Ok(())
    }

    fn is_over(&self, finish: &AtomicBool) -> bool {
        finish.load(Ordering::SeqCst) || self.shared.stopping()
    }

    fn number(&self) -> i32 {
        self.reader.position().partition
    }

    fn read(&mut self, records: &mut Vec<Record>) -> Result<(), LogError> {
        records.clear();
        match self.reader.read(RECORDS_MAX, WAIT, records) {
            Ok(()) => Ok(()),
            // The client reconnects by itself; what was read so far is applied.
            Err(error) if error.remedy == Remedy::Retry => {
                self.shared.broker_away(&error);
                tracing::warn!(partition = self.number(), error = %error, "reading the canonical log");
                runtime::sleep(WAIT);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What was decided before the record that cannot be applied is not lost with it.
    fn end_with(&mut self, error: LogError, finish: &AtomicBool) -> LogError {
        if self.is_replaying {
            return error;
        }
        if self.next_offset > self.committed
            && let Err(error) = self.commit(finish)
        {
            return error;
        }
        self.tell();
        error
    }

    fn tell(&self) {
        let statistics = &self.shared.statistics;
        let position = self.reader.position();
        statistics.decided(position.partition, self.partition.outcomes());
        let group = group(&self.shared.group);
        statistics.finished(&group, &position.topic, position.partition, self.next_offset, self.newest_us);
    }

    /// Which set decides here, once what it decides is said.
    fn tell_set(&self) {
        if let Some((number, hash)) = self.partition.in_force().filter(|_| !self.is_replaying) {
            self.shared.statistics.active_set(self.number(), number, hash);
        }
    }

    /// Applies in silence what the owners before us have decided and committed, then holds what came of it against what they
    /// said.
    fn replay(&mut self, finish: &AtomicBool) -> Result<(), LogError> {
        let (begin, began) = (self.next_offset, Instant::now());
        let mut told = Instant::now();
        let mut records = Vec::new();
        while self.is_replaying && self.next_offset < self.committed {
            if self.is_over(finish) {
                return Ok(());
            }
            self.turning.beat();
            self.read(&mut records)?;
            for record in &records {
                self.turning.beat();
                if record.offset >= self.committed {
                    self.end_replay()?;
                }
                self.apply(record, finish)?;
            }
            if told.elapsed() > PROGRESS_EVERY {
                told = Instant::now();
                let (done, all) = (self.next_offset - begin, self.committed - begin);
                tracing::info!(partition = self.number(), done, all, "restoring: canonical records replayed");
            }
        }
        self.end_replay()?;
        let replayed = self.next_offset - begin;
        let took_ms = began.elapsed().as_millis() as u64;
        if self.mark.is_some() {
            let (patients, series, open) = self.partition.sizes();
            tracing::info!(
                partition = self.number(),
                offset = self.committed,
                replayed,
                took_ms,
                patients,
                series,
                open,
                "restored"
            );
        }
        Ok(())
    }

    /// From here on transitions are said.
    fn end_replay(&mut self) -> Result<(), LogError> {
        if !std::mem::take(&mut self.is_replaying) {
            return Ok(());
        }
        self.partition.forget_counts();
        let Some(mark) = self.mark else {
            return Ok(());
        };
        if (self.partition.transitions(), *self.partition.digest()) == (mark.transitions, mark.digest) {
            let now_us = self.shared.clock.now_us();
            let detail = || "the newest replay gave the committed history".to_owned();
            self.shared.notices.follow(REPLAY_RULE, &self.replay_key(), false, now_us, detail);
            return Ok(());
        }
        let what = format!(
            "replay to offset {} gives {} transitions where {} are committed, or others",
            self.committed,
            self.partition.transitions(),
            mark.transitions
        );
        if self.common.settings.strict {
            self.ends_job = true;
            let step = format!("restoring partition {}", self.number());
            return Err(LogError::new(Remedy::Refuse, step, what));
        }
        self.put_right(&mark, &what)
    }

    /// What `technical/replay` is about.
    fn replay_key(&self) -> String {
        format!("{}/{}", self.shared.topics.canonical, self.number())
    }

    /// A replay gave another history than the committed one. What people were told counts: open episodes are those of the
    /// alerts topic, and an alert says that this happened.
    fn put_right(&mut self, mark: &Mark, what: &str) -> Result<(), LogError> {
        let number = self.number();
        tracing::error!(partition = number, "{what}; open episodes are taken from the alerts topic");
        let waiting = self.turning.waiting("the alerts topic, to rebuild open episodes");
        let alerts = replay::alerts_of(&*self.shared.log, &self.shared.topics.alerts, number)?;
        drop(waiting);
        let contents: Vec<_> = alerts.into_iter().map(|alert| alert.data.content).collect();
        let unknown = self.partition.rebuild_episodes(&contents);
        for id in unknown {
            tracing::error!(partition = number, id, "an open alert belongs to nothing that is known here any more");
        }
        self.partition.continue_history(mark.transitions, mark.digest);
        self.shared
            .notices
            .follow(REPLAY_RULE, &self.replay_key(), true, self.shared.clock.now_us(), || what.to_owned());
        Ok(())
    }

    /// Applies one canonical record; what it decides goes into the outbox. Gives how long readings took until here.
    ///
    /// # Errors
    /// An activation that cannot be followed here; nothing of the record was applied.
    fn apply(&mut self, record: &Record, finish: &AtomicBool) -> Result<Option<Micros>, LogError> {
        fault::check("apply.before")?;
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
                #[cfg(feature = "simulation")]
                if fault::is_removed("source marks") {
                    self.partition.forget_marks();
                }
                self.partition.normalized_with(canonical::normalizer(record));
                if let Err(error) = self.partition.apply(&batch, canonical_us) {
                    self.unreadable(record, &error);
                }
                self.checkpoints.readings += batch.num_rows() as u64;
                if !self.is_replaying {
                    latency_us = Some(self.shared.clock.now_us() - canonical_us);
                }
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
        self.take_decided(record, canonical_us);
        fault::check("apply.after")?;
        Ok(latency_us)
    }

    /// What a record decided goes into the outbox; while replaying it was said long ago.
    fn take_decided(&mut self, record: &Record, canonical_us: Micros) {
        let mut decided = self.partition.take_decided();
        decided.retain(|decided| says(&decided.content, self.number(), self.shared.topics.partitions));
        if decided.is_empty() || self.is_replaying && !fault::is_removed("mute while replaying") {
            return;
        }
        let now = self.shared.clock.now_us();
        for decided in decided {
            let mut derived = Derived::of(decided, canonical_us, self.number(), record.offset);
            if fault::is_removed("stable ids") {
                derived.content.id = format!("{}-{now}", derived.content.id);
            }
            let delayed = now - derived.basis_us > BUDGET;
            let content = &derived.content;
            if content.rule.id != CANARY_RULE {
                let statistics = &self.shared.statistics;
                statistics.transition(&content.rule.id, content.transition, content.kind, content.priority, delayed);
            }
            self.outbox.records.push(derived.record(&self.shared.topics.alerts, now, delayed));
            self.outbox.decided_us.push(now);
        }
    }

    /// Follows an activation that stands in the log; an older or equal number changes nothing.
    fn activate(&mut self, number: u64, hash: &str, finish: &AtomicBool) -> Result<(), LogError> {
        if self.partition.in_force().is_some_and(|(newest, _)| newest >= number) {
            self.ownership.is_in_force(number, true);
            return Ok(());
        }
        let waiting = self.turning.waiting("an activated rule set, from the control topic");
        let give_up = || {
            waiting.renew();
            finish.load(Ordering::SeqCst) || self.shared.stopping()
        };
        let set = self.shared.sets.get(number, hash, &give_up);
        drop(waiting);
        self.ends_job = matches!(&set, Err(error) if error.remedy == Remedy::Refuse);
        let set = set?;
        self.put_in_force(Numbered { number, set }, true);
        Ok(())
    }

    fn put_in_force(&mut self, next: Numbered, from_log: bool) {
        let Numbered { number, set } = &next;
        self.partition.activate(*number, &set.hash, &set.rules, Settings::clone(&set.settings));
        self.tell_set();
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
        if self.is_replaying {
            return;
        }
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
        let mark = self.mark_now().print();
        loop {
            let waiting = self.turning.waiting("the broker, committing a transaction");
            self.set_attempt(Some(Instant::now()));
            let outcome = if unknown { self.was_committed() } else { self.try_commit(&mark) };
            self.set_attempt(None);
            drop(waiting);
            let error = match outcome {
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
            if fault::is_removed("outbox") {
                self.outbox = Outbox::default();
            }
            let what = if unknown { "looking up whether it was committed" } else { "it is sent again" };
            tracing::warn!(partition = self.number(), error = %error, "the transaction failed: {what}");
            let _waiting = self.turning.waiting("a pause before the next attempt to commit");
            runtime::sleep(backoff);
            // Whether the partition is still ours is known once the group was polled again.
            if !self.is_still_ours(finish) {
                return Err(error);
            }
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
        self.checkpoints.is_named = true;
        if let Some(before) = self.checkpoints.before.take() {
            self.common.writer.delete_before(self.number(), before);
        }
        Ok(())
    }

    fn set_attempt(&self, began: Option<Instant>) {
        *self.attempt.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }

    /// Two more polls of the group have passed and the partition was not taken away.
    fn is_still_ours(&self, finish: &AtomicBool) -> bool {
        let polls = || self.common.polls.load(Ordering::SeqCst);
        let enough = polls() + 2;
        while polls() < enough && !finish.load(Ordering::SeqCst) && !self.shared.stopping() {
            runtime::sleep(WAIT);
        }
        !finish.load(Ordering::SeqCst)
    }

    fn mark_now(&self) -> Mark {
        Mark {
            checkpoint: self.checkpoints.newest,
            transitions: self.partition.transitions(),
            digest: *self.partition.digest(),
        }
    }

    fn try_commit(&mut self, metadata: &str) -> Result<bool, LogError> {
        let progress = Progress {
            group: &self.group,
            position: self.reader.position().clone(),
            next_offset: self.next_offset,
            metadata,
        };
        self.producer.commit(&self.outbox.records, Some(&progress)).map(|()| true)
    }

    /// A new producer ends whatever the old one left open; then the committed offset tells.
    ///
    /// # Errors
    /// [`Remedy::Fenced`] if it stands where we have not been: somebody else works here.
    fn was_committed(&mut self) -> Result<bool, LogError> {
        let position = self.reader.position().clone();
        let id = transactional_id(&self.shared.group, &position.topic, position.partition);
        self.producer = self.shared.log.transactional(&id)?;
        if fault::is_removed("unknown outcomes are looked up") {
            return Ok(false);
        }
        let committed = self.shared.log.committed_by(&self.group, std::slice::from_ref(&position))?;
        let committed = committed.into_iter().next().flatten().map(|committed| committed.next_offset);
        if committed.is_some_and(|committed| committed != self.next_offset && committed != self.committed) {
            let step = format!("looking up what is committed of partition {}", position.partition);
            return Err(LogError::new(Remedy::Fenced, step, "another owner has gone on meanwhile"));
        }
        Ok(committed == Some(self.next_offset) && self.next_offset != self.committed)
    }

    /// Begins a checkpoint when one is due, and hands out the next slice of one that is under way. Never waits.
    fn checkpoint(&mut self) {
        let number = self.number();
        let every = self.common.settings.checkpoint_every;
        let checkpoints = &mut self.checkpoints;
        let Some(UnderWay { ticket, waiting, is_finished }) = &mut checkpoints.under_way else {
            let due = checkpoints.begun_at.elapsed() >= every || checkpoints.readings >= READINGS_MAX;
            if due && self.next_offset > checkpoints.begun_offset {
                self.begin_checkpoint();
            }
            return;
        };
        match ticket.outcome() {
            Some(Ok(at)) => {
                (checkpoints.before, checkpoints.newest) = (checkpoints.newest, Some(at));
                (checkpoints.is_named, checkpoints.failures) = (false, 0);
                checkpoints.under_way = None;
                self.shared.health.clear(&checkpoint_key(number));
                return;
            }
            Some(Err(error)) => {
                tracing::warn!(partition = number, error = %error, "the checkpoint was not written; the next one is tried in time");
                self.partition.abandon_checkpoint();
                checkpoints.under_way = None;
                checkpoints.failures += 1;
                if error.remedy == Remedy::Refuse || checkpoints.failures >= MISSED_REPORTED {
                    self.shared.health.report(checkpoint_key(number), no_checkpoint(number, &error));
                }
                return;
            }
            None => {}
        }
        let slice = waiting.take().or_else(|| self.partition.next_slice(SLICE_BUDGET));
        if let Some(slice) = slice
            && let Err(slice) = ticket.offer(slice)
        {
            *waiting = Some(slice);
        } else if !self.partition.is_checkpointing() && !std::mem::replace(is_finished, true) {
            ticket.finish();
        }
    }

    fn begin_checkpoint(&mut self) {
        self.partition.begin_checkpoint();
        let checkpoints = &mut self.checkpoints;
        let ticket = self.common.writer.begin(self.reader.position().partition, self.next_offset);
        checkpoints.under_way = Some(UnderWay { ticket, waiting: None, is_finished: false });
        (checkpoints.begun_at, checkpoints.begun_offset, checkpoints.readings) = (Instant::now(), self.next_offset, 0);
    }

    /// At a stop: the state as of the committed offset, so that the next start has nothing to replay.
    fn checkpoint_at_the_end(&mut self, finish: &AtomicBool) -> Result<(), LogError> {
        if self.next_offset <= self.checkpoints.begun_offset && self.checkpoints.under_way.is_none() {
            return Ok(());
        }
        let _waiting = self.turning.waiting("the last checkpoint");
        self.begin_checkpoint();
        let deadline = Instant::now() + LAST_CHECKPOINT;
        while self.checkpoints.under_way.is_some() && Instant::now() < deadline {
            self.checkpoint();
            runtime::sleep(Duration::from_millis(2));
        }
        if !self.checkpoints.is_named {
            self.commit(finish)?;
        }
        Ok(())
    }
}

fn no_checkpoint(partition: i32, error: &LogError) -> Finding {
    Finding::new(
        Severity::Degraded,
        format!("no checkpoint of partition {partition} is written: {error}"),
        "whoever takes it over replays everything since the newest one; once retention has passed that, it is refused",
        "see what the cause names; the next checkpoint is tried in time",
    )
}
