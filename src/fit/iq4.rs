//! The encoders of IQ4_NL and IQ4_XS: the search for the scale of 32 weights.

use super::encode::{Encode, for_each_block};
use super::search::TINY;
use crate::block::iq4::VALUES;
use crate::block::iq4_xs::SUB_BLOCKS;
use crate::block::legacy::pack_nibbles;
use crate::block::{BlockIQ4NL, BlockIQ4XS, QK, QK_K};
use crate::float::{inverse, nearest_int};

impl Encode for BlockIQ4NL {
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        for (i, (block, x)) in out.iter_mut().zip(x.as_chunks::<QK>().0).enumerate() {
            let importance = importance.map(|w| &w[i * QK..]);
            let scale = fit_scale(x, &weights(x, importance, sigma2(x)));
            *block = Self::new(scale, pack_nibbles(&quants(x, inverse(scale))));
        }
    }
}

impl Encode for BlockIQ4XS {
    fn quantize_row(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
        for_each_block(x, importance, out, Self::quantize);
    }
}

impl BlockIQ4XS {
    /// Encodes a block, with importance or x² as the weights of the fit.
    pub fn quantize(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Self {
        let (parts, sigma2) = (x.as_chunks::<QK>().0, sigma2(x));
        let fitted = std::array::from_fn(|j| {
            let importance = importance.map(|w| &w[j * QK..]);
            fit_scale(&parts[j], &weights(&parts[j], importance, sigma2))
        });
        let (mut block, inverses) = Self::with_scales(&fitted);
        for (qs, (x, inverse)) in block.qs.iter_mut().zip(parts.iter().zip(inverses)) {
            *qs = pack_nibbles(&quants(x, inverse));
        }
        block
    }

    /// A block with the scales of its sub-blocks rounded to six bits, and 1 / each stored scale, for rounding the
    /// quants.
    #[inline(always)]
    pub(crate) fn with_scales(fitted: &[f32; SUB_BLOCKS]) -> (Self, [f32; SUB_BLOCKS]) {
        // Squares that overflow give NaN, which is stored like 0. This is explicit, because valgrind's
        // maximum instruction handles NaN differently.
        let fitted = fitted.map(|scale| if scale.is_nan() { 0.0 } else { scale });
        let (mut magnitude, mut extreme) = (0.0f32, 0.0f32);
        for scale in fitted {
            if scale.abs() > magnitude {
                magnitude = scale.abs();
                extreme = scale;
            }
        }
        let d = -extreme / 32.0;
        let id = inverse(d);
        let scales = fitted.map(|scale| nearest_int(id * scale).clamp(-32, 31));
        (Self::new(d, &scales), scales.map(|scale| inverse(d * scale as f32)))
    }
}

/// The middles between neighbouring values, where the nearest value changes. All are multiples of a half. So a
/// comparison with a middle gives the same result as a comparison of the distances to both values.
pub(crate) const MIDDLES: [f32; 15] = {
    let mut middles = [0f32; 15];
    let mut i = 0;
    while i < middles.len() {
        middles[i] = (VALUES[i] as f32 + VALUES[i + 1] as f32) / 2.0;
        i += 1;
    }
    middles
};

/// The grids that are tried put the extreme weight at the lowest value + step, for steps in
/// -`MOST_STEPS`..=`MOST_STEPS`.
pub(crate) const MOST_STEPS: i32 = 7;

/// The quant whose value is nearest to `position`; of two, the larger quant. NaN gives the last.
#[inline(always)]
pub(crate) fn nearest(position: f32) -> u8 {
    MIDDLES.partition_point(|&middle| position >= middle || position.is_nan()) as u8
}

/// The quants of 32 weights for an inverse scale.
#[inline(always)]
pub(crate) fn quants(x: &[f32; QK], inverse: f32) -> [u8; QK] {
    let mut quants = [0u8; QK];
    for middle in MIDDLES {
        // as in `nearest`, but without a branch, because no CPU could predict it
        for (q, &v) in quants.iter_mut().zip(x) {
            let position = inverse * v;
            *q += u8::from(position >= middle || position.is_nan());
        }
    }
    quants
}

/// The weights of the fit: importance · √(`sigma2` + x²), or x² without importance.
#[inline(always)]
fn weights(x: &[f32; QK], importance: Option<&[f32]>, sigma2: f32) -> [f32; QK] {
    std::array::from_fn(|i| match importance {
        Some(importance) => importance[i] * (sigma2 + x[i] * x[i]).sqrt(),
        None => x[i] * x[i],
    })
}

/// Twice the mean square of a block, added up in order.
#[inline(always)]
pub(crate) fn sigma2(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, v| sum + v * v) * (2.0 / x.len() as f32)
}

/// The scale with the least error for 32 weights; 0 for zeros.
///
/// For each grid, the quants are rounded. Then the best scale for these quants is the least-squares solution.
/// In the first grid, the extreme weight is at minus the lowest value.
fn fit_scale(x: &[f32; QK], weights: &[f32; QK]) -> f32 {
    let (mut magnitude, mut extreme) = (0.0f32, 0.0f32);
    for &v in x {
        if v.abs() > magnitude {
            magnitude = v.abs();
            extreme = v;
        }
    }
    if magnitude < TINY {
        return 0.0;
    }

    let sums = |inverse: f32| {
        let (mut sum_qx, mut sum_q2) = (0.0f32, 0.0f32);
        for (&v, &w) in x.iter().zip(weights) {
            let q = f32::from(VALUES[usize::from(nearest(inverse * v))]);
            sum_qx += w * q * v;
            sum_q2 += w * q * q;
        }
        (sum_qx, sum_q2)
    };

    let lowest = i32::from(VALUES[0]);
    let (sum_qx, sum_q2) = sums(1.0 / (-extreme / lowest as f32));
    let mut scale = if sum_q2 > 0.0 { sum_qx / sum_q2 } else { 0.0 };
    let mut best = scale * sum_qx;
    for step in -MOST_STEPS..=MOST_STEPS {
        let (sum_qx, sum_q2) = sums((step + lowest) as f32 / extreme);
        if sum_q2 > 0.0 && sum_qx * sum_qx > best * sum_q2 {
            scale = sum_qx / sum_q2;
            best = scale * sum_qx;
        }
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the distances themselves.
    fn nearest_by_distance(position: f32) -> u8 {
        let value = |i: usize| f32::from(VALUES[i]);
        let above = (1..15).find(|&i| position < value(i)).unwrap_or(15);
        let lower = position - value(above - 1) < value(above) - position;
        (above - usize::from(lower)) as u8
    }

    #[test]
    fn the_nearest_value_is_found_up_to_ties() {
        for (i, middle) in MIDDLES.into_iter().enumerate() {
            assert_eq!(nearest(middle.next_down()), i as u8);
            assert_eq!(nearest(middle), i as u8 + 1);
        }
        let mut position = -140f32;
        while position < 140.0 {
            assert_eq!(nearest(position), nearest_by_distance(position), "{position}");
            position += 0.001;
        }
        for middle in MIDDLES {
            let mut position = middle;
            for _ in 0..100 {
                position = position.next_down();
            }
            for _ in 0..200 {
                assert_eq!(nearest(position), nearest_by_distance(position), "{position}");
                position = position.next_up();
            }
        }
        assert_eq!((nearest(f32::NEG_INFINITY), nearest(f32::INFINITY)), (0, 15));
        assert_eq!(nearest(f32::NAN), 15);
    }

    /// Weights on a grid come back exactly, whatever the sign of the scale.
    #[test]
    fn a_grid_is_found() {
        for sign in [0.25f32, -0.25] {
            let x: [f32; QK] = std::array::from_fn(|i| sign * f32::from(VALUES[i * 5 % 16]));
            let scale = fit_scale(&x, &[1.0; QK]);
            assert_eq!(scale, sign);
            assert_eq!(quants(&x, 1.0 / scale), std::array::from_fn(|i| (i * 5 % 16) as u8));
        }
        assert_eq!(fit_scale(&[0.0; QK], &[1.0; QK]), 0.0);
    }
}
