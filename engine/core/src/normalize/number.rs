//! Numbers as vendors write them: with a comparator before, a unit behind, commas in between.

use std::str::FromStr;

use wardbell_schemas::decimal::{Decimal, DecimalError};
use wardbell_schemas::reading::{Comparator, Policies, Policy};

/// The comparator before a number, and the rest.
pub(super) fn comparator(text: &str) -> (Comparator, &str) {
    const SYMBOLS: [(&str, Comparator); 6] = [
        ("<=", Comparator::LessOrEqual),
        ("≤", Comparator::LessOrEqual),
        ("<", Comparator::Less),
        (">=", Comparator::GreaterOrEqual),
        ("≥", Comparator::GreaterOrEqual),
        (">", Comparator::Greater),
    ];
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return (Comparator::None, text);
    }
    let found = SYMBOLS.iter().find_map(|(symbol, comparator)| Some((*comparator, text.strip_prefix(*symbol)?)));
    found.map_or((Comparator::None, text), |(comparator, rest)| (comparator, rest.trim_start()))
}

/// Number and unit, where the unit stands behind the number ("97 %").
pub(super) fn split_unit(text: &str) -> (&str, Option<&str>) {
    let inside = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | ',' | 'e' | 'E');
    let end = text.find(|c: char| !inside(c)).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    (number, Some(rest.trim()).filter(|rest| !rest.is_empty()))
}

/// Reads a number, with the policy that was needed to read it. `is_plain`: written by a format that knows no commas.
///
/// # Errors
/// [`DecimalError`]; a comma no policy explains, or a point that may group thousands, is [`DecimalError::Locale`].
pub(super) fn decimal(
    text: &str,
    is_plain: bool,
    allowed: Policies,
) -> Result<(Decimal, Option<Policy>), DecimalError> {
    let is_grouped = || !is_plain && text.contains('.') && regroup(text, ',', '.').is_some();
    match Decimal::from_str(text) {
        // Where a comma is the decimal mark, a point may group thousands.
        Ok(_) if allowed.contains(Policy::DecimalComma) && is_grouped() => Err(DecimalError::Locale),
        Ok(decimal) => Ok((decimal, None)),
        Err(DecimalError::Overflow) => Err(DecimalError::Overflow),
        Err(error) if !text.contains(',') => Err(error),
        Err(_) => with_comma(text, allowed),
    }
}

/// A number with a comma, read by the policy that explains it.
fn with_comma(text: &str, allowed: Policies) -> Result<(Decimal, Option<Policy>), DecimalError> {
    for (policy, decimal_mark, group_mark) in [(Policy::DecimalComma, ',', '.'), (Policy::ThousandsComma, '.', ',')] {
        if allowed.contains(policy)
            && let Some(plain) = regroup(text, decimal_mark, group_mark)
        {
            return Ok((Decimal::from_str(&plain)?, Some(policy)));
        }
    }
    Err(DecimalError::Locale)
}

/// The number with a point as decimal mark and without group marks; `None` if its groups are not of three digits.
fn regroup(text: &str, decimal_mark: char, group_mark: char) -> Option<String> {
    let body = text.trim_start_matches(['+', '-']);
    let sign = &text[..text.len() - body.len()];
    let (whole, fraction) = body.split_once(decimal_mark).unwrap_or((body, ""));
    let groups: Vec<&str> = whole.split(group_mark).collect();
    let (first, rest) = groups.split_first()?;
    let is_digits = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
    let grouped = rest.is_empty() || ((1..=3).contains(&first.len()) && rest.iter().all(|group| group.len() == 3));
    if !grouped || !groups.iter().all(is_digits) || fraction.contains([decimal_mark, group_mark]) {
        return None;
    }
    Some(format!("{sign}{}.{fraction}", groups.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str, policies: &[Policy]) -> Result<String, DecimalError> {
        let mut allowed = Policies::NONE;
        policies.iter().for_each(|policy| allowed.insert(*policy));
        let (decimal, used) = decimal(text, false, allowed)?;
        let used = used.map_or("", Policy::name);
        Ok(format!("{}e{} {used}", decimal.mantissa, decimal.exponent).trim_end().to_owned())
    }

    #[test]
    fn commas_are_read_as_the_policy_says_and_never_as_both() {
        use Policy::{DecimalComma, ThousandsComma};
        let locale = || Err(DecimalError::Locale);
        for (id, text, policies, expected) in [
            ("A03", "36,8", &[DecimalComma][..], Ok("368e-1 decimal_comma")),
            ("A03", "36,8", &[], locale()),
            ("A03", "36,8", &[ThousandsComma], locale()),
            ("A04", "1.234", &[], Ok("1234e-3")),
            ("A04", "1.234", &[DecimalComma], locale()),
            ("A04", "36.8", &[DecimalComma], Ok("368e-1")),
            ("A05", "1,234.5", &[], locale()),
            ("A05", "1.234,5", &[], locale()),
            ("A05", "1,234.5", &[ThousandsComma], Ok("12345e-1 thousands_comma")),
            ("A05", "1,234.5", &[DecimalComma], locale()),
            ("A05", "1.234,5", &[DecimalComma], Ok("12345e-1 decimal_comma")),
            ("A05", "1.234,5", &[ThousandsComma], locale()),
            ("A05", "-1.234.567,5", &[DecimalComma], Ok("-12345675e-1 decimal_comma")),
            ("A05", "12,34", &[ThousandsComma], locale()),
            ("A05", "1,2,3", &[DecimalComma], locale()),
            ("A29", "+97", &[DecimalComma], Ok("97e0")),
        ] {
            assert_eq!(read(text, policies), expected.map(str::to_owned), "{id}: {text} {policies:?}");
        }
        let mut comma = Policies::NONE;
        comma.insert(DecimalComma);
        assert!(decimal("1.234", true, comma).is_ok(), "a JSON number knows no commas");
    }

    #[test]
    fn comparators_stand_before_a_number() {
        for (text, symbol, rest) in
            [("<20", "<", "20"), ("<= 20", "<=", "20"), ("≥600", ">=", "600"), (">600", ">", "600"), ("-5", "", "-5")]
        {
            let (comparator, found) = comparator(text);
            assert_eq!((comparator.symbol(), found), (symbol, rest), "{text}");
        }
    }

    proptest! {
        #[test]
        fn reading_a_number_never_panics(text in "\\PC{0,30}", bits in 0_u32..4) {
            let (number, _) = split_unit(comparator(&text).1);
            let _ = decimal(number, false, Policies(bits));
            let _ = decimal(&text, false, Policies(bits));
        }
    }
}
