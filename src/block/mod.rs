//! The bytes of a block and its formula, one file per type. How the bytes are chosen is in other rooms.
//!
//! A block is a struct of byte arrays only, so it has no alignment and no padding: a file's bytes are its blocks.
//! The layouts are ggml's; fields of several bytes are little-endian. [`TensorType`] is the one table of types.

mod decode;
#[cfg(all(target_arch = "x86_64", not(portable)))]
#[allow(unsafe_op_in_unsafe_fn)] // as in the rooms over vectors
mod decode_x86;
mod float;
mod hifi;
mod hifi_fork;
pub(crate) mod iq4;
mod iq4_nl;
pub(crate) mod iq4_xs;
mod k_fit;
pub(crate) mod k_scales;
mod layout;
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
mod quants;
mod two_bits;
mod types;

pub use float::{BlockBF16, BlockF16, BlockF32};
pub use hifi::{HifiBlock, MAX_OUTLIERS};
pub use hifi_fork::BlockQ4Hifi;
pub use iq4_nl::BlockIQ4NL;
pub use iq4_xs::BlockIQ4XS;
pub use layout::{Block, Bytes, QK, QK_K, blocks, blocks_mut, bytes_of};
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
pub use types::TensorType;

pub(crate) use decode::DequantizeBlocks;
#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(crate) use decode_x86::LookUp;
pub(crate) use hifi::{LARGEST_F16, check_index, decoded};
pub(crate) use k_fit::KFit;
pub(crate) use quants::{Quants, Values};
pub(crate) use types::{by_family, with_block, with_quants};
