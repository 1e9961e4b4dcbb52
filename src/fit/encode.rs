//! The trait of the encoders, and how they get rows.

use crate::block::{Block, BlockBF16, BlockF16, BlockF32, QK_K, TensorType, with_block};

/// A type whose rows can be encoded.
pub(crate) trait Encode: Block {
    /// Whether the fit with importance depends on the mean square of the row.
    const WEIGHS_BY_ROW: bool = false;

    /// Encodes a row: `x` has `out.len()` · [`Self::WEIGHTS`] weights, and `importance` as many values. The bytes
    /// are those of ggml's `ggml_quantize_chunk`.
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]);
}

/// Floats are rounded one by one.
macro_rules! encode_floats {
    ($($block:ident),*) => {$(
        impl Encode for $block {
            #[inline(always)]
            fn quantize_row(x: &[f32], _importance: Option<&[f32]>, out: &mut [Self]) {
                for (block, &value) in out.iter_mut().zip(x) {
                    *block = Self::new(value);
                }
            }
        }
    )*};
}
encode_floats!(BlockF32, BlockF16, BlockBF16);

/// The largest number of rows whose mean squares are computed together.
pub(crate) const MOST_ROWS_AT_ONCE: usize = 16;

/// How many rows an encoder gets at once. The mean square of a row is a sum in which every addition waits for the one
/// before. So if a fit needs it, the sums of several rows are computed together, which is faster.
pub(crate) fn rows_at_once(kind: TensorType, importance: Option<&[f32]>) -> usize {
    let weighs_by_row = with_block!(kind, B => B::WEIGHS_BY_ROW);
    if weighs_by_row && importance.is_some() { MOST_ROWS_AT_ONCE } else { 1 }
}

/// Rows, and the blocks that they are encoded as.
#[derive(Debug)]
pub struct RowsToEncode<'a> {
    /// The type of the blocks.
    pub kind: TensorType,
    /// Whole rows of weights.
    pub x: &'a [f32],
    /// Weights per row.
    pub row_length: usize,
    /// One value per column.
    pub importance: Option<&'a [f32]>,
    /// The bytes of the blocks, as many as `x` needs.
    pub out: &'a mut [u8],
}

impl RowsToEncode<'_> {
    /// Borrows the rows again, for one call.
    pub fn reborrow(&mut self) -> RowsToEncode<'_> {
        RowsToEncode { out: &mut *self.out, ..*self }
    }
}

/// Encodes rows of `row_length` weights one by one. This is the oracle of the fast versions.
pub(crate) fn quantize_rows<B: Encode>(
    x: &[f32],
    row_length: usize,
    importance: Option<&[f32]>,
    out: &mut [B],
) {
    let out = out.chunks_exact_mut(row_length / B::WEIGHTS);
    for (x, out) in x.chunks_exact(row_length).zip(out) {
        B::quantize_row(x, importance, out);
    }
}

/// Encodes a row of 256-weight blocks one by one.
pub(crate) fn for_each_block<B>(
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [B],
    quantize: impl Fn(&[f32; QK_K], Option<&[f32; QK_K]>) -> B,
) {
    let (x, _) = x.as_chunks::<QK_K>();
    let importance = importance.map(|w| w.as_chunks::<QK_K>().0);
    for (i, (block, x)) in out.iter_mut().zip(x).enumerate() {
        *block = quantize(x, importance.map(|w| &w[i]));
    }
}
