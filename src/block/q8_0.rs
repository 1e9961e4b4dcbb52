//! Q8_0: `w = d · q`, q in -127..=127. 34 bytes for 32 weights, 8.5 bits per weight.

use super::layout::{Block, Bytes, QK};
use super::quants::{Values, f16, formula};
use crate::float::f16_to_f32;

/// A Q8_0 block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Quants, signed.
    pub qs: [u8; QK],
}
const _: () = assert!(size_of::<BlockQ8_0>() == 34);

impl BlockQ8_0 {
    /// The quants + 128.
    #[inline(always)]
    pub(crate) fn quants(&self) -> [u8; QK] {
        self.qs.map(|q| q ^ 0x80)
    }

    /// Stores quants + 128.
    #[inline(always)]
    pub(crate) fn pack(&mut self, quants: &[u8; QK]) {
        self.qs = quants.map(|q| q ^ 0x80);
    }
}

formula!(BlockQ8_0: [QK; 1], 255, Values::From(-128.0), false, |b, _| (f16(b.d), 0.0));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ8_0 {}

impl Block for BlockQ8_0 {
    const WEIGHTS: usize = QK;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let d = f16_to_f32(u16::from_le_bytes(self.d));
        for (y, &q) in out.iter_mut().zip(&self.qs) {
            *y = f32::from(q as i8) * d;
        }
    }
}
