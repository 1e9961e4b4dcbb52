//! Q4_1: `w = d · q + m`, q in 0..16. 20 bytes for 32 weights, 5 bits per weight.

use super::layout::{Block, Bytes, QK};
use super::legacy::{all_nibbles, pack_nibbles, packed_quants, unpack_nibbles};
use super::quants::{Values, f16, formula};
use crate::float::{f16_to_f32, f32_to_f16};

/// A Q4_1 block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Minimum, f16.
    pub m: [u8; 2],
    /// Quants j and j + 16 in the low and high half of byte j.
    pub qs: [u8; QK / 2],
}
const _: () = assert!(size_of::<BlockQ4_1>() == 20);

/// The largest quant.
pub(crate) const LEVELS: i8 = 15;

impl BlockQ4_1 {
    /// Packs 32 quants under their scale and minimum.
    #[inline(always)]
    pub(crate) fn new(d: f32, m: f32, quants: &[u8; QK]) -> Self {
        Self {
            d: f32_to_f16(d).to_le_bytes(),
            m: f32_to_f16(m).to_le_bytes(),
            qs: pack_nibbles(quants),
        }
    }
}
packed_quants!(BlockQ4_1: qs = pack_nibbles; all_nibbles);

formula!(BlockQ4_1: [QK; 1], LEVELS as u8, Values::From(0.0), true, |b, _| (f16(b.d), -f16(b.m)));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ4_1 {}

impl Block for BlockQ4_1 {
    const WEIGHTS: usize = QK;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let d = f16_to_f32(u16::from_le_bytes(self.d));
        let m = f16_to_f32(u16::from_le_bytes(self.m));
        for j in 0..QK / 2 {
            let (low, high) = unpack_nibbles(&self.qs, j);
            out[j] = low as f32 * d + m;
            out[j + QK / 2] = high as f32 * d + m;
        }
    }
}
