//! Matrices times activations: `y = W x` for one column of activations, as in decoding, and for
//! many, as in reading a prompt.
//!
//! The rows of a matrix are multiplied in panels, which the threads share out. A panel meets few
//! columns by dot products in the file's layout ([`crate::dot`]): then the weights' way from memory
//! is the limit. It meets many in an interleaved layout that it is brought into on the way: then
//! taking blocks apart is shared by all columns, and no second copy of the model is kept.
//!
//! A row's product with a column depends on both, and on whether there are few or many columns; never
//! on the ISA or the threads.

mod matrix;
mod outliers;
#[cfg(test)]
mod tests;

pub use matrix::Matrix;
