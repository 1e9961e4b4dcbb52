//! Block quantization of language-model weights: ggml's K-quants and legacy types, byte for byte,
//! and Q4_HIFI, a Q4_K block plus the few weights that 4 bits represent worst.
//!
//! The crate knows nothing of model files or tensor names: it turns rows of numbers into rows of
//! blocks and back, multiplies by them, and runs transformers that are made of them.
//!
//! | module | subject |
//! |---|---|
//! | [`error`] | what can go wrong |
//! | [`float`] | half precision and rounding, with their ties stated |
//! | [`block`] | one file a format: layout, formula, encode, decode |
//! | [`fit`] | the searches for scales and minima that the formats share |
//! | [`error_sums`] | how far decoded weights are from their source |
//! | [`hifi`] | Q4_HIFI: choose outliers, refit, encode, decode |
//! | [`refine`] | blocks with less error than ggml's encoder leaves, and rows whose errors cancel |
//! | [`dot`] | dot products with quantized activations, and the activations |
//! | [`logits`] | a model's answers: probabilities of tokens, divergence of two models |
//! | [`kernel`] | the same bytes, faster: SIMD, chosen at run time |
//! | [`rows`] | whole matrices, checked and in parallel: what callers use |
//! | [`team`] | threads for work in many short pieces |
//! | [`matmul`] | matrices times activations |
//! | [`model`] | the runtime: a transformer's weights, its cache, its logits, sampling |
//!
//! ```
//! use q4hifi::block::TensorType;
//! use q4hifi::rows::{self, Source};
//!
//! let weights: Vec<f32> = (0..512).map(|i| (i as f32 * 0.37).sin()).collect();
//! let source = Source::from_f32(&weights, 256)?;
//! let mut data = vec![0u8; 2 * TensorType::Q4K.row_bytes(256)?];
//! let error = rows::quantize(source, TensorType::Q4K, None, &mut data)?;
//! assert!(error.relative() < 0.01);
//!
//! let mut back = vec![0f32; 512];
//! rows::dequantize(Source::new(TensorType::Q4K, &data, 256)?, &mut back)?;
//! assert!((back[3] - weights[3]).abs() < 0.1);
//! # Ok::<(), q4hifi::error::QuantError>(())
//! ```

pub mod block;
pub mod correlations;
pub mod dot;
pub mod error;
pub mod error_sums;
pub mod fit;
pub mod float;
pub mod hifi;
pub mod kernel;
pub mod logits;
pub mod lost_pages;
pub mod matmul;
pub mod model;
#[cfg(feature = "python")]
mod python;
pub mod refine;
pub mod rows;
pub mod team;
#[cfg(test)]
mod testing;
