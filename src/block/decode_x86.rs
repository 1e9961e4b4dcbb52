//! Decoding a row on x86-64: by the portable loops, but where a table of bytes is looked up in.

use super::decode;
use super::iq4::BYTES;
use super::iq4_nl::BlockIQ4NL;
use super::iq4_xs::BlockIQ4XS;
use super::layout::{QK, QK_K, blocks};
use super::types::TensorType;
use crate::simd::bytes_x86::{f16_to_f32, look_up_bytes};
use crate::simd::{Kernel, Vector};

/// Decodes a row of `kind`.
pub(crate) struct DequantizeRow<'a> {
    pub kind: TensorType,
    pub row: &'a [u8],
    pub out: &'a mut [f32],
}

impl Kernel for DequantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { kind, row, out } = self;
        // the CPU has V's instruction set, and each there is on x86-64 has AVX2 and F16C.
        match kind {
            TensorType::IQ4NL => dequantize_nl(blocks(row), out),
            TensorType::IQ4XS => dequantize_xs(blocks(row), out),
            _ => decode::dequantize_row(kind, row, out),
        }
    }
}

/// Decodes quants under their scale.
#[inline(always)]
unsafe fn decode(scale: f32, qs: &[u8; QK / 2], out: &mut [f32]) {
    let values = look_up_bytes(&BYTES, qs);
    for (y, v) in out.iter_mut().zip(values) {
        *y = scale * f32::from(v as i8);
    }
}

/// The vector version of IQ4_NL's decoder.
#[inline(always)]
unsafe fn dequantize_nl(blocks: &[BlockIQ4NL], out: &mut [f32]) {
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(QK)) {
        decode(f16_to_f32(u16::from_le_bytes(block.d)), &block.qs, out);
    }
}

/// The vector version of IQ4_XS's decoder.
#[inline(always)]
unsafe fn dequantize_xs(blocks: &[BlockIQ4XS], out: &mut [f32]) {
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(QK_K)) {
        let d = f16_to_f32(u16::from_le_bytes(block.d));
        for (j, (qs, out)) in block.qs.iter().zip(out.chunks_exact_mut(QK)).enumerate() {
            decode(d * block.scale(j) as f32, qs, out);
        }
    }
}
