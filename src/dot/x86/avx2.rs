//! Dot products with AVX2: 64 quants are two vectors.

use super::vector::{
    DotVector, MAX_ROWS, forward_to_intrinsics, table_values, total_eight_floats, totals_of_two,
};
use crate::dot::activations::{Activations, HalfOrder};
use crate::dot::rows::Rows;
use crate::simd::{F32x8, Vector};
use std::arch::x86_64::*;

/// See [`crate::dispatch::dot_rows`].
///
/// # Safety
///
/// The CPU has the ISA.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn dot_rows(rows: Rows<'_>, activations: &Activations, out: &mut [f32]) {
    super::products::dot_rows::<Avx2>(rows, activations, out)
}

/// See [`crate::dispatch::block_sums`].
///
/// # Safety
///
/// The CPU has the ISA.
#[cfg(test)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn block_sums(
    kind: crate::block::TensorType,
    block: &[u8],
    y: &crate::dot::activations::BlockQ8K,
) -> crate::dot::scalar::KSums {
    super::products::block_sums::<Avx2>(kind, block, y)
}

#[derive(Clone, Copy)]
struct Avx2;

/// Word `first` in the low half of the vector and `second` in the high one, as a byte shuffle.
const fn spread(first: u8, second: u8) -> [u8; 32] {
    let mut shuffle = [0u8; 32];
    let mut i = 0;
    while i < 32 {
        let word = if i < 16 { first } else { second };
        shuffle[i] = 2 * word + i as u8 % 2;
        i += 1;
    }
    shuffle
}

/// Shuffle k gives all words scale k, in the order that the nibbles of 64 bytes have.
const SAME: [[u8; 32]; 8] = [
    spread(0, 0),
    spread(2, 2),
    spread(1, 1),
    spread(3, 3),
    spread(4, 4),
    spread(6, 6),
    spread(5, 5),
    spread(7, 7),
];
/// Shuffle k gives the low half scale 2 k and the high half scale 2 k + 1.
const PAIRS: [[u8; 32]; 4] = [spread(0, 1), spread(2, 3), spread(4, 5), spread(6, 7)];

impl Avx2 {
    /// Bit `bit` of every byte as its bit `at`, and nothing else.
    #[inline(always)]
    unsafe fn move_bit(bits: __m256i, bit: i32, at: i32) -> __m256i {
        let moved = if bit < at {
            _mm256_sllv_epi32(bits, _mm256_set1_epi32(at - bit))
        } else {
            _mm256_srlv_epi32(bits, _mm256_set1_epi32(bit - at))
        };
        _mm256_and_si256(moved, _mm256_set1_epi8(1 << at))
    }

    /// Sums of the products of 128 quants and activations, 32 at once, each times its scales.
    #[inline(always)]
    unsafe fn scaled(
        quants: [[__m256i; 2]; 2],
        y: *const u8,
        scales: __m256i,
        shuffles: &[[u8; 32]],
    ) -> __m256i {
        let mut sums = _mm256_setzero_si256();
        for i in 0..4 {
            let y = _mm256_loadu_si256(y.add(32 * i).cast());
            let products = _mm256_maddubs_epi16(quants[i / 2][i % 2], y);
            let shuffle = _mm256_loadu_si256(shuffles[i].as_ptr().cast());
            let scale = _mm256_shuffle_epi8(scales, shuffle);
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(scale, products));
        }
        sums
    }
}

impl DotVector for Avx2 {
    type Quants = [__m256i; 2];
    type Integers = __m256i;
    type Floats = F32x8;
    /// Eight words, in both parts; the other eight.
    type Scales = [__m256i; 2];

    forward_to_intrinsics!(
        _mm256_setzero_si256,
        _mm256_or_si256,
        _mm256_and_si256,
        _mm256_add_epi32,
        _mm256_madd_epi16,
        _mm256_shuffle_epi32,
        _mm256_srlv_epi32,
        _mm256_unpacklo_epi8,
        _mm256_unpackhi_epi8,
        _mm256_zextsi128_si256,
        _mm256_broadcastsi128_si256
    );

    #[inline(always)]
    unsafe fn rows_of_16(from: *const u8, stride: usize) -> Self::Integers {
        _mm256_loadu2_m128i(from.add(stride).cast(), from.cast())
    }

    #[inline(always)]
    unsafe fn first_dwords(x: Self::Integers) -> __m128i {
        let first = _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4);
        _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(x, first))
    }

    #[inline(always)]
    unsafe fn totals(rows: [Self::Integers; MAX_ROWS]) -> __m128i {
        totals_of_two(rows)
    }

    #[inline(always)]
    unsafe fn totals_of_eight(rows: [__m256i; MAX_ROWS]) -> __m128i {
        totals_of_two(rows)
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Quants; 2] {
        // no closure: one that is not inlined would be compiled without the ISA
        let bytes = [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())];
        let mask = _mm256_set1_epi8(0x0f);
        let mut high = bytes;
        let mut low = bytes;
        for i in 0..2 {
            low[i] = _mm256_and_si256(bytes[i], mask);
            high[i] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes[i]), mask);
        }
        [low, high]
    }

    #[inline(always)]
    unsafe fn two_bits(from: *const u8) -> [Self::Quants; 2] {
        let (bytes, mask) = (_mm256_loadu_si256(from.cast()), _mm256_set1_epi8(3));
        [
            [_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16::<2>(bytes), mask)],
            [
                _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask),
                _mm256_and_si256(_mm256_srli_epi16::<6>(bytes), mask),
            ],
        ]
    }

    #[inline(always)]
    unsafe fn with_bits<const FIRST: i32, const SECOND: i32, const AT: i32>(
        low: Self::Quants,
        bits: __m256i,
    ) -> Self::Quants {
        let moved = [Self::move_bit(bits, FIRST, AT), Self::move_bit(bits, SECOND, AT)];
        [_mm256_or_si256(low[0], moved[0]), _mm256_or_si256(low[1], moved[1])]
    }

    #[inline(always)]
    unsafe fn six_bits(low: *const u8, high: *const u8) -> [Self::Quants; 2] {
        let high = _mm256_loadu_si256(high.cast());
        let mask = _mm256_set1_epi8(0x30);
        let [first, second] = Self::nibbles(low);
        let top = [
            _mm256_slli_epi16::<4>(high),
            _mm256_slli_epi16::<2>(high),
            high,
            _mm256_srli_epi16::<2>(high),
        ];
        let low = [first[0], first[1], second[0], second[1]];
        let mut six = low;
        for i in 0..4 {
            six[i] = _mm256_or_si256(low[i], _mm256_and_si256(top[i], mask));
        }
        [[six[0], six[1]], [six[2], six[3]]]
    }

    #[inline(always)]
    unsafe fn scales_of_16(bytes: __m128i) -> Self::Scales {
        let words = _mm256_cvtepi8_epi16(bytes);
        let halves = (_mm256_castsi256_si128(words), _mm256_permute4x64_epi64::<0xee>(words));
        [_mm256_broadcastsi128_si256(halves.0), halves.1]
    }

    #[inline(always)]
    unsafe fn sub_eight(this: Self::Integers, eight: __m256i) -> Self::Integers {
        _mm256_sub_epi32(this, eight)
    }

    #[inline(always)]
    unsafe fn scaled_of_32(
        quants: [Self::Quants; 2],
        y: *const u8,
        scales: Self::Integers,
        row: usize,
        second: bool,
    ) -> Self::Integers {
        let scales = if row == 0 {
            _mm256_permute4x64_epi64::<0b01_00_01_00>(scales)
        } else {
            _mm256_permute4x64_epi64::<0b11_10_11_10>(scales)
        };
        Self::scaled(quants, y, scales, &SAME[4 * usize::from(second)..])
    }

    #[inline(always)]
    unsafe fn scaled_of_16<const SECOND: bool>(
        quants: [Self::Quants; 2],
        y: *const u8,
        scales: Self::Scales,
    ) -> Self::Integers {
        Self::scaled(quants, y, scales[SECOND as usize], &PAIRS)
    }

    #[inline(always)]
    unsafe fn scaled_values<const HALF: usize>(
        qs: *const u8,
        y: &HalfOrder,
        scales: __m256i,
    ) -> Self::Integers {
        let y = y.qs.as_ptr().cast::<u8>().add(128 * HALF);
        let quants = Self::nibbles(qs);
        let mut total = _mm256_setzero_si256();
        for i in 0..2 {
            // two sub-blocks, their first halves and their second ones
            let mut sums = _mm256_setzero_si256();
            for (half, quants) in quants.iter().enumerate() {
                let x = _mm256_shuffle_epi8(table_values(), quants[i]);
                let y = _mm256_loadu_si256(y.add(64 * half + 32 * i).cast());
                let dots = Self::dot_32(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x));
                sums = _mm256_add_epi32(sums, dots);
            }
            let sub = 4 * HALF as i32 + 2 * i as i32;
            let which = _mm256_set_m128i(_mm_set1_epi32(sub + 1), _mm_set1_epi32(sub));
            let scale = _mm256_permutevar8x32_epi32(scales, which);
            total = _mm256_add_epi32(total, _mm256_mullo_epi32(sums, scale));
        }
        total
    }

    #[inline(always)]
    unsafe fn dot_32(unsigned: __m256i, signed: __m256i) -> __m256i {
        _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), _mm256_set1_epi16(1))
    }

    #[inline(always)]
    unsafe fn gather(values: *const f32, index: *const u8) -> Self::Floats {
        let indices = _mm256_cvtepu8_epi32(_mm_loadl_epi64(index.cast()));
        F32x8(_mm256_i32gather_ps::<4>(values, indices))
    }

    #[inline(always)]
    unsafe fn widen(eight: __m256) -> Self::Floats {
        F32x8(eight)
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::Floats {
        let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        F32x8(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)))
    }

    #[inline(always)]
    unsafe fn total_sixteen_floats([low, high]: [Self::Floats; 2]) -> f32 {
        total_eight_floats(low.add(high).0)
    }
}
