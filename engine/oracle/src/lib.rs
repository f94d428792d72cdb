//! The naive, independent evaluation, written from the semantics alone (sections 2 to 10).
//!
//! It shares no code with the engine. Nothing is incremental: every window is filtered out of the list of accepted
//! readings, every timer is derived anew each time somebody looks. Only what nothing can ask for any more is forgotten,
//! and only who can have a timer due is looked at, so that a log of millions of readings can be evaluated too.
//!
//! Reading order: [`World::apply`] here, with clocks and timers; `readings` (a record), `evaluation` (rules over a
//! key), `control` (what is no reading); `condition` and `rule` walk the text of a rule; `series` and `episode` are
//! what is remembered.

mod condition;
mod control;
mod episode;
mod evaluation;
mod exact;
mod readings;
mod rule;
mod series;
mod timers;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::reading::{Change, Comparator};

use episode::{Ended, Episode, Reads, Run, Stamp, State, Track, TrackId};
use rule::{PRIORITIES, Priority, Rule};
use series::{Series, SeriesId};
use timers::{Timers, Watched};

const SECOND: i64 = 1_000_000;
const EPOCH_END: i64 = 978_307_200 * SECOND; // 2001-01-01
const JUMP: i64 = 10 * SECOND;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;
const STALE: &str = "technical/stale";
const CLOCK: &str = "technical/clock";
const FEED: &str = "technical/feed";
const OVERRUN: &str = "technical/overrun";

/// What the catalogue says of one signal.
pub struct Signal {
    pub id: String,
    /// Counts of its resolution in one unit.
    pub per_unit: i64,
    pub typical_interval_us: i64,
    /// 0: no expectation.
    pub stale_after_us: i64,
    /// Names of the states, for a category.
    pub categories: Vec<String>,
}

impl Signal {
    /// All signals of a catalogue, in its order.
    pub fn all_of(catalogue: &Catalogue) -> Vec<Self> {
        let known = catalogue.signals().iter().map(|signal| Self {
            id: signal.id.clone(),
            per_unit: signal.per_unit,
            typical_interval_us: signal.typical_interval_us,
            stale_after_us: signal.stale_after_us,
            categories: signal.states.clone(),
        });
        known.collect()
    }
}

/// One normalized reading.
#[derive(Clone)]
pub struct Reading {
    pub patient: String,
    pub device: String,
    pub signal: String,
    pub method: String,
    pub event_us: i64,
    pub value: Option<i64>,
    pub comparator: Comparator,
    pub questionable: bool,
    /// A blank whose source says that it was switched off.
    pub off: bool,
    pub change: Change,
}

/// One source record: its readings, in its order.
#[derive(Clone)]
pub struct Record {
    /// `topic/partition`.
    pub source: String,
    pub broker_us: i64,
    pub readings: Vec<Reading>,
}

/// What a control record says.
#[derive(Clone, Debug)]
pub enum Control {
    Limit {
        patient: String,
        name: String,
        value: Option<f64>,
    },
    Attribute {
        patient: String,
        name: String,
        value: Option<f64>,
    },
    Discharge {
        patient: String,
    },
    Standby {
        patient: String,
        device: Option<String>,
    },
    /// A person answers the transition that so many others of those that ask for it came after.
    Acknowledge {
        back: usize,
    },
    Reset {
        back: usize,
    },
    /// A technical alert of the job begins or ends.
    Condition {
        rule: String,
        key: String,
        priority: &'static str,
        holds: bool,
        at_us: i64,
    },
}

/// What stands in a log, in its order.
#[derive(Clone)]
pub enum Item {
    Record(Record),
    Tick { source: String, time_us: i64 },
    Control { id: String, control: Control },
    Activate { number: u64, set: Set },
}

/// What one connector allows of its devices' clocks.
#[derive(Clone, Debug)]
pub struct Connector {
    pub topics: Vec<String>,
    pub lateness_us: i64,
    pub skew_us: i64,
    /// Every reading of a later record with the same stamp is a sample.
    pub coarse: bool,
    /// Beginnings of days to which clocks are reset.
    pub reset_days: Vec<i64>,
}

/// What is in force: rules, and the settings that decide.
#[derive(Clone)]
pub struct Set {
    pub rules: Vec<String>,
    pub lateness_us: i64,
    pub skew_us: i64,
    pub epoch_check: bool,
    pub samples_max: usize,
    pub connectors: Vec<Connector>,
}

/// Limits and attributes of one patient, by name.
#[derive(Clone, Default)]
pub struct Patient {
    pub limits: BTreeMap<String, f64>,
    pub attributes: BTreeMap<String, f64>,
}

/// One change of an episode, as far as this evaluation says it: everything but words and evidence.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Transition {
    pub at_us: i64,
    /// `raised`, `cleared` ...
    pub what: String,
    pub priority: String,
    pub rule: String,
    pub patient: String,
    pub key: String,
    /// Start of the episode, as in its id.
    pub start_us: i64,
    /// 0, 1, 2 ... within the episode.
    pub number: u32,
}

/// The place of the transition that a person acknowledges, or (`reset`) ends.
pub fn answered(transitions: &[Transition], reset: bool, back: usize) -> Option<usize> {
    let asks = |transition: &Transition| match transition.what.as_str() {
        "latched" => true,
        "raised" | "escalated" => !reset,
        _ => false,
    };
    let asking = |place: &usize| !transitions[*place].rule.starts_with("technical/") && asks(&transitions[*place]);
    (0..transitions.len()).rev().filter(asking).nth(back)
}

enum Due {
    Stale(SeriesId),
    Forget(SeriesId),
    Hold(TrackId, Priority, i64),
}

impl Due {
    /// Its place among those of one time.
    fn track(&self) -> TrackId {
        match self {
            Due::Stale(id) => id.track(STALE),
            Due::Forget(id) => id.track(""),
            Due::Hold(id, ..) => id.clone(),
        }
    }
}

/// Everything that is known after some items.
pub struct World<'a> {
    record_clock: bool,
    signals: BTreeMap<String, &'a Signal>,
    /// Number of the newest activation.
    number: Option<u64>,
    set: Set,
    /// The rules of the set, by id.
    rules: Vec<Rc<Rule>>,
    /// The longest window of the set, by signal.
    longest: BTreeMap<String, i64>,
    patients: BTreeMap<String, Patient>,
    /// Ids of control records.
    controls: BTreeSet<String>,
    clocks: BTreeMap<String, i64>,
    series: BTreeMap<SeriesId, Series>,
    /// By patient and signal.
    primary: BTreeMap<(String, String), SeriesId>,
    tracks: BTreeMap<TrackId, Track>,
    states: BTreeMap<TrackId, State>,
    /// When a device's wrong clock was last told, by patient and device.
    told: BTreeMap<(String, String), Stamp>,
    /// The clock at the last jump of an open `technical/feed`.
    feeds: BTreeMap<String, i64>,
    timers: Timers,
    order: u64,
    out: Vec<Transition>,
    outcomes: BTreeMap<&'static str, u64>,
}

impl<'a> World<'a> {
    /// Nothing was read yet; `set` is in force, and of `patients` limits and attributes are known.
    ///
    /// # Panics
    /// If a rule of the set is none: what was not checked is not evaluated.
    pub fn new(record_clock: bool, signals: &'a [Signal], set: &Set, patients: BTreeMap<String, Patient>) -> Self {
        let mut world = Self {
            record_clock,
            signals: signals.iter().map(|signal| (signal.id.clone(), signal)).collect(),
            number: None,
            set: set.clone(),
            rules: Vec::new(),
            longest: BTreeMap::new(),
            patients,
            controls: BTreeSet::new(),
            clocks: BTreeMap::new(),
            series: BTreeMap::new(),
            primary: BTreeMap::new(),
            tracks: BTreeMap::new(),
            states: BTreeMap::new(),
            told: BTreeMap::new(),
            feeds: BTreeMap::new(),
            timers: Timers::default(),
            order: 0,
            out: Vec::new(),
            outcomes: BTreeMap::new(),
        };
        world.put_in_force(set);
        world
    }

    /// Applies what stands next in the log.
    ///
    /// # Panics
    /// If it names a signal that the catalogue does not have, or a set with a rule that is none.
    pub fn apply(&mut self, item: &Item) {
        match item {
            Item::Record(record) => self.record(record),
            Item::Tick { source, time_us } => self.tick(source, *time_us),
            Item::Control { id, control } => self.control(id, control),
            Item::Activate { number, set } => {
                self.activate(*number, set);
                self.watch_all();
            }
        }
    }

    /// All transitions so far, in their order.
    pub fn transitions(&self) -> &[Transition] {
        &self.out
    }

    /// How many readings ended where.
    pub fn outcomes(&self) -> &BTreeMap<&'static str, u64> {
        &self.outcomes
    }

    fn count(&mut self, outcome: &'static str) {
        *self.outcomes.entry(outcome).or_insert(0) += 1;
    }

    fn signal(&self, id: &str) -> &'a Signal {
        self.signals.get(id).expect("a signal of the catalogue")
    }

    /// The patient's series, by device, signal and method.
    fn of_patient<'s>(&'s self, patient: &'s str) -> impl Iterator<Item = (&'s SeriesId, &'s Series)> {
        let first = SeriesId::first_of(patient);
        self.series.range(first..).take_while(move |(id, _)| id.patient == patient)
    }

    fn the_series(&mut self, id: &SeriesId) -> &mut Series {
        self.series.get_mut(id).expect("a known series")
    }

    fn rule(&self, id: &str) -> &Rule {
        self.rules.iter().find(|rule| rule.id == id).expect("a rule of the set")
    }

    // -- transitions ---------------------------------------------------------------------------------------------

    fn emit(&mut self, id: &TrackId, episode: &mut Episode, at: i64, what: &str) {
        episode.last_at = at;
        self.out.push(Transition {
            at_us: at,
            what: what.to_string(),
            priority: episode.priority.name().to_string(),
            rule: id.rule.clone(),
            patient: id.patient.clone(),
            key: id.key.clone(),
            start_us: episode.start,
            number: episode.next_number,
        });
        episode.next_number += 1;
    }

    fn open(&self, id: &TrackId) -> Option<&Episode> {
        self.tracks.get(id).and_then(|track| track.open.as_ref())
    }

    /// Open and not latched.
    fn active(&self, id: &TrackId) -> Option<&Episode> {
        self.open(id).filter(|episode| !episode.latched)
    }

    /// A new episode.
    fn begin(&mut self, id: &TrackId, at: i64, priority: Priority, condition_start: i64) {
        let mut start = condition_start;
        if let Some(ended) = self.tracks.get(id).and_then(|track| track.ended.as_ref()) {
            start = start.max(ended.at + 1).max(ended.start + 1);
        }
        let mut episode = Episode {
            start,
            priority,
            highest: priority,
            next_number: 0,
            last_at: at,
            latched: false,
            acknowledged: false,
        };
        self.emit(id, &mut episode, at, "raised");
        self.tracks.entry(id.clone()).or_default().open = Some(episode);
    }

    /// A change of an open episode, at `at` or at its newest transition's `T`, if that is later.
    fn change(&mut self, id: &TrackId, at: i64, what: &str, priority: Option<Priority>, latched: bool) {
        let Some(mut episode) = self.tracks.get_mut(id).and_then(|track| track.open.take()) else {
            return;
        };
        episode.priority = priority.unwrap_or(episode.priority);
        episode.highest = episode.highest.max(episode.priority);
        episode.latched = latched;
        episode.acknowledged = match what {
            "acknowledged" => true,
            "raised" | "escalated" => false,
            _ => episode.acknowledged,
        };
        let at = at.max(episode.last_at);
        self.emit(id, &mut episode, at, what);
        self.tracks.entry(id.clone()).or_default().open = Some(episode);
        self.watch_track(id);
    }

    fn end(&mut self, id: &TrackId, at: i64, what: &str, clock: Stamp) {
        let Some(mut episode) = self.tracks.get_mut(id).and_then(|track| track.open.take()) else {
            return;
        };
        let at = at.max(episode.last_at);
        self.emit(id, &mut episode, at, what);
        let cools_down = what == "cleared" || what == "reset";
        let ended = Ended { start: episode.start, at, clock, highest: episode.highest, cools_down };
        self.tracks.entry(id.clone()).or_default().ended = Some(ended);
        self.watch_track(id);
    }

    // -- source clocks -------------------------------------------------------------------------------------------

    fn source<'s>(&self, source: &'s str) -> &'s str {
        if self.record_clock { "" } else { source }
    }

    fn clock(&self, source: &str) -> i64 {
        self.clocks.get(source).copied().expect("a source that was heard of")
    }

    fn stamp(&self, source: &str) -> Stamp {
        Stamp { source: source.to_string(), us: self.clock(source) }
    }

    fn tick(&mut self, source: &str, time: i64) {
        let source = self.source(source).to_string();
        self.move_clock(&source, time);
        let clock = self.clock(&source);
        if self.feeds.get(&source).is_some_and(|jump| clock >= jump + JUMP) {
            self.feeds.remove(&source);
            let stamp = self.stamp(&source);
            self.end(&feed_track(&source), clock, "cleared", stamp);
        }
    }

    /// A record's or a tick's time moves a source clock; timers fire first.
    fn move_clock(&mut self, source: &str, time: i64) {
        let Some(before) = self.clocks.get(source).copied() else {
            self.clocks.insert(source.to_string(), time);
            return;
        };
        let by = time - before;
        if self.record_clock || (0..=JUMP).contains(&by) {
            let now = time.max(before);
            self.fire(source, now);
            self.clocks.insert(source.to_string(), now);
        } else if by > JUMP {
            for series in self.series.values_mut().filter(|series| series.source == source) {
                series.deadline = series.deadline.map(|deadline| deadline + by);
            }
            self.fire(source, time);
            self.clocks.insert(source.to_string(), time);
            self.feed_is_wrong(source);
        } else if by < -JUMP {
            self.shift(source, by);
            self.clocks.insert(source.to_string(), time);
            self.feed_is_wrong(source);
        }
    }

    fn feed_is_wrong(&mut self, source: &str) {
        let clock = self.clock(source);
        self.feeds.insert(source.to_string(), clock);
        let id = feed_track(source);
        if self.open(&id).is_none() {
            self.begin(&id, clock, Priority::High, clock);
        }
    }

    /// Every stored value of a clock moves.
    fn shift(&mut self, source: &str, by: i64) {
        for series in self.series.values_mut().filter(|series| series.source == source) {
            series.heard += by;
            series.deadline = series.deadline.map(|deadline| deadline + by);
            for remembered in &mut series.memory {
                remembered.clock += by;
            }
            for late in &mut series.late_row {
                late.1 += by;
            }
        }
        let ended = self.tracks.values_mut().filter_map(|track| track.ended.as_mut()).map(|ended| &mut ended.clock);
        let runs = self.states.values_mut().flat_map(|state| state.runs.iter_mut().flatten()).map(|run| &mut run.clock);
        for stamp in ended.chain(runs).chain(self.told.values_mut()) {
            if stamp.source == source {
                stamp.us += by;
            }
        }
        self.watch_all();
    }

    // -- timers --------------------------------------------------------------------------------------------------

    /// All timers of a clock that are due when it moves to `now`, one after the other, the earliest first.
    fn fire(&mut self, source: &str, now: i64) {
        while let Some((due, timer)) = self.earliest(source, now) {
            match timer {
                Due::Stale(id) => {
                    let series = self.the_series(&id);
                    let deadline = series.deadline.take().expect("a deadline that passed");
                    series.stale = true;
                    series.successors.clear();
                    self.begin(&id.track(STALE), deadline, Priority::Low, deadline);
                }
                Due::Forget(id) => self.forget(&[id], due),
                Due::Hold(id, priority, at) => self.raise_or_escalate(&id, priority, at),
            }
        }
    }

    fn earliest(&mut self, source: &str, now: i64) -> Option<(i64, Due)> {
        let priority = |due: &Due| match due {
            Due::Hold(_, priority, _) => std::cmp::Reverse(Some(*priority)),
            _ => std::cmp::Reverse(None),
        };
        let mut earliest: Option<((i64, TrackId), Due)> = None;
        let mut looked_at: Vec<(Watched, Option<i64>)> = Vec::new();
        for (from, watched) in self.timers.until(source, now) {
            if earliest.as_ref().is_some_and(|((due, _), _)| *due < from) {
                break;
            }
            let timers = match watched {
                Watched::Series(id) => self.timers_of_series(id, source),
                Watched::Track(id) => self.timers_of_track(id, source, now),
            };
            looked_at.push((watched.clone(), timers.iter().map(|(due, _)| *due).min()));
            for (due, timer) in timers {
                let Some(timer) = timer.filter(|_| due <= now) else { continue };
                let place = (due, timer.track());
                let comes_first = earliest.as_ref().is_none_or(|(before, other)| {
                    place.cmp(before).then_with(|| priority(&timer).cmp(&priority(other))).is_lt()
                });
                if comes_first {
                    earliest = Some((place, timer));
                }
            }
        }
        for (watched, first) in looked_at {
            self.timers.forget(source, &watched);
            if let Some(first) = first {
                self.timers.watch(source, first, &watched);
            }
        }
        earliest.map(|((due, _), timer)| (due, timer))
    }

    /// Silence and forgetting, if the series is on this clock.
    fn timers_of_series(&self, id: &SeriesId, source: &str) -> Vec<(i64, Option<Due>)> {
        let Some(series) = self.series.get(id).filter(|series| series.source == source) else {
            return Vec::new();
        };
        let signal = self.signal(&id.signal);
        let stale = series.deadline.map(|deadline| (deadline + 1, Some(Due::Stale(id.clone()))));
        let forget = series.heard + WEEK.max(signal.stale_after_us);
        let forget = (signal.stale_after_us != 0).then(|| (forget, Some(Due::Forget(id.clone()))));
        stale.into_iter().chain(forget).collect()
    }

    /// Holds of a key that reads this clock, which stands at `now`; without what is due where it waits for another clock
    /// or for a reading.
    fn timers_of_track(&self, id: &TrackId, source: &str, now: i64) -> Vec<(i64, Option<Due>)> {
        // Only a run can complete a hold.
        if self.states.get(id).is_none_or(|state| state.runs.iter().all(Option::is_none)) {
            return Vec::new();
        }
        let reads = self.reads(id);
        let clocks = self.clocks_of(id, &reads, Some((source, now)));
        if !clocks.iter().any(|(name, _)| name == source) {
            return Vec::new();
        }
        let clock = clocks.iter().map(|(_, us)| *us).min().unwrap_or(now);
        let gap = reads.gap;
        let timer = |(due, at, priority, newest): (i64, i64, Priority, i64)| {
            let fires = due <= clock && gap.is_none_or(|gap| at - newest <= gap);
            (due, fires.then(|| Due::Hold(id.clone(), priority, at)))
        };
        self.pending(id).into_iter().map(timer).collect()
    }

    fn watch_series(&mut self, id: &SeriesId) {
        let Some(source) = self.series.get(id).map(|series| series.source.clone()) else {
            return;
        };
        let timers = self.timers_of_series(id, &source);
        if let Some(first) = timers.iter().map(|(due, _)| *due).min() {
            self.timers.watch(&source, first, &Watched::Series(id.clone()));
        }
    }

    /// On every clock that the key reads.
    fn watch_track(&mut self, id: &TrackId) {
        // A rule that was removed has no timers, also while its episodes are being ended.
        if !self.states.contains_key(id) || self.rules.iter().all(|rule| rule.id != id.rule) {
            return;
        }
        if let Some(first) = self.pending(id).into_iter().map(|(due, ..)| due).min() {
            for (source, _) in self.clocks_of(id, &self.reads(id), None) {
                self.timers.watch(&source, first, &Watched::Track(id.clone()));
            }
        }
    }

    /// What a patient's keys read has changed, or the clock of a series.
    fn watch_tracks_of(&mut self, patient: &str) {
        let ids: Vec<TrackId> = self.states.keys().filter(|id| id.patient == patient).cloned().collect();
        ids.iter().for_each(|id| self.watch_track(id));
    }

    fn watch_all(&mut self) {
        let (series, tracks): (Vec<SeriesId>, Vec<TrackId>) =
            (self.series.keys().cloned().collect(), self.states.keys().cloned().collect());
        series.iter().for_each(|id| self.watch_series(id));
        tracks.iter().for_each(|id| self.watch_track(id));
    }

    /// Raises and escalations that only wait for the key's clock: (due on the clock, `T`, priority).
    fn holds(&self, id: &TrackId, reads: &Reads) -> Vec<(i64, i64, Priority)> {
        let in_reach = |at: i64, newest: i64| reads.gap.is_none_or(|gap| at - newest <= gap);
        let pending = self.pending(id).into_iter();
        pending.filter(|(_, at, _, newest)| in_reach(*at, *newest)).map(|(due, at, p, _)| (due, at, p)).collect()
    }

    /// Runs that can lead to a raise or an escalation: (due on the clock, `T`, priority, newest evaluation).
    fn pending(&self, id: &TrackId) -> Vec<(i64, i64, Priority, i64)> {
        let Some(state) = self.states.get(id) else {
            return Vec::new();
        };
        let mut pending = Vec::new();
        for (priority, run) in PRIORITIES.into_iter().zip(&state.runs) {
            let Some(run) = run else { continue };
            if self.active(id).is_some_and(|episode| priority <= episode.priority) {
                continue;
            }
            let (at, clock) = self.due(id, priority, run);
            pending.push((clock, at, priority, run.newest));
        }
        pending
    }

    /// When a raise with this priority is due: its `T`, and the clock that a timer waits for.
    fn due(&self, id: &TrackId, priority: Priority, run: &Run) -> (i64, i64) {
        let rule = self.rule(&id.rule);
        let (mut at, mut clock) = (run.since + rule.hold, run.clock.us + rule.hold);
        let track = self.tracks.get(id);
        let over = track.filter(|track| track.open.is_none()).and_then(|track| track.ended.as_ref());
        if let Some(ended) = over.filter(|ended| rule.cool_down > 0 && ended.cools_down && priority <= ended.highest) {
            at = at.max(ended.at + rule.cool_down);
            clock = clock.max(ended.clock.us + rule.cool_down);
        }
        (at, clock)
    }

    /// A hold of this priority is complete.
    fn raise_or_escalate(&mut self, id: &TrackId, priority: Priority, at: i64) {
        let condition_start = self.states.get(id).and_then(|state| state.runs[0].as_ref()).map_or(at, |run| run.began);
        match self.open(id).map(|episode| episode.latched) {
            None => self.begin(id, at, priority, condition_start),
            Some(true) => self.change(id, at, "raised", Some(priority), false),
            Some(false) => {
                self.change(id, at, "escalated", Some(priority), false);
                if let Some(state) = self.states.get_mut(id) {
                    state.lower = None;
                }
                return;
            }
        }
        if let Some(state) = self.states.get_mut(id) {
            state.clearing = None;
            state.lower = None;
        }
    }

    /// Section 2.8: all of these at once. They are of one patient.
    fn forget(&mut self, forgotten: &[SeriesId], at: i64) {
        let mut gone: Vec<TrackId> = Vec::new();
        for id in forgotten {
            self.series.remove(id);
            let of_series = |track: &&TrackId| track.patient == id.patient && track.key == id.key();
            gone.extend(self.states.keys().chain(self.tracks.keys()).filter(of_series).cloned());
        }
        for id in forgotten {
            let place = (id.patient.clone(), id.signal.clone());
            if self.primary.get(&place) == Some(id) {
                self.primary.remove(&place);
                let others = self.of_patient(&id.patient).filter(|(other, _)| other.signal == id.signal);
                let first = others.filter_map(|(other, series)| Some((series.first_sample?, other.clone()))).min();
                if let Some((_, first)) = first {
                    self.primary.insert(place, first);
                }
            }
        }
        if let Some(patient) = forgotten.first().map(|id| &id.patient) {
            let has_none_left = |track: &&TrackId| {
                let left = |rule: &Rule| self.of_patient(patient).any(|(s, _)| rule.signals.contains(&s.signal));
                let rule = self.rules.iter().find(|rule| rule.id == track.rule);
                track.patient == *patient && track.key == "-" && rule.is_some_and(|rule| !left(rule))
            };
            gone.extend(self.states.keys().chain(self.tracks.keys()).filter(has_none_left).cloned());
        }
        gone.sort_by(|a, b| (&a.rule, &a.key).cmp(&(&b.rule, &b.key)));
        gone.dedup();
        for track in gone {
            // No cool-down follows, so it does not matter whose clock it is.
            self.end(&track, at, "expired", Stamp { source: String::new(), us: at });
            // Only when the last episode ended is remembered: the next one begins later.
            let is_of_rule = !track.rule.starts_with("technical/");
            let known = self.tracks.get_mut(&track).filter(|_| is_of_rule);
            if let Some(ended) = known.and_then(|known| known.ended.as_mut()) {
                ended.cools_down = false;
            } else {
                self.tracks.remove(&track);
            }
            self.states.remove(&track);
        }
        if let Some(patient) = forgotten.first().map(|id| id.patient.clone()) {
            self.watch_tracks_of(&patient);
        }
    }
}

fn feed_track(source: &str) -> TrackId {
    TrackId { patient: "-".to_string(), key: source.to_string(), rule: FEED.to_string() }
}
