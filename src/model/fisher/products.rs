//! Products of rows of numbers, and what is made of them.

use crate::dispatch;
use crate::error::QuantError;
use crate::isa::Isa;
use crate::matmul::Matrix;
use crate::rows::Source;
use rayon::prelude::*;

/// Rows of a matrix that are turned into columns together.
pub(super) const ROWS: usize = 512;
/// Numbers of these columns that a thread writes together.
const COLUMNS: usize = 32;

/// Σₒ energyₒ · gₒᵀ K gₒ: gradients have a row a token, K is [`pairs`].
pub(super) fn information(
    pairs: &[f32],
    gradient: &[f32],
    energy: &[f64],
) -> Result<f64, QuantError> {
    let rows = energy.len();
    let tokens = gradient.len() / rows;
    let columns = turned(gradient, rows);
    let products = times(pairs, tokens, &columns)?;
    let of_row = |(o, energy): (usize, &f64)| {
        let at = o * tokens..(o + 1) * tokens;
        energy * dot(&columns[at.clone()], &products[at])
    };
    Ok(energy.par_iter().enumerate().map(of_row).collect::<Vec<_>>().iter().sum())
}

/// The products of all pairs of rows of `n` numbers.
pub(super) fn pairs(rows: &[f32], n: usize) -> Result<Vec<f32>, QuantError> {
    times(rows, n, rows)
}

/// The product of every row of `x` with every one of `rows`, all of `n` numbers: a row for each of `x`.
pub(super) fn times(rows: &[f32], n: usize, x: &[f32]) -> Result<Vec<f32>, QuantError> {
    let matrix = Matrix::new(Source::from_f32(rows, n)?);
    let mut out = vec![0f32; x.len() / n * matrix.rows()];
    matrix.matmul(x, &mut out)?;
    Ok(out)
}

/// Rows of `n` numbers as columns.
pub(super) fn turned(rows: &[f32], n: usize) -> Vec<f32> {
    let count = rows.len() / n;
    let mut out = vec![0f32; rows.len()];
    out.par_chunks_mut(COLUMNS * count).enumerate().for_each(|(i, out)| {
        let columns = out.len() / count;
        for r in (0..count).step_by(COLUMNS) {
            let together = r..count.min(r + COLUMNS); // what they read and write stays near
            for c in 0..columns {
                for r in together.clone() {
                    out[c * count + r] = rows[r * n + i * COLUMNS + c];
                }
            }
        }
    });
    out
}

/// Multiplies rows of gradients by the matrix turned: `out[t][i] = Σₒ gradient[t][o] · w[o][i]`.
pub(super) fn multiply_turned(
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
        let part = times(&turned(&decoded, n), count, &take(gradient, rows, start, count))?;
        sum_up(&mut out, &part);
    }
    Ok(out)
}

/// Of each row of a matrix Σᵢ cᵢ w².
pub(super) fn row_sums(isa: Isa, matrix: &Matrix<'_>, columns: &[f64]) -> Vec<f64> {
    let columns: Vec<f32> = columns.iter().map(|&c| c as f32).collect();
    let sum = |row: &mut Vec<f32>, i| {
        matrix.row(isa, i, row);
        dispatch::error_sums(isa, row, Some(&columns), row).reference
    };
    let scratch = || vec![0f32; matrix.row_length()];
    (0..matrix.rows()).into_par_iter().map_init(scratch, sum).collect()
}

/// The shares of the `n` columns of inputs `x` in Σ |g|² x², over rows of inputs and their gradients of
/// `rows` numbers; alike where there is none.
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

/// `count` numbers from `offset` on of every row of `width`.
pub(super) fn take(rows: &[f32], width: usize, offset: usize, count: usize) -> Vec<f32> {
    rows.chunks_exact(width).flat_map(|row| &row[offset..][..count]).copied().collect()
}

/// Adds rows of `count` numbers to those from `offset` on of every row of `width`.
pub(super) fn put(rows: &mut [f32], width: usize, offset: usize, count: usize, part: &[f32]) {
    for (row, part) in rows.chunks_exact_mut(width).zip(part.chunks_exact(count)) {
        row[offset..][..count].iter_mut().zip(part).for_each(|(x, part)| *x += part);
    }
}
