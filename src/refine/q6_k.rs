//! Q6_K: a signed scale of eight bits for each of sixteen sub-blocks, under one factor.

use super::columns::{Bounds, Columns};
use super::factors::{Candidates, by_error, nearest_factor};
use super::lanes::{Lanes, MOST_LANES};
use super::{MOST_BLOCKS, Refined, keep_better, lanes_of};
use crate::block::q6_k::{SUB, SUB_BLOCKS};
use crate::block::{BlockQ6K, QK_K};
use crate::float::{f32_to_f16, nearest_int};

/// Grids of either sign that a sub-block's own fit starts from.
const STARTS: usize = 8;
/// How often such a grid is moved to where its numbers would have it.
const MOVES: usize = 2;
/// How often the best is fitted anew.
const ROUNDS: usize = 2;
const BOUNDS: Bounds = Bounds { bottom: -32.0, top: 31.0 };
/// The lowest scale.
const LOWEST: f32 = -128.0;
const SCALES: Bounds = Bounds { bottom: LOWEST, top: 127.0 };

/// A choice for the sub-block in every lane: value(q) = d · scale · q.
#[derive(Clone, Copy)]
struct Choice<L> {
    d: L,
    scale: L,
    error: L,
}

impl Refined for BlockQ6K {
    const SUB_BLOCKS: usize = SUB_BLOCKS;

    #[inline(always)]
    unsafe fn search<L: Lanes>(columns: &Columns, x: &[[f32; QK_K]], out: &mut [Self]) {
        // SAFETY: the caller's promise.
        unsafe {
            let choice = best::<L>(columns);
            let (d, scales) = (lanes_of(choice.d), lanes_of(choice.scale));
            for (b, (x, out)) in x.iter().zip(out).enumerate() {
                let at = b * SUB_BLOCKS;
                let mut block = Self { d: f32_to_f16(d[at]).to_le_bytes(), ..Self::ZERO };
                for (stored, &scale) in block.scales.iter_mut().zip(&scales[at..]) {
                    *stored = scale as i8 as u8;
                }
                block.pack(&numbers(x, &block));
                *out = block;
            }
        }
    }
}

#[inline(always)]
unsafe fn best<L: Lanes>(columns: &Columns) -> Choice<L> {
    // SAFETY: the caller's promise.
    unsafe {
        let (scale, cost) = fit_sub_blocks::<L>(columns);
        let (fitted, cost) = (lanes_of(scale), lanes_of(cost));
        let mut candidates = [Candidates::default(); MOST_BLOCKS];
        let blocks = fitted.as_chunks::<SUB_BLOCKS>().0.iter().zip(cost.as_chunks().0);
        let blocks = blocks.take(L::LANES / SUB_BLOCKS);
        for (candidates, (fitted, cost)) in candidates.iter_mut().zip(blocks) {
            let cost: &[f32; SUB_BLOCKS] = cost;
            *candidates = by_error(fitted, cost, SCALES, LOWEST);
        }
        let mut best = neighbours::<L, 2>(columns, scale, place(&candidates, 0));
        for n in 1..candidates[0].len() {
            best = best.or(neighbours::<L, 2>(columns, scale, place(&candidates, n)));
        }
        for _ in 0..ROUNDS {
            let refitted = refit_factor(columns, best);
            let wanted = refitted.d.mul(refitted.scale);
            best = best.or(neighbours::<L, 1>(columns, wanted, refitted));
        }
        best
    }
}

/// The scale of every sub-block that leaves the least error, and what an error of it costs.
#[inline(always)]
unsafe fn fit_sub_blocks<L: Lanes>(columns: &Columns) -> (L, L) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = L::splat(0.0);
        let (low, high) = columns.ends::<L>();
        let magnitude = zero.sub(low).max(high);
        let (mut best, mut cost, mut most) = (zero, zero, zero);
        for start in 0..2 * STARTS {
            let steps = 28.0 + 0.75 * (start / 2) as f32;
            let sign = if start % 2 == 0 { 1.0 } else { -1.0 };
            let mut scale = magnitude.div(L::splat(sign * steps));
            for _ in 0..=MOVES {
                let sums = columns.sums(scale, zero, BOUNDS);
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
}

/// The `n`-th of each block's candidates.
#[inline(always)]
unsafe fn place<L: Lanes>(candidates: &[Candidates; MOST_BLOCKS], n: usize) -> Choice<L> {
    let mut d = [0f32; MOST_LANES];
    for (d, candidates) in d.as_chunks_mut::<SUB_BLOCKS>().0.iter_mut().zip(candidates) {
        d.fill(candidates[n]);
    }
    // SAFETY: the caller's promise.
    unsafe {
        let infinite = L::splat(f32::INFINITY);
        Choice { d: L::load(d.as_ptr()), scale: L::splat(0.0), error: infinite }
    }
}

/// The best of the whole scales near the `wanted` ones, `REACH` to either side, with the factors of
/// `choice`.
#[inline(always)]
unsafe fn neighbours<L: Lanes, const REACH: i32>(
    columns: &Columns,
    wanted: L,
    choice: Choice<L>,
) -> Choice<L> {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = L::splat(0.0);
        let (lowest, largest) = (L::splat(LOWEST), L::splat(SCALES.top));
        let mut best = choice;
        let middle = wanted.div(choice.d).max(lowest).min(largest).nearest();
        best.error = L::splat(f32::INFINITY);
        for a in -REACH..=REACH {
            let scale = middle.add(L::splat(a as f32)).max(lowest).min(largest);
            let error = columns.error(choice.d.mul(scale), zero, BOUNDS);
            best.scale = error.if_less(best.error, scale, best.scale);
            best.error = error.min(best.error);
        }
        best
    }
}

/// The factor that is best for the numbers of `choice`.
#[inline(always)]
unsafe fn refit_factor<L: Lanes>(columns: &Columns, choice: Choice<L>) -> Choice<L> {
    // SAFETY: the caller's promise.
    unsafe {
        let Choice { d, scale, .. } = choice;
        let sums = columns.sums(d.mul(scale), L::splat(0.0), BOUNDS);
        let (xl, l2) = (lanes_of(scale.mul(sums.xl)), lanes_of(scale.mul(scale).mul(sums.l2)));
        let mut d = lanes_of(d);
        for at in (0..L::LANES).step_by(SUB_BLOCKS) {
            let (mut sum_xl, mut sum_l2) = (0f64, 0f64);
            for l in at..at + SUB_BLOCKS {
                sum_xl += f64::from(xl[l]);
                sum_l2 += f64::from(l2[l]);
            }
            // the sign is the factor's own
            let old = d[at];
            let magnitude = nearest_factor((sum_xl / sum_l2).abs(), old.abs());
            d[at..][..SUB_BLOCKS].fill(magnitude.copysign(old));
        }
        Choice { d: L::load(d.as_ptr()), ..choice }
    }
}

impl<L: Lanes> Choice<L> {
    /// For every block the better of two choices.
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let other_is_better = keep_better::<L>(self.error, other.error, SUB_BLOCKS);
            let zero = L::splat(0.0);
            Self {
                d: zero.if_less(other_is_better, other.d, self.d),
                scale: zero.if_less(other_is_better, other.scale, self.scale),
                error: zero.if_less(other_is_better, other.error, self.error),
            }
        }
    }
}

/// Rounds to the numbers of the block, stored with 32 added.
#[inline(always)]
fn numbers(x: &[f32; QK_K], block: &BlockQ6K) -> [u8; QK_K] {
    let mut numbers = [32u8; QK_K];
    for j in 0..SUB_BLOCKS {
        let scale = block.scale(j);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for i in j * SUB..(j + 1) * SUB {
            let position = x[i] * inverse;
            let position = if position > BOUNDS.bottom { position } else { BOUNDS.bottom };
            let position = if position < BOUNDS.top { position } else { BOUNDS.top };
            numbers[i] = (nearest_int(position) + 32) as u8;
        }
    }
    numbers
}
