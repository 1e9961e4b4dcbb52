//! Encoding and decoding whole matrices: the functions for callers outside the crate. They check lengths once, and use
//! the threads of the current rayon pool.
//!
//! Results do not depend on the number of threads: every row is computed independently, and sums over rows are added up
//! in the order of the rows.

mod encoding;
mod hifi;
pub mod hifi_fork;
mod plain;
mod source;

pub use encoding::Encoding;
pub use hifi::{Outliers, OutliersMut, dequantize_hifi, quantize_hifi};
pub use plain::{check_finite, dequantize, errors, quantize};
pub use source::Source;

pub(crate) use hifi::check_parts;
#[cfg(test)]
pub(crate) use plain::search_rows;
