//! Dot products of the legacy types, 32 weights at a time, and of floats.

use super::vector::{DotVector, prefetch, total_eight_floats};
use crate::block::iq4::BYTES;
use crate::block::{
    BlockBF16, BlockF16, BlockF32, BlockIQ4NL, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1,
    BlockQ8_0, Bytes, QK, blocks,
};
use crate::dot::scalar::Activation32;
use crate::simd::Vector;
use crate::simd::bytes_x86::{look_up, nibbles_32};
use std::arch::x86_64::*;

/// A block of a legacy type. Its first field is the scale; the second is the minimum, if it has one. Both are f16. The
/// block is longer than eight bytes.
pub(super) trait LegacyDot: Bytes {
    /// Whether there is a minimum.
    const MIN: bool;

    /// Eight sums of products of `y` and the quants minus their offset.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA.
    unsafe fn sums<V: DotVector>(&self, y: __m256i) -> __m256i;
}

/// 32 quants of five bits. Bit j of `bits` is the fifth bit of quant j.
#[inline(always)]
unsafe fn five_bits_32(qs: &[u8; QK / 2], bits: [u8; 4]) -> __m256i {
    // AVX2; the callers' ISAs have it.
    let bits = _mm256_set1_epi32(i32::from_le_bytes(bits));
    let byte =
        _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, byte), bit), bit);
    _mm256_or_si256(nibbles_32(qs), _mm256_and_si256(is_set, _mm256_set1_epi8(16)))
}

/// `Σ (u - offset)·y`
#[inline(always)]
unsafe fn dot_offset<V: DotVector>(unsigned: __m256i, offset: i8, y: __m256i) -> __m256i {
    let excess = V::dot_32(_mm256_set1_epi8(offset), y);
    _mm256_sub_epi32(V::dot_32(unsigned, y), excess)
}

/// `Σ x·y`
#[inline(always)]
unsafe fn dot_signed<V: DotVector>(x: __m256i, y: __m256i) -> __m256i {
    V::dot_32(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x))
}

macro_rules! legacy_dot {
    ($block:ident, $min:expr, |$b:ident, $y:ident| $sums:expr) => {
        impl LegacyDot for $block {
            const MIN: bool = $min;

            #[inline(always)]
            unsafe fn sums<V: DotVector>(&self, $y: __m256i) -> __m256i {
                let $b = self;
                $sums
            }
        }
    };
}

legacy_dot!(BlockQ4_0, false, |b, y| dot_offset::<V>(nibbles_32(&b.qs), 8, y));
legacy_dot!(BlockQ4_1, true, |b, y| V::dot_32(nibbles_32(&b.qs), y));
legacy_dot!(BlockQ5_0, false, |b, y| dot_offset::<V>(five_bits_32(&b.qs, b.qh), 16, y));
legacy_dot!(BlockQ5_1, true, |b, y| V::dot_32(five_bits_32(&b.qs, b.qh), y));
legacy_dot!(BlockQ8_0, false, |b, y| {
    dot_signed::<V>(_mm256_loadu_si256(b.qs.as_ptr().cast()), y)
});
legacy_dot!(BlockIQ4NL, false, |b, y| dot_signed::<V>(look_up(&BYTES, &b.qs), y));

/// `scales_and_sums` are those of the blocks of activations.
#[inline(always)]
unsafe fn dot_legacy<V: DotVector, B: LegacyDot, A: Activation32>(
    row: &[B],
    y: &[A],
    scales_and_sums: &[[f32; 2]],
) -> f32 {
    let (mut acc, mut mins) = (_mm256_setzero_ps(), _mm_setzero_ps());
    for (block, (y, scales_and_sums)) in row.iter().zip(y.iter().zip(scales_and_sums)) {
        prefetch(block, size_of::<B>());
        let sums = block.sums::<V>(_mm256_loadu_si256(y.quants().as_ptr().cast()));
        // scale times scale, minimum times sum
        let scales_and_sums = _mm_castsi128_ps(_mm_loadl_epi64(scales_and_sums.as_ptr().cast()));
        // in every type the scale is first, and the minimum second if there is one
        let own = _mm_cvtph_ps(_mm_loadl_epi64(std::ptr::from_ref(block).cast()));
        let products = _mm_mul_ps(own, scales_and_sums);
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_broadcastss_ps(products), acc);
        if B::MIN {
            mins = _mm_add_ps(mins, products);
        }
    }
    total_eight_floats(acc) + _mm_cvtss_f32(_mm_movehdup_ps(mins))
}

/// Floats of 16 or 32 bits.
pub(super) trait NumberDot: Bytes {
    unsafe fn load<V: DotVector>(from: *const u8) -> V::Floats;
}

macro_rules! number_dot {
    ($block:ident, |$from:ident| $load:expr) => {
        impl NumberDot for $block {
            #[inline(always)]
            unsafe fn load<V: DotVector>($from: *const u8) -> V::Floats {
                $load
            }
        }
    };
}

number_dot!(BlockF32, |from| V::Floats::load(from.cast()));
number_dot!(BlockF16, |from| V::Floats::load_half(from.cast()));
number_dot!(BlockBF16, |from| V::load_bf16(from.cast()));

/// Sixteen lanes, in as many vectors as they take.
#[derive(Clone, Copy)]
struct Sixteen<V: DotVector>([V::Floats; 2]);

impl<V: DotVector> Sixteen<V> {
    /// Adds the products of sixteen values.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA, and `w` and `x` point to sixteen values each.
    #[inline(always)]
    unsafe fn add_products<B: NumberDot>(&mut self, w: *const u8, x: *const f32) {
        for (v, acc) in self.0.iter_mut().enumerate().take(16 / V::Floats::LANES) {
            let i = v * V::Floats::LANES;
            let w = B::load::<V>(w.add(i * size_of::<B>()));
            *acc = w.mul_add(V::Floats::load(x.add(i)), *acc);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self([self.0[0].add(other.0[0]), self.0[1].add(other.0[1])])
    }
}

/// Four times sixteen lanes are filled in turn. The rest is padded with zeros.
#[inline(always)]
unsafe fn dot_numbers<V: DotVector, B: NumberDot>(row: &[B], x: &[f32]) -> f32 {
    let (w, count) = (row.as_ptr(), x.len());
    let x = x.as_ptr();
    // every load is within the slices, or within the padded copies.
    let mut acc = [Sixteen::<V>([V::Floats::splat(0.0); 2]); 4];
    let mut i = 0;
    while i + 64 <= count {
        prefetch(w.add(i), 64 * size_of::<B>());
        for (k, acc) in acc.iter_mut().enumerate() {
            acc.add_products::<B>(w.add(i + 16 * k).cast(), x.add(i + 16 * k));
        }
        i += 64;
    }
    while i < count {
        let n = 16.min(count - i);
        let (mut few, mut y) = ([0u8; 64], [0f32; 16]);
        std::ptr::copy_nonoverlapping(w.add(i).cast(), few.as_mut_ptr(), n * size_of::<B>());
        std::ptr::copy_nonoverlapping(x.add(i), y.as_mut_ptr(), n);
        acc[0].add_products::<B>(few.as_ptr(), y.as_ptr());
        i += n;
    }
    V::total_sixteen_floats(acc[0].add(acc[1]).add(acc[2].add(acc[3])).0)
}

#[inline(always)]
pub(super) unsafe fn legacy_rows<V: DotVector, B: LegacyDot, A: Activation32>(
    data: &[u8],
    y: &[A],
    scales_and_sums: &[[f32; 2]],
    out: &mut [f32],
) {
    for (row, out) in blocks::<B>(data).chunks_exact(y.len()).zip(out) {
        *out = dot_legacy::<V, B, A>(row, y, scales_and_sums);
    }
}

#[inline(always)]
pub(super) unsafe fn number_rows<V: DotVector, B: NumberDot>(
    data: &[u8],
    x: &[f32],
    out: &mut [f32],
) {
    for (row, out) in blocks::<B>(data).chunks_exact(x.len()).zip(out) {
        *out = dot_numbers::<V, B>(row, x);
    }
}
