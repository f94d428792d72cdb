//! The in-memory log: Kafka's behavior where it matters, in one process and without threads.
//!
//! Order per partition, append times from an injected clock, groups with cooperative hand-over and static membership,
//! transactions whose records and offsets become visible together and hold readers back until then. Everything happens at
//! once, unless it is told otherwise: appends can take time ([`MemoryLog::set_append_delay`]), the broker can be away
//! ([`MemoryLog::set_available`]), and processes ([`MemoryLog::client`]) can be killed or silent for too long. What is due
//! by itself (an append that arrives, a transaction that takes too long) happens when somebody looks next.
//!
//! One lock guards it all; it is never held while anybody waits. Records stay until they are deleted.

mod append;
mod group;
mod partition;
mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::inspect::{Inspect, Right, TopicFault};
use super::{
    Appender, Committed, GroupHandle, GroupHandleInner, Isolation, Log, LogError, Member, Membership, PartitionReader,
    Record, Remedy, StampedBy, TopicPartition, TopicSpec, Transactional,
};
use crate::clock::Clock;
use crate::runtime::fault::{self, Action};
use crate::runtime::{Instant, Signal, idle, sleep};
use append::{AppenderState, MemoryAppender};
use group::{Group, MemoryMember};
pub use partition::Kind;
use partition::{MemoryReader, Topic};
use transaction::{Coordinated, MemoryTransactional};

/// A call that meets an outage answers after this.
const OUTAGE_PAUSE: Duration = Duration::from_secs(1);
/// Calls that wait for the broker give up after this.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A reader whose wait ends within this of an arrival is not woken to be told of it.
const SLACK: Duration = Duration::from_millis(100);
/// Shortest wait before another look.
const TURN: Duration = Duration::from_millis(1);

/// See the module. Clones are the same process.
#[derive(Debug, Clone)]
pub struct MemoryLog {
    shared: Arc<Mutex<State>>,
    /// Name of the process; empty for whoever made the log, which nothing happens to.
    name: Arc<str>,
    process: u64,
}

#[derive(Debug)]
struct State {
    clock: Arc<dyn Clock>,
    topics: BTreeMap<String, Topic>,
    groups: BTreeMap<String, Group>,
    appenders: BTreeMap<u64, AppenderState>,
    /// Transactional ids.
    producers: BTreeMap<String, Coordinated>,
    /// When the first open transaction ends by itself.
    next_end: Option<Instant>,
    processes: BTreeMap<u64, Arc<str>>,
    gone: BTreeSet<u64>,
    next_number: u64,
    is_available: bool,
    append_delay: RangeInclusive<Duration>,
}

/// What came of a look at the log.
enum Look<T> {
    Found(T),
    /// Nothing yet; there may be something then, without a word.
    Again(Option<Instant>),
}

impl MemoryLog {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let state = State {
            clock,
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            appenders: BTreeMap::new(),
            producers: BTreeMap::new(),
            next_end: None,
            processes: BTreeMap::new(),
            gone: BTreeSet::new(),
            next_number: 0,
            is_available: true,
            append_delay: Duration::ZERO..=Duration::ZERO,
        };
        Self { shared: Arc::new(Mutex::new(state)), name: Arc::from(""), process: 0 }
    }

    /// The log as a new process of that name sees it: all that is made through it belongs to that process.
    pub fn client(&self, name: &str) -> Self {
        let name: Arc<str> = Arc::from(name);
        let mut state = self.lock();
        let process = state.number();
        state.processes.insert(process, name.clone());
        drop(state);
        Self { shared: self.shared.clone(), name, process }
    }

    /// The process of that name is gone: what is done through its handles has no effect any more, its members leave no
    /// group, its open transactions stay open, and of its appends on their way some arrive.
    pub fn kill(&self, client: &str) {
        let mut state = self.lock();
        let processes = state.processes_named(client);
        state.let_go_of_processes(&processes);
        state.gone.extend(processes);
        state.wake_all();
    }

    /// The process of that name has been silent for the session time-out: its members are in their groups no more. If
    /// it lives, they hear of it and join again.
    pub fn expire(&self, client: &str) {
        let mut state = self.lock();
        let processes = state.processes_named(client);
        state.expire_members(&processes);
    }

    /// How long appends are on their way from now on; none at first. They do not overtake one another.
    pub fn set_append_delay(&self, delay: RangeInclusive<Duration>) {
        self.lock().append_delay = delay;
    }

    /// The broker goes away or comes back, with all it held.
    pub fn set_available(&self, is_available: bool) {
        let mut state = self.lock();
        state.is_available = is_available;
        state.end_overdue();
        state.wake_all();
    }

    /// Makes a topic anew: empty, and no group has committed anything of it.
    pub fn recreate(&self, topic: &str) {
        let mut state = self.lock();
        state.forget_transactions_in(topic);
        for group in state.groups.values_mut() {
            group.committed.retain(|partition, _| partition.topic != topic);
        }
        if let Some(known) = state.topics.get_mut(topic) {
            let mut anew = Topic::new(known.stamped_by, known.partitions.len());
            for (partition, former) in anew.partitions.iter_mut().zip(&mut known.partitions) {
                partition.in_flight = std::mem::take(&mut former.in_flight);
                former.wake_all();
            }
            *known = anew;
        }
    }

    /// What a read-committed reader would see of a partition if no transaction were open.
    pub fn dump(&self, topic: &str, partition: i32) -> Vec<Record> {
        let all = self.dump_all(topic, partition).into_iter();
        all.filter(|(_, kind)| *kind == Kind::Committed).map(|(record, _)| record).collect()
    }

    /// All that holds an offset of a partition.
    pub fn dump_all(&self, topic: &str, partition: i32) -> Vec<(Record, Kind)> {
        let mut state = self.lock();
        state.take_in(topic, partition);
        let partition = state.partition(topic, partition);
        partition.map_or_else(|_| Vec::new(), |partition| partition.entries().cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics while it holds the lock; a poisoned one is still whole.
        let mut state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        state.end_overdue();
        state
    }

    /// The log, to ask it something.
    fn ask(&self, step: &str) -> Result<MutexGuard<'_, State>, LogError> {
        let mut state = self.lock();
        if !state.is_available && !self.is_gone(&state) {
            drop(state);
            sleep(OUTAGE_PAUSE);
            state = self.lock();
        }
        if self.is_gone(&state) {
            return Err(gone(step));
        }
        if !state.is_available {
            return Err(LogError::new(Remedy::Retry, step, "the broker does not answer"));
        }
        Ok(state)
    }

    fn is_gone(&self, state: &State) -> bool {
        is_unwinding() || state.gone.contains(&self.process)
    }

    /// Only what named processes do has fault points.
    fn reach(&self, point: &'static str) -> Option<Action> {
        if self.name.is_empty() { None } else { fault::reach(point) }
    }

    /// Looks again and again until something is found or the time is over; a look is told when that will be.
    fn wait_for<T>(
        &self,
        signal: &Signal,
        wait: Duration,
        mut look: impl FnMut(&mut State, Instant) -> Look<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + idle(wait);
        let mut state = self.lock();
        loop {
            let again = match look(&mut state, deadline) {
                Look::Found(found) => return Some(found),
                Look::Again(again) => again,
            };
            let now = Instant::now();
            if now >= deadline {
                return None;
            }
            let until = again.map_or(deadline, |again| again.min(deadline));
            state = signal.wait(&self.shared, state, until.saturating_duration_since(now).max(TURN));
            state.end_overdue();
        }
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn processes_named(&self, name: &str) -> Vec<u64> {
        self.processes.iter().filter(|(_, known)| &***known == name).map(|(process, _)| *process).collect()
    }

    fn wake_all(&mut self) {
        self.topics.values_mut().flat_map(|topic| &mut topic.partitions).for_each(|partition| partition.wake_all());
        self.appenders.values_mut().for_each(AppenderState::wake);
        for group in self.groups.values_mut() {
            group.wake();
            group.wake_members();
        }
    }
}

/// What a handle of a killed process answers.
fn gone(step: &str) -> LogError {
    LogError::new(Remedy::Restart, step, "this process is gone")
}

/// A thread of a killed instance unwinds: what it does on its way reaches nobody.
fn is_unwinding() -> bool {
    #[cfg(feature = "simulation")]
    return std::thread::panicking() && crate::runtime::simulated::is_simulated();
    #[cfg(not(feature = "simulation"))]
    false
}

/// A duration of a range.
fn draw(range: &RangeInclusive<Duration>) -> Duration {
    let nanos = |duration: &Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let (least, most) = (nanos(range.start()), nanos(range.end()));
    if least >= most { *range.start() } else { Duration::from_nanos(fastrand::u64(least..=most)) }
}

impl Log for MemoryLog {
    fn prepare(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        {
            let mut state = self.ask("preparing topics")?;
            for spec in topics.iter().filter(|spec| spec.create) {
                let n_partitions = usize::try_from(spec.partitions).unwrap_or(0);
                let made = || Topic::new(spec.stamped_by, n_partitions);
                state.topics.entry(spec.name.clone()).or_insert_with(made);
            }
        }
        let faults: Vec<String> = self.topic_faults(topics)?.iter().map(ToString::to_string).collect();
        if faults.is_empty() {
            return Ok(());
        }
        Err(LogError::new(Remedy::Refuse, "preparing topics", faults.join("\n  ")))
    }

    fn describe(&self, topic: &str) -> Result<(i32, StampedBy), LogError> {
        let state = self.ask("describing a topic")?;
        let known = state.topics.get(topic);
        let known = known.ok_or_else(|| LogError::new(Remedy::Refuse, format!("topic `{topic}`"), "does not exist"))?;
        Ok((known.partitions.len() as i32, known.stamped_by))
    }

    fn offsets(&self, topic: &str, partition: i32) -> Result<(i64, i64), LogError> {
        let mut state = self.ask("asking for the end of a partition")?;
        state.take_in(topic, partition);
        let partition = state.partition(topic, partition)?;
        // As Kafka answers a client that reads what is committed: an open transaction is beyond the end.
        Ok((partition.first(), partition.stable_end()))
    }

    fn committed_with_metadata(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Committed>>, LogError> {
        self.stable_offsets(group, partitions)
    }

    fn committed_by(
        &self,
        member: &GroupHandle,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Committed>>, LogError> {
        let GroupHandleInner::Memory { group, .. } = &member.0 else {
            let step = "asking for committed offsets";
            return Err(LogError::new(Remedy::Refuse, step, "the group is of another log"));
        };
        self.stable_offsets(group, partitions)
    }

    fn delete_before(&self, topic: &str, partition: i32, offset: i64) -> Result<(), LogError> {
        let mut state = self.ask("deleting records")?;
        state.take_in(topic, partition);
        let known = state.partition(topic, partition)?;
        if offset > known.end() {
            let step = format!("deleting records of {topic}/{partition}");
            return Err(LogError::new(Remedy::Refuse, step, format!("the log ends at offset {}", known.end())));
        }
        known.delete_before(offset);
        Ok(())
    }

    fn appender(&self) -> Result<Box<dyn Appender>, LogError> {
        Ok(Box::new(MemoryAppender::new(self)))
    }

    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError> {
        Ok(Box::new(MemoryTransactional::new(self, id)?))
    }

    fn join(&self, membership: &Membership) -> Result<Box<dyn Member>, LogError> {
        Ok(Box::new(MemoryMember::join(self, membership)?))
    }

    fn outsider(&self, group: &str) -> Result<GroupHandle, LogError> {
        Ok(GroupHandle(GroupHandleInner::Memory { group: group.to_owned(), member: None }))
    }

    fn reader(
        &self,
        from: &TopicPartition,
        next_offset: i64,
        isolation: Isolation,
    ) -> Result<Box<dyn PartitionReader>, LogError> {
        drop(self.ask("reading a partition")?);
        let (from, signal) = (from.clone(), Arc::new(Signal::new()));
        Ok(Box::new(MemoryReader {
            log: self.clone(),
            from,
            next: next_offset.max(0),
            isolation,
            signal,
            is_at_end: false,
        }))
    }
}

impl Inspect for MemoryLog {
    fn topic_faults(&self, topics: &[TopicSpec]) -> Result<Vec<TopicFault>, LogError> {
        let state = self.ask("asking for topics")?;
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
            Right::Read(place) | Right::Write(place) | Right::Delete(place) => {
                self.ask("asking for rights")?.partition(&place.topic, place.partition).map(drop)
            }
            Right::Append => Ok(()),
        }
    }

    fn broker_settings(&self) -> Result<BTreeMap<String, String>, LogError> {
        Ok(BTreeMap::new())
    }
}
