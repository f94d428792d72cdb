//! What becomes of a source whose records were deleted unread, and of rows that another normalizer set made again.

use wardbell_core::partition::{Partition, Settings};
use wardbell_rules::RuleSet;
use wardbell_schemas::alert::Priority;
use wardbell_schemas::catalogue::{Catalogue, SignalIndex};
use wardbell_schemas::control::{Condition, Control, ControlRecord, TickClaim};
use wardbell_schemas::outcome::Outcome;
use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};
use wardbell_schemas::{Micros, SECOND};

fn partition() -> Partition {
    let settings = Settings { epoch_check: false, ..Settings::new("ward") };
    Partition::new(settings, &RuleSet::new(Vec::new()), Catalogue::builtin())
}

/// A source record of one reading, appended by the broker and then to the canonical log.
fn apply(partition: &mut Partition, normalizer: &[u8], offset: i64, append_us: Micros) {
    let mut builder = ReadingBatchBuilder::default();
    builder.push(&ReadingRow {
        patient: "p",
        device: "mon",
        signal: SignalIndex(0),
        method: "-",
        value: Some(80),
        quality: Quality::Ok,
        reason: Reason::None,
        event_time_us: append_us,
        source_time_us: append_us,
        append_time_us: Some(append_us),
        source_topic: "devices",
        source_partition: 3,
        source_offset: offset,
        source_index: 0,
        comparator: Comparator::None,
        change: Change::None,
        policies: Policies::NONE,
    });
    partition.normalized_with(normalizer);
    partition.apply(&builder.finish(), append_us).expect("a canonical batch");
}

fn tick(partition: &mut Partition, time_us: Micros) {
    let claim = TickClaim { topic: "devices".to_owned(), partition: 3, end_offset: 0, time_us };
    partition.apply_control(&ControlRecord { id: String::new(), control: Control::Tick { claims: vec![claim] } });
}

fn records_lost(partition: &mut Partition, id: &str, at_us: Micros) {
    let condition = Condition {
        rule: "technical/feed".to_owned(),
        key: "devices/3".to_owned(),
        priority: Priority::High,
        holds: true,
        at_us,
        detail: "source devices/3 lost records 5 to 8".to_owned(),
    };
    partition.apply_control(&ControlRecord { id: id.to_owned(), control: Control::Condition(condition) });
}

/// Second, transition, rule, priority, key and message of what was decided since the last time.
fn told(partition: &mut Partition) -> Vec<String> {
    let line = |decided: wardbell_core::partition::Decided| {
        let content = decided.content;
        let (kind, priority) = (content.transition.name(), content.priority.name());
        format!("{}s {kind} {} {priority} {}: {}", content.at / SECOND, content.rule.id, content.key, content.message)
    };
    partition.take_decided().into_iter().map(line).collect()
}

#[test]
fn records_that_were_deleted_unread_are_an_alert_of_their_feed_and_end_as_it_does() {
    let mut partition = partition();
    apply(&mut partition, b"", 4, 1_000 * SECOND);
    records_lost(&mut partition, "a", 9_000 * SECOND);
    let raised = "1000s raised technical/feed high devices/3: source devices/3 lost records 5 to 8";
    assert_eq!(told(&mut partition), [raised], "at the source's clock");
    records_lost(&mut partition, "a", 9_000 * SECOND);
    apply(&mut partition, b"", 9, 5_000 * SECOND);
    assert_eq!(told(&mut partition), [""; 0], "the jump that comes with it is the same outage");
    tick(&mut partition, 5_009 * SECOND);
    assert_eq!(told(&mut partition), [""; 0]);
    tick(&mut partition, 5_010 * SECOND);
    let cleared = "5010s cleared technical/feed high devices/3: source devices/3 is watched again";
    assert_eq!(told(&mut partition), [cleared]);
}

#[test]
fn a_feed_that_is_not_known_yet_begins_with_its_loss() {
    let mut partition = partition();
    records_lost(&mut partition, "a", 7_000 * SECOND);
    assert_eq!(told(&mut partition).len(), 1);
    tick(&mut partition, 7_010 * SECOND);
    assert_eq!(told(&mut partition).len(), 1, "it ends");
}

#[test]
fn rows_made_again_are_counted_by_the_set_that_made_them_and_change_nothing() {
    let mut partition = partition();
    for (normalizer, offset, repeated, renormalized) in [
        ("first", 1, 0, 0),
        ("first", 1, 1, 0),
        ("second", 1, 1, 1),
        ("", 1, 2, 1),
        ("second", 2, 2, 1),
        ("second", 2, 3, 1),
        ("first", 1, 3, 2),
    ] {
        apply(&mut partition, normalizer.as_bytes(), offset, 100 * SECOND + offset);
        let outcomes = partition.outcomes();
        let found = (outcomes.repeated, outcomes.renormalized);
        assert_eq!(found, (repeated, renormalized), "{normalizer} {offset}");
    }
    assert_eq!(partition.outcomes().get(Outcome::Evaluated), 2);
}
