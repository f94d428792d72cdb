//! `wardbell verify` and `wardbell explain` on what a job has left behind, on the in-memory log.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use wardbell::explain::{DerivedAgain, Explanation, explain};
use wardbell::pipeline::{Job, JobSettings, Topics};
use wardbell::sets::Document;
use wardbell::verify::{Begin, Compared, Difference, DifferenceKind, Scope, verify};
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{
    Committed, Isolation, Log, MemberEvent, Membership, Outgoing, Record, StampedBy, TopicPartition, TopicSpec,
};
use wardbell_core::partition::Settings;
use wardbell_rules::SourceFile;
use wardbell_schemas::alert::{Alert, TransitionKind, print_time};

const PATIENCE: Duration = Duration::from_secs(60);
/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;
const GROUP: &str = "ward";
const PARTITIONS: i32 = 2;
const PATIENTS: i64 = 6;
/// The job is stopped here and another goes on: there is a checkpoint.
const HALF: i64 = 60;
const SECONDS: i64 = 120;

/// What a job of three rules left behind.
struct Ward {
    log: Arc<dyn Log>,
    topics: Topics,
    copies: AtomicU32,
}

impl Ward {
    fn after_two_jobs() -> Self {
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new(Arc::new(SystemClock)));
        let topics = Topics::named("ward", vec!["ward.source".to_owned()], PARTITIONS);
        let ward = Self { log, topics, copies: AtomicU32::new(0) };
        ward.make("ward.source", 1, StampedBy::Producer);
        for seconds in [0..HALF, HALF..SECONDS] {
            let job = ward.start();
            ward.send(seconds);
            job.drain(PATIENCE).expect("everything is worked through");
            assert!(job.stop(), "all stages end");
        }
        ward
    }

    fn make(&self, name: &str, partitions: i32, stamped_by: StampedBy) {
        let spec = TopicSpec::of_others(name, partitions, stamped_by);
        self.log.prepare(&[spec]).expect("the topic is made");
    }

    fn start(&self) -> Job {
        let settings = JobSettings {
            commit_every: Duration::from_millis(500),
            tick_every: Duration::from_millis(200),
            ..JobSettings::new(GROUP, self.topics.clone(), Document::new(&rules(), &decision()))
        };
        Job::start(settings, self.log.clone(), Arc::new(SystemClock)).expect("the job starts")
    }

    /// A record a second and patient. In each half everybody has a spell: low saturation and a fast heart.
    fn send(&self, seconds: Range<i64>) {
        let mut records = Vec::new();
        for second in seconds {
            for patient in 0..PATIENTS {
                let event_us = START_US + second * 1_000_000 + patient * 1_000;
                let (spo2, heart_rate) = if (10..30).contains(&(second % HALF)) { (80, 130) } else { (96, 80) };
                let time = print_time(event_us);
                let json = format!(
                    r#"{{"patient":"p{patient}","device":"m{patient}","time":"{time}","readings":[{{"signal":"spo2","value":{spo2},"unit":"%"}},{{"signal":"heart_rate","value":{heart_rate},"unit":"/min"}}]}}"#
                );
                records.push(Outgoing {
                    topic: self.topics.source[0].clone(),
                    value: Some(json.into_bytes()),
                    time_us: Some(event_us),
                    ..Outgoing::default()
                });
            }
        }
        self.append(&records);
    }

    fn append(&self, records: &[Outgoing]) {
        let mut appender = self.log.appender().expect("an appender");
        for (token, record) in (0..).zip(records) {
            appender.append(record, token).expect("the in-memory log takes everything");
        }
    }

    fn scope(&self) -> Scope {
        Scope::of(GROUP, &self.topics)
    }

    fn verify(&self, scope: &Scope) -> Vec<Compared> {
        verify(&self.log, scope, &mut |_| {}).expect("the log answers")
    }

    fn explain(&self, scope: &Scope, id: &str) -> Option<Explanation> {
        explain(&self.log, scope, id, &mut |_| {}).expect("the log answers")
    }

    /// The records of the alerts topic that a reader sees, all partitions after each other.
    fn alerts(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for partition in 0..PARTITIONS {
            let from = TopicPartition::new(&self.topics.alerts, partition);
            let mut reader = self.log.reader(&from, 0, Isolation::ReadCommitted).expect("a reader");
            reader.read(10_000, Duration::ZERO, &mut records).expect("reads");
        }
        records
    }

    /// Writes alerts to a topic of their own.
    fn copy(&self, alerts: &[Record]) -> Scope {
        let number = self.copies.fetch_add(1, Ordering::SeqCst);
        let topic = format!("ward.copy-{number}");
        self.make(&topic, PARTITIONS, StampedBy::Broker);
        self.append_to(&topic, alerts);
        Scope { alerts: topic, ..self.scope() }
    }

    fn append_to(&self, topic: &str, alerts: &[Record]) {
        let copied = alerts.iter().map(|record| Outgoing {
            topic: topic.to_owned(),
            partition: record.partition,
            key: record.key.clone(),
            value: record.value.clone(),
            headers: record.headers.clone(),
            time_us: None,
        });
        self.append(&copied.collect::<Vec<Outgoing>>());
    }

    /// What comparing with such alerts finds first.
    fn difference(&self, alerts: &[Record]) -> Difference {
        let compared = self.verify(&self.copy(alerts));
        assert!(compared.iter().all(|one| one.not_compared.is_none()), "{compared:?}");
        let mut differences = compared.into_iter().filter_map(|one| one.difference);
        let difference = differences.next().expect("a difference");
        assert_eq!(differences.next(), None, "the other partition is equal");
        difference
    }
}

fn decision() -> Settings {
    Settings { record_clock: true, ..Settings::new("proof") }
}

/// One that a timer raises, one on a mean without a hold, one of two signals.
fn rules() -> Vec<SourceFile> {
    let file = |id: &str, further: &str, raise: &str| SourceFile {
        path: format!("{id}.rhai"),
        text: format!(
            "const RULE = #{{ id: \"{id}\", version: 1, owner: \"o\", priority: \"high\"{further} }};\nfn raise{raise}\n"
        ),
    };
    vec![
        file("held", ", hold: \"5s\", limits: #{ low: 90.0 }", "(spo2, limit) { spo2.last < limit.low }"),
        file("mean", "", "(spo2) { spo2.mean(\"10s\") < 90.0 }"),
        file("both", "", "(spo2, heart_rate) { spo2.last < 90.0 && heart_rate.last > 100.0 }"),
    ]
}

fn alert(record: &Record) -> Alert {
    serde_json::from_slice(record.value.as_deref().expect("a value")).expect("an alert")
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.clone().expect("a value")).expect("JSON")
}

/// The first of partition 0 after so many others.
fn nth(alerts: &[Record], partition: i32, n: usize) -> usize {
    let of_partition = alerts.iter().enumerate().filter(|(_, record)| record.partition == partition);
    of_partition.map(|(i, _)| i).nth(n).expect("so many alerts")
}

fn all_equal(compared: &[Compared]) -> bool {
    compared.iter().all(|one| one.difference.is_none() && one.not_compared.is_none())
}

#[test]
fn what_jobs_leave_behind_is_derived_again_from_the_start_and_from_a_checkpoint() {
    let ward = Ward::after_two_jobs();
    let n_alerts = ward.alerts().len() as u64;
    assert_eq!(n_alerts, (PATIENTS * 2 * 3 * 2) as u64, "each rule raises and clears once a spell");
    let sum = |compared: &[Compared]| -> (u64, u64) {
        (compared.iter().map(|one| one.transitions).sum(), compared.iter().map(|one| one.readings).sum())
    };

    let whole = ward.verify(&ward.scope());
    assert!(all_equal(&whole), "{whole:?}");
    assert_eq!(sum(&whole), (n_alerts, (2 * PATIENTS * SECONDS) as u64));
    assert!(whole.iter().all(|one| !one.from_checkpoint && one.from_offset == 0 && one.passed_over == 0));

    let second_half = ward.verify(&Scope { begin: Begin::Checkpoint, ..ward.scope() });
    assert!(all_equal(&second_half) && second_half.iter().all(|one| one.from_checkpoint), "{second_half:?}");
    assert_eq!(sum(&second_half), (n_alerts / 2, (2 * PATIENTS * (SECONDS - HALF)) as u64));

    let one = ward.verify(&Scope { partitions: vec![1], to_now: true, ..ward.scope() });
    assert!(all_equal(&one) && one.len() == 1 && one[0].partition == 1, "{one:?}");
    let nowhere = Scope { partitions: vec![PARTITIONS], ..ward.scope() };
    assert!(verify(&ward.log, &nowhere, &mut |_| {}).is_err());
}

#[test]
fn a_changed_byte_anywhere_in_an_alert_is_found_and_named() {
    let ward = Ward::after_two_jobs();
    let alerts = ward.alerts();
    let place = nth(&alerts, 0, 4);
    let (good, offset) = (alert(&alerts[place]), 4);
    let value = text(&alerts[place]);
    let decided_at = value.find("\"decided_us\":").expect("it is there") + "\"decided_us\":".len();
    let measured = decided_at..decided_at + value[decided_at..].find(',').expect("more follows");
    let mut damaged = alerts.clone();
    let check = |damaged: &[Record], what: &str| {
        let found = ward.difference(damaged);
        assert_eq!(found.kind, DifferenceKind::Changed, "{what}: {found:?}");
        let expected = (Some(good.id.clone()), Some(good.data.measured.offset), Some(offset));
        assert_eq!((found.id, found.canonical_offset, found.alerts_offset), expected, "{what}");
        assert!(!found.what.contains(&good.data.content.patient), "{}", found.what);
    };
    for byte in (0..value.len()).step_by(5).filter(|byte| !measured.contains(byte)) {
        let mut bytes = value.clone().into_bytes();
        bytes[byte] ^= 1;
        damaged[place].value = Some(bytes);
        check(&damaged, &format!("byte {byte}"));
    }
    damaged[place].value = Some(value.replace("\"priority\":\"high\"", "\"priority\":\"low\"").into_bytes());
    check(&damaged, "the priority");
    damaged[place].value = None;
    check(&damaged, "no value");
    damaged[place] = Record { key: Some(b"somebody else".to_vec()), ..alerts[place].clone() };
    check(&damaged, "the key");
    damaged[place] = Record { headers: Vec::new(), ..alerts[place].clone() };
    check(&damaged, "the headers");
}

/// An alert like this one that the log does not give, decided by the record at an offset.
fn made_up(like: &Record, offset: i64) -> Record {
    let Alert { data, .. } = alert(like);
    let (mut content, mut measured) = (data.content, data.measured);
    content.id = format!("{}.0", "0f".repeat(16));
    measured.offset = offset;
    let id = content.id.clone().into_bytes();
    Record {
        value: Some(serde_json::to_vec(&Alert::new(content, measured)).expect("writes")),
        headers: vec![("wardbell".to_owned(), b"alert/1".to_vec()), ("id".to_owned(), id)],
        ..like.clone()
    }
}

#[test]
fn alerts_that_are_missing_too_many_or_twice_are_named() {
    let ward = Ward::after_two_jobs();
    let alerts = ward.alerts();
    // The last partition that has some.
    let other = alerts.iter().map(|record| record.partition).max().expect("alerts");
    let last = nth(&alerts, other, alerts.iter().filter(|record| record.partition == other).count() - 1);
    for place in [nth(&alerts, 0, 0), nth(&alerts, 0, 3), last] {
        let mut fewer = alerts.clone();
        let missing = alert(&fewer.remove(place));
        let found = ward.difference(&fewer);
        assert_eq!((found.kind, found.id.as_deref()), (DifferenceKind::Missing, Some(missing.id.as_str())));
        assert_eq!(found.canonical_offset, Some(missing.data.measured.offset));
    }

    let made_up = made_up(&alerts[0], alert(&alerts[0]).data.measured.offset);
    let id = alert(&made_up).data.content.id;
    for place in [0, nth(&alerts, 0, 2), nth(&alerts, other, 0)] {
        let mut more = alerts.clone();
        more.insert(place, made_up.clone());
        let found = ward.difference(&more);
        assert_eq!((found.kind, found.id.as_deref()), (DifferenceKind::Extra, Some(id.as_str())), "{found:?}");
        let mut twice = alerts.clone();
        twice.insert(place + 1, alerts[0].clone());
        let found = ward.difference(&twice);
        assert_eq!((found.kind, found.id), (DifferenceKind::Repeated, Some(alert(&alerts[0]).id)), "{}", found.what);
    }
}

#[test]
fn an_alert_that_stands_after_the_end_of_the_canonical_log_is_too_many() {
    let ward = Ward::after_two_jobs();
    let mut alerts = ward.alerts();
    let (_, end) = ward.log.offsets(&ward.topics.canonical, alerts[0].partition).expect("it answers");
    for offset in [end - 1, end, end + 100] {
        alerts.push(made_up(&alerts[0], offset));
        let found = ward.difference(&alerts);
        alerts.pop();
        assert_eq!((found.kind, found.canonical_offset), (DifferenceKind::Extra, Some(offset)));
    }
}

#[test]
fn an_alert_whose_commit_is_told_later_than_its_offset_is_waited_for() {
    let ward = Ward::after_two_jobs();
    let mut alerts = ward.alerts();
    let late = alerts.pop().expect("alerts");
    let scope = ward.copy(&alerts);
    let compared = std::thread::scope(|threads| {
        threads.spawn(|| {
            std::thread::sleep(Duration::from_millis(700));
            ward.append_to(&scope.alerts, std::slice::from_ref(&late));
        });
        ward.verify(&scope)
    });
    assert!(all_equal(&compared), "{compared:?}");
}

#[test]
fn alerts_that_retention_has_deleted_are_not_compared_and_counted() {
    let ward = Ward::after_two_jobs();
    let alerts = ward.alerts();
    let scope = Scope { partitions: vec![0], ..ward.copy(&alerts) };
    ward.log.delete_before(&scope.alerts, 0, 5).expect("deleted");
    let compared = ward.verify(&scope);
    assert!(all_equal(&compared), "{compared:?}");
    let n_alerts = alerts.iter().filter(|record| record.partition == 0).count() as u64;
    assert_eq!((compared[0].before_first_alert, compared[0].transitions), (5, n_alerts - 5));

    // The canonical log's first records are gone: only from a checkpoint.
    ward.log.delete_before(&ward.topics.canonical, 0, 1).expect("deleted");
    let scope = Scope { partitions: vec![0], ..ward.scope() };
    let compared = ward.verify(&scope);
    assert!(all_equal(&compared) && compared[0].from_checkpoint, "{compared:?}");
    let refused = ward.verify(&Scope { begin: Begin::Start, ..scope });
    assert!(refused[0].not_compared.is_some(), "{refused:?}");
}

#[test]
fn another_committed_history_is_a_difference() {
    let ward = Ward::after_two_jobs();
    let membership = Membership {
        group: ward.scope().group,
        topics: vec![ward.topics.canonical.clone()],
        isolation: Isolation::ReadCommitted,
        instance: None,
    };
    let mut member = ward.log.join(&membership).expect("joins");
    let mut assigned = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while assigned.len() < PARTITIONS as usize && Instant::now() < deadline {
        for event in member.events(Duration::from_millis(10)).expect("events") {
            if let MemberEvent::Assigned(partitions) = event {
                assigned.extend(partitions);
            }
        }
    }
    let place = TopicPartition::new(&ward.topics.canonical, 1);
    let committed = member.committed_with_metadata(std::slice::from_ref(&place)).expect("asked").remove(0);
    let committed = committed.expect("the job has committed");
    let (before, digest) = committed.metadata.rsplit_once("h=").expect("a hash");
    let other = if digest.starts_with('0') { "1" } else { "0" };
    let metadata = format!("{before}h={other}{}", &digest[1..]);
    member.commit_with_metadata(&[(place, Committed { metadata, ..committed })]).expect("committed");
    let compared = ward.verify(&ward.scope());
    let kinds: Vec<Option<DifferenceKind>> =
        compared.iter().map(|one| one.difference.as_ref().map(|difference| difference.kind)).collect();
    assert_eq!(kinds, [None, Some(DifferenceKind::History)]);
}

/// The account of the newest alert of a rule and kind.
fn explained(ward: &Ward, rule: &str, kind: TransitionKind) -> Explanation {
    let alerts: Vec<Alert> = ward.alerts().iter().map(alert).collect();
    let is_wanted = |alert: &&Alert| alert.data.content.rule.id == rule && alert.data.content.transition == kind;
    let wanted = alerts.iter().rfind(is_wanted).expect("there is one");
    let explanation = ward.explain(&ward.scope(), &wanted.id).expect("it is found");
    assert_eq!(&explanation.alert, wanted);
    assert_eq!(explanation.derived_again, DerivedAgain::Same);
    assert_eq!(explanation.set.as_ref().map(|set| set.number), Some(1));
    explanation
}

fn assert_says(explanation: &Explanation, parts: &[&str]) {
    let words = explanation.in_words();
    for part in parts {
        assert!(words.contains(part), "`{part}` is missing in\n{words}");
    }
}

#[test]
fn an_alert_is_explained_with_what_its_rule_saw() {
    let ward = Ward::after_two_jobs();

    let by_timer = explained(&ward, "held", TransitionKind::Raised);
    let content = &by_timer.alert.data.content;
    assert!(content.by_timer && by_timer.rule.as_ref().is_some_and(|rule| rule.hold_us == 5_000_000));
    let said: Vec<&str> = by_timer.evaluations.iter().map(|evaluation| evaluation.raise).collect();
    assert!(said.len() >= 5 && said[0] == "false" && said[1..].iter().all(|raise| *raise == "high"), "{said:?}");
    assert_eq!(by_timer.evaluations[1].at, print_time(content.condition_start));
    let replayed_from = by_timer.replayed_from.expect("it was replayed");
    assert!(replayed_from.is_checkpoint && replayed_from.offset > 0, "the second half begins at a checkpoint");
    assert_says(
        &by_timer,
        &["held raised high", "hold", "5s", "timer", "limit low 90, the rule's own", "held.rhai", "byte for byte"],
    );

    let of_mean = explained(&ward, "mean", TransitionKind::Raised);
    assert!(!of_mean.alert.data.content.by_timer);
    let read = &of_mean.evaluations.last().expect("evaluations").values[0];
    assert_eq!((read.signal.as_str(), read.function.as_str()), ("spo2", "mean(\"10s\")"));
    assert!(read.value.is_some_and(|value| value < 90.0), "{read:?}");
    assert_says(&of_mean, &["spo2 mean(\"10s\")", "data age"]);

    let of_patient = explained(&ward, "both", TransitionKind::Cleared);
    let read: Vec<&str> =
        of_patient.evaluations.last().expect("evaluations").values.iter().map(|read| read.signal.as_str()).collect();
    assert_eq!((of_patient.alert.data.content.key.as_str(), read), ("-", vec!["spo2", "heart_rate"]));
    assert!(of_patient.evaluations.iter().any(|evaluation| evaluation.raise == "high"));
    assert_says(&of_patient, &["both cleared", "clear hold"]);
}

#[test]
fn an_episode_is_found_by_its_id_and_what_the_log_does_not_give_is_said() {
    let ward = Ward::after_two_jobs();
    let alerts = ward.alerts();
    let first = alert(&alerts[0]);
    // The first half is before every checkpoint.
    let explanation = ward.explain(&ward.scope(), &first.data.content.episode).expect("it is found");
    assert_eq!((&explanation.alert, explanation.episode.len()), (&first, 2));
    assert!(explanation.episode[0].contains("raised high") && explanation.episode[1].contains("cleared high"));
    assert!(explanation.replayed_from.is_some_and(|from| !from.is_checkpoint && from.offset == 0));
    assert_eq!(ward.explain(&ward.scope(), &"0f".repeat(16)).map(|explanation| explanation.alert), None);

    let mut changed = alerts.clone();
    changed[0].value = Some(text(&alerts[0]).replace("\"priority\":\"high\"", "\"priority\":\"low\"").into_bytes());
    let explanation = ward.explain(&ward.copy(&changed), &first.id).expect("it is found");
    let DerivedAgain::Differs(what) = &explanation.derived_again else { panic!("{:?}", explanation.derived_again) };
    assert_eq!(what, "`data.priority` is \"low\" and has to be \"high\"");
    assert_says(&explanation, &["NOT THE SAME"]);

    ward.log.delete_before(&ward.topics.canonical, alerts[0].partition, 1).expect("deleted");
    let explanation = ward.explain(&ward.scope(), &first.id).expect("it is found");
    assert!(matches!(explanation.derived_again, DerivedAgain::NotPossible(_)), "{:?}", explanation.derived_again);
}
