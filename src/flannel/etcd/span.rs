//! Which keys a request is about: one, or all of a range, whose end etcd wants to be told.

use std::fmt;

/// What etcd takes for the end of a range that has none.
const NO_END: &[u8] = &[0];

/// Keys next to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first key.
    pub(super) key: Vec<u8>,
    /// The key after the last one; empty: only the first one.
    pub(super) end: Vec<u8>,
}

impl Span {
    /// One key.
    pub fn key(key: &str) -> Self {
        Self { key: key.into(), end: Vec::new() }
    }

    /// All keys that begin so. Not a folder: the keys of `/a` are those of `/ab`, too, and only `/a/` ends one.
    pub fn prefix(prefix: &str) -> Self {
        // There is no empty key. The first one of all is a zero.
        let key = if prefix.is_empty() { NO_END.to_vec() } else { prefix.as_bytes().to_vec() };
        Self { key, end: after(prefix.as_bytes()) }
    }

    /// What of these keys comes after all that begin with `prefix`.
    pub(super) fn after_prefix(self, prefix: &str) -> Self {
        Self { key: after(prefix.as_bytes()), end: self.end }
    }

    /// What of these keys comes after `key`.
    pub(super) fn after_key(self, key: &[u8]) -> Self {
        Self { key: [key, &[0]].concat(), end: self.end }
    }
}

/// The first key after all those that begin with `prefix`.
fn after(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|byte| *byte < u8::MAX) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end
        }
        None => NO_END.to_vec(),
    }
}

/// For people: a range ends with a star.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.end.is_empty() { "" } else { "*" };
        write!(f, "{}{star}", String::from_utf8_lossy(&self.key))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_that_does_not_begin_so() {
        for (prefix, end) in [
            ("/giantnetes/ab/", b"/giantnetes/ab0".as_slice()),
            ("/giantnetes/ab/subnets/", b"/giantnetes/ab/subnets0"),
            ("a", b"b"),
            ("", b"\0"),
        ] {
            assert_eq!(Span::prefix(prefix).end, end, "{prefix:?}");
        }
        assert_eq!(after(b"a\xff\xff"), b"b");
        assert_eq!(after(b"\xff"), b"\0");
        assert_eq!(Span::prefix("").key, b"\0");
        let rest = Span::prefix("/giantnetes/").after_prefix("/giantnetes/ab/");
        assert_eq!(
            (rest.key.as_slice(), rest.end.as_slice()),
            (b"/giantnetes/ab0".as_slice(), b"/giantnetes0".as_slice())
        );
        assert_eq!(Span::prefix("/a/").after_key(b"/a/b").key, b"/a/b\0");
        assert_eq!(
            (Span::key("/a").to_string(), Span::prefix("/a/").to_string()),
            ("/a".to_owned(), "/a/*".to_owned())
        );
    }

    proptest! {
        #[test]
        fn a_key_is_in_the_range_when_it_begins_so(prefix in prop::collection::vec(250_u8.., 0..4), key in prop::collection::vec(250_u8.., 1..5)) {
            let end = after(&prefix);
            let is_in = key >= prefix && (end == NO_END || key < end);
            prop_assert_eq!(is_in, key.starts_with(&prefix));
        }
    }
}
