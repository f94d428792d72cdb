//! The control topic: published sets, one partition, kept for ever, in the order in which they were published.
//!
//! A set's number is its offset there plus one, so that 0 can stand for "none". A record's key is the hash of the document
//! in its value. Publishing puts nothing in force: partitions do, each at a place of its own log.

use std::sync::Arc;
use std::time::Duration;

use wardbell_connectors::log::{
    Isolation, Log, LogError, Outgoing, PartitionReader, Record, Remedy, StampedBy, TopicPartition, TopicSpec,
};
use wardbell_connectors::runtime::Instant;
use wardbell_schemas::Micros;

use super::{Document, LoadedSet, Unusable, hash};

const HEADER: &str = "wardbell";
const KIND: &str = "set/1";
/// Records that are known to be there arrive within this, or the broker is away.
const PATIENCE: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_millis(100);

/// The topic, as one client of the log sees it.
#[derive(Clone)]
pub struct ControlTopic {
    log: Arc<dyn Log>,
    name: String,
}

/// One record of the control topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub number: u64,
    /// When it was published, µs since 1970 UTC.
    pub time_us: Micros,
    /// The hash it was published under.
    pub hash: String,
    kind: Vec<u8>,
    document: Vec<u8>,
}

impl ControlTopic {
    pub fn new(log: Arc<dyn Log>, name: &str) -> Self {
        Self { log, name: name.to_owned() }
    }

    /// The topic as it must be: one order of sets, kept for ever.
    pub fn spec(name: &str, create: bool) -> TopicSpec {
        TopicSpec {
            name: name.to_owned(),
            partitions: 1,
            stamped_by: StampedBy::Broker,
            retention: None,
            create,
            any_partitions: false,
        }
    }

    /// Number of the newest record; 0 if nothing is published.
    ///
    /// # Errors
    /// As the log says.
    pub fn newest_number(&self) -> Result<u64, LogError> {
        let (_, end) = self.log.offsets(&self.name, 0)?;
        Ok(u64::try_from(end).unwrap_or(0))
    }

    /// The newest record.
    ///
    /// # Errors
    /// As the log says.
    pub fn newest(&self) -> Result<Option<Published>, LogError> {
        match self.newest_number()? {
            0 => Ok(None),
            number => self.at(number),
        }
    }

    /// The record with a number, if it is held.
    ///
    /// # Errors
    /// As the log says.
    pub fn at(&self, number: u64) -> Result<Option<Published>, LogError> {
        let (first, end) = self.log.offsets(&self.name, 0)?;
        match i64::try_from(number) {
            Ok(number) if number > first && number <= end => Ok(self.read(number - 1, number)?.pop()),
            _ => Ok(None),
        }
    }

    /// Everything that is held, oldest first.
    ///
    /// # Errors
    /// As the log says.
    pub fn all(&self) -> Result<Vec<Published>, LogError> {
        let (first, end) = self.log.offsets(&self.name, 0)?;
        self.read(first, end)
    }

    /// Reads what is published after a number, as it comes.
    ///
    /// # Errors
    /// As the log says.
    pub fn follow(&self, number: u64) -> Result<Box<dyn PartitionReader>, LogError> {
        let next = i64::try_from(number).unwrap_or(i64::MAX);
        self.log.reader(&TopicPartition::new(&self.name, 0), next, Isolation::ReadCommitted)
    }

    /// Publishes a set and gives its number. The caller has checked it and run its cases.
    ///
    /// # Errors
    /// As the log says; [`Remedy::Retry`] if the broker does not acknowledge it in time.
    pub fn publish(&self, document: &Document) -> Result<u64, LogError> {
        let step = || format!("publishing a rule set on topic `{}`", self.name);
        let record = Outgoing {
            topic: self.name.clone(),
            partition: 0,
            key: Some(document.hash().into_bytes()),
            value: Some(document.bytes()),
            headers: vec![(HEADER.to_owned(), KIND.as_bytes().to_vec())],
            time_us: None,
        };
        let mut appender = self.log.appender()?;
        appender.append(&record, 0)?;
        let deadline = Instant::now() + PATIENCE;
        let mut outcomes = Vec::new();
        while Instant::now() < deadline {
            appender.outcomes(WAIT, &mut outcomes);
            if let Some((_, outcome)) = outcomes.pop() {
                let appended = outcome.map_err(|error| LogError::new(error.remedy, step(), error.what))?;
                return Ok(number_at(appended.offset));
            }
        }
        let what = "the broker did not acknowledge it in time; whether it is published, `wardbell rules list` tells";
        Err(LogError::new(Remedy::Retry, step(), what))
    }

    /// Records from an offset to another, which is known to be reached.
    fn read(&self, from: i64, to: i64) -> Result<Vec<Published>, LogError> {
        let mut found = Vec::new();
        let mut next = from;
        if next >= to {
            return Ok(found);
        }
        let mut reader = self.log.reader(&TopicPartition::new(&self.name, 0), next, Isolation::ReadCommitted)?;
        let mut records = Vec::new();
        let mut deadline = Instant::now() + PATIENCE;
        while next < to {
            records.clear();
            reader.read(100, WAIT, &mut records)?;
            for record in records.iter().filter(|record| record.offset < to) {
                found.push(Published::from_record(record));
                next = record.offset + 1;
                deadline = Instant::now() + PATIENCE;
            }
            if Instant::now() > deadline {
                let step = format!("reading topic `{}`", self.name);
                return Err(LogError::new(Remedy::Retry, step, "its records do not arrive in time"));
            }
        }
        Ok(found)
    }
}

impl Published {
    pub fn from_record(record: &Record) -> Self {
        Self {
            number: number_at(record.offset),
            time_us: record.append_us.unwrap_or(record.time_us),
            hash: String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned(),
            kind: record.header(HEADER).unwrap_or_default().to_vec(),
            document: record.value.clone().unwrap_or_default(),
        }
    }

    /// The document, if it is one of ours and whole.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn document(&self) -> Result<Document, Unusable> {
        if self.kind != KIND.as_bytes() {
            let kind = String::from_utf8_lossy(&self.kind);
            return Err(Unusable(format!("its kind and version `{kind}` are not known to this binary")));
        }
        if hash(&self.document) != self.hash {
            return Err(Unusable("its bytes are not those of its hash".to_owned()));
        }
        Document::read(&self.document)
    }

    /// Compiles it.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn load(&self) -> Result<LoadedSet, Unusable> {
        let loaded = self.document()?.load()?;
        // Known by the bytes as they were published, whoever wrote them.
        Ok(LoadedSet { hash: self.hash.clone(), ..loaded })
    }
}

fn number_at(offset: i64) -> u64 {
    u64::try_from(offset).map_or(0, |offset| offset + 1)
}

#[cfg(test)]
mod tests {
    use wardbell_connectors::clock::SystemClock;
    use wardbell_connectors::log::memory::MemoryLog;
    use wardbell_core::partition::Settings;
    use wardbell_rules::SourceFile;

    use super::*;

    fn document(limit: &str) -> Document {
        let text = format!(
            "const RULE = #{{ id: \"low\", version: 1, owner: \"o\", priority: \"high\" }};\nfn raise(spo2) {{ spo2.last < {limit} }}\n"
        );
        Document::new(&[SourceFile { path: "low.rhai".to_owned(), text }], &Settings::new("ward"))
    }

    #[test]
    fn numbers_begin_at_1_and_every_set_can_be_read_back() {
        let log = Arc::new(MemoryLog::new(Arc::new(SystemClock)));
        log.prepare(&[ControlTopic::spec("control", true)]).expect("the topic is made");
        let topic = ControlTopic::new(log, "control");
        assert_eq!(topic.newest().expect("reads"), None);
        let (first, second) = (document("90.0"), document("88.0"));
        let numbers = [&first, &second, &first].map(|document| topic.publish(document).expect("published"));
        assert_eq!(numbers, [1, 2, 3]);
        let hashes: Vec<String> = topic.all().expect("reads").into_iter().map(|published| published.hash).collect();
        assert_eq!(hashes, [first.hash(), second.hash(), first.hash()]);
        let second_again = topic.at(2).expect("reads").expect("it is held");
        assert_eq!(second_again.document(), Ok(second.clone()));
        assert_eq!(second_again.load().expect("compiles").hash, second.hash());
        assert_eq!(topic.newest().expect("reads").map(|published| published.number), Some(3));
        assert_eq!((topic.at(0).expect("reads"), topic.at(4).expect("reads")), (None, None));
    }

    #[test]
    fn a_record_of_another_kind_or_with_other_bytes_is_unusable() {
        let whole = Published {
            number: 1,
            time_us: 0,
            hash: document("90.0").hash(),
            kind: KIND.as_bytes().to_vec(),
            document: document("90.0").bytes(),
        };
        assert!(whole.load().is_ok());
        let foreign = Published { kind: b"set/9".to_vec(), ..whole.clone() };
        assert!(foreign.load().is_err_and(|what| what.to_string().contains("set/9")));
        let other = Published { document: document("88.0").bytes(), ..whole };
        assert!(other.load().is_err_and(|what| what.to_string().contains("not those of its hash")));
    }
}
