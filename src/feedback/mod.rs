//! Error feedback: quants are chosen so that they compensate the errors of earlier columns of the row.
//!
//! This is what GPTQ does (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
//! Transformers", 2022), in the form of QuIP's LDLQ (Chee et al., "QuIP: 2-Bit Quantization of Large Language Models
//! With Guarantees", 2023). [`Hessian`] factorizes H = E[x xᵀ] into Mᵀ D M. Then the columns are quantized in order,
//! each with the errors of the columns before it taken into account.

mod choose;
pub mod correlations;
mod formula;
mod hessian;
mod input_sums;

pub(crate) use choose::{ChooseQuants, ROWS};
pub use hessian::Hessian;
pub use input_sums::InputSums;
