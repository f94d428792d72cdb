//! The deliver stage under sinks that fail, reject, hang and panic: whose turn it is, what is lost (nothing), what comes
//! twice.

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use wardbell::pipeline::{Job, JobSettings, SinkSettings, Summary, Topics, topic_specs};
use wardbell::sets::Document;
use wardbell_connectors::clock::{Clock, SystemClock};
use wardbell_connectors::conformance::sink::delivery;
use wardbell_connectors::log::kafka::KafkaLog;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{Isolation, Log, Outgoing, TopicPartition};
use wardbell_connectors::sink::{Delivering, Delivery, Identity, Sink, SinkError};
use wardbell_core::partition::Settings;
use wardbell_kafka_server as server;
use wardbell_rules::packs;
use wardbell_schemas::alert::{Alert, CANARY_TYPE, Priority, TransitionKind};

const PATIENCE: Duration = Duration::from_secs(60);

/// A log with the topics of a job.
struct Ward {
    log: Arc<dyn Log>,
    topics: Topics,
}

impl Ward {
    fn new(log: Arc<dyn Log>, partitions: i32) -> Self {
        let name = server::fresh("deliver");
        let topics =
            Topics { create_source: Some(1), ..Topics::named(&name, vec![format!("{name}.source")], partitions) };
        log.prepare(&topic_specs(&topics)).expect("the topics are made");
        Self { log, topics }
    }

    fn on_memory(partitions: i32) -> Self {
        Self::new(Arc::new(MemoryLog::new(Arc::new(SystemClock))), partitions)
    }

    /// Appends alerts; those of a patient stay in one partition.
    fn send(&self, alerts: &[Alert]) {
        let mut appender = self.log.appender().expect("an appender");
        for (token, alert) in (0..).zip(alerts) {
            let patient = &alert.data.content.patient;
            let number: i32 = patient.trim_start_matches("conformance-").parse().expect("an invented patient");
            let record = Outgoing {
                topic: self.topics.alerts.clone(),
                partition: number % self.topics.partitions,
                key: Some(patient.as_bytes().to_vec()),
                value: Some(serde_json::to_vec(alert).expect("writes")),
                ..Outgoing::default()
            };
            appender.append(&record, token).expect("taken");
        }
        let (mut outcomes, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while outcomes.len() < alerts.len() && Instant::now() < deadline {
            appender.outcomes(Duration::from_millis(10), &mut outcomes);
        }
        assert_eq!(outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count(), alerts.len());
    }

    fn start(&self, sinks: Vec<SinkSettings>) -> Job {
        self.start_with(sinks, false)
    }

    fn start_with(&self, sinks: Vec<SinkSettings>, record_only: bool) -> Job {
        let decision = Settings::new("deliver");
        let settings = JobSettings {
            commit_every: Duration::from_millis(500),
            tick_every: Duration::from_millis(200),
            sinks,
            record_only,
            ..JobSettings::new(
                &format!("{}.job", self.topics.canonical),
                self.topics.clone(),
                Document::new(&packs::adult_ward(), &decision),
            )
        };
        Job::start(settings, self.log.clone(), Arc::new(SystemClock)).expect("the job starts")
    }
}

fn kafka(test: &str) -> Option<Arc<dyn Log>> {
    let bootstrap = server::bootstrap(test)?.to_owned();
    let options = BTreeMap::from([("bootstrap.servers".to_owned(), bootstrap)]);
    Some(Arc::new(KafkaLog::new(options).expect("the options are valid")))
}

fn finish(job: Job) -> Summary {
    job.drain(PATIENCE).expect("everything is delivered");
    let statistics = job.statistics().clone();
    assert!(job.stop(), "all stages end");
    statistics.summary()
}

fn alert(patient: u32, number: u32, priority: Priority) -> Alert {
    let mut alert = delivery(patient, number).alert;
    alert.data.content.priority = priority;
    // As of now: an alert that reaches a sink late is itself told about.
    alert.data.measured.basis_us = SystemClock.now_us();
    alert
}

fn id(alert: &Alert) -> String {
    alert.id.clone()
}

type Behave = Box<dyn Fn(&Alert) -> Result<(), SinkError> + Send + Sync>;

/// The other side of a sink: takes what `behave` lets pass.
struct Receiver {
    behave: Behave,
    taken: Mutex<Vec<Alert>>,
}

impl Receiver {
    fn new(behave: impl Fn(&Alert) -> Result<(), SinkError> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { behave: Box::new(behave), taken: Mutex::default() })
    }

    fn willing() -> Arc<Self> {
        Self::new(|_| Ok(()))
    }

    /// A sink to it with so many lanes.
    fn sink(self: &Arc<Self>, name: &str, lanes: usize) -> SinkSettings {
        let lane = |_| Box::new(Lane(self.clone())) as Box<dyn Sink>;
        SinkSettings { name: name.to_owned(), identity: Identity::Full, lanes: (0..lanes).map(lane).collect() }
    }

    fn ids(&self) -> Vec<String> {
        let taken = self.taken.lock().expect("not poisoned");
        // What the engine says of itself is not of these tests.
        taken.iter().filter(|alert| alert.data.content.site == "conformance").map(id).collect()
    }

    fn wait_for(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.ids().len() < count {
            assert!(Instant::now() < deadline, "{count} alerts are waited for, these came: {:?}", self.ids());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

struct Lane(Arc<Receiver>);

impl Sink for Lane {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        assert_eq!(deliveries.len(), 1, "one at a time unless a sink asks for more");
        let outcome = (self.0.behave)(&deliveries[0].alert);
        if outcome.is_ok() {
            self.0.taken.lock().expect("not poisoned").push(deliveries[0].alert.clone());
        }
        Box::pin(ready(outcome))
    }
}

fn unavailable() -> SinkError {
    SinkError::Unavailable { step: "taking".to_owned(), what: "away for the test".to_owned(), retry_after: None }
}

fn of_patient(alert: &Alert, patient: u32) -> bool {
    alert.data.content.patient == format!("conformance-{patient}")
}

#[test]
fn high_overtakes_low_when_there_is_a_backlog() {
    let ward = Ward::on_memory(1);
    let mut alerts: Vec<Alert> = (0..20).map(|i| alert(i, 0, Priority::Low)).collect();
    alerts.extend([alert(3, 1, Priority::High), alert(30, 0, Priority::High)]);
    ward.send(&alerts);
    let receiver = Receiver::willing();
    finish(ward.start(vec![receiver.sink("pager", 1)]));
    // Patient 3's earlier alert moves up with its high one; the others keep their order.
    let first = [3, 20, 21];
    let rest = (0..20).filter(|i| *i != 3);
    let expected: Vec<String> = first.into_iter().chain(rest).map(|i| id(&alerts[i])).collect();
    assert_eq!(receiver.ids(), expected);
}

#[test]
fn every_patient_keeps_its_order_though_every_other_attempt_fails() {
    const SEED: u64 = 20_260_101;
    let ward = Ward::on_memory(4);
    let alerts: Vec<Alert> = (0..30).map(|i| alert(i % 6, i / 6, Priority::ALL[i as usize % 3])).collect();
    ward.send(&alerts);
    let random = Mutex::new(fastrand::Rng::with_seed(SEED));
    // Some of what fails was taken: the answer was lost.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let receiver = Receiver::new({
        let seen = seen.clone();
        move |alert| {
            let (fails, is_lost) = {
                let mut random = random.lock().expect("not poisoned");
                (random.bool(), random.bool())
            };
            if !fails || is_lost {
                seen.lock().expect("not poisoned").push(alert.clone());
            }
            if fails { Err(unavailable()) } else { Ok(()) }
        }
    });
    finish(ward.start(vec![receiver.sink("pager", 8)]));
    let seen = seen.lock().expect("not poisoned");
    for patient in 0..6 {
        let numbers: Vec<i64> =
            seen.iter().filter(|alert| of_patient(alert, patient)).map(|alert| alert.time / 1_000_000).collect();
        assert!(numbers.is_sorted(), "seed {SEED}, patient {patient}: {numbers:?}");
        let distinct: BTreeSet<i64> = numbers.into_iter().collect();
        assert_eq!(distinct, (0..5).collect(), "seed {SEED}, patient {patient}");
    }
    let acknowledged: BTreeSet<String> = receiver.ids().into_iter().collect();
    assert_eq!(acknowledged.len(), alerts.len());
    assert_eq!(receiver.ids().len(), alerts.len(), "what was acknowledged does not come again");
}

/// Takes patient 0's alerts only once it is let.
struct Patient0Waits {
    receiver: Arc<Receiver>,
    let_through: Arc<Semaphore>,
}

impl Sink for Patient0Waits {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        Box::pin(async move {
            if of_patient(&deliveries[0].alert, 0) {
                let _ = self.let_through.acquire().await;
            }
            Lane(self.receiver.clone()).deliver(deliveries).await
        })
    }
}

#[test]
fn a_patient_whose_delivery_takes_long_holds_back_nobody_else() {
    let ward = Ward::on_memory(2);
    let alerts: Vec<Alert> = (0..12).map(|i| alert(i % 3, i / 3, Priority::Medium)).collect();
    ward.send(&alerts);
    let (receiver, let_through) = (Receiver::willing(), Arc::new(Semaphore::new(0)));
    let lane = || Patient0Waits { receiver: receiver.clone(), let_through: let_through.clone() };
    let lanes: Vec<Box<dyn Sink>> = vec![Box::new(lane()), Box::new(lane())];
    let job = ward.start(vec![SinkSettings { name: "pager".to_owned(), identity: Identity::Full, lanes }]);
    receiver.wait_for(8);
    assert!(!receiver.taken.lock().expect("not poisoned").iter().any(|alert| of_patient(alert, 0)));
    let_through.add_permits(100);
    finish(job);
    assert_eq!(receiver.ids().len(), 12);
}

#[test]
fn a_sink_that_fails_stops_no_other_and_loses_nothing() {
    let ward = Ward::on_memory(2);
    let alerts: Vec<Alert> = (0..10).map(|i| alert(i % 4, i / 4, Priority::High)).collect();
    ward.send(&alerts);
    let works = Arc::new(AtomicBool::new(false));
    let broken = Receiver::new({
        let works = works.clone();
        move |_| if works.load(Ordering::SeqCst) { Ok(()) } else { Err(unavailable()) }
    });
    let working = Receiver::willing();
    let job = ward.start(vec![broken.sink("broken", 8), working.sink("working", 8)]);
    let told = |stands: bool| {
        let deadline = Instant::now() + PATIENCE;
        while job.health().stands("sink/broken") != stands {
            assert!(Instant::now() < deadline, "health does not say whether the sink fails");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    working.wait_for(alerts.len());
    told(true);
    assert!(!job.health().stands("sink/working"));
    assert_eq!(broken.ids(), Vec::<String>::new());
    works.store(true, Ordering::SeqCst);
    broken.wait_for(alerts.len());
    told(false);
    let summary = finish(job);
    assert_eq!(summary.sink_failures.keys().collect::<Vec<_>>(), ["broken"]);
    for receiver in [broken, working] {
        assert_eq!(receiver.ids().len(), alerts.len(), "nothing comes twice");
        assert_eq!(receiver.ids().into_iter().collect::<BTreeSet<_>>(), alerts.iter().map(id).collect());
    }
}

#[test]
fn a_sink_that_panics_fails_and_goes_on() {
    let ward = Ward::on_memory(1);
    let alerts: Vec<Alert> = (0..3).map(|i| alert(0, i, Priority::High)).collect();
    ward.send(&alerts);
    let attempts = AtomicU32::new(0);
    let receiver = Receiver::new(move |_| {
        assert!(attempts.fetch_add(1, Ordering::SeqCst) >= 2, "on purpose, for the test");
        Ok(())
    });
    let summary = finish(ward.start(vec![receiver.sink("pager", 1)]));
    assert_eq!(receiver.ids(), alerts.iter().map(id).collect::<Vec<_>>());
    assert_eq!(summary.sink_failures["pager"], 2);
}

/// On both logs: what is kept beside the committed offset is the log's work too.
fn a_restart_repeats_nothing_that_was_acknowledged_out_of_order(log: Arc<dyn Log>) {
    let ward = Ward::new(log, 2);
    let alerts: Vec<Alert> = (0..40).map(|i| alert(i % 4, i / 4, Priority::Low)).collect();
    ward.send(&alerts);
    let of_0: Vec<String> = alerts.iter().filter(|alert| of_patient(alert, 0)).map(id).collect();
    let refuses_0 = Receiver::new(|alert| if of_patient(alert, 0) { Err(unavailable()) } else { Ok(()) });
    let job = ward.start(vec![refuses_0.sink("pager", 8)]);
    refuses_0.wait_for(alerts.len() - of_0.len());
    assert!(job.stop(), "all stages end");
    let willing = Receiver::willing();
    finish(ward.start(vec![willing.sink("pager", 8)]));
    assert_eq!(willing.ids(), of_0, "only what was not acknowledged comes, in its order");
}

#[test]
fn a_restart_repeats_nothing_that_was_acknowledged_out_of_order_on_memory() {
    a_restart_repeats_nothing_that_was_acknowledged_out_of_order(Arc::new(MemoryLog::new(Arc::new(SystemClock))));
}

#[test]
fn a_restart_repeats_nothing_that_was_acknowledged_out_of_order_on_kafka() {
    if let Some(log) = kafka("a_restart_repeats_nothing_that_was_acknowledged_out_of_order_on_kafka") {
        a_restart_repeats_nothing_that_was_acknowledged_out_of_order(log);
    }
}

#[test]
fn an_alert_that_is_rejected_for_good_is_set_aside_and_the_next_goes() {
    let ward = Ward::on_memory(1);
    let alerts: Vec<Alert> = (0..3).map(|i| alert(7, i, Priority::High)).collect();
    ward.send(&alerts);
    let poison = id(&alerts[1]);
    let rejects = Receiver::new({
        let poison = poison.clone();
        move |alert| {
            if alert.id != poison {
                return Ok(());
            }
            Err(SinkError::Rejected { step: "taking".to_owned(), what: "too long".to_owned() })
        }
    });
    let summary = finish(ward.start(vec![rejects.sink("pager", 8)]));
    let of_patient: Vec<String> =
        rejects.ids().into_iter().filter(|known| alerts.iter().any(|a| id(a) == *known)).collect();
    assert_eq!(of_patient, [id(&alerts[0]), id(&alerts[2])]);
    assert_eq!(summary.set_aside["pager"], 1);
    // It is set aside once others were taken meanwhile: a receiver that rejects everything is broken, not the alert.
    assert!(summary.sink_failures["pager"] >= 5, "{:?}", summary.sink_failures);
    let from = TopicPartition::new(&ward.topics.dead_letters, 0);
    let mut reader = ward.log.reader(&from, 0, Isolation::ReadCommitted).expect("a reader");
    let mut letters = Vec::new();
    reader.read(10, Duration::from_millis(200), &mut letters).expect("reads");
    let [letter] = &letters[..] else { panic!("one dead letter: {letters:?}") };
    let text = String::from_utf8(letter.value.clone().expect("a value")).expect("text");
    assert!(!text.contains("conformance-7"), "no patient: {text}");
    let letter: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((letter["topic"].as_str(), letter["offset"].as_i64()), (Some(ward.topics.alerts.as_str()), Some(1)));
    assert_eq!((letter["reason"].as_str(), letter["sink"].as_str()), (Some("E_SINK_REJECTED"), Some("pager")));
    assert_eq!(letter["alert"].as_str(), Some(poison.as_str()));
}

/// Keeps a record and notifies nobody.
struct Record(Arc<Receiver>);

impl Sink for Record {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        let alerts = deliveries.iter().map(|delivery| delivery.alert.clone());
        self.0.taken.lock().expect("not poisoned").extend(alerts);
        Box::pin(ready(Ok(())))
    }

    fn batch_max(&self) -> usize {
        7
    }

    fn notifies(&self) -> bool {
        false
    }
}

fn record(receiver: &Arc<Receiver>) -> SinkSettings {
    let lanes: Vec<Box<dyn Sink>> = vec![Box::new(Record(receiver.clone()))];
    SinkSettings { name: "record".to_owned(), identity: Identity::Full, lanes }
}

#[test]
fn a_job_that_only_records_notifies_nobody_and_still_keeps_its_record() {
    let ward = Ward::on_memory(1);
    let alerts: Vec<Alert> = (0..20).map(|i| alert(i % 3, i / 3, Priority::High)).collect();
    ward.send(&alerts);
    let (pager, file) = (Receiver::willing(), Receiver::willing());
    let job = ward.start_with(vec![pager.sink("pager", 8), record(&file)], true);
    assert!(job.health().stands("record-only"));
    let summary = finish(job);
    assert_eq!(pager.ids(), Vec::<String>::new());
    assert_eq!(file.ids(), alerts.iter().map(id).collect::<Vec<_>>(), "in the order of the log");
    assert_eq!(summary.withheld_record_only, BTreeMap::from([("pager".to_owned(), 20)]));
    // Switched off again, what was passed over does not come after all.
    ward.send(&[alert(1, 100, Priority::High)]);
    let pager = Receiver::willing();
    finish(ward.start(vec![pager.sink("pager", 8)]));
    assert_eq!(pager.ids().len(), 1);
}

#[test]
fn what_was_decided_late_and_is_over_is_told_to_nobody_and_kept_on_record() {
    let ward = Ward::on_memory(1);
    let late = |patient, number, priority, transition| {
        let mut alert = alert(patient, number, priority);
        alert.data.measured.delayed = true;
        let content = &mut alert.data.content;
        (content.transition, content.episode) = (transition, format!("episode of {patient}"));
        alert
    };
    use TransitionKind::{Cleared, Raised};
    let alerts = [
        late(0, 0, Priority::Medium, Raised),
        late(1, 0, Priority::High, Raised),
        late(2, 0, Priority::Medium, Raised),
        late(0, 1, Priority::Medium, Cleared),
        late(1, 1, Priority::High, Cleared),
    ];
    ward.send(&alerts);
    let (pager, file) = (Receiver::willing(), Receiver::willing());
    let summary = finish(ward.start(vec![pager.sink("pager", 1), record(&file)]));
    assert_eq!(pager.ids(), [&alerts[1], &alerts[4], &alerts[2]].map(id), "high first, the untold not at all");
    assert_eq!(file.ids(), alerts.each_ref().map(id));
    assert_eq!(summary.withheld, BTreeMap::from([("pager".to_owned(), 2)]));
}

#[test]
fn a_canary_takes_its_place_and_is_shown_to_nobody() {
    let ward = Ward::on_memory(1);
    let mut alerts: Vec<Alert> = (0..4).map(|i| alert(0, i, Priority::Low)).collect();
    alerts[1].event_type = CANARY_TYPE.to_owned();
    alerts[3].event_type = CANARY_TYPE.to_owned();
    ward.send(&alerts);
    let (pager, file) = (Receiver::willing(), Receiver::willing());
    finish(ward.start(vec![pager.sink("pager", 8), record(&file)]));
    let shown = [&alerts[0], &alerts[2]].map(id);
    assert_eq!((pager.ids(), file.ids()), (shown.to_vec(), shown.to_vec()));
}

#[test]
fn two_instances_deliver_everything_between_them() {
    let ward = Ward::on_memory(4);
    let receiver = Receiver::willing();
    let alerts: Vec<Alert> = (0..400).map(|i| alert(i % 20, i / 20, Priority::ALL[i as usize % 3])).collect();
    let (early, late) = alerts.split_at(200);
    ward.send(early);
    let first = ward.start(vec![receiver.sink("pager", 4)]);
    receiver.wait_for(50);
    let second = ward.start(vec![receiver.sink("pager", 4)]);
    ward.send(late);
    receiver.wait_for(400);
    assert!(first.stop(), "all stages end");
    finish(second);
    let distinct: BTreeSet<String> = receiver.ids().into_iter().collect();
    assert_eq!(distinct, alerts.iter().map(id).collect());
}
