//! Block quantization of language-model weights: ggml's K-quants and legacy types, byte for byte,
//! and Q4_HIFI, a Q4_K block plus the few weights that 4 bits represent worst.
//!
//! The crate knows nothing of model files or tensor names: it turns rows of numbers into rows of
//! blocks and back, multiplies by them, and runs transformers that are made of them.
//!
//! The modules, lowest first; each uses only what stands before it (`.ci/rust_rooms.py` checks that):
//!
//! | module | subject |
//! |---|---|
//! | [`error`], [`isa`], [`error_sums`], [`team`], [`lost_pages`] | ground: errors, instruction sets, errors of weights, threads |
//! | `check`, `float` | checks of arguments; half precision and rounding, with their ties stated |
//! | `simd` | vectors of f32: one trait, an implementation for every instruction set |
//! | [`block`] | the bytes of a block and what they stand for; the table of types |
//! | `fit` | the searches for scales and quants, as ggml makes them |
//! | `refine` | blocks with less error than ggml's |
//! | [`feedback`] | error feedback over correlated inputs (GPTQ, LDLQ) |
//! | [`dot`] | dot products with quantized activations, and the activations |
//! | `panel` | many rows times many columns |
//! | [`dispatch`] | which version of all these runs |
//! | [`rows`] | whole rows, checked and in parallel: what callers use |
//! | [`matmul`] | matrices times activations |
//! | [`logits`] | a model's answers: probabilities of tokens, divergence of two models |
//! | [`model`] | the runtime: a transformer's weights, its cache, its logits, sampling |
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

// What is written over vectors. An `unsafe fn` there lists its conditions once, under "Safety", and all that it calls
// relies on them; most have the one of `simd::Vector`, that the CPU has the instruction set.
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
