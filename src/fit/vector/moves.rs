//! [`crate::fit::search::fit_positive`] and [`crate::fit::search::fit_signed_by_moves`] for a vector of groups of
//! sixteen at once, one group a lane.

use crate::fit::search::TINY;
use crate::simd::{InLanes, Vector};

/// Elements of a group.
pub(crate) const GROUP: usize = 16;

/// The smallest result of [`crate::float::nearest_int`].
const LEAST: i32 = -0x0040_0000;

/// The sums of the scalar fits, in each lane: `Σ w x l` and `Σ w l²`.
#[derive(Clone, Copy)]
struct LaneSums<V> {
    xl: V,
    l2: V,
}

impl<V: Vector> LaneSums<V> {
    /// # Safety
    ///
    /// The CPU has V's ISA.
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self { xl: V::splat(0.0), l2: V::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn with(self, w: V, wx: V, l: V) -> Self {
        Self { xl: self.xl.add(wx.mul(l)), l2: self.l2.add(w.mul(l).mul(l)) }
    }

    #[inline(always)]
    unsafe fn without(self, w: V, wx: V, l: V) -> Self {
        Self { xl: self.xl.sub(wx.mul(l)), l2: self.l2.sub(w.mul(l).mul(l)) }
    }

    /// The best scale; 0 if all quants are 0.
    #[inline(always)]
    unsafe fn scale(self) -> V {
        let zero = V::splat(0.0);
        V::select(zero.lt(self.l2), self.xl.div(self.l2), zero)
    }
}

/// Groups: element `i` of the group in lane `l` is `x[i * V::LANES + l]`. Weights and quants have the same order.
#[derive(Clone, Copy)]
struct Groups {
    x: *const f32,
    w: *const f32,
    quants: *mut f32,
}

impl Groups {
    /// Changes quants, clamped to `low..=high`, as the scalar fits do. If `positive`, it does what
    /// [`crate::fit::search::fit_positive`] does, and returns `None` if a quant would become negative.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA; the pointers lead to GROUP · LANES elements.
    #[inline(always)]
    unsafe fn move_quants<V: Vector>(
        self,
        (low, high): (i32, i32),
        positive: bool,
        mut sums: LaneSums<V>,
    ) -> Option<LaneSums<V>> {
        let zero = V::splat(0.0);
        for _ in 0..5 {
            let mut changed = false;
            for i in (0..GROUP * V::LANES).step_by(V::LANES) {
                let (v, w) = (V::load(self.x.add(i)), V::load(self.w.add(i)));
                let (wx, l) = (w.mul(v), V::load(self.quants.add(i)));
                let other = sums.without(w, wx, l);
                let mut moves = zero.lt(other.xl);
                if positive {
                    moves = V::and(moves, zero.lt(other.l2));
                }
                let rounded = v.mul(other.l2).div(other.xl).nearest_int_clamped(low, high);
                if positive && V::any(V::and(moves, rounded.lt(zero))) {
                    return None;
                }
                moves = V::and(moves, V::or(rounded.lt(l), l.lt(rounded)));
                let this = other.with(w, wx, rounded);
                let gain = this.xl.mul(this.xl).mul(sums.l2);
                let better = sums.xl.mul(sums.xl).mul(this.l2).lt(gain);
                moves = V::and(moves, V::and(zero.lt(this.l2), better));
                if V::any(moves) {
                    changed = true;
                    V::select(moves, rounded, l).store(self.quants.add(i));
                    sums.xl = V::select(moves, this.xl, sums.xl);
                    sums.l2 = V::select(moves, this.l2, sums.l2);
                }
            }
            if !changed {
                break;
            }
        }
        Some(sums)
    }
}

/// The scales of groups, with x² as weights. The quants are not returned.
///
/// # Safety
///
/// The CPU has V's ISA; `x` holds GROUP · LANES elements.
#[inline(always)]
pub(crate) unsafe fn fit_signed_by_moves<V: Vector>(x: *const f32, half: i32) -> V {
    // the arrays have room for MOST_LANES lanes.
    let (mut magnitude, mut extreme) = (V::splat(0.0), V::splat(0.0));
    let (mut weights, mut quants) = (InLanes::<GROUP>::new(), InLanes::<GROUP>::new());
    for i in (0..GROUP * V::LANES).step_by(V::LANES) {
        let v = V::load(x.add(i));
        let larger = magnitude.lt(v.abs());
        magnitude = V::select(larger, v.abs(), magnitude);
        extreme = V::select(larger, v, extreme);
        v.mul(v).store(weights.as_mut_ptr().add(i));
    }
    let inverse = V::splat(-(half as f32)).div(extreme);
    let groups = Groups { x, w: weights.as_ptr(), quants: quants.as_mut_ptr() };
    let clamp = (-half, half - 1);
    let mut sums = LaneSums::<V>::zero();
    for i in (0..GROUP * V::LANES).step_by(V::LANES) {
        let (v, w) = (V::load(x.add(i)), V::load(groups.w.add(i)));
        let rounded = inverse.mul(v).nearest_int_clamped(clamp.0, clamp.1);
        rounded.store(groups.quants.add(i));
        sums = sums.with(w, w.mul(v), rounded);
    }
    let sums = groups.move_quants(clamp, false, sums).unwrap_or(sums);
    V::select(magnitude.lt(V::splat(TINY)), V::splat(0.0), sums.scale())
}

/// The scales of groups with weights `w`; writes their quants. `None` if an element or a quant is negative, or is not
/// a usable number; then the scalar version must be used.
///
/// # Safety
///
/// The CPU has V's ISA; the pointers lead to GROUP · LANES elements.
#[inline(always)]
pub(crate) unsafe fn fit_positive<V: Vector>(
    x: *const f32,
    w: *const f32,
    levels: i32,
    quants: *mut f32,
) -> Option<V> {
    let (zero, most) = (V::splat(0.0), V::splat(f32::MAX));
    let mut max = zero;
    let mut regular = zero.le(zero);
    for i in (0..GROUP * V::LANES).step_by(V::LANES) {
        let v = V::load(x.add(i));
        max = max.max(v);
        regular = V::and(regular, V::and(zero.le(v), v.le(most)));
    }
    if !V::all(regular) {
        return None;
    }
    let tiny = max.lt(V::splat(TINY));
    let groups = Groups { x, w, quants };
    let mut chosen = V::splat(levels as f32).div(max);
    let mut best = groups.error(chosen, levels);
    for step in (-4..=4).filter(|&step| step != 0) {
        let inverse = V::splat(0.1 * step as f32 + levels as f32).div(max);
        let this = groups.error(inverse, levels);
        let better = this.lt(best);
        best = V::select(better, this, best);
        chosen = V::select(better, inverse, chosen);
    }
    let mut sums = LaneSums::zero();
    for i in (0..GROUP * V::LANES).step_by(V::LANES) {
        let (v, w) = (V::load(x.add(i)), V::load(w.add(i)));
        // the quants of tiny groups are 0, and stay 0
        let rounded = V::select(tiny, zero, chosen.mul(v).nearest_in(0, levels));
        rounded.store(quants.add(i));
        sums = sums.with(w, w.mul(v), rounded);
    }
    let moved = groups.move_quants((LEAST, levels), true, sums)?;
    Some(moved.scale())
}

impl Groups {
    /// `Σ w (x - l / inverse)²` for the quants l of the grid with this inverse scale.
    ///
    /// # Safety
    ///
    /// As [`Self::move_quants`].
    #[inline(always)]
    unsafe fn error<V: Vector>(self, inverse: V, levels: i32) -> V {
        let (mut sum, scale) = (V::splat(0.0), V::splat(1.0).div(inverse));
        for i in (0..GROUP * V::LANES).step_by(V::LANES) {
            let (v, w) = (V::load(self.x.add(i)), V::load(self.w.add(i)));
            let rounded = inverse.mul(v).nearest_in(0, levels);
            let difference = v.sub(scale.mul(rounded));
            sum = sum.add(w.mul(difference).mul(difference));
        }
        sum
    }
}
