//! Checkpoints of partitions on the state topic, and what a committed offset says of them.
//!
//! Partition n of the state topic holds the checkpoints of canonical partition n, oldest first: a begin mark, slices, an
//! end mark. They bear the id of one attempt to write it, so what an owner wrote that was replaced meanwhile mixes with
//! nothing. A checkpoint counts once its end mark is acknowledged *and* a committed offset names it; only then does its
//! owner delete what stands before the previous one. What is in the slices is `wardbell-core`'s matter.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wardbell_connectors::log::{
    Appended, Appender, Isolation, Log, LogError, Outgoing, PartitionReader, Record, Remedy, StampedBy, TopicPartition,
    TopicSpec,
};
use wardbell_connectors::runtime::fault::{self, Action};
use wardbell_connectors::runtime::{self, Instant, Signal, Thread};

use crate::health::{Health, LoopHandle};

/// Header with a record's kind and version.
const HEADER: &str = "wardbell";
const BEGIN: &str = "checkpoint/1 begin";
const SLICE: &str = "checkpoint/1 slice";
const END: &str = "checkpoint/1 end";
/// What a person did, as JSON.
const AUDIT: &str = "audit/1";
/// Headers of a slice: the id of its checkpoint, and its place in it.
const ID: &str = "id";
const PLACE: &str = "n";

/// Version of [`Mark`] as text.
const MARK: &str = "wardbell/1";

/// Slices of all partitions together that wait or are on their way, in bytes; who offers more waits.
const ROOM: usize = 8 << 20;
/// Longest wait for work; a stop is looked at in between.
const IDLE: Duration = Duration::from_millis(250);
/// Longest wait for acknowledgments; new work is looked at in between.
const ACKNOWLEDGED: Duration = Duration::from_millis(20);
/// A record that is not acknowledged so long gives its room, and what waits behind it, up.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(60);
/// What is not there so long after the end of the topic was reached does not come.
const PATIENCE: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_millis(100);
/// Pause before a broker that was away is asked again.
const OUTAGE_PAUSE: Duration = Duration::from_millis(200);
/// Records read at once, of up to half a MiB each.
const RECORDS_MAX: usize = 16;

/// What a partition's committed offset says beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Offset of the newest complete checkpoint's first record on the state topic; none before the first.
    pub checkpoint: Option<i64>,
    /// Transitions decided since the log began.
    pub transitions: u64,
    /// Running hash over them.
    pub digest: [u8; 16],
}

impl Mark {
    /// The text that is committed, under 200 bytes.
    pub fn print(&self) -> String {
        let checkpoint = self.checkpoint.map_or_else(|| "-".to_owned(), |at| at.to_string());
        let digest: String = self.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{MARK} cp={checkpoint} n={} h={digest}", self.transitions)
    }

    /// Reads what is committed; `None` if nothing is.
    ///
    /// # Errors
    /// A sentence, for text of another version or of somebody else.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let mut words = text.split(' ');
        if words.next() != Some(MARK) {
            return Err(format!(
                "what is committed beside the offset is not of the form `{MARK}` that this binary reads"
            ));
        }
        let damaged = || format!("what is committed beside the offset begins as `{MARK}` does and goes on otherwise");
        let mut value = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        let (checkpoint, transitions, digest) = (value("cp"), value("n"), value("h"));
        if words.next().is_some() {
            return Err(damaged());
        }
        let checkpoint = match checkpoint.ok_or_else(damaged)? {
            "-" => None,
            at => Some(at.parse().map_err(|_| damaged())?),
        };
        let transitions = transitions.and_then(|n| n.parse().ok()).ok_or_else(damaged)?;
        let digest = digest.and_then(digest_of).ok_or_else(damaged)?;
        Ok(Some(Self { checkpoint, transitions, digest }))
    }
}

fn digest_of(hex: &str) -> Option<[u8; 16]> {
    if hex.len() != 32 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(hex, 16).ok().map(u128::to_be_bytes)
}

/// A checkpoint as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// First canonical offset that is not in it.
    pub next_offset: i64,
    pub slices: Vec<Vec<u8>>,
    /// Offset of its first record on the state topic.
    pub at: i64,
}

/// The state topic, as one client of the log sees it.
#[derive(Clone)]
pub struct StateTopic {
    log: Arc<dyn Log>,
    name: String,
    patience: Duration,
    acknowledged_within: Duration,
}

impl StateTopic {
    pub fn new(log: Arc<dyn Log>, topic: &str) -> Self {
        Self { log, name: topic.to_owned(), patience: PATIENCE, acknowledged_within: ACKNOWLEDGED_WITHIN }
    }

    /// The topic as it must be: owners delete what is of no use any more, and nobody else does.
    pub fn spec(topic: &str, partitions: i32, create: bool) -> TopicSpec {
        TopicSpec {
            name: topic.to_owned(),
            partitions,
            stamped_by: StampedBy::Broker,
            retention: None,
            create,
            any_partitions: false,
        }
    }

    /// Reads the checkpoint that begins at an offset. `told` is called with the bytes read so far. An outage is waited
    /// for, unless `give_up`.
    ///
    /// # Errors
    /// [`Remedy::Refuse`], with the remedy in words, for one that is not there, cut, damaged or of another form;
    /// [`Remedy::Restart`] if it was given up; [`Remedy::Retry`] if what is there does not arrive.
    pub fn read(
        &self,
        partition: i32,
        at: i64,
        told: &mut dyn FnMut(u64),
        give_up: &dyn Fn() -> bool,
    ) -> Result<Stored, LogError> {
        let refuse = |what: &str| {
            let remedy = format!(
                "{what}; the remedy is `wardbell recover --partition {partition} --from-checkpoint`, which takes the newest whole one, or `--empty`"
            );
            LogError::new(Remedy::Refuse, self.step("reading the checkpoint", partition, at), remedy)
        };
        let (first, end) = self.ask(partition, at, give_up)?;
        if at < first {
            return Err(refuse("its first record is deleted"));
        }
        let mut reader = self.reader(partition, at)?;
        let mut assembly: Option<Assembly> = None;
        let mut records = Vec::new();
        let mut next = at;
        let mut deadline = Instant::now() + self.patience;
        while !give_up() {
            self.read_some(&mut *reader, &mut records, &mut deadline)?;
            for record in records.drain(..) {
                let offset = record.offset;
                next = offset + 1;
                let is_of_it = match &mut assembly {
                    None if offset != at => return Err(refuse("its first record is deleted")),
                    None => {
                        let begun = Assembly::begin(&record, partition, true);
                        assembly = Some(begun.map_err(|what| refuse(&what))?);
                        true
                    }
                    Some(assembly) if assembly.owns(&record) => {
                        if assembly.take(record).map_err(|what| refuse(&what))? {
                            let Assembly { next_offset, slices, .. } = std::mem::take(assembly);
                            return Ok(Stored { next_offset, slices, at });
                        }
                        told(assembly.bytes);
                        true
                    }
                    Some(_) => false,
                };
                if is_of_it || offset < end {
                    deadline = Instant::now() + self.patience;
                }
            }
            if Instant::now() > deadline {
                let (first, end) = self.ask(partition, at, give_up)?;
                if first > at {
                    return Err(refuse("its records are being deleted"));
                }
                if next >= end {
                    return Err(refuse("its end mark is not there: it was never finished, or the topic was cut"));
                }
                let step = self.step("reading the checkpoint", partition, at);
                return Err(LogError::new(Remedy::Retry, step, "its records do not arrive in time"));
            }
        }
        Err(self.given_up(partition, at))
    }

    /// Where each complete checkpoint of a partition begins, and its first canonical offset that is not in it; oldest
    /// first.
    ///
    /// # Errors
    /// As the log says; [`Remedy::Retry`] if records that are there do not arrive.
    pub fn complete(&self, partition: i32) -> Result<Vec<(i64, i64)>, LogError> {
        let (first, end) = self.log.offsets(&self.name, partition)?;
        let mut reader = self.reader(partition, first)?;
        let mut open: BTreeMap<String, (i64, Assembly)> = BTreeMap::new();
        let mut found = Vec::new();
        let mut records = Vec::new();
        let mut next = first;
        let mut deadline = Instant::now() + self.patience;
        while next < end {
            self.read_some(&mut *reader, &mut records, &mut deadline)?;
            for record in records.drain(..) {
                next = record.offset + 1;
                deadline = Instant::now() + self.patience;
                if let Ok(assembly) = Assembly::begin(&record, partition, false) {
                    open.insert(assembly.id.clone(), (record.offset, assembly));
                    continue;
                }
                let Some(id) = id_of(&record) else {
                    continue;
                };
                let Some((at, assembly)) = open.get_mut(&id) else {
                    continue;
                };
                match assembly.take(record) {
                    Ok(false) => continue,
                    Ok(true) => found.push((*at, assembly.next_offset)),
                    Err(_) => {}
                }
                open.remove(&id);
            }
            if Instant::now() > deadline {
                let step = self.step("looking for checkpoints", partition, next);
                return Err(LogError::new(Remedy::Retry, step, "its records do not arrive in time"));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Nothing is held of a partition.
    ///
    /// # Errors
    /// As the log says.
    pub fn is_empty(&self, partition: i32) -> Result<bool, LogError> {
        let (first, end) = self.log.offsets(&self.name, partition)?;
        Ok(first >= end)
    }

    /// Appends a record of what a person did to a partition, which readers of checkpoints pass over, and waits until the
    /// broker has it.
    ///
    /// # Errors
    /// As the log says; [`Remedy::Retry`] if the broker does not acknowledge it in time.
    pub fn append_audit(&self, partition: i32, json: Vec<u8>) -> Result<(), LogError> {
        let mut appender = self.log.appender()?;
        appender.append(&self.record(partition, AUDIT, json, Vec::new()), 0)?;
        let deadline = Instant::now() + self.patience;
        let mut outcomes = Vec::new();
        while Instant::now() < deadline {
            appender.outcomes(WAIT, &mut outcomes);
            if let Some((_, outcome)) = outcomes.pop() {
                return outcome.map(|_| ());
            }
        }
        let step = format!("writing an audit record to {}/{partition}", self.name);
        Err(LogError::new(Remedy::Retry, step, "the broker does not acknowledge it in time"))
    }

    fn reader(&self, partition: i32, from: i64) -> Result<Box<dyn PartitionReader>, LogError> {
        self.log.reader(&TopicPartition::new(&self.name, partition), from, Isolation::ReadCommitted)
    }

    /// Reads what has come; an outage moves the deadline.
    fn read_some(
        &self,
        reader: &mut dyn PartitionReader,
        records: &mut Vec<Record>,
        deadline: &mut Instant,
    ) -> Result<(), LogError> {
        match reader.read(RECORDS_MAX, WAIT, records) {
            Err(outage) if outage.remedy == Remedy::Retry => {
                tracing::warn!(error = %outage, "reading checkpoints");
                *deadline = Instant::now() + self.patience;
                runtime::sleep(OUTAGE_PAUSE);
                Ok(())
            }
            other => other,
        }
    }

    /// First and end offset, however long the broker is away.
    fn ask(&self, partition: i32, at: i64, give_up: &dyn Fn() -> bool) -> Result<(i64, i64), LogError> {
        while !give_up() {
            match self.log.offsets(&self.name, partition) {
                Err(outage) if outage.remedy == Remedy::Retry => {
                    tracing::warn!(error = %outage, "looking for a checkpoint");
                    runtime::sleep(OUTAGE_PAUSE);
                }
                other => return other,
            }
        }
        Err(self.given_up(partition, at))
    }

    fn given_up(&self, partition: i32, at: i64) -> LogError {
        let step = self.step("reading the checkpoint", partition, at);
        LogError::new(Remedy::Restart, step, "given up, since the partition is given back")
    }

    fn step(&self, what: &str, partition: i32, at: i64) -> String {
        format!("{what} at offset {at} of {}/{partition}", self.name)
    }

    fn record(&self, partition: i32, kind: &str, value: Vec<u8>, further: Vec<(String, Vec<u8>)>) -> Outgoing {
        let mut headers = vec![(HEADER.to_owned(), kind.as_bytes().to_vec())];
        headers.extend(further);
        Outgoing { topic: self.name.clone(), partition, key: None, value: Some(value), headers, time_us: None }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct BeginMark {
    id: String,
    partition: i32,
    next_offset: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct EndMark {
    id: String,
    slices: u64,
    bytes: u64,
}

/// A checkpoint of which the begin mark was read, and slices so far.
#[derive(Debug, Default)]
struct Assembly {
    id: String,
    next_offset: i64,
    n_slices: u64,
    bytes: u64,
    slices: Vec<Vec<u8>>,
    /// Slices are kept, not only counted.
    keeps: bool,
}

impl Assembly {
    /// # Errors
    /// What the record is instead of a begin mark, in words.
    fn begin(record: &Record, partition: i32, keeps: bool) -> Result<Self, String> {
        let kind = kind_of(record);
        if kind != BEGIN {
            return Err(format!("the record there is no `{BEGIN}` but `{kind}`"));
        }
        let mark: Option<BeginMark> = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
        match mark {
            Some(mark) if mark.partition == partition => {
                Ok(Self { id: mark.id, next_offset: mark.next_offset, keeps, ..Self::default() })
            }
            Some(mark) => Err(format!("it is of partition {}", mark.partition)),
            None => Err("its begin mark is damaged".to_owned()),
        }
    }

    fn owns(&self, record: &Record) -> bool {
        id_of(record).is_some_and(|id| id == self.id)
    }

    /// Takes the next record of this id. True: it is complete.
    fn take(&mut self, record: Record) -> Result<bool, String> {
        if kind_of(&record) == END {
            let mark: Option<EndMark> = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
            let is_whole = mark.is_some_and(|mark| mark.slices == self.n_slices && mark.bytes == self.bytes);
            return if is_whole { Ok(true) } else { Err("slices of it are missing".to_owned()) };
        }
        let place = record.header(PLACE).and_then(|place| std::str::from_utf8(place).ok()?.parse::<u64>().ok());
        if place != Some(self.n_slices) {
            return Err("slices of it are missing".to_owned());
        }
        let slice = record.value.unwrap_or_default();
        self.n_slices += 1;
        self.bytes += slice.len() as u64;
        if self.keeps {
            self.slices.push(slice);
        }
        Ok(false)
    }
}

fn kind_of(record: &Record) -> &str {
    record.header(HEADER).and_then(|kind| std::str::from_utf8(kind).ok()).unwrap_or_default()
}

/// Id of the checkpoint that a slice or an end mark belongs to.
fn id_of(record: &Record) -> Option<String> {
    match kind_of(record) {
        SLICE => record.header(ID).map(|id| String::from_utf8_lossy(id).into_owned()),
        END => serde_json::from_slice::<EndMark>(record.value.as_deref()?).ok().map(|mark| mark.id),
        _ => None,
    }
}

/// Writes the checkpoints of all partitions of an instance: one plain producer on a thread of its own. Clones are handles
/// of the same.
#[derive(Clone)]
pub struct CheckpointWriter {
    topic: StateTopic,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Signal,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Bytes of slices in `jobs` and on their way.
    bytes: usize,
    /// Those whose tickets live.
    attempts: BTreeMap<u64, Attempt>,
    next_attempt: u64,
    /// The thread is gone: nothing is written any more.
    ended: bool,
}

#[derive(Debug)]
enum Job {
    Append { attempt: u64, part: Part, record: Outgoing },
    DeleteBefore { partition: i32, offset: i64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Begin,
    Slice { bytes: usize },
    End,
}

#[derive(Debug, Default)]
struct Attempt {
    /// Offset of its begin mark, once that is known.
    at: Option<i64>,
    outcome: Option<Result<i64, LogError>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing below panics while it holds the lock; a poisoned one is still whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn fail(&mut self, attempt: u64, error: &LogError) {
        if let Some(attempt) = self.attempts.get_mut(&attempt) {
            attempt.outcome.get_or_insert_with(|| Err(again(error)));
        }
    }

    /// It is neither abandoned nor failed.
    fn is_wanted(&self, attempt: u64) -> bool {
        self.attempts.get(&attempt).is_some_and(|attempt| attempt.outcome.is_none())
    }
}

fn again(error: &LogError) -> LogError {
    LogError::new(error.remedy, error.step.clone(), error.what.clone())
}

impl CheckpointWriter {
    /// Starts the thread. It ends once `stop` is set and no ticket lives; set it after the last checkpoint was begun.
    ///
    /// # Errors
    /// [`Remedy::Refuse`] if the system has no thread left.
    pub fn start(
        topic: StateTopic,
        health: Arc<Health>,
        stop: Arc<AtomicBool>,
    ) -> Result<(CheckpointWriter, Thread), LogError> {
        let shared = Arc::new(Shared::default());
        let handle = Self { topic: topic.clone(), shared: shared.clone() };
        let name = "checkpoints";
        let work = move || {
            let turning = health.enter(name);
            let mut writing = Writing { topic, shared, turning, appender: None, sent: BTreeMap::new(), next_token: 0 };
            writing.work(&stop);
        };
        let thread = runtime::spawn(name.to_owned(), work)
            .map_err(|error| LogError::new(Remedy::Refuse, "starting a thread", error.to_string()))?;
        Ok((handle, thread))
    }

    /// Begins a checkpoint of a partition as of a canonical offset.
    pub fn begin(&self, partition: i32, next_offset: i64) -> Ticket {
        // An owner that was replaced may be writing one for the same offset right now: the random part keeps them apart.
        let id = format!("{partition}-{next_offset}-{:016x}", fastrand::u64(..));
        let mark = BeginMark { id: id.clone(), partition, next_offset };
        let number = {
            let mut queue = self.shared.lock();
            queue.next_attempt += 1;
            let number = queue.next_attempt;
            queue.attempts.insert(number, Attempt::default());
            if queue.ended {
                queue.fail(number, &ended());
            }
            number
        };
        let ticket = Ticket { writer: self.clone(), number, partition, id, n_slices: 0, bytes: 0, is_finished: false };
        ticket.push(Part::Begin, BEGIN, serde_json::to_vec(&mark).unwrap_or_default(), Vec::new());
        ticket
    }

    /// Deletes what stands before an offset of a partition of the state topic: best effort, since what is left is deleted
    /// the next time.
    pub fn delete_before(&self, partition: i32, offset: i64) {
        self.push(Job::DeleteBefore { partition, offset });
    }

    fn push(&self, job: Job) {
        let mut queue = self.shared.lock();
        if queue.ended {
            return;
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.changed.notify_all();
    }
}

fn ended() -> LogError {
    LogError::new(Remedy::Restart, "writing a checkpoint", "the job stops")
}

/// One checkpoint on its way. Dropping it abandons it.
pub struct Ticket {
    writer: CheckpointWriter,
    number: u64,
    partition: i32,
    id: String,
    n_slices: u64,
    bytes: u64,
    is_finished: bool,
}

impl Ticket {
    /// Hands the next slice over. Never waits.
    ///
    /// # Errors
    /// The slice, while there is no room for it: try again at the next turn.
    pub fn offer(&mut self, slice: Vec<u8>) -> Result<(), Vec<u8>> {
        let bytes = slice.len();
        {
            let mut queue = self.writer.shared.lock();
            if !queue.is_wanted(self.number) {
                // It has failed, and what is left of it goes nowhere.
                return Ok(());
            }
            // One slice always has room, however large it is.
            if queue.bytes > 0 && queue.bytes + bytes > ROOM {
                return Err(slice);
            }
            queue.bytes += bytes;
        }
        let place = self.n_slices.to_string().into_bytes();
        let headers = vec![(ID.to_owned(), self.id.clone().into_bytes()), (PLACE.to_owned(), place)];
        self.push(Part::Slice { bytes }, SLICE, slice, headers);
        self.n_slices += 1;
        self.bytes += bytes as u64;
        Ok(())
    }

    /// Writes the end mark, once: all slices were handed over.
    pub fn finish(&mut self) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        let mark = EndMark { id: self.id.clone(), slices: self.n_slices, bytes: self.bytes };
        self.push(Part::End, END, serde_json::to_vec(&mark).unwrap_or_default(), Vec::new());
    }

    /// Known once everything is acknowledged: the offset of its first record on the state topic, or why it failed.
    pub fn outcome(&self) -> Option<Result<i64, LogError>> {
        let queue = self.writer.shared.lock();
        match &queue.attempts.get(&self.number)?.outcome {
            Some(Ok(at)) => Some(Ok(*at)),
            Some(Err(error)) => Some(Err(again(error))),
            None => None,
        }
    }

    fn push(&self, part: Part, kind: &str, value: Vec<u8>, headers: Vec<(String, Vec<u8>)>) {
        let record = self.writer.topic.record(self.partition, kind, value, headers);
        self.writer.push(Job::Append { attempt: self.number, part, record });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.writer.shared.lock().attempts.remove(&self.number);
    }
}

/// The writer's thread.
struct Writing {
    topic: StateTopic,
    shared: Arc<Shared>,
    turning: LoopHandle,
    /// Made when it is needed, and anew after a failure.
    appender: Option<Box<dyn Appender>>,
    /// Handed to the appender and not acknowledged, by token, which is their order: attempt, part and when.
    sent: BTreeMap<u64, (u64, Part, Instant)>,
    next_token: u64,
}

impl Writing {
    fn work(&mut self, stop: &AtomicBool) {
        loop {
            self.turning.beat();
            while let Some(job) = self.next() {
                self.turning.beat();
                match job {
                    Job::Append { attempt, part, record } => self.append(attempt, part, &record),
                    Job::DeleteBefore { partition, offset } => self.delete_before(partition, offset),
                }
                self.learn(Duration::ZERO);
            }
            if stop.load(Ordering::SeqCst) && self.shared.lock().attempts.is_empty() {
                return;
            }
            if self.sent.is_empty() {
                let queue = self.shared.lock();
                if queue.jobs.is_empty() {
                    drop(self.shared.changed.wait(&self.shared.queue, queue, runtime::idle(IDLE)));
                }
            } else {
                self.learn(ACKNOWLEDGED);
            }
        }
    }

    fn next(&self) -> Option<Job> {
        self.shared.lock().jobs.pop_front()
    }

    fn append(&mut self, attempt: u64, part: Part, record: &Outgoing) {
        if !self.shared.lock().is_wanted(attempt) {
            self.release(part);
            return;
        }
        let is_slice = matches!(part, Part::Slice { .. });
        if is_slice && fault::reach("slice.before") == Some(Action::Fail) {
            self.release(part);
            self.shared.lock().fail(attempt, &injected());
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        let waiting = self.turning.waiting("the broker, writing a checkpoint");
        let handed = match &mut self.appender {
            Some(appender) => appender.append(record, token),
            None => self.topic.log.appender().and_then(|appender| {
                let appender = self.appender.insert(appender);
                appender.append(record, token)
            }),
        };
        drop(waiting);
        self.sent.insert(token, (attempt, part, Instant::now()));
        if let Err(error) = handed {
            self.fail_sent(&error);
            return;
        }
        if is_slice && fault::reach("slice.after") == Some(Action::Fail) {
            self.shared.lock().fail(attempt, &injected());
        }
    }

    /// Takes the outcomes that are known, after waiting for the first.
    fn learn(&mut self, wait: Duration) {
        let mut outcomes: Vec<(u64, Result<Appended, LogError>)> = Vec::new();
        if let Some(appender) = &mut self.appender
            && !self.sent.is_empty()
        {
            appender.outcomes(wait, &mut outcomes);
        }
        let mut failure = None;
        for (token, outcome) in outcomes {
            let Some((number, part, _)) = self.sent.get(&token).copied() else {
                continue;
            };
            match outcome {
                Ok(appended) => {
                    self.sent.remove(&token);
                    self.release(part);
                    let mut queue = self.shared.lock();
                    let Some(attempt) = queue.attempts.get_mut(&number).filter(|attempt| attempt.outcome.is_none())
                    else {
                        continue;
                    };
                    match part {
                        Part::Begin => attempt.at = Some(appended.offset),
                        Part::Slice { .. } => {}
                        Part::End => attempt.outcome = attempt.at.map(Ok),
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        let oldest = self.sent.first_key_value().map(|(_, (.., sent))| sent.elapsed());
        if failure.is_none() && oldest.is_some_and(|waits| waits > self.topic.acknowledged_within) {
            let what = "a broker does not take it in time: see whether the state topic's partitions have leaders";
            failure = Some(LogError::new(Remedy::Retry, "writing a checkpoint", what));
        }
        if let Some(error) = failure {
            self.fail_sent(&error);
        }
    }

    /// A producer that failed once is of no use any more; of what it had in hand nothing is known.
    fn fail_sent(&mut self, error: &LogError) {
        tracing::warn!(error = %error, "checkpoints on their way are given up; the next ones are tried in time");
        self.appender = None;
        for (attempt, part, _) in std::mem::take(&mut self.sent).into_values() {
            self.release(part);
            self.shared.lock().fail(attempt, error);
        }
    }

    fn delete_before(&self, partition: i32, offset: i64) {
        let waiting = self.turning.waiting("the broker, deleting old checkpoints");
        let deleted = self.topic.log.delete_before(&self.topic.name, partition, offset);
        drop(waiting);
        if let Err(error) = deleted {
            tracing::warn!(partition, offset, error = %error, "old checkpoints are not deleted now; the next time they are");
        }
    }

    fn release(&self, part: Part) {
        if let Part::Slice { bytes } = part {
            let mut queue = self.shared.lock();
            queue.bytes = queue.bytes.saturating_sub(bytes);
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.ended = true;
        queue.jobs.clear();
        let living: Vec<u64> = queue.attempts.keys().copied().collect();
        for attempt in living {
            queue.fail(attempt, &ended());
        }
    }
}

fn injected() -> LogError {
    LogError::new(Remedy::Restart, "writing a checkpoint", "a slice of it was not written")
}

#[cfg(test)]
mod tests {
    use wardbell_connectors::clock::SystemClock;
    use wardbell_connectors::log::memory::MemoryLog;

    use super::*;

    const PARTITION: i32 = 1;

    /// A state topic with its writer, which is ended at the end.
    struct Written {
        log: Arc<MemoryLog>,
        topic: StateTopic,
        writer: CheckpointWriter,
        thread: Option<Thread>,
        stop: Arc<AtomicBool>,
    }

    impl Written {
        fn new() -> Self {
            let log = Arc::new(MemoryLog::new(Arc::new(SystemClock)));
            log.prepare(&[StateTopic::spec("state", 2, true)]).expect("the topic is made");
            let topic = StateTopic {
                patience: Duration::from_millis(300),
                acknowledged_within: Duration::from_secs(2),
                ..StateTopic::new(log.clone(), "state")
            };
            let stop = Arc::new(AtomicBool::new(false));
            let started = CheckpointWriter::start(topic.clone(), Arc::default(), stop.clone());
            let (writer, thread) = started.expect("a thread");
            Self { log, topic, writer, thread: Some(thread), stop }
        }

        fn read(&self, at: i64) -> Result<Stored, LogError> {
            self.topic.read(PARTITION, at, &mut |_| {}, &|| false)
        }

        fn append(&self, record: &Outgoing) {
            let mut appender = self.log.appender().expect("an appender");
            appender.append(record, 0).expect("taken");
            let mut outcomes = Vec::new();
            appender.outcomes(Duration::from_secs(5), &mut outcomes);
            outcomes.pop().expect("acknowledged").1.expect("appended");
        }
    }

    impl Drop for Written {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::SeqCst);
            let ended = self.thread.take().map(Thread::join);
            assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the writer panicked");
        }
    }

    fn outcome(ticket: &Ticket) -> Result<i64, LogError> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(outcome) = ticket.outcome() {
                return outcome;
            }
            runtime::sleep(Duration::from_millis(5));
        }
        panic!("the checkpoint does not end");
    }

    fn write(writer: &CheckpointWriter, next_offset: i64, slices: &[Vec<u8>]) -> i64 {
        let mut ticket = writer.begin(PARTITION, next_offset);
        for slice in slices {
            let mut left = slice.clone();
            while let Err(refused) = ticket.offer(left) {
                left = refused;
                runtime::sleep(Duration::from_millis(1));
            }
        }
        ticket.finish();
        outcome(&ticket).expect("written")
    }

    fn slices(count: u8, length: usize) -> Vec<Vec<u8>> {
        (0..count).map(|fill| vec![fill; length]).collect()
    }

    #[test]
    fn a_checkpoint_that_is_not_acknowledged_in_time_gives_its_room_to_others() {
        let Written { log, writer, .. } = &Written::new();
        log.set_available(false);
        let mut ticket = writer.begin(PARTITION, 10);
        ticket.offer(vec![1; 1_000]).expect("there is room");
        ticket.finish();
        assert_eq!(outcome(&ticket).map_err(|error| error.remedy), Err(Remedy::Retry));
        assert_eq!(writer.shared.lock().bytes, 0);
        log.set_available(true);
        write(writer, 20, &slices(2, 100));
    }

    #[test]
    fn a_mark_is_read_as_printed_and_foreign_text_is_refused_in_words() {
        let none = Mark { checkpoint: None, transitions: 0, digest: [0; 16] };
        let full = Mark {
            checkpoint: Some(i64::MAX),
            transitions: u64::MAX,
            digest: *b"\x00\x01fedcba98\xff\xfe\xfd\xfc\xfb\xfa",
        };
        for mark in [none, full] {
            let text = mark.print();
            assert!(text.len() < 200, "{text}");
            assert_eq!(Mark::parse(&text), Ok(Some(mark)), "{text}");
        }
        assert_eq!(none.print(), "wardbell/1 cp=- n=0 h=00000000000000000000000000000000");
        assert_eq!(Mark::parse(""), Ok(None));
        let text = full.print();
        for other in ["wardbell/2 cp=- n=0", "d1:3,4", " ", &text.replace("n=", "m="), &text[..text.len() - 1]] {
            assert!(Mark::parse(other).is_err(), "{other}");
        }
        assert!(Mark::parse(&format!("{text} x=1")).is_err());
        assert!(Mark::parse(&text.replace("cp=", "cp=+-")).is_err());
    }

    #[test]
    fn a_frozen_mark_is_read_and_printed_as_it_was() {
        let frozen = include_str!("../../../schemas/samples/mark-1.txt").trim_end();
        let digest = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes();
        let meant = Mark { checkpoint: Some(1_024), transitions: 37, digest };
        assert_eq!(Mark::parse(frozen), Ok(Some(meant)));
        assert_eq!(meant.print(), frozen);
    }

    /// A record of the state topic whose value is text.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Line {
        headers: Vec<(String, String)>,
        value: String,
    }

    #[test]
    fn frozen_records_of_a_checkpoint_are_read_and_written_as_they_were() {
        let frozen = include_str!("../../../schemas/samples/state-1.jsonl").lines();
        let frozen: Vec<Line> = frozen.map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let slices = vec![b"first".to_vec(), b"second".to_vec()];
        let written = Written::new();
        for line in &frozen {
            let headers = line.headers.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect();
            let value = Some(line.value.clone().into_bytes());
            let (topic, partition) = ("state".to_owned(), PARTITION);
            written.append(&Outgoing { topic, partition, value, headers, ..Outgoing::default() });
        }
        let stored = written.read(0).expect("it is whole");
        assert_eq!(stored, Stored { next_offset: 100, slices: slices.clone(), at: 0 });

        let at = write(&written.writer, 100, &slices);
        let from = TopicPartition::new("state", PARTITION);
        let mut reader = written.log.reader(&from, at, Isolation::ReadCommitted).expect("a reader");
        let mut records = Vec::new();
        reader.read(10, WAIT, &mut records).expect("reads");
        // The end of an id is random.
        let id = records.get(1).and_then(id_of).expect("a slice has an id");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&id, "1-100-0011223344556677");
        let line = |record: &Record| Line {
            headers: record.headers.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
            value: text(record.value.as_deref().unwrap_or_default()),
        };
        assert_eq!(records.iter().map(line).collect::<Vec<_>>(), frozen);
    }

    #[test]
    fn a_checkpoint_is_read_as_it_was_written_and_counts_once_its_end_mark_stands() {
        let written = Written::new();
        assert!(written.topic.is_empty(PARTITION).expect("asked"));
        // Two and a half times what has room at once.
        let large = slices(40, 512 << 10);
        let first = write(&written.writer, 100, &large);
        let second = write(&written.writer, 200, &[]);
        assert!(!written.topic.is_empty(PARTITION).expect("asked"));
        let mut told = Vec::new();
        let stored =
            written.topic.read(PARTITION, first, &mut |bytes| told.push(bytes), &|| false).expect("it is whole");
        assert!(stored == Stored { next_offset: 100, slices: large, at: first });
        assert_eq!((told.len(), told.last()), (40, Some(&(40 * (512 << 10)))));
        assert_eq!(
            written.read(second).expect("it is whole"),
            Stored { next_offset: 200, slices: Vec::new(), at: second }
        );
        assert_eq!(written.topic.complete(PARTITION).expect("read"), [(first, 100), (second, 200)]);
        assert!(written.topic.complete(0).expect("read").is_empty());
    }

    #[test]
    fn attempts_at_the_same_time_mix_nothing_and_an_abandoned_one_is_passed_over() {
        let written = Written::new();
        let zombie = CheckpointWriter::start(written.topic.clone(), Arc::default(), written.stop.clone());
        let (zombie, _thread) = zombie.expect("a thread");
        let abandoned = {
            let mut ticket = written.writer.begin(PARTITION, 7);
            ticket.offer(vec![9]).expect("there is room");
            while written.log.offsets("state", PARTITION).expect("asked").1 < 2 {
                runtime::sleep(Duration::from_millis(5));
            }
            0
        };
        let (mut a, mut b) = (written.writer.begin(PARTITION, 10), zombie.begin(PARTITION, 10));
        for fill in 0..5 {
            a.offer(vec![fill, b'a']).expect("there is room");
            b.offer(vec![fill, b'b']).expect("there is room");
            runtime::sleep(Duration::from_millis(5));
        }
        a.finish();
        b.finish();
        let (at_a, at_b) = (outcome(&a).expect("written"), outcome(&b).expect("written"));
        for (at, whose) in [(at_a, b'a'), (at_b, b'b')] {
            let expected: Vec<Vec<u8>> = (0..5).map(|fill| vec![fill, whose]).collect();
            assert_eq!(written.read(at).expect("it is whole").slices, expected);
        }
        let mut complete = [(at_a, 10), (at_b, 10)];
        complete.sort_unstable();
        assert_eq!(written.topic.complete(PARTITION).expect("read"), complete);
        let cut = written.read(abandoned).expect_err("it was never finished");
        assert!(cut.remedy == Remedy::Refuse && cut.what.contains("end mark"), "{cut}");
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_remedy() {
        let written = Written::new();
        let topic = &written.topic;
        let id = |n: u64| vec![(ID.to_owned(), b"x".to_vec()), (PLACE.to_owned(), n.to_string().into_bytes())];
        let begin = |partition| {
            let mark = BeginMark { id: "x".to_owned(), partition, next_offset: 5 };
            topic.record(PARTITION, BEGIN, serde_json::to_vec(&mark).expect("JSON"), Vec::new())
        };
        let end = |slices, bytes| {
            let mark = EndMark { id: "x".to_owned(), slices, bytes };
            topic.record(PARTITION, END, serde_json::to_vec(&mark).expect("JSON"), Vec::new())
        };
        let slice = |n| topic.record(PARTITION, SLICE, vec![1], id(n));
        let cases: Vec<(Vec<Outgoing>, &str)> = vec![
            (vec![topic.record(PARTITION, AUDIT, b"{}".to_vec(), Vec::new())], "`audit/1`"),
            (vec![topic.record(PARTITION, "checkpoint/2 begin", Vec::new(), Vec::new())], "`checkpoint/2 begin`"),
            (vec![topic.record(PARTITION, BEGIN, b"{".to_vec(), Vec::new())], "begin mark is damaged"),
            (vec![begin(0)], "of partition 0"),
            (vec![begin(PARTITION), slice(1)], "missing"),
            (vec![begin(PARTITION), slice(0), end(2, 2)], "missing"),
            (vec![begin(PARTITION), slice(0), end(1, 2)], "missing"),
        ];
        for (records, expected) in cases {
            let (_, at) = written.log.offsets("state", PARTITION).expect("asked");
            for record in &records {
                written.append(record);
            }
            let error = written.read(at).expect_err(expected);
            assert!(error.remedy == Remedy::Refuse && error.what.contains(expected), "{expected}: {error}");
            assert!(error.what.contains("wardbell recover --partition 1"), "{error}");
        }
        assert!(topic.complete(PARTITION).expect("read").is_empty());
        let (_, end) = written.log.offsets("state", PARTITION).expect("asked");
        assert!(written.read(end).is_err_and(|error| error.remedy == Remedy::Refuse));
        let given_up = topic.read(PARTITION, 0, &mut |_| {}, &|| true).expect_err("given up");
        assert_eq!(given_up.remedy, Remedy::Restart);
    }

    #[test]
    fn old_ones_are_deleted_and_after_the_end_nothing_is_written() {
        let written = Written::new();
        let first = write(&written.writer, 1, &slices(2, 10));
        let second = write(&written.writer, 2, &slices(2, 10));
        written.writer.delete_before(PARTITION, second);
        // What is asked for comes in order: the deletion is done when the next checkpoint is.
        let third = write(&written.writer, 3, &slices(2, 10));
        assert_eq!(written.topic.complete(PARTITION).expect("read"), [(second, 2), (third, 3)]);
        let deleted = written.read(first).expect_err("it is deleted");
        assert!(deleted.remedy == Remedy::Refuse && deleted.what.contains("deleted"), "{deleted}");
        let writer = written.writer.clone();
        drop(written);
        let mut late = writer.begin(PARTITION, 4);
        late.offer(vec![1]).expect("it is taken and goes nowhere");
        late.finish();
        assert!(outcome(&late).is_err());
    }
}
