//! The sixteen values of the four-bit quants of IQ4_NL and IQ4_XS. They are closer together near zero.

/// The values of the quants.
pub(crate) const VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Added to the values so that they are unsigned.
pub(crate) const OFFSET: i32 = 128;

/// The values with [`OFFSET`] added.
#[cfg_attr(any(portable, not(target_arch = "x86_64")), allow(dead_code))]
pub(crate) const UNSIGNED: [u8; 16] = {
    let mut unsigned = [0u8; 16];
    let mut i = 0;
    while i < unsigned.len() {
        unsigned[i] = (VALUES[i] as i32 + OFFSET) as u8;
        i += 1;
    }
    unsigned
};

/// The values as floats.
pub(crate) const FLOATS: [f32; 16] = {
    let mut floats = [0f32; 16];
    let mut i = 0;
    while i < floats.len() {
        floats[i] = VALUES[i] as f32;
        i += 1;
    }
    floats
};

/// The values as bytes.
#[cfg(all(target_arch = "x86_64", not(portable)))]
pub(crate) const BYTES: [u8; 16] = {
    let mut bytes = [0u8; 16];
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = VALUES[i] as u8;
        i += 1;
    }
    bytes
};
