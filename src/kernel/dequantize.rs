//! Decoding a row: simple loops that the compiler makes vectors of, for every ISA its own.

use crate::block::{Block, TensorType, blocks, with_block};

/// See [`super::dequantize_row`].
#[inline(always)]
pub(crate) fn dequantize_row(kind: TensorType, row: &[u8], out: &mut [f32]) {
    with_block!(kind, B => {
        for (block, out) in blocks::<B>(row).iter().zip(out.chunks_exact_mut(B::WEIGHTS)) {
            block.dequantize(out);
        }
    });
}

/// See [`super::all_finite`]. Looks at every number, which vectors do faster than stopping early.
#[inline(always)]
pub(crate) fn all_finite(x: &[f32]) -> bool {
    x.iter().map(|v| v.abs().to_bits()).max().unwrap_or(0) < f32::INFINITY.to_bits()
}
