//! AVX-512: sixteen lanes.

use super::vector::{Vector, forward_to_intrinsics};
use std::arch::x86_64::*;

super::entry_points!("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c", F32x16);

#[derive(Clone, Copy)]
pub(crate) struct F32x16(__m512);

impl Vector for F32x16 {
    const LANES: usize = 16;
    type Mask = __mmask16;

    forward_to_intrinsics!(_mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_sqrt_ps, {
        add: _mm512_add_ps,
        sub: _mm512_sub_ps,
        mul: _mm512_mul_ps,
        div: _mm512_div_ps,
        min: _mm512_min_ps,
        max: _mm512_max_ps
    });

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(_mm512_abs_ps(self.0)) }
    }
    #[inline(always)]
    unsafe fn lt(self, other: Self) -> Self::Mask {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    unsafe fn le(self, other: Self) -> Self::Mask {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    unsafe fn select(mask: Self::Mask, this: Self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(_mm512_mask_blend_ps(mask, other.0, this.0)) }
    }
    #[inline(always)]
    unsafe fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        a & b
    }
    #[inline(always)]
    unsafe fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        a | b
    }
    #[inline(always)]
    unsafe fn all(mask: Self::Mask) -> bool {
        mask == 0xffff
    }
    #[inline(always)]
    unsafe fn nearest_int_clamped(self, low: i32, high: i32) -> Self {
        // SAFETY: the trait's contract.
        unsafe {
            let bits = _mm512_castps_si512(_mm512_add_ps(self.0, _mm512_set1_ps(12_582_912.0)));
            let bits = _mm512_and_si512(bits, _mm512_set1_epi32(0x007f_ffff));
            let number = _mm512_sub_epi32(bits, _mm512_set1_epi32(0x0040_0000));
            let number = _mm512_min_epi32(number, _mm512_set1_epi32(high));
            Self(_mm512_cvtepi32_ps(_mm512_max_epi32(number, _mm512_set1_epi32(low))))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8) {
        // SAFETY: the trait's contract.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(self.0))) }
    }
    #[inline(always)]
    unsafe fn load_strided(from: *const f32, stride: usize) -> Self {
        // SAFETY: the trait's contract.
        unsafe {
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let index = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(stride as i32));
            Self(_mm512_i32gather_ps::<4>(index, from))
        }
    }
}
