//! The job: three stages on one log, each a consumer group of its own.
//!
//! Normalize reads source topics and appends to the canonical log; decide owns canonical partitions and writes
//! transitions in transactions; deliver takes them to sinks. The stages know each other only through the log, so each may
//! run apart, and a restart of one is nothing to the others.
//!
//! Every loop here runs on a thread of its own, since the log's calls block. A stage that fails starts again from what is
//! committed, with back-off; what cannot be put right by trying is reported and ends the job.

mod control;
mod decide;
mod deliver;
mod normalize;
mod notices;
mod observer;
pub mod replay;
mod rules_folder;
mod statistics;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::{Log, LogError, Remedy, StampedBy, TopicSpec};
use wardbell_connectors::partitioner::partition_of;
use wardbell_connectors::runtime::{self, Instant, Thread};
use wardbell_connectors::sink::{Identity, Sink};
use wardbell_core::partition::Settings;
use wardbell_schemas::alert::Content;

use crate::checkpoints::StateTopic;
use crate::connector::Connector;
use crate::health::{Finding, Health, Severity};
use crate::sets::{ControlTopic, Document, RulesFolder, short};
use control::Sets;
pub(crate) use decide::{group as decide_group, transactional_id};
use notices::Notices;
pub use observer::Observer;
pub(crate) use statistics::Counts;
pub use statistics::{Statistics, Summary};

/// First pause after a failure; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A stop that takes longer says every few seconds who is still busy.
const STOP_REMINDER: Duration = Duration::from_secs(5);
/// Under this key stands that the broker does not answer.
const BROKER: &str = "broker";
/// Longest time a stop waits before it gives up and says so.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Everything a job is made from.
pub struct JobSettings {
    /// Prefix of consumer groups and transactional ids.
    pub group: String,
    /// Keeps partitions over a restart in place.
    pub instance: Option<String>,
    pub topics: Topics,
    /// Lateness, skew, clock and site, as configured. What decides is the published set.
    pub decision: Settings,
    /// The configured rules, checked and tested: what an empty control topic is filled with. `None` if they have faults;
    /// then only a set that is published already can run.
    pub configured: Option<Document>,
    /// Where they lie, if the running job may publish them.
    pub folder: Option<RulesFolder>,
    /// Time between two commits without transitions.
    pub commit_every: Duration,
    /// Time between two checkpoints of a partition.
    pub checkpoint_every: Duration,
    /// A replay that gives another history than the committed one ends the job, as tests want it.
    pub strict_replay: bool,
    /// Gives its partitions to others at once when it stops, instead of keeping its place for a restart.
    pub leave_on_exit: bool,
    pub tick_every: Duration,
    /// Time between two canaries, which prove the path to every sink; `None`: none are sent.
    pub canary_every: Option<Duration>,
    /// How the records of source topics are read; a topic that none of them names holds canonical JSON.
    pub connectors: Vec<Connector>,
    pub sinks: Vec<SinkSettings>,
    /// Everything is decided and stored and nobody is notified; sinks that only keep a record still do.
    pub record_only: bool,
}

/// The topics of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    pub source: Vec<String>,
    /// Make source topics that are missing, with this many partitions.
    pub create_source: Option<i32>,
    pub canonical: String,
    pub alerts: String,
    pub dead_letters: String,
    /// Published rule sets.
    pub control: String,
    /// Checkpoints.
    pub state: String,
    /// Of the canonical, the alerts and the state topic; fixed for life.
    pub partitions: i32,
    pub retention: Duration,
    /// Make our own topics where they are missing.
    pub create: bool,
}

impl Topics {
    /// All under one name, as `NAME.readings`, kept for a day and made where they are missing; the source topics as given.
    pub fn named(name: &str, source: Vec<String>, partitions: i32) -> Self {
        let topic = |what: &str| format!("{name}.{what}");
        Self {
            source,
            create_source: None,
            canonical: topic("readings"),
            alerts: topic("alerts"),
            dead_letters: topic("dead-letters"),
            control: topic("control"),
            state: topic("state"),
            partitions,
            retention: Duration::from_secs(86_400),
            create: true,
        }
    }
}

impl JobSettings {
    /// A job that starts with these rules and tells nobody: no sinks, no connectors, no folder, no canaries, and strict about
    /// what a replay gives.
    pub fn new(group: &str, topics: Topics, configured: Document) -> Self {
        Self {
            group: group.to_owned(),
            instance: None,
            topics,
            decision: configured.settings(),
            configured: Some(configured),
            folder: None,
            commit_every: Duration::from_secs(5),
            checkpoint_every: Duration::from_secs(60),
            strict_replay: true,
            leave_on_exit: false,
            tick_every: Duration::from_secs(1),
            canary_every: None,
            connectors: Vec::new(),
            sinks: Vec::new(),
            record_only: false,
        }
    }
}

/// A sink with its name and what of a patient's identity it gets.
pub struct SinkSettings {
    pub name: String,
    pub identity: Identity,
    /// Sinks made alike, one at least: alerts of as many patients are delivered side by side. A sink that takes many alerts
    /// at once needs one.
    pub lanes: Vec<Box<dyn Sink>>,
}

/// What all stages share.
#[derive(Clone)]
struct Shared {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    statistics: Arc<Statistics>,
    health: Arc<Health>,
    topics: Arc<Topics>,
    group: String,
    instance: Option<String>,
    leave_on_exit: bool,
    /// Names of the sinks.
    sinks: Arc<[String]>,
    /// Nobody is notified.
    record_only: bool,
    sets: Arc<Sets>,
    canary_every: Option<Duration>,
    /// What this job noticed about itself and has to tell through the log.
    notices: Arc<Notices>,
    /// Somebody asked for the rules folder to be published.
    publish_rules: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    /// Set by a stage that cannot go on; the job ends.
    failed: Arc<AtomicBool>,
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst) || self.failed.load(Ordering::SeqCst)
    }

    fn fail(&self, stage: &str, error: &LogError) {
        tracing::error!(stage, error = %error, "the job cannot go on");
        let finding = Finding::new(
            Severity::Failing,
            format!("{stage}: {error}"),
            "this job ends: it takes no readings and delivers no alerts",
            "put right what the cause names, then start the job again",
        );
        self.health.report("job", finding);
        self.statistics.fail(format!("{stage}: {error}"));
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Says that the broker is away; the next answer of it clears this.
    fn broker_away(&self, error: &LogError) {
        let finding = Finding::new(
            Severity::Failing,
            format!("the broker does not answer: {error}"),
            "nothing is read, decided or delivered meanwhile; readings wait in the log and nothing is lost",
            "bring the broker back; this job goes on by itself and need not be restarted",
        );
        self.health.report(BROKER, finding);
    }

    fn broker_answers(&self) {
        self.health.clear(BROKER);
    }

    /// A pause that a stop ends.
    fn rest(&self, pause: Duration) {
        runtime::rest(pause, || self.stopping());
    }

    /// The stages with what they read.
    fn stages(&self) -> Vec<StageView> {
        let view = |name: String, sink: Option<String>, group: String, topics: Vec<String>| StageView {
            name,
            sink,
            group,
            topics,
        };
        let topics = &self.topics;
        let mut stages = vec![
            view("normalize".to_owned(), None, normalize::group(&self.group), topics.source.clone()),
            view("decide".to_owned(), None, decide::group(&self.group), vec![topics.canonical.clone()]),
        ];
        stages.extend(self.sinks.iter().map(|sink| {
            let group = deliver::group(&self.group, sink);
            view(format!("deliver {sink}"), Some(sink.clone()), group, vec![topics.alerts.clone()])
        }));
        stages
    }

    /// Nobody holds a partition for a stage that starts, until it is assigned one.
    fn stage_starts(&self, stage: &str) {
        for view in self.stages().iter().filter(|view| view.name == stage) {
            self.statistics.left(&view.group);
        }
    }

    /// Runs a stage's loop until it ends by itself, again and again after failures that pass.
    fn supervise(&self, stage: &str, mut work: impl FnMut() -> Result<(), LogError>) {
        let mut backoff = BACKOFF_MIN;
        while !self.stopping() {
            let began = Instant::now();
            self.stage_starts(stage);
            match work() {
                Ok(()) => return,
                Err(error) if error.remedy == Remedy::Refuse => {
                    self.fail(stage, &error);
                    return;
                }
                Err(error) => {
                    if error.remedy == Remedy::Retry {
                        self.broker_away(&error);
                    }
                    tracing::warn!(stage, error = %error, pause_ms = backoff.as_millis() as u64, "starting again from what is committed");
                    self.statistics.restarted(stage);
                }
            }
            if began.elapsed() > BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            }
            self.rest(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}

/// Rule id of "a source was watched by nobody".
const FEED_RULE: &str = "technical/feed";

/// Whether a canonical partition says this transition to the world. A source that nobody watched is noticed in every
/// partition that its ticks reach; the one its name belongs to says it for all, so that one outage is one alert.
fn says(content: &Content, partition: i32, n_partitions: i32) -> bool {
    content.rule.id != FEED_RULE || partition_of(&content.key, n_partitions) == partition
}

/// A stage, what it reads, and as which consumer group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StageView {
    pub name: String,
    /// The sink of a deliver stage.
    pub sink: Option<String>,
    pub group: String,
    pub topics: Vec<String>,
}

/// A running job.
pub struct Job {
    shared: Shared,
    threads: Vec<(String, Thread)>,
}

/// The topics a job needs, as it would make them.
pub fn topic_specs(topics: &Topics) -> Vec<TopicSpec> {
    let own = |name: &str| TopicSpec {
        name: name.to_owned(),
        partitions: topics.partitions,
        stamped_by: StampedBy::Broker,
        retention: Some(topics.retention),
        create: topics.create,
        any_partitions: false,
    };
    let mut specs: Vec<TopicSpec> = topics
        .source
        .iter()
        .map(|name| TopicSpec {
            partitions: topics.create_source.unwrap_or(1),
            create: topics.create_source.is_some(),
            any_partitions: true,
            ..own(name)
        })
        .collect();
    specs.extend([own(&topics.canonical), own(&topics.alerts)]);
    specs.push(TopicSpec { any_partitions: true, ..own(&topics.dead_letters) });
    specs.push(ControlTopic::spec(&topics.control, topics.create));
    specs.push(StateTopic::spec(&topics.state, topics.partitions, topics.create));
    specs
}

impl Job {
    /// Prepares topics, sees to it that a rule set is published and in force, and starts all stages.
    ///
    /// # Errors
    /// [`Remedy::Retry`] if the broker cannot be reached, [`Remedy::Refuse`] for topics that cannot be used or without a
    /// rule set to run.
    pub fn start(settings: JobSettings, log: Arc<dyn Log>, clock: Arc<dyn Clock>) -> Result<Self, LogError> {
        log.prepare(&topic_specs(&settings.topics))?;
        for topic in &settings.topics.source {
            let (_, stamped_by) = log.describe(topic)?;
            if stamped_by == StampedBy::Producer && !settings.decision.record_clock {
                tracing::warn!(
                    topic,
                    "the source topic carries producer time stamps: the smaller of these and our own append time counts; message.timestamp.type=LogAppendTime is recommended"
                );
            }
        }
        let health = Arc::new(Health::default());
        let topic = ControlTopic::new(log.clone(), &settings.topics.control);
        let sets = Sets::open(topic, settings.configured.as_ref(), &settings.decision, &health)?;
        let newest = sets.newest();
        tracing::info!(
            number = newest.number,
            set = short(&newest.set.hash),
            rules = newest.set.rules.rules.len(),
            "the newest rule set that can be used here"
        );
        control::activate_where_nothing_stands(&*log, &settings.topics, &newest)?;
        let shared = Shared {
            log,
            clock,
            statistics: Arc::new(Statistics::default()),
            health,
            topics: Arc::new(settings.topics),
            group: settings.group,
            instance: settings.instance,
            leave_on_exit: settings.leave_on_exit,
            sinks: settings.sinks.iter().map(|sink| sink.name.clone()).collect(),
            record_only: settings.record_only,
            sets: Arc::new(sets),
            // A canary would move the one clock of records that carry their own time.
            canary_every: settings.canary_every.filter(|_| !settings.decision.record_clock),
            notices: Arc::default(),
            publish_rules: Arc::new(AtomicBool::new(false)),
            stop: Arc::new(AtomicBool::new(false)),
            failed: Arc::new(AtomicBool::new(false)),
        };
        if shared.record_only {
            tracing::warn!("RECORD ONLY: everything is decided and stored, NOBODY IS NOTIFIED (`record_only = true`)");
            let finding = Finding::new(
                Severity::Degraded,
                "`record_only = true` is configured",
                "nobody is notified of any alert; alerts are decided, stored and written to files",
                "remove the key and start the job again to notify; what was passed over stays in the alerts topic",
            );
            shared.health.report("record-only", finding);
        }
        let mut threads = Vec::new();
        let mut spawn = |name: String, work: Box<dyn FnOnce() + Send>| {
            let thread = runtime::spawn(name.clone(), work);
            thread
                .map(|thread| threads.push((name, thread)))
                .map_err(|error| LogError::new(Remedy::Refuse, "starting a thread", error.to_string()))
        };
        for sink in settings.sinks {
            let shared = shared.clone();
            spawn(format!("deliver {}", sink.name), Box::new(move || deliver::run(&shared, sink)))?;
        }
        let decide = decide::DecideSettings {
            commit_every: settings.commit_every,
            checkpoint_every: settings.checkpoint_every,
            strict: settings.strict_replay,
        };
        {
            let shared = shared.clone();
            spawn("decide".to_owned(), Box::new(move || decide::run(&shared, &decide)))?;
        }
        let normalize = normalize::NormalizeSettings {
            record_clock: settings.decision.record_clock,
            tick_every: settings.tick_every,
            canary_every: shared.canary_every,
            connectors: settings.connectors,
            canonical: Connector::canonical(Vec::new()),
        };
        {
            let shared = shared.clone();
            spawn("normalize".to_owned(), Box::new(move || normalize::run(&shared, &normalize)))?;
        }
        {
            let shared = shared.clone();
            spawn("control".to_owned(), Box::new(move || control::run(&shared)))?;
        }
        if let Some(folder) = settings.folder {
            let (shared, configured) = (shared.clone(), settings.configured);
            spawn("rules folder".to_owned(), Box::new(move || rules_folder::run(&shared, &folder, configured)))?;
        }
        {
            let shared = shared.clone();
            spawn("watch".to_owned(), Box::new(move || watch::run(&shared)))?;
        }
        Ok(Self { shared, threads })
    }

    pub fn statistics(&self) -> &Arc<Statistics> {
        &self.shared.statistics
    }

    /// Which loops turn, and what is wrong.
    pub fn health(&self) -> &Arc<Health> {
        &self.shared.health
    }

    /// Has the rules folder published, if it is sound and differs from what is published.
    pub fn publish_rules(&self) {
        self.shared.publish_rules.store(true, Ordering::SeqCst);
    }

    /// Numbers of the rule sets in force in the partitions of this instance; 0 before the first activation.
    pub fn sets_in_force(&self) -> BTreeMap<i32, u64> {
        self.shared.sets.in_force()
    }

    /// What surroundings may see of this job.
    pub fn observer(&self) -> Observer {
        Observer { shared: self.shared.clone() }
    }

    /// Why the job cannot go on, if it cannot.
    pub fn failure(&self) -> Option<String> {
        let ended = |(_, thread): &&(String, Thread)| thread.is_finished();
        self.shared
            .statistics
            .failure()
            .or_else(|| self.threads.iter().find(ended).map(|(name, _)| format!("stage {name} ended unexpectedly")))
    }

    /// Waits until everything that was in the source topics when it was called has passed all stages.
    ///
    /// # Errors
    /// A sentence naming what did not catch up in time.
    pub fn drain(&self, timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        for stage in self.shared.stages() {
            for topic in &stage.topics {
                self.wait_for(&stage.group, topic, deadline)?;
            }
        }
        Ok(())
    }

    /// Waits until a stage's position in a topic has reached the ends that were asked first.
    fn wait_for(&self, stage: &str, topic: &str, deadline: Instant) -> Result<(), String> {
        let log = &self.shared.log;
        let (partitions, _) = log.describe(topic).map_err(|error| error.to_string())?;
        for partition in 0..partitions {
            let (_, end) = log.offsets(topic, partition).map_err(|error| error.to_string())?;
            while self.shared.statistics.position(stage, topic, partition) < end {
                if let Some(failure) = self.failure() {
                    return Err(failure);
                }
                // Transaction markers take offsets that are never read: what is committed stands before them.
                if self.is_read_to_end(stage, topic, partition, end) {
                    break;
                }
                if Instant::now() > deadline {
                    let position = self.shared.statistics.position(stage, topic, partition);
                    return Err(format!("{stage} is at {position} of {end} in {topic}/{partition}"));
                }
                runtime::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// Nothing readable stands between a stage's position and an end offset.
    fn is_read_to_end(&self, stage: &str, topic: &str, partition: i32, end: i64) -> bool {
        let position = self.shared.statistics.position(stage, topic, partition);
        if topic != self.shared.topics.alerts || end - position > MARKERS_LOOKED_THROUGH {
            return false;
        }
        let from = wardbell_connectors::log::TopicPartition::new(topic, partition);
        let (first, _) = self.shared.log.offsets(topic, partition).unwrap_or((0, 0));
        let isolation = wardbell_connectors::log::Isolation::ReadCommitted;
        let Ok(mut reader) = self.shared.log.reader(&from, position.max(first), isolation) else {
            return false;
        };
        let mut records = Vec::new();
        // At once where the log is at hand, else when the broker has answered.
        let mut is_at_end = |wait| reader.read(1, wait, &mut records).is_ok() && reader.is_at_end();
        (is_at_end(Duration::ZERO) || is_at_end(Duration::from_millis(500))) && records.is_empty()
    }

    /// Stops all stages: they finish what they have in hand, commit and leave. `false` if one did not end in time.
    pub fn stop(self) -> bool {
        self.shared.stop.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + STOP_DEADLINE;
        let mut remind = Instant::now() + STOP_REMINDER;
        let mut threads = self.threads;
        while !threads.is_empty() && Instant::now() < deadline {
            threads.retain(|(_, thread)| !thread.is_finished());
            if Instant::now() > remind {
                let busy: Vec<&str> = threads.iter().map(|(name, _)| name.as_str()).collect();
                tracing::info!(busy = busy.join(", "), "stopping: still busy");
                remind = Instant::now() + STOP_REMINDER;
            }
            runtime::sleep(Duration::from_millis(10));
        }
        if !threads.is_empty() {
            let busy: Vec<&str> = threads.iter().map(|(name, _)| name.as_str()).collect();
            tracing::error!(
                busy = busy.join(", "),
                "gave up waiting; what is not committed is done again at the next start"
            );
        }
        threads.is_empty()
    }
}

/// Offsets that can be transaction markers between a position and the end, when waiting for an end.
const MARKERS_LOOKED_THROUGH: i64 = 1_000_000;
