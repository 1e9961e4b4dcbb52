//! H = E[x xᵀ] of the inputs of rows, factored as error feedback needs it.

use super::correlations::{ONE, Products, TILE, WIDTH, groups, pairs};
use crate::check::{check_importance, expect_length};
use crate::error::QuantError;
use crate::isa::Isa;
use crate::simd::run_loop;
use rayon::prelude::*;
use std::array::from_fn;

/// Correlations measured on one text differ somewhat on others, so they are shrunk towards 0: by the first of these,
/// a share, and by the second, a number of tokens, over the number that was measured. These values gave the least
/// error on other texts, though not by much (docs/quantization/Q4_HIFI.md).
const SHRINK: (f32, f32) = (0.25, 1000.0);

/// The least that is left of a column's own part, so that no damaged file can make it nothing.
const LEAST: f32 = 0.01;

/// Of the mean importance, the least that a column is taken to have.
const LEAST_IMPORTANCE: f32 = 1e-6;

/// H = E[x xᵀ] of the inputs x of rows, from the importance of each column and the correlations of columns, factored.
#[derive(Debug, Clone)]
pub struct Hessian {
    /// The root of each column's importance.
    roots: Vec<f32>,
    groups: Vec<Group>,
}

/// Columns whose correlations are known: H = Mᵀ D M of these.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// The columns, the most important first.
    order: Vec<u32>,
    /// The rows of M, up to the diagonal, six side by side; a tile has one number of each for every column
    /// up to its own.
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
    /// Of columns of that importance, with the `correlations` that [`super::correlations`] has from that number of
    /// tokens, or an empty slice.
    pub fn new(importance: &[f32], correlations: &[i8], tokens: f32) -> Result<Self, QuantError> {
        let row_length = importance.len();
        let roots = roots(importance)?;
        if !correlations.is_empty() {
            expect_length("correlations", correlations.len(), pairs(row_length))?;
        }
        let share = 1.0 - SHRINK.0 - SHRINK.1 / tokens.max(1.0);
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

    /// The same correlations of columns with another importance, as the experts of a layer have it.
    ///
    /// The columns keep their order. It takes row_length² / 2 multiplications, where [`Self::new`] takes
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

    /// Fails where rows have another length.
    pub(crate) fn check(&self, row_length: usize) -> Result<(), QuantError> {
        expect_length("importance", self.row_length(), row_length)
    }
}

/// The roots of the importance of columns. Fails where one is negative or not finite.
fn roots(importance: &[f32]) -> Result<Vec<f32>, QuantError> {
    check_importance(Some(importance), importance.len())?;
    let mean = importance.iter().sum::<f32>() / importance.len() as f32;
    // no column's is zero, not even where all are
    let least = (LEAST_IMPORTANCE * mean).max(f32::MIN_POSITIVE);
    Ok(importance.iter().map(|w| w.max(least).sqrt()).collect())
}

/// A matrix of zeros below its diagonal, in panels of columns.
type Panels = Vec<Vec<[f32; WIDTH]>>;

impl Group {
    fn new(isa: Isa, first: usize, roots: &[f32], correlations: &[i8], share: f32) -> Self {
        let n = roots.len();
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by(|&a, &b| roots[b as usize].total_cmp(&roots[a as usize]));
        // from the last column to the first it is Cholesky's factor: C = Uᵀ U
        let backwards: Vec<usize> = order.iter().rev().map(|&i| i as usize).collect();
        let mut u = lessened(&backwards, correlations, share);
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

    /// The group after the root of each column's importance was multiplied by its ratio.
    fn scaled(&self, ratios: &[f32]) -> Self {
        let of: Vec<f32> = self.order.iter().map(|&i| ratios[i as usize]).collect();
        let tiles = self.tiles.iter().enumerate().map(|(k, tile)| {
            // rows beyond the last are zeros
            let own: [f32; TILE] = from_fn(|t| of.get(k * TILE + t).copied().unwrap_or(1.0));
            let of = of.iter().copied().chain(std::iter::repeat(1.0));
            tile.iter().zip(of).map(|(m, other)| from_fn(|t| m[t] * (other / own[t]))).collect()
        });
        Self { order: self.order.clone(), tiles: tiles.collect() }
    }
}

/// A share of the correlations of the columns, in that order.
fn lessened(order: &[usize], correlations: &[i8], share: f32) -> Panels {
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

/// Makes of a positive matrix, whose upper half counts, U of Uᵀ U, six rows after six.
fn factorize(isa: Isa, panels: &mut Panels) {
    let n = panels.first().map_or(0, Vec::len);
    for k in (0..n).step_by(TILE) {
        let height = TILE.min(n - k);
        let (first, last) = (k / WIDTH, (k + height - 1) / WIDTH);
        // what a row has in the columns of these rows
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
        // the square on the diagonal first: the others ask for it
        panels[first..=last].iter_mut().for_each(reduce);
        let mut square: Vec<_> = (k..k + height).map(|row| part(panels, row)).collect();
        factorize_square(&mut square);
        let eliminate = |panel: &mut Vec<[f32; WIDTH]>| {
            for (t, of) in square.iter().enumerate() {
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
        for (t, of) in square.iter().enumerate() {
            panels[(k + t) / WIDTH][k + t][(k + t) % WIDTH] = of[t]; // where a pivot was raised it is another
        }
        panels[last + 1..].par_iter_mut().for_each(|panel| {
            reduce(panel);
            eliminate(panel);
        });
    }
}

/// The same of a few rows and as many columns.
fn factorize_square(square: &mut [[f32; TILE]]) {
    for t in 0..square.len() {
        let (done, rest) = square.split_at_mut(t + 1);
        let row = &mut done[t];
        let pivot = row[t].max(LEAST).sqrt();
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

    /// With the importance that it has, a Hessian stays as it is; with another, it is nearly the one that is
    /// factored anew, whose columns may have another order.
    #[test]
    fn another_importance_needs_no_new_factors() {
        let n = 70;
        let importance: Vec<f32> = weights(n, 3).iter().map(|x| x * x).collect();
        let correlations: Vec<i8> = (0..pairs(n)).map(|i| (i * 37 % 5) as i8 - 2).collect();
        let hessian = Hessian::new(&importance, &correlations, 1e6).unwrap();
        let same = hessian.with_importance(&importance).unwrap();
        // four times as important, all of them: the order is the same, the ratios too
        let scaled: Vec<f32> = importance.iter().map(|w| 4.0 * w).collect();
        let direct = Hessian::new(&scaled, &correlations, 1e6).unwrap();
        let derived = hessian.with_importance(&scaled).unwrap();
        // raised where it was largest already, so that the order stays
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
