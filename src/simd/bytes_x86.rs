//! Operations with bytes that several kernels for x86-64 share: unpacking 32 quants of four bits, looking them up in a
//! table, converting an f16.
//!
//! # Safety
//!
//! For every function: the CPU has AVX2 and F16C.

use std::arch::x86_64::*;

/// 32 quants of four bits: j and j + 16 share byte j.
#[inline(always)]
pub(crate) unsafe fn nibbles_32(qs: &[u8; 16]) -> __m256i {
    let qs = _mm_loadu_si128(qs.as_ptr().cast());
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(qs), qs);
    _mm256_and_si256(both, _mm256_set1_epi8(0x0f))
}

/// The table's value for each of these quants.
#[inline(always)]
pub(crate) unsafe fn look_up(table: &[u8; 16], qs: &[u8; 16]) -> __m256i {
    let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
    _mm256_shuffle_epi8(table, nibbles_32(qs))
}

/// The same, in memory.
#[inline(always)]
pub(crate) unsafe fn look_up_bytes(table: &[u8; 16], qs: &[u8; 16]) -> [u8; 32] {
    let mut values = [0u8; 32];
    _mm256_storeu_si256(values.as_mut_ptr().cast(), look_up(table, qs));
    values
}

/// f16 to f32, exact.
#[inline(always)]
pub(crate) unsafe fn f16_to_f32(bits: u16) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
}
