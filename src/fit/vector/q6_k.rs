//! The fit of Q6_K, one sub-block per lane.

use super::ranges::ranges;
use super::signed::{Fits, fit_signed};
use crate::block::q6_k::{SUB, SUB_BLOCKS};
use crate::block::{BlockQ6K, QK_K};
use crate::simd::{InLanes, Twice, Vector};

/// The vector version of [`BlockQ6K::quantize`], for a row.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize<V: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    out: &mut [BlockQ6K],
) {
    for (range, is_twice) in ranges::<V>(x.len(), SUB_BLOCKS) {
        let importance = importance.map(|w| &w[range.clone()]);
        let (x, out) = (&x[range.clone()], &mut out[range]);
        // the lanes of one or two vectors are whole blocks.
        if is_twice {
            quantize_blocks::<V, Twice<V>>(x, importance, out);
        } else {
            quantize_blocks::<V, V>(x, importance, out);
        }
    }
}

/// # Safety
///
/// The CPU has V's ISA, and W has a lane for every sub-block and no more.
#[inline(always)]
unsafe fn quantize_blocks<V: Vector, W: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    out: &mut [BlockQ6K],
) {
    debug_assert!(x.len() * SUB_BLOCKS == W::LANES);
    let (mut xt, mut wt) = (InLanes::<SUB>::new(), InLanes::<SUB>::new());
    // the arrays have room for MOST_LANES lanes.
    W::transpose(x.as_ptr().cast(), SUB, xt.as_mut_ptr());
    match importance {
        None => {
            for i in (0..SUB * W::LANES).step_by(W::LANES) {
                let v = W::load(xt.as_ptr().add(i));
                v.mul(v).store(wt.as_mut_ptr().add(i));
            }
        }
        Some(w) => W::transpose(w.as_ptr().cast(), SUB, wt.as_mut_ptr()),
    }
    let Fits { scale, inverse, .. } = fit_signed::<W>(xt.as_ptr(), wt.as_ptr(), SUB, 32);
    let fits = scale.as_chunks().0.iter().zip(inverse.as_chunks().0);
    for ((x, out), (scales, inverses)) in x.iter().zip(out).zip(fits) {
        *out = round::<V>(x, scales, inverses);
    }
}

/// The block with the stored scales. If a stored scale is 0, the quants are those of the sub-block's fit.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
unsafe fn round<V: Vector>(
    x: &[f32; QK_K],
    scales: &[f32; SUB_BLOCKS],
    inverses: &[f32; SUB_BLOCKS],
) -> BlockQ6K {
    let Some(mut block) = BlockQ6K::with_scales(scales) else { return BlockQ6K::ZERO };
    let mut quants = [0u8; QK_K];
    for (j, &inverse) in inverses.iter().enumerate() {
        let scale = block.scale(j);
        let offset = if scale == 0.0 && inverse == 0.0 { 0.0 } else { 32.0 };
        for i in (j * SUB..(j + 1) * SUB).step_by(V::LANES) {
            // LANES divides 16.
            let v = V::load(x.as_ptr().add(i));
            let q = if scale == 0.0 {
                v.mul(V::splat(inverse)).nearest_int_clamped(-32, 31)
            } else {
                v.nearest_quotient(scale, -32, 31)
            };
            q.add(V::splat(offset)).store_bytes(i32::MAX, quants.as_mut_ptr().add(i));
        }
    }
    block.pack(&quants);
    block
}
