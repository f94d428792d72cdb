//! `replay`: a recording becomes records of a source topic, live or with its own times.
//!
//! Live, each record bears the time of its sending, at a chosen multiple of the recording's speed. With record time the
//! recorded time is the event time and Kafka's time stamp, for a job that runs on `clock = "record"`. Either way the
//! readings that were sent are counted exactly: the engine's outcome counters are held against that number.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::HumanCount;
use serde::Serialize;
use serde_json::value::RawValue;
use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::{Log, Outgoing, StampedBy};
use wardbell_schemas::alert::print_time;
use wardbell_schemas::{Micros, SECOND};

use crate::progress::Progress;
use crate::recording::{self, Entry, Reading, Recording};
use crate::source::{SendCounts, Sender, SourceTopic};
use crate::{ReplayArgs, Speed};

/// 2026-01-01T00:00:00Z, where a recording without dates begins.
const START_DEFAULT_US: Micros = 1_767_225_600 * SECOND;
/// A minute of a recording in a second.
const SPEED_LIVE: Speed = Speed::Times(60.0);
/// What a broker accepts ahead of its own clock, unless `message.timestamp.after.max.ms` says otherwise.
const AHEAD_MAX: Micros = 3_600 * SECOND;
/// Acknowledgments are taken in after so many records.
const COLLECT_EVERY: u64 = 256;
/// Progress goes on while a slow recording is waited for.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Runs the command; whether all is well.
///
/// # Errors
/// If there is nothing to send or nowhere to send it to.
pub fn run(args: &ReplayArgs, log: &dyn Log, clock: &dyn Clock) -> Result<bool> {
    let summary = replay(args, log, clock)?;
    if args.json {
        println!("{}", serde_json::to_string(&summary).context("printing the summary")?);
    } else {
        print!("{summary}");
    }
    Ok(summary.ok)
}

/// What was sent and what was not.
#[derive(Debug, Serialize)]
struct Summary {
    #[serde(rename = "type")]
    kind: &'static str,
    topic: String,
    partitions: i32,
    /// Records of the recording; fewer were sent only after a fault.
    records: u64,
    #[serde(flatten)]
    counts: SendCounts,
    not_mapped: BTreeMap<String, u64>,
    /// Record times of the first and the last record, where they were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_times: Option<[String; 2]>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    ok: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(f, "replayed into `{}`, {} partitions, in {:.1} s", self.topic, self.partitions, self.seconds)?;
        let (records, readings) = (HumanCount(counts.records_sent), HumanCount(counts.readings_sent));
        writeln!(f, "  sent            {records} of {} records, {readings} readings", HumanCount(self.records))?;
        let (records, readings) = (HumanCount(counts.records_acknowledged), HumanCount(counts.readings_acknowledged));
        writeln!(f, "  acknowledged    {records} records, {readings} readings")?;
        if let Some([first, last]) = &self.record_times {
            writeln!(f, "  record time     {first} to {last}")?;
        }
        let total: u64 = self.not_mapped.values().sum();
        writeln!(f, "  not mapped      {} values, not sent", HumanCount(total))?;
        for (name, count) in &self.not_mapped {
            writeln!(f, "    {name:<14}{count:>10}")?;
        }
        if let Some(fault) = &self.fault {
            writeln!(f, "  stopped         {fault}")?;
        }
        writeln!(f, "{}", if self.ok { "ok" } else { "NOT OK: records of the recording were not acknowledged" })
    }
}

fn replay(args: &ReplayArgs, log: &dyn Log, clock: &dyn Clock) -> Result<Summary> {
    let recording = recording::read(&args.file, args.stays)?;
    let (Some(first), Some(last)) = (recording.entries.first(), recording.entries.last()) else {
        bail!("recording `{}` holds nothing that can be sent", args.file.display());
    };
    let stamped_by = if args.record_time { StampedBy::Producer } else { StampedBy::Broker };
    let shift_us = record_time_shift(&recording, first, args.start);
    let record_times = [first.at_us + shift_us, last.at_us + shift_us];
    if args.record_time {
        warn_if_ahead(record_times[1], clock.now_us());
    }
    let topic = SourceTopic::prepare(log, &args.topic, args.partitions, stamped_by)?;
    let mut sender = Sender::new(log)?;
    let start = Instant::now();
    let times = if args.record_time { Times::Recorded { shift_us } } else { Times::Now { last_us: 0 } };
    let speed = args.speed.unwrap_or(if args.record_time { Speed::Max } else { SPEED_LIVE });
    send_all(&recording.entries, speed, times, &topic, &mut sender, clock)?;
    let records = recording.entries.len() as u64;
    let counts = sender.counts();
    Ok(Summary {
        kind: "replay",
        partitions: topic.n_partitions,
        topic: topic.name,
        records,
        counts,
        not_mapped: recording.not_mapped,
        record_times: args.record_time.then(|| record_times.map(print_time)),
        seconds: start.elapsed().as_secs_f64(),
        fault: sender.fault().map(str::to_owned),
        ok: counts.records_sent == records && counts.is_all_acknowledged() && sender.fault().is_none(),
    })
}

/// From the recording's times to record times.
fn record_time_shift(recording: &Recording, first: &Entry, start: Option<Micros>) -> Micros {
    match (recording.is_dated, start) {
        (true, Some(start_us)) => start_us - first.at_us,
        (true, None) => 0,
        (false, start) => start.unwrap_or(START_DEFAULT_US),
    }
}

fn warn_if_ahead(last_us: Micros, now_us: Micros) {
    if last_us > now_us + AHEAD_MAX {
        eprintln!(
            "note: the recording ends at {}; a broker refuses time stamps more than an hour ahead of its clock: \
             choose an earlier --start if it does",
            print_time(last_us)
        );
    }
}

/// Which time a record bears.
#[derive(Debug, Clone, Copy)]
enum Times {
    /// Its recorded one.
    Recorded { shift_us: Micros },
    /// That of its sending; never one twice, or two records of a patient would be of one time.
    Now { last_us: Micros },
}

impl Times {
    fn of(&mut self, entry: &Entry, clock: &dyn Clock) -> Micros {
        match self {
            Times::Recorded { shift_us } => entry.at_us + *shift_us,
            Times::Now { last_us } => {
                *last_us = clock.now_us().max(*last_us + 1);
                *last_us
            }
        }
    }

    fn is_recorded(&self) -> bool {
        matches!(self, Times::Recorded { .. })
    }
}

fn send_all(
    entries: &[Entry],
    speed: Speed,
    mut times: Times,
    topic: &SourceTopic,
    sender: &mut Sender,
    clock: &dyn Clock,
) -> Result<()> {
    let mut progress = Progress::new("replay", entries.len() as u64);
    let begin_us = entries.first().map_or(0, |entry| entry.at_us);
    let start = Instant::now();
    let mut outgoing = Outgoing { topic: topic.name.clone(), ..Outgoing::default() };
    for (entry, i) in entries.iter().zip(0_u64..) {
        let due_after = due(speed, entry.at_us - begin_us);
        while let Some(wait) = due_after.checked_sub(start.elapsed()).filter(|wait| !wait.is_zero()) {
            thread::sleep(wait.min(WAIT_MAX));
            sender.collect();
            progress.show(i, || acknowledged(&sender.counts()));
        }
        let time_us = times.of(entry, clock);
        outgoing.partition = topic.partition(&entry.patient);
        outgoing.key = Some(entry.patient.as_bytes().to_vec());
        outgoing.value = Some(canonical_json(entry, time_us)?);
        outgoing.time_us = times.is_recorded().then_some(time_us);
        if !sender.send(&outgoing, entry.readings.len() as u64) {
            break;
        }
        if i.is_multiple_of(COLLECT_EVERY) {
            sender.collect();
            progress.show(i, || acknowledged(&sender.counts()));
        }
    }
    sender.finish(|counts| progress.show(counts.records_sent, || acknowledged(counts)));
    progress.finish();
    Ok(())
}

fn acknowledged(counts: &SendCounts) -> String {
    format!("{} acknowledged", HumanCount(counts.records_acknowledged))
}

/// When a record is due, from the beginning of the replay.
fn due(speed: Speed, recorded_us: Micros) -> Duration {
    match speed {
        Speed::Max => Duration::ZERO,
        Speed::Times(factor) => {
            let seconds = recorded_us as f64 / SECOND as f64 / factor;
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
        }
    }
}

/// One record of the canonical JSON form, as `connectors/src/decode/json.rs` describes it.
#[derive(Serialize)]
struct JsonRecord<'a> {
    patient: &'a str,
    device: &'a str,
    time: String,
    readings: Vec<JsonReading<'a>>,
}

#[derive(Serialize)]
struct JsonReading<'a> {
    signal: &'a str,
    value: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
}

fn canonical_json(entry: &Entry, time_us: Micros) -> Result<Vec<u8>> {
    let record = JsonRecord {
        patient: &entry.patient,
        device: &entry.device,
        time: print_time(time_us),
        readings: entry.readings.iter().map(json_reading).collect(),
    };
    serde_json::to_vec(&record).context("writing a record as JSON")
}

fn json_reading(reading: &Reading) -> JsonReading<'_> {
    JsonReading { signal: &reading.channel.signal, value: &reading.value, unit: reading.channel.unit.as_deref() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use clap::Parser;
    use wardbell_connectors::clock::ManualClock;
    use wardbell_connectors::decode::Decoder;
    use wardbell_connectors::decode::json::JsonDecoder;
    use wardbell_connectors::log::memory::MemoryLog;
    use wardbell_connectors::log::{Isolation, Record, TopicPartition};
    use wardbell_connectors::partitioner::partition_of;

    use super::*;
    use crate::{Cli, Command};

    const ICU: &str = "\
stay,time,parameter,value
7,00:00,Age,54
7,00:00,Weight,-1
7,00:07,HR,73
7,00:07,Temp,35.1
8,00:00,Age,61
8,00:05,HR,80
";

    fn args(file: &Path, more: &[&str]) -> ReplayArgs {
        let file = file.to_str().unwrap();
        let words =
            ["loadtest", "replay", "--topic", "devices", "--file", file].into_iter().chain(more.iter().copied());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Replay(args) => args,
            _ => panic!("another command"),
        }
    }

    /// Replays the recording above; gives the summary and all records of the topic.
    fn replayed(more: &[&str], now_us: Micros) -> (Summary, Vec<Record>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("recording.csv");
        std::fs::write(&file, ICU).unwrap();
        let clock = ManualClock::default();
        clock.set(now_us);
        let log = MemoryLog::new(Arc::new(clock.clone()));
        let summary = replay(&args(&file, more), &log, &clock).unwrap();
        let mut records = Vec::new();
        for partition in 0..summary.partitions {
            let from = TopicPartition::new("devices", partition);
            let mut reader = log.reader(&from, 0, Isolation::ReadCommitted).unwrap();
            reader.read(1_000, Duration::ZERO, &mut records).unwrap();
        }
        records.sort_by_key(|record| (record.time_us, record.key.clone()));
        (summary, records)
    }

    fn text(record: &Record) -> &str {
        std::str::from_utf8(record.value.as_deref().unwrap()).unwrap()
    }

    #[test]
    fn with_record_time_a_record_bears_its_recorded_time_twice() {
        let more = ["--record-time", "--start", "2026-03-01T00:00:00Z", "--partitions", "3"];
        let (summary, records) = replayed(&more, 1_800_000_000 * SECOND);
        let start_us = recording::parse_rfc3339("2026-03-01T00:00:00Z").unwrap();
        let times: Vec<Micros> = records.iter().map(|record| (record.time_us - start_us) / (60 * SECOND)).collect();
        assert_eq!(times, [0, 5, 7]);
        assert_eq!(
            text(&records[2]),
            r#"{"patient":"stay-7","device":"monitor-7","time":"2026-03-01T00:07:00.000000Z","readings":[{"signal":"heart_rate","value":73,"unit":"bpm"},{"signal":"temp_core","value":35.1,"unit":"Cel"}]}"#
        );
        assert_eq!(records[2].partition, partition_of("stay-7", 3));
        assert_eq!(summary.record_times.as_ref().unwrap()[1], "2026-03-01T00:07:00.000000Z");
        assert!(summary.ok);
    }

    #[test]
    fn the_number_of_readings_sent_is_what_a_decoder_finds() {
        let (summary, records) = replayed(&["--speed", "max"], 1_800_000_000 * SECOND);
        let decoded: usize =
            records.iter().map(|record| JsonDecoder.decode(record.value.as_deref().unwrap()).len()).sum();
        assert_eq!((summary.counts.readings_sent, summary.counts.readings_acknowledged), (4, 4));
        assert_eq!((decoded, summary.counts.records_sent, records.len()), (4, 3, 3));
        assert_eq!(summary.not_mapped, BTreeMap::from([("Age".to_owned(), 2)]));
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["type"], "replay");
        assert_eq!(json["readings_sent"], 4);
        assert_eq!(json["not_mapped"]["Age"], 2);
    }

    #[test]
    fn live_records_bear_the_time_of_their_sending_and_never_one_twice() {
        let (_, records) = replayed(&["--speed", "max", "--partitions", "1"], 1_800_000_000 * SECOND);
        let at = |us: Micros| format!("\"time\":\"{}\"", print_time(1_800_000_000 * SECOND + us));
        let mut texts: Vec<&str> = records.iter().map(text).collect();
        texts.sort_by_key(|text| (0..3).find(|us| text.contains(&at(*us))));
        assert_eq!(texts.len(), 3);
        for (text, us) in texts.iter().zip(0..) {
            assert!(text.contains(&at(us)), "{text}");
        }
    }

    #[test]
    fn pace_is_recording_seconds_per_second() {
        assert_eq!(due(Speed::Times(60.0), 60 * SECOND), Duration::from_secs(1));
        assert_eq!(due(Speed::Times(0.5), 60 * SECOND), Duration::from_secs(120));
        assert_eq!(due(Speed::Max, 60 * SECOND), Duration::ZERO);
    }

    #[test]
    fn a_recording_with_dates_keeps_them_unless_a_start_is_given() {
        let entry = |at_us| Entry { patient: "p".into(), device: "d".into(), at_us, readings: Vec::new() };
        let recording = |is_dated| Recording { is_dated, ..Recording::default() };
        assert_eq!(record_time_shift(&recording(true), &entry(500), None), 0);
        assert_eq!(record_time_shift(&recording(true), &entry(500), Some(2_000)), 1_500);
        assert_eq!(record_time_shift(&recording(false), &entry(500), Some(2_000)), 2_000);
        assert_eq!(print_time(record_time_shift(&recording(false), &entry(0), None)), "2026-01-01T00:00:00.000000Z");
    }
}
