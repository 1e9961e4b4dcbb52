//! Panels with AVX-512: sixteen rows a vector, tiles of four vectors by six columns.

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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn multiply(
    kind: TensorType,
    rows: &[u8],
    columns: PanelColumns<'_>,
    acc: &mut [[f32; PANEL]],
) {
    panel::multiply::<Avx512<false>, 4, 6>(kind, rows, columns, acc)
}

/// As above.
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

struct Avx512<const VNNI: bool>;

impl<const VNNI: bool> PanelVector for Avx512<VNNI> {
    type Ints = __m512i;
    type Floats = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: i32) -> Self::Ints {
        _mm512_set1_epi32(value)
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Ints {
        _mm512_loadu_si512(from.cast())
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u8) -> Self::Ints {
        _mm512_set1_epi32(from.cast::<i32>().read_unaligned())
    }

    #[inline(always)]
    unsafe fn dot(acc: Self::Ints, a: Self::Ints, b: Self::Ints, wide: bool) -> Self::Ints {
        // VNNI is the type's promise.
        if VNNI {
            return _mm512_dpbusd_epi32(acc, a, b);
        }
        if !wide {
            let pairs = _mm512_maddubs_epi16(a, b);
            return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
        }
        // products of two bytes with eight bits each do not fit 16 bits with their sum
        let low = _mm512_set1_epi16(0xff);
        let even = (_mm512_and_si512(a, low), _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b)));
        let odd = (_mm512_srli_epi16::<8>(a), _mm512_srai_epi16::<8>(b));
        let even = _mm512_madd_epi16(even.0, even.1);
        let odd = _mm512_madd_epi16(odd.0, odd.1);
        _mm512_add_epi32(acc, _mm512_add_epi32(even, odd))
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
    unsafe fn to_ints(floats: Self::Floats) -> Self::Ints {
        _mm512_cvtps_epi32(floats)
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        _mm512_cvtepi32_ps(ints)
    }

    #[inline(always)]
    unsafe fn splat_f32(value: f32) -> Self::Floats {
        _mm512_set1_ps(value)
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self::Floats {
        _mm512_loadu_ps(from)
    }

    #[inline(always)]
    unsafe fn store_f32(floats: Self::Floats, to: *mut f32) {
        _mm512_storeu_ps(to, floats)
    }

    #[inline(always)]
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        _mm512_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        _mm512_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn max_abs(most: Self::Ints, b: Self::Floats) -> Self::Ints {
        _mm512_max_epi32(most, _mm512_castps_si512(_mm512_abs_ps(b)))
    }

    #[inline(always)]
    unsafe fn largest(most: Self::Ints) -> f32 {
        f32::from_bits(_mm512_reduce_max_epi32(most) as u32)
    }

    #[inline(always)]
    unsafe fn fma(a: Self::Floats, b: Self::Floats, acc: Self::Floats) -> Self::Floats {
        _mm512_fmadd_ps(a, b, acc)
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
        let mut v = [_mm512_setzero_si512(); 16];
        for (i, v) in v.iter_mut().enumerate() {
            *v = _mm512_loadu_si512(from.add(i * stride).cast());
        }
        // squares of 2, 4, 8 and 16 cells in turn
        for i in (0..16).step_by(2) {
            (v[i], v[i + 1]) =
                (_mm512_unpacklo_epi32(v[i], v[i + 1]), _mm512_unpackhi_epi32(v[i], v[i + 1]));
        }
        for i in (0..16).step_by(4) {
            let a = (v[i], v[i + 1], v[i + 2], v[i + 3]);
            (v[i], v[i + 1]) = (_mm512_unpacklo_epi64(a.0, a.2), _mm512_unpackhi_epi64(a.0, a.2));
            (v[i + 2], v[i + 3]) =
                (_mm512_unpacklo_epi64(a.1, a.3), _mm512_unpackhi_epi64(a.1, a.3));
        }
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
