//! The fit that Q4_K and Q5_K share. It finds a scale and a minimum for each of eight sub-blocks, rounds both to six
//! bits, and then rounds the quants. Parts of it are used by Q2_K, Q3_K and Q6_K, too.

use super::encode::{Encode, for_each_block};
use super::search::{Affine, Search, fit_affine, fit_positive};
use crate::block::k_scales::{MAX_SCALE, SUB_BLOCKS, pack};
use crate::block::{BlockQ4K, BlockQ5K, KFit, QK_K, q4_k, q5_k};
use crate::float::{f16_to_f32, f32_to_f16, nearest_int};

/// Weights in a sub-block of Q4_K and Q5_K.
const SUB: usize = QK_K / SUB_BLOCKS;

/// How Q4_K is fitted.
pub(crate) const Q4_K: KParameters =
    KParameters { levels: q4_k::LEVELS, search: Search::Q4_K, largest_packed: u8::MAX };
/// How Q5_K is fitted.
pub(crate) const Q5_K: KParameters =
    KParameters { levels: q5_k::LEVELS, search: Search::Q5_K, largest_packed: MAX_SCALE };

impl Encode for BlockQ4K {
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        for_each_block(x, importance, out, Self::quantize);
    }
}

impl Encode for BlockQ5K {
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        for_each_block(x, importance, out, Self::quantize);
    }
}

impl BlockQ4K {
    /// Encodes a block with the plain fit, or with `importance`.
    pub fn quantize(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Self {
        Self::from_fit(&Q4_K.fit(x, importance))
    }
}

impl BlockQ5K {
    /// Encodes a block with the plain fit, or with `importance`.
    pub fn quantize(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Self {
        Self::from_fit(&Q5_K.fit(x, importance))
    }
}

/// The differences between the types.
pub(crate) struct KParameters {
    /// Quants are in 0..=levels.
    pub levels: i32,
    /// The candidate grids without importance.
    pub search: Search,
    /// The upper bound of scales and minima that are fitted with importance. A negative one wraps to
    /// a large byte. ggml clamps it in Q5_K and packs it unchanged in Q4_K.
    pub largest_packed: u8,
}

/// The fits of a block's `N` sub-blocks and the sum of the weights of each.
pub(crate) struct SubFits<const N: usize> {
    pub scales: [f32; N],
    pub mins: [f32; N],
    pub weights: [f32; N],
    pub quants: [u8; QK_K],
}

impl<const N: usize> SubFits<N> {
    pub fn new(x: &[f32; QK_K], weights: &[f32; QK_K], levels: i32, search: Search) -> Self {
        let mut fits =
            Self { scales: [0.0; N], mins: [0.0; N], weights: [0.0; N], quants: [0; QK_K] };
        for j in 0..N {
            let range = j * (QK_K / N)..(j + 1) * (QK_K / N);
            let (x, weights) = (&x[range.clone()], &weights[range.clone()]);
            let quants = &mut fits.quants[range];
            let Affine { scale, min } = fit_affine(x, weights, levels, search, quants);
            (fits.scales[j], fits.mins[j]) = (scale, min);
            fits.weights[j] = weights.iter().fold(0.0, |sum, w| sum + w);
        }
        fits
    }
}

impl KParameters {
    pub fn fit(&self, x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> KFit {
        let weights = match importance {
            None => plain_weights(x),
            Some(importance) => importance_weights(x, importance, 2.0),
        };
        let search = importance.map_or(self.search, |_| Search::FINE);
        let sub = SubFits::<SUB_BLOCKS>::new(x, &weights, self.levels, search);
        let mut fit = KFit { quants: sub.quants, ..KFit::EMPTY };
        let sums = importance.map(|_| &sub.weights);
        self.store_scales(&sub.scales, &sub.mins, sums, &mut fit);
        let (d, dmin, mut quants) = (f16_to_f32(fit.d), f16_to_f32(fit.dmin), fit.quants);
        let scale_and_min = |j| fit.scale_and_min(d, dmin, j);
        round_quants::<SUB_BLOCKS>(x, self.levels, scale_and_min, &mut quants);
        KFit { quants, ..fit }
    }

    /// Rounds the scales and minima of the sub-blocks to six bits.
    pub fn store_scales(
        &self,
        scales: &[f32; SUB_BLOCKS],
        mins: &[f32; SUB_BLOCKS],
        weights: Option<&[f32; SUB_BLOCKS]>,
        fit: &mut KFit,
    ) {
        let bounds = [MAX_SCALE, self.largest_packed];
        let round = |values| round_scales(values, weights, i32::from(MAX_SCALE), bounds);
        let ((d, scales), (dmin, mins)) = (round(scales), round(mins));
        fit.d = f32_to_f16(d);
        fit.dmin = f32_to_f16(dmin);
        fit.scales = pack(&scales, &mins);
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

/// With importance: importance · √(`times` · mean square of the block + x²).
pub(crate) fn importance_weights(
    x: &[f32; QK_K],
    importance: &[f32; QK_K],
    times: f32,
) -> [f32; QK_K] {
    let sigma2 = times * sum_of_squares(x) / QK_K as f32;
    std::array::from_fn(|i| importance[i] * (sigma2 + x[i] * x[i]).sqrt())
}

fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, v| sum + v * v)
}

/// Rounds the scales or minima of sub-blocks to 0..=`most`, in units of a block scale, which it returns first.
///
/// With `weights` (one sum per sub-block) the block scale is searched; without, it is largest / `most`. A negative
/// value wraps to a large byte. Results are at most `bounds[0]` without weights, `bounds[1]` with.
pub(crate) fn round_scales<const N: usize>(
    values: &[f32; N],
    weights: Option<&[f32; N]>,
    most: i32,
    bounds: [u8; 2],
) -> (f32, [u8; N]) {
    match weights {
        None => {
            let max = values.iter().fold(0.0f32, |max, &v| if v > max { v } else { max });
            let inverse = if max > 0.0 { most as f32 / max } else { 0.0 };
            let rounded = values.map(|v| (nearest_int(inverse * v) as u8).min(bounds[0]));
            (max / most as f32, rounded)
        }
        Some(weights) => {
            let mut rounded = [0u8; N];
            let scale = fit_positive(values, weights, most, &mut rounded);
            (scale, rounded.map(|v| v.min(bounds[1])))
        }
    }
}

/// Rounds the quants, each 0 to `levels`. `scale_and_min` gives the stored scale and minimum of each of `N` sub-blocks.
/// If a scale is 0, the quants of its sub-block stay.
pub(crate) fn round_quants<const N: usize>(
    x: &[f32; QK_K],
    levels: i32,
    scale_and_min: impl Fn(usize) -> (f32, f32),
    quants: &mut [u8; QK_K],
) {
    let subs = quants.chunks_exact_mut(QK_K / N).zip(x.chunks_exact(QK_K / N));
    for (j, (quants, x)) in subs.enumerate() {
        let (scale, min) = scale_and_min(j);
        if scale == 0.0 {
            continue;
        }
        for (q, &v) in quants.iter_mut().zip(x) {
            *q = nearest_int((v + min) / scale).clamp(0, levels) as u8;
        }
    }
}

/// Rounds the signed quants of types without minima, -`half` to `half` - 1, and stores them with `half` added. `scales`
/// are the stored scales of `N` sub-blocks. If a scale is 0, the quants of its sub-block stay.
pub(crate) fn round_signed<const N: usize>(
    x: &[f32; QK_K],
    half: i32,
    scales: &[f32; N],
    quants: &mut [u8; QK_K],
) {
    let subs = quants.chunks_exact_mut(QK_K / N).zip(x.chunks_exact(QK_K / N));
    for ((quants, x), &scale) in subs.zip(scales) {
        if scale == 0.0 {
            continue;
        }
        for (q, &v) in quants.iter_mut().zip(x) {
            *q = (nearest_int(v / scale).clamp(-half, half - 1) + half) as u8;
        }
    }
}
