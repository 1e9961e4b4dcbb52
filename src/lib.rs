//! Block quantization of language-model weights: ggml's K-quants and legacy types, byte for byte,
//! and Q4_HIFI, a Q4_K block plus the few weights that 4 bits represent worst.
//!
//! The crate does not read model files and does not depend on tensor names. It encodes rows of weights as rows of
//! blocks, decodes them, multiplies by them, and runs transformers with such weights.
//!
//! The modules, lowest first. A module uses only modules of the lines before its own (`.ci/rust_rooms.py` checks this):
//!
//! | module | subject |
//! |---|---|
//! | [`error`] | errors of arguments and data |
//! | `float`, [`error_sums`], [`team`], [`lost_pages`] | half precision; squared errors; threads; files that shrink |
//! | [`isa`], `check` | instruction sets; checks of arguments |
//! | `simd` | vectors of f32: one trait, an implementation for every instruction set |
//! | [`block`] | the bytes of a block and its decoding; the table of types |
//! | `fit` | the searches for scales and quants, as ggml makes them |
//! | `refine`, [`feedback`] | blocks with less error than ggml's; error feedback over correlated inputs (GPTQ, LDLQ) |
//! | [`dot`], `panel` | dot products with quantized activations; many rows times many columns |
//! | [`dispatch`] | which version of all these runs |
//! | [`rows`] | encoding and decoding of whole matrices, in parallel |
//! | [`matmul`] | matrices times activations |
//! | [`logits`] | probabilities of tokens, divergence of two models |
//! | [`model`] | the runtime: a transformer's weights, KV cache, logits, sampling |
//! | `python` | the Python module |
//!
//! ```
//! use q4hifi::block::TensorType;
//! use q4hifi::rows::{self, Encoding, Source};
//!
//! let weights: Vec<f32> = (0..512).map(|i| (i as f32 * 0.37).sin()).collect();
//! let source = Source::from_f32(&weights, 256)?;
//! let mut data = vec![0u8; 2 * TensorType::Q4K.row_bytes(256)?];
//! let error = rows::quantize(source, TensorType::Q4K, None, Encoding::Ggml, &mut data)?;
//! assert!(error.relative() < 0.01);
//!
//! let mut back = vec![0f32; 512];
//! rows::dequantize(Source::new(TensorType::Q4K, &data, 256)?, &mut back)?;
//! assert!((back[3] - weights[3]).abs() < 0.1);
//! # Ok::<(), q4hifi::error::QuantError>(())
//! ```

pub mod block;
mod check;
pub mod dispatch;
pub mod error;
pub mod error_sums;
mod float;
pub mod isa;
pub mod logits;
pub mod lost_pages;
pub mod matmul;
pub mod model;
#[cfg(feature = "python")]
mod python;
pub mod rows;
pub mod team;
#[cfg(test)]
mod testing;

// Code over vectors. An `unsafe fn` there lists its conditions once, under "Safety", and its body relies on them. Most
// have the single condition of `simd::Vector`: the CPU has the instruction set.
#[allow(unsafe_op_in_unsafe_fn)]
pub mod dot;
#[allow(unsafe_op_in_unsafe_fn)]
pub mod feedback;
#[allow(unsafe_op_in_unsafe_fn)]
mod fit;
#[allow(unsafe_op_in_unsafe_fn)]
mod panel;
#[allow(unsafe_op_in_unsafe_fn)]
mod refine;
#[allow(unsafe_op_in_unsafe_fn)]
mod simd;
