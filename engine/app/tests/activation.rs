//! Rule sets that come into force in a running job, on the in-memory log.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wardbell::pipeline::{Job, JobSettings, Topics, replay};
use wardbell::sets::{ControlTopic, Document, RulesFolder};
use wardbell_connectors::canonical::{self, Canonical, control_record};
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{Isolation, Log, Outgoing, Remedy, StampedBy, TopicPartition, TopicSpec};
use wardbell_core::partition::Settings;
use wardbell_rules::{SourceFile, packs};
use wardbell_schemas::alert::CANARY_RULE;
use wardbell_schemas::alert::{Content, TransitionKind, content_bytes, print_time};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Control, ControlRecord};

const PATIENCE: Duration = Duration::from_secs(60);
/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;
const GROUP: &str = "ward";

/// A log of its own with the topics of a job.
struct Ward {
    log: Arc<dyn Log>,
    topics: Topics,
    control: ControlTopic,
}

impl Ward {
    fn new(partitions: i32) -> Self {
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new(Arc::new(SystemClock)));
        let topics = Topics::named("ward", vec!["ward.source".to_owned()], partitions);
        let source = TopicSpec::of_others(&topics.source[0], 1, StampedBy::Producer);
        log.prepare(&[source]).expect("the source topic is made");
        let control = ControlTopic::new(log.clone(), &topics.control);
        Self { log, topics, control }
    }

    fn settings(&self, configured: Option<Document>, folder: Option<RulesFolder>) -> JobSettings {
        JobSettings {
            group: GROUP.to_owned(),
            instance: None,
            topics: self.topics.clone(),
            decision: decision(),
            configured,
            folder,
            commit_every: Duration::from_millis(500),
            strict_replay: true,
            leave_on_exit: false,
            checkpoint_every: Duration::from_secs(60),
            tick_every: Duration::from_millis(200),
            canary_every: None,
            connectors: Vec::new(),
            sinks: Vec::new(),
            record_only: false,
        }
    }

    fn start(&self, configured: &Document) -> Job {
        self.start_with(self.settings(Some(configured.clone()), None))
    }

    fn start_with(&self, settings: JobSettings) -> Job {
        Job::start(settings, self.log.clone(), Arc::new(SystemClock)).expect("the job starts")
    }

    fn append(&self, records: &[Outgoing]) {
        let mut appender = self.log.appender().expect("an appender");
        for (token, record) in (0..).zip(records) {
            appender.append(record, token).expect("the in-memory log takes everything");
        }
    }

    /// A record a second and patient; saturation and heart rate as `values` says of patient and second.
    fn send(&self, patients: i64, seconds: Range<i64>, values: impl Fn(i64, i64) -> (i64, i64)) {
        let mut records = Vec::new();
        for second in seconds {
            for patient in 0..patients {
                let event_us = START_US + second * 1_000_000 + patient * 1_000;
                let (spo2, heart_rate) = values(patient, second);
                let time = print_time(event_us);
                let json = format!(
                    r#"{{"patient":"p{patient}","device":"m{patient}","time":"{time}","readings":[{{"signal":"spo2","value":{spo2},"unit":"%"}},{{"signal":"heart_rate","value":{heart_rate},"unit":"/min"}}]}}"#
                );
                records.push(Outgoing {
                    topic: self.topics.source[0].clone(),
                    partition: 0,
                    key: None,
                    value: Some(json.into_bytes()),
                    headers: Vec::new(),
                    time_us: Some(event_us),
                });
            }
        }
        self.append(&records);
    }

    fn publish(&self, document: &Document) -> u64 {
        self.control.publish(document).expect("published")
    }

    /// What was committed, by partition.
    fn contents(&self) -> Vec<Vec<Content>> {
        let alerts = replay::alerts(&*self.log, &self.topics.alerts).expect("the alerts can be read");
        let contents = alerts.into_iter().map(|partition| partition.into_iter().map(|alert| alert.data.content));
        contents.map(|partition| partition.filter(|content| content.rule.id != CANARY_RULE).collect()).collect()
    }

    /// What the canonical log and the published sets say without the live run.
    fn offline(&self) -> Vec<Vec<Content>> {
        let replayed = replay::canonical_log(&*self.log, &self.topics.canonical, &self.control).expect("replays");
        let real =
            |partition: Vec<Content>| partition.into_iter().filter(|content| content.rule.id != CANARY_RULE).collect();
        replayed.partitions.into_iter().map(real).collect()
    }

    /// Numbers of the activations in a canonical partition.
    fn activations(&self, partition: i32) -> Vec<u64> {
        let (_, end) = self.log.offsets(&self.topics.canonical, partition).expect("offsets");
        let from = TopicPartition::new(&self.topics.canonical, partition);
        let mut reader = self.log.reader(&from, 0, Isolation::ReadCommitted).expect("a reader");
        let mut records = Vec::new();
        reader.read(usize::try_from(end).expect("small"), Duration::ZERO, &mut records).expect("reads");
        let number = |record| match canonical::read(record, &Catalogue::builtin().hash).expect("ours") {
            Canonical::Control(ControlRecord { control: Control::Activate { number, .. }, .. }) => Some(number),
            _ => None,
        };
        records.iter().filter_map(number).collect()
    }
}

fn decision() -> Settings {
    Settings { record_clock: true, ..Settings::new("activation") }
}

/// A rule that is true while `condition` is.
fn rule(id: &str, version: u32, signal: &str, condition: &str, hold: &str) -> SourceFile {
    SourceFile {
        path: format!("{id}.rhai"),
        text: format!(
            "const RULE = #{{ id: \"{id}\", version: {version}, owner: \"o\", priority: \"high\", hold: \"{hold}\" }};\nfn raise({signal}) {{ {signal}.last {condition} }}\n"
        ),
    }
}

fn low(limit: &str) -> SourceFile {
    rule("low", 1, "spo2", &format!("< {limit}"), "5s")
}

fn set(files: &[SourceFile]) -> Document {
    Document::new(files, &decision())
}

fn bytes(contents: &[Vec<Content>]) -> Vec<Vec<Vec<u8>>> {
    contents.iter().map(|partition| partition.iter().map(content_bytes).collect()).collect()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a set is in force in so many partitions of a job, which must be all it has.
fn wait_in_force(job: &Job, number: u64, partitions: usize) {
    wait_until(&format!("set {number} is in force in {partitions} partitions"), || {
        let in_force: BTreeMap<i32, u64> = job.sets_in_force();
        in_force.len() == partitions && in_force.values().all(|known| *known == number)
    });
}

fn finish(job: Job) {
    job.drain(PATIENCE).expect("everything is worked through");
    assert!(job.stop(), "all stages end");
}

/// A line for each transition: rule, transition, second.
fn told(contents: &[Vec<Content>]) -> Vec<String> {
    let line = |content: &Content| {
        let second = (content.at - START_US) / 1_000_000;
        format!("{} {} {second}", content.rule.id, content.transition.name())
    };
    contents.iter().flatten().map(line).collect()
}

/// Saturation of every other patient falls and recovers.
fn desaturation(patient: i64, second: i64) -> (i64, i64) {
    let low = (40..120).contains(&second) && patient % 2 == 0;
    (if low { 80 } else { 96 }, 80)
}

#[test]
fn publishing_the_same_rules_again_changes_no_transition() {
    let pack = set(&packs::adult_ward());
    let mut more = packs::adult_ward();
    more.push(rule("never", 1, "spo2", "< 20.0", "0s"));
    let more = set(&more);
    // Before, inside and after the holds, with alerts open, and after they were cleared.
    for split in [20, 45, 90, 135] {
        let run = |second: Option<&Document>| {
            let ward = Ward::new(3);
            let job = ward.start(&pack);
            ward.send(6, 0..split, desaturation);
            job.drain(PATIENCE).expect("the first part is worked through");
            if let Some(second) = second {
                assert_eq!(ward.publish(second), 2);
                wait_in_force(&job, 2, 3);
            }
            ward.send(6, split..200, desaturation);
            finish(job);
            assert_eq!(bytes(&ward.offline()), bytes(&ward.contents()), "the log gives the run again");
            ward.contents()
        };
        let plain = run(None);
        let count = |kind| plain.iter().flatten().filter(|content| content.transition == kind).count();
        assert!(count(TransitionKind::Raised) >= 3 && count(TransitionKind::Cleared) >= 3, "{:?}", told(&plain));
        assert_eq!(bytes(&run(Some(&pack))), bytes(&plain), "the same set at second {split}");
        assert_eq!(bytes(&run(Some(&more))), bytes(&plain), "the same rules and one more at second {split}");
    }
}

#[test]
fn a_change_takes_effect_at_its_place_and_open_alerts_survive() {
    let fast = rule("fast", 1, "heart_rate", "> 100.0", "0s");
    let faster = rule("faster", 1, "heart_rate", "> 110.0", "0s");
    let ward = Ward::new(1);
    let job = ward.start(&set(&[low("90.0"), fast.clone(), faster]));
    ward.send(1, 0..20, |_, _| (91, 120));
    job.drain(PATIENCE).expect("the first part is worked through");
    ward.publish(&set(&[low("92.0"), fast]));
    wait_in_force(&job, 2, 1);
    ward.send(1, 20..30, |_, _| (91, 80));
    finish(job);
    let expected = [
        "fast raised 0",
        "faster raised 0",
        // The removed rule ends what it left open; the changed one is evaluated at once, and its hold begins there.
        "faster rule_changed 19",
        "fast cleared 20",
        "low raised 24",
    ];
    assert_eq!(told(&ward.contents()), expected);
    assert_eq!(bytes(&ward.offline()), bytes(&ward.contents()));
    assert_eq!(ward.activations(0), [1, 2]);
}

#[test]
fn a_set_that_cannot_be_used_changes_nothing() {
    let ward = Ward::new(2);
    let job = ward.start(&set(&[low("90.0")]));
    wait_in_force(&job, 1, 2);
    let broken = SourceFile { text: low("90.0").text.replace("spo2.last", "spo2.lst"), ..low("90.0") };
    assert_eq!(ward.publish(&set(&[broken])), 2);
    wait_until("health names the set", || job.health().stands("rules/2"));
    let cause = job.health().findings().into_iter().find(|standing| standing.key == "rules/2").expect("it stands");
    assert!(cause.finding.cause.contains("low.rhai:2"), "{}", cause.finding.cause);
    ward.send(1, 0..10, |_, _| (80, 80));
    job.drain(PATIENCE).expect("it goes on with the set it has");
    assert_eq!(told(&ward.contents()), ["low raised 5"]);
    assert_eq!(ward.publish(&set(&[low("88.0")])), 3);
    wait_in_force(&job, 3, 2);
    assert!(!job.health().stands("rules/2"), "a better set has come");
    assert!(job.stop());
    for partition in 0..2 {
        assert_eq!(ward.activations(partition), [1, 3]);
    }
}

#[test]
fn an_activation_that_cannot_be_followed_ends_the_job() {
    let ward = Ward::new(1);
    let job = ward.start(&set(&[low("90.0")]));
    ward.send(1, 0..10, |_, _| (80, 80));
    job.drain(PATIENCE).expect("the readings are worked through");
    let broken = set(&[SourceFile { text: "fn raise() { true }".to_owned(), ..low("90.0") }]);
    assert_eq!(ward.publish(&broken), 2);
    let control = Control::Activate { number: 2, hash: broken.hash() };
    let record = ControlRecord { id: "activate-2".to_owned(), control };
    let (_, place) = ward.log.offsets(&ward.topics.canonical, 0).expect("offsets");
    ward.append(&[control_record(&ward.topics.canonical, 0, &record)]);
    wait_until("the job gives up", || job.failure().is_some());
    let failure = job.failure().expect("it failed");
    assert!(failure.contains("rule set 2") && failure.contains("cannot use it"), "{failure}");
    assert!(job.health().stands("job"));
    assert!(job.stop());
    assert_eq!(told(&ward.contents()), ["low raised 5"]);
    let position = TopicPartition::new(&ward.topics.canonical, 0);
    let committed = ward.log.committed(GROUP, &[position]).expect("committed offsets");
    assert_eq!(committed, [Some(place)], "the next owner begins at the activation");
}

#[test]
fn a_set_in_force_that_is_not_there_any_more_ends_the_job_at_a_take_over() {
    let ward = Ward::new(1);
    let job = ward.start(&set(&[low("90.0")]));
    ward.send(1, 0..10, |_, _| (80, 80));
    finish(job);
    assert_eq!(ward.publish(&set(&[low("88.0")])), 2);
    ward.log.delete_before(&ward.topics.control, 0, 1).expect("deleted");
    let job = ward.start(&set(&[low("88.0")]));
    wait_until("the job gives up", || job.failure().is_some());
    let failure = job.failure().expect("it failed");
    assert!(failure.contains("rule set 1") && failure.contains("does not hold it"), "{failure}");
    assert!(job.stop());
    assert_eq!((told(&ward.contents()), ward.activations(0)), (vec!["low raised 5".to_owned()], vec![1]));
}

#[test]
fn two_instances_activate_in_the_partitions_they_own() {
    let ward = Ward::new(4);
    let first = ward.start(&set(&[low("90.0")]));
    wait_in_force(&first, 1, 4);
    let second = ward.start(&set(&[low("90.0")]));
    wait_in_force(&second, 1, 2);
    wait_in_force(&first, 1, 2);
    assert_eq!(ward.control.newest_number().expect("reads"), 1, "the second found a published set");
    ward.publish(&set(&[low("95.0")]));
    wait_in_force(&first, 2, 2);
    wait_in_force(&second, 2, 2);
    ward.send(8, 0..20, |_, _| (93, 80));
    wait_until("every patient's alert is raised", || told(&ward.contents()).len() == 8);
    assert!(told(&ward.contents()).iter().all(|line| line == "low raised 5"), "{:?}", told(&ward.contents()));
    assert!(first.stop() && second.stop());
    for partition in 0..4 {
        let numbers = ward.activations(partition);
        assert!(numbers.contains(&1) && numbers.last() == Some(&2), "partition {partition}: {numbers:?}");
    }
}

#[test]
fn a_job_starts_with_the_newest_published_set_and_says_how_its_folder_differs() {
    let ward = Ward::new(2);
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), &low("92.0"));
    let rules = RulesFolder { paths: vec![folder.path().to_owned()], decision: decision(), watch: false };
    assert!(ward.start(&set(&[low("90.0")])).stop());

    let start = || {
        let configured = rules.load().expect("sound").document;
        ward.start_with(ward.settings(Some(configured), Some(rules.clone())))
    };
    let (first, second) = (start(), start());
    wait_until("the difference is told", || first.health().stands("rules/folder"));
    let standing = first.health().findings();
    let cause = &standing.iter().find(|standing| standing.key == "rules/folder").expect("it stands").finding.cause;
    assert!(cause.contains("changed low: raise `spo2.last < 90` -> `spo2.last < 92`"), "{cause}");
    wait_in_force(&first, 1, 1);

    first.publish_rules();
    wait_in_force(&first, 2, 1);
    wait_in_force(&second, 2, 1);
    for job in [&first, &second] {
        wait_until("nothing differs any more", || !job.health().stands("rules/folder"));
    }
    // The other instance has the same content, which is published already; a change of it is the next number.
    second.publish_rules();
    write(folder.path(), &low("94.0"));
    second.publish_rules();
    wait_in_force(&first, 3, 1);
    assert!(first.stop() && second.stop());
    assert_eq!(ward.control.newest_number().expect("reads"), 3);
}

#[test]
fn changed_files_are_published_once_they_are_sound() {
    let ward = Ward::new(1);
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), &low("90.0"));
    let rules = RulesFolder { paths: vec![folder.path().to_owned()], decision: decision(), watch: true };
    let configured = rules.load().expect("sound").document;
    let job = ward.start_with(ward.settings(Some(configured), Some(rules)));
    wait_in_force(&job, 1, 1);
    write(folder.path(), &SourceFile { text: low("92.0").text.replace("spo2.last", "spo2.lst"), ..low("92.0") });
    wait_until("the fault is told", || job.health().stands("rules/folder"));
    let standing = job.health().findings();
    let cause = &standing.iter().find(|standing| standing.key == "rules/folder").expect("it stands").finding.cause;
    assert!(cause.contains("low.rhai:2 R025"), "{cause}");
    assert_eq!(ward.control.newest_number().expect("reads"), 1, "a bad file never replaces a good one");
    write(folder.path(), &low("92.0"));
    wait_in_force(&job, 2, 1);
    wait_until("nothing is wrong any more", || !job.health().stands("rules/folder"));
    assert!(job.stop());
    assert_eq!(ward.control.newest().expect("reads").map(|newest| newest.hash), Some(set(&[low("92.0")]).hash()));
}

fn write(folder: &Path, file: &SourceFile) {
    std::fs::write(folder.join(&file.path), &file.text).expect("written");
}

#[test]
fn a_job_without_a_set_or_with_another_site_is_refused() {
    let ward = Ward::new(1);
    let refused = |settings: JobSettings| {
        let error = Job::start(settings, ward.log.clone(), Arc::new(SystemClock)).err().expect("refused");
        assert_eq!(error.remedy, Remedy::Refuse);
        error.to_string()
    };
    let what = refused(ward.settings(None, None));
    assert!(what.contains("no set is published yet"), "{what}");
    assert!(ward.start(&set(&[low("90.0")])).stop());
    let elsewhere =
        JobSettings { decision: Settings { site: "elsewhere".to_owned(), ..decision() }, ..ward.settings(None, None) };
    let what = refused(elsewhere);
    assert!(what.contains("\"elsewhere\"") && what.contains("never changes"), "{what}");
    // A published set is enough to go on.
    assert!(ward.start_with(ward.settings(None, None)).stop());
}
