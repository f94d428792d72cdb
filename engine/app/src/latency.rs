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

impl LatencyBook {
    fn lock(&self) -> MutexGuard<'_, Histograms> {
        self.histograms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records one measurement; clocks of two machines may differ, so what is below zero counts as zero.
    pub fn record(&self, stage: Stage, priority: Option<Priority>, latency_us: Micros) {
        self.record_n(stage, priority, latency_us, 1);
    }

    pub fn record_n(&self, stage: Stage, priority: Option<Priority>, latency_us: Micros, count: u64) {
        let value = u64::try_from(latency_us).unwrap_or(0).min(LONGEST_US);
        let mut histograms = self.lock();
        let histogram = histograms.entry((stage, priority)).or_insert_with(|| {
            Histogram::new_with_bounds(1, LONGEST_US, SIGNIFICANT_DIGITS).expect("the bounds are constants that fit")
        });
        histogram.saturating_record_n(value, count);
    }

    /// Records the engine's latency of one delivered alert and holds it against the budget.
    pub fn record_total(&self, priority: Priority, latency_us: Micros) {
        self.record(Stage::Total, Some(priority), latency_us);
        if latency_us > BUDGET {
            self.breaches.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Alerts that reached a sink later than the budget.
    pub fn breaches(&self) -> u64 {
        self.breaches.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Percentiles of a stage, over all priorities or one.
    pub fn percentiles(&self, stage: Stage, priority: Option<Priority>) -> Option<Percentiles> {
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
        merged.map(|histogram| {
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
}
