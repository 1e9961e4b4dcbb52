//! What can go wrong in the runtime.

use super::role::Role;
use crate::error::QuantError;
use std::fmt;

/// A model that cannot be built or run as asked.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelError {
    /// The configuration contradicts itself.
    Config(String),
    /// A tensor that the model has no place for.
    Unknown {
        /// The name of the role.
        role: String,
        /// The layer that it was given for.
        layer: Option<usize>,
    },
    /// A tensor has not the shape that the configuration asks for: rows, row length.
    Shape {
        /// What it has.
        got: [usize; 2],
        /// What it should have.
        expected: [usize; 2],
    },
    /// A tensor is not there.
    Missing {
        /// Its role.
        role: Role,
        /// Its layer, if it belongs to one.
        layer: Option<usize>,
    },
    /// A token is not in the vocabulary.
    Token {
        /// The token.
        token: u32,
        /// Tokens of the vocabulary.
        n_vocab: usize,
    },
    /// The model gives logits that are not finite.
    NotFinite,
    /// The work was given up because the caller asked for that.
    Cancelled,
    /// The codec's.
    Quant(QuantError),
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(what) => write!(f, "a model that cannot be: {what}"),
            Self::Unknown { role, layer } => {
                write!(f, "no place for the tensor {role} of layer {layer:?}")
            }
            Self::Shape { got: [rows, length], expected } => write!(
                f,
                "it has {rows} rows of {length}, and not {} rows of {}",
                expected[0], expected[1]
            ),
            Self::Missing { role, layer } => {
                write!(f, "the tensor {} of layer {layer:?} is missing", role.name())
            }
            Self::Token { token, n_vocab } => {
                write!(f, "token {token} is not in the vocabulary, which has {n_vocab}")
            }
            Self::NotFinite => write!(f, "it gives logits that are not finite"),
            Self::Cancelled => write!(f, "given up"),
            Self::Quant(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ModelError {}

impl From<QuantError> for ModelError {
    fn from(error: QuantError) -> Self {
        Self::Quant(error)
    }
}
