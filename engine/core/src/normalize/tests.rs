//! Rows of the edge-case library that concern one reading of canonical JSON, by their ids.

use super::*;

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

const SOURCE: Source<'static> = Source { topic: "t", partition: 0, offset: 0, time_us: 0, append_us: None };

/// `quality value reason` of an accepted reading, or the reason code of a refused one.
fn outcome(reading: &DecodedReading<'_>) -> String {
    let catalogue = Catalogue::builtin();
    match normalize(reading, &SOURCE, catalogue) {
        Ok(row) => {
            let value = row.value.map_or("none".to_owned(), |value| catalogue.signal(row.signal).print(value));
            format!("{} {value} {}", row.quality.name(), row.reason.name())
        }
        Err(refused) => format!("{} {}", refused.reason.name(), refused.field),
    }
}

#[test]
fn numbers_of_the_edge_case_library() {
    let text = |text: &'static str| RawField::Text(Cow::Borrowed(text));
    for (id, signal, value, unit, expected) in [
        ("A01", "spo2", text("97"), Some("%"), "ok 97 -"),
        ("A02", "spo2", text("97 %"), None, "ok 97 -"),
        ("A03", "temp_body", text("36,8"), Some("Cel"), "E_NUM_LOCALE value"),
        ("A04", "wbc", text("1.234"), Some("10*3/uL"), "ok 1.23 -"),
        ("A05", "wbc", text("1,234.5"), Some("10*3/uL"), "E_NUM_LOCALE value"),
        ("A06", "spo2", text("NaN"), Some("%"), "missing none not_a_number"),
        ("A07", "spo2", text("-INF"), Some("%"), "missing none E_NUM_OVERFLOW"),
        ("A07", "spo2", RawField::Number("1e400"), Some("%"), "missing none E_NUM_OVERFLOW"),
        ("A08", "spo2", RawField::Null, Some("%"), "missing none null"),
        ("A08", "spo2", text(""), Some("%"), "missing none empty"),
        ("A08", "spo2", RawField::Absent, Some("%"), "missing none absent"),
        ("A09", "spo2", text("***"), Some("%"), "missing none sentinel"),
        ("A10", "infusion_rate", text("_NV"), Some("mL/h"), "missing none sentinel"),
        ("A13", "body_weight", RawField::Number("-1"), Some("kg"), "missing none sentinel"),
        ("A14", "spo2", RawField::Number("0"), Some("%"), "technical none zero_not_measured"),
        ("A14", "pulse_rate", RawField::Number("0.0"), Some("bpm"), "technical none zero_not_measured"),
        ("A17", "heart_rate", RawField::Number("0"), Some("bpm"), "questionable 0 zero_suspect"),
        ("A19", "nibp_sys", RawField::Number("-32768"), Some("mmHg"), "missing none sentinel"),
        ("A29", "spo2", text(" +097 "), Some("%"), "ok 97 -"),
        ("A29", "spo2", RawField::Number("9.7e1"), Some("%"), "ok 97 -"),
        ("A31", "spo2", RawField::Bool(true), Some("%"), "E_NUM_TYPE value"),
        ("C23", "consciousness", text("V"), None, "ok V -"),
        ("C23", "consciousness", text("Z"), None, "E_STATE_UNKNOWN value"),
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
        ("B13", "etco2", "5.0", Some("vol%"), "E_UNIT_UNKNOWN unit"),
        ("B13", "etco2", "5.0", Some("%"), "E_UNIT_QUANTITY unit"),
        ("B14", "etco2", "5.0", Some("kPa"), "converted 37.5 -"),
        ("B17", "body_weight", "154.3", Some("lb"), "converted 69.99 -"),
        ("B18", "body_height", "406.4", Some("cm"), "E_RANGE value"),
        ("B19", "body_height", "1.75", None, "E_UNIT_MISSING unit"),
        ("B20", "nibp_sys", "120", Some("MMHG"), "ok 120 -"),
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
fn labels_times_and_identities_of_the_edge_case_library() {
    let good = || decoded("spo2", RawField::Number("97"), Some("%"));
    let text = |text: &'static str| RawField::Text(Cow::Borrowed(text));
    let with_time = |time: RawField<'static>| {
        let reading = DecodedReading { time, ..good() };
        match normalize(&reading, &SOURCE, Catalogue::builtin()) {
            Ok(row) => row.event_time_us.to_string(),
            Err(refused) => refused.reason.name().to_owned(),
        }
    };
    for (id, time, expected) in [
        ("D01", text("2026-03-01T10:15:30Z"), "1772360130000000"),
        ("D02", text("2026-03-01T15:45:30+05:30"), "1772360130000000"),
        ("D03", text("2026-03-01T10:15:30"), "E_TIME_ZONE"),
        ("D05", RawField::Number("1772360130"), "1772360130000000"),
        ("D05", RawField::Number("1772360130123"), "1772360130123000"),
        ("D05", RawField::Number("1772360130123456"), "1772360130123456"),
        ("D05", RawField::Number("1772360130123456789"), "1772360130123457"),
        ("D05", RawField::Number("177236013"), "E_TIME_PARSE"),
        ("D11", text("20261332120000"), "E_TIME_PARSE"),
        ("D18", text("2026-03-01 10:15 EST"), "E_TIME_PARSE"),
        ("-", RawField::Absent, "E_FIELD_MISSING"),
        ("-", RawField::Bool(true), "E_FIELD_TYPE"),
    ] {
        assert_eq!(with_time(time.clone()), expected, "{id}: {time:?}");
    }
    for (id, reading, expected) in [
        ("C03", DecodedReading { label: text("XYZ9"), ..good() }, "E_LABEL_UNKNOWN signal"),
        ("C04", DecodedReading { label: text("MAP"), ..good() }, "E_LABEL_AMBIGUOUS signal"),
        ("F31", DecodedReading { patient: text(" "), ..good() }, "E_FIELD_MISSING patient"),
        ("G25", DecodedReading { device: text("a\u{7}b"), ..good() }, "E_FIELD_TEXT device"),
        ("F01", DecodedReading { quality: text("test"), ..good() }, "test 97 source_flag"),
        ("F04", DecodedReading { quality: text("questionable"), ..good() }, "questionable 97 source_flag"),
        ("-", DecodedReading { quality: text("bad"), ..good() }, "E_FIELD_TYPE quality"),
        ("-", DecodedReading { method: text("a/b"), ..good() }, "E_FIELD_TEXT method"),
    ] {
        assert_eq!(outcome(&reading), expected, "{id}");
    }
}

#[test]
fn a_refusal_never_quotes_the_value() {
    let reading = decoded("spo2", RawField::Text(Cow::Borrowed("secret77")), Some("%"));
    let Err(refused) = normalize(&reading, &SOURCE, Catalogue::builtin()) else { panic!("must be refused") };
    assert!(!refused.detail.contains("secret77"), "{}", refused.detail);
}
