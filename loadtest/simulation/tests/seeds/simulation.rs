//! One run: a ward for ten minutes, a few instances of the job, and faults, all drawn from a seed.
//!
//! Everything runs in one process and in simulated time: the instances are the real job on the in-memory log, the root
//! thread plays the world around them. It starts and kills instances, takes the broker away, activates rule sets and has
//! faults happen at fault points; afterwards everything is brought back, what is left is worked off, and the laws are
//! checked on what the topics hold.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use wardbell::pipeline::{Job, JobSettings, SinkSettings, Topics};
use wardbell::sets::{ControlTopic, Document};
use wardbell::verify::{Scope, verify};
use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{Log, Outgoing, Record, Remedy, StampedBy, TopicPartition, TopicSpec};
use wardbell_connectors::runtime::fault::{Action, Fault, POINTS};
use wardbell_connectors::runtime::simulated::{WORLD, World};
use wardbell_connectors::runtime::{self, Instant};
use wardbell_connectors::sink::Identity;
use wardbell_core::partition::Settings;
use wardbell_rules::SourceFile;
use wardbell_schemas::Micros;
use wardbell_schemas::catalogue::hex;

use wardbell_simulation::laws::{Delivered, Run, violations};
use wardbell_simulation::{rules, ward};

use crate::sinks::{Receiver, SimulatedSink};

/// How long the ward sends.
pub const LENGTH: Duration = Duration::from_secs(600);
/// Afterwards everything must have been worked off within this.
const REST: Duration = Duration::from_secs(180);
/// So long after the end nothing fails any more and everybody is back.
const CALM: Duration = Duration::from_secs(45);
/// 2026-01-01T00:00:00Z, when every run begins.
const BEGIN_US: Micros = 1_767_225_600_000_000;
/// The broker believes this long in a member that is silent.
const SESSION: Duration = Duration::from_secs(6);
const GROUP: &str = "ward";
const SITE: &str = "simulation";
const PARTITIONS: i32 = 3;
static TOPICS: LazyLock<Topics> = LazyLock::new(|| {
    let source = ward::TOPICS.iter().map(|(name, _)| (*name).to_owned()).collect();
    Topics::named(GROUP, source, PARTITIONS)
});
const SINKS: [&str; 2] = ["pager", "board"];
/// What was decided so long before the end has reached every sink.
const SETTLED_US: Micros = 10_000_000;
/// Nothing is sent so long after the end.
const LATEST: Duration = Duration::from_secs(20);
/// The world looks around this often.
const LOOK: Duration = Duration::from_millis(500);
/// The fewest faults of a run.
const FAULTS_MIN: usize = 4;

/// What came of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub seed: u64,
    /// Laws that were broken, in words; empty is good.
    pub violations: Vec<String>,
    /// Faults that happened, in words.
    pub faults: Vec<String>,
    /// Times each fault point was reached, and times something happened there.
    pub reached: BTreeMap<&'static str, u64>,
    pub happened: BTreeMap<&'static str, u64>,
    /// Source records.
    pub records: u64,
    pub transitions: u64,
    pub deliveries: u64,
    /// Hash over everything that the topics hold: the same for the same seed.
    pub digest: String,
    pub switches: u64,
}

/// Runs a seed, without one of the safeguards if it is named.
pub fn simulate(seed: u64, removed: Option<&'static str>) -> Outcome {
    let outcome = World::run(seed, move |world| {
        if let Some(removed) = removed {
            world.remove(removed);
        }
        Simulation::new(world, seed).run()
    });
    outcome.unwrap_or_else(|what| Outcome {
        seed,
        violations: vec![format!("the simulation panicked: {what}")],
        ..Outcome::default()
    })
}

/// The broker's clock, and each instance's own.
#[derive(Debug, Clone)]
struct SimulatedClock {
    begin: Instant,
    offset_us: Arc<AtomicI64>,
}

impl Clock for SimulatedClock {
    fn now_us(&self) -> Micros {
        let elapsed = self.begin.elapsed().as_micros() as Micros;
        BEGIN_US + elapsed + self.offset_us.load(Ordering::SeqCst)
    }
}

/// What happens, and when.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// An instance ends where it stands, and comes back after this; in place if before its session is over.
    Kill { name: usize, away: Duration },
    /// An instance stands still.
    Freeze { name: usize, pause: Duration },
    /// An instance leaves in good order and comes back.
    Leave { name: usize, away: Duration },
    /// No broker answers.
    Outage { pause: Duration },
    /// Another rule set is published.
    Publish { set: usize },
    /// Something happens at a fault point.
    At { point: &'static str, action: Action },
    /// A sink refuses everything, or is slow.
    Sink { refuses: bool, pause: Duration },
    /// The clock of an instance's machine is set.
    MachineClock { name: usize, by_us: Micros },
    /// The broker's clock is set on.
    BrokerClock { by_us: Micros },
}

/// A process, from its start to its end.
struct Instance {
    name: usize,
    /// Its number in the world: another one for each life.
    number: u32,
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

struct Simulation {
    world: World,
    seed: u64,
    rng: fastrand::Rng,
    log: MemoryLog,
    broker_us: Arc<AtomicI64>,
    machines_us: Vec<Arc<AtomicI64>>,
    receiver: Arc<Receiver>,
    sets: Vec<Document>,
    running: Vec<Instance>,
    next_number: u32,
    /// What is due: starts by name, ends of sessions by client, the end of an outage.
    due: Vec<(Duration, Due)>,
    faults: Vec<String>,
    happened: BTreeMap<&'static str, u64>,
    failures: Arc<Mutex<Vec<String>>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Due {
    Start(usize),
    Expire(String),
    BrokerBack,
    SinksBack,
}

impl Simulation {
    fn new(world: World, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let broker_us = Arc::new(AtomicI64::new(0));
        let begin = Instant::now();
        let log = MemoryLog::new(Arc::new(SimulatedClock { begin, offset_us: broker_us.clone() }));
        log.set_append_delay(Duration::from_millis(1)..=Duration::from_millis(rng.u64(2..40)));
        let n_instances = if rng.u32(0..3) == 0 { 3 } else { 2 };
        let mut settings = Settings::new(SITE);
        settings.lateness_us = 60_000_000;
        Self {
            world,
            seed,
            log,
            broker_us,
            machines_us: (0..n_instances).map(|_| Arc::default()).collect(),
            receiver: Arc::default(),
            sets: rules::sets().iter().map(|files| document(files, &settings)).collect(),
            running: Vec::new(),
            next_number: 1,
            due: Vec::new(),
            faults: Vec::new(),
            happened: BTreeMap::new(),
            failures: Arc::default(),
            rng,
        }
    }

    fn run(mut self) -> Outcome {
        let ward = ward::ward(self.seed, ward::Size::default(), BEGIN_US);
        let records = ward.len() as u64;
        self.make_sources();
        for name in 0..self.machines_us.len() {
            self.start(name);
        }
        self.send(ward);
        let mut events = self.draw_events();
        while self.world.elapsed() < LENGTH {
            let now = self.world.elapsed();
            while let Some((_, event)) = events.pop_if(|(at, _)| *at <= now) {
                self.happen(event);
            }
            self.look();
            runtime::sleep(LOOK);
        }
        self.bring_everything_back();
        self.wait_for_rest();
        let stopped_us = self.broker_now_us();
        self.stop_all();
        self.judge(records, stopped_us)
    }

    fn broker_now_us(&self) -> Micros {
        SimulatedClock { begin: begin(&self.world), offset_us: self.broker_us.clone() }.now_us()
    }

    fn make_sources(&self) {
        let spec = |(name, partitions): (&str, i32)| TopicSpec::of_others(name, partitions, StampedBy::Broker);
        let specs: Vec<TopicSpec> = ward::TOPICS.into_iter().map(spec).collect();
        self.log.prepare(&specs).expect("source topics");
    }

    /// The ward's gateway: it appends what devices send when they send it.
    fn send(&self, records: Vec<ward::Sent>) {
        let log = self.log.clone();
        let begin = Instant::now();
        let work = move || {
            let mut gateway = log.appender().expect("an appender");
            for sent in records.into_iter().take_while(|sent| sent.at < LENGTH + LATEST) {
                // In bursts, as networks deliver, and so that a run has fewer turns.
                let due = begin + Duration::from_secs(sent.at.as_secs() + 1);
                runtime::sleep(due - Instant::now());
                let record = Outgoing {
                    topic: sent.topic.to_owned(),
                    partition: sent.partition,
                    key: Some(sent.key.into_bytes()),
                    value: sent.value,
                    ..Outgoing::default()
                };
                gateway.append(&record, 0).expect("the gateway's appends do not fail");
                gateway.outcomes(Duration::ZERO, &mut Vec::new());
            }
        };
        self.world.spawn(WORLD, "gateway", work).expect("a thread for the gateway");
    }

    /// Faults and changes of the run, the first due last.
    fn draw_events(&mut self) -> Vec<(Duration, Event)> {
        let n = self.rng.usize(FAULTS_MIN..=8);
        let mut events: Vec<(Duration, Event)> = Vec::new();
        let last = LENGTH.as_secs() - 60;
        for _ in 0..n {
            let at = Duration::from_millis(self.rng.u64(5_000..last * 1_000));
            events.push((at, self.draw_fault()));
        }
        for _ in 0..self.rng.usize(0..=3) {
            let at = Duration::from_millis(self.rng.u64(20_000..last * 1_000));
            events.push((at, Event::Publish { set: self.rng.usize(0..self.sets.len()) }));
        }
        events.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        events
    }

    fn draw_fault(&mut self) -> Event {
        let rng = &mut self.rng;
        let name = rng.usize(0..self.machines_us.len());
        let ms = |rng: &mut fastrand::Rng, from: u64, to: u64| Duration::from_millis(rng.u64(from..to));
        match rng.u32(0..100) {
            0..8 => Event::Kill { name, away: ms(rng, 100, 3_000) },
            8..14 => Event::Kill { name, away: ms(rng, 7_000, 30_000) },
            14..20 => Event::Freeze { name, pause: ms(rng, 500, 30_000) },
            20..24 => Event::Leave { name, away: ms(rng, 500, 20_000) },
            24..28 => Event::Outage { pause: ms(rng, 500, 25_000) },
            28..31 => Event::Sink { refuses: rng.bool(), pause: ms(rng, 5_000, 60_000) },
            31..32 => Event::MachineClock { name, by_us: rng.i64(-7_200_000_000..7_200_000_000) },
            32..34 => Event::BrokerClock { by_us: rng.i64(1_000_000..90_000_000) },
            _ => {
                let point = POINTS[rng.usize(0..POINTS.len())];
                let action = match rng.u32(0..10) {
                    0..4 => Action::Kill,
                    4..5 => Action::Freeze(ms(rng, 7_000, 25_000)),
                    5..6 => Action::Delay(ms(rng, 50, 9_000)),
                    // A commit that is carried out later.
                    6..8 if point == "commit.before" => Action::Repeat,
                    _ => Action::Fail,
                };
                Event::At { point, action }
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let at = self.world.elapsed();
        self.faults.push(format!("{:.3} s {event:?}", at.as_secs_f64()));
        match event {
            Event::Kill { name, away } => {
                if let Some(place) = self.running.iter().position(|instance| instance.name == name) {
                    let number = self.running[place].number;
                    self.world.kill(number);
                    self.died(place, away);
                }
            }
            Event::Freeze { name, pause } => {
                if let Some(instance) = self.running.iter().find(|instance| instance.name == name) {
                    let (number, client) = (instance.number, client(instance));
                    self.world.freeze(number, pause);
                    self.froze(client, pause);
                }
            }
            Event::Leave { name, away } => {
                if let Some(instance) = self.running.iter().find(|instance| instance.name == name) {
                    instance.stop.store(true, Ordering::SeqCst);
                    self.due.push((at + away, Due::Start(name)));
                }
            }
            Event::Outage { pause } => {
                self.log.set_available(false);
                self.due.push((at + pause, Due::BrokerBack));
            }
            Event::Publish { set } => {
                let topic = ControlTopic::new(Arc::new(self.log.clone()), &TOPICS.control);
                let document = self.sets[set].clone();
                // The publisher waits for the broker by itself.
                let work = move || {
                    while let Err(error) = topic.publish(&document) {
                        assert!(error.remedy != Remedy::Refuse, "publishing: {error}");
                        runtime::sleep(Duration::from_secs(1));
                    }
                };
                self.world.spawn(WORLD, "publisher", work).expect("a thread for the publisher");
            }
            Event::At { point, action } => self.world.arm(Fault { point, action }),
            Event::Sink { refuses, pause } => {
                self.receiver.fail(refuses);
                self.due.push((at + pause, Due::SinksBack));
            }
            Event::MachineClock { name, by_us } => {
                self.machines_us[name].fetch_add(by_us, Ordering::SeqCst);
            }
            Event::BrokerClock { by_us } => {
                self.broker_us.fetch_add(by_us, Ordering::SeqCst);
            }
        }
    }

    /// What became of faults that were armed, of instances, and of what is due.
    fn look(&mut self) {
        for happened in self.world.happened() {
            *self.happened.entry(happened.point).or_default() += 1;
            self.faults.push(format!("{:.3} s {:?} at {}", happened.at.as_secs_f64(), happened.action, happened.point));
            let place = self.running.iter().position(|instance| instance.number == happened.instance);
            let Some(place) = place else {
                continue;
            };
            match happened.action {
                Action::Kill => {
                    let in_place = self.rng.bool();
                    let away = Duration::from_millis(if in_place { 200 } else { self.rng.u64(7_000..20_000) });
                    self.died(place, away);
                }
                Action::Freeze(pause) => {
                    let client = client(&self.running[place]);
                    self.froze(client, pause);
                }
                _ => {}
            }
        }
        // Who has ended by itself, asked to or not.
        let over = |instance: &Instance| instance.ended.load(Ordering::SeqCst);
        while let Some(place) = self.running.iter().position(over) {
            let instance = self.running.remove(place);
            let client = client(&instance);
            self.log.kill(&client);
            let now = self.world.elapsed();
            // A member that keeps its place is away for its session.
            self.due.push((now + SESSION, Due::Expire(client)));
            if !self.due.iter().any(|(_, due)| *due == Due::Start(instance.name)) {
                // A person, or a service manager, starts it again.
                self.due.push((now + Duration::from_secs(5), Due::Start(instance.name)));
            }
        }
        let now = self.world.elapsed();
        while let Some(place) = self.due.iter().position(|(at, _)| *at <= now) {
            let (_, due) = self.due.remove(place);
            match due {
                Due::Start(name) => {
                    if !self.running.iter().any(|instance| instance.name == name) {
                        self.start(name);
                    }
                }
                Due::Expire(client) => self.log.expire(&client),
                Due::BrokerBack => self.log.set_available(true),
                Due::SinksBack => self.receiver.recover(),
            }
        }
    }

    fn died(&mut self, place: usize, away: Duration) {
        let instance = self.running.remove(place);
        let client = client(&instance);
        self.log.kill(&client);
        let now = self.world.elapsed();
        self.due.push((now + SESSION, Due::Expire(client)));
        self.due.push((now + away, Due::Start(instance.name)));
    }

    fn froze(&mut self, client: String, pause: Duration) {
        if pause > SESSION {
            self.due.push((self.world.elapsed() + SESSION, Due::Expire(client)));
        }
    }

    fn start(&mut self, name: usize) {
        let number = self.next_number;
        self.next_number += 1;
        let instance = Instance { name, number, stop: Arc::default(), ended: Arc::default() };
        let log = Arc::new(self.log.client(&client(&instance)));
        let clock: Arc<dyn Clock> =
            Arc::new(SimulatedClock { begin: begin(&self.world), offset_us: self.machines_us[name].clone() });
        let (stop, ended) = (instance.stop.clone(), instance.ended.clone());
        let leaves = self.rng.bool();
        let (receiver, configured, failures) = (self.receiver.clone(), self.sets[0].clone(), self.failures.clone());
        let work = move || {
            let job = loop {
                let settings = job_settings(name, leaves, &receiver, &configured);
                match Job::start(settings, log.clone(), clock.clone()) {
                    Ok(job) => break job,
                    Err(error) if error.remedy == Remedy::Refuse => {
                        note(&failures, format!("instance {name} does not start: {error}"));
                        ended.store(true, Ordering::SeqCst);
                        return;
                    }
                    Err(_) => runtime::sleep(Duration::from_secs(1)),
                }
                if stop.load(Ordering::SeqCst) {
                    ended.store(true, Ordering::SeqCst);
                    return;
                }
            };
            while !stop.load(Ordering::SeqCst) {
                if let Some(failure) = job.failure() {
                    note(&failures, format!("instance {name}: {failure}"));
                    break;
                }
                runtime::sleep(Duration::from_secs(1));
            }
            job.stop();
            ended.store(true, Ordering::SeqCst);
        };
        self.world.spawn(number, &format!("instance {name}"), work).expect("a thread for the instance");
        self.running.push(instance);
    }

    fn bring_everything_back(&mut self) {
        self.log.set_available(true);
        self.receiver.recover();
        self.world.disarm();
        let latest = LENGTH + Duration::from_secs(30);
        while self.world.elapsed() < latest {
            self.look();
            runtime::sleep(LOOK);
        }
    }

    /// Until everything that stood in the canonical log some time after the end is decided.
    fn wait_for_rest(&mut self) {
        while self.world.elapsed() < LENGTH + CALM {
            self.look();
            runtime::sleep(LOOK);
        }
        let end_of = |partition: &TopicPartition| self.log.offsets(&partition.topic, partition.partition);
        let partitions = canonical_partitions();
        let ends: Vec<i64> =
            partitions.iter().map(|partition| end_of(partition).map_or(i64::MAX, |(_, end)| end)).collect();
        while self.world.elapsed() < LENGTH + REST {
            self.look();
            let committed = self.log.committed(GROUP, &partitions).unwrap_or_default();
            let is_decided = |(at, end): (&Option<i64>, &i64)| at.is_some_and(|at| at >= *end);
            if committed.len() == ends.len() && committed.iter().zip(&ends).all(is_decided) {
                return;
            }
            runtime::sleep(Duration::from_secs(2));
        }
        note(&self.failures, "a partition is not decided to its end in time".to_owned());
    }

    fn stop_all(&mut self) {
        for instance in &self.running {
            instance.stop.store(true, Ordering::SeqCst);
        }
        let patience = self.world.elapsed() + Duration::from_secs(60);
        while self.running.iter().any(|instance| !instance.ended.load(Ordering::SeqCst)) {
            if self.world.elapsed() > patience {
                note(&self.failures, "an instance does not stop".to_owned());
                return;
            }
            runtime::sleep(Duration::from_secs(1));
        }
    }

    fn judge(self, records: u64, stopped_us: Micros) -> Outcome {
        let run = self.left_behind(stopped_us);
        let mut broken: Vec<String> = violations(&run).iter().map(ToString::to_string).collect();
        // As long as the laws take; those of the others say the same of what is decided.
        if self.seed.is_multiple_of(4) {
            broken.extend(self.verified());
        }
        broken.extend(self.failures.lock().unwrap_or_else(PoisonError::into_inner).drain(..));
        broken.extend(self.world.panics().into_iter().map(|what| format!("a thread panicked: {what}")));
        Outcome {
            seed: self.seed,
            violations: broken,
            faults: self.faults,
            reached: self.world.reached(),
            happened: self.happened,
            records,
            transitions: run.alerts.iter().map(|records| records.len() as u64).sum(),
            deliveries: run.sinks.values().map(|delivered| delivered.len() as u64).sum(),
            digest: digest(&run),
            switches: self.world.switches(),
        }
    }

    /// What the operator's own proof finds: the alerts byte for byte, and the counts beside the committed offsets.
    fn verified(&self) -> Vec<String> {
        let log: Arc<dyn Log> = Arc::new(self.log.clone());
        match verify(&log, &Scope::of(GROUP, &TOPICS), &mut |_| {}) {
            Ok(compared) => compared
                .into_iter()
                .filter_map(|one| {
                    let why = one.difference.map(|difference| difference.what).or(one.not_compared)?;
                    Some(format!("verify: partition {}: {why}", one.partition))
                })
                .collect(),
            Err(error) => vec![format!("verify: {error}")],
        }
    }

    fn left_behind(&self, stopped_us: Micros) -> Run {
        let of = |topic: &str, n: i32| -> Vec<Vec<Record>> {
            (0..n).map(|partition| self.log.dump(topic, partition)).collect()
        };
        let committed = self.log.committed(GROUP, &canonical_partitions()).expect("committed offsets");
        let source = ward::TOPICS.iter().flat_map(|(topic, n)| {
            (0..*n).map(move |partition| (TopicPartition::new(topic, partition), self.log.dump(topic, partition)))
        });
        let mut sinks: BTreeMap<String, Vec<Delivered>> =
            SINKS.iter().map(|name| ((*name).to_owned(), Vec::new())).collect();
        for (sink, delivered) in self.receiver.taken() {
            sinks.entry(sink).or_default().push(delivered);
        }
        Run {
            source: source.collect(),
            canonical: of(&TOPICS.canonical, PARTITIONS),
            decided: committed.into_iter().map(Option::unwrap_or_default).collect(),
            dead_letters: of(&TOPICS.dead_letters, 1).concat(),
            alerts: of(&TOPICS.alerts, PARTITIONS),
            control: of(&TOPICS.control, 1).concat(),
            sinks,
            told_until_us: Some(stopped_us - SETTLED_US),
        }
    }
}

fn canonical_partitions() -> Vec<TopicPartition> {
    (0..PARTITIONS).map(|n| TopicPartition::new(&TOPICS.canonical, n)).collect()
}

/// A hash over the records of the topics.
fn digest(run: &Run) -> String {
    let mut digest = Sha256::new();
    let topics = run.source.values().chain(&run.canonical).chain(&run.alerts);
    for record in topics.flatten().chain(&run.dead_letters).chain(&run.control) {
        digest.update(record.time_us.to_le_bytes());
        digest.update(record.offset.to_le_bytes());
        digest.update(record.value.as_deref().unwrap_or_default());
    }
    hex(&digest.finalize()[..8])
}

fn document(files: &[rules::RuleFile], settings: &Settings) -> Document {
    let file = |(path, text): &rules::RuleFile| SourceFile { path: (*path).to_owned(), text: text.clone() };
    Document::new(&files.iter().map(file).collect::<Vec<SourceFile>>(), settings)
}

/// The client of the log that a life of an instance is.
fn client(instance: &Instance) -> String {
    format!("i{}-{}", instance.name, instance.number)
}

fn begin(world: &World) -> Instant {
    Instant::now() - world.elapsed()
}

fn note(failures: &Mutex<Vec<String>>, what: String) {
    failures.lock().unwrap_or_else(PoisonError::into_inner).push(what);
}

fn job_settings(name: usize, leave_on_exit: bool, receiver: &Arc<Receiver>, configured: &Document) -> JobSettings {
    let sink = |sink_name: &str| SinkSettings {
        name: sink_name.to_owned(),
        identity: Identity::Full,
        lanes: vec![SimulatedSink::boxed(receiver, sink_name, name)],
    };
    JobSettings {
        instance: Some(format!("i{name}")),
        checkpoint_every: Duration::from_secs(30),
        leave_on_exit,
        tick_every: Duration::from_secs(2),
        canary_every: Some(Duration::from_secs(60)),
        sinks: SINKS.iter().map(|name| sink(name)).collect(),
        ..JobSettings::new(GROUP, TOPICS.clone(), configured.clone())
    }
}
