//! The conformance kit, on the sinks of this crate and on sinks that are wrong on purpose, which it has to find out.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::conformance::sink::{Behavior, Endpoint, Outcome, Target, check, check_http};
use wardbell_connectors::sink::jsonl::JsonLines;
use wardbell_connectors::sink::webhook::{SecretSource, Webhook, WebhookSettings};
use wardbell_connectors::sink::{Delivering, Delivery, Sink, SinkError};

#[test]
fn the_webhook_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    fs::write(&secret, "a key for tests, of forty bytes or about").expect("written");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("set");
    let report = check_http(|endpoint| {
        let settings = WebhookSettings {
            url: endpoint.url(),
            secret: SecretSource::File(secret.clone()),
            token: None,
            ca_file: None,
            timeout: Duration::from_secs(1),
            headers: BTreeMap::new(),
            allow_plain_http: false,
        };
        Box::new(Webhook::new(settings, Arc::new(SystemClock)).expect("the settings are sound"))
    });
    assert!(report.checks.iter().all(|(_, outcome)| *outcome == Outcome::Passed), "{report}");
}

/// A file, which takes everything.
struct Lines(tempfile::TempDir);

impl Lines {
    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("alerts.jsonl")
    }
}

impl Target for Lines {
    fn behave(&self, script: &[Behavior]) -> bool {
        script.iter().all(|behavior| *behavior == Behavior::Take)
    }

    fn taken(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path()).expect("the file is there");
        let id = |line: &str| {
            let alert: serde_json::Value = serde_json::from_str(line).expect("a whole line");
            alert["id"].as_str().expect("an id").to_owned()
        };
        text.lines().map(id).collect()
    }
}

#[test]
fn json_lines_conform_as_far_as_a_file_can_misbehave() {
    let report = check(
        || Lines(tempfile::tempdir().expect("a folder")),
        |lines| Box::new(JsonLines::open(&lines.path()).expect("opens")),
    );
    assert!(report.passed(), "{report}");
    for name in ["success", "restart", "duplicate delivery"] {
        assert_eq!(report.outcome(name), Some(&Outcome::Passed), "{report}");
    }
    assert_eq!(report.outcome("500"), Some(&Outcome::NotApplicable), "{report}");
}

/// What a sink can get wrong.
#[derive(Clone, Copy, PartialEq)]
enum Mistake {
    /// Says that it was taken whatever the answer is.
    AcknowledgesAnything,
    /// Makes up an id for every attempt.
    NewIdEachTime,
    /// Calls every failure the alert's fault.
    BlamesTheAlert,
    /// Calls no failure the alert's fault.
    BlamesTheReceiver,
    /// Keeps one alert back and posts it after the next.
    PostsInPairsBackwards,
}

/// A small HTTP client with a mistake.
struct Wrong {
    address: String,
    mistake: Mistake,
    attempts: u32,
    kept: Option<String>,
}

impl Wrong {
    fn new(endpoint: &Endpoint, mistake: Mistake) -> Self {
        let address = endpoint.url().trim_start_matches("http://").trim_end_matches("/alerts").to_owned();
        Self { address, mistake, attempts: 0, kept: None }
    }

    /// The status of the answer, if there is one.
    fn post(&self, id: &str) -> Option<u16> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        write!(stream, "POST /alerts HTTP/1.1\r\nIdempotency-Key: {id}\r\nContent-Length: 0\r\n\r\n").ok()?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).ok()?;
        String::from_utf8_lossy(&answer[..length]).split(' ').nth(1)?.parse().ok()
    }

    fn deliver_one(&mut self, delivery: &Delivery) -> Result<(), SinkError> {
        self.attempts += 1;
        let id = match self.mistake {
            Mistake::NewIdEachTime => format!("{}-{}", delivery.alert.id, self.attempts),
            _ => delivery.alert.id.clone(),
        };
        if self.mistake == Mistake::PostsInPairsBackwards {
            match self.kept.take() {
                None => self.kept = Some(id),
                Some(before) => {
                    self.post(&id);
                    self.post(&before);
                }
            }
            return Ok(());
        }
        let (step, what) = ("posting".to_owned(), "as the mistake has it".to_owned());
        match (self.post(&id), self.mistake) {
            (Some(200), _) | (_, Mistake::AcknowledgesAnything) => Ok(()),
            (_, Mistake::BlamesTheAlert) => Err(SinkError::Rejected { step, what }),
            _ => Err(SinkError::Unavailable { step, what, retry_after: Some(Duration::from_secs(7)) }),
        }
    }
}

impl Sink for Wrong {
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a> {
        let outcome = deliveries.iter().try_for_each(|delivery| self.deliver_one(delivery));
        Box::pin(std::future::ready(outcome))
    }
}

#[test]
fn sinks_that_are_wrong_are_found_out() {
    for (mistake, checks) in [
        (Mistake::AcknowledgesAnything, &["401", "500", "422", "nothing acknowledged that was not taken"][..]),
        (Mistake::NewIdEachTime, &["success", "time-out after success", "restart", "duplicate delivery"][..]),
        (Mistake::BlamesTheAlert, &["401", "429 with Retry-After", "500", "no response"][..]),
        (Mistake::BlamesTheReceiver, &["422"][..]),
        (Mistake::PostsInPairsBackwards, &["success", "order of one patient"][..]),
    ] {
        let report = check_http(|endpoint| Box::new(Wrong::new(endpoint, mistake)));
        assert!(!report.passed(), "{report}");
        for name in checks {
            assert!(matches!(report.outcome(name), Some(Outcome::Failed(_))), "{name}:\n{report}");
        }
    }
}
