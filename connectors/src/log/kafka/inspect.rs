//! What a Kafka cluster allows, found out by what a broker answers to things that cannot happen: a record that is too
//! large, a read at the end of a partition, records to be deleted that are not there, a topic that is to be looked at and not
//! made.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::ResourceSpecifier;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};

use super::{
    CALL_TIMEOUT, Consumer, Context, Deliveries, KafkaLog, classify, is_about_a_group, is_refusal, list_with_offsets,
    passes, refusal, send, values,
};
use crate::log::inspect::{Inspect, Right, TopicFault};
use crate::log::{Log, LogError, Outgoing, Remedy, TopicPartition, TopicSpec};

/// A topic that takes larger records than this is not asked for the right to write.
const TOO_LARGE_MAX: usize = 16 << 20;
/// A broker that does not let a producer append without repetition says so at once.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
const TURN: Duration = Duration::from_millis(50);

impl Inspect for KafkaLog {
    fn topic_faults(&self, topics: &[TopicSpec]) -> Result<Vec<TopicFault>, LogError> {
        let mut faults = self.examine(topics, false)?;
        faults.extend(self.few_copies(topics)?);
        Ok(faults)
    }

    fn may(&self, right: &Right) -> Result<(), LogError> {
        match right {
            Right::Read(from) => self.may_read(from),
            Right::Write(to) => self.may_write(to),
            Right::Delete(from) => self.may_delete(from),
            Right::Append => self.may_append(),
        }
    }

    fn broker_settings(&self) -> Result<BTreeMap<String, String>, LogError> {
        let step = "reading the broker's settings";
        let metadata = self.asker()?.fetch_metadata(None, CALL_TIMEOUT).map_err(|error| classify(step, &error))?;
        let Some(broker) = metadata.brokers().first().map(|broker| broker.id()) else {
            return Err(LogError::new(Remedy::Retry, step, "the cluster names no broker"));
        };
        let described = self.admin(step, async |client, options| {
            client.describe_configs(&[ResourceSpecifier::Broker(broker)], &options).await
        })?;
        let settings = described.into_iter().next().and_then(|resource| values(resource.ok()?));
        let refused = || LogError::new(Remedy::Refuse, step, "the broker keeps them from us");
        Ok(settings.ok_or_else(refused)?.into_iter().collect())
    }
}

impl KafkaLog {
    /// Topics that a single broker takes with it, in a cluster that has more than one.
    fn few_copies(&self, topics: &[TopicSpec]) -> Result<Vec<TopicFault>, LogError> {
        let step = "asking the broker for copies of topics";
        let metadata = self.asker()?.fetch_metadata(None, CALL_TIMEOUT).map_err(|error| classify(step, &error))?;
        if metadata.brokers().len() < 2 {
            return Ok(Vec::new());
        }
        let known = |spec: &TopicSpec| metadata.topics().iter().find(|topic| topic.name() == spec.name);
        let mut faults = Vec::new();
        for (spec, topic) in topics.iter().filter_map(|spec| Some((spec, known(spec)?))) {
            let copies = topic.partitions().iter().map(|partition| partition.replicas().len()).min();
            if copies == Some(1) {
                faults.push(TopicFault::warning(
                    &spec.name,
                    "has partitions that only one broker holds: they are away when it is, and lost with it",
                    "kafka-reassign-partitions.sh gives them more replicas; three brokers with min.insync.replicas=2 are usual",
                ));
            }
        }
        Ok(faults)
    }

    /// Reads at the end, where nothing is, until the broker says so.
    fn may_read(&self, from: &TopicPartition) -> Result<(), LogError> {
        let step = format!("reading {}/{}", from.topic, from.partition);
        let (_, end) = self.offsets(&from.topic, from.partition)?;
        let mut config = self.config();
        config
            .set("group.id", "wardbell-reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_uncommitted")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "100");
        let consumer: Consumer =
            config.create_with_context(Context::default()).map_err(|error| refusal(&step, &error))?;
        consumer.assign(&list_with_offsets(&[(from.clone(), end)], &step)?).map_err(|error| classify(&step, &error))?;
        let deadline = Instant::now() + CALL_TIMEOUT;
        while Instant::now() < deadline {
            match consumer.poll(TURN) {
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) if !passes(&error) && !is_about_a_group(&error) => {
                    return Err(classify(&step, &error));
                }
                _ => {}
            }
        }
        Err(LogError::new(Remedy::Retry, step, "the broker did not answer in time"))
    }

    /// Sends a record that is larger than the topic takes. A broker looks at the right first and at the size then, so
    /// the answer tells, and nothing is appended.
    fn may_write(&self, to: &TopicPartition) -> Result<(), LogError> {
        let step = format!("writing to {}/{}", to.topic, to.partition);
        let settings = self.settings(&[to.topic.as_str()])?.pop();
        let limit = settings.flatten().and_then(|settings| settings.get("max.message.bytes")?.parse().ok());
        let Some(too_large) = limit.map(|limit: usize| limit + 1).filter(|size| *size <= TOO_LARGE_MAX) else {
            let what = "how large a record may be is not known, or too much for a trial";
            return Err(LogError::new(Remedy::Retry, step, what));
        };
        let mut config = self.config();
        config
            .set("message.max.bytes", (too_large + (1 << 16)).to_string())
            .set("compression.type", "none")
            .set("message.timeout.ms", CALL_TIMEOUT.as_millis().to_string());
        let deliveries = Deliveries::default();
        let producer: BaseProducer<Deliveries> =
            config.create_with_context(deliveries.clone()).map_err(|error| refusal(&step, &error))?;
        let record = Outgoing {
            topic: to.topic.clone(),
            partition: to.partition,
            value: Some(vec![0; too_large]),
            ..Outgoing::default()
        };
        send(&producer, &record, 0)?;
        let deadline = Instant::now() + 2 * CALL_TIMEOUT;
        while producer.in_flight_count() > 0 && Instant::now() < deadline {
            producer.poll(TURN);
        }
        match deliveries.drain().pop() {
            Some((_, Err((RDKafkaErrorCode::MessageSizeTooLarge, _)) | Ok(_))) => Ok(()),
            Some((_, Err((code, _)))) => {
                let remedy = if is_refusal(code) { Remedy::Refuse } else { Remedy::Retry };
                Err(LogError::new(remedy, step, code.to_string()))
            }
            None => Err(LogError::new(Remedy::Retry, step, "the broker did not answer in time")),
        }
    }

    /// Deletes up to an offset that no partition reaches. A broker looks at the right first and at the offset then, so the
    /// answer tells, and nothing is deleted.
    fn may_delete(&self, from: &TopicPartition) -> Result<(), LogError> {
        let step = format!("deleting records of {}/{}", from.topic, from.partition);
        let list = list_with_offsets(&[(from.clone(), i64::MAX)], &step)?;
        let answered = self.admin(&step, async |client, options| client.delete_records(&list, &options).await)?;
        match answered.elements().iter().find_map(|element| element.error().err()) {
            None | Some(KafkaError::OffsetFetch(RDKafkaErrorCode::OffsetOutOfRange)) => Ok(()),
            Some(error) => Err(classify(&step, &error)),
        }
    }

    /// An idempotent producer gets its id when it is made, or an error that nothing cures.
    fn may_append(&self) -> Result<(), LogError> {
        let step = "making an idempotent producer";
        let mut config = self.config();
        config.set("enable.idempotence", "true");
        let producer: BaseProducer<Deliveries> =
            config.create_with_context(Deliveries::default()).map_err(|error| refusal(step, &error))?;
        producer.client().fetch_metadata(None, CALL_TIMEOUT).map_err(|error| classify(step, &error))?;
        let deadline = Instant::now() + REFUSED_WITHIN;
        while Instant::now() < deadline {
            producer.poll(TURN);
            if let Some((code, _)) = producer.client().fatal_error() {
                let remedy = if is_refusal(code) { Remedy::Refuse } else { Remedy::Retry };
                return Err(LogError::new(remedy, step, code.to_string()));
            }
        }
        Ok(())
    }
}
