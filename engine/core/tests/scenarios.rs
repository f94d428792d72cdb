//! The worked cases, where they are: every case that can be read is run and must pass.
//!
//! The folder is named by `WARDBELL_SCENARIOS`, or stands beside the checkout in `shared/scenarios`.

use std::path::PathBuf;

use wardbell_core::trial;
use wardbell_rules::{RuleSet, SourceFile, cases, compile};
use wardbell_schemas::catalogue::Catalogue;

fn folder() -> Option<PathBuf> {
    let named = std::env::var_os("WARDBELL_SCENARIOS").map(PathBuf::from);
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/scenarios");
    Some(named.unwrap_or(beside)).filter(|folder| folder.is_dir())
}

#[test]
fn worked_cases_give_what_they_say() {
    let Some(folder) = folder() else {
        eprintln!("skipped: no folder of scenarios (set WARDBELL_SCENARIOS)");
        return;
    };
    let catalogue = Catalogue::builtin();
    let read = |name: &str| SourceFile {
        path: name.to_owned(),
        text: std::fs::read_to_string(folder.join(name)).unwrap_or_default(),
    };
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("the folder can be read")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.strip_suffix(".test.toml").map(str::to_owned))
        .collect();
    names.sort();
    let (mut passed, mut failures) = (0, Vec::new());
    for name in &names {
        let (cases, faults) = cases::parse(&read(&format!("{name}.test.toml")), catalogue);
        for fault in faults {
            failures.push(format!("{name}: {}", fault.message));
        }
        for case in cases {
            let mut rules = Vec::new();
            for rule in std::iter::once(name).chain(&case.rules) {
                let (rule, faults) = compile(&read(&format!("{rule}.rhai")), catalogue);
                failures.extend(faults.iter().map(|fault| format!("{name}: {} {}", fault.code, fault.message)));
                rules.extend(rule);
            }
            let trial = trial::run(&case, &RuleSet::new(rules), catalogue);
            if trial.passed() {
                passed += 1;
            } else {
                let got: Vec<String> = trial.got.iter().map(trial::notation).collect();
                let expected: Vec<&str> = case.expect.iter().map(|entry| entry.text.as_str()).collect();
                failures.push(format!("{name}: {}\n  expected {expected:?}\n  got      {got:?}", case.name));
            }
        }
    }
    assert!(passed > 0, "no case was found in {}", folder.display());
    assert!(failures.is_empty(), "{passed} passed, {} failed\n{}", failures.len(), failures.join("\n"));
}
