//! The obvious version: unpack a block's numbers, multiply, add. The oracle of the kernels, and
//! what runs where there is no kernel.

use super::Rows;
use super::activations::{Activations, BlockQ8_1, BlockQ8K, Column};
use crate::block::iq4::VALUES;
use crate::block::k_scales::{SUB_BLOCKS, unpack};
use crate::block::legacy::{unpack_five_bits, unpack_nibbles};
use crate::block::{
    Block, BlockBF16, BlockF16, BlockF32, BlockIQ4NL, BlockIQ4XS, BlockQ2K, BlockQ3K, BlockQ4_0,
    BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, QK, QK_K, TensorType,
    blocks, q3_k,
};
use crate::float::f16_to_f32;

/// The integers of a K-quant block's dot product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KSums {
    /// `Σ scale·(Σ q·q8)`, q with its offset taken off.
    pub scaled: i32,
    /// `Σ min·(Σ q8)`; 0 in types without minima.
    pub mins: i32,
}

/// A K-quant block as the dot product sees it.
pub trait KBlock: Block {
    /// The scale of the scales and that of the minima.
    fn factors(&self) -> (f32, f32);

    /// The integers of the dot product.
    fn sums(&self, y: &BlockQ8K) -> KSums;
}

/// A legacy block as the dot product sees it.
pub trait LegacyBlock: Block {
    /// The scale, and what is added to every weight.
    fn factors(&self) -> (f32, f32);

    /// The numbers, their offset taken off.
    fn numbers(&self) -> [i32; QK];
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

/// The integers of Q4_K and Q5_K, whose number `i` of sub-block `j` is `number(j, i)`.
#[inline(always)]
fn sums_with_mins(scales: &[u8; 12], y: &BlockQ8K, number: impl Fn(usize, usize) -> u8) -> KSums {
    let mut sums = KSums { scaled: 0, mins: 0 };
    for j in 0..SUB_BLOCKS {
        let (scale, min) = unpack(scales, j);
        let dot = dot_i32((0..32).map(|i| i32::from(number(j, i))), &y.qs[j * 32..][..32]);
        let sum: i32 =
            y.bsums[2 * j..][..2].iter().map(|&s| i32::from(i16::from_le_bytes(s))).sum();
        sums.scaled += i32::from(scale) * dot;
        sums.mins += i32::from(min) * sum;
    }
    sums
}

/// The sums of the products of sixteen numbers each, `number(i)` being number i.
#[inline(always)]
fn dots_of_16(y: &BlockQ8K, number: impl Fn(usize) -> i32) -> [i32; QK_K / 16] {
    std::array::from_fn(|j| dot_i32((16 * j..16 * j + 16).map(&number), &y.qs[16 * j..]))
}

impl KBlock for BlockQ2K {
    #[inline(always)]
    fn factors(&self) -> (f32, f32) {
        (half(self.d), half(self.dmin))
    }

    #[inline(always)]
    fn sums(&self, y: &BlockQ8K) -> KSums {
        let numbers = self.numbers();
        let mut sums = KSums { scaled: 0, mins: 0 };
        for (j, dot) in dots_of_16(y, |i| i32::from(numbers[i])).into_iter().enumerate() {
            sums.scaled += i32::from(self.scales[j] & 0x0f) * dot;
            sums.mins += i32::from(self.scales[j] >> 4) * i32::from(i16::from_le_bytes(y.bsums[j]));
        }
        sums
    }
}

impl KBlock for BlockQ3K {
    #[inline(always)]
    fn factors(&self) -> (f32, f32) {
        (half(self.d), 0.0)
    }

    #[inline(always)]
    fn sums(&self, y: &BlockQ8K) -> KSums {
        let numbers = self.numbers();
        let dots = dots_of_16(y, |i| i32::from(numbers[i]) - q3_k::HALF);
        let scaled = dots.into_iter().zip(self.unpack_scales());
        let scaled = scaled.map(|(dot, scale)| (i32::from(scale) - q3_k::HALF_SCALE) * dot).sum();
        KSums { scaled, mins: 0 }
    }
}

impl KBlock for BlockQ4K {
    #[inline(always)]
    fn factors(&self) -> (f32, f32) {
        (half(self.d), half(self.dmin))
    }

    #[inline(always)]
    fn sums(&self, y: &BlockQ8K) -> KSums {
        sums_with_mins(&self.scales, y, |j, i| (self.qs[j / 2 * 32 + i] >> (j % 2 * 4)) & 0x0f)
    }
}

impl KBlock for BlockQ5K {
    #[inline(always)]
    fn factors(&self) -> (f32, f32) {
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
    fn factors(&self) -> (f32, f32) {
        (half(self.d), 0.0)
    }

    #[inline(always)]
    fn sums(&self, y: &BlockQ8K) -> KSums {
        let number = |place: usize| {
            let (part, quarter, i) = (place / 128, place % 128 / 32, place % 32);
            let low = self.ql[part * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 0x0f;
            let high = self.qh[part * 32 + i] >> (quarter * 2) & 3;
            i32::from(low | (high << 4)) - 32
        };
        let scaled = dots_of_16(y, number).into_iter().zip(self.scales);
        let scaled = scaled.map(|(dot, scale)| i32::from(scale as i8) * dot).sum();
        KSums { scaled, mins: 0 }
    }
}

impl KBlock for BlockIQ4XS {
    #[inline(always)]
    fn factors(&self) -> (f32, f32) {
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
    ($block:ident, $add:expr, $numbers:expr) => {
        impl LegacyBlock for $block {
            #[inline(always)]
            fn factors(&self) -> (f32, f32) {
                (half(self.d), $add(self))
            }

            #[inline(always)]
            fn numbers(&self) -> [i32; QK] {
                $numbers(self)
            }
        }
    };
}

#[inline(always)]
fn both_halves(pair: impl Fn(usize) -> (i32, i32), offset: i32) -> [i32; QK] {
    let mut numbers = [0; QK];
    for j in 0..QK / 2 {
        let (low, high) = pair(j);
        (numbers[j], numbers[j + QK / 2]) = (low - offset, high - offset);
    }
    numbers
}

/// What 32 numbers of IQ4_NL and IQ4_XS stand for.
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
    /// Numbers, signed.
    fn numbers(&self) -> &[u8; QK];
}

impl Activation32 for BlockQ8_0 {
    #[inline(always)]
    fn numbers(&self) -> &[u8; QK] {
        &self.qs
    }
}

impl Activation32 for BlockQ8_1 {
    #[inline(always)]
    fn numbers(&self) -> &[u8; QK] {
        &self.qs
    }
}

fn dot_k<B: KBlock>(row: &[u8], y: &[BlockQ8K]) -> f64 {
    let terms = blocks::<B>(row).iter().zip(y).map(|(block, y)| {
        let KSums { scaled, mins } = block.sums(y);
        let (d, dmin) = block.factors();
        let d8 = f64::from(y.scale());
        f64::from(d) * d8 * f64::from(scaled) - f64::from(dmin) * d8 * f64::from(mins)
    });
    terms.sum()
}

fn dot_legacy<B: LegacyBlock, A: Activation32>(row: &[u8], y: &[A], factors: &[[f32; 2]]) -> f64 {
    let y = y.iter().zip(factors);
    let terms = blocks::<B>(row).iter().zip(y).map(|(block, (y, &[d8, s8]))| {
        let dot = dot_i32(block.numbers().into_iter(), y.numbers());
        let (d, m) = block.factors();
        f64::from(d) * f64::from(d8) * f64::from(dot) + f64::from(m) * f64::from(s8)
    });
    terms.sum()
}

fn dot_numbers<B: Block>(row: &[u8], x: &[f32]) -> f64 {
    let terms = blocks::<B>(row).iter().zip(x).map(|(number, &x)| {
        let mut w = [0f32];
        number.dequantize(&mut w);
        f64::from(w[0]) * f64::from(x)
    });
    terms.sum()
}

fn dot_plain(kind: TensorType, row: &[u8], activations: &Activations) -> f64 {
    let f = &activations.factors;
    match (kind, &activations.column) {
        (TensorType::Q2K, Column::Q8K(y)) => dot_k::<BlockQ2K>(row, y),
        (TensorType::Q3K, Column::Q8K(y)) => dot_k::<BlockQ3K>(row, y),
        (TensorType::Q4K, Column::Q8K(y)) => dot_k::<BlockQ4K>(row, y),
        (TensorType::Q5K, Column::Q8K(y)) => dot_k::<BlockQ5K>(row, y),
        (TensorType::Q6K, Column::Q8K(y)) => dot_k::<BlockQ6K>(row, y),
        (TensorType::IQ4XS, Column::Q8K(y)) => dot_k::<BlockIQ4XS>(row, y),
        (TensorType::IQ4NL, Column::Q8_0(y)) => dot_legacy::<BlockIQ4NL, _>(row, y, f),
        (TensorType::Q4_0, Column::Q8_0(y)) => dot_legacy::<BlockQ4_0, _>(row, y, f),
        (TensorType::Q5_0, Column::Q8_0(y)) => dot_legacy::<BlockQ5_0, _>(row, y, f),
        (TensorType::Q8_0, Column::Q8_0(y)) => dot_legacy::<BlockQ8_0, _>(row, y, f),
        (TensorType::Q4_1, Column::Q8_1(y)) => dot_legacy::<BlockQ4_1, _>(row, y, f),
        (TensorType::Q5_1, Column::Q8_1(y)) => dot_legacy::<BlockQ5_1, _>(row, y, f),
        (TensorType::F32, Column::F32(x)) => dot_numbers::<BlockF32>(row, x),
        (TensorType::F16, Column::F32(x)) => dot_numbers::<BlockF16>(row, x),
        (TensorType::BF16, Column::F32(x)) => dot_numbers::<BlockBF16>(row, x),
        _ => unreachable!("checked at the border"),
    }
}

/// One dot product a row into `out`. The lengths have been checked.
pub(crate) fn dot_rows(rows: Rows<'_>, activations: &Activations, out: &mut [f32]) {
    let n = out.len();
    for (i, out) in out.iter_mut().enumerate() {
        let part = |data: &'_ [u8]| i * (data.len() / n)..(i + 1) * (data.len() / n);
        *out = match rows {
            Rows::Plain(kind, data) => dot_plain(kind, &data[part(data)], activations),
            Rows::Hifi { base, index, residual } => {
                let row = dot_plain(TensorType::Q4K, &base[part(base)], activations);
                row + correction(&index[part(index)], &residual[part(residual)], activations)
            }
        } as f32;
    }
}

/// What the outliers of a row of Q4_HIFI add.
fn correction(index: &[u8], residual: &[u8], activations: &Activations) -> f64 {
    let sparse = activations.sparse.as_ref().expect("checked at the border");
    let terms = index.iter().zip(residual.as_chunks().0).enumerate().map(|(k, (&i, &r))| {
        let place = k / sparse.outliers * QK_K + usize::from(i);
        f64::from(half(r)) * f64::from(sparse.values[place])
    });
    terms.sum()
}
