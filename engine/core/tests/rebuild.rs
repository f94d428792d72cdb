//! A partition whose episodes are not those that were committed takes them from the alerts, and ends them like its own.

use wardbell_core::partition::{Partition, Settings};
use wardbell_core::trial;
use wardbell_rules::{RuleSet, SourceFile, compile};
use wardbell_schemas::SECOND;
use wardbell_schemas::alert::{Content, TransitionKind};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};

/// Low, cleared at once, and raised only after a minute.
const LOW: &str = r#"
const RULE = #{
    id: "low", version: 3, owner: "tests", priority: "high", hold: "60s", limits: #{ low: 90.0 }, reference: "none",
};
fn raise(spo2, limit) { spo2.last < limit.low }
"#;

fn rules() -> RuleSet {
    let file = SourceFile { path: "low.rhai".to_owned(), text: LOW.to_owned() };
    let (rule, faults) = compile(&file, Catalogue::builtin());
    RuleSet::new(vec![rule.unwrap_or_else(|| panic!("{faults:?}"))])
}

fn new(settings: Settings) -> Partition {
    Partition::new(settings, &rules(), Catalogue::builtin())
}

/// One reading a second.
fn feed(partition: &mut Partition, seconds: std::ops::Range<i64>, value: i64) {
    let signal = Catalogue::builtin().by_id("spo2").expect("a signal of the catalogue").index;
    let mut builder = ReadingBatchBuilder::default();
    for second in seconds {
        builder.push(&ReadingRow {
            patient: "p7",
            device: "mon-3",
            signal,
            method: "-",
            value: Some(value),
            quality: Quality::Ok,
            reason: Reason::None,
            event_time_us: second * SECOND,
            source_time_us: second * SECOND,
            append_time_us: None,
            source_topic: "ward",
            source_partition: 0,
            source_offset: second,
            source_index: 0,
            comparator: Comparator::None,
            change: Change::None,
            policies: Policies::NONE,
        });
    }
    partition.apply(&builder.finish(), 0).expect("a canonical batch");
}

fn contents(partition: &mut Partition) -> Vec<Content> {
    partition.take_decided().into_iter().map(|decided| decided.content).collect()
}

/// Rule, transition, number and episode.
fn said(contents: &[Content]) -> Vec<(&str, TransitionKind, u32, &str)> {
    let said = |content: &'_ Content| (content.transition, content.number);
    contents
        .iter()
        .map(|content| (content.rule.id.as_str(), said(content).0, said(content).1, &*content.episode))
        .collect()
}

#[test]
fn lost_episodes_come_back_and_end_under_their_ids() {
    let mut whole = new(trial::settings());
    feed(&mut whole, 0..10, 950);
    feed(&mut whole, 10..100, 850);
    let committed = contents(&mut whole);
    assert_eq!(said(&committed).len(), 1, "{committed:?}");

    // It sees the condition, but not for long enough.
    let mut late = new(Settings { resumed: true, ..trial::settings() });
    feed(&mut late, 70..100, 850);
    assert_eq!(late.sizes().2, 0);
    assert_eq!(late.rebuild_episodes(&committed), Vec::<String>::new());
    late.continue_history(whole.transitions(), *whole.digest());
    assert_eq!(late.sizes().2, 1);
    for partition in [&mut whole, &mut late] {
        feed(partition, 100..110, 950);
    }
    let (ended, ended_late) = (contents(&mut whole), contents(&mut late));
    assert_eq!(said(&ended_late), said(&ended));
    assert_eq!(said(&ended), [("low", TransitionKind::Cleared, 1, committed[0].episode.as_str())]);
    assert_eq!((late.transitions(), late.digest()), (whole.transitions(), whole.digest()));
}

#[test]
fn what_was_never_committed_ends_without_a_word_and_is_raised_under_another_id() {
    let mut partition = new(trial::settings());
    feed(&mut partition, 0..100, 850);
    let mine = contents(&mut partition);
    assert_eq!((said(&mine).len(), partition.sizes().2), (1, 1));
    assert_eq!(partition.rebuild_episodes(&[]), Vec::<String>::new());
    assert_eq!((contents(&mut partition), partition.sizes().2), (Vec::new(), 0));
    feed(&mut partition, 100..101, 850);
    let again = contents(&mut partition);
    assert_eq!((again.len(), again[0].transition, again[0].number), (1, TransitionKind::Raised, 0));
    assert_ne!(again[0].episode, mine[0].episode);
}

#[test]
fn silence_that_was_told_ends_with_the_next_sample_and_silence_that_was_not_is_told_again() {
    let mut silent = new(trial::settings());
    feed(&mut silent, 0..10, 950);
    silent.tick_record_clock(600 * SECOND);
    let committed = contents(&mut silent);
    assert_eq!(said(&committed)[0].0, "technical/stale");

    silent.rebuild_episodes(&[]);
    silent.tick_record_clock(601 * SECOND);
    let again = contents(&mut silent);
    assert_eq!((again.len(), again[0].transition, again[0].number), (1, TransitionKind::Raised, 0));
    assert_ne!(again[0].episode, committed[0].episode);

    let mut heard = new(trial::settings());
    feed(&mut heard, 0..10, 950);
    assert_eq!(heard.rebuild_episodes(&committed), Vec::<String>::new());
    feed(&mut heard, 10..11, 950);
    assert_eq!(
        said(&contents(&mut heard)),
        [("technical/stale", TransitionKind::Cleared, 1, committed[0].episode.as_str())]
    );
}

#[test]
fn an_alert_of_a_key_that_is_not_known_is_named() {
    let mut whole = new(trial::settings());
    feed(&mut whole, 0..100, 850);
    let committed = contents(&mut whole);
    let mut empty = new(Settings { resumed: true, ..trial::settings() });
    assert_eq!(empty.rebuild_episodes(&committed), [committed[0].episode.clone()]);
    // The same readings, sent again, begin another episode.
    feed(&mut empty, 0..100, 850);
    let again = contents(&mut empty);
    assert_eq!(again.len(), 1);
    assert_ne!(again[0].episode, committed[0].episode);
}
