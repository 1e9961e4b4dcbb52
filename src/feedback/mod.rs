//! Error feedback: quants chosen so that the errors of a row cancel where its inputs are correlated.
//!
//! This is what GPTQ does (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
//! Transformers", 2022), in the form of QuIP's LDLQ (Chee et al., "QuIP: 2-Bit Quantization of Large Language Models
//! With Guarantees", 2023): [`Hessian`] factors H = E[x xᵀ] into Mᵀ D M, and every column is then quantized after
//! the errors of those before it were added to it.

mod choose;
pub mod correlations;
mod formula;
mod hessian;
mod input_sums;

pub(crate) use choose::{ChooseQuants, ROWS};
pub use hessian::Hessian;
pub use input_sums::InputSums;
