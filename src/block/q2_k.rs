//! Q2_K: sixteen sub-blocks of 16 weights, `w = d · scale · q - dmin · min`, q in 0..4, scales and
//! minima of four bits. 84 bytes for 256 weights, 2.625 bits per weight.

use super::layout::{Block, Bytes, QK_K};
use super::quants::{Values, dequantize, formula};
use super::two_bits::{self, TWO_BITS_BYTES};
use crate::float::{f16_to_f32, f32_to_f16};

pub(crate) const SUB_BLOCKS: usize = 16;
pub(crate) const SUB: usize = QK_K / SUB_BLOCKS;
/// The largest quant.
pub(crate) const LEVELS: i32 = 3;
/// The largest scale or minimum.
pub(crate) const MAX_SCALE: i32 = 15;

/// A Q2_K block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ2K {
    /// For each sub-block, the scale in the low four bits, and the minimum in the high four bits.
    pub scales: [u8; SUB_BLOCKS],
    /// Quants: for each half of the block, byte i of 32 holds quants i, i + 32, i + 64 and i + 96.
    pub qs: [u8; TWO_BITS_BYTES],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ2K>() == 84);

impl BlockQ2K {
    /// A block of scales and minima, both with their block scale first, and with quants of zero.
    pub(crate) fn from_scales(
        (d, scales): (f32, [u8; SUB_BLOCKS]),
        (dmin, mins): (f32, [u8; SUB_BLOCKS]),
    ) -> Self {
        Self {
            scales: std::array::from_fn(|j| scales[j] | (mins[j] << 4)),
            qs: [0; TWO_BITS_BYTES],
            d: f32_to_f16(d).to_le_bytes(),
            dmin: f32_to_f16(dmin).to_le_bytes(),
        }
    }

    /// Stores the quants, each 0 to 3.
    #[inline(always)]
    pub(crate) fn pack(&mut self, quants: &[u8; QK_K]) {
        self.qs = two_bits::pack(quants);
    }

    /// The quants, each 0 to 3.
    #[inline(always)]
    pub(crate) fn quants(&self) -> [u8; QK_K] {
        let mut quants = [0u8; QK_K];
        two_bits::unpack(&self.qs, &mut quants);
        quants
    }

    /// Scale and minimum of sub-block `j`, times the block scales.
    #[inline(always)]
    pub(crate) fn scale_and_min(&self, j: usize) -> (f32, f32) {
        let d = f16_to_f32(u16::from_le_bytes(self.d));
        let dmin = f16_to_f32(u16::from_le_bytes(self.dmin));
        (d * f32::from(self.scales[j] & 0x0f), dmin * f32::from(self.scales[j] >> 4))
    }
}

formula!(BlockQ2K: [QK_K; 16], LEVELS as u8, Values::From(0.0), true, |b, j| b.scale_and_min(j));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ2K {}

impl Block for BlockQ2K {
    const WEIGHTS: usize = QK_K;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        dequantize(self, out);
    }
}
