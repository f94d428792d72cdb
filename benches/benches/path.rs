//! From bytes to verdict: decode and normalize JSON, write and read canonical batches, decide.
//!
//! Each bench says how many readings one iteration holds, so criterion prints readings per second of one core, and prints
//! a hash of its result once: a faster bench with another hash has measured something else.

use std::hint::black_box;

use arrow_array::RecordBatch;
use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use wardbell_benches::{batches, json};
use wardbell_connectors::canonical::{self, Canonical, readings_record};
use wardbell_connectors::decode::Decoder;
use wardbell_connectors::decode::json::JsonDecoder;
use wardbell_connectors::log::Record;
use wardbell_core::normalize::profile::Profile;
use wardbell_core::normalize::{Normalized, Source, normalize};
use wardbell_core::partition::{Partition, Settings};
use wardbell_core::window::{self, Needs, Question, Reading, Running, Samples, WindowPlan};
use wardbell_rules::ir::Function;
use wardbell_rules::{RuleSet, SourceFile, compile, compile_all, packs};
use wardbell_schemas::SECOND;
use wardbell_schemas::alert::hash_contents;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::reading::{Comparator, ReadingBatchBuilder};

/// The binary's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Series in work at once: a hospital's partition.
const SERIES: usize = 4_000;
const SECONDS: usize = 25;
/// Rows of a canonical batch.
const ROWS: usize = 500;

/// Ten rules of the starter pack; the pack may grow, what is measured stays.
const RULES: [&str; 10] = [
    "etco2-out-of-range",
    "heart-rate-high",
    "heart-rate-low",
    "nibp-sys-low",
    "resp-rate-high",
    "resp-rate-low",
    "shock-index",
    "spo2-low",
    "spo2-very-low",
    "temp-core-high",
];

fn rules() -> RuleSet {
    let (mut rules, faults) = compile_all(&packs::adult_ward(), Catalogue::builtin());
    assert!(faults.is_empty(), "{faults:?}");
    rules.retain(|rule| RULES.contains(&rule.id.as_str()));
    assert_eq!(rules.len(), RULES.len(), "a rule of the bench is not in the pack any more");
    RuleSet::new(rules)
}

/// One rule, as a user writes it.
fn rule(raise: &str) -> RuleSet {
    let head = r#"const RULE = #{ id: "a", version: 1, owner: "o", priority: "high", hold: "5s", clear_hold: "10s" };"#;
    let file = SourceFile { path: "a.rhai".to_owned(), text: format!("{head}\n{raise}\n") };
    let (rule, faults) = compile(&file, Catalogue::builtin());
    RuleSet::new(vec![rule.unwrap_or_else(|| panic!("{faults:?}"))])
}

/// Measures deciding what comes after the first `n_warm_up` batches, in a partition that has decided those.
fn bench_partition(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    set: &RuleSet,
    batches: &[RecordBatch],
    n_warm_up: usize,
) {
    let (warm_up, measured) = batches.split_at(n_warm_up);
    let n: usize = measured.iter().map(|batch| batch.num_rows()).sum();
    let run = |partition: &mut Partition, batches: &[RecordBatch]| {
        for batch in batches {
            partition.apply(black_box(batch), 0).expect("a canonical batch");
        }
        partition.take_decided()
    };
    let warm = || {
        let mut partition = Partition::new(Settings::new("bench"), set, Catalogue::builtin());
        run(&mut partition, warm_up);
        partition
    };
    let decided = run(&mut warm(), measured);
    println!("{name}: {} transitions, {}", decided.len(), hash_contents(decided.iter().map(|d| &d.content)));
    group.throughput(Throughput::Elements(n as u64)).sample_size(10);
    group.bench_function(name, |bencher| {
        // What the partition holds is given back, so that dropping it is not timed.
        let measure = |mut partition: Partition| (run(&mut partition, measured), partition);
        bencher.iter_batched(warm, measure, BatchSize::PerIteration);
    });
}

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    let ward = batches(SERIES, 2 * SECONDS, ROWS);
    bench_partition(&mut group, "arrow_to_verdict_ten_rules_4000_series", &rules(), &ward, ward.len() / 2);
    let one = rule("fn raise(spo2) { spo2.last < 80 }");
    bench_partition(&mut group, "arrow_to_verdict_one_rule_4000_series", &one, &ward, ward.len() / 2);
    // The length of a window costs next to nothing: two hours of a small ward, of which the last ten minutes count.
    let ward = batches(40, 7_200, ROWS);
    for window in ["10s", "1h"] {
        let mean = rule(&format!("fn raise(spo2) {{ spo2.mean(\"{window}\") < 94 }}"));
        bench_partition(&mut group, &format!("mean_{window}_40_series"), &mean, &ward, ward.len() / 12 * 11);
    }
    group.finish();
}

fn normalize_json(criterion: &mut Criterion) {
    let (records, catalogue, profile) = (json(SERIES, 3), Catalogue::builtin(), Profile::default());
    let source = Source { topic: "bench", partition: 0, offset: 0, time_us: 0, append_us: None };
    let run = || {
        let mut builder = ReadingBatchBuilder::default();
        for record in &records {
            for decoded in JsonDecoder.decode(record.as_bytes()) {
                let reading = decoded.expect("the record is valid").reading().expect("it is no request");
                let Ok(Normalized::Reading(row)) = normalize(&reading, &source, catalogue, &profile) else {
                    panic!("the reading is valid");
                };
                builder.push(&row);
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

/// How the pace depends on the number of series.
fn curve(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("curve");
    for n_series in [4_000, 40_000, 400_000] {
        let ward = batches(n_series, 8, ROWS);
        bench_partition(&mut group, &format!("ten_rules_{n_series}_series"), &rules(), &ward, ward.len() / 2);
    }
    group.finish();
}

/// One function of one window, asked at each of many readings of one series.
fn windows(criterion: &mut Criterion) {
    const READINGS: i64 = 20_000;
    let mut group = criterion.benchmark_group("window");
    group.throughput(Throughput::Elements(READINGS as u64));
    for (name, function, length_us) in [
        ("mean_10s", Function::Mean, 10 * SECOND),
        ("mean_1h", Function::Mean, 3_600 * SECOND),
        ("max_10s", Function::Max, 10 * SECOND),
        ("max_1h", Function::Max, 3_600 * SECOND),
        ("median_1m", Function::Median, 60 * SECOND),
        ("slope_1m", Function::Slope, 60 * SECOND),
    ] {
        let plan = WindowPlan { length_us, class: 0, accept_questionable: false, needs: Needs::of(function) };
        let question =
            Question { function, window: Some(0), accept_questionable: false, max_age_us: None, per_unit: 10 };
        let run = || {
            let (mut samples, mut running, mut hash) = (Samples::default(), [Running::default()], 0_u64);
            for second in 0..READINGS {
                let (t, value) = (second * SECOND, Some(900 + second * second % 97));
                let comparator = Comparator::None;
                samples.accept(&Reading { t, value, questionable: false, cover_us: SECOND, comparator });
                while let Some(oldest) = samples.oldest().copied().filter(|oldest| oldest.t <= t - length_us) {
                    running[0].before_evict(samples.base(), &oldest, &plan);
                    samples.evict();
                }
                let plans = std::slice::from_ref(&plan);
                let answer = window::answer(&samples, &mut running, plans, black_box(&question), 0.0, t);
                hash = hash.rotate_left(5) ^ answer.map_or(1, f64::to_bits);
            }
            hash
        };
        println!("{name}: {:016x}", run());
        group.bench_function(name, |bencher| bencher.iter(run));
    }
    group.finish();
}

criterion_group!(path, decide, curve, windows, normalize_json, canonical_log);
criterion_main!(path);
