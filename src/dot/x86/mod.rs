//! Dot products on x86-64: the algorithms, once over `vector::DotVector`.
//!
//! K-quants: the quants of 64 weights are unpacked into the order of the activations. One multiply-add (`vpmaddubsw`,
//! `vpdpbusd`) multiplies bytes by bytes; its sums still fit 16 bits. A second one (`vpmaddwd`, `vpdpwssd`) multiplies
//! by the scales of the sub-blocks. Only then, once per block, integers become floats. The scales, minima and block
//! scales of a block cost as much time as its quants. Therefore several rows are multiplied at once, with one float
//! lane per row.
//!
//! Floats are added in the order of [`crate::dot::scalar`], for every width of vectors.
//!
//! With one column, the weights come from memory. A CPU prefetches only to the end of a page of 4 KiB, and less in
//! short rows. Therefore `vector::prefetch` requests weights much earlier.

pub(crate) mod avx2;
pub(crate) mod avx512;
mod iq4_xs;
mod k_rows;
mod nibble_rows;
mod outliers;
mod plain;
mod products;
mod rows;
mod sixteens;
mod vector;
