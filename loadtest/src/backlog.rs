//! How far the engine's stages are behind what is in the log, as its consumer groups have committed it. Anybody may ask
//! the broker for that; the engine need not be asked.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use wardbell_connectors::log::{Log, TopicPartition};

/// Between two questions: each costs a connection.
const PAUSE: Duration = Duration::from_millis(250);

/// A consumer group and what it reads.
struct Stage {
    group: String,
    partitions: Vec<TopicPartition>,
}

/// The two stages between a source record and its alerts.
pub struct Backlog<'a> {
    log: &'a dyn Log,
    normalize: Stage,
    decide: Stage,
}

impl<'a> Backlog<'a> {
    /// `group` is the engine's, as in its configuration.
    ///
    /// # Errors
    /// If a topic is not there.
    pub fn new(log: &'a dyn Log, group: &str, source: &str, canonical: &str) -> Result<Self> {
        let stage = |group: String, topic: &str| -> Result<Stage> {
            let (n_partitions, _) = log.describe(topic).with_context(|| format!("looking for what `{group}` reads"))?;
            let partitions = (0..n_partitions).map(|partition| TopicPartition::new(topic, partition)).collect();
            Ok(Stage { group, partitions })
        };
        let normalize = stage(format!("{group}-normalize"), source)?;
        Ok(Self { log, normalize, decide: stage(group.to_owned(), canonical)? })
    }

    /// Source records that are not normalized yet, as far as is committed.
    ///
    /// # Errors
    /// If the broker does not answer, or the group has never committed anything.
    pub fn source_records(&self) -> Result<i64> {
        self.normalize.behind(self.log, &self.normalize.ends(self.log)?)
    }

    /// Waits until everything that is in the source topic now is normalized and decided; `None` if that takes longer than
    /// `patience`.
    ///
    /// # Errors
    /// As [`Backlog::source_records`].
    pub fn wait(&self, patience: Duration) -> Result<Option<Duration>> {
        let began = Instant::now();
        for stage in [&self.normalize, &self.decide] {
            // The canonical log goes on growing, with ticks: what counts is its end when all was normalized.
            let ends = stage.ends(self.log)?;
            while stage.behind(self.log, &ends)? > 0 {
                if began.elapsed() > patience {
                    return Ok(None);
                }
                thread::sleep(PAUSE);
            }
        }
        Ok(Some(began.elapsed()))
    }
}

impl Stage {
    fn ends(&self, log: &dyn Log) -> Result<Vec<i64>> {
        let end = |partition: &TopicPartition| Ok(log.offsets(&partition.topic, partition.partition)?.1);
        self.partitions.iter().map(end).collect()
    }

    fn behind(&self, log: &dyn Log, ends: &[i64]) -> Result<i64> {
        let committed = log.committed(&self.group, &self.partitions)?;
        if committed.iter().all(Option::is_none) && ends.iter().any(|end| *end > 0) {
            bail!("group `{}` has committed nothing; name the engine's `group` with --group", self.group);
        }
        let missing = ends.iter().zip(committed).map(|(end, committed)| (end - committed.unwrap_or(0)).max(0));
        Ok(missing.sum())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wardbell_connectors::clock::SystemClock;
    use wardbell_connectors::log::memory::MemoryLog;
    use wardbell_connectors::log::{Isolation, MemberEvent, Membership, Outgoing, StampedBy, TopicSpec};

    use super::*;

    /// Commits for a group that is a member once.
    fn commit(log: &MemoryLog, group: &str, topic: &str, offset: i64) {
        let membership = Membership {
            group: group.to_owned(),
            topics: vec![topic.to_owned()],
            isolation: Isolation::ReadCommitted,
            instance: None,
        };
        let mut member = log.join(&membership).unwrap();
        let events = member.events(Duration::from_secs(30)).unwrap();
        assert!(matches!(&events[..], [MemberEvent::Assigned(partitions)] if partitions.len() == 1));
        member.commit(&[(TopicPartition::new(topic, 0), offset)]).unwrap();
    }

    #[test]
    fn what_is_committed_by_both_stages_is_no_backlog() {
        let log = MemoryLog::new(Arc::new(SystemClock));
        let spec = |name: &str| TopicSpec {
            name: name.to_owned(),
            partitions: 1,
            stamped_by: StampedBy::Broker,
            retention: None,
            create: true,
            any_partitions: false,
        };
        log.prepare(&[spec("devices"), spec("readings")]).unwrap();
        let mut appender = log.appender().unwrap();
        for topic in ["devices", "devices", "devices", "readings"] {
            appender.append(&Outgoing { topic: topic.to_owned(), ..Outgoing::default() }, 0).unwrap();
        }
        let backlog = Backlog::new(&log, "ward", "devices", "readings").unwrap();
        let fault = backlog.source_records().unwrap_err().to_string();
        assert!(fault.contains("`ward-normalize`") && fault.contains("--group"), "{fault}");
        commit(&log, "ward-normalize", "devices", 1);
        assert_eq!(backlog.source_records().unwrap(), 2);
        assert_eq!(backlog.wait(Duration::ZERO).unwrap(), None);
        commit(&log, "ward-normalize", "devices", 3);
        commit(&log, "ward", "readings", 0);
        assert_eq!((backlog.source_records().unwrap(), backlog.wait(Duration::ZERO).unwrap()), (0, None));
        commit(&log, "ward", "readings", 1);
        assert!(backlog.wait(Duration::ZERO).unwrap().is_some());
    }
}
