//! The codec: quantize and dequantize rows.
//!
//! Types are named by their GGUF ids. Data crosses as contiguous one-dimensional arrays of bytes
//! that hold whole rows; inputs are not copied.

use super::correlations::Inputs;
use super::support::{detached, slice};
use crate::block::{MAX_OUTLIERS, QK_K, TensorType};
use crate::error::QuantError;
use crate::error_sums::ErrorSums;
use crate::isa::Isa;
use crate::matmul::Matrix;
use crate::rows::{self, Encoding, Outliers, OutliersMut, Source, hifi_fork as fork};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

type Bytes<'py> = Bound<'py, PyArray1<u8>>;
type BytesArgument<'py> = PyReadonlyArray1<'py, u8>;
/// Importance: float32, one value per column.
type PerColumn<'py> = Option<PyReadonlyArray1<'py, f32>>;
type ErrorPair = (f64, f64);

fn sums(sums: ErrorSums) -> ErrorPair {
    (sums.error, sums.reference)
}

fn source_of<'a>(
    data: &'a BytesArgument<'_>,
    kind: u32,
    row_length: usize,
) -> PyResult<Source<'a>> {
    Ok(Source::new(TensorType::from_id(kind)?, slice(data, "source")?, row_length)?)
}

fn outliers_of<'a>(
    index: &'a BytesArgument<'_>,
    residual: &'a BytesArgument<'_>,
    outliers: usize,
) -> PyResult<Outliers<'a>> {
    Ok(Outliers { outliers, index: slice(index, "index")?, residual: slice(residual, "residual")? })
}

fn importance_slice<'a>(importance: &'a PerColumn<'_>) -> PyResult<Option<&'a [f32]>> {
    importance.as_ref().map(|w| slice(w, "importance")).transpose()
}

/// The encoding that two arguments of the Python functions choose.
fn encoding_of(refine: bool, inputs: Option<&Inputs>) -> PyResult<Encoding<'_>> {
    match (refine, inputs) {
        (false, None) => Ok(Encoding::Ggml),
        (true, None) => Ok(Encoding::Refined),
        (true, Some(inputs)) => Ok(Encoding::ErrorFeedback(&inputs.inner)),
        (false, Some(_)) => {
            Err(PyValueError::new_err("inputs are for error feedback, which needs refine"))
        }
    }
}

/// `(name, id, weights per block, bytes per block)` of every type of the codec.
#[pyfunction]
pub(super) fn tensor_types() -> Vec<(&'static str, u32, usize, usize)> {
    let row = |t: TensorType| (t.name(), t.id(), t.block_weights(), t.block_bytes());
    TensorType::ALL.map(row).to_vec()
}

/// The name of the instruction set in use, and the names of all that this CPU has, slowest first.
#[pyfunction]
pub(super) fn cpu_features() -> PyResult<(&'static str, Vec<&'static str>)> {
    Ok((Isa::active()?.name(), Isa::available().map(Isa::name).collect()))
}

/// Encodes rows of type `source_type` as `target_type`: as ggml does, refined if `refine`, or with error feedback
/// (GPTQ, LDLQ) if `inputs` are given, too.
#[pyfunction]
#[pyo3(signature = (source, source_type, row_length, target_type, importance, threads, refine = false,
    inputs = None))]
#[allow(clippy::too_many_arguments)] // the signature of the Python function
pub(super) fn quantize<'py>(
    py: Python<'py>,
    source: BytesArgument<'py>,
    source_type: u32,
    row_length: usize,
    target_type: u32,
    importance: PerColumn<'py>,
    threads: usize,
    refine: bool,
    inputs: Option<&Inputs>,
) -> PyResult<(Bytes<'py>, ErrorPair)> {
    let target = TensorType::from_id(target_type)?;
    let importance = importance_slice(&importance)?;
    let encoding = encoding_of(refine, inputs)?;
    let source = source_of(&source, source_type, row_length)?;
    let mut out = vec![0u8; source.rows() * target.row_bytes(row_length)?];
    let error =
        detached(py, threads, || rows::quantize(source, target, importance, encoding, &mut out))?;
    Ok((PyArray1::from_vec(py, out), sums(error)))
}

/// As [`quantize`], but as Q4_HIFI in the split layout: base, indices, residuals.
#[pyfunction]
#[pyo3(signature = (source, source_type, row_length, outliers, importance, threads, refine = false,
    inputs = None))]
#[allow(clippy::too_many_arguments)] // the signature of the Python function
pub(super) fn quantize_hifi<'py>(
    py: Python<'py>,
    source: BytesArgument<'py>,
    source_type: u32,
    row_length: usize,
    outliers: usize,
    importance: PerColumn<'py>,
    threads: usize,
    refine: bool,
    inputs: Option<&Inputs>,
) -> PyResult<(Bytes<'py>, Bytes<'py>, Bytes<'py>, ErrorPair)> {
    let importance = importance_slice(&importance)?;
    let encoding = encoding_of(refine, inputs)?;
    let source = source_of(&source, source_type, row_length)?;
    let mut parts = Parts::new(source.rows(), row_length, outliers)?;
    let error = detached(py, threads, || {
        let (base, outliers) = parts.split_mut();
        rows::quantize_hifi(source, importance, encoding, base, outliers)
    })?;
    let (base, index, residual) = parts.into_arrays(py);
    Ok((base, index, residual, sums(error)))
}

/// Encodes rows as Q4_HIFI, in the fork layout.
#[pyfunction]
#[pyo3(signature = (source, source_type, row_length, outliers, importance, threads, refine = false))]
#[allow(clippy::too_many_arguments)] // the signature of the Python function
pub(super) fn quantize_hifi_fork<'py>(
    py: Python<'py>,
    source: BytesArgument<'py>,
    source_type: u32,
    row_length: usize,
    outliers: usize,
    importance: PerColumn<'py>,
    threads: usize,
    refine: bool,
) -> PyResult<(Bytes<'py>, ErrorPair)> {
    let importance = importance_slice(&importance)?;
    let source = source_of(&source, source_type, row_length)?;
    let mut out = vec![0u8; source.rows() * fork::row_bytes(row_length)?];
    let error =
        detached(py, threads, || fork::quantize(source, importance, refine, outliers, &mut out))?;
    Ok((PyArray1::from_vec(py, out), sums(error)))
}

/// Decodes rows of a type of the codec.
#[pyfunction]
#[pyo3(signature = (source, source_type, row_length, threads))]
pub(super) fn dequantize<'py>(
    py: Python<'py>,
    source: BytesArgument<'py>,
    source_type: u32,
    row_length: usize,
    threads: usize,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let source = source_of(&source, source_type, row_length)?;
    let mut out = vec![0f32; source.rows() * row_length];
    detached(py, threads, || rows::dequantize(source, &mut out))?;
    Ok(PyArray1::from_vec(py, out))
}

/// Decodes Q4_HIFI rows of the split layout.
#[pyfunction]
#[pyo3(signature = (base, index, residual, row_length, outliers, threads))]
pub(super) fn dequantize_hifi<'py>(
    py: Python<'py>,
    base: BytesArgument<'py>,
    index: BytesArgument<'py>,
    residual: BytesArgument<'py>,
    row_length: usize,
    outliers: usize,
    threads: usize,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let base = Source::new(TensorType::Q4K, slice(&base, "base")?, row_length)?;
    let outliers = outliers_of(&index, &residual, outliers)?;
    let mut out = vec![0f32; base.rows() * row_length];
    detached(py, threads, || rows::dequantize_hifi(base, outliers, &mut out))?;
    Ok(PyArray1::from_vec(py, out))
}

/// Decodes Q4_HIFI rows of the fork layout.
#[pyfunction]
#[pyo3(signature = (source, row_length, threads))]
pub(super) fn dequantize_hifi_fork<'py>(
    py: Python<'py>,
    source: BytesArgument<'py>,
    row_length: usize,
    threads: usize,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let data = slice(&source, "source")?;
    let mut out = vec![0f32; data.len() / fork::row_bytes(row_length)? * row_length];
    detached(py, threads, || fork::dequantize(data, row_length, &mut out))?;
    Ok(PyArray1::from_vec(py, out))
}

/// Converts Q4_HIFI rows of the fork layout to the split layout: base, indices, residuals.
#[pyfunction]
pub(super) fn fork_to_split<'py>(
    py: Python<'py>,
    source: BytesArgument<'py>,
    row_length: usize,
    outliers: usize,
) -> PyResult<(Bytes<'py>, Bytes<'py>, Bytes<'py>)> {
    let data = slice(&source, "source")?;
    let mut parts = Parts::new(data.len() / fork::row_bytes(row_length)?, row_length, outliers)?;
    detached(py, 0, || {
        let (base, outliers) = parts.split_mut();
        fork::to_split(data, row_length, base, outliers)
    })?;
    Ok(parts.into_arrays(py))
}

/// Converts Q4_HIFI rows of the split layout to the fork layout.
#[pyfunction]
pub(super) fn split_to_fork<'py>(
    py: Python<'py>,
    base: BytesArgument<'py>,
    index: BytesArgument<'py>,
    residual: BytesArgument<'py>,
    row_length: usize,
    outliers: usize,
) -> PyResult<Bytes<'py>> {
    let base = Source::new(TensorType::Q4K, slice(&base, "base")?, row_length)?;
    let outliers = outliers_of(&index, &residual, outliers)?;
    let mut out = vec![0u8; base.rows() * fork::row_bytes(row_length)?];
    detached(py, 0, || fork::from_split(base, outliers, &mut out))?;
    Ok(PyArray1::from_vec(py, out))
}

/// Fails with `NotFinite` if a weight decodes to NaN or infinity.
#[pyfunction]
#[pyo3(signature = (source, source_type, row_length, threads))]
pub(super) fn check_finite(
    py: Python<'_>,
    source: BytesArgument<'_>,
    source_type: u32,
    row_length: usize,
    threads: usize,
) -> PyResult<()> {
    let source = source_of(&source, source_type, row_length)?;
    detached(py, threads, || rows::check_finite(source))
}

/// `Σ w (decoded - x)²` and `Σ w x²` over the rows x, with the weight w of each column.
#[pyfunction]
#[pyo3(signature = (source, source_type, row_length, decoded, weights, threads))]
pub(super) fn errors<'py>(
    py: Python<'py>,
    source: BytesArgument<'py>,
    source_type: u32,
    row_length: usize,
    decoded: PyReadonlyArray1<'py, f32>,
    weights: Option<PyReadonlyArray1<'py, f32>>,
    threads: usize,
) -> PyResult<(f64, f64)> {
    let source = source_of(&source, source_type, row_length)?;
    let decoded = slice(&decoded, "decoded")?;
    let weights = weights.as_ref().map(|w| slice(w, "weights")).transpose()?;
    let sums = detached(py, threads, || rows::errors(source, decoded, weights))?;
    Ok((sums.error, sums.reference))
}

/// Multiplies rows of a type of the codec by columns of activations, `[columns, row_length]`.
#[pyfunction]
#[pyo3(signature = (source, source_type, row_length, activations, threads))]
pub(super) fn matmul<'py>(
    py: Python<'py>,
    source: BytesArgument<'py>,
    source_type: u32,
    row_length: usize,
    activations: PyReadonlyArray1<'py, f32>,
    threads: usize,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let matrix = Matrix::new(source_of(&source, source_type, row_length)?);
    products(py, matrix, &activations, threads)
}

/// Multiplies Q4_HIFI rows of the split layout by columns of activations, `[columns, row_length]`.
#[pyfunction]
#[pyo3(signature = (base, index, residual, row_length, outliers, activations, threads))]
#[allow(clippy::too_many_arguments)] // the signature of the Python function
pub(super) fn matmul_hifi<'py>(
    py: Python<'py>,
    base: BytesArgument<'py>,
    index: BytesArgument<'py>,
    residual: BytesArgument<'py>,
    row_length: usize,
    outliers: usize,
    activations: PyReadonlyArray1<'py, f32>,
    threads: usize,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let outliers = outliers_of(&index, &residual, outliers)?;
    let matrix = Matrix::hifi(slice(&base, "base")?, row_length, outliers)?;
    products(py, matrix, &activations, threads)
}

fn products<'py>(
    py: Python<'py>,
    matrix: Matrix<'_>,
    activations: &PyReadonlyArray1<'py, f32>,
    threads: usize,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let x = slice(activations, "activations")?;
    let mut out = vec![0f32; x.len() / matrix.row_length() * matrix.rows()];
    detached(py, threads, || matrix.matmul(x, &mut out))?;
    Ok(PyArray1::from_vec(py, out))
}

/// Buffers for rows in the split layout.
struct Parts {
    outliers: usize,
    base: Vec<u8>,
    index: Vec<u8>,
    residual: Vec<u8>,
}

impl Parts {
    fn new(rows: usize, row_length: usize, outliers: usize) -> Result<Self, QuantError> {
        if outliers > MAX_OUTLIERS {
            return Err(QuantError::TooManyOutliers { asked: outliers, most: MAX_OUTLIERS });
        }
        let base = rows * TensorType::Q4K.row_bytes(row_length)?;
        let index = rows * (row_length / QK_K) * outliers;
        Ok(Self {
            outliers,
            base: vec![0; base],
            index: vec![0; index],
            residual: vec![0; index * 2],
        })
    }

    fn split_mut(&mut self) -> (&mut [u8], OutliersMut<'_>) {
        let Self { outliers, base, index, residual } = self;
        (base, OutliersMut { outliers: *outliers, index, residual })
    }

    fn into_arrays<'py>(self, py: Python<'py>) -> (Bytes<'py>, Bytes<'py>, Bytes<'py>) {
        (
            PyArray1::from_vec(py, self.base),
            PyArray1::from_vec(py, self.index),
            PyArray1::from_vec(py, self.residual),
        )
    }
}
