//! IQ4_XS: eight sub-blocks of 32 weights, `w = d · (scale - 32) · VALUES[q]`, sixteen values closer
//! together near zero, scales of six bits. 136 bytes for 256 weights, 4.25 bits per weight.

use super::iq4::VALUES;
use super::layout::{Block, Bytes, QK, QK_K};
use super::legacy::{all_nibbles, pack_nibbles, unpack_nibbles};
use super::quants::{Values, formula};
use crate::float::{f16_to_f32, f32_to_f16};

pub(crate) const SUB_BLOCKS: usize = QK_K / QK;

/// An IQ4_XS block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockIQ4XS {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// High two bits of the scales, those of sub-block j at bit 2 j.
    pub scales_h: [u8; 2],
    /// Low four bits of the scales, those of sub-block j at bit 4 j.
    pub scales_l: [u8; 4],
    /// Quants: bytes 16 j on hold those of sub-block j, i and i + 16 in the halves of byte i.
    pub qs: [[u8; QK / 2]; SUB_BLOCKS],
}
const _: () = assert!(size_of::<BlockIQ4XS>() == 136);

impl BlockIQ4XS {
    /// A block with these scales, each -32..=31, and with quants of 0.
    #[inline(always)]
    pub(crate) fn new(d: f32, scales: &[i32; SUB_BLOCKS]) -> Self {
        let (mut low, mut high) = (0u32, 0u16);
        for (j, scale) in scales.iter().enumerate() {
            let stored = (scale + 32) as u32;
            low |= (stored & 0x0f) << (4 * j);
            high |= ((stored >> 4) as u16) << (2 * j);
        }
        Self {
            d: f32_to_f16(d).to_le_bytes(),
            scales_h: high.to_le_bytes(),
            scales_l: low.to_le_bytes(),
            qs: [[0; QK / 2]; SUB_BLOCKS],
        }
    }

    /// Scale of the scales.
    #[inline(always)]
    pub(crate) fn d(&self) -> f32 {
        f16_to_f32(u16::from_le_bytes(self.d))
    }

    /// The quants, each 0 to 15.
    #[inline(always)]
    pub(crate) fn quants(&self) -> [u8; QK_K] {
        let mut quants = [0u8; QK_K];
        for (quants, qs) in quants.as_chunks_mut::<QK>().0.iter_mut().zip(&self.qs) {
            *quants = all_nibbles(qs);
        }
        quants
    }

    /// Stores the quants, each 0 to 15.
    #[inline(always)]
    pub(crate) fn pack(&mut self, quants: &[u8; QK_K]) {
        for (qs, quants) in self.qs.iter_mut().zip(quants.as_chunks::<QK>().0) {
            *qs = pack_nibbles(quants);
        }
    }

    /// The scale of sub-block `j`, -32..=31.
    #[inline(always)]
    pub(crate) fn scale(&self, j: usize) -> i32 {
        let low = u32::from_le_bytes(self.scales_l) >> (4 * j) & 0x0f;
        let high = u32::from(u16::from_le_bytes(self.scales_h)) >> (2 * j) & 3;
        (low | high << 4) as i32 - 32
    }
}

formula!(BlockIQ4XS: [QK_K; 8], 15, Values::Iq4, false, |b, j| (b.d() * b.scale(j) as f32, 0.0));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockIQ4XS {}

impl Block for BlockIQ4XS {
    const WEIGHTS: usize = QK_K;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let d = self.d();
        for (j, (out, qs)) in out.chunks_exact_mut(QK).zip(&self.qs).enumerate() {
            let scale = d * self.scale(j) as f32;
            for i in 0..QK / 2 {
                let (low, high) = unpack_nibbles(qs, i);
                out[i] = scale * f32::from(VALUES[low as usize]);
                out[i + QK / 2] = scale * f32::from(VALUES[high as usize]);
            }
        }
    }
}
