//! The runtime: models, sequences, samplers.

use super::config::config_of;
use super::support::{Unavailable, lock, lock_both, pool, slice};
use crate::block::TensorType;
use crate::matmul::Matrix;
use crate::model::{self, BATCH, Builder, Config, ModelError, Request, Role, Sampling};
use crate::rows::{Outliers, Source};
use crate::team::Team;
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often signals, such as that of Ctrl-C, are checked.
const SIGNALS: Duration = Duration::from_millis(50);

/// Runs `work` without the interpreter lock on a pool of `threads` threads. If a signal handler raises an exception,
/// `cancelled` is set, and the exception is returned after the work has ended.
fn interruptible<T: Send>(
    py: Python<'_>,
    threads: usize,
    cancelled: &AtomicBool,
    work: impl FnOnce() -> Result<T, ModelError> + Send,
) -> PyResult<T> {
    let pool = pool(threads)?;
    py.detach(|| {
        let mut result = None;
        let mut signal = None;
        pool.in_place_scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let result = &mut result;
            scope.spawn(move |_| {
                *result = Some(work());
                let _ = sender.send(()); // the receiver waits for it
            });
            while receiver.recv_timeout(SIGNALS) == Err(RecvTimeoutError::Timeout) {
                if signal.is_none()
                    && let Err(error) = Python::attach(|py| py.check_signals())
                {
                    signal = Some(error);
                    cancelled.store(true, Ordering::Relaxed);
                }
            }
        });
        match signal {
            Some(error) => Err(error),
            None => Ok(result.expect("the scope ends after its work")?),
        }
    })
}

/// A model and the arrays that have its weights.
struct Loaded {
    model: model::Model<'static>,
    /// The threads of the pool for many tokens at once.
    threads: usize,
    /// For single tokens, of one sequence at a time.
    team: Arc<Mutex<Team>>,
    /// Borrowed by `model`, which is dropped first.
    _arrays: Vec<Py<PyArray1<u8>>>,
    /// The model whose arrays `model` borrows, too.
    _origin: Option<Arc<Loaded>>,
}

/// A tensor: role, layer, type, row length, outliers per block, the parts of its rows.
type Tensor<'py> = (String, Option<usize>, u32, usize, usize, Vec<Bound<'py, PyArray1<u8>>>);

/// The bytes of a read-only array. They are valid as long as the array lives.
fn frozen(array: &Bound<'_, PyArray1<u8>>) -> PyResult<&'static [u8]> {
    let writeable: bool = array.getattr("flags")?.getattr("writeable")?.extract()?;
    if writeable || !array.is_contiguous() {
        return Err(PyValueError::new_err("weights are not contiguous, or can be written to"));
    }
    // SAFETY: the array is contiguous and read-only. The caller keeps the array, and so its memory, as long as it uses
    // the slice. Other programs could change a mapped file, but every reader of a mapped file relies on them not to.
    Ok(unsafe { std::slice::from_raw_parts(array.data(), array.len()) })
}

fn matrix_of(
    kind: u32,
    row_length: usize,
    outliers: usize,
    parts: &[Bound<'_, PyArray1<u8>>],
) -> PyResult<Matrix<'static>> {
    let kind = TensorType::from_id(kind)?;
    match parts {
        [rows] => Ok(Matrix::new(Source::new(kind, frozen(rows)?, row_length)?)),
        [base, index, residual] => {
            let (index, residual) = (frozen(index)?, frozen(residual)?);
            Ok(Matrix::hifi(frozen(base)?, row_length, Outliers { outliers, index, residual })?)
        }
        _ => Err(PyValueError::new_err("a tensor has one part, or three")),
    }
}

/// A transformer, ready to run.
#[pyclass(frozen, module = "q4hifi._core")]
pub(super) struct Model {
    loaded: Arc<Loaded>,
}

#[pymethods]
impl Model {
    /// Keeps references to the tensors' arrays, and uses them without a copy.
    #[new]
    fn new(
        config: &Bound<'_, PyAny>,
        tensors: &Bound<'_, PyAny>,
        threads: usize,
    ) -> PyResult<Self> {
        let mut builder = Builder::new(config_of(config)?)?;
        let mut arrays = Vec::new();
        for tensor in tensors.try_iter()? {
            let (role, layer, kind, row_length, outliers, parts): Tensor<'_> = tensor?.extract()?;
            builder.add(&role, layer, matrix_of(kind, row_length, outliers, &parts)?)?;
            arrays.extend(parts.into_iter().map(Bound::unbind));
        }
        let model = model::Model::new(builder)?;
        let team = Team::new(pool(threads)?.current_num_threads());
        let team = Mutex::new(team.map_err(|error| Unavailable::new_err(error.to_string()))?);
        let team = Arc::new(team);
        let loaded = Loaded { model, threads, team, _arrays: arrays, _origin: None };
        Ok(Self { loaded: Arc::new(loaded) })
    }

    /// A model with one matrix replaced.
    fn replaced(&self, tensor: Tensor<'_>) -> PyResult<Self> {
        let (role, layer, kind, row_length, outliers, parts) = tensor;
        let matrix = matrix_of(kind, row_length, outliers, &parts)?;
        let loaded = Loaded {
            model: self.loaded.model.replaced(&role, layer, matrix)?,
            threads: self.loaded.threads,
            team: Arc::clone(&self.loaded.team),
            _arrays: parts.into_iter().map(Bound::unbind).collect(),
            _origin: Some(Arc::clone(&self.loaded)),
        };
        Ok(Self { loaded: Arc::new(loaded) })
    }

    /// Evaluates a text, and returns its states at all layers.
    fn trace(&self, py: Python<'_>, tokens: PyReadonlyArray1<'_, u32>) -> PyResult<Trace> {
        let tokens = slice(&tokens, "tokens")?;
        if tokens.len() > BATCH {
            let n = tokens.len();
            return Err(PyValueError::new_err(format!("{n} tokens to follow, at most {BATCH}")));
        }
        let Loaded { model, threads, .. } = &*self.loaded;
        let cancelled = AtomicBool::new(false);
        let trace = interruptible(py, *threads, &cancelled, || model.trace(tokens, &cancelled))?;
        Ok(Trace { trace, config: model.config().clone() })
    }

    /// The logits of a traced text, `[tokens, n_vocab]`; the evaluation starts at `layer`.
    fn resume<'py>(
        &self,
        py: Python<'py>,
        trace: &Trace,
        layer: usize,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let Loaded { model, threads, .. } = &*self.loaded;
        let config = model.config();
        if trace.config != *config {
            return Err(PyValueError::new_err("followed by a model of another shape"));
        }
        if layer > config.n_layer {
            let n = config.n_layer;
            return Err(PyValueError::new_err(format!("layer {layer} of {n}")));
        }
        let (trace, rows) = (&trace.trace, trace.trace.tokens());
        let mut logits = vec![0f32; rows * config.n_vocab];
        let cancelled = AtomicBool::new(false);
        interruptible(py, *threads, &cancelled, || {
            model.resume(trace, layer, &mut logits, &cancelled)
        })?;
        PyArray1::from_vec(py, logits).reshape([rows, config.n_vocab])
    }

    /// The Fisher information of all matrices for the predictions of a text's tokens from `first` on.
    fn fisher(
        &self,
        py: Python<'_>,
        tokens: PyReadonlyArray1<'_, u32>,
        first: usize,
        seed: u32,
    ) -> PyResult<Fisher> {
        let tokens = slice(&tokens, "tokens")?;
        let n = tokens.len();
        if n > BATCH || first >= n {
            let what =
                format!("{n} tokens from number {first} on; at most {BATCH}, and one to score");
            return Err(PyValueError::new_err(what));
        }
        let Loaded { model, threads, .. } = &*self.loaded;
        let cancelled = AtomicBool::new(false);
        let found = interruptible(py, *threads, &cancelled, || {
            model.fisher(tokens, first..n, seed, &cancelled)
        })?;
        Ok(Fisher { found })
    }

    /// An empty sequence.
    fn sequence(&self) -> Sequence {
        let state = Mutex::new(self.loaded.model.sequence());
        Sequence { loaded: Arc::clone(&self.loaded), state }
    }

    /// An empty collector. `expert_products` sums products for each expert whose inputs are its own, too.
    fn collector(&self, expert_products: bool) -> Collector {
        Collector { state: Mutex::new(self.loaded.model.collector(expert_products)) }
    }
}

/// The states of a text at all layers of a model.
#[pyclass(frozen, module = "q4hifi._core")]
pub(super) struct Trace {
    trace: model::Trace,
    config: Config,
}

/// The Fisher information of a model's matrices.
#[pyclass(frozen, module = "q4hifi._core")]
pub(super) struct Fisher {
    found: model::Fisher,
}

#[pymethods]
impl Fisher {
    /// The information of a matrix, one value per column; None if there is no such matrix.
    fn of<'py>(
        &self,
        py: Python<'py>,
        role: &str,
        layer: Option<usize>,
    ) -> Option<Bound<'py, PyArray1<f64>>> {
        Some(PyArray1::from_slice(py, self.found.of(Role::from_name(role)?, layer)?))
    }
}

/// The tokens of a text that were evaluated, and their keys and values.
#[pyclass(frozen, module = "q4hifi._core")]
pub(super) struct Sequence {
    loaded: Arc<Loaded>,
    state: Mutex<model::Sequence>,
}

#[pymethods]
impl Sequence {
    /// Evaluates tokens. Returns the logits of the tokens from `first` to `last`, `[tokens, n_vocab]`.
    #[pyo3(signature = (tokens, first, last, collector))]
    fn evaluate<'py>(
        &self,
        py: Python<'py>,
        tokens: PyReadonlyArray1<'py, u32>,
        first: usize,
        last: usize,
        collector: Option<&Collector>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let tokens = slice(&tokens, "tokens")?;
        if first > last || last > tokens.len() {
            let n = tokens.len();
            return Err(PyValueError::new_err(format!("logits {first}..{last} of {n} tokens")));
        }
        let Loaded { model, threads, team, .. } = &*self.loaded;
        let n_vocab = model.config().n_vocab;
        let cancelled = AtomicBool::new(false);
        let mut logits = vec![0f32; (last - first) * n_vocab];
        // locked here, because a thread of the pool might execute other work while it waits
        let mut collector = collector.map(|collector| lock(py, &collector.state));
        let mut state = lock(py, &self.state);
        let request = Request {
            tokens,
            wanted: first..last,
            logits: &mut logits,
            collector: collector.as_deref_mut(),
            cancelled: &cancelled,
        };
        let state = &mut *state;
        // a single token takes so little time that signals can wait
        if tokens.len() == 1
            && let Ok(mut team) = team.try_lock()
            && team.is_here()
        {
            let team = &mut *team;
            py.detach(|| team.install(|| model.evaluate(state, request)))?;
        } else {
            interruptible(py, *threads, &cancelled, || model.evaluate(state, request))?;
        }
        PyArray1::from_vec(py, logits).reshape([last - first, n_vocab])
    }

    /// Removes all tokens.
    fn reset(&self, py: Python<'_>) {
        lock(py, &self.state).reset();
    }

    /// Removes all but the first `length` tokens. Returns false if a sliding window has dropped tokens that are needed.
    fn truncate(&self, py: Python<'_>, length: usize) -> PyResult<bool> {
        let mut state = lock(py, &self.state);
        if length > state.length() {
            let there = state.length();
            return Err(PyValueError::new_err(format!("{length} of {there} tokens")));
        }
        Ok(state.truncate(length))
    }

    /// The number of tokens that were evaluated.
    #[getter]
    fn length(&self, py: Python<'_>) -> usize {
        lock(py, &self.state).length()
    }
}

type SquaresAndCounts<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<u64>>);

/// Sums of the squared inputs of every matrix, and of their products.
#[pyclass(frozen, module = "q4hifi._core")]
pub(super) struct Collector {
    state: Mutex<model::Collector>,
}

#[pymethods]
impl Collector {
    /// Columns, matrices and sums of products of a matrix, or of a stack; None if there is no such matrix.
    fn shape(
        &self,
        py: Python<'_>,
        role: &str,
        layer: Option<usize>,
    ) -> Option<(usize, usize, usize)> {
        let state = lock(py, &self.state);
        let sums = state.sums(Role::from_name(role)?, layer)?;
        Some((sums.width(), sums.counts().len(), sums.products().len()))
    }

    /// Its sums of squares, one per column, matrix by matrix, and the number of rows of each matrix.
    fn sums<'py>(
        &self,
        py: Python<'py>,
        role: &str,
        layer: Option<usize>,
    ) -> Option<SquaresAndCounts<'py>> {
        let state = lock(py, &self.state);
        let sums = state.sums(Role::from_name(role)?, layer)?;
        let counts = PyArray1::from_slice(py, sums.counts());
        Some((PyArray1::from_slice(py, sums.squares()), counts))
    }

    /// Its sum of products number `index`, one per pair of columns; None if it is not kept.
    fn products<'py>(
        &self,
        py: Python<'py>,
        role: &str,
        layer: Option<usize>,
        index: usize,
    ) -> Option<Bound<'py, PyArray1<f32>>> {
        let state = lock(py, &self.state);
        let sums = state.sums(Role::from_name(role)?, layer)?;
        Some(PyArray1::from_vec(py, sums.products().get(index)?.to_vec()))
    }

    /// Adds the sums of another collector to these, and sets those to zero.
    fn take(slf: &Bound<'_, Self>, other: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let Some((mut ours, mut theirs)) = lock_both(py, &slf.get().state, &other.get().state)
        else {
            return Err(PyValueError::new_err("a collector cannot take its own sums"));
        };
        if ours.take(&mut theirs) {
            return Ok(());
        }
        Err(PyValueError::new_err("the two collectors are of models of different shapes"))
    }
}

/// Chooses tokens.
#[pyclass(frozen, module = "q4hifi._core")]
pub(super) struct Sampler {
    state: Mutex<model::Sampler>,
}

#[pymethods]
impl Sampler {
    #[new]
    fn new(temperature: f32, top_k: usize, top_p: f32, min_p: f32, seed: u32) -> Self {
        let sampling = Sampling { temperature, top_k, top_p, min_p, seed };
        Self { state: Mutex::new(model::Sampler::new(sampling)) }
    }

    /// The next token; None if a logit is NaN.
    fn sample(&self, py: Python<'_>, logits: PyReadonlyArray1<'_, f32>) -> PyResult<Option<u32>> {
        Ok(lock(py, &self.state).sample(slice(&logits, "logits")?))
    }
}
