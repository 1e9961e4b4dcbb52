//! Q4_HIFI's encoder. It does both fits for several blocks at a time, with one sub-block per lane.
//!
//! [`crate::fit::hifi`] and [`crate::fit::refit`] are the scalar versions, and the oracle of the tests.

use super::k::{Columns, GROUP, MOST_BLOCKS};
use super::ranges::ranges;
use crate::block::k_scales::SUB_BLOCKS;
use crate::block::{HifiBlock, KFit, MAX_OUTLIERS, QK_K};
use crate::fit::hifi::Refit;
use crate::fit::k::Q4_K;
use crate::fit::refit::{
    CANDIDATES, DEPTH, RoundedScales, THRESHOLD_GRID, WindowFits, candidate, share,
};
use crate::float::ROUNDING;
use crate::simd::{InLanes, Kernel, MOST_LANES as MOST, Twice, Vector};

/// The vector version of [`crate::fit::encode_hifi_row`].
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn encode_blocks<V: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    outliers: usize,
    out: &mut [HifiBlock],
) {
    let (mut columns, mut guesses) = (Columns::new(), Guesses::default());
    for (range, is_twice) in ranges::<V>(x.len(), SUB_BLOCKS) {
        let importance = importance.map(|w| &w[range.clone()]);
        let (x, out) = (&x[range.clone()], &mut out[range]);
        if is_twice {
            encode_group::<Twice<V>, V>(x, importance, outliers, (&mut columns, &mut guesses), out);
        } else {
            encode_group::<V, V>(x, importance, outliers, (&mut columns, &mut guesses), out);
        }
    }
}

/// [`encode_blocks`].
pub(crate) struct EncodeHifiRow<'a> {
    pub x: &'a [[f32; QK_K]],
    pub importance: Option<&'a [[f32; QK_K]]>,
    pub outliers: usize,
    pub out: &'a mut [HifiBlock],
}

impl Kernel for EncodeHifiRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        encode_blocks::<V>(self.x, self.importance, self.outliers, self.out)
    }
}

/// The thresholds that were found last, as bits. The next searches begin there.
#[derive(Default)]
struct Guesses {
    gain: i32,
    score: i32,
}

/// Encodes as many blocks as fit into a vector `G`, which is one or more vectors `V`.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
unsafe fn encode_group<G: Vector, V: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    outliers: usize,
    (columns, guesses): (&mut Columns, &mut Guesses),
    out: &mut [HifiBlock],
) {
    let mut plain = [KFit::EMPTY; MOST_BLOCKS];
    let mut fits = [WindowFits::default(); MOST_BLOCKS];
    // G holds whole vectors V.
    columns.fit::<G>(&Q4_K, x, importance, &mut plain[..x.len()]);
    if outliers > 0 {
        for first in (0..G::LANES).step_by(V::LANES) {
            let groups = Groups {
                x: columns.x.as_ptr().add(first),
                weights: columns.importance.as_ptr().add(first),
                stride: G::LANES,
            };
            groups.refit::<V>(outliers, &mut guesses.gain, &mut fits[first / SUB_BLOCKS..]);
        }
    }
    let mut scales = [RoundedScales::default(); MOST_BLOCKS];
    for (scales, fits) in scales.iter_mut().zip(&fits[..x.len()]) {
        *scales = fits.round_scales();
    }
    let mut bases = [KFit::EMPTY; MOST_BLOCKS];
    for (base, (fits, scales)) in bases.iter_mut().zip(fits.iter().zip(scales)).take(x.len()) {
        *base = fits.round_minima(scales);
    }
    for (l, (x, out)) in x.iter().zip(out).enumerate() {
        let importance = importance.map(|w| &w[l]);
        if outliers == 0 {
            *out = HifiBlock::without_outliers(&plain[l]);
            continue;
        }
        let refit = Refit::new(x, importance, bases[l]);
        let index = choose::<V>(outliers, &refit.scores, &mut guesses.score);
        *out = HifiBlock::better(x, importance, outliers, &plain[l], refit, index);
    }
}

/// Sub-blocks in lanes: weight `i` of lane `l` is at `i * stride + l`.
struct Groups {
    x: *const f32,
    weights: *const f32,
    stride: usize,
}

impl Groups {
    /// The vector version of [`crate::fit::refit::fit`].
    #[inline(always)]
    unsafe fn refit<V: Vector>(&self, outliers: usize, guess: &mut i32, fits: &mut [WindowFits]) {
        let (low, high) = self.windows::<V>(outliers, guess);
        let fitted = self.fit_windows::<V>(low, high);
        let mut quants = [[0f32; MOST]; 6];
        for (quants, fitted) in quants.iter_mut().zip(fitted) {
            fitted.store(quants.as_mut_ptr());
        }
        let of = |i: usize, l: usize| quants[i].as_chunks::<SUB_BLOCKS>().0[l];
        for (l, fit) in fits.iter_mut().take(V::LANES / SUB_BLOCKS).enumerate() {
            *fit = WindowFits {
                scale: of(0, l),
                min: of(1, l),
                sum_w: of(2, l),
                sum_x: of(3, l),
                sum_l: of(4, l),
                sum_l2: of(5, l),
            };
        }
    }

    /// The ends of each sub-block's window.
    #[inline(always)]
    unsafe fn windows<V: Vector>(&self, outliers: usize, guess: &mut i32) -> (V, V) {
        let zero = V::splat(0.0);
        let mut sorted = InLanes::<GROUP>::new();
        let mut weight = zero;
        for i in 0..GROUP {
            V::load(self.x.add(i * self.stride)).store(sorted.as_mut_ptr().add(i * V::LANES));
            weight = weight.add(V::load(self.weights.add(i * self.stride)));
        }
        sort_ends::<V>(sorted.as_mut_ptr());
        let sorted = |i: usize| V::load(sorted.as_ptr().add(i * V::LANES));

        let mut windows = [(zero, zero); DEPTH + 1];
        let mut costs = [zero; DEPTH + 1];
        for k in 0..=DEPTH {
            let (mut low, mut high) = (zero, V::splat(f32::INFINITY));
            let mut length = high;
            for above in 0..=k {
                let this_low = sorted(k - above).min(zero);
                let this_high = sorted(GROUP - 1 - above);
                let this_length = this_high.sub(this_low);
                let shorter = this_length.lt(length);
                low = V::select(shorter, this_low, low);
                high = V::select(shorter, this_high, high);
                length = V::select(shorter, this_length, length);
            }
            windows[k] = (low, high);
            costs[k] = weight.mul(length.mul(length));
        }
        let mut gains = [V::splat(f32::INFINITY); DEPTH];
        for a in 0..DEPTH {
            let mut most = V::splat(f32::NEG_INFINITY);
            for b in (a + 1..=DEPTH).rev() {
                most = costs[a].sub(costs[b]).mul(V::splat(share(b - a))).max(most);
                gains[b - 1] = most.min(gains[b - 1]);
            }
        }

        let thresholds = block_thresholds::<V>(outliers, &gains, guess);
        let (mut low, mut high) = windows[0];
        for (gain, window) in gains.iter().zip(&windows[1..]) {
            let taken = thresholds.lt(*gain);
            low = V::select(taken, window.0, low);
            high = V::select(taken, window.1, high);
        }
        (low, high)
    }

    /// Scale, minimum and sums, as in [`WindowFits`].
    #[inline(always)]
    unsafe fn fit_windows<V: Vector>(&self, low: V, high: V) -> [V; 6] {
        let (zero, magic) = (V::splat(0.0), V::splat(ROUNDING));
        let length = high.sub(low);
        let mut inverses = [zero; CANDIDATES];
        for (c, inverse) in inverses.iter_mut().enumerate() {
            let positive = zero.lt(length);
            *inverse = V::select(positive, V::splat(candidate(c)).div(length), zero);
        }
        let (mut sum_w, mut sum_x) = (zero, zero);
        let mut sums = [[zero; 3]; CANDIDATES];
        for i in 0..GROUP {
            let v = V::load(self.x.add(i * self.stride));
            let w = V::load(self.weights.add(i * self.stride));
            let w = V::select(V::or(v.lt(low), high.lt(v)), zero, w);
            let v = v.max(low).min(high);
            sum_w = sum_w.add(w);
            sum_x = sum_x.add(w.mul(v));
            let above = v.sub(low);
            for c in 0..CANDIDATES {
                let l = above.mul_add(inverses[c], magic).sub(magic);
                let wl = w.mul(l);
                sums[c][0] = sums[c][0].add(wl);
                sums[c][1] = wl.mul_add(l, sums[c][1]);
                sums[c][2] = wl.mul_add(v, sums[c][2]);
            }
        }
        let (mut scale, mut deducted) = (zero, V::splat(-0.0).sub(low));
        let (mut best, mut best_l, mut best_l2) = (zero, zero, zero);
        for [sum_l, sum_l2, sum_xl] in sums {
            let determinant = sum_w.mul(sum_l2).sub(sum_l.mul(sum_l));
            let this_scale = sum_w.mul(sum_xl).sub(sum_x.mul(sum_l)).div(determinant);
            let min = sum_l2.mul(sum_x).sub(sum_l.mul(sum_xl)).div(determinant);
            let positive = zero.lt(min);
            let min = V::select(positive, zero, min);
            let this_scale = V::select(positive, sum_xl.div(sum_l2), this_scale);
            let explained = this_scale.mul(sum_xl).add(min.mul(sum_x));
            let better = V::and(zero.lt(determinant), best.lt(explained));
            best = V::select(better, explained, best);
            scale = V::select(better, this_scale, scale);
            deducted = V::select(better, V::splat(-0.0).sub(min), deducted);
            best_l = V::select(better, sum_l, best_l);
            best_l2 = V::select(better, sum_l2, best_l2);
        }
        [scale, deducted, sum_w, sum_x, best_l, best_l2]
    }
}

/// For every lane the threshold of its block: the smallest that at most `outliers` gains exceed.
#[inline(always)]
unsafe fn block_thresholds<V: Vector>(outliers: usize, gains: &[V; DEPTH], guess: &mut i32) -> V {
    let mut by_block = [[[0f32; SUB_BLOCKS]; 64 / SUB_BLOCKS]; MOST_BLOCKS];
    let mut lanes = [0f32; MOST];
    // There is room for MOST_LANES lanes.
    for (i, gain) in gains.iter().enumerate() {
        gain.store(lanes.as_mut_ptr());
        for (l, gains) in lanes.as_chunks().0.iter().enumerate() {
            by_block[l][i] = *gains;
        }
    }
    for l in 0..V::LANES / SUB_BLOCKS {
        let threshold = threshold::<V, THRESHOLD_GRID>(
            outliers,
            by_block[l].as_flattened().as_chunks().0,
            guess,
        );
        lanes[l * SUB_BLOCKS..][..SUB_BLOCKS].fill(threshold);
    }
    V::load(lanes.as_ptr())
}

/// Bit `i` is set if value `i` exceeds the threshold.
#[inline(always)]
unsafe fn above<V: Vector>(values: &[f32; 64], threshold: V) -> u64 {
    let mut bits = 0;
    for i in (0..64).step_by(V::LANES) {
        // LANES divides 64.
        bits |= V::bits(threshold.lt(V::load(values.as_ptr().add(i)))) << i;
    }
    bits
}

/// The threshold ≥ 0 that exactly `count` values exceed. If ties prevent that, the smallest that fewer exceed. Only
/// thresholds whose low `GRID` bits are 0 are tried.
///
/// This is a binary search over the bits, because floats ≥ 0 compare like their bits. It begins at `guess`, the
/// threshold of the block before, which is often near. `guess` becomes the new threshold.
#[inline(always)]
unsafe fn threshold<V: Vector, const GRID: u32>(
    count: usize,
    values: &[[f32; 64]],
    guess: &mut i32,
) -> f32 {
    let count = count as i32;
    // more than `count` values exceed `low`, at most `count` exceed `high`
    let (mut low, mut high) = (-1, (f32::INFINITY.to_bits() >> GRID) as i32);
    let mut middle = *guess;
    let mut steps = 0;
    while high - low > 1 {
        let mut larger = 0;
        for values in values {
            let bits = above(values, V::splat(f32::from_bits((middle as u32) << GRID)));
            larger += bits.count_ones() as i32;
        }
        if larger == count {
            high = middle;
            break;
        }
        (low, high) = if larger > count { (middle, high) } else { (low, middle) };
        // the first eight steps are proportional to the difference of the counts; later steps halve the range
        let next = middle.saturating_add((larger - count).clamp(-32, 32) << (20 - GRID));
        middle = if steps < 8 && low < next && next < high { next } else { low + (high - low) / 2 };
        steps += 1;
    }
    *guess = high;
    f32::from_bits((high as u32) << GRID)
}

/// The indices of the `count` largest `scores`, in increasing order. Ties go to the smaller index.
#[inline(always)]
unsafe fn choose<V: Vector>(
    count: usize,
    scores: &[f32; QK_K],
    guess: &mut i32,
) -> [u8; MAX_OUTLIERS] {
    let scores = scores.as_chunks().0;
    let threshold = threshold::<V, 0>(count, scores, guess);
    let mut bits = [0u64; QK_K / 64];
    let mut ties = count;
    for (bits, scores) in bits.iter_mut().zip(scores) {
        *bits = above(scores, V::splat(threshold));
        ties -= bits.count_ones() as usize;
    }
    if ties > 0 {
        for (i, score) in scores.as_flattened().iter().enumerate() {
            if *score == threshold && ties > 0 {
                bits[i / 64] |= 1 << (i % 64);
                ties -= 1;
            }
        }
    }
    let mut chosen = [0u8; MAX_OUTLIERS];
    let mut filled = 0;
    for (word, mut bits) in bits.into_iter().enumerate() {
        while bits != 0 {
            chosen[filled] = (64 * word) as u8 + bits.trailing_zeros() as u8;
            bits &= bits - 1;
            filled += 1;
        }
    }
    chosen
}

/// Sorts the 32 weights of every lane, but only those that can be at an end after [`DEPTH`] removals.
#[inline(always)]
unsafe fn sort_ends<V: Vector>(quants: *mut f32) {
    for &(i, j) in &NETWORK {
        // both are below 32.
        let (to_i, to_j) =
            (quants.add(usize::from(i) * V::LANES), quants.add(usize::from(j) * V::LANES));
        let (a, b) = (V::load(to_i), V::load(to_j));
        a.min(b).store(to_i);
        a.max(b).store(to_j);
    }
}

/// Pairs to compare and exchange: Batcher's odd-even merge sort of 32, without the pairs that only change the middle.
const NETWORK: [(u8, u8); NETWORK_LENGTH] = {
    let (all, keep, _) = network();
    let mut pairs = [(0, 0); NETWORK_LENGTH];
    let (mut i, mut filled) = (0, 0);
    while i < all.len() {
        if keep[i] {
            pairs[filled] = all[i];
            filled += 1;
        }
        i += 1;
    }
    pairs
};

const NETWORK_LENGTH: usize = network().2;

const fn network() -> ([(u8, u8); 191], [bool; 191], usize) {
    let mut all = [(0u8, 0u8); 191];
    let mut count = 0;
    let mut p = 1;
    while p < GROUP {
        let mut k = p;
        while k > 0 {
            let mut j = k % p;
            while j + k < GROUP {
                let mut i = 0;
                while i < k && i + j + k < GROUP {
                    if (i + j) / (2 * p) == (i + j + k) / (2 * p) {
                        all[count] = ((i + j) as u8, (i + j + k) as u8);
                        count += 1;
                    }
                    i += 1;
                }
                j += 2 * k;
            }
            k /= 2;
        }
        p *= 2;
    }
    assert!(count == 191);
    // backwards, so that all pairs that a needed output depends on are kept
    let mut keep = [false; 191];
    let mut needed = [false; GROUP];
    let mut i = 0;
    while i <= DEPTH {
        needed[i] = true;
        needed[GROUP - 1 - i] = true;
        i += 1;
    }
    let mut kept = 0;
    while count > 0 {
        count -= 1;
        let (a, b) = (all[count].0 as usize, all[count].1 as usize);
        if needed[a] || needed[b] {
            (needed[a], needed[b], keep[count]) = (true, true, true);
            kept += 1;
        }
    }
    (all, keep, kept)
}
