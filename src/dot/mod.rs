//! Dot products of quantized rows with a column of activations.
//!
//! The activations are quantized too, to eight bits, as in ggml: K-quants and IQ4_XS are multiplied by
//! Q8_K; legacy types and IQ4_NL by Q8_0 or, if the type has a minimum, Q8_1; floats by f32. So a
//! block's dot product is a sum of small integers, exact on every instruction set, times a few scales.
//!
//! | rows | activations | a block's dot product |
//! |---|---|---|
//! | Q2_K, Q4_K, Q5_K | Q8_K | `d·d8 · Σ scale·(Σ q·q8) - dmin·d8 · Σ min·(Σ q8)` |
//! | Q3_K | Q8_K | `d·d8 · Σ scale·(Σ (q - 4)·q8)` |
//! | Q6_K | Q8_K | `d·d8 · Σ scale·(Σ (q - 32)·q8)` |
//! | IQ4_XS | Q8_K | `d·d8 · Σ (scale - 32)·(Σ value[q]·q8)` |
//! | IQ4_NL | Q8_0 | `d·d8 · Σ value[q]·q8` |
//! | Q4_0, Q5_0, Q8_0 | Q8_0 | `d·d8 · Σ (q - half)·q8` |
//! | Q4_1, Q5_1 | Q8_1 | `d·d8 · Σ q·q8 + m·s8`, `s8 = d8 · Σ q8` |
//! | Q4_HIFI | Q8_K | that of Q4_K `+ Σ residual · (d8·q8[index])` |
//! | F32, F16, BF16 | F32 | `w·x` |
//!
//! [`scalar`] is the oracle. It defines the order in which floats are added on every instruction set, so a product
//! depends only on the row and the activations.

mod activations;
pub(crate) mod half;
#[cfg(any(test, all(target_arch = "x86_64", not(portable))))]
pub(crate) mod half_vector;
mod rows;
pub mod scalar;
#[cfg(test)]
mod tests;
#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(crate) mod x86;

pub use activations::{Activations, BlockQ8_1, BlockQ8K, Quantize};
pub use rows::Rows;
