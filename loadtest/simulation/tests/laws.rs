//! A short run that keeps all laws, and what each law says once something of it is changed.

use std::collections::{BTreeMap, BTreeSet};

use wardbell_connectors::canonical::{control_record, readings_record};
use wardbell_connectors::log::{Outgoing, Record, TopicPartition};
use wardbell_schemas::alert::{
    Alert, Content, Kind, Measured, Priority, RuleReference, State, TransitionKind, content_bytes,
};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Control, ControlRecord, TickClaim};
use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};
use wardbell_schemas::{Micros, SECOND};
use wardbell_simulation::derivation::{Derivation, Said, Sets};
use wardbell_simulation::laws::{Delivered, Run, violations};

const START_US: Micros = 1_767_225_600 * SECOND;
const RULE: &str = "const RULE = #{ id: \"low\", version: 1, owner: \"o\", priority: \"high\" };\nfn raise(spo2) { spo2.last < 90.0 }\n";

fn at(second: i64) -> Micros {
    START_US + second * SECOND
}

fn record(offset: i64, time_us: Micros, outgoing: Outgoing) -> Record {
    let Outgoing { partition, key, value, headers, .. } = outgoing;
    Record { partition, offset, time_us, append_us: Some(time_us), key, value, headers }
}

fn source() -> TopicPartition {
    TopicPartition::new("monitors", 0)
}

fn reading(offset: i64, time_us: Micros, value: i64) -> Record {
    let text = format!(r#"{{"patient":"p","device":"d","time":{time_us},"signal":"spo2","value":{value},"unit":"%"}}"#);
    record(offset, time_us, Outgoing { value: Some(text.into_bytes()), ..Outgoing::default() })
}

/// A reading each second: 95, 85, 95; then nothing that can be read.
fn sent() -> Vec<Record> {
    let poison = Outgoing { value: Some(b"poison".to_vec()), ..Outgoing::default() };
    vec![reading(0, at(0), 95), reading(1, at(1), 85), reading(2, at(2), 95), record(3, at(3), poison)]
}

/// The row of a source record.
fn row(offset: i64) -> Outgoing {
    let signal = Catalogue::builtin().by_id("spo2").expect("a signal").index;
    let mut builder = ReadingBatchBuilder::default();
    builder.push(&ReadingRow {
        patient: "p",
        device: "d",
        signal,
        method: "-",
        value: Some(if offset == 1 { 850 } else { 950 }),
        quality: Quality::Ok,
        reason: Reason::None,
        event_time_us: at(offset),
        source_time_us: at(offset),
        append_time_us: Some(at(offset)),
        source_topic: "monitors",
        source_partition: 0,
        source_offset: offset,
        source_index: 0,
        comparator: Comparator::None,
        change: Change::None,
        policies: Policies::NONE,
    });
    readings_record("canonical", 0, &builder.finish(), &Catalogue::builtin().hash).expect("a batch can be written")
}

fn tick(end_offset: i64, time_us: Micros) -> Outgoing {
    let claim = TickClaim { topic: "monitors".to_owned(), partition: 0, end_offset, time_us };
    let control = ControlRecord { id: String::new(), control: Control::Tick { claims: vec![claim] } };
    control_record("canonical", 0, &control)
}

/// Activation, the three rows, a tick that is true.
fn canonical() -> Vec<Outgoing> {
    let activate = Control::Activate { number: 1, hash: "first".to_owned() };
    let activate = control_record("canonical", 0, &ControlRecord { id: "activate-1".to_owned(), control: activate });
    vec![activate, row(0), row(1), row(2), tick(3, at(2))]
}

fn control_topic() -> Vec<Record> {
    let document = serde_json::json!({
        "format": 1, "semantics": 1, "catalogue": "",
        "decision": {
            "site": "test", "lateness_us": 60 * SECOND, "skew_us": 5 * SECOND, "record_clock": false,
            "epoch_check": true, "samples_max": 8192, "connectors": [],
        },
        "rules": [{ "path": "low.rhai", "text": RULE }],
    });
    let value = serde_json::to_vec(&document).expect("plain data");
    vec![record(0, at(0), Outgoing { key: Some(b"first".to_vec()), value: Some(value), ..Outgoing::default() })]
}

fn content(said: &Said) -> Content {
    let transition = &said.transition;
    let kind = TransitionKind::ALL.into_iter().find(|kind| kind.name() == transition.what).expect("a transition");
    Content {
        id: said.id.clone(),
        episode: said.episode().to_owned(),
        number: transition.number,
        transition: kind,
        state: State::On,
        kind: Kind::Physiological,
        priority: transition.priority.parse::<Priority>().expect("a priority"),
        site: "test".to_owned(),
        rule: RuleReference { id: transition.rule.clone(), version: 1, hash: String::new() },
        raised_by_version: 1,
        patient: transition.patient.clone(),
        key: transition.key.clone(),
        at: transition.at_us,
        condition_start: transition.start_us,
        episode_start: transition.start_us,
        intentional_delay_us: 0,
        by_timer: false,
        message: String::new(),
        evidence: Vec::new(),
        limits: BTreeMap::new(),
        event_time: None,
        flags: Vec::new(),
    }
}

fn alert(offset: i64, content: &Content) -> Record {
    let value = serde_json::to_vec(&Alert::new(content.clone(), Measured::default())).expect("plain data");
    record(offset, at(3), Outgoing { value: Some(value), ..Outgoing::default() })
}

/// A run over this canonical log in which the engine and its only sink said what follows from it.
fn run(canonical: Vec<Outgoing>) -> (Run, Vec<Content>) {
    let control = control_topic();
    let canonical: Vec<Record> =
        (0..).zip(canonical).map(|(offset, outgoing)| record(offset, at(offset), outgoing)).collect();
    let sets = Sets::of(&control);
    let mut derivation = Derivation::new(&sets, 0, 1);
    for record in &canonical {
        derivation.apply(record).expect("it can be followed");
    }
    let contents: Vec<Content> = derivation.finish().said.iter().map(content).collect();
    let letter = serde_json::json!({"topic": "monitors", "partition": 0, "offset": 3, "index": 0, "reason": "E_PARSE"});
    let letter = Outgoing { value: serde_json::to_vec(&letter).ok(), ..Outgoing::default() };
    let run = Run {
        source: BTreeMap::from([(source(), sent())]),
        decided: vec![canonical.len() as i64],
        canonical: vec![canonical],
        dead_letters: vec![record(0, at(3), letter)],
        alerts: vec![(0..).zip(&contents).map(|(offset, content)| alert(offset, content)).collect()],
        control,
        sinks: BTreeMap::from([("pager".to_owned(), contents.iter().map(|c| Delivered::new(1, c)).collect())]),
        told_until_us: None,
    };
    (run, contents)
}

fn broken(run: &Run) -> BTreeSet<&'static str> {
    violations(run).into_iter().map(|violation| violation.law).collect()
}

#[test]
fn a_run_without_a_fault_keeps_all_laws() {
    let (run, contents) = run(canonical());
    let said: Vec<&str> = contents.iter().map(|content| content.transition.name()).collect();
    assert_eq!((said, violations(&run)), (vec!["raised", "cleared"], Vec::new()));
}

#[test]
fn alerts_that_are_missing_come_twice_or_are_not_due_are_found() {
    let (mut run, contents) = run(canonical());
    let lost = run.alerts[0].pop();
    run.sinks.clear();
    assert_eq!(broken(&run), BTreeSet::from(["transitions", "episodes"]));
    run.alerts[0].extend(lost.clone().into_iter().chain(lost));
    assert_eq!(broken(&run), BTreeSet::from(["transitions"]));
    run.alerts[0].pop();
    let undue = Content { at: contents[0].at + 1, ..contents[0].clone() };
    run.alerts[0][0] = alert(0, &undue);
    assert_eq!(broken(&run), BTreeSet::from(["transitions"]));
    // What is not decided yet is not looked for.
    run.decided = vec![2];
    run.alerts[0].clear();
    assert_eq!(broken(&run), BTreeSet::new());
}

#[test]
fn records_without_a_place_with_two_or_out_of_order_are_found() {
    let mut without = canonical();
    without.remove(1);
    assert_eq!(broken(&run(without).0), BTreeSet::from(["accounting"]));
    let mut behind_a_gap = canonical();
    behind_a_gap.swap(1, 2);
    assert_eq!(broken(&run(behind_a_gap).0), BTreeSet::from(["accounting"]));
    let mut again = canonical();
    again.push(row(1));
    assert_eq!(broken(&run(again).0), BTreeSet::new(), "the same again is no fault");
    let mut unsent = canonical();
    unsent.push(row(9));
    assert_eq!(broken(&run(unsent).0), BTreeSet::from(["accounting"]));
    let (mut dead, _) = run(canonical());
    dead.dead_letters.clear();
    assert_eq!(broken(&dead), BTreeSet::from(["accounting"]));
}

#[test]
fn ticks_that_are_not_true_are_found() {
    let mut too_early = canonical();
    too_early.swap(3, 4);
    assert_eq!(broken(&run(too_early).0), BTreeSet::from(["ticks"]));
    let mut too_late = canonical();
    too_late[4] = tick(2, at(2) + 1);
    assert_eq!(broken(&run(too_late).0), BTreeSet::from(["ticks"]));
}

#[test]
fn a_series_that_spoke_in_time_is_not_stale() {
    let when_it_spoke_at = |time_us: Micros| {
        let mut untrue = canonical();
        untrue.truncate(3);
        // The third reading comes after a tick that says there is none, far enough on for the deadline to pass.
        untrue.extend((1..=8).map(|step| tick(2, at(1) + step * 10 * SECOND)));
        untrue.push(row(2));
        let (mut run, _) = run(untrue);
        run.source.get_mut(&source()).expect("the only source")[2] = reading(2, time_us, 95);
        broken(&run)
    };
    assert!(when_it_spoke_at(at(1) + 60 * SECOND).contains("absence"));
    assert!(!when_it_spoke_at(at(1) + 61 * SECOND).contains("absence"));
}

#[test]
fn sinks_that_were_told_too_little_otherwise_or_in_another_order_are_found() {
    let (mut run, contents) = run(canonical());
    let told = run.sinks["pager"].clone();
    let law = BTreeSet::from(["sinks"]);
    for wrong in [
        told[..1].to_vec(),
        vec![told[1].clone(), told[0].clone()],
        vec![told[0].clone(), Delivered { content: told[0].content.clone(), ..told[1].clone() }],
        vec![told[0].clone(), told[1].clone(), Delivered { id: "0.0".to_owned(), ..told[1].clone() }],
    ] {
        run.sinks.insert("pager".to_owned(), wrong);
        assert_eq!(broken(&run), law);
    }
    let again = [&told[..], &told[..1]].concat();
    run.sinks.insert("pager".to_owned(), again);
    assert_eq!(broken(&run), BTreeSet::new(), "told again is no fault");
    assert_eq!(told[0].content, content_bytes(&contents[0]));
}
