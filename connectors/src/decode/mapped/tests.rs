//! What stands where, in both formats and both forms.

use proptest::prelude::*;
use wardbell_schemas::decoded::{DecodedReading, RawField};

use super::*;
use crate::decode::Part;

fn form(text: &str) -> MappingForm {
    toml::from_str(text).expect("a mapping")
}

fn json(text: &str) -> Mapping {
    Mapping::json(&form(text)).expect("a sound mapping")
}

fn csv(text: &str) -> Mapping {
    Mapping::csv(&form(text)).expect("a sound mapping")
}

fn shown(field: &RawField<'_>) -> String {
    match field {
        RawField::Absent => ".".to_owned(),
        RawField::Null => "null".to_owned(),
        RawField::Text(text) => format!("'{text}'"),
        RawField::Number(text) => (*text).to_owned(),
        RawField::Bool(value) => value.to_string(),
        RawField::Nested => "{}".to_owned(),
    }
}

/// `path: patient device label value unit time`, or `reason field` of what cannot be taken apart.
fn lines(mapping: &Mapping, record: impl AsRef<[u8]>) -> Vec<String> {
    let line = |part: Decoded<'_>| match part {
        Ok(Part::Reading(reading)) => {
            let DecodedReading { patient, device, label, value, unit, time, path, .. } = &reading;
            let fields = [patient, device, label, value, unit, time].map(shown).join(" ");
            format!("{path}: {fields}")
        }
        Ok(Part::Control(control)) => {
            format!("{} {} {}", shown(&control.action), shown(&control.patient), shown(&control.device))
        }
        Err(fault) => format!("{} {}", fault.reason.name(), fault.field),
    };
    mapping.decode(record.as_ref()).into_iter().map(line).collect()
}

const NESTED: &str = r#"
records = "beds[*].monitors[*].readings"
[fields]
patient = { join = ["$.site", "$.beds[*].id"] }
device = "id"
time = "at"
label = "code"
value = "val"
unit = "u"
"#;

#[test]
fn lists_in_lists_hand_down_what_stands_around_them() {
    let record = r#"{"site":"north","at":"t0","beds":[
        {"id":"b1","monitors":[{"id":"m1","readings":[{"code":"HR","val":80,"u":"bpm"},{"code":"SpO2","val":null,"at":"t1"}]}]},
        {"id":"b2","monitors":[]},
        {"id":"b3","monitors":[{"id":"m3","readings":[{"id":"own","code":"RR"}]}]}]}"#;
    assert_eq!(
        lines(&json(NESTED), record),
        [
            "beds[0].monitors[0].readings[0]: 'north/b1' 'm1' 'HR' 80 'bpm' 't0'",
            "beds[0].monitors[0].readings[1]: 'north/b1' 'm1' 'SpO2' null . 't1'",
            "beds[2].monitors[0].readings[0]: 'north/b3' 'own' 'RR' . . 't0'",
        ]
    );
    assert_eq!(lines(&json(NESTED), r#"{"site":"north","beds":[]}"#), ["E_NO_READING "]);
    assert_eq!(lines(&json(NESTED), "[1]"), ["E_NO_READING "]);
    assert_eq!(lines(&json(NESTED), r#"{"beds":"#), ["E_PARSE "]);
}

#[test]
fn readings_of_the_wide_form_have_places_of_their_own() {
    let mapping = json(
        r#"
        [fields]
        patient = "p"
        device = { constant = "pump-1" }
        time = "t"
        [[wide]]
        at = "vitals.spo2"
        signal = "spo2"
        [[wide]]
        at = "vitals.temp"
        signal = "temp_body"
        "#,
    );
    assert_eq!(
        lines(&mapping, r#"{"p":7,"t":1,"vitals":{"spo2":97,"temp":null}}"#),
        ["vitals.spo2: 7 'pump-1' 'vitals.spo2' 97 . 1", "vitals.temp: 7 'pump-1' 'vitals.temp' null . 1"]
    );
    assert_eq!(lines(&mapping, r#"{"p":7,"t":1,"vitals":{"temp":1}}"#).len(), 1, "what was not sent is no reading");
    assert_eq!(lines(&mapping, r#"{"p":7,"t":1}"#), ["E_NO_READING "]);
    let nested = json(
        "[fields]\npatient = \"p\"\ndevice = \"p\"\ntime = \"t\"\nvalue = \"v\"\nunit = \"u\"\n[[wide]]\nat = \"spo2\"\n",
    );
    assert_eq!(
        lines(&nested, r#"{"p":7,"t":1,"spo2":{"v":"97","u":"%","t":2}}"#),
        ["spo2: 7 7 'spo2' '97' '%' 2"],
        "fields of the element win"
    );
    assert_eq!(lines(&nested, r#"{"p":7,"t":1,"spo2":{}}"#), ["spo2: 7 7 'spo2' . . 1"], "A08: absent");
}

#[test]
fn members_of_an_object_can_be_gone_through_by_their_names() {
    let mapping = json(
        "records = \"vitals[*]\"\n[fields]\npatient = \"p\"\ndevice = \"d\"\ntime = \"t\"\nlabel = { key = true }\nvalue = \"@\"\n",
    );
    assert_eq!(
        lines(&mapping, r#"{"p":"x","d":"y","t":0,"vitals":{"SpO2":97,"new label":"1 %"}}"#),
        ["vitals[0]: 'x' 'y' 'SpO2' 97 . 0", "vitals[1]: 'x' 'y' 'new label' '1 %' . 0"]
    );
}

#[test]
fn a_member_that_stands_twice_is_never_chosen_from() {
    let record = r#"{"p":"x","p":"y","t":0,"spo2":97,"spo2":98}"#;
    let mapping = json("[fields]\npatient = \"p\"\ndevice = \"d\"\ntime = \"t\"\n[[wide]]\nat = \"spo2\"\n");
    assert_eq!(lines(&mapping, record), ["E_FIELD_TYPE spo2"]);
    assert_eq!(lines(&mapping, r#"{"p":"x","p":"y","t":0,"spo2":97}"#), ["spo2: {} . 'spo2' 97 . 0"]);
}

/// F32.
#[test]
fn a_joined_identifier_is_whole_and_unmistakable_or_refused() {
    let mapping = json(NESTED);
    let with = |site: &str, bed: &str| {
        let readings = r#"[{"code":"HR","val":80}]"#;
        let record = format!(r#"{{{site}"beds":[{{"id":{bed},"monitors":[{{"id":"m","readings":{readings}}}]}}]}}"#);
        lines(&mapping, record).remove(0)
    };
    let path = "beds[0].monitors[0].readings[0]";
    assert!(with("\"site\":\"a\",", "7").starts_with(&format!("{path}: 'a/7' ")));
    assert!(with("", "7").starts_with(&format!("{path}: . ")), "a missing part is a missing patient");
    assert!(with("\"site\":\"\",", "7").starts_with(&format!("{path}: . ")));
    assert_eq!(with("\"site\":\"a/b\",", "7"), format!("E_FIELD_TEXT {path}.patient"));
}

#[test]
fn a_record_with_an_action_is_a_request_and_others_are_readings() {
    let mapping = json(
        r#"
        [fields]
        patient = "pid"
        label = "code"
        value = "val"
        [control]
        action = "event.type"
        device = "event.device"
        "#,
    );
    assert_eq!(lines(&mapping, r#"{"pid":"7","event":{"type":"A03"}}"#), ["'A03' '7' ."]);
    assert_eq!(lines(&mapping, r#"{"pid":"7","event":{"type":null},"code":"HR","val":1}"#), [": '7' . 'HR' 1 . ."]);
}

const WIDE_CSV: &str = r##"
[csv]
delimiter = ";"
comment = "#"
[fields]
patient = "Patient"
device = { constant = "vent-2" }
time = { join = ["Date", "Time"] }
[[wide]]
at = "RR (1/min)"
signal = "resp_rate"
[[wide]]
at = 5
signal = "peep"
"##;

#[test]
fn rows_are_read_by_name_and_number_and_repeated_headers_passed_over() {
    let header = "Patient;Date;Time;RR (1/min);CO;CO\r\n";
    let text = format!(
        "\u{feff}{header}# exported\r\np1;2026-03-01;10:15:30; 14 ;5;777\r\n{header}\r\n;;;;;\r\np1;2026-03-01;;;x\r\n\"p;2\";2026-03-01;10:15:31;;6;\"a\r\nb\"\r\n"
    );
    assert_eq!(
        lines(&csv(WIDE_CSV), text),
        [
            "row[1].RR (1/min): 'p1' 'vent-2' 'RR (1/min)' ' 14 ' . '2026-03-01 10:15:30'",
            "row[1].column 5: 'p1' 'vent-2' 'column 5' '5' . '2026-03-01 10:15:30'",
            "E_PARSE row[4]",
            "row[5].RR (1/min): 'p;2' 'vent-2' 'RR (1/min)' '' . '2026-03-01 10:15:31'",
            "row[5].column 5: 'p;2' 'vent-2' 'column 5' '6' . '2026-03-01 10:15:31'",
        ],
        "C11, and rows of another length"
    );
    assert_eq!(lines(&csv(WIDE_CSV), header), ["E_NO_READING "]);
    assert_eq!(lines(&csv(WIDE_CSV), ""), ["E_NO_READING "]);
}

/// C10.
#[test]
fn a_header_that_stands_twice_is_never_chosen_from() {
    let by_name = csv(&WIDE_CSV.replace("at = 5", "at = \"CO\""));
    let text = "Patient;Date;Time;RR (1/min);CO;CO\np1;d;t;14;5;777\n";
    assert_eq!(
        lines(&by_name, text),
        ["E_FIELD_TYPE CO", "row[1].RR (1/min): 'p1' 'vent-2' 'RR (1/min)' '14' . 'd t'"],
        "the other columns go on"
    );
    assert_eq!(lines(&by_name, "Name;Date;Time;RR (1/min);CO\np1;d;t;14;5\n"), ["E_FIELD_MISSING Patient"]);
}

#[test]
fn rows_without_a_header_are_named_by_the_file() {
    let long = csv(
        "[csv]\ncolumns = [\"p\", \"t\", \"code\", \"val\", \"u\"]\n[fields]\npatient = \"p\"\ndevice = 1\ntime = \"t\"\nlabel = \"code\"\nvalue = \"val\"\nunit = \"u\"\n",
    );
    assert_eq!(
        lines(&long, "p,t,code,val,u\n7,t1,HR,80,\n7,t1,Note,\"a \"\"b\"\"\",%\n"),
        ["row[2]: '7' '7' 'HR' '80' . 't1'", "row[3]: '7' '7' 'Note' 'a \"b\"' '%' 't1'"]
    );
}

/// G02.
#[test]
fn other_encodings_are_declared() {
    let text = "records = \"r\"\n[fields]\npatient = \"p\"\nlabel = \"l\"\nvalue = \"v\"\nunit = \"u\"\n";
    let record = r#"{"p":"Jörg","r":[{"l":"T","v":36.8,"u":"°C"}]}"#;
    let latin: Vec<u8> = record.chars().map(|c| c as u8).collect();
    let wide: Vec<u8> = "\u{feff}".encode_utf16().chain(record.encode_utf16()).flat_map(u16::to_be_bytes).collect();
    let with = |encoding: &str| json(&format!("encoding = \"{encoding}\"\n{text}"));
    assert_eq!(lines(&with("utf-8"), record), ["r[0]: 'Jörg' . 'T' 36.8 '°C' ."]);
    for (encoding, bytes) in [("latin-1", &latin), ("utf-16", &wide)] {
        assert_eq!(lines(&with(encoding), bytes), ["r[0]: 'Jörg' . 'T' '36.8' '°C' ."], "{encoding}");
    }
    assert_eq!(lines(&with("utf-8"), &latin), ["E_PARSE "]);
    assert_eq!(lines(&with("utf-16"), &wide[..wide.len() - 1]), ["E_PARSE "]);
}

/// G12.
#[test]
fn what_is_too_large_is_refused_as_a_whole() {
    let mapping = json("records = \"r\"\n[fields]\npatient = \"p\"\nlabel = \"l\"\nvalue = \"v\"\n");
    let record = |n: usize| format!(r#"{{"r":[{}]}}"#, vec!["{}"; n].join(","));
    assert_eq!(lines(&mapping, record(READINGS_MAX)).len(), READINGS_MAX);
    assert_eq!(lines(&mapping, record(READINGS_MAX + 1)), ["E_FIELD_TEXT records"]);
    assert_eq!(lines(&mapping.without_limit(), record(READINGS_MAX + 1)).len(), READINGS_MAX + 1);
    let deep = format!(r#"{{"r":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(!lines(&json("records = \"r\"\n[fields]\nlabel = \"l\"\nvalue = \"v\"\n"), deep).is_empty());
}

#[test]
fn every_fault_of_a_mapping_is_told_at_once_with_its_key() {
    let keys = |result: Result<Mapping, Vec<KeyFault>>| -> Vec<String> {
        result.expect_err("faults").into_iter().map(|fault| fault.path.join(".")).collect()
    };
    let faulty = form(
        "records = \"a[\"\n[fields]\npatient = 3\ndevice = { join = [\"a\"] }\ntime = \"a[*].b\"\nunit = \"$.x[*].u\"\nlabel = \"l\"\n[[wide]]\nat = \"$.x\"\n[csv]\ndelimiter = \";\"\n",
    );
    assert_eq!(
        keys(Mapping::json(&faulty)),
        [
            "records",
            "fields.patient",
            "fields.device",
            "fields.unit",
            "fields.time",
            "wide.0.at",
            "csv",
            "fields.label"
        ]
    );
    let faulty = form(
        "[csv]\ndelimiter = \"||\"\ncolumns = [\"a\", \"a\"]\n[fields]\npatient = \"a\"\ndevice = 3\nlabel = \"b\"\n[control]\naction = \"x\"\n",
    );
    assert_eq!(
        keys(Mapping::csv(&faulty)),
        ["csv.delimiter", "fields.patient", "fields.device", "fields.label", "control", "fields"]
    );
    assert_eq!(keys(Mapping::json(&form(""))), ["fields"]);
}

/// JSON that looks like what the mappings above expect, with every kind of value in every place.
fn record() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("NaN".to_owned()),
        Just("\"\"".to_owned()),
        Just("\"\\u00e9\\n\"".to_owned()),
        "-?[0-9]{1,4}(\\.[0-9]{1,3})?",
        "\"[a-zA-Z0-9 %/.,<>]{0,6}\"",
    ];
    let names = prop_oneof![
        Just("beds"),
        Just("monitors"),
        Just("readings"),
        Just("id"),
        Just("code"),
        Just("val"),
        Just("u"),
        Just("at"),
        Just("site"),
        Just("vitals"),
        Just("spo2"),
    ];
    scalar.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((names.clone(), inner), 0..4).prop_map(|members| {
                let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn decoding_never_panics_and_never_gives_nothing(record in record(), bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        for mapping in [json(NESTED), json("[fields]\npatient = \"id\"\n[[wide]]\nat = \"vitals.spo2\"\n"), csv(WIDE_CSV)] {
            prop_assert!(!mapping.decode(record.as_bytes()).is_empty());
            prop_assert!(!mapping.decode(&bytes).is_empty());
        }
    }

    #[test]
    fn decoding_rows_never_panics(text in "(Patient;Date;Time;RR \\(1/min\\);CO;CO\n)?[a-z0-9;\"#\n\r ]{0,80}") {
        prop_assert!(!csv(WIDE_CSV).decode(text.as_bytes()).is_empty());
    }

    /// A round trip: what is written where the mapping looks is what is read.
    #[test]
    fn what_is_written_is_read(value in "-?[1-9][0-9]{0,6}(\\.[0-9]{1,4})?", label in "[A-Za-z0-9 _%()-]{1,20}") {
        let record = format!(
            r#"{{"site":"s","at":1,"beds":[{{"id":2,"monitors":[{{"id":3,"readings":[{{"code":"{label}","val":{value}}}]}}]}}]}}"#
        );
        let parts = json(NESTED).decode(record.as_bytes()).len();
        prop_assert_eq!(parts, 1);
        let expected = format!("beds[0].monitors[0].readings[0]: 's/2' 3 '{label}' {value} . 1");
        let expected = if label.trim().is_empty() { expected.replace(&format!("'{label}'"), ".") } else { expected };
        prop_assert_eq!(lines(&json(NESTED), record), [expected]);
    }
}
