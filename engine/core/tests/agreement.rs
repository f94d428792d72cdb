//! Two evaluations of one meaning: the engine against the naive one in [`oracle`], over random cases and a recorded
//! stay; and the engine against itself, where the log was cut, repeated or interrupted.
//!
//! A random case is a function of its seed. `WARDBELL_SEED=<n>` runs just this seed, `WARDBELL_CASES=<n>` sets how many
//! seeds are run, from 0. A disagreement is cut down to the items it needs before it is printed.

mod oracle;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use oracle::{Item, Reading, Record, Transition};
use wardbell_core::partition::{Partition, Settings, State};
use wardbell_rules::{RuleSet, SourceFile, compile};
use wardbell_schemas::alert::{Content, content_bytes};
use wardbell_schemas::catalogue::{Catalogue, Signal};
use wardbell_schemas::control::{Control, ControlRecord, TickClaim};
use wardbell_schemas::outcome::{Outcome, OutcomeCounts};
use wardbell_schemas::reading::{Quality, ReadingBatchBuilder, ReadingRow, Reason};
use wardbell_schemas::{Micros, SECOND};

const CASES: u64 = 3_000;
/// Cases of each test that compares the engine with itself.
const OWN_CASES: u64 = 300;
/// Fewer cases than this need not show everything that can happen.
const CASES_THAT_SHOW_EVERYTHING: u64 = 1_000;
const MINUTE: Micros = 60 * SECOND;
const DAY: Micros = 24 * 60 * MINUTE;
/// 2026-01-01T00:00:00Z.
const YEAR_2026: Micros = 1_767_225_600 * SECOND;
const READINGS_MAX: i64 = 260;

// ---------------------------------------------------------------------------------------------------------------------
// Cases
// ---------------------------------------------------------------------------------------------------------------------

/// One log with its rules.
#[derive(Clone)]
struct Case {
    seed: u64,
    /// Where its times are printed from.
    start: Micros,
    lateness_us: Micros,
    skew_us: Micros,
    epoch_check: bool,
    record_clock: bool,
    samples_max: usize,
    rules: Vec<String>,
    people: Vec<Person>,
    items: Vec<Item>,
}

#[derive(Clone)]
struct Person {
    id: String,
    limits: BTreeMap<String, f64>,
    attributes: BTreeMap<String, f64>,
}

impl Case {
    fn readings(&self) -> u64 {
        let in_item = |item: &Item| match item {
            Item::Record(record) => record.readings.len() as u64,
            Item::Tick { .. } => 0,
        };
        self.items.iter().map(in_item).sum()
    }

    /// The rules, checked: a random rule has no fault that the checker knows of.
    fn rule_set(&self) -> RuleSet {
        let mut rules = Vec::new();
        for text in &self.rules {
            let file = SourceFile { path: "random.rhai".to_owned(), text: text.clone() };
            let (rule, faults) = compile(&file, Catalogue::builtin());
            let faults: Vec<String> = faults.iter().map(|fault| fault.render(text, false)).collect();
            assert!(faults.is_empty(), "seed {}: a faulty rule\n{text}\n{}", self.seed, faults.join("\n"));
            rules.extend(rule);
        }
        RuleSet::new(rules)
    }

    fn settings(&self) -> Settings {
        Settings {
            lateness_us: self.lateness_us,
            skew_us: self.skew_us,
            epoch_check: self.epoch_check,
            record_clock: self.record_clock,
            samples_max: self.samples_max,
            ..Settings::new("test")
        }
    }

    /// The same without ticks.
    fn without_ticks(&self) -> Self {
        let mut case = self.clone();
        case.items.retain(|item| matches!(item, Item::Record(_)));
        case
    }
}

/// Chance, as a function of a seed.
struct Dice(fastrand::Rng);

impl Dice {
    fn of(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.u32(0..100) < percent
    }

    /// Both ends included.
    fn between(&mut self, from: i64, to: i64) -> i64 {
        self.0.i64(from..=to)
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.0.usize(0..list.len())]
    }
}

/// A signal of random cases, and around which value its readings and the limits of its rules lie.
struct Profile {
    id: &'static str,
    /// In the signal's unit; a category has none.
    level: Option<(f64, f64)>,
}

const PROFILES: [Profile; 6] = [
    Profile { id: "heart_rate", level: Some((120.0, 15.0)) },
    Profile { id: "spo2", level: Some((90.0, 4.0)) },
    Profile { id: "resp_rate", level: Some((20.0, 6.0)) },
    Profile { id: "nibp_sys", level: Some((100.0, 15.0)) },
    Profile { id: "temp_core", level: Some((39.0, 0.6)) },
    Profile { id: "consciousness", level: None },
];

impl Profile {
    fn signal(&self) -> &'static Signal {
        Catalogue::builtin().by_id(self.id).expect(self.id)
    }

    /// Level and spread in counts of resolution.
    fn counts(&self) -> Option<(i64, i64)> {
        let per_unit = self.signal().per_unit as f64;
        let counts = |value: f64| (value * per_unit).round() as i64;
        self.level.map(|(level, spread)| (counts(level), counts(spread)))
    }
}

/// How wrong a device's clock is.
#[derive(Clone, Copy)]
enum DeviceClock {
    Right,
    Off(Micros),
    /// Time since it was switched on, counted from a reset date.
    Reset(Micros),
}

/// One source partition.
struct Source {
    name: String,
    /// Gathers what comes within a second.
    gathers: bool,
    /// From the first time on its clock is behind by the second.
    set_back: Option<(Micros, Micros)>,
    /// Nothing arrives in between; what should have, arrives after it.
    outage: Option<(Micros, Micros)>,
}

impl Source {
    fn arrival(&self, at: Micros, dice: &mut Dice) -> Micros {
        let at = match self.outage {
            Some((from, to)) if (from..to).contains(&at) => to + dice.between(0, 2 * SECOND),
            _ => at,
        };
        if self.gathers { at + (SECOND - at.rem_euclid(SECOND)) % SECOND } else { at }
    }

    fn broker(&self, at: Micros) -> Micros {
        match self.set_back {
            Some((from, by)) if at >= from => at - by,
            _ => at,
        }
    }
}

/// What every part of a case keeps to.
struct Frame {
    start: Micros,
    end: Micros,
    /// From the first time on everything is later by the second.
    pause: Option<(Micros, Micros)>,
    /// Hours instead of minutes.
    long: bool,
    record_clock: bool,
}

impl Frame {
    fn real(&self, at: Micros) -> Micros {
        match self.pause {
            Some((from, by)) if at >= from => at + by,
            _ => at,
        }
    }

    fn inside(&self, dice: &mut Dice) -> Micros {
        dice.between(self.start, self.end)
    }
}

/// Something that reaches a source partition, in the order of the log.
struct Arrival {
    at: Micros,
    /// Ticks before or after the readings of the same time.
    rank: u8,
    source: usize,
    reading: Option<Reading>,
}

fn random_case(seed: u64) -> Case {
    let mut dice = Dice::of(seed);
    let dice = &mut dice;
    let record_clock = dice.chance(35);
    let long = record_clock && dice.chance(20);
    let epoch_check = dice.chance(70);
    let start = if epoch_check || dice.chance(50) { YEAR_2026 } else { 0 };
    let length = if long { dice.between(60, 240) } else { dice.between(2, 10) } * MINUTE;
    let mut frame = Frame { start, end: start + length, pause: None, long, record_clock };
    if dice.chance(4) {
        let by = dice.pick(&[20 * SECOND, 10 * MINUTE, 8 * DAY]);
        frame.pause = Some((frame.inside(dice), by));
    }
    let mut profiles: Vec<&'static Profile> = PROFILES.iter().collect();
    dice.0.shuffle(&mut profiles);
    profiles.truncate(dice.pick(&[1, 1, 2, 2, 3, 4]));
    let sources = random_sources(dice, &frame);
    let people = random_people(dice, &profiles);
    let mut arrivals = random_readings(dice, &frame, &sources, &people, &profiles);
    for (index, source) in sources.iter().enumerate() {
        random_ticks(dice, &frame, index, source, &mut arrivals);
    }
    let n_rules = dice.between(1, 4);
    Case {
        seed,
        start,
        lateness_us: dice.pick(&[60, 60, 60, 30, 120]) * SECOND,
        skew_us: dice.pick(&[5, 5, 5, 1, 0]) * SECOND,
        epoch_check,
        record_clock,
        samples_max: if dice.chance(6) { dice.0.usize(5..40) } else { 8_192 },
        rules: (0..n_rules).map(|number| random_rule(dice, number, &profiles, long)).collect(),
        people,
        items: into_items(dice, &frame, &sources, arrivals),
    }
}

fn random_sources(dice: &mut Dice, frame: &Frame) -> Vec<Source> {
    let n_sources = if frame.record_clock { 1 } else { dice.pick(&[1, 1, 2, 3]) };
    let mut sources = Vec::new();
    for partition in 0..n_sources {
        let mut source =
            Source { name: format!("devices/{partition}"), gathers: dice.chance(35), set_back: None, outage: None };
        if !frame.record_clock && dice.chance(6) {
            source.set_back = Some((frame.inside(dice), dice.between(11, 300) * SECOND));
        }
        if dice.chance(25) {
            let from = frame.inside(dice);
            source.outage = Some((from, from + dice.between(5, 120) * SECOND));
        }
        sources.push(source);
    }
    sources
}

fn random_people(dice: &mut Dice, profiles: &[&Profile]) -> Vec<Person> {
    let mut people = Vec::new();
    for number in 1..=dice.pick(&[1, 1, 1, 2, 2, 3]) {
        let mut person = Person { id: format!("p{number}"), limits: BTreeMap::new(), attributes: BTreeMap::new() };
        if dice.chance(60) {
            person.attributes.insert("age".to_owned(), dice.between(20, 95) as f64);
        }
        if dice.chance(20) {
            let profile = dice.pick(profiles);
            let name = dice.pick(&["low", "very", "mild", "clear", "bound"]);
            let limit = profile.level.map_or(50.0, |(level, _)| level + dice.between(-3, 3) as f64);
            person.limits.insert(name.to_owned(), limit);
        }
        people.push(person);
    }
    people
}

/// One series of a case, before its readings.
struct Plan<'a> {
    patient: &'a str,
    device: usize,
    profile: &'static Profile,
    interval: Micros,
}

/// One device of a case.
struct Device {
    name: String,
    source: usize,
    from: Micros,
    until: Micros,
    clocks: Vec<(Micros, DeviceClock)>,
    /// Event times are rounded down to it.
    stamp: Micros,
    /// Sends what it has once in this time; 0: at once.
    sends_every: Micros,
    latency: Micros,
    /// Readings in a hundred that come much later.
    late: u32,
    /// Devices of some cases change over to another source partition.
    roams: Option<(Micros, usize)>,
}

fn random_device(dice: &mut Dice, frame: &Frame, number: usize, n_sources: usize) -> Device {
    let mut clocks = vec![(frame.start, random_clock(dice))];
    while dice.chance(30) && clocks.len() < 4 {
        clocks.push((frame.inside(dice), random_clock(dice)));
    }
    clocks.sort_by_key(|(from, _)| *from);
    let roams = n_sources > 1 && dice.chance(3);
    Device {
        name: format!("mon-{number}"),
        source: dice.0.usize(0..n_sources),
        from: if dice.chance(25) { frame.inside(dice) } else { frame.start },
        until: if dice.chance(30) { frame.inside(dice) } else { frame.end },
        clocks,
        stamp: dice.pick(&[1, 1, 1, 1, 1, SECOND, 10 * SECOND, MINUTE]),
        sends_every: dice.pick(&[0, 0, 0, 5, 15, 40]) * SECOND,
        latency: dice.pick(&[0, 0, 200_000, 1_700_000]),
        late: dice.pick(&[0, 0, 0, 3, 15]),
        roams: roams.then(|| (frame.inside(dice), dice.0.usize(0..n_sources))),
    }
}

fn random_clock(dice: &mut Dice) -> DeviceClock {
    match dice.between(0, 19) {
        0 => DeviceClock::Off(-dice.between(120, 600) * SECOND),
        1 => DeviceClock::Off(-dice.between(1, 120) * SECOND),
        2 => DeviceClock::Off(dice.between(6, 3_600) * SECOND),
        3 => DeviceClock::Off(dice.between(0, 6 * SECOND)),
        4 => DeviceClock::Reset(dice.pick(&[0, 946_684_800 * SECOND])),
        _ => DeviceClock::Right,
    }
}

fn random_readings(
    dice: &mut Dice,
    frame: &Frame,
    sources: &[Source],
    people: &[Person],
    profiles: &[&'static Profile],
) -> Vec<Arrival> {
    let mut devices = Vec::new();
    let mut plans: Vec<Plan> = Vec::new();
    for person in people {
        for number in 1..=dice.pick(&[1, 1, 2, 2, 3]) {
            devices.push(random_device(dice, frame, number, sources.len()));
            for profile in profiles {
                if dice.chance(70) {
                    let interval = if frame.long {
                        dice.pick(&[60, 60, 300, 900])
                    } else {
                        dice.pick(&[1, 1, 2, 2, 5, 5, 10, 60, 900])
                    };
                    plans.push(Plan {
                        patient: &person.id,
                        device: devices.len() - 1,
                        profile,
                        interval: interval * SECOND,
                    });
                }
            }
        }
    }
    // Neither side is fast with many readings, so the densest series give way.
    let length = frame.end - frame.start;
    while plans.iter().map(|plan| length / plan.interval + 1).sum::<i64>() > READINGS_MAX {
        let Some(densest) = plans.iter_mut().min_by_key(|plan| plan.interval) else {
            break;
        };
        densest.interval *= dice.between(2, 3);
    }
    let mut arrivals = Vec::new();
    for plan in &plans {
        random_series(dice, frame, sources, plan, &devices[plan.device], &mut arrivals);
    }
    arrivals
}

fn random_series(
    dice: &mut Dice,
    frame: &Frame,
    sources: &[Source],
    plan: &Plan,
    device: &Device,
    arrivals: &mut Vec<Arrival>,
) {
    let signal = plan.profile.signal();
    let (level, spread) = plan.profile.counts().unwrap_or((2, 2));
    let random_level = |dice: &mut Dice| level + dice.between(-spread, spread);
    let bounds = if signal.is_category() { (0, 4) } else { (0, i64::MAX) };
    let (blanks, doubts) = (dice.pick(&[0, 2, 10]), dice.pick(&[0, 0, 3, 20]));
    let (repeats, again) = (dice.pick(&[20, 60, 90]), dice.pick(&[0, 0, 2, 8]));
    let unsteady = dice.chance(30);
    let mut value = random_level(dice);
    let mut offset = dice.between(0, 3) * plan.interval / 4;
    if unsteady {
        offset += dice.between(0, SECOND);
    }
    let mut at = device.from + offset;
    while at < device.until {
        if dice.chance(6) {
            value = random_level(dice);
        } else if !dice.chance(repeats) {
            let step = (spread / 5).max(1);
            value += dice.between(-step, step);
            // Back to where the limits are.
            value = value.clamp(level - 2 * spread, level + 2 * spread);
        }
        value = value.clamp(bounds.0, bounds.1);
        let real = frame.real(at);
        let clock = device.clocks.iter().rev().find(|(from, _)| *from <= at);
        let event = match clock.map_or(DeviceClock::Right, |(_, clock)| *clock) {
            DeviceClock::Right => real,
            DeviceClock::Off(by) => real + by,
            DeviceClock::Reset(date) => date + (real - frame.start),
        };
        let reading = Reading {
            patient: plan.patient.to_owned(),
            device: device.name.clone(),
            signal: plan.profile.id.to_owned(),
            method: "-".to_owned(),
            event_us: event - event.rem_euclid(device.stamp),
            value: (!dice.chance(blanks)).then_some(value),
            questionable: false,
        };
        let reading = Reading { questionable: reading.value.is_some() && dice.chance(doubts), ..reading };
        let mut sent = real + device.latency;
        if device.sends_every > 0 {
            sent += device.sends_every - sent.rem_euclid(device.sends_every);
        }
        if dice.chance(device.late) {
            sent += dice.between(SECOND, 3 * MINUTE);
        }
        let source = match device.roams {
            Some((from, to)) if at >= from => to,
            _ => device.source,
        };
        let sent = sources[source].arrival(sent, dice);
        if dice.chance(again) {
            let mut copy = reading.clone();
            if dice.chance(50) {
                copy.value = copy.value.map(|value| (value + dice.between(-1, 1)).clamp(bounds.0, bounds.1));
            }
            let later = if dice.chance(40) { 0 } else { dice.between(SECOND / 2, 90 * SECOND) };
            arrivals.push(Arrival {
                at: sources[source].arrival(sent + later, dice),
                rank: 1,
                source,
                reading: Some(copy),
            });
        }
        arrivals.push(Arrival { at: sent, rank: 1, source, reading: Some(reading) });
        at += plan.interval;
        if unsteady {
            at += dice.between(-plan.interval / 10, plan.interval / 10);
        }
        if dice.chance(2) {
            at += dice.between(1, 180) * SECOND;
        }
    }
}

fn random_ticks(dice: &mut Dice, frame: &Frame, index: usize, source: &Source, arrivals: &mut Vec<Arrival>) {
    let mut ticks = Vec::new();
    if !frame.record_clock {
        // In all but some cases, often enough for a clock that is watched.
        let step = dice.pick(&[1, 5, 8, 9, 0, 30]) * SECOND;
        let mut at = frame.start;
        while at < frame.end + 150 * SECOND {
            ticks.push(at);
            at += if step > 0 { step } else { dice.between(SECOND, 9 * SECOND) };
        }
    } else if dice.chance(30) {
        let step = dice.between(10, 90) * SECOND;
        ticks.extend((0..20).map(|i| frame.start + i * step));
    }
    if frame.record_clock {
        ticks.push(frame.end + dice.between(0, 300) * SECOND);
    }
    for at in ticks {
        let at = frame.real(at);
        if source.outage.is_none_or(|(from, to)| !(from..to).contains(&at)) {
            arrivals.push(Arrival { at, rank: if dice.chance(50) { 0 } else { 2 }, source: index, reading: None });
        }
    }
}

/// Gathers what arrived into records, in the order of the log.
fn into_items(dice: &mut Dice, frame: &Frame, sources: &[Source], mut arrivals: Vec<Arrival>) -> Vec<Item> {
    arrivals.sort_by_key(|arrival| (arrival.at, arrival.rank, arrival.source));
    let mut items: Vec<Item> = Vec::new();
    // Time and source of the record that is being filled.
    let mut filling: Option<(Micros, usize)> = None;
    for arrival in arrivals {
        let source = &sources[arrival.source];
        let place = (arrival.at, arrival.source);
        let mut time_us = source.broker(arrival.at);
        let Some(reading) = arrival.reading else {
            filling = None;
            if dice.chance(4) {
                time_us -= dice.between(1, 5 * SECOND);
            }
            items.push(Item::Tick { source: source.name.clone(), time_us });
            continue;
        };
        match items.last_mut() {
            Some(Item::Record(record)) if filling == Some(place) && !dice.chance(4) => record.readings.push(reading),
            _ => {
                if dice.chance(3) {
                    let most = if frame.record_clock { 3 * SECOND } else { 9 * SECOND };
                    time_us -= dice.between(1, most);
                }
                filling = Some(place);
                items.push(Item::Record(Record {
                    source: source.name.clone(),
                    broker_us: time_us,
                    readings: vec![reading],
                }));
            }
        }
    }
    for item in &mut items {
        if let Item::Record(record) = item
            && dice.chance(15)
        {
            dice.0.shuffle(&mut record.readings);
        }
    }
    items
}

// ---------------------------------------------------------------------------------------------------------------------
// Rules
// ---------------------------------------------------------------------------------------------------------------------

/// A rule that is being written.
struct RuleWriter<'a> {
    dice: &'a mut Dice,
    long: bool,
    limits: BTreeMap<&'static str, String>,
    helpers: Vec<String>,
    of_patient: bool,
}

/// `raise` and, if there is one, `clear`.
type Bodies = (String, Option<String>);

const FALSE: [&str; 3] = ["false", "\"none\"", "false"];

fn random_rule(dice: &mut Dice, number: i64, profiles: &[&'static Profile], long: bool) -> String {
    let mut read = profiles.to_vec();
    dice.0.shuffle(&mut read);
    let several = read.len() > 1 && dice.chance(40);
    read.truncate(if several { dice.pick(&[2, 2, 3]) } else { 1 });
    let mut writer = RuleWriter { dice, long, limits: BTreeMap::new(), helpers: Vec::new(), of_patient: false };
    let (raise, clear) = writer.bodies(&read);
    let RuleWriter { dice, limits, helpers, of_patient, .. } = writer;

    let mut fields = vec![
        format!("id: \"rule-{number}\", version: 1, owner: \"random\""),
        format!("priority: \"{}\"", dice.pick(&["low", "medium", "high"])),
    ];
    let mut duration = |dice: &mut Dice, percent: u32, name: &str, values: &[&str]| {
        if dice.chance(percent) {
            fields.push(format!("{name}: \"{}\"", dice.pick(values)));
        }
    };
    duration(dice, 60, "hold", &["0s", "3s", "5s", "10s", "20s", "45s", "1500ms"]);
    duration(dice, 50, "clear_hold", &["0s", "4s", "10s", "30s", "1m"]);
    duration(dice, 25, "gap", &["2s", "10s", "1m", "5m"]);
    duration(dice, 25, "max_age", &["0s", "2s", "10s", "1m", "10m"]);
    duration(dice, 25, "cool_down", &["0s", "10s", "1m", "2m"]);
    if dice.chance(25) {
        fields.push("latching: true".to_owned());
    }
    if dice.chance(30) {
        fields.push("accept: [\"questionable\"]".to_owned());
    }
    if !limits.is_empty() {
        let limits: Vec<String> = limits.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        fields.push(format!("limits: #{{ {} }}", limits.join(", ")));
    }
    let parameters = parameters(&read, of_patient);
    let mut text = format!("const RULE = #{{ {} }};\n", fields.join(", "));
    for helper in helpers {
        text += &helper;
        text.push('\n');
    }
    let _ = writeln!(text, "fn raise({parameters}) {{ {raise} }}");
    if let Some(clear) = clear {
        let _ = writeln!(text, "fn clear({parameters}) {{ {clear} }}");
    }
    if let [profile] = read[..]
        && profile.level.is_some()
        && dice.chance(20)
    {
        let id = profile.id;
        let _ = writeln!(text, "fn message({id}) {{ `{id} is ${{{id}.last}}` }}");
    }
    text
}

fn parameters(read: &[&Profile], of_patient: bool) -> String {
    let mut names: Vec<&str> = read.iter().map(|profile| profile.id).collect();
    names.push("limit");
    if of_patient {
        names.push("patient");
    }
    names.join(", ")
}

fn literal(counts: i64, per_unit: i64) -> String {
    format!("{:?}", counts as f64 / per_unit as f64)
}

impl RuleWriter<'_> {
    fn bodies(&mut self, read: &[&Profile]) -> Bodies {
        let first = read[0];
        let numbers: Vec<&Profile> = read.iter().copied().filter(|profile| profile.level.is_some()).collect();
        match (self.dice.between(0, 13), &numbers[..]) {
            (0..=2, [..]) if read.len() == 1 && first.level.is_some() => self.one_limit(first),
            (3..=5, [profile, ..]) => self.bands(profile, read),
            (6, [profile, ..]) => self.chain_of_names(profile, read),
            (7, [profile, ..]) => self.by_age(profile),
            (8, [profile, ..]) => self.own_functions(profile),
            (0..=2 | 11, [a, b, ..]) => self.two_numbers(a, b),
            (9, _) => {
                let (urgent, mild) = (self.atom(first), self.atom(read[read.len() - 1]));
                let otherwise = self.dice.pick(&["\"low\"", "\"none\"", "\"high\""]);
                let urgency = format!(
                    "let urgency = if {urgent} {{ \"high\" }} else if {mild} {{ \"medium\" }} else {{ \"none\" }};"
                );
                (format!("{urgency} urgency ?? {otherwise}"), self.other_clear(read))
            }
            (10, _) => {
                let condition = self.condition(read);
                let otherwise = self.dice.pick(&["true", "false", "false"]);
                (format!("({condition}) ?? {otherwise}"), self.other_clear(read))
            }
            _ => {
                let condition = self.condition(read);
                if self.dice.chance(40) {
                    let parameters = parameters(read, self.of_patient);
                    self.helpers.push(format!("fn bad({parameters}) {{ {condition} }}"));
                    (format!("bad({parameters})"), Some(format!("!bad({parameters})")))
                } else {
                    (condition, self.other_clear(read))
                }
            }
        }
    }

    /// One function, one limit to raise and one to clear, never both.
    fn one_limit(&mut self, profile: &Profile) -> Bodies {
        let function = self.level_function(profile);
        let (level, step) = self.level_and_step(profile);
        let apart = self.dice.between(0, 3) * step;
        let low = self.dice.chance(60);
        let (raise, clear) = if low { ("<", ">=") } else { (">", "<=") };
        let bound = self.limit("low", level, profile);
        let back = self.limit("clear", if low { level + apart } else { level - apart }, profile);
        let read = if self.dice.chance(15) { format!("({function} ?? {bound})") } else { function.clone() };
        let raise = format!("{read} {raise} {bound}");
        let clear = self.dice.chance(70).then(|| format!("{function} {clear} {back}"));
        (raise, clear)
    }

    /// Priorities by how far it is.
    fn bands(&mut self, profile: &Profile, read: &[&Profile]) -> Bodies {
        let function = self.level_function(profile);
        let (level, step) = self.level_and_step(profile);
        let down = if self.dice.chance(60) { 1 } else { -1 };
        let (worse, back) = if down > 0 { ("<", ">=") } else { (">", "<=") };
        let (first, second) = (self.dice.between(1, 4) * step, self.dice.between(1, 4) * step);
        let very = self.limit("very", level - down * (first + second), profile);
        let low = self.limit("low", level - down * first, profile);
        let mut raise = format!("if {function} {worse} {very} {{ \"high\" }} else if {function} {worse} {low} ");
        let otherwise = self.dice.pick(&FALSE);
        if self.dice.chance(50) {
            let mild = self.limit("mild", level, profile);
            let _ = write!(
                raise,
                "{{ \"medium\" }} else if {function} {worse} {mild} {{ \"low\" }} else {{ {otherwise} }}"
            );
        } else {
            let or_true = self.dice.pick(&["\"medium\"", "\"low\"", "true"]);
            let _ = write!(raise, "{{ {or_true} }} else {{ {otherwise} }}");
        }
        let clear = match self.dice.between(0, 9) {
            0..=4 => {
                let apart = self.dice.between(0, 3) * step;
                let bound = self.limit("clear", level + down * apart, profile);
                Some(format!("{function} {back} {bound}"))
            }
            5..=6 => None,
            _ => self.other_clear(read),
        };
        (raise, clear)
    }

    fn chain_of_names(&mut self, profile: &Profile, read: &[&Profile]) -> Bodies {
        let function = self.level_function(profile);
        let (level, step) = self.level_and_step(profile);
        let (bound, fall) = (self.limit("low", level, profile), literal(step, profile.signal().per_unit));
        let id = profile.id;
        let raise = format!(
            "let now = {function}; let fall = now - {id}.prev; let twice = fall * 2; \
             if twice < -{fall} && now < {bound} {{ \"high\" }} \
             else if now < {bound} || fall > {fall} * 4 {{ \"low\" }} else {{ false }}"
        );
        (raise, self.other_clear(read))
    }

    fn by_age(&mut self, profile: &Profile) -> Bodies {
        self.of_patient = true;
        let function = self.level_function(profile);
        let (level, step) = self.level_and_step(profile);
        let age = self.dice.pick(&["patient.age", "(patient.age ?? 50)", "(patient.age ?? 70.0)"]);
        let bound = self.limit("bound", level, profile);
        let less = literal(step, profile.signal().per_unit);
        let raise = format!("let bound = if {age} >= 65 {{ {bound} }} else {{ {bound} - {less} }}; {function} < bound");
        // Nothing is both: clear asks for more than either bound.
        let clear = self.dice.chance(50).then(|| format!("{function} > {bound} + {less} && {age} < 200"));
        (raise, clear)
    }

    fn own_functions(&mut self, profile: &Profile) -> Bodies {
        let window = self.window();
        let (_, step) = self.level_and_step(profile);
        let fall = literal(step * 3, profile.signal().per_unit);
        self.helpers.push("fn fall(s, length) { s.max(length) - s.last }".to_owned());
        self.helpers.push("fn far(x, bound) { let most = bound; x > most }".to_owned());
        let id = profile.id;
        let deep = self.dice.pick(&["\"high\"", "\"medium\"", "true"]);
        let raise = format!("if far(fall({id}, \"{window}\"), {fall}) {{ {deep} }} else {{ false }}");
        let clear = self.dice.chance(60).then(|| format!("!far(fall({id}, \"{window}\"), {fall} / 2)"));
        (raise, clear)
    }

    fn two_numbers(&mut self, a: &Profile, b: &Profile) -> Bodies {
        let (f, g) = (self.level_function(a), self.level_function(b));
        let ratio = a.level.map_or(1.0, |(level, _)| level) / b.level.map_or(1.0, |(level, _)| level);
        let times = |factor: f64| format!("{:?}", (ratio * factor * 100.0).round() / 100.0);
        let (more, most, less) = (times(1.02), times(1.1), times(0.98));
        let raise = match self.dice.between(0, 2) {
            0 => format!("{f} / {g} >= {more}"),
            1 => format!(
                "if {f} / {g} >= {most} {{ \"high\" }} else if {f} >= {g} * {more} {{ \"low\" }} else {{ false }}"
            ),
            _ => format!("{f} - {g} * {more} > 0 || {f} / ({g} - {g}) > 1"),
        };
        let clear = self.dice.chance(60).then(|| format!("{f} / {g} < {less}"));
        (raise, clear)
    }

    /// Conditions joined; every signal read is named at least once.
    fn condition(&mut self, read: &[&Profile]) -> String {
        let mut text = self.atom(read[0]);
        for profile in &read[1..] {
            text = self.joined(&text, profile);
        }
        while self.dice.chance(40) && text.len() < 300 {
            let profile = self.dice.pick(read);
            text = self.joined(&text, profile);
        }
        text
    }

    fn joined(&mut self, text: &str, profile: &Profile) -> String {
        let other = self.atom(profile);
        match self.dice.between(0, 9) {
            0..=3 => format!("({text}) && ({other})"),
            4..=7 => format!("({text}) || ({other})"),
            8 => format!("!({text}) || ({other})"),
            _ => format!("if {other} {{ {text} }} else {{ {other} }}"),
        }
    }

    /// A clear of its own, of two functions, so that nothing about it and `raise` can be proved.
    fn other_clear(&mut self, read: &[&Profile]) -> Option<String> {
        if self.dice.chance(35) {
            return None;
        }
        let profile = self.dice.pick(read);
        let id = profile.id;
        let Some((level, spread)) = profile.counts() else {
            return Some(format!("{id}.last == \"A\" && {id}.age < 3600"));
        };
        let bound = literal(level + self.dice.between(-2, 3) * spread / 10, profile.signal().per_unit);
        let compared = self.dice.pick(&[">=", "<="]);
        Some(format!("{id}.last {compared} {bound} && {id}.count(\"1m\") > 0"))
    }

    fn window(&mut self) -> &'static str {
        if self.long {
            return self.dice.pick(&["30s", "1m", "90s", "5m", "20m", "1h"]);
        }
        self.dice.pick(&["5s", "7s", "2500ms", "10s", "15s", "30s", "45s", "1m", "1m30s", "2m", "3m", "5m"])
    }

    fn level_and_step(&mut self, profile: &Profile) -> (i64, i64) {
        let (level, spread) = profile.counts().unwrap_or((2, 10));
        let step = (spread / 10).max(1);
        (level + self.dice.between(-4, 4) * step, step)
    }

    /// A limit by name, or just the number.
    fn limit(&mut self, name: &'static str, counts: i64, profile: &Profile) -> String {
        let number = literal(counts, profile.signal().per_unit);
        if self.dice.chance(60) {
            let _ = self.limits.insert(name, number);
            format!("limit.{name}")
        } else {
            number
        }
    }

    /// A function whose value is one of the signal's.
    fn level_function(&mut self, profile: &Profile) -> String {
        let (id, window) = (profile.id, self.window());
        match self.dice.between(0, 9) {
            0..=3 => format!("{id}.last"),
            4 => format!("{id}.prev"),
            5 => format!("{id}.mean(\"{window}\")"),
            6 => format!("{id}.min(\"{window}\")"),
            7 => format!("{id}.max(\"{window}\")"),
            8 => format!("{id}.median(\"{window}\")"),
            _ => {
                let share = self.dice.pick(&["0.0", "0.1", "0.25", "0.333", "0.5", "0.9", "0.95", "1.0", "1"]);
                format!("{id}.percentile({share}, \"{window}\")")
            }
        }
    }

    /// One condition of one signal.
    fn atom(&mut self, profile: &Profile) -> String {
        if profile.level.is_none() {
            return self.atom_of_category(profile);
        }
        let (id, window) = (profile.id, self.window());
        let per_unit = profile.signal().per_unit;
        let (level, step) = self.level_and_step(profile);
        let far = literal(self.dice.between(1, 12) * step, per_unit);
        let compared = self.dice.pick(&["<", "<=", ">", ">="]);
        let (more, less) = (self.dice.pick(&[">", ">="]), self.dice.pick(&["<", "<="]));
        let seconds = self.dice.pick(&["0", "1", "2.0", "4", "10", "20.5", "30"]);
        let share = self.dice.pick(&["0", "0.1", "0.25", "0.5", "0.75", "1"]);
        let number = literal(level, per_unit);
        match self.dice.between(0, 21) {
            0..=5 => {
                let function = self.level_function(profile);
                format!("{function} {compared} {number}")
            }
            6 => format!("{id}.sum(\"{window}\") / {id}.count(\"{window}\") {compared} {number}"),
            7 => format!("{id}.sum(\"{window}\") > {number} * {seconds}"),
            8 => format!("{id}.stddev(\"{window}\") {more} {far} / 2"),
            9 => format!("{id}.range(\"{window}\") {more} {far}"),
            10 => format!("{id}.delta(\"{window}\") {less} -{far}"),
            11 => format!("{id}.slope(\"{window}\") {compared} {far}"),
            12 => format!("{id}.age {more} {seconds}"),
            13 => format!("{id}.count(\"{window}\") {less} {seconds}"),
            14 => format!("{id}.time_below({number}, \"{window}\") {more} {seconds}"),
            15 => format!("{id}.time_above({number}, \"{window}\") {more} {seconds}"),
            16 => format!("{id}.fraction_below({number}, \"{window}\") {more} {share}"),
            17 => format!("{id}.fraction_above({number} - {far}, \"{window}\") {compared} {share}"),
            18 => format!("{id}.gap(\"{window}\") {more} {seconds}"),
            19 => format!("{id}.last {} {id}.prev", self.dice.pick(&["==", "!=", "<"])),
            20 => format!("{id}.time_below({id}.prev, \"{window}\") {more} {seconds}"),
            _ => format!("({id}.max(\"{window}\") - {id}.last) / {id}.mean(\"{window}\") {more} 0.02"),
        }
    }

    fn atom_of_category(&mut self, profile: &Profile) -> String {
        let (id, window) = (profile.id, self.window());
        let (state, equal) = (self.dice.pick(&["A", "C", "V", "P", "U"]), self.dice.pick(&["==", "!="]));
        let share = self.dice.pick(&["0", "0.25", "0.5", "1"]);
        match self.dice.between(0, 6) {
            0..=1 => format!("{id}.last {equal} \"{state}\""),
            2 => format!("\"{state}\" {equal} {id}.prev"),
            3 => format!("{id}.last {equal} {id}.prev"),
            4 => format!("{id}.fraction_is(\"{state}\", \"{window}\") > {share}"),
            5 => format!("{id}.count(\"{window}\") >= {}", self.dice.between(0, 4)),
            _ => format!("{id}.age >= {}", self.dice.between(0, 60)),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Both sides
// ---------------------------------------------------------------------------------------------------------------------

fn naive(case: &Case) -> Vec<Transition> {
    let of_catalogue = |signal: &Signal| oracle::Signal {
        id: signal.id.clone(),
        per_unit: signal.per_unit,
        typical_interval_us: signal.typical_interval_us,
        stale_after_us: signal.stale_after_us,
        categories: signal.states.clone(),
    };
    let signals: Vec<oracle::Signal> = Catalogue::builtin().signals().iter().map(of_catalogue).collect();
    let of_person = |person: &Person| oracle::Patient {
        id: person.id.clone(),
        limits: person.limits.clone(),
        attributes: person.attributes.clone(),
    };
    let patients: Vec<oracle::Patient> = case.people.iter().map(of_person).collect();
    let settings = oracle::Settings {
        lateness_us: case.lateness_us,
        skew_us: case.skew_us,
        epoch_check: case.epoch_check,
        record_clock: case.record_clock,
        sample_cap: case.samples_max,
    };
    let rules: Vec<&str> = case.rules.iter().map(String::as_str).collect();
    oracle::run(&settings, &signals, &rules, &patients, &case.items)
}

/// A partition that a case's items are applied to, one by one; an item's place in the case is its source offset.
struct Feeder<'a> {
    case: &'a Case,
    set: &'a RuleSet,
    partition: Partition,
    decided: Vec<Content>,
    builder: ReadingBatchBuilder,
    /// Records in the batch that is being filled, and the offset of the last one.
    n_gathered: usize,
    newest_offset: Option<i64>,
    /// Records of a full batch.
    batch: usize,
}

impl<'a> Feeder<'a> {
    fn new(case: &'a Case, set: &'a RuleSet, batch: usize) -> Self {
        let mut partition = Partition::new(case.settings(), set, Catalogue::builtin());
        for person in &case.people {
            let patient = || person.id.clone();
            for (name, value) in &person.limits {
                let (patient, name, value) = (patient(), name.clone(), Some(*value));
                partition.apply_control(&control(Control::Limit { patient, name, value }));
            }
            for (name, value) in &person.attributes {
                let (patient, name, value) = (patient(), name.clone(), Some(*value));
                partition.apply_control(&control(Control::Attribute { patient, name, value }));
            }
        }
        Self {
            case,
            set,
            partition,
            decided: Vec::new(),
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
        }
    }

    fn gather(&mut self, record: &Record, offset: i64) {
        let (topic, partition) = place(&record.source);
        for (index, reading) in record.readings.iter().enumerate() {
            let signal = Catalogue::builtin().by_id(&reading.signal).expect(&reading.signal);
            let quality = match (reading.value, reading.questionable) {
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
                reason: Reason::None,
                event_time_us: reading.event_us,
                source_time_us: record.broker_us,
                append_time_us: Some(record.broker_us),
                source_topic: topic,
                source_partition: partition,
                source_offset: offset,
                source_index: index as u32,
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
            self.partition.apply_control(&control(Control::Tick { claims: vec![claim] }));
        }
        self.take();
    }

    fn take(&mut self) {
        let decided = self.partition.take_decided();
        self.decided.extend(decided.into_iter().map(|decided| decided.content));
    }

    /// Writes the partition down and goes on with what was read back.
    fn restart(&mut self) {
        self.flush();
        let written = serde_json::to_string(self.partition.state()).expect("a state can be written");
        let state: State = serde_json::from_str(&written).expect("a state can be read");
        self.partition = Partition::restore(self.case.settings(), self.set, Catalogue::builtin(), state);
    }

    fn finish(mut self) -> (Vec<Content>, OutcomeCounts) {
        self.flush();
        (self.decided, *self.partition.outcomes())
    }
}

fn control(control: Control) -> ControlRecord {
    ControlRecord { id: String::new(), control }
}

/// Topic and partition of `topic/partition`.
fn place(source: &str) -> (&str, i32) {
    let (topic, partition) = source.rsplit_once('/').expect("a source is topic/partition");
    (topic, partition.parse().expect("a partition is a number"))
}

fn engine(case: &Case, set: &RuleSet, batch: usize) -> (Vec<Content>, OutcomeCounts) {
    let mut feeder = Feeder::new(case, set, batch);
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

/// Runs both sides; the contents, or where they differ.
fn compared(case: &Case) -> Result<(Vec<Content>, OutcomeCounts), String> {
    let set = case.rule_set();
    let run = || {
        let (contents, outcomes) = engine(case, &set, 1);
        (contents, outcomes, naive(case))
    };
    let Ok((contents, outcomes, expected)) = catch_unwind(AssertUnwindSafe(run)) else {
        return Err("one side panicked, see above\n".to_owned());
    };
    let got: Vec<Transition> = contents.iter().map(as_transition).collect();
    if got != expected {
        return Err(around_the_difference(case, &got, &expected));
    }
    if outcomes.total() != case.readings() {
        return Err(format!("{} readings have {} outcomes\n", case.readings(), outcomes.total()));
    }
    Ok((contents, outcomes))
}

fn around_the_difference(case: &Case, got: &[Transition], expected: &[Transition]) -> String {
    let first = got.iter().zip(expected).take_while(|(got, expected)| got == expected).count();
    let mut text = format!("transition {first} is the first that differs\n");
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
    let mut text = format!(
        "time 0 {} s since 1970, lateness {} s, skew {} s, epoch check {}, record clock {}, {} samples kept\n",
        case.start / SECOND,
        case.lateness_us / SECOND,
        case.skew_us / SECOND,
        case.epoch_check,
        case.record_clock,
        case.samples_max
    );
    for person in &case.people {
        let _ = writeln!(text, "{} limits {:?} attributes {:?}", person.id, person.limits, person.attributes);
    }
    for rule in &case.rules {
        text += rule;
    }
    for (index, item) in case.items.iter().enumerate() {
        match item {
            Item::Tick { source, time_us } => {
                let _ = writeln!(text, "#{index} {source} tick {}", since(case, *time_us));
            }
            Item::Record(record) => {
                let _ = write!(text, "#{index} {} {}:", record.source, since(case, record.broker_us));
                for reading in &record.readings {
                    let value = reading.value.map_or("blank".to_owned(), |value| value.to_string());
                    let doubt = if reading.questionable { "?" } else { "" };
                    let (patient, device, signal) = (&reading.patient, &reading.device, &reading.signal);
                    let at = since(case, reading.event_us);
                    let _ = write!(text, " {patient}/{device}/{signal}@{at}={value}{doubt}");
                }
                text.push('\n');
            }
        }
    }
    text
}

/// A case without what its disagreement does not need.
fn cut_down(case: &Case) -> Case {
    // What is kept must fail the same way: in the transitions, or otherwise.
    let in_transitions = |failure: String| failure.starts_with("transition");
    let sought = compared(case).map_err(in_transitions).err();
    let mut best = case.clone();
    let mut attempts = 3_000;
    let mut keep = |best: &mut Case, candidate: Case| {
        attempts -= 1;
        let differs = attempts > 0 && compared(&candidate).map_err(in_transitions).err() == sought;
        if differs {
            *best = candidate;
        }
        differs
    };
    for i in (0..best.rules.len()).rev() {
        let mut candidate = best.clone();
        candidate.rules.remove(i);
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
    for index in 0..best.items.len() {
        let n_readings = match &best.items[index] {
            Item::Record(record) => record.readings.len(),
            Item::Tick { .. } => 0,
        };
        for reading in (0..n_readings).rev() {
            let mut candidate = best.clone();
            if let Item::Record(record) = &mut candidate.items[index]
                && record.readings.len() > 1
            {
                record.readings.remove(reading);
                keep(&mut best, candidate);
            }
        }
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
        let (contents, outcomes) = compared(&case)?;
        seen.lock().expect("no case panics here").add(&case, &contents, &outcomes);
        Ok(())
    });
    let seen = seen.into_inner().expect("no case panics here");
    seen.print();
    if let Some(seed) = failures.keys().next() {
        let case = random_case(*seed);
        let whole = compared(&case).err().unwrap_or_default();
        let short = cut_down(&case);
        let difference = compared(&short).err().unwrap_or_default();
        eprintln!("seed {seed}, as a whole: {whole}cut down: {difference}{}", printed(&short));
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
    ];
    let kinds = ["raised", "escalated", "deescalated", "cleared", "latched", "superseded"];
    for kind in kinds.into_iter().chain(technical) {
        assert!(seen.kinds.contains_key(kind), "no case shows `{kind}`: the generator lost it");
    }
    let outcomes = [
        Outcome::Evaluated,
        Outcome::Retimed,
        Outcome::Questionable,
        Outcome::Missing,
        Outcome::Duplicate,
        Outcome::Conflict,
        Outcome::Late,
    ];
    for outcome in outcomes {
        let name = outcome.name();
        assert!(seen.outcomes.get(outcome) > 0, "no reading is `{name}`: the generator lost it");
    }
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
            let set = case.rule_set();
            let (expected, expected_outcomes) = engine(&case, &set, 1);
            for batch in [7, 100, case.items.len() + 1] {
                let (got, outcomes) = engine(&case, &set, batch);
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
        let set = case.rule_set();
        let (expected, _) = engine(&case, &set, 1);
        let mut dice = Dice::of(!seed);
        let restarts: Vec<usize> = (0..dice.between(1, 3)).map(|_| dice.0.usize(0..=case.items.len())).collect();
        let mut feeder = Feeder::new(&case, &set, 1);
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
        let set = case.rule_set();
        let (expected, expected_outcomes) = engine(&case, &set, 1);
        let mut dice = Dice::of(!seed);
        let mut clocks: BTreeMap<&str, Micros> = BTreeMap::new();
        let mut feeder = Feeder::new(&case, &set, 1);
        for (index, item) in case.items.iter().enumerate() {
            feeder.feed(index);
            let (source, to, is_tick) = match item {
                Item::Record(record) => (record.source.as_str(), record.broker_us, false),
                Item::Tick { source, time_us } => (source.as_str(), *time_us, true),
            };
            let now = moved(clocks.get(source).copied(), to, case.record_clock);
            clocks.insert(source, now);
            // After a record of a source with its own clock, even a tick of the same time can say that the feed is watched.
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
        let set = case.rule_set();
        let (expected, expected_outcomes) = engine(&case, &set, 1);
        let mut dice = Dice::of(!seed);
        let batch = dice.pick(&[1, 1, 7]);
        let mut feeder = Feeder::new(&case, &set, batch);
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
fn every_reading_that_was_fed_has_exactly_one_outcome() {
    let seeds = seeds(OWN_CASES);
    let failures = over_all(&seeds, |seed| {
        let case = random_case(seed);
        let (_, outcomes) = engine(&case, &case.rule_set(), 7);
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
                questionable: false,
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
    let case = Case {
        seed: 0,
        start: YEAR_2026,
        lateness_us: MINUTE,
        skew_us: 5 * SECOND,
        epoch_check: true,
        record_clock: true,
        samples_max: 8_192,
        rules: rules.collect(),
        people: Vec::new(),
        items: recorded_items(&recording),
    };
    let (contents, outcomes) = match compared(&case) {
        Ok(both) => both,
        Err(difference) => panic!("{difference}"),
    };
    let mut seen = Seen::default();
    seen.add(&case, &contents, &outcomes);
    seen.print();
    assert!(!contents.is_empty(), "nothing happened in {}", path.display());
    let set = case.rule_set();
    for batch in [7, 100, case.items.len()] {
        let (got, _) = engine(&case, &set, batch);
        assert_eq!(bytes(&got), bytes(&contents), "batches of {batch} records give other contents");
    }
}
