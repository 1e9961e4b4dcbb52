//! IQ4_NL and IQ4_XS: their encoders, every lane a group of 32 weights, and their decoders.
//!
//! The encoder tries sixteen grids, and under each of them seeks the nearest of sixteen values for
//! every weight. A quadratic in the weight's position tells which two values it may be, because it is
//! within half of k at the k-th of the places where the nearest value changes, and a table has that
//! place. So a search is two look-ups and one comparison.

use super::dot::{f16_to_f32, nibbles_32};
use super::vector::{InLanes, MOST_LANES as MOST, Vector};
use crate::block::iq4::{MIDDLES, MOST_STEPS, VALUES, sigma2};
use crate::block::iq4_xs::SUB_BLOCKS;
use crate::block::legacy::{inverse, pack_nibbles};
use crate::block::{BlockIQ4NL, BlockIQ4XS, QK, QK_K};
use crate::fit::TINY;
use std::arch::x86_64::*;

/// The nearest value changes at the k-th place about where `position · (SLOPE - BEND · |position|)` is
/// k - [`FIRST`], for positions in [`LOW`]..=[`HIGH`]. Beyond these it does not change any more.
const SLOPE: f32 = 0.09;
const BEND: f32 = 0.00023;
const FIRST: f32 = 7.0;
const LOW: f32 = -117.0;
const HIGH: f32 = 104.0;
/// A number of this size is whole, and its lowest bits are those of what was added to it.
const WHOLE: f32 = 12_582_912.0;

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

/// What the numbers stand for.
pub(super) const FLOATS: [f32; 16] = {
    let mut floats = [0f32; 16];
    let mut i = 0;
    while i < 16 {
        floats[i] = VALUES[i] as f32;
        i += 1;
    }
    floats
};

/// The vector version of [`crate::block::iq4::nearest`], with [`WHOLE`] added.
#[inline(always)]
unsafe fn nearest<V: Vector>(position: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        // in this order NaN becomes the last
        let position = position.min(V::splat(HIGH)).max(V::splat(LOW));
        let slope = position.abs().mul_add(V::splat(-BEND), V::splat(SLOPE));
        let place = position.mul_add(slope, V::splat(WHOLE + FIRST));
        let is_below = position.lt(V::look_up(&PLACES, place));
        place.add(V::select(is_below, V::splat(0.0), V::splat(1.0)))
    }
}

/// The value nearest to each `position`.
#[inline(always)]
pub(super) unsafe fn nearest_value<V: Vector>(position: V) -> V {
    // SAFETY: the caller's promise.
    unsafe { V::look_up(&FLOATS, nearest(position)) }
}

/// Groups of 32 weights in lanes: element `i` of the group in lane `l` is `x[i * V::LANES + l]`, its
/// weight likewise in `w`.
struct Groups {
    x: InLanes<QK>,
    w: InLanes<QK>,
}

impl Groups {
    /// Takes in groups, at most as many as there are lanes, whose block's sigma2 is given.
    #[inline(always)]
    unsafe fn new<V: Vector>(
        x: &[[f32; QK]],
        importance: Option<&[[f32; QK]]>,
        sigma2: &[f32; MOST],
    ) -> Self {
        let (mut groups, mut copy) =
            (Self { x: InLanes::new(), w: InLanes::new() }, [[0f32; QK]; MOST]);
        // SAFETY: the caller's promise; the arrays have room for the most lanes.
        unsafe {
            V::transpose(filled::<V>(x, &mut copy), QK, groups.x.as_mut_ptr());
            if let Some(importance) = importance {
                V::transpose(filled::<V>(importance, &mut copy), QK, groups.w.as_mut_ptr());
            }
            let sigma2 = V::load(sigma2.as_ptr());
            for i in (0..QK * V::LANES).step_by(V::LANES) {
                let v = V::load(groups.x.as_ptr().add(i));
                let mut w = v.mul(v);
                if importance.is_some() {
                    w = V::load(groups.w.as_ptr().add(i)).mul(sigma2.add(w).sqrt());
                }
                w.store(groups.w.as_mut_ptr().add(i));
            }
        }
        groups
    }

    /// `Σ w q x` and `Σ w q²` for the values q under `inverse`.
    #[inline(always)]
    unsafe fn sums<V: Vector>(&self, inverse: V) -> (V, V) {
        // SAFETY: the caller's promise.
        unsafe {
            let (mut sum_qx, mut sum_q2) = (V::splat(0.0), V::splat(0.0));
            for i in (0..QK * V::LANES).step_by(V::LANES) {
                let v = V::load(self.x.as_ptr().add(i));
                let q = nearest_value(inverse.mul(v));
                let wq = V::load(self.w.as_ptr().add(i)).mul(q);
                sum_qx = sum_qx.add(wq.mul(v));
                sum_q2 = sum_q2.add(wq.mul(q));
            }
            (sum_qx, sum_q2)
        }
    }

    /// The vector version of [`crate::block::iq4::fit_scale`].
    #[inline(always)]
    unsafe fn fit_scales<V: Vector>(&self) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let zero = V::splat(0.0);
            let (mut magnitude, mut extreme) = (zero, zero);
            for i in (0..QK * V::LANES).step_by(V::LANES) {
                let v = V::load(self.x.as_ptr().add(i));
                let larger = magnitude.lt(v.abs());
                magnitude = V::select(larger, v.abs(), magnitude);
                extreme = V::select(larger, v, extreme);
            }
            let lowest = i32::from(VALUES[0]);
            let (sum_qx, sum_q2) =
                self.sums(V::splat(1.0).div(extreme.div(V::splat(-lowest as f32))));
            let mut scale = V::select(zero.lt(sum_q2), sum_qx.div(sum_q2), zero);
            let mut best = scale.mul(sum_qx);
            for step in -MOST_STEPS..=MOST_STEPS {
                let (sum_qx, sum_q2) = self.sums(V::splat((step + lowest) as f32).div(extreme));
                let gain = best.mul(sum_q2).lt(sum_qx.mul(sum_qx));
                let better = V::and(zero.lt(sum_q2), gain);
                let this_scale = sum_qx.div(sum_q2);
                scale = V::select(better, this_scale, scale);
                best = V::select(better, this_scale.mul(sum_qx), best);
            }
            V::select(magnitude.lt(V::splat(TINY)), zero, scale)
        }
    }
}

/// `groups`, or where they are too few for the vector a copy that others follow.
#[inline(always)]
fn filled<V: Vector>(groups: &[[f32; QK]], copy: &mut [[f32; QK]; MOST]) -> *const f32 {
    if groups.len() == V::LANES {
        return groups.as_ptr().cast();
    }
    copy[..groups.len()].copy_from_slice(groups);
    copy.as_ptr().cast()
}

/// The scales that fit groups best, at most as many as there are lanes.
///
/// # Safety
///
/// The CPU has V's ISA; so below.
#[inline(always)]
unsafe fn fit_scales<V: Vector>(
    x: &[[f32; QK]],
    importance: Option<&[[f32; QK]]>,
    sigma2: &[f32; MOST],
) -> [f32; MOST] {
    let mut scales = [0f32; MOST];
    // SAFETY: the caller's promise.
    unsafe { Groups::new::<V>(x, importance, sigma2).fit_scales::<V>().store(scales.as_mut_ptr()) };
    scales
}

/// The numbers of 32 weights under an inverse scale, packed.
#[inline(always)]
unsafe fn pack<V: Vector>(x: &[f32; QK], inverse: f32) -> [u8; QK / 2] {
    let mut numbers = [0u8; QK];
    for i in (0..QK).step_by(V::LANES) {
        // SAFETY: the caller's promise; LANES divides 32.
        unsafe {
            let q = nearest(V::splat(inverse).mul(V::load(x.as_ptr().add(i))));
            q.sub(V::splat(WHOLE)).store_bytes(i32::MAX, numbers.as_mut_ptr().add(i));
        }
    }
    pack_nibbles(&numbers)
}

/// The vector version of IQ4_NL's encoder, for a row.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_nl<V: Vector>(
    x: &[[f32; QK]],
    importance: Option<&[[f32; QK]]>,
    out: &mut [BlockIQ4NL],
) {
    for (i, (x, out)) in x.chunks(V::LANES).zip(out.chunks_mut(V::LANES)).enumerate() {
        let importance = importance.map(|w| &w[i * V::LANES..][..x.len()]);
        let mut sigma2s = [0f32; MOST];
        if importance.is_some() {
            for (sigma2s, x) in sigma2s.iter_mut().zip(x) {
                *sigma2s = sigma2(x);
            }
        }
        // SAFETY: the caller's promise.
        unsafe {
            let scales = fit_scales::<V>(x, importance, &sigma2s);
            for ((out, x), scale) in out.iter_mut().zip(x).zip(scales) {
                *out = BlockIQ4NL::new(scale, pack::<V>(x, inverse(scale)));
            }
        }
    }
}

/// The vector version of IQ4_XS's encoder, for a row.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_xs<V: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    out: &mut [BlockIQ4XS],
) {
    let blocks = V::LANES / SUB_BLOCKS;
    for (i, (x, out)) in x.chunks(blocks).zip(out.chunks_mut(blocks)).enumerate() {
        let importance = importance.map(|w| &w[i * blocks..][..x.len()]);
        let mut sigma2s = [0f32; MOST];
        if importance.is_some() {
            for (sigma2s, x) in sigma2s.chunks_exact_mut(SUB_BLOCKS).zip(x) {
                sigma2s.fill(sigma2(x));
            }
        }
        let groups = x.as_flattened().as_chunks::<QK>().0;
        let importance = importance.map(|w| w.as_flattened().as_chunks::<QK>().0);
        // SAFETY: the caller's promise.
        unsafe {
            let scales = fit_scales::<V>(groups, importance, &sigma2s);
            let parts = groups.chunks_exact(SUB_BLOCKS).zip(scales.as_chunks::<SUB_BLOCKS>().0);
            for (out, (x, scales)) in out.iter_mut().zip(parts) {
                let (block, inverses) = BlockIQ4XS::with_scales(scales);
                *out = block;
                for (qs, (x, inverse)) in out.qs.iter_mut().zip(x.iter().zip(inverses)) {
                    *qs = pack::<V>(x, inverse);
                }
            }
        }
    }
}

/// What 32 numbers stand for in a table of bytes.
///
/// # Safety
///
/// The CPU has AVX2 and F16C; so below.
#[inline(always)]
pub(super) unsafe fn look_up(table: &[u8; 16], qs: &[u8; QK / 2]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        _mm256_shuffle_epi8(table, nibbles_32(qs))
    }
}

/// As bytes in memory.
#[inline(always)]
pub(super) unsafe fn look_up_bytes(table: &[u8; 16], qs: &[u8; QK / 2]) -> [u8; QK] {
    let mut values = [0u8; QK];
    // SAFETY: the caller's promise.
    unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), look_up(table, qs)) };
    values
}

/// [`VALUES`] as bytes.
pub(super) const BYTES: [u8; 16] = {
    let mut bytes = [0u8; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = VALUES[i] as u8;
        i += 1;
    }
    bytes
};

/// Decodes numbers under their scale.
#[inline(always)]
unsafe fn decode(scale: f32, qs: &[u8; QK / 2], out: &mut [f32]) {
    // SAFETY: the caller's promise.
    let values = unsafe { look_up_bytes(&BYTES, qs) };
    for (y, v) in out.iter_mut().zip(values) {
        *y = scale * f32::from(v as i8);
    }
}

/// The vector version of IQ4_NL's decoder.
#[inline(always)]
pub(crate) unsafe fn dequantize_nl(blocks: &[BlockIQ4NL], out: &mut [f32]) {
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(QK)) {
        // SAFETY: the caller's promise.
        unsafe { decode(f16_to_f32(u16::from_le_bytes(block.d)), &block.qs, out) };
    }
}

/// The vector version of IQ4_XS's decoder.
#[inline(always)]
pub(crate) unsafe fn dequantize_xs(blocks: &[BlockIQ4XS], out: &mut [f32]) {
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(QK_K)) {
        // SAFETY: the caller's promise.
        let d = unsafe { f16_to_f32(u16::from_le_bytes(block.d)) };
        for (j, (qs, out)) in block.qs.iter().zip(out.chunks_exact_mut(QK)).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { decode(d * block.scale(j) as f32, qs, out) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::iq4;

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
