//! Keys as bytes, in the order of the values.
//!
//! The format is documented in `docs/tables.md` and does not change. Two properties hold for every
//! type here, and have to hold for those of users:
//!
//! - *Order*: `a < b` exactly if the bytes of `a` come before those of `b`.
//! - *No encoding is the beginning of another*. So encodings can follow on each other: the order of
//!   tuples is that of their encodings, and what is read ends where it was written to end.

use std::cmp::Reverse;

use bytes::Bytes;
use uuid::Uuid;

use crate::plural::plural;

/// After a zero byte within a text or bytes: it belongs to them.
const ZERO: u8 = 0xff;

/// After a zero byte: the text or the bytes end here. Below [`ZERO`], so that what ends sorts before
/// what goes on.
const END: u8 = 0;

/// Why bytes are not a key of a type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The bytes end too early.
    #[error("the key ends inside {what}")]
    Short {
        /// What they end in.
        what: &'static str,
    },
    /// No value has these bytes.
    #[error("the key holds bytes that are no {what}")]
    Invalid {
        /// What is expected there.
        what: &'static str,
    },
    /// More bytes follow.
    #[error("the key goes on for {bytes} {} after its end", plural(*.bytes, "byte", "bytes"))]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// What can be written as a key, or as a part of one. It may be borrowed: `str` for [`String`], `[u8]`
/// for `Vec<u8>` and [`Bytes`].
pub trait EncodeKey {
    /// Appends the key.
    fn encode_key(&self, to: &mut Vec<u8>);

    /// The bytes of the key.
    fn key_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_key(&mut bytes);
        bytes
    }
}

/// A type of keys of a table or an index.
///
/// Implemented for the integers from 8 to 128 bits, `bool`, `char`, [`String`], `Vec<u8>`, [`Bytes`],
/// arrays of bytes, [`Uuid`], [`Option`] (`None` comes first), [`Reverse`] (in descending order), and
/// tuples of two to six of them. Floating-point numbers have no total order, and the size of `usize`
/// depends on the machine.
///
/// An implementation for a type of your own delegates to these. Encodings must be in the order of the
/// values, none may be the beginning of another, and a borrowed form ([`std::borrow::Borrow`]) has the
/// encoding of the whole.
///
/// ```
/// use steadfast::table::{EncodeKey, KeyError, TableKey};
///
/// #[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
/// struct OrderId(u64);
///
/// impl EncodeKey for OrderId {
///     fn encode_key(&self, to: &mut Vec<u8>) {
///         self.0.encode_key(to);
///     }
/// }
///
/// impl TableKey for OrderId {
///     fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
///         u64::decode_key(from).map(Self)
///     }
/// }
///
/// let bytes = ("Paris".to_owned(), OrderId(7)).key_bytes();
/// assert_eq!(bytes, b"Paris\0\0\0\0\0\0\0\0\0\x07");
/// assert_eq!(TableKey::from_key_bytes(&bytes), Ok(("Paris".to_owned(), OrderId(7))));
/// ```
pub trait TableKey: EncodeKey + Ord + Sized {
    /// Takes a key from the beginning of `from`, which is left with the rest.
    ///
    /// # Errors
    /// See [`KeyError`].
    fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError>;

    /// The key that has exactly these bytes.
    ///
    /// # Errors
    /// See [`KeyError`].
    fn from_key_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let mut rest = bytes;
        let key = Self::decode_key(&mut rest)?;
        match rest.len() {
            0 => Ok(key),
            bytes => Err(KeyError::Trailing { bytes }),
        }
    }
}

/// The beginning of some keys of type `K`: of texts and bytes their first part, of tuples the first
/// elements.
pub trait PrefixOf<K: ?Sized> {
    /// Appends the bytes with which the encodings of all those keys begin, and of no others.
    fn encode_prefix(&self, to: &mut Vec<u8>);
}

macro_rules! integers {
    ($($unsigned:ty, $signed:ty, $what:literal;)*) => {$(
        impl EncodeKey for $unsigned {
            fn encode_key(&self, to: &mut Vec<u8>) {
                to.extend(self.to_be_bytes());
            }
        }

        impl TableKey for $unsigned {
            fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
                take(from, $what).map(Self::from_be_bytes)
            }
        }

        impl EncodeKey for $signed {
            fn encode_key(&self, to: &mut Vec<u8>) {
                // Without its sign the bit pattern is in order: negative numbers come first.
                (self.cast_unsigned() ^ (1 << (Self::BITS - 1))).encode_key(to);
            }
        }

        impl TableKey for $signed {
            fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
                let flipped = <$unsigned>::decode_key(from)?;
                Ok((flipped ^ (1 << (Self::BITS - 1))).cast_signed())
            }
        }
    )*};
}

integers! {
    u8, i8, "an integer of 8 bits";
    u16, i16, "an integer of 16 bits";
    u32, i32, "an integer of 32 bits";
    u64, i64, "an integer of 64 bits";
    u128, i128, "an integer of 128 bits";
}

impl EncodeKey for bool {
    fn encode_key(&self, to: &mut Vec<u8>) {
        to.push(u8::from(*self));
    }
}

impl TableKey for bool {
    fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
        match take(from, "a bool")? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(KeyError::Invalid { what: "bool" }),
        }
    }
}

impl EncodeKey for char {
    fn encode_key(&self, to: &mut Vec<u8>) {
        u32::from(*self).encode_key(to);
    }
}

impl TableKey for char {
    fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
        let number = take(from, "a char").map(u32::from_be_bytes)?;
        Self::from_u32(number).ok_or(KeyError::Invalid { what: "char" })
    }
}

impl EncodeKey for [u8] {
    fn encode_key(&self, to: &mut Vec<u8>) {
        PrefixOf::<Vec<u8>>::encode_prefix(self, to);
        to.extend([0, END]);
    }
}

impl PrefixOf<Vec<u8>> for [u8] {
    fn encode_prefix(&self, to: &mut Vec<u8>) {
        to.reserve(self.len() + 2);
        for byte in self {
            to.push(*byte);
            if *byte == 0 {
                to.push(ZERO);
            }
        }
    }
}

impl PrefixOf<Bytes> for [u8] {
    fn encode_prefix(&self, to: &mut Vec<u8>) {
        PrefixOf::<Vec<u8>>::encode_prefix(self, to);
    }
}

impl EncodeKey for Vec<u8> {
    fn encode_key(&self, to: &mut Vec<u8>) {
        self[..].encode_key(to);
    }
}

impl TableKey for Vec<u8> {
    fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
        take_bytes(from, "bytes")
    }
}

impl EncodeKey for Bytes {
    fn encode_key(&self, to: &mut Vec<u8>) {
        self[..].encode_key(to);
    }
}

impl TableKey for Bytes {
    fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
        take_bytes(from, "bytes").map(Self::from)
    }
}

impl EncodeKey for str {
    fn encode_key(&self, to: &mut Vec<u8>) {
        self.as_bytes().encode_key(to);
    }
}

impl PrefixOf<String> for str {
    fn encode_prefix(&self, to: &mut Vec<u8>) {
        PrefixOf::<Vec<u8>>::encode_prefix(self.as_bytes(), to);
    }
}

impl EncodeKey for String {
    fn encode_key(&self, to: &mut Vec<u8>) {
        self.as_bytes().encode_key(to);
    }
}

impl TableKey for String {
    fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
        let bytes = take_bytes(from, "a text")?;
        Self::from_utf8(bytes).map_err(|_| KeyError::Invalid { what: "UTF-8" })
    }
}

impl<const N: usize> EncodeKey for [u8; N] {
    fn encode_key(&self, to: &mut Vec<u8>) {
        to.extend(self);
    }
}

impl<const N: usize> TableKey for [u8; N] {
    fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
        take(from, "an array of bytes")
    }
}

impl EncodeKey for Uuid {
    fn encode_key(&self, to: &mut Vec<u8>) {
        to.extend(self.as_bytes());
    }
}

impl TableKey for Uuid {
    fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
        take(from, "a UUID").map(Self::from_bytes)
    }
}

impl<T: EncodeKey> EncodeKey for Option<T> {
    fn encode_key(&self, to: &mut Vec<u8>) {
        self.is_some().encode_key(to);
        if let Some(value) = self {
            value.encode_key(to);
        }
    }
}

impl<T: TableKey> TableKey for Option<T> {
    fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
        let is_some = bool::decode_key(from)?;
        is_some.then(|| T::decode_key(from)).transpose()
    }
}

impl<T: EncodeKey> EncodeKey for Reverse<T> {
    fn encode_key(&self, to: &mut Vec<u8>) {
        let start = to.len();
        self.0.encode_key(to);
        invert(&mut to[start..]);
    }
}

impl<T: TableKey> TableKey for Reverse<T> {
    fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
        let mut inverted = from.to_vec();
        invert(&mut inverted);
        let mut rest = &inverted[..];
        let value = T::decode_key(&mut rest)?;
        *from = &from[from.len() - rest.len()..];
        Ok(Self(value))
    }
}

macro_rules! tuples {
    ($($($name:ident)+;)*) => {$(
        impl<$($name: EncodeKey),+> EncodeKey for ($($name,)+) {
            fn encode_key(&self, to: &mut Vec<u8>) {
                #[expect(non_snake_case, reason = "the elements are named as their types")]
                let ($($name,)+) = self;
                $($name.encode_key(to);)+
            }
        }

        impl<$($name: TableKey),+> TableKey for ($($name,)+) {
            fn decode_key(from: &mut &[u8]) -> Result<Self, KeyError> {
                Ok(($($name::decode_key(from)?,)+))
            }
        }
    )*};
}

tuples! {
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
}

macro_rules! prefixes {
    ($($($first:ident)+, $($rest:ident)+;)*) => {$(
        impl<$($first: EncodeKey,)+ $($rest),+> PrefixOf<($($first,)+ $($rest,)+)> for ($($first,)+) {
            fn encode_prefix(&self, to: &mut Vec<u8>) {
                #[expect(non_snake_case, reason = "the elements are named as their types")]
                let ($($first,)+) = self;
                $($first.encode_key(to);)+
            }
        }
    )*};
}

prefixes! {
    A, B;
    A, B C;
    A, B C D;
    A, B C D E;
    A, B C D E F;
    A B, C;
    A B, C D;
    A B, C D E;
    A B, C D E F;
    A B C, D;
    A B C, D E;
    A B C, D E F;
    A B C D, E;
    A B C D, E F;
    A B C D E, F;
}

fn invert(bytes: &mut [u8]) {
    for byte in bytes {
        *byte = !*byte;
    }
}

fn take<const N: usize>(from: &mut &[u8], what: &'static str) -> Result<[u8; N], KeyError> {
    let short = KeyError::Short { what };
    let (taken, rest) = from.split_first_chunk().ok_or(short)?;
    *from = rest;
    Ok(*taken)
}

fn take_bytes(from: &mut &[u8], what: &'static str) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Vec::new();
    loop {
        let zero = from.iter().position(|byte| *byte == 0);
        let zero = zero.ok_or(KeyError::Short { what })?;
        bytes.extend_from_slice(&from[..zero]);
        let after = *from.get(zero + 1).ok_or(KeyError::Short { what })?;
        *from = &from[zero + 2..];
        match after {
            END => return Ok(bytes),
            ZERO => bytes.push(0),
            _ => return Err(KeyError::Invalid { what }),
        }
    }
}

#[cfg(test)]
mod tests;
