//! The log: ordered, partitioned, append-only, with consumer groups and transactions.
//!
//! Two implementations behave the same where it matters: [`kafka`] and [`memory`] (the embedded default for the
//! demonstration, tests and simulation; not a product's broker). One test suite, `tests/log_suite.rs`, runs on both.
//!
//! Offsets follow Kafka: a record's own is `offset`, every stored or committed one is the *next* to read.
//! All calls block for a bounded time; none may be made from an async task.

pub mod inspect;
pub mod kafka;
pub mod memory;

use std::time::Duration;

use wardbell_schemas::Micros;

/// What a topic is for, which decides its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: i32,
    pub stamped_by: StampedBy,
    /// How long records stay; `None`: as long as there is room.
    pub retention: Option<Duration>,
    /// Make it if it is missing (else that is an error with the command that makes it).
    pub create: bool,
    /// The partition count may differ (source topics belong to somebody else).
    pub any_partitions: bool,
}

impl TopicSpec {
    /// A topic of others, as they have it; made where it is missing.
    pub fn of_others(name: &str, partitions: i32, stamped_by: StampedBy) -> Self {
        Self { name: name.to_owned(), partitions, stamped_by, retention: None, create: true, any_partitions: true }
    }
}

/// Who sets a record's time stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StampedBy {
    /// `message.timestamp.type=LogAppendTime`
    Broker,
    /// `message.timestamp.type=CreateTime`
    Producer,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    /// The record's time stamp, µs since 1970 UTC.
    pub time_us: Micros,
    /// When the broker appended it, where that is known.
    pub append_us: Option<Micros>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }
}

/// A record to be written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outgoing {
    pub topic: String,
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    /// Used where the topic is stamped by the producer.
    pub time_us: Option<Micros>,
}

/// Where a record went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub partition: i32,
    pub offset: i64,
    /// Append time, where the topic is stamped by the broker.
    pub append_us: Option<Micros>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: String,
    pub partition: i32,
}

impl TopicPartition {
    pub fn new(topic: &str, partition: i32) -> Self {
        Self { topic: topic.to_owned(), partition }
    }
}

/// What a reader sees of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    ReadCommitted,
    ReadUncommitted,
}

/// How to join a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub group: String,
    pub topics: Vec<String>,
    pub isolation: Isolation,
    /// Keeps its partitions over a restart within the session time-out.
    pub instance: Option<String>,
}

/// Longest metadata beside a committed offset, in bytes; brokers take up to 4,096 (`offset.metadata.max.bytes`).
pub const METADATA_MAX: usize = 4_000;

/// What a group has committed of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub next_offset: i64,
    /// What the group keeps beside the offset, in a form of its own.
    pub metadata: String,
}

/// What happened to a member's assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberEvent {
    /// Wants [`Member::start`] for each.
    Assigned(Vec<TopicPartition>),
    /// Wants [`Member::stop`] once the work on them is finished or given up.
    Revoked(Vec<TopicPartition>),
    /// Already somebody else's: give up at once, then [`Member::stop`].
    Lost(Vec<TopicPartition>),
}

/// Whose fault it is and what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// It passes: try again after a pause.
    Retry,
    /// This producer or member is of no use any more: make a new one and begin from what is committed.
    Restart,
    /// Another instance owns what this one worked on.
    Fenced,
    /// Nothing will change by trying: a person has to.
    Refuse,
}

/// An error of the log.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {what}")]
pub struct LogError {
    /// What was being done, in words.
    pub step: String,
    /// What went wrong and, where known, how to put it right.
    pub what: String,
    pub remedy: Remedy,
}

impl LogError {
    pub fn new(remedy: Remedy, step: impl Into<String>, what: impl Into<String>) -> Self {
        Self { step: step.into(), what: what.into(), remedy }
    }
}

/// A log with topics, as one client of it sees it.
pub trait Log: Send + Sync {
    /// Makes what is missing and checks what is there; a wrong setting is refused with the remedy. All faults at once.
    ///
    /// # Errors
    /// [`Remedy::Refuse`] for topics that cannot be used, [`Remedy::Retry`] if the broker cannot be reached.
    fn prepare(&self, topics: &[TopicSpec]) -> Result<(), LogError>;

    /// Number of partitions of a topic, and who stamps it.
    ///
    /// # Errors
    /// [`Remedy::Refuse`] if there is no such topic, [`Remedy::Retry`] if the broker cannot be reached.
    fn describe(&self, topic: &str) -> Result<(i32, StampedBy), LogError>;

    /// First offset held and end offset (exclusive, the next to be written) of a partition, asked from the broker now.
    ///
    /// # Errors
    /// [`Remedy::Retry`] if the broker cannot be reached.
    fn offsets(&self, topic: &str, partition: i32) -> Result<(i64, i64), LogError>;

    /// Committed offsets of a group, asked without being a member; `None` where nothing is committed. Waits until open
    /// transactions that could still move them have ended.
    ///
    /// # Errors
    /// [`Remedy::Retry`] if the broker cannot be reached.
    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Vec<Option<i64>>, LogError> {
        let committed = self.committed_with_metadata(group, partitions)?;
        Ok(committed.into_iter().map(|committed| Some(committed?.next_offset)).collect())
    }

    /// As [`Log::committed`], with the metadata committed beside each offset; empty where there is none.
    ///
    /// # Errors
    /// As [`Log::committed`].
    fn committed_with_metadata(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Committed>>, LogError>;

    /// As [`Log::committed_with_metadata`], asked through a member of the group, whose connections are there already.
    ///
    /// # Errors
    /// As [`Log::committed`].
    fn committed_by(
        &self,
        member: &GroupHandle,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Committed>>, LogError>;

    /// Deletes the records of a partition before `offset`.
    ///
    /// # Errors
    /// [`Remedy::Retry`] if the broker cannot be reached, [`Remedy::Refuse`] if we may not.
    fn delete_before(&self, topic: &str, partition: i32, offset: i64) -> Result<(), LogError>;

    /// A producer whose appends to one partition are in order, without gaps and without repetition, for as long as none
    /// of them failed.
    ///
    /// # Errors
    /// [`Remedy::Refuse`] for a configuration that cannot work.
    fn appender(&self) -> Result<Box<dyn Appender>, LogError>;

    /// A transactional producer; whoever used the id before is fenced, and what it left open is aborted.
    ///
    /// # Errors
    /// [`Remedy::Retry`] or [`Remedy::Refuse`] (not authorized).
    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError>;

    /// Joins a group. Nothing is read before [`Member::start`].
    ///
    /// # Errors
    /// [`Remedy::Refuse`] for a configuration that cannot work.
    fn join(&self, membership: &Membership) -> Result<Box<dyn Member>, LogError>;

    /// For transactions that commit progress of a group without being a member of it, which keeps nobody from working on
    /// it: whoever does so must hold the transactional id under which its members commit.
    ///
    /// # Errors
    /// [`Remedy::Refuse`] for a configuration that cannot work.
    fn outsider(&self, group: &str) -> Result<GroupHandle, LogError>;

    /// Reads one partition outside any group.
    ///
    /// # Errors
    /// [`Remedy::Refuse`] for a configuration that cannot work.
    fn reader(
        &self,
        from: &TopicPartition,
        next_offset: i64,
        isolation: Isolation,
    ) -> Result<Box<dyn PartitionReader>, LogError>;
}

/// Appends outside transactions.
pub trait Appender: Send {
    /// Hands a record over; `token` comes back with its outcome. Waits where the producer's queue is full.
    ///
    /// # Errors
    /// The record was not taken and the producer must not be used any more.
    fn append(&mut self, record: &Outgoing, token: u64) -> Result<(), LogError>;

    /// Outcomes that have become known, after waiting at most `wait` for the first.
    fn outcomes(&mut self, wait: Duration, outcomes: &mut Vec<(u64, Result<Appended, LogError>)>);

    /// Records handed over whose outcome is not known.
    fn in_flight(&self) -> usize;
}

/// Offsets that become visible together with a transaction's records.
#[derive(Debug, Clone)]
pub struct Progress<'a> {
    pub group: &'a GroupHandle,
    pub position: TopicPartition,
    pub next_offset: i64,
    /// Kept beside the offset, at most [`METADATA_MAX`] bytes.
    pub metadata: &'a str,
}

/// Appends inside transactions; one at a time.
pub trait Transactional: Send {
    /// Makes ready for a partition by a transaction that is aborted and that no read-committed reader sees: the first
    /// transaction of a producer looks up leaders and coordinators for most of a second, which no alert should wait for.
    /// Gives the append time of its record where the broker sets it.
    ///
    /// # Errors
    /// As [`Transactional::commit`].
    fn warm_up(&mut self, to: &TopicPartition) -> Result<Option<Micros>, LogError>;

    /// Writes records and progress so that all of it becomes visible, or nothing.
    ///
    /// # Errors
    /// [`Remedy::Retry`]: nothing of it is visible, the same content may be sent again. [`Remedy::Restart`]: the outcome
    /// is unknown or the producer is broken; read the committed offset with a new one. [`Remedy::Fenced`]: another owner
    /// took over. [`Remedy::Refuse`]: it can never work (too large, not authorized).
    fn commit(&mut self, records: &[Outgoing], progress: Option<&Progress<'_>>) -> Result<(), LogError>;
}

/// A member of a group. The polling calls must go on for the membership to last.
pub trait Member: Send {
    /// Serves the membership and gives what happened to the assignment, after waiting at most `wait`.
    ///
    /// # Errors
    /// [`Remedy::Retry`] while the broker cannot be reached, [`Remedy::Refuse`] or [`Remedy::Restart`] otherwise.
    fn events(&mut self, wait: Duration) -> Result<Vec<MemberEvent>, LogError>;

    /// Begins to read partitions at explicit offsets, all through [`Member::read`].
    ///
    /// # Errors
    /// As the broker says.
    fn start(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), LogError>;

    /// Begins to read partitions at explicit offsets, each through a reader of its own that may live on another thread.
    ///
    /// # Errors
    /// As the broker says.
    fn start_split(&mut self, positions: &[(TopicPartition, i64)]) -> Result<Vec<Box<dyn PartitionReader>>, LogError>;

    /// Gives partitions back.
    ///
    /// # Errors
    /// As the broker says.
    fn stop(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError>;

    /// Appends up to `max` records of the started partitions to `records`, after waiting at most `wait` for the first.
    /// Records of one partition come in order. Events that turn up meanwhile wait for [`Member::events`].
    ///
    /// # Errors
    /// As [`Member::events`].
    fn read(&mut self, max: usize, wait: Duration, records: &mut Vec<(TopicPartition, Record)>)
    -> Result<(), LogError>;

    /// The group's committed offsets; `None` where nothing is committed.
    ///
    /// # Errors
    /// [`Remedy::Retry`] while the broker cannot be reached.
    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<i64>>, LogError>;

    /// Commits offsets outside transactions, and waits for it.
    ///
    /// # Errors
    /// [`Remedy::Retry`], or [`Remedy::Fenced`] if the group has moved on.
    fn commit(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), LogError>;

    /// As [`Member::committed`], with the metadata committed beside each offset; empty where there is none.
    ///
    /// # Errors
    /// As [`Member::committed`].
    fn committed_with_metadata(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<Committed>>, LogError>;

    /// As [`Member::commit`], with metadata of at most [`METADATA_MAX`] bytes beside each offset.
    ///
    /// # Errors
    /// As [`Member::commit`].
    fn commit_with_metadata(&mut self, positions: &[(TopicPartition, Committed)]) -> Result<(), LogError>;

    /// Stops or goes on fetching records of the partitions started so far, for a member that has no room for more;
    /// [`Member::events`] is served as before and nothing is skipped.
    ///
    /// # Errors
    /// As the broker says.
    fn pause(&mut self, paused: bool) -> Result<(), LogError>;

    /// What transactions need to commit this member's progress.
    fn group(&self) -> GroupHandle;

    /// Leaves for good: the partitions go to others at once. Dropping a member with an instance name keeps its place.
    fn leave(self: Box<Self>);
}

/// Reads one partition in order.
pub trait PartitionReader: Send {
    fn position(&self) -> &TopicPartition;

    /// Appends up to `max` records to `records`, after waiting at most `wait` for the first.
    ///
    /// # Errors
    /// [`Remedy::Retry`] for what passes; [`Remedy::Restart`] if records may have been missed.
    fn read(&mut self, max: usize, wait: Duration, records: &mut Vec<Record>) -> Result<(), LogError>;

    /// The last read came to the end of what can be read now: what is beyond, up to the end offset, are ends of
    /// transactions and what they aborted or have not committed. Readers within a group do not know.
    fn is_at_end(&self) -> bool {
        false
    }
}

/// A member's place in its group, or an outsider's, as transactions name it.
#[derive(Clone)]
pub struct GroupHandle(pub(crate) GroupHandleInner);

#[derive(Clone)]
pub(crate) enum GroupHandleInner {
    Kafka(std::sync::Arc<kafka::Consumer>),
    Memory { group: String, member: Option<u64> },
}

impl std::fmt::Debug for GroupHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GroupHandle")
    }
}
