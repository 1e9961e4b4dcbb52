//! Panels with AVX2: eight rows a vector, tiles of two vectors by four columns.

use super::columns::{ColumnMut, PanelColumns};
use super::multiply::{self as panel, PANEL};
use super::vector::{PanelVector, dot_without_vnni, forward_to_intrinsics, transpose_parts};
use crate::block::{QK, TensorType};
use crate::simd::F32x8;
use std::arch::x86_64::*;

/// See [`crate::dispatch::multiply_panel`].
///
/// # Safety
///
/// The CPU has the ISA.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn multiply(
    kind: TensorType,
    rows: &[u8],
    columns: PanelColumns<'_>,
    acc: &mut [[f32; PANEL]],
) {
    panel::multiply::<Avx2, 2, 4>(kind, rows, columns, acc)
}

/// See [`crate::dispatch::quantize_column`].
///
/// # Safety
///
/// The CPU has the ISA.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn quantize_column(x: &[f32], out: ColumnMut<'_>) {
    panel::quantize_column::<Avx2>(x, out)
}

dot_without_vnni!(
    __m256i,
    _mm256_set1_epi16,
    _mm256_add_epi32,
    _mm256_and_si256,
    _mm256_slli_epi16,
    _mm256_srai_epi16,
    _mm256_srli_epi16,
    _mm256_madd_epi16,
    _mm256_maddubs_epi16
);

transpose_parts!(
    __m256i,
    _mm256_unpacklo_epi32,
    _mm256_unpackhi_epi32,
    _mm256_unpacklo_epi64,
    _mm256_unpackhi_epi64
);

struct Avx2;

impl PanelVector for Avx2 {
    type Ints = __m256i;
    type Floats = F32x8;

    forward_to_intrinsics!(_mm256_set1_epi32, _mm256_loadu_si256, _mm256_cvtps_epi32);

    #[inline(always)]
    unsafe fn dot(acc: Self::Ints, a: Self::Ints, b: Self::Ints, wide: bool) -> Self::Ints {
        dot_without_vnni(acc, a, b, wide)
    }

    #[inline(always)]
    unsafe fn total(ints: Self::Ints) -> i32 {
        let high = _mm256_extracti128_si256::<1>(ints);
        let sums = _mm_add_epi32(_mm256_castsi256_si128(ints), high);
        let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b01_00_11_10>(sums));
        _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32::<0b10_11_00_01>(sums)))
    }

    #[inline(always)]
    unsafe fn store_bytes(ints: Self::Ints, to: *mut u8) {
        let high = _mm256_extracti128_si256::<1>(ints);
        let words = _mm_packs_epi32(_mm256_castsi256_si128(ints), high);
        _mm_storel_epi64(to.cast(), _mm_packs_epi16(words, words));
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        F32x8(_mm256_cvtepi32_ps(ints))
    }

    #[inline(always)]
    unsafe fn max_abs(most: Self::Ints, b: Self::Floats) -> Self::Ints {
        let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), b.0);
        _mm256_max_epi32(most, _mm256_castps_si256(magnitude))
    }

    #[inline(always)]
    unsafe fn largest(most: Self::Ints) -> f32 {
        let high = _mm256_extracti128_si256::<1>(most);
        let most = _mm_max_epi32(_mm256_castsi256_si128(most), high);
        let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b01_00_11_10>(most));
        let most = _mm_max_epi32(most, _mm_shuffle_epi32::<0b10_11_00_01>(most));
        f32::from_bits(_mm_cvtsi128_si32(most) as u32)
    }

    #[inline(always)]
    unsafe fn transpose(from: *const u8, stride: usize, to: *mut u8, to_stride: usize) {
        let mut v = [_mm256_setzero_si256(); 8];
        for (i, v) in v.iter_mut().enumerate() {
            *v = _mm256_loadu_si256(from.add(i * stride).cast());
        }
        transpose_parts(&mut v);
        // squares of 8
        for i in 0..4 {
            (v[i], v[i + 4]) = (
                _mm256_permute2x128_si256::<0x20>(v[i], v[i + 4]),
                _mm256_permute2x128_si256::<0x31>(v[i], v[i + 4]),
            );
        }
        for (i, v) in v.into_iter().enumerate() {
            _mm256_storeu_si256(to.add(i * to_stride).cast(), v);
        }
    }
}
