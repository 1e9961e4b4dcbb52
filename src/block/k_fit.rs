//! A block of Q4_K or Q5_K whose quants are not packed yet.

use super::k_scales::{SCALES_BYTES, unpack};
use super::layout::QK_K;

/// A fitted block, before its quants are packed.
#[derive(Clone, Copy)]
pub(crate) struct KFit {
    /// f16 bits.
    pub d: u16,
    /// f16 bits.
    pub dmin: u16,
    pub scales: [u8; SCALES_BYTES],
    pub quants: [u8; QK_K],
}

impl KFit {
    /// A block of zeros.
    pub const EMPTY: Self = Self { d: 0, dmin: 0, scales: [0; SCALES_BYTES], quants: [0; QK_K] };

    /// The stored scale and minimum of sub-block `j`; `d` and `dmin` are those of the block.
    #[inline]
    pub fn scale_and_min(&self, d: f32, dmin: f32, j: usize) -> (f32, f32) {
        let (scale, min) = unpack(&self.scales, j);
        (d * f32::from(scale), dmin * f32::from(min))
    }
}
