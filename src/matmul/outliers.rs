//! What the outliers of Q4_HIFI add to the products with many columns.
//!
//! Every row has its own places, so nothing is shared between rows; but many columns share an
//! outlier. The activations are therefore brought into an order in which those of [`BATCH`] columns
//! at one place are neighbours: an outlier then costs one multiply-add for a vector of columns.

use crate::block::{QK_K, TensorType};
use crate::hifi::rows::Outliers;
use crate::kernel::{self, Isa};
use rayon::prelude::*;

/// Columns side by side: few enough that a batch of long columns stays in a core's cache.
pub(crate) const BATCH: usize = 32;

/// Activations, place by place; columns that a batch lacks are zeros.
#[derive(Debug)]
pub(crate) struct Batches {
    length: usize,
    activations: Vec<[f32; BATCH]>,
}

impl Batches {
    /// Columns of `length` activations.
    pub fn new(x: &[f32], length: usize) -> Self {
        let batches = (x.len() / length).div_ceil(BATCH);
        let mut activations = vec![[0f32; BATCH]; batches * length];
        activations.par_chunks_exact_mut(length).zip(x.par_chunks(BATCH * length)).for_each(
            |(batch, x)| {
                for (part, batch) in batch.chunks_mut(BATCH).enumerate() {
                    for (c, column) in x.chunks_exact(length).enumerate() {
                        for (place, &x) in batch.iter_mut().zip(&column[part * BATCH..]) {
                            place[c] = x;
                        }
                    }
                }
            },
        );
        Self { length, activations }
    }
}

/// Adds the products of the outliers of some rows to `out`, those rows' piece of every column.
///
/// The more rows at once, the more often a batch is used while it is in the cache.
pub(crate) fn add_outliers(
    isa: Isa,
    outliers: Outliers<'_>,
    x: &Batches,
    mut out: Vec<&mut [f32]>,
) {
    let (blocks, rows) = (x.length / QK_K, out[0].len());
    let mut residual = vec![0f32; outliers.index.len()];
    kernel::dequantize_row(isa, TensorType::F16, outliers.residual, &mut residual);
    let index = block_by_block(outliers.index, blocks, rows);
    let residual = block_by_block(&residual, blocks, rows);
    let mut sums = vec![[0f32; BATCH]; rows];
    for (out, x) in out.chunks_mut(BATCH).zip(x.activations.chunks_exact(x.length)) {
        sums.fill([0.0; BATCH]);
        kernel::add_outlier_products(isa, &index, &residual, x, &mut sums);
        for (c, out) in out.iter_mut().enumerate() {
            for (out, sums) in out.iter_mut().zip(&sums) {
                *out += sums[c];
            }
        }
    }
}

/// The outliers of the first block of every row, then those of the second, and so on.
fn block_by_block<T: Copy>(rows_first: &[T], blocks: usize, rows: usize) -> Vec<T> {
    let outliers = rows_first.len() / (blocks * rows);
    let mut blocks_first = Vec::with_capacity(rows_first.len());
    for block in 0..blocks {
        for row in rows_first.chunks_exact(blocks * outliers) {
            blocks_first.extend_from_slice(&row[block * outliers..][..outliers]);
        }
    }
    blocks_first
}

/// Adds `Σ residual · x` of each row's outliers to `sums`, for each column of the batch `x`.
///
/// The outliers lie block by block, so that a block's activations stay in the innermost cache for
/// all rows.
#[inline(always)]
pub(crate) fn add_outlier_products(
    index: &[u8],
    residual: &[f32],
    x: &[[f32; BATCH]],
    sums: &mut [[f32; BATCH]],
) {
    let x = x.as_chunks::<QK_K>().0;
    let outliers = index.len() / (x.len() * sums.len());
    let mut index = index.chunks_exact(outliers).zip(residual.chunks_exact(outliers));
    for x in x {
        for (sums, (index, residual)) in sums.iter_mut().zip(&mut index) {
            let mut total = *sums;
            for (&place, &residual) in index.iter().zip(residual) {
                for (total, x) in total.iter_mut().zip(&x[usize::from(place)]) {
                    *total = residual.mul_add(*x, *total);
                }
            }
            *sums = total;
        }
    }
}
