//! Checks of arguments that several functions share.

use crate::error::QuantError;

/// Fails if a buffer does not have the length that the other arguments require.
pub(crate) fn expect_length(
    what: &'static str,
    got: usize,
    expected: usize,
) -> Result<(), QuantError> {
    if got == expected { Ok(()) } else { Err(QuantError::BufferLength { what, got, expected }) }
}

/// Fails if there is not one importance per column, or if one is NaN, infinite or negative.
pub(crate) fn check_importance(
    importance: Option<&[f32]>,
    row_length: usize,
) -> Result<(), QuantError> {
    let Some(importance) = importance else { return Ok(()) };
    expect_length("importance", importance.len(), row_length)?;
    match importance.iter().position(|w| !w.is_finite() || *w < 0.0) {
        None => Ok(()),
        Some(position) => Err(QuantError::BadImportance { position }),
    }
}
