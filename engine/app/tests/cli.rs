//! The binary as its users meet it: exit codes, messages, output.

use std::process::{Command, Output};

fn wardbell(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wardbell")).args(arguments).env("NO_COLOR", "1").output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A path below the repository's root.
fn at(path: &str) -> String {
    format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_demonstration_ends_with_a_summary_that_adds_up() {
    let output = wardbell(&["demo", "--for", "2s", "--speed", "60", "--seed", "3", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    let (summary, alerts) = lines.split_last().expect("a summary");
    assert_eq!(summary["type"], "summary");
    let outcomes = summary["outcomes"].as_object().expect("outcomes");
    let sum: u64 = outcomes.values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(Some(sum), summary["readings"].as_u64());
    assert_eq!(summary["budget_ok"], true);
    let rules: Vec<&str> = alerts.iter().filter_map(|alert| alert["data"]["rule"]["id"].as_str()).collect();
    for expected in ["spo2-low", "heart-rate-high", "technical/stale", "technical/clock"] {
        assert!(rules.contains(&expected), "{expected} is missing among {rules:?}");
    }
}

#[test]
fn the_shipped_pack_is_sound_and_its_cases_pass() {
    let output = wardbell(&["check", &at("rules/packs")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = wardbell(&["test", &at("rules/packs")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).trim_end().ends_with(" passed, 0 failed"), "{}", text(&output.stdout));
}

#[test]
fn a_failed_case_shows_both_lists_and_what_the_rule_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    write(
        "low.rhai",
        "const RULE = #{ id: \"low\", version: 1, owner: \"o\", priority: \"high\", hold: \"5s\" };\nfn raise(spo2) { spo2.last < 90.0 }\n",
    );
    write(
        "low.test.toml",
        "[[case]]\nname = \"too early\"\nseries.spo2 = \"86 for 10s\"\nexpect = [\"3s raised high\"]\n",
    );
    let output = wardbell(&["test", &folder.path().display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr);
    for part in [
        "low.test.toml:1: too early",
        "3s raised high",
        "missing",
        "5s raised high",
        "not expected",
        "raise high",
        "last = 86",
    ] {
        assert!(shown.contains(part), "`{part}` is missing in\n{shown}");
    }
    assert!(text(&output.stdout).contains("0 passed, 1 failed"));
    let junit = folder.path().join("junit.xml");
    wardbell(&["test", &folder.path().display().to_string(), "--junit", &junit.display().to_string()]);
    assert!(std::fs::read_to_string(junit).expect("a report").contains("failures=\"1\""));
}

#[test]
fn wrong_use_and_nothing_to_do_exit_with_2() {
    let empty = tempfile::tempdir().expect("a folder");
    let empty = empty.path().display().to_string();
    for arguments in [
        vec!["demo", "--for", "30"],
        vec!["bogus"],
        vec!["check", empty.as_str()],
        vec!["test", empty.as_str()],
        vec!["run"],
    ] {
        let output = wardbell(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stdout));
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(wardbell(&["check", "/no/such/file.rhai"]).status.code(), Some(2));
    assert_eq!(wardbell(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_mistyped_configuration_names_every_key_and_the_nearest() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("wardbell.toml");
    let config = "sit = \"a\"\n[kafka]\nbootstrap_server = \"b:1\"\n[source]\ntopics = [\"devices\"]\n[[sink]]\nname = \"c\"\ntype = \"stdout\"\n";
    std::fs::write(&path, config).expect("written");
    for arguments in [["check", &path.display().to_string()], ["run", &format!("--config={}", path.display())]] {
        let output = wardbell(&arguments);
        let shown = text(&output.stderr);
        assert!(shown.contains("unknown key `sit`") && shown.contains("did you mean `site`?"), "{shown}");
        assert!(shown.contains("did you mean `bootstrap_servers`?") && shown.contains("wardbell.toml:3:1"), "{shown}");
        assert_ne!(output.status.code(), Some(0));
    }
}

/// A folder with a sound rule and its case, and a configuration whose broker nobody is.
fn rules_and_configuration() -> (tempfile::TempDir, String, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let rules = folder.path().join("rules");
    std::fs::create_dir(&rules).expect("a folder");
    std::fs::write(
        rules.join("low.rhai"),
        "const RULE = #{ id: \"low\", version: 1, owner: \"o\", priority: \"high\", hold: \"5s\" };\nfn raise(spo2) { spo2.last < 90.0 }\n",
    )
    .expect("written");
    std::fs::write(
        rules.join("low.test.toml"),
        "[[case]]\nname = \"low\"\nseries.spo2 = \"86 for 10s\"\nexpect = [\"5s raised high\"]\n",
    )
    .expect("written");
    let config = folder.path().join("wardbell.toml");
    let text = format!(
        "rules = {:?}\n[kafka]\nbootstrap_servers = \"127.0.0.1:1\"\n[source]\ntopics = [\"devices\"]\n[[sink]]\nname = \"c\"\ntype = \"stdout\"\n",
        rules.display().to_string()
    );
    std::fs::write(&config, text).expect("written");
    let (rules, config) = (rules.display().to_string(), config.display().to_string());
    (folder, rules, config)
}

#[test]
fn rules_with_a_fault_or_a_failed_case_are_not_published() {
    let (_folder, rules, config) = rules_and_configuration();
    let publish = || wardbell(&["rules", "publish", "--config", &config]);
    let case = format!("{rules}/low.test.toml");
    let sound = std::fs::read_to_string(&case).expect("a case");
    std::fs::write(&case, sound.replace("5s raised", "3s raised")).expect("written");
    let output = publish();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("low.test.toml:1: low"), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("nothing is published"));

    let rule = format!("{rules}/low.rhai");
    let faulty = std::fs::read_to_string(&rule).expect("a rule").replace("spo2.last", "spo2.lst");
    std::fs::write(&rule, faulty).expect("written");
    let output = publish();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("R025") && text(&output.stderr).contains("low.rhai:2"), "{output:?}");

    std::fs::remove_file(&rule).expect("removed");
    std::fs::remove_file(&case).expect("removed");
    assert_eq!(publish().status.code(), Some(2), "there is nothing to publish");
    let output = wardbell(&["rules", "list", "--config", "/no/such/wardbell.toml"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_start_tries_again_for_as_long_as_it_is_told_while_no_broker_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    // A port nobody listens on: bound for a moment to find one that is free.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let config = folder.path().join("wardbell.toml");
    let rules = at("rules/packs/adult-ward");
    let text_of_config = format!(
        "site = \"s\"\nrules = \"{rules}\"\n[kafka]\nbootstrap_servers = \"127.0.0.1:{port}\"\n[source]\ntopics = [\"devices\"]\n\
         [http]\nlisten = \"off\"\n[[sink]]\nname = \"out\"\ntype = \"stdout\"\n"
    );
    std::fs::write(&config, text_of_config).expect("written");
    let output = wardbell(&["run", "--config", &config.display().to_string(), "--wait-for-broker", "13s"]);
    let shown = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(shown.contains("trying again") && shown.contains(&format!("127.0.0.1:{port}")), "{shown}");
    assert!(!shown.contains("panicked"), "{shown}");
}
