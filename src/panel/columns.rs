//! Columns of activations for panels: signed bytes, a scale for every 32 of them, and sums.

use rayon::prelude::*;

/// Activations that share a scale.
pub(crate) const GROUP: usize = 32;
/// Activations that a sum covers.
pub(crate) const SUM: usize = 16;

/// Columns in the form for panels.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PanelColumns<'a> {
    /// For rows of quantized weights.
    Bytes(&'a Columns),
    /// For rows of floats.
    Floats(Floats<'a>),
}

/// Columns of `length` floats, one after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floats<'a> {
    pub x: &'a [f32],
    pub length: usize,
}

/// Columns of equal length, quantized: `x ≈ scale · q`, q in -127..=127.
///
/// This is more precise than Q8_K, whose scales are for 256 activations, and not slower.
#[derive(Debug)]
pub(crate) struct Columns {
    /// Activations in a column, a multiple of [`GROUP`].
    pub length: usize,
    /// The quants, as bytes, column by column.
    pub quants: Vec<u8>,
    /// A scale for every [`GROUP`] quants.
    pub scales: Vec<f32>,
    /// Sums of [`SUM`] quants each.
    pub sums: Vec<i32>,
    /// Scale times sum of every [`GROUP`] quants.
    pub scaled_sums: Vec<f32>,
}

impl Columns {
    /// Columns of `length` activations, which is a multiple of [`GROUP`], each quantized by `quantize`.
    pub fn new(x: &[f32], length: usize, quantize: impl Fn(&[f32], ColumnMut<'_>) + Sync) -> Self {
        let mut columns = Self {
            length,
            quants: vec![0; x.len()],
            scales: vec![0.0; x.len() / GROUP],
            sums: vec![0; x.len() / SUM],
            scaled_sums: vec![0.0; x.len() / GROUP],
        };
        x.par_chunks_exact(length)
            .zip(columns.quants.par_chunks_exact_mut(length))
            .zip(columns.scales.par_chunks_exact_mut(length / GROUP))
            .zip(columns.sums.par_chunks_exact_mut(length / SUM))
            .zip(columns.scaled_sums.par_chunks_exact_mut(length / GROUP))
            .for_each(|((((x, quants), scales), sums), scaled_sums)| {
                let column = ColumnMut { quants, scales, sums, scaled_sums };
                quantize(x, column);
            });
        columns
    }

    /// The number of columns.
    pub fn count(&self) -> usize {
        self.quants.len() / self.length
    }
}

/// Buffers for one of [`Columns`].
#[derive(Debug)]
pub(crate) struct ColumnMut<'a> {
    pub quants: &'a mut [u8],
    pub scales: &'a mut [f32],
    pub sums: &'a mut [i32],
    pub scaled_sums: &'a mut [f32],
}
