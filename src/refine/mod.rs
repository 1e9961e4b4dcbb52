//! Blocks with less error than ggml's encoder leaves, of the same types.
//!
//! ggml fits the sub-blocks one by one and rounds their scales afterwards. Here what is searched for is
//! what is stored: factors, whole scales (and minima) and numbers together, under the error
//! `Σ w (decoded - x)²` whose weights w ggml, too, has in mind: importance · √(2 · mean x² + x²).
//!
//! 1. Each sub-block is fitted alone, from many grids; a grid is moved to where its numbers would have
//!    it (least squares), the numbers are rounded anew, and so on.
//! 2. Of the factors whose multiples come near to these scales the best few are tried: all whole scales
//!    (and minima) near a sub-block's own, each with its exact error.
//! 3. The factors are fitted to the numbers (least squares), and the neighbours tried again.
//! 4. The block is written where it is better than the one that was there. So none is worse than ggml's, where
//!    that was there.
//!
//! Where more is known of the inputs than importances ([`Inputs`]), errors are then made to cancel.
//!
//! The code is written once over `lanes::Lanes`, a sub-block a lane: for vectors, and for any CPU.

pub(crate) mod cancel;
mod columns;
mod factors;
pub(crate) mod hifi;
mod inputs;
mod k;
pub(crate) mod lanes;
mod numbered;
mod signed;
#[cfg(test)]
mod tests;

use crate::block::{
    Block, BlockIQ4XS, BlockQ4K, BlockQ5K, BlockQ6K, QK_K, TensorType, blocks_mut, bytes_of,
};
use crate::error_sums::error_sums;
use crate::hifi::refit::interleaved_sums;
use columns::Columns;
pub use inputs::Inputs;
use lanes::{Lanes, MOST_LANES};
use std::slice;

/// Whether blocks of that type can be refined.
pub fn is_refinable(kind: TensorType) -> bool {
    matches!(kind, TensorType::IQ4XS | TensorType::Q4K | TensorType::Q5K | TensorType::Q6K)
}

/// A number a lane.
type InLanes = [f32; MOST_LANES];

/// Makes the blocks `out` of rows `x` better where it can; `importance` is that of a row's columns.
///
/// # Safety
///
/// The CPU has L's ISA.
#[inline(always)]
pub(crate) unsafe fn refine_rows<L: Lanes>(
    kind: TensorType,
    x: &[f32],
    row_length: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    let x = Blocks {
        x: x.as_chunks().0,
        importance: importance.map(|w| w.as_chunks().0),
        row: row_length / QK_K,
    };
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            TensorType::IQ4XS => refine_blocks::<L, BlockIQ4XS>(x, blocks_mut(out)),
            TensorType::Q4K => refine_blocks::<L, BlockQ4K>(x, blocks_mut(out)),
            TensorType::Q5K => refine_blocks::<L, BlockQ5K>(x, blocks_mut(out)),
            TensorType::Q6K => refine_blocks::<L, BlockQ6K>(x, blocks_mut(out)),
            _ => {}
        }
    }
}

/// Blocks of rows.
#[derive(Clone, Copy)]
struct Blocks<'a> {
    x: &'a [[f32; QK_K]],
    /// That of a row.
    importance: Option<&'a [[f32; QK_K]]>,
    /// Blocks in a row.
    row: usize,
}

impl Blocks<'_> {
    /// Block `i`, and its importance.
    #[inline(always)]
    fn at(&self, i: usize) -> (&[f32; QK_K], Option<&[f32; QK_K]>) {
        (&self.x[i], self.importance.map(|w| &w[i % self.row]))
    }
}

/// A type whose blocks can be refined.
trait Refined: Block {
    /// Sub-blocks with a scale of their own.
    const SUB_BLOCKS: usize;

    /// The best blocks found for `columns`, as many as fill the lanes; `x` are they untransposed.
    ///
    /// # Safety
    ///
    /// The CPU has L's ISA.
    unsafe fn search<L: Lanes>(columns: &Columns, x: &[[f32; QK_K]], out: &mut [Self]);
}

/// The most blocks that fill the lanes.
const MOST_BLOCKS: usize = MOST_LANES / crate::block::k_fit::SUB_BLOCKS;

#[inline(always)]
unsafe fn refine_blocks<L: Lanes, B: Refined>(blocks: Blocks<'_>, out: &mut [B]) {
    let group = L::LANES / B::SUB_BLOCKS;
    let mut columns = Columns::new(QK_K / B::SUB_BLOCKS);
    let (mut x, mut weights) = ([[0f32; QK_K]; MOST_BLOCKS], [[0f32; QK_K]; MOST_BLOCKS]);
    let mut decoded = [0f32; QK_K];
    for (g, out) in out.chunks_mut(group).enumerate() {
        for l in 0..group {
            // the last block fills what is left
            let (this, importance) = blocks.at(g * group + l.min(out.len() - 1));
            x[l] = *this;
            weights[l] = weights_of(this, importance);
        }
        let mut found = [out[0]; MOST_BLOCKS];
        // SAFETY: the caller's promise.
        unsafe {
            columns.fill::<L>(&x[..group], &weights[..group]);
            B::search::<L>(&columns, &x[..group], &mut found[..group]);
        }
        for (l, (out, found)) in out.iter_mut().zip(found).enumerate() {
            found.dequantize(&mut decoded);
            let sums = error_sums(&x[l], Some(&weights[l]), &decoded);
            let before = if bytes_of(slice::from_ref(out)).iter().all(|&b| b == 0) {
                sums.reference // what zeros are wrong by
            } else {
                out.dequantize(&mut decoded);
                error_sums(&x[l], Some(&weights[l]), &decoded).error
            };
            if sums.error < before {
                *out = found;
            }
        }
    }
}

/// What squared errors are multiplied by, of sum 1 so that no scale can matter.
///
/// As in ggml's fit of Q4_K, Q5_K and IQ4_XS it is importance · √(2 m + x²), m being the mean of x², and not
/// the importance alone (docs/quantization/Q4_HIFI.md says what that does to the divergence).
#[inline(always)]
fn weights_of(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> [f32; QK_K] {
    let mean = interleaved_sums(&x.map(|x| x * x)).iter().sum::<f32>() / QK_K as f32;
    // beyond, squares are no longer told apart
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

/// The lanes as an array.
#[inline(always)]
unsafe fn lanes_of<L: Lanes>(lanes: L) -> InLanes {
    let mut array = [0f32; MOST_LANES];
    // SAFETY: the caller's promise; there is room for the most lanes.
    unsafe { lanes.store(array.as_mut_ptr()) };
    array
}

/// 1 in the lanes of the blocks whose `other` error is less, 0 elsewhere; `sub_blocks` lanes are one.
#[inline(always)]
unsafe fn keep_better<L: Lanes>(this: L, other: L, sub_blocks: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let (this, other) = (lanes_of(this), lanes_of(other));
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
}
