//! The scalar version: unpacks a block's quants, multiplies and adds. It is the oracle of the kernels, bit for bit, and
//! runs if there is no kernel.
//!
//! Sums of integers are exact. Sums of floats have this order on every instruction set:
//!
//! * K-quants and IQ4_XS: one sum over the blocks, in order. Minima have a separate sum, which is subtracted at the
//!   end.
//! * Legacy types and IQ4_NL: eight lanes; lane l takes quants 4 l to 4 l + 3 of every block. Minima have a separate
//!   sum.
//! * F32, F16 and BF16: four times sixteen lanes, which take 64 weights at a time. The rest is padded with zeros to
//!   multiples of sixteen and goes to the first sixteen lanes.
//! * Outliers: sixteen lanes, see `add_outliers`.
//!
//! Lanes are added as a tree: with n lanes, lane i + n / 2 is added to lane i, then n is halved. Every product is added
//! by a fused multiply-add.

use super::activations::{Activations, BlockQ8_1, BlockQ8K, Column};
use super::rows::Rows;
use crate::block::iq4::VALUES;
use crate::block::k_scales::{SUB_BLOCKS, unpack};
use crate::block::legacy::{unpack_five_bits, unpack_nibbles};
use crate::block::{
    Block, BlockIQ4NL, BlockIQ4XS, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0,
    BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, QK, QK_K, TensorType, blocks, by_family, q3_k,
};
use crate::float::{f16_to_f32, mul_add};

/// The integers of a K-quant block's dot product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KSums {
    /// `Σ scale·(Σ q·q8)`, where the offset is subtracted from q.
    pub scaled: i32,
    /// `Σ min·(Σ q8)`; 0 in types without minima.
    pub mins: i32,
}

/// A K-quant block, for the scalar dot product.
pub trait KBlock: Block {
    /// The scale of the scales and that of the minima.
    fn block_scales(&self) -> (f32, f32);

    /// The integers of the dot product.
    fn sums(&self, y: &BlockQ8K) -> KSums;
}

/// A legacy block, for the scalar dot product.
pub trait LegacyBlock: Block {
    /// The scale, and the value that is added to every weight.
    fn scale_and_add(&self) -> (f32, f32);

    /// The quants, minus their offset.
    fn quants(&self) -> [i32; QK];
}

#[inline(always)]
fn half(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

/// `Σ a·b`
#[inline(always)]
fn dot_i32(a: impl Iterator<Item = i32>, b: &[u8]) -> i32 {
    a.zip(b).map(|(a, &b)| a * i32::from(b as i8)).sum()
}

/// The integers of Q4_K and Q5_K, whose quant `i` of sub-block `j` is `quant(j, i)`.
#[inline(always)]
fn sums_with_mins(scales: &[u8; 12], y: &BlockQ8K, quant: impl Fn(usize, usize) -> u8) -> KSums {
    let mut sums = KSums { scaled: 0, mins: 0 };
    for j in 0..SUB_BLOCKS {
        let (scale, min) = unpack(scales, j);
        let dot = dot_i32((0..32).map(|i| i32::from(quant(j, i))), &y.qs[j * 32..][..32]);
        let sum: i32 =
            y.bsums[2 * j..][..2].iter().map(|&s| i32::from(i16::from_le_bytes(s))).sum();
        sums.scaled += i32::from(scale) * dot;
        sums.mins += i32::from(min) * sum;
    }
    sums
}

/// The sums of sixteen products each, `quant(i)` being quant i.
#[inline(always)]
fn dots_of_16(y: &BlockQ8K, quant: impl Fn(usize) -> i32) -> [i32; QK_K / 16] {
    std::array::from_fn(|j| dot_i32((16 * j..16 * j + 16).map(&quant), &y.qs[16 * j..]))
}

impl KBlock for BlockQ2K {
    #[inline(always)]
    fn block_scales(&self) -> (f32, f32) {
        (half(self.d), half(self.dmin))
    }

    #[inline(always)]
    fn sums(&self, y: &BlockQ8K) -> KSums {
        let quants = self.quants();
        let mut sums = KSums { scaled: 0, mins: 0 };
        for (j, dot) in dots_of_16(y, |i| i32::from(quants[i])).into_iter().enumerate() {
            sums.scaled += i32::from(self.scales[j] & 0x0f) * dot;
            sums.mins += i32::from(self.scales[j] >> 4) * i32::from(i16::from_le_bytes(y.bsums[j]));
        }
        sums
    }
}

impl KBlock for BlockQ3K {
    #[inline(always)]
    fn block_scales(&self) -> (f32, f32) {
        (half(self.d), 0.0)
    }

    #[inline(always)]
    fn sums(&self, y: &BlockQ8K) -> KSums {
        let quants = self.quants();
        let dots = dots_of_16(y, |i| i32::from(quants[i]) - q3_k::HALF);
        let scaled = dots.into_iter().zip(self.unpack_scales());
        let scaled = scaled.map(|(dot, scale)| (i32::from(scale) - q3_k::HALF_SCALE) * dot).sum();
        KSums { scaled, mins: 0 }
    }
}

impl KBlock for BlockQ4K {
    #[inline(always)]
    fn block_scales(&self) -> (f32, f32) {
        (half(self.d), half(self.dmin))
    }

    #[inline(always)]
    fn sums(&self, y: &BlockQ8K) -> KSums {
        sums_with_mins(&self.scales, y, |j, i| (self.qs[j / 2 * 32 + i] >> (j % 2 * 4)) & 0x0f)
    }
}

impl KBlock for BlockQ5K {
    #[inline(always)]
    fn block_scales(&self) -> (f32, f32) {
        (half(self.d), half(self.dmin))
    }

    #[inline(always)]
    fn sums(&self, y: &BlockQ8K) -> KSums {
        sums_with_mins(&self.scales, y, |j, i| {
            let low = (self.qs[j / 2 * 32 + i] >> (j % 2 * 4)) & 0x0f;
            low | (((self.qh[i] >> j) & 1) << 4)
        })
    }
}

impl KBlock for BlockQ6K {
    #[inline(always)]
    fn block_scales(&self) -> (f32, f32) {
        (half(self.d), 0.0)
    }

    #[inline(always)]
    fn sums(&self, y: &BlockQ8K) -> KSums {
        let quant = |index: usize| {
            let (part, quarter, i) = (index / 128, index % 128 / 32, index % 32);
            let low = self.ql[part * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 0x0f;
            let high = self.qh[part * 32 + i] >> (quarter * 2) & 3;
            i32::from(low | (high << 4)) - 32
        };
        let scaled = dots_of_16(y, quant).into_iter().zip(self.scales);
        let scaled = scaled.map(|(dot, scale)| i32::from(scale as i8) * dot).sum();
        KSums { scaled, mins: 0 }
    }
}

impl KBlock for BlockIQ4XS {
    #[inline(always)]
    fn block_scales(&self) -> (f32, f32) {
        (half(self.d), 0.0)
    }

    #[inline(always)]
    fn sums(&self, y: &BlockQ8K) -> KSums {
        let scaled = self
            .qs
            .iter()
            .zip(y.qs.as_chunks::<QK>().0)
            .enumerate()
            .map(|(j, (qs, y))| self.scale(j) * dot_i32(table_values(qs).into_iter(), y));
        KSums { scaled: scaled.sum(), mins: 0 }
    }
}

macro_rules! legacy_block {
    ($block:ident, $add:expr, $quants:expr) => {
        impl LegacyBlock for $block {
            #[inline(always)]
            fn scale_and_add(&self) -> (f32, f32) {
                (half(self.d), $add(self))
            }

            #[inline(always)]
            fn quants(&self) -> [i32; QK] {
                $quants(self)
            }
        }
    };
}

#[inline(always)]
fn both_halves(pair: impl Fn(usize) -> (i32, i32), offset: i32) -> [i32; QK] {
    let mut quants = [0; QK];
    for j in 0..QK / 2 {
        let (low, high) = pair(j);
        (quants[j], quants[j + QK / 2]) = (low - offset, high - offset);
    }
    quants
}

/// The values of 32 quants of IQ4_NL or IQ4_XS.
#[inline(always)]
fn table_values(qs: &[u8; QK / 2]) -> [i32; QK] {
    both_halves(|j| unpack_nibbles(qs, j), 0).map(|q| i32::from(VALUES[q as usize]))
}

legacy_block!(BlockIQ4NL, |_| 0.0, |b: &Self| table_values(&b.qs));
legacy_block!(BlockQ4_0, |_| 0.0, |b: &Self| both_halves(|j| unpack_nibbles(&b.qs, j), 8));
legacy_block!(BlockQ4_1, |b: &Self| half(b.m), |b: &Self| {
    both_halves(|j| unpack_nibbles(&b.qs, j), 0)
});
legacy_block!(BlockQ5_0, |_| 0.0, |b: &Self| both_halves(|j| unpack_five_bits(&b.qs, b.qh, j), 16));
legacy_block!(BlockQ5_1, |b: &Self| half(b.m), |b: &Self| {
    both_halves(|j| unpack_five_bits(&b.qs, b.qh, j), 0)
});
legacy_block!(BlockQ8_0, |_| 0.0, |b: &Self| b.qs.map(|q| i32::from(q as i8)));

/// A block of 32 eight-bit activations.
pub trait Activation32: Copy {
    /// Quants, signed.
    fn quants(&self) -> &[u8; QK];
}

impl Activation32 for BlockQ8_0 {
    #[inline(always)]
    fn quants(&self) -> &[u8; QK] {
        &self.qs
    }
}

impl Activation32 for BlockQ8_1 {
    #[inline(always)]
    fn quants(&self) -> &[u8; QK] {
        &self.qs
    }
}

fn dot_k<B: KBlock>(row: &[u8], y: &[BlockQ8K]) -> KProduct {
    let mut product = KProduct { scaled: 0.0, mins: 0.0 };
    for (block, y) in blocks::<B>(row).iter().zip(y) {
        let KSums { scaled, mins } = block.sums(y);
        let (d, dmin) = block.block_scales();
        product.scaled = mul_add(scaled as f32, d * y.scale(), product.scaled);
        product.mins = mul_add(mins as f32, dmin * y.scale(), product.mins);
    }
    product
}

/// The two parts of a row's product.
struct KProduct {
    scaled: f32,
    mins: f32,
}

impl KProduct {
    fn total(self) -> f32 {
        self.scaled - self.mins
    }
}

fn dot_legacy<B: LegacyBlock, A: Activation32>(
    row: &[u8],
    y: &[A],
    scales_and_sums: &[[f32; 2]],
) -> f32 {
    let (mut lanes, mut mins) = ([0f32; 8], 0f32);
    for (block, (y, &[d8, s8])) in blocks::<B>(row).iter().zip(y.iter().zip(scales_and_sums)) {
        let (d, m) = block.scale_and_add();
        let quants = block.quants();
        let fours = quants.as_chunks::<4>().0.iter().zip(y.quants().as_chunks::<4>().0);
        for (lane, (quants, y)) in lanes.iter_mut().zip(fours) {
            *lane = mul_add(dot_i32(quants.iter().copied(), y) as f32, d * d8, *lane);
        }
        mins += m * s8;
    }
    total(lanes) + mins
}

fn dot_numbers<B: Block>(row: &[u8], x: &[f32]) -> f32 {
    fn add<B: Block>(lanes: &mut [f32; 16], w: &[B], x: &[f32]) {
        let (mut decoded, mut padded) = ([0f32; 16], [0f32; 16]);
        for ((decoded, w), (padded, &x)) in decoded.iter_mut().zip(w).zip(padded.iter_mut().zip(x))
        {
            let mut value = [0f32];
            w.dequantize(&mut value);
            (*decoded, *padded) = (value[0], x);
        }
        for (lane, (w, x)) in lanes.iter_mut().zip(decoded.into_iter().zip(padded)) {
            *lane = mul_add(w, x, *lane);
        }
    }
    let mut lanes = [[0f32; 16]; 4];
    let row = blocks::<B>(row);
    let whole = x.len() / 64 * 64;
    for (i, (w, x)) in row[..whole].chunks(16).zip(x.chunks(16)).enumerate() {
        add(&mut lanes[i % 4], w, x);
    }
    for (w, x) in row[whole..].chunks(16).zip(x[whole..].chunks(16)) {
        add(&mut lanes[0], w, x);
    }
    let both = |a: [f32; 16], b: [f32; 16]| std::array::from_fn(|i| a[i] + b[i]);
    total::<16>(both(both(lanes[0], lanes[1]), both(lanes[2], lanes[3])))
}

/// The sum of the lanes, added as a tree.
fn total<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

fn dot_plain(kind: TensorType, row: &[u8], activations: &Activations) -> f32 {
    let f = &activations.scales_and_sums;
    let other = || unreachable!("checked at the border");
    match &activations.column {
        Column::F32(x) => {
            by_family!(kind, float: B => dot_numbers::<B>(row, x), small: B => other(), k: B => other())
        }
        Column::Q8_0(y) => {
            by_family!(kind, float: B => other(), small: B => dot_legacy::<B, _>(row, y, f), k: B => other())
        }
        Column::Q8_1(y) => {
            by_family!(kind, float: B => other(), small: B => dot_legacy::<B, _>(row, y, f), k: B => other())
        }
        Column::Q8K(y) => {
            by_family!(kind, float: B => other(), small: B => other(), k: B => dot_k::<B>(row, y).total())
        }
    }
}

/// Writes one dot product per row to `out`. The lengths have been checked.
pub(crate) fn dot_rows(rows: Rows<'_>, activations: &Activations, out: &mut [f32]) {
    let n = out.len();
    for (i, out) in out.iter_mut().enumerate() {
        let part = |data: &'_ [u8]| i * (data.len() / n)..(i + 1) * (data.len() / n);
        *out = match rows {
            Rows::Plain(kind, data) => dot_plain(kind, &data[part(data)], activations),
            Rows::Hifi { base, index, residual } => {
                let Column::Q8K(y) = &activations.column else { unreachable!("checked") };
                let row = dot_k::<BlockQ4K>(&base[part(base)], y);
                let added =
                    outlier_sum(&index[part(index)], &residual[part(residual)], activations);
                row.scaled + added - row.mins
            }
        };
    }
}

/// The sum over the outliers of a row of Q4_HIFI.
fn outlier_sum(index: &[u8], residual: &[u8], activations: &Activations) -> f32 {
    let sparse = activations.sparse.as_ref().expect("checked at the border");
    let n = sparse.outliers.max(1);
    let mut lanes = [0f32; 16];
    let blocks = index.chunks_exact(n).zip(residual.as_chunks().0.chunks_exact(n));
    for ((index, residual), values) in blocks.zip(sparse.values.as_chunks().0) {
        add_outliers(&mut lanes, index, residual, values);
    }
    total(lanes)
}

/// Adds a block's outliers to the lanes: sixteen at a time, then eight. For the rest, the last eight outliers are taken
/// again for the first eight lanes, with zeros for those that were already added. With fewer than eight outliers in the
/// block, four are taken together if possible, and the others go to the first lane.
fn add_outliers(lanes: &mut [f32; 16], index: &[u8], residual: &[[u8; 2]], values: &[f32; QK_K]) {
    let n = index.len();
    let mut add = |lane: usize, k: usize, counts: bool| {
        let residual = if counts { half(residual[k]) } else { 0.0 };
        lanes[lane] = mul_add(residual, values[usize::from(index[k])], lanes[lane]);
    };
    let whole = if n < 8 { n / 4 * 4 } else { n / 8 * 8 };
    (0..whole).for_each(|k| add(k % 16, k, true));
    if n < 8 {
        (whole..n).for_each(|k| add(0, k, true));
    } else if whole < n {
        (0..8).for_each(|lane| add(lane, n - 8 + lane, n - 8 + lane >= whole));
    }
}
