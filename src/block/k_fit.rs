//! The fit that Q4_K and Q5_K share: a scale and a minimum for each of eight sub-blocks, both
//! rounded to six bits under a common factor, then the numbers.

use super::QK_K;
pub(crate) use super::k_scales::SUB_BLOCKS;
use super::k_scales::{SCALES_BYTES, pack, unpack};
use crate::fit::{Affine, Search, fit_affine, fit_positive};
use crate::float::{f16_to_f32, f32_to_f16, nearest_int};

const SUB: usize = QK_K / SUB_BLOCKS;
/// The largest 6-bit scale or minimum.
const MAX_SCALE: i32 = 63;

/// What distinguishes the types.
pub(crate) struct Recipe {
    /// Numbers are in 0..=levels.
    pub levels: i32,
    /// The candidate grids without importance.
    pub search: Search,
    /// The bound of the scales and minima that are fitted under importance. A negative one wraps to
    /// a large byte, which ggml cuts off in Q5_K and packs as it is in Q4_K.
    pub largest_packed: u8,
}

/// A fitted block, before its numbers are packed.
#[derive(Clone, Copy)]
pub(crate) struct KFit {
    /// f16 bits.
    pub d: u16,
    /// f16 bits.
    pub dmin: u16,
    pub scales: [u8; SCALES_BYTES],
    pub numbers: [u8; QK_K],
}

impl KFit {
    /// A block of zeros.
    pub const EMPTY: Self = Self { d: 0, dmin: 0, scales: [0; SCALES_BYTES], numbers: [0; QK_K] };

    /// Scale and minimum of sub-block `j` as stored, `d` and `dmin` being the block's.
    #[inline]
    pub fn scale_and_min(&self, d: f32, dmin: f32, j: usize) -> (f32, f32) {
        let (scale, min) = unpack(&self.scales, j);
        (d * f32::from(scale), dmin * f32::from(min))
    }
}

/// The eight sub-blocks' fits and the sum of the weights of each.
struct SubFits {
    scales: [f32; SUB_BLOCKS],
    mins: [f32; SUB_BLOCKS],
    weights: [f32; SUB_BLOCKS],
    numbers: [u8; QK_K],
}

impl Recipe {
    pub fn fit(&self, x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> KFit {
        let weights = match importance {
            None => plain_weights(x),
            Some(importance) => importance_weights(x, importance),
        };
        let search = importance.map_or(self.search, |_| Search::FINE);
        let sub = self.fit_sub_blocks(x, &weights, search);
        let mut fit = KFit { numbers: sub.numbers, ..KFit::EMPTY };
        let sums = importance.map(|_| &sub.weights);
        self.store_scales(&sub.scales, &sub.mins, sums, &mut fit);
        self.round_numbers(x, &mut fit);
        fit
    }

    /// Rounds the scales and minima of the sub-blocks to six bits: with the sums of their weights
    /// by a search, without to multiples of the largest.
    pub fn store_scales(
        &self,
        scales: &[f32; SUB_BLOCKS],
        mins: &[f32; SUB_BLOCKS],
        weights: Option<&[f32; SUB_BLOCKS]>,
        fit: &mut KFit,
    ) {
        let round = |values: &[f32; SUB_BLOCKS]| match weights {
            None => round_to_largest(values),
            Some(weights) => {
                let mut rounded = [0u8; SUB_BLOCKS];
                let factor = fit_positive(values, weights, MAX_SCALE, &mut rounded);
                (factor, rounded.map(|v| v.min(self.largest_packed)))
            }
        };
        let ((d, scales), (dmin, mins)) = (round(scales), round(mins));
        fit.d = f32_to_f16(d);
        fit.dmin = f32_to_f16(dmin);
        fit.scales = pack(&scales, &mins);
    }

    fn fit_sub_blocks(&self, x: &[f32; QK_K], weights: &[f32; QK_K], search: Search) -> SubFits {
        let mut fits = SubFits {
            scales: [0.0; SUB_BLOCKS],
            mins: [0.0; SUB_BLOCKS],
            weights: [0.0; SUB_BLOCKS],
            numbers: [0; QK_K],
        };
        for j in 0..SUB_BLOCKS {
            let place = j * SUB..(j + 1) * SUB;
            let (x, weights) = (&x[place.clone()], &weights[place.clone()]);
            let numbers = &mut fits.numbers[place];
            let Affine { scale, min } = fit_affine(x, weights, self.levels, search, numbers);
            (fits.scales[j], fits.mins[j]) = (scale, min);
            fits.weights[j] = weights.iter().fold(0.0, |sum, w| sum + w);
        }
        fits
    }

    /// The numbers under the scales and minima as stored; where a scale is 0, those of the fit.
    fn round_numbers(&self, x: &[f32; QK_K], fit: &mut KFit) {
        let (d, dmin) = (f16_to_f32(fit.d), f16_to_f32(fit.dmin));
        for j in 0..SUB_BLOCKS {
            let (scale, min) = fit.scale_and_min(d, dmin, j);
            if scale == 0.0 {
                continue;
            }
            let place = j * SUB..(j + 1) * SUB;
            for (q, &v) in fit.numbers[place.clone()].iter_mut().zip(&x[place]) {
                *q = nearest_int((v + min) / scale).clamp(0, self.levels) as u8;
            }
        }
    }
}

/// Without importance: root mean square of the sub-block + |x|.
fn plain_weights(x: &[f32; QK_K]) -> [f32; QK_K] {
    let mut weights = [0.0; QK_K];
    for (weights, x) in weights.chunks_exact_mut(SUB).zip(x.chunks_exact(SUB)) {
        let root_mean_square = (sum_of_squares(x) / SUB as f32).sqrt();
        for (w, &v) in weights.iter_mut().zip(x) {
            *w = root_mean_square + v.abs();
        }
    }
    weights
}

/// With importance: importance · √(twice the mean square of the block + x²).
fn importance_weights(x: &[f32; QK_K], importance: &[f32; QK_K]) -> [f32; QK_K] {
    let sigma2 = 2.0 * sum_of_squares(x) / QK_K as f32;
    std::array::from_fn(|i| importance[i] * (sigma2 + x[i] * x[i]).sqrt())
}

fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, v| sum + v * v)
}

/// Six-bit multiples of the largest value / 63, and that factor.
fn round_to_largest(values: &[f32; SUB_BLOCKS]) -> (f32, [u8; SUB_BLOCKS]) {
    let max = values.iter().fold(0.0f32, |max, &v| if v > max { v } else { max });
    let inverse = if max > 0.0 { MAX_SCALE as f32 / max } else { 0.0 };
    let rounded = values.map(|v| (nearest_int(inverse * v) as u8).min(MAX_SCALE as u8));
    (max / MAX_SCALE as f32, rounded)
}

/// Encodes a row of 256-weight blocks one by one.
pub(crate) fn for_each_block<B>(
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [B],
    quantize: impl Fn(&[f32; QK_K], Option<&[f32; QK_K]>) -> B,
) {
    let (x, _) = x.as_chunks::<QK_K>();
    let importance = importance.map(|w| w.as_chunks::<QK_K>().0);
    for (i, (block, x)) in out.iter_mut().zip(x).enumerate() {
        *block = quantize(x, importance.map(|w| &w[i]));
    }
}
