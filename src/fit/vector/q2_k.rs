//! The fit of Q2_K, one sub-block per lane. Then, with importance, a lane has all scales or all minima of a block.

use super::affine::fit_affine;
use super::k::round_quants;
use super::moves::fit_positive;
use super::ranges::ranges;
use super::weights::{means_of_squares, weigh_blocks};
use crate::block::q2_k::{LEVELS, MAX_SCALE, SUB, SUB_BLOCKS};
use crate::block::{BlockQ2K, QK_K};
use crate::fit::search::Search;
use crate::simd::{InLanes, MOST_LANES as MOST, Twice, Vector};
use std::ops::Range;

/// Blocks whose scales and minima are fitted together.
const BATCH: usize = MOST / 2;

/// A value for each sub-block.
type Subs = [f32; SUB_BLOCKS];

/// The fits of the sub-blocks of some blocks.
struct Fits {
    /// For each block the scales, then the minima.
    scales_and_mins: [Subs; 2 * BATCH],
    /// The sums of the weights, twice.
    weights: [Subs; 2 * BATCH],
    /// The grids to which the quants were rounded.
    inverses: [Subs; BATCH],
    mins: [Subs; BATCH],
}

/// The vector version of [`BlockQ2K::quantize`], for a row.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize<V: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    out: &mut [BlockQ2K],
) {
    let zeros = [[0f32; SUB_BLOCKS]; 2 * BATCH];
    let mut fits = Fits {
        scales_and_mins: zeros,
        weights: zeros,
        inverses: [[0f32; SUB_BLOCKS]; BATCH],
        mins: [[0f32; SUB_BLOCKS]; BATCH],
    };
    for (i, (x, out)) in x.chunks(BATCH).zip(out.chunks_mut(BATCH)).enumerate() {
        let importance = importance.map(|w| &w[i * BATCH..][..x.len()]);
        if fit_batch::<V>(x, importance, &mut fits) {
            store_scales::<V>(importance.is_some(), &fits, out);
            round_batch::<V>(x, &fits, out);
            continue;
        }
        for (l, (x, out)) in x.iter().zip(out).enumerate() {
            *out = BlockQ2K::quantize(x, importance.map(|w| &w[l]));
        }
    }
}

/// Fits the sub-blocks. Returns false if some are too extreme for the vector version.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
unsafe fn fit_batch<V: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    fits: &mut Fits,
) -> bool {
    let means = match importance {
        None => [0f32; BATCH],
        Some(_) => means_of_squares::<BATCH>(x, 1.0),
    };
    for (range, is_twice) in ranges::<V>(x.len(), SUB_BLOCKS) {
        // the lanes of one or two vectors are whole blocks.
        let fine = if is_twice {
            fit_blocks::<Twice<V>>(range, x, importance, &means, fits)
        } else {
            fit_blocks::<V>(range, x, importance, &means, fits)
        };
        if !fine {
            return false;
        }
    }
    true
}

/// Fits the blocks of a range, which fill a vector.
#[inline(always)]
unsafe fn fit_blocks<W: Vector>(
    range: Range<usize>,
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    means: &[f32; BATCH],
    fits: &mut Fits,
) -> bool {
    let x = &x[range.clone()];
    let (mut xt, mut wt) = (InLanes::<SUB>::new(), InLanes::<SUB>::new());
    let (xt, wt) = (xt.as_mut_ptr(), wt.as_mut_ptr());
    W::transpose(x.as_ptr().cast(), SUB, xt);
    let search = match importance {
        None => {
            for i in (0..SUB * W::LANES).step_by(W::LANES) {
                W::load(xt.add(i)).abs().store(wt.add(i));
            }
            Search::Q2_K
        }
        Some(importance) => {
            W::transpose(importance[range.clone()].as_ptr().cast(), SUB, wt);
            weigh_blocks::<W, SUB, SUB_BLOCKS>(&means[range.clone()], xt, wt, wt);
            Search::FINE
        }
    };
    let sub = fit_affine::<W, SUB>(xt, wt, LEVELS, search);
    let Some(sub) = sub else { return false };
    for (l, block) in range.enumerate() {
        fits.scales_and_mins[2 * block] = sub.scale.as_chunks().0[l];
        fits.scales_and_mins[2 * block + 1] = sub.min.as_chunks().0[l];
        fits.weights[2 * block] = sub.sum_w.as_chunks().0[l];
        fits.weights[2 * block + 1] = sub.sum_w.as_chunks().0[l];
        fits.inverses[block] = sub.grid_inverse.as_chunks().0[l];
        fits.mins[block] = sub.grid_min.as_chunks().0[l];
    }
    true
}

/// Rounds the scales and minima into `out`.
#[inline(always)]
unsafe fn store_scales<V: Vector>(weighted: bool, fits: &Fits, out: &mut [BlockQ2K]) {
    let of = |block: usize| {
        let weights = weighted.then_some(&fits.weights[2 * block]);
        let [scales, mins] = [2 * block, 2 * block + 1].map(|i| &fits.scales_and_mins[i]);
        BlockQ2K::with_scales(scales, mins, weights)
    };
    if !weighted {
        out.iter_mut().enumerate().for_each(|(block, out)| *out = of(block));
        return;
    }
    for (range, is_twice) in ranges::<V>(out.len(), 2) {
        let (first, out) = (range.start, &mut out[range]);
        // the blocks do not need more lanes.
        let fine = if is_twice {
            fit_scales::<Twice<V>>(first, fits, out)
        } else {
            fit_scales::<V>(first, fits, out)
        };
        if !fine {
            out.iter_mut().enumerate().for_each(|(l, out)| *out = of(first + l));
        }
    }
}

/// Fits the scales and minima of blocks from `first` on, with two lanes per block. Returns false if they are too
/// extreme for the vector version.
#[inline(always)]
unsafe fn fit_scales<W: Vector>(first: usize, fits: &Fits, out: &mut [BlockQ2K]) -> bool {
    let (mut xt, mut wt) = (InLanes::<SUB_BLOCKS>::new(), InLanes::<SUB_BLOCKS>::new());
    let mut quants = InLanes::<SUB_BLOCKS>::new();
    let mut bytes = [0u8; SUB_BLOCKS * MOST];
    let mut scales = [0f32; MOST];
    // `fits` has as many lanes from `first` on, and the arrays have room for MOST_LANES lanes.
    let (x, w) = (fits.scales_and_mins.as_ptr(), fits.weights.as_ptr());
    W::transpose(x.add(2 * first).cast(), SUB_BLOCKS, xt.as_mut_ptr());
    W::transpose(w.add(2 * first).cast(), SUB_BLOCKS, wt.as_mut_ptr());
    let (x, w) = (xt.as_ptr(), wt.as_ptr());
    let Some(scale) = fit_positive::<W>(x, w, MAX_SCALE, quants.as_mut_ptr()) else {
        return false;
    };
    scale.store(scales.as_mut_ptr());
    for i in (0..SUB_BLOCKS * W::LANES).step_by(W::LANES) {
        W::load(quants.as_ptr().add(i)).store_bytes(i32::MAX, bytes.as_mut_ptr().add(i));
    }
    for (l, out) in out.iter_mut().enumerate() {
        let rounded =
            |lane: usize| (scales[lane], std::array::from_fn(|j| bytes[j * W::LANES + lane]));
        *out = BlockQ2K::from_scales(rounded(2 * l), rounded(2 * l + 1));
    }
    true
}

/// The quants for the stored scales.
#[inline(always)]
unsafe fn round_batch<V: Vector>(x: &[[f32; QK_K]], fits: &Fits, out: &mut [BlockQ2K]) {
    for (block, (x, out)) in x.iter().zip(out).enumerate() {
        let mut stored = [(0.0, 0.0); SUB_BLOCKS];
        for (j, stored) in stored.iter_mut().enumerate() {
            *stored = out.scale_and_min(j);
        }
        let grid = (&fits.inverses[block], &fits.mins[block]);
        let mut quants = [0u8; QK_K];
        round_quants::<V, _>(LEVELS, x, &stored, grid, &mut quants);
        out.pack(&quants);
    }
}
