//! One series: the readings it accepted, what of them is still held, its rhythm and its silence (sections 2, 3 and 5).

use std::cmp::Reverse;
use std::collections::BTreeSet;

use wardbell_schemas::reading::{Change, Comparator};

use super::episode::TrackId;
use super::{Reading, SECOND, Signal};

/// Readings are kept for so much longer than the lateness in force: another one may come into force.
const JOINED_WITHIN: i64 = 600 * SECOND;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SeriesId {
    pub patient: String,
    pub device: String,
    pub signal: String,
    pub method: String,
}

impl SeriesId {
    pub fn of(reading: &Reading) -> Self {
        Self {
            patient: reading.patient.clone(),
            device: reading.device.clone(),
            signal: reading.signal.clone(),
            method: reading.method.clone(),
        }
    }

    /// Comes before all series of the patient.
    pub fn first_of(patient: &str) -> Self {
        Self { patient: patient.to_string(), device: String::new(), signal: String::new(), method: String::new() }
    }

    pub fn key(&self) -> String {
        format!("{}/{}/{}", self.device, self.signal, self.method)
    }

    pub fn track(&self, rule: &str) -> TrackId {
        TrackId { patient: self.patient.clone(), key: self.key(), rule: rule.to_string() }
    }
}

/// A value with how far it is known; none for a blank, and for what was retracted.
pub type Said = (Option<i64>, Comparator);

/// What a reading says; a retraction says that there was nothing.
pub fn said(reading: &Reading) -> Said {
    match (reading.change, reading.value) {
        (Change::Retracts, _) | (_, None) => (None, Comparator::None),
        (_, value) => (value, reading.comparator),
    }
}

/// A reading that was accepted, kept whatever became of it, until nothing can ask for it any more.
pub struct Accepted {
    pub t: i64,
    /// The place in the order of acceptance.
    pub order: u64,
    pub value: Option<i64>,
    pub comparator: Comparator,
    pub questionable: bool,
    pub covers_at_most: i64,
    /// Taken out by a retraction.
    pub retracted: bool,
    /// Not among the samples that windows are made of any more.
    pub evicted: bool,
    /// A sample whose value is nowhere any more.
    pub gone: bool,
}

impl Accepted {
    pub fn is_sample(&self) -> bool {
        self.value.is_some() && !self.retracted
    }

    /// One of the samples that windows are made of: its value is known as it is.
    pub fn is_of_windows(&self) -> bool {
        self.is_sample() && self.comparator == Comparator::None
    }

    fn is_buffered(&self) -> bool {
        self.is_sample() && !self.evicted
    }

    fn place(&self) -> (i64, u64) {
        (self.t, self.order)
    }
}

/// What duplicates are judged by.
pub struct Remembered {
    pub event: i64,
    pub t: i64,
    pub said: Said,
    pub clock: i64,
}

pub struct Series {
    pub source: String,
    pub readings: Vec<Accepted>,
    /// The last intervals between samples that count; the last sample's own waits for the next reading.
    pub intervals: Vec<i64>,
    pub waiting: Option<i64>,
    pub memory: Vec<Remembered>,
    /// `t` is being replaced; true if that began with a coarse stamp.
    pub replacing: Option<bool>,
    /// The slow-clock rule applies.
    pub slow: bool,
    /// Newest event time and broker time of the records in a row that were late.
    pub late_row: Vec<(i64, i64)>,
    pub newest_of_record_before: Option<i64>,
    /// The clock at the last sample, or at the first reading.
    pub heard: i64,
    /// The deadline of staleness; none once it has passed, or without expectation.
    pub deadline: Option<i64>,
    /// Past the deadline since its last sample.
    pub stale: bool,
    /// Devices that had a sample since this one went stale.
    pub successors: BTreeSet<String>,
    pub held_from: i64,
    /// The place of its first sample in the order of acceptance.
    pub first_sample: Option<u64>,
}

impl Series {
    /// Known by its first reading, at this clock value.
    pub fn new(source: &str, clock: i64, signal: &Signal) -> Self {
        let mut series = Self {
            source: source.to_string(),
            readings: Vec::new(),
            intervals: Vec::new(),
            waiting: None,
            memory: Vec::new(),
            replacing: None,
            slow: false,
            late_row: Vec::new(),
            newest_of_record_before: None,
            heard: clock,
            deadline: None,
            stale: false,
            successors: BTreeSet::new(),
            held_from: i64::MIN,
            first_sample: None,
        };
        series.expect(clock, signal);
        series
    }

    /// The newest `t` of all accepted readings, also of those taken out again.
    pub fn newest_t(&self) -> Option<i64> {
        self.readings.iter().map(|r| r.t).max()
    }

    /// Of the samples that are still held.
    pub fn newest_sample_t(&self) -> Option<i64> {
        self.readings.iter().filter(|r| r.is_sample() && !r.gone).map(|r| r.t).max()
    }

    /// The last accepted reading with this event time, as long as that is remembered.
    pub fn remembered(&mut self, event: i64) -> Option<&mut Remembered> {
        self.memory.iter_mut().rev().find(|remembered| remembered.event == event)
    }

    /// The newest held sample with this `t`.
    pub fn held_at(&mut self, t: i64) -> Option<&mut Accepted> {
        let held = self.readings.iter_mut().filter(|r| r.t == t && r.is_sample() && !r.gone);
        held.max_by_key(|r| r.order)
    }

    /// Lets go what the longest window does not need at the newest `t`, and what is above the cap (3.1); true if a
    /// sample had to go that it needs.
    pub fn evict(&mut self, longest: i64, cap: usize) -> bool {
        let Some(newest) = self.newest_t() else {
            return false;
        };
        let mut overrun = false;
        loop {
            let mut held: Vec<&mut Accepted> = self.readings.iter_mut().filter(|r| r.is_buffered()).collect();
            held.sort_by_key(|r| r.place());
            let needs_the_oldest = held.first().is_some_and(|oldest| oldest.t > newest - longest);
            if held.len() <= 2 || (needs_the_oldest && held.len() <= cap) {
                break;
            }
            held[0].evicted = true;
            self.held_from = self.held_from.max(held[0].t);
            overrun |= needs_the_oldest;
        }
        self.forget_values();
        overrun
    }

    /// A sample that joins before everything that is held, where samples may be missing: no window can need it.
    pub fn is_before_all(&self, t: i64) -> bool {
        let oldest = self.readings.iter().filter(|r| r.is_buffered()).map(|r| r.t).min();
        t <= self.held_from && oldest.is_some_and(|oldest| t < oldest)
    }

    /// What windows do not hold is known only while it is among the two newest samples, or among the two newest of
    /// those that every rule takes for samples.
    pub fn forget_values(&mut self) {
        let two_newest = |questionable: bool| {
            let held = self.readings.iter().filter(|r| r.is_sample() && !r.gone && (questionable || !r.questionable));
            let mut places: Vec<(i64, u64)> = held.map(Accepted::place).collect();
            places.sort_unstable_by_key(|place| Reverse(*place));
            places.truncate(2);
            places
        };
        let by_heart = [two_newest(true), two_newest(false)].concat();
        for reading in self.readings.iter_mut().filter(|r| r.is_sample()) {
            reading.gone |= !reading.is_buffered() && !by_heart.contains(&reading.place());
        }
    }

    /// The last three intervals say all that anybody asks, and so do the readings from the oldest sample on whose value
    /// is known, and those in whose neighborhood a sample can still join.
    pub fn forget_what_nobody_asks_for(&mut self, lateness: i64) {
        let superfluous = self.intervals.len().saturating_sub(3);
        self.intervals.drain(..superfluous);
        let oldest_known = self.readings.iter().filter(|r| r.is_sample() && !r.gone).map(Accepted::place).min();
        let Some(newest) = self.newest_t() else {
            return;
        };
        let kept_from = newest - lateness - JOINED_WITHIN;
        self.readings.retain(|r| r.t >= kept_from || oldest_known.is_some_and(|oldest| r.place() >= oldest));
    }

    /// `e` of section 5; none is infinite.
    pub fn expected_interval(&self, typical: i64) -> Option<i64> {
        median_of_last_three(&self.intervals).map(|median| median.max(typical))
    }

    /// How long after the last sample a series is stale (7.1), the interval that it closed included.
    fn patience(&self, signal: &Signal) -> i64 {
        let mut intervals = self.intervals.clone();
        intervals.extend(self.waiting);
        let own = median_of_last_three(&intervals).or_else(|| intervals.iter().max().copied());
        let usual = own.unwrap_or(0).max(signal.typical_interval_us);
        signal.stale_after_us.max((10 * signal.stale_after_us).min(3 * usual))
    }

    /// A sign of life at a clock value: the deadline is fixed anew.
    pub fn alive(&mut self, clock: i64, signal: &Signal) {
        self.heard = clock;
        self.expect(clock, signal);
    }

    pub fn expect(&mut self, clock: i64, signal: &Signal) {
        self.deadline = (signal.stale_after_us != 0).then(|| clock + self.patience(signal));
    }

    /// Nothing is late any more.
    pub fn speaks(&mut self) {
        self.stale = false;
        self.successors.clear();
    }
}

fn median_of_last_three(intervals: &[i64]) -> Option<i64> {
    let mut three = intervals.get(intervals.len().checked_sub(3)?..)?.to_vec();
    three.sort_unstable();
    three.get(1).copied()
}
