//! How rows are encoded.

use crate::error::QuantError;
use crate::feedback::Hessian;

/// How rows are encoded.
#[derive(Debug, Clone, Copy)]
pub enum Encoding<'a> {
    /// As ggml does, byte for byte.
    Ggml,
    /// With blocks of less error than ggml's, where the type has such a search: never more.
    Refined,
    /// Error feedback (GPTQ, LDLQ): as refined, then with quants chosen so that the errors of a row cancel where its
    /// inputs are correlated. Each error may then be larger.
    ErrorFeedback(&'a Hessian),
}

impl Encoding<'_> {
    /// Fails where the inputs are those of rows of another length.
    pub(super) fn check(&self, row_length: usize) -> Result<(), QuantError> {
        match self {
            Self::ErrorFeedback(hessian) => hessian.check(row_length),
            Self::Ggml | Self::Refined => Ok(()),
        }
    }
}
