//! Decoding a row on x86-64 for types that look up values in a table. The compiler cannot vectorize that.

use super::iq4::BYTES;
use super::iq4_nl::BlockIQ4NL;
use super::iq4_xs::BlockIQ4XS;
use super::layout::{QK, QK_K};
use crate::simd::bytes_x86::look_up_bytes;
use crate::simd::{Kernel, Vector};

/// Decodes the blocks of a row of IQ4_NL or IQ4_XS.
pub(crate) struct LookUp<'a, B> {
    pub blocks: &'a [B],
    pub out: &'a mut [f32],
}

impl Kernel for LookUp<'_, BlockIQ4NL> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for (block, out) in self.blocks.iter().zip(self.out.chunks_exact_mut(QK)) {
            decode(block.d(), &block.qs, out);
        }
    }
}

impl Kernel for LookUp<'_, BlockIQ4XS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for (block, out) in self.blocks.iter().zip(self.out.chunks_exact_mut(QK_K)) {
            for (j, (qs, out)) in block.qs.iter().zip(out.chunks_exact_mut(QK)).enumerate() {
                decode(block.d() * block.scale(j) as f32, qs, out);
            }
        }
    }
}

/// Decodes quants with their scale.
#[inline(always)]
unsafe fn decode(scale: f32, qs: &[u8; QK / 2], out: &mut [f32]) {
    let values = look_up_bytes(&BYTES, qs);
    for (y, v) in out.iter_mut().zip(values) {
        *y = scale * f32::from(v as i8);
    }
}
