//! Exact integers to the nearest double: the only rounding there is.
//!
//! Sums, products and squares inside windows are integers. What a rule sees is their quotient, rounded once, to nearest
//! and ties to even, as IEEE division would if the operands were exact. So an aggregate depends on the window's contents
//! and on nothing else.

/// Integers up to here are doubles themselves, so one hardware division rounds correctly.
const EXACT_IN_DOUBLE: u128 = 1 << 53;

/// `num / den`, correctly rounded; `None` if `den` is zero.
#[inline]
pub fn ratio_to_f64(num: i128, den: i128) -> Option<f64> {
    // Through 64 bits: the conversion from 128 is a call, and this is on the path of every reading.
    const EXACT: i128 = EXACT_IN_DOUBLE as i128;
    if (-EXACT..=EXACT).contains(&num) && (1..=EXACT).contains(&den) {
        return Some(num as i64 as f64 / den as i64 as f64);
    }
    any_ratio_to_f64(num, den)
}

fn any_ratio_to_f64(num: i128, den: i128) -> Option<f64> {
    if den == 0 {
        return None;
    }
    let negative = (num < 0) != (den < 0) && num != 0;
    let (num, den) = (num.unsigned_abs(), den.unsigned_abs());
    let magnitude = if num <= EXACT_IN_DOUBLE && den <= EXACT_IN_DOUBLE {
        num as u64 as f64 / den as u64 as f64
    } else {
        divide_rounded(num, den)
    };
    Some(if negative { -magnitude } else { magnitude })
}

/// Quotient with at least 64 significant bits and a sticky bit, then one rounding to 53 bits by the conversion.
fn divide_rounded(num: u128, den: u128) -> f64 {
    if num == 0 {
        return 0.0;
    }
    // Shift so that the quotient has 64 to 66 bits: more than 53 plus guard and sticky.
    let shift = 65 - (bits(num) as i32 - bits(den) as i32);
    let (quotient, inexact) = shifted_quotient(num, den, shift);
    scale(quotient | u128::from(inexact), -shift)
}

/// `floor(num * 2^shift / den)` and whether something was cut off. The quotient is known to fit 128 bits.
fn shifted_quotient(num: u128, den: u128, shift: i32) -> (u128, bool) {
    if shift <= 0 {
        // Dividing by den * 2^-shift: the remainder of either step makes it inexact.
        let quotient = num / den;
        let down = shift.unsigned_abs();
        let kept = quotient >> down;
        return (kept, !num.is_multiple_of(den) || kept << down != quotient);
    }
    // Long division, one bit of the shift at a time; the remainder stays below den.
    let mut quotient = num / den;
    let mut remainder = num % den;
    for _ in 0..shift {
        let carry = remainder >> 127 != 0;
        remainder = remainder.wrapping_shl(1);
        quotient <<= 1;
        if carry || remainder >= den {
            remainder = remainder.wrapping_sub(den);
            quotient |= 1;
        }
    }
    (quotient, remainder != 0)
}

/// `value * 2^exponent`; `value as f64` rounds to nearest even, the power of two is exact in the range of the engine.
fn scale(value: u128, exponent: i32) -> f64 {
    let mut result = value as f64;
    let mut exponent = exponent;
    while exponent != 0 {
        let step = exponent.clamp(-1000, 1000);
        result *= 2f64.powi(step);
        exponent -= step;
    }
    result
}

fn bits(value: u128) -> u32 {
    128 - value.leading_zeros()
}

/// The correctly rounded square root of `num / den`; `None` if `den` is not positive or `num` is negative.
///
/// `den` must fit 64 bits, as n (n - 1) times the square of a resolution does for any window.
pub fn sqrt_ratio_to_f64(num: i128, den: i128) -> Option<f64> {
    if den <= 0 || num < 0 {
        return None;
    }
    let (num, den) = (num.unsigned_abs(), den.unsigned_abs());
    if num == 0 {
        return Some(0.0);
    }
    // An even shift that gives the shifted quotient 122 to 126 bits, so the root has 61 to 63: guard and sticky to spare.
    let mut shift = 124 - (bits(num) as i32 - bits(den) as i32);
    shift -= shift.rem_euclid(2);
    let (quotient, inexact) = shifted_quotient(num, den, shift);
    let root = quotient.isqrt();
    let sticky = inexact || root * root != quotient;
    // One more bit for the sticky, below the guard bits.
    Some(scale(root << 1 | u128::from(sticky), -shift / 2 - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quotient_is_the_nearest_double() {
        assert_eq!(ratio_to_f64(381, 10), Some(38.1));
        assert_eq!(ratio_to_f64(-7, 2), Some(-3.5));
        assert_eq!(ratio_to_f64(0, 5), Some(0.0));
        assert_eq!(ratio_to_f64(1, 0), None);
        let third = ratio_to_f64(10_i128.pow(30), 3 * 10_i128.pow(30));
        assert_eq!(third, Some(1.0 / 3.0));
        assert_eq!(ratio_to_f64(i128::MAX, 1), Some(i128::MAX as f64));
    }

    #[test]
    fn a_root_is_the_nearest_double() {
        assert_eq!(sqrt_ratio_to_f64(9, 1), Some(3.0));
        assert_eq!(sqrt_ratio_to_f64(2, 1), Some(2f64.sqrt()));
        assert_eq!(sqrt_ratio_to_f64(1, 4), Some(0.5));
        assert_eq!(sqrt_ratio_to_f64(0, 4), Some(0.0));
        assert_eq!(sqrt_ratio_to_f64(-1, 4), None);
    }

    proptest! {
        #[test]
        fn the_long_way_agrees_with_hardware_where_hardware_is_exact(num in 1_u64..1 << 53, den in 1_u64..1 << 53) {
            prop_assert_eq!(divide_rounded(u128::from(num), u128::from(den)), num as f64 / den as f64);
        }

        #[test]
        fn a_common_factor_changes_nothing(num in 1_i128..1 << 53, den in 1_i128..1 << 40, factor in 1_i128..1 << 60) {
            prop_assert_eq!(ratio_to_f64(num * factor, den * factor), ratio_to_f64(num, den));
        }

        #[test]
        fn roots_of_whole_doubles_agree_with_hardware(num in 1_i64..1 << 53) {
            prop_assert_eq!(sqrt_ratio_to_f64(i128::from(num), 1), Some((num as f64).sqrt()));
        }
    }
}
