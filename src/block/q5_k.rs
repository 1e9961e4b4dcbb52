//! Q5_K: as Q4_K with quants of five bits, `w = d · scale · q - dmin · min`, q in 0..32.
//! 176 bytes for 256 weights, 5.5 bits per weight.

use super::k_fit::KFit;
use super::k_scales::{SCALES_BYTES, scale_and_min};
use super::layout::{Block, Bytes, QK_K};
use super::quants::{Values, dequantize, formula};

/// A Q5_K block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ5K {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// Scales and minima, six bits each.
    pub scales: [u8; SCALES_BYTES],
    /// Bit j of byte i is the fifth bit of quant i of sub-block j.
    pub qh: [u8; QK_K / 8],
    /// Low four bits of the quants, laid out as in Q4_K.
    pub qs: [u8; QK_K / 2],
}
const _: () = assert!(size_of::<BlockQ5K>() == 176);

/// The largest quant.
pub(crate) const LEVELS: i32 = 31;

impl BlockQ5K {
    /// Scale and minimum of sub-block `j`, times the block scales.
    #[inline(always)]
    pub(crate) fn scale_and_min(&self, j: usize) -> (f32, f32) {
        scale_and_min(self.d, self.dmin, &self.scales, j)
    }

    /// The quants of sub-block `j`, each 0 to 31.
    #[inline(always)]
    fn quants_of(&self, j: usize) -> impl Iterator<Item = u8> {
        let qs = &self.qs[j / 2 * 32..][..32];
        qs.iter()
            .zip(&self.qh)
            .map(move |(q, h)| ((q >> (j % 2 * 4)) & 0x0f) | (((h >> j) & 1) << 4))
    }

    /// The quants, each 0 to 31.
    #[inline(always)]
    pub(crate) fn quants(&self) -> [u8; QK_K] {
        let mut quants = [0u8; QK_K];
        for (j, quants) in quants.chunks_exact_mut(32).enumerate() {
            for (quant, q) in quants.iter_mut().zip(self.quants_of(j)) {
                *quant = q;
            }
        }
        quants
    }

    /// Packs a fitted block.
    pub(crate) fn from_fit(fit: &KFit) -> Self {
        let (d, dmin) = (fit.d.to_le_bytes(), fit.dmin.to_le_bytes());
        let (qh, qs) = ([0; QK_K / 8], [0; QK_K / 2]);
        let mut block = Self { d, dmin, scales: fit.scales, qh, qs };
        block.pack(&fit.quants);
        block
    }

    /// Stores the quants, each 0 to 31.
    #[inline(always)]
    pub(crate) fn pack(&mut self, quants: &[u8; QK_K]) {
        (self.qh, self.qs) = ([0; QK_K / 8], [0; QK_K / 2]);
        for (j, q) in quants.chunks_exact(32).enumerate() {
            let qs = &mut self.qs[j / 2 * 32..][..32];
            for i in 0..32 {
                qs[i] |= (q[i] & 0x0f) << (j % 2 * 4);
                self.qh[i] |= (q[i] >> 4) << j;
            }
        }
    }
}

formula!(BlockQ5K: [QK_K; 8], LEVELS as u8, Values::From(0.0), true, |b, j| b.scale_and_min(j));

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockQ5K {}

impl Block for BlockQ5K {
    const WEIGHTS: usize = QK_K;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        dequantize(self, out);
    }
}
