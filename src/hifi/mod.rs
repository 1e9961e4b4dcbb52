//! Q4_HIFI: a Q4_K block plus the N weights of it that 4 bits represent worst, kept in f16.
//!
//! `w[i] = base[i] + residual[k]` where `i = index[k]`, `w[i] = base[i]` elsewhere.
//!
//! Two encodings of a block are tried, and the one with the smaller error is kept:
//!
//! * *refit*: the N weights of largest magnitude are left out of the base's fit, so that the base
//!   spends its range on the others;
//! * *plain*: the base is the ordinary Q4_K block, and the N weights that it represents worst get
//!   a residual. So no block is worse than in Q4_K, beyond the rounding of a residual.
//!
//! The error is the squared error, weighted by importance where it is given. Ties go to the
//! smaller index, and to the refit. A residual too large for f16 saturates; a refit that needs one
//! is not taken, because it would hide that the block is too large for Q4_K.

pub mod fork;
pub mod rows;

use crate::block::{Block, BlockQ4K, QK_K};
use crate::error::QuantError;
use crate::float::{f16_to_f32, f32_to_f16};

/// The most outliers a block can hold.
pub const MAX_OUTLIERS: usize = 32;

const LARGEST_F16: f32 = 65504.0;

/// One encoded block: the base and `N` outliers in parallel arrays.
#[derive(Debug, Clone)]
pub struct HifiBlock {
    /// All 256 weights in 4 bits.
    pub base: BlockQ4K,
    outliers: usize,
    index: [u8; MAX_OUTLIERS],
    residual: [u16; MAX_OUTLIERS],
}

impl HifiBlock {
    /// Encodes 256 weights with `outliers` ≤ [`MAX_OUTLIERS`] of them kept in f16.
    pub fn encode(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>, outliers: usize) -> Self {
        let plain = BlockQ4K::quantize(x, importance);
        if outliers == 0 {
            return Self { base: plain, outliers, index: [0; _], residual: [0; _] };
        }
        let weight = |i: usize| importance.map_or(1.0, |w| w[i]);

        let largest = choose(outliers, |i| x[i].abs());
        let refit = BlockQ4K::quantize_without(x, importance, &largest[..outliers]);
        let refit = Self::with_residuals(refit, x, largest, outliers);

        let base = decoded(&plain);
        let worst = choose(outliers, |i| weight(i) * (x[i] - base[i]).powi(2));
        let plain = Self::with_residuals(plain, x, worst, outliers);

        let refit_error = if refit.is_saturated() { f64::NAN } else { refit.error(x, weight) };
        if plain.error(x, weight) < refit_error || refit_error.is_nan() { plain } else { refit }
    }

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

    /// Places of the outliers in the block, strictly increasing.
    pub fn index(&self) -> &[u8] {
        &self.index[..self.outliers]
    }

    /// What is added to the base at these places, f16 bits.
    pub fn residual(&self) -> &[u16] {
        &self.residual[..self.outliers]
    }

    /// The 256 weights that the block stands for.
    pub fn decode(&self) -> [f32; QK_K] {
        let mut values = decoded(&self.base);
        for (&i, &r) in self.index().iter().zip(self.residual()) {
            values[usize::from(i)] += f16_to_f32(r);
        }
        values
    }

    fn is_saturated(&self) -> bool {
        self.residual().iter().any(|&r| f16_to_f32(r).abs() >= LARGEST_F16)
    }

    fn error(&self, x: &[f32; QK_K], weight: impl Fn(usize) -> f32) -> f64 {
        let values = self.decode();
        (0..QK_K).map(|i| f64::from(weight(i)) * f64::from(x[i] - values[i]).powi(2)).sum()
    }
}

/// Checks that the places of block `number` are strictly increasing.
fn check_index(index: &[u8], number: usize) -> Result<(), QuantError> {
    if index.windows(2).all(|pair| pair[0] < pair[1]) {
        Ok(())
    } else {
        Err(QuantError::BadBlock {
            block: number,
            what: "the places of its outliers are not strictly increasing",
        })
    }
}

fn decoded(base: &BlockQ4K) -> [f32; QK_K] {
    let mut values = [0f32; QK_K];
    base.dequantize(&mut values);
    values
}

/// The places of the `count` largest scores, in increasing order; of equals the smaller place.
fn choose(count: usize, score: impl Fn(usize) -> f32) -> [u8; MAX_OUTLIERS] {
    let scores: [f32; QK_K] = std::array::from_fn(score);
    let mut places: [u8; QK_K] = std::array::from_fn(|i| i as u8);
    if count < QK_K {
        places.select_nth_unstable_by(count, |&a, &b| {
            scores[usize::from(b)].total_cmp(&scores[usize::from(a)]).then(a.cmp(&b))
        });
    }
    let mut chosen = [0u8; MAX_OUTLIERS];
    chosen[..count].copy_from_slice(&places[..count]);
    chosen[..count].sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn places_increase_and_residuals_are_what_is_missing() {
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

    /// What the base is fitted to does not change when the outliers grow.
    #[test]
    fn the_refitted_base_does_not_see_the_outliers() {
        let x = blocks(10)[0];
        let places = choose(8, |i| x[i].abs());
        let mut larger = x;
        for &i in &places[..8] {
            larger[usize::from(i)] *= 50.0;
        }
        let refit = |x| BlockQ4K::quantize_without(x, None, &places[..8]);
        assert_eq!(decoded(&refit(&x)), decoded(&refit(&larger)));
        assert_eq!(decoded(&HifiBlock::encode(&larger, None, 8).base), decoded(&refit(&x)));
    }

    #[test]
    fn ties_go_to_the_smaller_place() {
        assert_eq!(choose(3, |_| 1.0)[..3], [0, 1, 2]);
        assert_eq!(choose(3, |i| if i % 100 == 7 { 2.0 } else { 0.0 })[..3], [7, 107, 207]);
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
            let stored = fork::BlockQ4Hifi::new(block.base, block.index(), &x);
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
