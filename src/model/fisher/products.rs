//! Products of matrices of f32 values, and sums that follow from them.

use crate::dispatch;
use crate::error::QuantError;
use crate::isa::Isa;
use crate::matmul::Matrix;
use crate::rows::Source;
use rayon::prelude::*;

/// Rows of a matrix that are transposed together.
pub(super) const ROWS: usize = 512;
/// Side of the tiles in which a matrix is transposed.
const COLUMNS: usize = 32;

/// Σₒ energyₒ · gₒᵀ K gₒ. `gradient` has one row per token; K is the result of [`pairs`].
pub(super) fn information(
    pairs: &[f32],
    gradient: &[f32],
    energy: &[f64],
) -> Result<f64, QuantError> {
    let rows = energy.len();
    let tokens = gradient.len() / rows;
    let columns = transposed(gradient, rows);
    let products = times(pairs, tokens, &columns)?;
    let of_row = |(o, energy): (usize, &f64)| {
        let at = o * tokens..(o + 1) * tokens;
        energy * dot(&columns[at.clone()], &products[at])
    };
    Ok(energy.par_iter().enumerate().map(of_row).collect::<Vec<_>>().iter().sum())
}

/// The products of all pairs of rows of `n` values.
pub(super) fn pairs(rows: &[f32], n: usize) -> Result<Vec<f32>, QuantError> {
    times(rows, n, rows)
}

/// `x · rowsᵀ`: the products of every row of `x` with every row of `rows`. All rows have `n` values.
pub(super) fn times(rows: &[f32], n: usize, x: &[f32]) -> Result<Vec<f32>, QuantError> {
    let matrix = Matrix::new(Source::from_f32(rows, n)?);
    let mut out = vec![0f32; x.len() / n * matrix.rows()];
    matrix.matmul(x, &mut out)?;
    Ok(out)
}

/// The transposed matrix of rows of `n` values.
pub(super) fn transposed(rows: &[f32], n: usize) -> Vec<f32> {
    let count = rows.len() / n;
    let mut out = vec![0f32; rows.len()];
    out.par_chunks_mut(COLUMNS * count).enumerate().for_each(|(i, out)| {
        let columns = out.len() / count;
        for r in (0..count).step_by(COLUMNS) {
            let together = r..count.min(r + COLUMNS); // a tile, which fits into the cache
            for c in 0..columns {
                for r in together.clone() {
                    out[c * count + r] = rows[r * n + i * COLUMNS + c];
                }
            }
        }
    });
    out
}

/// `gradient · matrix`: `out[t][i] = Σₒ gradient[t][o] · w[o][i]`.
pub(super) fn multiply_transposed(
    isa: Isa,
    matrix: &Matrix<'_>,
    gradient: &[f32],
) -> Result<Vec<f32>, QuantError> {
    let (rows, n) = (matrix.rows(), matrix.row_length());
    let mut out = vec![0f32; gradient.len() / rows * n];
    for start in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - start);
        let mut decoded = vec![0f32; count * n];
        decoded.par_chunks_mut(n).enumerate().for_each(|(i, row)| matrix.row(isa, start + i, row));
        let part = times(&transposed(&decoded, n), count, &take(gradient, rows, start, count))?;
        sum_up(&mut out, &part);
    }
    Ok(out)
}

/// Σᵢ cᵢ w² of each row of a matrix, where `columns` has the shares cᵢ.
pub(super) fn row_sums(isa: Isa, matrix: &Matrix<'_>, columns: &[f64]) -> Vec<f64> {
    let columns: Vec<f32> = columns.iter().map(|&c| c as f32).collect();
    let sum = |row: &mut Vec<f32>, i| {
        matrix.row(isa, i, row);
        dispatch::error_sums(isa, row, Some(&columns), row).reference
    };
    let scratch = || vec![0f32; matrix.row_length()];
    (0..matrix.rows()).into_par_iter().map_init(scratch, sum).collect()
}

/// The share of each of the `n` columns of the inputs `x` in Σ |g|² x²; equal shares if the sum is 0. `gradient` has
/// one row of `rows` values per input.
pub(super) fn spread(x: &[f32], n: usize, gradient: &[f32], rows: usize) -> Vec<f64> {
    let mut sums = vec![0f64; n];
    for (x, g) in x.chunks_exact(n).zip(gradient.chunks_exact(rows)) {
        let weight = dot(g, g);
        sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += weight * f64::from(x) * f64::from(x));
    }
    let all: f64 = sums.iter().sum();
    if all > 0.0 {
        sums.iter_mut().for_each(|sum| *sum /= all);
    } else {
        sums.fill(1.0 / n as f64);
    }
    sums
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

pub(super) fn sum_up(sum: &mut [f32], part: &[f32]) {
    sum.par_iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
}

/// The values from `offset` to `offset + count` of every row of `width` values.
pub(super) fn take(rows: &[f32], width: usize, offset: usize, count: usize) -> Vec<f32> {
    rows.chunks_exact(width).flat_map(|row| &row[offset..][..count]).copied().collect()
}

/// The inverse of [`take`]: adds rows of `count` values to `rows`, from `offset` on.
pub(super) fn put(rows: &mut [f32], width: usize, offset: usize, count: usize, part: &[f32]) {
    for (row, part) in rows.chunks_exact_mut(width).zip(part.chunks_exact(count)) {
        row[offset..][..count].iter_mut().zip(part).for_each(|(x, part)| *x += part);
    }
}
