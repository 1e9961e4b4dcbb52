//! The base of a block whose outliers are kept beside it: fitted to what is left without them.
//!
//! An outlier costs a sub-block's other weights precision by stretching its range, so what is left
//! out is what shortens ranges most: at the ends of the sub-blocks, up to [`DEPTH`] weights of one,
//! `outliers` of the block. [`windows`] finds them; a weight outside of its sub-block's window
//! carries no weight in the fit.
//!
//! The fit itself need not give ggml's bytes, so it is a short one: [`CANDIDATES`] grids a sub-block,
//! whose error follows from their sums. The scales are then rounded to six bits under the error that
//! this adds, and the minima fitted anew to the rounded scales.

use crate::block::k_scales::{SUB_BLOCKS, pack};
use crate::block::{KFit, QK_K};
use crate::float::{ROUNDING, f16_to_f32, f32_to_f16, nearest, nearest_int};

/// Weights of a sub-block.
pub(crate) const SUB: usize = QK_K / SUB_BLOCKS;
/// The most weights that are left out of a sub-block.
pub(crate) const DEPTH: usize = 6;
/// Grids tried for a sub-block.
pub(crate) const CANDIDATES: usize = 5;
/// The low bits that the limit of the gains does without, so that it is found in few steps.
pub(crate) const LIMIT_GRID: u32 = 18;
/// The largest quant.
const LEVELS: f32 = 15.0;
/// Factors tried for the scales of a block, and for its minima.
const SCALES: usize = 16;
/// The largest 6-bit scale or minimum.
const MAX_SCALE: f32 = 63.0;

/// What a sub-block's grid covers: its other weights are left out of the fit. `low` ≤ 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    pub low: f32,
    pub high: f32,
}

/// The fits of the sub-blocks, and the sums over weights that they follow from.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WindowFits {
    pub scale: [f32; SUB_BLOCKS],
    /// What is deducted, ≥ 0.
    pub min: [f32; SUB_BLOCKS],
    /// `Σ w`
    pub sum_w: [f32; SUB_BLOCKS],
    /// `Σ w x`
    pub sum_x: [f32; SUB_BLOCKS],
    /// `Σ w q`, q being the quants of the grid taken.
    pub sum_l: [f32; SUB_BLOCKS],
    /// `Σ w q²`
    pub sum_l2: [f32; SUB_BLOCKS],
}

/// Steps of candidate `c` from the low end of the window to the high one. All round to at most
/// [`LEVELS`], so that no number need be clamped.
#[inline(always)]
pub(crate) fn candidate(c: usize) -> f32 {
    LEVELS - 1.1 + 0.39 * c as f32
}

/// What the gain of `k` weights left out is multiplied by for that of one.
#[inline(always)]
pub(crate) fn share(k: usize) -> f32 {
    1.0 / k as f32
}

/// Fits `x` under `weights` without its `outliers`.
pub(crate) fn fit(x: &[f32; QK_K], weights: &[f32; QK_K], outliers: usize) -> WindowFits {
    let (x, weights) = (x.as_chunks::<SUB>().0, weights.as_chunks::<SUB>().0);
    let mut fits = WindowFits::default();
    for (j, window) in windows(x, weights, outliers).into_iter().enumerate() {
        fits.fit_sub_block(j, &x[j], &weights[j], window);
    }
    fits
}

/// The window of each sub-block: those that cover all but `outliers` weights of the block with the
/// least sum of (sum of a sub-block's weights) · (length of its window)², by Lagrange's rule.
fn windows(x: &[[f32; SUB]], weights: &[[f32; SUB]], outliers: usize) -> [Window; SUB_BLOCKS] {
    let mut choices = [[Window { low: 0.0, high: 0.0 }; DEPTH + 1]; SUB_BLOCKS];
    let mut gains = [[0f32; DEPTH]; SUB_BLOCKS];
    for j in 0..SUB_BLOCKS {
        let weight = weights[j].iter().fold(0.0, |sum, w| sum + w);
        (choices[j], gains[j]) = shortest_windows(&x[j], weight);
    }
    let limit = limit(outliers, gains.as_flattened());
    let limit = f32::from_bits(limit.to_bits().next_multiple_of(1 << LIMIT_GRID));
    std::array::from_fn(|j| {
        let taken = gains[j].iter().rposition(|&gain| gain > limit).map_or(0, |last| last + 1);
        choices[j][taken]
    })
}

/// The shortest window that leaves out k of a sub-block, for each k, and what the k-th gains. Where
/// only several together gain much, the gain is shared between them, so that gains never increase.
pub(crate) fn shortest_windows(x: &[f32; SUB], weight: f32) -> ([Window; DEPTH + 1], [f32; DEPTH]) {
    let mut sorted = *x;
    sorted.sort_by(f32::total_cmp);
    let mut costs = [0f32; DEPTH + 1];
    let windows = std::array::from_fn(|k| {
        let mut best = Window { low: 0.0, high: f32::INFINITY };
        for above in 0..=k {
            let low = sorted[k - above].min(0.0);
            let high = sorted[SUB - 1 - above];
            if high - low < best.high - best.low {
                best = Window { low, high };
            }
        }
        let length = best.high - best.low;
        costs[k] = weight * (length * length);
        best
    });
    // the slopes of the costs' lower convex hull
    let mut gains = [f32::INFINITY; DEPTH];
    for a in 0..DEPTH {
        let mut most = f32::NEG_INFINITY;
        for b in (a + 1..=DEPTH).rev() {
            most = most.max((costs[a] - costs[b]) * share(b - a));
            gains[b - 1] = gains[b - 1].min(most);
        }
    }
    (windows, gains)
}

/// The smallest limit, not negative, that at most `count` of the values are above.
fn limit(count: usize, values: &[f32]) -> f32 {
    let mut positive: Vec<f32> = values.iter().copied().filter(|&v| v > 0.0).collect();
    positive.sort_by(|a, b| b.total_cmp(a));
    positive.get(count).copied().unwrap_or(0.0)
}

impl WindowFits {
    /// Fits sub-block `j`: of the candidate grids the one whose best scale and minimum leave the
    /// least error, which is what they explain most of.
    fn fit_sub_block(&mut self, j: usize, x: &[f32; SUB], weights: &[f32; SUB], window: Window) {
        let Window { low, high } = window;
        let length = high - low;
        let weights: [f32; SUB] =
            std::array::from_fn(|i| if x[i] < low || x[i] > high { 0.0 } else { weights[i] });
        let x = x.map(|v| v.max(low).min(high));
        let (mut sum_w, mut sum_x) = (0.0f32, 0.0f32);
        for (&v, &w) in x.iter().zip(&weights) {
            sum_w += w;
            sum_x += w * v;
        }
        (self.sum_w[j], self.sum_x[j]) = (sum_w, sum_x);
        self.min[j] = -low;
        let mut best = 0.0f32;
        for c in 0..CANDIDATES {
            let inverse = if length > 0.0 { candidate(c) / length } else { 0.0 };
            let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
            for (&v, &w) in x.iter().zip(&weights) {
                let l = (v - low).mul_add(inverse, ROUNDING) - ROUNDING;
                let wl = w * l;
                sum_l += wl;
                sum_l2 = wl.mul_add(l, sum_l2);
                sum_xl = wl.mul_add(v, sum_xl);
            }
            let determinant = sum_w * sum_l2 - sum_l * sum_l;
            let mut scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if min > 0.0 {
                min = 0.0;
                scale = sum_xl / sum_l2;
            }
            let explained = scale * sum_xl + min * sum_x;
            if determinant > 0.0 && explained > best {
                best = explained;
                (self.scale[j], self.min[j]) = (scale, -min);
                (self.sum_l[j], self.sum_l2[j]) = (sum_l, sum_l2);
            }
        }
    }

    /// The block with the scales rounded to six bits, and no minima or quants yet.
    ///
    /// Each of these steps is a chain of operations that wait for each other, so several blocks are
    /// best taken through one step before the next.
    #[inline(always)]
    pub fn round_scales(&self) -> RoundedScales {
        // plain loops: a closure might be compiled apart, for another CPU
        let mut spread = [0f32; SUB_BLOCKS];
        for (j, spread) in spread.iter_mut().enumerate() {
            let determinant = self.sum_w[j] * self.sum_l2[j] - self.sum_l[j] * self.sum_l[j];
            *spread = if self.sum_w[j] > 0.0 { determinant / self.sum_w[j] } else { 0.0 };
        }
        let (d, scales) = six_bits(&self.scale, &spread);
        RoundedScales { d, scales }
    }

    /// The block with the minima that are best under these scales, and no quants yet.
    #[inline(always)]
    pub fn round_minima(&self, RoundedScales { d, scales }: RoundedScales) -> KFit {
        let scale = f16_to_f32(d);
        let mut min = self.min;
        for j in 0..SUB_BLOCKS {
            let explained = scale * f32::from(scales[j]) * self.sum_l[j];
            let refitted = (explained - self.sum_x[j]) / self.sum_w[j];
            min[j] = if self.sum_w[j] > 0.0 { refitted } else { min[j] };
        }
        let (dmin, mins) = six_bits(&min, &self.sum_w);
        KFit { d, dmin, scales: pack(&scales, &mins), ..KFit::EMPTY }
    }
}

/// Six-bit scales, and the scale d of these as f16 bits.
#[derive(Clone, Copy, Default)]
pub(crate) struct RoundedScales {
    d: u16,
    scales: [u8; SUB_BLOCKS],
}

/// Scales of six bits, and the f16 scale d of these, whose products come near to the values; negative values
/// become 0. Of [`SCALES`] candidates for d the one with the least weighted squared error.
#[inline(always)]
fn six_bits(values: &[f32; SUB_BLOCKS], weights: &[f32; SUB_BLOCKS]) -> (u16, [u8; SUB_BLOCKS]) {
    let mut positive = [0f32; SUB_BLOCKS];
    for (positive, &v) in positive.iter_mut().zip(values) {
        *positive = if v > 0.0 { v } else { 0.0 };
    }
    let mut largest = positive;
    for half in [4, 2, 1] {
        for i in 0..half {
            let (a, b) = (largest[i], largest[i + half]);
            largest[i] = if a > b { a } else { b };
        }
    }
    let max = largest[0];
    if max == 0.0 {
        return (0, [0; SUB_BLOCKS]);
    }
    let one = 1.0 / max;
    let (mut scales, mut inverses) = ([0f32; SCALES], [0f32; SCALES]);
    for c in 0..SCALES {
        let most = MAX_SCALE - 0.5 * c as f32;
        (scales[c], inverses[c]) = ((1.0 / most) * max, most * one);
    }
    let mut errors = [0f32; SCALES];
    for (&v, &w) in positive.iter().zip(weights) {
        for c in 0..SCALES {
            let difference = scales[c] * nearest(v * inverses[c]) - v;
            errors[c] += w * (difference * difference);
        }
    }
    // the bits of positive floats are in their order; the lowest bits hold the candidate's index
    let mut least = u32::MAX;
    for (c, error) in errors.iter().enumerate() {
        least = least.min((error.to_bits() & !(SCALES as u32 - 1)) | c as u32);
    }
    let best = least as usize % SCALES;
    let d = f32_to_f16(scales[best]);
    let scale = f16_to_f32(d);
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut quants = [0u8; SUB_BLOCKS];
    for (q, v) in quants.iter_mut().zip(positive) {
        *q = nearest_int(v * inverse).clamp(0, MAX_SCALE as i32) as u8;
    }
    (d, quants)
}

/// Scale and minimum of every weight's sub-block: so that what follows are loops over all weights,
/// of which the compiler makes vectors.
#[inline(always)]
fn grids(base: &KFit) -> [[f32; QK_K]; 2] {
    let (d, dmin) = (f16_to_f32(base.d), f16_to_f32(base.dmin));
    let mut grids = [[0f32; QK_K]; 2];
    let [scales, mins] = &mut grids;
    let sub_blocks = scales.as_chunks_mut::<SUB>().0.iter_mut().zip(mins.as_chunks_mut::<SUB>().0);
    for (j, (scales, mins)) in sub_blocks.enumerate() {
        let (scale, min) = base.scale_and_min(d, dmin, j);
        scales.fill(scale);
        mins.fill(min);
    }
    grids
}

/// 1 / the sub-blocks' scales, 0 where they are 0.
#[inline(always)]
fn inverses(scales: &[f32; QK_K]) -> [f32; QK_K] {
    let mut inverses = [0f32; QK_K];
    for (inverses, scales) in inverses.as_chunks_mut::<SUB>().0.iter_mut().zip(scales.as_chunks().0)
    {
        let scales: &[f32; SUB] = scales;
        inverses.fill(if scales[0] > 0.0 { 1.0 / scales[0] } else { 0.0 });
    }
    inverses
}

/// Rounds `x` to the quants of the base; returns what is missing, x - base.
#[inline(always)]
pub(crate) fn round_quants(x: &[f32; QK_K], base: &mut KFit) -> [f32; QK_K] {
    let [scales, mins] = grids(base);
    let inverses = inverses(&scales);
    let mut misses = [0f32; QK_K];
    for i in 0..QK_K {
        let position = (x[i] + mins[i]) * inverses[i];
        let position = if position > 0.0 { position } else { 0.0 };
        let position = if position < LEVELS { position } else { LEVELS };
        base.quants[i] = nearest_int(position) as u8;
        misses[i] = x[i] - (scales[i] * nearest(position) - mins[i]);
    }
    misses
}

/// The squared error of a block, weighted by importance, in 16 interleaved sums.
#[inline(always)]
pub(crate) fn error(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>, base: &KFit) -> f32 {
    let [scales, mins] = grids(base);
    let mut squares = [0f32; QK_K];
    for i in 0..QK_K {
        let miss = x[i] - (scales[i] * f32::from(base.quants[i]) - mins[i]);
        squares[i] = miss * miss;
    }
    if let Some(importance) = importance {
        for i in 0..QK_K {
            squares[i] *= importance[i];
        }
    }
    sum(&squares)
}

/// The sum of a block, by halves of its interleaved ones.
#[inline(always)]
pub(crate) fn sum(values: &[f32; QK_K]) -> f32 {
    let mut sums = interleaved_sums(values);
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}

/// Sixteen sums of every sixteenth, which vectors can hold, and none of which waits for another.
#[inline(always)]
pub(crate) fn interleaved_sums(values: &[f32; QK_K]) -> [f32; 16] {
    let mut sums = [0f32; 16];
    for values in values.as_chunks::<16>().0 {
        for (sum, v) in sums.iter_mut().zip(values) {
            *sum += v;
        }
    }
    sums
}
