//! What `wardbell check --online` asks before a job is started: the brokers that a configuration names, and the receivers
//! of its alerts.
//!
//! Everything is asked at once, so that one round of corrections is enough. No topic is made, no alert is sent, and a
//! job that runs is neither fenced nor made to share its partitions: the group and the transactional id of the questions
//! have the job's prefix and an ending of their own. What is written in a transaction is aborted.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::inspect::{Inspect, Right, TopicFault};
use wardbell_connectors::log::kafka::{SESSION_TIMEOUT_MS, TRANSACTION_TIMEOUT_MS};
use wardbell_connectors::log::{Isolation, LogError, MemberEvent, Membership, Remedy, StampedBy, TopicPartition};
use wardbell_connectors::sink::webhook::Webhook;
use wardbell_schemas::{Micros, SECOND};

use crate::config::{self, Config, SinkKind, SourceClock};
use crate::http::Token;
use crate::pipeline::{Topics, topic_specs};

/// A group of one is joined within this; brokers wait 3 s for further members, unless they are told otherwise.
const JOINED_WITHIN: Duration = Duration::from_secs(20);
const TURN: Duration = Duration::from_millis(50);
/// Clocks that differ by more make the latencies between them useless.
const CLOCK_TOLERANCE: Micros = SECOND;
/// Append times are whole milliseconds.
const APPEND_RESOLUTION: Micros = 1_000;

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ok,
    /// It works all the same, or could not be found out.
    Warning,
    /// A job would not work, or not for long.
    Error,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Error => "error",
        }
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// What the question was about: `broker`, `topic devices`, `sink pager`.
    pub about: String,
    pub state: State,
    pub said: String,
    /// What puts it right, most often a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

#[derive(Debug, Default)]
struct Answers(Vec<Answer>);

impl Answers {
    fn say(&mut self, about: impl Into<String>, state: State, said: impl Into<String>, remedy: Option<String>) {
        self.0.push(Answer { about: about.into(), state, said: said.into(), remedy });
    }

    fn ok(&mut self, about: impl Into<String>, said: impl Into<String>) {
        self.say(about, State::Ok, said, None);
    }

    /// The log does not allow something, or it could not be found out.
    fn failed(&mut self, about: impl Into<String>, error: &LogError, remedy: String) {
        match error.remedy {
            Remedy::Refuse => self.say(about, State::Error, error.to_string(), Some(remedy)),
            _ => self.say(about, State::Warning, format!("not known: {error}"), None),
        }
    }
}

/// Asks the brokers and the receivers of a configuration.
pub fn ask(config: &Config, clock: &Arc<dyn Clock>) -> Vec<Answer> {
    let mut answers = Answers::default();
    match config.kafka.open() {
        Ok(log) => answers.0 = ask_log(config, &log, &**clock),
        Err(error) => answers.say("broker", State::Error, error.to_string(), None),
    }
    answers.0.extend(ask_surroundings(config, clock));
    answers.0
}

/// Asks a log whether it is as the job needs it.
pub fn ask_log(config: &Config, log: &dyn Inspect, clock: &dyn Clock) -> Vec<Answer> {
    let mut asking = Asking { config, log, topics: config.topics(), there: Vec::new(), answers: Answers::default() };
    if asking.topics() {
        asking.broker();
        asking.rights();
        asking.group();
        asking.transactions(clock);
    }
    asking.answers.0
}

struct Asking<'a> {
    config: &'a Config,
    log: &'a dyn Inspect,
    topics: Topics,
    /// Topics that exist and can be seen.
    there: Vec<String>,
    answers: Answers,
}

impl Asking<'_> {
    /// Topics and their settings; `false` if no broker answers.
    fn topics(&mut self) -> bool {
        let specs = topic_specs(&self.topics);
        let faults = match self.log.topic_faults(&specs) {
            Ok(faults) => faults,
            Err(error) => {
                self.answers.say("broker", State::Error, error.to_string(), None);
                return false;
            }
        };
        self.answers.ok("broker", format!("answers at {}", self.config.kafka.bootstrap_servers));
        for spec in &specs {
            let of_topic: Vec<&TopicFault> = faults.iter().filter(|fault| fault.topic == spec.name).collect();
            self.topic(&spec.name, &of_topic);
        }
        true
    }

    fn topic(&mut self, name: &str, faults: &[&TopicFault]) {
        let about = format!("topic {name}");
        for fault in faults {
            let state = if fault.is_warning { State::Warning } else { State::Error };
            self.answers.say(about.as_str(), state, fault.what.as_str(), Some(fault.remedy.clone()));
        }
        let (partitions, stamped_by) = match self.log.describe(name) {
            Ok(described) => described,
            Err(error) if error.remedy == Remedy::Refuse => {
                if faults.is_empty() {
                    self.answers.ok(about, "is missing; the job makes it at its start");
                }
                return;
            }
            Err(error) => return self.answers.failed(about, &error, String::new()),
        };
        self.there.push(name.to_owned());
        let is_source = self.topics.source.iter().any(|source| source == name);
        if is_source && stamped_by == StampedBy::Producer && self.config.source.clock == SourceClock::Broker {
            let said = "carries its producers' time stamps (or keeps its settings from us): one that is behind counts, and latency counts from the canonical log";
            let remedy = format!(
                "kafka-configs.sh --bootstrap-server {} --alter --topic {name} --add-config message.timestamp.type=LogAppendTime",
                self.config.kafka.bootstrap_servers
            );
            self.answers.say(about, State::Warning, said, Some(remedy));
        } else if faults.is_empty() {
            self.answers.ok(about, format!("partitions: {partitions}, settings as they should be"));
        }
    }

    /// Limits of the brokers that the job must fit into.
    fn broker(&mut self) {
        let settings = match self.log.broker_settings() {
            Ok(settings) => settings,
            Err(error) if error.remedy == Remedy::Refuse => {
                let said =
                    "are kept from us, which is no fault; sessions of 6 s and transactions of 10 s must be allowed";
                return self.answers.ok("broker settings", said);
            }
            Err(error) => return self.answers.failed("broker settings", &error, String::new()),
        };
        let sound = self.answers.0.len();
        self.limits(&settings);
        if self.answers.0.len() == sound {
            self.answers.ok("broker settings", "allow the job's sessions and transactions");
        }
    }

    fn limits(&mut self, settings: &BTreeMap<String, String>) {
        let limit = |name: &str| settings.get(name).and_then(|value| value.parse::<u64>().ok());
        let ms = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
        let session =
            ms(self.config.kafka.options.get("session.timeout.ms").map_or(SESSION_TIMEOUT_MS, String::as_str));
        let (shortest, longest) = (limit("group.min.session.timeout.ms"), limit("group.max.session.timeout.ms"));
        if shortest.is_some_and(|shortest| session < shortest) || longest.is_some_and(|longest| session > longest) {
            let said = format!(
                "allow sessions from {} to {} ms, the job asks for {session} ms",
                shortest.unwrap_or(0),
                longest.unwrap_or(u64::MAX)
            );
            let remedy = "lower group.min.session.timeout.ms of the brokers, or set \"session.timeout.ms\" in [kafka.options]; a longer session is a longer gap after a crash";
            self.answers.say("broker settings", State::Error, said, Some(remedy.to_owned()));
        }
        if let Some(longest) =
            limit("transaction.max.timeout.ms").filter(|longest| *longest < ms(TRANSACTION_TIMEOUT_MS))
        {
            let said = format!("allow transactions of {longest} ms, the job needs {TRANSACTION_TIMEOUT_MS} ms");
            let remedy = format!("raise transaction.max.timeout.ms of the brokers to {TRANSACTION_TIMEOUT_MS}");
            self.answers.say("broker settings", State::Error, said, Some(remedy));
        }
    }

    /// What the job's user may do with the topics that exist.
    fn rights(&mut self) {
        let topics = self.topics.clone();
        let own = [&topics.canonical, &topics.alerts, &topics.control, &topics.state];
        for name in topics.source.iter().chain(own) {
            self.right(name, Right::Read(TopicPartition::new(name, 0)), "read", "Read");
        }
        for name in own.into_iter().chain([&topics.dead_letters]) {
            self.right(name, Right::Write(TopicPartition::new(name, 0)), "written to", "Write");
        }
        let old = Right::Delete(TopicPartition::new(&topics.state, 0));
        self.right(&topics.state, old, "cleared of old records", "Delete");
        let about = "idempotent producer";
        match self.log.may(&Right::Append) {
            Ok(()) => self.answers.ok(about, "is allowed"),
            Err(error) => {
                let acl = self.acl("--cluster --operation IdempotentWrite");
                let remedy = format!("comes with Write on a topic; brokers before 3.0 want: {acl}");
                self.answers.failed(about, &error, remedy);
            }
        }
    }

    fn right(&mut self, name: &str, right: Right, done: &str, operation: &str) {
        if !self.there.iter().any(|there| there == name) {
            return;
        }
        let about = format!("topic {name}");
        match self.log.may(&right) {
            Ok(()) => self.answers.ok(about, format!("may be {done}")),
            Err(error) => {
                let remedy = self.acl(&format!("--topic {name} --operation {operation}"));
                self.answers.failed(about, &error, remedy);
            }
        }
    }

    /// The command that gives the job's user a right.
    fn acl(&self, what: &str) -> String {
        let user = self.config.kafka.options.get("sasl.username").map_or("...", String::as_str);
        let servers = &self.config.kafka.bootstrap_servers;
        format!("kafka-acls.sh --bootstrap-server {servers} --add --allow-principal User:{user} {what}")
    }

    /// A group with the job's prefix can be joined.
    fn group(&mut self) {
        let Some(topic) = self.there.iter().find(|name| **name == self.topics.alerts).or(self.there.first()) else {
            return;
        };
        let (prefix, group) = (&self.config.group, format!("{}-check", self.config.group));
        match join(self.log, &group, topic) {
            Ok(()) => self
                .answers
                .ok("consumer groups", format!("`{group}` was joined, and so can be all that begin like it")),
            Err(error) => {
                let remedy = self.acl(&format!("--group {prefix} --resource-pattern-type prefixed --operation Read"));
                self.answers.failed("consumer groups", &error, remedy);
            }
        }
    }

    /// A transaction with an id of the job's prefix, aborted; and by how much the clocks differ.
    fn transactions(&mut self, clock: &dyn Clock) {
        let about = "transactions";
        let id = format!("{}-check", self.config.group);
        let mut producer = match self.log.transactional(&id) {
            Ok(producer) => producer,
            Err(error) => {
                let what = format!(
                    "--transactional-id {} --resource-pattern-type prefixed --operation Write --operation Describe",
                    self.config.group
                );
                return self.answers.failed(about, &error, self.acl(&what));
            }
        };
        let alerts = format!("topic {}", self.topics.alerts);
        let is_refused = |answer: &Answer| answer.about == alerts && answer.state == State::Error;
        if !self.there.contains(&self.topics.alerts) || self.answers.0.iter().any(is_refused) {
            return self.answers.ok(about, format!("`{id}` may be used"));
        }
        let to = TopicPartition::new(&self.topics.alerts, 0);
        // The first looks up leaders and coordinators; the second is quick enough to compare clocks by.
        let tried = producer.warm_up(&to).and_then(|_| {
            let before = clock.now_us();
            producer.warm_up(&to).map(|append_us| (before, append_us, clock.now_us()))
        });
        match tried {
            Ok((before, append_us, after)) => {
                self.answers.ok(about, format!("one of `{id}` was begun and aborted"));
                if let Some(append_us) = append_us {
                    self.clocks(broker_ahead_us(before, append_us, after));
                }
            }
            Err(error) => {
                let remedy = self.acl(&format!("--topic {} --operation Write", to.topic));
                self.answers.failed(about, &error, remedy);
            }
        }
    }

    fn clocks(&mut self, ahead_us: Micros) {
        if ahead_us.abs() <= CLOCK_TOLERANCE {
            return self.answers.ok("clocks", "this machine and the broker agree");
        }
        let side = if ahead_us > 0 { "ahead of" } else { "behind" };
        let said = format!("the broker's is {} s {side} this machine's", ahead_us.abs() / SECOND);
        let remedy = "keep both in step (NTP): latencies are measured from one to the other";
        self.answers.say("clocks", State::Warning, said, Some(remedy.to_owned()));
    }
}

/// Joins a group that nobody else is in, and leaves it.
fn join(log: &dyn Inspect, group: &str, topic: &str) -> Result<(), LogError> {
    let mut member = log.join(&Membership {
        group: group.to_owned(),
        topics: vec![topic.to_owned()],
        isolation: Isolation::ReadCommitted,
        instance: None,
    })?;
    let deadline = Instant::now() + JOINED_WITHIN;
    while Instant::now() < deadline {
        for event in member.events(TURN)? {
            if let MemberEvent::Assigned(partitions) = event {
                // At the end, where nothing is to be read.
                let end = |place: &TopicPartition| log.offsets(&place.topic, place.partition).map_or(0, |(_, end)| end);
                let starts: Vec<_> = partitions.into_iter().map(|place| (place.clone(), end(&place))).collect();
                member.start(&starts)?;
                member.leave();
                return Ok(());
            }
        }
    }
    member.leave();
    let what = format!("no partitions within {} s", JOINED_WITHIN.as_secs());
    Err(LogError::new(Remedy::Retry, format!("joining group `{group}`"), what))
}

/// By how much the broker's clock is ahead of this machine's at least; negative where it is behind.
fn broker_ahead_us(before: Micros, append_us: Micros, after: Micros) -> Micros {
    if append_us > after { append_us - after } else { (append_us + APPEND_RESOLUTION - before).min(0) }
}

/// What lies around the job besides the log: sinks, the token of the API, the instance's name.
fn ask_surroundings(config: &Config, clock: &Arc<dyn Clock>) -> Vec<Answer> {
    let mut answers = Answers::default();
    for sink in &config.sink {
        let about = format!("sink {}", sink.name);
        match sink.kind {
            SinkKind::Stdout => answers.ok(about, "standard output"),
            SinkKind::Jsonl => {
                let path = sink.path.as_deref().unwrap_or(Path::new(""));
                match writable(path) {
                    Ok(()) => answers.ok(about, format!("`{}` can be written", path.display())),
                    Err(error) => {
                        let said = format!("`{}` cannot be written: {error}", path.display());
                        let remedy = "make its folder, and give it to the user who runs the job";
                        answers.say(about, State::Error, said, Some(remedy.to_owned()));
                    }
                }
            }
            SinkKind::Webhook => match reach(sink, clock) {
                Ok(()) => answers.ok(about, "the receiver answers; whether it takes alerts, the first one tells"),
                Err(why) => {
                    let remedy = "check `url` and `ca_file`, and that this machine may connect to it";
                    answers.say(about, State::Error, why, Some(remedy.to_owned()));
                }
            },
        }
    }
    if config.record_only {
        let said = "`record_only = true`: everything is decided and stored, nobody is notified";
        answers.say("notifying", State::Warning, said, None);
    }
    if let Err(error) = Token::of(&config.http) {
        answers.say("token of the API", State::Error, format!("{error:#}"), None);
    }
    if config.instance.is_none() {
        let said = "has no name: whenever it is restarted, all instances share out their partitions anew";
        let remedy = "instance = \"...\", another one for each instance, the same after a restart";
        answers.say("instance", State::Warning, said, Some(remedy.to_owned()));
    }
    answers.0
}

/// Whether alerts can be appended to a file; one that was not there is not there afterwards.
fn writable(path: &Path) -> std::io::Result<()> {
    let is_new = !path.exists();
    OpenOptions::new().create(true).append(true).open(path)?;
    if is_new { fs::remove_file(path) } else { Ok(()) }
}

/// Whether a webhook's receiver answers. No alert is sent.
fn reach(sink: &config::Sink, clock: &Arc<dyn Clock>) -> Result<(), String> {
    let settings = sink.webhook().map_err(|fault| format!("`{}`: {}; {}", fault.key, fault.what, fault.remedy))?;
    let webhook = Webhook::new(settings, clock.clone()).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(webhook.reach()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use wardbell_connectors::clock::SystemClock;
    use wardbell_connectors::log::Log;
    use wardbell_connectors::log::memory::MemoryLog;
    use wardbell_rules::SourceFile;

    use super::*;

    fn config(keys: &str) -> Config {
        let text = format!(
            "{keys}\n[source]\ntopics = [\"devices\"]\n[canonical]\npartitions = 2\n[[sink]]\nname = \"c\"\ntype = \"stdout\"\n"
        );
        let (config, faults) = config::parse(&SourceFile { path: "wardbell.toml".to_owned(), text }, &BTreeMap::new());
        assert_eq!(faults, []);
        config.expect("builds")
    }

    fn memory() -> MemoryLog {
        MemoryLog::new(Arc::new(SystemClock))
    }

    fn lines(answers: &[Answer]) -> Vec<String> {
        answers.iter().map(|answer| format!("{} {}: {}", answer.state.name(), answer.about, answer.said)).collect()
    }

    #[test]
    fn a_log_with_everything_in_place_is_asked_and_stays_as_it_is() {
        let (log, config) = (memory(), config("instance = \"a\""));
        log.prepare(&topic_specs(&Topics { create_source: Some(3), ..config.topics() })).expect("made");
        let answers = ask_log(&config, &log, &SystemClock);
        assert_eq!(
            lines(&answers)[..3],
            [
                "ok broker: answers at 127.0.0.1:9092",
                "ok topic devices: partitions: 3, settings as they should be",
                "ok topic wardbell.readings: partitions: 2, settings as they should be",
            ]
        );
        assert!(answers.iter().all(|answer| answer.state == State::Ok), "{answers:#?}");
        for about in ["idempotent producer", "consumer groups", "transactions"] {
            assert!(answers.iter().any(|answer| answer.about == about), "{about}: {answers:#?}");
        }
        let own = ["wardbell.readings", "wardbell.dead-letters", "wardbell.control", "wardbell.state"];
        for topic in ["devices"].into_iter().chain(own) {
            assert_eq!(log.offsets(topic, 0).expect("there"), (0, 0), "{topic}");
        }
        assert_eq!(log.dump("wardbell.alerts", 0), [], "what was tried there was aborted");
        let joined = [TopicPartition::new("wardbell.alerts", 0)];
        assert_eq!(log.committed("wardbell-check", &joined).expect("asked"), [None]);
    }

    #[test]
    fn everything_that_is_missing_is_named_at_once() {
        let (log, config) = (memory(), config("create_topics = false"));
        let answers = ask_log(&config, &log, &SystemClock);
        let missing = answers.iter().filter(|answer| answer.state == State::Error && answer.remedy.is_some()).count();
        assert_eq!(missing, 6, "{answers:#?}");
        let made = ask_log(&Config { create_topics: true, ..config }, &log, &SystemClock);
        let errors: Vec<_> = made.iter().filter(|answer| answer.state == State::Error).collect();
        assert!(errors.len() == 1 && errors[0].about == "topic devices", "{made:#?}");
        assert!(log.describe("wardbell.readings").is_err(), "looking makes no topic");
    }

    #[test]
    fn limits_that_the_job_does_not_fit_into_are_errors() {
        let (log, config) = (memory(), config(""));
        let found = |settings: &[(&str, &str)]| {
            let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let topics = config.topics();
            let mut asking =
                Asking { config: &config, log: &log, topics, there: Vec::new(), answers: Answers::default() };
            asking.limits(&settings);
            lines(&asking.answers.0)
        };
        assert_eq!(
            found(&[("group.min.session.timeout.ms", "6000"), ("transaction.max.timeout.ms", "900000")]),
            [""; 0]
        );
        assert_eq!(
            found(&[("group.min.session.timeout.ms", "10000"), ("group.max.session.timeout.ms", "300000")]),
            ["error broker settings: allow sessions from 10000 to 300000 ms, the job asks for 6000 ms"]
        );
        assert_eq!(
            found(&[("transaction.max.timeout.ms", "5000")]),
            ["error broker settings: allow transactions of 5000 ms, the job needs 10000 ms"]
        );
    }

    #[test]
    fn clocks_differ_by_what_the_time_between_two_looks_does_not_explain() {
        assert_eq!(broker_ahead_us(10_000, 12_000, 15_000), 0);
        assert_eq!(broker_ahead_us(10_500, 10_000, 15_000), 0, "append times are whole milliseconds");
        assert_eq!(broker_ahead_us(10_000, 20_000, 15_000), 5_000);
        assert_eq!(broker_ahead_us(10_000, 4_000, 15_000), -5_000);
    }

    #[test]
    fn files_and_receivers_are_tried_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let (good, bad) = (folder.path().join("alerts.jsonl"), folder.path().join("missing/alerts.jsonl"));
        let secret = folder.path().join("secret");
        fs::write(&secret, "0123456789abcdef0123456789abcdef").expect("written");
        // Bound for a moment to find a port that nobody listens on.
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        drop(socket);
        let mut config = config("record_only = true");
        let of_file = |name: &str, path: &Path| config::Sink {
            name: name.to_owned(),
            kind: SinkKind::Jsonl,
            path: Some(path.to_owned()),
            ..config.sink[0].clone()
        };
        let pager = config::Sink {
            name: "pager".to_owned(),
            kind: SinkKind::Webhook,
            url: Some(format!("http://127.0.0.1:{port}/alerts")),
            secret_file: Some(secret),
            ..config.sink[0].clone()
        };
        config.sink = vec![of_file("good", &good), of_file("bad", &bad), pager];
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let answers = ask_surroundings(&config, &clock);
        let states: Vec<(&str, State)> = answers.iter().map(|answer| (answer.about.as_str(), answer.state)).collect();
        assert_eq!(
            states,
            [
                ("sink good", State::Ok),
                ("sink bad", State::Error),
                ("sink pager", State::Error),
                ("notifying", State::Warning),
                ("instance", State::Warning),
            ]
        );
        assert!(!good.exists());
    }
}
