//! The command line. Exit code 0: all well; 1: the command's own finding; 2: wrong use or configuration, or nothing found
//! to work on.

mod check;
mod control;
mod demo;
mod explain;
mod normalize;
mod recover;
mod rules;
mod run;
mod test;
mod verify;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::{self, Config};
use crate::pipeline::SinkSettings;
use crate::rules_files;
use crate::verify::Told;

/// All well.
const OK: u8 = 0;
/// The command found what it looks for: a failed case, a fault, a broken budget.
const FINDING: u8 = 1;
/// Wrong use or configuration, or nothing to work on.
const MISUSE: u8 = 2;

/// Long work tells this often how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(3);

/// Stream-processing clinical alerting: readings from medical devices in, alerts out, with their latency.
///
/// A component, not a medical device.
#[derive(Debug, Parser)]
#[command(name = "wardbell", version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Run(run::Arguments),
    Check(check::Arguments),
    Test(test::Arguments),
    Rules(rules::Arguments),
    Normalize(normalize::Arguments),
    Control(control::Arguments),
    Verify(verify::Arguments),
    Explain(explain::Arguments),
    Recover(recover::Arguments),
}

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { MISUSE } else { OK };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let code = match arguments.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Rules(arguments) => rules::run(&arguments),
        Command::Normalize(arguments) => normalize::run(&arguments),
        Command::Control(arguments) => control::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Recover(arguments) => recover::run(&arguments),
    };
    ExitCode::from(code)
}

/// `wardbell run --config FILE` with further sinks besides the configured ones: the body of a binary that brings a sink of
/// its own (`examples/custom-sink`). `sinks` makes them, again for each attempt to start; their names differ from those of
/// the configuration.
pub fn run_with_sinks(config: &Path, sinks: &dyn Fn() -> Vec<SinkSettings>) -> ExitCode {
    ExitCode::from(run::run_with(&run::Arguments::of(config), sinks))
}

/// Logs to standard error; `WARDBELL_LOG` takes a filter such as `debug` or `wardbell=debug`.
fn start_logs(quiet: bool) {
    let default = if quiet { "error" } else { "info" };
    let filter = EnvFilter::try_from_env("WARDBELL_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // A second call (in tests) finds a subscriber already there, which is as good.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colored())
        .with_target(false)
        .try_init();
}

/// Standard error is a terminal that shows colors.
fn colored() -> bool {
    use std::io::IsTerminal;
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// The configuration; its faults are shown.
fn load_config(path: &Path) -> Option<Config> {
    config::load(path)
        .inspect_err(|(files, faults)| {
            eprint!("{}", rules_files::render(faults, files.as_slice(), colored()));
            eprintln!("the configuration cannot be used: {}", plural(faults.len(), "fault", "faults"));
        })
        .ok()
}

/// Tells on a terminal every few seconds how far a replay of the canonical log is.
fn progress() -> impl FnMut(Told) {
    use std::io::IsTerminal;
    let is_shown = std::io::stderr().is_terminal();
    let mut told = Instant::now();
    move |Told { partition, offset, end }| {
        if is_shown && told.elapsed() > PROGRESS_EVERY {
            told = Instant::now();
            eprintln!("partition {partition}: at canonical offset {offset} of {end}");
        }
    }
}

fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
