//! `wardbell verify`: the proof that the alerts topic holds what the canonical log gives, and nothing else.

use std::path::PathBuf;
use std::sync::Arc;

use wardbell_connectors::log::{Log, LogError};

use super::{FINDING, MISUSE, OK, load_config, plural, progress, start_logs};
use crate::verify::{Begin, Compared, Scope, verify};

/// Derive the alerts again from the canonical log and compare them with the alerts topic, byte for byte
///
/// Reads each partition from its first record, or from the oldest checkpoint if that is deleted, to what the decide stage
/// has committed, with the rule sets that were in force, and names the first difference. Changes nothing and disturbs no job
/// that runs. Exit code 0: equal; 1: a difference; 2: something could not be compared.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell verify --config wardbell.toml\n  wardbell verify --config wardbell.toml --partition 3 --from-checkpoint --json"
)]
pub struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// This partition only; may be given several times
    #[arg(long, value_name = "N")]
    partition: Vec<i32>,
    /// Begin at the oldest checkpoint held
    #[arg(long, conflicts_with = "from_start")]
    from_checkpoint: bool,
    /// Begin at the first record, or not at all
    #[arg(long)]
    from_start: bool,
    /// Compare with this topic instead of `alerts.topic`: a copy, or an archive that was read back
    #[arg(long, value_name = "TOPIC")]
    alerts: Option<String>,
    /// Go to the end of the canonical log as it is now, whatever is committed: alerts that are not there yet are missing
    #[arg(long)]
    to_now: bool,
    /// One JSON object a partition, then a summary
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> u8 {
    start_logs(true);
    let Some(config) = load_config(&arguments.config) else {
        return MISUSE;
    };
    let mut scope = Scope::of(&config.group, &config.topics());
    scope.partitions.clone_from(&arguments.partition);
    scope.to_now = arguments.to_now;
    scope.begin = match (arguments.from_checkpoint, arguments.from_start) {
        (true, _) => Begin::Checkpoint,
        (false, true) => Begin::Start,
        (false, false) => Begin::AsEarlyAsHeld,
    };
    if let Some(topic) = &arguments.alerts {
        scope.alerts.clone_from(topic);
    }
    let compared: Result<Vec<Compared>, LogError> = config.kafka.open().and_then(|log| {
        let log: Arc<dyn Log> = Arc::new(log);
        verify(&log, &scope, &mut progress())
    });
    match compared {
        Ok(compared) => report(&compared, arguments.json),
        Err(error) => {
            eprintln!("error: {error}");
            MISUSE
        }
    }
}

fn report(compared: &[Compared], json: bool) -> u8 {
    let sum = |of: fn(&Compared) -> u64| compared.iter().map(of).sum::<u64>();
    let (transitions, readings) = (sum(|one| one.transitions), sum(|one| one.readings));
    let n_different = compared.iter().filter(|one| one.difference.is_some()).count();
    let n_not_compared = compared.iter().filter(|one| one.not_compared.is_some()).count();
    if json {
        for one in compared {
            println!("{}", serde_json::to_string(one).unwrap_or_default());
        }
        let summary = serde_json::json!({
            "type": "summary", "partitions": compared.len(), "transitions": transitions, "readings": readings,
            "different": n_different, "not_compared": n_not_compared,
        });
        println!("{summary}");
    } else {
        compared.iter().for_each(say);
        let partitions = plural(compared.len(), "partition", "partitions");
        let result = match (n_different, n_not_compared) {
            (0, 0) => "equal".to_owned(),
            (0, n) => format!("equal, but {n} not compared"),
            (n, _) => format!("equal, until {} differed", plural(n, "partition", "partitions")),
        };
        println!("{transitions} transitions of {partitions}, {readings} readings: {result}");
    }
    match (n_different, n_not_compared) {
        (0, 0) => OK,
        (0, _) => MISUSE,
        _ => FINDING,
    }
}

/// What has to be said about a partition.
fn say(compared: &Compared) {
    let place = format!("partition {}", compared.partition);
    if compared.from_checkpoint {
        println!("{place}: from a checkpoint, canonical offset {}", compared.from_offset);
    }
    if compared.before_first_alert > 0 {
        let n = compared.before_first_alert;
        println!("{place}: {n} transitions were not compared; they are older than the first alert held");
    }
    if compared.passed_over > 0 {
        let n = compared.passed_over;
        println!("{place}: {n} canonical records cannot be read and were passed over, as in the job");
    }
    if let Some(why) = &compared.not_compared {
        println!("{place}: NOT COMPARED: {why}");
    }
    let Some(difference) = &compared.difference else {
        return;
    };
    println!("{place}: DIFFERENT, {}: {}", difference.kind.name(), difference.what);
    let facts = [
        ("transition", &difference.id),
        ("rule", &difference.rule),
        ("kind", &difference.transition),
        ("T", &difference.at),
        ("canonical offset", &difference.canonical_offset.map(|offset| offset.to_string())),
        ("alerts offset", &difference.alerts_offset.map(|offset| offset.to_string())),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            println!("  {name:<16} {value}");
        }
    }
}
