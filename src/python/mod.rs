//! The Python module `q4hifi._core`: extract, release the interpreter lock, call, wrap.

mod codec;
mod correlations;
mod logits;
mod lost_pages;
mod model;

use crate::error::QuantError;
use crate::model::ModelError;
use numpy::PyReadonlyArray1;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, OnceLock};

pyo3::create_exception!(
    _core,
    NotFinite,
    PyValueError,
    "A weight is NaN or infinite; the second argument is its position in the input, in weights."
);

pyo3::create_exception!(
    _core,
    BadBlock,
    PyValueError,
    "A block contradicts its format; the second argument is its number in the input, the third why."
);

pyo3::create_exception!(
    _core,
    Unavailable,
    PyRuntimeError,
    "The machine cannot do what was asked: no such instruction set, or no more threads."
);

pyo3::create_exception!(
    _core,
    BadModel,
    PyValueError,
    "A model cannot be built; the further arguments are what is wrong, \"missing\", \"unknown\" or
\"other\", and the role and the layer of the tensor, or None."
);

impl From<ModelError> for PyErr {
    fn from(error: ModelError) -> Self {
        let message = error.to_string();
        match error {
            ModelError::Quant(error) => error.into(),
            ModelError::Missing { role, layer } => {
                BadModel::new_err((message, "missing", role.name(), layer))
            }
            ModelError::Unknown { role, layer } => {
                BadModel::new_err((message, "unknown", role, layer))
            }
            _ => BadModel::new_err((message, "other", None::<&str>, None::<usize>)),
        }
    }
}

impl From<QuantError> for PyErr {
    fn from(error: QuantError) -> Self {
        match error {
            QuantError::NotFinite { position } => NotFinite::new_err((error.to_string(), position)),
            QuantError::BadBlock { block, what } => {
                BadBlock::new_err((error.to_string(), block, what))
            }
            QuantError::IsaNotAvailable(_) => Unavailable::new_err(error.to_string()),
            other => PyValueError::new_err(other.to_string()),
        }
    }
}

/// The threads that work is done on; 0 is one a core. Kept for the next that asks for as many.
fn pool(threads: usize) -> PyResult<Arc<rayon::ThreadPool>> {
    static POOLS: OnceLock<Mutex<HashMap<usize, Arc<rayon::ThreadPool>>>> = OnceLock::new();
    let mut pools = POOLS.get_or_init(Mutex::default).lock().expect("no panic holds the lock");
    match pools.entry(threads) {
        Entry::Occupied(entry) => Ok(Arc::clone(entry.get())),
        Entry::Vacant(entry) => {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.map_err(|error| Unavailable::new_err(error.to_string()))?;
            Ok(Arc::clone(entry.insert(Arc::new(pool))))
        }
    }
}

/// Runs `work` without the interpreter lock on `threads` threads; 0 is one a core.
fn detached<T: Send>(
    py: Python<'_>,
    threads: usize,
    work: impl FnOnce() -> Result<T, QuantError> + Send,
) -> PyResult<T> {
    py.detach(|| Ok(pool(threads)?.install(work)?))
}

fn slice<'a, T: numpy::Element>(
    array: &'a PyReadonlyArray1<'_, T>,
    what: &str,
) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| PyValueError::new_err(format!("{what} is not contiguous")))
}

/// The Rust core of q4hifi. Private: use the functions and classes of the package.
#[pymodule]
mod _core {
    use numpy::{PyArray1, PyArrayMethods};
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{BadBlock, BadModel, NotFinite, Unavailable};

    #[pymodule_export]
    use super::codec::{
        check_finite, cpu_features, dequantize, dequantize_hifi, dequantize_hifi_fork, errors,
        fork_to_split, matmul, matmul_hifi, quantize, quantize_hifi, quantize_hifi_fork,
        split_to_fork, tensor_types,
    };

    #[pymodule_export]
    use super::correlations::{Inputs, correlation_pairs, correlations_of, products_of};

    #[pymodule_export]
    use super::logits::{divergence, divergence_from_log_probs, encode_log_probs, token_nll};

    #[pymodule_export]
    use super::lost_pages::Watch;

    #[pymodule_export]
    use super::model::{Collector, Fisher, Model, Sampler, Sequence, Trace};

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Look NumPy's interface up, before there is work that a signal may end. That runs Python code, and the
    /// numpy crate panics where it raises; so it runs in a thread of its own, for signals raise in the main
    /// thread alone.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        for name in ["numpy", "numpy.lib"] {
            py.import(name)?;
        }
        let look_up = || Python::attach(|py| drop(PyArray1::<u8>::zeros(py, 0, false).readonly()));
        let found = py.detach(|| std::thread::spawn(look_up).join());
        found.map_err(|_| Unavailable::new_err("NumPy's interface cannot be used"))
    }
}
