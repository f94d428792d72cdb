//! The deliver stage's thread: a member of the sink's consumer group.
//!
//! It reads alerts while there is room for them, follows the assignment, writes dead letters for what the sink rejects, and
//! commits what lanes have acknowledged. It never waits for the sink.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use wardbell_connectors::log::{
    Appender, Committed, Isolation, LogError, Member, MemberEvent, Membership, Outgoing, Record, Remedy, TopicPartition,
};
use wardbell_connectors::runtime::{self, Instant, fault};
use wardbell_connectors::sink::retry::REJECTIONS_MAX;
use wardbell_schemas::alert::Alert;

use super::backlog::Entry;
use super::progress::{Open, Progress};
use super::{Desk, State, group};
use crate::health::{Finding, LoopHandle, Severity};
use crate::latency::Stage;
use crate::pipeline::statistics::{Lag, Place};

/// Alerts read at once.
const READ_MAX: usize = 200;
/// Longest wait for alerts; the membership is served in between.
const WAIT: Duration = Duration::from_millis(50);
/// Alerts in memory; with more, reading pauses and the log keeps them.
const BACKLOG_MAX: usize = 10_000;
/// Reading goes on once there is room for this many.
const ROOM: usize = 1_000;
/// A raise that was decided late waits this long at most for the log to be read to its end: it may be over.
const READ_ON: Duration = Duration::from_secs(1);
/// Time between two commits: what was acknowledged since is delivered again after a crash.
const COMMIT_EVERY: Duration = Duration::from_millis(50);
/// Pause after a commit that failed.
const COMMIT_PAUSE: Duration = Duration::from_secs(1);
/// Alerts that wait for too long are looked for this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A stop waits this long for attempts that are under way.
const FINISH: Duration = Duration::from_secs(10);
/// Reason of dead letters for alerts that a sink rejected.
const REJECTED: &str = "E_SINK_REJECTED";

/// What the stage's thread holds between a start and the next failure.
pub(super) struct Stand<'a> {
    desk: &'a Desk,
    turning: LoopHandle,
    member: Box<dyn Member>,
    is_paused: bool,
    /// Since when every read has brought something.
    reads_on_since: Option<Instant>,
    commit_after: Instant,
    looked_at: Instant,
    /// Made with the first dead letter.
    appender: Option<Box<dyn Appender>>,
    /// Dead letters that are not acknowledged, by token, with the places of their alerts.
    letters: BTreeMap<u64, (i32, i64)>,
    n_letters: u64,
}

impl<'a> Stand<'a> {
    pub fn join(desk: &'a Desk, stage: &str) -> Result<Self, LogError> {
        let shared = &desk.shared;
        let turning = shared.health.enter(stage);
        let membership = Membership {
            group: group(&shared.group, &desk.name),
            topics: vec![shared.topics.alerts.clone()],
            isolation: Isolation::ReadCommitted,
            instance: shared.instance.clone(),
        };
        let now = Instant::now();
        Ok(Self {
            desk,
            turning,
            member: shared.log.join(&membership)?,
            is_paused: false,
            reads_on_since: None,
            commit_after: now,
            looked_at: now,
            appender: None,
            letters: BTreeMap::new(),
            n_letters: 0,
        })
    }

    /// Runs until the job stops.
    pub fn work(mut self) -> Result<(), LogError> {
        let ended = self.turns();
        let shared = &self.desk.shared;
        if shared.leave_on_exit && shared.stopping() {
            self.member.leave();
        }
        ended
    }

    fn turns(&mut self) -> Result<(), LogError> {
        let mut records = Vec::new();
        while !self.desk.shared.stopping() {
            self.turning.beat();
            for event in self.member.events(Duration::ZERO)? {
                self.follow(event)?;
            }
            if self.has_room()? {
                self.member.read(READ_MAX, WAIT, &mut records)?;
                self.read_on(!records.is_empty());
                self.take_in(&mut records);
            } else {
                self.read_on(false);
                runtime::sleep(WAIT);
            }
            self.set_aside()?;
            self.look_at_backlog();
            self.commit(false)?;
        }
        self.finish()
    }

    /// Whether alerts can be taken in; the log keeps them otherwise.
    fn has_room(&mut self) -> Result<bool, LogError> {
        let n_waiting = self.desk.lock().backlog.len();
        let is_full = n_waiting >= if self.is_paused { BACKLOG_MAX - ROOM } else { BACKLOG_MAX };
        if is_full != self.is_paused {
            self.member.pause(is_full)?;
            self.is_paused = is_full;
        }
        Ok(!is_full)
    }

    /// Whether more is likely to be readable at once: what is over by then is withheld, and not told first.
    fn read_on(&mut self, more: bool) {
        self.reads_on_since = if more { self.reads_on_since.or_else(|| Some(Instant::now())) } else { None };
        let until = self.reads_on_since.map(|since| since + READ_ON);
        if self.desk.lock().backlog.reads_on(until) {
            self.desk.changed.notify_waiters();
        }
    }

    fn follow(&mut self, event: MemberEvent) -> Result<(), LogError> {
        match event {
            MemberEvent::Assigned(partitions) => self.begin(&partitions),
            MemberEvent::Revoked(partitions) => {
                self.give_up(&partitions);
                // What was acknowledged is committed; the rest is the new owner's.
                self.commit(true)?;
                self.give_back(&partitions)
            }
            MemberEvent::Lost(partitions) => {
                self.give_up(&partitions);
                self.give_back(&partitions)
            }
        }
    }

    fn begin(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let shared = &self.desk.shared;
        let waiting = self.turning.waiting("the broker, asking for committed offsets");
        let mut starts = Vec::new();
        for (partition, committed) in partitions.iter().zip(self.member.committed_with_metadata(partitions)?) {
            let (first, end) = shared.log.offsets(&partition.topic, partition.partition)?;
            let is_anew = committed.as_ref().is_some_and(|committed| committed.next_offset > end);
            if is_anew {
                tracing::error!(
                    sink = self.desk.name,
                    partition = partition.partition,
                    end,
                    "the alerts topic ends before what the sink has taken: it was made anew; it is read from its beginning"
                );
            }
            let committed = committed.filter(|_| !is_anew);
            if let Some(committed) = committed.as_ref().filter(|committed| committed.next_offset < first) {
                self.desk.alerts_lost(partition.partition, committed.next_offset, first);
            }
            let progress = Progress::new(first, committed.as_ref());
            starts.push((partition.clone(), progress.next_offset()));
            self.tell(partition, progress.next_offset());
            self.desk.lock().progress.insert(partition.partition, progress);
        }
        drop(waiting);
        self.member.start(&starts)?;
        if self.is_paused {
            self.member.pause(true)?;
        }
        Ok(())
    }

    fn give_up(&self, partitions: &[TopicPartition]) {
        let mut state = self.desk.lock();
        for partition in partitions {
            state.backlog.give_up(partition.partition);
        }
        drop(state);
        self.desk.changed.notify_waiters();
    }

    fn give_back(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let shared = &self.desk.shared;
        let group = group(&shared.group, &self.desk.name);
        for partition in partitions {
            self.desk.lock().progress.remove(&partition.partition);
            shared.statistics.released(&group, &partition.topic, partition.partition);
        }
        self.member.stop(partitions)
    }

    fn tell(&self, partition: &TopicPartition, next: i64) {
        let shared = &self.desk.shared;
        let group = group(&shared.group, &self.desk.name);
        shared.statistics.set_position(&group, &partition.topic, partition.partition, next);
    }

    /// Takes records into the backlog.
    fn take_in(&mut self, records: &mut Vec<(TopicPartition, Record)>) {
        if records.is_empty() {
            return;
        }
        let desk = self.desk;
        let statistics = &desk.shared.statistics;
        let received_us = desk.shared.clock.now_us();
        // Read before the lock is taken, so that no lane waits for it.
        let alerts: Vec<_> = records.drain(..).map(|(from, record)| (from, read_alert(&record), record)).collect();
        let mut state = desk.lock();
        let State { backlog, progress, .. } = &mut *state;
        for (from, alert, record) in alerts {
            // Taken away meanwhile, or acknowledged before this start.
            let Some(progress) = progress.get_mut(&from.partition) else {
                continue;
            };
            if !progress.read(record.offset) {
                continue;
            }
            match alert {
                Ok(alert) if alert.is_canary() => {
                    progress.open(record.offset, Open::Canary { basis_us: alert.data.measured.basis_us });
                }
                Ok(_) if desk.is_muted => statistics.withheld_record_only(&desk.name),
                Ok(alert) => {
                    if let Some(append_us) = record.append_us {
                        statistics.latency.record(Stage::Transport, None, received_us - append_us);
                    }
                    progress.open(record.offset, Open::Alert);
                    backlog.push(Entry::new(from.partition, record.offset, alert, desk.identity, received_us));
                }
                Err(error) => {
                    statistics.unreadable();
                    // The error names line and column, not content.
                    tracing::error!(
                        sink = desk.name,
                        partition = from.partition,
                        offset = record.offset,
                        line = error.line(),
                        column = error.column(),
                        "a record of the alerts topic is no alert and is passed over"
                    );
                }
            }
        }
        desk.pass_canaries(&mut state);
        drop(state);
        desk.changed.notify_waiters();
    }

    /// Writes a dead letter for each alert that was rejected too often; with that the sink is done with it.
    fn set_aside(&mut self) -> Result<(), LogError> {
        let rejected = std::mem::take(&mut self.desk.lock().rejected);
        for (entry, error) in rejected {
            let letter = self.letter(&entry, &error);
            let appender = match &mut self.appender {
                Some(appender) => appender,
                None => self.appender.insert(self.desk.shared.log.appender()?),
            };
            self.n_letters += 1;
            appender.append(&letter, self.n_letters)?;
            self.letters.insert(self.n_letters, entry.place());
        }
        let Some(appender) = self.appender.as_mut().filter(|_| !self.letters.is_empty()) else {
            return Ok(());
        };
        let mut outcomes = Vec::new();
        appender.outcomes(Duration::ZERO, &mut outcomes);
        for (token, outcome) in outcomes {
            outcome?;
            if let Some(place) = self.letters.remove(&token) {
                let mut state = self.desk.lock();
                state.acknowledge(place);
                self.desk.pass_canaries(&mut state);
                drop(state);
                self.desk.shared.statistics.set_aside(&self.desk.name);
            }
        }
        Ok(())
    }

    fn letter(&self, entry: &Entry, error: &str) -> Outgoing {
        let (desk, topics) = (self.desk, &self.desk.shared.topics);
        let id = &entry.delivery.alert.id;
        tracing::error!(
            sink = desk.name,
            alert = id,
            partition = entry.partition,
            offset = entry.offset,
            error,
            "the sink rejects this alert: set aside, see the dead-letter topic"
        );
        let finding = Finding::new(
            Severity::Degraded,
            format!("sink `{}` rejected an alert {REJECTIONS_MAX} times: {error}", desk.name),
            "somebody is not told of this alert; later ones of the same patient go on",
            format!("find it by reason {REJECTED} in `{}`, and see why the other side rejects it", topics.dead_letters),
        );
        desk.shared.health.report(format!("{}/rejected", desk.key()), finding);
        let letter = DeadLetter {
            topic: &topics.alerts,
            partition: entry.partition,
            offset: entry.offset,
            index: 0,
            reason: REJECTED,
            field: "",
            detail: format!("rejected {REJECTIONS_MAX} times, the last: {error}"),
            sink: &desk.name,
            alert: id,
        };
        Outgoing {
            topic: topics.dead_letters.clone(),
            partition: 0,
            key: Some(format!("{}/{}", topics.alerts, entry.partition).into_bytes()),
            value: Some(serde_json::to_vec(&letter).unwrap_or_default()),
            headers: vec![("reason".to_owned(), REJECTED.as_bytes().to_vec())],
            time_us: None,
        }
    }

    /// Alerts that wait for too long, and how far the sink is behind in each partition.
    fn look_at_backlog(&mut self) {
        if self.looked_at.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked_at = Instant::now();
        let shared = &self.desk.shared;
        let now_us = shared.clock.now_us();
        let mut state = self.desk.lock();
        let overdue = state.backlog.fall_overdue(now_us);
        let waiting = state.backlog.waiting();
        let partitions: Vec<i32> = state.progress.keys().copied().collect();
        drop(state);
        overdue.into_iter().for_each(|priority| self.desk.breached(priority));
        let group = group(&shared.group, &self.desk.name);
        for partition in partitions {
            let (records, oldest_us) = waiting.get(&partition).copied().unwrap_or((0, now_us));
            let delay = Duration::from_micros(u64::try_from(now_us - oldest_us).unwrap_or(0));
            let place = Place { group: group.clone(), topic: shared.topics.alerts.clone(), partition };
            shared.statistics.set_lag(&place, Lag { records, delay, estimate: None });
        }
    }

    /// Commits how far the sink has come, where that has changed.
    fn commit(&mut self, now: bool) -> Result<(), LogError> {
        if !now && Instant::now() < self.commit_after {
            return Ok(());
        }
        self.commit_after = Instant::now() + COMMIT_EVERY;
        let shared = &self.desk.shared;
        let change = |(partition, progress): (&i32, &mut Progress)| {
            Some((TopicPartition::new(&shared.topics.alerts, *partition), progress.take_change()?))
        };
        let positions: Vec<(TopicPartition, Committed)> =
            self.desk.lock().progress.iter_mut().filter_map(change).collect();
        if positions.is_empty() {
            return Ok(());
        }
        let waiting = self.turning.waiting("the broker, committing what the sink acknowledged");
        fault::check("record.before")?;
        let committed = self.member.commit_with_metadata(&positions);
        fault::check("record.after")?;
        drop(waiting);
        match committed {
            Ok(()) => {
                shared.broker_answers();
                for (partition, committed) in &positions {
                    self.tell(partition, committed.next_offset);
                }
                Ok(())
            }
            // Committed with the next; at worst the same alerts are delivered again.
            Err(error) if error.remedy == Remedy::Retry => {
                shared.broker_away(&error);
                tracing::warn!(sink = self.desk.name, error = %error, "what the sink acknowledged is not committed yet");
                self.commit_after = Instant::now() + COMMIT_PAUSE;
                let mut state = self.desk.lock();
                for (partition, _) in &positions {
                    if let Some(progress) = state.progress.get_mut(&partition.partition) {
                        progress.keep_change();
                    }
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for attempts under way and commits; what else is in hand comes again at the next start.
    fn finish(&mut self) -> Result<(), LogError> {
        self.desk.close();
        let deadline = Instant::now() + FINISH;
        while self.desk.lock().backlog.under_way() > 0 && Instant::now() < deadline {
            self.turning.beat();
            for event in self.member.events(Duration::from_millis(20))? {
                self.follow(event)?;
            }
        }
        self.set_aside()?;
        self.commit(true)
    }
}

fn read_alert(record: &Record) -> Result<Alert, serde_json::Error> {
    serde_json::from_slice(record.value.as_deref().unwrap_or_default())
}

/// The dead letter of an alert. It names place and reason, never what the alert says.
#[derive(Debug, Serialize)]
struct DeadLetter<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    index: u32,
    reason: &'static str,
    field: &'static str,
    detail: String,
    sink: &'a str,
    alert: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_is_written_as_the_frozen_one() {
        let letter = DeadLetter {
            topic: "wardbell.alerts",
            partition: 3,
            offset: 1_000,
            index: 0,
            reason: REJECTED,
            field: "",
            detail: "rejected 5 times, the last: 400".to_owned(),
            sink: "pager",
            alert: "f7cfa883cd153d4b250df4fb53095931.0",
        };
        let frozen = include_str!("../../../../../schemas/samples/dead-letter-sink.json").trim_end();
        assert_eq!(serde_json::to_string(&letter).expect("plain data"), frozen);
    }
}
