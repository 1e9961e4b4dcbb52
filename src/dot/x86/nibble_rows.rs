//! Q4_K and Q5_K: as many rows at once as a vector has parts of 128 bits.
//!
//! The first 16 bytes of a block, its scales, fill one part. So the scales of one block per row are unpacked together,
//! and the minima and block scales are processed together, too. The quants of a row are unpacked into the order of
//! [`NibbleOrder`]. One multiply-add multiplies bytes by bytes; its sums still fit 16 bits. A second one multiplies by
//! the scales of the sub-blocks. Only then, once per block, integers become floats.
//!
//! A single remaining row uses the first part of the vectors, with the same order of additions.

use super::k_rows::{KRows, k_rows};
use super::outliers::Outliers;
use super::vector::{DotVector, MAX_ROWS, for_each_group, prefetch};
use crate::block::{BlockQ4K, BlockQ5K, Bytes, blocks};
use crate::dot::activations::{Activations, NibbleOrder};
#[cfg(test)]
use crate::dot::{activations::BlockQ8K, scalar::KSums};
use crate::simd::Vector;
use std::arch::x86_64::*;

/// Q4_K or Q5_K, whose first 16 bytes are two f16 block scales and the packed scales.
pub(super) trait NibbleBlock: Bytes {
    /// The quants of half a block, those from low nibbles and those from high nibbles.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA.
    unsafe fn quants<V: DotVector>(&self, second: bool) -> [V::Quants; 2];
}

impl NibbleBlock for BlockQ4K {
    #[inline(always)]
    unsafe fn quants<V: DotVector>(&self, second: bool) -> [V::Quants; 2] {
        // All reads are within the block.
        V::nibbles(self.qs.as_ptr().add(64 * usize::from(second)))
    }
}

impl NibbleBlock for BlockQ5K {
    #[inline(always)]
    unsafe fn quants<V: DotVector>(&self, second: bool) -> [V::Quants; 2] {
        // All reads are within the block.
        let [low, high] = V::nibbles(self.qs.as_ptr().add(64 * usize::from(second)));
        let bits = _mm256_loadu_si256(self.qh.as_ptr().cast());
        // bit j is that of sub-block j
        if second {
            [V::with_bits::<4, 6, 4>(low, bits), V::with_bits::<5, 7, 4>(high, bits)]
        } else {
            [V::with_bits::<0, 2, 4>(low, bits), V::with_bits::<1, 3, 4>(high, bits)]
        }
    }
}

k_rows! {
    BlockQ4K: |data, a, out| dot_rows::<V, Self, 0>(data, None, &a.nibble_order, out);
    BlockQ5K: |data, a, out| dot_rows::<V, Self, 0>(data, None, &a.nibble_order, out);
}

/// Scales and minima as words, eight per row. `headers` has the first 16 bytes of a block of each row.
#[inline(always)]
unsafe fn unpack_scales<V: DotVector>(headers: V::Integers) -> [V::Integers; 2] {
    // words of the packed scales: [low scales, both low nibbles, low minima, both low nibbles]
    let low = V::shift_right(V::shuffle::<0b11_10_11_01>(headers), [0, 0, 0, 4]);
    let low = V::and(low, [0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f]);
    // the top two bits of the first scales and minima belong to the last ones
    let high = V::shift_right(V::shuffle::<0b10_10_01_01>(headers), [2; 4]);
    let high = V::and(high, [0, 0x3030_3030, 0, 0x3030_3030]);
    V::widen_bytes(V::or(low, high))
}

/// The integers of one row's block, without the minima.
#[inline(always)]
unsafe fn scaled_sums<V: DotVector, B: NibbleBlock>(
    block: &B,
    y: &NibbleOrder,
    scales: V::Integers,
    row: usize,
) -> V::Integers {
    let y = y.qs.as_ptr().cast::<u8>();
    // All reads are within the blocks.
    let first = V::scaled_of_32(block.quants::<V>(false), y, scales, row, false);
    let second = V::scaled_of_32(block.quants::<V>(true), y.add(128), scales, row, true);
    V::add(first, second)
}

/// The first 16 bytes of a block in each row, unpacked.
struct Headers<V: DotVector> {
    /// Words, eight per row.
    scales: V::Integers,
    minima: V::Integers,
    /// Scale of the scales of each row, and scale of the minima, times the activations' scale.
    block_scales: [__m128; 2],
}

impl<V: DotVector> Headers<V> {
    #[inline(always)]
    unsafe fn unpack(headers: V::Integers, d8: f32) -> Self {
        let [scales, minima] = unpack_scales::<V>(headers);
        let pairs = _mm256_cvtph_ps(V::first_dwords(headers));
        let pairs = _mm256_mul_ps(pairs, _mm256_set1_ps(d8));
        let halves = (_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
        let block_scales = [
            _mm_shuffle_ps::<0b10_00_10_00>(halves.0, halves.1),
            _mm_shuffle_ps::<0b11_01_11_01>(halves.0, halves.1),
        ];
        Self { scales, minima, block_scales }
    }

    /// For each row, the sum of minima times sums of activations.
    #[inline(always)]
    unsafe fn minima_sums(&self, y: &NibbleOrder) -> __m128i {
        V::part_totals(V::madd(self.minima, V::repeat(y.sums.as_ptr().cast())))
    }
}

/// The products of [`DotVector::ROWS`] rows of `y.len()` blocks, of which `first` is the first, or of
/// `ONE`.
#[inline(always)]
unsafe fn dot_group<V: DotVector, B: NibbleBlock, const N: usize, const ONE: bool>(
    blocks: &[B],
    outliers: Option<Outliers<'_>>,
    first: usize,
    y: &[NibbleOrder],
) -> [f32; MAX_ROWS] {
    let (rows, length) = (if ONE { 1 } else { V::ROWS }, y.len());
    let (mut acc, mut mins) = (_mm_setzero_ps(), _mm_setzero_ps());
    let mut added = [[V::Floats::splat(0.0); 2]; MAX_ROWS];
    for (i, y) in y.iter().enumerate() {
        let start = blocks.as_ptr().add(first * length + i).cast();
        let headers =
            if ONE { V::first_16(start) } else { V::rows_of_16(start, length * size_of::<B>()) };
        let headers = Headers::<V>::unpack(headers, y.d);
        let [d, dmin] = headers.block_scales;
        mins = _mm_fmadd_ps(_mm_cvtepi32_ps(headers.minima_sums(y)), dmin, mins);
        let mut sums = [V::zero(); MAX_ROWS];
        for row in 0..rows {
            let index = (first + row) * length + i;
            let block = blocks.get_unchecked(index);
            prefetch(block, size_of::<B>());
            sums[row] = scaled_sums::<V, B>(block, y, headers.scales, row);
            if let Some(outliers) = &outliers {
                added[row] = outliers.add::<V, N>(added[row], i, index);
            }
        }
        acc = _mm_fmadd_ps(_mm_cvtepi32_ps(V::totals(sums)), d, acc);
    }
    let mut out = [[0f32; MAX_ROWS]; 2];
    _mm_storeu_ps(out[0].as_mut_ptr(), acc);
    _mm_storeu_ps(out[1].as_mut_ptr(), mins);
    let [mut out, mins] = out;
    for row in 0..rows {
        if outliers.is_some() {
            out[row] += V::total_sixteen_floats(added[row]);
        }
        out[row] -= mins[row];
    }
    out
}

/// See [`crate::dispatch::dot_rows`]; the lengths have been checked.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(super) unsafe fn dot_rows<V: DotVector, B: NibbleBlock, const N: usize>(
    data: &[u8],
    outliers: Option<Outliers<'_>>,
    y: &[NibbleOrder],
    out: &mut [f32],
) {
    let blocks = blocks::<B>(data);
    // there are `out.len()` rows.
    for_each_group!(V, out, |row| {
        many: dot_group::<V, B, N, false>(blocks, outliers, row, y),
        one: dot_group::<V, B, N, true>(blocks, outliers, row, y),
    });
}

/// The integers of a block, added up.
///
/// # Safety
///
/// The CPU has V's ISA.
#[cfg(test)]
#[inline(always)]
pub(super) unsafe fn block_sums<V: DotVector, B: NibbleBlock>(block: &[u8], y: &BlockQ8K) -> KSums {
    let (block, y) = (&blocks::<B>(block)[0], NibbleOrder::new(y));
    let headers = V::first_16(std::ptr::from_ref(block).cast());
    let headers = Headers::<V>::unpack(headers, y.d);
    let sums = scaled_sums::<V, B>(block, &y, headers.scales, 0);
    KSums {
        scaled: _mm_cvtsi128_si32(V::totals([sums, V::zero(), V::zero(), V::zero()])),
        mins: _mm_cvtsi128_si32(headers.minima_sums(&y)),
    }
}
