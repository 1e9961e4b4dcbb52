//! A panel of rows times many columns: the algorithm, once over [`PanelVector`].
//!
//! A lane is a row, and a row's float operations have one order, whatever the vectors' width: so every
//! ISA gives the same bits. Step by step along the rows, their blocks are taken apart once, into unsigned
//! bytes that lie four of a row beside four of the next, and then meet every column: a tile of some
//! vectors of rows by some columns stays in registers, so that four bytes of a column, broadcast,
//! are multiplied by all rows of the tile (`vpdpbusd`), and those of the rows by all columns. That
//! is why it is fast: per multiply-add hardly anything is loaded, unpacked or scaled.
//!
//! Rows of floats go the same way, with one f32 in place of four bytes.

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
