//! One suite for both logs: order, append time, group assignment, transactions that make records and offsets visible
//! together or not at all, topics made or refused with the remedy. What only the one in memory can be made to do is in
//! `memory_log.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::kafka::KafkaLog;
use wardbell_connectors::log::memory::MemoryLog;
use wardbell_connectors::log::{
    Committed, Isolation, Log, METADATA_MAX, Member, MemberEvent, Membership, Outgoing, Progress, Record, Remedy,
    StampedBy, TopicPartition, TopicSpec,
};
use wardbell_kafka_server as server;

const PATIENCE: Duration = Duration::from_secs(30);

fn memory() -> Arc<dyn Log> {
    Arc::new(MemoryLog::new(Arc::new(SystemClock)))
}

fn kafka(test: &str) -> Option<Arc<dyn Log>> {
    let bootstrap = server::bootstrap(test)?.to_owned();
    let options = BTreeMap::from([("bootstrap.servers".to_owned(), bootstrap)]);
    Some(Arc::new(KafkaLog::new(options).expect("the options are valid")))
}

/// Every test of the suite, on both logs.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod on_memory { $(#[test] fn $name() { super::$name(super::memory()); })* }
        mod on_kafka {
            $(#[test] fn $name() {
                if let Some(log) = super::kafka(stringify!($name)) {
                    super::$name(log);
                }
            })*
        }
    };
}

suite!(
    records_of_a_partition_are_read_in_the_order_they_were_appended,
    append_times_are_the_brokers_or_the_producers_as_the_topic_says,
    a_transaction_shows_records_and_offset_together,
    a_transaction_of_a_fenced_owner_shows_nothing,
    partitions_go_to_members_and_come_back_when_one_leaves,
    a_member_that_ends_without_answering_an_event_leaves_nothing_hanging,
    a_member_goes_on_from_what_its_group_committed,
    metadata_is_kept_beside_a_committed_offset_until_the_next_commit,
    metadata_is_committed_with_a_transaction,
    an_outsider_commits_for_a_group_while_others_are_members,
    what_is_deleted_is_not_read_and_its_reader_is_told,
    a_paused_member_gets_events_and_skips_nothing,
    topics_that_do_not_fit_are_refused_with_the_remedy,
    a_reader_of_its_own_gets_its_partition_only,
);

fn spec(name: &str, partitions: i32, stamped_by: StampedBy) -> TopicSpec {
    TopicSpec { name: name.to_owned(), partitions, stamped_by, retention: None, create: true, any_partitions: false }
}

fn topic(log: &dyn Log, partitions: i32) -> String {
    let name = server::fresh("suite");
    log.prepare(&[spec(&name, partitions, StampedBy::Broker)]).expect("the topic is made");
    name
}

fn outgoing(topic: &str, partition: i32, value: &str) -> Outgoing {
    Outgoing {
        topic: topic.to_owned(),
        partition,
        key: Some(b"key".to_vec()),
        value: Some(value.as_bytes().to_vec()),
        headers: vec![("header".to_owned(), b"x".to_vec())],
        time_us: None,
    }
}

fn append(log: &dyn Log, records: &[Outgoing]) -> Vec<wardbell_connectors::log::Appended> {
    let mut appender = log.appender().expect("an appender");
    for (token, record) in records.iter().enumerate() {
        appender.append(record, token as u64).expect("taken");
    }
    let mut outcomes = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while outcomes.len() < records.len() && Instant::now() < deadline {
        appender.outcomes(Duration::from_millis(20), &mut outcomes);
    }
    outcomes.sort_by_key(|(token, _)| *token);
    outcomes.into_iter().map(|(_, outcome)| outcome.expect("appended")).collect()
}

fn read_all(log: &dyn Log, topic: &str, partition: i32, wanted: usize) -> Vec<Record> {
    let from = TopicPartition::new(topic, partition);
    let mut reader = log.reader(&from, 0, Isolation::ReadCommitted).expect("a reader");
    let mut records = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while records.len() < wanted && Instant::now() < deadline {
        reader.read(100, Duration::from_millis(50), &mut records).expect("reads");
    }
    // What must not be there is waited for as well.
    reader.read(100, Duration::from_millis(300), &mut records).expect("reads");
    records
}

fn values(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8(record.value.clone().expect("a value")).expect("text")).collect()
}

fn join(log: &dyn Log, group: &str, topic: &str) -> Box<dyn Member> {
    let membership = Membership {
        group: group.to_owned(),
        topics: vec![topic.to_owned()],
        isolation: Isolation::ReadCommitted,
        instance: None,
    };
    log.join(&membership).expect("joins")
}

/// Serves members until `done` says so; assigned partitions are started at what is committed, or at 0.
fn serve(members: &mut [&mut Box<dyn Member>], owned: &mut [Vec<i32>], done: impl Fn(&[Vec<i32>]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(owned) {
        assert!(Instant::now() < deadline, "the group does not settle: {owned:?}");
        for (i, member) in members.iter_mut().enumerate() {
            for event in member.events(Duration::from_millis(20)).expect("events") {
                match event {
                    MemberEvent::Assigned(partitions) => {
                        let committed = member.committed(&partitions).expect("committed");
                        let starts: Vec<_> =
                            partitions.iter().cloned().zip(committed.iter().map(|c| c.unwrap_or(0))).collect();
                        member.start(&starts).expect("starts");
                        owned[i].extend(partitions.iter().map(|partition| partition.partition));
                    }
                    MemberEvent::Revoked(partitions) | MemberEvent::Lost(partitions) => {
                        member.stop(&partitions).expect("stops");
                        owned[i].retain(|known| !partitions.iter().any(|partition| partition.partition == *known));
                    }
                }
            }
        }
    }
}

fn records_of_a_partition_are_read_in_the_order_they_were_appended(log: Arc<dyn Log>) {
    let topic = topic(&*log, 2);
    let records: Vec<Outgoing> = (0..300).map(|i| outgoing(&topic, i % 2, &i.to_string())).collect();
    let appended = append(&*log, &records);
    for (i, appended) in appended.iter().enumerate() {
        assert_eq!((appended.partition, appended.offset), (i as i32 % 2, i as i64 / 2));
    }
    let read = read_all(&*log, &topic, 1, 150);
    let expected: Vec<String> = (0..300).filter(|i| i % 2 == 1).map(|i| i.to_string()).collect();
    assert_eq!(values(&read), expected);
    assert_eq!(read[0].key.as_deref(), Some(&b"key"[..]));
    assert_eq!(read[0].header("header"), Some(&b"x"[..]));
    assert_eq!(log.offsets(&topic, 1).expect("offsets"), (0, 150));
}

fn append_times_are_the_brokers_or_the_producers_as_the_topic_says(log: Arc<dyn Log>) {
    let by_broker = topic(&*log, 1);
    let by_producer = server::fresh("suite");
    log.prepare(&[spec(&by_producer, 1, StampedBy::Producer)]).expect("the topic is made");
    let stamped = |topic: &str| Outgoing { time_us: Some(1_700_000_000_123_000), ..outgoing(topic, 0, "x") };
    let appended = append(&*log, &[stamped(&by_broker), stamped(&by_producer)]);
    let read = (read_all(&*log, &by_broker, 0, 1), read_all(&*log, &by_producer, 0, 1));
    assert_eq!(
        appended[0].append_us,
        Some(read.0[0].time_us),
        "the append time is told to the writer and to the reader"
    );
    assert_eq!(read.0[0].append_us, Some(read.0[0].time_us));
    assert!(read.0[0].time_us > 1_700_000_000_123_000);
    assert_eq!(read.1[0].time_us, 1_700_000_000_123_000);
    assert_eq!(log.describe(&by_producer).expect("described"), (1, StampedBy::Producer));
    assert_eq!(log.describe(&by_broker).expect("described"), (1, StampedBy::Broker));
}

fn a_transaction_shows_records_and_offset_together(log: Arc<dyn Log>) {
    let (source, target) = (topic(&*log, 1), topic(&*log, 1));
    append(&*log, &[outgoing(&source, 0, "a"), outgoing(&source, 0, "b")]);
    let group = server::fresh("group");
    let mut member = join(&*log, &group, &source);
    serve(&mut [&mut member], &mut [Vec::new()], |owned| owned[0].len() == 1);
    let handle = member.group();
    let mut producer = log.transactional(&server::fresh("transactions")).expect("a producer");
    let position = TopicPartition::new(&source, 0);
    let progress = Progress { group: &handle, position: position.clone(), next_offset: 2, metadata: "" };
    producer.commit(&[outgoing(&target, 0, "one"), outgoing(&target, 0, "two")], Some(&progress)).expect("commits");
    assert_eq!(values(&read_all(&*log, &target, 0, 2)), ["one", "two"]);
    assert_eq!(log.committed(&group, std::slice::from_ref(&position)).expect("committed"), [Some(2)]);
    // Offsets alone are a transaction as well; nothing at all is refused.
    let progress = Progress { group: &handle, position: position.clone(), next_offset: 3, metadata: "" };
    producer.commit(&[], Some(&progress)).expect("commits offsets alone");
    assert_eq!(log.committed(&group, &[position]).expect("committed"), [Some(3)]);
    assert_eq!(producer.commit(&[], None).map_err(|error| error.remedy), Err(Remedy::Refuse));
}

fn a_transaction_of_a_fenced_owner_shows_nothing(log: Arc<dyn Log>) {
    let (source, target) = (topic(&*log, 1), topic(&*log, 1));
    let group = server::fresh("group");
    let mut member = join(&*log, &group, &source);
    serve(&mut [&mut member], &mut [Vec::new()], |owned| owned[0].len() == 1);
    let handle = member.group();
    let id = server::fresh("transactions");
    let mut old = log.transactional(&id).expect("a producer");
    let mut new = log.transactional(&id).expect("the new owner's producer");
    let position = TopicPartition::new(&source, 0);
    let progress = |next_offset| Progress { group: &handle, position: position.clone(), next_offset, metadata: "" };
    let refused = old.commit(&[outgoing(&target, 0, "old")], Some(&progress(1)));
    assert_eq!(refused.map_err(|error| error.remedy), Err(Remedy::Fenced));
    new.commit(&[outgoing(&target, 0, "new")], Some(&progress(2))).expect("the new owner commits");
    assert_eq!(values(&read_all(&*log, &target, 0, 1)), ["new"]);
    assert_eq!(log.committed(&group, std::slice::from_ref(&position)).expect("committed"), [Some(2)]);
}

fn partitions_go_to_members_and_come_back_when_one_leaves(log: Arc<dyn Log>) {
    let topic = topic(&*log, 4);
    let group = server::fresh("group");
    let mut first = join(&*log, &group, &topic);
    let mut owned = vec![Vec::new(), Vec::new()];
    serve(&mut [&mut first], &mut owned, |owned| owned[0].len() == 4);
    let mut second = join(&*log, &group, &topic);
    serve(&mut [&mut first, &mut second], &mut owned, |owned| owned[0].len() == 2 && owned[1].len() == 2);
    let mut all: Vec<i32> = owned.concat();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3], "each partition has one owner");
    second.leave();
    serve(&mut [&mut first], &mut owned[..1], |owned| owned[0].len() == 4);
}

fn a_member_that_ends_without_answering_an_event_leaves_nothing_hanging(log: Arc<dyn Log>) {
    let topic = topic(&*log, 2);
    let group = server::fresh("group");
    let mut member = join(&*log, &group, &topic);
    let deadline = Instant::now() + PATIENCE;
    let mut events = Vec::new();
    while events.is_empty() && Instant::now() < deadline {
        events = member.events(Duration::from_millis(50)).expect("events");
    }
    assert!(matches!(&events[..], [MemberEvent::Assigned(partitions)] if partitions.len() == 2), "{events:?}");
    // Whoever takes an event and fails before it has answered drops the member: that must end, and free its place.
    drop(member);
    let mut next = join(&*log, &group, &topic);
    serve(&mut [&mut next], &mut [Vec::new()], |owned| owned[0].len() == 2);
}

fn a_member_goes_on_from_what_its_group_committed(log: Arc<dyn Log>) {
    let topic = topic(&*log, 1);
    append(&*log, &(0..10).map(|i| outgoing(&topic, 0, &i.to_string())).collect::<Vec<_>>());
    let group = server::fresh("group");
    let mut member = join(&*log, &group, &topic);
    serve(&mut [&mut member], &mut [Vec::new()], |owned| owned[0].len() == 1);
    let mut records = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while records.len() < 10 && Instant::now() < deadline {
        member.read(10, Duration::from_millis(50), &mut records).expect("reads");
    }
    assert_eq!(records.len(), 10);
    member.commit(&[(TopicPartition::new(&topic, 0), 4)]).expect("commits");
    member.leave();
    let mut member = join(&*log, &group, &topic);
    serve(&mut [&mut member], &mut [Vec::new()], |owned| owned[0].len() == 1);
    let mut again = Vec::new();
    while again.len() < 6 && Instant::now() < deadline {
        member.read(10, Duration::from_millis(50), &mut again).expect("reads");
    }
    assert_eq!(again.first().map(|(_, record)| record.offset), Some(4));
    member.leave();
}

fn metadata_is_kept_beside_a_committed_offset_until_the_next_commit(log: Arc<dyn Log>) {
    let topic = topic(&*log, 2);
    let group = server::fresh("group");
    let partitions = [TopicPartition::new(&topic, 0), TopicPartition::new(&topic, 1)];
    let mut member = join(&*log, &group, &topic);
    serve(&mut [&mut member], &mut [Vec::new()], |owned| owned[0].len() == 2);
    assert_eq!(member.committed_with_metadata(&partitions).expect("asked"), [None, None]);
    let longest = "x".repeat(METADATA_MAX);
    let committed = |next_offset, metadata: &str| Committed { next_offset, metadata: metadata.to_owned() };
    let positions = [(partitions[0].clone(), committed(4, "ranges")), (partitions[1].clone(), committed(0, &longest))];
    member.commit_with_metadata(&positions).expect("commits");
    member.leave();
    let mut member = join(&*log, &group, &topic);
    serve(&mut [&mut member], &mut [Vec::new()], |owned| owned[0].len() == 2);
    let kept = member.committed_with_metadata(&partitions).expect("asked");
    assert_eq!(kept, [Some(committed(4, "ranges")), Some(committed(0, &longest))]);
    assert_eq!(log.committed(&group, &partitions).expect("asked"), [Some(4), Some(0)]);
    member.commit(&[(partitions[0].clone(), 5)]).expect("commits");
    let kept = member.committed_with_metadata(&partitions[..1]).expect("asked");
    assert_eq!(kept, [Some(committed(5, ""))], "a commit without metadata leaves none behind");
    member.leave();
}

fn metadata_is_committed_with_a_transaction(log: Arc<dyn Log>) {
    let (source, target) = (topic(&*log, 1), topic(&*log, 1));
    let group = server::fresh("group");
    let position = TopicPartition::new(&source, 0);
    let partitions = std::slice::from_ref(&position);
    let mut member = join(&*log, &group, &source);
    serve(&mut [&mut member], &mut [Vec::new()], |owned| owned[0].len() == 1);
    let handle = member.group();
    let mut producer = log.transactional(&server::fresh("transactions")).expect("a producer");
    let longest = "x".repeat(METADATA_MAX);
    for (next_offset, metadata) in [(1, "mark"), (2, ""), (3, longest.as_str())] {
        let progress = Progress { group: &handle, position: position.clone(), next_offset, metadata };
        producer.commit(&[outgoing(&target, 0, "one")], Some(&progress)).expect("commits");
        let expected = Committed { next_offset, metadata: metadata.to_owned() };
        let asked = log.committed_with_metadata(&group, partitions).expect("asked");
        assert_eq!(asked, [Some(expected.clone())], "as anybody sees it");
        assert_eq!(member.committed_with_metadata(partitions).expect("asked"), [Some(expected)], "as a member sees it");
    }
    member.leave();
}

fn an_outsider_commits_for_a_group_while_others_are_members(log: Arc<dyn Log>) {
    let source = topic(&*log, 1);
    let group = server::fresh("group");
    let position = TopicPartition::new(&source, 0);
    let outsider = log.outsider(&group).expect("a place outside");
    let mut producer = log.transactional(&server::fresh("transactions")).expect("a producer");
    let mut commit = |next_offset| {
        let progress = Progress { group: &outsider, position: position.clone(), next_offset, metadata: "outside" };
        producer.commit(&[], Some(&progress)).expect("commits");
    };
    commit(3);
    let mut member = join(&*log, &group, &source);
    serve(&mut [&mut member], &mut [Vec::new()], |owned| owned[0].len() == 1);
    commit(5);
    let committed = log.committed_with_metadata(&group, std::slice::from_ref(&position)).expect("asked");
    assert_eq!(committed, [Some(Committed { next_offset: 5, metadata: "outside".to_owned() })]);
    // The member is none the worse.
    member.commit(&[(position.clone(), 6)]).expect("commits");
    assert_eq!(log.committed(&group, &[position]).expect("asked"), [Some(6)]);
}

fn what_is_deleted_is_not_read_and_its_reader_is_told(log: Arc<dyn Log>) {
    let topic = topic(&*log, 1);
    append(&*log, &(0..10).map(|i| outgoing(&topic, 0, &i.to_string())).collect::<Vec<_>>());
    log.delete_before(&topic, 0, 4).expect("deleted");
    assert_eq!(log.offsets(&topic, 0).expect("offsets"), (4, 10));
    // What is deleted already stays so.
    log.delete_before(&topic, 0, 2).expect("nothing to delete");
    assert_eq!(log.offsets(&topic, 0).expect("offsets"), (4, 10));
    let from = TopicPartition::new(&topic, 0);
    let deadline = Instant::now() + PATIENCE;
    let mut reader = log.reader(&from, 0, Isolation::ReadCommitted).expect("a reader");
    let mut records = Vec::new();
    let told = loop {
        assert!(Instant::now() < deadline, "the reader is not told");
        if let Err(error) = reader.read(100, Duration::from_millis(50), &mut records) {
            break error;
        }
    };
    assert_eq!((told.remedy, records.len()), (Remedy::Restart, 0), "{told}");
    let mut reader = log.reader(&from, 4, Isolation::ReadCommitted).expect("a reader");
    while records.len() < 6 && Instant::now() < deadline {
        reader.read(100, Duration::from_millis(50), &mut records).expect("reads");
    }
    assert_eq!(values(&records), ["4", "5", "6", "7", "8", "9"]);
    log.delete_before(&topic, 0, 10).expect("all of it is deleted");
    assert_eq!(log.offsets(&topic, 0).expect("offsets"), (10, 10));
}

/// A transaction that its producer left open: readers come as far as its first record, and no further until somebody takes
/// its id over.
fn an_open_transaction_holds_readers_back(log: &dyn Log, leave_open: impl FnOnce(&str, &Outgoing)) {
    let topic = topic(log, 1);
    let id = server::fresh("transactions");
    append(log, &[outgoing(&topic, 0, "before")]);
    leave_open(&id, &outgoing(&topic, 0, "open"));
    append(log, &[outgoing(&topic, 0, "after")]);
    assert_eq!(values(&read_all(log, &topic, 0, 1)), ["before"], "what comes after is held back");
    assert_eq!(log.offsets(&topic, 0).expect("offsets"), (0, 1), "the end is where readers come to");
    let from = TopicPartition::new(&topic, 0);
    let mut reader = log.reader(&from, 0, Isolation::ReadUncommitted).expect("a reader");
    let mut all = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while all.len() < 3 && Instant::now() < deadline {
        reader.read(100, Duration::from_millis(50), &mut all).expect("reads");
    }
    assert_eq!(values(&all), ["before", "open", "after"], "who wants to see all sees it");
    log.transactional(&id).expect("a new owner");
    assert_eq!(values(&read_all(log, &topic, 0, 2)), ["before", "after"]);
    assert_eq!(log.offsets(&topic, 0).expect("offsets"), (0, 4), "the end of the transaction takes an offset");
}

#[test]
fn an_open_transaction_holds_readers_back_on_memory() {
    let log = MemoryLog::new(Arc::new(SystemClock));
    an_open_transaction_holds_readers_back(&log, |id, record| {
        log.abandon_transaction(id, std::slice::from_ref(record)).expect("left open");
    });
}

#[test]
fn an_open_transaction_holds_readers_back_on_kafka() {
    let test = "an_open_transaction_holds_readers_back_on_kafka";
    let (Some(log), Some(bootstrap)) = (kafka(test), server::bootstrap(test)) else {
        return;
    };
    an_open_transaction_holds_readers_back(&*log, |id, record| {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("transactional.id", id)
            .set("transaction.timeout.ms", "60000")
            .create()
            .expect("a producer");
        producer.init_transactions(PATIENCE).expect("ready");
        producer.begin_transaction().expect("begun");
        let value = record.value.as_deref().expect("a value");
        let to = BaseRecord::<[u8], [u8]>::to(&record.topic).partition(record.partition).payload(value);
        producer.send(to).map_err(|(error, _)| error).expect("taken");
        producer.flush(PATIENCE).expect("written");
    });
}

fn a_paused_member_gets_events_and_skips_nothing(log: Arc<dyn Log>) {
    let topic = topic(&*log, 1);
    let group = server::fresh("group");
    let mut member = join(&*log, &group, &topic);
    serve(&mut [&mut member], &mut [Vec::new()], |owned| owned[0].len() == 1);
    append(&*log, &(0..5).map(|i| outgoing(&topic, 0, &i.to_string())).collect::<Vec<_>>());
    let mut records = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while records.len() < 5 && Instant::now() < deadline {
        member.read(5, Duration::from_millis(50), &mut records).expect("reads");
    }
    member.pause(true).expect("pauses");
    append(&*log, &(5..20).map(|i| outgoing(&topic, 0, &i.to_string())).collect::<Vec<_>>());
    for _ in 0..20 {
        assert_eq!(member.events(Duration::from_millis(20)).expect("events"), []);
    }
    member.pause(false).expect("resumes");
    while records.len() < 20 && Instant::now() < deadline {
        member.read(20, Duration::from_millis(50), &mut records).expect("reads");
    }
    let offsets: Vec<i64> = records.iter().map(|(_, record)| record.offset).collect();
    assert_eq!(offsets, (0..20).collect::<Vec<i64>>());
    member.leave();
}

fn topics_that_do_not_fit_are_refused_with_the_remedy(log: Arc<dyn Log>) {
    let topic = topic(&*log, 2);
    let refused = log.prepare(&[spec(&topic, 3, StampedBy::Broker)]).expect_err("another partition count");
    assert_eq!(refused.remedy, Remedy::Refuse);
    assert!(refused.to_string().contains(&topic) && refused.to_string().contains("2 partitions"), "{refused}");
    let missing = TopicSpec { create: false, ..spec(&server::fresh("missing"), 1, StampedBy::Broker) };
    let refused = log.prepare(&[missing]).expect_err("must not be made");
    assert!(refused.to_string().contains("does not exist"), "{refused}");
    log.prepare(&[spec(&topic, 2, StampedBy::Broker)]).expect("what fits is taken as it is");
}

fn a_reader_of_its_own_gets_its_partition_only(log: Arc<dyn Log>) {
    let topic = topic(&*log, 2);
    let records: Vec<Outgoing> = (0..40).map(|i| outgoing(&topic, i % 2, &i.to_string())).collect();
    append(&*log, &records);
    let group = server::fresh("group");
    let mut member = join(&*log, &group, &topic);
    let deadline = Instant::now() + PATIENCE;
    let mut readers = Vec::new();
    while readers.len() < 2 && Instant::now() < deadline {
        for event in member.events(Duration::from_millis(20)).expect("events") {
            if let MemberEvent::Assigned(partitions) = event {
                let starts: Vec<_> = partitions.into_iter().map(|partition| (partition, 3)).collect();
                readers.extend(member.start_split(&starts).expect("readers"));
            }
        }
    }
    assert_eq!(readers.len(), 2);
    for reader in &mut readers {
        let mut records = Vec::new();
        while records.len() < 17 && Instant::now() < deadline {
            member.events(Duration::ZERO).expect("events");
            reader.read(100, Duration::from_millis(20), &mut records).expect("reads");
        }
        let offsets: Vec<i64> = records.iter().map(|record| record.offset).collect();
        assert_eq!(offsets, (3..20).collect::<Vec<i64>>());
        assert!(records.iter().all(|record| record.partition == reader.position().partition));
    }
    member.leave();
}
