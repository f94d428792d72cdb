//! The decide stage: one thread, one state machine and one transactional producer per canonical partition.
//!
//! This file follows the group's assignment. A partition that was assigned is taken over beside the polling loop, which never
//! waits: [`take_over`] fences whoever worked before and only then reads the committed offset and the checkpoint it names;
//! [`stand`] replays from there in silence and goes on. What fails is taken over again from the top; what cannot be
//! restored is reported and holds up no other partition.

mod stand;
mod take_over;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wardbell_connectors::log::{Isolation, LogError, Member, MemberEvent, Membership, Remedy, TopicPartition};
use wardbell_connectors::runtime::{self, Instant, Thread};

use super::{BACKOFF_MAX, BACKOFF_MIN, Shared};
use crate::checkpoints::{CheckpointWriter, StateTopic};
use crate::health::{Finding, LoopHandle, Severity};
use stand::Stand;
use take_over::{NotPrepared, Prepared};

/// Longest wait for events of the group.
const WAIT: Duration = Duration::from_millis(50);
/// A partition that fails this often within [`FAILURES_WITHIN`] is unhealthy; it goes on trying.
const FAILURES_REPORTED: usize = 3;
const FAILURES_WITHIN: Duration = Duration::from_secs(60);
/// A take-over that takes longer is given up and begun again.
const PREPARED_WITHIN: Duration = Duration::from_secs(300);
/// An attempt to commit, or to find out whether it was, is a few calls with time-outs of 10 s. A client that does not come
/// back from them within this never does.
const COMMIT_COMES_BACK: Duration = Duration::from_secs(60);
/// A restore tells how far it is this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// A partition that a person has to put right is looked at again this often.
const REFUSED_AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
pub(super) struct DecideSettings {
    pub commit_every: Duration,
    pub checkpoint_every: Duration,
    /// A replay that gives another history than the committed one ends the job, instead of being put right and reported.
    pub strict: bool,
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

/// Under this key stands in health what is wrong with a partition.
fn health_key(partition: i32) -> String {
    format!("partition/{partition}")
}

/// The same for its checkpoints.
fn checkpoint_key(partition: i32) -> String {
    format!("checkpoint/{partition}")
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
        let state_topic = StateTopic::new(shared.log.clone(), &shared.topics.state);
        let stop_writing = Arc::new(AtomicBool::new(false));
        let started = CheckpointWriter::start(state_topic.clone(), shared.health.clone(), stop_writing.clone());
        let (writer, thread) = started?;
        let mut owners = Owners {
            shared,
            common: Common { settings: *settings, state_topic, writer, polls: Arc::default() },
            turning,
            member,
            held: BTreeMap::new(),
            ended: Arc::default(),
            prepared: Arc::default(),
            next_try: 0,
            early: Vec::new(),
            unheard: None,
        };
        let result = owners.work();
        owners.end_all();
        if shared.leave_on_exit && shared.stopping() {
            owners.member.leave();
        }
        stop_writing.store(true, Ordering::SeqCst);
        let _ = thread.join();
        result
    });
}

/// What all partitions of this instance share.
#[derive(Clone)]
struct Common {
    settings: DecideSettings,
    state_topic: StateTopic,
    writer: CheckpointWriter,
    /// Times the group was polled: who wants to know whether a partition is still ours waits for two more.
    polls: Arc<AtomicU64>,
}

/// A partition that the group has assigned to us.
struct Held {
    work: Work,
    /// When its taking over began.
    since: Instant,
    /// When it failed, newest last.
    failures: Vec<Instant>,
}

enum Work {
    /// To be taken over from then on.
    Due(Instant),
    /// Being taken over, in the try of this number, until that is given up.
    Preparing(u64, Arc<AtomicBool>),
    Running(Owner),
}

/// A partition's thread.
struct Owner {
    finish: Arc<AtomicBool>,
    thread: Thread,
    attempt: Attempt,
}

impl Owner {
    /// The client has not come back from an attempt to commit for longer than all its time-outs take together.
    fn is_stuck(&self) -> bool {
        let began = *self.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        began.is_some_and(|began| began.elapsed() > COMMIT_COMES_BACK)
    }
}

/// When the attempt to commit that is under way began.
type Attempt = Arc<Mutex<Option<Instant>>>;

/// What other threads leave for the polling loop.
type Left<T> = Arc<Mutex<Vec<T>>>;

struct Owners<'a> {
    shared: &'a Shared,
    common: Common,
    turning: LoopHandle,
    member: Box<dyn Member>,
    held: BTreeMap<TopicPartition, Held>,
    /// Partitions whose threads ended with an error, and whether this job must not go on after it.
    ended: Left<(TopicPartition, LogError, bool)>,
    /// Partitions that were taken over, with the number of the try.
    prepared: Left<(u64, TopicPartition, Result<Prepared, NotPrepared>)>,
    next_try: u64,
    /// Came while something was waited for.
    early: Vec<MemberEvent>,
    unheard: Option<LogError>,
}

impl Owners<'_> {
    fn work(&mut self) -> Result<(), LogError> {
        while !self.shared.stopping() {
            self.turning.beat();
            if let Some(error) = self.unheard.take() {
                return Err(error);
            }
            let mut events = std::mem::take(&mut self.early);
            events.extend(self.member.events(if events.is_empty() { WAIT } else { Duration::ZERO })?);
            for event in events {
                match event {
                    MemberEvent::Assigned(partitions) => {
                        // The client stands still with all it reads until it is answered; what is new begins once it is
                        // prepared.
                        self.member.start_split(&[])?;
                        self.shared.statistics.assigned(partitions.iter().map(|partition| partition.partition));
                        let now = Instant::now();
                        let due =
                            |partition| (partition, Held { work: Work::Due(now), since: now, failures: Vec::new() });
                        self.held.extend(partitions.into_iter().map(due));
                    }
                    MemberEvent::Revoked(partitions) | MemberEvent::Lost(partitions) => {
                        // A lost partition's transaction is refused by the broker; its thread ends like the others.
                        self.end(&partitions);
                        self.member.stop(&partitions)?;
                    }
                }
            }
            self.common.polls.fetch_add(1, Ordering::SeqCst);
            self.take_over_what_is_due()?;
            self.begin_what_is_prepared()?;
            self.follow_ends()?;
        }
        Ok(())
    }

    /// Starts to take over, beside this loop, what is due: all of it together, since each asks the broker the same.
    fn take_over_what_is_due(&mut self) -> Result<(), LogError> {
        let now = Instant::now();
        let number = self.next_try;
        let mut partitions = Vec::new();
        for (partition, held) in &mut self.held {
            if matches!(held.work, Work::Due(due) if due <= now) {
                let given_up = Arc::new(AtomicBool::new(false));
                (held.work, held.since) = (Work::Preparing(number, given_up.clone()), now);
                partitions.push((partition.clone(), given_up));
            }
        }
        if partitions.is_empty() {
            return Ok(());
        }
        self.next_try += 1;
        let (shared, common, left) = (self.shared.clone(), self.common.clone(), self.prepared.clone());
        let group = self.member.group();
        let thread = runtime::spawn("take over".to_owned(), move || {
            take_over::prepare(&shared, &common, &group, partitions, &|partition, prepared| {
                lock(&left).push((number, partition, prepared));
            });
        });
        thread.map(drop).map_err(no_thread)
    }

    /// Partitions that were fenced and restored begin to be read, if they are still ours.
    fn begin_what_is_prepared(&mut self) -> Result<(), LogError> {
        let left = std::mem::take(&mut *lock(&self.prepared));
        let mut ready = Vec::new();
        for (number, partition, prepared) in left {
            let ours =
                self.held.get(&partition).is_some_and(|held| matches!(held.work, Work::Preparing(n, _) if n == number));
            match prepared {
                Ok(prepared) if ours => ready.push((partition, prepared)),
                // Ending a producer can take a while.
                Ok(prepared) => drop(runtime::spawn("close".to_owned(), move || drop(prepared))),
                Err(NotPrepared::Leave(error)) if ours => return Err(error),
                Err(NotPrepared::Again(error)) if ours => self.failed(&partition, &error),
                Err(_) => {}
            }
        }
        if ready.is_empty() {
            return Ok(());
        }
        let starts: Vec<(TopicPartition, i64)> =
            ready.iter().map(|(partition, prepared)| (partition.clone(), prepared.begin)).collect();
        let readers = self.member.start_split(&starts)?;
        let group = self.member.group();
        for ((partition, prepared), reader) in ready.into_iter().zip(readers) {
            let attempt = Attempt::default();
            let stand = Stand::new(self.shared, &self.common, prepared, reader, group.clone(), attempt.clone());
            let finish = Arc::new(AtomicBool::new(false));
            let (flag, ended, own) = (finish.clone(), self.ended.clone(), partition.clone());
            let thread = runtime::spawn(loop_name(partition.partition), move || {
                let mut stand = stand;
                if let Err(error) = stand.work(&flag) {
                    lock(&ended).push((own, error, stand.ends_job));
                }
            });
            let owner = Owner { finish, thread: thread.map_err(no_thread)?, attempt };
            self.shared.statistics.assigned([partition.partition]);
            if let Some(held) = self.held.get_mut(&partition) {
                held.work = Work::Running(owner);
            }
        }
        Ok(())
    }

    /// Partitions that ended by themselves begin again from the top.
    fn follow_ends(&mut self) -> Result<(), LogError> {
        // At a stop they end because of it.
        if self.shared.stopping() {
            return Ok(());
        }
        // A thread that ended without a word has panicked: its partition must not stay silent.
        let is_over = |held: &Held| matches!(&held.work, Work::Running(owner) if owner.thread.is_finished());
        let over: Vec<TopicPartition> =
            self.held.iter().filter(|(_, held)| is_over(held)).map(|(partition, _)| partition.clone()).collect();
        let mut said = std::mem::take(&mut *lock(&self.ended));
        for partition in over {
            let place = said.iter().position(|(of, ..)| *of == partition);
            let (error, ends_job) = match place {
                Some(place) => {
                    let (_, error, ends_job) = said.swap_remove(place);
                    (error, ends_job)
                }
                None => {
                    let step = format!("working on {}/{}", partition.topic, partition.partition);
                    (LogError::new(Remedy::Restart, step, "its thread ended unexpectedly"), false)
                }
            };
            self.end_thread(&partition);
            if ends_job {
                // Going on without it would give other alerts than the log says: another instance takes over there.
                return Err(error);
            }
            self.member.stop(std::slice::from_ref(&partition))?;
            self.failed(&partition, &error);
        }
        // Said by threads that are just about to end.
        lock(&self.ended).extend(said);
        // Whatever keeps it, a partition must not stay silent.
        let stuck = |held: &Held| match &held.work {
            Work::Preparing(..) => held.since.elapsed() > PREPARED_WITHIN,
            Work::Running(owner) => owner.is_stuck(),
            Work::Due(_) => false,
        };
        let stuck: Vec<TopicPartition> =
            self.held.iter().filter(|(_, held)| stuck(held)).map(|(partition, _)| partition.clone()).collect();
        for partition in stuck {
            let is_read = matches!(self.held.get(&partition), Some(Held { work: Work::Running(_), .. }));
            self.end_thread(&partition);
            if is_read {
                self.member.stop(std::slice::from_ref(&partition))?;
            }
            let step = format!("working on {}/{}", partition.topic, partition.partition);
            self.failed(&partition, &LogError::new(Remedy::Restart, step, "it takes too long"));
        }
        for (partition, held) in &mut self.held {
            held.failures.retain(|failed| failed.elapsed() < FAILURES_WITHIN);
            if held.failures.is_empty() && matches!(held.work, Work::Running(_)) {
                self.shared.health.clear(&health_key(partition.partition));
            }
        }
        Ok(())
    }

    /// A partition could not be taken over, or its thread ended: it is tried again from what is committed.
    fn failed(&mut self, partition: &TopicPartition, error: &LogError) {
        let Some(held) = self.held.get_mut(partition) else {
            return;
        };
        let refused = error.remedy == Remedy::Refuse;
        held.failures.push(Instant::now());
        let n = held.failures.len();
        let doubled = BACKOFF_MIN * 2_u32.saturating_pow(n.saturating_sub(1).min(8) as u32);
        let pause = if refused { REFUSED_AGAIN } else { doubled.min(BACKOFF_MAX) };
        held.work = Work::Due(Instant::now() + pause);
        let statistics = &self.shared.statistics;
        statistics.partition_failed(partition.partition);
        statistics.restarted("decide");
        let number = partition.partition;
        tracing::warn!(partition = number, failures = n, error = %error, pause_ms = pause.as_millis() as u64, "partition is taken over again from what is committed");
        if refused {
            // It waits for a person, and health says so: whoever waits for this instance need not wait for that.
            statistics.unassigned(number);
        }
        if refused || n >= FAILURES_REPORTED {
            let remedy = if refused {
                "put right what the cause names; the partition is then taken over by itself"
            } else {
                "see what the cause names; the partition is tried again meanwhile"
            };
            let finding = Finding::new(
                Severity::Failing,
                format!("partition {number} cannot be worked on: {error}"),
                "no alert is decided for its patients; its readings wait in the canonical log; other partitions go on",
                remedy,
            );
            self.shared.health.report(health_key(number), finding);
        }
    }

    /// Ends a partition's thread, which has ended or is about to.
    fn end_thread(&mut self, partition: &TopicPartition) {
        let Some(held) = self.held.get_mut(partition) else {
            return;
        };
        let due = Work::Due(Instant::now());
        match std::mem::replace(&mut held.work, due) {
            Work::Running(owner) => {
                owner.finish.store(true, Ordering::SeqCst);
                while !owner.thread.is_finished() && !owner.is_stuck() {
                    // A commit may take longer than a member may be silent.
                    match self.member.events(Duration::ZERO) {
                        Ok(events) => self.early.extend(events),
                        Err(error) => self.unheard = Some(error),
                    }
                    runtime::sleep(Duration::from_millis(5));
                }
                if owner.thread.is_finished() {
                    let _ = owner.thread.join();
                } else {
                    // Whatever it still sends is refused: the next owner takes its transactional id.
                    let number = partition.partition;
                    tracing::error!(
                        partition = number,
                        "the client does not come back from a transaction: its thread is left behind"
                    );
                }
                self.shared.statistics.partition_ended(partition.partition);
            }
            Work::Preparing(_, given_up) => given_up.store(true, Ordering::SeqCst),
            Work::Due(_) => {}
        }
    }

    /// Lets partitions finish what they have in hand; they are not ours any more.
    fn end(&mut self, partitions: &[TopicPartition]) {
        let waiting = self.turning.waiting("partitions that finish what they have in hand");
        for partition in partitions {
            if let Some(Held { work: Work::Running(owner), .. }) = self.held.get(partition) {
                owner.finish.store(true, Ordering::SeqCst);
            }
        }
        for partition in partitions {
            self.end_thread(partition);
            self.held.remove(partition);
            // From here on it is another owner's, also if our thread panicked.
            self.shared.health.forget(&loop_name(partition.partition));
            self.shared.health.clear(&health_key(partition.partition));
            self.shared.health.clear(&checkpoint_key(partition.partition));
            let group = group(&self.shared.group);
            self.shared.statistics.released(&group, &partition.topic, partition.partition);
            self.shared.statistics.unassigned(partition.partition);
        }
        lock(&self.ended).retain(|(of, ..)| !partitions.contains(of));
        drop(waiting);
    }

    fn end_all(&mut self) {
        let all: Vec<TopicPartition> = self.held.keys().cloned().collect();
        self.end(&all);
    }
}

fn lock<T>(left: &Left<T>) -> MutexGuard<'_, Vec<T>> {
    left.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_thread(error: std::io::Error) -> LogError {
    LogError::new(Remedy::Refuse, "starting a partition's thread", error.to_string())
}
