//! The searches for a block's scale and minimum that the formats share: the mathematics of ggml's
//! quantizers, and the oracle of every faster version.
//!
//! A fit minimises the weighted squared error `Σ w (value(q) - x)²` over a handful of candidate
//! grids. For each candidate the quants q are rounded first; the best scale (and minimum) for
//! those quants then has a closed form, weighted least squares.
//!
//! The order of every floating-point operation is part of the contract: it decides the bytes.
//! Nothing here may be reassociated or fused.

use crate::float::nearest_int;

/// Below this magnitude a group counts as all zero.
pub(crate) const TINY: f32 = 1e-15;

/// The candidate grids of [`fit_affine`]: `(first + step · i + levels) / (max - min)` for
/// i in 0..=`steps` are tried as inverse scales.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// The term of the first candidate.
    pub(crate) first: f32,
    /// The difference between candidates.
    pub(crate) step: f32,
    /// The number of candidates after the first.
    pub(crate) steps: u32,
    /// Whether a quant is clamped before it is rounded. The result differs only if a weight is millions of steps
    /// outside of the grid.
    pub(crate) clamp_first: bool,
    /// Whether the error is `Σ w |value(q) - x|` instead of a sum of squares.
    pub(crate) absolute: bool,
}

impl Search {
    /// With importance, for every type.
    pub const FINE: Self =
        Self { first: -0.9, step: 0.05, steps: 36, clamp_first: true, absolute: false };
    /// Q4_K without importance.
    pub const Q4_K: Self =
        Self { first: -1.0, step: 0.1, steps: 20, clamp_first: false, absolute: false };
    /// Q5_K without importance.
    pub const Q5_K: Self =
        Self { first: -0.5, step: 0.1, steps: 15, clamp_first: false, absolute: false };
    /// Q2_K without importance.
    pub const Q2_K: Self = Self { absolute: true, ..Self::Q5_K };
}

/// `value(q) = scale · q - min`, with `min` ≥ 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Distance between neighbouring values.
    pub scale: f32,
    /// What is subtracted: minus the value of q = 0.
    pub min: f32,
}

/// Fits `scale · q - min`, q in 0..=`levels`, to `x` under `weights`; writes q to `quants`.
///
/// The grid always contains a value ≤ 0: a positive minimum is moved to 0.
pub fn fit_affine(
    x: &[f32],
    weights: &[f32],
    levels: i32,
    search: Search,
    quants: &mut [u8],
) -> Affine {
    debug_assert!(x.len() == weights.len() && x.len() == quants.len() && x.len() <= 32);
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&v, &w) in x.iter().zip(weights).skip(1) {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
        sum_w += w;
        sum_x += w * v;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max <= min {
        quants.fill(0);
        return Affine { scale: 0.0, min: -min };
    }

    let round = |inverse: f32, v: f32, min: f32| nearest_int(inverse * (v - min)).clamp(0, levels);
    let error = |scale: f32, min: f32, quants: &[u8]| {
        let mut sum = 0.0f32;
        for ((&v, &w), &q) in x.iter().zip(weights).zip(quants) {
            let difference = scale * f32::from(q) + min - v;
            let error = if search.absolute { difference.abs() } else { difference * difference };
            sum += w * error;
        }
        sum
    };

    let inverse = levels as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    for (q, &v) in quants.iter_mut().zip(x) {
        *q = round(inverse, v, min) as u8;
    }
    let mut best = error(scale, min, quants);

    let mut candidate = [0u8; 32];
    let candidate = &mut candidate[..x.len()];
    for step in 0..=search.steps {
        // `min` is the best one so far: each grid begins at the minimum of the last improvement
        let inverse = (search.first + search.step * step as f32 + levels as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((q, &v), &w) in candidate.iter_mut().zip(x).zip(weights) {
            let rounded = if search.clamp_first {
                let position = inverse * (v - min);
                if position > 0.0 { nearest_int(position.min(levels as f32)) } else { 0 }
            } else {
                round(inverse, v, min)
            };
            *q = rounded as u8;
            let l = rounded as f32;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this_error = error(this_scale, this_min, candidate);
            if this_error < best {
                quants.copy_from_slice(candidate);
                (best, scale, min) = (this_error, this_scale, this_min);
            }
        }
    }
    Affine { scale, min: -min }
}

/// Fits `scale · q`, q in -`half`..`half`, to `x`; writes q + `half` to `quants`.
///
/// Without `weights`, x² are the weights. The extreme weight's sign decides the sign of the scale,
/// so that it may use the quant -`half`. Returns 0 for a group of zeros.
pub fn fit_signed(x: &[f32], weights: Option<&[f32]>, half: i32, quants: &mut [u8]) -> f32 {
    debug_assert!(x.len() == quants.len() && weights.is_none_or(|w| w.len() == x.len()));
    let Some(extreme) = signed_extreme(x) else {
        quants.fill(0);
        return 0.0;
    };

    let round = |inverse: f32, v: f32| nearest_int(inverse * v).clamp(-half, half - 1);
    let sums = |inverse: f32| {
        let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
        for (i, &v) in x.iter().enumerate() {
            let l = round(inverse, v) as f32;
            let w = weights.map_or(v * v, |w| w[i]);
            sum_xl += w * v * l;
            sum_l2 += w * l * l;
        }
        (sum_xl, sum_l2)
    };

    let mut chosen = -(half as f32) / extreme;
    let (sum_xl, sum_l2) = sums(chosen);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_xl / sum_l2 };
    let mut best = scale * sum_xl;
    for step in (-9..=9).filter(|&step| step != 0) {
        let inverse = -(half as f32 + 0.1 * step as f32) / extreme;
        let (sum_xl, sum_l2) = sums(inverse);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            chosen = inverse;
            scale = sum_xl / sum_l2;
            best = scale * sum_xl;
        }
    }
    for (q, &v) in quants.iter_mut().zip(x) {
        *q = (round(chosen, v) + half) as u8;
    }
    scale
}

/// The weight of largest magnitude with its sign; of several, the first. None if all are tiny.
fn signed_extreme(x: &[f32]) -> Option<f32> {
    let (mut magnitude, mut extreme) = (0.0f32, 0.0f32);
    for &v in x {
        if v.abs() > magnitude {
            magnitude = v.abs();
            extreme = v;
        }
    }
    if magnitude < TINY { None } else { Some(extreme) }
}

/// As [`fit_signed`] with x² as the weights, but on a single grid. Then single quants are changed as long as that
/// lowers the error, in at most five rounds.
pub fn fit_signed_by_moves(x: &[f32], half: i32, quants: &mut [u8]) -> f32 {
    debug_assert!(x.len() == quants.len());
    let Some(extreme) = signed_extreme(x) else {
        quants.fill(0);
        return 0.0;
    };
    let inverse = -(half as f32) / extreme;
    let clamp = |rounded: i32| rounded.clamp(-half, half - 1);
    let mut sums = MoveSums::default();
    for (q, &v) in quants.iter_mut().zip(x) {
        let rounded = clamp(nearest_int(inverse * v));
        *q = (rounded + half) as u8;
        sums.add(v * v, v, rounded as f32);
    }
    let weights = x.iter().map(|v| v * v);
    move_quants(x, weights, quants, half, clamp, |rest| rest.xl > 0.0, sums)
}

/// Sums over quants l. The best scale for them is `xl / l2`, and it lowers the error by `xl² / l2`.
#[derive(Debug, Clone, Copy, Default)]
struct MoveSums {
    /// `Σ w x l`
    xl: f32,
    /// `Σ w l²`
    l2: f32,
}

impl MoveSums {
    fn add(&mut self, w: f32, x: f32, l: f32) {
        self.xl += w * x * l;
        self.l2 += w * l * l;
    }
}

/// Changes single quants as long as that lowers the error, in at most five rounds. `offset` is added to stored quants.
/// A quant stays if `may_move` returns false for the sums over all other quants. Returns the best scale.
#[inline(always)]
fn move_quants(
    x: &[f32],
    weights: impl Iterator<Item = f32> + Clone,
    quants: &mut [u8],
    offset: i32,
    clamp: impl Fn(i32) -> i32,
    may_move: impl Fn(&MoveSums) -> bool,
    mut sums: MoveSums,
) -> f32 {
    for _ in 0..5 {
        let mut changed = false;
        for ((q, &v), w) in quants.iter_mut().zip(x).zip(weights.clone()) {
            let old = i32::from(*q) - offset;
            let l = old as f32;
            let mut other = MoveSums { xl: sums.xl - w * v * l, l2: sums.l2 - w * l * l };
            if !may_move(&other) {
                continue;
            }
            let rounded = clamp(nearest_int(v * other.l2 / other.xl));
            if rounded == old {
                continue;
            }
            other.add(w, v, rounded as f32);
            let better = other.xl * other.xl * sums.l2 > sums.xl * sums.xl * other.l2;
            if other.l2 > 0.0 && better {
                *q = (rounded + offset) as u8;
                sums = other;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    if sums.l2 > 0.0 { sums.xl / sums.l2 } else { 0.0 }
}

/// Fits `scale · q`, q in 0..=`levels`, to the non-negative `x` under `weights`; writes q to
/// `quants`. Used for the scales and minima of a K-quant block's sub-blocks.
///
/// After the search over grids, single quants are changed as long as that lowers the error, in at most five rounds.
pub fn fit_positive(x: &[f32], weights: &[f32], levels: i32, quants: &mut [u8]) -> f32 {
    debug_assert!(x.len() == weights.len() && x.len() == quants.len());
    let max = x.iter().fold(0.0f32, |m, &v| if m > v { m } else { v });
    if max < TINY {
        quants.fill(0);
        return 0.0;
    }

    let error = |inverse: f32, rounded: &dyn Fn(f32) -> f32| {
        let scale = 1.0 / inverse;
        let mut sum = 0.0f32;
        for (&v, &w) in x.iter().zip(weights) {
            let difference = v - scale * rounded(inverse * v);
            sum += w * difference * difference;
        }
        sum
    };

    let mut chosen = levels as f32 / max;
    // the quants of the first grid are converted to bytes without clamping, as in ggml
    let mut best = error(chosen, &|v| f32::from(nearest_int(v) as u8));
    for step in (-4..=4).filter(|&step| step != 0) {
        let inverse = (0.1 * step as f32 + levels as f32) / max;
        let this = error(inverse, &|v| nearest_int(v).min(levels) as f32);
        if this < best {
            best = this;
            chosen = inverse;
        }
    }

    let mut sums = MoveSums::default();
    for ((q, &v), &w) in quants.iter_mut().zip(x).zip(weights) {
        let rounded = nearest_int(chosen * v).min(levels);
        *q = rounded as u8;
        sums.add(w, v, rounded as f32);
    }
    let may_move = |rest: &MoveSums| rest.xl > 0.0 && rest.l2 > 0.0;
    let weights = weights.iter().copied();
    move_quants(x, weights, quants, 0, |rounded| rounded.min(levels), may_move, sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values on a grid come back exactly: scale, minimum and quants.
    #[test]
    fn an_affine_grid_is_found() {
        let quants: [u8; 32] = std::array::from_fn(|i| (i * 7 % 16) as u8);
        let x = quants.map(|q| 0.25 * f32::from(q) - 1.5);
        let mut found = [0u8; 32];
        let fit = fit_affine(&x, &[1.0; 32], 15, Search::FINE, &mut found);
        assert_eq!((fit.scale, fit.min, found), (0.25, 1.5, quants));
    }

    #[test]
    fn a_positive_minimum_becomes_zero() {
        let x: [f32; 32] = std::array::from_fn(|i| 5.0 + i as f32 / 32.0);
        let fit = fit_affine(&x, &[1.0; 32], 15, Search::Q4_K, &mut [0; 32]);
        assert_eq!(fit.min, 0.0);
        assert!((fit.scale * 15.0 - 6.0).abs() < 0.5, "{fit:?}");
    }

    #[test]
    fn constants_and_zeros_are_exact() {
        for value in [0.0, -3.25] {
            let mut quants = [9u8; 32];
            let fit = fit_affine(&[value; 32], &[1.0; 32], 15, Search::Q4_K, &mut quants);
            assert_eq!((fit.scale, fit.min, quants), (0.0, -value, [0; 32]));
        }
        let mut quants = [9u8; 16];
        assert_eq!(fit_signed(&[0.0; 16], None, 32, &mut quants), 0.0);
        assert_eq!(quants, [0; 16]);
        let mut quants = [9u8; 16];
        assert_eq!(fit_signed_by_moves(&[0.0; 16], 4, &mut quants), 0.0);
        assert_eq!(quants, [0; 16]);
        let mut quants = [9u8; 8];
        assert_eq!(fit_positive(&[0.0; 8], &[1.0; 8], 63, &mut quants), 0.0);
        assert_eq!(quants, [0; 8]);
    }

    /// The extreme weight takes the quant -half, so its sign decides that of the scale.
    #[test]
    fn a_signed_grid_is_found_with_either_sign() {
        for sign in [1.0f32, -1.0] {
            let x: [f32; 16] = std::array::from_fn(|i| sign * (i as f32 - 8.0));
            let mut quants = [0u8; 16];
            let scale = fit_signed(&x, Some(&[1.0; 16]), 8, &mut quants);
            assert_eq!(scale, sign);
            assert_eq!(quants, std::array::from_fn(|i| i as u8));
        }
    }

    /// Moving quants never raises the error under x², and here lowers it.
    #[test]
    fn moves_lower_the_error() {
        let x = [[-4.0, 1.55, 1.55, 2.55], [2.55, 0.55, 0.55, 0.55], [3.49; 4], [3.49; 4]].concat();
        let error = |scale: f32, quants: &[u8]| {
            let terms = x.iter().zip(quants);
            terms.map(|(v, &q)| (v * (scale * (f32::from(q) - 4.0) - v)).powi(2)).sum::<f32>()
        };
        let mut quants = [0u8; 16];
        let scale = fit_signed_by_moves(&x, 4, &mut quants);
        let inverse = -4.0 / signed_extreme(&x).unwrap();
        let plain: Vec<u8> =
            x.iter().map(|v| (nearest_int(inverse * v).clamp(-4, 3) + 4) as u8).collect();
        assert_ne!(quants.as_slice(), plain);
        assert!(error(scale, &quants) < 0.2 * error(1.0 / inverse, &plain));
    }

    /// A weight on one index makes that quant exact at the others' cost.
    #[test]
    fn weights_decide() {
        let x: [f32; 16] = std::array::from_fn(|i| (i as f32 * 0.7).sin());
        let error_at = |index: usize, weights: &[f32]| {
            let mut quants = [0u8; 16];
            let scale = fit_signed(&x, Some(weights), 8, &mut quants);
            (scale * (f32::from(quants[index]) - 8.0) - x[index]).abs()
        };
        let mut heavy = [1.0; 16];
        heavy[5] = 1e6;
        assert!(error_at(5, &heavy) < 1e-3 && error_at(5, &heavy) <= error_at(5, &[1.0; 16]));
    }

    #[test]
    fn scales_of_sub_blocks_are_fitted_within_half_a_step() {
        let x = [0.01, 0.5, 0.93, 1.0, 0.2, 0.0, 0.77, 0.31];
        let mut quants = [0u8; 8];
        let scale = fit_positive(&x, &[1.0; 8], 63, &mut quants);
        for (v, q) in x.iter().zip(quants) {
            assert!((scale * f32::from(q) - v).abs() <= 0.51 * scale, "{v} -> {q}");
        }
    }
}
