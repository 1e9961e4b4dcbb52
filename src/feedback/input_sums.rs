//! Sums over the inputs of a tensor's matrices. Importance matrices are made from them.

use super::correlations::ProductSums;
use crate::check::expect_length;
use crate::error::QuantError;
use crate::isa::Isa;
use crate::team;

/// Columns whose squares one thread adds up, if there is one matrix.
const COLUMNS: usize = 256;

/// Sums over the input vectors x of a tensor with one matrix, or with several (the experts of a layer).
///
/// Every matrix has its own sums of squares. Products of pairs of columns are summed for all matrices together, for
/// each matrix separately, or not at all.
#[derive(Debug, Clone)]
pub struct InputSums {
    width: usize,
    squares: Vec<f64>,
    counts: Vec<u64>,
    products: Vec<ProductSums>,
}

impl InputSums {
    /// Empty sums for `n_matrices` matrices whose rows have `width` weights.
    ///
    /// `n_products` is 0 for no products, 1 for one sum over the inputs of all matrices, or `n_matrices`. Fails for
    /// other values, and if `width` or `n_matrices` is 0.
    pub fn new(width: usize, n_matrices: usize, n_products: usize) -> Result<Self, QuantError> {
        if width == 0 || n_matrices == 0 {
            return Err(QuantError::InputSums("sums need at least one column and one matrix"));
        }
        if ![0, 1, n_matrices].contains(&n_products) {
            return Err(QuantError::InputSums(
                "products are summed for no matrix, for all together, or for each",
            ));
        }
        Ok(Self {
            width,
            squares: vec![0.0; width * n_matrices],
            counts: vec![0; n_matrices],
            products: (0..n_products).map(|_| ProductSums::new(width)).collect(),
        })
    }

    /// Σ x², one per column, matrix by matrix.
    pub fn squares(&self) -> &[f64] {
        &self.squares
    }

    /// The number of vectors that each matrix received.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Σ x_i x_j of pairs of columns ([`super::correlations`]). A vector counts once for each matrix that it goes to.
    pub fn products(&self) -> &[ProductSums] {
        &self.products
    }

    /// Columns of each matrix.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Adds the sums of `other` to these, and sets those to zero.
    ///
    /// Returns false, and changes nothing, if `other` has another shape.
    pub fn take(&mut self, other: &mut Self) -> bool {
        if !self.is_alike(other) {
            return false;
        }
        for (sum, other) in self.squares.iter_mut().zip(&mut other.squares) {
            *sum += std::mem::take(other);
        }
        for (count, other) in self.counts.iter_mut().zip(&mut other.counts) {
            *count += std::mem::take(other);
        }
        for (products, other) in self.products.iter_mut().zip(&mut other.products) {
            products.take(other);
        }
        true
    }

    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        let shape = |sums: &Self| (sums.width, sums.counts.len(), sums.products.len());
        shape(self) == shape(other)
    }

    /// Adds `rows`, whole rows. There is only one matrix.
    pub(crate) fn add_dense(&mut self, isa: Isa, rows: &[f32]) {
        let width = self.width;
        self.counts[0] += (rows.len() / width) as u64;
        team::for_each_chunk(&mut self.squares, COLUMNS, |i, squares| {
            for row in rows.chunks_exact(width) {
                add_squares(squares, &row[i * COLUMNS..]);
            }
        });
        for products in &mut self.products {
            products.add(isa, rows);
        }
    }

    /// Adds `rows`, whole rows. `matrices` has the same number of indices for every row: the matrices that it goes to.
    /// Indices below zero mean no matrix.
    ///
    /// Fails, and changes nothing, if the lengths do not fit or an index is too large.
    pub fn add(&mut self, isa: Isa, rows: &[f32], matrices: &[i32]) -> Result<(), QuantError> {
        let n_rows = rows.len() / self.width;
        expect_length("input values", rows.len(), n_rows * self.width)?;
        let n_each = matrices.len().checked_div(n_rows).unwrap_or(0);
        expect_length("indices of matrices", matrices.len(), n_each * n_rows)?;
        if matrices.iter().any(|&m| m >= 0 && m as usize >= self.counts.len()) {
            return Err(QuantError::InputSums("an input goes to a matrix that is not there"));
        }
        if n_each == 0 {
            return Ok(());
        }
        let mut rows_of = vec![Vec::new(); self.counts.len()];
        let mut times = vec![0u32; n_rows];
        for (row, matrices) in matrices.chunks_exact(n_each).enumerate() {
            for &matrix in matrices.iter().filter(|&&m| m >= 0) {
                rows_of[matrix as usize].push(row);
                times[row] += 1;
            }
        }
        let row = |i: usize| &rows[i * self.width..][..self.width];
        for (count, rows) in self.counts.iter_mut().zip(&rows_of) {
            *count += rows.len() as u64;
        }
        team::for_each_chunk(&mut self.squares, self.width, |matrix, squares| {
            rows_of[matrix].iter().for_each(|&i| add_squares(squares, row(i)));
        });
        if self.products.len() == 1 {
            let weighted: Vec<f32> = times
                .iter()
                .enumerate()
                .flat_map(|(i, &times)| {
                    let root = (times as f32).sqrt();
                    row(i).iter().map(move |x| x * root)
                })
                .collect();
            self.products[0].add(isa, &weighted);
        } else {
            for (products, rows) in self.products.iter_mut().zip(&rows_of) {
                if !rows.is_empty() {
                    products.add(
                        isa,
                        &rows.iter().flat_map(|&i| row(i)).copied().collect::<Vec<f32>>(),
                    );
                }
            }
        }
        Ok(())
    }
}

fn add_squares(sums: &mut [f64], row: &[f32]) {
    for (sum, &x) in sums.iter_mut().zip(row) {
        *sum += f64::from(x) * f64::from(x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::weights;

    /// The sums of a single matrix that gets the same rows.
    fn alone(rows: &[f32], width: usize) -> InputSums {
        let mut sums = InputSums::new(width, 1, 1).unwrap();
        sums.add_dense(Isa::Scalar, rows);
        sums
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{a} {b}");
        }
    }

    #[test]
    fn every_matrix_gets_the_rows_that_go_to_it() {
        let (width, matrices) = (70, [0, 2, 2, 1, 0, -1]);
        let rows = weights(width * 3, 5); // two matrices for each row
        let mut each = InputSums::new(width, 3, 3).unwrap();
        let mut pooled = InputSums::new(width, 3, 1).unwrap();
        for isa in Isa::available() {
            each.add(isa, &rows, &matrices).unwrap();
            pooled.add(isa, &rows, &matrices).unwrap();
        }
        let n = Isa::available().count() as u64;
        assert_eq!(each.counts(), [2 * n, n, 2 * n]);
        assert_eq!((each.counts(), each.squares()), (pooled.counts(), pooled.squares()));
        let repeated = |rows: &[&[f32]]| rows.concat().repeat(n as usize);
        let [a, b, c] = [&rows[..width], &rows[width..2 * width], &rows[2 * width..]];
        for (matrix, expected) in
            [repeated(&[a, c]), repeated(&[b]), repeated(&[a, b])].iter().enumerate()
        {
            let expected = alone(expected, width);
            assert_eq!(&each.squares()[matrix * width..][..width], expected.squares());
            close(&each.products()[matrix].to_vec(), &expected.products()[0].to_vec());
        }
        close(
            &pooled.products()[0].to_vec(),
            &alone(&repeated(&[a, a, b, b, c]), width).products()[0].to_vec(),
        );
    }

    #[test]
    fn sums_are_taken_from_sums_of_the_same_shape_only() {
        let rows = weights(64, 1);
        let mut sums = InputSums::new(64, 2, 0).unwrap();
        let mut other = sums.clone();
        other.add(Isa::Scalar, &rows, &[1]).unwrap();
        let squares = other.squares().to_vec();
        assert!(sums.take(&mut other));
        assert_eq!((sums.counts(), sums.squares()), (&[0, 1][..], &squares[..]));
        assert!(
            other.counts().iter().all(|&n| n == 0) && other.squares().iter().all(|&x| x == 0.0)
        );
        assert!(!sums.take(&mut InputSums::new(64, 2, 1).unwrap()));
        assert!(!sums.take(&mut InputSums::new(64, 1, 0).unwrap()));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        assert!(InputSums::new(0, 1, 0).is_err() && InputSums::new(64, 0, 0).is_err());
        assert!(InputSums::new(64, 4, 2).is_err());
        let mut sums = InputSums::new(64, 2, 1).unwrap();
        assert!(sums.add(Isa::Scalar, &[1.0; 65], &[0]).is_err());
        assert!(sums.add(Isa::Scalar, &[1.0; 128], &[0, 1, 0]).is_err());
        assert!(sums.add(Isa::Scalar, &[1.0; 64], &[2]).is_err());
        assert_eq!(sums.counts(), [0, 0]);
    }
}
