//! The job: three stages on one log, each a consumer group of its own.
//!
//! Normalize reads source topics and appends to the canonical log; decide owns canonical partitions and writes
//! transitions in transactions; deliver takes them to sinks. The stages know each other only through the log, so each may
//! run apart, and a restart of one is nothing to the others.
//!
//! Every loop here runs on a thread of its own, since the log's calls block. A stage that fails starts again from what is
//! committed, with back-off; what cannot be put right by trying is reported and ends the job.

mod decide;
mod deliver;
mod normalize;
pub mod replay;
mod statistics;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wardbell_connectors::clock::Clock;
use wardbell_connectors::log::{Log, LogError, Remedy, StampedBy, TopicSpec};
use wardbell_connectors::sink::{Identity, Sink};
use wardbell_core::partition::Settings;
use wardbell_rules::RuleSet;

pub use statistics::{Statistics, Summary};

/// First pause after a failure; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A stop that takes longer says every few seconds who is still busy.
const STOP_REMINDER: Duration = Duration::from_secs(5);
/// Longest time a stop waits before it gives up and says so.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Everything a job is made from.
pub struct JobSettings {
    /// Prefix of consumer groups and transactional ids.
    pub group: String,
    /// Keeps partitions over a restart in place.
    pub instance: Option<String>,
    pub topics: Topics,
    /// Lateness, skew, clock and site.
    pub decision: Settings,
    pub rules: RuleSet,
    /// Time between two commits without transitions.
    pub commit_every: Duration,
    pub tick_every: Duration,
    pub sinks: Vec<SinkSettings>,
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
    /// Of the canonical and the alerts topic; fixed for life.
    pub partitions: i32,
    pub retention: Duration,
    /// Make our own topics where they are missing.
    pub create: bool,
}

/// A sink with its name and what of a patient's identity it gets.
pub struct SinkSettings {
    pub name: String,
    pub identity: Identity,
    pub sink: Box<dyn Sink>,
}

/// What all stages share.
#[derive(Clone)]
struct Shared {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    statistics: Arc<Statistics>,
    topics: Arc<Topics>,
    group: String,
    instance: Option<String>,
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
        self.statistics.fail(format!("{stage}: {error}"));
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Runs a stage's loop until it ends by itself, again and again after failures that pass.
    fn supervise(&self, stage: &str, mut work: impl FnMut() -> Result<(), LogError>) {
        let mut backoff = BACKOFF_MIN;
        while !self.stopping() {
            let began = Instant::now();
            match work() {
                Ok(()) => return,
                Err(error) if error.remedy == Remedy::Refuse => {
                    self.fail(stage, &error);
                    return;
                }
                Err(error) => {
                    tracing::warn!(stage, error = %error, pause_ms = backoff.as_millis() as u64, "starting again from what is committed");
                    self.statistics.restarted(stage);
                }
            }
            if began.elapsed() > BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            }
            let until = Instant::now() + backoff;
            while Instant::now() < until && !self.stopping() {
                std::thread::sleep(Duration::from_millis(20));
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}

/// A running job.
pub struct Job {
    shared: Shared,
    threads: Vec<(String, JoinHandle<()>)>,
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
    specs
}

impl Job {
    /// Prepares topics and starts all stages.
    ///
    /// # Errors
    /// [`Remedy::Retry`] if the broker cannot be reached, [`Remedy::Refuse`] for topics that cannot be used.
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
        let shared = Shared {
            log,
            clock,
            statistics: Arc::new(Statistics::default()),
            topics: Arc::new(settings.topics),
            group: settings.group,
            instance: settings.instance,
            stop: Arc::new(AtomicBool::new(false)),
            failed: Arc::new(AtomicBool::new(false)),
        };
        let mut threads = Vec::new();
        let mut spawn = |name: String, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.clone()).spawn(work);
            thread
                .map(|thread| threads.push((name, thread)))
                .map_err(|error| LogError::new(Remedy::Refuse, "starting a thread", error.to_string()))
        };
        for sink in settings.sinks {
            let shared = shared.clone();
            spawn(format!("deliver {}", sink.name), Box::new(move || deliver::run(&shared, sink)))?;
        }
        let decide = decide::DecideSettings {
            decision: settings.decision.clone(),
            rules: settings.rules,
            commit_every: settings.commit_every,
        };
        {
            let shared = shared.clone();
            spawn("decide".to_owned(), Box::new(move || decide::run(&shared, &decide)))?;
        }
        let normalize = normalize::NormalizeSettings {
            record_clock: settings.decision.record_clock,
            tick_every: settings.tick_every,
        };
        {
            let shared = shared.clone();
            spawn("normalize".to_owned(), Box::new(move || normalize::run(&shared, &normalize)))?;
        }
        Ok(Self { shared, threads })
    }

    pub fn statistics(&self) -> &Arc<Statistics> {
        &self.shared.statistics
    }

    /// Why the job cannot go on, if it cannot.
    pub fn failure(&self) -> Option<String> {
        let ended = |(_, thread): &&(String, JoinHandle<()>)| thread.is_finished();
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
        let topics = &self.shared.topics;
        let mut groups: Vec<(String, Vec<String>)> = vec![
            (normalize::group(&self.shared.group), topics.source.clone()),
            (decide::group(&self.shared.group), vec![topics.canonical.clone()]),
        ];
        let sinks = self.threads.iter().filter_map(|(name, _)| name.strip_prefix("deliver "));
        groups.extend(sinks.map(|name| (deliver::group(&self.shared.group, name), vec![topics.alerts.clone()])));
        for (stage, topics) in groups {
            for topic in topics {
                self.wait_for(&stage, &topic, deadline)?;
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
                std::thread::sleep(Duration::from_millis(10));
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
        reader.read(1, Duration::from_millis(300), &mut records).is_ok() && records.is_empty()
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
            std::thread::sleep(Duration::from_millis(10));
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
