//! The encoder of Q4_HIFI.
//!
//! A block is encoded in two ways, and the one with the smaller error is kept:
//!
//! * *refit*: the base is fitted without the weights whose removal narrows the ranges of the sub-blocks
//!   most ([`super::refit`]);
//! * *plain*: the base is the ordinary Q4_K block. So no block is worse than in Q4_K, except for the
//!   rounding of a residual.
//!
//! In both, the N weights with the largest errors get a residual.
//!
//! The error is the squared error, weighted by importance if it is given. Ties go to the smaller index, and to the
//! refit. A residual that is too large for f16 saturates. A refit with such a residual is not used, because it would
//! hide that the block is too large for Q4_K.

use super::k::Q4_K;
use super::refit;
use crate::block::{BlockQ4K, HifiBlock, KFit, LARGEST_F16, MAX_OUTLIERS, QK_K, decoded};
use crate::error_sums::error_sums;
use crate::float::{f16_to_f32, f32_to_f16};

/// Encodes the blocks of a row one by one. This is the oracle of the fast versions.
pub(crate) fn encode_hifi_row(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    outliers: usize,
    out: &mut [HifiBlock],
) {
    for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
        *out = HifiBlock::encode(x, importance.map(|w| &w[i]), outliers);
    }
}

impl HifiBlock {
    /// Encodes 256 weights with `outliers` ≤ [`MAX_OUTLIERS`] of them kept in f16.
    pub fn encode(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>, outliers: usize) -> Self {
        let plain = Q4_K.fit(x, importance);
        if outliers == 0 {
            return Self::without_outliers(&plain);
        }
        let fits = refit::fit(x, importance.unwrap_or(&[1.0; QK_K]), outliers);
        let refit = Refit::new(x, importance, fits.round_minima(fits.round_scales()));
        let index = choose(outliers, &refit.scores);
        Self::better(x, importance, outliers, &plain, refit, index)
    }

    /// A plain Q4_K block.
    pub(crate) fn without_outliers(plain: &KFit) -> Self {
        Self { base: BlockQ4K::from_fit(plain), ..Self::ZERO }
    }

    /// A block on `base`, whose quants are rounded here. The weights with the largest errors become outliers.
    #[inline(always)]
    pub(crate) fn on_base(
        x: &[f32; QK_K],
        weights: &[f32; QK_K],
        outliers: usize,
        base: KFit,
    ) -> Self {
        let Refit { base, scores, .. } = Refit::new(x, Some(weights), base);
        Self::with_residuals(BlockQ4K::from_fit(&base), x, choose(outliers, &scores), outliers)
    }

    /// The better encoding: on the plain base, or on the refitted base with outliers at `index`, where its errors are
    /// largest.
    #[inline(always)]
    pub(crate) fn better(
        x: &[f32; QK_K],
        importance: Option<&[f32; QK_K]>,
        outliers: usize,
        plain: &KFit,
        refit: Refit,
        index: [u8; MAX_OUTLIERS],
    ) -> Self {
        let Refit { base, misses, mut scores } = refit;
        let mut residual = [0u16; MAX_OUTLIERS];
        let mut is_saturated = false;
        for (r, &i) in residual.iter_mut().zip(&index[..outliers]) {
            let i = usize::from(i);
            *r = f32_to_f16(misses[i]);
            is_saturated |= misses[i].abs() >= LARGEST_F16;
            let rest = misses[i] - f16_to_f32(*r);
            scores[i] = importance.map_or(1.0, |w| w[i]) * (rest * rest);
        }
        let plain_error = refit::error(x, importance, plain);
        // better by more than the rounding of the sums, and no term of them has underflowed
        let is_better = refit::sum(&scores) < 0.999_99 * plain_error && plain_error > 1e-24;
        if is_better && !is_saturated && plain_error.is_finite() {
            return Self { base: BlockQ4K::from_fit(&base), outliers, index, residual };
        }
        let bases = [BlockQ4K::from_fit(plain), BlockQ4K::from_fit(&base)];
        Self::better_exactly(x, importance, outliers, bases, index)
    }

    /// As [`Self::better`], but the plain base gets outliers, too, and the errors are compared in f64.
    #[cold]
    fn better_exactly(
        x: &[f32; QK_K],
        importance: Option<&[f32; QK_K]>,
        outliers: usize,
        [plain, refit]: [BlockQ4K; 2],
        index: [u8; MAX_OUTLIERS],
    ) -> Self {
        let refit = Self::with_residuals(refit, x, index, outliers);
        let worst = worst_indices(x, importance, &decoded(&plain), outliers);
        let plain = Self::with_residuals(plain, x, worst, outliers);

        let error = |block: &Self| {
            error_sums(x, importance.map(<[f32; QK_K]>::as_slice), &block.decode()).error
        };
        let refit_error = if refit.is_saturated() { f64::NAN } else { error(&refit) };
        if error(&plain) < refit_error || refit_error.is_nan() { plain } else { refit }
    }

    #[inline(always)]
    fn with_residuals(
        base: BlockQ4K,
        x: &[f32; QK_K],
        index: [u8; MAX_OUTLIERS],
        outliers: usize,
    ) -> Self {
        let values = decoded(&base);
        let mut residual = [0u16; MAX_OUTLIERS];
        for (r, &i) in residual.iter_mut().zip(&index[..outliers]) {
            let difference = x[usize::from(i)] - values[usize::from(i)];
            *r = f32_to_f16(difference.clamp(-LARGEST_F16, LARGEST_F16));
        }
        Self { base, outliers, index, residual }
    }
}

/// A block on the refitted base.
pub(crate) struct Refit {
    base: KFit,
    /// Weights minus base.
    misses: [f32; QK_K],
    /// The squares of `misses`, times importance.
    pub scores: [f32; QK_K],
}

impl Refit {
    #[inline(always)]
    pub fn new(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>, mut base: KFit) -> Self {
        let misses = refit::round_quants(x, &mut base);
        let scores = weighted_squares(&misses, importance);
        Self { base, misses, scores }
    }
}

/// The squares of the misses times the importances. If a square overflows and its importance is 0, the product is 0, so
/// that no score is NaN.
#[inline(always)]
fn weighted_squares(misses: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> [f32; QK_K] {
    let mut squares = [0f32; QK_K];
    match importance {
        None => {
            for i in 0..QK_K {
                squares[i] = misses[i] * misses[i];
            }
        }
        Some(w) => {
            for i in 0..QK_K {
                let square = w[i] * (misses[i] * misses[i]);
                squares[i] = if square > 0.0 { square } else { 0.0 };
            }
        }
    }
    squares
}

/// The indices where `values` have the largest squared error, weighted by importance.
#[inline(always)]
fn worst_indices(
    x: &[f32; QK_K],
    importance: Option<&[f32; QK_K]>,
    values: &[f32; QK_K],
    count: usize,
) -> [u8; MAX_OUTLIERS] {
    let misses = std::array::from_fn(|i| x[i] - values[i]);
    choose(count, &weighted_squares(&misses, importance))
}

/// The indices of the `count` largest `scores`, in increasing order. Ties go to the smaller index. No score is
/// negative.
///
/// This is a binary search over the bits of the smallest chosen score, because floats ≥ 0 compare like their bits.
/// Vectors make it fast.
#[inline(always)]
fn choose(count: usize, scores: &[f32; QK_K]) -> [u8; MAX_OUTLIERS] {
    let bits = scores.map(f32::to_bits);
    let above =
        |threshold: u32| bits.iter().map(|&b| u32::from(b > threshold)).sum::<u32>() as usize;
    // the smallest threshold that at most `count` scores exceed
    let (mut low, mut high) = (0u32, u32::MAX);
    while low < high {
        let middle = low + (high - low) / 2;
        if above(middle) <= count {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let mut ties = count - above(low);
    let mut chosen = [0u8; MAX_OUTLIERS];
    let mut filled = 0;
    for (i, &b) in bits.iter().enumerate() {
        let is_tie = b == low && ties > 0;
        if b > low || is_tie {
            ties -= usize::from(is_tie);
            chosen[filled] = i as u8;
            filled += 1;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockQ4Hifi, check_index};
    use crate::dispatch;
    use crate::isa::Isa;
    use crate::testing::{importance, weights};

    fn blocks(seed: u64) -> Vec<[f32; QK_K]> {
        weights(64 * QK_K, seed).as_chunks().0.to_vec()
    }

    fn squared_error(x: &[f32; QK_K], y: &[f32; QK_K], w: Option<&[f32; QK_K]>) -> f64 {
        let term = |i: usize| w.map_or(1.0, |w| f64::from(w[i])) * f64::from(x[i] - y[i]).powi(2);
        (0..QK_K).map(term).sum()
    }

    #[test]
    fn no_block_is_worse_than_plain_q4_k() {
        let w = importance(QK_K, 7);
        let w: &[f32; QK_K] = w.as_slice().try_into().unwrap();
        for x in blocks(8) {
            for w in [None, Some(w)] {
                let plain = decoded(&BlockQ4K::quantize(&x, w));
                let mut last = squared_error(&x, &plain, w);
                for n in [1, 8, 32] {
                    let block = HifiBlock::encode(&x, w, n);
                    let error = squared_error(&x, &block.decode(), w);
                    assert!(error <= last * 1.000_001, "{n} outliers: {error} after {last}");
                    if n == 1 {
                        last = error.max(last);
                    }
                }
            }
        }
    }

    #[test]
    fn indices_increase_where_a_huge_weight_has_no_importance() {
        for (size, importance) in [(1e36, 0.0), (1e36, 1.0), (1.0, 0.0)] {
            let x: [f32; QK_K] = std::array::from_fn(|i| (i % 63) as f32 * size);
            for isa in Isa::available() {
                let mut blocks = [HifiBlock::ZERO];
                dispatch::encode_hifi_row(isa, &x, Some(&[importance; QK_K]), 8, &mut blocks);
                check_index(blocks[0].index(), 0).unwrap();
            }
        }
    }

    #[test]
    fn indices_increase_and_residuals_are_what_is_missing() {
        for x in blocks(9) {
            let block = HifiBlock::encode(&x, None, 12);
            assert_eq!(block.index().len(), 12);
            check_index(block.index(), 0).unwrap();
            let (base, whole) = (decoded(&block.base), block.decode());
            for i in 0..QK_K {
                let is_outlier = block.index().contains(&(i as u8));
                assert!(is_outlier || base[i] == whole[i]);
                assert!(!is_outlier || (whole[i] - x[i]).abs() <= (x[i] - base[i]).abs() / 1024.0);
            }
        }
    }

    /// Larger outliers do not change the refitted base.
    #[test]
    fn the_refitted_base_does_not_see_the_outliers() {
        let w = importance(QK_K, 12);
        let w: &[f32; QK_K] = w.as_slice().try_into().unwrap();
        for w in [None, Some(w)] {
            let mut x = blocks(10)[0];
            let indices: [usize; 8] = [3, 4, 5, 77, 130, 131, 200, 255];
            let encode = |x: &mut [f32; QK_K], factor: f32| {
                indices.iter().for_each(|&i| x[i] = factor * if i % 2 == 0 { 1.0 } else { -2.0 });
                HifiBlock::encode(x, w, 8)
            };
            let expected = encode(&mut x, 1.0);
            assert!(expected.index().iter().map(|&i| usize::from(i)).eq(indices));
            for factor in [3.0, -1.0, 500.0] {
                let block = encode(&mut x, factor);
                assert_eq!(block.index(), expected.index());
                assert_eq!(decoded(&block.base)[..3], decoded(&expected.base)[..3]);
                let of = |block: &HifiBlock| (block.base.d, block.base.dmin, block.base.scales);
                assert_eq!(of(&block), of(&expected));
            }
        }
    }

    #[test]
    fn ties_go_to_the_smaller_index() {
        assert_eq!(choose(3, &[1.0; QK_K])[..3], [0, 1, 2]);
        let peaks = std::array::from_fn(|i| if i % 100 == 7 { 2.0 } else { 0.0 });
        assert_eq!(choose(3, &peaks)[..3], [7, 107, 207]);
        assert_eq!(choose(5, &peaks)[..5], [0, 1, 7, 107, 207]);
    }

    #[test]
    fn zeros_are_legal_and_giants_take_the_plain_base() {
        let block = HifiBlock::encode(&[0.0; QK_K], None, 8);
        assert_eq!(block.decode(), [0.0; QK_K]);
        let mut x = [1.0; QK_K];
        x[3] = 1e6; // too far from zero for a residual, but not for Q4_K
        let block = HifiBlock::encode(&x, None, 2);
        assert!((block.decode()[3] - 1e6).abs() < 1e3, "{}", block.decode()[3]);
    }

    /// In the fork layout the outlier replaces the base, and the base is near zero below it.
    #[test]
    fn the_fork_layout_can_be_replaced_or_added() {
        for x in blocks(11) {
            let block = HifiBlock::encode(&x, None, 8);
            let stored = BlockQ4Hifi::new(block.base, block.index(), &x);
            let base = decoded(&stored.base);
            for (&i, value) in block.index().iter().zip(stored.value) {
                let value = f16_to_f32(u16::from_le_bytes(value));
                let i = usize::from(i);
                assert!((value - x[i]).abs() <= x[i].abs() / 2048.0);
                let step = (0..QK_K / 8)
                    .map(|k| (base[i / 32 * 32 + k] - base[i]).abs())
                    .filter(|&d| d > 0.0)
                    .fold(f32::INFINITY, f32::min);
                assert!(base[i].abs() <= step || base[i] == 0.0, "{} of {step}", base[i]);
            }
        }
    }
}
