//! The table of types: the only place where a type is registered.

use super::layout::Block;
use crate::error::QuantError;

/// One line per type: its name here, its id in GGUF, ggml's name, its family, and its block.
///
/// The families: each weight is a float (`float`), or a quant in a block of 32 (`small`) or of 256 (`k`).
///
/// Every operation on types is a trait of the block, and is called through `with_block`, `with_quants` or `by_family`.
/// If a type lacks a trait, the crate does not compile.
macro_rules! register {
    (($d:tt) $($kind:ident = $id:literal, $name:literal, $family:ident, $block:ident;)*) => {
        /// The tensor types; the number is the type's id in GGUF.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        #[allow(missing_docs, non_camel_case_types)]
        pub enum TensorType { $($kind = $id),* }

        impl TensorType {
            /// Every type, by id.
            pub const ALL: [Self; [$($id),*].len()] = [$(Self::$kind),*];

            /// ggml's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }
        }

        /// Evaluates `$body` with `$block` as the block struct of a [`TensorType`].
        macro_rules! with_block {
            ($d kind:expr, $d block:ident => $d body:expr) => {
                match $d kind {
                    $(crate::block::TensorType::$kind => {
                        type $d block = crate::block::$block;
                        $d body
                    })*
                }
            };
        }

        /// The same with an expression for each family of types: `float: B => …, small: B => …, k: B => …`.
        macro_rules! by_family {
            ($d kind:expr, $d ($d families:tt)*) => {
                match $d kind {
                    $(crate::block::TensorType::$kind => {
                        crate::block::by_family!(@$family $block, $d ($d families)*)
                    })*
                }
            };
            (@float $d block:ident, float: $d name:ident => $d body:expr, $d ($d rest:tt)*) => {{
                #[allow(dead_code)]
                type $d name = crate::block::$d block;
                $d body
            }};
            (@small $d block:ident, float: $d a:ident => $d b:expr,
                small: $d name:ident => $d body:expr, $d ($d rest:tt)*) => {{
                #[allow(dead_code)]
                type $d name = crate::block::$d block;
                $d body
            }};
            (@k $d block:ident, float: $d a:ident => $d b:expr, small: $d c:ident => $d d:expr,
                k: $d name:ident => $d body:expr) => {{
                #[allow(dead_code)]
                type $d name = crate::block::$d block;
                $d body
            }};
        }

        /// The same for types of quants; `$otherwise` for those of floats.
        macro_rules! with_quants {
            ($d kind:expr, $d block:ident => $d body:expr, $d otherwise:expr) => {
                crate::block::by_family!($d kind, float: Float => $d otherwise,
                    small: $d block => $d body, k: $d block => $d body)
            };
        }
    };
}

register! {
    ($)
    F32 = 0, "F32", float, BlockF32;
    F16 = 1, "F16", float, BlockF16;
    Q4_0 = 2, "Q4_0", small, BlockQ4_0;
    Q4_1 = 3, "Q4_1", small, BlockQ4_1;
    Q5_0 = 6, "Q5_0", small, BlockQ5_0;
    Q5_1 = 7, "Q5_1", small, BlockQ5_1;
    Q8_0 = 8, "Q8_0", small, BlockQ8_0;
    Q2K = 10, "Q2_K", k, BlockQ2K;
    Q3K = 11, "Q3_K", k, BlockQ3K;
    Q4K = 12, "Q4_K", k, BlockQ4K;
    Q5K = 13, "Q5_K", k, BlockQ5K;
    Q6K = 14, "Q6_K", k, BlockQ6K;
    IQ4NL = 20, "IQ4_NL", small, BlockIQ4NL;
    IQ4XS = 23, "IQ4_XS", k, BlockIQ4XS;
    BF16 = 30, "BF16", float, BlockBF16;
}
pub(crate) use {by_family, with_block, with_quants};

impl TensorType {
    /// The type with GGUF's id `id`.
    pub fn from_id(id: u32) -> Result<Self, QuantError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.id() == id)
            .ok_or_else(|| QuantError::UnknownType(format!("id {id}")))
    }

    /// The type's id in GGUF.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Weights in a block.
    pub fn block_weights(self) -> usize {
        with_block!(self, B => B::WEIGHTS)
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> usize {
        with_block!(self, B => B::BYTES)
    }

    /// Bytes of a row of `row_length` weights. Fails if these are not whole blocks.
    pub fn row_bytes(self, row_length: usize) -> Result<usize, QuantError> {
        let block = self.block_weights();
        let whole = row_length > 0 && row_length.is_multiple_of(block);
        let bytes = (row_length / block).checked_mul(self.block_bytes()).filter(|_| whole);
        bytes.ok_or(QuantError::RowLength { row_length, block, name: self.name() })
    }
}
