//! The configured rules as they lie in files: checked, their cases run, and made into a document.

use std::path::{Path, PathBuf};

use wardbell_core::partition::Settings;
use wardbell_rules::{Severity, SourceFile};
use wardbell_schemas::catalogue::Catalogue;

use super::Document;
use crate::rule_cases::{self, Results};
use crate::rules_files::{self, Checked};

/// Where the configured rules lie, and with which settings they are to decide.
#[derive(Debug, Clone)]
pub struct RulesFolder {
    /// Files or folders.
    pub paths: Vec<PathBuf>,
    pub decision: Settings,
    /// A running job publishes changes of the files.
    pub watch: bool,
}

/// Rules that may be published.
#[derive(Debug)]
pub struct Sound {
    pub document: Document,
    /// Cases that passed.
    pub n_cases: usize,
}

/// Rules that may not.
#[derive(Debug)]
pub enum Unsound {
    /// No rule file lies there.
    Nothing(Vec<PathBuf>),
    Faults(Box<Checked>),
    Cases(Box<Results>),
}

impl RulesFolder {
    /// Checks the files and runs the cases beside them.
    ///
    /// # Errors
    /// [`Unsound`]: every fault, or every failed case.
    pub fn load(&self) -> Result<Sound, Unsound> {
        let checked = rules_files::check(&self.paths, Catalogue::builtin());
        if checked.n_errors() > 0 {
            return Err(Unsound::Faults(Box::new(checked)));
        }
        if checked.rules.is_empty() {
            return Err(Unsound::Nothing(self.paths.clone()));
        }
        let results = rule_cases::run(&self.paths);
        if results.n_failed() > 0 {
            return Err(Unsound::Cases(Box::new(results)));
        }
        let files: Vec<SourceFile> = checked.files.iter().map(whole_path).collect();
        Ok(Sound { document: Document::new(&files, &self.decision), n_cases: results.n_passed() })
    }
}

impl Unsound {
    /// Everything that is wrong, for people.
    pub fn render(&self, color: bool) -> String {
        match self {
            Unsound::Nothing(paths) => {
                let shown: Vec<String> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
                format!("no rule file (*.{}) below {}\n", rules_files::RULE_ENDING, shown.join(", "))
            }
            Unsound::Faults(checked) => checked.render(color),
            Unsound::Cases(results) => results.render(color),
        }
    }

    /// File, line and fault of everything that is wrong, one line each.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Unsound::Nothing(_) => vec![self.render(false).trim_end().to_owned()],
            Unsound::Faults(checked) => {
                let errors = checked.diagnostics.iter().filter(|fault| fault.severity == Severity::Error);
                errors.map(|fault| format!("{}:{} {} {}", fault.path, fault.line, fault.code, fault.message)).collect()
            }
            Unsound::Cases(results) => results.failures(),
        }
    }
}

/// The file under its whole path, so that files named in different ways can be told to lie in one folder. The file itself
/// may be a link: only the folder is looked up.
fn whole_path(file: &SourceFile) -> SourceFile {
    let path = Path::new(&file.path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let whole = folder.canonicalize().ok().zip(path.file_name()).map(|(folder, name)| folder.join(name));
    let path = whole.map_or_else(|| file.path.clone(), |whole| whole.display().to_string());
    SourceFile { path, text: file.text.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: &str = "const RULE = #{ id: \"low\", version: 1, owner: \"o\", priority: \"high\", hold: \"5s\" };\nfn raise(spo2) { spo2.last < 90.0 }\n";
    const CASE: &str = "[[case]]\nname = \"low\"\nseries.spo2 = \"86 for 10s\"\nexpect = [\"5s raised high\"]\n";

    fn load(path: &Path) -> Result<Sound, Unsound> {
        RulesFolder { paths: vec![path.to_owned()], decision: Settings::new("ward"), watch: false }.load()
    }

    #[test]
    fn only_rules_whose_cases_pass_make_a_document() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
        assert!(matches!(load(folder.path()), Err(Unsound::Nothing(_))));
        write("low.rhai", LOW);
        write("low.test.toml", CASE);
        let sound = load(folder.path()).expect("sound");
        assert_eq!((sound.n_cases, sound.document.rules().len()), (1, 1));
        let same = load(&folder.path().join("low.rhai")).expect("sound");
        assert_eq!(same.document.hash(), sound.document.hash(), "the same file, named in another way");

        write("low.test.toml", &CASE.replace("5s raised", "3s raised"));
        let failed = load(folder.path()).expect_err("a case fails").lines();
        assert!(failed.len() == 1 && failed[0].contains("low.test.toml:1: low"), "{failed:?}");
        write("low.rhai", &LOW.replace("spo2.last", "spo2.lst"));
        let faults = load(folder.path()).expect_err("a fault").lines();
        assert!(faults.len() == 1 && faults[0].contains("low.rhai:2 R025"), "{faults:?}");
    }
}
