//! The nearest of the sixteen values of IQ4, for every lane of a vector.
//!
//! The nearest value changes at fifteen thresholds, the middles between values. A quadratic function of the position
//! is within a half of k at the k-th threshold. Rounded, it leaves two values to choose from, and a table has the
//! threshold between them. So a search is two look-ups and one comparison.

use super::iq4::MIDDLES;
use crate::block::iq4::FLOATS;
use crate::float::ROUNDING;
use crate::simd::Vector;

/// The nearest value changes at the k-th threshold, about where `position · (SLOPE - BEND · |position|)` is
/// k - [`FIRST`], for positions in [`LOW`]..=[`HIGH`]. Beyond these it does not change any more.
const SLOPE: f32 = 0.09;
const BEND: f32 = 0.00023;
const FIRST: f32 = 7.0;
const LOW: f32 = -117.0;
const HIGH: f32 = 104.0;
/// Floats of this size are integers. The sum of it and a quant has the quant in its lowest bits.
pub(crate) const WHOLE: f32 = ROUNDING;

/// The thresholds, and 0 as the sixteenth, which is never used.
const THRESHOLDS: [f32; 16] = {
    let mut thresholds = [0f32; 16];
    let mut i = 0;
    while i < MIDDLES.len() {
        thresholds[i] = MIDDLES[i];
        i += 1;
    }
    thresholds
};

/// The vector version of [`super::iq4::nearest`]. [`WHOLE`] is added to the quants.
#[inline(always)]
pub(crate) unsafe fn nearest<V: Vector>(position: V) -> V {
    // min before max, so that NaN becomes HIGH, whose quant is the last
    let position = position.min(V::splat(HIGH)).max(V::splat(LOW));
    let slope = position.abs().mul_add(V::splat(-BEND), V::splat(SLOPE));
    let index = position.mul_add(slope, V::splat(WHOLE + FIRST));
    let is_below = position.lt(V::look_up(&THRESHOLDS, index));
    index.add(V::select(is_below, V::splat(0.0), V::splat(1.0)))
}

/// The value nearest to each `position`.
#[inline(always)]
pub(crate) unsafe fn nearest_value<V: Vector>(position: V) -> V {
    V::look_up(&FLOATS, nearest(position))
}

/// The value for the quant in each lane.
///
/// # Safety
///
/// The CPU has V's instruction set.
#[inline(always)]
pub(crate) unsafe fn value_of<V: Vector>(quants: V) -> V {
    // the sum has the quant in its lowest bits.
    V::look_up(&FLOATS, quants.add(V::splat(8_388_608.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::iq4;

    /// The table of thresholds is right everywhere: the quadratic always leaves the nearest value among the two, and is
    /// far enough from another that rounding it does not matter.
    #[test]
    fn the_quadratic_leaves_the_nearest_value() {
        let mut position = LOW;
        while position <= HIGH {
            let number = i32::from(iq4::nearest(position));
            for error in [-1e-3, 0.0, 1e-3] {
                let index = position * (SLOPE - BEND * position.abs()) + FIRST + error;
                let index = index.round_ties_even() as i32;
                assert!(index == number || index == number - 1, "{position}: {index} for {number}");
                assert!((0..MIDDLES.len() as i32).contains(&index), "{position}: {index}");
            }
            position += 1.0 / 1024.0;
        }
        assert_eq!((iq4::nearest(LOW), iq4::nearest(HIGH)), (0, 15));
    }
}
