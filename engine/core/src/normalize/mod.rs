//! Normalizing: one decoded reading becomes one canonical reading, or says why not.
//!
//! A pure function of the decoded fields and the catalogue. In order: identity, label, time, number, unit, sentinels,
//! zero, range. Nothing is guessed: a missing unit, a time without zone, a comma in a number are refused with their
//! reason and the field's path. Messages never quote a value.

use std::borrow::Cow;
use std::str::FromStr;

use jiff::Timestamp;
use wardbell_schemas::Micros;
use wardbell_schemas::catalogue::{Catalogue, Label, Signal, ZeroPolicy};
use wardbell_schemas::decimal::{Decimal, DecimalError, Ratio};
use wardbell_schemas::decoded::{DecodedReading, RawField};
use wardbell_schemas::reading::{Quality, ReadingRow, Reason};
use wardbell_schemas::units::{Conversion, UnitError};

/// Longest identifier, in characters; longer ones are payload in the wrong field.
const TEXT_MAX: usize = 200;
/// Texts that mean "no value" at every vendor seen.
const SENTINEL_TEXTS: [&str; 7] = ["-", "--", "---", "***", "?", "_NV", "n/a"];
/// Numbers that mean "no value" and cannot be a value of any signal.
const SENTINEL_NUMBERS: [i128; 2] = [-32_768, 32_767];

/// Where a record came from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// The record's time stamp.
    pub time_us: Micros,
    pub append_us: Option<Micros>,
}

/// Why a reading cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub reason: Reason,
    /// The field, below the reading's path: `value`.
    pub field: &'static str,
    /// In words, without anything of the record's content.
    pub detail: String,
}

fn refuse<T>(reason: Reason, field: &'static str, detail: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { reason, field, detail: detail.into() })
}

/// What became of a value.
struct Measured {
    value: Option<i64>,
    quality: Quality,
    reason: Reason,
}

/// Makes a canonical reading of a decoded one.
///
/// # Errors
/// [`Refused`], for the dead-letter topic.
pub fn normalize<'a>(
    decoded: &'a DecodedReading<'a>,
    source: &Source<'a>,
    catalogue: &Catalogue,
) -> Result<ReadingRow<'a>, Refused> {
    let patient = identifier(&decoded.patient, "patient")?;
    let device = identifier(&decoded.device, "device")?;
    let method = match &decoded.method {
        RawField::Absent | RawField::Null => "-",
        field => identifier(field, "method")?,
    };
    if method.contains('/') {
        return refuse(Reason::FieldText, "method", "a method must not contain `/`");
    }
    let label = identifier(&decoded.label, "signal")?;
    let signal = match catalogue.label(label) {
        Label::Known(index) => catalogue.signal(index),
        Label::Ambiguous => {
            return refuse(Reason::LabelAmbiguous, "signal", "the label means different signals to different vendors");
        }
        Label::Unknown => return refuse(Reason::LabelUnknown, "signal", "no signal of the catalogue has this label"),
    };
    let event_time_us = time(&decoded.time)?;
    let measured = flagged(measure(decoded, signal, catalogue)?, &decoded.quality)?;
    Ok(ReadingRow {
        patient,
        device,
        signal: signal.index,
        method,
        value: measured.value,
        quality: measured.quality,
        reason: measured.reason,
        event_time_us,
        source_time_us: source.time_us,
        append_time_us: source.append_us,
        source_topic: source.topic,
        source_partition: source.partition,
        source_offset: source.offset,
        source_index: decoded.index,
    })
}

fn identifier<'a>(field: &'a RawField<'a>, name: &'static str) -> Result<&'a str, Refused> {
    let text = match field {
        RawField::Absent | RawField::Null => return refuse(Reason::FieldMissing, name, "the field is required"),
        RawField::Text(text) => text.as_ref(),
        RawField::Number(text) => text,
        RawField::Bool(_) | RawField::Nested => return refuse(Reason::FieldType, name, "the field must be a text"),
    };
    let text = text.trim();
    if text.is_empty() {
        return refuse(Reason::FieldMissing, name, "the field is empty");
    }
    if text.len() > 4 * TEXT_MAX || text.chars().count() > TEXT_MAX || text.chars().any(char::is_control) {
        return refuse(
            Reason::FieldText,
            name,
            format!("longer than {TEXT_MAX} characters or with control characters"),
        );
    }
    Ok(text)
}

/// Event time in µs since 1970 UTC.
fn time(field: &RawField<'_>) -> Result<Micros, Refused> {
    let text: Cow<'_, str> = match field {
        RawField::Absent | RawField::Null => return refuse(Reason::FieldMissing, "time", "the field is required"),
        RawField::Text(text) => Cow::Borrowed(text.trim()),
        RawField::Number(text) => Cow::Borrowed(*text),
        RawField::Bool(_) | RawField::Nested => return refuse(Reason::FieldType, "time", "the field must be a time"),
    };
    if text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return epoch(&text);
    }
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(timestamp.as_microsecond());
    }
    if text.parse::<jiff::civil::DateTime>().is_ok() {
        return refuse(
            Reason::TimeZone,
            "time",
            "a local time without zone or offset; add `Z` or an offset like +01:00",
        );
    }
    refuse(Reason::TimeParse, "time", "not a time; expected RFC 3339 with zone or offset, or an epoch number")
}

/// Seconds, milliseconds, microseconds or nanoseconds by magnitude: unambiguous from 2001 to 2286.
fn epoch(text: &str) -> Result<Micros, Refused> {
    let whole: i128 = text.split('.').next().and_then(|whole| whole.parse().ok()).unwrap_or(0);
    let digits = if whole > 0 { whole.ilog10() } else { 0 };
    let per_unit = match digits {
        9 => Ratio::new(1_000_000, 1),
        12 => Ratio::new(1_000, 1),
        15 => Ratio::new(1, 1),
        18 => Ratio::new(1, 1_000),
        _ => None,
    };
    // Nanosecond stamps have 19 digits, one more than a value may have: read them as whole numbers.
    let number = if text.contains('.') {
        Decimal::from_str(text).ok().and_then(Decimal::to_ratio)
    } else {
        Ratio::new(whole, 1)
    };
    let micros = per_unit.zip(number).and_then(|(per_unit, number)| number.checked_mul(per_unit)?.to_counts(1));
    match micros {
        Some(micros) => Ok(micros),
        None => refuse(Reason::TimeParse, "time", "an epoch number must be in s, ms, µs or ns since 1970"),
    }
}

fn measure(decoded: &DecodedReading<'_>, signal: &Signal, catalogue: &Catalogue) -> Result<Measured, Refused> {
    let missing = |reason| Ok(Measured { value: None, quality: Quality::Missing, reason });
    let text = match &decoded.value {
        RawField::Absent => return missing(Reason::Absent),
        RawField::Null => return missing(Reason::Null),
        RawField::Text(text) => text.trim(),
        RawField::Number(text) => text,
        RawField::Bool(_) | RawField::Nested => {
            return refuse(Reason::NumberType, "value", "a value must be a number or a text");
        }
    };
    if text.is_empty() {
        return missing(Reason::Empty);
    }
    if SENTINEL_TEXTS.contains(&text) {
        return missing(Reason::Sentinel);
    }
    if signal.is_category() {
        let state = signal.states.iter().position(|state| state.eq_ignore_ascii_case(text));
        return match state {
            Some(code) => Ok(Measured { value: Some(code as i64), quality: Quality::Ok, reason: Reason::None }),
            None => {
                let known = signal.states.join(", ");
                refuse(Reason::StateUnknown, "value", format!("not a state of `{}`; known are {known}", signal.id))
            }
        };
    }
    match text.trim_start_matches(['+', '-']).to_ascii_lowercase().as_str() {
        "nan" => return missing(Reason::NotANumber),
        "inf" | "infinity" => return missing(Reason::NumberOverflow),
        _ => {}
    }
    let given_unit = match &decoded.unit {
        RawField::Absent | RawField::Null => None,
        RawField::Text(unit) => Some(unit.trim()).filter(|unit| !unit.is_empty()),
        _ => return refuse(Reason::FieldType, "unit", "a unit must be a text"),
    };
    let (number, unit) = split_unit(text, given_unit)?;
    let decimal = match Decimal::from_str(number) {
        Ok(decimal) => decimal,
        Err(DecimalError::NotANumber) => return refuse(Reason::NumberParse, "value", "the text is not a number"),
        Err(DecimalError::Locale) => {
            return refuse(
                Reason::NumberLocale,
                "value",
                "a comma in a number: decimal or thousands mark is not declared",
            );
        }
        Err(DecimalError::Overflow) => return missing(Reason::NumberOverflow),
    };
    let Some(raw) = decimal.to_ratio() else {
        return missing(Reason::NumberOverflow);
    };
    if is_sentinel(decimal, signal) {
        return missing(Reason::Sentinel);
    }
    let conversion = conversion(unit, signal, catalogue)?;
    let counts = conversion.apply(raw).and_then(|value| value.to_counts(signal.per_unit));
    let Some(counts) = counts else {
        return missing(Reason::NumberOverflow);
    };
    // 0 °F converted by somebody upstream: a sentinel in disguise.
    if signal.quantity == "temperature" && (-1_780..=-1_777).contains(&(counts * 100 / signal.per_unit)) {
        return missing(Reason::Sentinel);
    }
    if decimal.mantissa == 0 || counts == 0 {
        match signal.zero_policy {
            ZeroPolicy::Valid => {}
            ZeroPolicy::Reject => {
                return Ok(Measured { value: None, quality: Quality::Technical, reason: Reason::ZeroNotMeasured });
            }
            ZeroPolicy::Suspect => {
                return Ok(Measured { value: Some(0), quality: Quality::Questionable, reason: Reason::ZeroSuspect });
            }
        }
    }
    if counts < signal.plausible.0 || counts > signal.plausible.1 {
        let (low, high) = (signal.print(signal.plausible.0), signal.print(signal.plausible.1));
        let hint = range_hint(raw, signal, unit, catalogue);
        let detail = format!("outside the plausible range of `{}`, {low} to {high} {}{hint}", signal.id, signal.unit);
        return refuse(Reason::Range, "value", detail);
    }
    let quality = if conversion == Conversion::IDENTITY { Quality::Ok } else { Quality::Converted };
    Ok(Measured { value: Some(counts), quality, reason: Reason::None })
}

/// Number and unit, where the unit stands behind the number ("97 %").
fn split_unit<'a>(text: &'a str, given: Option<&'a str>) -> Result<(&'a str, Option<&'a str>), Refused> {
    let inside = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | ',' | 'e' | 'E');
    let end = text.find(|c: char| !inside(c)).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let behind = Some(rest.trim()).filter(|rest| !rest.is_empty());
    match (behind, given) {
        (None, given) => Ok((number, given)),
        (Some(_), _) if number.is_empty() => refuse(Reason::NumberParse, "value", "the text is not a number"),
        (Some(unit), None) => Ok((number, Some(unit))),
        (Some(unit), Some(given)) if unit == given => Ok((number, Some(unit))),
        (Some(_), Some(_)) => {
            refuse(Reason::NumberParse, "value", "the value carries a unit of its own that differs from `unit`")
        }
    }
}

fn is_sentinel(decimal: Decimal, signal: &Signal) -> bool {
    if decimal.exponent > 0 {
        return false;
    }
    let Some(den) = 10_i128.checked_pow(decimal.exponent.unsigned_abs()) else {
        return false;
    };
    let value = decimal.mantissa / den;
    decimal.mantissa % den == 0
        && (SENTINEL_NUMBERS.contains(&value)
            || (value == -1 && matches!(signal.id.as_str(), "body_weight" | "body_height")))
}

fn conversion(unit: Option<&str>, signal: &Signal, catalogue: &Catalogue) -> Result<Conversion, Refused> {
    let Some(unit) = unit else {
        if matches!(signal.unit.as_str(), "{score}" | "[pH]") {
            return Ok(Conversion::IDENTITY);
        }
        let detail = format!("`{}` needs a unit, like \"{}\"; none is assumed", signal.id, signal.unit);
        return refuse(Reason::UnitMissing, "unit", detail);
    };
    match catalogue.units.conversion(&signal.quantity, unit, &signal.unit) {
        Ok(conversion) => Ok(conversion),
        Err(UnitError::Unknown) => refuse(Reason::UnitUnknown, "unit", "the unit is not in the unit table"),
        Err(UnitError::Quantity) => {
            let detail = format!("a unit of another quantity than `{}`, which is in {}", signal.id, signal.unit);
            refuse(Reason::UnitQuantity, "unit", detail)
        }
    }
}

/// A word on what an implausible value looks like; never acted upon.
fn range_hint(raw: Ratio, signal: &Signal, unit: Option<&str>, catalogue: &Catalogue) -> &'static str {
    let in_range = |unit: &str| {
        let conversion = catalogue.units.conversion(&signal.quantity, unit, &signal.unit).ok()?;
        let counts = conversion.apply(raw)?.to_counts(signal.per_unit)?;
        Some(counts >= signal.plausible.0 && counts <= signal.plausible.1)
    };
    match signal.quantity.as_str() {
        "temperature" if unit != Some("[degF]") && in_range("[degF]") == Some(true) => "; looks like degF",
        "fraction" if in_range("1") == Some(true) => "; looks like a fraction",
        _ => "",
    }
}

/// What the source itself says about the value.
fn flagged(measured: Measured, flag: &RawField<'_>) -> Result<Measured, Refused> {
    let text = match flag {
        RawField::Absent | RawField::Null => return Ok(measured),
        RawField::Text(text) => text.trim(),
        _ => return refuse(Reason::FieldType, "quality", "the field must be a text"),
    };
    let has_value = measured.value.is_some();
    match text {
        "ok" => Ok(measured),
        "questionable" if has_value => {
            Ok(Measured { quality: Quality::Questionable, reason: Reason::SourceFlag, ..measured })
        }
        "questionable" => Ok(measured),
        "missing" => Ok(Measured { value: None, quality: Quality::Missing, reason: Reason::SourceFlag }),
        "test" => Ok(Measured { quality: Quality::Test, reason: Reason::SourceFlag, ..measured }),
        _ => refuse(Reason::FieldType, "quality", "the field must be ok, questionable, missing or test"),
    }
}

#[cfg(test)]
mod tests;
