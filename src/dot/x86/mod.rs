//! Dot products on x86-64: the algorithms, once over `vector::DotVector`.
//!
//! K-quants: the quants of 64 weights are unpacked into the order that the activations have, so
//! that bytes meet bytes in one multiply-add each (`vpmaddubsw`, `vpdpbusd`), whose sums still fit
//! 16 bits. A second one (`vpmaddwd`, `vpdpwssd`) multiplies by the scales of the sub-blocks, and
//! only then, once a block, integers become floats. What a block has but once, its scales, minima
//! and block scales, costs as much as its quants; so several rows are multiplied at once, a lane of the
//! floats each.
//!
//! The floats are added up in the order of [`crate::dot::scalar`], whatever the vectors' width.
//!
//! With one column the weights come from memory, and a CPU by itself reads ahead only to the end of a
//! page of 4 KiB and of short rows not even that; so `vector::prefetch` asks for them much earlier.

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
