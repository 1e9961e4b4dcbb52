//! The encoder of Q6_K.

use super::encode::{Encode, for_each_block};
use super::search::{TINY, fit_signed};
use crate::block::q6_k::{SUB, SUB_BLOCKS};
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
            *scale = fit_signed(&x[range.clone()], weights, 32, &mut quants[range]);
        }
        let Some(mut block) = Self::with_scales(&fitted) else { return Self::ZERO };
        for j in 0..SUB_BLOCKS {
            let scale = block.scale(j);
            if scale == 0.0 {
                continue;
            }
            let range = j * SUB..(j + 1) * SUB;
            for (q, &v) in quants[range.clone()].iter_mut().zip(&x[range]) {
                *q = (nearest_int(v / scale).clamp(-32, 31) + 32) as u8;
            }
        }
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
