//! What a load run sent, in a few hundred bytes: the schedule as a formula, and the offsets the broker gave.
//!
//! Records of a partition are acknowledged in the order they were sent and without gaps, so the formula's next record for
//! a partition is at that partition's next offset. `verify` finds with it, for each position of the source topic, whose
//! record it is and when it was due, without trusting anything the engine says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use wardbell_connectors::partitioner::partition_of;
use wardbell_schemas::Micros;

use crate::schedule::Step;
use crate::ward::{READINGS_PER_RECORD_MAX, patient_id, patient_of};

const KIND: &str = "manifest";
/// A file of another version is refused.
const VERSION: u32 = 1;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[serde(rename = "type")]
    kind: String,
    version: u32,
    /// The source topic.
    pub topic: String,
    pub partitions: i32,
    pub patients: u64,
    pub readings_per_record: u64,
    /// Beginning of the schedule, µs since 1970 UTC.
    pub start_us: Micros,
    pub steps: Vec<Step>,
    /// Records that were acknowledged, and readings in them.
    pub records: u64,
    pub readings: u64,
    /// Their offsets by partition.
    pub sent: BTreeMap<i32, Offsets>,
    /// Partition and offset of records that hold no reading.
    pub poison: Vec<(i32, i64)>,
}

/// Offsets of one partition as half-open ranges, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offsets(Vec<(i64, i64)>);

impl Offsets {
    /// Adds an offset above those that are there.
    pub fn push(&mut self, offset: i64) {
        match self.0.last_mut() {
            Some((_, end)) if *end == offset => *end += 1,
            _ => self.0.push((offset, offset + 1)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = i64> {
        self.0.iter().flat_map(|(first, end)| *first..*end)
    }
}

/// One record of good readings, and when and for whom it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentRecord {
    pub partition: i32,
    pub offset: i64,
    /// When it was due and which event time it bears, µs since 1970 UTC.
    pub due_us: Micros,
    /// Index of the patient.
    pub patient: u64,
}

/// How a run was set up; the rest of a manifest is what came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    pub topic: String,
    pub partitions: i32,
    pub patients: u64,
    pub readings_per_record: u64,
    pub start_us: Micros,
}

impl Manifest {
    pub fn new(setting: Setting, steps: Vec<Step>, sent: BTreeMap<i32, Offsets>, poison: Vec<(i32, i64)>) -> Self {
        let Setting { topic, partitions, patients, readings_per_record, start_us } = setting;
        let records = sent.values().map(|offsets| offsets.iter().count() as u64).sum();
        Self {
            kind: KIND.to_owned(),
            version: VERSION,
            topic,
            partitions,
            patients,
            readings_per_record,
            start_us,
            steps,
            records,
            readings: records * readings_per_record,
            sent,
            poison,
        }
    }

    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let step = || format!("writing the manifest to `{}`", path.display());
        let json = serde_json::to_vec(self).with_context(step)?;
        fs::write(path, json).with_context(step)
    }

    /// # Errors
    /// If the file is not there or not a manifest of this version.
    pub fn read(path: &Path) -> Result<Self> {
        let step = || format!("reading manifest `{}`, which `loadtest load --manifest` writes", path.display());
        let manifest: Self = serde_json::from_slice(&fs::read(path).with_context(step)?).with_context(step)?;
        if (manifest.kind.as_str(), manifest.version) != (KIND, VERSION) {
            bail!("`{}` is not a manifest of version {VERSION}", path.display());
        }
        let sound = manifest.patients > 0
            && (1..=READINGS_PER_RECORD_MAX).contains(&manifest.readings_per_record)
            && manifest.steps.iter().all(|step| step.rate > 0.0);
        if !sound {
            bail!("`{}` describes a run that cannot have been", path.display());
        }
        Ok(manifest)
    }

    /// The last moment anything was due, µs since 1970 UTC.
    pub fn end_us(&self) -> Micros {
        let last = self.steps.last().map_or(0, |step| step.due_us(step.records, self.readings_per_record));
        self.start_us + last
    }

    /// Every acknowledged record, in the order of the schedule.
    pub fn for_each_record(&self, mut take: impl FnMut(SentRecord)) {
        let partitions: Vec<i32> =
            (0..self.patients).map(|index| partition_of(&patient_id(index), self.partitions)).collect();
        let mut offsets: BTreeMap<i32, _> =
            self.sent.iter().map(|(partition, offsets)| (*partition, offsets.iter())).collect();
        let mut number = 0;
        for step in &self.steps {
            for i in 0..step.records {
                let patient = patient_of(number, self.patients);
                number += 1;
                let partition = partitions[patient as usize];
                // A partition whose offsets are used up: the rest of the schedule was not acknowledged.
                let Some(offset) = offsets.get_mut(&partition).and_then(Iterator::next) else {
                    continue;
                };
                let due_us = self.start_us + step.due_us(i, self.readings_per_record);
                take(SentRecord { partition, offset, due_us, patient });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wardbell_schemas::SECOND;

    use super::*;

    fn manifest() -> Manifest {
        let setting = Setting {
            topic: "devices".to_owned(),
            partitions: 2,
            patients: 3,
            readings_per_record: 2,
            start_us: 1_000 * SECOND,
        };
        let steps = vec![Step::new(0, 20.0, SECOND, 2), Step::new(10 * SECOND, 40.0, SECOND, 2)];
        // Of 30 records, partition by partition, with an offset that somebody else took.
        let mut sent: BTreeMap<i32, Offsets> = BTreeMap::new();
        for number in 0..30 {
            let partition = partition_of(&patient_id(patient_of(number, 3)), 2);
            let offsets = sent.entry(partition).or_default();
            let next = offsets.iter().last().map_or(5, |last| if last == 7 { 9 } else { last + 1 });
            offsets.push(next);
        }
        Manifest::new(setting, steps, sent, vec![(0, 8)])
    }

    #[test]
    fn every_acknowledged_record_has_its_position_and_its_time() {
        let manifest = manifest();
        let mut records = Vec::new();
        manifest.for_each_record(|record| records.push(record));
        assert_eq!((records.len() as u64, manifest.records, manifest.readings), (30, 30, 60));
        let times: Vec<Micros> = records.iter().map(|record| record.due_us - manifest.start_us).collect();
        assert_eq!((times[0], times[1], times[9]), (0, SECOND / 10, 9 * SECOND / 10));
        assert_eq!((times[10], times[11]), (10 * SECOND, 10 * SECOND + SECOND / 20));
        assert_eq!(manifest.end_us(), manifest.start_us + 11 * SECOND);
        for partition in 0..2 {
            let offsets: Vec<i64> =
                records.iter().filter(|record| record.partition == partition).map(|record| record.offset).collect();
            let expected: Vec<i64> = manifest.sent.get(&partition).map_or_else(Vec::new, |sent| sent.iter().collect());
            assert_eq!(offsets, expected);
            assert!(!offsets.contains(&8), "{offsets:?}");
        }
    }

    #[test]
    fn what_was_not_acknowledged_any_more_is_not_expected() {
        let mut manifest = manifest();
        let (_, last) = manifest.sent.iter_mut().next().expect("a partition");
        let shorter = last.iter().take(4).fold(Offsets::default(), |mut offsets, offset| {
            offsets.push(offset);
            offsets
        });
        let n_dropped = last.iter().count() - 4;
        *last = shorter;
        let mut n_records = 0;
        manifest.for_each_record(|_| n_records += 1);
        assert_eq!(n_records, 30 - n_dropped);
    }

    #[test]
    fn a_frozen_manifest_is_read_and_written_as_it_was() {
        let setting = Setting {
            topic: "devices".to_owned(),
            partitions: 2,
            patients: 3,
            readings_per_record: 2,
            start_us: 1_000 * SECOND,
        };
        let offsets = |ranges: &[(i64, i64)]| Offsets(ranges.to_vec());
        let sent = BTreeMap::from([(0, offsets(&[(5, 8), (9, 12)])), (1, offsets(&[(0, 4)]))]);
        let meant = Manifest::new(setting, vec![Step::new(0, 20.0, SECOND, 2)], sent, vec![(0, 8)]);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/samples/manifest-1.json");
        assert_eq!(Manifest::read(&path).unwrap(), meant);
        let frozen = fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::to_string(&meant).unwrap(), frozen.trim_end());
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest.json");
        let manifest = manifest();
        manifest.write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
        for other in [Manifest { version: 2, ..manifest.clone() }, Manifest { patients: 0, ..manifest }] {
            other.write(&path).unwrap();
            assert!(Manifest::read(&path).is_err());
        }
        fs::write(&path, "{}").unwrap();
        let fault = format!("{:#}", Manifest::read(&path).unwrap_err());
        assert!(fault.contains("manifest.json") && fault.contains("loadtest load"), "{fault}");
    }
}
