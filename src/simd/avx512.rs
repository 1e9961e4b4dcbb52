//! AVX-512: sixteen lanes.

use super::twice::Twice;
use super::vector::{Kernel, Transform, Vector, forward_to_intrinsics};
use std::arch::x86_64::*;

/// Runs a computation, compiled for the instruction set.
///
/// # Safety
///
/// The CPU has the instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi1,popcnt")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<F32x16>()
}

/// The same for a loop from one slice to another.
///
/// # Safety
///
/// The CPU has the instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi1,popcnt")]
pub(super) unsafe fn transform<T: Transform>(from: &[T::From], to: &mut [T::To]) {
    T::run(from, to);
}

#[derive(Clone, Copy)]
pub(crate) struct F32x16(pub __m512);

impl Vector for F32x16 {
    const LANES: usize = 16;
    type Mask = __mmask16;
    type Wide = Twice<F32x16>;

    forward_to_intrinsics! {
        splat: _mm512_set1_ps,
        load: _mm512_loadu_ps,
        store: _mm512_storeu_ps,
        sqrt: _mm512_sqrt_ps,
        operations: {
            add: _mm512_add_ps,
            sub: _mm512_sub_ps,
            mul: _mm512_mul_ps,
            div: _mm512_div_ps,
            min: _mm512_min_ps,
            max: _mm512_max_ps
        },
        fused: _mm512_fmadd_ps,
        unpack: _mm512_unpacklo_ps, _mm512_unpackhi_ps, _mm512_shuffle_ps,
        integers: _mm512_castps_si512, _mm512_cvtepi32_ps, _mm512_set1_epi32,
            _mm512_and_si512, _mm512_sub_epi32, _mm512_min_epi32, _mm512_max_epi32
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(_mm512_abs_ps(self.0))
    }
    #[inline(always)]
    unsafe fn with_sign_of(self, sign: Self) -> Self {
        Self(_mm512_or_ps(self.0, _mm512_and_ps(_mm512_set1_ps(-0.0), sign.0)))
    }
    #[inline(always)]
    unsafe fn smallest(self) -> f32 {
        _mm512_reduce_min_ps(self.0)
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        _mm512_reduce_max_ps(self.0)
    }
    #[inline(always)]
    unsafe fn lt(self, other: Self) -> Self::Mask {
        _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0)
    }
    #[inline(always)]
    unsafe fn le(self, other: Self) -> Self::Mask {
        _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, other.0)
    }
    #[inline(always)]
    unsafe fn select(mask: Self::Mask, this: Self, other: Self) -> Self {
        Self(_mm512_mask_blend_ps(mask, other.0, this.0))
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
    unsafe fn any(mask: Self::Mask) -> bool {
        mask != 0
    }
    #[inline(always)]
    unsafe fn bits(mask: Self::Mask) -> u64 {
        u64::from(mask)
    }
    #[inline(always)]
    unsafe fn store_bytes(self, most: i32, to: *mut u8) {
        let numbers = _mm512_min_epi32(_mm512_cvttps_epi32(self.0), _mm512_set1_epi32(most));
        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(numbers));
    }
    #[inline(always)]
    unsafe fn look_up(table: &[f32; 16], indices: Self) -> Self {
        let table = _mm512_loadu_ps(table.as_ptr());
        Self(_mm512_permutexvar_ps(_mm512_castps_si512(indices.0), table))
    }
    #[inline(always)]
    unsafe fn load_fours(from: *const f32, stride: usize) -> Self {
        let all = _mm512_castps128_ps512(_mm_loadu_ps(from));
        let all = _mm512_insertf32x4::<1>(all, _mm_loadu_ps(from.add(stride)));
        let all = _mm512_insertf32x4::<2>(all, _mm_loadu_ps(from.add(2 * stride)));
        Self(_mm512_insertf32x4::<3>(all, _mm_loadu_ps(from.add(3 * stride))))
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self {
        Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast())))
    }
}
