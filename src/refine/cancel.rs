//! Numbers chosen so that a row's errors cancel where its inputs have most of their length.
//!
//! Errors e of a row cost its output eᵀ H e, H the mean of x xᵀ over its inputs x. Importances are the
//! diagonal of H: if that were all, every weight's number would have to be the nearest one. But inputs
//! share a few directions, H ≈ R + U Uᵀ with R diagonal and a column of U for each direction, and
//! the errors' sums Uᵀ e cost as much as the errors themselves. So weights that lie between two numbers
//! take the other one where that lowers Σ R e² + |Uᵀ e|²: those nearest to the middle first, which pays
//! for the least. Scales stay.

use super::lanes::{Lanes, MOST_LANES};
use crate::block::iq4::VALUES;
use crate::block::k_fit::{KFit, SUB_BLOCKS};
use crate::block::{
    Block, BlockIQ4XS, BlockQ4K, BlockQ5K, BlockQ6K, QK_K, TensorType, blocks, blocks_mut, iq4_xs,
    q6_k,
};
use crate::error::QuantError;
use crate::kernel::{self, Isa};
use crate::rows::{check_importance, expect_length};

/// A weight takes the other number in turn where its error is at least so much of their distance.
const LEAST: [f32; 3] = [0.35, 0.2, 0.05];

/// Of a column's importance, the least that R has.
const LEAST_REST: f32 = 1e-3;

/// Rows that are done side by side, a lane each.
pub(crate) const ROWS: usize = MOST_LANES;

/// What is known of the inputs of rows: R and U, in units of the mean importance.
#[derive(Debug, Clone)]
pub struct Inputs {
    rest: Vec<f32>,
    /// Column by column.
    directions: Vec<f32>,
    /// How many there are.
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
        let count = directions.len() / n;
        let directions: Vec<f32> =
            directions.iter().map(|&u| (f64::from(u) / unit.sqrt()) as f32).collect();
        let square =
            |i: usize| directions[i * count..][..count].iter().fold(0.0, |sum, u| sum + u * u);
        let squares: Vec<f32> = (0..n).map(square).collect();
        let rest = importance.iter().zip(&squares).map(|(&w, square)| {
            let w = (f64::from(w) / unit) as f32;
            (w - square).max(LEAST_REST * w)
        });
        Ok(Self { rest: rest.collect(), directions, count, squares })
    }

    /// Fails where rows have another length.
    pub(crate) fn check(&self, row_length: usize) -> Result<(), QuantError> {
        expect_length("importance", self.rest.len(), row_length)
    }
}

/// Encoded rows, side by side.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Of each column, decoded minus encoded.
    errors: Vec<[f32; ROWS]>,
    /// What the neighbour on the other side of the weight would add; 0 where there is none.
    steps: Vec<[f32; ROWS]>,
}

impl Batch {
    pub fn new(row_length: usize) -> Self {
        let zeros = vec![[0f32; ROWS]; row_length];
        Self { errors: zeros.clone(), steps: zeros }
    }

    /// Puts in an encoded row and its errors.
    pub fn put(&mut self, row: usize, kind: TensorType, errors: &[f32], encoded: &[u8]) {
        for (to, &e) in self.errors.iter_mut().zip(errors) {
            to[row] = e;
        }
        neighbours(kind, errors, encoded, |i, _, step| self.steps[i][row] = step);
    }

    /// Lets the errors of each row cancel.
    pub fn cancel(&mut self, isa: Isa, inputs: &Inputs) {
        kernel::cancel(isa, inputs, &mut self.errors, &mut self.steps);
    }

    /// Writes what has changed of a row that was put in, and clears its place; `errors` are those it had.
    pub fn take(&mut self, row: usize, kind: TensorType, errors: &[f32], encoded: &mut [u8]) {
        let mut changed = Vec::new();
        neighbours(kind, errors, encoded, |i, number, step| {
            if self.steps[i][row] != step {
                changed.push((i, number));
            }
            self.steps[i][row] = 0.0;
        });
        renumber(kind, &changed, encoded);
    }
}

/// See [`Batch::cancel`].
///
/// # Safety
///
/// The CPU has L's ISA; so below.
#[inline(always)]
pub(crate) unsafe fn cancel<L: Lanes>(
    inputs: &Inputs,
    errors: &mut [[f32; ROWS]],
    steps: &mut [[f32; ROWS]],
) {
    let count = inputs.count;
    let mut sums = vec![[0f32; MOST_LANES]; count];
    for first in (0..ROWS).step_by(L::LANES) {
        sums.fill([0.0; MOST_LANES]);
        for (i, errors) in errors.iter().enumerate() {
            let column = &inputs.directions[i * count..][..count];
            // SAFETY: the caller's promise; the lanes from `first` on are in the array.
            unsafe { add::<L>(&mut sums, L::load(errors[first..].as_ptr()), column) };
        }
        for least in LEAST {
            for (i, (errors, steps)) in errors.iter_mut().zip(steps.iter_mut()).enumerate() {
                let column = &inputs.directions[i * count..][..count];
                let (errors, steps) = (&mut errors[first..], &mut steps[first..]);
                // SAFETY: as above.
                unsafe {
                    let (e, step) = (L::load(errors.as_ptr()), L::load(steps.as_ptr()));
                    let along = along::<L>(&sums, column);
                    // the change of what the errors cost, of which only the sign matters
                    let rest = L::splat(inputs.rest[i]).mul(e.add(e).add(step));
                    let square = L::splat(inputs.squares[i]).mul(step);
                    let change = rest.add(along.add(along)).add(square).mul(step);
                    let zero = L::splat(0.0);
                    let far =
                        magnitude(e).if_less(L::splat(least).mul(magnitude(step)), zero, step);
                    let taken = change.if_less(zero, far, zero);
                    e.add(taken).store(errors.as_mut_ptr());
                    step.sub(taken.add(taken)).store(steps.as_mut_ptr());
                    add::<L>(&mut sums, taken, column);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn magnitude<L: Lanes>(lanes: L) -> L {
    // SAFETY: the caller's promise.
    unsafe { lanes.max(L::splat(0.0).sub(lanes)) }
}

/// How far sums go along a column's directions.
#[inline(always)]
unsafe fn along<L: Lanes>(sums: &[[f32; MOST_LANES]], column: &[f32]) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let mut along = L::splat(0.0);
        for (sum, &u) in sums.iter().zip(column) {
            along = L::load(sum.as_ptr()).mul_add(L::splat(u), along);
        }
        along
    }
}

/// Adds errors of a column to the sums.
#[inline(always)]
unsafe fn add<L: Lanes>(sums: &mut [[f32; MOST_LANES]], errors: L, column: &[f32]) {
    for (sum, &u) in sums.iter_mut().zip(column) {
        // SAFETY: the caller's promise; the array has room for the most lanes.
        unsafe {
            errors.mul_add(L::splat(u), L::load(sum.as_ptr())).store(sum.as_mut_ptr());
        }
    }
}

/// Tells of every weight its place, the neighbouring number on the other side of it, and what that would
/// add: nothing where there is none.
fn neighbours(kind: TensorType, errors: &[f32], encoded: &[u8], tell: impl FnMut(usize, u8, f32)) {
    match kind {
        TensorType::IQ4XS => neighbours_of::<BlockIQ4XS>(errors, blocks(encoded), tell),
        TensorType::Q4K => neighbours_of::<BlockQ4K>(errors, blocks(encoded), tell),
        TensorType::Q5K => neighbours_of::<BlockQ5K>(errors, blocks(encoded), tell),
        TensorType::Q6K => neighbours_of::<BlockQ6K>(errors, blocks(encoded), tell),
        _ => {}
    }
}

fn neighbours_of<B: Numbered>(errors: &[f32], blocks: &[B], mut tell: impl FnMut(usize, u8, f32)) {
    let sub = QK_K / B::SUB_BLOCKS;
    for (b, (block, errors)) in blocks.iter().zip(errors.as_chunks::<QK_K>().0).enumerate() {
        let numbers = block.numbers();
        let sub_blocks = numbers.chunks_exact(sub).zip(errors.chunks_exact(sub));
        for (j, (numbers, errors)) in sub_blocks.enumerate() {
            let scale = block.scale(j);
            for (i, (&number, &e)) in numbers.iter().zip(errors).enumerate() {
                let upwards = (e < 0.0) == (scale > 0.0);
                let end = if upwards { B::LAST } else { 0 };
                let other = if number == end {
                    number
                } else if upwards {
                    number + 1
                } else {
                    number - 1
                };
                let step = scale * (B::value(other) - B::value(number));
                tell(b * QK_K + j * sub + i, other, step);
            }
        }
    }
}

/// Stores other numbers at some places of a row.
fn renumber(kind: TensorType, changed: &[(usize, u8)], encoded: &mut [u8]) {
    match kind {
        TensorType::IQ4XS => renumber_of::<BlockIQ4XS>(changed, blocks_mut(encoded)),
        TensorType::Q4K => renumber_of::<BlockQ4K>(changed, blocks_mut(encoded)),
        TensorType::Q5K => renumber_of::<BlockQ5K>(changed, blocks_mut(encoded)),
        TensorType::Q6K => renumber_of::<BlockQ6K>(changed, blocks_mut(encoded)),
        _ => {}
    }
}

fn renumber_of<B: Numbered>(changed: &[(usize, u8)], blocks: &mut [B]) {
    for changed in changed.chunk_by(|a, b| a.0 / QK_K == b.0 / QK_K) {
        let block = &mut blocks[changed[0].0 / QK_K];
        let mut numbers = block.numbers();
        for &(i, number) in changed {
            numbers[i % QK_K] = number;
        }
        block.set_numbers(&numbers);
    }
}

/// A block of numbers, which stand for values that a scale and a minimum of their sub-block bring to weights.
trait Numbered: Block {
    const SUB_BLOCKS: usize;
    /// The largest number.
    const LAST: u8;

    /// What a number stands for.
    #[inline(always)]
    fn value(number: u8) -> f32 {
        f32::from(number)
    }

    fn scale(&self, sub_block: usize) -> f32;
    fn numbers(&self) -> [u8; QK_K];
    fn set_numbers(&mut self, numbers: &[u8; QK_K]);
}

/// A type with six-bit scales and minima.
macro_rules! k_block {
    ($block:ident, $last:literal) => {
        impl Numbered for $block {
            const SUB_BLOCKS: usize = SUB_BLOCKS;
            const LAST: u8 = $last;

            #[inline(always)]
            fn scale(&self, sub_block: usize) -> f32 {
                self.scale_and_min(sub_block).0
            }

            #[inline(always)]
            fn numbers(&self) -> [u8; QK_K] {
                self.numbers()
            }

            #[inline(always)]
            fn set_numbers(&mut self, numbers: &[u8; QK_K]) {
                *self = Self::from_fit(&KFit {
                    d: u16::from_le_bytes(self.d),
                    dmin: u16::from_le_bytes(self.dmin),
                    scales: self.scales,
                    numbers: *numbers,
                });
            }
        }
    };
}
k_block!(BlockQ4K, 15);
k_block!(BlockQ5K, 31);

impl Numbered for BlockQ6K {
    const SUB_BLOCKS: usize = q6_k::SUB_BLOCKS;
    const LAST: u8 = 63;

    #[inline(always)]
    fn scale(&self, sub_block: usize) -> f32 {
        self.scale(sub_block)
    }

    #[inline(always)]
    fn numbers(&self) -> [u8; QK_K] {
        self.numbers()
    }

    #[inline(always)]
    fn set_numbers(&mut self, numbers: &[u8; QK_K]) {
        self.pack(numbers);
    }
}

impl Numbered for BlockIQ4XS {
    const SUB_BLOCKS: usize = iq4_xs::SUB_BLOCKS;
    const LAST: u8 = 15;

    #[inline(always)]
    fn value(number: u8) -> f32 {
        f32::from(VALUES[usize::from(number)])
    }

    #[inline(always)]
    fn scale(&self, sub_block: usize) -> f32 {
        self.factor() * self.scale(sub_block) as f32
    }

    #[inline(always)]
    fn numbers(&self) -> [u8; QK_K] {
        self.numbers()
    }

    #[inline(always)]
    fn set_numbers(&mut self, numbers: &[u8; QK_K]) {
        self.pack(numbers);
    }
}
