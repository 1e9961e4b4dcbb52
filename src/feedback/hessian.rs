//! H = E[x xᵀ] of the inputs of a matrix: its damping, its order of columns and its factorization.

use super::correlations::{ONE, Products, TILE, WIDTH, groups, pairs};
use crate::check::{check_importance, expect_length};
use crate::error::QuantError;
use crate::isa::Isa;
use crate::simd::run_loop;
use rayon::prelude::*;
use std::array::from_fn;

/// Correlations measured on one text differ somewhat on others. Therefore each correlation is multiplied by 1 -
/// [`SHRINK_SHARE`] - [`SHRINK_TOKENS`] / tokens. This has the effect of GPTQ's damping, which makes the diagonal of H
/// larger. These values gave the least error on other texts, though not by much (docs/quantization/Q4_HIFI.md).
const SHRINK_SHARE: f32 = 0.25;
/// See [`SHRINK_SHARE`].
const SHRINK_TOKENS: f32 = 1000.0;

/// Lower bound of a Cholesky pivot, so that damaged correlations cannot make it zero or negative.
const MIN_PIVOT: f32 = 0.01;

/// Lower bound of a column's importance, as a share of the mean.
const MIN_IMPORTANCE: f32 = 1e-6;

/// H = E[x xᵀ] of the inputs x of a matrix, factorized. It is made from the importance of each column and the
/// correlations of columns.
#[derive(Debug, Clone)]
pub struct Hessian {
    /// The square root of each column's importance.
    roots: Vec<f32>,
    groups: Vec<Group>,
}

/// Columns whose correlations are known. For these, H = Mᵀ D M.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// The order of columns in which quants are chosen: the most important column first (GPTQ's `act_order`).
    order: Vec<u32>,
    /// The rows of M up to the diagonal. A tile has six rows; each of its elements has their entries in one column.
    tiles: Vec<Vec<[f32; TILE]>>,
}

impl Group {
    pub(super) fn order(&self) -> &[u32] {
        &self.order
    }

    pub(super) fn tiles(&self) -> impl Iterator<Item = &[[f32; TILE]]> {
        self.tiles.iter().map(Vec::as_slice)
    }
}

impl Hessian {
    /// H from the `importance` of each column and the `correlations` that [`super::correlations::correlations`] made
    /// from `tokens` tokens. Without `correlations` (an empty slice), the columns count as uncorrelated.
    ///
    /// Fails if the number of correlations is wrong, or if an importance is negative or not finite.
    pub fn new(importance: &[f32], correlations: &[i8], tokens: f32) -> Result<Self, QuantError> {
        let row_length = importance.len();
        let roots = roots(importance)?;
        if !correlations.is_empty() {
            expect_length("correlations", correlations.len(), pairs(row_length))?;
        }
        let share = 1.0 - SHRINK_SHARE - SHRINK_TOKENS / tokens.max(1.0);
        let mut found = Vec::new();
        if !correlations.is_empty() && share > 0.0 {
            let isa = Isa::active()?;
            let mut rest = correlations;
            for columns in groups(row_length) {
                let of_group;
                (of_group, rest) = rest.split_at(columns.len() * (columns.len() - 1) / 2);
                found.push(Group::new(isa, columns.start, &roots[columns], of_group, share));
            }
        }
        Ok(Self { roots, groups: found })
    }

    /// H with the same correlations and another importance. The experts of a layer use it.
    ///
    /// The order of columns is kept. It takes row_length² / 2 multiplications; [`Self::new`] takes
    /// row_length³ / 6.
    pub fn with_importance(&self, importance: &[f32]) -> Result<Self, QuantError> {
        expect_length("importance", importance.len(), self.row_length())?;
        let roots = roots(importance)?;
        let ratios: Vec<f32> = roots.iter().zip(&self.roots).map(|(new, old)| new / old).collect();
        let groups = self.groups.par_iter().map(|group| group.scaled(&ratios)).collect();
        Ok(Self { roots, groups })
    }

    pub(super) fn row_length(&self) -> usize {
        self.roots.len()
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Fails if rows have another length.
    pub(crate) fn check(&self, row_length: usize) -> Result<(), QuantError> {
        expect_length("importance", self.row_length(), row_length)
    }
}

/// The square roots of the importance of columns. Fails if an importance is negative or not finite.
fn roots(importance: &[f32]) -> Result<Vec<f32>, QuantError> {
    check_importance(Some(importance), importance.len())?;
    let mean = importance.iter().sum::<f32>() / importance.len() as f32;
    // above zero, even if all importances are zero
    let min = (MIN_IMPORTANCE * mean).max(f32::MIN_POSITIVE);
    Ok(importance.iter().map(|w| w.max(min).sqrt()).collect())
}

/// An upper triangular matrix, in panels of [`WIDTH`] columns.
type Panels = Vec<Vec<[f32; WIDTH]>>;

impl Group {
    fn new(isa: Isa, first: usize, roots: &[f32], correlations: &[i8], share: f32) -> Self {
        let n = roots.len();
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by(|&a, &b| roots[b as usize].total_cmp(&roots[a as usize]));
        // with the columns in reverse order, the factorization is Cholesky's: C = Uᵀ U
        let reversed: Vec<usize> = order.iter().rev().map(|&i| i as usize).collect();
        let mut u = shrunk(&reversed, correlations, share);
        factorize(isa, &mut u);
        let tiles = (0..n).step_by(TILE).collect::<Vec<_>>().into_par_iter().map(|k| {
            let at = |row: usize, column: usize| u[column / WIDTH][row][column % WIDTH];
            let entry = |t: usize, p: usize| {
                let row = k + t;
                if row >= n || p >= row {
                    return 0.0;
                }
                let (own, other) = (roots[order[row] as usize], roots[order[p] as usize]);
                at(n - 1 - row, n - 1 - p) / at(n - 1 - row, n - 1 - row) * (other / own)
            };
            (0..k + TILE).map(|p| from_fn(|t| entry(t, p))).collect()
        });
        let tiles = tiles.collect();
        order.iter_mut().for_each(|i| *i += first as u32);
        Self { order, tiles }
    }

    /// The group with the square root of each column's importance multiplied by its ratio.
    fn scaled(&self, ratios: &[f32]) -> Self {
        let of: Vec<f32> = self.order.iter().map(|&i| ratios[i as usize]).collect();
        let tiles = self.tiles.iter().enumerate().map(|(k, tile)| {
            // rows after the last one are zeros
            let own: [f32; TILE] = from_fn(|t| of.get(k * TILE + t).copied().unwrap_or(1.0));
            let of = of.iter().copied().chain(std::iter::repeat(1.0));
            tile.iter().zip(of).map(|(m, other)| from_fn(|t| m[t] * (other / own[t]))).collect()
        });
        Self { order: self.order.clone(), tiles: tiles.collect() }
    }
}

/// The correlation matrix with columns in `order`, off-diagonal entries times `share`.
fn shrunk(order: &[usize], correlations: &[i8], share: f32) -> Panels {
    let n = order.len();
    let starts: Vec<usize> = (0..n).map(|i| i * (2 * n - i - 1) / 2).collect();
    let entry = |row: usize, column: usize| {
        if column == row {
            return 1.0;
        }
        if column < row || column >= n {
            return 0.0;
        }
        let (a, b) = (order[row].min(order[column]), order[row].max(order[column]));
        f32::from(correlations[starts[a] + b - a - 1]) * (share / ONE)
    };
    let panel = |p: usize| (0..n).map(|row| from_fn(|l| entry(row, p * WIDTH + l))).collect();
    (0..n.div_ceil(WIDTH)).into_par_iter().map(panel).collect()
}

/// Cholesky factorization C = Uᵀ U in place, six rows at a time. Only the upper half of C is read.
fn factorize(isa: Isa, panels: &mut Panels) {
    let n = panels.first().map_or(0, Vec::len);
    for k in (0..n).step_by(TILE) {
        let height = TILE.min(n - k);
        let (first, last) = (k / WIDTH, (k + height - 1) / WIDTH);
        // the entries of a row in columns k to k + 5
        let part = |panels: &Panels, row: usize| -> [f32; TILE] {
            from_fn(
                |t| if t < height { panels[(k + t) / WIDTH][row][(k + t) % WIDTH] } else { 0.0 },
            )
        };
        let above: Vec<[f32; TILE]> = (0..k).map(|row| part(panels, row)).collect();
        let reduce = |panel: &mut Vec<[f32; WIDTH]>| {
            let products = run_loop(isa, Products { a: &above, b: &panel[..k] });
            for (v, product) in
                panel[k..].as_flattened_mut().iter_mut().zip(products.as_flattened())
            {
                *v -= product;
            }
        };
        // the tile on the diagonal first, because the others need it
        panels[first..=last].iter_mut().for_each(reduce);
        let mut diagonal: Vec<_> = (k..k + height).map(|row| part(panels, row)).collect();
        factorize_tile(&mut diagonal);
        let eliminate = |panel: &mut Vec<[f32; WIDTH]>| {
            for (t, of) in diagonal.iter().enumerate() {
                let (done, rest) = panel[k..].split_at_mut(t + 1);
                done[t].iter_mut().for_each(|v| *v /= of[t]);
                for (below, factor) in rest.iter_mut().zip(&of[t + 1..height]) {
                    for (below, v) in below.iter_mut().zip(&done[t]) {
                        *below -= factor * v;
                    }
                }
            }
        };
        panels[first..=last].iter_mut().for_each(eliminate);
        // the pivot of the tile differs from the panel's if it was raised
        for (t, of) in diagonal.iter().enumerate() {
            panels[(k + t) / WIDTH][k + t][(k + t) % WIDTH] = of[t];
        }
        panels[last + 1..].par_iter_mut().for_each(|panel| {
            reduce(panel);
            eliminate(panel);
        });
    }
}

/// Factorizes a diagonal tile of at most six rows.
fn factorize_tile(tile: &mut [[f32; TILE]]) {
    for t in 0..tile.len() {
        let (done, rest) = tile.split_at_mut(t + 1);
        let row = &mut done[t];
        let pivot = row[t].max(MIN_PIVOT).sqrt();
        row.iter_mut().for_each(|v| *v /= pivot);
        row[t] = pivot;
        for (below, &factor) in rest.iter_mut().zip(&row[t + 1..]) {
            for (below, v) in below.iter_mut().zip(&*row) {
                *below -= factor * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::weights;

    /// With the same importance, the Hessian does not change. With another importance that leaves the order of
    /// columns, it is nearly equal to a new factorization.
    #[test]
    fn another_importance_needs_no_new_factors() {
        let n = 70;
        let importance: Vec<f32> = weights(n, 3).iter().map(|x| x * x).collect();
        let correlations: Vec<i8> = (0..pairs(n)).map(|i| (i * 37 % 5) as i8 - 2).collect();
        let hessian = Hessian::new(&importance, &correlations, 1e6).unwrap();
        let same = hessian.with_importance(&importance).unwrap();
        // all importances times four: the order and the ratios are the same
        let scaled: Vec<f32> = importance.iter().map(|w| 4.0 * w).collect();
        let direct = Hessian::new(&scaled, &correlations, 1e6).unwrap();
        let derived = hessian.with_importance(&scaled).unwrap();
        // the largest importance is raised, so that the order stays
        let first = hessian.groups[0].order[0] as usize;
        let mut raised = importance.clone();
        raised[first] *= 9.0;
        let anew = Hessian::new(&raised, &correlations, 1e6).unwrap();
        let from_old = hessian.with_importance(&raised).unwrap();
        for (a, b) in [(&hessian, &same), (&direct, &derived), (&anew, &from_old)] {
            assert_eq!(a.roots, b.roots);
            for (a, b) in a.groups.iter().zip(&b.groups) {
                assert_eq!(a.order, b.order);
                for (a, b) in
                    a.tiles.iter().flatten().flatten().zip(b.tiles.iter().flatten().flatten())
                {
                    assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} {b}");
                }
            }
        }
        assert!(hessian.with_importance(&importance[1..]).is_err());
        raised[0] = -1.0;
        assert!(hessian.with_importance(&raised).is_err());
    }
}
