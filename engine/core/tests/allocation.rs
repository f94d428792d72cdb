//! Deciding quiet readings takes no memory from the system: what a series needs is there once it has been seen for a
//! while. Allocations per reading would be the first thing to make the engine's pace depend on its load.

use arrow_array::RecordBatch;
use wardbell_core::partition::{Partition, Settings};
use wardbell_rules::{RuleSet, compile_all, packs};
use wardbell_schemas::SECOND;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};

/// Signals with values that no rule of the starter pack minds.
const SIGNALS: [(&str, i64); 3] = [("spo2", 970), ("heart_rate", 720), ("resp_rate", 150)];
const PATIENTS: usize = 20;
/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600 * SECOND;

/// One reading a second of every series, each a source record of its own.
fn quiet_readings(seconds: std::ops::Range<i64>) -> RecordBatch {
    let catalogue = Catalogue::builtin();
    let patients: Vec<String> = (0..PATIENTS).map(|i| format!("p{i}")).collect();
    let mut builder = ReadingBatchBuilder::default();
    let mut offset = seconds.start * (PATIENTS * SIGNALS.len()) as i64;
    for second in seconds {
        for patient in &patients {
            for (signal, value) in SIGNALS {
                let time = START + second * SECOND;
                builder.push(&ReadingRow {
                    patient,
                    device: patient,
                    signal: catalogue.by_id(signal).expect("a signal of the catalogue").index,
                    method: "-",
                    value: Some(value + second % 3),
                    quality: Quality::Ok,
                    reason: Reason::None,
                    event_time_us: time,
                    source_time_us: time,
                    append_time_us: Some(time),
                    source_topic: "ward",
                    source_partition: 0,
                    source_offset: offset,
                    source_index: 0,
                    comparator: Comparator::None,
                    change: Change::None,
                    policies: Policies::NONE,
                });
                offset += 1;
            }
        }
    }
    builder.finish()
}

#[test]
fn quiet_readings_allocate_next_to_nothing() {
    let (rules, faults) = compile_all(&packs::adult_ward(), Catalogue::builtin());
    assert!(faults.is_empty(), "{faults:?}");
    let mut partition = Partition::new(Settings::new("test"), &RuleSet::new(rules), Catalogue::builtin());
    // Longer than the longest window of these signals and than repetitions are looked for.
    partition.apply(&quiet_readings(0..900), 0).expect("a canonical batch");
    let batch = quiet_readings(900..960);
    let allocated = allocation_counter::measure(|| partition.apply(&batch, 0).expect("a canonical batch"));
    assert_eq!(partition.take_decided(), [], "the readings are quiet");
    let n_allocations = allocated.count_total;
    assert!(
        n_allocations * 100 < batch.num_rows() as u64,
        "{n_allocations} allocations for {} readings",
        batch.num_rows()
    );
}
