//! One file a format: the bytes of a block, the formula they stand for, encode and decode.
//!
//! A block is a struct of byte arrays only, so it has no alignment and no padding: a file's bytes
//! are its blocks. The layouts are ggml's; multi-byte fields are little-endian.

mod float;
pub(crate) mod iq4;
pub(crate) mod iq4_nl;
pub(crate) mod iq4_xs;
pub(crate) mod k_fit;
pub(crate) mod k_scales;
pub(crate) mod legacy;
pub(crate) mod q2_k;
pub(crate) mod q3_k;
pub(crate) mod q4_0;
pub(crate) mod q4_1;
pub(crate) mod q4_k;
pub(crate) mod q5_0;
pub(crate) mod q5_1;
pub(crate) mod q5_k;
pub(crate) mod q6_k;
mod q8_0;
pub(crate) mod two_bits;

pub use float::{BlockBF16, BlockF16, BlockF32};
pub use iq4_nl::BlockIQ4NL;
pub use iq4_xs::BlockIQ4XS;
pub use q2_k::BlockQ2K;
pub use q3_k::BlockQ3K;
pub use q4_0::BlockQ4_0;
pub use q4_1::BlockQ4_1;
pub use q4_k::BlockQ4K;
pub use q5_0::BlockQ5_0;
pub use q5_1::BlockQ5_1;
pub use q5_k::BlockQ5K;
pub use q6_k::BlockQ6K;
pub use q8_0::BlockQ8_0;

use crate::error::QuantError;

/// Weights in a block of a K-quant.
pub const QK_K: usize = 256;
/// Weights in a block of a legacy type.
pub const QK: usize = 32;

/// A struct that is its bytes.
///
/// # Safety
///
/// The implementor is `#[repr(C)]` and consists of byte arrays: alignment 1, no padding, every bit
/// pattern valid. [`blocks`] and [`blocks_mut`] rely on it.
pub unsafe trait Bytes: Copy + Send + Sync + 'static {}

/// What a row is made of: so many weights in so many bytes, and the way between them.
pub trait Block: Bytes {
    /// Weights in a block.
    const WEIGHTS: usize;
    /// Bytes in a block.
    const BYTES: usize = size_of::<Self>();

    /// Writes the block's [`Self::WEIGHTS`] weights to `out`.
    fn dequantize(&self, out: &mut [f32]);

    /// Encodes a row: `x` has `out.len()` · [`Self::WEIGHTS`] weights, and as many `importance`
    /// values where they are given. The bytes are those of ggml's `ggml_quantize_chunk`.
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]);
}

/// Views bytes as blocks; a rest shorter than a block is left out.
#[inline]
pub fn blocks<B: Bytes>(bytes: &[u8]) -> &[B] {
    // SAFETY: `Bytes` promises alignment 1, no padding and that every bit pattern is valid; the
    // length is rounded down to whole blocks inside the slice.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<B>()) }
}

/// Views bytes as blocks to be written; a rest shorter than a block is left out.
#[inline]
pub fn blocks_mut<B: Bytes>(bytes: &mut [u8]) -> &mut [B] {
    // SAFETY: as in `blocks`; the borrow is exclusive.
    unsafe {
        std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<B>())
    }
}

/// Views blocks as their bytes.
#[inline]
pub fn bytes_of<B: Bytes>(blocks: &[B]) -> &[u8] {
    // SAFETY: `Bytes` promises that a block is its bytes.
    unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), size_of_val(blocks)) }
}

/// Calls `$body` with `$block` standing for the block struct of a [`TensorType`].
macro_rules! with_block {
    ($kind:expr, $block:ident => $body:expr) => {{
        use $crate::block as formats;
        use $crate::block::TensorType;
        match $kind {
            TensorType::F32 => {
                type $block = formats::BlockF32;
                $body
            }
            TensorType::F16 => {
                type $block = formats::BlockF16;
                $body
            }
            TensorType::BF16 => {
                type $block = formats::BlockBF16;
                $body
            }
            TensorType::Q4_0 => {
                type $block = formats::BlockQ4_0;
                $body
            }
            TensorType::Q4_1 => {
                type $block = formats::BlockQ4_1;
                $body
            }
            TensorType::Q5_0 => {
                type $block = formats::BlockQ5_0;
                $body
            }
            TensorType::Q5_1 => {
                type $block = formats::BlockQ5_1;
                $body
            }
            TensorType::Q8_0 => {
                type $block = formats::BlockQ8_0;
                $body
            }
            TensorType::Q2K => {
                type $block = formats::BlockQ2K;
                $body
            }
            TensorType::Q3K => {
                type $block = formats::BlockQ3K;
                $body
            }
            TensorType::Q4K => {
                type $block = formats::BlockQ4K;
                $body
            }
            TensorType::Q5K => {
                type $block = formats::BlockQ5K;
                $body
            }
            TensorType::Q6K => {
                type $block = formats::BlockQ6K;
                $body
            }
            TensorType::IQ4NL => {
                type $block = formats::BlockIQ4NL;
                $body
            }
            TensorType::IQ4XS => {
                type $block = formats::BlockIQ4XS;
                $body
            }
        }
    }};
}
pub(crate) use with_block;

/// The types that rows can be stored as; the number is the type's id in GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, non_camel_case_types)]
pub enum TensorType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2K = 10,
    Q3K = 11,
    Q4K = 12,
    Q5K = 13,
    Q6K = 14,
    IQ4NL = 20,
    IQ4XS = 23,
    BF16 = 30,
}

impl TensorType {
    /// Every type, by id.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::IQ4NL,
        Self::IQ4XS,
        Self::BF16,
    ];

    /// The type with GGUF's id `id`.
    pub fn from_id(id: u32) -> Result<Self, QuantError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.id() == id)
            .ok_or_else(|| QuantError::UnknownType(format!("id {id}")))
    }

    /// The type's id in GGUF.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// ggml's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::IQ4NL => "IQ4_NL",
            Self::IQ4XS => "IQ4_XS",
            Self::BF16 => "BF16",
        }
    }

    /// Weights in a block.
    pub fn block_weights(self) -> usize {
        with_block!(self, B => B::WEIGHTS)
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> usize {
        with_block!(self, B => B::BYTES)
    }

    /// Bytes of a row of `row_length` weights, which must be whole blocks.
    pub fn row_bytes(self, row_length: usize) -> Result<usize, QuantError> {
        let block = self.block_weights();
        let whole = row_length > 0 && row_length.is_multiple_of(block);
        let bytes = (row_length / block).checked_mul(self.block_bytes()).filter(|_| whole);
        bytes.ok_or(QuantError::RowLength { row_length, block, name: self.name() })
    }
}
