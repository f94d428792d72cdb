//! `wardbell test`: runs the cases beside rules; a failed one shows expected and got on one time line, with the reason.

use std::fmt::Write;
use std::path::PathBuf;

use super::{FINDING, MISUSE, OK, colored};
use crate::rule_cases::{self, Results};
use crate::rules_files::{self, CASES_ENDING};

/// Run the cases beside rules
///
/// NAME.test.toml holds the cases of NAME.rhai.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  wardbell test rules/packs/adult-ward")]
pub struct Arguments {
    /// Case files, or folders with cases
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// One JSON object a case, then a summary
    #[arg(long)]
    json: bool,
    /// Also write a JUnit report
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> u8 {
    let results = rule_cases::run(&arguments.paths);
    if arguments.json {
        for outcome in &results.outcomes {
            println!("{}", serde_json::to_string(outcome).unwrap_or_default());
        }
        eprint!("{}", rules_files::render(&results.faults, &results.files, colored()));
    } else {
        eprint!("{}", results.render(colored()));
    }
    if let Some(path) = &arguments.junit
        && let Err(error) = std::fs::write(path, junit(&results))
    {
        eprintln!("error: the report cannot be written to `{}`: {error}", path.display());
        return MISUSE;
    }
    if results.outcomes.is_empty() && results.faults.is_empty() {
        eprintln!("no case found below the given paths; cases of NAME.rhai stand in NAME{CASES_ENDING}");
        return MISUSE;
    }
    let (passed, failed) = (results.n_passed(), results.n_failed());
    if arguments.json {
        println!("{}", serde_json::json!({"type": "summary", "passed": passed, "failed": failed}));
    } else {
        println!("{passed} passed, {failed} failed");
    }
    if failed > 0 { FINDING } else { OK }
}

/// The results as JUnit XML.
fn junit(results: &Results) -> String {
    let escape =
        |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"wardbell\" tests=\"{}\" failures=\"{}\">\n",
        results.outcomes.len() + results.faults.len(),
        results.n_failed()
    );
    for outcome in &results.outcomes {
        let _ = write!(xml, "  <testcase classname=\"{}\" name=\"{}\"", escape(&outcome.file), escape(&outcome.name));
        if outcome.passed {
            xml.push_str("/>\n");
        } else {
            let _ = writeln!(
                xml,
                "><failure message=\"expected and got differ\">{}</failure></testcase>",
                escape(&outcome.report)
            );
        }
    }
    for fault in &results.faults {
        let _ = writeln!(
            xml,
            "  <testcase classname=\"{}\" name=\"{}\"><failure message=\"{}\"/></testcase>",
            escape(&fault.path),
            fault.code,
            escape(&fault.message)
        );
    }
    xml.push_str("</testsuite>\n");
    xml
}
