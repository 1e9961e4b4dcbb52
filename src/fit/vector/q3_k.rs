//! The fit of Q3_K, one sub-block per lane. Then, with importance, a lane has all scales of a block.

use super::moves::fit_signed_by_moves;
use super::ranges::ranges;
use super::signed::fit_signed;
use super::weights::{means_of_squares, weigh_blocks};
use crate::block::q3_k::{HALF, HALF_SCALE, SUB, SUB_BLOCKS};
use crate::block::{BlockQ3K, QK_K};
use crate::fit::search as fit;
use crate::float::nearest_int;
use crate::simd::{InLanes, MOST_LANES as MOST, Twice, Vector};
use std::ops::Range;

/// Blocks whose scales are fitted together.
const BATCH: usize = MOST / 2;

/// A value for each sub-block.
type Subs = [f32; SUB_BLOCKS];

/// The fits of the sub-blocks of some blocks.
struct ScaleFits {
    scales: [Subs; BATCH],
    /// The sums of the weights.
    weights: [Subs; BATCH],
    /// The inverse scales with which the quants were rounded; 0 for sub-blocks of zeros.
    inverses: [Subs; BATCH],
}

/// The vector version of [`BlockQ3K::quantize`], for a row.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize<V: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    out: &mut [BlockQ3K],
) {
    let zeros = [[0f32; SUB_BLOCKS]; BATCH];
    let mut fits = ScaleFits { scales: zeros, weights: zeros, inverses: zeros };
    for (i, (x, out)) in x.chunks(BATCH).zip(out.chunks_mut(BATCH)).enumerate() {
        let importance = importance.map(|w| &w[i * BATCH..][..x.len()]);
        fit_batch::<V>(x, importance, &mut fits);
        match importance {
            None => {
                for (out, scales) in out.iter_mut().zip(&fits.scales) {
                    *out = BlockQ3K::with_scales(scales);
                }
            }
            Some(_) => store_scales::<V>(&fits, out),
        }
        for (block, (x, out)) in x.iter().zip(out).enumerate() {
            let inverses = importance.map(|_| &fits.inverses[block]);
            round_quants::<V>(x, inverses, out);
        }
    }
}

/// Fits the sub-blocks.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
unsafe fn fit_batch<V: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    fits: &mut ScaleFits,
) {
    let means = match importance {
        None => [0f32; BATCH],
        Some(_) => means_of_squares::<BATCH>(x, 2.0),
    };
    for (range, is_twice) in ranges::<V>(x.len(), SUB_BLOCKS) {
        // the lanes of one or two vectors are whole blocks.
        if is_twice {
            fit_blocks::<Twice<V>>(range, x, importance, &means, fits);
        } else {
            fit_blocks::<V>(range, x, importance, &means, fits);
        }
    }
}

/// Fits the blocks of a range, which fill a vector.
#[inline(always)]
unsafe fn fit_blocks<W: Vector>(
    range: Range<usize>,
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    means: &[f32; BATCH],
    fits: &mut ScaleFits,
) {
    let x = &x[range.clone()];
    let (mut xt, mut wt) = (InLanes::<SUB>::new(), InLanes::<SUB>::new());
    let (xt, wt) = (xt.as_mut_ptr(), wt.as_mut_ptr());
    W::transpose(x.as_ptr().cast(), SUB, xt);
    let (scales, sums, inverses) = match importance {
        None => (fit_signed_by_moves::<W>(xt, HALF).to_array(), [0.0; MOST], [0.0; MOST]),
        Some(importance) => {
            W::transpose(importance[range.clone()].as_ptr().cast(), SUB, wt);
            weigh_blocks::<W, SUB, SUB_BLOCKS>(&means[range.clone()], xt, wt, wt);
            let mut sum = W::splat(0.0);
            for i in (0..SUB * W::LANES).step_by(W::LANES) {
                sum = sum.add(W::load(wt.add(i)));
            }
            let fit = fit_signed::<W>(xt, wt, SUB, HALF);
            (fit.scale, sum.to_array(), fit.inverse)
        }
    };
    for (l, block) in range.enumerate() {
        fits.scales[block] = scales.as_chunks().0[l];
        fits.weights[block] = sums.as_chunks().0[l];
        fits.inverses[block] = inverses.as_chunks().0[l];
    }
}

/// Rounds the scales into `out`, with the weights.
#[inline(always)]
unsafe fn store_scales<V: Vector>(fits: &ScaleFits, out: &mut [BlockQ3K]) {
    for (range, is_twice) in ranges::<V>(out.len(), 1) {
        let (first, out) = (range.start, &mut out[range]);
        // the blocks do not need more lanes.
        if is_twice {
            fit_scales::<Twice<V>>(first, fits, out);
        } else {
            fit_scales::<V>(first, fits, out);
        }
    }
}

/// Fits the scales of blocks from `first` on, with one lane per block.
#[inline(always)]
unsafe fn fit_scales<W: Vector>(first: usize, fits: &ScaleFits, out: &mut [BlockQ3K]) {
    let (mut xt, mut wt) = (InLanes::<SUB_BLOCKS>::new(), InLanes::<SUB_BLOCKS>::new());
    // `fits` has as many lanes from `first` on, and the arrays have room for MOST_LANES lanes.
    W::transpose(fits.scales.as_ptr().add(first).cast(), SUB_BLOCKS, xt.as_mut_ptr());
    W::transpose(fits.weights.as_ptr().add(first).cast(), SUB_BLOCKS, wt.as_mut_ptr());
    let own = fit_signed::<W>(xt.as_ptr(), wt.as_ptr(), SUB_BLOCKS, HALF_SCALE);
    for (l, out) in out.iter_mut().enumerate() {
        let (scales, weights) = (&fits.scales[first + l], &fits.weights[first + l]);
        let mut rounded = [0u8; SUB_BLOCKS];
        let mut d = own.scale[l];
        if !scales.iter().all(|scale| scale.is_finite()) {
            d = fit::fit_signed(scales, Some(weights), HALF_SCALE, &mut rounded);
        } else if own.inverse[l] != 0.0 {
            for (rounded, scale) in rounded.iter_mut().zip(scales) {
                let whole = nearest_int(own.inverse[l] * scale);
                *rounded = (whole.clamp(-HALF_SCALE, HALF_SCALE - 1) + HALF_SCALE) as u8;
            }
        }
        *out = BlockQ3K::from_scales(d, &rounded);
    }
}

/// The quants for the stored scales. If a stored scale is 0, the quants are those of the sub-block's fit, which is
/// repeated if there are no `inverses`.
#[inline(always)]
unsafe fn round_quants<V: Vector>(x: &[f32; QK_K], inverses: Option<&Subs>, out: &mut BlockQ3K) {
    let mut quants = [0u8; QK_K];
    for (j, scale) in out.all_scales().into_iter().enumerate() {
        let range = j * SUB..(j + 1) * SUB;
        let own = inverses.map(|inverses| inverses[j]);
        if scale == 0.0 && own.is_none() {
            fit::fit_signed_by_moves(&x[range.clone()], HALF, &mut quants[range]);
            continue;
        }
        let offset = if scale == 0.0 && own == Some(0.0) { 0.0 } else { HALF as f32 };
        for i in range.step_by(V::LANES) {
            // LANES divides 16.
            let v = V::load(x.as_ptr().add(i));
            let q = match own {
                Some(inverse) if scale == 0.0 => {
                    v.mul(V::splat(inverse)).nearest_int_clamped(-HALF, HALF - 1)
                }
                _ => v.nearest_quotient(scale, -HALF, HALF - 1),
            };
            q.add(V::splat(offset)).store_bytes(i32::MAX, quants.as_mut_ptr().add(i));
        }
    }
    out.pack(&quants);
}
