//! The encoders of IQ4_NL and IQ4_XS, one group of 32 weights per lane.

use super::ranges::filled;
use crate::block::iq4::VALUES;
use crate::block::iq4_xs::SUB_BLOCKS;
use crate::block::legacy::pack_nibbles;
use crate::block::{BlockIQ4NL, BlockIQ4XS, QK, QK_K};
use crate::fit::iq4::{MOST_STEPS, sigma2};
use crate::fit::nearest_iq4::{WHOLE, nearest, nearest_value};
use crate::fit::search::TINY;
use crate::float::inverse;
use crate::simd::{InLanes, MOST_LANES as MOST, Vector};

/// Groups of 32 weights in lanes: element `i` of the group in lane `l` is `x[i * V::LANES + l]`, its
/// weight likewise in `w`.
struct Groups {
    x: InLanes<QK>,
    w: InLanes<QK>,
}

impl Groups {
    /// Sets the groups, at most one per lane. `sigma2` has twice the mean square of the block, for each lane.
    #[inline(always)]
    unsafe fn new<V: Vector>(
        x: &[[f32; QK]],
        importance: Option<&[[f32; QK]]>,
        sigma2: &[f32; MOST],
    ) -> Self {
        let (mut groups, mut copy) =
            (Self { x: InLanes::new(), w: InLanes::new() }, [[0f32; QK]; MOST]);
        // the arrays have room for MOST_LANES lanes.
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
        groups
    }

    /// `Σ w q x` and `Σ w q²` for the values q that are nearest to x · `inverse`.
    #[inline(always)]
    unsafe fn sums<V: Vector>(&self, inverse: V) -> (V, V) {
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

    /// The vector version of [`crate::fit::iq4::fit_scale`].
    #[inline(always)]
    unsafe fn fit_scales<V: Vector>(&self) -> V {
        let zero = V::splat(0.0);
        let (mut magnitude, mut extreme) = (zero, zero);
        for i in (0..QK * V::LANES).step_by(V::LANES) {
            let v = V::load(self.x.as_ptr().add(i));
            let larger = magnitude.lt(v.abs());
            magnitude = V::select(larger, v.abs(), magnitude);
            extreme = V::select(larger, v, extreme);
        }
        let lowest = i32::from(VALUES[0]);
        let (sum_qx, sum_q2) = self.sums(V::splat(1.0).div(extreme.div(V::splat(-lowest as f32))));
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

/// The best scales of groups, at most one group per lane.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
unsafe fn fit_scales<V: Vector>(
    x: &[[f32; QK]],
    importance: Option<&[[f32; QK]]>,
    sigma2: &[f32; MOST],
) -> [f32; MOST] {
    let mut scales = [0f32; MOST];
    Groups::new::<V>(x, importance, sigma2).fit_scales::<V>().store(scales.as_mut_ptr());
    scales
}

/// The quants of 32 weights for an inverse scale, packed.
#[inline(always)]
unsafe fn pack<V: Vector>(x: &[f32; QK], inverse: f32) -> [u8; QK / 2] {
    let mut quants = [0u8; QK];
    for i in (0..QK).step_by(V::LANES) {
        // LANES divides 32.
        let q = nearest(V::splat(inverse).mul(V::load(x.as_ptr().add(i))));
        q.sub(V::splat(WHOLE)).store_bytes(i32::MAX, quants.as_mut_ptr().add(i));
    }
    pack_nibbles(&quants)
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
        let scales = fit_scales::<V>(x, importance, &sigma2s);
        for ((out, x), scale) in out.iter_mut().zip(x).zip(scales) {
            *out = BlockIQ4NL::new(scale, pack::<V>(x, inverse(scale)));
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
