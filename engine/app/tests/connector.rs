//! Connector files end to end: a vendor's records through the whole job on the in-memory log, and the commands that work
//! on such files.

use std::future::ready;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wardbell::connector::{self, Connector};
use wardbell::pipeline::{Job, JobSettings, SinkSettings, Summary, Topics, replay};
use wardbell::sets::{ControlTopic, Document};
use wardbell_connectors::canonical::{self, Canonical};
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{Isolation, Log, Outgoing, StampedBy, TopicPartition, TopicSpec};
use wardbell_connectors::sink::{Delivering, Delivery, Identity, Sink};
use wardbell_core::partition::Settings;
use wardbell_rules::{SourceFile, packs};
use wardbell_schemas::alert::{Content, TransitionKind, content_bytes};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Control, ControlRecord};

const PATIENCE: Duration = Duration::from_secs(60);
/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;
const SOURCE: &str = "vendor";

const VENDOR: &str = r#"
format = "json"
[fields]
patient = "pid"
device = "dev"
time = "ts"
[[wide]]
at = "vitals.sat"
signal = "spo2"
unit = "%"
[control]
action = "event"
[control.actions]
A03 = "discharge"
A08 = "ignore"
"#;

struct Nowhere;

impl Sink for Nowhere {
    fn deliver<'a>(&'a mut self, _deliveries: &'a [Delivery]) -> Delivering<'a> {
        Box::pin(ready(Ok(())))
    }
}

/// What a job made of some records, one a second, all of one source partition.
struct Ran {
    summary: Summary,
    contents: Vec<Content>,
    requests: Vec<ControlRecord>,
    letters: Vec<String>,
}

fn run(connectors: Vec<Connector>, records: &[String]) -> Ran {
    let log: Arc<dyn Log> = Arc::new(MemoryLog::new(Arc::new(SystemClock)));
    let topics = Topics::named("job", vec![SOURCE.to_owned()], 3);
    let source = TopicSpec::of_others(SOURCE, 1, StampedBy::Producer);
    log.prepare(&[source]).expect("the source topic is made");
    send(&*log, records);
    let decision = Settings { record_clock: true, ..Settings::new("connector") };
    let settings = JobSettings {
        commit_every: Duration::from_millis(500),
        tick_every: Duration::from_millis(200),
        connectors,
        sinks: vec![SinkSettings {
            name: "nowhere".to_owned(),
            identity: Identity::Full,
            lanes: vec![Box::new(Nowhere)],
        }],
        ..JobSettings::new("job", topics.clone(), Document::new(&packs::adult_ward(), &decision))
    };
    let job = Job::start(settings, log.clone(), Arc::new(SystemClock)).expect("the job starts");
    job.drain(PATIENCE).expect("everything is worked through");
    let statistics = job.statistics().clone();
    assert!(job.stop(), "all stages end");
    let summary = statistics.summary();
    assert!(summary.adds_up(), "{summary:?}");
    let alerts = replay::alerts(&*log, &topics.alerts).expect("the alerts can be read");
    let contents: Vec<Vec<Content>> =
        alerts.into_iter().map(|partition| partition.into_iter().map(|alert| alert.data.content).collect()).collect();
    let sets = ControlTopic::new(log.clone(), &topics.control);
    let offline = replay::canonical_log(&*log, &topics.canonical, &sets).expect("replays").partitions;
    let bytes = |contents: &[Vec<Content>]| -> Vec<Vec<u8>> { contents.iter().flatten().map(content_bytes).collect() };
    assert_eq!(bytes(&offline), bytes(&contents), "the canonical log says the same");
    let text = |value: Option<Vec<u8>>| String::from_utf8(value.unwrap_or_default()).expect("text");
    Ran {
        summary,
        contents: contents.into_iter().flatten().collect(),
        requests: requests(&*log, &topics),
        letters: values(&*log, &topics.dead_letters).into_iter().map(text).collect(),
    }
}

fn send(log: &dyn Log, records: &[String]) {
    let mut appender = log.appender().expect("an appender");
    for (second, record) in (0_i64..).zip(records) {
        let outgoing = Outgoing {
            topic: SOURCE.to_owned(),
            partition: 0,
            value: Some(record.clone().into_bytes()),
            time_us: Some(START_US + second * 1_000_000),
            ..Outgoing::default()
        };
        appender.append(&outgoing, second.unsigned_abs()).expect("taken");
    }
    let (deadline, mut outcomes) = (Instant::now() + PATIENCE, Vec::new());
    while outcomes.len() < records.len() && Instant::now() < deadline {
        appender.outcomes(Duration::from_millis(10), &mut outcomes);
    }
    assert_eq!(outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count(), records.len());
}

/// The values of all records of a topic's first partition.
fn values(log: &dyn Log, topic: &str) -> Vec<Option<Vec<u8>>> {
    read(log, topic, 0).into_iter().map(|record| record.value).collect()
}

fn read(log: &dyn Log, topic: &str, partition: i32) -> Vec<wardbell_connectors::log::Record> {
    let (first, end) = log.offsets(topic, partition).expect("the partition is there");
    let from = TopicPartition::new(topic, partition);
    let mut reader = log.reader(&from, first, Isolation::ReadCommitted).expect("a reader");
    let (deadline, mut records) = (Instant::now() + PATIENCE, Vec::new());
    while records.len() < usize::try_from(end - first).expect("not negative") && Instant::now() < deadline {
        reader.read(1_000, Duration::from_millis(50), &mut records).expect("reads");
    }
    records
}

/// Requests among the control records of the canonical log.
fn requests(log: &dyn Log, topics: &Topics) -> Vec<ControlRecord> {
    let hash = &Catalogue::builtin().hash;
    let all = (0..topics.partitions).flat_map(|partition| read(log, &topics.canonical, partition));
    all.filter_map(|record| match canonical::read(&record, hash) {
        Ok(Canonical::Control(control)) => Some(control),
        _ => None,
    })
    .filter(|record| matches!(record.control, Control::Discharge { .. } | Control::Standby { .. }))
    .collect()
}

fn connector() -> Connector {
    let file = SourceFile { path: "vendor.connector.toml".to_owned(), text: VENDOR.to_owned() };
    let (connector, faults) = connector::parse(&file, Catalogue::builtin());
    let mut connector = connector.unwrap_or_else(|| panic!("{faults:?}"));
    connector.topics = vec![SOURCE.to_owned()];
    connector
}

/// Low saturation for 24 seconds, one record a second, with a request instead of the reading of second 12.
fn records(reading: impl Fn(i64) -> String, request: &str) -> Vec<String> {
    (0..24)
        .map(|second| if second == 12 { request.to_owned() } else { reading(START_US / 1_000 + second * 1_000) })
        .collect()
}

/// Everything was read in one turn, so the request stands where it does only because what was gathered before it was
/// written first.
fn assert_discharged_in_order(ran: &Ran) {
    let of_rule = ran.contents.iter().filter(|content| content.rule.id == "spo2-very-low");
    let seen: Vec<(TransitionKind, i64)> =
        of_rule.map(|content| (content.transition, (content.at - START_US) / 1_000_000)).collect();
    let [(TransitionKind::Raised, 5), (TransitionKind::Expired, ended), (TransitionKind::Raised, 18)] = seen[..] else {
        panic!("{seen:?}");
    };
    assert!((11..=12).contains(&ended), "{seen:?}");
    let discharge = Control::Discharge { patient: "p7".to_owned() };
    assert_eq!(ran.requests, [ControlRecord { id: "vendor/0/12/0".to_owned(), control: discharge }]);
    assert_eq!(ran.summary.requests, 1);
}

#[test]
fn a_vendors_records_are_decided_and_its_discharge_takes_effect_in_order() {
    let reading = |ms: i64| format!(r#"{{"pid":"p7","dev":"m1","ts":{ms},"vitals":{{"sat":"70"}}}}"#);
    let mut all = records(reading, r#"{"pid":"p7","event":"A03"}"#);
    all.push(r#"{"pid":"p7","event":"A08"}"#.to_owned());
    all.push(r#"{"pid":"p7","event":"A99"}"#.to_owned());
    all.push(format!(r#"{{"pid":"p7","dev":"m1","ts":{},"vitals":{{"sat":"70,5"}}}}"#, START_US / 1_000 + 26_000));
    let ran = run(vec![connector()], &all);
    assert_discharged_in_order(&ran);
    let outcomes = &ran.summary.outcomes;
    assert_eq!((outcomes["evaluated"], outcomes["ignored"], outcomes["quarantined"]), (23, 1, 2), "{outcomes:?}");
    let reasons: Vec<(&str, u64)> = ran.summary.dead_letters.iter().map(|(reason, count)| (*reason, *count)).collect();
    assert_eq!(reasons, [("E_CONTROL", 1), ("E_NUM_LOCALE", 1)]);
    assert!(ran.letters.iter().all(|letter| !letter.contains("p7") && !letter.contains("70")), "{:?}", ran.letters);
}

#[test]
fn canonical_json_can_ask_for_what_concerns_one_patient_and_for_nothing_else() {
    let reading =
        |ms: i64| format!(r#"{{"patient":"p7","device":"m1","time":{ms},"signal":"spo2","value":70,"unit":"%"}}"#);
    let mut all = records(reading, r#"{"control":"discharge","patient":"p7"}"#);
    all.push(r#"{"control":"limit","patient":"p7"}"#.to_owned());
    all.push(r#"{"control":"standby","patient":"p7","devices":["m1"]}"#.to_owned());
    all.push(format!(
        r#"{{"patient":"p7","device":"m1","time":{},"signal":"XYZ9","value":1}}"#,
        START_US / 1_000 + 26_000
    ));
    let ran = run(Vec::new(), &all);
    assert_discharged_in_order(&ran);
    assert_eq!(ran.summary.dead_letters["E_CONTROL"], 2);
    assert_eq!(
        ran.summary.unmapped.iter().map(|entry| (entry.text.as_str(), entry.count)).collect::<Vec<_>>(),
        [("XYZ9", 1)]
    );
    let json = serde_json::to_string(&ran.summary).expect("plain data");
    assert!(!json.contains("XYZ9"), "texts of sources are for the log only");
}

fn wardbell(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wardbell"))
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A path below the repository's root.
fn at(path: &str) -> String {
    format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn normalize_shows_what_an_example_makes_of_its_samples() {
    let (file, samples) = (
        at("examples/vendor-json/central-station.connector.toml"),
        at("examples/vendor-json/central-station.samples.jsonl"),
    );
    let output = wardbell(&["normalize", "--connector", &file, &samples, "--json"], "");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let expected =
        std::fs::read_to_string(at("examples/vendor-json/central-station.expected.jsonl")).expect("it is there");
    let lines = |text: &str| -> Vec<serde_json::Value> {
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    assert_eq!(lines(&text(&output.stdout)), lines(&expected));
    let summary: serde_json::Value = serde_json::from_slice(&output.stderr).expect("the summary is JSON");
    assert_eq!((&summary["records"], &summary["readings"], &summary["ignored"]), (&3.into(), &13.into(), &1.into()));
    assert_eq!(summary["refused"], serde_json::json!({"E_LABEL_UNKNOWN": 1, "E_NUM_LOCALE": 1}));
    assert_eq!(summary["unmapped"], serde_json::json!([{"kind": "label", "text": "Neu 7", "count": 1}]));
    assert_eq!(summary["policies"]["decimal_comma"], 2);

    let output = wardbell(&["normalize", "--connector", &file, &samples], "");
    let (shown, told) = (text(&output.stdout), text(&output.stderr));
    assert!(shown.contains("temp_core (bladder)") && shown.contains("<=1.11 mmol/L"), "{shown}");
    for part in ["13 accepted, 2 refused, 1 ignored", "label \"Neu 7\"", "assume_zone"] {
        assert!(told.contains(part), "{part}\n{told}");
    }
}

#[test]
fn normalize_reads_canonical_json_from_its_input() {
    let good = r#"{"patient":"p","device":"d","time":1772360130,"signal":"spo2","value":"<85","unit":"%"}"#;
    let output = wardbell(&["normalize", "--json"], &format!("{good}\n\n{good}\n"));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert_eq!(shown.lines().count(), 2, "{shown}");
    assert!(
        shown.starts_with(
            r#"{"record":1,"patient":"p","device":"d","signal":"spo2","method":"-","comparator":"<","value":85,"#
        ),
        "{shown}"
    );
    assert_eq!(wardbell(&["normalize"], "\n").status.code(), Some(2), "nothing to work on");
    assert_eq!(wardbell(&["normalize", "--connector", "no/such.connector.toml"], "").status.code(), Some(2));
    let refused = wardbell(&["normalize"], "{\"patient\":\"Jane Doe\"");
    assert_eq!(refused.status.code(), Some(1));
    assert!(!text(&refused.stdout).contains("Jane"), "{}", text(&refused.stdout));
}

#[test]
fn check_finds_the_faults_of_connector_files_wherever_they_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    let below = folder.path().display().to_string();
    write("vendor.connector.toml", &VENDOR.replace("\"spo2\"", "\"spo3\"").replace("device", "devise"));
    write(
        "wardbell.toml",
        "[[connector]]\nfile = \"vendor.connector.toml\"\ntopics = [\"a\"]\n[[connector]]\nfile = \"lost.connector.toml\"\ntopics = [\"b\"]\n[[sink]]\nname = \"c\"\ntype = \"stdout\"\n",
    );
    let output = wardbell(&["check", &below, "--json"], "");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut found: Vec<(String, u64)> = report["faults"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|fault| {
            (fault["code"].as_str().unwrap_or_default().to_owned(), fault["line"].as_u64().unwrap_or_default())
        })
        .collect();
    found.sort();
    let expected = [("F001", 0), ("M002", 5), ("M005", 9)].map(|(code, line)| (code.to_owned(), line));
    assert_eq!(found, expected, "each fault once: {report}");
    assert_eq!(report["files"], 2);

    write("vendor.connector.toml", VENDOR);
    write("vendor.samples.jsonl", r#"{"pid":"p7","dev":"m1","ts":1772360130,"vitals":{"sat":96}}"#);
    write("vendor.expected.jsonl", "{\"record\":1,\"refused\":\"E_RANGE\"}\n");
    let file = folder.path().join("vendor.connector.toml").display().to_string();
    let output = wardbell(&["check", &file], "");
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr);
    assert!(
        shown.contains("M006") && shown.contains("vendor.expected.jsonl:1:1") && shown.contains("`refused`"),
        "{shown}"
    );
}

#[test]
fn control_says_what_is_wrong_without_naming_the_patient() {
    // A port nobody listens on: bound for a moment to find one that is free.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("wardbell.toml");
    let text_of = format!(
        "[kafka]\nbootstrap_servers = \"127.0.0.1:{port}\"\n[source]\ntopics = [\"devices\"]\n[[sink]]\nname = \"c\"\ntype = \"stdout\"\n"
    );
    std::fs::write(&config, text_of).expect("written");
    let config = config.display().to_string();
    let output = wardbell(&["control", "discharge", "--config", &config, "--patient", "secret-77"], "");
    assert_eq!(output.status.code(), Some(2));
    let shown = text(&output.stderr) + text(&output.stdout).as_str();
    assert!(shown.contains(&port.to_string()) && !shown.contains("secret-77"), "{shown}");
    for wrong in [
        vec!["control"],
        vec!["control", "discharge", "--config", config.as_str()],
        vec!["control", "acknowledge", "--config", config.as_str(), "--patient", "p"],
        vec!["control", "reset", "--config", config.as_str(), "--patient", "p", "--episode", "7", "--by", "RN"],
    ] {
        assert_eq!(wardbell(&wrong, "").status.code(), Some(2), "{wrong:?}");
    }
}
