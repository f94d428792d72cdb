//! `wardbell check`: configuration, connectors' files and rule packs, every fault at once with place and remedy; with
//! `--online` also what the brokers and receivers say that a configuration names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use wardbell_connectors::clock::{Clock, SystemClock};
use wardbell_rules::{Diagnostic, Severity, SourceFile, cases};
use wardbell_schemas::catalogue::Catalogue;

use super::{FINDING, MISUSE, OK, colored, plural};
use crate::connector::trial::check_samples;
use crate::online::{self, Answer, State};
use crate::{config, connector, rules_files};

/// The name by which a configuration is found below a folder.
const CONFIG_NAME: &str = "wardbell.toml";

/// Check configuration, connectors' files and rule packs: every fault at once, with place and remedy
///
/// Looks at rule files (*.rhai), their cases (*.test.toml), connectors' files (*.connector.toml, with the samples beside
/// them) and configuration (other *.toml). With --online, the configurations' brokers are asked about topics, settings
/// and rights, and the receivers of alerts whether they answer. Nothing is made, and no alert is sent.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell check wardbell.toml rules/packs/adult-ward\n  wardbell check --online wardbell.toml"
)]
pub struct Arguments {
    /// Files or folders
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Also ask the brokers and the receivers that the configurations name
    #[arg(long)]
    online: bool,
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    online: Vec<Asked>,
}

/// What the brokers and receivers of a configuration said.
#[derive(Debug, Serialize)]
struct Asked {
    config: String,
    answers: Vec<Answer>,
}

pub fn run(arguments: &Arguments) -> u8 {
    let catalogue = Catalogue::builtin();
    let mut checked = rules_files::check(&arguments.paths, catalogue);
    let mut files = std::mem::take(&mut checked.files);
    let mut faults = std::mem::take(&mut checked.diagnostics);
    for path in &arguments.paths {
        let named = path.is_file();
        let wanted = |name: &str| {
            name.ends_with(rules_files::CASES_ENDING)
                || name.ends_with(connector::ENDING)
                || name == CONFIG_NAME
                || (named && name.ends_with(".toml"))
        };
        // A path that cannot be read has been reported with the rules.
        for found in rules_files::find(path, &wanted).unwrap_or_default() {
            match rules_files::read(&found) {
                Ok(file) => {
                    let (of_file, further) = check_file(&file, catalogue);
                    // A connector's file may be found below a path and be named by a configuration.
                    for file in std::iter::once(file).chain(further) {
                        if files.iter().all(|known| known.path != file.path) {
                            files.push(file);
                        }
                    }
                    for fault in of_file {
                        if !faults.contains(&fault) {
                            faults.push(fault);
                        }
                    }
                }
                Err(fault) => faults.push(*fault),
            }
        }
    }
    let online = if arguments.online { ask(&mut files, &mut faults) } else { Vec::new() };
    let answers = || online.iter().flat_map(|asked| &asked.answers);
    let count = |severity, state| {
        let of_files = faults.iter().filter(|fault| fault.severity == severity).count();
        of_files + answers().filter(|answer| answer.state == state).count()
    };
    let (errors, warnings) = (count(Severity::Error, State::Error), count(Severity::Warning, State::Warning));
    let n_asked = online.len();
    if arguments.json {
        let report = Report { files: files.len(), errors, warnings, faults: &faults, online };
        println!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        eprint!("{}", rules_files::render(&faults, &files, colored()));
        for asked in &online {
            print!("{}", asked.table());
        }
        let rules = plural(checked.rules.len(), "sound rule", "sound rules");
        println!("{} checked, {rules}: {}", plural(files.len(), "file", "files"), plural(errors, "error", "errors"));
    }
    if files.is_empty() {
        if errors == 0 {
            eprintln!(
                "nothing to check below the given paths: no *.rhai, *.test.toml, *.connector.toml or {CONFIG_NAME}"
            );
        }
        return MISUSE;
    }
    if arguments.online && n_asked == 0 && errors == 0 {
        eprintln!("nobody to ask: name a configuration");
        return MISUSE;
    }
    if errors > 0 { FINDING } else { OK }
}

/// Asks about every configuration among the files, as it is with the overrides of the environment. One with faults is
/// not asked about; faults of overrides come to the others.
fn ask(files: &mut Vec<SourceFile>, faults: &mut Vec<Diagnostic>) -> Vec<Asked> {
    let is_config = |file: &&SourceFile| {
        let further = [rules_files::CASES_ENDING, connector::ENDING];
        file.path.ends_with(".toml") && further.iter().all(|ending| !file.path.ends_with(ending))
    };
    let paths: Vec<String> = files.iter().filter(is_config).map(|file| file.path.clone()).collect();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut asked = Vec::new();
    for path in paths {
        match config::load(Path::new(&path)) {
            Ok(config) => asked.push(Asked { config: path, answers: online::ask(&config, &clock) }),
            Err((read, found)) => {
                for file in read {
                    if files.iter().all(|known| known.path != file.path) {
                        files.push(file);
                    }
                }
                for fault in found {
                    if !faults.contains(&fault) {
                        faults.push(fault);
                    }
                }
            }
        }
    }
    asked
}

impl Asked {
    /// The answers as lines for people, each remedy below its answer.
    fn table(&self) -> String {
        let width = self.answers.iter().map(|answer| answer.about.chars().count()).max().unwrap_or(0);
        let mut text = format!("asked, as {} says:\n", self.config);
        for Answer { about, state, said, remedy } in &self.answers {
            let state = state.name();
            text.push_str(&format!("  {state:<7}  {about:<width$}  {said}\n"));
            if let Some(remedy) = remedy {
                text.push_str(&format!("  {:<7}  {:<width$}  -> {remedy}\n", "", ""));
            }
        }
        text
    }
}

/// The faults of a file, and of the further files it leads to.
fn check_file(file: &SourceFile, catalogue: &Catalogue) -> (Vec<Diagnostic>, Vec<SourceFile>) {
    if file.path.ends_with(rules_files::CASES_ENDING) {
        return (cases::parse(file, catalogue).1, Vec::new());
    }
    if file.path.ends_with(connector::ENDING) {
        let (connector, mut faults) = connector::parse(file, catalogue);
        let Some(connector) = connector else {
            return (faults, Vec::new());
        };
        let (expected, of_samples) = check_samples(&connector, file);
        faults.extend(of_samples);
        return (faults, expected.into_iter().collect());
    }
    let (config, mut faults) = config::parse(file, &BTreeMap::new());
    let loaded = connector::load_all(&config.map(|config| config.connector).unwrap_or_default(), Path::new(&file.path));
    faults.extend(loaded.faults);
    (faults, loaded.files)
}
