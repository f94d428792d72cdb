//! Decoded fields: what a decoder found in a source record, before anything is decided about it.
//!
//! Decoders know wire formats and nothing else; the normalizer knows labels, units and times and no wire format. Texts
//! are borrowed from the record.

use std::borrow::Cow;

/// A field as the source wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RawField<'a> {
    #[default]
    Absent,
    Null,
    Text(Cow<'a, str>),
    /// A number, as its text.
    Number(&'a str),
    Bool(bool),
    /// A list or an object.
    Nested,
}

impl RawField<'_> {
    pub fn is_present(&self) -> bool {
        !matches!(self, RawField::Absent | RawField::Null)
    }

    /// The same field without its record, for records that had to be rewritten to be read; a number becomes its text.
    pub fn into_owned(self) -> RawField<'static> {
        match self {
            RawField::Absent => RawField::Absent,
            RawField::Null => RawField::Null,
            RawField::Text(text) => RawField::Text(Cow::Owned(text.into_owned())),
            RawField::Number(text) => RawField::Text(Cow::Owned(text.to_owned())),
            RawField::Bool(value) => RawField::Bool(value),
            RawField::Nested => RawField::Nested,
        }
    }
}

/// One reading as decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DecodedReading<'a> {
    pub patient: RawField<'a>,
    pub device: RawField<'a>,
    pub label: RawField<'a>,
    pub method: RawField<'a>,
    pub value: RawField<'a>,
    pub unit: RawField<'a>,
    pub time: RawField<'a>,
    /// What the source says about the value: `ok`, `questionable`, `missing`, `off` or `test`.
    pub quality: RawField<'a>,
    /// What the reading does to an earlier one: `corrects` or `retracts`.
    pub change: RawField<'a>,
    /// Place within its record, from 0.
    pub index: u32,
    /// Where the reading stands in the record, for people: `readings[3]`; empty for the record itself.
    pub path: String,
}

impl DecodedReading<'_> {
    /// The same reading without its record.
    pub fn into_owned(self) -> DecodedReading<'static> {
        DecodedReading {
            patient: self.patient.into_owned(),
            device: self.device.into_owned(),
            label: self.label.into_owned(),
            method: self.method.into_owned(),
            value: self.value.into_owned(),
            unit: self.unit.into_owned(),
            time: self.time.into_owned(),
            quality: self.quality.into_owned(),
            change: self.change.into_owned(),
            index: self.index,
            path: self.path,
        }
    }
}

/// A request that influences decisions and is not a reading: somebody was discharged, an alert was seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DecodedControl<'a> {
    /// What is asked for, in the source's words.
    pub action: RawField<'a>,
    pub patient: RawField<'a>,
    pub device: RawField<'a>,
    pub episode: RawField<'a>,
    /// Who asks.
    pub by: RawField<'a>,
    /// Place within its record, from 0.
    pub index: u32,
}

impl DecodedControl<'_> {
    /// The same request without its record.
    pub fn into_owned(self) -> DecodedControl<'static> {
        DecodedControl {
            action: self.action.into_owned(),
            patient: self.patient.into_owned(),
            device: self.device.into_owned(),
            episode: self.episode.into_owned(),
            by: self.by.into_owned(),
            index: self.index,
        }
    }
}
