//! The log of a case before anything is added: devices with wrong clocks, late and doubled readings, feeds that fail,
//! ticks.

use std::collections::BTreeMap;

use wardbell_schemas::reading::{Change, Comparator};
use wardbell_schemas::{Micros, SECOND};

use super::rules::random_rule;
use super::{Case, DAY, Dice, MINUTE, PROFILES, Profile, Shape, YEAR_2026};
use crate::oracle::{Item, Patient, Reading, Record, Set};

const READINGS_MAX: i64 = 260;

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

/// What has no additions: a function of the seed alone, the same in every version of this file.
pub(super) fn plain_case(seed: u64) -> (Case, Shape) {
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
    let lateness_us = dice.pick(&[60, 60, 60, 30, 120]) * SECOND;
    let skew_us = dice.pick(&[5, 5, 5, 1, 0]) * SECOND;
    let samples_max = if dice.chance(6) { dice.0.usize(5..40) } else { 8_192 };
    let rules = (0..n_rules).map(|number| random_rule(dice, number, &profiles, long)).collect();
    let set = Set { rules, lateness_us, skew_us, epoch_check, samples_max, connectors: Vec::new() };
    let items = into_items(dice, &frame, &sources, arrivals);
    (Case { seed, start, record_clock, set, people, items }, Shape { profiles, long })
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

fn random_people(dice: &mut Dice, profiles: &[&Profile]) -> BTreeMap<String, Patient> {
    let mut people = BTreeMap::new();
    for number in 1..=dice.pick(&[1, 1, 1, 2, 2, 3]) {
        let mut person = Patient::default();
        if dice.chance(60) {
            person.attributes.insert("age".to_owned(), dice.between(20, 95) as f64);
        }
        if dice.chance(20) {
            let profile = dice.pick(profiles);
            let name = dice.pick(&["low", "very", "mild", "clear", "bound"]);
            let limit = profile.level.map_or(50.0, |(level, _)| level + dice.between(-3, 3) as f64);
            person.limits.insert(name.to_owned(), limit);
        }
        people.insert(format!("p{number}"), person);
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
    people: &BTreeMap<String, Patient>,
    profiles: &[&'static Profile],
) -> Vec<Arrival> {
    let mut devices = Vec::new();
    let mut plans: Vec<Plan> = Vec::new();
    for patient in people.keys() {
        for number in 1..=dice.pick(&[1, 1, 2, 2, 3]) {
            devices.push(random_device(dice, frame, number, sources.len()));
            for profile in profiles {
                if dice.chance(70) {
                    let interval = if frame.long {
                        dice.pick(&[60, 60, 300, 900])
                    } else {
                        dice.pick(&[1, 1, 2, 2, 5, 5, 10, 60, 900])
                    };
                    plans.push(Plan { patient, device: devices.len() - 1, profile, interval: interval * SECOND });
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
            comparator: Comparator::None,
            questionable: false,
            off: false,
            change: Change::None,
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
