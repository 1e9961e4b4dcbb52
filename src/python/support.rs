//! Exceptions, threads and arrays, for all functions.

use crate::error::QuantError;
use crate::model::ModelError;
use numpy::PyReadonlyArray1;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

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
            QuantError::IsaNotAvailable { .. } => Unavailable::new_err(error.to_string()),
            other => PyValueError::new_err(other.to_string()),
        }
    }
}

/// Waits for a lock without the interpreter lock.
pub(super) fn lock<'a, T>(py: Python<'_>, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
    mutex.lock_py_attached(py).expect("no panic holds the lock")
}

/// Locks both, in the order of their addresses, so that two threads that lock the same two cannot block each other.
/// None if both are the same.
pub(super) fn lock_both<'a, T>(
    py: Python<'_>,
    ours: &'a Mutex<T>,
    theirs: &'a Mutex<T>,
) -> Option<(MutexGuard<'a, T>, MutexGuard<'a, T>)> {
    let address = |mutex: &Mutex<T>| std::ptr::from_ref(mutex).addr();
    match address(ours).cmp(&address(theirs)) {
        Ordering::Equal => None,
        Ordering::Less => {
            let ours = lock(py, ours);
            Some((ours, lock(py, theirs)))
        }
        Ordering::Greater => {
            let theirs = lock(py, theirs);
            Some((lock(py, ours), theirs))
        }
    }
}

/// The pools, by process and number of threads. A forked process has the pools of its parent, but not their threads.
type Pools = HashMap<(u32, usize), Arc<rayon::ThreadPool>>;

/// A pool of `threads` threads; 0 means one per core. The pool is kept for later calls with the same number.
pub(super) fn pool(threads: usize) -> PyResult<Arc<rayon::ThreadPool>> {
    static POOLS: OnceLock<Mutex<Pools>> = OnceLock::new();
    let mut pools = POOLS.get_or_init(Mutex::default).lock().expect("no panic holds the lock");
    match pools.entry((std::process::id(), threads)) {
        Entry::Occupied(entry) => Ok(Arc::clone(entry.get())),
        Entry::Vacant(entry) => {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.map_err(|error| Unavailable::new_err(error.to_string()))?;
            Ok(Arc::clone(entry.insert(Arc::new(pool))))
        }
    }
}

/// Runs `work` without the interpreter lock on `threads` threads; 0 means one per core.
pub(super) fn detached<T: Send>(
    py: Python<'_>,
    threads: usize,
    work: impl FnOnce() -> Result<T, QuantError> + Send,
) -> PyResult<T> {
    py.detach(|| Ok(pool(threads)?.install(work)?))
}

pub(super) fn slice<'a, T: numpy::Element>(
    array: &'a PyReadonlyArray1<'_, T>,
    what: &str,
) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| PyValueError::new_err(format!("{what} is not contiguous")))
}
