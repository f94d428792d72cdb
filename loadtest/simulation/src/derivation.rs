//! What a canonical partition's log says by the naive evaluation, to be held against what the engine said.
//!
//! Rows are told apart by their source positions in the plainest way there is: by remembering all of them. Rule sets are
//! read from the control topic's own bytes. Nothing here is shared with the engine.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::OnceLock;

use serde::Deserialize;
use wardbell_connectors::canonical::{self, Canonical};
use wardbell_connectors::log::{Record, TopicPartition};
use wardbell_connectors::partitioner::partition_of;
use wardbell_oracle as oracle;
use wardbell_oracle::{Item, Set, Transition, World};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{CANARY_RULE, Content, EpisodeId, print_time};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Condition, Control, ControlRecord};
use wardbell_schemas::reading::{Quality, ReadingColumns, ReadingRow, Reason};

/// The source of canary rows, which prove the path and are no readings.
pub(crate) const CANARY_TOPIC: &str = "wardbell/canary";
/// Said by the partition that its key belongs to, though all of them notice it.
const FEED_RULE: &str = "technical/feed";
/// Differences that are told one by one.
const TOLD_MAX: usize = 5;

/// What is in force, by the hash that activations name.
#[derive(Debug, Default)]
pub struct Sets {
    by_hash: BTreeMap<String, Document>,
}

#[derive(Debug, Clone, Deserialize)]
struct Document {
    decision: Decision,
    rules: Vec<RuleText>,
}

#[derive(Debug, Clone, Deserialize)]
struct RuleText {
    text: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Decision {
    site: String,
    lateness_us: Micros,
    skew_us: Micros,
    record_clock: bool,
    epoch_check: bool,
    samples_max: usize,
    connectors: Vec<Connector>,
}

#[derive(Debug, Clone, Deserialize)]
struct Connector {
    topics: Vec<String>,
    lateness_us: Micros,
    skew_us: Micros,
    coarse: bool,
    reset_days: Vec<Micros>,
}

impl Sets {
    /// The sets of a control topic's records. What is no set is passed over: only one that was activated is missed.
    pub fn of(control_topic: &[Record]) -> Self {
        let document = |record: &Record| {
            let hash = String::from_utf8(record.key.clone()?).ok()?;
            Some((hash, serde_json::from_slice(record.value.as_deref()?).ok()?))
        };
        Self { by_hash: control_topic.iter().filter_map(document).collect() }
    }

    /// The smallest lateness and the largest skew that any of them allows.
    pub(crate) fn strictest(&self) -> (Micros, Micros) {
        let decisions = || self.by_hash.values().map(|document| &document.decision);
        let connectors = || decisions().flat_map(|decision| &decision.connectors);
        let lateness = decisions().map(|d| d.lateness_us).chain(connectors().map(|c| c.lateness_us)).min();
        let skew = decisions().map(|d| d.skew_us).chain(connectors().map(|c| c.skew_us)).max();
        (lateness.unwrap_or(0), skew.unwrap_or(0))
    }
}

impl Document {
    fn set(&self) -> Set {
        let connector = |connector: &Connector| oracle::Connector {
            topics: connector.topics.clone(),
            lateness_us: connector.lateness_us,
            skew_us: connector.skew_us,
            coarse: connector.coarse,
            reset_days: connector.reset_days.clone(),
        };
        Set {
            rules: self.rules.iter().map(|rule| rule.text.clone()).collect(),
            lateness_us: self.decision.lateness_us,
            skew_us: self.decision.skew_us,
            epoch_check: self.decision.epoch_check,
            samples_max: self.decision.samples_max,
            connectors: self.decision.connectors.iter().map(connector).collect(),
        }
    }
}

/// A transition under its id, as both sides say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub id: String,
    pub transition: Transition,
}

impl Said {
    /// What an alert says.
    pub fn of(content: &Content) -> Self {
        let transition = Transition {
            at_us: content.at,
            what: content.transition.name().to_owned(),
            priority: content.priority.name().to_owned(),
            rule: content.rule.id.clone(),
            patient: content.patient.clone(),
            key: content.key.clone(),
            start_us: content.episode_start,
            number: content.number,
        };
        Self { id: content.id.clone(), transition }
    }

    fn derived(site: &str, transition: &Transition) -> Self {
        let episode = episode(site, transition);
        Self { id: format!("{episode}.{}", transition.number), transition: transition.clone() }
    }

    /// The id without its number.
    pub fn episode(&self) -> &str {
        self.id.split_once('.').map_or(self.id.as_str(), |(episode, _)| episode)
    }
}

impl std::fmt::Display for Said {
    /// Never names the patient: the id does for whoever may look it up.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Transition { at_us, what, priority, rule, .. } = &self.transition;
        write!(f, "{} {what} {priority} {rule} at {}", self.id, print_time(*at_us))
    }
}

fn episode(site: &str, of: &Transition) -> EpisodeId {
    EpisodeId::new(site, &of.rule, &of.patient, &of.key, of.start_us)
}

/// What a whole partition says.
#[derive(Debug, Default)]
pub struct Derived {
    /// Transitions that the partition says to the world, in order, canaries included.
    pub said: Vec<Said>,
    /// Rows that were read for the first time.
    pub readings: u64,
    /// Rows that were read again.
    pub repeated: u64,
    pub canaries: u64,
}

/// One canonical partition, evaluated record by record.
pub struct Derivation<'a> {
    sets: &'a Sets,
    partition: i32,
    n_partitions: i32,
    /// Made at the first activation, with the settings it brings.
    world: Option<(World<'static>, Decision)>,
    /// What stands before the first activation.
    early: Vec<Item>,
    seen: BTreeMap<TopicPartition, HashSet<(i64, u32)>>,
    /// Episodes of the world's transitions.
    episodes: Vec<EpisodeId>,
    derived: Derived,
}

impl<'a> Derivation<'a> {
    pub fn new(sets: &'a Sets, partition: i32, n_partitions: i32) -> Self {
        Self {
            sets,
            partition,
            n_partitions,
            world: None,
            early: Vec::new(),
            seen: BTreeMap::new(),
            episodes: Vec::new(),
            derived: Derived::default(),
        }
    }

    /// Applies the next record of the partition.
    ///
    /// # Errors
    /// A sentence with the offset, if the record cannot be read or followed: what comes after it would be another log.
    pub fn apply(&mut self, record: &Record) -> Result<(), String> {
        let read = canonical::read(record, &Catalogue::builtin().hash);
        let read = read.map_err(|error| format!("canonical offset {}: {error}", record.offset))?;
        self.apply_read(record, &read)
    }

    /// The same for a record that was taken apart already.
    pub(crate) fn apply_read(&mut self, record: &Record, read: &Canonical) -> Result<(), String> {
        let place = |what: &str| format!("canonical offset {}: {what}", record.offset);
        match read {
            Canonical::Control(control) => self.control(record.offset, control).map_err(|what| place(&what)),
            Canonical::Readings(batch) => {
                let columns = ReadingColumns::try_new(batch).map_err(|error| place(&error.to_string()))?;
                if self.world.is_none() {
                    return Err(place("readings stand before the first activation of a rule set"));
                }
                let canonical_us = record.append_us.unwrap_or(record.time_us);
                let mut start = 0;
                while start < columns.len() {
                    let end = columns.record_end(start);
                    let rows: Option<Vec<ReadingRow<'_>>> = (start..end).map(|row| columns.row(row)).collect();
                    let rows = rows.ok_or_else(|| place("a row has a code that this version does not know"))?;
                    self.source_record(&rows, canonical_us);
                    start = end;
                }
                Ok(())
            }
        }
    }

    /// What was said so far.
    pub fn finish(self) -> Derived {
        self.derived
    }

    fn source_record(&mut self, rows: &[ReadingRow<'_>], canonical_us: Micros) {
        let Some(first) = rows.first() else {
            return;
        };
        if first.source_topic == CANARY_TOPIC {
            rows.iter().for_each(|row| self.canary(row));
            return;
        }
        let source = TopicPartition::new(first.source_topic, first.source_partition);
        let name = format!("{}/{}", source.topic, source.partition);
        let seen = self.seen.entry(source).or_default();
        let new: Vec<&ReadingRow<'_>> =
            rows.iter().filter(|row| seen.insert((row.source_offset, row.source_index))).collect();
        self.derived.readings += new.len() as u64;
        self.derived.repeated += (rows.len() - new.len()) as u64;
        if new.is_empty() {
            return;
        }
        let record_clock = self.world.as_ref().is_some_and(|(_, decision)| decision.record_clock);
        let broker_us = match first.append_time_us {
            None if !record_clock => first.source_time_us.min(canonical_us),
            _ => first.source_time_us,
        };
        let readings = new.into_iter().filter(|row| row.quality != Quality::Test).map(reading).collect();
        self.apply_item(Item::Record(oracle::Record { source: name, broker_us, readings }));
    }

    fn canary(&mut self, row: &ReadingRow<'_>) {
        self.derived.canaries += 1;
        let Some((_, decision)) = &self.world else {
            return;
        };
        let transition = Transition {
            at_us: row.event_time_us,
            what: "raised".to_owned(),
            priority: "low".to_owned(),
            rule: CANARY_RULE.to_owned(),
            patient: "-".to_owned(),
            key: row.patient.to_owned(),
            start_us: row.event_time_us,
            number: 0,
        };
        self.derived.said.push(Said::derived(&decision.site, &transition));
    }

    fn control(&mut self, offset: i64, record: &ControlRecord) -> Result<(), String> {
        // Records without an id are never taken for repeated.
        let id = if record.id.is_empty() { format!("#{offset}") } else { record.id.clone() };
        let control = match record.control.clone() {
            Control::Tick { claims } => {
                for claim in claims {
                    let source = format!("{}/{}", claim.topic, claim.partition);
                    self.apply_item(Item::Tick { source, time_us: claim.time_us });
                }
                return Ok(());
            }
            Control::Activate { number, hash } => return self.activate(number, &hash),
            Control::Limit { patient, name, value } => oracle::Control::Limit { patient, name, value },
            Control::Attribute { patient, name, value } => oracle::Control::Attribute { patient, name, value },
            Control::Discharge { patient } => oracle::Control::Discharge { patient },
            Control::Standby { patient, device } => oracle::Control::Standby { patient, device },
            Control::Acknowledge { episode, .. } => {
                oracle::Control::Acknowledge { back: self.transitions_after(&episode, false) }
            }
            Control::Reset { episode, .. } => oracle::Control::Reset { back: self.transitions_after(&episode, true) },
            Control::Condition(Condition { rule, key, priority, holds, at_us, .. }) => {
                oracle::Control::Condition { rule, key, priority: priority.name(), holds, at_us }
            }
        };
        self.apply_item(Item::Control { id, control });
        Ok(())
    }

    fn activate(&mut self, number: u64, hash: &str) -> Result<(), String> {
        let sets = self.sets;
        let document = sets.by_hash.get(hash);
        let document = document.ok_or("the rule set that it activates is not on the control topic, or is none")?;
        if self.world.is_none() {
            static SIGNALS: OnceLock<Vec<oracle::Signal>> = OnceLock::new();
            let signals = SIGNALS.get_or_init(|| oracle::Signal::all_of(Catalogue::builtin()));
            let empty = Set { rules: Vec::new(), ..document.set() };
            let world = World::new(document.decision.record_clock, signals, &empty, BTreeMap::new());
            self.world = Some((world, document.decision.clone()));
            for item in std::mem::take(&mut self.early) {
                self.apply_item(item);
            }
        }
        self.apply_item(Item::Activate { number, set: document.set() });
        Ok(())
    }

    fn apply_item(&mut self, item: Item) {
        let Some((world, decision)) = &mut self.world else {
            self.early.push(item);
            return;
        };
        world.apply(&item);
        for transition in &world.transitions()[self.episodes.len()..] {
            self.episodes.push(episode(&decision.site, transition));
            let ours =
                transition.rule != FEED_RULE || partition_of(&transition.key, self.n_partitions) == self.partition;
            if ours {
                self.derived.said.push(Said::derived(&decision.site, transition));
            }
        }
    }

    /// How many transitions that a person could answer came after the newest of an episode; all, if it has none.
    fn transitions_after(&self, id: &str, reset: bool) -> usize {
        let Some((world, _)) = &self.world else {
            return usize::MAX;
        };
        let answered = (0..).map_while(|back| oracle::answered(world.transitions(), reset, back));
        let mut episodes = answered.map(|place| self.episodes[place].to_string());
        episodes.position(|episode| episode == id).unwrap_or(usize::MAX)
    }
}

fn reading(row: &ReadingRow<'_>) -> oracle::Reading {
    let has_value = !matches!(row.quality, Quality::Missing | Quality::Technical);
    oracle::Reading {
        patient: row.patient.to_owned(),
        device: row.device.to_owned(),
        signal: Catalogue::builtin().signal(row.signal).id.clone(),
        method: row.method.to_owned(),
        event_us: row.event_time_us,
        value: row.value.filter(|_| has_value),
        comparator: row.comparator,
        questionable: row.quality == Quality::Questionable,
        off: row.reason == Reason::Off,
        change: row.change,
    }
}

/// Where the engine's transitions of one partition are not those that follow from its log: the first place that differs,
/// then ids that came twice, are missing or were never due. Nothing where both are the same.
pub fn differences(expected: &[Said], found: &[Said]) -> Vec<String> {
    let mut what = Vec::new();
    let first = expected.iter().zip(found).take_while(|(expected, found)| expected == found).count();
    if first < expected.len().max(found.len()) {
        let print = |said: Option<&Said>| said.map_or_else(|| "nothing".to_owned(), Said::to_string);
        what.push(format!(
            "transition {first} of {} (found: {}) should be `{}` and is `{}`",
            expected.len(),
            found.len(),
            print(expected.get(first)),
            print(found.get(first))
        ));
    }
    let mut ids = BTreeSet::new();
    let twice: Vec<&Said> = found.iter().filter(|said| !ids.insert(said.id.as_str())).collect();
    let due: BTreeSet<&str> = expected.iter().map(|said| said.id.as_str()).collect();
    let missing: Vec<&Said> = expected.iter().filter(|said| !ids.contains(said.id.as_str())).collect();
    let undue: Vec<&Said> = found.iter().filter(|said| !due.contains(said.id.as_str())).collect();
    for (name, list) in [("twice", twice), ("missing", missing), ("never due", undue)] {
        what.extend(list.iter().take(TOLD_MAX).map(|said| format!("{name}: {said}")));
        if list.len() > TOLD_MAX {
            what.push(format!("{name}: {} more", list.len() - TOLD_MAX));
        }
    }
    what
}
