//! Sums over the inputs of a tensor's matrices.

use super::support::{detached, lock, lock_both, slice};
use crate::error::QuantError;
use crate::feedback;
use crate::isa::Isa;
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::Mutex;

/// Sums over the inputs of a tensor's matrices: squares of columns, and products of pairs of columns.
#[pyclass(frozen, module = "q4hifi._core")]
pub(super) struct InputSums {
    state: Mutex<feedback::InputSums>,
}

#[pymethods]
impl InputSums {
    #[new]
    fn new(width: usize, n_matrices: usize, n_products: usize) -> PyResult<Self> {
        let sums = feedback::InputSums::new(width, n_matrices, n_products)?;
        Ok(Self { state: Mutex::new(sums) })
    }

    /// Adds rows. `matrices` has, row by row, the indices of the matrices that a row goes to.
    fn add<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray1<'py, f32>,
        matrices: PyReadonlyArray1<'py, i32>,
        threads: usize,
    ) -> PyResult<()> {
        let (rows, matrices) = (slice(&rows, "rows")?, slice(&matrices, "matrices")?);
        let mut sums = lock(py, &self.state);
        let sums = &mut *sums;
        detached(py, threads, || sums.add(Isa::active()?, rows, matrices))
    }

    /// Σ x², one per column, matrix by matrix.
    fn squares<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        PyArray1::from_slice(py, lock(py, &self.state).squares())
    }

    /// The number of rows that each matrix received.
    fn counts<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_slice(py, lock(py, &self.state).counts())
    }

    /// Σ x_i x_j of pairs of columns: product sum number `index`.
    fn products<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let state = lock(py, &self.state);
        let missing = QuantError::InputSums("these products were not summed");
        let products = state.products().get(index).ok_or(missing)?;
        Ok(PyArray1::from_vec(py, products.to_vec()))
    }

    /// Adds the sums of `other` to these, and sets those to zero.
    fn take(slf: &Bound<'_, Self>, other: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let Some((mut ours, mut theirs)) = lock_both(py, &slf.get().state, &other.get().state)
        else {
            return Err(PyValueError::new_err("sums cannot take themselves"));
        };
        if ours.take(&mut theirs) {
            return Ok(());
        }
        Err(QuantError::InputSums("the sums have different shapes").into())
    }
}
