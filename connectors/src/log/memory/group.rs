//! Consumer groups: who has which partition in hand, and what was committed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::{
    Committed, GroupHandle, GroupHandleInner, Isolation, LogError, Member, MemberEvent, Membership, PartitionReader,
    Record, Remedy, TopicPartition,
};
use super::partition::MemoryReader;
use super::{Look, MemoryLog, State, gone, is_unwinding};
use crate::runtime::Signal;

#[derive(Debug, Default)]
pub(super) struct Group {
    members: BTreeMap<u64, MemberState>,
    /// Members whose instance name another has taken.
    fenced: BTreeSet<u64>,
    pub committed: BTreeMap<TopicPartition, Committed>,
    /// Who has a partition in hand, from `Assigned` until it is given back.
    owners: BTreeMap<TopicPartition, u64>,
    /// Those who wait for transactions that could still move the committed offsets.
    waiting: Vec<Arc<Signal>>,
}

#[derive(Debug)]
struct MemberState {
    process: u64,
    topics: Vec<String>,
    instance: Option<String>,
    events: VecDeque<MemberEvent>,
    /// Asked to give these back.
    giving_back: BTreeSet<TopicPartition>,
    signal: Arc<Signal>,
}

impl MemberState {
    fn tell(&mut self, event: MemberEvent) {
        self.events.push_back(event);
        self.signal.notify_all();
    }
}

impl Group {
    pub fn listen(&mut self, signal: &Arc<Signal>) {
        self.waiting.push(signal.clone());
    }

    pub fn wake(&mut self) {
        self.waiting.drain(..).for_each(|signal| signal.notify_all());
    }

    pub fn wake_members(&self) {
        self.members.values().for_each(|member| member.signal.notify_all());
    }

    fn holder(&self, instance: Option<&String>) -> Option<u64> {
        let instance = instance?;
        self.members.iter().find(|(_, known)| known.instance.as_ref() == Some(instance)).map(|(id, _)| *id)
    }

    /// A member that comes back under its instance name takes the place it left, with the partitions.
    fn admit(&mut self, id: u64, mut member: MemberState) {
        if let Some(former) = self.holder(member.instance.as_ref()) {
            let mut kept = Vec::new();
            self.owners.retain(|partition, owner| {
                if *owner != former {
                    return true;
                }
                *owner = id;
                let is_wanted = member.topics.contains(&partition.topic);
                if is_wanted {
                    kept.push(partition.clone());
                }
                is_wanted
            });
            if !kept.is_empty() {
                member.tell(MemberEvent::Assigned(kept));
            }
            self.fenced.insert(former);
            if let Some(former) = self.members.remove(&former) {
                former.signal.notify_all();
            }
        }
        self.members.insert(id, member);
    }

    fn remove(&mut self, id: u64) {
        self.owners.retain(|_, owner| *owner != id);
        if let Some(member) = self.members.remove(&id) {
            member.signal.notify_all();
        }
    }
}

impl State {
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
                        member.tell(MemberEvent::Revoked(vec![partition.clone()]));
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
                member.tell(MemberEvent::Assigned(partitions));
            }
        }
    }

    /// As Kafka: any member may commit any offset. That an old owner does not is the matter of its transactional id.
    pub(super) fn check_member(&self, group: &str, member: u64) -> Result<(), LogError> {
        // The group would refuse most of what fencing is there for: without the one, the other is taken away as well.
        let is_unchecked = crate::runtime::fault::is_removed("fence first");
        if is_unchecked || self.groups.get(group).is_some_and(|group| group.members.contains_key(&member)) {
            return Ok(());
        }
        Err(LogError::new(Remedy::Fenced, "committing offsets", "the group has gone on without this member"))
    }

    /// Members of these processes have been silent for too long: their partitions go to others.
    pub(super) fn expire_members(&mut self, processes: &[u64]) {
        let mut names = Vec::new();
        for (name, group) in &mut self.groups {
            let silent = group.members.iter().filter(|(_, member)| processes.contains(&member.process));
            let silent: Vec<u64> = silent.map(|(id, _)| *id).collect();
            if !silent.is_empty() {
                silent.into_iter().for_each(|id| group.remove(id));
                names.push(name.clone());
            }
        }
        for name in names {
            self.rebalance(&name);
        }
    }
}

pub(super) struct MemoryMember {
    log: MemoryLog,
    id: u64,
    membership: Membership,
    signal: Arc<Signal>,
    keeps_place: bool,
    /// Partitions read through the member, with the next offset of each.
    started: BTreeMap<TopicPartition, i64>,
    /// Handed out, until they are given back.
    held: BTreeSet<TopicPartition>,
    /// Asked to give these back.
    asked_for: BTreeSet<TopicPartition>,
    /// It was told that it has lost all it holds.
    has_lost: bool,
}

impl MemoryMember {
    pub fn join(log: &MemoryLog, membership: &Membership) -> Result<Self, LogError> {
        let mut state = log.ask("joining a group")?;
        let mut member = Self {
            log: log.clone(),
            id: state.number(),
            membership: membership.clone(),
            signal: Arc::new(Signal::new()),
            keeps_place: membership.instance.is_some(),
            started: BTreeMap::new(),
            held: BTreeSet::new(),
            asked_for: BTreeSet::new(),
            has_lost: false,
        };
        member.enter(&mut state);
        Ok(member)
    }

    fn enter(&mut self, state: &mut State) {
        let member = MemberState {
            process: self.log.process,
            topics: self.membership.topics.clone(),
            instance: self.membership.instance.clone(),
            events: VecDeque::new(),
            giving_back: BTreeSet::new(),
            signal: self.signal.clone(),
        };
        state.groups.entry(self.membership.group.clone()).or_default().admit(self.id, member);
        state.rebalance(&self.membership.group);
        self.has_lost = false;
    }

    fn fenced(&self) -> LogError {
        let step = format!("serving group `{}`", self.membership.group);
        LogError::new(Remedy::Fenced, step, "another member has joined under the same instance name")
    }

    /// What has happened to the assignment; `None` while nothing has.
    fn look(&mut self, state: &mut State) -> Option<Result<Vec<MemberEvent>, LogError>> {
        if self.log.is_gone(state) {
            return Some(Err(gone("serving a group")));
        }
        if !state.is_available {
            return None;
        }
        let group = state.groups.get(&self.membership.group)?;
        if !group.members.contains_key(&self.id) {
            let is_fenced =
                group.fenced.contains(&self.id) || group.holder(self.membership.instance.as_ref()).is_some();
            if !self.held.is_empty() && !self.has_lost {
                self.has_lost = true;
                return Some(Ok(vec![MemberEvent::Lost(self.held.iter().cloned().collect())]));
            }
            if is_fenced {
                return Some(Err(self.fenced()));
            }
            if !self.held.is_empty() {
                // It joins again once it has given up what it lost.
                return None;
            }
            self.enter(state);
        }
        let member = state.groups.get_mut(&self.membership.group)?.members.get_mut(&self.id)?;
        if member.events.is_empty() {
            return None;
        }
        let events: Vec<MemberEvent> = member.events.drain(..).collect();
        for event in &events {
            match event {
                MemberEvent::Assigned(partitions) => self.held.extend(partitions.iter().cloned()),
                MemberEvent::Revoked(partitions) => self.asked_for.extend(partitions.iter().cloned()),
                MemberEvent::Lost(_) => {}
            }
        }
        Some(Ok(events))
    }
}

fn bare(next_offset: i64) -> Committed {
    Committed { next_offset, metadata: String::new() }
}

impl Member for MemoryMember {
    fn events(&mut self, wait: Duration) -> Result<Vec<MemberEvent>, LogError> {
        let (log, signal) = (self.log.clone(), self.signal.clone());
        let events = log.wait_for(&signal, wait, |state, _| match self.look(state) {
            Some(events) => Look::Found(events),
            None => Look::Again(None),
        });
        events.unwrap_or_else(|| Ok(Vec::new()))
    }

    fn start(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        self.started.extend(positions.iter().cloned());
        Ok(())
    }

    fn start_split(&mut self, positions: &[(TopicPartition, i64)]) -> Result<Vec<Box<dyn PartitionReader>>, LogError> {
        let reader = |(from, next): &(TopicPartition, i64)| -> Box<dyn PartitionReader> {
            Box::new(MemoryReader {
                log: self.log.clone(),
                from: from.clone(),
                next: *next,
                isolation: self.membership.isolation,
                signal: Arc::new(Signal::new()),
                is_at_end: false,
            })
        };
        Ok(positions.iter().map(reader).collect())
    }

    fn stop(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let mut state = self.log.lock();
        if self.log.is_gone(&state) {
            return Ok(());
        }
        let name = &self.membership.group;
        let mut has_freed = false;
        for partition in partitions {
            self.started.remove(partition);
            let Some(group) = state.groups.get_mut(name) else {
                continue;
            };
            let Some(member) = group.members.get_mut(&self.id) else {
                self.held.remove(partition);
                continue;
            };
            // What nobody has asked for is only not read any more: as with Kafka it stays this member's.
            if self.asked_for.remove(partition) {
                self.held.remove(partition);
                member.giving_back.remove(partition);
                if group.owners.get(partition) == Some(&self.id) {
                    group.owners.remove(partition);
                    has_freed = true;
                }
            }
        }
        if has_freed {
            state.rebalance(name);
        }
        Ok(())
    }

    fn read(
        &mut self,
        max: usize,
        wait: Duration,
        records: &mut Vec<(TopicPartition, Record)>,
    ) -> Result<(), LogError> {
        let isolation: Isolation = self.membership.isolation;
        let Self { log, started, signal, .. } = self;
        let mut found = Vec::new();
        let done = log.wait_for(signal, wait, |state, until| {
            if log.is_gone(state) {
                return Look::Found(Err(gone("reading")));
            }
            let before = records.len();
            if state.is_available {
                for (partition, next) in started.iter_mut() {
                    let room = max - (records.len() - before);
                    if let Err(error) = state.read(partition, next, room, isolation, &mut found) {
                        return Look::Found(Err(error));
                    }
                    records.extend(found.drain(..).map(|record| (partition.clone(), record)));
                }
                if records.len() > before {
                    return Look::Found(Ok(()));
                }
            }
            Look::Again(started.keys().filter_map(|from| state.listen(from, signal, until, isolation)).min())
        });
        done.unwrap_or(Ok(()))
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
        self.log.stable_offsets(&self.membership.group, partitions)
    }

    fn commit_with_metadata(&mut self, positions: &[(TopicPartition, Committed)]) -> Result<(), LogError> {
        let mut state = self.log.ask("committing offsets")?;
        state.check_member(&self.membership.group, self.id)?;
        if let Some(group) = state.groups.get_mut(&self.membership.group) {
            group.committed.extend(positions.iter().cloned());
        }
        Ok(())
    }

    fn pause(&mut self, _paused: bool) -> Result<(), LogError> {
        // Records are fetched by `read` only.
        Ok(())
    }

    fn group(&self) -> GroupHandle {
        GroupHandle(GroupHandleInner::Memory { group: self.membership.group.clone(), member: Some(self.id) })
    }

    fn leave(mut self: Box<Self>) {
        self.keeps_place = false;
    }
}

impl Drop for MemoryMember {
    fn drop(&mut self) {
        if self.keeps_place || is_unwinding() {
            return;
        }
        let mut state = self.log.lock();
        if self.log.is_gone(&state) {
            return;
        }
        if let Some(group) = state.groups.get_mut(&self.membership.group) {
            group.remove(self.id);
        }
        state.rebalance(&self.membership.group);
    }
}
