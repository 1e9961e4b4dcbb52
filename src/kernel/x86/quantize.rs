//! A row, encoded by the kernels that there are for its type, by the scalar version elsewhere.

use super::k_fit::{MOST_BLOCKS, fit_blocks};
use super::legacy::{quantize_affine, quantize_symmetric};
use super::twice::Twice;
use super::vector::Vector;
use crate::block::k_fit::{KFit, Recipe};
use crate::block::{
    Block, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, Bytes, QK_K,
    TensorType, blocks_mut, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, with_block,
};

/// See [`crate::kernel::quantize_row`].
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_row<V: Vector>(
    kind: TensorType,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (kind, importance) {
            (TensorType::Q4K, _) => {
                quantize_k_row::<V, _>(&q4_k::RECIPE, x, importance, out, BlockQ4K::from_fit);
            }
            (TensorType::Q5K, _) => {
                quantize_k_row::<V, _>(&q5_k::RECIPE, x, importance, out, BlockQ5K::from_fit);
            }
            (TensorType::Q6K, _) => quantize_q6_k_row::<V>(x, importance, blocks_mut(out)),
            (TensorType::Q4_0, Some(w)) => {
                quantize_symmetric::<Twice<V>, _>(
                    x,
                    w,
                    q4_0::HALF,
                    blocks_mut(out),
                    BlockQ4_0::new,
                );
            }
            (TensorType::Q5_0, Some(w)) => {
                quantize_symmetric::<Twice<V>, _>(
                    x,
                    w,
                    q5_0::HALF,
                    blocks_mut(out),
                    BlockQ5_0::new,
                );
            }
            (TensorType::Q4_1, Some(w)) => {
                quantize_affine::<Twice<V>, _>(x, w, q4_1::LEVELS, blocks_mut(out), BlockQ4_1::new);
            }
            (TensorType::Q5_1, Some(w)) => {
                quantize_affine::<Twice<V>, _>(x, w, q5_1::LEVELS, blocks_mut(out), BlockQ5_1::new);
            }
            // simple loops: the compiler makes vectors of them
            _ => with_block!(kind, B => B::quantize_row(x, importance, blocks_mut(out))),
        }
    }
}

#[inline(always)]
unsafe fn quantize_k_row<V: Vector, B: Bytes>(
    recipe: &Recipe,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    pack: impl Fn(&KFit) -> B,
) {
    let x = x.as_chunks::<QK_K>().0;
    let mut fits = [KFit::EMPTY; MOST_BLOCKS];
    for (i, (x, out)) in
        x.chunks(MOST_BLOCKS).zip(blocks_mut::<B>(out).chunks_mut(MOST_BLOCKS)).enumerate()
    {
        let importance = importance.map(|w| &w.as_chunks().0[MOST_BLOCKS * i..][..x.len()]);
        // SAFETY: the caller's promise.
        unsafe { fit_blocks::<V>(recipe, x, importance, &[], &mut fits[..x.len()]) };
        for (out, fit) in out.iter_mut().zip(&fits) {
            *out = pack(fit);
        }
    }
}

#[inline(always)]
unsafe fn quantize_q6_k_row<V: Vector>(
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [BlockQ6K],
) {
    for (i, (x, out)) in x.as_chunks::<QK_K>().0.iter().zip(out).enumerate() {
        let importance = importance.map(|w| &w.as_chunks::<QK_K>().0[i]);
        // SAFETY: the caller's promise.
        *out = unsafe { super::q6_k::quantize::<V>(x, importance) };
    }
}
