//! Q4_0: `w = d · (q - 8)`, q in 0..16. 18 bytes for 32 weights, 4.5 bits per weight.

use super::layout::{Block, Bytes, QK};
use super::legacy::{all_nibbles, pack_nibbles, packed_quants, unpack_nibbles};
use super::quants::{Values, f16, formula};
use crate::float::{f16_to_f32, f32_to_f16};

/// A Q4_0 block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Quants j and j + 16 in the low and high half of byte j.
    pub qs: [u8; QK / 2],
}
const _: () = assert!(size_of::<BlockQ4_0>() == 18);

/// The quant whose value is 0.
pub(crate) const HALF: i8 = 8;

impl BlockQ4_0 {
    /// Packs 32 quants under their scale.
    #[inline(always)]
    pub(crate) fn new(d: f32, quants: &[u8; QK]) -> Self {
        Self { d: f32_to_f16(d).to_le_bytes(), qs: pack_nibbles(quants) }
    }
}
packed_quants!(BlockQ4_0: qs = pack_nibbles; all_nibbles);

formula!(BlockQ4_0: [QK; 1], 15, Values::From(-8.0), false, |b, _| (f16(b.d), 0.0));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ4_0 {}

impl Block for BlockQ4_0 {
    const WEIGHTS: usize = QK;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let d = f16_to_f32(u16::from_le_bytes(self.d));
        let mut quants = [0i8; QK]; // apart from the products, so that both loops become vectors
        for j in 0..QK / 2 {
            let (low, high) = unpack_nibbles(&self.qs, j);
            quants[j] = (low - 8) as i8;
            quants[j + QK / 2] = (high - 8) as i8;
        }
        for (y, q) in out.iter_mut().zip(quants) {
            *y = f32::from(q) * d;
        }
    }
}
