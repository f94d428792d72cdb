//! A simulated hospital ward for `wardbell demo`: 26 beds, each with a bedside monitor and a cuff, and staged stories.
//!
//! Every bed is a small body whose vital signs wander slowly about its own baselines and answer one another (falling
//! oxygen saturation drives heart and breathing, and in the end exhausts the heart), seen through devices with their
//! own labels, units, resolutions, clocks and faults. All wander is cut off at three standard deviations, so a patient
//! without a story stays inside adult ward limits by construction: an alert for one of them is the engine's fault.
//!
//! The seed decides everything. Values are made with additions, products and square roots only, which IEEE 754 defines
//! to the last bit, so that a seed gives the same ward on every platform.
//! There is no clock, no thread and no I/O here; the caller plays the records into a log at whatever pace it likes.

use fastrand::Rng;

/// Beds of the ward; beds and patients are numbered from 1.
const BEDS: usize = 26;

const US_PER_MS: i64 = 1_000;
const US_PER_S: i64 = 1_000_000;

/// Monitors sample at a fixed phase of the second, as real ones do: event times are exactly 1 s apart.
/// 650 ms plus the spread of the latency keeps every arrival inside the first 900 ms of its second.
const SAMPLE_PHASE_MS_MAX: i64 = 650;
/// Time a record needs from the device to the broker, µs.
const LATENCY_US_MIN: i64 = 50 * US_PER_MS;
const LATENCY_US_MAX: i64 = 300 * US_PER_MS;
/// A record sent twice arrives again this much later, µs; short enough to stay inside the same second.
const RESEND_US_MIN: i64 = 20 * US_PER_MS;
const RESEND_US_MAX: i64 = 60 * US_PER_MS;

/// First cuff readings are spread over this many seconds, so that pressures show early in the demo but not all at once.
const CUFF_STAGGER_S: i64 = 5;
/// A cuff on a general ward measures every few minutes; 3 minutes is the short end.
const CUFF_INTERVAL_S: i64 = 180;
/// A cuff set to measure often because the patient worries somebody.
const CUFF_INTERVAL_WATCHED_S: i64 = 30;

// How devices differ. Bed numbers; a bed in no list has the plain device.
const BEDS_EPOCH_TIME: [usize; 4] = [4, 10, 18, 23];
const BEDS_VENDOR_LABELS: [usize; 4] = [6, 12, 21, 25];
const BEDS_BPM: [usize; 7] = [1, 6, 7, 12, 15, 21, 25];
const BEDS_SPO2_TENTHS: [usize; 2] = [1, 13];
const BEDS_ETCO2_MMHG: [usize; 3] = [2, 12, 26];
const BEDS_ETCO2_KPA: [usize; 3] = [8, 18, 21];
const BEDS_TEMP_CEL: [usize; 5] = [1, 4, 15, 20, 25];
const BEDS_TEMP_FAHRENHEIT: [usize; 2] = [6, 9];
const BEDS_CUFF_UCUM: [usize; 5] = [4, 8, 10, 18, 23];
const BEDS_CUFF_KPA: [usize; 1] = [20];

/// mm[Hg] in one kPa (`units.csv`).
const MMHG_PER_KPA: f64 = 7.500_615_758_456_56;

/// One record as a device gateway would send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WardRecord {
    /// Ward time at which it reaches the broker, µs since 1970.
    pub at_us: i64,
    /// The patient it is about, `ward-p03`: what the gateway uses as the record's key, also when the JSON is broken.
    pub patient: String,
    /// The canonical source format, one device and second; a few are malformed on purpose.
    pub json: String,
}

/// The ward: gives its records second by second.
pub struct Ward {
    start_us: i64,
    seconds_done: i64,
    beds: Vec<Bed>,
}

impl Ward {
    /// A ward whose first second begins at `start_us` (ward time, µs since 1970). Same seed and start, same records.
    pub fn new(seed: u64, start_us: i64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let beds = (1..=BEDS).map(|number| Bed::new(number, &mut rng)).collect();
        Self { start_us, seconds_done: 0, beds }
    }

    /// Number of patients, monitored or not at the moment.
    pub fn patients(&self) -> usize {
        self.beds.len()
    }

    /// The records of the next second of ward time, in the order they reach the broker: `at_us` never decreases and
    /// lies within that second.
    pub fn next_second(&mut self) -> Vec<WardRecord> {
        let moment = Moment { second: self.seconds_done, begin_us: self.start_us + self.seconds_done * US_PER_S };
        self.seconds_done += 1;
        let mut records: Vec<WardRecord> = self.beds.iter_mut().flat_map(|bed| bed.records(moment)).collect();
        records.sort_by_key(|record| record.at_us);
        records
    }

    /// What is staged, by bed, one line a person reads: `("bed 7", "heart rate climbs ...")`. Times are minutes and
    /// seconds of ward time.
    pub fn story(&self) -> Vec<(String, String)> {
        let line = |bed: &Bed| bed.story.map(|story| (format!("bed {}", bed.number), story.text().to_owned()));
        self.beds.iter().filter_map(line).collect()
    }
}

/// A second of ward time: its number from the start of the run, and the instant it begins (µs since 1970).
#[derive(Clone, Copy)]
struct Moment {
    second: i64,
    begin_us: i64,
}

/// What can be staged at a bed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    SentTwice,
    Desaturation,
    ClockAhead,
    Tachycardia,
    Fever,
    Hypotension,
    Tachypnea,
    Bradycardia,
    ValuesMissing,
    ProbeOff,
    MonitorSilent,
    FaultyGateway,
}

/// A script: (second of the run, change from the baseline); straight lines between, flat before and after.
type Script = [(f64, f64)];

/// 96 to 82 % in 45 s, a minute low (an alert has time to escalate), back to 95 % (it clears).
const DESATURATION_SPO2: &Script = &[(15.0, 0.0), (60.0, -14.0), (120.0, -14.0), (140.0, -1.0)];
/// 85 to 148 /min.
const TACHYCARDIA_HEART_RATE: &Script = &[(20.0, 0.0), (60.0, 63.0)];
/// 118 to 84 mm[Hg], between the first cuff reading (1 s) and its first repeat (31 s).
const HYPOTENSION_SYSTOLIC: &Script = &[(15.0, 0.0), (29.0, -34.0)];
/// The heart makes up for the pressure: 78 to 118 /min, a shock index of 1.4.
const HYPOTENSION_HEART_RATE: &Script = &[(15.0, 0.0), (55.0, 40.0)];
/// 16 to 32 /min.
const TACHYPNEA_RESP_RATE: &Script = &[(30.0, 0.0), (75.0, 16.0)];
/// 44 to 36 /min, low until 110 s, then to 52 /min: well above, so that any sensible clear limit is passed.
const BRADYCARDIA_HEART_RATE: &Script = &[(40.0, 0.0), (60.0, -8.0), (110.0, -8.0), (125.0, 8.0)];

/// Bed 5: how far the monitor's clock is ahead until somebody sets it right. Far beyond any tolerance for skew.
const CLOCK_AHEAD_US: i64 = 540 * US_PER_S;
const CLOCK_AHEAD_UNTIL_S: i64 = 100;
/// Bed 19: from when the SpO2 probe lies on the blanket.
const PROBE_OFF_FROM_S: i64 = 20;
/// Bed 22: from when the monitor sends nothing.
const MONITOR_SILENT_FROM_S: i64 = 12;
/// Bed 2: one record in ten is sent twice.
const SENT_TWICE_PERIOD_S: i64 = 10;
/// Bed 17: the impedance band loses the breath for 2 s in every 45 s.
const VALUES_MISSING_PERIOD_S: i64 = 45;
const VALUES_MISSING_FROM_S: i64 = 30;
const VALUES_MISSING_FOR_S: i64 = 2;
/// Bed 24: a truncated record every 20 s, and three readings with a fault of their own, once each.
const TRUNCATED_PERIOD_S: i64 = 20;
const TRUNCATED_AT_S: i64 = 6;
const UNKNOWN_LABEL_AT_S: i64 = 15;
const UNIT_MISSING_AT_S: i64 = 35;
const IMPLAUSIBLE_AT_S: i64 = 55;

impl Story {
    fn of_bed(number: usize) -> Option<Self> {
        Some(match number {
            2 => Self::SentTwice,
            3 => Self::Desaturation,
            5 => Self::ClockAhead,
            7 => Self::Tachycardia,
            9 => Self::Fever,
            11 => Self::Hypotension,
            14 => Self::Tachypnea,
            16 => Self::Bradycardia,
            17 => Self::ValuesMissing,
            19 => Self::ProbeOff,
            22 => Self::MonitorSilent,
            24 => Self::FaultyGateway,
            _ => return None,
        })
    }

    fn text(self) -> &'static str {
        match self {
            Self::SentTwice => "every 10 s a record is sent twice",
            Self::Desaturation => "oxygen saturation falls from 0:15, 96 to 82 %, and recovers from 2:00",
            Self::ClockAhead => "monitor clock is 9 minutes ahead, set right at 1:40; the patient is stable",
            Self::Tachycardia => "heart rate climbs from 0:20, 85 to 148 /min, and stays",
            Self::Fever => "fever of 38.9 Cel from the start, sent in degF",
            Self::Hypotension => {
                "blood pressure falls, 118 to 84 mmHg at the cuff's first repeat (0:31); heart rate rises"
            }
            Self::Tachypnea => "respiratory rate rises from 0:30, 16 to 32 /min, and stays",
            Self::Bradycardia => "heart rate falls from 0:40, 44 to 36 /min, and recovers from 1:50",
            Self::ValuesMissing => "respiratory rate is missing (null) for 2 s now and then; the patient is stable",
            Self::ProbeOff => "SpO2 probe falls off at 0:20: saturation and pulse are sent as 0; the patient is stable",
            Self::MonitorSilent => "monitor goes silent at 0:12; the cuff goes on",
            Self::FaultyGateway => {
                "cuff gateway sends a truncated record every 20 s; once each: unknown label (0:15), no unit (0:35), \
                 98.6 Cel (0:55)"
            }
        }
    }

    /// What the script adds to the body at a second of the run; devices' stories add nothing.
    fn shift(self, second: i64) -> Shift {
        let at = |script| interpolate(script, second as f64);
        match self {
            Self::Desaturation => Shift { spo2: at(DESATURATION_SPO2), ..Shift::default() },
            Self::Tachycardia => Shift { heart_rate: at(TACHYCARDIA_HEART_RATE), ..Shift::default() },
            Self::Hypotension => {
                Shift { systolic: at(HYPOTENSION_SYSTOLIC), heart_rate: at(HYPOTENSION_HEART_RATE), ..Shift::default() }
            }
            Self::Tachypnea => {
                let resp_rate = at(TACHYPNEA_RESP_RATE);
                // The work of breathing costs beats: half a beat per breath.
                Shift { resp_rate, heart_rate: 0.5 * resp_rate, ..Shift::default() }
            }
            Self::Bradycardia => Shift { heart_rate: at(BRADYCARDIA_HEART_RATE), ..Shift::default() },
            Self::SentTwice
            | Self::ClockAhead
            | Self::Fever
            | Self::ValuesMissing
            | Self::ProbeOff
            | Self::MonitorSilent
            | Self::FaultyGateway => Shift::default(),
        }
    }

    /// Whether the patient, rather than a device, is the story.
    fn is_about_the_patient(self) -> bool {
        matches!(
            self,
            Self::Desaturation
                | Self::Tachycardia
                | Self::Fever
                | Self::Hypotension
                | Self::Tachypnea
                | Self::Bradycardia
        )
    }
}

/// Value of a script at a second of the run.
fn interpolate(script: &Script, second: f64) -> f64 {
    let mut before: Option<(f64, f64)> = None;
    for &(time, value) in script {
        if second < time {
            return match before {
                Some((time_before, value_before)) => {
                    value_before + (value - value_before) * (second - time_before) / (time - time_before)
                }
                None => value,
            };
        }
        before = Some((time, value));
    }
    before.map_or(0.0, |(_, value)| value)
}

/// A patient and the two devices at the bed.
struct Bed {
    number: usize,
    patient: String,
    story: Option<Story>,
    body: Body,
    monitor: Device,
    cuff: Device,
    /// Chance of the network only: latency never changes a value.
    network: Rng,
}

impl Bed {
    fn new(number: usize, ward_rng: &mut Rng) -> Self {
        let story = Story::of_bed(number);
        let body = Body::new(story, ward_rng.fork());
        let mut network = ward_rng.fork();
        let monitor = Device::new(format!("mon-{number:02}"), &mut network);
        let cuff = Device::new(format!("cuff-{number:02}"), &mut network);
        Self { number, patient: format!("ward-p{number:02}"), story, body, monitor, cuff, network }
    }

    /// Lives one second and gives what its devices send of it, in no particular order.
    fn records(&mut self, moment: Moment) -> Vec<WardRecord> {
        let vitals = self.live(moment.second);
        let mut records = Vec::new();
        if !(self.story == Some(Story::MonitorSilent) && moment.second >= MONITOR_SILENT_FROM_S) {
            let readings = self.monitor_readings(vitals, moment.second);
            let clock_error_us = self.monitor_clock_error_us(moment.second);
            let record = self.monitor.send(&self.patient, moment, clock_error_us, &readings, &mut self.network);
            if self.story == Some(Story::SentTwice) && moment.second % SENT_TWICE_PERIOD_S == SENT_TWICE_PERIOD_S / 2 {
                let resent_us = record.at_us + self.network.i64(RESEND_US_MIN..=RESEND_US_MAX);
                records.push(WardRecord { at_us: resent_us, ..record.clone() });
            }
            records.push(record);
        }
        if self.is_cuff_due(moment.second) {
            let readings = self.cuff_readings(vitals);
            records.push(self.cuff.send(&self.patient, moment, 0, &readings, &mut self.network));
        }
        if self.story == Some(Story::FaultyGateway) {
            records.extend(self.faulty_record(vitals, moment));
        }
        records
    }

    fn live(&mut self, second: i64) -> Vitals {
        let shift = self.story.map_or_else(Shift::default, |story| story.shift(second));
        self.body.live_one_second(shift)
    }

    fn monitor_readings(&self, vitals: Vitals, second: i64) -> Vec<Reading> {
        let labels = self.labels();
        let spo2_decimals = usize::from(BEDS_SPO2_TENTHS.contains(&self.number));
        let beat_unit = if BEDS_BPM.contains(&self.number) { "bpm" } else { "/min" };
        let is_probe_off = self.story == Some(Story::ProbeOff) && second >= PROBE_OFF_FROM_S;
        // This monitor says 0 where it measures nothing.
        let (spo2, pulse_rate) = if is_probe_off { (0.0, 0.0) } else { (vitals.spo2, vitals.pulse_rate) };

        let mut readings = vec![
            Reading::new(labels.spo2, spo2, spo2_decimals, "%"),
            Reading::new(labels.heart_rate, vitals.heart_rate, 0, beat_unit),
            Reading::new(labels.pulse_rate, pulse_rate, 0, beat_unit),
            Reading::new(labels.resp_rate, vitals.resp_rate, 0, "/min").blank_if(self.is_breath_lost(second)),
        ];
        if BEDS_ETCO2_MMHG.contains(&self.number) {
            readings.push(Reading::new(labels.etco2, vitals.etco2, 0, "mmHg"));
        } else if BEDS_ETCO2_KPA.contains(&self.number) {
            readings.push(Reading::new(labels.etco2, vitals.etco2 / MMHG_PER_KPA, 1, "kPa"));
        }
        if BEDS_TEMP_CEL.contains(&self.number) {
            readings.push(Reading::new(labels.temp_core, vitals.temperature, 1, "Cel"));
        } else if BEDS_TEMP_FAHRENHEIT.contains(&self.number) {
            readings.push(Reading::new(labels.temp_core, vitals.temperature * 1.8 + 32.0, 1, "degF"));
        }
        if self.story == Some(Story::FaultyGateway) && second == UNKNOWN_LABEL_AT_S {
            readings.push(Reading::new("AUX7_IDX", 51.0, 0, "%"));
        }
        readings
    }

    fn is_breath_lost(&self, second: i64) -> bool {
        let lost = VALUES_MISSING_FROM_S..VALUES_MISSING_FROM_S + VALUES_MISSING_FOR_S;
        self.story == Some(Story::ValuesMissing) && lost.contains(&(second % VALUES_MISSING_PERIOD_S))
    }

    fn monitor_clock_error_us(&self, second: i64) -> i64 {
        let is_ahead = self.story == Some(Story::ClockAhead) && second < CLOCK_AHEAD_UNTIL_S;
        if is_ahead { CLOCK_AHEAD_US } else { 0 }
    }

    fn is_cuff_due(&self, second: i64) -> bool {
        let is_watched = self.story == Some(Story::Hypotension);
        let interval = if is_watched { CUFF_INTERVAL_WATCHED_S } else { CUFF_INTERVAL_S };
        second % interval == self.number as i64 % CUFF_STAGGER_S
    }

    fn cuff_readings(&self, vitals: Vitals) -> Vec<Reading> {
        let labels = self.labels();
        let pressure = |label, mmhg: f64| {
            if BEDS_CUFF_KPA.contains(&self.number) {
                Reading::new(label, mmhg / MMHG_PER_KPA, 1, "kPa")
            } else if BEDS_CUFF_UCUM.contains(&self.number) {
                Reading::new(label, mmhg, 0, "mm[Hg]")
            } else {
                Reading::new(label, mmhg, 0, "mmHg")
            }
        };
        vec![
            pressure(labels.nibp_sys, vitals.systolic),
            pressure(labels.nibp_dia, vitals.diastolic),
            pressure(labels.nibp_mean, vitals.mean_pressure),
        ]
    }

    /// What the gateway of bed 24 spoils this second, as a record beside the good ones.
    fn faulty_record(&mut self, vitals: Vitals, moment: Moment) -> Option<WardRecord> {
        let is_truncated = moment.second % TRUNCATED_PERIOD_S == TRUNCATED_AT_S;
        let readings = match moment.second {
            _ if is_truncated => self.cuff_readings(vitals),
            UNIT_MISSING_AT_S => {
                vec![Reading { unit: None, ..Reading::new("temp_body", vitals.temperature, 1, "Cel") }]
            }
            // A Fahrenheit thermometer labelled Celsius.
            IMPLAUSIBLE_AT_S => vec![Reading::new("temp_body", 98.6, 1, "Cel")],
            _ => return None,
        };
        let mut record = self.cuff.send(&self.patient, moment, 0, &readings, &mut self.network);
        if is_truncated {
            // The text is ASCII, so any length is a character boundary; two thirds is amid the readings.
            record.json.truncate(record.json.len() * 2 / 3);
        }
        Some(record)
    }

    fn labels(&self) -> &'static Labels {
        if BEDS_VENDOR_LABELS.contains(&self.number) { &VENDOR_LABELS } else { &CATALOGUE_LABELS }
    }
}

/// What a device calls its signals.
struct Labels {
    spo2: &'static str,
    heart_rate: &'static str,
    pulse_rate: &'static str,
    resp_rate: &'static str,
    etco2: &'static str,
    temp_core: &'static str,
    nibp_sys: &'static str,
    nibp_dia: &'static str,
    nibp_mean: &'static str,
}

const CATALOGUE_LABELS: Labels = Labels {
    spo2: "spo2",
    heart_rate: "heart_rate",
    pulse_rate: "pulse_rate",
    resp_rate: "resp_rate",
    etco2: "etco2",
    temp_core: "temp_core",
    nibp_sys: "nibp_sys",
    nibp_dia: "nibp_dia",
    nibp_mean: "nibp_mean",
};

/// Synonyms of the catalogue; none of the ambiguous ones (`RR`, `PR`, `MAP`), which no connector maps by itself.
const VENDOR_LABELS: Labels = Labels {
    spo2: "SpO2",
    heart_rate: "HR",
    pulse_rate: "PLS",
    resp_rate: "RESP",
    etco2: "EtCO2",
    temp_core: "Tcore",
    nibp_sys: "NIBPs",
    nibp_dia: "NIBPd",
    nibp_mean: "NIBPm",
};

/// A device with its own place in the second and its own way to write the time.
struct Device {
    name: String,
    /// When in each second it samples, ms; the first sample may lie up to `LATENCY_US_MIN` before the run.
    phase_ms: i64,
    writes_epoch_ms: bool,
}

impl Device {
    fn new(name: String, rng: &mut Rng) -> Self {
        let writes_epoch_ms = BEDS_EPOCH_TIME.iter().any(|bed| name == format!("mon-{bed:02}"));
        Self { name, phase_ms: rng.i64(0..=SAMPLE_PHASE_MS_MAX), writes_epoch_ms }
    }

    /// The record of these readings. `clock_error_us` is how far the device's clock is ahead.
    fn send(
        &self,
        patient: &str,
        moment: Moment,
        clock_error_us: i64,
        readings: &[Reading],
        network: &mut Rng,
    ) -> WardRecord {
        let sampled_us = moment.begin_us + self.phase_ms * US_PER_MS - LATENCY_US_MIN;
        let device_us = sampled_us + clock_error_us;
        let time = if self.writes_epoch_ms {
            device_us.div_euclid(US_PER_MS).to_string()
        } else {
            format!("\"{}\"", rfc3339_ms(device_us))
        };
        let device = &self.name;
        let readings: Vec<String> = readings.iter().map(Reading::json).collect();
        let readings = readings.join(",");
        let json = format!(r#"{{"patient":"{patient}","device":"{device}","time":{time},"readings":[{readings}]}}"#);
        let at_us = sampled_us + network.i64(LATENCY_US_MIN..=LATENCY_US_MAX);
        WardRecord { at_us, patient: patient.to_owned(), json }
    }
}

/// A reading as a device writes it: its own label, unit and number of decimals.
struct Reading {
    label: &'static str,
    value: Option<f64>,
    decimals: usize,
    unit: Option<&'static str>,
}

impl Reading {
    fn new(label: &'static str, value: f64, decimals: usize, unit: &'static str) -> Self {
        Self { label, value: Some(value), decimals, unit: Some(unit) }
    }

    fn blank_if(self, is_blank: bool) -> Self {
        if is_blank { Self { value: None, ..self } } else { self }
    }

    /// Labels and units are constants of this file without quotes or backslashes, so nothing needs escaping.
    fn json(&self) -> String {
        let label = self.label;
        let decimals = self.decimals;
        let value = self.value.map_or_else(|| "null".to_owned(), |value| format!("{value:.decimals$}"));
        let unit = self.unit.map_or_else(String::new, |unit| format!(r#","unit":"{unit}""#));
        format!(r#"{{"signal":"{label}","value":{value}{unit}}}"#)
    }
}

/// What is true of a patient at one second, before any device rounds it. Rates in /min, pressures in mm[Hg], saturation
/// in %, temperature in Cel.
#[derive(Clone, Copy, Debug)]
struct Vitals {
    spo2: f64,
    heart_rate: f64,
    pulse_rate: f64,
    resp_rate: f64,
    etco2: f64,
    temperature: f64,
    systolic: f64,
    diastolic: f64,
    mean_pressure: f64,
}

/// What a story adds to a body, in the units of [`Vitals`].
#[derive(Clone, Copy, Default)]
struct Shift {
    spo2: f64,
    heart_rate: f64,
    resp_rate: f64,
    systolic: f64,
}

/// What a patient comes back to, in the units of [`Vitals`].
struct Baseline {
    spo2: f64,
    heart_rate: f64,
    resp_rate: f64,
    etco2: f64,
    temperature: f64,
    systolic: f64,
    /// Diastolic over 0.6 of the systolic pressure.
    diastolic_offset: f64,
}

impl Baseline {
    /// Ranges leave room for the wander below: whoever has no story scores 0 or little on NEWS2 and keeps heart rate
    /// over systolic pressure (the shock index) under 0.9.
    fn new(story: Option<Story>, rng: &mut Rng) -> Self {
        let mut within = |low: f64, high: f64| low + (high - low) * rng.f64();
        let drawn = Self {
            spo2: within(95.6, 98.0),
            heart_rate: within(64.0, 84.0),
            resp_rate: within(13.6, 16.5),
            etco2: within(37.0, 40.0),
            temperature: within(36.5, 37.2),
            systolic: within(117.0, 138.0),
            diastolic_offset: within(-3.0, 3.0),
        };
        match story {
            Some(Story::Desaturation) => Self { spo2: 96.0, heart_rate: 78.0, resp_rate: 16.0, ..drawn },
            // The pressure is high enough to keep the shock index under 1.0 at 148 /min: one story, one alert.
            Some(Story::Tachycardia) => Self { heart_rate: 85.0, systolic: 158.0, ..drawn },
            Some(Story::Fever) => Self { temperature: 38.9, heart_rate: 88.0, resp_rate: 17.0, ..drawn },
            Some(Story::Hypotension) => Self { systolic: 118.0, heart_rate: 78.0, ..drawn },
            Some(Story::Tachypnea) => Self { resp_rate: 16.0, heart_rate: 80.0, spo2: 97.0, ..drawn },
            Some(Story::Bradycardia) => Self { heart_rate: 44.0, ..drawn },
            _ => drawn,
        }
    }
}

/// Beats that a patient who stirs has more; likewise breaths and mm[Hg]. A stretch in bed, not a walk.
const ACTIVITY_HEART_RATE: f64 = 5.0;
const ACTIVITY_RESP_RATE: f64 = 1.5;
const ACTIVITY_SYSTOLIC: f64 = 4.0;
/// Respiratory sinus arrhythmia: the heart is faster breathing in than out, ± /min.
const SINUS_ARRHYTHMIA: f64 = 1.5;
/// End-tidal CO2 falls as breathing quickens, mm[Hg] per breath/min.
const ETCO2_PER_BREATH: f64 = -0.4;
/// The pleth and the ECG count the same heart over different spans, ± /min.
const PULSE_DIFFERENCE: f64 = 0.8;
/// Error of one cuff measurement, ± mm[Hg].
const CUFF_ERROR: f64 = 1.5;
/// Share of its wander that a body in a story keeps, so that the scripted values are the ones that show. It also lies
/// still: no activity.
const WANDER_IN_STORY: f64 = 0.3;

/// A patient's body: baselines, what wanders about them, and what one vital sign does to another.
struct Body {
    baseline: Baseline,
    spo2: Wander,
    heart_rate: Wander,
    resp_rate: Wander,
    etco2: Wander,
    temperature: Wander,
    systolic: Wander,
    activity: Wander,
    /// Where in the breath the patient is, 0 to 1.
    breath_phase: f64,
    hypoxia: Hypoxia,
    /// Share of the wander that shows: 1, or less for a body in a story.
    liveliness: f64,
    rng: Rng,
}

impl Body {
    fn new(story: Option<Story>, mut rng: Rng) -> Self {
        let (liveliness, activity_sd) = if story.is_some_and(Story::is_about_the_patient) {
            (WANDER_IN_STORY, 0.0)
        } else {
            (1.0, 1.0 / Wander::SD_MAX)
        };
        let baseline = Baseline::new(story, &mut rng);
        let mut wander = |deviation_sd: f64, time_constant_s| Wander::new(deviation_sd, time_constant_s, &mut rng);
        Self {
            baseline,
            spo2: wander(0.5, 40.0),
            heart_rate: wander(1.8, 25.0),
            resp_rate: wander(0.6, 20.0),
            etco2: wander(0.6, 30.0),
            temperature: wander(0.05, 600.0),
            systolic: wander(2.0, 60.0),
            activity: wander(activity_sd, 60.0),
            breath_phase: rng.f64(),
            hypoxia: Hypoxia::default(),
            liveliness,
            rng,
        }
    }

    fn live_one_second(&mut self, shift: Shift) -> Vitals {
        let base = &self.baseline;
        let rng = &mut self.rng;
        let lively = self.liveliness;
        // At rest about half of the time; at most 1.
        let activity = self.activity.step(rng).max(0.0);

        let spo2 = base.spo2 + lively * self.spo2.step(rng) + shift.spo2;
        let hypoxia = self.hypoxia.step(spo2);

        let breaths_over_base =
            lively * self.resp_rate.step(rng) + ACTIVITY_RESP_RATE * activity + hypoxia.resp_rate + shift.resp_rate;
        let resp_rate = base.resp_rate + breaths_over_base;
        self.breath_phase = (self.breath_phase + resp_rate / 60.0).fract();
        let sinus_arrhythmia = SINUS_ARRHYTHMIA * triangle_wave(self.breath_phase);

        let heart_rate = base.heart_rate
            + lively * (self.heart_rate.step(rng) + sinus_arrhythmia)
            + ACTIVITY_HEART_RATE * activity
            + hypoxia.heart_rate
            + shift.heart_rate;
        let etco2 = base.etco2 + lively * self.etco2.step(rng) + ETCO2_PER_BREATH * breaths_over_base;
        let temperature = base.temperature + lively * self.temperature.step(rng);

        let systolic = base.systolic + lively * self.systolic.step(rng) + ACTIVITY_SYSTOLIC * activity + shift.systolic;
        let measured_systolic = systolic + CUFF_ERROR * symmetric(rng);
        let diastolic = 0.6 * measured_systolic + base.diastolic_offset;
        // Cuffs measure the mean by oscillation: near a third of the pulse pressure, never exactly it.
        let mean_pressure = diastolic + (0.35 + 0.03 * symmetric(rng)) * (measured_systolic - diastolic);

        // The clamps are what a living adult can show; no story comes near them.
        Vitals {
            spo2: spo2.clamp(50.0, 100.0),
            heart_rate: heart_rate.clamp(20.0, 220.0),
            pulse_rate: (heart_rate + PULSE_DIFFERENCE * symmetric(rng)).clamp(20.0, 220.0),
            resp_rate: resp_rate.clamp(4.0, 60.0),
            etco2: etco2.clamp(10.0, 90.0),
            temperature: temperature.clamp(30.0, 43.0),
            systolic: measured_systolic.clamp(40.0, 240.0),
            diastolic: diastolic.clamp(20.0, 160.0),
            mean_pressure: mean_pressure.clamp(25.0, 190.0),
        }
    }
}

/// Saturation under which a body reacts, %. Below every value of a patient without a story.
const HYPOXIA_SPO2: f64 = 94.0;
/// The reaction follows with this time constant, s.
const HYPOXIA_LAG_S: f64 = 6.0;
/// Beats and breaths per minute more for each % of saturation missing.
const HYPOXIA_HEART_RATE: f64 = 1.8;
const HYPOXIA_RESP_RATE: f64 = 0.6;
/// The heart tires where this much saturation is missing, %: from so many seconds on, and fully after so many more.
const HYPOXIA_DEEP: f64 = 6.0;
const HYPOXIA_ENDURED_S: f64 = 25.0;
const HYPOXIA_TIRING_S: f64 = 30.0;
/// A tired heart not only loses its extra beats but 1.4 times as many again: late bradycardia.
const HYPOXIA_BEATS_LOST: f64 = 2.4;

/// The body's answer to too little oxygen: faster heart and breath, then, when it lasts, a slow heart.
#[derive(Default)]
struct Hypoxia {
    /// Missing saturation as the body feels it, %.
    felt: f64,
    deep_for_s: f64,
}

impl Hypoxia {
    fn step(&mut self, spo2: f64) -> Shift {
        let missing = (HYPOXIA_SPO2 - spo2).max(0.0);
        self.felt += (missing - self.felt) / HYPOXIA_LAG_S;
        if missing >= HYPOXIA_DEEP {
            self.deep_for_s += 1.0;
        } else if missing <= 0.0 {
            self.deep_for_s = 0.0;
        }
        let tired = ((self.deep_for_s - HYPOXIA_ENDURED_S) / HYPOXIA_TIRING_S).clamp(0.0, 1.0);
        Shift {
            heart_rate: HYPOXIA_HEART_RATE * self.felt * (1.0 - HYPOXIA_BEATS_LOST * tired),
            resp_rate: HYPOXIA_RESP_RATE * self.felt,
            ..Shift::default()
        }
    }
}

/// A slow mean-reverting deviation (Ornstein-Uhlenbeck, in steps of 1 s), never more than three standard deviations.
struct Wander {
    deviation: f64,
    bound: f64,
    /// Share of the deviation left after a second.
    kept: f64,
    /// Standard deviation of what a second adds.
    kick: f64,
}

impl Wander {
    /// Where the deviation is cut off, in standard deviations.
    const SD_MAX: f64 = 3.0;

    fn new(deviation_sd: f64, time_constant_s: f64, rng: &mut Rng) -> Self {
        let bound = Self::SD_MAX * deviation_sd;
        let kept = 1.0 - 1.0 / time_constant_s;
        // Keeps the standard deviation what it is: kept² sd² + kick² = sd².
        let kick = deviation_sd * (1.0 - kept * kept).sqrt();
        Self { deviation: (deviation_sd * bell(rng)).clamp(-bound, bound), bound, kept, kick }
    }

    fn step(&mut self, rng: &mut Rng) -> f64 {
        self.deviation = (self.deviation * self.kept + self.kick * bell(rng)).clamp(-self.bound, self.bound);
        self.deviation
    }
}

/// Nearly normal with mean 0 and variance 1: four uniforms have a sum of variance 1/3. Needs no logarithm.
fn bell(rng: &mut Rng) -> f64 {
    let sum = rng.f64() + rng.f64() + rng.f64() + rng.f64();
    (sum - 2.0) * 3.0_f64.sqrt()
}

/// Uniform between -1 and 1.
fn symmetric(rng: &mut Rng) -> f64 {
    2.0 * rng.f64() - 1.0
}

/// -1 at phase 0, 1 at phase 0.5, straight between; a breath without a sine.
fn triangle_wave(phase: f64) -> f64 {
    1.0 - 4.0 * (phase - 0.5).abs()
}

/// RFC 3339 in UTC with milliseconds, cut, not rounded: `2026-03-01T10:15:30.120Z`.
fn rfc3339_ms(us: i64) -> String {
    let ms_total = us.div_euclid(US_PER_MS);
    let s_total = ms_total.div_euclid(1_000);
    let (year, month, day) = civil_from_days(s_total.div_euclid(86_400));
    let s_of_day = s_total.rem_euclid(86_400);
    let (hour, minute, second) = (s_of_day / 3_600, s_of_day / 60 % 60, s_of_day % 60);
    let ms = ms_total.rem_euclid(1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar: the year is taken to begin in
/// March, so that the leap day is its last (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days_from_march_0 = days + 719_468;
    let era = days_from_march_0.div_euclid(146_097);
    let day_of_era = days_from_march_0.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use serde_json::Value;

    use super::*;

    /// 2026-03-01T10:15:30.120Z
    const START_US: i64 = 1_772_360_130_120_000;
    const DEMO_S: usize = 180;
    const LONG_S: usize = 600;

    /// Adult ward limits that nobody without a story may leave, canonical units.
    const LIMITS: [(&str, RangeInclusive<f64>); 8] = [
        ("spo2", 94.0..=100.0),
        ("heart_rate", 55.0..=105.0),
        ("pulse_rate", 55.0..=105.0),
        ("resp_rate", 10.0..=22.0),
        ("etco2", 33.0..=44.0),
        ("temp_core", 36.2..=37.6),
        ("nibp_sys", 105.0..=165.0),
        ("nibp_dia", 55.0..=100.0),
    ];

    /// A reading out of the JSON, in catalogue words and canonical units.
    struct Seen {
        bed: usize,
        device: String,
        second: usize,
        at_us: i64,
        event_us: i64,
        signal: String,
        value: Option<f64>,
        raw_unit: Option<String>,
    }

    fn seconds(seed: u64, n_seconds: usize) -> Vec<Vec<WardRecord>> {
        let mut ward = Ward::new(seed, START_US);
        (0..n_seconds).map(|_| ward.next_second()).collect()
    }

    /// Every reading of every record that is JSON.
    fn readings(seed: u64, n_seconds: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        for (second, records) in seconds(seed, n_seconds).iter().enumerate() {
            for record in records {
                let Ok(json) = serde_json::from_str::<Value>(&record.json) else {
                    continue;
                };
                assert_eq!(json["patient"], record.patient.as_str());
                for reading in json["readings"].as_array().unwrap() {
                    seen.push(parse_reading(record, &json, reading, second));
                }
            }
        }
        seen
    }

    fn parse_reading(record: &WardRecord, json: &Value, reading: &Value, second: usize) -> Seen {
        let raw_unit = reading["unit"].as_str();
        let value = reading["value"].as_f64().map(|raw| match raw_unit {
            Some("kPa") => raw * MMHG_PER_KPA,
            Some("degF") => (raw - 32.0) / 1.8,
            _ => raw,
        });
        let signal = match reading["signal"].as_str().unwrap() {
            "SpO2" => "spo2",
            "HR" => "heart_rate",
            "PLS" => "pulse_rate",
            "RESP" => "resp_rate",
            "EtCO2" => "etco2",
            "Tcore" => "temp_core",
            "NIBPs" => "nibp_sys",
            "NIBPd" => "nibp_dia",
            "NIBPm" => "nibp_mean",
            catalogue => catalogue,
        };
        Seen {
            bed: record.patient.strip_prefix("ward-p").unwrap().parse().unwrap(),
            device: json["device"].as_str().unwrap().to_owned(),
            second,
            at_us: record.at_us,
            event_us: parse_time_us(&json["time"]),
            signal: signal.to_owned(),
            value,
            raw_unit: raw_unit.map(str::to_owned),
        }
    }

    /// The times of a test run are all on one day, so the time of day is enough.
    fn parse_time_us(time: &Value) -> i64 {
        if let Some(ms) = time.as_i64() {
            return ms * US_PER_MS;
        }
        let text = time.as_str().unwrap();
        assert!(text.starts_with("2026-03-01T") && text.ends_with('Z'), "{text}");
        let number = |range: std::ops::Range<usize>| text[range].parse::<i64>().unwrap();
        let s_of_day = number(11..13) * 3_600 + number(14..16) * 60 + number(17..19);
        START_US - START_US % (86_400 * US_PER_S) + s_of_day * US_PER_S + number(20..23) * US_PER_MS
    }

    /// Values of one signal at one bed as (second, value).
    fn series(seen: &[Seen], bed: usize, signal: &str) -> Vec<(usize, f64)> {
        let of_signal = seen.iter().filter(|one| one.bed == bed && one.signal == signal);
        of_signal.filter_map(|one| Some((one.second, one.value?))).collect()
    }

    /// Fails unless the signal has values in the seconds named, all of them within the range.
    fn check(seen: &[Seen], bed: usize, signal: &str, when: std::ops::Range<usize>, expected: RangeInclusive<f64>) {
        let values = series(seen, bed, signal);
        let inside: Vec<_> = values.iter().filter(|(second, _)| when.contains(second)).collect();
        assert!(!inside.is_empty(), "bed {bed} sends no {signal} in {when:?}");
        for (second, value) in inside {
            assert!(expected.contains(value), "bed {bed} {signal} at {second} s is {value}, not in {expected:?}");
        }
    }

    fn is_quiet(seen: &Seen) -> bool {
        let is_stable = match Story::of_bed(seen.bed) {
            Some(Story::Fever) => seen.signal != "temp_core",
            Some(story) => !story.is_about_the_patient(),
            None => true,
        };
        let is_zero_of_probe = seen.bed == 19 && seen.value == Some(0.0);
        is_stable && !is_zero_of_probe
    }

    fn assert_within_limits(seed: u64, bed: usize, second: usize, signal: &str, value: f64) {
        let Some((_, limits)) = LIMITS.iter().find(|(name, _)| *name == signal) else {
            return;
        };
        assert!(limits.contains(&value), "seed {seed} bed {bed} {signal} at {second} s is {value}, not in {limits:?}");
    }

    #[test]
    fn same_seed_gives_the_same_records_and_another_seed_others() {
        assert_eq!(seconds(7, DEMO_S), seconds(7, DEMO_S));
        assert_ne!(seconds(7, 2), seconds(8, 2));
    }

    #[test]
    fn another_start_moves_the_times_and_nothing_else() {
        let values = |start_us| {
            let mut ward = Ward::new(7, start_us);
            let records: Vec<_> = (0..30).flat_map(|_| ward.next_second()).collect();
            let of_readings = |record: &WardRecord| record.json.split("readings").nth(1).map(str::to_owned);
            records.iter().map(|record| (record.at_us - start_us, of_readings(record))).collect::<Vec<_>>()
        };
        assert_eq!(values(START_US), values(0));
    }

    #[test]
    fn records_come_in_order_inside_their_second_and_shortly_after_their_event() {
        for (second, records) in seconds(3, DEMO_S).iter().enumerate() {
            let begin_us = START_US + second as i64 * US_PER_S;
            assert!(records.is_sorted_by_key(|record| record.at_us));
            assert!(records.iter().all(|record| (begin_us..begin_us + US_PER_S).contains(&record.at_us)));
        }
        for seen in readings(3, DEMO_S).iter().filter(|seen| seen.bed != 5 && seen.bed != 2) {
            let delay_us = seen.at_us - seen.event_us;
            assert!((LATENCY_US_MIN..=LATENCY_US_MAX).contains(&delay_us), "{} is {delay_us} us late", seen.device);
        }
    }

    #[test]
    fn a_monitor_samples_every_second_and_a_cuff_every_three_minutes() {
        let seen = readings(4, LONG_S);
        for bed in (1..=BEDS).filter(|bed| ![2, 17, 22].contains(bed)) {
            assert_eq!(series(&seen, bed, "resp_rate").len(), LONG_S, "bed {bed}");
            let times: Vec<_> = seen
                .iter()
                .filter(|one| one.bed == bed && one.signal == "heart_rate")
                .map(|one| one.event_us)
                .collect();
            let steps = times.windows(2).filter(|pair| pair[1] - pair[0] != US_PER_S).count();
            assert_eq!(steps, usize::from(bed == 5), "bed {bed}: event times are 1 s apart");
        }
        for bed in (1..=BEDS).filter(|bed| *bed != 11) {
            let cuff: Vec<_> = series(&seen, bed, "nibp_sys").iter().map(|(second, _)| *second).collect();
            let first = bed % 5;
            assert_eq!(cuff, [first, first + 180, first + 360, first + 540], "bed {bed}");
        }
    }

    #[test]
    fn stable_patients_stay_within_ward_limits_as_sent() {
        for seed in [1, 2, 3, 42] {
            for seen in readings(seed, LONG_S).iter().filter(|seen| is_quiet(seen)) {
                if let Some(value) = seen.value {
                    assert_within_limits(seed, seen.bed, seen.second, &seen.signal, value);
                }
            }
        }
    }

    /// Looks at the bodies, not the JSON, to afford many seeds.
    #[test]
    fn stable_patients_stay_within_ward_limits_for_two_hundred_seeds() {
        for seed in 1..=200 {
            let mut ward = Ward::new(seed, START_US);
            let is_stable = |bed: &&mut Bed| !bed.story.is_some_and(Story::is_about_the_patient);
            for bed in ward.beds.iter_mut().filter(is_stable) {
                for second in 0..LONG_S {
                    let vitals = bed.live(second as i64);
                    let sent = [
                        ("spo2", vitals.spo2.round()),
                        ("heart_rate", vitals.heart_rate.round()),
                        ("pulse_rate", vitals.pulse_rate.round()),
                        ("resp_rate", vitals.resp_rate.round()),
                        ("etco2", vitals.etco2.round()),
                        ("temp_core", vitals.temperature),
                        ("nibp_sys", vitals.systolic.round()),
                        ("nibp_dia", vitals.diastolic.round()),
                    ];
                    for (signal, value) in sent {
                        assert_within_limits(seed, bed.number, second, signal, value);
                    }
                    assert!(vitals.heart_rate / vitals.systolic < 0.9, "seed {seed} bed {}: shock index", bed.number);
                    assert!(vitals.systolic > vitals.mean_pressure && vitals.mean_pressure > vitals.diastolic);
                }
            }
        }
    }

    #[test]
    fn a_stable_patient_is_not_a_flat_line() {
        let seen = readings(5, LONG_S);
        for signal in ["spo2", "heart_rate", "resp_rate"] {
            let values = series(&seen, 10, signal);
            let highest = values.iter().map(|(_, value)| *value).fold(f64::MIN, f64::max);
            let lowest = values.iter().map(|(_, value)| *value).fold(f64::MAX, f64::min);
            assert!(highest - lowest >= 1.0, "{signal} stays at {lowest}");
        }
    }

    #[test]
    fn scripted_vital_signs_show_for_every_seed() {
        for seed in 1..=12 {
            let seen = readings(seed, DEMO_S);
            // Desaturation, with the heart first fast, then slow.
            check(&seen, 3, "spo2", 0..15, 95.0..=97.0);
            check(&seen, 3, "spo2", 62..120, 81.0..=83.0);
            check(&seen, 3, "spo2", 141..180, 94.0..=96.0);
            check(&seen, 3, "heart_rate", 0..15, 74.0..=82.0);
            check(&seen, 3, "heart_rate", 58..66, 88.0..=104.0);
            check(&seen, 3, "heart_rate", 105..118, 44.0..=54.0);
            check(&seen, 3, "heart_rate", 165..180, 74.0..=83.0);
            check(&seen, 3, "resp_rate", 65..118, 21.0..=25.0);
            // Tachycardia.
            check(&seen, 7, "heart_rate", 0..20, 81.0..=90.0);
            check(&seen, 7, "heart_rate", 60..180, 145.0..=151.0);
            check(&seen, 7, "nibp_sys", 0..180, 154.0..=162.0);
            // Fever.
            check(&seen, 9, "temp_core", 0..180, 38.8..=39.0);
            // Hypotension.
            check(&seen, 11, "nibp_sys", 0..5, 114.0..=123.0);
            check(&seen, 11, "nibp_sys", 30..180, 80.0..=89.0);
            check(&seen, 11, "nibp_mean", 30..180, 50.0..=68.0);
            check(&seen, 11, "heart_rate", 0..15, 74.0..=82.0);
            check(&seen, 11, "heart_rate", 60..180, 115.0..=121.0);
            // Tachypnea.
            check(&seen, 14, "resp_rate", 0..30, 15.0..=17.0);
            check(&seen, 14, "resp_rate", 75..180, 31.0..=33.0);
            // Bradycardia.
            check(&seen, 16, "heart_rate", 0..40, 41.0..=48.0);
            check(&seen, 16, "heart_rate", 60..110, 33.0..=39.0);
            check(&seen, 16, "heart_rate", 126..180, 48.0..=56.0);
        }
    }

    #[test]
    fn hypotension_is_measured_every_thirty_seconds() {
        let cuff: Vec<_> = series(&readings(6, DEMO_S), 11, "nibp_sys").iter().map(|(second, _)| *second).collect();
        assert_eq!(cuff, [1, 31, 61, 91, 121, 151]);
    }

    #[test]
    fn fallen_probe_is_sent_as_zero_and_the_heart_goes_on() {
        let seen = readings(6, DEMO_S);
        for signal in ["spo2", "pulse_rate"] {
            check(&seen, 19, signal, 0..20, 55.0..=105.0);
            check(&seen, 19, signal, 20..180, 0.0..=0.0);
        }
        check(&seen, 19, "heart_rate", 0..180, 55.0..=105.0);
    }

    #[test]
    fn silent_monitor_sends_nothing_and_its_cuff_goes_on() {
        let seen = readings(6, LONG_S);
        let last = seen.iter().filter(|one| one.device == "mon-22").map(|one| one.second).max();
        assert_eq!(last, Some(11));
        check(&seen, 22, "nibp_sys", 180..200, 105.0..=165.0);
    }

    #[test]
    fn monitor_clock_is_nine_minutes_ahead_until_it_is_set_right() {
        for seen in readings(6, DEMO_S).iter().filter(|seen| seen.bed == 5) {
            let is_ahead = seen.device == "mon-05" && seen.second < 100;
            let ahead_us = seen.event_us - seen.at_us;
            let expected_us = if is_ahead { CLOCK_AHEAD_US } else { 0 };
            assert!((expected_us - LATENCY_US_MAX..expected_us).contains(&ahead_us), "{} s: {ahead_us}", seen.second);
        }
    }

    #[test]
    fn one_record_in_ten_of_bed_two_is_sent_twice() {
        let mut sent_twice = Vec::new();
        for (second, records) in seconds(6, 60).iter().enumerate() {
            for (idx, record) in records.iter().enumerate() {
                if let Some(again) = records.iter().skip(idx + 1).find(|other| other.json == record.json) {
                    assert!(again.at_us > record.at_us);
                    sent_twice.push((second, record.patient.clone()));
                }
            }
        }
        let expected: Vec<_> = (0..6).map(|n| (10 * n + 5, "ward-p02".to_owned())).collect();
        assert_eq!(sent_twice, expected);
    }

    #[test]
    fn missing_breaths_are_null_and_short() {
        let seen = readings(6, DEMO_S);
        let missing: Vec<_> = seen.iter().filter(|one| one.value.is_none()).collect();
        assert!(missing.iter().all(|one| one.bed == 17 && one.signal == "resp_rate"));
        let seconds: Vec<_> = missing.iter().map(|one| one.second).collect();
        assert_eq!(seconds, [30, 31, 75, 76, 120, 121, 165, 166]);
    }

    #[test]
    fn faulty_gateway_truncates_records_and_sends_three_bad_readings() {
        let mut truncated = Vec::new();
        for (second, records) in seconds(6, DEMO_S).iter().enumerate() {
            for record in records.iter().filter(|record| serde_json::from_str::<Value>(&record.json).is_err()) {
                assert_eq!(record.patient, "ward-p24");
                assert!(record.json.contains("cuff-24"));
                truncated.push(second);
            }
        }
        assert_eq!(truncated, [6, 26, 46, 66, 86, 106, 126, 146, 166]);

        let seen = readings(6, DEMO_S);
        let is_bad = |one: &&Seen| one.signal == "AUX7_IDX" || one.signal == "temp_body";
        let bad: Vec<_> = seen
            .iter()
            .filter(is_bad)
            .map(|one| (one.second, one.bed, one.signal.as_str(), one.raw_unit.as_deref()))
            .collect();
        assert_eq!(
            bad,
            [(15, 24, "AUX7_IDX", Some("%")), (35, 24, "temp_body", None), (55, 24, "temp_body", Some("Cel"))]
        );
        assert_eq!(series(&seen, 24, "temp_body").last(), Some(&(55, 98.6)));
    }

    #[test]
    fn devices_differ_in_labels_units_and_time() {
        let first = &seconds(1, 5).concat();
        let any = |needle: &str| first.iter().any(|record| record.json.contains(needle));
        for needle in [
            r#""SpO2""#,
            r#""HR""#,
            r#""/min""#,
            r#""bpm""#,
            r#""kPa""#,
            r#""mmHg""#,
            r#""mm[Hg]""#,
            r#""Cel""#,
            r#""degF""#,
        ] {
            assert!(any(needle), "no record has {needle}");
        }
        assert!(any(r#""time":1772"#) && any(r#""time":"2026-03-01T10:15:3"#));
    }

    #[test]
    fn story_names_every_staged_bed() {
        let story = Ward::new(1, START_US).story();
        let beds: Vec<_> = story.iter().map(|(bed, _)| bed.trim_start_matches("bed ").to_owned()).collect();
        assert_eq!(beds, ["2", "3", "5", "7", "9", "11", "14", "16", "17", "19", "22", "24"]);
        assert_eq!(Ward::new(1, START_US).patients(), 26);
    }

    #[test]
    fn instants_are_written_as_rfc_3339() {
        for (us, text) in [
            (START_US, "2026-03-01T10:15:30.120Z"),
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (1_709_164_800_000_000, "2024-02-29T00:00:00.000Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000Z"),
            (4_102_444_799_999_999, "2099-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339_ms(us), text);
        }
    }
}
