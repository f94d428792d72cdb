//! Looking ahead: what the next rows are about is fetched into the processor's cache before their turn comes.
//!
//! The series of a hospital do not fit into the cache, and one reading touches some thirty places of its own, each
//! found through another. Waiting for them one by one takes longer than all the deciding. So a few rows ahead are
//! looked at together, first their series, then what those point to: loads that do not depend on each other wait side
//! by side. Nothing here decides anything. Which series a row belongs to is a guess by the hash of its names, compared
//! with the names themselves when its turn comes; a wrong one costs time only.

use std::hash::BuildHasher;
use std::hint::black_box;
use std::ops::Range;

use hashbrown::{DefaultHashBuilder, HashMap};
use wardbell_schemas::reading::ReadingColumns;

use super::Partition;

/// Rows looked at together. What they touch has to fit into the innermost caches.
const ROWS: usize = 32;

/// Guesses for the rows of one batch that come next, and what guesses are made from.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    hasher: DefaultHashBuilder,
    series_by_hash: HashMap<u64, u32>,
    /// The rows that `guesses` are for.
    rows: Range<usize>,
    guesses: Vec<(u64, Option<u32>)>,
}

impl Ahead {
    /// The series that rows with the names of this one belonged to before.
    pub fn guess(&self, row: usize) -> Option<u32> {
        self.guesses.get(row.checked_sub(self.rows.start)?)?.1
    }

    /// A guess was wrong or missing.
    pub fn learn(&mut self, row: usize, series: u32) {
        let guess = row.checked_sub(self.rows.start).and_then(|place| self.guesses.get(place));
        if let Some((hash, _)) = guess {
            self.series_by_hash.insert(*hash, series);
        }
    }

    /// A series is gone: its names would be kept for ever otherwise.
    pub fn forget(&mut self) {
        self.series_by_hash.clear();
    }
}

impl Partition {
    /// The rows of another batch come next.
    pub(super) fn look_at_batch(&mut self, columns: &ReadingColumns<'_>) {
        black_box(columns.touch());
        self.ahead.rows = 0..0;
        self.ahead.guesses.clear();
    }

    /// Looks at what rows from `row` on will need, if that has not been done yet.
    #[inline]
    pub(super) fn look_ahead(&mut self, columns: &ReadingColumns<'_>, row: usize) {
        if row >= self.ahead.rows.end {
            self.look_at(columns, row..columns.len().min(row + ROWS));
        }
    }

    fn look_at(&mut self, columns: &ReadingColumns<'_>, rows: Range<usize>) {
        let ahead = &mut self.ahead;
        ahead.rows = rows.clone();
        ahead.guesses.clear();
        for row in rows {
            let hash = ahead.hasher.hash_one(columns.names(row));
            ahead.guesses.push((hash, ahead.series_by_hash.get(&hash).copied()));
        }
        // In waves: a wave's loads do not depend on each other, only on those of the wave before.
        let series = || ahead.guesses.iter().filter_map(|(_, guess)| self.state.series.get((*guess)? as usize));
        let patients = || series().map(|series| &self.state.patients[series.patient as usize]);
        let mut touched = 0;
        for series in series() {
            touched ^= series.touch();
        }
        for series in series() {
            touched ^= series.touch_inside();
            touched ^= self.state.patients[series.patient as usize].touch();
            touched ^= self.state.patient_names.touch(series.patient) ^ self.state.device_names.touch(series.device);
        }
        for patient in patients() {
            touched ^= patient.touch_inside();
        }
        for (_, guess) in &ahead.guesses {
            if let Some(series) = guess.and_then(|guess| self.state.series.get_mut(guess as usize)) {
                series.touch_next();
            }
        }
        black_box(touched);
    }
}
