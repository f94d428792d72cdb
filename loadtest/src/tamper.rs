//! A copy of an alerts topic with one letter or digit of one alert changed, which no reader of a single alert can notice:
//! it is an alert like any other, under the same id. Who derives the alerts again has to find it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use wardbell_connectors::log::{Isolation, Log, Outgoing, Record, Remedy, StampedBy, TopicPartition, TopicSpec};
use wardbell_schemas::alert::{Alert, Kind};

use crate::TamperArgs;
use crate::source::Sender;

/// Records taken from one partition before the next one has its turn.
const READ_MAX: usize = 1_000;
const IDLE_PAUSE: Duration = Duration::from_millis(5);
/// Marks of transactions take offsets that no reader sees, so the end is where nothing has come for this long.
const QUIET: Duration = Duration::from_secs(3);
/// Most of an alert's letters and digits can be another one, so this is never reached.
const ATTEMPTS_MAX: usize = 10_000;

/// Runs the command; `true`, or an error.
///
/// # Errors
/// If the topic cannot be read or holds no alert, if the copy is there already or cannot be written.
pub fn run(args: &TamperArgs, log: &dyn Log) -> Result<bool> {
    let changed = copy(args, log, QUIET)?;
    println!("tampered={} partition={} byte={}", changed.id, changed.partition, changed.byte);
    Ok(true)
}

/// Where the copy differs.
#[derive(Debug, PartialEq, Eq)]
struct Changed {
    id: String,
    partition: i32,
    /// Its place in the alert's JSON.
    byte: usize,
}

fn copy(args: &TamperArgs, log: &dyn Log, quiet: Duration) -> Result<Changed> {
    let (n_partitions, _) = log.describe(&args.from).with_context(|| format!("looking for topic `{}`", args.from))?;
    if log.describe(&args.to).is_ok() {
        bail!("topic `{}` is there already; name a new one with --to", args.to);
    }
    let spec = TopicSpec {
        name: args.to.clone(),
        partitions: n_partitions,
        stamped_by: StampedBy::Broker,
        retention: None,
        create: true,
        any_partitions: false,
    };
    log.prepare(&[spec]).with_context(|| format!("making topic `{}`", args.to))?;

    let mut counts = vec![0; n_partitions.unsigned_abs() as usize];
    read_all(log, &args.from, n_partitions, quiet, |record| {
        counts[record.partition.unsigned_abs() as usize] += u64::from(physiological(record).is_some());
        Ok(())
    })?;
    let mut rng = Rng::with_seed(args.seed);
    let Some((partition, number)) = choose(&counts, &mut rng) else {
        bail!("topic `{}` holds no alert about a patient", args.from);
    };

    let mut sender = Sender::new(log)?;
    let (mut passed, mut changed) = (0, None);
    read_all(log, &args.from, n_partitions, quiet, |record| {
        let mut value = record.value.clone();
        if record.partition == partition
            && let Some(alert) = physiological(record)
        {
            if passed == number {
                let (other, byte) = tamper(&alert, value.as_deref().unwrap_or_default(), &mut rng)?;
                value = Some(other);
                changed = Some(Changed { id: alert.id, partition, byte });
            }
            passed += 1;
        }
        let copied = Outgoing {
            topic: args.to.clone(),
            partition: record.partition,
            key: record.key.clone(),
            value,
            headers: record.headers.clone(),
            time_us: None,
        };
        if !sender.send(&copied, 1) {
            bail!("writing the copy: {}", sender.fault().unwrap_or("nothing is taken any more"));
        }
        sender.collect();
        Ok(())
    })?;
    sender.finish(|_| {});
    if let Some(fault) = sender.fault() {
        bail!("writing the copy: {fault}");
    }
    changed.with_context(|| format!("topic `{}` held more when it was read first: something deletes in it", args.from))
}

/// Takes every committed record of a topic, each partition in order.
fn read_all(
    log: &dyn Log,
    topic: &str,
    n_partitions: i32,
    quiet: Duration,
    mut take: impl FnMut(&Record) -> Result<()>,
) -> Result<()> {
    let mut readers = Vec::new();
    for partition in 0..n_partitions {
        let step = || format!("reading topic `{topic}`, partition {partition}");
        let (first, _) = log.offsets(topic, partition).with_context(step)?;
        let from = TopicPartition::new(topic, partition);
        readers.push(log.reader(&from, first, Isolation::ReadCommitted).with_context(step)?);
    }
    let mut records = Vec::new();
    let mut heard = Instant::now();
    while heard.elapsed() < quiet {
        let mut is_idle = true;
        for reader in &mut readers {
            records.clear();
            if let Err(error) = reader.read(READ_MAX, Duration::ZERO, &mut records)
                && error.remedy != Remedy::Retry
            {
                return Err(error.into());
            }
            is_idle &= records.is_empty();
            for record in &records {
                take(record)?;
            }
        }
        if is_idle {
            thread::sleep(IDLE_PAUSE);
        } else {
            heard = Instant::now();
        }
    }
    Ok(())
}

/// The alert in a record, if it is one about a patient.
fn physiological(record: &Record) -> Option<Alert> {
    let alert = serde_json::from_slice::<Alert>(record.value.as_deref()?).ok()?;
    (alert.data.content.kind == Kind::Physiological).then_some(alert)
}

/// A partition and the number of an alert in it, each alert as likely as any other.
fn choose(counts: &[u64], rng: &mut Rng) -> Option<(i32, u64)> {
    let total = counts.iter().sum::<u64>();
    let mut left = if total == 0 { return None } else { rng.u64(..total) };
    for (partition, count) in (0..).zip(counts) {
        if left < *count {
            return Some((partition, left));
        }
        left -= count;
    }
    None
}

/// Another letter or digit at one place of the JSON, so that it is still an alert of this id and says something else; and
/// the place.
fn tamper(alert: &Alert, json: &[u8], rng: &mut Rng) -> Result<(Vec<u8>, usize)> {
    for _ in 0..ATTEMPTS_MAX {
        let at = rng.usize(..json.len());
        let mut other = json.to_vec();
        other[at] = match json[at] {
            b'9' => b'0',
            b'z' => b'a',
            b'Z' => b'A',
            byte if byte.is_ascii_alphanumeric() => byte + 1,
            _ => continue,
        };
        let Ok(read) = serde_json::from_slice::<Alert>(&other) else {
            continue;
        };
        let (before, after) = (&alert.data.content, &read.data.content);
        let same_name = read.id == alert.id
            && (&after.id, &after.episode, after.number) == (&before.id, &before.episode, before.number);
        if same_name && after != before {
            return Ok((other, at));
        }
    }
    bail!("nothing in alert {} could be changed", alert.id)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use wardbell_connectors::clock::SystemClock;
    use wardbell_connectors::log::memory::MemoryLog;
    use wardbell_schemas::alert::{Measured, TransitionKind};

    use super::*;
    use crate::sample::{alert, content};

    const QUIET: Duration = Duration::from_millis(20);

    fn args(to: &str, seed: &str) -> TamperArgs {
        let words = ["loadtest", "tamper", "--to", to, "--seed", seed];
        match crate::Cli::try_parse_from(words).unwrap().command {
            crate::Command::Tamper(args) => args,
            _ => panic!("another command"),
        }
    }

    fn log_with_alerts(n_alerts: i32) -> MemoryLog {
        let log = MemoryLog::new(Arc::new(SystemClock));
        let spec = TopicSpec {
            name: "wardbell.alerts".to_owned(),
            partitions: 3,
            stamped_by: StampedBy::Broker,
            retention: None,
            create: true,
            any_partitions: false,
        };
        log.prepare(&[spec]).unwrap();
        let mut appender = log.appender().unwrap();
        for i in 0..n_alerts {
            let content = content(&format!("episode{i}"), 0, TransitionKind::Raised);
            let record = Outgoing {
                topic: "wardbell.alerts".to_owned(),
                partition: i % 3,
                value: alert(content, Measured::default()).value,
                ..Outgoing::default()
            };
            appender.append(&record, 0).unwrap();
        }
        log
    }

    fn records(log: &MemoryLog, topic: &str) -> Vec<Record> {
        let mut records = Vec::new();
        for partition in 0..3 {
            let mut reader = log.reader(&TopicPartition::new(topic, partition), 0, Isolation::ReadCommitted).unwrap();
            reader.read(1_000, Duration::ZERO, &mut records).unwrap();
        }
        records
    }

    #[test]
    fn one_byte_of_one_alert_differs_and_the_seed_says_which() {
        let log = log_with_alerts(20);
        let mut found = Vec::new();
        for (to, seed) in [("a", "1"), ("b", "1"), ("c", "2"), ("d", "3")] {
            let changed = copy(&args(to, seed), &log, QUIET).unwrap();
            let (before, after) = (records(&log, "wardbell.alerts"), records(&log, to));
            assert_eq!(before.len(), after.len());
            let differing: Vec<(&Record, &Record)> =
                before.iter().zip(&after).filter(|(before, after)| before.value != after.value).collect();
            let [(before, after)] = differing[..] else { panic!("{} alerts differ", differing.len()) };
            let (was, is) = (before.value.as_deref().unwrap(), after.value.as_deref().unwrap());
            let bytes: Vec<usize> = (0..was.len()).filter(|i| was[*i] != is[*i]).collect();
            assert_eq!((was.len(), bytes), (is.len(), vec![changed.byte]));
            let (was, is) = (physiological(before).unwrap(), physiological(after).unwrap());
            assert_eq!((&was.id, &is.id, after.partition), (&changed.id, &changed.id, changed.partition));
            assert_ne!(was.data.content, is.data.content);
            found.push(changed);
        }
        assert_eq!(found[0], found[1]);
        assert!(found[0] != found[2] || found[0] != found[3], "another seed changes another byte");
    }

    #[test]
    fn a_copy_that_is_there_is_not_written_again() {
        let log = log_with_alerts(1);
        copy(&args("a", "1"), &log, QUIET).unwrap();
        let fault = format!("{:#}", copy(&args("a", "1"), &log, QUIET).unwrap_err());
        assert!(fault.contains("`a` is there already"), "{fault}");
        let fault = format!("{:#}", copy(&args("b", "1"), &log_with_alerts(0), QUIET).unwrap_err());
        assert!(fault.contains("no alert about a patient"), "{fault}");
    }
}
