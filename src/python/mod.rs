//! The Python module `q4hifi._core`: extract, release the interpreter lock, call, wrap.

mod codec;
mod config;
mod correlations;
mod input_sums;
mod logits;
mod lost_pages;
mod model;
mod support;

use pyo3::prelude::*;

/// The Rust core of q4hifi. Private: use the functions and classes of the package.
#[pymodule]
mod _core {
    use numpy::{PyArray1, PyArrayMethods};
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::support::{BadBlock, BadModel, NotFinite, Unavailable};

    #[pymodule_export]
    use super::codec::{
        check_finite, cpu_features, dequantize, dequantize_hifi, dequantize_hifi_fork, errors,
        fork_to_split, matmul, matmul_hifi, quantize, quantize_hifi, quantize_hifi_fork,
        split_to_fork, tensor_types,
    };

    #[pymodule_export]
    use super::correlations::{
        Inputs, are_correlated, correlation_pairs, correlations_of, products_of,
    };

    #[pymodule_export]
    use super::input_sums::InputSums;

    #[pymodule_export]
    use super::logits::{divergence, divergence_from_log_probs, encode_log_probs, token_nll};

    #[pymodule_export]
    use super::lost_pages::Watch;

    #[pymodule_export]
    use super::model::{Collector, Fisher, Model, Sampler, Sequence, Trace};

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Looks up NumPy's interface at import. This runs Python code, and the numpy crate panics if it raises. Signal
    /// handlers raise in the main thread only, so the look-up runs in a separate thread.
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
