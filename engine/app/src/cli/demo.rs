//! `wardbell demo`: a simulated ward through the whole job, with nothing installed.

use std::time::Duration;

use super::{FINDING, MISUSE, OK, start_logs};
use crate::demo::{self, Demo};

/// Watch a simulated ward: readings become alerts, with their latency
///
/// Needs nothing installed: the log is in memory, the rules are the shipped adult-ward pack. Ward time runs faster than
/// the clock on the wall, so that holds and silences of a minute can be seen in a short while; latencies are real.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  wardbell demo --for 30s\n  wardbell demo --for 10s --json | tail -n 1")]
pub struct Arguments {
    /// How long, in real time
    #[arg(long = "for", value_name = "DURATION", default_value = "30s", value_parser = positive)]
    length: Duration,
    /// Another seed is another ward
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ward seconds per real second
    #[arg(long, value_name = "FACTOR", default_value_t = 6.0, value_parser = speed)]
    speed: f64,
    /// One alert a line, then one line with the summary
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<Duration, String> {
    match wardbell_schemas::duration::parse(text)? {
        us if us > 0 => Ok(Duration::from_micros(us.unsigned_abs())),
        _ => Err("must be longer than zero".to_owned()),
    }
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if (0.1..=1_000.0).contains(&speed) => Ok(speed),
        _ => Err("must be a number from 0.1 to 1000".to_owned()),
    }
}

pub fn run(arguments: &Arguments) -> u8 {
    start_logs(true);
    let demo = Demo { length: arguments.length, seed: arguments.seed, speed: arguments.speed, json: arguments.json };
    match demo::run(&demo) {
        Ok(true) => OK,
        Ok(false) => FINDING,
        Err(error) => {
            eprintln!("error: {error:#}");
            MISUSE
        }
    }
}
