//! Exact decimal numbers: from the text a device sent to an integer count of the signal's resolution.
//!
//! A value never passes through a double on its way in: `36.599998` and `36.6` are rounded once, half away from
//! zero, after the unit conversion. What does not fit is an error, never a wrapped or saturated number.

use std::str::FromStr;

/// Digits kept of one number; device values have at most a dozen. More is refused rather than rounded twice.
const SIGNIFICANT_DIGITS_MAX: u32 = 18;
/// Largest power of ten a number may carry, either way; `1e400` is an overflow, not a value.
const EXPONENT_MAX: i32 = 18;

/// Why a text is not a number the engine can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    #[error("not a decimal number")]
    NotANumber,
    #[error("a comma in a number needs a declared decimal or thousands mark")]
    Locale,
    #[error("out of the range of an exact number")]
    Overflow,
}

/// `mantissa * 10^exponent`, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decimal {
    pub mantissa: i128,
    pub exponent: i32,
}

impl FromStr for Decimal {
    type Err = DecimalError;

    /// Accepts an optional sign, digits with an optional point, an optional exponent: `97`, `+097`, `9.7e1`.
    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let (negative, body) = match text.as_bytes() {
            [b'-', ..] => (true, &text[1..]),
            [b'+', ..] => (false, &text[1..]),
            _ => (false, text),
        };
        let (digits, exponent_text) = match body.find(['e', 'E']) {
            Some(at) => (&body[..at], Some(&body[at + 1..])),
            None => (body, None),
        };
        let mut mantissa: i128 = 0;
        let mut significant = 0;
        let mut exponent: i32 = 0;
        let (mut seen_digit, mut seen_point) = (false, false);
        for byte in digits.bytes() {
            match byte {
                b'0'..=b'9' => {
                    seen_digit = true;
                    if significant > 0 || byte != b'0' {
                        significant += 1;
                    }
                    if significant > SIGNIFICANT_DIGITS_MAX {
                        return Err(DecimalError::Overflow);
                    }
                    mantissa = mantissa * 10 + i128::from(byte - b'0');
                    exponent -= i32::from(seen_point);
                }
                b'.' if !seen_point => seen_point = true,
                b',' => return Err(DecimalError::Locale),
                _ => return Err(DecimalError::NotANumber),
            }
        }
        if !seen_digit {
            return Err(DecimalError::NotANumber);
        }
        if let Some(text) = exponent_text {
            let digits_only = text.trim_start_matches(['+', '-']);
            if digits_only.is_empty() || !digits_only.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(DecimalError::NotANumber);
            }
            let written: i32 = text.parse().map_err(|_| DecimalError::Overflow)?;
            exponent = exponent.checked_add(written).ok_or(DecimalError::Overflow)?;
        }
        if mantissa == 0 {
            exponent = 0;
        }
        if exponent.abs() > EXPONENT_MAX + SIGNIFICANT_DIGITS_MAX as i32 {
            return Err(DecimalError::Overflow);
        }
        Ok(Self { mantissa: if negative { -mantissa } else { mantissa }, exponent })
    }
}

impl Decimal {
    /// The same number as a fraction; `None` if it does not fit.
    pub fn to_ratio(self) -> Option<Ratio> {
        let power = 10_i128.checked_pow(self.exponent.unsigned_abs())?;
        if self.exponent >= 0 {
            Some(Ratio { num: self.mantissa.checked_mul(power)?, den: 1 })
        } else {
            Ratio::new(self.mantissa, power)
        }
    }
}

/// An exact fraction in lowest terms; the denominator is positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio {
    num: i128,
    den: i128,
}

impl Ratio {
    pub const ONE: Ratio = Ratio { num: 1, den: 1 };
    pub const ZERO: Ratio = Ratio { num: 0, den: 1 };

    /// `None` if `den` is zero or the reduced parts do not fit.
    pub fn new(num: i128, den: i128) -> Option<Self> {
        if den == 0 {
            return None;
        }
        let divisor = gcd(num.unsigned_abs(), den.unsigned_abs()).max(1);
        let divisor = i128::try_from(divisor).ok()?;
        let (num, den) = (num / divisor, den / divisor);
        if den < 0 { Some(Self { num: num.checked_neg()?, den: den.checked_neg()? }) } else { Some(Self { num, den }) }
    }

    /// Reads `5/9`, `-160/9`, `1000/133.322387415` or a plain decimal.
    pub fn parse(text: &str) -> Option<Self> {
        let part = |text: &str| Decimal::from_str(text.trim()).ok()?.to_ratio();
        match text.split_once('/') {
            Some((num, den)) => {
                let (num, den) = (part(num)?, part(den)?);
                Self::new(num.num.checked_mul(den.den)?, num.den.checked_mul(den.num)?)
            }
            None => part(text),
        }
    }

    pub fn checked_mul(self, other: Self) -> Option<Self> {
        // Cross-reduction keeps the products small.
        let a = Self::new(self.num, other.den)?;
        let b = Self::new(other.num, self.den)?;
        Self::new(a.num.checked_mul(b.num)?, a.den.checked_mul(b.den)?)
    }

    pub fn checked_add(self, other: Self) -> Option<Self> {
        let left = self.num.checked_mul(other.den)?;
        let right = other.num.checked_mul(self.den)?;
        Self::new(left.checked_add(right)?, self.den.checked_mul(other.den)?)
    }

    /// `self * per_unit`, rounded half away from zero; `None` if it does not fit.
    pub fn to_counts(self, per_unit: i64) -> Option<i64> {
        let scaled = self.num.checked_mul(i128::from(per_unit))?;
        let magnitude = scaled.unsigned_abs();
        let den = self.den.unsigned_abs();
        let rounded = magnitude / den + u128::from(magnitude % den * 2 >= den);
        let rounded = i64::try_from(rounded).ok()?;
        Some(if scaled < 0 { -rounded } else { rounded })
    }

    /// The nearest double, for display.
    pub fn to_f64(self) -> f64 {
        self.num as f64 / self.den as f64
    }
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(text: &str, per_unit: i64) -> Option<i64> {
        Decimal::from_str(text).ok()?.to_ratio()?.to_counts(per_unit)
    }

    #[test]
    fn spellings_of_one_number_are_one_number() {
        for text in ["97", "+97", "097", "9.7e1", "97.0", "970E-1", "97."] {
            assert_eq!(counts(text, 10), Some(970), "{text}");
        }
        assert_eq!(counts("36.599998", 10), Some(366));
        assert_eq!(counts("-0.05", 10), Some(-1));
        assert_eq!(counts("0.04999", 10), Some(0));
    }

    #[test]
    fn what_is_no_plain_number_says_why() {
        for (text, error) in [
            ("", DecimalError::NotANumber),
            (".", DecimalError::NotANumber),
            ("NaN", DecimalError::NotANumber),
            ("12e", DecimalError::NotANumber),
            ("1.2.3", DecimalError::NotANumber),
            ("36,8", DecimalError::Locale),
            ("1,234.5", DecimalError::Locale),
            ("1e400", DecimalError::Overflow),
            ("1e99999999999", DecimalError::Overflow),
            ("1234567890123456789", DecimalError::Overflow),
        ] {
            assert_eq!(Decimal::from_str(text), Err(error), "{text}");
        }
    }

    #[test]
    fn fractions_are_read_exactly() {
        assert_eq!(Ratio::parse("5/9"), Ratio::new(5, 9));
        assert_eq!(Ratio::parse("-160/9"), Ratio::new(-160, 9));
        assert_eq!(Ratio::parse("1/0"), None);
        assert_eq!(Ratio::parse("1000/133.322387415"), Ratio::new(1_000_000_000_000, 133_322_387_415));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = Decimal::from_str(&text);
            let _ = Ratio::parse(&text);
        }

        #[test]
        fn a_count_printed_and_read_again_is_the_same(value in -2_000_000_000_i64..2_000_000_000) {
            let text = format!("{}{}.{:03}", if value < 0 { "-" } else { "" }, value.abs() / 1000, value.abs() % 1000);
            prop_assert_eq!(counts(&text, 1000), Some(value));
        }
    }
}
