//! Errors of the runtime.

use super::role::Role;
use crate::error::QuantError;
use std::fmt;

/// A model that cannot be built or run as asked.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelError {
    /// The configuration contradicts itself.
    Config(String),
    /// A tensor that a model with this configuration does not have.
    Unknown {
        /// The name of the role.
        role: String,
        /// The layer that it was given for.
        layer: Option<usize>,
    },
    /// A tensor does not have the shape (rows, row length) that the configuration requires.
    Shape {
        /// The tensor's shape.
        got: [usize; 2],
        /// The required shape.
        expected: [usize; 2],
    },
    /// A tensor is missing.
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
    /// The caller has cancelled the work.
    Cancelled,
    /// An error of the codec.
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
