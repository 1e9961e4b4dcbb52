//! Rows of weights, to be multiplied.

use super::activations::Activations;
use crate::block::{QK_K, TensorType};

/// Rows of weights, one after another, to be multiplied.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// Rows of one type.
    Plain(TensorType, &'a [u8]),
    /// Rows of Q4_HIFI in the split layout. The activations have the number of outliers per block.
    Hifi {
        /// Q4_K rows.
        base: &'a [u8],
        /// Indices of the outliers in their blocks.
        index: &'a [u8],
        /// As many f16 residuals, two bytes each.
        residual: &'a [u8],
    },
}

impl Rows<'_> {
    /// Panics if the parts are not exactly `rows` rows that fit the activations.
    pub(crate) fn check(&self, activations: &Activations, rows: usize) {
        let n = activations.len();
        match *self {
            Self::Plain(kind, data) => {
                assert!(activations.suit(kind), "activations for another type than {kind:?}");
                let bytes = n / kind.block_weights() * kind.block_bytes();
                assert_eq!(data.len(), rows * bytes, "bytes of {rows} rows of {n} weights");
            }
            Self::Hifi { base, index, residual } => {
                let outliers = activations.outliers().expect("activations for Q4_HIFI");
                let count = n / QK_K * outliers;
                Rows::Plain(TensorType::Q4K, base).check(activations, rows);
                assert_eq!(index.len(), rows * count, "indices of {rows} rows");
                assert_eq!(residual.len(), rows * count * 2, "bytes of residuals of {rows} rows");
            }
        }
    }
}
