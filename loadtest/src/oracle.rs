//! `oracle`: derives every alert once more from the canonical log by the naive evaluation, which shares no code with the
//! engine, and holds the alerts topic against it: the same transitions, in order, each id once.
//!
//! Looked at is what the decide stage has committed. Partitions are evaluated side by side.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::HumanCount;
use wardbell_connectors::log::{Isolation, Log, Record, Remedy, TopicPartition};
use wardbell_schemas::alert::Alert;
use wardbell_simulation::derivation::{Derivation, Derived, Said, Sets, differences};

use crate::OracleArgs;

const READ_MAX: usize = 1_000;
const WAIT: Duration = Duration::from_millis(100);
/// Records that are there arrive within this, or the broker is away.
const PATIENCE: Duration = Duration::from_secs(30);
/// Differences that are printed.
const TOLD_MAX: usize = 20;

/// Runs the command; whether both sides say the same.
///
/// # Errors
/// If a topic cannot be read, is not there from its beginning, or cannot be followed.
pub fn run(args: &OracleArgs, log: &dyn Log) -> Result<bool> {
    let mut control = Vec::new();
    read(log, &TopicPartition::new(&args.control, 0), i64::MAX, PATIENCE, |record| {
        control.push(record);
        Ok(())
    })?;
    let job = Job { args, log, sets: Sets::of(&control), patience: PATIENCE };
    let compared = job.compare_all()?;
    let (mut sum, mut told) = (Derived::default(), Vec::new());
    for (partition, Compared { derived, different }) in compared {
        sum.readings += derived.readings;
        sum.repeated += derived.repeated;
        sum.canaries += derived.canaries;
        sum.said.extend(derived.said);
        told.extend(different.into_iter().map(|what| format!("{}, partition {partition}: {what}", args.alerts)));
    }
    println!(
        "{} readings, {} more that came twice; {} transitions follow from them, {} of these canaries",
        HumanCount(sum.readings),
        HumanCount(sum.repeated),
        HumanCount(sum.said.len() as u64),
        HumanCount(sum.canaries)
    );
    if told.is_empty() {
        println!("`{}` holds exactly these, each once", args.alerts);
        return Ok(true);
    }
    told.iter().take(TOLD_MAX).for_each(|what| println!("{what}"));
    if told.len() > TOLD_MAX {
        println!("and {} more", told.len() - TOLD_MAX);
    }
    Ok(false)
}

/// One comparison.
struct Job<'a> {
    args: &'a OracleArgs,
    log: &'a dyn Log,
    sets: Sets,
    patience: Duration,
}

/// What came of one partition.
struct Compared {
    derived: Derived,
    different: Vec<String>,
}

impl Job<'_> {
    fn compare_all(&self) -> Result<BTreeMap<i32, Compared>> {
        let topic = |name: &str| self.log.describe(name).with_context(|| format!("looking for topic `{name}`"));
        let (n_partitions, _) = topic(&self.args.canonical)?;
        let (of_alerts, _) = topic(&self.args.alerts)?;
        if of_alerts != n_partitions {
            bail!("`{}` has {n_partitions} partitions, `{}` {of_alerts}", self.args.canonical, self.args.alerts);
        }
        let all: Vec<TopicPartition> =
            (0..n_partitions).map(|partition| TopicPartition::new(&self.args.canonical, partition)).collect();
        let group = &self.args.group;
        let decided =
            self.log.committed(group, &all).with_context(|| format!("asking what group `{group}` has committed"))?;
        if decided.iter().all(Option::is_none) {
            bail!("group `{group}` has committed nothing of `{}`; name another with --group", self.args.canonical);
        }
        let next = AtomicI32::new(0);
        let compared = Mutex::new(BTreeMap::new());
        let work = || -> Result<()> {
            loop {
                let partition = next.fetch_add(1, Ordering::Relaxed);
                let Some(decided) = usize::try_from(partition).ok().and_then(|place| decided.get(place)) else {
                    return Ok(());
                };
                let of_partition = self.compare(partition, n_partitions, decided.unwrap_or(0))?;
                compared.lock().map_err(|_| anyhow!("another partition failed"))?.insert(partition, of_partition);
            }
        };
        let n_workers = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..n_workers).map(|_| scope.spawn(work)).collect();
            let ended = || anyhow!("the naive evaluation ended unexpectedly, see above");
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(ended())))
        })?;
        compared.into_inner().map_err(|_| anyhow!("a partition failed"))
    }

    fn compare(&self, partition: i32, n_partitions: i32, decided: i64) -> Result<Compared> {
        let mut derivation = Derivation::new(&self.sets, partition, n_partitions);
        let canonical = TopicPartition::new(&self.args.canonical, partition);
        read(self.log, &canonical, decided, self.patience, |record| {
            derivation.apply(&record).map_err(|what| anyhow!("`{}`, partition {partition}: {what}", canonical.topic))
        })?;
        let mut found = Vec::new();
        let alerts = TopicPartition::new(&self.args.alerts, partition);
        read(self.log, &alerts, i64::MAX, self.patience, |record| {
            let alert: Alert = serde_json::from_slice(record.value.as_deref().unwrap_or_default())
                // Not the error itself: it quotes what it found.
                .map_err(|_| anyhow!("`{}`, partition {partition} offset {}: no alert", alerts.topic, record.offset))?;
            // What was committed since is not looked at on the other side either.
            if alert.data.measured.offset < decided {
                found.push(Said::of(&alert.data.content));
            }
            Ok(())
        })?;
        let derived = derivation.finish();
        let different = differences(&derived.said, &found);
        Ok(Compared { derived, different })
    }
}

/// Takes every committed record of a partition below an offset, up to its end.
fn read(
    log: &dyn Log,
    from: &TopicPartition,
    below: i64,
    patience: Duration,
    mut take: impl FnMut(Record) -> Result<()>,
) -> Result<()> {
    let TopicPartition { topic, partition } = from;
    let step = || format!("reading topic `{topic}`, partition {partition}");
    let began = Instant::now();
    let (first, end) = loop {
        match log.offsets(topic, *partition) {
            // A client that has not asked for long may ask the wrong broker first.
            Err(error) if error.remedy == Remedy::Retry && began.elapsed() < PATIENCE => thread::sleep(WAIT),
            asked => break asked.with_context(step)?,
        }
    };
    if first > 0 {
        bail!("topic `{topic}`, partition {partition}: its first records are deleted, and all of them are needed");
    }
    let below = below.min(end);
    let mut reader = log.reader(from, first, Isolation::ReadCommitted).with_context(step)?;
    let (mut next, mut heard) = (first, Instant::now());
    let mut records = Vec::new();
    while next < below && !reader.is_at_end() {
        if heard.elapsed() > patience {
            bail!("topic `{topic}`, partition {partition}: the records from offset {next} on do not arrive");
        }
        match reader.read(READ_MAX, WAIT, &mut records) {
            Ok(()) => {}
            Err(error) if error.remedy == Remedy::Retry => thread::sleep(WAIT),
            Err(error) => return Err(error).with_context(step),
        }
        for record in records.drain(..).filter(|record| record.offset < below) {
            (next, heard) = (record.offset + 1, Instant::now());
            take(record)?;
        }
    }
    Ok(())
}
