//! The order of encodings is that of the values, and they are read back as they were written.

use std::fmt::Debug;

use proptest::prelude::*;

use super::*;

/// Checks what has to hold for two keys of a type, and what follows for parts of tuples.
fn check<K: TableKey + Debug>(a: &K, b: &K) {
    let (of_a, of_b) = (a.key_bytes(), b.key_bytes());
    assert_eq!(a.cmp(b), of_a.cmp(&of_b), "{a:?} and {b:?}");
    assert!(a == b || !of_b.starts_with(&of_a), "{a:?} begins {b:?}");
    assert_eq!(K::from_key_bytes(&of_a).as_ref(), Ok(a));
    for end in 0..of_a.len() {
        let cut = K::from_key_bytes(&of_a[..end]);
        assert!(cut.is_err(), "{a:?} cut to {end} bytes is {cut:?}");
    }
    let mut longer = of_a.clone();
    longer.extend(&of_b);
    let trailing = KeyError::Trailing { bytes: of_b.len() };
    assert_eq!(K::from_key_bytes(&longer), Err(trailing));
    let mut rest = &longer[..];
    assert_eq!(K::decode_key(&mut rest).as_ref(), Ok(a));
    assert_eq!(K::decode_key(&mut rest).as_ref(), Ok(b));
}

/// Whatever is read from any bytes at all has exactly these bytes.
fn check_any<K: TableKey + Debug>(bytes: &[u8]) {
    if let Ok(key) = K::from_key_bytes(bytes) {
        assert_eq!(key.key_bytes(), bytes, "{key:?}");
    }
}

/// Bytes among which the special ones are frequent.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0), Just(0xff), Just(1), any::<u8>()];
    prop::collection::vec(byte, 0..6)
}

fn text() -> impl Strategy<Value = String> {
    let letter = prop_oneof![Just('\0'), Just('\u{1}'), Just('a'), any::<char>()];
    prop::collection::vec(letter, 0..5).prop_map(String::from_iter)
}

macro_rules! keys {
    ($($name:ident: $type:ty = $strategy:expr;)*) => {$(
        proptest! {
            #[test]
            fn $name(a in $strategy, b in $strategy, garbage in bytes()) {
                check::<$type>(&a, &b);
                check_any::<$type>(&garbage);
            }
        }
    )*};
}

keys! {
    u8_keys_keep_their_order: u8 = any::<u8>();
    u16_keys_keep_their_order: u16 = any::<u16>();
    u32_keys_keep_their_order: u32 = any::<u32>();
    u64_keys_keep_their_order: u64 = any::<u64>();
    u128_keys_keep_their_order: u128 = any::<u128>();
    i8_keys_keep_their_order: i8 = any::<i8>();
    i16_keys_keep_their_order: i16 = any::<i16>();
    i32_keys_keep_their_order: i32 = any::<i32>();
    i64_keys_keep_their_order: i64 = any::<i64>();
    i128_keys_keep_their_order: i128 = any::<i128>();
    bool_keys_keep_their_order: bool = any::<bool>();
    char_keys_keep_their_order: char = any::<char>();
    text_keys_keep_their_order: String = text();
    byte_keys_keep_their_order: Vec<u8> = bytes();
    shared_byte_keys_keep_their_order: Bytes = bytes().prop_map(Bytes::from);
    array_keys_keep_their_order: [u8; 3] = any::<[u8; 3]>();
    uuid_keys_keep_their_order: Uuid = any::<u128>().prop_map(Uuid::from_u128);
    optional_keys_keep_their_order: Option<Vec<u8>> = prop::option::of(bytes());
    reversed_keys_keep_their_order: Reverse<(String, i8)> = (text(), any::<i8>()).prop_map(Reverse);
    pairs_keep_their_order: (Vec<u8>, Vec<u8>) = (bytes(), bytes());
    tuples_of_four_keep_their_order: (Vec<u8>, bool, String, u8) =
        (bytes(), any::<bool>(), text(), any::<u8>());
    tuples_of_five_keep_their_order: (bool, bool, Vec<u8>, bool, i8) =
        (any::<bool>(), any::<bool>(), bytes(), any::<bool>(), any::<i8>());
    tuples_of_six_keep_their_order: (bool, Vec<u8>, bool, Vec<u8>, bool, u8) =
        (any::<bool>(), bytes(), any::<bool>(), bytes(), any::<bool>(), any::<u8>());
}

/// Parts of every kind, one in another.
type Nested = ((String, Option<bool>), Reverse<Vec<u8>>, i16);

fn nested() -> impl Strategy<Value = Nested> {
    let first = (text(), any::<Option<bool>>());
    (first, bytes().prop_map(Reverse), any::<i16>())
}

proptest! {
    #[test]
    fn nested_keys_keep_their_order(a in nested(), b in nested(), garbage in bytes()) {
        check::<Nested>(&a, &b);
        check_any::<Nested>(&garbage);
    }

    #[test]
    fn a_prefix_finds_the_keys_that_begin_with_it_and_no_others(a in text(), b in text(), n: u8) {
        let mut prefix = Vec::new();
        b.encode_prefix(&mut prefix);
        prop_assert_eq!(a.key_bytes().starts_with(&prefix), a.starts_with(&b));
        prefix.clear();
        PrefixOf::<(String, u8)>::encode_prefix(&(b.clone(),), &mut prefix);
        prop_assert_eq!((a.clone(), n).key_bytes().starts_with(&prefix), a == b);
    }
}

/// The format is fixed: what was written must be found by every later version.
#[test]
fn the_bytes_of_keys_are_those_of_the_documentation() {
    assert_eq!(258_u16.key_bytes(), [1, 2]);
    assert_eq!((-1_i16).key_bytes(), [0x7f, 0xff]);
    assert_eq!(0_i16.key_bytes(), [0x80, 0]);
    assert_eq!(true.key_bytes(), [1]);
    assert_eq!('a'.key_bytes(), [0, 0, 0, 0x61]);
    assert_eq!("a\0b".key_bytes(), [0x61, 0, 0xff, 0x62, 0, 0]);
    assert_eq!("".key_bytes(), [0, 0]);
    assert_eq!([0_u8, 1].key_bytes(), [0, 1]);
    assert_eq!(None::<u8>.key_bytes(), [0]);
    assert_eq!(Some(7_u8).key_bytes(), [1, 7]);
    assert_eq!(Reverse(7_u8).key_bytes(), [0xf8]);
    assert_eq!(("a".to_owned(), 7_u8).key_bytes(), [0x61, 0, 0, 7]);
}
