//! Where a reading can end: one closed list, one counter each, and the counters add up to what was read.
//!
//! The unit is the reading. A record that could not be taken apart counts as one reading, so nothing is left over:
//! `records that decoded, each with its readings` + `records that did not` = sum of all outcomes.

use serde::{Deserialize, Serialize};

/// The named places a reading can end in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Accepted with a value at its event time.
    Evaluated,
    /// Accepted with a value at the broker's time, because the device's clock is wrong (future, epoch, slow, coarse).
    Retimed,
    /// Accepted with a flagged value: a sample for intervals and staleness, a blank for rules that do not accept it.
    Questionable,
    /// Accepted without a value.
    Missing,
    /// Accepted without a value, because the device said it did not measure.
    Technical,
    /// Marked as test by its source: stored, never alerts.
    Test,
    /// The same reading again.
    Duplicate,
    /// Same series, time and record as an accepted reading, but another value.
    Conflict,
    /// Corrected or retracted a sample that was still held.
    Corrected,
    /// Older than the allowed lateness: kept in the log, in no window and no live rule.
    Late,
    /// Not a reading we can use: in the dead-letter topic, with its reason.
    Quarantined,
    /// A record without a value (tombstone), or a label that the connector's file says is not wanted.
    Ignored,
}

impl Outcome {
    pub const ALL: [Outcome; 12] = [
        Outcome::Evaluated,
        Outcome::Retimed,
        Outcome::Questionable,
        Outcome::Missing,
        Outcome::Technical,
        Outcome::Test,
        Outcome::Duplicate,
        Outcome::Conflict,
        Outcome::Corrected,
        Outcome::Late,
        Outcome::Quarantined,
        Outcome::Ignored,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Outcome::Evaluated => "evaluated",
            Outcome::Retimed => "retimed",
            Outcome::Questionable => "questionable",
            Outcome::Missing => "missing",
            Outcome::Technical => "technical",
            Outcome::Test => "test",
            Outcome::Duplicate => "duplicate",
            Outcome::Conflict => "conflict",
            Outcome::Corrected => "corrected",
            Outcome::Late => "late",
            Outcome::Quarantined => "quarantined",
            Outcome::Ignored => "ignored",
        }
    }
}

/// One counter per outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutcomeCounts {
    counts: [u64; Outcome::ALL.len()],
    /// Rows appended to the canonical log a second time after a crash and dropped by their source position. They are
    /// not readings of their own, so they stand beside the sum.
    pub repeated: u64,
    /// As `repeated`, but normalized with another normalizer set than the rows that were applied (`E_RENORMALIZED`): what
    /// the record means now does not change what was decided on it.
    pub renormalized: u64,
}

impl OutcomeCounts {
    pub fn add(&mut self, outcome: Outcome) {
        self.counts[outcome as usize] += 1;
    }

    pub fn add_many(&mut self, outcome: Outcome, count: u64) {
        self.counts[outcome as usize] += count;
    }

    pub fn get(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize]
    }

    pub fn merge(&mut self, other: &OutcomeCounts) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.repeated += other.repeated;
        self.renormalized += other.renormalized;
    }

    /// All readings that reached one of the places.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL.into_iter().map(|outcome| (outcome, self.get(outcome)))
    }
}
