//! Q4_K and Q5_K: a scale and a minimum of six bits for each of eight sub-blocks, and the block scales d and dmin.

use super::block_scales::{Candidates, by_error, nearest_f16};
use super::columns::{Bounds, Columns, GridSums};
use super::group::{MOST_BLOCKS, Refined, keep_better};
use crate::block::k_scales::{MAX_SCALE, SUB_BLOCKS, pack};
use crate::block::{BlockQ4K, BlockQ5K, KFit, QK_K, q4_k, q5_k};
use crate::float::{f16_to_f32, f32_to_f16, nearest_int};
use crate::simd::{Kernel, LaneArray, MOST_LANES, Vector};

/// Weights of a sub-block.
const SUB: usize = QK_K / SUB_BLOCKS;
/// The largest 6-bit scale or minimum.
const LARGEST: f32 = MAX_SCALE as f32;
const SIX_BITS: Bounds = Bounds { bottom: 0.0, top: LARGEST };
/// The grids from which the fit of a single sub-block starts.
#[derive(Clone, Copy)]
pub(super) struct Starts {
    /// The number of grids.
    pub count: usize,
    /// Grid widths that are tried: the smallest and largest weight are 15 + `first` steps apart in the first grid, and
    /// `step` more in each next grid. (For quants of 4 bits; for others, in proportion.)
    pub first: f32,
    pub step: f32,
    /// How often the quants are rounded again after scale and minimum were fitted to them.
    pub moves: usize,
}

const STARTS: Starts = Starts { count: 9, first: -2.2, step: 0.4, moves: 2 };
/// Block scales d that are tried for a block.
const TRIES: usize = 2;
/// How often the block scales are fitted to the quants again.
const ROUNDS: usize = 1;

/// A type with six-bit scales and minima.
macro_rules! k_block {
    ($block:ident, $top:expr) => {
        impl Refined for $block {
            const SUB_BLOCKS: usize = SUB_BLOCKS;

            #[inline(always)]
            unsafe fn search<L: Vector>(columns: &Columns, x: &[[f32; QK_K]], out: &mut [Self]) {
                let mut fits = [KFit::EMPTY; MOST_BLOCKS];
                L::call(Search { columns, x, top: $top, out: &mut fits });
                for (out, fit) in out.iter_mut().zip(&fits) {
                    *out = Self::from_fit(fit);
                }
            }
        }
    };
}
k_block!(BlockQ4K, q4_k::LEVELS as f32);
k_block!(BlockQ5K, q5_k::LEVELS as f32);

/// Scales and minima for the sub-block in every lane: value(q) = d · scale · q - dmin · min.
#[derive(Clone, Copy)]
struct Choice<L> {
    d: L,
    dmin: L,
    scale: L,
    min: L,
    error: L,
}

/// Fits of the single sub-blocks, before scales and minima are rounded.
pub(super) struct OwnFits<L> {
    pub scale: L,
    pub min: L,
    /// `Σ w q` for the quants of the fit, and `Σ w q²`.
    sum_l: L,
    sum_l2: L,
}

/// The group of blocks in the lanes.
pub(super) struct Group<'a, L> {
    columns: &'a Columns,
    bounds: Bounds,
    sum_w: L,
    sum_x: L,
}

/// Searches good blocks for `columns`, and rounds `x` to their quants in 0..=`top`.
pub(super) struct Search<'a> {
    pub columns: &'a Columns,
    pub x: &'a [[f32; QK_K]],
    pub top: f32,
    pub out: &'a mut [KFit],
}

impl Kernel for Search<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Vector>(self) {
        search::<L>(self)
    }
}

#[inline(always)]
unsafe fn search<L: Vector>(Search { columns, x, top, out }: Search<'_>) {
    let choice = Group::<L>::new(columns, Bounds { bottom: 0.0, top }).best();
    let (d, dmin) = (choice.d.to_array(), choice.dmin.to_array());
    let (scale, min) = (choice.scale.to_array(), choice.min.to_array());
    for (b, (x, out)) in x.iter().zip(out).enumerate() {
        let at = b * SUB_BLOCKS;
        let six_bits = |quants: &LaneArray| std::array::from_fn(|j| quants[at + j] as u8);
        let mut fit = KFit {
            d: f32_to_f16(d[at]),
            dmin: f32_to_f16(dmin[at]),
            scales: pack(&six_bits(&scale), &six_bits(&min)),
            ..KFit::EMPTY
        };
        round_quants(x, top, &mut fit);
        *out = fit;
    }
}

impl<'a, L: Vector> Group<'a, L> {
    #[inline(always)]
    pub unsafe fn new(columns: &'a Columns, bounds: Bounds) -> Self {
        let (sum_w, sum_x) = columns.totals::<L>();
        Self { columns, bounds, sum_w, sum_x }
    }

    #[inline(always)]
    unsafe fn best(&self) -> Choice<L> {
        let fits = self.fit_sub_blocks(STARTS);
        let blocks = BlockFits::new(self, &fits);
        let mut best = blocks.candidate(0);
        for n in 0..TRIES {
            let found = self.neighbours::<0>(blocks.candidate(n));
            best = if n == 0 { found } else { best.or(found) };
        }
        for _ in 0..ROUNDS {
            best = best.or(self.neighbours::<1>(self.refit_block_scales(best)));
        }
        best
    }

    /// Fits scale and minimum of every sub-block. It starts from several grids. For each, scale and minimum are fitted
    /// to the quants (least squares), and the quants are rounded again. The fit with the least error counts.
    #[inline(always)]
    pub unsafe fn fit_sub_blocks(&self, starts: Starts) -> OwnFits<L> {
        let zero = L::splat(0.0);
        let (low, high) = self.columns.ends::<L>();
        let low = low.min(zero);
        let length = high.sub(low);
        let lowest = zero.sub(low);
        let mut best = OwnFits { scale: zero, min: lowest, sum_l: zero, sum_l2: zero };
        let mut most = zero;
        for c in 0..starts.count {
            let more = (starts.first + starts.step * c as f32) / 15.0;
            let steps = self.bounds.top * (1.0 + more);
            let (mut scale, mut min) = (length.div(L::splat(steps)), lowest);
            for _ in 0..=starts.moves {
                let sums = self.columns.sums(scale, min, self.bounds);
                let GridSums { l, l2, xl } = sums;
                let determinant = self.sum_w.mul(l2).sub(l.mul(l));
                let this_scale = self.sum_w.mul(xl).sub(self.sum_x.mul(l)).div(determinant);
                let this_min = l.mul(xl).sub(l2.mul(self.sum_x)).div(determinant);
                // a minimum cannot be negative; if all quants are equal, there is no fit
                let this_min = zero.if_less(determinant, this_min, L::splat(-1.0));
                let this_scale = this_min.if_less(zero, xl.div(l2), this_scale);
                let this_min = this_min.max(zero);
                let explained = this_scale.mul(xl).sub(this_min.mul(self.sum_x));
                best.scale = most.if_less(explained, this_scale, best.scale);
                best.min = most.if_less(explained, this_min, best.min);
                best.sum_l = most.if_less(explained, l, best.sum_l);
                best.sum_l2 = most.if_less(explained, l2, best.sum_l2);
                most = explained.max(most);
                scale = zero.if_less(determinant, this_scale, scale);
                min = zero.if_less(determinant, this_min, min);
            }
        }
        best
    }

    /// The best of the scales and minima near those of `choice`, with the same block scales. It tries the scale and its
    /// two neighbours, each with the best minimum for its quants and `MINS` neighbours of this minimum on either side.
    #[inline(always)]
    unsafe fn neighbours<const MINS: i32>(&self, choice: Choice<L>) -> Choice<L> {
        let (zero, largest) = (L::splat(0.0), L::splat(LARGEST));
        let Choice { d, dmin, scale: scale0, min: min0, .. } = choice;
        let dmin_inverse = zero.if_less(dmin, L::splat(1.0).div(dmin), zero);
        let w_inverse = zero.if_less(self.sum_w, L::splat(1.0).div(self.sum_w), zero);
        let middle = d.mul(scale0);
        let mut best = choice;
        best.error = self.columns.error(middle, dmin.mul(min0), self.bounds);
        let sum_l = self.columns.sum_l(middle, dmin.mul(min0), self.bounds);
        let mean_l = sum_l.mul(w_inverse);
        let mean_x = self.sum_x.mul(w_inverse);
        for a in [-1.0, 0.0, 1.0] {
            let whole = scale0.add(L::splat(a)).max(zero).min(largest);
            let scale = d.mul(whole);
            let guess = scale.mul(mean_l).sub(mean_x).max(zero);
            let sum_l = self.columns.sum_l(scale, guess, self.bounds);
            let min = scale.mul(sum_l).mul(w_inverse).sub(mean_x);
            let nearest = min.mul(dmin_inverse).max(zero).min(largest).nearest();
            for b in -MINS..=MINS {
                let min = nearest.add(L::splat(b as f32)).max(zero).min(largest);
                let error = self.columns.error(scale, dmin.mul(min), self.bounds);
                best.scale = error.if_less(best.error, whole, best.scale);
                best.min = error.if_less(best.error, min, best.min);
                best.error = error.min(best.error);
            }
        }
        best
    }

    /// `choice` with the best block scales for its quants.
    #[inline(always)]
    unsafe fn refit_block_scales(&self, choice: Choice<L>) -> Choice<L> {
        let Choice { d, dmin, scale, min, .. } = choice;
        let sums = self.columns.sums(d.mul(scale), dmin.mul(min), self.bounds);
        // least squares for x = d · (scale · q) - dmin · min: the terms of each sub-block
        let parts = [
            scale.mul(scale).mul(sums.l2).to_array(),
            scale.mul(min).mul(sums.l).to_array(),
            min.mul(min).mul(self.sum_w).to_array(),
            scale.mul(sums.xl).to_array(),
            min.mul(self.sum_x).to_array(),
        ];
        let (mut d, mut dmin) = (d.to_array(), dmin.to_array());
        for at in (0..L::LANES).step_by(SUB_BLOCKS) {
            let mut sums = [0f64; 5];
            for (sum, part) in sums.iter_mut().zip(&parts) {
                for &v in &part[at..][..SUB_BLOCKS] {
                    *sum += f64::from(v);
                }
            }
            let [ss, sm, mm, sx, mx] = sums;
            let determinant = ss * mm - sm * sm;
            let (new_d, new_dmin) = if determinant > 0.0 {
                ((sx * mm - mx * sm) / determinant, (sx * sm - mx * ss) / determinant)
            } else {
                (sx / ss, f64::from(dmin[at]))
            };
            let (new_d, new_dmin) = (nearest_f16(new_d, d[at]), nearest_f16(new_dmin, dmin[at]));
            d[at..][..SUB_BLOCKS].fill(new_d);
            dmin[at..][..SUB_BLOCKS].fill(new_dmin);
        }
        Choice { d: L::load(d.as_ptr()), dmin: L::load(dmin.as_ptr()), ..choice }
    }
}

impl<L: Vector> Choice<L> {
    /// For every block, the better of two choices.
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        let other_is_better = keep_better::<L>(self.error, other.error, SUB_BLOCKS);
        let zero = L::splat(0.0);
        Self {
            d: zero.if_less(other_is_better, other.d, self.d),
            dmin: zero.if_less(other_is_better, other.dmin, self.dmin),
            scale: zero.if_less(other_is_better, other.scale, self.scale),
            min: zero.if_less(other_is_better, other.min, self.min),
            error: zero.if_less(other_is_better, other.error, self.error),
        }
    }
}

/// The fits of the sub-blocks, and the candidates for the block scale d of each block.
struct BlockFits {
    scale: LaneArray,
    sum_l: LaneArray,
    sum_w: LaneArray,
    sum_x: LaneArray,
    candidates: [Candidates; MOST_BLOCKS],
}

impl BlockFits {
    #[inline(always)]
    unsafe fn new<L: Vector>(group: &Group<'_, L>, fits: &OwnFits<L>) -> Self {
        let (scale, sum_l) = (fits.scale.to_array(), fits.sum_l.to_array());
        let (sum_w, sum_x) = (group.sum_w.to_array(), group.sum_x.to_array());
        // the weight of a squared error of the scale, if the minimum is then the best one
        let determinant = group.sum_w.mul(fits.sum_l2).sub(fits.sum_l.mul(fits.sum_l));
        let zero = L::splat(0.0);
        let cost = zero.if_less(group.sum_w, determinant.div(group.sum_w), zero);
        let cost = cost.to_array();
        let mut candidates = [Candidates::default(); MOST_BLOCKS];
        for (b, candidates) in candidates.iter_mut().enumerate().take(L::LANES / SUB_BLOCKS) {
            let at = b * SUB_BLOCKS;
            let (scale, cost) = (&scale[at..][..SUB_BLOCKS], &cost[at..][..SUB_BLOCKS]);
            *candidates = by_error(scale, cost, SIX_BITS, LARGEST);
        }
        Self { scale, sum_l, sum_w, sum_x, candidates }
    }

    /// The `n`-th candidate for d, with the nearest scales and minima.
    #[inline(always)]
    unsafe fn candidate<L: Vector>(&self, n: usize) -> Choice<L> {
        let (mut d, mut dmin) = ([0f32; MOST_LANES], [0f32; MOST_LANES]);
        let (mut scales, mut mins) = ([0f32; MOST_LANES], [0f32; MOST_LANES]);
        for (b, candidates) in self.candidates.iter().enumerate().take(L::LANES / SUB_BLOCKS) {
            let block = b * SUB_BLOCKS..(b + 1) * SUB_BLOCKS;
            let scale = candidates[n];
            d[block.clone()].fill(scale);
            let mut wanted = [0f32; SUB_BLOCKS];
            for (wanted, l) in wanted.iter_mut().zip(block.clone()) {
                scales[l] = six_bits(self.scale[l], scale);
                let explained = scale * scales[l] * self.sum_l[l];
                let min = (explained - self.sum_x[l]) / self.sum_w[l];
                *wanted = if min > 0.0 { min } else { 0.0 };
            }
            let scale = by_error(&wanted, &self.sum_w[block.clone()], SIX_BITS, LARGEST)[0];
            dmin[block.clone()].fill(scale);
            for (min, &wanted) in mins[block].iter_mut().zip(&wanted) {
                *min = six_bits(wanted, scale);
            }
        }
        // There is room for MOST_LANES lanes.
        Choice {
            d: L::load(d.as_ptr()),
            dmin: L::load(dmin.as_ptr()),
            scale: L::load(scales.as_ptr()),
            min: L::load(mins.as_ptr()),
            error: L::splat(f32::INFINITY),
        }
    }
}

/// The integer n in 0..=63 for which n · `scale` is nearest to `value`.
#[inline(always)]
fn six_bits(value: f32, scale: f32) -> f32 {
    if scale > 0.0 { nearest_int((value / scale).clamp(0.0, LARGEST)) as f32 } else { 0.0 }
}

/// Rounds `x` to the quants of the block.
#[inline(always)]
fn round_quants(x: &[f32; QK_K], top: f32, fit: &mut KFit) {
    let (d, dmin) = (f16_to_f32(fit.d), f16_to_f32(fit.dmin));
    for j in 0..SUB_BLOCKS {
        let (scale, min) = fit.scale_and_min(d, dmin, j);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let range = j * SUB..(j + 1) * SUB;
        for (q, &x) in fit.quants[range.clone()].iter_mut().zip(&x[range]) {
            let position = (x + min) * inverse;
            let position = if position > 0.0 { position } else { 0.0 };
            *q = nearest_int(if position < top { position } else { top }) as u8;
        }
    }
}
