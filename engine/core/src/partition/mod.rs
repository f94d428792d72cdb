//! The partition: everything the decide stage knows of one canonical partition, as a function of its log.
//!
//! Rows and control records go in, in log order; transitions come out, in order. The unit of work is the source record,
//! so it does not matter how records were gathered into batches. No clock, no I/O, no threads; the same log gives the
//! same transitions, byte for byte.
//!
//! Reading order: [`Partition::apply`] (a batch), `apply_record` (one source record: clock, timers, times, windows,
//! rules), [`time`] (when a reading counts), [`clocks`] (timers), [`series`] and [`plan`]; `content.rs` says a transition;
//! [`checkpoint`] writes it all down and reads it back; `ahead.rs` is for speed only.

pub mod checkpoint;
pub mod clocks;
pub mod plan;
pub mod series;
pub mod time;

mod activation;
mod ahead;
mod content;
mod evaluation;
mod rebuild;
mod silence;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::RecordBatch;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use wardbell_rules::RuleSet;
use wardbell_schemas::alert::{Content, EpisodeId, Priority, TransitionKind};
use wardbell_schemas::catalogue::{Catalogue, SignalIndex};
use wardbell_schemas::control::{Condition, Control, ControlRecord};
use wardbell_schemas::outcome::{Outcome, OutcomeCounts};
use wardbell_schemas::reading::{
    Change, Comparator, Policies, Quality, ReadingColumns, ReadingRow, Reason, SourcePosition,
};
use wardbell_schemas::{Micros, SECOND};

use self::clocks::{Clock, Movement, Timer};
use self::plan::Plan;
use self::series::{Position, Series, Technical};
use self::time::{Bounds, Decision, Replaced};
use crate::episode::{Ended, KeyState};
use crate::window::{Reading, Samples};

/// Version of what rules, windows and episodes mean (`rules/SEMANTICS.md`), as this binary implements it.
pub const SEMANTICS: u32 = 1;

/// Decision settings of one partition: part of what decides, so part of the set.
#[derive(Debug, Clone)]
pub struct Settings {
    pub site: String,
    /// How far behind broker time an event time may be.
    pub lateness_us: Micros,
    /// How far ahead.
    pub skew_us: Micros,
    /// Event times before 2001 are device clocks at their reset date. Off in rule tests.
    pub epoch_check: bool,
    /// Records carry their own time, which is believed; all of them are one source.
    pub record_clock: bool,
    /// What single connectors allow, where that differs from the above.
    pub connectors: Vec<Connector>,
    /// Samples a series keeps.
    pub samples_max: usize,
    /// The log before the first applied record is not known: what happened there may be missing from windows.
    pub resumed: bool,
}

impl Settings {
    pub fn new(site: &str) -> Self {
        Self {
            site: site.to_owned(),
            lateness_us: 60 * SECOND,
            skew_us: 5 * SECOND,
            epoch_check: true,
            record_clock: false,
            connectors: Vec::new(),
            samples_max: wardbell_rules::SAMPLES_MAX as usize,
            resumed: false,
        }
    }

    /// What holds for the readings of a source topic.
    fn bounds(&self, topic: &str) -> Bounds {
        let connector = self.connectors.iter().find(|connector| connector.topics.iter().any(|known| known == topic));
        Bounds {
            lateness_us: connector.map_or(self.lateness_us, |connector| connector.lateness_us),
            skew_us: connector.map_or(self.skew_us, |connector| connector.skew_us),
            epoch_check: self.epoch_check,
            coarse: connector.is_some_and(|connector| connector.coarse),
            reset_days: connector.map(|connector| connector.reset_days.clone()).unwrap_or_default(),
        }
    }
}

/// What one connector allows of its devices' clocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connector {
    /// Source topics it reads.
    pub topics: Vec<String>,
    pub lateness_us: Micros,
    pub skew_us: Micros,
    /// It declares a time resolution: every reading of a later record with the same stamp is a sample.
    pub coarse: bool,
    /// Beginnings (UTC, µs since 1970) of days to which its devices' clocks are reset.
    pub reset_days: Vec<Micros>,
}

/// The source of rows that prove the path: each becomes a transition of `technical/canary` that sinks do not show. No topic
/// can have this name, so no source can send one.
pub const CANARY: &str = "wardbell/canary";

/// A transition with what is needed to measure it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    pub content: Content,
    /// Append time of the source record that decided; `None` for a timer and where the source does not know it: then
    /// the append time of the canonical record counts.
    pub basis_us: Option<Micros>,
    /// Where the newest reading of the key came from, for whoever wants to look it up.
    pub source: Option<SourcePosition>,
}

/// What one evaluation saw and said; kept only while tracing.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    pub rule: String,
    pub patient: String,
    pub key: String,
    pub at: Micros,
    /// `unknown`, `false` or the priority.
    pub raise: &'static str,
    pub clear: Option<bool>,
    /// Function and value of everything the rule reads; `None` is unknown.
    pub values: Vec<(String, Option<f64>)>,
}

/// Why a batch or record could not be applied. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("the batch is not of the canonical reading schema")]
    SchemaMismatch(#[source] arrow_schema::ArrowError),
    #[error("row {row} names a signal, quality or reason that this version does not know")]
    UnknownCode { row: usize },
}

/// What episodes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
enum KeyRef {
    Series(u32),
    Patient(u32),
}

/// Names as dense numbers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Names {
    names: Vec<String>,
    #[serde(skip)]
    numbers: HashMap<String, u32>,
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }

    fn name(&self, number: u32) -> &str {
        &self.names[number as usize]
    }

    /// Reads where a name's text stands and how it begins: for the cache, see `ahead.rs`.
    fn touch(&self, number: u32) -> u64 {
        u64::from(self.names[number as usize].as_bytes().first().copied().unwrap_or(0))
    }

    fn index(&mut self) {
        self.numbers = self.names.iter().zip(0..).map(|(name, number)| (name.clone(), number)).collect();
    }
}

/// One source partition: what was read of it, and the clock it moves.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Feed {
    topic: String,
    partition: i32,
    /// Rows of records below this offset have been applied.
    next_offset: i64,
    /// Newest append time of them, where the broker stamps.
    newest_append: Option<Micros>,
    clock: u32,
    /// The normalizer set of the newest, where that is known; only counted by.
    #[serde(skip)]
    normalizer: Vec<u8>,
}

/// One signal of one patient.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SignalOfPatient {
    signal: u16,
    series: Vec<u32>,
    /// The series that rules of several signals read.
    primary: Option<u32>,
}

/// A device's clock, as `technical/clock` sees it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct DeviceClock {
    device: u32,
    alert: Technical,
    newest_raise: Option<Micros>,
    newest_raise_clock: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Patient {
    limits: BTreeMap<String, f64>,
    attributes: BTreeMap<String, f64>,
    signals: Vec<SignalOfPatient>,
    devices: Vec<DeviceClock>,
    /// Series that are stale right now.
    n_stale: u32,
    /// By the slots of the plan's rules of patients.
    rules: Vec<KeyState>,
}

impl Patient {
    fn signal(&self, signal: SignalIndex) -> Option<&SignalOfPatient> {
        self.signals.iter().find(|known| known.signal == signal.0)
    }

    /// Reads a word of every part that readings need: for the cache, see `ahead.rs`.
    fn touch(&self) -> u64 {
        u64::from(self.n_stale) ^ (self.limits.len() ^ self.signals.len() ^ self.rules.len()) as u64
    }

    /// The same for what those parts point to.
    fn touch_inside(&self) -> u64 {
        let of_signals = self.signals.iter().fold(0, |touched, known| touched ^ u64::from(known.signal));
        self.rules.iter().fold(of_signals, |touched, state| touched ^ state.touch())
    }
}

/// What a partition remembers, and what a checkpoint is made of (see [`checkpoint`]); the rest is derived from it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    patient_names: Names,
    device_names: Names,
    method_names: Names,
    feeds: Vec<Feed>,
    clocks: Vec<Clock>,
    /// Written patient by patient, each with its series.
    #[serde(skip)]
    patients: Vec<Patient>,
    #[serde(skip)]
    series: Vec<Series>,
    /// Places of series that were forgotten; the last is used again first.
    free_series: Vec<u32>,
    /// Control records that were applied, by id.
    controls: BTreeSet<String>,
    /// Source records applied so far; names a record.
    record: u64,
    /// Samples accepted and series gone stale so far: tells which came first.
    sequence: u64,
    /// Transitions so far.
    transitions: u64,
    /// Running hash over them, see [`Partition::digest`].
    digest: [u8; 16],
    /// Rule ids in the order their key states are kept in.
    rule_ids: Vec<String>,
    /// Number and content hash of the set in force.
    in_force: Option<(u64, String)>,
    /// What the job noticed about itself.
    conditions: Vec<Noticed>,
    /// The last episodes of rules that are not in force any more: one that comes back begins later than they ended.
    retired: Vec<Retired>,
    /// The last episodes of series that were forgotten, for as long as a reading sent again could begin one of them anew.
    forgotten: Vec<Forgotten>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Forgotten {
    rule: String,
    patient: u32,
    key: String,
    ended: Box<Ended>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Retired {
    rule: String,
    key: KeyRef,
    ended: Box<Ended>,
}

/// A technical alert that a control record begins and ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Noticed {
    rule: String,
    key: String,
    priority: Priority,
    alert: Technical,
}

type SeriesKey = (u32, u32, u16, u32);

/// See the module.
#[derive(Debug)]
pub struct Partition {
    settings: Settings,
    catalogue: &'static Catalogue,
    plan: Arc<Plan>,
    state: State,
    series_by_key: HashMap<SeriesKey, u32>,
    feed_by_name: HashMap<(String, i32), u32>,
    /// What holds for each feed's readings.
    bounds: Vec<Arc<Bounds>>,
    /// Open physiological episodes, for people who act on them.
    open: HashMap<u128, (usize, KeyRef)>,
    outcomes: OutcomeCounts,
    /// The normalizer set of the batch that is being applied.
    normalizer: Vec<u8>,
    message_faults: u64,
    held_back: u64,
    decided: Vec<Decided>,
    /// What evaluations saw, if somebody wants to know.
    trace: Option<Vec<Evaluated>>,
    scratch: Scratch,
    /// The feed of the record before, most often that of this one.
    feed_before: Option<u32>,
    /// `technical/clock` alerts that are open.
    n_clock_alerts: usize,
    ahead: ahead::Ahead,
    /// The checkpoint that is being written.
    writing: Option<Box<checkpoint::Writing>>,
}

/// Buffers used again for each record.
#[derive(Debug, Default)]
struct Scratch {
    pending: Vec<Pending>,
    due: Vec<Timer>,
    steps: Vec<crate::episode::Step>,
    reads: Vec<Option<u32>>,
    concerned: Vec<(usize, KeyRef)>,
    newest_of_record: Vec<(u32, Micros)>,
    answers: evaluation::Answers,
}

/// A reading whose time is decided and whose turn has not come.
#[derive(Debug, Clone, Copy)]
struct Pending {
    series: u32,
    t: Micros,
    event: Micros,
    replaced: Option<Replaced>,
    said: bool,
    value: Option<i64>,
    comparator: Comparator,
    questionable: bool,
    quality: Quality,
    reason: Reason,
    policies: Policies,
    index: u32,
    /// It changes the sample at `t`.
    changes: bool,
    /// Its time could be decided.
    accepted: bool,
}

impl Pending {
    fn plain(&self) -> Reading {
        let Self { t, value, questionable, comparator, .. } = *self;
        Reading { t, value, questionable, comparator, cover_us: 0 }
    }
}

/// Times and place of the record that is being applied.
#[derive(Debug, Clone, Copy)]
struct RecordContext {
    feed: u32,
    clock: u32,
    offset: i64,
    broker: Micros,
    basis_us: Option<Micros>,
}

impl Partition {
    /// An empty partition at the beginning of its log (or, with `resumed`, somewhere inside it).
    pub fn new(settings: Settings, set: &RuleSet, catalogue: &'static Catalogue) -> Self {
        Self::with_state(settings, set, catalogue, State { rule_ids: rule_ids(set), ..State::default() })
    }

    /// A partition that goes on from `state`, which was reached under the rules of `set`.
    fn with_state(settings: Settings, set: &RuleSet, catalogue: &'static Catalogue, state: State) -> Self {
        let plan = Arc::new(Plan::new(set, catalogue));
        let mut partition = Self {
            settings,
            catalogue,
            plan,
            state,
            series_by_key: HashMap::new(),
            feed_by_name: HashMap::new(),
            bounds: Vec::new(),
            open: HashMap::new(),
            outcomes: OutcomeCounts::default(),
            normalizer: Vec::new(),
            message_faults: 0,
            held_back: 0,
            decided: Vec::new(),
            trace: None,
            scratch: Scratch::default(),
            feed_before: None,
            n_clock_alerts: 0,
            ahead: ahead::Ahead::default(),
            writing: None,
        };
        partition.derive();
        partition
    }

    /// Transitions decided since the beginning of the log, by this partition and those it goes on from.
    pub fn transitions(&self) -> u64 {
        self.state.transitions
    }

    /// Running hash over these transitions: after each, the first 16 bytes of SHA-256 over the hash before, its id, the
    /// names of its kind and priority, and its `T` as eight bytes, low first. Two histories with the same hash are the same.
    pub fn digest(&self) -> &[u8; 16] {
        &self.state.digest
    }

    pub fn outcomes(&self) -> &OutcomeCounts {
        &self.outcomes
    }

    /// Messages that faulted and were replaced by the plain one.
    pub fn message_faults(&self) -> u64 {
        self.message_faults
    }

    /// Conditions that were over before their cool-down was.
    pub fn held_back(&self) -> u64 {
        self.held_back
    }

    /// Counts from zero: what was counted so far, somebody else has counted before.
    pub fn forget_counts(&mut self) {
        (self.outcomes, self.message_faults, self.held_back) = (OutcomeCounts::default(), 0, 0);
    }

    /// Forgets what was seen of its sources: only to show what that would cost.
    #[cfg(feature = "simulation")]
    pub fn forget_marks(&mut self) {
        for feed in &mut self.state.feeds {
            feed.next_offset = i64::MIN;
        }
    }

    /// Patients, series and open physiological episodes right now.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.state.patients.len(), self.series_by_key.len(), self.open.len())
    }

    /// Keeps from now on what every evaluation saw and said; for explanations, not for production.
    pub fn start_trace(&mut self) {
        self.trace = Some(Vec::new());
    }

    pub fn take_trace(&mut self) -> Vec<Evaluated> {
        self.trace.take().unwrap_or_default()
    }

    /// Transitions decided since the last call, in order.
    pub fn take_decided(&mut self) -> Vec<Decided> {
        std::mem::take(&mut self.decided)
    }

    /// Names the normalizer set that made the batches from here on; empty: not known. It decides nothing: rows that were
    /// seen before are counted as renormalized where another set made them.
    pub fn normalized_with(&mut self, normalizer: &[u8]) {
        if self.normalizer != normalizer {
            normalizer.clone_into(&mut self.normalizer);
        }
    }

    /// Applies one canonical batch. Transitions are fetched with [`Partition::take_decided`].
    ///
    /// Input: rows in log order of this partition, in the canonical reading schema; rows of one source record stand
    /// together. `canonical_us` is the append time of the record the batch came in, never a clock's.
    /// Timers due at or before a record's time fire before it. Rows already seen (same source position) are counted as
    /// repeated and change nothing.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing has changed then.
    pub fn apply(&mut self, batch: &RecordBatch, canonical_us: Micros) -> Result<(), ApplyError> {
        let columns = ReadingColumns::try_new(batch).map_err(ApplyError::SchemaMismatch)?;
        if let Some(row) = columns.first_unknown(self.catalogue.signals().len()) {
            return Err(ApplyError::UnknownCode { row });
        }
        let plan = self.plan.clone();
        self.look_at_batch(&columns);
        let mut start = 0;
        while start < columns.len() {
            self.look_ahead(&columns, start);
            let end = columns.record_end(start);
            self.apply_record(&plan, &columns, start..end, canonical_us);
            start = end;
        }
        Ok(())
    }

    /// Applies one control record at its place in the log.
    pub fn apply_control(&mut self, record: &ControlRecord) {
        if !record.id.is_empty() && !self.state.controls.insert(record.id.clone()) {
            return;
        }
        match &record.control {
            Control::Tick { claims } => {
                for claim in claims {
                    let feed = self.feed(&claim.topic, claim.partition);
                    let clock = self.state.feeds[feed as usize].clock;
                    self.tick(clock, claim.time_us);
                }
            }
            Control::Limit { patient, name, value } => {
                let patient = self.patient(patient);
                self.about_to_change(patient);
                set_or_remove(&mut self.state.patients[patient as usize].limits, name, *value);
            }
            Control::Attribute { patient, name, value } => {
                let patient = self.patient(patient);
                self.about_to_change(patient);
                set_or_remove(&mut self.state.patients[patient as usize].attributes, name, *value);
            }
            Control::Discharge { patient } => self.discharge(patient),
            Control::Acknowledge { episode, .. } => self.act_on(episode, TransitionKind::Acknowledged),
            Control::Reset { episode, .. } => self.act_on(episode, TransitionKind::Reset),
            Control::Standby { patient, device } => self.stand_by(patient, device.as_deref()),
            Control::Condition(condition) => self.follow_condition(condition),
            // The caller has the set: it calls [`Partition::activate`].
            Control::Activate { .. } => {}
        }
    }

    /// Moves the one clock of records that carry their own time, as a tick of its only feed does.
    pub fn tick_record_clock(&mut self, time_us: Micros) {
        let feed = self.feed("", 0);
        let clock = self.state.feeds[feed as usize].clock;
        self.tick(clock, time_us);
    }

    fn tick(&mut self, clock: u32, time_us: Micros) {
        self.move_clock(clock, time_us);
        let state = &self.state.clocks[clock as usize];
        let now = state.now.unwrap_or(time_us);
        if state.feed_alert.open.is_some() && now >= state.calm_from {
            self.end_feed_alert(clock, now);
        }
    }

    /// One source record: its clock and the timers that makes due; then times in the record's order; then, in order of
    /// `t`, samples and rules.
    fn apply_record(
        &mut self,
        plan: &Plan,
        columns: &ReadingColumns<'_>,
        rows: std::ops::Range<usize>,
        canonical_us: Micros,
    ) {
        let (topic, partition, offset, source_time_us, append_time_us) = columns.source(rows.start);
        if topic == CANARY {
            // It moves no clock and is no reading: it only has to come through.
            rows.filter_map(|row| columns.row(row)).for_each(|row| self.say_canary(&row));
            return;
        }
        let feed = match self.feed_before {
            Some(feed) if self.is_feed(feed, topic, partition) => feed,
            _ => self.feed(topic, partition),
        };
        self.feed_before = Some(feed);
        let known = &mut self.state.feeds[feed as usize];
        // A record that was appended later under an offset that was seen: the topic was made anew.
        let seen = offset < known.next_offset;
        let made_anew = seen && known.newest_append.is_some() && append_time_us > known.newest_append;
        if seen && !made_anew {
            let is_known = !known.normalizer.is_empty() && !self.normalizer.is_empty();
            match is_known && known.normalizer != self.normalizer {
                true => self.outcomes.renormalized += rows.len() as u64,
                false => self.outcomes.repeated += rows.len() as u64,
            }
            return;
        }
        if known.normalizer != self.normalizer {
            known.normalizer.clone_from(&self.normalizer);
        }
        known.next_offset = offset + 1;
        known.newest_append = known.newest_append.max(append_time_us);
        let clock = known.clock;
        let broker = match append_time_us {
            None if !self.settings.record_clock => source_time_us.min(canonical_us),
            _ => source_time_us,
        };
        let context = RecordContext { feed, clock, offset, broker, basis_us: append_time_us };
        self.state.record += 1;
        self.move_clock(clock, broker);
        if made_anew {
            self.raise_made_anew(clock);
        }
        self.decide_times(columns, rows, &context);
        self.take_in_order(plan, &context);
    }

    /// Decides outcome and `t` of a record's readings in the record's order; accepted ones become pending.
    fn decide_times(&mut self, columns: &ReadingColumns<'_>, rows: std::ops::Range<usize>, context: &RecordContext) {
        let record = self.state.record;
        let clock_now = self.clock_now(context.clock);
        let mut pending = std::mem::take(&mut self.scratch.pending);
        let mut newest = std::mem::take(&mut self.scratch.newest_of_record);
        pending.clear();
        newest.clear();
        for place in rows {
            let Some(row) = columns.row(place) else {
                continue;
            };
            if row.quality == Quality::Test {
                self.outcomes.add(Outcome::Test);
                continue;
            }
            let series = self.series(place, &row, context);
            pending.push(Pending {
                series,
                t: 0,
                event: row.event_time_us,
                replaced: None,
                said: false,
                value: row.value.filter(|_| !matches!(row.quality, Quality::Missing | Quality::Technical)),
                comparator: row.comparator,
                questionable: row.quality == Quality::Questionable,
                quality: row.quality,
                reason: row.reason,
                policies: row.policies,
                index: row.source_index,
                changes: false,
                accepted: true,
            });
            if row.change != Change::None {
                let bounds = self.bounds[context.feed as usize].clone();
                self.name_changed(&mut pending, row.change, clock_now, &bounds);
            }
        }
        // Of each record only the newest event time of a series counts for the slow-clock rule.
        newest.extend(pending.iter().filter(|reading| !reading.changes).map(|reading| (reading.series, reading.event)));
        if newest.len() > 1 {
            newest.sort_unstable();
        }
        let bounds = &self.bounds[context.feed as usize];
        for (i, (series, event)) in newest.iter().enumerate() {
            if newest.get(i + 1).is_none_or(|(next, _)| next != series) {
                let time = &mut self.state.series[*series as usize].time;
                time.begin_record(*event, context.broker, clock_now, record, bounds);
            }
        }
        let mut all_accepted = true;
        for reading in &mut pending {
            let time = &mut self.state.series[reading.series as usize].time;
            let bounds = &self.bounds[context.feed as usize];
            if reading.changes {
                // An earlier reading of this record may have another `t` than was remembered before it.
                reading.t = time.t_of(reading.event, clock_now, bounds).unwrap_or(reading.t);
                time.correct(reading.event, reading.value, reading.comparator);
                continue;
            }
            let said = (reading.value, reading.comparator);
            let decision = time.decide(reading.event, said, context.broker, clock_now, record, bounds);
            if let Decision::At { t, replaced, said } = decision {
                (reading.t, reading.replaced, reading.said) = (t, replaced, said);
                continue;
            }
            (reading.accepted, all_accepted) = (false, false);
            match decision {
                Decision::At { .. } => {}
                Decision::Duplicate { later_record } => {
                    self.outcomes.add(Outcome::Duplicate);
                    if later_record {
                        self.sign_of_life(reading.series, clock_now, context);
                    }
                }
                Decision::Conflict => self.outcomes.add(Outcome::Conflict),
                Decision::Late => self.outcomes.add(Outcome::Late),
            }
        }
        if !all_accepted {
            pending.retain(|reading| reading.accepted);
        }
        self.scratch.pending = pending;
        self.scratch.newest_of_record = newest;
    }

    /// Finds the sample that the last of these readings corrects or retracts. A correction of nothing that is held is a
    /// reading like others; a retraction of nothing has come too late.
    fn name_changed(&mut self, pending: &mut Vec<Pending>, change: Change, clock_now: Micros, bounds: &Bounds) {
        let Some(mut reading) = pending.pop() else {
            return;
        };
        if change == Change::Retracts {
            reading.value = None;
        }
        let series = &mut self.state.series[reading.series as usize];
        let t = series.time.t_of(reading.event, clock_now, bounds).unwrap_or(reading.event);
        let same = |earlier: &Pending| (earlier.series, earlier.event) == (reading.series, reading.event);
        if series.samples.holds(t) || pending.iter().any(same) {
            (reading.t, reading.changes) = (t, true);
        } else if change == Change::Retracts {
            self.outcomes.add(Outcome::Late);
            return;
        }
        pending.push(reading);
    }

    /// Takes pending readings in order of `t`, those of one `t` together, and evaluates what they concern.
    fn take_in_order(&mut self, plan: &Plan, context: &RecordContext) {
        let mut pending = std::mem::take(&mut self.scratch.pending);
        if pending.len() > 1 {
            pending.sort_by_key(|reading| reading.t);
        }
        let mut start = 0;
        while let Some(first) = pending.get(start) {
            let end = start + pending[start..].iter().take_while(|reading| reading.t == first.t).count();
            let mut concerned = std::mem::take(&mut self.scratch.concerned);
            concerned.clear();
            for reading in &pending[start..end] {
                if self.accept(plan, reading, context) {
                    self.add_concerned(reading.series, &mut concerned);
                }
            }
            if end - start > 1 {
                self.order_concerned(&mut concerned);
            }
            for (rule, key) in &concerned {
                self.evaluate(plan, *rule, *key, context);
            }
            self.scratch.concerned = concerned;
            start = end;
        }
        self.scratch.pending = pending;
    }

    /// Takes one reading into its series. False if its turn came too late.
    fn accept(&mut self, plan: &Plan, reading: &Pending, context: &RecordContext) -> bool {
        let clock_now = self.clock_now(context.clock);
        self.scratch.answers.forget();
        let series = &mut self.state.series[reading.series as usize];
        if reading.changes {
            let held = series.correct(&reading.plain());
            self.outcomes.add(if held { Outcome::Corrected } else { Outcome::Late });
            return held;
        }
        let lateness_us = self.bounds[context.feed as usize].lateness_us;
        if series.newest_t.is_some_and(|newest| newest - reading.t > lateness_us) {
            series.time.take_back(reading.event, self.state.record);
            self.outcomes.add(Outcome::Late);
            return false;
        }
        let signal = self.catalogue.signal(series.signal_index());
        let signal_plan = plan.signal(series.signal_index());
        if self.settings.resumed && series.newest_t.is_none() {
            series.samples = Samples::new(Some(reading.t - 1));
        }
        let newest_before = series.newest_t;
        let overrun = series.accept(&reading.plain(), signal, signal_plan, self.settings.samples_max);
        if newest_before.is_none_or(|before| reading.t >= before) {
            series.newest_source = Some(Position { feed: context.feed, offset: context.offset, index: reading.index });
            series.newest_event = reading.event;
            series.newest_reason = match reading.replaced {
                None => reading.reason,
                Some(Replaced::Future) => Reason::ClockFuture,
                Some(Replaced::Epoch) => Reason::ClockEpoch,
                Some(Replaced::Slow) => Reason::ClockOffset,
                Some(Replaced::Coarse) => Reason::TimeCoarse,
            } as u8;
            series.newest_policies = reading.policies;
        }
        let series = &mut self.state.series[reading.series as usize];
        if reading.value.is_some() {
            self.state.sequence += 1;
            series.first_sample.get_or_insert(self.state.sequence);
            series.newest_sample = self.state.sequence;
            series.expect_next(signal, clock_now);
            series.remember_until(signal, clock_now);
        }
        let outcome = match (reading.value, reading.quality) {
            (None, Quality::Technical) => Outcome::Technical,
            (None, _) => Outcome::Missing,
            (Some(_), Quality::Questionable) => Outcome::Questionable,
            (Some(_), _) if reading.replaced.is_some() => Outcome::Retimed,
            (Some(_), _) => Outcome::Evaluated,
        };
        self.outcomes.add(outcome);
        self.device_clock(reading, context);
        if reading.reason == Reason::Off {
            self.expect_nothing(reading.series, clock_now, context.basis_us);
        }
        if reading.value.is_some() {
            self.arm_silence(reading.series);
            self.end_stale(reading.series, TransitionKind::Cleared, clock_now, context.basis_us);
            self.spoke_for_others(reading.series, clock_now, context);
            self.choose_primary(reading.series, reading.t);
        }
        let alerting = reading.value.is_some() && self.state.series[reading.series as usize].overrun.open.is_some();
        if overrun || alerting {
            self.follow_overrun(reading.series, overrun, clock_now, context);
        }
        true
    }

    /// Another series takes over as the primary one when the old has been silent for long.
    fn choose_primary(&mut self, index: u32, t: Micros) {
        let series = &self.state.series[index as usize];
        let stale_us = self.catalogue.signal(series.signal_index()).stale_after_us;
        let signal = series.signal;
        let patient = &self.state.patients[series.patient as usize];
        let Some(place) = patient.signals.iter().position(|known| known.signal == signal) else {
            return;
        };
        let takes_over = match patient.signals[place].primary {
            None => true,
            Some(primary) if primary == index => false,
            Some(primary) => {
                let newest = self.state.series[primary as usize].samples.newest_sample(true);
                stale_us > 0 && newest.is_none_or(|newest| t - newest > stale_us)
            }
        };
        if takes_over {
            let (patient, clock) = (series.patient, series.clock);
            let of_signal = &mut self.state.patients[patient as usize].signals[place];
            let before = of_signal.primary.replace(index);
            if before.is_some_and(|before| self.state.series[before as usize].clock != clock) {
                let plan = self.plan.clone();
                self.rearm_holds_of_patient(&plan, patient);
            }
        }
    }

    fn clock_now(&self, clock: u32) -> Micros {
        self.state.clocks[clock as usize].now.unwrap_or(Micros::MIN)
    }

    fn is_feed(&self, feed: u32, topic: &str, partition: i32) -> bool {
        let known = &self.state.feeds[feed as usize];
        known.partition == partition && known.topic == topic
    }

    /// The feed of a source partition, made at first sight.
    fn feed(&mut self, topic: &str, partition: i32) -> u32 {
        let name = (topic.to_owned(), partition);
        if let Some(feed) = self.feed_by_name.get(&name) {
            return *feed;
        }
        let clock = if self.settings.record_clock && !self.state.clocks.is_empty() {
            0
        } else {
            self.state.clocks.push(Clock::new(format!("{topic}/{partition}")));
            self.state.clocks.len() as u32 - 1
        };
        let feed = self.state.feeds.len() as u32;
        self.bounds.push(Arc::new(self.settings.bounds(topic)));
        self.state.feeds.push(Feed {
            topic: topic.to_owned(),
            partition,
            next_offset: i64::MIN,
            newest_append: None,
            clock,
            normalizer: Vec::new(),
        });
        self.feed_by_name.insert(name, feed);
        feed
    }

    fn patient(&mut self, name: &str) -> u32 {
        let number = self.state.patient_names.number(name);
        if number as usize == self.state.patients.len() {
            let mut patient = Patient::default();
            patient.rules.resize_with(self.plan.of_patient.len(), KeyState::default);
            self.state.patients.push(patient);
        }
        number
    }

    /// The series of a row, made at first sight. Its clock is that of its newest reading's source.
    fn series(&mut self, place: usize, row: &ReadingRow<'_>, context: &RecordContext) -> u32 {
        let index = match self.ahead.guess(place).filter(|guess| self.is_series(*guess, row)) {
            Some(guess) => {
                self.about_to_change(self.state.series[guess as usize].patient);
                guess
            }
            None => {
                let index = self.series_by_names(row, context);
                self.ahead.learn(place, index);
                index
            }
        };
        if self.state.series[index as usize].clock != context.clock {
            self.change_clock(index, context.clock);
        }
        index
    }

    fn is_series(&self, index: u32, row: &ReadingRow<'_>) -> bool {
        let State { patient_names, device_names, method_names, .. } = &self.state;
        self.state.series.get(index as usize).is_some_and(|series| {
            series.alive
                && series.signal == row.signal.0
                && patient_names.name(series.patient) == row.patient
                && device_names.name(series.device) == row.device
                && method_names.name(series.method) == row.method
        })
    }

    fn series_by_names(&mut self, row: &ReadingRow<'_>, context: &RecordContext) -> u32 {
        let patient = self.patient(row.patient);
        self.about_to_change(patient);
        let device = self.state.device_names.number(row.device);
        let method = self.state.method_names.number(row.method);
        let key = (patient, device, row.signal.0, method);
        match self.series_by_key.get(&key) {
            Some(index) => *index,
            None => self.new_series(key, row, context.clock),
        }
    }

    fn new_series(&mut self, key: SeriesKey, row: &ReadingRow<'_>, clock: u32) -> u32 {
        let (patient, device, _, method) = key;
        let signal = self.catalogue.signal(row.signal);
        let mut series = Series {
            patient,
            device,
            signal: row.signal.0,
            method,
            key: format!("{}/{}/{}", row.device, signal.id, row.method),
            clock,
            alive: true,
            ..Series::default()
        };
        series.fit(self.plan.signal(row.signal));
        if !self.state.forgotten.is_empty() {
            self.remember_forgotten(&mut series);
        }
        // Silence and forgetting count from the first reading, of any outcome.
        let now = self.clock_now(clock);
        series.expect_next(signal, now);
        series.remember_until(signal, now);
        let index = match self.state.free_series.pop() {
            Some(index) => {
                self.state.series[index as usize] = series;
                index
            }
            None => {
                self.state.series.push(series);
                self.state.series.len() as u32 - 1
            }
        };
        self.series_by_key.insert(key, index);
        let of_patient = &mut self.state.patients[patient as usize];
        match of_patient.signals.iter_mut().find(|known| known.signal == row.signal.0) {
            Some(known) => known.series.push(index),
            None => {
                of_patient.signals.push(SignalOfPatient { signal: row.signal.0, series: vec![index], primary: None })
            }
        }
        if !of_patient.devices.iter().any(|known| known.device == device) {
            of_patient.devices.push(DeviceClock { device, ..DeviceClock::default() });
        }
        self.arm_silence(index);
        index
    }

    /// Rebuilds what is not written: indexes, running windows, timers, open episodes.
    fn derive(&mut self) {
        for names in [&mut self.state.patient_names, &mut self.state.device_names, &mut self.state.method_names] {
            names.index();
        }
        self.feed_by_name =
            self.state.feeds.iter().zip(0..).map(|(feed, i)| ((feed.topic.clone(), feed.partition), i)).collect();
        self.bounds = self.state.feeds.iter().map(|feed| Arc::new(self.settings.bounds(&feed.topic))).collect();
        for clock in &mut self.state.clocks {
            clock.disarm();
        }
        self.count_clock_alerts();
        let plan = self.plan.clone();
        for patient in &mut self.state.patients {
            patient.rules.resize_with(plan.of_patient.len(), KeyState::default);
        }
        for index in 0..self.state.series.len() {
            let series = &mut self.state.series[index];
            let number = index as u32;
            if !series.alive {
                continue;
            }
            series.fit(plan.signal(series.signal_index()));
            self.series_by_key.insert((series.patient, series.device, series.signal, series.method), number);
            self.arm_silence(number);
        }
        self.rearm_holds(&plan);
    }

    fn count_clock_alerts(&mut self) {
        let devices = self.state.patients.iter().flat_map(|patient| &patient.devices);
        self.n_clock_alerts = devices.filter(|device| device.alert.open.is_some()).count();
    }

    /// A rule's key state.
    fn key_state(&self, plan: &Plan, rule: usize, key: KeyRef) -> &KeyState {
        let slot = plan.rules[rule].slot;
        match key {
            KeyRef::Series(series) => &self.state.series[series as usize].rules[slot],
            KeyRef::Patient(patient) => &self.state.patients[patient as usize].rules[slot],
        }
    }

    fn key_state_mut(&mut self, plan: &Plan, rule: usize, key: KeyRef) -> &mut KeyState {
        let slot = plan.rules[rule].slot;
        match key {
            KeyRef::Series(series) => &mut self.state.series[series as usize].rules[slot],
            KeyRef::Patient(patient) => &mut self.state.patients[patient as usize].rules[slot],
        }
    }

    fn patient_of(&self, key: KeyRef) -> u32 {
        match key {
            KeyRef::Series(series) => self.state.series[series as usize].patient,
            KeyRef::Patient(patient) => patient,
        }
    }

    fn key_text(&self, key: KeyRef) -> &str {
        match key {
            KeyRef::Series(series) => &self.state.series[series as usize].key,
            KeyRef::Patient(_) => "-",
        }
    }

    /// A person acknowledges or resets an episode; an unknown id changes nothing.
    fn act_on(&mut self, episode: &str, kind: TransitionKind) {
        let Ok(EpisodeId(id)) = episode.parse::<EpisodeId>() else {
            return;
        };
        let Some((rule, key)) = self.open.get(&id).copied() else {
            return;
        };
        self.about_to_change(self.patient_of(key));
        let plan = self.plan.clone();
        let clock = self.key_clock(&plan, rule, key);
        let state = self.key_state_mut(&plan, rule, key);
        let at = state.evaluated_at.unwrap_or(clock.0);
        let step = match kind {
            TransitionKind::Reset => state.reset(at, clock),
            _ => state.acknowledge(at),
        };
        if let Some(step) = step {
            self.say(&plan, rule, key, &step, None);
        }
    }

    fn move_clock(&mut self, clock: u32, to: Micros) {
        let movement = self.state.clocks[clock as usize].movement(to, self.settings.record_clock);
        match movement {
            Movement::None => {}
            Movement::On => {
                self.state.clocks[clock as usize].now = Some(to);
                self.fire_timers(clock, to);
            }
            Movement::Jump(distance) => {
                self.move_deadlines(clock, distance);
                self.state.clocks[clock as usize].now = Some(to);
                self.fire_timers(clock, to);
                self.raise_feed_alert(clock, to, distance);
            }
            Movement::Back(distance) => {
                // What waits for this clock waits as long as before: nothing comes due by this.
                self.set_clock_back(clock, to, distance);
                self.raise_feed_alert(clock, to, distance);
            }
        }
    }

    /// Fires what is due at or before `until`, in the order of (due, patient, key, rule id).
    fn fire_timers(&mut self, clock: u32, until: Micros) {
        if !self.state.clocks[clock as usize].is_due(until) {
            return;
        }
        let mut entries = std::mem::take(&mut self.scratch.due);
        while let Some(due) = self.state.clocks[clock as usize].pop_due(until, &mut entries) {
            let plan = self.plan.clone();
            if entries.len() > 1 {
                entries.sort_by(|a, b| self.timer_order(&plan, *a).cmp(&self.timer_order(&plan, *b)));
                entries.dedup();
            }
            for timer in &entries {
                self.about_to_change(self.patient_of_timer(*timer));
                if self.is_elsewhere(*timer, clock) {
                    self.left_behind(*timer, clock);
                    continue;
                }
                match *timer {
                    Timer::Forget { series } => self.forget_if_due(series, due),
                    Timer::Stale { series } => self.stale_if_due(series, due),
                    Timer::HoldOfSeries { series, rule } => {
                        self.hold_if_due(&plan, rule as usize, KeyRef::Series(series), due);
                    }
                    Timer::HoldOfPatient { patient, rule } => {
                        self.hold_if_due(&plan, rule as usize, KeyRef::Patient(patient), due);
                    }
                }
            }
        }
        self.scratch.due = entries;
    }

    fn patient_of_timer(&self, timer: Timer) -> u32 {
        match timer {
            Timer::Forget { series } | Timer::Stale { series } | Timer::HoldOfSeries { series, .. } => {
                self.state.series[series as usize].patient
            }
            Timer::HoldOfPatient { patient, .. } => patient,
        }
    }

    /// The series' readings come from another source partition by now, and its timers run on that one's clock.
    fn is_elsewhere(&self, timer: Timer, clock: u32) -> bool {
        match timer {
            Timer::Forget { series } | Timer::Stale { series } | Timer::HoldOfSeries { series, .. } => {
                self.state.series[series as usize].clock != clock
            }
            Timer::HoldOfPatient { .. } => false,
        }
    }

    fn timer_order<'a>(&'a self, plan: &'a Plan, timer: Timer) -> (&'a str, &'a str, &'a str) {
        let of_series = |series: u32| {
            let series = &self.state.series[series as usize];
            (self.state.patient_names.name(series.patient), series.key.as_str())
        };
        match timer {
            Timer::Forget { series } => (of_series(series).0, of_series(series).1, ""),
            Timer::Stale { series } => (of_series(series).0, of_series(series).1, content::STALE),
            Timer::HoldOfSeries { series, rule } => {
                (of_series(series).0, of_series(series).1, plan.rules[rule as usize].rule.id.as_str())
            }
            Timer::HoldOfPatient { patient, rule } => {
                (self.state.patient_names.name(patient), "-", plan.rules[rule as usize].rule.id.as_str())
            }
        }
    }
}

fn rule_ids(set: &RuleSet) -> Vec<String> {
    set.rules.iter().map(|rule| rule.id.clone()).collect()
}

fn set_or_remove(map: &mut BTreeMap<String, f64>, name: &str, value: Option<f64>) {
    match value {
        Some(value) => map.insert(name.to_owned(), value),
        None => map.remove(name),
    };
}
