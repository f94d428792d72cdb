//! What goes wrong with a broker and its clients, as far as the log in memory can be made to do it: processes that are
//! killed or silent, appends that take their time, outages, topics made anew, transactions whose end is not known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wardbell_connectors::clock::SystemClock;
use wardbell_connectors::log::memory::{Kind, MemoryLog};
use wardbell_connectors::log::{
    Appended, Appender, Isolation, Log, LogError, Member, MemberEvent, Membership, Outgoing, Progress, Record, Remedy,
    StampedBy, TopicPartition, TopicSpec,
};

const TOPIC: &str = "topic";
const GROUP: &str = "group";
const PATIENCE: Duration = Duration::from_secs(30);
/// Long enough for anything that is not held back.
const MOMENT: Duration = Duration::from_millis(50);

fn log(n_partitions: i32) -> MemoryLog {
    let log = MemoryLog::new(Arc::new(SystemClock));
    let spec = TopicSpec {
        name: TOPIC.to_owned(),
        partitions: n_partitions,
        stamped_by: StampedBy::Broker,
        retention: None,
        create: true,
        any_partitions: false,
    };
    log.prepare(&[spec]).expect("the topic is made");
    log
}

fn outgoing(value: &str) -> Outgoing {
    Outgoing { topic: TOPIC.to_owned(), value: Some(value.as_bytes().to_vec()), ..Outgoing::default() }
}

fn values(records: &[Record]) -> Vec<String> {
    let value = |record: &Record| String::from_utf8(record.value.clone().unwrap_or_default()).expect("text");
    records.iter().map(value).collect()
}

fn visible(log: &MemoryLog) -> Vec<String> {
    values(&log.dump(TOPIC, 0))
}

fn join(log: &MemoryLog, instance: Option<&str>) -> Box<dyn Member> {
    let membership = Membership {
        group: GROUP.to_owned(),
        topics: vec![TOPIC.to_owned()],
        isolation: Isolation::ReadCommitted,
        instance: instance.map(str::to_owned),
    };
    log.join(&membership).expect("joins")
}

fn events(member: &mut dyn Member) -> Vec<MemberEvent> {
    member.events(MOMENT).expect("events")
}

fn places(partitions: &[i32]) -> Vec<TopicPartition> {
    partitions.iter().map(|partition| TopicPartition::new(TOPIC, *partition)).collect()
}

fn assigned(partitions: &[i32]) -> Vec<MemberEvent> {
    vec![MemberEvent::Assigned(places(partitions))]
}

fn remedy<T: std::fmt::Debug>(result: Result<T, LogError>) -> Remedy {
    result.expect_err("must fail").remedy
}

type Outcomes = Vec<(u64, Result<Appended, LogError>)>;

/// All outcomes, as tokens and offsets.
fn outcomes(appender: &mut dyn Appender, n: usize) -> Vec<(u64, Option<i64>)> {
    let mut outcomes: Outcomes = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while outcomes.len() < n && Instant::now() < deadline {
        appender.outcomes(MOMENT, &mut outcomes);
    }
    let offset = |(token, outcome): (u64, Result<Appended, LogError>)| (token, outcome.ok().map(|done| done.offset));
    outcomes.into_iter().map(offset).collect()
}

#[test]
fn a_killed_process_does_nothing_more_and_keeps_its_place_until_it_is_missed() {
    let log = log(2);
    let killed = log.client("a");
    let mut member = join(&killed, None);
    assert_eq!(events(&mut *member), assigned(&[0, 1]));
    let mut producer = killed.transactional("id").expect("a producer");
    let mut appender = killed.appender().expect("an appender");
    log.kill("a");
    assert_eq!(remedy(member.events(MOMENT)), Remedy::Restart);
    assert_eq!(remedy(member.commit(&[(places(&[0])[0].clone(), 1)])), Remedy::Restart);
    assert_eq!(remedy(producer.commit(&[outgoing("x")], None)), Remedy::Restart);
    assert_eq!(remedy(appender.append(&outgoing("x"), 1)), Remedy::Restart);
    assert_eq!(remedy(killed.offsets(TOPIC, 0)), Remedy::Restart);
    drop(member);
    assert!(log.dump_all(TOPIC, 0).is_empty());

    let mut other = join(&log.client("b"), None);
    assert_eq!(events(&mut *other), [], "its partitions are still its own");
    log.expire("a");
    let mut got: Vec<TopicPartition> = Vec::new();
    for event in events(&mut *other) {
        let MemberEvent::Assigned(partitions) = event else {
            panic!("{event:?}");
        };
        got.extend(partitions);
    }
    assert_eq!(got, places(&[0, 1]));
    // The same name is another process from now on.
    let again = log.client("a");
    assert_eq!(again.offsets(TOPIC, 0).expect("asked"), (0, 0));
}

#[test]
fn a_member_that_was_silent_hears_that_it_lost_all_and_joins_again() {
    let log = log(2);
    let client = log.client("a");
    let mut member = join(&client, None);
    assert_eq!(events(&mut *member), assigned(&[0, 1]));
    log.expire("a");
    let position = places(&[0])[0].clone();
    assert_eq!(remedy(member.commit(&[(position.clone(), 1)])), Remedy::Fenced);
    let handle = member.group();
    let progress = Progress { group: &handle, position: position.clone(), next_offset: 1, metadata: "" };
    let mut producer = client.transactional("id").expect("a producer");
    assert_eq!(remedy(producer.commit(&[outgoing("x")], Some(&progress))), Remedy::Fenced);
    assert_eq!(visible(&log), [] as [&str; 0], "nothing of the transaction is left");
    assert_eq!(log.committed(GROUP, &places(&[0])).expect("asked"), [None]);

    assert_eq!(events(&mut *member), [MemberEvent::Lost(places(&[0, 1]))]);
    assert_eq!(events(&mut *member), [], "it has them in hand still");
    member.stop(&places(&[0, 1])).expect("given up");
    assert_eq!(events(&mut *member), assigned(&[0, 1]));
    member.commit(&[(position, 1)]).expect("it is a member again");
}

#[test]
fn a_member_of_the_same_instance_takes_the_place_and_fences_the_one_before() {
    let log = log(3);
    let mut old = join(&log.client("old"), Some("one"));
    assert_eq!(events(&mut *old), assigned(&[0, 1, 2]));
    let mut other = join(&log.client("other"), Some("two"));
    for event in events(&mut *old) {
        let MemberEvent::Revoked(partitions) = event else {
            panic!("{event:?}");
        };
        old.stop(&partitions).expect("given back");
    }
    assert_eq!(events(&mut *other), assigned(&[2]));
    let mut new = join(&log.client("new"), Some("one"));
    assert_eq!(events(&mut *new), assigned(&[0, 1]), "the place is taken with its partitions");
    assert_eq!(events(&mut *other), []);
    assert_eq!(remedy(old.commit(&[(places(&[0])[0].clone(), 1)])), Remedy::Fenced);
    assert_eq!(events(&mut *old), [MemberEvent::Lost(places(&[0, 1]))]);
    old.stop(&places(&[0, 1])).expect("given up");
    assert_eq!(remedy(old.events(MOMENT)), Remedy::Fenced);
    assert_eq!(events(&mut *new), [], "the new one is not disturbed");
}

#[test]
fn a_partition_that_is_stopped_unasked_stays_with_its_member() {
    let log = log(1);
    let (mut member, mut other) = (join(&log.client("a"), None), join(&log.client("b"), None));
    assert_eq!(events(&mut *member), assigned(&[0]));
    member.stop(&places(&[0])).expect("stopped");
    assert_eq!((events(&mut *member), events(&mut *other)), (vec![], vec![]));
    member.leave();
    assert_eq!(events(&mut *other), assigned(&[0]));
}

#[test]
fn appends_arrive_in_order_after_their_time() {
    let log = log(1);
    log.set_append_delay(Duration::from_millis(20)..=Duration::from_millis(120));
    let mut appender = log.client("a").appender().expect("an appender");
    for token in 0..20 {
        appender.append(&outgoing(&token.to_string()), token).expect("taken");
    }
    assert_eq!(appender.in_flight(), 20);
    // A reader that waits for long hears of them at once.
    let from = TopicPartition::new(TOPIC, 0);
    let mut reader = log.reader(&from, 0, Isolation::ReadCommitted).expect("a reader");
    let mut records = Vec::new();
    let begun = Instant::now();
    while records.len() < 20 {
        assert!(begun.elapsed() < PATIENCE, "{} of 20 are there", records.len());
        reader.read(20, PATIENCE, &mut records).expect("reads");
    }
    let expected: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    assert_eq!(values(&records), expected);
    let told: Vec<(u64, Option<i64>)> = (0..20).map(|i| (i, Some(i as i64))).collect();
    assert_eq!(outcomes(&mut *appender, 20), told);
    assert_eq!(appender.in_flight(), 0);
}

#[test]
fn of_what_a_killed_process_had_on_its_way_the_first_arrive() {
    let mut lengths = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let log = log(1);
        log.set_append_delay(Duration::from_millis(5)..=Duration::from_millis(5));
        let mut appender = log.client("a").appender().expect("an appender");
        for token in 0..4 {
            appender.append(&outgoing(&token.to_string()), token).expect("taken");
        }
        log.kill("a");
        std::thread::sleep(Duration::from_millis(10));
        let landed = visible(&log);
        let expected: Vec<String> = (0..landed.len()).map(|i| i.to_string()).collect();
        assert_eq!(landed, expected, "no gap");
        lengths.insert(landed.len());
    }
    assert!(lengths.len() > 1, "some arrive, some do not: {lengths:?}");
}

#[test]
fn an_outage_is_told_to_who_asks_and_nothing_is_lost_in_it() {
    let log = log(1);
    let client = log.client("a");
    let mut member = join(&client, None);
    assert_eq!(events(&mut *member), assigned(&[0]));
    let mut appender = client.appender().expect("an appender");
    appender.append(&outgoing("before"), 0).expect("taken");
    log.set_available(false);
    appender.append(&outgoing("during"), 1).expect("taken");
    assert_eq!(remedy(client.offsets(TOPIC, 0)), Remedy::Retry);
    assert_eq!(remedy(member.commit(&[(places(&[0])[0].clone(), 1)])), Remedy::Retry);
    assert_eq!(events(&mut *member), [], "a member waits");
    let from = TopicPartition::new(TOPIC, 0);
    member.start(&[(from.clone(), 0)]).expect("started");
    let mut records = Vec::new();
    member.read(10, MOMENT, &mut records).expect("reading waits as well");
    assert_eq!(records, []);
    let reading = std::thread::spawn(move || {
        let mut records = Vec::new();
        while records.len() < 2 {
            member.read(10, PATIENCE, &mut records).expect("reads");
        }
        records.into_iter().map(|(_, record)| record).collect::<Vec<_>>()
    });
    log.set_available(true);
    assert_eq!(values(&reading.join().expect("read")), ["before", "during"]);
    assert_eq!(outcomes(&mut *appender, 2), [(0, Some(0)), (1, Some(1))]);
    assert_eq!(client.offsets(TOPIC, 0).expect("asked"), (0, 2));
}

#[test]
fn a_transaction_waits_for_a_short_outage() {
    let log = log(1);
    let mut producer = log.client("a").transactional("id").expect("a producer");
    log.set_available(false);
    let committing = std::thread::spawn(move || producer.commit(&[outgoing("x")], None));
    std::thread::sleep(MOMENT);
    log.set_available(true);
    committing.join().expect("no panic").expect("committed");
    assert_eq!(visible(&log), ["x"]);
}

#[test]
fn a_topic_made_anew_is_empty_and_its_readers_are_told() {
    let log = log(1);
    let mut appender = log.appender().expect("an appender");
    for token in 0..3 {
        appender.append(&outgoing("x"), token).expect("taken");
    }
    let mut member = join(&log, None);
    assert_eq!(events(&mut *member), assigned(&[0]));
    let from = TopicPartition::new(TOPIC, 0);
    member.commit(&[(from.clone(), 3)]).expect("commits");
    let mut reader = log.reader(&from, 3, Isolation::ReadCommitted).expect("a reader");
    log.abandon_transaction("id", &[outgoing("left open")]).expect("left open");
    log.recreate(TOPIC);
    assert_eq!(log.offsets(TOPIC, 0).expect("asked"), (0, 0));
    assert_eq!(log.committed(GROUP, std::slice::from_ref(&from)).expect("asked"), [None]);
    assert_eq!(remedy(reader.read(10, MOMENT, &mut Vec::new())), Remedy::Restart);
    appender.append(&outgoing("anew"), 3).expect("taken");
    log.transactional("id").expect("a new owner");
    assert_eq!(log.dump_all(TOPIC, 0).len(), 1, "what was open before has no end here");
    assert_eq!(visible(&log), ["anew"]);
}

#[test]
fn a_transaction_is_readable_when_it_has_ended_and_its_end_takes_an_offset() {
    let log = log(1);
    let mut producer = log.client("a").transactional("id").expect("a producer");
    let stamped = producer.warm_up(&TopicPartition::new(TOPIC, 0)).expect("warm");
    producer.commit(&[outgoing("one"), outgoing("two")], None).expect("commits");
    log.abandon_transaction("other", &[outgoing("open")]).expect("left open");
    let all = log.dump_all(TOPIC, 0);
    let kinds: Vec<Kind> = all.iter().map(|(_, kind)| *kind).collect();
    use Kind::{Aborted, Committed, Marker, Open};
    assert_eq!(kinds, [Aborted, Marker, Committed, Committed, Marker, Open]);
    assert_eq!(stamped, Some(all[0].0.time_us), "the append time of the first");
    let offsets: Vec<i64> = all.iter().map(|(record, _)| record.offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5]);
    assert_eq!(visible(&log), ["one", "two"]);
}

/// Faults at the steps of appends and transactions, in simulated time.
#[cfg(feature = "simulation")]
mod simulated {
    use wardbell_connectors::runtime::fault::{Action, Fault};
    use wardbell_connectors::runtime::simulated::World;
    use wardbell_connectors::runtime::{Instant, sleep};

    use super::*;

    fn simulate(root: impl FnOnce(World) + Send + 'static) {
        World::run(1, root).expect("the simulation ends");
    }

    fn arm(world: &World, point: &'static str, action: Action) {
        world.arm(Fault { point, action });
    }

    /// A member with its partition, for transactions that commit offsets.
    fn member(log: &MemoryLog) -> Box<dyn Member> {
        let mut member = join(log, None);
        assert_eq!(events(&mut *member), assigned(&[0]));
        member
    }

    fn commit(client: &MemoryLog, member: &dyn Member, next_offset: i64, value: &str) -> Result<(), LogError> {
        let handle = member.group();
        let progress = Progress { group: &handle, position: places(&[0])[0].clone(), next_offset, metadata: "" };
        client.transactional("id")?.commit(&[outgoing(value)], Some(&progress))
    }

    fn committed(log: &MemoryLog) -> Option<i64> {
        log.committed(GROUP, &places(&[0])).expect("asked")[0]
    }

    #[test]
    fn a_transaction_that_fails_before_its_commit_leaves_nothing_and_may_be_sent_again() {
        for point in ["produce.before", "produce.after", "offsets.before", "offsets.after"] {
            simulate(move |world| {
                let log = log(1);
                let client = log.client("a");
                let member = member(&client);
                arm(&world, point, Action::Fail);
                assert_eq!(remedy(commit(&client, &*member, 1, "x")), Remedy::Retry, "{point}");
                assert_eq!((visible(&log).len(), committed(&log)), (0, None), "{point}");
                commit(&client, &*member, 1, "x").expect("the same again");
                assert_eq!((visible(&log), committed(&log)), (vec!["x".to_owned()], Some(1)), "{point}");
                assert_eq!(world.happened().len(), 1);
            });
        }
    }

    #[test]
    fn the_end_of_a_transaction_can_be_unknown_either_way() {
        for (point, was_committed) in [("commit.before", false), ("commit.after", true)] {
            simulate(move |world| {
                let log = log(1);
                let client = log.client("a");
                let member = member(&client);
                let mut producer = client.transactional("id").expect("a producer");
                let handle = member.group();
                let position = places(&[0])[0].clone();
                let progress = Progress { group: &handle, position, next_offset: 1, metadata: "" };
                arm(&world, point, Action::Fail);
                assert_eq!(remedy(producer.commit(&[outgoing("x")], Some(&progress))), Remedy::Restart, "{point}");
                assert_eq!(remedy(producer.commit(&[outgoing("x")], Some(&progress))), Remedy::Restart, "{point}");
                client.transactional("id").expect("a new producer ends what is open");
                let expected = if was_committed { (1, Some(1)) } else { (0, None) };
                assert_eq!((visible(&log).len(), committed(&log)), expected, "{point}");
                // The old one, if it were still used, has nothing to say.
                assert_eq!(remedy(producer.commit(&[outgoing("y")], Some(&progress))), Remedy::Restart);
            });
        }
    }

    #[test]
    fn a_late_commit_is_carried_out_unless_somebody_took_over_before() {
        for takes_over in [false, true] {
            simulate(move |world| {
                let log = log(1);
                let client = log.client("a");
                let member = member(&client);
                arm(&world, "commit.before", Action::Repeat);
                assert_eq!(remedy(commit(&client, &*member, 1, "x")), Remedy::Restart);
                assert_eq!(visible(&log).len(), 0, "not yet");
                if takes_over {
                    client.transactional("id").expect("a new owner");
                    assert_eq!(committed(&log), None, "known at once");
                } else {
                    let begun = Instant::now();
                    assert_eq!(committed(&log), Some(1), "who asks waits for it");
                    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
                }
                sleep(Duration::from_secs(5));
                assert_eq!(visible(&log).len(), usize::from(!takes_over));
            });
        }
    }

    #[test]
    fn a_transaction_that_takes_too_long_is_aborted_and_its_producer_fenced() {
        simulate(|world| {
            let log = log(1);
            let client = log.client("a");
            let member = member(&client);
            arm(&world, "commit.before", Action::Delay(Duration::from_secs(11)));
            assert_eq!(remedy(commit(&client, &*member, 1, "x")), Remedy::Fenced);
            assert_eq!((visible(&log).len(), committed(&log)), (0, None));
            let begun = Instant::now();
            log.abandon_transaction("other", &[outgoing("open")]).expect("left open");
            let mut appender = log.appender().expect("an appender");
            appender.append(&outgoing("after"), 0).expect("taken");
            let mut reader = log.reader(&TopicPartition::new(TOPIC, 0), 0, Isolation::ReadCommitted).expect("a reader");
            let mut records = Vec::new();
            reader.read(10, Duration::from_secs(60), &mut records).expect("reads");
            assert_eq!(values(&records), ["after"]);
            let held_back = begun.elapsed();
            assert!(held_back >= Duration::from_secs(10) && held_back < Duration::from_secs(11), "{held_back:?}");
        });
    }

    #[test]
    fn an_instance_killed_in_a_transaction_leaves_it_open_and_its_place_in_the_group() {
        simulate(|world| {
            let log = log(1);
            let client = log.client("a");
            arm(&world, "commit.before", Action::Kill);
            let killed = client.clone();
            world
                .spawn(1, "instance", move || {
                    let member = member(&killed);
                    let _ = commit(&killed, &*member, 1, "x");
                })
                .expect("a thread");
            sleep(Duration::from_secs(1));
            log.kill("a");
            assert_eq!(world.happened().len(), 1, "it was killed");
            assert_eq!(log.dump_all(TOPIC, 0).iter().map(|(_, kind)| *kind).collect::<Vec<_>>(), [Kind::Open]);
            let other = log.client("b");
            let mut next = join(&other, None);
            assert_eq!(events(&mut *next), []);
            log.expire("a");
            assert_eq!(events(&mut *next), assigned(&[0]));
            commit(&other, &*next, 1, "y").expect("the new owner commits");
            assert_eq!((visible(&log), committed(&log)), (vec!["y".to_owned()], Some(1)));
        });
    }

    #[test]
    fn nothing_lands_behind_a_failed_append() {
        for point in ["append.before", "append.after"] {
            simulate(move |world| {
                let log = log(1);
                log.set_append_delay(Duration::from_millis(200)..=Duration::from_millis(200));
                let mut appender = log.client("a").appender().expect("an appender");
                appender.append(&outgoing("0"), 0).expect("taken");
                arm(&world, point, Action::Fail);
                appender.append(&outgoing("1"), 1).expect("taken, and failed");
                assert_eq!(remedy(appender.append(&outgoing("2"), 2)), Remedy::Restart, "{point}");
                let mut told = outcomes(&mut *appender, 2);
                told.sort_unstable();
                assert_eq!(told, [(0, None), (1, None)], "{point}");
                sleep(Duration::from_secs(1));
                let landed = visible(&log);
                let expected: Vec<String> = (0..landed.len()).map(|i| i.to_string()).collect();
                assert_eq!(landed, expected, "{point}");
                assert!(landed.len() <= if point == "append.before" { 1 } else { 2 });
            });
        }
    }

    #[test]
    fn without_that_safeguard_a_failed_append_is_a_gap() {
        simulate(|world| {
            let log = log(1);
            world.remove("gapless appends");
            let mut appender = log.client("a").appender().expect("an appender");
            arm(&world, "append.before", Action::Fail);
            for token in 0..3 {
                appender.append(&outgoing(&token.to_string()), token).expect("taken");
            }
            let mut told = outcomes(&mut *appender, 3);
            told.sort_unstable();
            assert_eq!(told, [(0, None), (1, Some(0)), (2, Some(1))]);
            assert_eq!(visible(&log), ["1", "2"]);
        });
    }

    #[test]
    fn whoever_made_the_log_meets_no_faults() {
        simulate(|world| {
            let log = log(1);
            arm(&world, "append.before", Action::Fail);
            arm(&world, "commit.before", Action::Fail);
            let mut appender = log.appender().expect("an appender");
            appender.append(&outgoing("0"), 0).expect("taken");
            log.transactional("id").expect("a producer").commit(&[outgoing("1")], None).expect("commits");
            assert_eq!(visible(&log), ["0", "1"]);
            assert_eq!(world.happened().len(), 0);
        });
    }
}
