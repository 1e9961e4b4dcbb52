//! Whole matrices: lengths are checked here, once, and rows are spread over the threads of the
//! current rayon pool. What callers outside the crate use.
//!
//! Results do not depend on the number of threads: every row is computed alone, and sums over
//! rows are added up in their order.

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
