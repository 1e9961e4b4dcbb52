//! Rows, encoded by the kernels for their type.

use super::k_fit::{MOST_BLOCKS, fit_blocks};
use super::vector::Vector;
use super::{iq4, legacy, legacy_plain, q2_k, q3_k, q6_k};
use crate::block::k_fit::{KFit, Recipe};
use crate::block::legacy::mean_square;
use crate::block::{
    Block, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, Bytes, QK_K, TensorType,
    blocks_mut, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, with_block,
};
use crate::kernel::{MOST_ROWS_AT_ONCE, weighs_by_row};

/// See [`crate::kernel::quantize_rows`].
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_rows<V: Vector>(
    kind: TensorType,
    x: &[f32],
    row_length: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    let row_bytes = out.len() / (x.len() / row_length);
    let batches =
        x.chunks(row_length * MOST_ROWS_AT_ONCE).zip(out.chunks_mut(row_bytes * MOST_ROWS_AT_ONCE));
    for (x, out) in batches {
        let mut mean_squares = [0f32; MOST_ROWS_AT_ONCE];
        if weighs_by_row(kind, importance) {
            // SAFETY: the caller's promise.
            unsafe { fill_mean_squares::<V>(x, row_length, &mut mean_squares) };
        }
        let rows = x.chunks_exact(row_length).zip(out.chunks_exact_mut(row_bytes));
        for ((x, out), mean_square) in rows.zip(mean_squares) {
            // SAFETY: the caller's promise.
            unsafe { quantize_row::<V>(kind, x, importance, mean_square, out) };
        }
    }
}

/// Each row's mean square, its sum added up in order; a row a lane where there are enough, because one
/// sum's additions wait for each other.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
unsafe fn fill_mean_squares<V: Vector>(
    x: &[f32],
    row_length: usize,
    mean_squares: &mut [f32; MOST_ROWS_AT_ONCE],
) {
    for (x, out) in x.chunks(row_length * V::LANES).zip(mean_squares.chunks_mut(V::LANES)) {
        if x.len() < row_length * V::LANES {
            for (x, out) in x.chunks_exact(row_length).zip(out) {
                *out = mean_square(x);
            }
            continue;
        }
        // SAFETY: the caller's promise; x has LANES rows, out LANES places.
        unsafe {
            let mut sum = V::splat(0.0);
            for i in (0..row_length).step_by(4) {
                for v in V::load_transposed(x.as_ptr().add(i), row_length) {
                    sum = sum.add(v.mul(v));
                }
            }
            sum.div(V::splat(row_length as f32)).store(out.as_mut_ptr());
        }
    }
}

/// Encodes a row; `mean_square` is used by the legacy types under importance alone.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
unsafe fn quantize_row<V: Vector>(
    kind: TensorType,
    x: &[f32],
    importance: Option<&[f32]>,
    mean_square: f32,
    out: &mut [u8],
) {
    /// The kernel for a legacy type: with importance or without.
    macro_rules! legacy {
        ($quantize:ident, $block:ident, $range:expr) => {{
            let out = blocks_mut(out);
            match importance {
                Some(w) => {
                    legacy::$quantize::<V, _>(x, w, mean_square, $range, out, $block::new);
                }
                None => legacy_plain::$quantize::<V, _>(x, $range, out, $block::new),
            }
        }};
    }
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            TensorType::Q2K => {
                let importance = importance.map(|w| w.as_chunks().0);
                q2_k::quantize::<V>(x.as_chunks().0, importance, blocks_mut(out));
            }
            TensorType::Q3K => {
                let importance = importance.map(|w| w.as_chunks().0);
                q3_k::quantize::<V>(x.as_chunks().0, importance, blocks_mut(out));
            }
            TensorType::Q4K => {
                quantize_k_row::<V, _>(&q4_k::RECIPE, x, importance, out, BlockQ4K::from_fit);
            }
            TensorType::Q5K => {
                quantize_k_row::<V, _>(&q5_k::RECIPE, x, importance, out, BlockQ5K::from_fit);
            }
            TensorType::Q6K => {
                let importance = importance.map(|w| w.as_chunks().0);
                q6_k::quantize::<V>(x.as_chunks().0, importance, blocks_mut(out));
            }
            TensorType::Q4_0 => legacy!(quantize_symmetric, BlockQ4_0, q4_0::HALF),
            TensorType::Q5_0 => legacy!(quantize_symmetric, BlockQ5_0, q5_0::HALF),
            TensorType::Q4_1 => legacy!(quantize_affine, BlockQ4_1, q4_1::LEVELS),
            TensorType::Q5_1 => legacy!(quantize_affine, BlockQ5_1, q5_1::LEVELS),
            TensorType::Q8_0 => legacy_plain::quantize_q8_0::<V>(x, blocks_mut(out)),
            TensorType::IQ4NL => {
                let importance = importance.map(|w| w.as_chunks().0);
                iq4::quantize_nl::<V>(x.as_chunks().0, importance, blocks_mut(out));
            }
            TensorType::IQ4XS => {
                let importance = importance.map(|w| w.as_chunks().0);
                iq4::quantize_xs::<V>(x.as_chunks().0, importance, blocks_mut(out));
            }
            // simple loops: the compiler makes vectors of them
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => {
                with_block!(kind, B => B::quantize_row(x, importance, blocks_mut(out)));
            }
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
        unsafe { fit_blocks::<V>(recipe, x, importance, &mut fits[..x.len()]) };
        for (out, fit) in out.iter_mut().zip(&fits) {
            *out = pack(fit);
        }
    }
}
