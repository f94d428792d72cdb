//! `wardbell recover`: a partition that the job refuses to take over goes on, from an older checkpoint or without one.
//!
//! First the partition is fenced, so that nothing is left open; then what it is to go on from is worked out; and only at the
//! end the new offset is committed, if nobody has moved the old one meanwhile. An instance that was refused the partition
//! takes it over by itself then, so the job need not be stopped. Nothing that stands in the alerts topic is said again: the
//! job replays up to there in silence. Who did it, when and why stands on the state topic before it takes effect.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::{Committed, Log, LogError, Progress, Remedy, TopicPartition};
use wardbell_connectors::runtime::{self, Instant};
use wardbell_core::partition::{Partition, Settings};
use wardbell_rules::RuleSet;
use wardbell_schemas::alert::{Alert, print_time};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::{Micros, SECOND};

use crate::checkpoints::{CheckpointWriter, Mark, StateTopic, Stored};
use crate::pipeline::replay::{self, Derivation, PATIENCE, PublishedSets, Records};
use crate::pipeline::{Topics, decide_group, transactional_id};
use crate::sets::ControlTopic;

/// Instances that try to take the partition over can come in between for so long.
const COMMITTED_WITHIN: Duration = Duration::from_secs(30);
/// Without a checkpoint so much of the canonical log is read again, in µs: whoever has not spoken for longer is as good as
/// gone, and a busy partition's day takes minutes.
const HISTORY: Micros = 86_400 * SECOND;
/// Of the checkpoint this much is encoded at once, in bytes.
const SLICE_BUDGET: usize = 1 << 20;
const WAIT: Duration = Duration::from_millis(100);
/// A checkpoint is written within this, or the broker is away.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);
/// A long reading tells how far it is this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// What is to be done, and who says so.
#[derive(Debug, Clone)]
pub struct Request {
    /// Prefix of consumer groups, as configured.
    pub group: String,
    pub topics: Topics,
    pub partition: i32,
    pub from: Basis,
    /// Who asks for it, and why.
    pub by: String,
    pub reason: Option<String>,
}

/// What the partition goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The newest whole checkpoint.
    Checkpoint,
    /// No checkpoint: the newest day of the canonical log and the open alerts of the alerts topic.
    Empty,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Committed canonical offset: what is before it is not said again.
    pub next_offset: i64,
    pub mark: Mark,
    /// What it means, in sentences.
    pub told: Vec<String>,
}

/// A use of this command, as it stands on the state topic.
#[derive(Debug, Serialize)]
struct Audit<'a> {
    command: &'static str,
    from: &'static str,
    partition: i32,
    by: &'a str,
    at: String,
    reason: Option<&'a str>,
    committed_before: Option<i64>,
    next_offset: i64,
    checkpoint: Option<i64>,
}

/// Lets a partition go on.
///
/// # Errors
/// [`Remedy::Refuse`] if it cannot go on that way, or an instance works on it; [`Remedy::Retry`] while the broker does
/// not answer; [`Remedy::Restart`] if it is not known whether it was committed: repeating it does no harm.
pub fn recover(log: &Arc<dyn Log>, clock: &dyn Clock, request: &Request) -> Result<Recovered, LogError> {
    let (topics, partition) = (&request.topics, request.partition);
    if !(0..topics.partitions).contains(&partition) {
        let what = format!("there is no partition {partition}: the job has 0 to {}", topics.partitions - 1);
        return Err(refuse(request, what));
    }
    // What a former owner left open would hold back whoever reads the alerts or the committed offset.
    drop(log.transactional(&id(request))?);
    let before = committed(&**log, request)?;
    let state_topic = StateTopic::new(log.clone(), &topics.state);
    let situation = Situation::of(log, request, before.clone())?;
    let recovered = match request.from {
        Basis::Checkpoint => situation.on_checkpoint(&state_topic)?,
        Basis::Empty => situation.on_nothing(&state_topic)?,
    };
    let audit = Audit {
        command: "recover",
        from: match request.from {
            Basis::Checkpoint => "checkpoint",
            Basis::Empty => "empty",
        },
        partition,
        by: &request.by,
        at: print_time(clock.now_us()),
        reason: request.reason.as_deref(),
        committed_before: before.as_ref().map(|committed| committed.next_offset),
        next_offset: recovered.next_offset,
        checkpoint: recovered.mark.checkpoint,
    };
    tracing::info!(
        target: "audit",
        partition,
        from = audit.from,
        by = audit.by,
        reason = audit.reason.unwrap_or_default(),
        offset = audit.next_offset,
        "recover"
    );
    state_topic.append_audit(partition, serde_json::to_vec(&audit).unwrap_or_default())?;
    commit(&**log, request, before.as_ref(), &recovered)?;
    Ok(recovered)
}

fn refuse(request: &Request, what: impl Into<String>) -> LogError {
    LogError::new(Remedy::Refuse, format!("recovering {}/{}", request.topics.canonical, request.partition), what)
}

/// The transactional id of the partition's owners.
fn id(request: &Request) -> String {
    transactional_id(&request.group, &request.topics.canonical, request.partition)
}

fn place(request: &Request) -> TopicPartition {
    TopicPartition::new(&request.topics.canonical, request.partition)
}

fn committed(log: &dyn Log, request: &Request) -> Result<Option<Committed>, LogError> {
    Ok(log.committed_with_metadata(&decide_group(&request.group), &[place(request)])?.pop().flatten())
}

/// What is known of the partition before anything is decided.
struct Situation<'a> {
    log: &'a Arc<dyn Log>,
    request: &'a Request,
    /// First offset held and end of the canonical log.
    first: i64,
    end: i64,
    committed: Option<Committed>,
    /// What stands beside the committed offset, if it can be read.
    mark: Option<Mark>,
    alerts: Vec<Alert>,
    /// Next canonical offset after the one that the newest alert came of.
    said: i64,
}

impl<'a> Situation<'a> {
    fn of(log: &'a Arc<dyn Log>, request: &'a Request, committed: Option<Committed>) -> Result<Self, LogError> {
        let (first, end) = log.offsets(&request.topics.canonical, request.partition)?;
        let alerts = replay::alerts_of(&**log, &request.topics.alerts, request.partition)?;
        // Only the newest is of this log for certain, if it was ever made anew.
        let said = alerts.last().map_or(0, |alert| alert.data.measured.offset + 1);
        let mark = committed.as_ref().and_then(|committed| Mark::parse(&committed.metadata).ok().flatten());
        Ok(Self { log, request, first, end, committed, mark, alerts, said })
    }

    fn refuse(&self, what: impl Into<String>) -> LogError {
        refuse(self.request, what)
    }

    /// Up to here everything is said: the committed offset; without one, the alerts tell.
    fn done(&self) -> i64 {
        self.committed.as_ref().map_or(self.said, |committed| committed.next_offset)
    }

    /// The log is not the one that was worked on.
    fn is_another_log(&self) -> bool {
        self.done() > self.end
    }

    fn on_checkpoint(&self, topic: &StateTopic) -> Result<Recovered, LogError> {
        if self.is_another_log() {
            let what = "the canonical log ends before what was already decided of it: it was made anew, and no checkpoint belongs to it; `--empty` goes on without one";
            return Err(self.refuse(what));
        }
        let mut told = Vec::new();
        let stored = self.newest_readable(topic, &mut told)?;
        let next_offset = self.done().max(stored.next_offset);
        let same = self.mark.filter(|_| self.committed.as_ref().is_some_and(|known| known.next_offset == next_offset));
        let (transitions, digest) = match same {
            Some(mark) => (mark.transitions, mark.digest),
            None => {
                told.push(
                    "what was committed of the partition's history is lost: its count and hash are those of a replay"
                        .to_owned(),
                );
                self.derive(&stored, next_offset)?
            }
        };
        told.push(format!(
            "the checkpoint is as of canonical offset {}; the records from there to offset {next_offset} are replayed in silence, everything after is decided and said",
            stored.next_offset
        ));
        Ok(Recovered { next_offset, mark: Mark { checkpoint: Some(stored.at), transitions, digest }, told })
    }

    /// The newest whole checkpoint that can be read and is not newer than what is committed.
    fn newest_readable(&self, topic: &StateTopic, told: &mut Vec<String>) -> Result<Stored, LogError> {
        let partition = self.request.partition;
        let latest = self.committed.as_ref().map_or(self.end, |committed| committed.next_offset);
        let mut sets = self.sets();
        for (at, next_offset) in topic.complete(partition)?.into_iter().rev() {
            let passed_over = if next_offset > latest {
                "it is newer than the committed offset".to_owned()
            } else if next_offset < self.first {
                format!("retention has deleted the canonical log before offset {}", self.first)
            } else {
                let mut said = Instant::now();
                let mut tell = |bytes: u64| {
                    if said.elapsed() > PROGRESS_EVERY {
                        said = Instant::now();
                        tracing::info!(partition, at, mib = bytes >> 20, "reading a checkpoint");
                    }
                };
                let stored = topic.read(partition, at, &mut tell, &|| false)?;
                // What a take-over would refuse again is of no use.
                let n_partitions = self.request.topics.partitions;
                match Derivation::from_checkpoint(partition, n_partitions, &stored.slices, &mut sets) {
                    Ok(_) => return Ok(stored),
                    Err(why) => why,
                }
            };
            told.push(format!(
                "the checkpoint at offset {at} as of canonical offset {next_offset} is passed over: {passed_over}"
            ));
        }
        told.push("no checkpoint is left that could be used; `--empty` goes on without one".to_owned());
        Err(self.refuse(told.join("; ")))
    }

    /// Transitions and their hash at an offset, from a checkpoint before it.
    fn derive(&self, stored: &Stored, next_offset: i64) -> Result<(u64, [u8; 16]), LogError> {
        let (topics, partition) = (&self.request.topics, self.request.partition);
        let mut sets = self.sets();
        let derivation = Derivation::from_checkpoint(partition, topics.partitions, &stored.slices, &mut sets);
        let derivation = derivation.map_err(|what| self.refuse(what))?;
        Ok(self.replay(derivation, stored.next_offset, next_offset, &mut sets)?.history())
    }

    fn sets(&self) -> PublishedSets {
        PublishedSets::new(ControlTopic::new(self.log.clone(), &self.request.topics.control))
    }

    /// Applies the records from one offset to another; what they decide is said by nobody.
    fn replay(
        &self,
        mut derivation: Derivation,
        from: i64,
        to: i64,
        sets: &mut PublishedSets,
    ) -> Result<Derivation, LogError> {
        let (topic, partition) = (&self.request.topics.canonical, self.request.partition);
        let mut records = Records::open(&**self.log, topic, partition, from, to)?;
        let mut said = Instant::now();
        let followed = derivation.follow(&mut records, sets, |_, offset, _| {
            if said.elapsed() > PROGRESS_EVERY {
                said = Instant::now();
                tracing::info!(partition, done = offset - from, all = to - from, "canonical records replayed");
            }
            Ok(ControlFlow::Continue(()))
        })?;
        followed.map_err(|what| self.refuse(what))?;
        Ok(derivation)
    }

    /// A partition that knows the newest day and its open alerts, written as a checkpoint.
    fn on_nothing(&self, topic: &StateTopic) -> Result<Recovered, LogError> {
        let mut told = Vec::new();
        let next_offset = if self.is_another_log() {
            told.push("the canonical log was made anew: it is decided from its first record".to_owned());
            self.first
        } else {
            self.done().max(self.first)
        };
        let lost = self.first - self.committed.as_ref().map_or(self.first, |committed| committed.next_offset);
        if lost > 0 && !self.is_another_log() {
            told.push(format!("retention has deleted {lost} canonical records that nobody has decided"));
        }
        let (partition, set) = self.empty_partition()?;
        let from = self.history_begins(next_offset)?;
        let derivation = Derivation::of(self.request.partition, self.request.topics.partitions, partition);
        let derivation = self.replay(derivation, from, next_offset, &mut self.sets())?;
        let mut partition = derivation.into_state().ok_or_else(|| self.refuse("no rule set came into force"))?;
        told.push(format!(
            "it knows what canonical records {from} to {next_offset} say under rule set {set}; windows that reach back further are unknown, baselines and limits of patients from before are forgotten"
        ));
        let contents: Vec<_> = self.alerts.iter().map(|alert| alert.data.content.clone()).collect();
        let unknown = partition.rebuild_episodes(&contents);
        told.push("open alerts are those of the alerts topic and go on under their ids".to_owned());
        if !unknown.is_empty() {
            let ids = unknown.join(", ");
            told.push(format!("of nobody who has spoken since, so that nothing will end them: open alerts {ids}"));
        }
        let (transitions, digest) = self.mark.map_or((0, [0; 16]), |mark| (mark.transitions, mark.digest));
        partition.continue_history(transitions, digest);
        let at = write(topic, self.request.partition, next_offset, &mut partition)?;
        Ok(Recovered { next_offset, mark: Mark { checkpoint: Some(at), transitions, digest }, told })
    }

    /// First record of the newest day before an offset.
    fn history_begins(&self, before: i64) -> Result<i64, LogError> {
        let time_of = |offset: i64| -> Result<Option<Micros>, LogError> {
            let (topic, partition) = (&self.request.topics.canonical, self.request.partition);
            let record = Records::open(&**self.log, topic, partition, offset, before)?.read(PATIENCE)?;
            Ok(record.map(|record| record.append_us.unwrap_or(record.time_us)))
        };
        let (mut first, mut end) = (self.first, before);
        let Some(newest) = (if first < end { time_of(end - 1)? } else { None }) else {
            return Ok(before);
        };
        while first < end {
            let middle = first + (end - first) / 2;
            if time_of(middle)?.is_some_and(|time| time < newest - HISTORY) {
                first = middle + 1;
            } else {
                end = middle;
            }
        }
        Ok(first)
    }

    /// An empty partition under the newest published set, and that set's number.
    fn empty_partition(&self) -> Result<(Partition, u64), LogError> {
        let published = ControlTopic::new(self.log.clone(), &self.request.topics.control).newest()?;
        let published = published.ok_or_else(|| self.refuse("no rule set is published"))?;
        let set = published.load().map_err(|why| {
            self.refuse(format!("the newest rule set cannot be used ({why}); publish one that this version can use"))
        })?;
        let settings = Settings { resumed: true, ..set.settings };
        let mut partition = Partition::new(settings.clone(), &RuleSet::new(Vec::new()), Catalogue::builtin());
        partition.activate(published.number, &set.hash, &set.rules, settings);
        Ok((partition, published.number))
    }
}

/// Writes a partition as a checkpoint; gives where it begins on the state topic.
fn write(topic: &StateTopic, number: i32, next_offset: i64, partition: &mut Partition) -> Result<i64, LogError> {
    let stop = Arc::new(AtomicBool::new(false));
    let (writer, thread) = CheckpointWriter::start(topic.clone(), Arc::default(), stop.clone())?;
    let mut ticket = writer.begin(number, next_offset);
    partition.begin_checkpoint();
    let deadline = Instant::now() + WRITTEN_WITHIN;
    let mut waiting = None;
    let outcome = loop {
        if let Some(outcome) = ticket.outcome() {
            break outcome;
        }
        if Instant::now() > deadline {
            break Err(LogError::new(Remedy::Retry, "writing a checkpoint", "the broker does not take it in time"));
        }
        let slice = waiting.take().or_else(|| partition.next_slice(SLICE_BUDGET));
        match slice.map(|slice| ticket.offer(slice)) {
            Some(Ok(())) => continue,
            Some(Err(slice)) => waiting = Some(slice),
            None if !partition.is_checkpointing() => ticket.finish(),
            None => continue,
        }
        runtime::sleep(Duration::from_millis(2));
    };
    drop(ticket);
    stop.store(true, Ordering::SeqCst);
    let _ = thread.join();
    outcome
}

/// Commits what was worked out, under the transactional id of the partition's owners: whoever of them works on it, or tries
/// to, is fenced and then goes on from here.
fn commit(log: &dyn Log, request: &Request, before: Option<&Committed>, recovered: &Recovered) -> Result<(), LogError> {
    let (group, metadata) = (log.outsider(&decide_group(&request.group))?, recovered.mark.print());
    let progress =
        Progress { group: &group, position: place(request), next_offset: recovered.next_offset, metadata: &metadata };
    let deadline = Instant::now() + COMMITTED_WITHIN;
    loop {
        let mut producer = log.transactional(&id(request))?;
        if committed(log, request)?.as_ref() != before {
            let what = "an instance of the job works on it and has committed meanwhile; it needs no recovery, or stop the instances and repeat the command";
            return Err(refuse(request, what));
        }
        match producer.commit(&[], Some(&progress)) {
            // An owner has tried to take it over in between.
            Err(error) if matches!(error.remedy, Remedy::Retry | Remedy::Fenced) && Instant::now() < deadline => {
                tracing::info!(error = %error, "committing again");
                runtime::sleep(WAIT);
            }
            other => return other,
        }
    }
}
