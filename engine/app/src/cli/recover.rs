//! `wardbell recover`: the remedy for a partition that the job refuses to take over.

use std::path::PathBuf;
use std::sync::Arc;

use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::{Log, Remedy};

use super::{FINDING, MISUSE, OK, load_config, start_logs};
use crate::recover::{Basis, Request, recover};

/// What `--empty` without `--yes` says.
const WHAT_IS_LOST: &str = "--empty goes on with the newest day of the canonical log and the open alerts, and forgets what the partition knew from before: \
longer windows are unknown until they have filled again, baselines and limits set for a patient are gone, and so alerts can come late or not at all. \
Try --from-checkpoint first; add --yes to do it.";

/// Let a partition go on whose checkpoint or offset cannot be used
///
/// The job says which partition, and why, when it refuses to take it over; it takes it over by itself once this is done, and
/// need not be stopped. Nothing that stands in the alerts topic is said again. Who used this command, when and why is logged,
/// so keep what it prints.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell recover --config wardbell.toml --partition 3 --from-checkpoint --reason \"disk of broker 2\"\n  wardbell recover --config wardbell.toml --partition 3 --empty --yes --reason \"no checkpoint can be read\""
)]
pub struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The canonical partition
    #[arg(long, value_name = "N")]
    partition: i32,
    #[command(flatten)]
    start: Start,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Forget what --empty forgets
    #[arg(long, requires = "empty")]
    yes: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Start {
    /// Go on from the newest checkpoint that can be read
    #[arg(long)]
    from_checkpoint: bool,
    /// Go on without one: with the newest day of the canonical log, and the open alerts
    #[arg(long)]
    empty: bool,
}

pub fn run(arguments: &Arguments) -> u8 {
    start_logs(false);
    if arguments.start.empty && !arguments.yes {
        eprintln!("{WHAT_IS_LOST}");
        return MISUSE;
    }
    let Some(config) = load_config(&arguments.config) else {
        return MISUSE;
    };
    let request = Request {
        group: config.group.clone(),
        topics: config.topics(),
        partition: arguments.partition,
        from: if arguments.start.empty { Basis::Empty } else { Basis::Checkpoint },
        by: std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned()),
        reason: arguments.reason.clone(),
    };
    let recovered = config.kafka.open().and_then(|log| {
        let log: Arc<dyn Log> = Arc::new(log);
        recover(&log, &SystemClock, &request)
    });
    match recovered {
        Ok(recovered) => {
            let (topic, partition) = (&config.canonical.topic, arguments.partition);
            println!("{topic}/{partition} goes on at offset {}", recovered.next_offset);
            for what in recovered.told {
                println!("  {what}");
            }
            OK
        }
        Err(error) => {
            eprintln!("error: {error}");
            if error.remedy == Remedy::Refuse { FINDING } else { MISUSE }
        }
    }
}
