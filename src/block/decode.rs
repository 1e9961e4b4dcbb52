//! Decoding a row: simple loops that the compiler vectorizes, for every type and instruction set.

use super::layout::Block;
use crate::simd::Transform;
use std::marker::PhantomData;

/// Decodes the blocks of a row.
pub(crate) struct DequantizeBlocks<B>(PhantomData<B>);

impl<B: Block> Transform for DequantizeBlocks<B> {
    type From = B;
    type To = f32;

    #[inline(always)]
    fn run(blocks: &[B], out: &mut [f32]) {
        for (block, out) in blocks.iter().zip(out.chunks_exact_mut(B::WEIGHTS)) {
            block.dequantize(out);
        }
    }
}
