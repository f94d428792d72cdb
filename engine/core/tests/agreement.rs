//! Two evaluations of one meaning: the engine against the naive one ([`oracle`]), over random cases and a recorded
//! stay; and the engine against itself, where the log was cut, repeated or interrupted.
//!
//! A random case ([`random`]) is a function of its seed. `WARDBELL_SEED=<n>` runs just this seed, `WARDBELL_CASES=<n>`
//! sets how many seeds are run, from 0. Both sides are compared after every item of a log, so a disagreement is found
//! in the smallest prefix that shows it; that is cut down to the items it needs before it is printed.

mod random;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use oracle::{Item, Reading, Record, Set, Transition, World};
use random::{Case, Dice, MINUTE, YEAR_2026, random_case};
use wardbell_core::partition::checkpoint::{SLICE_MAX, Unreadable};
use wardbell_core::partition::{Connector, Partition, Settings};
use wardbell_oracle as oracle;
use wardbell_rules::{Rule, RuleSet, SourceFile, compile};
use wardbell_schemas::alert::{Content, State, content_bytes};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::control::{Condition, Control, ControlRecord, TickClaim};
use wardbell_schemas::outcome::{Outcome, OutcomeCounts};
use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};
use wardbell_schemas::{Micros, SECOND};

const CASES: u64 = 20_000;
/// Cases of each test that compares the engine with itself.
const OWN_CASES: u64 = 300;
/// Fewer cases than this need not show everything that can happen.
const CASES_THAT_SHOW_EVERYTHING: u64 = 5_000;

// ---------------------------------------------------------------------------------------------------------------------
// Both sides
// ---------------------------------------------------------------------------------------------------------------------

fn naive<'a>(case: &Case, signals: &'a [oracle::Signal]) -> World<'a> {
    World::new(case.record_clock, signals, &case.set, case.people.clone())
}

/// The catalogue, as the naive side knows it.
fn naive_signals() -> &'static [oracle::Signal] {
    static SIGNALS: OnceLock<Vec<oracle::Signal>> = OnceLock::new();
    SIGNALS.get_or_init(|| oracle::Signal::all_of(Catalogue::builtin()))
}

/// The sets of a case, checked: a random rule has no fault that the checker knows of.
struct Sets {
    first: RuleSet,
    /// By the places of their activations.
    later: BTreeMap<usize, RuleSet>,
}

impl Sets {
    fn of(case: &Case) -> Self {
        let mut checked: HashMap<&str, Rule> = HashMap::new();
        let first = rule_set(case.seed, &case.set, &mut checked);
        let mut later = BTreeMap::new();
        for (place, item) in case.items.iter().enumerate() {
            if let Item::Activate { set, .. } = item {
                later.insert(place, rule_set(case.seed, set, &mut checked));
            }
        }
        Self { first, later }
    }
}

fn rule_set<'t>(seed: u64, set: &'t Set, checked: &mut HashMap<&'t str, Rule>) -> RuleSet {
    let check = |text: &str| {
        let file = SourceFile { path: "random.rhai".to_owned(), text: text.to_owned() };
        let (rule, faults) = compile(&file, Catalogue::builtin());
        let faults: Vec<String> = faults.iter().map(|fault| fault.render(text, false)).collect();
        assert!(faults.is_empty(), "seed {seed}: a faulty rule\n{text}\n{}", faults.join("\n"));
        rule.expect("a rule without faults")
    };
    let rules = set.rules.iter().map(|text| checked.entry(text).or_insert_with(|| check(text)).clone());
    RuleSet::new(rules.collect())
}

fn settings(set: &Set, record_clock: bool) -> Settings {
    let connector = |connector: &oracle::Connector| Connector {
        topics: connector.topics.clone(),
        lateness_us: connector.lateness_us,
        skew_us: connector.skew_us,
        coarse: connector.coarse,
        reset_days: connector.reset_days.clone(),
    };
    Settings {
        lateness_us: set.lateness_us,
        skew_us: set.skew_us,
        epoch_check: set.epoch_check,
        record_clock,
        samples_max: set.samples_max,
        connectors: set.connectors.iter().map(connector).collect(),
        ..Settings::new("test")
    }
}

/// A partition that a case's items are applied to, one by one; an item's place in the case is its source offset.
struct Feeder<'a> {
    case: &'a Case,
    sets: &'a Sets,
    partition: Partition,
    /// The set in force and its number.
    in_force: (&'a Set, &'a RuleSet),
    number: Option<u64>,
    decided: Vec<Content>,
    /// The same, as both sides say it.
    said: Vec<Transition>,
    builder: ReadingBatchBuilder,
    /// Records in the batch that is being filled, and the offset of the last one.
    n_gathered: usize,
    newest_offset: Option<i64>,
    /// Records of a full batch.
    batch: usize,
}

impl<'a> Feeder<'a> {
    fn new(case: &'a Case, sets: &'a Sets, batch: usize) -> Self {
        let settings = settings(&case.set, case.record_clock);
        let mut partition = Partition::new(settings, &sets.first, Catalogue::builtin());
        for (patient, person) in &case.people {
            for (name, value) in &person.limits {
                let (patient, name, value) = (patient.clone(), name.clone(), Some(*value));
                partition.apply_control(&control("", Control::Limit { patient, name, value }));
            }
            for (name, value) in &person.attributes {
                let (patient, name, value) = (patient.clone(), name.clone(), Some(*value));
                partition.apply_control(&control("", Control::Attribute { patient, name, value }));
            }
        }
        Self {
            case,
            sets,
            partition,
            in_force: (&case.set, &sets.first),
            number: None,
            decided: Vec::new(),
            said: Vec::new(),
            builder: ReadingBatchBuilder::default(),
            n_gathered: 0,
            newest_offset: None,
            batch,
        }
    }

    fn feed(&mut self, index: usize) {
        match &self.case.items[index] {
            Item::Record(record) => {
                self.gather(record, index as i64);
                if self.n_gathered >= self.batch {
                    self.flush();
                }
            }
            Item::Tick { source, time_us } => {
                self.flush();
                self.tick(source, *time_us);
            }
            Item::Control { id, control: said } => {
                self.flush();
                let said = self.said_by(said);
                self.partition.apply_control(&control(id, said));
                self.take();
            }
            Item::Activate { number, set } => {
                self.flush();
                self.activate(*number, (set, &self.sets.later[&index]));
            }
        }
    }

    /// A control as it is written. A person names an episode; without any, one that is not there.
    fn said_by(&self, control: &oracle::Control) -> Control {
        let episode = |reset: bool, back: usize| {
            let place = oracle::answered(&self.said, reset, back);
            place.map_or_else(|| "0".repeat(32), |place| self.decided[place].episode.clone())
        };
        let by = "RN".to_owned();
        match control.clone() {
            oracle::Control::Limit { patient, name, value } => Control::Limit { patient, name, value },
            oracle::Control::Attribute { patient, name, value } => Control::Attribute { patient, name, value },
            oracle::Control::Discharge { patient } => Control::Discharge { patient },
            oracle::Control::Standby { patient, device } => Control::Standby { patient, device },
            oracle::Control::Acknowledge { back } => Control::Acknowledge { episode: episode(false, back), by },
            oracle::Control::Reset { back } => Control::Reset { episode: episode(true, back), by },
            oracle::Control::Condition { rule, key, priority, holds, at_us } => {
                let priority = priority.parse().expect("a priority");
                Control::Condition(Condition { rule, key, priority, holds, at_us, detail: "random".to_owned() })
            }
        }
    }

    fn activate(&mut self, number: u64, (set, rules): (&'a Set, &'a RuleSet)) {
        self.partition.activate(number, &rules.hash, rules, settings(set, self.case.record_clock));
        if self.number.is_none_or(|newest| number > newest) {
            (self.number, self.in_force) = (Some(number), (set, rules));
        }
        self.take();
    }

    /// The set in force once more, under the next number.
    fn activate_again(&mut self) {
        self.flush();
        let number = self.number.map_or(1, |number| number + 1);
        self.activate(number, self.in_force);
    }

    fn gather(&mut self, record: &Record, offset: i64) {
        let (topic, partition) = place(&record.source);
        for (index, reading) in record.readings.iter().enumerate() {
            let signal = Catalogue::builtin().by_id(&reading.signal).expect(&reading.signal);
            let quality = match (reading.value, reading.questionable) {
                (None, _) if reading.off => Quality::Technical,
                (None, _) => Quality::Missing,
                (Some(_), true) => Quality::Questionable,
                (Some(_), false) => Quality::Ok,
            };
            self.builder.push(&ReadingRow {
                patient: &reading.patient,
                device: &reading.device,
                signal: signal.index,
                method: &reading.method,
                value: reading.value,
                quality,
                reason: if reading.off { Reason::Off } else { Reason::None },
                event_time_us: reading.event_us,
                source_time_us: record.broker_us,
                append_time_us: Some(record.broker_us),
                source_topic: topic,
                source_partition: partition,
                source_offset: offset,
                source_index: index as u32,
                comparator: reading.comparator,
                change: reading.change,
                policies: Policies::NONE,
            });
        }
        self.n_gathered += 1;
        self.newest_offset = Some(offset);
    }

    fn flush(&mut self) {
        if self.n_gathered == 0 {
            return;
        }
        // When the batch was appended must not matter where the sources' own append times are known.
        let canonical_us = self.case.start + 1_000 * self.batch as i64;
        let batch = self.builder.finish();
        self.n_gathered = 0;
        self.newest_offset = None;
        self.partition.apply(&batch, canonical_us).expect("a canonical batch");
        self.take();
    }

    fn tick(&mut self, source: &str, time_us: Micros) {
        if self.case.record_clock {
            self.partition.tick_record_clock(time_us);
        } else {
            let (topic, partition) = place(source);
            let claim = TickClaim { topic: topic.to_owned(), partition, end_offset: 0, time_us };
            self.partition.apply_control(&control("", Control::Tick { claims: vec![claim] }));
        }
        self.take();
    }

    fn take(&mut self) {
        for decided in self.partition.take_decided() {
            self.said.push(as_transition(&decided.content));
            self.decided.push(decided.content);
        }
    }

    /// Writes the partition down and goes on with what was read back.
    fn restart(&mut self) {
        self.flush();
        let slices = written(&mut self.partition);
        self.partition = self.read_back(&slices).expect("a checkpoint can be read");
    }

    /// The partition that a checkpoint under the set in force was made of.
    fn read_back(&self, slices: &[Vec<u8>]) -> Result<Partition, Unreadable> {
        let (set, rules) = self.in_force;
        Partition::restore_checkpoint(settings(set, self.case.record_clock), rules, Catalogue::builtin(), slices)
    }

    fn finish(mut self) -> (Vec<Content>, OutcomeCounts) {
        self.flush();
        (self.decided, *self.partition.outcomes())
    }
}

/// A whole checkpoint at once.
fn written(partition: &mut Partition) -> Vec<Vec<u8>> {
    partition.begin_checkpoint();
    let mut slices = Vec::new();
    while partition.is_checkpointing() {
        slices.extend(partition.next_slice(usize::MAX));
    }
    slices
}

fn control(id: &str, control: Control) -> ControlRecord {
    ControlRecord { id: id.to_owned(), control }
}

/// Topic and partition of `topic/partition`.
fn place(source: &str) -> (&str, i32) {
    let (topic, partition) = source.rsplit_once('/').expect("a source is topic/partition");
    (topic, partition.parse().expect("a partition is a number"))
}

fn engine(case: &Case, sets: &Sets, batch: usize) -> (Vec<Content>, OutcomeCounts) {
    let mut feeder = Feeder::new(case, sets, batch);
    for index in 0..case.items.len() {
        feeder.feed(index);
    }
    feeder.finish()
}

fn as_transition(content: &Content) -> Transition {
    Transition {
        at_us: content.at,
        what: content.transition.name().to_owned(),
        priority: content.priority.name().to_owned(),
        rule: content.rule.id.clone(),
        patient: content.patient.clone(),
        key: content.key.clone(),
        start_us: content.episode_start,
        number: content.number,
    }
}

/// What was seen over many cases.
#[derive(Default)]
struct Seen {
    cases: u64,
    readings: u64,
    transitions: u64,
    kinds: BTreeMap<String, u64>,
    outcomes: OutcomeCounts,
}

impl Seen {
    fn add(&mut self, case: &Case, contents: &[Content], outcomes: &OutcomeCounts) {
        self.cases += 1;
        self.readings += case.readings();
        self.transitions += contents.len() as u64;
        self.outcomes.merge(outcomes);
        for content in contents {
            *self.kinds.entry(kind(content)).or_default() += 1;
        }
    }

    fn print(&self) {
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        let outcomes: Vec<String> =
            self.outcomes.iter().map(|(outcome, n)| format!("{} {n}", outcome.name())).collect();
        eprintln!(
            "{} cases, {} readings, {} transitions: {}; outcomes: {}",
            self.cases,
            self.readings,
            self.transitions,
            kinds.join(", "),
            outcomes.join(", ")
        );
    }
}

/// `raised`, `technical/stale raised`.
fn kind(content: &Content) -> String {
    let name = content.transition.name();
    if content.rule.id.starts_with("technical/") { format!("{} {name}", content.rule.id) } else { name.to_owned() }
}

/// Where both sides first differ.
struct Difference {
    /// Items of the smallest prefix that shows it.
    items: usize,
    kind: Kind,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Transitions,
    Outcomes,
    Panic,
}

/// Runs both sides, item by item; the contents, or where they differ.
fn compared(case: &Case) -> Result<(Vec<Content>, OutcomeCounts), Difference> {
    let mut items = 0;
    let run = || {
        let sets = Sets::of(case);
        let mut feeder = Feeder::new(case, &sets, 1);
        let mut world = naive(case, naive_signals());
        let mut n_equal = 0;
        for (index, item) in case.items.iter().enumerate() {
            items = index + 1;
            feeder.feed(index);
            world.apply(item);
            let (got, expected) = (&feeder.said, world.transitions());
            if got[n_equal..] != expected[n_equal..] {
                return Err((Kind::Transitions, around_the_difference(case, got, expected)));
            }
            n_equal = got.len();
            let outcomes = *feeder.partition.outcomes();
            if let Some(text) = other_outcomes(&outcomes, world.outcomes()) {
                return Err((Kind::Outcomes, text));
            }
        }
        Ok(feeder.finish())
    };
    let result = catch_unwind(AssertUnwindSafe(run));
    let result = result.unwrap_or_else(|_| Err((Kind::Panic, "one side panicked, see above\n".to_owned())));
    result.map_err(|(kind, text)| Difference { items, kind, text })
}

fn other_outcomes(got: &OutcomeCounts, expected: &BTreeMap<&'static str, u64>) -> Option<String> {
    let expected = |outcome: Outcome| expected.get(outcome.name()).copied().unwrap_or(0);
    let differ = got.iter().filter(|(outcome, n)| *n != expected(*outcome));
    let texts: Vec<String> = differ
        .map(|(outcome, n)| {
            format!("{} readings are `{}`, the naive side has {}\n", n, outcome.name(), expected(outcome))
        })
        .collect();
    (!texts.is_empty()).then(|| texts.concat())
}

fn around_the_difference(case: &Case, got: &[Transition], expected: &[Transition]) -> String {
    let first = got.iter().zip(expected).take_while(|(got, expected)| got == expected).count();
    let mut text = format!("transition {first} is the first that differs, after the same item of the log\n");
    for (name, list) in [("engine", got), ("naive", expected)] {
        let _ = writeln!(text, "{name}, {} transitions:", list.len());
        for (i, transition) in list.iter().enumerate().skip(first.saturating_sub(4)).take(9) {
            let Transition { at_us, what, priority, rule, patient, key, start_us, number } = transition;
            let mark = if i == first { '>' } else { ' ' };
            let (at, start) = (since(case, *at_us), since(case, *start_us));
            let _ = writeln!(text, "{mark} {at} {what} {priority} {rule} {patient} {key} start {start} .{number}");
        }
    }
    text
}

/// Seconds since the case began.
fn since(case: &Case, at: Micros) -> String {
    let us = at - case.start;
    let sign = if us < 0 { "-" } else { "" };
    let (seconds, rest) = (us.unsigned_abs() / 1_000_000, us.unsigned_abs() % 1_000_000);
    if rest == 0 { format!("{sign}{seconds}s") } else { format!("{sign}{seconds}.{rest:06}s") }
}

/// Everything of a case, as short as it can be read.
fn printed(case: &Case) -> String {
    let mut text = format!("time 0 {} s since 1970, record clock {}\n", case.start / SECOND, case.record_clock);
    for (patient, person) in &case.people {
        let _ = writeln!(text, "{patient} limits {:?} attributes {:?}", person.limits, person.attributes);
    }
    text += &printed_set(&case.set);
    for (index, item) in case.items.iter().enumerate() {
        match item {
            Item::Tick { source, time_us } => {
                let _ = writeln!(text, "#{index} {source} tick {}", since(case, *time_us));
            }
            Item::Control { id, control } => {
                let _ = writeln!(text, "#{index} control {id}: {control:?}");
            }
            Item::Activate { number, set } => {
                let _ = write!(text, "#{index} activate {number}: {}", printed_set(set));
            }
            Item::Record(record) => {
                let _ = write!(text, "#{index} {} {}:", record.source, since(case, record.broker_us));
                for reading in &record.readings {
                    let _ = write!(text, " {}", printed_reading(case, reading));
                }
                text.push('\n');
            }
        }
    }
    text
}

fn printed_set(set: &Set) -> String {
    let mut text = format!(
        "lateness {} s, skew {} s, epoch check {}, {} samples kept\n",
        set.lateness_us / SECOND,
        set.skew_us / SECOND,
        set.epoch_check,
        set.samples_max
    );
    for connector in &set.connectors {
        let _ = writeln!(text, "{connector:?}");
    }
    text + set.rules.concat().as_str()
}

fn printed_reading(case: &Case, reading: &Reading) -> String {
    let Reading { patient, device, signal, comparator, .. } = reading;
    let value = reading.value.map_or("blank".to_owned(), |value| value.to_string());
    let mark = match (reading.questionable, reading.off) {
        (_, true) => " off",
        (true, _) => "?",
        _ => "",
    };
    let change = match reading.change {
        Change::None => "",
        Change::Corrects => " corrects",
        Change::Retracts => " retracts",
    };
    let at = since(case, reading.event_us);
    format!("{patient}/{device}/{signal}@{at}={}{value}{mark}{change}", comparator.symbol())
}

/// A case without what its disagreement does not need.
fn cut_down(case: &Case, sought: Kind) -> Case {
    let mut best = case.clone();
    let mut attempts = 3_000;
    // What is kept must fail the same way, and nothing behind the failure is kept.
    let mut keep = |best: &mut Case, mut candidate: Case| {
        attempts -= 1;
        if attempts <= 0 {
            return false;
        }
        match compared(&candidate) {
            Err(difference) if difference.kind == sought => {
                candidate.items.truncate(difference.items);
                *best = candidate;
                true
            }
            _ => false,
        }
    };
    for number in 0..10 {
        let named = format!("id: \"rule-{number}\"");
        let mut candidate = best.clone();
        let without = |set: &mut Set| set.rules.retain(|text| !text.contains(&named));
        without(&mut candidate.set);
        for item in &mut candidate.items {
            if let Item::Activate { set, .. } = item {
                without(set);
            }
        }
        keep(&mut best, candidate);
    }
    let mut size = best.items.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        while start < best.items.len() {
            let mut candidate = best.clone();
            let end = (start + size).min(candidate.items.len());
            candidate.items.drain(start..end);
            if !keep(&mut best, candidate) {
                start += size;
            }
        }
        size /= 2;
    }
    let mut index = 0;
    while index < best.items.len() {
        let n_readings = match &best.items[index] {
            Item::Record(record) => record.readings.len(),
            _ => 0,
        };
        for reading in (0..n_readings).rev() {
            let mut candidate = best.clone();
            if let Some(Item::Record(record)) = candidate.items.get_mut(index)
                && record.readings.len() > 1
            {
                record.readings.remove(reading);
                keep(&mut best, candidate);
            }
        }
        index += 1;
    }
    best
}

fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, not a number")))
}

/// The seeds to run, by default the first so many.
fn seeds(default: u64) -> Vec<u64> {
    if let Some(seed) = number_from_environment("WARDBELL_SEED") {
        return vec![seed];
    }
    let cases = number_from_environment("WARDBELL_CASES").map_or(default, |cases| cases * default / CASES);
    (0..cases.max(1)).collect()
}

/// Runs a check on every seed, on all processors; the failures, by seed.
fn over_all(seeds: &[u64], check: impl Fn(u64) -> Result<(), String> + Sync) -> BTreeMap<u64, String> {
    let next = AtomicU64::new(0);
    let failures = Mutex::new(BTreeMap::new());
    let n_workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..n_workers {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = seeds.get(place as usize).copied() else {
                        return;
                    };
                    let failure = match catch_unwind(AssertUnwindSafe(|| check(seed))) {
                        Ok(Ok(())) => continue,
                        Ok(Err(failure)) => failure,
                        Err(_) => "panicked, see above".to_owned(),
                    };
                    failures.lock().expect("no check panics here").insert(seed, failure);
                }
            });
        }
    });
    failures.into_inner().expect("no check panics here")
}

fn assert_none_failed(failures: &BTreeMap<u64, String>, n_cases: usize) {
    if let Some((seed, failure)) = failures.first_key_value() {
        let seeds: Vec<String> = failures.keys().take(20).map(u64::to_string).collect();
        panic!(
            "{} of {n_cases} cases failed (seeds {}); WARDBELL_SEED={seed}:\n{failure}",
            failures.len(),
            seeds.join(", ")
        );
    }
}

fn bytes(contents: &[Content]) -> Vec<Vec<u8>> {
    contents.iter().map(content_bytes).collect()
}

/// Whether two runs of the engine said the same, byte for byte.
fn same(case: &Case, what: &str, got: &[Content], expected: &[Content]) -> Result<(), String> {
    let (got_bytes, expected_bytes) = (bytes(got), bytes(expected));
    if got_bytes == expected_bytes {
        return Ok(());
    }
    let first = got_bytes.iter().zip(&expected_bytes).take_while(|(a, b)| a == b).count();
    let read = |list: &[Vec<u8>]| {
        list.get(first).map_or("nothing".into(), |content| String::from_utf8_lossy(content).into_owned())
    };
    Err(format!(
        "{what}: {} transitions instead of {}, number {first} is\n{}\ninstead of\n{}\n{}",
        got.len(),
        expected.len(),
        read(&got_bytes),
        read(&expected_bytes),
        printed(case)
    ))
}

// ---------------------------------------------------------------------------------------------------------------------
// The engine and the naive evaluation
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn engine_and_naive_evaluation_say_the_same_of_random_cases() {
    let seeds = seeds(CASES);
    let seen = Mutex::new(Seen::default());
    let failures = over_all(&seeds, |seed| {
        let case = random_case(seed);
        let (contents, outcomes) = compared(&case).map_err(|difference| difference.text)?;
        seen.lock().expect("no case panics here").add(&case, &contents, &outcomes);
        Ok(())
    });
    let seen = seen.into_inner().expect("no case panics here");
    if let (Some(first), Some(last)) = (seeds.first(), seeds.last()) {
        eprintln!("seeds {first} to {last}:");
    }
    seen.print();
    if let Some(seed) = failures.keys().next() {
        print_smallest_prefix(*seed);
    }
    assert_none_failed(&failures, seeds.len());
    if seen.cases < CASES_THAT_SHOW_EVERYTHING {
        return;
    }
    let technical = [
        "technical/stale raised",
        "technical/stale cleared",
        "technical/stale superseded",
        "technical/clock raised",
        "technical/clock cleared",
        "technical/feed raised",
        "technical/feed cleared",
        "technical/overrun raised",
        "technical/overrun cleared",
        "technical/sink raised",
        "technical/sink cleared",
    ];
    let kinds = wardbell_schemas::alert::TransitionKind::ALL.map(|kind| kind.name());
    for kind in kinds.into_iter().chain(technical) {
        assert!(seen.kinds.contains_key(kind), "no case shows `{kind}`: the generator lost it");
    }
    let outcomes = [
        Outcome::Evaluated,
        Outcome::Retimed,
        Outcome::Questionable,
        Outcome::Missing,
        Outcome::Technical,
        Outcome::Duplicate,
        Outcome::Conflict,
        Outcome::Corrected,
        Outcome::Late,
    ];
    for outcome in outcomes {
        let name = outcome.name();
        assert!(seen.outcomes.get(outcome) > 0, "no reading is `{name}`: the generator lost it");
    }
}

/// What of a case is enough to show where both sides differ.
fn print_smallest_prefix(seed: u64) {
    let mut case = random_case(seed);
    let n_items = case.items.len();
    let Err(Difference { items, kind, text }) = compared(&case) else {
        return;
    };
    case.items.truncate(items);
    eprintln!("seed {seed}: both sides differ after {items} of {n_items} items, {text}");
    let short = cut_down(&case, kind);
    let text = compared(&short).err().map(|difference| difference.text).unwrap_or_default();
    eprintln!("the same of the items it needs, the last of which shows it: {text}{}", printed(&short));
}

// ---------------------------------------------------------------------------------------------------------------------
// The engine and itself
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn how_records_are_gathered_into_batches_does_not_matter() {
    let seeds = seeds(OWN_CASES);
    let failures = over_all(&seeds, |seed| {
        // A tick ends a batch, so the long ones need a log without.
        let with_ticks = random_case(seed);
        for case in [with_ticks.without_ticks(), with_ticks] {
            let sets = Sets::of(&case);
            let (expected, expected_outcomes) = engine(&case, &sets, 1);
            for batch in [7, 100, case.items.len() + 1] {
                let (got, outcomes) = engine(&case, &sets, batch);
                same(&case, &format!("batches of {batch} records"), &got, &expected)?;
                if outcomes != expected_outcomes {
                    return Err(format!("batches of {batch} records: other outcomes\n{}", printed(&case)));
                }
            }
        }
        Ok(())
    });
    assert_none_failed(&failures, seeds.len());
}

#[test]
fn a_partition_written_and_read_back_goes_on_as_if_nothing_had_happened() {
    let seeds = seeds(OWN_CASES);
    let failures = over_all(&seeds, |seed| {
        let case = random_case(seed);
        let sets = Sets::of(&case);
        let (expected, _) = engine(&case, &sets, 1);
        let mut dice = Dice::of(!seed);
        let restarts: Vec<usize> = (0..dice.between(1, 3)).map(|_| dice.0.usize(0..=case.items.len())).collect();
        let mut feeder = Feeder::new(&case, &sets, 1);
        for index in 0..case.items.len() {
            if restarts.contains(&index) {
                feeder.restart();
            }
            feeder.feed(index);
        }
        let (got, _) = feeder.finish();
        same(&case, &format!("read back before the items {restarts:?}"), &got, &expected)
    });
    assert_none_failed(&failures, seeds.len());
}

/// Writes a checkpoint of a case while its items go on being applied, and reads it back: what comes is the partition
/// that saw the items before it began, byte for byte, and goes on like it.
fn check_written_while_items_are_applied(seed: u64) -> Result<(), String> {
    let case = random_case(seed);
    let sets = Sets::of(&case);
    let mut dice = Dice::of(!seed);
    let begin = dice.0.usize(0..=case.items.len());
    let budget = dice.pick(&[0, 200, 5_000]);
    let mut written_meanwhile = Feeder::new(&case, &sets, 1);
    let mut stopped = Feeder::new(&case, &sets, 1);
    for index in 0..begin {
        written_meanwhile.feed(index);
        stopped.feed(index);
    }
    written_meanwhile.partition.begin_checkpoint();
    let mut slices = Vec::new();
    for index in begin..case.items.len() {
        // Most items find their patients unwritten.
        if dice.chance(5) {
            slices.extend(written_meanwhile.partition.next_slice(budget));
        }
        written_meanwhile.feed(index);
    }
    while written_meanwhile.partition.is_checkpointing() {
        slices.extend(written_meanwhile.partition.next_slice(budget));
    }
    if let Some(slice) = slices.iter().find(|slice| slice.is_empty() || slice.len() > SLICE_MAX) {
        return Err(format!("a slice of {} bytes", slice.len()));
    }
    let differ = |what: &str| Err(format!("begun before item {begin}, budget {budget}: {what}\n{}", printed(&case)));
    let mut restored = Feeder::new(&case, &sets, 1);
    (restored.in_force, restored.number) = (stopped.in_force, stopped.number);
    (restored.said, restored.decided) = (stopped.said.clone(), stopped.decided.clone());
    restored.partition = match restored.read_back(&slices) {
        Ok(partition) => partition,
        Err(fault) => return differ(&fault.to_string()),
    };
    if written(&mut restored.partition) != written(&mut stopped.partition) {
        return differ("another state than at the beginning");
    }
    let before = *stopped.partition.outcomes();
    for index in begin..case.items.len() {
        restored.feed(index);
        stopped.feed(index);
    }
    same(&case, &format!("read back as of item {begin}"), &restored.decided, &stopped.decided)?;
    same(&case, &format!("written from item {begin} on"), &written_meanwhile.decided, &stopped.decided)?;
    let mut outcomes = before;
    outcomes.merge(restored.partition.outcomes());
    if outcomes != *stopped.partition.outcomes() {
        return differ("other outcomes afterwards");
    }
    if written(&mut restored.partition) != written(&mut stopped.partition) {
        return differ("another state at the end");
    }
    Ok(())
}

#[test]
fn a_checkpoint_is_the_state_at_its_beginning_whatever_is_applied_meanwhile() {
    let seeds = seeds(10 * OWN_CASES);
    let failures = over_all(&seeds, check_written_while_items_are_applied);
    assert_none_failed(&failures, seeds.len());
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let case = random_case(1);
    let sets = Sets::of(&case);
    let mut feeder = Feeder::new(&case, &sets, 1);
    for index in 0..case.items.len() {
        feeder.feed(index);
    }
    let whole = written(&mut feeder.partition).concat();
    assert!(feeder.read_back(std::slice::from_ref(&whole)).is_ok());
    let refused = |bytes: Vec<u8>, what: &str| {
        let slices = [bytes];
        assert!(Partition::head(&slices).is_err() && feeder.read_back(&slices).is_err(), "{what} is not noticed");
    };
    let step = whole.len().div_ceil(400);
    for end in (0..whole.len()).step_by(step).chain(whole.len().saturating_sub(50)..whole.len()) {
        refused(whole[..end].to_vec(), &format!("a cut at byte {end} of {}", whole.len()));
    }
    for at in (0..whole.len()).step_by(step).chain(0..20) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(bytes, &format!("a flipped bit of byte {at} of {}", whole.len()));
    }
    refused([whole.clone(), vec![0]].concat(), "a byte behind the end");
    assert_eq!(Partition::head(&[]), Err(Unreadable::Damaged { what: "it does not begin like one" }));
    let mut newer = whole;
    newer[8] = 2;
    assert_eq!(Partition::head(&[newer]), Err(Unreadable::Form { found: 2 }));
}

/// Episodes go on under their ids: each transition is told once, in the order of its number, and none after the end.
fn check_episodes(case: &Case, contents: &[Content]) -> Result<(), String> {
    let mut newest: HashMap<&str, &Content> = HashMap::new();
    for content in contents {
        let before = newest.insert(&content.episode, content);
        let goes_on = match before {
            None => content.number == 0,
            Some(before) => content.number == before.number + 1 && before.state != State::Off,
        };
        if !goes_on {
            return Err(format!("{} {} is out of place\n{}", content.id, content.transition.name(), printed(case)));
        }
    }
    Ok(())
}

#[test]
fn episodes_rebuilt_from_alerts_go_on_under_their_ids() {
    let seeds = seeds(OWN_CASES);
    let n_open = AtomicU64::new(0);
    let failures = over_all(&seeds, |seed| {
        let case = random_case(seed);
        let sets = Sets::of(&case);
        let (expected, _) = engine(&case, &sets, 1);
        let rebuilt_before = Dice::of(!seed).0.usize(0..=case.items.len());
        for loses_all in [false, true] {
            let mut feeder = Feeder::new(&case, &sets, 1);
            for index in 0..case.items.len() {
                if index == rebuilt_before {
                    let (_, _, open) = feeder.partition.sizes();
                    if loses_all {
                        feeder.partition.rebuild_episodes(&[]);
                    }
                    let unknown = feeder.partition.rebuild_episodes(&feeder.decided);
                    if !unknown.is_empty() || feeder.partition.sizes().2 != open {
                        return Err(format!("before item {index}, {unknown:?} are not known\n{}", printed(&case)));
                    }
                    n_open.fetch_add(open as u64, Ordering::Relaxed);
                }
                feeder.feed(index);
            }
            let (got, _) = feeder.finish();
            if loses_all {
                check_episodes(&case, &got).map_err(|fault| format!("lost before item {rebuilt_before}: {fault}"))?;
            } else {
                same(&case, &format!("rebuilt before item {rebuilt_before}"), &got, &expected)?;
            }
        }
        Ok(())
    });
    assert_none_failed(&failures, seeds.len());
    assert!(seeds.len() < 100 || n_open.into_inner() > 0, "no case has an open episode: the generator lost it");
}

/// Where a source's clock stands after a time was said (2.5).
fn moved(clock: Option<Micros>, to: Micros, record_clock: bool) -> Micros {
    match clock {
        Some(now) if to <= now && (record_clock || to >= now - 10 * SECOND) => now,
        _ => to,
    }
}

#[test]
fn ticks_that_say_nothing_new_change_nothing() {
    let seeds = seeds(OWN_CASES);
    let failures = over_all(&seeds, |seed| {
        let case = random_case(seed);
        let sets = Sets::of(&case);
        let (expected, expected_outcomes) = engine(&case, &sets, 1);
        let mut dice = Dice::of(!seed);
        let mut clocks: BTreeMap<&str, Micros> = BTreeMap::new();
        let mut feeder = Feeder::new(&case, &sets, 1);
        for (index, item) in case.items.iter().enumerate() {
            feeder.feed(index);
            let (source, to, is_tick) = match item {
                Item::Record(record) => (record.source.as_str(), record.broker_us, false),
                Item::Tick { source, time_us } => (source.as_str(), *time_us, true),
                _ => continue,
            };
            let now = moved(clocks.get(source).copied(), to, case.record_clock);
            clocks.insert(source, now);
            // After a record of a source with its own clock, even a tick of the same time can say that the feed is
            // watched.
            if (is_tick || case.record_clock) && dice.chance(50) {
                let back = if case.record_clock { 5 * MINUTE } else { 10 * SECOND };
                let back = if dice.chance(30) { 0 } else { dice.between(0, back) };
                feeder.tick(source, now - back);
            }
        }
        let (got, outcomes) = feeder.finish();
        same(&case, "with ticks that say nothing new", &got, &expected)?;
        if outcomes == expected_outcomes { Ok(()) } else { Err("other outcomes".to_owned()) }
    });
    assert_none_failed(&failures, seeds.len());
}

#[test]
fn records_applied_twice_change_nothing_and_are_counted() {
    let seeds = seeds(OWN_CASES);
    let failures = over_all(&seeds, |seed| {
        let case = random_case(seed);
        let sets = Sets::of(&case);
        let (expected, expected_outcomes) = engine(&case, &sets, 1);
        let mut dice = Dice::of(!seed);
        let batch = dice.pick(&[1, 1, 7]);
        let mut feeder = Feeder::new(&case, &sets, batch);
        let mut repeated = 0;
        for index in 0..case.items.len() {
            feeder.feed(index);
            if !dice.chance(30) {
                continue;
            }
            // The record itself or one before it, of whichever source: all of them were applied or stand in this batch.
            // Directly after itself it would be the same record, not the same again.
            let again = index - dice.0.usize(0..=index.min(20));
            if let Item::Record(record) = &case.items[again]
                && feeder.newest_offset != Some(again as i64)
            {
                feeder.gather(record, again as i64);
                repeated += record.readings.len() as u64;
            }
        }
        let (got, outcomes) = feeder.finish();
        same(&case, "with records applied twice", &got, &expected)?;
        let mut counted = expected_outcomes;
        counted.repeated = repeated;
        if outcomes == counted {
            Ok(())
        } else {
            Err(format!("{repeated} readings were repeated, counted are {}", outcomes.repeated))
        }
    });
    assert_none_failed(&failures, seeds.len());
}

#[test]
fn the_same_rules_under_another_number_change_nothing() {
    let seeds = seeds(OWN_CASES);
    let failures = over_all(&seeds, |seed| {
        let mut case = random_case(seed);
        let sets = Sets::of(&case);
        let (expected, expected_outcomes) = engine(&case, &sets, 1);
        // Room for numbers in between.
        for item in &mut case.items {
            if let Item::Activate { number, .. } = item {
                *number *= 1_000;
            }
        }
        let mut dice = Dice::of(!seed);
        let places: Vec<usize> = (0..dice.between(1, 5)).map(|_| dice.0.usize(0..=case.items.len())).collect();
        let mut feeder = Feeder::new(&case, &sets, dice.pick(&[1, 1, 7]));
        for index in 0..case.items.len() {
            if places.contains(&index) {
                feeder.activate_again();
            }
            feeder.feed(index);
        }
        let (got, outcomes) = feeder.finish();
        same(&case, &format!("activated again before the items {places:?}"), &got, &expected)?;
        if outcomes == expected_outcomes { Ok(()) } else { Err("other outcomes".to_owned()) }
    });
    assert_none_failed(&failures, seeds.len());
}

#[test]
fn every_reading_that_was_fed_has_exactly_one_outcome() {
    let seeds = seeds(OWN_CASES);
    let failures = over_all(&seeds, |seed| {
        let case = random_case(seed);
        let (_, outcomes) = engine(&case, &Sets::of(&case), 7);
        let total = outcomes.total();
        if total == case.readings() && outcomes.repeated == 0 {
            Ok(())
        } else {
            Err(format!("{} readings, {total} outcomes\n{}", case.readings(), printed(&case)))
        }
    });
    assert_none_failed(&failures, seeds.len());
}

// ---------------------------------------------------------------------------------------------------------------------
// A recorded stay
// ---------------------------------------------------------------------------------------------------------------------

/// The signal of a column of the recording.
fn recorded_signal(column: &str) -> Option<&'static str> {
    Some(match column.split(" (").next()? {
        "HR" => "heart_rate",
        "PULSE" => "pulse_rate",
        "RESP" => "resp_rate",
        "SpO2" => "spo2",
        "ABPSys" => "abp_sys",
        "ABPDias" => "abp_dia",
        "ABPMean" => "abp_mean",
        "NBPSys" => "nibp_sys",
        "NBPDias" => "nibp_dia",
        "NBPMean" => "nibp_mean",
        _ => return None,
    })
}

/// One record a minute; empty, -32768 and 0 are blanks.
fn recorded_items(text: &str) -> Vec<Item> {
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
    let mut items = Vec::new();
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let minute: i64 = cells[0].parse().expect("a minute is a number");
        let broker_us = YEAR_2026 + minute * MINUTE;
        let mut readings = Vec::new();
        for (column, cell) in columns.iter().zip(&cells) {
            let Some(signal) = recorded_signal(column) else {
                continue;
            };
            let per_unit = Catalogue::builtin().by_id(signal).expect(signal).per_unit as f64;
            let number = cell.trim().parse::<f64>().ok();
            let known = number.filter(|number| *number != 0.0 && *number != -32768.0);
            readings.push(Reading {
                patient: "s00001".to_owned(),
                device: "monitor".to_owned(),
                signal: signal.to_owned(),
                method: "-".to_owned(),
                event_us: broker_us,
                value: known.map(|number| (number * per_unit).round() as i64),
                comparator: Comparator::None,
                questionable: false,
                off: false,
                change: Change::None,
            });
        }
        items.push(Item::Record(Record { source: "devices/0".to_owned(), broker_us, readings }));
    }
    items
}

#[test]
fn engine_and_naive_evaluation_say_the_same_of_a_recorded_stay() {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("WARDBELL_DATA").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| here.join("../../../shared/data"));
    let path = folder.join("bedside_numerics_3975656n.csv");
    let Ok(recording) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: no {} (set WARDBELL_DATA)", path.display());
        return;
    };
    let pack = here.join("../../rules/packs/adult-ward");
    let files = std::fs::read_dir(&pack).expect("the folder of the pack can be read");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file of the pack").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rhai"));
    files.sort();
    let rules = files.iter().map(|file| std::fs::read_to_string(file).expect("a rule can be read"));
    let set = Set {
        rules: rules.collect(),
        lateness_us: MINUTE,
        skew_us: 5 * SECOND,
        epoch_check: true,
        samples_max: 8_192,
        connectors: Vec::new(),
    };
    let items = recorded_items(&recording);
    let case = Case { seed: 0, start: YEAR_2026, record_clock: true, set, people: BTreeMap::new(), items };
    let (contents, outcomes) = match compared(&case) {
        Ok(both) => both,
        Err(Difference { items, text, .. }) => panic!("after {items} items, {text}"),
    };
    let mut seen = Seen::default();
    seen.add(&case, &contents, &outcomes);
    seen.print();
    assert!(!contents.is_empty(), "nothing happened in {}", path.display());
    let sets = Sets::of(&case);
    for batch in [7, 100, case.items.len()] {
        let (got, _) = engine(&case, &sets, batch);
        assert_eq!(bytes(&got), bytes(&contents), "batches of {batch} records give other contents");
    }
}
