//! The value of a counter: an `i64`, as 8 bytes in little-endian order. A key without a value counts as 0.

use bytes::Bytes;

use crate::error::CounterError;

/// What `value` counts.
///
/// # Errors
/// [`CounterError::NotACounter`] when it has another length.
pub(crate) fn decode(key: &Bytes, value: Option<&Bytes>) -> Result<i64, CounterError> {
    let Some(value) = value else { return Ok(0) };
    let bytes = value[..]
        .try_into()
        .map_err(|_| CounterError::NotACounter {
            key: key.clone(),
            bytes: value.len(),
        })?;
    Ok(i64::from_le_bytes(bytes))
}

/// The value of the counter `base` after `delta` is added.
///
/// # Errors
/// See [`CounterError`].
pub(crate) fn sum(key: &Bytes, base: Option<&Bytes>, delta: i128) -> Result<Bytes, CounterError> {
    let base = decode(key, base)?;
    let sum = i128::from(base).checked_add(delta);
    let sum = sum.and_then(|sum| i64::try_from(sum).ok());
    let sum = sum.ok_or_else(|| CounterError::Overflow {
        key: key.clone(),
        value: base,
        delta,
    })?;
    Ok(Bytes::copy_from_slice(&sum.to_le_bytes()))
}
