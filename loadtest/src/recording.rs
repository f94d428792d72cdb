//! Recordings: three file formats become one list of entries in time order.
//!
//! | format | known by its header | one entry per |
//! |---|---|---|
//! | bedside numerics | `minute,HR (bpm),...` | row |
//! | ICU 2012 | `stay,time,parameter,value` | stay and time |
//! | canonical CSV | `patient,device,signal,time,value[,unit]` | patient, device and time |
//!
//! A file may be gzip. Values stay as they were recorded, sentinels and impossible ones too: what they mean is for the
//! engine to find out. What has no signal in the catalogue is counted by name and not sent. The sending is in `replay`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use csv::StringRecord;
use flate2::bufread::MultiGzDecoder;
use serde_json::value::{RawValue, to_raw_value};
use wardbell_schemas::decimal::Decimal;
use wardbell_schemas::{Micros, SECOND};

const MINUTE: Micros = 60 * SECOND;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The one patient of a bedside recording, whose file names none.
const BEDSIDE_PATIENT: &str = "bedside-1";
const BEDSIDE_DEVICE: &str = "monitor-bedside-1";

/// ICU 2012 parameter, signal of the catalogue, unit as in the data's description. `SaO2` is missing on purpose: the
/// data do not say whether it is of a blood gas or of a pulse oximeter.
const ICU_PARAMETERS: [(&str, &str, Option<&str>); 21] = [
    ("HR", "heart_rate", Some("bpm")),
    ("RespRate", "resp_rate", Some("/min")),
    ("NISysABP", "nibp_sys", Some("mmHg")),
    ("NIDiasABP", "nibp_dia", Some("mmHg")),
    ("NIMAP", "nibp_mean", Some("mmHg")),
    ("SysABP", "abp_sys", Some("mmHg")),
    ("DiasABP", "abp_dia", Some("mmHg")),
    ("MAP", "abp_mean", Some("mmHg")),
    ("Temp", "temp_core", Some("Cel")),
    ("FiO2", "fio2", Some("1")),
    ("Weight", "body_weight", Some("kg")),
    ("Height", "body_height", Some("cm")),
    ("Glucose", "glucose_blood", Some("mg/dL")),
    ("Lactate", "lactate", Some("mmol/L")),
    ("K", "potassium", Some("mmol/L")),
    ("pH", "ph_arterial", None),
    ("PaCO2", "paco2", Some("mmHg")),
    ("PaO2", "pao2", Some("mmHg")),
    ("GCS", "gcs_total", None),
    ("Urine", "urine_output", Some("mL")),
    ("WBC", "wbc", Some("10*9/L")),
];

/// A recording, ready to be sent.
#[derive(Debug, Default)]
pub struct Recording {
    /// By time; entries of one time in the order of the file.
    pub entries: Vec<Entry>,
    /// Times are those of a calendar; otherwise they count from the recording's beginning.
    pub is_dated: bool,
    /// Values that were left out, by the name of their parameter.
    pub not_mapped: BTreeMap<String, u64>,
}

/// What one device said about one patient at one time.
#[derive(Debug)]
pub struct Entry {
    pub patient: Rc<str>,
    pub device: Rc<str>,
    pub at_us: Micros,
    /// Never empty.
    pub readings: Vec<Reading>,
}

#[derive(Debug)]
pub struct Reading {
    pub channel: Rc<Channel>,
    /// `null`, a number with the digits of the file, or a text.
    pub value: Box<RawValue>,
}

/// What is measured, and in which unit the device says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Channel {
    /// Id or label of the signal catalogue.
    pub signal: String,
    pub unit: Option<String>,
}

/// Reads a recording; `stays_max` takes only the first patients.
///
/// # Errors
/// Naming the file, the line and what is wrong with it.
pub fn read(path: &Path, stays_max: Option<u64>) -> Result<Recording> {
    let step = || format!("reading recording `{}`", path.display());
    let mut file = BufReader::new(File::open(path).with_context(step)?);
    let is_gzip = file.fill_buf().with_context(step)?.starts_with(&GZIP_MAGIC);
    let recording = if is_gzip { parse(MultiGzDecoder::new(file), stays_max) } else { parse(file, stays_max) };
    recording.with_context(step)
}

/// As [`read`], from plain text.
fn parse(input: impl Read, stays_max: Option<u64>) -> Result<Recording> {
    let mut rows = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
    let header = rows.headers().context("its first line is not a CSV header")?.clone();
    let names: Vec<&str> = header.iter().collect();
    let mut draft = Draft { stays_max, ..Draft::default() };
    match names.as_slice() {
        ["minute", columns @ ..] if !columns.is_empty() => read_bedside(&mut rows, columns, &mut draft)?,
        ["stay", "time", "parameter", "value"] => read_icu(&mut rows, &mut draft)?,
        ["patient", "device", "signal", "time", "value"] | ["patient", "device", "signal", "time", "value", "unit"] => {
            read_canonical(&mut rows, &mut draft)?;
        }
        _ => bail!(
            "its header `{}` is of no known format; known are `minute,HR (bpm),...`, `stay,time,parameter,value` and \
             `patient,device,signal,time,value[,unit]`",
            names.join(",")
        ),
    }
    let mut recording = draft.recording;
    recording.entries.sort_by_key(|entry| entry.at_us);
    Ok(recording)
}

/// A time of day and calendar, with zone or offset, in µs since 1970 UTC.
///
/// # Errors
/// A sentence for the user who wrote it.
pub fn parse_rfc3339(text: &str) -> Result<Micros, String> {
    let timestamp = text.parse::<jiff::Timestamp>();
    timestamp.map(jiff::Timestamp::as_microsecond).map_err(|_| {
        format!("`{text}` is not a time; write it as RFC 3339 with zone or offset, like 2026-01-01T00:00:00Z")
    })
}

fn read_bedside<R: Read>(rows: &mut csv::Reader<R>, columns: &[&str], draft: &mut Draft) -> Result<()> {
    let channels: Vec<Rc<Channel>> = columns.iter().map(|column| Rc::new(column_channel(column))).collect();
    let (patient, device): (Rc<str>, Rc<str>) = (BEDSIDE_PATIENT.into(), BEDSIDE_DEVICE.into());
    each_row(rows, |row| {
        let minutes = row[0].parse::<Decimal>().ok().and_then(Decimal::to_ratio);
        let at_us = minutes.and_then(|minutes| minutes.to_counts(MINUTE));
        let at_us = at_us.with_context(|| format!("`minute` is `{}`, not a number", &row[0]))?;
        let mut readings = Vec::with_capacity(channels.len());
        for (channel, text) in channels.iter().zip(row.iter().skip(1)) {
            readings.push(Reading { channel: channel.clone(), value: recorded_value(text)? });
        }
        // Not joined with a row of the same minute: such defects are what a recording is replayed for.
        draft.recording.entries.push(Entry { patient: patient.clone(), device: device.clone(), at_us, readings });
        Ok(())
    })
}

/// `HR (bpm)`: label and unit.
fn column_channel(column: &str) -> Channel {
    let (label, unit) = column.split_once('(').unwrap_or((column, ""));
    let unit = unit.trim_end_matches(')').trim();
    Channel { signal: label.trim().to_owned(), unit: Some(unit.to_owned()).filter(|unit| !unit.is_empty()) }
}

fn read_icu<R: Read>(rows: &mut csv::Reader<R>, draft: &mut Draft) -> Result<()> {
    let channel = |signal: &str, unit: Option<&str>| {
        Rc::new(Channel { signal: signal.to_owned(), unit: unit.map(str::to_owned) })
    };
    let channels: HashMap<&str, Rc<Channel>> =
        ICU_PARAMETERS.iter().map(|(parameter, signal, unit)| (*parameter, channel(signal, *unit))).collect();
    each_row(rows, |row| {
        let (stay, parameter) = (&row[0], &row[2]);
        let patient = format!("stay-{stay}");
        if !draft.admits(&patient) {
            return Ok(());
        }
        let Some(channel) = channels.get(parameter) else {
            *draft.recording.not_mapped.entry(parameter.to_owned()).or_default() += 1;
            return Ok(());
        };
        let at_us = hours_and_minutes(&row[1])?;
        let reading = Reading { channel: channel.clone(), value: recorded_value(&row[3])? };
        draft.push(&patient, &format!("monitor-{stay}"), at_us, reading);
        Ok(())
    })
}

/// `HH:MM` since admission.
fn hours_and_minutes(text: &str) -> Result<Micros> {
    let parsed = text.split_once(':').and_then(|(hours, minutes)| {
        let (hours, minutes): (u32, u32) = (hours.parse().ok()?, minutes.parse().ok()?);
        (minutes < 60).then_some((60 * Micros::from(hours) + Micros::from(minutes)) * MINUTE)
    });
    parsed.with_context(|| format!("`time` is `{text}`, expected HH:MM since admission"))
}

fn read_canonical<R: Read>(rows: &mut csv::Reader<R>, draft: &mut Draft) -> Result<()> {
    draft.recording.is_dated = true;
    let mut channels: HashMap<Channel, Rc<Channel>> = HashMap::new();
    each_row(rows, |row| {
        let (patient, device, signal) = (&row[0], &row[1], &row[2]);
        if !draft.admits(patient) {
            return Ok(());
        }
        let unit = row.get(5).filter(|unit| !unit.is_empty()).map(str::to_owned);
        let channel = Channel { signal: signal.to_owned(), unit };
        let channel = channels.entry(channel).or_insert_with_key(|channel| Rc::new(channel.clone()));
        let reading = Reading { channel: channel.clone(), value: recorded_value(&row[4])? };
        draft.push(patient, device, calendar_time(&row[3])?, reading);
        Ok(())
    })
}

/// RFC 3339, or an epoch in s, ms, µs or ns by its number of digits, as in canonical JSON.
fn calendar_time(text: &str) -> Result<Micros> {
    if text.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(number) = text.parse::<Micros>()
    {
        match text.len() {
            10 => return Ok(number * SECOND),
            13 => return Ok(number * 1_000),
            16 => return Ok(number),
            19 => return Ok(number / 1_000),
            _ => {}
        }
    }
    parse_rfc3339(text).map_err(anyhow::Error::msg)
}

/// A cell as a JSON value; nothing is rounded, repaired or left out.
fn recorded_value(text: &str) -> Result<Box<RawValue>> {
    if text.is_empty() {
        return Ok(RawValue::NULL.to_owned());
    }
    if text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && let Ok(number) = RawValue::from_string(text.to_owned())
    {
        return Ok(number);
    }
    to_raw_value(text).with_context(|| format!("`value` is `{text}`, which cannot be sent as JSON"))
}

fn each_row<R: Read>(rows: &mut csv::Reader<R>, mut take: impl FnMut(&StringRecord) -> Result<()>) -> Result<()> {
    let mut row = StringRecord::new();
    while rows.read_record(&mut row)? {
        let line = row.position().map_or(0, csv::Position::line);
        take(&row).with_context(|| format!("line {line}"))?;
    }
    Ok(())
}

/// A recording while it is read.
#[derive(Default)]
struct Draft {
    recording: Recording,
    stays_max: Option<u64>,
    patients: HashSet<Rc<str>>,
    devices: HashSet<Rc<str>>,
}

impl Draft {
    /// Whether the patient is among the first `stays_max`.
    fn admits(&mut self, patient: &str) -> bool {
        if self.patients.contains(patient) {
            return true;
        }
        if self.stays_max.is_some_and(|max| self.patients.len() as u64 >= max) {
            return false;
        }
        self.patients.insert(patient.into());
        true
    }

    /// Adds a reading to the entry before it where that is of the same patient, device and time.
    fn push(&mut self, patient: &str, device: &str, at_us: Micros, reading: Reading) {
        if let Some(last) = self.recording.entries.last_mut()
            && (&*last.patient, &*last.device, last.at_us) == (patient, device, at_us)
        {
            last.readings.push(reading);
            return;
        }
        let patient = shared(&mut self.patients, patient);
        let device = shared(&mut self.devices, device);
        self.recording.entries.push(Entry { patient, device, at_us, readings: vec![reading] });
    }
}

/// One copy of each name, however many entries bear it.
fn shared(names: &mut HashSet<Rc<str>>, name: &str) -> Rc<str> {
    if let Some(known) = names.get(name) {
        return known.clone();
    }
    let made: Rc<str> = name.into();
    names.insert(made.clone());
    made
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use wardbell_schemas::catalogue::{Catalogue, Label};

    use super::*;

    const ICU: &str = "\
stay,time,parameter,value
7,00:00,RecordID,7
7,00:00,Age,54
7,00:00,Weight,-1
7,00:07,HR,73
7,00:07,SaO2,97
7,00:07,FiO2,0.5
7,01:00,WBC,1.011e+04
8,00:00,Age,61
8,00:05,HR,80
8,00:07,pH,7.41
";

    /// One line per entry: minutes, patient, device, readings.
    fn table(recording: &Recording) -> Vec<String> {
        let reading = |reading: &Reading| {
            let unit = reading.channel.unit.as_ref().map_or_else(String::new, |unit| format!(" {unit}"));
            format!("{}={}{unit}", reading.channel.signal, reading.value)
        };
        let line = |entry: &Entry| {
            let readings: Vec<String> = entry.readings.iter().map(reading).collect();
            format!("{} {} {} {}", entry.at_us / MINUTE, entry.patient, entry.device, readings.join(", "))
        };
        recording.entries.iter().map(line).collect()
    }

    fn fault(text: &str) -> String {
        format!("{:#}", parse(text.as_bytes(), None).unwrap_err())
    }

    #[test]
    fn a_bedside_row_is_sent_as_it_was_recorded() {
        let text = "minute,HR (bpm),RESP (pm),SpO2 (%),Note\n0,0.0,,-32768,x\n1,62.8,12.7,97,\n1,62.8,+5,007,-\n";
        let recording = parse(text.as_bytes(), None).unwrap();
        assert_eq!(
            table(&recording),
            [
                "0 bedside-1 monitor-bedside-1 HR=0.0 bpm, RESP=null pm, SpO2=-32768 %, Note=\"x\"",
                "1 bedside-1 monitor-bedside-1 HR=62.8 bpm, RESP=12.7 pm, SpO2=97 %, Note=null",
                "1 bedside-1 monitor-bedside-1 HR=62.8 bpm, RESP=\"+5\" pm, SpO2=\"007\" %, Note=\"-\"",
            ]
        );
        assert!(!recording.is_dated && recording.not_mapped.is_empty());
    }

    #[test]
    fn stays_run_side_by_side_and_what_is_not_mapped_is_counted() {
        let recording = parse(ICU.as_bytes(), None).unwrap();
        assert_eq!(
            table(&recording),
            [
                "0 stay-7 monitor-7 body_weight=-1 kg",
                "5 stay-8 monitor-8 heart_rate=80 bpm",
                "7 stay-7 monitor-7 heart_rate=73 bpm, fio2=0.5 1",
                "7 stay-8 monitor-8 ph_arterial=7.41",
                "60 stay-7 monitor-7 wbc=1.011e+04 10*9/L",
            ]
        );
        let not_mapped: Vec<(&str, u64)> =
            recording.not_mapped.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(not_mapped, [("Age", 2), ("RecordID", 1), ("SaO2", 1)]);
    }

    #[test]
    fn only_the_first_stays_are_taken_and_counted() {
        let recording = parse(ICU.as_bytes(), Some(1)).unwrap();
        assert!(recording.entries.iter().all(|entry| &*entry.patient == "stay-7"));
        assert_eq!((recording.entries.len(), recording.not_mapped["Age"]), (3, 1));
    }

    #[test]
    fn canonical_rows_of_one_time_are_one_entry() {
        let text = "\
patient,device,signal,time,value,unit
p,d,spo2,2026-03-01T10:15:30Z,93,%
p,d,consciousness,2026-03-01T11:15:30+01:00,A,
p,e,spo2,1772360130,,%
q,d,spo2,1772360129000,94,%
";
        let recording = parse(text.as_bytes(), None).unwrap();
        let minute = 1_772_360_130 / 60;
        assert_eq!(
            table(&recording),
            [
                format!("{minute} q d spo2=94 %"),
                format!("{minute} p d spo2=93 %, consciousness=\"A\""),
                format!("{minute} p e spo2=null %"),
            ]
        );
        assert!(recording.is_dated);
        assert_eq!(recording.entries[1].at_us, 1_772_360_130_000_000);
        let without_unit = parse("patient,device,signal,time,value\np,d,pH,1772360130123456,7.4\n".as_bytes(), None);
        assert_eq!(without_unit.unwrap().entries[0].at_us, 1_772_360_130_123_456);
    }

    #[test]
    fn a_compressed_recording_is_known_by_its_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (plain, gzip) = (folder.path().join("plain"), folder.path().join("gzip"));
        std::fs::write(&plain, ICU).unwrap();
        let mut encoder = GzEncoder::new(File::create(&gzip).unwrap(), Compression::fast());
        encoder.write_all(ICU.as_bytes()).unwrap();
        encoder.finish().unwrap();
        assert_eq!(table(&read(&gzip, None).unwrap()), table(&read(&plain, None).unwrap()));
    }

    #[test]
    fn a_fault_names_the_line_and_what_was_expected() {
        for (text, parts) in [
            ("a,b\n1,2\n", ["`a,b` is of no known format", "minute,HR (bpm)"]),
            ("stay,time,parameter,value\n7,00:07,HR,1\n7,0:61,HR,1\n", ["line 3", "expected HH:MM"]),
            ("minute,HR (bpm)\nsoon,1\n", ["line 2", "`minute` is `soon`"]),
            ("patient,device,signal,time,value\np,d,HR,2026-03-01T10:15:30,1\n", ["line 2", "zone or offset"]),
            ("patient,device,signal,time,value\np,d,HR,17,1\n", ["line 2", "`17` is not a time"]),
            ("stay,time,parameter,value\n7,00:07,HR\n", ["line", "fields"]),
        ] {
            let found = fault(text);
            assert!(parts.iter().all(|part| found.contains(part)), "{text}: {found}");
        }
        let missing = format!("{:#}", read(Path::new("/nowhere/recording.csv"), None).unwrap_err());
        assert!(missing.contains("/nowhere/recording.csv"), "{missing}");
    }

    #[test]
    fn every_mapped_parameter_is_a_signal_in_a_unit_the_catalogue_knows() {
        let catalogue = Catalogue::builtin();
        for (parameter, id, unit) in ICU_PARAMETERS {
            let signal = catalogue.by_id(id).expect(parameter);
            match unit {
                Some(unit) => {
                    let conversion = catalogue.units.conversion(&signal.quantity, unit, &signal.unit);
                    assert!(conversion.is_ok(), "{parameter}: {unit} to {}", signal.unit);
                }
                None => assert!(["{score}", "[pH]"].contains(&signal.unit.as_str()), "{parameter} needs a unit"),
            }
        }
    }

    #[test]
    fn the_labels_of_a_bedside_monitor_are_known() {
        let catalogue = Catalogue::builtin();
        for (column, id) in [("HR (bpm)", "heart_rate"), ("RESP (pm)", "resp_rate"), ("PULSE (bpm)", "pulse_rate")] {
            let channel = column_channel(column);
            let signal = catalogue.by_id(id).expect(id);
            assert_eq!(catalogue.label(&channel.signal), Label::Known(signal.index), "{column}");
            let unit = channel.unit.expect(column);
            assert!(catalogue.units.conversion(&signal.quantity, &unit, &signal.unit).is_ok(), "{column}");
        }
    }
}
