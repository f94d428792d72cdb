//! The deployment example: its unit, configuration, alerts and page agree with each other and with the program.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use wardbell::config;
use wardbell_rules::SourceFile;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn example(name: &str) -> String {
    let path = root().join("examples/deployment").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// With what is commented out for later: `#key=value` and `#[[sink]]`, where comments have a space.
fn whole(text: &str) -> String {
    let whole = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(whole).collect()
}

/// The values of an option of the unit.
fn option<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

/// Words that begin like this, up to a character that no name has.
fn words(text: &str, beginning: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let rest = text.match_indices(beginning).map(|(at, _)| &text[at..]);
    rest.map(|rest| rest.split(|c| !is_part(c)).next().unwrap_or_default().trim_end_matches('.').to_owned()).collect()
}

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).expect("the folder can be read").filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("text"));
        }
    }
}

#[test]
fn the_unit_starts_a_command_that_exists() {
    let unit = example("wardbell.service");
    let start = option(&unit, "ExecStart");
    let [start] = start[..] else { panic!("one command: {start:?}") };
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("wardbell.toml").display().to_string();
    let command = start.replace("/etc/wardbell/wardbell.toml", &missing);
    let arguments: Vec<&str> = command.split_whitespace().skip(1).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_wardbell")).args(arguments).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    // Its arguments are understood: what it does not find is the file.
    assert!(said.contains(&missing) && said.contains("cannot be read"), "{said}");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(option(&unit, "Type"), ["notify"]);
}

#[test]
fn the_unit_hands_over_the_secrets_that_the_configuration_names() {
    let (unit, text) = (whole(&example("wardbell.service")), whole(&example("wardbell.toml")));
    let credentials = tempfile::tempdir().expect("a folder");
    for credential in option(&unit, "LoadCredential") {
        let (name, path) = credential.split_once(':').expect("a name and a path");
        assert!(text.contains(&format!("_file = \"{path}\"")), "the configuration does not name {path}");
        let copy = credentials.path().join(name);
        std::fs::write(&copy, "a secret of enough characters for anything\n").expect("written");
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o400)).expect("set");
    }
    let given = |value: &str| value.replace("%d", &credentials.path().display().to_string()).replace("%l", "ward-a");
    let variable = |assignment: &str| {
        let (name, value) = assignment.split_once('=').expect("a name and a value");
        (name.to_owned(), given(value))
    };
    let environment: BTreeMap<String, String> = option(&unit, "Environment").into_iter().map(variable).collect();
    let file = SourceFile { path: "wardbell.toml".to_owned(), text };
    let (config, faults) = config::parse(&file, &environment);
    assert_eq!(faults, []);
    let config = config.expect("builds");
    assert_eq!(config.instance.as_deref(), Some("ward-a"));
    let pager = config.sink.iter().find(|sink| sink.name == "pager").expect("the example has a pager");
    let named = [&config.kafka.sasl_password_file, &config.http.token_file, &pager.secret_file];
    for path in named {
        let path = path.as_deref().expect("a file");
        assert!(path.starts_with(credentials.path()), "{} is not handed over", path.display());
    }
    config.kafka.open().expect("the broker's options are known and its password is read");
    assert!(config.record_only && !config.create_topics, "the first weeks are recorded only");
}

#[test]
fn the_page_shows_the_commands_that_the_script_runs() {
    let bin = tempfile::tempdir().expect("a folder");
    for name in ["kafka-topics.sh", "kafka-acls.sh"] {
        let tool = bin.path().join(name);
        std::fs::write(&tool, format!("#!/bin/sh\necho \"{name} $*\"\n")).expect("written");
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).expect("set");
    }
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").expect("a PATH"));
    let output = Command::new("sh")
        .arg(root().join("examples/deployment/topics-and-rights.sh"))
        .arg("$B")
        .env("PATH", path)
        .output()
        .expect("the script runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run: String = String::from_utf8_lossy(&output.stdout).lines().map(|line| format!("    {line}\n")).collect();
    assert!(run.contains("--add --allow-principal"), "{run}");
    assert!(example("README.md").contains(&run), "{run}");
}

#[test]
fn the_page_explains_every_path_alert_and_metric_of_the_example() {
    let page = example("README.md");
    let unit = whole(&example("wardbell.service"));
    let mut missing = Vec::new();
    for path in words(&unit, "/etc/wardbell").union(&words(&unit, "/usr/local")) {
        if !page.contains(path.as_str()) {
            missing.push(format!("path {path}"));
        }
    }
    let rules = example("wardbell.rules.yaml");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    for alert in alerts {
        if !page.contains(&format!("`{alert}`")) {
            missing.push(format!("alert {alert}"));
        }
    }
    let mut source = String::new();
    sources(&root().join("engine"), &mut source);
    for metric in words(&rules, "wardbell_") {
        let endings = ["_total", "_bucket", "_sum", "_count"];
        let name = endings.iter().find_map(|ending| metric.strip_suffix(*ending)).unwrap_or(&metric);
        if !source.contains(&format!("\"{name}\"")) {
            missing.push(format!("metric {metric}, which nothing exports"));
        }
    }
    // The canary's own rule is shown by no sink.
    for rule in words(&source, "technical/") {
        let is_shown = rule != "technical/" && rule != "technical/canary";
        if is_shown && !page.contains(&format!("`{rule}`")) {
            missing.push(format!("technical alert {rule}"));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
