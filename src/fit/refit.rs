//! The base of a Q4_HIFI block, fitted without the block's outliers.
//!
//! Outliers widen a sub-block's range. Therefore the weights at the ends of the ranges are removed, those first that
//! narrow the range most: up to [`DEPTH`] weights of a sub-block, and `outliers` of the block. What remains of a range
//! is the sub-block's window, which [`windows`] finds. A weight outside of the window does not count in the fit.
//!
//! The fit need not give ggml's bytes, so it is a short one. It tries [`CANDIDATES`] grids per sub-block, whose errors
//! follow from a few sums. Then the scales are rounded to six bits with the least added error, and the minima are
//! fitted again to the rounded scales.

use crate::block::k_scales::{MAX_SCALE, SUB_BLOCKS, pack};
use crate::block::{KFit, QK_K, q4_k};
use crate::float::{ROUNDING, f16_to_f32, f32_to_f16, nearest, nearest_int};

/// Weights of a sub-block.
pub(crate) const SUB: usize = QK_K / SUB_BLOCKS;
/// The largest number of weights that are removed from a sub-block.
pub(crate) const DEPTH: usize = 6;
/// Grids that are tried for a sub-block.
pub(crate) const CANDIDATES: usize = 5;
/// The low bits of the threshold of the gains that are always 0, so that the search takes few steps.
pub(crate) const THRESHOLD_GRID: u32 = 18;
/// The largest quant.
const LEVELS: f32 = q4_k::LEVELS as f32;
/// Block scales that are tried: for the scales of the sub-blocks, and for their minima.
const SCALES: usize = 16;
/// The largest 6-bit scale or minimum.
const LARGEST: f32 = MAX_SCALE as f32;

/// The range of a sub-block that its grid covers. Weights outside of it are not fitted. `low` ≤ 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    pub low: f32,
    pub high: f32,
}

/// The fits of the sub-blocks, and sums over their weights.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WindowFits {
    pub scale: [f32; SUB_BLOCKS],
    /// The minimum, ≥ 0, which is subtracted.
    pub min: [f32; SUB_BLOCKS],
    /// `Σ w`
    pub sum_w: [f32; SUB_BLOCKS],
    /// `Σ w x`
    pub sum_x: [f32; SUB_BLOCKS],
    /// `Σ w q` for the quants q of the best grid.
    pub sum_l: [f32; SUB_BLOCKS],
    /// `Σ w q²`
    pub sum_l2: [f32; SUB_BLOCKS],
}

/// The number of grid steps from the low end of the window to the high one, for candidate `c`. It rounds to at most
/// [`LEVELS`], so that no quant need be clamped.
#[inline(always)]
pub(crate) fn candidate(c: usize) -> f32 {
    LEVELS - 1.1 + 0.39 * c as f32
}

/// 1 / k: converts the gain of k removed weights to the gain per weight.
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

/// The window of each sub-block. Together the windows leave out at most `outliers` weights of the block, and the sum of
/// (sum of a sub-block's `weights`) · (length of its window)² is small. One threshold of the gain per removed weight
/// for all sub-blocks decides (the method of Lagrange multipliers).
fn windows(x: &[[f32; SUB]], weights: &[[f32; SUB]], outliers: usize) -> [Window; SUB_BLOCKS] {
    let mut choices = [[Window { low: 0.0, high: 0.0 }; DEPTH + 1]; SUB_BLOCKS];
    let mut gains = [[0f32; DEPTH]; SUB_BLOCKS];
    for j in 0..SUB_BLOCKS {
        let weight = weights[j].iter().fold(0.0, |sum, w| sum + w);
        (choices[j], gains[j]) = shortest_windows(&x[j], weight);
    }
    let threshold = threshold(outliers, gains.as_flattened());
    let threshold = f32::from_bits(threshold.to_bits().next_multiple_of(1 << THRESHOLD_GRID));
    std::array::from_fn(|j| {
        let removed =
            gains[j].iter().rposition(|&gain| gain > threshold).map_or(0, |last| last + 1);
        choices[j][removed]
    })
}

/// For each k, the shortest window that leaves out k weights of a sub-block, and the gain of the k-th removed weight.
///
/// If only the removal of several weights together gains much, they share the gain, so that gains never increase with
/// k.
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

/// The smallest threshold ≥ 0 that at most `count` values exceed.
fn threshold(count: usize, values: &[f32]) -> f32 {
    let mut positive: Vec<f32> = values.iter().copied().filter(|&v| v > 0.0).collect();
    positive.sort_by(|a, b| b.total_cmp(a));
    positive.get(count).copied().unwrap_or(0.0)
}

impl WindowFits {
    /// Fits sub-block `j`: takes the candidate grid whose best scale and minimum leave the least error. The error is
    /// least if `scale · Σ w x q + min · Σ w x` is largest.
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

    /// The first step after the fit: rounds the scales to six bits. [`Self::round_minima`] is the second step.
    ///
    /// In a step, every operation waits for the one before. So it is faster to do one step for several blocks before
    /// the next step.
    #[inline(always)]
    pub fn round_scales(&self) -> RoundedScales {
        // plain loops, because a closure might be compiled separately, without the instruction set
        let mut spread = [0f32; SUB_BLOCKS];
        for (j, spread) in spread.iter_mut().enumerate() {
            let determinant = self.sum_w[j] * self.sum_l2[j] - self.sum_l[j] * self.sum_l[j];
            *spread = if self.sum_w[j] > 0.0 { determinant / self.sum_w[j] } else { 0.0 };
        }
        let (d, scales) = six_bits(&self.scale, &spread);
        RoundedScales { d, scales }
    }

    /// The block with the best minima for these scales; its quants are still 0.
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

/// Six-bit scales, and the block scale d as f16 bits.
#[derive(Clone, Copy, Default)]
pub(crate) struct RoundedScales {
    d: u16,
    scales: [u8; SUB_BLOCKS],
}

/// The block scale d (f16 bits) and six-bit scales whose products with d approximate `values`; negative values become
/// 0. Takes the d with the least weighted squared error of [`SCALES`] candidates.
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
        let most = LARGEST - 0.5 * c as f32;
        (scales[c], inverses[c]) = ((1.0 / most) * max, most * one);
    }
    let mut errors = [0f32; SCALES];
    for (&v, &w) in positive.iter().zip(weights) {
        for c in 0..SCALES {
            let difference = scales[c] * nearest(v * inverses[c]) - v;
            errors[c] += w * (difference * difference);
        }
    }
    // positive floats compare like their bits; the lowest bits hold the candidate's index
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

/// Scale and minimum for every weight of the block, so that the compiler can vectorize loops over all weights.
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

/// 1 / scale of every sub-block; 0 if the scale is 0.
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

/// Rounds `x` to the quants of the base; returns the errors, x - base.
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

/// The sum of a block: its sixteen interleaved sums, added as a tree.
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

/// Sixteen sums; sum i is over the values i, i + 16, i + 32 and so on. Vectors hold them, and no sum waits for another.
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
