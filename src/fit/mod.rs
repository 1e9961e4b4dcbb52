//! The searches for a block's scales and quants, as ggml makes them, byte for byte.
//!
//! [`search`] has what the types share, the other files the encoder of each. They are the oracle: written plainly,
//! in ggml's order of operations. `vector` is the same over vectors.

mod encode;
mod hifi;
mod iq4;
mod k;
mod legacy;
mod nearest_iq4;
mod q2_k;
mod q3_k;
mod q6_k;
mod refit;
mod search;
// used on a CPU with vectors, and by the tests on arrays
#[cfg(any(test, all(target_arch = "x86_64", not(portable))))]
pub(crate) mod vector;

pub use encode::RowsToEncode;
pub(crate) use encode::{quantize_rows, rows_at_once};
pub(crate) use hifi::encode_hifi_row;
pub(crate) use iq4::quants as iq4_quants;
pub(crate) use nearest_iq4::{nearest_value as nearest_iq4_value, value_of as iq4_value};
pub(crate) use refit::{DEPTH, SUB, Window, interleaved_sums, shortest_windows};
