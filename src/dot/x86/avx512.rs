//! Dot products with AVX-512: 64 quants are one vector. With VNNI a multiply-add and its sum are
//! one instruction; without, they are AVX-512 BW's two or three.

use super::vector::{DotVector, MAX_ROWS, forward_to_intrinsics, total_eight_floats};
use crate::block::iq4::{UNSIGNED, VALUES};
use crate::dot::activations::{Activations, HalfOrder};
use crate::dot::rows::Rows;
use crate::simd::F32x16;
use std::arch::x86_64::*;

/// See [`crate::dispatch::dot_rows`].
///
/// # Safety
///
/// The CPU has the ISA.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn dot_rows(rows: Rows<'_>, activations: &Activations, out: &mut [f32]) {
    super::products::dot_rows::<Avx512<false>>(rows, activations, out)
}

/// The same with VNNI.
///
/// # Safety
///
/// The CPU has the ISA and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn dot_rows_vnni(rows: Rows<'_>, activations: &Activations, out: &mut [f32]) {
    super::products::dot_rows::<Avx512<true>>(rows, activations, out)
}

/// See [`crate::dispatch::block_sums`].
///
/// # Safety
///
/// The CPU has the ISA.
#[cfg(test)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn block_sums(
    kind: crate::block::TensorType,
    block: &[u8],
    y: &crate::dot::activations::BlockQ8K,
) -> crate::dot::scalar::KSums {
    super::products::block_sums::<Avx512<false>>(kind, block, y)
}

/// The same with VNNI.
///
/// # Safety
///
/// The CPU has the ISA and VNNI.
#[cfg(test)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn block_sums_vnni(
    kind: crate::block::TensorType,
    block: &[u8],
    y: &crate::dot::activations::BlockQ8K,
) -> crate::dot::scalar::KSums {
    super::products::block_sums::<Avx512<true>>(kind, block, y)
}

#[derive(Clone, Copy)]
struct Avx512<const VNNI: bool>;

/// Which scale each word of two packed vectors takes: the sums of `quants[0]` and `quants[1]` are
/// packed four by four, so that every part holds four of each, and these have the scales
/// `first` + `parts[0]` and `first` + `parts[1]`.
const fn packed(first: u16, parts: [[u16; 4]; 2]) -> [u16; 32] {
    let mut scale = [0u16; 32];
    let mut i = 0;
    while i < 32 {
        scale[i] = first + parts[i % 8 / 4][i / 8];
        i += 1;
    }
    scale
}

/// The sub-blocks of 32 in the low nibbles of 64 bytes, and those in the high ones.
const NIBBLES: [[u16; 4]; 2] = [[0, 0, 2, 2], [1, 1, 3, 3]];
/// The sub-blocks of 16 in 64 quants, and in the next.
const SIXTEENS: [[u16; 4]; 2] = [[0, 1, 2, 3], [4, 5, 6, 7]];

/// The scales of sub-blocks of 32, for each row the first and the second half of its block.
const OF_32: [[[u16; 32]; 2]; MAX_ROWS] = [
    [packed(0, NIBBLES), packed(4, NIBBLES)],
    [packed(8, NIBBLES), packed(12, NIBBLES)],
    [packed(16, NIBBLES), packed(20, NIBBLES)],
    [packed(24, NIBBLES), packed(28, NIBBLES)],
];
/// The scales of sub-blocks of 16, for the first and the second half of a block.
const OF_16: [[u16; 32]; 2] = [packed(0, SIXTEENS), packed(8, SIXTEENS)];

/// In every part lanes 0 and 2 of `a` added, and of `b`, then lanes 1 and 3 of `a`, and of `b`.
#[inline(always)]
unsafe fn add_pairs(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
}

impl<const VNNI: bool> Avx512<VNNI> {
    /// Sums of the products of four unsigned and four signed bytes.
    #[inline(always)]
    unsafe fn dot_64(unsigned: __m512i, y: *const u8) -> __m512i {
        // VNNI is the type's promise.
        let y = _mm512_loadu_si512(y.cast());
        if VNNI {
            _mm512_dpbusd_epi32(_mm512_setzero_si512(), unsigned, y)
        } else {
            let pairs = _mm512_maddubs_epi16(unsigned, y);
            _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))
        }
    }

    /// Sums of the products of four signed bytes and four others, all in -127..=127.
    #[inline(always)]
    unsafe fn dot_signed(x: __m512i, y: *const u8) -> __m512i {
        let y = _mm512_loadu_si512(y.cast());
        let zero = _mm512_setzero_si512();
        let y = _mm512_mask_sub_epi8(y, _mm512_movepi8_mask(x), zero, y);
        let pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(x), y);
        _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))
    }

    /// Sums of the products of 128 quants and activations times their scales.
    #[inline(always)]
    unsafe fn scaled(
        quants: [__m512i; 2],
        y: *const u8,
        scales: __m512i,
        which: &[u16; 32],
    ) -> __m512i {
        // four products of quants of six bits at most fit 16 bits
        let dots = (Self::dot_64(quants[0], y), Self::dot_64(quants[1], y.add(64)));
        let dots = _mm512_packs_epi32(dots.0, dots.1);
        let which = _mm512_loadu_si512(which.as_ptr().cast());
        let scales = _mm512_permutexvar_epi16(which, scales);
        _mm512_madd_epi16(dots, scales)
    }

    /// 32 bytes rotated left by the first number of bits, then the same bytes rotated by the second.
    #[inline(always)]
    unsafe fn rotated_twice(bytes: __m256i, first: i64, second: i64) -> __m512i {
        let (a, b) = (first & 63, second & 63);
        let counts = _mm512_setr_epi64(a, a, a, a, b, b, b, b);
        _mm512_rolv_epi64(_mm512_broadcast_i64x4(bytes), counts)
    }
}

/// `a | (b & c)`, by the truth table of `vpternlogd`.
const OR_AND: i32 = 0b1111_1000;

impl<const VNNI: bool> DotVector for Avx512<VNNI> {
    type Quants = __m512i;
    type Integers = __m512i;
    type Floats = F32x16;
    /// Words.
    type Scales = __m512i;

    forward_to_intrinsics!(
        _mm512_setzero_si512,
        _mm512_or_si512,
        _mm512_and_si512,
        _mm512_add_epi32,
        _mm512_madd_epi16,
        _mm512_shuffle_epi32,
        _mm512_srlv_epi32,
        _mm512_unpacklo_epi8,
        _mm512_unpackhi_epi8,
        _mm512_zextsi128_si512,
        _mm512_broadcast_i32x4
    );

    #[inline(always)]
    unsafe fn rows_of_16(from: *const u8, stride: usize) -> Self::Integers {
        let row = |r: usize| from.add(r * stride).cast::<__m128i>().read_unaligned();
        let rows = _mm512_castsi128_si512(row(0));
        let rows = _mm512_inserti32x4::<1>(rows, row(1));
        let rows = _mm512_inserti32x4::<2>(rows, row(2));
        _mm512_inserti32x4::<3>(rows, row(3))
    }

    #[inline(always)]
    unsafe fn first_dwords(x: Self::Integers) -> __m128i {
        let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
        _mm512_castsi512_si128(_mm512_permutexvar_epi32(first, x))
    }

    #[inline(always)]
    unsafe fn totals(rows: [Self::Integers; MAX_ROWS]) -> __m128i {
        let (a, b) = (add_pairs(rows[0], rows[1]), add_pairs(rows[2], rows[3]));
        let sums = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        let high = _mm512_extracti64x4_epi64::<1>(sums);
        let sums = _mm256_add_epi32(_mm512_castsi512_si256(sums), high);
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums))
    }

    #[inline(always)]
    unsafe fn totals_of_eight(rows: [__m256i; MAX_ROWS]) -> __m128i {
        let (a, b) = (
            super::vector::add_pairs(rows[0], rows[1]),
            super::vector::add_pairs(rows[2], rows[3]),
        );
        let sums = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums))
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Quants; 2] {
        let (bytes, mask) = (_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(0x0f));
        [_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask)]
    }

    #[inline(always)]
    unsafe fn two_bits(from: *const u8) -> [Self::Quants; 2] {
        let (bytes, mask) = (_mm256_loadu_si256(from.cast()), _mm512_set1_epi8(3));
        [
            _mm512_and_si512(Self::rotated_twice(bytes, 0, -2), mask),
            _mm512_and_si512(Self::rotated_twice(bytes, -4, -6), mask),
        ]
    }

    #[inline(always)]
    unsafe fn with_bits<const FIRST: i32, const SECOND: i32, const AT: i32>(
        low: Self::Quants,
        bits: __m256i,
    ) -> Self::Quants {
        let bits = Self::rotated_twice(bits, i64::from(AT - FIRST), i64::from(AT - SECOND));
        _mm512_ternarylogic_epi64::<OR_AND>(low, bits, _mm512_set1_epi8(1 << AT))
    }

    #[inline(always)]
    unsafe fn six_bits(low: *const u8, high: *const u8) -> [Self::Quants; 2] {
        let [first, second] = Self::nibbles(low);
        let (high, high_mask) = (_mm256_loadu_si256(high.cast()), _mm512_set1_epi8(0x30));
        let top = (Self::rotated_twice(high, 4, 2), Self::rotated_twice(high, 0, -2));
        [
            _mm512_ternarylogic_epi64::<OR_AND>(first, top.0, high_mask),
            _mm512_ternarylogic_epi64::<OR_AND>(second, top.1, high_mask),
        ]
    }

    #[inline(always)]
    unsafe fn scales_of_16(bytes: __m128i) -> Self::Scales {
        _mm512_castsi256_si512(_mm256_cvtepi8_epi16(bytes))
    }

    #[inline(always)]
    unsafe fn sub_eight(this: Self::Integers, eight: __m256i) -> Self::Integers {
        _mm512_sub_epi32(this, _mm512_zextsi256_si512(eight))
    }

    #[inline(always)]
    unsafe fn scaled_of_32(
        quants: [Self::Quants; 2],
        y: *const u8,
        scales: Self::Integers,
        row: usize,
        second: bool,
    ) -> Self::Integers {
        Self::scaled(quants, y, scales, &OF_32[row][usize::from(second)])
    }

    #[inline(always)]
    unsafe fn scaled_of_16<const SECOND: bool>(
        quants: [Self::Quants; 2],
        y: *const u8,
        scales: Self::Scales,
    ) -> Self::Integers {
        Self::scaled(quants, y, scales, &OF_16[SECOND as usize])
    }

    #[inline(always)]
    unsafe fn scaled_values<const HALF: usize>(
        qs: *const u8,
        y: &HalfOrder,
        scales: __m256i,
    ) -> Self::Integers {
        // VNNI is the type's promise.
        let [low, high] = Self::nibbles(qs);
        let start = _mm512_loadu_si512(y.starts.as_ptr().add(4 * HALF).cast());
        let y = y.qs.as_ptr().cast::<u8>().add(128 * HALF);
        // two products of unsigned values would not fit the 16 bits of sums without VNNI
        let table = if VNNI { UNSIGNED.as_ptr() } else { VALUES.as_ptr().cast() };
        let table = Self::repeat(table);
        let (low, high) = (_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high));
        let sums = if VNNI {
            let sums = _mm512_dpbusd_epi32(start, low, _mm512_loadu_si512(y.cast()));
            _mm512_dpbusd_epi32(sums, high, _mm512_loadu_si512(y.add(64).cast()))
        } else {
            _mm512_add_epi32(Self::dot_signed(low, y), Self::dot_signed(high, y.add(64)))
        };
        let which = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        let which = _mm512_add_epi32(which, _mm512_set1_epi32(4 * HALF as i32));
        let scales = _mm512_permutexvar_epi32(which, _mm512_zextsi256_si512(scales));
        _mm512_mullo_epi32(sums, scales)
    }

    #[inline(always)]
    unsafe fn dot_32(unsigned: __m256i, signed: __m256i) -> __m256i {
        // VNNI is the type's promise.
        if VNNI {
            _mm256_dpbusd_epi32(_mm256_setzero_si256(), unsigned, signed)
        } else {
            _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), _mm256_set1_epi16(1))
        }
    }

    #[inline(always)]
    unsafe fn gather(values: *const f32, index: *const u8) -> Self::Floats {
        let indices = _mm512_cvtepu8_epi32(_mm_loadu_si128(index.cast()));
        F32x16(_mm512_i32gather_ps::<4>(indices, values))
    }

    #[inline(always)]
    unsafe fn widen(eight: __m256) -> Self::Floats {
        F32x16(_mm512_zextps256_ps512(eight))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::Floats {
        let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        F32x16(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
    }

    #[inline(always)]
    unsafe fn total_sixteen_floats([acc, _]: [Self::Floats; 2]) -> f32 {
        let halves = (_mm512_castps512_ps256(acc.0), _mm512_extractf32x8_ps::<1>(acc.0));
        total_eight_floats(_mm256_add_ps(halves.0, halves.1))
    }
}
