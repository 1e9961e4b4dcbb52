//! AVX2 (with F16C): eight lanes.

use super::twice::Twice;
use super::vector::{Kernel, Transform, Vector, forward_to_intrinsics};
use std::arch::x86_64::*;

/// Runs a computation, compiled for the instruction set.
///
/// # Safety
///
/// The CPU has the instruction set.
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<F32x8>()
}

/// The same for a loop from one slice to another.
///
/// # Safety
///
/// The CPU has the instruction set.
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
pub(super) unsafe fn transform<T: Transform>(from: &[T::From], to: &mut [T::To]) {
    T::run(from, to);
}

#[derive(Clone, Copy)]
pub(crate) struct F32x8(pub __m256);

impl Vector for F32x8 {
    const LANES: usize = 8;
    type Mask = __m256;
    type Wide = Twice<F32x8>;

    forward_to_intrinsics! {
        splat: _mm256_set1_ps,
        load: _mm256_loadu_ps,
        store: _mm256_storeu_ps,
        sqrt: _mm256_sqrt_ps,
        operations: {
            add: _mm256_add_ps,
            sub: _mm256_sub_ps,
            mul: _mm256_mul_ps,
            div: _mm256_div_ps,
            min: _mm256_min_ps,
            max: _mm256_max_ps
        },
        fused: _mm256_fmadd_ps,
        unpack: _mm256_unpacklo_ps, _mm256_unpackhi_ps, _mm256_shuffle_ps,
        integers: _mm256_castps_si256, _mm256_cvtepi32_ps, _mm256_set1_epi32,
            _mm256_and_si256, _mm256_sub_epi32, _mm256_min_epi32, _mm256_max_epi32
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0))
    }
    #[inline(always)]
    unsafe fn with_sign_of(self, sign: Self) -> Self {
        Self(_mm256_or_ps(self.0, _mm256_and_ps(_mm256_set1_ps(-0.0), sign.0)))
    }
    #[inline(always)]
    unsafe fn smallest(self) -> f32 {
        let four = _mm_min_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
        let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
    #[inline(always)]
    unsafe fn lt(self, other: Self) -> Self::Mask {
        _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0)
    }
    #[inline(always)]
    unsafe fn le(self, other: Self) -> Self::Mask {
        _mm256_cmp_ps::<_CMP_LE_OQ>(self.0, other.0)
    }
    #[inline(always)]
    unsafe fn select(mask: Self::Mask, this: Self, other: Self) -> Self {
        Self(_mm256_blendv_ps(other.0, this.0, mask))
    }
    #[inline(always)]
    unsafe fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        _mm256_and_ps(a, b)
    }
    #[inline(always)]
    unsafe fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        _mm256_or_ps(a, b)
    }
    #[inline(always)]
    unsafe fn all(mask: Self::Mask) -> bool {
        _mm256_movemask_ps(mask) == 0xff
    }
    #[inline(always)]
    unsafe fn any(mask: Self::Mask) -> bool {
        _mm256_movemask_ps(mask) != 0
    }
    #[inline(always)]
    unsafe fn bits(mask: Self::Mask) -> u64 {
        u64::from(_mm256_movemask_ps(mask) as u32)
    }
    #[inline(always)]
    unsafe fn store_bytes(self, most: i32, to: *mut u8) {
        let numbers = _mm256_min_epi32(_mm256_cvttps_epi32(self.0), _mm256_set1_epi32(most));
        let low_bytes = _mm256_set1_epi32(0x0c08_0400);
        let fours = _mm256_shuffle_epi8(numbers, low_bytes);
        let halves = (_mm256_castsi256_si128(fours), _mm256_extracti128_si256::<1>(fours));
        _mm_storel_epi64(to.cast(), _mm_unpacklo_epi32(halves.0, halves.1));
    }
    #[inline(always)]
    unsafe fn look_up(table: &[f32; 16], indices: Self) -> Self {
        let indices = _mm256_castps_si256(indices.0);
        let first = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), indices);
        let second = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), indices);
        let in_second = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(indices));
        Self(_mm256_blendv_ps(first, second, in_second))
    }
    #[inline(always)]
    unsafe fn load_fours(from: *const f32, stride: usize) -> Self {
        let low = _mm256_castps128_ps256(_mm_loadu_ps(from));
        Self(_mm256_insertf128_ps::<1>(low, _mm_loadu_ps(from.add(stride))))
    }
    #[inline(always)]
    unsafe fn load_half(from: *const u16) -> Self {
        Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())))
    }
}
