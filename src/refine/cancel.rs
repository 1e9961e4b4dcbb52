//! Numbers chosen so that a row's errors cancel where its inputs have most of their length.
//!
//! Errors e of a row cost its output eᵀ H e, H the mean of x xᵀ over its inputs x. Importances are the
//! diagonal of H: if that were all, every weight's number would have to be the nearest one. But inputs
//! share a few directions, H ≈ R + U Uᵀ with R diagonal and a column of U for each direction, and
//! the errors' sums Uᵀ e cost as much as the errors themselves. So weights that lie between two numbers
//! take the other one where that lowers Σ R e² + |Uᵀ e|²: those nearest to the middle first, which pays
//! for the least. Scales stay.

use super::lanes::{Lanes, MOST_LANES};
use super::numbered::Numbered;
use crate::block::{BlockIQ4XS, BlockQ4K, BlockQ5K, BlockQ6K, QK_K, TensorType, blocks_mut};
use crate::error::QuantError;
use crate::rows::{check_importance, expect_length};

/// A weight takes the other number in turn where its error is at least so much of their distance.
const LEAST: [f32; 3] = [0.35, 0.2, 0.05];

/// Of a column's importance, the least that R has.
const LEAST_REST: f32 = 1e-3;

/// Rows that fill the most lanes, a row each.
pub(crate) const ROWS: usize = MOST_LANES;

/// Sums that are added up side by side, so that an addition need not wait for the one before.
const PARTS: usize = 4;

/// What is known of the inputs of rows: R and U, in units of the mean importance.
#[derive(Debug, Clone)]
pub struct Inputs {
    rest: Vec<f32>,
    /// Column by column, with zeros up to a multiple of [`PARTS`].
    directions: Vec<[f32; PARTS]>,
    /// How many [`PARTS`] there are of a column.
    count: usize,
    /// The squared length of each column's row of U.
    squares: Vec<f32>,
}

impl Inputs {
    /// Of columns of that importance; `directions` holds as many numbers of each column as there are
    /// directions, column by column.
    pub fn new(importance: &[f32], directions: &[f32]) -> Result<Self, QuantError> {
        let n = importance.len();
        check_importance(Some(importance), n)?;
        if n == 0 || !directions.len().is_multiple_of(n) {
            let (got, expected) = (directions.len(), directions.len().next_multiple_of(n.max(1)));
            return Err(QuantError::BufferLength { what: "directions", got, expected });
        }
        if let Some(position) = directions.iter().position(|u| !u.is_finite()) {
            return Err(QuantError::NotFinite { position });
        }
        let mean = importance.iter().map(|&w| f64::from(w)).sum::<f64>() / n as f64;
        let unit = if mean > 0.0 { mean } else { 1.0 };
        let count = (directions.len() / n).div_ceil(PARTS);
        let mut columns = vec![[0f32; PARTS]; n * count];
        let mut squares = vec![0f32; n];
        for (i, square) in squares.iter_mut().enumerate() {
            let column = columns[i * count..][..count].as_flattened_mut();
            let given = &directions[i * (directions.len() / n)..][..directions.len() / n];
            for (to, &u) in column.iter_mut().zip(given) {
                *to = (f64::from(u) / unit.sqrt()) as f32;
                *square += *to * *to;
            }
        }
        let rest = importance.iter().zip(&squares).map(|(&w, square)| {
            let w = (f64::from(w) / unit) as f32;
            (w - square).max(LEAST_REST * w)
        });
        Ok(Self { rest: rest.collect(), directions: columns, count, squares })
    }

    /// The directions of column `i`.
    #[inline(always)]
    fn column(&self, i: usize) -> &[[f32; PARTS]] {
        &self.directions[i * self.count..][..self.count]
    }

    /// Fails where rows have another length.
    pub(crate) fn check(&self, row_length: usize) -> Result<(), QuantError> {
        expect_length("importance", self.rest.len(), row_length)
    }
}

/// Lets the errors of encoded rows cancel, each row's alone; `x` are the weights that they stand for.
///
/// # Safety
///
/// The CPU has L's ISA; so below.
#[inline(always)]
pub(crate) unsafe fn cancel<L: Lanes>(
    kind: TensorType,
    inputs: &Inputs,
    x: &[f32],
    encoded: &mut [u8],
) {
    let x = x.as_chunks().0;
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            TensorType::IQ4XS => cancel_rows::<L, BlockIQ4XS>(inputs, x, blocks_mut(encoded)),
            TensorType::Q4K => cancel_rows::<L, BlockQ4K>(inputs, x, blocks_mut(encoded)),
            TensorType::Q5K => cancel_rows::<L, BlockQ5K>(inputs, x, blocks_mut(encoded)),
            TensorType::Q6K => cancel_rows::<L, BlockQ6K>(inputs, x, blocks_mut(encoded)),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn cancel_rows<L: Lanes, B: Numbered>(inputs: &Inputs, x: &[[f32; QK_K]], blocks: &mut [B]) {
    let row = inputs.rest.len() / QK_K;
    let mut rows = Rows::new::<L>(inputs.rest.len());
    for (x, blocks) in x.chunks(L::LANES * row).zip(blocks.chunks_mut(L::LANES * row)) {
        // SAFETY: the caller's promise.
        unsafe {
            for place in 0..row {
                rows.read::<L, B>(place, x[place..].iter().zip(&blocks[place..]).step_by(row));
            }
            rows.cancel::<L>(inputs);
            for place in 0..row {
                let x = x[place..].iter().step_by(row);
                rows.write::<L, B>(place, x.zip(blocks[place..].iter_mut().step_by(row)));
            }
        }
    }
}

/// A number for each of the most lanes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Numbers([f32; MOST_LANES]);

const ZEROS: Numbers = Numbers([0.0; MOST_LANES]);

/// Numbers of a block in each lane, a lane after the other.
type Blocks = [[f32; QK_K]; MOST_LANES];

/// Rows of one length side by side, a lane each: of column i the numbers from `i * LANES` on.
struct Rows {
    /// Decoded minus encoded.
    errors: Vec<Numbers>,
    /// What the neighbour on the other side of the weight would add; 0 where there is none.
    steps: Vec<Numbers>,
}

impl Rows {
    fn new<L: Lanes>(row_length: usize) -> Self {
        let zeros = vec![ZEROS; row_length * L::LANES / MOST_LANES];
        Self { errors: zeros.clone(), steps: zeros }
    }

    /// Takes in block `place` of the rows, of which there may be fewer than lanes.
    #[inline(always)]
    unsafe fn read<'a, L: Lanes, B: Numbered + 'a>(
        &mut self,
        place: usize,
        blocks: impl Iterator<Item = (&'a [f32; QK_K], &'a B)>,
    ) {
        let (mut errors, mut steps): (Blocks, Blocks) =
            ([[0.0; QK_K]; MOST_LANES], [[0.0; QK_K]; MOST_LANES]);
        for ((x, block), (errors, steps)) in blocks.zip(errors.iter_mut().zip(&mut steps)) {
            // SAFETY: the caller's promise.
            let view = unsafe { View::new::<L, B>(x, block) };
            (*errors, *steps) = (view.errors, view.steps);
        }
        let place = place * QK_K * L::LANES;
        // SAFETY: the caller's promise; there are as many blocks here as lanes, and room there.
        unsafe {
            let to = |numbers: &mut [Numbers]| numbers.as_mut_ptr().cast::<f32>().add(place);
            L::transpose(errors.as_ptr().cast(), QK_K, to(&mut self.errors));
            L::transpose(steps.as_ptr().cast(), QK_K, to(&mut self.steps));
        }
    }

    /// Lets the errors of each row cancel.
    #[inline(always)]
    unsafe fn cancel<L: Lanes>(&mut self, inputs: &Inputs) {
        let mut sums = vec![[ZEROS; PARTS]; inputs.count];
        let errors = self.errors.as_mut_ptr().cast::<f32>();
        let steps = self.steps.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's promise; there are LANES numbers of every column.
        unsafe {
            for (part, sums) in sums.iter_mut().enumerate() {
                let mut these = [L::splat(0.0); PARTS];
                for i in 0..inputs.rest.len() {
                    let error = L::load(errors.add(i * L::LANES));
                    for (sum, &u) in these.iter_mut().zip(&inputs.column(i)[part]) {
                        *sum = error.mul_add(L::splat(u), *sum);
                    }
                }
                for (to, sum) in sums.iter_mut().zip(these) {
                    sum.store(to.0.as_mut_ptr());
                }
            }
            // what the column before has taken is added up when the next one looks
            let (mut taken, mut before) = (L::splat(0.0), inputs.column(0));
            for least in LEAST {
                for i in 0..inputs.rest.len() {
                    let column = inputs.column(i);
                    let along = add_and_look::<L>(&mut sums, taken, before, column);
                    let (errors, steps) = (errors.add(i * L::LANES), steps.add(i * L::LANES));
                    let (e, step) = (L::load(errors), L::load(steps));
                    // the change of what the errors cost, of which only the sign matters
                    let rest = L::splat(inputs.rest[i]).mul(e.add(e).add(step));
                    let square = L::splat(inputs.squares[i]).mul(step);
                    let change = rest.add(along.add(along)).add(square).mul(step);
                    let zero = L::splat(0.0);
                    let far =
                        magnitude(e).if_less(L::splat(least).mul(magnitude(step)), zero, step);
                    (taken, before) = (change.if_less(zero, far, zero), column);
                    e.add(taken).store(errors);
                    step.sub(taken.add(taken)).store(steps);
                }
            }
        }
    }

    /// Writes what has changed in block `place` of the rows that were read.
    #[inline(always)]
    unsafe fn write<'a, L: Lanes, B: Numbered + 'a>(
        &self,
        place: usize,
        blocks: impl Iterator<Item = (&'a [f32; QK_K], &'a mut B)>,
    ) {
        let (mut steps, mut tile): (Blocks, _) = ([[0.0; QK_K]; MOST_LANES], [ZEROS; MOST_LANES]);
        for column in (0..QK_K).step_by(L::LANES) {
            let from = (place * QK_K + column) * L::LANES;
            // SAFETY: the caller's promise; there are as many numbers of that many columns, and room.
            let tile = unsafe {
                let to = tile.as_mut_ptr().cast::<f32>();
                L::transpose(self.steps.as_ptr().cast::<f32>().add(from), L::LANES, to);
                std::slice::from_raw_parts(to, L::LANES * L::LANES)
            };
            for (steps, tile) in steps.iter_mut().zip(tile.chunks_exact(L::LANES)) {
                steps[column..][..L::LANES].copy_from_slice(tile);
            }
        }
        for ((x, block), steps) in blocks.zip(&steps) {
            // SAFETY: the caller's promise.
            let mut view = unsafe { View::new::<L, B>(x, block) };
            for (i, &step) in steps.iter().enumerate() {
                // taken, a step is the way back: its sign has changed
                let is_taken = (step.to_bits() ^ view.steps[i].to_bits()) >> 31;
                let changes = 0u8.wrapping_sub(is_taken as u8);
                view.numbers[i] ^= (view.numbers[i] ^ view.others[i]) & changes;
            }
            block.set_numbers(&view.numbers);
        }
    }
}

/// What a block comes to beside the weights that it stands for.
struct View {
    numbers: [u8; QK_K],
    /// The neighbouring numbers on the other side of the weights, or the same where there is none.
    others: [u8; QK_K],
    /// As in [`Rows`].
    errors: [f32; QK_K],
    steps: [f32; QK_K],
}

impl View {
    #[inline(always)]
    unsafe fn new<L: Lanes, B: Numbered>(x: &[f32; QK_K], block: &B) -> Self {
        let numbers = block.numbers();
        let (mut others, mut errors, mut steps) = ([0u8; QK_K], [0f32; QK_K], [0f32; QK_K]);
        // SAFETY: the caller's promise; so below.
        let values = unsafe { B::values::<L>(&numbers) };
        let sub = QK_K / B::SUB_BLOCKS;
        for j in 0..B::SUB_BLOCKS {
            let (scale, min) = block.scale_and_min(j);
            for i in j * sub..(j + 1) * sub {
                errors[i] = scale * values[i] - min - x[i];
                // upwards or downwards, and no farther than to the end; without a branch, which no
                // CPU could predict
                let upwards = u8::from((errors[i] < 0.0) == (scale > 0.0));
                others[i] = (numbers[i] + 2 * upwards).saturating_sub(1).min(B::LAST);
            }
        }
        // SAFETY: as above.
        let other_values = unsafe { B::values::<L>(&others) };
        for j in 0..B::SUB_BLOCKS {
            let (scale, _) = block.scale_and_min(j);
            for i in j * sub..(j + 1) * sub {
                steps[i] = scale * (other_values[i] - values[i]);
            }
        }
        Self { numbers, others, errors, steps }
    }
}

#[inline(always)]
unsafe fn magnitude<L: Lanes>(lanes: L) -> L {
    // SAFETY: the caller's promise.
    unsafe { lanes.max(L::splat(0.0).sub(lanes)) }
}

/// Adds errors `taken` of the column `before` to the sums, and tells how far these then go along `column`.
#[inline(always)]
unsafe fn add_and_look<L: Lanes>(
    sums: &mut [[Numbers; PARTS]],
    taken: L,
    before: &[[f32; PARTS]],
    column: &[[f32; PARTS]],
) -> L {
    // SAFETY: the caller's promise; the sums have room for the most lanes.
    unsafe {
        let mut along = [L::splat(0.0); PARTS];
        for (sums, (before, column)) in sums.iter_mut().zip(before.iter().zip(column)) {
            for p in 0..PARTS {
                let sum = taken.mul_add(L::splat(before[p]), L::load(sums[p].0.as_ptr()));
                sum.store(sums[p].0.as_mut_ptr());
                along[p] = sum.mul_add(L::splat(column[p]), along[p]);
            }
        }
        along[0].add(along[1]).add(along[2].add(along[3]))
    }
}
