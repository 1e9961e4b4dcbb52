//! The encoder of Q6_K.

use super::encode::{Encode, for_each_block};
use super::k::round_signed;
use super::search::{TINY, fit_signed};
use crate::block::q6_k::{HALF, SUB, SUB_BLOCKS};
use crate::block::{BlockQ6K, QK_K};
use crate::float::{f32_to_f16, nearest_int};

impl Encode for BlockQ6K {
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        for_each_block(x, importance, out, Self::quantize);
    }
}

impl BlockQ6K {
    /// Encodes a block, with importance or x² as the weights of the fit.
    pub fn quantize(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Self {
        let mut quants = [0u8; QK_K];
        let mut fitted = [0f32; SUB_BLOCKS];
        for (j, scale) in fitted.iter_mut().enumerate() {
            let range = j * SUB..(j + 1) * SUB;
            let weights = importance.map(|w| &w[range.clone()]);
            *scale = fit_signed(&x[range.clone()], weights, HALF, &mut quants[range]);
        }
        let Some(mut block) = Self::with_scales(&fitted) else { return Self::ZERO };
        let scales: [f32; SUB_BLOCKS] = std::array::from_fn(|j| block.scale(j));
        round_signed(x, HALF, &scales, &mut quants);
        block.pack(&quants);
        block
    }

    /// A block with the scales of its sub-blocks rounded to bytes; None if all are zero.
    pub(crate) fn with_scales(fitted: &[f32; SUB_BLOCKS]) -> Option<Self> {
        let (mut magnitude, mut extreme) = (0.0f32, 0.0f32);
        for &scale in fitted {
            if scale.abs() > magnitude {
                magnitude = scale.abs();
                extreme = scale;
            }
        }
        if magnitude < TINY {
            return None;
        }
        let inverse = -128.0 / extreme;
        Some(Self {
            scales: fitted.map(|scale| nearest_int(inverse * scale).min(127) as u8),
            d: f32_to_f16(1.0 / inverse).to_le_bytes(),
            ..Self::ZERO
        })
    }
}
