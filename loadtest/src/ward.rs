//! Simulated patients: stable but for a share whose SpO2 is low for a third of the time, so that alerts rise and clear all
//! the time. The same patients say the same in every run. When they say it is the matter of `schedule` and `load`.

use std::io::{self, Write};

use fastrand::Rng;
use wardbell_connectors::log::Outgoing;
use wardbell_schemas::Micros;

use crate::source::SourceTopic;

/// As many signals as a monitor here has: one record never holds two readings of one signal.
pub const READINGS_PER_RECORD_MAX: u64 = N_VITALS as u64;
/// Signals a monitor sends, if its records do not hold more.
const SIGNALS_MIN: u64 = 4;
/// A patient that deteriorates does so to this SpO2, in %.
const LOW_SPO2: f64 = 82.0;
/// The same patients in every run.
const SEED: u64 = 0x5EED;
/// What the names of our patients begin with.
const PATIENT: &str = "load-";

/// The name of the patient with this index.
pub fn patient_id(index: u64) -> String {
    format!("{PATIENT}{index:05}")
}

/// Whose turn it is in the `i`th record.
pub fn patient_of(i: u64, n_patients: u64) -> u64 {
    i % n_patients
}

/// Whether a patient is one of ours.
pub fn is_ours(patient: &str) -> bool {
    patient.starts_with(PATIENT)
}

/// A signal of a simulated monitor: `middle`, differing by up to `between` from patient to patient and by up to
/// `within` from reading to reading, in `unit`. Nothing comes near an alarm limit.
struct Vital {
    signal: &'static str,
    unit: &'static str,
    middle: f64,
    between: f64,
    within: f64,
}

const fn vital(signal: &'static str, unit: &'static str, middle: f64, between: f64, within: f64) -> Vital {
    Vital { signal, unit, middle, between, within }
}

const SPO2: usize = 0;
const HEART_RATE: usize = 1;
const PULSE_RATE: usize = 3;
const N_VITALS: usize = 12;
static VITALS: [Vital; N_VITALS] = [
    vital("spo2", "%", 97.5, 1.0, 0.5),
    vital("heart_rate", "/min", 76.0, 12.0, 1.5),
    vital("resp_rate", "/min", 15.0, 2.0, 0.7),
    vital("pulse_rate", "/min", 76.0, 12.0, 1.5),
    vital("abp_sys", "mm[Hg]", 122.0, 10.0, 2.0),
    vital("abp_dia", "mm[Hg]", 74.0, 6.0, 1.5),
    vital("abp_mean", "mm[Hg]", 90.0, 7.0, 1.5),
    vital("etco2", "mm[Hg]", 38.0, 2.0, 0.6),
    vital("temp_core", "Cel", 36.9, 0.3, 0.1),
    vital("cvp", "mm[Hg]", 8.0, 2.0, 0.4),
    vital("perfusion_index", "%", 3.0, 1.0, 0.3),
    vital("icp", "mm[Hg]", 10.0, 2.0, 0.5),
];

/// All patients and what their monitors say.
pub struct Ward {
    patients: Vec<Patient>,
    /// A patient that deteriorates does so once in this time, for a third of it.
    cycle_us: Micros,
    readings_per_record: u64,
    n_signals: u64,
    rng: Rng,
}

struct Patient {
    id: String,
    device: String,
    partition: i32,
    /// Where between -1 and 1 the patient lies, for each of [`VITALS`].
    habit: [f64; N_VITALS],
    /// For those who deteriorate: how far into the cycle they are at the beginning.
    phase: Option<Micros>,
}

impl Ward {
    /// `deteriorating` is a share from 0 to 1, of patients that do so for a third of each `cycle_us`.
    pub fn new(
        n_patients: u64,
        deteriorating: f64,
        cycle_us: Micros,
        readings_per_record: u64,
        topic: &SourceTopic,
    ) -> Self {
        let mut rng = Rng::with_seed(SEED);
        let n_deteriorating = (n_patients as f64 * deteriorating).round() as u64;
        let patient = |index: u64| {
            let id = patient_id(index);
            let mut habit = [0.0; N_VITALS].map(|_: f64| either_way(&mut rng));
            habit[PULSE_RATE] = habit[HEART_RATE];
            let phase = (index < n_deteriorating).then(|| cycle_us * index as Micros / n_deteriorating as Micros);
            Patient { partition: topic.partition(&id), device: format!("monitor-{index:05}"), id, habit, phase }
        };
        let patients = (0..n_patients).map(patient).collect();
        let n_signals = readings_per_record.max(SIGNALS_MIN);
        Self { patients, cycle_us, readings_per_record, n_signals, rng }
    }

    /// Makes `outgoing` the `i`th record, taken `elapsed_us` after the beginning. Patients take turns, and the signals of
    /// each patient take turns.
    ///
    /// # Errors
    /// None: writing into memory does not fail.
    pub fn fill(&mut self, outgoing: &mut Outgoing, i: u64, elapsed_us: Micros, start_us: Micros) -> io::Result<()> {
        let n_patients = self.patients.len() as u64;
        let patient = &self.patients[patient_of(i, n_patients) as usize];
        let n_before = (i / n_patients) * self.readings_per_record;
        outgoing.partition = patient.partition;
        let key = outgoing.key.get_or_insert_with(Vec::new);
        key.clear();
        key.extend_from_slice(patient.id.as_bytes());
        let json = outgoing.value.get_or_insert_with(Vec::new);
        json.clear();
        let (id, device, time_us) = (&patient.id, &patient.device, start_us + elapsed_us);
        write!(json, r#"{{"patient":"{id}","device":"{device}","time":{time_us},"#)?;
        if self.readings_per_record == 1 {
            write_reading(json, patient, n_before % self.n_signals, elapsed_us, self.cycle_us, &mut self.rng)?;
            return json.write_all(b"}");
        }
        json.write_all(br#""readings":["#)?;
        for n in 0..self.readings_per_record {
            if n > 0 {
                json.write_all(b",")?;
            }
            json.write_all(b"{")?;
            write_reading(json, patient, (n_before + n) % self.n_signals, elapsed_us, self.cycle_us, &mut self.rng)?;
            json.write_all(b"}")?;
        }
        json.write_all(b"]}")
    }
}

fn write_reading(
    json: &mut impl Write,
    patient: &Patient,
    vital: u64,
    elapsed_us: Micros,
    cycle_us: Micros,
    rng: &mut Rng,
) -> io::Result<()> {
    let index = vital as usize;
    let Vital { signal, unit, .. } = &VITALS[index];
    let value = patient.value(index, elapsed_us, cycle_us, rng);
    write!(json, r#""signal":"{signal}","value":{value:.1},"unit":"{unit}""#)
}

impl Patient {
    fn value(&self, index: usize, elapsed_us: Micros, cycle_us: Micros, rng: &mut Rng) -> f64 {
        let vital = &VITALS[index];
        let is_low = index == SPO2 && self.phase.is_some_and(|phase| (phase + elapsed_us) % cycle_us < cycle_us / 3);
        let middle = if is_low { LOW_SPO2 } else { vital.middle + vital.between * self.habit[index] };
        middle + vital.within * either_way(rng)
    }
}

/// Evenly between -1 and 1.
fn either_way(rng: &mut Rng) -> f64 {
    2.0 * rng.f64() - 1.0
}

#[cfg(test)]
mod tests {
    use wardbell_schemas::SECOND;
    use wardbell_schemas::catalogue::Catalogue;

    use super::*;

    #[test]
    fn a_share_of_patients_is_low_for_a_third_of_the_time_and_the_others_never() {
        let topic = SourceTopic { name: "devices".to_owned(), n_partitions: 3 };
        let cycle_us = 120 * SECOND;
        let ward = Ward::new(40, 0.25, cycle_us, 1, &topic);
        let mut rng = Rng::with_seed(1);
        let mut n_low = [0; 40];
        for (patient, n_low) in ward.patients.iter().zip(&mut n_low) {
            for second in 0..240 {
                let spo2 = patient.value(SPO2, second * SECOND, cycle_us, &mut rng);
                assert!((95.0..=99.5).contains(&spo2) || (81.0..=83.0).contains(&spo2), "{spo2}");
                *n_low += u32::from(spo2 < 90.0);
            }
        }
        assert_eq!(n_low[..10], [80; 10]);
        assert_eq!(n_low[10..], [0; 30]);
        let low_at_once =
            ward.patients.iter().filter(|patient| patient.value(SPO2, 0, cycle_us, &mut rng) < 90.0).count();
        assert_eq!(low_at_once, 4, "phases are spread");
    }

    #[test]
    fn every_vital_is_a_signal_in_its_canonical_unit() {
        for vital in &VITALS {
            let signal = Catalogue::builtin().by_id(vital.signal).expect(vital.signal);
            assert_eq!(signal.unit, vital.unit, "{}", vital.signal);
        }
        assert_eq!((VITALS[SPO2].signal, VITALS[HEART_RATE].signal), ("spo2", "heart_rate"));
        assert_eq!(VITALS[PULSE_RATE].signal, "pulse_rate");
    }
}
