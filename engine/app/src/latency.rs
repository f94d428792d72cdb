//! Latency, measured where the user stands: from the reading's arrival at the broker to the sink's acknowledgment.
//!
//! One HdrHistogram per stage and priority. Data age (what device and network cost) and intentional delay (what a
//! clinician asked for) are kept apart from the engine's own latency; only that is held against the budget.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;
use serde::Serialize;
use wardbell_schemas::alert::Priority;
use wardbell_schemas::{Micros, SECOND};

/// Engine latency above this is a breach.
pub const BUDGET: Micros = 30 * SECOND;
/// Longest latency told apart, one hour; what is longer is recorded as this.
const LONGEST_US: u64 = 3_600_000_000;
/// 0.1 % resolution.
const SIGNIFICANT_DIGITS: u8 = 3;
/// Upper bounds of the buckets that monitoring gets; the budget is one of them.
pub const BUCKET_BOUNDS_MS: [u64; 15] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000];
/// Lines of a percentile distribution for each halving of the distance to 100 %; HdrHistogram's tools use 5.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// A stage of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Device clock to source append: not ours.
    DataAge,
    /// Source append to canonical append, per source record.
    Normalize,
    /// Canonical append to decided, per canonical record.
    Decide,
    /// Decided to committed, per alert.
    Commit,
    /// Append on the alerts topic to received by the sink's stage, per alert.
    Transport,
    /// Received to acknowledged by the sink, per alert.
    Deliver,
    /// Condition start to raise: asked for by a clinician.
    IntentionalDelay,
    /// Source append to acknowledged by the sink, per alert: the engine's latency.
    Total,
}

impl Stage {
    pub const ALL: [Stage; 8] = [
        Stage::DataAge,
        Stage::Normalize,
        Stage::Decide,
        Stage::Commit,
        Stage::Transport,
        Stage::Deliver,
        Stage::IntentionalDelay,
        Stage::Total,
    ];

    /// As in machine-readable forms and file names.
    pub fn name(self) -> &'static str {
        match self {
            Stage::DataAge => "data_age",
            Stage::Normalize => "normalize",
            Stage::Decide => "decide",
            Stage::Commit => "commit",
            Stage::Transport => "transport",
            Stage::Deliver => "deliver",
            Stage::IntentionalDelay => "intentional_delay",
            Stage::Total => "total",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Stage::ALL.into_iter().find(|stage| stage.name() == name)
    }

    pub fn describe(self) -> &'static str {
        match self {
            Stage::DataAge => "data age (device to source, not ours)",
            Stage::Normalize => "source append to canonical append",
            Stage::Decide => "canonical append to decided",
            Stage::Commit => "decided to committed",
            Stage::Transport => "alert append to received by sink stage",
            Stage::Deliver => "received to acknowledged by sink",
            Stage::IntentionalDelay => "intentional delay (holds, asked for)",
            Stage::Total => "ENGINE LATENCY source to acknowledged",
        }
    }
}

/// By stage and priority; stages before a decision have no priority.
type Histograms = BTreeMap<(Stage, Option<Priority>), Histogram<u64>>;

/// All histograms of one process; shared by its threads.
#[derive(Debug, Default)]
pub struct LatencyBook {
    histograms: Mutex<Histograms>,
    breaches: std::sync::atomic::AtomicU64,
}

/// One line of the report; times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Measurements of a stage in buckets.
#[derive(Debug, Clone, PartialEq)]
pub struct Buckets {
    /// One for each of [`BUCKET_BOUNDS_MS`] and one for what is above; not cumulative. A measurement counts at the upper
    /// end of what it cannot be told apart from, so the buckets never flatter.
    pub counts: [u64; BUCKET_BOUNDS_MS.len() + 1],
    pub count: u64,
    /// In seconds.
    pub sum_s: f64,
}

impl LatencyBook {
    fn lock(&self) -> MutexGuard<'_, Histograms> {
        self.histograms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records one measurement; clocks of two machines may differ, so what is below zero counts as zero.
    pub fn record(&self, stage: Stage, priority: Option<Priority>, latency_us: Micros) {
        self.record_n(stage, priority, latency_us, 1);
    }

    pub fn record_n(&self, stage: Stage, priority: Option<Priority>, latency_us: Micros, count: u64) {
        of_key(&mut self.lock(), stage, priority).saturating_record_n(bounded(latency_us), count);
    }

    /// Records many measurements of a stage without priorities at once.
    pub fn record_all(&self, stage: Stage, latencies_us: impl IntoIterator<Item = Micros>) {
        let mut latencies_us = latencies_us.into_iter().peekable();
        if latencies_us.peek().is_none() {
            return;
        }
        let mut histograms = self.lock();
        let histogram = of_key(&mut histograms, stage, None);
        for latency_us in latencies_us {
            histogram.saturating_record(bounded(latency_us));
        }
    }

    /// Records the engine's latency of one delivered alert; whether it broke the budget.
    pub fn record_total(&self, priority: Priority, latency_us: Micros) -> bool {
        self.record(Stage::Total, Some(priority), latency_us);
        let breached = latency_us > BUDGET;
        if breached {
            self.breaches.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        breached
    }

    /// Alerts that reached a sink later than the budget.
    pub fn breaches(&self) -> u64 {
        self.breaches.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Percentiles of a stage, over all priorities or one.
    pub fn percentiles(&self, stage: Stage, priority: Option<Priority>) -> Option<Percentiles> {
        self.merged(stage, priority).map(|histogram| {
            let ms = |us: u64| us as f64 / 1_000.0;
            Percentiles {
                count: histogram.len(),
                p50: ms(histogram.value_at_quantile(0.5)),
                p90: ms(histogram.value_at_quantile(0.9)),
                p99: ms(histogram.value_at_quantile(0.99)),
                p999: ms(histogram.value_at_quantile(0.999)),
                max: ms(histogram.max()),
            }
        })
    }

    /// A stage's histogram, over all priorities or one.
    fn merged(&self, stage: Stage, priority: Option<Priority>) -> Option<Histogram<u64>> {
        let histograms = self.lock();
        let mut merged: Option<Histogram<u64>> = None;
        for ((known, of), histogram) in histograms.iter() {
            if *known != stage || (priority.is_some() && *of != priority) {
                continue;
            }
            match &mut merged {
                None => merged = Some(histogram.clone()),
                Some(merged) => merged.add(histogram).expect("all histograms have the same bounds"),
            }
        }
        merged
    }

    /// A stage's measurements counted into buckets, over all priorities or one.
    pub fn buckets(&self, stage: Stage, priority: Option<Priority>) -> Option<Buckets> {
        let histogram = self.merged(stage, priority)?;
        let mut buckets = Buckets { counts: [0; BUCKET_BOUNDS_MS.len() + 1], count: histogram.len(), sum_s: 0.0 };
        for value in histogram.iter_recorded() {
            let us = value.value_iterated_to();
            let place = BUCKET_BOUNDS_MS.iter().position(|bound| us <= bound * 1_000).unwrap_or(BUCKET_BOUNDS_MS.len());
            buckets.counts[place] += value.count_at_value();
            buckets.sum_s += histogram.median_equivalent(us) as f64 / 1e6 * value.count_at_value() as f64;
        }
        Some(buckets)
    }

    /// The percentile distribution of a stage over all priorities, in the text form of HdrHistogram's tools (`.hgrm`);
    /// values in milliseconds. `None` if nothing was measured yet.
    pub fn percentile_distribution(&self, stage: Stage) -> Option<String> {
        let histogram = self.merged(stage, None)?;
        let ms = |us: u64| us as f64 / 1_000.0;
        let mut text =
            format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
        let mut total = 0;
        for value in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
            total += value.count_since_last_iteration();
            let quantile = value.quantile_iterated_to();
            let _ = write!(text, "{:>12.3} {quantile:>14.12} {total:>10}", ms(value.value_iterated_to()));
            if quantile < 1.0 {
                let _ = write!(text, " {:>14.2}", 1.0 / (1.0 - quantile));
            }
            text.push('\n');
        }
        let sub_buckets = (2 * 10_u64.pow(u32::from(SIGNIFICANT_DIGITS))).next_power_of_two();
        let _ = writeln!(
            text,
            "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n#[Max     = {:>12.3}, Total count    = {:>12}]\n#[Buckets = {:>12}, SubBuckets     = {sub_buckets:>12}]",
            histogram.mean() / 1_000.0,
            histogram.stdev() / 1_000.0,
            ms(histogram.max()),
            histogram.len(),
            histogram.buckets(),
        );
        Some(text)
    }

    /// All stages, for machines.
    pub fn report(&self) -> BTreeMap<Stage, Percentiles> {
        Stage::ALL.into_iter().filter_map(|stage| Some((stage, self.percentiles(stage, None)?))).collect()
    }

    /// All stages as a table for people, in milliseconds.
    pub fn table(&self) -> String {
        let mut table = format!(
            "{:<40} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
            "latency in ms", "count", "p50", "p90", "p99", "p99.9", "max"
        );
        let mut line = |name: &str, row: &Percentiles| {
            let _ = writeln!(
                table,
                "{name:<40} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
                row.count,
                print_ms(row.p50),
                print_ms(row.p90),
                print_ms(row.p99),
                print_ms(row.p999),
                print_ms(row.max)
            );
        };
        for stage in Stage::ALL {
            if let Some(row) = self.percentiles(stage, None) {
                line(stage.describe(), &row);
            }
        }
        for priority in Priority::ALL.into_iter().rev() {
            if let Some(row) = self.percentiles(Stage::Total, Some(priority)) {
                line(&format!("  of priority {}", priority.name()), &row);
            }
        }
        table
    }
}

fn of_key(histograms: &mut Histograms, stage: Stage, priority: Option<Priority>) -> &mut Histogram<u64> {
    histograms.entry((stage, priority)).or_insert_with(|| {
        Histogram::new_with_bounds(1, LONGEST_US, SIGNIFICANT_DIGITS).expect("the bounds are constants that fit")
    })
}

fn bounded(latency_us: Micros) -> u64 {
    u64::try_from(latency_us).unwrap_or(0).min(LONGEST_US)
}

fn print_ms(ms: f64) -> String {
    if ms >= 100.0 { format!("{ms:.0}") } else { format!("{ms:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_over_all_priorities_or_one_and_breaches_are_counted() {
        let book = LatencyBook::default();
        for ms in 1..=100 {
            book.record_total(Priority::High, ms * 1_000);
        }
        book.record_total(Priority::Low, BUDGET + 1);
        book.record(Stage::Normalize, None, -5);
        let high = book.percentiles(Stage::Total, Some(Priority::High)).expect("recorded");
        assert_eq!((high.count, high.p50.round(), high.max.round()), (100, 50.0, 100.0));
        assert_eq!(book.percentiles(Stage::Total, None).map(|all| all.count), Some(101));
        assert_eq!(book.breaches(), 1);
        assert_eq!(book.percentiles(Stage::Normalize, None).map(|row| row.max), Some(0.0));
        assert!(book.table().contains("ENGINE LATENCY"));
    }

    #[test]
    fn buckets_count_every_measurement_once_and_none_lower_than_it_was() {
        let book = LatencyBook::default();
        book.record_all(Stage::Normalize, [900, 1_000, 1_001, 29_990_000, 30_020_000, -1]);
        let buckets = book.buckets(Stage::Normalize, None).expect("recorded");
        assert_eq!((buckets.counts[0], buckets.counts[1]), (3, 1));
        assert_eq!(buckets.counts[BUCKET_BOUNDS_MS.len()], 1, "above the budget");
        assert_eq!((buckets.counts.iter().sum::<u64>(), buckets.count), (6, 6));
        assert!((buckets.sum_s - 60.013).abs() < 0.06, "{}", buckets.sum_s);
        assert_eq!(book.buckets(Stage::Total, None), None);
    }

    #[test]
    fn a_percentile_distribution_rises_to_all_of_what_was_measured() {
        let book = LatencyBook::default();
        for ms in 1..=1_000 {
            book.record_total(Priority::Medium, ms * 1_000);
        }
        let text = book.percentile_distribution(Stage::Total).expect("recorded");
        let (header, rest) = text.split_once("\n\n").expect("a header and an empty line");
        assert_eq!(
            header.split_whitespace().collect::<Vec<_>>(),
            ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
        );
        let rows: Vec<Vec<f64>> = rest
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|number| number.parse().expect("a number")).collect())
            .collect();
        assert!(rows.len() > 20, "{text}");
        assert!(rows.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] <= pair[1][1]), "{text}");
        let last = rows.last().expect("rows");
        assert_eq!((last.len(), last[1], last[2]), (3, 1.0, 1_000.0));
        assert!((last[0] - 1_000.0).abs() < 1.0, "{last:?}");
        assert!(rest.contains("Total count    =         1000"), "{rest}");
    }
}
