//! Decoders: source bytes to decoded fields. They never panic and never guess.

pub mod json;

use wardbell_schemas::decoded::DecodedReading;
use wardbell_schemas::reading::Reason;

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

/// One part of a record.
pub type Decoded<'a> = Result<DecodedReading<'a>, Undecodable>;

/// Turns one source record into readings.
pub trait Decoder: Send {
    /// One entry per reading in the record's order; a record that cannot be taken apart gives one fault. Never empty.
    fn decode<'a>(&self, value: &'a [u8]) -> Vec<Decoded<'a>>;
}
