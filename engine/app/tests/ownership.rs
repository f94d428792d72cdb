//! Partitions that change hands on a real Kafka: whoever joins, leaves, stops or is started again, what is decided is what
//! the canonical log says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wardbell::pipeline::{Job, JobSettings, Topics, replay};
use wardbell::sets::{ControlTopic, Document};
use wardbell_connectors::clock::{Clock, SystemClock};
use wardbell_connectors::log::kafka::KafkaLog;
use wardbell_connectors::log::{Log, Outgoing, Remedy, StampedBy, TopicSpec};
use wardbell_core::partition::Settings;
use wardbell_kafka_server as server;
use wardbell_rules::SourceFile;
use wardbell_schemas::alert::{Content, Kind, TransitionKind, content_bytes, print_time};

const PATIENCE: Duration = Duration::from_secs(90);
const SOURCE_PARTITIONS: i32 = 4;
const PATIENTS: u64 = 48;
/// Time between two readings of a patient.
const READING_EVERY: Duration = Duration::from_millis(250);
/// A patient is well for so many seconds, then unwell, then well.
const SPELL_S: i64 = 4;
/// As long as a process may take to start again without losing its place, and far longer than a test waits for a place
/// that is given up.
const SESSION_MS: u64 = 180_000;

// ---------------------------------------------------------------------------------------------------------------------
// Jobs of this process
// ---------------------------------------------------------------------------------------------------------------------

/// Topics of one test, all fresh, on a real Kafka.
struct Ward {
    log: Arc<dyn Log>,
    topics: Topics,
}

impl Ward {
    fn new(bootstrap: &str, partitions: i32) -> Self {
        let options = BTreeMap::from([("bootstrap.servers".to_owned(), bootstrap.to_owned())]);
        let log: Arc<dyn Log> = Arc::new(KafkaLog::new(options).expect("the options are valid"));
        let name = server::fresh("ownership");
        let topics = Topics::named(&name, vec![format!("{name}.source")], partitions);
        let source = TopicSpec::of_others(&topics.source[0], SOURCE_PARTITIONS, StampedBy::Broker);
        log.prepare(&[source]).expect("the source topic is made");
        Self { log, topics }
    }

    /// One more instance of the job.
    fn start(&self) -> Job {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Job::start(self.settings(), self.log.clone(), Arc::new(SystemClock)) {
                Ok(job) => return job,
                // Topics that were just made have no leader for a moment.
                Err(error) if error.remedy == Remedy::Retry && Instant::now() < deadline => {}
                Err(error) => panic!("the job does not start: {error}"),
            }
        }
    }

    fn settings(&self) -> JobSettings {
        JobSettings {
            commit_every: Duration::from_millis(500),
            checkpoint_every: Duration::from_secs(2),
            tick_every: Duration::from_millis(500),
            leave_on_exit: true,
            ..JobSettings::new(
                &format!("{}.job", self.topics.canonical),
                self.topics.clone(),
                Document::new(&rules(), &decision()),
            )
        }
    }

    /// Sends steadily until told to stop; gives the number of readings.
    fn send(&self, stop: &AtomicBool) -> u64 {
        let mut appender = self.log.appender().expect("an appender");
        let mut outcomes = Vec::new();
        let mut token = 0;
        while !stop.load(Ordering::SeqCst) {
            for patient in 0..PATIENTS {
                let record = reading(&self.topics.source[0], patient, SystemClock.now_us());
                appender.append(&record, token).expect("taken");
                token += 1;
            }
            appender.outcomes(READING_EVERY, &mut outcomes);
            std::thread::sleep(READING_EVERY);
        }
        let deadline = Instant::now() + PATIENCE;
        while appender.in_flight() > 0 && Instant::now() < deadline {
            appender.outcomes(Duration::from_millis(10), &mut outcomes);
        }
        let acknowledged = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count() as u64;
        assert_eq!(acknowledged, token, "every record is in the source topic");
        2 * token
    }

    /// Every reading has one outcome, and what was committed is what the canonical log says, each transition once.
    fn assert_nothing_lost_or_twice(&self, n_readings: u64) {
        let sets = ControlTopic::new(self.log.clone(), &self.topics.control);
        let offline = replay::canonical_log(&*self.log, &self.topics.canonical, &sets).expect("replays");
        assert_eq!(offline.outcomes.total(), n_readings, "every reading is in the canonical log");
        let alerts = replay::alerts(&*self.log, &self.topics.alerts).expect("the alerts can be read");
        let mut ids = BTreeSet::new();
        let mut n_raised = 0;
        for (partition, (found, expected)) in alerts.into_iter().zip(offline.partitions).enumerate() {
            let found: Vec<Content> = found.into_iter().map(|alert| alert.data.content).collect();
            for content in &found {
                assert!(ids.insert(content.id.clone()), "twice in partition {partition}: {}", content.id);
                let is_raise = content.rule.id == "mean-low" && content.transition == TransitionKind::Raised;
                n_raised += u64::from(is_raise);
            }
            // Ticks that came after the last decision may have let timers of devices fire.
            let (decided, after) = expected.split_at(found.len().min(expected.len()));
            let bytes = |contents: &[Content]| contents.iter().map(content_bytes).collect::<Vec<_>>();
            assert_eq!(bytes(&found), bytes(decided), "partition {partition}");
            assert!(after.iter().all(|content| content.kind == Kind::Technical), "partition {partition}: {after:?}");
        }
        assert!(n_raised >= PATIENTS, "{n_raised} alerts of {PATIENTS} patients");
    }
}

fn decision() -> Settings {
    Settings::new("ownership")
}

/// A rule that needs a window and a hold, and one that needs neither.
fn rules() -> Vec<SourceFile> {
    let rule = |id: &str, raise: &str, hold: &str| SourceFile {
        path: format!("{id}.rhai"),
        text: format!(
            "const RULE = #{{ id: \"{id}\", version: 1, owner: \"o\", priority: \"high\", hold: \"{hold}\" }};\nfn raise(spo2) {{ {raise} }}\n"
        ),
    };
    vec![rule("last-low", "spo2.last < 90.0", "0s"), rule("mean-low", "spo2.mean(\"3s\") < 92.0", "1s")]
}

fn reading(topic: &str, patient: u64, now_us: i64) -> Outgoing {
    let is_low = (now_us / 1_000_000 + patient as i64) / SPELL_S % 2 == 0;
    let (spo2, time) = (if is_low { 80 } else { 97 }, print_time(now_us));
    let json = format!(
        r#"{{"patient":"p{patient}","device":"m{patient}","time":"{time}","readings":[{{"signal":"spo2","value":{spo2},"unit":"%"}},{{"signal":"heart_rate","value":80,"unit":"/min"}}]}}"#
    );
    Outgoing {
        topic: topic.to_owned(),
        partition: (patient % SOURCE_PARTITIONS as u64) as i32,
        value: Some(json.into_bytes()),
        ..Outgoing::default()
    }
}

/// Also at the end of a test that fails: nobody waits for the sender then.
struct StopsAtEnd<'a>(&'a AtomicBool);

impl Drop for StopsAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a job decides in so many partitions.
fn wait_for_partitions(job: &Job, n_partitions: usize) {
    wait_until(&format!("{n_partitions} partitions"), || {
        if let Some(failure) = job.failure() {
            panic!("the job cannot go on: {failure}");
        }
        let in_force = job.sets_in_force();
        in_force.len() == n_partitions && in_force.values().all(|number| *number > 0)
    });
}

fn finish(job: Job) {
    job.drain(PATIENCE).expect("everything is worked through");
    assert!(job.stop(), "all stages end");
}

#[test]
fn an_instance_that_joins_and_leaves_every_few_seconds_loses_and_repeats_nothing() {
    let Some(bootstrap) =
        server::bootstrap("an_instance_that_joins_and_leaves_every_few_seconds_loses_and_repeats_nothing")
    else {
        return;
    };
    let ward = Ward::new(bootstrap, 8);
    let stop = AtomicBool::new(false);
    let (first, second) = (ward.start(), ward.start());
    wait_for_partitions(&first, 4);
    wait_for_partitions(&second, 4);
    let n_readings = std::thread::scope(|scope| {
        let sending = scope.spawn(|| ward.send(&stop));
        let stops = StopsAtEnd(&stop);
        for _ in 0..4 {
            let third = ward.start();
            wait_until("the third has partitions", || !third.sets_in_force().is_empty());
            std::thread::sleep(Duration::from_secs(3));
            assert!(third.stop(), "all stages end");
            std::thread::sleep(Duration::from_secs(2));
        }
        drop(stops);
        sending.join().expect("sent")
    });
    assert!(second.stop(), "all stages end");
    finish(first);
    ward.assert_nothing_lost_or_twice(n_readings);
}

#[test]
fn thirty_two_partitions_are_taken_over_and_nothing_is_lost_or_repeated() {
    let Some(bootstrap) = server::bootstrap("thirty_two_partitions_are_taken_over_and_nothing_is_lost_or_repeated")
    else {
        return;
    };
    let ward = Ward::new(bootstrap, 32);
    let stop = AtomicBool::new(false);
    let first = ward.start();
    wait_for_partitions(&first, 32);
    let (second, n_readings) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| ward.send(&stop));
        let stops = StopsAtEnd(&stop);
        std::thread::sleep(Duration::from_secs(10));
        assert!(first.stop(), "all stages end");
        let began = Instant::now();
        let second = ward.start();
        wait_for_partitions(&second, 32);
        println!("32 partitions were taken over in {} ms, from the start of the job", began.elapsed().as_millis());
        std::thread::sleep(Duration::from_secs(5));
        drop(stops);
        (second, sending.join().expect("sent"))
    });
    finish(second);
    ward.assert_nothing_lost_or_twice(n_readings);
}

// ---------------------------------------------------------------------------------------------------------------------
// Instances with a name, as processes
// ---------------------------------------------------------------------------------------------------------------------

/// One `wardbell run`; it ends with the test.
struct Instance {
    process: Child,
    stderr: PathBuf,
}

impl Instance {
    fn start(config: &Path, name: &str, options: &[&str]) -> Self {
        let stderr = config.with_file_name(server::fresh(&format!("{name}.log")));
        let process = Command::new(env!("CARGO_BIN_EXE_wardbell"))
            .args(["run", "--config"])
            .arg(config)
            .args(options)
            .env("WARDBELL__INSTANCE", name)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&stderr).expect("a file"))
            .spawn()
            .expect("the binary runs");
        Self { process, stderr }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Canonical partitions that it says it holds; `None` while it does not answer.
    fn partitions(&self) -> Option<BTreeSet<i64>> {
        let said = self.said();
        let address = said.split_once("listening on http://")?.1.split(' ').next()?;
        let mut stream = TcpStream::connect(address).ok()?;
        let mut answer = String::new();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: wardbell\r\nConnection: close\r\n\r\n").ok()?;
        stream.read_to_string(&mut answer).ok()?;
        let health: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        let held = health["partitions"].as_array()?;
        Some(held.iter().filter_map(|place| place["partition"].as_i64()).collect())
    }

    fn wait_for(&self, n_partitions: usize) -> BTreeSet<i64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let held = self.partitions();
            match &held {
                Some(held) if held.len() == n_partitions => return held.clone(),
                _ => assert!(Instant::now() < deadline, "{held:?}, not {n_partitions} partitions:\n{}", self.said()),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGTERM, and waits for the end.
    fn terminate(mut self) {
        let pid = self.process.id().to_string();
        Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().expect("a shell");
        let code = self.process.wait().expect("it ends").code();
        assert_eq!(code, Some(0), "{}", self.said());
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_stopped_instance_keeps_its_partitions_for_a_restart_unless_it_is_told_to_leave() {
    let Some(bootstrap) =
        server::bootstrap("a_stopped_instance_keeps_its_partitions_for_a_restart_unless_it_is_told_to_leave")
    else {
        return;
    };
    let (folder, name) = (tempfile::tempdir().expect("a folder"), server::fresh("named"));
    let config = folder.path().join("wardbell.toml");
    let rules = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/first-rule");
    let text = format!(
        "site = \"ownership\"\ngroup = \"{name}\"\nrules = {:?}\nwatch_rules = false\n\
         [kafka]\nbootstrap_servers = \"{bootstrap}\"\n\
         [kafka.options]\n\"session.timeout.ms\" = \"{SESSION_MS}\"\n\"max.poll.interval.ms\" = \"{SESSION_MS}\"\n\
         [source]\ntopics = [\"{name}.devices\"]\ncreate_partitions = 2\n\
         [canonical]\ntopic = \"{name}.readings\"\npartitions = 4\n[alerts]\ntopic = \"{name}.alerts\"\n\
         [dead_letters]\ntopic = \"{name}.dead-letters\"\n[control]\ntopic = \"{name}.control\"\n\
         [state]\ntopic = \"{name}.state\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[sink]]\nname = \"console\"\ntype = \"stdout\"\n",
        rules.display().to_string(),
    );
    std::fs::write(&config, text).expect("written");
    let first = Instance::start(&config, "a", &[]);
    first.wait_for(4);
    let second = Instance::start(&config, "b", &[]);
    let (of_second, of_first) = (second.wait_for(2), first.wait_for(2));
    assert!(of_first.is_disjoint(&of_second), "{of_first:?} {of_second:?}");

    first.terminate();
    let first = Instance::start(&config, "a", &["--leave-on-exit"]);
    let deadline = Instant::now() + PATIENCE;
    while first.partitions().as_ref() != Some(&of_first) {
        let held = second.partitions();
        assert!(held.as_ref().is_none_or(|held| *held == of_second), "moved while the first was away: {held:?}");
        assert!(Instant::now() < deadline, "the first does not get its partitions back:\n{}", first.said());
        std::thread::sleep(Duration::from_millis(50));
    }

    first.terminate();
    let all = second.wait_for(4);
    assert!(of_first.is_subset(&all) && of_second.is_subset(&all), "{all:?}");
}
