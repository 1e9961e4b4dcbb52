//! Dot products with AVX-512: 64 numbers are one vector. With VNNI a multiply-add and its sum are
//! one instruction; without, they are AVX-512 BW's two or three.

use super::{DotVector, total_eight_floats};
use crate::dot::Rows;
use crate::dot::activations::Activations;
use std::arch::x86_64::*;

/// See [`crate::kernel::dot_rows`].
///
/// # Safety
///
/// The CPU has the ISA.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn dot_rows(rows: Rows<'_>, activations: &Activations, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { super::dot_rows::<Avx512<false>>(rows, activations, out) }
}

/// As above.
///
/// # Safety
///
/// The CPU has the ISA and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn dot_rows_vnni(rows: Rows<'_>, activations: &Activations, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { super::dot_rows::<Avx512<true>>(rows, activations, out) }
}

/// See [`crate::kernel::block_sums`].
///
/// # Safety
///
/// The CPU has the ISA.
#[cfg(test)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn block_sums(
    kind: crate::block::TensorType,
    block: &[u8],
    y: &crate::dot::BlockQ8K,
) -> crate::dot::scalar::KSums {
    // SAFETY: the caller's promise.
    unsafe { super::block_sums::<Avx512<false>>(kind, block, y) }
}

/// As above.
///
/// # Safety
///
/// The CPU has the ISA and VNNI.
#[cfg(test)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn block_sums_vnni(
    kind: crate::block::TensorType,
    block: &[u8],
    y: &crate::dot::BlockQ8K,
) -> crate::dot::scalar::KSums {
    // SAFETY: the caller's promise.
    unsafe { super::block_sums::<Avx512<true>>(kind, block, y) }
}

struct Avx512<const VNNI: bool>;

/// Which scale each word of two packed vectors takes: the sums of `numbers[0]` and `numbers[1]` are
/// packed four by four, so that every eight words hold four of each. `first` is the first scale,
/// and there are `each` scales for every 32 numbers.
const fn packed(first: u16, each: u16) -> [u16; 32] {
    let mut scale = [0u16; 32];
    let mut i = 0;
    while i < 32 {
        let (group, second) = (i as u16 / 8, i as u16 % 8 / 4);
        scale[i] = first + group * each / 2 + second * 2 * each;
        i += 1;
    }
    scale
}

/// The scales of sub-blocks of 32, and of 16, for the first and the second half of a block.
const OF_32: [[u16; 32]; 2] = [packed(0, 1), packed(4, 1)];
const OF_16: [[u16; 32]; 2] = [packed(0, 2), packed(8, 2)];

impl<const VNNI: bool> Avx512<VNNI> {
    /// Sums of the products of four unsigned and four signed bytes.
    #[inline(always)]
    unsafe fn dot_64(unsigned: __m512i, y: *const u8) -> __m512i {
        // SAFETY: the trait's contract; VNNI is the type's promise.
        unsafe {
            let y = _mm512_loadu_si512(y.cast());
            if VNNI {
                _mm512_dpbusd_epi32(_mm512_setzero_si512(), unsigned, y)
            } else {
                let pairs = _mm512_maddubs_epi16(unsigned, y);
                _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))
            }
        }
    }

    /// Sums of the products of 128 numbers and activations times their scales.
    #[inline(always)]
    unsafe fn scaled(
        numbers: [__m512i; 2],
        y: *const u8,
        scales: __m512i,
        which: &[u16; 32],
    ) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe {
            // four products of numbers of six bits at most fit 16 bits
            let dots = (Self::dot_64(numbers[0], y), Self::dot_64(numbers[1], y.add(64)));
            let dots = _mm512_packs_epi32(dots.0, dots.1);
            let which = _mm512_loadu_si512(which.as_ptr().cast());
            let scales = _mm512_permutexvar_epi16(which, scales);
            _mm512_madd_epi16(dots, scales)
        }
    }

    /// 32 bytes rotated left by so many bits, then the same rotated by others.
    #[inline(always)]
    unsafe fn rotated_twice(bytes: __m256i, first: i64, second: i64) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe {
            let (a, b) = (first & 63, second & 63);
            let counts = _mm512_setr_epi64(a, a, a, a, b, b, b, b);
            _mm512_rolv_epi64(_mm512_broadcast_i64x4(bytes), counts)
        }
    }
}

/// `a | (b & c)`, by the truth table of `vpternlogd`.
const OR_AND: i32 = 0b1111_1000;

impl<const VNNI: bool> DotVector for Avx512<VNNI> {
    type Numbers = __m512i;
    type Sums = __m512i;
    type Floats = __m512;
    /// Words.
    type Scales = __m512i;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> Self::Numbers {
        // SAFETY: the trait's contract; so below.
        unsafe {
            let bytes = _mm512_broadcast_i64x4(_mm256_loadu_si256(from.cast()));
            let high = _mm512_srlv_epi64(bytes, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
            _mm512_and_si512(high, _mm512_set1_epi8(0x0f))
        }
    }

    #[inline(always)]
    unsafe fn with_fifth_bits<const K: i32>(low: Self::Numbers, bits: __m256i) -> Self::Numbers {
        // SAFETY: as above.
        unsafe {
            let k = i64::from(K);
            let bits = Self::rotated_twice(bits, 4 - 2 * k, 3 - 2 * k);
            _mm512_ternarylogic_epi64::<OR_AND>(low, bits, _mm512_set1_epi8(16))
        }
    }

    #[inline(always)]
    unsafe fn six_bits(low: *const u8, high: *const u8) -> [Self::Numbers; 2] {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm512_loadu_si512(low.cast()), _mm256_loadu_si256(high.cast()));
            let (low_mask, high_mask) = (_mm512_set1_epi8(0x0f), _mm512_set1_epi8(0x30));
            let first = _mm512_and_si512(low, low_mask);
            let second = _mm512_and_si512(_mm512_srli_epi16::<4>(low), low_mask);
            let top = (Self::rotated_twice(high, 4, 2), Self::rotated_twice(high, 0, -2));
            [
                _mm512_ternarylogic_epi64::<OR_AND>(first, top.0, high_mask),
                _mm512_ternarylogic_epi64::<OR_AND>(second, top.1, high_mask),
            ]
        }
    }

    #[inline(always)]
    unsafe fn scales_of_32(bytes: __m128i) -> Self::Scales {
        // SAFETY: as above.
        unsafe { _mm512_castsi256_si512(_mm256_cvtepu8_epi16(bytes)) }
    }

    #[inline(always)]
    unsafe fn scales_of_16(bytes: __m128i) -> Self::Scales {
        // SAFETY: as above.
        unsafe { _mm512_castsi256_si512(_mm256_cvtepi8_epi16(bytes)) }
    }

    #[inline(always)]
    unsafe fn mins_dot(bytes: __m128i, sums: *const u8) -> __m256i {
        // SAFETY: as above.
        unsafe {
            // the words are those of the scales; each minimum twice
            let twice =
                _mm256_setr_epi16(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
            let twice = _mm256_permutexvar_epi16(twice, _mm256_cvtepu8_epi16(bytes));
            _mm256_madd_epi16(twice, _mm256_loadu_si256(sums.cast()))
        }
    }

    #[inline(always)]
    unsafe fn add(a: Self::Sums, b: Self::Sums) -> Self::Sums {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn sub_eight(this: Self::Sums, eight: __m256i) -> Self::Sums {
        // SAFETY: as above.
        unsafe { _mm512_sub_epi32(this, _mm512_zextsi256_si512(eight)) }
    }

    #[inline(always)]
    unsafe fn scaled_of_32<const SECOND: bool>(
        numbers: [Self::Numbers; 2],
        y: *const u8,
        scales: Self::Scales,
    ) -> Self::Sums {
        // SAFETY: as above.
        unsafe { Self::scaled(numbers, y, scales, &OF_32[SECOND as usize]) }
    }

    #[inline(always)]
    unsafe fn scaled_of_16<const SECOND: bool>(
        numbers: [Self::Numbers; 2],
        y: *const u8,
        scales: Self::Scales,
    ) -> Self::Sums {
        // SAFETY: as above.
        unsafe { Self::scaled(numbers, y, scales, &OF_16[SECOND as usize]) }
    }

    #[cfg(test)]
    #[inline(always)]
    unsafe fn total(sums: Self::Sums) -> i32 {
        // SAFETY: as above.
        unsafe {
            let halves = (_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums));
            super::total_eight(_mm256_add_epi32(halves.0, halves.1))
        }
    }

    #[inline(always)]
    unsafe fn dot_32(unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: as above; VNNI is the type's promise.
        unsafe {
            if VNNI {
                _mm256_dpbusd_epi32(_mm256_setzero_si256(), unsigned, signed)
            } else {
                _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), _mm256_set1_epi16(1))
            }
        }
    }

    #[inline(always)]
    unsafe fn zero_floats() -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn add_times(acc: Self::Floats, sums: Self::Sums, factor: __m128) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_broadcastss_ps(factor), acc) }
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::Floats {
        // SAFETY: as above.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::Floats, b: Self::Floats, acc: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, acc) }
    }

    #[inline(always)]
    unsafe fn add_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn total_floats(acc: Self::Floats) -> f32 {
        // SAFETY: as above.
        unsafe {
            let halves = (_mm512_castps512_ps256(acc), _mm512_extractf32x8_ps::<1>(acc));
            total_eight_floats(_mm256_add_ps(halves.0, halves.1))
        }
    }
}
