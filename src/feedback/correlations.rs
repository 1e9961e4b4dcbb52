//! Correlations of the inputs of a matrix: the entries of H, the mean of x xᵀ over inputs x, off its diagonal.
//!
//! An importance matrix has the diagonal. The other entries are stored as H_ij / √(H_ii H_jj) times 127, in a byte. The
//! rounding error is a third of the sampling error of 20,000 tokens.
//!
//! Long rows are divided into groups of columns, and only correlations within a group are kept. So time and memory
//! are proportional to the length of the row.

use crate::block::{QK, QK_K};
use crate::isa::Isa;
use crate::simd::{Loop, run_loop};
use crate::team;
use std::array::from_fn;
use std::ops::Range;

/// The largest number of columns in a group.
pub const GROUP: usize = 2048;

/// The byte that stores a correlation of 1.
pub(crate) const ONE: f32 = 127.0;

/// The groups of a row's columns. Each has whole blocks; their number is the smallest that [`GROUP`] allows, and their
/// lengths are nearly equal.
pub fn groups(row_length: usize) -> impl Iterator<Item = Range<usize>> {
    let (blocks, count) = (row_length.div_ceil(QK_K), row_length.div_ceil(GROUP));
    let bound = move |i: usize| (blocks * i / count * QK_K).min(row_length);
    (0..count).map(move |i| bound(i)..bound(i + 1))
}

/// The number of pairs of columns of the same group.
pub fn pairs(row_length: usize) -> usize {
    groups(row_length).map(|group| group.len() * group.len().saturating_sub(1) / 2).sum()
}

/// Whether products of a matrix's inputs are summed.
///
/// Rows that blocks do not divide get no error feedback. The inputs of ffn_down are nearly independent: with rows of
/// 8960, it gains a fifth of what other matrices gain, which does not pay for the time.
pub fn are_correlated(row_length: usize, is_ffn_down: bool) -> bool {
    row_length.is_multiple_of(QK) && !(is_ffn_down && row_length > GROUP)
}

/// Calls `each` with a row's pairs of columns, in the order in which they are stored.
fn for_each_pair(row_length: usize, mut each: impl FnMut(usize, usize)) {
    for group in groups(row_length) {
        for i in group.clone() {
            for j in i + 1..group.end {
                each(i, j);
            }
        }
    }
}

/// Correlations of columns from the sums of their `products` (one per pair, see [`pairs`]) and of their `squares` (one
/// per column).
///
/// Panics if the lengths do not fit.
pub fn correlations(products: &[f32], squares: &[f32]) -> Vec<i8> {
    let roots: Vec<f32> = squares.iter().map(|square| square.sqrt()).collect();
    let mut found = Vec::with_capacity(products.len());
    for_each_pair(squares.len(), |i, j| {
        let most = roots[i] * roots[j];
        let r = if most > 0.0 { products[found.len()] / most } else { 0.0 };
        found.push((r.clamp(-1.0, 1.0) * ONE).round_ties_even() as i8);
    });
    found
}

/// The inverse of [`correlations`]: sums of products from `correlations` and from sums of `squares`.
///
/// Panics if the lengths do not fit.
pub fn products(correlations: &[i8], squares: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = squares.iter().map(|square| square.sqrt()).collect();
    let mut found = Vec::with_capacity(correlations.len());
    for_each_pair(squares.len(), |i, j| {
        found.push(f32::from(correlations[found.len()]) / ONE * roots[i] * roots[j]);
    });
    found
}

/// Columns that are multiplied together.
pub(crate) const TILE: usize = 6;

/// Columns of a panel.
pub(crate) const WIDTH: usize = 16;

/// Σ a bᵀ over the pairs of rows of `a` and `b`.
pub(crate) struct Products<'a> {
    pub a: &'a [[f32; TILE]],
    pub b: &'a [[f32; WIDTH]],
}

impl Loop for Products<'_> {
    type Output = [[f32; WIDTH]; TILE];

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut sums = [[0f32; WIDTH]; TILE];
        for (a, b) in self.a.iter().zip(self.b) {
            for (sums, a) in sums.iter_mut().zip(a) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.mul_add(*b, *sum);
                }
            }
        }
        sums
    }
}

/// Sums of the products of a row's columns.
#[derive(Debug, Clone)]
pub struct ProductSums {
    /// For each column, its products with the later columns of its group.
    rows: Vec<Vec<f32>>,
}

impl ProductSums {
    pub(crate) fn new(row_length: usize) -> Self {
        let rows = groups(row_length).flat_map(|group| {
            let end = group.end;
            group.map(move |i| vec![0.0; end - i - 1])
        });
        Self { rows: rows.collect() }
    }

    /// The sums, one per pair of columns, in the order in which they are stored.
    pub fn to_vec(&self) -> Vec<f32> {
        self.rows.concat()
    }

    /// Adds the sums of `other`, whose rows have the same length, and sets those to zero.
    pub(crate) fn take(&mut self, other: &mut Self) {
        for (sums, others) in self.rows.iter_mut().zip(&mut other.rows) {
            for (sum, other) in sums.iter_mut().zip(others) {
                *sum += std::mem::take(other);
            }
        }
    }

    /// Adds the products of whole rows, with the threads of the team.
    pub(crate) fn add(&mut self, isa: Isa, rows: &[f32]) {
        let width = self.rows.len();
        let mut panels: Vec<Vec<[f32; WIDTH]>> = vec![Vec::new(); width.div_ceil(WIDTH)];
        team::for_each_chunk(&mut panels, 1, |p, panel| {
            let columns = p * WIDTH..width.min((p + 1) * WIDTH);
            panel[0].extend(rows.chunks_exact(width).map(|row| {
                let mut part = [0.0; WIDTH];
                part[..columns.len()].copy_from_slice(&row[columns.clone()]);
                part
            }));
        });
        team::for_each_chunk(&mut self.rows, TILE, |tile, sums| {
            let first = tile * TILE;
            let a: Vec<[f32; TILE]> = rows
                .chunks_exact(width)
                .map(|row| from_fn(|t| row.get(first + t).copied().unwrap_or(0.0)))
                .collect();
            let ends = sums.iter().enumerate().map(|(t, sums)| first + t + 1 + sums.len());
            let panels_to = ends.max().unwrap_or(0).div_ceil(WIDTH);
            for (p, panel) in panels.iter().enumerate().take(panels_to).skip(first / WIDTH) {
                let found = run_loop(isa, Products { a: &a, b: panel });
                for (t, (sums, found)) in sums.iter_mut().zip(found).enumerate() {
                    // the panel and the sums begin at different columns
                    let (at, next) = (p * WIDTH, first + t + 1);
                    let columns = next.max(at)..(next + sums.len()).min(at + WIDTH);
                    if columns.is_empty() {
                        continue;
                    }
                    let sums = &mut sums[columns.start - next..columns.end - next];
                    for (sum, found) in sums.iter_mut().zip(&found[columns.start - at..]) {
                        *sum += found;
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::weights;

    #[test]
    fn groups_are_even_and_of_whole_blocks() {
        let lengths = |n: usize| groups(n).map(|group| group.len()).collect::<Vec<usize>>();
        assert_eq!(lengths(4), [4]);
        assert_eq!(lengths(2048), [2048]);
        assert_eq!(lengths(2304), [1024, 1280]);
        assert_eq!(lengths(5120), [1536, 1792, 1792]);
        assert_eq!(pairs(2304), 1024 * 1023 / 2 + 1280 * 1279 / 2);
        assert_eq!((lengths(0), pairs(0), pairs(1)), (vec![], 0, 0));
    }

    /// Numbers of columns that fill no tile, fill no panel, or make two groups.
    #[test]
    fn sums_are_those_of_all_pairs_on_every_isa() {
        for n in [5, 70, 2304] {
            let rows = weights(n * 3, 12);
            let mut expected = Vec::new();
            for_each_pair(n, |i, j| {
                expected.push(rows.chunks_exact(n).map(|row| 2.0 * row[i] * row[j]).sum::<f32>());
            });
            let sums = |isa| {
                let mut sums = ProductSums::new(n);
                sums.add(isa, &rows);
                sums.add(isa, &rows);
                sums.to_vec()
            };
            let scalar = sums(Isa::Scalar);
            for isa in Isa::available() {
                let found = sums(isa);
                assert!(found == scalar, "{isa:?}");
                assert_eq!(found.len(), pairs(n));
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-6, "{n} {isa:?}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn products_come_back() {
        let squares = [4.0, 0.0, 1.0, 9.0];
        let sums = [0.0, 1.0, -6.0, 0.0, 0.0, 9.0];
        let found = correlations(&sums, &squares);
        assert_eq!(found, [0, 64, -127, 0, 0, 127], "at most 1, and none of what is nothing");
        let back = products(&found, &squares);
        assert!(
            back.iter()
                .zip([0.0, 64.0 / 63.5, -6.0, 0.0, 0.0, 3.0])
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );
    }
}
