//! The in-memory log: Kafka's behavior where it matters, in one process and without threads.
//!
//! Order per partition, append times from an injected clock, groups with cooperative hand-over, records and offsets of a
//! transaction visible together. A transaction here is one call, so nothing is ever left open; fencing, held-back readers
//! and unknown outcomes have their place in [`Transactional::commit`]. Records stay until the log is dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wardbell_schemas::Micros;

use crate::clock::Clock;

use super::inspect::{Inspect, Right, TopicFault};
use super::{
    Appended, Appender, Committed, GroupHandle, GroupHandleInner, Isolation, Log, LogError, Member, MemberEvent,
    Membership, Outgoing, PartitionReader, Progress, Record, Remedy, StampedBy, TopicPartition, TopicSpec,
    Transactional,
};

/// See the module. Clones are clients of the same log.
#[derive(Debug, Clone)]
pub struct MemoryLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
struct State {
    topics: HashMap<String, Topic>,
    groups: HashMap<String, Group>,
    next_member: u64,
    /// Newest owner of each transactional id.
    epochs: HashMap<String, u64>,
}

#[derive(Debug)]
struct Topic {
    stamped_by: StampedBy,
    partitions: Vec<Vec<Record>>,
}

#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<u64, MemberState>,
    committed: HashMap<TopicPartition, Committed>,
    /// Who has a partition in hand, from `Assigned` until `stop`.
    owners: HashMap<TopicPartition, u64>,
}

#[derive(Debug, Default)]
struct MemberState {
    topics: Vec<String>,
    instance: Option<String>,
    events: VecDeque<MemberEvent>,
    /// Asked to give these back.
    giving_back: BTreeSet<TopicPartition>,
}

impl MemoryLog {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), clock }) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics while it holds the lock; a poisoned one is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, state: &mut State, record: &Outgoing) -> Result<Appended, LogError> {
        let now = self.clock.now_us();
        let partition = state.partition(&record.topic, record.partition)?;
        let offset = partition.1.len() as i64;
        let stamped_by = partition.0;
        let time_us = match stamped_by {
            StampedBy::Broker => now,
            StampedBy::Producer => record.time_us.unwrap_or(now),
        };
        partition.1.push(Record {
            partition: record.partition,
            offset,
            time_us,
            append_us: Some(now),
            key: record.key.clone(),
            value: record.value.clone(),
            headers: record.headers.clone(),
        });
        let append_us = (stamped_by == StampedBy::Broker).then_some(now);
        Ok(Appended { partition: record.partition, offset, append_us })
    }

    /// Waits until `ready` gives something or the time is over.
    fn wait_for<T>(&self, wait: Duration, mut ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + wait;
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let (guard, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = guard;
        }
    }
}

impl State {
    fn partition(&mut self, topic: &str, partition: i32) -> Result<(StampedBy, &mut Vec<Record>), LogError> {
        let missing =
            || LogError::new(Remedy::Refuse, format!("topic `{topic}`, partition {partition}"), "does not exist");
        let topic = self.topics.get_mut(topic).ok_or_else(missing)?;
        let stamped_by = topic.stamped_by;
        let records = usize::try_from(partition).ok().and_then(|index| topic.partitions.get_mut(index));
        Ok((stamped_by, records.ok_or_else(missing)?))
    }

    fn read(&self, from: &TopicPartition, next: &mut i64, max: usize, records: &mut Vec<Record>) {
        let topic = self.topics.get(&from.topic);
        let partition = topic.and_then(|topic| topic.partitions.get(usize::try_from(from.partition).ok()?));
        let Some(partition) = partition else {
            return;
        };
        let start = usize::try_from(*next).unwrap_or(0).min(partition.len());
        let end = (start + max).min(partition.len());
        records.extend_from_slice(&partition[start..end]);
        *next = end as i64;
    }

    /// Hands partitions out anew after a change of members: evenly, moving as few as possible.
    fn rebalance(&mut self, group: &str) {
        let Some(group) = self.groups.get_mut(group) else {
            return;
        };
        let mut wanted: BTreeMap<TopicPartition, Vec<u64>> = BTreeMap::new();
        for (member, state) in &group.members {
            for topic in &state.topics {
                for partition in 0..self.topics.get(topic).map_or(0, |topic| topic.partitions.len()) {
                    wanted.entry(TopicPartition::new(topic, partition as i32)).or_default().push(*member);
                }
            }
        }
        let mut load: BTreeMap<u64, usize> = group.members.keys().map(|member| (*member, 0)).collect();
        let fair = wanted.len().div_ceil(load.len().max(1));
        let mut homeless = Vec::new();
        for (partition, candidates) in wanted {
            match group.owners.get(&partition).copied() {
                Some(owner) if candidates.contains(&owner) && load.get(&owner).is_some_and(|load| *load < fair) => {
                    *load.entry(owner).or_default() += 1;
                }
                Some(owner) => {
                    // Too many in one hand: it is asked for this one, and it goes to somebody else once given back.
                    if let Some(member) = group.members.get_mut(&owner)
                        && member.giving_back.insert(partition.clone())
                    {
                        member.events.push_back(MemberEvent::Revoked(vec![partition.clone()]));
                    }
                }
                None => homeless.push((partition, candidates)),
            }
        }
        let mut assigned: BTreeMap<u64, Vec<TopicPartition>> = BTreeMap::new();
        for (partition, candidates) in homeless {
            let Some(member) = candidates.into_iter().min_by_key(|member| load.get(member).copied().unwrap_or(0))
            else {
                continue;
            };
            *load.entry(member).or_default() += 1;
            group.owners.insert(partition.clone(), member);
            assigned.entry(member).or_default().push(partition);
        }
        for (member, partitions) in assigned {
            if let Some(member) = group.members.get_mut(&member) {
                member.events.push_back(MemberEvent::Assigned(partitions));
            }
        }
    }

    fn commit(&mut self, group: &str, member: u64, positions: &[(TopicPartition, Committed)]) -> Result<(), LogError> {
        let group = self.groups.entry(group.to_owned()).or_default();
        for (partition, _) in positions {
            if group.owners.get(partition) != Some(&member) {
                return Err(LogError::new(
                    Remedy::Fenced,
                    format!("committing {}/{}", partition.topic, partition.partition),
                    "the partition belongs to another member",
                ));
            }
        }
        group.committed.extend(positions.iter().cloned());
        Ok(())
    }

    fn leave(&mut self, group: &str, member: u64) {
        if let Some(known) = self.groups.get_mut(group) {
            known.members.remove(&member);
            known.owners.retain(|_, owner| *owner != member);
        }
        self.rebalance(group);
    }
}

impl Log for MemoryLog {
    fn prepare(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        {
            let mut state = self.shared.lock();
            for spec in topics.iter().filter(|spec| spec.create) {
                let partitions = (0..spec.partitions).map(|_| Vec::new()).collect();
                let made = Topic { stamped_by: spec.stamped_by, partitions };
                state.topics.entry(spec.name.clone()).or_insert(made);
            }
        }
        let faults: Vec<String> = self.topic_faults(topics)?.iter().map(ToString::to_string).collect();
        if faults.is_empty() {
            return Ok(());
        }
        Err(LogError::new(Remedy::Refuse, "preparing topics", faults.join("\n  ")))
    }

    fn describe(&self, topic: &str) -> Result<(i32, StampedBy), LogError> {
        let state = self.shared.lock();
        let known = state.topics.get(topic);
        let known = known.ok_or_else(|| LogError::new(Remedy::Refuse, format!("topic `{topic}`"), "does not exist"))?;
        Ok((known.partitions.len() as i32, known.stamped_by))
    }

    fn offsets(&self, topic: &str, partition: i32) -> Result<(i64, i64), LogError> {
        Ok((0, self.shared.lock().partition(topic, partition)?.1.len() as i64))
    }

    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Option<i64>>, LogError> {
        let state = self.shared.lock();
        let group = state.groups.get(group);
        Ok(partitions.iter().map(|partition| Some(group?.committed.get(partition)?.next_offset)).collect())
    }

    fn appender(&self) -> Result<Box<dyn Appender>, LogError> {
        Ok(Box::new(MemoryAppender { shared: self.shared.clone(), outcomes: VecDeque::new() }))
    }

    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError> {
        let mut state = self.shared.lock();
        let epoch = state.epochs.entry(id.to_owned()).or_default();
        *epoch += 1;
        Ok(Box::new(MemoryTransactional { shared: self.shared.clone(), id: id.to_owned(), epoch: *epoch }))
    }

    fn join(&self, membership: &Membership) -> Result<Box<dyn Member>, LogError> {
        let mut state = self.shared.lock();
        state.next_member += 1;
        let id = state.next_member;
        let group = state.groups.entry(membership.group.clone()).or_default();
        // A member that comes back under its instance name takes the place it left.
        let former = membership.instance.as_ref().and_then(|instance| {
            group.members.iter().find(|(_, known)| known.instance.as_ref() == Some(instance)).map(|(id, _)| *id)
        });
        if let Some(former) = former {
            group.members.remove(&former);
            group.owners.retain(|_, owner| *owner != former);
        }
        let member = MemberState {
            topics: membership.topics.clone(),
            instance: membership.instance.clone(),
            ..MemberState::default()
        };
        group.members.insert(id, member);
        state.rebalance(&membership.group);
        drop(state);
        self.shared.changed.notify_all();
        Ok(Box::new(MemoryMember {
            shared: self.shared.clone(),
            group: membership.group.clone(),
            id,
            keeps_place: membership.instance.is_some(),
            started: BTreeMap::new(),
        }))
    }

    fn reader(
        &self,
        from: &TopicPartition,
        next_offset: i64,
        _isolation: Isolation,
    ) -> Result<Box<dyn PartitionReader>, LogError> {
        Ok(Box::new(MemoryReader { shared: self.shared.clone(), from: from.clone(), next: next_offset.max(0) }))
    }
}

impl Inspect for MemoryLog {
    fn topic_faults(&self, topics: &[TopicSpec]) -> Result<Vec<TopicFault>, LogError> {
        let state = self.shared.lock();
        let fault = |spec: &TopicSpec| match state.topics.get(&spec.name) {
            None if spec.create => None,
            None => Some(TopicFault::error(&spec.name, "does not exist", "make it")),
            Some(topic) if !spec.any_partitions && topic.partitions.len() as i32 != spec.partitions => {
                let what = format!("has {} partitions but {} are configured", topic.partitions.len(), spec.partitions);
                Some(TopicFault::error(&spec.name, what, "correct the configuration"))
            }
            Some(_) => None,
        };
        Ok(topics.iter().filter_map(fault).collect())
    }

    fn may(&self, right: &Right) -> Result<(), LogError> {
        match right {
            Right::Read(place) | Right::Write(place) => {
                self.shared.lock().partition(&place.topic, place.partition).map(|_| ())
            }
            Right::Append => Ok(()),
        }
    }

    fn broker_settings(&self) -> Result<BTreeMap<String, String>, LogError> {
        Ok(BTreeMap::new())
    }
}

fn bare(next_offset: i64) -> Committed {
    Committed { next_offset, metadata: String::new() }
}

struct MemoryAppender {
    shared: Arc<Shared>,
    outcomes: VecDeque<(u64, Appended)>,
}

impl Appender for MemoryAppender {
    fn append(&mut self, record: &Outgoing, token: u64) -> Result<(), LogError> {
        let appended = self.shared.append(&mut self.shared.lock(), record)?;
        self.shared.changed.notify_all();
        self.outcomes.push_back((token, appended));
        Ok(())
    }

    fn outcomes(&mut self, _wait: Duration, outcomes: &mut Vec<(u64, Result<Appended, LogError>)>) {
        outcomes.extend(self.outcomes.drain(..).map(|(token, appended)| (token, Ok(appended))));
    }

    fn in_flight(&self) -> usize {
        self.outcomes.len()
    }
}

struct MemoryTransactional {
    shared: Arc<Shared>,
    id: String,
    epoch: u64,
}

impl Transactional for MemoryTransactional {
    fn warm_up(&mut self, _to: &TopicPartition) -> Result<Option<Micros>, LogError> {
        Ok(None)
    }

    fn commit(&mut self, records: &[Outgoing], progress: Option<&Progress<'_>>) -> Result<(), LogError> {
        let mut state = self.shared.lock();
        let step = || format!("transaction `{}`", self.id);
        if state.epochs.get(&self.id) != Some(&self.epoch) {
            return Err(LogError::new(Remedy::Fenced, step(), "another producer took over this id"));
        }
        if records.is_empty() && progress.is_none() {
            return Err(LogError::new(Remedy::Refuse, step(), "a transaction without records and offsets"));
        }
        for record in records {
            state.partition(&record.topic, record.partition)?;
        }
        if let Some(progress) = progress {
            let GroupHandleInner::Memory { group, member } = &progress.group.0 else {
                return Err(LogError::new(Remedy::Refuse, step(), "the group is of another log"));
            };
            state.commit(group, *member, &[(progress.position.clone(), bare(progress.next_offset))])?;
        }
        for record in records {
            self.shared.append(&mut state, record)?;
        }
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }
}

struct MemoryMember {
    shared: Arc<Shared>,
    group: String,
    id: u64,
    keeps_place: bool,
    /// Partitions read through the member, with the next offset of each.
    started: BTreeMap<TopicPartition, i64>,
}

impl Member for MemoryMember {
    fn events(&mut self, wait: Duration) -> Result<Vec<MemberEvent>, LogError> {
        let (group, id) = (self.group.clone(), self.id);
        let events = self.shared.wait_for(wait, |state| {
            let member = state.groups.get_mut(&group)?.members.get_mut(&id)?;
            (!member.events.is_empty()).then(|| member.events.drain(..).collect())
        });
        Ok(events.unwrap_or_default())
    }

    fn start(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        self.started.extend(positions.iter().cloned());
        Ok(())
    }

    fn start_split(&mut self, positions: &[(TopicPartition, i64)]) -> Result<Vec<Box<dyn PartitionReader>>, LogError> {
        let reader = |(from, next): &(TopicPartition, i64)| -> Box<dyn PartitionReader> {
            Box::new(MemoryReader { shared: self.shared.clone(), from: from.clone(), next: *next })
        };
        Ok(positions.iter().map(reader).collect())
    }

    fn stop(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let mut state = self.shared.lock();
        for partition in partitions {
            self.started.remove(partition);
            if let Some(group) = state.groups.get_mut(&self.group) {
                if group.owners.get(partition) == Some(&self.id) {
                    group.owners.remove(partition);
                }
                if let Some(member) = group.members.get_mut(&self.id) {
                    member.giving_back.remove(partition);
                }
            }
        }
        state.rebalance(&self.group);
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn read(
        &mut self,
        max: usize,
        wait: Duration,
        records: &mut Vec<(TopicPartition, Record)>,
    ) -> Result<(), LogError> {
        let started = &mut self.started;
        self.shared.wait_for(wait, |state| {
            let before = records.len();
            for (partition, next) in started.iter_mut() {
                let mut found = Vec::new();
                state.read(partition, next, max - (records.len() - before), &mut found);
                records.extend(found.into_iter().map(|record| (partition.clone(), record)));
            }
            (records.len() > before).then_some(())
        });
        Ok(())
    }

    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<i64>>, LogError> {
        let committed = self.committed_with_metadata(partitions)?;
        Ok(committed.into_iter().map(|committed| Some(committed?.next_offset)).collect())
    }

    fn commit(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        let positions: Vec<_> = positions.iter().map(|(partition, next)| (partition.clone(), bare(*next))).collect();
        self.commit_with_metadata(&positions)
    }

    fn committed_with_metadata(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<Committed>>, LogError> {
        let state = self.shared.lock();
        let group = state.groups.get(&self.group);
        Ok(partitions.iter().map(|partition| group?.committed.get(partition).cloned()).collect())
    }

    fn commit_with_metadata(&mut self, positions: &[(TopicPartition, Committed)]) -> Result<(), LogError> {
        self.shared.lock().commit(&self.group, self.id, positions)
    }

    fn pause(&mut self, _paused: bool) -> Result<(), LogError> {
        // Records are fetched by `read` only.
        Ok(())
    }

    fn group(&self) -> GroupHandle {
        GroupHandle(GroupHandleInner::Memory { group: self.group.clone(), member: self.id })
    }

    fn leave(mut self: Box<Self>) {
        self.keeps_place = false;
    }
}

impl Drop for MemoryMember {
    fn drop(&mut self) {
        if !self.keeps_place {
            self.shared.lock().leave(&self.group, self.id);
            self.shared.changed.notify_all();
        }
    }
}

struct MemoryReader {
    shared: Arc<Shared>,
    from: TopicPartition,
    next: i64,
}

impl PartitionReader for MemoryReader {
    fn position(&self) -> &TopicPartition {
        &self.from
    }

    fn read(&mut self, max: usize, wait: Duration, records: &mut Vec<Record>) -> Result<(), LogError> {
        let (from, next) = (&self.from, &mut self.next);
        self.shared.wait_for(wait, |state| {
            let before = records.len();
            state.read(from, next, max, records);
            (records.len() > before).then_some(())
        });
        Ok(())
    }
}
