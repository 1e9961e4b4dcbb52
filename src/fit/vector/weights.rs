//! The weights of squared errors in fits with importance: importance · √(mean square + x²), where the mean is over a
//! row or over a block.

use crate::block::QK_K;
use crate::simd::{MOST_LANES, Vector};

/// Writes the weights of `N` elements per lane to `to`, which may be `importance`. `mean` has the mean square for each
/// lane.
///
/// # Safety
///
/// The CPU has V's ISA; the pointers lead to `N` · LANES elements.
#[inline(always)]
pub(super) unsafe fn weigh<V: Vector, const N: usize>(
    mean: V,
    x: *const f32,
    importance: *const f32,
    to: *mut f32,
) {
    for i in (0..N * V::LANES).step_by(V::LANES) {
        let v = V::load(x.add(i));
        let importance = V::load(importance.add(i));
        importance.mul(mean.add(v.mul(v)).sqrt()).store(to.add(i));
    }
}

/// The same for one sub-block per lane. `means` has the mean squares of the blocks.
///
/// # Safety
///
/// The CPU has V's ISA; the pointers lead to `N` · LANES elements.
#[inline(always)]
pub(super) unsafe fn weigh_blocks<V: Vector, const N: usize, const SUB_BLOCKS: usize>(
    means: &[f32],
    x: *const f32,
    importance: *const f32,
    to: *mut f32,
) {
    let mut lanes = [0f32; MOST_LANES];
    for (lanes, &mean) in lanes.as_chunks_mut::<SUB_BLOCKS>().0.iter_mut().zip(means) {
        *lanes = [mean; SUB_BLOCKS];
    }
    weigh::<V, N>(V::load(lanes.as_ptr()), x, importance, to);
}

/// `times` · mean square of each block, added up in order. The rest of the `N` values is 0.
#[inline(always)]
pub(super) fn means_of_squares<const N: usize>(x: &[[f32; QK_K]], times: f32) -> [f32; N] {
    let mut sums = [0f32; N];
    for i in 0..QK_K {
        // together, so that the sums do not wait for each other
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += x[i] * x[i];
        }
    }
    for sum in &mut sums {
        *sum = times * *sum / QK_K as f32;
    }
    sums
}
