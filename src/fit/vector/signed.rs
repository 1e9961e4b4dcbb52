//! [`crate::fit::search::fit_signed`] for a vector of groups at once, one group per lane.

use crate::simd::{InLanes, Kernel, LaneArray, Vector};

/// The largest number of elements in a group.
const MOST_ELEMENTS: usize = 32;

/// For each lane, the scale, and the inverse scale with which the quants are rounded.
pub(crate) struct Fits {
    pub scale: LaneArray,
    pub inverse: LaneArray,
    /// Added to the quants so that none is negative: `half`, but 0 for groups of zeros.
    pub offset: LaneArray,
}

/// Element `i` of the group in lane `l` is `x[i * V::LANES + l]`, its weight likewise in `w`; a
/// group has `group` elements, at most 32.
///
/// # Safety
///
/// The CPU has V's ISA; `x` and `w` hold `group` · LANES elements.
#[inline(always)]
pub(crate) unsafe fn fit_signed<V: Vector>(
    x: *const f32,
    w: *const f32,
    group: usize,
    half: i32,
) -> Fits {
    V::call(FitSigned { x, w, group, half })
}

struct FitSigned {
    x: *const f32,
    w: *const f32,
    group: usize,
    half: i32,
}

impl Kernel for FitSigned {
    type Output = Fits;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Fits {
        fit::<V>(self)
    }
}

#[inline(always)]
unsafe fn fit<V: Vector>(FitSigned { x, w, group, half }: FitSigned) -> Fits {
    let zero = V::splat(0.0);
    let (mut magnitude, mut extreme) = (zero, zero);
    let mut wx = InLanes::<MOST_ELEMENTS>::new();
    for i in (0..group * V::LANES).step_by(V::LANES) {
        let v = V::load(x.add(i));
        let larger = magnitude.lt(v.abs());
        magnitude = V::select(larger, v.abs(), magnitude);
        extreme = V::select(larger, v, extreme);
        V::load(w.add(i)).mul(v).store(wx.as_mut_ptr().add(i));
    }
    let tiny = magnitude.lt(V::splat(crate::fit::search::TINY));

    let group = Group { x, w, wx: wx.as_ptr(), length: group, half };
    let mut chosen = V::splat(-(half as f32)).div(extreme);
    let (sum_xl, sum_l2) = group.sums::<V, false, true>(chosen);
    let mut scale = V::select(sum_l2.le(zero), zero, sum_xl.div(sum_l2));
    let mut best = scale.mul(sum_xl);
    for step in (-9..=9).filter(|&step| step != 0) {
        let inverse = V::splat(-(half as f32 + 0.1 * step as f32)).div(extreme);
        // Except for rounding errors, no magnitude exceeds half + step / 10. So most candidates need at most one
        // clamp. Tiny groups do not matter.
        let (sum_xl, sum_l2) = match step {
            ..-5 => group.sums::<V, false, false>(inverse),
            -5..5 => group.sums::<V, false, true>(inverse),
            5.. => group.sums::<V, true, true>(inverse),
        };
        let gain = best.mul(sum_l2).lt(sum_xl.mul(sum_xl));
        let better = V::and(zero.lt(sum_l2), gain);
        let this_scale = sum_xl.div(sum_l2);
        chosen = V::select(better, inverse, chosen);
        scale = V::select(better, this_scale, scale);
        best = V::select(better, this_scale.mul(sum_xl), best);
    }
    Fits {
        scale: V::select(tiny, zero, scale).to_array(),
        inverse: V::select(tiny, zero, chosen).to_array(),
        offset: V::select(tiny, zero, V::splat(half as f32)).to_array(),
    }
}

/// The groups that are fitted; `wx` is weight times element.
struct Group {
    x: *const f32,
    w: *const f32,
    wx: *const f32,
    length: usize,
    half: i32,
}

impl Group {
    /// `Σ w x l` and `Σ w l²` for the quants l of the grid with this inverse scale. `BELOW` and `ABOVE` say whether
    /// quants are clamped at each end.
    ///
    /// # Safety
    ///
    /// As [`fit_signed`].
    #[inline(always)]
    unsafe fn sums<V: Vector, const BELOW: bool, const ABOVE: bool>(&self, inverse: V) -> (V, V) {
        // no value exceeds half + 1, so clamping before rounding gives the same result as after it
        let (low, high) = (V::splat(-self.half as f32), V::splat((self.half - 1) as f32));
        let (mut sum_xl, mut sum_l2) = (V::splat(0.0), V::splat(0.0));
        for i in (0..self.length * V::LANES).step_by(V::LANES) {
            let mut position = inverse.mul(V::load(self.x.add(i)));
            if BELOW {
                position = position.max(low);
            }
            if ABOVE {
                position = position.min(high);
            }
            let l = position.nearest();
            sum_xl = sum_xl.add(V::load(self.wx.add(i)).mul(l));
            sum_l2 = sum_l2.add(V::load(self.w.add(i)).mul(l).mul(l));
        }
        (sum_xl, sum_l2)
    }
}
