//! The laws, as checks over what a finished run left behind. Each gives its violations in words; none looks at how a
//! result came about.
//!
//! | law | says |
//! |---|---|
//! | `transitions` | the alerts topic holds, partition by partition, exactly what follows from the canonical log, each id once |
//! | `accounting` | every part of a source record is in exactly one place; rows of a source stand in its order, without gaps |
//! | `ticks` | what a tick claims is true |
//! | `absence` | nothing is called stale that had spoken in time |
//! | `sinks` | every committed alert reached every sink, under one content, in order |
//! | `episodes` | every episode is where it should be in the end |

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::Deserialize;
use serde_json::Value;
use wardbell_connectors::canonical::{self, Canonical};
use wardbell_connectors::log::{Record, TopicPartition};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{Alert, Content, Priority, TransitionKind, content_bytes};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Control, TickClaim};
use wardbell_schemas::reading::{ReadingColumns, ReadingRow};

use crate::derivation::{CANARY_TOPIC, Derivation, Said, Sets, differences};

/// Violations of one law that are told one by one.
const TOLD_MAX: usize = 20;
/// Most readings that a record may hold.
const READINGS_MAX: usize = 10_000;

/// What a run left behind. All topics as they were appended, the alerts as a read-committed reader sees them.
#[derive(Debug, Default)]
pub struct Run {
    /// Canonical JSON with times in whole µs since 1970, signals by id and values in their canonical unit.
    pub source: BTreeMap<TopicPartition, Vec<Record>>,
    /// By partition.
    pub canonical: Vec<Vec<Record>>,
    /// By canonical partition: the next offset to decide, as committed. What stands from there on decided nothing yet.
    pub decided: Vec<i64>,
    pub dead_letters: Vec<Record>,
    /// By partition.
    pub alerts: Vec<Vec<Record>>,
    pub control: Vec<Record>,
    /// What each sink was given, by its name, in the order in which it acknowledged it.
    pub sinks: BTreeMap<String, Vec<Delivered>>,
    /// Alerts that were appended later need not have reached every sink when the run was stopped.
    pub told_until_us: Option<Micros>,
}

/// One acknowledged delivery.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// Who delivered it.
    pub instance: u32,
    pub id: String,
    /// As [`content_bytes`] writes it.
    pub content: Vec<u8>,
}

impl Delivered {
    pub fn new(instance: u32, content: &Content) -> Self {
        Self { instance, id: content.id.clone(), content: content_bytes(content) }
    }
}

/// A law that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub law: &'static str,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.what)
    }
}

/// Holds a run against all laws; nothing if all of them hold.
pub fn violations(run: &Run) -> Vec<Violation> {
    let facts = Facts::of(run);
    type Law = fn(&Facts<'_>) -> Vec<String>;
    let laws: [(&'static str, Law); 6] = [
        ("transitions", transitions),
        ("accounting", accounting),
        ("ticks", ticks),
        ("absence", absence),
        ("sinks", sinks),
        ("episodes", episodes),
    ];
    let mut found = Vec::new();
    for (law, check) in laws {
        let broken = check(&facts);
        let more = broken.len().saturating_sub(TOLD_MAX);
        found.extend(broken.into_iter().take(TOLD_MAX).map(|what| Violation { law, what }));
        if more > 0 {
            found.push(Violation { law, what: format!("{more} more") });
        }
    }
    found
}

/// A run, taken apart.
struct Facts<'a> {
    run: &'a Run,
    sets: Sets,
    /// What stands in the canonical log and can be read, by partition, with its record.
    canonical: Vec<Vec<(&'a Record, Canonical)>>,
    /// What follows from it.
    expected: Vec<Vec<Said>>,
    /// Alerts that can be read, by partition, canaries included.
    alerts: Vec<Vec<Alert>>,
    /// Where rows and requests of each source record first stand.
    placed: Placed,
    /// What could not be read at all.
    unreadable: Vec<String>,
}

/// For each canonical partition and source partition: source offset to the first canonical offset.
type Placed = Vec<BTreeMap<TopicPartition, BTreeMap<i64, i64>>>;

impl<'a> Facts<'a> {
    fn of(run: &'a Run) -> Self {
        let sets = Sets::of(&run.control);
        let mut unreadable = Vec::new();
        let (mut canonical, mut expected, mut alerts) = (Vec::new(), Vec::new(), Vec::new());
        for (partition, records) in run.canonical.iter().enumerate() {
            let mut read = Vec::new();
            for record in records {
                match canonical::read(record, &Catalogue::builtin().hash) {
                    Ok(content) => read.push((record, content)),
                    Err(error) => unreadable.push(format!("canonical {partition}/{}: {error}", record.offset)),
                }
            }
            let mut derivation = Derivation::new(&sets, partition as i32, run.canonical.len() as i32);
            let decided = run.decided.get(partition).copied().unwrap_or(0);
            for (record, content) in read.iter().filter(|(record, _)| record.offset < decided) {
                if let Err(what) = derivation.apply_read(record, content) {
                    unreadable.push(format!("canonical {partition}: {what}"));
                    break;
                }
            }
            expected.push(derivation.finish().said);
            canonical.push(read);
        }
        for (partition, records) in run.alerts.iter().enumerate() {
            let mut read = Vec::new();
            for record in records {
                match serde_json::from_slice(record.value.as_deref().unwrap_or_default()) {
                    Ok(alert) => read.push(alert),
                    Err(_) => unreadable.push(format!("alerts {partition}/{}: it is no alert", record.offset)),
                }
            }
            alerts.push(read);
        }
        let placed = canonical.iter().map(|records| placed(records)).collect();
        Self { run, sets, canonical, expected, alerts, placed, unreadable }
    }
}

/// The rows of a batch; none of one that is not ours.
fn rows(batch: &Canonical) -> Vec<ReadingRow<'_>> {
    let Canonical::Readings(batch) = batch else {
        return Vec::new();
    };
    let columns = ReadingColumns::try_new(batch);
    columns.map_or_else(|_| Vec::new(), |columns| (0..columns.len()).filter_map(|row| columns.row(row)).collect())
}

/// The source record of a request: its position is its id.
fn requested(read: &Canonical) -> Option<(TopicPartition, i64)> {
    let Canonical::Control(record) = read else {
        return None;
    };
    // What the job says of itself has an id of another form.
    if matches!(record.control, Control::Condition(_) | Control::Tick { .. } | Control::Activate { .. }) {
        return None;
    }
    let mut parts = record.id.rsplitn(4, '/');
    let (_index, offset, partition) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((TopicPartition::new(parts.next()?, partition), offset))
}

fn placed(records: &[(&Record, Canonical)]) -> BTreeMap<TopicPartition, BTreeMap<i64, i64>> {
    let mut placed: BTreeMap<TopicPartition, BTreeMap<i64, i64>> = BTreeMap::new();
    for (record, read) in records {
        let mut place = |source: TopicPartition, offset: i64| {
            placed.entry(source).or_default().entry(offset).or_insert(record.offset);
        };
        for row in rows(read).iter().filter(|row| row.source_topic != CANARY_TOPIC) {
            place(TopicPartition::new(row.source_topic, row.source_partition), row.source_offset);
        }
        if let Some((source, offset)) = requested(read) {
            place(source, offset);
        }
    }
    placed
}

// ---------------------------------------------------------------------------------------------------------------------
// Transitions
// ---------------------------------------------------------------------------------------------------------------------

fn transitions(facts: &Facts<'_>) -> Vec<String> {
    let mut what = facts.unreadable.clone();
    for (partition, (expected, alerts)) in facts.expected.iter().zip(&facts.alerts).enumerate() {
        let found: Vec<Said> = alerts.iter().map(|alert| Said::of(&alert.data.content)).collect();
        what.extend(differences(expected, &found).iter().map(|what| format!("alerts {partition}: {what}")));
    }
    if facts.expected.len() != facts.alerts.len() {
        what.push(format!("{} canonical partitions and {} of alerts", facts.expected.len(), facts.alerts.len()));
    }
    what
}

// ---------------------------------------------------------------------------------------------------------------------
// Accounting
// ---------------------------------------------------------------------------------------------------------------------

/// A dead letter, as far as it says where it is from.
#[derive(Debug, Deserialize)]
struct Letter {
    topic: String,
    partition: i32,
    offset: i64,
    index: u32,
}

/// What has to come of a source record.
enum Parts {
    Nothing,
    Request,
    Readings(usize),
    /// It is no record of ours: one dead letter or more.
    Foreign,
}

fn parts(record: &Record) -> Parts {
    let Some(value) = &record.value else {
        return Parts::Nothing;
    };
    let Ok(Value::Object(fields)) = serde_json::from_slice(value) else {
        return Parts::Foreign;
    };
    match fields.get("readings") {
        _ if fields.contains_key("control") => Parts::Request,
        None => Parts::Readings(1),
        Some(Value::Array(readings)) if (1..=READINGS_MAX).contains(&readings.len()) => Parts::Readings(readings.len()),
        Some(_) => Parts::Foreign,
    }
}

/// A row and the offset of its canonical record.
type At<'r> = (i64, ReadingRow<'r>);
/// Rows of one source record by index, each with its canonical partition.
type Rows<'r> = BTreeMap<u32, (usize, At<'r>)>;

fn accounting(facts: &Facts<'_>) -> Vec<String> {
    let mut what = Vec::new();
    // Rows by source record and index; dead letters and requests by source record.
    let mut known: BTreeMap<(TopicPartition, i64), Rows<'_>> = BTreeMap::new();
    let mut requests: BTreeSet<(TopicPartition, i64)> = BTreeSet::new();
    for (partition, records) in facts.canonical.iter().enumerate() {
        for (record, read) in records {
            requests.extend(requested(read));
            for row in rows(read).into_iter().filter(|row| row.source_topic != CANARY_TOPIC) {
                let source = TopicPartition::new(row.source_topic, row.source_partition);
                let of_record = known.entry((source, row.source_offset)).or_default();
                let (first_in, (offset, first)) =
                    of_record.entry(row.source_index).or_insert((partition, (record.offset, row)));
                if (*first_in, *first) != (partition, row) {
                    let place = position(&row);
                    what.push(format!(
                        "{place} stands twice and differs: canonical {first_in}/{offset} and {partition}/{}",
                        record.offset
                    ));
                }
            }
        }
    }
    let mut letters: BTreeMap<(TopicPartition, i64), BTreeSet<u32>> = BTreeMap::new();
    for record in &facts.run.dead_letters {
        let letter = record.value.as_deref().and_then(|value| serde_json::from_slice::<Letter>(value).ok());
        let Some(Letter { topic, partition, offset, index }) = letter else {
            what.push(format!("dead letter {} says not where it is from", record.offset));
            continue;
        };
        letters.entry((TopicPartition::new(&topic, partition), offset)).or_default().insert(index);
    }
    for (source, records) in &facts.run.source {
        for record in records {
            let place = (source.clone(), record.offset);
            let of_record = known.remove(&place).unwrap_or_default();
            let rows: BTreeSet<u32> = of_record.keys().copied().collect();
            let dead = letters.remove(&place).unwrap_or_default();
            let name = format!("{}/{} offset {}", source.topic, source.partition, record.offset);
            let wrong = match parts(record) {
                Parts::Nothing => !rows.is_empty() || !dead.is_empty(),
                Parts::Request => !rows.is_empty() || requests.contains(&place) == dead.contains(&0),
                Parts::Foreign => rows.is_empty() && dead.is_empty(),
                Parts::Readings(n) => {
                    rows.intersection(&dead).next().is_some()
                        || rows.union(&dead).copied().ne(0..u32::try_from(n).unwrap_or(u32::MAX))
                }
            };
            if wrong {
                what.push(format!("{name}: rows {rows:?} and dead letters {dead:?} are not each part of it once"));
            }
            let moved =
                |(_, row): &At<'_>| row.source_time_us != record.time_us || row.append_time_us != record.append_us;
            if of_record.values().any(|(_, at)| moved(at)) {
                what.push(format!("{name}: a row has other times than its record"));
            }
        }
    }
    for (source, offset) in known.keys().chain(letters.keys().filter(|(source, _)| is_source(facts, source))) {
        what.push(format!("{}/{} offset {offset} was never sent", source.topic, source.partition));
    }
    what.extend(gaps(facts));
    what
}

fn is_source(facts: &Facts<'_>, source: &TopicPartition) -> bool {
    facts.run.source.contains_key(source)
}

fn position(row: &ReadingRow<'_>) -> String {
    format!("{}/{} offset {} index {}", row.source_topic, row.source_partition, row.source_offset, row.source_index)
}

/// What a source record brings into a canonical partition stands there after all that earlier ones bring.
fn gaps(facts: &Facts<'_>) -> Vec<String> {
    let mut what = Vec::new();
    for (partition, sources) in facts.placed.iter().enumerate() {
        for (source, places) in sources {
            let mut newest: Option<(i64, i64)> = None;
            for (offset, at) in places {
                if let Some((before, newest_at)) = newest.filter(|(_, newest_at)| at < newest_at) {
                    what.push(format!(
                        "{}/{}: offset {before} first stands in canonical {partition}/{newest_at}, behind offset {offset} in {at}",
                        source.topic, source.partition
                    ));
                }
                if newest.is_none_or(|(_, newest_at)| *at >= newest_at) {
                    newest = Some((*offset, *at));
                }
            }
        }
    }
    what
}

// ---------------------------------------------------------------------------------------------------------------------
// Ticks
// ---------------------------------------------------------------------------------------------------------------------

/// What claims of one source partition in one canonical partition are held against.
struct Truth {
    /// Offsets of the source, ascending.
    offsets: Vec<i64>,
    /// By place in `offsets`: the largest canonical offset at which one before that place first stands.
    brought_by: Vec<i64>,
    /// By place in `offsets`: the smallest append time from there on.
    appended_from: Vec<Micros>,
}

impl Truth {
    fn of(source: &[Record], placed: Option<&BTreeMap<i64, i64>>) -> Self {
        let offsets: Vec<i64> = source.iter().map(|record| record.offset).collect();
        let mut brought_by = vec![i64::MIN];
        for offset in &offsets {
            let at = placed.and_then(|placed| placed.get(offset)).copied().unwrap_or(i64::MIN);
            brought_by.push(brought_by.last().copied().unwrap_or(i64::MIN).max(at));
        }
        let mut appended_from = vec![Micros::MAX];
        for record in source.iter().rev() {
            let at = record.append_us.unwrap_or(Micros::MAX);
            appended_from.push(appended_from.last().copied().unwrap_or(Micros::MAX).min(at));
        }
        appended_from.reverse();
        Self { offsets, brought_by, appended_from }
    }
}

/// A claim is true if everything below its end offset that concerns the partition stands before it, and nothing from there
/// on was appended earlier than the time to which it moves the clock.
fn ticks(facts: &Facts<'_>) -> Vec<String> {
    let mut what = Vec::new();
    for (partition, records) in facts.canonical.iter().enumerate() {
        let mut truths: BTreeMap<TopicPartition, Truth> = BTreeMap::new();
        for (record, read) in records {
            let Canonical::Control(control) = read else {
                continue;
            };
            let Control::Tick { claims } = &control.control else {
                continue;
            };
            for TickClaim { topic, partition: of, end_offset, time_us } in claims {
                let source = TopicPartition::new(topic, *of);
                let truth = truths.entry(source.clone()).or_insert_with(|| {
                    let appended = facts.run.source.get(&source).map_or(&[][..], Vec::as_slice);
                    Truth::of(appended, facts.placed.get(partition).and_then(|placed| placed.get(&source)))
                });
                let below = truth.offsets.partition_point(|offset| offset < end_offset);
                let name = format!("canonical {partition}/{} about {topic}/{of} below {end_offset}", record.offset);
                let brought_by = truth.brought_by[below];
                if brought_by > record.offset {
                    what.push(format!("{name}: something below it first stands in {brought_by}"));
                }
                if truth.appended_from[below] < *time_us {
                    let earlier = time_us - truth.appended_from[below];
                    what.push(format!("{name}: something from there on was appended {earlier} µs before its time"));
                }
            }
        }
    }
    what
}

// ---------------------------------------------------------------------------------------------------------------------
// Absence
// ---------------------------------------------------------------------------------------------------------------------

/// Patient and `device/signal/method`.
type SeriesName = (String, String);

/// When a series had something to say that nobody can call late, by the source log alone: (broker time, source).
fn spoken<'a>(facts: &Facts<'a>) -> HashMap<SeriesName, Vec<(Micros, &'a TopicPartition)>> {
    let (lateness, skew) = facts.sets.strictest();
    let mut spoken: HashMap<SeriesName, Vec<(Micros, &'a TopicPartition)>> = HashMap::new();
    for (source, records) in &facts.run.source {
        for record in records {
            let broker = record.append_us.unwrap_or(record.time_us);
            let Some(Value::Object(fields)) =
                record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok())
            else {
                continue;
            };
            let alone = [Value::Object(fields.clone())];
            let readings = match fields.get("readings") {
                Some(Value::Array(readings)) => readings.as_slice(),
                _ => &alone,
            };
            for reading in readings {
                let field = |name: &str| reading.get(name).or_else(|| fields.get(name));
                let text = |name: &str| field(name).and_then(Value::as_str);
                let (Some(patient), Some(device)) = (text("patient"), text("device")) else {
                    continue;
                };
                let Some(signal) = text("signal").and_then(|id| Catalogue::builtin().by_id(id)) else {
                    continue;
                };
                let is_plain = field("quality").is_none() && field("change").is_none();
                let in_unit = text("unit").unwrap_or_default() == signal.unit;
                let is_known = field("value").and_then(Value::as_f64).is_some_and(|value| {
                    let (least, most) = signal.plausible;
                    let counts = value * signal.per_unit as f64;
                    counts > 0.0 && (least as f64..=most as f64).contains(&counts)
                });
                // A sample whose own time is this young cannot be older than the newest of its series by the lateness.
                let is_young =
                    field("time").and_then(Value::as_i64).is_some_and(|event| event >= broker - lateness + skew);
                if is_plain && in_unit && is_known && is_young {
                    let method = text("method").unwrap_or("-");
                    let key = format!("{device}/{}/{method}", signal.id);
                    spoken.entry((patient.to_owned(), key)).or_default().push((broker, source));
                }
            }
        }
    }
    spoken
}

/// A series is called stale only if, for at least as long as its signal allows, nothing of it was appended.
fn absence(facts: &Facts<'_>) -> Vec<String> {
    let mut what = Vec::new();
    let spoken = spoken(facts);
    let contents = facts.alerts.iter().flatten().map(|alert| &alert.data.content);
    for content in contents.filter(|c| c.rule.id == "technical/stale" && c.transition == TransitionKind::Raised) {
        let signal = content.key.split('/').nth(1).and_then(|id| Catalogue::builtin().by_id(id));
        let times = spoken.get(&(content.patient.clone(), content.key.clone()));
        let (Some(signal), Some(times)) = (signal, times) else {
            continue;
        };
        // What comes over two sources is on two clocks, and the slower one may be the one that counts.
        let over_one_source = times.iter().all(|(_, source)| *source == times[0].1);
        let in_time = content.at - signal.stale_after_us..content.at;
        let heard = times.iter().find(|(broker, _)| in_time.contains(&(broker - 1)));
        if let Some((broker, _)) = heard.filter(|_| over_one_source) {
            let before = content.at - broker;
            what.push(format!("{}: the series had spoken {before} µs before its deadline", Said::of(content)));
        }
    }
    what
}

// ---------------------------------------------------------------------------------------------------------------------
// Sinks
// ---------------------------------------------------------------------------------------------------------------------

/// Ids that a sink may leave out: what was decided late and was over before anybody could be told, without high priority.
fn may_be_withheld(alerts: &[Alert]) -> BTreeSet<&str> {
    let mut over: BTreeSet<&str> = BTreeSet::new();
    let mut late: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for alert in alerts {
        let content = &alert.data.content;
        if content.priority == Priority::High {
            late.remove(content.episode.as_str());
            continue;
        }
        if content.transition == TransitionKind::Raised && alert.data.measured.delayed {
            late.insert(&content.episode, Vec::new());
        }
        if let Some(ids) = late.get_mut(content.episode.as_str()) {
            ids.push(&content.id);
        }
        if content.transition == TransitionKind::Cleared {
            over.extend(late.remove(content.episode.as_str()).into_iter().flatten());
        }
    }
    over
}

fn sinks(facts: &Facts<'_>) -> Vec<String> {
    let mut what = Vec::new();
    let committed = || facts.alerts.iter().flatten().filter(|alert| !alert.is_canary());
    let contents: HashMap<&str, Vec<u8>> =
        committed().map(|alert| (alert.id.as_str(), content_bytes(&alert.data.content))).collect();
    let withheld: BTreeSet<&str> = facts.alerts.iter().flat_map(|alerts| may_be_withheld(alerts)).collect();
    for (sink, deliveries) in &facts.run.sinks {
        let mut first: HashMap<&str, usize> = HashMap::new();
        for (place, delivered) in deliveries.iter().enumerate() {
            first.entry(&delivered.id).or_insert(place);
            let name = format!("{sink}: {} by instance {}", delivered.id, delivered.instance);
            match contents.get(delivered.id.as_str()) {
                None => what.push(format!("{name} was told and is not in the alerts topic")),
                Some(content) if *content != delivered.content => what.push(format!("{name} was told otherwise")),
                Some(_) => {}
            }
        }
        for (alerts, records) in facts.alerts.iter().zip(&facts.run.alerts) {
            let is_late = |record: &Record| facts.run.told_until_us.is_some_and(|until| record.time_us > until);
            let late: BTreeSet<&[u8]> =
                records.iter().filter(|record| is_late(record)).filter_map(|record| record.header("id")).collect();
            // What is about no patient has no order but that of each thing.
            let whose = |content: &'_ Content| match content.patient.as_str() {
                "-" => content.key.clone(),
                patient => patient.to_owned(),
            };
            let mut of_patient: BTreeMap<String, usize> = BTreeMap::new();
            for alert in alerts.iter().filter(|alert| !alert.is_canary()) {
                let Some(place) = first.get(alert.id.as_str()) else {
                    if !withheld.contains(alert.id.as_str()) && !late.contains(alert.id.as_bytes()) {
                        what.push(format!("{sink}: {} was never told", Said::of(&alert.data.content)));
                    }
                    continue;
                };
                let before = of_patient.entry(whose(&alert.data.content)).or_insert(*place);
                if *before > *place {
                    let (earlier, said) = (&deliveries[*before], Said::of(&alert.data.content));
                    let by = (deliveries[*place].instance, earlier.instance);
                    what.push(format!(
                        "{sink}: {said} was told by instance {} before instance {} told {}",
                        by.0, by.1, earlier.id
                    ));
                }
                *before = (*before).max(*place);
            }
        }
    }
    what
}

// ---------------------------------------------------------------------------------------------------------------------
// Episodes
// ---------------------------------------------------------------------------------------------------------------------

fn episodes(facts: &Facts<'_>) -> Vec<String> {
    let mut what = Vec::new();
    for (expected, alerts) in facts.expected.iter().zip(&facts.alerts) {
        let found: Vec<Said> = alerts.iter().map(|alert| Said::of(&alert.data.content)).collect();
        let last = |list: &[Said]| -> BTreeMap<String, Said> {
            list.iter().map(|said| (said.episode().to_owned(), said.clone())).collect()
        };
        let (should, is) = (last(expected), last(&found));
        for episode in should.keys().chain(is.keys()).collect::<BTreeSet<&String>>() {
            let (should, is) = (should.get(episode), is.get(episode));
            if should != is {
                let print = |said: Option<&Said>| said.map_or_else(|| "nothing".to_owned(), Said::to_string);
                what.push(format!("an episode should end with `{}` and ends with `{}`", print(should), print(is)));
            }
        }
    }
    what
}
