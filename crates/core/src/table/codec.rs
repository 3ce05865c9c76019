//! Values as bytes.

use std::error::Error;

use bytes::Bytes;

/// What a codec reports: any error.
pub type CodecError = Box<dyn Error + Send + Sync>;

/// How the values of a table become bytes, and bytes values.
///
/// ```
/// use steadfast::table::{Codec, CodecError, Table};
///
/// /// Values as JSON, which a person can read and which takes new optional fields.
/// #[derive(Clone, Copy, Debug)]
/// struct Json;
///
/// impl<V: serde::Serialize + serde::de::DeserializeOwned> Codec<V> for Json {
///     fn encode(&self, value: &V) -> Result<Vec<u8>, CodecError> {
///         Ok(serde_json::to_vec(value)?)
///     }
///
///     fn decode(&self, bytes: &[u8]) -> Result<V, CodecError> {
///         Ok(serde_json::from_slice(bytes)?)
///     }
/// }
///
/// static USERS: Table<u64, Vec<String>, Json> = Table::with_codec("users", Json);
/// ```
pub trait Codec<V> {
    /// The bytes of a value.
    ///
    /// # Errors
    /// When the value has none.
    fn encode(&self, value: &V) -> Result<Vec<u8>, CodecError>;

    /// The value that has exactly these bytes.
    ///
    /// # Errors
    /// When no value has.
    fn decode(&self, bytes: &[u8]) -> Result<V, CodecError>;
}

/// Any type that `serde` can write and read, in the [format of postcard], with the feature `postcard`,
/// which is on by default.
///
/// The format is small, and has no names of fields: a type can be read as long as its fields and their
/// order, and the order of the variants of its enums, stay what they were. A new variant at the end is
/// no problem. `docs/tables.md` says how a type changes.
///
/// [format of postcard]: https://postcard.jamesmunns.com/wire-format
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Postcard;

#[cfg(feature = "postcard")]
impl<V: serde::Serialize + serde::de::DeserializeOwned> Codec<V> for Postcard {
    fn encode(&self, value: &V) -> Result<Vec<u8>, CodecError> {
        Ok(postcard::to_allocvec(value)?)
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, CodecError> {
        let (value, rest) = postcard::take_from_bytes(bytes)?;
        match rest.len() {
            0 => Ok(value),
            bytes => Err(format!("{bytes} bytes follow on the value").into()),
        }
    }
}

/// Values that are bytes already, as they are: typed keys over raw values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Raw;

impl Codec<Bytes> for Raw {
    fn encode(&self, value: &Bytes) -> Result<Vec<u8>, CodecError> {
        Ok(value.to_vec())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Bytes, CodecError> {
        Ok(Bytes::copy_from_slice(bytes))
    }
}

/// Counters: an `i64` as 8 bytes in little-endian order, which [`TransactionDatabase::add`] adds to.
///
/// [`TransactionDatabase::add`]: crate::TransactionDatabase::add
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count;

impl Codec<i64> for Count {
    fn encode(&self, value: &i64) -> Result<Vec<u8>, CodecError> {
        Ok(value.to_le_bytes().to_vec())
    }

    fn decode(&self, bytes: &[u8]) -> Result<i64, CodecError> {
        Ok(bytes.try_into().map(i64::from_le_bytes)?)
    }
}
