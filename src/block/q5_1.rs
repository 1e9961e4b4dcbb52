//! Q5_1: `w = d · q + m`, q in 0..32. 24 bytes for 32 weights, 6 bits per weight.

use super::layout::{Block, Bytes, QK};
use super::legacy::{
    all_five_bits, pack_fifth_bits, pack_nibbles, packed_quants, unpack_five_bits,
};
use super::quants::{Values, f16, formula};
use crate::float::{f16_to_f32, f32_to_f16};

/// A Q5_1 block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Minimum, f16.
    pub m: [u8; 2],
    /// Bit j is the fifth bit of quant j.
    pub qh: [u8; 4],
    /// Low four bits of quants j and j + 16 in byte j.
    pub qs: [u8; QK / 2],
}
const _: () = assert!(size_of::<BlockQ5_1>() == 24);

/// The largest quant.
pub(crate) const LEVELS: i8 = 31;

impl BlockQ5_1 {
    /// Packs 32 quants under their scale and minimum.
    #[inline(always)]
    pub(crate) fn new(d: f32, m: f32, quants: &[u8; QK]) -> Self {
        Self {
            d: f32_to_f16(d).to_le_bytes(),
            m: f32_to_f16(m).to_le_bytes(),
            qh: pack_fifth_bits(quants),
            qs: pack_nibbles(quants),
        }
    }
}
packed_quants!(BlockQ5_1: qs = pack_nibbles, qh = pack_fifth_bits; all_five_bits);

formula!(BlockQ5_1: [QK; 1], LEVELS as u8, Values::From(0.0), true, |b, _| (f16(b.d), -f16(b.m)));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ5_1 {}

impl Block for BlockQ5_1 {
    const WEIGHTS: usize = QK;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let d = f16_to_f32(u16::from_le_bytes(self.d));
        let m = f16_to_f32(u16::from_le_bytes(self.m));
        for j in 0..QK / 2 {
            let (low, high) = unpack_five_bits(&self.qs, self.qh, j);
            out[j] = low as f32 * d + m;
            out[j + QK / 2] = high as f32 * d + m;
        }
    }
}
