//! The yardstick: the least that anything can do that reads a topic and commits what it made of it.
//!
//! For each source partition a thread reads what has come within 5 ms, writes one small record and commits it together
//! with the offset in one transaction; a read-committed reader stops the time from the append of each source record. Run
//! beside the engine in the same minute on the same machine, it takes broker, disk and weather out of the comparison.

use std::fmt::{self, Formatter};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use indicatif::HumanCount;
use serde::Serialize;
use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::{
    GroupHandle, Isolation, Log, LogError, Member, MemberEvent, Membership, Outgoing, PartitionReader, Progress,
    Record, Remedy, StampedBy, TopicPartition, TopicSpec, Transactional,
};
use wardbell_schemas::Micros;

use crate::ProbeArgs;
use crate::measure::{Latency, Tail, histogram};
use crate::report::write_latencies;

/// Where the small records go.
const TOPIC: &str = "loadtest.probe";
/// Nobody needs them after this.
const RETENTION: Duration = Duration::from_secs(3_600);
/// Consumer group, and the prefix of transactional ids.
const GROUP: &str = "loadtest-probe";
/// What has arrived is gathered for at most this long, as the engine does.
const GATHER: Duration = Duration::from_millis(5);
/// Wait for the first record of a batch; a stop is looked for in between.
const IDLE_WAIT: Duration = Duration::from_millis(20);
const RECORDS_MAX: usize = 5_000;
/// A group forms within this, or not at all.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two attempts of the same transaction.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Runs the command for its time; whether all is well.
///
/// # Errors
/// If the topic is not there or the probe cannot join.
pub fn run(args: &ProbeArgs, log: &dyn Log, clock: &dyn Clock) -> Result<bool> {
    let probe = Probe::begin(log, &args.topic)?;
    let stop = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        let probing = scope.spawn(|| probe.run(clock, &stop));
        thread::sleep(Duration::from_micros(args.duration_us.unsigned_abs()));
        stop.store(true, Ordering::Relaxed);
        probing.join()
    });
    let Ok(report) = report else { bail!("the thread of the probe panicked") };
    let report = report?;
    if args.json {
        println!("{}", serde_json::to_string(&report).context("printing the report")?);
    } else {
        print!("{report}");
    }
    Ok(report.faults.is_empty())
}

/// A probe that has joined its group and is ready to go.
pub struct Probe {
    /// Keeps the partitions ours.
    member: Box<dyn Member>,
    workers: Vec<Worker>,
    /// The end of the topic the small records go to.
    tail: Tail,
}

/// What one source partition is worked on with.
struct Worker {
    reader: Box<dyn PartitionReader>,
    producer: Box<dyn Transactional>,
    group: GroupHandle,
    /// Where its records go.
    to: TopicPartition,
}

/// What the probe measured.
#[derive(Debug, Serialize)]
pub struct ProbeReport {
    #[serde(rename = "type")]
    kind: &'static str,
    /// Source records whose append time is known and whose transaction was read.
    pub records: u64,
    pub transactions: u64,
    /// From source append to a read-committed reader.
    pub latency_ms: Latency,
    pub faults: Vec<String>,
}

impl ProbeReport {
    pub fn new(latency_ms: Latency, transactions: u64, faults: Vec<String>) -> Self {
        Self { kind: "probe", records: latency_ms.count, transactions, latency_ms, faults }
    }
}

/// Append times of a batch and how many records share each: the small record's value.
type AppendTimes = Vec<(Micros, u64)>;

impl Probe {
    /// Joins and makes ready, so that nothing of that is measured; reading begins where the topic ends now.
    ///
    /// # Errors
    /// If the source topic is not there, or the group does not form.
    pub fn begin(log: &dyn Log, source: &str) -> Result<Self> {
        let (n_partitions, stamped_by) = log.describe(source).context("preparing the probe")?;
        if stamped_by != StampedBy::Broker {
            bail!("topic `{source}` has producer time stamps; the probe measures from the broker's append time");
        }
        let spec = TopicSpec {
            name: TOPIC.to_owned(),
            partitions: n_partitions,
            stamped_by: StampedBy::Broker,
            retention: Some(RETENTION),
            create: true,
            any_partitions: true,
        };
        log.prepare(&[spec]).context("preparing the probe's topic")?;
        let (n_targets, _) = log.describe(TOPIC).context("preparing the probe's topic")?;
        let membership = Membership {
            group: GROUP.to_owned(),
            topics: vec![source.to_owned()],
            isolation: Isolation::ReadCommitted,
            instance: None,
        };
        let mut member = log.join(&membership).context("joining the probe's group")?;
        let partitions = assigned(&mut *member, n_partitions)?;
        let mut starts = Vec::new();
        for partition in partitions {
            let (_, end_offset) = log.offsets(&partition.topic, partition.partition).context("starting the probe")?;
            starts.push((partition, end_offset));
        }
        let readers = member.start_split(&starts).context("starting the probe")?;
        let mut workers = Vec::new();
        for reader in readers {
            let partition = reader.position().partition;
            let to = TopicPartition::new(TOPIC, partition % n_targets);
            let mut producer = log.transactional(&format!("{GROUP}-{partition}")).context("starting the probe")?;
            producer.warm_up(&to).context("starting the probe")?;
            workers.push(Worker { reader, producer, group: member.group(), to });
        }
        let tail = Tail::at_end(log, TOPIC).context("starting the probe")?;
        Ok(Self { member, workers, tail })
    }

    /// Works until `stop` is set.
    ///
    /// # Errors
    /// None that come from the broker: those are part of the report.
    pub fn run(self, clock: &dyn Clock, stop: &AtomicBool) -> Result<ProbeReport> {
        let Self { mut member, workers, tail } = self;
        let mut measured = histogram()?;
        let transactions = AtomicU64::new(0);
        let (fault, faults) = sync_channel(workers.len() + 1);
        let mut all_faults: Vec<String> = thread::scope(|scope| {
            for worker in workers {
                let (fault, transactions) = (fault.clone(), &transactions);
                scope.spawn(move || worker.work(stop, transactions, &fault));
            }
            let measured = &mut measured;
            let measuring =
                scope.spawn(move || tail.run(clock, stop, |record, now_us| measure(measured, record, now_us)));
            if let Err(what) = keep(&mut *member, stop) {
                // One for each worker and one for the member fit.
                let _ = fault.try_send(what);
            }
            measuring.join().unwrap_or_else(|_| vec!["the thread that reads the probe's records panicked".to_owned()])
        });
        drop(fault);
        all_faults.extend(faults);
        member.leave();
        Ok(ProbeReport::new(Latency::new(&measured), transactions.into_inner(), all_faults))
    }
}

/// Waits until the group has given us all partitions.
fn assigned(member: &mut dyn Member, n_partitions: i32) -> Result<Vec<TopicPartition>> {
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let mut partitions = Vec::new();
    while partitions.len() < n_partitions as usize {
        if Instant::now() > deadline {
            bail!("group `{GROUP}` has not formed within {} s; does another probe run?", JOIN_TIMEOUT.as_secs());
        }
        for event in member.events(IDLE_WAIT).context("joining the probe's group")? {
            match event {
                MemberEvent::Assigned(more) => partitions.extend(more),
                MemberEvent::Revoked(_) | MemberEvent::Lost(_) => bail!("another probe runs in group `{GROUP}`"),
            }
        }
    }
    Ok(partitions)
}

/// Serves the membership until `stop` is set. A probe that lost its partitions measures nothing any more.
fn keep(member: &mut dyn Member, stop: &AtomicBool) -> Result<(), String> {
    while !stop.load(Ordering::Relaxed) {
        match member.events(IDLE_WAIT) {
            Ok(events) if events.is_empty() => {}
            Ok(_) => return Err("the probe's group changed while it ran: was the broker away?".to_owned()),
            Err(error) if error.remedy == Remedy::Retry => thread::sleep(IDLE_WAIT),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

impl Worker {
    fn work(mut self, stop: &AtomicBool, transactions: &AtomicU64, fault: &SyncSender<String>) {
        let mut records = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            records.clear();
            let done = self.gather(&mut records).and_then(|()| self.commit(&records, stop));
            match done {
                Ok(committed) => {
                    transactions.fetch_add(u64::from(committed), Ordering::Relaxed);
                }
                Err(error) => {
                    let _ = fault.try_send(error.to_string());
                    return;
                }
            }
        }
    }

    fn gather(&mut self, records: &mut Vec<Record>) -> Result<(), LogError> {
        passing(self.reader.read(RECORDS_MAX, IDLE_WAIT, records))?;
        if records.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + GATHER;
        while records.len() < RECORDS_MAX {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            passing(self.reader.read(RECORDS_MAX - records.len(), left, records))?;
        }
        Ok(())
    }

    /// Whether there was anything to commit.
    fn commit(&mut self, records: &[Record], stop: &AtomicBool) -> Result<bool, LogError> {
        let Some(last) = records.last() else {
            return Ok(false);
        };
        let record = Outgoing {
            topic: self.to.topic.clone(),
            partition: self.to.partition,
            value: serde_json::to_vec(&append_times(records)).ok(),
            ..Outgoing::default()
        };
        let position = self.reader.position().clone();
        let progress = Progress { group: &self.group, position, next_offset: last.offset + 1, metadata: "" };
        loop {
            match self.producer.commit(std::slice::from_ref(&record), Some(&progress)) {
                Ok(()) => return Ok(true),
                Err(error) if error.remedy == Remedy::Retry && !stop.load(Ordering::Relaxed) => {
                    thread::sleep(RETRY_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// What the client bridges by itself is no fault.
fn passing(result: Result<(), LogError>) -> Result<(), LogError> {
    result.or_else(|error| if error.remedy == Remedy::Retry { Ok(()) } else { Err(error) })
}

fn append_times(records: &[Record]) -> AppendTimes {
    let mut times: AppendTimes = Vec::new();
    for append_us in records.iter().filter_map(|record| record.append_us) {
        match times.last_mut() {
            Some((known, count)) if *known == append_us => *count += 1,
            _ => times.push((append_us, 1)),
        }
    }
    times
}

fn measure(histogram: &mut Histogram<u64>, record: &Record, now_us: Micros) {
    let times = record.value.as_deref().and_then(|value| serde_json::from_slice::<AppendTimes>(value).ok());
    for (append_us, count) in times.unwrap_or_default() {
        histogram.saturating_record_n(u64::try_from(now_us - append_us).unwrap_or(0), count);
    }
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (records, transactions) = (HumanCount(self.records), HumanCount(self.transactions));
        let title =
            format!("probe: {records} records read and committed in {transactions} transactions, latency in ms");
        write_latencies(f, &title, "", &[("probe", self.latency_ms)])?;
        for fault in &self.faults {
            writeln!(f, "  fault: {fault}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wardbell_connectors::clock::SystemClock;
    use wardbell_connectors::log::memory::MemoryLog;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn log_with_source(stamped_by: StampedBy) -> MemoryLog {
        let log = MemoryLog::new(Arc::new(SystemClock));
        let source = TopicSpec {
            name: "devices".to_owned(),
            partitions: 3,
            stamped_by,
            retention: None,
            create: true,
            any_partitions: false,
        };
        log.prepare(&[source]).unwrap();
        log
    }

    #[test]
    fn every_record_is_measured_once_and_its_offset_committed() {
        let log = log_with_source(StampedBy::Broker);
        let mut appender = log.appender().unwrap();
        let mut append = |n: i32| {
            for i in 0..n {
                let record = Outgoing { topic: "devices".to_owned(), partition: i % 3, ..Outgoing::default() };
                appender.append(&record, 0).unwrap();
            }
        };
        append(30);
        let probe = Probe::begin(&log, "devices").unwrap();
        let stop = AtomicBool::new(false);
        let partitions = [0, 1, 2].map(|partition| TopicPartition::new("devices", partition));
        let report = thread::scope(|scope| {
            let probing = scope.spawn(|| probe.run(&SystemClock, &stop));
            append(60);
            let deadline = Instant::now() + PATIENCE;
            while log.committed(GROUP, &partitions).unwrap() != [Some(30); 3] && Instant::now() < deadline {
                thread::sleep(IDLE_WAIT);
            }
            stop.store(true, Ordering::Relaxed);
            probing.join().unwrap().unwrap()
        });
        assert_eq!(log.committed(GROUP, &partitions).unwrap(), [Some(30); 3]);
        assert_eq!((report.records, report.latency_ms.count), (60, 60), "those from before are not measured: {report}");
        assert!(report.transactions >= 3 && report.faults.is_empty(), "{report}");
    }

    #[test]
    fn producer_time_stamps_are_refused() {
        let log = log_with_source(StampedBy::Producer);
        let fault = Probe::begin(&log, "devices").err().expect("nothing to measure from").to_string();
        assert!(fault.contains("append time"), "{fault}");
    }

    #[test]
    fn records_of_one_millisecond_share_an_entry() {
        let record = |append_us| Record {
            partition: 0,
            offset: 0,
            time_us: 0,
            append_us,
            key: None,
            value: None,
            headers: Vec::new(),
        };
        let records = [record(Some(1_000)), record(Some(1_000)), record(None), record(Some(2_000))];
        assert_eq!(append_times(&records), [(1_000, 2), (2_000, 1)]);
    }
}
