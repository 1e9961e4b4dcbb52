//! The products of rows, for every K-quant.

use super::vector::DotVector;
use crate::block::Bytes;
use crate::dot::activations::Activations;

/// A K-quant.
pub(super) trait KRows: Bytes {
    /// Multiplies rows; the lengths have been checked.
    ///
    /// # Safety
    ///
    /// The CPU has V's instruction set.
    unsafe fn dot_rows<V: DotVector>(data: &[u8], activations: &Activations, out: &mut [f32]);
}

/// One line per type: the form of its activations, and the function that multiplies its rows by them.
macro_rules! k_rows {
    ($($block:ident: |$data:ident, $activations:ident, $out:ident| $dot_rows:expr;)*) => {$(
        impl KRows for $block {
            #[inline(always)]
            unsafe fn dot_rows<V: DotVector>(
                $data: &[u8],
                $activations: &Activations,
                $out: &mut [f32],
            ) {
                $dot_rows
            }
        }
    )*};
}
pub(super) use k_rows;
