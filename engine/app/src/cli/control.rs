//! `wardbell control`: what a person tells the engine about a patient, as a record of the canonical log.
//!
//! The record takes effect at its place in the patient's partition, like everything that decides. Limits and attributes,
//! which need an author's reason, do not come this way.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use wardbell_connectors::canonical::control_record;
use wardbell_connectors::clock::{Clock, SystemClock};
use wardbell_connectors::log::{Appended, Log, LogError, Remedy};
use wardbell_connectors::partitioner::partition_of;
use wardbell_schemas::control::{Control, ControlRecord};

use super::{FINDING, MISUSE, OK, load_config, start_logs};

/// How long the broker may take to acknowledge the record.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(30);
/// Length of an episode id: 128 bits in lower-case hexadecimal.
const EPISODE_LENGTH: usize = 32;

/// Discharge a patient, put devices on standby, acknowledge or reset an alert
///
/// Writes one record into the patient's partition of the canonical log; the job that decides the partition does the rest.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  wardbell control discharge --config wardbell.toml --patient p7\n  wardbell control acknowledge --config wardbell.toml --patient p7 --episode 5f0c2a9be1d44c7f8a1b3c5d7e9f0a1b --by \"RN Lee\""
)]
pub struct Arguments {
    #[command(subcommand)]
    request: Request,
}

#[derive(Debug, clap::Subcommand)]
enum Request {
    /// The patient left: nothing is expected of their devices any more, and open alerts end as expired
    Discharge {
        #[command(flatten)]
        whom: Whom,
    },
    /// The patient's devices were switched off on purpose: nothing is expected of them until they speak again
    Standby {
        #[command(flatten)]
        whom: Whom,
        /// This device only
        #[arg(long)]
        device: Option<String>,
    },
    /// A person has seen the alert
    Acknowledge {
        #[command(flatten)]
        whom: Whom,
        #[command(flatten)]
        which: Which,
    },
    /// A person ends a latched alert
    Reset {
        #[command(flatten)]
        whom: Whom,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, clap::Args)]
struct Whom {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The patient, as sources name them
    #[arg(long, value_parser = identifier)]
    patient: String,
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The episode, as alerts show it
    #[arg(long, value_name = "ID", value_parser = episode)]
    episode: String,
    /// Who says so
    #[arg(long, value_name = "NAME", value_parser = identifier)]
    by: String,
}

fn identifier(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err("must not be empty and without control characters");
    }
    Ok(text.to_owned())
}

fn episode(text: &str) -> Result<String, &'static str> {
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != EPISODE_LENGTH || !is_hex {
        return Err("an episode id has 32 lower-case hexadecimal digits");
    }
    Ok(text.to_owned())
}

pub fn run(arguments: &Arguments) -> u8 {
    start_logs(true);
    let (whom, what, control) = request(&arguments.request);
    let Some(config) = load_config(&whom.config) else {
        return MISUSE;
    };
    let topic = &config.canonical.topic;
    let written = config.kafka.open().and_then(|log| write(&log, topic, &whom.patient, control));
    match written {
        // The patient is not named: what a terminal shows is kept in more places than one thinks.
        Ok(appended) => {
            println!("{what} written to {topic}/{} at offset {}", appended.partition, appended.offset);
            OK
        }
        Err(error) => {
            eprintln!("error: {error}");
            if error.remedy == Remedy::Restart { FINDING } else { MISUSE }
        }
    }
}

/// Whose request it is, how it is called, and the record's content.
fn request(request: &Request) -> (&Whom, &'static str, Control) {
    let patient = |whom: &Whom| whom.patient.clone();
    match request {
        Request::Discharge { whom } => (whom, "discharge", Control::Discharge { patient: patient(whom) }),
        Request::Standby { whom, device } => {
            (whom, "standby", Control::Standby { patient: patient(whom), device: device.clone() })
        }
        Request::Acknowledge { whom, which: Which { episode, by } } => {
            (whom, "acknowledgment", Control::Acknowledge { episode: episode.clone(), by: by.clone() })
        }
        Request::Reset { whom, which: Which { episode, by } } => {
            (whom, "reset", Control::Reset { episode: episode.clone(), by: by.clone() })
        }
    }
}

/// Appends the record to the patient's partition and waits until the broker has it.
///
/// # Errors
/// [`Remedy::Restart`] if it may or may not be written: repeating the command does no harm.
fn write(log: &dyn Log, topic: &str, patient: &str, control: Control) -> Result<Appended, LogError> {
    let (n_partitions, _) = log.describe(topic)?;
    let partition = partition_of(patient, n_partitions);
    let id = format!("command/{}/{:016x}", SystemClock.now_us(), fastrand::u64(..));
    let record = control_record(topic, partition, &ControlRecord { id, control });
    let mut appender = log.appender()?;
    appender.append(&record, 0)?;
    let (deadline, mut outcomes) = (Instant::now() + ACKNOWLEDGED_WITHIN, Vec::new());
    while Instant::now() < deadline {
        appender.outcomes(Duration::from_millis(50), &mut outcomes);
        if let Some((_, outcome)) = outcomes.pop() {
            return outcome.map_err(|error| LogError { remedy: Remedy::Restart, ..error });
        }
    }
    let what = format!("no acknowledgment within {} s; repeat the command", ACKNOWLEDGED_WITHIN.as_secs());
    Err(LogError::new(Remedy::Restart, "writing the request", what))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wardbell_connectors::canonical::{self, Canonical};
    use wardbell_connectors::log::memory::MemoryLog;
    use wardbell_connectors::log::{Isolation, StampedBy, TopicPartition, TopicSpec};
    use wardbell_schemas::catalogue::Catalogue;

    use super::*;

    #[test]
    fn a_request_stands_in_the_partition_of_its_patient_under_an_id_of_its_own() {
        let log = MemoryLog::new(Arc::new(SystemClock));
        let topic = TopicSpec {
            name: "readings".to_owned(),
            partitions: 5,
            stamped_by: StampedBy::Broker,
            retention: None,
            create: true,
            any_partitions: false,
        };
        log.prepare(&[topic]).expect("the topic is made");
        let control = Control::Discharge { patient: "p7".to_owned() };
        let first = write(&log, "readings", "p7", control.clone()).expect("written");
        let second = write(&log, "readings", "p7", control.clone()).expect("written");
        assert_eq!((first.partition, second.partition), (partition_of("p7", 5), partition_of("p7", 5)));
        let from = TopicPartition::new("readings", first.partition);
        let mut reader = log.reader(&from, 0, Isolation::ReadCommitted).expect("a reader");
        let mut records = Vec::new();
        reader.read(10, Duration::from_secs(5), &mut records).expect("reads");
        let read: Vec<ControlRecord> = records
            .iter()
            .map(|record| match canonical::read(record, &Catalogue::builtin().hash) {
                Ok(Canonical::Control(control)) => control,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(read.len() == 2 && read.iter().all(|record| record.control == control), "{read:?}");
        assert_ne!(read[0].id, read[1].id);
    }
}
