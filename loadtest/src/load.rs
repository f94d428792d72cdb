//! `load`: simulated monitors on a schedule that does not wait for anybody.
//!
//! Record i is due at `start + i * readings per record / rate`, whatever became of the records before it. If sending
//! falls behind it catches up, and the largest lag is part of the report: a load that was not there cannot be measured.
//! Patients are stable but for a share whose SpO2 falls for 40 s of every 120 s, so that alerts rise and clear all the
//! time. Meanwhile `measure` reads them.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use fastrand::Rng;
use indicatif::HumanCount;
use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::{Log, Outgoing, StampedBy};
use wardbell_schemas::{Micros, SECOND, duration};

use crate::LoadArgs;
use crate::measure::{AlertWatch, LoadReport, Sent};
use crate::progress::Progress;
use crate::source::{Sender, SourceTopic};

/// As many signals as a monitor here has: one record never holds two readings of one signal.
pub const READINGS_PER_RECORD_MAX: u64 = N_VITALS as u64;
/// Signals a monitor sends, if its records do not hold more.
const SIGNALS_MIN: u64 = 4;
/// A patient that deteriorates does so once in this time ...
const CYCLE: Micros = 120 * SECOND;
/// ... for this long ...
const LOW: Micros = 40 * SECOND;
/// ... to this SpO2, in %.
const LOW_SPO2: f64 = 82.0;
/// The same patients in every run.
const SEED: u64 = 0x5EED;
/// Shortest sleep: records of one millisecond go out together, instead of a core spinning between them.
const BURST: Duration = Duration::from_millis(1);
/// Progress goes on at low rates.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Acknowledgments are taken in after so many records.
const COLLECT_EVERY: u64 = 128;

/// A signal of a simulated monitor: `middle`, differing by up to `between` from patient to patient and by up to
/// `within` from reading to reading, in `unit`. Nothing comes near an alarm limit.
struct Vital {
    signal: &'static str,
    unit: &'static str,
    middle: f64,
    between: f64,
    within: f64,
}

const fn vital(signal: &'static str, unit: &'static str, middle: f64, between: f64, within: f64) -> Vital {
    Vital { signal, unit, middle, between, within }
}

const SPO2: usize = 0;
const HEART_RATE: usize = 1;
const PULSE_RATE: usize = 3;
const N_VITALS: usize = 12;
static VITALS: [Vital; N_VITALS] = [
    vital("spo2", "%", 97.5, 1.0, 0.5),
    vital("heart_rate", "/min", 76.0, 12.0, 1.5),
    vital("resp_rate", "/min", 15.0, 2.0, 0.7),
    vital("pulse_rate", "/min", 76.0, 12.0, 1.5),
    vital("abp_sys", "mm[Hg]", 122.0, 10.0, 2.0),
    vital("abp_dia", "mm[Hg]", 74.0, 6.0, 1.5),
    vital("abp_mean", "mm[Hg]", 90.0, 7.0, 1.5),
    vital("etco2", "mm[Hg]", 38.0, 2.0, 0.6),
    vital("temp_core", "Cel", 36.9, 0.3, 0.1),
    vital("cvp", "mm[Hg]", 8.0, 2.0, 0.4),
    vital("perfusion_index", "%", 3.0, 1.0, 0.3),
    vital("icp", "mm[Hg]", 10.0, 2.0, 0.5),
];

/// Runs the command; whether all is well.
///
/// # Errors
/// If a topic cannot be used or a file cannot be written.
pub fn run(args: &LoadArgs, log: &dyn Log, clock: &dyn Clock) -> Result<bool> {
    let report = load(args, log, clock)?;
    if args.json {
        println!("{}", serde_json::to_string(&report).context("printing the report")?);
    } else {
        print!("{report}");
    }
    Ok(report.ok)
}

fn load(args: &LoadArgs, log: &dyn Log, clock: &dyn Clock) -> Result<LoadReport> {
    let n_records = records_planned(args);
    if n_records == 0 {
        bail!("--rate {} --for {} is not one record; send longer", args.rate, duration::print(args.duration_us));
    }
    let topic = SourceTopic::prepare(log, &args.topic, args.partitions, StampedBy::Broker)?;
    let watch = AlertWatch::begin(log, &args.alerts_topic)?;
    let mut sender = Sender::new(log)?;
    let ward = Ward::new(args, &topic);
    let (stop, alerts_seen) = (AtomicBool::new(false), AtomicU64::new(0));
    let (sent, tally) = thread::scope(|scope| {
        let watching = scope.spawn(|| watch.run(clock, &stop, &alerts_seen));
        let stop_at_the_end = StopOnDrop(&stop);
        let sent = send(args, n_records, ward, &topic, &mut sender, clock, &alerts_seen);
        drop(stop_at_the_end);
        (sent, watching.join())
    });
    let tally = tally.map_err(|_| anyhow!("the thread that reads alerts panicked"))??;
    if let Some(path) = &args.hgrm {
        tally.write_distributions(path)?;
    }
    Ok(LoadReport::new(sent?, tally))
}

/// Stops the reading of alerts however sending ends; a thread that is not stopped would hold the process back for ever.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn records_planned(args: &LoadArgs) -> u64 {
    let seconds = args.duration_us as f64 / SECOND as f64;
    (args.rate * seconds / args.readings_per_record as f64).round() as u64
}

/// When record `i` is due, from the beginning.
fn due(args: &LoadArgs, i: u64) -> Duration {
    let seconds = i as f64 * args.readings_per_record as f64 / args.rate;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn send(
    args: &LoadArgs,
    n_records: u64,
    mut ward: Ward,
    topic: &SourceTopic,
    sender: &mut Sender,
    clock: &dyn Clock,
    alerts_seen: &AtomicU64,
) -> Result<Sent> {
    let mut progress = Progress::new("load", n_records);
    let mut outgoing = Outgoing { topic: topic.name.clone(), ..Outgoing::default() };
    let mut lag_max = Duration::ZERO;
    let (start_us, start) = (clock.now_us(), Instant::now());
    for i in 0..n_records {
        let due_after = due(args, i);
        while let Some(early) = due_after.checked_sub(start.elapsed()).filter(|early| !early.is_zero()) {
            sender.collect();
            progress.show(i, || remark(lag_max, alerts_seen));
            thread::sleep(early.clamp(BURST, WAIT_MAX));
        }
        lag_max = lag_max.max(start.elapsed().saturating_sub(due_after));
        // The reading was taken when it was due, however late it is sent.
        ward.fill(&mut outgoing, i, due_after.as_micros() as Micros, start_us).context("writing a record as JSON")?;
        if !sender.send(&outgoing, args.readings_per_record) {
            break;
        }
        if i.is_multiple_of(COLLECT_EVERY) {
            sender.collect();
            progress.show(i, || remark(lag_max, alerts_seen));
        }
    }
    sender.finish(|counts| progress.show(counts.records_acknowledged, || remark(lag_max, alerts_seen)));
    let seconds = start.elapsed().as_secs_f64();
    let counts = sender.counts();
    settle(args.settle_us, || progress.show(counts.records_acknowledged, || remark(lag_max, alerts_seen)));
    progress.finish();
    let fault = sender.fault().map(str::to_owned);
    Ok(Sent { records_planned: n_records, counts, rate_planned: args.rate, seconds, lag_max, fault })
}

/// Gives the last alerts time to come.
fn settle(settle_us: Micros, mut meanwhile: impl FnMut()) {
    let (start, wait) = (Instant::now(), Duration::from_micros(settle_us.unsigned_abs()));
    while let Some(left) = wait.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        meanwhile();
        thread::sleep(left.min(WAIT_MAX));
    }
}

fn remark(lag_max: Duration, alerts_seen: &AtomicU64) -> String {
    let alerts = HumanCount(alerts_seen.load(Ordering::Relaxed));
    format!("{alerts} alerts, largest lag {:.0} ms", lag_max.as_secs_f64() * 1_000.0)
}

/// All patients and what their monitors say.
struct Ward {
    patients: Vec<Patient>,
    readings_per_record: u64,
    n_signals: u64,
    rng: Rng,
}

struct Patient {
    id: String,
    device: String,
    partition: i32,
    /// Where between -1 and 1 the patient lies, for each of [`VITALS`].
    habit: [f64; N_VITALS],
    /// For those who deteriorate: how far into the cycle they are at the beginning.
    phase: Option<Micros>,
}

impl Ward {
    fn new(args: &LoadArgs, topic: &SourceTopic) -> Self {
        let mut rng = Rng::with_seed(SEED);
        let n_deteriorating = (args.patients as f64 * args.deteriorating).round() as u64;
        let patient = |index: u64| {
            let id = format!("load-{index:05}");
            let mut habit = [0.0; N_VITALS].map(|_: f64| either_way(&mut rng));
            habit[PULSE_RATE] = habit[HEART_RATE];
            let phase = (index < n_deteriorating).then(|| CYCLE * index as Micros / n_deteriorating as Micros);
            Patient { partition: topic.partition(&id), device: format!("monitor-{index:05}"), id, habit, phase }
        };
        let patients = (0..args.patients).map(patient).collect();
        let n_signals = args.readings_per_record.max(SIGNALS_MIN);
        Self { patients, readings_per_record: args.readings_per_record, n_signals, rng }
    }

    /// Makes `outgoing` the `i`th record. Patients take turns, and the signals of each patient take turns.
    fn fill(&mut self, outgoing: &mut Outgoing, i: u64, elapsed_us: Micros, start_us: Micros) -> io::Result<()> {
        let n_patients = self.patients.len() as u64;
        let patient = &self.patients[(i % n_patients) as usize];
        let n_before = (i / n_patients) * self.readings_per_record;
        outgoing.partition = patient.partition;
        let key = outgoing.key.get_or_insert_with(Vec::new);
        key.clear();
        key.extend_from_slice(patient.id.as_bytes());
        let json = outgoing.value.get_or_insert_with(Vec::new);
        json.clear();
        let (id, device, time_us) = (&patient.id, &patient.device, start_us + elapsed_us);
        write!(json, r#"{{"patient":"{id}","device":"{device}","time":{time_us},"#)?;
        if self.readings_per_record == 1 {
            write_reading(json, patient, n_before % self.n_signals, elapsed_us, &mut self.rng)?;
            return json.write_all(b"}");
        }
        json.write_all(br#""readings":["#)?;
        for n in 0..self.readings_per_record {
            if n > 0 {
                json.write_all(b",")?;
            }
            json.write_all(b"{")?;
            write_reading(json, patient, (n_before + n) % self.n_signals, elapsed_us, &mut self.rng)?;
            json.write_all(b"}")?;
        }
        json.write_all(b"]}")
    }
}

fn write_reading(
    json: &mut impl Write,
    patient: &Patient,
    vital: u64,
    elapsed_us: Micros,
    rng: &mut Rng,
) -> io::Result<()> {
    let index = vital as usize;
    let Vital { signal, unit, .. } = &VITALS[index];
    let value = patient.value(index, elapsed_us, rng);
    write!(json, r#""signal":"{signal}","value":{value:.1},"unit":"{unit}""#)
}

impl Patient {
    fn value(&self, index: usize, elapsed_us: Micros, rng: &mut Rng) -> f64 {
        let vital = &VITALS[index];
        let is_low = index == SPO2 && self.phase.is_some_and(|phase| (phase + elapsed_us) % CYCLE < LOW);
        let middle = if is_low { LOW_SPO2 } else { vital.middle + vital.between * self.habit[index] };
        middle + vital.within * either_way(rng)
    }
}

/// Evenly between -1 and 1.
fn either_way(rng: &mut Rng) -> f64 {
    2.0 * rng.f64() - 1.0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use clap::Parser;
    use serde_json::Value;
    use wardbell_connectors::clock::SystemClock;
    use wardbell_connectors::log::memory::MemoryLog;
    use wardbell_connectors::log::{Isolation, Record, TopicPartition, TopicSpec};
    use wardbell_connectors::partitioner::partition_of;
    use wardbell_schemas::catalogue::Catalogue;

    use super::*;
    use crate::{Cli, Command};

    fn args(more: &[&str]) -> LoadArgs {
        let words = ["loadtest", "load", "--topic", "devices", "--settle", "0s"];
        match Cli::try_parse_from(words.iter().chain(more).copied()).unwrap().command {
            Command::Load(args) => args,
            Command::Replay(_) => panic!("another command"),
        }
    }

    fn log_with_alerts_topic() -> MemoryLog {
        let log = MemoryLog::new(Arc::new(SystemClock));
        let alerts = TopicSpec {
            name: "wardbell.alerts".to_owned(),
            partitions: 2,
            stamped_by: StampedBy::Broker,
            retention: None,
            create: true,
            any_partitions: false,
        };
        log.prepare(&[alerts]).unwrap();
        log
    }

    fn records(log: &MemoryLog, n_partitions: i32) -> Vec<Record> {
        let mut records = Vec::new();
        for partition in 0..n_partitions {
            let from = TopicPartition::new("devices", partition);
            let mut reader = log.reader(&from, 0, Isolation::ReadCommitted).unwrap();
            reader.read(100_000, Duration::ZERO, &mut records).unwrap();
        }
        records
    }

    /// Readings by patient and signal.
    fn readings(records: &[Record]) -> BTreeMap<(String, String), u64> {
        let mut counts = BTreeMap::new();
        for record in records {
            let json: Value = serde_json::from_slice(record.value.as_deref().unwrap()).unwrap();
            let patient = json["patient"].as_str().unwrap();
            assert_eq!(record.key.as_deref(), Some(patient.as_bytes()));
            assert_eq!(record.partition, partition_of(patient, 3));
            let own = [json.clone()];
            for reading in json["readings"].as_array().map_or(&own[..], Vec::as_slice) {
                let signal = reading["signal"].as_str().unwrap();
                *counts.entry((patient.to_owned(), signal.to_owned())).or_default() += 1;
            }
        }
        counts
    }

    #[test]
    fn every_series_gets_its_even_share_of_the_rate() {
        for (per_record, n_signals) in [("1", 4), ("3", 4), ("6", 6)] {
            let log = log_with_alerts_topic();
            let more = ["--partitions", "3", "--patients", "5", "--rate", "6000", "--for", "200ms"];
            let report = load(&args(&[&more[..], &["--readings-per-record", per_record]].concat()), &log, &SystemClock);
            let report = report.unwrap();
            assert!(report.ok, "{report}");
            let counts = readings(&records(&log, 3));
            assert_eq!(counts.values().sum::<u64>(), 1_200, "{per_record} readings per record");
            assert_eq!(counts.len(), 5 * n_signals, "{per_record} readings per record");
            let expected = 1_200 / (5 * n_signals as u64);
            assert!(counts.values().all(|count| *count == expected), "{per_record} readings per record: {counts:?}");
        }
    }

    #[test]
    fn a_share_of_patients_is_low_for_a_third_of_the_time_and_the_others_never() {
        let topic = SourceTopic { name: "devices".to_owned(), n_partitions: 3 };
        let ward = Ward::new(&args(&["--patients", "40", "--deteriorating", "25%"]), &topic);
        let mut rng = Rng::with_seed(1);
        let mut n_low = [0; 40];
        for (patient, n_low) in ward.patients.iter().zip(&mut n_low) {
            for second in 0..240 {
                let spo2 = patient.value(SPO2, second * SECOND, &mut rng);
                assert!((95.0..=99.5).contains(&spo2) || (81.0..=83.0).contains(&spo2), "{spo2}");
                *n_low += u32::from(spo2 < 90.0);
            }
        }
        assert_eq!(n_low[..10], [80; 10]);
        assert_eq!(n_low[10..], [0; 30]);
        let low_at_once = ward.patients.iter().filter(|patient| patient.value(SPO2, 0, &mut rng) < 90.0).count();
        assert_eq!(low_at_once, 4, "phases are spread");
    }

    #[test]
    fn a_record_is_due_by_its_number_alone() {
        let args = args(&["--rate", "20000", "--readings-per-record", "10", "--for", "60s"]);
        assert_eq!(records_planned(&args), 120_000);
        assert_eq!(due(&args, 0), Duration::ZERO);
        assert_eq!(due(&args, 2_000), Duration::from_secs(1));
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let log = MemoryLog::new(Arc::new(SystemClock));
        let fault = format!("{:#}", load(&args(&[]), &log, &SystemClock).unwrap_err());
        assert!(fault.contains("`wardbell.alerts`") && fault.contains("wardbell run"), "{fault}");
        let fault = format!("{:#}", load(&args(&["--for", "0s"]), &log, &SystemClock).unwrap_err());
        assert!(fault.contains("not one record"), "{fault}");
    }

    #[test]
    fn every_vital_is_a_signal_in_its_canonical_unit() {
        for vital in &VITALS {
            let signal = Catalogue::builtin().by_id(vital.signal).expect(vital.signal);
            assert_eq!(signal.unit, vital.unit, "{}", vital.signal);
        }
        assert_eq!((VITALS[SPO2].signal, VITALS[HEART_RATE].signal), ("spo2", "heart_rate"));
        assert_eq!(VITALS[PULSE_RATE].signal, "pulse_rate");
    }
}
