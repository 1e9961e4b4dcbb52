//! A group of blocks whose sub-blocks fill the lanes, and what its refinement is made of.

use super::columns::Columns;
use crate::block::{Block, QK_K};
use crate::fit::interleaved_sums;
use crate::simd::{MOST_LANES, Vector};

/// A type whose blocks can be refined.
pub(super) trait Refined: Block {
    /// Sub-blocks with a scale of their own.
    const SUB_BLOCKS: usize;

    /// The best blocks found for `columns`, as many as fill the lanes; `x` are the same weights block by block.
    ///
    /// # Safety
    ///
    /// The CPU has L's ISA.
    unsafe fn search<L: Vector>(columns: &Columns, x: &[[f32; QK_K]], out: &mut [Self]);
}

/// The most blocks that fill the lanes.
pub(super) const MOST_BLOCKS: usize = MOST_LANES / crate::block::k_scales::SUB_BLOCKS;

/// What squared errors are multiplied by, of sum 1 so that no scale can matter.
///
/// As in ggml's fit of Q4_K, Q5_K and IQ4_XS it is importance · √(2 m + x²), m being the mean of x², and not
/// the importance alone (docs/quantization/Q4_HIFI.md says what that does to the divergence).
#[inline(always)]
pub(super) fn weights_of(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> [f32; QK_K] {
    let mean = interleaved_sums(&x.map(|x| x * x)).iter().sum::<f32>() / QK_K as f32;
    // outside this range squares overflow or vanish
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

/// 1 in the lanes of the blocks whose `other` error is less, 0 elsewhere; `sub_blocks` lanes are one.
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
