//! Whole matrices of Q4_HIFI in the split layout: Q4_K rows, and separately the indices and residuals of each block's
//! outliers. [`super::plain`] has the same functions for other types.

use super::encoding::Encoding;
use super::plain;
use super::source::{Source, per_rows};
use crate::block::{BlockQ4K, HifiBlock, MAX_OUTLIERS, QK_K, TensorType, blocks_mut, check_index};
use crate::check::{check_importance, expect_length};
use crate::dispatch;
use crate::error::QuantError;
use crate::error_sums::ErrorSums;
use crate::feedback::ROWS;
use crate::float::f16_to_f32;
use crate::isa::Isa;
use rayon::prelude::*;

/// Buffers for the outliers of rows. Each block has `outliers` indices and as many residuals.
#[derive(Debug)]
pub struct OutliersMut<'a> {
    /// Outliers per block, at most [`MAX_OUTLIERS`].
    pub outliers: usize,
    /// `rows · row_length / 256 · outliers` indices.
    pub index: &'a mut [u8],
    /// As many f16 residuals, two bytes each.
    pub residual: &'a mut [u8],
}

/// The outliers of rows.
#[derive(Debug, Clone, Copy)]
pub struct Outliers<'a> {
    /// Outliers per block, at most [`MAX_OUTLIERS`].
    pub outliers: usize,
    /// Indices in each block, strictly increasing.
    pub index: &'a [u8],
    /// As many f16 residuals, two bytes each.
    pub residual: &'a [u8],
}

/// Encodes rows: Q4_K blocks into `base`, the rest into `outliers`.
pub fn quantize_hifi(
    source: Source<'_>,
    importance: Option<&[f32]>,
    encoding: Encoding<'_>,
    base: &mut [u8],
    outliers: OutliersMut<'_>,
) -> Result<ErrorSums, QuantError> {
    let OutliersMut { outliers, index, residual } = outliers;
    check_outliers(outliers)?;
    let row_bytes = TensorType::Q4K.row_bytes(source.row_length())?;
    let row_outliers = source.row_length() / QK_K * outliers;
    expect_length("base", base.len(), source.rows() * row_bytes)?;
    expect_length("index", index.len(), source.rows() * row_outliers)?;
    expect_length("residual", residual.len(), source.rows() * row_outliers * 2)?;
    check_importance(importance, source.row_length())?;
    if outliers == 0 {
        return plain::quantize(source, TensorType::Q4K, importance, encoding, base);
    }
    encoding.check(source.row_length())?;
    let at_once = match encoding {
        Encoding::Ggml | Encoding::Refined => 1,
        Encoding::ErrorFeedback(_) => ROWS,
    };
    let out = base
        .par_chunks_mut(at_once * row_bytes)
        .zip(index.par_chunks_mut(at_once * row_outliers))
        .zip(residual.par_chunks_mut(at_once * row_outliers * 2));
    let isa = Isa::active()?;
    per_rows(isa, source, at_once, out, |x, decoded, ((base, index), residual), sums| {
        let n_blocks = source.row_length() / QK_K;
        let rows = x.chunks_exact(source.row_length());
        let mut blocks = vec![HifiBlock::ZERO; sums.len() * n_blocks];
        for (x, blocks) in rows.clone().zip(blocks.chunks_exact_mut(n_blocks)) {
            dispatch::encode_hifi_row(isa, x, importance, outliers, blocks);
            if !matches!(encoding, Encoding::Ggml) {
                dispatch::refine_hifi_row(isa, x, importance, blocks);
            }
        }
        let index = index.chunks_exact_mut(outliers);
        let residual = residual.chunks_exact_mut(outliers * 2);
        let outs = blocks_mut::<BlockQ4K>(base).iter_mut().zip(index.zip(residual));
        for (block, (base, (index, residual))) in blocks.iter().zip(outs) {
            *base = block.base;
            index.copy_from_slice(block.index());
            for (bytes, r) in residual.as_chunks_mut().0.iter_mut().zip(block.residual()) {
                *bytes = r.to_le_bytes();
            }
        }
        if let Encoding::ErrorFeedback(hessian) = encoding {
            // the residuals stay, so the base has to represent the weights minus the residuals
            let mut rest = x.to_vec();
            for (block, x) in blocks.iter().zip(rest.as_chunks_mut().0) {
                block.deduct_residuals(x);
            }
            dispatch::choose_quants(isa, TensorType::Q4K, hessian, &rest, base);
        }
        let blocks = blocks.chunks_exact(n_blocks);
        for (((x, blocks), base), sums) in
            rows.zip(blocks).zip(base.chunks_exact(row_bytes)).zip(sums)
        {
            dispatch::dequantize_row(isa, TensorType::Q4K, base, decoded);
            for (block, decoded) in blocks.iter().zip(decoded.as_chunks_mut().0) {
                block.add_residuals(decoded);
            }
            *sums = dispatch::error_sums(isa, x, importance, decoded);
        }
    })
}

/// Decodes rows into `out`; `base` are their Q4_K rows.
pub fn dequantize_hifi(
    base: Source<'_>,
    outliers: Outliers<'_>,
    out: &mut [f32],
) -> Result<(), QuantError> {
    check_parts(base, outliers)?;
    let Outliers { outliers, index, residual } = outliers;
    plain::dequantize(base, out)?;
    if outliers == 0 {
        return Ok(());
    }
    out.as_chunks_mut::<QK_K>()
        .0
        .par_iter_mut()
        .zip(index.par_chunks_exact(outliers))
        .zip(residual.par_chunks_exact(outliers * 2))
        .enumerate()
        .map(|(number, ((out, index), residual))| {
            check_index(index, number)?;
            for (&i, r) in index.iter().zip(residual.as_chunks().0) {
                out[usize::from(i)] += f16_to_f32(u16::from_le_bytes(*r));
            }
            Ok(())
        })
        .find_map_first(Result::err)
        .map_or(Ok(()), Err)
}

/// Fails if the number of indices or residuals does not fit the blocks of the base.
pub(crate) fn check_parts(base: Source<'_>, outliers: Outliers<'_>) -> Result<(), QuantError> {
    let Outliers { outliers, index, residual } = outliers;
    check_outliers(outliers)?;
    let n_blocks = base.rows() * (base.row_length() / QK_K);
    expect_length("index", index.len(), n_blocks * outliers)?;
    expect_length("residual", residual.len(), n_blocks * outliers * 2)
}

pub(super) fn check_outliers(outliers: usize) -> Result<(), QuantError> {
    if outliers > MAX_OUTLIERS {
        Err(QuantError::TooManyOutliers { asked: outliers, most: MAX_OUTLIERS })
    } else {
        Ok(())
    }
}
