//! IQ4_NL: `w = d · VALUES[q]`, sixteen values closer together near zero. 18 bytes for 32 weights,
//! 4.5 bits per weight.

use super::iq4::VALUES;
use super::layout::{Block, Bytes, QK};
use super::legacy::{all_nibbles, pack_nibbles, packed_quants, unpack_nibbles};
use super::quants::{Values, f16, formula};
use crate::float::{f16_to_f32, f32_to_f16};

/// An IQ4_NL block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockIQ4NL {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Quants j and j + 16 in the low and high half of byte j.
    pub qs: [u8; QK / 2],
}
const _: () = assert!(size_of::<BlockIQ4NL>() == 18);

impl BlockIQ4NL {
    /// A block of a scale and packed quants.
    #[inline(always)]
    pub(crate) fn new(d: f32, qs: [u8; QK / 2]) -> Self {
        Self { d: f32_to_f16(d).to_le_bytes(), qs }
    }

    /// The scale.
    #[inline(always)]
    pub(crate) fn d(&self) -> f32 {
        f16_to_f32(u16::from_le_bytes(self.d))
    }
}
packed_quants!(BlockIQ4NL: qs = pack_nibbles; all_nibbles);

formula!(BlockIQ4NL: [QK; 1], 15, Values::Iq4, false, |b, _| (f16(b.d), 0.0));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockIQ4NL {}

impl Block for BlockIQ4NL {
    const WEIGHTS: usize = QK;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let d = self.d();
        for j in 0..QK / 2 {
            let (low, high) = unpack_nibbles(&self.qs, j);
            out[j] = d * f32::from(VALUES[low as usize]);
            out[j + QK / 2] = d * f32::from(VALUES[high as usize]);
        }
    }
}
