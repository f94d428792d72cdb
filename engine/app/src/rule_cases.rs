//! The cases beside rules, run: what was expected, what came, and why a case failed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use wardbell_core::partition::Evaluated;
use wardbell_core::trial::{self, Trial};
use wardbell_rules::cases::{self, Case};
use wardbell_rules::{Diagnostic, Rule, RuleSet, Severity, SourceFile, compile};
use wardbell_schemas::alert::Content;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::{Micros, duration};

use crate::rules_files::{self, CASES_ENDING, RULE_ENDING};

/// Lines of "what the rule said" shown for a failed case.
const TRACE_LINES_MAX: usize = 24;

/// What came of one case.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub file: String,
    pub line: usize,
    pub name: String,
    pub passed: bool,
    pub expected: Vec<String>,
    pub got: Vec<String>,
    /// Why it failed, as shown to people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub report: String,
}

/// All cases below some paths, run.
#[derive(Debug, Default)]
pub struct Results {
    pub outcomes: Vec<Outcome>,
    pub files: Vec<SourceFile>,
    /// Of the case files and the rules they test.
    pub faults: Vec<Diagnostic>,
}

impl Results {
    pub fn n_passed(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.passed).count()
    }

    /// Failed cases, and files that could not be run.
    pub fn n_failed(&self) -> usize {
        let faults = self.faults.iter().filter(|fault| fault.severity == Severity::Error).count();
        self.outcomes.len() - self.n_passed() + faults
    }

    /// Faults and failed cases as people read them.
    pub fn render(&self, color: bool) -> String {
        let mut text = rules_files::render(&self.faults, &self.files, color);
        for outcome in self.outcomes.iter().filter(|outcome| !outcome.passed) {
            text.push_str(&outcome.report);
        }
        text
    }

    /// File, line and name of every failed case, and every fault.
    pub fn failures(&self) -> Vec<String> {
        let errors = self.faults.iter().filter(|fault| fault.severity == Severity::Error);
        let faults = errors.map(|fault| format!("{}:{} {} {}", fault.path, fault.line, fault.code, fault.message));
        let failed = self.outcomes.iter().filter(|outcome| !outcome.passed);
        faults.chain(failed.map(|outcome| format!("{}:{}: {}", outcome.file, outcome.line, outcome.name))).collect()
    }
}

/// Runs every case below some paths.
pub fn run(paths: &[PathBuf]) -> Results {
    let catalogue = Catalogue::builtin();
    let mut results = Results::default();
    for path in paths {
        match rules_files::find(path, &|name| name.ends_with(CASES_ENDING)) {
            Ok(found) => found.iter().for_each(|file| run_file(file, catalogue, &mut results)),
            Err(fault) => results.faults.push(*fault),
        }
    }
    results
}

fn run_file(path: &Path, catalogue: &'static Catalogue, results: &mut Results) {
    let file = match rules_files::read(path) {
        Ok(file) => file,
        Err(fault) => {
            results.faults.push(*fault);
            return;
        }
    };
    let (cases, faults) = cases::parse(&file, catalogue);
    results.faults.extend(faults);
    // Rules of the folder, each read and checked once.
    let mut rules: BTreeMap<String, Option<Rule>> = BTreeMap::new();
    let own = file_stem(path);
    for case in &cases {
        let mut set = Vec::new();
        for name in std::iter::once(&own).chain(&case.rules) {
            let rule = rules.entry(name.clone()).or_insert_with(|| read_rule(path, name, catalogue, results));
            set.extend(rule.clone());
        }
        if set.len() < 1 + case.rules.len() {
            // The fault of the rule file has been reported; its cases say nothing.
            continue;
        }
        let set = RuleSet::new(set);
        let trial = trial::run(case, &set, catalogue);
        results.outcomes.push(outcome(&file.path, case, &trial));
    }
    results.files.push(file);
}

fn file_stem(path: &Path) -> String {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_suffix(CASES_ENDING).unwrap_or(name).to_owned()
}

fn read_rule(cases: &Path, name: &str, catalogue: &Catalogue, results: &mut Results) -> Option<Rule> {
    match rules_files::read(&cases.with_file_name(format!("{name}.{RULE_ENDING}"))) {
        Ok(file) => {
            let (rule, faults) = compile(&file, catalogue);
            results.faults.extend(faults);
            results.files.push(file);
            rule
        }
        Err(fault) => {
            let help = format!("`{}` needs the rule it tests beside it", cases.display());
            results.faults.push(fault.help(help));
            None
        }
    }
}

fn outcome(file: &str, case: &Case, trial: &Trial) -> Outcome {
    let passed = trial.passed();
    Outcome {
        file: file.to_owned(),
        line: case.line,
        name: case.name.clone(),
        passed,
        expected: case.expect.iter().map(|expected| expected.text.clone()).collect(),
        got: trial.got.iter().map(trial::notation).collect(),
        report: if passed { String::new() } else { report(file, case, trial) },
    }
}

/// A failed case for people: both lists on one time line, then what the rules said around the first difference.
fn report(file: &str, case: &Case, trial: &Trial) -> String {
    let mut text = format!("FAILED {file}:{}: {}\n", case.line, case.name);
    let _ = writeln!(text, "       {:<44} {:<44}", "expected", "got");
    for pair in &trial.pairs {
        let expected = pair.expected.as_ref().map_or("-", |expected| expected.text.as_str());
        let got = pair.got.map_or("-".to_owned(), |got| trial::notation(&trial.got[got]));
        let (mark, reason) = match (&pair.expected, pair.got) {
            (Some(_), Some(_)) => (" ", ""),
            (Some(_), None) => (">", "missing"),
            (None, _) => (">", "not expected"),
        };
        let _ = writeln!(text, "     {mark} {expected:<44} {got:<44} {reason}");
    }
    let first = trial.pairs.iter().find(|pair| !pair.agrees());
    let at = first.map_or(0, |pair| match (&pair.expected, pair.got) {
        (Some(expected), _) => expected.at_us,
        (None, Some(got)) => trial.got[got].at,
        (None, None) => 0,
    });
    text.push_str("       what the rules said (raise, clear, values read):\n");
    for line in said(&trial.trace, &trial.got, at) {
        let _ = writeln!(text, "         {line}");
    }
    text.push('\n');
    text
}

/// Evaluations in stretches that said the same, those nearest to a time.
fn said(trace: &[Evaluated], got: &[Content], at: Micros) -> Vec<String> {
    struct Stretch<'a> {
        first: &'a Evaluated,
        last: &'a Evaluated,
    }
    let mut stretches: Vec<Stretch<'_>> = Vec::new();
    for evaluated in trace {
        let same = |known: &Stretch<'_>| {
            (&known.last.rule, &known.last.key, known.last.raise, known.last.clear)
                == (&evaluated.rule, &evaluated.key, evaluated.raise, evaluated.clear)
        };
        match stretches
            .iter_mut()
            .rev()
            .find(|known| (&known.last.rule, &known.last.key) == (&evaluated.rule, &evaluated.key))
        {
            Some(known) if same(known) => known.last = evaluated,
            _ => stretches.push(Stretch { first: evaluated, last: evaluated }),
        }
    }
    if stretches.is_empty() {
        return vec!["no rule was evaluated: no reading of its signals was accepted".to_owned()];
    }
    let behind = stretches.iter().position(|stretch| stretch.last.at >= at).unwrap_or(stretches.len());
    let from = behind.saturating_sub(TRACE_LINES_MAX / 2);
    let several = got.iter().any(|content| trace.iter().any(|evaluated| evaluated.rule != content.rule.id));
    let line = |stretch: &Stretch<'_>| {
        let values = |evaluated: &Evaluated| {
            let value = |(function, value): &(String, Option<f64>)| match value {
                Some(value) => format!("{function} = {}", (value * 1_000.0).round() / 1_000.0),
                None => format!("{function} unknown"),
            };
            evaluated.values.iter().map(value).collect::<Vec<String>>().join(", ")
        };
        let clear = match stretch.first.clear {
            None => "unknown",
            Some(true) => "true",
            Some(false) => "false",
        };
        let (first, last) = (values(stretch.first), values(stretch.last));
        let shown = if first == last { first } else { format!("{first} … {last}") };
        let rule = if several { format!("{} {} ", stretch.first.rule, stretch.first.key) } else { String::new() };
        let span = format!("{} .. {}", duration::print(stretch.first.at), duration::print(stretch.last.at));
        format!("{span:<18} {rule}raise {:<8} clear {clear:<8} {shown}", stretch.first.raise)
    };
    stretches.iter().skip(from).take(TRACE_LINES_MAX).map(line).collect()
}
