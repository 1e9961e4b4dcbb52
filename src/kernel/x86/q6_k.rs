//! Q6_K's fit, every lane a sub-block.

use super::fit_signed::{Fits, fit_signed};
use super::vector::{InLanes, Vector};
use crate::block::q6_k::{SUB, SUB_BLOCKS};
use crate::block::{BlockQ6K, QK_K};

/// The vector version of [`BlockQ6K::quantize`].
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize<V: Vector>(
    x: &[f32; QK_K],
    importance: Option<&[f32; QK_K]>,
) -> BlockQ6K {
    let (mut fitted, mut inverses) = ([0f32; SUB_BLOCKS], [0f32; SUB_BLOCKS]);
    for first in (0..SUB_BLOCKS).step_by(V::LANES) {
        let (mut xt, mut wt) = (InLanes::<SUB>::ZERO, InLanes::<SUB>::ZERO);
        // SAFETY: the caller's promise; a lane's sub-block lies in the block, LANES divides 16.
        unsafe {
            V::transpose(x.as_ptr().add(first * SUB), SUB, xt.as_mut_ptr());
            match importance {
                None => {
                    for i in (0..SUB * V::LANES).step_by(V::LANES) {
                        let v = V::load(xt.as_ptr().add(i));
                        v.mul(v).store(wt.as_mut_ptr().add(i));
                    }
                }
                Some(w) => V::transpose(w.as_ptr().add(first * SUB), SUB, wt.as_mut_ptr()),
            }
            let Fits { scale, inverse, .. } = fit_signed::<V>(xt.as_ptr(), wt.as_ptr(), SUB, 32);
            scale.store(fitted.as_mut_ptr().add(first));
            inverse.store(inverses.as_mut_ptr().add(first));
        }
    }

    let Some(mut block) = BlockQ6K::with_scales(&fitted) else { return BlockQ6K::ZERO };
    let mut numbers = [0u8; QK_K];
    for (j, inverse) in inverses.into_iter().enumerate() {
        let scale = block.scale(j);
        for i in (j * SUB..(j + 1) * SUB).step_by(V::LANES) {
            // SAFETY: the caller's promise; LANES divides 16.
            unsafe {
                let v = V::load(x.as_ptr().add(i));
                let q =
                    if scale == 0.0 { v.mul(V::splat(inverse)) } else { v.div(V::splat(scale)) };
                let offset = if scale == 0.0 && inverse == 0.0 { 0.0 } else { 32.0 };
                let q = q.nearest_int_clamped(-32, 31).add(V::splat(offset));
                q.store_bytes(i32::MAX, numbers.as_mut_ptr().add(i));
            }
        }
    }
    block.pack(&numbers);
    block
}
