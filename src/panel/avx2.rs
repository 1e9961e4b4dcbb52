//! Panels with AVX2: eight rows a vector, tiles of two vectors by four columns.

use super::columns::{ColumnMut, PanelColumns};
use super::multiply::{self as panel, PANEL};
use super::vector::PanelVector;
use crate::block::{QK, TensorType};
use crate::simd::bytes_x86::{f16_to_f32, look_up_bytes};
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

struct Avx2;

impl PanelVector for Avx2 {
    type Ints = __m256i;
    type Floats = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: i32) -> Self::Ints {
        _mm256_set1_epi32(value)
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Ints {
        _mm256_loadu_si256(from.cast())
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self::Ints {
        _mm256_set1_epi32(from.cast::<i32>().read_unaligned())
    }

    #[inline(always)]
    unsafe fn dot(acc: Self::Ints, a: Self::Ints, b: Self::Ints, wide: bool) -> Self::Ints {
        if !wide {
            let pairs = _mm256_maddubs_epi16(a, b);
            return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        // products of two bytes with eight bits each do not fit 16 bits with their sum
        let low = _mm256_set1_epi16(0xff);
        let even = (_mm256_and_si256(a, low), _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)));
        let odd = (_mm256_srli_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
        let even = _mm256_madd_epi16(even.0, even.1);
        let odd = _mm256_madd_epi16(odd.0, odd.1);
        _mm256_add_epi32(acc, _mm256_add_epi32(even, odd))
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
    unsafe fn to_ints(floats: Self::Floats) -> Self::Ints {
        _mm256_cvtps_epi32(floats)
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        _mm256_cvtepi32_ps(ints)
    }

    #[inline(always)]
    unsafe fn splat_f32(value: f32) -> Self::Floats {
        _mm256_set1_ps(value)
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self::Floats {
        _mm256_loadu_ps(from)
    }

    #[inline(always)]
    unsafe fn store_f32(floats: Self::Floats, to: *mut f32) {
        _mm256_storeu_ps(to, floats)
    }

    #[inline(always)]
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        _mm256_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        _mm256_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn max_abs(most: Self::Ints, b: Self::Floats) -> Self::Ints {
        let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), b);
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
    unsafe fn fma(a: Self::Floats, b: Self::Floats, acc: Self::Floats) -> Self::Floats {
        _mm256_fmadd_ps(a, b, acc)
    }

    #[inline(always)]
    unsafe fn half(bits: u16) -> f32 {
        f16_to_f32(bits)
    }

    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], qs: &[u8; QK / 2]) -> [u8; QK] {
        look_up_bytes(table, qs)
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // fetching is no access: any address may be given.
        _mm_prefetch::<_MM_HINT_T0>(at.cast())
    }

    #[inline(always)]
    unsafe fn transpose(from: *const u8, stride: usize, to: *mut u8, to_stride: usize) {
        let mut v = [_mm256_setzero_si256(); 8];
        for (i, v) in v.iter_mut().enumerate() {
            *v = _mm256_loadu_si256(from.add(i * stride).cast());
        }
        // squares of 2, 4 and 8 cells in turn
        for i in (0..8).step_by(2) {
            (v[i], v[i + 1]) =
                (_mm256_unpacklo_epi32(v[i], v[i + 1]), _mm256_unpackhi_epi32(v[i], v[i + 1]));
        }
        for i in (0..8).step_by(4) {
            let a = (v[i], v[i + 1], v[i + 2], v[i + 3]);
            (v[i], v[i + 1]) = (_mm256_unpacklo_epi64(a.0, a.2), _mm256_unpackhi_epi64(a.0, a.2));
            (v[i + 2], v[i + 3]) =
                (_mm256_unpacklo_epi64(a.1, a.3), _mm256_unpackhi_epi64(a.1, a.3));
        }
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
