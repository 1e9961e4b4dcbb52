//! How rows are encoded.

use crate::error::QuantError;
use crate::feedback::Hessian;

/// How rows are encoded.
#[derive(Debug, Clone, Copy)]
pub enum Encoding<'a> {
    /// As ggml does, byte for byte.
    Ggml,
    /// As ggml does, and then refined (see the room `refine`), if the type can be refined. No block has a larger error
    /// than ggml's.
    Refined,
    /// Error feedback (GPTQ, LDLQ): as refined, but then quants are chosen so that they compensate the errors of
    /// earlier columns. The error of a single weight may be larger.
    ErrorFeedback(&'a Hessian),
}

impl Encoding<'_> {
    /// Fails if the Hessian belongs to rows of another length.
    pub(super) fn check(&self, row_length: usize) -> Result<(), QuantError> {
        match self {
            Self::ErrorFeedback(hessian) => hessian.check(row_length),
            Self::Ggml | Self::Refined => Ok(()),
        }
    }
}
