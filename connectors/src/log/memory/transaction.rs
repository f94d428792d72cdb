//! Transactions: records and offsets that become visible together, or not at all.
//!
//! A transaction is begun, filled and ended in steps, and others go on between them: readers are held back at its first
//! record, a new owner of the id ends it and fences whoever began it, and the coordinator ends it when it takes too long.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use wardbell_schemas::Micros;

use super::super::{
    Appended, Committed, GroupHandleInner, LogError, Outgoing, Progress, Remedy, TopicPartition, Transactional,
};
use super::partition::{Kind, find};
use super::{CALL_TIMEOUT, Look, MemoryLog, State, draw, gone};
use crate::runtime::fault::Action;
use crate::runtime::{Instant, Signal, sleep};

/// An open transaction is aborted after this, and its producer fenced.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// A commit that is late arrives within this.
const LATE: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(3);
/// An outage is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What the coordinator knows of a transactional id.
#[derive(Debug, Default)]
pub(super) struct Coordinated {
    /// Raised by each new owner.
    epoch: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    number: u64,
    records: BTreeMap<TopicPartition, Vec<i64>>,
    /// Offsets that the group takes with the commit.
    offsets: Vec<(String, TopicPartition, Committed)>,
    expires: Instant,
    /// The order to commit was sent and arrives only then.
    arrives: Option<Instant>,
}

impl Open {
    fn ends(&self) -> Instant {
        self.arrives.map_or(self.expires, |arrives| arrives.min(self.expires))
    }
}

impl State {
    fn epoch(&self, id: &str) -> u64 {
        self.producers.get(id).map_or(0, |known| known.epoch)
    }

    fn open(&mut self, id: &str) -> Option<&mut Open> {
        self.producers.get_mut(id)?.open.as_mut()
    }

    /// Fences the owner of an id so far, and ends what it left open.
    fn take_over(&mut self, id: &str) -> u64 {
        self.end(id, Kind::Aborted);
        let known = self.producers.entry(id.to_owned()).or_default();
        known.epoch += 1;
        known.epoch
    }

    fn begin(&mut self, id: &str) {
        let expires = Instant::now() + TRANSACTION_TIMEOUT;
        let number = self.number();
        let open = Open { number, records: BTreeMap::new(), offsets: Vec::new(), expires, arrives: None };
        self.producers.entry(id.to_owned()).or_default().open = Some(open);
        self.note_next_end();
    }

    fn produce(&mut self, id: &str, record: &Outgoing) -> Result<Appended, LogError> {
        let now_us = self.clock.now_us();
        let (stamped_by, partition) = find(&mut self.topics, &record.topic, record.partition)?;
        let Some(open) = self.producers.get_mut(id).and_then(|known| known.open.as_mut()) else {
            return Err(LogError::new(Remedy::Restart, format!("transaction `{id}`"), "it has ended"));
        };
        let appended = partition.add_open(open.number, stamped_by, now_us, record.clone());
        let place = TopicPartition::new(&record.topic, record.partition);
        open.records.entry(place).or_default().push(appended.offset);
        Ok(appended)
    }

    fn end(&mut self, id: &str, kind: Kind) {
        let Some(open) = self.producers.get_mut(id).and_then(|known| known.open.take()) else {
            return;
        };
        let now_us = self.clock.now_us();
        for (place, offsets) in open.records {
            if let Ok((_, partition)) = find(&mut self.topics, &place.topic, place.partition) {
                let marker = Outgoing { topic: place.topic, partition: place.partition, ..Outgoing::default() };
                partition.end_transaction(open.number, &offsets, kind, marker, now_us);
            }
        }
        for (name, partition, committed) in open.offsets {
            let group = self.groups.entry(name).or_default();
            if kind == Kind::Committed {
                group.committed.insert(partition, committed);
            }
            group.wake();
        }
        self.note_next_end();
    }

    fn note_next_end(&mut self) {
        self.next_end = self.producers.values().filter_map(|known| known.open.as_ref()).map(Open::ends).min();
    }

    /// Ends transactions whose time has come: by an order that was long on its way, or because they took too long.
    pub(super) fn end_overdue(&mut self) {
        if !self.is_available || self.next_end.is_none_or(|due| due > Instant::now()) {
            return;
        }
        let now = Instant::now();
        let is_due = |known: &Coordinated| known.open.as_ref().is_some_and(|open| open.ends() <= now);
        let due = self.producers.iter().filter(|(_, known)| is_due(known));
        let due: Vec<String> = due.map(|(id, _)| id.clone()).collect();
        for id in due {
            let has_arrived = self.open(&id).is_some_and(|open| open.arrives.is_some_and(|at| at <= open.expires));
            if has_arrived {
                self.end(&id, Kind::Committed);
            } else {
                self.take_over(&id);
            }
        }
    }

    /// A topic was made anew: transactions have nothing to end there any more.
    pub(super) fn forget_transactions_in(&mut self, topic: &str) {
        for open in self.producers.values_mut().filter_map(|known| known.open.as_mut()) {
            open.records.retain(|place, _| place.topic != topic);
        }
    }

    /// An open transaction may still move committed offsets.
    fn is_pending(&self, group: &str, partitions: &[TopicPartition]) -> bool {
        let open = self.producers.values().filter_map(|known| known.open.as_ref());
        open.flat_map(|open| &open.offsets).any(|(of, partition, _)| of == group && partitions.contains(partition))
    }
}

impl MemoryLog {
    /// Leaves a transaction with these records open, as a producer that dies before it ends it.
    ///
    /// # Errors
    /// [`Remedy::Refuse`] if there is no such partition.
    pub fn abandon_transaction(&self, id: &str, records: &[Outgoing]) -> Result<(), LogError> {
        let mut state = self.lock();
        state.take_over(id);
        state.begin(id);
        records.iter().try_for_each(|record| state.produce(id, record).map(drop))
    }

    /// What a group has committed, once no open transaction can move it any more.
    pub(super) fn stable_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Committed>>, LogError> {
        let step = "asking for committed offsets";
        drop(self.ask(step)?);
        let signal = Arc::new(Signal::new());
        let found = self.wait_for(&signal, CALL_TIMEOUT, |state, _| {
            if self.is_gone(state) {
                return Look::Found(Err(gone(step)));
            }
            if !state.is_available {
                return Look::Again(None);
            }
            if state.is_pending(group, partitions) {
                state.groups.entry(group.to_owned()).or_default().listen(&signal);
                return Look::Again(state.next_end);
            }
            let group = state.groups.get(group);
            let committed = |partition| group?.committed.get(partition).cloned();
            Look::Found(Ok(partitions.iter().map(committed).collect()))
        });
        found.unwrap_or_else(|| Err(LogError::new(Remedy::Retry, step, "an open transaction holds them back")))
    }
}

pub(super) struct MemoryTransactional {
    log: MemoryLog,
    id: String,
    epoch: u64,
    /// How its last transaction ended is not known: it is of no use any more.
    is_broken: bool,
}

impl MemoryTransactional {
    pub fn new(log: &MemoryLog, id: &str) -> Result<Self, LogError> {
        let epoch = log.ask("taking over a transactional id")?.take_over(id);
        Ok(Self { log: log.clone(), id: id.to_owned(), epoch, is_broken: false })
    }

    fn error(&self, remedy: Remedy, what: &str) -> LogError {
        LogError::new(remedy, format!("transaction `{}`", self.id), what)
    }

    fn unknown(&mut self) -> LogError {
        self.is_broken = true;
        self.error(Remedy::Restart, "whether it was committed is unknown")
    }

    /// The log for one step, if this producer is still the owner of its id. A short outage is waited for.
    fn step(&self) -> Result<MutexGuard<'_, State>, LogError> {
        if self.is_broken {
            return Err(self.error(Remedy::Restart, "its last transaction did not end in a known way"));
        }
        let deadline = Instant::now() + CALL_TIMEOUT;
        loop {
            let state = self.log.lock();
            if self.log.is_gone(&state) {
                return Err(gone("a transaction"));
            }
            if state.is_available {
                if state.epoch(&self.id) != self.epoch {
                    return Err(self.error(Remedy::Fenced, "another producer took over this id"));
                }
                return Ok(state);
            }
            drop(state);
            if Instant::now() >= deadline {
                return Err(self.error(Remedy::Restart, "the broker does not answer, and it cannot be aborted"));
            }
            sleep(LOOK_AGAIN);
        }
    }

    /// Everything up to the commit itself.
    fn fill(&self, records: &[Outgoing], progress: Option<&Progress<'_>>) -> Result<(), LogError> {
        let failed = || self.error(Remedy::Retry, "the broker did not take it");
        if self.log.reach("produce.before") == Some(Action::Fail) {
            return Err(failed());
        }
        {
            let mut state = self.step()?;
            for record in records {
                state.produce(&self.id, record)?;
            }
        }
        if self.log.reach("produce.after") == Some(Action::Fail) {
            return Err(failed());
        }
        let Some(progress) = progress else {
            return Ok(());
        };
        let GroupHandleInner::Memory { group, member } = &progress.group.0 else {
            return Err(self.error(Remedy::Refuse, "the group is of another log"));
        };
        if self.log.reach("offsets.before") == Some(Action::Fail) {
            return Err(failed());
        }
        {
            let mut state = self.step()?;
            if let Some(member) = member {
                state.check_member(group, *member)?;
            }
            let committed = Committed { next_offset: progress.next_offset, metadata: progress.metadata.to_owned() };
            if let Some(open) = state.open(&self.id) {
                open.offsets.push((group.clone(), progress.position.clone(), committed));
            }
        }
        if self.log.reach("offsets.after") == Some(Action::Fail) {
            return Err(failed());
        }
        Ok(())
    }

    /// Nothing of the transaction may remain; what cannot be aborted makes the producer useless.
    fn give_up(&mut self, error: LogError) -> LogError {
        match self.end(Kind::Aborted) {
            Ok(()) => error,
            Err(abort) => {
                self.is_broken = true;
                abort
            }
        }
    }

    fn end(&self, kind: Kind) -> Result<(), LogError> {
        self.step()?.end(&self.id, kind);
        Ok(())
    }
}

impl Transactional for MemoryTransactional {
    fn warm_up(&mut self, to: &TopicPartition) -> Result<Option<Micros>, LogError> {
        let mut state = self.step()?;
        state.begin(&self.id);
        let key = Some(b"warm-up".to_vec());
        let record = Outgoing { topic: to.topic.clone(), partition: to.partition, key, ..Outgoing::default() };
        let produced = state.produce(&self.id, &record);
        state.end(&self.id, Kind::Aborted);
        Ok(produced?.append_us)
    }

    fn commit(&mut self, records: &[Outgoing], progress: Option<&Progress<'_>>) -> Result<(), LogError> {
        {
            let mut state = self.step()?;
            if records.is_empty() && progress.is_none() {
                return Err(self.error(Remedy::Refuse, "a transaction without records and offsets"));
            }
            for record in records {
                state.partition(&record.topic, record.partition)?;
            }
            state.begin(&self.id);
        }
        if let Err(error) = self.fill(records, progress) {
            return Err(self.give_up(error));
        }
        match self.log.reach("commit.before") {
            Some(Action::Fail) => return Err(self.unknown()),
            Some(Action::Repeat) => {
                let arrives = Instant::now() + draw(&LATE);
                let mut state = self.step()?;
                if let Some(open) = state.open(&self.id) {
                    open.arrives = Some(arrives);
                }
                state.note_next_end();
                drop(state);
                return Err(self.unknown());
            }
            _ => {}
        }
        if let Err(error) = self.end(Kind::Committed) {
            self.is_broken = true;
            return Err(error);
        }
        if self.log.reach("commit.after") == Some(Action::Fail) {
            return Err(self.unknown());
        }
        Ok(())
    }
}
