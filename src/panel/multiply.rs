//! Products of a panel's rows with columns.

use super::columns::{ColumnMut, Columns, Floats, GROUP, PanelColumns, SUM};
use super::unpack::{PanelBlock, Unpacked};
use super::vector::PanelVector;
use crate::block::{Block, TensorType, blocks, by_family, with_quants};
use crate::simd::Vector;
use std::ops::Range;

/// Rows of a panel.
pub(crate) const PANEL: usize = 64;
/// The largest number of columns in a tile, and a multiple of every smaller number that is used.
pub(crate) const MOST_COLUMNS: usize = 12;
/// Cells of four bytes per row and step: 256 quants, or 64 floats.
const STEP: usize = 64;
/// Bytes of a cache line.
const CACHE_LINE: usize = 64;
/// A group of activations that are all smaller counts as zeros.
const LEAST: f32 = 1e-36;
/// The largest number of sub-blocks in a step.
const SUBS: usize = 4 * STEP / 16;

/// A step of a panel's rows.
#[repr(align(64))]
struct Step {
    /// Unpacked, row by row.
    rows: [[u8; 4 * STEP]; PANEL],
    /// The same, cell by cell: first cell 0 of every row, then cell 1 of every row, and so on.
    cells: [[u8; 4 * PANEL]; STEP],
    /// Scale and addend, sub-block by sub-block, of every row.
    scales: [[f32; PANEL]; SUBS],
    adds: [[f32; PANEL]; SUBS],
}

impl Step {
    const ZERO: Self = Self {
        rows: [[0; 4 * STEP]; PANEL],
        cells: [[0; 4 * PANEL]; STEP],
        scales: [[0.0; PANEL]; SUBS],
        adds: [[0.0; PANEL]; SUBS],
    };

    /// Unpacks blocks of row `row`.
    #[inline(always)]
    unsafe fn set_quants<V: PanelVector, B: PanelBlock>(&mut self, row: usize, blocks: &[B]) {
        let subs = B::WEIGHTS / B::SUB;
        let (mut scales, mut adds) = ([0f32; SUBS], [0f32; SUBS]);
        let parts = scales.chunks_exact_mut(subs).zip(adds.chunks_exact_mut(subs));
        let parts = self.rows[row].chunks_exact_mut(B::WEIGHTS).zip(parts);
        for (block, (quants, (scales, adds))) in blocks.iter().zip(parts) {
            block.unpack::<V>(Unpacked { quants, scales, adds });
        }
        for sub in 0..blocks.len() * subs {
            self.scales[sub][row] = scales[sub];
            if B::ADDS {
                self.adds[sub][row] = adds[sub];
            }
        }
    }

    /// Decodes floats of row `row`.
    #[inline(always)]
    fn set_floats<B: Block>(&mut self, row: usize, weights: &[B]) {
        let cells = self.rows[row].as_chunks_mut::<4>().0;
        for (cell, weight) in cells.iter_mut().zip(weights) {
            let mut value = [0f32];
            weight.dequantize(&mut value);
            *cell = value[0].to_le_bytes();
        }
    }

    /// Fills `cells` from the first `width` cells of the rows.
    #[inline(always)]
    unsafe fn exchange<V: PanelVector>(&mut self, width: usize) {
        for cell in (0..width).step_by(V::LANES) {
            for row in (0..PANEL).step_by(V::LANES) {
                let from = self.rows[row][4 * cell..].as_ptr();
                let to = self.cells[cell][4 * row..].as_mut_ptr();
                // the quants of rows and cells are multiples of LANES.
                V::transpose(from, 4 * STEP, to, 4 * PANEL)
            }
        }
    }
}

/// Adds the products of at most [`PANEL`] rows of `kind` and every column to `acc`, which has [`PANEL`] sums per
/// column. The length of `acc` is at least the number of columns, and a multiple of `C`.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn multiply<V: PanelVector, const R: usize, const C: usize>(
    kind: TensorType,
    rows: &[u8],
    columns: PanelColumns<'_>,
    acc: &mut [[f32; PANEL]],
) {
    let other = || unreachable!("columns of another form than the type takes");
    match columns {
        PanelColumns::Bytes(x) => {
            with_quants!(kind, B => bytes::<V, B, R, C>(rows, x, acc), other())
        }
        PanelColumns::Floats(x) => by_family!(kind,
                float: B => floats::<V, B, R, C>(rows, x, acc), small: B => other(), k: B => other()),
    }
}

/// See [`crate::dispatch::quantize_column`].
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn quantize_column<V: PanelVector>(x: &[f32], out: ColumnMut<'_>) {
    let groups = x.as_chunks::<GROUP>().0.iter().zip(out.quants.as_chunks_mut::<GROUP>().0);
    let sums = out.sums.as_chunks_mut::<{ GROUP / SUM }>().0;
    let of_groups = out.scales.iter_mut().zip(out.scaled_sums).zip(sums);
    for ((x, quants), ((scale, scaled_sum), sums)) in groups.zip(of_groups) {
        // a group is whole vectors.
        let mut most = V::splat(0);
        for i in (0..GROUP).step_by(V::LANES) {
            most = V::max_abs(most, V::Floats::load(x.as_ptr().add(i)));
        }
        let most = V::largest(most);
        // so small that the inverse would be infinite: the group becomes zeros
        let inverse = V::Floats::splat(if most < LEAST { 0.0 } else { 127.0 / most });
        *scale = most / 127.0;
        *sums = [0; GROUP / SUM];
        for i in (0..GROUP).step_by(V::LANES) {
            let ints = V::to_ints(V::Floats::load(x.as_ptr().add(i)).mul(inverse));
            V::store_bytes(ints, quants.as_mut_ptr().add(i));
            // infinity and NaN become the smallest i32, but then the scale of the group is infinite or NaN, too
            sums[i / SUM] = sums[i / SUM].wrapping_add(V::total(ints));
        }
        *scaled_sum = *scale * sums.iter().fold(0i32, |sum, &ints| sum.wrapping_add(ints)) as f32;
    }
}

/// Prefetches the cache line of an address, which need not be valid.
#[inline(always)]
fn prefetch(at: *const u8) {
    // SAFETY: every x86-64 CPU has SSE, and fetching is no access.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The columns of tile `tile`. If there are fewer than `C`, the last one fills the rest.
#[inline(always)]
fn tile_columns<const C: usize>(tile: usize, count: usize) -> [usize; C] {
    let mut columns = [0; C];
    for (c, column) in columns.iter_mut().enumerate() {
        *column = (tile * C + c).min(count - 1);
    }
    columns
}

#[inline(always)]
unsafe fn bytes<V: PanelVector, B: PanelBlock, const R: usize, const C: usize>(
    rows: &[u8],
    columns: &Columns,
    acc: &mut [[f32; PANEL]],
) {
    let mut step = Step::ZERO;
    for start in (0..columns.length).step_by(4 * STEP) {
        let end = columns.length.min(start + 4 * STEP);
        let rows = blocks::<B>(rows).chunks_exact(columns.length / B::WEIGHTS);
        for (r, row) in rows.enumerate() {
            let (now, later) = row[start / B::WEIGHTS..].split_at((end - start) / B::WEIGHTS);
            // the rows are too far apart for the CPU's own prefetching
            for ahead in (0..size_of_val(now)).step_by(CACHE_LINE) {
                prefetch(later.as_ptr().cast::<u8>().wrapping_add(ahead))
            }
            step.set_quants::<V, B>(r, now);
        }
        step.exchange::<V>((end - start) / 4);
        for (tile, acc) in acc.as_chunks_mut::<C>().0.iter_mut().enumerate() {
            let tile = tile_columns(tile, columns.count());
            for row in (0..PANEL).step_by(R * V::LANES) {
                bytes_tile::<V, B, R, C>(&step, row, columns, tile, start..end, acc);
            }
        }
    }
}

/// Multiplies rows from `row` on by the columns `tile`; uses `weights` weights of each row.
#[inline(always)]
unsafe fn bytes_tile<V: PanelVector, B: PanelBlock, const R: usize, const C: usize>(
    step: &Step,
    row: usize,
    columns: &Columns,
    tile: [usize; C],
    weights: Range<usize>,
    acc: &mut [[f32; PANEL]; C],
) {
    let mut quants = [columns.quants.as_ptr(); C];
    for (quants, column) in quants.iter_mut().zip(tile) {
        *quants = columns.quants[column * columns.length..][weights.clone()].as_ptr();
    }
    let groups = columns.length / GROUP;
    for sub in 0..weights.len() / B::SUB {
        // the sub-block is within the step and the columns.
        let mut sums = [[V::splat(0); C]; R];
        if B::OFFSET != 0 {
            let first = (weights.start + sub * B::SUB) / SUM;
            for c in 0..C {
                let x = &columns.sums[tile[c] * columns.length / SUM + first..];
                // with infinities or NaN the sums may overflow, but the scales make the result NaN
                let sum = x[..B::SUB / SUM].iter().fold(0, |sum: i32, x| sum.wrapping_add(*x));
                for sums in &mut sums {
                    sums[c] = V::splat((-B::OFFSET).wrapping_mul(sum));
                }
            }
        }
        for cell in sub * B::SUB / 4..(sub + 1) * B::SUB / 4 {
            let mut w = [V::splat(0); R];
            for (r, w) in w.iter_mut().enumerate() {
                *w = V::load(step.cells[cell].as_ptr().add(4 * (row + r * V::LANES)));
            }
            for c in 0..C {
                let x = V::broadcast(quants[c].add(4 * cell));
                for r in 0..R {
                    sums[r][c] = V::dot(sums[r][c], w[r], x, B::WIDE);
                }
            }
        }
        let group = (weights.start + sub * B::SUB) / GROUP;
        for c in 0..C {
            let x_scale = *columns.scales.get_unchecked(tile[c] * groups + group);
            let scale = V::Floats::splat(x_scale);
            let sum = if B::SUB == GROUP {
                *columns.scaled_sums.get_unchecked(tile[c] * groups + group)
            } else {
                let sum = (tile[c] * columns.length + weights.start) / SUM + sub;
                x_scale * *columns.sums.get_unchecked(sum) as f32
            };
            for (r, sums) in sums.iter().enumerate() {
                let first = row + r * V::LANES;
                let to = acc[c].as_mut_ptr().add(first);
                let scales = V::Floats::load(step.scales[sub].as_ptr().add(first));
                let scaled = V::to_floats(sums[c]).mul(scale);
                let mut total = scaled.mul_add(scales, V::Floats::load(to));
                if B::ADDS {
                    let adds = V::Floats::load(step.adds[sub].as_ptr().add(first));
                    total = V::Floats::splat(sum).mul_add(adds, total);
                }
                total.store(to);
            }
        }
    }
}

#[inline(always)]
unsafe fn floats<V: PanelVector, B: Block, const R: usize, const C: usize>(
    rows: &[u8],
    columns: Floats<'_>,
    acc: &mut [[f32; PANEL]],
) {
    let Floats { x, length } = columns;
    let mut step = Step::ZERO;
    for start in (0..length).step_by(STEP) {
        let width = STEP.min(length - start);
        for (r, row) in blocks::<B>(rows).chunks_exact(length).enumerate() {
            step.set_floats(r, &row[start..start + width]);
        }
        step.exchange::<V>(width);
        for (tile, acc) in acc.as_chunks_mut::<C>().0.iter_mut().enumerate() {
            let mut quants = [x.as_ptr(); C];
            for (quants, column) in quants.iter_mut().zip(tile_columns::<C>(tile, x.len() / length))
            {
                *quants = x[column * length + start..][..width].as_ptr();
            }
            for row in (0..PANEL).step_by(R * V::LANES) {
                floats_tile::<V, R, C>(&step, row, quants, width, acc);
            }
        }
    }
}

/// Multiplies rows from `row` on by `width` quants of columns.
#[inline(always)]
unsafe fn floats_tile<V: PanelVector, const R: usize, const C: usize>(
    step: &Step,
    row: usize,
    quants: [*const f32; C],
    width: usize,
    acc: &mut [[f32; PANEL]; C],
) {
    // the columns have `width` quants.
    let mut sums = [[V::Floats::splat(0.0); C]; R];
    for cell in 0..width {
        let mut w = [V::Floats::splat(0.0); R];
        for (r, w) in w.iter_mut().enumerate() {
            let from = step.cells[cell].as_ptr().add(4 * (row + r * V::LANES));
            *w = V::Floats::load(from.cast());
        }
        for c in 0..C {
            let x = V::Floats::splat(*quants[c].add(cell));
            for r in 0..R {
                sums[r][c] = w[r].mul_add(x, sums[r][c]);
            }
        }
    }
    for c in 0..C {
        for (r, sums) in sums.iter().enumerate() {
            let to = acc[c].as_mut_ptr().add(row + r * V::LANES);
            V::Floats::load(to).add(sums[c]).store(to);
        }
    }
}
