//! How Q2_K and Q3_K lay out 256 quants of two bits: for each half of the block, byte i of 32 holds
//! quants i, i + 32, i + 64 and i + 96.

use super::QK_K;

/// Bytes of the packed quants.
pub(crate) const TWO_BITS_BYTES: usize = QK_K / 4;

/// Packs the low two bits of the quants.
#[inline(always)]
pub(crate) fn pack(quants: &[u8; QK_K]) -> [u8; TWO_BITS_BYTES] {
    let mut qs = [0u8; TWO_BITS_BYTES];
    for (qs, q) in qs.chunks_exact_mut(32).zip(quants.chunks_exact(128)) {
        for i in 0..32 {
            qs[i] = (q[i] & 3) | (q[i + 32] & 3) << 2 | (q[i + 64] & 3) << 4 | (q[i + 96] & 3) << 6;
        }
    }
    qs
}

/// Writes the 256 quants to `quants`.
#[inline(always)]
pub(crate) fn unpack(qs: &[u8; TWO_BITS_BYTES], quants: &mut [u8]) {
    for (qs, quants) in qs.chunks_exact(32).zip(quants.chunks_exact_mut(128)) {
        for (quarter, quants) in quants.chunks_exact_mut(32).enumerate() {
            for (quant, q) in quants.iter_mut().zip(qs) {
                *quant = (q >> (2 * quarter)) & 3;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quants_come_back() {
        let quants = std::array::from_fn(|i| (i * i / 7 % 4) as u8);
        let mut back = [9u8; QK_K];
        unpack(&pack(&quants), &mut back);
        assert_eq!(back, quants);
        assert_eq!(pack(&std::array::from_fn(|i| (i / 32) as u8))[0], 0b11_10_01_00);
    }
}
