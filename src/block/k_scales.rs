//! How Q4_K and Q5_K pack the 6-bit scales and minima of eight sub-blocks into 12 bytes.
//!
//! Bytes 0..4 hold scales 0..4 and bytes 4..8 minima 0..4 in their low six bits. Scale j and
//! minimum j of sub-blocks 4..8 share byte j + 4 with their low four bits; their high two bits
//! are the top bits of bytes j - 4 and j.

use crate::float::f16_to_f32;

/// Bytes of the packed scales.
pub(crate) const SCALES_BYTES: usize = 12;
/// Sub-blocks in a block.
pub(crate) const SUB_BLOCKS: usize = 8;
/// The largest 6-bit scale or minimum.
pub(crate) const MAX_SCALE: u8 = 63;

/// Packs 6-bit scales and minima.
#[inline(always)]
pub(crate) fn pack(scales: &[u8; SUB_BLOCKS], mins: &[u8; SUB_BLOCKS]) -> [u8; SCALES_BYTES] {
    let mut packed = [0u8; SCALES_BYTES];
    for j in 0..4 {
        let (scale, min) = (scales[j + 4], mins[j + 4]);
        packed[j] = scales[j] | ((scale >> 4) << 6);
        packed[j + 4] = mins[j] | ((min >> 4) << 6);
        packed[j + 8] = (scale & 0x0f) | ((min & 0x0f) << 4);
    }
    packed
}

/// Scale and minimum of sub-block `j`.
#[inline(always)]
pub(crate) fn unpack(packed: &[u8; SCALES_BYTES], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            (packed[j + 4] & 0x0f) | ((packed[j - 4] >> 6) << 4),
            (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4),
        )
    }
}

/// Scale and minimum of sub-block `j` times the block scales `d` and `dmin`, which are f16.
#[inline(always)]
pub(crate) fn scale_and_min(
    d: [u8; 2],
    dmin: [u8; 2],
    scales: &[u8; SCALES_BYTES],
    j: usize,
) -> (f32, f32) {
    let (scale, min) = unpack(scales, j);
    let float = |bytes| f16_to_f32(u16::from_le_bytes(bytes));
    (float(d) * f32::from(scale), float(dmin) * f32::from(min))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_six_bit_pair_comes_back_from_every_index() {
        for index in 0..SUB_BLOCKS {
            for scale in 0..64 {
                for min in 0..64 {
                    let (mut scales, mut mins) = ([63 - scale; SUB_BLOCKS], [min ^ 21; SUB_BLOCKS]);
                    (scales[index], mins[index]) = (scale, min);
                    let packed = pack(&scales, &mins);
                    for j in 0..SUB_BLOCKS {
                        assert_eq!(unpack(&packed, j), (scales[j], mins[j]));
                    }
                }
            }
        }
    }
}
