//! Nouns after numbers, in texts for people.

/// `one` after 1, and `many` after any other number.
pub fn plural<'a, N: Copy + PartialEq + From<u8>>(
    count: N,
    one: &'a str,
    many: &'a str,
) -> &'a str {
    if count == N::from(1) { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_singular() {
        for (count, noun) in [(0, "nodes"), (1, "node"), (2, "nodes"), (21, "nodes")] {
            assert_eq!(plural(count, "node", "nodes"), noun);
        }
    }
}
