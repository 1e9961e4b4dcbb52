//! Quants chosen so that a row's errors cancel where its inputs are correlated.
//!
//! Errors e of a row cost its output eᵀ H e, where H = E[x xᵀ] over its inputs x. Importances are the diagonal of H: if
//! that were all, every quant would have to be the nearest one. But inputs are correlated, so the error of one weight
//! can undo those of others. H = Mᵀ D M, with M of ones on the diagonal and zeros above it, makes the cost
//! Σ d (e + Σ m e')², e' being the errors of the columns before. So columns are gone through once, in M's order, and
//! each weight takes that of the two quants at its sides whose error is nearer to -Σ m e'. Scales stay.
//!
//! It is what GPTQ and LDLQ do (see [`super`]), without the inverse of H.

use super::correlations::TILE;
use super::hessian::Hessian;
use crate::block::{Quants, TensorType, Values, blocks_mut, with_quants};
use crate::fit::iq4_value;
use crate::simd::{Kernel, MOST_LANES, Vector};

/// Rows that are best gone through together: H is read once for all.
pub(crate) const ROWS: usize = 64;

/// Chooses the quants of encoded rows anew, each row's alone; `x` are the weights that they stand for.
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
            return; // every quant is the nearest
        }
        with_quants!(kind, B => {
            const N: usize = <B as crate::block::Block>::WEIGHTS;
            choose_rows::<V::Wide, B, N>(hessian, x, encoded)
        }, ())
    }
}

#[inline(always)]
unsafe fn choose_rows<L: Vector, B: Quants<N>, const N: usize>(
    hessian: &Hessian,
    x: &[f32],
    encoded: &mut [u8],
) {
    let (x, blocks) = (x.as_chunks().0, blocks_mut::<B>(encoded));
    let row = hessian.row_length() / N;
    let mut batch: Vec<Rows> = Vec::new();
    for (x, blocks) in x.chunks(ROWS * row).zip(blocks.chunks_mut(ROWS * row)) {
        let lanes = L::LANES * row;
        batch.resize_with(blocks.len().div_ceil(lanes), || Rows::new::<L>(hessian.row_length()));
        for ((rows, x), blocks) in batch.iter_mut().zip(x.chunks(lanes)).zip(blocks.chunks(lanes)) {
            for place in 0..row {
                rows.read::<L, B, N>(place, x[place..].iter().zip(&blocks[place..]).step_by(row));
            }
        }
        choose::<L>(hessian, &mut batch);
        for ((rows, x), blocks) in batch.iter().zip(x.chunks(lanes)).zip(blocks.chunks_mut(lanes)) {
            for place in 0..row {
                let x = x[place..].iter().step_by(row);
                rows.write::<L, B, N>(place, x.zip(blocks[place..].iter_mut().step_by(row)));
            }
        }
    }
}

/// Lets the errors of each row cancel.
#[inline(always)]
unsafe fn choose<L: Vector>(hessian: &Hessian, batch: &mut [Rows]) {
    for group in hessian.groups() {
        for (tile, columns) in group.tiles().zip(group.order().chunks(TILE)) {
            for rows in &mut *batch {
                // columns are those of a row.
                rows.choose::<L>(tile, columns);
            }
        }
    }
}

/// A number for each of the most lanes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct LaneRow([f32; MOST_LANES]);

const ZEROS: LaneRow = LaneRow([0.0; MOST_LANES]);

/// Numbers of a block in each lane, a lane after the other.
type Blocks<const N: usize> = [[f32; N]; MOST_LANES];

/// Rows of one length side by side, a lane each: of column i the quants from `i * LANES` on.
struct Rows {
    /// Decoded minus encoded.
    errors: Vec<LaneRow>,
    /// What the neighbour on the other side of the weight would add; 0 where there is none.
    steps: Vec<LaneRow>,
    /// The errors of the columns that were gone through, in their order.
    chosen: Vec<LaneRow>,
}

impl Rows {
    fn new<L: Vector>(row_length: usize) -> Self {
        let zeros = vec![ZEROS; row_length * L::LANES / MOST_LANES];
        Self { errors: zeros.clone(), steps: zeros.clone(), chosen: zeros }
    }

    /// Takes in block `place` of the rows, of which there may be fewer than lanes.
    #[inline(always)]
    unsafe fn read<'a, L: Vector, B: Quants<N> + 'a, const N: usize>(
        &mut self,
        place: usize,
        blocks: impl Iterator<Item = (&'a [f32; N], &'a B)>,
    ) {
        let (mut errors, mut steps): (Blocks<N>, Blocks<N>) =
            ([[0.0; N]; MOST_LANES], [[0.0; N]; MOST_LANES]);
        for ((x, block), (errors, steps)) in blocks.zip(errors.iter_mut().zip(&mut steps)) {
            let view = View::new::<L, B>(x, block);
            (*errors, *steps) = (view.errors, view.steps);
        }
        let place = place * N * L::LANES;
        // there are as many blocks here as lanes, and room there.
        let to = |quants: &mut [LaneRow]| quants.as_mut_ptr().cast::<f32>().add(place);
        L::transpose(errors.as_ptr().cast(), N, to(&mut self.errors));
        L::transpose(steps.as_ptr().cast(), N, to(&mut self.steps));
    }

    /// Chooses the quants of the next `columns`; `tile` has what each takes of the errors before, and of those
    /// among them.
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
            let wrong = e.add(shifts[t]);
            // the change of its square, of which only the sign matters
            let change = wrong.add(wrong).add(step).mul(step);
            let taken = change.if_less(L::splat(0.0), step, L::splat(0.0));
            step.sub(taken.add(taken)).store(steps.add(at));
            let error = e.add(taken);
            error.store(chosen.add((before + t) * L::LANES));
            for u in t + 1..TILE {
                shifts[u] = error.mul_add(L::splat(tile[before + t][u]), shifts[u]);
            }
        }
    }

    /// Writes what has changed in block `place` of the rows that were read.
    #[inline(always)]
    unsafe fn write<'a, L: Vector, B: Quants<N> + 'a, const N: usize>(
        &self,
        place: usize,
        blocks: impl Iterator<Item = (&'a [f32; N], &'a mut B)>,
    ) {
        let (mut steps, mut tile): (Blocks<N>, _) = ([[0.0; N]; MOST_LANES], [ZEROS; MOST_LANES]);
        for column in (0..N).step_by(L::LANES) {
            let from = (place * N + column) * L::LANES;
            // there are as many quants of that many columns, and room.
            let tile = {
                let to = tile.as_mut_ptr().cast::<f32>();
                L::transpose(self.steps.as_ptr().cast::<f32>().add(from), L::LANES, to);
                std::slice::from_raw_parts(to, L::LANES * L::LANES)
            };
            for (steps, tile) in steps.iter_mut().zip(tile.chunks_exact(L::LANES)) {
                steps[column..][..L::LANES].copy_from_slice(tile);
            }
        }
        for ((x, block), steps) in blocks.zip(&steps) {
            let mut view = View::new::<L, B>(x, block);
            for (i, &step) in steps.iter().enumerate() {
                // taken, a step is the way back: its sign has changed
                let is_taken = (step.to_bits() ^ view.steps[i].to_bits()) >> 31;
                let changes = 0u8.wrapping_sub(is_taken as u8);
                view.quants[i] ^= (view.quants[i] ^ view.others[i]) & changes;
            }
            block.set_quants(&view.quants);
        }
    }
}

/// What quants stand for.
///
/// # Safety
///
/// The CPU has L's instruction set; L's lanes divide N.
#[inline(always)]
unsafe fn values_of<L: Vector, B: Quants<N>, const N: usize>(quants: &[u8; N]) -> [f32; N] {
    let mut values = quants.map(f32::from);
    match B::VALUES {
        Values::From(first) => values.iter_mut().for_each(|value| *value += first),
        Values::Iq4 => {
            for values in values.chunks_exact_mut(L::LANES) {
                // there are as many quants as lanes.
                iq4_value(L::load(values.as_ptr())).store(values.as_mut_ptr());
            }
        }
    }
    values
}

/// What a block comes to beside the weights that it stands for.
struct View<const N: usize> {
    quants: [u8; N],
    /// The neighbouring quants on the other side of the weights, or the same where there is none.
    others: [u8; N],
    /// As in [`Rows`].
    errors: [f32; N],
    steps: [f32; N],
}

impl<const N: usize> View<N> {
    #[inline(always)]
    unsafe fn new<L: Vector, B: Quants<N>>(x: &[f32; N], block: &B) -> Self {
        let quants = block.quants();
        let (mut others, mut errors, mut steps) = ([0u8; N], [0f32; N], [0f32; N]);
        let values = values_of::<L, B, N>(&quants);
        let sub = N / B::SUB_BLOCKS;
        for j in 0..B::SUB_BLOCKS {
            let (scale, min) = block.scale_and_min(j);
            for i in j * sub..(j + 1) * sub {
                errors[i] = scale * values[i] - min - x[i];
                // upwards or downwards, and no farther than to the end; without a branch, which no
                // CPU could predict
                let upwards = i16::from((errors[i] < 0.0) == (scale > 0.0));
                let other = i16::from(quants[i]) + 2 * upwards - 1;
                others[i] = other.clamp(0, i16::from(B::LAST)) as u8;
            }
        }
        let other_values = values_of::<L, B, N>(&others);
        for j in 0..B::SUB_BLOCKS {
            let (scale, _) = block.scale_and_min(j);
            for i in j * sub..(j + 1) * sub {
                steps[i] = scale * (other_values[i] - values[i]);
            }
        }
        Self { quants, others, errors, steps }
    }
}
