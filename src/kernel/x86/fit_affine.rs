//! [`crate::fit::fit_affine`] for a vector of groups at once, one group a lane.
//!
//! A group's sums are added up in their order because a group never leaves its lane, so the result
//! is the scalar one bit for bit, and all lanes do useful work. The numbers themselves are not
//! returned, but the grid that they were rounded on is.

use super::vector::{MOST_LANES, Vector};
use crate::fit::Search;

/// Weights in a group.
pub(crate) const GROUP: usize = 32;

/// Lane by lane what [`crate::fit::Affine`] holds, and the sum of the weights.
pub(crate) struct Fits<V> {
    pub scale: V,
    pub min: V,
    pub sum_w: V,
    /// The numbers are `round((x - grid_min) · grid_inverse)`, clamped; all 0 where it is 0.
    pub grid_inverse: V,
    pub grid_min: V,
}

/// Element `i` of the group in lane `l` is `x[i * V::LANES + l]`, its weight likewise in `w`.
///
/// `None` where a lane's intermediate values leave the range in which rounding by adding 1.5·2²³
/// is exact; such groups (extreme or broken) are for the scalar version.
///
/// # Safety
///
/// The CPU has V's ISA; `x` and `w` hold 32 · LANES elements.
#[inline(always)]
pub(crate) unsafe fn fit_affine<V: Vector>(
    x: *const f32,
    w: *const f32,
    levels: i32,
    search: Search,
) -> Option<Fits<V>> {
    // SAFETY: the caller's promises are the trait's contract.
    unsafe {
        let zero = V::splat(0.0);
        let top = V::splat(levels as f32);
        let element = |i: usize| (V::load(x.add(i * V::LANES)), V::load(w.add(i * V::LANES)));

        let (first, first_w) = element(0);
        let (mut low, mut max) = (first, first);
        let mut sum_w = first_w;
        let mut sum_x = first_w.mul(first);
        for i in 1..GROUP {
            let (v, w) = element(i);
            low = v.min(low);
            max = v.max(max);
            sum_w = sum_w.add(w);
            sum_x = sum_x.add(w.mul(v));
        }
        let mut min = zero.min(low);
        let flat = max.le(min);

        // Clamping before rounding is the same as after it where the sum with 1.5·2²³ is exact.
        // Rounding is monotonous, so the extremes tell whether every value stays in that range.
        let limit = V::splat(4_000_000.0);
        let in_range = |inverse: V, min: V| {
            let ends = (inverse.mul(low.sub(min)).abs(), inverse.mul(max.sub(min)).abs());
            V::all(V::or(flat, V::and(ends.0.lt(limit), ends.1.lt(limit))))
        };
        let round = |inverse: V, v: V, min: V| inverse.mul(v.sub(min)).nearest_in(0, levels);

        let inverse = top.div(max.sub(min));
        if !in_range(inverse, min) {
            return None;
        }
        let (mut grid_inverse, mut grid_min) = (inverse, min);
        let mut scale = V::splat(1.0).div(inverse);
        let mut best = zero;
        for i in 0..GROUP {
            let (v, w) = element(i);
            let difference = scale.mul(round(inverse, v, min)).add(min).sub(v);
            best = best.add(w.mul(difference.mul(difference)));
        }

        let mut numbers = [0f32; GROUP * MOST_LANES];
        let numbers = numbers.as_mut_ptr();
        for step in 0..=search.steps {
            let numerator = search.first + search.step * step as f32 + levels as f32;
            let inverse = V::splat(numerator).div(max.sub(min));
            if !search.clamp_first && !in_range(inverse, min) {
                return None;
            }
            let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
            for i in 0..GROUP {
                let (v, w) = element(i);
                let l = round(inverse, v, min);
                l.store(numbers.add(i * V::LANES));
                let wl = w.mul(l);
                sum_l = sum_l.add(wl);
                sum_l2 = sum_l2.add(wl.mul(l));
                sum_xl = sum_xl.add(wl.mul(v));
            }
            let determinant = sum_w.mul(sum_l2).sub(sum_l.mul(sum_l));
            let this_scale = sum_w.mul(sum_xl).sub(sum_x.mul(sum_l)).div(determinant);
            let this_min = sum_l2.mul(sum_x).sub(sum_l.mul(sum_xl)).div(determinant);
            let positive = zero.lt(this_min);
            let this_min = V::select(positive, zero, this_min);
            let this_scale = V::select(positive, sum_xl.div(sum_l2), this_scale);
            let mut error = zero;
            for i in 0..GROUP {
                let (v, w) = element(i);
                let l = V::load(numbers.add(i * V::LANES));
                let difference = this_scale.mul(l).add(this_min).sub(v);
                error = error.add(w.mul(difference.mul(difference)));
            }
            let better = V::and(zero.lt(determinant), error.lt(best));
            best = V::select(better, error, best);
            scale = V::select(better, this_scale, scale);
            grid_inverse = V::select(better, inverse, grid_inverse);
            grid_min = V::select(better, min, grid_min);
            min = V::select(better, this_min, min);
        }
        Some(Fits {
            scale: V::select(flat, zero, scale),
            min: V::splat(-0.0).sub(min), // the exact negative, zero's too
            sum_w,
            grid_inverse: V::select(flat, zero, grid_inverse),
            grid_min,
        })
    }
}
