//! Random cases: a log with its rules, as a function of a seed.
//!
//! Reading order: [`random_case`]; `log` makes devices and what they send, `rules` the rules that read it, `additions`
//! what every other case has besides: corrections, comparators, controls, connectors, other sets.

mod additions;
mod log;
mod rules;

use std::collections::BTreeMap;

use wardbell_schemas::catalogue::{Catalogue, Signal};
use wardbell_schemas::{Micros, SECOND};

use crate::oracle::{Item, Patient, Set};

pub const MINUTE: Micros = 60 * SECOND;
const DAY: Micros = 24 * 60 * MINUTE;
/// 2026-01-01T00:00:00Z.
pub const YEAR_2026: Micros = 1_767_225_600 * SECOND;

/// One log with its rules.
#[derive(Clone)]
pub struct Case {
    pub seed: u64,
    /// Where its times are printed from.
    pub start: Micros,
    pub record_clock: bool,
    /// What is in force from the beginning.
    pub set: Set,
    /// Limits and attributes from the beginning.
    pub people: BTreeMap<String, Patient>,
    pub items: Vec<Item>,
}

impl Case {
    pub fn readings(&self) -> u64 {
        let in_item = |item: &Item| match item {
            Item::Record(record) => record.readings.len() as u64,
            _ => 0,
        };
        self.items.iter().map(in_item).sum()
    }

    /// The same without ticks.
    pub fn without_ticks(&self) -> Self {
        let mut case = self.clone();
        case.items.retain(|item| !matches!(item, Item::Tick { .. }));
        case
    }
}

/// What additions have to know of a case.
struct Shape {
    profiles: Vec<&'static Profile>,
    /// Hours instead of minutes.
    long: bool,
}

/// Cases of even seeds are plain; the others have additions, which a second generator draws: so a change of them leaves
/// the log as it was.
pub fn random_case(seed: u64) -> Case {
    let (mut case, shape) = log::plain_case(seed);
    if seed % 2 == 1 {
        additions::add(&mut case, &shape, &mut Dice::of(seed ^ ADDITIONS));
    }
    case
}

/// Tells the second generator's seeds from the first one's.
const ADDITIONS: u64 = 0x9e37_79b9_7f4a_7c15;

/// Chance, as a function of a seed.
pub struct Dice(pub fastrand::Rng);

impl Dice {
    pub fn of(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    pub fn chance(&mut self, percent: u32) -> bool {
        self.0.u32(0..100) < percent
    }

    /// Both ends included.
    pub fn between(&mut self, from: i64, to: i64) -> i64 {
        self.0.i64(from..=to)
    }

    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.0.usize(0..list.len())]
    }
}

/// A signal of random cases, and around which value its readings and the limits of its rules lie.
struct Profile {
    id: &'static str,
    /// In the signal's unit; a category has none.
    level: Option<(f64, f64)>,
}

const PROFILES: [Profile; 6] = [
    Profile { id: "heart_rate", level: Some((120.0, 15.0)) },
    Profile { id: "spo2", level: Some((90.0, 4.0)) },
    Profile { id: "resp_rate", level: Some((20.0, 6.0)) },
    Profile { id: "nibp_sys", level: Some((100.0, 15.0)) },
    Profile { id: "temp_core", level: Some((39.0, 0.6)) },
    Profile { id: "consciousness", level: None },
];

impl Profile {
    fn signal(&self) -> &'static Signal {
        Catalogue::builtin().by_id(self.id).expect(self.id)
    }

    /// Level and spread in counts of resolution.
    fn counts(&self) -> Option<(i64, i64)> {
        let per_unit = self.signal().per_unit as f64;
        let counts = |value: f64| (value * per_unit).round() as i64;
        self.level.map(|(level, spread)| (counts(level), counts(spread)))
    }
}
