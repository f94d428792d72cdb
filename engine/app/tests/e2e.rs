//! The whole job end to end, on the in-memory log and on a real Kafka: readings in, alerts out.

use std::collections::{BTreeMap, HashSet};
use std::future::ready;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wardbell::pipeline::{Job, JobSettings, SinkSettings, Summary, Topics, replay};
use wardbell::sets::{ControlTopic, Document};
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::kafka::KafkaLog;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{Log, Outgoing, Remedy, StampedBy, TopicSpec};
use wardbell_connectors::sink::{Delivering, Delivery, Identity, Sink};
use wardbell_core::partition::Settings;
use wardbell_kafka_server as server;
use wardbell_rules::packs;
use wardbell_schemas::alert::{ALERT_SCHEMA, Alert, Content, TransitionKind, content_bytes};

const PATIENCE: Duration = Duration::from_secs(60);
/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;

/// Every scenario, on both logs.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod on_memory { $(#[test] fn $name() { super::$name(std::sync::Arc::new(super::MemoryLog::new(std::sync::Arc::new(super::SystemClock)))); })* }
        mod on_kafka {
            $(#[test] fn $name() {
                if let Some(log) = super::kafka(stringify!($name)) {
                    super::$name(log);
                }
            })*
        }
    };
}

both!(
    a_recording_with_record_time_gives_the_same_bytes_twice_and_offline,
    a_live_run_over_several_partitions_is_given_again_by_its_canonical_log,
    poison_ends_in_the_dead_letter_topic_and_good_readings_go_on,
    a_job_that_starts_again_goes_on_without_repeating_or_losing_an_alert,
    a_failing_sink_delays_only_itself,
);

fn kafka(test: &str) -> Option<Arc<dyn Log>> {
    let bootstrap = server::bootstrap(test)?.to_owned();
    let options = BTreeMap::from([("bootstrap.servers".to_owned(), bootstrap)]);
    Some(Arc::new(KafkaLog::new(options).expect("the options are valid")))
}

/// Topics of one test, all fresh.
fn topics(partitions: i32) -> Topics {
    let name = server::fresh("e2e");
    Topics::named(&name, vec![format!("{name}.source")], partitions)
}

fn make_source(log: &dyn Log, topics: &Topics, partitions: i32, stamped_by: StampedBy) {
    let spec = TopicSpec::of_others(&topics.source[0], partitions, stamped_by);
    log.prepare(&[spec]).expect("the source topic is made");
}

fn decision(record_clock: bool) -> Settings {
    Settings { record_clock, ..Settings::new("e2e") }
}

/// Keeps what it was given; refuses the first `failures` deliveries.
struct Collect {
    alerts: Arc<Mutex<Vec<Alert>>>,
    failures: u32,
}

impl Sink for Collect {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        if self.failures > 0 {
            self.failures -= 1;
            let source = std::io::Error::other("refused for the test");
            return Box::pin(ready(Err(wardbell_connectors::sink::SinkError::Io {
                step: "collecting".to_owned(),
                source,
            })));
        }
        let mut alerts = self.alerts.lock().expect("not poisoned");
        alerts.extend(deliveries.iter().map(|delivery| delivery.alert.clone()));
        Box::pin(ready(Ok(())))
    }
}

fn sink(name: &str, failures: u32) -> (SinkSettings, Arc<Mutex<Vec<Alert>>>) {
    let alerts = Arc::new(Mutex::new(Vec::new()));
    let lane: Box<dyn Sink> = Box::new(Collect { alerts: alerts.clone(), failures });
    (SinkSettings { name: name.to_owned(), identity: Identity::Full, lanes: vec![lane] }, alerts)
}

fn start(log: &Arc<dyn Log>, topics: &Topics, record_clock: bool, sinks: Vec<SinkSettings>) -> Job {
    let settings = JobSettings {
        commit_every: Duration::from_millis(500),
        tick_every: Duration::from_millis(200),
        sinks,
        ..JobSettings::new(
            &format!("{}.job", topics.canonical),
            topics.clone(),
            Document::new(&packs::adult_ward(), &decision(record_clock)),
        )
    };
    Job::start(settings, log.clone(), Arc::new(SystemClock)).expect("the job starts")
}

fn finish(job: Job) -> Summary {
    job.drain(PATIENCE).expect("everything is worked through");
    let statistics = job.statistics().clone();
    assert!(job.stop(), "all stages end");
    let summary = statistics.summary();
    assert!(summary.adds_up(), "{summary:?}");
    assert_eq!(summary.unreadable, 0);
    summary
}

fn contents(log: &dyn Log, topics: &Topics) -> Vec<Vec<Content>> {
    let alerts = replay::alerts(log, &topics.alerts).expect("the alerts can be read");
    alerts.into_iter().map(|partition| partition.into_iter().map(|alert| alert.data.content).collect()).collect()
}

/// What the canonical log and the published sets say without the live run.
fn offline(log: &Arc<dyn Log>, topics: &Topics) -> Vec<Vec<Content>> {
    let sets = ControlTopic::new(log.clone(), &topics.control);
    replay::canonical_log(&**log, &topics.canonical, &sets).expect("replays").partitions
}

fn bytes(contents: &[Vec<Content>]) -> Vec<Vec<Vec<u8>>> {
    contents.iter().map(|partition| partition.iter().map(content_bytes).collect()).collect()
}

fn send(log: &dyn Log, records: &[Outgoing]) {
    let mut appender = log.appender().expect("an appender");
    let mut outcomes = Vec::new();
    for (token, record) in records.iter().enumerate() {
        appender.append(record, token as u64).expect("taken");
    }
    let deadline = Instant::now() + PATIENCE;
    while outcomes.len() < records.len() && Instant::now() < deadline {
        appender.outcomes(Duration::from_millis(10), &mut outcomes);
    }
    assert_eq!(outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count(), records.len());
}

fn reading(topics: &Topics, partition: i32, patient: &str, event_us: i64, spo2: i64, stamp: bool) -> Outgoing {
    let time = wardbell_schemas::alert::print_time(event_us);
    let json = format!(
        r#"{{"patient":"{patient}","device":"mon-{patient}","time":"{time}","readings":[{{"signal":"spo2","value":{spo2},"unit":"%"}},{{"signal":"HR","value":80,"unit":"bpm"}}]}}"#
    );
    Outgoing {
        topic: topics.source[0].clone(),
        partition,
        key: Some(patient.as_bytes().to_vec()),
        value: Some(json.into_bytes()),
        headers: Vec::new(),
        time_us: stamp.then_some(event_us),
    }
}

/// A second-by-second recording: saturation of some patients falls and recovers, one falls silent.
fn recording(topics: &Topics) -> Vec<Outgoing> {
    let mut records = Vec::new();
    for second in 0..240 {
        for patient in 0..6 {
            let low = (40..120).contains(&second) && patient % 2 == 0;
            if patient == 5 && second > 60 {
                continue;
            }
            let event_us = START_US + second * 1_000_000 + patient * 1_000;
            records.push(reading(topics, 0, &format!("p{patient}"), event_us, if low { 80 } else { 96 }, true));
        }
    }
    records
}

/// The bedside recording, if it is there: one record a minute.
fn bedside(topics: &Topics) -> Option<Vec<Outgoing>> {
    let named = std::env::var_os("WARDBELL_DATA").map(PathBuf::from);
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let file = named.unwrap_or(beside).join("bedside_numerics_3975656n.csv");
    let text = std::fs::read_to_string(file).ok()?;
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next()?.split(',').skip(1).collect();
    let mut records = Vec::new();
    for line in lines {
        let mut cells = line.split(',');
        let minute: i64 = cells.next()?.parse().ok()?;
        let readings: Vec<String> = names
            .iter()
            .zip(cells)
            .map(|(name, cell)| {
                let (label, unit) = name.split_once(" (").unwrap_or((name, ")"));
                let value = if cell.is_empty() { "null" } else { cell };
                format!(r#"{{"signal":"{label}","value":{value},"unit":"{}"}}"#, unit.trim_end_matches(')'))
            })
            .collect();
        let event_us = START_US + minute * 60_000_000;
        let time = wardbell_schemas::alert::print_time(event_us);
        let json = format!(r#"{{"patient":"b1","device":"m1","time":"{time}","readings":[{}]}}"#, readings.join(","));
        records.push(Outgoing {
            topic: topics.source[0].clone(),
            partition: 0,
            key: Some(b"b1".to_vec()),
            value: Some(json.into_bytes()),
            headers: Vec::new(),
            time_us: Some(event_us),
        });
    }
    Some(records)
}

fn a_recording_with_record_time_gives_the_same_bytes_twice_and_offline(log: Arc<dyn Log>) {
    let run = |with: &dyn Fn(&Topics) -> Vec<Outgoing>| {
        let topics = topics(3);
        make_source(&*log, &topics, 1, StampedBy::Producer);
        let records = with(&topics);
        send(&*log, &records);
        let (collect, seen) = sink("collect", 0);
        let summary = finish(start(&log, &topics, true, vec![collect]));
        assert_eq!(summary.records, records.len() as u64);
        let found = contents(&*log, &topics);
        assert_eq!(bytes(&offline(&log, &topics)), bytes(&found), "the offline run says the same");
        let n_seen = seen.lock().expect("not poisoned").len();
        assert_eq!(n_seen, found.iter().map(Vec::len).sum::<usize>(), "the sink has seen everything");
        found
    };
    let (first, second) = (run(&recording), run(&recording));
    assert_eq!(bytes(&first), bytes(&second));
    let all: Vec<&Content> = first.iter().flatten().collect();
    let count = |rule: &str, kind| all.iter().filter(|c| c.rule.id == rule && c.transition == kind).count();
    assert_eq!(count("spo2-low", TransitionKind::Raised), 3, "patients 0, 2 and 4");
    assert_eq!(count("spo2-low", TransitionKind::Cleared), 3);
    assert_eq!(count("technical/stale", TransitionKind::Raised), 2, "both signals of patient 5");
    if let Some(file) = bedside(&topics(1)) {
        assert!(file.len() > 1_000);
        let found = run(&|topics| bedside(topics).expect("it was there a moment ago"));
        let of_zero = |content: &&Content| {
            content.rule.id.starts_with("spo2") && content.evidence.iter().any(|e| e.value == Some(0.0))
        };
        assert_eq!(found.iter().flatten().filter(of_zero).count(), 0, "a zero is not a measurement");
        assert!(found.iter().flatten().any(|content| !content.rule.id.starts_with("technical/")));
    } else {
        eprintln!("skipped: no recording (set WARDBELL_DATA)");
    }
}

fn a_live_run_over_several_partitions_is_given_again_by_its_canonical_log(log: Arc<dyn Log>) {
    let topics = topics(4);
    make_source(&*log, &topics, 3, StampedBy::Broker);
    let (collect, seen) = sink("collect", 0);
    let job = start(&log, &topics, false, vec![collect]);
    let schema: serde_json::Value = serde_json::from_str(ALERT_SCHEMA).expect("the schema is JSON");
    // Clocks of eight devices run at hospital time; the saturation of half of them is low from the beginning, so that the
    // rule without a mean raises within its hold of five seconds.
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < Duration::from_secs(8) {
        let now = wardbell_connectors::clock::Clock::now_us(&SystemClock);
        let records: Vec<Outgoing> = (0..8)
            .map(|p| reading(&topics, p % 3, &format!("p{p}"), now, if p % 2 == 0 { 70 } else { 97 }, false))
            .collect();
        send(&*log, &records);
        sent += records.len() as u64;
        std::thread::sleep(Duration::from_millis(500));
    }
    let summary = finish(job);
    assert_eq!((summary.records, summary.readings), (sent, 2 * sent));
    let found = contents(&*log, &topics);
    let raised =
        found.iter().flatten().filter(|c| c.rule.id == "spo2-very-low" && c.transition == TransitionKind::Raised);
    assert_eq!(raised.count(), 4);
    assert_eq!(bytes(&offline(&log, &topics)), bytes(&found));
    let required: Vec<&str> = schema["properties"]["data"]["required"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|f| f.as_str())
        .collect();
    for alert in seen.lock().expect("not poisoned").iter() {
        let json = serde_json::to_value(alert).expect("writes");
        assert!(required.iter().all(|field| json["data"].get(field).is_some()), "{json}");
    }
    assert!(summary.budget_ok, "{summary:?}");
}

fn poison_ends_in_the_dead_letter_topic_and_good_readings_go_on(log: Arc<dyn Log>) {
    let topics = topics(2);
    make_source(&*log, &topics, 1, StampedBy::Producer);
    let mut records = Vec::new();
    for second in 0..30 {
        records.push(reading(&topics, 0, "good", START_US + second * 1_000_000, 70, true));
        let poison = |value: Option<&[u8]>| Outgoing {
            value: value.map(<[u8]>::to_vec),
            ..reading(&topics, 0, "bad", START_US + second * 1_000_000, 70, true)
        };
        match second {
            3 => records.push(poison(Some(b"{\"patient\":\"Jane"))),
            5 => records.push(poison(Some(b"\xff\xfe\x00"))),
            7 => records.push(poison(None)),
            9 => records.push(poison(Some(
                br#"{"patient":"x","device":"d","time":"2026-01-01T00:00:09Z","signal":"XYZ9","value":1}"#,
            ))),
            11 => records.push(poison(Some(
                br#"{"patient":"x","device":"d","time":"yesterday","signal":"spo2","value":90,"unit":"%"}"#,
            ))),
            13 => records.push(poison(Some(b"[]"))),
            _ => {}
        }
    }
    send(&*log, &records);
    let (collect, _) = sink("collect", 0);
    let summary = finish(start(&log, &topics, true, vec![collect]));
    assert_eq!((summary.records, summary.readings), (36, 66));
    assert_eq!(
        (summary.outcomes["quarantined"], summary.outcomes["ignored"], summary.outcomes["evaluated"]),
        (5, 1, 60)
    );
    let raised = contents(&*log, &topics);
    assert!(raised.iter().flatten().any(|content| content.rule.id == "spo2-very-low" && content.patient == "good"));
    let from = wardbell_connectors::log::TopicPartition::new(&topics.dead_letters, 0);
    let isolation = wardbell_connectors::log::Isolation::ReadCommitted;
    let mut reader = log.reader(&from, 0, isolation).expect("a reader");
    let mut letters = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while letters.len() < 5 && Instant::now() < deadline {
        reader.read(100, Duration::from_millis(50), &mut letters).expect("reads");
    }
    let reasons: Vec<String> = letters
        .iter()
        .map(|letter| {
            let text = String::from_utf8(letter.value.clone().expect("a value")).expect("text");
            assert!(!text.contains("Jane"), "no content of the record: {text}");
            let letter: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(letter["topic"], topics.source[0].as_str());
            format!(
                "{} {} {}",
                letter["offset"],
                letter["reason"].as_str().unwrap_or(""),
                letter["field"].as_str().unwrap_or("")
            )
        })
        .collect();
    assert_eq!(
        reasons,
        ["4 E_PARSE ", "7 E_PARSE ", "13 E_LABEL_UNKNOWN signal", "16 E_TIME_PARSE time", "19 E_PARSE "]
    );
}

fn a_job_that_starts_again_goes_on_without_repeating_or_losing_an_alert(log: Arc<dyn Log>) {
    let topics = topics(2);
    make_source(&*log, &topics, 1, StampedBy::Producer);
    let seconds = |range: std::ops::Range<i64>, spo2: i64| -> Vec<Outgoing> {
        range.map(|second| reading(&topics, 0, "p", START_US + second * 1_000_000, spo2, true)).collect()
    };
    send(&*log, &seconds(0..8, 70));
    let (collect, first) = sink("collect", 0);
    finish(start(&log, &topics, true, vec![collect]));
    send(&*log, &seconds(8..65, 70));
    let (collect, second) = sink("collect", 0);
    let summary = finish(start(&log, &topics, true, vec![collect]));
    assert_eq!(summary.records, 57, "what was committed is not read again");
    let seen: Vec<Alert> = first
        .lock()
        .expect("not poisoned")
        .iter()
        .chain(second.lock().expect("not poisoned").iter())
        .cloned()
        .collect();
    let ids: HashSet<&str> = seen.iter().map(|alert| alert.id.as_str()).collect();
    assert_eq!(ids.len(), seen.len(), "no id twice");
    // Windows, holds and open episodes survive.
    let raised = |rule: &str| -> Vec<i64> {
        let of_rule = seen.iter().map(|alert| &alert.data.content).filter(|content| content.rule.id == rule);
        of_rule
            .filter(|content| content.transition == TransitionKind::Raised)
            .map(|content| (content.at - START_US) / 1_000_000)
            .collect()
    };
    assert_eq!(raised("spo2-very-low"), [5], "raised once, and open ever since");
    assert_eq!(raised("spo2-low"), [10], "a hold of 10 s that was pending when the job stopped");
}

fn a_failing_sink_delays_only_itself(log: Arc<dyn Log>) {
    let topics = topics(1);
    make_source(&*log, &topics, 1, StampedBy::Producer);
    let records: Vec<Outgoing> =
        (0..20).map(|second| reading(&topics, 0, "p", START_US + second * 1_000_000, 70, true)).collect();
    send(&*log, &records);
    let ((failing, late), (working, early)) = (sink("failing", 2), sink("working", 0));
    let summary = finish(start(&log, &topics, true, vec![failing, working]));
    assert!(summary.sink_failures["failing"] >= 2, "{summary:?}");
    let ids = |alerts: &Arc<Mutex<Vec<Alert>>>| -> Vec<String> {
        alerts.lock().expect("not poisoned").iter().map(|alert| alert.id.clone()).collect()
    };
    assert!(!ids(&early).is_empty());
    assert_eq!(ids(&late), ids(&early), "nothing is lost, nothing comes twice");
}

#[test]
fn a_broker_that_does_not_answer_is_named_with_the_remedy() {
    // A port nobody listens on: bound for a moment to find one that is free.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let address = format!("127.0.0.1:{port}");
    let options = BTreeMap::from([("bootstrap.servers".to_owned(), address.clone())]);
    let log = KafkaLog::new(options).expect("the options are valid");
    let error = log.describe("devices").expect_err("nobody answers");
    assert_eq!(error.remedy, Remedy::Retry);
    let text = error.to_string();
    assert!(text.contains(&address) && text.contains("kafka.bootstrap_servers"), "{text}");
}

#[test]
fn options_that_would_break_a_promise_are_refused() {
    let with = |name: &str, value: &str| {
        let options = [("bootstrap.servers", "127.0.0.1:9092"), (name, value)];
        KafkaLog::new(options.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
            .err()
            .map(|e| e.to_string())
    };
    assert!(with("enable.idempotence", "false").is_some_and(|text| text.contains("set by the engine")));
    assert!(with("no.such.option", "1").is_some_and(|text| text.contains("no.such.option")));
    assert_eq!(with("client.id", "a"), None);
}
