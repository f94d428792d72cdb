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
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, UInt8Array, UInt32Array};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::Micros;
use crate::catalogue::SignalIndex;

/// Version of the canonical reading schema, as written in the `wardbell` header of each record.
pub const READING_VERSION: &str = "2";
/// Columns of version 1, which came before comparator, change and policies.
pub const COLUMNS_OF_VERSION_1: usize = 14;

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
        match code {
            0 => Some(Ok),
            1 => Some(Converted),
            2 => Some(Questionable),
            3 => Some(Missing),
            4 => Some(Technical),
            5 => Some(Test),
            _ => Option::None,
        }
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

/// How far a value is known: `<20` of a meter at the end of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Comparator {
    /// The value itself.
    #[default]
    None = 0,
    Less = 1,
    LessOrEqual = 2,
    Greater = 3,
    GreaterOrEqual = 4,
}

impl Comparator {
    pub fn from_code(code: u8) -> Option<Self> {
        use Comparator::*;
        match code {
            0 => Some(None),
            1 => Some(Less),
            2 => Some(LessOrEqual),
            3 => Some(Greater),
            4 => Some(GreaterOrEqual),
            _ => Option::None,
        }
    }

    /// As written before a number; empty for a plain value.
    pub fn symbol(self) -> &'static str {
        match self {
            Comparator::None => "",
            Comparator::Less => "<",
            Comparator::LessOrEqual => "<=",
            Comparator::Greater => ">",
            Comparator::GreaterOrEqual => ">=",
        }
    }
}

/// What a reading does to one that was sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Change {
    /// Nothing: it is a reading of its own.
    #[default]
    None = 0,
    /// Its value replaces that of the sample with the same event time.
    Corrects = 1,
    /// The sample with the same event time was never true.
    Retracts = 2,
}

impl Change {
    pub fn from_code(code: u8) -> Option<Self> {
        use Change::*;
        match code {
            0 => Some(None),
            1 => Some(Corrects),
            2 => Some(Retracts),
            _ => Option::None,
        }
    }
}

/// An inference that a connector's file allows by name. Off by default, counted, and named in each alert that used it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Policy {
    /// A comma is the decimal mark.
    DecimalComma = 0,
    /// A comma groups thousands.
    ThousandsComma = 1,
    /// A signal that came without a unit is in the unit the file names for it.
    DefaultUnit = 2,
    /// A temperature without a unit is °C or °F, whichever is possible.
    InferTemperatureUnit = 3,
    /// A fraction between 0 and 1 is a percentage.
    ScaleFraction = 4,
    /// A time without zone is in the zone the file names.
    AssumeZone = 5,
    /// 03/04 is the third of April.
    DayFirst = 6,
    /// 03/04 is the fourth of March.
    MonthFirst = 7,
    /// A number such as 46082.43 is a day count of a spreadsheet.
    SpreadsheetTime = 8,
    /// A reading without a time of its own counts at its record's.
    RecordTime = 9,
    /// A share of a gas in percent is a pressure at the barometric pressure the file names.
    BarometricPressure = 10,
}

impl Policy {
    pub const ALL: [Policy; 11] = [
        Policy::DecimalComma,
        Policy::ThousandsComma,
        Policy::DefaultUnit,
        Policy::InferTemperatureUnit,
        Policy::ScaleFraction,
        Policy::AssumeZone,
        Policy::DayFirst,
        Policy::MonthFirst,
        Policy::SpreadsheetTime,
        Policy::RecordTime,
        Policy::BarometricPressure,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Policy::DecimalComma => "decimal_comma",
            Policy::ThousandsComma => "thousands_comma",
            Policy::DefaultUnit => "default_unit",
            Policy::InferTemperatureUnit => "infer_temperature_unit",
            Policy::ScaleFraction => "scale_fraction",
            Policy::AssumeZone => "assume_zone",
            Policy::DayFirst => "day_first",
            Policy::MonthFirst => "month_first",
            Policy::SpreadsheetTime => "spreadsheet_time",
            Policy::RecordTime => "record_time",
            Policy::BarometricPressure => "barometric_pressure",
        }
    }
}

/// The policies that had a part in one reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Policies(pub u32);

impl Policies {
    pub const NONE: Policies = Policies(0);

    pub fn insert(&mut self, policy: Policy) {
        self.0 |= 1 << policy as u8;
    }

    pub fn contains(self, policy: Policy) -> bool {
        self.0 & (1 << policy as u8) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Policy> {
        Policy::ALL.into_iter().filter(move |policy| self.contains(*policy))
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

            #[inline]
            pub fn from_code(code: u8) -> Option<Self> {
                const BY_CODE: [Option<Reason>; 256] = {
                    let mut by_code = [None; 256];
                    $(by_code[$code] = Some(Reason::$name);)*
                    by_code
                };
                BY_CODE[usize::from(code)]
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
    /// The source says it is switched off: nothing is expected of it until its next value.
    Off = 9, "off";
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
    /// The unit needs something else to be converted (barometric pressure).
    UnitContext = 53, "E_UNIT_CONTEXT";
    /// The value carries a unit of its own that is not the one in the unit field.
    UnitConflict = 54, "E_UNIT_CONFLICT";
    /// Outside what could exist in a living or dying patient.
    Range = 60, "E_RANGE";
    /// A systolic pressure below its diastolic one.
    PressureOrder = 61, "E_BP_ORDER";
    /// Not a time.
    TimeParse = 70, "E_TIME_PARSE";
    /// A local time without zone or offset.
    TimeZone = 71, "E_TIME_ZONE";
    /// Day and month cannot be told apart without a declared order.
    TimeAmbiguous = 72, "E_TIME_AMBIGUOUS";
    /// A time too coarse to be a reading's.
    TimePrecision = 73, "E_TIME_PRECISION";
    /// A local time that the change to or from summer time left out (shifted by its length) or repeats (the one nearer to
    /// its record's time is taken).
    TimeShifted = 74, "E_TIME_DST";
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
    /// A control request that a source may not make, or one without what it needs.
    Control = 90, "E_CONTROL";
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
    /// How far the value is known.
    pub comparator: Comparator,
    pub change: Change,
    /// Inferences that had a part in it.
    pub policies: Policies,
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
                field("comparator", DataType::UInt8, false, "how far the value is known: 0 as it is, 1 <, 2 <=, 3 >, 4 >="),
                field("change", DataType::UInt8, false, "0 a reading of its own, 1 corrects, 2 retracts the sample with this event time"),
                field("policies", DataType::UInt32, false, "bits of the policies that had a part in it"),
            ];
            let metadata = HashMap::from([("wardbell.reading".to_owned(), READING_VERSION.to_owned())]);
            Arc::new(Schema::new_with_metadata(fields, metadata))
        })
        .clone()
}

/// The schema of version 1, which batches written before version 2 have.
pub fn reading_schema_1() -> SchemaRef {
    let fields: Vec<_> = reading_schema().fields().iter().take(COLUMNS_OF_VERSION_1).cloned().collect();
    Arc::new(Schema::new(fields))
}

/// A batch of version 1 in the form of this version: plain values, no changes, no policies.
///
/// # Errors
/// If the batch is not of [`reading_schema_1`].
pub fn upgrade_from_1(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let (n_rows, mut columns) = (batch.num_rows(), batch.columns().to_vec());
    columns.push(Arc::new(UInt8Array::from(vec![0; n_rows])));
    columns.push(Arc::new(UInt8Array::from(vec![0; n_rows])));
    columns.push(Arc::new(UInt32Array::from(vec![0; n_rows])));
    RecordBatch::try_new(reading_schema(), columns)
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
    comparator: UInt8Builder,
    change: UInt8Builder,
    policies: UInt32Builder,
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
        self.comparator.append_value(row.comparator as u8);
        self.change.append_value(row.change as u8);
        self.policies.append_value(row.policies.0);
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
            Arc::new(self.comparator.finish()),
            Arc::new(self.change.finish()),
            Arc::new(self.policies.finish()),
        ];
        RecordBatch::try_new(reading_schema(), columns).expect("every push appends to every column")
    }
}

/// Typed columns of a canonical batch; rows are read by index, without copying.
#[derive(Debug, Clone, Copy)]
pub struct ReadingColumns<'a> {
    patient: &'a StringArray,
    device: &'a StringArray,
    signal: &'a [u16],
    method: &'a StringArray,
    value: &'a Int64Array,
    quality: &'a [u8],
    reason: &'a [u8],
    event_time: &'a [i64],
    source_time: &'a [i64],
    append_time: &'a Int64Array,
    source_topic: &'a StringArray,
    source_partition: &'a [i32],
    source_offset: &'a [i64],
    source_index: &'a [u32],
    comparator: &'a [u8],
    change: &'a [u8],
    policies: &'a [u32],
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
            signal: batch.column(2).as_primitive::<UInt16Type>().values(),
            method: batch.column(3).as_string(),
            value: batch.column(4).as_primitive::<Int64Type>(),
            quality: batch.column(5).as_primitive::<UInt8Type>().values(),
            reason: batch.column(6).as_primitive::<UInt8Type>().values(),
            event_time: batch.column(7).as_primitive::<Int64Type>().values(),
            source_time: batch.column(8).as_primitive::<Int64Type>().values(),
            append_time: batch.column(9).as_primitive::<Int64Type>(),
            source_topic: batch.column(10).as_string(),
            source_partition: batch.column(11).as_primitive::<Int32Type>().values(),
            source_offset: batch.column(12).as_primitive::<Int64Type>().values(),
            source_index: batch.column(13).as_primitive::<UInt32Type>().values(),
            comparator: batch.column(14).as_primitive::<UInt8Type>().values(),
            change: batch.column(15).as_primitive::<UInt8Type>().values(),
            policies: batch.column(16).as_primitive::<UInt32Type>().values(),
        })
    }

    pub fn len(&self) -> usize {
        self.signal.len()
    }

    pub fn is_empty(&self) -> bool {
        self.signal.is_empty()
    }

    /// The first row that names a signal, quality, reason, comparator or change that this version does not know.
    pub fn first_unknown(&self, n_signals: usize) -> Option<usize> {
        // Column by column: a batch without any is recognized without looking at its rows one by one.
        let first = |codes: &[u8], is_known: fn(u8) -> bool| codes.iter().position(|code| !is_known(*code));
        let unknown = [
            self.signal.iter().position(|signal| usize::from(*signal) >= n_signals),
            first(self.quality, |code| Quality::from_code(code).is_some()),
            first(self.reason, |code| Reason::from_code(code).is_some()),
            first(self.comparator, |code| Comparator::from_code(code).is_some()),
            first(self.change, |code| Change::from_code(code).is_some()),
        ];
        unknown.into_iter().flatten().min()
    }

    /// Row `i`, or `None` if one of its codes is not of this version.
    #[inline]
    pub fn row(&self, i: usize) -> Option<ReadingRow<'a>> {
        Some(ReadingRow {
            patient: self.patient.value(i),
            device: self.device.value(i),
            signal: SignalIndex(self.signal[i]),
            method: self.method.value(i),
            value: self.value.is_valid(i).then(|| self.value.value(i)),
            quality: Quality::from_code(self.quality[i])?,
            reason: Reason::from_code(self.reason[i])?,
            event_time_us: self.event_time[i],
            source_time_us: self.source_time[i],
            append_time_us: self.append_time.is_valid(i).then(|| self.append_time.value(i)),
            source_topic: self.source_topic.value(i),
            source_partition: self.source_partition[i],
            source_offset: self.source_offset[i],
            source_index: self.source_index[i],
            comparator: Comparator::from_code(self.comparator[i])?,
            change: Change::from_code(self.change[i])?,
            policies: Policies(self.policies[i]),
        })
    }

    /// Topic, partition and offset of the source record of row `i`, and its time stamps: own and append time.
    #[inline]
    pub fn source(&self, i: usize) -> (&'a str, i32, i64, Micros, Option<Micros>) {
        let append_time = self.append_time.is_valid(i).then(|| self.append_time.value(i));
        (self.source_topic.value(i), self.source_partition[i], self.source_offset[i], self.source_time[i], append_time)
    }

    /// Patient, device, method and signal of row `i`: what its series is found by.
    #[inline]
    pub fn names(&self, i: usize) -> (&'a str, &'a str, &'a str, SignalIndex) {
        (self.patient.value(i), self.device.value(i), self.method.value(i), SignalIndex(self.signal[i]))
    }

    /// Reads all columns once, one after the other: the processor's cache then has them when rows are read across.
    pub fn touch(&self) -> u64 {
        let longs =
            [self.event_time, self.source_time, self.source_offset, self.append_time.values(), self.value.values()];
        let longs = longs.into_iter().flatten().fold(0, |touched, long| touched ^ long) as u64;
        let texts = [self.patient, self.device, self.method, self.source_topic];
        let offsets = texts.iter().flat_map(|text| text.value_offsets()).fold(0, |touched, offset| touched ^ offset);
        let bytes = [self.quality, self.reason, self.comparator, self.change].into_iter();
        let bytes = bytes.chain(texts.iter().map(|text| text.value_data()));
        let bytes = bytes.flatten().fold(0, |touched, byte| touched ^ byte);
        let words = self.source_index.iter().chain(self.policies).fold(0, |touched, word| touched ^ word);
        let partitions = self.source_partition.iter().fold(0, |touched, partition| touched ^ partition);
        longs ^ u64::from(bytes) ^ u64::from(words) ^ (offsets ^ partitions) as u64
    }

    /// End (exclusive) of the run of rows that came from the same source record as row `start`.
    pub fn record_end(&self, start: usize) -> usize {
        let (topic, partition, offset) =
            (self.source_topic.value(start), self.source_partition[start], self.source_offset[start]);
        let mut end = start + 1;
        while end < self.len()
            && self.source_offset[end] == offset
            && self.source_partition[end] == partition
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
            comparator: Comparator::Less,
            change: Change::None,
            policies: Policies::NONE,
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
