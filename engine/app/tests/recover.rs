//! Partitions that a job refuses to take over, and what brings them back, on the in-memory log.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wardbell::checkpoints::{CheckpointWriter, Mark, StateTopic};
use wardbell::pipeline::{Job, JobSettings, Topics, replay, topic_specs};
use wardbell::recover::{Basis, Recovered, Request, recover};
use wardbell::sets::{ControlTopic, Document};
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{
    Committed, Isolation, Log, LogError, Outgoing, Progress, Remedy, StampedBy, TopicPartition, TopicSpec,
};
use wardbell_core::partition::Settings;
use wardbell_rules::SourceFile;
use wardbell_schemas::alert::{Content, State, content_bytes, print_time};

const PATIENCE: Duration = Duration::from_secs(60);
/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;
const GROUP: &str = "ward";
const PATIENTS: i64 = 3;
const RULE: &str = "const RULE = #{ id: \"low\", version: 1, owner: \"o\", priority: \"high\", hold: \"5s\" };\nfn raise(spo2) { spo2.last < 90.0 }\n";

/// A log of its own with one canonical partition, worked on by jobs that come and go.
struct Ward {
    log: Arc<dyn Log>,
    topics: Topics,
}

impl Ward {
    fn new() -> Self {
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new(Arc::new(SystemClock)));
        let topics = Topics::named("ward", vec!["ward.source".to_owned()], 1);
        let source = TopicSpec::of_others(&topics.source[0], 1, StampedBy::Producer);
        log.prepare(&[source]).expect("the source topic is made");
        Self { log, topics }
    }

    fn start(&self, group: &str) -> Job {
        self.start_with(self.settings(group))
    }

    fn start_with(&self, settings: JobSettings) -> Job {
        Job::start(settings, self.log.clone(), Arc::new(SystemClock)).expect("the job starts")
    }

    fn settings(&self, group: &str) -> JobSettings {
        let file = SourceFile { path: "low.rhai".to_owned(), text: RULE.to_owned() };
        JobSettings {
            commit_every: Duration::from_millis(200),
            checkpoint_every: Duration::from_secs(3_600),
            leave_on_exit: true,
            tick_every: Duration::from_millis(200),
            ..JobSettings::new(group, self.topics.clone(), Document::new(&[file], &decision()))
        }
    }

    /// One reading a second of each patient; the first patient's saturation is `first`, the others' fine.
    fn send(&self, seconds: Range<i64>, first: i64) {
        let mut appender = self.log.appender().expect("an appender");
        for second in seconds {
            for patient in 0..PATIENTS {
                let event_us = START_US + second * 1_000_000 + patient * 1_000;
                let (time, value) = (print_time(event_us), if patient == 0 { first } else { 97 });
                let json = format!(
                    r#"{{"patient":"p{patient}","device":"m{patient}","time":"{time}","signal":"spo2","value":{value},"unit":"%"}}"#
                );
                let record = Outgoing {
                    topic: self.topics.source[0].clone(),
                    partition: 0,
                    value: Some(json.into_bytes()),
                    time_us: Some(event_us),
                    ..Outgoing::default()
                };
                appender.append(&record, 0).expect("the in-memory log takes everything");
            }
        }
    }

    /// A job that works through some readings and stops, which leaves a checkpoint.
    fn work(&self, seconds: Range<i64>, first: i64) {
        let job = self.start(GROUP);
        self.send(seconds, first);
        finish(job);
    }

    fn committed(&self, group: &str) -> Option<Committed> {
        let partition = TopicPartition::new(&self.topics.canonical, 0);
        self.log.committed_with_metadata(group, &[partition]).expect("asked").pop().flatten()
    }

    /// Replaces what stands beside the committed offset.
    fn spoil(&self, metadata: &str) {
        self.commit(self.committed(GROUP).expect("something is committed").next_offset, metadata);
    }

    fn commit(&self, next_offset: i64, metadata: &str) {
        let group = self.log.outsider(GROUP).expect("a place outside");
        let id = format!("{GROUP}-{}-0", self.topics.canonical);
        let position = TopicPartition::new(&self.topics.canonical, 0);
        let progress = Progress { group: &group, position, next_offset, metadata };
        let mut producer = self.log.transactional(&id).expect("a producer");
        producer.commit(&[], Some(&progress)).expect("committed");
    }

    fn mark(&self, group: &str) -> Mark {
        let committed = self.committed(group).expect("something is committed");
        Mark::parse(&committed.metadata).expect("it is ours").expect("it is there")
    }

    fn recover(&self, group: &str, from: Basis) -> Result<Recovered, LogError> {
        let request = Request {
            group: group.to_owned(),
            topics: self.topics.clone(),
            partition: 0,
            from,
            by: "somebody".to_owned(),
            reason: Some("a test".to_owned()),
        };
        recover(&self.log, &SystemClock, &request)
    }

    fn alerts(&self) -> Vec<Content> {
        let alerts = replay::alerts_of(&*self.log, &self.topics.alerts, 0).expect("the alerts can be read");
        alerts.into_iter().map(|alert| alert.data.content).collect()
    }

    /// What the canonical log says, byte for byte and in order, is what was committed.
    fn assert_nothing_lost_and_nothing_twice(&self) {
        let sets = ControlTopic::new(self.log.clone(), &self.topics.control);
        let offline = replay::canonical_log(&*self.log, &self.topics.canonical, &sets).expect("replays");
        let bytes = |contents: &[Content]| contents.iter().map(content_bytes).collect::<Vec<_>>();
        assert_eq!(bytes(&self.alerts()), bytes(&offline.partitions[0]));
    }

    /// JSON of the audit records.
    fn audits(&self) -> Vec<serde_json::Value> {
        let (first, end) = self.log.offsets(&self.topics.state, 0).expect("asked");
        let from = TopicPartition::new(&self.topics.state, 0);
        let mut reader = self.log.reader(&from, first, Isolation::ReadCommitted).expect("a reader");
        let mut records = Vec::new();
        let wanted = usize::try_from(end - first).expect("not negative");
        let deadline = Instant::now() + PATIENCE;
        while records.len() < wanted && Instant::now() < deadline {
            reader.read(wanted, Duration::from_millis(50), &mut records).expect("reads");
        }
        let audits = records.iter().filter(|record| record.header("wardbell") == Some(b"audit/1".as_slice()));
        let json = |value: &Vec<u8>| serde_json::from_slice(value).expect("JSON");
        audits.map(|record| record.value.as_ref().map(json).expect("a value")).collect()
    }
}

fn decision() -> Settings {
    Settings { record_clock: true, ..Settings::new("recover") }
}

fn finish(job: Job) {
    job.drain(PATIENCE).expect("everything is worked through");
    assert!(job.stop(), "all stages end");
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until health says that the partition is refused, with the remedy.
fn wait_for_refusal(job: &Job, cause: &str) {
    wait_until(&format!("a refusal for `{cause}`"), || {
        let mut causes = job.health().findings().into_iter().map(|standing| standing.finding.cause);
        causes.any(|said| said.contains("wardbell recover") && said.contains(cause))
    });
}

#[test]
fn a_job_that_refused_a_partition_goes_on_from_the_newest_whole_checkpoint() {
    let ward = Ward::new();
    ward.work(0..60, 85);
    let before = ward.mark(GROUP);
    assert_eq!(ward.alerts().last().map(|content| content.state), Some(State::On));
    // A newer one that is whole on the topic and cannot be read.
    let topic = StateTopic::new(ward.log.clone(), &ward.topics.state);
    let stop = Arc::new(AtomicBool::new(false));
    let (writer, thread) = CheckpointWriter::start(topic.clone(), Arc::default(), stop.clone()).expect("a thread");
    let mut ticket = writer.begin(0, ward.committed(GROUP).expect("committed").next_offset);
    ticket.offer(b"no checkpoint".to_vec()).expect("there is room");
    ticket.finish();
    let deadline = Instant::now() + PATIENCE;
    let damaged = loop {
        if let Some(outcome) = ticket.outcome() {
            break outcome.expect("written");
        }
        assert!(Instant::now() < deadline, "the checkpoint does not end");
        std::thread::sleep(Duration::from_millis(5));
    };
    drop(ticket);
    stop.store(true, Ordering::SeqCst);
    thread.join().expect("the writer ends");
    ward.spoil(&Mark { checkpoint: Some(damaged), ..before }.print());

    let job = ward.start(GROUP);
    wait_for_refusal(&job, "checkpoint");
    ward.send(60..120, 97);
    let recovered = ward.recover(GROUP, Basis::Checkpoint).expect("an older one is whole");
    assert_eq!(recovered.mark, before);
    assert!(recovered.told.iter().any(|what| what.contains("passed over")), "{:?}", recovered.told);
    // The job was not stopped.
    finish(job);
    assert_eq!(ward.alerts().last().map(|content| content.state), Some(State::Off));
    ward.assert_nothing_lost_and_nothing_twice();
    let audits = ward.audits();
    assert_eq!(audits.len(), 1, "{audits:?}");
    assert_eq!((&audits[0]["by"], &audits[0]["reason"]), (&"somebody".into(), &"a test".into()));
}

#[test]
fn without_a_committed_offset_nothing_is_said_again() {
    let ward = Ward::new();
    ward.work(0..60, 85);
    ward.work(60..90, 97);
    let said = ward.alerts().len();
    // As if the group's offsets were lost: another group with the same topics.
    let job = ward.start("another");
    wait_for_refusal(&job, "no committed offset");
    ward.send(90..150, 85);
    let recovered = ward.recover("another", Basis::Checkpoint).expect("a checkpoint is whole");
    assert_eq!(ward.committed("another").map(|known| known.next_offset), Some(recovered.next_offset));
    finish(job);
    assert!(ward.alerts().len() > said, "the new readings raise an alert");
    ward.assert_nothing_lost_and_nothing_twice();
}

#[test]
fn with_nothing_that_can_be_read_the_last_day_and_the_open_alerts_go_on() {
    let ward = Ward::new();
    ward.work(0..60, 85);
    let open = ward.alerts().last().cloned().expect("an alert is open");
    assert_eq!(open.state, State::On);
    ward.spoil("wardbell/9 from the future");
    let (_, end) = ward.log.offsets(&ward.topics.state, 0).expect("asked");
    ward.log.delete_before(&ward.topics.state, 0, end).expect("deleted");

    let job = ward.start(GROUP);
    wait_for_refusal(&job, "committed offset");
    let refused = ward.recover(GROUP, Basis::Checkpoint).expect_err("there is none");
    assert!(refused.remedy == Remedy::Refuse && refused.what.contains("--empty"), "{refused}");
    let recovered = ward.recover(GROUP, Basis::Empty).expect("it always goes on");
    assert_eq!(ward.mark(GROUP), recovered.mark);
    ward.send(60..120, 97);
    finish(job);
    let alerts = ward.alerts();
    let cleared = alerts.last().expect("there are alerts");
    assert_eq!((&cleared.episode, cleared.number, cleared.state), (&open.episode, open.number + 1, State::Off));
    let ids: BTreeSet<&str> = alerts.iter().map(|content| content.id.as_str()).collect();
    assert_eq!(ids.len(), alerts.len(), "no id twice");
    let how: Vec<String> = ward.audits().iter().map(|audit| audit["from"].to_string()).collect();
    assert_eq!(how, ["\"empty\""]);
}

#[test]
fn a_partition_that_does_not_exist_and_a_job_that_never_ran_are_refused() {
    let ward = Ward::new();
    ward.log.prepare(&topic_specs(&ward.topics)).expect("made");
    for partition in [-1, 1] {
        let request = Request {
            group: GROUP.to_owned(),
            topics: ward.topics.clone(),
            partition,
            from: Basis::Checkpoint,
            by: "somebody".to_owned(),
            reason: None,
        };
        let error = recover(&ward.log, &SystemClock, &request).expect_err("there is no such partition");
        assert!(error.what.contains("no partition"), "{error}");
    }
    let refused = ward.recover(GROUP, Basis::Checkpoint).expect_err("there is no checkpoint");
    assert!(refused.what.contains("--empty"), "{refused}");
    assert_eq!((ward.committed(GROUP), ward.audits().len()), (None, 0));
}

#[test]
fn an_offset_committed_without_a_mark_is_replayed_from_the_first_record_in_silence() {
    let ward = Ward::new();
    ward.work(0..60, 85);
    assert_eq!(ward.alerts().last().map(|content| content.state), Some(State::On));
    // As a version did that knew no checkpoints.
    ward.spoil("");
    ward.work(60..120, 97);
    assert_eq!(ward.alerts().last().map(|content| content.state), Some(State::Off));
    ward.assert_nothing_lost_and_nothing_twice();
    assert!(ward.mark(GROUP).checkpoint.is_some());
}

#[test]
fn canonical_records_that_have_to_be_read_and_are_deleted_refuse_the_partition() {
    let ward = Ward::new();
    ward.work(0..60, 85);
    ward.spoil("");
    ward.log.delete_before(&ward.topics.canonical, 0, 1).expect("deleted");
    let job = ward.start(GROUP);
    wait_for_refusal(&job, "retention has deleted everything before 1");
    ward.send(60..120, 97);
    // What the offset did not name is there.
    ward.recover(GROUP, Basis::Checkpoint).expect("a checkpoint is whole");
    finish(job);
    let alerts = ward.alerts();
    assert_eq!(alerts.last().map(|content| content.state), Some(State::Off));
    let ids: BTreeSet<&str> = alerts.iter().map(|content| content.id.as_str()).collect();
    assert_eq!(ids.len(), alerts.len(), "no id twice");
}

#[test]
fn a_canonical_topic_made_anew_refuses_the_partition() {
    let ward = Ward::new();
    ward.work(0..60, 85);
    let (_, end) = ward.log.offsets(&ward.topics.canonical, 0).expect("asked");
    ward.commit(end + 100, &ward.mark(GROUP).print());
    let job = ward.start(GROUP);
    wait_for_refusal(&job, "it was made anew");
    assert!(job.stop());
    assert_eq!(ward.committed(GROUP).map(|known| known.next_offset), Some(end + 100));
}

#[test]
fn a_replay_that_gives_another_history_is_told_until_one_agrees_and_open_episodes_go_on() {
    let ward = Ward::new();
    ward.work(0..60, 85);
    let open = ward.alerts().last().cloned().expect("an alert is open");
    let mark = ward.mark(GROUP);
    ward.spoil(&Mark { digest: [7; 16], ..mark }.print());
    let lenient = || JobSettings { strict_replay: false, ..ward.settings(GROUP) };
    let of_replay = || {
        let alerts = ward.alerts().into_iter().filter(|content| content.rule.id == "technical/replay");
        alerts.map(|content| content.state).collect::<Vec<State>>()
    };

    let job = ward.start_with(lenient());
    ward.send(60..120, 97);
    wait_until("technical/replay", || !of_replay().is_empty());
    finish(job);
    let alerts = ward.alerts();
    let cleared = alerts.iter().rfind(|content| content.rule.id == "low").expect("the episode goes on");
    assert_eq!((&cleared.episode, cleared.number, cleared.state), (&open.episode, open.number + 1, State::Off));
    assert_eq!(of_replay(), [State::On]);

    let job = ward.start_with(lenient());
    wait_until("the end of technical/replay", || of_replay().len() == 2);
    finish(job);
    assert_eq!(of_replay(), [State::On, State::Off]);
    ward.assert_nothing_lost_and_nothing_twice();
}

#[test]
fn a_job_that_began_inside_a_log_and_ended_before_its_first_checkpoint_begins_there_again() {
    let ward = Ward::new();
    ward.log.prepare(&topic_specs(&ward.topics)).expect("made");
    // The log begins behind what somebody else had written there.
    let foreign = Outgoing { topic: ward.topics.canonical.clone(), value: Some(b"{}".to_vec()), ..Outgoing::default() };
    let mut appender = ward.log.appender().expect("an appender");
    for token in 0..3 {
        appender.append(&foreign, token).expect("the in-memory log takes everything");
    }
    ward.log.delete_before(&ward.topics.canonical, 0, 3).expect("deleted");
    ward.work(0..60, 85);
    assert_eq!(ward.alerts().last().map(|content| content.state), Some(State::On));
    let mark = ward.mark(GROUP);
    ward.spoil(&Mark { checkpoint: None, ..mark }.print());
    ward.work(60..120, 97);
    let alerts = ward.alerts();
    assert_eq!(alerts.iter().map(|content| content.state).collect::<Vec<State>>(), [State::On, State::Off]);
    assert_eq!(alerts[0].episode, alerts[1].episode);
}
