//! IQ4_XS: eight sub-blocks of 32 weights, `w = d · (scale - 32) · VALUES[q]`, sixteen values closer
//! together near zero, scales of six bits. 136 bytes for 256 weights, 4.25 bits a weight.

use super::iq4::{VALUES, fit_scale, numbers, sigma2, weights};
use super::k_fit::for_each_block;
use super::legacy::{all_nibbles, inverse, pack_nibbles, unpack_nibbles};
use super::{Block, Bytes, QK, QK_K};
use crate::float::{f16_to_f32, f32_to_f16, nearest_int};

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
    /// Numbers: bytes 16 j on hold those of sub-block j, i and i + 16 in the halves of byte i.
    pub qs: [[u8; QK / 2]; SUB_BLOCKS],
}
const _: () = assert!(size_of::<BlockIQ4XS>() == 136);

impl BlockIQ4XS {
    /// Encodes a block, with importance or x² as the weights of the fit.
    pub fn quantize(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Self {
        let (parts, sigma2) = (x.as_chunks::<QK>().0, sigma2(x));
        let fitted = std::array::from_fn(|j| {
            let importance = importance.map(|w| &w[j * QK..]);
            fit_scale(&parts[j], &weights(&parts[j], importance, sigma2))
        });
        let (mut block, inverses) = Self::with_scales(&fitted);
        for (qs, (x, inverse)) in block.qs.iter_mut().zip(parts.iter().zip(inverses)) {
            *qs = pack_nibbles(&numbers(x, inverse));
        }
        block
    }

    /// A block with the scales of its sub-blocks rounded to six bits, and their inverses, by which the
    /// numbers are found.
    #[inline(always)]
    pub(crate) fn with_scales(fitted: &[f32; SUB_BLOCKS]) -> (Self, [f32; SUB_BLOCKS]) {
        // NaN, from squares that overflow, is stored as 0 would be; said here, because memcheck's
        // maximum, which the search below may become, does not tell the two arguments apart
        let fitted = fitted.map(|scale| if scale.is_nan() { 0.0 } else { scale });
        let (mut magnitude, mut extreme) = (0.0f32, 0.0f32);
        for scale in fitted {
            if scale.abs() > magnitude {
                magnitude = scale.abs();
                extreme = scale;
            }
        }
        let d = -extreme / 32.0;
        let id = inverse(d);
        let scales = fitted.map(|scale| nearest_int(id * scale).clamp(-32, 31));
        (Self::new(d, &scales), scales.map(|scale| inverse(d * scale as f32)))
    }

    /// A block with these scales, each -32..=31; its numbers are those of the lowest value.
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
    pub(crate) fn factor(&self) -> f32 {
        f16_to_f32(u16::from_le_bytes(self.d))
    }

    /// The numbers, each 0 to 15.
    #[inline(always)]
    pub(crate) fn numbers(&self) -> [u8; QK_K] {
        let mut numbers = [0u8; QK_K];
        for (numbers, qs) in numbers.as_chunks_mut::<QK>().0.iter_mut().zip(&self.qs) {
            *numbers = all_nibbles(qs);
        }
        numbers
    }

    /// Stores the numbers, each 0 to 15.
    #[inline(always)]
    pub(crate) fn pack(&mut self, numbers: &[u8; QK_K]) {
        for (qs, numbers) in self.qs.iter_mut().zip(numbers.as_chunks::<QK>().0) {
            *qs = pack_nibbles(numbers);
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

// SAFETY: `repr(C)`, byte arrays only.
unsafe impl Bytes for BlockIQ4XS {}

impl Block for BlockIQ4XS {
    const WEIGHTS: usize = QK_K;

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let d = self.factor();
        for (j, (out, qs)) in out.chunks_exact_mut(QK).zip(&self.qs).enumerate() {
            let scale = d * self.scale(j) as f32;
            for i in 0..QK / 2 {
                let (low, high) = unpack_nibbles(qs, i);
                out[i] = scale * f32::from(VALUES[low as usize]);
                out[i + QK / 2] = scale * f32::from(VALUES[high as usize]);
            }
        }
    }

    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        for_each_block(x, importance, out, Self::quantize);
    }
}
