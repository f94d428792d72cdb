//! Taking partitions over: fence, read what is committed, restore.
//!
//! The order is what keeps alerts single: a new owner first takes over the partition's transactional id, which ends what
//! the owner before left open and refuses whatever it still sends. Only then is the committed offset final, and with it the
//! checkpoint that its metadata names. All partitions of an assignment are asked for together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use wardbell_connectors::log::{Committed, GroupHandle, LogError, Remedy, TopicPartition, Transactional};
use wardbell_connectors::runtime::{self, Instant, Thread, fault};
use wardbell_core::partition::{Partition, Settings};
use wardbell_rules::RuleSet;
use wardbell_schemas::catalogue::Catalogue;

use super::super::Shared;
use super::super::control::Numbered;
use super::{Common, PROGRESS_EVERY, transactional_id};
use crate::checkpoints::Mark;

/// Partitions that are being restored are looked at this often.
const LOOK: Duration = Duration::from_millis(5);

/// A partition that is fenced and restored, before its replay.
pub(super) struct Prepared {
    pub producer: Box<dyn Transactional>,
    pub partition: Partition,
    /// The set in force; none before the first activation of the log.
    pub set: Option<Numbered>,
    /// First canonical offset to read.
    pub begin: i64,
    /// Up to here everything is decided and committed.
    pub committed: i64,
    /// What was committed beside it; none at a first start.
    pub mark: Option<Mark>,
}

/// Why a partition was not taken over.
pub(super) enum NotPrepared {
    /// It is tried again, and is reported if only a person can help.
    Again(LogError),
    /// This binary cannot use the set in force there: another instance may, so this one leaves.
    Leave(LogError),
}

impl From<LogError> for NotPrepared {
    fn from(error: LogError) -> Self {
        Self::Again(error)
    }
}

/// What is told of each partition, as soon as that is known.
type Done<'a> = &'a (dyn Fn(TopicPartition, Result<Prepared, NotPrepared>) + Sync);

/// Takes partitions over, until that is given up; each fails, and is told, by itself.
pub(super) fn prepare(
    shared: &Shared,
    common: &Common,
    group: &GroupHandle,
    partitions: Vec<(TopicPartition, Arc<AtomicBool>)>,
    done: Done<'_>,
) {
    let (partitions, given_up): (Vec<TopicPartition>, Vec<Arc<AtomicBool>>) = partitions.into_iter().unzip();
    // Looked at before whoever worked here is fenced: only to show what that would cost.
    let committed = || shared.log.committed_by(group, &partitions);
    let early = fault::is_removed("fence first").then(committed);
    if early.is_some() {
        runtime::sleep(Duration::from_secs(20));
    }
    let fenced = fence(shared, &partitions);
    let committed = match early.unwrap_or_else(committed) {
        Ok(committed) => committed,
        Err(error) => {
            let same = || LogError::new(error.remedy, error.step.clone(), error.what.clone());
            return partitions.into_iter().for_each(|partition| done(partition, Err(same().into())));
        }
    };
    let restoring = partitions.iter().zip(fenced).zip(committed).zip(given_up).map(
        |(((partition, producer), committed), given_up)| {
            let (shared, common, own) = (shared.clone(), common.clone(), partition.clone());
            let result = Arc::new(Mutex::new(None));
            let place = result.clone();
            let thread = runtime::spawn("restore".to_owned(), move || {
                let restored = producer
                    .map_err(NotPrepared::from)
                    .and_then(|producer| restore(&shared, &common, &own, producer, committed, &given_up));
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(restored);
            });
            (partition, thread, result)
        },
    );
    let mut restoring: Vec<_> = restoring.collect();
    while !restoring.is_empty() {
        restoring.retain(|(partition, thread, result)| {
            let is_over = thread.as_ref().map_or(true, Thread::is_finished);
            if is_over {
                let restored = result.lock().unwrap_or_else(PoisonError::into_inner).take();
                done((*partition).clone(), restored.unwrap_or_else(|| Err(broken().into())));
            }
            !is_over
        });
        runtime::sleep(LOOK);
    }
}

fn broken() -> LogError {
    LogError::new(Remedy::Restart, "taking over a partition", "a thread ended unexpectedly")
}

fn fence(shared: &Shared, partitions: &[TopicPartition]) -> Vec<Result<Box<dyn Transactional>, LogError>> {
    let works = partitions.iter().map(|partition| {
        let log = shared.log.clone();
        let id = transactional_id(&shared.group, &partition.topic, partition.partition);
        Box::new(move || log.transactional(&id)) as Box<dyn FnOnce() -> Result<Box<dyn Transactional>, LogError> + Send>
    });
    let fenced = runtime::side_by_side("fence", works.collect());
    fenced.into_iter().map(|producer| producer.unwrap_or_else(|_| Err(broken()))).collect()
}

/// Makes a producer ready for its first transaction, while the partition is restored.
fn warm_up(
    shared: &Shared,
    partition: i32,
    mut producer: Box<dyn Transactional>,
) -> impl FnOnce() -> Result<Box<dyn Transactional>, LogError> {
    let target = TopicPartition::new(&shared.topics.alerts, partition);
    let result = Arc::new(Mutex::new(None));
    let place = result.clone();
    let thread = runtime::spawn("warm up".to_owned(), move || {
        let warmed = producer.warm_up(&target).map(|_| producer);
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(warmed);
    });
    move || {
        thread.map_err(|_| broken())?.join().map_err(|_| broken())?;
        let warmed = result.lock().unwrap_or_else(PoisonError::into_inner).take();
        warmed.unwrap_or_else(|| Err(broken()))
    }
}

fn restore(
    shared: &Shared,
    common: &Common,
    at: &TopicPartition,
    producer: Box<dyn Transactional>,
    committed: Option<Committed>,
    given_up: &AtomicBool,
) -> Result<Prepared, NotPrepared> {
    fault::check("restore.before")?;
    let number = at.partition;
    let warmed = warm_up(shared, number, producer);
    let refuse = |what: String| LogError::new(Remedy::Refuse, format!("restoring {}/{number}", at.topic), what);
    let remedy = format!("`wardbell recover --partition {number}` is the remedy");
    let (first, end) = shared.log.offsets(&at.topic, number)?;
    let mark = match &committed {
        Some(committed) => Mark::parse(&committed.metadata).map_err(|what| {
            refuse(format!("what stands beside the committed offset cannot be read: {what}; {remedy}"))
        })?,
        None if !common.state_topic.is_empty(number)? => {
            return Err(refuse(format!("checkpoints are there, but no committed offset; {remedy}")).into());
        }
        None => None,
    };
    let committed = committed.map_or(first, |committed| committed.next_offset);
    if committed > end {
        let what =
            format!("offset {committed} is committed, but the canonical log ends at {end}: it was made anew; {remedy}");
        return Err(refuse(what).into());
    }
    let (partition, set, begin) = match mark.and_then(|mark| mark.checkpoint) {
        Some(checkpoint) => from_checkpoint(shared, common, at, checkpoint, given_up)?,
        None => {
            // Site and clock are those of every published set; everything else comes into force with one.
            // A mark that names no checkpoint is of a history that began where the log did.
            let begin = match mark {
                Some(_) => first.min(committed),
                None if committed == first => committed,
                None => 0,
            };
            let settings = Settings { resumed: begin > 0, ..shared.sets.newest().set.settings.clone() };
            (Partition::new(settings, &RuleSet::new(Vec::new()), Catalogue::builtin()), None, begin)
        }
    };
    // As if the state were of the committed offset: only to show what that would cost.
    let (begin, mark) = if fault::is_removed("checkpoint header") { (committed, None) } else { (begin, mark) };
    if begin < first {
        let what = format!(
            "the log has to be read from offset {begin}, but retention has deleted everything before {first}; {remedy}"
        );
        return Err(refuse(what).into());
    }
    fault::check("restore.after")?;
    Ok(Prepared { producer: warmed()?, partition, set, begin, committed, mark })
}

fn from_checkpoint(
    shared: &Shared,
    common: &Common,
    at: &TopicPartition,
    checkpoint: i64,
    given_up: &AtomicBool,
) -> Result<(Partition, Option<Numbered>, i64), NotPrepared> {
    let number = at.partition;
    let give_up = || given_up.load(Ordering::SeqCst) || shared.stopping();
    let mut told = Instant::now();
    let mut tell = |bytes: u64| {
        if told.elapsed() > PROGRESS_EVERY {
            told = Instant::now();
            tracing::info!(partition = number, mib = bytes >> 20, "restoring: reading the checkpoint");
        }
    };
    let stored = common.state_topic.read(number, checkpoint, &mut tell, &give_up)?;
    let unreadable = |what: &dyn std::fmt::Display| {
        let what =
            format!("its checkpoint cannot be read: {what}; `wardbell recover --partition {number}` is the remedy");
        LogError::new(Remedy::Refuse, format!("restoring {}/{number}", at.topic), what)
    };
    let head = Partition::head(&stored.slices).map_err(|error| unreadable(&error))?;
    let newest = shared.sets.newest();
    if head.site != newest.set.settings.site || head.record_clock != newest.set.settings.record_clock {
        return Err(unreadable(&"it is of another site or clock").into());
    }
    let set = match &head.in_force {
        Some((number, hash)) => {
            let set = shared.sets.get(*number, hash, &give_up).map_err(|error| match error.remedy {
                Remedy::Refuse => NotPrepared::Leave(error),
                _ => error.into(),
            })?;
            Some(Numbered { number: *number, set })
        }
        None => None,
    };
    let empty = RuleSet::new(Vec::new());
    let (settings, rules) = match &set {
        Some(Numbered { set, .. }) => (set.settings.clone(), &set.rules),
        None => (newest.set.settings.clone(), &empty),
    };
    let partition = Partition::restore_checkpoint(settings, rules, Catalogue::builtin(), &stored.slices)
        .map_err(|error| unreadable(&error))?;
    Ok((partition, set, stored.next_offset))
}
