//! What every other case has besides its log: connectors with bounds of their own, devices whose clocks are reset to a
//! listed day, values with comparators, devices that are switched off, corrections and retractions, control records,
//! and other sets that come into force.

use std::collections::{BTreeMap, BTreeSet};

use wardbell_rules::{SourceFile, compile};
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::reading::{Change, Comparator};
use wardbell_schemas::{Micros, SECOND};

use super::rules::random_rule;
use super::{Case, DAY, Dice, PROFILES, Profile, Shape};
use crate::oracle::{Connector, Control, Item, Reading, Record, Set};

const COMPARATORS: [Comparator; 4] =
    [Comparator::Less, Comparator::LessOrEqual, Comparator::Greater, Comparator::GreaterOrEqual];
/// 2010-01-01 and 2018-01-01.
const RESET_DAYS: [Micros; 2] = [1_262_304_000 * SECOND, 1_514_764_800 * SECOND];

/// Each with a chance of its own, so that there are cases with just one of them.
pub(super) fn add(case: &mut Case, shape: &Shape, dice: &mut Dice) {
    if dice.chance(10) && !case.record_clock {
        set_a_clock_back(case, dice);
    }
    if dice.chance(40) {
        connect(case, dice);
    }
    if dice.chance(40) {
        bound_values(case, dice);
    }
    if dice.chance(35) {
        switch_off(case, dice);
    }
    if dice.chance(55) {
        change_readings(case, dice);
    }
    if dice.chance(50) {
        control(case, dice);
    }
    if dice.chance(50) {
        activate(case, shape, dice);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What is there
// ---------------------------------------------------------------------------------------------------------------------

fn source_and_time(item: &Item) -> Option<(&str, Micros)> {
    match item {
        Item::Record(record) => Some((&record.source, record.broker_us)),
        Item::Tick { source, time_us } => Some((source, *time_us)),
        _ => None,
    }
}

fn sources(case: &Case) -> Vec<String> {
    let all: BTreeSet<&str> = case.items.iter().filter_map(|item| Some(source_and_time(item)?.0)).collect();
    all.into_iter().map(str::to_owned).collect()
}

fn readings(case: &Case) -> impl Iterator<Item = &Reading> {
    case.items.iter().flat_map(|item| match item {
        Item::Record(record) => record.readings.as_slice(),
        _ => &[],
    })
}

fn readings_mut(items: &mut [Item]) -> impl Iterator<Item = &mut Reading> {
    items.iter_mut().flat_map(|item| match item {
        Item::Record(record) => record.readings.as_mut_slice(),
        _ => &mut [],
    })
}

/// Place of a record, and of a reading in it.
fn a_reading(case: &Case, dice: &mut Dice) -> Option<(usize, usize)> {
    let records: Vec<(usize, usize)> = case
        .items
        .iter()
        .enumerate()
        .filter_map(|(at, item)| match item {
            Item::Record(record) => Some((at, record.readings.len())),
            _ => None,
        })
        .collect();
    let (at, n_readings) = *records.get(dice.0.usize(0..records.len().max(1)))?;
    Some((at, dice.0.usize(0..n_readings)))
}

fn record_at(case: &Case, at: usize) -> &Record {
    match &case.items[at] {
        Item::Record(record) => record,
        _ => panic!("item {at} is no record"),
    }
}

fn is_same_series(a: &Reading, b: &Reading) -> bool {
    (&a.patient, &a.device, &a.signal, &a.method) == (&b.patient, &b.device, &b.signal, &b.method)
}

fn profile(reading: &Reading) -> &'static Profile {
    PROFILES.iter().find(|profile| profile.id == reading.signal).expect("a signal of random cases")
}

// ---------------------------------------------------------------------------------------------------------------------
// Readings
// ---------------------------------------------------------------------------------------------------------------------

fn set_a_clock_back(case: &mut Case, dice: &mut Dice) {
    let sources = sources(case);
    let Some(set_back) = sources.get(dice.0.usize(0..sources.len().max(1))) else {
        return;
    };
    let (from, by) = (dice.0.usize(0..=case.items.len()), dice.between(11, 300) * SECOND);
    for item in &mut case.items[from..] {
        match item {
            Item::Record(record) if record.source == *set_back => record.broker_us -= by,
            Item::Tick { source, time_us } if *source == *set_back => *time_us -= by,
            _ => {}
        }
    }
}

/// Connectors for one or two topics, and devices that suffer from what they allow.
fn connect(case: &mut Case, dice: &mut Dice) {
    for old in sources(case) {
        if !dice.chance(40) {
            continue;
        }
        let new = old.replace("devices", "wearables");
        for item in &mut case.items {
            match item {
                Item::Record(record) if record.source == old => record.source = new.clone(),
                Item::Tick { source, .. } if *source == old => *source = new.clone(),
                _ => {}
            }
        }
    }
    let both = ["devices".to_owned(), "wearables".to_owned()];
    let groups: Vec<&[String]> = if dice.chance(20) { vec![&both[..]] } else { vec![&both[..1], &both[1..]] };
    for topics in groups {
        if dice.chance(75) {
            let connector = random_connector(dice, topics, case.start);
            case.set.connectors.push(connector);
        }
    }
    reset_device_clocks(case, dice);
}

fn random_connector(dice: &mut Dice, topics: &[String], start: Micros) -> Connector {
    let mut reset_days = Vec::new();
    if dice.chance(60) {
        reset_days.push(dice.pick(&RESET_DAYS));
    }
    if dice.chance(4) {
        // What is right is a clock at its reset date then.
        reset_days.push(start - start.rem_euclid(DAY));
    }
    Connector {
        topics: topics.to_vec(),
        lateness_us: dice.pick(&[10, 30, 60, 120, 600]) * SECOND,
        skew_us: dice.pick(&[0, 1, 5, 60]) * SECOND,
        coarse: dice.chance(50),
        reset_days,
    }
}

/// Devices that count from a reset date for a while, or from shortly before the end of that day.
fn reset_device_clocks(case: &mut Case, dice: &mut Dice) {
    let days: Vec<Micros> = case.set.connectors.iter().flat_map(|connector| connector.reset_days.clone()).collect();
    if days.is_empty() {
        return;
    }
    for _ in 0..dice.between(1, 2) {
        let Some((from, place)) = a_reading(case, dice) else {
            return;
        };
        let (patient, device) = {
            let reading = &record_at(case, from).readings[place];
            (reading.patient.clone(), reading.device.clone())
        };
        let to = (from + dice.0.usize(3..80)).min(case.items.len());
        let zero = dice.pick(&days) + dice.pick(&[0, 0, DAY - 100 * SECOND]) - case.start;
        for reading in readings_mut(&mut case.items[from..to]) {
            if reading.patient == patient && reading.device == device {
                reading.event_us += zero;
            }
        }
    }
}

fn bound_values(case: &mut Case, dice: &mut Dice) {
    let mut percents: BTreeMap<(String, String, String), u32> = BTreeMap::new();
    for reading in readings_mut(&mut case.items) {
        let series = (reading.patient.clone(), reading.device.clone(), reading.signal.clone());
        let percent = *percents.entry(series).or_insert_with(|| dice.pick(&[0, 3, 10, 40]));
        if profile(reading).level.is_some() && reading.value.is_some() && dice.chance(percent) {
            reading.comparator = dice.pick(&COMPARATORS);
        }
    }
}

/// Blanks that say why, and devices that are silent after one.
fn switch_off(case: &mut Case, dice: &mut Dice) {
    for reading in readings_mut(&mut case.items) {
        reading.off = reading.value.is_none() && dice.chance(40);
    }
    for _ in 0..dice.between(0, 3) {
        let Some((at, place)) = a_reading(case, dice) else {
            return;
        };
        let silent_until = record_at(case, at).broker_us + dice.pick(&[0, 45, 90, 240]) * SECOND;
        let Item::Record(record) = &mut case.items[at] else {
            return;
        };
        let last = &mut record.readings[place];
        (last.value, last.comparator, last.questionable, last.off) = (None, Comparator::None, false, true);
        let last = last.clone();
        for item in &mut case.items[at + 1..] {
            if let Item::Record(record) = item
                && record.broker_us <= silent_until
            {
                record.readings.retain(|reading| !is_same_series(reading, &last));
            }
        }
        case.items.retain(|item| !matches!(item, Item::Record(record) if record.readings.is_empty()));
    }
}

/// Corrections and retractions of what was sent just before, long before, in the same record, or never.
fn change_readings(case: &mut Case, dice: &mut Dice) {
    for _ in 0..dice.between(1, 12) {
        let Some((sent_at, place)) = a_reading(case, dice) else {
            return;
        };
        let record = record_at(case, sent_at);
        let (mut reading, mut source) = (record.readings[place].clone(), record.source.clone());
        if dice.chance(5) {
            let sources = sources(case);
            source = sources[dice.0.usize(0..sources.len())].clone();
        }
        if dice.chance(10) {
            reading.event_us += dice.pick(&[-SECOND, 1, SECOND]);
        }
        let later = match dice.between(0, 9) {
            0..=2 => 0,
            3..=7 => dice.0.usize(1..10),
            _ => dice.0.usize(0..case.items.len()),
        };
        let change = if dice.chance(65) { Change::Corrects } else { Change::Retracts };
        let changed = Reading { change, ..with_another_value(&reading, change, dice) };
        put(case, dice, sent_at + later, &source, changed.clone());
        if dice.chance(25) {
            let value = if dice.chance(70) { changed.value } else { reading.value };
            let again = Reading { value, change: Change::None, ..changed };
            let again = if value.is_none() {
                Reading { comparator: Comparator::None, questionable: false, ..again }
            } else {
                again
            };
            let later = later + dice.0.usize(0..8);
            put(case, dice, sent_at + later, &source, again);
        }
    }
}

fn with_another_value(reading: &Reading, change: Change, dice: &mut Dice) -> Reading {
    let mut other = Reading { comparator: Comparator::None, questionable: false, off: false, ..reading.clone() };
    if dice.chance(if change == Change::Retracts { 80 } else { 10 }) {
        other.value = None;
        return other;
    }
    let Some((level, spread)) = profile(reading).counts() else {
        other.value = Some(dice.between(0, 4));
        return other;
    };
    let value = match reading.value {
        Some(value) if dice.chance(40) => value + dice.between(-2, 2),
        _ => level + dice.between(-2 * spread, 2 * spread),
    };
    other.value = Some(value.max(0));
    other.questionable = dice.chance(10);
    if dice.chance(12) {
        other.comparator = dice.pick(&COMPARATORS);
    }
    other
}

/// Into a record of the source that stands there, or as one of its own after it.
fn put(case: &mut Case, dice: &mut Dice, at: usize, source: &str, reading: Reading) {
    let at = at.min(case.items.len() - 1);
    if let Item::Record(record) = &mut case.items[at]
        && record.source == source
        && dice.chance(60)
    {
        let end = record.readings.len();
        let place = if dice.chance(80) { end } else { dice.0.usize(0..=end) };
        record.readings.insert(place, reading);
        return;
    }
    let newest = case.items[..=at].iter().rev().filter_map(source_and_time).find(|(name, _)| *name == source);
    let newest = newest.map(|(_, time_us)| time_us);
    if let Some(broker_us) = newest {
        let record = Record { source: source.to_owned(), broker_us, readings: vec![reading] };
        case.items.insert(at + 1, Item::Record(record));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Control records and sets
// ---------------------------------------------------------------------------------------------------------------------

fn control(case: &mut Case, dice: &mut Dice) {
    let devices: Vec<(String, String)> =
        readings(case).map(|reading| (reading.patient.clone(), reading.device.clone())).collect();
    if devices.is_empty() {
        return;
    }
    for number in 0..dice.0.usize(1..10) {
        let id = if number > 0 && dice.chance(12) { dice.0.usize(0..number) } else { number };
        let at = dice.0.usize(0..=case.items.len());
        let (patient, device) = devices[dice.0.usize(0..devices.len())].clone();
        let control = match dice.between(0, 13) {
            0..=1 => Control::Standby { patient, device: dice.chance(50).then_some(device) },
            2 => Control::Discharge { patient },
            3 => {
                let name = dice.pick(&["low", "very", "mild", "clear", "bound"]).to_owned();
                let levels: Vec<f64> = PROFILES.iter().filter_map(|profile| Some(profile.level?.0)).collect();
                let value = dice.chance(80).then(|| dice.pick(&levels) + dice.between(-3, 3) as f64);
                Control::Limit { patient, name, value }
            }
            4 => {
                let value = dice.chance(80).then(|| dice.between(20, 95) as f64);
                Control::Attribute { patient, name: "age".to_owned(), value }
            }
            5..=8 => Control::Acknowledge { back: dice.0.usize(0..3) },
            9..=11 => Control::Reset { back: dice.0.usize(0..2) },
            _ => {
                let (rule, key, priority) = dice.pick(&[
                    ("technical/budget", "-", "medium"),
                    ("technical/sink", "pager", "high"),
                    ("technical/sink", "archive", "low"),
                ]);
                let newest = case.items[..at].iter().rev().find_map(|item| Some(source_and_time(item)?.1));
                let at_us = newest.unwrap_or(case.start) + dice.between(-2, 2) * SECOND;
                let (rule, key) = (rule.to_owned(), key.to_owned());
                Control::Condition { rule, key, priority, holds: dice.chance(60), at_us }
            }
        };
        case.items.insert(at, Item::Control { id: format!("c{id}"), control });
    }
}

/// Other sets, with what came of the rules of the set before; now and then one that comes too late by its number.
fn activate(case: &mut Case, shape: &Shape, dice: &mut Dice) {
    let mut places: Vec<usize> = (0..dice.pick(&[1, 1, 2, 3])).map(|_| dice.0.usize(0..=case.items.len())).collect();
    places.sort_unstable();
    let (mut in_force, mut newest) = (case.set.clone(), 0);
    for (inserted, at) in places.into_iter().enumerate() {
        let set = other_set(&in_force, &case.set, shape, dice, case.start);
        let number = if newest > 0 && dice.chance(12) {
            dice.between(1, newest)
        } else {
            newest += dice.between(1, 3);
            in_force = set.clone();
            newest
        };
        case.items.insert(at + inserted, Item::Activate { number: number.unsigned_abs(), set });
    }
}

fn other_set(in_force: &Set, first: &Set, shape: &Shape, dice: &mut Dice, start: Micros) -> Set {
    if dice.chance(10) && keeps_keys_of_patients(&in_force.rules, &first.rules) {
        return first.clone();
    }
    let mut set = in_force.clone();
    set.rules.clear();
    for text in &in_force.rules {
        match dice.between(0, 99) {
            0..=39 => set.rules.push(text.clone()),
            40..=54 => set.rules.push(reworded(text, dice)),
            55..=78 => set.rules.push(changed(text, dice)),
            79..=90 => set.rules.push(rewritten(text, shape, dice)),
            _ => {}
        }
    }
    let ids: BTreeSet<&str> = in_force.rules.iter().map(|text| id(text)).collect();
    let unused = (0..10).find(|number| !ids.contains(format!("rule-{number}").as_str()));
    if let Some(number) = unused.filter(|_| dice.chance(35)) {
        set.rules.push(random_rule(dice, number, &shape.profiles, shape.long));
    }
    if dice.chance(30) {
        set.lateness_us = dice.pick(&[10, 30, 60, 120]) * SECOND;
        set.skew_us = dice.pick(&[0, 1, 5, 30]) * SECOND;
    }
    if dice.chance(15) {
        set.samples_max = if dice.chance(50) { dice.0.usize(5..40) } else { 8_192 };
    }
    if dice.chance(10) {
        set.epoch_check = !set.epoch_check;
    }
    if dice.chance(20) {
        set.connectors.clear();
        if dice.chance(60) {
            set.connectors.push(random_connector(dice, &["devices".to_owned()], start));
        }
    }
    set
}

/// A key of a patient whose rule reads other signals now could be left without any series, and so without a clock.
fn keeps_keys_of_patients(before: &[String], after: &[String]) -> bool {
    after.iter().all(|new| before.iter().filter(|old| id(old) == id(new)).all(|old| keeps_key_of_patient(old, new)))
}

fn keeps_key_of_patient(old: &str, new: &str) -> bool {
    let (old, new) = (signals(old), signals(new));
    old.len() < 2 || new.len() < 2 || old == new
}

fn id(text: &str) -> &str {
    between(text, "id: \"", "\"")
}

fn signals(text: &str) -> BTreeSet<&str> {
    let parameters = between(text, "fn raise(", ")").split(", ");
    parameters.filter(|name| *name != "limit" && *name != "patient").collect()
}

fn between<'t>(text: &'t str, from: &str, to: &str) -> &'t str {
    let (_, rest) = text.split_once(from).expect("a random rule is written in one way");
    rest.split_once(to).expect("a random rule is written in one way").0
}

/// Another text that means the same.
fn reworded(text: &str, dice: &mut Dice) -> String {
    let version = format!("version: {},", dice.between(2, 9));
    let mut new = text.replacen("version: 1,", &version, 1).replacen("owner: \"random\"", "owner: \"ward\"", 1);
    if dice.chance(50) {
        new = new.replace("{ ", "{\n    ");
    }
    let signals = signals(text);
    let says_nothing = signals.len() == 1 && !signals.contains("consciousness") && !text.contains("fn message(");
    if let Some(signal) = signals.first().filter(|_| says_nothing) {
        new += &format!("fn message({signal}) {{ `now {signal} is ${{{signal}.last}}` }}\n");
    }
    format!("// As before.\n{new}")
}

/// Another body: now and then for another key.
fn rewritten(text: &str, shape: &Shape, dice: &mut Dice) -> String {
    let number = id(text).trim_start_matches("rule-").parse().expect("the id of a random rule ends with a number");
    let new = random_rule(dice, number, &shape.profiles, shape.long);
    if keeps_key_of_patient(text, &new) { new } else { text.to_owned() }
}

/// Another declared field, or other limits; what the checker refuses stays as it was.
fn changed(text: &str, dice: &mut Dice) -> String {
    let new = match dice.between(0, 9) {
        0 => {
            let old = field(text, "priority").unwrap_or_default();
            let others: Vec<&str> =
                ["\"low\"", "\"medium\"", "\"high\""].into_iter().filter(|priority| *priority != old).collect();
            with_field(text, "priority", Some(dice.pick(&others)))
        }
        1 => with_field(text, "latching", field(text, "latching").is_none().then_some("true")),
        2 => with_field(text, "accept", field(text, "accept").is_none().then_some("[\"questionable\"]")),
        3..=5 if text.contains("limits: #{") => with_other_limits(text, dice),
        _ => {
            let name = dice.pick(&["hold", "clear_hold", "gap", "max_age", "cool_down"]);
            let old = field(text, name);
            let others: Vec<&str> = ["\"3s\"", "\"6s\"", "\"12s\"", "\"25s\"", "\"50s\""]
                .into_iter()
                .filter(|new| Some(*new) != old)
                .collect();
            let goes = old.is_some_and(|old| old != "\"0s\"") && dice.chance(25);
            with_field(text, name, (!goes).then(|| dice.pick(&others)))
        }
    };
    if is_sound(&new) { new } else { text.to_owned() }
}

/// Where a declared field stands in a text, with the comma before it, and where its value begins.
fn place_of_field(text: &str, name: &str) -> Option<(std::ops::Range<usize>, usize)> {
    let fields = &text[..text.find("};")?];
    let named = format!(", {name}: ");
    let start = fields.find(&named)?;
    let value = start + named.len();
    let rest = &fields[value..];
    let length = match rest.chars().next()? {
        '"' => 2 + rest[1..].find('"')?,
        '[' => 1 + rest.find(']')?,
        _ => rest.find([',', ' '])?,
    };
    Some((start..value + length, value))
}

fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (place, value) = place_of_field(text, name)?;
    Some(&text[value..place.end])
}

/// The text with another value of a field, or without the field.
fn with_field(text: &str, name: &str, value: Option<&str>) -> String {
    let written = value.map_or_else(String::new, |value| format!(", {name}: {value}"));
    let place = place_of_field(text, name).map(|(place, _)| place);
    let behind_priority = || place_of_field(text, "priority").map(|(place, _)| place.end..place.end);
    let place = place.or_else(behind_priority).expect("a random rule has a priority");
    format!("{}{written}{}", &text[..place.start], &text[place.end..])
}

/// All limits, moved by the same.
fn with_other_limits(text: &str, dice: &mut Dice) -> String {
    let by = dice.pick(&[-2.0, -0.5, 0.5, 2.0]);
    let old = between(text, "limits: #{", "}");
    let moved = |entry: &str| {
        let (name, value) = entry.split_once(": ").expect("a limit is a name and a number");
        let value: f64 = value.trim().parse().expect("a limit is a number");
        format!("{}: {:?}", name.trim(), value + by)
    };
    let new: Vec<String> = old.split(", ").map(moved).collect();
    text.replacen(old, &format!(" {} ", new.join(", ")), 1)
}

fn is_sound(text: &str) -> bool {
    let file = SourceFile { path: "random.rhai".to_owned(), text: text.to_owned() };
    compile(&file, Catalogue::builtin()).1.is_empty()
}
