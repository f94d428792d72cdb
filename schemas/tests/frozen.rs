//! Alerts that an earlier version wrote are still read, and what is written today is still the same.

#[path = "../samples/sample.rs"]
mod sample;

use std::collections::BTreeMap;

use wardbell_schemas::Micros;
use wardbell_schemas::alert::{
    ALERT_SCHEMA, Alert, CANARY_RULE, Content, EpisodeId, Evidence, Kind, Measured, Priority, RuleReference,
    TransitionKind,
};
use wardbell_schemas::reading::SourcePosition;

/// So many seconds after 2026-01-01T00:00:00Z.
fn second(second: i64) -> Micros {
    1_767_225_600_000_000 + second * 1_000_000
}

fn evidence(signal: &str, function: &str, value: Option<f64>, state: Option<&str>, unit: &str) -> Evidence {
    Evidence {
        signal: signal.to_owned(),
        series: format!("mon-3/{signal}/-"),
        function: function.to_owned(),
        value,
        state: state.map(str::to_owned),
        unit: unit.to_owned(),
    }
}

fn raised() -> Alert {
    let episode = EpisodeId::new("st-marys", "spo2-low", "p7", "mon-3/spo2/-", second(10));
    let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned();
    let content = Content {
        id: format!("{episode}.0"),
        episode: episode.to_string(),
        number: 0,
        transition: TransitionKind::Raised,
        state: TransitionKind::Raised.state(),
        kind: Kind::Physiological,
        priority: Priority::High,
        site: "st-marys".to_owned(),
        rule: RuleReference { id: "spo2-low".to_owned(), version: 3, hash },
        raised_by_version: 3,
        patient: "p7".to_owned(),
        key: "mon-3/spo2/-".to_owned(),
        at: second(25),
        condition_start: second(10),
        episode_start: second(10),
        intentional_delay_us: 15_000_000,
        by_timer: true,
        message: "SpO₂ mean 86.5 %, limit 90 %".to_owned(),
        evidence: vec![
            evidence("spo2", "mean(\"30s\")", Some(86.5), None, "%"),
            evidence("consciousness", "last", Some(1.0), Some("V"), ""),
            evidence("resp_rate", "last", None, None, "/min"),
        ],
        limits: BTreeMap::from([("low".to_owned(), 90.0), ("clear".to_owned(), 92.0)]),
        event_time: Some(second(24)),
        flags: vec!["decimal_comma".to_owned()],
    };
    let measured = Measured {
        basis_us: second(25) + 100_000,
        canonical_us: second(25) + 110_000,
        decided_us: second(25) + 120_000,
        source: Some(SourcePosition { topic: "devices".to_owned(), partition: 0, offset: 24, index: 1 }),
        partition: 3,
        offset: 1_000,
        delayed: false,
    };
    Alert::new(content, measured)
}

/// A transition of one of the engine's own alerts.
fn technical(rule: &str, key: &str, start: Micros, at: Micros, kind: TransitionKind) -> Content {
    let episode = EpisodeId::new("st-marys", rule, "-", key, start);
    let number = u32::from(kind != TransitionKind::Raised);
    Content {
        id: format!("{episode}.{number}"),
        episode: episode.to_string(),
        number,
        transition: kind,
        state: kind.state(),
        kind: Kind::Technical,
        priority: Priority::High,
        site: "st-marys".to_owned(),
        rule: RuleReference { id: rule.to_owned(), version: 1, hash: String::new() },
        raised_by_version: 1,
        patient: "-".to_owned(),
        key: key.to_owned(),
        at,
        condition_start: start,
        episode_start: start,
        intentional_delay_us: 0,
        by_timer: false,
        message: String::new(),
        evidence: Vec::new(),
        limits: BTreeMap::new(),
        event_time: None,
        flags: Vec::new(),
    }
}

fn measured(at: Micros, offset: i64, delayed: bool) -> Measured {
    let append_us = at + 100_000;
    let (basis_us, canonical_us, decided_us) = (append_us, append_us, at + 200_000);
    Measured { basis_us, canonical_us, decided_us, source: None, partition: 3, offset, delayed }
}

fn cleared_feed() -> Alert {
    let content = technical("technical/feed", "devices/3", second(20), second(40), TransitionKind::Cleared);
    let message = "source partition devices/3 is read again".to_owned();
    Alert::new(Content { message, ..content }, measured(second(40), 1_001, true))
}

fn canary() -> Alert {
    let content = technical(CANARY_RULE, "canary-5", second(30), second(30), TransitionKind::Raised);
    Alert::new(Content { priority: Priority::Low, ..content }, measured(second(30), 1_002, false))
}

#[test]
fn frozen_alerts_are_read_and_written_as_they_were() {
    let meant = [raised(), cleared_feed(), canary()];
    let written: Vec<String> =
        meant.iter().map(|alert| serde_json::to_string(alert).expect("an alert can be written")).collect();
    sample::assert_still_written("alert-1.jsonl", written.join("\n").as_bytes());
    let frozen = String::from_utf8(sample::read("alert-1.jsonl")).expect("text");
    let read: Vec<Alert> =
        frozen.lines().map(|line| serde_json::from_str(line).expect("a frozen alert can be read")).collect();
    assert_eq!(read, meant);
    assert_eq!(read.iter().map(Alert::is_canary).collect::<Vec<_>>(), [false, false, true]);
}

#[test]
fn frozen_alerts_are_valid_by_the_schema_that_sinks_have() {
    let schema: serde_json::Value = serde_json::from_str(ALERT_SCHEMA).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    for line in String::from_utf8(sample::read("alert-1.jsonl")).expect("text").lines() {
        let alert = serde_json::from_str(line).expect("JSON");
        let errors: Vec<String> = validator.iter_errors(&alert).map(|error| error.to_string()).collect();
        assert_eq!(errors, [""; 0], "{line}");
    }
}
