//! Blocks with less error than ggml's encoder leaves, of the same types.
//!
//! ggml fits the sub-blocks one by one and rounds their scales afterwards. Here what is searched for is
//! what is stored: the block's scales d and dmin, whole scales (and minima) and quants together, under the error
//! `Σ w (decoded - x)²` whose weights w ggml, too, has in mind: importance · √(2 · mean x² + x²).
//!
//! 1. Each sub-block is fitted alone, from many grids; a grid is moved to where its quants would have
//!    it (least squares), the quants are rounded anew, and so on.
//! 2. Of the block scales whose multiples come near to these scales the best few are tried: all whole scales
//!    (and minima) near a sub-block's own, each with its exact error.
//! 3. The block scales are fitted to the quants (least squares), and the neighbours tried again.
//! 4. The block is written where it is better than the one that was there. So none is worse than ggml's, where
//!    that was there.
//!
//! The code is written once over [`crate::simd::Vector`], a sub-block a lane: for vectors, and for any CPU.

mod block_scales;
mod blocks;
mod columns;
mod group;
mod hifi;
mod k;
mod signed;
#[cfg(test)]
mod tests;

pub(crate) use blocks::{RefineRows, is_refinable};
pub(crate) use hifi::RefineHifiRow;
