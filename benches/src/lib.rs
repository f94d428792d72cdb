//! Benches of the path from bytes to verdict live in `benches/path.rs`; this library holds what they work on: readings of
//! a made-up ward, the same in every run, as JSON and as canonical batches. Nothing here is used by the product.

use arrow_array::RecordBatch;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};

/// Signals each series set of a patient has.
const SIGNALS: [(&str, i64, &str); 4] =
    [("spo2", 960, "%"), ("heart_rate", 800, "/min"), ("resp_rate", 160, "/min"), ("pulse_rate", 800, "/min")];
/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;

/// A value that wanders about its signal's middle and now and then falls below the limits.
fn value(middle: i64, patient: usize, second: usize) -> i64 {
    let wave = ((second * 7 + patient * 13) % 41) as i64 - 20;
    let low = (second / 12 + patient).is_multiple_of(16);
    middle + wave - if low { middle / 5 } else { 0 }
}

/// Canonical batches of `seconds` seconds of `n_series` series at one reading a second, `rows` rows each.
///
/// # Panics
/// If the shipped catalogue lacks a signal named here.
pub fn batches(n_series: usize, seconds: usize, rows: usize) -> Vec<RecordBatch> {
    let catalogue = Catalogue::builtin();
    let patients: Vec<String> = (0..n_series.div_ceil(SIGNALS.len())).map(|i| format!("p{i}")).collect();
    let devices: Vec<String> = (0..patients.len()).map(|i| format!("monitor-{i}")).collect();
    let mut batches = Vec::new();
    let mut builder = ReadingBatchBuilder::default();
    let mut offset = 0;
    for second in 0..seconds {
        for series in 0..n_series {
            let (patient, (signal, middle, _)) = (series / SIGNALS.len(), SIGNALS[series % SIGNALS.len()]);
            let time = START_US + second as i64 * 1_000_000 + patient as i64;
            builder.push(&ReadingRow {
                patient: &patients[patient],
                device: &devices[patient],
                signal: catalogue.by_id(signal).expect("a signal of the catalogue").index,
                method: "-",
                value: Some(value(middle, patient, second)),
                quality: Quality::Ok,
                reason: Reason::None,
                event_time_us: time,
                source_time_us: time,
                append_time_us: Some(time),
                source_topic: "bench",
                source_partition: 0,
                source_offset: offset,
                source_index: 0,
                comparator: Comparator::None,
                change: Change::None,
                policies: Policies::NONE,
            });
            offset += 1;
            if builder.len() == rows {
                batches.push(builder.finish());
            }
        }
    }
    if !builder.is_empty() {
        batches.push(builder.finish());
    }
    batches
}

/// The same readings as canonical JSON, one reading a record.
pub fn json(n_series: usize, seconds: usize) -> Vec<String> {
    let mut records = Vec::new();
    for second in 0..seconds {
        for series in 0..n_series {
            let (patient, (signal, middle, unit)) = (series / SIGNALS.len(), SIGNALS[series % SIGNALS.len()]);
            let value = value(middle, patient, second);
            let (whole, tenth, ms) = (value / 10, value % 10, START_US / 1_000 + second as i64 * 1_000);
            records.push(format!(
                r#"{{"patient":"p{patient}","device":"monitor-{patient}","time":{ms},"signal":"{signal}","value":{whole}.{tenth},"unit":"{unit}"}}"#
            ));
        }
    }
    records
}
