//! The canonical log worked through again, outside any job: the same transitions as the live run's, byte for byte, whatever
//! happened to instances and batches.
//!
//! [`Derivation`] is one partition, record by record, from its first record or from a checkpoint. Rule sets come into force
//! where the log says so; they are looked up by number and hash in [`PublishedSets`]. `Records` reads a stretch of a
//! partition. [`canonical_log`] derives a whole topic, [`alerts`] reads what was committed; `crate::verify` compares.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use wardbell_connectors::canonical::{self, Canonical};
use wardbell_connectors::log::{Isolation, Log, LogError, Outgoing, PartitionReader, Record, Remedy, TopicPartition};
use wardbell_connectors::runtime::Instant;
use wardbell_core::partition::{Decided, Evaluated, Partition};
use wardbell_rules::RuleSet;
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Alert, Content, Measured};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::Control;
use wardbell_schemas::outcome::OutcomeCounts;
use wardbell_schemas::reading::{ReadingColumns, SourcePosition};

use super::says;
use crate::sets::{ControlTopic, LoadedSet};

/// Records that are known to be there arrive within this, or the broker is away.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
const WAIT: Duration = Duration::from_millis(100);
/// Records asked for at once.
const BATCH: usize = 1_000;

/// A transition derived again, with everything about its record that is not measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Derived {
    pub content: Content,
    /// As [`Measured::basis_us`].
    pub basis_us: Micros,
    /// Append time of the canonical record that decided.
    pub canonical_us: Micros,
    pub source: Option<SourcePosition>,
    /// Where that record stands.
    pub partition: i32,
    pub offset: i64,
}

impl Derived {
    /// What a record decided that stands there and was appended at `canonical_us`.
    pub fn of(decided: Decided, canonical_us: Micros, partition: i32, offset: i64) -> Self {
        let Decided { content, basis_us, source } = decided;
        Self { content, basis_us: basis_us.unwrap_or(canonical_us), canonical_us, source, partition, offset }
    }

    /// The record of the alerts topic, as a job writes it that decides at `decided_us`. Transitions of canonical partition n
    /// go to partition n.
    pub fn record(&self, topic: &str, decided_us: Micros, delayed: bool) -> Outgoing {
        let Self { content, basis_us, canonical_us, source, partition, offset } = self.clone();
        let alert =
            Alert::new(content, Measured { basis_us, canonical_us, decided_us, source, partition, offset, delayed });
        Outgoing {
            topic: topic.to_owned(),
            partition,
            key: Some(alert.data.content.patient.clone().into_bytes()),
            value: serde_json::to_vec(&alert).ok(),
            headers: vec![("wardbell".to_owned(), b"alert/1".to_vec()), ("id".to_owned(), alert.id.into_bytes())],
            time_us: None,
        }
    }
}

/// The sets of a control topic, each read and compiled once.
pub struct PublishedSets {
    topic: ControlTopic,
    loaded: HashMap<String, Arc<LoadedSet>>,
}

impl PublishedSets {
    pub fn new(topic: ControlTopic) -> Self {
        Self { topic, loaded: HashMap::new() }
    }

    /// The set with a number and hash.
    ///
    /// # Errors
    /// A sentence: it is not there, or this binary cannot use it.
    pub fn get(&mut self, number: u64, hash: &str) -> Result<Arc<LoadedSet>, String> {
        match self.loaded.entry(hash.to_owned()) {
            Entry::Occupied(known) => Ok(known.get().clone()),
            Entry::Vacant(place) => {
                let published = self.topic.at(number).map_err(|error| error.to_string())?;
                let published = published.filter(|published| published.hash == hash);
                let published = published.ok_or_else(|| format!("rule set {number} is not on the control topic"))?;
                let set = published.load().map_err(|why| format!("rule set {number} cannot be used: {why}"))?;
                Ok(place.insert(Arc::new(set)).clone())
            }
        }
    }
}

/// What evaluations of one rule and patient saw, the newest of them.
#[derive(Debug)]
struct Watch {
    rule: String,
    patient: String,
    kept: VecDeque<Evaluated>,
    n_max: usize,
}

/// One canonical partition, derived again.
#[derive(Debug)]
pub struct Derivation {
    partition: i32,
    n_partitions: i32,
    /// None before the first activation of the log.
    state: Option<Partition>,
    passed_over: u64,
    watch: Option<Watch>,
}

impl Derivation {
    /// Begins at the first record of a partition's log.
    pub fn new(partition: i32, n_partitions: i32) -> Self {
        Self { partition, n_partitions, state: None, passed_over: 0, watch: None }
    }

    /// Begins where a checkpoint stands.
    ///
    /// # Errors
    /// A sentence: the checkpoint cannot be read, or its set cannot be used here.
    pub fn from_checkpoint(
        partition: i32,
        n_partitions: i32,
        slices: &[Vec<u8>],
        sets: &mut PublishedSets,
    ) -> Result<Self, String> {
        let head = Partition::head(slices).map_err(|error| error.to_string())?;
        let (number, hash) = head.in_force.ok_or("no rule set was in force yet at the checkpoint")?;
        let set = sets.get(number, &hash)?;
        let state = Partition::restore_checkpoint(set.settings.clone(), &set.rules, Catalogue::builtin(), slices)
            .map_err(|error| error.to_string())?;
        Ok(Self::of(partition, n_partitions, state))
    }

    /// Goes on with a state.
    pub(crate) fn of(partition: i32, n_partitions: i32, state: Partition) -> Self {
        Self { state: Some(state), ..Self::new(partition, n_partitions) }
    }

    /// Applies the next record of the log and gives the transitions that the job says for it, in order. A record that
    /// cannot be read is passed over and counted, as the live job does.
    ///
    /// # Errors
    /// A sentence: the record puts a set in force that cannot be used here, or readings stand before any set.
    pub fn apply(&mut self, record: &Record, sets: &mut PublishedSets) -> Result<Vec<Derived>, String> {
        let catalogue = Catalogue::builtin();
        let canonical_us = record.append_us.unwrap_or(record.time_us);
        let Ok(read) = canonical::read(record, &catalogue.hash) else {
            self.passed_over += 1;
            return Ok(Vec::new());
        };
        let traced = self.watch.as_ref().is_some_and(|watch| concerns(&read, &watch.patient));
        if let Some(state) = self.state.as_mut().filter(|_| traced) {
            state.start_trace();
        }
        if let Canonical::Control(control) = &read
            && let Control::Activate { number, hash } = &control.control
        {
            self.activate(*number, hash, sets)?;
        }
        let state = self.state.as_mut().ok_or("a record stands before the first activation of a rule set")?;
        match read {
            Canonical::Readings(batch) => {
                if state.apply(&batch, canonical_us).is_err() {
                    self.passed_over += 1;
                }
            }
            Canonical::Control(control) => state.apply_control(&control),
        }
        if let Some(watch) = self.watch.as_mut().filter(|_| traced) {
            watch.keep(state.take_trace());
        }
        let decided = state.take_decided().into_iter();
        let said = decided.filter(|decided| says(&decided.content, self.partition, self.n_partitions));
        let derived = said.map(|decided| Derived::of(decided, canonical_us, self.partition, record.offset));
        Ok(derived.collect())
    }

    /// Applies the records of a stretch, one after the other. `each` gets the offset and what was decided, and can end it.
    ///
    /// # Errors
    /// As the log and `each` say. The inner one is a sentence: a record cannot be followed, or does not arrive.
    pub(crate) fn follow(
        &mut self,
        records: &mut Records,
        sets: &mut PublishedSets,
        mut each: impl FnMut(&Self, i64, Vec<Derived>) -> Result<ControlFlow<()>, LogError>,
    ) -> Result<Result<(), String>, LogError> {
        while let Some(record) = records.read(PATIENCE)? {
            let derived = match self.apply(&record, sets) {
                Ok(derived) => derived,
                Err(what) => return Ok(Err(format!("canonical offset {}: {what}", record.offset))),
            };
            if each(self, record.offset, derived)?.is_break() {
                return Ok(Ok(()));
            }
        }
        if records.is_at_end() {
            return Ok(Ok(()));
        }
        Ok(Err(format!("the canonical records from offset {} on do not arrive", records.position())))
    }

    /// Puts a set in force; an older or equal number changes nothing.
    fn activate(&mut self, number: u64, hash: &str, sets: &mut PublishedSets) -> Result<(), String> {
        if self.in_force().is_some_and(|(newest, _)| newest >= number) {
            return Ok(());
        }
        let set = sets.get(number, hash)?;
        let fresh = || Partition::new(set.settings.clone(), &RuleSet::new(Vec::new()), Catalogue::builtin());
        self.state.get_or_insert_with(fresh).activate(number, hash, &set.rules, set.settings.clone());
        Ok(())
    }

    /// Keeps from now on what the newest `n_max` evaluations of a rule for a patient saw and said.
    pub fn watch(&mut self, rule: &str, patient: &str, n_max: usize) {
        let (rule, patient) = (rule.to_owned(), patient.to_owned());
        self.watch = Some(Watch { rule, patient, kept: VecDeque::new(), n_max });
    }

    /// What was kept since [`Derivation::watch`], oldest first.
    pub fn take_watched(&mut self) -> Vec<Evaluated> {
        self.watch.as_mut().map(|watch| watch.kept.drain(..).collect()).unwrap_or_default()
    }

    /// Number and hash of the set in force.
    pub fn in_force(&self) -> Option<(u64, &str)> {
        self.state.as_ref().and_then(Partition::in_force)
    }

    /// What the partition knows now; `None` before the first activation of the log.
    pub(crate) fn into_state(self) -> Option<Partition> {
        self.state
    }

    /// Transitions decided in this partition's whole history, and their running hash; those that another partition says
    /// for all are among them.
    pub fn history(&self) -> (u64, [u8; 16]) {
        self.state.as_ref().map_or((0, [0; 16]), |state| (state.transitions(), *state.digest()))
    }

    /// Outcomes of the readings applied here.
    pub fn outcomes(&self) -> OutcomeCounts {
        self.state.as_ref().map(|state| *state.outcomes()).unwrap_or_default()
    }

    /// Records that could not be read.
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }
}

impl Watch {
    fn keep(&mut self, seen: Vec<Evaluated>) {
        let wanted = seen.into_iter().filter(|seen| seen.rule == self.rule && seen.patient == self.patient);
        for seen in wanted {
            if self.kept.len() == self.n_max {
                self.kept.pop_front();
            }
            self.kept.push_back(seen);
        }
    }
}

/// Whether a record may have rules evaluated for a patient. Ticks only fire timers.
fn concerns(read: &Canonical, patient: &str) -> bool {
    match read {
        Canonical::Readings(batch) => ReadingColumns::try_new(batch).is_ok_and(|columns| {
            (0..columns.len()).any(|row| columns.row(row).is_some_and(|row| row.patient == patient))
        }),
        Canonical::Control(control) => !matches!(control.control, Control::Tick { .. }),
    }
}

/// The records of a partition from one offset to another, in order.
pub(crate) struct Records {
    reader: Box<dyn PartitionReader>,
    /// Next offset to hand out.
    next: i64,
    end: i64,
    ready: VecDeque<Record>,
}

impl Records {
    /// From `first` to before `end`, as a read-committed reader sees them.
    pub fn open(log: &dyn Log, topic: &str, partition: i32, first: i64, end: i64) -> Result<Self, LogError> {
        let reader = log.reader(&TopicPartition::new(topic, partition), first, Isolation::ReadCommitted)?;
        Ok(Self { reader, next: first, end, ready: VecDeque::new() })
    }

    /// The next record; `None` at the end, or if nothing has come within `patience`.
    pub fn read(&mut self, patience: Duration) -> Result<Option<Record>, LogError> {
        let began = Instant::now();
        loop {
            if let Some(record) = self.ready.pop_front() {
                self.next = record.offset + 1;
                return Ok(Some(record));
            }
            if self.is_at_end() || self.reader.is_at_end() {
                return Ok(None);
            }
            let mut records = Vec::new();
            let attempt = self.reader.read(BATCH, WAIT, &mut records);
            let is_over = began.elapsed() >= patience;
            match attempt {
                // The client reconnects by itself.
                Err(error) if error.remedy != Remedy::Retry || is_over => return Err(error),
                _ if records.is_empty() && is_over => return Ok(None),
                _ => {}
            }
            let n_before_end = records.iter().take_while(|record| record.offset < self.end).count();
            if n_before_end < records.len() {
                self.end = n_before_end.checked_sub(1).map_or(self.next, |last| records[last].offset + 1);
            }
            self.ready.extend(records.into_iter().take(n_before_end));
        }
    }

    /// The next record of a topic with transactions; `None` at the end of what can be read, also if what is left are ends of
    /// transactions.
    ///
    /// # Errors
    /// As the log says; [`Remedy::Retry`] if nothing comes and the end is not reached either.
    pub fn read_past_markers(&mut self) -> Result<Option<Record>, LogError> {
        let record = self.read(PATIENCE)?;
        if record.is_none() && !self.is_at_end() && !self.reader.is_at_end() {
            let at = self.reader.position();
            let step = format!("reading {}/{}", at.topic, at.partition);
            return Err(LogError::new(Remedy::Retry, step, "records that are there do not arrive"));
        }
        Ok(record)
    }

    /// Everything before the end was handed out.
    pub fn is_at_end(&self) -> bool {
        self.next >= self.end
    }

    /// Next offset to hand out.
    pub fn position(&self) -> i64 {
        self.next
    }
}

/// What an offline run gives.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Transitions by canonical partition, in order.
    pub partitions: Vec<Vec<Content>>,
    pub outcomes: OutcomeCounts,
}

/// Runs a canonical topic from its beginning to its present end, with the sets of a control topic.
///
/// # Errors
/// As the log says; a record that cannot be followed ends it, since what comes after would not be the live run.
pub fn canonical_log(log: &dyn Log, topic: &str, sets: &ControlTopic) -> Result<Replayed, LogError> {
    let mut replayed = Replayed::default();
    let mut sets = PublishedSets::new(sets.clone());
    let n_partitions = log.describe(topic)?.0;
    for partition in 0..n_partitions {
        let refuse = |what: String| LogError::new(Remedy::Refuse, format!("replaying {topic}/{partition}"), what);
        let (first, end) = log.offsets(topic, partition)?;
        if first > 0 {
            return Err(refuse("its first records are deleted: a replay needs the log from its beginning".to_owned()));
        }
        let mut derivation = Derivation::new(partition, n_partitions);
        let mut records = Records::open(log, topic, partition, first, end)?;
        let mut contents = Vec::new();
        let followed = derivation.follow(&mut records, &mut sets, |_, _, derived| {
            contents.extend(derived.into_iter().map(|derived| derived.content));
            Ok(ControlFlow::Continue(()))
        })?;
        followed.map_err(refuse)?;
        replayed.outcomes.merge(&derivation.outcomes());
        replayed.partitions.push(contents);
    }
    Ok(replayed)
}

/// All alerts of an alerts topic that a read-committed reader sees, by partition. What is no alert is told and passed over.
///
/// # Errors
/// As [`alerts_of`].
pub fn alerts(log: &dyn Log, topic: &str) -> Result<Vec<Vec<Alert>>, LogError> {
    (0..log.describe(topic)?.0).map(|partition| alerts_of(log, topic, partition)).collect()
}

/// The alerts of one partition that a read-committed reader sees, oldest first.
///
/// # Errors
/// As the log says; [`Remedy::Refuse`] for a record that is no alert.
pub fn alerts_of(log: &dyn Log, topic: &str, partition: i32) -> Result<Vec<Alert>, LogError> {
    let (first, end) = log.offsets(topic, partition)?;
    let mut records = Records::open(log, topic, partition, first, end)?;
    let mut found = Vec::new();
    while let Some(record) = records.read_past_markers()? {
        let alert: Result<Alert, serde_json::Error> =
            serde_json::from_slice(record.value.as_deref().unwrap_or_default());
        match alert {
            Ok(alert) => found.push(alert),
            // It must not keep a partition from going on; `verify` names it.
            Err(error) => {
                let (line, column) = (error.line(), error.column());
                tracing::error!(topic, partition, offset = record.offset, line, column, "no alert, passed over");
            }
        }
    }
    Ok(found)
}
