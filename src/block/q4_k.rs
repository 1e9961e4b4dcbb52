//! Q4_K: eight sub-blocks of 32 weights, `w = d · scale · q - dmin · min`, q in 0..16, scales and
//! minima of six bits. 144 bytes for 256 weights, 4.5 bits per weight.

use super::k_fit::KFit;
use super::k_scales::{SCALES_BYTES, scale_and_min};
use super::layout::{Block, Bytes, QK_K};
use super::quants::{Values, dequantize, formula};
use crate::float::nearest_int;

/// A Q4_K block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// Scales and minima, six bits each.
    pub scales: [u8; SCALES_BYTES],
    /// Quants: byte 32 j + i holds quant i of sub-blocks 2 j (low half) and 2 j + 1 (high half).
    pub qs: [u8; QK_K / 2],
}
const _: () = assert!(size_of::<BlockQ4K>() == 144);

/// The largest quant.
pub(crate) const LEVELS: i32 = 15;

impl BlockQ4K {
    /// A block of zeros.
    pub(crate) const ZERO: Self =
        Self { d: [0; 2], dmin: [0; 2], scales: [0; SCALES_BYTES], qs: [0; QK_K / 2] };

    /// Sets the quant at `index` so that its value is nearest to zero.
    pub fn set_nearest_to_zero(&mut self, index: usize) {
        let (scale, min) = self.scale_and_min(index / 32);
        if scale == 0.0 {
            return;
        }
        let quant = nearest_int(min / scale).clamp(0, LEVELS) as u8;
        let shift = index / 32 % 2 * 4;
        let byte = &mut self.qs[index / 64 * 32 + index % 32];
        *byte = (*byte & !(0x0f << shift)) | (quant << shift);
    }

    /// Scale and minimum of sub-block `j`, times the block scales.
    #[inline(always)]
    pub(crate) fn scale_and_min(&self, j: usize) -> (f32, f32) {
        scale_and_min(self.d, self.dmin, &self.scales, j)
    }

    /// The quants, each 0 to 15.
    #[inline(always)]
    pub(crate) fn quants(&self) -> [u8; QK_K] {
        let mut quants = [0u8; QK_K];
        split_nibbles(&self.qs, &mut quants);
        quants
    }

    /// Packs a fitted block.
    pub(crate) fn from_fit(fit: &KFit) -> Self {
        let (d, dmin) = (fit.d.to_le_bytes(), fit.dmin.to_le_bytes());
        let mut block = Self { d, dmin, scales: fit.scales, ..Self::ZERO };
        block.pack(&fit.quants);
        block
    }

    /// Stores the quants, each 0 to 15.
    #[inline(always)]
    pub(crate) fn pack(&mut self, quants: &[u8; QK_K]) {
        for (qs, q) in self.qs.chunks_exact_mut(32).zip(quants.chunks_exact(64)) {
            for i in 0..32 {
                qs[i] = q[i] | (q[i + 32] << 4);
            }
        }
    }
}

/// The low nibbles of 32 bytes, then their high nibbles, and so on. Q5_K uses it for its low bits, too.
#[inline(always)]
pub(crate) fn split_nibbles(qs: &[u8; QK_K / 2], quants: &mut [u8]) {
    for (out, qs) in quants.as_chunks_mut::<64>().0.iter_mut().zip(qs.as_chunks::<32>().0) {
        for i in 0..32 {
            (out[i], out[i + 32]) = (qs[i] & 0x0f, qs[i] >> 4);
        }
    }
}

formula!(BlockQ4K: [QK_K; 8], LEVELS as u8, Values::From(0.0), true, |b, j| b.scale_and_min(j));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ4K {}

impl Block for BlockQ4K {
    const WEIGHTS: usize = QK_K;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        dequantize(self, out);
    }
}
