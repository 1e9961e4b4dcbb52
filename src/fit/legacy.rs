//! The encoders of the legacy types (blocks of 32).

use super::encode::Encode;
use super::search::{Search, fit_affine, fit_signed};
use crate::block::{
    BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, QK, q4_0, q4_1, q5_0, q5_1,
};
use crate::float::{f32_to_f16, inverse, round_to_i8, truncate_to_i8};

impl Encode for BlockQ4_0 {
    const WEIGHS_BY_ROW: bool = true;

    #[inline(always)]
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        quantize_symmetric(x, importance, q4_0::HALF, out, Self::new);
    }
}

impl Encode for BlockQ4_1 {
    const WEIGHS_BY_ROW: bool = true;

    #[inline(always)]
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        quantize_affine(x, importance, q4_1::LEVELS, out, Self::new);
    }
}

impl Encode for BlockQ5_0 {
    const WEIGHS_BY_ROW: bool = true;

    #[inline(always)]
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        quantize_symmetric(x, importance, q5_0::HALF, out, Self::new);
    }
}

impl Encode for BlockQ5_1 {
    const WEIGHS_BY_ROW: bool = true;

    #[inline(always)]
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        quantize_affine(x, importance, q5_1::LEVELS, out, Self::new);
    }
}

impl Encode for BlockQ8_0 {
    /// The nearest quant, ties away from zero; importance is not used.
    #[inline(always)]
    fn quantize_row(x: &[f32], _importance: Option<&[f32]>, out: &mut [Self]) {
        for (block, x) in out.iter_mut().zip(x.chunks_exact(QK)) {
            let d = largest_magnitude(x) / 127.0;
            let id = inverse(d);
            block.d = f32_to_f16(d).to_le_bytes();
            for (q, &v) in block.qs.iter_mut().zip(x) {
                *q = round_to_i8(v * id) as u8;
            }
        }
    }
}

/// Encodes a row as `d · (q - half)`. With importance, [`fit_signed`] finds d; without, d gives the weight of largest
/// magnitude the quant 0. `store` makes a block of `d` and the quants.
#[inline(always)]
fn quantize_symmetric<B>(
    x: &[f32],
    importance: Option<&[f32]>,
    half: i8,
    out: &mut [B],
    store: impl Fn(f32, &[u8; QK]) -> B,
) {
    let mean_square = importance.map_or(0.0, |_| mean_square(x));
    for (i, (block, x)) in out.iter_mut().zip(x.chunks_exact(QK)).enumerate() {
        let mut quants = [0u8; QK];
        let d = if let Some(importance) = importance {
            let weights = row_weights(x, &importance[i * QK..], mean_square);
            fit_signed(x, Some(&weights), i32::from(half), &mut quants)
        } else {
            let d = signed_extreme(x) / -f32::from(half);
            let id = inverse(d);
            for (q, &v) in quants.iter_mut().zip(x) {
                *q = truncate_to_i8(v * id + (f32::from(half) + 0.5)).min(2 * half - 1) as u8;
            }
            d
        };
        *block = store(d, &quants);
    }
}

/// Encodes a row as `d · q + m` with q in 0..=levels. With importance, [`fit_affine`] finds d and m; without, they
/// follow from the smallest and largest weight. `store` makes a block of `d`, `m` and the quants.
#[inline(always)]
fn quantize_affine<B>(
    x: &[f32],
    importance: Option<&[f32]>,
    levels: i8,
    out: &mut [B],
    store: impl Fn(f32, f32, &[u8; QK]) -> B,
) {
    let mean_square = importance.map_or(0.0, |_| mean_square(x));
    for (i, (block, x)) in out.iter_mut().zip(x.chunks_exact(QK)).enumerate() {
        let mut quants = [0u8; QK];
        let (d, m) = if let Some(importance) = importance {
            let weights = row_weights(x, &importance[i * QK..], mean_square);
            let fit = fit_affine(x, &weights, i32::from(levels), Search::FINE, &mut quants);
            (fit.scale, -fit.min)
        } else {
            let (min, max) = range(x);
            let d = (max - min) / f32::from(levels);
            let id = inverse(d);
            for (q, &v) in quants.iter_mut().zip(x) {
                *q = truncate_to_i8((v - min) * id + 0.5).min(levels) as u8;
            }
            (d, min)
        };
        *block = store(d, m, &quants);
    }
}

/// The largest magnitude. Magnitudes compare like their bits. As integers, they can be compared in any order, so that
/// the compiler can vectorize the loop.
#[inline(always)]
fn largest_magnitude(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().map(|v| v.abs().to_bits()).max().unwrap_or(0))
}

/// The weight of largest magnitude with its sign; of several, the first. 0 for a block of zeros.
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

/// `extreme`; but if it is zero, the first zero of `x`, because of its sign.
#[inline(always)]
pub(crate) fn signed_zero(extreme: f32, x: &[f32]) -> f32 {
    match extreme {
        0.0 => x.iter().copied().find(|&v| v == 0.0).unwrap_or(0.0),
        other => other,
    }
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
