//! Canonical JSON, the format for sources that can choose theirs.
//!
//! A record is one reading, or many that share fields:
//!
//! ```json
//! {"patient":"p7","device":"mon-3","time":"2026-03-01T10:15:30Z","signal":"spo2","value":93,"unit":"%"}
//! {"patient":"p7","device":"mon-3","time":1772360130123,
//!  "readings":[{"signal":"spo2","value":93,"unit":"%"},{"signal":"HR","value":104,"unit":"bpm","quality":"questionable"}]}
//! ```
//!
//! | field | meaning |
//! |---|---|
//! | `patient`, `device` | identifiers; required, on the record or on the reading |
//! | `time` | event time: RFC 3339 with zone or offset, or epoch in s, ms, µs or ns by magnitude; required |
//! | `signal` | id or unambiguous label of the signal catalogue; required |
//! | `value` | number or text; `null` or absent: missing |
//! | `unit` | UCUM or a known spelling; required for every signal that has a unit |
//! | `method` | method or site qualifier, optional |
//! | `quality` | `ok` (default), `questionable`, `missing`, `off`, `test` |
//! | `change` | absent, or what it does to the sample with the same event time: `corrects`, `retracts` |
//!
//! Fields of a reading win over those of its record; unknown fields are ignored. A bare `NaN` or `Infinity`, which JSON does
//! not know, is a value that is missing and no fault of the record.
//!
//! A record with `control` is a request about one patient:
//!
//! ```json
//! {"control":"discharge","patient":"p7"}
//! {"control":"standby","patient":"p7","device":"mon-3"}
//! {"control":"acknowledge","patient":"p7","episode":"5f0c2a9be1d44c7f8a1b3c5d7e9f0a1b","by":"RN Lee"}
//! ```
//!
//! Unknown fields of a request are refused: one that is misread silences too much.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use wardbell_schemas::decoded::{DecodedControl, DecodedReading, RawField};
use wardbell_schemas::reading::Reason;

use super::{Decoded, Decoder, Part, READINGS_MAX, Undecodable};

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct JsonDecoder;

#[derive(Debug, Default, Deserialize)]
struct Form<'a> {
    #[serde(borrow)]
    patient: Option<&'a RawValue>,
    #[serde(borrow)]
    device: Option<&'a RawValue>,
    #[serde(borrow)]
    time: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    signal: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    unit: Option<&'a RawValue>,
    #[serde(borrow)]
    quality: Option<&'a RawValue>,
    #[serde(borrow)]
    change: Option<&'a RawValue>,
    #[serde(borrow)]
    readings: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    control: Option<&'a RawValue>,
}

/// A request, which has no other fields. An `id` may be there; the record's position is what identifies it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ControlForm<'a> {
    #[serde(borrow)]
    control: &'a RawValue,
    #[serde(borrow)]
    patient: Option<&'a RawValue>,
    #[serde(borrow)]
    device: Option<&'a RawValue>,
    #[serde(borrow)]
    episode: Option<&'a RawValue>,
    #[serde(borrow)]
    by: Option<&'a RawValue>,
    #[serde(rename = "id", default)]
    _id: serde::de::IgnoredAny,
}

/// Keeps `null` apart from an absent field.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Decoder for JsonDecoder {
    fn decode<'a>(&self, value: &'a [u8]) -> Vec<Decoded<'a>> {
        let value = value.strip_prefix(b"\xef\xbb\xbf").unwrap_or(value);
        let Ok(text) = std::str::from_utf8(value) else {
            return vec![Err(Undecodable::record(Reason::Parse, "", "the record is not UTF-8"))];
        };
        read_or_repair(text, parts).unwrap_or_else(|fault| vec![Err(fault)])
    }
}

fn parts(text: &str) -> Result<Vec<Decoded<'_>>, Undecodable> {
    // A list of the right length would be read as the fields in their order.
    if text.trim_start().starts_with('[') {
        return Err(Undecodable::record(Reason::Parse, "", "not canonical JSON: a record must be an object"));
    }
    let record: Form<'_> = serde_json::from_str(text).map_err(|error| not_json("canonical JSON", &error))?;
    if record.control.is_some() {
        return Ok(vec![control(text).map(Part::Control)]);
    }
    let Some(readings) = &record.readings else {
        if record.signal.is_none() {
            return Err(Undecodable::record(Reason::NoReading, "", "neither `signal` nor `readings` is there"));
        }
        return Ok(vec![Ok(Part::Reading(reading(&Form::default(), &record, 0, String::new())))]);
    };
    if readings.is_empty() {
        return Err(Undecodable::record(Reason::NoReading, "readings", "the list is empty"));
    }
    if readings.len() > READINGS_MAX {
        let detail = format!("more than {READINGS_MAX} readings in one record");
        return Err(Undecodable::record(Reason::FieldText, "readings", detail));
    }
    let mut parts = Vec::with_capacity(readings.len());
    for (index, raw) in readings.iter().enumerate() {
        let (index, path) = (index as u32, format!("readings[{index}]"));
        parts.push(match serde_json::from_str::<Form<'_>>(raw.get()) {
            Ok(form) if raw.get().starts_with('{') => Ok(Part::Reading(reading(&record, &form, index, path))),
            _ => {
                let detail = "a reading must be an object".to_owned();
                Err(Undecodable { reason: Reason::FieldType, field: path, detail, index })
            }
        });
    }
    Ok(parts)
}

fn control(text: &str) -> Result<DecodedControl<'_>, Undecodable> {
    let form: ControlForm<'_> = serde_json::from_str(text).map_err(|_| {
        let detail = "a request has the fields control, patient, device, episode, by and no others";
        Undecodable::record(Reason::Control, "control", detail)
    })?;
    Ok(DecodedControl {
        action: field(Some(form.control)),
        patient: field(form.patient),
        device: field(form.device),
        episode: field(form.episode),
        by: field(form.by),
        index: 0,
    })
}

/// Reads a record; where it is no JSON because of bare `NaN` or `Infinity`, reads it once more with these as texts.
pub(super) fn read_or_repair<'a>(
    text: &'a str,
    read: impl for<'t> Fn(&'t str) -> Result<Vec<Decoded<'t>>, Undecodable>,
) -> Result<Vec<Decoded<'a>>, Undecodable> {
    let fault = match read(text) {
        Err(fault) if fault.reason == Reason::Parse => fault,
        result => return result,
    };
    let repaired = quote_bare_numbers(text).ok_or(fault)?;
    Ok(read(&repaired)?.into_iter().map(|part| part.map(Part::into_owned)).collect())
}

/// The text with bare `NaN`, `Infinity` and `-Infinity` in quotes; `None` if there are none.
fn quote_bare_numbers(text: &str) -> Option<String> {
    const BARE: [&str; 3] = ["NaN", "Infinity", "-Infinity"];
    let (mut repaired, mut kept) = (String::new(), 0);
    let (mut at, mut in_text) = (0, false);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let found = BARE.iter().find(|bare| !in_text && bytes[at..].starts_with(bare.as_bytes()));
        if let Some(bare) = found {
            repaired.push_str(&text[kept..at]);
            repaired.extend(["\"", *bare, "\""]);
            at += bare.len();
            kept = at;
            continue;
        }
        match bytes[at] {
            b'\\' if in_text => at += 1,
            b'"' => in_text = !in_text,
            _ => {}
        }
        at += 1;
    }
    repaired.push_str(&text[kept..]);
    (kept > 0).then_some(repaired)
}

fn reading<'a>(record: &Form<'a>, own: &Form<'a>, index: u32, path: String) -> DecodedReading<'a> {
    DecodedReading {
        patient: field(own.patient.or(record.patient)),
        device: field(own.device.or(record.device)),
        label: field(own.signal),
        method: field(own.method.or(record.method)),
        value: field(own.value),
        unit: field(own.unit),
        time: field(own.time.or(record.time)),
        quality: field(own.quality.or(record.quality)),
        change: field(own.change.or(record.change)),
        index,
        path,
    }
}

pub(super) fn field(raw: Option<&RawValue>) -> RawField<'_> {
    let Some(raw) = raw else {
        return RawField::Absent;
    };
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'"') => {
            let inner = &text[1..text.len() - 1];
            if inner.contains('\\') {
                serde_json::from_str::<String>(text).map_or(RawField::Nested, |text| RawField::Text(Cow::Owned(text)))
            } else {
                RawField::Text(Cow::Borrowed(inner))
            }
        }
        Some(b'n') => RawField::Null,
        Some(b't') => RawField::Bool(true),
        Some(b'f') => RawField::Bool(false),
        Some(b'{' | b'[') => RawField::Nested,
        _ => RawField::Number(text),
    }
}

/// Where parsing stopped, without quoting the record.
pub(super) fn not_json(expected: &str, error: &serde_json::Error) -> Undecodable {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Syntax => "a syntax error",
        serde_json::error::Category::Data => "it is not an object of the expected form",
        serde_json::error::Category::Io => "it cannot be read",
    };
    let (line, column) = (error.line(), error.column());
    Undecodable::record(Reason::Parse, "", format!("not {expected}: {what} at line {line}, column {column}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_reading_and_many_share_one_form() {
        let one =
            JsonDecoder.decode(br#"{"patient":"p","device":"d","time":1,"signal":"HR","value":null,"extra":[1]}"#);
        let [Ok(Part::Reading(one))] = &one[..] else { panic!("{one:?}") };
        assert_eq!((&one.value, &one.unit), (&RawField::Null, &RawField::Absent));
        let many = JsonDecoder.decode(
            br#"{"patient":"p","device":"d","time":"t","readings":[{"signal":"a\"b","value":9.70e1},{"signal":"HR","device":"e"},7]}"#,
        );
        let [Ok(Part::Reading(first)), Ok(Part::Reading(second)), Err(third)] = &many[..] else { panic!("{many:?}") };
        assert_eq!(first.label, RawField::Text("a\"b".into()));
        assert_eq!(first.value, RawField::Number("9.70e1"));
        assert_eq!((&second.device, second.index), (&RawField::Text("e".into()), 1));
        assert_eq!((third.reason, third.field.as_str()), (Reason::FieldType, "readings[2]"));
    }

    #[test]
    fn what_cannot_be_taken_apart_names_place_and_reason_but_no_content() {
        for (text, reason, field) in [
            (r#"{"patient":"Jane Doe","val"#, Reason::Parse, ""),
            ("", Reason::Parse, ""),
            ("[1,2]", Reason::Parse, ""),
            ("{}", Reason::NoReading, ""),
            (r#"{"readings":[]}"#, Reason::NoReading, "readings"),
            (r#"{"patient":"Jane Doe","value":NaN}"#, Reason::NoReading, ""),
            (r#"{"patient":"Jane Doe","value":NaNny}"#, Reason::Parse, ""),
            (r#"{"patient":"Jane Doe","control":"discharge","ward":"4"}"#, Reason::Control, "control"),
            (r#"{"control":"discharge","readings":[]}"#, Reason::Control, "control"),
        ] {
            let decoded = JsonDecoder.decode(text.as_bytes());
            let [Err(fault)] = &decoded[..] else { panic!("{text}: {decoded:?}") };
            assert_eq!((fault.reason, fault.field.as_str()), (reason, field), "{text}");
            assert!(!fault.detail.contains("Jane"), "{}", fault.detail);
        }
        assert!(JsonDecoder.decode(b"\xff\xfe")[0].is_err());
        assert!(JsonDecoder.decode(b"\xef\xbb\xbf{\"signal\":\"HR\"}")[0].is_ok(), "a byte order mark is no fault");
    }

    /// A06, A07.
    #[test]
    fn bare_nan_and_infinity_cost_their_reading_the_value_and_the_others_nothing() {
        let record = br#"{"patient":"p","device":"NaN \"d","time":"t","readings":[{"signal":"HR","value":NaN},{"signal":"spo2","value":97},{"signal":"RR","value":-Infinity}]}"#;
        let parts: Vec<DecodedReading<'_>> = JsonDecoder
            .decode(record)
            .into_iter()
            .map(|part| part.expect("a part").reading().expect("a reading"))
            .collect();
        let values: Vec<&RawField<'_>> = parts.iter().map(|reading| &reading.value).collect();
        let text = |text: &'static str| RawField::Text(text.into());
        assert_eq!(values, [&text("NaN"), &text("97"), &text("-Infinity")]);
        assert_eq!(parts[0].device, text("NaN \"d"));
    }

    #[test]
    fn a_request_is_a_record_of_its_own() {
        let parts = JsonDecoder.decode(br#"{"control":"standby","patient":"p7","device":"mon-3","id":"x"}"#);
        let [Ok(Part::Control(control))] = &parts[..] else { panic!("{parts:?}") };
        let text = |text: &'static str| RawField::Text(text.into());
        assert_eq!(
            (&control.action, &control.patient, &control.device),
            (&text("standby"), &text("p7"), &text("mon-3"))
        );
        assert_eq!(control.episode, RawField::Absent);
    }

    /// G12, G25.
    #[test]
    fn what_is_too_large_is_refused_as_a_whole_and_long_texts_are_left_to_the_normalizer() {
        let list = vec![r#"{"signal":"HR"}"#; READINGS_MAX + 1].join(",");
        let record = format!(r#"{{"readings":[{list}]}}"#);
        let parts = JsonDecoder.decode(record.as_bytes());
        assert!(matches!(&parts[..], [Err(fault)] if fault.field == "readings"), "{} parts", parts.len());
        let long =
            format!(r#"{{"signal":"{}","extra":{}{}}}"#, "x".repeat(1 << 20), "[".repeat(5_000), "]".repeat(5_000));
        assert!(!JsonDecoder.decode(long.as_bytes()).is_empty());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!JsonDecoder.decode(&bytes).is_empty());
        }

        #[test]
        fn decoding_text_that_looks_like_json_never_panics(text in "[\\{\\}\\[\\]\",:a-z0-9\\\\ ]{0,80}") {
            prop_assert!(!JsonDecoder.decode(text.as_bytes()).is_empty());
        }
    }
}
