//! Rows in the layout of a file, and the parallel loop over them.

use crate::block::TensorType;
use crate::dispatch;
use crate::error::QuantError;
use crate::error_sums::ErrorSums;
use crate::isa::Isa;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of one type, in the layout of a file.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    kind: TensorType,
    data: &'a [u8],
    row_length: usize,
    row_bytes: usize,
}

impl<'a> Source<'a> {
    /// Rows of `row_length` weights of type `kind`; `data` holds whole rows.
    pub fn new(kind: TensorType, data: &'a [u8], row_length: usize) -> Result<Self, QuantError> {
        let row_bytes = kind.row_bytes(row_length)?;
        if !data.len().is_multiple_of(row_bytes) {
            let expected = data.len().next_multiple_of(row_bytes);
            return Err(QuantError::BufferLength { what: "source", got: data.len(), expected });
        }
        Ok(Self { kind, data, row_length, row_bytes })
    }

    /// Rows of `row_length` f32 values.
    pub fn from_f32(x: &'a [f32], row_length: usize) -> Result<Self, QuantError> {
        // SAFETY: an f32 is four bytes, every one of which may be read as u8.
        let bytes = unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) };
        Self::new(TensorType::F32, bytes, row_length)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len() / self.row_bytes
    }

    /// Some of the rows.
    pub(crate) fn of_rows(&self, rows: Range<usize>) -> Self {
        Self { data: &self.data[rows.start * self.row_bytes..rows.end * self.row_bytes], ..*self }
    }

    /// Weights in a row.
    pub fn row_length(&self) -> usize {
        self.row_length
    }

    pub(crate) fn kind(&self) -> TensorType {
        self.kind
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    pub(crate) fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Decodes rows from `row` on, as many as `scratch` holds. If the data are f32 already, they are returned without a
    /// copy. Fails on NaN and infinity.
    pub(super) fn finite<'s>(
        &self,
        isa: Isa,
        row: usize,
        scratch: &'s mut [f32],
    ) -> Result<&'s [f32], QuantError>
    where
        'a: 's,
    {
        let bytes = scratch.len() / self.row_length * self.row_bytes;
        let data = &self.data[row * self.row_bytes..][..bytes];
        let x = match self.as_f32(data) {
            Some(x) => x,
            None => {
                dispatch::dequantize_row(isa, self.kind, data, scratch);
                scratch
            }
        };
        if dispatch::all_finite(isa, x) {
            return Ok(x);
        }
        let finite = x.iter().take_while(|v| v.is_finite()).count();
        Err(QuantError::NotFinite { position: row * self.row_length + finite })
    }

    /// `data` as f32 values, if they are f32 in the byte order and alignment of this machine.
    fn as_f32<'d>(&self, data: &'d [u8]) -> Option<&'d [f32]> {
        if self.kind != TensorType::F32 || cfg!(target_endian = "big") {
            return None;
        }
        // SAFETY: every four bytes are an f32.
        let (before, x, after) = unsafe { data.align_to() };
        (before.is_empty() && after.is_empty()).then_some(x)
    }
}

/// Calls `encode` for every row of `source` in parallel, with the decoded row, a scratch row, and the row's part of
/// `out`. Returns the sum of the results. If several rows fail, the error is that of the first.
pub(super) fn per_row<O: Send>(
    isa: Isa,
    source: Source<'_>,
    out: impl IndexedParallelIterator<Item = O>,
    encode: impl Fn(&[f32], &mut [f32], O) -> ErrorSums + Sync,
) -> Result<ErrorSums, QuantError> {
    per_rows(isa, source, 1, out, |x, decoded, out, sums| sums[0] = encode(x, decoded, out))
}

/// As [`per_row`], but with `at_once` rows per call, fewer at the end. There is only one scratch row. `encode` writes
/// the sums of each row.
pub(super) fn per_rows<O: Send>(
    isa: Isa,
    source: Source<'_>,
    at_once: usize,
    out: impl IndexedParallelIterator<Item = O>,
    encode: impl Fn(&[f32], &mut [f32], O, &mut [ErrorSums]) + Sync,
) -> Result<ErrorSums, QuantError> {
    let mut sums = vec![ErrorSums::default(); source.rows()];
    let scratch = || (vec![0f32; at_once * source.row_length], vec![0f32; source.row_length]);
    out.zip(sums.par_chunks_mut(at_once))
        .enumerate()
        .map_init(scratch, |(x, decoded), (i, (out, sums))| {
            let x = &mut x[..sums.len() * source.row_length];
            encode(source.finite(isa, i * at_once, x)?, decoded, out, sums);
            Ok(())
        })
        .find_map_first(Result::err)
        .map_or(Ok(()), Err)?;
    Ok(sums.into_iter().sum())
}
