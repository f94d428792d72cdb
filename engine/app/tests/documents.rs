//! Documents say what is: paths they name exist, examples they show work, every folder says what lives in it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository's root")
}

fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder can be read").filter_map(Result::ok) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            documents(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

fn all() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    documents(&root(), &mut found);
    found.sort();
    found.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).expect("text"))).collect()
}

#[test]
fn every_path_that_a_document_names_exists() {
    let tops = ["schemas/", "rules/", "connectors/", "engine/", "benches/", "loadtest/", "examples/", ".ci/"];
    let mut missing = Vec::new();
    for (document, text) in all() {
        let here = document.parent().expect("a folder");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let path = link.split('#').next().unwrap_or(link);
            if !here.join(path).exists() {
                missing.push(format!("{}: link {link}", document.display()));
            }
        }
        for quoted in text.split('`').skip(1).step_by(2) {
            let plain = quoted.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if plain && tops.iter().any(|top| quoted.starts_with(top)) && !root().join(quoted).exists() {
                missing.push(format!("{}: `{quoted}`", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_folder_says_what_lives_in_it() {
    for folder in
        ["schemas", "rules", "rules/packs", "connectors", "engine", "benches", "loadtest", "loadtest/kafka", "examples"]
    {
        let readme = root().join(folder).join("README.md");
        assert!(readme.is_file(), "{folder} has no README.md");
    }
    for document in ["README.md", "ARCHITECTURE.md", "LICENSE"] {
        assert!(root().join(document).is_file(), "{document} is missing");
    }
}

#[test]
fn every_example_is_sound_and_its_cases_pass() {
    let wardbell = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_wardbell"))
            .args(arguments)
            .current_dir(root())
            .output()
            .expect("the binary runs");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {shown}");
    };
    wardbell(&["check", "examples", "examples/beside-a-broker/wardbell.toml"]);
    wardbell(&["test", "examples"]);
}

#[test]
fn commands_that_a_document_shows_exist() {
    let help = |command: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_wardbell")).args([command, "--help"]).output().expect("the binary runs");
        output.status.success()
    };
    let known = ["demo", "run", "check", "test"];
    for (document, text) in all() {
        for line in text.lines().filter(|line| line.starts_with("wardbell ") || line.starts_with("    wardbell ")) {
            let command = line.split_whitespace().nth(1).unwrap_or_default();
            assert!(known.contains(&command) && help(command), "{}: {line}", document.display());
        }
    }
}
