//! A run that was sent, an alert of it and the record that comes in, for tests.

use std::collections::BTreeMap;

use wardbell_connectors::log::Record;
use wardbell_schemas::alert::{Alert, Content, Kind, Measured, Priority, RuleReference, State, TransitionKind};
use wardbell_schemas::{Micros, SECOND};

use crate::manifest::{Manifest, Offsets, Setting};
use crate::schedule::Step;

pub const BASIS_US: Micros = 1_800_000_000_000_000;

/// What was decided about one of our patients at [`BASIS_US`], by a reading of that time.
pub fn content(episode: &str, number: u32, transition: TransitionKind) -> Content {
    Content {
        id: format!("{episode}.{number}"),
        episode: episode.to_owned(),
        number,
        transition,
        state: State::On,
        kind: Kind::Physiological,
        priority: Priority::High,
        site: "test".to_owned(),
        rule: RuleReference { id: "spo2-low".to_owned(), version: 1, hash: "ab".to_owned() },
        raised_by_version: 1,
        patient: "load-00001".to_owned(),
        key: "monitor-00001/spo2/-".to_owned(),
        at: BASIS_US,
        condition_start: BASIS_US,
        episode_start: BASIS_US,
        intentional_delay_us: 0,
        by_timer: false,
        message: String::new(),
        evidence: Vec::new(),
        limits: BTreeMap::new(),
        event_time: Some(BASIS_US),
        flags: Vec::new(),
    }
}

/// The record of an alert that was appended at its basis.
pub fn alert(content: Content, measured: Measured) -> Record {
    let value = serde_json::to_vec(&Alert::new(content, measured)).unwrap();
    Record { time_us: BASIS_US, ..record(value) }
}

pub fn record(value: Vec<u8>) -> Record {
    Record { partition: 0, offset: 0, time_us: 0, append_us: None, key: None, value: Some(value), headers: Vec::new() }
}

/// Four records of one reading, half a second apart, in partition 0 from offset 0 on, then poison.
pub fn manifest() -> Manifest {
    let setting = Setting {
        topic: "devices".to_owned(),
        partitions: 1,
        patients: 2,
        readings_per_record: 1,
        start_us: BASIS_US - SECOND,
    };
    let mut offsets = Offsets::default();
    (0..4).for_each(|offset| offsets.push(offset));
    Manifest::new(setting, vec![Step::new(0, 2.0, 2 * SECOND, 1)], BTreeMap::from([(0, offsets)]), vec![(0, 4)])
}
