//! A block of Q4_HIFI in the fork layout, 244 bytes: a Q4_K block and up to 32 weights in f16.
//!
//! It stores the weight of an outlier, which *replaces* the value of the base. The split layout ([`super::hifi`])
//! stores a residual, which is added.

use super::hifi::{MAX_OUTLIERS, check_index};
use super::layout::{Block, Bytes, QK_K};
use super::q4_k::BlockQ4K;
use crate::error::QuantError;
use crate::float::{f16_to_f32, f32_to_f16};

/// A Q4_HIFI block of the fork layout: 7.625 bits per weight, whatever the number of outliers.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BlockQ4Hifi {
    /// All 256 weights in 4 bits.
    pub base: BlockQ4K,
    /// Indices of the outliers, strictly increasing; unused ones are 0.
    pub index: [u8; MAX_OUTLIERS],
    /// The weights at these indices, f16; unused ones are 0.
    pub value: [[u8; 2]; MAX_OUTLIERS],
    /// Number of outliers.
    pub count: u8,
    /// Zero.
    pub padding: [u8; 3],
}
const _: () = assert!(size_of::<BlockQ4Hifi>() == 244);

impl BlockQ4Hifi {
    /// A block of `base` and the weights of `x` at the indices `index`.
    pub fn new(mut base: BlockQ4K, index: &[u8], x: &[f32; QK_K]) -> Self {
        for &i in index {
            base.set_nearest_to_zero(usize::from(i));
        }
        let mut block = Self {
            base,
            index: [0; _],
            value: [[0; 2]; _],
            count: index.len() as u8,
            padding: [0; 3],
        };
        block.index[..index.len()].copy_from_slice(index);
        for (value, &i) in block.value.iter_mut().zip(index) {
            *value = f32_to_f16(x[usize::from(i)]).to_le_bytes();
        }
        block
    }

    /// Indices of the outliers. Fails if they are too many or out of order. `number` is the block's index in the
    /// input, for the error message.
    pub fn index(&self, number: usize) -> Result<&[u8], QuantError> {
        let Some(index) = self.index.get(..usize::from(self.count)) else {
            return Err(QuantError::BadBlock { block: number, what: "more than 32 outliers" });
        };
        check_index(index, number)?;
        Ok(index)
    }

    /// The 256 decoded weights.
    pub(crate) fn decode(&self, number: usize, out: &mut [f32; QK_K]) -> Result<(), QuantError> {
        let index = self.index(number)?;
        self.base.dequantize(out);
        self.replace(index, out);
        Ok(())
    }

    /// Writes the outliers over the values of the base.
    pub(crate) fn replace(&self, index: &[u8], values: &mut [f32; QK_K]) {
        for (&i, &value) in index.iter().zip(&self.value) {
            values[usize::from(i)] = f16_to_f32(u16::from_le_bytes(value));
        }
    }
}

// SAFETY: `repr(C)`, byte arrays and a block of byte arrays only.
unsafe impl Bytes for BlockQ4Hifi {}
