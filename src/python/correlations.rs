//! Correlations of inputs, and the Hessian that error feedback takes.

use super::support::{detached, slice};
use crate::check::expect_length;
use crate::error::QuantError;
use crate::feedback::{Hessian, correlations};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

/// Whether products of the inputs of a matrix with rows of this length are summed.
#[pyfunction]
pub(super) fn are_correlated(row_length: usize, is_ffn_down: bool) -> bool {
    correlations::are_correlated(row_length, is_ffn_down)
}

/// The number of pairs of columns whose products an importance matrix keeps.
#[pyfunction]
pub(super) fn correlation_pairs(row_length: usize) -> usize {
    correlations::pairs(row_length)
}

fn check(pairs: usize, squares: &[f32]) -> Result<(), QuantError> {
    expect_length("pairs of columns", pairs, correlations::pairs(squares.len()))
}

/// Correlations, in bytes, from sums of products and of squares.
#[pyfunction]
pub(super) fn correlations_of<'py>(
    py: Python<'py>,
    products: PyReadonlyArray1<'py, f32>,
    squares: PyReadonlyArray1<'py, f32>,
) -> PyResult<Bound<'py, PyArray1<i8>>> {
    let (products, squares) = (slice(&products, "products")?, slice(&squares, "squares")?);
    check(products.len(), squares)?;
    Ok(PyArray1::from_vec(py, py.detach(|| correlations::correlations(products, squares))))
}

/// Sums of products, from correlations in bytes and from sums of squares.
#[pyfunction]
pub(super) fn products_of<'py>(
    py: Python<'py>,
    correlations: PyReadonlyArray1<'py, i8>,
    squares: PyReadonlyArray1<'py, f32>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let (bytes, squares) = (slice(&correlations, "correlations")?, slice(&squares, "squares")?);
    check(bytes.len(), squares)?;
    Ok(PyArray1::from_vec(py, py.detach(|| correlations::products(bytes, squares))))
}

/// H = E[x xᵀ] of the inputs x of a matrix, factorized for error feedback. It is made from the importance of each
/// column and the correlations (or None) that a number of tokens gave.
#[pyclass(frozen, module = "q4hifi._core")]
pub(super) struct Inputs {
    pub(super) inner: Hessian,
}

#[pymethods]
impl Inputs {
    #[new]
    fn new<'py>(
        py: Python<'py>,
        importance: PyReadonlyArray1<'py, f32>,
        correlations: PyReadonlyArray1<'py, i8>,
        tokens: f32,
        threads: usize,
    ) -> PyResult<Self> {
        let importance = slice(&importance, "importance")?;
        let correlations = slice(&correlations, "correlations")?;
        let inner = detached(py, threads, || Hessian::new(importance, correlations, tokens))?;
        Ok(Self { inner })
    }

    /// The same correlations with another importance of each column.
    fn with_importance<'py>(
        &self,
        py: Python<'py>,
        importance: PyReadonlyArray1<'py, f32>,
        threads: usize,
    ) -> PyResult<Self> {
        let importance = slice(&importance, "importance")?;
        let inner = detached(py, threads, || self.inner.with_importance(importance))?;
        Ok(Self { inner })
    }
}
