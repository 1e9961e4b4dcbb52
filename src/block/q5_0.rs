//! Q5_0: `w = d · (q - 16)`, q in 0..32. 22 bytes for 32 weights, 5.5 bits per weight.

use super::layout::{Block, Bytes, QK};
use super::legacy::{
    all_five_bits, pack_fifth_bits, pack_nibbles, packed_quants, unpack_five_bits,
};
use super::quants::{Values, f16, formula};
use crate::float::{f16_to_f32, f32_to_f16};

/// A Q5_0 block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Bit j is the fifth bit of quant j.
    pub qh: [u8; 4],
    /// Low four bits of quants j and j + 16 in byte j.
    pub qs: [u8; QK / 2],
}
const _: () = assert!(size_of::<BlockQ5_0>() == 22);

/// The quant whose value is 0.
pub(crate) const HALF: i8 = 16;

impl BlockQ5_0 {
    /// Packs 32 quants under their scale.
    #[inline(always)]
    pub(crate) fn new(d: f32, quants: &[u8; QK]) -> Self {
        Self {
            d: f32_to_f16(d).to_le_bytes(),
            qh: pack_fifth_bits(quants),
            qs: pack_nibbles(quants),
        }
    }
}
packed_quants!(BlockQ5_0: qs = pack_nibbles, qh = pack_fifth_bits; all_five_bits);

formula!(BlockQ5_0: [QK; 1], 31, Values::From(-16.0), false, |b, _| (f16(b.d), 0.0));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ5_0 {}

impl Block for BlockQ5_0 {
    const WEIGHTS: usize = QK;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let d = f16_to_f32(u16::from_le_bytes(self.d));
        for j in 0..QK / 2 {
            let (low, high) = unpack_five_bits(&self.qs, self.qh, j);
            out[j] = (low - 16) as f32 * d;
            out[j + QK / 2] = (high - 16) as f32 * d;
        }
    }
}
