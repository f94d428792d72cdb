//! The readings of one series that are still needed: a buffer in order of `t`, and the newest ones by heart.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use wardbell_schemas::Micros;
use wardbell_schemas::reading::Comparator;

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
    /// A value that is known only as far as this goes is a blank for windows.
    pub comparator: Comparator,
    /// Order of acceptance: of two samples with the same `t` the later accepted is the newer.
    sequence: u64,
}

impl Sample {
    /// Windows are made of it.
    pub fn counts(&self, accept_questionable: bool) -> bool {
        self.comparator == Comparator::None && (accept_questionable || !self.questionable)
    }

    fn place(&self) -> Place {
        (self.t, self.sequence)
    }
}

/// Blanks a series keeps.
const BLANKS_MAX: usize = 8_192;

/// What is accepted into a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    pub t: Micros,
    /// `None` for a blank.
    pub value: Option<i64>,
    pub questionable: bool,
    pub cover_us: Micros,
    pub comparator: Comparator,
}

/// One of the newest samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Newest {
    place: Place,
    value: i64,
    comparator: Comparator,
    questionable: bool,
    cover_us: Micros,
}

impl Newest {
    fn of(sample: &Sample) -> Self {
        Self {
            place: sample.place(),
            value: sample.value,
            comparator: sample.comparator,
            questionable: sample.questionable,
            cover_us: sample.cover_us,
        }
    }
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
    newest_any: [Option<Newest>; 2],
    newest_sound: [Option<Newest>; 2],
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
        self.put((reading.t, sequence), reading)
    }

    fn put(&mut self, place: Place, reading: &Reading) -> Accepted {
        let Some(value) = reading.value else {
            self.newest_blank = self.newest_blank.max(Some(place));
            let at = self.blanks.partition_point(|blank| *blank <= place);
            self.blanks.insert(at, place);
            return Accepted::Blank;
        };
        let sample = Sample {
            t: place.0,
            value,
            cover_us: reading.cover_us,
            questionable: reading.questionable,
            comparator: reading.comparator,
            sequence: place.1,
        };
        self.note(Newest::of(&sample));
        if self.buffer.back().is_none_or(|last| last.place() <= place) {
            push_back(&mut self.buffer, sample);
            return Accepted::Newest;
        }
        if self.buffer.front().is_some_and(|first| reading.t < first.t) && reading.t <= self.held_from() {
            // Older than everything that is kept, where samples may be missing anyway.
            return Accepted::BeforeAll;
        }
        let at = self.buffer.partition_point(|known| known.place() <= place);
        self.buffer.insert(at, sample);
        Accepted::Inside
    }

    /// Knows a sample by heart, if it is among the newest.
    fn note(&mut self, newest: Newest) {
        insert_newest(&mut self.newest_any, newest);
        if newest.questionable {
            self.newest_questionable = self.newest_questionable.max(Some(newest.place));
        } else {
            insert_newest(&mut self.newest_sound, newest);
        }
    }

    fn by_heart(&self) -> impl Iterator<Item = Newest> {
        self.newest_any.into_iter().chain(self.newest_sound).flatten()
    }

    /// The newest sample with this `t`, if it is still held.
    fn at(&self, t: Micros) -> Option<Place> {
        let end = self.buffer.partition_point(|sample| sample.t <= t);
        let held = end.checked_sub(1).map(|index| &self.buffer[index]).filter(|sample| sample.t == t);
        let by_heart = self.by_heart().map(|newest| newest.place).filter(|place| place.0 == t);
        held.map(Sample::place).max(by_heart.max())
    }

    pub fn holds(&self, t: Micros) -> bool {
        self.at(t).is_some()
    }

    /// Puts a corrected reading in the place of the sample with its `t`; without a value the sample is taken out. Gives
    /// whether it was still held. Running windows have to be computed anew.
    pub fn correct(&mut self, reading: &Reading) -> bool {
        let Some(place) = self.at(reading.t) else {
            return false;
        };
        let cover_us = self.take_out(place).unwrap_or(reading.cover_us);
        if reading.value.is_some() {
            self.put(place, &Reading { cover_us, ..*reading });
        }
        true
    }

    /// Gives how long the sample covered.
    fn take_out(&mut self, place: Place) -> Option<Micros> {
        let cover_us = self.by_heart().find(|newest| newest.place == place).map(|newest| newest.cover_us);
        let found = self.buffer.binary_search_by_key(&place, Sample::place).ok();
        let taken = found.and_then(|index| self.buffer.remove(index)).map(|sample| sample.cover_us);
        let rest: Vec<Newest> = self.by_heart().filter(|newest| newest.place != place).collect();
        let held = || self.buffer.iter().rev().map(Newest::of);
        let sound = held().filter(|newest| !newest.questionable).take(2);
        let doubtful = held().find(|newest| newest.questionable);
        let candidates: Vec<Newest> = rest.into_iter().chain(held().take(2)).chain(sound).chain(doubtful).collect();
        (self.newest_any, self.newest_sound, self.newest_questionable) = ([None; 2], [None; 2], None);
        for newest in candidates {
            self.note(newest);
        }
        taken.or(cover_us)
    }

    /// Removes the oldest sample; it raises held-from.
    pub fn evict(&mut self) -> Option<Sample> {
        let sample = self.buffer.pop_front()?;
        self.base += 1;
        self.held_from = self.held_from.max(Some(sample.t));
        while self.blanks.front().is_some_and(|blank| *blank < sample.place()) {
            self.blanks.pop_front();
        }
        Some(sample)
    }

    /// Forgets blanks at or before `edge` that end no sample's cover. Above the cap the oldest goes, and what it may have
    /// ended is not known any more.
    pub fn prune_blanks(&mut self, edge: Micros) {
        let oldest = self.buffer.front().map_or((Micros::MAX, 0), Sample::place);
        while let Some(blank) = self.blanks.front().copied() {
            if self.blanks.len() > BLANKS_MAX {
                self.held_from = self.held_from.max(Some(blank.0));
            } else if blank.0 > edge || blank >= oldest {
                break;
            }
            self.blanks.pop_front();
        }
    }

    /// Reads a word of every cache line: see `partition/ahead.rs`.
    #[inline]
    pub fn touch(&self) -> u64 {
        let counts = self.base ^ self.accepted ^ (self.buffer.len() ^ self.blanks.len()) as u64;
        let newest = self.newest_any.iter().chain(&self.newest_sound).map(Option::is_some);
        let others = self.newest_blank.is_some() ^ self.newest_questionable.is_some() ^ self.held_from.is_some();
        counts ^ u64::from(newest.fold(others, |touched, newest| touched ^ newest))
    }

    /// The same for what those lines point to: the ends, where samples come and go.
    pub fn touch_inside(&self) -> u64 {
        let ends = [self.buffer.front(), self.buffer.get(1), self.buffer.back()];
        ends.into_iter().flatten().fold(0, |touched, sample| touched ^ sample.t as u64 ^ sample.sequence)
    }

    /// Writes where the next sample will stand, and takes it back.
    pub fn touch_next(&mut self) {
        if let Some(known) = self.buffer.back().copied() {
            push_back(&mut self.buffer, known);
            std::hint::black_box(&self.buffer);
            self.buffer.pop_back();
        }
    }

    pub fn oldest(&self) -> Option<&Sample> {
        self.buffer.front()
    }

    fn newest(&self, accept_questionable: bool) -> &[Option<Newest>; 2] {
        if accept_questionable { &self.newest_any } else { &self.newest_sound }
    }

    /// `t` of the newest sample a rule may use.
    pub fn newest_sample(&self, accept_questionable: bool) -> Option<Micros> {
        self.newest(accept_questionable)[0].map(|newest| newest.place.0)
    }

    /// Value of the newest sample and how far it is known, unless it is too old or a blank is newer.
    pub fn newest_value(
        &self,
        accept_questionable: bool,
        at: Micros,
        max_age_us: Option<Micros>,
    ) -> Option<(i64, Comparator)> {
        let newest = self.newest(accept_questionable)[0]?;
        let blank =
            if accept_questionable { self.newest_blank } else { self.newest_blank.max(self.newest_questionable) };
        let fresh = max_age_us.is_none_or(|max_age| at - newest.place.0 <= max_age);
        (blank.is_none_or(|blank| blank < newest.place) && fresh).then_some((newest.value, newest.comparator))
    }

    /// Value of the newest sample, where that is a plain one.
    pub fn last(&self, accept_questionable: bool, at: Micros, max_age_us: Option<Micros>) -> Option<i64> {
        let (value, comparator) = self.newest_value(accept_questionable, at, max_age_us)?;
        (comparator == Comparator::None).then_some(value)
    }

    /// Value of the sample before the newest, where that is a plain one.
    pub fn prev(&self, accept_questionable: bool) -> Option<i64> {
        let before = self.newest(accept_questionable)[1]?;
        (before.comparator == Comparator::None).then_some(before.value)
    }

    /// Samples from an absolute index on, each with the end of the time it covers: the next reading, `at`, or its own
    /// cap, whichever is first.
    pub fn covered_from(&self, start: u64, at: Micros) -> impl Iterator<Item = (&Sample, Micros)> {
        let skip = start.saturating_sub(self.base).min(self.buffer.len() as u64) as usize;
        let mut blanks = self.blanks.iter().peekable();
        (skip..self.buffer.len()).map(move |i| {
            let sample = &self.buffer[i];
            let place = sample.place();
            while blanks.next_if(|blank| **blank < place).is_some() {}
            let next_sample = self.buffer.get(i + 1).map_or(Micros::MAX, |next| next.t);
            let next_blank = blanks.peek().map_or(Micros::MAX, |blank| blank.0);
            let until = at.min(sample.t.saturating_add(sample.cover_us)).min(next_sample).min(next_blank);
            (sample, until.max(sample.t))
        })
    }
}

/// Appends, in a buffer not much larger than what it holds: the place of the next one is that of one that has just left,
/// and still in the cache.
pub fn push_back<T>(buffer: &mut VecDeque<T>, item: T) {
    if buffer.len() == buffer.capacity() {
        buffer.reserve_exact(buffer.len() / 4 + 4);
    }
    buffer.push_back(item);
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

/// Keeps the two newest, each once.
fn insert_newest(newest: &mut [Option<Newest>; 2], entry: Newest) {
    let before = |known: Option<Newest>| known.is_none_or(|known| known.place < entry.place);
    if before(newest[0]) {
        newest[1] = newest[0];
        newest[0] = Some(entry);
    } else if newest[0].is_some_and(|known| known.place != entry.place) && before(newest[1]) {
        newest[1] = Some(entry);
    }
}
