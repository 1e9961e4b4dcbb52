//! What the legacy types (blocks of 32) share: statistics, and how they lay out 32 small integers:
//! the low four bits of number j and of number j + 16 share byte j; a fifth bit goes to bit j of a
//! 32-bit word.

use super::QK;
use crate::fit::{self, Search};
use crate::float::truncate_to_i8;

/// Packs the low four bits of 32 numbers.
#[inline(always)]
pub(crate) fn pack_nibbles(numbers: &[u8; QK]) -> [u8; QK / 2] {
    std::array::from_fn(|j| (numbers[j] & 0x0f) | (numbers[j + QK / 2] << 4))
}

/// Packs the fifth bits of 32 numbers.
#[inline(always)]
pub(super) fn pack_fifth_bits(numbers: &[u8; QK]) -> [u8; 4] {
    let (eights, _) = numbers.as_chunks::<8>();
    std::array::from_fn(|k| {
        // the product moves bit 8 j to bit 56 + j
        let fifth = (u64::from_le_bytes(eights[k]) >> 4) & 0x0101_0101_0101_0101;
        (fifth.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
    })
}

/// Number `j` (0..16) and number `j + 16`, four bits each.
#[inline(always)]
pub(crate) fn unpack_nibbles(qs: &[u8; QK / 2], j: usize) -> (i32, i32) {
    (i32::from(qs[j] & 0x0f), i32::from(qs[j] >> 4))
}

/// Number `j` (0..16) and number `j + 16`, five bits each.
#[inline(always)]
pub(crate) fn unpack_five_bits(qs: &[u8; QK / 2], qh: [u8; 4], j: usize) -> (i32, i32) {
    let (low, high) = unpack_nibbles(qs, j);
    let qh = u32::from_le_bytes(qh);
    let fifth = |bit: usize| ((qh >> bit) & 1) as i32 * 16;
    (low + fifth(j), high + fifth(j + QK / 2))
}

/// The 32 numbers, four bits each.
#[inline(always)]
pub(super) fn all_nibbles(qs: &[u8; QK / 2]) -> [u8; QK] {
    in_halves(|j| unpack_nibbles(qs, j))
}

/// The 32 numbers, five bits each.
#[inline(always)]
pub(super) fn all_five_bits(qs: &[u8; QK / 2], qh: &[u8; 4]) -> [u8; QK] {
    in_halves(|j| unpack_five_bits(qs, *qh, j))
}

/// 32 numbers of which `pair` gives numbers j and j + 16.
#[inline(always)]
fn in_halves(pair: impl Fn(usize) -> (i32, i32)) -> [u8; QK] {
    let mut numbers = [0u8; QK];
    for j in 0..QK / 2 {
        let (low, high) = pair(j);
        (numbers[j], numbers[j + QK / 2]) = (low as u8, high as u8);
    }
    numbers
}

/// Gives a block its `numbers` and `pack`: the fields that hold them, how each is packed, and how all are unpacked.
macro_rules! packed_numbers {
    ($block:ident: $($field:ident = $pack:ident),+; $unpack:ident) => {
        impl $block {
            /// The numbers, each as wide as the type's.
            #[inline(always)]
            pub(crate) fn numbers(&self) -> [u8; QK] {
                $unpack($(&self.$field),+)
            }

            /// Stores the numbers, each as wide as the type's.
            #[inline(always)]
            pub(crate) fn pack(&mut self, numbers: &[u8; QK]) {
                $(self.$field = $pack(numbers);)+
            }
        }
    };
}
pub(super) use packed_numbers;

/// Encodes a row as `d · (q - half)`: with importance by [`fit::fit_signed`], without by the weight
/// of largest magnitude, which gets the number 0. `store` makes a block of `d` and the numbers.
#[inline(always)]
pub(super) fn quantize_symmetric<B>(
    x: &[f32],
    importance: Option<&[f32]>,
    half: i8,
    out: &mut [B],
    store: impl Fn(f32, &[u8; QK]) -> B,
) {
    let mean_square = importance.map_or(0.0, |_| mean_square(x));
    for (i, (block, x)) in out.iter_mut().zip(x.chunks_exact(QK)).enumerate() {
        let mut numbers = [0u8; QK];
        let d = if let Some(importance) = importance {
            let weights = row_weights(x, &importance[i * QK..], mean_square);
            fit::fit_signed(x, Some(&weights), i32::from(half), &mut numbers)
        } else {
            let d = signed_extreme(x) / -f32::from(half);
            let id = inverse(d);
            for (q, &v) in numbers.iter_mut().zip(x) {
                *q = truncate_to_i8(v * id + (f32::from(half) + 0.5)).min(2 * half - 1) as u8;
            }
            d
        };
        *block = store(d, &numbers);
    }
}

/// Encodes a row as `d · q + m` with q in 0..=levels: with importance by [`fit::fit_affine`],
/// without by the block's range. `store` makes a block of `d`, `m` and the numbers.
#[inline(always)]
pub(super) fn quantize_affine<B>(
    x: &[f32],
    importance: Option<&[f32]>,
    levels: i8,
    out: &mut [B],
    store: impl Fn(f32, f32, &[u8; QK]) -> B,
) {
    let mean_square = importance.map_or(0.0, |_| mean_square(x));
    for (i, (block, x)) in out.iter_mut().zip(x.chunks_exact(QK)).enumerate() {
        let mut numbers = [0u8; QK];
        let (d, m) = if let Some(importance) = importance {
            let weights = row_weights(x, &importance[i * QK..], mean_square);
            let fit = fit::fit_affine(x, &weights, i32::from(levels), Search::FINE, &mut numbers);
            (fit.scale, -fit.min)
        } else {
            let (min, max) = range(x);
            let d = (max - min) / f32::from(levels);
            let id = inverse(d);
            for (q, &v) in numbers.iter_mut().zip(x) {
                *q = truncate_to_i8((v - min) * id + 0.5).min(levels) as u8;
            }
            (d, min)
        };
        *block = store(d, m, &numbers);
    }
}

/// The largest magnitude. In bits, whose order is that of magnitudes, so that the order in which
/// weights are compared does not matter and vectors may do it.
#[inline(always)]
pub(super) fn largest_magnitude(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().map(|v| v.abs().to_bits()).max().unwrap_or(0))
}

/// The weight of largest magnitude with its sign; the first of equals. 0 for a block of zeros.
#[inline(always)]
fn signed_extreme(x: &[f32]) -> f32 {
    let magnitude = largest_magnitude(x);
    x.iter().copied().find(|v| v.abs() == magnitude && magnitude > 0.0).unwrap_or(0.0)
}

/// Smallest and largest weight; of two zeros, the first.
#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    const LANES: usize = 8;
    let (mut mins, mut maxs) = ([f32::MAX; LANES], [-f32::MAX; LANES]);
    for x in x.as_chunks::<LANES>().0 {
        for (lane, &v) in x.iter().enumerate() {
            mins[lane] = if v < mins[lane] { v } else { mins[lane] };
            maxs[lane] = if v > maxs[lane] { v } else { maxs[lane] };
        }
    }
    let min = mins.into_iter().fold(f32::MAX, |a, b| if b < a { b } else { a });
    let max = maxs.into_iter().fold(-f32::MAX, |a, b| if b > a { b } else { a });
    (signed_zero(min, x), signed_zero(max, x))
}

/// `extreme`, or where it is a zero the first of `x`, which has its sign.
#[inline(always)]
pub(crate) fn signed_zero(extreme: f32, x: &[f32]) -> f32 {
    match extreme {
        0.0 => x.iter().copied().find(|&v| v == 0.0).unwrap_or(0.0),
        other => other,
    }
}

/// 1 / d, or 0 where d is 0.
#[inline(always)]
pub(crate) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The weights of a legacy block's fit: importance · √(mean square of the row + x²).
#[inline(always)]
fn row_weights(x: &[f32], importance: &[f32], mean_square: f32) -> [f32; QK] {
    std::array::from_fn(|j| importance[j] * (mean_square + x[j] * x[j]).sqrt())
}

/// The mean square of a row, added up in order.
#[inline(always)]
pub(crate) fn mean_square(row: &[f32]) -> f32 {
    let mut sum = 0.0f32;
    for &v in row {
        sum += v * v;
    }
    sum / row.len() as f32
}
