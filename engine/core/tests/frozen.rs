//! A checkpoint that an earlier version wrote is still restored, and what is written today is still the same.

#[path = "../../../schemas/samples/sample.rs"]
mod sample;

use sha2::{Digest, Sha256};
use wardbell_core::partition::checkpoint::Unreadable;
use wardbell_core::partition::{Partition, SEMANTICS, Settings};
use wardbell_rules::{RuleSet, Severity, SourceFile, compile_all};
use wardbell_schemas::SECOND;
use wardbell_schemas::alert::TransitionKind;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Control, ControlRecord};
use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};

const LOW: &str = "const RULE = #{ id: \"low\", version: 1, owner: \"o\", priority: \"high\", hold: \"5s\", limits: #{ low: 90.0 } };\nfn raise(spo2, limit) { spo2.mean(\"10s\") < limit.low }\n";
const SHOCK: &str = "const RULE = #{ id: \"shock\", version: 2, owner: \"o\", priority: \"medium\", latching: true };\nfn raise(heart_rate, spo2) { heart_rate.last > 120.0 && spo2.last < 95.0 }\n";
/// Stands for the hash of the set.
const SET: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600 * SECOND;

fn set() -> RuleSet {
    let file = |path: &str, text: &str| SourceFile { path: path.to_owned(), text: text.to_owned() };
    let (rules, faults) = compile_all(&[file("low.rhai", LOW), file("shock.rhai", SHOCK)], Catalogue::builtin());
    assert!(faults.iter().all(|fault| fault.severity != Severity::Error), "{faults:?}");
    RuleSet::new(rules)
}

/// One record for each patient and second, saturation and heart rate in it.
fn feed(partition: &mut Partition, seconds: std::ops::Range<i64>, spo2: i64, heart_rate: i64) {
    let catalogue = Catalogue::builtin();
    for second in seconds {
        let mut builder = ReadingBatchBuilder::default();
        for (patient, source_partition) in [("p7", 0), ("p8", 1)] {
            for (source_index, (signal, value)) in (0..).zip([("spo2", spo2), ("heart_rate", heart_rate)]) {
                let time = START + second * SECOND;
                builder.push(&ReadingRow {
                    patient,
                    device: "mon-3",
                    signal: catalogue.by_id(signal).expect("a signal of the catalogue").index,
                    method: "-",
                    // The second patient is well.
                    value: Some(if patient == "p7" { value } else { 970 }),
                    quality: Quality::Ok,
                    reason: Reason::None,
                    event_time_us: time,
                    source_time_us: time,
                    append_time_us: Some(time),
                    source_topic: "devices",
                    source_partition,
                    source_offset: second,
                    source_index,
                    comparator: Comparator::None,
                    change: Change::None,
                    policies: Policies::NONE,
                });
            }
        }
        partition.apply(&builder.finish(), START + second * SECOND).expect("a canonical batch");
    }
}

/// With open episodes, a limit of a patient and a set in force.
fn partition() -> Partition {
    let settings = Settings::new("st-marys");
    let mut partition = Partition::new(settings.clone(), &RuleSet::new(Vec::new()), Catalogue::builtin());
    partition.activate(1, SET, &set(), settings);
    let limit = Control::Limit { patient: "p8".to_owned(), name: "low".to_owned(), value: Some(85.0) };
    partition.apply_control(&ControlRecord { id: "c1".to_owned(), control: limit });
    feed(&mut partition, 0..20, 850, 1_300);
    partition
}

/// Rule, transition and number of everything decided since it was asked last.
fn told(partition: &mut Partition) -> Vec<(String, TransitionKind, u32, String)> {
    let decided = partition.take_decided().into_iter().map(|decided| decided.content);
    decided.map(|content| (content.rule.id, content.transition, content.number, content.episode)).collect()
}

fn slices(partition: &mut Partition) -> Vec<Vec<u8>> {
    let mut slices = Vec::new();
    partition.begin_checkpoint();
    while partition.is_checkpointing() {
        slices.extend(partition.next_slice(1 << 20));
    }
    slices
}

#[test]
fn a_frozen_checkpoint_is_restored_and_written_as_it_was() {
    let mut before = partition();
    let raised = told(&mut before);
    let kinds: Vec<(&str, TransitionKind)> = raised.iter().map(|(rule, kind, ..)| (rule.as_str(), *kind)).collect();
    assert_eq!(kinds, [("shock", TransitionKind::Raised), ("low", TransitionKind::Raised)]);
    sample::assert_still_written("checkpoint-1.hex", &slices(&mut before).concat());

    let frozen = [sample::read("checkpoint-1.hex")];
    let head = Partition::head(&frozen).expect("a frozen checkpoint says what it is");
    assert_eq!((head.form, head.site.as_str(), head.in_force.as_ref()), (1, "st-marys", Some(&(1, SET.to_owned()))));
    let settings = Settings::new("st-marys");
    let mut restored =
        Partition::restore_checkpoint(settings, &set(), Catalogue::builtin(), &frozen).expect("it can be restored");
    assert_eq!((restored.transitions(), restored.digest()), (before.transitions(), before.digest()));
    assert_eq!((restored.transitions(), restored.digest()), (head.transitions, &head.digest));
    assert_eq!(head.transitions, 2);
    // It knows marks, windows and open episodes: what was applied is repeated, and the episodes end under their ids.
    for partition in [&mut before, &mut restored] {
        feed(partition, 15..40, 980, 700);
    }
    let ended = told(&mut restored);
    assert_eq!(ended, told(&mut before));
    let ends: Vec<(&str, u32)> = ended.iter().map(|(_, _, number, episode)| (episode.as_str(), *number)).collect();
    let expected: Vec<(&str, u32)> = raised.iter().map(|(.., episode)| (episode.as_str(), 1)).collect();
    assert_eq!(ends, expected, "{ended:?}");
}

#[test]
fn a_checkpoint_reached_under_another_version_of_the_semantics_is_refused() {
    let mut bytes = sample::read("checkpoint-1.hex");
    let site = bytes.windows(8).position(|window| window == b"st-marys").expect("its header names the site");
    // Behind the site stand the clock and whether the windows begin inside the log, a byte each.
    let version = &mut bytes[site + 8 + 2];
    assert_eq!(u32::from(*version), SEMANTICS);
    *version += 1;
    let hashed = bytes.len() - 32;
    let hash = Sha256::digest(&bytes[..hashed]);
    bytes[hashed..].copy_from_slice(&hash);

    let found = SEMANTICS + 1;
    assert_eq!(Partition::head(std::slice::from_ref(&bytes)).map(|head| head.semantics), Ok(found));
    let restored = Partition::restore_checkpoint(Settings::new("st-marys"), &set(), Catalogue::builtin(), &[bytes]);
    assert_eq!(restored.map(|_| ()), Err(Unreadable::Semantics { found }));
}
