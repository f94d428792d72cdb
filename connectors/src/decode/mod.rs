//! Decoders: source bytes to decoded fields. They never panic and never guess.

pub mod json;
pub mod mapped;

use wardbell_schemas::decoded::{DecodedControl, DecodedReading};
use wardbell_schemas::reading::Reason;

/// Readings one record may hold; a larger one is a batch export, not a stream.
const READINGS_MAX: usize = 10_000;

/// A record, or a part of it, that cannot be taken apart. Names the place and the reason, never the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable {
    pub reason: Reason,
    /// Path of the field: `readings[3].value`; empty for the record itself.
    pub field: String,
    /// In words, without anything of the record's content.
    pub detail: String,
    /// Place of the reading within the record, 0 for the record itself.
    pub index: u32,
}

impl Undecodable {
    /// A fault of the record itself.
    fn record(reason: Reason, field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { reason, field: field.into(), detail: detail.into(), index: 0 }
    }
}

/// What a record can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<'a> {
    Reading(DecodedReading<'a>),
    /// A request that influences decisions; always the whole record.
    Control(DecodedControl<'a>),
}

impl<'a> Part<'a> {
    /// The reading, if it is one.
    pub fn reading(self) -> Option<DecodedReading<'a>> {
        match self {
            Part::Reading(reading) => Some(reading),
            Part::Control(_) => None,
        }
    }

    /// The same part without its record.
    fn into_owned(self) -> Part<'static> {
        match self {
            Part::Reading(reading) => Part::Reading(reading.into_owned()),
            Part::Control(control) => Part::Control(control.into_owned()),
        }
    }
}

/// One part of a record.
pub type Decoded<'a> = Result<Part<'a>, Undecodable>;

/// Turns one source record into its parts.
pub trait Decoder: Send {
    /// One entry per reading in the record's order; a record that cannot be taken apart gives one fault. Never empty.
    fn decode<'a>(&self, value: &'a [u8]) -> Vec<Decoded<'a>>;
}
