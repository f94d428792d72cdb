//! `wardbell explain`: why an alert fired, from a replay of the canonical log.

use std::path::PathBuf;
use std::sync::Arc;

use wardbell_connectors::log::{Log, LogError};

use super::{FINDING, MISUSE, OK, load_config, progress, start_logs};
use crate::explain::{DerivedAgain, Explanation, explain};
use crate::verify::Scope;

/// Say in plain words why an alert fired
///
/// Replays the canonical log up to the record that decided it, from the newest checkpoint before it or from the beginning:
/// the rule with its limits, what it saw and said, holds, latency, and that the replay gives the same alert. The account
/// names the patient, as the alert does. Exit code 0: the same; 1: the replay gives something else; 2: not found, or it
/// cannot be replayed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell explain 5f0c2a9be1d44c7f8a1b3c5d7e9f0a1b.0 --config wardbell.toml\n  wardbell explain 5f0c2a9be1d44c7f8a1b3c5d7e9f0a1b --config wardbell.toml --json"
)]
pub struct Arguments {
    /// Id of a transition, or of an episode, whose first transition held is explained
    #[arg(value_name = "ID", value_parser = id)]
    id: String,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

fn id(text: &str) -> Result<String, &'static str> {
    let (episode, number) = text.split_once('.').unwrap_or((text, "0"));
    let is_hex = episode.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if episode.len() != 32 || !is_hex || number.parse::<u32>().is_err() {
        return Err("an id has 32 lower-case hexadecimal digits; that of a transition goes on with a dot and a number");
    }
    Ok(text.to_owned())
}

pub fn run(arguments: &Arguments) -> u8 {
    start_logs(true);
    let Some(config) = load_config(&arguments.config) else {
        return MISUSE;
    };
    let scope = Scope::of(&config.group, &config.topics());
    let explained: Result<Option<Explanation>, LogError> = config.kafka.open().and_then(|log| {
        let log: Arc<dyn Log> = Arc::new(log);
        explain(&log, &scope, &arguments.id, &mut progress())
    });
    let explanation = match explained {
        Ok(Some(explanation)) => explanation,
        Ok(None) => {
            eprintln!(
                "topic `{}` holds no alert {}: it never was, or is older than what is kept",
                scope.alerts, arguments.id
            );
            return MISUSE;
        }
        Err(error) => {
            eprintln!("error: {error}");
            return MISUSE;
        }
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&explanation).unwrap_or_default());
    } else {
        print!("{}", explanation.in_words());
    }
    match explanation.derived_again {
        DerivedAgain::Same => OK,
        DerivedAgain::Differs(_) | DerivedAgain::NotGiven => FINDING,
        DerivedAgain::NotPossible(_) => MISUSE,
    }
}
