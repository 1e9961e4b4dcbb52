//! Blocks, of which a row consists: structs of byte arrays.

/// Weights in a block of a K-quant.
pub const QK_K: usize = 256;
/// Weights in a block of a legacy type.
pub const QK: usize = 32;

/// A struct that can be viewed as its bytes.
///
/// # Safety
///
/// The implementor is `#[repr(C)]` and consists of byte arrays: alignment 1, no padding, every bit
/// pattern valid. [`blocks`] and [`blocks_mut`] rely on it.
pub unsafe trait Bytes: Copy + Send + Sync + 'static {}

/// A block of a type: its number of weights and bytes, and its decoding.
pub trait Block: Bytes {
    /// Weights in a block.
    const WEIGHTS: usize;
    /// Bytes in a block.
    const BYTES: usize = size_of::<Self>();

    /// Writes the block's [`Self::WEIGHTS`] weights to `out`.
    fn dequantize(&self, out: &mut [f32]);
}

/// Views bytes as blocks. A rest that is shorter than a block is ignored.
#[inline]
pub fn blocks<B: Bytes>(bytes: &[u8]) -> &[B] {
    // SAFETY: `Bytes` promises alignment 1, no padding and that every bit pattern is valid; the
    // length is rounded down to whole blocks inside the slice.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<B>()) }
}

/// Views bytes as mutable blocks. A rest that is shorter than a block is ignored.
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
