//! Rows, decoded: by the portable loops, but where a table of bytes is looked up in.

use super::iq4;
use crate::block::{TensorType, blocks};
use crate::kernel::dequantize;

/// See [`crate::kernel::dequantize_row`].
///
/// # Safety
///
/// The CPU has AVX2 and F16C.
#[inline(always)]
pub(super) unsafe fn dequantize_row(kind: TensorType, row: &[u8], out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            TensorType::IQ4NL => iq4::dequantize_nl(blocks(row), out),
            TensorType::IQ4XS => iq4::dequantize_xs(blocks(row), out),
            _ => dequantize::dequantize_row(kind, row, out),
        }
    }
}
