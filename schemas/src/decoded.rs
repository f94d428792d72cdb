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
    /// What the source says about the value: `ok`, `questionable`, `missing` or `test`.
    pub quality: RawField<'a>,
    /// Place within its record, from 0.
    pub index: u32,
    /// Where the reading stands in the record, for people: `readings[3]`; empty for the record itself.
    pub path: String,
}
