//! The stopwatch: alerts as a read-committed reader sees them, and what a load run comes to.
//!
//! Latency is from the append of the record that decided to the moment a read-committed reader has the alert. Alerts
//! decided by a reading and by a timer are kept apart, for a timer's record is a tick. Append times are the broker's,
//! in whole milliseconds, and "now" is this machine's: run it where the broker's clock is, and take off up to 1 ms.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use indicatif::HumanCount;
use serde::Serialize;
use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::{Isolation, Log, PartitionReader, Record, Remedy, TopicPartition};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Alert, AlertData};

use crate::source::SendCounts;

/// Alerts taken from one partition before the clock is read again: their own handling must not become their latency.
const READ_MAX: usize = 32;
/// Between two rounds over all partitions without an alert: small beside the latencies measured.
const IDLE_PAUSE: Duration = Duration::from_micros(500);
/// An hour. Longer ones count as an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;
const LATENCY_DIGITS: u8 = 3;
/// Lines per halving of the distance to 100 % in a distribution file, as other HdrHistogram tools do.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
const DISTRIBUTION_HEADER: &str = "       Value     Percentile TotalCount 1/(1-Percentile)";

/// Reads an alerts topic from where it ended at the beginning.
pub struct AlertWatch {
    readers: Vec<Box<dyn PartitionReader>>,
}

impl AlertWatch {
    /// # Errors
    /// If the topic is not there or cannot be read.
    pub fn begin(log: &dyn Log, topic: &str) -> Result<Self> {
        let (n_partitions, _) = log.describe(topic).with_context(|| {
            format!(
                "looking for alerts topic `{topic}` (`wardbell run` makes it: start that first, or see --alerts-topic)"
            )
        })?;
        let mut readers = Vec::new();
        for partition in 0..n_partitions {
            let step = || format!("reading alerts topic `{topic}`, partition {partition}");
            let (_, end_offset) = log.offsets(topic, partition).with_context(step)?;
            let from = TopicPartition::new(topic, partition);
            readers.push(log.reader(&from, end_offset, Isolation::ReadCommitted).with_context(step)?);
        }
        Ok(Self { readers })
    }

    /// Reads until `stop` is set and nothing more is there. `seen` is the number of alerts so far.
    ///
    /// # Errors
    /// None that come from the broker: those are part of the tally.
    pub fn run(mut self, clock: &dyn Clock, stop: &AtomicBool, seen: &AtomicU64) -> Result<AlertTally> {
        let mut tally = AlertTally::try_new()?;
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
                    tally.take(record, now_us);
                }
                match result {
                    Err(error) if error.remedy != Remedy::Retry => {
                        tally.faults.push(error.to_string());
                        false
                    }
                    _ => true,
                }
            });
            seen.store(tally.alerts, Ordering::Relaxed);
            if is_idle && is_stopping {
                return Ok(tally);
            }
            if is_idle {
                thread::sleep(IDLE_PAUSE);
            }
        }
    }
}

/// What came back.
#[derive(Debug)]
pub struct AlertTally {
    /// Alerts, each id once.
    alerts: u64,
    by_rule: BTreeMap<String, BTreeMap<&'static str, u64>>,
    ids: HashSet<String>,
    duplicates: u64,
    /// Records that are no alerts of this version.
    unreadable: u64,
    /// Alerts that name no record to measure from.
    without_basis: u64,
    /// Alerts read "before" their record was appended: two clocks that differ. They count as zero.
    before_append: u64,
    by_reading: Histogram<u64>,
    by_timer: Histogram<u64>,
    /// Partitions that could not be read to the end.
    faults: Vec<String>,
}

impl AlertTally {
    fn try_new() -> Result<Self> {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS).context("making a histogram from 1 µs to 1 h")
        };
        Ok(Self {
            alerts: 0,
            by_rule: BTreeMap::new(),
            ids: HashSet::new(),
            duplicates: 0,
            unreadable: 0,
            without_basis: 0,
            before_append: 0,
            by_reading: histogram()?,
            by_timer: histogram()?,
            faults: Vec::new(),
        })
    }

    fn take(&mut self, record: &Record, now_us: Micros) {
        let alert = record.value.as_deref().and_then(|value| serde_json::from_slice::<Alert>(value).ok());
        let Some(alert) = alert else {
            self.unreadable += 1;
            return;
        };
        if !self.ids.insert(alert.id) {
            self.duplicates += 1;
            return;
        }
        let AlertData { content, measured } = alert.data;
        self.alerts += 1;
        *self.by_rule.entry(content.rule.id).or_default().entry(content.transition.name()).or_default() += 1;
        if measured.basis_us <= 0 {
            self.without_basis += 1;
            return;
        }
        let latency_us = u64::try_from(now_us - measured.basis_us).unwrap_or_else(|_| {
            self.before_append += 1;
            0
        });
        let histogram = if content.by_timer { &mut self.by_timer } else { &mut self.by_reading };
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

/// What was sent, by the one who sent it.
#[derive(Debug)]
pub struct Sent {
    pub records_planned: u64,
    pub counts: SendCounts,
    /// Readings per second that were asked for.
    pub rate_planned: f64,
    /// From the first record to the last acknowledgment.
    pub seconds: f64,
    /// How far sending was behind its schedule at the worst.
    pub lag_max: Duration,
    pub fault: Option<String>,
}

/// A load run in numbers.
#[derive(Debug, Serialize)]
pub struct LoadReport {
    #[serde(rename = "type")]
    kind: &'static str,
    records_planned: u64,
    #[serde(flatten)]
    counts: SendCounts,
    seconds: f64,
    rate_planned: f64,
    /// Readings acknowledged per second.
    rate_achieved: f64,
    lag_ms_max: f64,
    alerts: u64,
    /// Rule id, transition, count.
    alerts_by_rule: BTreeMap<String, BTreeMap<&'static str, u64>>,
    alert_ids_twice: u64,
    alerts_unreadable: u64,
    alerts_without_basis: u64,
    alerts_before_append: u64,
    /// From source append to a read-committed reader.
    latency_ms: Latencies,
    faults: Vec<String>,
    pub ok: bool,
}

#[derive(Debug, Serialize)]
struct Latencies {
    by_reading: Latency,
    by_timer: Latency,
}

/// All in ms; zeros if nothing was counted.
#[derive(Debug, Serialize)]
struct Latency {
    count: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    max: f64,
}

impl Latency {
    fn new(histogram: &Histogram<u64>) -> Self {
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
}

impl LoadReport {
    pub fn new(sent: Sent, tally: AlertTally) -> Self {
        let counts = sent.counts;
        let all_sent = counts.records_sent == sent.records_planned && counts.is_all_acknowledged();
        let faults: Vec<String> = sent.fault.into_iter().chain(tally.faults).collect();
        Self {
            kind: "load",
            records_planned: sent.records_planned,
            counts,
            seconds: sent.seconds,
            rate_planned: sent.rate_planned,
            rate_achieved: counts.readings_acknowledged as f64 / sent.seconds.max(f64::MIN_POSITIVE),
            lag_ms_max: sent.lag_max.as_secs_f64() * 1_000.0,
            alerts: tally.alerts,
            alerts_by_rule: tally.by_rule,
            alert_ids_twice: tally.duplicates,
            alerts_unreadable: tally.unreadable,
            alerts_without_basis: tally.without_basis,
            alerts_before_append: tally.before_append,
            latency_ms: Latencies {
                by_reading: Latency::new(&tally.by_reading),
                by_timer: Latency::new(&tally.by_timer),
            },
            ok: all_sent && tally.duplicates == 0 && tally.unreadable == 0 && faults.is_empty(),
            faults,
        }
    }

    fn write_sending(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(f, "sending")?;
        for (name, readings, records) in [
            ("sent", counts.readings_sent, counts.records_sent),
            ("acknowledged", counts.readings_acknowledged, counts.records_acknowledged),
            ("failed", counts.readings_failed, counts.records_failed),
        ] {
            let (readings, records) = (HumanCount(readings).to_string(), HumanCount(records).to_string());
            writeln!(f, "  {name:<16}{readings:>14} readings {records:>14} records")?;
        }
        let n_missing = self.records_planned - counts.records_sent;
        if n_missing > 0 {
            writeln!(f, "  not sent any more: {} records of the schedule", HumanCount(n_missing))?;
        }
        let (achieved, planned) = (self.rate_achieved, self.rate_planned);
        writeln!(
            f,
            "  rate            {achieved:>14.0} readings/s of {planned:.0} planned, over {:.1} s",
            self.seconds
        )?;
        writeln!(f, "  largest lag     {:>14.1} ms behind the schedule", self.lag_ms_max)
    }

    fn write_alerts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "alerts: {}", HumanCount(self.alerts))?;
        for (rule, transitions) in &self.alerts_by_rule {
            for (transition, count) in transitions {
                let count = HumanCount(*count).to_string();
                writeln!(f, "  {rule:<30}  {transition:<14}{count:>14}")?;
            }
        }
        for (what, count) in [
            ("ids that came twice", self.alert_ids_twice),
            ("records that are no alerts", self.alerts_unreadable),
            ("without a record to measure from", self.alerts_without_basis),
            ("read before they were appended (clocks)", self.alerts_before_append),
        ] {
            if count > 0 || what.starts_with("ids") {
                let count = HumanCount(count).to_string();
                writeln!(f, "  {what:<46}{count:>14}")?;
            }
        }
        Ok(())
    }

    fn write_latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "latency in ms, from source append to a read-committed reader")?;
        let [by, count, p50, p90, p99, p99_9, max] = ["decided by", "count", "p50", "p90", "p99", "p99.9", "max"];
        writeln!(f, "  {by:<12}{count:>12}{p50:>10}{p90:>10}{p99:>10}{p99_9:>10}{max:>10}")?;
        let rows = [("a reading", &self.latency_ms.by_reading), ("a timer", &self.latency_ms.by_timer)];
        for (by, latency) in rows {
            write!(f, "  {by:<12}{:>12}", latency.count)?;
            for value_ms in [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max] {
                // Zero would read as a measured value.
                let text = if latency.count > 0 { format!("{value_ms:.1}") } else { "-".to_owned() };
                write!(f, "{text:>10}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_sending(f)?;
        self.write_alerts(f)?;
        self.write_latency(f)?;
        for fault in &self.faults {
            writeln!(f, "fault: {fault}")?;
        }
        f.write_str(if self.ok { "ok" } else { "NOT OK: see above what was lost, doubled or broken" })?;
        f.write_str("\n")
    }
}

#[cfg(test)]
mod tests {
    use wardbell_schemas::alert::{Content, Kind, Measured, Priority, RuleReference, State, TransitionKind};

    use super::*;

    const BASIS_US: Micros = 1_800_000_000_000_000;

    fn alert(id: &str, transition: TransitionKind, by_timer: bool, basis_us: Micros) -> Record {
        let content = Content {
            id: id.to_owned(),
            episode: "e".to_owned(),
            number: 0,
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
            by_timer,
            message: String::new(),
            evidence: Vec::new(),
            limits: BTreeMap::new(),
            event_time: None,
            flags: Vec::new(),
        };
        let measured = Measured { basis_us, ..Measured::default() };
        record(serde_json::to_vec(&Alert::new(content, measured)).unwrap())
    }

    fn record(value: Vec<u8>) -> Record {
        Record {
            partition: 0,
            offset: 0,
            time_us: 0,
            append_us: None,
            key: None,
            value: Some(value),
            headers: Vec::new(),
        }
    }

    fn sent(records_acknowledged: u64) -> Sent {
        let counts = SendCounts {
            records_sent: 10,
            readings_sent: 10,
            records_acknowledged,
            readings_acknowledged: records_acknowledged,
            ..SendCounts::default()
        };
        Sent { records_planned: 10, counts, rate_planned: 5.0, seconds: 2.0, lag_max: Duration::ZERO, fault: None }
    }

    fn tally(records: &[(Record, Micros)]) -> AlertTally {
        let mut tally = AlertTally::try_new().unwrap();
        for (record, now_us) in records {
            tally.take(record, *now_us);
        }
        tally
    }

    #[test]
    fn each_alert_is_counted_once_and_timed_from_its_basis() {
        let raised = alert("e.0", TransitionKind::Raised, false, BASIS_US);
        let tally = tally(&[
            (raised.clone(), BASIS_US + 20_000),
            (alert("e.1", TransitionKind::Cleared, true, BASIS_US), BASIS_US + 90_000),
            (raised, BASIS_US + 40_000),
            (alert("f.0", TransitionKind::Raised, false, 0), BASIS_US),
            (alert("g.0", TransitionKind::Raised, false, BASIS_US), BASIS_US - 1),
            (record(b"{}".to_vec()), BASIS_US),
        ]);
        assert_eq!((tally.alerts, tally.duplicates, tally.unreadable), (4, 1, 1));
        assert_eq!((tally.without_basis, tally.before_append), (1, 1));
        assert_eq!(tally.by_rule["spo2-low"], BTreeMap::from([("cleared", 1), ("raised", 3)]));
        assert_eq!((tally.by_reading.len(), tally.by_timer.len()), (2, 1));
        let report = LoadReport::new(sent(10), tally);
        assert!((report.latency_ms.by_reading.max - 20.0).abs() < 0.1, "{:?}", report.latency_ms);
        assert!((report.latency_ms.by_timer.p50 - 90.0).abs() < 0.1, "{:?}", report.latency_ms);
        assert!(!report.ok, "an id came twice");
    }

    #[test]
    fn a_run_is_well_only_if_everything_was_acknowledged_and_no_alert_came_twice() {
        let raised = alert("e.0", TransitionKind::Raised, false, BASIS_US);
        let once = [(raised.clone(), BASIS_US + 1)];
        let twice = [(raised.clone(), BASIS_US + 1), (raised, BASIS_US + 2)];
        for (n_acknowledged, records, ok) in [(10, &once[..], true), (9, &once[..], false), (10, &twice[..], false)] {
            let report = LoadReport::new(sent(n_acknowledged), tally(records));
            assert_eq!(report.ok, ok, "{n_acknowledged} acknowledged, {} alerts", records.len());
        }
        let broken = Sent { fault: Some("appending: broken".to_owned()), ..sent(10) };
        assert!(!LoadReport::new(broken, tally(&once)).ok);
    }

    #[test]
    fn the_report_reads_as_a_table_and_as_json() {
        let records = [(alert("e.0", TransitionKind::Raised, false, BASIS_US), BASIS_US + 20_000)];
        let report = LoadReport::new(sent(10), tally(&records));
        let text = report.to_string();
        for part in ["largest lag", "spo2-low", "raised", "p99.9", "20.0", "\nok\n"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["type"], "load");
        assert_eq!(json["readings_acknowledged"], 10);
        assert_eq!(json["alerts_by_rule"]["spo2-low"]["raised"], 1);
        assert_eq!(json["latency_ms"]["by_timer"]["count"], 0);
    }

    #[test]
    fn a_distribution_ends_with_everything_at_its_largest_value() {
        let mut histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS).unwrap();
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
