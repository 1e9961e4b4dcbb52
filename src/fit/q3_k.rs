//! The encoder of Q3_K.

use super::encode::{Encode, for_each_block};
use super::k::{importance_weights, round_signed};
use super::search::{fit_signed, fit_signed_by_moves};
use crate::block::q3_k::{HALF, HALF_SCALE, SUB, SUB_BLOCKS};
use crate::block::{BlockQ3K, QK_K};
use crate::float::nearest_int;

impl Encode for BlockQ3K {
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        for_each_block(x, importance, out, Self::quantize);
    }
}

impl BlockQ3K {
    /// Encodes a block with the plain fit, or with `importance`.
    pub fn quantize(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Self {
        let mut quants = [0u8; QK_K];
        let mut fitted = [0f32; SUB_BLOCKS];
        let subs = x.as_chunks::<SUB>().0.iter().zip(quants.as_chunks_mut::<SUB>().0);
        let mut block = match importance {
            None => {
                for (scale, (x, quants)) in fitted.iter_mut().zip(subs) {
                    *scale = fit_signed_by_moves(x, HALF, quants);
                }
                Self::with_scales(&fitted)
            }
            Some(importance) => {
                let weights = importance_weights(x, importance, 2.0);
                let weights = weights.as_chunks::<SUB>().0;
                let mut sums = [0f32; SUB_BLOCKS];
                for (j, (x, quants)) in subs.enumerate() {
                    fitted[j] = fit_signed(x, Some(&weights[j]), HALF, quants);
                    sums[j] = weights[j].iter().fold(0.0, |sum, w| sum + w);
                }
                let mut scales = [0u8; SUB_BLOCKS];
                let d = fit_signed(&fitted, Some(&sums), HALF_SCALE, &mut scales);
                Self::from_scales(d, &scales)
            }
        };
        round_signed(x, HALF, &block.all_scales(), &mut quants);
        block.pack(&quants);
        block
    }

    /// A block with the scales of its sub-blocks rounded to multiples of the largest, which is -32.
    pub(crate) fn with_scales(fitted: &[f32; SUB_BLOCKS]) -> Self {
        let (mut magnitude, mut extreme) = (0.0f32, 0.0f32);
        for &scale in fitted {
            if scale.abs() > magnitude {
                magnitude = scale.abs();
                extreme = scale;
            }
        }
        if extreme == 0.0 {
            return Self::from_scales(0.0, &[0; SUB_BLOCKS]);
        }
        let inverse = -(HALF_SCALE as f32) / extreme;
        let scales = fitted.map(|scale| {
            let rounded = i32::from(nearest_int(inverse * scale) as i8);
            (rounded.clamp(-HALF_SCALE, HALF_SCALE - 1) + HALF_SCALE) as u8
        });
        Self::from_scales(1.0 / inverse, &scales)
    }
}
