//! The canonical reading: one measured value, after normalizing, and the Arrow schema it travels in.
//!
//! Values are integer counts of the signal's resolution, so that everything derived from them is exact. A batch holds
//! rows of one canonical partition; the rows of one source record stand together and are never split over batches.
//! The schema is part of the wire format: its version is in each record's header ([`READING_VERSION`]), and columns
//! are only ever added in a new version.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arrow_array::builder::{Int32Builder, Int64Builder, StringBuilder, UInt8Builder, UInt16Builder, UInt32Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type};
use arrow_array::{
    Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, UInt8Array, UInt16Array, UInt32Array,
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::Micros;
use crate::catalogue::SignalIndex;

/// Version of the canonical reading schema, as written in the `wardbell` header of each record.
pub const READING_VERSION: &str = "1";

/// What is known about a value when it leaves the normalizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Quality {
    /// Measured, in the canonical unit.
    Ok = 0,
    /// Measured, converted from another unit or spelling.
    Converted = 1,
    /// Measured, but doubtful; rules use it only where they say so.
    Questionable = 2,
    /// No value.
    Missing = 3,
    /// No value: the device says it did not measure.
    Technical = 4,
    /// A test or demonstration value: never alerts.
    Test = 5,
}

impl Quality {
    pub fn from_code(code: u8) -> Option<Self> {
        use Quality::*;
        [Ok, Converted, Questionable, Missing, Technical, Test].into_iter().find(|quality| *quality as u8 == code)
    }

    pub fn name(self) -> &'static str {
        match self {
            Quality::Ok => "ok",
            Quality::Converted => "converted",
            Quality::Questionable => "questionable",
            Quality::Missing => "missing",
            Quality::Technical => "technical",
            Quality::Test => "test",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why a reading has its quality, or why it could not be used. The names are stable: dashboards, dead letters
        /// and tests refer to them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[doc = $doc])* $name = $code,)* }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            pub fn name(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }

            pub fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Reason::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// Nothing to say.
    None = 0, "-";
    /// The source sent `null`.
    Null = 1, "null";
    /// The source sent no value field.
    Absent = 2, "absent";
    /// The source sent an empty text.
    Empty = 3, "empty";
    /// A sentinel that means "no value" (`-`, `***`, -32768).
    Sentinel = 4, "sentinel";
    /// Not a number.
    NotANumber = 5, "not_a_number";
    /// Zero of a signal for which zero means "not measured".
    ZeroNotMeasured = 6, "zero_not_measured";
    /// Zero of a signal for which zero may be true or a loose lead.
    ZeroSuspect = 7, "zero_suspect";
    /// The source itself flagged the value.
    SourceFlag = 8, "source_flag";
    /// The record is not valid JSON.
    Parse = 20, "E_PARSE";
    /// The record holds no reading.
    NoReading = 21, "E_NO_READING";
    /// A required field is missing.
    FieldMissing = 22, "E_FIELD_MISSING";
    /// A field has the wrong type.
    FieldType = 23, "E_FIELD_TYPE";
    /// A text is longer than allowed or holds control characters.
    FieldText = 24, "E_FIELD_TEXT";
    /// No signal has this label.
    LabelUnknown = 30, "E_LABEL_UNKNOWN";
    /// The label means different things to different vendors.
    LabelAmbiguous = 31, "E_LABEL_AMBIGUOUS";
    /// A boolean, list or object where a number belongs.
    NumberType = 40, "E_NUM_TYPE";
    /// A text that is no number.
    NumberParse = 41, "E_NUM_PARSE";
    /// A decimal or thousands comma without a declared policy.
    NumberLocale = 42, "E_NUM_LOCALE";
    /// Outside the range of exact numbers.
    NumberOverflow = 43, "E_NUM_OVERFLOW";
    /// A category state the catalogue does not know.
    StateUnknown = 44, "E_STATE_UNKNOWN";
    /// A signal with a unit came without one.
    UnitMissing = 50, "E_UNIT_MISSING";
    /// No table knows the unit.
    UnitUnknown = 51, "E_UNIT_UNKNOWN";
    /// A unit of another quantity.
    UnitQuantity = 52, "E_UNIT_QUANTITY";
    /// Outside what could exist in a living or dying patient.
    Range = 60, "E_RANGE";
    /// Not a time.
    TimeParse = 70, "E_TIME_PARSE";
    /// A local time without zone or offset.
    TimeZone = 71, "E_TIME_ZONE";
    /// Same series, time and record as an accepted reading, another value.
    DuplicateConflict = 80, "E_DUP_CONFLICT";
    /// A slow device clock: taken at broker time.
    ClockOffset = 81, "E_CLOCK_OFFSET";
    /// A device clock ahead of the broker's: taken at broker time.
    ClockFuture = 82, "E_CLOCK_FUTURE";
    /// A device clock at its reset date: taken at broker time.
    ClockEpoch = 83, "E_CLOCK_EPOCH";
    /// A repeated time stamp with a new value: taken by arrival.
    TimeCoarse = 84, "E_TIME_COARSE";
}

/// Where a reading stood in its source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SourcePosition {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Place within the record, from 0.
    pub index: u32,
}

/// One canonical reading, as the normalizer hands it to the batch builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadingRow<'a> {
    pub patient: &'a str,
    pub device: &'a str,
    pub signal: SignalIndex,
    /// Method or site qualifier; `-` if there is none.
    pub method: &'a str,
    /// Counts of the signal's resolution, or the code of a category's state; `None` without a value.
    pub value: Option<i64>,
    pub quality: Quality,
    pub reason: Reason,
    /// The device's time.
    pub event_time_us: Micros,
    /// The source record's own time stamp: the broker's, or the producer's where the topic is set so.
    pub source_time_us: Micros,
    /// When the broker appended the source record; `None` if its topic carries producer time stamps.
    pub append_time_us: Option<Micros>,
    pub source_topic: &'a str,
    pub source_partition: i32,
    pub source_offset: i64,
    pub source_index: u32,
}

/// The canonical reading schema, version [`READING_VERSION`], with a sentence and the unit of each column.
pub fn reading_schema() -> SchemaRef {
    static SCHEMA: OnceLock<SchemaRef> = OnceLock::new();
    let field = |name: &str, data_type: DataType, nullable: bool, doc: &str| {
        let metadata = HashMap::from([("doc".to_owned(), doc.to_owned())]);
        Field::new(name, data_type, nullable).with_metadata(metadata)
    };
    SCHEMA
        .get_or_init(|| {
            let fields = vec![
                field("patient", DataType::Utf8, false, "patient identifier as the source sent it"),
                field("device", DataType::Utf8, false, "device identifier as the source sent it"),
                field("signal", DataType::UInt16, false, "index into the signal catalogue named in the record's header"),
                field("method", DataType::Utf8, false, "method or site qualifier, `-` if none"),
                field("value", DataType::Int64, true, "counts of the signal's resolution, or a category's code; null without a value"),
                field("quality", DataType::UInt8, false, "0 ok, 1 converted, 2 questionable, 3 missing, 4 technical, 5 test"),
                field("reason", DataType::UInt8, false, "reason code, 0 if there is nothing to say"),
                field("event_time", DataType::Int64, false, "the device's time, µs since 1970 UTC"),
                field("source_time", DataType::Int64, false, "time stamp of the source record, µs since 1970 UTC"),
                field("append_time", DataType::Int64, true, "broker append time of the source record, µs since 1970 UTC; null if its topic has producer time stamps"),
                field("source_topic", DataType::Utf8, false, "topic of the source record"),
                field("source_partition", DataType::Int32, false, "partition of the source record"),
                field("source_offset", DataType::Int64, false, "offset of the source record"),
                field("source_index", DataType::UInt32, false, "place of the reading within its source record"),
            ];
            let metadata = HashMap::from([("wardbell.reading".to_owned(), READING_VERSION.to_owned())]);
            Arc::new(Schema::new_with_metadata(fields, metadata))
        })
        .clone()
}

/// Collects rows into one canonical batch.
#[derive(Debug, Default)]
pub struct ReadingBatchBuilder {
    patient: StringBuilder,
    device: StringBuilder,
    signal: UInt16Builder,
    method: StringBuilder,
    value: Int64Builder,
    quality: UInt8Builder,
    reason: UInt8Builder,
    event_time: Int64Builder,
    source_time: Int64Builder,
    append_time: Int64Builder,
    source_topic: StringBuilder,
    source_partition: Int32Builder,
    source_offset: Int64Builder,
    source_index: UInt32Builder,
    n_rows: usize,
}

impl ReadingBatchBuilder {
    pub fn push(&mut self, row: &ReadingRow<'_>) {
        self.patient.append_value(row.patient);
        self.device.append_value(row.device);
        self.signal.append_value(row.signal.0);
        self.method.append_value(row.method);
        self.value.append_option(row.value);
        self.quality.append_value(row.quality as u8);
        self.reason.append_value(row.reason as u8);
        self.event_time.append_value(row.event_time_us);
        self.source_time.append_value(row.source_time_us);
        self.append_time.append_option(row.append_time_us);
        self.source_topic.append_value(row.source_topic);
        self.source_partition.append_value(row.source_partition);
        self.source_offset.append_value(row.source_offset);
        self.source_index.append_value(row.source_index);
        self.n_rows += 1;
    }

    pub fn len(&self) -> usize {
        self.n_rows
    }

    pub fn is_empty(&self) -> bool {
        self.n_rows == 0
    }

    /// The rows so far as one batch; the builder is empty afterwards.
    ///
    /// # Panics
    /// Never: every push appends to every column.
    pub fn finish(&mut self) -> RecordBatch {
        self.n_rows = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.patient.finish()),
            Arc::new(self.device.finish()),
            Arc::new(self.signal.finish()),
            Arc::new(self.method.finish()),
            Arc::new(self.value.finish()),
            Arc::new(self.quality.finish()),
            Arc::new(self.reason.finish()),
            Arc::new(self.event_time.finish()),
            Arc::new(self.source_time.finish()),
            Arc::new(self.append_time.finish()),
            Arc::new(self.source_topic.finish()),
            Arc::new(self.source_partition.finish()),
            Arc::new(self.source_offset.finish()),
            Arc::new(self.source_index.finish()),
        ];
        RecordBatch::try_new(reading_schema(), columns).expect("every push appends to every column")
    }
}

/// Typed columns of a canonical batch; rows are read by index, without copying.
#[derive(Debug, Clone, Copy)]
pub struct ReadingColumns<'a> {
    patient: &'a StringArray,
    device: &'a StringArray,
    signal: &'a UInt16Array,
    method: &'a StringArray,
    value: &'a Int64Array,
    quality: &'a UInt8Array,
    reason: &'a UInt8Array,
    event_time: &'a Int64Array,
    source_time: &'a Int64Array,
    append_time: &'a Int64Array,
    source_topic: &'a StringArray,
    source_partition: &'a Int32Array,
    source_offset: &'a Int64Array,
    source_index: &'a UInt32Array,
}

impl<'a> ReadingColumns<'a> {
    /// # Errors
    /// If the batch's columns are not those of [`reading_schema`].
    pub fn try_new(batch: &'a RecordBatch) -> Result<Self, ArrowError> {
        let same = |(a, b): (&Arc<Field>, &Arc<Field>)| a.name() == b.name() && a.data_type() == b.data_type();
        let (schema, expected) = (batch.schema_ref(), reading_schema());
        if schema.fields().len() != expected.fields().len() || !schema.fields().iter().zip(expected.fields()).all(same)
        {
            return Err(ArrowError::SchemaError("the batch is not of the canonical reading schema".to_owned()));
        }
        Ok(Self {
            patient: batch.column(0).as_string(),
            device: batch.column(1).as_string(),
            signal: batch.column(2).as_primitive::<UInt16Type>(),
            method: batch.column(3).as_string(),
            value: batch.column(4).as_primitive::<Int64Type>(),
            quality: batch.column(5).as_primitive::<UInt8Type>(),
            reason: batch.column(6).as_primitive::<UInt8Type>(),
            event_time: batch.column(7).as_primitive::<Int64Type>(),
            source_time: batch.column(8).as_primitive::<Int64Type>(),
            append_time: batch.column(9).as_primitive::<Int64Type>(),
            source_topic: batch.column(10).as_string(),
            source_partition: batch.column(11).as_primitive::<Int32Type>(),
            source_offset: batch.column(12).as_primitive::<Int64Type>(),
            source_index: batch.column(13).as_primitive::<UInt32Type>(),
        })
    }

    pub fn len(&self) -> usize {
        self.signal.len()
    }

    pub fn is_empty(&self) -> bool {
        self.signal.is_empty()
    }

    /// Row `i`, or `None` if its quality or reason is not of this version.
    #[inline]
    pub fn row(&self, i: usize) -> Option<ReadingRow<'a>> {
        Some(ReadingRow {
            patient: self.patient.value(i),
            device: self.device.value(i),
            signal: SignalIndex(self.signal.value(i)),
            method: self.method.value(i),
            value: self.value.is_valid(i).then(|| self.value.value(i)),
            quality: Quality::from_code(self.quality.value(i))?,
            reason: Reason::from_code(self.reason.value(i))?,
            event_time_us: self.event_time.value(i),
            source_time_us: self.source_time.value(i),
            append_time_us: self.append_time.is_valid(i).then(|| self.append_time.value(i)),
            source_topic: self.source_topic.value(i),
            source_partition: self.source_partition.value(i),
            source_offset: self.source_offset.value(i),
            source_index: self.source_index.value(i),
        })
    }

    /// End (exclusive) of the run of rows that came from the same source record as row `start`.
    pub fn record_end(&self, start: usize) -> usize {
        let (topic, partition, offset) =
            (self.source_topic.value(start), self.source_partition.value(start), self.source_offset.value(start));
        let mut end = start + 1;
        while end < self.len()
            && self.source_offset.value(end) == offset
            && self.source_partition.value(end) == partition
            && self.source_topic.value(end) == topic
        {
            end += 1;
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_out_of_a_batch_as_they_went_in() {
        let row = ReadingRow {
            patient: "p7",
            device: "mon-3",
            signal: SignalIndex(7),
            method: "-",
            value: Some(935),
            quality: Quality::Converted,
            reason: Reason::None,
            event_time_us: 1_772_360_130_000_000,
            source_time_us: 1_772_360_130_200_000,
            append_time_us: None,
            source_topic: "devices",
            source_partition: 2,
            source_offset: 77,
            source_index: 1,
        };
        let blank =
            ReadingRow { value: None, quality: Quality::Missing, source_offset: 78, append_time_us: Some(5), ..row };
        let mut builder = ReadingBatchBuilder::default();
        for row in [&row, &row, &blank] {
            builder.push(row);
        }
        let batch = builder.finish();
        assert!(builder.is_empty());
        let columns = ReadingColumns::try_new(&batch).expect("the canonical schema");
        assert_eq!((columns.row(0), columns.row(2)), (Some(row), Some(blank)));
        assert_eq!((columns.record_end(0), columns.record_end(2)), (2, 3));
    }

    #[test]
    fn every_column_of_the_schema_is_explained() {
        for field in reading_schema().fields() {
            assert!(field.metadata().get("doc").is_some_and(|doc| !doc.is_empty()), "{}", field.name());
        }
    }

    #[test]
    fn codes_of_reasons_and_qualities_are_read_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(*reason as u8), Some(*reason));
        }
        for code in 0..=5 {
            assert_eq!(Quality::from_code(code).map(|quality| quality as u8), Some(code));
        }
        assert_eq!(Quality::from_code(6), None);
    }
}
