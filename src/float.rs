//! Half precision, bfloat16 and the roundings that ggml uses, bit for bit.
//!
//! They do not use conversion instructions, so that every machine gives the same bytes. All conversions to 16 bits
//! round to nearest, ties to even.

/// IEEE binary16 → binary32, exact for every input (NaN payloads kept).
///
/// No intermediate float is subnormal, because subnormal floats take CPUs a hundred times as long. Scales of blocks are
/// often subnormal as f16.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    let moved = magnitude << 13;
    let value = match magnitude >> 10 {
        // subnormal: multiples of 2^-24, the place of the last bit of 0.5
        0 => (f32::from_bits(0.5f32.to_bits() + magnitude) - 0.5).to_bits(),
        // infinity and NaN
        31 => moved + ((255 - 31) << 23),
        _ => moved + ((127 - 15) << 23),
    };
    f32::from_bits(value | sign)
}

/// IEEE binary32 → binary16, to nearest with ties to even; too large becomes infinite.
///
/// Every NaN becomes `0x7e00` with the input's sign, as in ggml's portable conversion.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00; // 65536 and more
    }
    if magnitude < 0x3880_0000 {
        // below 2^-14: the sum with 0.5 leaves the subnormal's bits at the bottom, already rounded
        let rounded = f32::from_bits(magnitude) + 0.5;
        return sign | (rounded.to_bits() - 0.5f32.to_bits()) as u16;
    }
    let odd = (magnitude >> 13) & 1;
    let rebiased = magnitude - ((127 - 15) << 23);
    sign | ((rebiased + 0x0fff + odd) >> 13) as u16
}

/// bfloat16 → binary32, exact.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// binary32 → bfloat16, to nearest with ties to even; a NaN stays one and becomes quiet.
#[inline(always)]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// 1.5 · 2²³. Adding this to a value within ±2²² and subtracting it again rounds to the nearest integer, ties to even,
/// because the sum has no bits for a fraction.
pub(crate) const ROUNDING: f32 = 12_582_912.0;

/// The nearest integer, ties to even; for values within ±2²².
#[inline(always)]
pub(crate) fn nearest(value: f32) -> f32 {
    (value + ROUNDING) - ROUNDING
}

/// The nearest integer, ties to even, by adding [`ROUNDING`] and reading the mantissa.
///
/// Meant for |value| < 2²². Beyond it the result is what the same bits give in ggml, which its
/// quantizers then clamp; a NaN gives 0.
#[inline(always)]
pub fn nearest_int(value: f32) -> i32 {
    let bits = (value + ROUNDING).to_bits() as i32;
    (bits & 0x007f_ffff) - 0x0040_0000
}

/// `(int8_t)value` as x86-64 compiles it: towards zero, then the low byte; out of range gives 0.
///
/// Such values arise in blocks so small that the inverse of their scale overflows.
#[inline(always)]
pub fn truncate_to_i8(value: f32) -> i8 {
    truncate_to_i32(value) as i8
}

#[inline(always)]
fn truncate_to_i32(value: f32) -> i32 {
    let in_range = (-2_147_483_648.0..2_147_483_648.0).contains(&value);
    if in_range { value as i32 } else { i32::MIN }
}

/// `(int8_t)roundf(value)` as x86-64 compiles it: to nearest, ties away from zero, then the low
/// byte; out of range gives 0.
#[inline(always)]
pub fn round_to_i8(value: f32) -> i8 {
    let whole = truncate_to_i32(value);
    if whole == i32::MIN {
        return 0;
    }
    let rest = value - whole as f32; // exact
    (whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5)) as i8
}

/// `a · b + c`, rounded once, like the fused instructions of CPUs, but with operations that every CPU has. Without a
/// fused instruction, [`f32::mul_add`] calls a function of the C library, which is too slow for a loop.
#[inline(always)]
pub fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        return a.mul_add(b, c);
    }
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c)); // exact
    let sum = product + c;
    let added = sum - product;
    let lost = (product - (sum - added)) + (c - added); // exact: Knuth's two-sum
    // Rounds to odd, so that rounding again, to f32, gives the result of a single rounding: if the sum is inexact and
    // even, it is replaced by its odd neighbour on the side of the exact value.
    let bits = sum.to_bits();
    let is_inexact = (lost > 0.0) | (lost < 0.0); // false of NaN
    let step = if (lost > 0.0) == (sum > 0.0) { 1 } else { u64::MAX };
    let step = if is_inexact & (bits & 1 == 0) { step } else { 0 };
    f64::from_bits(bits.wrapping_add(step)) as f32
}

/// 1 / d, or 0 if d is 0.
#[inline(always)]
pub(crate) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// `e^x` to about two units in the last place; 0 below -87.3, e^88 above 88. It uses plain arithmetic, so that every
/// machine gives the same result. The function of a C library may differ between CPUs.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6]; // the first has trailing zeros: n · it is exact
    let bounded = if x > 88.0 { 88.0 } else { x };
    let bounded = if bounded < -87.3 { -87.3 } else { bounded };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUNDING;
    let n = shifted - ROUNDING;
    let r = (bounded - n * LN2[0]) - n * LN2[1];
    // the series of e^r to r⁷/7!, |r| <= ln 2 / 2
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.3 { 0.0 } else { p * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_the_way_through_f32() {
        for bits in 0..=u16::MAX {
            let value = f16_to_f32(bits);
            let expected = if value.is_nan() { bits & 0x8000 | 0x7e00 } else { bits };
            assert_eq!(f32_to_f16(value), expected, "{bits:#06x} is {value}");
        }
    }

    #[test]
    fn f16_known_values() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, 6.103_515_6e-5),
            (0x0001, 5.960_464_5e-8),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(f16_to_f32(bits), value);
            assert_eq!(f32_to_f16(value), bits);
        }
    }

    /// Halfway between two neighbours goes to the even one, and a hair beyond goes further.
    #[test]
    fn f16_ties_go_to_even() {
        for bits in 0..0x7bffu16 {
            let (low, high) = (f16_to_f32(bits), f16_to_f32(bits + 1));
            let middle = (f64::from(low) + f64::from(high)) / 2.0;
            let even = if bits & 1 == 0 { bits } else { bits + 1 };
            let middle = middle as f32; // exact: one bit more than f16 has
            assert_eq!(f32_to_f16(middle), even);
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), bits + 1);
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), bits);
        }
        assert_eq!(f32_to_f16(65519.996), 0x7bff);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
    }

    #[test]
    fn bf16_ties_go_to_even() {
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
    }

    #[test]
    fn nearest_int_rounds_ties_to_even() {
        for (value, expected) in [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (7.49, 7)] {
            assert_eq!(nearest_int(value), expected, "{value}");
        }
        assert_eq!(nearest_int(f32::NAN), 0);
    }

    #[test]
    fn truncation_follows_x86() {
        for (value, expected) in
            [(7.99, 7), (-7.99, -7), (300.0, 44), (f32::INFINITY, 0), (f32::NAN, 0)]
        {
            assert_eq!(truncate_to_i8(value), expected, "{value}");
        }
    }

    #[test]
    fn rounding_takes_ties_away_from_zero() {
        for (value, expected) in [
            (0.5, 1),
            (-0.5, -1),
            (2.5, 3),
            (0.499_999_97, 0),
            (126.5, 127),
            (-127.0, -127),
            (f32::INFINITY, 0),
            (f32::NAN, 0),
        ] {
            assert_eq!(round_to_i8(value), expected, "{value}");
        }
        for i in -3900..3900 {
            let value = i as f32 / 31.0;
            assert_eq!(round_to_i8(value), value.round() as i8, "{value}");
        }
    }

    /// Compares with the C library: factors of all sizes, and addends that nearly cancel or give nearly a tie.
    #[test]
    fn mul_add_rounds_once() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 32) as u32
        };
        let special = [0.0, -0.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, f32::INFINITY, f32::NAN, 1.0];
        let same = |a: f32, b: f32, c: f32| {
            let (got, expected) = (mul_add(a, b, c), a.mul_add(b, c));
            let both_nan = got.is_nan() && expected.is_nan();
            assert!(
                both_nan || got.to_bits() == expected.to_bits(),
                "{a:e} {b:e} {c:e}: {got:e} {expected:e}"
            );
        };
        for a in special {
            for b in special {
                for c in special {
                    same(a, b, c);
                    same(-a, b, c);
                }
            }
        }
        for i in 0..400_000 {
            let (a, b) = (f32::from_bits(next()), f32::from_bits(next()));
            same(a, b, f32::from_bits(next()));
            let (a, b) = (
                1.0 + (next() >> 9) as f32 * 2f32.powi(-23),
                1.0 + (next() >> 20) as f32 * 2f32.powi(-12),
            );
            let near = -(a * b) * 2f32.powi((i % 60) - 30);
            same(a, b, near);
            same(a, b, f32::from_bits(near.to_bits() & 0xffff_0000));
            same(a * 2f32.powi(-75), b * 2f32.powi(-70), near * 1e-38);
        }
    }

    #[test]
    fn exp_is_that_of_the_library() {
        for i in -8800..8800 {
            let x = i as f32 * 0.01;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            if x < -87.3 {
                assert_eq!(got, 0.0);
            } else {
                assert!((got / expected - 1.0).abs() < 3e-7, "e^{x} is {expected}, not {got}");
            }
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
