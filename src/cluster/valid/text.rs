//! Forms of text, and the newtypes that say a text has one.

use std::fmt;

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            pub(super) fn checked(text: &str) -> Self {
                Self(text.to_owned())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

texts! {
    /// A zone: a value of the hosts' label `giantnetes.io/zone`.
    Zone;
    /// Name of a node pool: a DNS label of at most 20 characters.
    PoolName;
    /// A DNS name.
    HostName;
}

/// A text as messages show it: quoted, and cut where nobody reads on.
pub(super) fn shown(text: &str) -> String {
    const ENOUGH: usize = 80;
    match text.char_indices().nth(ENOUGH) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn lower_or_digit(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
pub fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(|byte| lower_or_digit(*byte)))
        && bytes.iter().all(|byte| lower_or_digit(*byte) || *byte == b'-')
}

/// A DNS subdomain, as names of objects are.
pub(super) fn is_object_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// A DNS name, or an IPv4 address.
pub(super) fn is_host_name(text: &str) -> bool {
    is_object_name(text) && text.split('.').all(|label| label.len() <= 63)
}

/// Letters, digits and `marks`, with a letter or digit at both ends.
pub fn is_name_with(marks: &[u8], text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || marks.contains(byte))
}

/// What a label's value may be, beside empty.
fn is_label_name(text: &str) -> bool {
    text.len() <= 63 && is_name_with(b"-_.", text)
}

pub(super) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_name(text)
}

pub(super) fn is_label_key(text: &str) -> bool {
    text.len() <= 253
        && match text.split_once('/') {
            Some((prefix, name)) => is_object_name(prefix) && is_label_name(name),
            None => is_label_name(text),
        }
}

/// Keys that Kubernetes or Giantnetes give a meaning.
pub(super) fn is_own_label_key(text: &str) -> bool {
    let Some((prefix, _)) = text.split_once('/') else { return false };
    ["kubernetes.io", "k8s.io", "giantnetes.io"]
        .iter()
        .any(|domain| prefix.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// `^[A-Z][A-Za-z0-9]{0,62}$`
pub(super) fn is_feature_gate(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|first: char| first.is_ascii_uppercase())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// `^[a-z0-9][a-z0-9-]{0,63}$`
pub(super) fn is_flag(text: &str) -> bool {
    text.len() <= 64
        && !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|byte| lower_or_digit(byte) || byte == b'-')
}

/// Printable ASCII on one line.
pub(super) fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Printable ASCII without blanks, and not nothing.
pub(super) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// `2026-12-24T18:00:00Z`, also with fractions of a second or an offset. (A parser of ours takes more than the API server.)
pub(super) fn is_time(text: &str) -> bool {
    let Some((date, rest)) = text.split_once('T').filter(|_| text.len() <= 40) else { return false };
    let time_end = rest.find(['Z', '+', '-']).unwrap_or(rest.len());
    let (time, zone) = rest.split_at(time_end);
    let (time, fraction) = time.split_once('.').map_or((time, None), |(time, fraction)| (time, Some(fraction)));
    has_form(date, "0000-00-00")
        && has_form(time, "00:00:00")
        && fraction.is_none_or(|digits| (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()))
        && (zone == "Z" || is_offset(zone))
}

/// Hours and minutes with a sign, such as `+01:00`.
fn is_offset(text: &str) -> bool {
    let number = |from: usize| text.get(from..from + 2).and_then(|digits| digits.parse::<u8>().ok());
    (has_form(text, "+00:00") || has_form(text, "-00:00"))
        && number(1).is_some_and(|hours| hours < 24)
        && number(4).is_some_and(|minutes| minutes < 60)
}

/// Whether digits stand where the form has zeros, and all else is as in the form.
fn has_form(text: &str, form: &str) -> bool {
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(|(byte, wanted)| match wanted {
            b'0' => byte.is_ascii_digit(),
            _ => byte == wanted,
        })
}
