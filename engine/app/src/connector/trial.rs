//! Records through a connector, without a broker: what `wardbell normalize` prints, and what the samples beside a
//! connector's file are held against.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde_json::value::RawValue;
use wardbell_connectors::decode::{Decoder, Part, Undecodable};
use wardbell_core::normalize::{self, Normalized, Source};
use wardbell_rules::{Diagnostic, SourceFile};
use wardbell_schemas::alert::print_time;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::ControlRecord;
use wardbell_schemas::decoded::DecodedReading;
use wardbell_schemas::reading::{Change, Policy, ReadingRow, Reason};

use super::unmapped::Unmapped;
use super::{Connector, file_stem, undecodable};
use crate::rules_files;

/// Records of a file have no time stamp of their own and no place in a topic.
const NOWHERE: Source<'static> = Source { topic: "file", partition: 0, offset: 0, time_us: 0, append_us: None };
/// Endings of samples, beside `NAME.connector.toml`.
const SAMPLES_ENDINGS: [&str; 2] = [".samples.jsonl", ".samples.csv"];
/// What the samples give, one line each.
const EXPECTED_ENDING: &str = ".expected.jsonl";

/// What came of one reading, as one line.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Line {
    Reading(ReadingLine),
    Refused(RefusedLine),
    Request(RequestLine),
}

/// A canonical reading.
#[derive(Debug, Serialize)]
pub struct ReadingLine {
    /// From 1, in the order of the input.
    record: u64,
    patient: String,
    device: String,
    signal: String,
    method: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    comparator: &'static str,
    /// In the canonical unit, exactly; a category's state by its name; absent without a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    unit: String,
    quality: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<Change>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policies: Vec<&'static str>,
}

/// What would become a dead letter.
#[derive(Debug, Serialize)]
pub struct RefusedLine {
    record: u64,
    refused: &'static str,
    field: String,
    detail: String,
}

/// A request that influences decisions.
#[derive(Debug, Serialize)]
pub struct RequestLine {
    record: u64,
    #[serde(flatten)]
    request: ControlRecord,
}

impl Line {
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// As people read it.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Reading(line) => {
                let value = line.value.as_ref().map_or("no value", |value| value.get().trim_matches('"'));
                let value = format!("{}{value} {}", line.comparator, line.unit);
                let method = if line.method == "-" { String::new() } else { format!(" ({})", line.method) };
                let signal = format!("{}{method}", line.signal);
                write!(f, "{:<28} {:<12} {:<12} {signal:<28}", line.time, line.patient, line.device)?;
                write!(f, " {:<14} {}", value.trim_end(), line.quality)?;
                let change = line.change.map(|change| if change == Change::Retracts { "retracts" } else { "corrects" });
                for note in line.reason.iter().chain(&change).chain(&line.policies) {
                    write!(f, " {note}")?;
                }
                Ok(())
            }
            Line::Refused(line) => {
                write!(f, "refused {} record {} {}: {}", line.refused, line.record, line.field, line.detail)
            }
            Line::Request(line) => {
                let request = serde_json::to_string(&line.request.control).unwrap_or_default();
                write!(f, "request {request}")
            }
        }
    }
}

/// What came of all records.
#[derive(Debug, Default)]
pub struct Summary {
    pub records: u64,
    pub readings: u64,
    pub qualities: BTreeMap<&'static str, u64>,
    pub refused: BTreeMap<&'static str, u64>,
    pub ignored: u64,
    pub requests: u64,
    pub policies: BTreeMap<&'static str, u64>,
    pub unmapped: Unmapped,
}

impl Summary {
    pub fn n_refused(&self) -> u64 {
        self.refused.values().sum()
    }
}

/// One run of records.
pub struct Trial<'c> {
    connector: &'c Connector,
    catalogue: &'static Catalogue,
    pub summary: Summary,
}

impl<'c> Trial<'c> {
    pub fn new(connector: &'c Connector) -> Self {
        Self { connector, catalogue: Catalogue::builtin(), summary: Summary::default() }
    }

    /// Decodes and normalizes one record and gives a line for each of its readings.
    pub fn record(&mut self, value: &[u8]) -> Vec<Line> {
        self.summary.records += 1;
        let mut lines = Vec::new();
        for part in self.connector.decode(value) {
            match part {
                Ok(Part::Reading(reading)) => self.reading(&reading, &mut lines),
                Ok(Part::Control(control)) => match normalize::control(&control, &NOWHERE, &self.connector.profile) {
                    Ok(Some(requested)) => {
                        self.summary.requests += 1;
                        // Its id is a source position, which a file has none of.
                        let request = ControlRecord { id: String::new(), ..requested.record };
                        lines.push(Line::Request(RequestLine { record: self.summary.records, request }));
                    }
                    Ok(None) => self.summary.ignored += 1,
                    Err(refused) => {
                        let fault = Undecodable {
                            reason: refused.reason,
                            field: refused.field.to_owned(),
                            detail: refused.detail,
                            index: control.index,
                        };
                        lines.push(self.refused(fault));
                    }
                },
                Err(fault) => lines.push(self.refused(fault)),
            }
        }
        lines
    }

    fn reading(&mut self, reading: &DecodedReading<'_>, lines: &mut Vec<Line>) {
        let rows = match normalize::normalize(reading, &NOWHERE, self.catalogue, &self.connector.profile) {
            Ok(Normalized::Ignored) => {
                self.summary.ignored += 1;
                return;
            }
            Ok(Normalized::Reading(row)) => vec![Ok(row)],
            Ok(Normalized::Parts(parts)) => parts,
            Err(refused) => vec![Err(refused)],
        };
        for row in rows {
            let line = match row {
                Ok(row) => self.accepted(&row),
                Err(refused) => {
                    self.summary.unmapped.note(reading, &refused);
                    self.refused(undecodable(reading, refused))
                }
            };
            lines.push(line);
        }
    }

    fn accepted(&mut self, row: &ReadingRow<'_>) -> Line {
        self.summary.readings += 1;
        *self.summary.qualities.entry(row.quality.name()).or_default() += 1;
        let policies: Vec<&'static str> = row.policies.iter().map(Policy::name).collect();
        for policy in &policies {
            *self.summary.policies.entry(*policy).or_default() += 1;
        }
        let signal = self.catalogue.signal(row.signal);
        let value = row.value.map(|value| {
            let text = signal.print(value);
            if signal.is_category() { serde_json::to_string(&text).unwrap_or_default() } else { text }
        });
        Line::Reading(ReadingLine {
            record: self.summary.records,
            patient: row.patient.to_owned(),
            device: row.device.to_owned(),
            signal: signal.id.clone(),
            method: row.method.to_owned(),
            comparator: row.comparator.symbol(),
            unit: if value.is_some() { signal.unit.clone() } else { String::new() },
            value: value.and_then(|value| RawValue::from_string(value).ok()),
            quality: row.quality.name(),
            reason: (row.reason != Reason::None).then(|| row.reason.name()),
            time: print_time(row.event_time_us),
            change: (row.change != Change::None).then_some(row.change),
            policies,
        })
    }

    fn refused(&mut self, fault: Undecodable) -> Line {
        *self.summary.refused.entry(fault.reason.name()).or_default() += 1;
        Line::Refused(RefusedLine {
            record: self.summary.records,
            refused: fault.reason.name(),
            field: fault.field,
            detail: fault.detail,
        })
    }
}

/// The records of a file's content: its lines, or all of it where lines do not end records.
pub fn records<'t>(connector: &Connector, content: &'t [u8]) -> Vec<&'t [u8]> {
    if connector.is_whole_file() {
        return vec![content];
    }
    content.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect()
}

/// Runs the samples beside a connector's file and holds them against what is expected. Gives the expected file, if there
/// is one, and a fault for each line that differs.
pub fn check_samples(connector: &Connector, file: &SourceFile) -> (Option<SourceFile>, Vec<Diagnostic>) {
    let path = Path::new(&file.path);
    let beside = |ending: &str| path.with_file_name(format!("{}{ending}", file_stem(&file.path)));
    let samples = SAMPLES_ENDINGS.into_iter().map(beside).find(|path| path.is_file());
    let expected = beside(EXPECTED_ENDING);
    let Some(samples) = samples else {
        return (None, Vec::new());
    };
    let show = format!("wardbell normalize --connector {} --json {}", file.path, samples.display());
    if !expected.is_file() {
        let message = format!("samples without `{}`: nothing is compared", expected.display());
        let fault = Diagnostic::whole_file("M007", &samples.display().to_string(), message).warning();
        return (None, vec![fault.help(format!("read what they give, then keep it: {show}"))]);
    }
    let content = match std::fs::read(&samples) {
        Ok(content) => content,
        Err(error) => {
            let message = format!("cannot be read: {error}");
            return (None, vec![Diagnostic::whole_file("F001", &samples.display().to_string(), message)]);
        }
    };
    let expected = match rules_files::read(&expected) {
        Ok(expected) => expected,
        Err(fault) => return (None, vec![*fault]),
    };
    let connector = connector.clone().without_limit();
    let mut trial = Trial::new(&connector);
    let got: Vec<String> = records(&connector, &content)
        .into_iter()
        .flat_map(|record| trial.record(record))
        .map(|line| line.json())
        .collect();
    let faults = compare(&expected, &got);
    let help = format!("to see what the samples give: {show}");
    let faults = faults.into_iter().map(|fault| fault.help(help.clone())).collect();
    (Some(expected), faults)
}

/// Lines are compared as JSON, so that blanks and the order of keys do not matter.
fn compare(expected: &SourceFile, got: &[String]) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    let mut got_lines = got.iter();
    let mut at = 0;
    for text in expected.text.split_inclusive('\n') {
        let span = at..at + text.trim_end().len();
        at += text.len();
        if text.trim().is_empty() {
            continue;
        }
        let message = match (serde_json::from_str::<serde_json::Value>(text), got_lines.next()) {
            (Err(_), _) => "not a line of JSON".to_owned(),
            (Ok(_), None) => format!("the samples give {} lines only", got.len()),
            (Ok(expected), Some(got)) => match difference(&expected, &serde_json::from_str(got).unwrap_or_default()) {
                None => continue,
                Some(keys) => format!("the samples give another {keys}"),
            },
        };
        faults.push(Diagnostic::error("M006", expected, span, message));
    }
    let further = got_lines.count();
    if further > 0 {
        let message = format!("the samples give {further} lines more");
        faults.push(Diagnostic::error("M006", expected, at..at, message));
    }
    faults
}

/// Names of the keys in which two lines differ.
fn difference(expected: &serde_json::Value, got: &serde_json::Value) -> Option<String> {
    if expected == got {
        return None;
    }
    let empty = serde_json::Map::new();
    let (expected, got) = (expected.as_object().unwrap_or(&empty), got.as_object().unwrap_or(&empty));
    let keys = expected.keys().chain(got.keys().filter(|key| !expected.contains_key(*key)));
    let differing: Vec<String> =
        keys.filter(|key| expected.get(*key) != got.get(*key)).map(|key| format!("`{key}`")).collect();
    Some(if differing.is_empty() { "line".to_owned() } else { differing.join(", ") })
}
