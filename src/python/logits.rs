//! Statistics of rows of logits, float32 [rows, n_vocab].

use super::support::{detached, slice};
use crate::logits::{self, Divergence, Logits, log_prob_codes};
use numpy::{PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

type LogitsArgument<'py> = PyReadonlyArray2<'py, f32>;
type Floats<'py> = Bound<'py, PyArray1<f64>>;
type Columns<'py> =
    (Floats<'py>, Floats<'py>, Floats<'py>, Floats<'py>, Bound<'py, PyArray1<bool>>);

fn rows<'a>(array: &'a LogitsArgument<'_>) -> PyResult<Logits<'a>> {
    let data = array.as_slice().map_err(|_| PyValueError::new_err("logits are not contiguous"))?;
    Ok(Logits::new(data, array.shape()[1])?)
}

/// Arrays of nll, nll of the base, kld, delta p and same top.
fn columns(py: Python<'_>, rows: Vec<Divergence>) -> Columns<'_> {
    let floats = |value: fn(&Divergence) -> f64| PyArray1::from_iter(py, rows.iter().map(value));
    (
        floats(|row| row.nll),
        floats(|row| row.nll_base),
        floats(|row| row.kld),
        floats(|row| f64::from(row.delta_p)),
        PyArray1::from_iter(py, rows.iter().map(|row| row.same_top)),
    )
}

/// -log of the probability of each row's token.
#[pyfunction]
pub(super) fn token_nll<'py>(
    py: Python<'py>,
    logits: LogitsArgument<'py>,
    tokens: PyReadonlyArray1<'py, u32>,
    threads: usize,
) -> PyResult<Floats<'py>> {
    let (logits, tokens) = (rows(&logits)?, slice(&tokens, "tokens")?);
    let nll = detached(py, threads, || logits::token_nll(logits, tokens))?;
    Ok(PyArray1::from_vec(py, nll))
}

/// The same, and the rows' log-probabilities as in llama-perplexity's files.
#[pyfunction]
pub(super) fn encode_log_probs<'py>(
    py: Python<'py>,
    logits: LogitsArgument<'py>,
    tokens: PyReadonlyArray1<'py, u32>,
    threads: usize,
) -> PyResult<(Floats<'py>, Bound<'py, PyArray1<u16>>)> {
    let (n_vocab, tokens) = (logits.shape()[1], slice(&tokens, "tokens")?);
    let logits = rows(&logits)?;
    let mut out = vec![0; logits.rows() * log_prob_codes(n_vocab)];
    let nll = detached(py, threads, || logits::encode_log_probs(logits, tokens, &mut out))?;
    Ok((PyArray1::from_vec(py, nll), PyArray1::from_vec(py, out)))
}

/// The differences between logits and a base model's log-probabilities.
#[pyfunction]
pub(super) fn divergence_from_log_probs<'py>(
    py: Python<'py>,
    logits: LogitsArgument<'py>,
    base: PyReadonlyArray1<'py, u16>,
    tokens: PyReadonlyArray1<'py, u32>,
    threads: usize,
) -> PyResult<Columns<'py>> {
    let (logits, tokens) = (rows(&logits)?, slice(&tokens, "tokens")?);
    let base = slice(&base, "base")?;
    let found = detached(py, threads, || logits::divergence_from_log_probs(logits, base, tokens))?;
    Ok(columns(py, found))
}

/// The differences between logits and a base model's logits.
#[pyfunction]
pub(super) fn divergence<'py>(
    py: Python<'py>,
    logits: LogitsArgument<'py>,
    base: LogitsArgument<'py>,
    tokens: PyReadonlyArray1<'py, u32>,
    threads: usize,
) -> PyResult<Columns<'py>> {
    let (logits, base) = (rows(&logits)?, rows(&base)?);
    let tokens = slice(&tokens, "tokens")?;
    let found = detached(py, threads, || logits::divergence(logits, base, tokens))?;
    Ok(columns(py, found))
}
