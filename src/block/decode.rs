//! Decoding a row: simple loops that the compiler makes vectors of, for every instruction set its own.

use super::layout::{Block, blocks};
use super::types::{TensorType, with_block};

/// Decodes a row of `kind`.
#[inline(always)]
pub(crate) fn dequantize_row(kind: TensorType, row: &[u8], out: &mut [f32]) {
    with_block!(kind, B => {
        for (block, out) in blocks::<B>(row).iter().zip(out.chunks_exact_mut(B::WEIGHTS)) {
            block.dequantize(out);
        }
    });
}
