//! Dot products on x86-64: the algorithms, once over [`DotVector`].
//!
//! K-quants: the numbers of 64 weights are unpacked into the order that the activations have, so
//! that bytes meet bytes in one multiply-add each (`vpmaddubsw`, `vpdpbusd`), whose sums still fit
//! 16 bits. A second one (`vpmaddwd`, `vpdpwssd`) multiplies by the scales of the sub-blocks, and
//! only then, once a block, integers become floats. The minima meet the activations' sums, sixteen
//! at once.
//!
//! The outliers of a Q4_HIFI block are taken eight at a time: places are widened and gather from the
//! activations' values, which are f32 already; one fused multiply-add with the widened residuals.
//! That goes to the accumulator of the minima, which has eight lanes on every ISA.

pub(in crate::kernel) mod avx2;
pub(in crate::kernel) mod avx512;
mod plain;

use crate::block::{
    BlockBF16, BlockF16, BlockF32, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K,
    BlockQ6K, BlockQ8_0, Bytes, QK_K, TensorType, blocks,
};
use crate::dot::Rows;
use crate::dot::activations::{Activations, BlockQ8K, Column, Sparse};
#[cfg(test)]
use crate::dot::scalar::KSums;
use plain::{legacy_rows, number_rows};
use std::arch::x86_64::*;

/// What an ISA has to offer. `Numbers` are 64 unsigned bytes.
///
/// # Safety
///
/// Every function may be called only where the CPU has the implementor's ISA, with pointers to as
/// many bytes as it says; they need no alignment.
pub(crate) trait DotVector {
    type Numbers: Copy;
    /// i32 lanes.
    type Sums: Copy;
    /// As many f32 lanes.
    type Floats: Copy;
    /// The scales of a block's sub-blocks, ready to be multiplied.
    type Scales: Copy;
    /// Lanes of `Floats`.
    const LANES: usize;

    /// The low halves of 32 bytes, then the high halves.
    unsafe fn nibbles(from: *const u8) -> Self::Numbers;
    /// With bit 2 `K` of the 32 bytes `bits` as the fifth of the first 32 numbers, bit 2 `K` + 1 of
    /// the others.
    unsafe fn with_fifth_bits<const K: i32>(low: Self::Numbers, bits: __m256i) -> Self::Numbers;
    /// 128 numbers of Q6_K: 64 bytes of low bits, 32 of high ones.
    unsafe fn six_bits(low: *const u8, high: *const u8) -> [Self::Numbers; 2];

    /// The eight scales of Q4_K and Q5_K, from the low half of `bytes`.
    unsafe fn scales_of_32(bytes: __m128i) -> Self::Scales;
    /// The sixteen signed scales of Q6_K.
    unsafe fn scales_of_16(bytes: __m128i) -> Self::Scales;
    /// Eight sums `min · (a + b)`: the minima are the high half of `bytes`, a and b neighbours in
    /// `sums`, i16.
    unsafe fn mins_dot(bytes: __m128i, sums: *const u8) -> __m256i;

    unsafe fn add(a: Self::Sums, b: Self::Sums) -> Self::Sums;
    /// Takes eight sums off the first lanes.
    unsafe fn sub_eight(this: Self::Sums, eight: __m256i) -> Self::Sums;
    /// Sums of the 128 products of `numbers` and the activations at `y`, times the scales of
    /// sub-blocks of 32 weights: the first four, or where `SECOND` the others.
    unsafe fn scaled_of_32<const SECOND: bool>(
        numbers: [Self::Numbers; 2],
        y: *const u8,
        scales: Self::Scales,
    ) -> Self::Sums;
    /// As above for sub-blocks of 16: the first eight, or the others.
    unsafe fn scaled_of_16<const SECOND: bool>(
        numbers: [Self::Numbers; 2],
        y: *const u8,
        scales: Self::Scales,
    ) -> Self::Sums;
    /// The lanes' sum: for the tests.
    #[cfg(test)]
    unsafe fn total(sums: Self::Sums) -> i32;

    /// Eight sums of the products of 32 unsigned and 32 signed bytes.
    unsafe fn dot_32(unsigned: __m256i, signed: __m256i) -> __m256i;

    unsafe fn zero_floats() -> Self::Floats;
    /// `acc + sums · factor`
    unsafe fn add_times(acc: Self::Floats, sums: Self::Sums, factor: __m128) -> Self::Floats;
    unsafe fn load_f32(from: *const u8) -> Self::Floats;
    unsafe fn load_f16(from: *const u8) -> Self::Floats;
    unsafe fn load_bf16(from: *const u8) -> Self::Floats;
    /// `acc + a · b`
    unsafe fn fma(a: Self::Floats, b: Self::Floats, acc: Self::Floats) -> Self::Floats;
    unsafe fn add_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The lanes, added pairwise as a tree.
    unsafe fn total_floats(acc: Self::Floats) -> f32;
}

/// A K-quant's integers.
pub(crate) trait KDot: Bytes {
    /// Whether there are minima.
    const MINS: bool;

    /// The sums of scaled products, and those of the minima.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA.
    unsafe fn sums<V: DotVector>(&self, y: &BlockQ8K) -> (V::Sums, __m256i);

    /// In the first lanes the scale of the scales and that of the minima.
    ///
    /// # Safety
    ///
    /// The CPU has F16C.
    unsafe fn factors(&self) -> __m128;
}

/// Scales and minima of Q4_K and Q5_K as 16 bytes; `header` is the first 16 bytes of a block.
#[inline(always)]
unsafe fn unpack_scales(header: __m128i) -> __m128i {
    // SAFETY: SSE2 and AVX2; the callers' ISAs have both.
    unsafe {
        // words of the packed scales: [low scales, both low nibbles, low minima, both low nibbles]
        let low = _mm_shuffle_epi32::<0b11_10_11_01>(header);
        let low = _mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4));
        let low_mask = _mm_setr_epi32(0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f);
        // the top two bits of the low ones belong to the others
        let high = _mm_srli_epi32::<2>(_mm_shuffle_epi32::<0b10_10_01_01>(header));
        let high_mask = _mm_setr_epi32(0, 0x3030_3030, 0, 0x3030_3030);
        _mm_or_si128(_mm_and_si128(low, low_mask), _mm_and_si128(high, high_mask))
    }
}

impl KDot for BlockQ4K {
    const MINS: bool = true;

    #[inline(always)]
    unsafe fn sums<V: DotVector>(&self, y: &BlockQ8K) -> (V::Sums, __m256i) {
        let (qs, y8) = (self.qs.as_ptr(), y.qs.as_ptr());
        // SAFETY: the caller's promise; all within the blocks.
        unsafe {
            let bytes = unpack_scales(_mm_loadu_si128(self.d.as_ptr().cast()));
            let scales = V::scales_of_32(bytes);
            let numbers = [V::nibbles(qs), V::nibbles(qs.add(32))];
            let first = V::scaled_of_32::<false>(numbers, y8, scales);
            let numbers = [V::nibbles(qs.add(64)), V::nibbles(qs.add(96))];
            let second = V::scaled_of_32::<true>(numbers, y8.add(128), scales);
            (V::add(first, second), V::mins_dot(bytes, y.bsums.as_ptr().cast()))
        }
    }

    #[inline(always)]
    unsafe fn factors(&self) -> __m128 {
        // SAFETY: the caller's promise; the block is longer.
        unsafe { _mm_cvtph_ps(_mm_loadl_epi64(self.d.as_ptr().cast())) }
    }
}

impl KDot for BlockQ5K {
    const MINS: bool = true;

    #[inline(always)]
    unsafe fn sums<V: DotVector>(&self, y: &BlockQ8K) -> (V::Sums, __m256i) {
        let (qs, y8) = (self.qs.as_ptr(), y.qs.as_ptr());
        // SAFETY: the caller's promise; all within the blocks.
        unsafe {
            let bytes = unpack_scales(_mm_loadu_si128(self.d.as_ptr().cast()));
            let scales = V::scales_of_32(bytes);
            let bits = _mm256_loadu_si256(self.qh.as_ptr().cast());
            let numbers = [
                V::with_fifth_bits::<0>(V::nibbles(qs), bits),
                V::with_fifth_bits::<1>(V::nibbles(qs.add(32)), bits),
            ];
            let first = V::scaled_of_32::<false>(numbers, y8, scales);
            let numbers = [
                V::with_fifth_bits::<2>(V::nibbles(qs.add(64)), bits),
                V::with_fifth_bits::<3>(V::nibbles(qs.add(96)), bits),
            ];
            let second = V::scaled_of_32::<true>(numbers, y8.add(128), scales);
            (V::add(first, second), V::mins_dot(bytes, y.bsums.as_ptr().cast()))
        }
    }

    #[inline(always)]
    unsafe fn factors(&self) -> __m128 {
        // SAFETY: the caller's promise; the block is longer.
        unsafe { _mm_cvtph_ps(_mm_loadl_epi64(self.d.as_ptr().cast())) }
    }
}

impl KDot for BlockQ6K {
    const MINS: bool = false;

    #[inline(always)]
    unsafe fn sums<V: DotVector>(&self, y: &BlockQ8K) -> (V::Sums, __m256i) {
        let (ql, qh, y8) = (self.ql.as_ptr(), self.qh.as_ptr(), y.qs.as_ptr());
        // SAFETY: the caller's promise; all within the blocks.
        unsafe {
            let bytes = _mm_loadu_si128(self.scales.as_ptr().cast());
            let scales = V::scales_of_16(bytes);
            let first = V::scaled_of_16::<false>(V::six_bits(ql, qh), y8, scales);
            let numbers = V::six_bits(ql.add(64), qh.add(32));
            let second = V::scaled_of_16::<true>(numbers, y8.add(128), scales);
            // the numbers are 32 too large: take 32 · scale · (sum of activations) off
            let times_32 = _mm256_slli_epi16::<5>(_mm256_cvtepi8_epi16(bytes));
            let bsums = _mm256_loadu_si256(y.bsums.as_ptr().cast());
            let excess = _mm256_madd_epi16(times_32, bsums);
            let sums = V::sub_eight(V::add(first, second), excess);
            (sums, _mm256_setzero_si256())
        }
    }

    #[inline(always)]
    unsafe fn factors(&self) -> __m128 {
        // SAFETY: the caller's promise.
        unsafe { _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(self.d)))) }
    }
}

/// The integers of one block, added up: for the tests.
///
/// # Safety
///
/// The CPU has V's ISA.
#[cfg(test)]
#[inline(always)]
pub(crate) unsafe fn block_sums<V: DotVector>(
    kind: TensorType,
    block: &[u8],
    y: &BlockQ8K,
) -> KSums {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            TensorType::Q4K => k_sums::<V, BlockQ4K>(block, y),
            TensorType::Q5K => k_sums::<V, BlockQ5K>(block, y),
            _ => k_sums::<V, BlockQ6K>(block, y),
        }
    }
}

#[cfg(test)]
#[inline(always)]
unsafe fn k_sums<V: DotVector, B: KDot>(block: &[u8], y: &BlockQ8K) -> KSums {
    // SAFETY: the caller's promise.
    unsafe {
        let (scaled, mins) = blocks::<B>(block)[0].sums::<V>(y);
        KSums { scaled: V::total(scaled), mins: total_eight(mins) }
    }
}

#[cfg(test)]
#[inline(always)]
pub(crate) unsafe fn total_eight(sums: __m256i) -> i32 {
    // SAFETY: AVX2; the callers' ISAs have it.
    unsafe {
        let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b01_00_11_10>(sums));
        _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32::<0b10_11_00_01>(sums)))
    }
}

#[inline(always)]
pub(crate) unsafe fn total_eight_floats(x: __m256) -> f32 {
    // SAFETY: AVX; the callers' ISAs have it.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}

/// The sums of a row so far: what the blocks add, and what their minima take off, less what their
/// outliers add.
struct Sums<V: DotVector> {
    acc: V::Floats,
    mins: __m256,
}

impl<V: DotVector> Sums<V> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { acc: V::zero_floats(), mins: _mm256_setzero_ps() } }
    }

    #[inline(always)]
    unsafe fn add<B: KDot>(&mut self, block: &B, y: &BlockQ8K) {
        // SAFETY: the caller's promise.
        unsafe {
            let (scaled, min) = block.sums::<V>(y);
            let factors = _mm_mul_ps(block.factors(), _mm_set1_ps(y.scale()));
            self.acc = V::add_times(self.acc, scaled, factors);
            if B::MINS {
                let dmin = _mm256_broadcastss_ps(_mm_movehdup_ps(factors));
                self.mins = _mm256_fmadd_ps(_mm256_cvtepi32_ps(min), dmin, self.mins);
            }
        }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { V::total_floats(self.acc) - total_eight_floats(self.mins) }
    }
}

#[inline(always)]
unsafe fn dot_k<V: DotVector, B: KDot>(row: &[B], y: &[BlockQ8K]) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = Sums::<V>::zero();
        for (block, y) in row.iter().zip(y) {
            sums.add(block, y);
        }
        sums.total()
    }
}

/// Outliers that are gathered at once.
const GATHERED: usize = 8;
/// Eight lanes of zeros, then of ones: a window into it masks the first lanes of a vector.
const MASKS: [i32; 2 * GATHERED] = [0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1];

/// `acc - residual · value` of eight outliers, of which the first `done` are left out.
#[inline(always)]
unsafe fn sub_gathered(
    acc: __m256,
    index: *const u8,
    residual: *const u8,
    values: *const f32,
    done: usize,
) -> __m256 {
    // SAFETY: AVX2, FMA and F16C, which the callers' ISAs have; the caller's pointers.
    unsafe {
        let places = _mm256_cvtepu8_epi32(_mm_loadl_epi64(index.cast()));
        let values = _mm256_i32gather_ps::<4>(values, places);
        let residual = _mm256_cvtph_ps(_mm_loadu_si128(residual.cast()));
        let mask = _mm256_loadu_ps(MASKS.as_ptr().add(GATHERED - done).cast());
        let residual = if done == 0 { residual } else { _mm256_and_ps(residual, mask) };
        _mm256_fnmadd_ps(residual, values, acc)
    }
}

/// `acc - Σ residual · value` of a block's outliers; `values` are the block's 256 activations.
#[inline(always)]
unsafe fn sub_outliers(
    mut acc: __m256,
    index: *const u8,
    residual: *const u8,
    values: *const f32,
    outliers: usize,
) -> __m256 {
    // SAFETY: as above; every u8 is a place in `values`.
    unsafe {
        if outliers < GATHERED {
            for k in 0..outliers {
                let value = *values.add(usize::from(*index.add(k)));
                let residual = residual.add(2 * k).cast::<[u8; 2]>().read();
                let residual = f16_to_f32(u16::from_le_bytes(residual));
                let product = _mm256_zextps128_ps256(_mm_set_ss(residual * value));
                acc = _mm256_sub_ps(acc, product);
            }
            return acc;
        }
        let mut k = 0;
        while k + GATHERED <= outliers {
            acc = sub_gathered(acc, index.add(k), residual.add(2 * k), values, 0);
            k += GATHERED;
        }
        if k < outliers {
            let last = outliers - GATHERED;
            acc = sub_gathered(acc, index.add(last), residual.add(2 * last), values, k - last);
        }
        acc
    }
}

/// A row of Q4_HIFI, `N` outliers a block, or `outliers` where `N` is 0.
#[inline(always)]
unsafe fn dot_hifi<V: DotVector, const N: usize>(
    row: &[BlockQ4K],
    y: &[BlockQ8K],
    index: &[u8],
    residual: &[u8],
    sparse: &Sparse,
) -> f32 {
    let outliers = if N == 0 { sparse.outliers } else { N };
    let (mut index, mut residual) = (index.as_ptr(), residual.as_ptr());
    let mut values = sparse.values.as_ptr();
    // SAFETY: the caller's promise: as many places and residuals, 256 values a block.
    unsafe {
        let mut sums = Sums::<V>::zero();
        for (block, y) in row.iter().zip(y) {
            sums.mins = sub_outliers(sums.mins, index, residual, values, outliers);
            sums.add(block, y);
            (index, residual) = (index.add(outliers), residual.add(2 * outliers));
            values = values.add(QK_K);
        }
        sums.total()
    }
}

#[inline(always)]
pub(super) unsafe fn f16_to_f32(bits: u16) -> f32 {
    // SAFETY: F16C; the callers' ISAs have it.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
}

/// See [`crate::kernel::dot_rows`]; the lengths have been checked.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn dot_rows<V: DotVector>(
    rows: Rows<'_>,
    activations: &Activations,
    out: &mut [f32],
) {
    let (column, f) = (&activations.column, &activations.factors);
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            Rows::Hifi { base, index, residual } => {
                let (Column::Q8K(y), Some(sparse)) = (column, &activations.sparse) else {
                    unreachable!("checked at the border")
                };
                match sparse.outliers {
                    8 => hifi_rows::<V, 8>(base, index, residual, y, sparse, out),
                    16 => hifi_rows::<V, 16>(base, index, residual, y, sparse, out),
                    _ => hifi_rows::<V, 0>(base, index, residual, y, sparse, out),
                }
            }
            Rows::Plain(kind, data) => match (kind, column) {
                (TensorType::Q4K, Column::Q8K(y)) => dot_k_rows::<V, BlockQ4K>(data, y, out),
                (TensorType::Q5K, Column::Q8K(y)) => dot_k_rows::<V, BlockQ5K>(data, y, out),
                (TensorType::Q6K, Column::Q8K(y)) => dot_k_rows::<V, BlockQ6K>(data, y, out),
                (TensorType::Q4_0, Column::Q8_0(y)) => {
                    legacy_rows::<V, BlockQ4_0, _>(data, y, f, out)
                }
                (TensorType::Q5_0, Column::Q8_0(y)) => {
                    legacy_rows::<V, BlockQ5_0, _>(data, y, f, out)
                }
                (TensorType::Q8_0, Column::Q8_0(y)) => {
                    legacy_rows::<V, BlockQ8_0, _>(data, y, f, out)
                }
                (TensorType::Q4_1, Column::Q8_1(y)) => {
                    legacy_rows::<V, BlockQ4_1, _>(data, y, f, out)
                }
                (TensorType::Q5_1, Column::Q8_1(y)) => {
                    legacy_rows::<V, BlockQ5_1, _>(data, y, f, out)
                }
                (TensorType::F32, Column::F32(x)) => number_rows::<V, BlockF32>(data, x, out),
                (TensorType::F16, Column::F32(x)) => number_rows::<V, BlockF16>(data, x, out),
                (TensorType::BF16, Column::F32(x)) => number_rows::<V, BlockBF16>(data, x, out),
                _ => unreachable!("checked at the border"),
            },
        }
    }
}

#[inline(always)]
unsafe fn dot_k_rows<V: DotVector, B: KDot>(data: &[u8], y: &[BlockQ8K], out: &mut [f32]) {
    for (row, out) in blocks::<B>(data).chunks_exact(y.len()).zip(out) {
        // SAFETY: the caller's promise.
        *out = unsafe { dot_k::<V, B>(row, y) };
    }
}

#[inline(always)]
unsafe fn hifi_rows<V: DotVector, const N: usize>(
    base: &[u8],
    index: &[u8],
    residual: &[u8],
    y: &[BlockQ8K],
    sparse: &Sparse,
    out: &mut [f32],
) {
    let n = y.len() * sparse.outliers;
    let base = blocks::<BlockQ4K>(base).chunks_exact(y.len());
    for (i, (row, out)) in base.zip(out).enumerate() {
        let (index, residual) = (&index[i * n..][..n], &residual[2 * i * n..][..2 * n]);
        // SAFETY: the caller's promise.
        *out = unsafe { dot_hifi::<V, N>(row, y, index, residual, sparse) };
    }
}
