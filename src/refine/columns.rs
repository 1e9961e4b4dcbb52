//! A group of blocks turned into lanes, a sub-block each, and what is weighed there.

use crate::block::QK_K;
use crate::fit::nearest_iq4_value;
use crate::simd::{MOST_LANES, Vector};

/// Room for 32 quants in each of the most lanes; of `length` quants those at `i * LANES + lane`.
#[repr(C, align(64))]
struct LaneRows([f32; 32 * MOST_LANES]);

/// The weights of the sub-blocks of a group of blocks, and what their errors are multiplied by.
pub(super) struct Columns {
    x: LaneRows,
    weights: LaneRows,
    /// Weights in a sub-block.
    length: usize,
}

/// What the quants q on a grid add up to in each lane.
#[derive(Clone, Copy)]
pub(super) struct GridSums<L> {
    /// `Σ w q`
    pub l: L,
    /// `Σ w q²`
    pub l2: L,
    /// `Σ w x q`
    pub xl: L,
}

/// The quants q that a type has. A lane's grid are the values `scale · q - min`.
pub(super) trait Grid: Copy {
    /// The quant nearest to a position between them.
    ///
    /// # Safety
    ///
    /// The CPU has L's ISA.
    unsafe fn nearest<L: Vector>(self, position: L) -> L;
}

/// The whole numbers in `bottom..=top`.
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

    /// Takes in as many blocks as the lanes hold, of `weights` none is negative.
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

    /// Writes to `rest` what lies in `low..=high`; the others weigh nothing there and lie at its ends.
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

    /// Weight `i` of each sub-block, and what its error is multiplied by.
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

    /// Least and greatest weight.
    #[inline(always)]
    pub unsafe fn ends<L: Vector>(&self) -> (L, L) {
        let (mut low, mut high) = (self.at::<L>(0).0, self.at::<L>(0).0);
        for i in 1..self.length {
            let (x, _) = self.at::<L>(i);
            (low, high) = (x.min(low), x.max(high));
        }
        (low, high)
    }

    /// Rounds to the grid.
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

    /// Rounds to the grid; the first of the sums alone.
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

    /// As [`Self::error`], and the `N` greatest of its terms, in their order.
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

    /// Rounds to the grid: the error that remains, `Σ w (scale · q - min - x)²`.
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

/// What a weight is multiplied by, and what is then added, for its position on the grid; 0 where the
/// grid has no scale.
#[inline(always)]
unsafe fn inverse_and_offset<L: Vector>(scale: L, min: L) -> (L, L) {
    let zero = L::splat(0.0);
    let inverse = L::splat(1.0).div(scale);
    let inverse = scale.if_less(zero, inverse, zero.if_less(scale, inverse, zero));
    (inverse, min.mul(inverse))
}
