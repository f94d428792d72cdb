//! `wardbell normalize`: records through a connector, without a broker.

use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Write};
use std::path::PathBuf;

use serde::Serialize;
use wardbell_rules::{Diagnostic, SourceFile};
use wardbell_schemas::catalogue::Catalogue;

use super::{FINDING, MISUSE, OK, colored, plural};
use crate::connector::trial::{Summary, Trial, records};
use crate::connector::unmapped::Entry;
use crate::connector::{self, Connector};
use crate::rules_files;

/// Labels and units shown at the end.
const UNMAPPED_SHOWN: usize = 20;

/// See what a connector's file makes of records
///
/// JSON: one record a line; CSV: the file is one record. One line for each reading, and at the end what was refused, which
/// labels and units nothing explains, and which inferences were made. Exits with 1 if something was refused.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell normalize --connector vendor.connector.toml samples.jsonl\n  wardbell normalize --connector vendor.connector.toml --json < samples.jsonl > vendor.expected.jsonl"
)]
pub struct Arguments {
    /// The connector's file; without it the input is canonical JSON
    #[arg(long, value_name = "FILE")]
    connector: Option<PathBuf>,
    /// The records; standard input by default
    input: Option<PathBuf>,
    /// One JSON object a line, and the summary as one on standard error
    #[arg(long)]
    json: bool,
}

/// The summary for machines.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    connector: &'a str,
    /// Of the connector's file.
    hash: &'a str,
    records: u64,
    readings: u64,
    qualities: &'a BTreeMap<&'static str, u64>,
    refused: &'a BTreeMap<&'static str, u64>,
    ignored: u64,
    requests: u64,
    policies: &'a BTreeMap<&'static str, u64>,
    unmapped: Vec<Entry>,
    unmapped_further: u64,
}

pub fn run(arguments: &Arguments) -> u8 {
    let connector = match load(arguments) {
        Ok(connector) => connector.without_limit(),
        Err((file, faults)) => {
            eprint!("{}", rules_files::render(&faults, file.as_slice(), colored()));
            eprintln!("the connector's file cannot be used: {}", plural(faults.len(), "fault", "faults"));
            return MISUSE;
        }
    };
    let content = match read(arguments) {
        Ok(content) => content,
        Err(error) => {
            let input = arguments.input.as_ref().map_or("standard input".into(), |path| path.display().to_string());
            eprintln!("error: {input} cannot be read: {error}");
            return MISUSE;
        }
    };
    let mut trial = Trial::new(&connector);
    let mut out = BufWriter::new(std::io::stdout().lock());
    for record in records(&connector, &content) {
        for line in trial.record(record) {
            let written = if arguments.json { writeln!(out, "{}", line.json()) } else { writeln!(out, "{line}") };
            if written.is_err() {
                // Whoever read our output has seen enough.
                return OK;
            }
        }
    }
    if out.flush().is_err() {
        return OK;
    }
    let summary = &trial.summary;
    if summary.records == 0 {
        eprintln!("the input holds no record");
        return MISUSE;
    }
    tell(arguments, &connector, summary);
    if summary.n_refused() > 0 { FINDING } else { OK }
}

type Faults = (Option<SourceFile>, Vec<Diagnostic>);

fn load(arguments: &Arguments) -> Result<Connector, Faults> {
    let Some(path) = &arguments.connector else {
        return Ok(Connector::canonical(Vec::new()));
    };
    let file = rules_files::read(path).map_err(|fault| (None, vec![*fault]))?;
    let (connector, faults) = connector::parse(&file, Catalogue::builtin());
    connector.ok_or((Some(file), faults))
}

fn read(arguments: &Arguments) -> std::io::Result<Vec<u8>> {
    match &arguments.input {
        Some(path) => std::fs::read(path),
        None => {
            let mut content = Vec::new();
            std::io::stdin().lock().read_to_end(&mut content)?;
            Ok(content)
        }
    }
}

fn tell(arguments: &Arguments, connector: &Connector, summary: &Summary) {
    let (unmapped, further) = summary.unmapped.top(UNMAPPED_SHOWN);
    if arguments.json {
        let report = Report {
            kind: "summary",
            connector: &connector.name,
            hash: &connector.hash,
            records: summary.records,
            readings: summary.readings,
            qualities: &summary.qualities,
            refused: &summary.refused,
            ignored: summary.ignored,
            requests: summary.requests,
            policies: &summary.policies,
            unmapped,
            unmapped_further: further,
        };
        eprintln!("{}", serde_json::to_string(&report).unwrap_or_default());
        return;
    }
    let records = plural(usize::try_from(summary.records).unwrap_or(usize::MAX), "record", "records");
    eprintln!(
        "\n{records}: {} accepted, {} refused, {} ignored",
        summary.readings,
        summary.n_refused(),
        summary.ignored
    );
    if summary.requests > 0 {
        eprintln!("requests {}", summary.requests);
    }
    for (title, counts) in
        [("quality", &summary.qualities), ("refused", &summary.refused), ("policy", &summary.policies)]
    {
        for (name, count) in counts {
            eprintln!("  {title:<8} {name:<26} {count:>9}");
        }
    }
    for Entry { kind, text, count } in unmapped {
        eprintln!("  unknown  {:<26} {count:>9}", format!("{} \"{text}\"", kind.name()));
    }
    if further > 0 {
        eprintln!("  unknown  {:<26} {further:>9}", "others");
    }
}
