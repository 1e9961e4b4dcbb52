//! Q6_K: sixteen sub-blocks of 16 weights, `w = d · scale · (q - 32)`, q in 0..64, scales signed
//! bytes. 210 bytes for 256 weights, 6.5625 bits per weight.

use super::layout::{Block, Bytes, QK_K};
use super::quants::{Values, formula};
use crate::float::f16_to_f32;

pub(crate) const SUB_BLOCKS: usize = 16;
pub(crate) const SUB: usize = QK_K / SUB_BLOCKS;
/// Quants are in -HALF..HALF, before they are stored.
pub(crate) const HALF: i32 = 32;

/// A Q6_K block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low four bits: for each half of the block, byte i of 64 holds quants i and i + 64.
    pub ql: [u8; QK_K / 2],
    /// High two bits: for each half, byte i of 32 holds quants i, i + 32, i + 64 and i + 96.
    pub qh: [u8; QK_K / 4],
    /// Scales of the sub-blocks, signed.
    pub scales: [u8; SUB_BLOCKS],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ6K>() == 210);

impl BlockQ6K {
    /// A block of zeros, as ggml stores it.
    pub(crate) const ZERO: Self =
        Self { ql: [0; QK_K / 2], qh: [0; QK_K / 4], scales: [0; SUB_BLOCKS], d: [0; 2] };

    /// The scale of sub-block `j` as stored.
    #[inline]
    pub(crate) fn scale(&self, j: usize) -> f32 {
        f16_to_f32(u16::from_le_bytes(self.d)) * f32::from(self.scales[j] as i8)
    }

    /// The quants, each 0 to 63.
    #[inline(always)]
    pub(crate) fn quants(&self) -> [u8; QK_K] {
        let mut quants = [0u8; QK_K];
        let halves = self.ql.chunks_exact(64).zip(self.qh.chunks_exact(32));
        for ((ql, qh), quants) in halves.zip(quants.chunks_exact_mut(128)) {
            for quarter in 0..4 {
                for (i, q) in quants[quarter * 32..][..32].iter_mut().enumerate() {
                    let low = (ql[quarter % 2 * 32 + i] >> (quarter / 2 * 4)) & 0x0f;
                    *q = low | ((qh[i] >> (quarter * 2)) & 3) << 4;
                }
            }
        }
        quants
    }

    /// Stores the quants, each 0 to 63.
    pub(crate) fn pack(&mut self, quants: &[u8; QK_K]) {
        let halves = self.ql.chunks_exact_mut(64).zip(self.qh.chunks_exact_mut(32));
        for ((ql, qh), q) in halves.zip(quants.chunks_exact(128)) {
            for i in 0..32 {
                ql[i] = (q[i] & 0x0f) | (q[i + 64] << 4);
                ql[i + 32] = (q[i + 32] & 0x0f) | (q[i + 96] << 4);
                qh[i] = (q[i] >> 4)
                    | (q[i + 32] >> 4) << 2
                    | (q[i + 64] >> 4) << 4
                    | (q[i + 96] >> 4) << 6;
            }
        }
    }
}

formula!(BlockQ6K: [QK_K; 16], 63, Values::From(-32.0), false, |b, j| (b.scale(j), 0.0));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ6K {}

impl Block for BlockQ6K {
    const WEIGHTS: usize = QK_K;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let d = f16_to_f32(u16::from_le_bytes(self.d));
        let quants = self.quants(); // apart from the products, so that both loops become vectors
        let subs = out.chunks_exact_mut(SUB).zip(quants.chunks_exact(SUB)).zip(&self.scales);
        for ((out, quants), &scale) in subs {
            let scale = d * f32::from(scale as i8);
            for (y, &q) in out.iter_mut().zip(quants) {
                *y = scale * f32::from(q as i8 - 32);
            }
        }
    }
}
