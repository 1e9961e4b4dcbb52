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
//! smaller index, and to the refit.

pub mod fork;
pub mod rows;

use crate::block::{Block, BlockQ4K, QK_K};
use crate::error::QuantError;
use crate::float::{f16_to_f32, f32_to_f16};

/// The most outliers a block can hold.
pub const MAX_OUTLIERS: usize = 32;

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

        let refit_error = refit.error(x, weight);
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
            *r = saturating_f16(x[usize::from(i)] - values[usize::from(i)]);
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

/// To f16; beyond its largest finite number, that number.
fn saturating_f16(value: f32) -> u16 {
    f32_to_f16(value.clamp(-65504.0, 65504.0))
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
