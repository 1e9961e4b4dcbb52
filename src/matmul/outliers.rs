//! The products of Q4_HIFI's outliers with many columns.
//!
//! Every row has its own indices, so rows share nothing. But an outlier is used by all columns. Therefore the
//! activations are transposed, so that those of [`BATCH`] columns at one index are neighbours. Then an outlier costs
//! one multiply-add per vector of columns.

use crate::block::{QK_K, TensorType};
use crate::dispatch;
use crate::isa::Isa;
use crate::rows::Outliers;
use crate::simd::{Loop, run_loop};

/// Columns in a batch: so few that a batch of long columns fits into a core's cache.
pub(crate) const BATCH: usize = 32;

/// Outliers of some rows, with residuals as f32: the outliers of the first block of every row, then those of the second
/// block, and so on.
#[derive(Debug)]
pub(crate) struct OutlierPart {
    index: Vec<u8>,
    residual: Vec<f32>,
}

impl OutlierPart {
    /// The outliers of `rows` rows.
    pub fn new(isa: Isa, outliers: Outliers<'_>, rows: usize) -> Self {
        let mut residual = vec![0f32; outliers.index.len()];
        dispatch::dequantize_row(isa, TensorType::F16, outliers.residual, &mut residual);
        let n = outliers.outliers;
        let blocks = outliers.index.len() / (rows * n);
        Self {
            index: block_by_block(outliers.index, blocks, n),
            residual: block_by_block(&residual, blocks, n),
        }
    }
}

/// Transposes columns of `length` activations, at most one batch. Missing columns of the batch are zeros.
pub(crate) fn index_by_index(x: &[f32], length: usize, batch: &mut Vec<[f32; BATCH]>) {
    batch.resize(length, [0.0; BATCH]);
    for (part, batch) in batch.chunks_mut(BATCH).enumerate() {
        if x.len() < BATCH * length {
            batch.fill([0.0; BATCH]);
        }
        for (c, column) in x.chunks_exact(length).enumerate() {
            for (at_index, &x) in batch.iter_mut().zip(&column[part * BATCH..]) {
                at_index[c] = x;
            }
        }
    }
}

/// Adds the products of the outliers of some rows to `out`, which has these rows' piece of every column of a batch.
///
/// With more rows at once, a block's activations are used more often while they are in the cache.
pub(crate) fn add_outliers(
    isa: Isa,
    outliers: &OutlierPart,
    batch: &[[f32; BATCH]],
    mut out: Vec<&mut [f32]>,
) {
    let mut sums = vec![[0f32; BATCH]; out[0].len()];
    let OutlierPart { index, residual } = outliers;
    run_loop(isa, AddOutlierProducts { index, residual, x: batch, sums: &mut sums });
    for (c, out) in out.iter_mut().enumerate() {
        for (out, sums) in out.iter_mut().zip(&sums) {
            *out += sums[c];
        }
    }
}

fn block_by_block<T: Copy>(rows_first: &[T], blocks: usize, outliers: usize) -> Vec<T> {
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
/// The outliers are ordered block by block, so that a block's activations stay in the L1 cache for all rows.
struct AddOutlierProducts<'a> {
    index: &'a [u8],
    residual: &'a [f32],
    x: &'a [[f32; BATCH]],
    sums: &'a mut [[f32; BATCH]],
}

impl Loop for AddOutlierProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { index, residual, x, sums } = self;
        let x = x.as_chunks::<QK_K>().0;
        let outliers = index.len() / (x.len() * sums.len());
        let mut index = index.chunks_exact(outliers).zip(residual.chunks_exact(outliers));
        for x in x {
            for (sums, (index, residual)) in sums.iter_mut().zip(&mut index) {
                let mut total = *sums;
                for (&i, &residual) in index.iter().zip(residual) {
                    for (total, x) in total.iter_mut().zip(&x[usize::from(i)]) {
                        *total = residual.mul_add(*x, *total);
                    }
                }
                *sums = total;
            }
        }
    }
}
