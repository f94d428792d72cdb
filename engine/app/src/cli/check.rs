//! `wardbell check`: configuration files and rule packs, every fault at once with place and remedy.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use wardbell_rules::{Diagnostic, Severity, SourceFile, cases};
use wardbell_schemas::catalogue::Catalogue;

use super::{FINDING, MISUSE, OK, colored, plural};
use crate::{config, rules_files};

/// The name by which a configuration is found below a folder.
const CONFIG_NAME: &str = "wardbell.toml";

/// Check configuration files and rule packs: every fault at once, with place and remedy
///
/// Looks at rule files (*.rhai), their cases (*.test.toml) and configuration (other *.toml).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  wardbell check wardbell.toml rules/packs/adult-ward")]
pub struct Arguments {
    /// Files or folders
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// One JSON object with all faults
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    files: usize,
    errors: usize,
    warnings: usize,
    faults: &'a [Diagnostic],
}

pub fn run(arguments: &Arguments) -> u8 {
    let catalogue = Catalogue::builtin();
    let mut checked = rules_files::check(&arguments.paths, catalogue);
    let mut files = std::mem::take(&mut checked.files);
    let mut faults = std::mem::take(&mut checked.diagnostics);
    for path in &arguments.paths {
        let named = path.is_file();
        let wanted = |name: &str| {
            name.ends_with(rules_files::CASES_ENDING) || name == CONFIG_NAME || (named && name.ends_with(".toml"))
        };
        // A path that cannot be read has been reported with the rules.
        for found in rules_files::find(path, &wanted).unwrap_or_default() {
            match rules_files::read(&found) {
                Ok(file) => {
                    faults.extend(check_file(&file, catalogue));
                    files.push(file);
                }
                Err(fault) => faults.push(*fault),
            }
        }
    }
    let count = |severity| faults.iter().filter(|fault| fault.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if arguments.json {
        let report = Report { files: files.len(), errors, warnings, faults: &faults };
        println!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        eprint!("{}", rules_files::render(&faults, &files, colored()));
        let rules = plural(checked.rules.len(), "sound rule", "sound rules");
        println!("{} checked, {rules}: {}", plural(files.len(), "file", "files"), plural(errors, "error", "errors"));
    }
    if files.is_empty() {
        if errors == 0 {
            eprintln!("nothing to check below the given paths: no *.rhai, *.test.toml or {CONFIG_NAME}");
        }
        return MISUSE;
    }
    if errors > 0 { FINDING } else { OK }
}

fn check_file(file: &SourceFile, catalogue: &Catalogue) -> Vec<Diagnostic> {
    if file.path.ends_with(rules_files::CASES_ENDING) {
        return cases::parse(file, catalogue).1;
    }
    config::parse(file, &BTreeMap::new()).1
}
