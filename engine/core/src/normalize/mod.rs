//! Normalizing: one decoded reading becomes canonical readings, or says why not.
//!
//! A pure function of the decoded fields, the catalogue and the connector's [`Profile`]. In order: label, identity, time,
//! what the source says of it, number, unit, sentinels, zero, range. Nothing is guessed: a missing unit, a time without
//! zone, a comma in a number are refused with their reason and the field's path, unless the connector's file allows the
//! inference by name. Messages never quote a value.
//!
//! Reading order: [`normalize`], [`profile`] (what a connector's words mean), `time.rs` and `number.rs` (how it is
//! written), [`control()`] (requests that are no readings).

pub mod profile;

mod control;
mod number;
mod time;

use wardbell_schemas::Micros;
use wardbell_schemas::catalogue::{Catalogue, Label, Signal, SignalIndex, ZeroPolicy};
use wardbell_schemas::decimal::{Decimal, DecimalError, Ratio};
use wardbell_schemas::decoded::{DecodedReading, RawField};
use wardbell_schemas::reading::{Change, Comparator, Policies, Policy, Quality, ReadingRow, Reason};
use wardbell_schemas::units::{Conversion, UnitError};

pub use self::control::{Requested, control};
use self::profile::{LabelRule, Meaning, Profile, Status};

/// Longest identifier, in characters; longer ones are payload in the wrong field.
const TEXT_MAX: usize = 200;
/// Texts that mean "no value" at every vendor seen.
const SENTINEL_TEXTS: [&str; 7] = ["-", "--", "---", "***", "?", "_NV", "n/a"];
/// Numbers that mean "no value" and cannot be a value of any signal.
const SENTINEL_NUMBERS: [i128; 2] = [-32_768, 32_767];
/// A device's own quality mark is now and then a little above 100 %; up to this it is taken for 100 %.
const MARK_MAX_PERCENT: i64 = 110;

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

/// What became of a decoded reading.
#[derive(Debug, Clone, PartialEq)]
pub enum Normalized<'a> {
    Reading(ReadingRow<'a>),
    /// Parts of a value that holds several signals ("120/80"), in its order.
    Parts(Vec<Result<ReadingRow<'a>, Refused>>),
    /// The connector's file says that this label is not wanted.
    Ignored,
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

/// Makes canonical readings of a decoded one.
///
/// # Errors
/// [`Refused`], for the dead-letter topic.
pub fn normalize<'a>(
    decoded: &'a DecodedReading<'a>,
    source: &Source<'a>,
    catalogue: &'a Catalogue,
    profile: &'a Profile,
) -> Result<Normalized<'a>, Refused> {
    let label = identifier(&decoded.label, "signal")?;
    let rule = profile.label(label);
    let known;
    let (signals, separator): (&[SignalIndex], Option<&str>) = match rule.map(|rule| &rule.meaning) {
        Some(Meaning::Ignored) => return Ok(Normalized::Ignored),
        Some(Meaning::Signal(signal)) => (std::slice::from_ref(signal), None),
        Some(Meaning::Split { signals, separator }) => (signals.as_slice(), Some(separator.as_str())),
        None => {
            known = of_catalogue(label, catalogue)?;
            (std::slice::from_ref(&known), None)
        }
    };
    let patient = patient(&decoded.patient, profile)?;
    let device = identifier(&decoded.device, "device")?;
    let method = method(&decoded.method)?;
    let when = time::read(&decoded.time, &profile.time, source)?;
    let change = change(&decoded.change, profile)?;
    let status = status(&decoded.quality, profile)?;
    let words = Words {
        profile,
        rule,
        catalogue,
        unit: unit(&decoded.unit, profile)?,
        is_plain: matches!(decoded.value, RawField::Number(_)),
    };
    // Where the source says that there is no value, nobody looks at what stands in its place.
    let given = match (change, status) {
        (Change::Retracts, _) | (_, Status::Missing) => Given::Nothing(Reason::SourceFlag),
        (_, Status::Off) => Given::Nothing(Reason::Off),
        _ => words.given(&decoded.value)?,
    };
    let row = |signal: SignalIndex, measured: Measured<'a>| {
        let measured = measured.flagged(status).doubted(when.doubt);
        ReadingRow {
            patient,
            device,
            signal,
            method: method.or(measured.method).or_else(|| rule?.method.as_deref()).unwrap_or("-"),
            value: measured.value,
            quality: measured.quality,
            reason: measured.reason,
            event_time_us: when.us,
            source_time_us: source.time_us,
            append_time_us: source.append_us,
            source_topic: source.topic,
            source_partition: source.partition,
            source_offset: source.offset,
            source_index: decoded.index,
            comparator: measured.comparator,
            change,
            policies: Policies(when.policies.0 | measured.policies.0),
        }
    };
    let Some(separator) = separator else {
        let measured = words.measure(given, catalogue.signal(signals[0]))?;
        return Ok(Normalized::Reading(row(signals[0], measured)));
    };
    let parts = words.parts(given, signals, separator)?;
    let rows = signals.iter().zip(parts).map(|(signal, part)| part.map(|measured| row(*signal, measured)));
    Ok(Normalized::Parts(rows.collect()))
}

fn of_catalogue(label: &str, catalogue: &Catalogue) -> Result<SignalIndex, Refused> {
    match catalogue.label(label) {
        Label::Known(signal) => Ok(signal),
        Label::Ambiguous => {
            refuse(Reason::LabelAmbiguous, "signal", "the label means different signals to different vendors")
        }
        Label::Unknown => refuse(Reason::LabelUnknown, "signal", "no signal of the catalogue has this label"),
    }
}

fn patient<'a>(field: &'a RawField<'_>, profile: &Profile) -> Result<&'a str, Refused> {
    let patient = identifier(field, "patient")?;
    if profile.is_no_patient(patient) {
        return refuse(Reason::FieldMissing, "patient", "an identifier that stands for no patient");
    }
    Ok(patient)
}

fn identifier<'a>(field: &'a RawField<'_>, name: &'static str) -> Result<&'a str, Refused> {
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

fn method<'a>(field: &'a RawField<'_>) -> Result<Option<&'a str>, Refused> {
    if !field.is_present() {
        return Ok(None);
    }
    let method = identifier(field, "method")?;
    if method.contains('/') {
        return refuse(Reason::FieldText, "method", "a method must not contain `/`");
    }
    Ok(Some(method))
}

/// What the reading does to an earlier one.
fn change(field: &RawField<'_>, profile: &Profile) -> Result<Change, Refused> {
    if !field.is_present() {
        return Ok(Change::None);
    }
    let word = identifier(field, "change")?;
    let change = match (profile.change_words(), word) {
        (Some(words), word) => words.get(word).copied(),
        (None, "corrects") => Some(Change::Corrects),
        (None, "retracts") => Some(Change::Retracts),
        (None, _) => None,
    };
    match change {
        Some(change) => Ok(change),
        None if profile.change_words().is_some() => {
            refuse(Reason::FieldType, "change", "a word that the connector's file does not list under changes")
        }
        None => refuse(Reason::FieldType, "change", "the field must be corrects or retracts"),
    }
}

/// What the source itself says about the value.
fn status(field: &RawField<'_>, profile: &Profile) -> Result<Status, Refused> {
    let word = match field {
        RawField::Absent | RawField::Null => return Ok(Status::Ok),
        RawField::Text(text) => text.trim(),
        RawField::Number(text) if profile.status_words().is_some() => text,
        RawField::Bool(value) if profile.status_words().is_some() => bool_text(*value),
        _ => return refuse(Reason::FieldType, "quality", "the field must be a text"),
    };
    let status = match (profile.status_words(), word) {
        (Some(words), word) => words.get(word).copied(),
        (None, "ok") => Some(Status::Ok),
        (None, "questionable") => Some(Status::Questionable),
        (None, "missing") => Some(Status::Missing),
        (None, "off") => Some(Status::Off),
        (None, "test") => Some(Status::Test),
        (None, _) => None,
    };
    match status {
        Some(status) => Ok(status),
        None if profile.status_words().is_some() => {
            refuse(Reason::FieldType, "quality", "a word that the connector's file does not list under status")
        }
        None => refuse(Reason::FieldType, "quality", "the field must be ok, questionable, missing, off or test"),
    }
}

/// The unit as sent.
fn unit<'a>(field: &'a RawField<'_>, profile: &Profile) -> Result<Option<&'a str>, Refused> {
    match field {
        RawField::Absent | RawField::Null => Ok(None),
        RawField::Text(unit) => Ok(Some(unit.trim()).filter(|unit| !unit.is_empty())),
        RawField::Number(unit) if profile.has_unit(unit) => Ok(Some(unit)),
        _ => refuse(Reason::FieldType, "unit", "a unit must be a text"),
    }
}

fn bool_text(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// A value as it was given, or why there is none.
#[derive(Debug, Clone, Copy)]
enum Given<'a> {
    Text(&'a str),
    Nothing(Reason),
}

/// What became of a value.
#[derive(Debug, Clone, Copy)]
struct Measured<'a> {
    value: Option<i64>,
    quality: Quality,
    reason: Reason,
    comparator: Comparator,
    /// Told by the value itself: letters behind it.
    method: Option<&'a str>,
    policies: Policies,
}

impl<'a> Measured<'a> {
    fn new(value: Option<i64>, quality: Quality, reason: Reason) -> Self {
        Self { value, quality, reason, comparator: Comparator::None, method: None, policies: Policies::NONE }
    }

    fn missing(reason: Reason) -> Self {
        Self::new(None, Quality::Missing, reason)
    }

    /// With what the source says about it. A status without a value was taken before anything was measured.
    fn flagged(self, status: Status) -> Self {
        match status {
            Status::Questionable if self.value.is_some() => {
                Self { quality: Quality::Questionable, reason: Reason::SourceFlag, ..self }
            }
            Status::Test => Self { quality: Quality::Test, reason: Reason::SourceFlag, ..self },
            _ => self,
        }
    }

    /// With what its time stamp lacks.
    fn doubted(self, doubt: Option<Reason>) -> Self {
        match (doubt, self.quality) {
            (Some(Reason::TimePrecision), Quality::Ok | Quality::Converted) => {
                Self { quality: Quality::Questionable, reason: Reason::TimePrecision, ..self }
            }
            (Some(Reason::TimeShifted), Quality::Ok | Quality::Converted) => {
                Self { quality: Quality::Converted, reason: Reason::TimeShifted, ..self }
            }
            _ => self,
        }
    }
}

/// Everything that says what a value means.
#[derive(Clone, Copy)]
struct Words<'a> {
    profile: &'a Profile,
    rule: Option<&'a LabelRule>,
    catalogue: &'a Catalogue,
    /// As sent.
    unit: Option<&'a str>,
    /// The format itself says that it is a number.
    is_plain: bool,
}

impl<'a> Words<'a> {
    fn given(&self, field: &'a RawField<'_>) -> Result<Given<'a>, Refused> {
        let text = match field {
            RawField::Absent => return Ok(Given::Nothing(Reason::Absent)),
            RawField::Null => return Ok(Given::Nothing(Reason::Null)),
            RawField::Text(text) => text.trim(),
            RawField::Number(text) => text,
            // A vendor's state may be a boolean: `lead_off: true`.
            RawField::Bool(value) if self.translation(bool_text(*value)).is_some() => bool_text(*value),
            RawField::Bool(_) | RawField::Nested => {
                return refuse(Reason::NumberType, "value", "a value must be a number or a text");
            }
        };
        if text.len() > TEXT_MAX {
            return refuse(Reason::NumberParse, "value", format!("longer than {TEXT_MAX} bytes"));
        }
        Ok(if text.is_empty() { Given::Nothing(Reason::Empty) } else { Given::Text(text) })
    }

    /// What a vendor's word for a value stands for.
    fn translation(&self, text: &str) -> Option<&'a str> {
        let own = self.rule.and_then(|rule| rule.states.get(text)).map(String::as_str);
        own.or_else(|| self.profile.state(text))
    }

    fn is_sentinel_text(&self, text: &str) -> bool {
        SENTINEL_TEXTS.contains(&text)
            || self.profile.is_sentinel_text(text)
            || self.rule.is_some_and(|rule| rule.sentinels.has_text(text))
    }

    fn measure(&self, given: Given<'a>, signal: &Signal) -> Result<Measured<'a>, Refused> {
        let text = match given {
            Given::Nothing(reason) => return Ok(Measured::missing(reason)),
            Given::Text(text) => text,
        };
        let translated = self.translation(text);
        let text = translated.unwrap_or(text);
        if self.is_sentinel_text(text) {
            return Ok(Measured::missing(Reason::Sentinel));
        }
        let measured =
            if signal.is_category() { state(text, signal)? } else { self.number(text, translated.is_some(), signal)? };
        Ok(match measured.quality {
            Quality::Ok if translated.is_some() => Measured { quality: Quality::Converted, ..measured },
            _ => measured,
        })
    }

    /// Several signals in one value.
    fn parts(
        &self,
        given: Given<'a>,
        signals: &[SignalIndex],
        separator: &str,
    ) -> Result<Vec<Result<Measured<'a>, Refused>>, Refused> {
        let text = match given {
            Given::Text(text) if !self.is_sentinel_text(text) => text,
            nothing => {
                let signals = signals.iter().map(|signal| self.catalogue.signal(*signal));
                return Ok(signals.map(|signal| self.measure(nothing, signal)).collect());
            }
        };
        let texts: Vec<&'a str> = text.split(separator).map(str::trim).collect();
        if texts.len() != signals.len() {
            let detail = format!("expected {} values in one, separated as the connector's file says", signals.len());
            return refuse(Reason::NumberParse, "value", detail);
        }
        // "120/80 mmHg": the unit stands once, behind the last.
        let behind = texts.last().copied().and_then(|text| number::split_unit(number::comparator(text).1).1);
        let words = Words { unit: self.unit.or(behind), ..*self };
        let measure = |(signal, text): (&SignalIndex, &'a str)| {
            let given = if text.is_empty() { Given::Nothing(Reason::Empty) } else { Given::Text(text) };
            words.measure(given, self.catalogue.signal(*signal))
        };
        let mut parts: Vec<_> = signals.iter().zip(texts).map(measure).collect();
        self.check_order(signals, &mut parts);
        Ok(parts)
    }

    /// A systolic pressure below its diastolic one: both are doubtful, and nobody swaps them.
    fn check_order(&self, signals: &[SignalIndex], parts: &mut [Result<Measured<'a>, Refused>]) {
        let place =
            |ending: &str| signals.iter().position(|signal| self.catalogue.signal(*signal).id.ends_with(ending));
        let (Some(systolic), Some(diastolic)) = (place("_sys"), place("_dia")) else {
            return;
        };
        let value = |place: usize| parts[place].as_ref().ok().and_then(|part| part.value);
        let (Some(above), Some(below)) = (value(systolic), value(diastolic)) else {
            return;
        };
        if above < below {
            for part in [systolic, diastolic] {
                if let Ok(part) = &mut parts[part] {
                    (part.quality, part.reason) = (Quality::Questionable, Reason::PressureOrder);
                }
            }
        }
    }

    /// `is_own`: the text stands in the connector's file, and so does its unit.
    fn number(&self, text: &'a str, is_own: bool, signal: &Signal) -> Result<Measured<'a>, Refused> {
        let (comparator, text) = number::comparator(text);
        let (text, method) = self.suffix(text);
        let bare = text.trim_start_matches(['+', '-']);
        if bare.eq_ignore_ascii_case("nan") {
            return Ok(Measured::missing(Reason::NotANumber));
        }
        if bare.eq_ignore_ascii_case("inf") || bare.eq_ignore_ascii_case("infinity") {
            return Ok(Measured::missing(Reason::NumberOverflow));
        }
        let (number, behind) = number::split_unit(text);
        if number.is_empty() {
            return refuse(Reason::NumberParse, "value", "the text is not a number");
        }
        let unit = match (behind, self.unit) {
            (Some(behind), _) if is_own => Some(behind),
            (Some(behind), Some(unit)) if !self.is_same_unit(behind, unit) => {
                return refuse(
                    Reason::UnitConflict,
                    "value",
                    "the value carries a unit of its own that differs from `unit`",
                );
            }
            (behind, unit) => unit.or(behind),
        };
        let (decimal, comma) = match number::decimal(number, self.is_plain, self.profile.allowed) {
            Ok(read) => read,
            Err(DecimalError::NotANumber) => {
                return refuse(Reason::NumberParse, "value", "the text is not a number");
            }
            Err(DecimalError::Locale) => {
                let detail = "a comma or point whose meaning is not declared: decimal or thousands mark";
                return refuse(Reason::NumberLocale, "value", detail);
            }
            Err(DecimalError::Overflow) => return Ok(Measured::missing(Reason::NumberOverflow)),
        };
        let Some(raw) = decimal.to_ratio() else {
            return Ok(Measured::missing(Reason::NumberOverflow));
        };
        if self.is_sentinel(decimal, raw, signal) {
            return Ok(Measured::missing(Reason::Sentinel));
        }
        let mut policies = Policies::NONE;
        if let Some(policy) = comma {
            policies.insert(policy);
        }
        let conversion = self.conversion(unit, raw, signal, &mut policies)?;
        let Some(counts) = in_counts(conversion, raw, signal) else {
            return Ok(Measured::missing(Reason::NumberOverflow));
        };
        // 0 °F converted by somebody upstream: a sentinel in disguise.
        let hundredths = i128::from(counts) * 100 / i128::from(signal.per_unit);
        if signal.quantity == "temperature" && (-1_780..=-1_777).contains(&hundredths) {
            return Ok(Measured::missing(Reason::Sentinel));
        }
        let is_zero = decimal.mantissa == 0 || counts == 0;
        if is_zero && comparator == Comparator::None {
            match signal.zero_policy {
                ZeroPolicy::Valid => {}
                ZeroPolicy::Reject => {
                    return Ok(Measured::new(None, Quality::Technical, Reason::ZeroNotMeasured));
                }
                ZeroPolicy::Suspect => {
                    let measured = Measured::new(Some(0), Quality::Questionable, Reason::ZeroSuspect);
                    return Ok(Measured { method, policies, ..measured });
                }
            }
        }
        if counts < signal.plausible.0 || counts > signal.plausible.1 {
            if is_mark_in_percent(signal) && (0..=MARK_MAX_PERCENT * signal.per_unit).contains(&counts) {
                let measured = Measured::new(Some(signal.plausible.1), Quality::Questionable, Reason::Range);
                return Ok(Measured { method, policies, ..measured });
            }
            let (low, high) = (signal.print(signal.plausible.0), signal.print(signal.plausible.1));
            let hint = range_hint(raw, signal, unit, self.catalogue);
            let detail =
                format!("outside the plausible range of `{}`, {low} to {high} {}{hint}", signal.id, signal.unit);
            return refuse(Reason::Range, "value", detail);
        }
        let is_as_sent = conversion == Conversion::IDENTITY && comma.is_none() && method.is_none();
        let quality = if is_as_sent { Quality::Ok } else { Quality::Converted };
        let is_exact = conversion.apply(raw) == Ratio::new(counts.into(), signal.per_unit.into());
        let comparator = after_rounding(comparator, is_exact);
        Ok(Measured { comparator, method, policies, ..Measured::new(Some(counts), quality, Reason::None) })
    }

    /// Letters behind a number that the connector's file explains ("10T").
    fn suffix(&self, text: &'a str) -> (&'a str, Option<&'a str>) {
        let suffixes = self.rule.map_or(&[][..], |rule| rule.suffixes.as_slice());
        let found = suffixes.iter().find_map(|(suffix, method)| {
            let number = text.strip_suffix(suffix.as_str())?.trim_end();
            number.ends_with(|c: char| c.is_ascii_digit()).then_some((number, Some(method.as_str())))
        });
        found.unwrap_or((text, None))
    }

    fn is_same_unit(&self, one: &str, other: &str) -> bool {
        let ucum = |unit| self.catalogue.units.ucum(self.profile.unit(unit));
        one == other || ucum(one).is_some_and(|one| Some(one) == ucum(other))
    }

    fn is_sentinel(&self, decimal: Decimal, raw: Ratio, signal: &Signal) -> bool {
        is_known_sentinel(decimal, signal)
            || self.profile.is_sentinel_number(raw)
            || self.rule.is_some_and(|rule| rule.sentinels.has_number(raw))
    }

    /// How the number becomes one of the signal's canonical unit.
    fn conversion(
        &self,
        unit: Option<&str>,
        raw: Ratio,
        signal: &Signal,
        policies: &mut Policies,
    ) -> Result<Conversion, Refused> {
        let unit = match unit.or_else(|| self.unit_of_label(policies)) {
            Some(unit) => self.profile.unit(unit),
            None if matches!(signal.unit.as_str(), "{score}" | "[pH]") => return Ok(Conversion::IDENTITY),
            None => match self.inferred_temperature_unit(raw, signal) {
                Some(unit) => {
                    policies.insert(Policy::InferTemperatureUnit);
                    unit
                }
                None => {
                    let detail = format!("`{}` needs a unit, like \"{}\"; none is assumed", signal.id, signal.unit);
                    return refuse(Reason::UnitMissing, "unit", detail);
                }
            },
        };
        let conversion = match self.catalogue.units.conversion(&signal.quantity, unit, &signal.unit) {
            Ok(conversion) => conversion,
            Err(_) if is_gas_share(signal, unit, self.catalogue) => {
                let Some(conversion) = self.profile.gas_share else {
                    let detail = "a share of a gas is a pressure only at a known barometric pressure";
                    return refuse(Reason::UnitContext, "unit", detail);
                };
                policies.insert(Policy::BarometricPressure);
                conversion
            }
            Err(UnitError::Unknown) => return refuse(Reason::UnitUnknown, "unit", "the unit is not in the unit table"),
            Err(UnitError::Quantity) => {
                let detail = format!("a unit of another quantity than `{}`, which is in {}", signal.id, signal.unit);
                return refuse(Reason::UnitQuantity, "unit", detail);
            }
        };
        if self.profile.allowed.contains(Policy::ScaleFraction)
            && conversion == Conversion::IDENTITY
            && is_fraction(raw, signal)
            && let Some(hundred) = Ratio::new(100, 1)
        {
            policies.insert(Policy::ScaleFraction);
            return Ok(Conversion { factor: hundred, offset: Ratio::ZERO });
        }
        Ok(conversion)
    }

    /// The unit that the vendor documents for the label.
    fn unit_of_label(&self, policies: &mut Policies) -> Option<&'a str> {
        let unit = self.rule?.unit.as_deref()?;
        policies.insert(Policy::DefaultUnit);
        Some(unit)
    }

    /// °C or °F, if only one of them is possible.
    fn inferred_temperature_unit(&self, raw: Ratio, signal: &Signal) -> Option<&'static str> {
        if signal.quantity != "temperature" || !self.profile.allowed.contains(Policy::InferTemperatureUnit) {
            return None;
        }
        let is_possible = |unit: &&str| is_in_range(raw, signal, unit, self.catalogue);
        let mut possible = ["Cel", "[degF]"].into_iter().filter(is_possible);
        possible.next().filter(|_| possible.next().is_none())
    }
}

/// A category's state by its name.
fn state<'a>(text: &str, signal: &Signal) -> Result<Measured<'a>, Refused> {
    match signal.states.iter().position(|state| state.eq_ignore_ascii_case(text)) {
        Some(code) => Ok(Measured::new(Some(code as i64), Quality::Ok, Reason::None)),
        None => {
            let known = signal.states.join(", ");
            refuse(Reason::StateUnknown, "value", format!("not a state of `{}`; known are {known}", signal.id))
        }
    }
}

fn in_counts(conversion: Conversion, raw: Ratio, signal: &Signal) -> Option<i64> {
    conversion.apply(raw)?.to_counts(signal.per_unit)
}

/// What is said of the rounded value: where rounding moved it, the bound itself is possible.
fn after_rounding(comparator: Comparator, is_exact: bool) -> Comparator {
    match comparator {
        Comparator::Less if !is_exact => Comparator::LessOrEqual,
        Comparator::Greater if !is_exact => Comparator::GreaterOrEqual,
        same => same,
    }
}

fn is_known_sentinel(decimal: Decimal, signal: &Signal) -> bool {
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

/// A share of a gas where its partial pressure belongs: it depends on the barometric pressure.
fn is_gas_share(signal: &Signal, unit: &str, catalogue: &Catalogue) -> bool {
    if signal.id != "etco2" {
        return false;
    }
    let letters = unit.chars().filter(|c| !matches!(c, ' ' | '.'));
    let spelling: String = letters.flat_map(char::to_lowercase).take(8).collect();
    catalogue.units.ucum(unit) == Some("%") || matches!(spelling.as_str(), "vol%" | "%vol" | "volpct")
}

/// A number up to 1 of a signal in percent that is never as low as 1 %.
fn is_fraction(raw: Ratio, signal: &Signal) -> bool {
    signal.unit == "%"
        && signal.plausible.0 > signal.per_unit
        && raw.to_counts(signal.per_unit).is_some_and(|counts| counts > 0 && counts <= signal.per_unit)
}

/// A device's mark for itself, from 0 to 100 %: signal quality, battery.
fn is_mark_in_percent(signal: &Signal) -> bool {
    signal.unit == "%" && signal.plausible == (0, 100 * signal.per_unit)
}

fn is_in_range(raw: Ratio, signal: &Signal, unit: &str, catalogue: &Catalogue) -> bool {
    let counts = || in_counts(catalogue.units.conversion(&signal.quantity, unit, &signal.unit).ok()?, raw, signal);
    counts().is_some_and(|counts| counts >= signal.plausible.0 && counts <= signal.plausible.1)
}

/// A word on what an implausible value looks like; never acted upon.
fn range_hint(raw: Ratio, signal: &Signal, unit: Option<&str>, catalogue: &Catalogue) -> &'static str {
    let in_inches = || is_in_range(raw.checked_mul(Ratio::new(100, 254)?)?, signal, "cm", catalogue).then_some(());
    match signal.quantity.as_str() {
        "temperature" if unit != Some("[degF]") && is_in_range(raw, signal, "[degF]", catalogue) => "; looks like degF",
        "fraction" if is_in_range(raw, signal, "1", catalogue) => "; looks like a fraction",
        "length" if in_inches().is_some() => "; looks like inches converted twice: divide by 2.54",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
