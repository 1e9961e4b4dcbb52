//! A group of blocks whose sub-blocks fill the lanes, and functions that the refinements of all types share.

use super::columns::Columns;
use crate::block::{Block, QK_K};
use crate::fit::interleaved_sums;
use crate::simd::{MOST_LANES, Vector};

/// A type whose blocks can be refined.
pub(super) trait Refined: Block {
    /// Sub-blocks, each with a separate scale.
    const SUB_BLOCKS: usize;

    /// Searches good blocks for `columns`, as many as fill the lanes. `x` has the same weights, block by block.
    ///
    /// # Safety
    ///
    /// The CPU has L's ISA.
    unsafe fn search<L: Vector>(columns: &Columns, x: &[[f32; QK_K]], out: &mut [Self]);
}

/// The largest number of blocks in a group.
pub(super) const MOST_BLOCKS: usize = MOST_LANES / crate::block::k_scales::SUB_BLOCKS;

/// Blocks of rows.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    pub x: &'a [[f32; QK_K]],
    /// Importance of a row's columns, block by block.
    pub importance: Option<&'a [[f32; QK_K]]>,
    /// Blocks in a row.
    pub row: usize,
}

impl Blocks<'_> {
    /// Copies blocks from `first` on to `x`, and writes the weights of their squared errors. If there are too few
    /// blocks, the last one fills the rest.
    #[inline(always)]
    pub fn copy_group(&self, first: usize, x: &mut [[f32; QK_K]], weights: &mut [[f32; QK_K]]) {
        for (l, (x, weights)) in x.iter_mut().zip(weights).enumerate() {
            let i = (first + l).min(self.x.len() - 1);
            *x = self.x[i];
            *weights = weights_of(x, self.importance.map(|w| &w[i % self.row]));
        }
    }
}

/// The weights of squared errors, normalized to sum 1, so that their scale does not matter.
///
/// They are proportional to importance · √(2 m + x²), where m is the mean of x², as in ggml's fit of Q4_K, Q5_K and
/// IQ4_XS. docs/quantization/Q4_HIFI.md compares them with the importance alone.
#[inline(always)]
pub(super) fn weights_of(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> [f32; QK_K] {
    let mean = interleaved_sums(&x.map(|x| x * x)).iter().sum::<f32>() / QK_K as f32;
    // outside of this range, squares overflow or underflow
    let inverse = if (1e-30..1e30).contains(&mean) { 1.0 / mean } else { 0.0 };
    let mut weights = [0f32; QK_K];
    for (i, w) in weights.iter_mut().enumerate() {
        *w = (2.0 + x[i] * x[i] * inverse).sqrt();
    }
    if let Some(importance) = importance {
        for (w, importance) in weights.iter_mut().zip(importance) {
            *w *= importance;
        }
    }
    let sum: f32 = interleaved_sums(&weights).iter().sum();
    if sum > 0.0 {
        for w in &mut weights {
            *w /= sum;
        }
    }
    weights
}

/// 1 in the lanes of blocks whose error in `other` is less than in `this`, 0 in other lanes. A block has `sub_blocks`
/// lanes.
#[inline(always)]
pub(super) unsafe fn keep_better<L: Vector>(this: L, other: L, sub_blocks: usize) -> L {
    let (this, other) = (this.to_array(), other.to_array());
    let mut better = [0f32; MOST_LANES];
    for at in (0..L::LANES).step_by(sub_blocks) {
        let (mut a, mut b) = (0f32, 0f32);
        for l in at..at + sub_blocks {
            a += this[l];
            b += other[l];
        }
        better[at..][..sub_blocks].fill(if b < a { 1.0 } else { 0.0 });
    }
    L::load(better.as_ptr())
}
