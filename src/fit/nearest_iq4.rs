//! The nearest of the sixteen values of IQ4, for every lane of a vector.
//!
//! A quadratic in the weight's position tells which two values it may be, because it is within half of k at the
//! k-th of the places where the nearest value changes, and a table has that place. So a search is two look-ups and
//! one comparison.

use super::iq4::MIDDLES;
use crate::block::iq4::FLOATS;
use crate::float::ROUNDING;
use crate::simd::Vector;

/// The nearest value changes at the k-th place about where `position · (SLOPE - BEND · |position|)` is
/// k - [`FIRST`], for positions in [`LOW`]..=[`HIGH`]. Beyond these it does not change any more.
const SLOPE: f32 = 0.09;
const BEND: f32 = 0.00023;
const FIRST: f32 = 7.0;
const LOW: f32 = -117.0;
const HIGH: f32 = 104.0;
/// A number of this size is whole, and its lowest bits are those of what was added to it.
pub(crate) const WHOLE: f32 = ROUNDING;

/// Where the nearest value changes; there is no sixteenth place.
const PLACES: [f32; 16] = {
    let mut places = [0f32; 16];
    let mut i = 0;
    while i < MIDDLES.len() {
        places[i] = MIDDLES[i];
        i += 1;
    }
    places
};

/// The vector version of [`crate::block::iq4::nearest`], with [`WHOLE`] added.
#[inline(always)]
pub(crate) unsafe fn nearest<V: Vector>(position: V) -> V {
    // in this order NaN becomes the last
    let position = position.min(V::splat(HIGH)).max(V::splat(LOW));
    let slope = position.abs().mul_add(V::splat(-BEND), V::splat(SLOPE));
    let place = position.mul_add(slope, V::splat(WHOLE + FIRST));
    let is_below = position.lt(V::look_up(&PLACES, place));
    place.add(V::select(is_below, V::splat(0.0), V::splat(1.0)))
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
    // what is added leaves the quant in the lowest bits.
    V::look_up(&FLOATS, quants.add(V::splat(8_388_608.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::iq4;

    /// The table of places is right everywhere: whichever of two neighbours the quadratic tells, and
    /// far enough from telling a third that rounding it does not matter.
    #[test]
    fn the_quadratic_tells_the_two_values() {
        let mut position = LOW;
        while position <= HIGH {
            let number = i32::from(iq4::nearest(position));
            for error in [-1e-3, 0.0, 1e-3] {
                let place = position * (SLOPE - BEND * position.abs()) + FIRST + error;
                let place = place.round_ties_even() as i32;
                assert!(place == number || place == number - 1, "{position}: {place} for {number}");
                assert!((0..MIDDLES.len() as i32).contains(&place), "{position}: {place}");
            }
            position += 1.0 / 1024.0;
        }
        assert_eq!((iq4::nearest(LOW), iq4::nearest(HIGH)), (0, 15));
    }
}
