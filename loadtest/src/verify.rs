//! `verify`: reads what a load run left behind on the broker and accounts for every reading of it.
//!
//! First it waits until the engine has committed everything, then it reads the canonical log, the dead letters and the
//! alerts from their beginnings, and the files of receivers of webhooks and of `jsonl` sinks if there are any. `ledger`
//! keeps the books on readings, `alert_book` those on alerts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Formatter};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::HumanCount;
use serde::{Deserialize, Serialize};
use wardbell_connectors::canonical::{self, Canonical};
use wardbell_connectors::log::{Isolation, Log, PartitionReader, Record, Remedy, TopicPartition};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::Control;
use wardbell_schemas::duration;
use wardbell_schemas::reading::ReadingColumns;

use crate::VerifyArgs;
use crate::alert_book::{AlertBook, ReceivedReport};
use crate::backlog::Backlog;
use crate::ledger::{Counts, Ledger, Place};
use crate::manifest::Manifest;
use crate::measure::{Histograms, Latencies, Latency};
use crate::receive::Received;
use crate::report::{write_alerts, write_count, write_latencies};

/// Records taken from one partition before the next one has its turn.
const READ_MAX: usize = 1_000;
const IDLE_PAUSE: Duration = Duration::from_millis(5);
/// Marks of transactions take offsets that no reader sees, so the end of the alerts is where nothing has come for this
/// long.
const QUIET: Duration = Duration::from_secs(2);

/// Runs the command; whether all is well.
///
/// # Errors
/// If the manifest or a topic cannot be read.
pub fn run(args: &VerifyArgs, log: &dyn Log) -> Result<bool> {
    let (report, latency) = verify(args, log, QUIET)?;
    if let Some(path) = &args.hgrm {
        latency.write_distributions(path)?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&report).context("printing the report")?);
    } else {
        print!("{report}");
    }
    Ok(report.ok)
}

fn verify(args: &VerifyArgs, log: &dyn Log, quiet: Duration) -> Result<(VerifyReport, Histograms)> {
    let manifest = Manifest::read(&args.manifest)?;
    let patience = Duration::from_micros(args.wait_us.unsigned_abs());
    let mut faults = Vec::new();
    let backlog = Backlog::new(log, &args.group, &manifest.topic, &args.canonical_topic)?;
    if backlog.wait(patience)?.is_none() {
        let waited = duration::print(args.wait_us);
        faults.push(format!("the engine has not committed everything within {waited}; give it longer with --wait"));
    }
    let mut books = Books::new(&manifest)?;
    let mut received = args.received.iter().map(|path| ReceivedFile::open(path)).collect::<Result<Vec<_>>>()?;
    let mut sources = Vec::new();
    for (kind, topic) in [
        (Topic::Canonical, &args.canonical_topic),
        (Topic::DeadLetters, &args.dead_letters_topic),
        (Topic::Alerts, &args.alerts_topic),
    ] {
        sources.extend(Source::of_topic(log, kind, topic)?);
    }
    let (began, mut heard) = (Instant::now(), Instant::now());
    loop {
        let mut is_idle = true;
        for source in &mut sources {
            is_idle &= !source.read(&mut books, &mut faults);
        }
        for file in &mut received {
            is_idle &= !file.read(&mut books)?;
        }
        if !is_idle {
            heard = Instant::now();
            continue;
        }
        // A sink that was refused tries again later and later; alerts it still owes are waited for.
        let waits = !received.is_empty() && books.alerts.n_not_received() > 0;
        let is_read = sources.iter().all(Source::is_read);
        if heard.elapsed() >= quiet && ((is_read && !waits) || began.elapsed() >= patience) {
            break;
        }
        thread::sleep(IDLE_PAUSE);
    }
    faults.extend(sources.iter().filter(|source| !source.is_read()).map(Source::unread));
    let n_activations = books.activations.len() as u64;
    if n_activations < args.activations {
        faults.push(format!("{n_activations} rule sets were activated, {} are expected", args.activations));
    }
    Ok(books.close(&manifest, !received.is_empty(), faults))
}

/// What a topic holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topic {
    Canonical,
    DeadLetters,
    Alerts,
}

/// A partition that is read from its beginning.
struct Source {
    kind: Topic,
    /// `None` after it broke.
    reader: Option<Box<dyn PartitionReader>>,
    position: TopicPartition,
    /// The first offset held.
    first: i64,
    next: i64,
    /// Where it ended when reading began.
    end: i64,
    records: Vec<Record>,
}

impl Source {
    fn of_topic(log: &dyn Log, kind: Topic, topic: &str) -> Result<Vec<Self>> {
        let (n_partitions, _) = log.describe(topic).with_context(|| format!("looking for topic `{topic}`"))?;
        let open = |partition: i32| {
            let step = || format!("reading topic `{topic}`, partition {partition}");
            let position = TopicPartition::new(topic, partition);
            let (first, end) = log.offsets(topic, partition).with_context(step)?;
            let reader = log.reader(&position, first, Isolation::ReadCommitted).with_context(step)?;
            Ok(Self { kind, reader: Some(reader), position, first, next: first, end, records: Vec::new() })
        };
        (0..n_partitions).map(open).collect()
    }

    /// Everything that was there when reading began is read, as far as that can be told.
    fn is_read(&self) -> bool {
        self.next >= self.end || (self.kind == Topic::Alerts && self.reader.is_some())
    }

    fn unread(&self) -> String {
        let TopicPartition { topic, partition } = &self.position;
        format!("`{topic}`, partition {partition} was read to offset {} of {}", self.next, self.end)
    }

    /// Whether anything was there.
    fn read(&mut self, books: &mut Books, faults: &mut Vec<String>) -> bool {
        // The canonical log goes on with ticks: what came after the beginning is none of ours.
        if self.kind != Topic::Alerts && self.next >= self.end {
            return false;
        }
        let Some(reader) = &mut self.reader else {
            return false;
        };
        self.records.clear();
        if let Err(error) = reader.read(READ_MAX, Duration::ZERO, &mut self.records)
            && error.remedy != Remedy::Retry
        {
            faults.push(error.to_string());
            self.reader = None;
        }
        for record in &self.records {
            self.next = record.offset + 1;
            match self.kind {
                Topic::Canonical => books.canonical(record, &self.position, faults),
                Topic::DeadLetters => books.dead_letter(record),
                Topic::Alerts => books.alerts.take(record, self.first > 0, &books.ledger),
            }
        }
        !self.records.is_empty()
    }
}

/// A dead letter, as far as it says where it is from.
#[derive(Debug, Deserialize)]
struct Letter {
    topic: String,
    partition: i32,
    offset: i64,
    index: u32,
}

/// What all topics together say.
struct Books {
    ledger: Ledger,
    alerts: AlertBook,
    /// Dead letters that cannot be read.
    letters_unreadable: u64,
    /// Numbers of the rule sets that came into force.
    activations: BTreeSet<u64>,
}

impl Books {
    fn new(manifest: &Manifest) -> Result<Self> {
        Ok(Self {
            ledger: Ledger::new(manifest),
            alerts: AlertBook::try_new(manifest)?,
            letters_unreadable: 0,
            activations: BTreeSet::new(),
        })
    }

    fn canonical(&mut self, record: &Record, position: &TopicPartition, faults: &mut Vec<String>) {
        let place = || format!("`{}`, partition {} offset {}", position.topic, position.partition, record.offset);
        let batch = match canonical::read(record, &Catalogue::builtin().hash) {
            Ok(Canonical::Readings(batch)) => batch,
            Ok(Canonical::Control(control)) => {
                if let Control::Activate { number, .. } = control.control {
                    self.activations.insert(number);
                }
                return;
            }
            Err(error) => return faults.push(format!("{}: {error}", place())),
        };
        let columns = match ReadingColumns::try_new(&batch) {
            Ok(columns) => columns,
            Err(error) => return faults.push(format!("{}: {error}", place())),
        };
        for i in 0..columns.len() {
            let Some(row) = columns.row(i) else {
                faults.push(format!("{}: row {i} is not of this version", place()));
                continue;
            };
            let source = Place {
                topic: row.source_topic,
                partition: row.source_partition,
                offset: row.source_offset,
                index: row.source_index,
            };
            self.ledger.row(source, row.patient, row.event_time_us);
        }
    }

    fn dead_letter(&mut self, record: &Record) {
        let letter = record.value.as_deref().and_then(|value| serde_json::from_slice::<Letter>(value).ok());
        let Some(Letter { topic, partition, offset, index }) = letter else {
            self.letters_unreadable += 1;
            return;
        };
        self.ledger.letter(Place { topic: &topic, partition, offset, index });
    }

    fn close(self, manifest: &Manifest, with_received: bool, faults: Vec<String>) -> (VerifyReport, Histograms) {
        let Self { ledger, alerts, letters_unreadable, activations } = self;
        let received = with_received.then(|| alerts.received_report());
        let counts = ledger.counts;
        let ok = faults.is_empty()
            && letters_unreadable == 0
            && (ledger.n_missing(), counts.altered, counts.refused, counts.poison_accepted) == (0, 0, 0, 0)
            && (alerts.ids_twice, alerts.gaps, alerts.under_two_ids, alerts.unreadable) == (0, 0, 0, 0)
            && received.as_ref().is_none_or(ReceivedReport::is_well);
        let report = VerifyReport {
            kind: "verify",
            topic: manifest.topic.clone(),
            records: manifest.records,
            readings: manifest.readings,
            poison: manifest.poison.len() as u64,
            found: counts,
            missing: ledger.n_missing(),
            missing_first: ledger.missing_first(),
            altered_first: ledger.altered_first,
            letters_unreadable,
            activations: activations.len() as u64,
            alerts: alerts.ours.len() as u64,
            alerts_of_others: alerts.of_others,
            alerts_by_rule: alerts.by_rule,
            alert_ids_twice: alerts.ids_twice,
            alert_number_gaps: alerts.gaps,
            transitions_under_two_ids: alerts.under_two_ids,
            alerts_unreadable: alerts.unreadable,
            alerts_suspect_first: alerts.suspect_first,
            latency_from_schedule_ms: Latencies::new(&alerts.latency),
            latency_by_priority_ms: alerts
                .by_priority
                .iter()
                .map(|(priority, histogram)| (*priority, Latency::new(histogram)))
                .collect(),
            received,
            faults,
            ok,
        };
        (report, alerts.latency)
    }
}

/// The file a receiver of webhooks or a `jsonl` sink writes, while it writes it.
struct ReceivedFile {
    lines: BufReader<File>,
    /// A line of which the end is not there yet.
    line: Vec<u8>,
    shown: String,
}

impl ReceivedFile {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening what was received, `{}`", path.display()))?;
        Ok(Self { lines: BufReader::new(file), line: Vec::new(), shown: path.display().to_string() })
    }

    /// Whether there was more.
    fn read(&mut self, books: &mut Books) -> Result<bool> {
        let mut is_more = false;
        loop {
            let more = self.lines.read_until(b'\n', &mut self.line);
            more.with_context(|| format!("reading `{}`", self.shown))?;
            if !self.line.ends_with(b"\n") {
                return Ok(is_more);
            }
            match Received::parse(&self.line) {
                Some(request) => books.alerts.receive(request),
                None => books.alerts.lines_torn += 1,
            }
            self.line.clear();
            is_more = true;
        }
    }
}

/// What verifying came to.
#[derive(Debug, Serialize)]
struct VerifyReport {
    #[serde(rename = "type")]
    kind: &'static str,
    topic: String,
    /// What was sent and acknowledged.
    records: u64,
    readings: u64,
    poison: u64,
    found: Counts,
    /// Readings and poison records that are nowhere.
    missing: u64,
    missing_first: Vec<String>,
    altered_first: Vec<String>,
    letters_unreadable: u64,
    /// Rule sets that came into force, in whichever partitions.
    activations: u64,
    alerts: u64,
    alerts_of_others: u64,
    /// Rule id, transition, count.
    alerts_by_rule: BTreeMap<String, BTreeMap<&'static str, u64>>,
    alert_ids_twice: u64,
    alert_number_gaps: u64,
    transitions_under_two_ids: u64,
    alerts_unreadable: u64,
    /// Ids with what is wrong with them.
    alerts_suspect_first: Vec<String>,
    /// From the moment the reading, or the end of the hold, was due, to the append of the alert.
    latency_from_schedule_ms: Latencies,
    latency_by_priority_ms: BTreeMap<&'static str, Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    received: Option<ReceivedReport>,
    faults: Vec<String>,
    ok: bool,
}

impl VerifyReport {
    fn write_readings(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (readings, records) = (HumanCount(self.readings), HumanCount(self.records));
        writeln!(f, "sent to `{}`: {readings} readings in {records} records, {} poison", self.topic, self.poison)?;
        write_count(f, "in the canonical log", self.found.canonical)?;
        write_count(f, "repeated there", self.found.repeated)?;
        write_count(f, "poison in the dead-letter topic", self.found.poison_refused)?;
        write_count(f, "missing", self.missing)?;
        for (what, count) in [
            ("rows with another patient or time", self.found.altered),
            ("good readings in the dead-letter topic", self.found.refused),
            ("rows made of poison", self.found.poison_accepted),
            ("dead letters that cannot be read", self.letters_unreadable),
        ] {
            if count > 0 {
                write_count(f, what, count)?;
            }
        }
        write_count(f, "rule sets activated", self.activations)?;
        write_places(f, "missing", &self.missing_first)?;
        write_places(f, "another patient or time", &self.altered_first)
    }

    fn write_alerts(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write_alerts(f, self.alerts, &self.alerts_by_rule)?;
        write_count(f, "ids that came twice", self.alert_ids_twice)?;
        write_count(f, "gaps in the numbers of an episode", self.alert_number_gaps)?;
        write_count(f, "transitions under two ids", self.transitions_under_two_ids)?;
        for (what, count) in
            [("records that are no alerts", self.alerts_unreadable), ("about other readings", self.alerts_of_others)]
        {
            if count > 0 {
                write_count(f, what, count)?;
            }
        }
        write_places(f, "suspect", &self.alerts_suspect_first)
    }
}

fn write_places(f: &mut Formatter<'_>, what: &str, places: &[String]) -> fmt::Result {
    for place in places {
        writeln!(f, "    {what}: {place}")?;
    }
    Ok(())
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write_readings(f)?;
        self.write_alerts(f)?;
        let Latencies { by_reading, by_timer } = self.latency_from_schedule_ms;
        let title = "latency in ms, from the scheduled time to the append of the alert";
        write_latencies(f, title, "decided by", &[("a reading", by_reading), ("a timer", by_timer)])?;
        let by_priority: Vec<(&str, Latency)> =
            self.latency_by_priority_ms.iter().map(|(priority, latency)| (*priority, *latency)).collect();
        write_latencies(f, "the same", "priority", &by_priority)?;
        if let Some(received) = &self.received {
            let (accepted, refused) = (HumanCount(received.requests_accepted), HumanCount(received.requests_refused));
            writeln!(f, "received: {} alerts; {accepted} requests accepted, {refused} refused", received.alerts)?;
            write_count(f, "missing", received.missing)?;
            write_count(f, "not on the alerts topic", received.unknown)?;
            if received.withheld > 0 {
                write_count(f, "later than the budget and not received", received.withheld)?;
            }
            if received.lines_torn > 0 {
                write_count(f, "unfinished lines", received.lines_torn)?;
            }
            write_places(f, "missing", &received.missing_first)?;
        }
        for fault in &self.faults {
            writeln!(f, "fault: {fault}")?;
        }
        f.write_str(if self.ok { "ok\n" } else { "NOT OK: see above what was lost, doubled or changed\n" })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::sync::Arc;

    use wardbell_connectors::canonical::{control_record, readings_record};
    use wardbell_connectors::clock::SystemClock;
    use wardbell_connectors::log::memory::MemoryLog;
    use wardbell_connectors::log::{Membership, Outgoing, StampedBy, TopicSpec};
    use wardbell_schemas::alert::{Alert, Measured, TransitionKind};
    use wardbell_schemas::catalogue::SignalIndex;
    use wardbell_schemas::control::ControlRecord;
    use wardbell_schemas::reading::{
        Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason, SourcePosition,
    };

    use super::*;
    use crate::manifest::SentRecord;
    use crate::sample::{BASIS_US, alert, content, manifest};
    use crate::ward::patient_id;

    fn from(offset: i64) -> Measured {
        let source = Some(SourcePosition { topic: "devices".to_owned(), partition: 0, offset, index: 0 });
        Measured { basis_us: BASIS_US, source, ..Measured::default() }
    }

    #[test]
    fn lines_that_are_still_being_written_are_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("received.jsonl");
        let line = |episode: &str| {
            let alert = Alert::new(content(episode, 0, TransitionKind::Raised), from(0));
            serde_json::json!({ "status": 204, "taken": true, "alert": alert }).to_string()
        };
        let mut file = File::create(&path).unwrap();
        let (first, second) = (line("e"), line("f"));
        write!(file, "{first}\n{}", &second[..20]).unwrap();
        let mut books = Books::new(&manifest()).unwrap();
        let mut received = ReceivedFile::open(&path).unwrap();
        assert!(received.read(&mut books).unwrap());
        assert!(!received.read(&mut books).unwrap());
        assert_eq!(books.alerts.received_report().alerts, 1);
        writeln!(file, "{}", &second[20..]).unwrap();
        assert!(received.read(&mut books).unwrap());
        assert_eq!(books.alerts.received_report().alerts, 2);
    }

    #[test]
    fn files_of_sinks_count_together_and_torn_lines_apart() {
        let folder = tempfile::tempdir().unwrap();
        let mut books = Books::new(&manifest()).unwrap();
        for (name, torn, episode) in [("1.jsonl", "", "e"), ("2.jsonl", "{\"specversion\":\"1.0\",\"id\":\"f\n", "f")] {
            let alert = Alert::new(content(episode, 0, TransitionKind::Raised), from(0));
            let path = folder.path().join(name);
            fs::write(&path, format!("{torn}{}\n", serde_json::to_string(&alert).unwrap())).unwrap();
            assert!(ReceivedFile::open(&path).unwrap().read(&mut books).unwrap());
        }
        let report = books.alerts.received_report();
        assert_eq!((report.alerts, report.requests_accepted, report.lines_torn), (2, 2, 1));
    }

    fn spec(name: &str) -> TopicSpec {
        TopicSpec {
            name: name.to_owned(),
            partitions: 1,
            stamped_by: StampedBy::Broker,
            retention: None,
            create: true,
            any_partitions: false,
        }
    }

    /// What an engine leaves behind that lost the records of `lost`.
    fn log(manifest: &Manifest, lost: &[i64]) -> MemoryLog {
        let log = MemoryLog::new(Arc::new(SystemClock));
        let topics = ["devices", "wardbell.readings", "wardbell.dead-letters", "wardbell.alerts"];
        log.prepare(&topics.map(spec)).unwrap();
        let mut appender = log.appender().unwrap();
        let mut append = |record: Outgoing| appender.append(&record, 0).unwrap();
        let plain = |topic: &str, value: Vec<u8>| Outgoing {
            topic: topic.to_owned(),
            value: Some(value),
            ..Outgoing::default()
        };
        let mut batch = ReadingBatchBuilder::default();
        manifest.for_each_record(|SentRecord { partition, offset, due_us, patient }| {
            append(plain("devices", Vec::new()));
            let patient = patient_id(patient);
            let row = ReadingRow {
                patient: &patient,
                device: "monitor",
                signal: SignalIndex(0),
                method: "-",
                value: Some(970),
                quality: Quality::Ok,
                reason: Reason::None,
                event_time_us: due_us,
                source_time_us: due_us,
                append_time_us: Some(due_us),
                source_topic: &manifest.topic,
                source_partition: partition,
                source_offset: offset,
                source_index: 0,
                comparator: Comparator::None,
                change: Change::None,
                policies: Policies::NONE,
            };
            if !lost.contains(&offset) {
                batch.push(&row);
            }
        });
        append(plain("devices", Vec::new()));
        let readings = readings_record("wardbell.readings", 0, &batch.finish(), &Catalogue::builtin().hash).unwrap();
        append(readings.clone());
        append(readings);
        let control = Control::Activate { number: 1, hash: "ab".to_owned() };
        append(control_record("wardbell.readings", 0, &ControlRecord { id: "1".to_owned(), control }));
        append(plain("wardbell.dead-letters", br#"{"topic":"devices","partition":0,"offset":4,"index":0}"#.to_vec()));
        append(plain("wardbell.alerts", alert(content("e", 0, TransitionKind::Raised), from(1)).value.unwrap()));
        for (group, topic, next_offset) in [("wardbell-normalize", "devices", 5), ("wardbell", "wardbell.readings", 3)]
        {
            let membership = Membership {
                group: group.to_owned(),
                topics: vec![topic.to_owned()],
                isolation: Isolation::ReadCommitted,
                instance: None,
            };
            let mut member = log.join(&membership).unwrap();
            member.events(Duration::from_secs(30)).unwrap();
            member.commit(&[(TopicPartition::new(topic, 0), next_offset)]).unwrap();
        }
        log
    }

    fn report(lost: &[i64], more: &[&str]) -> VerifyReport {
        use clap::Parser;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest.json");
        manifest().write(&path).unwrap();
        let words = ["loadtest", "verify", "--manifest", path.to_str().unwrap(), "--wait", "100ms"];
        let cli = crate::Cli::try_parse_from(words.into_iter().chain(more.iter().copied())).unwrap();
        let crate::Command::Verify(args) = cli.command else { panic!("another command") };
        verify(&args, &log(&manifest(), lost), Duration::from_millis(20)).unwrap().0
    }

    #[test]
    fn every_reading_is_accounted_for() {
        let report = report(&[], &[]);
        assert!(report.ok, "{report}");
        assert_eq!((report.readings, report.poison, report.missing, report.alerts), (4, 1, 0, 1));
        assert_eq!(report.found, Counts { canonical: 4, repeated: 4, poison_refused: 1, ..Counts::default() });
        let text = report.to_string();
        for part in ["4 readings", "repeated there", "spo2-low", "ids that came twice", "priority", "\nok\n"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((json["type"].as_str(), json["found"]["canonical"].as_u64()), (Some("verify"), Some(4)));
        assert_eq!(json["latency_by_priority_ms"]["high"]["count"], 1);
        assert!(json.get("received").is_none());
    }

    #[test]
    fn a_reading_that_was_lost_is_named() {
        let report = report(&[2], &[]);
        assert!(!report.ok, "{report}");
        assert_eq!(
            (report.missing, report.missing_first.as_slice()),
            (1, &["devices/0 offset 2 reading 0".to_owned()][..])
        );
    }

    #[test]
    fn sets_that_were_not_activated_are_missed() {
        assert!(report(&[], &["--activations", "1"]).ok);
        let report = report(&[], &["--activations", "2"]);
        assert_eq!((report.ok, report.activations), (false, 1), "{report}");
    }

    #[test]
    fn a_receiver_that_lacks_an_alert_is_waited_for_and_then_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("received.jsonl");
        File::create(&path).unwrap();
        let report = report(&[], &["--received", path.to_str().unwrap()]);
        assert!(!report.ok, "{report}");
        assert_eq!(report.received.as_ref().unwrap().missing_first, ["e.0"]);
    }
}
