//! [`crate::fit::search::fit_affine`] for a vector of groups at once, one group per lane.
//!
//! A group stays in its lane, so its sums are added up in the scalar order. The result is bit for bit the scalar one,
//! and all lanes do useful work. The quants are not returned, but the grid that they were rounded to is.

use crate::fit::search::Search;
use crate::simd::{InLanes, Kernel, LaneArray, Vector};

/// For each lane, the values of [`crate::fit::search::Affine`], and the sum of the weights.
pub(crate) struct Fits {
    pub scale: LaneArray,
    pub min: LaneArray,
    pub sum_w: LaneArray,
    /// The quants are `round((x - grid_min) · grid_inverse)`, clamped. All are 0 if `grid_inverse` is 0.
    pub grid_inverse: LaneArray,
    pub grid_min: LaneArray,
}

/// Element `i` of the group in lane `l` is `x[i * V::LANES + l]`, its weight likewise in `w`.
///
/// Returns `None` if intermediate values of a lane leave the range in which rounding by adding 1.5·2²³ is exact. Then
/// the scalar version must be used. Only extreme values, infinity and NaN lead to this.
///
/// # Safety
///
/// The CPU has V's ISA; `x` and `w` hold GROUP · LANES elements.
#[inline(always)]
pub(crate) unsafe fn fit_affine<V: Vector, const GROUP: usize>(
    x: *const f32,
    w: *const f32,
    levels: i32,
    search: Search,
) -> Option<Fits> {
    V::call(FitAffine::<GROUP> { x, w, levels, search })
}

struct FitAffine<const GROUP: usize> {
    x: *const f32,
    w: *const f32,
    levels: i32,
    search: Search,
}

impl<const GROUP: usize> Kernel for FitAffine<GROUP> {
    type Output = Option<Fits>;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Option<Fits> {
        fit::<V, GROUP>(self)
    }
}

#[inline(always)]
unsafe fn fit<V: Vector, const GROUP: usize>(of: FitAffine<GROUP>) -> Option<Fits> {
    let FitAffine { x, w, levels, search } = of;
    let zero = V::splat(0.0);
    let (mut low, mut max) = (V::load(x), V::load(x));
    let mut sum_w = V::load(w);
    let mut sum_x = sum_w.mul(low);
    for i in 1..GROUP {
        let v = V::load(x.add(i * V::LANES));
        let w = V::load(w.add(i * V::LANES));
        low = v.min(low);
        max = v.max(max);
        sum_w = sum_w.add(w);
        sum_x = sum_x.add(w.mul(v));
    }
    let mut min = zero.min(low);
    let flat = max.le(min);

    let mut quants = InLanes::<GROUP>::new();
    let absolute = search.absolute;
    let mut groups = Groups::<GROUP> { x, w, quants: quants.as_mut_ptr(), levels, absolute };
    let mut inverse = V::splat(levels as f32).div(max.sub(min));
    let ends = Ends::of(inverse, min, low, max);
    if !ends.in_range(flat) {
        return None;
    }
    let (mut grid_inverse, mut grid_min) = (inverse, min);
    let mut scale = V::splat(1.0).div(inverse);
    groups.sums(inverse, min, ends.outside(levels));
    let mut best = groups.error(scale, min);

    inverse = numerator::<V>(search, levels, 0).div(max.sub(min));
    for step in 0..=search.steps {
        let ends = Ends::of(inverse, min, low, max);
        if !search.clamp_first && !ends.in_range(flat) {
            return None;
        }
        let (sum_l, sum_l2, sum_xl) = groups.sums(inverse, min, ends.outside(levels));
        let determinant = sum_w.mul(sum_l2).sub(sum_l.mul(sum_l));
        let mut this_scale = sum_w.mul(sum_xl).sub(sum_x.mul(sum_l)).div(determinant);
        let mut this_min = sum_l2.mul(sum_x).sub(sum_l.mul(sum_xl)).div(determinant);
        if !V::all(this_min.le(zero)) {
            let positive = zero.lt(this_min);
            this_min = V::select(positive, zero, this_min);
            this_scale = V::select(positive, sum_xl.div(sum_l2), this_scale);
        }
        // the inverses for both possible ranges of the next step, divided while the error is added up
        let next = numerator::<V>(search, levels, step + 1);
        let next = (next.div(max.sub(this_min)), next.div(max.sub(min)));
        let error = groups.error(this_scale, this_min);
        let better = V::and(zero.lt(determinant), error.lt(best));
        best = V::select(better, error, best);
        scale = V::select(better, this_scale, scale);
        grid_inverse = V::select(better, inverse, grid_inverse);
        grid_min = V::select(better, min, grid_min);
        min = V::select(better, this_min, min);
        inverse = V::select(better, next.0, next.1);
    }
    Some(Fits {
        scale: V::select(flat, zero, scale).to_array(),
        min: V::splat(-0.0).sub(min).to_array(), // the exact negative, zero's too
        sum_w: sum_w.to_array(),
        grid_inverse: V::select(flat, zero, grid_inverse).to_array(),
        grid_min: grid_min.to_array(),
    })
}

/// A candidate's inverse scale is this value divided by the range of the group.
#[inline(always)]
unsafe fn numerator<V: Vector>(search: Search, levels: i32, step: u32) -> V {
    V::splat(search.first + search.step * step as f32 + levels as f32)
}

/// The positions of a group's smallest and largest weight on a grid, in steps. Rounding is monotonic, so all
/// quants of the group are between the quants of these two.
struct Ends<V>(V, V);

impl<V: Vector> Ends<V> {
    /// # Safety
    ///
    /// The CPU has V's ISA.
    #[inline(always)]
    unsafe fn of(inverse: V, min: V, low: V, max: V) -> Self {
        Self(inverse.mul(low.sub(min)), inverse.mul(max.sub(min)))
    }

    /// Whether clamping before rounding gives the same result as after it: if the sum with 1.5·2²³ is exact.
    /// `flat` groups do not matter.
    #[inline(always)]
    unsafe fn in_range(&self, flat: V::Mask) -> bool {
        let limit = V::splat(4_000_000.0);
        V::all(V::or(flat, V::and(self.0.abs().lt(limit), self.1.abs().lt(limit))))
    }

    /// Whether a quant would be below 0 without clamping, and whether one would be above `levels`. NaN does not count,
    /// because only flat groups give it.
    #[inline(always)]
    unsafe fn outside(&self, levels: i32) -> (bool, bool) {
        let (below, above) = (V::splat(-0.5), V::splat(levels as f32 + 0.5));
        (
            V::any(V::or(self.0.lt(below), self.1.lt(below))),
            V::any(V::or(above.le(self.0), above.le(self.1))),
        )
    }
}

/// The groups that are fitted, and their quants on the last grid.
struct Groups<const GROUP: usize> {
    x: *const f32,
    w: *const f32,
    quants: *mut f32,
    levels: i32,
    /// See [`Search::absolute`].
    absolute: bool,
}

impl<const GROUP: usize> Groups<GROUP> {
    /// Rounds to quants l on a grid, clamped if they are `outside` of it, and adds up `Σ w l`,
    /// `Σ w l²` and `Σ w l x`.
    ///
    /// # Safety
    ///
    /// As [`fit_affine`].
    #[inline(always)]
    unsafe fn sums<V: Vector>(&mut self, inverse: V, min: V, outside: (bool, bool)) -> (V, V, V) {
        match outside {
            (false, false) => self.clamped_sums::<V, false, false>(inverse, min),
            (true, false) => self.clamped_sums::<V, true, false>(inverse, min),
            (false, true) => self.clamped_sums::<V, false, true>(inverse, min),
            (true, true) => self.clamped_sums::<V, true, true>(inverse, min),
        }
    }

    #[inline(always)]
    unsafe fn clamped_sums<V: Vector, const BELOW: bool, const ABOVE: bool>(
        &mut self,
        inverse: V,
        min: V,
    ) -> (V, V, V) {
        let (zero, top) = (V::splat(0.0), V::splat(self.levels as f32));
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..GROUP {
            let v = V::load(self.x.add(i * V::LANES));
            let w = V::load(self.w.add(i * V::LANES));
            let mut position = inverse.mul(v.sub(min));
            if BELOW {
                position = position.max(zero);
            }
            if ABOVE {
                position = position.min(top);
            }
            let l = position.nearest();
            l.store(self.quants.add(i * V::LANES));
            let wl = w.mul(l);
            sum_l = sum_l.add(wl);
            sum_l2 = sum_l2.add(wl.mul(l));
            sum_xl = sum_xl.add(wl.mul(v));
        }
        (sum_l, sum_l2, sum_xl)
    }

    /// `Σ w (scale · l + min - x)²`, or `Σ w |scale · l + min - x|`.
    #[inline(always)]
    unsafe fn error<V: Vector>(&self, scale: V, min: V) -> V {
        let mut error = V::splat(0.0);
        for i in 0..GROUP {
            let v = V::load(self.x.add(i * V::LANES));
            let w = V::load(self.w.add(i * V::LANES));
            let l = V::load(self.quants.add(i * V::LANES));
            let difference = scale.mul(l).add(min).sub(v);
            let distance =
                if self.absolute { difference.abs() } else { difference.mul(difference) };
            error = error.add(w.mul(distance));
        }
        error
    }
}
