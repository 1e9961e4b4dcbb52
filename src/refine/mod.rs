//! Refinement: a longer search for blocks of ggml's types, with less error than ggml's encoder leaves.
//!
//! ggml fits the sub-blocks one by one and rounds their scales afterwards. Refinement searches the stored values
//! together: the block scales d and dmin, the integer scales (and minima), and the quants. It minimizes
//! `Σ w (decoded - x)²` with the weights of ggml's fits, w = importance · √(2 · mean x² + x²).
//!
//! 1. Each sub-block is fitted alone, starting from many grids. Scale and minimum are fitted to the quants (least
//!    squares), then the quants are rounded again, and so on.
//! 2. The best few block scales for these fits are tried. For each, all integer scales (and minima) near a sub-block's
//!    fit are tried, with their exact errors.
//! 3. The block scales are fitted to the quants (least squares), and the neighbouring scales are tried again.
//! 4. The new block replaces the old one if its error is smaller. So no block is worse than ggml's, if the old block
//!    was ggml's.
//!
//! The code is written once over [`crate::simd::Vector`], with one sub-block per lane.

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
