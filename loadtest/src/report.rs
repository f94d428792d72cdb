//! What a load run comes to, as a table for people and as JSON for scripts.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};
use std::time::Duration;

use indicatif::HumanCount;
use serde::Serialize;

use crate::cpu::CpuSpent;
use crate::measure::{AlertTally, Latencies, Latency};
use crate::probe::ProbeReport;
use crate::source::SendCounts;

/// What was sent, by the one who sent it.
#[derive(Debug)]
pub struct Sent {
    pub records_planned: u64,
    pub counts: SendCounts,
    /// Readings per second that were asked for; a ramp has as many as it has steps.
    pub rate_planned: Option<f64>,
    /// From the first record to the last acknowledgment.
    pub seconds: f64,
    /// How far sending was behind its schedule at the worst.
    pub lag_max: Duration,
    pub fault: Option<String>,
}

/// One rate of a ramp.
#[derive(Debug, Clone, Serialize)]
pub struct StepReport {
    /// Readings per second that were asked for, and that were acknowledged.
    pub rate: f64,
    pub rate_achieved: f64,
    pub lag_ms_max: f64,
    /// Source records the normalize stage had not committed when the last one was acknowledged.
    pub backlog_records: i64,
    /// From then until both stages had committed all of it.
    pub caught_up_ms: Option<f64>,
    /// From the schedule, of all alerts due within the step.
    pub latency_ms: Latency,
    /// Why the rate was not sustained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broke: Option<String>,
}

/// How far a ramp got.
#[derive(Debug, Serialize)]
pub struct RampReport {
    pub steps: Vec<StepReport>,
    /// Readings per second of the last step that was sustained.
    pub sustained_rate: Option<f64>,
    /// A step broke. If none did, the engine sustains more than the ramp's top.
    pub passed: bool,
}

impl RampReport {
    pub fn new(steps: Vec<StepReport>) -> Self {
        let sustained = steps.iter().rev().find(|step| step.broke.is_none());
        Self {
            sustained_rate: sustained.map(|step| step.rate),
            passed: steps.iter().any(|step| step.broke.is_some()),
            steps,
        }
    }
}

/// The probe beside the engine, and how the engine's latency from append compares.
#[derive(Debug, Serialize)]
struct Comparison {
    #[serde(flatten)]
    probe: ProbeReport,
    /// Engine divided by probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_by_reading: Option<Ratio>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_by_timer: Option<Ratio>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Ratio {
    p50: f64,
    p99: f64,
}

impl Comparison {
    fn new(probe: ProbeReport, engine: &Latencies) -> Self {
        let ratio = |engine: &Latency| {
            let bare = &probe.latency_ms;
            (engine.count > 0 && bare.count > 0).then(|| Ratio {
                p50: engine.p50 / bare.p50.max(f64::MIN_POSITIVE),
                p99: engine.p99 / bare.p99.max(f64::MIN_POSITIVE),
            })
        };
        Self { ratio_by_reading: ratio(&engine.by_reading), ratio_by_timer: ratio(&engine.by_timer), probe }
    }
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
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_planned: Option<f64>,
    /// Readings acknowledged per second.
    rate_achieved: f64,
    lag_ms_max: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ramp: Option<RampReport>,
    alerts: u64,
    /// Rule id, transition, count.
    alerts_by_rule: BTreeMap<String, BTreeMap<&'static str, u64>>,
    alert_ids_twice: u64,
    alerts_unreadable: u64,
    alerts_without_basis: u64,
    alerts_before_append: u64,
    /// From the append of the record that decided to a read-committed reader.
    latency_ms: Latencies,
    /// From the moment the reading, or the end of the hold, was due.
    latency_from_schedule_ms: Latencies,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<Comparison>,
    /// By name of the process.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cpu: BTreeMap<&'static str, CpuSpent>,
    faults: Vec<String>,
    pub ok: bool,
}

impl LoadReport {
    pub fn new(
        sent: Sent,
        tally: AlertTally,
        ramp: Option<RampReport>,
        probe: Option<ProbeReport>,
        cpu: BTreeMap<&'static str, CpuSpent>,
    ) -> Self {
        let counts = sent.counts;
        let all_sent = counts.records_sent == sent.records_planned && counts.is_all_acknowledged();
        let of_probe = probe.iter().flat_map(|probe| probe.faults.clone());
        let faults: Vec<String> = sent.fault.into_iter().chain(tally.faults).chain(of_probe).collect();
        let none_sustained = ramp.as_ref().is_some_and(|ramp| ramp.sustained_rate.is_none());
        let latency_ms = Latencies::new(&tally.from_append);
        Self {
            kind: "load",
            records_planned: sent.records_planned,
            counts,
            seconds: sent.seconds,
            rate_planned: sent.rate_planned,
            rate_achieved: counts.readings_acknowledged as f64 / sent.seconds.max(f64::MIN_POSITIVE),
            lag_ms_max: sent.lag_max.as_secs_f64() * 1_000.0,
            ramp,
            alerts: tally.alerts,
            alerts_by_rule: tally.by_rule,
            alert_ids_twice: tally.duplicates,
            alerts_unreadable: tally.unreadable,
            alerts_without_basis: tally.without_basis,
            alerts_before_append: tally.before_append,
            latency_ms,
            latency_from_schedule_ms: Latencies::new(&tally.from_schedule),
            probe: probe.map(|probe| Comparison::new(probe, &latency_ms)),
            cpu,
            ok: all_sent && !none_sustained && tally.duplicates == 0 && tally.unreadable == 0 && faults.is_empty(),
            faults,
        }
    }

    fn write_sending(&self, f: &mut Formatter<'_>) -> fmt::Result {
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
        if let Some(planned) = self.rate_planned {
            let (achieved, seconds) = (self.rate_achieved, self.seconds);
            writeln!(f, "  rate            {achieved:>14.0} readings/s of {planned:.0} planned, over {seconds:.1} s")?;
        }
        writeln!(f, "  largest lag     {:>14.1} ms behind the schedule", self.lag_ms_max)
    }

    fn write_alerts(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write_alerts(f, self.alerts, &self.alerts_by_rule)?;
        for (what, count) in [
            ("ids that came twice", self.alert_ids_twice),
            ("records that are no alerts", self.alerts_unreadable),
            ("without a record to measure from", self.alerts_without_basis),
            ("read before they were appended (clocks)", self.alerts_before_append),
        ] {
            if count > 0 || what.starts_with("ids") {
                write_count(f, what, count)?;
            }
        }
        Ok(())
    }

    fn write_ratios(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(Comparison { probe, ratio_by_reading, ratio_by_timer }) = &self.probe else {
            return Ok(());
        };
        write!(f, "{probe}")?;
        for (by, ratio) in [("a reading", ratio_by_reading), ("a timer", ratio_by_timer)] {
            if let Some(ratio) = ratio {
                writeln!(f, "  engine / probe, alerts decided by {by}: p50 {:.2}x, p99 {:.2}x", ratio.p50, ratio.p99)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write_sending(f)?;
        if let Some(ramp) = &self.ramp {
            write!(f, "{ramp}")?;
        }
        self.write_alerts(f)?;
        let both = |latencies: &Latencies| [("a reading", latencies.by_reading), ("a timer", latencies.by_timer)];
        let from_append = "latency in ms, from source append to a read-committed reader";
        write_latencies(f, from_append, "decided by", &both(&self.latency_ms))?;
        let from_schedule = "latency in ms, from the scheduled time to a read-committed reader";
        write_latencies(f, from_schedule, "decided by", &both(&self.latency_from_schedule_ms))?;
        self.write_ratios(f)?;
        for (process, spent) in &self.cpu {
            let CpuSpent { seconds, seconds_per_million_readings: each } = spent;
            writeln!(f, "CPU of the {process}: {seconds:.2} s, {each:.2} s per million readings")?;
        }
        for fault in &self.faults {
            writeln!(f, "fault: {fault}")?;
        }
        f.write_str(if self.ok { "ok" } else { "NOT OK: see above what was lost, doubled or broken" })?;
        f.write_str("\n")
    }
}

impl fmt::Display for RampReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "ramp")?;
        let [rate, achieved, lag, backlog, caught_up] = ["readings/s", "achieved", "lag ms", "backlog", "caught up ms"];
        let [alerts, p50, p99] = ["alerts", "p50 ms", "p99 ms"];
        writeln!(f, "  {rate:>10}{achieved:>10}{lag:>9}{backlog:>9}{caught_up:>14}{alerts:>8}{p50:>9}{p99:>9}")?;
        for step in &self.steps {
            let caught_up = step.caught_up_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
            let Latency { count, p50, p99, .. } = step.latency_ms;
            write!(f, "  {:>10.0}{:>10.0}", step.rate, step.rate_achieved)?;
            write!(f, "{:>9.1}{:>9}{caught_up:>14}", step.lag_ms_max, step.backlog_records)?;
            writeln!(f, "{count:>8}{p50:>9.1}{p99:>9.1}  {}", step.broke.as_deref().unwrap_or("sustained"))?;
        }
        match (self.sustained_rate, self.passed) {
            (Some(rate), true) => writeln!(f, "  sustained: {rate:.0} readings/s"),
            (Some(rate), false) => {
                writeln!(f, "  sustained: {rate:.0} readings/s, the top of the ramp; it may be more")
            }
            (None, _) => writeln!(f, "  sustained: none of these rates; begin lower"),
        }
    }
}

/// Alerts by rule and transition.
pub fn write_alerts(
    f: &mut Formatter<'_>,
    total: u64,
    by_rule: &BTreeMap<String, BTreeMap<&'static str, u64>>,
) -> fmt::Result {
    writeln!(f, "alerts: {}", HumanCount(total))?;
    for (rule, transitions) in by_rule {
        for (transition, count) in transitions {
            let count = HumanCount(*count).to_string();
            writeln!(f, "  {rule:<30}  {transition:<14}{count:>14}")?;
        }
    }
    Ok(())
}

/// A count under the alerts by rule.
pub fn write_count(f: &mut Formatter<'_>, what: &str, count: u64) -> fmt::Result {
    let count = HumanCount(count).to_string();
    writeln!(f, "  {what:<46}{count:>14}")
}

/// Quantiles, one row each.
pub fn write_latencies(f: &mut Formatter<'_>, title: &str, by: &str, rows: &[(&str, Latency)]) -> fmt::Result {
    writeln!(f, "{title}")?;
    let [count, p50, p90, p99, p99_9, max] = ["count", "p50", "p90", "p99", "p99.9", "max"];
    writeln!(f, "  {by:<12}{count:>12}{p50:>10}{p90:>10}{p99:>10}{p99_9:>10}{max:>10}")?;
    for (by, latency) in rows {
        write!(f, "  {by:<12}{:>12}", latency.count)?;
        for value_ms in latency.quantiles() {
            // Zero would read as a measured value.
            let text = if latency.count > 0 { format!("{value_ms:.1}") } else { "-".to_owned() };
            write!(f, "{text:>10}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::histogram;

    fn latency(us: u64) -> Latency {
        let mut histogram = histogram().unwrap();
        histogram.saturating_record(us);
        Latency::new(&histogram)
    }

    fn sent(records_acknowledged: u64) -> Sent {
        let counts = SendCounts {
            records_sent: 10,
            readings_sent: 10,
            records_acknowledged,
            readings_acknowledged: records_acknowledged,
            ..SendCounts::default()
        };
        Sent {
            records_planned: 10,
            counts,
            rate_planned: Some(5.0),
            seconds: 2.0,
            lag_max: Duration::ZERO,
            fault: None,
        }
    }

    /// One alert 20 ms after its append and 30 ms after it was due.
    fn tally() -> AlertTally {
        let mut tally = AlertTally::try_new().unwrap();
        tally.alerts = 1;
        tally.by_rule.entry("spo2-low".to_owned()).or_default().insert("raised", 1);
        tally.from_append.record(false, 20_000);
        tally.from_schedule.record(false, 30_000);
        tally
    }

    fn report(sent: Sent, tally: AlertTally) -> LoadReport {
        LoadReport::new(sent, tally, None, None, BTreeMap::new())
    }

    fn step(rate: f64, broke: Option<&str>) -> StepReport {
        StepReport {
            rate,
            rate_achieved: rate,
            lag_ms_max: 1.5,
            backlog_records: 40,
            caught_up_ms: Some(700.0),
            latency_ms: latency(60_000),
            broke: broke.map(str::to_owned),
        }
    }

    #[test]
    fn a_run_is_well_only_if_everything_was_acknowledged_and_no_alert_came_twice() {
        assert!(report(sent(10), tally()).ok);
        assert!(!report(sent(9), tally()).ok);
        let (mut twice, mut foreign) = (tally(), tally());
        (twice.duplicates, foreign.unreadable) = (1, 1);
        assert!(!report(sent(10), twice).ok);
        assert!(!report(sent(10), foreign).ok);
        assert!(!report(Sent { fault: Some("appending: broken".to_owned()), ..sent(10) }, tally()).ok);
        let none = RampReport::new(vec![step(5_000.0, Some("p99 is above 1s"))]);
        assert!(!LoadReport::new(sent(10), tally(), Some(none), None, BTreeMap::new()).ok);
    }

    #[test]
    fn the_report_reads_as_a_table_and_as_json() {
        let ramp = RampReport::new(vec![step(5_000.0, None), step(7_500.0, Some("p99 is above 1s"))]);
        let probe = ProbeReport::new(latency(5_000), 3, Vec::new());
        let cpu = BTreeMap::from([("engine", CpuSpent { seconds: 2.5, seconds_per_million_readings: 1.25 })]);
        let report = LoadReport::new(sent(10), tally(), Some(ramp), Some(probe), cpu);
        let text = report.to_string();
        for part in [
            "largest lag",
            "sustained: 5000 readings/s\n",
            "p99 is above 1s",
            "spo2-low",
            "p99.9",
            "20.0",
            "30.0",
            "by a reading: p50 4.0",
            "CPU of the engine: 2.50 s, 1.25 s per million readings",
            "\nok\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["type"], "load");
        assert_eq!(json["readings_acknowledged"], 10);
        assert_eq!(json["alerts_by_rule"]["spo2-low"]["raised"], 1);
        assert_eq!(json["latency_ms"]["by_timer"]["count"], 0);
        assert_eq!(json["latency_from_schedule_ms"]["by_reading"]["count"], 1);
        assert_eq!(json["ramp"]["sustained_rate"], 5_000.0);
        assert_eq!(json["ramp"]["passed"], true);
        assert!((json["probe"]["ratio_by_reading"]["p99"].as_f64().unwrap() - 4.0).abs() < 0.1, "{json}");
        assert!(json["probe"].get("ratio_by_timer").is_none(), "there was no such alert");
        assert_eq!(json["cpu"]["engine"]["seconds_per_million_readings"], 1.25);
    }
}
