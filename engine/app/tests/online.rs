//! `wardbell check --online` against real brokers: what is missing is named with the command that puts it right, what
//! the deployment example makes is enough for a job, and asking changes nothing.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use wardbell::config;
use wardbell::pipeline::{Topics, topic_specs};
use wardbell_connectors::log::kafka::KafkaLog;
use wardbell_connectors::log::{
    Isolation, Log, MemberEvent, Membership, Outgoing, StampedBy, TopicPartition, TopicSpec,
};
use wardbell_kafka_server as server;

const PATIENCE: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A configuration with topics and a group of its own.
struct Site {
    folder: tempfile::TempDir,
    name: String,
    topics: Topics,
}

impl Site {
    fn new(kafka: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let name = server::fresh("online");
        let text = format!(
            "site = \"online\"\ngroup = \"{name}\"\ninstance = \"a\"\nrules = {:?}\n[kafka]\n{kafka}\n\
             [source]\ntopics = [\"{name}.devices\"]\n[canonical]\ntopic = \"{name}.readings\"\npartitions = 2\n\
             [alerts]\ntopic = \"{name}.alerts\"\n[dead_letters]\ntopic = \"{name}.dead-letters\"\n\
             [control]\ntopic = \"{name}.control\"\n[state]\ntopic = \"{name}.state\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
             [[sink]]\nname = \"file\"\ntype = \"jsonl\"\npath = {:?}\n",
            root().join("examples/first-rule").display().to_string(),
            folder.path().join("alerts.jsonl").display().to_string(),
        )
        .replace("FOLDER", &folder.path().display().to_string());
        let file = folder.path().join("wardbell.toml");
        std::fs::write(&file, text).expect("written");
        let topics = config::load(&file).expect("the configuration is sound").topics();
        Self { folder, name, topics }
    }

    fn file(&self) -> String {
        self.folder.path().join("wardbell.toml").display().to_string()
    }

    fn own_topics(&self) -> [&str; 5] {
        let topics = &self.topics;
        [&topics.canonical, &topics.alerts, &topics.dead_letters, &topics.control, &topics.state].map(String::as_str)
    }

    /// Exit code and answers of `check --online`.
    fn check(&self, environment: &[(&str, &str)]) -> (Option<i32>, Answers) {
        let output = Command::new(env!("CARGO_BIN_EXE_wardbell"))
            .args(["check", "--online", "--json", &self.file()])
            .envs(environment.iter().copied())
            .output()
            .expect("the binary runs");
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        (output.status.code(), Answers(report["online"][0]["answers"].clone()))
    }
}

/// What was answered.
#[derive(Debug)]
struct Answers(Value);

impl Answers {
    /// What was said about something in a state, with the remedies.
    fn of(&self, about: &str, state: &str) -> String {
        let answers = self.0.as_array().expect("answers");
        let wanted = answers.iter().filter(|answer| answer["about"] == about && answer["state"] == state);
        wanted.map(|answer| format!("{}: {}\n", answer["said"], answer["remedy"])).collect()
    }

    /// Everything that is an error or a warning.
    fn faults(&self) -> Vec<&Value> {
        self.0.as_array().expect("answers").iter().filter(|answer| answer["state"] != "ok").collect()
    }
}

fn plain(bootstrap: &str) -> KafkaLog {
    let options = BTreeMap::from([("bootstrap.servers".to_owned(), bootstrap.to_owned())]);
    KafkaLog::new(options).expect("the options are valid")
}

#[test]
fn what_is_missing_or_wrong_is_named_with_the_command_that_puts_it_right() {
    let test = "what_is_missing_or_wrong_is_named_with_the_command_that_puts_it_right";
    let Some(bootstrap) = server::bootstrap(test) else {
        return;
    };
    let (log, site) = (plain(bootstrap), Site::new(&format!("bootstrap_servers = \"{bootstrap}\"")));

    let (code, answers) = site.check(&[("WARDBELL__SOURCE__CREATE_PARTITIONS", "2")]);
    assert_eq!(code, Some(0), "{answers:#?}");
    for topic in site.own_topics() {
        let said = answers.of(&format!("topic {topic}"), "ok");
        assert!(said.contains("the job makes it"), "{topic}: {answers:#?}");
        assert!(log.describe(topic).is_err(), "{topic}: looking makes no topic");
    }

    let (code, answers) = site.check(&[("WARDBELL__CREATE_TOPICS", "false")]);
    assert_eq!(code, Some(1), "{answers:#?}");
    for topic in site.own_topics().into_iter().chain([site.topics.source[0].as_str()]) {
        let said = answers.of(&format!("topic {topic}"), "error");
        let command = format!("kafka-topics.sh --bootstrap-server {bootstrap} --create --topic {topic} --partitions");
        assert!(said.contains("does not exist") && said.contains(&command), "{topic}: {answers:#?}");
    }

    let spec = |name: &str, partitions: i32, stamped_by: StampedBy| TopicSpec {
        name: name.to_owned(),
        partitions,
        stamped_by,
        retention: Some(Duration::from_secs(3_600)),
        create: true,
        any_partitions: true,
    };
    let (source, canonical, alerts) = (&site.topics.source[0], &site.topics.canonical, &site.topics.alerts);
    log.prepare(&[
        spec(source, 1, StampedBy::Producer),
        spec(canonical, 2, StampedBy::Producer),
        spec(alerts, 3, StampedBy::Broker),
    ])
    .expect("the topics are made");
    let (code, answers) = site.check(&[]);
    assert_eq!(code, Some(1), "{answers:#?}");
    let warned = answers.of(&format!("topic {source}"), "warning");
    assert!(warned.contains("message.timestamp.type=LogAppendTime"), "{answers:#?}");
    let command = format!("kafka-configs.sh --bootstrap-server {bootstrap} --alter --topic {canonical} --add-config");
    let wrong = answers.of(&format!("topic {canonical}"), "error");
    for setting in ["message.timestamp.type=LogAppendTime", "retention.ms=604800000"] {
        assert!(wrong.contains(&format!("{command} {setting}")), "{setting}: {answers:#?}");
    }
    assert!(answers.of(&format!("topic {alerts}"), "error").contains("3 partitions but 2"), "{answers:#?}");
}

#[test]
fn asking_fences_nobody_moves_no_partition_and_leaves_nothing_to_read() {
    let test = "asking_fences_nobody_moves_no_partition_and_leaves_nothing_to_read";
    let Some(bootstrap) = server::bootstrap(test) else {
        return;
    };
    let (log, site) = (plain(bootstrap), Site::new(&format!("bootstrap_servers = \"{bootstrap}\"")));
    let topics = Topics { create_source: Some(1), ..site.topics.clone() };
    let specs: Vec<TopicSpec> =
        topic_specs(&topics).into_iter().map(|spec| TopicSpec { create: true, ..spec }).collect();
    log.prepare(&specs).expect("the topics are made");
    // What a job holds: a transactional id and a place in its group.
    let mut owner = log.transactional(&format!("{}-{}-0", site.name, topics.canonical)).expect("a producer");
    let mut member = log
        .join(&Membership {
            group: site.name.clone(),
            topics: vec![topics.canonical.clone()],
            isolation: Isolation::ReadCommitted,
            instance: None,
        })
        .expect("a member");
    let deadline = Instant::now() + PATIENCE;
    let mut assigned = Vec::new();
    while assigned.is_empty() && Instant::now() < deadline {
        for event in member.events(Duration::from_millis(50)).expect("events") {
            if let MemberEvent::Assigned(partitions) = event {
                assigned = partitions.into_iter().map(|partition| (partition, 0)).collect();
                member.start(&assigned).expect("starts");
            }
        }
    }
    assert_eq!(assigned.len(), 2);

    let mut events = Vec::new();
    let (code, answers) = std::thread::scope(|scope| {
        let checking = scope.spawn(|| site.check(&[]));
        while !checking.is_finished() {
            events.extend(member.events(Duration::from_millis(50)).expect("events"));
        }
        checking.join().expect("checked")
    });
    assert_eq!(events, [], "the job's group is left alone");
    assert_eq!(code, Some(0), "{answers:#?}");
    assert_eq!(answers.faults(), [] as [&Value; 0], "{answers:#?}");
    for about in ["consumer groups", "transactions", "idempotent producer", "clocks", "sink file"] {
        assert!(!answers.of(about, "ok").is_empty(), "{about}: {answers:#?}");
    }

    member.leave();
    let own = [&topics.canonical, &topics.dead_letters, &topics.control, &topics.state];
    for name in topics.source.iter().chain(own) {
        assert_eq!(log.offsets(name, 0).expect("there"), (0, 0), "{name}");
    }
    let place = TopicPartition::new(&topics.alerts, 0);
    let mut reader = log.reader(&place, 0, Isolation::ReadCommitted).expect("a reader");
    let mut records = Vec::new();
    let alert = Outgoing { topic: topics.alerts.clone(), value: Some(b"{}".to_vec()), ..Outgoing::default() };
    owner.commit(&[alert], None).expect("nobody took the id over");
    while records.is_empty() && Instant::now() < deadline {
        reader.read(10, Duration::from_millis(50), &mut records).expect("reads");
    }
    assert_eq!(records.len(), 1, "what was aborted is read by nobody");
    assert!(!site.folder.path().join("alerts.jsonl").exists());
}

/// Kafka's tools under the names they have in a distribution, for the one folder in front of PATH.
fn tools(folder: &Path) -> String {
    for name in ["topics", "acls"] {
        let tool = folder.join(format!("kafka-{name}.sh"));
        let text = format!("#!/bin/sh\nexec '{}' tool {name} \"$@\"\n", server::script().display());
        std::fs::write(&tool, text).expect("written");
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).expect("set");
    }
    format!("{}:{}", folder.display(), std::env::var("PATH").expect("a PATH"))
}

/// Ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the job until it says that it is ready, then has it stop; what it says of itself if it does not.
fn run_until_ready(site: &Site) -> Result<(), String> {
    let log = site.folder.path().join("run.log");
    let stderr = std::fs::File::create(&log).expect("a file");
    let child = Command::new(env!("CARGO_BIN_EXE_wardbell"))
        .args(["run", "--config", &site.file()])
        .env("WARDBELL_LOG", "debug")
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("the binary runs");
    let mut process = Process(child);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let deadline = Instant::now() + PATIENCE;
    let mut answer = String::new();
    while !answer.starts_with("HTTP/1.1 200") {
        if Instant::now() > deadline || process.0.try_wait().expect("asked").is_some() {
            return Err(format!("not ready: {answer}\n{}", said()));
        }
        std::thread::sleep(Duration::from_millis(100));
        let text = said();
        let address = text.split_once("listening on http://").and_then(|(_, rest)| rest.split(' ').next());
        let Some(mut stream) = address.and_then(|address| TcpStream::connect(address).ok()) else {
            continue;
        };
        let request = "GET /readyz HTTP/1.1\r\nHost: wardbell\r\nConnection: close\r\n\r\n";
        answer.clear();
        let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
    }
    let pid = process.0.id().to_string();
    Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().expect("a shell");
    match process.0.wait().expect("it ends").code() {
        Some(0) => Ok(()),
        code => Err(format!("exit code {code:?}\n{}", said())),
    }
}

#[test]
fn the_rights_of_the_deployment_example_are_enough_and_each_that_is_missing_is_named() {
    let test = "the_rights_of_the_deployment_example_are_enough_and_each_that_is_missing_is_named";
    let Some(server) = server::guarded(test) else {
        return;
    };
    let site = Site::new(&format!(
        "bootstrap_servers = \"{}\"\nsasl_password_file = \"FOLDER/password\"\n[kafka.options]\n\
         \"security.protocol\" = \"SASL_SSL\"\n\"sasl.mechanism\" = \"{}\"\n\"sasl.username\" = \"{}\"\n\
         \"ssl.ca.location\" = \"{}\"",
        server.bootstrap,
        server.mechanism,
        server.user,
        server.ca.display()
    ));
    std::fs::write(site.folder.path().join("password"), &server.password).expect("written");
    let must_exist = [("WARDBELL__CREATE_TOPICS", "false")];

    let (code, answers) = site.check(&must_exist);
    assert_eq!(code, Some(1), "{answers:#?}");
    for topic in site.own_topics() {
        assert!(answers.of(&format!("topic {topic}"), "error").contains("kept from us"), "{topic}: {answers:#?}");
    }
    let acl = format!("--add --allow-principal User:{} ", server.user);
    let named = [
        ("idempotent producer", "--cluster --operation IdempotentWrite".to_owned()),
        (
            "transactions",
            format!("--transactional-id {} --resource-pattern-type prefixed --operation Write", site.name),
        ),
    ];
    for (about, right) in named {
        let said = answers.of(about, "error");
        assert!(said.contains(&acl) && said.contains(&right), "{about}: {answers:#?}");
    }
    assert!(!format!("{answers:?}").contains(&server.password));

    let bin = tempfile::tempdir().expect("a folder");
    let path = tools(bin.path());
    let topics = &site.topics;
    let granted = Command::new("sh")
        .arg(root().join("examples/deployment/topics-and-rights.sh"))
        .args(["--bootstrap-server", &server.plain])
        .env("PATH", &path)
        .env("WARDBELL_USER", format!("User:{}", server.user))
        .env("WARDBELL_GROUP", &site.name)
        .env("WARDBELL_SOURCE", &topics.source[0])
        .env("WARDBELL_CANONICAL", &topics.canonical)
        .env("WARDBELL_ALERTS", &topics.alerts)
        .env("WARDBELL_DEAD_LETTERS", &topics.dead_letters)
        .env("WARDBELL_CONTROL", &topics.control)
        .env("WARDBELL_STATE", &topics.state)
        .env("WARDBELL_PARTITIONS", "2")
        .env("WARDBELL_COPIES", "1")
        .env("WARDBELL_COPIES_NEEDED", "1")
        .output()
        .expect("the script runs");
    assert!(granted.status.success(), "{}", String::from_utf8_lossy(&granted.stderr));
    let (code, answers) = site.check(&must_exist);
    assert_eq!(code, Some(0), "{answers:#?}");
    assert_eq!(answers.faults(), [] as [&Value; 0], "{answers:#?}");
    run_until_ready(&site).expect("the job gets ready with these rights, and stops");
    let logged = std::fs::read_to_string(site.folder.path().join("run.log")).expect("a log");
    assert!(logged.contains("the job runs") && !logged.contains(&server.password));

    for (n_taken, (topic, operation)) in (1..).zip([(&topics.alerts, "Write"), (&topics.state, "Delete")]) {
        let taken = Command::new(bin.path().join("kafka-acls.sh"))
            .args(["--bootstrap-server", &server.plain, "--remove", "--force", "--operation", operation])
            .args(["--allow-principal", &format!("User:{}", server.user), "--topic", topic])
            .output()
            .expect("the tool runs");
        assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
        let (code, answers) = site.check(&must_exist);
        assert_eq!(code, Some(1), "{answers:#?}");
        let said = answers.of(&format!("topic {topic}"), "error");
        assert!(said.contains(&format!("--topic {topic} --operation {operation}")), "{answers:#?}");
        assert_eq!(answers.faults().len(), n_taken, "{answers:#?}");
    }
}
