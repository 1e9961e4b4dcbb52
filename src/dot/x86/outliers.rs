//! The outliers of Q4_HIFI. Activations are gathered by index, as f32, and multiplied by the residuals with fused
//! multiply-adds. A store in this loop, for example a spilled register, makes it 7 % slower.

use super::vector::DotVector;
use crate::block::QK_K;
use crate::dot::activations::Sparse;
use crate::simd::Vector;
use crate::simd::bytes_x86::f16_to_f32;
use std::arch::x86_64::*;

/// Outliers of some rows: indices, residuals, and the activations for them.
#[derive(Clone, Copy)]
pub(super) struct Outliers<'a> {
    pub index: &'a [u8],
    pub residual: &'a [u8],
    pub sparse: &'a Sparse,
}

/// Eight lanes of zeros, then of ones: a window into it masks the first lanes of a vector.
const MASKS: [i32; 16] = [0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1];

/// Residuals and activations of eight outliers; residuals of the first `done` are replaced by 0.
#[inline(always)]
unsafe fn eight(
    index: *const u8,
    residual: *const u8,
    values: *const f32,
    done: usize,
) -> [__m256; 2] {
    // AVX2 and F16C, which the callers' ISAs have; the caller's pointers.
    let indices = _mm256_cvtepu8_epi32(_mm_loadl_epi64(index.cast()));
    let values = _mm256_i32gather_ps::<4>(values, indices);
    let residual = _mm256_cvtph_ps(_mm_loadu_si128(residual.cast()));
    let mask = _mm256_loadu_ps(MASKS.as_ptr().add(8 - done).cast());
    [if done == 0 { residual } else { _mm256_and_ps(residual, mask) }, values]
}

/// The same for four outliers, in the first lanes.
#[inline(always)]
unsafe fn four(index: *const u8, residual: *const u8, values: *const f32) -> [__m256; 2] {
    let indices = _mm_cvtepu8_epi32(_mm_loadu_si32(index));
    let values = _mm_i32gather_ps::<4>(values, indices);
    let residual = _mm_cvtph_ps(_mm_loadl_epi64(residual.cast()));
    [_mm256_zextps128_ps256(residual), _mm256_zextps128_ps256(values)]
}

/// The same for one outlier, in the first lane.
#[inline(always)]
unsafe fn one(index: *const u8, residual: *const u8, values: *const f32) -> [__m256; 2] {
    let residual = f16_to_f32(u16::from_le_bytes(residual.cast::<[u8; 2]>().read()));
    let value = _mm_set_ss(*values.add(usize::from(*index)));
    [_mm256_zextps128_ps256(_mm_set_ss(residual)), _mm256_zextps128_ps256(value)]
}

/// `acc + residual · value`, in the first eight lanes.
#[inline(always)]
unsafe fn multiply_add<V: DotVector>(acc: V::Floats, [residual, value]: [__m256; 2]) -> V::Floats {
    V::widen(residual).mul_add(V::widen(value), acc)
}

impl Outliers<'_> {
    /// Adds the outliers of a block to the sixteen sums `acc`, in the order of [`crate::dot::scalar`].
    ///
    /// The block is number `i` of its row, and number `block` of all rows. It has `N` outliers; 0 means that the number
    /// is not known at compile time.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA; the row has a block `i`, and all rows together have a block `block`.
    #[inline(always)]
    pub unsafe fn add<V: DotVector, const N: usize>(
        &self,
        mut acc: [V::Floats; 2],
        i: usize,
        block: usize,
    ) -> [V::Floats; 2] {
        let n = if N == 0 { self.sparse.outliers } else { N };
        // a block has 256 values, so that every u8 is an index in it.
        let index = self.index.as_ptr().add(n * block);
        let residual = self.residual.as_ptr().add(2 * n * block);
        let values = self.sparse.values.as_ptr().add(QK_K * i);
        let mut k = 0;
        while k + 16 <= n {
            for (v, acc) in acc.iter_mut().enumerate().take(16 / V::Floats::LANES) {
                let k = k + v * V::Floats::LANES;
                let values = V::gather(values, index.add(k));
                *acc = V::Floats::load_half(residual.add(2 * k).cast()).mul_add(values, *acc);
            }
            k += 16;
        }
        if k + 8 <= n {
            acc[0] = multiply_add::<V>(acc[0], eight(index.add(k), residual.add(2 * k), values, 0));
            k += 8;
        }
        if k < n && n >= 8 {
            let last = n - 8;
            acc[0] = multiply_add::<V>(
                acc[0],
                eight(index.add(last), residual.add(2 * last), values, k - last),
            );
        } else {
            if k + 4 <= n {
                acc[0] = multiply_add::<V>(acc[0], four(index.add(k), residual.add(2 * k), values));
                k += 4;
            }
            for k in k..n {
                acc[0] = multiply_add::<V>(acc[0], one(index.add(k), residual.add(2 * k), values));
            }
        }
        acc
    }
}
