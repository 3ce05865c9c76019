//! Keys of typed tables.

use std::cmp::Reverse;

use uuid::Uuid;

use crate::table::TableKey;

/// Two keys of the type that the first byte names, the first of as many bytes as the second says.
pub fn table_key(input: &[u8]) {
    let [kind, length, keys @ ..] = input else {
        return;
    };
    let Some((one, other)) = keys.split_at_checked((*length).into()) else {
        return;
    };
    match kind {
        b'a' => pair::<(i8, i16, i32, i64, i128)>(one, other),
        b'b' => pair::<(u8, u16, u32, u64, u128)>(one, other),
        b'c' => pair::<(bool, char, Option<bool>)>(one, other),
        b'd' => pair::<(String, String)>(one, other),
        b'e' => pair::<(Vec<u8>, [u8; 2], Uuid)>(one, other),
        b'f' => pair::<(Reverse<(String, Option<u8>)>, Reverse<Reverse<Vec<u8>>>)>(one, other),
        _ => {}
    }
}

fn pair<K: TableKey>(one: &[u8], other: &[u8]) {
    let decode = |bytes: &[u8]| {
        let key = K::from_key_bytes(bytes).ok()?;
        assert_eq!(key.key_bytes(), bytes, "a key has one encoding");
        Some(key)
    };
    if let (Some(a), Some(b)) = (decode(one), decode(other)) {
        assert_eq!(a.cmp(&b), one.cmp(other), "the order is that of the values");
        assert!(a == b || !one.starts_with(other), "no key begins another");
    }
}
