//! Errors of the public functions. They check lengths; inner functions only have debug assertions.

use std::fmt;

/// An input that cannot be quantized or dequantized as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantError {
    /// A type id or name that the codec does not know.
    UnknownType(String),
    /// `Q4HIFI_ISA` names an instruction set that does not exist, or that this CPU does not have.
    IsaNotAvailable {
        /// The value of the variable.
        name: String,
        /// The names of those that this CPU has.
        available: Vec<&'static str>,
    },
    /// The length of a row is not a multiple of the type's block.
    RowLength {
        /// Weights in a row.
        row_length: usize,
        /// Weights in a block of the type.
        block: usize,
        /// The type's name.
        name: &'static str,
    },
    /// A buffer does not have the length that the other arguments require.
    BufferLength {
        /// Which buffer.
        what: &'static str,
        /// Its length, in its own elements.
        got: usize,
        /// The length it should have.
        expected: usize,
    },
    /// More outliers per block than the format can hold.
    TooManyOutliers {
        /// The requested number.
        asked: usize,
        /// The largest number.
        most: usize,
    },
    /// An input weight is NaN or infinite.
    NotFinite {
        /// Position in the input, in weights.
        position: usize,
    },
    /// An importance weight is NaN, infinite or negative.
    BadImportance {
        /// Position in the row.
        position: usize,
    },
    /// Sums over inputs have a shape that is impossible, or does not fit what is added to them.
    InputSums(&'static str),
    /// A token's number is beyond the vocabulary.
    UnknownToken {
        /// Position among the tokens.
        position: usize,
        /// Tokens in the vocabulary.
        n_vocab: usize,
    },
    /// Stored blocks contradict the format: a wrong count, or indices out of order.
    BadBlock {
        /// Number of the block in the input.
        block: usize,
        /// The fault.
        what: &'static str,
    },
}

impl fmt::Display for QuantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(name) => write!(f, "unknown tensor type {name}"),
            Self::InputSums(what) => f.write_str(what),
            Self::IsaNotAvailable { name, available } => {
                write!(f, "Q4HIFI_ISA is {name:?}; this CPU has {}", available.join(", "))
            }
            Self::RowLength { row_length, block, name } => write!(
                f,
                "a row of {row_length} weights cannot be stored as {name}: its blocks hold {block}"
            ),
            Self::BufferLength { what, got, expected } => {
                write!(f, "{what} has {got} elements, expected {expected}")
            }
            Self::TooManyOutliers { asked, most } => {
                write!(f, "{asked} outliers a block asked for; the most is {most}")
            }
            Self::NotFinite { position } => {
                write!(f, "the weight at position {position} is NaN or infinite")
            }
            Self::BadImportance { position } => {
                write!(f, "the importance at column {position} is NaN, infinite or negative")
            }
            Self::UnknownToken { position, n_vocab } => {
                write!(f, "the token at position {position} is not one of the {n_vocab} there are")
            }
            Self::BadBlock { block, what } => write!(f, "block {block}: {what}"),
        }
    }
}

impl std::error::Error for QuantError {}
