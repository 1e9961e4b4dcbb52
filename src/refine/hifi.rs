//! Refines Q4_HIFI: chooses the number of outliers of each sub-block, and how many of them are at the ends of its
//! range.
//!
//! There are two kinds of outliers. Some are at the ends of a sub-block's range. Without them the range is narrower, so
//! that all other weights gain. The others are weights that the base represents badly. A table has the remaining error
//! of every sub-block with n outliers. To compute it, k weights at the ends are removed, the others are fitted, and the
//! n - k weights with the largest errors become outliers, too; the k with the least error counts. Then the outliers of
//! the block are distributed among its sub-blocks so that the sum of the errors is least. At last, the base is searched
//! like any other Q4_K block, without the weights at the ends of the ranges.

use super::columns::{Bounds, Columns};
use super::group::{Blocks, MOST_BLOCKS};
use super::k::{Group, Search, Starts};
use crate::block::k_scales::SUB_BLOCKS;
use crate::block::{HifiBlock, KFit, MAX_OUTLIERS, QK_K, q4_k};
use crate::error_sums::error_sums;
use crate::fit::{DEPTH, SUB, Window, shortest_windows};
use crate::simd::{Kernel, LaneArray, MOST_LANES, Vector};

/// The grids that are tried for an entry of the table.
const STARTS: Starts = Starts { count: 4, first: -2.0, step: 1.0, moves: 1 };
/// Outliers of a sub-block that do not narrow its range.
const INSIDE: usize = 4;
/// The largest number of outliers of a sub-block.
const MOST: usize = DEPTH + INSIDE;
const BOUNDS: Bounds = Bounds { bottom: 0.0, top: q4_k::LEVELS as f32 };

/// Improves the encoded `blocks` of a row `x` where it can.
pub(crate) struct RefineHifiRow<'a> {
    pub x: &'a [[f32; QK_K]],
    pub importance: Option<&'a [[f32; QK_K]]>,
    pub blocks: &'a mut [HifiBlock],
}

impl Kernel for RefineHifiRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        refine_hifi_row::<V::Wide>(self.x, self.importance, self.blocks)
    }
}

/// # Safety
///
/// The CPU has L's ISA.
#[inline(always)]
unsafe fn refine_hifi_row<L: Vector>(
    x: &[[f32; QK_K]],
    importance: Option<&[[f32; QK_K]]>,
    blocks: &mut [HifiBlock],
) {
    let group = L::LANES / SUB_BLOCKS;
    let row = Blocks { x, importance, row: x.len() };
    let (mut columns, mut rest) = (Columns::new(SUB), Columns::new(SUB));
    let (mut copies, mut weights) = ([[0f32; QK_K]; MOST_BLOCKS], [[0f32; QK_K]; MOST_BLOCKS]);
    for (g, blocks) in blocks.chunks_mut(group).enumerate() {
        row.copy_group(g * group, &mut copies[..group], &mut weights[..group]);
        let outliers = blocks[0].index().len();
        let mut fits = [KFit::EMPTY; MOST_BLOCKS];
        columns.fill::<L>(&copies[..group], &weights[..group]);
        let windows = windows(&copies[..group]);
        let taken = spread::<L>(&columns, &mut rest, &windows, outliers);
        let (low, high) = ends_of::<L>(&windows, &taken);
        columns.narrow::<L>(low, high, &mut rest);
        L::call(Search { columns: &rest, x: &copies[..group], top: BOUNDS.top, out: &mut fits });
        for (l, (block, fit)) in blocks.iter_mut().zip(fits).enumerate() {
            let found = HifiBlock::on_base(&copies[l], &weights[l], outliers, fit);
            let error = |block: &HifiBlock| {
                error_sums(&copies[l], Some(&weights[l]), &block.decode()).error
            };
            if error(&found) < error(block) && !found.is_saturated() {
                *block = found;
            }
        }
    }
}

/// For every lane, its shortest window without k weights, for each k.
type Windows = [[Window; DEPTH + 1]; MOST_LANES];

#[inline(always)]
fn windows(x: &[[f32; QK_K]]) -> Windows {
    let mut windows = [[Window { low: 0.0, high: 0.0 }; DEPTH + 1]; MOST_LANES];
    for (windows, x) in windows.iter_mut().zip(x.as_flattened().as_chunks::<SUB>().0) {
        *windows = shortest_windows(x, 1.0).0;
    }
    windows
}

/// The ends of each lane's window without `taken[lane]` weights.
#[inline(always)]
unsafe fn ends_of<L: Vector>(windows: &Windows, taken: &[usize; MOST_LANES]) -> (L, L) {
    let (mut low, mut high) = ([0f32; MOST_LANES], [0f32; MOST_LANES]);
    for l in 0..L::LANES {
        (low[l], high[l]) = (windows[l][taken[l]].low, windows[l][taken[l]].high);
    }
    // There is room for MOST_LANES lanes.
    (L::load(low.as_ptr()), L::load(high.as_ptr()))
}

/// How many weights at the ends of its range each lane loses, with `outliers` outliers per block.
#[inline(always)]
unsafe fn spread<L: Vector>(
    columns: &Columns,
    rest: &mut Columns,
    windows: &Windows,
    outliers: usize,
) -> [usize; MOST_LANES] {
    // the error with n outliers in a lane, and how many of these are outside of the window
    let mut errors = [[f32::INFINITY; MOST_LANES]; MOST + 1];
    let mut windowed = [[0u8; MOST_LANES]; MOST + 1];
    for k in 0..=DEPTH.min(outliers) {
        let remaining = {
            let (low, high) = ends_of::<L>(windows, &[k; MOST_LANES]);
            columns.narrow::<L>(low, high, rest);
            remaining_errors::<L>(rest)
        };
        for (inside, remaining) in remaining.iter().enumerate() {
            for l in 0..L::LANES {
                if remaining[l] < errors[k + inside][l] {
                    (errors[k + inside][l], windowed[k + inside][l]) = (remaining[l], k as u8);
                }
            }
        }
    }
    let mut taken = [0; MOST_LANES];
    for block in (0..L::LANES).step_by(SUB_BLOCKS) {
        let counts = least_sum(&errors, block, outliers);
        for (j, count) in counts.into_iter().enumerate() {
            taken[block + j] = usize::from(windowed[count][block + j]);
        }
    }
    taken
}

/// The error of the best fit; then this error without the weight of largest error, without the two worst, and so on.
#[inline(always)]
unsafe fn remaining_errors<L: Vector>(columns: &Columns) -> [LaneArray; INSIDE + 1] {
    let group = Group::<L>::new(columns, BOUNDS);
    let fits = group.fit_sub_blocks(STARTS);
    let (mut error, worst) = columns.worst::<L, INSIDE>(fits.scale, fits.min, BOUNDS);
    let mut remaining = [error.to_array(); INSIDE + 1];
    for (remaining, worst) in remaining[1..].iter_mut().zip(worst) {
        error = error.sub(worst);
        *remaining = error.to_array();
    }
    remaining
}

/// How many of the `outliers` each of the eight lanes from `block` on gets, so that the sum of the errors is least.
/// This is a dynamic program.
fn least_sum(
    errors: &[[f32; MOST_LANES]; MOST + 1],
    block: usize,
    outliers: usize,
) -> [usize; SUB_BLOCKS] {
    // the least sum with n outliers in the lanes so far, and how many of these the last lane has
    let mut sums = [0f32; MAX_OUTLIERS + 1];
    let mut last = [[0u8; MAX_OUTLIERS + 1]; SUB_BLOCKS];
    for (j, last) in last.iter_mut().enumerate() {
        let before = sums;
        for n in 0..=outliers {
            sums[n] = f32::INFINITY;
            for own in 0..=n.min(MOST) {
                let sum = before[n - own] + errors[own][block + j];
                if sum < sums[n] {
                    (sums[n], last[n]) = (sum, own as u8);
                }
            }
        }
    }
    let mut left = outliers;
    let mut counts = [0; SUB_BLOCKS];
    for (count, last) in counts.iter_mut().zip(&last).rev() {
        *count = usize::from(last[left]);
        left -= *count;
    }
    counts
}
