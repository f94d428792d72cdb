//! The readings of one series that are still needed: a buffer in order of `t`, and the newest ones by heart.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use wardbell_schemas::Micros;

/// A reading accepted with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub t: Micros,
    /// Counts of the signal's resolution.
    pub value: i64,
    /// How long it may speak for the signal, for functions of covered time.
    pub cover_us: Micros,
    /// A blank for rules that do not accept questionable readings.
    pub questionable: bool,
    /// Order of acceptance: of two samples with the same `t` the later accepted is the newer.
    sequence: u64,
}

/// What is accepted into a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    pub t: Micros,
    /// `None` for a blank.
    pub value: Option<i64>,
    pub questionable: bool,
    pub cover_us: Micros,
}

/// `t` and order of acceptance.
type Place = (Micros, u64);

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Samples {
    buffer: VecDeque<Sample>,
    /// Absolute index of the buffer's first sample; indexes never repeat.
    base: u64,
    /// Times of blanks inside the buffer's reach.
    blanks: VecDeque<Place>,
    /// The two newest samples, and the two newest that are not questionable.
    newest_any: [Option<(Place, i64)>; 2],
    newest_sound: [Option<(Place, i64)>; 2],
    newest_blank: Option<Place>,
    newest_questionable: Option<Place>,
    /// Samples with `t` at or before this may be missing.
    held_from: Option<Micros>,
    accepted: u64,
}

impl Samples {
    /// A series of which samples before `held_from` may be missing; `None`: a new series, nothing is.
    pub fn new(held_from: Option<Micros>) -> Self {
        Self { held_from, ..Self::default() }
    }

    pub fn held_from(&self) -> Micros {
        self.held_from.unwrap_or(Micros::MIN)
    }

    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Absolute index behind the newest sample.
    pub fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    pub fn base(&self) -> u64 {
        self.base
    }

    pub fn get(&self, index: u64) -> Option<&Sample> {
        self.buffer.get(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    /// Samples from an absolute index on, in order of `t`.
    pub fn from(&self, start: u64) -> impl DoubleEndedIterator<Item = &Sample> {
        let skip = start.saturating_sub(self.base).min(self.buffer.len() as u64) as usize;
        self.buffer.range(skip..)
    }

    /// First absolute index with `t` above `edge`.
    pub fn first_after(&self, edge: Micros) -> u64 {
        self.base + self.buffer.partition_point(|sample| sample.t <= edge) as u64
    }

    /// Takes a reading in. Gives the absolute index of a sample that joined before others, or `None` if it is the newest
    /// (or a blank).
    pub fn accept(&mut self, reading: &Reading) -> Accepted {
        let sequence = self.accepted;
        self.accepted += 1;
        let place = (reading.t, sequence);
        let Some(value) = reading.value else {
            self.newest_blank = self.newest_blank.max(Some(place));
            let at = self.blanks.partition_point(|blank| *blank <= place);
            self.blanks.insert(at, place);
            return Accepted::Blank;
        };
        insert_newest(&mut self.newest_any, place, value);
        if reading.questionable {
            self.newest_questionable = self.newest_questionable.max(Some(place));
        } else {
            insert_newest(&mut self.newest_sound, place, value);
        }
        let sample =
            Sample { t: reading.t, value, cover_us: reading.cover_us, questionable: reading.questionable, sequence };
        if self.buffer.back().is_none_or(|last| last.t <= reading.t) {
            self.buffer.push_back(sample);
            return Accepted::Newest;
        }
        if self.buffer.front().is_some_and(|first| reading.t < first.t) && reading.t <= self.held_from() {
            // Older than everything that is kept, where samples may be missing anyway.
            return Accepted::BeforeAll;
        }
        let at = self.buffer.partition_point(|known| known.t <= reading.t);
        self.buffer.insert(at, sample);
        Accepted::Inside
    }

    /// Removes the oldest sample; it raises held-from.
    pub fn evict(&mut self) -> Option<Sample> {
        let sample = self.buffer.pop_front()?;
        self.base += 1;
        self.held_from = self.held_from.max(Some(sample.t));
        while self.blanks.front().is_some_and(|blank| *blank < (sample.t, sample.sequence)) {
            self.blanks.pop_front();
        }
        Some(sample)
    }

    /// Forgets blanks at or before `edge`; no window reaches them.
    pub fn prune_blanks(&mut self, edge: Micros) {
        while self.blanks.front().is_some_and(|blank| blank.0 <= edge) {
            self.blanks.pop_front();
        }
    }

    pub fn oldest(&self) -> Option<&Sample> {
        self.buffer.front()
    }

    fn newest(&self, accept_questionable: bool) -> &[Option<(Place, i64)>; 2] {
        if accept_questionable { &self.newest_any } else { &self.newest_sound }
    }

    /// `t` of the newest sample a rule may use.
    pub fn newest_sample(&self, accept_questionable: bool) -> Option<Micros> {
        self.newest(accept_questionable)[0].map(|((t, _), _)| t)
    }

    /// Value of the newest sample, unless it is too old or a blank is newer.
    pub fn last(&self, accept_questionable: bool, at: Micros, max_age_us: Option<Micros>) -> Option<i64> {
        let (place, value) = self.newest(accept_questionable)[0]?;
        let blank =
            if accept_questionable { self.newest_blank } else { self.newest_blank.max(self.newest_questionable) };
        let known = blank.is_none_or(|blank| blank < place) && max_age_us.is_none_or(|max_age| at - place.0 <= max_age);
        known.then_some(value)
    }

    /// Value of the sample before the newest.
    pub fn prev(&self, accept_questionable: bool) -> Option<i64> {
        self.newest(accept_questionable)[1].map(|(_, value)| value)
    }

    /// Samples from an absolute index on, each with the end of the time it covers: the next reading, `at`, or its own
    /// cap, whichever is first.
    pub fn covered_from(&self, start: u64, at: Micros) -> impl Iterator<Item = (&Sample, Micros)> {
        let skip = start.saturating_sub(self.base).min(self.buffer.len() as u64) as usize;
        let mut blanks = self.blanks.iter().peekable();
        (skip..self.buffer.len()).map(move |i| {
            let sample = &self.buffer[i];
            let place = (sample.t, sample.sequence);
            while blanks.next_if(|blank| **blank < place).is_some() {}
            let next_sample = self.buffer.get(i + 1).map_or(Micros::MAX, |next| next.t);
            let next_blank = blanks.peek().map_or(Micros::MAX, |blank| blank.0);
            let until = at.min(sample.t.saturating_add(sample.cover_us)).min(next_sample).min(next_blank);
            (sample, until.max(sample.t))
        })
    }
}

/// What became of a reading in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// A sample behind all others.
    Newest,
    /// A sample between others: running windows have to be computed anew.
    Inside,
    /// A sample older than all that are kept; no window can need it.
    BeforeAll,
    Blank,
}

fn insert_newest(newest: &mut [Option<(Place, i64)>; 2], place: Place, value: i64) {
    let entry = Some((place, value));
    let before = |known: Option<(Place, i64)>| known.is_none_or(|(known, _)| known < place);
    if before(newest[0]) {
        newest[1] = newest[0];
        newest[0] = entry;
    } else if before(newest[1]) {
        newest[1] = entry;
    }
}
