//! Mapped formats: JSON and CSV of a vendor's own making, taken apart as a connector's file says. No code per vendor.
//!
//! A JSON record is an object; its readings are the elements of a list, also of lists in lists (the long form), or stand
//! each at a place of its own (the wide form). A CSV record is some rows, with or without a header row, again in long or
//! wide form. What stands where is all that is said here; what labels, units and times mean is said in the same file and
//! used by the normalizer. How a file is written: `connectors/CONNECTOR_FILES.md`.

mod csv;
mod field;
mod json;
mod path;

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use wardbell_schemas::fault::KeyFault;
use wardbell_schemas::reading::Reason;

use super::{Decoded, Decoder, READINGS_MAX, Undecodable};
use crate::decode::json::read_or_repair;

/// The sections of a connector's file that say where things stand.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct MappingForm {
    pub encoding: Encoding,
    /// JSON: path to the list of readings.
    pub records: Option<String>,
    pub fields: FieldsForm,
    pub wide: Vec<WideForm>,
    pub csv: CsvForm,
    pub control: ControlPlaces,
}

/// How the bytes of a record are text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Encoding {
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    #[serde(rename = "latin-1")]
    Latin1,
    /// With a byte order mark, or little-endian.
    #[serde(rename = "utf-16")]
    Utf16,
}

/// Where the fields of a reading stand.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct FieldsForm {
    pub patient: Option<PlaceForm>,
    pub device: Option<PlaceForm>,
    pub label: Option<PlaceForm>,
    pub method: Option<PlaceForm>,
    pub value: Option<PlaceForm>,
    pub unit: Option<PlaceForm>,
    pub time: Option<PlaceForm>,
    pub quality: Option<PlaceForm>,
    pub change: Option<PlaceForm>,
}

/// A reading with a place of its own.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct WideForm {
    /// Path or column.
    pub at: PlaceForm,
    pub signal: Option<String>,
    pub method: Option<String>,
    /// The unit that the vendor documents for it.
    pub unit: Option<String>,
}

impl WideForm {
    /// The label that readings from here bear: the place as it is written.
    pub fn label(&self) -> String {
        match &self.at {
            PlaceForm::At(at) => at.clone(),
            PlaceForm::Column(column) => format!("column {column}"),
            PlaceForm::Constant(_) | PlaceForm::Join { .. } | PlaceForm::Key => String::new(),
        }
    }
}

/// How rows are written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CsvForm {
    /// `,` by default.
    pub delimiter: Option<String>,
    /// `"` by default; empty: none.
    pub quote: Option<String>,
    /// A row that begins with it is passed over.
    pub comment: Option<String>,
    /// Names of the columns where records have no header row. Absent: the first row of each record names them.
    pub columns: Option<Vec<String>>,
}

/// Where a request stands in a JSON record that is one.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ControlPlaces {
    /// Records that have it are requests.
    pub action: Option<PlaceForm>,
    pub patient: Option<PlaceForm>,
    pub device: Option<PlaceForm>,
    pub episode: Option<PlaceForm>,
    pub by: Option<PlaceForm>,
}

/// Where one field stands.
#[derive(Debug, Clone, PartialEq)]
pub enum PlaceForm {
    /// `"patient.id"`: a path, or the name of a column.
    At(String),
    /// `3`: a column, counted from 1.
    Column(usize),
    /// `{ constant = "pump-1" }`
    Constant(String),
    /// `{ join = ["hospital", "pid"], with = "/" }`
    Join { join: Vec<PlaceForm>, with: Option<String> },
    /// `{ key = true }`: the name of the member that the element is.
    Key,
}

/// A place that is a table. Public for the names of its keys.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PlaceTable {
    pub constant: Option<String>,
    pub join: Vec<PlaceForm>,
    pub with: Option<String>,
    pub key: bool,
}

impl<'de> Deserialize<'de> for PlaceForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Place;

        impl<'de> Visitor<'de> for Place {
            type Value = PlaceForm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a path or column name, a column number, { constant = \"...\" }, { join = [...] } or { key = true }",
                )
            }

            fn visit_str<E>(self, at: &str) -> Result<PlaceForm, E> {
                Ok(PlaceForm::At(at.to_owned()))
            }

            fn visit_i64<E: serde::de::Error>(self, column: i64) -> Result<PlaceForm, E> {
                match usize::try_from(column) {
                    Ok(column) if column > 0 => Ok(PlaceForm::Column(column)),
                    _ => Err(E::custom("columns are counted from 1")),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<PlaceForm, A::Error> {
                match PlaceTable::deserialize(MapAccessDeserializer::new(table))? {
                    PlaceTable { constant: Some(constant), join, with: None, key: false } if join.is_empty() => {
                        Ok(PlaceForm::Constant(constant))
                    }
                    PlaceTable { constant: None, join, with, key: false } if !join.is_empty() => {
                        Ok(PlaceForm::Join { join, with })
                    }
                    PlaceTable { constant: None, join, with: None, key: true } if join.is_empty() => Ok(PlaceForm::Key),
                    _ => Err(A::Error::custom("a place has one of `constant`, `join` (with `with`) and `key`")),
                }
            }
        }

        deserializer.deserialize_any(Place)
    }
}

/// A mapping ready for use.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapping {
    encoding: Encoding,
    shape: Shape,
    /// Most readings of one record.
    readings_max: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Json(Box<json::JsonShape>),
    Csv(Box<csv::CsvShape>),
}

impl Mapping {
    /// # Errors
    /// Every fault of the file's places, each with the path of its key.
    pub fn json(form: &MappingForm) -> Result<Self, Vec<KeyFault>> {
        let mut faults = Vec::new();
        let shape = json::JsonShape::new(form, &mut faults);
        if form.csv != CsvForm::default() {
            faults.push(KeyFault::new(&["csv"], "the format is JSON", "`format = \"csv\"`, or leave the section out"));
        }
        Self::of(form, Shape::Json(Box::new(shape)), faults)
    }

    /// # Errors
    /// As [`Mapping::json`].
    pub fn csv(form: &MappingForm) -> Result<Self, Vec<KeyFault>> {
        let mut faults = Vec::new();
        let shape = csv::CsvShape::new(form, &mut faults);
        if form.records.is_some() {
            faults.push(KeyFault::new(&["records"], "rows are the records of CSV", "leave it out"));
        }
        if form.control != ControlPlaces::default() {
            faults.push(KeyFault::new(&["control"], "requests are read from JSON only", "leave it out"));
        }
        Self::of(form, Shape::Csv(Box::new(shape)), faults)
    }

    fn of(form: &MappingForm, shape: Shape, mut faults: Vec<KeyFault>) -> Result<Self, Vec<KeyFault>> {
        let fields = &form.fields;
        let has_long = fields.label.is_some();
        if !form.wide.is_empty() && has_long {
            let help = "`label` belongs to the long form, [[wide]] names a label for each place: keep one of the two";
            faults.push(KeyFault::new(&["fields", "label"], "both the long and the wide form are described", help));
        }
        if form.wide.is_empty() && has_long != fields.value.is_some() {
            let help = "label = \"code\" and value = \"val\", or [[wide]] for values with a place of their own";
            faults.push(KeyFault::new(&["fields"], "the long form needs both `label` and `value`", help));
        }
        if form.wide.is_empty() && !has_long && form.control.action.is_none() {
            let help = "label = \"code\" and value = \"val\" in [fields], or [[wide]] entries";
            faults.push(KeyFault::new(&["fields"], "nothing says where readings stand", help));
        }
        if faults.is_empty() {
            Ok(Self { encoding: form.encoding, shape, readings_max: READINGS_MAX })
        } else {
            Err(faults)
        }
    }

    /// For files that are looked at as a whole, outside the pipeline: a record may hold any number of readings.
    #[must_use]
    pub fn without_limit(self) -> Self {
        Self { readings_max: usize::MAX, ..self }
    }

    /// A file of this format is one record: its records cannot be told apart by the ends of lines.
    pub fn is_whole_file(&self) -> bool {
        matches!(self.shape, Shape::Csv(_)) || self.encoding == Encoding::Utf16
    }

    fn parts<'a>(&self, text: &'a str) -> Result<Vec<Decoded<'a>>, Undecodable> {
        match &self.shape {
            Shape::Json(shape) => read_or_repair(text, |text| shape.parts(text, self.readings_max)),
            Shape::Csv(shape) => shape.parts(text, self.readings_max),
        }
    }
}

impl Decoder for Mapping {
    fn decode<'a>(&self, value: &'a [u8]) -> Vec<Decoded<'a>> {
        let parts = match text(value, self.encoding) {
            Ok(Cow::Borrowed(text)) => self.parts(text),
            Ok(Cow::Owned(text)) => {
                let owned = |part: Decoded<'_>| part.map(super::Part::into_owned);
                self.parts(&text).map(|parts| parts.into_iter().map(owned).collect())
            }
            Err(fault) => Err(fault),
        };
        parts.unwrap_or_else(|fault| vec![Err(fault)])
    }
}

/// The bytes of a record as text, without a byte order mark.
fn text(value: &[u8], encoding: Encoding) -> Result<Cow<'_, str>, Undecodable> {
    let fault = |detail: &str| Undecodable::record(Reason::Parse, "", detail);
    match encoding {
        Encoding::Utf8 => {
            let value = value.strip_prefix(b"\xef\xbb\xbf").unwrap_or(value);
            std::str::from_utf8(value).map(Cow::Borrowed).map_err(|_| fault("the record is not UTF-8"))
        }
        Encoding::Latin1 => match std::str::from_utf8(value) {
            Ok(text) if text.is_ascii() => Ok(Cow::Borrowed(text)),
            _ => Ok(Cow::Owned(value.iter().map(|byte| char::from(*byte)).collect())),
        },
        Encoding::Utf16 => {
            let (value, is_big) = match value {
                [0xfe, 0xff, rest @ ..] => (rest, true),
                [0xff, 0xfe, rest @ ..] => (rest, false),
                rest => (rest, false),
            };
            let unit = |pair: &[u8]| {
                let pair = [pair[0], pair[1]];
                if is_big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
            };
            let units = value.chunks_exact(2).map(unit);
            let text: Result<String, _> = char::decode_utf16(units).collect();
            match text {
                Ok(text) if value.len().is_multiple_of(2) => Ok(Cow::Owned(text)),
                _ => Err(fault("the record is not UTF-16")),
            }
        }
    }
}

#[cfg(test)]
mod tests;
