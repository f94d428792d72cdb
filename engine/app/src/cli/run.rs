//! `wardbell run`: the job, until it is told to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::{LogError, Remedy};
use wardbell_connectors::sink::console::Console;
use wardbell_connectors::sink::jsonl::JsonLines;
use wardbell_connectors::sink::webhook::Webhook;
use wardbell_connectors::sink::{Sink, SinkError};

use super::{FINDING, MISUSE, OK, colored, load_config, start_logs};
use crate::config::{self, Config, SinkKind};
use crate::http;
use crate::latency_files::LatencyFiles;
use crate::pipeline::{Job, JobSettings, SinkSettings};
use crate::sets::Document;
use crate::systemd::Systemd;

/// Ticks say every second how far sources were read.
const TICK_EVERY: Duration = Duration::from_secs(1);
/// Pause between two attempts to reach the broker at start.
const BROKER_PAUSE: Duration = Duration::from_secs(2);
/// How long a broker is waited for at start, unless said otherwise.
const BROKER_WAIT: &str = "60s";

/// Run the job beside a broker
///
/// SIGTERM and SIGINT drain: what is in hand is finished and committed. SIGHUP and changed rule files publish the configured
/// rules.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell run --config wardbell.toml\n  WARDBELL__KAFKA__BOOTSTRAP_SERVERS=broker:9092 wardbell run --config wardbell.toml"
)]
pub struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How long to wait at start for a broker that does not answer
    #[arg(long, value_name = "DURATION", default_value = BROKER_WAIT, value_parser = wait_duration)]
    wait_for_broker: Duration,
    /// Give partitions to the other instances at the end; without it they stay with this `instance` for the session (6 s),
    /// so that a restart in place goes on with them
    #[arg(long)]
    leave_on_exit: bool,
}

impl Arguments {
    pub fn of(config: &Path) -> Self {
        let wait_for_broker = wait_duration(BROKER_WAIT).expect("the default is a duration");
        Self { config: config.to_owned(), wait_for_broker, leave_on_exit: false }
    }
}

fn wait_duration(text: &str) -> Result<Duration, String> {
    let us = wardbell_schemas::duration::parse(text)?;
    u64::try_from(us).map(Duration::from_micros).map_err(|_| "must not be negative".to_owned())
}

pub fn run(arguments: &Arguments) -> u8 {
    run_with(arguments, &Vec::new)
}

/// Runs the job with further sinks, made anew for each attempt to start.
pub fn run_with(arguments: &Arguments, further_sinks: &dyn Fn() -> Vec<SinkSettings>) -> u8 {
    start_logs(false);
    let Some(config) = load_config(&arguments.config) else {
        return MISUSE;
    };
    let configured = load_rules(&config);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot be started: {error}");
            return MISUSE;
        }
    };
    // Signals are caught before the job starts, so that none is missed meanwhile.
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let publish = Arc::new(Notify::new());
    if let Err(error) = runtime.block_on(async { listen(stop, publish.clone()) }) {
        eprintln!("error: signals cannot be caught: {error}");
        return MISUSE;
    }
    // Up before the job: a broker that is away at start is no reason to restart us.
    let server = match serve(&config.http) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("error: {error:#}");
            return MISUSE;
        }
    };
    let mut systemd = Systemd::from_environment();
    let job = match start(&config, further_sinks, configured, arguments, &systemd, &runtime, &stopped) {
        Ok(Some(job)) => job,
        Ok(None) => return OK,
        Err(error) => {
            eprintln!("error: {error}");
            return MISUSE;
        }
    };
    for connector in &config.loaded {
        let topics = connector.topics.join(", ");
        tracing::info!(connector = connector.name, topics, hash = &connector.hash[..12], "topics with a connector");
    }
    tracing::info!(sources = config.source_topics().join(", "), "the job runs");
    let observer = job.observer();
    if let Some(server) = &server {
        server.attach(observer.clone());
    }
    let statistics = job.statistics().clone();
    let files = match &config.latency.hgrm_dir {
        Some(folder) => match LatencyFiles::start(folder, statistics.clone()) {
            Ok(files) => Some(files),
            Err(error) => {
                eprintln!("error: {error:#}");
                job.stop();
                return MISUSE;
            }
        },
        None => None,
    };
    let failure = runtime.block_on(supervise(&job, stopped, &publish, || systemd.turn(&observer)));
    tracing::info!("stopping: finishing what is in hand");
    systemd.stopping();
    let ended = job.stop();
    if let Some(files) = files {
        files.stop();
    }
    if let Some(server) = server {
        server.stop();
    }
    let summary = statistics.summary();
    eprintln!("\n{}\n{}", summary.outcomes_table(), statistics.latency.table());
    if let Some(failure) = failure {
        eprintln!("error: {failure}");
        return FINDING;
    }
    if ended { OK } else { FINDING }
}

fn listen(stop: tokio::sync::watch::Sender<bool>, publish: Arc<Notify>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => publish.notify_one(),
            }
        }
        let _ = stop.send(true);
        // Kept so that the channel stays open until the job has seen it.
        stop.closed().await;
    });
    Ok(())
}

/// Waits for a signal or for a job that cannot go on; gives the reason of the latter.
async fn supervise(
    job: &Job,
    mut stopped: tokio::sync::watch::Receiver<bool>,
    publish: &Notify,
    mut turn: impl FnMut(),
) -> Option<String> {
    loop {
        tokio::select! {
            _ = stopped.changed() => return None,
            () = publish.notified() => job.publish_rules(),
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                if let Some(failure) = job.failure() {
                    return Some(failure);
                }
                turn();
            }
        }
    }
}

/// Starts HTTP unless it is off, and says where it is.
fn serve(settings: &config::Http) -> anyhow::Result<Option<http::Server>> {
    let token = http::Token::of(settings)?;
    let Some(address) = settings.address().map_err(anyhow::Error::msg)? else {
        return Ok(None);
    };
    let api = if token.is_some() { "/api with its token" } else { "/api closed: no token is configured" };
    let server = http::Server::start(address, token)?;
    eprintln!("listening on http://{} ({}, {api})", server.address(), http::OPEN_PATHS);
    Ok(Some(server))
}

/// The configured rules: checked, and their cases run. Without them the job can only run a set that is published already.
fn load_rules(config: &Config) -> Option<Document> {
    match config.rules_folder().load() {
        Ok(sound) => {
            let (rules, cases) = (sound.document.rules().len(), sound.n_cases);
            tracing::info!(rules, cases, "the configured rules are checked and tested");
            Some(sound.document)
        }
        Err(unsound) => {
            eprint!("{}", unsound.render(colored()));
            eprintln!("the configured rules cannot be used; a set that is published already stays in force");
            None
        }
    }
}

/// Starts the job, waiting for a broker that does not answer yet. `None` if it was told to stop meanwhile.
fn start(
    config: &Config,
    further_sinks: &dyn Fn() -> Vec<SinkSettings>,
    configured: Option<Document>,
    arguments: &Arguments,
    systemd: &Systemd,
    runtime: &tokio::runtime::Runtime,
    stopped: &tokio::sync::watch::Receiver<bool>,
) -> Result<Option<Job>, LogError> {
    let clock = Arc::new(SystemClock);
    let log = Arc::new(config.kafka.open()?);
    let deadline = Instant::now() + arguments.wait_for_broker;
    loop {
        let mut sinks = Vec::new();
        for sink in &config.sink {
            let lanes = lanes(sink, &clock).map_err(|error| {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                LogError::new(Remedy::Refuse, format!("sink `{}`", sink.name), format!("{error}{cause}"))
            })?;
            sinks.push(SinkSettings { name: sink.name.clone(), identity: sink.identity, lanes });
        }
        sinks.extend(further_sinks());
        let settings = JobSettings {
            group: config.group.clone(),
            instance: config.instance.clone(),
            topics: config.topics(),
            decision: config.decision(),
            configured: configured.clone(),
            folder: Some(config.rules_folder()),
            commit_every: Duration::from_micros(config.decide.commit_every.unsigned_abs()),
            checkpoint_every: Duration::from_micros(config.decide.checkpoint_every.unsigned_abs()),
            strict_replay: false,
            tick_every: TICK_EVERY,
            canary_every: u64::try_from(config.canary.every).ok().filter(|us| *us > 0).map(Duration::from_micros),
            connectors: config.connectors(),
            sinks,
            record_only: config.record_only,
            leave_on_exit: arguments.leave_on_exit,
        };
        match Job::start(settings, log.clone(), clock.clone()) {
            Ok(job) => return Ok(Some(job)),
            Err(error) if error.remedy == Remedy::Retry && Instant::now() + BROKER_PAUSE < deadline => {
                tracing::warn!("{error}; trying again");
                systemd.starting(&error.to_string());
                runtime.block_on(async { tokio::time::sleep(BROKER_PAUSE).await });
                if *stopped.borrow() {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// A configured sink, as often as it delivers side by side.
fn lanes(sink: &config::Sink, clock: &Arc<SystemClock>) -> Result<Vec<Box<dyn Sink>>, SinkError> {
    let lane: Box<dyn Sink> = match sink.kind {
        SinkKind::Stdout => Box::new(Console::new(clock.clone(), None)),
        SinkKind::Jsonl => {
            let path = sink.path.as_deref().expect("a checked configuration names the file of a `jsonl` sink");
            Box::new(JsonLines::open(path)?)
        }
        SinkKind::Webhook => {
            let settings = sink.webhook().map_err(|fault| SinkError::Refused {
                step: format!("reading `{}`", fault.key),
                what: fault.what,
                remedy: fault.remedy,
            })?;
            let webhook = Webhook::new(settings, clock.clone())?;
            return Ok((0..sink.concurrency).map(|_| Box::new(webhook.clone()) as Box<dyn Sink>).collect());
        }
    };
    Ok(vec![lane])
}
