//! F32, F16, BF16: blocks of a single float.

use super::layout::{Block, Bytes};
use crate::float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

macro_rules! number_block {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $decode:expr, $encode:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        #[repr(C)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The float nearest to `value`.
            #[inline(always)]
            pub fn new(value: f32) -> Self {
                Self($encode(value))
            }
        }

        // SAFETY: a single byte array.
        unsafe impl Bytes for $name {}

        impl Block for $name {
            const WEIGHTS: usize = 1;

            #[inline(always)]
            fn dequantize(&self, out: &mut [f32]) {
                out[0] = $decode(self.0);
            }
        }
    };
}

number_block!(
    /// IEEE binary32: 32 bits per weight.
    BlockF32, 4, f32::from_le_bytes, f32::to_le_bytes
);
number_block!(
    /// IEEE binary16: 16 bits per weight, rounded to nearest, ties to even.
    BlockF16, 2, |b| f16_to_f32(u16::from_le_bytes(b)), |v| f32_to_f16(v).to_le_bytes()
);
number_block!(
    /// bfloat16: 16 bits per weight, rounded to nearest, ties to even.
    BlockBF16, 2, |b| bf16_to_f32(u16::from_le_bytes(b)), |v| f32_to_bf16(v).to_le_bytes()
);
