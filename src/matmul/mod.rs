//! Matrices times activations, `y = W x`. Generating text needs one column of activations at a time, reading a prompt
//! many.
//!
//! With few columns, rows are multiplied in the file's layout ([`crate::dot`]); memory is the limit. With many, a panel
//! of rows is first unpacked, once for all columns (the room `panel`); no second copy of the model is kept. The threads
//! divide the rows among them.
//!
//! A product depends on its row, on its column, and on whether there are few or many columns. It does not depend on the
//! instruction set or on the threads.

mod matrix;
mod outliers;
#[cfg(test)]
mod tests;

pub use matrix::Matrix;
