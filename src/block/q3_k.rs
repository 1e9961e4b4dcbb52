//! Q3_K: sixteen sub-blocks of 16 weights, `w = d · scale · (q - 4)`, q in 0..8, signed scales of six
//! bits. 110 bytes for 256 weights, 3.4375 bits per weight.

use super::layout::{Block, Bytes, QK_K};
use super::quants::{Values, formula};
use super::two_bits::{self, TWO_BITS_BYTES};
use crate::float::{f16_to_f32, f32_to_f16};

pub(crate) const SUB_BLOCKS: usize = 16;
pub(crate) const SUB: usize = QK_K / SUB_BLOCKS;
/// Quants are in -HALF..HALF, before they are stored.
pub(crate) const HALF: i32 = 4;
/// Scales are in -HALF_SCALE..HALF_SCALE, before they are stored.
pub(crate) const HALF_SCALE: i32 = 32;

/// A Q3_K block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ3K {
    /// Bit j of byte i is the third bit of quant 32 j + i.
    pub hmask: [u8; QK_K / 8],
    /// Low two bits of the quants, laid out as in Q2_K.
    pub qs: [u8; TWO_BITS_BYTES],
    /// Scales + 32. Bytes 0..8 hold the low four bits of scales j and j + 8; byte 8 + i the high two
    /// bits of scales i, i + 4, i + 8 and i + 12.
    pub scales: [u8; 12],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ3K>() == 110);

impl BlockQ3K {
    /// A block of these scales, each 0 to 63, and of zeros.
    pub(crate) fn from_scales(d: f32, scales: &[u8; SUB_BLOCKS]) -> Self {
        let mut packed = [0u8; 12];
        for i in 0..8 {
            packed[i] = (scales[i] & 0x0f) | (scales[i + 8] << 4);
        }
        for i in 0..4 {
            packed[i + 8] = (scales[i] >> 4)
                | (scales[i + 4] >> 4) << 2
                | (scales[i + 8] >> 4) << 4
                | (scales[i + 12] >> 4) << 6;
        }
        let (hmask, qs) = ([0; QK_K / 8], [0; TWO_BITS_BYTES]);
        Self { hmask, qs, scales: packed, d: f32_to_f16(d).to_le_bytes() }
    }

    /// The scales as stored, 0 to 63, a byte each.
    #[inline(always)]
    pub(crate) fn unpack_scales(&self) -> [u8; SUB_BLOCKS] {
        let s = &self.scales;
        let low = u64::from_le_bytes([s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]]);
        let high = u64::from(u32::from_le_bytes([s[8], s[9], s[10], s[11]]));
        let nibbles = |shift: u32| (low >> shift) & 0x0f0f_0f0f_0f0f_0f0f;
        let tops = |shift: u32| {
            let (first, second) = (high >> shift, high >> (shift + 2));
            ((first & 0x0303_0303) | (second & 0x0303_0303) << 32) << 4
        };
        let both = (nibbles(4) | tops(4), nibbles(0) | tops(0));
        (u128::from(both.0) << 64 | u128::from(both.1)).to_le_bytes()
    }

    /// The scales of the sub-blocks.
    #[inline(always)]
    pub(crate) fn all_scales(&self) -> [f32; SUB_BLOCKS] {
        let d = f16_to_f32(u16::from_le_bytes(self.d));
        self.unpack_scales().map(|scale| d * (i32::from(scale) - HALF_SCALE) as f32)
    }

    /// Stores the quants, each 0 to 7.
    pub(crate) fn pack(&mut self, quants: &[u8; QK_K]) {
        self.qs = two_bits::pack(quants);
        self.hmask = [0; QK_K / 8];
        for (j, quants) in quants.chunks_exact(32).enumerate() {
            for (bits, quant) in self.hmask.iter_mut().zip(quants) {
                *bits |= (quant >> 2) << j;
            }
        }
    }

    /// The quants, each 0 to 7.
    #[inline(always)]
    pub(crate) fn quants(&self) -> [u8; QK_K] {
        let mut quants = [0u8; QK_K];
        two_bits::unpack(&self.qs, &mut quants);
        for (j, quants) in quants.chunks_exact_mut(32).enumerate() {
            for (quant, bits) in quants.iter_mut().zip(&self.hmask) {
                *quant |= ((bits >> j) & 1) << 2;
            }
        }
        quants
    }
}

formula!(BlockQ3K: [QK_K; 16], 7, Values::From(-4.0), false, |b, j| (b.all_scales()[j], 0.0));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ3K {}

impl Block for BlockQ3K {
    const WEIGHTS: usize = QK_K;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let quants = self.quants();
        let subs = out.chunks_exact_mut(SUB).zip(quants.chunks_exact(SUB));
        for ((out, quants), scale) in subs.zip(self.all_scales()) {
            for (y, &q) in out.iter_mut().zip(quants) {
                *y = scale * (i32::from(q) - HALF) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_six_bit_scale_comes_back_from_every_place() {
        for index in 0..SUB_BLOCKS {
            for scale in 0..64 {
                let mut scales = [63 - scale; SUB_BLOCKS];
                scales[index] = scale;
                assert_eq!(BlockQ3K::from_scales(1.0, &scales).unpack_scales(), scales);
            }
        }
    }
}
