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
//! | `quality` | `ok` (default), `questionable`, `missing`, `test` |
//!
//! Fields of a reading win over those of its record; unknown fields are ignored.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use wardbell_schemas::decoded::{DecodedReading, RawField};
use wardbell_schemas::reading::Reason;

use super::{Decoded, Decoder, Undecodable};

/// Readings one record may hold; a larger one is a batch export, not a stream.
const READINGS_MAX: usize = 10_000;

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
    readings: Option<Vec<&'a RawValue>>,
}

/// Keeps `null` apart from an absent field.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Decoder for JsonDecoder {
    fn decode<'a>(&self, value: &'a [u8]) -> Vec<Decoded<'a>> {
        let fault = |reason, field: &str, detail: String| {
            vec![Err(Undecodable { reason, field: field.to_owned(), detail, index: 0 })]
        };
        let value = value.strip_prefix(b"\xef\xbb\xbf").unwrap_or(value);
        let Ok(text) = std::str::from_utf8(value) else {
            return fault(Reason::Parse, "", "the record is not UTF-8".to_owned());
        };
        let record: Form<'a> = match serde_json::from_str(text) {
            Ok(record) => record,
            Err(error) => return fault(Reason::Parse, "", position(&error)),
        };
        let Some(readings) = &record.readings else {
            if record.signal.is_none() {
                let detail = "neither `signal` nor `readings` is there".to_owned();
                return fault(Reason::NoReading, "", detail);
            }
            return vec![Ok(reading(&Form::default(), &record, 0, String::new()))];
        };
        if readings.is_empty() {
            return fault(Reason::NoReading, "readings", "the list is empty".to_owned());
        }
        if readings.len() > READINGS_MAX {
            return fault(Reason::FieldText, "readings", format!("more than {READINGS_MAX} readings in one record"));
        }
        let decode = |(index, raw): (usize, &&'a RawValue)| {
            let (index, path) = (index as u32, format!("readings[{index}]"));
            match serde_json::from_str::<Form<'a>>(raw.get()) {
                Ok(form) if raw.get().starts_with('{') => Ok(reading(&record, &form, index, path)),
                _ => {
                    let detail = "a reading must be an object".to_owned();
                    Err(Undecodable { reason: Reason::FieldType, field: path, detail, index })
                }
            }
        };
        readings.iter().enumerate().map(decode).collect()
    }
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
        index,
        path,
    }
}

fn field(raw: Option<&RawValue>) -> RawField<'_> {
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
fn position(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Syntax => "a syntax error",
        serde_json::error::Category::Data => "it is not an object of the expected form",
        serde_json::error::Category::Io => "it cannot be read",
    };
    format!("not canonical JSON: {what} at line {}, column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_reading_and_many_share_one_form() {
        let one =
            JsonDecoder.decode(br#"{"patient":"p","device":"d","time":1,"signal":"HR","value":null,"extra":[1]}"#);
        let [Ok(one)] = &one[..] else { panic!("{one:?}") };
        assert_eq!((&one.value, &one.unit), (&RawField::Null, &RawField::Absent));
        let many = JsonDecoder.decode(
            br#"{"patient":"p","device":"d","time":"t","readings":[{"signal":"a\"b","value":9.70e1},{"signal":"HR","device":"e"},7]}"#,
        );
        let [Ok(first), Ok(second), Err(third)] = &many[..] else { panic!("{many:?}") };
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
            (r#"{"patient":"Jane Doe","value":NaN}"#, Reason::Parse, ""),
        ] {
            let decoded = JsonDecoder.decode(text.as_bytes());
            let [Err(fault)] = &decoded[..] else { panic!("{text}: {decoded:?}") };
            assert_eq!((fault.reason, fault.field.as_str()), (reason, field), "{text}");
            assert!(!fault.detail.contains("Jane"), "{}", fault.detail);
        }
        assert!(JsonDecoder.decode(b"\xff\xfe")[0].is_err());
        assert!(JsonDecoder.decode(b"\xef\xbb\xbf{\"signal\":\"HR\"}")[0].is_ok(), "a byte order mark is no fault");
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
