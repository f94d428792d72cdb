//! Durations as people write them: `"30s"`, `"5m"`, `"1h30m"`. A bare number is refused: its unit would be a guess.

use crate::{Micros, SECOND};

/// Reads a duration.
///
/// Units: `us`, `ms`, `s`, `m`, `h`, `d`; several parts add up. A leading `-` is allowed where `signed` is.
///
/// # Errors
/// A sentence that names what is wrong, for the user who wrote it.
pub fn parse(text: &str) -> Result<Micros, String> {
    let (negative, mut rest) = match text.trim().strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.trim()),
    };
    if rest.is_empty() {
        return Err(format!("`{text}` is not a duration; write it with its unit, like \"30s\", \"5m\" or \"1h30m\""));
    }
    let mut total: Micros = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(letters);
        let unit_us = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => SECOND,
            "m" | "min" => 60 * SECOND,
            "h" => 3_600 * SECOND,
            "d" => 86_400 * SECOND,
            "" => return Err(format!("`{text}` has no unit; write it like \"30s\", \"5m\" or \"1h\"")),
            _ => return Err(format!("`{text}` has the unknown unit `{unit}`; units are us, ms, s, m, h, d")),
        };
        let part = exact_multiple(number, unit_us).ok_or_else(|| format!("`{text}` is not a duration"))?;
        total = total.checked_add(part).ok_or_else(|| format!("`{text}` is too long"))?;
        rest = next;
    }
    Ok(if negative { -total } else { total })
}

/// `number * unit_us` where that is a whole count of microseconds.
fn exact_multiple(number: &str, unit_us: Micros) -> Option<Micros> {
    let ratio = number.parse::<crate::decimal::Decimal>().ok()?.to_ratio()?;
    let counts = ratio.to_counts(unit_us)?;
    Some(counts)
}

/// Prints a duration as short as it can be read: `15s`, `1h30m`, `250ms`.
pub fn print(us: Micros) -> String {
    if us == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    if us < 0 {
        text.push('-');
    }
    let mut rest = us.unsigned_abs();
    for (unit, unit_us) in
        [("d", 86_400_000_000_u64), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)]
    {
        let count = rest / unit_us;
        rest %= unit_us;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

/// For serde: a duration field as a string with its unit.
pub mod as_text {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::Micros;

    pub fn serialize<S: Serializer>(us: &Micros, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::print(*us))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Micros, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, us) in [
            ("30s", 30_000_000),
            ("5m", 300_000_000),
            ("1h30m", 5_400_000_000),
            ("7d", 604_800_000_000),
            ("1.5s", 1_500_000),
            ("-10m", -600_000_000),
            ("250ms", 250_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(us), "{text}");
        }
        for text in ["", "30", "s", "5 minutes", "1y", "1..5s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_printed_duration_is_read_back() {
        for us in [0, 1, 999, 15_000_000, 5_400_000_000, -600_000_000] {
            assert_eq!(parse(&print(us)), Ok(us));
        }
    }
}
