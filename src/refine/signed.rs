//! Q6_K and IQ4_XS: a signed scale for each sub-block, one block scale d, and no minima.

use super::block_scales::{Candidates, by_error, nearest_f16};
use super::columns::{Bounds, Columns, Grid, Iq4Values};
use super::group::{MOST_BLOCKS, Refined, keep_better};
use crate::block::legacy::pack_nibbles;
use crate::block::{Block, BlockIQ4XS, BlockQ6K, QK, QK_K, iq4_xs, q6_k};
use crate::fit::iq4_quants;
use crate::float::{f16_to_f32, f32_to_f16, inverse, nearest_int};
use crate::simd::{MOST_LANES, Vector};

/// How often the quants are rounded again after the scale was fitted to them.
const MOVES: usize = 1;
/// Block scales that are tried for a block.
const TRIES: usize = 2;
/// How often the block scale is fitted to the quants again.
const ROUNDS: usize = 1;

/// The grids from which the fit of a single sub-block starts, each with both signs of the scale.
struct Starts {
    /// The number of grids.
    count: usize,
    /// The quant (or its value) of the weight of largest magnitude in the first grid.
    first: f32,
    /// How much larger it is in each next grid.
    step: f32,
}

/// A type with signed scales.
trait Signed: Block {
    const SUB_BLOCKS: usize;
    /// The lowest scale, which has the largest magnitude.
    const LOWEST: f32;
    /// The range of the scales.
    const SCALES: Bounds = Bounds { bottom: Self::LOWEST, top: -Self::LOWEST - 1.0 };
    /// The quants.
    const GRID: Self::Grid;
    type Grid: Grid;
    const STARTS: Starts;

    /// The block with block scale `d` and the `scales`. Its quants are the nearest to `x`.
    fn encode(x: &[f32; QK_K], d: f32, scales: &[f32]) -> Self;
}

impl Signed for BlockQ6K {
    const SUB_BLOCKS: usize = q6_k::SUB_BLOCKS;
    const LOWEST: f32 = -128.0;
    const GRID: Bounds = Bounds { bottom: -32.0, top: 31.0 };
    type Grid = Bounds;
    const STARTS: Starts = Starts { count: 6, first: 28.0, step: 1.0 };

    #[inline(always)]
    fn encode(x: &[f32; QK_K], d: f32, scales: &[f32]) -> Self {
        let mut block = Self { d: f32_to_f16(d).to_le_bytes(), ..Self::ZERO };
        let mut quants = [32u8; QK_K];
        for (j, &scale) in scales.iter().enumerate() {
            block.scales[j] = scale as i8 as u8;
            let inverse = inverse(block.scale(j));
            for i in j * q6_k::SUB..(j + 1) * q6_k::SUB {
                let position = x[i] * inverse;
                let position = if position > -32.0 { position } else { -32.0 };
                let position = if position < 31.0 { position } else { 31.0 };
                quants[i] = (nearest_int(position) + 32) as u8;
            }
        }
        block.pack(&quants);
        block
    }
}

impl Signed for BlockIQ4XS {
    const SUB_BLOCKS: usize = iq4_xs::SUB_BLOCKS;
    const LOWEST: f32 = -32.0;
    const GRID: Iq4Values = Iq4Values;
    type Grid = Iq4Values;
    const STARTS: Starts = Starts { count: 4, first: 108.0, step: 8.0 };

    #[inline(always)]
    fn encode(x: &[f32; QK_K], d: f32, scales: &[f32]) -> Self {
        let mut whole = [0i32; iq4_xs::SUB_BLOCKS];
        for (whole, &scale) in whole.iter_mut().zip(scales) {
            *whole = scale as i32;
        }
        let mut block = Self::new(d, &whole);
        let d = f16_to_f32(u16::from_le_bytes(block.d));
        for ((qs, x), scale) in block.qs.iter_mut().zip(x.as_chunks::<QK>().0).zip(whole) {
            *qs = pack_nibbles(&iq4_quants(x, inverse(d * scale as f32)));
        }
        block
    }
}

/// Scales for the sub-block in every lane: value(q) = d · scale · q.
#[derive(Clone, Copy)]
struct Choice<L> {
    d: L,
    scale: L,
    error: L,
}

impl<B: Signed> Refined for B {
    const SUB_BLOCKS: usize = <B as Signed>::SUB_BLOCKS;

    #[inline(always)]
    unsafe fn search<L: Vector>(columns: &Columns, x: &[[f32; QK_K]], out: &mut [Self]) {
        let choice = best::<L, B>(columns);
        let (d, scales) = (choice.d.to_array(), choice.scale.to_array());
        let sub_blocks = <B as Signed>::SUB_BLOCKS;
        for (b, (x, out)) in x.iter().zip(out).enumerate() {
            let at = b * sub_blocks;
            *out = B::encode(x, d[at], &scales[at..][..sub_blocks]);
        }
    }
}

#[inline(always)]
unsafe fn best<L: Vector, B: Signed>(columns: &Columns) -> Choice<L> {
    let (scale, cost) = fit_sub_blocks::<L, B>(columns);
    let (fitted, cost) = (scale.to_array(), cost.to_array());
    let mut candidates = [Candidates::default(); MOST_BLOCKS];
    for (at, candidates) in (0..L::LANES).step_by(B::SUB_BLOCKS).zip(&mut candidates) {
        let block = at..at + B::SUB_BLOCKS;
        *candidates = by_error(&fitted[block.clone()], &cost[block], B::SCALES, B::LOWEST);
    }
    let mut best = candidate::<L, B>(&candidates, 0);
    for attempt in 0..TRIES + ROUNDS {
        let (start, wanted) = if attempt < TRIES {
            (candidate::<L, B>(&candidates, attempt), scale)
        } else {
            let refitted = refit_block_scale::<L, B>(columns, best);
            (refitted, refitted.d.mul(refitted.scale))
        };
        let found = neighbours::<L, B>(columns, wanted, start);
        best = if attempt == 0 { found } else { best.or::<B>(found) };
    }
    best
}

/// For every sub-block, the scale with the least error, and the weight of a squared error of this scale.
#[inline(always)]
unsafe fn fit_sub_blocks<L: Vector, B: Signed>(columns: &Columns) -> (L, L) {
    let zero = L::splat(0.0);
    let (low, high) = columns.ends::<L>();
    let magnitude = zero.sub(low).max(high);
    let (mut best, mut cost, mut most) = (zero, zero, zero);
    let Starts { count, first, step } = B::STARTS;
    for start in 0..2 * count {
        let steps = first + step * (start / 2) as f32;
        let sign = if start % 2 == 0 { 1.0 } else { -1.0 };
        let mut scale = magnitude.div(L::splat(sign * steps));
        for _ in 0..=MOVES {
            let sums = columns.sums(scale, zero, B::GRID);
            let moved = sums.xl.div(sums.l2);
            let moved = zero.if_less(sums.l2, moved, zero);
            let explained = moved.mul(sums.xl);
            best = most.if_less(explained, moved, best);
            cost = most.if_less(explained, sums.l2, cost);
            most = explained.max(most);
            scale = moved;
        }
    }
    (best, cost)
}

/// The `n`-th candidate of each block.
#[inline(always)]
unsafe fn candidate<L: Vector, B: Signed>(
    candidates: &[Candidates; MOST_BLOCKS],
    n: usize,
) -> Choice<L> {
    let mut d = [0f32; MOST_LANES];
    for (d, candidates) in d.chunks_mut(B::SUB_BLOCKS).zip(candidates) {
        d.fill(candidates[n]);
    }
    let infinite = L::splat(f32::INFINITY);
    Choice { d: L::load(d.as_ptr()), scale: L::splat(0.0), error: infinite }
}

/// The best scales near `wanted` / d, with the block scales d of `choice`. It tries the nearest integer and its two
/// neighbours.
#[inline(always)]
unsafe fn neighbours<L: Vector, B: Signed>(
    columns: &Columns,
    wanted: L,
    choice: Choice<L>,
) -> Choice<L> {
    let zero = L::splat(0.0);
    let (lowest, largest) = (L::splat(B::LOWEST), L::splat(B::SCALES.top));
    let mut best = choice;
    let middle = wanted.div(choice.d).max(lowest).min(largest).nearest();
    best.error = L::splat(f32::INFINITY);
    for a in [-1.0, 0.0, 1.0] {
        let scale = middle.add(L::splat(a)).max(lowest).min(largest);
        let error = columns.error(choice.d.mul(scale), zero, B::GRID);
        best.scale = error.if_less(best.error, scale, best.scale);
        best.error = error.min(best.error);
    }
    best
}

/// `choice` with the best block scales for its quants.
#[inline(always)]
unsafe fn refit_block_scale<L: Vector, B: Signed>(
    columns: &Columns,
    choice: Choice<L>,
) -> Choice<L> {
    let Choice { d, scale, .. } = choice;
    let sums = columns.sums(d.mul(scale), L::splat(0.0), B::GRID);
    let (xl, l2) = (scale.mul(sums.xl).to_array(), scale.mul(scale).mul(sums.l2).to_array());
    let mut d = d.to_array();
    for at in (0..L::LANES).step_by(B::SUB_BLOCKS) {
        let (mut sum_xl, mut sum_l2) = (0f64, 0f64);
        for l in at..at + B::SUB_BLOCKS {
            sum_xl += f64::from(xl[l]);
            sum_l2 += f64::from(l2[l]);
        }
        // the sign does not change
        let old = d[at];
        let magnitude = nearest_f16((sum_xl / sum_l2).abs(), old.abs());
        d[at..][..B::SUB_BLOCKS].fill(magnitude.copysign(old));
    }
    Choice { d: L::load(d.as_ptr()), ..choice }
}

impl<L: Vector> Choice<L> {
    /// For every block, the better of two choices.
    #[inline(always)]
    unsafe fn or<B: Signed>(self, other: Self) -> Self {
        let other_is_better = keep_better::<L>(self.error, other.error, B::SUB_BLOCKS);
        let zero = L::splat(0.0);
        Self {
            d: zero.if_less(other_is_better, other.d, self.d),
            scale: zero.if_less(other_is_better, other.scale, self.scale),
            error: zero.if_less(other_is_better, other.error, self.error),
        }
    }
}
