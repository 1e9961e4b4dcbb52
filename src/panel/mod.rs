//! A panel of rows times many columns: the algorithm, once over [`PanelVector`].
//!
//! A lane is a row. The order of a row's float operations does not depend on the width of vectors, so every instruction
//! set gives the same bits.
//!
//! The panel is processed in steps along the rows. In a step, the blocks are unpacked once, into unsigned bytes: four
//! of a row, then four of the next row, and so on. Then they are multiplied by every column. A tile of several vectors
//! of rows by several columns is kept in registers. Four bytes of a column are broadcast and multiplied by all rows of
//! the tile (`vpdpbusd`). This is fast, because each loaded, unpacked and scaled value is used many times.
//!
//! Rows of floats are processed in the same way, with one f32 in place of four bytes.

#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(crate) mod avx2;
#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(crate) mod avx512;
mod columns;
mod multiply;
mod portable;
mod unpack;
mod vector;

pub(crate) use columns::{ColumnMut, Columns, Floats, PanelColumns};
pub(crate) use multiply::{MOST_COLUMNS, PANEL, multiply, quantize_column};
pub(crate) use portable::Portable;
