//! Q4_HIFI in the fork layout, one block of 244 bytes: a Q4_K block and up to 32 weights in f16.
//!
//! The layout of the llama.cpp branch where Q4_HIFI began. It stores an outlier's weight itself,
//! which *replaces* the base's value, where the split layout stores what is to be added. But the
//! branch's dot products *add* it to the base, so the base must be as near to zero there as it can:
//! the numbers at these places are free, and are set so.

use super::rows::{Outliers, OutliersMut, check_outliers};
use super::{HifiBlock, MAX_OUTLIERS, check_index, decoded};
use crate::block::{Block, BlockQ4K, QK_K, TensorType, blocks, blocks_mut};
use crate::error::QuantError;
use crate::error_sums::ErrorSums;
use crate::float::{f16_to_f32, f32_to_f16};
use crate::kernel::{self, Isa};
use crate::rows::{Source, check_importance, expect_length, per_row};
use rayon::prelude::*;

/// What rounds to an infinite f16.
const F16_LIMIT: f32 = 65520.0;

/// A Q4_HIFI block of the fork layout: 7.625 bits a weight, whatever the number of outliers.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ4Hifi {
    /// All 256 weights in 4 bits.
    pub base: BlockQ4K,
    /// Places of the outliers, strictly increasing; unused ones are 0.
    pub index: [u8; MAX_OUTLIERS],
    /// The weights at these places, f16; unused ones are 0.
    pub value: [[u8; 2]; MAX_OUTLIERS],
    /// Number of outliers.
    pub count: u8,
    /// Zero.
    pub padding: [u8; 3],
}
const _: () = assert!(size_of::<BlockQ4Hifi>() == 244);

impl BlockQ4Hifi {
    /// Keeps the weights of `x` at the places `index` beside `base`.
    pub fn new(mut base: BlockQ4K, index: &[u8], x: &[f32; QK_K]) -> Self {
        for &i in index {
            base.set_nearest_to_zero(usize::from(i));
        }
        let mut block = Self {
            base,
            index: [0; _],
            value: [[0; 2]; _],
            count: index.len() as u8,
            padding: [0; 3],
        };
        block.index[..index.len()].copy_from_slice(index);
        for (value, &i) in block.value.iter_mut().zip(index) {
            *value = f32_to_f16(x[usize::from(i)]).to_le_bytes();
        }
        block
    }

    /// Places of the outliers; fails if they are too many or out of order. `number` is the
    /// block's place in the input, for the error.
    pub fn index(&self, number: usize) -> Result<&[u8], QuantError> {
        let Some(index) = self.index.get(..usize::from(self.count)) else {
            return Err(QuantError::BadBlock { block: number, what: "more than 32 outliers" });
        };
        check_index(index, number)?;
        Ok(index)
    }

    fn decode(&self, number: usize, out: &mut [f32; QK_K]) -> Result<(), QuantError> {
        let index = self.index(number)?;
        self.base.dequantize(out);
        self.replace(index, out);
        Ok(())
    }

    /// Writes the outliers over the values of the base.
    fn replace(&self, index: &[u8], values: &mut [f32; QK_K]) {
        for (&i, &value) in index.iter().zip(&self.value) {
            values[usize::from(i)] = f16_to_f32(u16::from_le_bytes(value));
        }
    }
}

// SAFETY: `repr(C)`, byte arrays and a block of byte arrays only.
unsafe impl crate::block::Bytes for BlockQ4Hifi {}

/// Bytes of a row of `row_length` weights.
pub fn row_bytes(row_length: usize) -> Result<usize, QuantError> {
    TensorType::Q4K.row_bytes(row_length)?;
    Ok(row_length / QK_K * size_of::<BlockQ4Hifi>())
}

/// Encodes rows into `out`.
pub fn quantize(
    source: Source<'_>,
    importance: Option<&[f32]>,
    outliers: usize,
    out: &mut [u8],
) -> Result<ErrorSums, QuantError> {
    quantize_with(source, importance, outliers, out, false)
}

/// As [`quantize`], with less error where [`crate::refine`] finds it.
pub fn quantize_refined(
    source: Source<'_>,
    importance: Option<&[f32]>,
    outliers: usize,
    out: &mut [u8],
) -> Result<ErrorSums, QuantError> {
    quantize_with(source, importance, outliers, out, true)
}

fn quantize_with(
    source: Source<'_>,
    importance: Option<&[f32]>,
    outliers: usize,
    out: &mut [u8],
    refine: bool,
) -> Result<ErrorSums, QuantError> {
    let row_bytes = row_bytes(source.row_length())?;
    check_outliers(outliers)?;
    expect_length("output", out.len(), source.rows() * row_bytes)?;
    check_importance(importance, source.row_length())?;
    let isa = Isa::active()?;
    per_row(isa, source, out.par_chunks_exact_mut(row_bytes), |x, decoded, out| {
        let mut encoded = vec![HifiBlock::ZERO; x.len() / QK_K];
        kernel::encode_hifi_row(isa, x, importance, outliers, &mut encoded);
        if refine {
            kernel::refine_hifi_row(isa, x, importance, &mut encoded);
        }
        let places = x.as_chunks().0.iter().zip(decoded.as_chunks_mut().0);
        let places = places.zip(blocks_mut::<BlockQ4Hifi>(out));
        for (block, ((x, decoded), out)) in encoded.iter().zip(places) {
            *out = BlockQ4Hifi::new(block.base, block.index(), x);
            *decoded = block.decode();
            out.replace(block.index(), decoded);
        }
        kernel::error_sums(isa, x, importance, decoded)
    })
}

/// Decodes rows into `out`.
pub fn dequantize(data: &[u8], row_length: usize, out: &mut [f32]) -> Result<(), QuantError> {
    let data = fork_blocks(data, row_length)?;
    expect_length("output", out.len(), data.len() * QK_K)?;
    out.as_chunks_mut::<QK_K>()
        .0
        .par_iter_mut()
        .zip(data)
        .enumerate()
        .map(|(number, (out, block))| block.decode(number, out))
        .find_map_first(Result::err)
        .map_or(Ok(()), Err)
}

/// Takes rows apart into the split layout, every block with `outliers` outliers.
///
/// A block with fewer is filled up with residuals of zero, at its smallest free places.
pub fn to_split(
    data: &[u8],
    row_length: usize,
    base: &mut [u8],
    outliers: OutliersMut<'_>,
) -> Result<(), QuantError> {
    let OutliersMut { outliers, index, residual } = outliers;
    let data = fork_blocks(data, row_length)?;
    check_outliers(outliers)?;
    expect_length("base", base.len(), data.len() * BlockQ4K::BYTES)?;
    expect_length("index", index.len(), data.len() * outliers)?;
    expect_length("residual", residual.len(), data.len() * outliers * 2)?;
    let base = blocks_mut::<BlockQ4K>(base);
    for (number, block) in data.iter().enumerate() {
        let mut values = [0f32; QK_K];
        block.decode(number, &mut values)?;
        let mut places = block.index(number)?.to_vec();
        if places.len() > outliers {
            let what = "more outliers than the tensor is to hold";
            return Err(QuantError::BadBlock { block: number, what });
        }
        let free = (0..=u8::MAX).filter(|i| !places.contains(i));
        let fill: Vec<u8> = free.take(outliers - places.len()).collect();
        places.extend(fill);
        places.sort_unstable();

        let from = decoded(&block.base);
        base[number] = block.base;
        index[number * outliers..][..outliers].copy_from_slice(&places);
        let residual = residual[number * outliers * 2..][..outliers * 2].as_chunks_mut().0;
        for (bytes, &i) in residual.iter_mut().zip(&places) {
            *bytes = f32_to_f16(values[usize::from(i)] - from[usize::from(i)]).to_le_bytes();
        }
    }
    Ok(())
}

/// Puts rows of the split layout together into `out`.
pub fn from_split(
    base: Source<'_>,
    outliers: Outliers<'_>,
    out: &mut [u8],
) -> Result<(), QuantError> {
    let mut values = vec![0f32; base.rows() * base.row_length()];
    super::rows::dequantize(base, outliers, &mut values)?;
    let values = values.as_chunks::<QK_K>().0;
    expect_length("output", out.len(), size_of::<BlockQ4Hifi>() * values.len())?;
    let base = blocks::<BlockQ4K>(base.data());
    for (number, out) in blocks_mut::<BlockQ4Hifi>(out).iter_mut().enumerate() {
        let index = &outliers.index[number * outliers.outliers..][..outliers.outliers];
        *out = BlockQ4Hifi::new(base[number], index, &values[number]);
        if index.iter().any(|&i| values[number][usize::from(i)].abs() >= F16_LIMIT) {
            let what = "an outlier is too large for the fork layout's f16";
            return Err(QuantError::BadBlock { block: number, what });
        }
    }
    Ok(())
}

fn fork_blocks(data: &[u8], row_length: usize) -> Result<&[BlockQ4Hifi], QuantError> {
    let row_bytes = row_bytes(row_length)?;
    expect_length("source", data.len(), data.len() / row_bytes * row_bytes)?;
    Ok(blocks(data))
}
