//! The legacy types without importance, and Q8_0. Blocks are encoded one by one; each is a few vectors.

use crate::block::{BlockQ8_0, QK};
use crate::fit::legacy::signed_zero;
use crate::float::f32_to_f16;
use crate::float::inverse;
use crate::simd::Vector;

/// The vector version of [`crate::fit::legacy::quantize_symmetric`] without importance.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_symmetric<V: Vector, B>(
    x: &[f32],
    half: i8,
    out: &mut [B],
    store: fn(f32, &[u8; QK]) -> B,
) {
    for (out, x) in out.iter_mut().zip(x.as_chunks::<QK>().0) {
        let d = signed_extreme::<V>(x) / -f32::from(half);
        let id = V::splat(inverse(d));
        let offset = V::splat(f32::from(half) + 0.5);
        let mut quants = [0u8; QK];
        for i in (0..QK).step_by(V::LANES) {
            let position = V::load(x.as_ptr().add(i)).mul(id).add(offset);
            position.store_bytes(i32::from(2 * half - 1), quants.as_mut_ptr().add(i));
        }
        *out = store(d, &quants);
    }
}

/// The vector version of [`crate::fit::legacy::quantize_affine`] without importance.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_affine<V: Vector, B>(
    x: &[f32],
    levels: i8,
    out: &mut [B],
    store: fn(f32, f32, &[u8; QK]) -> B,
) {
    for (out, x) in out.iter_mut().zip(x.as_chunks::<QK>().0) {
        // LANES divides 32.
        let (mut min, mut max) = (V::load(x.as_ptr()), V::load(x.as_ptr()));
        for i in (V::LANES..QK).step_by(V::LANES) {
            let v = V::load(x.as_ptr().add(i));
            (min, max) = (v.min(min), v.max(max));
        }
        let (min, max) = (signed_zero(min.smallest(), x), signed_zero(max.largest(), x));
        let d = (max - min) / f32::from(levels);
        let id = V::splat(inverse(d));
        let mut quants = [0u8; QK];
        for i in (0..QK).step_by(V::LANES) {
            let v = V::load(x.as_ptr().add(i));
            let position = v.sub(V::splat(min)).mul(id).add(V::splat(0.5));
            position.store_bytes(i32::from(levels), quants.as_mut_ptr().add(i));
        }
        *out = store(d, min, &quants);
    }
}

/// The vector version of Q8_0's encoder.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_q8_0<V: Vector>(x: &[f32], out: &mut [BlockQ8_0]) {
    for (block, x) in out.iter_mut().zip(x.as_chunks::<QK>().0) {
        let d = largest_magnitude::<V>(x) / 127.0;
        let id = V::splat(inverse(d));
        block.d = f32_to_f16(d).to_le_bytes();
        // Rounds to nearest, ties away from zero: adds the largest float below 1/2 with the value's sign,
        // then truncates. Adding 1/2 itself would round values just below a tie upwards.
        let half = V::splat(0.5f32.next_down());
        for i in (0..QK).step_by(V::LANES) {
            let position = V::load(x.as_ptr().add(i)).mul(id);
            let rounded = position.add(half.with_sign_of(position));
            rounded.store_bytes(i32::MAX, block.qs.as_mut_ptr().add(i));
        }
    }
}

#[inline(always)]
unsafe fn largest_magnitude<V: Vector>(x: &[f32; QK]) -> f32 {
    // LANES divides 32.
    let mut magnitude = V::load(x.as_ptr()).abs();
    for i in (V::LANES..QK).step_by(V::LANES) {
        magnitude = V::load(x.as_ptr().add(i)).abs().max(magnitude);
    }
    magnitude.largest()
}

/// The weight of largest magnitude with its sign; of several, the first. 0 for a block of zeros.
#[inline(always)]
unsafe fn signed_extreme<V: Vector>(x: &[f32; QK]) -> f32 {
    // LANES divides 32.
    let magnitude = largest_magnitude::<V>(x);
    let (mut extreme, mut negative) = (0u64, 0u64);
    for i in (0..QK).step_by(V::LANES) {
        let v = V::load(x.as_ptr().add(i));
        extreme |= V::bits(V::splat(magnitude).le(v.abs())) << i;
        negative |= V::bits(v.lt(V::splat(0.0))) << i;
    }
    let first = extreme & extreme.wrapping_neg();
    if negative & first == 0 { magnitude } else { -magnitude }
}
