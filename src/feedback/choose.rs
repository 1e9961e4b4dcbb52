//! Error feedback: chooses quants so that they compensate the errors of earlier columns.
//!
//! The errors e of a row's weights change its output by eᵀ H e in the mean square, where H = E[x xᵀ] over the inputs x.
//! Importance is the diagonal of H. If H were diagonal, the nearest quant would always be the best. But inputs are
//! correlated, so the error of one weight can compensate the errors of others.
//!
//! H = Mᵀ D M, where M has ones on the diagonal and zeros above it, makes this Σ d (e + Σ m e')². The inner sum is
//! over the errors e' of earlier columns. So the columns are processed once, in the order of columns of
//! [`super::Hessian`]. A weight lies between two neighbouring quants and takes the one whose error is nearer to
//! -Σ m e'. Scales do not change.
//!
//! This is what GPTQ and LDLQ do (see [`super`]), without the inverse of H.

use super::correlations::TILE;
use super::formula::{BlockParts, Formula, Parts, SHARED};
use super::hessian::Hessian;
use crate::block::{QK_K, TensorType, Values};
use crate::fit::iq4_value;
use crate::simd::{Kernel, MOST_LANES, Vector};

/// Rows that are processed together, so that H is read once for all of them.
pub(crate) const ROWS: usize = 64;

/// Chooses the quants of encoded rows again, each row independently; `x` are their weights before encoding.
pub(crate) struct ChooseQuants<'a> {
    pub kind: TensorType,
    pub hessian: &'a Hessian,
    pub x: &'a [f32],
    pub encoded: &'a mut [u8],
}

impl Kernel for ChooseQuants<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { kind, hessian, x, encoded } = self;
        if hessian.groups().is_empty() {
            return; // without correlations, the nearest quants are the best
        }
        if let Some(formula) = Formula::of(kind) {
            choose_rows::<V::Wide>(formula, hessian, x, encoded);
        }
    }
}

/// # Safety
///
/// The CPU has L's instruction set.
#[inline(always)]
unsafe fn choose_rows<L: Vector>(
    formula: Formula,
    hessian: &Hessian,
    x: &[f32],
    encoded: &mut [u8],
) {
    let row_length = hessian.row_length();
    let row_bytes = row_length / formula.weights * formula.bytes;
    let mut batch: Vec<Rows> = Vec::new();
    for (x, encoded) in x.chunks(ROWS * row_length).zip(encoded.chunks_mut(ROWS * row_bytes)) {
        let (weights, bytes) = (L::LANES * row_length, L::LANES * row_bytes);
        batch.resize_with(x.len().div_ceil(weights), || Rows::new::<L>(row_length));
        for ((rows, x), encoded) in
            batch.iter_mut().zip(x.chunks(weights)).zip(encoded.chunks(bytes))
        {
            rows.read::<L>(formula, x, encoded);
        }
        choose::<L>(hessian, &mut batch);
        for ((rows, x), encoded) in
            batch.iter().zip(x.chunks(weights)).zip(encoded.chunks_mut(bytes))
        {
            rows.write::<L>(formula, x, encoded);
        }
    }
}

/// Chooses the quants of all rows.
#[inline(always)]
unsafe fn choose<L: Vector>(hessian: &Hessian, batch: &mut [Rows]) {
    for group in hessian.groups() {
        for (tile, columns) in group.tiles().zip(group.order().chunks(TILE)) {
            for rows in &mut *batch {
                // the columns are columns of a row.
                rows.choose::<L>(tile, columns);
            }
        }
    }
}

/// A value for each of [`MOST_LANES`] lanes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct LaneRow([f32; MOST_LANES]);

const ZEROS: LaneRow = LaneRow([0.0; MOST_LANES]);

/// Values of one block per lane, lane by lane.
type Blocks = [f32; QK_K * MOST_LANES];

/// Rows of one length, one per lane: the values of column i begin at `i * LANES`.
struct Rows {
    row_length: usize,
    /// Decoded weight minus weight.
    errors: Vec<LaneRow>,
    /// How the error changes if the weight takes the neighbouring quant on its other side; 0 if there is none. A
    /// negated step marks a quant that was changed.
    steps: Vec<LaneRow>,
    /// The errors of the columns that were processed, in the order of columns.
    chosen: Vec<LaneRow>,
}

impl Rows {
    fn new<L: Vector>(row_length: usize) -> Self {
        let zeros = vec![ZEROS; row_length * L::LANES / MOST_LANES];
        Self { row_length, errors: zeros.clone(), steps: zeros.clone(), chosen: zeros }
    }

    /// Sets the rows, at most one per lane.
    #[inline(always)]
    unsafe fn read<L: Vector>(&mut self, formula: Formula, x: &[f32], encoded: &[u8]) {
        let Formula { weights, bytes, .. } = formula;
        let (blocks, mut view) = (self.row_length / weights, View::ZERO);
        let (mut errors, mut steps): (Blocks, Blocks) =
            ([0.0; QK_K * MOST_LANES], [0.0; QK_K * MOST_LANES]);
        for block in 0..blocks {
            let of_rows = x.chunks(weights).zip(encoded.chunks(bytes)).skip(block).step_by(blocks);
            let lanes = errors.chunks_mut(weights).zip(steps.chunks_mut(weights));
            for ((x, encoded), (errors, steps)) in of_rows.zip(lanes) {
                view.set::<L>(formula, x, encoded);
                copy_parts(&view.errors, errors);
                copy_parts(&view.steps, steps);
            }
            // there is room for LANES values of every column.
            let to = |values: &mut [LaneRow]| {
                values.as_mut_ptr().cast::<f32>().add(block * weights * L::LANES)
            };
            L::transpose(errors.as_ptr(), weights, to(&mut self.errors));
            L::transpose(steps.as_ptr(), weights, to(&mut self.steps));
        }
    }

    /// Chooses the quants of the next `columns`. `tile` has the entries of M for these columns: first for earlier
    /// columns, then for each other.
    #[inline(always)]
    unsafe fn choose<L: Vector>(&mut self, tile: &[[f32; TILE]], columns: &[u32]) {
        let errors = self.errors.as_ptr().cast::<f32>();
        let steps = self.steps.as_mut_ptr().cast::<f32>();
        let chosen = self.chosen.as_mut_ptr().cast::<f32>();
        let before = tile.len() - TILE;
        // there are LANES quants of every column.
        let mut shifts = [L::splat(0.0); TILE];
        for (i, m) in tile[..before].iter().enumerate() {
            let error = L::load(chosen.add(i * L::LANES));
            for (shift, &m) in shifts.iter_mut().zip(m) {
                *shift = error.mul_add(L::splat(m), *shift);
            }
        }
        for (t, &column) in columns.iter().enumerate() {
            let at = column as usize * L::LANES;
            let (e, step) = (L::load(errors.add(at)), L::load(steps.add(at)));
            let total = e.add(shifts[t]);
            // how the step changes total²; only the sign matters
            let change = total.add(total).add(step).mul(step);
            let taken = change.if_less(L::splat(0.0), step, L::splat(0.0));
            step.sub(taken.add(taken)).store(steps.add(at));
            let error = e.add(taken);
            error.store(chosen.add((before + t) * L::LANES));
            for u in t + 1..TILE {
                shifts[u] = error.mul_add(L::splat(tile[before + t][u]), shifts[u]);
            }
        }
    }

    /// Writes the changed quants into the rows that were read.
    #[inline(always)]
    unsafe fn write<L: Vector>(&self, formula: Formula, x: &[f32], encoded: &mut [u8]) {
        let Formula { weights, bytes, .. } = formula;
        let (blocks, mut view) = (self.row_length / weights, View::ZERO);
        let (mut steps, mut tile): (Blocks, _) = ([0.0; QK_K * MOST_LANES], [ZEROS; MOST_LANES]);
        for block in 0..blocks {
            for column in (0..weights).step_by(L::LANES) {
                let from = (block * weights + column) * L::LANES;
                // `steps` has LANES values of each of LANES columns, and `tile` has room for them.
                let tile = {
                    let to = tile.as_mut_ptr().cast::<f32>();
                    L::transpose(self.steps.as_ptr().cast::<f32>().add(from), L::LANES, to);
                    std::slice::from_raw_parts(to, L::LANES * L::LANES)
                };
                for (steps, tile) in steps.chunks_mut(weights).zip(tile.chunks_exact(L::LANES)) {
                    steps[column..][..L::LANES].copy_from_slice(tile);
                }
            }
            let of_rows =
                x.chunks(weights).zip(encoded.chunks_mut(bytes)).skip(block).step_by(blocks);
            for ((x, encoded), steps) in of_rows.zip(steps.chunks(weights)) {
                view.set::<L>(formula, x, encoded);
                for (j, steps) in steps.as_chunks::<SHARED>().0.iter().enumerate() {
                    let (quants, others) = (&mut view.block.quants[j], &view.others[j]);
                    for i in 0..SHARED {
                        // a negated step marks a quant that was changed
                        let is_taken = (steps[i].to_bits() ^ view.steps[j][i].to_bits()) >> 31;
                        let changes = 0u8.wrapping_sub(is_taken as u8);
                        quants[i] ^= (quants[i] ^ others[i]) & changes;
                    }
                }
                formula.write(&view.block.quants, encoded);
            }
        }
    }
}

/// Copies the first parts, as many as fit into `to`.
#[inline(always)]
fn copy_parts(parts: &Parts<f32>, to: &mut [f32]) {
    for (to, part) in to.as_chunks_mut().0.iter_mut().zip(parts) {
        *to = *part;
    }
}

/// Writes the values of `quants` to `to`, which has the same number of parts.
///
/// # Safety
///
/// The CPU has L's instruction set; L's lanes divide the number of quants.
#[inline(always)]
unsafe fn write_values<L: Vector>(
    values: Values,
    quants: &[[u8; SHARED]],
    to: &mut [[f32; SHARED]],
) {
    let first = match values {
        Values::From(first) => first,
        Values::Iq4 => 0.0,
    };
    for (to, quants) in to.iter_mut().zip(quants) {
        *to = quants.map(|q| f32::from(q) + first);
    }
    if let Values::Iq4 = values {
        for to in to.as_flattened_mut().chunks_exact_mut(L::LANES) {
            iq4_value(L::load(to.as_ptr())).store(to.as_mut_ptr());
        }
    }
}

/// Errors and alternative quants of one block.
struct View {
    block: BlockParts,
    /// The neighbouring quants on the other side of the weights. At the end of the range, the same quant.
    others: Parts<u8>,
    /// The values of both.
    values: Parts<f32>,
    other_values: Parts<f32>,
    /// As in [`Rows`].
    errors: Parts<f32>,
    steps: Parts<f32>,
}

impl View {
    const ZERO: Self = Self {
        block: BlockParts::ZERO,
        others: [[0; SHARED]; QK_K / SHARED],
        values: [[0.0; SHARED]; QK_K / SHARED],
        other_values: [[0.0; SHARED]; QK_K / SHARED],
        errors: [[0.0; SHARED]; QK_K / SHARED],
        steps: [[0.0; SHARED]; QK_K / SHARED],
    };

    /// Sets the block and its weights `x`.
    ///
    /// # Safety
    ///
    /// The CPU has L's instruction set.
    #[inline(always)]
    unsafe fn set<L: Vector>(&mut self, formula: Formula, x: &[f32], block: &[u8]) {
        formula.read(block, &mut self.block);
        let parts = formula.weights / SHARED;
        write_values::<L>(formula.values, &self.block.quants[..parts], &mut self.values[..parts]);
        for (j, x) in x.as_chunks::<SHARED>().0.iter().enumerate() {
            let (scale, min) = (self.block.scales[j], self.block.mins[j]);
            let (quants, values) = (&self.block.quants[j], &self.values[j]);
            let (errors, others) = (&mut self.errors[j], &mut self.others[j]);
            for i in 0..SHARED {
                errors[i] = scale * values[i] - min - x[i];
                // up or down, clamped to the range of quants; without a branch, because no CPU could
                // predict it
                let upwards = i16::from((errors[i] < 0.0) == (scale > 0.0));
                let other = i16::from(quants[i]) + 2 * upwards - 1;
                others[i] = other.clamp(0, i16::from(formula.last)) as u8;
            }
        }
        write_values::<L>(formula.values, &self.others[..parts], &mut self.other_values[..parts]);
        for j in 0..parts {
            let (scale, values, others) =
                (self.block.scales[j], &self.values[j], &self.other_values[j]);
            for (step, (other, value)) in self.steps[j].iter_mut().zip(others.iter().zip(values)) {
                *step = scale * (other - value);
            }
        }
    }
}
