//! A matrix, and its products.

use super::outliers::{BATCH, OutlierPart, add_outliers, index_by_index};
use crate::block::{QK_K, TensorType};
use crate::check::expect_length;
use crate::dispatch;
use crate::dot::{Activations, Rows};
use crate::error::QuantError;
use crate::float::f16_to_f32;
use crate::isa::Isa;
use crate::panel::{Columns, Floats, MOST_COLUMNS, PANEL, PanelColumns};
use crate::rows::{Outliers, Source, check_parts};
use crate::team;
use rayon::prelude::*;
use std::ops::Range;

/// From this number of columns on, panels are unpacked.
pub(super) const MANY: usize = 8;
/// Tasks per thread. There are several, so that a thread that is interrupted delays the others little.
const TASKS: usize = 4;

/// A matrix in the file's layout.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    rows: Source<'a>,
    outliers: Option<Outliers<'a>>,
}

impl<'a> Matrix<'a> {
    /// Rows of one type.
    pub fn new(rows: Source<'a>) -> Self {
        Self { rows, outliers: None }
    }

    /// Rows of Q4_HIFI in the split layout: Q4_K rows of `row_length` weights and their outliers.
    pub fn hifi(
        base: &'a [u8],
        row_length: usize,
        outliers: Outliers<'a>,
    ) -> Result<Self, QuantError> {
        let rows = Source::new(TensorType::Q4K, base, row_length)?;
        check_parts(rows, outliers)?;
        Ok(Self { rows, outliers: Some(outliers).filter(|outliers| outliers.outliers > 0) })
    }

    /// Some of the rows: a view, without a copy.
    pub(crate) fn of_rows(&self, rows: Range<usize>) -> Self {
        Self { outliers: self.outliers_of(&rows), rows: self.rows.of_rows(rows) }
    }

    /// Decodes row `row` into `out`.
    pub(crate) fn row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        let rows = row..row + 1;
        let data = &self.rows.data()[bytes(&rows, self.rows.row_bytes())];
        dispatch::dequantize_row(isa, self.rows.kind(), data, out);
        let Some(Outliers { outliers: n, index, residual }) = self.outliers_of(&rows) else {
            return;
        };
        let outliers = index.chunks_exact(n).zip(residual.chunks_exact(2 * n));
        for (block, (index, residual)) in out.chunks_exact_mut(QK_K).zip(outliers) {
            for (&i, r) in index.iter().zip(residual.as_chunks().0) {
                block[usize::from(i)] += f16_to_f32(u16::from_le_bytes(*r));
            }
        }
    }

    /// Number of rows: the length of a column of the product.
    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// Weights in a row: the length of a column of activations.
    pub fn row_length(&self) -> usize {
        self.rows.row_length()
    }

    /// Multiplies columns: `out[c][r] = Σ w[r][k] · x[c][k]`.
    ///
    /// `x` is `[columns, row_length]`, `out` is `[columns, rows]`. Activations are quantized to eight bits unless the
    /// rows are floats.
    pub fn matmul(&self, x: &[f32], out: &mut [f32]) -> Result<(), QuantError> {
        self.matmul_with(Isa::active()?, x, out)
    }

    /// As [`Self::matmul`], on an instruction set that the CPU has.
    pub fn matmul_with(&self, isa: Isa, x: &[f32], out: &mut [f32]) -> Result<(), QuantError> {
        let n = self.row_length();
        let columns = x.len() / n;
        expect_length("activations", x.len(), columns * n)?;
        expect_length("output", out.len(), columns * self.rows())?;
        if out.is_empty() {
            return Ok(());
        }
        if columns >= MANY {
            self.multiply_panels(isa, x, out);
            return Ok(());
        }
        let activations: Result<Vec<_>, _> =
            x.chunks_exact(n).map(|x| self.activations(isa, x)).collect();
        self.multiply_columns(isa, &activations?, out);
        Ok(())
    }

    /// Rows per task, a multiple of `unit`.
    fn part_length(&self, unit: usize) -> usize {
        self.rows().div_ceil(TASKS * team::count()).next_multiple_of(unit)
    }

    fn activations(&self, isa: Isa, x: &[f32]) -> Result<Activations, QuantError> {
        match self.outliers {
            Some(outliers) => dispatch::hifi_activations(isa, x, outliers.outliers),
            None => dispatch::activations(isa, self.rows.kind(), x),
        }
    }

    /// Some of the rows, in the form for dot products.
    fn part(&self, rows: Range<usize>) -> Rows<'a> {
        let data = &self.rows.data()[bytes(&rows, self.rows.row_bytes())];
        match self.outliers_of(&rows) {
            None => Rows::Plain(self.rows.kind(), data),
            Some(Outliers { index, residual, .. }) => Rows::Hifi { base: data, index, residual },
        }
    }

    fn outliers_of(&self, rows: &Range<usize>) -> Option<Outliers<'a>> {
        let outliers = self.outliers?;
        let count = self.row_length() / QK_K * outliers.outliers;
        let index = &outliers.index[bytes(rows, count)];
        Some(Outliers { index, residual: &outliers.residual[bytes(rows, 2 * count)], ..outliers })
    }

    /// Few columns: dot products, task by task, so that the weights of a task are read once.
    fn multiply_columns(&self, isa: Isa, columns: &[Activations], out: &mut [f32]) {
        let part = self.part_length(8);
        let products = |number: usize, out: &mut [f32], column: &Activations| {
            let first = number * part;
            dispatch::dot_rows(isa, self.part(first..first + out.len()), column, out);
        };
        if let [column] = columns {
            team::for_each_chunk(out, part, |number, out| products(number, out, column));
            return;
        }
        for_each_part(out, self.rows(), part, |number, mut parts| {
            for (out, column) in parts.iter_mut().zip(columns) {
                products(number, out, column);
            }
        });
    }

    /// Many columns: panels.
    fn multiply_panels(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        let length = self.row_length();
        let kind = self.rows.kind();
        let quantized = (kind.block_weights() > 1)
            .then(|| Columns::new(x, length, |x, out| dispatch::quantize_column(isa, x, out)));
        let columns = match &quantized {
            Some(columns) => PanelColumns::Bytes(columns),
            None => PanelColumns::Floats(Floats { x, length }),
        };
        for_each_part(out, self.rows(), PANEL, |number, parts| {
            let rows = number * PANEL..number * PANEL + parts[0].len();
            let mut acc = vec![[0f32; PANEL]; parts.len().next_multiple_of(MOST_COLUMNS)];
            let data = &self.rows.data()[bytes(&rows, self.rows.row_bytes())];
            dispatch::multiply_panel(isa, kind, data, columns, &mut acc);
            for (out, acc) in parts.into_iter().zip(&acc) {
                out.copy_from_slice(&acc[..out.len()]);
            }
        });
        if self.outliers.is_some() {
            self.add_outliers(isa, x, out);
        }
    }

    /// Adds the products of the outliers with many columns, in batches of columns.
    fn add_outliers(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        let (rows, length, part) = (self.rows(), self.row_length(), self.part_length(PANEL));
        let outliers: Vec<OutlierPart> = (0..rows.div_ceil(part))
            .into_par_iter()
            .filter_map(|number| {
                let rows = number * part..rows.min((number + 1) * part);
                Some(OutlierPart::new(isa, self.outliers_of(&rows)?, rows.len()))
            })
            .collect();
        out.par_chunks_mut(BATCH * rows).zip(x.par_chunks(BATCH * length)).for_each_init(
            Vec::new,
            |batch, (out, x)| {
                index_by_index(x, length, batch);
                for_each_part(out, rows, part, |number, parts| {
                    add_outliers(isa, &outliers[number], batch, parts);
                });
            },
        );
    }
}

/// The byte range of `rows`, each of `size` bytes.
fn bytes(rows: &Range<usize>, size: usize) -> Range<usize> {
    rows.start * size..rows.end * size
}

/// Divides the rows of `out`, which has columns of `rows` values, into parts of `part` rows. Calls `work` in parallel
/// with the index of every part, and its piece of each column.
fn for_each_part(
    out: &mut [f32],
    rows: usize,
    part: usize,
    work: impl Fn(usize, Vec<&mut [f32]>) + Sync,
) {
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    parts.resize_with(rows.div_ceil(part), || Vec::with_capacity(out.len() / rows));
    for column in out.chunks_exact_mut(rows) {
        for (piece, parts) in column.chunks_mut(part).zip(&mut parts) {
            parts.push(piece);
        }
    }
    parts.into_par_iter().enumerate().for_each(|(number, pieces)| work(number, pieces));
}
