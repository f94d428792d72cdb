//! What a job tells of itself over HTTP: liveness, readiness, health, metrics and the API, on the in-memory log.

use std::collections::BTreeMap;
use std::future::ready;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use wardbell::health::Limits;
use wardbell::http::{Server, Token};
use wardbell::pipeline::{Job, JobSettings, SinkSettings, Topics};
use wardbell::sets::Document;
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{Log, Outgoing, StampedBy, TopicSpec};
use wardbell_connectors::sink::{Delivering, Delivery, Identity, Sink, SinkError};
use wardbell_core::partition::Settings;
use wardbell_rules::packs;

const PATIENCE: Duration = Duration::from_secs(60);
/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;
const TOKEN: &str = "correct-horse-battery-staple";
/// Part of every identifier and label that must not be told.
const TELLTALE: &str = "TELLTALE";
const OPEN: [&str; 5] = ["/livez", "/readyz", "/healthz", "/metrics", "/latency.hgrm?stage=total"];

/// An answer: status, head and body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

fn get_with(address: SocketAddr, path: &str, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: wardbell\r\nConnection: close\r\n{headers}\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

fn get(address: SocketAddr, path: &str) -> Answer {
    get_with(address, path, "")
}

/// Asks until the answer is as wanted.
fn wait_for(address: SocketAddr, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = get(address, path);
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{path} still says {} {}", answer.status, answer.body);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Takes every alert, or none.
struct Pager {
    works: bool,
}

impl Sink for Pager {
    fn deliver<'a>(&'a mut self, _deliveries: &'a [Delivery]) -> Delivering<'a> {
        let source = std::io::Error::other("out of paper");
        let answer = if self.works { Ok(()) } else { Err(SinkError::Io { step: "paging".to_owned(), source }) };
        Box::pin(ready(answer))
    }
}

/// A job on the in-memory log with a server that tells of it.
struct Ward {
    log: Arc<dyn Log>,
    topics: Topics,
    job: Job,
    server: Server,
}

impl Ward {
    fn new(log: Arc<dyn Log>, works: bool, token: Option<&str>) -> Self {
        let topics = Topics::named("ward", vec!["devices".to_owned()], 2);
        let source = TopicSpec::of_others(&topics.source[0], 1, StampedBy::Producer);
        log.prepare(&[source]).expect("the source topic is made");
        let decision = Settings { record_clock: true, ..Settings::new("http") };
        let settings = JobSettings {
            commit_every: Duration::from_millis(200),
            tick_every: Duration::from_millis(200),
            sinks: vec![SinkSettings {
                name: "pager".to_owned(),
                identity: Identity::Full,
                lanes: vec![Box::new(Pager { works })],
            }],
            ..JobSettings::new("ward", topics.clone(), Document::new(&packs::adult_ward(), &decision))
        };
        let job = Job::start(settings, log.clone(), Arc::new(SystemClock)).expect("the job starts");
        let token = token.map(|token| Token::new(token).expect("long enough"));
        let server = Server::start(loopback(), token).expect("a free port");
        server.attach(job.observer());
        Self { log, topics, job, server }
    }

    fn on_memory() -> Self {
        Self::new(memory(), true, Some(TOKEN))
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// A patient whose saturation is dangerously low for half a minute, a reading with a label nobody knows, and poison.
    fn send_readings(&self) {
        let mut values: Vec<String> = (0..30)
            .map(|second| {
                let time = wardbell_schemas::alert::print_time(START_US + second * 1_000_000);
                format!(
                    r#"{{"patient":"p-{TELLTALE}","device":"mon-{TELLTALE}","time":"{time}","signal":"spo2","value":70,"unit":"%"}}"#
                )
            })
            .collect();
        let time = wardbell_schemas::alert::print_time(START_US + 31_000_000);
        values.push(format!(
            r#"{{"patient":"p-{TELLTALE}","device":"mon-{TELLTALE}","time":"{time}","signal":"label-{TELLTALE}","value":1}}"#
        ));
        values.push(format!(r#"{{"patient":"p-{TELLTALE}""#));
        let mut appender = self.log.appender().expect("an appender");
        for (n, value) in values.into_iter().enumerate() {
            let record = Outgoing {
                topic: self.topics.source[0].clone(),
                partition: 0,
                key: Some(format!("p-{TELLTALE}").into_bytes()),
                value: Some(value.into_bytes()),
                headers: Vec::new(),
                time_us: Some(START_US + n as i64 * 1_000_000),
            };
            appender.append(&record, n as u64).expect("taken");
        }
    }

    fn work_through_readings(&self) {
        self.send_readings();
        self.job.drain(PATIENCE).expect("everything is worked through");
    }

    fn end(self) {
        assert!(self.job.stop(), "all stages end");
        self.server.stop();
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn memory() -> Arc<dyn Log> {
    Arc::new(MemoryLog::new(Arc::new(SystemClock)))
}

/// The loop of this name, as `/livez` tells it.
fn loop_state(live: &Value, name: &str) -> Option<String> {
    let entry = live["loops"].as_array()?.iter().find(|entry| entry["name"] == name)?;
    entry["state"].as_str().map(str::to_owned)
}

/// What stands in `/healthz` under a key.
fn finding<'a>(health: &'a Value, key: &str) -> Option<&'a Value> {
    health["findings"].as_array()?.iter().find(|finding| finding["key"] == key)
}

#[test]
fn a_server_without_a_job_lives_and_says_what_it_waits_for() {
    let server = Server::start(loopback(), None).expect("a free port");
    let address = server.address();
    let live = get(address, "/livez");
    assert_eq!((live.status, &live.json()["live"]), (200, &Value::Bool(true)));
    for path in ["/readyz", "/healthz"] {
        let answer = get(address, path);
        assert!(answer.status == 503 && answer.body.contains("waits for a broker"), "{path}: {}", answer.body);
    }
    assert_eq!(get(address, "/metrics").status, 200);
    let taken = Server::start(address, None).err().expect("the port is in use");
    assert!(format!("{taken:#}").contains("change `listen` in [http]"), "{taken:#}");
    server.stop();
}

#[test]
fn a_job_that_works_is_live_ready_and_tells_where_it_stands() {
    let ward = Ward::on_memory();
    ward.work_through_readings();
    let ready = wait_for(ward.address(), "/readyz", |answer| answer.status == 200).json();
    assert_eq!(ready["reasons"], Value::Array(Vec::new()));
    // Ready is who decides all that is assigned, not the first of it.
    let health = get(ward.address(), "/healthz").json();
    let decided = health["partitions"].as_array().expect("a list");
    assert!(decided.len() == 2 && decided.iter().all(|entry| !entry["active_set"].is_null()), "{health}");
    let live = get(ward.address(), "/livez").json();
    for name in ["normalize", "decide", "partition 0", "partition 1", "watch"] {
        let state = loop_state(&live, name).unwrap_or_else(|| panic!("{name} is missing: {live}"));
        assert!(["turning", "waiting"].contains(&state.as_str()), "{name} is {state}");
    }
    // The unknown label is told; the ends of the log have been asked at least once.
    let caught_up = |answer: &Answer| {
        let health = answer.json();
        let lags = (0..2).map(|partition| &health["partitions"][partition]["lag_records"]);
        finding(&health, "unknown labels").is_some() && lags.into_iter().all(|lag| *lag == 0)
    };
    let answer = wait_for(ward.address(), "/healthz", caught_up);
    assert_eq!(answer.status, 200, "degraded is no failure: {}", answer.body);
    let health = answer.json();
    assert_eq!((&health["status"], &health["version"]), (&"degraded".into(), &env!("CARGO_PKG_VERSION").into()));
    let finding = finding(&health, "unknown labels").expect("it was there");
    for field in ["severity", "cause", "impact", "remedy", "since"] {
        assert!(finding[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {finding}");
    }
    for partition in 0..2 {
        let entry = &health["partitions"][partition];
        assert_eq!((entry["partition"].as_u64(), &entry["delay_seconds"]), (Some(partition as u64), &0.0.into()));
        assert!(entry["next_offset"].as_i64().is_some_and(|offset| offset > 0), "{entry}");
        assert!(entry["active_set"]["hash"].as_str().is_some_and(|hash| hash.len() == 64), "{entry}");
    }
    assert_eq!(health["sources"][0]["next_offset"], 32);
    assert_eq!(health["sinks"][0]["name"], "pager");
    let distribution = get(ward.address(), "/latency.hgrm?stage=normalize");
    assert!(distribution.status == 200 && distribution.body.contains("#[Mean"), "{}", distribution.body);
    assert_eq!(get(ward.address(), "/latency.hgrm?stage=nothing").status, 400);
    let unknown = get(ward.address(), "/no/such/path");
    assert_eq!((unknown.status, unknown.json()["error"].is_string()), (404, true));
    ward.end();
}

/// A line of the exposition: name, labels and value.
fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    let Some((name, labels)) = series.split_once('{') else {
        return (series.to_owned(), BTreeMap::new(), value);
    };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("labels do not end: {line}"));
    let label = |label: &str| {
        let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
        (name.to_owned(), value.strip_suffix('"').unwrap_or_else(|| panic!("no text: {line}")).to_owned())
    };
    (name.to_owned(), labels.split(',').map(label).collect(), value)
}

#[test]
fn metrics_parse_and_count_what_happened() {
    let ward = Ward::on_memory();
    ward.work_through_readings();
    let caught_up = |line: &str| line.starts_with("wardbell_lag_records{stage=\"normalize\"") && line.ends_with(" 0.0");
    let answer = wait_for(ward.address(), "/metrics", |answer| answer.body.lines().any(caught_up));
    assert!(answer.head.to_lowercase().contains("content-type: application/openmetrics-text"), "{}", answer.head);
    assert!(answer.body.ends_with("# EOF\n"));
    let typed: Vec<&str> =
        answer.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let samples: Vec<_> = answer.body.lines().filter(|line| !line.starts_with('#')).map(sample).collect();
    for (name, labels, value) in &samples {
        assert!(typed.iter().any(|family| name.starts_with(family)), "{name} has no type");
        assert!(name.starts_with("wardbell_") && value.is_finite(), "{name} {value}");
        assert!(labels.keys().all(|label| !["patient", "device", "label"].contains(&label.as_str())), "{labels:?}");
    }
    let value = |name: &str, wanted: &[(&str, &str)]| {
        let fits = |labels: &BTreeMap<String, String>| {
            wanted.iter().all(|(label, value)| labels.get(*label).is_some_and(|known| known == value))
        };
        let found: Vec<f64> =
            samples.iter().filter(|(known, labels, _)| known == name && fits(labels)).map(|sample| sample.2).collect();
        assert!(!found.is_empty(), "{name} {wanted:?} is missing in\n{}", answer.body);
        found.iter().sum::<f64>()
    };
    assert_eq!(value("wardbell_source_records_total", &[]), 32.0);
    assert_eq!(value("wardbell_readings_total", &[]), 32.0, "every reading ended in one place");
    assert_eq!(value("wardbell_readings_total", &[("outcome", "evaluated")]), 30.0);
    assert_eq!(value("wardbell_dead_letters_total", &[("reason", "E_LABEL_UNKNOWN")]), 1.0);
    assert_eq!(value("wardbell_transitions_total", &[("rule", "spo2-very-low"), ("transition", "raised")]), 1.0);
    assert!(value("wardbell_delivered_alerts_total", &[("sink", "pager")]) >= 1.0);
    assert_eq!(value("wardbell_sink_failures_total", &[("sink", "pager")]), 0.0);
    assert_eq!(value("wardbell_lag_records", &[("stage", "normalize")]), 0.0);
    assert_eq!(value("wardbell_source_delay_seconds", &[("topic", "devices")]), 0.0);
    assert_eq!(value("wardbell_live", &[]), 1.0);
    let count = value("wardbell_engine_latency_seconds_count", &[("priority", "high")]);
    assert!(count >= 1.0);
    assert_eq!(value("wardbell_engine_latency_seconds_bucket", &[("priority", "high"), ("le", "+Inf")]), count);
    assert!(value("wardbell_engine_latency_seconds_bucket", &[("priority", "high"), ("le", "30.0")]) <= count);
    ward.end();
}

#[test]
fn no_answer_names_a_patient_a_device_or_a_foreign_label() {
    let ward = Ward::on_memory();
    ward.work_through_readings();
    wait_for(ward.address(), "/healthz", |answer| finding(&answer.json(), "unknown labels").is_some());
    let authorized = format!("Authorization: Bearer {TOKEN}\r\n");
    let mut told = String::new();
    for path in OPEN.into_iter().chain(["/api/v1/status", "/api/v1/nothing", "/nothing", "/latency.hgrm?stage=x"]) {
        let answer = get_with(ward.address(), path, &authorized);
        assert!(!answer.head.contains(TELLTALE) && !answer.body.contains(TELLTALE), "{path}: {}", answer.body);
        told += &answer.body;
    }
    assert!(told.contains("spo2-very-low") && told.contains("E_LABEL_UNKNOWN"), "the readings were counted");
    ward.end();
}

#[test]
fn the_api_needs_the_token_and_never_shows_it() {
    let ward = Ward::on_memory();
    ward.work_through_readings();
    let ask = |path: &str, headers: &str| {
        let answer = get_with(ward.address(), path, headers);
        assert!(!answer.head.contains(TOKEN) && !answer.body.contains(TOKEN), "{path}: {}", answer.body);
        answer
    };
    for wrong in ["", "Authorization: Bearer wrong-wrong-wrong-wrong\r\n", "Authorization: Basic dXNlcjpwYXNz\r\n"] {
        for path in ["/api/v1/status", "/api/v1/nothing"] {
            let answer = ask(path, wrong);
            assert_eq!(answer.status, 401, "{path} {wrong}");
            assert!(answer.head.to_lowercase().contains("www-authenticate: bearer"), "{}", answer.head);
        }
    }
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    let status = ask("/api/v1/status", &right);
    assert_eq!((status.status, &status.json()["records"]), (200, &32.into()));
    assert_eq!(ask("/api/v1/nothing", &right).status, 404);
    for path in OPEN {
        assert_eq!(ask(path, "").status, 200, "{path} is open");
    }
    ward.end();
    let closed = Ward::new(memory(), true, None);
    let answer = get_with(closed.address(), "/api/v1/status", &right);
    assert!(answer.status == 403 && answer.body.contains("token_file"), "{}", answer.body);
    closed.end();
}

#[test]
fn a_stalled_loop_ends_liveness_and_a_waiting_one_does_not() {
    let ward = Ward::on_memory();
    let health = ward.job.health().clone();
    assert_eq!(get(ward.address(), "/livez").status, 200);
    let handle = health.enter_with("slow loop", Limits { stalled_after: Duration::ZERO, ..Limits::default() });
    let waiting = handle.waiting("a pager that does not answer");
    let live = get(ward.address(), "/livez");
    assert_eq!((live.status, loop_state(&live.json(), "slow loop").as_deref()), (200, Some("waiting")));
    drop(waiting);
    let live = get(ward.address(), "/livez");
    assert_eq!((live.status, loop_state(&live.json(), "slow loop").as_deref()), (503, Some("stalled")));
    let told = get(ward.address(), "/healthz");
    assert_eq!((told.status, &told.json()["status"]), (503, &"failing".into()));
    assert!(finding(&told.json(), "loop slow loop").is_some_and(|finding| finding["remedy"].is_string()));
    drop(handle);
    assert_eq!(get(ward.address(), "/livez").status, 200, "it ended on purpose");
    ward.end();
}

#[test]
fn a_panicked_thread_is_dead() {
    let ward = Ward::on_memory();
    let health = ward.job.health().clone();
    let handle = health.enter("doomed loop");
    let thread = std::thread::spawn(move || {
        let _handle = handle;
        panic!("on purpose, for the test");
    });
    assert!(thread.join().is_err());
    let live = get(ward.address(), "/livez");
    assert_eq!((live.status, loop_state(&live.json(), "doomed loop").as_deref()), (503, Some("dead")));
    assert!(get(ward.address(), "/healthz").body.contains("doomed loop"));
    assert_eq!(get(ward.address(), "/readyz").status, 503);
    health.forget("doomed loop");
    assert_eq!(get(ward.address(), "/livez").status, 200);
    ward.end();
}

#[test]
fn a_failing_sink_is_told_with_what_to_do_and_liveness_goes_on() {
    let ward = Ward::new(memory(), false, None);
    ward.send_readings();
    let about_the_sink = |answer: &Answer| {
        let told = answer.json();
        let findings = told["findings"].as_array().cloned().unwrap_or_default();
        findings.into_iter().find(|finding| finding["cause"].as_str().is_some_and(|cause| cause.contains("pager")))
    };
    let answer = wait_for(ward.address(), "/healthz", |answer| about_the_sink(answer).is_some());
    let finding = about_the_sink(&answer).expect("it was there");
    assert_ne!(finding["severity"], "information", "{finding}");
    assert!(finding["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{finding}");
    assert_eq!(get(ward.address(), "/livez").status, 200);
    ward.end();
}

#[test]
fn a_broker_that_is_away_is_told_ends_readiness_and_not_liveness() {
    let log = MemoryLog::new(Arc::new(SystemClock));
    let ward = Ward::new(Arc::new(log.clone()), true, None);
    wait_for(ward.address(), "/readyz", |answer| answer.status == 200);
    log.set_available(false);
    // Partitions may be the first to notice.
    let told = |answer: &Answer| answer.status == 503 && answer.body.contains("the broker does not answer");
    wait_for(ward.address(), "/readyz", told);
    let told = wait_for(ward.address(), "/healthz", |answer| answer.status == 503).json();
    assert_eq!(finding(&told, "broker").map(|finding| &finding["severity"]), Some(&"failing".into()));
    assert_eq!(get(ward.address(), "/livez").status, 200);
    log.set_available(true);
    wait_for(ward.address(), "/readyz", |answer| answer.status == 200);
    ward.end();
}

#[test]
fn a_port_in_use_ends_the_start_with_what_to_do() {
    let taken = TcpListener::bind(loopback()).expect("a free port");
    let port = taken.local_addr().expect("an address").port();
    let folder = tempfile::tempdir().expect("a folder");
    let rules = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/first-rule");
    let config = format!(
        "rules = {:?}\n[source]\ntopics = [\"devices\"]\n[http]\nlisten = \"127.0.0.1:{port}\"\n[[sink]]\nname = \"console\"\ntype = \"stdout\"\n",
        rules.display().to_string()
    );
    let path = folder.path().join("wardbell.toml");
    std::fs::write(&path, config).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_wardbell"))
        .args(["run", "--config", &path.display().to_string()])
        .output()
        .expect("the binary runs");
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(shown.contains(&format!("127.0.0.1:{port}")) && shown.contains("change `listen` in [http]"), "{shown}");
}
