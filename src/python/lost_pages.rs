//! Detecting lost pages of arrays in mapped files.

use super::support::slice;
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;

/// Watches the memory of an array in a mapped file, as long as this object lives.
#[pyclass(frozen, module = "q4hifi._core")]
pub(super) struct Watch {
    /// Declared before the array, so that it is dropped before the mapping, which the array holds.
    watch: crate::lost_pages::Watch,
    _array: Py<PyArray1<u8>>,
}

#[pymethods]
impl Watch {
    #[new]
    fn new(array: Bound<'_, PyArray1<u8>>) -> PyResult<Self> {
        let watch = crate::lost_pages::Watch::new(slice(&array.readonly(), "array")?);
        Ok(Self { watch, _array: array.unbind() })
    }

    /// Whether a lost page was read, and replaced by zeros.
    #[getter]
    fn is_lost(&self) -> bool {
        self.watch.is_lost()
    }
}
