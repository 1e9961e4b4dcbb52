//! The fit of Q4_K and Q5_K for several blocks at a time, one sub-block per lane.
//!
//! [`crate::fit::k::KParameters`] is the scalar version, and the oracle: both have the same operations in the same
//! order, and give the same quants.

use super::affine::fit_affine;
use super::ranges::ranges;
use super::weights::{means_of_squares, weigh_blocks};
use crate::block::k_scales::SUB_BLOCKS;
use crate::block::{KFit, QK_K};
use crate::fit::k::KParameters;
use crate::fit::search::Search;
use crate::float::f16_to_f32;
use crate::simd::{InLanes, MOST_LANES as MOST, Twice, Vector};

/// Weights in a sub-block.
pub(crate) const GROUP: usize = QK_K / SUB_BLOCKS;

/// The largest number of blocks that are fitted together.
pub(crate) const MOST_BLOCKS: usize = MOST / SUB_BLOCKS;

/// Fits blocks `x`.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn fit_blocks<V: Vector>(
    parameters: &KParameters,
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    fits: &mut [KFit],
) {
    let mut columns = Columns::new();
    for (range, is_twice) in ranges::<V>(x.len(), SUB_BLOCKS) {
        let importance = importance.map(|w| &w[range.clone()]);
        let (x, fits) = (&x[range.clone()], &mut fits[range]);
        if is_twice {
            columns.fit::<Twice<V>>(parameters, x, importance, fits);
        } else {
            columns.fit::<V>(parameters, x, importance, fits);
        }
    }
}

/// Blocks in a vector, one sub-block per lane.
pub(crate) struct Columns {
    pub x: InLanes<GROUP>,
    /// 1 if no importance is given.
    pub importance: InLanes<GROUP>,
    /// The weights of squared errors in the fit.
    weights: InLanes<GROUP>,
}

impl Columns {
    #[inline(always)]
    pub fn new() -> Self {
        Self { x: InLanes::new(), importance: InLanes::new(), weights: InLanes::new() }
    }

    /// Sets the blocks and fits them. If they are too extreme for the vector version, the scalar version does it.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA.
    #[inline(always)]
    pub unsafe fn fit<V: Vector>(
        &mut self,
        parameters: &KParameters,
        x: &[[f32; QK_K]],
        importance: Option<&[[f32; QK_K]]>,
        fits: &mut [KFit],
    ) {
        // a vector is always full: copies of the last block fill the rest
        let mut copies = [[[0f32; QK_K]; MOST_BLOCKS]; 2];
        let [x_copy, importance_copy] = &mut copies;
        let blocks = V::LANES / SUB_BLOCKS;
        let x = filled(x, &mut x_copy[..blocks]);
        let importance = importance.map(|w| filled(w, &mut importance_copy[..blocks]));
        // there are as many blocks as the vector holds.
        if self.fit_filled::<V>(parameters, x, importance, fits) {
            return;
        }
        for (l, fit) in fits.iter_mut().enumerate() {
            *fit = parameters.fit(&x[l], importance.map(|w| &w[l]));
        }
    }

    /// Fits as many blocks as `fits` has. Returns false if they are too extreme for the vector version.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA; `x` and `importance` have LANES / 8 blocks.
    #[inline(always)]
    unsafe fn fit_filled<V: Vector>(
        &mut self,
        parameters: &KParameters,
        x: &[[f32; QK_K]],
        importance: Option<&[[f32; QK_K]]>,
        fits: &mut [KFit],
    ) -> bool {
        let Self { x: xt, importance: it, weights: wt } = self;
        // every pointer stays in its array: a lane l < LANES, i < 32.
        V::transpose(x.as_ptr().cast(), GROUP, xt.as_mut_ptr());
        match importance {
            None => {
                for i in 0..GROUP {
                    V::splat(1.0).store(it.as_mut_ptr().add(i * V::LANES));
                }
                plain_weights::<V>(xt, wt);
            }
            Some(importance) => {
                V::transpose(importance.as_ptr().cast(), GROUP, it.as_mut_ptr());
                let means = means_of_squares::<MOST_BLOCKS>(x, 2.0);
                let (x, it, wt) = (xt.as_ptr(), it.as_ptr(), wt.as_mut_ptr());
                weigh_blocks::<V, GROUP, SUB_BLOCKS>(&means, x, it, wt);
            }
        }
        let search = importance.map_or(parameters.search, |_| Search::FINE);
        // the arrays hold 32 · LANES elements
        let sub = fit_affine::<V, GROUP>(xt.as_ptr(), wt.as_ptr(), parameters.levels, search);
        let Some(sub) = sub else { return false };
        let (scales, mins) = (sub.scale.as_chunks().0, sub.min.as_chunks().0);
        for (l, fit) in fits.iter_mut().enumerate() {
            let sums = &sub.sum_w.as_chunks().0[l];
            parameters.store_scales(&scales[l], &mins[l], importance.map(|_| sums), fit);
            let grid = (&sub.grid_inverse.as_chunks().0[l], &sub.grid_min.as_chunks().0[l]);
            let (d, dmin) = (f16_to_f32(fit.d), f16_to_f32(fit.dmin));
            let mut stored = [(0.0, 0.0); SUB_BLOCKS];
            for (j, stored) in stored.iter_mut().enumerate() {
                *stored = fit.scale_and_min(d, dmin, j);
            }
            round_quants::<V, _>(parameters.levels, &x[l], &stored, grid, &mut fit.quants);
        }
        true
    }
}

/// `blocks`; if they are too few, a copy that repeats the last one.
#[inline(always)]
fn filled<'a>(blocks: &'a [[f32; QK_K]], copy: &'a mut [[f32; QK_K]]) -> &'a [[f32; QK_K]] {
    if blocks.len() == copy.len() {
        return blocks;
    }
    for (l, block) in copy.iter_mut().enumerate() {
        *block = blocks[l.min(blocks.len() - 1)];
    }
    copy
}

/// Root mean square of the sub-block + |x|.
#[inline(always)]
unsafe fn plain_weights<V: Vector>(xt: &InLanes<GROUP>, wt: &mut InLanes<GROUP>) {
    // i * LANES stays in the arrays.
    let mut sum = V::splat(0.0);
    for i in 0..GROUP {
        let v = V::load(xt.as_ptr().add(i * V::LANES));
        sum = sum.add(v.mul(v));
    }
    let root_mean_square = sum.div(V::splat(GROUP as f32)).sqrt();
    for i in 0..GROUP {
        let v = V::load(xt.as_ptr().add(i * V::LANES));
        root_mean_square.add(v.abs()).store(wt.as_mut_ptr().add(i * V::LANES));
    }
}

/// The quants, each 0 to `levels`, for the stored scales and minima. If a stored scale is 0, the quants are those of
/// the sub-block's fit, which has these inverse scales and minima.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(super) unsafe fn round_quants<V: Vector, const N: usize>(
    levels: i32,
    x: &[f32; QK_K],
    stored: &[(f32, f32); N],
    (inverses, mins): (&[f32; N], &[f32; N]),
    quants: &mut [u8; QK_K],
) {
    let group = QK_K / N;
    for (j, (&inverse, &grid_min)) in inverses.iter().zip(mins).enumerate() {
        let (scale, min) = stored[j];
        for i in (j * group..(j + 1) * group).step_by(V::LANES) {
            // LANES divides 16.
            let v = V::load(x.as_ptr().add(i));
            let q = if scale == 0.0 {
                let position = V::splat(inverse).mul(v.sub(V::splat(grid_min)));
                position.nearest_in(0, levels)
            } else {
                v.add(V::splat(min)).nearest_quotient(scale, 0, levels)
            };
            q.store_bytes(i32::MAX, quants.as_mut_ptr().add(i));
        }
    }
}
