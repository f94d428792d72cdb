//! Rows of the edge-case library that concern one reading, by their ids: first as canonical JSON has them, then with what
//! a connector's file can say.

use std::borrow::Cow;

use proptest::prelude::*;
use wardbell_schemas::decoded::DecodedControl;

use super::profile::ProfileForm;
use super::*;

fn text(text: &'static str) -> RawField<'static> {
    RawField::Text(Cow::Borrowed(text))
}

fn decoded<'a>(signal: &'a str, value: RawField<'a>, unit: Option<&'a str>) -> DecodedReading<'a> {
    let text = |text: &'a str| RawField::Text(Cow::Borrowed(text));
    DecodedReading {
        patient: text("p"),
        device: text("d"),
        label: text(signal),
        value,
        unit: unit.map_or(RawField::Absent, text),
        time: text("2026-03-01T10:15:30Z"),
        ..DecodedReading::default()
    }
}

/// 2026-03-01T10:15:31Z.
const RECORD_US: Micros = 1_772_360_131_000_000;
const SOURCE: Source<'static> = Source { topic: "t", partition: 0, offset: 4, time_us: RECORD_US, append_us: None };

fn profile(text: &str) -> Profile {
    let form: ProfileForm = toml::from_str(text).expect("the sections of a file");
    Profile::new(&form, Catalogue::builtin()).expect("a sound profile")
}

/// `quality value reason` of an accepted reading, or the reason code of a refused one.
fn outcome(reading: &DecodedReading<'_>) -> String {
    let profile = Profile::default();
    match normalize(reading, &SOURCE, Catalogue::builtin(), &profile) {
        Ok(Normalized::Reading(row)) => shown(&row),
        Ok(other) => panic!("{other:?}"),
        Err(refused) => format!("{} {}", refused.reason.name(), refused.field),
    }
}

fn shown(row: &ReadingRow<'_>) -> String {
    let value = row.value.map_or("none".to_owned(), |value| Catalogue::builtin().signal(row.signal).print(value));
    format!("{} {}{value} {}", row.quality.name(), row.comparator.symbol(), row.reason.name())
}

/// `signal quality value reason method policies`, one for each row; the reason code of what is refused.
fn with(profile: &Profile, reading: &DecodedReading<'_>) -> Vec<String> {
    let row = |row: &ReadingRow<'_>| {
        let signal = &Catalogue::builtin().signal(row.signal).id;
        let policies: Vec<&str> = row.policies.iter().map(Policy::name).collect();
        format!("{signal} {} {} {}", shown(row), row.method, policies.join(",")).trim_end().to_owned()
    };
    match normalize(reading, &SOURCE, Catalogue::builtin(), profile) {
        Ok(Normalized::Reading(reading)) => vec![row(&reading)],
        Ok(Normalized::Parts(parts)) => parts
            .iter()
            .map(|part| part.as_ref().map_or_else(|refused| refused.reason.name().to_owned(), row))
            .collect(),
        Ok(Normalized::Ignored) => vec!["ignored".to_owned()],
        Err(refused) => vec![format!("{} {}", refused.reason.name(), refused.field)],
    }
}

#[test]
fn numbers_of_the_edge_case_library() {
    for (id, signal, value, unit, expected) in [
        ("A01", "spo2", text("97"), Some("%"), "ok 97 -"),
        ("A02", "spo2", text("97 %"), None, "ok 97 -"),
        ("A02", "spo2", text("97 %"), Some("percent"), "ok 97 -"),
        ("A02", "spo2", text("97 %"), Some("mmHg"), "E_UNIT_CONFLICT value"),
        ("A03", "temp_body", text("36,8"), Some("Cel"), "E_NUM_LOCALE value"),
        ("A04", "wbc", text("1.234"), Some("10*3/uL"), "ok 1.23 -"),
        ("A05", "wbc", text("1,234.5"), Some("10*3/uL"), "E_NUM_LOCALE value"),
        ("A06", "spo2", text("NaN"), Some("%"), "missing none not_a_number"),
        ("A07", "spo2", text("-INF"), Some("%"), "missing none E_NUM_OVERFLOW"),
        ("A07", "spo2", RawField::Number("1e400"), Some("%"), "missing none E_NUM_OVERFLOW"),
        ("A07", "spo2", RawField::Number("1e-400"), Some("%"), "missing none E_NUM_OVERFLOW"),
        ("A08", "spo2", RawField::Null, Some("%"), "missing none null"),
        ("A08", "spo2", text(""), Some("%"), "missing none empty"),
        ("A08", "spo2", RawField::Absent, Some("%"), "missing none absent"),
        ("A09", "spo2", text("***"), Some("%"), "missing none sentinel"),
        ("A10", "infusion_rate", text("_NV"), Some("mL/h"), "missing none sentinel"),
        ("A11", "glucose_blood", text("<20"), Some("mg/dL"), "converted <=1.11 -"),
        ("A11", "glucose_blood", text("> 600 mg/dL"), None, "converted >=33.3 -"),
        ("A11", "glucose_blood", text("≤20"), Some("mg/dL"), "converted <=1.11 -"),
        ("A11", "glucose_blood", text(">=33"), Some("mmol/L"), "ok >=33 -"),
        ("A11", "glucose_blood", text("<"), Some("mmol/L"), "E_NUM_PARSE value"),
        ("A11", "glucose_blood", text("<<20"), Some("mg/dL"), "E_NUM_PARSE value"),
        ("A11", "glucose_blood", text("LO"), Some("mg/dL"), "E_NUM_PARSE value"),
        ("A11", "consciousness", text("<A"), None, "E_STATE_UNKNOWN value"),
        ("A13", "body_weight", RawField::Number("-1"), Some("kg"), "missing none sentinel"),
        ("A14", "spo2", RawField::Number("0"), Some("%"), "technical none zero_not_measured"),
        ("A14", "pulse_rate", RawField::Number("0.0"), Some("bpm"), "technical none zero_not_measured"),
        ("A17", "heart_rate", RawField::Number("0"), Some("bpm"), "questionable 0 zero_suspect"),
        ("A18", "resp_rate", RawField::Number("0"), Some("/min"), "questionable 0 zero_suspect"),
        ("A19", "nibp_sys", RawField::Number("-32768"), Some("mmHg"), "missing none sentinel"),
        ("A22", "heart_rate", RawField::Number("127"), Some("bpm"), "ok 127 -"),
        ("A23", "spo2", RawField::Number("99.9"), Some("%"), "ok 99.9 -"),
        ("A28", "gcs_total", text("10T"), None, "E_UNIT_UNKNOWN unit"),
        ("A29", "spo2", text(" +097 "), Some("%"), "ok 97 -"),
        ("A29", "spo2", RawField::Number("9.7e1"), Some("%"), "ok 97 -"),
        ("A31", "spo2", RawField::Bool(true), Some("%"), "E_NUM_TYPE value"),
        ("C23", "consciousness", text("V"), None, "ok V -"),
        ("C23", "consciousness", text("Z"), None, "E_STATE_UNKNOWN value"),
        ("F15", "spo2_signal_quality", RawField::Number("102"), Some("%"), "questionable 100 E_RANGE"),
        ("F15", "spo2_signal_quality", RawField::Number("777"), Some("%"), "E_RANGE value"),
        ("F15", "spo2", RawField::Number("102"), Some("%"), "E_RANGE value"),
    ] {
        assert_eq!(outcome(&decoded(signal, value.clone(), unit)), expected, "{id}: {value:?}");
    }
}

#[test]
fn units_of_the_edge_case_library() {
    let number = RawField::Number;
    for (id, signal, value, unit, expected) in [
        ("B01", "spo2", "0.98", Some("%"), "E_RANGE value"),
        ("B03", "temp_body", "98.6", Some("[degF]"), "converted 37 -"),
        ("B04", "temp_body", "98.6", None, "E_UNIT_MISSING unit"),
        ("B05", "temp_body", "98.6", Some("Cel"), "E_RANGE value"),
        ("B06", "temp_body", "-17.8", Some("Cel"), "missing none sentinel"),
        ("B07", "temp_body", "310.15", Some("K"), "converted 37 -"),
        ("B08", "glucose_blood", "33", None, "E_UNIT_MISSING unit"),
        ("B09", "glucose_blood", "5.5", Some("mg/dL"), "E_RANGE value"),
        ("B10", "glucose_blood", "180", Some("mg/dL"), "converted 9.99 -"),
        ("B12", "nibp_sys", "16", Some("mmHg"), "E_RANGE value"),
        ("B13", "etco2", "5.0", Some("vol%"), "E_UNIT_CONTEXT unit"),
        ("B13", "etco2", "5.0", Some("Vol. %"), "E_UNIT_CONTEXT unit"),
        ("B13", "etco2", "5.0", Some("%"), "E_UNIT_CONTEXT unit"),
        ("B14", "etco2", "5.0", Some("kPa"), "converted 37.5 -"),
        ("B15", "fio2", "0.4", Some("1"), "converted 40 -"),
        ("B15", "fio2", "40", Some("%"), "ok 40 -"),
        ("B15", "fio2", "0.4", Some("%"), "E_RANGE value"),
        ("B17", "body_weight", "154.3", Some("lb"), "converted 69.99 -"),
        ("B17", "body_weight", "3200", Some("g"), "converted 3.2 -"),
        ("B18", "body_height", "406.4", Some("cm"), "E_RANGE value"),
        ("B19", "body_height", "1.75", None, "E_UNIT_MISSING unit"),
        ("B20", "nibp_sys", "120", Some("MMHG"), "ok 120 -"),
        ("B20", "nibp_sys", "120", Some("mm Hg"), "ok 120 -"),
        ("B20", "nibp_sys", "120", Some("MDC_DIM_MMHG"), "ok 120 -"),
        ("B21", "st_deviation", "200", Some("\u{b5}V"), "converted 0.2 -"),
        ("B21", "st_deviation", "200", Some("\u{3bc}V"), "converted 0.2 -"),
        ("B21", "infusion_rate", "100", Some("\u{b5}L/min"), "converted 6 -"),
        ("B27", "ph_arterial", "735", None, "E_RANGE value"),
        ("B28", "pao2", "7.47", Some("mmHg"), "ok 7.47 -"),
        ("B29", "st_deviation", "2", Some("mm"), "converted 0.2 -"),
        ("B30", "heart_rate", "72", Some("mmHg"), "E_UNIT_QUANTITY unit"),
        ("B31", "heart_rate", "72", Some("99MNDRY"), "E_UNIT_UNKNOWN unit"),
    ] {
        assert_eq!(outcome(&decoded(signal, number(value), unit)), expected, "{id}: {value} {unit:?}");
    }
}

#[test]
fn an_implausible_value_is_refused_with_what_it_looks_like() {
    for (id, signal, value, unit, hint) in [
        ("B01", "spo2", "0.98", "%", "looks like a fraction"),
        ("B05", "temp_body", "98.6", "Cel", "looks like degF"),
        ("B18", "body_height", "406.4", "cm", "divide by 2.54"),
    ] {
        let (reading, profile) = (decoded(signal, RawField::Number(value), Some(unit)), Profile::default());
        let refused = normalize(&reading, &SOURCE, Catalogue::builtin(), &profile).expect_err("implausible");
        assert!(refused.detail.contains(hint), "{id}: {}", refused.detail);
    }
}

#[test]
fn labels_times_and_identities_of_the_edge_case_library() {
    let good = || decoded("spo2", RawField::Number("97"), Some("%"));
    let default = Profile::default();
    for (id, time, expected) in [
        ("D01", text("2026-03-01T10:15:30Z"), "1772360130000000"),
        ("D02", text("2026-03-01T15:45:30+05:30"), "1772360130000000"),
        ("D03", text("2026-03-01T10:15:30"), "E_TIME_ZONE"),
        ("D04", text("2026-07-10 08:00:00 -0700"), "1783695600000000"),
        ("D05", RawField::Number("1772360130"), "1772360130000000"),
        ("D05", RawField::Number("1772360130123"), "1772360130123000"),
        ("D05", RawField::Number("1772360130123456"), "1772360130123456"),
        ("D05", RawField::Number("1772360130123456789"), "1772360130123457"),
        ("D05", RawField::Number("177236013"), "E_TIME_PARSE"),
        ("D11", text("20261332120000"), "E_TIME_PARSE"),
        ("D15", text("Fri Sep 24 11:38:22 2021"), "E_TIME_ZONE"),
        ("D16", text("03/04/2026 10:15"), "E_TIME_AMBIGUOUS"),
        ("D16", text("25.12.2026 10:15:00"), "E_TIME_AMBIGUOUS"),
        ("D17", RawField::Number("46082.42743"), "E_TIME_PARSE"),
        ("D18", text("2026-03-01 10:15 EST"), "E_TIME_PARSE"),
        ("D18", text("2026-03-01T10:15:30[EST]"), "E_TIME_PARSE"),
        ("D18", text("2026-03-01T11:15:30[Europe/Berlin]"), "1772360130000000"),
        ("D28", text("2026-03-01"), "E_TIME_ZONE"),
        ("-", text(" "), "E_FIELD_MISSING"),
        ("-", RawField::Absent, "E_FIELD_MISSING"),
        ("-", RawField::Bool(true), "E_FIELD_TYPE"),
    ] {
        assert_eq!(at(&default, time.clone()), expected, "{id}: {time:?}");
    }
    for (id, reading, expected) in [
        ("C01", DecodedReading { label: text("%SpO2"), ..good() }, "ok 97 -"),
        ("C02", DecodedReading { label: text("Sp O2 (%)"), ..good() }, "ok 97 -"),
        ("C03", DecodedReading { label: text("XYZ9"), ..good() }, "E_LABEL_UNKNOWN signal"),
        ("C04", DecodedReading { label: text("MAP"), ..good() }, "E_LABEL_AMBIGUOUS signal"),
        ("C09", DecodedReading { label: text("P1_Disatolic"), ..good() }, "E_LABEL_AMBIGUOUS signal"),
        ("F31", DecodedReading { patient: text(" "), ..good() }, "E_FIELD_MISSING patient"),
        ("G25", DecodedReading { device: text("a\u{7}b"), ..good() }, "E_FIELD_TEXT device"),
        ("F01", DecodedReading { quality: text("test"), ..good() }, "test 97 source_flag"),
        ("F03", DecodedReading { quality: text("off"), ..good() }, "missing none off"),
        ("F03", DecodedReading { quality: text("off"), value: text("###"), ..good() }, "missing none off"),
        ("F03", DecodedReading { quality: text("missing"), ..good() }, "missing none source_flag"),
        ("F04", DecodedReading { quality: text("questionable"), ..good() }, "questionable 97 source_flag"),
        ("-", DecodedReading { quality: text("bad"), ..good() }, "E_FIELD_TYPE quality"),
        ("-", DecodedReading { method: text("a/b"), ..good() }, "E_FIELD_TEXT method"),
        ("D10", DecodedReading { time: text("2026-03-01T10:15Z"), ..good() }, "questionable 97 E_TIME_PRECISION"),
        (
            "D10",
            DecodedReading { time: text("2026-03-01T10:15Z"), value: text("-"), ..good() },
            "missing none sentinel",
        ),
    ] {
        assert_eq!(outcome(&reading), expected, "{id}");
    }
}

/// The event time of a reading with a time stamp, with its doubt and policies; or the reason code.
fn at(profile: &Profile, time: RawField<'_>) -> String {
    let reading = DecodedReading { time, ..decoded("spo2", RawField::Number("97"), Some("%")) };
    match normalize(&reading, &SOURCE, Catalogue::builtin(), profile) {
        Ok(Normalized::Reading(row)) => {
            let policies: Vec<&str> = row.policies.iter().map(Policy::name).collect();
            let doubt = if row.reason == Reason::None { "" } else { row.reason.name() };
            format!("{} {doubt} {}", row.event_time_us, policies.join(",")).trim_end().to_owned()
        }
        Ok(other) => panic!("{other:?}"),
        Err(refused) => refused.reason.name().to_owned(),
    }
}

#[test]
fn times_that_a_file_declares() {
    let new_york = "[policies]\nassume_zone = \"America/New_York\"\n";
    let ticks = "[time]\ntime_resolution = \"1m\"\n";
    for (id, file, time, expected) in [
        ("D03", new_york, "2026-03-01T05:15:30", "1772360130000000  assume_zone"),
        ("D03", "[policies]\nassume_zone = \"+05:30\"", "2026-03-01T15:45:30", "1772360130000000  assume_zone"),
        ("D03", new_york, "2026-03-01T10:15:30Z", "1772360130000000"),
        ("D07", "[time]\nformats = [\"hl7\"]", "20260124124738.123+0800", "1769230058123000"),
        ("D08", "[time]\nformats = [\"hl7\"]", "20260124124738000+0800", "1769230058000000"),
        ("D10", "[time]\nformats = [\"hl7\"]", "202601241247+0800", "1769230020000000 E_TIME_PRECISION"),
        ("D10", "[time]\nformats = [\"hl7\"]", "20260124", "E_TIME_ZONE"),
        ("D10", "[time]\nformats = [\"hl7\"]", "2026012412-0500", "1769274000000000 E_TIME_PRECISION"),
        ("D11", "[time]\nformats = [\"hl7\"]", "20261332120000", "E_TIME_PARSE"),
        ("D05", "[time]\nformats = [\"hl7\"]", "1772360130", "1772360130000000"),
        ("D10", ticks, "2026-03-01T10:15Z", "1772360100000000"),
        ("D10", ticks, "2026-03-01T10Z", "1772359200000000 E_TIME_PRECISION"),
        // 02:30 does not exist: a clock that was not put forward shows what is 03:30 to others.
        ("D13", new_york, "2026-03-08T02:30:00", "1772955000000000 E_TIME_DST assume_zone"),
        ("D13", new_york, "2026-03-08T01:59:59", "1772953199000000  assume_zone"),
        ("D13", new_york, "2026-03-08T03:00:00", "1772953200000000  assume_zone"),
        ("D15", new_york, "Fri Sep 24 11:38:22 2021", "1632497902000000  assume_zone"),
        ("D15", "[time]\nformats = [\"%d.%m.%y %H:%M:%S %z\"]", "01.03.26 10:15:30 +0000", "1772360130000000"),
        (
            "D15",
            "[time]\nformats = [\"%d.%m.%Y %H:%M %Q\"]",
            "01.03.2026 11:15 Europe/Berlin",
            "1772360100000000 E_TIME_PRECISION",
        ),
        ("D16", "[policies]\nday_first = true", "01/03/2026 10:15:30Z", "1772360130000000  day_first"),
        ("D16", "[policies]\nmonth_first = true", "3/1/2026 10:15:30+00:00", "1772360130000000  month_first"),
        ("D16", "[policies]\nday_first = true", "03/13/2026 10:15:30Z", "E_TIME_PARSE"),
        ("D16", "[policies]\nday_first = true", "01/03/26 10:15:30Z", "E_TIME_AMBIGUOUS"),
        (
            "D16",
            "[policies]\nday_first = true\nassume_zone = \"UTC\"",
            "01.03.2026 9:15",
            "1772356500000000 E_TIME_PRECISION assume_zone,day_first",
        ),
        (
            "D17",
            "[policies]\nspreadsheet_time = true\nassume_zone = \"UTC\"",
            "46082.5",
            "1772366400000000  assume_zone,spreadsheet_time",
        ),
        ("D17", "[policies]\nspreadsheet_time = true\nassume_zone = \"UTC\"", "7.5", "E_TIME_PARSE"),
        ("D18", new_york, "2026-03-01 10:15 EST", "E_TIME_PARSE"),
        ("D24", "[policies]\nrecord_time = true", "", "1772360131000000  record_time"),
        ("D28", "[policies]\nassume_zone = \"UTC\"", "2026-03-01", "1772323200000000 E_TIME_PRECISION assume_zone"),
    ] {
        assert_eq!(at(&profile(file), RawField::Text(Cow::Borrowed(time))), expected, "{id}: {time}");
    }
}

/// D13: 01:30 comes twice on the first of November; the record's own time says which one is meant.
#[test]
fn a_local_time_that_comes_twice_is_the_one_nearer_to_its_record() {
    let profile = profile("[policies]\nassume_zone = \"America/New_York\"\n");
    let reading =
        DecodedReading { time: text("2026-11-01T01:30:00"), ..decoded("spo2", RawField::Number("97"), Some("%")) };
    // 05:30 and 06:30 UTC.
    let (summer, winter) = (1_793_511_000_000_000, 1_793_514_600_000_000);
    for (record_us, expected) in [(summer + 5, summer), (winter - 5, winter), (winter + 9 * 3_600_000_000, winter)] {
        let source = Source { time_us: record_us, ..SOURCE };
        let Ok(Normalized::Reading(row)) = normalize(&reading, &source, Catalogue::builtin(), &profile) else {
            panic!("accepted");
        };
        assert_eq!((row.event_time_us, row.reason, row.quality), (expected, Reason::TimeShifted, Quality::Converted));
    }
}

const VENDOR: &str = r#"
ignore = ["ALARM_TXT"]
sentinels = ["N/A", 9999]
no_patient = ["99999", "Unknown Patient"]

[labels]
"Puls Ox" = { signal = "spo2", method = "finger", unit = "%" }
"MAP" = "nibp_mean"
"PR" = "pulse_rate"
"CO" = "cardiac_output"
"T1" = { signal = "temp_core", method = "bladder", sentinels = [99.9] }
"P1_Disatolic" = { signal = "abp_dia", unit = "mm[Hg]" }
"61669" = "resp_rate"
"HR" = { unit = "bpm", sentinels = [127] }
"GLU" = { signal = "glucose_blood", states = { LO = "<20 mg/dL", HI = ">600 mg/dL" } }
"GCS" = { signal = "gcs_total", suffixes = { T = "intubated" } }
"BP" = { split = ["nibp_sys", "nibp_dia"], unit = "mmHg" }
"BP3" = { split = ["nibp_sys", "nibp_dia", "nibp_mean"], separator = " ", unit = "mmHg" }
"LOC" = "consciousness"
"leads" = { signal = "lead_status", states = { true = "off", false = "on" } }

[units]
"mm Quecksilber" = "mm[Hg]"
"264864" = "/min"

[states]
"Alert" = "A"
"New confusion" = "C"
"LEVEL_4" = 80

[status]
"" = "ok"
"N" = "ok"
"DEMO" = "test"
"OFF" = "off"
"CAL" = "missing"
"QUES" = "questionable"
2 = "questionable"

[changes]
"F" = "none"
"C" = "corrects"
"D" = "retracts"
"#;

#[test]
fn words_that_a_file_explains() {
    let profile = profile(VENDOR);
    let number = RawField::Number;
    for (id, label, value, unit, expected) in [
        ("C01", "Puls Ox", number("97"), None, &["spo2 ok 97 - finger default_unit"][..]),
        ("C01", "Puls Ox", number("97"), Some("%"), &["spo2 ok 97 - finger"]),
        ("C02", "Heart-Rate", number("72"), Some("bpm"), &["heart_rate ok 72 - -"]),
        ("C04", "MAP", number("80"), Some("mm Quecksilber"), &["nibp_mean ok 80 - -"]),
        ("C06", "PR", number("160"), Some("ms"), &["E_UNIT_QUANTITY unit"]),
        ("C07", "CO", number("12"), Some("ppm"), &["E_UNIT_UNKNOWN unit"]),
        ("C08", "T1", number("37.2"), Some("C"), &["temp_core ok 37.2 - bladder"]),
        ("C09", "P1_Disatolic", number("60"), None, &["abp_dia ok 60 - - default_unit"]),
        ("C16", "61669", number("14"), Some("rpm"), &["resp_rate ok 14 - -"]),
        ("C03", "ALARM_TXT", text("** HR LOW"), None, &["ignored"]),
        ("A11", "GLU", text("LO"), Some("mmol/L"), &["glucose_blood converted <=1.11 - -"]),
        ("A11", "GLU", text("HI"), None, &["glucose_blood converted >=33.3 - -"]),
        ("A22", "HR", number("127"), None, &["heart_rate missing none sentinel -"]),
        ("A22", "HR", number("127.0"), None, &["heart_rate missing none sentinel -"]),
        ("A22", "61669", number("127"), Some("rpm"), &["E_RANGE value"]),
        ("A23", "T1", number("99.90"), Some("F"), &["temp_core missing none sentinel bladder"]),
        ("A23", "Puls Ox", number("99.9"), Some("%"), &["spo2 ok 99.9 - finger"]),
        ("A23", "HR", text("9999"), None, &["heart_rate missing none sentinel -"]),
        ("A09", "HR", text("N/A"), None, &["heart_rate missing none sentinel -"]),
        ("A24", "BP", text("120/80"), None, &["nibp_sys ok 120 - - default_unit", "nibp_dia ok 80 - - default_unit"]),
        ("A24", "BP", text("16 / 10.7 kPa"), None, &["nibp_sys converted 120 - -", "nibp_dia converted 80.3 - -"]),
        ("A26", "BP", text("120/"), None, &["nibp_sys ok 120 - - default_unit", "nibp_dia missing none empty -"]),
        ("A26", "BP", text("/80"), None, &["nibp_sys missing none empty -", "nibp_dia ok 80 - - default_unit"]),
        (
            "A27",
            "BP",
            text("80/120"),
            Some("mmHg"),
            &["nibp_sys questionable 80 E_BP_ORDER -", "nibp_dia questionable 120 E_BP_ORDER -"],
        ),
        ("B12", "BP", text("16/80"), Some("mmHg"), &["E_RANGE", "nibp_dia ok 80 - -"]),
        ("A24", "BP", text("120"), Some("mmHg"), &["E_NUM_PARSE value"]),
        ("A24", "BP", text("---"), None, &["nibp_sys missing none sentinel -", "nibp_dia missing none sentinel -"]),
        ("A24", "BP", RawField::Null, None, &["nibp_sys missing none null -", "nibp_dia missing none null -"]),
        (
            "A24",
            "BP3",
            text("120 80 93"),
            Some("mmHg"),
            &["nibp_sys ok 120 - -", "nibp_dia ok 80 - -", "nibp_mean ok 93 - -"],
        ),
        ("A28", "GCS", text("10T"), None, &["gcs_total converted 10 - intubated"]),
        ("A28", "GCS", text("10"), None, &["gcs_total ok 10 - -"]),
        ("A28", "GCS", text("T"), None, &["E_NUM_PARSE value"]),
        ("B20", "HR", number("72"), Some("264864"), &["heart_rate ok 72 - -"]),
        ("C23", "LOC", text("New confusion"), None, &["consciousness converted C - -"]),
        ("C23", "LOC", text("Alert"), None, &["consciousness converted A - -"]),
        ("F08", "leads", RawField::Bool(true), None, &["lead_status converted off - -"]),
        ("F29", "battery", text("LEVEL_4"), Some("%"), &["battery_level converted 80 - -"]),
    ] {
        let reading = DecodedReading { quality: text("N"), ..decoded(label, value.clone(), unit) };
        assert_eq!(with(&profile, &reading), expected, "{id}: {label} {value:?} {unit:?}");
    }
    for (id, reading, expected) in [
        (
            "F31",
            DecodedReading { patient: text("99999"), ..decoded("HR", number("72"), None) },
            "E_FIELD_MISSING patient",
        ),
        (
            "F31",
            DecodedReading { patient: number("99999"), ..decoded("HR", number("72"), None) },
            "E_FIELD_MISSING patient",
        ),
        (
            "F01",
            DecodedReading { quality: text("DEMO"), ..decoded("HR", number("72"), None) },
            "heart_rate test 72 source_flag - default_unit",
        ),
        (
            "F03",
            DecodedReading { quality: text("OFF"), ..decoded("HR", number("72"), None) },
            "heart_rate missing none off -",
        ),
        (
            "F04",
            DecodedReading { quality: number("2"), ..decoded("HR", number("72"), Some("bpm")) },
            "heart_rate questionable 72 source_flag -",
        ),
        (
            "F05",
            DecodedReading { quality: text("CAL"), ..decoded("BP", text("1/2"), None) },
            "nibp_sys missing none source_flag -",
        ),
        ("-", DecodedReading { quality: text("ok"), ..decoded("HR", number("72"), None) }, "E_FIELD_TYPE quality"),
        (
            "-",
            DecodedReading { method: text("wrist"), ..decoded("Puls Ox", number("97"), Some("%")) },
            "spo2 ok 97 - wrist",
        ),
    ] {
        assert_eq!(with(&profile, &reading)[0], expected, "{id}");
    }
}

#[test]
fn inferences_that_a_file_allows_are_marked() {
    let policies = |text: &str| profile(&format!("[labels]\nT = {{ signal = \"temp_body\" }}\n[policies]\n{text}\n"));
    for (id, file, label, value, unit, expected) in [
        ("A03", "decimal_comma = true", "T", text("36,8"), Some("Cel"), "temp_body converted 36.8 - - decimal_comma"),
        (
            "A05",
            "thousands_comma = true",
            "wbc",
            text("1,234.5"),
            Some("/uL"),
            "wbc converted 1.23 - - thousands_comma",
        ),
        ("A04", "decimal_comma = true", "wbc", text("1.234"), Some("10*3/uL"), "E_NUM_LOCALE value"),
        ("B01", "scale_fraction = true", "spo2", text("0.98"), Some("%"), "spo2 converted 98 - - scale_fraction"),
        ("B01", "scale_fraction = true", "spo2", text("98"), Some("%"), "spo2 ok 98 - -"),
        ("B01", "scale_fraction = true", "spo2", text("0"), Some("%"), "spo2 technical none zero_not_measured -"),
        ("B01", "scale_fraction = true", "perfusion_index", text("0.98"), Some("%"), "perfusion_index ok 0.98 - -"),
        ("B15", "scale_fraction = true", "fio2", text("0.4"), Some("%"), "fio2 converted 40 - - scale_fraction"),
        (
            "B04",
            "infer_temperature_unit = true",
            "T",
            text("98.6"),
            None,
            "temp_body converted 37 - - infer_temperature_unit",
        ),
        (
            "B04",
            "infer_temperature_unit = true",
            "T",
            text("36.8"),
            None,
            "temp_body ok 36.8 - - infer_temperature_unit",
        ),
        ("B04", "infer_temperature_unit = true", "temp_skin", text("45"), None, "E_UNIT_MISSING unit"),
        ("B08", "infer_temperature_unit = true", "glucose_blood", text("5.5"), None, "E_UNIT_MISSING unit"),
        (
            "B13",
            "barometric_pressure = \"760 mm[Hg]\"",
            "etco2",
            text("5.0"),
            Some("vol%"),
            "etco2 converted 35.65 - - barometric_pressure",
        ),
        (
            "B13",
            "barometric_pressure = \"101.325 kPa\"",
            "etco2",
            text("5.0"),
            Some("%"),
            "etco2 converted 35.65 - - barometric_pressure",
        ),
        ("B30", "barometric_pressure = \"760 mm[Hg]\"", "nibp_sys", text("5.0"), Some("%"), "E_UNIT_QUANTITY unit"),
    ] {
        assert_eq!(with(&policies(file), &decoded(label, value.clone(), unit)), [expected], "{id}: {label} {value:?}");
    }
}

/// E05.
#[test]
fn a_reading_says_what_it_does_to_an_earlier_one() {
    let changed = |profile: &Profile, word: RawField<'static>, value: &'static str| {
        let reading = DecodedReading { change: word, ..decoded("spo2", text(value), Some("%")) };
        match normalize(&reading, &SOURCE, Catalogue::builtin(), profile) {
            Ok(Normalized::Reading(row)) => format!("{:?} {}", row.change, shown(&row)),
            other => format!("{:?}", other.map_err(|refused| refused.reason)),
        }
    };
    let (default, vendor) = (Profile::default(), profile(VENDOR));
    assert_eq!(changed(&default, RawField::Absent, "97"), "None ok 97 -");
    assert_eq!(changed(&default, text("corrects"), "96"), "Corrects ok 96 -");
    assert_eq!(changed(&default, text("retracts"), "###"), "Retracts missing none source_flag");
    assert_eq!(changed(&default, text("D"), "96"), "Err(FieldType)");
    assert_eq!(changed(&vendor, text("F"), "96"), "None ok 96 -");
    assert_eq!(changed(&vendor, text("D"), "96"), "Retracts missing none source_flag");
    assert_eq!(changed(&vendor, text("corrects"), "96"), "Err(FieldType)");
}

#[test]
fn requests_of_sources_concern_one_patient_and_bear_their_position() {
    const EPISODE: &str = "5f0c2a9be1d44c7f8a1b3c5d7e9f0a1b";
    let told = |profile: &Profile, request: DecodedControl<'static>| match control(&request, &SOURCE, profile) {
        Ok(Some(requested)) => {
            let json = serde_json::to_string(&requested.record).expect("plain data");
            format!("{}: {json}", requested.patient)
        }
        Ok(None) => "ignored".to_owned(),
        Err(refused) => format!("{} {}", refused.reason.name(), refused.field),
    };
    let default = Profile::default();
    let of = |action: &'static str| DecodedControl {
        action: text(action),
        patient: text("p7"),
        ..DecodedControl::default()
    };
    let seen = |action| DecodedControl { episode: text(EPISODE), by: text("RN"), ..of(action) };
    for (request, expected) in [
        (of("discharge"), r#"p7: {"id":"t/0/4/0","control":"discharge","patient":"p7"}"#.to_owned()),
        (of("standby"), r#"p7: {"id":"t/0/4/0","control":"standby","patient":"p7"}"#.to_owned()),
        (
            DecodedControl { device: text("mon-3"), ..of("standby") },
            r#"p7: {"id":"t/0/4/0","control":"standby","patient":"p7","device":"mon-3"}"#.to_owned(),
        ),
        (
            seen("acknowledge"),
            format!(r#"p7: {{"id":"t/0/4/0","control":"acknowledge","episode":"{EPISODE}","by":"RN"}}"#),
        ),
        (seen("reset"), format!(r#"p7: {{"id":"t/0/4/0","control":"reset","episode":"{EPISODE}","by":"RN"}}"#)),
        (of("reset"), "E_FIELD_MISSING episode".to_owned()),
        (DecodedControl { episode: text("7"), ..seen("reset") }, "E_CONTROL episode".to_owned()),
        (DecodedControl { by: text(""), ..seen("reset") }, "E_FIELD_MISSING by".to_owned()),
        (DecodedControl { patient: RawField::Absent, ..of("discharge") }, "E_FIELD_MISSING patient".to_owned()),
        (DecodedControl { device: text(""), ..of("standby") }, "E_FIELD_MISSING device".to_owned()),
        (of("limit"), "E_CONTROL control".to_owned()),
        (of("tick"), "E_CONTROL control".to_owned()),
        (of("A03"), "E_CONTROL control".to_owned()),
    ] {
        assert_eq!(told(&default, request.clone()), expected, "{request:?}");
    }
    let words = profile("no_patient = [\"p7\"]\n[control.actions]\nA03 = \"discharge\"\nA08 = \"ignore\"\n");
    assert_eq!(told(&words, of("A08")), "ignored");
    assert_eq!(told(&words, of("A03")), "E_FIELD_MISSING patient");
    assert_eq!(told(&words, of("discharge")), "E_CONTROL control", "where the file lists words, only they count");
}

#[test]
fn every_fault_of_a_profile_is_told_at_once_with_its_key() {
    let faulty = r#"
ignore = ["Puls"]
[labels]
"Puls" = "puls_rate"
"Sat" = { signal = "spo2", unit = "mmHg" }
"RR" = { unit = "rpm" }
"BP" = { split = ["nibp_sys"] }
"BP2" = { split = ["nibp_sys", "consciousness"], separator = "" }
"LOC" = { signal = "consciousness", unit = "%", states = { wach = "awake" } }
"T" = { signal = "temp_body", method = "a/b" }
[units]
"x" = "furlong"
[time]
lateness = "-1s"
reset_dates = ["first of May"]
formats = ["%H:%M", "%Z", "%d.%m.%Y %H:%M"]
[policies]
decimal_comma = true
thousands_comma = true
day_first = true
month_first = true
assume_zone = "EST"
barometric_pressure = "760"
"#;
    let form: ProfileForm = toml::from_str(faulty).expect("the sections of a file");
    let faults = Profile::new(&form, Catalogue::builtin()).expect_err("faults");
    let keys: Vec<String> = faults.iter().map(|fault| fault.path.join(".")).collect();
    assert_eq!(
        keys,
        [
            "policies.thousands_comma",
            "policies.month_first",
            "policies.barometric_pressure",
            "units.x",
            "time.formats.0",
            "time.formats.1",
            "policies.assume_zone",
            "time.lateness",
            "labels.BP.split",
            "labels.BP2.split",
            "labels.BP2.separator",
            "labels.LOC.unit",
            "labels.LOC.states.wach",
            "labels.Puls.signal",
            "labels.RR",
            "labels.Sat.unit",
            "labels.T.method",
        ]
    );
    assert_eq!(faults[13].help, "did you mean `pulse_rate`?");
    assert_eq!(form.time.reset_days().expect_err("no date").len(), 1);
    let reset: ProfileForm = toml::from_str("[time]\nreset_dates = [\"2000-01-01\"]").expect("a section");
    assert_eq!(reset.time.reset_days(), Ok(vec![946_684_800_000_000]));
    let twice: ProfileForm = toml::from_str("ignore = [\"X\"]\n[labels]\nX = \"spo2\"").expect("sections");
    assert_eq!(Profile::new(&twice, Catalogue::builtin()).expect_err("a fault")[0].path, ["ignore", "0"]);
}

/// G24.
#[test]
fn a_refusal_never_quotes_the_value_or_the_patient() {
    let vendor = profile(VENDOR);
    let secret = || RawField::Text(Cow::Borrowed("secret77"));
    let good = || decoded("HR", RawField::Number("72"), Some("bpm"));
    for reading in [
        DecodedReading { value: secret(), ..good() },
        DecodedReading { value: text("7 secret77"), unit: RawField::Absent, ..good() },
        DecodedReading { time: secret(), ..good() },
        DecodedReading { quality: secret(), ..good() },
        DecodedReading { change: secret(), ..good() },
        DecodedReading { unit: secret(), ..good() },
        DecodedReading { label: secret(), ..good() },
        DecodedReading { label: text("LOC"), value: secret(), unit: RawField::Absent, ..good() },
        DecodedReading { label: text("BP"), value: secret(), ..good() },
        DecodedReading { patient: secret(), method: text("secret77/a"), ..good() },
        DecodedReading { patient: secret(), value: RawField::Number("777777"), ..good() },
    ] {
        for profile in [&Profile::default(), &vendor] {
            if let Err(refused) = normalize(&reading, &SOURCE, Catalogue::builtin(), profile) {
                assert!(!refused.detail.contains("77"), "{}", refused.detail);
            }
        }
        assert!(normalize(&reading, &SOURCE, Catalogue::builtin(), &vendor).is_err(), "{reading:?}");
    }
}

/// G25.
#[test]
fn texts_of_any_length_are_refused_without_being_kept() {
    let long = "9".repeat(1 << 20);
    let text = || RawField::Text(Cow::Borrowed(long.as_str()));
    let good = || decoded("HR", RawField::Number("72"), Some("bpm"));
    let vendor = profile(VENDOR);
    for reading in [
        DecodedReading { value: text(), ..good() },
        DecodedReading { label: text(), ..good() },
        DecodedReading { patient: text(), ..good() },
        DecodedReading { time: text(), ..good() },
        DecodedReading { unit: text(), ..good() },
        DecodedReading { quality: text(), ..good() },
    ] {
        let refused = normalize(&reading, &SOURCE, Catalogue::builtin(), &vendor).expect_err("refused");
        assert!(refused.detail.len() < 200, "{}", refused.detail.len());
    }
}

#[test]
fn a_canonical_reading_costs_no_allocation() {
    let (profile, catalogue) = (Profile::default(), Catalogue::builtin());
    let reading = decoded("spo2", RawField::Number("97.5"), Some("%"));
    let allocations = allocation_counter::measure(|| {
        assert!(normalize(&reading, &SOURCE, catalogue, &profile).is_ok());
    });
    assert_eq!(allocations.count_total, 0);
}

proptest! {
    #[test]
    fn normalizing_never_panics(
        label in prop_oneof![Just("BP"), Just("HR"), Just("GLU"), Just("GCS"), Just("LOC"), Just("temp_body"), Just("etco2")],
        value in "[-+<>=≤]{0,2}[0-9.,/ ]{0,8}[a-zA-Z%]{0,4}",
        unit in prop_oneof![Just(None), Just(Some("%")), Just(Some("[degF]")), Just(Some("kPa"))],
        time in "[0-9/:T. Z+-]{0,25}",
    ) {
        let every_policy = "[policies]\ndecimal_comma = true\ninfer_temperature_unit = true\nscale_fraction = true\nday_first = true\nspreadsheet_time = true\nrecord_time = true\nassume_zone = \"Europe/Berlin\"\nbarometric_pressure = \"760 mm[Hg]\"\n[time]\nformats = [\"hl7\", \"%d.%m.%Y %H:%M:%S\"]\n";
        let vendor = profile(&format!("{VENDOR}{every_policy}"));
        let at = RawField::Text(Cow::Borrowed(time.as_str()));
        let reading = DecodedReading { time: at, ..decoded(label, RawField::Text(Cow::Borrowed(&value)), unit) };
        for profile in [&Profile::default(), &vendor] {
            let _ = normalize(&reading, &SOURCE, Catalogue::builtin(), profile);
        }
    }

    /// What is accepted lies in the plausible range, and reading the printed value again gives the same.
    #[test]
    fn an_accepted_value_is_plausible_and_reads_back_as_itself(value in "[0-9]{1,3}(\\.[0-9]{1,3})?", fahrenheit: bool) {
        let (default, catalogue) = (Profile::default(), Catalogue::builtin());
        let unit = if fahrenheit { "[degF]" } else { "Cel" };
        let reading = decoded("temp_body", RawField::Number(&value), Some(unit));
        if let Ok(Normalized::Reading(ReadingRow { value: Some(counts), signal, .. })) =
            normalize(&reading, &SOURCE, catalogue, &default)
        {
            let signal = catalogue.signal(signal);
            prop_assert!(counts >= signal.plausible.0 && counts <= signal.plausible.1);
            let printed = signal.print(counts);
            let again = decoded("temp_body", RawField::Number(&printed), Some("Cel"));
            let Ok(Normalized::Reading(row)) = normalize(&again, &SOURCE, catalogue, &default) else {
                panic!("a printed value is a value");
            };
            prop_assert_eq!(row.value, Some(counts));
        }
    }
}
