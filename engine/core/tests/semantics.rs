//! A test behind every numbered line of `rules/SEMANTICS.md`, and one that tells which lines have none.
//!
//! Most lines are shown by cases in the test notation, in the folder `semantics` beside this file: a case's name begins
//! with the lines it shows. What the notation cannot say is tested here: such a test is called `line_`, the numbers of
//! its lines, and what is so. What is expected is worked out from the page, never from what the engine says.

use std::collections::BTreeSet;
use std::path::PathBuf;

use arrow_array::RecordBatch;
use sha2::{Digest, Sha256};
use wardbell_core::partition::{Connector, Decided, Partition, Settings};
use wardbell_core::trial;
use wardbell_rules::cases::{self, Case, CaseReading};
use wardbell_rules::{RuleSet, SourceFile, compile};
use wardbell_schemas::alert::content_bytes;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Control, ControlRecord, TickClaim};
use wardbell_schemas::outcome::Outcome;
use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};
use wardbell_schemas::{Micros, SECOND, duration};

// ---------------------------------------------------------------------------------------------------------------------
// Lines and what shows them
// ---------------------------------------------------------------------------------------------------------------------

const PAGE: &str = include_str!("../../../rules/SEMANTICS.md");
const THIS_FILE: &str = include_str!("semantics.rs");

/// The lines of section 2 and those after it: `2.1` is a numbered item, `3.mean` a function of the table of windows,
/// `5` a section without items.
fn lines_of_page() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let mut section = None;
    for text in PAGE.lines() {
        if let Some(title) = text.strip_prefix("## ") {
            section = number_before(title).filter(|section| *section > 1);
            lines.extend(section.map(|section| section.to_string()));
        }
        let Some(section) = section else {
            continue;
        };
        if let Some(item) = number_before(text) {
            lines.insert(format!("{section}.{item}"));
        } else if let (3, Some(row)) = (section, text.strip_prefix("| `")) {
            lines.extend(functions(row).map(|name| format!("3.{name}")));
        }
    }
    let sections_with_items: BTreeSet<String> =
        lines.iter().filter_map(|line| Some(line.split_once('.')?.0.to_owned())).collect();
    lines.difference(&sections_with_items).cloned().collect()
}

/// 7 of `7. A reading`.
fn number_before(text: &str) -> Option<u32> {
    text.split_once(". ")?.0.parse().ok()
}

/// `mean` and `percentile` of `` mean(w) percentile(p, w)` | gives | needs | ``.
fn functions(row: &str) -> impl Iterator<Item = &str> {
    let cell = row.split('`').next().unwrap_or_default();
    cell.split(')').filter_map(|call| call.trim().split('(').next()).filter(|name| !name.is_empty())
}

/// 2.3 and 7.5 of `2.3 7.5 a slow clock is told`.
fn lines_of_case(name: &str) -> Vec<String> {
    let is_line = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    name.split_whitespace().take_while(is_line).map(str::to_owned).collect()
}

/// 2.5 and 9 of `line_2_5_and_9_a_tick_moves_its_source_only`.
fn lines_of_test(name: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut words = name.split('_').skip(1).peekable();
    let is_number = |word: &&str| word.parse::<u32>().is_ok();
    while let Some(section) = words.next_if(is_number) {
        lines.push(match words.next_if(is_number) {
            Some(item) => format!("{section}.{item}"),
            None => section.to_owned(),
        });
        if words.next_if(|word| *word == "and").is_none() {
            break;
        }
    }
    lines
}

#[test]
fn every_line_has_a_test_and_every_test_a_line() {
    let lines = lines_of_page();
    let of_cases = all_cases().into_iter().map(|(file, case)| {
        let lines = lines_of_case(&case.name);
        (format!("{file}:{}: {}", case.line, case.name), lines)
    });
    let of_tests = THIS_FILE.lines().filter_map(|line| {
        let name = line.strip_prefix("fn ")?.split('(').next().filter(|name| name.starts_with("line_"))?;
        Some((name.to_owned(), lines_of_test(name)))
    });
    let mut shown = BTreeSet::new();
    let mut faults = Vec::new();
    for (test, named) in of_cases.chain(of_tests) {
        if named.is_empty() {
            faults.push(format!("names no line: {test}"));
        }
        for line in named {
            if !lines.contains(&line) {
                faults.push(format!("names {line}, which is no line: {test}"));
            }
            shown.insert(line);
        }
    }
    faults.extend(lines.difference(&shown).map(|line| format!("line {line} has neither a case nor a test")));
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Cases
// ---------------------------------------------------------------------------------------------------------------------

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/semantics")
}

fn read(name: &str) -> SourceFile {
    let text = std::fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    SourceFile { path: name.to_owned(), text }
}

/// Rules of the folder, by the names of their files.
fn rules(names: &[&str]) -> RuleSet {
    let mut rules = Vec::new();
    for name in names {
        let file = read(&format!("{name}.rhai"));
        let (rule, faults) = compile(&file, Catalogue::builtin());
        let faults: Vec<String> = faults.iter().map(|fault| fault.render(&file.text, false)).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        rules.extend(rule);
    }
    RuleSet::new(rules)
}

/// A rule of the folder with parts of its text replaced.
fn changed(name: &str, parts: &[(&str, &str)]) -> RuleSet {
    let mut file = read(&format!("{name}.rhai"));
    for (before, after) in parts {
        assert!(file.text.contains(before), "{before}");
        file.text = file.text.replace(before, after);
    }
    let (rule, faults) = compile(&file, Catalogue::builtin());
    assert!(faults.is_empty(), "{faults:?}");
    RuleSet::new(rule.into_iter().collect())
}

/// Every case of the folder, with the name of its file without the ending.
fn all_cases() -> Vec<(String, Case)> {
    let entries = std::fs::read_dir(folder()).expect("the folder can be read");
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.strip_suffix(".test.toml").map(str::to_owned))
        .collect();
    names.sort();
    let mut all = Vec::new();
    for name in names {
        let file = read(&format!("{name}.test.toml"));
        let (cases, faults) = cases::parse(&file, Catalogue::builtin());
        let faults: Vec<String> = faults.iter().map(|fault| fault.render(&file.text, false)).collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        all.extend(cases.into_iter().map(|case| (name.clone(), case)));
    }
    all
}

#[test]
fn cases_give_what_they_say() {
    let cases = all_cases();
    let mut failures = Vec::new();
    for (file, case) in &cases {
        let names: Vec<&str> = std::iter::once(file).chain(&case.rules).map(String::as_str).collect();
        let trial = trial::run(case, &rules(&names), Catalogue::builtin());
        if !trial.passed() {
            let got: Vec<String> = trial.got.iter().map(trial::notation).collect();
            let expected: Vec<&str> = case.expect.iter().map(|entry| entry.text.as_str()).collect();
            let place = format!("{file}.test.toml:{}", case.line);
            failures.push(format!("{place}: {}\n  expected {expected:?}\n  got      {got:?}", case.name));
        }
    }
    assert!(failures.is_empty(), "{} of {} cases failed\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// A rule test keeps what every evaluation saw, a job does not: evaluations that change nothing take a shorter way there.
#[test]
fn cases_give_the_same_where_nobody_looks() {
    for (file, case) in &all_cases() {
        let names: Vec<&str> = std::iter::once(file).chain(&case.rules).map(String::as_str).collect();
        let watched = trial::run(case, &rules(&names), Catalogue::builtin());
        let watched: Vec<Vec<u8>> = watched.got.iter().map(content_bytes).collect();
        let mut log = Log::new(trial::settings(), &names);
        log.apply_case(case);
        assert!(log.bytes() == watched, "{file}.test.toml:{}: {}", case.line, case.name);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Logs
// ---------------------------------------------------------------------------------------------------------------------

/// Seconds since 1970 in µs.
fn us(seconds: f64) -> Micros {
    (seconds * SECOND as f64).round() as Micros
}

/// Source clocks of their own, and time 0 is a time like others.
fn settings() -> Settings {
    Settings { epoch_check: false, ..Settings::new("test") }
}

/// Records carry their own time.
fn on_record_time() -> Settings {
    Settings { record_clock: true, ..settings() }
}

#[derive(Debug, Clone, Copy)]
struct Reading<'a> {
    patient: &'a str,
    device: &'a str,
    signal: &'a str,
    method: &'a str,
    /// Seconds since 1970.
    event: f64,
    /// In the signal's unit.
    value: Option<f64>,
    comparator: Comparator,
    change: Change,
    reason: Reason,
}

fn reading(signal: &str, event: f64, value: f64) -> Reading<'_> {
    Reading {
        patient: "patient",
        device: "device-a",
        signal,
        method: "-",
        event,
        value: Some(value),
        comparator: Comparator::None,
        change: Change::None,
        reason: Reason::None,
    }
}

fn blank(signal: &str, event: f64) -> Reading<'_> {
    Reading { value: None, ..reading(signal, event, 0.0) }
}

impl<'a> Reading<'a> {
    fn of(self, patient: &'a str) -> Self {
        Self { patient, ..self }
    }

    fn on(self, device: &'a str) -> Self {
        Self { device, ..self }
    }

    fn by(self, method: &'a str) -> Self {
        Self { method, ..self }
    }

    fn known_to(self, comparator: Comparator) -> Self {
        Self { comparator, ..self }
    }

    fn which(self, change: Change) -> Self {
        Self { change, ..self }
    }

    /// The device says it is switched off.
    fn off(self) -> Self {
        Self { value: None, reason: Reason::Off, ..self }
    }
}

/// Where and when a source record was appended; times in seconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Append<'a> {
    /// `topic/partition`
    source: &'a str,
    /// The record's own time stamp.
    stamp: f64,
    /// When the broker appended it; none where the producer stamps.
    append: Option<f64>,
}

fn push_record(builder: &mut ReadingBatchBuilder, append: Append<'_>, offset: i64, readings: &[Reading<'_>]) {
    let (topic, partition) = append.source.rsplit_once('/').expect("a source is topic/partition");
    for (index, reading) in readings.iter().enumerate() {
        let signal = Catalogue::builtin().by_id(reading.signal).expect(reading.signal);
        let counts = |value: f64| (value * signal.per_unit as f64).round() as i64;
        builder.push(&ReadingRow {
            patient: reading.patient,
            device: reading.device,
            signal: signal.index,
            method: reading.method,
            value: reading.value.map(counts),
            quality: if reading.value.is_some() { Quality::Ok } else { Quality::Missing },
            reason: reading.reason,
            event_time_us: us(reading.event),
            source_time_us: us(append.stamp),
            append_time_us: append.append.map(us),
            source_topic: topic,
            source_partition: partition.parse().expect("a partition is a number"),
            source_offset: offset,
            source_index: index as u32,
            comparator: reading.comparator,
            change: reading.change,
            policies: Policies::NONE,
        });
    }
}

/// One record of the canonical log.
#[derive(Debug, Clone)]
enum Entry {
    /// Source records, and the append time of the canonical one.
    Batch(RecordBatch, Micros),
    Control(ControlRecord),
}

/// A partition and everything it was given. Times are in seconds since 1970.
struct Log {
    settings: Settings,
    rules: RuleSet,
    partition: Partition,
    entries: Vec<Entry>,
    next_offset: i64,
}

impl Log {
    fn new(settings: Settings, names: &[&str]) -> Self {
        let rules = rules(names);
        let partition = Partition::new(settings.clone(), &rules, Catalogue::builtin());
        Self { settings, rules, partition, entries: Vec::new(), next_offset: 0 }
    }

    fn apply(&mut self, entry: Entry) {
        match &entry {
            Entry::Batch(batch, canonical_us) => {
                self.partition.apply(batch, *canonical_us).expect("a canonical batch");
            }
            Entry::Control(record) => self.partition.apply_control(record),
        }
        self.entries.push(entry);
    }

    /// One source record in a batch of its own.
    fn append(&mut self, append: Append<'_>, canonical: f64, readings: &[Reading<'_>]) {
        let mut builder = ReadingBatchBuilder::default();
        push_record(&mut builder, append, self.next_offset, readings);
        self.next_offset += 1;
        self.apply(Entry::Batch(builder.finish(), us(canonical)));
    }

    fn record_on(&mut self, source: &str, broker: f64, readings: &[Reading<'_>]) {
        self.append(Append { source, stamp: broker, append: Some(broker) }, broker, readings);
    }

    fn record(&mut self, broker: f64, readings: &[Reading<'_>]) {
        self.record_on("devices/0", broker, readings);
    }

    /// A record per second with one reading of a signal, both ends included.
    fn each_second(&mut self, signal: &str, from: i32, to: i32, value: f64) {
        for at in from..=to {
            self.record(at.into(), &[reading(signal, at.into(), value)]);
        }
    }

    /// Everything a case describes.
    fn apply_case(&mut self, case: &Case) {
        let patient = || cases::PATIENT.to_owned();
        for (name, value) in &case.limits {
            self.control("", Control::Limit { patient: patient(), name: name.clone(), value: Some(*value) });
        }
        for (name, value) in &case.attributes {
            self.control("", Control::Attribute { patient: patient(), name: name.clone(), value: Some(*value) });
        }
        let seconds = |us: Micros| us as f64 / SECOND as f64;
        for record in &case.records {
            let mut readings = Vec::new();
            for known in &record.readings {
                let signal = Catalogue::builtin().signal(known.signal);
                let value = known.value.map(|counts| signal.to_f64(counts));
                let named = reading(&signal.id, seconds(known.event_us), 0.0).of(cases::PATIENT).on(&known.device);
                readings.push(Reading { value, ..named });
            }
            self.record(seconds(record.broker_us), &readings);
        }
        self.tick("devices/0", seconds(case.end_us));
    }

    fn control(&mut self, id: &str, control: Control) {
        self.apply(Entry::Control(ControlRecord { id: id.to_owned(), control }));
    }

    fn limit(&mut self, id: &str, value: Option<f64>) {
        self.control(id, Control::Limit { patient: "patient".to_owned(), name: "high".to_owned(), value });
    }

    fn tick(&mut self, source: &str, time: f64) {
        let (topic, partition) = source.rsplit_once('/').expect("a source is topic/partition");
        let partition = partition.parse().expect("a partition is a number");
        let claim = TickClaim { topic: topic.to_owned(), partition, end_offset: 0, time_us: us(time) };
        self.control("", Control::Tick { claims: vec![claim] });
    }

    /// Ticks that a clock takes for watching: no two of them more than 10 s apart.
    fn watch(&mut self, source: &str, times: &[i32]) {
        for time in times {
            self.tick(source, (*time).into());
        }
    }

    /// Puts a set in force.
    fn activate(&mut self, number: u64, rules: &RuleSet) {
        self.partition.activate(number, &rules.hash, rules, self.settings.clone());
        self.rules = rules.clone();
    }

    /// Writes the partition down and goes on with what was read back.
    fn restart(&mut self) {
        self.partition.begin_checkpoint();
        let mut slices = Vec::new();
        while self.partition.is_checkpointing() {
            slices.extend(self.partition.next_slice(usize::MAX));
        }
        let read = Partition::restore_checkpoint(self.settings.clone(), &self.rules, Catalogue::builtin(), &slices);
        self.partition = read.expect("a checkpoint can be read");
    }

    /// What was decided since the last call.
    fn decided(&mut self) -> Vec<Decided> {
        self.partition.take_decided()
    }

    /// The same as bytes, without what was measured.
    fn bytes(&mut self) -> Vec<Vec<u8>> {
        self.decided().iter().map(|decided| content_bytes(&decided.content)).collect()
    }

    /// What was decided since the last call must be this, in the notation of cases.
    #[track_caller]
    fn says(&mut self, expected: &[&str]) {
        let got: Vec<String> = self.decided().iter().map(|decided| trial::notation(&decided.content)).collect();
        assert_eq!(got, expected);
    }

    fn outcomes(&self, outcome: Outcome) -> u64 {
        self.partition.outcomes().get(outcome)
    }
}

/// Codes of the faults of a rule file with these functions.
fn faults(functions: &str) -> Vec<&'static str> {
    let head = r#"const RULE = #{ id: "x", version: 1, owner: "semantics", priority: "low" };"#;
    let file = SourceFile { path: "x.rhai".to_owned(), text: format!("{head}\n{functions}\n") };
    compile(&file, Catalogue::builtin()).1.iter().map(|fault| fault.code).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Section 2
// ---------------------------------------------------------------------------------------------------------------------

const YEAR_2001: f64 = 978_307_200.0;
const YEAR_2026: f64 = 1_767_225_600.0;
const DAY: f64 = 86_400.0;

#[test]
fn line_2_1_broker_time_is_the_append_time_or_where_the_producer_stamps_the_smaller_of_the_two() {
    let mut log = Log::new(settings(), &["time"]);
    let stamped = |stamp: f64| Append { source: "devices/0", stamp, append: None };
    // Stamped 90, canonical 100: the 96 is more than 5 s ahead of 90.
    log.append(stamped(90.0), 100.0, &[reading("spo2", 96.0, 86.0)]);
    log.says(&["90s raised low @device-a technical/clock", "90s raised high @device-a time"]);
    // Stamped 110, canonical 100: the 104 is inside.
    let mut log = Log::new(settings(), &["time"]);
    log.append(stamped(110.0), 100.0, &[reading("spo2", 104.0, 86.0)]);
    log.says(&["104s raised high @device-a time"]);
    // Appended at 110: the 45 is late, whatever the canonical record says.
    let mut log = Log::new(settings(), &["time"]);
    log.append(Append { append: Some(110.0), ..stamped(110.0) }, 100.0, &[reading("spo2", 45.0, 86.0)]);
    log.says(&[]);
    assert_eq!(log.outcomes(Outcome::Late), 1);
}

#[test]
fn line_2_2_lateness_and_skew_are_those_of_the_connector() {
    let cuffs = Connector {
        topics: vec!["cuffs".to_owned()],
        lateness_us: 10 * SECOND,
        skew_us: SECOND,
        coarse: false,
        reset_days: Vec::new(),
    };
    let mut log = Log::new(Settings { connectors: vec![cuffs], ..settings() }, &["time"]);
    let readings = [
        reading("spo2", 90.0, 95.0).on("a"),
        reading("spo2", 89.999999, 95.0).on("b"),
        reading("spo2", 101.0, 95.0).on("c"),
        reading("spo2", 101.000001, 95.0).on("d"),
    ];
    log.record_on("cuffs/0", 100.0, &readings);
    let outcomes = [Outcome::Evaluated, Outcome::Late, Outcome::Retimed];
    assert_eq!(outcomes.map(|outcome| log.outcomes(outcome)), [2, 1, 1]);
    // Another topic has the usual bounds.
    log.record_on("devices/0", 100.0, &readings.map(|reading| reading.of("p2")));
    assert_eq!(outcomes.map(|outcome| log.outcomes(outcome)), [6, 1, 1]);
}

#[test]
fn line_2_2_a_clock_at_an_epoch_counts_at_broker_time_and_is_flagged() {
    let mut log = Log::new(Settings::new("test"), &["time"]);
    log.record(YEAR_2026, &[reading("spo2", YEAR_2001 - 0.000001, 86.0)]);
    let decided = log.decided();
    let told: Vec<(&str, Micros)> =
        decided.iter().map(|decided| (decided.content.rule.id.as_str(), decided.content.at)).collect();
    assert_eq!(told, [("technical/clock", us(YEAR_2026)), ("time", us(YEAR_2026))]);
    assert_eq!(decided[1].content.flags, ["E_CLOCK_EPOCH"]);
    // 2001 itself is no epoch, just late.
    let mut log = Log::new(Settings::new("test"), &["time"]);
    log.record(YEAR_2026, &[reading("spo2", YEAR_2001, 86.0)]);
    log.says(&[]);
    assert_eq!(log.outcomes(Outcome::Late), 1);
}

#[test]
fn line_2_2_a_listed_reset_date_is_an_epoch_for_the_whole_day() {
    let pumps = Connector {
        topics: vec!["pumps".to_owned()],
        lateness_us: 60 * SECOND,
        skew_us: 5 * SECOND,
        coarse: false,
        reset_days: vec![us(YEAR_2001)],
    };
    let mut log = Log::new(Settings { connectors: vec![pumps], ..Settings::new("test") }, &["time"]);
    log.record_on("pumps/0", YEAR_2026, &[reading("spo2", YEAR_2001, 95.0).on("a")]);
    log.record_on("pumps/0", YEAR_2026, &[reading("spo2", YEAR_2001 + DAY - 1.0, 95.0).on("b")]);
    assert_eq!((log.outcomes(Outcome::Retimed), log.outcomes(Outcome::Late)), (2, 0));
    log.record_on("pumps/0", YEAR_2026, &[reading("spo2", YEAR_2001 + DAY, 95.0).on("c")]);
    assert_eq!((log.outcomes(Outcome::Retimed), log.outcomes(Outcome::Late)), (2, 1));
}

#[test]
fn line_2_2_a_future_reading_is_flagged() {
    let mut log = Log::new(settings(), &["time"]);
    log.record(100.0, &[reading("spo2", 106.0, 86.0)]);
    assert_eq!(log.decided()[1].content.flags, ["E_CLOCK_FUTURE"]);
}

#[test]
fn line_2_2_a_late_reading_is_counted_and_evaluates_no_rule() {
    let mut log = Log::new(settings(), &["time"]);
    log.partition.start_trace();
    log.record(100.0, &[reading("spo2", 100.0, 95.0)]);
    log.record(101.0, &[reading("spo2", 40.999999, 86.0)]);
    log.says(&[]);
    assert_eq!((log.outcomes(Outcome::Evaluated), log.outcomes(Outcome::Late)), (1, 1));
    assert_eq!(log.partition.take_trace().len(), 1);
}

#[test]
fn line_2_3_each_of_the_three_must_be_newer_than_the_one_before() {
    let mut log = Log::new(settings(), &["time"]);
    // The 5 is older than the 10: 5, 6, 7 are the three.
    for (broker, event) in [(420.0, 10.0), (421.0, 5.0), (422.0, 6.0)] {
        log.record(broker, &[reading("spo2", event, 86.0)]);
    }
    log.says(&[]);
    log.record(423.0, &[reading("spo2", 7.0, 86.0)]);
    log.says(&["423s raised low @device-a technical/clock", "423s raised high @device-a time"]);
}

#[test]
fn line_2_3_of_a_record_the_newest_counts_and_what_is_replaced_in_it_is_a_microsecond_apart() {
    let mut log = Log::new(settings(), &["time"]);
    let record = |first: f64, values: [f64; 3]| {
        let event = [first, first + 1.0, first + 2.0];
        [0, 1, 2].map(|i| reading("spo2", event[i], values[i]))
    };
    log.record(422.0, &record(0.0, [86.0; 3]));
    log.record(425.0, &record(3.0, [86.0; 3]));
    log.says(&[]);
    log.record(428.0, &record(6.0, [86.0, 95.0, 86.0]));
    let decided = log.decided();
    let told: Vec<String> = decided.iter().map(|decided| trial::notation(&decided.content)).collect();
    assert_eq!(
        told,
        [
            "428s raised low @device-a technical/clock",
            "428s raised high @device-a time",
            "7m8s1us cleared high @device-a time",
            "7m8s2us raised high @device-a time",
        ]
    );
    assert_eq!(decided[1].content.flags, ["E_CLOCK_OFFSET"]);
}

#[test]
fn line_2_3_a_record_whose_newest_is_a_duplicate_interrupts() {
    let mut log = Log::new(on_record_time(), &["fever"]);
    log.record(0.0, &[reading("temp_core", 0.25, 37.0)]);
    log.record(61.0, &[reading("temp_core", 0.05, 39.0)]);
    log.record(61.1, &[reading("temp_core", 0.15, 39.0)]);
    // Late as well, and a duplicate: the row begins anew after it.
    log.record(61.2, &[reading("temp_core", 0.25, 37.0)]);
    assert_eq!(log.outcomes(Outcome::Duplicate), 1);
    log.record(61.3, &[reading("temp_core", 0.35, 39.0)]);
    log.record(61.4, &[reading("temp_core", 0.45, 39.0)]);
    log.says(&[]);
    log.record(61.5, &[reading("temp_core", 0.55, 39.0)]);
    log.says(&["1m1s500ms raised low @device-a technical/clock", "1m1s500ms raised medium @device-a fever"]);
}

#[test]
fn line_2_3_replacing_ends_inside_the_bounds_and_not_before_the_newest_t() {
    let mut log = Log::new(settings(), &["time"]);
    log.record(100.0, &[reading("spo2", 700.0, 86.0)]);
    log.says(&["100s raised low @device-a technical/clock", "100s raised high @device-a time"]);
    // Inside the bounds, but older than 100.
    log.record(101.0, &[reading("spo2", 99.5, 95.0)]);
    log.says(&["101s cleared high @device-a time"]);
    // Older than lateness is late all the same.
    log.record(101.5, &[reading("spo2", 0.0, 86.0)]);
    log.says(&[]);
    assert_eq!(log.outcomes(Outcome::Late), 1);
    log.record(102.0, &[reading("spo2", 101.2, 86.0)]);
    log.says(&["102s cleared low @device-a technical/clock", "1m41s200ms raised high @device-a time"]);
}

#[test]
fn line_2_3_the_newest_t_includes_what_was_decided_earlier_in_the_same_record() {
    let mut log = Log::new(settings(), &["time"]);
    // The first counts at 100, so the 99.5 is older: replaced, too.
    log.record(100.0, &[reading("spo2", 700.0, 86.0), reading("spo2", 99.5, 95.0)]);
    log.says(&[
        "100s raised low @device-a technical/clock",
        "100s raised high @device-a time",
        "1m40s1us cleared high @device-a time",
    ]);
    // The 100.5 is not.
    let mut log = Log::new(settings(), &["time"]);
    log.record(100.0, &[reading("spo2", 700.0, 86.0), reading("spo2", 100.5, 95.0)]);
    log.says(&[
        "100s raised low @device-a technical/clock",
        "100s raised high @device-a time",
        "100s cleared low @device-a technical/clock",
        "1m40s500ms cleared high @device-a time",
    ]);
}

#[test]
fn line_2_4_older_than_the_newest_t_by_more_than_lateness_is_late_too() {
    let mut log = Log::new(settings(), &["time"]);
    log.record(1000.0, &[reading("spo2", 1005.0, 95.0)]);
    log.record(1001.0, &[reading("spo2", 945.0, 95.0)]);
    assert_eq!((log.outcomes(Outcome::Evaluated), log.outcomes(Outcome::Late)), (2, 0));
    // In time by the broker's clock: 1002 - 60 is 942.
    log.record(1002.0, &[reading("spo2", 944.999999, 95.0)]);
    assert_eq!((log.outcomes(Outcome::Evaluated), log.outcomes(Outcome::Late)), (2, 1));
}

#[test]
fn line_2_4_and_4_2_what_comes_late_joins_at_its_place_and_is_evaluated_at_an_unchanged_t() {
    let mut log = Log::new(settings(), &["delta"]);
    log.record(1.0, &[reading("heart_rate", 1.0, 70.0)]);
    log.record(2.0, &[reading("heart_rate", 2.0, 80.0)]);
    log.says(&[]);
    // The oldest of the window is 90 now: 80 - 90.
    log.record(3.0, &[reading("heart_rate", 0.0, 90.0)]);
    log.says(&["2s raised low @device-a delta"]);
}

#[test]
fn line_2_5_and_9_the_clock_of_a_source_is_moved_by_its_own_records_and_ticks() {
    let mut log = Log::new(settings(), &["episodes"]);
    log.record_on("devices/0", 0.0, &[reading("spo2", 0.0, 86.0)]);
    log.record_on("devices/1", 0.0, &[reading("heart_rate", 0.0, 80.0)]);
    log.tick("devices/1", 9.0);
    log.record_on("devices/1", 9.0, &[reading("heart_rate", 9.0, 80.0)]);
    log.tick("devices/0", 4.999999);
    log.says(&[]);
    log.tick("devices/0", 5.0);
    log.says(&["5s raised high @device-a episodes"]);
}

#[test]
fn line_2_5_a_step_back_of_ten_seconds_leaves_the_clock() {
    let mut log = Log::new(settings(), &["episodes"]);
    log.record(0.0, &[reading("spo2", 0.0, 95.0)]);
    log.watch("devices/0", &[10, 20]);
    // Accepted while the clock is at 20: its deadline is 80.
    log.record(10.0, &[reading("spo2", 10.0, 95.0)]);
    log.watch("devices/0", &[30, 40, 50, 60, 70, 80]);
    log.says(&[]);
    log.tick("devices/0", 80.000001);
    log.says(&["80s raised low @device-a technical/stale"]);
}

#[test]
fn line_2_5_and_7_4_a_larger_step_back_moves_everything_by_the_difference_and_is_told() {
    let mut log = Log::new(settings(), &["episodes"]);
    log.record(0.0, &[reading("spo2", 0.0, 95.0)]);
    log.watch("devices/0", &[10, 20]);
    // Its hold is due at 25, its deadline is 20 + 3 x 20.
    log.record(20.0, &[reading("spo2", 20.0, 86.0)]);
    log.says(&[]);
    log.tick("devices/0", 5.0);
    log.says(&["5s raised high @devices technical/feed"]);
    // Due 10 on the clock that was set back by 15; it bears the end of the hold.
    log.tick("devices/0", 10.0);
    log.says(&["25s raised high @device-a episodes"]);
    log.tick("devices/0", 15.0);
    log.says(&["15s cleared high @devices technical/feed"]);
    log.watch("devices/0", &[25, 35, 45, 55, 65]);
    log.says(&[]);
    log.tick("devices/0", 65.000001);
    log.says(&["65s raised low @device-a technical/stale"]);
}

#[test]
fn line_2_5_the_clock_of_a_patient_is_the_smallest_of_the_series_it_reads() {
    let mut log = Log::new(settings(), &["interval-pair"]);
    log.record_on("devices/0", 0.0, &[reading("heart_rate", 0.0, 150.0)]);
    log.record_on("devices/1", 0.0, &[reading("temp_core", 0.0, 37.0)]);
    log.tick("devices/0", 8.0);
    log.tick("devices/1", 7.999999);
    log.says(&[]);
    log.tick("devices/1", 8.0);
    log.says(&["8s raised medium interval-pair"]);
}

#[test]
fn line_2_5_and_4_1_a_hold_waits_for_the_clock_of_what_is_read_now() {
    for is_restarted in [false, true] {
        let mut log = Log::new(settings(), &["held-either"]);
        log.record_on("devices/1", 5.0, &[reading("resp_rate", 5.0, 15.0).on("old")]);
        log.each_second("heart_rate", 0, 61, 80.0);
        log.watch("devices/1", &[10, 20, 30, 40, 50, 60, 61]);
        // Pending from 62 on, when the slower of the two clocks is at 61.
        log.each_second("heart_rate", 62, 66, 150.0);
        // Nothing of devices/1 is read any more.
        log.record_on("devices/0", 67.0, &[reading("resp_rate", 67.0, 15.0).on("new")]);
        log.each_second("heart_rate", 68, 70, 150.0);
        if is_restarted {
            log.restart();
        }
        log.says(&[]);
        log.tick("devices/0", 71.0);
        log.says(&["72s raised medium held-either"]);
    }
}

#[test]
fn line_2_5_the_clock_of_a_series_is_that_of_the_source_of_its_newest_reading() {
    let mut log = Log::new(settings(), &["episodes"]);
    log.record_on("devices/0", 0.0, &[reading("spo2", 0.0, 95.0)]);
    log.record_on("devices/1", 1.0, &[reading("spo2", 1.0, 95.0)]);
    log.watch("devices/0", &[10, 20, 30, 40, 50, 60, 70]);
    log.watch("devices/1", &[11, 21, 31, 41, 51, 61]);
    log.says(&[]);
    log.tick("devices/1", 61.000001);
    log.says(&["61s raised low @device-a technical/stale"]);
}

#[test]
fn line_2_5_and_7_4_record_time_is_believed_as_it_is() {
    let mut log = Log::new(on_record_time(), &["episodes"]);
    log.record_on("devices/0", 100.0, &[reading("spo2", 100.0, 95.0)]);
    // A step back leaves the one clock, and is not told; the record's own time is what event times are held against.
    log.record_on("devices/1", 30.0, &[reading("heart_rate", 30.0, 80.0)]);
    // Nor is a leap.
    log.record_on("devices/1", 150.0, &[reading("heart_rate", 150.0, 80.0)]);
    log.says(&[]);
    assert_eq!(log.outcomes(Outcome::Evaluated), 3);
    log.tick("devices/1", 160.000001);
    log.says(&["160s raised low @device-a technical/stale"]);
}

#[test]
fn line_2_6_in_one_record_the_first_stays() {
    let mut log = Log::new(settings(), &["time"]);
    log.record(0.0, &[reading("spo2", 0.0, 86.0), reading("spo2", 0.0, 86.0), reading("spo2", 0.0, 95.0)]);
    log.says(&["0s raised high @device-a time"]);
    let outcomes = [Outcome::Evaluated, Outcome::Duplicate, Outcome::Conflict];
    assert_eq!(outcomes.map(|outcome| log.outcomes(outcome)), [1, 1, 1]);
}

#[test]
fn line_2_6_another_value_in_a_later_record_counts_a_microsecond_after_the_newest_t_at_least_and_is_flagged() {
    let mut log = Log::new(settings(), &["time"]);
    log.record(10.0, &[reading("spo2", 10.0, 86.0)]);
    log.says(&["10s raised high @device-a time"]);
    log.record(10.0, &[reading("spo2", 10.0, 95.0)]);
    let decided = log.decided();
    assert_eq!(decided.len(), 1);
    assert_eq!(trial::notation(&decided[0].content), "10s1us cleared high @device-a time");
    assert_eq!(decided[0].content.flags, ["E_TIME_COARSE"]);
    assert_eq!(log.outcomes(Outcome::Retimed), 1);
}

#[test]
fn line_2_6_the_memory_lasts_lateness_and_skew() {
    let twice = |again: f64| {
        let mut log = Log::new(on_record_time(), &["fever"]);
        log.record(0.0, &[reading("temp_core", 5.0, 37.0)]);
        log.record(again, &[reading("temp_core", 5.0, 37.0)]);
        [Outcome::Duplicate, Outcome::Late].map(|outcome| log.outcomes(outcome))
    };
    assert_eq!(twice(65.0), [1, 0]);
    assert_eq!(twice(65.000001), [0, 1], "forgotten, it is just late");
}

#[test]
fn line_2_6_the_memory_lasts_while_t_is_replaced_and_duplicates_are_looked_for_before_future() {
    let mut log = Log::new(on_record_time(), &["fever"]);
    log.record(0.0, &[reading("temp_core", 1000.0, 37.0)]);
    log.record(500.0, &[reading("temp_core", 1000.0, 37.0)]);
    assert_eq!((log.outcomes(Outcome::Retimed), log.outcomes(Outcome::Duplicate)), (1, 1));
}

#[test]
fn line_2_6_of_two_samples_with_one_t_the_one_accepted_later_is_the_newer() {
    let mut log = Log::new(settings(), &["same-time"]);
    // Ahead by 5 s, so it counts at 5; the other is replaced to 5. Two samples of one time make no slope.
    log.record(0.0, &[reading("heart_rate", 5.0, 80.0)]);
    log.record(5.0, &[reading("heart_rate", 100.0, 90.0)]);
    log.says(&["5s raised low @device-a technical/clock", "5s raised low @device-a same-time"]);
}

#[test]
fn line_2_6_with_a_time_resolution_every_later_reading_of_a_stamp_is_a_sample() {
    let meters = Connector {
        topics: vec!["meters".to_owned()],
        lateness_us: 60 * SECOND,
        skew_us: 5 * SECOND,
        coarse: true,
        reset_days: Vec::new(),
    };
    let mut log = Log::new(Settings { connectors: vec![meters], ..settings() }, &["time"]);
    for source in ["meters/0", "devices/0"] {
        for broker in [1.0, 2.0, 3.0] {
            log.record_on(source, broker, &[reading("spo2", 0.0, 95.0).on(source)]);
        }
    }
    let outcomes = [Outcome::Evaluated, Outcome::Retimed, Outcome::Duplicate];
    assert_eq!(outcomes.map(|outcome| log.outcomes(outcome)), [2, 2, 2]);
}

#[test]
fn line_2_7_a_correction_takes_its_sample_s_place_and_is_evaluated_at_the_key_s_time() {
    let mut log = Log::new(on_record_time(), &["silence"]);
    log.record(0.0, &[reading("spo2", 0.0, 86.0)]);
    log.says(&["0s raised high @device-a silence"]);
    // Were it not evaluated at 0 s, the clear hold would begin with the next reading.
    log.record(1.0, &[reading("spo2", 0.0, 95.0).which(Change::Corrects)]);
    log.record(5.0, &[reading("spo2", 5.0, 95.0)]);
    log.says(&["5s cleared high @device-a silence"]);
    assert_eq!((log.outcomes(Outcome::Corrected), log.outcomes(Outcome::Evaluated)), (1, 2));
    // What was corrected is what a repetition is held against.
    log.record(6.0, &[reading("spo2", 0.0, 95.0)]);
    assert_eq!(log.outcomes(Outcome::Duplicate), 1);
    // Of nothing that is held, it is a reading like others.
    log.record(7.0, &[reading("spo2", 7.0, 86.0).which(Change::Corrects)]);
    log.says(&["7s raised high @device-a silence"]);
}

#[test]
fn line_2_7_a_retraction_takes_the_sample_out() {
    let mut log = Log::new(on_record_time(), &["mean"]);
    for (at, value) in [(0.0, 80.0), (1.0, 99.0), (2.0, 90.0)] {
        log.record(at, &[reading("heart_rate", at, value)]);
    }
    log.says(&[]);
    log.record(3.0, &[reading("heart_rate", 1.0, 99.0).which(Change::Retracts)]);
    log.says(&["2s raised low @device-a mean"]);
    log.record(3.0, &[reading("heart_rate", 1.5, 99.0).which(Change::Retracts)]);
    log.says(&[]);
    assert_eq!((log.outcomes(Outcome::Corrected), log.outcomes(Outcome::Late)), (1, 1));
}

#[test]
fn line_2_7_of_the_newest_samples_the_one_before_takes_over() {
    let mut log = Log::new(on_record_time(), &["silence"]);
    log.record(0.0, &[reading("spo2", 0.0, 86.0)]);
    log.record(1.0, &[reading("spo2", 1.0, 95.0)]);
    log.says(&["0s raised high @device-a silence"]);
    // The newest value is 86 again, and the clear run that began at 1 s is over.
    log.record(2.0, &[reading("spo2", 1.0, 95.0).which(Change::Retracts)]);
    log.record(6.0, &[reading("spo2", 6.0, 95.0)]);
    log.says(&[]);
    log.record(11.0, &[reading("spo2", 11.0, 95.0)]);
    log.says(&["11s cleared high @device-a silence"]);
}

#[test]
fn line_2_8_and_7_1_a_discharge_forgets_at_once_and_ends_every_expectation() {
    let mut log = Log::new(on_record_time(), &["time"]);
    log.record(0.0, &[reading("spo2", 0.0, 86.0), reading("heart_rate", 0.0, 80.0)]);
    log.record(0.0, &[reading("spo2", 0.0, 86.0).of("p2")]);
    log.tick("devices/0", 70.0);
    let stale = "60s raised low @device-a technical/stale";
    let raised = "0s raised high @device-a time";
    log.says(&[raised, raised, stale, stale, stale]);
    log.control("", Control::Discharge { patient: "patient".to_owned() });
    // By rule id: the two silences, then the episode. The other patient is not concerned.
    let expired = "70s expired low @device-a technical/stale";
    log.says(&[expired, expired, "70s expired high @device-a time"]);
    log.record(1000.0, &[reading("spo2", 1000.0, 86.0)]);
    log.says(&["1000s raised high @device-a time"]);
    log.control("", Control::Discharge { patient: "patient".to_owned() });
    log.says(&["1000s expired high @device-a time"]);
    log.tick("devices/0", 2000.0);
    log.says(&[]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Section 3
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn line_3_1_and_10_an_activation_brings_nothing_back() {
    let mut log = Log::new(settings(), &["mean"]);
    log.each_second("heart_rate", 0, 10, 80.0);
    // Samples up to 7 s are gone: nothing needed them.
    log.activate(1, &changed("mean", &[("mean(\"3s\") == 85.0", "mean(\"10s\") == 80.0")]));
    log.each_second("heart_rate", 11, 16, 80.0);
    log.says(&[]);
    log.each_second("heart_rate", 17, 17, 80.0);
    log.says(&["17s raised low @device-a mean"]);
}

#[test]
fn line_2_8_and_6_10_and_8_2_what_is_sent_again_after_a_discharge_is_another_episode() {
    let mut log = Log::new(on_record_time(), &["time"]);
    log.record(0.0, &[reading("spo2", 0.0, 86.0)]);
    log.control("", Control::Discharge { patient: "patient".to_owned() });
    log.record(1.0, &[reading("spo2", 0.0, 86.0)]);
    let decided = log.decided();
    let episodes: Vec<&str> = decided.iter().map(|decided| decided.content.episode.as_str()).collect();
    assert_eq!(decided.iter().map(|decided| decided.content.number).collect::<Vec<_>>(), [0, 1, 0]);
    assert!(episodes[0] == episodes[1] && episodes[1] != episodes[2], "{episodes:?}");
}

#[test]
fn line_3_1_a_window_that_cannot_fit_is_refused() {
    assert_eq!(faults(r#"fn raise(heart_rate) { heart_rate.mean("8192s") > 90.0 }"#), [""; 0]);
    assert_eq!(faults(r#"fn raise(heart_rate) { heart_rate.mean("8193s") > 90.0 }"#), ["R027"]);
    assert_eq!(settings().samples_max, 8_192);
}

#[test]
fn line_3_1_an_overrun_is_cleared_at_the_first_sample_at_which_the_window_is_known_again() {
    let mut log = Log::new(Settings { samples_max: 5, ..on_record_time() }, &["ten-seconds"]);
    log.each_second("heart_rate", 0, 4, 80.0);
    log.says(&[]);
    // The sixth of ten seconds: that of 0 has to go.
    log.each_second("heart_rate", 5, 5, 80.0);
    log.says(&["5s raised low @device-a technical/overrun", "5s raised low @device-a ten-seconds"]);
    // 1 < t holds what is held; that of 1 is evicted, too.
    log.record(11.0, &[reading("heart_rate", 11.0, 80.0)]);
    log.says(&["11s cleared low @device-a technical/overrun", "11s cleared low @device-a ten-seconds"]);
}

/// The bits of everything `bits` reads, after readings as (broker time, event time, value).
fn bits_after(readings: &[(f64, f64, f64)]) -> Vec<Option<u64>> {
    let mut log = Log::new(on_record_time(), &["bits"]);
    log.partition.start_trace();
    for (broker, event, value) in readings {
        log.record(*broker, &[reading("temp_core", *event, *value)]);
    }
    let trace = log.partition.take_trace();
    let newest = trace.last().expect("every reading is evaluated");
    assert_eq!(newest.at, us(1030.0));
    newest.values.iter().map(|(_, value)| value.map(f64::to_bits)).collect()
}

#[test]
fn line_3_4_the_same_samples_give_the_same_bits() {
    let in_order = bits_after(&[(1010.0, 1010.0, 36.61), (1020.0, 1020.0, 37.02), (1030.0, 1030.0, 38.11)]);
    assert!(in_order.iter().all(Option::is_some), "three samples are enough for all of them");
    // sum, mean: 3661 + 3702 + 3811 hundredths, rounded once
    assert_eq!(in_order[..2], [Some((11_174.0_f64 / 100.0).to_bits()), Some((11_174.0_f64 / 300.0).to_bits())]);
    let out_of_order = bits_after(&[(1030.0, 1030.0, 38.11), (1031.0, 1010.0, 36.61), (1032.0, 1020.0, 37.02)]);
    assert_eq!(out_of_order, in_order);
    let after_others = bits_after(&[
        (960.0, 960.0, 41.27),
        (970.0, 970.0, 29.93),
        (1010.0, 1010.0, 36.61),
        (1020.0, 1020.0, 37.02),
        (1030.0, 1030.0, 38.11),
    ]);
    assert_eq!(after_others, in_order);
}

// ---------------------------------------------------------------------------------------------------------------------
// Section 4
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn line_4_1_a_method_is_a_series_of_its_own() {
    let mut log = Log::new(settings(), &["time"]);
    log.record(0.0, &[reading("spo2", 0.0, 86.0).by("left"), reading("spo2", 0.0, 95.0).by("right")]);
    let keys: Vec<String> = log.decided().into_iter().map(|decided| decided.content.key).collect();
    assert_eq!(keys, ["device-a/spo2/left"]);
}

#[test]
fn line_4_2_a_sample_or_a_blank_is_evaluated_once_a_duplicate_or_a_late_reading_is_not() {
    let mut log = Log::new(on_record_time(), &["time", "pair"]);
    log.partition.start_trace();
    log.record(0.0, &[reading("heart_rate", 0.0, 80.0), reading("resp_rate", 0.0, 15.0), reading("spo2", 0.0, 95.0)]);
    log.record(1.0, &[blank("spo2", 1.0)]);
    log.record(2.0, &[reading("spo2", 0.0, 95.0)]);
    log.record(63.0, &[reading("spo2", 2.0, 95.0)]);
    assert_eq!((log.outcomes(Outcome::Duplicate), log.outcomes(Outcome::Late)), (1, 1));
    let trace = log.partition.take_trace();
    let evaluated: Vec<(&str, Micros)> =
        trace.iter().map(|evaluated| (evaluated.rule.as_str(), evaluated.at)).collect();
    assert_eq!(evaluated, [("pair", 0), ("time", 0), ("time", us(1.0))]);
}

#[test]
fn line_4_2_readings_of_a_record_are_taken_in_the_order_of_t() {
    let mut log = Log::new(settings(), &["time"]);
    log.record(10.0, &[reading("spo2", 2.0, 95.0), reading("spo2", 1.0, 86.0)]);
    log.says(&["1s raised high @device-a time", "2s cleared high @device-a time"]);
}

#[test]
fn line_4_6_a_value_with_a_comparator_is_known_as_far_as_it_goes() {
    let mut log = Log::new(on_record_time(), &["silence"]);
    let spo2 = |at, value, comparator| [reading("spo2", at, value).known_to(comparator)];
    log.record(0.0, &spo2(0.0, 80.0, Comparator::Less));
    log.says(&["0s raised high @device-a silence"]);
    // Below 95 is neither below 90 nor at least 92.
    log.record(1.0, &spo2(1.0, 95.0, Comparator::Less));
    log.record(2.0, &spo2(2.0, 95.0, Comparator::Greater));
    log.record(7.0, &spo2(7.0, 92.0, Comparator::GreaterOrEqual));
    log.says(&["7s cleared high @device-a silence"]);
}

#[test]
fn line_4_6_for_windows_it_is_a_blank() {
    let mut log = Log::new(on_record_time(), &["mean"]);
    log.record(0.0, &[reading("heart_rate", 0.0, 80.0)]);
    log.record(1.0, &[reading("heart_rate", 1.0, 50.0).known_to(Comparator::Less)]);
    log.says(&[]);
    log.record(2.0, &[reading("heart_rate", 2.0, 90.0)]);
    log.says(&["2s raised low @device-a mean"]);
}

#[test]
fn line_4_5_a_category_has_no_order_and_no_arithmetic() {
    for refused in [
        "consciousness.last > 1.0",
        "consciousness.last + 1.0 > 1.0",
        r#"consciousness.mean("1h") > 1.0"#,
        r#"consciousness.last == "X""#,
    ] {
        assert_eq!(faults(&format!("fn raise(consciousness) {{ {refused} }}")), ["R028"], "{refused}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Section 5
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn line_5_a_sample_that_joins_at_an_older_place_adds_no_interval() {
    let mut log = Log::new(on_record_time(), &["interval"]);
    // 0 5 10 15: three intervals of 5 s count when 20 comes. The samples between them would make them 1 s.
    for at in [0.0, 5.0, 10.0, 15.0] {
        log.record(at, &[reading("spo2", at, 95.0)]);
    }
    for event in [12.0, 13.0, 14.0] {
        log.record(15.0, &[reading("spo2", event, 95.0)]);
    }
    // Low at 20; at 28 it is 8 s old: G is 10 s.
    log.record(20.0, &[reading("spo2", 20.0, 86.0)]);
    log.tick("devices/0", 28.0);
    log.says(&["28s raised high @device-a interval"]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Section 6
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn line_6_1_and_11_the_condition_start_does_not_move_and_the_intentional_delay_counts_from_it() {
    let mut log = Log::new(on_record_time(), &["long-hold"]);
    log.each_second("heart_rate", 0, 7, 150.0);
    // Four of the six seconds do not count.
    log.each_second("heart_rate", 13, 24, 150.0);
    let raised = log.decided().remove(0).content;
    assert_eq!((raised.at, raised.condition_start, raised.episode_start), (us(24.0), 0, 0));
    assert_eq!(raised.intentional_delay_us, us(24.0));
}

#[test]
fn line_6_2_a_hold_that_is_complete_by_event_times_raises_by_its_reading() {
    let mut log = Log::new(settings(), &["episodes"]);
    // All of them come at 5, so a timer would be due at 10.
    let readings = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0].map(|event| reading("spo2", event, 86.0));
    log.record(5.0, &readings[..5]);
    log.says(&[]);
    log.record(5.0, &readings[5..]);
    let raised = log.decided().remove(0).content;
    assert_eq!((raised.at, raised.by_timer), (us(5.0), false));
}

#[test]
fn line_6_3_and_6_6_a_timer_is_looked_at_again_after_an_evaluation_and_what_follows_is_not_earlier() {
    let mut log = Log::new(on_record_time(), &["interval"]);
    log.each_second("spo2", 0, 4, 86.0);
    // Due 8, but 4 is older than G = 2 s. The reading of 7 moves it to 9, and is new enough; the clock is there.
    log.record(9.0, &[reading("spo2", 7.0, 86.0)]);
    let decided = log.decided();
    assert_eq!(decided.len(), 1);
    assert_eq!((decided[0].content.at, decided[0].content.by_timer), (us(9.0), true));
    // Cleared at T = 8, told not before the raise.
    log.record(9.0, &[reading("spo2", 8.0, 95.0)]);
    log.says(&["9s cleared high @device-a interval"]);
}

#[test]
fn line_6_7_a_rule_that_is_raised_and_clear_at_one_value_is_refused() {
    let both = "fn raise(spo2) { spo2.last < 92.0 }\nfn clear(spo2) { spo2.last >= 90.0 }";
    assert_eq!(faults(both), ["R031"]);
}

#[test]
fn line_6_9_and_9_a_person_resets_an_episode_only_while_it_is_latched() {
    let mut log = Log::new(settings(), &["latching"]);
    log.each_second("heart_rate", 0, 5, 150.0);
    let raised = log.decided().remove(0).content;
    let by = "RN".to_owned();
    let reset = Control::Reset { episode: raised.episode.clone(), by: by.clone() };
    log.control("", reset.clone());
    log.says(&[]);
    log.control("", Control::Acknowledge { episode: raised.episode.clone(), by });
    log.each_second("heart_rate", 6, 11, 80.0);
    log.each_second("heart_rate", 12, 17, 150.0);
    log.each_second("heart_rate", 18, 23, 80.0);
    log.control("", reset.clone());
    // Again, and of an episode that is no more.
    log.control("", reset);
    log.each_second("heart_rate", 24, 29, 150.0);
    let decided = log.decided();
    let told: Vec<(u32, &str, bool)> = decided
        .iter()
        .map(|decided| &decided.content)
        .map(|content| (content.number, content.transition.name(), content.episode == raised.episode))
        .collect();
    assert_eq!(
        told,
        [
            (1, "acknowledged", true),
            (2, "latched", true),
            (3, "raised", true),
            (4, "latched", true),
            (5, "reset", true),
            (0, "raised", false),
        ]
    );
}

#[test]
fn line_6_10_a_cool_down_applies_after_a_reset() {
    let mut log = Log::new(settings(), &["latching-cooling"]);
    log.each_second("heart_rate", 0, 5, 150.0);
    let episode = log.decided().remove(0).content.episode;
    log.each_second("heart_rate", 6, 11, 80.0);
    log.control("", Control::Reset { episode, by: "RN".to_owned() });
    log.says(&["11s latched medium @device-a latching-cooling", "11s reset medium @device-a latching-cooling"]);
    log.each_second("heart_rate", 12, 70, 150.0);
    log.says(&[]);
    log.each_second("heart_rate", 71, 71, 150.0);
    log.says(&["71s raised medium @device-a latching-cooling"]);
}

#[test]
fn line_6_10_the_start_of_an_episode_is_later_than_the_end_of_the_one_before() {
    let mut log = Log::new(settings(), &["time"]);
    // Three samples of t = 10: one ahead by a second, two of a clock that is far ahead.
    log.record(9.0, &[reading("spo2", 10.0, 86.0)]);
    log.record(10.0, &[reading("spo2", 500.0, 95.0)]);
    log.record(10.0, &[reading("spo2", 501.0, 86.0)]);
    let decided = log.decided();
    let told: Vec<String> = decided.iter().map(|decided| trial::notation(&decided.content)).collect();
    assert_eq!(
        told,
        [
            "10s raised high @device-a time",
            "10s raised low @device-a technical/clock",
            "10s cleared high @device-a time",
            "10s raised high @device-a time",
        ]
    );
    assert_eq!((decided[0].content.episode_start, decided[0].content.condition_start), (us(10.0), us(10.0)));
    assert_eq!((decided[3].content.episode_start, decided[3].content.condition_start), (us(10.000001), us(10.0)));
}

// ---------------------------------------------------------------------------------------------------------------------
// Section 7
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn line_7_1_what_is_switched_off_is_not_stale_until_it_speaks_again() {
    let mut log = Log::new(on_record_time(), &["silence"]);
    log.record(0.0, &[reading("spo2", 0.0, 95.0)]);
    log.record(1.0, &[reading("spo2", 1.0, 0.0).off()]);
    log.tick("devices/0", 250.0);
    log.says(&[]);
    log.record(300.0, &[reading("spo2", 300.0, 95.0)]);
    // The one interval there is, 300 s, makes ten times the 60 s of the signal out of them.
    log.tick("devices/0", 901.0);
    log.says(&["900s raised low @device-a technical/stale"]);
    log.record(902.0, &[reading("spo2", 902.0, 0.0).off()]);
    log.says(&["902s cleared low @device-a technical/stale"]);
}

#[test]
fn line_7_1_standby_ends_the_expectation_of_a_patient_s_devices_or_of_one() {
    let standby =
        |device: Option<&str>| Control::Standby { patient: "patient".to_owned(), device: device.map(str::to_owned) };
    let mut log = Log::new(on_record_time(), &["silence"]);
    log.record(0.0, &[reading("spo2", 0.0, 95.0), reading("spo2", 0.0, 95.0).on("device-b")]);
    log.control("", standby(Some("device-b")));
    log.tick("devices/0", 70.0);
    log.says(&["60s raised low @device-a technical/stale"]);
    log.control("", standby(None));
    log.says(&["70s cleared low @device-a technical/stale"]);
    log.tick("devices/0", 1_000.0);
    log.says(&[]);
}

#[test]
fn line_7_2_another_method_supersedes_nothing() {
    let mut log = Log::new(on_record_time(), &["silence"]);
    log.record(0.0, &[reading("spo2", 0.0, 86.0).by("left")]);
    log.record(70.0, &[reading("spo2", 70.0, 95.0).on("device-b").by("right")]);
    log.record(80.0, &[reading("spo2", 80.0, 95.0).on("device-b").by("right")]);
    log.says(&["0s raised high @device-a silence", "60s raised low @device-a technical/stale"]);
}

#[test]
fn line_7_4_a_jump_moves_deadlines_then_timers_are_looked_at_then_it_is_told() {
    let mut log = Log::new(settings(), &["long-hold"]);
    log.record(0.0, &[reading("spo2", 0.0, 95.0), reading("heart_rate", 0.0, 150.0)]);
    log.tick("devices/0", 30.0);
    let decided = log.decided();
    let told: Vec<String> = decided.iter().map(|decided| trial::notation(&decided.content)).collect();
    assert_eq!(told, ["20s raised medium @device-a long-hold", "30s raised high @devices technical/feed"]);
    assert_eq!((decided[1].content.patient.as_str(), decided[1].content.key.as_str()), ("-", "devices/0"));
    // Ended by a tick, 10 s later; a record does not end it.
    log.tick("devices/0", 39.999999);
    log.record(40.0, &[reading("resp_rate", 40.0, 15.0)]);
    log.says(&[]);
    log.tick("devices/0", 40.0);
    log.says(&["40s cleared high @devices technical/feed"]);
    // The deadlines of 60 are 90 now.
    log.watch("devices/0", &[50, 60, 70, 80, 90]);
    log.says(&[]);
    log.tick("devices/0", 90.000001);
    log.says(&["90s raised low @device-a technical/stale", "90s raised low @device-a technical/stale"]);
}

#[test]
fn line_7_4_ten_seconds_at_once_are_no_jump() {
    let mut log = Log::new(settings(), &["time"]);
    log.record(0.0, &[reading("spo2", 0.0, 95.0)]);
    log.watch("devices/0", &[10, 20]);
    log.says(&[]);
    log.tick("devices/0", 30.000001);
    log.says(&["30s1us raised high @devices technical/feed"]);
}

#[test]
fn line_7_5_the_key_is_the_device_of_a_patient() {
    let mut log = Log::new(settings(), &["time"]);
    let ahead = |signal| reading(signal, 100.0, 95.0).of("p2").on("device-b");
    log.record(0.0, &[ahead("spo2"), ahead("heart_rate")]);
    let decided = log.decided();
    assert_eq!(decided.len(), 1, "once for both signals");
    let content = &decided[0].content;
    let told = (content.rule.id.as_str(), content.patient.as_str(), content.key.as_str());
    assert_eq!(told, ("technical/clock", "p2", "device-b/-/-"));
}

#[test]
fn line_7_6_no_technical_transition_is_earlier_than_its_raise_which_is_its_condition_start() {
    let mut log = Log::new(settings(), &["time"]);
    log.record(0.0, &[reading("spo2", 0.0, 95.0)]);
    log.watch("devices/0", &[10, 20, 30, 40, 50, 60, 70]);
    log.says(&["60s raised low @device-a technical/stale"]);
    log.tick("devices/0", 30.0);
    log.says(&["30s raised high @devices technical/feed"]);
    // The clock concerned is at 31.
    log.record(31.0, &[reading("spo2", 31.0, 95.0)]);
    let cleared = log.decided().remove(0).content;
    assert_eq!((cleared.rule.id.as_str(), cleared.transition.name()), ("technical/stale", "cleared"));
    assert_eq!((cleared.at, cleared.condition_start), (us(60.0), us(60.0)));
}

// ---------------------------------------------------------------------------------------------------------------------
// Section 8
// ---------------------------------------------------------------------------------------------------------------------

/// Patient, key and rule of what was decided.
fn places(decided: &[Decided]) -> Vec<(&str, &str, &str)> {
    let contents = decided.iter().map(|decided| &decided.content);
    contents.map(|content| (content.patient.as_str(), content.key.as_str(), content.rule.id.as_str())).collect()
}

/// Low readings of one time: two devices of one patient and one of another, in an order that is not theirs.
fn low_on_three_devices() -> [Reading<'static>; 3] {
    [
        reading("spo2", 0.0, 86.0).of("p2").on("a"),
        reading("spo2", 0.0, 86.0).of("p1").on("b"),
        reading("spo2", 0.0, 86.0).of("p1").on("a"),
    ]
}

#[test]
fn line_8_1_timers_fire_by_due_time_patient_key_and_rule_id() {
    let mut log = Log::new(settings(), &["order-held", "episodes"]);
    log.record(0.0, &low_on_three_devices());
    log.record(1.0, &[reading("spo2", 1.0, 86.0).of("p0").on("a")]);
    log.tick("devices/0", 10.0);
    assert_eq!(
        places(&log.decided()),
        [
            ("p1", "a/spo2/-", "episodes"),
            ("p1", "a/spo2/-", "order-held"),
            ("p1", "b/spo2/-", "episodes"),
            ("p1", "b/spo2/-", "order-held"),
            ("p2", "a/spo2/-", "episodes"),
            ("p2", "a/spo2/-", "order-held"),
            ("p0", "a/spo2/-", "episodes"),
            ("p0", "a/spo2/-", "order-held"),
        ]
    );
}

#[test]
fn line_8_1_rules_of_one_t_follow_by_rule_id_patient_and_key() {
    let mut log = Log::new(settings(), &["order", "before"]);
    log.record(0.0, &low_on_three_devices());
    assert_eq!(
        places(&log.decided()),
        [
            ("p1", "a/spo2/-", "before"),
            ("p1", "b/spo2/-", "before"),
            ("p2", "a/spo2/-", "before"),
            ("p1", "a/spo2/-", "order"),
            ("p1", "b/spo2/-", "order"),
            ("p2", "a/spo2/-", "order"),
        ]
    );
}

#[test]
fn line_8_1_before_the_rules_of_a_reading_come_its_clock_its_own_silence_and_that_of_others() {
    let mut log = Log::new(on_record_time(), &["time"]);
    log.record(0.0, &[reading("spo2", 0.0, 95.0)]);
    log.record(1.0, &[reading("spo2", 1.0, 95.0).on("device-b")]);
    log.record(71.0, &[reading("spo2", 700.0, 86.0).on("device-b")]);
    log.says(&[
        "60s raised low @device-a technical/stale",
        "61s raised low @device-b technical/stale",
        "71s raised low @device-b technical/clock",
        "71s cleared low @device-b technical/stale",
        "71s superseded low @device-a technical/stale",
        "71s raised high @device-b time",
    ]);
    assert_eq!(log.partition.transitions(), 6);
}

#[test]
fn line_8_1_a_reading_that_was_appended_twice_counts_once() {
    let mut log = Log::new(settings(), &["time"]);
    log.record(0.0, &[reading("spo2", 0.0, 86.0)]);
    log.says(&["0s raised high @device-a time"]);
    log.apply(log.entries[0].clone());
    log.says(&[]);
    assert_eq!((log.partition.outcomes().repeated, log.partition.outcomes().total()), (1, 1));
}

/// The first 128 bits of SHA-256 over the parts, joined by newlines.
fn hashed(parts: [&str; 6]) -> String {
    let digest = Sha256::digest(parts.join("\n").as_bytes());
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn line_8_1_and_9_a_source_that_was_made_anew_is_told_and_read() {
    let mut log = Log::new(settings(), &["time"]);
    log.each_second("spo2", 0, 3, 95.0);
    log.next_offset = 0;
    // Appended again under the same offset and time it is the same reading, later it is another one.
    log.record(0.0, &[reading("spo2", 0.0, 95.0)]);
    assert_eq!(log.partition.outcomes().repeated, 1);
    log.next_offset = 0;
    log.record(5.0, &[reading("spo2", 5.0, 86.0)]);
    log.says(&["5s raised high @devices technical/feed", "5s raised high @device-a time"]);
    assert_eq!(log.partition.outcomes().repeated, 1);
}

#[test]
fn line_8_2_ids_are_hashes_of_what_they_name() {
    let mut log = Log::new(Settings { epoch_check: false, ..Settings::new("Görlitz") }, &["time", "pair"]);
    let readings = [
        reading("spo2", 3.25, 86.0),
        reading("heart_rate", 3.25, 150.0),
        reading("resp_rate", 3.25, 25.0),
        reading("spo2", 60.0, 95.0).on("device-b"),
    ];
    log.record(3.5, &readings.map(|reading| reading.of("Ä7")));
    log.tick("devices/0", 100.0);
    log.record(100.0, &[reading("spo2", 100.0, 95.0).of("Ä7")]);
    let of = |rule, patient, key, start_us| hashed(["wardbell/1", "Görlitz", rule, patient, key, start_us]);
    let time = of("time", "Ä7", "device-a/spo2/-", "3250000");
    let expected = [
        of("pair", "Ä7", "-", "3250000") + ".0",
        time.clone() + ".0",
        of("technical/clock", "Ä7", "device-b/-/-", "3500000") + ".0",
        of("technical/feed", "-", "devices/0", "100000000") + ".0",
        time + ".1",
    ];
    let ids: Vec<String> = log.decided().into_iter().map(|decided| decided.content.id).collect();
    assert_eq!(ids, expected);
}

/// A log in which much happens, as (broker time, readings).
fn eventful() -> Vec<(f64, Vec<Reading<'static>>)> {
    let mut records = Vec::new();
    for second in 0..100 {
        let at = f64::from(second);
        let low = (10..20).contains(&second) || second > 80;
        let mut readings = vec![reading("spo2", at, if low { 86.0 } else { 95.0 })];
        if second < 15 {
            readings.push(reading("heart_rate", at, 150.0));
        }
        if second % 7 == 0 {
            readings.push(blank("heart_rate", at).on("device-b"));
        }
        if second > 75 {
            readings.push(reading("heart_rate", at + 600.0, 80.0).on("device-b"));
        }
        records.push((at, readings));
    }
    records
}

#[test]
fn line_8_3_content_is_equal_across_batch_splits_and_restarts() {
    let names = ["time", "episodes", "latching", "long-hold", "pair"];
    let mut one_by_one = Log::new(settings(), &names);
    for (broker, readings) in eventful() {
        one_by_one.record(broker, &readings);
    }
    let expected = one_by_one.bytes();
    assert!(expected.len() >= 10, "{} transitions are not much", expected.len());

    let mut builder = ReadingBatchBuilder::default();
    for (offset, (broker, readings)) in (0..).zip(eventful()) {
        let append = Append { source: "devices/0", stamp: broker, append: Some(broker) };
        push_record(&mut builder, append, offset, &readings);
    }
    let mut at_once = Log::new(settings(), &names);
    at_once.apply(Entry::Batch(builder.finish(), us(12_345.0)));
    assert!(at_once.bytes() == expected, "one batch of all records says something else");

    let mut restarted = Log::new(settings(), &names);
    let mut got = Vec::new();
    for (broker, readings) in eventful() {
        restarted.record(broker, &readings);
        got.extend(restarted.bytes());
        restarted.restart();
    }
    assert!(got == expected, "a partition that was written and read back says something else");
}

// ---------------------------------------------------------------------------------------------------------------------
// Sections 9 to 11
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn line_9_a_limit_takes_effect_at_its_place_in_the_order_for_its_patient() {
    let mut log = Log::new(settings(), &["limited"]);
    let rate = |at: f64, value: f64| [reading("heart_rate", at, value)];
    log.record(0.0, &rate(0.0, 115.0));
    log.limit("", Some(110.0));
    log.says(&[]);
    log.record(1.0, &rate(1.0, 115.0).map(|reading| reading.of("p2")));
    log.record(1.0, &rate(1.0, 115.0));
    log.says(&["1s raised medium @device-a limited"]);
    log.record(2.0, &rate(2.0, 90.0));
    log.limit("", None);
    log.record(3.0, &rate(3.0, 115.0));
    log.says(&["2s cleared medium @device-a limited"]);
}

#[test]
fn line_9_an_attribute_takes_effect_at_its_place_in_the_order() {
    let mut log = Log::new(settings(), &["by-age"]);
    log.record(0.0, &[reading("heart_rate", 0.0, 110.0)]);
    log.says(&[]);
    let (patient, name) = ("patient".to_owned(), "age".to_owned());
    log.control("", Control::Attribute { patient, name, value: Some(65.0) });
    log.record(1.0, &[reading("heart_rate", 1.0, 110.0)]);
    log.says(&["1s raised medium @device-a by-age"]);
}

#[test]
fn line_9_a_repeated_id_is_ignored() {
    let mut log = Log::new(settings(), &["limited"]);
    log.limit("c1", Some(110.0));
    log.limit("c2", Some(130.0));
    log.limit("c1", Some(110.0));
    log.record(0.0, &[reading("heart_rate", 0.0, 115.0)]);
    log.says(&[]);
    log.limit("c3", Some(110.0));
    log.record(1.0, &[reading("heart_rate", 1.0, 115.0)]);
    log.says(&["1s raised medium @device-a limited"]);
}

#[test]
fn line_9_and_8_3_a_replay_of_the_log_is_the_run() {
    let mut log = Log::new(settings(), &["time", "latching", "limited"]);
    for (broker, readings) in eventful() {
        if broker == 5.0 {
            log.limit("c1", Some(160.0));
        }
        if broker == 30.0 {
            log.tick("devices/0", 35.0);
        }
        if broker == 80.0 {
            log.control("c2", Control::Discharge { patient: "patient".to_owned() });
        }
        log.record(broker, &readings);
    }
    let expected = log.bytes();
    assert!(expected.len() >= 10, "{} transitions are not much", expected.len());
    let mut replay = Log::new(settings(), &["time", "latching", "limited"]);
    for entry in log.entries {
        replay.apply(entry);
    }
    assert!(replay.bytes() == expected, "the replay says something else");
}

#[test]
fn line_10_and_9_a_rule_of_unchanged_meaning_keeps_its_pending_hold_and_an_older_set_is_ignored() {
    let mut log = Log::new(settings(), &["episodes"]);
    log.each_second("spo2", 0, 3, 86.0);
    let same = changed("episodes", &[("version: 1", "version: 2"), ("owner: \"semantics\"", "owner: \"others\"")]);
    log.activate(2, &same);
    for number in [1, 2] {
        log.activate(number, &RuleSet::new(Vec::new()));
    }
    assert_eq!(log.partition.in_force(), Some((2, same.hash.as_str())));
    log.each_second("spo2", 4, 5, 86.0);
    let decided = log.decided();
    assert_eq!(trial::notation(&decided[0].content), "5s raised high @device-a episodes");
    assert_eq!(decided[0].content.rule.version, 2);
}

#[test]
fn line_10_a_changed_rule_is_evaluated_at_once_and_its_runs_start_over() {
    let mut log = Log::new(settings(), &["episodes"]);
    log.each_second("spo2", 0, 3, 86.0);
    log.activate(1, &changed("episodes", &[("low: 90.0", "low: 91.0")]));
    log.each_second("spo2", 4, 7, 86.0);
    log.says(&[]);
    log.each_second("spo2", 8, 8, 86.0);
    log.says(&["8s raised high @device-a episodes"]);
}

#[test]
fn line_10_an_open_episode_ends_only_if_the_new_clear_is_true() {
    let open = || {
        let mut log = Log::new(settings(), &["episodes"]);
        log.each_second("spo2", 0, 5, 86.0);
        log.says(&["5s raised high @device-a episodes"]);
        log
    };
    let mut log = open();
    let wider = [("low: 90.0", "low: 80.0"), ("clear: 92.0", "clear: 85.0"), ("version: 1", "version: 2")];
    log.activate(1, &changed("episodes", &wider));
    let decided = log.decided();
    let content = &decided[0].content;
    assert_eq!(trial::notation(content), "5s rule_changed high @device-a episodes");
    assert_eq!((content.raised_by_version, content.rule.version, content.number), (1, 2, 1));
    // In the band between the new limits it stays, and ends like any other.
    let mut log = open();
    log.activate(1, &changed("episodes", &[("low: 90.0", "low: 80.0")]));
    log.says(&[]);
    log.each_second("spo2", 6, 11, 92.0);
    log.says(&["11s cleared high @device-a episodes"]);
}

#[test]
fn line_10_a_key_with_a_stale_series_waits_for_its_next_reading() {
    let mut log = Log::new(on_record_time(), &["episodes"]);
    log.each_second("spo2", 0, 5, 86.0);
    log.tick("devices/0", 100.0);
    log.says(&["5s raised high @device-a episodes", "65s raised low @device-a technical/stale"]);
    log.activate(1, &changed("episodes", &[("low: 90.0", "low: 80.0"), ("clear: 92.0", "clear: 85.0")]));
    log.says(&[]);
    log.record(101.0, &[reading("spo2", 101.0, 86.0)]);
    log.says(&["101s cleared low @device-a technical/stale", "101s rule_changed high @device-a episodes"]);
}

#[test]
fn line_10_a_removed_rule_ends_its_episodes_by_patient_key_and_rule_id_and_an_added_one_waits_for_a_reading() {
    let mut log = Log::new(settings(), &["silence", "time"]);
    let low = |patient, device| reading("spo2", 0.0, 86.0).of(patient).on(device);
    log.record(0.0, &[low("p2", "b"), low("p2", "a"), low("p1", "b")]);
    assert_eq!(log.decided().len(), 6);
    log.activate(1, &rules(&["plain"]));
    let decided = log.decided();
    let keys = [("p1", "b/spo2/-"), ("p2", "a/spo2/-"), ("p2", "b/spo2/-")];
    let expected: Vec<(&str, &str, &str)> =
        keys.iter().flat_map(|(patient, key)| ["silence", "time"].map(|rule| (*patient, *key, rule))).collect();
    assert_eq!(places(&decided), expected);
    assert!(decided.iter().all(|decided| trial::notation(&decided.content).starts_with("0s rule_changed")));
    log.record(1.0, &[reading("heart_rate", 1.0, 130.0)]);
    log.says(&["1s raised medium @device-a plain"]);
}

#[test]
fn line_11_an_alert_carries_what_the_three_latencies_are_made_of() {
    let mut log = Log::new(settings(), &["time", "episodes"]);
    log.record(103.0, &[reading("spo2", 100.0, 86.0)]);
    log.tick("devices/0", 108.0);
    let decided = log.decided();
    let [by_reading, by_timer] = &decided[..] else {
        panic!("two alerts, not {}", decided.len());
    };
    // Data age 103 - 100. Raised at once, by the record of 103.
    assert_eq!((by_reading.basis_us, by_reading.content.event_time), (Some(us(103.0)), Some(us(100.0))));
    assert_eq!(by_reading.content.intentional_delay_us, 0);
    // Five seconds of hold. No source record decided: the append time of the canonical one counts.
    assert_eq!((by_timer.basis_us, by_timer.content.by_timer), (None, true));
    assert_eq!(by_timer.content.intentional_delay_us, us(5.0));
}

// ---------------------------------------------------------------------------------------------------------------------
// Section 12
// ---------------------------------------------------------------------------------------------------------------------

fn case_file(fields: &str) -> SourceFile {
    SourceFile { path: "x.test.toml".to_owned(), text: format!("[[case]]\nname = \"x\"\n{fields}\n") }
}

/// The one case with these fields.
fn case(fields: &str) -> Case {
    let (mut cases, faults) = cases::parse(&case_file(fields), Catalogue::builtin());
    assert!(faults.is_empty(), "{fields}: {}", faults[0].message);
    cases.remove(0)
}

/// The records of a case: `10s: device-a/spo2@0s=950, ...`, values in counts of resolution.
fn expanded(fields: &str) -> Vec<String> {
    let printed = |reading: &CaseReading| {
        let signal = &Catalogue::builtin().signal(reading.signal).id;
        let value = reading.value.map_or("blank".to_owned(), |value| value.to_string());
        format!("{}/{signal}@{}={value}", reading.device, duration::print(reading.event_us))
    };
    let case = case(&format!("{fields}\nexpect = []"));
    let records = case.records.iter();
    let readings = |readings: &[CaseReading]| readings.iter().map(printed).collect::<Vec<String>>().join(", ");
    records.map(|record| format!("{}: {}", duration::print(record.broker_us), readings(&record.readings))).collect()
}

#[test]
fn line_12_1_segments_follow_one_another_and_their_ends_are_left_out() {
    assert_eq!(
        expanded("every = \"2s\"\nseries.spo2 = \"95 for 5s, none for 1s, blank for 3s, 86 for 2s\""),
        [
            "0s: device-a/spo2@0s=950",
            "2s: device-a/spo2@2s=950",
            "4s: device-a/spo2@4s=950",
            "6s: device-a/spo2@6s=blank",
            "8s: device-a/spo2@8s=blank",
            "9s: device-a/spo2@9s=860",
        ]
    );
}

#[test]
fn line_12_1_a_line_leaves_its_end_out_and_is_rounded_half_away_from_zero() {
    // 90, 90.67, 91.33
    assert_eq!(
        expanded("series.heart_rate = \"90 to 92 over 3s\""),
        ["0s: device-a/heart_rate@0s=900", "1s: device-a/heart_rate@1s=907", "2s: device-a/heart_rate@2s=913"]
    );
    // 91.3, 91.35
    assert_eq!(
        expanded("series.heart_rate = \"91.3 to 91.4 over 2s\""),
        ["0s: device-a/heart_rate@0s=913", "1s: device-a/heart_rate@1s=914"]
    );
    // -0.3, -0.35
    assert_eq!(expanded("series.icp = \"-0.3 to -0.4 over 2s\""), ["0s: device-a/icp@0s=-3", "1s: device-a/icp@1s=-4"]);
}

#[test]
fn line_12_1_the_name_of_a_category_may_stand_for_a_value() {
    // The catalogue's order is A C V P U.
    assert_eq!(
        expanded("series.consciousness = \"A for 1s, V for 1s\""),
        ["0s: device-a/consciousness@0s=0", "1s: device-a/consciousness@1s=2"]
    );
}

#[test]
fn line_12_1_readings_of_one_broker_time_are_one_record_in_the_order_of_their_names() {
    assert_eq!(
        expanded("series.spo2 = \"95 for 1s\"\nseries.\"spo2@b\" = \"94 for 1s\"\nseries.heart_rate = \"80 for 1s\""),
        ["0s: device-a/heart_rate@0s=800, device-a/spo2@0s=950, b/spo2@0s=940"]
    );
}

#[test]
fn line_12_1_delays_count_from_before_stamps_are_rounded_and_a_device_can_have_its_own() {
    let fields = r#"
every = "90s"
stamp.spo2 = "1m"
delay.spo2 = "10s"
delay."spo2@b" = "0s"
series.spo2 = "95 for 3m"
series."spo2@b" = "94 for 90s"
series."spo2@c" = "93 for 90s""#;
    assert_eq!(
        expanded(fields),
        [
            "0s: b/spo2@0s=940",
            "10s: device-a/spo2@0s=950, c/spo2@0s=930",
            // Measured at 90, stamped 60, sent at 100.
            "1m40s: device-a/spo2@1m=950",
        ]
    );
}

#[test]
fn line_12_1_a_negative_broker_time_is_an_error() {
    let file = case_file("delay.spo2 = \"-1s\"\nseries.spo2 = \"95 for 2s\"\nexpect = []");
    let (cases, faults) = cases::parse(&file, Catalogue::builtin());
    assert!(cases.is_empty());
    assert_eq!(faults.iter().map(|fault| fault.code).collect::<Vec<_>>(), ["T004"]);
}

#[test]
fn line_12_2_what_a_case_does_not_say() {
    let case = case(
        r#"every.heart_rate = "5s"
series.heart_rate = "80 for 10s"
series.spo2 = "86 for 6s"
then = "2m"
expect = []"#,
    );
    // Both end with a reading at 5: the longer slot ends at 10.
    assert_eq!(case.end_us, us(130.0));
    let trial = trial::run(&case, &rules(&["notation"]), Catalogue::builtin());
    let raised = &trial.got[0];
    assert_eq!((raised.site.as_str(), raised.patient.as_str()), ("test", "patient"));
    // At 0 = 1970, which is no epoch here.
    assert_eq!((raised.key.as_str(), raised.at), ("device-a/spo2/-", 0));
}

#[test]
fn line_12_3_what_an_entry_does_not_say_is_not_compared() {
    let passes = |series: &str, expect: &str| {
        let case = case(&format!("{series}\nexpect = [{expect}]"));
        trial::run(&case, &rules(&["notation"]), Catalogue::builtin()).passed()
    };
    let low = r#"series.spo2 = "86 for 1s""#;
    for right in ["0s raised", "0s raised high", "0s raised @device-a", "0s raised high @device-a notation"] {
        assert!(passes(low, &format!("\"{right}\"")), "{right}");
    }
    for wrong in [
        "1s raised",
        "0s cleared",
        "0s raised low",
        "0s raised @device-b",
        "0s raised high before",
        "0s raised low technical/stale",
    ] {
        assert!(!passes(low, &format!("\"{wrong}\"")), "{wrong}");
    }
    assert!(!passes(low, ""), "the list is complete");
    assert!(!passes(low, r#""0s raised", "0s raised""#), "and nothing stands for two");
    // A technical alert is expected, and always named.
    let silent = "series.spo2 = \"95 for 1s\"\nthen = \"2m\"";
    assert!(passes(silent, r#""60s raised low technical/stale""#));
    assert!(!passes(silent, r#""60s raised low""#));
    assert!(!passes(silent, ""));
    assert!(passes(&format!("{silent}\ntechnical = \"ignore\""), ""));
}

#[test]
fn line_12_3_a_rule_without_message_gets_a_plain_one() {
    let case = case("series.spo2 = \"86 for 1s\"\nexpect = []");
    let trial = trial::run(&case, &rules(&["notation"]), Catalogue::builtin());
    assert!(!trial.got[0].message.is_empty());
}
