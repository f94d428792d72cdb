//! Documents say what is: paths they name exist, examples they show work, every folder says what lives in it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository's root")
}

fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder can be read").filter_map(Result::ok) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, ending, found);
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

fn all() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&root(), ".md", &mut found);
    found.sort();
    found.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).expect("text"))).collect()
}

/// The text of a file, by its path below the root.
fn text_of(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect(path)
}

/// The indented blocks of a document, without their indent.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        let block = blocks.last_mut().expect("never empty");
        match line.strip_prefix("    ") {
            Some(line) => {
                block.push_str(line);
                block.push('\n');
            }
            None if line.is_empty() => block.push('\n'),
            None => blocks.push(String::new()),
        }
    }
    blocks.iter().map(|block| block.trim().to_owned()).filter(|block| !block.is_empty()).collect()
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
fn rules_and_cases_that_a_guide_shows_are_some_that_run() {
    let mut found = Vec::new();
    for folder in ["examples", "rules/packs"] {
        files(&root().join(folder), ".rhai", &mut found);
        files(&root().join(folder), ".test.toml", &mut found);
    }
    let run: String = found.iter().map(|path| std::fs::read_to_string(path).expect("text")).collect();
    for guide in ["README.md", "rules/README.md"] {
        let mut shown = Vec::new();
        for block in blocks(&text_of(guide)) {
            if block.starts_with("[[case]]") {
                shown.extend(block.split("[[case]]").map(|case| case.trim().to_owned()));
            } else if block.starts_with("fn ") || block.contains("const RULE") {
                shown.push(block);
            }
        }
        assert!(!shown.is_empty(), "{guide} shows no rule");
        for piece in shown {
            assert!(run.contains(&piece), "{guide} shows what no example and no pack has:\n{piece}");
        }
    }
}

#[test]
fn the_guide_to_a_first_rule_shows_what_the_commands_print() {
    let folder = tempfile::tempdir().expect("a folder");
    let rules = folder.path().join("my-rules");
    std::fs::create_dir(&rules).expect("a folder");
    let copy_with = |from: &str, to: &str| {
        for name in ["fever.rhai", "fever.test.toml"] {
            let text = text_of(&format!("examples/first-rule/{name}")).replace(from, to);
            std::fs::write(rules.join(name), text).expect("written");
        }
    };
    let printed = |command: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_wardbell"))
            .args([command, "my-rules"])
            .env("NO_COLOR", "1")
            .current_dir(folder.path())
            .output()
            .expect("the binary runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    };
    let guide = blocks(&text_of("rules/README.md"));
    let shown = |beginning: &str| guide.iter().find(|block| block.starts_with(beginning)).expect(beginning);

    copy_with("fever", "fever");
    let session =
        format!("$ wardbell check my-rules\n{}\n$ wardbell test my-rules\n{}", printed("check"), printed("test"));
    assert_eq!(session, *shown("$ wardbell check"));
    copy_with("raise(temp_core, limit) { temp_core", "raise(temp, limit) { temp");
    assert!(printed("check").contains(shown("error[R014]")), "{}", printed("check"));
    copy_with("7m raised", "5m raised");
    assert!(printed("test").contains(shown("FAILED")), "{}", printed("test"));
}

#[test]
fn commands_that_a_document_shows_exist() {
    let help = |command: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_wardbell")).args([command, "--help"]).output().expect("the binary runs");
        output.status.success()
    };
    let known = ["demo", "run", "check", "test", "rules", "normalize", "control", "recover", "verify", "explain"];
    for (document, text) in all() {
        for line in text.lines().filter(|line| line.starts_with("wardbell ") || line.starts_with("    wardbell ")) {
            let command = line.split_whitespace().nth(1).unwrap_or_default();
            assert!(known.contains(&command) && help(command), "{}: {line}", document.display());
        }
    }
}
