//! The encoder of Q2_K.

use super::encode::{Encode, for_each_block};
use super::k::{SubFits, importance_weights, round_quants, round_scales};
use super::search::Search;
use crate::block::q2_k::{LEVELS, MAX_SCALE, SUB_BLOCKS};
use crate::block::{BlockQ2K, QK_K};

impl Encode for BlockQ2K {
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        for_each_block(x, importance, out, Self::quantize);
    }
}

impl BlockQ2K {
    /// Encodes a block with the plain fit, or with `importance`.
    pub fn quantize(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Self {
        let (weights, search) = match importance {
            None => (x.map(f32::abs), Search::Q2_K),
            Some(importance) => (importance_weights(x, importance, 1.0), Search::FINE),
        };
        let mut fits = SubFits::<SUB_BLOCKS>::new(x, &weights, LEVELS, search);
        let sums = importance.map(|_| &fits.weights);
        let mut block = Self::with_scales(&fits.scales, &fits.mins, sums);
        round_quants::<SUB_BLOCKS>(x, LEVELS, |j| block.scale_and_min(j), &mut fits.quants);
        block.pack(&fits.quants);
        block
    }

    /// A block with the scales and minima of its sub-blocks rounded: with the sums of their weights by
    /// a search, without to multiples of the largest.
    pub(crate) fn with_scales(
        scales: &[f32; SUB_BLOCKS],
        mins: &[f32; SUB_BLOCKS],
        weights: Option<&[f32; SUB_BLOCKS]>,
    ) -> Self {
        // a negative one wraps, and spoils the other of its byte, as in ggml
        let round = |values| round_scales(values, weights, MAX_SCALE, [u8::MAX; 2]);
        Self::from_scales(round(scales), round(mins))
    }
}
