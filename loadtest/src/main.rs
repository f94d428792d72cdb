//! `loadtest`: a device gateway that can be told what to do, and a reader of alerts that keeps a stopwatch.
//!
//! `replay` sends a recording to a source topic, `load` sends simulated monitors on a schedule and measures the alerts
//! that come back. Both speak canonical JSON to a real broker and account for every record. This file is the command
//! line only; nothing in this crate knows rules or decides anything.
//!
//! Exit codes: 0 all well; 1 a finding (a record was not acknowledged, an alert came twice); 2 wrong use, or nothing to
//! work on.

mod recording;
mod source;

mod load;
mod measure;
mod replay;

mod progress;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::kafka::KafkaLog;
use wardbell_schemas::{Micros, duration};

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
    loadtest load --topic devices --rate 100000 --readings-per-record 10 --for 5m --hgrm latency.hgrm --json";

/// Puts load on a broker for Wardbell and measures what comes back
///
/// Exit codes: 0 all well, 1 a finding (a record was not acknowledged, an alert came twice), 2 wrong use.
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
}

// The three structs below have no doc comments: clap would make them the description of the command.

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
        value_parser = clap::value_parser!(u64).range(1..=load::READINGS_PER_RECORD_MAX),
    )]
    readings_per_record: u64,
    /// How long to send
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    duration_us: Micros,
    /// Partitions of the source topic if it has to be made [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// The topic alerts come back on
    #[arg(long, value_name = "TOPIC", default_value = "wardbell.alerts")]
    alerts_topic: String,
    /// Share of patients whose SpO2 falls to 82 % for 40 s of every 120 s
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = parse_percent)]
    deteriorating: f64,
    /// How long to go on reading alerts after the last record was acknowledged
    #[arg(long = "settle", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    settle_us: Micros,
    /// Prints the report as one JSON object
    #[arg(long)]
    json: bool,
    /// Writes the latency distribution of alerts decided by a reading to FILE, of those decided by a timer beside it
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
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
        assert_eq!((args.broker.brokers.as_str(), args.alerts_topic.as_str()), ("127.0.0.1:9092", "wardbell.alerts"));
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
        assert!(parse_duration("60").is_err());
    }

    #[test]
    fn a_start_without_record_time_is_wrong_use() {
        let words = ["loadtest", "replay", "--file", "f", "--topic", "t", "--start", "2026-03-01T00:00:00Z"];
        assert!(Cli::try_parse_from(words).is_err());
        assert!(Cli::try_parse_from(words.into_iter().chain(["--record-time"])).is_ok());
    }
}
