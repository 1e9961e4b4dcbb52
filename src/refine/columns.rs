//! A group of blocks in lanes, one sub-block per lane, and sums over the lanes' weights.

use crate::block::QK_K;
use crate::fit::nearest_iq4_value;
use crate::simd::{MOST_LANES, Vector};

/// Room for 32 values in each of [`MOST_LANES`] lanes. Value i of a lane is at `i * LANES + lane`.
#[repr(C, align(64))]
struct LaneRows([f32; 32 * MOST_LANES]);

/// The weights x of the sub-blocks of a group of blocks, and the weights w of their squared errors.
pub(super) struct Columns {
    x: LaneRows,
    weights: LaneRows,
    /// Weights in a sub-block.
    length: usize,
}

/// Sums over the quants q of a grid, for each lane.
#[derive(Clone, Copy)]
pub(super) struct GridSums<L> {
    /// `Σ w q`
    pub l: L,
    /// `Σ w q²`
    pub l2: L,
    /// `Σ w x q`
    pub xl: L,
}

/// The quants q of a type. The grid of a lane is the set of values `scale · q - min`.
pub(super) trait Grid: Copy {
    /// The quant nearest to a position.
    ///
    /// # Safety
    ///
    /// The CPU has L's ISA.
    unsafe fn nearest<L: Vector>(self, position: L) -> L;
}

/// The integers in `bottom..=top`.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub bottom: f32,
    pub top: f32,
}

impl Grid for Bounds {
    #[inline(always)]
    unsafe fn nearest<L: Vector>(self, position: L) -> L {
        position.max(L::splat(self.bottom)).min(L::splat(self.top)).nearest()
    }
}

/// The sixteen values of IQ4.
#[derive(Clone, Copy)]
pub(super) struct Iq4Values;

impl Grid for Iq4Values {
    #[inline(always)]
    unsafe fn nearest<L: Vector>(self, position: L) -> L {
        nearest_iq4_value(position)
    }
}

impl Columns {
    #[inline(always)]
    pub fn new(length: usize) -> Self {
        let zeros = || LaneRows([0.0; 32 * MOST_LANES]);
        Self { x: zeros(), weights: zeros(), length }
    }

    /// Sets the blocks, as many as the lanes hold. No weight in `weights` is negative.
    ///
    /// # Safety
    ///
    /// The CPU has L's ISA. There are [`Vector::LANES`] sub-blocks.
    #[inline(always)]
    pub unsafe fn fill<L: Vector>(&mut self, x: &[[f32; QK_K]], weights: &[[f32; QK_K]]) {
        debug_assert!(x.len() * QK_K == L::LANES * self.length && x.len() == weights.len());
        L::transpose(x.as_ptr().cast(), self.length, self.x.0.as_mut_ptr());
        L::transpose(weights.as_ptr().cast(), self.length, self.weights.0.as_mut_ptr());
    }

    /// Writes the sub-blocks to `rest`, restricted to `low..=high`. Weights outside are moved to the ends of the range,
    /// and their errors count as 0.
    #[inline(always)]
    pub unsafe fn narrow<L: Vector>(&self, low: L, high: L, rest: &mut Self) {
        let zero = L::splat(0.0);
        for i in 0..self.length {
            let (x, w) = self.at::<L>(i);
            let w = high.if_less(x, zero, x.if_less(low, zero, w));
            w.store(rest.weights.0.as_mut_ptr().add(i * L::LANES));
            x.max(low).min(high).store(rest.x.0.as_mut_ptr().add(i * L::LANES));
        }
    }

    /// Weight x number `i` of each sub-block, and the weight w of its squared error.
    #[inline(always)]
    pub unsafe fn at<L: Vector>(&self, i: usize) -> (L, L) {
        debug_assert!(i < self.length);
        // i < 32.
        let at = i * L::LANES;
        (L::load(self.x.0.as_ptr().add(at)), L::load(self.weights.0.as_ptr().add(at)))
    }

    /// `Σ w` and `Σ w x`.
    #[inline(always)]
    pub unsafe fn totals<L: Vector>(&self) -> (L, L) {
        let (mut sum_w, mut sum_x) = (L::splat(0.0), L::splat(0.0));
        for i in 0..self.length {
            let (x, w) = self.at::<L>(i);
            sum_w = sum_w.add(w);
            sum_x = w.mul_add(x, sum_x);
        }
        (sum_w, sum_x)
    }

    /// The smallest and the largest x.
    #[inline(always)]
    pub unsafe fn ends<L: Vector>(&self) -> (L, L) {
        let (mut low, mut high) = (self.at::<L>(0).0, self.at::<L>(0).0);
        for i in 1..self.length {
            let (x, _) = self.at::<L>(i);
            (low, high) = (x.min(low), x.max(high));
        }
        (low, high)
    }

    /// Rounds to the grid, and returns the sums over the quants.
    #[inline(always)]
    pub unsafe fn sums<L: Vector>(&self, scale: L, min: L, grid: impl Grid) -> GridSums<L> {
        let zero = L::splat(0.0);
        let (inverse, offset) = inverse_and_offset(scale, min);
        let mut sums = GridSums { l: zero, l2: zero, xl: zero };
        for i in 0..self.length {
            let (x, w) = self.at::<L>(i);
            let q = grid.nearest(x.mul_add(inverse, offset));
            let wq = w.mul(q);
            sums.l = sums.l.add(wq);
            sums.l2 = wq.mul_add(q, sums.l2);
            sums.xl = wq.mul_add(x, sums.xl);
        }
        sums
    }

    /// Rounds to the grid, and returns `Σ w q`.
    #[inline(always)]
    pub unsafe fn sum_l<L: Vector>(&self, scale: L, min: L, grid: impl Grid) -> L {
        let (inverse, offset) = inverse_and_offset(scale, min);
        let mut sum = L::splat(0.0);
        for i in 0..self.length {
            let (x, w) = self.at::<L>(i);
            let q = grid.nearest(x.mul_add(inverse, offset));
            sum = w.mul_add(q, sum);
        }
        sum
    }

    /// As [`Self::error`], and its `N` largest terms, largest first.
    #[inline(always)]
    pub unsafe fn worst<L: Vector, const N: usize>(
        &self,
        scale: L,
        min: L,
        grid: impl Grid,
    ) -> (L, [L; N]) {
        let (inverse, offset) = inverse_and_offset(scale, min);
        let against = L::splat(0.0).sub(scale);
        let mut error = L::splat(0.0);
        let mut worst = [L::splat(0.0); N];
        for i in 0..self.length {
            let (x, w) = self.at::<L>(i);
            let q = grid.nearest(x.mul_add(inverse, offset));
            let miss = q.mul_add(against, min.add(x));
            let mut term = w.mul(miss).mul(miss);
            error = error.add(term);
            for worst in &mut worst {
                (*worst, term) = (worst.max(term), worst.min(term));
            }
        }
        (error, worst)
    }

    /// Rounds to the grid, and returns the error `Σ w (scale · q - min - x)²`.
    #[inline(always)]
    pub unsafe fn error<L: Vector>(&self, scale: L, min: L, grid: impl Grid) -> L {
        let (inverse, offset) = inverse_and_offset(scale, min);
        let against = L::splat(0.0).sub(scale);
        let mut error = L::splat(0.0);
        for i in 0..self.length {
            let (x, w) = self.at::<L>(i);
            let q = grid.nearest(x.mul_add(inverse, offset));
            let miss = q.mul_add(against, min.add(x));
            error = w.mul(miss).mul_add(miss, error);
        }
        error
    }
}

/// The position of x on the grid is `x · inverse + offset`. Both are 0 if the scale is 0.
#[inline(always)]
unsafe fn inverse_and_offset<L: Vector>(scale: L, min: L) -> (L, L) {
    let zero = L::splat(0.0);
    let inverse = L::splat(1.0).div(scale);
    let inverse = scale.if_less(zero, inverse, zero.if_less(scale, inverse, zero));
    (inverse, min.mul(inverse))
}
