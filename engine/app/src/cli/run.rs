//! `wardbell run`: the job, until it is told to stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::kafka::KafkaLog;
use wardbell_connectors::log::{LogError, Remedy};
use wardbell_connectors::sink::console::Console;
use wardbell_connectors::sink::jsonl::JsonLines;
use wardbell_rules::RuleSet;
use wardbell_schemas::catalogue::Catalogue;

use super::{FINDING, MISUSE, OK, colored, plural, start_logs, test};
use crate::config::{self, Config, SinkKind};
use crate::pipeline::{Job, JobSettings, SinkSettings};
use crate::rules_files;

/// Ticks say every second how far sources were read.
const TICK_EVERY: Duration = Duration::from_secs(1);
/// Pause between two attempts to reach the broker at start.
const BROKER_PAUSE: Duration = Duration::from_secs(2);

/// Run the job beside a broker
///
/// SIGTERM and SIGINT drain: what is in hand is finished and committed, then the job leaves.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell run --config wardbell.toml\n  WARDBELL__KAFKA__BOOTSTRAP_SERVERS=broker:9092 wardbell run --config wardbell.toml"
)]
pub struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How long to wait at start for a broker that does not answer
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = wait_duration)]
    wait_for_broker: Duration,
}

fn wait_duration(text: &str) -> Result<Duration, String> {
    let us = wardbell_schemas::duration::parse(text)?;
    u64::try_from(us).map(Duration::from_micros).map_err(|_| "must not be negative".to_owned())
}

pub fn run(arguments: &Arguments) -> u8 {
    let config = match config::load(&arguments.config) {
        Ok(config) => config,
        Err((file, faults)) => {
            eprint!("{}", rules_files::render(&faults, file.as_slice(), colored()));
            eprintln!("the configuration cannot be used: {}", plural(faults.len(), "fault", "faults"));
            return MISUSE;
        }
    };
    start_logs(false);
    let Some(rules) = load_rules(&config) else {
        return MISUSE;
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot be started: {error}");
            return MISUSE;
        }
    };
    // Signals are caught before the job starts, so that none is missed meanwhile.
    let (stop, stopped) = tokio::sync::watch::channel(false);
    if let Err(error) = runtime.block_on(async { listen(stop) }) {
        eprintln!("error: signals cannot be caught: {error}");
        return MISUSE;
    }
    let job = match start(&config, &rules, arguments.wait_for_broker, &runtime, &stopped) {
        Ok(Some(job)) => job,
        Ok(None) => return OK,
        Err(error) => {
            eprintln!("error: {error}");
            return MISUSE;
        }
    };
    tracing::info!(
        rules = rules.rules.len(),
        set = &rules.hash[..12],
        sources = config.source.topics.join(", "),
        "the job runs"
    );
    let failure = runtime.block_on(supervise(&job, stopped));
    tracing::info!("stopping: finishing what is in hand");
    let statistics = job.statistics().clone();
    let ended = job.stop();
    let summary = statistics.summary();
    eprintln!("\n{}\n{}", summary.outcomes_table(), statistics.latency.table());
    if let Some(failure) = failure {
        eprintln!("error: {failure}");
        return FINDING;
    }
    if ended { OK } else { FINDING }
}

fn listen(stop: tokio::sync::watch::Sender<bool>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => tracing::warn!("rules are read at start only in this version; restart to apply a change"),
            }
        }
        let _ = stop.send(true);
        // Kept so that the channel stays open until the job has seen it.
        stop.closed().await;
    });
    Ok(())
}

/// Waits for a signal or for a job that cannot go on; gives the reason of the latter.
async fn supervise(job: &Job, mut stopped: tokio::sync::watch::Receiver<bool>) -> Option<String> {
    loop {
        tokio::select! {
            _ = stopped.changed() => return None,
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                if let Some(failure) = job.failure() {
                    return Some(failure);
                }
            }
        }
    }
}

/// The rules of the configured folder: checked, and their cases run. A set that fails either is never run.
fn load_rules(config: &Config) -> Option<RuleSet> {
    let paths = [config.rules.clone()];
    let checked = rules_files::check(&paths, Catalogue::builtin());
    if checked.n_errors() > 0 {
        eprint!("{}", checked.render(colored()));
        eprintln!("the rules cannot be used: {}", plural(checked.n_errors(), "error", "errors"));
        return None;
    }
    if checked.rules.is_empty() {
        eprintln!("no rule file (*.rhai) below `{}`; set `rules` in the configuration", config.rules.display());
        return None;
    }
    let results = test::run_cases(&paths);
    if results.n_failed() > 0 {
        eprint!("{}", results.render(colored()));
        eprintln!("the rules cannot be used: {} passed, {} failed", results.n_passed(), results.n_failed());
        return None;
    }
    tracing::info!(rules = checked.rules.len(), cases = results.n_passed(), "rules checked and tested");
    Some(RuleSet::new(checked.rules))
}

/// Starts the job, waiting for a broker that does not answer yet. `None` if it was told to stop meanwhile.
fn start(
    config: &Config,
    rules: &RuleSet,
    wait: Duration,
    runtime: &tokio::runtime::Runtime,
    stopped: &tokio::sync::watch::Receiver<bool>,
) -> Result<Option<Job>, LogError> {
    let clock = Arc::new(SystemClock);
    let log = Arc::new(KafkaLog::new(config.kafka_options())?);
    let deadline = Instant::now() + wait;
    loop {
        let mut sinks = Vec::new();
        for sink in &config.sink {
            let kind: Box<dyn wardbell_connectors::sink::Sink> = match (sink.kind, &sink.path) {
                (SinkKind::Jsonl, Some(path)) => Box::new(JsonLines::open(path).map_err(|error| {
                    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    LogError::new(Remedy::Refuse, format!("sink `{}`", sink.name), format!("{error}: {cause}"))
                })?),
                _ => Box::new(Console::new(clock.clone(), None)),
            };
            sinks.push(SinkSettings { name: sink.name.clone(), identity: sink.identity, sink: kind });
        }
        let settings = JobSettings {
            group: config.group.clone(),
            instance: config.instance.clone(),
            topics: config.topics(),
            decision: config.decision(),
            rules: rules.clone(),
            commit_every: Duration::from_micros(config.decide.commit_every.unsigned_abs()),
            tick_every: TICK_EVERY,
            sinks,
        };
        match Job::start(settings, log.clone(), clock.clone()) {
            Ok(job) => return Ok(Some(job)),
            Err(error) if error.remedy == Remedy::Retry && Instant::now() + BROKER_PAUSE < deadline => {
                tracing::warn!("{error}; trying again");
                runtime.block_on(tokio::time::sleep(BROKER_PAUSE));
                if *stopped.borrow() {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
}
