//! The log on Apache Kafka.
//!
//! Any librdkafka option passes through. What the promises of the traits need is set here and cannot be overridden:
//! idempotent and gapless producers without a message time-out, one transactional id per owner, explicit start offsets,
//! a rebalance callback that only queues the event. Measured traps are at their places.

mod inspect;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::bindings::rd_kafka_resp_err_t as ResponseError;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders, Timestamp};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use secrecy::{ExposeSecret, SecretString};
use wardbell_schemas::Micros;

use super::inspect::TopicFault;
use super::{
    Appended, Appender, Committed, GroupHandle, GroupHandleInner, Isolation, Log, LogError, Member, MemberEvent,
    Membership, Outgoing, PartitionReader, Progress, Record, Remedy, StampedBy, TopicPartition, TopicSpec,
    Transactional,
};

/// Calls that wait for the broker give up after this and say so.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Events of a client, as why it was turned away, are heard within this.
const EVENTS_TIMEOUT: Duration = Duration::from_millis(200);
/// A question asked from a polling loop must not keep it from polling for long.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);
/// A member that leaves has told the broker within this.
const GOOD_BYE: Duration = Duration::from_millis(200);
/// Records that took the common queue while a partition was split off arrive within this.
const STRAYS_WITHIN: Duration = Duration::from_secs(5);
/// A transaction whose records are on their way looks this often whether they have arrived.
const FLUSH_SLICE: Duration = Duration::from_micros(500);
const SERVING: &str = "serving the group";
/// Longest wait for one slot in a producer's queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);
/// An open transaction of a dead owner holds readers back no longer than this, if nobody takes over before.
pub const TRANSACTION_TIMEOUT_MS: &str = "10000";
/// A member that is silent for longer has left, unless the options say otherwise: the least that brokers allow.
pub const SESSION_TIMEOUT_MS: &str = "6000";

/// The consumer behind members and readers.
pub(crate) type Consumer = BaseConsumer<Context>;

/// A topic's settings by name.
type Settings = HashMap<String, String>;

/// A Kafka cluster, as one client of it.
#[derive(Clone)]
pub struct KafkaLog {
    options: BTreeMap<String, String>,
    /// Options that are shown nowhere.
    secrets: BTreeMap<&'static str, SecretString>,
    /// A client that only asks, made at the first question.
    asker: Arc<Mutex<Option<Arc<Consumer>>>>,
}

impl KafkaLog {
    /// `options` are librdkafka's; `bootstrap.servers` must be among them.
    ///
    /// # Errors
    /// [`Remedy::Refuse`] naming an option that librdkafka does not know or that must not be set.
    pub fn new(options: BTreeMap<String, String>) -> Result<Self, LogError> {
        Self::with_secrets(options, BTreeMap::new())
    }

    /// As [`KafkaLog::new`], with further options whose values are shown nowhere.
    ///
    /// # Errors
    /// As [`KafkaLog::new`].
    pub fn with_secrets(
        options: BTreeMap<String, String>,
        secrets: BTreeMap<&'static str, SecretString>,
    ) -> Result<Self, LogError> {
        const OURS: [&str; 8] = [
            "group.id",
            "transactional.id",
            "enable.idempotence",
            "enable.gapless.guarantee",
            "message.timeout.ms",
            "isolation.level",
            "enable.auto.commit",
            "partition.assignment.strategy",
        ];
        let refuse = |what: String| LogError::new(Remedy::Refuse, "the options of `kafka`", what);
        if let Some(ours) = OURS.iter().find(|name| options.contains_key(**name)) {
            return Err(refuse(format!("`{ours}` is set by the engine; remove it")));
        }
        if options.get("bootstrap.servers").is_none_or(String::is_empty) {
            return Err(refuse("`bootstrap.servers` is missing; name the broker, like \"127.0.0.1:9092\"".to_owned()));
        }
        let log = Self { options, secrets, asker: Arc::default() };
        log.config().create_native_config().map_err(|error| refuse(plain(&error)))?;
        Ok(log)
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in &self.options {
            config.set(name, value);
        }
        for (name, secret) in &self.secrets {
            config.set(*name, secret.expose_secret());
        }
        config
    }

    /// The brokers' addresses, as commands for a person name them.
    fn servers(&self) -> &str {
        self.options.get("bootstrap.servers").map_or("", String::as_str)
    }

    fn asker(&self) -> Result<Arc<Consumer>, LogError> {
        let mut asker = self.asker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asker) = &*asker {
            return Ok(asker.clone());
        }
        let mut config = self.config();
        config
            .set("enable.auto.commit", "false")
            .set("group.id", "wardbell-asker")
            // To ask for a topic must not make it.
            .set("allow.auto.create.topics", "false");
        let made: Consumer =
            config.create_with_context(Context::default()).map_err(|error| refusal("making a client", &error))?;
        Ok(asker.insert(Arc::new(made)).clone())
    }

    fn admin<T>(
        &self,
        step: &str,
        call: impl AsyncFnOnce(&AdminClient<Context>, AdminOptions) -> Result<T, KafkaError>,
    ) -> Result<T, LogError> {
        let client: AdminClient<Context> =
            self.config().create_with_context(Context::default()).map_err(|error| refusal(step, &error))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| LogError::new(Remedy::Retry, step, error.to_string()))?;
        runtime.block_on(call(&client, admin_options())).map_err(|error| classify(step, &error))
    }

    /// Topics of the cluster with their partition counts.
    fn topics(&self) -> Result<HashMap<String, i32>, LogError> {
        let step = "asking the broker for its topics";
        let asker = self.asker()?;
        let metadata = asker.fetch_metadata(None, CALL_TIMEOUT).map_err(|error| {
            let servers = self.servers();
            let deadline = Instant::now() + EVENTS_TIMEOUT;
            while Instant::now() < deadline {
                // A client that only asks reads nothing; what it hears on the way is kept by its context.
                let _ = asker.poll(EVENTS_TIMEOUT);
            }
            let what = match asker.context().refusal.why() {
                Some(why) => format!("the broker at {servers} cannot be used: {why}"),
                None => format!(
                    "no broker answers at {servers} ({}); check `kafka.bootstrap_servers`, that the broker runs, and TLS or SASL options",
                    plain(&error)
                ),
            };
            LogError::new(Remedy::Retry, step, what)
        })?;
        asker.context().refusal.over();
        Ok(metadata.topics().iter().map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32)).collect())
    }

    /// The settings of topics; `None` for a topic that keeps them from us.
    fn settings(&self, topics: &[&str]) -> Result<Vec<Option<Settings>>, LogError> {
        let specifiers: Vec<ResourceSpecifier<'_>> =
            topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let described = self.admin("reading topic settings", async |client, options| {
            client.describe_configs(&specifiers, &options).await
        })?;
        Ok(described.into_iter().map(|resource| values(resource.ok()?)).collect())
    }

    /// What is wrong with topics. Those that are missing and may be made are made, or only looked at as if they were.
    fn examine(&self, topics: &[TopicSpec], make: bool) -> Result<Vec<TopicFault>, LogError> {
        let known = self.topics()?;
        let (there, missing): (Vec<&TopicSpec>, Vec<&TopicSpec>) =
            topics.iter().partition(|spec| known.contains_key(&spec.name));
        let (wanted, absent): (Vec<&TopicSpec>, Vec<&TopicSpec>) = missing.into_iter().partition(|spec| spec.create);
        let mut faults = self.absent(&absent)?;
        faults.extend(self.make(&wanted, make)?);
        if make && faults.is_empty() && !wanted.is_empty() {
            self.wait_for_topics(&wanted)?;
        }
        if !there.is_empty() {
            let names: Vec<&str> = there.iter().map(|spec| spec.name.as_str()).collect();
            for (spec, settings) in there.iter().zip(self.settings(&names)?) {
                let partitions = known.get(&spec.name).copied();
                match settings {
                    Some(settings) => faults.extend(wrong_settings(self.servers(), spec, partitions, &settings)),
                    // Nobody promised anything about a topic of others.
                    None if spec.any_partitions => {}
                    None => faults.push(TopicFault::error(
                        &spec.name,
                        "keeps its settings from us",
                        "give the job's user the right DescribeConfigs on it",
                    )),
                }
            }
        }
        Ok(faults)
    }

    /// Topics that must be there and are not listed.
    fn absent(&self, absent: &[&TopicSpec]) -> Result<Vec<TopicFault>, LogError> {
        let fault = |spec: &&TopicSpec| -> Result<TopicFault, LogError> {
            let step = format!("asking the broker for topic `{}`", spec.name);
            let described = self.asker()?.fetch_metadata(Some(spec.name.as_str()), CALL_TIMEOUT);
            let described = described.map_err(|error| classify(&step, &error))?;
            let code = described.topics().first().and_then(|topic| topic.error());
            let create = create_command(self.servers(), spec);
            Ok(match code {
                Some(ResponseError::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) => TopicFault::error(
                    &spec.name,
                    "is not there, or kept from us",
                    format!("give the job's user its rights on it, and if it is missing: {create}"),
                ),
                _ => TopicFault::error(&spec.name, "does not exist", create),
            })
        };
        absent.iter().map(fault).collect()
    }

    /// Makes topics, or only asks whether that would be allowed.
    fn make(&self, wanted: &[&TopicSpec], really: bool) -> Result<Vec<TopicFault>, LogError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let settings: Vec<Vec<(String, String)>> = wanted.iter().map(|spec| topic_settings(spec)).collect();
        let new: Vec<NewTopic<'_>> = wanted
            .iter()
            .zip(&settings)
            .map(|(spec, settings)| {
                let topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(-1));
                settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
            })
            .collect();
        let results = self.admin("making topics", async |client, options| {
            client.create_topics(&new, &options.validate_only(!really)).await
        })?;
        let failed = results.into_iter().filter_map(Result::err);
        Ok(failed
            .filter(|(_, code)| *code != RDKafkaErrorCode::TopicAlreadyExists)
            .map(|(name, code)| {
                let spec = wanted.iter().find(|spec| spec.name == name);
                let command = spec.map(|spec| create_command(self.servers(), spec)).unwrap_or_default();
                TopicFault::error(&name, format!("cannot be made by us ({code})"), command)
            })
            .collect())
    }
}

impl Log for KafkaLog {
    fn prepare(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        let faults = self.examine(topics, true)?;
        if faults.is_empty() {
            return Ok(());
        }
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Err(LogError::new(Remedy::Refuse, "preparing topics", faults.join("\n  ")))
    }

    fn describe(&self, topic: &str) -> Result<(i32, StampedBy), LogError> {
        let partitions = self.topics()?.get(topic).copied().filter(|partitions| *partitions > 0);
        let Some(partitions) = partitions else {
            return Err(LogError::new(Remedy::Refuse, format!("topic `{topic}`"), "does not exist on this broker"));
        };
        // Without the right to see its settings, the safe one of both is taken.
        let settings = self.settings(&[topic])?.pop().flatten().unwrap_or_default();
        let broker = settings.get("message.timestamp.type").is_some_and(|kind| kind == "LogAppendTime");
        Ok((partitions, if broker { StampedBy::Broker } else { StampedBy::Producer }))
    }

    fn offsets(&self, topic: &str, partition: i32) -> Result<(i64, i64), LogError> {
        let step = format!("asking for the end of {topic}/{partition}");
        self.asker()?.fetch_watermarks(topic, partition, QUESTION_TIMEOUT).map_err(|error| classify(&step, &error))
    }

    fn committed_with_metadata(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Committed>>, LogError> {
        let mut config = self.config();
        // With read_committed the broker answers only once no open transaction can move the offsets any more.
        config.set("enable.auto.commit", "false").set("group.id", group).set("isolation.level", "read_committed");
        let step = format!("asking for the committed offsets of group `{group}`");
        let client: Consumer =
            config.create_with_context(Context::default()).map_err(|error| refusal(&step, &error))?;
        let list =
            client.committed_offsets(list_of(partitions), CALL_TIMEOUT).map_err(|error| classify(&step, &error))?;
        committed_in(&list, partitions)
    }

    fn committed_by(
        &self,
        member: &GroupHandle,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Committed>>, LogError> {
        let step = "asking for committed offsets";
        let GroupHandleInner::Kafka(consumer) = &member.0 else {
            return Err(LogError::new(Remedy::Refuse, step, "the group is of another log"));
        };
        let list = consumer.committed_offsets(list_of(partitions), CALL_TIMEOUT);
        committed_in(&list.map_err(|error| classify(step, &error))?, partitions)
    }

    fn delete_before(&self, topic: &str, partition: i32, offset: i64) -> Result<(), LogError> {
        let step = format!("deleting records of {topic}/{partition}");
        let list = list_with_offsets(&[(TopicPartition::new(topic, partition), offset)], &step)?;
        let deleted = self.admin(&step, async |client, options| client.delete_records(&list, &options).await)?;
        deleted.elements().iter().try_for_each(|element| element.error().map_err(|error| classify(&step, &error)))
    }

    fn appender(&self) -> Result<Box<dyn Appender>, LogError> {
        let mut config = self.config();
        config
            .set("enable.idempotence", "true")
            .set("enable.gapless.guarantee", "true")
            // No time-out: a message that is given up would be a gap. The record waits, and so does its source.
            .set("message.timeout.ms", "0");
        defaults(
            &mut config,
            &self.options,
            &[
                ("linger.ms", "0"),
                ("compression.type", "zstd"),
                ("retry.backoff.ms", "20"),
                // The client looks at a record before it is compressed, the broker afterwards.
                ("message.max.bytes", "10000000"),
            ],
        );
        let context = Deliveries::default();
        let producer =
            config.create_with_context(context.clone()).map_err(|error| refusal("making a producer", &error))?;
        Ok(Box::new(KafkaAppender { producer, deliveries: context, failed: false }))
    }

    fn transactional(&self, id: &str) -> Result<Box<dyn Transactional>, LogError> {
        let mut config = self.config();
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
            // Within the transaction's own time-out, so that a transaction ends instead of hanging.
            .set("message.timeout.ms", "9000");
        // With the default back-off of 100 ms a commit that meets CONCURRENT_TRANSACTIONS takes 100 ms; with 5 ms about 6.
        defaults(
            &mut config,
            &self.options,
            &[("linger.ms", "0"), ("compression.type", "zstd"), ("retry.backoff.ms", "5")],
        );
        let context = Deliveries::default();
        let producer: BaseProducer<Deliveries> = config
            .create_with_context(context.clone())
            .map_err(|error| refusal("making a transactional producer", &error))?;
        let step = format!("taking over transactional id `{id}`");
        producer.init_transactions(CALL_TIMEOUT).map_err(|error| classify(&step, &error))?;
        Ok(Box::new(KafkaTransactional { producer, deliveries: context, id: id.to_owned() }))
    }

    fn join(&self, membership: &Membership) -> Result<Box<dyn Member>, LogError> {
        let mut config = self.config();
        config
            .set("group.id", &membership.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("isolation.level", isolation(membership.isolation))
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("auto.offset.reset", "error");
        if let Some(instance) = &membership.instance {
            config.set("group.instance.id", instance);
        }
        defaults(
            &mut config,
            &self.options,
            &[
                ("session.timeout.ms", SESSION_TIMEOUT_MS),
                ("heartbeat.interval.ms", "1000"),
                ("max.poll.interval.ms", "15000"),
                ("fetch.wait.max.ms", "100"),
                ("queued.max.messages.kbytes", "16384"),
            ],
        );
        let context = Context::default();
        let step = format!("joining group `{}`", membership.group);
        let consumer: Consumer = config.create_with_context(context.clone()).map_err(|error| refusal(&step, &error))?;
        let topics: Vec<&str> = membership.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| refusal(&step, &error))?;
        let consumer = Arc::new(consumer);
        Ok(Box::new(KafkaMember {
            consumer,
            context,
            early: Vec::new(),
            strays: Arc::default(),
            split: Vec::new(),
            unanswered: Vec::new(),
        }))
    }

    fn outsider(&self, group: &str) -> Result<GroupHandle, LogError> {
        let mut config = self.config();
        // Without a subscription it joins nothing: its transactions name the group alone, which brokers take at any time.
        config.set("enable.auto.commit", "false").set("group.id", group);
        let step = format!("naming group `{group}`");
        let consumer: Consumer =
            config.create_with_context(Context::default()).map_err(|error| refusal(&step, &error))?;
        Ok(GroupHandle(GroupHandleInner::Kafka(Arc::new(consumer))))
    }

    fn reader(
        &self,
        from: &TopicPartition,
        next_offset: i64,
        wanted: Isolation,
    ) -> Result<Box<dyn PartitionReader>, LogError> {
        let mut config = self.config();
        config
            .set("group.id", "wardbell-reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", isolation(wanted))
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error");
        defaults(&mut config, &self.options, &[("fetch.wait.max.ms", "100")]);
        let step = format!("reading {}/{}", from.topic, from.partition);
        let consumer: Consumer =
            config.create_with_context(Context::default()).map_err(|error| refusal(&step, &error))?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&from.topic, from.partition, Offset::Offset(next_offset))
            .and_then(|()| consumer.assign(&list))
            .map_err(|error| classify(&step, &error))?;
        Ok(Box::new(KafkaReader {
            consumer: Arc::new(consumer),
            queue: None,
            from: from.clone(),
            next: next_offset,
            strays: Arc::default(),
            n_empty_before: 0,
            ahead: VecDeque::new(),
            began: Instant::now(),
            is_at_end: false,
        }))
    }
}

impl KafkaLog {
    /// A topic that was just made is not at once known everywhere.
    fn wait_for_topics(&self, wanted: &[&TopicSpec]) -> Result<(), LogError> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        loop {
            let known = self.topics()?;
            match wanted.iter().find(|spec| known.get(&spec.name).is_none_or(|partitions| *partitions == 0)) {
                None => return Ok(()),
                Some(spec) if Instant::now() > deadline => {
                    let step = format!("making topic `{}`", spec.name);
                    return Err(LogError::new(Remedy::Retry, step, "the broker does not list it yet"));
                }
                Some(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// What the client gives for a resource that it was refused: no entries, and no error.
fn values(resource: ConfigResource) -> Option<Settings> {
    let entries = resource.entries;
    (!entries.is_empty()).then(|| entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(CALL_TIMEOUT)).operation_timeout(Some(CALL_TIMEOUT))
}

fn isolation(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadCommitted => "read_committed",
        Isolation::ReadUncommitted => "read_uncommitted",
    }
}

fn defaults(config: &mut ClientConfig, given: &BTreeMap<String, String>, defaults: &[(&str, &str)]) {
    for (name, value) in defaults {
        if !given.contains_key(*name) {
            config.set(*name, *value);
        }
    }
}

fn topic_settings(spec: &TopicSpec) -> Vec<(String, String)> {
    let stamp = match spec.stamped_by {
        StampedBy::Broker => "LogAppendTime",
        StampedBy::Producer => "CreateTime",
    };
    let retention = spec.retention.map_or_else(|| "-1".to_owned(), |retention| retention.as_millis().to_string());
    [("message.timestamp.type", stamp), ("cleanup.policy", "delete"), ("retention.ms", &retention)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

fn create_command(servers: &str, spec: &TopicSpec) -> String {
    let settings: String =
        topic_settings(spec).iter().map(|(name, value)| format!(" --config {name}={value}")).collect();
    format!(
        "kafka-topics.sh --bootstrap-server {servers} --create --topic {} --partitions {}{settings}",
        spec.name, spec.partitions
    )
}

/// What is wrong with an existing topic, each with its remedy.
fn wrong_settings(servers: &str, spec: &TopicSpec, partitions: Option<i32>, settings: &Settings) -> Vec<TopicFault> {
    let mut faults = Vec::new();
    if spec.any_partitions {
        return faults;
    }
    if let Some(partitions) = partitions.filter(|partitions| *partitions != spec.partitions) {
        faults.push(TopicFault::error(
            &spec.name,
            format!(
                "has {partitions} partitions but {} are configured, and the count is fixed for life",
                spec.partitions
            ),
            "correct the configuration, or make a new topic under another name",
        ));
    }
    let mut fault = |what: String, setting: &str| {
        let remedy = format!(
            "kafka-configs.sh --bootstrap-server {servers} --alter --topic {} --add-config {setting}",
            spec.name
        );
        faults.push(TopicFault::error(&spec.name, what, remedy));
    };
    let get = |name: &str| settings.get(name).map(String::as_str);
    let stamp = topic_settings(spec)[0].1.clone();
    if let Some(found) = get("message.timestamp.type").filter(|found| *found != stamp) {
        fault(
            format!("has message.timestamp.type={found}, it must be {stamp}"),
            &format!("message.timestamp.type={stamp}"),
        );
    }
    if let Some(found) = get("cleanup.policy").filter(|found| *found != "delete") {
        let what = format!("has cleanup.policy={found}, it must be delete (compaction loses history)");
        fault(what, "cleanup.policy=delete");
    }
    let kept = get("retention.ms").and_then(|value| value.parse::<i64>().ok()).filter(|ms| *ms >= 0);
    match (kept, spec.retention) {
        (Some(kept), Some(wanted)) if i128::from(kept) < wanted.as_millis() as i128 => {
            let wanted = wanted.as_millis();
            let what = format!("keeps records for {kept} ms, at least {wanted} ms are needed");
            fault(what, &format!("retention.ms={wanted}"));
        }
        (Some(kept), None) => {
            fault(format!("keeps records for {kept} ms, they must stay for ever"), "retention.ms=-1");
        }
        _ => {}
    }
    faults
}

/// Queues rebalance events and errors; everything else happens in the polling loop.
#[derive(Clone, Default)]
pub(crate) struct Context {
    events: Arc<Mutex<VecDeque<MemberEvent>>>,
    /// The client is being closed: nobody serves events any more, so the callback answers them itself. Without an answer
    /// closing would wait for ever.
    closing: Arc<AtomicBool>,
    outage: Outage,
    refusal: Refusal,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_client(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.outage.heard(&error);
        self.refusal.heard(&error, reason);
    }
}

/// librdkafka's own lines; its errors are told once per outage by [`Outage`], so they are details here.
fn log_client(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(facility, "kafka client: {message}");
        }
        _ => tracing::debug!(facility, "kafka client: {message}"),
    }
}

/// Tells the beginning and the end of an outage, once each.
#[derive(Clone, Default)]
struct Outage(Arc<AtomicBool>);

impl Outage {
    fn heard(&self, error: &KafkaError) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) && !self.0.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("no broker answers; waiting for it, readings stay in the log meanwhile");
        }
    }

    fn over(&self) {
        if self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed) {
            tracing::info!("the broker answers again");
        }
    }
}

/// Why a connection was refused, as last heard: calls that wait for it only say that they waited in vain.
#[derive(Clone, Default)]
struct Refusal(Arc<Mutex<Option<String>>>);

impl Refusal {
    fn heard(&self, error: &KafkaError, reason: &str) {
        let (what, remedy) = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed) => {
                let remedy = "check `sasl.mechanism` and `sasl.username` of `kafka.options`, and `sasl.password`, which `kafka.sasl_password_file` or `kafka.sasl_password_env` names";
                ("authentication failed", remedy)
            }
            Some(RDKafkaErrorCode::SSL) => {
                let remedy =
                    "check `ssl.ca.location` of `kafka.options` and that the broker's certificate names this address";
                ("TLS failed", remedy)
            }
            // Now it is something else.
            Some(RDKafkaErrorCode::BrokerTransportFailure) => return self.over(),
            _ => return,
        };
        *self.lock() = Some(format!("{what} ({reason}); {remedy}"));
    }

    /// Kept until it is over: the client does not repeat itself for half a minute.
    fn why(&self) -> Option<String> {
        self.lock().clone()
    }

    fn over(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if self.closing.load(Ordering::SeqCst) {
            answer(consumer, error == ResponseError::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS, &partitions_of(list));
            return;
        }
        let partitions: Vec<TopicPartition> = partitions_of(list);
        let event = match error {
            ResponseError::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => MemberEvent::Assigned(partitions),
            _ if consumer.assignment_lost() => MemberEvent::Lost(partitions),
            _ => MemberEvent::Revoked(partitions),
        };
        self.lock().push_back(event);
    }
}

/// Takes or gives back partitions without anybody working on them.
fn answer(consumer: &BaseConsumer<Context>, assign: bool, partitions: &[TopicPartition]) {
    let list = list_of(partitions);
    let answered = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative if assign => consumer.incremental_assign(&list),
        _ if assign => consumer.assign(&list),
        _ => give_back(consumer, partitions),
    };
    if let Err(error) = answered {
        tracing::debug!(error = %error, "answering a rebalance while closing");
    }
}

/// Gives back those of these partitions that were begun: the client refuses the whole list for one that was not. An empty
/// list is an answer too.
fn give_back(consumer: &BaseConsumer<Context>, partitions: &[TopicPartition]) -> Result<(), KafkaError> {
    if !matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
        return consumer.unassign();
    }
    let begun = partitions_of(&consumer.assignment()?);
    consumer.incremental_unassign(&list_of(partitions.iter().filter(|partition| begun.contains(partition))))
}

impl Context {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<MemberEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn partitions_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|element| TopicPartition::new(element.topic(), element.partition())).collect()
}

/// What a group has committed. That a partition may not be asked for is not that nothing is committed of it.
fn committed_in(list: &TopicPartitionList, partitions: &[TopicPartition]) -> Result<Vec<Option<Committed>>, LogError> {
    let committed = |partition: &TopicPartition| {
        let TopicPartition { topic, partition: number } = partition;
        let Some(element) = list.find_partition(topic, *number) else {
            return Ok(None);
        };
        element.error().map_err(|error| classify(&format!("asking what is committed of {topic}/{number}"), &error))?;
        Ok(match element.offset() {
            Offset::Offset(next_offset) => Some(Committed { next_offset, metadata: element.metadata().to_owned() }),
            _ => None,
        })
    };
    partitions.iter().map(committed).collect()
}

fn list_of<'a>(partitions: impl IntoIterator<Item = &'a TopicPartition>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(&partition.topic, partition.partition);
    }
    list
}

fn list_with_offsets(positions: &[(TopicPartition, i64)], step: &str) -> Result<TopicPartitionList, LogError> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in positions {
        list.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(*offset))
            .map_err(|error| classify(step, &error))?;
    }
    Ok(list)
}

/// Records of split partitions that came through the common queue before the split took hold.
#[derive(Default)]
struct Strays {
    records: Mutex<HashMap<TopicPartition, VecDeque<Record>>>,
    /// Times the common queue was found empty.
    n_empty: AtomicU64,
}

impl Strays {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TopicPartition, VecDeque<Record>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct KafkaMember {
    consumer: Arc<Consumer>,
    context: Context,
    /// Records that came while events were polled for.
    early: Vec<(TopicPartition, Record)>,
    strays: Arc<Strays>,
    split: Vec<TopicPartition>,
    /// Handed out and not answered yet. The client cannot end before it is.
    unanswered: Vec<MemberEvent>,
}

impl KafkaMember {
    /// Serves the client; a record that turns up is kept for its reader.
    fn poll(&mut self, wait: Duration) -> Result<bool, LogError> {
        let message = match self.consumer.poll(wait) {
            // The client says so once, and is silent ever after.
            None => {
                self.strays.n_empty.fetch_add(1, Ordering::SeqCst);
                return self.fatal().map_or(Ok(false), Err);
            }
            Some(Ok(message)) => {
                self.context.outage.over();
                message
            }
            Some(Err(error)) if passes(&error) => {
                self.context.outage.heard(&error);
                return Ok(false);
            }
            Some(Err(error)) => return Err(self.fatal().unwrap_or_else(|| classify(SERVING, &error))),
        };
        let partition = TopicPartition::new(message.topic(), message.partition());
        let record = to_record(&message);
        drop(message);
        if self.split.contains(&partition) {
            self.strays.lock().entry(partition).or_default().push_back(record);
        } else {
            self.early.push((partition, record));
        }
        Ok(true)
    }

    /// Why the client is of no use any more.
    fn fatal(&self) -> Option<LogError> {
        let (code, what) = self.consumer.client().fatal_error()?;
        let what = match code {
            // Also after a stall of its own, when its place was given to what it asked for a second time.
            RDKafkaErrorCode::FencedInstanceId => "its place was taken under the same `instance` name; if this goes on, another process has that name: give each its own".to_owned(),
            _ => what,
        };
        Some(LogError::new(Remedy::Restart, SERVING, what))
    }

    /// An assignment is answered by beginning with whatever of it, a revocation by giving back all of it.
    fn answered(&mut self, answers: impl Fn(&MemberEvent) -> bool) {
        self.unanswered.retain(|event| !answers(event));
    }

    fn assign(&self, positions: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        let step = "beginning to read the assigned partitions";
        let list = list_with_offsets(positions, step)?;
        let result = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_assign(&list),
            _ => self.consumer.assign(&list),
        };
        result.map_err(|error| classify(step, &error))
    }
}

impl Drop for KafkaMember {
    fn drop(&mut self) {
        self.context.closing.store(true, Ordering::SeqCst);
        let mut waiting = std::mem::take(&mut self.unanswered);
        waiting.extend(self.context.lock().drain(..));
        for event in waiting {
            let (assign, partitions) = match &event {
                MemberEvent::Assigned(partitions) => (true, partitions),
                MemberEvent::Revoked(partitions) | MemberEvent::Lost(partitions) => (false, partitions),
            };
            answer(&self.consumer, assign, partitions);
        }
    }
}

impl Member for KafkaMember {
    fn events(&mut self, wait: Duration) -> Result<Vec<MemberEvent>, LogError> {
        let queued = !self.context.lock().is_empty();
        self.poll(if queued { Duration::ZERO } else { wait })?;
        let events: Vec<MemberEvent> = self.context.lock().drain(..).collect();
        self.unanswered.extend(events.iter().cloned());
        Ok(events)
    }

    fn start(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        self.assign(positions)?;
        self.answered(|event| matches!(event, MemberEvent::Assigned(_)));
        Ok(())
    }

    fn start_split(&mut self, positions: &[(TopicPartition, i64)]) -> Result<Vec<Box<dyn PartitionReader>>, LogError> {
        self.split.extend(positions.iter().map(|(partition, _)| partition.clone()));
        self.assign(positions)?;
        self.answered(|event| matches!(event, MemberEvent::Assigned(_)));
        positions
            .iter()
            .map(|(from, next)| -> Result<Box<dyn PartitionReader>, LogError> {
                let queue = self.consumer.split_partition_queue(&from.topic, from.partition).ok_or_else(|| {
                    let step = format!("reading {}/{}", from.topic, from.partition);
                    LogError::new(Remedy::Restart, step, "the client has no queue for the partition")
                })?;
                Ok(Box::new(KafkaReader {
                    consumer: self.consumer.clone(),
                    queue: Some(queue),
                    from: from.clone(),
                    next: *next,
                    strays: self.strays.clone(),
                    n_empty_before: self.strays.n_empty.load(Ordering::SeqCst),
                    ahead: VecDeque::new(),
                    began: Instant::now(),
                    is_at_end: false,
                }))
            })
            .collect()
    }

    fn stop(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.split.retain(|split| !partitions.contains(split));
        self.early.retain(|(partition, _)| !partitions.contains(partition));
        self.strays.lock().retain(|known, _| !partitions.contains(known));
        give_back(&self.consumer, partitions).map_err(|error| classify("giving partitions back", &error))?;
        self.answered(|event| match event {
            MemberEvent::Assigned(_) => false,
            MemberEvent::Revoked(of) | MemberEvent::Lost(of) => of.iter().all(|of| partitions.contains(of)),
        });
        Ok(())
    }

    fn read(
        &mut self,
        max: usize,
        wait: Duration,
        records: &mut Vec<(TopicPartition, Record)>,
    ) -> Result<(), LogError> {
        records.append(&mut self.early);
        let mut wait = if records.is_empty() { wait } else { Duration::ZERO };
        for _ in 0..max {
            if !self.poll(wait)? {
                break;
            }
            records.append(&mut self.early);
            wait = Duration::ZERO;
        }
        Ok(())
    }

    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<i64>>, LogError> {
        let committed = self.committed_with_metadata(partitions)?;
        Ok(committed.into_iter().map(|committed| Some(committed?.next_offset)).collect())
    }

    fn commit(&mut self, positions: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        let step = "committing offsets";
        let list = list_with_offsets(positions, step)?;
        self.consumer.commit(&list, CommitMode::Sync).map_err(|error| classify(step, &error))
    }

    fn committed_with_metadata(&mut self, partitions: &[TopicPartition]) -> Result<Vec<Option<Committed>>, LogError> {
        // Members read what is committed only, so the broker answers once no open transaction can move the offsets any more.
        let committed = self.consumer.committed_offsets(list_of(partitions), CALL_TIMEOUT);
        committed_in(&committed.map_err(|error| classify("asking for committed offsets", &error))?, partitions)
    }

    fn commit_with_metadata(&mut self, positions: &[(TopicPartition, Committed)]) -> Result<(), LogError> {
        let step = "committing offsets";
        let offsets: Vec<_> =
            positions.iter().map(|(partition, committed)| (partition.clone(), committed.next_offset)).collect();
        let list = list_with_offsets(&offsets, step)?;
        for (partition, committed) in positions {
            if let Some(mut element) = list.find_partition(&partition.topic, partition.partition) {
                element.set_metadata(&committed.metadata);
            }
        }
        self.consumer.commit(&list, CommitMode::Sync).map_err(|error| classify(step, &error))
    }

    fn pause(&mut self, paused: bool) -> Result<(), LogError> {
        let step = if paused { "pausing partitions" } else { "resuming partitions" };
        let assigned = self.consumer.assignment().map_err(|error| classify(step, &error))?;
        let result = if paused { self.consumer.pause(&assigned) } else { self.consumer.resume(&assigned) };
        result.map_err(|error| classify(step, &error))
    }

    fn group(&self) -> GroupHandle {
        GroupHandle(GroupHandleInner::Kafka(self.consumer.clone()))
    }

    fn leave(self: Box<Self>) {
        self.consumer.unsubscribe();
        // Leaving is done by serving the client until the last revocation is answered, and then until it has said good-bye:
        // a member with an instance name that is closed before keeps its place.
        let mut deadline = Instant::now() + Duration::from_secs(2);
        let mut has_answered = false;
        let mut member = self;
        while Instant::now() < deadline {
            let Ok(events) = member.events(Duration::from_millis(20)) else {
                break;
            };
            let mut done = false;
            for event in events {
                if let MemberEvent::Revoked(partitions) | MemberEvent::Lost(partitions) = event {
                    done = member.stop(&partitions).is_ok();
                }
            }
            done |= member.consumer.assignment().is_ok_and(|assignment| assignment.count() == 0);
            if done && !has_answered {
                has_answered = true;
                deadline = Instant::now() + GOOD_BYE;
            }
        }
    }
}

struct KafkaReader {
    consumer: Arc<Consumer>,
    /// Own queue of a split partition; without one the consumer has this partition only.
    queue: Option<PartitionQueue<Context>>,
    from: TopicPartition,
    next: i64,
    strays: Arc<Strays>,
    /// Times the common queue had been found empty when this reader began.
    n_empty_before: u64,
    /// Came through the own queue before strays that belong before them.
    ahead: VecDeque<Record>,
    began: Instant,
    is_at_end: bool,
}

impl KafkaReader {
    fn take(&mut self, record: Record, records: &mut Vec<Record>) -> Result<(), LogError> {
        if record.offset < self.next {
            // A record that went through the common queue came after a later one: going on would have skipped it.
            let step = format!("reading {}/{}", self.from.topic, self.from.partition);
            return Err(LogError::new(Remedy::Restart, step, "records came out of order; reading again"));
        }
        self.next = record.offset + 1;
        self.is_at_end = false;
        records.push(record);
        Ok(())
    }
}

impl PartitionReader for KafkaReader {
    fn position(&self) -> &TopicPartition {
        &self.from
    }

    fn read(&mut self, max: usize, wait: Duration, records: &mut Vec<Record>) -> Result<(), LogError> {
        let mut wait = wait;
        for _ in 0..max {
            // Asked first: a stray that turns up after it came with a later look at the common queue. Time alone says nothing,
            // since the whole machine may have stood still.
            let was_empty = self.strays.n_empty.load(Ordering::SeqCst) > self.n_empty_before;
            let stray = self.strays.lock().get_mut(&self.from).and_then(VecDeque::pop_front);
            if let Some(stray) = stray {
                self.take(stray, records)?;
                wait = Duration::ZERO;
                continue;
            }
            if let Some(first) = self.ahead.front() {
                let can_come = !was_empty || self.began.elapsed() < STRAYS_WITHIN;
                if first.offset > self.next && can_come {
                    if records.is_empty() {
                        std::thread::sleep(wait.min(Duration::from_millis(5)));
                    }
                    return Ok(());
                }
                if let Some(first) = self.ahead.pop_front() {
                    self.take(first, records)?;
                    wait = Duration::ZERO;
                }
                continue;
            }
            let polled = match &self.queue {
                Some(queue) => queue.poll(wait),
                None => self.consumer.poll(wait),
            };
            let record = match polled {
                None => return Ok(()),
                Some(Ok(message)) => to_record(&message),
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    self.is_at_end = true;
                    return Ok(());
                }
                // The client reconnects by itself and goes on where it was; nothing was missed.
                Some(Err(error)) if passes(&error) => return Ok(()),
                Some(Err(error)) if self.queue.is_none() && is_about_a_group(&error) => return Ok(()),
                Some(Err(error)) => {
                    let step = format!("reading {}/{}", self.from.topic, self.from.partition);
                    return Err(classify(&step, &error));
                }
            };
            wait = Duration::ZERO;
            if record.offset > self.next && self.queue.is_some() {
                // What stands before may still be on its way through the common queue.
                self.ahead.push_back(record);
                continue;
            }
            self.take(record, records)?;
        }
        Ok(())
    }

    fn is_at_end(&self) -> bool {
        self.is_at_end
    }
}

fn to_record(message: &BorrowedMessage<'_>) -> Record {
    let (time_us, append_us) = match message.timestamp() {
        Timestamp::LogAppendTime(ms) => (ms * 1_000, Some(ms * 1_000)),
        Timestamp::CreateTime(ms) => (ms * 1_000, None),
        Timestamp::NotAvailable => (0, None),
    };
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect()
    });
    Record {
        partition: message.partition(),
        offset: message.offset(),
        time_us,
        append_us,
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
    }
}

type Delivery = (u64, Result<Appended, (RDKafkaErrorCode, String)>);

/// Collects delivery reports of one producer.
#[derive(Clone, Default)]
struct Deliveries {
    reports: Arc<Mutex<Vec<Delivery>>>,
    outage: Outage,
}

impl Deliveries {
    fn drain(&self) -> Vec<Delivery> {
        std::mem::take(&mut self.reports.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_client(level, facility, message);
    }

    fn error(&self, error: KafkaError, _reason: &str) {
        self.outage.heard(&error);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, token: Box<u64>) {
        let outcome = match result {
            Ok(message) => {
                self.outage.over();
                let append_us = match message.timestamp() {
                    Timestamp::LogAppendTime(ms) => Some(ms * 1_000),
                    _ => None,
                };
                Ok(Appended { partition: message.partition(), offset: message.offset(), append_us })
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                Err((code, format!("{}/{}: {}", message.topic(), message.partition(), plain(error))))
            }
        };
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).push((*token, outcome));
    }
}

fn base_record<'a>(record: &'a Outgoing, token: u64) -> BaseRecord<'a, [u8], [u8], Box<u64>> {
    let mut base = BaseRecord::with_opaque_to(&record.topic, Box::new(token)).partition(record.partition);
    if let Some(key) = &record.key {
        base = base.key(key.as_slice());
    }
    if let Some(value) = &record.value {
        base = base.payload(value.as_slice());
    }
    if let Some(time_us) = record.time_us {
        base = base.timestamp(time_us.div_euclid(1_000));
    }
    if !record.headers.is_empty() {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        base = base.headers(headers);
    }
    base
}

/// Hands a record to librdkafka, waiting for room in its queue.
fn send(producer: &BaseProducer<Deliveries>, record: &Outgoing, token: u64) -> Result<(), LogError> {
    let step = || format!("appending to {}/{}", record.topic, record.partition);
    let deadline = Instant::now() + QUEUE_TIMEOUT;
    let mut base = base_record(record, token);
    loop {
        match producer.send(base) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) if Instant::now() < deadline => {
                base = back;
                producer.poll(Duration::from_millis(5));
            }
            Err((error, _)) => return Err(classify(&step(), &error)),
        }
    }
}

struct KafkaAppender {
    producer: BaseProducer<Deliveries>,
    deliveries: Deliveries,
    failed: bool,
}

impl Appender for KafkaAppender {
    fn append(&mut self, record: &Outgoing, token: u64) -> Result<(), LogError> {
        if self.failed {
            let step = format!("appending to {}/{}", record.topic, record.partition);
            return Err(LogError::new(Remedy::Restart, step, "an append before this one failed"));
        }
        send(&self.producer, record, token).inspect_err(|_| self.failed = true)
    }

    fn outcomes(&mut self, wait: Duration, outcomes: &mut Vec<(u64, Result<Appended, LogError>)>) {
        self.producer.poll(wait);
        for (token, outcome) in self.deliveries.drain() {
            let outcome = outcome.map_err(|(code, what)| {
                self.failed = true;
                let remedy = if is_refusal(code) { Remedy::Refuse } else { Remedy::Restart };
                LogError::new(remedy, "appending", what)
            });
            outcomes.push((token, outcome));
        }
    }

    fn in_flight(&self) -> usize {
        usize::try_from(self.producer.in_flight_count()).unwrap_or(0)
    }
}

struct KafkaTransactional {
    producer: BaseProducer<Deliveries>,
    deliveries: Deliveries,
    id: String,
}

impl KafkaTransactional {
    /// Everything up to the commit itself, and the append time of the last record where the broker sets it; an error
    /// here leaves nothing visible.
    fn fill(&mut self, records: &[Outgoing], progress: Option<&Progress<'_>>) -> Result<Option<Micros>, LogError> {
        let step = format!("transaction `{}`", self.id);
        for (token, record) in records.iter().enumerate() {
            send(&self.producer, record, token as u64)?;
        }
        // `flush` polls in slices of 100 ms, which would be the commit latency. The client's own wait of less than a
        // millisecond is a busy loop, which would take the time from what it waits for.
        let deadline = Instant::now() + CALL_TIMEOUT;
        loop {
            self.producer.poll(Duration::ZERO);
            if self.producer.in_flight_count() == 0 {
                break;
            }
            std::thread::sleep(FLUSH_SLICE);
            if Instant::now() > deadline {
                return Err(LogError::new(Remedy::Retry, step, "the broker did not take the records in time"));
            }
        }
        let mut append_us = None;
        let mut given_up = None;
        for (_, outcome) in self.deliveries.drain() {
            match outcome {
                Ok(appended) => append_us = appended.append_us,
                // The client throws away what it holds once the transaction has failed; why, the next call says.
                Err((RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight, what)) => {
                    given_up = Some(LogError::new(Remedy::Retry, step.clone(), what));
                }
                Err((code, what)) => {
                    let remedy = if is_fence(code) {
                        Remedy::Fenced
                    } else if is_refusal(code) {
                        Remedy::Refuse
                    } else {
                        Remedy::Retry
                    };
                    return Err(LogError::new(remedy, step, what));
                }
            }
        }
        if let Some(progress) = progress {
            let GroupHandleInner::Kafka(consumer) = &progress.group.0 else {
                return Err(LogError::new(Remedy::Refuse, step, "the group is of another log"));
            };
            // Read anew for each transaction: the generation moves with every rebalance.
            let metadata = consumer
                .group_metadata()
                .ok_or_else(|| LogError::new(Remedy::Retry, step.clone(), "the consumer is in no group yet"))?;
            let list = list_with_offsets(&[(progress.position.clone(), progress.next_offset)], &step)?;
            if let Some(mut element) = list.find_partition(&progress.position.topic, progress.position.partition) {
                element.set_metadata(progress.metadata);
            }
            self.producer
                .send_offsets_to_transaction(&list, &metadata, CALL_TIMEOUT)
                .map_err(|error| classify(&step, &error))?;
        }
        given_up.map_or(Ok(append_us), Err)
    }

    /// Nothing of the transaction may remain; what cannot be aborted makes the producer useless.
    fn give_up(&mut self, error: LogError) -> LogError {
        if matches!(error.remedy, Remedy::Fenced) {
            return error;
        }
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        match self.producer.abort_transaction(CALL_TIMEOUT) {
            Ok(()) => {
                self.deliveries.drain();
                error
            }
            Err(abort) => {
                let abort = classify("aborting the transaction", &abort);
                let remedy = if abort.remedy == Remedy::Fenced { Remedy::Fenced } else { Remedy::Restart };
                LogError::new(remedy, error.step, format!("{}; {abort}", error.what))
            }
        }
    }
}

impl Transactional for KafkaTransactional {
    fn warm_up(&mut self, to: &TopicPartition) -> Result<Option<Micros>, LogError> {
        let step = format!("warming up `{}`", self.id);
        let record = Outgoing {
            topic: to.topic.clone(),
            partition: to.partition,
            key: Some(b"warm-up".to_vec()),
            ..Outgoing::default()
        };
        self.producer.begin_transaction().map_err(|error| classify(&step, &error))?;
        let append_us = match self.fill(&[record], None) {
            Ok(append_us) => append_us,
            Err(error) => return Err(self.give_up(error)),
        };
        self.producer.abort_transaction(CALL_TIMEOUT).map_err(|error| classify(&step, &error))?;
        Ok(append_us)
    }

    fn commit(&mut self, records: &[Outgoing], progress: Option<&Progress<'_>>) -> Result<(), LogError> {
        let step = format!("transaction `{}`", self.id);
        if records.is_empty() && progress.is_none() {
            return Err(LogError::new(Remedy::Refuse, step, "a transaction without records and offsets"));
        }
        self.producer.begin_transaction().map_err(|error| classify(&step, &error))?;
        if let Err(error) = self.fill(records, progress) {
            return Err(self.give_up(error));
        }
        match self.producer.commit_transaction(CALL_TIMEOUT) {
            Ok(()) => Ok(()),
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                let error = LogError::new(Remedy::Retry, step, error.string());
                Err(self.give_up(error))
            }
            Err(error) => {
                let error = classify(&step, &error);
                let remedy = if error.remedy == Remedy::Fenced { Remedy::Fenced } else { Remedy::Restart };
                Err(LogError::new(remedy, error.step, format!("whether it was committed is unknown: {}", error.what)))
            }
        }
    }
}

fn is_fence(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    matches!(code, Fenced | ProducerFenced | InvalidProducerEpoch)
}

fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::*;
    matches!(
        code,
        MessageSizeTooLarge
            | TopicAuthorizationFailed
            | GroupAuthorizationFailed
            | ClusterAuthorizationFailed
            | TransactionalIdAuthorizationFailed
            | UnknownTopic
            | UnknownPartition
            | InvalidRecord
            | PolicyViolation
            | SaslAuthenticationFailed
            | UnsupportedVersion
    )
}

/// A client that reads outside any group looks for a coordinator all the same. That it may not is nothing to it.
fn is_about_a_group(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

/// An outage that the client bridges by itself.
fn passes(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::*;
    matches!(
        error.rdkafka_error_code(),
        Some(
            AllBrokersDown
                | BrokerTransportFailure
                | Resolve
                | OperationTimedOut
                | RequestTimedOut
                | NetworkException
                | CoordinatorLoadInProgress
                | CoordinatorNotAvailable
                | NotCoordinator
                | LeaderNotAvailable
                | NotLeaderForPartition
        )
    )
}

fn classify(step: &str, error: &KafkaError) -> LogError {
    use RDKafkaErrorCode::{
        AutoOffsetReset, Fatal, FencedInstanceId, IllegalGeneration, OffsetOutOfRange, UnknownMemberId,
    };
    let code = match error {
        KafkaError::Transaction(error) => Some(error.code()),
        KafkaError::MessageConsumptionFatal(code) => Some(*code),
        other => other.rdkafka_error_code(),
    };
    let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_))
        || matches!(error, KafkaError::Transaction(error) if error.is_fatal());
    let remedy = match code {
        Some(code) if is_fence(code) || code == FencedInstanceId => Remedy::Fenced,
        Some(code) if is_refusal(code) || code == OffsetOutOfRange => Remedy::Refuse,
        Some(IllegalGeneration | UnknownMemberId) => Remedy::Retry,
        // The log does not hold the offset any more, or never did: whoever reads it has to look where it begins.
        Some(AutoOffsetReset | Fatal) => Remedy::Restart,
        _ if fatal => Remedy::Restart,
        _ => Remedy::Retry,
    };
    LogError::new(remedy, step, plain(error))
}

fn refusal(step: &str, error: &KafkaError) -> LogError {
    LogError::new(Remedy::Refuse, step, plain(error))
}

/// librdkafka's own words, without the wrapper's type names.
fn plain(error: &KafkaError) -> String {
    match error {
        // Without the value: it may be a password under a mistyped name.
        KafkaError::ClientConfig(_, what, name, _) => format!("option `{name}`: {what}"),
        KafkaError::Transaction(error) => error.string(),
        KafkaError::ClientCreation(what) => what.clone(),
        other => match other.rdkafka_error_code() {
            Some(code) => code.to_string(),
            None => other.to_string(),
        },
    }
}
