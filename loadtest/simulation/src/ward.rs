//! A made-up ward: what its devices send and when, troubles included, as a function of a seed.
//!
//! Every patient is well and ill in turns, so that alerts rise and clear all the time. Around that happens what happens on
//! wards: records sent twice or late, clocks that are wrong, devices that fall silent or are swapped, blanks, corrections,
//! records that nobody can read, patients who leave and come back.

use std::time::Duration;

use fastrand::Rng;
use wardbell_schemas::alert::print_time;
use wardbell_schemas::{Micros, SECOND};

const YEAR_2001: Micros = 978_307_200 * SECOND;
/// The source topics, with their partitions. Monitors are keyed by patient, the other devices by device.
pub const TOPICS: [(&str, i32); 2] = [("monitors", 2), ("cuffs", 2)];
const MONITORS: usize = 0;
const CUFFS: usize = 1;

/// How large a ward is, and for how long it is watched.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub patients: usize,
    pub lasts: Duration,
}

impl Default for Size {
    /// Twenty patients for ten minutes: about 4,000 readings.
    fn default() -> Self {
        Self { patients: 20, lasts: Duration::from_secs(600) }
    }
}

/// One record, and when its source appends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Since the beginning.
    pub at: Duration,
    pub topic: &'static str,
    pub partition: i32,
    pub key: String,
    /// Nothing: a tombstone.
    pub value: Option<Vec<u8>>,
}

/// Everything that a ward sends, in order. `start_us` is the time at its beginning, µs since 1970 UTC.
pub fn ward(seed: u64, size: Size, start_us: Micros) -> Vec<Sent> {
    let mut ward =
        Ward { rng: Rng::with_seed(seed), lasts: size.lasts.as_micros() as Micros, start_us, sent: Vec::new() };
    for index in 0..size.patients {
        ward.patient(index);
    }
    ward.noise();
    // Stable: what is due at the same time stays in the order in which it was made.
    ward.sent.sort_by_key(|sent| sent.at);
    ward.sent
}

/// What a device measures: the value of somebody who is well, how far it is off when ill, and the noise about both.
struct Vital {
    signal: &'static str,
    unit: &'static str,
    well: f64,
    ill: f64,
    noise: f64,
}

const HEART_RATE: Vital = Vital { signal: "heart_rate", unit: "/min", well: 82.0, ill: 58.0, noise: 4.0 };
const SPO2: Vital = Vital { signal: "spo2", unit: "%", well: 97.0, ill: -11.0, noise: 1.0 };
const RESP_RATE: Vital = Vital { signal: "resp_rate", unit: "/min", well: 15.0, ill: 14.0, noise: 1.5 };
const TEMP_CORE: Vital = Vital { signal: "temp_core", unit: "Cel", well: 36.8, ill: 2.6, noise: 0.1 };
const NIBP_SYS: Vital = Vital { signal: "nibp_sys", unit: "mm[Hg]", well: 120.0, ill: -35.0, noise: 6.0 };

/// What is wrong with a device's clock or voice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Nothing,
    /// Its clock is so far ahead.
    Ahead(Micros),
    /// Its clock is so far behind, steadily.
    Behind(Micros),
    /// Its clock began in 1970.
    Epoch,
    /// It stamps whole multiples of this only.
    Coarse(Micros),
    /// It says nothing from the first to the second time.
    Silent(Micros, Micros),
    /// From then on another device speaks for the patient.
    Swapped(Micros),
    /// It says that it is switched off, from the first to the second time.
    Off(Micros, Micros),
}

struct Patient {
    name: String,
    /// Well and ill once in this time, ill for a part of it.
    cycle: Micros,
    ill: Micros,
    phase: Micros,
    /// How ill: a share of what ill means.
    depth: f64,
}

impl Patient {
    fn value(&self, vital: &Vital, at: Micros, rng: &mut Rng) -> f64 {
        let is_ill = (at + self.phase) % self.cycle < self.ill;
        let middle = vital.well + if is_ill { vital.ill * self.depth } else { 0.0 };
        (10.0 * (middle + vital.noise * (2.0 * rng.f64() - 1.0))).round() / 10.0
    }
}

struct Device<'a> {
    name: String,
    patient: &'a Patient,
    topic: usize,
    vitals: &'a [Vital],
    every: Micros,
    trouble: Trouble,
}

struct Ward {
    rng: Rng,
    lasts: Micros,
    start_us: Micros,
    sent: Vec<Sent>,
}

impl Ward {
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    /// Evenly between, in whole ms.
    fn between(&mut self, from: Micros, to: Micros) -> Micros {
        self.rng.i64(from / 1_000..=to / 1_000) * 1_000
    }

    fn patient(&mut self, index: usize) {
        let cycle = self.between(80 * SECOND, 240 * SECOND);
        let patient = Patient {
            name: format!("p{index:02}"),
            cycle,
            ill: cycle * 2 / 5,
            phase: self.between(0, cycle),
            depth: 0.6 + 0.5 * self.rng.f64(),
        };
        let troubled = self.trouble(60);
        self.attach(&patient, &[HEART_RATE, SPO2], 8 * SECOND, "monitor", MONITORS, troubled);
        let troubled = self.trouble(25);
        self.attach(&patient, &[RESP_RATE], 15 * SECOND, "belt", MONITORS, troubled);
        let troubled = self.trouble(25);
        self.attach(&patient, &[TEMP_CORE], 30 * SECOND, "probe", CUFFS, troubled);
        let every = self.between(45 * SECOND, 120 * SECOND);
        let troubled = self.trouble(25);
        self.attach(&patient, &[NIBP_SYS], every, "cuff", CUFFS, troubled);
        self.requests(&patient);
    }

    /// The trouble of so many percent of devices.
    fn trouble(&mut self, percent: u32) -> Trouble {
        if !self.chance(percent) {
            return Trouble::Nothing;
        }
        let from = self.between(self.lasts / 10, self.lasts / 2);
        let to = from + self.between(75 * SECOND, 200 * SECOND);
        match self.rng.u32(0..10) {
            0 => Trouble::Ahead(self.between(20 * SECOND, 900 * SECOND)),
            1 => Trouble::Behind(self.between(90 * SECOND, 900 * SECOND)),
            2 => Trouble::Epoch,
            3 => Trouble::Coarse(30 * SECOND),
            4 | 5 => Trouble::Silent(from, to),
            6 => Trouble::Silent(from, Micros::MAX),
            7 | 8 => Trouble::Swapped(from),
            _ => Trouble::Off(from, to),
        }
    }

    /// A device of a patient, with everything that it sends.
    fn attach(
        &mut self,
        patient: &Patient,
        vitals: &[Vital],
        every: Micros,
        kind: &str,
        topic: usize,
        trouble: Trouble,
    ) {
        let name = format!("{kind}-{}", patient.name);
        let device = Device { name, patient, topic, vitals, every, trouble };
        let first = self.between(0, every);
        let mut last: Option<Micros> = None;
        for turn in 0.. {
            let at = first + turn * device.every + self.between(0, device.every / 10);
            if at >= self.lasts {
                return;
            }
            let is_silent = matches!(device.trouble, Trouble::Silent(from, to) if (from..to).contains(&at));
            if !is_silent {
                self.measure(&device, at, &mut last);
            }
        }
    }

    /// One record of a device, with what may happen to it on its way.
    fn measure(&mut self, device: &Device<'_>, at: Micros, last: &mut Option<Micros>) {
        let name = match device.trouble {
            Trouble::Swapped(from) if at >= from => format!("{}-b", device.name),
            _ => device.name.clone(),
        };
        let off = matches!(device.trouble, Trouble::Off(from, to) if (from..to).contains(&at));
        let mut readings = Vec::new();
        for vital in device.vitals {
            readings.push(self.reading(device.patient, vital, at, off));
        }
        let time = self.stamp(device, at);
        let value = record(&device.patient.name, &name, time, &readings);
        // Most arrive at once, some late, a few too late.
        let delay = match self.rng.u32(0..100) {
            0 => self.between(61 * SECOND, 100 * SECOND),
            1 | 2 => self.between(5 * SECOND, 50 * SECOND),
            _ => self.between(0, SECOND / 5),
        };
        let sent = self.sent_by(device.topic, &name, &device.patient.name, at + delay, value);
        self.sent.push(sent.clone());
        if self.chance(4) {
            // Sent again, soon or by a gateway that was away.
            let again = if self.chance(50) { 0 } else { self.between(0, 40 * SECOND) };
            let at = sent.at + Duration::from_micros(again.unsigned_abs());
            self.sent.push(Sent { at, ..sent });
        }
        if let Some(before) = last.replace(time)
            && self.chance(2)
        {
            self.correct(device, &name, before, at + delay);
        }
    }

    /// What the device says the time is.
    fn stamp(&self, device: &Device<'_>, at: Micros) -> Micros {
        let true_time = self.start_us + at;
        match device.trouble {
            Trouble::Ahead(by) => true_time + by,
            Trouble::Behind(by) => true_time - by,
            Trouble::Epoch => at,
            Trouble::Coarse(step) => true_time - true_time.rem_euclid(step),
            _ => true_time,
        }
    }

    fn reading(&mut self, patient: &Patient, vital: &Vital, at: Micros, off: bool) -> String {
        let Vital { signal, unit, .. } = vital;
        if off {
            return format!(r#"{{"signal":"{signal}","value":null,"unit":"{unit}","quality":"off"}}"#);
        }
        let value = patient.value(vital, at, &mut self.rng);
        match self.rng.u32(0..200) {
            0..4 => format!(r#"{{"signal":"{signal}","value":null,"unit":"{unit}"}}"#),
            4 | 5 => format!(r#"{{"signal":"{signal}","value":{value:.1},"unit":"{unit}","quality":"questionable"}}"#),
            6 => format!(r#"{{"signal":"{signal}","value":99999,"unit":"{unit}"}}"#),
            7 => format!(r#"{{"signal":"{signal}","value":{value:.1},"unit":"furlong"}}"#),
            _ => format!(r#"{{"signal":"{signal}","value":{value:.1},"unit":"{unit}"}}"#),
        }
    }

    /// The value of an earlier record is put right, or taken back.
    fn correct(&mut self, device: &Device<'_>, name: &str, time: Micros, at: Micros) {
        let change = if self.chance(30) { "retracts" } else { "corrects" };
        let at = at + self.between(SECOND, 10 * SECOND);
        let Some(vital) = device.vitals.first() else {
            return;
        };
        let value = device.patient.value(vital, at, &mut self.rng);
        let Vital { signal, unit, .. } = vital;
        let reading = format!(r#"{{"signal":"{signal}","value":{value:.1},"unit":"{unit}","change":"{change}"}}"#);
        let value = record(&device.patient.name, name, time, &[reading]);
        let sent = self.sent_by(device.topic, name, &device.patient.name, at, value);
        self.sent.push(sent);
    }

    /// Some patients leave (and are measured on: the next patient, or a mistake), some monitors are put on standby.
    fn requests(&mut self, patient: &Patient) {
        let name = &patient.name;
        if self.chance(10) {
            let at = self.between(self.lasts / 3, self.lasts);
            let value = format!(r#"{{"control":"discharge","patient":"{name}"}}"#);
            let sent = self.sent_by(MONITORS, "", name, at, value);
            self.sent.push(sent);
        }
        if self.chance(10) {
            let at = self.between(self.lasts / 5, self.lasts);
            let value = format!(r#"{{"control":"standby","patient":"{name}","device":"monitor-{name}"}}"#);
            let sent = self.sent_by(MONITORS, "", name, at, value);
            self.sent.push(sent);
        }
    }

    /// Records that nobody can read, and what only looks like one.
    fn noise(&mut self) {
        let poison = [
            "not a record",
            "[]",
            "{}",
            r#"{"patient":"p00"}"#,
            r#"{"readings":[]}"#,
            r#"{"device":"monitor-p00","time":1,"signal":"spo2","value":50,"unit":"%"}"#,
            r#"{"patient":"p00","device":"monitor-p00","time":"yesterday","signal":"spo2","value":50,"unit":"%"}"#,
            r#"{"patient":"p00","device":"monitor-p00","time":1,"signal":"mood","value":1}"#,
            r#"{"control":"limit","patient":"p00"}"#,
        ];
        for index in 0..self.lasts / (20 * SECOND) {
            let at = self.between(0, self.lasts - 1_000);
            let text = poison[self.rng.usize(0..poison.len())];
            let (topic, key) = (self.rng.usize(0..TOPICS.len()), format!("p{:02}", index % 20));
            let mut sent = self.sent_by(topic, &key, &key, at, text.to_owned());
            if self.chance(15) {
                sent.value = None;
            }
            self.sent.push(sent);
        }
    }

    /// A record on its way. Keys stay on their partitions, so all of a device comes over one of them.
    fn sent_by(&self, topic: usize, device: &str, patient: &str, at: Micros, value: String) -> Sent {
        let key = if topic == MONITORS { patient } else { device };
        let (topic, partitions) = TOPICS[topic];
        let sum: i32 = key.bytes().map(i32::from).sum();
        Sent {
            at: Duration::from_micros(at.unsigned_abs()),
            topic,
            partition: sum % partitions,
            key: key.to_owned(),
            value: Some(value.into_bytes()),
        }
    }
}

fn record(patient: &str, device: &str, time: Micros, readings: &[String]) -> String {
    let readings = readings.join(",");
    // A number before 2001 is no time to anybody.
    let time = if time < YEAR_2001 { format!("{:?}", print_time(time)) } else { time.to_string() };
    format!(r#"{{"patient":"{patient}","device":"{device}","time":{time},"readings":[{readings}]}}"#)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const START_US: Micros = 1_767_225_600 * SECOND;

    fn texts(sent: &[Sent]) -> Vec<&str> {
        sent.iter().filter_map(|sent| std::str::from_utf8(sent.value.as_deref()?).ok()).collect()
    }

    #[test]
    fn a_ward_is_a_function_of_its_seed_and_comes_in_order() {
        let first = ward(7, Size::default(), START_US);
        assert_eq!(first, ward(7, Size::default(), START_US));
        assert_ne!(first, ward(8, Size::default(), START_US));
        assert!(first.is_sorted_by_key(|sent| sent.at));
        let partitions: BTreeSet<(&str, i32)> = first.iter().map(|sent| (sent.topic, sent.partition)).collect();
        assert_eq!(partitions.len(), 4);
    }

    #[test]
    fn many_wards_show_every_trouble() {
        let wards: Vec<Vec<Sent>> = (0..20).map(|seed| ward(seed, Size::default(), START_US)).collect();
        let all: Vec<&str> = wards.iter().flat_map(|sent| texts(sent)).collect();
        for shown in [
            "corrects",
            "retracts",
            "questionable",
            "\"off\"",
            "null",
            "furlong",
            "99999",
            "discharge",
            "standby",
            "not a record",
            "-b\"",
        ] {
            assert!(all.iter().any(|text| text.contains(shown)), "no ward shows {shown}");
        }
        assert!(wards.iter().flatten().any(|sent| sent.value.is_none()), "no ward shows a tombstone");
        let twice = |sent: &Vec<Sent>| texts(sent).len() - texts(sent).into_iter().collect::<BTreeSet<&str>>().len();
        assert!(wards.iter().all(|sent| twice(sent) > 10));
        let readings =
            |sent: &Vec<Sent>| texts(sent).iter().map(|text| text.matches("\"signal\"").count()).sum::<usize>();
        assert!(wards.iter().map(readings).all(|n| (3_000..6_000).contains(&n)));
    }
}
