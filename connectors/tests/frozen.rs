//! What earlier versions wrote to the canonical log is still read, and what is written today is still the same.

#[path = "../../schemas/samples/sample.rs"]
mod sample;

use arrow_array::RecordBatch;
use wardbell_connectors::canonical::{Canonical, control_record, normalized_with, normalizer, read, readings_record};
use wardbell_connectors::log::{Outgoing, Record};
use wardbell_schemas::alert::Priority;
use wardbell_schemas::catalogue::SignalIndex;
use wardbell_schemas::control::{Condition, Control, ControlRecord, TickClaim};
use wardbell_schemas::reading::{
    COLUMNS_OF_VERSION_1, Change, Comparator, Policies, Policy, Quality, ReadingBatchBuilder, ReadingColumns,
    ReadingRow, Reason, reading_schema_1,
};

/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;
/// Stands for the hash of the catalogue: a form does not depend on what the catalogue says.
const CATALOGUE: &str = "a catalogue";
const CATALOGUE_HEADER: (&str, &str) = ("catalogue", CATALOGUE);
/// The same for the normalizer set, which the first batches of version 2 did not name.
const NORMALIZER: &str = "a normalizer set";

/// As far as version 1 could say them.
fn plain_rows() -> [ReadingRow<'static>; 3] {
    let row = ReadingRow {
        patient: "p7",
        device: "mon-3",
        signal: SignalIndex(7),
        method: "-",
        value: Some(935),
        quality: Quality::Converted,
        reason: Reason::None,
        event_time_us: START_US,
        source_time_us: START_US + 200_000,
        append_time_us: Some(START_US + 200_000),
        source_topic: "devices",
        source_partition: 2,
        source_offset: 77,
        source_index: 0,
        comparator: Comparator::None,
        change: Change::None,
        policies: Policies::NONE,
    };
    let blank = ReadingRow {
        signal: SignalIndex(0),
        method: "ecg",
        value: None,
        quality: Quality::Missing,
        reason: Reason::Null,
        source_index: 1,
        ..row
    };
    let other = ReadingRow { patient: "p-ä", append_time_us: None, value: Some(-4), source_offset: 78, ..row };
    [row, blank, other]
}

/// With everything that version 2 can say.
fn rows() -> [ReadingRow<'static>; 3] {
    let [row, blank, other] = plain_rows();
    let mut policies = Policies::NONE;
    policies.insert(Policy::DecimalComma);
    policies.insert(Policy::BarometricPressure);
    [
        ReadingRow { comparator: Comparator::GreaterOrEqual, ..row },
        blank,
        ReadingRow { change: Change::Corrects, policies, ..other },
    ]
}

fn batch(rows: &[ReadingRow<'_>]) -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    rows.iter().for_each(|row| builder.push(row));
    builder.finish()
}

fn written(batch: &RecordBatch) -> Outgoing {
    readings_record("readings", 0, batch, CATALOGUE).expect("a canonical batch can be written")
}

fn record(headers: &[(&str, &str)], value: &[u8]) -> Record {
    let header = |(name, value): &(&str, &str)| ((*name).to_owned(), value.as_bytes().to_vec());
    Record {
        partition: 0,
        offset: 0,
        time_us: START_US,
        append_us: None,
        key: None,
        value: Some(value.to_vec()),
        headers: headers.iter().map(header).collect(),
    }
}

fn assert_read(headers: &[(&str, &str)], sample: &[u8], meant: &[ReadingRow<'_>]) {
    let (record, (_, version)) = (record(headers, sample), headers[0]);
    let Ok(Canonical::Readings(batch)) = read(&record, CATALOGUE) else { panic!("{version} cannot be read") };
    let columns = ReadingColumns::try_new(&batch).expect("the canonical schema");
    let rows: Vec<_> = (0..columns.len()).map(|i| columns.row(i).expect("its codes are known")).collect();
    assert_eq!(rows, meant, "{version}");
}

#[test]
fn frozen_readings_of_version_1_are_read_as_plain_readings() {
    let batch = batch(&plain_rows());
    let columns = batch.columns()[..COLUMNS_OF_VERSION_1].to_vec();
    let old = RecordBatch::try_new(reading_schema_1(), columns).expect("the columns of version 1");
    sample::assert_still_written("readings-1.hex", &written(&old).value.expect("a value"));
    assert_read(&[("wardbell", "readings/1"), CATALOGUE_HEADER], &sample::read("readings-1.hex"), &plain_rows());
}

#[test]
fn frozen_readings_of_version_2_are_read_and_written_as_they_were() {
    let outgoing = normalized_with(written(&batch(&rows())), NORMALIZER);
    let headers: Vec<(&str, &[u8])> =
        outgoing.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
    let expected: [(&str, &[u8]); 3] =
        [("wardbell", b"readings/2"), ("catalogue", CATALOGUE.as_bytes()), ("normalizer", NORMALIZER.as_bytes())];
    assert_eq!(headers, expected);
    sample::assert_still_written("readings-2.hex", &outgoing.value.expect("a value"));
    let frozen = sample::read("readings-2.hex");
    let (version, normalizer_header) = (("wardbell", "readings/2"), ("normalizer", NORMALIZER));
    assert_read(&[version, CATALOGUE_HEADER], &frozen, &rows());
    assert_read(&[version, CATALOGUE_HEADER, normalizer_header], &frozen, &rows());
    assert_eq!(normalizer(&record(&[version], &frozen)), b"");
    assert_eq!(normalizer(&record(&[version, normalizer_header], &frozen)), NORMALIZER.as_bytes());
}

#[test]
fn frozen_control_records_are_read_and_written_as_they_were() {
    let (patient, episode) = ("p7".to_owned(), "f7cfa883cd153d4b250df4fb53095931".to_owned());
    let claim = TickClaim { topic: "devices".to_owned(), partition: 0, end_offset: 12, time_us: START_US };
    let condition = Condition {
        rule: "technical/budget".to_owned(),
        key: "pager".to_owned(),
        priority: Priority::High,
        holds: true,
        at_us: START_US,
        detail: "alerts reach it late".to_owned(),
    };
    let limit = |value| Control::Limit { patient: patient.clone(), name: "low".to_owned(), value };
    let standby =
        |device: Option<&str>| Control::Standby { patient: patient.clone(), device: device.map(str::to_owned) };
    let (hash, by) =
        ("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned(), "RN Lee".to_owned());
    let meant = [
        ("", Control::Tick { claims: vec![claim] }),
        ("activate-1", Control::Activate { number: 1, hash }),
        ("c1", limit(Some(85.0))),
        ("c2", limit(None)),
        ("c3", Control::Attribute { patient: patient.clone(), name: "age".to_owned(), value: Some(67.5) }),
        ("c4", Control::Discharge { patient: patient.clone() }),
        ("c5", standby(None)),
        ("c6", standby(Some("mon-3"))),
        ("c7", Control::Acknowledge { episode: episode.clone(), by: by.clone() }),
        ("c8", Control::Reset { episode, by }),
        ("c9", Control::Condition(condition)),
    ];
    let meant = meant.map(|(id, control)| ControlRecord { id: id.to_owned(), control });
    let outgoing: Vec<Outgoing> = meant.iter().map(|meant| control_record("readings", 0, meant)).collect();
    let headers = vec![("wardbell".to_owned(), b"control/1".to_vec())];
    assert!(outgoing.iter().all(|record| record.headers == headers));
    let values: Vec<Vec<u8>> = outgoing.into_iter().filter_map(|record| record.value).collect();
    sample::assert_still_written("control-1.jsonl", &values.join(&b'\n'));
    let frozen = sample::read("control-1.jsonl");
    let read: Vec<ControlRecord> = frozen
        .split(|byte| *byte == b'\n')
        .map(|line| match read(&record(&[("wardbell", "control/1")], line), CATALOGUE) {
            Ok(Canonical::Control(control)) => control,
            other => panic!("{}: {other:?}", String::from_utf8_lossy(line)),
        })
        .collect();
    assert_eq!(read, meant);
}
