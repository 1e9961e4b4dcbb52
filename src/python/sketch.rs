//! Sketches of inputs.

use super::slice;
use crate::sketch::{SKETCH, directions, signs};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The signs of the sketch of inputs of that many columns, column by column.
#[pyfunction]
pub(super) fn sketch_signs(py: Python<'_>, row_length: usize) -> Bound<'_, PyArray1<f32>> {
    PyArray1::from_vec(py, signs(row_length))
}

/// The directions that a sketch tells, as many numbers, both column by column.
#[pyfunction]
pub(super) fn sketch_directions<'py>(
    py: Python<'py>,
    sketch: PyReadonlyArray1<'py, f32>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let (columns, rest) = slice(&sketch, "sketch")?.as_chunks::<SKETCH>();
    if !rest.is_empty() {
        return Err(PyValueError::new_err(format!("a sketch has {SKETCH} numbers of each column")));
    }
    let found = py.detach(|| directions(columns));
    Ok(PyArray1::from_slice(py, found.as_flattened()))
}
