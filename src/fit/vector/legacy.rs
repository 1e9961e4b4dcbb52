//! The fits of the legacy types with importance, one block per lane.

use super::affine::fit_affine;
use super::ranges::{filled, ranges};
use super::signed::fit_signed;
use super::weights::weigh;
use crate::block::QK;
use crate::fit::search::{self as fit, Search};
use crate::simd::{InLanes, MOST_LANES as MOST, Twice, Vector};
use std::ops::Range;

/// Weights in a group.
const GROUP: usize = QK;

/// Blocks of a row that are fitted together.
struct Blocks<'a> {
    /// The blocks one after the other.
    x: &'a [[f32; QK]],
    importance: &'a [[f32; QK]],
    mean_square: f32,
}

impl<'a> Blocks<'a> {
    #[inline(always)]
    fn of(
        range: Range<usize>,
        x: &'a [[f32; QK]],
        importance: &'a [[f32; QK]],
        mean_square: f32,
    ) -> Self {
        Self { x: &x[range.clone()], importance: &importance[range], mean_square }
    }

    /// Puts the blocks into lanes, with the weights importance · √(mean square of the row + x²). Unused lanes are
    /// zeros.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA, and V has a lane for every block.
    #[inline(always)]
    unsafe fn in_lanes<V: Vector>(&self) -> (InLanes<GROUP>, InLanes<GROUP>) {
        let (mut xt, mut wt) = (InLanes::new(), InLanes::new());
        let mut copy = [[0f32; QK]; MOST];
        // the arrays have room for MOST_LANES lanes.
        V::transpose(filled::<V>(self.x, &mut copy), GROUP, xt.as_mut_ptr());
        V::transpose(filled::<V>(self.importance, &mut copy), GROUP, wt.as_mut_ptr());
        let mean_square = V::splat(self.mean_square);
        weigh::<V, GROUP>(mean_square, xt.as_ptr(), wt.as_ptr(), wt.as_mut_ptr());
        (xt, wt)
    }
}

/// Rounds `(x - min) · inverse` to a quant, clamps it and adds `offset`.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
unsafe fn round<V: Vector>(
    x: &[f32; QK],
    inverse: f32,
    min: f32,
    (low, high): (i32, i32),
    offset: f32,
) -> [u8; QK] {
    let mut quants = [0u8; QK];
    for i in (0..QK).step_by(V::LANES) {
        // LANES divides 32.
        let v = V::load(x.as_ptr().add(i));
        let q = V::splat(inverse).mul(v.sub(V::splat(min))).nearest_in(low, high);
        q.add(V::splat(offset)).store_bytes(i32::MAX, quants.as_mut_ptr().add(i));
    }
    quants
}

/// The vector version of [`crate::fit::legacy::quantize_symmetric`] with importance.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_symmetric<V: Vector, B>(
    x: &[f32],
    importance: &[f32],
    mean_square: f32,
    half: i8,
    out: &mut [B],
    store: fn(f32, &[u8; QK]) -> B,
) {
    let (x, importance) = (x.as_chunks().0, importance.as_chunks().0);
    for (range, is_twice) in ranges::<V>(x.len(), 1) {
        let blocks = Blocks::of(range.clone(), x, importance, mean_square);
        let (half, out) = (i32::from(half), &mut out[range]);
        if is_twice {
            fit_symmetric::<V, Twice<V>, _>(&blocks, half, store, out);
        } else {
            fit_symmetric::<V, V, _>(&blocks, half, store, out);
        }
    }
}

/// # Safety
///
/// The CPU has V's ISA, and there are no more blocks than W has lanes.
#[inline(always)]
unsafe fn fit_symmetric<V: Vector, W: Vector, B>(
    blocks: &Blocks<'_>,
    half: i32,
    store: fn(f32, &[u8; QK]) -> B,
    out: &mut [B],
) {
    let (xt, wt) = blocks.in_lanes::<W>();
    let fits = fit_signed::<W>(xt.as_ptr(), wt.as_ptr(), GROUP, half);
    for (l, (out, x)) in out.iter_mut().zip(blocks.x).enumerate() {
        let quants = round::<V>(x, fits.inverse[l], 0.0, (-half, half - 1), fits.offset[l]);
        *out = store(fits.scale[l], &quants);
    }
}

/// The vector version of [`crate::fit::legacy::quantize_affine`] with importance.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_affine<V: Vector, B>(
    x: &[f32],
    importance: &[f32],
    mean_square: f32,
    levels: i8,
    out: &mut [B],
    store: fn(f32, f32, &[u8; QK]) -> B,
) {
    let (x, importance) = (x.as_chunks().0, importance.as_chunks().0);
    for (range, is_twice) in ranges::<V>(x.len(), 1) {
        let blocks = Blocks::of(range.clone(), x, importance, mean_square);
        let (levels, out) = (i32::from(levels), &mut out[range]);
        if is_twice {
            fit_affine_blocks::<V, Twice<V>, _>(&blocks, levels, store, out);
        } else {
            fit_affine_blocks::<V, V, _>(&blocks, levels, store, out);
        }
    }
}

/// # Safety
///
/// The CPU has V's ISA, and there are no more blocks than W has lanes.
#[inline(always)]
unsafe fn fit_affine_blocks<V: Vector, W: Vector, B>(
    blocks: &Blocks<'_>,
    levels: i32,
    store: fn(f32, f32, &[u8; QK]) -> B,
    out: &mut [B],
) {
    let (xt, wt) = blocks.in_lanes::<W>();
    let fits = fit_affine::<W, GROUP>(xt.as_ptr(), wt.as_ptr(), levels, Search::FINE);
    let Some(fits) = fits else {
        for (l, (out, x)) in out.iter_mut().zip(blocks.x).enumerate() {
            // `in_lanes` has written every element of every lane.
            let weight = |i| *wt.as_ptr().add(i * W::LANES + l);
            let w = std::array::from_fn::<f32, QK, _>(weight);
            let mut quants = [0u8; QK];
            let fit = fit::fit_affine(x, &w, levels, Search::FINE, &mut quants);
            *out = store(fit.scale, -fit.min, &quants);
        }
        return;
    };
    for (l, (out, x)) in out.iter_mut().zip(blocks.x).enumerate() {
        let quants = round::<V>(x, fits.grid_inverse[l], fits.grid_min[l], (0, levels), 0.0);
        *out = store(fits.scale[l], -fits.min[l], &quants);
    }
}
