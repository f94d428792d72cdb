//! The books of `verify`: what was sent on one side, where it was found on the other.
//!
//! Each reading that was sent is an obligation with a position, a patient and a time of its own. It is met by one row of
//! the canonical log that says the same three things, or by a dead letter. A second row is *repeated* (a crash makes the
//! normalizer append again, and the decide stage drops it by its position); what is met by nothing is *missing*.

use std::collections::BTreeMap;

use serde::Serialize;
use wardbell_schemas::Micros;

use crate::manifest::Manifest;
use crate::ward::{READINGS_PER_RECORD_MAX, patient_id};

/// As many places are named; more would hide the first.
pub const NAMED_MAX: usize = 20;

/// A set of readings of one record, a bit each.
type Bits = u16;
const _: () = assert!(READINGS_PER_RECORD_MAX <= Bits::BITS as u64);

/// One record of good readings.
#[derive(Debug)]
struct Sent {
    offset: i64,
    due_us: Micros,
    patient: u32,
    found: Bits,
}

/// What a row or a dead letter says of where it came from.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub index: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    topic: String,
    readings_per_record: u64,
    patients: Vec<String>,
    /// By partition, in order of offsets.
    sent: BTreeMap<i32, Vec<Sent>>,
    /// Poison, and whether it has its dead letter.
    poison: BTreeMap<(i32, i64), bool>,
    /// Readings and poison records that are nowhere yet.
    n_missing: u64,
    pub counts: Counts,
    /// Rows that say another patient or time than was sent: the first few.
    pub altered_first: Vec<String>,
}

/// How obligations were met, and how not. Readings, if nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// In the canonical log, each once.
    pub canonical: u64,
    /// Rows with the position of an earlier one.
    pub repeated: u64,
    /// Rows that say another patient or time than was sent at their position.
    pub altered: u64,
    /// Dead letters of good readings.
    pub refused: u64,
    /// Poison records that have their dead letter.
    pub poison_refused: u64,
    /// Rows made of poison.
    pub poison_accepted: u64,
    /// Rows and dead letters of what others sent.
    pub of_others: u64,
}

impl Ledger {
    pub fn new(manifest: &Manifest) -> Self {
        let mut sent: BTreeMap<i32, Vec<Sent>> = BTreeMap::new();
        manifest.for_each_record(|record| {
            let patient = u32::try_from(record.patient).unwrap_or(u32::MAX);
            let entry = Sent { offset: record.offset, due_us: record.due_us, patient, found: 0 };
            sent.entry(record.partition).or_default().push(entry);
        });
        Self {
            topic: manifest.topic.clone(),
            readings_per_record: manifest.readings_per_record,
            patients: (0..manifest.patients).map(patient_id).collect(),
            sent,
            poison: manifest.poison.iter().map(|position| (*position, false)).collect(),
            n_missing: manifest.readings + manifest.poison.len() as u64,
            counts: Counts::default(),
            altered_first: Vec::new(),
        }
    }

    /// Takes a row of the canonical log.
    pub fn row(&mut self, place: Place<'_>, patient: &str, event_time_us: Micros) {
        let is_ours = place.topic == self.topic;
        if is_ours && self.poison.contains_key(&(place.partition, place.offset)) {
            self.counts.poison_accepted += 1;
            return;
        }
        let bit = self.bit(place.index);
        let entry = find(&mut self.sent, place.partition, place.offset).filter(|_| is_ours);
        let Some(entry) = entry else {
            self.counts.of_others += 1;
            return;
        };
        let said = self.patients.get(entry.patient as usize).is_some_and(|known| known == patient);
        let (Some(bit), true, true) = (bit, said, entry.due_us == event_time_us) else {
            self.counts.altered += 1;
            if self.altered_first.len() < NAMED_MAX {
                self.altered_first.push(name(&self.topic, place.partition, place.offset, place.index));
            }
            return;
        };
        if entry.found & bit == 0 {
            entry.found |= bit;
            self.n_missing -= 1;
            self.counts.canonical += 1;
        } else {
            self.counts.repeated += 1;
        }
    }

    /// Takes a dead letter.
    pub fn letter(&mut self, place: Place<'_>) {
        let is_ours = place.topic == self.topic;
        if is_ours && let Some(has_letter) = self.poison.get_mut(&(place.partition, place.offset)) {
            if !*has_letter {
                *has_letter = true;
                self.n_missing -= 1;
                self.counts.poison_refused += 1;
            }
            return;
        }
        // A letter about a whole record bears one index. The record's other readings stay missing, which is what they are.
        let bit = self.bit(place.index).unwrap_or(1);
        match find(&mut self.sent, place.partition, place.offset).filter(|_| is_ours) {
            Some(entry) => {
                if entry.found & bit == 0 {
                    entry.found |= bit;
                    self.n_missing -= 1;
                }
                self.counts.refused += 1;
            }
            None => self.counts.of_others += 1,
        }
    }

    /// When the record at this position was due, if this run sent it.
    pub fn due_us(&self, place: Place<'_>) -> Option<Micros> {
        let records = self.sent.get(&place.partition).filter(|_| place.topic == self.topic)?;
        let at = records.binary_search_by_key(&place.offset, |record| record.offset).ok()?;
        Some(records[at].due_us)
    }

    /// Readings and poison records that are nowhere.
    pub fn n_missing(&self) -> u64 {
        self.n_missing
    }

    /// Where the first few of them should be.
    pub fn missing_first(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (partition, records) in &self.sent {
            for record in records.iter().filter(|record| record.found != self.all()) {
                for index in 0..self.readings_per_record as u32 {
                    if self.bit(index).is_some_and(|bit| record.found & bit == 0) {
                        missing.push(name(&self.topic, *partition, record.offset, index));
                    }
                }
                if missing.len() >= NAMED_MAX {
                    missing.truncate(NAMED_MAX);
                    return missing;
                }
            }
        }
        let without_letter = self.poison.iter().filter(|(_, has_letter)| !**has_letter);
        missing.extend(without_letter.map(|((partition, offset), _)| name(&self.topic, *partition, *offset, 0)));
        missing.truncate(NAMED_MAX);
        missing
    }

    /// The bit of a reading in its record; `None` where no record has so many.
    fn bit(&self, index: u32) -> Option<Bits> {
        let first: Bits = 1;
        (u64::from(index) < self.readings_per_record).then(|| first << index)
    }

    /// Every reading of a record.
    fn all(&self) -> Bits {
        Bits::MAX >> (u64::from(Bits::BITS) - self.readings_per_record)
    }
}

fn find(sent: &mut BTreeMap<i32, Vec<Sent>>, partition: i32, offset: i64) -> Option<&mut Sent> {
    let records = sent.get_mut(&partition)?;
    let at = records.binary_search_by_key(&offset, |record| record.offset).ok()?;
    records.get_mut(at)
}

fn name(topic: &str, partition: i32, offset: i64, index: u32) -> String {
    format!("{topic}/{partition} offset {offset} reading {index}")
}

#[cfg(test)]
mod tests {
    use wardbell_schemas::SECOND;

    use super::*;
    use crate::manifest::{Offsets, SentRecord, Setting};
    use crate::schedule::Step;

    /// Two records of three readings in partition 0, poison behind them.
    fn manifest() -> Manifest {
        let setting = Setting {
            topic: "devices".to_owned(),
            partitions: 1,
            patients: 2,
            readings_per_record: 3,
            start_us: 1_000 * SECOND,
        };
        let mut offsets = Offsets::default();
        offsets.push(7);
        offsets.push(8);
        let steps = vec![Step::new(0, 6.0, SECOND, 3)];
        Manifest::new(setting, steps, BTreeMap::from([(0, offsets)]), vec![(0, 9)])
    }

    fn place(offset: i64, index: u32) -> Place<'static> {
        Place { topic: "devices", partition: 0, offset, index }
    }

    /// A row for each reading but those left out, as the normalizer should write them.
    fn rows(ledger: &mut Ledger, leave_out: &[(i64, u32)]) {
        let mut records = Vec::new();
        manifest().for_each_record(|record| records.push(record));
        for SentRecord { offset, due_us, patient, .. } in records {
            for index in (0..3).filter(|index| !leave_out.contains(&(offset, *index))) {
                ledger.row(place(offset, index), &patient_id(patient), due_us);
            }
        }
    }

    #[test]
    fn every_reading_in_its_place_leaves_nothing_missing() {
        let mut ledger = Ledger::new(&manifest());
        assert_eq!(ledger.n_missing(), 7);
        rows(&mut ledger, &[]);
        assert_eq!((ledger.n_missing(), ledger.missing_first()), (1, vec!["devices/0 offset 9 reading 0".to_owned()]));
        ledger.letter(place(9, 0));
        assert_eq!(ledger.n_missing(), 0);
        assert_eq!(ledger.counts, Counts { canonical: 6, poison_refused: 1, ..Counts::default() });
        assert_eq!(ledger.due_us(place(8, 0)), Some(1_000 * SECOND + SECOND / 2));
        assert_eq!(ledger.due_us(place(9, 0)), None);
    }

    #[test]
    fn what_is_nowhere_is_named_and_what_is_there_twice_is_counted() {
        let mut ledger = Ledger::new(&manifest());
        rows(&mut ledger, &[(7, 2), (8, 0)]);
        rows(&mut ledger, &[(7, 2), (8, 0)]);
        ledger.letter(place(9, 0));
        ledger.letter(place(9, 0));
        assert_eq!(ledger.n_missing(), 2);
        assert_eq!(ledger.missing_first(), ["devices/0 offset 7 reading 2", "devices/0 offset 8 reading 0"]);
        assert_eq!(ledger.counts, Counts { canonical: 4, repeated: 4, poison_refused: 1, ..Counts::default() });
    }

    #[test]
    fn a_row_that_says_something_else_meets_no_obligation() {
        let mut ledger = Ledger::new(&manifest());
        let due_us = ledger.due_us(place(7, 0)).unwrap();
        for (index, patient, at_us) in
            [(0, "load-00001", due_us), (1, "load-00000", due_us + 1), (3, "load-00000", due_us)]
        {
            ledger.row(place(7, index), patient, at_us);
        }
        // Poison, somebody else's offset, another topic.
        let elsewhere = Place { topic: "others", ..place(7, 0) };
        for place in [place(9, 0), place(70, 0), elsewhere] {
            ledger.row(place, "load-00000", due_us);
        }
        ledger.letter(elsewhere);
        assert_eq!(ledger.counts, Counts { altered: 3, poison_accepted: 1, of_others: 3, ..Counts::default() });
        assert_eq!((ledger.n_missing(), ledger.altered_first.len()), (7, 3));
    }

    #[test]
    fn a_good_reading_with_a_dead_letter_is_found_but_refused() {
        let mut ledger = Ledger::new(&manifest());
        rows(&mut ledger, &[(8, 1)]);
        ledger.letter(place(8, 1));
        ledger.letter(place(9, 0));
        assert_eq!(ledger.n_missing(), 0);
        assert_eq!(ledger.counts, Counts { canonical: 5, refused: 1, poison_refused: 1, ..Counts::default() });
    }
}
