//! After an outage, and under overload, on the in-memory log: what is told, what is withheld, and that nothing is lost
//! without a word.

use std::future::ready;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wardbell::health::Severity;
use wardbell::pipeline::{Job, JobSettings, SinkSettings, Summary, Topics, topic_specs};
use wardbell::sets::Document;
use wardbell_connectors::canonical::{self, Canonical};
use wardbell_connectors::clock::{Clock, SystemClock};
use wardbell_connectors::conformance::sink::delivery;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{
    Appended, Appender, Committed, GroupHandle, Isolation, Log, LogError, Member, MemberEvent, Membership, Outgoing,
    PartitionReader, Record, StampedBy, TopicPartition, TopicSpec, Transactional,
};
use wardbell_connectors::sink::{Delivering, Delivery, Identity, Sink};
use wardbell_core::partition::Settings;
use wardbell_rules::packs;
use wardbell_schemas::alert::{Alert, Priority, TransitionKind, print_time};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Condition, Control};

const PATIENCE: Duration = Duration::from_secs(60);
const SOURCE: &str = "devices";
const GROUP: &str = "ward";

fn topics() -> Topics {
    Topics { create_source: Some(1), ..Topics::named("ward", vec![SOURCE.to_owned()], 2) }
}

/// A log whose normalizer can be slow, and whose producers can wait for ever.
struct Ward {
    inner: MemoryLog,
    is_slow: Arc<AtomicBool>,
    is_deaf: Arc<AtomicBool>,
}

impl Ward {
    fn new() -> Arc<Self> {
        let inner = MemoryLog::new(Arc::new(SystemClock));
        inner.prepare(&topic_specs(&topics())).expect("the topics are made");
        Arc::new(Self { inner, is_slow: Arc::default(), is_deaf: Arc::default() })
    }

    fn start(self: &Arc<Self>, sinks: Vec<SinkSettings>) -> Job {
        let decision = Settings::new("outage");
        let settings = JobSettings {
            commit_every: Duration::from_millis(200),
            leave_on_exit: true,
            tick_every: Duration::from_millis(200),
            sinks,
            ..JobSettings::new(GROUP, topics(), Document::new(&packs::adult_ward(), &decision))
        };
        Job::start(settings, self.clone(), Arc::new(SystemClock)).expect("the job starts")
    }

    fn send(&self, records: impl IntoIterator<Item = Outgoing>) {
        let mut appender = self.inner.appender().expect("an appender");
        for (token, record) in (0..).zip(records) {
            appender.append(&record, token).expect("taken");
        }
    }

    /// As an earlier normalizer left it.
    fn commit_source(&self, next_offset: i64) {
        let membership = Membership {
            group: format!("{GROUP}-normalize"),
            topics: vec![SOURCE.to_owned()],
            isolation: Isolation::ReadCommitted,
            instance: None,
        };
        let mut member = self.inner.join(&membership).expect("joins");
        assert!(!member.events(PATIENCE).expect("events").is_empty(), "the partition is assigned");
        member.commit(&[(TopicPartition::new(SOURCE, 0), next_offset)]).expect("commits");
        member.leave();
    }

    fn committed_of_source(&self) -> Option<i64> {
        let group = format!("{GROUP}-normalize");
        self.inner.committed(&group, &[TopicPartition::new(SOURCE, 0)]).expect("an answer")[0]
    }

    fn canonical_records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for partition in 0..topics().partitions {
            let from = TopicPartition::new(&topics().canonical, partition);
            let mut reader = self.inner.reader(&from, 0, Isolation::ReadCommitted).expect("a reader");
            reader.read(usize::MAX / 2, Duration::ZERO, &mut records).expect("reads");
        }
        records
    }

    /// What the canonical log says about the job itself.
    fn conditions(&self) -> Vec<Condition> {
        let read = |record: &Record| match canonical::read(record, &Catalogue::builtin().hash).expect("readable") {
            Canonical::Control(record) => match record.control {
                Control::Condition(condition) => Some(condition),
                _ => None,
            },
            Canonical::Readings(_) => None,
        };
        self.canonical_records().iter().filter_map(read).collect()
    }
}

fn readings(n: i64) -> impl Iterator<Item = Outgoing> {
    (0..n).map(|i| {
        let patient = i % 10;
        // One reading a patient and millisecond.
        let time = print_time(SystemClock.now_us() / 1_000 * 1_000 + i);
        let json = format!(
            r#"{{"patient":"p{patient}","device":"mon-{patient}","time":"{time}","signal":"spo2","value":97,"unit":"%"}}"#
        );
        Outgoing { topic: SOURCE.to_owned(), partition: 0, value: Some(json.into_bytes()), ..Outgoing::default() }
    })
}

fn finish(job: Job) -> Summary {
    job.drain(PATIENCE).expect("everything is worked through");
    let statistics = job.statistics().clone();
    assert!(job.stop(), "all stages end");
    let summary = statistics.summary();
    assert!(summary.adds_up() && summary.restarts.is_empty() && summary.unreadable == 0, "{summary:?}");
    summary
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} is waited for");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Keeps what it was given.
#[derive(Default)]
struct Pager(Arc<Mutex<Vec<Alert>>>);

impl Pager {
    /// A sink with one lane, and what it got.
    fn sink() -> (SinkSettings, Arc<Mutex<Vec<Alert>>>) {
        let pager = Self::default();
        let taken = pager.0.clone();
        (SinkSettings { name: "pager".to_owned(), identity: Identity::Full, lanes: vec![Box::new(pager)] }, taken)
    }
}

impl Sink for Pager {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        self.0.lock().expect("not poisoned").extend(deliveries.iter().map(|delivery| delivery.alert.clone()));
        Box::pin(ready(Ok(())))
    }
}

#[test]
fn source_records_lost_to_retention_are_told_with_their_range_and_the_rest_is_read() {
    let ward = Ward::new();
    ward.send(readings(10));
    ward.commit_source(2);
    ward.inner.delete_before(SOURCE, 0, 5).expect("deleted");
    let job = ward.start(Vec::new());
    wait_until("the finding", || job.health().stands("lost devices/0"));
    let summary = finish(job);
    assert_eq!((summary.lost_records, summary.records), (3, 5));
    assert_eq!(ward.committed_of_source(), Some(10));
    let told: Vec<_> = ward.conditions().into_iter().filter(|told| told.rule == "technical/feed").collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].key.as_str(), told[0].holds, told[0].priority), ("devices/0", true, Priority::High));
    assert_eq!(told[0].detail, "source devices/0 lost records 2 to 4: deleted before they were read");
    let again = finish(ward.start(Vec::new()));
    assert_eq!(again.lost_records, 0, "told once");
}

#[test]
fn a_source_that_lost_records_and_got_no_new_ones_is_told_once() {
    let ward = Ward::new();
    ward.send(readings(4));
    ward.commit_source(1);
    ward.inner.delete_before(SOURCE, 0, 4).expect("deleted");
    assert_eq!(finish(ward.start(Vec::new())).lost_records, 3);
    assert_eq!(ward.committed_of_source(), Some(4), "what is told is committed");
    assert_eq!(finish(ward.start(Vec::new())).lost_records, 0);
}

#[test]
fn a_source_made_anew_is_read_from_its_beginning() {
    let ward = Ward::new();
    ward.send(readings(3));
    ward.commit_source(100);
    let summary = finish(ward.start(Vec::new()));
    assert_eq!((summary.records, summary.lost_records), (3, 0));
    assert_eq!(ward.committed_of_source(), Some(3));
    assert!(ward.conditions().iter().any(|told| told.detail.contains("was made anew")), "{:?}", ward.conditions());
}

#[test]
fn a_producer_that_hears_nothing_any_more_is_replaced_and_nothing_is_lost() {
    let ward = Ward::new();
    let job = ward.start(Vec::new());
    ward.send(readings(10));
    wait_until("the commit", || ward.committed_of_source() == Some(10));
    ward.is_deaf.store(true, Ordering::SeqCst);
    ward.send(readings(20));
    wait_until("another producer", || ward.committed_of_source() == Some(30));
    job.drain(PATIENCE).expect("everything is worked through");
    let statistics = job.statistics().clone();
    assert!(job.stop(), "all stages end");
    let summary = statistics.summary();
    assert_eq!((summary.outcomes["evaluated"], summary.restarts.get("normalize")), (30, Some(&1)), "{summary:?}");
    assert_eq!(summary.repeated, 20, "what the deaf one appended stands there already");
}

#[test]
fn a_source_made_anew_while_it_is_read_is_told_and_read_from_its_beginning() {
    let ward = Ward::new();
    ward.send(readings(10));
    let (sink, taken) = Pager::sink();
    let job = ward.start(vec![sink]);
    wait_until("the commit", || ward.committed_of_source() == Some(10));
    // The broker's time stamps have moved on, or nobody could tell old from new.
    std::thread::sleep(Duration::from_millis(5));
    ward.inner.recreate(SOURCE);
    ward.send(readings(9));
    let statistics = job.statistics().clone();
    wait_until("the new records", || statistics.summary().records == 19);
    let says_so = |alert: &Alert| {
        let content = &alert.data.content;
        content.rule.id == "technical/feed" && content.message.contains("made anew")
    };
    wait_until("the alert", || taken.lock().expect("not poisoned").iter().any(says_so));
    job.drain(PATIENCE).expect("everything is worked through");
    assert!(job.stop(), "all stages end");
    let summary = statistics.summary();
    assert_eq!((summary.outcomes["evaluated"], summary.repeated), (19, 0), "{summary:?}");
    assert_eq!(summary.restarts.keys().collect::<Vec<_>>(), ["normalize"]);
    assert_eq!(ward.committed_of_source(), Some(9));
}

#[test]
fn every_batch_names_the_normalizer_set() {
    let ward = Ward::new();
    ward.send(readings(20));
    finish(ward.start(Vec::new()));
    let hash = &Catalogue::builtin().hash;
    let batches = ward.canonical_records();
    let batches = batches.iter().filter(|record| matches!(canonical::read(record, hash), Ok(Canonical::Readings(_))));
    let names: Vec<&[u8]> = batches.map(canonical::normalizer).collect();
    assert!(!names.is_empty() && names.iter().all(|name| name.len() == 16 && *name == names[0]), "{names:?}");
}

#[test]
fn an_overload_is_told_before_alerts_are_late_and_ends_by_itself_with_everything_accounted_for() {
    let ward = Ward::new();
    ward.is_slow.store(true, Ordering::SeqCst);
    ward.send(readings(3_000));
    let (sink, taken) = Pager::sink();
    let job = ward.start(vec![sink]);
    let health = job.health().clone();
    let is_failing = || {
        let findings = health.findings();
        findings.iter().any(|told| told.key == "behind normalize" && told.finding.severity == Severity::Failing)
    };
    wait_until("the finding", is_failing);
    // No alert was late: the estimate says it.
    let says_so = |alert: &Alert| {
        alert.data.content.rule.id == "technical/budget" && alert.data.content.transition == TransitionKind::Raised
    };
    wait_until("the alert about the budget", || taken.lock().expect("not poisoned").iter().any(says_so));
    ward.is_slow.store(false, Ordering::SeqCst);
    job.drain(PATIENCE).expect("everything is worked through");
    wait_until("the end of the finding", || !health.stands("behind normalize"));
    let summary = finish(job);
    assert_eq!((summary.records, summary.readings), (3_000, 3_000));
    assert!(ward.conditions().iter().all(|told| told.detail.contains("pager")), "of a sink, never of a patient");
}

#[test]
fn a_pair_that_was_decided_late_is_withheld_although_its_clear_is_read_later() {
    const PAIRS: u32 = 300;
    let ward = Ward::new();
    let transition = |patient: u32, kind: TransitionKind, priority: Priority| {
        let now_us = SystemClock.now_us();
        let Alert { data, .. } = delivery(patient, 0).alert;
        let (mut content, mut measured) = (data.content, data.measured);
        (content.transition, content.priority) = (kind, priority);
        if kind == TransitionKind::Cleared {
            content.number = 1;
            content.id = format!("{}.1", content.episode);
        }
        (measured.delayed, measured.basis_us, measured.decided_us) = (true, now_us, now_us);
        let alert = Alert::new(content, measured);
        Outgoing {
            topic: topics().alerts,
            partition: 0,
            value: Some(serde_json::to_vec(&alert).expect("writes")),
            ..Outgoing::default()
        }
    };
    let priority = |patient: u32| if patient.is_multiple_of(100) { Priority::High } else { Priority::Medium };
    let of_all = |kind| (0..PAIRS).map(move |patient| transition(patient, kind, priority(patient)));
    ward.send(of_all(TransitionKind::Raised));
    ward.send(of_all(TransitionKind::Cleared));
    // Decided late as well, and not over.
    ward.send([transition(PAIRS, TransitionKind::Raised, Priority::Low)]);
    let (sink, taken) = Pager::sink();
    let summary = finish(ward.start(vec![sink]));
    let taken = taken.lock().expect("not poisoned");
    let mut patients: Vec<String> = taken
        .iter()
        .filter(|alert| alert.data.content.site == "conformance")
        .map(|alert| alert.data.content.patient.clone())
        .collect();
    patients.sort();
    let high = (0..PAIRS).step_by(100).flat_map(|patient| [patient, patient]);
    let mut expected: Vec<String> = high.chain([PAIRS]).map(|patient| format!("conformance-{patient}")).collect();
    expected.sort();
    assert_eq!(patients, expected, "high priority always, and what is not over");
    assert_eq!(summary.withheld["pager"], u64::from(2 * (PAIRS - PAIRS / 100)));
}

// ---------------------------------------------------------------------------------------------------------------------
// The log of a ward
// ---------------------------------------------------------------------------------------------------------------------

impl Log for Ward {
    fn offsets(&self, topic: &str, partition: i32) -> Result<(i64, i64), LogError> {
        self.inner.offsets(topic, partition)
    }

    fn join(&self, membership: &Membership) -> Result<Box<dyn Member>, LogError> {
        let inner = self.inner.join(membership)?;
        match membership.topics.iter().any(|topic| topic == SOURCE) {
            true => Ok(Box::new(SlowMember { inner, is_slow: self.is_slow.clone() })),
            false => Ok(inner),
        }
    }

    fn prepare(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        self.inner.prepare(topics)
    }

    fn describe(&self, topic: &str) -> Result<(i32, StampedBy), LogError> {
        self.inner.describe(topic)
    }

    fn committed_with_metadata(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Committed>>, LogError> {
        self.inner.committed_with_metadata(group, partitions)
    }

    fn committed_by(
        &self,
        member: &GroupHandle,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Committed>>, LogError> {
        self.inner.committed_by(member, partitions)
    }

    fn delete_before(&self, topic: &str, partition: i32, offset: i64) -> Result<(), LogError> {
        self.inner.delete_before(topic, partition, offset)
    }

    fn appender(&self) -> Result<Box<dyn Appender>, LogError> {
        Ok(Box::new(DeafAppender { inner: self.inner.appender()?, becomes_deaf: self.is_deaf.clone(), is_deaf: false }))
    }

    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError> {
        self.inner.transactional(id)
    }

    fn outsider(&self, group: &str) -> Result<GroupHandle, LogError> {
        self.inner.outsider(group)
    }

    fn reader(
        &self,
        from: &TopicPartition,
        next_offset: i64,
        isolation: Isolation,
    ) -> Result<Box<dyn PartitionReader>, LogError> {
        self.inner.reader(from, next_offset, isolation)
    }
}

/// Once told, hears of nothing that it appends any more.
struct DeafAppender {
    inner: Box<dyn Appender>,
    becomes_deaf: Arc<AtomicBool>,
    is_deaf: bool,
}

impl Appender for DeafAppender {
    fn append(&mut self, record: &Outgoing, token: u64) -> Result<(), LogError> {
        self.is_deaf |= record.topic == topics().canonical && self.becomes_deaf.swap(false, Ordering::SeqCst);
        self.inner.append(record, token)
    }

    fn outcomes(&mut self, wait: Duration, outcomes: &mut Vec<(u64, Result<Appended, LogError>)>) {
        self.inner.outcomes(wait, outcomes);
        if self.is_deaf {
            outcomes.clear();
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
}

/// While it is slow, about 40 records a second.
struct SlowMember {
    inner: Box<dyn Member>,
    is_slow: Arc<AtomicBool>,
}

impl Member for SlowMember {
    fn read(
        &mut self,
        max: usize,
        wait: Duration,
        records: &mut Vec<(TopicPartition, Record)>,
    ) -> Result<(), LogError> {
        if !self.is_slow.load(Ordering::SeqCst) {
            return self.inner.read(max, wait, records);
        }
        std::thread::sleep(Duration::from_millis(25));
        self.inner.read(1, wait, records)
    }

    fn events(&mut self, wait: Duration) -> Result<Vec<MemberEvent>, LogError> {
        self.inner.events(wait)
    }

    fn start(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        self.inner.start(positions)
    }

    fn start_split(&mut self, positions: &[(TopicPartition, i64)]) -> Result<Vec<Box<dyn PartitionReader>>, LogError> {
        self.inner.start_split(positions)
    }

    fn stop(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.inner.stop(partitions)
    }

    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<i64>>, LogError> {
        self.inner.committed(partitions)
    }

    fn commit(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        self.inner.commit(positions)
    }

    fn committed_with_metadata(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<Committed>>, LogError> {
        self.inner.committed_with_metadata(partitions)
    }

    fn commit_with_metadata(&mut self, positions: &[(TopicPartition, Committed)]) -> Result<(), LogError> {
        self.inner.commit_with_metadata(positions)
    }

    fn pause(&mut self, paused: bool) -> Result<(), LogError> {
        self.inner.pause(paused)
    }

    fn group(&self) -> GroupHandle {
        self.inner.group()
    }

    fn leave(self: Box<Self>) {
        self.inner.leave();
    }
}
