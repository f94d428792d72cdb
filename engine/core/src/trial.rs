//! A rule test: one case, run through a partition as a log of its own would be, and held against what it expects.

use wardbell_rules::RuleSet;
use wardbell_rules::cases::{Case, Expectation, PATIENT, SITE};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Content, Kind};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Control, ControlRecord};
use wardbell_schemas::duration;
use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};

use crate::partition::{Evaluated, Partition, Settings};

/// What came of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Everything that happened, in order.
    pub got: Vec<Content>,
    /// Expected and got side by side, in order; equal length where the case passed.
    pub pairs: Vec<Pair>,
    /// What every evaluation saw and said.
    pub trace: Vec<Evaluated>,
}

/// One line of the comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    pub expected: Option<Expectation>,
    /// Index into `got`.
    pub got: Option<usize>,
}

impl Pair {
    pub fn agrees(&self) -> bool {
        self.expected.is_some() && self.got.is_some()
    }
}

impl Trial {
    pub fn passed(&self) -> bool {
        self.pairs.iter().all(Pair::agrees)
    }
}

/// Settings of every rule test: record time, time 0 is 1970.
pub fn settings() -> Settings {
    Settings { epoch_check: false, record_clock: true, ..Settings::new(SITE) }
}

/// Runs a case. `set` holds the case's own rule (`own_rule`) and those it names; an expectation without a rule id means
/// any transition that is not technical.
pub fn run(case: &Case, set: &RuleSet, catalogue: &'static Catalogue) -> Trial {
    let (got, trace) = transitions(case, set, catalogue);
    let compared: Vec<usize> =
        (0..got.len()).filter(|i| !(case.ignore_technical && got[*i].kind == Kind::Technical)).collect();
    let pairs = align(&case.expect, &compared, &got);
    Trial { got, pairs, trace }
}

/// Everything a case causes, in order, and what evaluations saw.
fn transitions(case: &Case, set: &RuleSet, catalogue: &'static Catalogue) -> (Vec<Content>, Vec<Evaluated>) {
    let mut partition = Partition::new(settings(), set, catalogue);
    partition.start_trace();
    let of_patient = |(name, value): (&String, &f64), limit: bool| {
        let (patient, name, value) = (PATIENT.to_owned(), name.clone(), Some(*value));
        let control =
            if limit { Control::Limit { patient, name, value } } else { Control::Attribute { patient, name, value } };
        ControlRecord { id: String::new(), control }
    };
    for limit in &case.limits {
        partition.apply_control(&of_patient(limit, true));
    }
    for attribute in &case.attributes {
        partition.apply_control(&of_patient(attribute, false));
    }
    for (offset, record) in case.records.iter().enumerate() {
        let mut builder = ReadingBatchBuilder::default();
        for (index, reading) in record.readings.iter().enumerate() {
            builder.push(&ReadingRow {
                patient: PATIENT,
                device: &reading.device,
                signal: reading.signal,
                method: "-",
                value: reading.value,
                quality: if reading.value.is_some() { Quality::Ok } else { Quality::Missing },
                reason: Reason::None,
                event_time_us: reading.event_us,
                source_time_us: record.broker_us,
                append_time_us: None,
                source_topic: "case",
                source_partition: 0,
                source_offset: offset as i64,
                source_index: index as u32,
                comparator: Comparator::None,
                change: Change::None,
                policies: Policies::NONE,
            });
        }
        if partition.apply(&builder.finish(), record.broker_us).is_err() {
            // The batch was built from this catalogue and schema; a mismatch would be a defect that the comparison shows.
            break;
        }
    }
    partition.tick_record_clock(case.end_us);
    let got = partition.take_decided().into_iter().map(|decided| decided.content).collect();
    (got, partition.take_trace())
}

/// Whether a transition is what an entry means.
fn matches(expected: &Expectation, got: &Content) -> bool {
    let rule = match &expected.rule {
        Some(rule) => *rule == got.rule.id,
        None => got.kind == Kind::Physiological,
    };
    let device = expected.device.as_ref().is_none_or(|device| got.key.split('/').next() == Some(device));
    rule && device
        && got.at == expected.at_us
        && got.transition == expected.transition
        && expected.priority.is_none_or(|priority| priority == got.priority)
}

/// Pairs both lists in order, so that one missing or additional entry does not shift the rest (longest common sequence).
fn align(expected: &[Expectation], compared: &[usize], got: &[Content]) -> Vec<Pair> {
    let (n, m) = (expected.len(), compared.len());
    let mut longest = vec![vec![0_u32; m + 1]; n + 1];
    for i in (0..n).rev() {
        for j in (0..m).rev() {
            longest[i][j] = if matches(&expected[i], &got[compared[j]]) {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut pairs = Vec::new();
    while i < n || j < m {
        if i < n && j < m && matches(&expected[i], &got[compared[j]]) {
            pairs.push(Pair { expected: Some(expected[i].clone()), got: Some(compared[j]) });
            (i, j) = (i + 1, j + 1);
        } else if j == m || (i < n && longest[i + 1][j] >= longest[i][j + 1]) {
            pairs.push(Pair { expected: Some(expected[i].clone()), got: None });
            i += 1;
        } else {
            pairs.push(Pair { expected: None, got: Some(compared[j]) });
            j += 1;
        }
    }
    pairs
}

/// A transition in the notation of `expect`.
pub fn notation(content: &Content) -> String {
    let device = content.key.split('/').next().unwrap_or_default();
    let device = if content.key == "-" { String::new() } else { format!(" @{device}") };
    let rule = format!(" {}", content.rule.id);
    format!("{} {} {}{device}{rule}", seconds(content.at), content.transition.name(), content.priority.name())
}

fn seconds(us: Micros) -> String {
    if us % 1_000_000 == 0 { format!("{}s", us / 1_000_000) } else { duration::print(us) }
}
