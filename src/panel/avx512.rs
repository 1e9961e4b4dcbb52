//! Panels with AVX-512: sixteen rows a vector, tiles of four vectors by six columns.

use super::columns::{ColumnMut, PanelColumns};
use super::multiply::{self as panel, PANEL};
use super::vector::{PanelVector, dot_without_vnni, forward_to_intrinsics, transpose_parts};
use crate::block::{QK, TensorType};
use crate::simd::F32x16;
use std::arch::x86_64::*;

/// See [`crate::dispatch::multiply_panel`].
///
/// # Safety
///
/// The CPU has the ISA.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn multiply(
    kind: TensorType,
    rows: &[u8],
    columns: PanelColumns<'_>,
    acc: &mut [[f32; PANEL]],
) {
    panel::multiply::<Avx512<false>, 4, 6>(kind, rows, columns, acc)
}

/// The same with VNNI.
///
/// # Safety
///
/// The CPU has the ISA and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn multiply_vnni(
    kind: TensorType,
    rows: &[u8],
    columns: PanelColumns<'_>,
    acc: &mut [[f32; PANEL]],
) {
    panel::multiply::<Avx512<true>, 4, 6>(kind, rows, columns, acc)
}

/// See [`crate::dispatch::quantize_column`].
///
/// # Safety
///
/// The CPU has the ISA.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn quantize_column(x: &[f32], out: ColumnMut<'_>) {
    panel::quantize_column::<Avx512<false>>(x, out)
}

dot_without_vnni!(
    __m512i,
    _mm512_set1_epi16,
    _mm512_add_epi32,
    _mm512_and_si512,
    _mm512_slli_epi16,
    _mm512_srai_epi16,
    _mm512_srli_epi16,
    _mm512_madd_epi16,
    _mm512_maddubs_epi16
);

transpose_parts!(
    __m512i,
    _mm512_unpacklo_epi32,
    _mm512_unpackhi_epi32,
    _mm512_unpacklo_epi64,
    _mm512_unpackhi_epi64
);

struct Avx512<const VNNI: bool>;

impl<const VNNI: bool> PanelVector for Avx512<VNNI> {
    type Ints = __m512i;
    type Floats = F32x16;

    forward_to_intrinsics!(_mm512_set1_epi32, _mm512_loadu_si512, _mm512_cvtps_epi32);

    #[inline(always)]
    unsafe fn dot(acc: Self::Ints, a: Self::Ints, b: Self::Ints, wide: bool) -> Self::Ints {
        // the type uses VNNI only if the CPU has it.
        if VNNI { _mm512_dpbusd_epi32(acc, a, b) } else { dot_without_vnni(acc, a, b, wide) }
    }

    #[inline(always)]
    unsafe fn total(ints: Self::Ints) -> i32 {
        _mm512_reduce_add_epi32(ints)
    }

    #[inline(always)]
    unsafe fn store_bytes(ints: Self::Ints, to: *mut u8) {
        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(ints))
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        F32x16(_mm512_cvtepi32_ps(ints))
    }

    #[inline(always)]
    unsafe fn max_abs(most: Self::Ints, b: Self::Floats) -> Self::Ints {
        _mm512_max_epi32(most, _mm512_castps_si512(_mm512_abs_ps(b.0)))
    }

    #[inline(always)]
    unsafe fn largest(most: Self::Ints) -> f32 {
        f32::from_bits(_mm512_reduce_max_epi32(most) as u32)
    }

    #[inline(always)]
    unsafe fn transpose(from: *const u8, stride: usize, to: *mut u8, to_stride: usize) {
        let mut v = [_mm512_setzero_si512(); 16];
        for (i, v) in v.iter_mut().enumerate() {
            *v = _mm512_loadu_si512(from.add(i * stride).cast());
        }
        transpose_parts(&mut v);
        // squares of 8 and of 16
        for i in 0..4 {
            let low = (v[i], v[i + 4]);
            let high = (v[i + 8], v[i + 12]);
            let even = (
                _mm512_shuffle_i32x4::<0b10_00_10_00>(low.0, low.1),
                _mm512_shuffle_i32x4::<0b10_00_10_00>(high.0, high.1),
            );
            let odd = (
                _mm512_shuffle_i32x4::<0b11_01_11_01>(low.0, low.1),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(high.0, high.1),
            );
            v[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even.0, even.1);
            v[i + 8] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even.0, even.1);
            v[i + 4] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd.0, odd.1);
            v[i + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd.0, odd.1);
        }
        for (i, v) in v.into_iter().enumerate() {
            _mm512_storeu_si512(to.add(i * to_stride).cast(), v);
        }
    }
}
