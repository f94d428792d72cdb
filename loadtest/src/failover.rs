//! How long alerts stayed away after faults: from the moment somebody killed, froze or cut off something to the first
//! alert about a patient of a partition that this concerned, as a read-committed reader has it.
//!
//! Only alerts count whose reading was appended after the fault: what had been decided before, or was on its way, says
//! nothing. Whether they are right is not asked here; `verify`, `oracle` and `wardbell verify` answer that for all of them.
//! All times are of one machine's clock, which has to be the broker's machine.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Alert, Kind};

use crate::FailoverArgs;

/// An alert as the reader beside a load run saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenAlert {
    /// When the reader had it, µs since 1970 UTC.
    pub seen_us: Micros,
    /// Append time of the source record that decided.
    pub basis_us: Micros,
    /// When that was decided.
    pub decided_us: Micros,
    /// Of the canonical log, and so of the alerts topic.
    pub partition: i32,
    pub kind: Kind,
    pub id: String,
    pub patient: String,
}

impl SeenAlert {
    pub fn new(partition: i32, alert: &Alert, seen_us: Micros) -> Self {
        let (content, measured) = (&alert.data.content, &alert.data.measured);
        Self {
            seen_us,
            basis_us: measured.basis_us,
            decided_us: measured.decided_us,
            partition,
            kind: content.kind,
            id: alert.id.clone(),
            patient: content.patient.clone(),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FaultKind {
    /// An instance was killed and started again at once.
    InPlace,
    /// An instance was killed and stayed away.
    TakenOver,
    /// An instance was stopped for longer than its session, and then went on.
    Frozen,
    /// The broker was stopped or killed.
    BrokerGone,
    /// The broker answered again.
    BrokerBack,
}

impl FaultKind {
    fn title(self) -> &'static str {
        match self {
            Self::InPlace => "killed, restarted in place",
            Self::TakenOver => "killed, taken over",
            Self::Frozen => "frozen, taken over",
            Self::BrokerGone => "broker gone",
            Self::BrokerBack => "broker answers again",
        }
    }
}

/// One fault, and whom it concerned.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    /// Taken right before, µs since 1970 UTC.
    at_us: Micros,
    kind: FaultKind,
    /// Absent: the broker.
    instance: Option<u32>,
    /// Partitions of the canonical log, and source partitions of the same patients, that the instance held.
    partitions: Vec<i32>,
}

/// Runs the command; whether every partition had alerts again after every fault.
///
/// # Errors
/// If a file cannot be read, or holds no fault.
pub fn run(args: &FailoverArgs) -> Result<bool> {
    let report = FailoverReport::new(&lines(&args.faults)?, &lines(&args.alerts)?);
    if report.faults.is_empty() {
        bail!("`{}` holds no fault that concerned a partition", args.faults.display());
    }
    if args.json {
        println!("{}", serde_json::to_string(&report).context("printing the report")?);
    } else {
        print!("{report}");
    }
    Ok(report.ok)
}

fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let step = || format!("reading `{}`", path.display());
    let file = File::open(path).with_context(step)?;
    let mut values = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let value = serde_json::from_str(&line.with_context(step)?);
        values.push(value.with_context(|| format!("reading `{}`, line {}", path.display(), i + 1))?);
    }
    Ok(values)
}

/// All faults of a run.
#[derive(Debug, Serialize)]
struct FailoverReport {
    #[serde(rename = "type")]
    kind: &'static str,
    faults: BTreeMap<FaultKind, KindReport>,
    /// Partitions without any alert after a fault.
    silent: Vec<String>,
    ok: bool,
}

/// All faults of a kind, in seconds.
#[derive(Debug, Serialize)]
struct KindReport {
    /// To the first alert of any patient concerned, a fault each.
    first: Spread,
    /// To the first alert of each partition concerned, a partition and fault each.
    each_partition: Spread,
}

#[derive(Debug, Serialize)]
struct Spread {
    count: usize,
    min: f64,
    /// The upper one of the two in the middle.
    median: f64,
    p90: f64,
    max: f64,
}

impl FailoverReport {
    fn new(faults: &[Fault], alerts: &[SeenAlert]) -> Self {
        let mut by_partition: BTreeMap<i32, Vec<&SeenAlert>> = BTreeMap::new();
        for alert in alerts.iter().filter(|alert| alert.kind == Kind::Physiological) {
            by_partition.entry(alert.partition).or_default().push(alert);
        }
        let mut waits: BTreeMap<FaultKind, (Vec<Micros>, Vec<Micros>)> = BTreeMap::new();
        let mut silent = Vec::new();
        for (i, fault) in faults.iter().enumerate() {
            let mut of_fault = Vec::new();
            for partition in &fault.partitions {
                match by_partition.get(partition).and_then(|alerts| fault.wait(alerts)) {
                    Some(wait) => of_fault.push(wait),
                    None => silent.push(fault.silence(i + 1, *partition)),
                }
            }
            if let Some(first) = of_fault.iter().min() {
                let (firsts, each) = waits.entry(fault.kind).or_default();
                firsts.push(*first);
                each.append(&mut of_fault);
            }
        }
        let report = |(firsts, each)| KindReport { first: Spread::new(firsts), each_partition: Spread::new(each) };
        let faults = waits.into_iter().map(|(kind, waits)| (kind, report(waits))).collect();
        Self { kind: "failover", faults, ok: silent.is_empty(), silent }
    }
}

impl Fault {
    /// To the first of these alerts, in the order they were seen, whose reading was appended after the fault.
    fn wait(&self, alerts: &[&SeenAlert]) -> Option<Micros> {
        let after = alerts.partition_point(|alert| alert.seen_us < self.at_us);
        let first = alerts[after..].iter().find(|alert| alert.basis_us >= self.at_us)?;
        Some(first.seen_us - self.at_us)
    }

    fn silence(&self, number: usize, partition: i32) -> String {
        let of_whom = self.instance.map_or_else(String::new, |instance| format!(" of instance {instance}"));
        format!("no alert came from partition {partition} after fault {number}{of_whom} ({})", self.kind.title())
    }
}

impl Spread {
    /// # Panics
    /// Never: there is a value wherever there is a kind.
    fn new(mut waits: Vec<Micros>) -> Self {
        waits.sort_unstable();
        let at = |share: f64| waits[((waits.len() as f64 * share) as usize).min(waits.len() - 1)] as f64 / 1e6;
        Self { count: waits.len(), min: at(0.0), median: at(0.5), p90: at(0.9), max: at(1.0) }
    }
}

impl fmt::Display for FailoverReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "| seconds to the first alert of | n | min | median | p90 | max |")?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|")?;
        for (kind, KindReport { first, each_partition }) in &self.faults {
            for (whom, spread) in [("any patient", first), ("each partition", each_partition)] {
                let Spread { count, min, median, p90, max } = spread;
                let title = kind.title();
                writeln!(f, "| {title}: {whom} | {count} | {min:.2} | {median:.2} | {p90:.2} | {max:.2} |")?;
            }
        }
        if !self.silent.is_empty() {
            writeln!(f)?;
        }
        for what in &self.silent {
            writeln!(f, "- {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wardbell_schemas::SECOND;
    use wardbell_schemas::alert::{Measured, TransitionKind};

    use super::*;
    use crate::sample::{BASIS_US, content};

    /// Of a reading that was appended at `basis_s` and an alert that was there at `seen_s`, seconds after the beginning.
    fn seen(partition: i32, basis_s: Micros, seen_s: Micros) -> SeenAlert {
        let measured = Measured { basis_us: BASIS_US + basis_s * SECOND, ..Measured::default() };
        let alert = Alert::new(content("e", 0, TransitionKind::Raised), measured);
        SeenAlert::new(partition, &alert, BASIS_US + seen_s * SECOND)
    }

    fn fault(at_s: Micros, kind: FaultKind, partitions: &[i32]) -> Fault {
        Fault { at_us: BASIS_US + at_s * SECOND, kind, instance: Some(2), partitions: partitions.to_vec() }
    }

    #[test]
    fn only_alerts_of_partitions_concerned_and_of_readings_after_the_fault_count() {
        let technical = SeenAlert { kind: Kind::Technical, ..seen(0, 11, 12) };
        let alerts = [seen(2, 11, 11), seen(0, 9, 11), technical, seen(0, 12, 14), seen(1, 10, 17), seen(0, 18, 19)];
        let report = FailoverReport::new(&[fault(10, FaultKind::InPlace, &[0, 1])], &alerts);
        assert!(report.ok, "{report}");
        let KindReport { first, each_partition } = &report.faults[&FaultKind::InPlace];
        assert_eq!((first.count, first.min, first.max), (1, 4.0, 4.0));
        assert_eq!((each_partition.count, each_partition.min, each_partition.max), (2, 4.0, 7.0));
    }

    #[test]
    fn a_partition_that_stays_silent_is_named() {
        let report = FailoverReport::new(&[fault(10, FaultKind::TakenOver, &[0, 3])], &[seen(0, 11, 12)]);
        assert!(!report.ok);
        assert_eq!(report.silent, ["no alert came from partition 3 after fault 1 of instance 2 (killed, taken over)"]);
    }

    #[test]
    fn the_table_has_two_lines_for_each_kind() {
        let faults: Vec<Fault> = (1..=10).map(|i| fault(100 * i, FaultKind::InPlace, &[0])).collect();
        let mut alerts: Vec<SeenAlert> = (1..=10).map(|i| seen(0, 100 * i, 101 * i)).collect();
        alerts.push(seen(0, 2_000, 2_003));
        let report =
            FailoverReport::new(&[&faults[..], &[fault(2_000, FaultKind::BrokerBack, &[0])]].concat(), &alerts);
        let expected = "\
| seconds to the first alert of | n | min | median | p90 | max |
|---|---:|---:|---:|---:|---:|
| killed, restarted in place: any patient | 10 | 1.00 | 6.00 | 10.00 | 10.00 |
| killed, restarted in place: each partition | 10 | 1.00 | 6.00 | 10.00 | 10.00 |
| broker answers again: any patient | 1 | 3.00 | 3.00 | 3.00 | 3.00 |
| broker answers again: each partition | 1 | 3.00 | 3.00 | 3.00 | 3.00 |
";
        assert_eq!(report.to_string(), expected);
    }

    #[test]
    fn a_line_that_is_none_is_named_by_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("faults.jsonl");
        let line = r#"{"at_us":7,"kind":"broker_gone","partitions":[0,1]}"#;
        std::fs::write(&path, format!("{line}\n{line}\n")).unwrap();
        let faults: Vec<Fault> = lines(&path).unwrap();
        assert_eq!((faults.len(), faults[0].instance, faults[1].kind), (2, None, FaultKind::BrokerGone));
        std::fs::write(&path, format!("{line}\n{{\"at_us\":7}}\n")).unwrap();
        let error = format!("{:#}", lines::<Fault>(&path).unwrap_err());
        assert!(error.contains("faults.jsonl`, line 2"), "{error}");
    }
}
