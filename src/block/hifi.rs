//! Q4_HIFI: a Q4_K block plus the N weights of it that 4 bits represent worst, kept in f16.
//!
//! `w[i] = base[i] + residual[k]` where `i = index[k]`, `w[i] = base[i]` elsewhere.

use super::layout::{Block, QK_K};
use super::q4_k::BlockQ4K;
use crate::error::QuantError;
use crate::float::f16_to_f32;

/// The largest number of outliers per block.
pub const MAX_OUTLIERS: usize = 32;

pub(crate) const LARGEST_F16: f32 = 65504.0;

/// One encoded block: the base and `N` outliers in parallel arrays.
#[derive(Debug, Clone)]
pub struct HifiBlock {
    /// All 256 weights in 4 bits.
    pub base: BlockQ4K,
    pub(crate) outliers: usize,
    pub(crate) index: [u8; MAX_OUTLIERS],
    pub(crate) residual: [u16; MAX_OUTLIERS],
}

impl HifiBlock {
    /// A block of zeros.
    pub(crate) const ZERO: Self = Self {
        base: BlockQ4K::ZERO,
        outliers: 0,
        index: [0; MAX_OUTLIERS],
        residual: [0; MAX_OUTLIERS],
    };

    /// Indices of the outliers in the block, strictly increasing.
    pub fn index(&self) -> &[u8] {
        &self.index[..self.outliers]
    }

    /// The values that are added to the base at these indices, f16 bits.
    pub fn residual(&self) -> &[u16] {
        &self.residual[..self.outliers]
    }

    /// The 256 decoded weights.
    #[inline(always)]
    pub fn decode(&self) -> [f32; QK_K] {
        let mut values = decoded(&self.base);
        self.add_residuals(&mut values);
        values
    }

    /// Adds the residuals to the values of the base.
    pub(crate) fn add_residuals(&self, values: &mut [f32; QK_K]) {
        for (&i, &r) in self.index().iter().zip(self.residual()) {
            values[usize::from(i)] += f16_to_f32(r);
        }
    }

    /// Subtracts the residuals from weights; the base has to represent the rest.
    pub(crate) fn deduct_residuals(&self, x: &mut [f32; QK_K]) {
        for (&i, &r) in self.index().iter().zip(self.residual()) {
            x[usize::from(i)] -= f16_to_f32(r);
        }
    }

    pub(crate) fn is_saturated(&self) -> bool {
        self.residual().iter().any(|&r| f16_to_f32(r).abs() >= LARGEST_F16)
    }
}

/// Checks that the indices of block `number` are strictly increasing.
pub(crate) fn check_index(index: &[u8], number: usize) -> Result<(), QuantError> {
    if index.windows(2).all(|pair| pair[0] < pair[1]) {
        Ok(())
    } else {
        Err(QuantError::BadBlock {
            block: number,
            what: "the indices of its outliers are not strictly increasing",
        })
    }
}

/// The 256 weights of the base.
#[inline(always)]
pub(crate) fn decoded(base: &BlockQ4K) -> [f32; QK_K] {
    let mut values = [0f32; QK_K];
    base.dequantize(&mut values);
    values
}
