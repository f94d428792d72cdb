//! The stopwatch: alerts as a read-committed reader sees them, while they come.
//!
//! Two times are taken of each. *From append*: from the append of the record that decided to the moment the reader has
//! the alert; what the engine and the broker cost. *From schedule*: from the moment the reading that decided was due, or
//! the hold that ended was over; what somebody at the bedside waits, a sender that lags included. Append times are the
//! broker's, in whole milliseconds, and "now" is this machine's: run it where the broker's clock is.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;
use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::{Isolation, Log, PartitionReader, Record, Remedy, TopicPartition};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Alert, AlertData, Content, Kind};

use crate::failover::SeenAlert;
use crate::ward;

/// Records taken from one partition before the clock is read again: their own handling must not become their latency.
const READ_MAX: usize = 32;
/// Between two rounds over all partitions without a record: small beside the latencies measured.
const IDLE_PAUSE: Duration = Duration::from_micros(500);
/// An hour. Longer ones count as an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;
const LATENCY_DIGITS: u8 = 3;
/// Lines per halving of the distance to 100 % in a distribution file, as other HdrHistogram tools do.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
const DISTRIBUTION_HEADER: &str = "       Value     Percentile TotalCount 1/(1-Percentile)";

/// Reads all partitions of a topic from where it ended at the beginning.
pub struct Tail {
    readers: Vec<Box<dyn PartitionReader>>,
}

impl Tail {
    /// # Errors
    /// If the topic is not there or cannot be read.
    pub fn at_end(log: &dyn Log, topic: &str) -> Result<Self> {
        let (n_partitions, _) = log.describe(topic)?;
        let mut readers = Vec::new();
        for partition in 0..n_partitions {
            let step = || format!("reading topic `{topic}`, partition {partition}");
            let (_, end_offset) = log.offsets(topic, partition).with_context(step)?;
            let from = TopicPartition::new(topic, partition);
            readers.push(log.reader(&from, end_offset, Isolation::ReadCommitted).with_context(step)?);
        }
        Ok(Self { readers })
    }

    /// Reads until `stop` is set and nothing more is there; each record is taken with the time at which it was there. Gives
    /// why partitions could not be read to the end.
    pub fn run(mut self, clock: &dyn Clock, stop: &AtomicBool, mut take: impl FnMut(&Record, Micros)) -> Vec<String> {
        let mut faults = Vec::new();
        let mut records = Vec::new();
        loop {
            let is_stopping = stop.load(Ordering::Relaxed);
            let mut is_idle = true;
            self.readers.retain_mut(|reader| {
                records.clear();
                let result = reader.read(READ_MAX, Duration::ZERO, &mut records);
                let now_us = clock.now_us();
                is_idle &= records.is_empty();
                for record in &records {
                    take(record, now_us);
                }
                match result {
                    Err(error) if error.remedy != Remedy::Retry => {
                        faults.push(error.to_string());
                        false
                    }
                    _ => true,
                }
            });
            if is_idle && is_stopping {
                return faults;
            }
            if is_idle {
                thread::sleep(IDLE_PAUSE);
            }
        }
    }
}

/// The end of an alerts topic.
///
/// # Errors
/// If the topic is not there or cannot be read.
pub fn tail_of_alerts(log: &dyn Log, topic: &str) -> Result<Tail> {
    Tail::at_end(log, topic).with_context(|| {
        format!("looking for alerts topic `{topic}` (`wardbell run` makes it: start that first, or see --alerts-topic)")
    })
}

/// Tallies alerts until `stop` is set and nothing more is there.
pub fn watch_alerts(tail: Tail, clock: &dyn Clock, stop: &AtomicBool, tally: &Mutex<AlertTally>) {
    let faults = tail.run(clock, stop, |record, now_us| lock(tally).take(record, now_us));
    lock(tally).faults.extend(faults);
}

/// A tally is whole after every record, also if a thread that held it panicked.
pub fn lock(tally: &Mutex<AlertTally>) -> MutexGuard<'_, AlertTally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When an alert would be there if nothing took time: when the reading that decided was due, or when the timer was.
pub fn scheduled_us(content: &Content) -> Option<Micros> {
    if content.by_timer { Some(content.at) } else { content.event_time }
}

/// Latencies of alerts decided by a reading, and of those decided by a timer.
#[derive(Debug, Clone)]
pub struct Histograms {
    pub by_reading: Histogram<u64>,
    pub by_timer: Histogram<u64>,
}

/// # Errors
/// None: the bounds are sound.
pub fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS).context("making a histogram from 1 µs to 1 h")
}

impl Histograms {
    pub fn try_new() -> Result<Self> {
        Ok(Self { by_reading: histogram()?, by_timer: histogram()? })
    }

    pub fn record(&mut self, by_timer: bool, latency_us: u64) {
        let histogram = if by_timer { &mut self.by_timer } else { &mut self.by_reading };
        histogram.saturating_record(latency_us);
    }

    /// Writes the distribution of alerts decided by a reading to `path`, of those decided by a timer beside it
    /// (`latency.hgrm` and `latency.timer.hgrm`), in the text form HdrHistogram's plotter reads; values in ms.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_distributions(&self, path: &Path) -> Result<()> {
        for (path, histogram) in [(path.to_owned(), &self.by_reading), (timer_path(path), &self.by_timer)] {
            fs::write(&path, distribution(histogram))
                .with_context(|| format!("writing the latency distribution to `{}`", path.display()))?;
        }
        Ok(())
    }
}

/// What came back.
#[derive(Debug)]
pub struct AlertTally {
    /// Alerts, each id once.
    pub alerts: u64,
    pub by_rule: BTreeMap<String, BTreeMap<&'static str, u64>>,
    ids: HashSet<String>,
    pub duplicates: u64,
    /// Records that are no alerts of this version.
    pub unreadable: u64,
    /// Alerts that name no record to measure from.
    pub without_basis: u64,
    /// Alerts read "before" their record was appended: two clocks that differ. They count as zero.
    pub before_append: u64,
    pub from_append: Histograms,
    /// Of alerts about our patients that were due while something was sent.
    pub from_schedule: Histograms,
    /// The same, of the step under way.
    step: Histogram<u64>,
    /// When something is sent in it, µs since 1970 UTC.
    step_time: Range<Micros>,
    /// Partitions that could not be read to the end, and a file that could not be written.
    pub faults: Vec<String>,
    /// Takes a line for each alert.
    file: Option<File>,
}

impl AlertTally {
    pub fn try_new() -> Result<Self> {
        Ok(Self {
            alerts: 0,
            by_rule: BTreeMap::new(),
            ids: HashSet::new(),
            duplicates: 0,
            unreadable: 0,
            without_basis: 0,
            before_append: 0,
            from_append: Histograms::try_new()?,
            from_schedule: Histograms::try_new()?,
            step: histogram()?,
            step_time: 0..0,
            faults: Vec::new(),
            file: None,
        })
    }

    /// From now on a line about each alert is written to `path` when it comes, for `failover`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn write_to(&mut self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("making `{}` for alerts", path.display()))?;
        self.file = Some(file);
        Ok(())
    }

    /// Alerts due within `time` are those of the step from now on. Timers that end outside of it wait for a tick, which is
    /// not what load does to them.
    pub fn begin_step(&mut self, time: Range<Micros>) {
        self.step.reset();
        self.step_time = time;
    }

    /// Latencies from schedule of the step's alerts so far.
    pub fn step(&self) -> Latency {
        Latency::new(&self.step)
    }

    fn take(&mut self, record: &Record, now_us: Micros) {
        let alert = record.value.as_deref().and_then(|value| serde_json::from_slice::<Alert>(value).ok());
        let Some(alert) = alert else {
            self.unreadable += 1;
            return;
        };
        if alert.is_canary() {
            return;
        }
        if self.ids.contains(&alert.id) {
            self.duplicates += 1;
            return;
        }
        self.write(record.partition, &alert, now_us);
        self.ids.insert(alert.id);
        let AlertData { content, measured } = alert.data;
        self.alerts += 1;
        self.take_schedule(&content, now_us);
        let by_timer = content.by_timer;
        *self.by_rule.entry(content.rule.id).or_default().entry(content.transition.name()).or_default() += 1;
        if measured.basis_us <= 0 {
            self.without_basis += 1;
            return;
        }
        let latency_us = u64::try_from(now_us - measured.basis_us).unwrap_or_else(|_| {
            self.before_append += 1;
            0
        });
        self.from_append.record(by_timer, latency_us);
    }

    fn write(&mut self, partition: i32, alert: &Alert, now_us: Micros) {
        let Some(file) = &mut self.file else {
            return;
        };
        let seen = SeenAlert::new(partition, alert, now_us);
        let written = serde_json::to_vec(&seen).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            file.write_all(&line)
        });
        if let Err(error) = written {
            self.faults.push(format!("writing a line for an alert: {error}; no more are written"));
            self.file = None;
        }
    }

    fn take_schedule(&mut self, content: &Content, now_us: Micros) {
        let is_ours = content.kind == Kind::Physiological && ward::is_ours(&content.patient);
        let due = scheduled_us(content).filter(|due_us| is_ours && self.step_time.contains(due_us));
        if let Some(due_us) = due {
            let latency_us = u64::try_from(now_us - due_us).unwrap_or(0);
            self.from_schedule.record(content.by_timer, latency_us);
            self.step.saturating_record(latency_us);
        }
    }
}

/// All in ms; zeros if nothing was counted.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Latency {
    pub fn new(histogram: &Histogram<u64>) -> Self {
        let quantile = |quantile: f64| ms(histogram.value_at_quantile(quantile));
        Self {
            count: histogram.len(),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p99_9: quantile(0.999),
            max: ms(histogram.max()),
        }
    }

    pub fn quantiles(&self) -> [f64; 5] {
        [self.p50, self.p90, self.p99, self.p99_9, self.max]
    }
}

/// Both kinds of alerts.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latencies {
    pub by_reading: Latency,
    pub by_timer: Latency,
}

impl Latencies {
    pub fn new(histograms: &Histograms) -> Self {
        Self { by_reading: Latency::new(&histograms.by_reading), by_timer: Latency::new(&histograms.by_timer) }
    }
}

fn timer_path(path: &Path) -> PathBuf {
    let extension = path.extension().map_or_else(String::new, |extension| format!(".{}", extension.to_string_lossy()));
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}.timer{extension}"))
}

/// A histogram of µs as HdrHistogram prints percentile distributions, in ms.
fn distribution(histogram: &Histogram<u64>) -> String {
    let mut lines = vec![DISTRIBUTION_HEADER.to_owned(), String::new()];
    let mut n_below = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        n_below += step.count_since_last_iteration();
        let (value_ms, quantile) = (ms(step.value_iterated_to()), step.quantile_iterated_to());
        let inverse = if quantile < 1.0 { format!(" {:>14.2}", 1.0 / (1.0 - quantile)) } else { String::new() };
        lines.push(format!("{value_ms:>12.3} {quantile:>14.12} {n_below:>10}{inverse}"));
    }
    let (mean, deviation) = (histogram.mean() / 1_000.0, histogram.stdev() / 1_000.0);
    lines.push(format!("#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]"));
    lines.push(format!("#[Max     = {:>12.3}, Total count    = {:>12}]", ms(histogram.max()), histogram.len()));
    lines.push(String::new());
    lines.join("\n")
}

fn ms(us: u64) -> f64 {
    us as f64 / 1_000.0
}
#[cfg(test)]
mod tests {
    use wardbell_schemas::alert::{Measured, TransitionKind};

    use super::*;
    use crate::sample::{BASIS_US, alert, content, record};

    fn at(basis_us: Micros) -> Measured {
        Measured { basis_us, ..Measured::default() }
    }

    fn tally(records: &[(Record, Micros)]) -> AlertTally {
        let mut tally = AlertTally::try_new().unwrap();
        tally.begin_step(BASIS_US - 1_000..BASIS_US + 1_000);
        for (record, now_us) in records {
            tally.take(record, *now_us);
        }
        tally
    }

    #[test]
    fn each_alert_is_counted_once_and_timed_from_its_basis() {
        let raised = alert(content("e", 0, TransitionKind::Raised), at(BASIS_US));
        let by_timer = Content { by_timer: true, ..content("e", 1, TransitionKind::Cleared) };
        let tally = tally(&[
            (raised.clone(), BASIS_US + 20_000),
            (alert(by_timer, at(BASIS_US)), BASIS_US + 90_000),
            (raised, BASIS_US + 40_000),
            (alert(content("f", 0, TransitionKind::Raised), at(0)), BASIS_US),
            (alert(content("g", 0, TransitionKind::Raised), at(BASIS_US)), BASIS_US - 1),
            (record(b"{}".to_vec()), BASIS_US),
        ]);
        assert_eq!((tally.alerts, tally.duplicates, tally.unreadable), (4, 1, 1));
        assert_eq!((tally.without_basis, tally.before_append), (1, 1));
        assert_eq!(tally.by_rule["spo2-low"], BTreeMap::from([("cleared", 1), ("raised", 3)]));
        let latencies = Latencies::new(&tally.from_append);
        assert_eq!((latencies.by_reading.count, latencies.by_timer.count), (2, 1));
        assert!((latencies.by_reading.max - 20.0).abs() < 0.1, "{latencies:?}");
        assert!((latencies.by_timer.p50 - 90.0).abs() < 0.1, "{latencies:?}");
    }

    #[test]
    fn the_schedule_counts_what_was_due_while_something_was_sent() {
        let raised = |episode: &str| content(episode, 0, TransitionKind::Raised);
        // Appended late, since its sender lagged: late all the same.
        let reading = Content { event_time: Some(BASIS_US - 500), ..raised("a") };
        let timer = Content { at: BASIS_US + 500, by_timer: true, ..raised("b") };
        let past_the_end = Content { at: BASIS_US + 2_000, by_timer: true, ..raised("c") };
        let somebody_else = Content { patient: "p7".to_owned(), ..raised("d") };
        let technical = Content { kind: Kind::Technical, ..raised("e") };
        let records: Vec<(Record, Micros)> = [reading, timer, past_the_end, somebody_else, technical]
            .map(|content| (alert(content, at(BASIS_US + 30_000)), BASIS_US + 40_500))
            .into();
        let mut tally = tally(&records);
        let latencies = Latencies::new(&tally.from_schedule);
        assert_eq!((latencies.by_reading.count, latencies.by_timer.count), (1, 1));
        assert!((latencies.by_reading.max - 41.0).abs() < 0.1, "{latencies:?}");
        assert!((latencies.by_timer.max - 40.0).abs() < 0.1, "{latencies:?}");
        assert_eq!(tally.step().count, 2);
        tally.begin_step(0..0);
        assert_eq!((tally.step().count, tally.from_schedule.by_reading.len()), (0, 1));
    }

    #[test]
    fn a_distribution_ends_with_everything_at_its_largest_value() {
        let mut histogram = histogram().unwrap();
        for us in [1_000, 2_000, 3_000, 4_000] {
            histogram.saturating_record(us);
        }
        let text = distribution(&histogram);
        let last = text.lines().rfind(|line| !line.is_empty() && !line.starts_with('#')).unwrap();
        let cells: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(cells[1..], ["1.000000000000", "4"]);
        assert_eq!(timer_path(Path::new("out/latency.hgrm")), Path::new("out/latency.timer.hgrm"));
        assert_eq!(timer_path(Path::new("latency")), Path::new("latency.timer"));
    }
}
