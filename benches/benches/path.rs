//! From bytes to verdict: decode and normalize JSON, write and read canonical batches, decide.
//!
//! Each bench says how many readings one iteration holds, so criterion prints readings per second of one core, and prints
//! a hash of its result once: a faster bench with another hash has measured something else.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use wardbell_benches::{batches, json};
use wardbell_connectors::canonical::{self, Canonical, readings_record};
use wardbell_connectors::decode::Decoder;
use wardbell_connectors::decode::json::JsonDecoder;
use wardbell_connectors::log::Record;
use wardbell_core::normalize::{Source, normalize};
use wardbell_core::partition::{Partition, Settings};
use wardbell_rules::{RuleSet, compile_all, packs};
use wardbell_schemas::alert::hash_contents;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::reading::ReadingBatchBuilder;

/// Series in work at once: a hospital's partition.
const SERIES: usize = 4_000;
const SECONDS: usize = 25;
/// Rows of a canonical batch.
const ROWS: usize = 500;

fn rules() -> RuleSet {
    let (rules, faults) = compile_all(&packs::adult_ward(), Catalogue::builtin());
    assert!(faults.is_empty(), "{faults:?}");
    RuleSet::new(rules)
}

fn decide(criterion: &mut Criterion) {
    let (set, batches) = (rules(), batches(SERIES, 2 * SECONDS, ROWS));
    let (warm_up, measured) = batches.split_at(batches.len() / 2);
    let n: usize = measured.iter().map(|batch| batch.num_rows()).sum();
    let run = |partition: &mut Partition, batches: &[arrow_array::RecordBatch]| {
        for batch in batches {
            partition.apply(black_box(batch), 0).expect("a canonical batch");
        }
        partition.take_decided()
    };
    let warm = || {
        let mut partition = Partition::new(Settings::new("bench"), &set, Catalogue::builtin());
        run(&mut partition, warm_up);
        partition
    };
    let decided = run(&mut warm(), measured);
    assert!(!decided.is_empty(), "a bench without a transition measures half of the work");
    println!("decide: {} transitions, {}", decided.len(), hash_contents(decided.iter().map(|d| &d.content)));
    let mut group = criterion.benchmark_group("decide");
    group.throughput(Throughput::Elements(n as u64)).sample_size(10);
    group.bench_function("arrow_to_verdict_ten_rules_4000_series", |bencher| {
        bencher.iter_batched(warm, |mut partition| run(&mut partition, measured), BatchSize::PerIteration);
    });
    group.finish();
}

fn normalize_json(criterion: &mut Criterion) {
    let (records, catalogue) = (json(SERIES, 3), Catalogue::builtin());
    let source = Source { topic: "bench", partition: 0, offset: 0, time_us: 0, append_us: None };
    let run = || {
        let mut builder = ReadingBatchBuilder::default();
        for record in &records {
            for decoded in JsonDecoder.decode(record.as_bytes()) {
                let decoded = decoded.expect("the record is valid");
                builder.push(&normalize(&decoded, &source, catalogue).expect("the reading is valid"));
            }
        }
        builder.finish()
    };
    println!("normalize: {} rows", run().num_rows());
    let mut group = criterion.benchmark_group("normalize");
    group.throughput(Throughput::Elements(records.len() as u64)).sample_size(10);
    group.bench_function("json_to_canonical_rows", |bencher| bencher.iter(|| black_box(run())));
    group.finish();
}

fn canonical_log(criterion: &mut Criterion) {
    let (batches, hash) = (batches(SERIES, 1, ROWS), &Catalogue::builtin().hash);
    let batch = &batches[0];
    let write = || readings_record("bench", 0, batch, hash).expect("a canonical batch");
    let written = write();
    let record = Record {
        partition: 0,
        offset: 0,
        time_us: 0,
        append_us: None,
        key: None,
        value: written.value,
        headers: written.headers,
    };
    let read = || match canonical::read(&record, hash) {
        Ok(Canonical::Readings(batch)) => batch,
        other => panic!("{other:?}"),
    };
    assert_eq!(read(), *batch);
    let mut group = criterion.benchmark_group("canonical");
    group.throughput(Throughput::Elements(batch.num_rows() as u64)).sample_size(20);
    group.bench_function("write_batch_of_500", |bencher| bencher.iter(|| black_box(write())));
    group.bench_function("read_batch_of_500", |bencher| bencher.iter(|| black_box(read())));
    group.finish();
}

criterion_group!(path, decide, normalize_json, canonical_log);
criterion_main!(path);
