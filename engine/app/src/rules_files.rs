//! Rule files on disk: finding them below a path and checking all of them.

use std::path::{Path, PathBuf};

use wardbell_rules::{Diagnostic, Rule, Severity, SourceFile, compile_all};
use wardbell_schemas::catalogue::Catalogue;

use crate::toml_file::without_secrets;

/// The ending of rule files.
pub const RULE_ENDING: &str = "rhai";
/// The ending of their cases.
pub const CASES_ENDING: &str = ".test.toml";

/// Files with an ending, below a folder or the path itself, in the order of their names.
///
/// # Errors
/// A folder or file that cannot be read, as a diagnostic.
pub fn find(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>, Box<Diagnostic>> {
    let fault = |path: &Path, error: &std::io::Error| {
        let message = format!("cannot be read: {error}");
        Box::new(Diagnostic::whole_file("F001", &path.display().to_string(), message))
    };
    let metadata = std::fs::metadata(path).map_err(|error| fault(path, &error))?;
    if metadata.is_file() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        return Ok(if wanted(name) { vec![path.to_owned()] } else { Vec::new() });
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|error| fault(path, &error))?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        let hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden {
            files.extend(find(&entry, wanted)?);
        }
    }
    Ok(files)
}

/// Reads a file.
///
/// # Errors
/// As a diagnostic.
pub fn read(path: &Path) -> Result<SourceFile, Box<Diagnostic>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(SourceFile { path: path.display().to_string(), text }),
        Err(error) => {
            let message = format!("cannot be read: {error}");
            Err(Box::new(Diagnostic::whole_file("F001", &path.display().to_string(), message)))
        }
    }
}

/// Everything found about the rule files below some paths.
#[derive(Debug, Default)]
pub struct Checked {
    pub files: Vec<SourceFile>,
    pub rules: Vec<Rule>,
    pub diagnostics: Vec<Diagnostic>,
}

impl Checked {
    pub fn n_errors(&self) -> usize {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count()
    }

    /// All faults as compilers show them.
    pub fn render(&self, color: bool) -> String {
        render(&self.diagnostics, &self.files, color)
    }
}

/// Faults with the lines they point at, without what may be a secret of a configuration.
pub fn render(diagnostics: &[Diagnostic], files: &[SourceFile], color: bool) -> String {
    let text = |path: &str| files.iter().find(|file| file.path == path).map_or("", |file| file.text.as_str());
    let shown = |diagnostic: &Diagnostic| match text(&diagnostic.path) {
        text if diagnostic.path.ends_with(".toml") => diagnostic.render(&without_secrets(text), color),
        text => diagnostic.render(text, color),
    };
    diagnostics.iter().map(|diagnostic| shown(diagnostic) + "\n\n").collect()
}

/// Checks all rule files below some paths as one set.
pub fn check(paths: &[PathBuf], catalogue: &Catalogue) -> Checked {
    let mut checked = Checked::default();
    for path in paths {
        match find(path, &|name| name.ends_with(&format!(".{RULE_ENDING}"))) {
            Ok(found) => {
                for file in found {
                    match read(&file) {
                        Ok(file) => checked.files.push(file),
                        Err(diagnostic) => checked.diagnostics.push(*diagnostic),
                    }
                }
            }
            Err(diagnostic) => checked.diagnostics.push(*diagnostic),
        }
    }
    let (rules, mut diagnostics) = compile_all(&checked.files, catalogue);
    checked.rules = rules;
    checked.diagnostics.append(&mut diagnostics);
    checked
}
