//! How readings and control records look on the canonical log.
//!
//! Readings: one Arrow IPC record-batch message without its schema (the version in the header names it), a little-endian
//! length before the message, its body behind. Control records: JSON. Both carry the header `wardbell` with kind and
//! version; readings also name the signal catalogue they were made with and, since there is more than one way to read a
//! source record, the normalizer set.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::reader::read_record_batch;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_schema::ArrowError;
use wardbell_schemas::control::ControlRecord;
use wardbell_schemas::reading::{READING_VERSION, reading_schema, reading_schema_1, upgrade_from_1};

use crate::log::{Outgoing, Record};

const HEADER: &str = "wardbell";
const CATALOGUE_HEADER: &str = "catalogue";
const NORMALIZER_HEADER: &str = "normalizer";
const CONTROL: &str = "control/1";

/// One canonical record.
#[derive(Debug, Clone)]
pub enum Canonical {
    Readings(RecordBatch),
    Control(ControlRecord),
}

/// A record of the canonical topic that is not ours, or not of this version.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    #[error("the record has no `wardbell` header: something else writes to the canonical topic")]
    Foreign,
    #[error("kind and version `{found}` are not known to this binary")]
    Version { found: String },
    #[error("the readings were made with another signal catalogue ({found})")]
    Catalogue { found: String },
    #[error("the record is damaged")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A batch as a record for one partition of the canonical topic.
///
/// # Errors
/// Whatever Arrow's writer says; a batch of the canonical schema can always be written.
pub fn readings_record(
    topic: &str,
    partition: i32,
    batch: &RecordBatch,
    catalogue_hash: &str,
) -> Result<Outgoing, ArrowError> {
    let mut tracker = DictionaryTracker::new(false);
    let (_, encoded) = IpcDataGenerator::default().encode(
        batch,
        &mut tracker,
        &IpcWriteOptions::default(),
        &mut IpcWriteContext::default(),
    )?;
    let mut value = Vec::with_capacity(4 + encoded.ipc_message.len() + encoded.arrow_data.len());
    value.extend_from_slice(&(encoded.ipc_message.len() as u32).to_le_bytes());
    value.extend_from_slice(&encoded.ipc_message);
    value.extend_from_slice(&encoded.arrow_data);
    Ok(Outgoing {
        topic: topic.to_owned(),
        partition,
        key: None,
        value: Some(value),
        headers: vec![
            (HEADER.to_owned(), format!("readings/{READING_VERSION}").into_bytes()),
            (CATALOGUE_HEADER.to_owned(), catalogue_hash.as_bytes().to_vec()),
        ],
        time_us: None,
    })
}

/// Names the normalizer set that made a batch: what its connectors' files say, in short.
#[must_use]
pub fn normalized_with(mut record: Outgoing, normalizer: &str) -> Outgoing {
    record.headers.push((NORMALIZER_HEADER.to_owned(), normalizer.as_bytes().to_vec()));
    record
}

/// The normalizer set that made a batch; empty for batches of versions that did not say.
pub fn normalizer(record: &Record) -> &[u8] {
    record.header(NORMALIZER_HEADER).unwrap_or_default()
}

/// A control record for one partition of the canonical topic.
///
/// # Panics
/// Never: control records are plain data.
pub fn control_record(topic: &str, partition: i32, control: &ControlRecord) -> Outgoing {
    Outgoing {
        topic: topic.to_owned(),
        partition,
        key: None,
        value: Some(serde_json::to_vec(control).expect("control records are plain data")),
        headers: vec![(HEADER.to_owned(), CONTROL.as_bytes().to_vec())],
        time_us: None,
    }
}

/// Reads a record of the canonical topic.
///
/// # Errors
/// [`CanonicalError`]: the caller skips the record, counts it and says so.
pub fn read(record: &Record, catalogue_hash: &str) -> Result<Canonical, CanonicalError> {
    let kind = record.header(HEADER).ok_or(CanonicalError::Foreign)?;
    let value = record.value.as_deref().unwrap_or_default();
    let damaged = |what: &str| CanonicalError::Damaged(what.to_owned().into());
    if kind == CONTROL.as_bytes() {
        // Not the error itself: it quotes what it found, and control records name patients.
        let place = |error: serde_json::Error| {
            damaged(&format!("not a control record of this version, line {}, column {}", error.line(), error.column()))
        };
        let control = serde_json::from_slice(value).map_err(place)?;
        return Ok(Canonical::Control(control));
    }
    let is_old = kind == b"readings/1";
    if !is_old && kind != format!("readings/{READING_VERSION}").as_bytes() {
        return Err(CanonicalError::Version { found: String::from_utf8_lossy(kind).into_owned() });
    }
    let made_with = record.header(CATALOGUE_HEADER).unwrap_or_default();
    if made_with != catalogue_hash.as_bytes() {
        return Err(CanonicalError::Catalogue { found: String::from_utf8_lossy(made_with).into_owned() });
    }
    let length = value.first_chunk::<4>().ok_or_else(|| damaged("too short"))?;
    let length = u32::from_le_bytes(*length) as usize;
    let message = value.get(4..4 + length).ok_or_else(|| damaged("its length is wrong"))?;
    let body = &value[4 + length..];
    let message =
        arrow_ipc::root_as_message(message).map_err(|error| CanonicalError::Damaged(error.to_string().into()))?;
    let header = message.header_as_record_batch().ok_or_else(|| damaged("it is not a record batch"))?;
    // Arrow slices the body where the message says; what lies outside would end the process, so it is looked at first.
    let inside = |buffer: &arrow_ipc::Buffer| {
        let end = buffer.offset().checked_add(buffer.length());
        buffer.offset() >= 0 && buffer.length() >= 0 && end.is_some_and(|end| end <= body.len() as i64)
    };
    let whole = message.bodyLength() == body.len() as i64;
    if !whole || !header.buffers().is_some_and(|buffers| buffers.iter().all(inside)) {
        return Err(damaged("its columns do not fit its body"));
    }
    let schema = if is_old { reading_schema_1() } else { reading_schema() };
    let (dictionaries, version) = (HashMap::new(), message.version());
    // Arrow still asserts on some damaged lengths of columns; such a record must not end the partition.
    let read = || read_record_batch(&Buffer::from(body), header, Arc::clone(&schema), &dictionaries, None, &version);
    let batch = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .map_err(|_| damaged("its columns do not fit its body"))?
        .map_err(|error| CanonicalError::Damaged(error.into()))?;
    let batch =
        if is_old { upgrade_from_1(&batch).map_err(|error| CanonicalError::Damaged(error.into()))? } else { batch };
    Ok(Canonical::Readings(batch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardbell_schemas::catalogue::{Catalogue, SignalIndex};
    use wardbell_schemas::control::Control;
    use wardbell_schemas::reading::{Change, Comparator, Policies, Quality, ReadingBatchBuilder, ReadingRow, Reason};

    fn batch(n: usize) -> RecordBatch {
        let mut builder = ReadingBatchBuilder::default();
        for i in 0..n {
            builder.push(&ReadingRow {
                patient: "p7",
                device: "mon-3",
                signal: SignalIndex(7),
                method: "-",
                value: (i % 3 != 0).then_some(i as i64),
                quality: Quality::Ok,
                reason: Reason::None,
                event_time_us: i as i64,
                source_time_us: i as i64,
                append_time_us: Some(i as i64),
                source_topic: "devices",
                source_partition: 0,
                source_offset: i as i64,
                source_index: 0,
                comparator: Comparator::None,
                change: Change::None,
                policies: Policies::NONE,
            });
        }
        builder.finish()
    }

    fn written(outgoing: Outgoing) -> Record {
        Record {
            partition: outgoing.partition,
            offset: 0,
            time_us: 0,
            append_us: None,
            key: outgoing.key,
            value: outgoing.value,
            headers: outgoing.headers,
        }
    }

    #[test]
    fn batches_and_control_records_are_read_as_written() {
        let hash = &Catalogue::builtin().hash;
        for n in [1, 5, 150] {
            let record = written(readings_record("t", 0, &batch(n), hash).expect("writes"));
            let Ok(Canonical::Readings(read_back)) = read(&record, hash) else { panic!("{n} rows") };
            assert_eq!((read_back, normalizer(&record)), (batch(n), &b""[..]));
            let named = written(normalized_with(readings_record("t", 0, &batch(n), hash).expect("writes"), "a set"));
            let Ok(Canonical::Readings(read_back)) = read(&named, hash) else { panic!("{n} rows") };
            assert_eq!((read_back, normalizer(&named)), (batch(n), &b"a set"[..]));
        }
        let control = ControlRecord { id: "1".to_owned(), control: Control::Discharge { patient: "p".to_owned() } };
        let record = written(control_record("t", 0, &control));
        assert!(matches!(read(&record, hash), Ok(Canonical::Control(read_back)) if read_back == control));
    }

    #[test]
    fn what_is_not_ours_or_damaged_is_an_error_and_no_panic() {
        let hash = &Catalogue::builtin().hash;
        let good = written(readings_record("t", 0, &batch(20), hash).expect("writes"));
        assert!(matches!(read(&good, "other"), Err(CanonicalError::Catalogue { .. })));
        assert!(matches!(read(&Record { headers: Vec::new(), ..good.clone() }, hash), Err(CanonicalError::Foreign)));
        let value = good.value.clone().expect("a value");
        for cut in 0..value.len() {
            let damaged = Record { value: Some(value[..cut].to_vec()), ..good.clone() };
            assert!(read(&damaged, hash).is_err(), "cut at {cut} of {}", value.len());
        }
        for i in 0..value.len() {
            let mut bytes = value.clone();
            bytes[i] ^= 0x55;
            // A flipped byte may leave a readable batch; it must never end the process.
            let _ = read(&Record { value: Some(bytes), ..good.clone() }, hash);
        }
    }
}
