//! `load`: simulated monitors on a schedule that does not wait for anybody.
//!
//! A record is due by its number, whatever became of the records before it. If sending falls behind it catches up, and
//! the largest lag is part of the report: a load that was not there cannot be measured. Meanwhile `measure` reads the
//! alerts, and `probe` may run beside the engine. With `--ramp` the rate rises until the engine does not keep up any more.
//! A signal ends the sending early: what was sent until then is all the schedule there was.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::HumanCount;
use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::{Log, Outgoing, StampedBy};
use wardbell_schemas::{Micros, duration};

use crate::LoadArgs;
use crate::backlog::Backlog;
use crate::cpu::{CpuMeter, CpuSpent};
use crate::interrupt::catch_signals;
use crate::manifest::{Manifest, Setting};
use crate::measure::{AlertTally, Latency, lock, tail_of_alerts, watch_alerts};
use crate::poison::poison;
use crate::probe::Probe;
use crate::progress::Progress;
use crate::report::{LoadReport, RampReport, Sent, StepReport};
use crate::schedule::{Ramp, Step};
use crate::source::{Sender, SourceTopic};
use crate::ward::Ward;

/// Shortest sleep: records of one millisecond go out together, instead of a core spinning between them.
const BURST: Duration = Duration::from_millis(1);
/// Progress goes on at low rates.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Acknowledgments are taken in after so many records.
const COLLECT_EVERY: u64 = 128;
/// What is committed is with the reader of alerts by then.
const READ_GRACE: Duration = Duration::from_millis(500);

/// Runs the command; whether all is well.
///
/// # Errors
/// If a topic cannot be used or a file cannot be written.
pub fn run(args: &LoadArgs, log: &dyn Log, clock: &dyn Clock) -> Result<bool> {
    let interrupted = catch_signals()?;
    let report = load(args, log, clock, &interrupted)?;
    if args.json {
        println!("{}", serde_json::to_string(&report).context("printing the report")?);
    } else {
        print!("{report}");
    }
    Ok(report.ok)
}

/// Sends until the schedule is over or `interrupted` is set.
fn load(args: &LoadArgs, log: &dyn Log, clock: &dyn Clock, interrupted: &AtomicBool) -> Result<LoadReport> {
    let whole = Step::new(0, args.rate, args.duration_us, args.readings_per_record);
    if args.ramp.is_none() && whole.records == 0 {
        bail!("--rate {} --for {} is not one record; send longer", args.rate, duration::print(args.duration_us));
    }
    let topic = SourceTopic::prepare(log, &args.topic, args.partitions, StampedBy::Broker)?;
    let tail = tail_of_alerts(log, &args.alerts_topic)?;
    let probe = args.probe.then(|| Probe::begin(log, &topic.name)).transpose()?;
    let (stop, mut tally) = (AtomicBool::new(false), AlertTally::try_new()?);
    if let Some(path) = &args.alerts {
        tally.write_to(path)?;
    }
    let tally = Mutex::new(tally);
    let mut sending = Sending::new(args, log, &topic, clock, &tally, interrupted)?;
    let (outcome, watched, probed) = thread::scope(|scope| {
        let watching = scope.spawn(|| watch_alerts(tail, clock, &stop, &tally));
        let probing = probe.map(|probe| scope.spawn(|| probe.run(clock, &stop)));
        let stop_at_the_end = StopOnDrop(&stop);
        let outcome = match args.ramp {
            Some(ramp) => sending.ramp(ramp, log).map(Some),
            None => sending.whole(whole).map(|()| None),
        };
        drop(stop_at_the_end);
        (outcome, watching.join(), probing.map(|probing| probing.join()))
    });
    watched.map_err(|_| anyhow!("the thread that reads alerts panicked"))?;
    let probe = probed.transpose().map_err(|_| anyhow!("the thread of the probe panicked"))?.transpose()?;
    let (sent, cpu, manifest) = sending.end();
    if let Some(path) = &args.manifest {
        manifest.write(path)?;
    }
    let ramp = outcome?;
    let tally = tally.into_inner().map_err(|_| anyhow!("the thread that reads alerts panicked"))?;
    if let Some(path) = &args.hgrm {
        tally.from_append.write_distributions(path)?;
    }
    Ok(LoadReport::new(sent, tally, ramp, probe, cpu))
}

/// Stops the reading of alerts however sending ends; a thread that is not stopped would hold the process back for ever.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A run under way.
struct Sending<'a> {
    args: &'a LoadArgs,
    topic: &'a SourceTopic,
    tally: &'a Mutex<AlertTally>,
    interrupted: &'a AtomicBool,
    ward: Ward,
    sender: Sender,
    outgoing: Outgoing,
    progress: Progress,
    meters: Vec<(&'static str, CpuMeter)>,
    cpu: BTreeMap<&'static str, CpuSpent>,
    start: Instant,
    start_us: Micros,
    /// What was begun.
    steps: Vec<Step>,
    /// Records of the schedule so far, without poison.
    n_records: u64,
    n_poison: u64,
    lag_max: Duration,
    /// From the beginning to the last acknowledgment.
    seconds: f64,
    fault: Option<String>,
}

impl<'a> Sending<'a> {
    fn new(
        args: &'a LoadArgs,
        log: &dyn Log,
        topic: &'a SourceTopic,
        clock: &dyn Clock,
        tally: &'a Mutex<AlertTally>,
        interrupted: &'a AtomicBool,
    ) -> Result<Self> {
        let mut meters = Vec::new();
        for (process, pid) in [("engine", args.engine_pid), ("broker", args.broker_pid)] {
            if let Some(pid) = pid {
                meters.push((process, CpuMeter::begin(pid)?));
            }
        }
        let planned = match args.ramp {
            Some(ramp) => ramp.rates().map(|rate| args.step_at(0, rate).records).sum::<u64>(),
            None => Step::new(0, args.rate, args.duration_us, args.readings_per_record).records,
        };
        Ok(Self {
            args,
            topic,
            tally,
            interrupted,
            ward: Ward::new(args.patients, args.deteriorating, args.cycle_us, args.readings_per_record, topic),
            sender: Sender::new(log)?,
            outgoing: Outgoing { topic: topic.name.clone(), ..Outgoing::default() },
            progress: Progress::new("load", planned),
            meters,
            cpu: BTreeMap::new(),
            start: Instant::now(),
            start_us: clock.now_us(),
            steps: Vec::new(),
            n_records: 0,
            n_poison: 0,
            lag_max: Duration::ZERO,
            seconds: 0.0,
            fault: None,
        })
    }

    /// One rate from beginning to end, then time for the last alerts to come.
    fn whole(&mut self, step: Step) -> Result<()> {
        self.step(step)?;
        let (settling, wait) = (Instant::now(), Duration::from_micros(self.args.settle_us.unsigned_abs()));
        while let Some(left) = wait.checked_sub(settling.elapsed()).filter(|left| !left.is_zero()) {
            self.show();
            thread::sleep(left.min(WAIT_MAX));
        }
        Ok(())
    }

    /// Rates one above the other until one is not sustained. Between two of them nothing is sent until the engine has
    /// caught up: a step is not charged with what the one before left behind, and none hides what comes late.
    fn ramp(&mut self, ramp: Ramp, log: &dyn Log) -> Result<RampReport> {
        let args = self.args;
        let backlog = Backlog::new(log, &args.group, &self.topic.name, &args.canonical_topic)?;
        let settle = Duration::from_micros(args.settle_us.unsigned_abs());
        let mut reports: Vec<StepReport> = Vec::new();
        for rate in ramp.rates() {
            let step = args.step_at(self.start.elapsed().as_micros() as Micros, rate);
            if step.records == 0 {
                bail!("--step {} at {rate} readings/s is not one record", duration::print(args.step_us));
            }
            let (began, before) = (Instant::now(), self.sender.counts());
            let lag_max = self.step(step)?;
            let seconds = began.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
            if self.sender.fault().is_some() || self.is_interrupted() {
                break;
            }
            let backlog_records = backlog.source_records()?;
            let caught_up = backlog.wait(settle)?;
            thread::sleep(READ_GRACE);
            let latency_ms = lock(self.tally).step();
            let n_readings = self.sender.counts().readings_acknowledged - before.readings_acknowledged;
            let report = StepReport {
                rate,
                rate_achieved: n_readings as f64 / seconds,
                lag_ms_max: ms(lag_max),
                backlog_records,
                caught_up_ms: caught_up.map(ms),
                latency_ms,
                broke: broke(lag_max, caught_up, &latency_ms, args.p99_max_us, args.settle_us),
            };
            let is_over = report.broke.is_some();
            reports.push(report);
            if is_over {
                break;
            }
        }
        Ok(RampReport::new(reports))
    }

    /// Sends a step and waits for its acknowledgments; gives its largest lag.
    fn step(&mut self, step: Step) -> Result<Duration> {
        self.steps.push(step);
        let per_record = self.args.readings_per_record;
        let (begin, end) = (step.after_us, step.due_us(step.records, per_record));
        lock(self.tally).begin_step(self.start_us + begin..self.start_us + end);
        let mut lag_max = Duration::ZERO;
        for i in 0..step.records {
            let due_us = step.due_us(i, per_record);
            let due_after = Duration::from_micros(due_us.unsigned_abs());
            while let Some(early) = due_after.checked_sub(self.start.elapsed()).filter(|early| !early.is_zero()) {
                if self.is_interrupted() {
                    break;
                }
                self.sender.collect();
                self.show();
                thread::sleep(early.clamp(BURST, WAIT_MAX));
            }
            if self.is_interrupted() {
                self.shorten(i);
                break;
            }
            lag_max = lag_max.max(self.start.elapsed().saturating_sub(due_after));
            self.lag_max = self.lag_max.max(lag_max);
            if !self.record(due_us)? || !self.poison(due_us, (i + 1) * self.args.poison / step.records) {
                break;
            }
            if i.is_multiple_of(COLLECT_EVERY) {
                self.sender.collect();
                self.show();
            }
        }
        let Self { sender, progress, tally, lag_max: lag, .. } = self;
        sender.finish(|counts| progress.show(counts.records_acknowledged, || remark(*lag, tally)));
        self.seconds = self.start.elapsed().as_secs_f64();
        self.read_meters();
        Ok(lag_max)
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The step under way had only so many records.
    fn shorten(&mut self, n_records: u64) {
        if let Some(step) = self.steps.last_mut() {
            step.records = n_records;
        }
    }

    /// The reading was taken when it was due, however late it is sent.
    fn record(&mut self, due_us: Micros) -> Result<bool> {
        self.ward
            .fill(&mut self.outgoing, self.n_records, due_us, self.start_us)
            .context("writing a record as JSON")?;
        self.n_records += 1;
        Ok(self.sender.send(&self.outgoing, self.args.readings_per_record))
    }

    /// Sends poison until it is `wanted` records in all, in one partition after the other.
    fn poison(&mut self, due_us: Micros, wanted: u64) -> bool {
        while self.n_poison < wanted {
            let record = Outgoing {
                topic: self.topic.name.clone(),
                partition: (self.n_poison % u64::from(self.topic.n_partitions.unsigned_abs())) as i32,
                value: Some(poison(self.n_poison, self.start_us + due_us)),
                ..Outgoing::default()
            };
            self.n_poison += 1;
            if !self.sender.send(&record, 0) {
                return false;
            }
        }
        true
    }

    /// What the watched processes have spent so far.
    fn read_meters(&mut self) {
        let n_readings = self.sender.counts().readings_acknowledged;
        for (process, meter) in &self.meters {
            match meter.spent(n_readings) {
                Ok(spent) => {
                    self.cpu.insert(*process, spent);
                }
                Err(error) => self.fault = Some(format!("the {process} ended during the run: {error:#}")),
            }
        }
    }

    fn show(&mut self) {
        let Self { progress, n_records, lag_max, tally, .. } = self;
        progress.show(*n_records, || remark(*lag_max, tally));
    }

    /// What was sent, what it cost, and where it is.
    fn end(self) -> (Sent, BTreeMap<&'static str, CpuSpent>, Manifest) {
        let args = self.args;
        let n_poison = if self.is_interrupted() { self.n_poison } else { args.poison };
        self.progress.finish();
        let sent = Sent {
            records_planned: self.steps.iter().map(|step| step.records).sum::<u64>() + n_poison,
            counts: self.sender.counts(),
            rate_planned: args.ramp.is_none().then_some(args.rate),
            seconds: self.seconds,
            lag_max: self.lag_max,
            fault: self.sender.fault().map(str::to_owned).or(self.fault),
        };
        let setting = Setting {
            topic: self.topic.name.clone(),
            partitions: self.topic.n_partitions,
            patients: args.patients,
            readings_per_record: args.readings_per_record,
            start_us: self.start_us,
        };
        let (offsets, poison) = self.sender.into_positions();
        (sent, self.cpu, Manifest::new(setting, self.steps, offsets, poison))
    }
}

impl LoadArgs {
    /// A step of the ramp that begins `after_us` after the beginning.
    fn step_at(&self, after_us: Micros, rate: f64) -> Step {
        Step::new(after_us, rate, self.step_us, self.readings_per_record)
    }
}

/// Why a step was not sustained.
fn broke(
    lag_max: Duration,
    caught_up: Option<Duration>,
    latency: &Latency,
    p99_max_us: Micros,
    settle_us: Micros,
) -> Option<String> {
    let (bound, bound_ms) = (duration::print(p99_max_us), p99_max_us as f64 / 1_000.0);
    if ms(lag_max) > bound_ms {
        return Some(format!("sending fell behind by more than {bound}: the limit is here or in the broker"));
    }
    if caught_up.is_none() {
        return Some(format!("the engine did not catch up within {}", duration::print(settle_us)));
    }
    if latency.count == 0 {
        return Some("no alert came, so nothing is known: longer steps, or more patients".to_owned());
    }
    (latency.p99 > bound_ms).then(|| format!("p99 is above {bound}"))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

fn remark(lag_max: Duration, tally: &Mutex<AlertTally>) -> String {
    format!("{} alerts, largest lag {:.0} ms", HumanCount(lock(tally).alerts), ms(lag_max))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use serde_json::Value;
    use wardbell_connectors::clock::SystemClock;
    use wardbell_connectors::log::memory::MemoryLog;
    use wardbell_connectors::log::{Isolation, Record, TopicPartition, TopicSpec};
    use wardbell_connectors::partitioner::partition_of;
    use wardbell_schemas::SECOND;

    use super::*;
    use crate::measure::histogram;
    use crate::ward::patient_id;
    use crate::{Cli, Command};

    fn args(more: &[&str]) -> LoadArgs {
        let words = ["loadtest", "load", "--topic", "devices", "--settle", "0s"];
        match Cli::try_parse_from(words.iter().chain(more).copied()).unwrap().command {
            Command::Load(args) => args,
            _ => panic!("another command"),
        }
    }

    fn sent(args: &LoadArgs, log: &MemoryLog) -> Result<LoadReport> {
        load(args, log, &SystemClock, &AtomicBool::new(false))
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
            let report = sent(&args(&[&more[..], &["--readings-per-record", per_record]].concat()), &log);
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
    fn what_is_missing_is_named_with_its_remedy() {
        let log = MemoryLog::new(Arc::new(SystemClock));
        let fault = format!("{:#}", sent(&args(&[]), &log).unwrap_err());
        assert!(fault.contains("`wardbell.alerts`") && fault.contains("wardbell run"), "{fault}");
        let fault = format!("{:#}", sent(&args(&["--for", "0s"]), &log).unwrap_err());
        assert!(fault.contains("not one record"), "{fault}");
    }

    #[test]
    fn the_manifest_says_of_each_record_whose_it_is_and_when_it_was_due() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest.json");
        let log = log_with_alerts_topic();
        let rate = ["--partitions", "3", "--patients", "7", "--rate", "3000", "--for", "100ms"];
        let more = ["--readings-per-record", "2", "--poison", "4", "--manifest", path.to_str().unwrap()];
        let report = sent(&args(&[&rate[..], &more].concat()), &log).unwrap();
        assert!(report.ok, "{report}");
        let manifest = Manifest::read(&path).unwrap();
        assert_eq!((manifest.records, manifest.readings, manifest.poison.len()), (150, 300, 4));
        let records = records(&log, 3);
        assert_eq!(records.len(), 154);
        let mut n_found = 0;
        manifest.for_each_record(|sent| {
            let found =
                records.iter().find(|record| (record.partition, record.offset) == (sent.partition, sent.offset));
            let json: Value = serde_json::from_slice(found.unwrap().value.as_deref().unwrap()).unwrap();
            assert_eq!(json["patient"], patient_id(sent.patient));
            assert_eq!(json["time"], sent.due_us);
            n_found += 1;
        });
        assert_eq!(n_found, 150);
        for position in &manifest.poison {
            let found = records.iter().find(|record| (record.partition, record.offset) == *position);
            assert_eq!(found.unwrap().key, None);
        }
    }

    #[test]
    fn sending_that_is_interrupted_was_planned_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let (manifest, alerts) = (folder.path().join("manifest.json"), folder.path().join("alerts.jsonl"));
        let log = log_with_alerts_topic();
        let interrupted = AtomicBool::new(false);
        let more = ["--rate", "1000", "--for", "1h", "--poison", "3", "--manifest", manifest.to_str().unwrap()];
        let args = args(&[&more[..], &["--alerts", alerts.to_str().unwrap()]].concat());
        let report = thread::scope(|scope| {
            let sending = scope.spawn(|| load(&args, &log, &SystemClock, &interrupted));
            while !sending.is_finished() && log.offsets("devices", 0).map_or(0, |(_, end)| end) == 0 {
                thread::sleep(BURST);
            }
            interrupted.store(true, Ordering::Relaxed);
            sending.join().unwrap().unwrap()
        });
        assert!(report.ok, "{report}");
        let manifest = Manifest::read(&manifest).unwrap();
        assert!((1..3_600_000).contains(&manifest.records), "{}", manifest.records);
        let mut n_found = 0;
        manifest.for_each_record(|_| n_found += 1);
        assert_eq!((manifest.steps[0].records, n_found), (manifest.records, manifest.records));
        assert!(alerts.exists());
    }

    #[test]
    fn a_rate_is_sustained_only_if_everything_kept_up() {
        let latency = |us: u64| {
            let mut histogram = histogram().unwrap();
            histogram.saturating_record(us);
            Latency::new(&histogram)
        };
        let (soon, late) = (Duration::from_millis(1), Duration::from_secs(2));
        let broke = |lag, caught_up, latency: &Latency| broke(lag, caught_up, latency, SECOND, 10 * SECOND);
        assert_eq!(broke(soon, Some(late), &latency(900_000)), None);
        for (lag, caught_up, latency, part) in [
            (late, Some(soon), latency(1), "sending fell behind by more than 1s"),
            (soon, None, latency(1), "did not catch up within 10s"),
            (soon, Some(soon), Latency::new(&histogram().unwrap()), "no alert"),
            (soon, Some(soon), latency(1_100_000), "p99 is above 1s"),
        ] {
            let broke = broke(lag, caught_up, &latency).unwrap();
            assert!(broke.contains(part), "{broke}");
        }
    }
}
