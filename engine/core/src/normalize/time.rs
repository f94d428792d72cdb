//! Event times as sources write them, to µs since 1970 UTC.
//!
//! Understood everywhere, because they cannot be misread: RFC 3339 with zone or offset, epoch numbers by their magnitude,
//! and a few spellings with a named month or an offset behind a blank. Everything else is named by the connector's file:
//! other formats, the zone of times that carry none, the order of day and month. A stamp coarser than the connector's
//! resolution makes its reading questionable; a local time that summer time left out or repeats is flagged.

use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::strtime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use wardbell_schemas::decimal::{Decimal, Ratio};
use wardbell_schemas::decoded::RawField;
use wardbell_schemas::fault::KeyFault;
use wardbell_schemas::reading::{Policies, Policy, Reason};
use wardbell_schemas::{Micros, SECOND};

use super::profile::TimeForm;
use super::{Refused, Source, refuse};

const MINUTE: Micros = 60 * SECOND;
const HOUR: Micros = 60 * MINUTE;
const DAY: Micros = 24 * HOUR;
/// Longest text that is looked at as a time, in bytes.
const TEXT_MAX: usize = 80;
/// Spellings that cannot be misread, with an offset or without zone.
const SPELLINGS: [&str; 2] = ["%Y-%m-%d %H:%M:%S%.f %z", "%a %b %d %H:%M:%S %Y"];
/// Day counts of a spreadsheet that can be meant: 1954 to 2119.
const SERIAL_DAYS: std::ops::Range<i64> = 20_000..80_000;
/// Day 0 of spreadsheets.
const SERIAL_BEGIN: Date = Date::constant(1899, 12, 30);
/// A time with two digits everywhere, to try formats on.
const SAMPLE: DateTime = DateTime::constant(2026, 11, 22, 13, 14, 15, 500_000_000);

/// What a connector's file says of times.
#[derive(Debug, Clone, Default)]
pub(super) struct TimeRules {
    formats: Vec<TimeFormat>,
    /// Of times without one.
    zone: Option<TimeZone>,
    /// Devices stamp no finer than this; 0: a second.
    resolution_us: Micros,
    allowed: Policies,
}

/// A format that the file declares.
#[derive(Debug, Clone)]
enum TimeFormat {
    Hl7,
    Pattern { pattern: String, precision_us: Micros },
}

/// A time that was read.
pub(super) struct When {
    pub us: Micros,
    /// [`Reason::TimePrecision`] or [`Reason::TimeShifted`].
    pub doubt: Option<Reason>,
    pub policies: Policies,
}

/// A time as written.
struct Written {
    stamp: Stamp,
    precision_us: Micros,
    policies: Policies,
}

enum Stamp {
    Instant(Timestamp),
    /// A local time, and the zone if the text names it.
    Local(DateTime, Option<TimeZone>),
}

impl Written {
    fn new(stamp: Stamp, precision_us: Micros) -> Self {
        Self { stamp, precision_us, policies: Policies::NONE }
    }
}

/// Reads a field as an event time.
///
/// # Errors
/// [`Refused`] at the field `time`.
pub(super) fn read(field: &RawField<'_>, rules: &TimeRules, source: &Source<'_>) -> Result<When, Refused> {
    let text: &str = match field {
        RawField::Absent | RawField::Null => "",
        RawField::Text(text) => text.trim(),
        RawField::Number(text) => text,
        RawField::Bool(_) | RawField::Nested => return refuse(Reason::FieldType, "time", "the field must be a time"),
    };
    if text.is_empty() {
        return rules.record_time(source);
    }
    if text.len() > TEXT_MAX {
        return refuse(Reason::TimeParse, "time", "too long to be a time");
    }
    if let Some(written) = rules.formats.iter().find_map(|format| format.read(text)) {
        return rules.settle(written, source);
    }
    if is_number(text) {
        return rules.number(text, source);
    }
    match iso(text).or_else(|| SPELLINGS.iter().find_map(|pattern| by_pattern(pattern, SECOND, text))) {
        Some(written) => rules.settle(written, source),
        None => rules.day_and_month(text, source),
    }
}

impl TimeRules {
    /// # Errors
    /// Every fault of the file's times.
    pub(super) fn new(form: &TimeForm, assume_zone: Option<&str>, allowed: Policies) -> Result<Self, Vec<KeyFault>> {
        let mut faults = Vec::new();
        let mut formats = Vec::new();
        for (i, pattern) in form.formats.iter().enumerate() {
            match TimeFormat::new(pattern) {
                Some(format) => formats.push(format),
                None => {
                    let path = ["time", "formats", &i.to_string()];
                    let help = "\"hl7\", or a date and time in the directives of strptime: \"%d.%m.%Y %H:%M:%S\"";
                    faults.push(KeyFault::new(&path, format!("`{pattern}` cannot be used to read a time"), help));
                }
            }
        }
        let zone = assume_zone.and_then(zone);
        if let (Some(name), None) = (assume_zone, &zone) {
            let help = "an IANA name like \"Europe/Berlin\" or an offset like \"+01:00\"; abbreviations are ambiguous";
            faults.push(KeyFault::new(&["policies", "assume_zone"], format!("`{name}` is not a time zone"), help));
        }
        if allowed.contains(Policy::SpreadsheetTime) && assume_zone.is_none() {
            let help = "add `assume_zone`, the zone of the spreadsheet";
            faults.push(KeyFault::new(&["policies", "spreadsheet_time"], "day counts are local times", help));
        }
        for (key, length) in
            [("lateness", form.lateness), ("skew", form.skew), ("time_resolution", form.time_resolution)]
        {
            if length.is_some_and(|length| length < 0) {
                faults.push(KeyFault::new(&["time", key], "must not be negative", "like \"60s\""));
            }
        }
        let resolution_us = form.time_resolution.unwrap_or_default();
        if faults.is_empty() { Ok(Self { formats, zone, resolution_us, allowed }) } else { Err(faults) }
    }

    fn record_time(&self, source: &Source<'_>) -> Result<When, Refused> {
        if !self.allowed.contains(Policy::RecordTime) {
            return refuse(Reason::FieldMissing, "time", "the field is required");
        }
        let mut policies = Policies::NONE;
        policies.insert(Policy::RecordTime);
        Ok(When { us: source.time_us, doubt: None, policies })
    }

    /// An epoch number or, where that is allowed, a day count of a spreadsheet.
    fn number(&self, text: &str, source: &Source<'_>) -> Result<When, Refused> {
        if let Some(us) = epoch(text) {
            return Ok(When { us, doubt: None, policies: Policies::NONE });
        }
        if self.allowed.contains(Policy::SpreadsheetTime)
            && let Some(local) = serial(text)
        {
            let mut written = Written::new(Stamp::Local(local, None), SECOND);
            written.policies.insert(Policy::SpreadsheetTime);
            return self.settle(written, source);
        }
        refuse(Reason::TimeParse, "time", "an epoch number must be in s, ms, µs or ns since 1970")
    }

    /// `03/04/2026 10:15`: two numbers whose order is the vendor's habit, and a year.
    fn day_and_month(&self, text: &str, source: &Source<'_>) -> Result<When, Refused> {
        let Some((first, second, year, clock)) = numeric_date(text) else {
            let detail = "not a time; expected RFC 3339 with zone or offset, or an epoch number";
            return refuse(Reason::TimeParse, "time", detail);
        };
        let (policy, day, month) = match self.allowed {
            allowed if allowed.contains(Policy::DayFirst) => (Policy::DayFirst, first, second),
            allowed if allowed.contains(Policy::MonthFirst) => (Policy::MonthFirst, second, first),
            _ => {
                let detail =
                    "day and month cannot be told apart; the connector's file can say `day_first` or `month_first`";
                return refuse(Reason::TimeAmbiguous, "time", detail);
            }
        };
        if year.len() != 4 {
            return refuse(Reason::TimeAmbiguous, "time", "a year of two digits; declare the format");
        }
        let hour = if clock.find(':') == Some(1) { "0" } else { "" };
        let between = if clock.is_empty() { "" } else { "T" };
        match iso(&format!("{year}-{month:0>2}-{day:0>2}{between}{hour}{clock}")) {
            Some(mut written) => {
                written.policies.insert(policy);
                self.settle(written, source)
            }
            None => refuse(Reason::TimeParse, "time", "not a date and time"),
        }
    }

    /// A written time as an instant.
    fn settle(&self, written: Written, source: &Source<'_>) -> Result<When, Refused> {
        let mut policies = written.policies;
        let (us, is_shifted) = match written.stamp {
            Stamp::Instant(timestamp) => (timestamp.as_microsecond(), false),
            Stamp::Local(local, named) => {
                let zone = match (&named, &self.zone) {
                    (Some(named), _) => named,
                    (None, Some(assumed)) => {
                        policies.insert(Policy::AssumeZone);
                        assumed
                    }
                    (None, None) => {
                        let detail = "a local time without zone or offset; add `Z` or an offset like +01:00";
                        return refuse(Reason::TimeZone, "time", detail);
                    }
                };
                match in_zone(local, zone, source.time_us) {
                    Some(settled) => settled,
                    None => return refuse(Reason::TimeParse, "time", "out of the range of times"),
                }
            }
        };
        let doubt = if written.precision_us > self.resolution_us.max(SECOND) {
            Some(Reason::TimePrecision)
        } else {
            is_shifted.then_some(Reason::TimeShifted)
        };
        Ok(When { us, doubt, policies })
    }
}

impl TimeFormat {
    /// `None` if nothing could be read with it.
    fn new(pattern: &str) -> Option<Self> {
        if pattern == "hl7" {
            return Some(TimeFormat::Hl7);
        }
        let sample = strtime::format(pattern, &SAMPLE.to_zoned(TimeZone::UTC).ok()?).ok()?;
        let precision_us = pattern_precision(pattern);
        by_pattern(pattern, precision_us, &sample)?;
        Some(TimeFormat::Pattern { pattern: pattern.to_owned(), precision_us })
    }

    fn read(&self, text: &str) -> Option<Written> {
        match self {
            TimeFormat::Hl7 => hl7(text),
            TimeFormat::Pattern { pattern, precision_us } => by_pattern(pattern, *precision_us, text),
        }
    }
}

/// The finest part of a time that a pattern reads.
fn pattern_precision(pattern: &str) -> Micros {
    let directives = pattern
        .split('%')
        .skip(1)
        .filter_map(|rest| rest.chars().find(|c| !matches!(c, '_' | '-' | '0'..='9' | '^' | '#' | '.' | ':')));
    let of = |directive| match directive {
        'S' | 'T' | 's' | 'f' | 'N' => SECOND,
        'M' | 'R' => MINUTE,
        'H' | 'I' | 'k' | 'l' => HOUR,
        _ => DAY,
    };
    directives.map(of).min().unwrap_or(DAY)
}

fn by_pattern(pattern: &str, precision_us: Micros, text: &str) -> Option<Written> {
    let parsed = strtime::parse(pattern, text).ok()?;
    let stamp = if let Some(timestamp) = parsed.timestamp() {
        Stamp::Instant(timestamp)
    } else {
        let local = parsed.to_datetime().ok()?;
        match (parsed.offset(), parsed.iana_time_zone()) {
            (Some(offset), _) => Stamp::Instant(offset.to_timestamp(local).ok()?),
            (None, Some(name)) => Stamp::Local(local, Some(named_zone(name)?)),
            (None, None) => Stamp::Local(local, None),
        }
    };
    Some(Written::new(stamp, precision_us))
}

/// RFC 3339, ISO 8601 without zone, or with an IANA name in brackets.
fn iso(text: &str) -> Option<Written> {
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Some(Written::new(Stamp::Instant(timestamp), iso_precision(text)));
    }
    let (local, zone) = match text.split_once('[') {
        Some((local, name)) => (local, Some(named_zone(name.strip_suffix(']')?)?)),
        None => (text, None),
    };
    Some(Written::new(Stamp::Local(local.parse().ok()?, zone), iso_precision(local)))
}

fn iso_precision(text: &str) -> Micros {
    let Some((_, clock)) = text.split_once(['T', 't', ' ']) else {
        return DAY;
    };
    let is_clock = |byte: &u8| byte.is_ascii_digit() || *byte == b':';
    match clock.bytes().take_while(is_clock).filter(u8::is_ascii_digit).count() {
        0..=2 => HOUR,
        3..=4 => MINUTE,
        _ => SECOND,
    }
}

/// `YYYYMMDD[HH[MM[SS[.S{1,9}]]]][+/-ZZZZ]`, also with milliseconds that lost their point (17 digits).
fn hl7(text: &str) -> Option<Written> {
    let (stamp, zone) = text.split_at(text.find(['+', '-']).unwrap_or(text.len()));
    let (digits, fraction) = match stamp.split_once('.') {
        None if stamp.len() == 17 => stamp.split_at_checked(14)?,
        found => found.unwrap_or((stamp, "")),
    };
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_digits(digits) || !is_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let precision_us = match (digits.len(), fraction.is_empty()) {
        (8, true) => DAY,
        (10, true) => HOUR,
        (12, true) => MINUTE,
        (14, _) => SECOND,
        _ => return None,
    };
    let part = |from: usize| digits.get(from..from + 2).map_or(Some(0), |part| part.parse::<i8>().ok());
    let date = Date::new(digits.get(..4)?.parse().ok()?, part(4)?, part(6)?).ok()?;
    let nanoseconds = format!("{fraction:0<9}").parse().ok()?;
    let local = DateTime::from_parts(date, Time::new(part(8)?, part(10)?, part(12)?, nanoseconds).ok()?);
    let stamp = match zone {
        "" => Stamp::Local(local, None),
        _ => Stamp::Instant(strtime::parse("%z", zone).ok()?.offset()?.to_timestamp(local).ok()?),
    };
    Some(Written::new(stamp, precision_us))
}

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && text.matches('.').count() <= 1
}

/// Seconds, milliseconds, microseconds or nanoseconds by magnitude: unambiguous from 2001 to 2286.
fn epoch(text: &str) -> Option<Micros> {
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
        text.parse::<Decimal>().ok().and_then(Decimal::to_ratio)
    } else {
        Ratio::new(whole, 1)
    };
    per_unit.zip(number).and_then(|(per_unit, number)| number.checked_mul(per_unit)?.to_counts(1))
}

/// A day count of a spreadsheet as a local time.
fn serial(text: &str) -> Option<DateTime> {
    let us = text.parse::<Decimal>().ok()?.to_ratio()?.to_counts(DAY)?;
    let within = SERIAL_DAYS.contains(&(us / DAY));
    let since = SignedDuration::from_micros(us);
    within.then(|| SERIAL_BEGIN.at(0, 0, 0, 0).checked_add(since).ok()).flatten()
}

/// First and second number, year and time of day of `03/04/2026 10:15`.
fn numeric_date(text: &str) -> Option<(&str, &str, &str, &str)> {
    let (date, clock) = text.split_at(text.find([' ', 'T']).unwrap_or(text.len()));
    let separator = date.chars().find(|c| matches!(c, '/' | '.' | '-'))?;
    let mut parts = date.split(separator);
    let (first, second, year) = (parts.next()?, parts.next()?, parts.next()?);
    let is_number =
        |text: &str, lengths: &[usize]| lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let fits = is_number(first, &[1, 2]) && is_number(second, &[1, 2]) && is_number(year, &[2, 4]);
    (fits && parts.next().is_none()).then(|| (first, second, year, clock.trim_start_matches('T').trim()))
}

/// A local time as an instant, and whether summer time left it out or repeats it. Of two instants the one nearer to its
/// record's time is taken.
fn in_zone(local: DateTime, zone: &TimeZone, record_us: Micros) -> Option<(Micros, bool)> {
    let ambiguous = zone.to_ambiguous_timestamp(local);
    let (earlier, later) = (ambiguous.earlier().ok()?.as_microsecond(), ambiguous.later().ok()?.as_microsecond());
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => Some((earlier, false)),
        // A clock that was not put forward: it goes on with the offset from before.
        AmbiguousOffset::Gap { .. } => Some((later, true)),
        AmbiguousOffset::Fold { .. } => {
            let is_later = record_us.abs_diff(later) < record_us.abs_diff(earlier);
            Some((if is_later { later } else { earlier }, true))
        }
    }
}

/// A zone by its IANA name. Abbreviations stand for several zones and are none.
fn named_zone(name: &str) -> Option<TimeZone> {
    if name.contains('/') || name == "UTC" { TimeZone::get(name).ok() } else { None }
}

fn zone(text: &str) -> Option<TimeZone> {
    let offset = || -> Option<Offset> { strtime::parse("%:z", text).ok()?.offset() };
    if text.starts_with(['+', '-']) { offset().map(TimeZone::fixed) } else { named_zone(text) }
}
