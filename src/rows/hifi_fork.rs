//! Q4_HIFI in the fork layout, one block of 244 bytes: a Q4_K block and up to 32 weights in f16.
//!
//! This is the layout of the llama.cpp branch where Q4_HIFI began. It stores the weight of an outlier, which *replaces*
//! the value of the base. The split layout stores a residual, which is added. But the branch's dot products *add* the
//! weight to the base. Therefore, at the indices of outliers, the base gets the quant whose value is nearest to zero.

use super::hifi::{Outliers, OutliersMut, check_outliers, dequantize_hifi};
use super::source::{Source, per_row};
use crate::block::{
    Block, BlockQ4Hifi, BlockQ4K, HifiBlock, QK_K, TensorType, blocks, blocks_mut, decoded,
};
use crate::check::{check_importance, expect_length};
use crate::dispatch;
use crate::error::QuantError;
use crate::error_sums::ErrorSums;
use crate::float::f32_to_f16;
use crate::isa::Isa;
use rayon::prelude::*;

/// The smallest value that rounds to an infinite f16.
const F16_LIMIT: f32 = 65520.0;

/// Bytes of a row of `row_length` weights.
pub fn row_bytes(row_length: usize) -> Result<usize, QuantError> {
    TensorType::Q4K.row_bytes(row_length)?;
    Ok(row_length / QK_K * size_of::<BlockQ4Hifi>())
}

/// Encodes rows into `out`. There is no error feedback, because it changes base values, which outliers replace here.
pub fn quantize(
    source: Source<'_>,
    importance: Option<&[f32]>,
    refined: bool,
    outliers: usize,
    out: &mut [u8],
) -> Result<ErrorSums, QuantError> {
    let row_bytes = row_bytes(source.row_length())?;
    check_outliers(outliers)?;
    expect_length("output", out.len(), source.rows() * row_bytes)?;
    check_importance(importance, source.row_length())?;
    let isa = Isa::active()?;
    per_row(isa, source, out.par_chunks_exact_mut(row_bytes), |x, decoded, out| {
        let mut encoded = vec![HifiBlock::ZERO; x.len() / QK_K];
        dispatch::encode_hifi_row(isa, x, importance, outliers, &mut encoded);
        if refined {
            dispatch::refine_hifi_row(isa, x, importance, &mut encoded);
        }
        let of_blocks = x.as_chunks().0.iter().zip(decoded.as_chunks_mut().0);
        let of_blocks = of_blocks.zip(blocks_mut::<BlockQ4Hifi>(out));
        for (block, ((x, decoded), out)) in encoded.iter().zip(of_blocks) {
            *out = BlockQ4Hifi::new(block.base, block.index(), x);
            *decoded = block.decode();
            out.replace(block.index(), decoded);
        }
        dispatch::error_sums(isa, x, importance, decoded)
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

/// Converts rows to the split layout, with `outliers` outliers per block.
///
/// A block with fewer outliers gets residuals of zero at its smallest unused indices.
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
        let mut indices = block.index(number)?.to_vec();
        if indices.len() > outliers {
            let what = "more outliers than the tensor is to hold";
            return Err(QuantError::BadBlock { block: number, what });
        }
        let free = (0..=u8::MAX).filter(|i| !indices.contains(i));
        let fill: Vec<u8> = free.take(outliers - indices.len()).collect();
        indices.extend(fill);
        indices.sort_unstable();

        let from = decoded(&block.base);
        base[number] = block.base;
        index[number * outliers..][..outliers].copy_from_slice(&indices);
        let residual = residual[number * outliers * 2..][..outliers * 2].as_chunks_mut().0;
        for (bytes, &i) in residual.iter_mut().zip(&indices) {
            *bytes = f32_to_f16(values[usize::from(i)] - from[usize::from(i)]).to_le_bytes();
        }
    }
    Ok(())
}

/// Converts rows of the split layout into `out`.
pub fn from_split(
    base: Source<'_>,
    outliers: Outliers<'_>,
    out: &mut [u8],
) -> Result<(), QuantError> {
    let mut values = vec![0f32; base.rows() * base.row_length()];
    dequantize_hifi(base, outliers, &mut values)?;
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
