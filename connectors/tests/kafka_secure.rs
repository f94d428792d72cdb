//! The Kafka log over TLS and SASL: records go through, and what is refused is said in words that give no secret away.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use wardbell_connectors::log::kafka::KafkaLog;
use wardbell_connectors::log::{Isolation, Log, LogError, Outgoing, StampedBy, TopicPartition, TopicSpec};
use wardbell_kafka_server::{self as server, SecureServer};

const PATIENCE: Duration = Duration::from_secs(30);
const WRONG_PASSWORD: &str = "not-the-password";

fn open(server: &SecureServer, password: &str, ca: &Path) -> KafkaLog {
    let ca = ca.to_str().expect("a path of plain characters");
    let options = [
        ("bootstrap.servers", server.bootstrap.as_str()),
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", server.mechanism.as_str()),
        ("sasl.username", server.user.as_str()),
        ("sasl.password", password),
        ("ssl.ca.location", ca),
    ];
    let options: BTreeMap<String, String> =
        options.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    KafkaLog::new(options).expect("the options are valid")
}

fn prepare(log: &KafkaLog, topic: &str) -> Result<(), LogError> {
    log.prepare(&[TopicSpec {
        name: topic.to_owned(),
        partitions: 1,
        stamped_by: StampedBy::Broker,
        retention: None,
        create: true,
        any_partitions: false,
    }])
}

#[test]
fn records_go_through_tls_and_sasl_and_come_back() {
    let Some(server) = server::secure("records_go_through_tls_and_sasl_and_come_back") else {
        return;
    };
    let log = open(server, &server.password, &server.ca);
    let topic = server::fresh("secure");
    prepare(&log, &topic).expect("the topic is made");
    let sent: Vec<Vec<u8>> = (0..100).map(|i: u32| i.to_string().into_bytes()).collect();
    let mut appender = log.appender().expect("an appender");
    for (value, token) in sent.iter().zip(0..) {
        let record = Outgoing { topic: topic.clone(), value: Some(value.clone()), ..Outgoing::default() };
        appender.append(&record, token).expect("taken");
    }
    let deadline = Instant::now() + PATIENCE;
    let mut outcomes = Vec::new();
    while outcomes.len() < sent.len() && Instant::now() < deadline {
        appender.outcomes(Duration::from_millis(20), &mut outcomes);
    }
    assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()), "{outcomes:?}");
    let mut reader =
        log.reader(&TopicPartition::new(&topic, 0), 0, Isolation::ReadCommitted).expect("a reader of the topic");
    let mut records = Vec::new();
    while records.len() < sent.len() && Instant::now() < deadline {
        reader.read(100, Duration::from_millis(50), &mut records).expect("reads");
    }
    let read: Vec<Vec<u8>> = records.into_iter().filter_map(|record| record.value).collect();
    assert_eq!(read, sent);
}

#[test]
fn a_wrong_password_is_said_to_be_wrong_and_is_not_shown() {
    let Some(server) = server::secure("a_wrong_password_is_said_to_be_wrong_and_is_not_shown") else {
        return;
    };
    let log = open(server, WRONG_PASSWORD, &server.ca);
    // The client says it once; whoever tries again has to hear it again.
    for attempt in 1..=2 {
        let refused = prepare(&log, &server::fresh("secure")).expect_err("the password is wrong").to_string();
        assert!(refused.contains("authentication failed"), "attempt {attempt}: {refused}");
        assert!(
            refused.contains("sasl.password") && refused.contains(&server.bootstrap),
            "attempt {attempt}: {refused}"
        );
        assert!(!refused.contains(WRONG_PASSWORD), "attempt {attempt}: {refused}");
    }
}

#[test]
fn a_broker_that_no_known_authority_vouches_for_is_said_to_be_so() {
    let Some(server) = server::secure("a_broker_that_no_known_authority_vouches_for_is_said_to_be_so") else {
        return;
    };
    let log = open(server, &server.password, &server.other_ca);
    let refused = prepare(&log, &server::fresh("secure")).expect_err("nobody vouches for it").to_string();
    assert!(refused.contains("TLS failed") && refused.contains("ssl.ca.location"), "{refused}");
    assert!(!refused.contains(&server.password), "{refused}");
}

#[test]
fn the_value_of_a_mistyped_option_is_not_shown() {
    let options = [("bootstrap.servers", "127.0.0.1:1"), ("sasl.pasword", WRONG_PASSWORD)];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    let refused = KafkaLog::new(options).err().expect("there is no such option").to_string();
    assert!(refused.contains("sasl.pasword") && !refused.contains(WRONG_PASSWORD), "{refused}");
}
