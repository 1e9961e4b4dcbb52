//! Watching over arrays that lie in mapped files.

use super::support::slice;
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;

/// Watches over an array that is a mapping, for as long as it lives.
#[pyclass(frozen, module = "q4hifi._core")]
pub(super) struct Watch {
    /// Ends before the mapping does, which the array holds.
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

    /// Whether a part of the file that was read was not there any more.
    #[getter]
    fn is_lost(&self) -> bool {
        self.watch.is_lost()
    }
}
