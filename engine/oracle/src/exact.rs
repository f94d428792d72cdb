//! Exact numbers (section 3.4): fractions of integers, rounded once. And durations as they are written.

use super::{HOUR, SECOND};

/// `num / den` as `q / 2^shift`, cut off, with at least `bits` bits in `q` and an even `shift` where asked for; the
/// last part says whether anything was cut off.
fn long_division(num: u128, den: u128, bits: u32, even: bool) -> Option<(u128, i32, bool)> {
    if den == 0 || den >> 127 != 0 {
        return None;
    }
    let (mut q, mut rest, mut shift) = (num / den, num % den, 0);
    if num == 0 {
        return Some((0, 0, false));
    }
    while q < 1 << bits || (even && shift % 2 != 0) {
        q <<= 1;
        rest <<= 1;
        if rest >= den {
            rest -= den;
            q |= 1;
        }
        shift += 1;
    }
    Some((q, shift, rest != 0))
}

/// `(q + something below 1 if inexact) / 2^shift`, to the nearest double, ties to even. `q` has more than 54 bits if
/// inexact.
fn nearest_double(q: u128, shift: i32, inexact: bool) -> f64 {
    let bits = 128 - q.leading_zeros();
    let drop = bits.saturating_sub(53);
    let mut kept = q >> drop;
    if drop > 0 {
        let rest = q & ((1 << drop) - 1);
        let half = 1 << (drop - 1);
        if rest > half || (rest == half && (inexact || kept & 1 == 1)) {
            kept += 1;
        }
    }
    kept as f64 * power_of_two(drop as i32 - shift)
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// The double nearest to `num / den`.
pub fn ratio(num: i128, den: i128) -> Option<f64> {
    let (q, shift, inexact) = long_division(num.unsigned_abs(), den.unsigned_abs(), 64, false)?;
    let size = nearest_double(q, shift, inexact);
    Some(if (num < 0) != (den < 0) && num != 0 { -size } else { size })
}

/// The double nearest to the root of `num / den`.
pub fn root_of_ratio(num: i128, den: i128) -> Option<f64> {
    if num < 0 || den <= 0 {
        return None;
    }
    let (q, shift, inexact) = long_division(num.unsigned_abs(), den.unsigned_abs(), 116, true)?;
    let root = q.isqrt();
    Some(nearest_double(root, shift / 2, inexact || root * root != q))
}

/// A double as the fraction that its shortest decimal is.
pub fn shortest_decimal(x: f64) -> Option<(i128, i128)> {
    let text = format!("{x}");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let num = format!("{whole}{part}").parse::<i128>().ok()?;
    Some((num, 10_i128.checked_pow(u32::try_from(part.len()).ok()?)?))
}

/// `15s`, `250ms`, `1h30m`, `-10m` in microseconds.
pub fn duration_us(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.trim().strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.trim()),
    };
    let mut total = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..letters] {
                "us" | "µs" => 1,
                "ms" => 1_000,
                "s" => SECOND,
                "m" => 60 * SECOND,
                "h" => HOUR,
                "d" => 24 * HOUR,
                _ => return None,
            };
        rest = &rest[letters..];
    }
    Some(sign * total)
}
