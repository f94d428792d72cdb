//! `loadtest`: a device gateway that can be told what to do, and a reader of alerts that keeps a stopwatch and books.
//!
//! `replay` sends a recording to a source topic, `load` sends simulated monitors on a schedule and measures the alerts
//! that come back, `probe` measures the least that reading and committing takes, `verify` accounts for everything that
//! `load` sent, and `receive` is a webhook receiver that fails; `failover` tells how long alerts stayed away after faults,
//! `tamper` copies alerts with one byte changed, and `oracle` derives all alerts again by a naive evaluation. All speak to
//! a real broker as any integrator would. This file is the command line only; nothing in this crate decides anything.
//!
//! Exit codes: 0 all well; 1 a finding (a reading is missing, an alert came twice); 2 wrong use, or nothing to work on.

mod recording;
mod source;

mod replay;

mod interrupt;
mod load;
mod manifest;
mod poison;
mod schedule;
mod ward;

mod backlog;
mod cpu;
mod measure;
mod probe;
mod report;

mod alert_book;
mod ledger;
mod receive;
mod verify;

mod failover;
mod oracle;
mod tamper;

mod progress;
#[cfg(test)]
mod sample;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::kafka::KafkaLog;
use wardbell_schemas::{Micros, SECOND, duration};

use schedule::Ramp;

const REPLAY_EXAMPLES: &str = "\
Examples:
  Ten stays side by side, an hour a minute, as if they happened now:
    loadtest replay --file icu2012_set_a.csv.gz --stays 10 --topic devices --speed 60x
  The whole recording with its own times, as fast as the broker takes it:
    loadtest replay --file icu2012_set_a.csv.gz --topic icu-record --record-time --json";

const LOAD_EXAMPLES: &str = "\
Examples:
  20,000 readings/s of 2,000 patients for a minute, one in twenty of them deteriorating:
    loadtest load --topic devices --rate 20000 --patients 2000 --for 60s
  Ten readings per record, with the whole latency distribution in a file:
    loadtest load --topic devices --rate 100000 --readings-per-record 10 --for 5m --hgrm latency.hgrm --json
  The highest rate the engine keeps up with:
    loadtest load --topic devices --ramp 5000..80000x1.5 --step 20s
  How it compares with the bare minimum, and what it costs:
    loadtest load --topic devices --rate 50000 --probe --engine-pid 4711 --broker-pid 4712";

const PROBE_EXAMPLE: &str = "\
Example, while something sends to the topic:
  loadtest probe --topic devices --for 60s";

const VERIFY_EXAMPLE: &str = "\
Example:
  loadtest load --topic devices --for 60s --manifest run.json
  loadtest verify --manifest run.json";

const RECEIVE_EXAMPLE: &str = "\
Example:
  loadtest receive --file received.jsonl --refuse 50%";

const FAILOVER_EXAMPLE: &str = "\
Example:
  loadtest load --topic devices --for 10m --alerts alerts.jsonl
  loadtest failover --faults faults.jsonl --alerts alerts.jsonl";

const TAMPER_EXAMPLE: &str = "\
Example:
  loadtest tamper --from wardbell.alerts --to tampered.alerts --seed 7";

const ORACLE_EXAMPLE: &str = "\
Example, after a run:
  loadtest oracle --brokers 127.0.0.1:9092";

/// Puts load on a broker for Wardbell and measures what comes back
///
/// Exit codes: 0 all well, 1 a finding (a reading is missing, an alert came twice), 2 wrong use.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sends a recording to a source topic as canonical JSON
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(ReplayArgs),
    /// Sends simulated monitors on a schedule and measures the alerts that come back
    #[command(after_help = LOAD_EXAMPLES)]
    Load(LoadArgs),
    /// Reads a topic and commits, nothing else, and measures how long that takes
    #[command(after_help = PROBE_EXAMPLE)]
    Probe(ProbeArgs),
    /// Accounts for everything that `load` sent, once the engine has it
    #[command(after_help = VERIFY_EXAMPLE)]
    Verify(VerifyArgs),
    /// Receives webhooks, and fails a share of them
    #[command(after_help = RECEIVE_EXAMPLE)]
    Receive(ReceiveArgs),
    /// Tells how long alerts stayed away after faults that somebody made, as a table in Markdown
    #[command(after_help = FAILOVER_EXAMPLE)]
    Failover(FailoverArgs),
    /// Copies a topic of alerts with one byte of one alert changed, which `wardbell verify` has to find
    #[command(after_help = TAMPER_EXAMPLE)]
    Tamper(TamperArgs),
    /// Derives all alerts again by a naive evaluation, and holds the alerts topic against it
    #[command(after_help = ORACLE_EXAMPLE)]
    Oracle(OracleArgs),
}

// The structs below have no doc comments: clap would make them the description of the command.

// Where the broker is.
#[derive(Debug, Args)]
pub struct BrokerArgs {
    /// The broker's address
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    brokers: String,
    /// An option of librdkafka, like `linger.ms=5`; may be repeated
    #[arg(long, value_name = "K=V", value_parser = parse_option)]
    option: Vec<(String, String)>,
}

impl BrokerArgs {
    fn open(&self) -> Result<KafkaLog> {
        let servers = ("bootstrap.servers".to_owned(), self.brokers.clone());
        let options: BTreeMap<String, String> = [servers].into_iter().chain(self.option.iter().cloned()).collect();
        KafkaLog::new(options).context("reading --brokers and --option")
    }
}

// What `replay` is told.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The recording; its format is known by its header, gzip by its first bytes
    #[arg(long, value_name = "PATH")]
    file: PathBuf,
    /// The source topic; made if it is missing
    #[arg(long)]
    topic: String,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Recording seconds per real second, like `60x`, or `max` [default: 60x; with --record-time: max]
    #[arg(long, value_name = "FACTOR", value_parser = parse_speed)]
    speed: Option<Speed>,
    /// Takes only the first N stays (patients) of the recording
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    stays: Option<u64>,
    /// Partitions of the topic if it has to be made [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// Sends with the recording's times, as event time and as Kafka record time stamp, instead of now
    #[arg(long)]
    record_time: bool,
    /// The time at which the recording begins [default: 2026-01-01T00:00:00Z, or the dates in the recording]
    #[arg(long, value_name = "RFC3339", requires = "record_time", value_parser = recording::parse_rfc3339)]
    start: Option<Micros>,
    /// Prints the summary as one JSON line
    #[arg(long)]
    json: bool,
}

// What `load` is told.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The source topic; made if it is missing
    #[arg(long)]
    topic: String,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Readings per second, all patients together
    #[arg(long, value_name = "N", default_value = "20000", value_parser = parse_rate)]
    rate: f64,
    /// Patients, each with one monitor
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
    patients: u64,
    /// Readings in one record, each of another signal of the patient
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=ward::READINGS_PER_RECORD_MAX),
    )]
    readings_per_record: u64,
    /// How long to send
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    duration_us: Micros,
    /// Rising rates instead of one, until one is not sustained, like `5000..80000x1.5`
    #[arg(
        long,
        value_name = "FROM..TOxFACTOR",
        value_parser = str::parse::<Ramp>,
        conflicts_with_all = ["rate", "duration_us", "poison"],
    )]
    ramp: Option<Ramp>,
    /// How long each rate of a ramp is held
    #[arg(long = "step", value_name = "DURATION", default_value = "20s", value_parser = parse_duration)]
    step_us: Micros,
    /// A rate is not sustained if the p99 from the scheduled time is above this
    #[arg(long = "p99-max", value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    p99_max_us: Micros,
    /// Partitions of the source topic if it has to be made [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// The topic alerts come back on
    #[arg(long, value_name = "TOPIC", default_value = "wardbell.alerts")]
    alerts_topic: String,
    /// The engine's canonical log; only a ramp looks at it
    #[arg(long, value_name = "TOPIC", default_value = "wardbell.readings")]
    canonical_topic: String,
    /// The engine's `group`; only a ramp looks at what it has committed
    #[arg(long, value_name = "NAME", default_value = "wardbell")]
    group: String,
    /// Share of patients whose SpO2 falls to 82 % once in every --cycle
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = parse_percent)]
    deteriorating: f64,
    /// SpO2 of a patient that deteriorates is low for a third of this
    #[arg(long = "cycle", value_name = "DURATION", default_value = "120s", value_parser = parse_cycle)]
    cycle_us: Micros,
    /// Records among the good ones that nothing can be made of
    #[arg(long, value_name = "N", default_value_t = 0)]
    poison: u64,
    /// Runs a bare consume-and-commit probe beside the engine and compares
    #[arg(long)]
    probe: bool,
    /// The engine's process, on this machine: its CPU time is reported
    #[arg(long, value_name = "PID")]
    engine_pid: Option<u32>,
    /// The broker's process, on this machine: its CPU time is reported
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,
    /// How long to go on reading alerts after the last record was acknowledged; in a ramp, how long the engine has to
    /// catch up
    #[arg(long = "settle", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    settle_us: Micros,
    /// Prints the report as one JSON object
    #[arg(long)]
    json: bool,
    /// Writes the latency distribution of alerts decided by a reading to FILE, of those decided by a timer beside it
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Writes to FILE what was sent and where it is, for `verify`
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Writes to FILE a line about each alert when it comes, for `failover`
    #[arg(long, value_name = "FILE")]
    alerts: Option<PathBuf>,
}

// What `probe` is told.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The topic to read
    #[arg(long)]
    topic: String,
    #[command(flatten)]
    broker: BrokerArgs,
    /// How long to measure
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    duration_us: Micros,
    /// Prints the report as one JSON object
    #[arg(long)]
    json: bool,
}

// What `verify` is told.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// What `load --manifest` wrote
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    #[command(flatten)]
    broker: BrokerArgs,
    /// The engine's canonical log
    #[arg(long, value_name = "TOPIC", default_value = "wardbell.readings")]
    canonical_topic: String,
    /// Where the engine puts what it cannot use
    #[arg(long, value_name = "TOPIC", default_value = "wardbell.dead-letters")]
    dead_letters_topic: String,
    /// Where the engine puts alerts
    #[arg(long, value_name = "TOPIC", default_value = "wardbell.alerts")]
    alerts_topic: String,
    /// The engine's `group`: what it has committed is waited for
    #[arg(long, value_name = "NAME", default_value = "wardbell")]
    group: String,
    /// What `receive` wrote, or a `jsonl` sink, to be held against the alerts topic; may be repeated: all together
    #[arg(long, value_name = "FILE")]
    received: Vec<PathBuf>,
    /// Fewer rule sets that came into force than this are a finding
    #[arg(long, value_name = "N", default_value_t = 0)]
    activations: u64,
    /// How long to wait for the engine to get through, and then for what is still to be received
    #[arg(long = "wait", value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    wait_us: Micros,
    /// Writes the latency distribution of alerts decided by a reading to FILE, of those decided by a timer beside it
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Prints the report as one JSON object
    #[arg(long)]
    json: bool,
}

// What `receive` is told.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// Every request is added to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// The port on 127.0.0.1; 0: a free one. `listening=ADDRESS` on standard output says which
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Share of requests that are answered with 500
    #[arg(long, value_name = "PERCENT", default_value = "0%", value_parser = parse_percent)]
    refuse: f64,
}

// What `failover` is told.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// The faults, a JSON object a line: `at_us`, `kind`, the `instance` and the `partitions` it had
    #[arg(long, value_name = "FILE")]
    faults: PathBuf,
    /// What `load --alerts` wrote
    #[arg(long, value_name = "FILE")]
    alerts: PathBuf,
    /// Prints the report as one JSON object
    #[arg(long)]
    json: bool,
}

// What `tamper` is told.
#[derive(Debug, Args)]
pub struct TamperArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    /// The topic to copy, as a read-committed reader sees it
    #[arg(long, value_name = "TOPIC", default_value = "wardbell.alerts")]
    from: String,
    /// The copy; made here
    #[arg(long, value_name = "TOPIC")]
    to: String,
    /// Decides which byte it is, and of which alert
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

// What `oracle` is told.
#[derive(Debug, Args)]
pub struct OracleArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    /// The engine's canonical log
    #[arg(long, value_name = "TOPIC", default_value = "wardbell.readings")]
    canonical: String,
    /// The topic alerts are on
    #[arg(long, value_name = "TOPIC", default_value = "wardbell.alerts")]
    alerts: String,
    /// The topic that rule sets are published on
    #[arg(long, value_name = "TOPIC", default_value = "wardbell.control")]
    control: String,
    /// The engine's `group`: what it has committed is looked at
    #[arg(long, value_name = "NAME", default_value = "wardbell")]
    group: String,
}

/// How fast a recording is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// Recording seconds per real second.
    Times(f64),
    /// As fast as the broker takes it.
    Max,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is well; `false` is a finding that has been printed.
fn run(command: &Command) -> Result<bool> {
    match command {
        Command::Replay(args) => replay::run(args, &args.broker.open()?, &SystemClock),
        Command::Load(args) => load::run(args, &args.broker.open()?, &SystemClock),
        Command::Probe(args) => probe::run(args, &args.broker.open()?, &SystemClock),
        Command::Verify(args) => verify::run(args, &args.broker.open()?),
        Command::Receive(args) => receive::run(args),
        Command::Failover(args) => failover::run(args),
        Command::Tamper(args) => tamper::run(args, &args.broker.open()?),
        Command::Oracle(args) => oracle::run(args, &args.broker.open()?),
    }
}

fn parse_option(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, like `linger.ms=5`".to_owned()),
    }
}

fn parse_speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed::Max);
    }
    let factor = text.strip_suffix('x').and_then(|number| number.parse::<f64>().ok());
    match factor {
        Some(factor) if factor.is_finite() && factor > 0.0 => Ok(Speed::Times(factor)),
        _ => Err("expected a factor above zero with an `x`, like `60x`, or `max`".to_owned()),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("expected readings per second, a number above zero".to_owned()),
    }
}

/// A share from 0 to 1, written as a percentage.
fn parse_percent(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    match percent {
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("expected a percentage from 0% to 100%, like `5%`".to_owned()),
    }
}

/// Long enough for a few readings in its third.
fn parse_cycle(text: &str) -> Result<Micros, String> {
    let us = parse_duration(text)?;
    if us < SECOND { Err("expected at least `1s`".to_owned()) } else { Ok(us) }
}

fn parse_duration(text: &str) -> Result<Micros, String> {
    let us = duration::parse(text)?;
    if us < 0 { Err(format!("`{text}` is negative")) } else { Ok(us) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let cli = Cli::try_parse_from(["loadtest", "load", "--topic", "t"]).unwrap();
        let Command::Load(args) = cli.command else { panic!("another command") };
        assert_eq!((args.rate, args.patients, args.readings_per_record), (20_000.0, 2_000, 1));
        assert_eq!((args.duration_us, args.settle_us, args.deteriorating), (60_000_000, 10_000_000, 0.05));
        assert_eq!(args.cycle_us, 120_000_000);
        assert_eq!((args.broker.brokers.as_str(), args.alerts_topic.as_str()), ("127.0.0.1:9092", "wardbell.alerts"));
    }

    #[test]
    fn a_ramp_has_no_other_rate() {
        let words = ["loadtest", "load", "--topic", "t", "--ramp", "5000..80000x1.5"];
        let cli = Cli::try_parse_from(words).unwrap();
        let Command::Load(args) = cli.command else { panic!("another command") };
        assert_eq!((args.ramp, args.step_us), ("5000..80000x1.5".parse().ok(), 20_000_000));
        for more in [["--rate", "5000"], ["--for", "20s"], ["--poison", "3"], ["--ramp", "1..2"]] {
            assert!(Cli::try_parse_from(words.into_iter().chain(more)).is_err(), "{more:?}");
        }
    }

    #[test]
    fn options_go_to_librdkafka_as_they_are_written() {
        let words = ["loadtest", "load", "--topic", "t", "--option", "linger.ms=5", "--option", "client.id=a=b"];
        let cli = Cli::try_parse_from(words).unwrap();
        let Command::Load(args) = cli.command else { panic!("another command") };
        let expected =
            [("linger.ms", "5"), ("client.id", "a=b")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(args.broker.option, expected);
    }

    #[test]
    fn values_without_their_mark_are_refused() {
        assert_eq!(parse_speed("60x"), Ok(Speed::Times(60.0)));
        assert_eq!(parse_speed("max"), Ok(Speed::Max));
        for text in ["60", "0x", "-1x", "NaNx", "infx", "x", ""] {
            assert!(parse_speed(text).is_err(), "{text}");
        }
        assert_eq!(parse_percent("5%"), Ok(0.05));
        for text in ["5", "101%", "-1%", "NaN%", "%"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
        for text in ["0", "-5", "NaN", "inf", "many"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        assert_eq!(parse_duration("1m30s"), Ok(90_000_000));
        assert!(parse_duration("-5s").is_err());
        assert_eq!(parse_cycle("1s"), Ok(SECOND));
        assert!(parse_cycle("999ms").is_err());
        assert!(parse_duration("60").is_err());
    }

    #[test]
    fn a_start_without_record_time_is_wrong_use() {
        let words = ["loadtest", "replay", "--file", "f", "--topic", "t", "--start", "2026-03-01T00:00:00Z"];
        assert!(Cli::try_parse_from(words).is_err());
        assert!(Cli::try_parse_from(words.into_iter().chain(["--record-time"])).is_ok());
    }
}
